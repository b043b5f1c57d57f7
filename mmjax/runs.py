"""`python -m mmjax.runs`: look at training runs, compare them, remove old ones."""

from pathlib import Path
from typing import Any

import click

from mmjax.analysis.compare import Side, compare, headline, metrics_table
from mmjax.analysis.report import meaningful, zero_targets
from mmjax.analysis.tables import number
from mmjax.artifact import runs as store
from mmjax.artifact.bundle import load_bundle
from mmjax.artifact.runs import Run
from mmjax.cli import COMMANDS, all_option, echo, echo_table, json_option, print_comparison, print_table, run
from mmjax.config_load import config_from_dict, config_keys, config_to_dict, config_to_yaml, load_config
from mmjax.schema import schema_from_json

root_option = click.option(
    "--runs-dir", "root", default="runs", show_default=True, type=click.Path(path_type=Path), help="Where runs are."
)


@click.group(name="runs", help=COMMANDS["runs"])
def command() -> None:
    """Look at runs."""


@command.command(name="list", help="List the runs, newest first.")
@click.argument("name", required=False)
@root_option
@json_option
def list_command(name: str | None, root: Path) -> dict[str, Any]:
    """List runs."""
    runs = store.list_runs(root, name or "")
    if runs:
        echo_table(("run", "status", "seconds", "model", "result"), map(_row, runs))
    else:
        echo(f"runs {root}: no runs{f' of {name}' if name else ''}")
    return {"runs_dir": root, "runs": [_summary(found) for found in runs]}


def _row(found: Run) -> tuple[str, ...]:
    """Return a run as cells."""
    record, spent = found.record, _seconds(found)
    model = f"{record.model}:{record.version}" if record.version is not None else "-"
    return found.ref, record.status, "-" if spent is None else f"{spent:,.1f}", model, headline(record.metrics)


def _seconds(found: Run) -> float | None:
    """Return how long a run took, over all its stages; None where it does not say, as of a stage that did not end."""
    if found.record.status in ("killed", "running"):
        return None
    match found.record.seconds:
        case dict() as stages if stages:
            return sum(float(spent) for spent in stages.values() if isinstance(spent, int | float))
        case int() | float() as spent:
            return float(spent)
        case _:
            return None


def _summary(found: Run) -> dict[str, Any]:
    """Return a run without its config."""
    record = found.record
    return {
        "run": found.ref,
        "path": found.path,
        "status": record.status,
        "started": record.started,
        "seconds": _seconds(found),
        "model": record.model,
        "version": record.version,
        "metrics": record.metrics,
        "problems": record.problems,
    }


@command.command(help="Show one run: status, metrics, epochs, config.")
@click.argument("ref", metavar="NAME[/STAMP]")
@click.option("--epochs", default=5, show_default=True, type=click.IntRange(min=0), help="How many last epochs.")
@root_option
@json_option
def show(ref: str, epochs: int, root: Path) -> dict[str, Any]:
    """Show a run."""
    found = store.find_run(root, ref)
    report = store.read_report(found.path)
    history = store.read_history(found.path)
    summary = _summary(found)
    for key in ("run", "path", "status", "started", "seconds", "model", "version"):
        echo(f"{key:<9}{'-' if summary[key] is None else summary[key]}")
    for problem in found.record.problems:
        echo(f"problem  {problem}")
    if found.record.metrics:
        echo()
        print_table(metrics_table(meaningful(found.record.metrics, report)))
    if shown := history[-epochs:] if epochs else []:
        echo()
        names = list(dict.fromkeys(name for row in shown for name in row))
        if zero_targets(report, "validation"):
            shown = [row | {"val_mape": None} for row in shown]
        echo_table(names, [tuple(_cell(row.get(name)) for name in names) for row in shown], text_columns=0)
    if found.record.config:
        echo()
        echo(config_to_yaml(config_from_dict(found.record.config, str(found.path / store.RECORD))).rstrip())
    return {**summary, "config": found.record.config, "history": history}


def _cell(value: Any) -> str:
    """Return a value of an epoch as text."""
    return number(value) if isinstance(value, float) else "-" if value is None else str(value)


@command.command(
    name="compare",
    help="Compare two runs, A and B: their metrics, and what their configs say differently. Each is NAME (its newest "
    "run), NAME/STAMP or a folder; registered models are compared by `registry compare`.",
)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@all_option
@root_option
@json_option
def compare_command(a: str, b: str, root: Path, everything: bool) -> dict[str, Any]:
    """Compare two runs."""
    compared = compare(*(_side(store.find_run(root, ref)) for ref in (a, b)))
    print_comparison(compared, everything=everything)
    return compared._asdict()


def _side(found: Run) -> Side:
    """Return a run as a Side, with the config that it was asked for and, once it is decided, what was."""
    where, resolved = str(found.path / store.RECORD), found.path / store.RESOLVED
    config = asked = config_from_dict(found.record.config, where)
    if resolved.is_file():
        config = config_from_dict(_filled(config_to_dict(asked), config_to_dict(load_config(resolved))), where)
    decided = config_keys(config) - config_keys(asked)
    schema, bundle = found.path / "schema.json", found.path / "bundle"
    target = schema_from_json(schema.read_bytes(), str(schema)).target if schema.is_file() else None
    answers = load_bundle(bundle).contents.answers if bundle.is_dir() else None
    return Side(found.ref, config, found.record.metrics, target, store.read_report(found.path), answers, decided)


def _filled(asked: dict[str, Any], decided: dict[str, Any]) -> dict[str, Any]:
    """Return what was asked for, and what was decided where nothing was."""
    both = {key for key in asked if isinstance(asked[key], dict) and isinstance(decided.get(key), dict)}
    return decided | asked | {key: _filled(asked[key], decided[key]) for key in both}


@command.command(help="Remove all but the newest runs of each name; registered models stay.")
@click.option("--keep", required=True, type=click.IntRange(min=0), help="How many runs of each name to keep.")
@click.option("--name", default="", help="Only runs of this name.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@root_option
@json_option
def prune(keep: int, name: str, dry_run: bool, root: Path) -> dict[str, Any]:
    """Remove old runs."""
    removed = store.prune(root, keep, name=name, dry_run=dry_run)
    for found in removed:
        echo(f"{'would remove' if dry_run else 'removed'} {found.ref} ({found.record.status})")
    echo(f"{len(removed)} {'runs to remove' if dry_run else 'runs removed'}")
    return {"removed": [found.ref for found in removed], "dry_run": dry_run}


if __name__ == "__main__":
    run(command)
