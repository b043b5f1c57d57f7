"""Ctrl-C and SIGTERM: work ends at a good moment, and a process that cannot hear them ends all the same.

Python runs a signal's handler between two of its own instructions. An XLA compilation is one instruction of many
seconds, so `end_in_time` watches from a thread, which asks the main one for signs of life by SIGURG (ignored by
default, and used by nothing else here).
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

GRACE_S = 3.0
"""Seconds without a sign of life after which a process that was asked to end is ended."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; what catches KeyboardInterrupt to stop in good order also stops for this."""


class Ending(Exception):
    """Raised inside `held` to leave its block because a signal arrived."""


@contextlib.contextmanager
def held() -> Iterator[Callable[[], bool]]:
    """Hold back the first SIGINT or SIGTERM while the block lasts; yield what says whether one arrived.

    It is raised when the block ends, as KeyboardInterrupt or Terminated. A second one is raised at once, a third ends
    the process as the system does. Outside the main thread nothing is held.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    arrived: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)
        if len(arrived) == 2:
            for each in before:
                signal.signal(each, signal.SIG_DFL)
            raise_for(number)

    before = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.suppress(Ending):
            yield lambda: bool(arrived)
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if arrived:
        raise_for(arrived[0])


def raise_for(number: int) -> NoReturn:
    """Raise what stands for the signal: Terminated for SIGTERM, KeyboardInterrupt for SIGINT."""
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextlib.contextmanager
def end_in_time(last_words: Callable[[int], object], *, grace_s: float = GRACE_S) -> Iterator[None]:
    """End the process within seconds of a SIGTERM, or a second SIGINT, that the main thread cannot hear.

    `last_words(exit code)` is called before, in the watching thread. A main thread that gives signs of life is left
    to end by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    alive = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.signal(signal.SIGURG, lambda _number, _frame: alive.set())
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reading, alive, last_words, grace_s), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        os.close(writing)  # the watcher reads the end of the pipe and returns
        watcher.join()
        signal.signal(signal.SIGURG, before)
        os.close(reading)


def _watch(reading: int, alive: threading.Event, last_words: Callable[[int], object], grace_s: float) -> None:
    """Read the numbers of the signals that arrive, as the C handler writes them, and see that they are obeyed."""
    code, interrupts = 0, 0
    while not code:
        numbers = os.read(reading, 64)
        if not numbers:
            return
        interrupts += numbers.count(signal.SIGINT)
        code = 143 if signal.SIGTERM in numbers else 130 if interrupts > 1 else 0
    os.set_blocking(reading, False)
    heard = time.monotonic()
    while time.monotonic() - heard < grace_s:
        alive.clear()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)
        if alive.wait(0.2):
            heard = time.monotonic()
            time.sleep(0.2)
        with contextlib.suppress(BlockingIOError):
            if _closed(reading):
                return
    last_words(code)
    os._exit(code)


def _closed(reading: int) -> bool:
    """Return whether the pipe ended; BlockingIOError when it is open and empty."""
    while os.read(reading, 64):
        pass
    return True
