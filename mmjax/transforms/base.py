"""Transform: a pair of pure functions, the shape that optax gave optimizers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mmjax.schema import Batch

State = Any
"""A pytree of arrays."""


class Transform(NamedTuple):
    """`fit(train Batch on the host) -> state` once; `apply(state, Batch) -> Batch`, pure and traceable, everywhere.

    `apply` never changes its argument and never depends on other rows of the batch (padding rows change nothing).
    """

    fit: Callable[[Batch], State]
    apply: Callable[[State, Batch], Batch]


def stack_states(states: Sequence[State]) -> State:
    """Return states of one Transform, fitted on different rows, as one with a leading axis.

    Arrays that differ in length (codes of numbers: one column may have more distinct edges in some rows than in others)
    are filled up with zeros, which stand for codes that are 0 everywhere.
    """
    return jax.tree.map(_stack, *states)


def _stack(*leaves: Any) -> np.ndarray:
    arrays = [np.asarray(leaf) for leaf in leaves]
    longest = max((len(a) for a in arrays if a.ndim), default=0)
    padded = [np.pad(a, [(0, longest - len(a))] + [(0, 0)] * (a.ndim - 1)) if a.ndim else a for a in arrays]
    return np.stack(padded)


def identity() -> Transform:
    """Return the Transform that changes nothing."""
    return Transform(fit=lambda batch: (), apply=lambda state, batch: batch)


def chain(*transforms: Transform) -> Transform:
    """Return the Transforms as one, applied left to right; each is fitted on what those before it make.

    The state is the tuple of states.
    """

    def fit(batch: Batch) -> State:
        states = []
        for transform in transforms:
            if states:
                batch = transforms[len(states) - 1].apply(states[-1], batch)
            states.append(transform.fit(batch))
        return tuple(states)

    def apply(state: State, batch: Batch) -> Batch:
        for transform, own in zip(transforms, state, strict=True):
            batch = transform.apply(own, batch)
        return batch

    return Transform(fit, apply)
