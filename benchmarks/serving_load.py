"""Load on an HTTP server: raw sockets on one event loop, so that the client costs little; JSON on standard input.

Closed loop: each of N clients asks again as soon as it is answered. Open loop: requests are due at random times of a
Poisson process whatever the server does, and a latency counts from the moment that its request was due, not sent: a
client that waits for a stalled server must not hide the stall (coordinated omission).
"""

import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from typing import Any

import uvloop

PROBE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


class Connection:
    """One connection that asks one thing at a time."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> int:
        """Return the status of the reply, read whole; 0 when the connection broke."""
        try:
            if self.streams is None:
                self.streams = await asyncio.open_connection("127.0.0.1", self.port)
            reader, writer = self.streams
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].split(b"\r\n", 1)[0])
            await reader.readexactly(length)
            if b"connection: close" in head:
                writer.close()
                self.streams = None
            return int(head[9:12])
        except (OSError, asyncio.IncompleteReadError):
            self.streams = None
            return 0


async def closed(port: int, request: bytes, clients: int, seconds: float) -> dict[str, Any]:
    """Return latencies in milliseconds and the rate of `clients` that ask without pause."""
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    ends = time.perf_counter() + seconds

    async def client() -> None:
        connection = Connection(port)
        while (began := time.perf_counter()) < ends:
            statuses[await connection.ask(request)] += 1
            latencies.append(1e3 * (time.perf_counter() - began))

    await asyncio.gather(*(client() for _ in range(clients)))
    return told(latencies, statuses, seconds)


async def opened(port: int, request: bytes, rate: float, seconds: float, connections: int) -> dict[str, Any]:
    """Return latencies from the due times, and statuses; a probe asks for life ten times a second meanwhile."""
    random.seed(0)
    waiting: asyncio.Queue[float | None] = asyncio.Queue()
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    probes: list[float] = []
    began = time.perf_counter()

    async def client() -> None:
        connection = Connection(port)
        while (due := await waiting.get()) is not None:
            status = await connection.ask(request)
            statuses[status] += 1
            if status == 200:
                latencies.append(1e3 * (time.perf_counter() - due))

    async def probe() -> None:
        connection = Connection(port)
        while time.perf_counter() < began + seconds:
            asked = time.perf_counter()
            await connection.ask(PROBE)
            probes.append(1e3 * (time.perf_counter() - asked))
            await asyncio.sleep(0.1)

    async def arrivals() -> None:
        due = began
        while (due := due + random.expovariate(rate)) < began + seconds:
            if (pause := due - time.perf_counter()) > 0.0005:
                await asyncio.sleep(pause)
            waiting.put_nowait(due)
        for _ in range(connections):
            waiting.put_nowait(None)

    await asyncio.gather(arrivals(), probe(), *(client() for _ in range(connections)))
    spent = time.perf_counter() - began
    return told(latencies, statuses, spent) | {"probe_p99_ms": percentile(probes, 0.99)}


def told(latencies: list[float], statuses: Counter[int], seconds: float) -> dict[str, Any]:
    """Return the figures of a run."""
    return {
        "p50_ms": percentile(latencies, 0.5),
        "p99_ms": percentile(latencies, 0.99),
        "good_per_s": statuses[200] / seconds,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
    }


def percentile(values: list[float], share: float) -> float:
    """Return the value that `share` of all are no larger than; NaN of none."""
    found = sorted(values)
    return found[min(int(share * len(found)), len(found) - 1)] if found else float("nan")


def http_request(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Return the bytes of a POST."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
    lines += itertools.starmap("{}: {}".format, headers.items())
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def run(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of the run that was asked for, after a second of warming up."""
    request = http_request(asked["path"], asked["body"].encode(), asked["headers"])
    if asked.get("warm", True):
        await closed(asked["port"], request, 1, 1.0)
    if "rate" in asked:
        return await opened(asked["port"], request, asked["rate"], asked["seconds"], asked["connections"])
    return await closed(asked["port"], request, asked["clients"], asked["seconds"])


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(json.load(sys.stdin)))))
