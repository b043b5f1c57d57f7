"""Matrix scaling: the optimum is SciPy's, a known mixing is found, exact probabilities are left alone."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from mmjax.analysis.answers import answer_lines
from mmjax.artifact.models import load_model
from mmjax.config import Training
from mmjax.config_load import config_from_dict
from mmjax.errors import ConfigError
from mmjax.schema import Schema, Target
from mmjax.train import fit
from mmjax.training.calibration import doubted, tempered
from mmjax.training.decide import Rows, decide
from mmjax.training.matrix_scaling import (
    OFFSETS,
    SELECTING,
    Mixing,
    choose_mixing,
    fit_mixing,
    mixed,
    with_offsets,
)
from mmjax.training.outputs import build_output
from mmjax.training.scoring import Scores
from tests.doors import write_csv

ASKEW = Mixing(np.array([[0.9, 0.1, 0.0], [0.3, 0.5, 0.1], [0.0, -0.2, 1.1]]), np.array([0.6, -0.9, 0.2]))
THREE = Target(column="y", task="classification", classes=("a", "b", "c"))


def drawn(
    rows: int, mixing: Mixing | None = None, seed: int = 0, k: int = 3, scale: float = 1.5
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels drawn from them as they are or as mixed."""
    rng = np.random.default_rng(seed)
    said = softmax(rng.normal(0, scale, (rows, k)), axis=1)
    share = (said if mixing is None else mixed(said, mixing)).cumsum(axis=1)
    return said, (rng.random((rows, 1)) > share[:, :-1]).sum(axis=1)


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(np.take_along_axis(probabilities, labels[:, None], axis=1)).mean())


@pytest.mark.parametrize(("k", "spread"), [(2, 0.2), (3, 0.05), (6, 0.2)])
def test_the_optimum_is_that_of_scipy(k: int, spread: float) -> None:
    said, labels = drawn(400, seed=k, k=k)
    labels = np.where(labels == 1, 0, labels)
    weight = np.random.default_rng(1).uniform(0.2, 2.0, 400)
    logs = np.log(said)
    x = np.column_stack([logs - logs.mean(axis=1, keepdims=True), np.ones(400)])
    smooth = 1.0 / (weight.sum() + 1.0)
    wanted = weight[:, None] * ((1 - smooth) * np.eye(k)[labels] + smooth / k)
    precision = np.append(np.full(k, spread**-2), (OFFSETS * spread) ** -2)[:, None]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        away = flat.reshape(k + 1, k) - np.eye(k + 1, k)
        q = log_softmax(x @ flat.reshape(k + 1, k), axis=1)
        slope = x.T @ (weight[:, None] * np.exp(q) - wanted) + precision * away
        return float(-(wanted * q).sum() + 0.5 * (precision * away**2).sum()), slope.ravel()

    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-9}
    best = minimize(objective, np.eye(k + 1, k).ravel(), jac=True, method="L-BFGS-B", options=options)
    found = fit_mixing(said, labels, weight, spread=spread)
    np.testing.assert_allclose(np.vstack([found.matrix, found.offsets]), best.x.reshape(k + 1, k), atol=2e-4)


def test_offsets_to_compare_epochs_by_are_those_of_scipy() -> None:
    said, labels = drawn(300, ASKEW)
    weight = np.random.default_rng(1).uniform(0.2, 2.0, 300)
    counts = weight * 300 / weight.sum()
    wanted = counts[:, None] * np.eye(3)[labels]

    def objective(offsets: np.ndarray) -> float:
        logs = log_softmax(np.log(said) + offsets, axis=1)
        return float(0.5 * (offsets**2).sum() / SELECTING**2 - (wanted * logs).sum())

    best = minimize(objective, np.zeros(3), options={"gtol": 1e-8}).x
    np.testing.assert_allclose(with_offsets(said, labels, weight), softmax(np.log(said) + best, axis=1), atol=1e-5)
    two = said[:, :2] / said[:, :2].sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(with_offsets(two, np.minimum(labels, 1)), two)


def test_a_known_mixing_is_found_and_helps_new_rows() -> None:
    said, labels = drawn(4_000, ASKEW)
    chosen = choose_mixing(said, labels)
    assert chosen is not None
    new, truth = drawn(20_000, ASKEW, seed=1)
    best, found = (log_loss(mixed(new, mixing), truth) for mixing in (ASKEW, chosen.mixing))
    assert found < best + 0.003 < log_loss(new, truth) - 0.05
    assert chosen.after == pytest.approx(log_loss(chosen.held_out, labels))
    assert chosen.before == pytest.approx(log_loss(said, labels))


def test_exact_probabilities_lose_nothing_that_matters() -> None:
    worse = []
    for seed in range(16):
        said, labels = drawn(300, seed=seed)
        chosen, (new, truth) = choose_mixing(said, labels), drawn(4_000, seed=1_000 + seed)
        worse.append(log_loss(mixed(new, chosen.mixing), truth) - log_loss(new, truth) if chosen else 0.0)
    assert np.mean(worse) < 0.003


def test_no_row_is_held_out_from_itself() -> None:
    said, labels = drawn(200, ASKEW)
    other = labels.copy()
    other[17] = (other[17] + 1) % 3
    first, second = choose_mixing(said, labels), choose_mixing(said, other)
    assert first is not None
    assert second is not None
    same = np.abs(first.held_out - second.held_out).max(axis=1) == 0.0
    assert same[17]
    assert 30 <= same.sum() <= 50  # its fold, and no other


def test_weights_count_rows() -> None:
    said, labels = drawn(300, ASKEW)
    weight = np.random.default_rng(1).integers(0, 3, 300)
    repeated = fit_mixing(np.repeat(said, weight, axis=0), np.repeat(labels, weight), np.ones(weight.sum()), spread=0.2)
    found = fit_mixing(said, labels, weight.astype(float), spread=0.2)
    np.testing.assert_allclose(found.matrix, repeated.matrix, atol=1e-5)
    tenth, one = (choose_mixing(said, labels, np.full(300, value)) for value in (0.1, 1.0))
    assert tenth is not None
    assert one is not None
    np.testing.assert_allclose(tenth.mixing.matrix, one.mixing.matrix, atol=1e-6)


def test_what_cannot_be_fitted() -> None:
    said, labels = drawn(200, ASKEW)
    assert choose_mixing(said[:4], labels[:4]) is None
    assert choose_mixing(np.full((9, 2), np.nan), np.zeros(9, int)) is None
    assert choose_mixing(said, labels, np.zeros(200)) is None
    assert choose_mixing(np.full((99, 51), 1 / 51), np.zeros(99, int)) is None
    certain = np.eye(3)[labels]
    found = choose_mixing(certain, labels)
    assert found is None or np.isfinite(found.held_out).all()


@pytest.mark.parametrize(("members", "noise"), [(1, 0.0), (1, 0.3), (4, 0.0)])
def test_an_output_answers_with_it(members: int, noise: float) -> None:
    """In the compiled step as on the host, whatever made the probabilities; bounds rest on held-out rows."""
    scale = 5.0 if noise else 1.5
    said, labels = drawn(600, ASKEW, scale=scale)
    labels = np.where(np.random.default_rng(9).random(600) < noise, np.arange(600) % 3, labels)
    outputs = np.log(said).astype(np.float32)
    outputs = outputs if members == 1 else np.repeat(outputs[:, None], members, axis=1)
    output = build_output(THREE, "cross_entropy", members=members)
    rows = Rows(Scores(outputs, np.zeros(600, np.int32), None), {"label": labels.astype(np.int32)})
    training = Training(calibration="matrix", coverage=0.9)
    state, facts = decide(training, Schema(target=THREE, columns=()), output, output.fit(labels), rows)
    assert facts["calibration"]["matrix"]["log_loss_after"] < facts["calibration"]["matrix"]["log_loss_before"]
    for apply in (output.apply, jax.jit(output.apply)):
        found = apply(state, jnp.asarray(outputs))
        assert found.probabilities is not None
        assert found.sets is not None
        plain = doubted(tempered(said, state["temperature"]), state.get("doubt", 0.0))
        wanted = mixed(plain, Mixing(state["mixing"], state["offsets"]))
        np.testing.assert_allclose(found.probabilities, wanted, atol=1e-5)
        np.testing.assert_array_equal(found.prediction, np.asarray(found.probabilities).argmax(axis=1))
        np.testing.assert_array_equal(found.sets, found.probabilities >= state["least_probability"])
    assert ("doubt" in state) == (noise > 0)
    new, truth = drawn(20_000, ASKEW, seed=5, scale=scale)
    truth = np.where(np.random.default_rng(8).random(20_000) < noise, np.arange(20_000) % 3, truth)
    logits = np.log(new).astype(np.float32)
    logits = logits if members == 1 else np.repeat(logits[:, None], members, axis=1)
    sets = np.asarray(output.apply(state, jnp.asarray(logits)).sets)
    assert abs(sets[np.arange(20_000), truth].mean() - 0.9) < 0.03


def test_balanced_weights_are_undone_through_the_front_door(tmp_path: Path) -> None:
    """What weights of classes do to probabilities no temperature mends; asked for, the matrix does, and it is told."""
    random = np.random.default_rng(0)
    x = random.normal(size=(900, 2))
    y = np.digitize(x @ [1.0, -0.5] + random.logistic(size=900), [2.0, 3.0])
    cells = [(f"{a:.4f}", f"{b:.4f}", "lmh"[k]) for (a, b), k in zip(x, y, strict=True)]
    write_csv(tmp_path / "t.csv", ("a", "b", "y"), cells)
    table = {"path": str(tmp_path / "t.csv"), "target_column": "y"}
    table |= {"train_split": 0.4, "validation_split": 0.3, "test_split": 0.3}
    training = {"epochs": 6, "learning_rate": 0.02, "class_weights": "balanced", "calibration": "matrix"}
    model = {"name": "mlp", "architecture": {"hidden_layers": [8]}}
    config = config_from_dict(
        {"name": "m", "data": {"tabular": table}, "model": model, "training": training,
         "evaluation": {"baselines": "none"}}, "test",
    )  # fmt: skip
    done = fit(config, runs_dir=tmp_path / "runs", registry=tmp_path / "registry", tell=lambda line: None)
    fact = done.report["answers"]["calibration"]
    assert fact["matrix"]["log_loss_after"] < fact["matrix"]["log_loss_before"]
    test = fact["splits"]["test"]
    assert test["after"]["log_loss"] < test["before"]["log_loss"]
    assert test["after"]["ece"] < test["before"]["ece"]
    assert 0.0 < test["after"]["ece_by_chance"] < 0.1
    line = answer_lines(done.report)[0]
    assert " and a matrix of the classes (log loss held out " in line
    assert " by chance were all exact)" in line
    loaded = load_model("m", registry=tmp_path / "registry")
    assert set(loaded.states.output) == {"temperature", "mixing", "offsets"}
    rows = {"a": x[:50, 0], "b": x[:50, 1]}
    found, expected = loaded.predict(rows), done.predictor.predict(rows)
    assert found.probabilities is not None
    assert expected.probabilities is not None
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
    refused = config_from_dict(
        {"name": "m", "data": {"tabular": table | {"task": "regression", "target_column": "a"}}, "model": model,
         "training": {"epochs": 1, "calibration": "matrix"}}, "test",
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"training\.calibration: matrix expected a target of classes or labels"):
        fit(refused, runs_dir=tmp_path / "runs", registry=None, tell=lambda line: None)
