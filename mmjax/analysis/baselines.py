"""Was the network worth it? Simple models on the same split, in seconds, and the plain statement of who is better.

The rows they learn from are bounded, and so is the cost: what is left out is said in a note. Each baseline chooses its
setting on the validation rows and is measured on the rows that the network is measured on. Without validation rows a
network learns from all training rows, with folds as the mean of one model for each: so does then each baseline, fitted
for each fold (or fifth) on the others, its setting chosen on the one left out.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from mmjax.analysis import boosting
from mmjax.analysis.baseline_data import Labels, answers_of, cells, fit_labels, fitting_rows, make_design, trees_table
from mmjax.analysis.baseline_labels import joined_labels, of_each_label
from mmjax.analysis.baseline_models import Fitted, logistic_regression, nearest_neighbours, ridge_regression
from mmjax.analysis.baseline_quantiles import MEAN, SPREAD, Quantiles, median, pinball_rows, spread_around
from mmjax.analysis.bootstrap import MOST_ROWS, Interval
from mmjax.analysis.verdict import Entrant, judged_by, make_entrant, verdict
from mmjax.artifact.answers import Answers, take_answers
from mmjax.backend import reference_mode
from mmjax.data.prepared import Prepared

MOST_NUMBERS = 5_000_000
"""Training rows times columns (and four times classes) of a regression."""
MOST_NEIGHBOURS = 10_000
MOST_BOOSTED = 50_000
MOST_CHOOSING = 2_000
MOST_BOOSTED_LABELS = 10
"""Each label is boosted by itself."""


class Baseline(NamedTuple):
    """What a simple model is worth."""

    name: str
    metrics: dict[str, float]
    """Those of `mmjax.analysis.bootstrap.metric_values`."""
    seconds: float
    """Wall clock to fit, to choose and to answer, compilation included."""
    chosen: str
    """Its setting, in words; empty without any."""


Predict = Callable[[], Fitted]
"""Fits a baseline and answers."""
FOLD = 5
"""One in so many training rows is chosen by where there are neither validation rows nor folds."""
MOST_BAGGED = 20_000
"""Training rows up to which each baseline is fitted for every fold; of more, one fit has plenty without a fifth."""


class Judgement(NamedTuple):
    """The network beside the baselines."""

    rows: int
    """On how many rows all are measured."""
    split: str
    """Of which split."""
    metric: str
    """By which they are judged: `log_loss` or `rmse`, less is better; of weighted classes `roc_auc`, more is better. A
    network trained for quantiles is judged by `pinball`, one for the absolute error by `mae`."""
    network: dict[str, float]
    """The network's metrics on these rows."""
    baselines: tuple[Baseline, ...]
    best: str
    """The baseline with the best value of the metric."""
    beaten: bool
    """True where that baseline has the better value, by more than noise or within it; where one is better in accuracy
    or mean absolute error by more than noise; and where the network is no better than the majority or mean."""
    difference: Interval | None
    """95 % interval of the metric's difference, the best baseline's less the network's (paired bootstrap)."""
    verdict: str
    """All that in one line, and what to try where the network is behind."""
    notes: tuple[str, ...]
    """What was left out, and why."""


def judge(
    prepared: Prepared,
    network: Answers,
    split: str,
    *,
    boost: bool,
    seed: int = 0,
    advice: str = "",
    weighted: bool = False,
    thresholded: bool = False,
    absolute: bool = False,
    quantiles: Quantiles | None = None,
) -> Judgement:
    """Return the Judgement of the network's Answers to all rows of `split`, in the order of `prepared.split`.

    Of images only the majority or mean is asked. `boost` adds gradient boosting, where a library is installed. `advice`
    ends the verdict where the network is behind, as in "try preset: best". `weighted` says that training weighted the
    network's classes, `thresholded` that a threshold calls them: its log loss, or its accuracy, is not the baselines'.
    `absolute` says that it was trained for the absolute error; `quantiles` are those that it was trained for, if any.
    """
    random, notes = np.random.default_rng(seed), []
    given = getattr(prepared.split, split)
    at = _some(np.arange(len(given)), MOST_ROWS, random, notes, f"all are measured on {{}} {split} rows")
    pairs = _to_learn_from(prepared, random, notes)
    every, chosen_by = (np.concatenate(rows) for rows in zip(*pairs, strict=True))
    train = np.unique(every)
    labels = fit_labels(prepared.batch, train, len(prepared.schema.target.classes))
    truth = take_answers(network, at)._replace(total=len(at))
    quantiles = None if quantiles is None else quantiles._replace(values=quantiles.values[at])
    question = _Question(prepared, labels, train, chosen_by, given[at], truth, quantiles)
    each = [_part(question, *pair) for pair in pairs]
    asking = _baselines(question, each, random, notes, boost=boost, absolute=absolute, seed=seed)
    notes += [SPREAD] if quantiles is not None and len(asking) > 1 else []
    baselines, entrants = zip(*_answered(question, asking, notes), strict=True)
    ours = make_entrant("this network", truth, None if quantiles is None else pinball_rows(truth.label, quantiles))
    levels = () if quantiles is None else quantiles.levels
    how = judged_by(ours, levels=levels, weighted=weighted, thresholded=thresholded, absolute=absolute)
    best, beaten, difference, told = verdict(ours, entrants, how, split=split, seed=seed, advice=advice)
    return Judgement(len(at), split, how.metric, ours.metrics, baselines, best, beaten, difference, told, tuple(notes))


class _Question(NamedTuple):
    """What baselines are asked."""

    prepared: Prepared
    labels: Labels
    train: np.ndarray
    """Rows to fit on, as `choose` and `asked` indices into the batch."""
    choose: np.ndarray
    """Rows to choose settings by."""
    asked: np.ndarray
    """Rows to answer: those that all are measured on, then, for one fit where there are quantiles, those to choose by.
    """
    truth: Answers
    """The network's answers to those that all are measured on."""
    quantiles: Quantiles | None
    """The network's."""


def _part(question: _Question, train: np.ndarray, choose: np.ndarray) -> _Question:
    """Return what one fit of each baseline is asked."""
    asked = question.asked if question.quantiles is None else np.concatenate([question.asked, choose])
    return question._replace(train=train, choose=choose, asked=asked)


def _baselines(
    question: _Question,
    each: Sequence[_Question],
    random: np.random.Generator,
    notes: list[str],
    *,
    boost: bool,
    absolute: bool,
    seed: int,
) -> dict[str, Predict]:
    """Return the baselines by name, the majority, mean or median first; the others by the mean of their fits."""
    found = _usual(question, absolute=absolute)
    if not question.prepared.schema.features or not len(question.choose):
        return found
    fits: list[dict[str, Predict]] = []
    for number, one in enumerate(each):
        told = notes if number == 0 else []  # the others would say the same
        fits.append(_others(one, random, told))
        fits[-1] |= _boosting(one, random, told, seed) if boost else {}
    names = [name for name in fits[0] if all(name in fit for fit in fits)]
    return found | {name: _bagged([fit[name] for fit in fits], len(question.asked)) for name in names}


def _bagged(fits: Sequence[Predict], measured: int) -> Predict:
    """Return the mean of what fits say of the first `measured` rows, then what each says of rows of its own."""

    def ask() -> Fitted:
        found = [fit() for fit in fits]
        mean = np.mean([one.answers[:measured] for one in found], axis=0)
        chosen = dict.fromkeys(one.chosen for one in found)
        told = next(iter(chosen)) if len(chosen) == 1 else "each fold its own"
        return Fitted(np.concatenate([mean, *(one.answers[measured:] for one in found)]), told)

    return ask


def _usual(question: _Question, *, absolute: bool) -> dict[str, Predict]:
    """Return what answers any row with the majority, the mean or (`absolute`) the median."""
    labels, rows = question.labels, len(question.asked)
    if labels.classes:
        name, answer = "majority of each label" if labels.several else "majority class", labels.usual
    elif absolute:
        name, answer = "median", median(labels, question.prepared.batch, question.train)
    else:
        name, answer = "mean", np.full(1, MEAN)
    return {name: lambda: Fitted(np.tile(answer, (rows, 1)), "")}


def _answered(question: _Question, asking: dict[str, Predict], notes: list[str]) -> Iterator[tuple[Baseline, Entrant]]:
    """Yield what each baseline is worth; a note tells of one that fails."""
    usual = next(iter(asking))
    for name, ask in asking.items():
        started = time.perf_counter()
        try:
            with reference_mode():
                fitted = ask()
        except boosting.BoostingFailed as error:
            notes.append(f"{name}: left out, as it failed: {error}")
            continue
        spent = round(time.perf_counter() - started, 3)
        entrant = _entrant(question, name, fitted, learnt=name != usual)
        yield Baseline(name, entrant.metrics, spent, fitted.chosen), entrant


def _entrant(question: _Question, name: str, fitted: Fitted, *, learnt: bool) -> Entrant:
    """Return a baseline by its answers; its quantiles are these spread by its errors on other rows.

    The errors of what is `learnt` are those on the rows that its setting was chosen by, else those on the rows to fit.
    """
    prepared, labels, truth, quantiles = question.prepared, question.labels, question.truth, question.quantiles
    measured = len(truth.row)
    answers = answers_of(labels, truth, fitted.answers[:measured], prepared.schema.target.offset)
    if quantiles is None:
        return make_entrant(name, answers, None)
    rows, found = (question.choose, fitted.answers[measured:]) if learnt else (question.train, MEAN)
    of = {"labels": labels, "batch": prepared.batch, "rows": rows, "found": found}
    spread = spread_around(answers.prediction, quantiles.levels, **of)
    return make_entrant(name, answers, pinball_rows(truth.label, spread))


def _some(
    rows: np.ndarray, most: int, random: np.random.Generator, notes: list[str] | None = None, what: str = ""
) -> np.ndarray:
    """Return at most `most` of the rows, in their order; a note says so where some are left out."""
    if len(rows) <= most:
        return rows
    if notes is not None:
        notes.append(f"{what.format(f'{most:,} of {len(rows):,}')}, drawn at random")
    return np.sort(random.permutation(rows)[:most])


def _to_learn_from(
    prepared: Prepared, random: np.random.Generator, notes: list[str]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each fit the rows to fit on and those to choose by; rows without weight are in neither."""
    train, choose, folds = prepared.split.train, prepared.split.validation, prepared.split.folds
    told = "settings are chosen by {} validation rows"
    if len(choose):
        train, choose = (rows[_weighs(prepared, rows)] for rows in (train, choose))
        return [(train, _some(choose, MOST_CHOOSING, random, notes, told))]
    if folds is None:
        folds = random.permutation(len(train)) % FOLD
    counted = _weighs(prepared, train)
    train, folds = train[counted], folds[counted]
    numbers = np.unique(folds).tolist()
    pairs = [(train[folds != number], train[folds == number]) for number in numbers]
    pairs = [pair for pair in pairs if len(pair[0]) and len(pair[1])] or [(train, train[:0])]
    if len(train) > MOST_BAGGED and len(pairs) > 1:
        notes.append(f"each is fitted once, without the rows of one fold, as there are over {MOST_BAGGED:,}")
        pairs = pairs[:1]
    return [
        (fit, _some(choose, MOST_CHOOSING, random, notes if number == 0 else [], told))
        for number, (fit, choose) in enumerate(pairs)
    ]


def _weighs(prepared: Prepared, rows: np.ndarray) -> np.ndarray:
    """Return bool[len(rows)]: which of the rows have a weight above 0."""
    return prepared.batch["weight"][rows] > 0 if "weight" in prepared.batch else np.ones(len(rows), bool)


def _others(question: _Question, random: np.random.Generator, notes: list[str]) -> dict[str, Predict]:
    """Return regression and nearest neighbours, by name."""
    labels, batch, train, choose = question.labels, question.prepared.batch, question.train, question.choose
    design, left_out = make_design(question.prepared.schema, batch, _some(train, MOST_BOOSTED, random))
    notes += [f"regression and neighbours see {what}" for what in left_out]
    choosing, x = fitting_rows(labels, batch, choose, design(choose)), design(question.asked)
    if not x.shape[1]:
        notes.append("regression and neighbours: left out, as no column varies")
        return {}
    most = max(1000, MOST_NUMBERS // (x.shape[1] + 4 * labels.classes))
    learning = _some(train, most, random, notes, "regression learns from {} training rows")
    near = _some(train, MOST_NEIGHBOURS, random, notes, "neighbours are looked for among {} training rows")
    name, regression = "ridge regression", ridge_regression
    if labels.classes:
        name, regression = "logistic regression", logistic_regression
    nearest = partial(nearest_neighbours, classes=labels.classes > 0)
    if labels.several:
        regression, nearest = of_each_label(regression), of_each_label(nearest)
    return {
        name: lambda: regression(fitting_rows(labels, batch, learning, design(learning)), choosing, x),
        "k nearest neighbours": lambda: nearest(fitting_rows(labels, batch, near, design(near)), choosing, x),
    }


def _boosting(question: _Question, random: np.random.Generator, notes: list[str], seed: int) -> dict[str, Predict]:
    """Return gradient boosting by the installed library; nothing, and a note, without any."""
    library = boosting.installed_library()
    if library is None:
        names = ", ".join(boosting.LIBRARIES.values())
        notes.append(f"gradient boosting: left out, as none of {names} is installed; pip install mmjax[baselines]")
        return {}
    learning = _some(question.train, MOST_BOOSTED, random, notes, "gradient boosting learns from {} training rows")
    if question.labels.several and question.labels.classes > MOST_BOOSTED_LABELS:
        notes.append(f"gradient boosting: left out, as more than {MOST_BOOSTED_LABELS} labels would take minutes")
        return {}
    return {"gradient boosting": lambda: _boosted(question, library, learning, seed)}


def _boosted(question: _Question, library: str, learning: np.ndarray, seed: int) -> Fitted:
    """Return what gradient boosting answers, fitted on the rows `learning`; each of several labels by itself."""
    labels, batch = question.labels, question.prepared.batch
    tables = [trees_table(labels, batch, rows) for rows in (learning, question.choose)]
    classes = 2 if labels.several else labels.classes
    kinds = {"categories": question.prepared.schema.cardinalities, "classes": classes}
    x = cells(batch, question.asked)

    def fitted(train: boosting.Table, choose: boosting.Table) -> Fitted:
        return Fitted(*boosting.boosted(library, train, choose, x, **kinds, seed=seed))

    if not labels.several:
        return fitted(*tables)
    each = ([table._replace(y=table.y[:, i]) for table in tables] for i in range(labels.classes))
    return joined_labels([fitted(*pair) for pair in each])
