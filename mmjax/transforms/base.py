"""Transform: a pair of pure functions, the shape that optax gave optimizers."""

from collections.abc import Callable
from typing import Any, NamedTuple

from mmjax.schema import Batch

State = Any
"""A pytree of arrays."""


class Transform(NamedTuple):
    """`fit(train Batch on the host) -> state` once; `apply(state, Batch) -> Batch`, pure and traceable, everywhere.

    `apply` never changes its argument and never depends on other rows of the batch (padding rows change nothing).
    """

    fit: Callable[[Batch], State]
    apply: Callable[[State, Batch], Batch]


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
