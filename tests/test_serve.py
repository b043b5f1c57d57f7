"""The server as clients meet it: one process on a real socket, good and bad requests, many at once, SIGTERM."""

import csv
import http.client
import io
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from litestar.testing import TestClient
from PIL import Image

from mmjax.artifact.models import load_model
from mmjax.artifact.predictor import Predictor, largest_difference
from mmjax.config_load import config_from_dict
from mmjax.data.decode import encode_png
from mmjax.errors import MmjaxError
from mmjax.serve import serve
from mmjax.serving.answering import refuse_non_finite
from mmjax.serving.app import make_app
from mmjax.serving.engine import load_models, make_engine
from mmjax.serving.settings import Settings
from mmjax.serving.wire import MAX_IMAGE_BYTES, MAX_ROWS, MAX_TABLE_BYTES, Refused
from mmjax.train import fit
from mmjax.training.scoring import Scores

REPOSITORY = Path(__file__).resolve().parent.parent
HEADER = ("id", "size", "colour", "when", "flag", "price", "kind")
JSON = {"content-type": "application/json"}
PNG = {"content-type": "image/png"}
SHARED = 1e-6
"""How far an answer may be from that of the rows alone: a batch of another size adds f32 in another order."""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Server(NamedTuple):
    process: subprocess.Popen[str]
    port: int

    def ask(self, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] | None = None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            names = {name.lower(): value for name, value in reply.getheaders()}
            return Answer(reply.status, names, reply.read().decode())
        finally:
            connection.close()

    def table(self, document: Any) -> Answer:
        return self.ask("POST", "/predict/tabular", json.dumps(document), JSON)

    def ready(self) -> None:
        for _ in range(2400):  # beside other tests, with an empty compile cache
            if self.ask("GET", "/health/ready").status == 200:
                return
            assert self.ask("GET", "/health/live").status == 200, "live says 200 from the first moment"
            time.sleep(0.05)
        raise AssertionError("not ready in time")


def start(registry: Path, *arguments: str) -> Server:
    """A server process; it says where it listens."""
    command = [sys.executable, "-m", "mmjax.serve", "--registry", str(registry), "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r" on http://127\.0\.0\.1:(\d+)$", line.rstrip()):
            return Server(process, int(found[1]))
    process.communicate()
    raise AssertionError(f"the server ended with {process.returncode}")


def write_table(path: Path) -> None:
    """Columns of every kind, some cells missing, and two targets."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for i in range(120):
            size, colour = rng.normal(), ("red", "green", "blue")[rng.integers(3)]
            kind = {"red": "a", "green": "b", "blue": "c"}[colour] if size < 1 else "a"
            shown = "NA" if rng.random() < 0.1 else f"{size:.4f}"
            when = f"2024-{rng.integers(1, 13):02d}-{rng.integers(1, 29):02d}"
            flag = ("no", "yes")[rng.integers(2)]
            writer.writerow((f"r{i}", shown, colour, when, flag, f"{3 * size + (colour == 'red'):.3f}", kind))


def picture(level: int) -> np.ndarray:
    return np.random.default_rng(level).integers(level, level + 60, (20, 24, 3), dtype=np.uint8)


def train(home: Path, name: str, data: dict[str, Any], model: dict[str, Any]) -> None:
    training = {"epochs": 1, "batch_size": 8}
    content = {"name": name, "data": data, "model": model, "training": training, "evaluation": {"baselines": "none"}}
    config = config_from_dict(content, "test")
    fit(config, runs_dir=home / "runs", registry=home / "registry")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of three tiny models: `kinds` (a table), `price` (a table, regression) and `shades` (images)."""
    home = tmp_path_factory.mktemp("serve")
    write_table(home / "table.csv")
    for target, other in (("kind", "price"), ("price", "kind")):
        table = {"path": str(home / "table.csv"), "target_column": target, "id_column": "id", "ignore_columns": [other]}
        name = "kinds" if target == "kind" else "price"
        network = {"name": "mlp"} if target == "price" else {}
        train(home, name, {"tabular": table}, network | {"architecture": {"hidden_layers": [8]}})
    for level in (20, 180):
        for i in range(10):
            path = home / "images" / str(level) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(level + i))
    image = {"image": {"path": str(home / "images"), "image_size": [8, 8]}}
    train(home, "shades", image, {"architecture": {"stages": [1], "width": 4}})
    return home


def png(level: int) -> bytes:
    return encode_png(picture(level))


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    server = start(home / "registry", "--model", "kinds:1", "--model", "shades")
    server.ready()
    yield server
    server.process.send_signal(signal.SIGTERM)
    told, _ = server.process.communicate(timeout=30)
    assert server.process.returncode == 0
    lines = [re.sub(r"\d+\.\d s", "T s", line) for line in told.splitlines()]
    assert lines[:2] == ["kinds:1 ready in T s, 11 programs", "shades:1 ready in T s, 5 programs"]
    assert lines[2].startswith("ready after T s")


@pytest.fixture(scope="module")
def kinds(home: Path) -> Predictor:
    return load_model("kinds", registry=home / "registry")


ROWS: list[dict[str, Any]] = [
    {"size": 0.25, "colour": "red", "when": "2024-03-04", "flag": "yes"},
    {"size": None, "colour": None, "when": None, "flag": None},
    {"size": -1, "colour": "mauve", "when": "2024-12-31", "flag": True},
    {"size": 1e-45, "colour": "blue", "when": "2030-01-01", "flag": "no"},
    {"size": "NA", "colour": "green", "when": "", "flag": False},
]  # fmt: skip
GOOD = {"rows": ROWS[:1]}


def essence(answer: Answer) -> dict[str, Any]:
    """What must be the same at every time."""
    assert answer.status == 200, answer.text
    return {key: value for key, value in answer.json.items() if key not in ("request_id", "inference_time_ms")}


def test_health_says_what_is(server: Server):
    health = server.ask("GET", "/health").json
    assert (health["status"], health["model_loaded"]) == ("ok", True)
    assert health["models"] == [{"name": "kinds", "version": 1}, {"name": "shades", "version": 1}]
    assert set(health["system"]) == {"memory", "disk", "device"}
    assert health["system"]["device"]["platform"] == "cpu"
    assert server.ask("GET", "/health/live").json == {"status": "ok"}
    assert server.ask("GET", "/health/ready").json == {"status": "ready"}


def test_models_tell_schema_metrics_and_card_but_no_rows_and_no_paths(server: Server, home: Path, kinds: Predictor):
    listed = server.ask("GET", "/models").json["models"]
    assert [(m["name"], m["modality"], m["classes"]) for m in listed] == [
        ("kinds", "table", ["a", "b", "c"]),
        ("shades", "image", ["20", "180"]),
    ] or listed[1]["classes"] == ["180", "20"]
    answer = server.ask("GET", "/models/kinds?version=1")
    assert answer.json["features"] == ["size", "colour", "when", "flag"]
    assert answer.json["digest"] == kinds.digest
    assert set(answer.json) >= {"schema", "metrics", "card"}
    assert 0 <= answer.json["metrics"]["test"]["accuracy"] <= 1
    assert "golden" not in answer.json
    assert str(home) not in answer.text
    assert server.ask("GET", "/models/kinds?version=2").status == 404


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_one_row_gets_the_bits_of_the_predictor(server: Server, kinds: Predictor, row: dict[str, Any]):
    expected = kinds.predict([row])
    by_name = essence(server.table({"rows": [row]}))
    in_order = essence(server.table({"features": [list(row.values())]}))
    assert by_name == in_order
    assert by_name["labels"] == expected.prediction.tolist()
    assert by_name["model"] == {"name": "kinds", "version": 1}
    assert expected.probabilities is not None
    np.testing.assert_array_equal(np.array(by_name["probabilities"], np.float32), expected.probabilities)
    assert by_name["predictions"] == [expected.classes.index(label) for label in by_name["labels"]]


@pytest.mark.parametrize("rows", [3, 256, 257, MAX_ROWS])
def test_many_rows_come_back_in_order(server: Server, kinds: Predictor, rows: int):
    asked = [dict(ROWS[i % len(ROWS)], id=f"r{i}", kind="a") for i in range(rows)]
    answer = essence(server.table({"rows": asked, "model": "kinds", "version": 1}))
    expected = kinds.predict(asked)
    assert answer["labels"] == expected.prediction.tolist()
    # Other sizes of batch add up in another order: docs/API.md says by how much that may show.
    np.testing.assert_allclose(np.array(answer["probabilities"], np.float32), expected.probabilities, rtol=1e-6)


def multipart(*parts: tuple[str, str | None, bytes]) -> tuple[bytes, dict[str, str]]:
    """A form of (name, file name or None, content)."""
    lines = []
    for name, filename, content in parts:
        named = f'; filename="{filename}"' if filename is not None else ""
        head = f'--line\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
        lines.append(head.encode() + content + b"\r\n")
    return b"".join(lines) + b"--line--\r\n", {"content-type": "multipart/form-data; boundary=line"}


def test_images_are_answered_raw_and_in_forms(server: Server, home: Path):
    shades = load_model("shades", registry=home / "registry")
    raw = essence(server.ask("POST", "/predict/image", png(30), PNG))
    one = shades.predict([{"image": png(30)}])
    np.testing.assert_array_equal(np.array(raw["probabilities"], np.float32), one.probabilities)
    assert raw["labels"] == one.prediction.tolist()
    body, headers = multipart(*(("file", f"{i}.png", png(i)) for i in (30, 190, 31)))
    three = essence(server.ask("POST", "/predict/image?model=shades&version=1", body, headers))
    both = shades.predict([{"image": png(i)} for i in (30, 190, 31)])
    np.testing.assert_array_equal(np.array(three["probabilities"], np.float32), both.probabilities)


def test_a_request_keeps_its_plain_id(server: Server):
    mine = server.ask("GET", "/health/live", headers={"X-Request-ID": "job-7"})
    assert mine.headers["x-request-id"] == "job-7"
    odd = server.ask("POST", "/predict/tabular", "{}", {**JSON, "X-Request-ID": "a b<script>"})
    assert re.fullmatch("[0-9a-f]{32}", odd.headers["x-request-id"])
    assert odd.json["request_id"] == odd.headers["x-request-id"]


def row(**changes: Any) -> str:
    return json.dumps({"rows": [ROWS[0] | changes]})


def doubled(text: str) -> str:
    return row().replace('"size": 0.25', text)


BAD_TABLES: list[tuple[str | bytes, int, str]] = [
    ("", 400, "body: expected JSON, got nothing"),
    ("{", 400, "body: expected JSON"),
    ("\ufeff{}", 400, "body: expected JSON"),
    ('{"rows": []}'.encode("utf-16"), 400, "body: expected JSON"),
    (b'{"features": [["\xff"]]}', 400, "body: expected JSON"),
    ("[]", 400, "body: expected an object, got a list"),
    ("null", 400, "body: expected an object, got null"),
    ('{"features": ' + "[" * 100_000, 400, "features, row 1, cell 1: expected"),
    ("[" * 100_000, 400, "body: expected an object, got a list"),
    ("{}", 400, 'expected exactly one of "features"'),
    ('{"features": [[1]], "rows": []}', 400, 'expected exactly one of "features"'),
    ('{"features": [[1]], "instances": 1}', 400, "unknown field `instances`; expected `features`"),
    ('{"features": [1, "red", null, null]}', 400, "got a whole number; put each row in a list: [[...], [...]]"),
    ('{"features": {"size": 1}}', 400, "features: expected a list, got an object; give a list of rows: [[...], [...]]"),
    ('{"rows": {"size": 1}}', 400, "rows: expected a list, got an object; give a list of rows: [{...}, {...}]"),
    ('{"rows": [[1, "red", null, null]]}', 400, "got a list; give each row by column name: [{...}, {...}]"),
    ('{"features": []}', 400, "expected at least one row"),
    ('{"features": [[]]}', 400, "row 1: expected 4 cells (size, colour, when, flag), got 0"),
    ('{"features": [[1, "red", null, null], [1]]}', 400, "row 2: expected 4 cells"),
    ('{"features": [[NaN, "red", null, null]]}', 400, "got NaN, which JSON has not; write null for a missing"),
    ('{"features": [["NaN", "red", null, -Infinity]]}', 400, "expected JSON, got -Infinity, which JSON has not"),
    ('{"features": [[1e999, "red", null, null]]}', 400, "column 'size', row 1: expected a number within ±3.4e38, got"),
    ('{"features": [[1, 1e999, null, null]]}', 400, "column 'colour', row 1: expected a number within ±3.4e38"),
    (json.dumps({"rows": [ROWS[0]]}).replace('"size": 0.25', '"size": -1e400'), 400, "column 'size', row 1: expected"),
    ('{"features": [[1e999, "red", null]]}', 400, "row 1: expected 4 cells"),
    ('{"features": [[1e999, {}, null, null]]}', 400, "column 'size', row 1: expected a number"),
    ('{"features": [[' + "9" * 400 + ', "red", null, null]]}', 400, "column 'size', row 1: expected a number within"),
    ('{"features": [[{}, "red", null, null]]}', 400, "features, row 1, cell 1: expected"),
    ('{"features": [[1, ["red"], null, null]]}', 400, "features, row 1, cell 2: expected"),
    (row(size="1.5"), 400, "column 'size', row 1: expected a number or null, got the text \"1.5\"; write 1.5 without"),
    (row(size="inf"), 400, "column 'size', row 1: expected a number or null"),
    (row(size=1e39), 400, "column 'size', row 1: expected a number within ±3.4e38, got 1e+39"),
    (row(size=True), 400, "column 'size', row 1: expected a number or null, got true"),
    (row(when=False), 400, "column 'when', row 1: expected a date"),
    (row(when="soon"), 400, "column 'when', row 1: expected a date"),
    (row(when=3), 400, "column 'when', row 1: expected a date"),
    (row(sise=1), 400, "row 1: unknown column 'sise'; rename or remove it; did you mean 'size'?"),
    (json.dumps({"rows": [ROWS[0], {"size": 1}]}), 400, "row 2: expected column 'colour', got none"),
    (json.dumps({"rows": [3]}), 400, "rows, row 1: expected an object, got a whole number; give each row"),
    (doubled('"size": 0.25, "size": 0.25'), 400, "row 1: expected each key once, got 'size' 2 times"),
    (doubled('"size": 0.25, "si\\u007ae": 1'), 400, "row 1: expected each key once, got 'size' 2 times"),
    ('{"rows": [], "rows": [{}]}', 400, "body: expected each key once, got 'rows' 2 times"),
    (json.dumps({"rows": [{}] * (MAX_ROWS + 1)}), 413, f"expected at most {MAX_ROWS:,} rows"),
    (b" " * (MAX_TABLE_BYTES + 1), 413, f"body: expected at most {MAX_TABLE_BYTES:,} bytes"),
    (json.dumps(GOOD | {"model": "nope"}), 404, "no 'nope' is served; there are kinds:1 (table), shades:1 (image)"),
    (json.dumps(GOOD | {"model": "kinds:2"}), 404, "model: no 'kinds:2' is served"),
    (json.dumps(GOOD | {"model": "shades:1"}), 400, "model: expected a table model, got 'shades:1'"),
    (json.dumps(GOOD | {"version": 7}), 404, "model: no 'kinds:7' is served"),
    (json.dumps(GOOD | {"model": "shades"}), 400, "model: expected a table model, got 'shades'"),
    (json.dumps(GOOD | {"version": "1"}), 400, "version: expected a whole number or null, got a text"),
]  # fmt: skip


def check_problem(server: Server, answer: Answer, status: int, told: str, home: Path) -> None:
    """The refusal is a whole problem that says `told` and leaks nothing, and the server is as well as before."""
    assert answer.status == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    problem = answer.json
    assert set(problem) == {"type", "title", "status", "detail", "error", "errors", "request_id"}
    assert (problem["status"], problem["error"]) == (status, problem["detail"])
    assert told in "\n".join(problem["errors"])
    assert "Traceback" not in answer.text
    assert str(home) not in answer.text
    assert ".py" not in answer.text


@pytest.fixture(scope="module")
def good(server: Server) -> dict[str, Any]:
    return essence(server.table(GOOD))


@pytest.mark.parametrize(("body", "status", "told"), BAD_TABLES, ids=lambda value: str(value)[:40])
def test_bad_tables_are_refused_and_good_ones_still_answered(server, home, good, body, status, told):
    data = body.encode() if isinstance(body, str) else body
    check_problem(server, server.ask("POST", "/predict/tabular", data, JSON), status, told, home)
    assert essence(server.table(GOOD)) == good


QUOTES = b'"' + b'\\"' * 16_000
PLACES = b'{"' + b" - at `$" * 20_000 + b'\\n": 1}'
LONG = b'{"' + b"x" * 100_000 + b' - at `$": 1}'


@pytest.mark.parametrize("body", [QUOTES, PLACES, LONG], ids=["quotes", "places", "long"])
def test_what_is_wrong_with_a_body_is_found_in_no_time_and_told_in_few_words(server, good, body):
    started = time.monotonic()
    refused = server.ask("POST", "/predict/tabular", body, JSON)
    assert time.monotonic() - started < 2, "each of its characters is looked at a few times, not each for each"
    assert refused.status == 400
    assert len(json.dumps(refused.json)) < 2000
    assert essence(server.table(GOOD)) == good


def bomb() -> bytes:
    """A PNG header of 10,000 x 10,000 pixels over little data."""
    head = bytearray(png(1))
    head[16:24] = (10_000).to_bytes(4, "big") * 2
    return bytes(head)


def noisy_jpeg() -> bytes:
    """A JPEG whose header is whole also when it is cut."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


BAD_IMAGES: list[tuple[bytes, dict[str, str], int, str]] = [
    (b"", PNG, 400, "expected an image file, got nothing"),
    (b"no image", PNG, 400, "image 1: expected JPEG, PNG, WebP, BMP or GIF, got no image"),
    (b"<svg></svg>", PNG, 400, "got SVG"),
    (b"%PDF-1.7", {"content-type": "image/jpeg"}, 400, "got PDF"),
    (png(1)[:200], PNG, 400, "image 1: PNG is truncated"),
    (noisy_jpeg()[:-100], {"content-type": "image/jpeg"}, 400, "image 1: JPEG is truncated"),
    (bomb(), PNG, 400, "image 1: "),
    (png(1), {"content-type": "text/plain"}, 415, "with curl add -H 'Content-Type: image/png'"),
    (png(1), PNG | {"content-encoding": "gzip"}, 415, "Content-Encoding: expected none"),
    (b" " * (MAX_IMAGE_BYTES + 1), PNG, 413, f"body: expected at most {MAX_IMAGE_BYTES:,} bytes"),
    (b"", {"content-type": "multipart/form-data"}, 400, "with a boundary, got none"),
    (b"what", {"content-type": "multipart/form-data; boundary=x"}, 400, "multipart: "),
    (*multipart(), 400, "expected at least one file named 'file'"),
    (*multipart(("file", None, b"text")), 400, "got a field named 'file'; with curl write -F file=@PATH"),
    (*multipart(("picture", "a.png", png(1))), 400, "got a file named 'picture'"),
    (*multipart(("file", "", b"")), 400, "image 1: is empty"),
    (*multipart(("file", "../../x\0", png(1)), ("file", "b.png", b"GIF89a")), 400, ""),
    (*multipart(*[("file", "a.png", b"")] * 17), 413, "at most 16 images in a request, got more; send several"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "headers", "status", "told"), BAD_IMAGES, ids=lambda value: str(value)[:30])
def test_bad_images_are_refused_and_good_ones_still_answered(server, home, body, headers, status, told):
    before = essence(server.ask("POST", "/predict/image", png(30), PNG))
    check_problem(server, server.ask("POST", "/predict/image", body, headers), status, told, home)
    assert essence(server.ask("POST", "/predict/image", png(30), PNG)) == before


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "told"),
    [
        ("GET", "/nothing", {}, 404, "/nothing: no such path; /docs shows all there are"),
        ("GET", "/predict", {}, 405, "GET /predict: expected POST, got GET"),
        ("GET", "/predict/tab", {}, 404, "no such path; did you mean /predict/tabular?"),
        ("GET", "/heath", {}, 404, "no such path; did you mean /health?"),
        ("GET", "/predict/tabula" + "r" * 90, {}, 404, "no such path; /docs shows"),
        ("GET", "/models/kinds:3", {}, 404, "no 'kinds:3' is served; there are kinds:1 (table), shades:1 (image)"),
        ("GET", "/models/..%2f..%2fetc", {}, 404, "no such path"),
        ("GET", "/models/%00", {}, 404, ""),
        ("GET", "/models/%ff%fe", {}, 404, ""),
        ("GET", "/models/kinds?version=x", {}, 400, ""),
        ("GET", "/models/kinds?version=%ff", {}, 400, ""),
        ("GET", "/models/kinds?version=1&version=2", {}, 400, ""),
        ("GET", "/predict/tabular", {}, 405, "GET /predict/tabular: expected POST, got GET"),
        ("DELETE", "/models", {}, 405, "expected GET, got DELETE"),
        ("POST", "/predict/tabular?model=kinds", JSON, 400, ""),
        ("POST", "/predict/image?modle=shades", PNG, 400, "each once, got 'modle'; did you mean 'model'?"),
        (
            "POST",
            "/predict/tabular",
            {"content-type": "application/x-www-form-urlencoded"},
            415,
            "with curl add -H 'Content-Type: application/json'",
        ),
        ("POST", "/predict/tabular", JSON | {"content-encoding": "br"}, 415, ""),
    ],
)
def test_bad_requests_are_refused_by_route(server, home, method, path, headers, status, told):
    answer = server.ask(method, path, b"{}" if method == "POST" else None, headers)
    check_problem(server, answer, status, told, home)
    assert ("allow" in answer.headers) == (status == 405)


def test_a_body_that_is_never_finished_harms_nobody(server: Server, good: dict[str, Any]):
    with socket.create_connection(("127.0.0.1", server.port)) as left:
        left.sendall(b"POST /predict/tabular HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert essence(server.table(GOOD)) == good
    assert essence(server.table(GOOD)) == good


def test_many_clients_at_once_each_get_their_own_answer(server: Server, kinds: Predictor):
    asked = [[{**ROWS[0], "size": i / 10}] * (i % 3 + 1) for i in range(160)]
    with ThreadPoolExecutor(32) as clients:
        answers = list(clients.map(lambda rows: essence(server.table({"rows": rows})), asked))
    for rows, answer in zip(asked, answers, strict=True):
        expected = kinds.predict(rows).probabilities
        assert expected is not None
        assert largest_difference(expected, np.array(answer["probabilities"])) <= SHARED


def test_a_full_queue_sheds_and_sigterm_finishes_what_is_in_flight(home: Path):
    server = start(home / "registry", "--model", "kinds", "--model", "price:1", "--queue", "1")
    try:
        early = server.table({"rows": ROWS, "model": "price"})
        assert early.status in (200, 503)
        assert early.status == 200 or early.headers["retry-after"] == "1"
        server.ready()
        unsaid = server.table({"rows": ROWS})
        assert (unsaid.status, unsaid.json["type"]) == (400, "urn:mmjax:which-model")
        assert "there are kinds:1 (table), price:1 (table)" in unsaid.json["detail"]
        check_regression(server, home)
        check_shedding(server)
        check_sigterm(server)
    finally:
        server.process.kill()
        server.process.communicate()


def check_regression(server: Server, home: Path) -> None:
    answer = essence(server.table({"rows": ROWS, "model": "price"}))
    expected = load_model("price", registry=home / "registry").predict(ROWS)
    assert (answer["labels"], answer["probabilities"]) == (None, None)
    np.testing.assert_array_equal(np.array(answer["predictions"]), expected.prediction)


def check_shedding(server: Server) -> None:
    with ThreadPoolExecutor(16) as clients:
        asked = {"rows": ROWS * 200, "model": "price"}
        answers = list(clients.map(server.table, [asked] * 32))
    assert {answer.status for answer in answers} == {200, 503}
    shed = next(answer for answer in answers if answer.status == 503)
    assert (shed.headers["retry-after"], shed.json["type"]) == ("1", "urn:mmjax:overloaded")
    assert server.table({"rows": ROWS, "model": "price"}).status == 200


def check_sigterm(server: Server) -> None:
    body = json.dumps({"rows": ROWS, "model": "price"}).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        head = f"POST /predict/tabular HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body[:10])
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        client.sendall(body[10:])
        reply = b"".join(iter(lambda: client.recv(65536), b""))
    assert reply.startswith(b"HTTP/1.1 200 OK")
    assert b'"labels":null' in reply
    assert server.process.wait(20) == 0


def test_before_it_is_ready_it_lives_and_refuses_and_a_fault_of_ours_tells_nothing(home: Path, caplog):
    engine = make_engine(load_models(["kinds"], home / "registry"), queue=1)
    warmed = queue.Queue()
    with TestClient(make_app(engine, warmed=warmed.put), raise_server_exceptions=False) as client:
        assert warmed.get(timeout=30) is None
        engine.ready.clear()
        early = client.post("/predict/tabular", json=GOOD)
        assert (early.status_code, early.headers["retry-after"]) == (503, "1")
        assert early.json()["type"] == "urn:mmjax:not-ready"
        assert [client.get(f"/health{path}").status_code for path in ("", "/live", "/ready")] == [503, 200, 503]
        engine.ready.set()
        assert client.post("/predict/tabular", json=GOOD).status_code == 200
        engine.serving["kinds"] = engine.models[0]._replace(predictor=None)
        fault = client.post("/predict/tabular", json=GOOD, headers={"x-request-id": "mine"})
    assert (fault.status_code, fault.headers["content-type"]) == (500, "application/problem+json")
    assert "AttributeError" not in fault.text
    assert "request mine failed" in caplog.text
    assert "AttributeError" in caplog.text


def test_an_answer_that_is_not_finite_is_no_answer():
    probabilities = np.array([[0.5, 0.5, 0], [np.nan, 0.5, 0.5]], np.float32)
    scores = Scores(probabilities, np.array([0, 1], np.int32), probabilities)
    with pytest.raises(Refused, match="row 2: the model's answer is not finite") as refused:
        refuse_non_finite(scores)
    assert (refused.value.status, refused.value.reason) == (422, "non-finite-output")


def test_the_door_refuses_with_words(home: Path, server: Server, monkeypatch: pytest.MonkeyPatch):
    def refuse(model: str, port: int = 0) -> str:
        with pytest.raises(MmjaxError) as refused:
            serve(Settings(models=(model,), registry=str(home / "registry"), port=port))
        return f"{refused.value.exit_code} {refused.value}"

    taken = refuse("kinds", server.port)
    told = (
        f"2 --host 127.0.0.1 --port {server.port}: expected an address of this machine with a free port, got: Address"
    )
    assert taken.startswith(told)
    assert "no model 'none'; there are kinds, price, shades" in refuse("none")
    assert refuse("none")[0] == "5"
    monkeypatch.setitem(sys.modules, "litestar", None)
    bare = "2 serving: expected the packages of the extra 'serve', got no litestar; run make install, or "
    bare += "pip install '.[serve]' in a clone of mmjax"
    assert refuse("kinds") == bare


def test_serving_loads_no_training_library():
    code = "import sys, mmjax.serve, mmjax.serving.app\nprint(*{name.split('.')[0] for name in sys.modules})"
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60)
    assert set(done.stdout.split()) & {"pandas", "grain", "optax", "orbax", "sklearn", "scipy"} == set()
