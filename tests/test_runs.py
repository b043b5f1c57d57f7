import fcntl
import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from mmjax.artifact import runs
from mmjax.artifact.runs import (
    create_run,
    find_run,
    is_locked,
    list_runs,
    load_run,
    locked,
    prune,
    read_history,
    write_json_atomic,
)
from mmjax.errors import BundleError, ConfigError
from mmjax.runs import list_command
from tests.conftest import REPOSITORY

NOW = datetime(2026, 3, 4, 5, 6, 7)


def finished(root: Path, name: str = "iris", second: int = 0, **changes) -> Path:
    folder = create_run(root, name, NOW.replace(second=second))
    record = {"name": name, "status": "finished", "started": "2026-03-04T05:06:07+00:00", "process": 12}
    write_json_atomic(folder / "run.json", record | changes)
    return folder


def test_a_run_folder_is_named_by_the_time_and_unique(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: create_run(tmp_path, "iris", NOW), range(12)))
    assert len(set(made)) == 12
    assert {path.name for path in made} == {
        "20260304-050607",
        *(f"20260304-050607-{count}" for count in range(2, 13)),
    }
    assert [run.path.name for run in list_runs(tmp_path)][:3] == [f"20260304-050607-{count}" for count in (12, 11, 10)]


def test_a_name_that_leads_elsewhere_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"'\.\./x': no name for a run; expected at most 100 letters"):
        create_run(tmp_path, "../x", NOW)


def test_a_run_is_read_as_written(tmp_path):
    metrics = {"test": {"accuracy": 0.9, "roc_auc": float("nan")}}
    folder = finished(tmp_path, model="iris", version=3, metrics=metrics, seconds={"train": 1.5}, config={"seed": 1})
    run = load_run(folder)
    assert run.ref == "iris/20260304-050600"
    assert run.record.version == 3
    assert run.record.metrics == {"test": {"accuracy": 0.9, "roc_auc": None}}
    assert run.record.config == {"seed": 1}


def test_runs_are_listed_newest_first_whatever_state_they_are_in(tmp_path):
    finished(tmp_path, "iris", 1)
    finished(tmp_path, "wine", 3, status="failed", problems=["cells: expected numbers"])
    create_run(tmp_path, "iris", NOW.replace(second=2))
    (create_run(tmp_path, "iris", NOW.replace(second=0)) / "run.json").write_text('{"name": 3}')
    (tmp_path / "iris" / "notes").mkdir()
    (tmp_path / "README").write_text("mine")
    found = [(run.ref, run.record.status) for run in list_runs(tmp_path)]
    assert found == [
        ("wine/20260304-050603", "failed"),
        ("iris/20260304-050602", "unknown"),
        ("iris/20260304-050601", "finished"),
        ("iris/20260304-050600", "unknown"),
    ]
    assert [run.ref for run in list_runs(tmp_path, "wine")] == ["wine/20260304-050603"]
    assert "not the record of a run" in list_runs(tmp_path)[3].record.problems[0]
    assert list_runs(tmp_path / "none") == []


def test_a_run_is_found_by_ref_name_or_folder(tmp_path):
    old, new = finished(tmp_path, second=1), finished(tmp_path, second=2)
    assert find_run(tmp_path, "iris").path == new
    assert find_run(tmp_path, f"iris/{old.name}").path == old
    assert find_run(tmp_path / "none", str(old)).path == old
    with pytest.raises(BundleError, match=r"no run 'irsi' in .*; there are iris; did you mean 'iris'\?"):
        find_run(tmp_path, "irsi")
    with pytest.raises(BundleError, match=r"^no run 'iris:1' in .*; that names a registered model; use `registry comp"):
        find_run(tmp_path, "iris:1")
    with pytest.raises(BundleError, match=r"no run 'iris' in .*; it has none"):
        find_run(tmp_path / "none", "iris")


def test_history_survives_a_kill_and_a_resume(tmp_path):
    rows = [{"epoch": 1, "val_loss": 0.5}, {"epoch": 2, "val_loss": None}, {"epoch": 2, "val_loss": 0.4}]
    text = "\n".join([json.dumps(rows[0]), json.dumps(rows[1]), '{"epoch": 3, "va', json.dumps(rows[2]), "[]", "{"])
    (tmp_path / "metrics.jsonl").write_text(text)
    assert read_history(tmp_path) == [rows[0], rows[2]]
    assert read_history(tmp_path / "none") == []


def long_made(folder: Path) -> Path:
    """The folder, as if made long ago."""
    os.utime(folder, (0, 0))
    return folder


def test_seconds_are_not_told_of_a_stage_that_did_not_end(tmp_path):
    spent = {"setup": 0.5, "data": 1.0}
    finished(tmp_path, second=2, status="running", seconds=spent)
    finished(tmp_path, second=1, status="interrupted", seconds=spent)
    callback = list_command.callback
    assert callback is not None
    told = inspect.unwrap(callback)(None, tmp_path)["runs"]
    assert [(run["status"], run["seconds"]) for run in told] == [("killed", None), ("interrupted", 1.5)]


def test_prune_keeps_the_newest_of_each_name_and_what_goes_on(tmp_path):
    old = [long_made(finished(tmp_path, second=second)) for second in range(4)]
    wine = long_made(finished(tmp_path, "wine"))
    begun = create_run(tmp_path, "iris", NOW.replace(second=10))  # its process has not locked it yet
    killed = long_made(finished(tmp_path, second=8, status="running"))
    going = finished(tmp_path, second=9, status="running")
    with locked(long_made(going)):
        assert [run.path for run in prune(tmp_path, 2, dry_run=True)] == [old[2], old[1], old[0]]
        assert all(path.is_dir() for path in old)
        assert [run.path for run in prune(tmp_path, 2)] == [old[2], old[1], old[0]]
        assert {run.path for run in list_runs(tmp_path)} == {old[3], killed, going, wine, begun}
        assert [run.path for run in prune(tmp_path, 0, name="iris")] == [killed, old[3]]
        assert {run.path for run in list_runs(tmp_path)} == {going, wine, begun}
    long_made(going)
    assert [run.path for run in prune(tmp_path, 0)] == [going, wine]


def test_one_process_at_a_time_is_at_work_in_a_run(tmp_path):
    folder = finished(tmp_path, status="running")
    assert load_run(folder).record.status == "killed"
    assert not is_locked(folder)
    with locked(folder):
        assert is_locked(folder)
        assert load_run(folder).record.status == "running"
        with pytest.raises(ConfigError) as caught, locked(folder):
            pass
        assert (
            str(caught.value) == f"run {folder}: process {os.getpid()} is at work in it; wait for it, or name another"
        )
    assert not is_locked(folder)
    (folder / "lock").write_text("12345678901234567890\n")  # a longer name than ours, left by another
    with locked(folder):
        assert (folder / "lock").read_text() == f"{os.getpid()}\n"


def test_who_only_looks_whether_a_run_is_held_keeps_nobody_out(tmp_path):
    folder = finished(tmp_path, status="running")
    with locked(folder):
        pass
    with (folder / "lock").open() as looked, ThreadPoolExecutor(1) as pool:
        fcntl.flock(looked, fcntl.LOCK_SH)  # as `is_locked` does for a moment
        freed = pool.submit(lambda: (time.sleep(0.05), fcntl.flock(looked, fcntl.LOCK_UN)))
        with locked(folder):
            assert is_locked(folder)
        freed.result()


def test_prune_leaves_a_run_that_is_taken_up_meanwhile_and_nobody_takes_up_one_that_goes(tmp_path, monkeypatch):
    taken, gone = (long_made(finished(tmp_path, second=second)) for second in (2, 1))
    remove = shutil.rmtree

    def watched(folder):
        with pytest.raises(ConfigError, match=f"run {folder}: process {os.getpid()} is at work in it"), locked(folder):
            pass
        remove(folder)

    monkeypatch.setattr(shutil, "rmtree", watched)
    monkeypatch.setattr(runs, "_goes_on", lambda _run: False)  # nor was `taken` at work when prune looked
    with locked(taken):
        assert [run.path for run in prune(tmp_path, 0)] == [gone]
    assert (taken.is_dir(), gone.exists()) == (True, False)


def test_a_lock_of_a_folder_that_is_gone_holds_nothing(tmp_path, monkeypatch):
    folder, lock = finished(tmp_path), fcntl.flock

    def late(descriptor, operation):
        shutil.rmtree(folder, ignore_errors=True)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(ConfigError, match="removed just now by another process"), locked(folder):
        pass


def test_a_process_that_dies_frees_its_run(tmp_path):
    folder = finished(tmp_path, status="running")
    hold = "import sys, time; from pathlib import Path; from mmjax.artifact.runs import locked\n"
    hold += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold, folder], stdout=subprocess.PIPE, cwd=REPOSITORY) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"process {holder.pid} is at work in it"), locked(folder):
            pass
        holder.kill()
    assert load_run(folder).record.status == "killed"
    with locked(folder):
        assert is_locked(folder)


def test_json_is_replaced_whole(tmp_path):
    file = tmp_path / "x.json"
    write_json_atomic(file, {"a": float("inf")})
    with pytest.raises(TypeError, match="object has no JSON form"):
        write_json_atomic(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": None}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
