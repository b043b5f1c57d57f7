"""A budget of time: what a run has to leave out so that it ends in time, decided after a timed epoch of one model."""

import time
from typing import NamedTuple

from mmjax.config import Config, fold_count
from mmjax.recipe import Decision
from mmjax.training.events import timed_epoch
from mmjax.training.setup import Setup, first_member

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}
RESERVE_SHARE, RESERVE_S = 0.15, 3.0
"""Kept for what follows the training: scores, baselines, the bundle."""
CUT = "budget"
"""How the reason of what was cut begins."""
STOPPED_SHARE = 0.5
"""Of its epochs that a run with early stopping is taken to need; one that needs more ends with the budget."""
KEYS = ("training.members", "split.folds", "training.epochs")
"""What is cut, in this order: more models add less than longer training does."""


def budget_s(config: Config) -> float | None:
    """Return the seconds of `budget`; None where there is none.

    >>> from types import SimpleNamespace
    >>> budget_s(SimpleNamespace(budget="1.5m"))
    90.0
    """
    return None if config.budget is None else float(config.budget[:-1]) * UNITS_S[config.budget[-1]]


class Cost(NamedTuple):
    """What one model takes."""

    compile_s: float
    epoch_s: float
    """Steps of an epoch and its look at the validation rows."""


def ends_at(config: Config, started: float) -> float | None:
    """Return when training has to end, by `time.monotonic`, of a run that started then; None without a budget."""
    seconds = budget_s(config)
    return None if seconds is None else started + seconds * (1.0 - RESERVE_SHARE) - RESERVE_S


def measured_cost(setup: Setup) -> Cost:
    """Return what one model of the run takes, by a short trial; its state stays as it is."""
    one = first_member(setup)
    began = time.perf_counter()
    epoch_s = timed_epoch(one.state, one.task, one.plan)
    return Cost(time.perf_counter() - began, epoch_s)


def cuts(config: Config, cost: Cost, left_s: float) -> tuple[Decision, ...]:
    """Return what has to be decided otherwise so that the training fits into `left_s` seconds; nothing where it does.

    Members go first, then folds (none at all where two are too many), then epochs, of which one is left.
    """
    epochs = config.training.epochs
    assert isinstance(epochs, int), "the recipe decides the epochs"
    members, folds = config.training.members, fold_count(config)
    seeds = max(len(config.training.seeds), 1)
    spare = max(left_s - cost.compile_s, 0.0)
    share = STOPPED_SHARE if config.training.early_stopping.enabled is True else 1.0
    models = int(spare / max(share * epochs * cost.epoch_s, 1e-9))
    wanted = {"training.members": members, "split.folds": folds, "training.epochs": epochs}
    if models < max(folds, 1) * members * seeds:
        members = max(1, min(members, models // max(folds, 1)))
        folds = folds if folds <= models else models if models >= 2 else 0
        epochs = max(1, min(epochs, int(spare / (max(folds, 1) * members * seeds * max(cost.epoch_s, 1e-9)))))
    why = f"{CUT} {config.budget}: an epoch of one model takes {cost.epoch_s:.2g} s, {max(left_s, 0.0):.0f} s are left"
    found = zip(KEYS, (members, folds, epochs), strict=True)
    return tuple(
        Decision(key, value, f"{why}; {wanted[key]} are too many") for key, value in found if value != wanted[key]
    )


def cut_before(known: tuple[Decision, ...]) -> tuple[Decision, ...]:
    """Return what was cut when a run was left, which it goes on with."""
    return tuple(decision for decision in known if decision.why.startswith(CUT))
