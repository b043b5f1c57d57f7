"""The train step: chunks of any length give the same bits, members differ, the average follows, bad losses named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.data.pipeline import epoch_batches
from mmjax.training.state import eval_variables
from mmjax.training.steps import empty_totals, make_train_chunk, make_train_step
from tests.learning import make_learner, make_state, rows

BATCH = 8


def run(learner, state, data, cuts: list[int], *, loop: bool):
    """Run one epoch cut into chunks of these lengths."""
    chunk = jax.jit(make_train_chunk(learner, seed=3, loop=loop))
    order = jnp.asarray(epoch_batches(3, 1, len(data["label"]), BATCH))
    totals, start = empty_totals(), 0
    for count in cuts:
        state, totals = chunk(state, totals, data, (), {}, order, start, count)
        start += count
    return state, totals


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("cuts", [[4, 4], [1, 7], [1] * 8])
def test_chunks_of_any_length_give_the_same_bits(getkey, cuts: list[int]) -> None:
    learner, data = make_learner(optax.adamw(1e-2), ema_decay=0.9), rows()
    state = make_state(learner, data, getkey())
    whole = run(learner, state, data, [8], loop=True)
    parts = run(learner, state, data, cuts, loop=True)
    assert all(np.array_equal(a, b) for a, b in zip(leaves(whole), leaves(parts), strict=True))


def test_single_steps_give_the_bits_of_the_loop(getkey) -> None:
    learner, data = make_learner(optax.adamw(1e-2)), rows()
    state = make_state(learner, data, getkey())
    looped, stepped = run(learner, state, data, [8], loop=True), run(learner, state, data, [1] * 8, loop=False)
    assert all(np.array_equal(a, b) for a, b in zip(leaves(looped), leaves(stepped), strict=True))


def test_totals_are_sums_over_rows(getkey) -> None:
    learner, data = make_learner(optax.sgd(0.0), dropout=0.0), rows()
    state = make_state(learner, data, getkey())
    after, totals = run(learner, state, data, [8], loop=True)
    outputs, _ = learner.model.apply(eval_variables(state), data, train=False)
    labels = data["label"]
    log_probabilities = np.asarray(jax.nn.log_softmax(outputs), np.float64)
    assert float(totals.loss) / 64 == pytest.approx(-log_probabilities[np.arange(64), labels].mean(), rel=1e-5)
    assert float(totals.correct) == (np.asarray(outputs).argmax(1) == labels).sum()
    assert (int(totals.rows), int(totals.steps), int(after.step)) == (64, 8, 8)


def test_members_draw_different_masks(getkey) -> None:
    learner, data = make_learner(optax.sgd(0.1), dropout=0.5), rows(BATCH)
    key = getkey()
    ends = []
    for member in (0, 1):
        step = jax.jit(make_train_step(learner, seed=0))
        state, _ = step(make_state(learner, data, key, member=member), empty_totals(), data, (), {})
        ends.append(np.concatenate([leaf.ravel() for leaf in leaves(state.params)]))
    assert not np.array_equal(*ends)


def test_the_average_starts_at_the_weights_and_follows_them(getkey) -> None:
    learner, data = make_learner(optax.sgd(0.5), dropout=0.0, ema_decay=0.99), rows(BATCH)
    state = make_state(learner, data, getkey())
    start, step = state.params, jax.jit(make_train_step(learner, seed=0))
    after, _ = step(state, empty_totals(), data, (), {})
    rate = min(0.99, 1 / 10)
    for old, new, mean in zip(leaves(start), leaves(after.params), leaves(after.ema["params"]), strict=True):
        np.testing.assert_allclose(mean, rate * old + (1 - rate) * new, rtol=1e-6, atol=1e-7)
    assert eval_variables(after) is after.ema


def test_the_first_bad_step_is_named(getkey) -> None:
    learner, data = make_learner(optax.sgd(0.1)), rows()
    order = epoch_batches(3, 1, 64, BATCH)
    data["numeric"][order[5, 0]] = np.nan
    _, totals = run(learner, make_state(learner, data, getkey()), data, [8], loop=True)
    assert int(totals.first_bad) == 6  # counted from 1


def test_rows_of_weight_zero_change_nothing(getkey) -> None:
    learner, data = make_learner(optax.sgd(0.1), dropout=0.0), rows(BATCH)
    state, step = make_state(learner, data, getkey()), jax.jit(make_train_step(learner, seed=0))
    weight = np.ones(BATCH, np.float32)
    weight[3:] = 0.0
    changed = {**data, "weight": weight, "label": np.where(weight > 0, data["label"], 1 - data["label"])}
    one, first = step(state, empty_totals(), {**data, "weight": weight}, (), {})
    two, second = step(state, empty_totals(), changed, (), {})
    assert all(np.array_equal(a, b) for a, b in zip(leaves(one.params), leaves(two.params), strict=True))
    assert float(first.loss) == float(second.loss)


def test_the_average_moves_once_an_update(getkey) -> None:
    """Two batches an update: the average of weights is what one batch an update gives at the same weights."""
    learner = make_learner(optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(), dropout=0.0, ema_decay=0.5)
    learner = learner._replace(accumulate_steps=2)
    data = rows(16)
    state, expected = make_state(learner, data, getkey()), None
    step = jax.jit(make_train_step(learner, seed=0))
    totals = empty_totals()
    for index in range(6):
        before = state
        state, totals = step(state, totals, {n: v[:8] for n, v in data.items()}, (), {})
        new = np.asarray(state.params["head"]["kernel"])
        old_average, average = (np.asarray(s.ema["params"]["head"]["kernel"]) for s in (before, state))
        updates = index // 2
        rate = min(0.5, (1 + updates) / (10 + updates)) if index % 2 else 1.0
        expected = rate * old_average + (1 - rate) * new
        assert np.allclose(average, expected, atol=1e-7)
        assert np.array_equal(new, np.asarray(before.params["head"]["kernel"])) == (index % 2 == 0)
