import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import click
import numpy as np
import pytest

from mmjax import cli
from mmjax.artifact.registry import promote, register
from mmjax.artifact.runs import create_run, write_json_atomic
from mmjax.cli import COMMANDS, echo, echo_table, json_option, run
from mmjax.errors import BundleError, ConfigError, DataError, MmjaxError, TrainingError
from mmjax.interrupts import Terminated

BUNDLE = Path(__file__).parent / "fixtures" / "bundle_v1"


@click.command(name="probe", help="Do or raise what the test asks for.")
@click.argument("what")
@click.option("--count", type=int, default=1)
@json_option
def probe(what: str, count: int) -> dict | None:
    echo(f"doing {what}")
    print("from a library")  # noqa: T201
    match what:
        case "nothing":
            return None
        case "values":
            return {
                "loss": float("nan"),
                "best": np.float32(0.5),
                "path": Path("a/b"),
                "n": [np.int64(3), float("inf")],
            }
        case "unprintable":
            return {"x": object()}
        case "interrupt":
            raise KeyboardInterrupt
        case "terminate":
            raise Terminated
        case "term-signal":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        case "exit":
            raise click.exceptions.Exit(7)
    raise ERRORS[what]


ERRORS = {
    "config": ConfigError(["iris.yaml:3: expected a number", "iris.yaml:9: unknown key"]),
    "data": DataError("iris.csv: no rows"),
    "training": TrainingError("loss is NaN"),
    "bundle": BundleError("damaged"),
    "base": MmjaxError("something"),
    "file": FileNotFoundError(2, "No such file or directory", "x.csv"),
    "memory": MemoryError(),
    "fault": KeyError("x"),
}


def finish(capsys, *argv: str, command: click.Command = probe) -> tuple[int, str, str]:
    """Run the command in this process; return exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as ended:
        run(command, argv)
    captured = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, captured.out, captured.err


@pytest.mark.parametrize(
    ("what", "code", "kind"),
    [
        ("config", 2, "config"),
        ("data", 3, "data"),
        ("training", 4, "training"),
        ("bundle", 5, "bundle"),
        ("base", 1, "internal"),
        ("file", 1, "system"),
        ("memory", 1, "system"),
        ("fault", 1, "internal"),
        ("interrupt", 130, "interrupted"),
        ("terminate", 143, "interrupted"),
        ("term-signal", 143, "interrupted"),
    ],
)
def test_every_error_has_its_exit_code_lines_and_object(capsys, what, code, kind):
    got, out, err = finish(capsys, what)
    assert got == code
    assert out == f"doing {what}\nfrom a library\n"
    assert all(line.startswith("error: ") for line in err.splitlines())
    assert "Traceback" not in err
    got, out, err_json = finish(capsys, what, "--json")
    document = json.loads(out)
    assert got == document["exit_code"] == code
    assert document["error"]["type"] == kind
    problems = [line.removeprefix("error: ") for line in err.splitlines()]
    assert document["error"]["problems"] == problems
    assert document["error"]["message"] == "\n".join(problems)
    assert err_json == f"doing {what}\nfrom a library\n{err}"


def test_problems_are_a_line_each(capsys):
    assert finish(capsys, "config")[2] == "error: iris.yaml:3: expected a number\nerror: iris.yaml:9: unknown key\n"
    assert finish(capsys, "file")[2] == "error: [Errno 2] No such file or directory: 'x.csv'\n"
    assert finish(capsys, "memory")[2] == "error: MemoryError\n"
    told = "error: KeyError: 'x' (a fault of mmjax; MMJAX_DEBUG=1 shows the traceback)\n"
    assert finish(capsys, "fault")[2] == told


def test_success_prints_one_object_that_every_parser_reads(capsys):
    assert finish(capsys, "values") == (0, "doing values\nfrom a library\n", "")
    code, out, err = finish(capsys, "values", "--json")
    assert (code, err) == (0, "doing values\nfrom a library\n")
    assert out == '{"loss": null, "best": 0.5, "path": "a/b", "n": [3, null]}\n'
    assert finish(capsys, "nothing", "--json")[:2] == (0, "{}\n")
    assert finish(capsys, "exit")[0] == 7


def test_a_result_without_a_json_form_is_a_fault(capsys):
    code, out, err = finish(capsys, "unprintable", "--json")
    assert (code, json.loads(out)["error"]["type"]) == (1, "internal")
    assert "object has no JSON form" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("data", "--wat", "3"), "No such option '--wat'."),
        (("data", "--count", "x"), "Invalid value for '--count': 'x' is not a valid integer."),
        (
            (),
            "Missing argument 'WHAT'. The command is: python -m mmjax.probe [OPTIONS] WHAT; with --help it says more",
        ),
        (("data", "more"), "Got unexpected extra argument (more)"),
    ],
)
def test_usage_errors_are_told_the_same_way(capsys, argv, message):
    assert finish(capsys, *argv) == (2, "", f"error: {message}\n")
    code, out, _ = finish(capsys, *argv, "--json")
    expected = {"error": {"type": "usage", "message": message, "problems": [message]}, "exit_code": 2}
    assert (code, json.loads(out)) == (2, expected)


def test_json_after_two_dashes_is_an_argument(capsys):
    code, out, err = finish(capsys, "--", "--json")
    assert (code, out) == (1, "doing --json\nfrom a library\n")
    assert "KeyError" in err


def test_debug_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv("MMJAX_DEBUG", "1")
    code, _, err = finish(capsys, "data")
    assert code == 3
    assert "Traceback (most recent call last)" in err
    assert err.endswith("error: iris.csv: no rows\n")


def test_sigterm_is_given_back(capsys):
    before = signal.getsignal(signal.SIGTERM)
    finish(capsys, "term-signal")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_table_is_plain_where_nobody_looks(capsys):
    echo_table(("model", "rows"), [("iris\x1b[31m:1", "150"), ("花", "7")], text_columns=1)
    assert capsys.readouterr().out.splitlines() == [
        "model           rows",
        "--------------  ----",
        "iris\\x1b[31m:1   150",
        "花                 7",
    ]


def test_a_table_is_drawn_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    echo_table(("model", "rows"), [("[red]iris", "150")], text_columns=1)
    drawn = capsys.readouterr().out
    assert "[red]iris" in drawn
    assert "─" in drawn


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_of_commands_says_what_each_says_of_itself(name):
    command = importlib.import_module(f"mmjax.{name}").command
    assert command.name == name
    assert command.get_short_help_str(limit=200) == COMMANDS[name]
    leaves = command.commands.values() if isinstance(command, click.Group) else [command]
    for leaf in leaves:
        assert leaf.help
        assert "--json" in {option for parameter in leaf.params for option in parameter.opts}


def test_help_lists_every_command_and_imports_none(capsys):
    code, out, _ = finish(capsys, "--help", command=cli.command)
    assert code == 0
    words = " ".join(out.split())
    assert all(f"{name} {told}" in words for name, told in COMMANDS.items())


def test_no_command_shows_the_help_and_is_an_error(capsys):
    code, out, err = finish(capsys, command=cli.command)
    assert (code, out) == (2, "")
    assert "Commands:" in err


def test_an_unknown_command_gets_a_hint(capsys):
    code, _, err = finish(capsys, "registri", "list", command=cli.command)
    said = err.splitlines()[0].split(";")
    assert (code, said[0], said[-1]) == (2, "error: no command 'registri'", " did you mean 'registry'?")


# ---- real processes


def launch(*argv: str, **options) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "mmjax", *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_version_and_help_need_no_heavy_import():
    code = (
        "import sys; from mmjax.cli import command, run\n"
        "try: run(command, ['--help'])\n"
        "except SystemExit as end: print(end.code, {'jax', 'numpy', 'rich', 'pandas', 'yaml'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "0 set()"


def test_a_process_ends_with_the_code_and_the_object(tmp_path):
    process = launch("registry", "show", "iris", "--registry", str(tmp_path / "none"), "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 5
    assert json.loads(out.splitlines()[-1])["error"]["type"] == "bundle"
    assert err.startswith("error: registry ")


def test_a_reader_that_leaves_is_no_error(tmp_path):
    for second in range(60):
        folder = create_run(tmp_path, "iris", datetime(2026, 1, 1, 0, 0, second))
        write_json_atomic(folder / "run.json", {"name": "iris", "status": "finished"})
    process = launch("runs", "list", "--runs-dir", str(tmp_path))
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


SLEEPER = """
import sys, time, click
from mmjax.cli import json_option, run

@click.command(name="sleeper")
@json_option
def command():
    try:
        print("ready", file=sys.stderr, flush=True)
        time.sleep(60)
    finally:
        print("tidied", file=sys.stderr, flush=True)

run(command)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_a_process_in_good_order(number, code):
    command = [sys.executable, "-c", SLEEPER, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.splitlines()[0] == "tidied"
    assert json.loads(out)["exit_code"] == code


# ---- the doors of registry and runs


@pytest.fixture
def root(tmp_path):
    for run_id in "ab":
        register(tmp_path / "registry", "iris", BUNDLE, run_id=run_id)
    promote(tmp_path / "registry", "iris:1")
    return tmp_path / "registry"


def door(capsys, name: str, *argv: str) -> tuple[int, str, dict]:
    """Run a front door with --json; return exit code, what a person reads (standard error), and the object."""
    command = importlib.import_module(f"mmjax.{name}").command
    code, out, err = finish(capsys, *argv, "--json", command=command)
    return code, err, json.loads(out)


def test_registry_list(capsys, root):
    code, text, found = door(capsys, "registry", "list", "--registry", str(root))
    assert code == 0
    assert "iris:2  production:1  " in text
    assert "iris:1" not in text
    assert "the newest version of each; 1 older version besides: `mmjax registry list NAME`" in text
    assert [version["aliases"] for version in found["models"]["iris"]] == [["production"], []]
    (root / "iris" / "2" / "manifest.json").write_text("{")
    code, text, found = door(capsys, "registry", "list", "iris", "--registry", str(root))
    assert code == 0
    assert "iris:1  production  " in text
    assert "test accuracy 0.9600" in text
    assert "iris:2              damaged" in text
    assert "not readable as JSON" in found["models"]["iris"][1]["problem"]


def test_registry_list_of_nothing(capsys, root, tmp_path):
    code, text, found = door(capsys, "registry", "list", "--registry", str(tmp_path / "none"))
    assert (code, found["models"]) == (0, {})
    assert "no models; `python -m mmjax.train --config FILE` makes one" in text
    assert door(capsys, "registry", "list", "irsi", "--registry", str(root))[0] == 5


def test_registry_show(capsys, root):
    code, text, found = door(capsys, "registry", "show", "iris", "--registry", str(root))
    assert code == 0
    assert found["version"] == 1
    assert found["digest"] in text
    assert found["metrics"]["test"] == {"accuracy": 0.96, "roc_auc": None, "mape": None}
    assert found["config"]["model"]["architecture"]["hidden_layers"] == [8, 4]
    assert "hidden_layers: [8, 4]" in text
    assert "accuracy  0.9600  1.0000" in text
    assert found["provenance"]["host"] == "example"


def test_registry_compare(capsys, root, tmp_path):
    import msgspec

    from mmjax.artifact.bundle import save_bundle
    from tests.make_bundle_fixture import example_contents

    contents = example_contents()
    other = contents._replace(
        config=msgspec.structs.replace(contents.config, seed=7), metrics={"test": {"accuracy": 0.97, "mcc": 0.5}}
    )
    save_bundle(tmp_path / "other", other)
    register(root, "iris", tmp_path / "other", run_id="c")
    code, text, found = door(capsys, "registry", "compare", "iris:1", "iris:3", "--registry", str(root))
    assert code == 0
    assert "test   accuracy  0.9600  0.9700     +0.0100" in text
    assert found["config"] == [{"key": "seed", "a": 0, "b": 7, "recipe": False}]
    by_metric = {row["metric"]: row for row in found["metrics"] if row["split"] == "test"}
    assert by_metric["accuracy"]["difference"] == pytest.approx(0.01)
    unknown = {"difference": None, "interval": None, "larger_than_noise": None}
    assert by_metric["mcc"] == {"split": "test", "metric": "mcc", "a": None, "b": 0.5, **unknown, "main": True}
    assert "cannot be compared row by row: no answers to test rows are kept of iris:1 and iris:3" in text
    assert not found["same_content"]
    code, text, found = door(capsys, "registry", "compare", "iris:1", "iris:2", "--registry", str(root))
    assert found["same_content"]
    assert found["config"] == []
    assert "the content is the same, to the bit" in text
    target = msgspec.structs.replace(contents.schema.target, column="colour", classes=("red", "blue", "green"))
    apart = contents._replace(schema=msgspec.structs.replace(contents.schema, target=target))
    save_bundle(tmp_path / "apart", apart)
    register(root, "hues", tmp_path / "apart", run_id="d")
    code, text, found = door(capsys, "registry", "compare", "iris:1", "hues:1", "--registry", str(root))
    assert (code, found["metrics"]) == (0, [])
    assert "they predict different things (species / colour): metrics cannot be compared" in text
    assert "noise" not in text


def test_what_differs_comes_first_and_the_rest_with_all(capsys, root, tmp_path):
    """Settings that somebody chose, then the metrics of a report on one split; losses of unlike kind are apart."""
    import msgspec

    from mmjax.artifact.bundle import save_bundle
    from tests.make_bundle_fixture import example_contents

    contents = example_contents()
    report = {"decisions": [{"key": "training.learning_rate"}], "data": {"zero_targets": {"test": 2}}}
    for i, (loss, rate) in enumerate((("mse", 0.1), ("huber", 0.2), ("huber", 0.2))):
        training = msgspec.structs.replace(contents.config.training, loss=loss, learning_rate=rate)
        config = msgspec.structs.replace(contents.config, training=training, seed=i)
        values = {"loss": 0.5 + i, "rmse": 2.0, "mape": 1e16}
        made = contents._replace(config=config, report=report, metrics={"train": values, "test": values})
        save_bundle(tmp_path / f"made{i}", made)
        register(root, "price", tmp_path / f"made{i}", run_id=f"p{i}")
    asked = "registry", "compare", "price:1", "price:2", "--registry", str(root)
    code, text, found = door(capsys, *asked)
    assert code == 0
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["config", "price:1", "price:2"]
    assert lines[2:4] == [["training.loss", "mse", "huber"], ["seed", "0", "1"]]
    assert lines[7:9] == [["test", "rmse", "2.0000", "2.0000", "0.0000"], ["test", "mape", "-", "-", "-"]]
    assert "with --all also 4 values of losses and other splits and 1 key that the recipe decided differently" in text
    assert {row["key"]: row["recipe"] for row in found["config"]} == {
        "seed": False, "training.loss": False, "training.learning_rate": True,
    }  # fmt: skip
    _, text, _ = door(capsys, *asked, "--all")
    assert "training.learning_rate  0.1      0.2" in text
    assert ["test", "loss", "0.5000", "1.5000", "-"] in [line.split() for line in text.splitlines()]
    assert "loss: not subtracted, as they are of unlike kind (mse / huber huber_delta 1.0)" in text
    assert "with --all" not in text
    _, text, found = door(capsys, "registry", "compare", "price:2", "price:3", "--registry", str(root), "--all")
    assert ["test", "loss", "1.5000", "2.5000", "+1.0000"] in [line.split() for line in text.splitlines()]
    assert found["losses"] == ""
    _, text, _ = door(capsys, "registry", "show", "price", "--registry", str(root))
    assert ["mape", "1.00e+16", "-"] in [line.split() for line in text.splitlines()]


def test_runs_tell_no_mape_of_zero_targets(capsys, runs):
    folder = runs / "iris" / "20260101-000001"
    record = json.loads((folder / "run.json").read_text())
    write_json_atomic(folder / "run.json", record | {"metrics": {"validation": {"rmse": 1.0, "mape": 1e16}}})
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "val_rmse": 1.0, "val_mape": 2e15}\n')
    asked = "runs", "show", "iris", "--runs-dir", str(runs)
    assert "1.00e+16" in door(capsys, *asked)[1]
    write_json_atomic(folder / "report.json", {"data": {"zero_targets": {"validation": 1}}})
    code, text, found = door(capsys, *asked)
    assert (code, "e+1" in text) == (0, False)
    assert found["history"][0]["val_mape"] == 2e15
    other = "iris/20260101-000000"
    assert "1.00e+16" not in door(capsys, "runs", "compare", "iris", other, "--runs-dir", str(runs), "--all")[1]


def test_registry_promote_and_verify_refuse_a_damaged_version(capsys, root):
    (root / "iris" / "2" / "card.md").write_text("")
    for argv in (("promote", "iris:2"), ("verify", "iris:2")):
        code, text, found = door(capsys, "registry", *argv, "--registry", str(root))
        assert (code, found["error"]["type"]) == (5, "bundle")
        assert "card.md: expected 30 bytes, got 0; restore it or retrain" in text


def test_registry_delete_and_rollback(capsys, root):
    assert door(capsys, "registry", "rollback", "iris", "--registry", str(root))[0] == 5
    assert door(capsys, "registry", "delete", "iris:1", "--registry", str(root))[0] == 5
    code, text, found = door(capsys, "registry", "delete", "iris:1", "--force", "--registry", str(root))
    assert (code, text, found) == (0, "iris:1 is deleted\n", {"model": "iris", "version": 1, "deleted": True})


@pytest.fixture
def runs(tmp_path):
    """Two finished runs of iris and a failed one of wine."""
    from mmjax.config_load import config_to_dict
    from tests.make_bundle_fixture import example_contents

    config = config_to_dict(example_contents().config)
    for second, accuracy in enumerate((0.9, 0.95)):
        folder = create_run(tmp_path / "runs", "iris", datetime(2026, 1, 1, 0, 0, second))
        record = {"name": "iris", "status": "finished", "started": "2026-01-01", "seconds": {"data": 0.5, "train": 1.0}}
        metrics = {"test": {"accuracy": accuracy, "roc_auc": float("nan")}}
        outcome = {"model": "iris", "version": second + 1, "metrics": metrics, "config": config | {"seed": second}}
        write_json_atomic(folder / "run.json", record | outcome)
        (folder / "metrics.jsonl").write_text('{"epoch": 1, "val_loss": 0.5}\n{"epoch": 2, "val_loss": null}\n')
    failed = create_run(tmp_path / "runs", "wine", datetime(2026, 1, 2))
    write_json_atomic(failed / "run.json", {"name": "wine", "status": "failed", "problems": ["wine.csv: no rows"]})
    return tmp_path / "runs"


def test_runs_list(capsys, runs, tmp_path):
    code, text, found = door(capsys, "runs", "list", "--runs-dir", str(runs))
    assert code == 0
    lines = text.splitlines()
    assert lines[2].split() == ["wine/20260102-000000", "failed", "-", "-", "-"]
    assert lines[3].split() == ["iris/20260101-000001", "finished", "1.5", "iris:2", "test", "accuracy", "0.9500"]
    assert [row["status"] for row in found["runs"]] == ["failed", "finished", "finished"]
    assert door(capsys, "runs", "list", "oak", "--runs-dir", str(runs))[1] == f"runs {runs}: no runs of oak\n"


def test_runs_show(capsys, runs):
    code, text, found = door(capsys, "runs", "show", "iris", "--runs-dir", str(runs))
    assert (code, found["run"], found["seconds"]) == (0, "iris/20260101-000001", 1.5)
    assert found["history"] == [{"epoch": 1, "val_loss": 0.5}, {"epoch": 2, "val_loss": None}]
    assert "accuracy  0.9500" in text
    assert "seed: 1" in text
    assert "wine.csv: no rows" in door(capsys, "runs", "show", "wine", "--runs-dir", str(runs))[1]


def what_was_decided_is_told(capsys, runs, refs):
    """Where one run asks for what the recipe decided in the other, both values are shown."""
    from mmjax.config_load import config_from_dict, config_to_yaml

    for ref, epochs in zip(refs, (32, 40), strict=True):
        record = json.loads((runs / ref / "run.json").read_bytes())
        config = record["config"]
        resolved = config | {"training": config["training"] | {"epochs": epochs}}
        (runs / ref / "resolved.yaml").write_text(config_to_yaml(config_from_dict(resolved, "resolved")))
        if epochs == 32:
            config["preset"] = "fast"  # does nothing once all is decided, so that the resolved config lacks it
        else:
            config["training"]["epochs"] = epochs
        write_json_atomic(runs / ref / "run.json", record)
    _, text, found = door(capsys, "runs", "compare", *refs, "--runs-dir", str(runs))
    assert {"key": "training.epochs", "a": 32, "b": 40, "recipe": False} in found["config"]
    assert {"key": "preset", "a": "fast", "b": "default", "recipe": False} in found["config"]
    assert re.search(r"training.epochs +32 +40", text)


def test_runs_compare(capsys, runs):
    refs = ("iris/20260101-000000", "iris/20260101-000001")
    code, text, found = door(capsys, "runs", "compare", *refs, "--runs-dir", str(runs))
    assert code == 0
    assert found["config"] == [{"key": "seed", "a": 0, "b": 1, "recipe": False}]
    assert "+0.0500" in text
    assert "the configs say the same" in door(capsys, "runs", "compare", refs[0], refs[0], "--runs-dir", str(runs))[1]
    what_was_decided_is_told(capsys, runs, refs)
    target = {"column": "species", "task": "classification", "classes": ["a", "b"]}
    for ref, classes in zip(refs, ("ab", "abc"), strict=True):
        write_json_atomic(runs / ref / "schema.json", {"target": target | {"classes": list(classes)}})
    code, text, found = door(capsys, "runs", "compare", *refs, "--runs-dir", str(runs))
    told = "they predict different things (species: a, b / species: a, b, c): metrics cannot be compared"
    assert (code, found["metrics"], found["noise"]) == (0, [], told)
    assert text.startswith(f"{told}\n\nconfig")
    code, text, _ = door(capsys, "runs", "compare", "iris")
    assert code == 2
    assert "Missing argument 'B'. The command is: " in text
    assert "runs compare [OPTIONS] A B; with --help it says more" in text


def test_runs_prune(capsys, runs):
    refs = ["iris/20260101-000000"]
    code, text, found = door(capsys, "runs", "prune", "--keep", "1", "--dry-run", "--runs-dir", str(runs))
    assert (code, found) == (0, {"removed": refs, "dry_run": True})
    assert text == "would remove iris/20260101-000000 (finished)\n1 runs to remove\n"
    assert door(capsys, "runs", "prune", "--keep", "1", "--runs-dir", str(runs))[2]["removed"] == refs
    assert not (runs / refs[0]).exists()
