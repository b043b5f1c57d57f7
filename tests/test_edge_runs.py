"""Runs at the edge of what data and config allow: each ends well or is refused in words, never by a traceback."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.artifact.bundle import load_bundle
from mmjax.config import Config
from mmjax.config_load import config_from_dict
from mmjax.train import FitResult, fit

ROWS = 60


def write_csv(path: Path, header: str, rows: list[tuple[Any, ...]]) -> Path:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def two_classes(path: Path, *, test_rows: int = 10, weight_of_test: int = 1) -> Path:
    """Rows of the classes a and b by the sign of x, dealt by the column `part`, the last ones to test."""
    x = np.random.default_rng(0).normal(size=ROWS)
    parts = ["train"] * 40 + ["val"] * (20 - test_rows) + ["test"] * test_rows
    weights = [weight_of_test if part == "test" else 1 for part in parts]
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
