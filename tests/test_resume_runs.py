"""Which run the same command goes on with, what makes it refuse, and that nothing is registered twice."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mmjax.artifact.bundle import load_bundle
from mmjax.artifact.registry import list_versions
from mmjax.artifact.runs import list_runs
from mmjax.config import Audit, Config
from mmjax.config_load import config_from_dict
from mmjax.errors import ConfigError, DataError, TrainingError
from mmjax.train import FitResult, command, fit
from mmjax.training.checkpoint import steps_in
from mmjax.training.event_types import EpochEnded, Event
from tests.doors import door, write_table

YAML = """\
name: tiny
data:
  tabular: {path: table.csv, target_column: kind, id_column: id}
model:
  name: mlp
  architecture: {hidden_layers: [4]}
training: {epochs: 4, batch_size: 16, learning_rate: 0.05, checkpoint: {every_seconds: 0.001}}
evaluation: {baselines: none}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a table and its config."""
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "table.csv")
    (tmp_path / "tiny.yaml").write_text(YAML)
    return tmp_path


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """What a run that nobody disturbs ends in."""
    folder = tmp_path_factory.mktemp("expected")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_table(folder / "table.csv")
        return fit(config(), run_dir=folder / "run", registry=None)


def config(**training: Any) -> Config:
    settings = {"epochs": 4, "batch_size": 16, "learning_rate": 0.05, "checkpoint": {"every_seconds": 0.001}}
    content = {
        "name": "tiny",
        "data": {"tabular": {"path": "table.csv", "target_column": "kind", "id_column": "id"}},
        "model": {"name": "mlp", "architecture": {"hidden_layers": [4]}},
        "training": settings | training,
        "evaluation": {"baselines": "none"},
    }
    return config_from_dict(content, "test")


def ends_after(epoch: int) -> Callable[[Event], None]:
    """A callback that is interrupted when so many epochs are done."""

    def end(event: Event) -> None:
        if isinstance(event, EpochEnded) and event.epoch == epoch:
            raise KeyboardInterrupt

    return end


def interrupted(config: Config, epoch: int = 3, **options: Any) -> Path:
    """The folder of a run that was interrupted after so many epochs."""
    with pytest.raises(KeyboardInterrupt):
        fit(config, callbacks=(ends_after(epoch),), **options)
    run = list_runs(Path("runs"))[0].path if "run_dir" not in options else Path(options["run_dir"])
    assert record_of(run)["status"] == "interrupted"
    return run


def told(config: Config, **options: Any) -> tuple[FitResult, list[str]]:
    """The result, and the lines about resuming."""
    lines: list[str] = []
    result = fit(config, tell=lines.append, **options)
    return result, [line for line in lines if line.startswith(("resume", "checkpoint"))]


def record_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def edit_record(run: Path, **changes: Any) -> None:
    (run / "run.json").write_text(json.dumps(record_of(run) | changes))


def digest(result: FitResult) -> str:
    return load_bundle(result.bundle).digest


def test_the_same_command_goes_on_and_ends_the_same(home: Path, expected: FitResult) -> None:
    run = interrupted(config())
    result, lines = told(config())
    step = max(int(line.split("from step ")[1].split()[0]) for line in lines)
    batches = step % 3
    done = f"{batches} batch{'' if batches == 1 else 'es'} of it done"
    where = f"from step {step} (epoch {1 + step // 3}, {done})"
    assert lines == [f"resume: going on with {run} {where}"]
    assert result.run_dir == run
    assert (digest(result), result.metrics, result.version) == (digest(expected), expected.metrics, 1)
    for key in ("epochs", "first", "best"):
        assert result.report["training"][key] == expected.report["training"][key]
    history = [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(history)) == [1, 2, 3, 4]
    again, lines = told(config())  # nothing is unfinished: a new run
    assert (lines, again.version, again.run_dir != run) == ([], 2, True)


def test_never_begins_anew(home: Path) -> None:
    run = interrupted(config())
    result, lines = told(config(), resume="never")
    assert (lines, result.run_dir != run) == ([], True)
    with pytest.raises(ConfigError, match=r"--run-dir .*: expected a new or empty folder, got one with files in it"):
        fit(config(), run_dir=run, resume="never")


def test_another_config_is_told_and_begins_anew_or_is_refused_where_the_run_is_named(home: Path, capsys) -> None:
    run = interrupted(config())
    changed = config(epochs=5, ema_decay=0.9)
    keys = ["training.epochs: 4 then, 5 now", "training.ema_decay: by default then, 0.9 now"]
    result, lines = told(changed)
    assert lines == [f"resume: not going on with the unfinished {run}, which is of another config: {'; '.join(keys)}"]
    assert result.run_dir != run
    before = (run / "run.json").read_bytes()
    for words in (("--run-dir", run), ("--resume", run)):
        ended = door(
            *(capsys, command, "--config", "tiny.yaml", "--json", *words, "--set", "training.epochs=5"),
            *("--set", "training.ema_decay=0.9"),
        )
        whose = f"{words[0]} {run}: this run is of another config; name another folder, or take back the changes"
        assert (ended.code, ended.document["error"]["problems"]) == (2, [whose, *(f"--set {key}" for key in keys)])
    assert (run / "run.json").read_bytes() == before
    back, lines = told(config())  # the changes are taken back
    assert (len(lines), back.run_dir) == (1, run)


def one_cell(table: Path) -> str:
    """Change one number; return what is said of it."""
    lines = table.read_text().splitlines()
    cells = lines[5].split(",")
    cells[1] = "9.875"
    table.write_text("\n".join([*lines[:5], ",".join(cells), *lines[6:]]) + "\n")
    return "hold other values|or other categories or numbers, than then: size"


def one_row_more(table: Path) -> str:
    with table.open("a") as file:
        file.write("r999,0.5,red,yes,2024-01-01,a\n")
    return r"train rows: \d+ then, \d+ now"


@pytest.mark.parametrize("change", [one_cell, one_row_more])
def test_other_data_are_told_and_begin_anew_or_are_refused_where_the_run_is_named(home: Path, change, capsys) -> None:
    run = interrupted(config(), epoch=2)
    said = change(home / "table.csv")
    before = record_of(run)
    for words in (("--run-dir", run), ("--resume", run)):
        ended = door(capsys, command, "--config", "tiny.yaml", "--json", *words)
        problems = ended.document["error"]["problems"]
        assert (ended.code, ended.document["error"]["type"]) == (3, "data")
        assert problems[0] == (
            f"{run}: the data are not those that this run was trained on; start anew with --resume never"
        )
        assert re.search(said, "\n".join(problems[1:]))
    assert record_of(run)["status"] == before["status"]
    assert record_of(run)["data_sha256"] == before["data_sha256"]
    result, lines = told(config())
    assert len(lines) == 1
    assert lines[0].startswith(f"resume: not going on with {run}: ")
    assert result.run_dir != run


def test_other_recipes_are_told_and_begin_anew_or_are_refused_where_the_run_is_named(home: Path) -> None:
    """As of a run that an older mmjax began: the config says the same, and something else follows from it."""
    run = interrupted(config())
    path = run / "decisions.json"
    kept = path.read_text()
    older = [one | ({"value": 0.5} if one["key"] == "training.weight_decay" else {}) for one in json.loads(kept)]
    assert older != json.loads(kept)
    path.write_text(json.dumps(older))
    differs = "training.weight_decay: 0.5 then, 0.02 now"
    why = "other settings follow from the same config now"
    with pytest.raises(DataError, match=f"another mmjax began it; .*--resume never.*\n{why}\n{differs}$"):
        fit(config(), run_dir=run)
    assert (record_of(run)["status"], json.loads(path.read_text())) == ("interrupted", older)
    result, lines = told(config())
    assert (lines, result.run_dir != run) == ([f"resume: not going on with {run}: {why}; {differs}"], True)
    # an older run of today's decisions is gone on with
    path.write_text(kept)
    newer = interrupted(config(), resume="never")
    assert newer != run
    (newer / "decisions.json").write_text(json.dumps(older))
    result, lines = told(config())
    assert lines[0] == f"resume: not going on with {newer}: {why}; {differs}"
    assert (result.run_dir, lines[1].startswith(f"resume: going on with {run}")) == (run, True)
    run = interrupted(config(), resume="never")
    path = run / "decisions.json"
    # a key that there was not then, and that does nothing now, is no difference
    fewer = [one for one in json.loads(kept) if one["key"] != "training.accumulate_steps"]
    path.write_text(json.dumps([one for one in fewer if one["key"] != "training.ema_decay"]))
    result, lines = told(config(), run_dir=run)
    assert (result.run_dir, lines[0].startswith(f"resume: going on with {run}")) == (run, True)


def test_of_unfinished_runs_that_of_the_data_at_hand_is_gone_on_with(home: Path, expected: FitResult) -> None:
    older = interrupted(config(), epoch=2)
    content = (home / "table.csv").read_bytes()
    one_row_more(home / "table.csv")
    newer = interrupted(config(), epoch=2)
    assert newer != older
    (home / "table.csv").write_bytes(content)
    result, lines = told(config())
    assert lines[0].startswith(f"resume: not going on with {newer}: ")
    assert lines[1].startswith(f"resume: going on with {older} from step ")
    assert (result.run_dir, digest(result)) == (older, digest(expected))
    assert record_of(newer)["status"] == "interrupted"


def test_interrupted_before_the_data_are_known_no_going_on_is_promised(home: Path) -> None:
    def tell(line: str) -> None:
        lines.append(line)
        if line.startswith("run "):  # what follows the reading of the data
            raise KeyboardInterrupt

    for options, promised in (({}, "starts anew"), ({"run_dir": home / "named"}, f"goes on with {home / 'named'}")):
        lines: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            fit(config(), tell=tell, **options)
        assert lines[-1] == f"resume: the same command {promised}"
        lines = []
        fit(config(), registry=None, tell=lines.append, **options)
        assert any(line.startswith("resume: going on with") for line in lines) == (promised != "starts anew")


def test_a_run_that_cannot_be_locked_is_told_and_left(home: Path) -> None:
    run = interrupted(config(), epoch=1)
    (run / "lock").unlink()
    (run / "lock").mkdir()  # as one that belongs to another user: it cannot be opened for writing
    result, lines = told(config())
    assert lines == [f"resume: not going on: run {run}: cannot be locked: Is a directory; name another"]
    assert result.run_dir != run


def test_a_finished_run_that_is_named_prints_its_result(home: Path, capsys) -> None:
    first = door(capsys, command, "--config", "tiny.yaml", "--json", "--run-dir", "run")
    before = (home / "run" / "run.json").read_bytes()
    for words in (("--run-dir", "run"), ("--resume", "run")):
        again = door(capsys, command, "--config", "tiny.yaml", "--json", *words)
        assert again.code == 0
        assert "run run is finished: nothing is left to do; --resume never trains anew" in again.err
        one, other = first.document, again.document
        assert {key: other[key] for key in ("run_dir", "model", "version", "bundle", "metrics")} == {
            key: one[key] for key in ("run_dir", "model", "version", "bundle", "metrics")
        }
    assert [model.version for model in list_versions(Path("registry"), "tiny")] == [1]
    assert (home / "run" / "run.json").read_bytes() == before
    refused = door(capsys, command, "--config", "tiny.yaml", "--json", "--run-dir", "run", "--registry", "table.csv")
    assert refused.code == 5
    assert (home / "run" / "run.json").read_bytes() == before  # and stays finished whatever its reader meets
    (home / "run" / "report.json").unlink()
    lost = door(capsys, command, "--config", "tiny.yaml", "--json", "--run-dir", "run")
    told = "run/report.json: expected the report of this run, got none; restore it or retrain"
    assert (lost.code, lost.document["error"]["problems"]) == (5, [told])


def test_killed_between_registering_and_the_end_it_registers_once(home: Path, expected: FitResult) -> None:
    run = fit(config()).run_dir
    edit_record(run, status="running", version=None, model=None, bundle=None)
    for name in ("bundle", "report.json"):
        (run / name).rename(home / name)
    result, lines = told(config())
    assert lines == [f"resume: going on with {run} from step 12 (training is over)"]
    assert (result.run_dir, result.version) == (run, 1)
    assert [model.version for model in list_versions(Path("registry"), "tiny")] == [1]
    assert digest(result) == digest(expected) == load_bundle(run / "bundle").digest
    assert record_of(run)["status"] == "finished"


def test_a_diverged_run_is_not_taken_up(home: Path) -> None:
    exploding = config(learning_rate=1e30, optimizer="sgd", schedule="constant")
    for count in (1, 2):
        with pytest.raises(TrainingError, match="the last good state is kept in the checkpoints"):
            told(exploding)
        runs = list_runs(Path("runs"))
        assert [run.record.status for run in runs] == ["diverged"] * count
        assert steps_in(runs[0].path / "checkpoints")


def test_no_whole_checkpoint_means_from_the_start(home: Path, expected: FitResult) -> None:
    run = interrupted(config())
    steps = steps_in(run / "checkpoints")
    for step in steps:
        (run / "checkpoints" / str(step) / "position.json").write_text("")
    result, lines = told(config())
    assert lines == [
        *(
            f"checkpoint {run}/checkpoints/{step} is passed over: position.json: damaged: not the file that was saved"
            for step in steps
        ),
        f"resume: going on with {run} from the start, as there is no whole checkpoint",
    ]
    assert digest(result) == digest(expected)


def test_a_run_killed_as_it_began_is_begun_again(home: Path) -> None:
    for names in (["lock"], ["lock", "config.yaml", ".run.json.12-ab.tmp"]):
        (home / "run").mkdir()
        for name in names:
            (home / "run" / name).write_text("")
        assert fit(config(epochs=1), run_dir="run", registry=None).run_dir == Path("run")
        (home / "run").rename(home / f"done-{len(names)}")


def test_a_run_killed_before_its_data_were_known_is_gone_on_with_where_it_is_named(
    home: Path, expected: FitResult
) -> None:
    run = interrupted(config(), epoch=1, run_dir="run")
    edit_record(run, data_sha256="", status="running")
    for path in (run / "checkpoints").iterdir():
        path.rename(home / path.name)
    result, lines = told(config(), run_dir="run", registry=None)
    assert lines == ["resume: going on with run from the start, as there is no whole checkpoint"]
    assert digest(result) == digest(expected)


def test_another_machine_is_told(home: Path) -> None:
    run = interrupted(config())
    computes = record_of(run)["computes"]
    edit_record(run, computes=computes | {"threads": 64, "jaxlib": "0.0.1"})
    _, lines = told(config())
    assert len(lines) == 2
    assert lines[0] == (
        f"resume: the same bits are not promised: threads 64 then, {computes['threads']} now; "
        f"jaxlib 0.0.1 then, {computes['jaxlib']} now"
    )
    assert record_of(run)["computes"] == computes


def test_what_cannot_be_gone_on_with_is_refused_in_words(home: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--resume no: no run to go on with\nno/run.json: is missing; name the folder"
    ):
        fit(config(), resume="no")
    with pytest.raises(ConfigError, match="--resume a: expected no --run-dir beside it, got b; leave one out"):
        fit(config(), resume="a", run_dir="b")
    (home / "broken").mkdir()
    (home / "broken" / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"--run-dir broken: no run to go on with\nbroken/run.json: not readable"):
        fit(config(), run_dir="broken")


def test_keys_that_change_no_bit_may_change(home: Path) -> None:
    """How often to save, and what the audit does with what it finds, decide nothing that comes out."""
    run = interrupted(config())
    other = msgspec.structs.replace(
        config(checkpoint={"every_seconds": 9.0, "keep": 3}), audit=Audit(columns="ignore", drift="fail")
    )
    result, lines = told(other)
    assert result.run_dir == run
    assert len(lines) == 1
    assert load_bundle(result.bundle).digest == load_bundle(fit(other, registry=None, resume="never").bundle).digest
