"""Faults of the world over real processes: full and read-only disks, two at work in one place, signals."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmjax.artifact.bundle import load_bundle
from mmjax.artifact.registry import list_versions
from mmjax.config_load import load_config
from mmjax.train import command, fit
from mmjax.training.checkpoint import damages, steps_in
from tests.doors import (
    REPOSITORY,
    Ended,
    door,
    process,
    start,
    write_images,
    write_table,
)

EPOCHS = 24
ADVICE = "free space, or begin anew with another training.checkpoint.path"
YAML = f"""\
name: tiny
data:
  tabular: {{path: table.csv, target_column: kind, id_column: id}}
model:
  name: mlp
  architecture: {{hidden_layers: [4]}}
training:
  epochs: {EPOCHS}
  batch_size: 16
  learning_rate: 0.05
  checkpoint: {{every_seconds: 0.001, keep: 9}}
  early_stopping: {{enabled: false}}
evaluation: {{baselines: none}}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a table and its config."""
    return begun(tmp_path, monkeypatch)


def begun(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    write_table(folder / "table.csv")
    (folder / "tiny.yaml").write_text(YAML)
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The content digest that an undisturbed run ends in."""
    with pytest.MonkeyPatch.context() as patch:
        folder = begun(tmp_path_factory.mktemp("expected"), patch)
        return load_bundle(fit(load_config("tiny.yaml"), run_dir=folder / "run", registry=None).bundle).digest


def digest(registry: Path) -> str:
    """The content digest of the one version in the registry."""
    (version,) = list_versions(registry, "tiny")
    return load_bundle(version.path).digest


def record(run: Path) -> dict[str, object]:
    return json.loads((run / "run.json").read_text())


def until(reached: Callable[[], object], running: subprocess.Popen[str], *, seconds: float = 60.0) -> None:
    """Wait until it is reached; fail when the process ends before, or the time."""
    ends = time.monotonic() + seconds
    while not reached():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < ends, "not reached within the time"
        time.sleep(0.005)


def in_own_mounts(script: str, folder: Path) -> Ended:
    """Run a shell script where what it mounts is seen by nobody else; skip where the system does not let us."""
    unshare = shutil.which("unshare")
    probe = ["sh", "-c", "mount -t tmpfs none /mnt"]
    if unshare is None or subprocess.run([unshare, "-m", *probe], capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs Linux and its permission")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TRAIN": f"{sys.executable} -m mmjax.train"}
    done = subprocess.run(
        [unshare, "-m", "sh", "-euc", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=180
    )
    return Ended(done.returncode, done.stdout, done.stderr)


FULL = """
mkdir small && mount -t tmpfs -o size=500k none small
code=0; $TRAIN --config tiny.yaml --run-dir small/run >/dev/null 2>first.err || code=$?; echo $code
cp -r small/run run-then
mount -o remount,size=20m small
$TRAIN --config tiny.yaml --run-dir small/run
"""


def test_a_disk_that_is_full_while_checkpoints_are_written(home: Path, expected: str) -> None:
    ended = in_own_mounts(FULL, home)
    assert ended.code == 0, ended.err
    (told,) = (home / "first.err").read_text().splitlines()  # no traceback of anybody's
    steps = steps_in(home / "run-then" / "checkpoints")
    folder = home / "small" / "run" / "checkpoints"
    why = f"cannot write the checkpoint: No space left on device; {ADVICE}"
    left = f"the checkpoint of step {steps[0]} is whole: the same command goes on from it"
    assert told.startswith(f"error: {folder}/")
    assert told.endswith(f": {why}; {left}")
    assert [damages(home / "run-then" / "checkpoints" / str(step)) for step in steps] == [[]] * len(steps)
    lines = ended.out.splitlines()
    assert lines[0] == "3"
    assert any(line.startswith(f"resume: going on with small/run from step {steps[0]} ") for line in lines)
    assert digest(home / "registry") == expected


REFUSING = """
mkdir small && mount -t tmpfs -o size=16k none small
code=0; $TRAIN --config tiny.yaml --run-dir run --registry small --set training.epochs=1 >out 2>&1 || code=$?
echo $code; tail -n 2 out
code=0; $TRAIN --config tiny.yaml --run-dir small/run --set training.epochs=1 >out 2>&1 || code=$?
echo $code; tail -n 1 out
mount -o remount,ro small
code=0; $TRAIN --config tiny.yaml --run-dir other --set training.checkpoint.path=small >out 2>&1 || code=$?
echo $code; tail -n 1 out
"""


def test_disks_that_refuse_are_named(home: Path) -> None:
    ended = in_own_mounts(REFUSING, home)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0] == "5"
    assert lines[1].startswith("error: registry small: cannot be written: ")
    assert "No space left on device" in lines[1]
    assert lines[2] == "error: the trained model is whole in run/bundle: --model takes that folder too"
    assert load_bundle(home / "run" / "bundle").digest
    assert lines[3:5] == [
        "3",
        "error: run small/run: cannot be written: No space left on device; make it writable, with space: the same "
        "command goes on from the last checkpoint",
    ]
    assert lines[5] == "3"
    assert lines[6].startswith(f"error: {home}/small/tiny-other/")
    assert "cannot write the checkpoint: Read-only file system; free space, or begin anew" in lines[6]


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--run-dir", "table.csv/run"), 2, "--run-dir table.csv/run: cannot be made: Not a directory; name another"),
        (("--registry", "table.csv"), 5, "registry table.csv: cannot be written: Not a directory; name another"),
        (
            ("--run-dir", "run", "--set", "training.checkpoint.path=table.csv/kept"),
            3,
            f"cannot write the checkpoint: Not a directory; {ADVICE}; none is left",
        ),
    ],
)
def test_places_that_cannot_be_are_named(home: Path, capsys, options: tuple[str, ...], code: int, told: str) -> None:
    ended = door(capsys, command, "--config", "tiny.yaml", "--json", *options)
    assert (ended.code, len(ended.document["error"]["problems"])) == (code, 1)
    assert ended.document["error"]["problems"][0].endswith(told)


def test_one_at_a_time_and_sigterm_keeps_the_step_reached(home: Path, capsys, expected: str) -> None:
    words = ("--config", "tiny.yaml", "--run-dir", "run")
    with start("train", *words, folder=home) as running:
        until(lambda: steps_in(home / "run" / "checkpoints"), running)
        running.send_signal(signal.SIGSTOP)
        try:
            second = door(capsys, command, *words, "--json")
        finally:
            running.send_signal(signal.SIGCONT)
        began = time.monotonic()
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=60)
        lasted = time.monotonic() - began
    busy = f"run run: process {running.pid} is at work in it; wait for it, or name another"
    assert (second.code, second.document["error"]["problems"]) == (2, [busy])
    assert (running.returncode, err) == (143, "error: terminated\n")
    assert lasted < 20  # within seconds, on a busy machine too
    assert record(home / "run")["status"] == "interrupted"
    assert out.splitlines()[-1].startswith("resume: the same command goes on")
    newest = steps_in(home / "run" / "checkpoints")[0]
    logged = [json.loads(line)["step"] for line in (home / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(logged, default=0) <= newest < EPOCHS * 3  # what was told is kept
    assert not (home / "registry").exists()
    again = process("train", *words, folder=home)
    assert again.code == 0, again.err
    assert f"resume: going on with run from step {newest} " in again.out
    assert digest(home / "registry") == expected


def test_ctrl_c_twice_ends_at_once_and_leaves_whole_checkpoints(home: Path) -> None:
    with start("train", "--config", "tiny.yaml", folder=home) as running:
        until(lambda: list((home / "runs").glob("tiny/*/checkpoints/[1-9]*")), running)
        running.send_signal(signal.SIGINT)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (130, "error: interrupted\n")
    (run,) = (home / "runs" / "tiny").iterdir()
    assert record(run)["status"] == "interrupted"
    steps = steps_in(run / "checkpoints")
    assert [damages(run / "checkpoints" / str(step)) for step in steps] == [[]] * len(steps)


def test_sigterm_while_data_are_read(home: Path) -> None:
    (home / "table.csv").unlink()
    os.mkfifo(home / "table.csv")  # its reader waits for whoever writes to it
    writers: list[int] = []

    def written_to() -> list[int]:
        with contextlib.suppress(OSError):  # nobody reads it yet
            writers.append(os.open(home / "table.csv", os.O_WRONLY | os.O_NONBLOCK))
        return writers

    with start("train", "--config", "tiny.yaml", "--run-dir", "run", folder=home) as running:
        until(written_to, running)
        began = time.monotonic()
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate(timeout=60)
        lasted = time.monotonic() - began
    os.close(writers[0])
    assert (running.returncode, err) == (143, "error: terminated\n")
    assert lasted < 20
    assert record(home / "run")["status"] == "interrupted"
    assert not (home / "run" / "resolved.yaml").exists()  # the data were not yet known


IMAGES_YAML = """\
data: {image: {path: images, image_size: [32, 32]}}
model: {type: vision, name: resnet18}
training: {epochs: 2, batch_size: 4}
"""


@pytest.mark.soak
def test_sigterm_during_a_compilation(home: Path) -> None:
    write_images(home / "images")
    (home / "deep.yaml").write_text(IMAGES_YAML)
    empty = str(home / "compiled")
    words = ("--config", "deep.yaml", "--run-dir", "run")
    with start("train", *words, folder=home, JAX_COMPILATION_CACHE_DIR=empty) as running:
        assert running.stdout is not None
        while not running.stdout.readline().startswith("up to 2 epochs"):
            assert running.poll() is None
        time.sleep(1.5)  # tracing is over, XLA is at work
        began = time.monotonic()
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate(timeout=60)
        lasted = time.monotonic() - began
    assert running.returncode == 143, err
    assert lasted < 20
    assert "ended at once, for it was busy with what cannot be stopped" in err
