"""Early stopping as a pure function of arrays: one model is the plain case, `vmap` gives members, folds and trials."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Direction = Literal["max", "min"]


Scalar = Any
"""A NumPy or a JAX number: NumPy computes on the host, which needs no compilation, JAX where it is traced."""


class StopState(NamedTuple):
    """What early stopping remembers."""

    best: Scalar
    """f32[]: the best value so far; -inf or inf before the first."""
    best_epoch: Scalar
    """i32[]: when it was reached, -1 before the first."""
    since: Scalar
    """i32[]: epochs since then without improvement."""
    active: Scalar
    """bool[]: training goes on."""


def init_stop(direction: Direction, members: int | None = None) -> StopState:
    """Return the state before the first epoch, on the host: of one model, or arrays [E] of so many members."""
    state = StopState(
        best=np.float32(-np.inf if direction == "max" else np.inf),
        best_epoch=np.int32(-1),
        since=np.int32(0),
        active=np.bool_(True),
    )
    return state if members is None else StopState(*(np.full(members, value) for value in state))


def update_stop(
    state: StopState,
    metric: Scalar,
    epoch: Scalar,
    *,
    direction: Direction,
    patience: int | None,
    min_delta: float = 0.0,
) -> tuple[StopState, Scalar]:
    """Return (state, improved bool[]) after `metric f32[]` of `epoch i32[]`.

    An improvement beats the best by more than `min_delta`; NaN never does. After `patience` epochs without one the
    state is inactive, and then nothing changes it any more; None is endless patience.
    """
    xp = jnp if any(isinstance(each, jax.Array) for each in (metric, *state)) else np
    beats = metric > state.best + min_delta if direction == "max" else metric < state.best - min_delta
    improved = state.active & beats
    since = xp.where(improved, 0, state.since + state.active)
    patient = True if patience is None else since < patience
    return StopState(
        best=xp.where(improved, metric, state.best),
        best_epoch=xp.where(improved, epoch, state.best_epoch),
        since=since,
        active=state.active & patient,
    ), improved
