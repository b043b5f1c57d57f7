"""Laws and oracles for what turns outputs into predictions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit, logit, softmax

from mmjax.errors import ConfigError
from mmjax.schema import Target
from mmjax.training.calibration import best_temperature, doubted, tempered
from mmjax.training.matrix_scaling import Mixing, mixed
from mmjax.training.outputs import (
    Output,
    build_output,
    labels_output,
    mean_of_members,
    sigmoid_output,
    softmax_output,
    standardized_output,
)

BINARY = Target(column="y", task="classification", classes=("no", "yes"))
THREE = Target(column="y", task="classification", classes=("a", "b", "c"))
NUMBER = Target(column="y", task="regression")
logits = hnp.arrays(np.float32, (5, 3), elements=st.floats(-100, 100, width=32, allow_subnormal=False))
bounded = settings(max_examples=25, deadline=None)


@bounded
@given(logits)
def test_softmax(outputs):
    output = build_output(THREE, "cross_entropy")
    labels = np.array([0, 1, 2, 0, 1], np.int32)
    assert output.size == 3
    assert output.fit(labels) == {"temperature": 1.0}
    assert output.targets({}, labels) is labels
    found = output.apply({}, outputs)
    assert found.prediction.dtype == jnp.int32
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities, softmax(outputs.astype(np.float64), axis=1), atol=1e-6)
    np.testing.assert_array_equal(found.prediction, np.argmax(found.probabilities, axis=1))


def test_ties_and_nan_have_the_index_that_argmax_gives():
    rows = np.array([[1, 1, 0], [0, 2, 2], [np.nan, 0, 0], [-np.inf, 0, 0], [np.inf, 0, 0]], np.float32)
    found = build_output(THREE, "cross_entropy").apply({}, rows)
    np.testing.assert_array_equal(found.prediction, [0, 1, 0, 1, 0])


@bounded
@given(logits)
def test_sigmoid(outputs):
    output = build_output(BINARY, "bce")
    assert output.size == 1
    found = output.apply(output.fit(np.zeros(3, np.int32)), outputs[:, :1])
    assert found.probabilities is not None
    expected = expit(outputs[:, 0].astype(np.float64))
    np.testing.assert_allclose(found.probabilities, np.stack([1 - expected, expected], axis=1), atol=1e-6)
    assert found.prediction.dtype == jnp.int32
    np.testing.assert_array_equal(found.prediction, outputs[:, 0] > 0)


@bounded
@given(hnp.arrays(np.float32, (6, 1), elements=st.floats(-(2.0**126), 2.0**126, width=32, allow_subnormal=False)))
def test_regression_targets_and_back(labels):
    output = build_output(NUMBER, "huber")
    state = output.fit(labels)
    assert {name: leaf.dtype for name, leaf in state.items()} == {"mean": np.float32, "std": np.float32}
    targets = output.targets(state, jnp.asarray(labels))
    assert np.isfinite(targets).all()
    found = output.apply(state, targets)
    assert found.probabilities is None
    spread = np.ptp(labels.astype(np.float64))
    np.testing.assert_allclose(found.prediction, labels, rtol=1e-5, atol=1e-5 * spread)


def test_regression_targets_have_mean_0_and_deviation_1_also_far_from_0():
    labels = (1e6 + np.random.default_rng(0).normal(0, 3, (500, 1))).astype(np.float32)
    output = build_output(NUMBER, "mse")
    targets = np.asarray(output.targets(output.fit(labels), jnp.asarray(labels)), np.float64)
    assert abs(targets.mean()) < 0.02  # f32 keeps 1e6 to 0.06, a fiftieth of the deviation
    assert abs(targets.std() - 1) < 1e-3


def test_a_constant_target_is_learnt_as_it_is():
    output = build_output(NUMBER, "mse")
    labels = np.full((4, 1), 0.1, np.float32)
    state = output.fit(labels)
    assert not output.targets(state, jnp.asarray(labels)).any()
    np.testing.assert_array_equal(output.apply(state, jnp.zeros((2, 1))).prediction, labels[:2])


@pytest.mark.parametrize(("target", "loss"), [(THREE, "focal"), (BINARY, "bce"), (NUMBER, "mae")])
def test_jit_equals_eager_and_rows_are_independent(target, loss):
    output = build_output(target, loss)
    labels = np.arange(6, dtype=np.float32)[:, None] if target is NUMBER else np.zeros(6, np.int32)
    state = output.fit(labels)
    outputs = jnp.asarray(np.random.default_rng(0).normal(size=(6, output.size)), jnp.float32)
    eager = output.apply(state, outputs)
    jitted = jax.jit(output.apply)(state, outputs)
    alone = output.apply(state, outputs[2:3])
    for one, other, row in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
        np.testing.assert_allclose(one[2:3], row, rtol=1e-6)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state))


def test_bfloat16_outputs_give_float32_probabilities():
    found = build_output(THREE, "cross_entropy").apply({}, jnp.ones((2, 3), jnp.bfloat16))
    assert found.probabilities is not None
    assert found.probabilities.dtype == jnp.float32


@pytest.mark.parametrize(
    ("target", "loss", "message"),
    [
        (THREE, "bce", "training.loss: bce expected a target of 2 classes, got 3 in 'y'; use cross_entropy"),
        (THREE, "mse", "training.loss: expected one of cross_entropy, focal, bce for classification, got 'mse'"),
        (NUMBER, "focal", "training.loss: expected one of mse, mae, huber, pinball for regression, got 'focal'"),
    ],
)
def test_losses_that_do_not_suit_the_target_are_refused(target, loss, message):
    with pytest.raises(ConfigError) as caught:
        build_output(target, loss)
    assert caught.value.problems == (message,)


# ---- members


def _members(outputs: np.ndarray, output: Output) -> tuple[Output, Any]:
    averaged = mean_of_members(output, outputs.shape[1])
    return averaged, averaged.fit(np.zeros(4, np.int32))


MEMBER_LOGITS = hnp.arrays(np.float32, (5, 4, 3), elements=st.floats(-30, 30, width=32, allow_subnormal=False))


@bounded
@given(MEMBER_LOGITS)
def test_members_answer_with_their_mean_and_how_far_they_are_from_it(logits: np.ndarray) -> None:
    averaged, state = _members(logits, softmax_output(3))
    told = jax.jit(averaged.apply)(state, logits)
    each = softmax(logits.astype(np.float64), axis=-1)
    mean = each.mean(axis=1)
    np.testing.assert_allclose(told.probabilities, mean, atol=1e-6)
    np.testing.assert_array_equal(told.prediction, np.asarray(told.probabilities).argmax(axis=1))
    distance = 0.5 * np.abs(each - mean[:, None]).sum(axis=-1).mean(axis=1)
    np.testing.assert_allclose(told.uncertainty, distance, atol=1e-6)
    turned = averaged.apply(state, logits[:, ::-1])
    np.testing.assert_allclose(turned.probabilities, told.probabilities, atol=1e-6)


@bounded
@given(MEMBER_LOGITS)
def test_equal_members_are_one(logits: np.ndarray) -> None:
    averaged, state = _members(logits, softmax_output(3))
    one = softmax_output(3)
    told = averaged.apply(state, np.repeat(logits[:, :1], 4, axis=1))
    np.testing.assert_allclose(told.probabilities, one.apply(state, logits[:, 0]).probabilities, atol=1e-6)
    np.testing.assert_allclose(told.uncertainty, 0.0, atol=1e-6)


def test_the_temperature_of_members_is_that_of_their_mean() -> None:
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 3, 300).astype(np.int32)
    logits = (generator.normal(size=(300, 4, 3)) * 4 + 3 * np.eye(3)[labels][:, None]).astype(np.float32)
    averaged, state = _members(logits, softmax_output(3))
    assert averaged.calibrate is not None
    warm = averaged.calibrate(state, logits, labels, None)
    mean = softmax(logits.astype(np.float64), axis=-1).mean(axis=1)
    assert warm["temperature"] == pytest.approx(best_temperature(np.log(mean), labels), rel=1e-4)
    wanted = softmax(np.log(mean) / warm["temperature"], axis=-1)
    told = averaged.apply(warm, logits)
    np.testing.assert_allclose(told.probabilities, wanted, atol=1e-5)
    np.testing.assert_array_equal(told.uncertainty, averaged.apply(state, logits).uncertainty)


def test_what_calibrates_changes_the_mean_of_each_fold_before_folds_are_averaged() -> None:
    generator, folds, of_fold = np.random.default_rng(4), 3, 2
    logits = (generator.normal(size=(40, folds * of_fold, 3)) * 3).astype(np.float32)
    output = build_output(THREE, "cross_entropy", members=folds * of_fold, folds=folds)
    mixing, offsets = generator.normal(size=(3, 3)), generator.normal(size=3)
    fitted = {"temperature": 1.7, "doubt": 0.2, "mixing": mixing, "offsets": offsets, "mean_temperature": 0.8}
    state = {name: np.float32(value) for name, value in fitted.items()}
    each = softmax(logits.astype(np.float64), axis=-1)
    of_each_fold = [
        mixed(doubted(tempered(each[:, 2 * k : 2 * k + 2].mean(axis=1), 1.7), 0.2), Mixing(mixing, offsets))
        for k in range(folds)
    ]
    told = output.apply(state, logits)
    np.testing.assert_allclose(told.probabilities, tempered(np.mean(of_each_fold, axis=0), 0.8), atol=1e-5)
    alone = build_output(THREE, "cross_entropy", members=of_fold)  # what out-of-fold rows are answered by
    one = alone.apply(state, logits[:, 2:4])
    np.testing.assert_allclose(one.probabilities, of_each_fold[1], atol=1e-5)


def test_a_bundle_from_before_folds_were_calibrated_apart_answers_as_it_did() -> None:
    logits = np.random.default_rng(5).normal(size=(6, 4, 3)).astype(np.float32)
    output = mean_of_members(softmax_output(3), 4, folds=2)
    old = {"temperature": np.float32(2.0)}
    wanted = mean_of_members(softmax_output(3), 4).apply(old, logits)
    np.testing.assert_array_equal(output.apply(old, logits).probabilities, wanted.probabilities)
    now = output.apply(old | {"mean_temperature": np.float32(1.0)}, logits)
    assert not np.allclose(now.probabilities, wanted.probabilities)


def test_labels_of_folds_are_calibrated_apart_too() -> None:
    logits = np.random.default_rng(6).normal(size=(7, 6, 2)).astype(np.float32) * 3
    output = labels_output(2, members=6, folds=3)
    state = {"temperature": np.float32(1.5), "mean_temperature": np.float32(0.8)}
    of_fold = expit(logits.astype(np.float64)).reshape(7, 3, 2, 2).mean(axis=2)
    mean = expit(logit(of_fold) / 1.5).mean(axis=1)
    wanted = expit(logit(mean) / 0.8)
    np.testing.assert_allclose(output.apply(state, logits).probabilities, wanted, atol=1e-5)


def test_members_of_one_logit_and_of_values() -> None:
    outputs = np.random.default_rng(5).normal(size=(6, 4, 1)).astype(np.float32)
    averaged, state = _members(outputs, sigmoid_output())
    p = expit(outputs[:, :, 0].astype(np.float64))
    told = averaged.apply(state, outputs)
    np.testing.assert_allclose(np.asarray(told.probabilities)[:, 1], p.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(told.uncertainty, np.abs(p - p.mean(axis=1)[:, None]).mean(axis=1), atol=1e-6)
    values = mean_of_members(standardized_output(1), 4)
    assert values.calibrate is None
    state = values.fit(np.array([[1e30], [3e30]]))
    told = values.apply(state, outputs)
    wanted = outputs.astype(np.float64) * 1e30 + 2e30
    np.testing.assert_allclose(told.prediction, wanted.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(told.uncertainty, wanted.std(axis=1), rtol=1e-4)


def test_another_number_of_members_is_refused() -> None:
    with pytest.raises(ValueError, match=r"outputs: expected f32\[B, 4, 3\], got shape \(5, 2, 3\)"):
        mean_of_members(softmax_output(3), 4).apply({}, jnp.zeros((5, 2, 3)))
