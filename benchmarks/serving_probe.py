"""A prober as an orchestrator has one: `GET /health/live` twenty times a second over one connection, blocking.

`python serving_probe.py PORT BEGIN END`, the moments by `time.monotonic`. The connection is opened at once, before the
load. Beside it twice a second a probe goes over a new connection, as Kubernetes sends them. A process of its own, so
that what else loads the server does not delay it; where the system allows it this process goes before all others (it
needs next to nothing), as a prober elsewhere would not wait for these cores.

A latency counts from the sending (or connecting); or, when the reply before had not come by then, from the moment the
probe was due. How late the prober was woken is told apart.
"""

import contextlib
import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PROBE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
EVERY_S, NEW_EVERY_S = 0.05, 0.5
PATIENCE_S = 5.0


def probe(port: int, begin: float, end: float, *, every_s: float, anew: bool) -> dict[str, Any]:
    """Return milliseconds (p50, p99, most), how many probes there were, and how many got no 200.

    `anew` opens a connection for each.
    """
    latencies: list[float] = []
    lateness: list[float] = []
    connection = None if anew else _connect(port)
    bad, due, free = 0, begin, begin
    while due < end:
        time.sleep(max(due - time.monotonic(), 0.0))
        began = due if free > due else time.monotonic()
        lateness.append(began - due)
        try:
            connection = connection or _connect(port)
            bad += _ask(connection) != 200
        except OSError:
            bad += 1
            connection = _close(connection)
        free = time.monotonic()
        latencies.append(free - began)
        if anew:
            connection = _close(connection)
        due += every_s
    _close(connection)
    told = {f"p{share}_ms": _percentile_ms(latencies, share) for share in (50, 99, 100)}
    return told | {"n": len(latencies), "bad": bad, "woken_late_p99_ms": _percentile_ms(lateness, 99)}


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _close(connection: socket.socket | None) -> None:
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.close()


def _ask(connection: socket.socket) -> int:
    """Return the status of the reply; OSError where none comes."""
    connection.sendall(PROBE)
    reply = b""
    while True:
        if not (piece := connection.recv(65536)):
            raise ConnectionResetError("the server hung up")
        reply += piece
        head, there, body = reply.partition(b"\r\n\r\n")
        if there and len(body) >= int(head.lower().partition(b"content-length: ")[2].split(b"\r\n", 1)[0]):
            return int(reply[9:12])


def _percentile_ms(seconds: list[float], share: int) -> float:
    return 1e3 * sorted(seconds)[-(-share * len(seconds) // 100) - 1]


def main() -> None:
    """Probe both ways."""
    port, begin, end = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    with ThreadPoolExecutor(1) as other:
        new = other.submit(probe, port, begin, end, every_s=NEW_EVERY_S, anew=True)
        print(json.dumps(probe(port, begin, end, every_s=EVERY_S, anew=False) | {"anew": new.result()}))


if __name__ == "__main__":
    main()
