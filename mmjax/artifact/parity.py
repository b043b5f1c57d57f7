"""Parity: one model asked about the same raw rows on every way it can be asked, and how far apart its answers are.

Two ways that run the same compiled program with the same batch size must agree to the bit: whatever differs then is the
data path (a category shifted, a missing marker read as text, an image decoded otherwise). Another batch size makes XLA
add f32 in another order: `rounding` says what that may change. The server's ways are in `mmjax.serving.parity`.
"""

import csv
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmjax.artifact.bundle import BundleContents
from mmjax.artifact.predictor import (
    REFERENCE_TOLERANCE,
    Predictions,
    Predictor,
    golden_tolerance,
    set_texts,
    to_predictions,
)
from mmjax.artifact.sample import Sample, as_bytes, as_path, as_pixels, is_missing, row_mappings, typed_rows
from mmjax.data.encode import columns_from_rows, encode
from mmjax.data.images import objects
from mmjax.data.pipeline import batch_rows
from mmjax.errors import BundleError
from mmjax.schema import Batch, Columns, Schema, Target
from mmjax.training.scoring import pass_rows, score

ONE_CALL = "bundle, one call"
ROW_BY_ROW = "bundle, row by row"
SAME = "same program, same batch size: to the bit"
ROUNDED = "another batch size: f32 is added in another order"


class Answers(NamedTuple):
    """What a model says of N rows on one way."""

    values: np.ndarray
    """f64[N, K] probabilities, or f64[N, 1] predicted values; NaN where the way gives no finite answer."""
    labels: np.ndarray | None
    """object[N] of classes as Predictions have them, or of tuples of the labels that hold; None for regression."""


class Comparison(NamedTuple):
    """How far one way is from another."""

    path: str
    against: str
    rows: int
    difference: float
    """The largest absolute difference of probabilities; of values relative to their size. NaN equals NaN alone."""
    row: int
    """Where it is, counted from 1; 0 where nothing differs."""
    tolerance: float
    labels: int | None
    """Rows with another class, ties within the tolerance apart; None for regression."""
    why: str
    """Where the tolerance comes from."""
    agrees: bool

    @property
    def problem(self) -> str:
        """What is wrong, where it does not agree."""
        place = f", the largest in row {self.row}" if self.row else ""
        classes = f" and {self.labels} rows of another class" if self.labels else ""
        return (
            f"{self.path}: expected the answers of '{self.against}' within {self.tolerance:.2g} ({self.why}), "
            f"got a difference of {self.difference:.2g}{place}{classes}; do not serve it before the cause is known"
        )


def compare(
    path: str, got: Answers, against: str, expected: Answers, *, tolerance: float, why: str, offset: float = 0.0
) -> Comparison:
    """Return the Comparison of two ways; `offset` (of a regression target) is no part of the size of the values."""
    rows = len(expected.values)
    if got.values.shape != expected.values.shape:
        told = f"{why}; expected answers of shape {expected.values.shape}, got {got.values.shape}"
        return Comparison(path, against, rows, float("inf"), 0, tolerance, None, told, agrees=False)
    apart = _apart(expected, got, offset)
    labels = _other_labels(expected, got, tolerance)
    worst = float(apart.max(initial=0.0))
    row = int(apart.argmax()) + 1 if worst > 0 else 0
    return Comparison(path, against, rows, worst, row, tolerance, labels, why, worst <= tolerance and not labels)


def _apart(expected: Answers, got: Answers, offset: float) -> np.ndarray:
    """Return f64[N], the largest difference in each row; NaN and infinity differ from all but themselves."""
    scale = 1.0
    if expected.labels is None:
        sizes = np.abs(expected.values - offset)
        scale = float(np.max(sizes, where=np.isfinite(sizes), initial=0.0)) or 1.0
    same = (expected.values == got.values) | (np.isnan(expected.values) & np.isnan(got.values))
    with np.errstate(invalid="ignore"):
        found = np.where(same, 0.0, np.abs(expected.values - got.values) / scale)
    return np.where(np.isfinite(found), found, np.inf).max(axis=1, initial=0.0)


def _other_labels(expected: Answers, got: Answers, tolerance: float) -> int | None:
    """Return how many rows have another class, those apart whose two classes are equally likely within rounding."""
    if expected.labels is None or got.labels is None:
        return None
    if isinstance(expected.labels[0], tuple):  # between values that are within rounding lies a label's threshold
        near = (np.abs(expected.values - got.values) <= tolerance).all(axis=1) & (tolerance > 0)
        return int(np.sum((expected.labels != got.labels) & np.isfinite(expected.values).all(axis=1) & ~near))
    best, second = expected.values.max(axis=1), got.values.max(axis=1)
    ours = np.take_along_axis(expected.values, got.values.argmax(axis=1)[:, None], axis=1)[:, 0]
    tied = (best - ours <= 2 * tolerance) & np.isfinite(second) & (tolerance > 0)
    answered = np.isfinite(best)
    return int(np.sum((expected.labels != got.labels) & answered & ~tied))


def compare_encoded(path: str, got: Batch, against: str, expected: Batch) -> Comparison:
    """Return the Comparison of rows as encoded, before any model: it sees also what the model hardly looks at."""
    return compare(path, _flat(got), against, _flat(expected), tolerance=0.0, why="one encoder: to the bit")


def _flat(batch: Batch) -> Answers:
    arrays = [np.reshape(batch[name], (batch_rows(batch), -1)) for name in sorted(batch)]
    return Answers(np.concatenate(arrays, axis=1, dtype=np.float64), None)


def rounding(contents: BundleContents, platform: str) -> float:
    """Return what another batch size, or another process on this platform, may change in an answer."""
    if platform == "cpu" and contents.config.precision == "float32":
        return REFERENCE_TOLERANCE
    return golden_tolerance(contents.golden, contents.config, platform)


# ---- the ways


def one_call(predictor: Predictor, columns: Columns) -> Answers:
    """Return the Answers for all rows in one call of the loaded bundle."""
    return answers_of(predictor.predict(columns))


def row_by_row(predictor: Predictor, rows: Iterable[Mapping[str, Any]]) -> Answers:
    """Return the Answers of the loaded bundle, asked for each row alone."""
    return joined([answers_of(predictor.predict([row])) for row in rows])


def training_path(predictor: Predictor, columns: Columns, *, bucket: int) -> Answers:
    """Return the Answers in passes as training scores a split: columns encoded whole, then `bucket` rows at a time."""
    batch = encode(predictor.schema, columns)
    scores = score(predictor.forward, predictor.states, batch, largest=bucket, smallest=bucket)
    return answers_of(to_predictions(predictor, scores))


def training_bucket(report: Mapping[str, Any], schema: Schema) -> int:
    """Return the rows of a pass when the model of this report was trained; the most where it does not say."""
    sizes = report.get("data", {}).get("split_sizes", {})
    return pass_rows(schema, sizes.get("validation", 0) or sizes.get("train", 0))


def batch_door(bundle: Path, schema: Schema, source: Path, scratch: Path) -> Answers:
    """Return the Answers that `python -m mmjax.predict` prints for a file, run as a process of its own on the CPU.

    BundleError with what it said when it fails.
    """
    output = scratch / "predictions.csv"
    command = [sys.executable, "-m", "mmjax.predict", "--model", bundle, "--input", source, "--output", output]
    command += ["--images", scratch] if schema.modality == "multimodal" and source.parent == scratch else []
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [os.fspath(word) for word in command], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise BundleError(f"batch door: expected predictions, got exit code {done.returncode}: {done.stderr.strip()}")
    return read_predictions(output, schema.target)


def read_predictions(output: Path, target: Target) -> Answers:
    """Return the Answers in the CSV of the batch door, at the precision that it prints."""
    classes = len(target.classes)
    with output.open(newline="", encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    if target.labels:
        values = np.array([row[1 + classes : 1 + 2 * classes] for row in rows], dtype=np.float32)
        yes = [label.positive for label in target.labels]
        held = np.array([[cell == text for cell, text in zip(row[1:], yes, strict=False)] for row in rows])
        return Answers(values.astype(np.float64), label_tuples(set_texts(target.classes, held)))
    if not classes:
        return Answers(np.array([[float(row[1])] for row in rows]), None)
    values = np.array([row[2 : 2 + classes] for row in rows], dtype=np.float32)
    return Answers(values.astype(np.float64), read_classes(target, [row[1] for row in rows]))


def answers_of(predictions: Predictions) -> Answers:
    """Return Predictions as Answers."""
    if predictions.probabilities is None:
        return Answers(predictions.prediction[:, None].astype(np.float64), None)
    labels = predictions.prediction.astype(object)
    if labels.ndim == 2:
        labels = label_tuples(set_texts([str(name) for name in predictions.classes], labels))
    return Answers(predictions.probabilities.astype(np.float64), labels)


def read_classes(target: Target, texts: Sequence[str]) -> np.ndarray:
    """Return object[N]: the classes that are written as texts, as Predictions have them."""
    values = dict(zip(target.classes, target.values, strict=True))
    return objects([values.get(text, text) for text in texts])


def label_tuples(rows: Sequence[Sequence[str]]) -> np.ndarray:
    """Return object[N] of tuples: the labels that hold in each row."""
    found = np.empty(len(rows), dtype=object)
    for i, row in enumerate(rows):
        found[i] = tuple(row)
    return found


def joined(parts: Sequence[Answers]) -> Answers:
    """Return the Answers for successive rows as one."""
    labels = None if parts[0].labels is None else np.concatenate([part.labels for part in parts])
    return Answers(np.concatenate([part.values for part in parts]), labels)


# ---- all of them


def compare_paths(
    predictor: Predictor, sample: Sample, *, door: Answers, bucket: int, allowed: float, scratch: Path
) -> list[Comparison]:
    """Return every Comparison within this process, and that with what the batch door printed for the sample.

    `bucket` is that of `training_bucket`, `allowed` the tolerance of `rounding`; `scratch` is a folder for files.
    """
    schema, columns = predictor.schema, sample.columns
    whole, single = one_call(predictor, columns), row_by_row(predictor, row_mappings(columns))
    offset = schema.target.offset
    trained = training_path(predictor, columns, bucket=bucket)
    return [
        compare("training path", trained, ONE_CALL, whole, tolerance=allowed, why=ROUNDED, offset=offset),
        compare(ROW_BY_ROW, single, ONE_CALL, whole, tolerance=allowed, why=ROUNDED, offset=offset),
        compare("batch door", door, ONE_CALL, whole, tolerance=0.0, why=SAME, offset=offset),
        *(_typed(predictor, columns, whole) if schema.features else ()),
        *(_images(predictor, columns, single, scratch) if schema.image else ()),
    ]


def formed(cells: np.ndarray, form: Callable[[Any], Any]) -> np.ndarray:
    """Return images in another form, object[N]; what is missing stays so."""
    return objects([None if is_missing(cell) else form(cell) for cell in cells])


def _typed(predictor: Predictor, columns: Columns, whole: Answers) -> Iterator[Comparison]:
    """Yield the Comparisons of a table's cells as JSON types them with the same cells as texts of a CSV."""
    schema = predictor.schema
    typed = columns_from_rows(typed_rows(schema, columns))
    yield compare_encoded("typed cells, encoded", encode(schema, typed), "text cells", encode(schema, columns))
    got = one_call(predictor, typed)
    yield compare("bundle, typed cells", got, ONE_CALL, whole, tolerance=0.0, why=SAME, offset=schema.target.offset)


def _images(predictor: Predictor, columns: Columns, single: Answers, scratch: Path) -> Iterator[Comparison]:
    """Yield the Comparisons of images as paths, bytes and pixels with the images as they came."""
    spec = predictor.schema.image
    assert spec is not None, "a model of images"
    numbers = itertools.count()
    forms: dict[str, Callable[[Any], Any]] = {
        "images as paths": lambda cell: as_path(cell, scratch / f"image-{next(numbers)}"),
        "images as bytes": as_bytes,
        "images as pixels": lambda cell: as_pixels(predictor.schema, cell),
    }
    for name, form in forms.items():
        made = columns | {column: formed(columns[column], form) for column in spec.columns if column in columns}
        got = row_by_row(predictor, row_mappings(made))
        offset = predictor.schema.target.offset
        yield compare(name, got, ROW_BY_ROW, single, tolerance=0.0, why=SAME, offset=offset)
