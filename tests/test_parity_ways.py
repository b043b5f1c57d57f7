"""Verify as a user runs it: a model trained by its door, a server process, images in every form, a server that lies."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmjax.artifact.bundle import Bundle, load_bundle
from mmjax.artifact.parity import Answers, compare, compare_paths, read_predictions, training_bucket
from mmjax.artifact.predictor import bundle_predictor
from mmjax.artifact.sample import golden_sample, read_sample, write_source
from mmjax.data.decode import encode_png
from mmjax.errors import BundleError, ConfigError, DataError
from mmjax.predict import predict_file
from mmjax.registry import command
from mmjax.schema import ImageSpec, Schema, Target
from mmjax.serving.client import connected
from mmjax.serving.parity import compare_live, compare_server
from mmjax.train import fit
from mmjax.training.scoring import IMAGE_ROWS, LARGEST_BUCKET, TABLE_ROWS
from tests.doors import TABLE_YAML, door, image_config, process, start, write_csv, write_table

WAYS = ["training path", "bundle, row by row", "batch door", "typed cells, encoded", "bundle, typed cells"]
SERVED = ["server, in process", "live server"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `mmjax train` has registered tiny:1."""
    home = tmp_path_factory.mktemp("parity")
    write_table(home / "table.csv")
    (home / "tiny.yaml").write_text("name: tiny\n" + TABLE_YAML)
    trained = process("train", "--config", "tiny.yaml", folder=home)
    assert trained.code == 0, trained.err
    return home


# ---- what counts as a difference


def answers(*rows: list[float], labels: list[str] | None = None) -> Answers:
    return Answers(np.array(rows, np.float64), None if labels is None else np.array(labels, dtype=object))


NAN, INF = float("nan"), float("inf")
EQUAL = answers([0.6, 0.4], [0.2, 0.8], labels=["a", "b"])


@pytest.mark.parametrize(
    ("got", "tolerance", "difference", "row", "labels", "agrees"),
    [
        (EQUAL, 0.0, 0.0, 0, 0, True),
        (answers([0.6, 0.4], [0.3, 0.7], labels=["a", "b"]), 0.01, 0.1, 2, 0, False),
        (answers([0.6, 0.4], [0.3, 0.7], labels=["a", "b"]), 0.2, 0.1, 2, 0, True),
        (answers([0.6, 0.4], [0.2, 0.8], labels=["a", "a"]), 0.0, 0.0, 0, 1, False),
        (answers([NAN, 0.4], [0.2, 0.8], labels=["a", "b"]), 0.5, INF, 1, 0, False),
        (answers([INF, 0.4], [0.2, 0.8], labels=["a", "b"]), 0.5, INF, 1, 0, False),
        (answers([0.6, 0.4], labels=["a"]), 0.5, INF, 0, None, False),
    ],
    ids=["equal", "far", "near", "label", "nan", "infinite", "rows"],
)
def test_what_counts_as_a_difference(got, tolerance, difference, row, labels, agrees):
    found = compare("got", got, "expected", EQUAL, tolerance=tolerance, why="a test")
    assert (found.difference, found.row, found.labels, found.agrees) == (pytest.approx(difference), row, labels, agrees)


def test_a_tie_within_rounding_may_fall_either_way_and_no_number_equals_itself():
    tied = answers([0.5, 0.4999999], [NAN, NAN], labels=["a", "a"])
    other = answers([0.4999999, 0.5], [NAN, NAN], labels=["b", "b"])
    assert compare("got", other, "expected", tied, tolerance=1e-6, why="").agrees
    exact = compare("got", other, "expected", tied, tolerance=0.0, why="")
    assert (exact.labels, exact.agrees, exact.row) == (1, False, 1)


def test_values_are_compared_relative_to_their_size_without_the_offset():
    expected = answers([1e9 + 2.0], [1e9 - 4.0])
    found = compare("got", answers([1e9 + 2.0], [1e9 - 4.4]), "expected", expected, tolerance=0.01, why="", offset=1e9)
    assert (found.difference, found.labels, found.agrees) == (pytest.approx(0.1), None, False)
    told = (
        "got: expected the answers of 'expected' within 0.01 (), got a difference of 0.1, the largest in row 2; do not"
    )
    assert found.problem.startswith(told)


def test_the_bucket_is_that_of_training():
    target = Target(column="y", task="regression")
    table, images = Schema(target=target), Schema(target=target, image=ImageSpec(height_px=8, width_px=8))
    sizes = {"train": 300, "validation": 20, "test": 9000}
    assert training_bucket({"data": {"split_sizes": sizes}}, table) == LARGEST_BUCKET
    assert training_bucket({"data": {"split_sizes": sizes | {"validation": 9000}}}, table) == TABLE_ROWS
    assert training_bucket({"data": {"split_sizes": sizes}}, images) == 32
    assert training_bucket({"data": {"split_sizes": sizes | {"validation": 0}}}, images) == IMAGE_ROWS
    assert training_bucket({}, images) == IMAGE_ROWS


# ---- the command


@pytest.fixture(scope="module")
def url(home: Path, shades: Bundle) -> Iterator[str]:
    """A server process of both models."""
    with start("serve", "--model", "tiny", "--model", "shades", "--port", "0", folder=home) as server:
        assert server.stdout is not None
        found = next(match for line in server.stdout if (match := re.search(r" on (http://\S+)$", line.rstrip())))
        yield found[1]
        server.terminate()
        server.communicate(timeout=30)


def test_verify_asks_every_way_and_a_live_server(home: Path, url: str, capsys, monkeypatch):
    monkeypatch.chdir(home)
    ended = door(capsys, command, "verify", "tiny", "--data", "table.csv", "--rows", "30", "--url", url, "--json")
    assert ended.code == 0, ended.err
    found = {way["path"]: way for way in ended.document["parity"]}
    assert list(found) == WAYS + SERVED
    assert {way["rows"] for way in found.values()} == {30}
    assert all(way["agrees"] and not way["labels"] for way in found.values())
    exact = [way for way in found if way not in ("training path", "bundle, row by row", "live server")]
    assert {found[way]["difference"] for way in exact} == {found[way]["tolerance"] for way in exact} == {0.0}
    assert max(way["difference"] for way in found.values()) < 1e-6
    assert "answers to the first 30 rows of table.csv:" in ended.err
    assert "largest difference: " in ended.err


class Liar(BaseHTTPRequestHandler):
    """A server of this very model, by its word, that finds all classes equally likely."""

    protocol_version = "HTTP/1.1"
    digest = ""

    def do_GET(self) -> None:
        model = {"name": "tiny", "version": 1, "digest": self.digest}
        health = {"system": {"device": {"platform": "cpu"}}}
        self.reply({"/models": {"models": [model]}, "/health": health}.get(self.path, {}))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert (asked["model"], asked["version"]) == ("tiny", 1)
        self.reply({"predictions": [0], "labels": ["a"], "probabilities": [[1 / 3, 1 / 3, 1 / 3]]})

    def reply(self, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def liar(home: Path) -> Iterator[tuple[type[Liar], str]]:
    class Told(Liar):
        digest = load_bundle(home / "registry" / "tiny" / "1").digest

    with HTTPServer(("127.0.0.1", 0), Told) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Told, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_verify_refuses_a_server_that_answers_otherwise_or_serves_another(home: Path, liar, capsys, monkeypatch):
    monkeypatch.chdir(home)
    handler, url = liar
    ended = door(capsys, command, "verify", "tiny", "--url", url, "--json")
    assert (ended.code, ended.document["error"]["type"]) == (5, "bundle")
    (problem,) = ended.document["error"]["problems"]
    told = "tiny:1: live server: expected the answers of 'bundle, row by row' within 1e-05 (another process on cpu: f32"
    assert problem.startswith(told)
    assert re.search(r"got a difference of 0\.\d+, the largest in row \d+ and \d rows of another class;", problem)
    assert re.search(r"live server +bundle, row by row +8 +0\.\d+ +1e-05 +\d +NO", ended.err)
    handler.digest = "0" * 64
    other = door(capsys, command, "verify", "tiny", "--url", url)
    assert other.code == 5
    assert f"--url {url}: expected a server of the model with digest " in other.err
    assert ", got tiny:1 (000000000000)" in other.err


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("ftp://x", "--url ftp://x: expected http://host:port, got no such address"),
        ("http://[::1", "expected http://host:port"),
        ("http://127.0.0.1:99999", "expected http://host:port"),
        ("http://127.0.0.1:9", "--url http://127.0.0.1:9: expected a server that answers, got: "),
    ],
)
def test_a_url_of_no_server_is_told(url: str, told: str):
    with pytest.raises(ConfigError, match=re.escape(told)), connected(url, ""):
        raise AssertionError("nobody is there")


def test_rows_that_cannot_be_asked_are_told_by_line(home: Path, tmp_path: Path):
    contents = load_bundle(home / "registry" / "tiny" / "1").contents
    rows = [("r1", "1", "red", "yes", "2024-01-01", "a"), ("r2", "huge", "red", "yes", "2024-01-01", "a")]
    bad = write_csv(tmp_path / "bad.csv", ("id", "size", "colour", "open", "when", "kind"), rows)
    with pytest.raises(DataError, match=r"bad.csv:3: .*'huge'"):
        read_sample(contents.config, contents.schema, bad, rows=10)
    golden = contents.golden._replace(columns={name: [] for name in contents.golden.columns})
    with pytest.raises(BundleError, match="golden rows: expected at least one"):
        golden_sample(contents._replace(golden=golden))


# ---- images


def jpeg(pixels: np.ndarray, *, orientation: int = 1) -> bytes:
    """A JPEG much larger than the model's images, lying on its side where `orientation` says so."""
    buffer, exif = BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of PNGs, one of them transparent, and of JPEGs, one of them lying on its side."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in ("dark", "light"):
        (folder / name).mkdir()
        for i in range(6):
            pixels = rng.integers(0, 256, (40 + i, 56, 4 if i == 0 else 3), np.uint8)
            photo = i > 3
            data = jpeg(pixels, orientation=6 if i == 4 else 1) if photo else encode_png(pixels)
            (folder / name / f"{i}.{'jpg' if photo else 'png'}").write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def shades(home: Path, pictures: Path) -> Bundle:
    """The bundle of a model of these images, registered beside the other."""
    config = image_config(pictures, image_size=[8, 8])
    return load_bundle(fit(config, runs_dir=home / "runs", registry=home / "registry").bundle)


@pytest.mark.parametrize("golden", [False, True])
def test_images_agree_as_paths_bytes_and_pixels(shades: Bundle, pictures: Path, url: str, tmp_path: Path, golden: bool):
    contents, predictor = shades.contents, bundle_predictor(shades)
    few = read_sample(contents.config, contents.schema, pictures, rows=11)
    sample = golden_sample(contents) if golden else few
    predict_file(predictor, write_source(sample, contents.config, tmp_path), tmp_path / "out.csv")
    printed = read_predictions(tmp_path / "out.csv", contents.schema.target)
    found = compare_paths(predictor, sample, door=printed, bucket=8, allowed=1e-6, scratch=tmp_path)
    found += [compare_server(predictor, sample), compare_live(contents, predictor, sample, url)]
    assert [way.path for way in found][3:] == ["images as paths", "images as bytes", "images as pixels", *SERVED]
    assert {way.rows for way in found} == {8 if golden else 11}
    assert [way.problem for way in found if not way.agrees] == []
