"""Laws of resuming: stopped anywhere, saved, loaded and gone on with, training ends in the bits of a run left alone."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import msgspec
import numpy as np
import pytest

from mmjax.config import EarlyStopping
from mmjax.config_load import config_from_dict
from mmjax.data import stream
from mmjax.data.prepare import prepare
from mmjax.parts import build_parts
from mmjax.recipe import resolve
from mmjax.training import events
from mmjax.training.checkpoint import checkpointer, load_newest, steps_in
from mmjax.training.event_types import EpochEnded, Event, Finished, Stopped
from mmjax.training.events import TrainResult, train_events
from mmjax.training.program import Plan, Snapshot, Task, streamed_windows
from mmjax.training.setup import set_up
from mmjax.training.state import TrainState
from tests.doors import write_images, write_table

TABLE = {"model": {"architecture": {"hidden_layers": [4], "dropout": 0.3}}, "batch_size": 16, "epochs": 4}
IMAGES = {"model": {"architecture": {"stages": [1], "width": 4}}, "batch_size": 8, "epochs": 2}


class Story(NamedTuple):
    """What can be trained again and again, each time from the same beginning."""

    state: TrainState
    task: Task
    plan: Plan

    def run(self, resumed: Snapshot | None = None) -> tuple[TrainResult, list[Event]]:
        """Train to the end, in chunks as long as the clock makes them."""
        told, training = [], train_events(self.state, self.task, self.plan, resumed)
        while True:
            try:
                event = next(training)
            except StopIteration as stop:
                return stop.value, told
            told += [] if isinstance(event, Snapshot) else [event]

    def stopped(self, folder: Path, moments: Sequence[int]) -> Snapshot:
        """Train step by step; for each n of `moments` stop after n more steps, save, and go on from what is loaded."""
        resumed = None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(events, "CHUNK_S", 0.0)
            for moment in moments:
                self._stop(folder, moment, resumed)
                found = load_newest(folder, self.state)
                assert found.notes == ()
                assert found.snapshot is not None
                resumed = found.snapshot
        assert resumed is not None
        return resumed

    def _stop(self, folder: Path, moment: int, resumed: Snapshot | None) -> None:
        seen, step = 0, int(resumed.state.step) if resumed else None
        training, settings = train_events(self.state, self.task, self.plan, resumed), self.plan.training.checkpoint
        with checkpointer(folder, settings, ending=lambda: seen >= moment, resumed=step) as keep:
            for event in training:
                if isinstance(event, Snapshot):
                    seen += 1
                    told = list(keep(event))
                    if seen == moment:
                        assert told[-1].step == int(event.state.step)  # it is on the disk already
                        break
        training.close()


def story_of(data: dict[str, Any], made: dict[str, Any], **training: Any) -> Story:
    """The Story of a config; one of the metrics after each epoch is never a number."""
    made = dict(made)
    model = made.pop("model")
    content = {"name": "law", "data": data, "model": model, "training": {"learning_rate": 0.05} | made | training}
    config = config_from_dict(content, "test")
    prepared = prepare(config)
    sizes = {"train_rows": len(prepared.split.train), "validation_rows": len(prepared.split.validation)}
    config, _ = resolve(config, prepared.schema, **sizes)
    setup = set_up(config, prepared, build_parts(config, prepared.schema))

    def measure(variables: Any, active: Any) -> list[dict[str, float]]:
        return [own | {"val_rmse": math.nan} for own in setup.task.measure(variables, active)]

    return Story(setup.state, setup.task._replace(measure=measure), setup.plan)


@pytest.fixture(autouse=True)
def _compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Task is compiled once however often it is trained; processes compile anew, see test_kills.py."""
    make, known = events.make_program, {}

    def program(task: Task, plan: Plan) -> Any:
        key = (id(task), plan)
        if key not in known:
            known[key] = (task, make(task, plan))
        return known[key][1]

    monkeypatch.setattr(events, "make_program", program)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return table_story(tmp_path_factory.mktemp("table"))


def table_story(folder: Path, **training: Any) -> Story:
    tabular = {"path": str(write_table(folder / "t.csv", rows=120)), "target_column": "kind", "id_column": "id"}
    return story_of({"tabular": tabular}, TABLE, **training)


def image_story(folder: Path) -> Story:
    augmentation = {"rotation_range": 20, "shift": 0.1, "color": 0.2}
    image = {"path": str(write_images(folder / "images", each=16)), "augmentation": augmentation}
    return story_of({"image": image}, IMAGES, ema_decay=0.9)


def streamed(story: Story, folder: Path, monkeypatch: pytest.MonkeyPatch, *, steps: int) -> Story:
    """The Story with its rows mapped from disk and read in windows of so many batches."""
    mapped = {}
    for name, values in story.task.data.items():
        np.save(folder / f"{name}.npy", values)
        mapped[name] = np.load(folder / f"{name}.npy", mmap_mode="r")
    batch_size = story.plan.training.batch_size
    assert isinstance(batch_size, int)
    row_bytes = sum(values[:1].nbytes for values in mapped.values())
    monkeypatch.setattr(stream, "WINDOW_BYTES", row_bytes * batch_size * steps)
    assert stream.window_steps(mapped, batch_size) == steps
    return story._replace(task=story.task._replace(data=mapped, streamed=True))


def bits(result: TrainResult) -> tuple[Any, ...]:
    """All that a run decides, to the bit."""
    leaves = [(str(path), np.asarray(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(result.variables)]
    arrays = [(path, str(leaf.dtype), leaf.shape, leaf.tobytes()) for path, leaf in leaves]
    return arrays, repr(result.history), result.best_epoch, result.epochs


def told(seen: list[Event], *, after: int = 0) -> list[str]:
    """What the epochs after one said, without clocks."""
    epochs = [event for event in seen if isinstance(event, EpochEnded) and event.epoch > after]
    stopped = [event for event in seen if isinstance(event, Stopped) and event.epoch > after]
    ended = [event._replace(seconds=0.0) for event in seen if isinstance(event, Finished)]
    return [repr(e) for e in (*(e._replace(seconds=0.0, samples_per_second=0.0) for e in epochs), *stopped, *ended)]


def some_moments(name: str, total: int, count: int) -> list[int]:
    """So many moments, drawn anew in each version of the test by its name: steps between one stop and the next."""
    return [random.Random(f"{name} {index}").randint(1, max(1, total // count)) for index in range(count)]


def assert_resumes(
    story: Story, folder: Path, moments: Sequence[int], expected: tuple[TrainResult, list[Event]]
) -> None:
    """Stopped at those moments, the Story ends as expected, to the bit."""
    snapshot = story.stopped(folder, moments)
    result, seen = story.run(snapshot)
    assert bits(result) == bits(expected[0]), moments
    assert told(seen, after=snapshot.position.epoch - 1) == told(expected[1], after=snapshot.position.epoch - 1)


OPTIONS: dict[str, dict[str, Any]] = {
    "averaged": {"ema_decay": 0.9, "accumulate_steps": 3, "class_weights": "balanced"},
    "trained metric": {"early_stopping": {"monitor": "train_accuracy"}, "checkpoint": {"save_best": False}},
}


def test_members_of_one_network_end_in_the_same_bits(tmp_path: Path) -> None:
    model = {"name": "tabm", "architecture": {"hidden_layers": [4], "dropout": 0.3, "members": 3}}
    tabular = {"path": str(write_table(tmp_path / "t.csv", rows=120)), "target_column": "kind", "id_column": "id"}
    story = story_of({"tabular": tabular}, TABLE | {"model": model})
    assert_resumes(story, tmp_path / "checkpoints", some_moments("members", 19, 3), story.run())


@pytest.mark.parametrize("name", OPTIONS)
def test_a_table_ends_in_the_same_bits(tmp_path: Path, name: str) -> None:
    story = table_story(tmp_path, **OPTIONS[name])
    expected = story.run()
    assert len(expected[0].history) == 4
    assert math.isnan(expected[0].history[0]["val_rmse"])
    assert_resumes(story, tmp_path / "checkpoints", some_moments(name, 19, 3), expected)


def test_every_kind_of_moment(table: Story, tmp_path: Path) -> None:
    """After the first step, before, at and after the end of an epoch of 5 steps, and when all is over."""
    expected = table.run()[0]
    for moment in (1, 4, 5, 6, 20):
        snapshot = table.stopped(tmp_path / str(moment), [moment])
        assert (snapshot.position.epoch, snapshot.position.batch) == (1 + moment // 5, moment % 5)
        assert snapshot.position.over == (moment == 20)
        result, seen = table.run(snapshot)
        assert bits(result) == bits(expected), moment
        assert isinstance(seen[-1], Finished)


def test_images_end_in_the_same_bits_resident_and_streamed(tmp_path: Path, monkeypatch) -> None:
    story = image_story(tmp_path)
    assert not story.plan.loop
    expected = story.run()
    assert_resumes(story, tmp_path / "resident", [1, 2], expected)
    assert_resumes(streamed(story, tmp_path, monkeypatch, steps=2), tmp_path / "streamed", [1], expected)


def test_a_small_table_is_read_in_windows_no_larger_than_an_epoch(table: Story) -> None:
    windows = streamed_windows(table.task, table.plan.seed, 16)  # 32 MiB of so short rows are some 10,000 epochs
    for first in (0, 3):
        (window,) = windows(1, first)
        assert (len(window.data["label"]), window.start, window.stop) == (5 * 16, 0, 5 - first)


def test_patience_lasts_over_a_stop(table: Story, tmp_path: Path) -> None:
    stopping = EarlyStopping(enabled=True, patience=2, min_delta=10.0)  # only the first epoch improves
    training = msgspec.structs.replace(table.plan.training, early_stopping=stopping)
    story = table._replace(plan=table.plan._replace(training=training))
    expected = story.run()
    assert (expected[0].epochs, expected[0].best_epoch) == (3, 1)
    for moments in ([3], [9, 8], [6, 1, 6]):  # at the second the run is over
        assert_resumes(story, tmp_path / str(sum(moments)), moments, expected)


def test_a_metric_that_is_never_a_number_lasts_over_a_stop(table: Story, tmp_path: Path) -> None:
    story = table._replace(plan=table.plan._replace(monitor="val_rmse"))
    expected = story.run()
    assert expected[0].best_epoch == 4
    assert_resumes(story, tmp_path / "checkpoints", [7], expected)


@pytest.mark.parametrize("steps", [2, 3])
def test_streamed_rows_end_in_the_bits_of_resident_ones(table: Story, tmp_path: Path, monkeypatch, steps: int) -> None:
    expected = table.run()
    story = streamed(table, tmp_path, monkeypatch, steps=steps)
    assert bits(story.run()[0]) == bits(expected[0])
    assert_resumes(story, tmp_path / "checkpoints", [4, 7], expected)  # within a window, and at the start of one


def damage(folder: Path, how: str) -> None:
    """Damage the largest file of a checkpoint."""
    path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content if how == "flipped" else content[:-1])


@pytest.mark.parametrize("how", ["flipped", "truncated"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(table: Story, tmp_path: Path, how: str) -> None:
    story, folder = table, tmp_path / "checkpoints"
    expected = story.run()
    story.stopped(folder, [2, 3, 4])
    assert steps_in(folder) == [9, 5]  # two are kept
    damage(folder / "9", how)
    found = load_newest(folder, story.state)
    assert found.snapshot is not None
    assert int(found.snapshot.state.step) == 5
    (note,) = found.notes
    assert note.startswith(f"checkpoint {folder / '9'} is passed over: arrays/")
    assert note.endswith("damaged: not the file that was saved")
    assert bits(story.run(found.snapshot)[0]) == bits(expected[0])
    damage(folder / "5", how)
    found = load_newest(folder, story.state)
    assert found.snapshot is None
    assert len(found.notes) == 2
