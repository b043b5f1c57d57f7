"""The life of the server process: signals end it in good order or at once, or bring in new versions of models."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any, NamedTuple

import uvicorn

from mmjax.serving.engine import Engine, drain
from mmjax.serving.reload import Source, Tell, reload_models, say, watch

CLOSE = (b"connection", b"close")
LAST_REQUESTS_S = 0.2
"""Time in which connections that were just taken can send their request."""


class Plan(NamedTuple):
    """How a server lives and ends."""

    source: Source
    drain_delay_s: float
    """Time after SIGTERM in which requests are taken still."""
    watch_s: float | None
    """How often to look for other versions; None for never."""
    grace_s: float
    """Time that requests in flight get at the end."""
    tell: Tell
    """Hears of reloads, and of the end that begins."""


class Server(uvicorn.Server):
    """uvicorn's server, which ends as an operator expects.

    SIGTERM: not ready at once, requests taken for the drain delay still, those in flight finished, then the end with
    code 0. SIGINT: the same without delay. A second of either ends the process at once, as the system does. SIGHUP:
    every model is brought up to the version that its reference means now.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine, plan: Plan) -> None:
        super().__init__(config)
        self._engine = engine
        self._plan = plan
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = False
        self._told = False
        self._watching: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and listen for SIGHUP, which ends a process that does not, and for other versions."""
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self._plan.watch_s is not None:
            looking = watch(self._engine, self._plan.source, self._plan.tell, every_s=self._plan.watch_s)
            self._watching = self._loop.create_task(looking)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, finish what is in flight, end the engine."""
        drain(self._engine)
        if self._asked and not self._told:
            self._say({})
        if self._watching is not None:
            self._watching.cancel()
        if CLOSE not in self.config.encoded_headers:
            self.config.encoded_headers.append(CLOSE)
        if CLOSE not in self.server_state.default_headers:  # uvicorn makes them no more
            self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]
        await self._take_last(sockets or [])
        await super().shutdown(sockets)

    async def _take_last(self, listeners: Sequence[socket.socket]) -> None:
        """Take what waits to be accepted, and leave the newest connections the time to send their request.

        uvicorn would close both, and the system would reset them: requests that a balancer cannot know to be lost.
        """
        last: list[socket.socket] = []
        for listener in listeners:
            with contextlib.suppress(OSError):  # nobody waits any more
                while True:
                    last.append(listener.accept()[0])
        for server in self.servers:
            server.close()
        for connection in last:
            connection.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        if not self.force_exit:
            await asyncio.sleep(LAST_REQUESTS_S)

    def _protocol(self) -> asyncio.Protocol:
        """Return the protocol of a connection, as uvicorn makes it."""
        made: Any = self.config.http_protocol_class
        return made(config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=None)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End: in good order at the first signal, at once at the second. Runs between two instructions of the loop."""
        if self._asked:
            signal.signal(sig, signal.SIG_DFL)
            os.kill(os.getpid(), sig)
        self._asked = True
        drain(self._engine)
        waits = sig == signal.SIGTERM and self._engine.ready.is_set() and self._plan.drain_delay_s > 0
        if self._loop is None or not waits:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        """Answer on, asking each client to connect anew, elsewhere; end after the delay."""
        self.config.encoded_headers.append(CLOSE)
        asyncio.get_running_loop().call_later(self._plan.drain_delay_s, setattr, self, "should_exit", True)
        self._say({"requests are taken for": f"{self._plan.drain_delay_s:g} s more"})

    def _say(self, facts: dict[str, str]) -> None:
        """Tell that the end begins."""
        self._told = True
        facts = facts | {"requests in flight get": f"{self._plan.grace_s:g} s at most"}
        say(self._plan.tell, "stopping", facts | {"a second signal": "ends it at once"})

    def _reload(self) -> None:
        """Bring in what is new, after the warm-up if that goes on still: what it loaded may be old by then."""
        if not self._asked and not self._engine.stopping.is_set():
            self._engine.keeper.submit(reload_models, self._engine, self._plan.source, self._plan.tell)
