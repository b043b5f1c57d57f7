"""A budget of time: what a run has to leave out so that it ends in time, decided after a timed epoch of one model."""

import time
from collections.abc import Callable
from typing import NamedTuple

from mmjax.config import Config
from mmjax.data.prepare import Prepared, prepare
from mmjax.errors import ConfigError, DataError
from mmjax.parts import build_parts
from mmjax.recipe import Decision, decided, resolve_prepared, with_decisions
from mmjax.training.events import timed_epoch
from mmjax.training.setup import Setup, first_member, set_up

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
    """Return what has to be decided otherwise so that the training fits into `left_s` seconds.

    Members go first, then folds (none at all where two are too many), then epochs, of which one is left. Where all fits
    that is said of `budget` itself: a run that goes on must not measure, and cut, anew.
    """
    epochs = config.training.epochs
    assert isinstance(epochs, int), "the recipe decides the epochs"
    members, folds = config.training.members, config.split.folds
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
    cut = [Decision(key, value, f"{why}; {wanted[key]} are too many") for key, value in found if value != wanted[key]]
    return tuple(cut) or (Decision("budget", config.budget, f"{why}; nothing is cut"),)


class Ready(NamedTuple):
    """What a run is about to train."""

    config: Config
    decisions: tuple[Decision, ...]
    prepared: Prepared
    setup: Setup


def cut_down(asked: Config, ready: Ready, cut: tuple[Decision, ...], tell: Callable[[str], None]) -> Ready:
    """Return what is trained after what the budget cuts of the config `asked` for.

    For fewer folds the rows are dealt, and what follows from them is decided, anew. ConfigError where they cannot be.
    """
    config, decisions, prepared, _ = ready
    for decision in cut:
        tell(f"{decision.key}: {decision.value}: {decision.why}")
        asked, config = decided(asked, decision), decided(config, decision)
    decisions = with_decisions(decisions, cut)
    if config == ready.config:
        return ready._replace(decisions=decisions)
    try:
        if config.split.folds != ready.config.split.folds:
            prepared = prepare(asked, tell)
            config, anew = resolve_prepared(asked, prepared)
            decisions = with_decisions(anew, cut)
        return Ready(config, decisions, prepared, set_up(config, prepared, build_parts(config, prepared.schema)))
    except (ConfigError, DataError) as error:
        left = ", ".join(f"{decision.key}: {decision.value}" for decision in cut)
        told = f"budget: {config.budget} leaves {left}, with which the config cannot be; raise it, or ask for less"
        raise ConfigError([told, *error.problems]) from error


def cut_before(known: tuple[Decision, ...]) -> tuple[Decision, ...]:
    """Return what was cut when a run was left, which it goes on with."""
    return tuple(decision for decision in known if decision.why.startswith(CUT))
