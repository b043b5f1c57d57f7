"""Baselines against scikit-learn, what they may learn from, and the plain statement of who is better."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, mean_pinball_loss
from sklearn.neighbors import KNeighborsClassifier

from mmjax.analysis import baselines, boosting
from mmjax.analysis.baseline_data import fit_labels, fitting_rows, make_design
from mmjax.analysis.baseline_models import Rows, logistic_regression, nearest_neighbours, ridge_regression
from mmjax.analysis.baseline_quantiles import Quantiles
from mmjax.analysis.baselines import Judgement, judge
from mmjax.analysis.bootstrap import metric_values
from mmjax.artifact.answers import Answers, row_ids
from mmjax.data.prepared import Prepared
from mmjax.data.split import Split
from mmjax.schema import Column, Schema, Target

N = 240


def rows(n: int, k: int, *, seed: int) -> tuple[Rows, np.ndarray]:
    """Rows with a linear truth, weighted; and their labels."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 5)).astype(np.float32)
    slopes = np.random.default_rng(9).normal(size=(5, max(k, 1)))
    weight = random.integers(1, 4, n).astype(np.float32)
    if k:
        label = (x @ slopes + random.gumbel(size=(n, k))).argmax(axis=1)
        return Rows(x, np.eye(k, dtype=np.float32)[label], weight / weight.sum()), label
    label = x @ slopes + random.normal(size=(n, 1)) * 0.5 + 3.0
    return Rows(x, label.astype(np.float32), weight / weight.sum()), label


@pytest.mark.parametrize("k", [2, 4])
def test_logistic_regression_is_scikit_learns(k: int):
    (train, label), (choose, _), (asked, _) = (rows(N, k, seed=seed) for seed in range(3))
    found = logistic_regression(train, choose, asked.x)
    penalty = float(found.chosen.removeprefix("penalty "))
    # Of two classes scikit-learn fits one column of weights, whose square is twice that of our two.
    settings = {"C": (2 if k == 2 else 1) / penalty, "tol": 1e-10, "max_iter": 10_000}
    model = LogisticRegression(**settings).fit(train.x, label, sample_weight=train.weight.astype(np.float64))
    np.testing.assert_allclose(found.answers, model.predict_proba(asked.x), atol=2e-3)


def test_ridge_regression_is_scikit_learns():
    (train, label), (choose, _), (asked, _) = (rows(N, 0, seed=seed) for seed in range(3))
    found = ridge_regression(train, choose, asked.x)
    model = Ridge(alpha=float(found.chosen.removeprefix("penalty "))).fit(train.x, label, sample_weight=train.weight)
    np.testing.assert_allclose(found.answers[:, 0], model.predict(asked.x).reshape(-1), atol=1e-4)


def test_neighbours_are_scikit_learns():
    """Of equal weights: their shares, with the shares of all as one neighbour more."""
    (train, label), (choose, _), (asked, _) = (rows(N, 3, seed=seed) for seed in range(3))
    train = train._replace(weight=np.full(N, 1 / N, np.float32))
    found = nearest_neighbours(train, choose, asked.x, classes=True)
    k = int(found.chosen.split()[0])
    shares = KNeighborsClassifier(k).fit(train.x, label).predict_proba(asked.x)
    np.testing.assert_allclose(found.answers, (k * shares + np.bincount(label) / N) / (k + 1), atol=1e-5)


def prepared(*, classes: int, validation: bool = True, weight: bool = False) -> Prepared:
    """A table whose label follows from a number with gaps and from a category of many values."""
    random = np.random.default_rng(0)
    numeric = random.normal(size=(N, 2)).astype(np.float32)
    category = random.integers(0, 31, (N, 1)).astype(np.int32)
    score = numeric[:, 0] + (category[:, 0] % 3) - 1.0 + 0.3 * random.normal(size=N)
    numeric[::7, 1] = np.nan
    label = np.digitize(score, (-0.3, 1.0)[: classes - 1]).astype(np.int32) if classes else score[:, None]
    batch = {"numeric": numeric, "category": category, "label": label if classes else label.astype(np.float32)}
    if weight:
        batch["weight"] = random.integers(0, 3, N).astype(np.float32)
    names = tuple("abc"[:classes])
    schema = Schema(
        target=Target(column="y", task="classification" if classes else "regression", classes=names, offset=100.0),
        columns=(
            *(Column(name=name, kind="numeric") for name in "pq"),
            Column(name="c", kind="categorical", vocabulary=tuple(map(str, range(30)))),
        ),
    )
    parts = np.arange(0, 150), np.arange(150, 190 if validation else 150), np.arange(190, N)
    split = Split(*parts, notes=())
    return Prepared(schema, np.arange(N), split, batch, {}, ())


def answers(data: Prepared, *, knows: bool) -> Answers:
    """A network's answers to the test rows: the truth, nearly, or nothing of it."""
    test, classes = data.split.test, len(data.schema.target.classes)
    label, weight = data.batch["label"][test], data.batch.get("weight")
    weight = None if weight is None else weight[test].astype(np.float64)
    if not classes:
        label = label.astype(np.float64) + 100.0
        return Answers(row_ids(test), label, label + 0.01 if knows else label * 0, None, weight, len(test))
    told = np.full((len(test), classes), 1 / classes, np.float32)
    if knows:
        told = (0.97 * np.eye(classes)[label] + 0.03 / classes).astype(np.float32)
    return Answers(row_ids(test), label.astype(np.int64), told.argmax(axis=1), told, weight, len(test))


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_a_network_that_knows_nothing_is_told_so(classes: int):
    data = prepared(classes=classes, weight=classes == 2)
    found = judge(data, answers(data, knows=False), "test", boost=True)
    usual, regression, near, trees = found.baselines
    assert [one.name for one in (regression, near, trees)] == [
        "logistic regression" if classes else "ridge regression",
        "k nearest neighbours",
        "gradient boosting",
    ]
    assert trees.chosen.startswith("scikit-learn, ")
    for one in (regression, near, trees):
        assert one.metrics[found.metric] < usual.metrics[found.metric]
    assert found.beaten
    assert found.verdict.startswith(f"{found.best} is better than this network on test: {found.metric} ")
    ahead = [one.name for one in found.baselines if one.metrics[found.metric] < found.network[found.metric]]
    told, _, also = found.verdict.partition("; also ahead: ")
    assert told.endswith(", a difference larger than noise")
    assert {found.best, *also.split(", ")} - {""} == set(ahead)
    assert found.difference is not None
    assert found.difference[1] < 0
    assert found.network == metric_values(answers(data, knows=False))


def test_a_network_that_knows_all_is_told_so_and_learnt_rows_are_not_asked():
    data = prepared(classes=3, validation=False)
    found = judge(data, answers(data, knows=True), "test", boost=False)
    assert not found.beaten
    assert found.verdict.startswith("no baseline is better than this network on test: log_loss 0.02")
    shuffled = data.batch | {"label": data.batch["label"].copy()}
    shuffled["label"][data.split.test] = 0  # what is asked must not be learnt from
    again = judge(data._replace(batch=shuffled), answers(data, knows=True), "test", boost=False)
    assert [one.metrics for one in again.baselines] == [one.metrics for one in found.baselines]


@pytest.mark.parametrize("dealt", [True, False])
def test_without_validation_rows_a_baseline_is_the_mean_of_one_fit_for_each_fold(dealt: bool):
    """Each chooses on the fold that it leaves out, so that all training rows are learnt from."""
    data = prepared(classes=3, validation=False)
    train, test = data.split.train, data.split.test
    if dealt:
        folds = np.arange(len(train), dtype=np.int16) % 3
        data = data._replace(split=data.split._replace(folds=folds))
    else:
        folds = np.random.default_rng(0).permutation(len(train)) % 5  # as `judge` draws them
    found = judge(data, answers(data, knows=False), "test", boost=False)
    parts, labels = [], fit_labels(data.batch, train, 3)
    for fold in np.unique(folds):
        learn, choose = train[folds != fold], train[folds == fold]
        design, _ = make_design(data.schema, data.batch, learn)
        rows = [fitting_rows(labels, data.batch, each, design(each)) for each in (learn, choose)]
        parts.append(logistic_regression(*rows, design(test)).answers)
    wanted = log_loss(data.batch["label"][test], np.mean(parts, axis=0), labels=[0, 1, 2])
    (regression,) = (one for one in found.baselines if one.name == "logistic regression")
    assert regression.metrics["log_loss"] == pytest.approx(wanted, rel=1e-4)


def test_within_noise_nobody_is_called_better_and_what_to_try_is_said():
    data, numeric, category = prepared(classes=2), np.zeros((N, 2), np.float32), np.ones((N, 1), np.int32)
    constant = data._replace(batch=data.batch | {"numeric": numeric, "category": category})
    nearly = np.tile(np.array([0.48, 0.52], np.float32), (50, 1))  # the majority says 0.5267, and 0.54 is true
    network = answers(data, knows=False)._replace(probabilities=nearly)
    found = judge(constant, network, "test", boost=False, advice="try preset: best")
    assert found.beaten
    ours, theirs = found.network["log_loss"], found.baselines[0].metrics["log_loss"]
    assert found.verdict == (
        f"majority class does as well as this network on test: log_loss {theirs:.4f} against {ours:.4f}, a difference "
        "within noise; try preset: best"
    )
    assert "try" not in judge(data, answers(data, knows=True), "test", boost=False, advice="try it").verdict


def told(data: Prepared, network: Answers, **asked: bool) -> Judgement:
    """The Judgement, with an advice."""
    return judge(data, network, "test", boost=False, advice="try it", **asked)


def test_a_network_as_good_as_the_majority_or_the_mean_is_told_so():
    data = prepared(classes=2)
    empty = {"numeric": np.zeros((N, 2), np.float32), "category": np.ones((N, 1), np.int32)}  # no other baseline
    share = data.batch["label"][:150].mean()
    label = data.batch["label"][data.split.test]
    towards = share + np.sign(label.mean() - share) * 0.01
    probabilities = np.tile([1 - towards, towards], (50, 1)).astype(np.float32)
    network = answers(data, knows=False)._replace(probabilities=probabilities)
    found = told(data._replace(batch=data.batch | empty), network)
    ours, theirs = found.network["log_loss"], found.baselines[0].metrics["log_loss"]
    assert ours < theirs
    assert found.beaten
    assert found.verdict == (
        f"this network is no better than the majority class on test: log_loss {ours:.4f} against {theirs:.4f}, "
        "a difference within noise; try it"
    )
    numbers = prepared(classes=0)
    truth = answers(numbers, knows=True).label
    network = answers(numbers, knows=True)._replace(prediction=np.full_like(truth, truth.mean()))
    found = told(numbers._replace(batch=numbers.batch | empty), network)
    assert found.verdict.startswith("this network is no better than the mean on test: rmse ")


def test_a_baseline_that_is_better_in_accuracy_alone_is_told_of():
    """A third of the network's rows are wrong by a little, so its log loss is no worse."""
    data = prepared(classes=2)
    label = data.batch["label"][data.split.test]
    right = np.where(np.arange(50) % 3, 0.9999, 0.49)
    sides = np.stack([right, 1 - right], axis=1)
    probabilities = np.take_along_axis(sides, np.stack([label, 1 - label], axis=1), axis=1).astype(np.float32)
    network = answers(data, knows=True)._replace(probabilities=probabilities, prediction=probabilities.argmax(axis=1))
    found = told(data, network)
    best = max(found.baselines, key=lambda one: one.metrics["accuracy"])
    assert "does as well as this network on test: log_loss " in found.verdict
    assert found.verdict.endswith(
        f"; in accuracy {best.name} is better, {best.metrics['accuracy']:.4f} against 0.6600, a difference larger than "
        "noise; try it"
    )
    assert "accuracy" not in told(data, network, thresholded=True).verdict


def test_weighted_classes_are_judged_by_their_ranking():
    """A prior that was shifted by weights is no fault of the ranking, of which the log loss says nothing."""
    data = prepared(classes=2)
    network = answers(data, knows=True)
    assert network.probabilities is not None
    yes = network.probabilities[:, 1] ** 0.001
    shifted = np.stack([1 - yes, yes], axis=1)
    network = network._replace(probabilities=shifted.astype(np.float32))
    assert " is better than this network on test: log_loss" in told(data, network).verdict
    found = told(data, network, weighted=True)
    assert (found.metric, found.beaten) == ("roc_auc", False)
    assert found.verdict.startswith("no baseline is better than this network on test: roc_auc 1.0000 against ")
    assert found.verdict.endswith(
        "; judged by roc_auc, as training weighted this network's classes, not the baselines'"
    )
    three = prepared(classes=3)
    found = told(three, answers(three, knows=True), weighted=True)
    assert "; log_loss favours the baselines, as training weighted" in found.verdict


def test_the_majority_and_the_mean_are_those_of_the_training_rows():
    data = prepared(classes=2)
    (usual, *_) = judge(data, answers(data, knows=True), "test", boost=False).baselines
    share = data.batch["label"][:150].mean()
    label = data.batch["label"][190:]
    assert usual.metrics["log_loss"] == pytest.approx(-np.log(np.where(label, share, 1 - share)).mean(), rel=1e-5)
    numbers = prepared(classes=0)
    (usual, *_) = judge(numbers, answers(numbers, knows=True), "test", boost=False).baselines
    mean = numbers.batch["label"][:150].mean()
    assert usual.metrics["rmse"] == pytest.approx(
        np.sqrt(((numbers.batch["label"][190:] - mean) ** 2).mean()), rel=1e-5
    )


def test_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch):
    for name, most in (("MOST_ROWS", 40), ("MOST_NEIGHBOURS", 100), ("MOST_CHOOSING", 20)):
        monkeypatch.setattr(baselines, name, most)
    monkeypatch.setattr("mmjax.analysis.baseline_data.MOST_COLUMNS", 16)
    monkeypatch.setattr(boosting, "installed_library", lambda: None)
    data = prepared(classes=2)
    found = judge(data, answers(data, knows=True), "test", boost=True)
    assert found.rows == 40
    assert found.notes == (
        "all are measured on 40 of 50 test rows, drawn at random",
        "settings are chosen by 20 of 40 validation rows, drawn at random",
        "regression and neighbours see of 'c' the 11 most frequent of 30 categories",
        "neighbours are looked for among 100 of 150 training rows, drawn at random",
        "gradient boosting: left out, as none of LightGBM, XGBoost, CatBoost, scikit-learn is installed; "
        "pip install mmjax[baselines]",
    )


def test_a_library_that_fails_costs_nothing_but_its_row(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(boosting, "installed_library", lambda: "lightgbm")
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)
    data = prepared(classes=2)
    found = judge(data, answers(data, knows=True), "test", boost=True)
    assert len(found.baselines) == 3
    assert found.notes[-1].startswith("gradient boosting: left out, as it failed: ")


def test_columns_that_do_not_vary_are_not_there():
    data = prepared(classes=2)
    batch = data.batch | {"numeric": np.zeros((N, 2), np.float32), "category": np.ones((N, 1), np.int32)}
    matrix, notes = make_design(data.schema, batch, data.split.train)
    assert (matrix(data.split.test).shape, notes) == ((50, 0), ())
    found = judge(data._replace(batch=batch), answers(data, knows=True), "test", boost=False)
    assert [one.name for one in found.baselines] == ["majority class"]
    assert found.notes == ("regression and neighbours: left out, as no column varies",)


def test_a_network_that_learns_the_absolute_error_is_judged_by_it():
    data = prepared(classes=0)
    network = answers(data, knows=True)
    worse = network._replace(prediction=network.label + 0.3)
    found = judge(data, worse, "test", boost=False, absolute=True)
    assert (found.metric, found.network["mae"]) == ("mae", pytest.approx(0.3))
    usual = found.baselines[0]
    middle = np.median(data.batch["label"][data.split.train].astype(np.float64))
    assert usual.name == "median"
    label = data.batch["label"][data.split.test].astype(np.float64)
    assert usual.metrics["mae"] == pytest.approx(np.abs(label - middle).mean(), abs=0.02)
    assert "; judged by mae, which it learns" in found.verdict
    lost = judge(data, network._replace(prediction=network.label * 0), "test", boost=False, absolute=True)
    assert lost.verdict.startswith(f"{lost.best} is better than this network on test: mae ")
    assert lost.beaten


LEVELS = (0.1, 0.5, 0.8)


@pytest.mark.parametrize("weight", [False, True])
def test_a_network_that_learns_quantiles_is_judged_by_the_pinball_loss(weight: bool):
    """Its own and that of the mean are scikit-learn's; the mean's quantiles are those of the training rows."""
    data = prepared(classes=0, weight=weight)
    network, train = answers(data, knows=True), data.split.train
    weights = data.batch.get("weight")

    def oracle(values: np.ndarray) -> float:
        return np.mean([mean_pinball_loss(network.label, values[:, i], alpha=q, sample_weight=network.weight)
                        for i, q in enumerate(LEVELS)])  # fmt: skip

    values = network.label + np.array([[-0.5, 0.01, 0.4]])
    found = judge(data, network, "test", boost=True, quantiles=Quantiles(LEVELS, values))
    usual, *others = found.baselines
    assert (found.metric, found.network["pinball"]) == ("pinball", pytest.approx(oracle(values)))
    if weights is None:
        spread = np.quantile(data.batch["label"][train, 0].astype(np.float64) + 100, LEVELS, method="inverted_cdf")
        wanted = oracle(np.tile(spread, (len(values), 1)))  # but for a row to either side: shares of rows are rounded
        assert usual.metrics["pinball"] == pytest.approx(wanted, rel=2e-3)
    assert all(oracle(values) < one.metrics["pinball"] < usual.metrics["pinball"] for one in others)
    assert found.difference is not None
    assert found.difference[0] > 0
    assert not found.beaten
    assert found.verdict.startswith("no baseline is better than this network on test: pinball ")
    assert "; judged by the pinball loss of the quantiles 0.1, 0.5, 0.8, which it learns" in found.verdict
    assert any(note.startswith("quantiles of baselines: ") for note in found.notes)
    wide = judge(data, network, "test", boost=False, quantiles=Quantiles(LEVELS, values + np.array([[-9, 0, 9]])))
    assert wide.beaten, "however good its medians are"
    assert wide.network["mae"] == found.network["mae"]
