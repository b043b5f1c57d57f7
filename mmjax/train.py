"""`python -m mmjax.train`: a YAML file goes in; a trained, tested, registered model comes out.

Read `fit` from top to bottom: it is the whole story.
"""

import contextlib
import datetime as dt
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from mmjax.analysis.card import model_card
from mmjax.analysis.evaluation import Evaluation, evaluate_scores
from mmjax.analysis.log import configure_logging, get_logger
from mmjax.analysis.present import closing_lines, print_results
from mmjax.analysis.report import Report, ReportInput, build_report, write_report
from mmjax.artifact.bundle import BundleContents, save_bundle
from mmjax.artifact.files import write_json_atomic
from mmjax.artifact.predictor import Predictor, make_golden, make_predictor
from mmjax.artifact.registry import check_writable, register
from mmjax.artifact.runs import create_run
from mmjax.backend import Backend, configure, versions
from mmjax.cli import echo, json_option, run
from mmjax.config import Config
from mmjax.config_load import config_to_dict, config_to_yaml, load_config
from mmjax.data.prepare import Prepared, prepare
from mmjax.data.split import split_to_json
from mmjax.errors import BundleError, ConfigError, DataError, MmjaxError
from mmjax.parts import States, build_parts
from mmjax.recipe import Decision, resolve
from mmjax.schema import schema_to_json
from mmjax.training.callbacks import metrics_logger, progress
from mmjax.training.checkpoint import checkpointer
from mmjax.training.event_types import Event
from mmjax.training.events import TrainResult, train_events, watch
from mmjax.training.setup import Setup, set_up

SPLITS = ("train", "validation", "test")


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
    callbacks: Sequence[Callable[[Event], None]] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> FitResult:
    """Return the FitResult of training, testing and registering what `config` says.

    `callbacks` see every event; `tell` gets each line that a user should read. `registry=None` registers nothing.
    Raises ConfigError, DataError, TrainingError or BundleError; the run's folder keeps what there was until then.
    """
    run_dir = _make_run_dir(config, run_dir, Path(runs_dir))
    with _recorded(run_dir, config, tell) as record:
        with record.stage("setup"):
            if registry is not None:
                check_writable(Path(registry))  # now, not when the training is done
            backend = configure(device=config.device, threads=config.threads)
        with record.stage("data"):
            prepared = prepare(config)
            config, decisions = resolve(
                config,
                prepared.schema,
                train_rows=len(prepared.split.train),
                validation_rows=len(prepared.split.validation),
            )
            _save_inputs(run_dir, config, prepared, decisions)
        _tell_all(tell, run_dir, backend, prepared, decisions)
        with record.stage("train"):
            setup = set_up(config, prepared, build_parts(config, prepared.schema))
            keep = checkpointer(_checkpoint_dir(config, run_dir), config.training.checkpoint)
            watchers = (metrics_logger(run_dir / "metrics.jsonl"), *callbacks)
            result = watch(train_events(setup.state, setup.task, setup.plan), watchers, keep)
        with record.stage("evaluate"):
            states = States(result.variables, *setup.fitted)
            evaluations = _evaluate(setup, states)
            metrics = {name: evaluation.metrics for name, evaluation in evaluations.items()}
        with record.stage("bundle"):
            report = _report(config, prepared, decisions, setup, result, evaluations, record.seconds)
            predictor = make_predictor(config, prepared.schema, states)
            provenance = {"run": run_dir.name, **_fingerprints(prepared, backend)}
            bundle = _save_bundle(run_dir, config, prepared, predictor, metrics, report, provenance)
            version = None
            if registry is not None:
                version = _register(Path(registry), config.name, bundle, str(provenance["run_id"]))
                bundle = Path(registry) / config.name / str(version)
        record.finish(model=config.name, version=version, bundle=str(bundle), metrics=metrics)
    return FitResult(run_dir, config.name, version, bundle, metrics, report, predictor, record.seconds)


def _register(registry: Path, name: str, bundle: Path, run_id: str) -> int:
    """Return the version under which the bundle is registered; BundleError says where it is when it cannot be."""
    try:
        return register(registry, name, bundle, run_id=run_id)
    except BundleError as error:
        raise BundleError(
            [*error.problems, f"the trained model is whole in {bundle}: --model takes that folder too"]
        ) from error


def _make_run_dir(config: Config, run_dir: str | Path | None, runs_dir: Path) -> Path:
    """Return the folder of this run, made now; `runs/NAME/YYYYmmdd-HHMMSS` unless one is given."""
    if run_dir is None:
        return create_run(runs_dir, config.name, dt.datetime.now())
    folder = Path(run_dir)
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"--run-dir {folder}: expected a new or empty folder, got one with files in it; name another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--run-dir {folder}: cannot be made: {error.strerror}; name another") from error
    return folder


class _Record(NamedTuple):
    """What `run.json` says of this run, kept true at every stage."""

    path: Path
    content: dict[str, Any]
    seconds: dict[str, float]

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, and log its end."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - started, 3)
        get_logger().info("stage done", stage=name, seconds=self.seconds[name])

    def save(self, **changes: Any) -> None:
        """Write `run.json` with the changes."""
        self.content.update(changes, seconds=self.seconds)
        write_json_atomic(self.path, self.content)

    def finish(self, **changes: Any) -> None:
        """Write that the run finished, and with what."""
        self.save(status="finished", **changes)
        get_logger().info("finished", model=self.content["model"], version=self.content["version"])


@contextlib.contextmanager
def _recorded(run_dir: Path, config: Config, tell: Callable[[str], None]) -> Iterator[_Record]:
    """Give a _Record, and write to it how the run ended whatever happens."""
    configure_logging(run_dir)
    (run_dir / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    started = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    record = _Record(run_dir / "run.json", {"name": config.name, "started": started}, {})
    record.save(status="running", config=config_to_dict(config), process=os.getpid())
    try:
        yield record
    except KeyboardInterrupt:
        record.save(status="interrupted")
        tell(f"interrupted: what there is stays in {run_dir}, with the checkpoints that were saved so far")
        raise
    except MmjaxError as error:
        record.save(status="failed", problems=list(error.problems))
        get_logger().error("failed", problems=list(error.problems))
        raise
    except BaseException as error:
        record.save(status="failed", problems=[f"{type(error).__name__}: {error}"])
        raise
    finally:
        configure_logging(None)


def _save_inputs(run_dir: Path, config: Config, prepared: Prepared, decisions: tuple[Decision, ...]) -> None:
    """Keep what decides the run: the resolved config, the schema, the realised split, the recipe's decisions."""
    (run_dir / "resolved.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    (run_dir / "schema.json").write_bytes(schema_to_json(prepared.schema))
    (run_dir / "split.json").write_text(split_to_json(prepared.split, prepared.names), encoding="utf-8")
    write_json_atomic(run_dir / "decisions.json", [decision._asdict() for decision in decisions])


def _tell_all(
    tell: Callable[[str], None],
    run_dir: Path,
    backend: Backend,
    prepared: Prepared,
    decisions: tuple[Decision, ...],
) -> None:
    """Tell the user where the run is, what it runs on, what happened to the data and what the recipe decided."""
    split = prepared.split
    sizes = ", ".join(f"{len(getattr(split, name))} {name}" for name in SPLITS)
    lines = [
        f"run {run_dir} on {backend.platform} ({backend.device}), {backend.threads} threads",
        *backend.notes,
        f"data: {len(prepared.names)} rows: {sizes}; target {prepared.schema.target.column}: "
        f"{prepared.schema.target.reason}",
        *prepared.notes,
    ]
    for line in lines:
        tell(line)
        get_logger().info("told", line=line)
    if decisions:
        decided = ", ".join(f"{d.key.partition('.')[2]}={_short(d.value)}" for d in decisions)
        tell(textwrap.fill(f"decided: {decided}", 100, subsequent_indent="  ", break_on_hyphens=False))
    get_logger().info("decided", decisions=[decision._asdict() for decision in decisions])


def _short(value: Any) -> str:
    return str(list(value)).replace(" ", "") if isinstance(value, tuple) else str(value)


def _checkpoint_dir(config: Config, run_dir: Path) -> Path:
    """Return where this run's checkpoints go; DataError when those of another run are there."""
    given = config.training.checkpoint.path
    if given is None:
        return run_dir / "checkpoints"
    folder = Path(given) / f"{config.name}-{run_dir.name}"
    if folder.exists():
        raise DataError(
            f"training.checkpoint.path: expected no checkpoints of another run, got {folder}; name another path or run"
        )
    return folder


def _evaluate(setup: Setup, states: States) -> dict[str, Evaluation]:
    """Return the Evaluation of each split that has rows."""
    evaluations = {}
    for name in SPLITS:
        if len(getattr(setup.scorer.prepared.split, name)):
            scores, batch = setup.scorer.scores(states, name)
            evaluation = evaluate_scores(setup.scorer.prepared.schema, scores, batch)
            loss = {"loss": setup.scorer.loss(scores.outputs, batch)}
            evaluations[name] = evaluation._replace(metrics=loss | evaluation.metrics)
    return evaluations


def _report(
    config: Config,
    prepared: Prepared,
    decisions: tuple[Decision, ...],
    setup: Setup,
    result: TrainResult,
    evaluations: dict[str, Evaluation],
    seconds: dict[str, float],
) -> Report:
    """Return the report of the run."""
    return build_report(
        ReportInput(
            config_dict=config_to_dict(config),
            schema=prepared.schema,
            split_sizes={name: len(getattr(prepared.split, name)) for name in SPLITS},
            class_counts=_class_counts(prepared),
            notes=prepared.notes,
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
        )
    )


def _class_counts(prepared: Prepared) -> dict[str, dict[str, int]] | None:
    classes = prepared.schema.target.classes
    if not classes:
        return None
    label = prepared.batch["label"]
    counts = {name: np.bincount(label[getattr(prepared.split, name)], minlength=len(classes)) for name in SPLITS}
    return {name: dict(zip(classes, found.tolist(), strict=True)) for name, found in counts.items()}


def _fingerprints(prepared: Prepared, backend: Backend) -> dict[str, Any]:
    """Return what tells this run and its data from others."""
    finished = dt.datetime.now(dt.UTC)
    return {
        "run_id": f"{finished:%Y%m%dT%H%M%S%f}-{os.getpid()}",
        "finished": finished.isoformat(timespec="seconds"),
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
    )
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
@json_option
def command(config_path: str, overrides: tuple[str, ...], run_dir: str | None, registry: str) -> dict[str, Any]:
    """Train, test and register a model."""
    started = time.perf_counter()
    config = load_config(config_path, overrides)
    with progress(sys.stdout) as show:
        result = fit(config, run_dir=run_dir, registry=registry, callbacks=(show,), tell=echo)
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
    run(command)
