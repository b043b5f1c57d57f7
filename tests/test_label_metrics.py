"""Several labels, exactly: metrics, loss, output, intervals and baselines against scikit-learn or a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from mmjax.analysis.baseline_labels import of_each_label
from mmjax.analysis.baseline_models import Rows, logistic_regression
from mmjax.analysis.bootstrap import metric_values, resample
from mmjax.analysis.bootstrap_labels import METRICS, label_draw, label_rows
from mmjax.artifact.answers import Answers, answers_from_bytes, answers_to_bytes, same_rows
from mmjax.config import MULTILABEL_METRICS, ClassWeight, Training
from mmjax.errors import ConfigError
from mmjax.schema import Label, Schema, Target
from mmjax.training.decide import Rows as Validation
from mmjax.training.decide import decide, decision_problems
from mmjax.training.label_metrics import best_label_temperature, label_metrics, per_label_metrics
from mmjax.training.losses import binary_cross_entropy, binary_focal, label_weight_array, make_loss
from mmjax.training.outputs import build_output, labels_output
from mmjax.training.scoring import Scores
from mmjax.training.threshold import best_threshold
from mmjax.transforms.mix import mixed_answers

NAMES = ("urgent", "bill", "spam")
TARGET = Target(
    column="urgent, bill, spam",
    task="multilabel",
    classes=NAMES,
    labels=tuple(Label(column=name, negative="no", positive="yes") for name in NAMES),
)


def made(seed: int, rows: int = 60, labels: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities f64[N, L], labels and predictions i64[N, L] that hang together; every label has both values."""
    rng = np.random.default_rng(seed)
    probabilities = rng.random((rows, labels)).astype(np.float32).astype(np.float64)
    truth = (probabilities + rng.normal(0, 0.4, probabilities.shape) > rng.uniform(0.3, 0.7, labels)).astype(np.int64)
    truth[0], truth[1] = 0, 1
    return probabilities, truth, (probabilities >= rng.uniform(0.2, 0.8, labels)).astype(np.int64)


def sklearn_says(p: np.ndarray, y: np.ndarray, called: np.ndarray, weight: np.ndarray | None) -> dict[str, float]:
    """Every metric but the refined log loss and the ECE, which scikit-learn has not, by scikit-learn."""
    each = range(y.shape[1])
    of_labels = {"sample_weight": weight, "zero_division": 0.0}
    found = {
        "subset_accuracy": sk.accuracy_score(y, called, sample_weight=weight),
        "hamming_loss": sk.hamming_loss(y, called, sample_weight=weight),
        "roc_auc": sk.roc_auc_score(y, p, average="macro", sample_weight=weight),
        "pr_auc": sk.average_precision_score(y, p, average="macro", sample_weight=weight),
        "log_loss": np.mean([sk.log_loss(y[:, i], p[:, i], sample_weight=weight) for i in each]),
        "brier": np.mean([sk.brier_score_loss(y[:, i], p[:, i], sample_weight=weight) for i in each]),
    }
    for kind in ("macro", "micro"):
        found |= {
            f"precision_{kind}": sk.precision_score(y, called, average=kind, **of_labels),
            f"recall_{kind}": sk.recall_score(y, called, average=kind, **of_labels),
            f"f1_{kind}": sk.f1_score(y, called, average=kind, **of_labels),
        }
    return found


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 80), st.integers(2, 6), st.booleans())
def test_every_metric_is_scikit_learns(seed: int, rows: int, labels: int, weighted: bool):
    p, y, called = made(seed, rows, labels)
    weight = np.random.default_rng(seed).uniform(0.5, 3.0, rows) if weighted else None
    found = label_metrics(p, y, predictions=called, weight=weight)
    assert tuple(found) == MULTILABEL_METRICS[1:]
    wanted = sklearn_says(p, y, called, weight)
    assert set(found) - set(wanted) == {"refined_log_loss", "ece"}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    each = per_label_metrics(p, y, NAMES * 2, predictions=called, thresholds=np.full(6, 0.5), weight=weight) if (
        labels == 6
    ) else ()  # fmt: skip
    for i, row in enumerate(each):
        precision, recall, f1, _ = sk.precision_recall_fscore_support(
            y[:, i], called[:, i], average="binary", sample_weight=weight, zero_division=0.0
        )
        area = sk.roc_auc_score(y[:, i], p[:, i], sample_weight=weight)
        assert [row[name] for name in ("precision", "recall", "f1", "roc_auc")] == pytest.approx(
            [precision, recall, f1, area], rel=1e-9, abs=1e-12
        )


def test_calibration_error_is_that_of_yes_or_no_of_all_labels():
    p, y, _ = made(3, 200)
    confidence, right = np.maximum(p, 1 - p).reshape(-1), ((p > 0.5) == y).reshape(-1)
    bins = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    gaps = [abs((right[bins == b] - confidence[bins == b]).sum()) for b in range(15)]
    assert label_metrics(p, y)["ece"] == pytest.approx(sum(gaps) / p.size, rel=1e-9)


def test_rows_without_weight_change_nothing_and_what_is_undefined_is_nan():
    p, y, called = made(1)
    more = np.concatenate([p, np.full((5, 3), np.nan)]), np.concatenate([y, np.ones((5, 3), int)])
    weight = np.concatenate([np.ones(len(p)), np.zeros(5)])
    padded = label_metrics(*more, predictions=np.concatenate([called, called[:5]]), weight=weight)
    assert padded == pytest.approx(label_metrics(p, y, predictions=called), rel=1e-12)
    assert np.isnan([*label_metrics(p[:0], y[:0]).values(), *label_metrics(p * np.nan, y).values()]).all()
    y[:, 0] = 0  # a label that nobody holds has no ranking: the mean is over the others
    others = [sk.roc_auc_score(y[:, i], p[:, i]) for i in (1, 2)]
    assert label_metrics(p, y)["roc_auc"] == pytest.approx(np.mean(others), rel=1e-9)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.booleans())
def test_the_loss_is_the_mean_log_loss_of_the_labels(seed: int, weighted: bool):
    rng = np.random.default_rng(seed)
    logits, y = rng.normal(0, 3, (20, 3)), made(seed, 20)[1]
    weight = rng.uniform(0, 2, 20) if weighted else None
    p = 1 / (1 + np.exp(-logits))
    wanted = np.mean([sk.log_loss(y[:, i], p[:, i], sample_weight=weight) for i in range(3)])
    arguments = jnp.asarray(logits, jnp.float32), jnp.asarray(y, jnp.float32)
    row_weight = None if weight is None else jnp.asarray(weight, jnp.float32)
    assert float(binary_cross_entropy(*arguments, weight=row_weight)) == pytest.approx(wanted, rel=1e-5)
    assert float(binary_focal(*arguments, gamma=0.0, weight=row_weight)) == pytest.approx(wanted, rel=1e-5)
    truth = np.where(y > 0, p, 1 - p)
    focal = np.average((-((1 - truth) ** 2) * np.log(truth)).mean(axis=1), weights=weight)
    assert float(binary_focal(*arguments, gamma=2.0, weight=row_weight)) == pytest.approx(focal, rel=1e-4)


def test_balanced_weights_are_scikit_learns_of_each_label():
    from sklearn.utils.class_weight import compute_sample_weight

    logits, (_, y, _) = np.random.default_rng(0).normal(0, 2, (50, 3)), made(0, 50)
    weights = label_weight_array("balanced", NAMES, y.sum(axis=0), len(y))
    of_cells = np.stack([compute_sample_weight("balanced", y[:, i]) for i in range(3)], axis=1)
    p = 1 / (1 + np.exp(-logits))
    wanted = np.average(-np.log(np.where(y > 0, p, 1 - p)), weights=of_cells)
    arguments = jnp.asarray(logits, jnp.float32), jnp.asarray(y, jnp.float32)
    assert float(binary_cross_entropy(*arguments, class_weights=weights)) == pytest.approx(wanted, rel=1e-5)
    listed = label_weight_array((ClassWeight(label="spam", weight=3.0),), NAMES, y.sum(axis=0), len(y))
    np.testing.assert_array_equal(listed, [[1, 1], [1, 1], [1, 3]])
    with pytest.raises(ConfigError, match=r"expected one of urgent, bill, spam, got 'spma'; did you mean 'spam'"):
        label_weight_array((ClassWeight(label="spma", weight=3.0),), NAMES, y.sum(axis=0), len(y))


def test_padding_reaches_neither_loss_nor_gradient():
    weight = jnp.asarray([1.0, 0.0])
    weights = np.array([[1, 2], [1, 3], [1, 4]], np.float32)
    targets = jnp.asarray([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    for name in ("bce", "focal"):
        loss = make_loss(Training(loss=name), task="multilabel", class_weights=weights)
        value, slope = jax.value_and_grad(loss)(jnp.asarray([[0.3, -1.0, 2.0], [np.nan] * 3]), targets, weight)
        assert np.isfinite([value]).all()
        assert np.isfinite(slope).all()
        assert not np.asarray(slope[1]).any()
    members = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)), jnp.float32)
    loss = make_loss(Training(loss="bce"), task="multilabel")
    each = [loss(members[:, i], targets, None) for i in range(4)]
    assert float(loss(members, targets, None)) == pytest.approx(float(np.mean(each)), rel=1e-6)
    with pytest.raises(ConfigError, match="expected a loss for multilabel, got 'cross_entropy'"):
        make_loss(Training(loss="cross_entropy", label_smoothing=0.0), task="multilabel")


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000), st.sampled_from([1, 4]))
def test_the_output_is_a_sigmoid_of_each_label_and_the_mean_of_members(seed: int, members: int):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (9, 3) if members == 1 else (9, members, 3)).astype(np.float32)
    output = build_output(TARGET, "bce", members=members)
    state = output.fit(np.zeros((2, 3), np.int32)) | {"abstain_below": np.float32(0.7)}
    found, jitted = output.apply(state, jnp.asarray(logits)), jax.jit(output.apply)(state, jnp.asarray(logits))
    each = 1 / (1 + np.exp(-logits.astype(np.float64)))
    mean = each if members == 1 else each.mean(axis=1)
    np.testing.assert_allclose(found.probabilities, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jitted.probabilities, found.probabilities, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found.prediction, np.asarray(found.probabilities) > 0.5)
    sure = np.maximum(found.probabilities, 1 - np.asarray(found.probabilities))
    np.testing.assert_array_equal(found.abstained, sure.min(axis=1) < 0.7)
    if members > 1:
        apart = np.abs(each - mean[:, None]).mean(axis=1).max(axis=1)
        np.testing.assert_allclose(found.uncertainty, apart, rtol=1e-4, atol=1e-6)
    own = state | {"threshold": np.array([0.1, 0.5, 0.9], np.float32)}
    held = output.apply(own, jnp.asarray(logits)).prediction
    np.testing.assert_array_equal(held, np.asarray(found.probabilities) >= own["threshold"])


def test_members_that_are_sure_of_yes_are_as_sure_as_of_no():
    """1 less a mean near 1 is 0 in f32: its logit would be 87, which a temperature would not bring back."""
    output = labels_output(1, members=2)
    logits = np.array([[[18.0], [30.0]]], np.float32)
    state = {"temperature": np.float32(5.0)}
    yes, no = (np.asarray(output.apply(state, x).probabilities)[0, 0] for x in (logits, -logits))
    mean = np.log(2.0) - np.logaddexp(-18.0, -30.0)  # its logit, but for 1e-8
    assert yes == pytest.approx(1 / (1 + np.exp(-mean / 5.0)), rel=1e-6)
    assert yes + no == pytest.approx(1.0, abs=1e-6)


def test_what_is_surely_wrong_costs_as_much_on_either_side():
    truth = np.array([[0], [1]] * 20 + [[1]])
    sure = np.where(truth > 0, 0.9, 0.1)
    found = []
    for at in (0.0, 1.0):
        sure[-1], truth[-1] = at, 1 - at
        wrong = np.abs(np.float32(sure) - np.float32(1e-8)).astype(np.float32)  # 1 - 1e-8 is 1 in f32
        found.append(label_metrics(wrong.astype(np.float64), truth)["refined_log_loss"])
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_one_temperature_suits_all_labels():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 3))
    y = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.int32)
    assert best_label_temperature(3.0 * logits, y) == pytest.approx(3.0, rel=0.1)
    output = build_output(TARGET, "bce", members=2)
    twice = np.repeat(3.0 * logits[:, None], 2, axis=1)  # members that agree are as one
    assert output.calibrate is not None
    state = output.calibrate(output.fit(y), twice, y, None)
    assert float(state["temperature"]) == pytest.approx(best_label_temperature(3.0 * logits, y), rel=1e-3)
    assert label_metrics(1 / (1 + np.exp(-3.0 * logits)), y)["refined_log_loss"] == pytest.approx(
        np.mean([sk.log_loss(y[:, i], 1 / (1 + np.exp(-logits[:, i]))) for i in range(3)]), rel=0.01
    )


def test_each_label_has_its_own_threshold():
    p, y, _ = made(5, 300)
    y[:, 2] = 0  # nobody holds it: nothing to tune by
    logits = np.log(p / (1 - p)).astype(np.float32)
    training, schema = (
        Training(threshold="f1", loss="bce", calibration="none", abstain_below=0.6),
        Schema(target=TARGET),
    )
    output = build_output(TARGET, "bce")
    rows = Validation(Scores(logits, y, p.astype(np.float32)), {"label": y.astype(np.int32)})
    state, facts = decide(training, schema, output, output.fit(y), rows)
    wanted = [best_threshold(1 / (1 + np.exp(-logits[:, i])), y[:, i] > 0, "f1") for i in (0, 1)]
    np.testing.assert_allclose(state["threshold"], [*wanted, 0.5], atol=1e-6)
    assert list(facts["threshold"]["labels"]) == list(NAMES)
    assert decision_problems(training, schema, y) == []
    assert decision_problems(Training(abstain_below=0.4), schema, y) == [
        "training.abstain_below: expected a number above 0.5, as yes or no of a label is at least that probable, "
        "got 0.4",
    ]


def answers(seed: int, rows: int = 50) -> Answers:
    p, y, called = made(seed, rows)
    return Answers(np.arange(rows, dtype=np.uint64), y, called, p.astype(np.float32), None, rows)


def test_a_draw_has_the_metrics_of_the_rows_drawn():
    found = answers(0)
    rows, rng = label_rows(found, 64), np.random.default_rng(1)
    for _ in range(3):
        drawn = rng.integers(0, 50, 50)
        share = np.bincount(drawn, minlength=64) / 50
        wanted = label_metrics(
            found.probabilities[drawn].astype(np.float64), found.label[drawn], predictions=found.prediction[drawn]
        )
        got = label_draw(rows, jnp.asarray(share, jnp.float32))
        assert {k: float(v) for k, v in got.items()} == pytest.approx({k: wanted[k] for k in METRICS}, abs=1e-6)
    spread = resample(found)
    assert {name: one.value for name, one in spread.items()} == metric_values(found)
    assert set(spread) == set(METRICS)
    alike = answers_from_bytes(answers_to_bytes(found), "test")
    assert same_rows(found, alike) == ""
    of_classes = alike._replace(label=alike.label[:, 0], prediction=alike.prediction[:, 0])
    assert same_rows(found, of_classes) == "one predicts labels, the other classes"


def test_the_baseline_is_a_logistic_regression_of_each_label():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)).astype(np.float32)
    y = (rng.random((400, 3)) < 1 / (1 + np.exp(-x @ rng.normal(size=(3, 3))))).astype(np.float32)
    y[:300, 2] = 1.0
    train, choose, rest = (Rows(x[s], y[s], np.full(n, 1 / n, np.float32)) for s, n in (
        (slice(0, 300), 300), (slice(300, 350), 50), (slice(350, 400), 50)))  # fmt: skip
    found = of_each_label(logistic_regression)(train, choose, rest.x).answers
    np.testing.assert_array_equal(found[:, 2], 1.0)
    for i in (0, 1):
        models = [LogisticRegression(C=1 / (s * 300), tol=1e-8).fit(train.x, train.y[:, i]) for s in (
            1.0, 0.1, 1e-2, 1e-3, 1e-4)]  # fmt: skip
        apart = [np.abs(m.predict_proba(rest.x)[:, 1] - found[:, i]).max() for m in models]
        assert min(apart) < 0.02  # one of them was chosen; the penalty of two columns of weights is half that of one


def test_mixed_rows_keep_their_labels_together():
    label = jnp.asarray([[1, 0, 1], [0, 1, 0], [0, 0, 1]], jnp.int32)
    found = mixed_answers({"label": label}, jnp.asarray([0.25, 0.75, 0.0]))
    np.testing.assert_array_equal(found["label"], [[1, 0, 1], [1, 0, 1], [0, 0, 1]])  # the larger part's
    np.testing.assert_array_equal(found["mixed_label"], [[0, 0, 1], [0, 1, 0], [0, 1, 0]])
    np.testing.assert_allclose(found["mixed_share"], [0.25, 0.25, 0.0])
