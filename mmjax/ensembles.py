"""What a run has to do beside its training where it trains many models: members of an ensemble, folds, seeds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import msgspec
from msgspec import UNSET

from mmjax.artifact.runs import DECISIONS
from mmjax.config import Config
from mmjax.parts import States
from mmjax.recipe import Decision
from mmjax.training.decide import Rows, answered, decide
from mmjax.training.events import TrainResult
from mmjax.training.members import member_of
from mmjax.training.program import member_trials
from mmjax.training.scoring import Scores
from mmjax.training.setup import Setup

MEMBER_LOOP = "training.member_loop"


def decided_before(run_dir: Path) -> tuple[Decision, ...]:
    """Return the decisions of a run that was left; what a trial or the clock decided is not decided anew."""
    path = run_dir / DECISIONS
    return tuple(Decision(**one) for one in json.loads(path.read_bytes())) if path.is_file() else ()


def tried_before(known: tuple[Decision, ...]) -> tuple[Decision, ...]:
    """Return how members were computed when a run was left, which it goes on with: another way rounds otherwise.

    Nothing where that was not tried yet.
    """
    return tuple(one for one in known if one.key == MEMBER_LOOP)


def choose_way(setup: Setup, tell: Callable[[str], None]) -> Decision:
    """Return the fastest way to compute the members, by a short trial; of images on a CPU `loop`, without one.

    XLA may compute convolutions slowly inside a loop, as `map` is (a step of two small ResNets in f32 5 s in place of
    0.1; of two ResNet-18 in bfloat16 2.6 in place of 2.9), and of several members at once (`vmap`: of these two 75).
    """
    if not setup.plan.loop:
        how, why = "loop", "convolutions of several members in one program are slow on a CPU"
    else:
        trials = member_trials(setup.state, setup.task, setup.plan)
        taken = ", ".join(f"{trial.how} {trial.seconds * 1e3:.3g} ms" for trial in trials)
        only = "; what is left of the run, or of its budget, is too short to try others" if len(trials) == 1 else ""
        how, why = trials[0].how, f"a step of {setup.task.models} members takes {taken}{only}"
    tell(f"members: {how}: {why}")
    return Decision(MEMBER_LOOP, how, why)


def members_report(setup: Setup, states: States, output: Any, result: TrainResult) -> dict[str, Any] | None:
    """Return what each member is worth alone, by split; None for one model.

    Each is calibrated and called as the state `output` of `decide` says: by the temperature and threshold of the model,
    or with folds of out-of-fold answers. A seed is a model of its own and has what is fitted to its own answers.
    """
    members = setup.scorer.members
    if members is None:
        return None

    training, schema = setup.plan.training, setup.scorer.prepared.schema
    own = [output] * len(members.numbers)

    def answer(index: int, scores: Scores) -> Scores:
        if output is states.output:
            return scores  # nothing was decided
        return answered(setup.alone, own[index], scores.outputs)

    def held_out(index: int, scores: Scores) -> Scores:
        """Answer a model's validation rows, from which what a seed answers by is decided; the first one's is known."""
        if training.seeds and index and output is not states.output:
            rows = Rows(scores, setup.scorer.answers(members.held[index]))
            own[index], _ = decide(training, schema, setup.alone, states.output, rows)
        return answer(index, scores)

    best = result.best_epochs or (result.best_epoch,) * len(members.numbers)
    validation = setup.scorer.metrics(states, members.held, held_out)
    test = setup.scorer.metrics(states, (setup.scorer.prepared.split.test,) * len(best), answer)
    return {
        "as_decided": output is not states.output,
        "kind": "seeds" if training.seeds else "folds" if members.folds else "members",
        "folds": members.folds,
        "each": [
            {"number": number, "best_epoch": epoch, "validation": held, "test": tests}
            for number, epoch, held, tests in zip(members.numbers, best, validation, test, strict=True)
        ],
    }


def first_seed(config: Config, setup: Setup, states: States) -> tuple[Config, Setup, States]:
    """Return the model of the first seed, and a config that trains it alone: `seeds` of one.

    What other models are trained from is the config's `seed` and no member, which is seed 0 here.
    """
    training = msgspec.structs.replace(config.training, seeds=config.training.seeds[:1], member_loop=UNSET)
    task = setup.task._replace(parameters=setup.task.parameters // len(config.training.seeds))
    first = states._replace(variables=jax.device_put(member_of(jax.device_get(states.variables), 0)))
    setup = setup._replace(scorer=setup.scorer._replace(members=None, known=()), task=task)
    return msgspec.structs.replace(config, training=training), setup, first
