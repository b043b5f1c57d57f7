"""Images beside columns over HTTP: every door gives one answer, and each refuses what is wrong in plain words."""

import base64
import json
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from mmjax.artifact.models import load_model
from mmjax.artifact.predictor import Predictor
from mmjax.client import Client as OurClient
from mmjax.client_http import ServerError
from mmjax.data.decode import encode_png
from mmjax.errors import DataError
from mmjax.serving.limits import Limits
from mmjax.serving.mixed import MAX_MIXED_BYTES
from tests.live import JSON, Client, Reply, thread
from tests.untrained import HOMES, KINDS, SHADES, add_model, picture

FRONT, BACK = (encode_png(picture(level)) for level in (20, 140))
LINE = "between"
FORM = {"content-type": f"multipart/form-data; boundary={LINE}"}


class Served(NamedTuple):
    client: Client
    homes: Predictor
    url: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("mixed") / "registry"
    for name, schema in (("homes", HOMES), ("kinds", KINDS), ("shades", SHADES)):
        add_model(root, name, schema)
    with thread(root, Limits(), models=("homes", "kinds", "shades")) as running:
        url = f"http://127.0.0.1:{running.client.port}"
        yield Served(running.client, load_model("homes", registry=root), url)


def form(*parts: tuple[str, str | bytes]) -> bytes:
    """A body of fields (texts) and files (bytes)."""
    body = b""
    for name, value in parts:
        file = '; filename="a picture.png"\r\nContent-Type: image/png' if isinstance(value, bytes) else ""
        head = f'--{LINE}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode() + (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
    return body + f"--{LINE}--\r\n".encode()


def text_of(image: bytes | None) -> str | None:
    return None if image is None else base64.b64encode(image).decode()


def by_json(client: Client, row: Mapping[str, Any]) -> Reply:
    told = {name: text_of(cell) if isinstance(cell, bytes) else cell for name, cell in row.items()}
    return client.ask("POST", "/predict", json.dumps({"model": "homes", "rows": [told]}), JSON)


def by_form(client: Client, row: Mapping[str, Any]) -> Reply:
    parts = [(name, cell if isinstance(cell, bytes) else str(cell)) for name, cell in row.items() if cell is not None]
    parts += [(name, "") for name, cell in row.items() if cell is None]
    return client.ask("POST", "/predict?model=homes&version=1", form(*parts), FORM)


def by_tensors(client: Client, row: Mapping[str, Any]) -> Reply:
    """The Open Inference Protocol, images as raw bytes after the JSON."""
    inputs, raw = [], b""
    for name, cell in row.items():
        tensor: dict[str, Any] = {"name": name, "shape": [1], "datatype": "FP32" if name == "size" else "BYTES"}
        if name in ("front", "back"):
            element = struct.pack("<I", len(cell or b"")) + (cell or b"")
            tensor["parameters"], raw = {"binary_data_size": len(element)}, raw + element
        else:
            tensor["data"] = [cell if cell is not None else None if name == "size" else ""]
        inputs.append(tensor)
    head = json.dumps({"inputs": inputs}).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    return client.ask("POST", "/v2/models/homes/infer", head + raw, headers)


ROWS: dict[str, dict[str, Any]] = {
    "all": {"size": 1.5, "front": FRONT, "colour": "red", "back": BACK},
    "one image": {"size": -2.25, "front": FRONT, "colour": "mauve", "back": None},
    "no image": {"size": 0.5, "front": None, "colour": "blue", "back": None},
    "images alone": {"front": FRONT, "back": BACK},
    "one image alone": {"back": BACK},
    "columns alone": {"size": 3.0, "colour": "red"},
    "nothing known": {"size": None, "front": None, "colour": None, "back": None},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_every_door_gives_the_answer_of_the_bundle(served: Served, row: dict[str, Any]) -> None:
    expected = served.homes.predict([row]).prediction[0]
    for ask in (by_json, by_form):
        reply = ask(served.client, row)
        assert reply.status == 200, reply.body
        assert reply.json["predictions"] == [expected], ask
        assert reply.json["model"] == {"name": "homes", "version": 1}
        assert "infer;dur=" in reply.headers["server-timing"]
    reply = by_tensors(served.client, row)
    assert reply.status == 200, reply.body
    (output,) = reply.json["outputs"]
    assert (output["name"], output["data"]) == ("predictions", [expected])
    with OurClient(served.url) as client:
        assert client.predict([row], model="homes").prediction.tolist() == [expected]


def test_the_client_takes_paths_columns_and_more_rows_than_a_request_may_have(served: Served, tmp_path: Path) -> None:
    (tmp_path / "front.png").write_bytes(FRONT)
    rows = [{"size": float(i), "front": FRONT, "colour": "red", "back": BACK if i % 2 else None} for i in range(19)]
    expected = served.homes.predict(rows).prediction
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    paths = columns | {"front": [tmp_path / "front.png"] * 19}
    with OurClient(served.url) as client:
        for asked in (rows, columns, paths, paths | {"front": [str(tmp_path / "front.png")] * 19}):
            found = client.predict(asked, model="homes:1")
            np.testing.assert_allclose(found.prediction, expected, rtol=1e-6)
            assert len(found.request_ids) == 3
        assert {model.modality for model in client.models()} == {"table", "image", "multimodal"}
        with pytest.raises(DataError, match=r"none\.png: expected an image file"):
            client.predict([{"front": tmp_path / "none.png"}], model="homes")
        with pytest.raises(ServerError, match="unknown column 'frnt'"):
            client.predict([{"size": 1, "colour": "red", "frnt": None}], model="homes")
        assert client.predict([{"image": FRONT}], model="shades").prediction[0] in ("dark", "light")


def test_the_client_says_what_is_wrong_with_rows_of_images(served: Served) -> None:
    row: dict[str, Any] = {"size": 1, "colour": "red", "front": FRONT, "back": None}
    bare: Any = {"front": [FRONT], "size": 1, "colour": ["red"]}
    with OurClient(served.url) as client:
        with pytest.raises(DataError, match=r"expected columns of equal length, got \{'size': 2"):
            client.predict({"size": [1, 2], "colour": ["red"] * 2, "front": [FRONT]}, model="homes")
        with pytest.raises(DataError, match="column 'size': expected a list or an array of cells, got int; to ask"):
            client.predict(bare, model="homes")
        with pytest.raises(DataError, match="row 1, 'back': expected a path or the bytes of an image, got ndarray"):
            client.predict([row | {"back": np.zeros((8, 8, 3), np.uint8)}], model="homes")
        with pytest.raises(ServerError, match="expected the name of one"):
            client.predict([row])
        with pytest.raises(ServerError, match="no 'hoses' is served"):
            client.predict([row], model="hoses")
        with pytest.raises(ServerError, match="unknown column 'front'"):
            client.predict([row], model="kinds")


def test_rows_of_one_request_may_lack_different_things(served: Served) -> None:
    rows = list(ROWS.values())
    told = [{k: text_of(v) if isinstance(v, bytes) else v for k, v in row.items()} for row in rows]
    reply = served.client.ask("POST", "/predict", json.dumps({"model": "homes", "rows": told}), JSON)
    expected = [served.homes.predict([row]).prediction[0] for row in rows]
    np.testing.assert_allclose(reply.json["predictions"], expected, rtol=1e-6)


def test_the_door_is_for_other_models_too(served: Served) -> None:
    row = {"size": 1.0, "colour": "red", "flag": "yes", "when": "2024-02-03"}
    body = json.dumps({"model": "kinds", "rows": [row]})
    here, there = (served.client.ask("POST", path, body, JSON).json for path in ("/predict", "/predict/tabular"))
    assert here["probabilities"] == there["probabilities"]
    image = served.client.ask("POST", "/predict?model=shades", form(("image", FRONT)), FORM).json
    alone = served.client.ask("POST", "/predict/image", FRONT, {"content-type": "image/png"}).json
    assert image["probabilities"] == alone["probabilities"]


def test_an_image_that_is_no_base64_is_told_once(served: Served) -> None:
    body = json.dumps({"model": "shades", "rows": [{"image": "?!"}, {"image": None}, {"image": text_of(FRONT[:-40])}]})
    problems = served.client.ask("POST", "/predict", body, JSON).json["errors"]
    assert [problem.split(",")[0] for problem in problems] == [
        "image 1: expected an image in base64",
        "image 2: expected an image",
        "image 3: PNG is truncated",
    ]
    cut = json.dumps({"model": "shades", "rows": [{"image": text_of(FRONT[:-40])}]})
    assert served.client.ask("POST", "/predict", cut, JSON).json["errors"] == ["image 1: PNG is truncated"]


GOOD = {"size": 1, "front": text_of(FRONT), "colour": "red", "back": None}
BAD_JSON: dict[str, tuple[dict[str, Any], int, str]] = {
    "no base64": (
        {"rows": [GOOD | {"front": "?!"}]},
        400,
        "column 'front', row 1: expected an image in base64, got a text that is none; send the bytes",
    ),
    "a data URL": ({"rows": [GOOD | {"front": f"data:image/png;base64,{text_of(FRONT)}"}]}, 400, "without a `data:`"),
    "a number": ({"rows": [GOOD, GOOD | {"back": 5}]}, 400, "column 'back', row 2: expected an image in base64"),
    "no image": (
        {"rows": [GOOD | {"back": base64.b64encode(b"some text").decode()}]},
        400,
        "column 'back', row 1: expected JPEG, PNG, WebP, BMP or GIF, got no image",
    ),
    "a cut image": ({"rows": [GOOD | {"back": text_of(BACK[:-40])}]}, 400, "column 'back', row 1"),
    "a text for a number": (
        {"rows": [GOOD | {"size": "5"}]},
        400,
        "column 'size', row 1: expected a number or null, got the text \"5\"; write 5 without quotes",
    ),
    "a misspelt column": ({"rows": [GOOD | {"frnt": None}]}, 400, "unknown column 'frnt'"),
    "one feature without the other": ({"rows": [{"size": 1, "front": None}]}, 400, "row 1: expected column 'colour'"),
    "nothing": ({"rows": [{}]}, 400, "row 1: expected column"),
    "no rows": ({"rows": []}, 400, "expected at least one row"),
    "too many rows": ({"rows": [GOOD] * 9}, 413, "expected at most 8 rows of this model in a request, got 9"),
    "cells without names": ({"features": [[1, "red"]]}, 400, "expected `rows`, each by column name"),
    "another key": ({"rows": [GOOD], "model": "homes", "modle": "x"}, 400, "unknown field"),
    "another model": ({"rows": [GOOD], "model": "hoses"}, 404, "no 'hoses' is served"),
    "no model": ({"rows": [GOOD], "model": None}, 400, "expected the name of one, got none"),
}


@pytest.mark.parametrize(("body", "status", "told"), BAD_JSON.values(), ids=BAD_JSON.keys())
def test_json_that_is_wrong_is_refused_with_the_place(served: Served, body: Any, status: int, told: str) -> None:
    reply = served.client.ask("POST", "/predict", json.dumps({"model": "homes"} | body), JSON)
    assert reply.status == status, reply.body
    assert told in "\n".join(reply.json["errors"])
    assert reply.headers["content-type"] == "application/problem+json"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


HUGE = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 6000, 6000, 8, 2, 0, 0, 0))
HUGE += chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
BAD_FORMS: dict[str, tuple[bytes, int, str]] = {
    "an image as a field": (
        form(("size", "1"), ("colour", "red"), ("front", "pictures/1.png")),
        400,
        "part 'front': expected a file, got a field; with curl write -F 'front=@PATH'",
    ),
    "a cell as a file": (form(("size", b"1"), ("colour", "red")), 400, "part 'size': expected a field, got a file"),
    "a part twice": (form(("front", FRONT), ("front", BACK)), 400, "part 'front': expected it once, got it twice"),
    "a misspelt part": (form(("front", FRONT), ("bakc", BACK)), 400, "unknown column 'bakc'; rename or remove it; did"),
    "no number": (
        form(("size", "large"), ("colour", "red")),
        400,
        "column 'size', row 1: expected a number within",
    ),
    "no image": (form(("front", b"nothing")), 400, "column 'front', row 1: expected JPEG, PNG, WebP, BMP or GIF"),
    "too many pixels": (form(("front", HUGE)), 400, "column 'front', row 1: is 6000 x 6000 ="),
    "no UTF-8": (
        form(("size", "1"), ("colour", "red")).replace(b"red", b"\xff\xfe"),
        400,
        "part 'colour': expected text in UTF-8, got other bytes",
    ),
    "nothing": (f"--{LINE}--\r\n".encode(), 400, "expected a part for each column, got none"),
    "no form": (b"what?", 400, "multipart: expected form data, got something else"),
    "too many parts": (form(*((f"p{i}", "1") for i in range(200))), 413, "expected at most"),
    "too large": (form(("front", b"\0" * MAX_MIXED_BYTES)), 413, "expected at most"),
}


@pytest.mark.parametrize(("body", "status", "told"), BAD_FORMS.values(), ids=BAD_FORMS.keys())
def test_a_form_that_is_wrong_is_refused_with_the_part(served: Served, body: bytes, status: int, told: str) -> None:
    reply = served.client.ask("POST", "/predict?model=homes", body, FORM)
    assert reply.status == status, reply.body
    assert told in "\n".join(reply.json["errors"])


LONG = 28 * 2**20
SMALL_PARTS: dict[str, tuple[bytes, int, str]] = {
    "rows without cells": (b'{"rows":[' + b"{}," * (LONG // 3) + b"{}]}", 413, "8,388,608 bytes besides images"),
    "lists": (b'{"features":[' + b"[]," * (LONG // 3) + b"[]]}", 413, "8,388,608 bytes besides images"),
    "a name": (b'{"rows":[{"' + b"k" * LONG + b'":1}]}', 413, "8,388,608 bytes besides images"),
    "names": (
        b'{"model":"homes","rows":[{' + b",".join(b'"k%d":1' % i for i in range(300_000)) + b"}]}",
        400,
        "row 1: unknown column 'k",
    ),
    "a long name": (b'{"model":"homes","rows":[{"' + b"k" * 8_000_000 + b'":1}]}', 400, "unknown column 'kkk"),
    "a row twice": (b'{"rows":[' + b'{"a":1,"a":1},' * 500_000 + b"{}]}", 400, "row 1: expected each key once"),
}


@pytest.mark.parametrize(("body", "status", "told"), SMALL_PARTS.values(), ids=SMALL_PARTS.keys())
def test_large_bodies_of_small_parts_are_refused_before_they_fill_memory_or_time(
    served: Served, body: bytes, status: int, told: str
) -> None:
    started = time.process_time()
    reply = served.client.ask("POST", "/predict", body, JSON)
    assert time.process_time() - started < 6  # up to 30 s and 1.2 GB before
    assert reply.status == status, reply.body[:300]
    assert told in "\n".join(reply.json["errors"])
    assert len(reply.body) < 20_000


def test_escaped_base64_is_no_part_of_what_a_table_may_have(served: Served) -> None:
    image = text_of(b"\x89PNG\r\n\x1a\n" + b"\xff" * 9_000_000)
    body = json.dumps({"model": "homes", "rows": [{"front": image}]}).replace("/", "\\/")
    assert "PNG is" in served.client.ask("POST", "/predict", body, JSON).json["detail"]


def test_a_model_of_nothing_but_one_image_answers_to_no_missing_one(served: Served) -> None:
    told = "image 1: expected an image, as the model looks at nothing else, got none; send one, or "
    told += "leave the row out"
    for cell in (None, ""):
        body = json.dumps({"model": "shades", "rows": [{"image": cell}]})
        assert served.client.ask("POST", "/predict", body, JSON).json["errors"] == [told]
    reply = served.client.ask("POST", "/predict?model=shades", form(("image", b"")), FORM)
    assert (reply.status, reply.json["errors"]) == (400, [told])


def test_other_doors_headers_and_queries_are_refused(served: Served) -> None:
    ask = served.client.ask
    body = json.dumps({"model": "homes", "rows": [GOOD]})
    assert (
        "expected application/json or multipart/form-data"
        in ask("POST", "/predict", body, {"content-type": "text/plain"}).json["detail"]
    )
    assert ask("POST", "/predict", body, JSON | {"content-encoding": "gzip"}).status == 415
    assert ask("POST", "/predict?model=homes", body, JSON).json["type"] == "urn:mmjax:bad-query"
    assert ask("POST", "/predict?modle=homes", form(("front", FRONT)), FORM).json["type"] == "urn:mmjax:bad-query"
    assert ask("POST", "/predict", form(("front", FRONT)), FORM).json["type"] == "urn:mmjax:which-model"
    assert ask("POST", "/predict?model=homes", form(), {"content-type": "multipart/form-data"}).status == 400
    wrong = ask("POST", "/predict/image?model=homes", FRONT, {"content-type": "image/png"})
    assert wrong.json["type"] == "urn:mmjax:wrong-model"
    told = ask("POST", "/predict/tabular", json.dumps({"model": "homes", "rows": [{"size": 1, "colour": "red"}]}), JSON)
    assert told.json["type"] == "urn:mmjax:wrong-model"
    assert "homes:1 (multimodal)" in told.json["detail"]
    assert ask("GET", "/predict").status == 405


def test_tensors_that_are_wrong_are_refused(served: Served) -> None:
    def ask(*inputs: dict[str, Any]) -> str:
        reply = served.client.ask("POST", "/v2/models/homes/infer", json.dumps({"inputs": inputs}), JSON)
        assert reply.status == 400
        return reply.json["error"]

    size = {"name": "size", "shape": [1], "datatype": "FP32", "data": [1]}
    colour = {"name": "colour", "shape": [1], "datatype": "BYTES", "data": ["red"]}
    front = {"name": "front", "shape": [1], "datatype": "BYTES", "data": ["text"]}
    assert "input 'colour': expected one, got none" in ask(size)
    assert "expected image files as binary data" in ask(size, colour, front)
    assert "input 'frnt': unknown" in ask(size, colour, front | {"name": "frnt"})
    assert "expected as many rows in each" in ask(size, colour | {"shape": [2], "data": ["red", "blue"]})
    bad = {"name": "back", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 4 + 4 + 3}}
    head = json.dumps({"inputs": [bad]}).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    raw = struct.pack("<I", 0) + struct.pack("<I", 3) + b"abc"
    reply = served.client.ask("POST", "/v2/models/homes/infer", head + raw, headers)
    assert reply.json["error"].startswith("input 'back', row 2: expected JPEG")


def test_what_is_asked_is_counted_and_described(served: Served) -> None:
    def missing(column: str) -> float:
        return served.client.counted("cells", model="homes:1", column=column, kind="missing")

    before = [missing("size"), missing("colour")]
    by_form(served.client, ROWS["images alone"])
    assert [missing("size"), missing("colour")] == [count + 1 for count in before]
    told = served.client.ask("GET", "/v2/models/homes").json
    assert [(one["name"], one["datatype"]) for one in told["inputs"]] == [
        ("size", "FP32"),
        ("colour", "BYTES"),
        ("front", "BYTES"),
        ("back", "BYTES"),
    ]
