"""A model with members, from training over the bundle to every place that answers."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmjax
from mmjax.artifact.bundle import load_bundle
from mmjax.config_load import config_from_dict
from mmjax.predict import predict_file
from mmjax.serving.limits import Limits
from mmjax.train import FitResult, fit
from tests.doors import write_csv
from tests.live import JSON, thread
from tests.rough import roughly

HEADER = ("size", "weight", "grade", "kind")
TABM = {"name": "tabm", "architecture": {"hidden_layers": [6], "members": 3}}


def table(path: Path) -> Path:
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(90, 2))
    rows = [(f"{a:.3f}", f"{b:.3f}", f"{100 * a + b:.3f}", "ab"[int(a + 0.3 * b > 0)]) for a, b in numbers]
    return write_csv(path, HEADER, rows)


def trained(home: Path, target: str, other: str) -> FitResult:
    data = {"path": str(table(home / "t.csv")), "target_column": target, "ignore_columns": [other]}
    content = {
        "name": target,
        "data": {"tabular": data},
        "model": TABM,
        "training": {"epochs": 3, "batch_size": 16, "learning_rate": 0.02},
    }
    with roughly():
        return fit(config_from_dict(content, "test"), runs_dir=home / "runs", registry=home / "registry")


def cells() -> list[dict[str, Any]]:
    return [{"size": 0.25 * i, "weight": 1.0 - i} for i in range(3)]


@pytest.mark.parametrize(("target", "other"), [("kind", "grade"), ("grade", "kind")])
def test_every_door_tells_how_far_the_members_disagree(tmp_path: Path, target: str, other: str) -> None:
    result = trained(tmp_path, target, other)
    found = mmjax.load_model(target, registry=tmp_path / "registry").predict(cells())
    assert found.uncertainty is not None
    assert found.uncertainty.shape == (3,)
    assert (found.uncertainty > 0).all()
    columns = {name: np.array([row[name] for row in cells()]) for name in ("size", "weight")}
    assert result.predictor.score(columns).outputs.shape == (3, 3, 2 if target == "kind" else 1)
    golden = load_bundle(tmp_path / "registry" / target / "1").contents.golden
    assert set(golden.expected) == {"probabilities" if target == "kind" else "prediction", "uncertainty"}
    lines = [tuple(str(row[name]) for name in ("size", "weight")) for row in cells()]
    predict_file(result.predictor, write_csv(tmp_path / "in.csv", ("size", "weight"), lines), tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert list(written[0])[-1] == "uncertainty"
    np.testing.assert_array_equal(np.array([row["uncertainty"] for row in written], np.float32), found.uncertainty)
    with thread(tmp_path / "registry", Limits(), models=[target]) as served:
        client = served.client
        assert client.ask("GET", f"/models/{target}").json["uncertainty"] is True
        assert client.ask("GET", f"/v2/models/{target}").json["outputs"][-1]["name"] == "uncertainty"
        reply = client.ask("POST", "/predict/tabular", json.dumps({"rows": cells()}).encode(), JSON).json
        np.testing.assert_allclose(reply["uncertainty"], found.uncertainty, rtol=1e-4, atol=1e-6)
        with mmjax.Client(f"http://127.0.0.1:{client.port}") as asking:
            matrix = np.array([[row["size"], row["weight"]] for row in cells()], np.float32)
            for told in (asking.predict(cells()), asking.predict(matrix)):
                assert told.uncertainty is not None
                np.testing.assert_allclose(told.uncertainty, found.uncertainty, rtol=1e-4, atol=1e-6)
