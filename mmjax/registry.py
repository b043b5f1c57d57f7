"""`python -m mmjax.registry`: look at registered models, compare them, choose the one in production."""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmjax.analysis.compare import Side, compare, headline, metrics_table
from mmjax.analysis.report import meaningful
from mmjax.artifact import registry as store
from mmjax.artifact.bundle import Bundle, BundleContents, load_bundle, structural_problems
from mmjax.artifact.manifest import metrics_of, read_manifest
from mmjax.artifact.registry import ModelRef
from mmjax.cli import COMMANDS, all_option, echo, echo_table, json_option, print_comparison, print_table, run
from mmjax.config_load import config_to_dict, config_to_yaml
from mmjax.data.audit_rows import counted
from mmjax.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from mmjax.artifact.parity import Comparison
    from mmjax.artifact.predictor import Predictor
    from mmjax.artifact.sample import Sample

root_option = click.option(
    "--registry",
    "root",
    default="registry",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where models are registered.",
)
alias_option = click.option("--alias", default=store.PRODUCTION, show_default=True, help="Which alias to change.")
REF = "NAME[:VERSION|@ALIAS]"


def golden_problems(folder: Path) -> list[str]:
    """Return what the golden rows of a bundle say against it, replayed on the CPU; empty when they hold."""
    # Here, for they import JAX: the other commands answer at once.
    from mmjax.artifact import predictor
    from mmjax.backend import configure

    configure(device="cpu")
    return predictor.golden_problems(folder)


CHECKS: tuple[Callable[[Path], list[str]], ...] = (structural_problems, golden_problems)
"""What a version must pass to be promoted, each relying on those before."""


@click.group(name="registry", help=COMMANDS["registry"])
def command() -> None:
    """Look at registered models."""


@command.command(name="list", help="List the models, or the versions of one.")
@click.argument("name", required=False)
@root_option
@json_option
def list_command(name: str | None, root: Path) -> dict[str, Any]:
    """List models or versions."""
    if name is not None and not store.list_versions(root, name):
        store.resolve(root, name)  # raises, with the names there are
    names = store.list_models(root) if name is None else [name]
    models = {model: [_summary(root, ref) for ref in store.list_versions(root, model)] for model in names}
    rows = [row for versions in models.values() for row in (versions if name else versions[-1:])]
    if not rows:
        echo(f"registry {root}: no models; `python -m mmjax.train --config FILE` makes one")
        return {"registry": root, "models": {}}
    headers = ("model", "aliases", "created", "result", "digest")
    aliases = {model: _all_aliases(versions) for model, versions in models.items()}
    echo_table(headers, [_row(row, ", ".join(row["aliases"]) if name else aliases[row["model"]]) for row in rows])
    if older := sum(map(len, models.values())) - len(rows):
        echo(f"the newest version of each; {counted(older, 'older version')} besides: `mmjax registry list NAME`")
    return {"registry": root, "models": models}


def _summary(root: Path, ref: ModelRef) -> dict[str, Any]:
    """Return what a list says of a version; `problem` is there where its manifest is damaged."""
    about = {"model": ref.name, "version": ref.version, "path": ref.path, "aliases": _aliases(root, ref)}
    try:
        manifest = read_manifest(ref.path)
    except BundleError as error:
        return {**about, "problem": str(error)}
    described = {"created": manifest.created, "task": manifest.task, "digest": manifest.digest}
    return {**about, **described, "metrics": metrics_of(manifest)}


def _row(summary: dict[str, Any], aliases: str) -> tuple[str, ...]:
    """Return a version as cells."""
    which = f"{summary['model']}:{summary['version']}"
    if "problem" in summary:
        return which, aliases, "damaged", "-", "-"
    created = summary["created"][:16].replace("T", " ")
    return which, aliases, created, headline(summary["metrics"]), summary["digest"][:12]


def _all_aliases(versions: list[dict[str, Any]]) -> str:
    """Return all aliases of a model with their numbers: `production:2`."""
    return ", ".join(f"{alias}:{version['version']}" for version in versions for alias in version["aliases"])


def _aliases(root: Path, ref: ModelRef) -> list[str]:
    """Return the aliases that point to a version."""
    return [name for name, now in store.read_aliases(root, ref.name).aliases.items() if now.version == ref.version]


@command.command(help="Show one version: metrics, aliases, config, where it comes from.")
@click.argument("model", metavar=REF)
@root_option
@json_option
def show(model: str, root: Path) -> dict[str, Any]:
    """Show a version."""
    ref = store.resolve(root, model)
    bundle = load_bundle(ref.path)
    about = _summary(root, ref) | {"classes": list(bundle.contents.schema.target.classes)}
    for key in ("path", "aliases", "created", "task", "classes", "digest"):
        value = about[key]
        echo(f"{key:<9}{', '.join(value) if isinstance(value, list) else value}")
    echo()
    print_table(metrics_table(meaningful(bundle.contents.metrics, bundle.contents.report)))
    echo()
    echo(config_to_yaml(bundle.contents.config).rstrip())
    contents = bundle.contents
    return {**about, "config": config_to_dict(contents.config), "provenance": contents.provenance}


@command.command(
    name="compare",
    help="Compare two versions, A and B: their metrics, and what their configs say differently. Each is "
    f"{REF}, such as iris:1; runs are compared by `runs compare`.",
)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@all_option
@root_option
@json_option
def compare_command(a: str, b: str, root: Path, everything: bool) -> dict[str, Any]:
    """Compare two versions."""
    refs = store.resolve(root, a), store.resolve(root, b)
    first, second = (load_bundle(ref.path) for ref in refs)
    compared = compare(*(_side(str(ref), bundle) for ref, bundle in zip(refs, (first, second), strict=True)))
    same = first.digest == second.digest
    print_comparison(compared, everything=everything, same="the content is the same, to the bit" if same else "")
    return {**compared._asdict(), "same_content": same}


def _side(name: str, bundle: Bundle) -> Side:
    """Return a version as a Side."""
    contents = bundle.contents
    decided = frozenset(decision["key"] for decision in contents.report.get("decisions", ()))
    target, report = contents.schema.target, contents.report
    return Side(name, contents.config, contents.metrics, target, report, contents.answers, decided)


@command.command(help="Let an alias point to a version that passes every check; a plain NAME is its newest version.")
@click.argument("model", metavar=REF)
@alias_option
@root_option
@json_option
def promote(model: str, alias: str, root: Path) -> dict[str, Any]:
    """Promote a version."""
    ref = store.promote(root, model, alias, checks=CHECKS)
    echo(f"{ref.name}@{alias} is version {ref.version} now")
    return {"model": ref.name, "version": ref.version, "alias": alias, "path": ref.path}


@command.command(help="Let an alias point to the version it pointed to before.")
@click.argument("name")
@alias_option
@root_option
@json_option
def rollback(name: str, alias: str, root: Path) -> dict[str, Any]:
    """Go back to the version before."""
    ref = store.rollback(root, name, alias, checks=CHECKS)
    echo(f"{ref.name}@{alias} is version {ref.version} again")
    return {"model": ref.name, "version": ref.version, "alias": alias, "path": ref.path}


@command.command(help="Delete a version for good; its number is never used again.")
@click.argument("model", metavar="NAME:VERSION")
@click.option("--force", is_flag=True, help="Also when an alias points to it; the alias goes too.")
@root_option
@json_option
def delete(model: str, force: bool, root: Path) -> dict[str, Any]:
    """Delete a version."""
    ref = store.delete(root, model, force=force)
    echo(f"{ref} is deleted")
    return {"model": ref.name, "version": ref.version, "deleted": True}


@command.command(help="Check a version: every byte, its golden rows, and that every way to ask it answers the same.")
@click.argument("model", metavar=REF)
@click.option("--data", type=click.Path(path_type=Path), help="Rows to ask: a CSV or images.  [default: golden rows]")
@click.option("--rows", default=256, show_default=True, type=click.IntRange(min=1), help="At most so many of --data.")
@click.option("--url", metavar="http://HOST:PORT", help="Ask a live server of this version too.")
@root_option
@json_option
def verify(model: str, data: Path | None, rows: int, url: str | None, root: Path) -> dict[str, Any]:
    """Check a version."""
    ref = store.resolve(root, model)
    if problems := store.verify(root, str(ref), CHECKS):
        raise BundleError(problems)
    digest = read_manifest(ref.path).digest
    echo(f"{ref} is sound: every byte as registered, golden rows answered as before (digest {digest[:12]})")
    compared, what, notes = _compare_ways(ref.path.resolve(), data, rows, url)
    echo(f"\nanswers to {what}:")
    echo_table(COMPARED, map(_compared_row, compared), text_columns=2)
    for note in notes:
        echo(note)
    widest = max(compared, key=lambda found: found.difference)
    echo(f"largest difference: {widest.difference:.2g} ({widest.path}, compared with {widest.against})")
    if problems := [f"{ref}: {found.problem}" for found in compared if not found.agrees]:
        raise BundleError(problems)
    about = {"model": ref.name, "version": ref.version, "digest": digest, "sound": True}
    return {**about, "asked": what, "parity": [found._asdict() for found in compared], "notes": notes}


COMPARED = ("way", "compared with", "rows", "largest difference", "allowed", "other labels", "agrees")


def _compare_ways(
    folder: Path, data: Path | None, rows: int, url: str | None
) -> tuple[list["Comparison"], str, list[str]]:
    """Return the Comparison of every way to ask a bundle, what was asked, and what was left out and why."""
    from mmjax.artifact import parity, sample
    from mmjax.artifact.predictor import proven_predictor
    from mmjax.backend import platform

    bundle = load_bundle(folder)
    contents, predictor = bundle.contents, proven_predictor(bundle, where=str(folder))
    config, schema = contents.config, contents.schema
    asked = sample.read_sample(config, schema, data, rows=rows) if data else sample.golden_sample(contents)
    served, notes = _compare_served(contents, predictor, asked, url)
    bucket = parity.training_bucket(contents.report, schema)
    allowed = parity.rounding(contents, platform())
    with tempfile.TemporaryDirectory(prefix="mmjax-verify-") as made:
        scratch = Path(made)
        door = parity.batch_door(folder, schema, sample.write_source(asked, config, scratch), scratch)
        found = parity.compare_paths(predictor, asked, door=door, bucket=bucket, allowed=allowed, scratch=scratch)
    return found + served, asked.what, notes


def _compare_served(
    contents: BundleContents, predictor: "Predictor", asked: "Sample", url: str | None
) -> tuple[list["Comparison"], list[str]]:
    """Return the Comparison of the server in this process and of a live one, and why there is none."""
    if importlib.util.find_spec("litestar") is None:
        if url:
            todo = "run make install, or pip install '.[serve]' in a clone of mmjax"
            raise ConfigError(f"--url: expected the packages of the extra 'serve', got none; {todo}")
        return [], ["server: not compared, as the extra 'serve' is not installed"]
    from mmjax.serving.parity import compare_forms, compare_live, compare_server

    live = [compare_live(contents, predictor, asked, url)] if url else []
    return [compare_server(predictor, asked), *compare_forms(predictor, asked), *live], []


def _compared_row(found: "Comparison") -> tuple[str, ...]:
    """Return a Comparison as cells."""
    labels = "-" if found.labels is None else f"{found.labels:,}"
    sizes = f"{found.difference:.2g}", f"{found.tolerance:.2g}"
    return found.path, found.against, f"{found.rows:,}", *sizes, labels, "yes" if found.agrees else "NO"


if __name__ == "__main__":
    run(command)
