"""Predictor: a loaded bundle that answers. Encode, pad to a bucket, one compiled call, un-pad.

The functions are those that trained the model. No pandas, optax, grain or orbax is imported here: serving stands on it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import msgspec
import numpy as np

from mmjax.artifact.bundle import Bundle, Golden, load_bundle
from mmjax.backend import compiled, platform, reference_mode
from mmjax.config import Config
from mmjax.data.encode import check_columns, columns_from_rows, encode
from mmjax.data.pipeline import batch_rows, padded_slices
from mmjax.data.unknown import Unknown, unknown_cells, unknown_warnings
from mmjax.errors import BundleError, ConfigError, DataError, TrainingError
from mmjax.frames import Frame, ImageFile, answers_in_a_line, frame_columns, image_rows, is_frame, sized_cells
from mmjax.models.build import served_otherwise, served_variables
from mmjax.parts import States, build_parts
from mmjax.schema import Batch, Columns, Schema, Values
from mmjax.training.decide import abstain_problems, abstaining
from mmjax.training.scoring import LABEL_FIELDS, LARGEST_BUCKET, Forward, Scores, score

REFERENCE_TOLERANCE = 1e-5
"""Largest difference from the golden answers when replayed in reference mode on any CPU (f32 sums in another order)."""

Rows = Mapping[str, Sequence[Any] | np.ndarray] | Sequence[Mapping[str, Any]] | Frame | ImageFile | Sequence[ImageFile]


class Predictions(NamedTuple):
    """Answers for N rows, on the host."""

    prediction: np.ndarray
    """Classes, values f64[N], or which labels hold, bool[N, L]. Classes equal the cells that pandas reads from their
    column of a CSV: i64[N] where all are whole numbers such as 0 and 1, f64[N] where all are decimals such as 0.0 and
    0.5, bool[N] where all are True and False, else texts (object[N]): also numbers that are written otherwise, such as
    007, which pandas reads as 7 (`schema.class_values` says which). Names of folders are texts; so are all classes in
    the replies of a server."""
    probabilities: np.ndarray | None
    """f32[N, K] in the order of `classes`, or f32[N, L] of labels, each by itself; None for regression."""
    classes: Values
    """The classes, as `prediction` has them, or the names of the labels."""
    uncertainty: np.ndarray | None = None
    """f32[N]: how far the members of the model disagree; None for a model of one member. For classes the mean total
    variation distance from the answer, 0 to 1, for labels that of the label where it is largest; for values the
    standard deviation, in their unit."""
    sets: np.ndarray | None = None
    """bool[N, K]: the classes, or labels, in each row's set; None unless trained with `training.coverage`."""
    intervals: np.ndarray | None = None
    """f64[N, 2], lower and upper end; None unless trained with `training.coverage` or the loss `pinball`."""
    abstained: np.ndarray | None = None
    """bool[N]: rows that are too unsure to be answered; None without `training.abstain_below`."""
    warnings: tuple[str, ...] = ()
    """What the answers may suffer from, a line each: cells of a category that training did not see."""
    quantiles: np.ndarray | None = None
    """f64[N, Q] in the order of `quantile_levels`, never descending in a row; None but for the loss `pinball`.
    `training.coverage` moves the ends of `intervals` only, not these."""
    quantile_levels: tuple[float, ...] = ()
    """`training.quantiles`, ascending: the target is below `quantiles[:, i]` in about that share of cases."""

    def __repr__(self) -> str:
        """What there is, in a line."""
        return answers_in_a_line(self)


class Predictor(NamedTuple):
    """A model ready to answer. `predict` is the only thing most callers need."""

    schema: Schema
    config: Config
    states: States
    """What was fitted; of a loaded model in the form that `forward` takes (`served_variables`)."""
    forward: Forward
    """Compiled."""
    digest: str = ""

    @property
    def quantile_levels(self) -> tuple[float, ...]:
        """The levels of the quantiles that it answers, ascending; none unless trained with the loss `pinball`."""
        return self.config.training.quantiles if self.config.training.loss == "pinball" else ()

    def __repr__(self) -> str:
        """What it answers from what, in a line: the arrays would fill a notebook."""
        schema, weights = self.schema, sum(np.size(leaf) for leaf in jax.tree.leaves(self.states.variables["params"]))
        images = [f"{len(schema.image.columns)} image(s)"] if schema.image else []
        columns = [f"{len(schema.features)} column(s)"] if schema.features else []
        return (
            f"Predictor({self.config.name}: {schema.target.task} of {schema.target.column!r} from "
            f"{' and '.join([*images, *columns])}, {self.config.model.name}, {weights:,} parameters)"
        )

    def predict(self, rows: Rows) -> Predictions:
        """Return Predictions for rows: mappings from column name to cell, lists or arrays by column name, or a pandas
        DataFrame, whose index is not looked at.

        Cells are numbers, texts as in the CSV, or None for missing (but no image of an image model); images are paths,
        bytes or u8 arrays. A model of images alone takes paths and bytes as rows too, one or a list. Identifier and
        target columns are ignored. Raises DataError naming unknown and absent columns, or row and column of a cell.
        """
        alone = self.schema.image.columns[0] if self.schema.image and self.schema.modality == "image" else ""
        columns = as_columns(image_rows(rows, alone) if alone else rows)
        check_columns(self.schema, columns, where="rows")
        scores, unknown = self.score_known(columns)
        return to_predictions(self, scores)._replace(warnings=unknown_warnings(unknown))

    def score(self, columns: Columns, *, whole: bool = False) -> Scores:
        """Return raw Scores of rows as read; of images at most a bucket is decoded at a time.

        `whole`: rows of a table are padded to the largest bucket, however few they are: a program that others use.
        """
        return concatenate([self._score(batch, whole=whole) for batch in _batches(self, columns, label=False)])

    def score_known(self, columns: Columns) -> tuple[Scores, tuple[Unknown, ...]]:
        """Return what `score` does, and the cells of a category that training did not see."""
        scores, unknown, start = [], [], 0
        for batch in _batches(self, columns, label=False):
            unknown += unknown_cells(self.schema, columns, batch.get("category"), start=start)
            scores.append(self._score(batch))
            start += batch_rows(batch)
        return concatenate(scores), tuple(unknown)

    def _score(self, batch: Batch, *, whole: bool = False) -> Scores:
        # The last few of many rows of a table are padded to a whole bucket: cheaper than a program of their own
        largest = self.schema.rows_of_images(LARGEST_BUCKET)
        whole = self.schema.image is None and (whole or batch_rows(batch) > largest)
        return score(self.forward, self.states, batch, largest=largest, smallest=largest if whole else 1)

    def score_labelled(self, columns: Columns) -> tuple[Scores, Batch]:
        """Return the Scores of rows with answers, and a Batch of `label` and, where the model had them, `weight`."""
        scores, answers = [], []
        for batch in _batches(self, columns, label=True):
            scores.append(self._score(batch))
            answers.append({name: batch[name] for name in LABEL_FIELDS if name in batch})
        joined = {name: np.concatenate([part[name] for part in answers]) for name in answers[0]}
        return concatenate(scores), joined


def as_columns(rows: Rows) -> Columns:
    """Return rows, however they are given, as Columns; DataError when there are none or they are no rows."""
    if is_frame(rows):
        columns = frame_columns(cast(Frame, rows))
    elif isinstance(rows, Mapping):
        columns = {
            name: cells if isinstance(cells, np.ndarray) else _cells(name, cells) for name, cells in rows.items()
        }
    elif isinstance(rows, Sequence) and all(isinstance(row, Mapping) for row in rows):
        columns = columns_from_rows(cast(Sequence[Mapping[str, Any]], rows))
    else:
        got = type(rows).__name__
        if isinstance(rows, Sequence) and not isinstance(rows, str):
            got += f" of {next(type(row).__name__ for row in rows if not isinstance(row, Mapping))}"
        raise DataError(
            f"rows: expected a list of dicts, or a dict of lists, by column name, or a pandas DataFrame, got {got}; of "
            "images give [{'image': path}, ...]"
        )
    if not columns and not len(cast(Sequence[Any], rows)):
        raise DataError("rows: expected at least one row, got none")
    return columns


def _cells(name: str, values: Any) -> np.ndarray:
    cells = np.empty(len(sized_cells(f"column '{name}'", values)), dtype=object)
    for i, value in enumerate(values):  # one by one: NumPy would stack images of one size
        cells[i] = value
    return cells


def _batches(predictor: Predictor, columns: Columns, *, label: bool) -> Iterator[Batch]:
    """Yield the encoded rows: a table at once, images by the bucket. DataError names rows as counted in `columns`."""
    lengths = {name: len(cells) for name, cells in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"expected columns of equal length, got {lengths}")
    rows = next(iter(lengths.values()), 0)
    if not rows:
        raise DataError("expected at least one row, got none")
    schema, needed = predictor.schema, predictor.config.data.image is not None
    for start, stop in padded_slices(rows, LARGEST_BUCKET if schema.image else rows):
        piece = {name: cells[start:stop] for name, cells in columns.items()}
        try:
            yield encode(schema, piece, label=label, image_needed=needed)
        except DataError:
            if stop - start < rows:  # once more, so that all problems are told, with rows counted from the first
                encode(schema, columns, label=label, image_needed=needed)
            raise


def concatenate(parts: Iterable[Scores]) -> Scores:
    """Return successive Scores as one."""
    return Scores._make(None if field[0] is None else np.concatenate(field) for field in zip(*parts, strict=True))


def to_predictions(predictor: Predictor, scores: Scores) -> Predictions:
    """Return a model's Scores in the words of the data: classes, or values."""
    schema = predictor.schema
    if scores.probabilities is None:
        offset = np.float64(schema.target.offset)
        intervals = None if scores.intervals is None else scores.intervals[:, 0] + offset
        uncertainty = None if scores.uncertainty is None else scores.uncertainty[:, 0]
        return Predictions(
            scores.prediction[:, 0] + offset,
            None,
            (),
            uncertainty,
            intervals=intervals,
            quantiles=None if scores.quantiles is None else scores.quantiles + offset,
            quantile_levels=predictor.quantile_levels,
        )
    classes = schema.target.values
    return Predictions(
        scores.prediction > 0 if schema.target.labels else class_array(classes)[scores.prediction],
        scores.probabilities,
        classes,
        scores.uncertainty,
        sets=scores.sets,
        abstained=scores.abstained,
    )


def class_array(classes: Sequence[Any]) -> np.ndarray:
    """Return classes as an array: texts as object[K], i64[K], f64[K] or bool[K]."""
    return np.array(classes, dtype=object if isinstance(classes[0], str) else None)


def set_texts(classes: Sequence[str], sets: np.ndarray) -> list[list[str]]:
    """Return the class texts in each of the sets bool[N, K].

    >>> set_texts(("a", "b"), np.array([[True, False], [True, True], [False, False]]))
    [['a'], ['a', 'b'], []]
    """
    return [[name for name, inside in zip(classes, row, strict=True) if inside] for row in sets.tolist()]


def make_predictor(
    config: Config, schema: Schema, states: States, *, digest: str = "", forward: Forward | None = None
) -> Predictor:
    """Return a Predictor of fitted states; `forward` is that of `config`, where it was compiled before."""
    forward = forward or compiled(build_parts(config, schema).forward, precision=config.precision)
    return Predictor(schema, config, states, forward, digest)


def abstaining_predictor(predictor: Predictor, below: float | None, *, where: str) -> Predictor:
    """Return the Predictor that abstains below this probability, whatever it was trained with; None changes nothing.

    ConfigError, naming `where` it was asked for, when it would never abstain.
    """
    if below is None:
        return predictor
    if problems := abstain_problems(where, below, predictor.schema.target):
        raise ConfigError([f"{problem} ({predictor.config.name})" for problem in problems])
    return predictor._replace(states=predictor.states._replace(output=abstaining(predictor.states.output, below)))


def added_answers(predictor: Predictor) -> list[str]:
    """Return which fields of Predictions, besides those that all models have, this one's answers hold."""
    added = {"least_probability": "sets", "half_width": "intervals", "abstain_below": "abstained"}
    quantiles = ["quantiles"] if predictor.quantile_levels else []
    return [field for key, field in added.items() if key in predictor.states.output] + quantiles


def load_predictor(folder: str | Path) -> Predictor:
    """Return the Predictor of a bundle, after its golden rows gave the answers they gave when it was made.

    Raises BundleError naming what is wrong.
    """
    return proven_predictor(load_bundle(Path(folder)), where=str(folder))


def proven_predictor(bundle: Bundle, *, where: str) -> Predictor:
    """Return the Predictor of a bundle that is loaded already; BundleError, naming `where`, as `load_predictor`."""
    predictor = bundle_predictor(bundle)
    golden = bundle.contents.golden
    problems = list(_replay(predictor, golden, tolerance=golden_tolerance(golden, predictor.config, platform())))
    if problems:
        raise BundleError([f"{where}: {problem}" for problem in problems])
    return predictor


def bundle_predictor(bundle: Bundle) -> Predictor:
    """Return the Predictor of a bundle as it is, its golden rows not asked."""
    contents = bundle.contents
    return served_predictor(make_predictor(contents.config, contents.schema, _states(bundle), digest=bundle.digest))


def served_predictor(predictor: Predictor) -> Predictor:
    """Return the Predictor as it answers once it is loaded; see `served_variables`. Twice changes nothing."""
    config, schema, states = predictor.config, predictor.schema, predictor.states
    variables = served_variables(config.model, states.variables, str(config.precision))
    if variables is states.variables:
        return predictor
    forward = compiled(build_parts(config, schema, served=True).forward, precision=config.precision)
    return predictor._replace(states=states._replace(variables=variables), forward=forward)


def golden_problems(folder: Path) -> list[str]:
    """Return what differs when the golden rows are replayed tightly, in reference mode; an empty list when nothing."""
    bundle = load_bundle(Path(folder))
    contents = bundle.contents
    with reference_mode():
        predictor = make_predictor(reference_config(contents.config), contents.schema, _states(bundle))
        return list(_replay(predictor, contents.golden, tolerance=REFERENCE_TOLERANCE))


def reference_config(config: Config) -> Config:
    """Return the config that computes in f32, as golden answers are."""
    return msgspec.structs.replace(config, precision="float32")


def make_golden(predictor: Predictor, columns: Columns) -> Golden:
    """Return golden rows with the answers of reference mode, and the tolerance that compiled answers need.

    The tolerance is four times what was measured on this backend, at least 1e-5. In f32 on a CPU the compiled answers
    are those of reference mode: products are whole there at any precision (`tests/test_precision.py`).
    """
    columns, served = self_contained(predictor.schema, columns), served_predictor(predictor)
    compiled_answers = expected = golden_answers(served, columns)
    if platform() != "cpu" or predictor.config.precision != "float32" or served is not predictor:
        reference = make_predictor(reference_config(predictor.config), predictor.schema, predictor.states)
        with reference_mode():
            expected = golden_answers(reference, columns)
    if not all(np.isfinite(answers[name]).all() for answers in (expected, compiled_answers) for name in expected):
        raise TrainingError(
            f"golden rows: expected finite answers, got NaN or infinity (precision {predictor.config.precision}); look "
            "for extreme values in the data, lower training.learning_rate, or set precision: float32"
        )
    measured = max(largest_difference(expected[name], compiled_answers[name]) for name in expected)
    tolerance = {**ELSEWHERE, _measured_on(predictor.config, platform()): max(REFERENCE_TOLERANCE, 4.0 * measured)}
    return Golden({name: list(cells) for name, cells in columns.items()}, expected, tolerance)


def self_contained(schema: Schema, columns: Columns) -> Columns:
    """Return raw cells that need no file beside them: the path of an image becomes the bytes of the file."""
    images = schema.image.columns if schema.image else ()
    contained = {}
    for name, cells in columns.items():
        contained[name] = np.empty(len(cells), dtype=object)
        contained[name][:] = [
            Path(cell).read_bytes() if name in images and isinstance(cell, str) else cell for cell in cells
        ]
    return contained


ELSEWHERE = {"cpu/float32": 1e-4, "gpu/float32": 5e-3, "tpu/float32": 2e-2, "bfloat16": 5e-2}
"""Tolerances on backends where nothing was measured: GPUs and TPUs multiply f32 in fewer bits by default."""


def golden_tolerance(golden: Golden, config: Config, platform: str) -> float:
    """Return how far compiled answers of this precision may be from the golden ones on a platform (`cpu`, `gpu`...)."""
    return golden.tolerance.get(_measured_on(config, platform), golden.tolerance.get(str(config.precision), 5e-2))


def _measured_on(config: Config, platform: str) -> str:
    """The key of a measured tolerance: another one where loaded models answer in a form of their own, which older
    bundles did not measure."""
    form = "/served" if served_otherwise(config.model, str(config.precision)) else ""
    return f"{platform}/{config.precision}{form}"


def _states(bundle: Bundle) -> States:
    return States(*(bundle.contents.states[name] for name in ("model", "transform", "output")))


def golden_answers(predictor: Predictor, columns: Columns) -> dict[str, np.ndarray]:
    """Return what a Golden expects for these rows; see `expected_of`."""
    return expected_of(predictor.score(columns, whole=True))


def expected_of(scores: Scores) -> dict[str, np.ndarray]:
    """Return what golden rows hold: `probabilities f32[N, K]`, or `prediction f32[N, T]`; `uncertainty` of members."""
    answer = {"prediction": scores.prediction} if scores.probabilities is None else {}
    told = {"probabilities": scores.probabilities, "uncertainty": scores.uncertainty}
    return answer | {name: values for name, values in told.items() if values is not None}


def golden_columns(golden: Golden) -> Columns:
    """Return the raw cells of golden rows as Columns."""
    columns = {}
    for name, cells in golden.columns.items():
        columns[name] = np.empty(len(cells), dtype=object)
        columns[name][:] = cells
    return columns


def largest_difference(expected: np.ndarray, got: np.ndarray) -> float:
    """Return the largest difference relative to the size of the expected values (at least 1); NaN differs from all."""
    if expected.shape != got.shape:
        return float("inf")
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    difference = np.abs(expected.astype(np.float64) - got.astype(np.float64)) / scale
    return float(np.max(np.where(np.isfinite(difference), difference, np.inf), initial=0.0))


def _replay(predictor: Predictor, golden: Golden, *, tolerance: float) -> Iterator[str]:
    answers = golden_answers(predictor, golden_columns(golden))
    for name, expected in golden.expected.items():
        difference = largest_difference(expected, answers[name])
        if difference > tolerance:
            yield (
                f"golden rows: expected {name} within {tolerance:g} of what was saved, got a difference of "
                f"{difference:g}; the arrays, the data path or this machine's numerics changed; retrain or restore"
            )
