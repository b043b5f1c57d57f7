"""What an Output's state says beside the network: temperature, matrix, threshold, conformal bounds, when to abstain.

Fitted once training is done, on the validation rows, in this order: each rests on those before it. These rows have also
chosen the best epoch, so all of it comes out slightly too good; `docs/BENCHMARKS.md` says by how much.
"""

import functools
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np

from mmjax.backend import compile_ahead, compiled
from mmjax.config import Training
from mmjax.data.pipeline import pad_rows, padded_slices
from mmjax.errors import TrainingError
from mmjax.schema import Batch, Schema, Target
from mmjax.training.calibration import best_doubt, doubted, tempered
from mmjax.training.conformal import (
    half_widths,
    least_label_probability,
    least_probability,
    rows_needed,
    rows_worth,
    widening,
)
from mmjax.training.matrix_scaling import choose_mixing
from mmjax.training.outputs import Output, Prediction
from mmjax.training.scoring import TABLE_ROWS, Scores
from mmjax.training.threshold import best_threshold

Facts = dict[str, dict[str, Any]]
"""What was fitted, for the report: `calibration`, `threshold`, `conformal`, `abstention`, each where asked for."""


class Rows(NamedTuple):
    """The validation rows: answers of the network before anything was fitted, and the truth."""

    scores: Scores
    batch: Batch
    """`label`, and `weight` where there is one."""


CALIBRATED = ("temperature", "matrix")
"""What `training.calibration` may be where probabilities are calibrated."""


def fits_on_validation(training: Training) -> bool:
    """Return whether `decide` needs the validation rows."""
    tuned = isinstance(training.threshold, str) and training.threshold != "none"
    return training.calibration in CALIBRATED or tuned or training.coverage is not None


def decide(training: Training, schema: Schema, output: Output, state: Any, rows: Rows | None) -> tuple[Any, Facts]:
    """Return the Output's state with all that the config asks for, and what that is.

    `rows` are there where `fits_on_validation`. Raises TrainingError where the rows bound nothing.
    """
    facts: Facts = {}
    if training.calibration in CALIBRATED and output.calibrate is not None and rows is not None:
        scores, batch = rows
        state = output.calibrate(state, scores.outputs, batch["label"], batch.get("weight"))
        facts["calibration"] = {"temperature": float(state["temperature"]), "rows": weighing(batch)}
    asks = isinstance(training.threshold, str) and training.threshold != "none"
    asks = asks or training.coverage is not None or training.calibration == "matrix"
    found = predicted(output, state, rows.scores.outputs) if asks and rows is not None else None
    if training.calibration == "matrix" and found is not None and rows is not None:
        state, found, added = _mixing(state, found, rows.batch)
        facts["calibration"] |= added
    if training.threshold != "none" and schema.target.labels:
        state, facts["threshold"] = _label_thresholds(training.threshold, schema.target, state, found, rows)
    elif training.threshold != "none":
        state, facts["threshold"] = _threshold(training.threshold, schema, state, found, rows)
    if training.coverage is not None and found is not None and rows is not None:
        state, facts["conformal"] = _conformal(training.coverage, state, found, rows.batch)
    elif training.loss == "pinball":
        facts["conformal"] = {"quantiles": [training.quantiles[0], training.quantiles[-1]]}
    if training.abstain_below is not None:
        state, facts["abstention"] = abstaining(state, training.abstain_below), {"below": training.abstain_below}
        facts["abstention"] |= {"labels": True} if schema.target.labels else {}
    return state, facts


def _mixing(state: Any, found: Prediction, batch: Batch) -> tuple[Any, Prediction, dict[str, Any]]:
    """Return the state with doubt and a Mixing, each if it helps, the Prediction of rows held out from it, and facts.

    Bounds and thresholds that rested on probabilities of the very rows that K x K numbers are fitted to would be too
    tight.
    """
    labels, weight, probabilities = batch["label"], batch.get("weight"), np.asarray(found.probabilities)
    facts: dict[str, Any] = {"doubt": None, "matrix": None}
    if (both := best_doubt(probabilities, labels, weight)) is not None:
        temperature, doubt = np.float32(state["temperature"] * both[0]), np.float32(both[1])
        state = state | {"temperature": temperature, "doubt": doubt}
        probabilities = doubted(tempered(probabilities, both[0]), both[1])
        facts |= {"temperature": float(temperature), "doubt": float(doubt)}
    if (chosen := choose_mixing(probabilities, labels, weight)) is not None:
        matrix, offsets = (values.astype(np.float32) for values in chosen.mixing)
        state, probabilities = state | {"mixing": matrix, "offsets": offsets}, chosen.held_out
        facts["matrix"] = {"log_loss_before": chosen.before, "log_loss_after": chosen.after}
    held_out: Any = probabilities.astype(np.float32)
    return state, found._replace(probabilities=held_out), facts


def predicted(output: Output, state: Any, outputs: np.ndarray) -> Prediction:
    """Return the Prediction, on the host, of raw outputs f32[N, O] under a state; any N is passes of one shape."""
    apply, parts = _applied(output), []
    for start, stop in padded_slices(len(outputs), TABLE_ROWS):
        found = apply(state, pad_rows({"outputs": outputs[start:stop]}, TABLE_ROWS)["outputs"])
        parts.append(jax.tree.map(lambda leaf, rows=stop - start: np.asarray(leaf)[:rows], found))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def answered(output: Output, state: Any, outputs: np.ndarray) -> Scores:
    """Return the Scores of raw outputs under a state, as `predicted`."""
    return Scores(outputs, *jax.tree.map(np.asarray, predicted(output, state, outputs)))


def start_predicting(output: Output, state: Any, outputs: jax.ShapeDtypeStruct) -> Future[None]:
    """Return the Future of compiling what `predicted` runs on outputs of this kind."""
    return compile_ahead(_applied(output), state, jax.ShapeDtypeStruct((TABLE_ROWS, *outputs.shape[1:]), outputs.dtype))


@functools.lru_cache(maxsize=4)
def _applied(output: Output) -> jax.stages.Wrapped:
    """Return the Output's `apply`, compiled once for all that a run asks it."""
    return compiled(output.apply)


def abstaining(state: Any, below: float) -> Any:
    """Return an Output's state that abstains where the largest probability is below this."""
    return state | {"abstain_below": np.float32(below)}


def _threshold(
    asked: str | float, schema: Schema, state: Any, found: Prediction | None, rows: Rows | None
) -> tuple[Any, dict[str, Any]]:
    positive = schema.positive_index
    fact: dict[str, Any] = {"class": schema.target.classes[positive]}
    if isinstance(asked, str):
        assert found is not None
        assert found.probabilities is not None
        assert rows is not None
        probabilities, truth = np.asarray(found.probabilities)[:, positive], rows.batch["label"] == positive
        asked_for: Any = asked
        value = best_threshold(probabilities, truth, asked_for, rows.batch.get("weight"))
        fact |= {"metric": asked, "rows": weighing(rows.batch)}
    else:
        value = asked
    return state | {"threshold": np.float32(value)}, fact | {"value": value}


def _label_thresholds(
    asked: str | float, target: Target, state: Any, found: Prediction | None, rows: Rows | None
) -> tuple[Any, dict[str, Any]]:
    """Return the state with a threshold for each label: the best of its own for a metric, or one number for all.

    A label that all validation rows hold, or none, stays at one half.
    """
    fact: dict[str, Any] = {}
    if isinstance(asked, str):
        assert found is not None
        assert found.probabilities is not None
        assert rows is not None
        probabilities, truth = np.asarray(found.probabilities), np.asarray(rows.batch["label"]) > 0
        metric: Any = asked
        values = [
            best_threshold(p, t, metric, rows.batch.get("weight")) if t.any() and not t.all() else 0.5
            for p, t in zip(probabilities.T, truth.T, strict=True)
        ]
        fact |= {"metric": asked, "rows": weighing(rows.batch)}
    else:
        values = [float(asked)] * len(target.labels)
    told = dict(zip(target.classes, values, strict=True))
    return state | {"threshold": np.array(values, np.float32)}, fact | {"labels": told}


def _conformal(coverage: float, state: Any, found: Prediction, batch: Batch) -> tuple[Any, dict[str, Any]]:
    labels, weight = batch["label"], batch.get("weight")
    fact: dict[str, Any] = {"coverage": coverage, **_counted(labels, weight)}
    if found.probabilities is not None:
        several = labels.ndim == 2
        bound = least_label_probability if several else least_probability
        value = bound(np.asarray(found.probabilities), labels, coverage, weight)
        bounded, key = value > 0, "least_probability"
        fact |= {"labels": True} if several else {}
    else:
        if found.intervals is None:
            value = half_widths(np.asarray(found.prediction), labels, coverage, weight)
        else:
            value = widening(np.asarray(found.intervals), labels, coverage, weight)
        bounded, key = bool(np.isfinite(value).all()), "half_width"
    if not bounded:
        raise TrainingError(
            f"training.coverage: expected finite answers and enough weight among the validation rows for {coverage:g}, "
            "got a set or an interval that holds everything; lower it, or give more validation rows"
        )
    return state | {key: value}, fact | {key: float(np.max(value))}


def weighing(batch: Batch) -> int:
    """Return how many rows weigh something."""
    return int(np.count_nonzero(batch["weight"])) if "weight" in batch else len(batch["label"])


def _counted(labels: np.ndarray, weight: np.ndarray | None) -> dict[str, Any]:
    """Return the rows that bounds rest on, of several labels those that hold any, and their worth."""
    weighted, weight = weight is not None, np.ones(len(labels)) if weight is None else np.asarray(weight, np.float64)
    if labels.ndim == 2 and labels.dtype.kind == "i":
        weight = weight * (labels > 0).any(axis=1)
    rows = int(np.count_nonzero(weight))
    return {"rows": rows} | ({"worth": rows_worth(weight, rows)} if weighted else {})


def decision_problems(training: Training, schema: Schema, validation_labels: np.ndarray) -> list[str]:
    """Return what of the config cannot be with this target and these validation rows, a line each."""
    target = schema.target
    threshold = [] if target.labels else _threshold_problems(training.threshold, target.classes, validation_labels)
    counted = (validation_labels > 0).any(axis=1) if target.labels else validation_labels
    held = " that hold a label" if target.labels else ""
    held += f"{' and have' if held else ' with'} a weight above 0" if schema.weight_column else ""
    coverage = _coverage_problems(training, int(counted.sum()) if target.labels else len(counted), held)
    clamp = []
    if training.clamp is True and target.task != "regression":
        clamp = [f"training.clamp: expected a regression target, got a {target.task} target; remove it"]
    return [*clamp, *threshold, *coverage, *abstain_problems("training.abstain_below", training.abstain_below, target)]


def _threshold_problems(threshold: str | float, classes: tuple[str, ...], labels: np.ndarray) -> list[str]:
    if threshold == "none":
        return []
    if len(classes) != 2:
        what = f"{len(classes)} classes" if classes else "a number"
        return [f"training.threshold: expected a target of 2 classes, got {what}; remove it"]
    if isinstance(threshold, str) and len(np.unique(labels)) < 2:
        return [
            f"training.threshold: {threshold} expected validation rows of both classes, got {len(labels)} rows of "
            f"{len(np.unique(labels))}; raise validation_split, or give a number"
        ]
    return []


def _coverage_problems(training: Training, rows: int, held: str) -> list[str]:
    if training.coverage is None or rows >= rows_needed(training.coverage):
        return []
    return [
        f"training.coverage: {training.coverage:g} expected at least {rows_needed(training.coverage)} validation rows"
        f"{held}, got {rows}; lower it, or raise validation_split"
    ]


def abstain_problems(where: str, below: float | None, target: Target) -> list[str]:
    """Return why none, or all, would ever be abstained below this probability, if so; `where` it was asked for."""
    choices = 2 if target.labels else len(target.classes)
    if below is None or (choices and 1.0 / choices < below <= 1.0):
        return []
    if not choices:
        return [f"{where}: expected a classifier, got a model of a number; remove it"]
    if below > 1.0:
        return [f"{where}: expected a probability, 1 at most, got {below:g}"]
    what = "yes or no of a label is at least that probable"
    what = what if target.labels else f"the largest of {choices} probabilities is at least that"
    least = f"above {1.0 / choices:.3g}, as {what}"
    return [f"{where}: expected a number {least}, got {below:g}"]
