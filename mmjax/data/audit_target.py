"""A target of numbers whose tail rules what is learnt: a few large ones weigh more than all the others together."""

import numpy as np

from mmjax.data.audit_rows import Rows, finding, noun, place
from mmjax.data.prepared import Finding

FEWEST_ROWS = 100
LOGARITHM = "a column with its logarithm as the target"
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
    advice = f"such rows rule a squared error: try training.loss: huber, or {LOGARITHM}, and judge by mae too"
    return [finding("tails", what, 1, examples, advice)]


def sign_facts(values: np.ndarray, *, quantiles: bool) -> dict[str, str]:
    """Return which sign no target f64[N] has, `never`, and the `advice` for intervals that reach there; else nothing.

    `quantiles` says that the intervals are those already.
    """
    never = "negative" if (values >= 0).all() else "positive" if (values <= 0).all() else ""
    if not never or not values.any():
        return {}
    column = LOGARITHM if (values > 0).all() else "a column with the logarithm of 1 more as the target"
    column = column if never == "negative" else "a column with the logarithm of its negative as the target"
    return {"never": never, "advice": f"try {column}" if quantiles else f"try training.loss: pinball, or {column}"}


def skewness(values: np.ndarray) -> float:
    """Return the third standardised moment of values f64[N], not corrected for N; 0 where they are all one.

    >>> round(skewness(np.array([1.0, 2.0, 6.0])), 4)
    0.5952
    """
    centred = values - values.mean()
    spread = np.sqrt(np.mean(centred**2))
    return float(np.mean((centred / spread) ** 3)) if spread > 0 else 0.0
