"""What training changes: TrainState, as arrays only, and the host's part beside it, Position."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.training.stopping import StopState


class TrainState(NamedTuple):
    """Arrays only: no functions, no key. A leading axis over all of it makes members, folds, seeds or trials.

    Randomness is `fold_in(fold_in(key(seed), member), step)`, so a resumed run needs no saved key, and members under
    vmap draw different masks.
    """

    step: jax.Array
    """i32[]: batches seen."""
    member: jax.Array
    """i32[]: index along a leading axis, 0 for a single model."""
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    """Moving average of params and batch_stats, or `()` when there is none."""


def init_state(variables: dict[str, Any], opt_state: Any, *, ema: bool, member: int = 0) -> TrainState:
    """Return the state before the first step. The average starts as a copy of the initial weights."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        member=jnp.asarray(member, jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if ema else (),
    )


def eval_variables(state: TrainState) -> dict[str, Any]:
    """Return the variables to evaluate and keep: the moving average when there is one."""
    return state.ema or {"params": state.params, "batch_stats": state.batch_stats}


def on_host(tree: Any) -> Any:
    """Return the arrays of a tree as NumPy copies: a mere view would keep the buffer from being donated.

    All leave the device at once, not one after the other.
    """
    return jax.tree.map(lambda leaf: np.array(leaf), jax.device_get(tree))


class Position(NamedTuple):
    """Where a run stands, in plain values: with the arrays, all that a resumed run needs."""

    epoch: int
    """1-based: the epoch under way."""
    batch: int
    """Batches of it that are done; the order of rows follows from seed and epoch."""
    history: tuple[dict[str, float], ...]
    """Metrics of each epoch that is done."""
    best_epoch: int
    """0 before the first epoch is done."""
    stop: StopState
    over: bool
    """True when nothing is left to train."""
