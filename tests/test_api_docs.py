"""docs/API.md: its marked blocks run against a live server, and it leaves nothing out."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mmjax.data.decode import encode_png
from mmjax.schema import Column, Schema, Target
from mmjax.serving.settings import Settings, option
from tests.live import REPOSITORY, Client, door
from tests.untrained import SHADES, add_model, picture

DOCS = (REPOSITORY / "docs" / "API.md").read_text()
README = (REPOSITORY / "README.md").read_text()
BLOCK = re.compile(r"^<!-- test: run -->\n```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IRIS = Schema(
    target=Target(column="species", task="classification", classes=("setosa", "versicolor", "virginica")),
    columns=tuple(
        Column(name=name, kind="numeric") for name in ("sepal_length", "sepal_width", "petal_length", "petal_width")
    ),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Client]]:
    """A folder with images, and a server as at the top of the page."""
    folder = tmp_path_factory.mktemp("api")
    for i, name in enumerate(("red", "blue")):  # `make setup` makes them
        (folder / "data" / "sample" / "images" / name).mkdir(parents=True)
        (folder / "data" / "sample" / "images" / name / "00.png").write_bytes(encode_png(picture(60 * i)))
    (folder / ".curlrc").write_text("silent\nshow-error\nfail-with-body\n")
    add_model(folder / "registry", "iris", IRIS)
    add_model(folder / "registry", "images", SHADES)
    with door(folder / "registry", "--model", "iris", "--model", "images") as server:
        yield folder, server


def test_every_marked_block_runs(place: tuple[Path, Client]):
    folder, server = place
    blocks = BLOCK.findall(DOCS)
    assert len(blocks) >= 6
    binaries = Path(sys.executable).parent
    env = os.environ | {
        "CURL_HOME": str(folder),
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{binaries}:{os.environ['PATH']}",
    }
    printed = []
    for language, text in blocks:
        text = text.replace("localhost:8000", f"127.0.0.1:{server.port}")
        command = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    together = "\n".join(printed)
    refused = re.findall(r"^That prints `(.*)` and the id\.$", DOCS, re.MULTILINE)
    assert len(refused) == 1
    for expected in ('"labels":["', '"probabilities":[[', *refused, "mmjax_requests_total", '"outputs":['):
        assert expected in together, expected


@pytest.mark.parametrize("text", [DOCS, README], ids=["API.md", "README.md"])
def test_the_server_is_started_as_here_and_an_alias_is_made_before_it_is_used(text: str):
    started = re.findall(r"^mmjax serve (.*?) *(?:#.*)?$", text, re.MULTILINE)
    assert started[0] == "--model iris --model images --port 8000"
    for promoted, served in re.findall(
        r"^mmjax registry promote (\w+):1\nmmjax serve .*?(\w+)@production", text, re.MULTILINE
    ):
        assert promoted == served
    assert len(re.findall("^mmjax serve .*@production", text, re.MULTILINE)) == 1


def test_the_error_that_is_shown_is_the_one_that_comes(place: tuple[Path, Client]):
    section = DOCS[DOCS.index("## Errors") :]
    ((body,),) = [
        re.findall(r"-d '(.*)'$", block, re.MULTILINE) for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    ]
    shown = json.loads(re.findall(r"```json\n(.*?)```", section, re.DOTALL)[0])
    told = place[1].ask("POST", "/predict/tabular", body, {"content-type": "application/json"}).json
    assert told | {"request_id": ""} == shown | {"request_id": ""}


def test_every_option_reason_and_path_is_told(place: tuple[Path, Client]):
    for field in msgspec.structs.fields(Settings):
        assert re.search(rf"`[^`\n]*{option(field.name)}\b", DOCS), field.name
    found = set()
    for path in (REPOSITORY / "mmjax" / "serving").glob("*.py"):
        found |= set(re.findall(r'Refused\(\s*(\d+),\s*"([a-z-]+)"', path.read_text()))
    assert len(found) > 30
    for status, reason in sorted(found - {("499", "client-left")}):
        row = rf"^\| {status} \|[^|]*`{reason}`"
        assert re.search(row, DOCS, re.MULTILINE), f"{status} {reason}: expected a line in the table of errors"
    document = json.loads(place[1].ask("GET", "/openapi.json").body)
    for path in document["paths"]:
        assert path.startswith("/v2") or f"`GET {path}`" in DOCS or f"`POST {path}`" in DOCS, path
