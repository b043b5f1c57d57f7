"""Starting and stopping the servers of `serving.py`, and asking them; whatever happens, no process is left behind.

Each server leads a session of its own. A guard beside it kills that session as soon as a pipe from the benchmark
closes: at the end of the block, or when the benchmark itself is killed. LitServe leaves workers without it.
"""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from harness import ROOT, clean_environment, run_json
from make_peers import peer_python

HERE = Path(__file__).resolve().parent
THREADS = 2
START_LIMIT_S, STOP_LIMIT_S, PEER_STOP_LIMIT_S = 120.0, 5.0, 1.0
"""A peer has nothing to lose; LitServe does not end by itself."""
GUARD = 'read -r nothing; kill -s KILL -- "-$0"'

Peer = Literal["fastapi", "litserve"]


class Server(NamedTuple):
    """A server that answers."""

    port: int
    pid: int
    start_s: float
    """From the start of the process until it is ready."""


class Ask(NamedTuple):
    """What is asked: one of `bodies`, in turn."""

    path: str
    bodies: tuple[bytes, ...]
    headers: Mapping[str, str]
    answers: Callable[[bytes], int]
    """How many predictions a reply holds."""
    rows: int = 1
    """Predictions that there must be."""


def environment(home: Path, **extra: str) -> dict[str, str]:
    """Return the environment of a process of mmjax outside of the repository."""
    cache = {"MMJAX_CACHE_DIR": str(home / "cache")}
    return clean_environment({"PYTHONPATH": str(ROOT), "NPROC": str(THREADS)} | cache | extra)


@contextlib.contextmanager
def mmjax_server(home: Path, model: str, *arguments: str, **extra: str) -> Iterator[Server]:
    """Give mmjax's server, ready, for a model in the registry below `home`."""
    command = [sys.executable, "-m", "mmjax.serve", "--model", model, "--port", "0", "--log", "none", *arguments]
    with tempfile.TemporaryFile() as told:
        started = time.perf_counter()
        with _running(command, told, cwd=home, env=environment(home, **extra)) as process:
            said = _wait(process, told, lambda: found if (found := _said(told)).count("\nready") else None)
            port = re.search(r" on http://127\.0\.0\.1:(\d+)$", said, re.MULTILINE)
            assert port is not None, said
            yield Server(int(port[1]), process.pid, time.perf_counter() - started)


@contextlib.contextmanager
def peer_server(kind: Peer, ask: Ask, *, columns: int, hidden_layers: Sequence[int]) -> Iterator[Server]:
    """Give a peer's server, which has answered. Raises NoPeer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = {"kind": kind, "port": port, "columns": columns, "classes": 2, "threads": THREADS}
    asked["hidden_layers"] = list(hidden_layers)
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as stdin:
        stdin.write(json.dumps(asked).encode())
        stdin.seek(0)
        started = time.perf_counter()
        command = [str(peer_python()), str(HERE / "serving_peer.py")]
        env = clean_environment({})
        with _running(command, told, cwd=HERE, env=env, stdin=stdin, stop_limit_s=PEER_STOP_LIMIT_S) as process:
            _wait(process, told, lambda: _answers(port, ask) or None)
            yield Server(port, process.pid, time.perf_counter() - started)


@contextlib.contextmanager
def _running(
    command: Sequence[str],
    told: IO[bytes],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    stop_limit_s: float = STOP_LIMIT_S,
) -> Iterator[subprocess.Popen[bytes]]:
    """Give a process that leads a session of its own, and end the session: SIGTERM, then SIGKILL to all of it."""
    process = subprocess.Popen(
        command, cwd=cwd, env=env, stdin=stdin, stdout=told, stderr=subprocess.STDOUT, start_new_session=True
    )
    guard = subprocess.Popen(
        ["/bin/sh", "-c", GUARD, str(process.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(stop_limit_s)
        guard.communicate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], told: IO[bytes], ready: Callable[[], Any]) -> Any:
    """Return what `ready` gives as soon as it is not None; RuntimeError with what the server said where it never is."""
    ends = time.perf_counter() + START_LIMIT_S
    while (found := ready()) is None:
        if process.poll() is not None or time.perf_counter() > ends:
            raise RuntimeError(f"{process.args}: ended with {process.poll()} before it was ready:\n{_said(told)}")
        time.sleep(0.01)
    return found


def _said(told: IO[bytes]) -> str:
    return os.pread(told.fileno(), 1 << 16, 0).decode(errors="replace")[-5000:]


def _answers(port: int, ask: Ask) -> bool:
    """Return whether the server answers; RuntimeError where an answer is not what was asked for."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.suppress(OSError), contextlib.closing(connection):
        connection.request("POST", ask.path, ask.bodies[0], dict(ask.headers))
        reply = connection.getresponse()
        body = reply.read()
        if reply.status == 200 and ask.answers(body) != ask.rows:
            raise RuntimeError(f"{ask.path}: expected {ask.rows} predictions, got: {body[:1000]}")
        return reply.status == 200
    return False


# ---- asking


def load(server: Server, ask: Ask, seconds: float, *, ramp_s: float = 0.5, **how: Any) -> dict[str, Any]:
    """Return the figures of a load, after one reply has been looked at; see `serving_load.py`.

    `cores_of_others` is how many cores were taken by what is neither the server nor the load: well above 0, and the
    figures are of a busy machine.
    """
    if not _answers(server.port, ask):
        raise RuntimeError(f"{ask.path}: expected an answer from port {server.port}, got none")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(i) for i in range(len(ask.bodies))]
        for path, body in zip(paths, ask.bodies, strict=True):
            path.write_bytes(_http_request(ask, body))
        asked = {"port": server.port, "requests": [str(path) for path in paths], "seconds": seconds, "ramp_s": ramp_s}
        command = [sys.executable, HERE / "serving_load.py"]
        busy_s, mine_s = _busy_s(), _session_s(server.pid)
        done = run_json(command, env={}, timeout_s=seconds + ramp_s + 60, request=asked | how)
        others_s = _busy_s() - busy_s - (_session_s(server.pid) - mine_s) - done.cpu_seconds
        return done.document | {"cores_of_others": others_s / done.seconds}


def _http_request(ask: Ask, body: bytes) -> bytes:
    headers = {"Host": "localhost", "Content-Length": str(len(body)), **ask.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {ask.path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def resident_mb(server: Server) -> float:
    """Return the server's resident memory, in units of 1e6 bytes; NaN where the system does not say."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmRSS:"))
    return float("nan")


def _busy_s() -> float:
    """Return the seconds that all cores have worked, or were taken from this machine; NaN where that is not told."""
    with contextlib.suppress(OSError):
        user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return float("nan")


def _session_s(session: int) -> float:
    """Return the seconds that the processes of a session have worked, threads included."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            ticks += (int(fields[11]) + int(fields[12])) * (int(fields[3]) == session)
    return ticks / os.sysconf("SC_CLK_TCK")
