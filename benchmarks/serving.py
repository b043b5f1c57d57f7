"""mmjax's server answers single rows sooner, and more of them, than FastAPI with PyTorch, and sheds what is too much.

Question: how long does a row of 20 numbers take, how many go through a second, and what happens at 2, 5 and 10 times
that? Net: hidden layers [64, 64] with SiLU, 2 classes; the peers hold the same (serving_peer.py says what favours
them). Loopback; the load (serving_load.py) comes from a process of its own on the same cores, so rates are of both.
Hardware: two cores. Versions: Python 3.13 with jax 0.12; peers on Python 3.11 with torch 2.13.0, FastAPI 0.165,
LitServe 0.2.19. n = `--repeats` (3) runs of `--seconds` (5) each, the servers taking turns.

The bare compiled call is timed in this process. Open-loop latencies count from the moment a request was due. One number
is told for each claim of docs/BENCHMARKS.md; the rest is in the details.
"""

import argparse
import contextlib
import csv
import http.client
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import ROOT, Figure, clean_environment, run_json, save_results
from make_peers import NoPeer, peer_python

HERE = Path(__file__).resolve().parent
COLUMNS, HIDDEN, THREADS = 20, (64, 64), 2
ROW = {"features": [[round(0.137 * i - 1, 3) for i in range(COLUMNS)]]}
ASK = {"path": "/predict/tabular", "body": json.dumps(ROW), "headers": {"Content-Type": "application/json"}}
CONFIG = {
    "name": "twenty",
    "data": {"tabular": {"path": "table.csv", "target_column": "y"}},
    "model": {"architecture": {"hidden_layers": list(HIDDEN), "activation": "silu", "dropout": 0.0}},
    "training": {"epochs": 1, "batch_size": 32},
}


class Server(NamedTuple):
    """A server that answers."""

    port: int
    start_s: float
    """From the start of the process until it is ready."""


def train(home: Path) -> None:
    """Register a network of the size in question."""
    rng = np.random.default_rng(0)
    with (home / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"c{i}" for i in range(COLUMNS)), "y"])
        for row in rng.normal(size=(300, COLUMNS)).round(4):
            writer.writerow([*row, "ab"[int(row[0] > 0)]])
    (home / "twenty.yaml").write_text(json.dumps(CONFIG))
    command = [sys.executable, "-m", "mmjax.train", "--config", "twenty.yaml"]
    done = subprocess.run(command, cwd=home, env=environment({}), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])


def environment(extra: dict[str, str]) -> dict[str, str]:
    """Return the environment of a server that runs in another folder."""
    return clean_environment({"PYTHONPATH": str(ROOT), "NPROC": str(THREADS), **extra})


@contextlib.contextmanager
def mmjax_server(home: Path, *arguments: str, **extra: str) -> Iterator[Server]:
    """Give mmjax's server, ready."""
    command = [sys.executable, "-m", "mmjax.serve", "--model", "twenty", "--port", "0", "--log", "none", *arguments]
    started, port = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=home, env=environment(extra), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r" on http://127\.0\.0\.1:(\d+)$", line.rstrip()):
                port = int(found[1])
            if line.startswith("ready"):
                break
        yield Server(port, time.perf_counter() - started)
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def peer_server(kind: str) -> Iterator[Server]:
    """Give a peer's server, ready. Raises NoPeer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = {"kind": kind, "port": port, "columns": COLUMNS, "hidden_layers": HIDDEN, "classes": 2, "threads": THREADS}
    command = [peer_python(), HERE / "serving_peer.py"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=clean_environment({}))
    assert process.stdin is not None
    process.stdin.write(json.dumps(asked))
    process.stdin.close()
    try:
        _wait_for(port, process)
        yield Server(port, time.perf_counter() - started)
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(port: int, process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request("POST", ASK["path"], ASK["body"], ASK["headers"])
            if connection.getresponse().status == 200:
                return
        if process.poll() is not None:
            raise RuntimeError(f"the peer ended with {process.returncode}")
        time.sleep(0.1)
    raise RuntimeError("the peer does not answer")


def load(server: Server, seconds: float, **how: Any) -> dict[str, Any]:
    """Return the figures of a load."""
    request = {**ASK, "port": server.port, "seconds": seconds, **how}
    return run_json(
        [sys.executable, HERE / "serving_load.py"], env={}, timeout_s=seconds + 120, request=request
    ).document


def bare_ms(home: Path) -> float:
    """Return the median milliseconds of the compiled call of one row, in a process of its own."""
    code = """
import json, time, numpy as np
from mmjax.backend import configure
configure(overlap=False)
from mmjax.serving.engine import blank_batch, load_models, make_engine, stop, warm
engine = make_engine(load_models(["twenty"], "registry", max_batch=1), queue=1); warm(engine)
(served,) = engine.models; batch = blank_batch(served.predictor.schema, 1); times = []
for _ in range(5000):
    began = time.perf_counter(); served.batcher.programs[1](batch); times.append(time.perf_counter() - began)
stop(engine); print(json.dumps({"ms": 1e3 * float(np.median(times))}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=home, env=environment({}), capture_output=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["ms"]


def overload(server: Server, peak: float, seconds: float) -> dict[str, dict[str, Any]]:
    """Return the figures of an open loop at 2, 5 and 10 times the peak."""
    many = {"connections": 400, "warm": False}
    return {f"{times}x": load(server, seconds, rate=times * peak, **many) for times in (2, 5, 10)}


def measure(home: Path, seconds: float, repeats: int) -> tuple[list[Figure], dict[str, Any]]:
    """Return the figures and the details."""
    one: dict[str, list[dict[str, Any]]] = {}
    many: dict[str, list[dict[str, Any]]] = {}
    kinds = ["mmjax", "fastapi", "litserve"]
    cold: list[float] = []
    warm: list[float] = []
    floods: dict[str, dict[str, Any]] = {}
    for repeat in range(repeats):
        with mmjax_server(home, MMJAX_CACHE_DIR=str(home / f"cache{repeat}")) as server:
            cold.append(server.start_s)
        for kind in kinds if repeat % 2 == 0 else kinds[::-1]:
            with mmjax_server(home, "--queue", "64") if kind == "mmjax" else peer_server(kind) as server:
                one.setdefault(kind, []).append(load(server, seconds, clients=1))
                many.setdefault(kind, []).append(load(server, seconds, clients=32))
                if kind == "mmjax":
                    warm.append(server.start_s)
                    if repeat == 0:
                        floods = overload(server, many[kind][0]["good_per_s"], seconds)
    bare = bare_ms(home)
    details = {"bare_call_ms": bare, "one_client": one, "32_clients": many, "overload": floods}
    return figures(one, many, bare, {"empty": cold, "warm": warm}, floods), details


def figures(
    one: dict[str, list[dict[str, Any]]],
    many: dict[str, list[dict[str, Any]]],
    bare: float,
    starts: dict[str, list[float]],
    floods: dict[str, dict[str, Any]],
) -> list[Figure]:
    """Return a Figure for each claim."""

    def each(found: dict[str, list[dict[str, Any]]], kind: str, key: str) -> tuple[float, ...]:
        return tuple(run[key] for run in found[kind])

    peer_p50, rate = each(one, "fastapi", "p50_ms"), each(many, "mmjax", "good_per_s")
    per_s = statistics.median(each(many, "fastapi", "good_per_s"))
    peak = rate[0]
    made = [
        Figure(
            "reply beyond the compiled call, p50",
            "ms",
            tuple(v - bare for v in each(one, "mmjax", "p50_ms")),
            "<=",
            0.3,
        ),
        Figure(
            "reply beyond the compiled call, p99",
            "ms",
            tuple(v - bare for v in each(one, "mmjax", "p99_ms")),
            "<=",
            1.0,
        ),
        Figure("whole reply, p50", "ms", each(one, "mmjax", "p50_ms"), "<=", statistics.median(peer_p50)),
        Figure("whole reply of FastAPI + PyTorch, p50", "ms", peer_p50),
        Figure("whole reply of LitServe, p50", "ms", each(one, "litserve", "p50_ms")),
        Figure("32 clients, times FastAPI + PyTorch's rate", "x", tuple(value / per_s for value in rate), ">=", 3.0),
        Figure("32 clients", "rows/s", rate),
        Figure("32 clients, FastAPI + PyTorch", "rows/s", each(many, "fastapi", "good_per_s")),
        Figure("32 clients, LitServe", "rows/s", each(many, "litserve", "good_per_s")),
        Figure("cold start to ready, empty cache", "s", tuple(starts["empty"]), "<=", 6.0),
        Figure("cold start to ready, warm cache", "s", tuple(starts["warm"]), "<=", 3.0),
    ]
    for times, flood in floods.items():
        bad = sum(n for status, n in flood["statuses"].items() if status not in ("200", "503"))
        made += [
            Figure(f"{times} overload: answered, of the peak", "", (flood["good_per_s"] / peak,), ">=", 0.9),
            Figure(f"{times} overload: accepted, p99 from when due", "ms", (flood["p99_ms"],)),
            Figure(f"{times} overload: probe, p99", "ms", (flood["probe_p99_ms"],), "<=", 5.0),
            Figure(f"{times} overload: replies other than 200 and 503", "", (float(bad),), "<=", 0.0),
        ]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    try:
        peer_python()
    except NoPeer as error:
        sys.exit(f"skipped: {error}")
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder))
        found, details = measure(Path(folder), arguments.seconds, arguments.repeats)
    save_results("serving", found, **details)


if __name__ == "__main__":
    main()
