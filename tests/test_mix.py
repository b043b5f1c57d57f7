"""Mixup and cutmix: pixels and answers are mixed by the same parts, weights are respected, losses see soft targets."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import log_softmax

from mmjax.config import Training
from mmjax.training.losses import make_loss
from mmjax.training.steps import empty_totals, make_train_step
from mmjax.transforms.mix import cut_boxes, mix, mixed_answers
from tests.learning import make_learner, make_state, rows

laws = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**31 - 1)
ROWS, CLASSES = 12, 5
MIXES = {"mixup": mix(mixup=1.0), "cutmix": mix(cutmix=1.0), "both": mix(mixup=0.4, cutmix=1.0, probability=0.7)}
COMPILED = {name: jax.jit(augment) for name, augment in MIXES.items()}
names = st.sampled_from(sorted(MIXES))


def batch_of(seed: int, rows: int = ROWS, *, size: tuple[int, int] = (6, 7), count: int = 2) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (rows, count, *size, 3)).astype(np.uint8),
        "image_present": np.ones((rows, count), np.float32),
        "numeric": np.ones((rows, 2), np.float32),
        "label": rng.integers(0, CLASSES, rows).astype(np.int32),
        "weight": rng.choice([0.5, 1.0, 2.0], rows).astype(np.float32),
    }


def parts_of(batch: dict, out: dict) -> np.ndarray:
    """f64[B]: the part of the other image in each, from its pixels."""
    own, now = np.asarray(batch["image"], float), np.asarray(out["image"], float)
    other = np.roll(own, 1, axis=0)
    return ((now - own) * (other - own)).sum((1, 2, 3, 4)) / ((other - own) ** 2).sum((1, 2, 3, 4))


@laws
@given(name=names, seed=seeds)
def test_shapes_ranges_and_other_fields(name, seed):
    batch = batch_of(seed)
    out = COMPILED[name](jax.random.key(seed), batch)
    assert out["image"].shape == batch["image"].shape
    assert out["image"].dtype == jnp.float32
    assert float(out["image"].min()) >= 0
    assert float(out["image"].max()) <= 255.001
    assert set(out) == {*batch, "mixed_label", "mixed_share"}
    assert out["label"].dtype == jnp.int32
    assert np.array_equal(out["numeric"], batch["numeric"])
    again = COMPILED[name](jax.random.key(seed), batch)
    assert all(np.array_equal(out[field], again[field]) for field in out)
    other = COMPILED[name](jax.random.key(seed + 1), batch)
    assert not np.array_equal(out["image"], other["image"])


@laws
@given(seed=seeds)
def test_mixup_is_a_mean_of_two_images_and_answers(seed):
    batch = batch_of(seed)
    out = COMPILED["mixup"](jax.random.key(seed), batch)
    part = parts_of(batch, out)
    own = np.asarray(batch["image"], float)
    want = own + part[:, None, None, None, None] * (np.roll(own, 1, axis=0) - own)
    np.testing.assert_allclose(out["image"], want, atol=0.01)
    _expect_soft_targets(batch, out, part)


@laws
@given(seed=seeds)
def test_cutmix_shows_a_box_of_the_other_image(seed):
    batch = batch_of(seed)
    out = COMPILED["cutmix"](jax.random.key(seed), batch)
    own, now = np.asarray(batch["image"], float), np.asarray(out["image"], float)
    other = np.roll(own, 1, axis=0)
    assert ((now == own) | (now == other)).all(-1).all()
    part = np.zeros(ROWS)
    for index in range(ROWS):
        changed = (now[index] != own[index]).any((0, 3))
        rows_of, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        if len(rows_of):
            box = np.s_[:, rows_of[0] : rows_of[-1] + 1, columns[0] : columns[-1] + 1]
            assert (now[index][box] == other[index][box]).all()
            part[index] = len(rows_of) * len(columns) / changed.size
    _expect_soft_targets(batch, out, part)


def _expect_soft_targets(batch: dict, out: dict, part: np.ndarray) -> None:
    """The soft target is the mean of both one-hots by part and weight; the label is its largest class."""
    one_hot, weight = np.eye(CLASSES)[batch["label"]], np.asarray(batch["weight"], float)
    others = np.roll(weight, 1) * part
    whole = weight * (1 - part) + others
    want = (one_hot * (weight * (1 - part))[:, None] + np.roll(one_hot, 1, axis=0) * others[:, None]) / whole[:, None]
    share = np.asarray(out["mixed_share"], float)[:, None]
    got = np.eye(CLASSES)[out["label"]] * (1 - share) + np.eye(CLASSES)[out["mixed_label"]] * share
    np.testing.assert_allclose(got, want, atol=2e-4)
    np.testing.assert_allclose(out["weight"], whole, rtol=1e-4)
    assert (want[np.arange(len(want)), out["label"]] >= want.max(1) - 1e-3).all()
    assert ((share >= 0) & (share <= 0.5)).all()


def test_numbers_are_mixed_themselves():
    batch = batch_of(1) | {"label": np.random.default_rng(1).normal(size=(ROWS, 1)).astype(np.float32)}
    del batch["weight"]
    out = COMPILED["mixup"](jax.random.key(3), batch)
    part = parts_of(batch, out)[:, None]
    want = (1 - part) * batch["label"] + part * np.roll(batch["label"], 1, axis=0)
    np.testing.assert_allclose(out["label"], want, atol=1e-4)
    np.testing.assert_allclose(out["weight"], 1, atol=1e-6)
    assert "mixed_label" not in out


@pytest.mark.parametrize("label", [np.arange(4, dtype=np.int32), np.array([[np.nan], [1.0], [2.0], [3.0]], np.float32)])
def test_a_row_without_weight_teaches_no_answer(label):
    batch = {"label": label, "weight": np.array([0.0, 1.0, 1.0, 1.0], np.float32)}
    out = mixed_answers(batch, jnp.asarray([0.4, 0.4, 0.4, 1.0]))
    np.testing.assert_allclose(out["weight"], [0.4, 0.6, 1.0, 1.0], atol=1e-6)
    if label.dtype == np.int32:
        assert out["label"].tolist() == [3, 1, 2, 2]  # the first holds its partner's, the last is its partner's
        np.testing.assert_allclose(out["mixed_share"], [0.0, 0.0, 0.4, 0.0], atol=1e-6)
    else:
        np.testing.assert_allclose(out["label"][:, 0], [3.0, 1.0, 1.6, 2.0], atol=1e-6)


def test_rows_with_an_absent_image_are_not_mixed():
    batch = batch_of(0)
    batch["image_present"][4, 1] = 0
    out = COMPILED["mixup"](jax.random.key(0), batch)
    same = (np.asarray(out["image"]) == batch["image"]).all((1, 2, 3, 4))
    assert same.tolist() == [index in (4, 5) for index in range(ROWS)]
    assert out["mixed_share"][4] == 0


def test_no_strength_and_no_images_change_nothing(getkey):
    batch = batch_of(0)
    for nothing in (mix(), mix(mixup=0.2, probability=0.0)):
        assert nothing(getkey(), batch) is batch
    table = {"numeric": jnp.ones((3, 2)), "label": jnp.arange(3)}
    assert MIXES["both"](getkey(), table) is table


def test_parts_follow_the_beta_law_and_half_of_both_are_cut():
    batch = batch_of(0, 1200, size=(16, 16), count=1)
    for alpha in (0.2, 1.0, 1.5):
        part = parts_of(batch, jax.jit(mix(mixup=alpha))(jax.random.key(2), batch))
        assert stats.kstest(np.clip(part, 0, 1), stats.beta(alpha, alpha).cdf).pvalue > 1e-4
    part = np.asarray(jax.random.uniform(jax.random.key(1), (1200,)))
    boxes = jax.jit(lambda key, part: cut_boxes(key, part, (400, 300)))(jax.random.key(0), part)
    top, left, height, width, _ = (np.asarray(each, float).ravel() for each in boxes)
    whole = (top > 0) & (left > 0) & (top + height < 400) & (left + width < 300)
    np.testing.assert_allclose((height * width / 120_000)[whole], part[whole], atol=0.02)  # whole pixels
    out = jax.jit(mix(mixup=1.0, cutmix=1.0, probability=0.6))(jax.random.key(3), batch)
    own, now = np.asarray(batch["image"], float), np.asarray(out["image"], float)
    changed = (now != own).any((1, 2, 3, 4))
    cut = changed & ((now == own) | (now == np.roll(own, 1, axis=0))).all((1, 2, 3, 4))
    blended = changed & ~cut
    assert stats.binomtest(int(blended.sum()), 1200, 0.3).pvalue > 1e-4
    filled = 1 - (2 / 16) ** 2  # half a side of smaller boxes is less than a pixel: they are empty
    assert stats.binomtest(int(cut.sum()), 1200, 0.3 * filled).pvalue > 1e-4


MIXED_SHARE = np.array([0.0, 0.3, 0.5, 0.1, 0.2, 0.0, 0.4, 0.25], np.float32)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_the_step_learns_from_both_answers_and_counts_the_dominant_one(getkey, loss):
    data = rows(8)
    data["weight"] = np.array([1, 2, 1, 0, 1, 1, 0.5, 1], np.float32)
    other = 1 - data["label"]

    def mixed(key, batch):
        return {**batch, "mixed_label": jnp.asarray(other), "mixed_share": jnp.asarray(MIXED_SHARE)}

    learner = make_learner(optax.sgd(0.0), dropout=0.0)
    training = Training(loss=loss, label_smoothing=0.1)
    learner = learner._replace(augment=mixed, loss=make_loss(training, task="classification", class_weights=None))
    state = make_state(learner, data, getkey())
    _, totals = jax.jit(make_train_step(learner, seed=0))(state, empty_totals(), data, (), {})
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits, _ = learner.model.apply(variables, {"numeric": jnp.asarray(data["numeric"])}, train=False)
    log_p, share = log_softmax(np.asarray(logits, float), axis=1), MIXED_SHARE.astype(float)[:, None]
    soft = np.eye(2)[data["label"]] * (1 - share) + np.eye(2)[other] * share
    if loss == "cross_entropy":
        each = -((soft * 0.9 + 0.05) * log_p).sum(1)
    else:
        each = -(soft * (1 - np.exp(log_p)) ** 2 * log_p).sum(1)
    weight = data["weight"]
    assert float(totals.loss) == pytest.approx((each * weight).sum(), rel=1e-5)  # the mean, times the weights
    assert float(totals.rows) == weight.sum()
    assert float(totals.correct) == (weight * (np.asarray(logits).argmax(1) == data["label"])).sum()
