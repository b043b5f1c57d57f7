"""The life of a server process: settings, signals, draining, reloading, clients that leave; over real sockets."""

import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mmjax.artifact.registry import promote
from mmjax.errors import BundleError, ConfigError
from mmjax.serve import serve
from mmjax.serving.device import COMPUTE
from mmjax.serving.settings import Settings, help_of, load_settings, option
from tests.untrained import KINDS, NUMBERS, add_model, matrix

REPOSITORY = Path(__file__).resolve().parent.parent
BODY = json.dumps({"features": matrix(NUMBERS, 1).tolist()}).encode()
JSON = {"content-type": "application/json"}


class Process:
    """A server in a process of its own, and the lines it prints."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "mmjax.serve", "--port", "0", "--log", "none", *arguments]
        env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, env=env)
        self.lines: list[str] = []
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()
        self.port = int(self.line(r" on http://127\.0\.0\.1:(\d+)$"))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def line(self, pattern: str) -> str:
        """The first group of the first line that matches, once there is one."""
        return eventually(lambda: next((m[1] for line in self.lines if (m := re.search(pattern, line))), None))

    def ready(self) -> "Process":
        self.line("(ready after)")
        return self

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, str], Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, JSON if body else {})
            reply = connection.getresponse()
            return reply.status, {k.lower(): v for k, v in reply.getheaders()}, json.loads(reply.read())
        finally:
            connection.close()

    def predict(self) -> tuple[int, dict[str, str], Any]:
        return self.ask("POST", "/predict/tabular", BODY)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reading.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


def eventually(look: Callable[[], Any]) -> Any:
    """What `look` gives, once it is something."""
    ends = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < ends, "not in time"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with three versions of `numbers`."""
    made = tmp_path_factory.mktemp("life") / "registry"
    for seed in range(3):
        add_model(made, "numbers", NUMBERS, seed=seed)
    return made


@pytest.fixture
def folder(tmp_path: Path, made: Path) -> Path:
    """A folder with a registry of `numbers:1` alone."""
    shutil.copytree(made, tmp_path / "registry", ignore=lambda folder, names: [n for n in names if n in "23"])
    return tmp_path


def publish(folder: Path, made: Path, version: int) -> None:
    """Let the next version appear whole, as registering does."""
    shutil.copytree(made / "numbers" / str(version), folder / "registry" / "numbers" / f".{version}.tmp")
    (folder / "registry" / "numbers" / f".{version}.tmp").rename(folder / "registry" / "numbers" / str(version))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, made: Path) -> Iterator[Process]:
    """A server of the newest `numbers` that is asked, and neither stopped nor told of anything."""
    folder = tmp_path_factory.mktemp("running")
    shutil.copytree(made, folder / "registry")
    server = Process(folder, "--max-batch", "2", "--model", "numbers")
    try:
        yield server.ready()
    finally:
        server.kill()


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def begin(*arguments: str) -> Process:
        started.append(Process(folder, "--max-batch", "2", *arguments))
        return started[-1]

    yield begin
    for server in started:
        server.kill()


# ---- threads


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
def test_the_event_loop_goes_before_threads_that_compute(running: Process):
    tasks = Path(f"/proc/{running.process.pid}/task")

    def niceness(task: Path) -> int:
        return int((task / "stat").read_text().rpartition(") ")[2].split()[16])

    own = niceness(tasks / str(running.process.pid))
    found = {(task / "comm").read_text().strip(): niceness(task) - own for task in tasks.iterdir()}
    assert {nice for name, nice in found.items() if "XLA" in name} == {COMPUTE}, found


# ---- settings


def test_settings_come_from_a_file_with_options_over_it(tmp_path: Path):
    file = tmp_path / "serve.yaml"
    file.write_text("models: [iris, images@production]\nqueue: 7\ndrain_delay_s: 5\n")
    got = load_settings(str(file), {"queue": 9, "host": None, "models": None})
    assert got == Settings(models=("iris", "images@production"), queue=9, drain_delay_s=5.0)


def test_everything_wrong_is_told_at_once_with_its_place(tmp_path: Path):
    file = tmp_path / "serve.yaml"
    file.write_text("models: []\nquue: 7\nport: 70000\nlog: all\n")
    with pytest.raises(ConfigError) as refused:
        load_settings(str(file), {"rate": -1.0, "drain_delay_s": -2.0})
    told = "\n".join(refused.value.problems)
    for place in (f"{file}:1: models: expected", f"{file}:2: quue: unknown key", f"{file}:3: port: expected"):
        assert place in told
    assert "did you mean 'queue'?" in told
    assert f"{file}:4: log: expected" in told
    assert "--rate: expected a number > 0" in told
    assert "--drain-delay: expected" in told
    assert load_settings(None, {}) == Settings()


def test_every_setting_is_documented_an_option_and_in_the_sample():
    shown = subprocess.run(
        [sys.executable, "-m", "mmjax.serve", "--help"], capture_output=True, text=True, check=True, cwd=REPOSITORY
    ).stdout
    sample = (REPOSITORY / "configs" / "serve.yaml").read_text()
    for field in msgspec.structs.fields(Settings):
        assert len(help_of(field.name)) > 20
        assert option(field.name) in shown
        assert f"\n{field.name}: " in sample
    assert load_settings(str(REPOSITORY / "configs" / "serve.yaml"), {}) == Settings(models=("iris", "images"))


def test_without_a_name_every_registered_model_is_served(start: Callable[..., Process], folder: Path):
    add_model(folder / "registry", "kinds", KINDS)
    server = start().ready()
    assert [model["name"] for model in server.ask("GET", "/models")[2]["models"]] == ["kinds", "numbers"]
    shutil.rmtree(folder / "registry")
    with pytest.raises(BundleError, match="expected at least one registered model, found none; train one"):
        serve(Settings(registry=str(folder / "registry"), port=0))


def test_a_model_is_asked_by_its_name_with_its_version_or_as_it_was_given(start: Callable[..., Process], folder: Path):
    promote(folder / "registry", "numbers:1")
    server = start("--model", "numbers@production").ready()
    for name in ("numbers", "numbers:1", "numbers@production"):
        body = json.dumps({"model": name, "features": matrix(NUMBERS, 1).tolist()}).encode()
        status, _, told = server.ask("POST", "/predict/tabular", body)
        assert (status, told["model"]) == (200, {"name": "numbers", "version": 1})
        assert server.ask("GET", f"/models/{name}")[2]["version"] == 1
    status, _, told = server.ask("POST", "/predict/image", b"file")
    assert (status, told["type"]) == (400, "urn:mmjax:which-model")
    assert told["detail"] == "model: no image model is served; there are numbers:1 (table)"
    status, _, told = server.ask("POST", "/predict/image?model=numbers:1", b"file")
    assert told["detail"].startswith("model: expected an image model, got 'numbers:1'; there are")
    status, _, told = server.ask("GET", "/v2/models/numbers:1")
    assert (status, told["detail"]) == (404, "model: no 'numbers:1' is served; there are numbers/versions/1")


# ---- the end


def test_sigterm_turns_ready_off_answers_on_and_ends_well(start: Callable[..., Process]):
    server = start("--model", "numbers", "--drain-delay", "3").ready()
    kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    kept.request("POST", "/predict/tabular", BODY, JSON)
    assert "connection" not in {name.lower() for name, _ in kept.getresponse().getheaders()}
    kept.close()
    server.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert eventually(lambda: server.ask("GET", "/health/ready")[0] == 503)
    assert server.ask("GET", "/health/live")[0] == 200
    answered = 0
    while time.monotonic() - began < 0.9:
        assert server.predict()[0] == 200
        answered += 1
    assert answered > 3
    assert eventually(lambda: server.predict()[1].get("connection") == "close"), "clients are sent elsewhere"
    assert server.process.wait(30) == 0
    assert time.monotonic() - began >= 2.9
    server.reading.join(30)
    stopping, stopped = server.lines[-2:]
    assert stopping.startswith("stopping: requests are taken for 3 s more, requests in flight get 30 s at most")
    assert stopped == "stopped"
    with pytest.raises(ConnectionRefusedError):
        server.predict()


def test_a_second_sigterm_ends_it_at_once(start: Callable[..., Process]):
    server = start("--model", "numbers", "--drain-delay", "60").ready()
    server.process.send_signal(signal.SIGTERM)
    assert eventually(lambda: server.ask("GET", "/health/ready")[0] == 503)
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == -signal.SIGTERM
    assert time.monotonic() - began < 5


def test_ctrl_c_waits_for_nobody_to_be_sent_elsewhere(start: Callable[..., Process]):
    server = start("--model", "numbers", "--drain-delay", "60").ready()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 0
    server.reading.join(30)
    assert [line.split(":")[0] for line in server.lines[-2:]] == ["stopping", "stopped"]


def test_it_ends_well_when_nobody_reads_what_it_prints(folder: Path):
    command = [sys.executable, "-m", "mmjax.serve", "--port", "0", "--log", "none", "--model", "numbers"]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, env=env) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("ready after"):
            assert process.poll() is None
        process.stdout.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize("ends", [1, pytest.param(100, marks=pytest.mark.soak)])
def test_no_request_is_lost_while_servers_end_one_after_another(start: Callable[..., Process], ends: int):
    """Two servers behind clients that try the next where a connection is refused; each in turn ends under load."""
    servers = [start("--model", "numbers", "--drain-delay", "0.5").ready() for _ in range(2)]
    ended, statuses, codes = threading.Event(), [], []

    def client() -> None:
        while not ended.is_set():
            for server in list(servers):
                try:
                    statuses.append(server.predict()[0])
                except ConnectionRefusedError:
                    continue
                break

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    for turn in range(ends):
        time.sleep(0.3)
        if turn:
            servers[(turn - 1) % 2] = start("--model", "numbers", "--drain-delay", "0.5").ready()
        servers[turn % 2].process.send_signal(signal.SIGTERM)
        codes.append(servers[turn % 2].process.wait(30))
    time.sleep(0.3)
    ended.set()
    for thread in clients:
        thread.join(30)
    assert codes == [0] * ends
    assert len(statuses) > 20 * ends
    assert set(statuses) == {200}, Counter(statuses)


# ---- reloading


def version(server: Process) -> int:
    status, _, document = server.predict()
    assert status == 200
    return document["model"]["version"]


def test_sighup_brings_in_the_newest_and_a_damaged_one_changes_nothing(
    start: Callable[..., Process], folder: Path, made: Path
):
    server = start("--model", "numbers").ready()
    publish(folder, made, 2)
    assert version(server) == 1
    server.process.send_signal(signal.SIGHUP)
    assert server.line("reloaded: reference numbers, serving (numbers:2)")
    assert version(server) == 2
    publish(folder, made, 3)
    archive = next((folder / "registry" / "numbers" / "3").glob("*.npz"))
    archive.write_bytes(b"")
    server.process.send_signal(signal.SIGHUP)
    assert server.line("reload-failed: reference numbers, serving (numbers:2)")
    assert version(server) == 2
    assert server.ask("GET", "/health/ready")[0] == 200


def test_sighup_while_models_are_compiled_is_heard_when_they_are(
    start: Callable[..., Process], folder: Path, made: Path
):
    server = start("--model", "numbers", "--max-batch", "1024")
    publish(folder, made, 2)
    while server.ask("GET", "/health/startup")[0] != 503:
        assert not any("ready after" in line for line in server.lines), "compiled before it could be asked"
    server.process.send_signal(signal.SIGHUP)
    server.ready()
    assert eventually(lambda: version(server) == 2)


def test_watching_follows_an_alias_while_requests_are_answered(start: Callable[..., Process], folder: Path, made: Path):
    registry = folder / "registry"
    publish(folder, made, 2)
    promote(registry, "numbers:1")
    server = start("--model", "numbers@production", "--watch", "0.1").ready()
    assert version(server) == 1
    promote(registry, "numbers:2")
    seen = {1}
    assert eventually(lambda: seen.add(version(server)) or 2 in seen)
    assert seen == {1, 2}
    promote(registry, "numbers:1")
    assert eventually(lambda: version(server) == 1)


def test_watching_brings_back_what_it_has_brought_before(start: Callable[..., Process], folder: Path, made: Path):
    registry = folder / "registry"
    publish(folder, made, 2)
    promote(registry, "numbers:1")
    server = start("--model", "numbers@production", "--watch", "1").ready()
    promote(registry, "numbers:2")
    assert eventually(lambda: version(server) == 2)
    promote(registry, "numbers:1")
    server.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: version(server) == 1), "before the next look, which finds nothing new"
    promote(registry, "numbers:2")
    assert eventually(lambda: version(server) == 2)


# ---- requests


def test_timing_deadline_and_determinism_travel_over_http(running: Process):
    status, headers, _ = running.predict()
    assert status == 200
    timing = dict(re.findall(r"(\w+);dur=([0-9.]+)", headers["server-timing"]))
    assert list(timing) == ["queue", "decode", "infer", "encode"]
    assert all(float(value) >= 0 for value in timing.values())
    rows = {"features": matrix(NUMBERS, 5).tolist(), "deterministic": True}
    whole = running.ask("POST", "/predict/tabular", json.dumps(rows).encode())[2]
    for features, expected in zip(rows["features"], whole["probabilities"], strict=True):
        body = json.dumps({"features": [features], "deterministic": True}).encode()
        assert running.ask("POST", "/predict/tabular", body)[2]["probabilities"] == [expected]
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    connection.request("POST", "/predict/tabular", BODY, JSON | {"x-request-timeout-ms": "soon"})
    assert connection.getresponse().status == 400
    connection.close()


def test_who_hangs_up_is_counted_and_harms_nobody(running: Process):
    large = json.dumps({"features": matrix(NUMBERS, 4096).tolist(), "deterministic": True}).encode()
    head = f"POST /predict/tabular HTTP/1.1\r\nHost: x\r\nContent-Length: {len(large)}\r\n\r\n".encode()
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", running.port)) as leaving:
            leaving.sendall(head + large)
            select.select([leaving], [], [], 0.05)

    def left() -> float:
        families = running.ask("GET", "/metrics?format=json")[2]
        samples = families["mmjax_requests"]["samples"]
        return sum(s["value"] for s in samples if s["labels"].get("reason") == "client-left")

    assert eventually(lambda: left() == 3)
    assert running.predict()[0] == 200
