"""Oracles: every loss against its closed form in NumPy f64 and against optax; laws: padding, jit, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from sklearn.utils.class_weight import compute_class_weight

from mmjax.config import ClassWeight, Training
from mmjax.errors import ConfigError
from mmjax.training.losses import (
    binary_cross_entropy,
    class_weight_array,
    cross_entropy,
    focal,
    huber,
    make_loss,
    mean_absolute_error,
    mean_squared_error,
)

B, K = 9, 4
random = np.random.default_rng(0)
LOGITS = random.normal(0, 2, (B, K)).astype(np.float32)
LABELS = random.integers(0, K, B).astype(np.int32)
VALUES = random.normal(0, 2, (B, 2)).astype(np.float32)
TARGETS = random.normal(0, 2, (B, 2)).astype(np.float32)
BITS = random.integers(0, 2, (B, 2)).astype(np.float32)
BINARY = random.integers(0, 2, B).astype(np.int32)
WEIGHT = random.uniform(0.1, 2, B).astype(np.float32)
CLASS_WEIGHTS = np.array([1.0, 2.0, 0.5, 3.0], np.float32)

LOSSES = {
    "cross_entropy": ("classification", LOGITS, LABELS),
    "focal": ("classification", LOGITS, LABELS),
    "bce": ("classification", VALUES[:, :1], BINARY),
    "multi_label": ("classification", VALUES, BITS),
    "mse": ("regression", VALUES, TARGETS),
    "mae": ("regression", VALUES, TARGETS),
    "huber": ("regression", VALUES, TARGETS),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def configured(name, class_weights=None):
    training = Training(loss="bce" if name == "multi_label" else name, label_smoothing=0.1, huber_delta=0.7)
    return make_loss(training, task=LOSSES[name][0], class_weights=class_weights)


def softmax_rows(gamma=0.0, smoothing=0.0):
    logits = LOGITS.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    target = (1 - smoothing) * np.eye(K)[LABELS] + smoothing / K
    own = np.exp(log_p[np.arange(B), LABELS])
    return (1 - own) ** gamma * -(target * log_p).sum(axis=1)


def sigmoid_rows(logits, bits):
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return -(bits * np.log(p) + (1 - bits) * np.log(1 - p)).mean(axis=1)


def huber_rows(delta):
    e = np.abs(VALUES.astype(np.float64) - TARGETS)
    return np.where(e <= delta, e**2 / 2, delta * (e - delta / 2)).mean(axis=1)


ERROR = VALUES.astype(np.float64) - TARGETS
CLOSED_FORMS = {
    "cross_entropy": (lambda weight: cross_entropy(LOGITS, LABELS, weight=weight), softmax_rows()),
    "smoothed": (
        lambda weight: cross_entropy(LOGITS, LABELS, label_smoothing=0.2, weight=weight),
        softmax_rows(0, 0.2),
    ),
    "focal": (lambda weight: focal(LOGITS, LABELS, gamma=1.5, weight=weight), softmax_rows(1.5)),
    "focal without focus": (lambda weight: focal(LOGITS, LABELS, gamma=0.0, weight=weight), softmax_rows()),
    "binary": (
        lambda weight: binary_cross_entropy(VALUES[:, :1], BINARY, weight=weight),
        sigmoid_rows(VALUES[:, :1], BINARY[:, None]),
    ),
    "multi-label": (lambda weight: binary_cross_entropy(VALUES, BITS, weight=weight), sigmoid_rows(VALUES, BITS)),
    "mse": (lambda weight: mean_squared_error(VALUES, TARGETS, weight=weight), (ERROR**2).mean(axis=1)),
    "mae": (lambda weight: mean_absolute_error(VALUES, TARGETS, weight=weight), np.abs(ERROR).mean(axis=1)),
    "huber": (lambda weight: huber(VALUES, TARGETS, delta=0.7, weight=weight), huber_rows(0.7)),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
def test_closed_form(name, weight):
    function, rows = CLOSED_FORMS[name]
    expected = np.average(rows, weights=weight)
    assert float(function(weight)) == pytest.approx(expected, rel=2e-6)


def test_class_weights_multiply_row_weights():
    own = CLASS_WEIGHTS[LABELS] * WEIGHT
    found = cross_entropy(LOGITS, LABELS, class_weights=CLASS_WEIGHTS, weight=WEIGHT)
    assert float(found) == pytest.approx(np.average(softmax_rows(), weights=own), rel=2e-6)
    found = focal(LOGITS, LABELS, gamma=2.0, class_weights=CLASS_WEIGHTS)
    assert float(found) == pytest.approx(np.average(softmax_rows(2.0), weights=CLASS_WEIGHTS[LABELS]), rel=2e-6)
    found = binary_cross_entropy(VALUES[:, :1], BINARY, class_weights=CLASS_WEIGHTS[:2])
    rows = sigmoid_rows(VALUES[:, :1], BINARY[:, None])
    assert float(found) == pytest.approx(np.average(rows, weights=CLASS_WEIGHTS[BINARY]), rel=2e-6)


def test_equal_to_optax():
    smoothed = optax.smooth_labels(jax.nn.one_hot(LABELS, K), 0.1)
    pairs = [
        (cross_entropy(LOGITS, LABELS, label_smoothing=0.1), optax.softmax_cross_entropy(LOGITS, smoothed)),
        (binary_cross_entropy(VALUES, BITS), optax.sigmoid_binary_cross_entropy(VALUES, BITS)),
        (huber(VALUES, TARGETS, delta=0.7), optax.huber_loss(VALUES, TARGETS, delta=0.7)),
        # the sigmoid focal loss of one logit is the softmax one of [0, logit]
        (
            focal(jnp.stack([jnp.zeros(B), VALUES[:, 0]], axis=1), BINARY, gamma=2.0),
            optax.sigmoid_focal_loss(VALUES[:, 0], BINARY.astype(np.float32), gamma=2.0),
        ),
    ]
    np.testing.assert_allclose([found for found, _ in pairs], [rows.mean() for _, rows in pairs], rtol=1e-6)


@every_loss
def test_padded_equals_unpadded_and_its_gradient_is_zero(name):
    _, outputs, targets = LOSSES[name]
    loss = configured(name)
    nothing = 0 if targets.dtype == np.int32 else np.nan
    padded_outputs = np.concatenate([outputs, np.full((3, outputs.shape[1]), np.nan, np.float32)])
    padded_targets = np.concatenate([targets, np.full((3, *targets.shape[1:]), nothing, targets.dtype)])
    padded_weight = np.concatenate([WEIGHT, np.zeros(3, np.float32)])
    both = jax.jit(jax.value_and_grad(loss))
    value, gradient = both(padded_outputs, padded_targets, padded_weight)
    plain_value, plain_gradient = both(outputs, targets, WEIGHT)
    assert float(value) == pytest.approx(float(plain_value), rel=1e-6)
    np.testing.assert_allclose(gradient[:B], plain_gradient, rtol=1e-6, atol=1e-9)
    assert not gradient[B:].any()
    assert both(padded_outputs, padded_targets, np.zeros(B + 3, np.float32))[0] == 0.0


@every_loss
def test_jit_equals_eager_and_ones_equal_none(name):
    _, outputs, targets = LOSSES[name]
    loss = configured(name)
    value = loss(outputs, targets, None)
    assert value.shape == ()
    assert value.dtype == jnp.float32
    again = [jax.jit(loss)(outputs, targets, None), loss(outputs, targets, jnp.ones(B))]
    np.testing.assert_allclose(again, float(value), rtol=1e-6)


@every_loss
def test_gradients_are_right(name):
    _, outputs, targets = LOSSES[name]
    loss = configured(name)
    check_grads(jax.jit(lambda x: loss(x, targets, WEIGHT)), (outputs,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


@every_loss
@pytest.mark.parametrize("scale", [0.0, 1e4, 1e18])
def test_gradients_are_finite_at_extreme_outputs(name, scale):
    _, outputs, targets = LOSSES[name]
    value, gradient = jax.jit(jax.value_and_grad(configured(name)))(
        np.sign(outputs) * np.float32(scale), targets, WEIGHT
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_gradient_is_finite_where_the_class_is_certain(gamma):
    certain = np.where(np.eye(K)[LABELS] > 0, 1e30, -1e30).astype(np.float32)
    value, gradient = jax.value_and_grad(focal)(certain, LABELS, gamma=gamma)
    assert value == 0.0
    assert not gradient.any()


def test_class_weight_array():
    counts = np.array([10, 30, 0, 60])
    labels = np.repeat(np.arange(4), counts)
    assert class_weight_array("none", "abcd", counts) is None
    balanced = class_weight_array("balanced", "abcd", counts)
    assert balanced is not None
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    np.testing.assert_allclose(balanced[[0, 1, 3]], expected, rtol=1e-6)
    assert balanced[2] == 1.0
    assert balanced[labels].mean() == pytest.approx(1.0, rel=1e-6)
    listed = class_weight_array((ClassWeight(label="c", weight=3.0),), "abcd", counts)
    assert listed is not None
    assert listed.tolist() == [1.0, 1.0, 3.0, 1.0]


def test_class_weights_of_unknown_or_doubled_labels_are_all_named():
    setting = tuple(ClassWeight(label=label, weight=1.0) for label in ("setsa", "virginica", "virginica", "zzz"))
    with pytest.raises(ConfigError) as caught:
        class_weight_array(setting, ("setosa", "virginica"), np.array([1, 1]))
    assert caught.value.problems == (
        "training.class_weights: expected one of setosa, virginica, got 'setsa'; did you mean 'setosa'?",
        "training.class_weights: expected one of setosa, virginica, got 'zzz'",
        "training.class_weights: label 'virginica' is given twice",
    )


def test_a_loss_of_the_other_task_is_refused():
    with pytest.raises(ConfigError, match="expected a loss for classification, got 'mse', which is for regression"):
        make_loss(Training(loss="mse", label_smoothing=0.0), task="classification", class_weights=None)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_the_loss_of_members_is_the_mean_of_theirs(weight):
    training = Training(loss="cross_entropy", label_smoothing=0.1)
    loss = make_loss(training, task="classification", class_weights=CLASS_WEIGHTS)
    members = random.normal(0, 2, (B, 3, K)).astype(np.float32)
    alone = [loss(members[:, member], LABELS, weight) for member in range(3)]
    np.testing.assert_allclose(loss(members, LABELS, weight), np.mean(alone), rtol=1e-6)
