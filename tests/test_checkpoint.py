"""Checkpoints: what is saved comes back, damage is named, and a good one is always there."""

import os
import signal
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.config import Checkpoint
from mmjax.errors import DataError
from mmjax.training.checkpoint import DIGESTS, checkpointer, interrupts_held, load_tree, save_tree
from mmjax.training.events import Snapshot
from mmjax.training.state import TrainState, init_state

TREE = {
    "params": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([0.5, -0.25], np.float32)},
    "step": np.array(7, np.int32),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tree(tmp_path_factory.mktemp("saved") / "last" / "7", TREE)


def equal(a, b) -> bool:
    return bool(np.array_equal(a["params"]["w"], b["params"]["w"]) and a["step"] == b["step"])


def test_what_is_saved_comes_back(saved: Path) -> None:
    assert saved.is_absolute()
    found = load_tree(saved, None)
    assert equal(found, TREE)
    assert equal(load_tree(saved, TREE), TREE)
    assert found["params"]["b"].dtype == np.float32


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_no_damage_goes_unseen(saved: Path, data: st.DataObject) -> None:
    files = sorted(path for path in saved.rglob("*") if path.is_file() and path.stat().st_size and path.name != DIGESTS)
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    flip = data.draw(st.integers(1, 255))
    damaged = bytes([*whole[:at], whole[at] ^ flip, *whole[at + 1 :]])
    try:
        for content in (damaged, whole[:at]):
            path.write_bytes(content)
            with pytest.raises(DataError, match="damaged: not the file that was saved"):
                load_tree(saved, None)
    finally:
        path.write_bytes(whole)


def test_lost_and_added_files_are_named(saved: Path) -> None:
    name = next(path for path in saved.rglob("*") if path.is_file() and path.name != DIGESTS)
    content = name.read_bytes()
    name.unlink()
    (saved / "more").write_text("x")
    with pytest.raises(DataError) as caught:
        load_tree(saved, None)
    assert sorted(caught.value.problems) == sorted(
        f"{path}: damaged: not the file that was saved; use another one" for path in (name, saved / "more")
    )
    name.write_bytes(content)
    (saved / "more").unlink()
    digests = (saved / DIGESTS).read_bytes()
    (saved / DIGESTS).write_bytes(digests[:40])
    with pytest.raises(DataError, match=f"expected a whole checkpoint with {DIGESTS} in it"):
        load_tree(saved, None)
    (saved / DIGESTS).write_bytes(digests)
    with pytest.raises(DataError, match=f"expected a whole checkpoint with {DIGESTS} in it"):
        load_tree(saved.parent / "8", None)


def test_a_save_replaces_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "notes.txt").write_text("mine")
    for step in (3, 12):
        save_tree(tmp_path / "last" / str(step), TREE)
    assert {path.name for path in (tmp_path / "last").iterdir()} == {"12", "notes.txt"}
    save_tree(tmp_path / "last" / "12", TREE | {"step": np.array(9, np.int32)})
    assert load_tree(tmp_path / "last" / "12", None)["step"] == 9


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write the checkpoint: .*; free space or set training.checkpoint.path"):
        save_tree(tmp_path / "file" / "last" / "1", TREE)


def state_at(step: int) -> TrainState:
    state = init_state({"params": {"w": jnp.ones(2)}, "batch_stats": {}}, {}, ema=False)
    return state._replace(step=jnp.int32(step))


def run_of(epochs: int, folder: Path, settings: Checkpoint) -> list[tuple[int, bool]]:
    """Keep a run of so many epochs of 10 steps, the best after each; return (step, best) of what was saved."""
    keep = checkpointer(folder, settings)
    told = []
    for epoch in range(1, epochs + 1):
        best = {"params": {"w": jnp.full(2, float(epoch))}, "batch_stats": {}}
        told += keep(Snapshot(epoch, epoch * 10, state_at(epoch * 10), best, last=epoch == epochs))
    for event in told:
        assert Path(event.path).parent == folder / ("best" if event.best else "last")
    return [(event.step, event.best) for event in told]


def test_what_is_kept_and_when(tmp_path: Path) -> None:
    every = run_of(5, tmp_path / "every", Checkpoint(every_epochs=2))
    assert every == [(step, best) for step in (20, 40, 50) for best in (False, True)]
    assert [path.name for path in (tmp_path / "every" / "last").iterdir()] == ["50"]
    assert load_tree(tmp_path / "every" / "best" / "50", None)["params"]["w"].tolist() == [5.0, 5.0]
    assert int(load_tree(tmp_path / "every" / "last" / "50", None)["step"]) == 50
    timed = run_of(4, tmp_path / "timed", Checkpoint(save_best=False))
    assert timed == [(10, False), (40, False)]  # the first to have something, then about every half minute, the last
    assert not (tmp_path / "timed" / "best").exists()
    assert run_of(3, tmp_path / "off", Checkpoint(enabled=False)) == []
    assert not (tmp_path / "off").exists()


def interrupted(times: int, reached: list[str]) -> None:
    """Be interrupted so many times within the block."""
    with interrupts_held():
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        reached.append(f"the end after {times}")


def test_a_signal_waits_and_a_second_one_does_not() -> None:
    before, reached = signal.getsignal(signal.SIGINT), []
    for times in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            interrupted(times, reached)
    interrupted(0, reached)
    assert reached == ["the end after 1", "the end after 0"]
    assert signal.getsignal(signal.SIGINT) is before


def test_threads_save_too(tmp_path: Path) -> None:
    saving = threading.Thread(target=save_tree, args=(tmp_path / "last" / "1", TREE))
    saving.start()
    saving.join()
    assert equal(load_tree(tmp_path / "last" / "1", None), TREE)
