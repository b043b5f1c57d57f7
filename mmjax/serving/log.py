"""The log of requests: one JSON line each, written beside the event loop, which never waits for it."""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

MOST_LINES = 10_000
"""Lines that may wait to be written; while a blocked log holds so many, new ones are dropped and counted."""
EVERY_S = 0.05
"""How often what waits is written."""

_encode = msgspec.json.Encoder().encode


class RequestLog:
    """Lines of JSON on their way to a file descriptor; `tell` costs microseconds, even when nobody reads the log."""

    def __init__(self, descriptor: int, *, lost: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._lost = lost
        self._waiting: deque[bytes] = deque()
        self._ending = threading.Event()
        self._logger = structlog.wrap_logger(
            _Sink(self._keep),
            processors=[_line],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        ).bind()
        self._thread = threading.Thread(target=self._write_on, name="log", daemon=True)
        self._thread.start()

    def tell(self, event: str, facts: Mapping[str, Any]) -> None:
        """Write a line, soon: `time`, `event` and the facts, which are plain values."""
        self._logger.info(event, **facts)

    def close(self) -> None:
        """Write what waits, for a second at most, and end."""
        self._ending.set()
        self._thread.join(timeout=1)

    def _keep(self, line: bytes) -> None:
        if len(self._waiting) >= MOST_LINES:
            self._lost()
        else:
            self._waiting.append(line)

    def _write_on(self) -> None:
        while not self._ending.wait(EVERY_S):
            self._write()
        self._write()

    def _write(self) -> None:
        block = b"".join(self._waiting.popleft() for _ in range(len(self._waiting)))
        try:
            while block:
                block = block[os.write(self._descriptor, block) :]
        except OSError:  # nobody reads any more, or the disk is full: answering goes on
            self._lost()


class _Sink:
    """What structlog hands its lines to."""

    def __init__(self, keep: Callable[[bytes], None]) -> None:
        self.info = keep


def _line(logger: Any, level: str, facts: Any) -> bytes:
    """Return the facts as a line of JSON, after time and event."""
    told = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": facts.pop("event")}
    told.update(facts)
    return _encode(told) + b"\n"
