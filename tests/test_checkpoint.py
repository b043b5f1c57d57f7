"""Checkpoints: what is saved comes back to the bit, damage is named, and a good one is always there."""

import math
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.config import Checkpoint
from mmjax.errors import DataError
from mmjax.training.checkpoint import DIGESTS, checkpointer, damages, load, load_newest, save, steps_in
from mmjax.training.program import Snapshot
from mmjax.training.state import Position, TrainState, init_state
from mmjax.training.steps import Totals, empty_totals
from mmjax.training.stopping import StopState


def variables(value: float) -> dict[str, Any]:
    return {"params": {"w": jnp.full((2, 3), value), "b": jnp.zeros(2, jnp.bfloat16)}, "batch_stats": {}}


def state_at(step: int, value: float = 1.0) -> TrainState:
    state = init_state(variables(value), {"count": jnp.int32(3)}, ema=False)
    return state._replace(step=jnp.int32(step))


def position_at(epoch: int, *, batch: int = 0, over: bool = False) -> Position:
    history = tuple({"val_loss": 1.0 / each, "val_roc_auc": math.nan} for each in range(1, epoch))
    stop = StopState(np.float32(0.1), np.int32(1), np.int32(2), np.bool_(True))
    return Position(epoch=epoch, batch=batch, history=history, best_epoch=1, stop=stop, over=over)


def snapshot_at(epoch: int, *, steps: int = 10, batch: int = 0, over: bool = False) -> Snapshot:
    """After the epoch before `epoch` of so many steps each, and `batch` batches of it."""
    best = variables(float(epoch)) if epoch > 1 else None
    step = (epoch - 1) * steps + batch
    return Snapshot(state_at(step, float(step)), empty_totals(), best, position_at(epoch, batch=batch, over=over))


def keep_all(folder: Path, settings: Checkpoint, snapshots: list[Snapshot], **options: Any) -> list[int]:
    """Show the Snapshots to a checkpointer; return the steps that reached the disk before the block ended."""
    with checkpointer(folder, settings, **options) as keep:
        told = [event for snapshot in snapshots for event in keep(snapshot)]
    assert all(Path(event.path) == folder / str(event.step) for event in told)
    return [event.step for event in told]


def bits(tree: Any) -> list[tuple[str, tuple[int, ...], bytes]]:
    return [(str(a.dtype), a.shape, a.tobytes()) for a in map(np.asarray, jax.tree.leaves(tree))]


def same(a: Snapshot, b: Snapshot) -> bool:
    """Whether two Snapshots are one to the bit."""
    structures = [jax.tree.structure(each[:3]) for each in (a, b)]
    return structures[0] == structures[1] and bits(a[:3]) == bits(b[:3]) and repr(a.position) == repr(b.position)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    keep_all(folder, Checkpoint(), [snapshot_at(2, batch=7, over=True)])
    return folder / "17"


def test_what_is_saved_comes_back(saved: Path) -> None:
    assert damages(saved) == []
    found = load(saved, state_at(0))
    assert same(found, snapshot_at(2, batch=7, over=True))
    assert (int(found.state.step), found.position.epoch, found.position.batch) == (17, 2, 7)


floats = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1, 1e308]), st.floats(allow_subnormal=True)
)
singles = st.one_of(st.sampled_from([math.nan, math.inf, -math.inf, -0.0]), st.floats(width=32))


@settings(max_examples=15, deadline=None)
@given(
    history=st.lists(st.dictionaries(st.sampled_from(["train_loss", "val_loss", "val_é"]), floats), max_size=3),
    best=singles,
    totals=st.tuples(singles, singles, singles),
    counts=st.tuples(st.integers(-1, 2**31 - 1), st.integers(0, 2**31 - 1)),
    active=st.booleans(),
)
def test_a_position_survives_exactly(tmp_path_factory, history, best, totals, counts, active) -> None:
    folder = tmp_path_factory.mktemp("position")
    stop = StopState(np.float32(best), np.int32(counts[0]), np.int32(counts[1]), np.bool_(active))
    position = Position(counts[1], counts[1], tuple(history), counts[1], stop, over=active)
    sums = Totals(*map(jnp.float32, totals), steps=jnp.int32(counts[1]), first_bad=jnp.int32(counts[0]))
    snapshot = Snapshot(state_at(3), sums, None, position)
    keep_all(folder, Checkpoint(), [snapshot._replace(last=True)])
    found = load(folder / "3", state_at(0))
    assert same(found, snapshot)
    assert [type(field) for field in found.position.stop] == [type(field) for field in stop]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_no_damage_goes_unseen(saved: Path, data: st.DataObject) -> None:
    files = sorted(path for path in saved.rglob("*") if path.is_file() and path.stat().st_size and path.name != DIGESTS)
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    flip = data.draw(st.integers(1, 255))
    try:
        for content in (bytes([*whole[:at], whole[at] ^ flip, *whole[at + 1 :]]), whole[:at]):
            path.write_bytes(content)
            assert damages(saved) == [f"{path.relative_to(saved)}: damaged: not the file that was saved"]
            loaded = load_newest(saved.parent, state_at(0))
            assert loaded.snapshot is None
            assert loaded.notes == (f"checkpoint {saved} is passed over: {damages(saved)[0]}",)
    finally:
        path.write_bytes(whole)


def test_lost_and_added_files_are_named(saved: Path) -> None:
    path = next(path for path in saved.rglob("*") if path.is_file() and path.name != DIGESTS)
    content = path.read_bytes()
    path.unlink()
    (saved / "more").write_text("x")
    assert damages(saved) == sorted(
        f"{name}: damaged: not the file that was saved" for name in (str(path.relative_to(saved)), "more")
    )
    path.write_bytes(content)
    (saved / "more").unlink()
    digests = (saved / DIGESTS).read_bytes()
    for broken, said in ((digests[:40], "not readable"), (b"[]", "no table of digests"), (b"\xff", "not readable")):
        (saved / DIGESTS).write_bytes(broken)
        assert said in damages(saved)[0]
    (saved / DIGESTS).unlink()
    assert f"{saved / DIGESTS}: not readable: " in damages(saved)[0]
    (saved / DIGESTS).write_bytes(digests)
    assert damages(saved) == []


def test_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    keep_all(tmp_path, Checkpoint(every_epochs=1, keep=3), [snapshot_at(epoch) for epoch in (2, 3, 4)])
    assert steps_in(tmp_path) == [30, 20, 10]
    (tmp_path / "notes").mkdir()
    (tmp_path / "30" / DIGESTS).unlink()
    next((tmp_path / "20" / "arrays").rglob("_METADATA")).write_text("")
    found = load_newest(tmp_path, state_at(0))
    assert found.snapshot is not None
    assert same(found.snapshot, snapshot_at(2))
    assert [note.split(" is passed over: ")[0] for note in found.notes] == [
        f"checkpoint {tmp_path / step}" for step in ("30", "20")
    ]
    assert load_newest(tmp_path / "none", state_at(0)) == (None, ())


def test_another_network_is_refused(saved: Path) -> None:
    other = init_state({"params": {"w": jnp.ones((3, 3)), "b": jnp.zeros(2)}}, {"count": jnp.int32(0)}, ema=False)
    with pytest.raises(DataError, match="expected a checkpoint of this network, got another; name another run or"):
        load_newest(saved.parent, other)


def test_newer_ones_than_the_one_gone_on_with_are_removed(tmp_path: Path) -> None:
    keep_all(tmp_path, Checkpoint(every_epochs=1, keep=5), [snapshot_at(epoch) for epoch in (2, 3, 4)])
    (tmp_path / "30" / DIGESTS).unlink()
    assert keep_all(tmp_path, Checkpoint(), [snapshot_at(3, batch=4, over=True)], resumed=20) == [24]
    assert steps_in(tmp_path) == [24, 20]


def test_what_is_kept_and_when(tmp_path: Path) -> None:
    run = [snapshot_at(epoch, batch=batch) for epoch in range(1, 6) for batch in (0, 5)][1:]
    run.append(snapshot_at(6, over=True))
    assert keep_all(tmp_path / "every", Checkpoint(every_epochs=2), run) == [20, 40, 50]
    assert steps_in(tmp_path / "every") == [50, 40]
    assert keep_all(tmp_path / "timed", Checkpoint(keep=1), run) == [10, 50]  # something to come back to, and the last
    assert steps_in(tmp_path / "timed") == [50]
    keep_all(tmp_path / "hasty", Checkpoint(every_seconds=1e-6), run[:3])
    assert steps_in(tmp_path / "hasty") == [15, 10]  # within an epoch too
    assert keep_all(tmp_path / "off", Checkpoint(enabled=False), run) == []
    assert not (tmp_path / "off").exists()
    assert keep_all(tmp_path / "again", Checkpoint(), [snapshot_at(2)], resumed=10) == []  # it is there already


def test_a_process_that_is_to_end_keeps_what_it_has(tmp_path: Path) -> None:
    told, asked = [], []
    with checkpointer(tmp_path, Checkpoint(), ending=lambda: bool(asked)) as keep:
        told += keep(snapshot_at(3, batch=2))
        asked.append("to end")
        told += keep(snapshot_at(3, batch=3))
        assert [event.step for event in told] == [23]  # it is on the disk before training is left


def test_a_run_that_cannot_go_on_keeps_its_last_good_state(tmp_path: Path) -> None:
    good = snapshot_at(1)._replace(last=True)
    assert keep_all(tmp_path, Checkpoint(), [snapshot_at(1, batch=3), good]) == [0]
    found = load_newest(tmp_path, state_at(0)).snapshot
    assert found is not None
    assert not found.position.over


def test_leftovers_of_a_killed_save_are_removed(tmp_path: Path) -> None:
    keep_all(tmp_path, Checkpoint(), [snapshot_at(2)])
    (tmp_path / ".20.123-abcd.tmp" / "arrays").mkdir(parents=True)
    (tmp_path / ".20.123-abcd.tmp" / "position.json").write_text("{")
    assert steps_in(tmp_path) == [10]
    keep_all(tmp_path, Checkpoint(), [])
    assert [path.name for path in tmp_path.iterdir()] == ["10"]


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = r"cannot write the checkpoint: .*; free space, or begin anew with another .*checkpoint.path; none is left"
    with pytest.raises(DataError, match=told):
        keep_all(tmp_path / "file" / "checkpoints", Checkpoint(), [snapshot_at(2, over=True)])
    with pytest.raises(DataError, match=told):  # not waited for before the end of the block
        keep_all(tmp_path / "file" / "checkpoints", Checkpoint(), [snapshot_at(2)])


def test_threads_save_too(tmp_path: Path) -> None:
    saving = threading.Thread(target=save, args=(tmp_path, 1, [np.arange(3)], b"{}"), kwargs={"keep": 1})
    saving.start()
    saving.join()
    assert damages(tmp_path / "1") == []
