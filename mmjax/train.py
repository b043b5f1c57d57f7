"""`python -m mmjax.train`: a YAML file goes in; a trained, tested, registered model comes out.

Read `fit` from top to bottom: it is the whole story.
"""

import datetime as dt
import math
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from msgspec import UNSET

from mmjax.analysis.answers import answer_lines
from mmjax.analysis.baselines import Judgement, judge
from mmjax.analysis.bootstrap import intervals, resample
from mmjax.analysis.card import model_card
from mmjax.analysis.evaluation import Evaluation, Leak, answers_of_scores, evaluate_scores, leak_of
from mmjax.analysis.log import get_logger
from mmjax.analysis.present import closing_lines, print_results
from mmjax.analysis.report import OUT_OF_FOLD, Report, ReportInput, build_report, write_report
from mmjax.analysis.trust import with_facts
from mmjax.artifact.answers import Answers, kept_answers
from mmjax.artifact.bundle import BundleContents, save_bundle
from mmjax.artifact.files import parse_object, plain, write_json_atomic
from mmjax.artifact.predictor import Predictor, load_predictor, make_golden, make_predictor
from mmjax.artifact.registry import check_writable, register
from mmjax.artifact.runs import Run
from mmjax.backend import Backend, configure, fast_bfloat16, versions
from mmjax.cli import echo, json_option
from mmjax.cli import run as run_door
from mmjax.config import Config
from mmjax.config_load import config_to_recipe, config_to_yaml, load_config
from mmjax.data.audit import refuse
from mmjax.data.audit_rows import counted
from mmjax.data.findings import audit_lines, finding_json, finding_line, leaked_rows
from mmjax.data.prepare import Prepared, prepare
from mmjax.data.prepared import class_counts, rows_to_learn, split_sizes
from mmjax.data.quarantine import QUARANTINE, quarantine_lines, write_quarantine
from mmjax.data.split import PARTS, split_json
from mmjax.ensembles import DECISIONS, first_seed, members_report, tried_before, try_ways
from mmjax.errors import BundleError, DataError
from mmjax.interrupts import held
from mmjax.parts import States, build_parts
from mmjax.recipe import Decision, decided, resolve
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
from mmjax.training.decide import Facts, Rows, decide, fits_on_validation, predicted
from mmjax.training.event_types import Event
from mmjax.training.events import TrainResult, steps_done, train_events, watch
from mmjax.training.setup import Setup, set_up


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
    options = _Options(None if registry is None else Path(registry), tuple(callbacks), tell)
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
    registry, run_dir, tell = options.registry, run.folder, options.tell
    with recorded(run, config, tell) as record:
        with record.stage("setup"):
            if registry is not None:
                check_writable(registry)  # now, not when the training is done
            backend = configure(device=config.device, threads=config.threads, precision=config.precision)
        with record.stage("data"):
            prepared = prepare(config, tell)
            if run.resumed is not None:
                refuse_other_data(run.resumed, prepared)
                if run.resumed.record.status == "finished":
                    return _finished(run.resumed, tell)
            train_rows, validation_rows = rows_to_learn(prepared.split)
            config, decisions = resolve(
                config,
                prepared.schema,
                train_rows=train_rows,
                validation_rows=validation_rows,
                fast_bfloat16=bool(prepared.schema.image) and fast_bfloat16(),
            )
            tried = tried_before(run_dir) if run.resumed is not None else None
            _save_inputs(run_dir, config, prepared, decisions)
            _tell_all(tell, run_dir, backend, prepared, decisions)
            refuse(prepared.findings)
            record.save(data_sha256=prepared.fingerprint, split_sizes=split_sizes(prepared), computes=computes(backend))
        with record.stage("train"):
            setup = set_up(config, prepared, build_parts(config, prepared.schema))
            if not setup.plan.loop:
                tell("steps: one call each, as XLA lays out convolutions badly inside a loop on a CPU")
            if setup.task.members is not None and config.training.member_loop is UNSET:
                chosen = tried or try_ways(setup, tell)
                config, decisions = decided(config, chosen), (*decisions, chosen)
                setup = setup._replace(plan=setup.plan._replace(training=config.training))
                _save_decisions(run_dir, config, decisions)
            result = _train(config, run, setup, backend, options)
        with record.stage("evaluate"):
            states = States(result.variables, *setup.fitted)
            members = members_report(setup, states, result)
            if config.training.seeds:
                config, setup, states = first_seed(config, setup, states)
            states, facts = _decided(config, setup, states)
            evaluations, answers = _evaluate(config, setup, states, calibrated="calibration" in facts)
            metrics = {name: evaluation.metrics for name, evaluation in evaluations.items()}
            leak = _leak(setup, states)
        with record.stage("baselines"):
            judged = _judged(config, prepared, answers)
        with record.stage("bundle"):
            report = _report(
                config, prepared, decisions, setup, result, evaluations, judged, facts, leak, record.seconds, members
            )
            for line in answer_lines(report):
                options.tell(line)
            predictor = make_predictor(config, prepared.schema, states)
            provenance = {"run": run_dir.name, "run_id": record.content["run_id"], **_provenance(prepared, backend)}
            kept = kept_answers(answers["test"], config.evaluation.answer_rows) if "test" in answers else None
            bundle = _save_bundle(run_dir, config, prepared, predictor, metrics, report, provenance, kept)
            version = None
            if registry is not None:
                version = _register(registry, config.name, bundle, str(provenance["run_id"]))
                bundle = registry / config.name / str(version)
        record.finish(model=config.name, version=version, bundle=str(bundle), metrics=metrics)
    return FitResult(run_dir, config.name, version, bundle, metrics, report, predictor, record.seconds)


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
    """Return the FitResult of a run that is over; BundleError when its model is gone."""
    record = run.record
    tell(f"run {run.path} is finished: nothing is left to do; --resume never trains anew")
    bundle = Path(record.bundle) if record.bundle and Path(record.bundle).is_dir() else run.path / "bundle"
    report = parse_object((run.path / "report.json").read_bytes(), str(run.path / "report.json"))
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
    with (run_dir / "split.json").open("w", encoding="utf-8") as file:
        file.writelines(split_json(prepared.split, prepared.names))
    write_json_atomic(run_dir / "audit.json", [finding_json(finding) for finding in prepared.findings])
    if prepared.quarantined:
        write_quarantine(run_dir / QUARANTINE, prepared.quarantined)


def _save_decisions(run_dir: Path, config: Config, decisions: tuple[Decision, ...]) -> None:
    (run_dir / "resolved.yaml").write_text(config_to_yaml(config), encoding="utf-8")
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
        f"data: {len(prepared.names)} rows: {sizes}; target {prepared.schema.target.column}: "
        f"{prepared.schema.target.reason}",
        *prepared.notes,
        *quarantine_lines(prepared.quarantined, run_dir / QUARANTINE),
        *audit_lines(prepared.findings, run_dir / "audit.json"),
    ]
    for line in lines:
        tell(line)
        get_logger().info("told", line=line)
    if decisions:
        decided = ", ".join(f"{d.key}={_short(d.value)}" for d in decisions)
        width = min(100, shutil.get_terminal_size((100, 24)).columns)
        told = f"decided: {decided}; why: {run_dir / 'decisions.json'}"
        tell(textwrap.fill(told, width, subsequent_indent="  ", break_on_hyphens=False))
    get_logger().info("decided", decisions=[decision._asdict() for decision in decisions])


def _short(value: Any) -> str:
    return str(list(value)).replace(" ", "") if isinstance(value, tuple) else str(value)


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


def _decided(config: Config, setup: Setup, states: States) -> tuple[States, Facts]:
    """Return the states with what the config asks for fitted on the validation rows, and what that is."""
    training, schema = config.training, setup.scorer.prepared.schema
    rows = Rows(*setup.scorer.scores(states, "validation")) if fits_on_validation(training) else None
    output, facts = decide(training, schema, setup.output, states.output, rows)
    return states._replace(output=output), facts


def _evaluate(
    config: Config, setup: Setup, states: States, *, calibrated: bool
) -> tuple[dict[str, Evaluation], dict[str, Answers]]:
    """Return the Evaluation of each split that has rows, and the Answers to those that were not trained on.

    With folds, every row that is not for test is answered by the models that have not seen it.
    """
    evaluations, answers, prepared = {}, {}, setup.scorer.prepared
    for name in PARTS:
        if len(rows := setup.scorer.rows_of(name)):
            told = OUT_OF_FOLD if name == "validation" and config.split.folds else name
            scores, batch = setup.scorer.scores(states, name)
            output = setup.output if name == "validation" else setup.whole
            plain_state = setup.fitted[1]
            before = predicted(output, plain_state, scores.outputs).probabilities if calibrated else None
            before = None if before is None else np.asarray(before)
            evaluation = evaluate_scores(prepared.schema, scores, batch, state=states.output, before=before)
            loss = {"loss": setup.scorer.loss(scores.outputs, batch)}
            evaluations[told] = evaluation._replace(metrics=loss | evaluation.metrics)
            if name != "train":
                answers[told] = answers_of_scores(prepared.schema, scores, batch, prepared.names[rows])
    return evaluations, answers


class _Judged(NamedTuple):
    """How sure the numbers are of the split that counts, and how the network stands beside simple models."""

    intervals: dict[str, dict[str, tuple[float, float]]]
    baselines: Judgement | None


def _judged(config: Config, prepared: Prepared, answers: dict[str, Answers]) -> _Judged:
    """Return intervals and baselines on the rows that count: test, else validation, else (no baselines) out of fold."""
    split = next((name for name in ("test", "validation", OUT_OF_FOLD) if name in answers), None)
    if split is None:
        return _Judged({}, None)
    spread = {split: intervals(resample(answers[split], seed=config.seed))}
    if config.evaluation.baselines == "none" or split == OUT_OF_FOLD:
        return _Judged(spread, None)
    boost = config.evaluation.baselines == "all"
    found = judge(prepared, answers[split], split, boost=boost, seed=config.seed)
    return _Judged(spread, found)


def _leak(setup: Setup, states: States) -> Leak | None:
    """Return what the test rows say that are no copies of training rows; None where the audit told of no copy."""
    prepared = setup.scorer.prepared
    if not len(leaked_rows(prepared.findings)):
        return None
    return leak_of(prepared, *setup.scorer.scores(states, "test"))


def _report(
    config: Config,
    prepared: Prepared,
    decisions: tuple[Decision, ...],
    setup: Setup,
    result: TrainResult,
    evaluations: dict[str, Evaluation],
    judged: _Judged,
    facts: Facts,
    leak: Leak | None,
    seconds: dict[str, float],
    members: dict[str, Any] | None,
) -> Report:
    """Return the report of the run."""
    return build_report(
        ReportInput(
            config_dict=config_to_recipe(config),
            schema=prepared.schema,
            split_sizes=split_sizes(prepared),
            class_counts=class_counts(prepared) or None,
            notes=(*prepared.notes, *(finding_line(finding) for finding in prepared.findings)),
            decisions=tuple(decision._asdict() for decision in decisions),
            metrics={name: evaluation.metrics for name, evaluation in evaluations.items()},
            per_class={name: evaluation.per_class for name, evaluation in evaluations.items() if evaluation.per_class},
            confusion={name: evaluation.confusion for name, evaluation in evaluations.items() if evaluation.confusion},
            history=list(result.history),
            best_epoch=result.best_epoch,
            seconds=dict(seconds),
            samples_per_second=result.samples_per_second,
            parameters=setup.task.parameters,
            versions=versions(),
            members=members,
            intervals=judged.intervals,
            baselines=plain(judged.baselines),
            answers=with_facts(facts, {name: evaluation.trust for name, evaluation in evaluations.items()}),
            leak=None if leak is None else leak._asdict(),
        )
    )


def _provenance(prepared: Prepared, backend: Backend) -> dict[str, Any]:
    """Return where the model comes from: what tells this run and its data from others."""
    return {
        "finished": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "data_sha256": prepared.fingerprint,
        "platform": backend.platform,
        "device": backend.device,
        "threads": backend.threads,
        "versions": versions(),
    }


def _save_bundle(
    run_dir: Path,
    config: Config,
    prepared: Prepared,
    predictor: Predictor,
    metrics: dict[str, dict[str, float]],
    report: Report,
    provenance: dict[str, Any],
    answers: Answers | None,
) -> Path:
    """Save the bundle in the run's folder, with golden rows that were not trained on if there are any."""
    card = model_card(report)
    (run_dir / "card.md").write_text(card, encoding="utf-8")
    write_report(run_dir / "report.json", report)
    golden = make_golden(predictor, prepared.golden)
    states = predictor.states
    contents = BundleContents(
        config=config,
        schema=prepared.schema,
        states={"model": states.variables, "transform": states.transform, "output": states.output},
        metrics=metrics,
        golden=golden,
        report=report,
        card=card,
        provenance=provenance,
        answers=answers,
    )
    for old in (run_dir / "bundle", *run_dir.glob(".bundle.*.tmp")):  # of this run, killed before it was registered
        shutil.rmtree(old, ignore_errors=True)
    save_bundle(run_dir / "bundle", contents)
    return run_dir / "bundle"


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
    config = load_config(config_path, overrides)
    with progress(sys.stdout) as show:
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
