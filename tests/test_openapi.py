"""The OpenAPI document: true to what the server answers, by hand and by schemathesis."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mmjax.data.decode import encode_png
from tests.live import JSON, Client, door
from tests.untrained import HOMES, KINDS, NUMBERS, PRICE, SHADES, TAGS, add_model, picture

HOOKS = """
import base64
import schemathesis
from hypothesis import strategies as st
from mmjax.data.decode import encode_png
from tests.untrained import picture
images = st.integers(0, 190).map(lambda level: encode_png(picture(level)))
for kind in ("png", "jpeg", "webp", "bmp", "gif"):
    schemathesis.openapi.media_type(f"image/{kind}", images)
schemathesis.openapi.format("binary", images)
schemathesis.openapi.format("byte", images.map(lambda image: base64.b64encode(image).decode()))
def is_nothing(value):
    value = list(value.values()) if isinstance(value, dict) else value
    return value is None or (isinstance(value, list) and all(map(is_nothing, value)))
@schemathesis.hook
def filter_query(context, query):
    return not query or not any(is_nothing(value) for value in query.values())
"""
# A query of null, [], {} or [null] is left out of the URL: what is sent then is valid, not what was meant to be wrong.
# 503 and 504 are told, not faults: a deadline of a millisecond is kept by saying so. No schema says that a tensor has
# as many numbers as its shape, nor which rows go with a model in the query, so valid ones cannot be made up.
SETTINGS = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 503, 504]
[checks.negative_data_rejection]
expected-statuses = ["4xx"]
[[operations]]
include-path-regex = "/infer$|^/predict$"
[operations.checks.positive_data_acceptance]
enabled = false
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    root = tmp_path_factory.mktemp("openapi") / "registry"
    served = {"kinds": KINDS, "numbers": NUMBERS, "price": PRICE, "shades": SHADES, "homes": HOMES, "tags": TAGS}
    for name, schema in served.items():
        add_model(root, name, schema)
    models = [word for name in served for word in ("--model", name)]
    with door(root, *models, "--max-batch", "64") as server:
        yield server


@pytest.fixture(scope="module")
def document(server: Client) -> dict[str, Any]:
    return server.ask("GET", "/openapi.json").json


def schema_at(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def test_every_route_is_told_and_no_other(document: dict[str, Any]):
    from mmjax.serving import health, open_inference, openapi, routes

    handlers = [*routes.ROUTES, *health.ROUTES, *open_inference.ROUTES, *openapi.ROUTES]
    paths = {path.replace(":str", "") for one in handlers if one.include_in_schema is not False for path in one.paths}
    assert set(document["paths"]) == paths


def test_what_is_answered_is_as_told(server: Client, document: dict[str, Any]):
    asked: list[tuple[str, str, str, Any, dict[str, str]]] = [
        ("GET", path, path, None, {}) for path, item in document["paths"].items() if "get" in item and "{" not in path
    ]
    asked += [("GET", f"/models/{name}", "/models/{name}", None, {}) for name in ("kinds", "shades", "price", "tags")]
    asked += [("GET", f"/v2/models/{name}", "/v2/models/{name}", None, {}) for name in ("kinds", "numbers", "tags")]
    asked += [("GET", "/v2/models/kinds/versions/1/ready", "/v2/models/{name}/versions/{version}/ready", None, {})]
    asked += [
        ("GET", "/metrics?format=json", "/metrics", None, {}),
        ("GET", "/models/none", "/models/{name}", None, {}),
    ]
    row = {"features": [[0.5, None, 1, 2, 3]], "model": "numbers"}
    asked += [("POST", "/predict/tabular", "/predict/tabular", json.dumps(row), JSON)]
    labels = {"features": [[0.5, -2], [3, 4]], "model": "tags"}
    asked += [("POST", "/predict/tabular", "/predict/tabular", json.dumps(labels), JSON)]
    asked += [("POST", "/predict/tabular", "/predict/tabular", "{", JSON)]
    unseen = {"features": [[0.5, "mauve", True, "2024-03-04"]], "model": "kinds"}
    assert len(server.ask("POST", "/predict/tabular", json.dumps(unseen), JSON).json["warnings"]) == 1
    asked += [("POST", "/predict/tabular", "/predict/tabular", json.dumps(unseen), JSON)]
    cells = zip(
        ("size", "colour", "flag", "when"), ("FP32", "BYTES", "BOOL", "BYTES"), *unseen["features"], strict=True
    )
    unseen = {"inputs": [{"name": n, "shape": [1, 1], "datatype": d, "data": [cell]} for n, d, cell in cells]}
    told = server.ask("POST", "/v2/models/kinds/infer", json.dumps(unseen), JSON).json["parameters"]["warnings"]
    assert told == "column 'colour': 1 cell of a category unknown to the model: 'mauve' (row 1)"
    asked += [("POST", "/v2/models/kinds/infer", "/v2/models/{name}/infer", json.dumps(unseen), JSON)]
    asked += [("POST", "/predict/image", "/predict/image", encode_png(picture(9)), {"content-type": "image/png"})]
    tensor = {"name": "features", "shape": [1, 5], "datatype": "FP32", "data": [1, 2, 3, 4, 5]}
    asked += [("POST", "/v2/models/numbers/infer", "/v2/models/{name}/infer", json.dumps({"inputs": [tensor]}), JSON)]
    asked += [("POST", "/v2/models/numbers/infer", "/v2/models/{name}/infer", json.dumps({"inputs": []}), JSON)]
    tensor = tensor | {"shape": [2, 2], "data": [1, 2, 3, 4]}
    asked += [("POST", "/v2/models/tags/infer", "/v2/models/{name}/infer", json.dumps({"inputs": [tensor]}), JSON)]
    for method, path, template, body, headers in asked:
        reply = server.ask(method, path, body, headers)
        told = document["paths"][template][method.lower()]["responses"][str(reply.status)]
        media_type = reply.headers["content-type"].split(";")[0]
        assert media_type in told["content"], (path, reply)
        if "json" in media_type:
            schema_at(document, told["content"][media_type]["schema"]).validate(reply.json)
        assert {name.lower() for name, one in told["headers"].items() if one.get("required")} <= set(reply.headers), (
            path
        )


@pytest.mark.parametrize(("milliseconds", "good"), [(0, False), (1, True), (3_600_000, True), (3_600_001, False)])
def test_the_bounds_of_a_timeout_are_those_that_are_kept(server: Client, document, milliseconds: int, good: bool):
    (told,) = document["paths"]["/predict/tabular"]["post"]["parameters"]
    assert schema_at(document, told["schema"]).is_valid(milliseconds) == good
    body = json.dumps({"model": "price", "features": [[1.7e9, -3]]})
    reply = server.ask("POST", "/predict/tabular", body, JSON | {told["name"]: str(milliseconds)})
    assert (reply.status != 400) == good


ROW = {"size": 1.5, "colour": "red", "flag": True, "when": "2024-03-04"}
BODIES: list[tuple[Any, bool]] = [
    ({"model": "kinds", "rows": [ROW]}, True),
    ({"model": "kinds", "rows": [ROW | {"id": "x", "kind": None}], "version": 1, "deterministic": True}, True),
    ({"model": "kinds", "rows": [{**ROW, "size": "NA", "when": ""}]}, True),
    ({"model": "kinds", "features": [[None, "mauve", "no", None]]}, True),
    ({"model": "price", "features": [[1.7e9, -3]]}, True),
    ({"model": "price:1", "features": [[1.7e9, -3]]}, True),
    ({"model": "price:2", "features": [[1.7e9, -3]]}, False),
    ({"rows": [ROW]}, False),
    ({"model": "kinds", "rows": []}, False),
    ({"model": "kinds", "rows": [ROW | {"sise": 1}]}, False),
    ({"model": "kinds", "rows": [ROW | {"size": "1.5"}]}, False),
    ({"model": "kinds", "rows": [ROW | {"size": 1e39}]}, False),
    ({"model": "kinds", "rows": [ROW | {"when": 3}]}, False),
    ({"model": "kinds", "features": [[1.5, "red", True]]}, False),
    ({"model": "kinds", "features": [[None, "red", "no", None]], "rows": [ROW]}, False),
    ({"model": "price", "rows": [ROW]}, False),
    ({"model": "kinds", "rows": [ROW], "version": 2}, False),
]  # fmt: skip


@pytest.mark.parametrize(("body", "good"), BODIES, ids=str)
def test_the_schema_of_a_body_and_the_server_agree(server: Client, document: dict[str, Any], body: Any, good: bool):
    told = document["paths"]["/predict/tabular"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema_at(document, told).is_valid(body) == good
    assert (server.ask("POST", "/predict/tabular", json.dumps(body), JSON).status == 200) == good


def check_with_schemathesis(server: Client, folder: Path, *, phases: str, examples: int) -> None:
    """schemathesis, as a process, finds nothing; or the test is skipped where it is not installed."""
    if find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed")
    (folder / "hooks.py").write_text(HOOKS)
    (folder / "settings.toml").write_text(SETTINGS)
    repository = Path(__file__).resolve().parent.parent
    code = f"import sys; sys.path[:0] = [{str(repository)!r}, {str(folder)!r}]; import hooks; import schemathesis.cli"
    command = [
        *(sys.executable, "-c", f"{code}; schemathesis.cli.schemathesis()"),
        *("--config-file", "settings.toml", "run", f"http://127.0.0.1:{server.port}/openapi.json"),
        *("--phases", phases, "--max-examples", str(examples), "--seed", "1", "--no-color"),
        *("--suppress-health-check", "all", "--generation-database", "none"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1500)
    told = "\n".join(line[:300] for line in done.stdout.splitlines())  # a line may be a whole image
    assert done.returncode == 0, told[-6000:] + done.stderr[-2000:]
    assert "Tested: " in done.stdout


def test_schemathesis_finds_nothing(server: Client, tmp_path: Path):
    check_with_schemathesis(server, tmp_path, phases="coverage", examples=1)


@pytest.mark.soak
def test_schemathesis_finds_nothing_for_long(server: Client, tmp_path: Path):
    check_with_schemathesis(server, tmp_path, phases="examples,coverage,fuzzing", examples=150)
