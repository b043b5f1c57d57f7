"""A target of numbers whose tail rules what is learnt: a few large ones weigh more than all the others together."""

import numpy as np

from mmjax.data.audit_rows import Rows, finding, noun, place
from mmjax.data.prepared import Finding

FEWEST_ROWS = 100
SKEWED = 3.0
"""Skewness from which a tail is heavy; that of an exponential distribution is 2, of a normal one 0."""
STRAIGHTENED = 0.5
"""Share of its skewness, at most, that is left of the logarithm where that is worth a try."""


def target_findings(rows: Rows) -> list[Finding]:
    """Return that a target of positive numbers has a heavy tail, which its logarithm has not, and what to try."""
    target, train = rows.schema.target, rows.split.train
    if target.task != "regression" or len(train) < FEWEST_ROWS:
        return []
    values = np.asarray(rows.batch["label"])[train, 0] + np.float64(target.offset)
    if not (values > 0).all():
        return []
    plain, logged = skewness(values), skewness(np.log(values))
    if plain < SKEWED or abs(logged) > STRAIGHTENED * plain:
        return []
    share = np.sort(values)[-max(1, len(values) // 100) :].sum() / values.sum()
    what = (
        f"target '{target.column}' has a heavy tail: skewness {plain:.1f} over {len(values):,} train {noun(rows)}s, "
        f"{logged:.1f} of its logarithm; the largest hundredth holds {share:.0%} of its sum"
    )
    largest = train[np.argsort(-values, kind="stable")[:3]]
    examples = [place(rows, row) for row in largest]
    advice = (
        "such rows rule a squared error: try training.loss: huber, or a column with its logarithm as the target, and "
        "judge by mae too"
    )
    return [finding("tails", what, 1, examples, advice)]


def skewness(values: np.ndarray) -> float:
    """Return the third standardised moment of values f64[N], not corrected for N; 0 where they are all one.

    >>> round(skewness(np.array([1.0, 2.0, 6.0])), 4)
    0.5952
    """
    centred = values - values.mean()
    spread = np.sqrt(np.mean(centred**2))
    return float(np.mean((centred / spread) ** 3)) if spread > 0 else 0.0
