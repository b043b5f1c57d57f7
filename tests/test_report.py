"""report.json is plain JSON whatever went in, says what was done to the data, and is written whole; the log is JSON."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.analysis.log import configure_logging, get_logger
from mmjax.analysis.report import (
    ConfusedPair,
    ReportInput,
    build_report,
    confused_pairs,
    headline_split,
    jsonable,
    write_report,
)
from mmjax.schema import Column, ImageSpec, Schema, Target


def given_iris(**changes) -> ReportInput:
    schema = Schema(
        target=Target(column="species", task="classification", classes=("setosa", "virginica"), reason="2 texts"),
        columns=(
            Column(name="sepal", kind="numeric", reason="all numbers"),
            Column(name="colour", kind="categorical", vocabulary=("blue", "red"), reason="2 texts"),
            Column(name="id", kind="identifier", reason="all distinct"),
        ),
    )
    made = ReportInput(
        config_dict={"name": "iris", "model": {"type": "tabular", "name": "mlp", "architecture": {"dropout": 0.1}}},
        schema=schema,
        split_sizes={"train": 70, "validation": 10, "test": 20},
        class_counts={"train": {"setosa": 35, "virginica": 35}, "test": {"setosa": 10, "virginica": 10}},
        notes=("column id: left out (all distinct)",),
        decisions=({"key": "training.epochs", "value": 3, "why": "100 rows"},),
        metrics={"validation": {"accuracy": 0.9}, "test": {"accuracy": 0.95, "roc_auc": math.nan}},
        per_class={
            "test": [{"class": "setosa", "precision": np.float64(1.0), "recall": 0.9, "f1": 0.95, "support": 10}]
        },
        confusion={"test": [[9.0, 1.0], [0.0, 10.0]]},
        history=[{"val_loss": 0.5}, {"val_loss": 0.3}, {"val_loss": math.nan}],
        best_epoch=2,
        seconds={"train": 1.5},
        samples_per_second=100.0,
        parameters=123,
        versions={"mmjax": "0.1.0"},
    )
    return made._replace(**changes)


def test_report_says_what_the_model_is():
    assert build_report(given_iris())["model"] == {
        "name": "iris",
        "task": "classification",
        "target": "species",
        "target_reason": "2 texts",
        "classes": ["setosa", "virginica"],
        "positive_class": "virginica",
        "type": "tabular",
        "network": "mlp",
        "architecture": {"dropout": 0.1},
        "parameters": 123,
    }


def test_report_says_what_was_done_to_the_data():
    data = build_report(given_iris())["data"]
    assert data["rows"] == 100
    assert data["columns"][1] == {"name": "colour", "kind": "categorical", "reason": "2 texts", "categories": 2}
    assert data["notes"] == ["column id: left out (all distinct)"]
    assert data["class_counts"]["test"] == {"setosa": 10, "virginica": 10}
    assert data["image_size_px"] is None


def test_report_sums_up_the_training():
    assert build_report(given_iris())["training"] == {
        "epochs": 3,
        "best_epoch": 2,
        "first": {"val_loss": 0.5},
        "best": {"val_loss": 0.3},
        "last": {"val_loss": None},
        "seconds": {"train": 1.5},
        "samples_per_second": 100.0,
    }
    unborn = build_report(given_iris(history=[], best_epoch=0))["training"]
    assert (unborn["epochs"], unborn["first"], unborn["best"], unborn["last"]) == (0, None, None, None)


def test_regression_and_images():
    schema = Schema(
        target=Target(column="y", task="regression"), image=ImageSpec(height_px=32, width_px=48), columns=()
    )
    report = build_report(given_iris(schema=schema, class_counts=None, per_class={}, confusion={}))
    assert report["model"]["positive_class"] is None
    assert report["data"]["image_size_px"] == [32, 48]
    assert report["data"]["class_counts"] is None


def test_undefined_metrics_are_null_and_the_file_is_strict_json(tmp_path):
    path = tmp_path / "report.json"
    report = build_report(given_iris(notes=("bad file \udcff.jpg", "Blüte")))
    write_report(path, report)
    found = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda text: pytest.fail(text))
    assert found == report
    assert found["metrics"]["test"] == {"accuracy": 0.95, "roc_auc": None}
    assert "Blüte" in path.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(plain)
@settings(max_examples=50, deadline=None)
def test_jsonable_is_json_and_idempotent(value):
    made = jsonable(value)
    assert jsonable(made) == made
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_jsonable_takes_numpy_and_refuses_objects():
    assert jsonable({"a": np.float32(0.5), "b": np.arange(2), 3: np.bool_(True)}) == {"a": 0.5, "b": [0, 1], "3": True}
    with pytest.raises(TypeError, match="report: expected plain values, got object"):
        jsonable({"a": object()})


@pytest.mark.parametrize(
    ("metrics", "split"),
    [
        ({"train": {"a": 1.0}, "validation": {"a": 1.0}, "test": {"a": 1.0}}, "test"),
        ({"validation": {"a": 1.0}, "test": {}}, "validation"),
        ({"train": {"a": 1.0}}, "train"),
        ({"other.csv": {"a": 1.0}}, "other.csv"),
        ({}, None),
    ],
)
def test_headline_split(metrics, split):
    assert headline_split({"metrics": metrics}) == split


def test_confused_pairs_are_sorted_and_leave_out_what_is_right():
    matrix = [[5.0, 2.0, 0.0], [1.0, 0.0, 3.0], [0.0, 2.0, 8.0]]
    assert confused_pairs(matrix, ["a", "b", "c"], 3) == [
        ConfusedPair("b", "c", 3.0, 0.75),
        ConfusedPair("a", "b", 2.0, 2 / 7),
        ConfusedPair("c", "b", 2.0, 0.2),
    ]
    assert confused_pairs([[3.0, 0.0], [0.0, 0.0]], ["a", "b"], 3) == []


@pytest.fixture
def restore_logging():
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("restore_logging")
def test_log_lines_are_json_with_utc_time_and_level(tmp_path):
    configure_logging(tmp_path)
    log = get_logger()
    log.info("split", rows=3, path=tmp_path)
    log.debug("not kept")
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("failed")
    first, second = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert list(first) == ["timestamp", "level", "event", "rows", "path"]
    assert first["timestamp"].endswith("Z")
    assert (first["level"], first["event"], first["rows"], first["path"]) == ("info", "split", 3, str(tmp_path))
    assert second["level"] == "error"
    assert "ValueError: boom" in second["exception"]


@pytest.mark.usefixtures("restore_logging")
def test_without_a_run_only_warnings_are_written_and_never_to_stdout(capsys):
    log = get_logger()
    log.info("quiet")
    log.warning("loud", rows=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["event"] == "loud"


@pytest.mark.usefixtures("restore_logging")
def test_a_logger_made_early_obeys_a_later_configuration(tmp_path, capsys):
    log = get_logger()
    configure_logging(tmp_path)
    log.info("kept")
    assert json.loads((tmp_path / "log.jsonl").read_text())["event"] == "kept"
    assert capsys.readouterr().err == ""


def test_reports_and_logs_load_neither_jax_nor_rich_nor_structlog():
    code = (
        "import sys, mmjax.analysis.report, mmjax.analysis.card, mmjax.analysis.present, mmjax.analysis.log, "
        "mmjax.training.callbacks; print(sorted({'jax', 'rich', 'structlog', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
