"""What tests of the live server share: tiny models, a server on a real socket, sockets that misbehave."""

import contextlib
import csv
import functools
import http.client
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvicorn

from mmjax.config_load import config_from_dict
from mmjax.data.decode import encode_png
from mmjax.serving.app import make_app
from mmjax.serving.engine import Engine, load_models, make_engine
from mmjax.serving.express import Express
from mmjax.serving.limits import Limits
from mmjax.serving.log import RequestLog
from mmjax.serving.outer import make_watch, unparsed
from mmjax.serving.protocol import make_protocol
from mmjax.train import fit
from tests.rough import roughly
from tests.untrained import scratch

REPOSITORY = Path(__file__).resolve().parent.parent
HEADER = ("id", "size", "weight", "colour", "kind")
ROW = {"size": 0.25, "weight": 3, "colour": "red"}
GOOD = json.dumps({"rows": [ROW]}).encode()
JSON = {"content-type": "application/json"}
PNG = {"content-type": "image/png"}


def png(level: int) -> bytes:
    return encode_png(np.random.default_rng(level).integers(level, level + 60, (20, 24, 3), dtype=np.uint8))


def make_home(home: Path) -> Path:
    """A registry of two tiny models: `kinds` (a table) and `shades` (images); what they answer matters not."""
    return Path(shutil.copytree(_trained_home() / "registry", home / "registry"))


@functools.cache
def _trained_home() -> Path:
    """Where the two are trained, once for a process."""
    home = Path(tempfile.mkdtemp(dir=scratch()))
    rng = np.random.default_rng(0)
    with (home / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for i in range(60):
            colour = ("red", "green", "blue")[i % 3]
            size = "NA" if i % 10 == 7 else f"{rng.normal():.4f}"
            writer.writerow((f"r{i}", size, i % 7, colour, {"red": "a", "green": "b", "blue": "c"}[colour]))
    table = {"path": str(home / "table.csv"), "target_column": "kind", "id_column": "id"}
    _train(home, "kinds", {"tabular": table}, {"name": "mlp", "architecture": {"hidden_layers": [4]}})
    for level in (20, 180):
        (home / "images" / str(level)).mkdir(parents=True)
        for i in range(8):
            (home / "images" / str(level) / f"{i}.png").write_bytes(png(level + i))
    image = {"image": {"path": str(home / "images"), "image_size": [8, 8]}}
    _train(home, "shades", image, {"architecture": {"stages": [1], "width": 4}})
    return home


def _train(home: Path, name: str, data: dict[str, Any], model: dict[str, Any]) -> None:
    """In float32: programs in bfloat16 are compiled anew at each start."""
    config = {"name": name, "data": data, "model": model, "training": {"epochs": 1, "batch_size": 8}}
    config |= {"precision": "float32", "evaluation": {"baselines": "none"}}
    with roughly():
        fit(config_from_dict(config, "test"), runs_dir=home / "runs", registry=home / "registry")


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client(NamedTuple):
    """A server, as clients meet it."""

    port: int

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body, headers or {})
            return _reply(connection.getresponse())

    def good(self) -> Any:
        """The answers to a good table and a good image; the same, bit for bit, at every time."""
        told = (self.ask("POST", "/predict/tabular", GOOD, JSON), self.ask("POST", "/predict/image", png(30), PNG))
        assert [reply.status for reply in told] == [200, 200], told
        return [{k: v for k, v in r.json.items() if k not in ("request_id", "inference_time_ms")} for r in told]

    @contextlib.contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with contextlib.closing(socket.create_connection(("127.0.0.1", self.port), timeout=20)) as connection:
            yield connection

    def say(self, *pieces: bytes) -> Reply:
        """The reply to bytes as they are, sent by a client that goes on sending whatever it is told meanwhile."""
        with self.connected() as connection:
            for piece in pieces:
                connection.sendall(piece)
            return read_reply(connection)

    def figures(self) -> dict[str, Any]:
        return self.ask("GET", "/metrics?format=json").json

    def counted(self, name: str, **labels: str) -> float:
        """The sum of a counter over all series with these labels."""
        samples = self.figures()[f"mmjax_{name}"]["samples"]
        return sum(s["value"] for s in samples if labels.items() <= s["labels"].items())

    def ready(self) -> "Client":
        for _ in range(2400):  # beside other tests, with an empty compile cache
            if self.ask("GET", "/health/ready").status == 200:
                return self
            time.sleep(0.05)
        raise AssertionError("not ready in time")


def read_reply(connection: socket.socket) -> Reply:
    with contextlib.closing(http.client.HTTPResponse(connection)) as reply:
        reply.begin()
        return _reply(reply)


def _reply(reply: http.client.HTTPResponse) -> Reply:
    return Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())


def request(method: str, path: str, body: bytes = b"", headers: Iterable[str] = ()) -> bytes:
    """The bytes of a request, with a length unless the headers tell one."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers]
    if body and not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@contextlib.contextmanager
def door(registry: Path, *arguments: str) -> Iterator[Client]:
    """The front door as a process: `python -m mmjax.serve`."""
    command = [sys.executable, "-m", "mmjax.serve", "--registry", str(registry), "--port", "0", *arguments]
    log = (registry / "log.jsonl").open("w")
    with log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        found = None
        for line in process.stdout:
            if found := re.search(r" on http://127\.0\.0\.1:(\d+)$", line.rstrip()):
                break
        assert found, "the server ended"
        try:
            yield Client(int(found[1])).ready()
            assert process.poll() is None, "the server has died"
        finally:
            process.terminate()
            process.communicate(timeout=60)


class Thread(NamedTuple):
    """A server in this process."""

    client: Client
    engine: Engine
    log: io.BufferedReader
    """What it logs."""

    def lines(self, count: int) -> list[dict[str, Any]]:
        """The next lines of the log."""
        return [json.loads(self.log.readline()) for _ in range(count)]


@contextlib.contextmanager
def thread(
    registry: Path,
    limits: Limits,
    *,
    deadline_s: float | None = None,
    models: Sequence[str] = ("kinds", "shades"),
    max_batch: int | None = None,
) -> Iterator[Thread]:
    """A server on a real socket in a thread of this process, so that tests can set limits and touch the engine."""
    engine = make_engine(load_models(models, registry, max_batch=max_batch), queue=64, deadline_s=deadline_s)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours, theirs = socket.socketpair()
        log = RequestLog(theirs.fileno(), lost=engine.metrics.line_lost)
        watch = make_watch(engine, limits=limits, log=log)
        app = make_app(engine, warmed=lambda error: None, watch=watch)
        protocol = make_protocol(limits, refused=unparsed(engine.metrics, log), express=Express(engine, watch))
        server = uvicorn.Server(
            uvicorn.Config(app, http=protocol, ws="none", lifespan="on", log_level="warning", access_log=False)
        )
        running = threading.Thread(target=server.run, args=([listener],))
        running.start()
        try:
            with ours.makefile("rb") as reader:
                yield Thread(Client(listener.getsockname()[1]).ready(), engine, reader)
        finally:
            server.should_exit = True
            running.join(30)
            log.close()
            ours.close()
            theirs.close()
