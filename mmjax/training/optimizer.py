"""Optimizers and learning-rate schedules, as optax's pairs of pure functions over arrays."""

from typing import Any, assert_never

import jax
import jax.numpy as jnp
import optax
from msgspec import UNSET
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from mmjax.config import OptimizerName, Training
from mmjax.models.base import Rates
from mmjax.models.layers import flat_cos

MUON_RMS = 0.2
"""Root mean square of a muon update, as AdamW's is in practice, so that both take the same learning rate and decay.

Liu et al. 2025 (arXiv 2502.16982), section 2.2."""
FLAT_LIMIT = 20_000
"""Parameters up to which the update works on one flat vector: fewer small operations for a small network.

Beyond, XLA recomputes dropout's random bits inside the concatenation of gradients: a 512-512 network with dropout ran
at 5,300 rows/s flat and at 42,000 leaf by leaf (two cores, jaxlib 0.12)."""


def make_optimizer(
    training: Training, *, total_steps: int, params: Any, rates: Rates | None = None, flat_limit: int = FLAT_LIMIT
) -> optax.GradientTransformation:
    """Return the configured optimizer for `params` (arrays or shapes); `total_steps` as in `make_schedule`.

    Gradients are averaged over `accumulate_steps` batches, clipped to the global norm, and turned into a direction.
    Then comes decay, rate * decay * weight for every optimizer (decoupled: `adam` with decay is `adamw`), where
    `decayed` or the Rates of the model say, and the learning rate. The state holds arrays only.
    """
    name = training.optimizer
    assert name is not UNSET
    norm = training.gradient_clip_norm
    clip = [optax.clip_by_global_norm(norm)] if isinstance(norm, float) else []
    direction = optax.chain(*clip, _direction(name, training))
    if name != "muon" and sum(leaf.size for leaf in jax.tree.leaves(params)) <= flat_limit:
        direction = optax.flatten(direction)
    optimizer = optax.chain(
        direction,
        *_decay(training, total_steps, params, rates),
        optax.scale_by_learning_rate(make_schedule(training, total_steps=total_steps)),
    )
    if training.accumulate_steps == 1:
        return optimizer
    return optax.MultiSteps(optimizer, training.accumulate_steps).gradient_transformation()


def _decay(
    training: Training, total_steps: int, params: Any, rates: Rates | None
) -> list[optax.GradientTransformation]:
    """Return what adds decay to a direction, and multiplies both by the factors of `rates`; nothing for no decay."""
    decay, schedule = training.weight_decay, training.decay_schedule
    assert decay is not UNSET
    if rates is None and schedule != "flat_cos":
        return [optax.add_decayed_weights(decay, decayed(params))] if decay else []
    factors = rates or Rates(jax.tree.map(lambda leaf: 1.0, params), jax.tree.map(float, decayed(params)))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        now = decay * flat_cos(state / total_steps) if schedule == "flat_cos" else decay

        def move(update: jax.Array, value: jax.Array, rate: float, share: float) -> jax.Array:
            return rate * (update + now * share * value)

        return jax.tree.map(move, updates, params, factors.learning_rate, factors.decay), state + 1

    return [optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)]


def _direction(name: OptimizerName, training: Training) -> optax.GradientTransformation:
    momentum = training.momentum
    match name:
        case "sgd":
            return optax.trace(momentum, nesterov=True)
        case "adam" | "adamw":
            return optax.scale_by_adam(b2=0.999 if training.adam_b2 is UNSET else training.adam_b2)
        case "lion":
            return optax.scale_by_lion()
        case "muon":
            muon = scale_by_muon(beta=momentum, weight_dimension_numbers=muon_dimensions)
            return optax.partition(
                {"muon": optax.chain(muon, _muon_scale()), "adam": optax.scale_by_adam()}, _muon_labels
            )
        case _:
            assert_never(name)


def decayed(params: Any) -> Any:
    """Return a tree of bools like `params`: False for norms, biases and every other vector or number."""
    return jax.tree.map_with_path(lambda path, leaf: leaf.ndim > 1 and _name(path) not in ("bias", "scale"), params)


def muon_dimensions(params: Any) -> Any:
    """Return a tree like `params`: how muon sees a leaf as a matrix, or None where Adam takes it.

    Muon takes dense and convolution kernels (HWIO: inputs are H, W and I), but no depthwise ones and no head.
    """

    def of_leaf(path: Any, leaf: Any) -> MuonDimensionNumbers | None:
        if _name(path) != "kernel" or any(_is_head(key) for key in path):
            return None
        if leaf.ndim == 2:
            return MuonDimensionNumbers(0, 1)
        return MuonDimensionNumbers((0, 1, 2), 3) if leaf.ndim == 4 and leaf.shape[2] > 1 else None

    return jax.tree.map_with_path(of_leaf, params)


def _is_head(key: Any) -> bool:
    name = str(getattr(key, "key", key))
    return name == "head" or name.endswith("_head")


def _muon_labels(params: Any) -> Any:
    dimensions = muon_dimensions(params)
    return jax.tree.map(lambda _, found: "adam" if found is None else "muon", params, dimensions)


def _muon_scale() -> optax.GradientTransformation:
    """Return the scaling of orthogonal matrices to a root mean square of MUON_RMS."""

    def scale(leaf: Any, _: Any) -> jax.Array:
        fan_in, fan_out = leaf.size // leaf.shape[-1], leaf.shape[-1]
        return leaf * (MUON_RMS * max(fan_in, fan_out) ** 0.5)

    return optax.stateless_with_tree_map(scale)


def _name(path: Any) -> str:
    return str(getattr(path[-1], "key", path[-1])) if path else ""


def make_schedule(training: Training, *, total_steps: int) -> optax.Schedule:
    """Return `schedule(count of updates) -> learning rate`; it peaks at `training.learning_rate`.

    `total_steps` are optimizer updates: with accumulation, fewer than batches. Past them the last value stays.
    constant; cosine: to 0; warmup_cosine: linear up over `warmup_fraction`, then cosine to 0; one_cycle: from 1/25 up
    and down to 1/250,000 by cosines (arXiv 1708.07120, PyTorch's factors); step: `step_factor` at each `step_every`;
    coslog4: four cosine waves from 0 up and back, each about twice as long as the one before (arXiv 2407.04491).
    """
    peak, name = training.learning_rate, training.schedule
    assert peak is not UNSET
    assert name is not UNSET
    warm_steps = min(round(training.warmup_fraction * total_steps), total_steps - 1)
    drop_steps = max(1, round(training.step_every * total_steps))

    def factor(count: Any) -> Any:
        count = jnp.minimum(count, total_steps)
        rise = count / max(warm_steps, 1)
        fall = (count - warm_steps) / max(total_steps - warm_steps, 1)
        match name:
            case "constant":
                return jnp.ones_like(count, jnp.float32)
            case "cosine":
                return _cosine(1.0, 0.0, count / total_steps)
            case "warmup_cosine":
                # The first of the rising steps is not wasted on a rate of 0.
                return jnp.where(count < warm_steps, (count + 1) / (warm_steps + 1), _cosine(1.0, 0.0, fall))
            case "one_cycle":
                return jnp.where(count < warm_steps, _cosine(1 / 25, 1.0, rise), _cosine(1.0, 1 / 250_000, fall))
            case "coslog4":
                return 0.5 * (1.0 - jnp.cos(2.0 * jnp.pi * jnp.log2(1.0 + 15.0 * count / total_steps)))
            case "step":
                return training.step_factor ** (count // drop_steps).astype(jnp.float32)
            case _:
                assert_never(name)

    return lambda count: peak * factor(count)


def _cosine(start: float, end: float, share: Any) -> Any:
    """Return the value after `share` in [0, 1] of a half cosine from `start` to `end`."""
    return end + (start - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * share))
