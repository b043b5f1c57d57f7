"""The training loop as events: their order, the best epoch, early stopping, and what a bad loss leaves behind."""

import math
import time

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax
import pytest

from mmjax.config import Checkpoint, EarlyStopping, Training
from mmjax.errors import TrainingError
from mmjax.training.event_types import EpochEnded, Finished, Started, Stopped
from mmjax.training.events import train_events, watch
from mmjax.training.program import Plan, Snapshot, Task
from tests.learning import make_learner, make_state, rows


def make_task(data, measure, *, learning_rate: float = 0.1) -> Task:
    learner = make_learner(optax.sgd(learning_rate))
    every = np.arange(len(data["label"]))
    return Task(learner, data, every, False, ((), {}), measure, np.full(100, learning_rate, np.float32), 10, 0)


def make_plan(*, epochs: int = 4, patience: int = 100, monitor: str = "val_loss", save_best: bool = True) -> Plan:
    training = Training(
        epochs=epochs,
        batch_size=8,
        early_stopping=EarlyStopping(enabled=True, patience=patience),
        checkpoint=Checkpoint(save_best=save_best),
    )
    return Plan("test", 0, training, loop=True, monitor=monitor)


def told(state, task: Task, plan: Plan):
    """Run to the end; return the events (of the Snapshots those between epochs) and the result."""
    events = []
    result = watch(train_events(state, task, plan), [events.append], lambda snapshot: events.append(snapshot) or ())
    return [event for event in events if not (isinstance(event, Snapshot) and event.position.batch)], result


def falling(values: list[float]):
    """A measure that says these validation losses, one an epoch."""
    left = iter(values)
    return lambda variables, active: [{"val_loss": next(left)}]


def test_events_come_in_order(getkey) -> None:
    task = make_task(rows(), falling([3.0, 2.0, 1.0, 0.5]))
    events, result = told(make_state(task.learner, task.data, getkey()), task, make_plan())
    kinds = [type(event) for event in events if type(event).__name__ != "Progressed"]
    assert kinds == [Started, *[EpochEnded, Snapshot] * 4, Finished]
    assert [e.metrics["val_loss"] for e in events if isinstance(e, EpochEnded)] == [3.0, 2.0, 1.0, 0.5]
    assert [e.position.over for e in events if isinstance(e, Snapshot)] == [False, False, False, True]
    assert (result.epochs, result.best_epoch, len(result.history)) == (4, 4, 4)
    assert all(0.0 <= epoch["train_accuracy"] <= 1.0 for epoch in result.history)


def test_what_an_epoch_ends_with_is_left_alone_by_the_steps_after_it(getkey) -> None:
    task, held = make_task(rows(), falling([3.0, 2.0, 1.0, 0.5])), []

    def hold(snapshot: Snapshot):
        if snapshot.position.batch == 0:
            taken = jax.tree.map(lambda leaf: np.array(leaf), (snapshot.state, snapshot.totals, snapshot.best))
            held.append((snapshot, taken))
        return ()

    watch(train_events(make_state(task.learner, task.data, getkey()), task, make_plan()), [], hold)
    assert [snapshot.own for snapshot, _ in held] == [True] * 4
    for snapshot, taken in held:  # an array whose memory a step took over cannot be read
        jax.tree.map(np.testing.assert_array_equal, (snapshot.state, snapshot.totals, snapshot.best), taken)
    weights = [jax.tree.leaves(snapshot.state.params)[0] for snapshot, _ in held]
    assert not np.array_equal(weights[0], weights[3])


def test_the_best_epoch_is_kept(getkey) -> None:
    kept = []
    task = make_task(rows(), falling([3.0, 1.0, 2.0, 4.0]))

    def measure(variables, active):
        kept.append(np.asarray(variables["params"]["head"]["kernel"]).copy())
        return [{"val_loss": [3.0, 1.0, 2.0, 4.0][len(kept) - 1]}]

    state = make_state(task.learner, task.data, getkey())
    events, result = told(state, task._replace(measure=measure), make_plan())
    assert result.best_epoch == 2
    assert np.array_equal(result.variables["params"]["head"]["kernel"], kept[1])
    assert [e.improved for e in events if isinstance(e, EpochEnded)] == [True, True, False, False]


def test_without_save_best_the_last_epoch_is_kept(getkey) -> None:
    task = make_task(rows(), falling([1.0, 2.0, 3.0, 4.0]))
    _, result = told(make_state(task.learner, task.data, getkey()), task, make_plan(save_best=False))
    assert result.best_epoch == 4


@pytest.mark.parametrize(("left_s", "epochs", "reasons"), [(-1.0, 1, ["the budget is used up"]), (1e6, 4, [])])
def test_the_clock_ends_the_run(getkey, left_s: float, epochs: int, reasons: list[str]) -> None:
    task = make_task(rows(), falling([3.0, 1.0, 2.0, 4.0]))
    plan = make_plan()._replace(ends_at=time.monotonic() + left_s)
    events, result = told(make_state(task.learner, task.data, getkey()), task, plan)
    assert result.epochs == epochs
    assert [event.reason for event in events if isinstance(event, Stopped)] == reasons


def test_patience_ends_the_run(getkey) -> None:
    task = make_task(rows(), falling([1.0, 2.0, 2.0, 2.0]))
    events, result = told(make_state(task.learner, task.data, getkey()), task, make_plan(patience=2))
    assert result.epochs == 3
    assert [e.epoch for e in events if isinstance(e, Stopped)] == [3]
    assert [e.position.over for e in events if isinstance(e, Snapshot)] == [False, False, True]


def test_without_early_stopping_a_late_best_epoch_is_the_best(getkey) -> None:
    task, plan = make_task(rows(), falling([3.0, 4.0, 4.0, 1.0])), make_plan(patience=2)
    stopping = EarlyStopping(enabled=False, patience=2)  # the recipe decides a patience all the same
    plan = plan._replace(training=msgspec.structs.replace(plan.training, early_stopping=stopping))
    events, result = told(make_state(task.learner, task.data, getkey()), task, plan)
    assert (result.epochs, result.best_epoch) == (4, 4)
    assert [e.improved for e in events if isinstance(e, EpochEnded)] == [True, False, False, True]


def test_a_metric_that_is_never_a_number_leaves_the_last_model(getkey) -> None:
    task = make_task(rows(), falling([math.nan] * 4))
    _, result = told(make_state(task.learner, task.data, getkey()), task, make_plan())
    assert result.best_epoch == 4
    assert all(jnp.isfinite(leaf).all() for leaf in result.variables["params"]["head"].values())


def test_an_unknown_metric_is_refused_with_those_there_are(getkey) -> None:
    task = make_task(rows(), falling([1.0] * 4))
    with pytest.raises(TrainingError, match="expected one of train_loss, train_accuracy, val_loss, got 'val_rmse'"):
        told(make_state(task.learner, task.data, getkey()), task, make_plan(monitor="val_rmse"))


def test_a_bad_loss_stops_the_run_and_leaves_the_last_good_state(getkey) -> None:
    data = rows()
    data["numeric"][5] = np.nan
    task, snapshots = make_task(data, falling([1.0] * 4)), []
    with pytest.raises(TrainingError, match=r"finite loss, got a non-finite one at step \d+ \(epoch 1, batch size 8\)"):
        watch(
            train_events(make_state(task.learner, data, getkey()), task, make_plan()),
            [],
            lambda snapshot: snapshots.append(snapshot) or (),
        )
    assert [(s.last, s.position.over, int(s.state.step)) for s in snapshots[-1:]] == [(True, False, 0)]
    assert np.isfinite(np.asarray(snapshots[-1].state.params["head"]["kernel"])).all()


def test_weights_that_the_last_step_of_an_epoch_ruins_stop_the_run_and_are_not_kept(getkey) -> None:
    data, snapshots = rows(8), []  # one step an epoch: its loss is finite, what it makes of the weights is not
    task = make_task(data, falling([1.0]), learning_rate=1e38)
    data["numeric"] *= 100.0
    with pytest.raises(TrainingError, match=r"finite weights, got non-finite ones by step 1 \(epoch 1, batch size 8\)"):
        watch(
            train_events(make_state(task.learner, data, getkey()), task, make_plan(epochs=1)),
            [],
            lambda snapshot: snapshots.append(snapshot) or (),
        )
    assert [(s.last, int(s.state.step)) for s in snapshots] == [(True, 0)]
    assert np.isfinite(np.asarray(snapshots[-1].state.params["head"]["kernel"])).all()


def test_what_is_not_kept_is_not_promised(getkey) -> None:
    data = rows()
    data["numeric"][5] = np.nan
    plan = make_plan()
    training = msgspec.structs.replace(plan.training, checkpoint=Checkpoint(enabled=False))
    task = make_task(data, falling([1.0] * 4))
    with pytest.raises(TrainingError) as caught:
        told(make_state(task.learner, data, getkey()), task, plan._replace(training=training))
    assert "checkpoints" not in str(caught.value)
