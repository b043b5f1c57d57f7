"""Was the network worth it? Simple models on the same split, in seconds, and the plain statement of who is better.

The rows they learn from are bounded, and so is the cost: what is left out is said in a note. Each baseline chooses its
setting on the validation rows (without any: on a fifth of the training rows) and is measured on the rows that the
network is measured on.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from mmjax.analysis import boosting
from mmjax.analysis.baseline_data import Labels, answers_of, cells, fit_labels, fitting_rows, make_design, trees_table
from mmjax.analysis.baseline_labels import joined_labels, of_each_label
from mmjax.analysis.baseline_models import Fitted, logistic_regression, nearest_neighbours, ridge_regression
from mmjax.analysis.bootstrap import (
    MOST_ROWS,
    Interval,
    difference_intervals,
    larger_than_noise,
    metric_values,
    resample,
)
from mmjax.analysis.tables import number
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
"""One in so many training rows is chosen by where there are no validation rows."""


class Judgement(NamedTuple):
    """The network beside the baselines."""

    rows: int
    """On how many rows all are measured."""
    split: str
    """Of which split."""
    metric: str
    """By which they are judged, `log_loss` or `rmse`: less is better."""
    network: dict[str, float]
    """The network's metrics on these rows."""
    baselines: tuple[Baseline, ...]
    best: str
    """The baseline with the best value of the metric."""
    beaten: bool
    """True where that baseline has the better value, by more than noise or within it."""
    difference: Interval | None
    """95 % interval of the metric's difference, the best baseline's less the network's (paired bootstrap)."""
    verdict: str
    """All that in one line, and what to try where the network is behind."""
    notes: tuple[str, ...]


def judge(
    prepared: Prepared, network: Answers, split: str, *, boost: bool, seed: int = 0, advice: str = ""
) -> Judgement:
    """Return the Judgement of the network's Answers to all rows of `split`, in the order of `prepared.split`.

    Of images only the majority or mean is asked. `boost` adds gradient boosting, where a library is installed. `advice`
    ends the verdict where the network is behind, as in "try preset: best".
    """
    random, notes = np.random.default_rng(seed), []
    given, batch = getattr(prepared.split, split), prepared.batch
    at = _some(np.arange(len(given)), MOST_ROWS, random, notes, f"all are measured on {{}} {split} rows")
    truth = take_answers(network, at)._replace(total=len(at))
    train, choose = _to_learn_from(prepared, random)
    choose = _some(choose, MOST_CHOOSING, random, notes, "settings are chosen by {} validation rows")
    labels = fit_labels(batch, train, len(prepared.schema.target.classes))
    usual = Fitted(np.tile(labels.usual if labels.classes else np.zeros(1), (len(at), 1)), "")
    majority = "majority of each label" if labels.several else "majority class" if labels.classes else "mean"
    asking: list[tuple[str, Predict]] = [(majority, lambda: usual)]
    if prepared.schema.features and len(choose):
        parts = train, choose, given[at]
        asking += _others(prepared, labels, parts, random, notes)
        asking += _boosting(prepared, labels, parts, random, notes, seed) if boost else []
    found: list[tuple[Baseline, Answers]] = []
    with reference_mode():
        for name, ask in asking:
            started = time.perf_counter()
            try:
                fitted = ask()
            except boosting.BoostingFailed as error:
                notes.append(f"{name}: left out, as it failed: {error}")
                continue
            spent = time.perf_counter() - started
            answers = answers_of(labels, truth, fitted.answers, prepared.schema.target.offset)
            found.append((Baseline(name, metric_values(answers), round(spent, 3), fitted.chosen), answers))
    return _judgement(truth, found, split, tuple(notes), seed, advice)


def _judgement(
    truth: Answers, found: list[tuple[Baseline, Answers]], split: str, notes: tuple[str, ...], seed: int, advice: str
) -> Judgement:
    metric = "rmse" if truth.probabilities is None else "log_loss"
    network = metric_values(truth)
    best, answers = min(found, key=lambda one: (np.isnan(one[0].metrics[metric]), one[0].metrics[metric]))
    theirs, ours = best.metrics[metric], network[metric]
    difference = None
    if np.isfinite(theirs) and np.isfinite(ours):
        difference = difference_intervals(resample(truth, seed=seed), resample(answers, seed=seed)).get(metric)
    baselines = tuple(one for one, _ in found)
    ahead = [one for one in baselines if one.metrics[metric] < ours or np.isnan(ours)]
    larger = None if difference is None else larger_than_noise(difference)
    verdict = _verdict(network, best, ahead, metric, split, larger=larger)
    verdict += f"; {advice}" if ahead and advice else ""
    return Judgement(
        len(truth.row), split, metric, network, baselines, best.name, bool(ahead), difference, verdict, notes
    )


def _verdict(
    network: dict[str, float], best: Baseline, ahead: list[Baseline], metric: str, split: str, *, larger: bool | None
) -> str:
    """Return who is better; `larger` says whether the difference to the best is more than noise, None: unknown."""
    theirs, ours = _number(best.metrics[metric]), _number(network[metric])
    noise = {None: "", True: ", a difference larger than noise", False: ", a difference within noise"}[larger]
    where = f"this network on {split}: {metric}"
    if not ahead:
        return f"no baseline is better than {where} {ours} against {theirs} of {best.name}{noise}"
    others = [one.name for one in sorted(ahead, key=lambda one: one.metrics[metric]) if one.name != best.name]
    if larger is False:
        also = f"; so {'does' if len(others) == 1 else 'do'} {', '.join(others)}" if others else ""
        return f"{best.name} does as well as {where} {theirs} against {ours}{noise}{also}"
    also = f"; also ahead: {', '.join(others)}" if others else ""
    return f"{best.name} is better than {where} {theirs} against {ours}{noise}{also}"


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
