"""`python -m mmjax.train`: a YAML file goes in; a trained, tested, registered model comes out.

Read `fit` from top to bottom: it is the whole story.
"""

from mmjax.huge_pages import start_with_huge_pages

if __name__ == "__main__":
    start_with_huge_pages()

import math
import sys
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
from mmjax.artifact.answers import kept_answers
from mmjax.artifact.predictor import Predictor, load_predictor, make_predictor
from mmjax.artifact.registry import check_writable, register
from mmjax.artifact.runs import REPORT, Run, read_report
from mmjax.backend import Backend, configure
from mmjax.budget import Ready, cut_before, cut_down, cuts, ends_at, measured_cost
from mmjax.cli import echo, json_option
from mmjax.cli import run as run_door
from mmjax.config import Config
from mmjax.config_load import expect_config, expect_files, load_config_with_origins, with_places
from mmjax.data.audit import refuse
from mmjax.data.audit_rows import counted
from mmjax.data.prepare import Prepared, prepare
from mmjax.data.prepared import split_sizes
from mmjax.ensembles import (
    choose_way,
    decided_before,
    first_seed,
    members_report,
    tried_before,
)
from mmjax.errors import BundleError, DataError
from mmjax.interrupts import held
from mmjax.models.pretrained import expect_weights
from mmjax.outcome import (
    Evaluated,
    Fitted,
    Judged,
    evaluate_splits,
    fit_output,
    judged_answers,
    provenance_of,
    run_report,
    save_run_bundle,
    start_compiling,
)
from mmjax.parts import States, build_parts
from mmjax.recipe import Decision, before_data, decided, resolve_prepared, with_decisions
from mmjax.resume import (
    Chosen,
    Record,
    RunDiffers,
    chosen_run,
    computes,
    recorded,
    refuse_other_data,
    refuse_other_decisions,
    tell_other_machine,
)
from mmjax.run_inputs import save_decisions, save_inputs, save_split, tell_inputs
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
    data, passed, folder = "", list[Path](), Path(runs_dir)
    while True:
        chosen = chosen_run(
            config, run_dir=run_dir, runs_dir=folder, resume=resume, tell=tell, fingerprint=data, passed=passed
        )
        with chosen as run:
            try:
                return _fit(config, run, options)
            except RunDiffers as differs:
                if run.named:
                    raise
                tell(f"resume: not going on with {run.folder}: {'; '.join(differs.problems[1:])}")
                data = differs.fingerprint or data  # an older run may be of these
                passed.append(run.folder)


class _Options(NamedTuple):
    """What `fit` was asked for beside the config."""

    registry: Path | None
    callbacks: tuple[Callable[[Event], None], ...]
    tell: Callable[[str], None]


def _fit(config: Config, run: Chosen, options: _Options) -> FitResult:
    """Return the FitResult of one run in its folder, new or gone on with."""
    tell, started = options.tell, time.monotonic()
    with recorded(run, config, tell) as record:
        with record.stage("setup"):
            if options.registry is not None:
                check_writable(options.registry)  # now, not when the training is done
            backend = configure(device=config.device, threads=config.threads, precision=config.precision)
        with record.stage("data"):
            taken = _take(config, run, backend, record, tell)
            if taken is None:
                assert run.resumed is not None, "only a run that was made is finished"
                return _finished(run.resumed, tell)
        with record.stage("train"):
            ready = _ready(taken, run.folder, record, started, tell)
            judging = start_compiling(ready.config, ready.setup)
            result = _train(ready.config, run, ready.setup, backend, options)
            for compiling in judging:
                compiling.result()
        with record.stage("evaluate"):
            kept = _evaluate(ready, result)
        with record.stage("baselines"):
            judged = _judge(kept)
        with record.stage("bundle"):
            done = _bundle(kept, judged, run, backend, record, options)
        record.finish(model=done.name, version=done.version, bundle=str(done.bundle), metrics=done.metrics)
    return done


class _Taken(NamedTuple):
    """The data, and what was decided of them."""

    asked: Config
    """What preprocessing of pretrained weights decides is in it already."""
    config: Config
    decisions: tuple[Decision, ...]
    prepared: Prepared
    cut: tuple[Decision, ...]
    """By a budget, when this run was left."""
    tried: tuple[Decision, ...]
    """How members were computed then."""


def _take(config: Config, run: Chosen, backend: Backend, record: Record, tell: Callable[[str], None]) -> _Taken | None:
    """Return what was Taken, which is in the run's folder and told then; None where the run is finished."""
    asked, early = before_data(config)
    prepared = prepare(asked, tell)
    if run.resumed is not None:
        refuse_other_data(run.resumed, prepared)
        if run.resumed.record.status == "finished":
            return None
    config, decisions = resolve_prepared(asked, prepared)
    before = decided_before(run.folder) if run.resumed is not None else ()
    cut, tried = cut_before(before), tried_before(before)
    decisions = with_decisions((*early, *decisions), (*cut, *tried))  # now, or a kill from here on would lose them
    # Of fewer folds what follows was decided anew, of rows that are not dealt yet
    if run.resumed is not None and not any(one.key == "split.folds" for one in cut):
        refuse_other_decisions(run.resumed, before, decisions)
    save_inputs(run.folder, config, prepared, decisions)
    tell_inputs(tell, run.folder, backend, prepared, decisions)
    refuse(prepared.findings)
    record.save(data_sha256=prepared.fingerprint, split_sizes=split_sizes(prepared), computes=computes(backend))
    return _Taken(asked, config, decisions, prepared, cut, tried)


def _ready(taken: _Taken, run_dir: Path, record: Record, started: float, tell: Callable[[str], None]) -> Ready:
    """Return what is about to be trained, with every decision made, and in the run's folder."""
    asked, config, decisions, prepared, cut, tried = taken
    setup = set_up(config, prepared, build_parts(config, prepared.schema))
    if setup.pretrained:
        tell(f"pretrained: {config.model.pretrained}: {setup.pretrained}")
        loaded = Decision("model.pretrained", config.model.pretrained, setup.pretrained)
        decisions = with_decisions(decisions, (loaded,))
    if not setup.plan.loop:
        tell("steps: one call each, as XLA lays out convolutions badly inside a loop on a CPU")
    ready, end = Ready(config, decisions, prepared, setup), ends_at(config, started)
    ready = ready if end is None else _in_time(asked, ready, cut, end, tell)
    ready = _members_decided(ready, tried, tell)
    if ready.prepared.split is not prepared.split:
        save_split(run_dir, ready.prepared)
        record.save(split_sizes=split_sizes(ready.prepared))
    save_decisions(run_dir, ready.config, ready.decisions)
    return ready


class _Kept(NamedTuple):
    """The model that is kept, and how good it is."""

    ready: Ready
    result: TrainResult
    states: States
    """As they were trained."""
    answering: Setup
    fitted: Fitted
    """The states as they answer, with what was decided of the answers."""
    members: dict[str, Any] | None
    evaluated: Evaluated


def _evaluate(ready: Ready, result: TrainResult) -> _Kept:
    """Return the model that is kept, of several seeds the first, evaluated on every split."""
    config, setup = ready.config, ready.setup
    states = States(result.variables, *setup.fitted)
    answering, served = as_served(config, setup, states)
    answering = answering._replace(scorer=answering.scorer.remembering(served))
    together = (answering, served)
    if config.training.seeds:
        _, answering, served = first_seed(config, answering, served)
        config, setup, states = first_seed(config, setup, states)
        result = result._replace(best_epoch=(*result.best_epochs, result.best_epoch)[0])
    fitted = fit_output(config, answering, served)
    members = members_report(*together, fitted.states.output, result)
    evaluated = evaluate_splits(config, answering, fitted)
    states = states._replace(output=fitted.states.output)
    return _Kept(ready._replace(config=config, setup=setup), result, states, answering, fitted, members, evaluated)


def _judge(kept: _Kept) -> Judged:
    """Return the intervals of the model that is kept, and its baselines."""
    config, decisions, prepared, _ = kept.ready
    answers, epochs, quantiles = kept.evaluated.answers, len(kept.result.history), kept.evaluated.quantiles
    return judged_answers(config, prepared, answers, decisions, kept.fitted.facts, epochs=epochs, quantiles=quantiles)


def _bundle(kept: _Kept, judged: Judged, run: Chosen, backend: Backend, record: Record, options: _Options) -> FitResult:
    """Return the FitResult after writing the report and the bundle, and registering it."""
    (config, decisions, prepared, setup), registry = kept.ready, options.registry
    evaluations, answers, leak, modalities, _ = kept.evaluated
    report = run_report(
        config,
        prepared,
        decisions,
        setup=setup,
        result=kept.result,
        evaluations=evaluations,
        judged=judged,
        facts=kept.fitted.facts,
        leak=leak,
        modalities=modalities,
        seconds=record.seconds,
        members=kept.members,
    )
    for line in answer_lines(report):
        options.tell(line)
    trained = make_predictor(config, prepared.schema, kept.states, forward=setup.scorer.forward)
    predictor = make_predictor(config, prepared.schema, kept.fitted.states, forward=kept.answering.scorer.forward)
    run_id, metrics = record.content["run_id"], {name: own.metrics for name, own in evaluations.items()}
    provenance = {"run": run.folder.name, "run_id": run_id, **provenance_of(prepared, backend)}
    tested = kept_answers(answers["test"], config.evaluation.answer_rows) if "test" in answers else None
    bundle = save_run_bundle(run.folder, config, prepared, trained, metrics, report, provenance, tested)
    version = None
    if registry is not None:
        version = _register(registry, config.name, bundle, str(run_id))
        bundle = registry / config.name / str(version)
    return FitResult(run.folder, config.name, version, bundle, metrics, report, predictor, record.seconds)


def _in_time(asked: Config, ready: Ready, cut: tuple[Decision, ...], end: float, tell: Callable[[str], None]) -> Ready:
    """Return what can be trained until `end`, by `time.monotonic`; what was `cut` before is cut again."""
    if not cut:
        cost = measured_cost(ready.setup)
        cut = cuts(ready.config, cost, end - time.monotonic())
    ready = cut_down(asked, ready, cut, tell)
    return ready._replace(setup=ready.setup._replace(plan=ready.setup.plan._replace(ends_at=end)))


def _members_decided(ready: Ready, tried: tuple[Decision, ...], tell: Callable[[str], None]) -> Ready:
    """Return what is trained with it decided how members are computed, unless it was before."""
    config, decisions, _, setup = ready
    if setup.task.members is None:
        return ready
    if (given := config.training.member_loop) is not UNSET:
        if not setup.plan.loop and given != "loop":
            tell(f"members: {given}, as the config says, is slow for convolutions on a CPU; loop is chosen without it")
        return ready
    tried = tried or (choose_way(setup, tell),)
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
