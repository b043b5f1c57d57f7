"""Was the network worth it? Simple models on the same split, in seconds, and the plain statement of who is better.

The rows they learn from are bounded, and so is the cost: what is left out is said in a note. Each baseline chooses its
setting on the validation rows (without any: on a fifth of the training rows) and is measured on the rows that the
network is measured on.
"""

import functools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from mmjax.analysis import boosting
from mmjax.analysis.baseline_data import Labels, answers_of, cells, fit_labels, fitting_rows, make_design, trees_table
from mmjax.analysis.baseline_labels import joined_labels, of_each_label
from mmjax.analysis.baseline_models import Fitted, logistic_regression, nearest_neighbours, ridge_regression
from mmjax.analysis.baseline_quantiles import (
    MEAN,
    PINBALL,
    SPREAD,
    Quantiles,
    median,
    pinball_draws,
    pinball_of,
    pinball_rows,
    spread_around,
)
from mmjax.analysis.bootstrap import (
    LEAST_ROWS,
    MOST_ROWS,
    Interval,
    Resamples,
    difference_intervals,
    larger_than_noise,
    metric_values,
    resample,
)
from mmjax.analysis.tables import number
from mmjax.artifact.answers import Answers, of_labels, take_answers
from mmjax.backend import reference_mode
from mmjax.data.audit_rows import counted
from mmjax.data.prepared import Prepared
from mmjax.training.metrics import metric_direction

NETWORK = "this network"
"""Among the names of baselines."""
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
"""One in so many training rows is chosen by where there are no validation rows."""


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
    given, batch = getattr(prepared.split, split), prepared.batch
    at = _some(np.arange(len(given)), MOST_ROWS, random, notes, f"all are measured on {{}} {split} rows")
    truth = take_answers(network, at)._replace(total=len(at))
    train, choose = _to_learn_from(prepared, random)
    choose = _some(choose, MOST_CHOOSING, random, notes, "settings are chosen by {} validation rows")
    labels = fit_labels(batch, train, len(prepared.schema.target.classes))
    asked = np.concatenate([given[at], choose]) if quantiles else given[at]  # for the errors that they are spread by
    middle = median(labels, batch, train) if absolute else np.zeros(1)
    usual = Fitted(np.tile(labels.usual if labels.classes else middle, (len(asked), 1)), "")
    majority = "majority of each label" if labels.several else "majority class" if labels.classes else "mean"
    asking: list[tuple[str, Predict]] = [("median" if absolute else majority, lambda: usual)]
    if prepared.schema.features and len(choose):
        parts = train, choose, asked
        asking += _others(prepared, labels, parts, random, notes)
        asking += _boosting(prepared, labels, parts, random, notes, seed) if boost else []
    found: list[tuple[Baseline, Answers]] = []
    losses: dict[str, np.ndarray] = {}
    if quantiles is not None:
        quantiles = quantiles._replace(values=quantiles.values[at])
        losses[NETWORK] = pinball_rows(truth.label, quantiles)
        notes += [SPREAD] if len(asking) > 1 else []
    with reference_mode():
        for name, ask in asking:
            started = time.perf_counter()
            try:
                fitted = ask()
            except boosting.BoostingFailed as error:
                notes.append(f"{name}: left out, as it failed: {error}")
                continue
            spent = time.perf_counter() - started
            answers = answers_of(labels, truth, fitted.answers[: len(at)], prepared.schema.target.offset)
            values = metric_values(answers)
            if quantiles is not None:
                rows, told = (train, MEAN) if fitted is usual else (choose, fitted.answers[len(at) :])
                of = {"labels": labels, "batch": batch, "rows": rows, "found": told}
                spread = spread_around(answers.prediction, quantiles.levels, **of)
                losses[name] = pinball_rows(truth.label, spread)
                values |= {PINBALL: pinball_of(losses[name], truth.weight)}
            found.append((Baseline(name, values, round(spent, 3), fitted.chosen), answers))
    values = metric_values(truth)
    judged = _judged_by(truth, values, weighted=weighted, thresholded=thresholded, absolute=absolute)
    if quantiles is not None:
        values |= {PINBALL: pinball_of(losses[NETWORK], truth.weight)}
        levels = ", ".join(f"{level:g}" for level in quantiles.levels)
        judged = _JudgedBy(PINBALL, "", f"judged by the pinball loss of the quantiles {levels}, which it learns")
    return _judgement(truth, values, found, split, tuple(notes), seed, advice, judged, losses)


class _JudgedBy(NamedTuple):
    """The metrics that a network and its baselines are judged by."""

    metric: str
    also: str
    """A baseline that is better in this one by more than noise is told of too; empty: none."""
    told: str
    """Why it is this metric, or what is unfair about it; empty where it is the usual one."""


def _judged_by(
    truth: Answers, network: dict[str, float], *, weighted: bool, thresholded: bool, absolute: bool
) -> _JudgedBy:
    if truth.probabilities is None and absolute:
        return _JudgedBy("mae", "", "judged by mae, which it learns")
    if truth.probabilities is None:
        return _JudgedBy("rmse", "mae", "")
    also = "subset_accuracy" if of_labels(truth) else "accuracy"
    if not weighted:
        return _JudgedBy("log_loss", "" if thresholded else also, "")
    unlike = "training weighted this network's classes, not the baselines'"
    if np.isfinite(network.get("roc_auc", np.nan)):
        return _JudgedBy("roc_auc", "", f"judged by roc_auc, as {unlike}")
    return _JudgedBy("log_loss", "", f"log_loss favours the baselines, as {unlike}")


def _judgement(
    truth: Answers,
    network: dict[str, float],
    found: list[tuple[Baseline, Answers]],
    split: str,
    notes: tuple[str, ...],
    seed: int,
    advice: str,
    judged: _JudgedBy,
    losses: dict[str, np.ndarray],
) -> Judgement:
    """Return the Judgement; `losses f64[N]` are the pinball losses of the baselines, by name, and of NETWORK."""
    answers = {one.name: theirs for one, theirs in found}
    baselines, metric = tuple(one for one, _ in found), judged.metric

    def draws(answers: Answers, name: str) -> Resamples:
        pinball = pinball_draws(answers, losses[name], seed=seed) if name in losses else None
        return {**resample(answers, seed=seed), **({} if pinball is None else {PINBALL: pinball})}

    drawn = draws(truth, NETWORK)

    @functools.cache
    def differences(name: str) -> dict[str, Interval]:
        return difference_intervals(drawn, draws(answers[name], name))

    def larger(one: Baseline, metric: str) -> bool | None:
        interval = differences(one.name).get(metric)
        return None if interval is None else larger_than_noise(interval)

    usual, ranked = baselines[0], _ranked(baselines, metric)
    best, ahead = ranked[0], [one for one in ranked if _is_better(one, network, metric)]
    unsure = bool(ahead) or larger(best, metric) is False
    as_usual = usual not in ahead and unsure and larger(usual, metric) is False
    beside = usual if as_usual and not ahead else best
    told = [_verdict(network, beside, ahead, metric, split, larger=larger(beside, metric), as_usual=as_usual)]
    told += [f"the network is no better than the {usual.name} by more than noise"] if as_usual and ahead else []
    other = _ranked(baselines, judged.also)[0] if judged.also else best
    behind = bool(judged.also) and not (ahead and larger(best, metric)) and _is_better(other, network, judged.also)
    if behind := behind and larger(other, judged.also) is True:
        values = f"{number(other.metrics[judged.also])} against {number(network[judged.also])}"
        told.append(f"in {judged.also} {other.name} is better, {values}, a difference larger than noise")
    beaten = bool(ahead) or as_usual or behind
    few = not drawn and len(truth.row) < LEAST_ROWS
    told += [f"{counted(len(truth.row), 'row')} cannot tell it from noise"] if few else []
    told += [judged.told, advice if beaten else ""]
    return Judgement(
        len(truth.row),
        split,
        metric,
        network,
        baselines,
        best.name,
        beaten,
        differences(best.name).get(metric),
        "; ".join(filter(None, told)),
        notes,
    )


def _ranked(baselines: Sequence[Baseline], metric: str) -> list[Baseline]:
    """Return the baselines, the best by the metric first; those whose value is undefined come last."""
    sign = 1.0 if _less_is_better(metric) else -1.0
    return sorted(baselines, key=lambda one: (np.isnan(one.metrics[metric]), sign * one.metrics[metric]))


def _is_better(one: Baseline, network: dict[str, float], metric: str) -> bool:
    """Return whether the baseline's value is better than the network's, also where that is undefined."""
    theirs, ours = one.metrics[metric], network[metric]
    return bool(np.isnan(ours)) or (theirs < ours if _less_is_better(metric) else theirs > ours)


def _less_is_better(metric: str) -> bool:
    return metric == PINBALL or metric_direction(metric) == "min"


def _verdict(
    network: dict[str, float],
    beside: Baseline,
    ahead: list[Baseline],
    metric: str,
    split: str,
    *,
    larger: bool | None,
    as_usual: bool,
) -> str:
    """Return who is better, the network or the baseline `beside` it.

    `larger` says whether their difference is more than noise, None: unknown; `as_usual` that the network is no better
    than the majority or mean.
    """
    theirs, ours = _number(beside.metrics[metric]), _number(network[metric])
    noise = {None: "", True: ", a difference larger than noise", False: ", a difference within noise"}[larger]
    where = f"this network on {split}: {metric}"
    if not ahead and as_usual:
        told = f"this network is no better than the {beside.name} on {split}"
        return f"{told}: {metric} {ours} against {theirs}{noise}"
    if not ahead:
        return f"no baseline is better than {where} {ours} against {theirs} of {beside.name}{noise}"
    others = [one.name for one in ahead if one.name != beside.name]
    if larger is False:
        also = f"; so {'does' if len(others) == 1 else 'do'} {', '.join(others)}" if others else ""
        return f"{beside.name} does as well as {where} {theirs} against {ours}{noise}{also}"
    also = f"; also ahead: {', '.join(others)}" if others else ""
    return f"{beside.name} is better than {where} {theirs} against {ours}{noise}{also}"


def _number(value: float) -> str:
    return "undefined" if np.isnan(value) else number(value)


def _some(
    rows: np.ndarray, most: int, random: np.random.Generator, notes: list[str] | None = None, what: str = ""
) -> np.ndarray:
    """Return at most `most` of the rows, in their order; a note says so where some are left out."""
    if len(rows) <= most:
        return rows
    if notes is not None:
        notes.append(f"{what.format(f'{most:,} of {len(rows):,}')}, drawn at random")
    return np.sort(random.permutation(rows)[:most])


def _to_learn_from(prepared: Prepared, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to fit on and those to choose by; rows without weight are in neither."""
    train, choose = prepared.split.train, prepared.split.validation
    if "weight" in prepared.batch:
        train, choose = (rows[prepared.batch["weight"][rows] > 0] for rows in (train, choose))
    if not len(choose):
        mixed, held = random.permutation(train), len(train) // FOLD
        train, choose = np.sort(mixed[held:]), np.sort(mixed[:held])
    return train, choose


def _others(
    prepared: Prepared,
    labels: Labels,
    parts: tuple[np.ndarray, np.ndarray, np.ndarray],
    random: np.random.Generator,
    notes: list[str],
) -> list[tuple[str, Predict]]:
    """Return regression and nearest neighbours, by name; `parts` are rows to fit on, to choose by and to answer."""
    batch, (train, choose, asked) = prepared.batch, parts
    design, left_out = make_design(prepared.schema, batch, _some(train, MOST_BOOSTED, random))
    notes += [f"regression and neighbours see {what}" for what in left_out]
    choosing, x = fitting_rows(labels, batch, choose, design(choose)), design(asked)
    if not x.shape[1]:
        notes.append("regression and neighbours: left out, as no column varies")
        return []
    most = max(1000, MOST_NUMBERS // (x.shape[1] + 4 * labels.classes))
    learning = _some(train, most, random, notes, "regression learns from {} training rows")
    near = _some(train, MOST_NEIGHBOURS, random, notes, "neighbours are looked for among {} training rows")
    regression = logistic_regression if labels.classes else ridge_regression

    regression = of_each_label(regression) if labels.several else regression
    nearest = partial(nearest_neighbours, classes=labels.classes > 0)
    nearest = of_each_label(nearest) if labels.several else nearest

    def neighbours() -> Fitted:
        return nearest(fitting_rows(labels, batch, near, design(near)), choosing, x)

    return [
        (
            "logistic regression" if labels.classes else "ridge regression",
            lambda: regression(fitting_rows(labels, batch, learning, design(learning)), choosing, x),
        ),
        ("k nearest neighbours", neighbours),
    ]


def _boosting(
    prepared: Prepared,
    labels: Labels,
    parts: tuple[np.ndarray, np.ndarray, np.ndarray],
    random: np.random.Generator,
    notes: list[str],
    seed: int,
) -> list[tuple[str, Predict]]:
    """Return gradient boosting by the installed library; nothing, and a note, without any."""
    library = boosting.installed_library()
    if library is None:
        names = ", ".join(boosting.LIBRARIES.values())
        notes.append(f"gradient boosting: left out, as none of {names} is installed; pip install mmjax[baselines]")
        return []
    batch, (train, choose, asked) = prepared.batch, parts
    learning = _some(train, MOST_BOOSTED, random, notes, "gradient boosting learns from {} training rows")

    def boosted() -> Fitted:
        train, chosen = (trees_table(labels, batch, rows) for rows in (learning, choose))
        kinds = {"categories": prepared.schema.cardinalities, "classes": 2 if labels.several else labels.classes}
        x = cells(batch, asked)

        def fitted(train: boosting.Table, chosen: boosting.Table) -> Fitted:
            return Fitted(*boosting.boosted(library, train, chosen, x, **kinds, seed=seed))

        if not labels.several:
            return fitted(train, chosen)
        parts = [fitted(*(t._replace(y=t.y[:, i]) for t in (train, chosen))) for i in range(labels.classes)]
        return joined_labels(parts)

    if labels.several and labels.classes > MOST_BOOSTED_LABELS:
        notes.append(f"gradient boosting: left out, as more than {MOST_BOOSTED_LABELS} labels would take minutes")
        return []
    return [("gradient boosting", boosted)]
