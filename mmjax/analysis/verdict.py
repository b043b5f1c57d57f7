"""Who is better, the network or simple models: by which metric, by more than noise or within it, and in words."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mmjax.analysis.baseline_quantiles import PINBALL, pinball_draws, pinball_of
from mmjax.analysis.bootstrap import (
    LEAST_ROWS,
    Interval,
    Resamples,
    difference_intervals,
    larger_than_noise,
    metric_values,
    resample,
)
from mmjax.analysis.tables import number
from mmjax.artifact.answers import Answers, of_labels
from mmjax.data.audit_rows import counted
from mmjax.training.metrics import metric_direction


class Entrant(NamedTuple):
    """Who is judged, the network or a baseline, by answers to the same rows as all others."""

    name: str
    answers: Answers
    metrics: dict[str, float]
    """Those of `mmjax.analysis.bootstrap.metric_values`, and `pinball` where there are losses."""
    losses: np.ndarray | None
    """f64[N], the pinball loss of each row; None unless quantiles are asked."""


class JudgedBy(NamedTuple):
    """The metrics that a network and its baselines are judged by."""

    metric: str
    also: str
    """A baseline that is better in this one by more than noise is told of too; empty: none."""
    told: str
    """Why it is this metric, or what is unfair about it; empty where it is the usual one."""


class Verdict(NamedTuple):
    """Who is better."""

    best: str
    """The baseline with the best value of the metric."""
    beaten: bool
    """True where that baseline has the better value, by more than noise or within it; where one is better in
    `JudgedBy.also` by more than noise; and where the network is no better than the majority or mean."""
    difference: Interval | None
    """95 % interval of the metric's difference, the best baseline's less the network's (paired bootstrap)."""
    told: str
    """All that in one line."""


Larger = Callable[[Entrant, str], bool | None]
"""`larger(baseline, metric)`: whether its difference to the network is more than noise; None: unknown."""


def make_entrant(name: str, answers: Answers, losses: np.ndarray | None) -> Entrant:
    """Return the Entrant with the metrics of its answers and losses."""
    pinball = {} if losses is None else {PINBALL: pinball_of(losses, answers.weight)}
    return Entrant(name, answers, metric_values(answers) | pinball, losses)


def judged_by(
    network: Entrant, *, levels: Sequence[float], weighted: bool, thresholded: bool, absolute: bool
) -> JudgedBy:
    """Return what a network is judged by that learnt quantiles of these levels (none: it did not).

    `weighted`, `thresholded` and `absolute` are those of `mmjax.analysis.baselines.judge`.
    """
    if levels:
        told = f"judged by the pinball loss of the quantiles {', '.join(f'{one:g}' for one in levels)}, which it learns"
        return JudgedBy(PINBALL, "", told)
    if network.answers.probabilities is None:
        return JudgedBy("mae", "", "judged by mae, which it learns") if absolute else JudgedBy("rmse", "mae", "")
    if not weighted:
        also = "subset_accuracy" if of_labels(network.answers) else "accuracy"
        return JudgedBy("log_loss", "" if thresholded else also, "")
    unlike = "training weighted this network's classes, not the baselines'"
    if np.isfinite(network.metrics.get("roc_auc", np.nan)):
        return JudgedBy("roc_auc", "", f"judged by roc_auc, as {unlike}")
    return JudgedBy("log_loss", "", f"log_loss favours the baselines, as {unlike}")


class _Standing(NamedTuple):
    """How a network stands beside baselines by one metric."""

    metric: str
    network: Entrant
    usual: Entrant
    """The majority, mean or median."""
    best: Entrant
    ahead: list[Entrant]
    """The baselines with a better value than the network's, the best first."""
    as_usual: bool
    """Whether the network is no better than the usual one: ahead of it, but by noise alone."""
    beside: Entrant
    """Whom the network is told beside: the best, or the usual one."""
    larger: bool | None
    """Whether its difference to that one is more than noise; None: unknown."""


def verdict(
    network: Entrant, baselines: Sequence[Entrant], how: JudgedBy, *, split: str, seed: int, advice: str
) -> Verdict:
    """Return the Verdict on a network beside baselines, of which the first is the majority, mean or median.

    `split` is what the rows are called, and `advice` ends the line where the network is behind.
    """
    drawn, by_name = _draws(network, seed), {one.name: one for one in baselines}

    @functools.cache
    def differences(name: str) -> dict[str, Interval]:
        return difference_intervals(drawn, _draws(by_name[name], seed))

    def larger(one: Entrant, metric: str) -> bool | None:
        interval = differences(one.name).get(metric)
        return None if interval is None else larger_than_noise(interval)

    stands = _standing(network, baselines, how.metric, larger)
    told_behind = bool(stands.ahead and stands.larger)
    other = None if told_behind else _ahead_in(how.also, network, baselines, larger)
    beaten = bool(stands.ahead) or stands.as_usual or other is not None
    rows = len(network.answers.row)
    told = [
        _told_behind(stands, split) if stands.ahead else _told_ahead(stands, split),
        "" if other is None else _told_ahead_in(how.also, network, other),
        f"{counted(rows, 'row')} cannot tell it from noise" if not drawn and rows < LEAST_ROWS else "",
        how.told,
        advice if beaten else "",
    ]
    difference = differences(stands.best.name).get(how.metric)
    return Verdict(stands.best.name, beaten, difference, "; ".join(filter(None, told)))


def _draws(one: Entrant, seed: int) -> Resamples:
    pinball = None if one.losses is None else pinball_draws(one.answers, one.losses, seed=seed)
    return {**resample(one.answers, seed=seed), **({} if pinball is None else {PINBALL: pinball})}


def _ranked(baselines: Sequence[Entrant], metric: str) -> list[Entrant]:
    """Return the baselines, the best by the metric first; those whose value is undefined come last."""
    sign = 1.0 if _less_is_better(metric) else -1.0
    return sorted(baselines, key=lambda one: (np.isnan(one.metrics[metric]), sign * one.metrics[metric]))


def _is_better(one: Entrant, network: Entrant, metric: str) -> bool:
    """Return whether the baseline's value is better than the network's, also where that is undefined."""
    theirs, ours = one.metrics[metric], network.metrics[metric]
    return bool(np.isnan(ours)) or (theirs < ours if _less_is_better(metric) else theirs > ours)


def _less_is_better(metric: str) -> bool:
    return metric == PINBALL or metric_direction(metric) == "min"


def _standing(network: Entrant, baselines: Sequence[Entrant], metric: str, larger: Larger) -> _Standing:
    usual, ranked = baselines[0], _ranked(baselines, metric)
    best, ahead = ranked[0], [one for one in ranked if _is_better(one, network, metric)]
    unsure = bool(ahead) or larger(best, metric) is False
    as_usual = not _is_better(usual, network, metric) and unsure and larger(usual, metric) is False
    beside = usual if as_usual and not ahead else best
    return _Standing(metric, network, usual, best, ahead, as_usual, beside, larger(beside, metric))


def _ahead_in(metric: str, network: Entrant, baselines: Sequence[Entrant], larger: Larger) -> Entrant | None:
    """Return the best baseline by the metric where it is better than the network by more than noise."""
    if not metric:
        return None
    other = _ranked(baselines, metric)[0]
    return other if _is_better(other, network, metric) and larger(other, metric) is True else None


def _told_ahead(stands: _Standing, split: str) -> str:
    """Return that no baseline has a better value than the network."""
    ours, theirs = _values(stands)
    metric, name, noise = stands.metric, stands.beside.name, _noise(stands)
    if stands.as_usual:
        return f"this network is no better than the {name} on {split}: {metric} {ours} against {theirs}{noise}"
    return f"no baseline is better than this network on {split}: {metric} {ours} against {theirs} of {name}{noise}"


def _told_behind(stands: _Standing, split: str) -> str:
    """Return that the best baseline has a better value than the network, and which others have."""
    ours, theirs = _values(stands)
    beside, others = stands.beside.name, [one.name for one in stands.ahead if one is not stands.beside]
    where = f"this network on {split}: {stands.metric} {theirs} against {ours}{_noise(stands)}"
    if stands.larger is False:
        also = f"; so {'does' if len(others) == 1 else 'do'} {', '.join(others)}" if others else ""
        told = f"{beside} does as well as {where}{also}"
    else:
        also = f"; also ahead: {', '.join(others)}" if others else ""
        told = f"{beside} is better than {where}{also}"
    if stands.as_usual:
        return f"{told}; the network is no better than the {stands.usual.name} by more than noise"
    return told


def _told_ahead_in(metric: str, network: Entrant, other: Entrant) -> str:
    values = f"{number(other.metrics[metric])} against {number(network.metrics[metric])}"
    return f"in {metric} {other.name} is better, {values}, a difference larger than noise"


def _noise(stands: _Standing) -> str:
    told = {None: "", True: ", a difference larger than noise", False: ", a difference within noise"}
    return told[stands.larger]


def _values(stands: _Standing) -> tuple[str, str]:
    """Return the network's value and that of the baseline beside it, in words."""
    ours, theirs = (one.metrics[stands.metric] for one in (stands.network, stands.beside))
    return _number(ours), _number(theirs)


def _number(value: float) -> str:
    return "undefined" if np.isnan(value) else number(value)
