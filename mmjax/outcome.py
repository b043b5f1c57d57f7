"""What a trained model is worth, and what is kept of it: metrics, intervals, baselines, report, card and bundle."""

import datetime as dt
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from mmjax.analysis.baseline_quantiles import Quantiles
from mmjax.analysis.baselines import Judgement, judge
from mmjax.analysis.bootstrap import intervals, resample, start_resampling
from mmjax.analysis.card import model_card
from mmjax.analysis.evaluation import Evaluation, Leak, answers_of_scores, evaluate_scores, leak_of
from mmjax.analysis.modalities import HIDES, Modalities, judge_modalities
from mmjax.analysis.report import OUT_OF_FOLD, Report, ReportInput, build_report, write_report
from mmjax.analysis.trust import with_facts
from mmjax.artifact.answers import Answers
from mmjax.artifact.bundle import BundleContents, save_bundle
from mmjax.artifact.files import plain
from mmjax.artifact.predictor import Predictor, make_golden
from mmjax.backend import Backend, versions
from mmjax.config import Config, fold_count
from mmjax.config_load import config_to_recipe
from mmjax.data.audit_target import sign_facts
from mmjax.data.findings import finding_line, leaked_rows
from mmjax.data.prepare import Prepared
from mmjax.data.prepared import class_counts, split_sizes
from mmjax.data.split import PARTS
from mmjax.parts import States
from mmjax.recipe import Decision, usual_epochs
from mmjax.training.decide import Facts, Rows, answered, decide, fits_on_validation, start_predicting
from mmjax.training.events import TrainResult
from mmjax.training.fold_means import MEAN_TEMPERATURE
from mmjax.training.setup import Setup


class Fitted(NamedTuple):
    """States with what the config asks for fitted on the validation rows."""

    states: States
    facts: Facts
    """What was fitted."""


def fit_output(config: Config, setup: Setup, states: States) -> Fitted:
    """Return what is Fitted.

    Out-of-fold rows are answered by the models of one fold, others by the mean over all, which is less sure. What
    suits the one form suits the other when it is as sure, which is the one thing that no label is needed for.
    """
    training, schema = config.training, setup.scorer.prepared.schema
    rows = Rows(*setup.scorer.scores(states, "validation")) if fits_on_validation(training) else None
    output, facts = decide(training, schema, setup.output, states.output, rows)
    if "conformal" in facts and schema.target.task == "regression" and config.audit.tails != "ignore":
        facts["conformal"] |= _signs(config, setup.scorer.prepared)
    if "calibration" in facts and fold_count(config):
        output = output | {MEAN_TEMPERATURE: np.ones((), np.float32)}
        output[MEAN_TEMPERATURE] = np.float32(setup.scorer.sureness(states._replace(output=output)))
        facts["calibration"] |= {MEAN_TEMPERATURE: float(output[MEAN_TEMPERATURE])}
    return Fitted(states._replace(output=output), facts)


def _signs(config: Config, prepared: Prepared) -> dict[str, str]:
    """Return the `sign_facts` of the training rows' targets; what an offset rounds away from 0 counts as 0."""
    offset, labels = np.float64(prepared.schema.target.offset), prepared.batch["label"][prepared.split.train]
    values = np.asarray(labels, np.float64) + offset
    rounding = np.spacing(np.float32(abs(offset))) if offset else 0.0
    values = np.where(np.abs(values) <= rounding, 0.0, values)
    return sign_facts(values, quantiles=config.training.loss == "pinball")


def start_compiling(config: Config, setup: Setup) -> tuple[Future[None], ...]:
    """Return the Futures of compiling what a small model is judged with, to be made while it trains; else none.

    All of them are to be done before it is judged.
    """
    scorer, schema = setup.scorer, setup.scorer.prepared.schema
    if scorer.outputs is None:
        return ()
    split = next((name for name in ("test", "validation") if len(scorer.rows_of(name))), None)
    weighted = "weight" in scorer.prepared.batch  # rows that weigh nothing are no rows of a draw
    return (
        *(
            [start_predicting(setup.output, setup.fitted[1], scorer.outputs)]
            if fits_on_validation(config.training)
            else []
        ),
        *([start_resampling(schema.target, len(scorer.rows_of(split)))] if split and not weighted else []),
    )


class Evaluated(NamedTuple):
    """What a model is worth on each split that has rows."""

    evaluations: dict[str, Evaluation]
    answers: dict[str, Answers]
    """To the rows that were not trained on."""
    leak: Leak | None
    """What the test rows say that are no copies of training rows; None where the audit told of no copy."""
    modalities: Modalities | None
    """What images and columns each add; None where there are not both."""
    quantiles: dict[str, Quantiles]
    """Those of the rows that were not trained on, where the network was trained for quantiles."""


def evaluate_splits(config: Config, setup: Setup, fitted: Fitted) -> Evaluated:
    """Return what is Evaluated; with folds, rows that are not for test by the models that have not seen them."""
    calibrated = "calibration" in fitted.facts
    evaluations, answers, quantiles, leak, prepared = {}, {}, {}, None, setup.scorer.prepared
    for name in PARTS:
        if len(rows := setup.scorer.rows_of(name)):
            told = OUT_OF_FOLD if name == "validation" and fold_count(config) else name
            scores, batch = setup.scorer.scores(fitted.states, name)
            output = setup.output if name == "validation" else setup.whole
            plain_state = setup.fitted[1]
            before = answered(output, plain_state, scores.outputs).probabilities if calibrated else None
            evaluation = evaluate_scores(
                *(prepared.schema, scores, batch),
                state=fitted.states.output,
                before=before,
                levels=config.training.quantiles,
            )
            loss = {"loss": setup.scorer.loss(scores.outputs, batch)}
            evaluations[told] = evaluation._replace(metrics=loss | evaluation.metrics)
            if name != "train":
                answers[told] = answers_of_scores(prepared.schema, scores, batch, prepared.names[rows])
            if name != "train" and config.training.loss == "pinball":
                assert scores.quantiles is not None, "the loss learns quantiles"
                values = scores.quantiles + np.float64(prepared.schema.target.offset)
                quantiles[told] = Quantiles(config.training.quantiles, values)
            if name == "test" and len(leaked_rows(prepared.findings)):
                leak = leak_of(prepared, scores, batch)
    return Evaluated(evaluations, answers, leak, judged_modalities(config, setup, fitted.states, answers), quantiles)


def judged_modalities(config: Config, setup: Setup, states: States, answers: dict[str, Answers]) -> Modalities | None:
    """Return what images and columns each add to the model, on the test rows, else those of validation.

    None where there are not both, and with folds without test rows, each of which only some members have not seen.
    """
    prepared = setup.scorer.prepared
    split = next((name for name in ("test", "validation") if name in answers), None)
    if prepared.schema.image is None or not prepared.schema.features or split is None:
        return None
    names, batch = prepared.names[setup.scorer.rows_of(split)], setup.scorer.answers(setup.scorer.rows_of(split))
    scores = {name: setup.scorer.scores_without(states, split, hide) for name, hide in HIDES.items()}
    alone = {name: answers_of_scores(prepared.schema, found, batch, names) for name, found in scores.items()}
    return judge_modalities(answers[split], alone, split, seed=config.seed)


class Judged(NamedTuple):
    """How sure the numbers are of the split that counts, and how the network stands beside simple models."""

    intervals: dict[str, dict[str, tuple[float, float]]]
    baselines: Judgement | None


def judged_answers(
    config: Config,
    prepared: Prepared,
    answers: dict[str, Answers],
    decisions: tuple[Decision, ...],
    facts: Facts,
    *,
    epochs: int,
    quantiles: Mapping[str, Quantiles] = MappingProxyType({}),
) -> Judged:
    """Return intervals and baselines on the rows that count: test, else validation, else (no baselines) out of fold.

    `decisions` and `facts` are those of the run, which trained so many `epochs`.
    """
    split = next((name for name in ("test", "validation", OUT_OF_FOLD) if name in answers), None)
    if split is None:
        return Judged({}, None)
    spread = {split: intervals(resample(answers[split], seed=config.seed))}
    if config.evaluation.baselines == "none" or split == OUT_OF_FOLD:
        return Judged(spread, None)
    found = judge(
        prepared,
        answers[split],
        split,
        boost=config.evaluation.baselines == "all",
        seed=config.seed,
        advice=_train_longer(config, prepared, decisions, epochs) or _what_to_try(config, decisions),
        weighted=config.training.class_weights != "none",
        thresholded="threshold" in facts,
        absolute=config.training.loss == "mae",
        quantiles=quantiles.get(split),
    )
    return Judged(spread, found._replace(notes=(*found.notes, *_threshold_note(facts))))


def _threshold_note(facts: Facts) -> list[str]:
    """Return that classes are called otherwise than those of the baselines, where a threshold calls them."""
    fact = facts.get("threshold")
    if fact is None:
        return []
    if "labels" in fact:
        return ["this network's labels are called by its thresholds, the baselines' from 0.5 on"]
    return [f"this network's classes are by its threshold {fact['value']:.3g}, the baselines' by the most probable"]


def _train_longer(config: Config, prepared: Prepared, decisions: tuple[Decision, ...], epochs: int) -> str:
    """Return that the training was shorter than the recipe's, in words; empty where it was not."""
    asked, why = config.training.epochs, {made.key: made.why for made in decisions}.get("training.epochs")
    assert isinstance(asked, int), "the recipe decides the epochs"
    if why is not None and why.startswith("budget"):
        ended = f" and ended after {epochs}" if epochs < asked and not config.training.early_stopping.enabled else ""
        return f"train longer first: training.epochs was cut to {asked} ({why}){ended}"
    if config.budget is not None and epochs < asked and config.training.early_stopping.enabled is not True:
        return f"train longer first: budget {config.budget} ended it after {epochs} of {asked} epochs"
    if why is not None or epochs != asked or config.preset == "fast":  # a decided config does not tell fast's plan
        return ""
    usual = usual_epochs(config, prepared)
    return f"train longer first: training.epochs is {asked}, the recipe's choice is {usual}" if asked < usual else ""


def _what_to_try(config: Config, decisions: tuple[Decision, ...]) -> str:
    """Return what may do better than this run, in words; empty where it has all of that."""
    training, split = config.training, config.split
    if any(made.why.startswith("budget") for made in decisions):
        return "try a longer budget"
    tries = ["preset: best"] if config.model.type == "tabular" and config.model.name != "tabm" else []
    alone = training.members == 1 and not training.seeds and not fold_count(config)
    if alone and split.strategy not in ("column", "folders", "time"):
        tries.append("split.folds: 5")
    return f"try {', or '.join(tries)}" if tries else ""


def run_report(
    config: Config,
    prepared: Prepared,
    decisions: tuple[Decision, ...],
    *,
    setup: Setup,
    result: TrainResult,
    evaluations: dict[str, Evaluation],
    judged: Judged,
    facts: Facts,
    leak: Leak | None,
    modalities: Modalities | None,
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
            zero_targets={name: evaluation.zero_targets for name, evaluation in evaluations.items()},
            modalities=plain(modalities),
        )
    )


def provenance_of(prepared: Prepared, backend: Backend) -> dict[str, Any]:
    """Return where the model comes from: what tells this run and its data from others."""
    return {
        "finished": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "data_sha256": prepared.fingerprint,
        "platform": backend.platform,
        "device": backend.device,
        "threads": backend.threads,
        "versions": versions(),
    }


def save_run_bundle(
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
