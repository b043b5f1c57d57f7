"""A driver for soak tests: raw connections that ask without a pause, check every reply, and now and then hang up.

One event loop does it all, with bytes made beforehand, so that the server and not the driver is what is busy.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import uvloop

MOST_FAULTS = 20
"""Faults that end a load: more would tell nothing new."""
LAST_S = 10.0
"""Time for the last replies once no more is asked."""

T = TypeVar("T")


class Answer(NamedTuple):
    """A reply as it came."""

    status: int
    head: bytes
    body: bytes


class Ask(NamedTuple):
    """A request, and what its reply has to be."""

    kind: str
    data: bytes
    check: Callable[[Answer], int | None] | None
    """Raises where the reply is not as it must be; returns the version that answered where that is to be followed.

    None for a client that hangs up once it has sent its bytes."""


class Load:
    """Requests in an order, shared by connections that each ask for the next when they are answered."""

    def __init__(self, port: int, asks: Sequence[Ask], order: Sequence[int], *, count: int, pause_s: float = 0.0):
        self.port, self.asks, self.order, self.count, self.pause_s = port, asks, order, count, pause_s
        self.sent = 0
        self.statuses: Counter[int] = Counter()
        """Replies by status."""
        self.kinds: Counter[str] = Counter()
        """Requests sent by kind."""
        self.versions: Counter[int] = Counter()
        """Answers by version, where it is followed."""
        self.left = 0
        """Clients that hung up after some bytes."""
        self.silent = 0
        """Clients that hung up before any."""
        self.faults: list[str] = []
        self.enough = False
        """Whether no more is asked, for too much is wrong."""
        self.ended = asyncio.Event()
        """Set when every connection is closed, for all is asked and answered."""
        self.reconnecting: set[asyncio.Task[None]] = set()
        self.transports: set[Any] = set()
        self._open = 0
        self._version: int | None = None
        self._since = 0
        self._seen: asyncio.Future[None] | None = None

    @property
    def answered(self) -> int:
        """Requests that have a reply."""
        return self.statuses.total()

    async def begin(self, connections: int) -> None:
        """Connect, and begin to ask."""
        self._open = connections
        for _ in range(connections):
            await self.connect()

    def stop(self) -> None:
        """Ask no more."""
        self.count = self.sent

    def give_up(self, told: str) -> None:
        """Ask no more, for this is wrong; who is not answered soon hangs up."""
        self.faults.append(told)
        if not self.enough:
            self.enough = True
            asyncio.get_running_loop().call_later(LAST_S, self._abort)

    def _abort(self) -> None:
        for transport in list(self.transports):
            transport.abort()

    # ---- the version that answers

    def expect_change(self, version: int) -> asyncio.Future[None]:
        """Return what is done once a request that is sent from now on is answered by this version.

        Until then the version before may answer too; after it, no request may.
        """
        self._version, self._since = version, self.sent
        self._seen = asyncio.get_running_loop().create_future()
        return self._seen

    def _follow(self, version: int, number: int) -> None:
        self.versions[version] += 1
        if number < self._since or self._version is None:
            return
        if version != self._version:
            assert self._seen is not None, f"version {version} answered after version {self._version} had taken over"
        elif self._seen is not None:
            self._since = self.sent
            if not self._seen.done():
                self._seen.set_result(None)
            self._seen = None

    # ---- what connections call

    async def connect(self) -> None:
        """Open a connection; one that cannot be opened is a fault."""
        try:
            await asyncio.get_running_loop().create_connection(lambda: _Connection(self), "127.0.0.1", self.port)
        except OSError as error:
            self.fault(f"connecting: {error!r}")
            self.closed()

    def next(self) -> tuple[int, Ask] | None:
        """Return the next request with its number, or None when there are no more."""
        if self.sent >= self.count or self.enough:
            return None
        number = self.sent
        self.sent += 1
        ask = self.asks[self.order[number % len(self.order)]]
        self.kinds[ask.kind] += 1
        if ask.check is None:
            self.left += bool(ask.data)
            self.silent += not ask.data
        return number, ask

    def hear(self, number: int, ask: Ask, answer: Answer) -> None:
        """Check a reply."""
        self.statuses[answer.status] += 1
        assert ask.check is not None
        try:
            if (version := ask.check(answer)) is not None:
                self._follow(version, number)
        except Exception as error:  # noqa: BLE001  a reply that cannot be read is as wrong as one that is not right
            told = f"{type(error).__name__}: {error}"
            self.fault(f"request {number} ({ask.kind}): {told[:600]}; asked {ask.data[:500]!r}, got {answer!r:.900}")

    def fault(self, told: str) -> None:
        """Keep what went wrong."""
        if len(self.faults) < MOST_FAULTS - 1:
            self.faults.append(told)
        elif not self.enough:
            self.give_up(told)

    def closed(self) -> None:
        """Hear of a connection that asks no more."""
        self._open -= 1
        if not self._open:
            self.ended.set()


class _Connection(asyncio.Protocol):
    """One client. It connects anew when it has hung up, or when the server said that it would."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._held = b""
        self._asked: tuple[int, Ask] | None = None
        self._closing = False
        self._ends = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._load.transports.add(transport)
        self._go()

    def _go(self) -> None:
        if self._transport.is_closing():  # while it paused
            return
        self._asked = found = self._load.next()
        if found is None:
            self._ends = self._closing = True
            self._transport.close()
            return
        _, ask = found
        if ask.data:
            self._transport.write(ask.data)
        if ask.check is None:
            self._closing = True
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._held:
            data = self._held + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._held = data
            return
        head = data[:end]
        at = head.find(b"\r\ncontent-length: ")
        stop = end + 4 + (int(head[at + 18 :].split(b"\r\n", 1)[0]) if at >= 0 else 0)
        if len(data) < stop:
            self._held = data
            return
        self._held = b""
        load, asked = self._load, self._asked
        if asked is None or len(data) > stop:
            load.fault(f"more came than was asked for: {data[:900]!r} for {asked}")
        if asked is not None:
            load.hear(*asked, Answer(int(head[9:12]), head, data[end + 4 : stop]))
        if b"\r\nconnection: close" in head:
            self._closing = True
            self._transport.close()
        elif load.pause_s:
            self._asked = None
            asyncio.get_running_loop().call_later(load.pause_s, self._go)
        else:
            self._go()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.transports.discard(self._transport)
        if not self._closing:
            self._load.fault(f"the connection was lost ({exc!r}) instead of an answer to {self._asked}")
        if self._ends:
            self._load.closed()
        else:
            task = asyncio.get_running_loop().create_task(self._load.connect())
            self._load.reconnecting.add(task)
            task.add_done_callback(self._load.reconnecting.discard)


def resident_mib(pid: int) -> float:
    """The resident memory of a process (VmRSS)."""
    return int(_status(pid, "VmRSS").split()[0]) / 1024


def threads(pid: int) -> int:
    """How many threads a process has."""
    return int(_status(pid, "Threads"))


def descriptors(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _status(pid: int, field: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":", 1)[1] for line in lines if line.startswith(field + ":"))


def run(main: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns, on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
