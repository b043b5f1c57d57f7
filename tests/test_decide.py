"""What an Output's state adds: pure, kept by a bundle, absent where nothing was asked for, refused where it is idle."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.artifact import tree
from mmjax.config import Training
from mmjax.errors import TrainingError
from mmjax.schema import Schema, Target
from mmjax.training.decide import Rows, abstain_problems, decide, decision_problems, fits_on_validation
from mmjax.training.outputs import build_output
from mmjax.training.scoring import Scores

BINARY = Target(column="y", task="classification", classes=("no", "yes"))
FIRST = Target(column="y", task="classification", classes=("no", "yes"), positive_class="no")
THREE = Target(column="y", task="classification", classes=("a", "b", "c"))
NUMBER = Target(column="y", task="regression")
ALL = Training(threshold="f1", coverage=0.8, abstain_below=0.6, calibration="temperature")


def rows_of(target: Target, *, rows: int = 200) -> Rows:
    random = np.random.default_rng(0)
    if target.task == "regression":
        outputs = random.normal(size=(rows, 1)).astype(np.float32)
        labels = outputs + random.normal(size=outputs.shape).astype(np.float32)
    else:
        outputs = random.normal(size=(rows, len(target.classes))).astype(np.float32)
        labels = (outputs + random.gumbel(size=outputs.shape)).argmax(axis=1).astype(np.int32)
    return Rows(Scores(outputs, np.zeros(rows, np.int32), None), {"label": labels})


def decided(target: Target, training: Training, loss: str = "cross_entropy"):
    schema = Schema(target=target, columns=())
    output = build_output(target, loss, positive_index=schema.positive_index)
    rows = rows_of(target)
    state, facts = decide(training, schema, output, output.fit(rows.batch["label"]), rows)
    return output, state, facts, rows


@pytest.mark.parametrize(
    ("target", "training", "loss"),
    [(BINARY, ALL, "cross_entropy"), (THREE, Training(coverage=0.9, abstain_below=0.5), "focal"),
     (NUMBER, Training(coverage=0.9), "mse")],
)  # fmt: skip
def test_the_state_survives_saving_and_jit_equals_eager(target: Target, training: Training, loss: str):
    output, state, facts, rows = decided(target, training, loss)
    structure, arrays = tree.flatten(state, "output")
    loaded = tree.unflatten(structure, tree.load_arrays(tree.save_arrays(arrays), "test"), "test")
    outputs = jnp.asarray(rows.scores.outputs)
    eager, jitted, again = (
        output.apply(state, outputs),
        jax.jit(output.apply)(state, outputs),
        output.apply(loaded, outputs),
    )
    for one, other, third in zip(eager, jitted, again, strict=True):
        assert (one is None) == (other is None) == (third is None)
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
            np.testing.assert_array_equal(one, third)
    json.dumps(facts, allow_nan=False)


def test_what_was_not_asked_for_is_not_there():
    output, state, facts, rows = decided(THREE, Training())
    found = output.apply(state, jnp.asarray(rows.scores.outputs))
    assert (found.sets, found.intervals, found.abstained, facts) == (None, None, None, {})
    assert set(state) == {"temperature"}
    assert not fits_on_validation(Training(threshold=0.3, abstain_below=0.8))


@pytest.mark.parametrize("target", [BINARY, FIRST])
@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_a_threshold_is_of_the_positive_class(target: Target, loss: str):
    schema = Schema(target=target, columns=())
    output = build_output(target, loss, positive_index=schema.positive_index)
    logit = np.log(np.array([0.1, 0.29, 0.31, 0.9]) / np.array([0.9, 0.71, 0.69, 0.1])).astype(np.float32)
    if schema.positive_index == 0:
        logit = -logit
    outputs = logit[:, None] if loss == "bce" else np.stack([np.zeros_like(logit), logit], axis=1)
    state, facts = decide(Training(threshold=0.3), schema, output, output.fit(np.zeros(2, np.int32)), None)
    positive = np.asarray(output.apply(state, jnp.asarray(outputs)).prediction) == schema.positive_index
    np.testing.assert_array_equal(positive, [False, False, True, True])
    assert facts["threshold"] == {"class": schema.target.classes[schema.positive_index], "value": 0.3}


def test_each_is_fitted_after_the_temperature():
    """Doubled logits, with a temperature of twice the size, mean the same sets, threshold and abstained rows."""
    schema, training = Schema(target=BINARY, columns=()), ALL
    output, rows = build_output(BINARY, "cross_entropy"), rows_of(BINARY)
    double = rows._replace(scores=rows.scores._replace(outputs=2 * rows.scores.outputs))
    fitted = [decide(training, schema, output, output.fit(rows.batch["label"]), each)[0] for each in (rows, double)]
    assert fitted[1]["temperature"] == pytest.approx(2 * fitted[0]["temperature"], rel=1e-3)
    for key in ("threshold", "least_probability"):
        assert fitted[1][key] == pytest.approx(fitted[0][key], abs=2e-3)


def test_abstaining_looks_at_the_largest_probability():
    output, state, _, rows = decided(THREE, Training(abstain_below=0.5))
    found = output.apply(state, jnp.asarray(rows.scores.outputs))
    assert found.probabilities is not None
    assert found.abstained is not None
    np.testing.assert_array_equal(found.abstained, np.asarray(found.probabilities).max(axis=1) < 0.5)
    assert 0 < np.asarray(found.abstained).mean() < 1


@pytest.mark.parametrize(
    ("target", "training", "labels", "told"),
    [
        (THREE, Training(threshold="f1"), [0, 1], "training.threshold: expected a target of 2 classes, got 3 classes"),
        (NUMBER, Training(threshold=0.4), [], "training.threshold: expected a target of 2 classes, got a number"),
        (BINARY, Training(threshold="mcc"), [1, 1], "training.threshold: mcc expected validation rows of both classes"),
        (BINARY, Training(coverage=0.9), [0] * 8, "training.coverage: 0.9 expected at least 9 validation rows, got 8"),
        (THREE, Training(abstain_below=0.33), [], "training.abstain_below: expected a number above 0.333, as"),
        (NUMBER, Training(abstain_below=0.9), [], "training.abstain_below: expected a classifier, got"),
    ],
)
def test_what_would_do_nothing_is_refused(target: Target, training: Training, labels: list[int], told: str):
    problems = decision_problems(training, Schema(target=target, columns=()), np.array(labels))
    assert [problem.startswith(told) for problem in problems] == [True]
    assert not decision_problems(Training(), Schema(target=target, columns=()), np.array(labels))


def test_weights_that_leave_too_few_rows_are_refused():
    schema, output, rows = Schema(target=THREE, columns=()), build_output(THREE, "cross_entropy"), rows_of(THREE)
    weighted = rows._replace(batch=rows.batch | {"weight": np.where(np.arange(200) < 8, 0.01, 0.0).astype(np.float32)})
    with pytest.raises(TrainingError, match=r"training.coverage: expected finite answers and enough weight"):
        decide(Training(coverage=0.9), schema, output, output.fit(rows.batch["label"]), weighted)


def test_a_share_in_percent_is_no_probability():
    """All rows would be abstained, without a word."""
    assert abstain_problems("--abstain-below", 70.0, BINARY) == [
        "--abstain-below: expected a probability, 1 at most, got 70"
    ]
    assert not abstain_problems("--abstain-below", 1.0, BINARY)
