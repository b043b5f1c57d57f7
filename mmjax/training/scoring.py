"""Forward passes over many rows, and the exact metrics of what comes out.

Everything reported is finished on the host in f64 from collected scores. No optimizer here: serving uses this too.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mmjax.backend import platform
from mmjax.data.pipeline import batch_rows, pad_rows, padded_slices, take
from mmjax.models.base import Model
from mmjax.schema import Batch, Schema
from mmjax.training.label_metrics import label_metrics
from mmjax.training.metrics import classification_metrics, regression_metrics
from mmjax.training.outputs import Output, Prediction
from mmjax.transforms.base import Transform

LABEL_FIELDS = ("label", "weight")

LARGEST_BUCKET = 256
"""Rows of the largest compiled batch of a Predictor (images, where a row has several)."""
TABLE_ROWS = 4096
"""Rows of one forward pass when many rows of a table are scored in training."""
FEW_ROWS = 8192
"""Up to so many rows are scored in a Predictor's batches: another program would cost more than it saves."""
IMAGE_ROWS = 256
"""Images of one forward pass in training: their activations are large."""
AHEAD = 2
"""Passes that are under way while the results of one are fetched."""


class Scores(NamedTuple):
    """What a model says of N rows, on the host."""

    outputs: np.ndarray
    """f32[N, O], or f32[N, E, O] of E members: raw outputs, which the loss compares with targets."""
    prediction: np.ndarray
    """i32[N] class index, i32[N, L] 1 where a label holds, or f32[N, T]."""
    probabilities: np.ndarray | None
    """f32[N, K] for classification, f32[N, L] for labels."""
    uncertainty: np.ndarray | None = None
    """f32[N], or f32[N, T] for regression: disagreement of the members, where there are several."""
    sets: np.ndarray | None = None
    """bool[N, K], as in a Prediction; and so on."""
    intervals: np.ndarray | None = None
    """f32[N, T, 2]."""
    abstained: np.ndarray | None = None
    """bool[N]."""
    quantiles: np.ndarray | None = None
    """f32[N, Q]."""

    def map(self, function: Callable[[Any], Any]) -> "Scores":
        """Return the Scores with `function` of each array that there is."""
        arrays: list[Any] = [None if array is None else function(array) for array in self]
        return Scores(*arrays)

    def rows(self, start: int, stop: int) -> "Scores":
        """Return the rows from `start` to before `stop`."""
        return self.map(lambda array: array[start:stop])


Forward = Callable[[Any, Any, Any, Batch], tuple[jax.Array, Prediction]]
"""`forward(variables, transform_state, output_state, batch) -> (outputs, Prediction)`, pure."""


def make_forward(model: Model, transform: Transform, output: Output) -> Forward:
    """Return the one forward pass that evaluation, batch prediction and serving compile."""

    def forward(variables: Any, transform_state: Any, output_state: Any, batch: Batch) -> tuple[jax.Array, Prediction]:
        outputs, _ = model.apply(variables, transform.apply(transform_state, batch), train=False)
        return outputs, output.apply(output_state, outputs)

    return forward


def make_ensemble_forward(model: Model, transform: Transform, output: Output, *, folded: bool, images: bool) -> Forward:
    """Return the forward pass of E models of one kind, whose variables have a leading axis E.

    With `folded` the Transform's state has it too. Outputs are `f32[B, E, O]`, the Output is that of all members.
    They are computed beside each other; with `images`, on a CPU, one after the other in a loop: convolutions of several
    models at once are grouped ones to XLA, which a CPU takes a hundred times as long for (`benchmarks/members.py`).
    """

    def forward(variables: Any, transform_state: Any, output_state: Any, batch: Batch) -> tuple[jax.Array, Prediction]:
        def one(own: Any, fitted: Any) -> jax.Array:
            outputs, _ = model.apply(own, transform.apply(fitted, batch), train=False)
            return outputs.reshape(len(outputs), -1, outputs.shape[-1])  # a network may have members of its own

        if images and platform() == "cpu":
            own = (variables, transform_state if folded else ())
            each = jax.lax.map(lambda own: one(own[0], own[1] if folded else transform_state), own).swapaxes(0, 1)
        else:
            each = jax.vmap(one, in_axes=(0, 0 if folded else None), out_axes=1)(variables, transform_state)
        outputs = each.reshape(len(each), -1, each.shape[-1])
        return outputs, output.apply(output_state, outputs)

    return forward


def inputs_of(batch: Batch) -> Batch:
    """Return the Batch without what only training and evaluation know."""
    return {name: values for name, values in batch.items() if name not in LABEL_FIELDS}


def bucket_of(rows: int, largest: int) -> int:
    """Return the padded size for `rows`: the next power of two, at most `largest`.

    >>> [bucket_of(n, 256) for n in (1, 3, 200, 1000)]
    [1, 4, 256, 256]
    """
    return min(1 << max(rows - 1, 0).bit_length(), largest)


def pass_rows(schema: Schema, rows: int) -> int:
    """Return the rows of each forward pass over `rows` rows that training looks at; of images the most, where it is 0.

    Few rows of a table fill a Predictor's batch, however few they are: it is the same program. Not so on a GPU, where a
    pass of 4096 rows takes no longer than one of 256.
    """
    if schema.image is None:
        few = FEW_ROWS if platform() == "cpu" else LARGEST_BUCKET
        return LARGEST_BUCKET if rows <= few else TABLE_ROWS
    largest = schema.rows_of_images(IMAGE_ROWS)
    return bucket_of(rows, largest) if rows else largest


def score(
    forward: Forward,
    states: tuple[Any, Any, Any],
    batch: Batch,
    rows: np.ndarray | None = None,
    *,
    largest: int,
    smallest: int = 1,
    change: Callable[[Batch], Batch] = lambda batch: batch,
) -> Scores:
    """Return the Scores of all rows of a host Batch, or of `rows` i64[N]; the states are those of a Forward.

    `change` is made to each slice of the inputs first, as to hide some. Rows go through in slices of `largest`; the
    last is padded up to its bucket (of at least `smallest`), and padding never changes a result.
    """
    inputs, count = inputs_of(batch), batch_rows(batch) if rows is None else len(rows)

    def asked(start: int, stop: int) -> Any:
        piece = take(inputs, slice(start, stop) if rows is None else rows[start:stop])
        return forward(*states, pad_rows(change(piece), max(smallest, bucket_of(stop - start, largest))))

    passes = _on_host(asked(*each) for each in padded_slices(count, largest))
    outputs, prediction = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *passes)
    return Scores(outputs, *prediction)


def _on_host(passes: Iterable[Any]) -> list[Any]:
    """Return the results of passes as NumPy arrays: the device computes the next ones while one comes to the host."""
    found, under_way = [], deque[Any]()
    for result in passes:
        under_way.append(result)
        if len(under_way) > AHEAD:
            found.append(jax.tree.map(np.asarray, under_way.popleft()))
    return found + jax.tree.map(np.asarray, list(under_way))


def score_beside(
    beside: Callable[..., tuple[jax.Array, Prediction]],
    states: tuple[Any, Any, Any],
    batch: Batch,
    rows: Sequence[np.ndarray],
    *,
    size: int,
) -> list[Scores]:
    """Return the Scores of each of E members, on rows `i64[N_e]` of a host Batch of its own.

    `beside` is a Forward whose batch and results have a leading axis E. It takes `size` rows of each member at a time;
    what is missing of the last, or of a member with fewer rows, is padded.
    """
    inputs = inputs_of(batch)

    def asked(start: int, stop: int) -> Any:
        pieces = [pad_rows(take(inputs, own[start:stop]), size) for own in rows]
        return beside(*states, {name: np.stack([piece[name] for piece in pieces]) for name in inputs})

    passes = _on_host(asked(*each) for each in padded_slices(max(map(len, rows)), size))
    outputs, prediction = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *passes)
    return [
        Scores(outputs, *prediction).map(lambda leaf, e=e, own=own: leaf[e, : len(own)]) for e, own in enumerate(rows)
    ]


def metrics_of(schema: Schema, scores: Scores, batch: Batch) -> dict[str, float]:
    """Return every metric of the Scores against the labels of `batch`; keys as in `config.METRIC_NAMES` less `loss`."""
    weight = batch.get("weight")
    weight = None if weight is None else np.asarray(weight, np.float64)
    if scores.probabilities is None:
        offset = schema.target.offset
        return regression_metrics(
            scores.prediction + np.float64(offset), batch["label"] + np.float64(offset), weight=weight
        )
    if schema.target.labels:
        probabilities = scores.probabilities.astype(np.float64)
        return label_metrics(probabilities, batch["label"], predictions=scores.prediction, weight=weight)
    return classification_metrics(
        scores.probabilities.astype(np.float64),
        np.asarray(batch["label"], np.int64),
        positive_index=schema.positive_index,
        predictions=scores.prediction.astype(np.int64),
        weight=weight,
    )
