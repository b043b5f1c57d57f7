"""The sample data: there, learnable, and the same bytes on every machine."""

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sklearn.datasets import load_iris

from mmjax.config import ImageData
from mmjax.data.decode import decode_images
from mmjax.data.images import read_images
from mmjax.schema import ImageSpec

DATA = Path(__file__).resolve().parent.parent / "data"
IMAGES_SHA256 = "2646f704c68a6c37681889a664c7d8345e3649c2228a99caf4cc814f5c8e83b6"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_sample", DATA / "make_sample.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.glob("*/*.png")):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def test_iris_is_the_one_of_scikit_learn():
    header, *rows = (DATA / "sample/iris.csv").read_text().splitlines()
    assert header == "sepal_length,sepal_width,petal_length,petal_width,species"
    values = np.array([[float(cell) for cell in row.split(",")[:4]] for row in rows])
    iris = load_iris()
    np.testing.assert_array_equal(values, iris.data)
    assert [row.split(",")[4] for row in rows] == [iris.target_names[label] for label in iris.target]


def test_images_are_the_same_bytes_everywhere(script, tmp_path):
    assert script.write_images(tmp_path) == 30
    assert digest(tmp_path) == IMAGES_SHA256


def test_what_is_right_is_left_alone_and_what_is_not_is_mended(script, tmp_path):
    script.write_images(tmp_path)
    whole = digest(tmp_path)
    assert script.write_images(tmp_path) == 0
    (tmp_path / "red/03.png").write_bytes(b"spoilt")
    (tmp_path / "blue/00.png").unlink()
    assert script.write_images(tmp_path) == 2
    assert digest(tmp_path) == whole


def test_images_are_a_data_set_whose_colour_tells_the_class(script, tmp_path):
    script.write_images(tmp_path)
    source = read_images(ImageData(path=str(tmp_path)))
    images, bad = decode_images(ImageSpec(height_px=64, width_px=64), source.columns["image"])
    assert not bad
    assert images.shape == (30, 64, 64, 3)
    brightest = images.astype(int).mean((1, 2)).argmax(1)
    assert [("red", "green", "blue")[channel] for channel in brightest] == source.columns["label"].tolist()
    assert len({image.tobytes() for image in images}) == 30


def test_a_missing_or_damaged_table_is_said(script, tmp_path):
    path = tmp_path / "iris.csv"
    assert script.check_iris(path) == f"{path}: not there; restore it with git"
    path.write_text("sepal_length\n")
    assert "expected the header" in script.check_iris(path)
    assert script.check_iris(DATA / "sample/iris.csv") is None


def test_the_command(script, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "SAMPLE", tmp_path)
    assert script.main() == 3
    assert "not there" in capsys.readouterr().err
    (tmp_path / "iris.csv").write_bytes((DATA / "sample/iris.csv").read_bytes())
    assert script.main() == 0
    assert capsys.readouterr().out == "sample data ready: iris.csv (150 rows), images (30 files, 30 written)\n"
