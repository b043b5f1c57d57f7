"""Laws: the arrays do what a plain Python loop does, alone, under jit and under vmap."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.training.stopping import StopState, init_stop, update_stop

metrics = st.lists(
    st.one_of(
        st.sampled_from([0.0, 0.5, 1.0, np.nan, np.inf, -np.inf]), st.floats(-2, 2, width=32, allow_subnormal=False)
    ),
    max_size=20,
)
directions = st.sampled_from(["max", "min"])


def plain(values, direction, patience, min_delta):
    """The oracle: (best, best_epoch, since, active) and the improvements, by a loop over Python numbers."""
    sign = 1.0 if direction == "max" else -1.0
    best, best_epoch, since, active, improvements = -np.inf, -1, 0, True, []
    for epoch, value in enumerate(values):
        better = active and sign * value > np.float32(best) + np.float32(min_delta)
        improvements.append(better)
        if better:
            best, best_epoch, since = sign * value, epoch, 0
        elif active:
            since += 1
        active = active and (patience is None or since < patience)
    return (sign * best, best_epoch, since, active), improvements


def run(update, state, values):
    improvements = []
    for epoch, value in enumerate(values):
        state, improved = update(state, value, np.int32(epoch))
        improvements.append(improved)
    return state, improvements


@settings(max_examples=50, deadline=None)
@given(metrics, directions, st.sampled_from([1, 2, 5, None]), st.sampled_from([0.0, 0.25]))
def test_host_equals_plain_loop(values, direction, patience, min_delta):
    update = partial(update_stop, direction=direction, patience=patience, min_delta=min_delta)
    state, improvements = run(update, init_stop(direction), [np.float32(value) for value in values])
    expected, expected_improvements = plain([np.float32(value) for value in values], direction, patience, min_delta)
    assert tuple(field.item() for field in state) == expected
    assert improvements == expected_improvements
    assert [field.dtype for field in state] == [np.float32, np.int32, np.int32, np.bool_]


@pytest.mark.parametrize("direction", ["max", "min"])
def test_jit_vmap_and_scan_equal_the_host(direction):
    values = np.array([[0.1, 0.3, np.nan, 0.2, 0.2, 0.9], [0.5, 0.4, 0.3, 0.2, 0.1, 0.0]], np.float32)
    update = partial(update_stop, direction=direction, patience=2, min_delta=0.05)

    def body(state, inputs):
        return update(state, *inputs)

    @jax.jit
    @jax.vmap
    def members(row):
        start = jax.tree.map(jnp.asarray, init_stop(direction))
        return jax.lax.scan(body, start, (row, jnp.arange(6, dtype=jnp.int32)))

    states, improvements = members(values)
    for i, row in enumerate(values):
        state, improved = run(update, init_stop(direction), list(row))
        assert jax.tree.map(lambda leaf, i=i: leaf[i].item(), states) == StopState(*(field.item() for field in state))
        assert improvements[i].tolist() == improved
    assert [leaf.dtype for leaf in states] == [jnp.float32, jnp.int32, jnp.int32, jnp.bool_]
