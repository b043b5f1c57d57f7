"""The predictor: a bundle proves itself at every load, answers anywhere, and takes rows in any shape or says why."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

import mmjax
from mmjax.artifact.bundle import load_bundle, save_bundle
from mmjax.artifact.models import load_model, locate_model
from mmjax.artifact.predictor import (
    Predictor,
    as_columns,
    golden_problems,
    largest_difference,
    load_predictor,
    make_golden,
)
from mmjax.artifact.registry import register
from mmjax.errors import BundleError, DataError
from mmjax.registry import command as registry_command
from mmjax.train import FitResult, fit
from mmjax.training.scoring import LARGEST_BUCKET
from tests.doors import HEADER, REPOSITORY, door, table_config, table_rows, write_table


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def result(home: Path) -> FitResult:
    """A model of a table, registered as tiny:1."""
    return fit(table_config(write_table(home / "table.csv")), runs_dir=home / "runs", registry=home / "registry")


@pytest.fixture(scope="module")
def predictor(result: FitResult) -> Predictor:
    return load_predictor(result.bundle)


def probabilities(predictor: Predictor, given) -> np.ndarray:
    found = predictor.predict(given).probabilities
    assert found is not None
    return found


def rows(count: int, *, seed: int = 1) -> list[dict[str, str]]:
    return [dict(zip(HEADER[1:5], row[1:5], strict=True)) for row in table_rows(count, seed=seed)]


# ---- what a bundle proves


@pytest.fixture(scope="module")
def drifted(home: Path, result: FitResult) -> Path:
    """A sound bundle in every digest, but of a network with the signs of one layer flipped."""
    contents = load_bundle(result.bundle).contents
    model = contents.states["model"]
    head = {"kernel": -np.asarray(model["params"]["head"]["kernel"]), "bias": model["params"]["head"]["bias"]}
    flipped = model | {"params": model["params"] | {"head": head}}
    save_bundle(home / "drifted", contents._replace(states=contents.states | {"model": flipped}))
    return home / "drifted"


def test_other_weights_are_told_by_the_golden_rows(drifted: Path) -> None:
    with pytest.raises(BundleError) as caught:
        load_predictor(drifted)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{drifted}: golden rows: expected probabilities within ")
    assert "; the arrays, the data path or this machine's numerics changed; retrain or restore" in problem
    assert len(golden_problems(drifted)) == 1


def test_the_registry_refuses_a_model_that_drifted(drifted: Path, home: Path, capsys) -> None:
    root = home / "other-registry"
    register(root, "tiny", drifted, run_id="drifted")
    for action in ("verify", "promote"):
        ended = door(capsys, registry_command, action, "tiny:1", "--registry", root, "--json")
        assert (ended.code, ended.document["error"]["type"]) == (5, "bundle")
        assert (
            "golden rows: expected probabilities within 1e-05 of what was saved" in ended.document["error"]["message"]
        )


def test_a_sound_model_is_verified_and_promoted(result: FitResult, home: Path, capsys) -> None:
    assert golden_problems(result.bundle) == []
    for action in ("verify", "promote"):
        assert door(capsys, registry_command, action, "tiny:1", "--registry", home / "registry").code == 0
    assert load_model("tiny@production", registry=home / "registry").digest == load_bundle(result.bundle).digest


def test_golden_rows_hold_features_only(result: FitResult) -> None:
    golden = load_bundle(result.bundle).contents.golden
    assert set(golden.columns) == {"size", "colour", "open", "when"}
    assert {len(cells) for cells in golden.columns.values()} == {8}
    assert golden.tolerance["cpu/float32"] >= 1e-5
    assert all(value >= 1e-5 for value in golden.tolerance.values())


def test_a_bundle_that_is_moved_still_answers(
    result: FitResult, predictor: Predictor, tmp_path: Path, monkeypatch
) -> None:
    shutil.copytree(result.bundle, tmp_path / "elsewhere" / "bundle")
    monkeypatch.chdir(tmp_path)
    moved = load_model("elsewhere/bundle")
    expected, found = predictor.predict(rows(9)), moved.predict(rows(9))
    assert found.prediction.tolist() == expected.prediction.tolist()
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    assert locate_model(Path("elsewhere/bundle")) == (Path("elsewhere/bundle"), None)


REFERENCES = [
    ("no-bundle/here", "no-bundle/here: expected the folder of a bundle, got nothing there; name one, or a registered"),
    ("tiny:2", "tiny has no version 2; there are 1"),
    ("tinny", r"no model 'tinny'; there are tiny; did you mean 'tiny'\?"),
    ("tiny:x", "'tiny:x': expected NAME, NAME:VERSION or NAME@ALIAS"),
]


@pytest.mark.parametrize(("reference", "message"), REFERENCES)
@pytest.mark.usefixtures("result")
def test_a_model_that_is_not_there(home: Path, reference: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        load_model(reference, registry=home / "registry")


LOAD = """
import csv, json, sys
import mmjax
model = mmjax.load_model(sys.argv[1])
rows = [{"size": "0.5", "colour": "red", "open": "yes", "when": ""}]
print(json.dumps([model.predict(rows).prediction[0], sorted({name.split(".")[0] for name in sys.modules})]))
"""


def test_answering_loads_no_training(result: FitResult, predictor: Predictor) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(result.bundle)],
        env=env | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer, loaded = json.loads(done.stdout)
    assert answer == predictor.predict([{"size": 0.5, "colour": "red", "open": True, "when": None}]).prediction[0]
    assert "jax" in loaded
    assert not set(loaded) & {"pandas", "grain", "optax", "orbax", "sklearn", "scipy", "torch", "litestar"}


# ---- rows in any shape


def test_rows_lists_and_arrays_get_one_answer(predictor: Predictor) -> None:
    given = rows(20)
    expected = predictor.predict(given)
    lists = {name: [row[name] for row in given] for name in given[0]}
    arrays = {name: np.array(cells, object) for name, cells in lists.items()}
    wider = {"kind": ["?"] * 20, **lists, "id": list(range(20))}
    for other in (lists, arrays, wider, tuple(given)):
        found = predictor.predict(other)
        assert found.prediction.tolist() == expected.prediction.tolist()
        np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    assert expected.classes == ("a", "b", "c")
    assert expected.probabilities is not None
    np.testing.assert_allclose(expected.probabilities.sum(axis=1), 1.0, atol=1e-6)


def test_values_answer_as_their_texts_do(predictor: Predictor) -> None:
    texts = [{"size": "1.5", "colour": "red", "open": "no", "when": "2024-03-01"}, {**rows(1)[0], "size": "NA"}]
    values = [{**texts[0], "size": 1.5, "open": False}, {**texts[1], "size": float("nan")}]
    a, b = predictor.predict(texts), predictor.predict(values)
    np.testing.assert_array_equal(a.probabilities, b.probabilities)


def test_the_number_of_rows_never_changes_an_answer(predictor: Predictor) -> None:
    given = rows(LARGEST_BUCKET + 3)
    together = probabilities(predictor, given)
    for count in (1, 2, 7, LARGEST_BUCKET):
        some = probabilities(predictor, given[:count])
        np.testing.assert_allclose(some, together[:count], rtol=0, atol=1e-6)
    last = probabilities(predictor, given[-1:])
    np.testing.assert_allclose(last, together[-1:], rtol=0, atol=1e-6)


def test_many_rows_and_the_golden_ones_are_one_program(result: FitResult) -> None:
    loaded = load_predictor(result.bundle)
    loaded.predict(rows(2 * LARGEST_BUCKET + 3))
    assert loaded.forward._cache_size() == 1


def test_a_bad_cell_is_named_by_its_row_however_far_down(predictor: Predictor) -> None:
    given = [dict(row) for row in rows(600)]
    given[0]["when"], given[598]["size"] = "soon", "abc"
    with pytest.raises(DataError) as caught:
        predictor.predict(given)
    assert caught.value.problems == (
        "column 'size', row 599: expected a number within ±3.4e38, got 'abc'",
        "column 'when', row 1: expected a date (ISO 8601), got 'soon'",
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "rows: expected at least one row, got none"),
        ({}, "rows: expected at least one row, got none"),
        ([{}], "rows: expected column 'size', got none of that name; add it"),
        ({"size": [], "colour": [], "open": [], "when": []}, "expected at least one row, got none"),
        (
            ["size"],
            r"rows: expected a list of dicts, or a dict of lists, by column name, or a pandas DataFrame, got list",
        ),
        (3, "rows: expected a list of dicts, or a dict of lists, by column name, or a pandas DataFrame, got int"),
        (
            {"size": 1.0, "colour": "red"},
            r"column 'size': expected a list or an array of cells, got float; to ask for one",
        ),
        ({"size": [1.0], "colour": "red"}, r"column 'colour': expected a list .* got str; .* put the row in a list"),
        ({"size": {0: 1.0}, "colour": ["red"]}, r"column 'size': expected a list or an array of cells, got dict"),
        (pd.DataFrame({"size": [1.0]}), "rows: expected column 'colour', got none of that name"),
        (pd.DataFrame({2: [1.0]}), "data frame: expected names of columns that are texts, got 2; rename it"),
        (pd.DataFrame([[1, 2]], columns=["size", "size"]), "data frame: expected each column once, got 'size' again"),
        ([{"size": 1, "colour": "red", "open": "no"}], "rows: expected column 'when', got none of that name"),
        (
            [{**rows(1)[0], "colours": "red"}],
            r"rows: unknown column 'colours'; rename or remove it; did you mean 'colour'\?",
        ),
        ([rows(1)[0], {"size": 1}], "row 2: expected a value for 'colour' as in other rows, got none"),
        ({"size": [1], "colour": [1, 2], "open": [1], "when": [1]}, "expected columns of equal length"),
    ],
)
def test_rows_that_are_none_are_refused(predictor: Predictor, given, message: str) -> None:
    with pytest.raises(DataError, match=message):
        predictor.predict(given)


def test_a_data_frame_gets_the_answers_of_its_file(home: Path, predictor: Predictor) -> None:
    """Whatever types pandas found or was told: texts and categories, dates, whole numbers with gaps."""
    texts = pd.read_csv(home / "table.csv", dtype=str, keep_default_na=False)
    expected = probabilities(predictor, texts.to_dict("list"))
    dates, told = pd.to_datetime(texts["when"]), texts["colour"].astype("category")
    for frame in (
        texts,
        pd.read_csv(home / "table.csv", na_values="?"),
        texts.assign(when=dates, colour=told, open=texts["open"] == "yes"),
        texts.assign(size=pd.to_numeric(texts["size"], errors="coerce").astype("Float64")),
        texts.set_index(texts.index[::-1]),
    ):
        np.testing.assert_allclose(probabilities(predictor, frame), expected, rtol=1e-6)
    gaps = texts.astype({"colour": "category"}).assign(when=dates.where(dates.dt.day > 9))
    gaps.loc[::3, ["size", "colour", "open"]] = None
    plain = gaps.astype(object).where(gaps.notna(), None).to_dict("list")
    found = predictor.predict(gaps)
    np.testing.assert_allclose(found.probabilities, probabilities(predictor, plain), rtol=1e-6)
    assert found.warnings == ()


def test_cells_may_hold_images_of_one_size() -> None:
    found = as_columns({"image": [np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)]})["image"]
    assert (found.shape, found.dtype) == ((2,), object)


def test_labels_come_back_with_the_scores(home: Path, predictor: Predictor) -> None:
    with (home / "table.csv").open() as file:
        given = as_columns(list(csv.DictReader(file)))
    scores, batch = predictor.score_labelled(given)
    assert [predictor.schema.target.classes[i] for i in batch["label"]] == given["kind"].tolist()
    assert set(batch) == {"label"}
    np.testing.assert_array_equal(scores.probabilities, predictor.score(given).probabilities)


def test_differences_are_relative_to_the_size_of_answers() -> None:
    one = np.array([[1.0, -200.0]], np.float32)
    assert largest_difference(one, one + 0.5) == pytest.approx(0.0025)
    assert largest_difference(one, np.array([[1.0, np.nan]], np.float32)) == np.inf
    assert largest_difference(one, one[:, :1]) == np.inf
    assert largest_difference(np.zeros((2, 2), np.float32), np.full((2, 2), 0.1, np.float32)) == pytest.approx(0.1)


def test_golden_answers_are_those_of_f32_whatever_the_compute_type(predictor: Predictor) -> None:
    given = as_columns(rows(4))
    golden = make_golden(predictor, given)
    np.testing.assert_allclose(golden.expected["probabilities"], probabilities(predictor, given), atol=1e-5)
    assert jax.config.jax_default_matmul_precision is None


def test_a_predictor_tells_what_it_is_in_a_line(predictor: Predictor) -> None:
    told = repr(predictor)
    assert "\n" not in told
    assert len(told) < 200
    for part in (predictor.schema.target.column, "4 column(s)", "parameters"):
        assert part in told
    answered = predictor.predict(as_columns(rows(3)))
    told = repr(answered)
    assert told.startswith(f"Predictions(3 row(s), classes {answered.classes[0]!r}")
    assert "; prediction, probabilities" in told
    assert len(told) < 200
    assert repr(answered._replace(warnings=("w",))).count("1 warning(s)") == 1


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (
            lambda: mmjax.fit("c.yaml"),
            r"fit: expected a Config, got the path 'c.yaml'; call fit\(mmjax.load_config\('c.y",
        ),
        (
            lambda: mmjax.fit({"name": "a"}),
            r"fit: expected a Config, got dict; call fit\(mmjax.config_load.config_from",
        ),
        (lambda: mmjax.fit(None), r"fit: expected a Config, got NoneType; call fit\(mmjax.load_config\('config.yaml'"),
        (lambda: mmjax.load_config({"name": "a"}), r"load_config: expected the path of a YAML file, got dict; of a d"),
        (lambda: mmjax.load_model(3), r"model: expected the name of a registered model, or a bundle's folder, got int"),
        (lambda: mmjax.evaluate_model("a", pd.DataFrame()), r"data: expected the path of a CSV.*frame.to_csv"),
        (lambda: mmjax.evaluate_model("a", None), r"data: expected the path of a CSV.*got NoneType; give its path"),
    ],
)
def test_python_doors_say_what_they_expect(ask: Callable[[], Any], told: str) -> None:
    with pytest.raises(mmjax.MmjaxError, match=told):
        ask()
