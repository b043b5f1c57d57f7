"""Probes: what orchestrators and load balancers ask again and again. No key, no work, an answer under any load."""

import asyncio
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from mmjax.serving.device import Device
from mmjax.serving.engine import Engine, phase

BEAT_S = 1.0
"""How often the device's thread is asked whether it turns."""
STUCK_S = 60.0
"""Longer than that no batch takes: a thread that has not answered since then is stuck or gone."""

ProbeReply = tuple[HTTPStatus, dict[str, Any]]
"""Status and document of a reply."""


class Pulse:
    """Whether the device's thread turns: it is given a turn of a moment each second, between two batches."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._asked: float | None = None
        """When the turn was given that has not been taken yet, by `time.monotonic`."""

    async def beat(self) -> None:
        """Ask again and again, until cancelled."""
        while True:
            if self._asked is None:
                self._asked = time.monotonic()
                self._device.turns.put(self._answer)
            await asyncio.sleep(BEAT_S)

    def fresh(self) -> bool:
        """Return whether the thread has turned lately."""
        asked = self._asked
        return asked is None or time.monotonic() - asked < STUCK_S

    def _answer(self) -> None:
        self._asked = None


def live(engine: Engine, pulse: Pulse) -> ProbeReply:
    """Return 200 while the event loop turns and the device's thread does, else 503; whatever models and load do."""
    return _status(fresh := pulse.fresh()), {"status": "ok" if fresh else "stuck"}


def ready(engine: Engine, pulse: Pulse) -> ProbeReply:
    """Return 200 while requests are answered, else 503: models are being compiled, or the server is ending."""
    return _status((now := phase(engine)) == "ready"), {"status": now}


def startup(engine: Engine, pulse: Pulse) -> ProbeReply:
    """Return 200 from the moment that the models are compiled, until the end; else 503."""
    started = engine.ready.is_set()
    return _status(started), {"status": "started" if started else "starting"}


def v2_live(engine: Engine, pulse: Pulse) -> ProbeReply:
    """Return `live` in the words of the Open Inference Protocol."""
    return _status(fresh := pulse.fresh()), {"live": fresh}


def v2_ready(engine: Engine, pulse: Pulse) -> ProbeReply:
    """Return `ready` in the words of the Open Inference Protocol, and of clients that look for `live` there."""
    return _status(is_ready := phase(engine) == "ready"), {"ready": is_ready, "live": True}


def _status(good: bool) -> HTTPStatus:
    return HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE


PROBES: Mapping[str, Callable[[Engine, Pulse], ProbeReply]] = MappingProxyType(
    {
        "/health/live": live,
        "/health/ready": ready,
        "/health/startup": startup,
        "/v2/health/live": v2_live,
        "/v2/health/ready": v2_ready,
    }
)
"""Path to what it answers."""
