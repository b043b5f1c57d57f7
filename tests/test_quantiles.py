"""Quantile regression: the pinball loss is least at the quantiles; medians and intervals travel like other answers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sklearn.metrics import mean_pinball_loss

import mmjax
from mmjax.analysis.card import model_card
from mmjax.artifact.predictor import load_predictor
from mmjax.config import Evaluation
from mmjax.config_load import config_from_dict
from mmjax.errors import ConfigError
from mmjax.predict import predict_file
from mmjax.schema import Target
from mmjax.serving.limits import Limits
from mmjax.train import FitResult, fit
from mmjax.training.conformal import widening
from mmjax.training.losses import pinball
from mmjax.training.outputs import build_output
from tests.doors import write_csv
from tests.live import thread
from tests.rough import roughly

QUANTILES = (0.1, 0.5, 0.8)


def test_the_loss_is_scikit_learns():
    rng = np.random.default_rng(0)
    outputs, targets, weight = rng.normal(size=(50, 3)), rng.normal(size=(50, 1)), rng.integers(0, 3, 50)
    wanted = np.mean(
        [
            mean_pinball_loss(targets[:, 0], outputs[:, i], alpha=q, sample_weight=weight)
            for i, q in enumerate(QUANTILES)
        ]
    )
    arrays = (jnp.asarray(values, jnp.float32) for values in (outputs, targets))
    found = pinball(*arrays, quantiles=QUANTILES, weight=jnp.asarray(weight, jnp.float32))
    assert float(found) == pytest.approx(wanted, rel=1e-6)


def test_the_least_loss_is_at_the_quantiles():
    targets = np.random.default_rng(1).exponential(size=(999, 1)).astype(np.float32)
    outputs = jnp.zeros((1, 3))
    step = jax.jit(jax.grad(lambda o: pinball(jnp.broadcast_to(o, (999, 3)), targets, quantiles=QUANTILES)))
    for rate in (3.0, 0.3, 0.03):
        for _ in range(200):
            outputs = outputs - rate * step(outputs)
    np.testing.assert_allclose(outputs[0], np.quantile(targets, QUANTILES), atol=0.02)


TARGET = Target(column="y", task="regression", classes=())


@settings(deadline=None, max_examples=20)  # the first call of each size compiles
@given(st.integers(0, 1000), st.integers(1, 4))
def test_the_output_is_the_median_within_its_interval(seed: int, members: int):
    rng = np.random.default_rng(seed)
    output = build_output(TARGET, "pinball", quantiles=QUANTILES, members=members)
    state = output.fit(rng.normal(5.0, 3.0, size=(20, 1)))
    shape = (7, 3) if members == 1 else (7, members, 3)
    logits = rng.normal(size=shape).astype(np.float32)
    found = output.apply(state, jnp.asarray(logits))
    values = np.sort(logits, axis=-1) * state["std"][0] + state["mean"][0]
    values = values if members == 1 else values.mean(axis=1)
    np.testing.assert_allclose(found.prediction[:, 0], values[:, 1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.intervals[:, 0], values[:, [0, 2]], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.quantiles, values, rtol=1e-5, atol=1e-5)
    assert (np.diff(found.quantiles) >= 0).all()
    wider = output.apply(state | {"half_width": np.full(1, 2.0, np.float32)}, jnp.asarray(logits))
    np.testing.assert_allclose(wider.intervals - found.intervals, [[[-2.0, 2.0]]] * 7, atol=1e-4)
    np.testing.assert_array_equal(wider.quantiles, found.quantiles)


def test_a_single_median_has_an_interval_of_no_width():
    output = build_output(TARGET, "pinball", quantiles=(0.5,))
    found = output.apply(output.fit(np.zeros((3, 1))), jnp.ones((2, 1)))
    np.testing.assert_array_equal(found.intervals[:, 0], [[1.0, 1.0]] * 2)


def test_intervals_give_way_until_enough_are_held():
    rng = np.random.default_rng(2)
    targets = rng.normal(size=(500, 1))
    intervals = np.stack([np.full((500, 1), -0.5), np.full((500, 1), 0.5)], axis=-1)
    width = widening(intervals, targets, 0.9)
    inside = (targets >= -0.5 - width) & (targets <= 0.5 + width)
    assert inside.sum() == int(np.ceil(501 * 0.9))
    assert widening(10 * intervals, targets, 0.9)[0] < 0  # too wide: narrowed
    assert np.isinf(widening(intervals[:5], targets[:5], 0.9)[0])


@pytest.mark.parametrize("quantiles", [[0.1, 0.9], [0.5, 0.1], [0.5, 0.5]])
def test_other_quantiles_are_refused(quantiles: list[float]):
    with pytest.raises(ConfigError, match=r"training.quantiles: expected ascending numbers with 0.5"):
        config_of("t.csv", quantiles=quantiles)


def config_of(path: Path | str, **training: object):
    return config_from_dict(
        {
            "name": "quantiles",
            "data": {"tabular": {"path": str(path), "target_column": "y", "train_split": 0.5,
                                 "validation_split": 0.25, "test_split": 0.25}},
            "model": {"name": "mlp", "architecture": {"hidden_layers": [16]}},
            "evaluation": {"baselines": "none"},
            "training": {"loss": "pinball", "epochs": 30, "learning_rate": 0.01} | training,
        },
        "test",
    )  # fmt: skip


LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of a run whose quantiles are more than an interval and its middle."""


def all_quantiles_come_out(made: FitResult, home: Path) -> None:
    """On every way to ask, in order, each as it is in the loaded model, and about as often above as it says."""
    rows = [{"x": float(x)} for x in np.linspace(0, 1, 5).round(3)]
    expected = load_predictor(made.bundle).predict(rows)
    assert expected.quantile_levels == LEVELS
    values = expected.quantiles
    assert values is not None
    assert values.shape == (5, 5)
    assert (np.diff(values) >= 0).all()
    np.testing.assert_array_equal(values[:, 2], expected.prediction)
    middle = values[:, 3] - values[:, 1]
    assert middle[-1] > 2.5 * middle[0]
    source = write_csv(home / "ask.csv", ("x",), [(row["x"],) for row in rows])
    predict_file(made.predictor, source, home / "out.csv")
    printed = pd.read_csv(home / "out.csv")
    columns = [f"q{level}" for level in LEVELS]
    assert list(printed) == ["row", "prediction", "lower", "upper", *columns]
    np.testing.assert_array_equal(printed[columns], values)
    with thread(home / "registry", Limits(), models=("quantiles",)) as server:
        body = json.dumps({"rows": rows}).encode()
        for more in ({}, {"x-request-timeout-ms": "20000"}):  # as plain as express answers, and not
            reply = server.client.ask("POST", "/predict/tabular", body, {"content-type": "application/json"} | more)
            assert reply.json["quantiles"] == [dict(zip(map(str, LEVELS), row, strict=True)) for row in values.tolist()]
        assert server.client.ask("GET", "/models/quantiles").json["answers"] == ["intervals", "quantiles"]
        model = server.client.ask("GET", "/v2/models/quantiles").json
        (spec,) = (output for output in model["outputs"] if output["name"] == "quantiles")
        assert spec | {"parameters": {"levels": list(LEVELS)}, "shape": [-1, 5]} == spec
        tensor = {"name": "features", "datatype": "FP64", "shape": [5, 1], "data": [row["x"] for row in rows]}
        infer = server.client.ask("POST", "/v2/models/quantiles/infer", json.dumps({"inputs": [tensor]}))
        found = {output["name"]: output for output in infer.json["outputs"]}
        np.testing.assert_array_equal(np.reshape(found["quantiles"]["data"], (5, 5)), values)
        np.testing.assert_array_equal(np.reshape(found["intervals"]["data"], (5, 2)), expected.intervals)
        with mmjax.Client(f"http://127.0.0.1:{server.client.port}") as client:
            heard = client.predict({"x": [row["x"] for row in rows]})
    np.testing.assert_array_equal(heard.quantiles, values)
    assert heard.quantile_levels == LEVELS


def quantiles_are_told(made: FitResult, x: np.ndarray, y: np.ndarray, told: list[str]) -> None:
    """How true each is, on each split and by `evaluate`: shares at or below it, scikit-learn's loss."""
    splits = made.report["answers"]["conformal"]["splits"]
    test = np.array(json.loads((made.run_dir / "split.json").read_bytes())["test"])
    values = load_predictor(made.bundle).predict({"x": x[test].round(4)}).quantiles
    assert values is not None
    each = splits["test"]["quantiles"]
    assert [one["level"] for one in each] == list(LEVELS)
    below, truth = [(y[test].round(4) <= values[:, i]).mean() for i in range(5)], y[test].round(4)
    losses = [mean_pinball_loss(truth, values[:, i], alpha=q) for i, q in enumerate(LEVELS)]
    np.testing.assert_allclose([one["below"] for one in each], below, atol=1.1 / len(test))
    np.testing.assert_allclose([one["pinball"] for one in each], losses, rtol=1e-4)
    line = f"quantiles: on test the rows at or below each are q0.05 {each[0]['below']:.1%}, q0.25 "
    assert sum(line in one for one in told) == 1
    assert line in model_card(made.report)
    table = Path(made.predictor.config.data.tabular.path)
    whole = mmjax.evaluate_model(made.predictor, table).trust["conformal"]["quantiles"]
    sizes = {"train": 600, "validation": 300, "test": 300}
    for i, one in enumerate(whole):
        parts = sum(sizes[split] * splits[split]["quantiles"][i]["below"] for split in sizes) / 1200
        assert one["below"] == pytest.approx(parts, abs=2.1 / 1200)


def test_a_run_learns_where_the_spread_is(tmp_path: Path):
    rng = np.random.default_rng(3)
    x = rng.uniform(0, 1, 1200)
    y = 10 * x + rng.normal(size=1200) * (0.1 + 2 * x)
    path = write_csv(tmp_path / "t.csv", ("x", "y"), [(f"{a:.4f}", f"{b:.4f}") for a, b in zip(x, y, strict=True)])
    told: list[str] = []
    config = config_of(path, quantiles=list(LEVELS), coverage=0.9)
    with roughly():
        result = fit(config, runs_dir=tmp_path / "runs", registry=tmp_path / "registry", tell=told.append)
    assert result.report["answers"]["conformal"]["splits"]["test"]["coverage"] == pytest.approx(0.9, abs=0.05)
    quantiles_are_told(result, x, y, told)
    answers = load_predictor(result.bundle).predict({"x": [0.05, 0.95]})
    widths = np.diff(answers.intervals, axis=1)[:, 0]
    assert widths[1] > 2.5 * widths[0]
    assert (answers.intervals[:, 0] < answers.prediction).all()
    all_quantiles_come_out(result, tmp_path)
    quick = replace(config_of(path, epochs=3), evaluation=Evaluation(baselines="quick"))
    with roughly():
        plain = fit(quick, runs_dir=tmp_path / "runs", registry=None, tell=told.append)
    assert any("were the quantiles 0.05 and 0.95 exact" in line for line in told)
    assert "expected" not in plain.report["answers"]["conformal"]["splits"]["test"]  # exact or not is no chance
    test = np.array(json.loads((plain.run_dir / "split.json").read_bytes())["test"])
    found = load_predictor(plain.bundle).predict({"x": x[test].round(4)})
    values = np.column_stack([found.intervals[:, 0], found.prediction, found.intervals[:, 1]])
    losses = [mean_pinball_loss(y[test], values[:, i], alpha=q) for i, q in enumerate((0.05, 0.5, 0.95))]
    judged = plain.report["baselines"]
    assert (judged["metric"], judged["network"]["pinball"]) == ("pinball", pytest.approx(np.mean(losses), rel=1e-3))
    assert all(one["metrics"]["pinball"] > 0 for one in judged["baselines"])
    assert "judged by the pinball loss of the quantiles 0.05, 0.5, 0.95, which it learns" in plain.report["verdict"]
    assert "pinball" in model_card(plain.report)
