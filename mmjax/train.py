"""`python -m mmjax.train`: a YAML file goes in; a trained, tested, registered model comes out.

Read `fit` from top to bottom: it is the whole story.
"""

from mmjax.huge_pages import start_with_huge_pages

if __name__ == "__main__":
    start_with_huge_pages()

import math
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from msgspec import UNSET

from mmjax.analysis.answers import answer_lines
from mmjax.analysis.log import get_logger
from mmjax.analysis.present import closing_lines, print_results
from mmjax.analysis.report import Report
from mmjax.analysis.tables import shorten
from mmjax.artifact.answers import kept_answers
from mmjax.artifact.files import write_json_atomic
from mmjax.artifact.predictor import Predictor, load_predictor, make_predictor
from mmjax.artifact.registry import check_writable, register
from mmjax.artifact.runs import REPORT, RESOLVED, Run, read_report
from mmjax.backend import Backend, configure
from mmjax.budget import Ready, cut_before, cut_down, cuts, ends_at, measured_cost
from mmjax.cli import echo, json_option
from mmjax.cli import run as run_door
from mmjax.config import Config
from mmjax.config_load import config_to_yaml, expect_config, expect_files, load_config_with_origins, with_places
from mmjax.data.audit import refuse
from mmjax.data.audit_rows import counted
from mmjax.data.findings import audit_lines, finding_json
from mmjax.data.prepare import Prepared, prepare
from mmjax.data.prepared import split_sizes
from mmjax.data.quarantine import QUARANTINE, quarantine_lines, write_quarantine
from mmjax.data.split import split_json
from mmjax.ensembles import (
    DECISIONS,
    decided_before,
    first_seed,
    members_report,
    tried_before,
    try_ways,
)
from mmjax.errors import BundleError, DataError
from mmjax.interrupts import held
from mmjax.models.pretrained import expect_weights
from mmjax.outcome import (
    evaluate_splits,
    fit_output,
    judged_answers,
    provenance_of,
    run_report,
    save_run_bundle,
    start_compiling,
)
from mmjax.parts import States, build_parts
from mmjax.recipe import Decision, as_yaml, before_data, decided, resolve_prepared, with_decisions
from mmjax.resume import (
    Chosen,
    DataChanged,
    chosen_run,
    computes,
    recorded,
    refuse_other_data,
    tell_other_machine,
)
from mmjax.schema import schema_to_json
from mmjax.training.callbacks import metrics_logger, progress
from mmjax.training.checkpoint import Loaded, checkpointer, load_newest
from mmjax.training.event_types import Event
from mmjax.training.events import TrainResult, steps_done, train_events, watch
from mmjax.training.setup import Setup, as_served, set_up


class FitResult(NamedTuple):
    """What one run made."""

    run_dir: Path
    name: str
    version: int | None
    """Number in the registry; None when it was not registered."""
    bundle: Path
    metrics: dict[str, dict[str, float]]
    """split -> metric -> value; NaN where a metric is undefined, as ROC-AUC is on rows of one class."""
    report: Report
    predictor: Predictor
    seconds: dict[str, float]
    """stage -> wall clock, all stages."""

    def __repr__(self) -> str:
        """Where it is and how good, in a line: the report and the weights would fill a notebook."""
        split = "test" if "test" in self.metrics else "validation"
        told = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.get(split, {}).items())
        version = "not registered" if self.version is None else f"version {self.version}"
        return f"FitResult({self.name}, {version}, {self.run_dir}; {split}: {told})"


def fit(
    config: Config,
    *,
    run_dir: str | Path | None = None,
    runs_dir: str | Path = "runs",
    registry: str | Path | None = "registry",
    resume: str | Path = "auto",
    callbacks: Sequence[Callable[[Event], None]] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> FitResult:
    """Return the FitResult of training, testing and registering what `config` says.

    `resume="auto"` goes on with the newest unfinished run of this config and data (or with that in `run_dir`), from its
    last checkpoint, to the same bits as if it had never stopped; `"never"` starts anew; a folder names the run to go on
    with. `callbacks` see every event; `tell` gets each line that a user should read. `registry=None` registers nothing.
    Raises ConfigError, DataError, TrainingError or BundleError; the run's folder keeps what there was until then.
    """
    expect_config(config, by="fit")
    options = _Options(None if registry is None else Path(registry), tuple(callbacks), tell)
    expect_files(config)
    configure(device=config.device, threads=config.threads, precision=config.precision)  # or no run
    expect_weights(config.model)
    data = ""
    with chosen_run(config, run_dir=run_dir, runs_dir=Path(runs_dir), resume=resume, tell=tell) as run:
        try:
            return _fit(config, run, options)
        except DataChanged as changed:
            if run.named:
                raise
            tell(f"resume: not going on with {run.folder}: {'; '.join(changed.problems[1:])}")
            data = changed.fingerprint  # an older run may be of these
    with chosen_run(config, run_dir=None, runs_dir=Path(runs_dir), resume="auto", tell=tell, fingerprint=data) as run:
        return _fit(config, run, options)


class _Options(NamedTuple):
    """What `fit` was asked for beside the config."""

    registry: Path | None
    callbacks: tuple[Callable[[Event], None], ...]
    tell: Callable[[str], None]


def _fit(config: Config, run: Chosen, options: _Options) -> FitResult:
    """Return the FitResult of one run in its folder, new or gone on with."""
    registry, run_dir, tell, started = options.registry, run.folder, options.tell, time.monotonic()
    with recorded(run, config, tell) as record:
        with record.stage("setup"):
            if registry is not None:
                check_writable(registry)  # now, not when the training is done
            backend = configure(device=config.device, threads=config.threads, precision=config.precision)
        with record.stage("data"):
            asked, early = before_data(config)
            prepared = prepare(asked, tell)
            if run.resumed is not None:
                refuse_other_data(run.resumed, prepared)
                if run.resumed.record.status == "finished":
                    return _finished(run.resumed, tell)
            config, decisions = resolve_prepared(asked, prepared)
            decisions = (*early, *decisions)
            before = decided_before(run_dir) if run.resumed is not None else ()
            cut, tried = cut_before(before), tried_before(before)
            decisions = with_decisions(decisions, (*cut, *tried))  # now, or a kill from here on would lose them
            _save_inputs(run_dir, config, prepared, decisions)
            _tell_all(tell, run_dir, backend, prepared, decisions)
            refuse(prepared.findings)
            record.save(data_sha256=prepared.fingerprint, split_sizes=split_sizes(prepared), computes=computes(backend))
        with record.stage("train"):
            setup = set_up(config, prepared, build_parts(config, prepared.schema))
            if setup.pretrained:
                tell(f"pretrained: {config.model.pretrained}: {setup.pretrained}")
                loaded = Decision("model.pretrained", config.model.pretrained, setup.pretrained)
                decisions = with_decisions(decisions, (loaded,))
            if not setup.plan.loop:
                tell("steps: one call each, as XLA lays out convolutions badly inside a loop on a CPU")
            ready = Ready(config, decisions, prepared, setup)
            end = ends_at(config, started)
            ready = ready if end is None else _in_time(asked, ready, cut, end, tell)
            config, decisions, _, setup = ready = _members_decided(ready, tried, tell)
            if ready.prepared.split is not prepared.split:
                prepared = ready.prepared
                _save_split(run_dir, prepared)
                record.save(split_sizes=split_sizes(prepared))
            _save_decisions(run_dir, config, decisions)
            judging = start_compiling(config, setup)
            result = _train(config, run, setup, backend, options)
            for compiling in judging:
                compiling.result()
        with record.stage("evaluate"):
            states = States(result.variables, *setup.fitted)
            answering, served = together = as_served(config, setup, states)
            if config.training.seeds:
                _, answering, served = first_seed(config, answering, served)
                config, setup, states = first_seed(config, setup, states)
                result = result._replace(best_epoch=(*result.best_epochs, result.best_epoch)[0])
            served, facts = fitted = fit_output(config, answering, served)
            members = members_report(*together, served.output, result)
            evaluated = evaluate_splits(config, answering, fitted)
            evaluations, answers, leak, modalities, quantiles = evaluated
            metrics = {name: evaluation.metrics for name, evaluation in evaluations.items()}
        with record.stage("baselines"):
            epochs = len(result.history)
            judged = judged_answers(config, prepared, answers, decisions, facts, epochs=epochs, quantiles=quantiles)
        with record.stage("bundle"):
            report = run_report(
                config,
                prepared,
                decisions,
                setup,
                result,
                evaluations,
                judged,
                facts,
                leak,
                modalities,
                record.seconds,
                members,
            )
            for line in answer_lines(report):
                options.tell(line)
            states = states._replace(output=served.output)
            trained = make_predictor(config, prepared.schema, states, forward=setup.scorer.forward)
            predictor = make_predictor(config, prepared.schema, served, forward=answering.scorer.forward)
            provenance = {"run": run_dir.name, "run_id": record.content["run_id"], **provenance_of(prepared, backend)}
            kept = kept_answers(answers["test"], config.evaluation.answer_rows) if "test" in answers else None
            bundle = save_run_bundle(run_dir, config, prepared, trained, metrics, report, provenance, kept)
            version = None
            if registry is not None:
                version = _register(registry, config.name, bundle, str(provenance["run_id"]))
                bundle = registry / config.name / str(version)
        record.finish(model=config.name, version=version, bundle=str(bundle), metrics=metrics)
    return FitResult(run_dir, config.name, version, bundle, metrics, report, predictor, record.seconds)


def _in_time(asked: Config, ready: Ready, cut: tuple[Decision, ...], end: float, tell: Callable[[str], None]) -> Ready:
    """Return what can be trained until `end`, by `time.monotonic`; what was `cut` before is cut again."""
    if not cut:
        cost = measured_cost(ready.setup)
        cut = cuts(ready.config, cost, end - time.monotonic())
    ready = cut_down(asked, ready, cut, tell)
    return ready._replace(setup=ready.setup._replace(plan=ready.setup.plan._replace(ends_at=end)))


def _members_decided(ready: Ready, tried: tuple[Decision, ...], tell: Callable[[str], None]) -> Ready:
    """Return what is trained with it decided how members are computed, by a trial unless one was made before."""
    config, decisions, _, setup = ready
    if setup.task.members is None or config.training.member_loop is not UNSET:
        return ready
    tried = tried or (try_ways(setup, tell),)
    config = decided(config, tried[0])
    setup = setup._replace(plan=setup.plan._replace(training=config.training))
    return ready._replace(config=config, decisions=with_decisions(decisions, tried), setup=setup)


def _train(config: Config, run: Chosen, setup: Setup, backend: Backend, options: _Options) -> TrainResult:
    """Return the TrainResult, gone on with from the newest whole checkpoint if the run has one."""
    folder, settings = _checkpoint_dir(config, run), config.training.checkpoint
    loaded = Loaded(None, ())
    if run.resumed is not None:
        tell_other_machine(run.resumed, backend, options.tell)
        loaded = load_newest(folder, setup.state)
        _tell_resumed(run.resumed, loaded, options.tell)
    step = steps_done(loaded.snapshot.state) if loaded.snapshot else None
    watchers = (metrics_logger(run.folder / "metrics.jsonl"), *options.callbacks)
    with held() as ending, checkpointer(folder, settings, ending=ending, resumed=step) as keep:
        return watch(train_events(setup.state, setup.task, setup.plan, loaded.snapshot), watchers, keep, ending)
    raise AssertionError("a block that ends early raises what ended it")


def _tell_resumed(run: Run, loaded: Loaded, tell: Callable[[str], None]) -> None:
    """Tell where the run goes on."""
    for line in loaded.notes:
        tell(line)
    if loaded.snapshot is None:
        where = "from the start, as there is no whole checkpoint"
    else:
        position, step = loaded.snapshot.position, steps_done(loaded.snapshot.state)
        under_way = f"epoch {position.epoch}, {counted(position.batch, 'batch')} of it done"
        where = f"from step {step} ({'training is over' if position.over else under_way})"
    tell(f"resume: going on with {run.path} {where}")
    get_logger().info("resumed", where=where, notes=loaded.notes)


def _finished(run: Run, tell: Callable[[str], None]) -> FitResult:
    """Return the FitResult of a run that is over; BundleError when its model or its report is gone."""
    record = run.record
    tell(f"run {run.path} is finished: nothing is left to do; --resume never trains anew")
    bundle = Path(record.bundle) if record.bundle and Path(record.bundle).is_dir() else run.path / "bundle"
    if not (report := read_report(run.path)):
        raise BundleError(f"{run.path / REPORT}: expected the report of this run, got none; restore it or retrain")
    seconds = record.seconds if isinstance(record.seconds, dict) else {}
    metrics = {
        split: {name: math.nan if value is None else value for name, value in found.items()}
        for split, found in record.metrics.items()
    }
    return FitResult(run.path, record.name, record.version, bundle, metrics, report, load_predictor(bundle), seconds)


def _register(registry: Path, name: str, bundle: Path, run_id: str) -> int:
    """Return the version under which the bundle is registered; BundleError says where it is when it cannot be."""
    try:
        return register(registry, name, bundle, run_id=run_id)
    except (BundleError, OSError) as error:
        refused = f"registry {registry}: cannot be written: {error}; free space there, or name another"
        problems = error.problems if isinstance(error, BundleError) else (refused,)
        told = f"the trained model is whole in {bundle}: --model takes that folder too"
        raise BundleError([*problems, told]) from error


def _save_inputs(run_dir: Path, config: Config, prepared: Prepared, decisions: tuple[Decision, ...]) -> None:
    """Keep what decides the run: the resolved config, the schema, the realised split, the recipe's decisions."""
    _save_decisions(run_dir, config, decisions)
    (run_dir / "schema.json").write_bytes(schema_to_json(prepared.schema))
    _save_split(run_dir, prepared)
    write_json_atomic(run_dir / "audit.json", [finding_json(finding) for finding in prepared.findings])
    if prepared.quarantined:
        write_quarantine(run_dir / QUARANTINE, prepared.quarantined)


def _save_split(run_dir: Path, prepared: Prepared) -> None:
    with (run_dir / "split.json").open("w", encoding="utf-8") as file:
        file.writelines(split_json(prepared.split, prepared.names))


def _save_decisions(run_dir: Path, config: Config, decisions: tuple[Decision, ...]) -> None:
    (run_dir / RESOLVED).write_text(config_to_yaml(config), encoding="utf-8")
    write_json_atomic(run_dir / DECISIONS, [decision._asdict() for decision in decisions])


def _tell_all(
    tell: Callable[[str], None],
    run_dir: Path,
    backend: Backend,
    prepared: Prepared,
    decisions: tuple[Decision, ...],
) -> None:
    """Tell the user where the run is, what it runs on, what happened to the data and what the recipe decided."""
    sizes = ", ".join(f"{count} {name}" for name, count in split_sizes(prepared).items())
    lines = [
        f"run {run_dir} on {backend.platform} ({backend.device}), {backend.threads} threads",
        *backend.notes,
        f"data: {len(prepared.names)} rows: {sizes}; target {shorten(prepared.schema.target.column, 60)}: "
        f"{prepared.schema.target.reason}",
        *prepared.notes,
        *quarantine_lines(prepared.quarantined, run_dir / QUARANTINE),
        *audit_lines(prepared.findings, run_dir / "audit.json"),
    ]
    for line in lines:
        tell(line)
        get_logger().info("told", line=line)
    if decisions:
        decided = ", ".join(f"{d.key}={as_yaml(d.value).replace(' ', '')}" for d in decisions)
        width = min(100, shutil.get_terminal_size((100, 24)).columns)
        told = f"decided: {decided}; why: {run_dir / 'decisions.json'}"
        tell(textwrap.fill(told, width, subsequent_indent="  ", break_on_hyphens=False))
    get_logger().info("decided", decisions=[decision._asdict() for decision in decisions])


def _checkpoint_dir(config: Config, run: Chosen) -> Path:
    """Return where this run's checkpoints go; DataError when those of another run are there."""
    given = config.training.checkpoint.path
    if given is None:
        return run.folder / "checkpoints"
    folder = Path(given) / f"{config.name}-{run.folder.name}"
    if folder.exists() and run.resumed is None:
        raise DataError(
            f"training.checkpoint.path: expected no checkpoints of another run, got {folder}; name another path or run"
        )
    return folder


@click.command(name="train", help="Train, test and register a model from a config.")
@click.option("--config", "config_path", required=True, type=click.Path(), metavar="FILE", help="The YAML config.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key, such as training.epochs=5."
)
@click.option("--run-dir", type=click.Path(), help="Folder of this run  [default: runs/NAME/YYYYmmdd-HHMMSS]")
@click.option(
    "--registry", default="registry", show_default=True, type=click.Path(), help="Where the model is registered."
)
@click.option(
    "--resume",
    default="auto",
    show_default=True,
    metavar="auto|never|DIR",
    help="Go on with the newest unfinished run of this config and data (or that in --run-dir), start anew, or go on "
    "with the run in a folder.",
)
@json_option
def command(
    config_path: str, overrides: tuple[str, ...], run_dir: str | None, registry: str, resume: str
) -> dict[str, Any]:
    """Train, test and register a model."""
    started = time.perf_counter()
    config, origins = load_config_with_origins(config_path, overrides)
    with progress(sys.stdout) as show, with_places(origins):
        result = fit(config, run_dir=run_dir, registry=registry, resume=resume, callbacks=(show,), tell=echo)
    print_results(result.report, sys.stdout)
    echo(f"registered as {result.name}:{result.version} in {result.bundle}, with its card.md and report.json")
    for line in closing_lines(f"{result.name}:{result.version}", result.predictor.config, registry=registry):
        echo(line)
    return {
        "run_dir": str(result.run_dir),
        "model": result.name,
        "version": result.version,
        "bundle": str(result.bundle),
        "metrics": result.metrics,
        "seconds": result.seconds | {"total": round(time.perf_counter() - started, 3)},
        "samples_per_second": result.report["training"]["samples_per_second"],
    }


if __name__ == "__main__":
    run_door(command)
