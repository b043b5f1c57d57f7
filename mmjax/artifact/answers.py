"""Answers: what a model said of test rows, one by one, so that another model can be compared with it on the same rows.

They lie beside a bundle's other files, outside the content digest; a bundle from before there were any has none. Names
of rows are kept as hashes.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from mmjax.artifact.tree import load_arrays, save_arrays
from mmjax.errors import BundleError

ANSWERS = "answers.npz"
MOST_NUMBERS = 1_000_000
"""Probabilities kept in all: of 1000 classes those of a thousand rows."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Answers(NamedTuple):
    """What a model said of N rows, and what is true of them; on the host."""

    row: np.ndarray
    """u64[N]: which row, by a hash of its name."""
    label: np.ndarray
    """i64[N] class index, i64[N, L] 1 where a label holds, or f64[N, T]."""
    prediction: np.ndarray
    """As `label`."""
    probabilities: np.ndarray | None
    """f32[N, K] for classification, f32[N, L] for labels."""
    weight: np.ndarray | None
    """f64[N], where rows are weighted."""
    total: int
    """Rows of the split; N of them are kept."""


def of_labels(answers: Answers) -> bool:
    """Return whether these are Answers of a model of several labels."""
    return answers.probabilities is not None and answers.label.ndim == 2


def row_ids(names: np.ndarray) -> np.ndarray:
    """Return u64[N]: a hash of each name; whole numbers (lines of a file) never share one.

    The hash of a number is the output function of SplitMix64 (Steele et al. 2014), a bijection.
    """
    if names.dtype.kind in "iu":
        mixed = (names.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
    hashes = (hashlib.blake2b(str(name).encode("utf-8", "surrogatepass"), digest_size=8) for name in names)
    return np.frombuffer(b"".join(found.digest() for found in hashes), "<u8").astype(np.uint64)


def take_answers(answers: Answers, rows: np.ndarray) -> Answers:
    """Return the Answers of some rows, by index or mask; `total` stays."""
    arrays = {name: values for name, values in answers._asdict().items() if name != "total" and values is not None}
    return answers._replace(**{name: values[rows] for name, values in arrays.items()})


def kept_answers(answers: Answers, most: int) -> Answers | None:
    """Return at most `most` of the Answers, in the order of their hashes; None where none are to be kept.

    Those with the smallest hashes are kept: of the same test rows every model keeps the same.
    """
    if answers.probabilities is not None:
        most = min(most, MOST_NUMBERS // answers.probabilities.shape[1])
    order = np.argsort(answers.row, kind="stable")[:most]
    return take_answers(answers, order) if len(order) else None


def answers_to_bytes(answers: Answers) -> bytes:
    """Return the bytes of `answers.npz`; the same Answers give the same bytes."""
    arrays = answers._replace(total=np.int64(answers.total))._asdict()
    return save_arrays({name: np.asarray(values) for name, values in arrays.items() if values is not None})


def answers_from_bytes(data: bytes, where: str) -> Answers:
    """Return the Answers in `answers.npz`; BundleError naming `where` when they are damaged."""
    arrays = load_arrays(data, where)
    needed = {"row", "label", "prediction", "total"}
    if not needed <= arrays.keys() <= set(Answers._fields):
        raise BundleError(f"{where}: expected {', '.join(Answers._fields)}, got {', '.join(arrays)}; restore it")
    found = {name: arrays.get(name) for name in Answers._fields} | {"total": int(arrays["total"])}
    lengths = {len(values) for name, values in arrays.items() if name != "total"}
    if len(lengths) > 1:
        raise BundleError(f"{where}: expected arrays of one length, got {sorted(lengths)}; restore it or retrain")
    return Answers(**found)  # pyright: ignore[reportArgumentType]


def same_rows(a: Answers, b: Answers) -> str:
    """Return why two kept Answers are not of the same rows with the same labels; an empty string when they are."""
    if (a.probabilities is None) != (b.probabilities is None) or a.label.ndim != b.label.ndim:
        kinds = [
            "numbers" if one.probabilities is None else "labels" if of_labels(one) else "classes" for one in (a, b)
        ]
        return f"one predicts {kinds[0]}, the other {kinds[1]}"
    if a.total != b.total or not np.array_equal(a.row, b.row):
        shared = len(np.intersect1d(a.row, b.row))
        return f"the test rows differ ({a.total:,} and {b.total:,} rows; {shared:,} of those kept are shared)"
    # Numbers lose the Target's offset in f32; after other training rows it is another, and they round otherwise.
    rounding = 0.0 if a.probabilities is not None else 1e-6 * float(np.ptp(a.label))
    if a.label.shape != b.label.shape or not np.allclose(a.label, b.label, rtol=0.0, atol=rounding):
        return "the test rows have the same names but other labels"
    if (a.weight is None) != (b.weight is None) or (a.weight is not None and not np.array_equal(a.weight, b.weight)):
        return "the test rows have other weights"
    return ""
