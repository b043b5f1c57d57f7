"""Transforms of tables: dates, gaps, scales and categories become numbers a network can use.

Statistics are computed once on the host in f64. `apply` runs on what it is given: NumPy arrays on the host, JAX arrays
inside jit. Infinite numbers count as the largest finite f32, so no result is ever infinite; NaN means missing until
`impute` fills it.
"""

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mmjax.config import MissingStrategy
from mmjax.schema import Batch
from mmjax.transforms.base import State, Transform

LARGEST = float(np.finfo(np.float32).max)
SMALLEST_SCALE = 1e-30
"""A column that varies less is constant: f32 has no digits left there."""
SCALED_LIMIT = 1e6
"""Scaled numbers are held within this bound, far outside any that a network has learnt from."""


def mark_columns() -> Transform:
    """Return the Transform that adds `columns_present f32[B]`: 0 for rows all of whose cells are missing or unknown.

    It comes before gaps are filled. A batch without columns is unchanged.
    """

    def apply(state: State, batch: Batch) -> Batch:
        present = []
        if "numeric" in batch:
            numeric, xp = finite_numbers(batch)
            present.append(xp.logical_not(xp.isnan(numeric)).any(axis=1))
        if "category" in batch:
            present.append((batch["category"] > 0).any(axis=1))
        if not present:
            return batch
        return batch | {"columns_present": functools.reduce(operator.or_, present).astype(np.float32)}

    return Transform(lambda batch: (), apply)


def impute(strategy: MissingStrategy, fill_value: float | tuple[float, ...] = 0.0) -> Transform:
    """Return the Transform that fills NaN in `numeric f32[B, F]` and appends F missing-indicators to `dense`.

    A column is filled with the mean, median or most frequent number (the smallest of tied ones) of the fitted rows, 0
    where it has none; with `constant`, with `fill_value`, one for all columns or one each. State: f32[F].
    """

    def fit(batch: Batch) -> State:
        if strategy == "constant" and "numeric" in batch:
            fill = np.asarray(fill_value, np.float64) + np.zeros(batch["numeric"].shape[1])
        else:
            fill = np.array([_fill_of(column, strategy) for column in _present_numbers(batch)])
        return np.clip(fill, -LARGEST, LARGEST).astype(np.float32)

    def apply(state: State, batch: Batch) -> Batch:
        if "numeric" not in batch:
            return batch
        numeric, xp = finite_numbers(batch)
        missing = xp.isnan(numeric)
        filled = xp.where(missing, state[None, :], numeric)
        return with_dense(batch | {"numeric": filled}, missing.astype(np.float32))

    return Transform(fit, apply)


def _fill_of(present: np.ndarray, strategy: MissingStrategy) -> float:
    if not len(present):
        return 0.0
    if strategy == "mode":
        numbers, counts = np.unique(present, return_counts=True)
        return float(numbers[counts.argmax()])
    return float(np.median(present) if strategy == "median" else present.mean())


def cyclic_dates(indices: tuple[int, ...]) -> Transform:
    """Return the Transform that moves columns of `numeric` to `dense` as sine and cosine.

    The columns hold fractions of a cycle, in [0, 1); those left keep their order. Appended are all sines, then all
    cosines; NaN gives 0 and 0. No state.
    """

    def apply(state: State, batch: Batch) -> Batch:
        if not indices:
            return batch
        numeric, xp = finite_numbers(batch)
        rest = [i for i in range(numeric.shape[1]) if i not in indices]
        fraction = numeric[:, np.array(indices)]
        missing = xp.isnan(fraction)
        # Whole cycles go first: the sine of a huge f32 is noise.
        angle = 2.0 * np.pi * (xp.where(missing, 0.0, fraction) % 1.0)
        waves = [xp.where(missing, 0.0, wave(angle)) for wave in (xp.sin, xp.cos)]
        moved = with_dense(batch, *waves)
        if rest:
            return moved | {"numeric": numeric[:, np.array(rest)]}
        return {name: values for name, values in moved.items() if name != "numeric"}

    return Transform(_nothing_to_fit, apply)


def standardize() -> Transform:
    """Return the Transform of `numeric` to mean 0 and standard deviation 1; a constant column becomes 0.

    NaN stays NaN. State of this and the other scalers: `{"center": f32[F], "factor": f32[F]}`, where factor is
    `sqrt(2 / scale)`, and 0 for a constant column.
    """
    return _scaler(lambda present: (present.mean(), present.std()))


def min_max() -> Transform:
    """Return the Transform of `numeric` that brings the fitted rows to [0, 1]; a constant column becomes 0.

    Other rows may lie outside. NaN stays NaN.
    """
    return _scaler(lambda present: (present.min(), np.ptp(present)))


def robust_scale() -> Transform:
    """Return the Transform of `numeric` to `x / sqrt(1 + (x/3)**2)`, within (-3, 3), of x = (number - median) / scale.

    The scale is the quartile range; where that is 0 half the range; a constant column becomes 0. NaN stays NaN.
    Source: RealMLP, Holzmüller et al. 2024 (arXiv 2407.04491), section 3.
    """

    def statistics(present: np.ndarray) -> tuple[float, float]:
        low, median, high = np.quantile(present, (0.25, 0.5, 0.75))
        return median, (high - low) or np.ptp(present) / 2.0

    return _scaler(statistics, finish=lambda x, xp: x / xp.sqrt(1.0 + (x / 3.0) ** 2))


def _scaler(
    statistics: Callable[[np.ndarray], tuple[float, float]], finish: Callable[[Any, Any], Any] | None = None
) -> Transform:
    """Return the Transform `(numeric - center) / scale`, then `finish(scaled, array namespace)`."""

    def of_column(present: np.ndarray) -> tuple[float, float]:
        if not len(present) or np.ptp(present) == 0:  # not the deviation: that of a constant may be off by an ulp
            return (present[0] if len(present) else 0.0), 0.0
        return statistics(present)

    def fit(batch: Batch) -> State:
        found = np.array([of_column(column) for column in _present_numbers(batch)]).reshape(-1, 2)
        center, scale = found.T
        factor = np.sqrt(np.divide(2.0, scale, out=np.zeros(len(scale)), where=scale >= SMALLEST_SCALE))
        return {"center": center.astype(np.float32), "factor": factor.astype(np.float32)}

    def apply(state: State, batch: Batch) -> Batch:
        if "numeric" not in batch:
            return batch
        numeric, xp = finite_numbers(batch)
        factor = state["factor"][None, :]
        with np.errstate(over="ignore"):
            # Halves: a difference may be twice the largest f32. Two factors: XLA may flush 1 / scale to 0.
            scaled = (0.5 * numeric - 0.5 * state["center"][None, :]) * factor * factor
        scaled = xp.clip(scaled, -SCALED_LIMIT, SCALED_LIMIT)
        return batch | {"numeric": scaled if finish is None else finish(scaled, xp)}

    return Transform(fit, apply)


def one_hot(cardinalities: tuple[int, ...]) -> Transform:
    """Return the Transform that replaces `category i32[B, C]` by one column for each code, appended to `dense`.

    Code 0, missing or unknown, has a column of its own; `cardinalities` count it. No state.
    """
    column = np.repeat(np.arange(len(cardinalities)), cardinalities)
    code = np.concatenate([np.arange(n, dtype=np.int32) for n in cardinalities])

    def apply(state: State, batch: Batch) -> Batch:
        if "category" not in batch:
            return batch
        codes = _known(batch["category"], cardinalities)
        return _without_category(with_dense(batch, (codes[:, column] == code[None, :]).astype(np.float32)))

    return Transform(_nothing_to_fit, apply)


def scaled_one_hot(cardinalities: tuple[int, ...], most: int) -> Transform:
    """Return the Transform that moves category columns of at most `most` categories from `category` to `dense`.

    `cardinalities` count code 0, missing or unknown. Two categories become one column of -1 and 1, and 0 for code 0;
    others a column for each category, all zeros for code 0; one category a column too. These are scaled as
    `robust_scale` scales numbers, by training rows. Source: RealMLP, Holzmüller et al. 2024 (arXiv 2407.04491),
    section 3; pytabkit embeds from 10 codes on, which is `most` 8.
    """
    small = np.array([n <= most + 1 for n in cardinalities])
    moved, kept = np.flatnonzero(small), np.flatnonzero(~small)
    column = np.concatenate([np.full(onehot_width(cardinalities[i]), i) for i in moved] or [[]])
    column = column.astype(np.int32)
    code = np.concatenate([[1] if cardinalities[i] == 3 else np.arange(1, cardinalities[i]) for i in moved] or [[]])
    code = code.astype(np.int32)
    pair = np.array([cardinalities[i] == 3 for i in column], bool)
    scale = robust_scale()

    def columns(codes: Any) -> Any:
        own = codes[:, column]
        hot = (own == code[None, :]).astype(np.float32)
        other = (own == 2).astype(np.float32) * pair[None, :].astype(np.float32)
        return hot - other

    def fit(batch: Batch) -> State:
        if "category" not in batch:
            return ()
        return scale.fit({"numeric": columns(_known(np.asarray(batch["category"]), cardinalities))})

    def apply(state: State, batch: Batch) -> Batch:
        if "category" not in batch or not len(moved):
            return batch
        codes = _known(batch["category"], cardinalities)
        changed = with_dense(batch, scale.apply(state, {"numeric": columns(codes)})["numeric"])
        return changed | {"category": codes[:, kept]} if len(kept) else _without_category(changed)

    return Transform(fit, apply)


def only_seen(cardinalities: tuple[int, ...]) -> Transform:
    """Return the Transform that makes categories unknown (code 0 of `category`) that no fitted row has.

    For models that share a vocabulary but not their training rows. State: `bool[sum(cardinalities)]`.
    """
    first = np.concatenate([[0], np.cumsum(cardinalities)[:-1]]).astype(np.int32)

    def fit(batch: Batch) -> State:
        seen = np.zeros(sum(cardinalities), bool)
        seen[(_known(np.asarray(batch["category"]), cardinalities) + first[None, :]).ravel()] = True
        return seen

    def apply(state: State, batch: Batch) -> Batch:
        codes = _known(batch["category"], cardinalities)
        return batch | {"category": codes * state[codes + first[None, :]]}

    return Transform(fit, apply)


def onehot_width(cardinality: int) -> int:
    """Return the columns that `scaled_one_hot` makes of a column with so many codes."""
    return 1 if cardinality == 3 else cardinality - 1


def ordinal(cardinalities: tuple[int, ...]) -> Transform:
    """Return the Transform that replaces `category i32[B, C]` by its codes scaled to [0, 1], appended to `dense`.

    Appended are C values, then C indicators of code 0 (missing or unknown, whose value is 0). No state.
    """
    last = np.maximum(np.array(cardinalities, np.float32) - 2.0, 1.0)

    def apply(state: State, batch: Batch) -> Batch:
        if "category" not in batch:
            return batch
        codes = _known(batch["category"], cardinalities)
        unknown = (codes == 0).astype(np.float32)
        values = (codes.astype(np.float32) - 1.0 + unknown) / last[None, :]
        return _without_category(with_dense(batch, values, unknown))

    return Transform(_nothing_to_fit, apply)


def _nothing_to_fit(batch: Batch) -> State:
    return ()


def _present_numbers(batch: Batch) -> Iterator[np.ndarray]:
    """Yield each column of `numeric` without what is missing, as finite f64; nothing where there is no `numeric`."""
    for column in np.asarray(batch["numeric"]).T if "numeric" in batch else ():
        yield np.clip(column[~np.isnan(column)].astype(np.float64), -LARGEST, LARGEST)


def finite_numbers(batch: Batch) -> tuple[Any, Any]:
    """Return (`numeric`, finite or NaN; the namespace that computes with it: numpy or jax.numpy)."""
    xp = batch["numeric"].__array_namespace__()
    return xp.clip(batch["numeric"], -LARGEST, LARGEST), xp


def _known(codes: Any, cardinalities: tuple[int, ...]) -> Any:
    """Return the codes, 0 for those that are none of a column."""
    limit = np.array(cardinalities, np.int32)[None, :]
    return codes * ((codes > 0) & (codes < limit))


def with_dense(batch: Batch, *columns: Any) -> Batch:
    """Return the batch with arrays f32[B, n] appended to `dense`."""
    before = (batch["dense"],) if "dense" in batch else ()
    xp = columns[0].__array_namespace__()
    return batch | {"dense": xp.concatenate([*before, *columns], axis=1)}


def _without_category(batch: Batch) -> Batch:
    return {name: values for name, values in batch.items() if name != "category"}
