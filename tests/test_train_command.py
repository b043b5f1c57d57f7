"""Train as a command: what its JSON holds, how it ends when something is wrong, and that a signal ends it in order."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from mmjax import check
from mmjax.artifact.bundle import load_bundle
from mmjax.train import command
from mmjax.training.checkpoint import DIGESTS, damages, steps_in
from tests.doors import TABLE_YAML, door, process, start, write_table


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a table and its config."""
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "table.csv")
    (tmp_path / "tiny.yaml").write_text(TABLE_YAML)
    return tmp_path


def problems(document: dict[str, Any]) -> list[str]:
    return document["error"]["problems"]


def test_a_process_prints_one_object(home: Path) -> None:
    (home / "no-folder").write_text("")
    options = ("--run-dir", "my run", "--registry", "models", "--set", "training.checkpoint.path=kept")
    ended = process(
        *("train", "--config", "tiny.yaml", "--json", *options), folder=home, MMJAX_CACHE_DIR=str(home / "no-folder")
    )
    assert ended.code == 0, ended.err
    assert len(ended.out.splitlines()) == 1
    found = ended.document
    assert (found["run_dir"], found["model"], found["version"]) == ("my run", "tiny", 1)
    assert found["bundle"] == "models/tiny/1"
    assert load_bundle(home / found["bundle"]).contents.config.name == "tiny"
    assert set(found["metrics"]) == {"train", "validation", "test"}
    assert 0.0 <= found["metrics"]["test"]["accuracy"] <= 1.0
    assert found["seconds"].keys() >= {"setup", "data", "train", "evaluate", "total"}
    assert found["seconds"]["total"] >= found["seconds"]["train"] > 0
    assert found["samples_per_second"] > 0
    record = json.loads((home / "my run" / "run.json").read_text())
    assert (record["status"], record["version"]) == ("finished", 1)
    assert {path.parent.name for path in (home / "kept").rglob(DIGESTS)} == {"3", "6"}  # 2 epochs of 3 steps
    assert not (home / "my run" / "checkpoints").exists()
    assert ended.err.count("compile cache: off") == (0 if "JAX_COMPILATION_CACHE_DIR" in os.environ else 1)
    assert "2/2" in ended.err
    assert "evaluate: " in ended.err


def test_what_is_wrong_with_the_config_is_an_object_too(home: Path, capsys) -> None:
    ended = door(
        *(capsys, command, "--config", "tiny.yaml", "--json"),
        *("--set", "training.epoch=3", "--set", "model.architecture.hidden_layers=[0]"),
    )
    assert (ended.code, ended.document["exit_code"], ended.document["error"]["type"]) == (2, 2, "config")
    assert len(problems(ended.document)) == 2
    assert any("did you mean 'epochs'?" in problem for problem in problems(ended.document))
    batch = door(
        capsys, command, "--config", "tiny.yaml", "--json", "--set", "training.batch_size=1000", "--run-dir", "r"
    )
    assert batch.code == 2
    assert problems(batch.document)[0].startswith("--set training.batch_size: expected at most 56")
    assert json.loads(Path("r/run.json").read_text())["status"] == "failed"
    assert not (home / "registry").exists()
    assert door(capsys, command, "--config", "no.yaml", "--json").code == 2


def test_what_the_machine_lacks_is_told_with_its_place_before_there_is_a_run(home: Path, capsys) -> None:
    pictures = "name: a\ndata: {image: {path: b}}\nmodel: {name: resnet18, pretrained: no.npz}\n"
    (home / "pictures.yaml").write_text(pictures)
    (home / "gpu.yaml").write_text(TABLE_YAML + "device: gpu\n")
    line = len(TABLE_YAML.splitlines()) + 1
    for words, told in (
        (["pictures.yaml"], "pictures.yaml:3: model.pretrained: expected a file, got nothing at no.npz; paths are"),
        (["gpu.yaml"], f"gpu.yaml:{line}: device: expected a GPU, found only cpu"),
        (["tiny.yaml", "--set", "device=gpu"], "--set device: expected a GPU, found only cpu"),
    ):
        for ask in (command, check.command):
            ended = door(capsys, ask, "--json", "--config", *words)
            assert ended.code == 2
            assert problems(ended.document)[0].startswith(told)
    assert not (home / "runs").exists()


def test_what_is_wrong_with_the_data_is_kept_in_the_run(home: Path, capsys) -> None:
    (home / "table.csv").unlink()
    ended = door(capsys, command, "--config", "tiny.yaml", "--json", "--run-dir", "run")
    assert (ended.code, ended.document["error"]["type"]) == (3, "data")
    assert problems(ended.document) == ["table.csv: no such file"]
    record = json.loads((home / "run" / "run.json").read_text())
    assert (record["status"], record["problems"]) == ("failed", ["table.csv: no such file"])
    again = door(capsys, command, "--config", "tiny.yaml", "--json", "--run-dir", "run")
    assert (again.code, problems(again.document)) == (3, ["table.csv: no such file"])  # the same command tries again


def test_a_folder_with_files_of_others_is_left_alone(home: Path, capsys) -> None:
    refused = "expected a new or empty folder, got one with files in it; name another"
    for name in ("config.yaml", "notes.txt"):
        (home / name).mkdir()
        (home / name / name).write_text("mine")
        ended = door(capsys, command, "--config", "tiny.yaml", "--json", "--run-dir", name)
        assert (ended.code, problems(ended.document)) == (2, [f"--run-dir {name}: {refused}"])
        assert [(path.name, path.read_text()) for path in (home / name).iterdir()] == [(name, "mine")]
    again = door(capsys, command, "--config", "tiny.yaml", "--json", "--run-dir", "tiny.yaml/run")
    assert (again.code, problems(again.document)) == (
        2,
        ["--run-dir tiny.yaml/run: cannot be made: Not a directory; name another"],
    )


def test_a_registry_that_cannot_be_written(home: Path, capsys) -> None:
    ended = door(
        *(capsys, command, "--config", "tiny.yaml", "--json", "--run-dir", "run", "--registry", "table.csv"),
        *("--set", "training.epochs=1"),
    )
    assert (ended.code, ended.document["error"]["type"]) == (5, "bundle")
    (problem,) = problems(ended.document)
    assert problem == "registry table.csv: cannot be written: Not a directory; name another"
    assert not (home / "run" / "metrics.jsonl").exists()  # told before the training, not after it
    assert json.loads((home / "run" / "run.json").read_text())["status"] == "failed"


def wait_for_a_checkpoint(running: subprocess.Popen[str], run: Path, *, seconds: float = 90.0) -> None:
    """Return when the run has logged an epoch and saved its state; fail when it ends before."""
    ends = time.monotonic() + seconds
    while not list((run / "checkpoints").glob(f"[0-9]*/{DIGESTS}")):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < ends, "no checkpoint within the time"
        time.sleep(0.02)
    assert (run / "metrics.jsonl").stat().st_size


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_training_in_good_order(home: Path, number: signal.Signals, code: int) -> None:
    options = ("--run-dir", "run", "--set", "training.epochs=1000000", "--set", "training.early_stopping.enabled=false")
    with start("train", "--config", "tiny.yaml", "--json", *options, folder=home) as running:
        wait_for_a_checkpoint(running, home / "run")
        running.send_signal(number)
        out, err = running.communicate(timeout=30)
    assert running.returncode == code, err
    document = json.loads(out.splitlines()[-1])
    assert (document["exit_code"], document["error"]["type"]) == (code, "interrupted")
    assert "Traceback" not in err
    record = json.loads((home / "run" / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert not (home / "registry").exists()
    newest = steps_in(home / "run" / "checkpoints")[0]
    assert damages(home / "run" / "checkpoints" / str(newest)) == []
    logged = (home / "run" / "metrics.jsonl").read_text().splitlines()
    assert newest >= json.loads(logged[-1])["step"]  # nothing that was told is lost
    assert "resume: the same command goes on with run" in err
