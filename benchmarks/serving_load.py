"""Load on an HTTP server: protocols on one event loop, so that the client costs little; JSON on standard input.

{"port", "requests": files of whole HTTP requests, sent in turn, "seconds", "ramp_s"} and either "clients" (closed loop)
or "rate" and "connections" (open loop). What falls in the ramp before the window of `seconds` is left out.

Closed loop: each of N clients asks again as soon as it is answered. Open loop: requests are due at random times of a
Poisson process whatever the server does, and a latency counts from the moment that its request was due, not sent: a
client that waits for a stalled server must not hide the stall (coordinated omission). A request that finds no idle
connection opens one; where there are as many as may be it is not sent, and counted as such: a queue in here would be
measured in place of the server's. `serving_probe.py` asks meanwhile whether the server lives. Open loops need Linux
and Python 3.13, whose timers are exact.
"""
# pyright: reportAttributeAccessIssue=false

import asyncio
import gc
import itertools
import json
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import uvloop

LOST, UNANSWERED, FULL, LATE = 0, -1, -2, -3
"""In the place of a status: the connection broke; no reply came; not sent, for want of a connection; not sent, as this
process was late."""
UNSENT = (FULL, LATE)
PATIENCE_S = 20.0
"""Time for replies after the window."""
LATE_S = 0.02
"""A request is not sent when this process comes to it later than this."""
AT_ONCE = 32
"""Requests sent before this process looks at replies."""


class Reply(NamedTuple):
    """What became of a request; moments by `time.perf_counter`."""

    due: float
    at: float
    status: int


class Connection(asyncio.Protocol):
    """One connection that asks one thing at a time."""

    transport: asyncio.Transport

    def __init__(self, replied: "Callable[[Connection, int], None]") -> None:
        self.replied = replied
        self.due = 0.0
        self.waits = self.open = False
        self.received = b""

    def ask(self, request: bytes, due: float) -> None:
        """Send a request."""
        self.due, self.waits = due, True
        self.transport.write(request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be open."""
        self.transport, self.open = cast(asyncio.Transport, transport), True

    def data_received(self, data: bytes) -> None:
        """Tell of a reply once it is here as a whole."""
        received = self.received + data if self.received else data
        stop = received.find(b"\r\n\r\n")
        if stop < 0:
            self.received = received
            return
        head = received[:stop].lower()
        length = int(head.partition(b"content-length: ")[2].split(b"\r\n", 1)[0])
        if len(received) < stop + 4 + length:
            self.received = received
            return
        self.received, self.waits = b"", False
        if b"connection: close" in head:
            self.open = False
            self.transport.close()
        self.replied(self, int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell of a reply that will not come."""
        self.open = False
        if self.waits:
            self.waits = False
            self.replied(self, LOST)


async def connect(port: int, replied: Callable[[Connection, int], None]) -> Connection:
    """Return a new connection."""
    _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(replied), "127.0.0.1", port)
    return connection


async def closed(port: int, requests: Sequence[bytes], clients: int, ends: float) -> list[Reply]:
    """Return the replies to `clients` that ask without pause until `ends`."""
    replies: list[Reply] = []
    turn, waiting, tasks = itertools.cycle(requests), set[Connection](), set[asyncio.Task[None]]()

    def replied(connection: Connection, status: int) -> None:
        now = time.perf_counter()
        replies.append(Reply(connection.due, now, status))
        if now < ends and connection.open:
            connection.ask(next(turn), now)
            return
        waiting.discard(connection)
        if now < ends:
            tasks.add(asyncio.ensure_future(client()))

    async def client() -> None:
        try:
            connection = await connect(port, replied)
        except OSError:
            replies.append(Reply(time.perf_counter(), time.perf_counter(), LOST))
            return
        waiting.add(connection)
        connection.ask(next(turn), time.perf_counter())

    tasks |= {asyncio.ensure_future(client()) for _ in range(clients)}
    while (now := time.perf_counter()) < ends or (waiting and now < ends + PATIENCE_S):
        await asyncio.sleep(0.05)
    replies += [Reply(connection.due, time.perf_counter(), UNANSWERED) for connection in waiting]
    return replies


class Pool:
    """The connections of an open loop, and what became of its requests."""

    def __init__(self, port: int, requests: Sequence[bytes], most: int) -> None:
        self.port, self.turn, self.most = port, itertools.cycle(requests), most
        self.idle: list[Connection] = []
        self.waiting: set[Connection] = set()
        self.opening: set[asyncio.Task[None]] = set()
        self.alive = 0
        """Connections that are open or being opened; some idle ones may have been closed unnoticed."""
        self.replies: list[Reply] = []
        self.lateness: list[float] = []
        """Seconds from due to sent."""

    def ask(self, due: float, now: float) -> bool:
        """Return whether a request that is due is sent, over an idle connection or a new one."""
        while self.idle and not self.idle[-1].open:
            self.idle.pop()
            self.alive -= 1
        if now - due > LATE_S or (not self.idle and self.alive >= self.most):
            self.replies.append(Reply(due, now, LATE if now - due > LATE_S else FULL))
            return False
        if self.idle:
            self._send(self.idle.pop(), due)
        else:
            self.alive += 1
            self.opening.add(task := asyncio.ensure_future(self._open_and_ask(due)))
            task.add_done_callback(self.opening.discard)
        return True

    async def _open_and_ask(self, due: float) -> None:
        try:
            self._send(await connect(self.port, self._replied), due)
        except OSError:
            self.alive -= 1
            self.replies.append(Reply(due, time.perf_counter(), LOST))

    def _send(self, connection: Connection, due: float) -> None:
        self.waiting.add(connection)
        self.lateness.append(time.perf_counter() - due)
        connection.ask(next(self.turn), due)

    def _replied(self, connection: Connection, status: int) -> None:
        self.replies.append(Reply(connection.due, time.perf_counter(), status))
        self.waiting.discard(connection)
        if connection.open:
            self.idle.append(connection)
        else:
            self.alive -= 1


async def opened(
    port: int, requests: Sequence[bytes], rate: float, begins: float, ends: float, connections: int
) -> tuple[list[Reply], list[float]]:
    """Return the replies to requests due at `rate`, and how many seconds after it was due each was sent."""
    random.seed(0)
    gaps = (random.expovariate(rate) for _ in itertools.count())
    dues = deque(itertools.takewhile(lambda due: due < ends, itertools.accumulate(gaps, initial=begins)))
    pool, loop = Pool(port, requests, connections), asyncio.get_running_loop()
    timer = os.timerfd_create(time.CLOCK_MONOTONIC, flags=os.TFD_NONBLOCK)  # the loop's own timers wake at milliseconds

    def set_timer() -> None:
        os.timerfd_settime(timer, flags=os.TFD_TIMER_ABSTIME, initial=dues[0])

    def tick() -> None:
        os.read(timer, 8)
        sent, now = 0, time.perf_counter()
        while dues and dues[0] <= now and sent < AT_ONCE:
            sent += pool.ask(dues.popleft(), now)
        if dues:
            set_timer()

    loop.add_reader(timer, tick)
    set_timer()
    while dues or ((pool.waiting or pool.opening) and time.perf_counter() < ends + PATIENCE_S):
        await asyncio.sleep(0.05)
    loop.remove_reader(timer)
    pool.replies += [Reply(connection.due, time.perf_counter(), UNANSWERED) for connection in pool.waiting]
    return pool.replies, pool.lateness


def told(replies: Sequence[Reply], begin: float, end: float, ramp_s: float) -> dict[str, Any]:
    """Return the figures of a window: of the requests due in it, and the rate of the good replies that came in it."""
    mine = [reply for reply in replies if begin <= reply.due < end]
    latencies = sorted(1e3 * (reply.at - reply.due) for reply in mine if reply.status == 200)
    statuses = Counter(reply.status for reply in mine)
    sent = len(mine) - sum(statuses[status] for status in UNSENT)
    return {
        "good_per_s": rate([reply.at for reply in replies if reply.status == 200], begin, end, ramp_s / 2),
        "due_per_s": len(mine) / (end - begin),
        "sent_per_s": sent / (end - begin),
        "statuses": dict(sorted(statuses.items())),
        **{f"p{share}_ms": percentile(latencies, share / 100) for share in (50, 90, 99)},
    }


def rate(moments: Sequence[float], begin: float, end: float, slack_s: float) -> float:
    """Return the replies a second between two moments.

    Both move back to the reply before the longest pause in the last `slack_s`: where replies come in bursts of a whole
    batch, a window that cuts between bursts by chance would count a batch too many or too few.
    """
    moments = sorted(moments)
    begin, end = _edge(moments, begin, slack_s), _edge(moments, end, slack_s)
    return sum(begin < moment <= end for moment in moments) / (end - begin)


def _edge(moments: Sequence[float], at: float, slack_s: float) -> float:
    near = [(after - moment, moment) for moment, after in itertools.pairwise(moments) if at - slack_s <= moment <= at]
    return max(near)[1] if near else at


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile of sorted values: the smallest that so large a share does not exceed; NaN of none."""
    return values[max(math.ceil(share * len(values)) - 1, 0)] if values else float("nan")


async def run(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of the load that was asked for."""
    requests = [Path(path).read_bytes() for path in asked["requests"]]
    gc.disable()
    begins = time.perf_counter() + (0.1 if "clients" in asked else 0.3)  # the prober connects before the load
    ramp_s = asked["ramp_s"]
    begin = begins + ramp_s
    end = begin + asked["seconds"]
    if "clients" in asked:
        return told(await closed(asked["port"], requests, asked["clients"], end), begin, end, ramp_s)
    shift = time.monotonic() - time.perf_counter()
    command = [sys.executable, "-S", Path(__file__).with_name("serving_probe.py")]
    command += [str(asked["port"]), repr(begin + shift), repr(end + shift)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as prober:
        replies, lateness = await opened(asked["port"], requests, asked["rate"], begins, end, asked["connections"])
        probe = json.loads(prober.communicate(timeout=60)[0])
    late = percentile(sorted(lateness), 0.99)
    return told(replies, begin, end, ramp_s) | {"probe": probe, "sent_late_p99_ms": 1e3 * late}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(json.load(sys.stdin)))))
