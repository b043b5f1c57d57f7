"""Runs at the edge of what data and config allow: each ends well or is refused in words, never by a traceback."""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mmjax.artifact.bundle import load_bundle
from mmjax.artifact.predictor import load_predictor
from mmjax.config import Config
from mmjax.config_load import config_from_dict
from mmjax.data.prepare import prepare
from mmjax.errors import ConfigError, DataError
from mmjax.evaluate import evaluate_model
from mmjax.parts import build_parts
from mmjax.recipe import resolve
from mmjax.train import FitResult, fit
from mmjax.training.setup import set_up
from tests.rough import roughly

ROWS = 60


def write_csv(path: Path, header: str, rows: list[tuple[Any, ...]]) -> Path:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def two_classes(path: Path, *, test_rows: int = 10, weight_of_test: int = 1, weight_of_train: int = 1) -> Path:
    """Rows of the classes a and b by the sign of x, dealt by the column `part`, the last ones to test."""
    x = np.random.default_rng(0).normal(size=ROWS)
    parts = ["train"] * 40 + ["val"] * (20 - test_rows) + ["test"] * test_rows
    weights = [{"train": weight_of_train, "val": 1, "test": weight_of_test}[part] for part in parts]
    rows = [(f"{v:.4f}", "ab"[int(v > 0)], p, w) for v, p, w in zip(x, parts, weights, strict=True)]
    return write_csv(path, "x,y,part,w", rows)


def config_of(path: Path, *, training: dict[str, Any], **tabular: Any) -> Config:
    content = {
        "name": "edge",
        "data": {"tabular": {"path": str(path), "target_column": "y", **tabular}},
        "model": {"architecture": {"hidden_layers": [4]}},
        "training": {"epochs": 2, "batch_size": 16, **training},
    }
    if ",part," in path.read_text().partition("\n")[0]:
        content["split"] = {"strategy": "column", "column": "part"}
    return config_from_dict(content, "test")


def run(config: Config, home: Path) -> FitResult:
    with roughly():
        return fit(config, run_dir=home / "run", registry=None)


def test_a_metric_that_is_undefined_is_kept_as_nan(tmp_path: Path) -> None:
    result = run(config_of(two_classes(tmp_path / "t.csv", test_rows=1), training={}), tmp_path)
    assert math.isnan(result.metrics["test"]["roc_auc"])  # one row has one class
    assert math.isnan(load_bundle(result.bundle).contents.metrics["test"]["roc_auc"])
    assert json.loads((result.run_dir / "run.json").read_text())["metrics"]["test"]["roc_auc"] is None


def test_test_rows_that_weigh_nothing_have_no_metrics(tmp_path: Path) -> None:
    table = two_classes(tmp_path / "t.csv", weight_of_test=0)
    result = run(config_of(table, training={}, weight_column="w"), tmp_path)
    assert math.isnan(result.metrics["test"]["accuracy"])
    assert result.metrics["validation"]["accuracy"] >= 0.0
    assert "Rows count as the column w weighs them" in (result.bundle / "card.md").read_text()


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"early_stopping": {"monitor": "val_top_3_accuracy"}}, "got val_top_3_accuracy"),
        ({"early_stopping": {"monitor": "train_rmse"}}, "monitor: expected train_X with X one of loss, accuracy, "),
        ({"accumulate_steps": 5}, "training.accumulate_steps: expected at most 4, the batches of the whole run, got 5"),
    ],
)
def test_what_only_the_data_can_refuse_is_refused_before_training(
    tmp_path: Path, training: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(config_of(two_classes(tmp_path / "t.csv"), training=training), tmp_path)
    assert message in str(caught.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_training_rows_that_weigh_nothing_are_refused(tmp_path: Path) -> None:
    table = two_classes(tmp_path / "t.csv", weight_of_train=0)
    with pytest.raises(DataError, match="weight_column: expected a weight above 0 among the training rows"):
        run(config_of(table, training={}, weight_column="w"), tmp_path)


def test_validation_that_got_no_row_cannot_be_monitored(tmp_path: Path) -> None:
    config = config_of(two_classes(tmp_path / "t.csv"), training={"early_stopping": {"monitor": "val_loss"}})
    prepared = prepare(config)
    prepared = prepared._replace(split=prepared.split._replace(validation=np.zeros(0, np.int64)))
    config, _ = resolve(config, prepared.schema, train_rows=40, validation_rows=0)
    with pytest.raises(ConfigError, match="monitor: expected train_X, as there are no validation rows"):
        set_up(config, prepared, build_parts(config, prepared.schema))


def far_numbers(path: Path) -> Path:
    """A number that differs by 30 or so around 1.7e9, where f32 knows only every 128th: seconds since 1970."""
    x = np.random.default_rng(0).normal(size=200)
    return write_csv(path, "x,y", [(f"{v:.4f}", f"{1.7e9 + 30 * v:.3f}") for v in x])


def test_a_target_far_from_zero_keeps_its_digits(tmp_path: Path) -> None:
    table = far_numbers(tmp_path / "t.csv")
    config = config_of(table, training={"epochs": 150, "learning_rate": 0.01})
    result = fit(config, run_dir=tmp_path / "run", registry=None)
    assert 0.9 < result.metrics["test"]["r2"] < 1.0
    assert 0.1 < result.metrics["test"]["rmse"] < 10.0
    assert result.metrics["test"]["mape"] < 1e-7
    low, high = load_predictor(result.bundle).predict([{"x": -1.0}, {"x": 1.0}]).prediction - 1.7e9
    assert (low, high) == (pytest.approx(-30, abs=10), pytest.approx(30, abs=10))
    again = evaluate_model(result.predictor, table)
    assert again.metrics["rmse"] == pytest.approx(result.metrics["train"]["rmse"], rel=0.5)


def test_a_class_that_no_training_row_has_is_named(tmp_path: Path) -> None:
    table = two_classes(tmp_path / "t.csv")
    table.write_text(table.read_text() + "0.5,z,test,1\n")
    found = prepare(config_of(table, training={}))
    assert "split: classes without a training row, which cannot be learnt: z" in found.notes
    assert not any("cannot be learnt" in note for note in prepare(config_of(two_classes(table), training={})).notes)


@pytest.mark.parametrize("seed", range(4))
def test_validation_rows_cut_from_given_training_rows_leave_every_class_there(tmp_path: Path, seed: int) -> None:
    rows = [(i % 7 + 0.5, "ab"[i] if i < 2 else "c", "train" if i < 24 else "test", 1) for i in range(30)]
    config = config_of(write_csv(tmp_path / "t.csv", "x,y,part,w", rows), training={})
    found = prepare(msgspec.structs.replace(config, seed=seed))
    assert set(found.batch["label"][found.split.train]) == {0, 1, 2}
    assert len(found.split.validation) == 3


def test_the_learning_rate_that_is_told_is_the_one_that_was_used(tmp_path: Path) -> None:
    schedule = {"schedule": "step", "step_every": 0.5, "step_factor": 0.1, "learning_rate": 0.01}
    result = run(config_of(two_classes(tmp_path / "t.csv"), training=schedule), tmp_path)
    told = [json.loads(line)["learning_rate"] for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert told == pytest.approx([0.01, 0.001])


def test_runs_that_share_a_checkpoint_path_delete_nothing_of_each_other(tmp_path: Path) -> None:
    shared = {"checkpoint": {"path": str(tmp_path / "shared")}}
    config = config_of(two_classes(tmp_path / "t.csv"), training=shared)
    run(config, tmp_path / "a")
    run(msgspec.structs.replace(config, name="other"), tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "shared").glob("*-run/*")) == ["2", "2", "4", "4"]
    with pytest.raises(DataError, match=r"expected no checkpoints of another run, got .*shared/edge-run; name another"):
        run(config, tmp_path / "c")
