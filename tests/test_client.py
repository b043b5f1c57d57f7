"""`mmjax.Client` against a live server with keys, and against servers that misbehave."""

import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from sklearn.metrics import accuracy_score

import mmjax
from mmjax.artifact.models import load_model
from mmjax.artifact.predictor import Predictions
from mmjax.client import Answers, ServerError
from mmjax.client_bodies import MOST_ROWS, Request, image_requests, table_requests
from mmjax.client_http import Reply, retry_after_s
from mmjax.data.decode import encode_png
from mmjax.errors import ConfigError, DataError
from mmjax.predict import predict_file
from mmjax.schema import Target, class_values
from mmjax.serving.limits import Limits, new_key
from mmjax.serving.reload import Source, reload_models
from tests.live import JSON, door, thread
from tests.untrained import KINDS, NUMBERS, PRICE, SHADES, add_model, kinds_columns, picture


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("client") / "registry"
    for name, schema in (("kinds", KINDS), ("numbers", NUMBERS), ("price", PRICE), ("shades", SHADES)):
        add_model(root, name, schema)
    return root


@pytest.fixture(scope="module")
def place(registry: Path) -> Iterator[tuple[str, str]]:
    """URL and key of a server."""
    key, line = new_key("tests")
    (registry / "keys").write_text(line)
    models = [word for name in ("kinds", "numbers", "price", "shades") for word in ("--model", name)]
    with door(registry, *models, "--max-batch", "64", "--api-keys", str(registry / "keys")) as server:
        yield f"http://127.0.0.1:{server.port}", key


@pytest.fixture
def client(place: tuple[str, str]) -> Iterator[mmjax.Client]:
    with mmjax.Client(*place) as client:
        yield client


def check(answers: Answers, expected: Predictions) -> None:
    """The answers are those of the model in this process, bit for bit."""
    np.testing.assert_array_equal(answers.prediction, expected.prediction)
    assert answers.classes == expected.classes
    if expected.probabilities is None:
        assert answers.probabilities is None
    else:
        assert answers.probabilities is not None
        assert answers.probabilities.dtype == np.float32
        np.testing.assert_array_equal(answers.probabilities, expected.probabilities)


def test_the_answers_are_predictions_and_more():
    assert set(Predictions._fields) < set(Answers._fields)
    assert Answers._fields[:3] == Predictions._fields[:3]


def test_rows_and_columns_of_every_kind_get_the_answers_of_the_model(client: mmjax.Client, registry: Path):
    columns = kinds_columns(40)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    expected = load_model("kinds", registry=registry).predict(rows)
    check(client.predict(rows, model="kinds"), expected)
    check(client.predict(columns, model="kinds", version=1), expected)
    check(client.predict(columns | {"id": ["x"] * 40, "kind": ["a"] * 40}, model="kinds"), expected)
    in_order = [[row[name] for name in ("size", "colour", "flag", "when")] for row in rows]
    check(client.predict(in_order, model="kinds"), expected)
    check(client.predict(pd.DataFrame(columns), model="kinds"), expected)
    as_arrays = {name: np.array(cells, dtype=object) for name, cells in columns.items()}
    answers = client.predict(as_arrays, model="kinds")
    check(answers, expected)
    assert (answers.model, answers.version, len(answers.request_ids)) == ("kinds", 1, 1)
    assert answers.inference_time_ms > 0


def test_categories_that_training_did_not_see_are_told(client: mmjax.Client, registry: Path):
    row = {"size": 1.0, "colour": "1", "flag": True, "when": "2024-03-04"}
    odd = {"colour": "mauve", "flag": None}
    rows = [row, row | odd]
    expected = ("column 'colour': 1 cell of a category unknown to the model: 'mauve' (row 2)",)
    assert load_model("kinds", registry=registry).predict(rows).warnings == expected
    assert client.predict(rows, model="kinds").warnings == expected
    assert client.predict([row], model="kinds").warnings == ()
    many = client.predict([row] * (MOST_ROWS + 5) + rows, model="kinds")
    where = "from row 2,053 on, where rows are counted from 1 again: "
    assert many.warnings == (where + expected[0].replace("row 2", "row 2,051"),)


def test_cells_of_python_and_numpy_are_taken(client: mmjax.Client):
    plain = client.predict([{"size": None, "colour": "1", "flag": True, "when": "2024-03-04"}], model="kinds")
    row = {"size": float("nan"), "colour": np.int64(1), "flag": np.True_, "when": date(2024, 3, 4)}
    odd = client.predict([row], model="kinds")
    np.testing.assert_array_equal(odd.probabilities, plain.probabilities)
    times = {name: np.array([cell]) for name, cell in row.items()} | {"when": np.array(["2024-03-04"], "datetime64[D]")}
    np.testing.assert_array_equal(client.predict(times, model="kinds").probabilities, plain.probabilities)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_large_table_of_numbers_goes_as_tensors_with_the_same_bits(client: mmjax.Client, registry: Path, dtype):
    values = np.random.default_rng(1).normal(size=(MOST_ROWS + 900, 5)).astype(dtype)
    values[::7, 1] = np.nan
    names = [column.name for column in NUMBERS.features]
    predictor = load_model("numbers", registry=registry)
    columns = {name: values[:, i] for i, name in enumerate(names)}
    parts = [
        predictor.predict({n: c[s] for n, c in columns.items()}) for s in (slice(MOST_ROWS), slice(MOST_ROWS, None))
    ]
    expected = Predictions(
        np.concatenate([part.prediction for part in parts]),
        np.concatenate([np.asarray(part.probabilities) for part in parts]),
        parts[0].classes,
    )
    for rows in (values, columns, pd.DataFrame(columns)):
        answers = client.predict(rows, model="numbers")
        check(answers, expected)
        assert len(answers.request_ids) == 2
        assert answers.inference_time_ms > 0
    check(client.predict(values.tolist()[:MOST_ROWS], model="numbers"), parts[0])


def test_classes_equal_the_cells_of_a_data_frame_that_holds_them(tmp_path: Path):
    """Numbers and truth values: texts would equal none of them, without a word."""
    cells = {"digits": [3, 10, -1], "flags": [False, True], "decimals": [0.0, 1.0]}
    for name, classes in cells.items():
        target = Target(column="y", task="classification", classes=tuple(map(str, classes)))
        add_model(tmp_path / "registry", name, replace(NUMBERS, target=target))
    rows = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    frame = pd.DataFrame(rows, columns=[column.name for column in NUMBERS.features])
    frame.to_csv(tmp_path / "in.csv", index=False)
    with (
        thread(tmp_path / "registry", Limits(), models=tuple(cells), max_batch=1) as server,
        mmjax.Client(f"http://127.0.0.1:{server.client.port}") as client,
    ):
        for name, classes in cells.items():
            predictor = load_model(name, registry=tmp_path / "registry")
            found = predictor.predict(frame)
            truth = np.array(classes)[np.argmax(found.probabilities, axis=1)]
            assert len(np.unique(truth)) > 1
            assert found.classes == tuple(classes)
            for said in (found, client.predict(frame, model=name), client.predict(frame[:9].values, model=name)):
                wanted = truth[: len(said.prediction)]
                assert accuracy_score(wanted, said.prediction) == 1
                assert (pd.Series(wanted) == said.prediction).all()
                assert (said.prediction.dtype, said.classes) == (truth.dtype, tuple(classes))
            predict_file(predictor, tmp_path / "in.csv", tmp_path / "out.csv")
            printed = pd.read_csv(tmp_path / "out.csv")
            np.testing.assert_array_equal(printed["prediction"], truth)
            told = client.describe(name)
            assert (told["classes"], told["class_values"]) == ([str(value) for value in classes], classes)
            body = json.dumps({"model": name, "features": rows[:3].tolist()})
            reply = server.client.ask("POST", "/predict/tabular", body, JSON).json
            assert reply["labels"] == [str(value) for value in truth[:3]], "texts, as they were written"


NUMBERS_AS_TEXT = st.one_of(
    st.from_regex(r"-?[0-9]{1,19}(\.[0-9]{1,14})?", fullmatch=True),
    st.floats(allow_nan=False, allow_infinity=False).map(str),
    st.sampled_from(["0", "1", "0.0", "1.0", "-0", "-0.0", "00", "007", "+1", "1e3", ".5", "1.", "yes", "٣", "inf"]),
)


@given(st.lists(NUMBERS_AS_TEXT, min_size=2, max_size=6, unique=True))
def test_classes_that_are_numbers_are_those_that_pandas_reads(classes: list[str]):
    values = class_values(tuple(classes))
    if values == tuple(classes):
        return
    read = pd.read_csv(io.StringIO("\n".join(["y", *classes])))["y"]
    assert read.tolist() == list(values)
    assert len(set(values)) == len(classes)


def test_decimal_classes_are_numbers_and_others_stay_texts():
    assert class_values(("0.0", "1.0")) == (0.0, 1.0)
    assert class_values(("-1.25", "0.5", "2")) == (-1.25, 0.5, 2.0)
    assert all(type(value) is float for value in class_values(("0.5", "2")))
    for texts in (
        ("0", "0.0"),
        ("0.0", "-0.0"),
        ("00.5", "1.5"),
        ("1e3", "0.5"),
        ("0.5", "nan"),
        ("0.5", "1." + "1" * 15),
    ):
        assert class_values(texts) == texts


@pytest.mark.parametrize("retries", [-1, 1.5, True])
def test_retries_that_are_no_count_are_refused_at_once(retries: Any):
    with pytest.raises(ConfigError, match=rf"^retries: expected a whole number of at least 0, got {retries}"):
        mmjax.Client("http://127.0.0.1:9", retries=retries)


def test_masked_cells_are_missing_in_tables_of_any_size(client: mmjax.Client):
    cells = np.ma.masked_array(np.full((1000, 5), 3.0), np.arange(5000).reshape(1000, 5) % 3 == 0)
    expected = client.predict(cells.filled(np.nan), model="numbers").probabilities
    for rows in (cells, {f"x{i}": cells[:, i] for i in range(5)}):
        np.testing.assert_allclose(client.predict(rows, model="numbers").probabilities, expected, rtol=1e-6)
    np.testing.assert_allclose(client.predict(cells[:3], model="numbers").probabilities, expected[:3], rtol=1e-6)


def test_a_large_table_goes_as_tensors_also_to_a_model_that_is_named_with_its_version(place: tuple[str, str]):
    asked: list[str] = []

    class Seen(mmjax.Client):
        """A client whose requests are seen."""

        def _replies(self, requests: Iterator[Request], images: Any = ()) -> Iterator[dict[str, Any]]:
            for request in requests:
                asked.append(request.path)
                yield from super()._replies(iter([request]), images)

    with Seen(*place) as client:
        for name in ("numbers", "numbers:1"):
            client.predict(np.zeros((1000, 5), np.float32), model=name)
    assert asked == ["/v2/models/numbers/versions/1/infer"] * 2


def test_a_version_that_leaves_before_it_was_described_loses_no_request(tmp_path: Path):
    root = tmp_path / "registry"
    for name, schema in (("kinds", KINDS), ("shades", SHADES)):
        add_model(root, name, schema)
    with thread(root, Limits()) as server:
        add_model(root, "kinds", KINDS, seed=1)

        class Slow(mmjax.Client):
            """A client that is overtaken by a reload between its two requests."""

            def _get(self, path: str) -> Reply:
                reload_models(server.engine, Source(str(root), 2), lambda *_: None)
                return super()._get(path)

        with Slow(f"http://127.0.0.1:{server.client.port}") as client:
            assert (
                client.predict([{"size": 1, "colour": "red", "flag": "no", "when": None}], model="kinds").version == 2
            )


def test_a_regression_keeps_the_digits_of_large_numbers(client: mmjax.Client, registry: Path):
    rng = np.random.default_rng(2)
    columns = {"seconds": 1.7e9 + rng.normal(size=2000), "size": rng.normal(size=2000)}
    expected = load_model("price", registry=registry).predict(columns)
    check(client.predict(columns, model="price"), expected)
    few = {name: cells[:3] for name, cells in columns.items()}
    check(client.predict(few, model="price"), load_model("price", registry=registry).predict(few))


def test_images_are_paths_or_bytes_one_or_many(client: mmjax.Client, registry: Path, tmp_path: Path):
    files = [encode_png(picture(5 * i)) for i in range(20)]
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    predictor = load_model("shades", registry=registry)
    one = predictor.predict([{"image": files[0]}])
    path = str(paths[0])
    bare: list[Any] = [files[0], paths[0], path, [paths[0]], [path], [files[0]]]
    named: list[Any] = [{"image": cells} for cells in ([files[0]], [paths[0]], [path], np.array([path], dtype=object))]
    named += [[{"image": paths[0]}], [{"image": path}], [{"image": files[0]}], pd.DataFrame({"image": [path]})]
    for image in (*bare, *named):  # a model that is loaded takes the same
        check(client.predict(image, model="shades"), one)
        np.testing.assert_array_equal(predictor.predict(image).probabilities, one.probabilities)
    check(client.predict([{"image": paths[0]}]), one)
    many = client.predict([{"image": str(path)} for path in paths], model="shades")
    np.testing.assert_array_equal(many.prediction, predictor.predict([str(path) for path in paths]).prediction)
    answers = client.predict(paths, model="shades", version=1)
    assert len(answers.request_ids) == 2
    expected = predictor.predict({"image": files})
    np.testing.assert_array_equal(answers.prediction, expected.prediction)
    np.testing.assert_allclose(np.asarray(answers.probabilities), np.asarray(expected.probabilities), atol=1e-6)


def test_models_and_health_are_told(client: mmjax.Client, registry: Path):
    client.wait_until_ready()
    found = {model.name: model for model in client.models()}
    assert found["numbers"].classes == ("a:b", "ü", "10")
    assert found["numbers"].features == tuple(column.name for column in NUMBERS.features)
    assert found["shades"].modality == "image"
    assert found["price"].digest == load_model("price", registry=registry).digest
    assert client.describe("kinds")["schema"]["missing_markers"] == ["NA"]
    assert client.health()["status"] == "ok"


def refusal(client: mmjax.Client, rows: Any, **model: Any) -> ServerError:
    with pytest.raises(ServerError) as refused:
        client.predict(rows, **model)
    return refused.value


def test_a_refusal_says_what_is_wrong(client: mmjax.Client, place: tuple[str, str]):
    row = {"size": "much", "colour": 1, "flag": "no", "when": "soon"}
    error = refusal(client, [row], model="kinds")
    assert (error.status, error.reason, len(error.request_id)) == (400, "bad-cell", 32)
    assert error.problems[0] == "column 'size', row 1: expected a number or null, got the text \"much\""
    assert f"POST /predict/tabular: 400 bad-cell (request {error.request_id}): column 'size'" in str(error)
    assert isinstance(error, mmjax.MmjaxError)
    misspelt = str(refusal(client, {"sise": [1]}, model="kinds"))
    assert "unknown column 'sise'; rename or remove it; did you mean 'size'?" in misspelt
    assert "there are kinds:1 (table), numbers:1 (table), price:1 (table), shades:1 (image)" in str(
        refusal(client, [[1.0]])
    )
    assert refusal(client, {"size": [1]}).reason == "which-model"
    assert refusal(client, [[1.0]], model="nothing").status == 404
    assert refusal(client, {"size": [1]}, model="kinds", version=9).status == 404
    assert refusal(client, b"no image").reason == "bad-image"
    assert client.predict([[1.0] * 5], model="numbers:1").model == "numbers"
    late = [[1e39] * 5 if i == MOST_ROWS + 5 else [0.0] * 5 for i in range(MOST_ROWS + 10)]
    assert "the part from row 2,054 on" in str(refusal(client, late, model="numbers"))
    for wrong in (None, "another-key-that-is-long-enough"):
        with mmjax.Client(place[0], wrong) as stranger:
            assert refusal(stranger, b"").status == 401
            assert stranger.health()["status"] == "ok", "needs no key"


BAD: list[tuple[Any, str]] = [
    ([{"x": float("inf")}], "row 1, 'x': expected a finite number, or NaN or None for missing, got infinity"),
    ({"x": np.array([0, np.inf])}, "column 'x', cell 2: expected a finite number"),
    (np.full((1, 2), -np.inf), "column 1, cell 1: expected a finite number"),
    ([[0.0, {"a": 1}]], "row 1, cell 2: expected a number, a text, a boolean, a date or None, got dict"),
    ([1, 2], "row 1: expected a list or an array of cells, got int; to ask for one row, put the row in a list: [row]"),
    ({"x": 1.5}, "column 'x': expected a list or an array of cells, got float; to ask for one row, put the row"),
    ({"x": 1.5, "y": "red"}, "column 'x': expected a list or an array of cells, got float; to ask for one row"),
    ({"x": [1], "y": [1, 2]}, "rows: expected columns of equal length, got {'x': 1, 'y': 2}"),
    ({"x": "text"}, "column 'x': expected a list or an array of cells, got str"),
    (np.zeros(3), "rows: expected an array of rows and columns, got one of shape (3,); to ask for one row, put the"),
    ([[1.0, 10**5000]], "row 1, cell 2: expected a number within ±3.4e38, got one of 16,610 bits"),
    ([[1.0, "\ud800"]], "rows: expected texts that UTF-8 has bytes for, got one with '\\ud800'"),
    (pd.DataFrame({1: [1.0]}), "data frame: expected names of columns that are texts, got 1; rename it"),
    (pd.DataFrame([[1.0, 2.0]], columns=["x", "x"]), "data frame: expected each column once, got 'x' again; rename or"),
    (pd.Series([1.0]), "a pandas DataFrame, or paths or bytes of images, got Series"),
    ({1, 2}, "rows: expected dicts, lists, columns, an array, a pandas DataFrame, or paths or bytes of images, got"),
    (["a.png", 3], "rows: expected paths and bytes of images only, got 1 of another kind"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "told"), BAD, ids=[told[:30] for _, told in BAD])
def test_what_cannot_be_sent_is_refused_here(rows: Any, told: str):
    with mmjax.Client("http://127.0.0.1:9", retries=0) as nowhere, pytest.raises(DataError) as refused:
        nowhere.predict(rows) if not isinstance(rows, dict | np.ndarray) else list(
            table_requests(rows, None, None, None)
        )
    assert told in str(refused.value)


def test_rows_of_images_that_cannot_be_sent_or_read_say_why(client: mmjax.Client, tmp_path: Path):
    nothing: list[Any] = [[], {}, {"image": []}, {"image": np.empty(0, dtype=object)}, np.empty((0, 2)), pd.DataFrame()]
    for none in nothing:
        with pytest.raises(DataError, match=r"^rows: expected at least one row, got none$"):
            client.predict(none, model="shades")
    pixels = np.zeros((8, 8, 3), np.uint8)
    named: list[Any] = [[{"image": pixels}], {"image": [pixels]}, {"image": np.array([pixels])}]
    bare: list[Any] = [[pixels], pixels[None]]
    for rows in (*named, *bare):
        with pytest.raises(DataError, match=r"a server takes files, not pixels: give the file's path, or its bytes"):
            client.predict(rows, model="shades")
    (tmp_path / "good.png").write_bytes(encode_png(picture(1)))
    (tmp_path / "bad.png").write_text("no image")
    files: list[dict[str, Any]] = [{"image": str(tmp_path / name)} for name in ("good.png", "bad.png")]
    assert f"{tmp_path / 'bad.png'}: expected JPEG" in str(refusal(client, files, model="shades"))
    assert "expected column 'image'" in str(refusal(client, [{}], model="shades"))
    assert "unknown column 'imag'" in str(refusal(client, [{"imag": files[0]["image"]}], model="shades"))
    assert "expected an image" in str(refusal(client, [*files[:1], {"image": None}], model="shades"))


def test_a_file_that_is_no_image_is_named(client: mmjax.Client, tmp_path: Path):
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for path in paths:
        path.write_bytes(encode_png(picture(60)))
    paths[18].write_text("no image")
    paths[19].write_bytes(paths[0].read_bytes()[:200])
    told = f"{paths[18]}: expected JPEG, PNG, WebP, BMP or GIF, got no image"
    assert refusal(client, [paths[18]]).problems == (told,)
    assert refusal(client, paths[:19]).problems == (told,)
    assert refusal(client, [str(paths[19])]).problems[0].startswith(f"{paths[19]}: ")
    assert refusal(client, [b"", paths[0]]).problems == ("image 1: is empty",)


def test_a_server_that_is_not_there_is_told_with_its_port_and_what_to_do():
    with mmjax.Client("http://127.0.0.1:9/under", retries=0) as nowhere:
        with pytest.raises(mmjax.ServerError, match=r"127\.0\.0\.1:9/under: expected an answer, got: .*ref") as refused:
            nowhere.health()
        assert refused.value.problems[0].endswith("; is the server running? start one with `mmjax serve`")
        with pytest.raises(mmjax.ServerError, match=r"mmjax serve` \(waited 0.2 s\)$"):
            nowhere.wait_until_ready(patience_s=0.2)


def test_an_image_that_is_not_there_is_refused_here():
    with pytest.raises(DataError, match=r"no\.png: expected an image file, got: No such file"):
        list(image_requests(["no.png"], None, None))
    with pytest.raises(DataError, match=r"expected an image file, got: embedded null byte"):
        list(image_requests(["a\0b.png"], None, None))


def test_threads_share_a_client_and_each_gets_its_own_answer(client: mmjax.Client, registry: Path):
    asked = [[[float(i), 0.0, 1.0, 2.0, 3.0]] for i in range(64)]
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda rows: client.predict(rows, model="numbers"), asked))
    together = load_model("numbers", registry=registry).predict(
        {column.name: np.array([rows[0][i] for rows in asked]) for i, column in enumerate(NUMBERS.features)}
    )
    got = np.concatenate([np.asarray(answer.probabilities) for answer in answers])
    np.testing.assert_allclose(got, np.asarray(together.probabilities), atol=1e-6)
    assert len({answer.request_ids for answer in answers}) == 64


# ---- servers that misbehave

ANSWER = {
    "predictions": [1.5], "labels": None, "probabilities": None, "inference_time_ms": 0.1, "request_id": "r",
    "model": {"name": "m", "version": 1},
}  # fmt: skip


class Script(BaseHTTPRequestHandler):
    """A server that does what it is told, one step a request: (status, headers, body), or seconds to say nothing."""

    protocol_version = "HTTP/1.1"
    steps: list[Any]
    seen: list[dict[str, str]]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        step = self.steps.pop(0)
        if isinstance(step, float):
            time.sleep(step)
            self.close_connection = True
            return
        status, headers, body = step
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def scripted() -> Iterator[tuple[str, type[Script]]]:
    class Told(Script):
        steps: list[Any] = []  # noqa: RUF012
        seen: list[dict[str, str]] = []  # noqa: RUF012

    with ThreadingHTTPServer(("127.0.0.1", 0), Told) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", Told
        server.shutdown()
        thread.join()


BUSY = (503, {"Retry-After": "0"}, {"type": "urn:mmjax:overloaded", "errors": ["full"], "request_id": "x"})
GONE = 0.0
FINE = (200, {}, ANSWER)


@pytest.mark.parametrize(
    "steps", [[FINE], [BUSY, FINE], [GONE, BUSY, GONE, (429, {}, {"error": "rate"}), FINE]], ids=str
)
def test_a_busy_or_broken_server_is_asked_again(scripted, steps: list[Any]):
    url, script = scripted
    script.steps[:] = steps
    with mmjax.Client(url, "a key", timeout_s=20) as client:
        answers = client.predict([[1.0]])
    assert answers.prediction.tolist() == [1.5]
    assert script.steps == []
    assert {seen["authorization"] for seen in script.seen} == {"Bearer a key"}
    assert len({seen["x-request-id"] for seen in script.seen}) == 1, "one request, however often it is sent"
    left = [int(seen["x-request-timeout-ms"]) for seen in script.seen]
    assert left == sorted(left, reverse=True)
    assert left[0] <= 20_000


COMPILING = (
    503,
    {"Retry-After": "0"},
    {"type": "urn:mmjax:not-ready", "errors": ["the models are being compiled"], "request_id": "x"},
)


def test_a_server_that_compiles_is_waited_for(scripted, caplog: pytest.LogCaptureFixture):
    """However often it says so: only what it refuses for other reasons counts as a try."""
    url, script = scripted
    script.steps[:] = [COMPILING] * 6 + [BUSY] + [COMPILING] * 6 + [FINE]
    with mmjax.Client(url, timeout_s=20, retries=1) as client:
        assert client.predict([[1.0]]).prediction.tolist() == [1.5]
        assert [record.message for record in caplog.records] == [
            f"{url}: waiting for it, up to 20 s: the models are being compiled"
        ]
        script.steps[:] = [BUSY, COMPILING, BUSY]
        assert refusal(client, [[1.0]]).reason == "overloaded"
    script.steps[:] = [COMPILING] * 99
    with mmjax.Client(url, timeout_s=0.5) as client:
        error = refusal(client, [[1.0]])
    assert error.reason == "not-ready"
    assert re.fullmatch(r"the models are being compiled \(waited \d+\.\d s, timeout_s allows 0\.5\)", error.problems[0])
    assert 2 < len(script.steps) < 97


def test_a_server_that_does_not_listen_yet_is_waited_for(scripted, caplog: pytest.LogCaptureFixture):
    """However few tries it has, unless there are none. The port is that of a socket which is bound and listens late."""
    _, script = scripted
    script.steps[:] = [FINE]
    late = ThreadingHTTPServer(("127.0.0.1", 0), script, bind_and_activate=False)
    late.server_bind()
    url = f"http://127.0.0.1:{late.server_port}"
    with mmjax.Client(url, retries=0) as hasty, mmjax.Client(url, timeout_s=20, retries=1) as client:
        began = time.monotonic()
        error = refusal(hasty, [[1.0]])
        assert time.monotonic() - began < 1
        assert (error.reason, error.problems[0][-50:]) == (
            "no-answer", "is the server running? start one with `mmjax serve`"[-50:]
        )  # fmt: skip
        assert caplog.records == []
        starting = threading.Timer(1.2, lambda: (late.server_activate(), late.serve_forever(poll_interval=0.05)))
        starting.start()
        assert client.predict([[1.0]]).prediction.tolist() == [1.5]
        assert time.monotonic() - began > 1.2
    (line,) = (record.message for record in caplog.records)
    assert line.startswith(f"{url}: waiting for it, up to 20 s: {url}: expected an answer, got: ")
    late.shutdown()
    starting.join()
    late.server_close()


def test_a_server_that_never_listens_is_given_up_in_time_and_asked_seldom(monkeypatch: pytest.MonkeyPatch):
    tries: list[float] = []

    def connect(*place: Any, **more: Any) -> Any:
        tries.append(time.monotonic())
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("socket.create_connection", connect)
    with mmjax.Client("http://127.0.0.1:9", timeout_s=2.5, retries=1) as nowhere:
        began = time.monotonic()
        error = refusal(nowhere, [[1.0]])
    assert 1.4 < time.monotonic() - began < 10
    assert re.search(r"start one with `mmjax serve` \(waited \d+\.\d s, timeout_s allows 2\.5\)$", error.problems[0])
    assert 4 < len(tries) < 9


def test_retry_after_is_waited_for(scripted):
    url, script = scripted
    script.steps[:] = [(429, {"Retry-After": "1"}, {"error": "rate"}), FINE]
    started = time.monotonic()
    with mmjax.Client(url) as client:
        client.predict([[1.0]])
    assert 1 <= time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("steps", "status", "reason", "told"),
    [
        ([BUSY] * 3, 503, "overloaded", "full"),
        ([(429, {"Retry-After": "60"}, {"error": "rate"})], 429, "refused", "rate"),
        ([GONE] * 3, None, "no-answer", "expected an answer, got: "),
        ([3.0], None, "timeout", "expected an answer within 1.5 s"),
        ([(502, {}, b"<html>")], 502, "refused", "Bad Gateway, told by something that is not mmjax"),
        ([(200, {}, b"<html>")], 200, "not-mmjax", "expected a JSON object, got something else"),
        ([(200, {}, b"{}")], 200, "not-mmjax", "expected an answer of mmjax, got something else"),
    ],
)
def test_what_goes_wrong_for_good_is_told(scripted, steps, status, reason, told):
    url, script = scripted
    script.steps[:] = steps
    with mmjax.Client(url, timeout_s=1.5, retries=2) as client:
        error = refusal(client, [[1.0]])
    assert (error.status, error.reason, script.steps) == (status, reason, [])
    assert told in str(error)


def test_a_connection_that_the_server_closed_is_replaced_at_once(scripted):
    url, script = scripted
    script.steps[:] = [FINE, GONE, FINE]
    with mmjax.Client(url, retries=0) as client:
        client.predict([[1.0]])
        assert client.predict([[1.0]]).prediction.tolist() == [1.5]


def test_parts_answered_by_two_versions_are_refused(scripted):
    url, script = scripted
    script.steps[:] = [FINE, (200, {}, ANSWER | {"model": {"name": "m", "version": 2}})]
    with mmjax.Client(url) as client:
        error = refusal(client, [[1.0]] * (MOST_ROWS + 1))
    assert (error.reason, error.status) == ("model-changed", None)


BAD_URLS = (
    "ftp://x", "localhost:8000", "http://", "http://[::1", "http://u:p@x", "http://x?y=1", "http://x/ü", "http://x/a b",
    "http://x..y",
)  # fmt: skip


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_of_no_server_is_refused(url: str):
    with pytest.raises(ConfigError, match="expected http://host:port, got no such address"):
        mmjax.Client(url)


def test_a_key_that_no_header_can_hold_is_refused():
    with pytest.raises(ConfigError, match="api_key: expected printable ASCII"):
        mmjax.Client("http://x", "a\nb")


def test_a_client_waits_as_long_as_it_is_told_if_that_is_a_time(place: tuple[str, str]):
    for none in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="timeout_s: expected seconds above 0, got"):
            mmjax.Client("http://x", timeout_s=none)
    with mmjax.Client(*place, timeout_s=float("inf")) as client:
        assert client.health()["status"] == "ok"
        assert client.predict([[0.0] * 5], model="numbers").version == 1


def test_retry_after_may_be_a_date():
    assert 3000 < retry_after_s(time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3600))) <= 3600
    assert retry_after_s("Mon, 01 Jan 2001 00:00:00 GMT") == 0


def test_the_client_needs_no_jax():
    code = "import mmjax, sys; mmjax.Client('http://x'); print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert set(done.stdout.split()) & {"jax", "flax", "PIL", "pandas", "litestar", "msgspec"} == set()
