"""The train step and the forward pass, as pure functions that `mmjax.backend` compiles.

Weights, data and row indices are arguments, never captured: one compilation serves a whole run.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmjax.models.base import Model
from mmjax.schema import Batch
from mmjax.training.state import TrainState
from mmjax.transforms.base import Transform


class Learner(NamedTuple):
    """The pure parts that a step is made of."""

    model: Model
    transform: Transform
    augment: Callable[[jax.Array, Batch], Batch] | None
    loss: Callable[[jax.Array, Any, Any], jax.Array]
    targets: Callable[[Any, Any], Any]
    """`(output state, labels) -> what the loss compares outputs with`."""
    optimizer: optax.GradientTransformation
    ema_decay: float | None
    accumulate_steps: int = 1
    """Batches of an update: the average moves when the weights do."""
    total_steps: int = 0
    """Batches of the whole run, for what changes over it; 0: nothing does."""
    epoch_steps: int = 0
    """Batches of an epoch, for an Augment that goes by `epoch`; 0: none does."""


class Totals(NamedTuple):
    """Sums over steps, on the device: the only metrics that are not finished on the host."""

    loss: jax.Array
    correct: jax.Array
    rows: jax.Array
    steps: jax.Array
    first_bad: jax.Array
    """i32[]: the first step of the run, counted from 1, whose loss was not finite; or -1."""


def empty_totals(shape: tuple[int, ...] = ()) -> Totals:
    """Return sums over no step, of one model or (`shape` [E]) of members: buffers of their own, for each is donated."""
    loss, correct, rows = (jnp.zeros(shape, jnp.float32) for _ in range(3))
    return Totals(loss, correct, rows, steps=jnp.zeros(shape, jnp.int32), first_bad=jnp.full(shape, -1, jnp.int32))


def make_train_step(learner: Learner, *, seed: int) -> Callable[..., tuple[TrainState, Totals]]:
    """Return `step(state, totals, batch, transform_state, output_state) -> (state, totals)` for one batch."""

    def step(state: TrainState, totals: Totals, batch: Batch, transform_state: Any, output_state: Any):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), state.member), state.step)
        augment_key, dropout_key = jax.random.split(key)
        if learner.epoch_steps:
            batch = {**batch, "epoch": jnp.full_like(batch["row"], state.step // learner.epoch_steps)}
        batch = learner.augment(augment_key, batch) if learner.augment else batch
        inputs = learner.transform.apply(transform_state, batch)

        def loss_fn(params: Any):
            variables = {"params": params, "batch_stats": state.batch_stats}
            done = state.step / learner.total_steps if learner.total_steps else None
            outputs, batch_stats = learner.model.apply(variables, inputs, train=True, key=dropout_key, progress=done)
            return _loss(learner, output_state, outputs, batch), (outputs, batch_stats)

        (loss, (outputs, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = learner.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = TrainState(
            step=state.step + 1,
            member=state.member,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=_average(learner, state, {"params": params, "batch_stats": batch_stats}),
        )
        return state, _add(totals, loss, outputs, batch, state.step)

    return step


def _loss(learner: Learner, output_state: Any, outputs: jax.Array, batch: Batch) -> jax.Array:
    """Return the loss; of mixed rows (`transforms.mix`) that against both answers, weighed by their parts.

    That is the loss of a soft target where the loss is linear in it, as cross-entropy is, and the form of the mixup
    paper where it is not (focal). Each row stands for two, so that the mean is over the same weights.
    """
    targets, weight = learner.targets(output_state, batch["label"]), batch.get("weight")
    if "mixed_label" not in batch:
        return learner.loss(outputs, targets, weight)
    others, share = learner.targets(output_state, batch["mixed_label"]), batch["mixed_share"]
    both = jnp.concatenate([weight * (1.0 - share), weight * share])
    return learner.loss(jnp.concatenate([outputs, outputs]), jnp.concatenate([targets, others]), both)


def _average(learner: Learner, state: TrainState, variables: Any) -> Any:
    """Return the moving average after the step; it moves once an update, however many batches make one."""
    if learner.ema_decay is None:
        return ()
    updates, batch = jnp.divmod(state.step, learner.accumulate_steps)
    # A short run would keep its initial weights: the decay grows from 0 as (1 + t) / (10 + t) (TensorFlow's rule).
    rate = jnp.minimum(learner.ema_decay, (1.0 + updates) / (10.0 + updates))
    rate = jnp.where(batch == learner.accumulate_steps - 1, rate, 1.0)
    return jax.tree.map(lambda old, new: rate * old + (1.0 - rate) * new, state.ema, variables)


def _add(totals: Totals, loss: jax.Array, outputs: jax.Array, batch: Batch, step: jax.Array) -> Totals:
    label = batch["label"]
    weight = batch.get("weight", jnp.ones(label.shape[:1], jnp.float32))
    if jnp.issubdtype(label.dtype, jnp.integer):
        right = _predicted(outputs) == label if label.ndim == 1 else (_held(outputs) == label).all(axis=-1)
        correct = jnp.sum(weight * right)
    else:
        correct = jnp.zeros((), jnp.float32)
    rows = jnp.sum(weight)
    bad = jnp.where((totals.first_bad < 0) & ~jnp.isfinite(loss), step, totals.first_bad)
    return Totals(totals.loss + loss * rows, totals.correct + correct, totals.rows + rows, totals.steps + 1, bad)


def _held(outputs: jax.Array) -> jax.Array:
    """Return i32[B, L], 1 for labels more probable than not, of logits `f32[B, L]`; of members by the mean."""
    likely = outputs > 0 if outputs.ndim == 2 else jax.nn.sigmoid(outputs).mean(axis=1) > 0.5
    return likely.astype(jnp.int32)


def _predicted(outputs: jax.Array) -> jax.Array:
    """Return the most probable classes i32[B] of logits `f32[B, K]`, or of one, `f32[B, 1]`; of members by the mean."""
    if outputs.ndim > 2:
        single = outputs.shape[-1] == 1
        outputs = (jax.nn.sigmoid(outputs) - 0.5 if single else jax.nn.softmax(outputs)).mean(axis=1)
    return outputs.argmax(axis=-1) if outputs.shape[-1] > 1 else (outputs[:, 0] > 0).astype(jnp.int32)


def make_train_chunk(learner: Learner, *, seed: int, loop: bool) -> Callable[..., tuple[TrainState, Totals]]:
    """Return `chunk(state, totals, data, transform_state, output_state, rows i32[S, B], start, count)`.

    It runs steps `start .. start + count` on the rows of resident `data` that `rows` names. With `loop` that is one
    program whose length is an argument, so chunks of any length share one compilation and give the same bits. Without
    it `count` must be 1: convolutions inside a loop are slow on CPU (XLA lays them out well only at the top level).
    """
    step = make_train_step(learner, seed=seed)

    def chunk(
        state: TrainState,
        totals: Totals,
        data: Batch,
        transform_state: Any,
        output_state: Any,
        rows: jax.Array,
        start: jax.Array,
        count: jax.Array,
    ) -> tuple[TrainState, Totals]:
        def body(index: jax.Array, carry: tuple[TrainState, Totals]) -> tuple[TrainState, Totals]:
            chosen = rows[index]
            batch = {name: values[chosen] for name, values in data.items()}
            return step(*carry, batch, transform_state, output_state)

        if not loop:
            return body(start, (state, totals))
        return jax.lax.fori_loop(start, start + count, body, (state, totals))

    return chunk
