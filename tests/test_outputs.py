"""Laws and oracles for what turns outputs into predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit, softmax

from mmjax.errors import ConfigError
from mmjax.schema import Target
from mmjax.training.outputs import build_output

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
        (NUMBER, "focal", "training.loss: expected one of mse, mae, huber for regression, got 'focal'"),
    ],
)
def test_losses_that_do_not_suit_the_target_are_refused(target, loss, message):
    with pytest.raises(ConfigError) as caught:
        build_output(target, loss)
    assert caught.value.problems == (message,)
