"""A budget of time: what a run has to leave out so that it ends in time, decided after a timed epoch of one model."""

import time
from collections.abc import Callable
from typing import NamedTuple

from msgspec import UNSET

from mmjax.config import Config, fold_count
from mmjax.data.audit_rows import counted
from mmjax.data.prepare import Prepared, prepare
from mmjax.errors import ConfigError, DataError
from mmjax.parts import build_parts
from mmjax.recipe import Decision, as_yaml, decided, resolve_prepared, with_decisions
from mmjax.training.events import timed_epoch
from mmjax.training.setup import Setup, first_member, set_up

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}
RESERVE_SHARE, RESERVE_S = 0.15, 6.0
"""Kept for what follows the training: scores, baselines, the bundle."""
CUT = "budget"
"""The key, and how the reason of what was cut begins."""
STOPPED_SHARE = 0.5
"""Of its epochs that a run with early stopping is taken to need; one that needs more ends with the budget."""
LEAST_COMPILE_S = 3.0
"""What compiling may take though the trial took less: its program may have come from the compile cache."""
COMPILED_OFTEN = 4
"""Programs of several models that are compiled where a trial chooses how: three ways, and the run."""
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
    programs: int = COMPILED_OFTEN
    """That are compiled to train several models."""


def ends_at(config: Config, started: float) -> float | None:
    """Return when training has to end, by `time.monotonic`, of a run that started then; None without a budget."""
    seconds = budget_s(config)
    return None if seconds is None else started + seconds * (1.0 - RESERVE_SHARE) - RESERVE_S


def measured_cost(setup: Setup) -> Cost:
    """Return what one model of the run takes, by a short trial; its state stays as it is."""
    one = first_member(setup)
    began = time.perf_counter()
    epoch_s = timed_epoch(one.state, one.task, one.plan)
    tried = setup.plan.loop and setup.plan.training.member_loop is UNSET  # else `ensembles.choose_way` has no choice
    compile_s = max(time.perf_counter() - began - epoch_s, LEAST_COMPILE_S)
    return Cost(compile_s, epoch_s, COMPILED_OFTEN if tried else 1)


def cuts(config: Config, cost: Cost, left_s: float) -> tuple[Decision, ...]:
    """Return what fits into `left_s` seconds: a Decision about the budget, and one for each key that is cut.

    Members go first, then folds, one by one (none at all where two are too many), then epochs, of which one is left. An
    epoch of fewer folds is one of fewer rows. The program of the run is compiled once more, that of several models up
    to four times, where each way to compute them is tried.
    """
    epochs = config.training.epochs
    assert isinstance(epochs, int), "the recipe decides the epochs"
    members, folds, seeds = config.training.members, fold_count(config), max(len(config.training.seeds), 1)
    wanted = {"training.members": members, "split.folds": folds, "training.epochs": epochs}
    share = STOPPED_SHARE if config.training.early_stopping.enabled is True else 1.0
    trained, wanted_models = share * epochs, max(folds, 1) * members * seeds

    def of_folds(number: int) -> Cost:
        return cost._replace(epoch_s=max(cost.epoch_s, 1e-9) * _rows_of(number, folds))

    def too_long(members: int, number: int) -> bool:
        models = max(number, 1) * members * seeds
        return models > 1 and _training_s(of_folds(number), models, trained) > left_s

    members = next((fewer for fewer in range(members, 1, -1) if not too_long(fewer, folds)), 1)
    fewest = next((fewer for fewer in range(folds, 1, -1) if not too_long(members, fewer)), 0)
    models, own = max(fewest, 1) * members * seeds, of_folds(fewest)
    whole_s, folds = _training_s(own, models, trained), fewest
    if whole_s > left_s:
        epochs = max(1, min(epochs, int((left_s - _training_s(own, models, 0)) / (models * own.epoch_s))))
    found = dict(zip(KEYS, (members, folds, epochs), strict=True))
    taken = f"an epoch of one model takes {cost.epoch_s:.2g} s and compiling {cost.compile_s:.2g} s"
    left = f"{max(left_s, 0.0):.0f} s are left for the training"
    if (short_s := _training_s(own, models, 1) - left_s) > 0:
        left += f", {short_s:.0f} s too few for one epoch: the run takes longer"
    fits = (
        f"about {whole_s:.0f} s are needed"
        if found == wanted
        else f"all that is asked trains in about {_training_s(cost, wanted_models, wanted['training.epochs']):.0f} s"
    )
    told = Decision(CUT, config.budget, f"{taken}, {left}, {fits}")
    why = f"{CUT} {config.budget}: {{}} are too many"
    cut = (Decision(key, value, why.format(wanted[key])) for key, value in found.items() if value != wanted[key])
    return (told, *cut)


def _rows_of(folds: int, wanted: int) -> float:
    """Return the rows of an epoch of `folds` folds as a share of those of `wanted` folds; without folds at most 1.

    >>> _rows_of(2, 5), _rows_of(5, 5), _rows_of(0, 5)
    (0.625, 1.0, 1.0)
    """
    return 1.0 if folds < 2 else (folds - 1) / folds * wanted / (wanted - 1)


def _training_s(cost: Cost, models: int, epochs: float) -> float:
    """Return the seconds that so many models take to train for so many epochs each."""
    return (cost.programs if models > 1 else 1) * cost.compile_s + models * epochs * cost.epoch_s


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
        if fold_count(config) != fold_count(ready.config):
            prepared = prepare(asked, tell)
            config, anew = resolve_prepared(asked, prepared)
            decisions = with_decisions(anew, cut)
        setup = set_up(config, prepared, build_parts(config, prepared.schema))
    except (ConfigError, DataError) as error:
        left = ", ".join(f"{decision.key}: {decision.value}" for decision in cut if decision.key != CUT)
        told = f"budget: {config.budget} leaves {left}, with which the config cannot be; raise it, or ask for less"
        raise ConfigError([told, *error.problems]) from error
    after = Ready(config, decisions, prepared, setup)
    tell(_chosen(ready, after))
    return after


def _chosen(before: Ready, after: Ready) -> str:
    """Return what is trained after a cut, in words, and what the recipe decides otherwise because of it."""
    training, folds = after.config.training, fold_count(after.config)
    epochs = training.epochs
    assert isinstance(epochs, int), "the recipe decides the epochs"
    models = max(folds, 1) * training.members * max(len(training.seeds), 1)
    known = {decision.key: decision.value for decision in before.decisions}
    anew = [one for one in after.decisions if one.key not in (CUT, *KEYS) and known.get(one.key, CUT) != one.value]
    also = f"; decided anew: {', '.join(f'{one.key}={as_yaml(one.value)}' for one in anew)}" if anew else ""
    what = f"{counted(models, 'model')}, of {folds} folds" if folds else f"{counted(models, 'model')}, no folds"
    return f"budget: trained now: {what}, epochs: at most {epochs:,}{also}"


def cut_before(known: tuple[Decision, ...]) -> tuple[Decision, ...]:
    """Return what the budget decided when a run was left, which it goes on with."""
    return tuple(decision for decision in known if decision.key == CUT or decision.why.startswith(CUT))
