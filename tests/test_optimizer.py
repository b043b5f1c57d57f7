"""One battery for every optimizer, oracles from optax for updates and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.config import Training
from mmjax.training.optimizer import decayed, make_optimizer, make_schedule, muon_dimensions

OPTIMIZERS = ("sgd", "adam", "adamw", "lion", "muon")
SCHEDULES = ("constant", "cosine", "warmup_cosine", "one_cycle", "step")
RATES = {"sgd": 0.03, "adam": 0.1, "adamw": 0.1, "lion": 0.05, "muon": 0.3}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)

random = np.random.default_rng(0)
PARAMS = {
    "hidden": {"kernel": random.normal(size=(4, 3)), "bias": random.normal(size=3)},
    "norm": {"scale": np.ones(3), "bias": np.zeros(3)},
    "conv": {"kernel": random.normal(size=(2, 2, 3, 2))},
    "head": {"kernel": random.normal(size=(3, 2)), "bias": np.zeros(2)},
}
PARAMS = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PARAMS)
SMALL = {"hidden": PARAMS["hidden"]}
GRADS = [
    jax.tree.map(
        lambda leaf, seed=seed: jnp.asarray(np.random.default_rng(seed).normal(size=leaf.shape), jnp.float32), PARAMS
    )
    for seed in range(4)
]


def training(optimizer="adamw", **changes):
    settings = {"learning_rate": RATES[optimizer], "weight_decay": 0.0, "schedule": "constant"}
    return Training(optimizer=optimizer, **(settings | changes))


def run(transformation, grads, params=PARAMS):
    """Params after one update for each gradient, and the last state, in one compilation."""

    @jax.jit
    def all_steps(params, grads):
        def step(carry, gradient):
            params, state = carry
            updates, state = transformation.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry, _ = jax.lax.scan(step, (params, transformation.init(params)), grads)
        return carry

    return all_steps(params, jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads))


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def assert_trees_close(one, other, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **({"rtol": 1e-6, "atol": 1e-7} | tolerance)), one, other
    )


@every_optimizer
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_converges_on_a_parabola(name, schedule):
    settings = training(name, schedule=schedule, step_factor=0.5)
    optimizer = make_optimizer(settings, total_steps=300, params=SMALL)
    loss = lambda params: sum(jnp.sum(jnp.square(leaf - 0.5)) for leaf in jax.tree.leaves(params))  # noqa: E731

    @jax.jit
    def descend(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        carry, _ = jax.lax.scan(step, (params, optimizer.init(params)), length=300)
        return carry[0]

    assert loss(descend(SMALL)) < 0.01 * loss(SMALL)


@every_optimizer
def test_state_is_stable_arrays_and_jit_equals_eager(name):
    changed = training(name, weight_decay=0.1, gradient_clip_norm=1.0, schedule="warmup_cosine")
    optimizer = make_optimizer(changed, total_steps=10, params=SMALL)
    state = optimizer.init(SMALL)
    updates, after = optimizer.update({"hidden": GRADS[0]["hidden"]}, state, SMALL)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert shapes(state) == shapes(after)
    assert shapes(updates) == shapes(SMALL)
    jitted, _ = jax.jit(optimizer.update)({"hidden": GRADS[0]["hidden"]}, state, SMALL)
    # muon's Newton-Schulz steps amplify the rounding of fused operations
    assert_trees_close(updates, jitted, **({"rtol": 1e-5, "atol": 1e-5} if name == "muon" else {}))


@every_optimizer
def test_decay_shrinks_kernels_only(name):
    plain, decaying = (
        make_optimizer(training(name, weight_decay=decay), total_steps=10, params=PARAMS) for decay in (0.0, 0.1)
    )
    without, _ = run(plain, GRADS[:1])
    with_decay, _ = run(decaying, GRADS[:1])
    factor = jax.tree.map(lambda leaf, decays: RATES[name] * 0.1 * leaf * decays, PARAMS, decayed(PARAMS))
    assert_trees_close(jax.tree.map(jnp.subtract, without, factor), with_decay, atol=2e-6)
    kernels = {"kernel": True, "bias": False}
    assert decayed(PARAMS) == {
        "hidden": kernels,
        "norm": {"scale": False, "bias": False},
        "conv": {"kernel": True},
        "head": kernels,
    }


@every_optimizer
def test_accumulated_batches_equal_one_large_batch(name):
    changes = {"weight_decay": 0.1, "gradient_clip_norm": 0.5, "schedule": "cosine"}
    accumulating = make_optimizer(training(name, accumulate_steps=2, **changes), total_steps=4, params=PARAMS)
    plain = make_optimizer(training(name, **changes), total_steps=4, params=PARAMS)
    means = [jax.tree.map(lambda a, b: (a + b) / 2, *GRADS[i : i + 2]) for i in (0, 2)]
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if name == "muon" else {"atol": 1e-6}
    unfinished = [*GRADS, GRADS[0]]  # the fifth batch waits for a sixth
    assert_trees_close(run(accumulating, unfinished)[0], run(plain, means)[0], **tolerance)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("flat_limit", [0, 10**9])
def test_clipping_bounds_the_global_norm(name, flat_limit):
    large = [jax.tree.map(lambda leaf: 1e3 * leaf, each) for each in GRADS]
    clipped = make_optimizer(
        training(name, gradient_clip_norm=0.5), total_steps=10, params=PARAMS, flat_limit=flat_limit
    )
    expected = [jax.tree.map(lambda leaf, each=each: leaf * 0.5 / optax.tree.norm(each), each) for each in large]
    unclipped = make_optimizer(training(name), total_steps=10, params=PARAMS)
    assert_trees_close(run(clipped, large)[0], run(unclipped, expected)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("flat_limit", [0, 10**9], ids=["tree", "flat"])
@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("sgd", lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True)),
        ("adam", lambda rate: optax.adam(rate)),
        ("adamw", lambda rate: optax.adamw(rate, weight_decay=0.1, mask=decayed)),
        ("lion", lambda rate: optax.lion(rate, weight_decay=0.1, mask=decayed)),
    ],
)
def test_equal_to_optax_flat_or_not(name, oracle, flat_limit):
    decay = 0.1 if name in ("adamw", "lion") else 0.0
    ours = make_optimizer(
        training(name, weight_decay=decay, schedule="cosine"), total_steps=6, params=PARAMS, flat_limit=flat_limit
    )
    theirs = oracle(optax.cosine_decay_schedule(RATES[name], 6))
    assert_trees_close(run(ours, GRADS)[0], run(theirs, GRADS)[0], atol=1e-6)
    states = jax.tree.leaves(ours.init(PARAMS))
    assert max(leaf.ndim for leaf in states) == (1 if flat_limit else 4)


def test_muon_takes_kernels_and_leaves_the_rest_to_adam():
    tree = PARAMS | {"embedding": jnp.ones((5, 2)), "depthwise": {"kernel": jnp.ones((3, 3, 1, 4))}}
    tree |= {"images_head": {"kernel": jnp.ones((4, 2))}}
    found = muon_dimensions(tree)
    assert found["hidden"]["kernel"] == (0, 1)
    assert found["conv"]["kernel"] == ((0, 1, 2), 3)
    rest = [found["hidden"]["bias"], found["norm"]["scale"], found["embedding"], found["depthwise"]["kernel"]]
    assert [*rest, found["head"]["kernel"], found["images_head"]["kernel"]] == [None] * 6
    ours, theirs = (
        make_optimizer(training(name, learning_rate=0.1), total_steps=6, params=tree) for name in ("muon", "adam")
    )
    grads = jax.tree.map(lambda leaf: jnp.asarray(np.random.default_rng(1).normal(size=leaf.shape), jnp.float32), tree)
    after, adam = run(ours, [grads], tree)[0], run(theirs, [grads], tree)[0]
    for path in (("hidden", "bias"), ("head", "kernel"), ("depthwise", "kernel")):
        np.testing.assert_allclose(after[path[0]][path[1]], adam[path[0]][path[1]], rtol=1e-6)
    assert np.abs(after["hidden"]["kernel"] - adam["hidden"]["kernel"]).max() > 0.01


def test_muon_equals_optax_with_consistent_rms():
    tree = {"kernel": PARAMS["hidden"]["kernel"], "conv": PARAMS["conv"]}
    grads = [{"kernel": each["hidden"]["kernel"], "conv": each["conv"]} for each in GRADS]
    ours = make_optimizer(training("muon", weight_decay=0.1), total_steps=6, params=tree)
    theirs = optax.contrib.muon(
        learning_rate=RATES["muon"],
        beta=0.9,
        weight_decay=0.1,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=muon_dimensions,
    )
    assert_trees_close(run(ours, grads, tree)[0], run(theirs, grads, tree)[0], rtol=1e-5, atol=1e-5)


def test_members_under_vmap_are_as_if_alone():
    optimizer = make_optimizer(training("adamw", weight_decay=0.1, gradient_clip_norm=0.5), total_steps=6, params=SMALL)
    members = jax.tree.map(lambda *leaves: jnp.stack(leaves), *({"hidden": each["hidden"]} for each in GRADS))
    states = jax.vmap(optimizer.init)(members)
    together, _ = jax.jit(jax.vmap(optimizer.update))(members, states, members)
    alone, _ = jax.jit(optimizer.update)(*jax.tree.map(lambda leaf: leaf[2], (members, states, members)))
    assert_trees_close(jax.tree.map(lambda leaf: leaf[2], together), alone)


def rates(total, **changes):
    schedule = make_schedule(training("sgd", learning_rate=2.0, **changes), total_steps=total)
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(total + 3)))


def test_schedules():
    t = np.arange(13)
    np.testing.assert_allclose(rates(10, schedule="constant"), 2.0)
    expected = [optax.cosine_decay_schedule(2.0, 10)(i) for i in t]
    np.testing.assert_allclose(rates(10, schedule="cosine"), expected, atol=1e-6)
    warm = rates(10, schedule="warmup_cosine", warmup_fraction=0.3)
    np.testing.assert_allclose(warm[:4], [0.5, 1.0, 1.5, 2.0])
    np.testing.assert_allclose(warm[3:], [optax.cosine_decay_schedule(2.0, 7)(i) for i in range(10)], atol=1e-6)
    one_cycle = optax.cosine_onecycle_schedule(10, 2.0, pct_start=0.3)
    expected = [one_cycle(i) for i in t]
    np.testing.assert_allclose(rates(10, schedule="one_cycle", warmup_fraction=0.3), expected, atol=1e-6)
    steps = rates(10, schedule="step", step_every=0.4, step_factor=0.5)
    np.testing.assert_allclose(steps, [2.0] * 4 + [1.0] * 4 + [0.5] * 5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 7])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 1.0])
def test_schedules_of_any_length_are_finite_and_peak_at_the_rate(schedule, total, fraction):
    found = rates(total, schedule=schedule, warmup_fraction=fraction, step_every=fraction, step_factor=0.0)
    assert np.isfinite(found).all()
    assert found[:total].max() == pytest.approx(2.0)
    assert (found >= 0).all()
