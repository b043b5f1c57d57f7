"""RealMLP: each rule of its recipe equal to an independent NumPy form, and what its parameters start and learn with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.config import Model as ModelConfig
from mmjax.config import Training
from mmjax.errors import DataError
from mmjax.models.build import build_model, count_parameters
from mmjax.models.layers import FadingDropout, Part, flat_cos, side_by_side
from mmjax.models.realmlp import NTKDense, PeriodicEmbedding, RealMLP, rates
from mmjax.schema import Column, Schema, Target
from mmjax.training.optimizer import make_optimizer, make_schedule
from mmjax.training.outputs import build_output
from mmjax.transforms.tabular import scaled_one_hot

TARGET = Target(column="y", task="classification", classes=("a", "b", "c"))
NUMBER = Target(column="y", task="regression")
COLUMNS = (
    *(Column(name=name, kind="numeric") for name in "pqr"),
    Column(name="long", kind="categorical", vocabulary=tuple(f"v{i}" for i in range(20))),
)
ROWS = 64


def batch(rows: int = ROWS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "numeric": rng.normal(size=(rows, 3)).astype(np.float32),
        "dense": rng.normal(size=(rows, 2)).astype(np.float32),
        "category": rng.integers(0, 21, (rows, 1)).astype(np.int32),
    }


def model(name: str = "realmlp", target: Target = TARGET, outputs: int = 3):
    return build_model(ModelConfig(name=name), Schema(target=target, columns=COLUMNS), outputs=outputs)


def numpy_forward(params: dict, rows: dict[str, np.ndarray], bend) -> np.ndarray:
    """The network as the paper writes it, one step after the other, in f64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x, waves = rows["numeric"].astype(np.float64), p["waves"]
    embedded = []
    for column in range(x.shape[1]):
        wave = np.cos(2 * np.pi * np.outer(x[:, column], waves["frequency"][column]) + waves["phase"][column])
        embedded += [wave @ waves["kernel"][column] + waves["offset"][column], x[:, column : column + 1]]
    h = np.concatenate([*embedded, rows["dense"], p["embedding"][rows["category"][:, 0]]], axis=1) * p["scaling"]
    for number in (1, 2, 3):
        layer = p[f"hidden{number}"]
        z = h @ layer["kernel"] / np.sqrt(h.shape[1]) + layer["bias"]
        h = z + p[f"alpha{number}"] * (bend(z) - z)
    return h @ p["head"]["kernel"] / np.sqrt(h.shape[1]) + p["head"]["bias"]


def normals(leaf: jax.Array) -> np.ndarray:
    """Noise f32 of a leaf's shape."""
    return np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(np.float32)


def selu(z: np.ndarray) -> np.ndarray:
    return 1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * np.expm1(np.minimum(z, 0)))


def mish(z: np.ndarray) -> np.ndarray:
    return z * np.tanh(np.log1p(np.exp(z)))


@pytest.mark.parametrize(("target", "bend"), [(TARGET, selu), (NUMBER, mish)])
def test_equals_the_paper_in_numpy(target: Target, bend) -> None:
    own, rows = model(target=target), batch()
    variables = jax.jit(own.init)(jax.random.key(1), rows)
    noise = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1 * normals(leaf), variables)
    outputs, _ = jax.jit(lambda v, b: own.apply(v, b, train=False))(noise, rows)
    np.testing.assert_allclose(outputs, numpy_forward(noise["params"], rows, bend), atol=2e-4)


def test_starts_by_the_data() -> None:
    rows = batch()
    params = jax.jit(model().init)(jax.random.key(0), rows)["params"]
    x = np.random.default_rng(3).normal(2.0, 5.0, (500, 7)).astype(np.float32)
    layer = NTKDense(40, "data")
    part = Part(jnp.asarray(x), learned=True)
    own = jax.jit(lambda key: layer.init(key, part))(jax.random.key(2))["params"]
    outputs = np.asarray(layer.apply({"params": own}, part))
    np.testing.assert_allclose(outputs.std(axis=0), 1.0, rtol=1e-3)
    without = outputs - np.asarray(own["bias"])
    assert (np.asarray(own["bias"]) >= -without.max(axis=0)).all()  # a convex mixture of what the rows gave
    assert (np.asarray(own["bias"]) <= -without.min(axis=0)).all()
    assert np.unique(np.asarray(own["bias"])).size == 40
    np.testing.assert_array_equal(params["scaling"], np.ones(3 * 4 + 2 + 8))
    assert all((params[f"alpha{n}"] == 1.0).all() for n in (1, 2, 3))
    assert float(jnp.std(params["embedding"])) == pytest.approx(1.0, abs=0.2)
    # 3 numbers: 16 frequencies and phases, 16 x 3 weights and 3 biases each; scaling; 3 layers of 256; the head of 3
    width = 3 * 4 + 2 + 8
    expected = 3 * (16 + 16 + 48 + 3) + 21 * 8 + width + (width + 257 + 257) * 256 + 256 + 3 * 256 + 257 * 3
    assert count_parameters({"params": params}) == expected


def test_a_constant_input_leaves_finite_weights() -> None:
    x = np.ones((10, 4), np.float32)
    init = jax.jit(lambda key: NTKDense(8, "data").init(key, Part(jnp.asarray(x), learned=True)))
    params = init(jax.random.key(0))["params"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_embedding_waves_have_the_papers_spread() -> None:
    params = jax.jit(PeriodicEmbedding().init)(jax.random.key(0), jnp.zeros((2, 400)))["params"]
    assert float(params["frequency"].std()) == pytest.approx(0.1, rel=0.05)
    assert float(jnp.abs(params["phase"]).max()) <= np.pi
    assert float(params["phase"].std()) == pytest.approx(np.pi / np.sqrt(3), rel=0.05)
    for name in ("kernel", "offset"):
        assert float(jnp.abs(params[name]).max()) <= 0.25
        assert float(params[name].std()) == pytest.approx(0.25 / np.sqrt(3), rel=0.1)


def test_the_short_form_is_plain() -> None:
    rows = batch()
    own = model("realmlp_s")
    params = jax.jit(own.init)(jax.random.key(0), rows)["params"]
    assert set(params) == {"scaling", "embedding", "hidden1", "hidden2", "hidden3", "head"}
    assert not params["head"]["kernel"].any()
    assert float(params["hidden2"]["kernel"].std()) == pytest.approx(1.0, rel=0.05)
    assert float(params["hidden2"]["bias"].std()) == pytest.approx(1.0, rel=0.2)
    outputs, _ = jax.jit(lambda params: own.apply({"params": params, "batch_stats": {}}, rows, train=True))(params)
    np.testing.assert_array_equal(outputs, 0.0)


def test_rates_are_those_of_pytabkit() -> None:
    params = jax.eval_shape(model().init, jax.random.key(0), batch())["params"]
    found = rates(params)
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="."): rate
        for path, rate in jax.tree_util.tree_leaves_with_path(found.learning_rate)
    }
    assert flat["scaling"] == 6.0
    assert flat["alpha2"] == flat["hidden1.bias"] == flat["head.bias"] == 0.1
    assert flat["waves.kernel"] == flat["waves.phase"] == flat["waves.offset"] == flat["waves.frequency"] == 0.1
    assert flat["hidden3.kernel"] == flat["head.kernel"] == flat["embedding"] == 1.0
    assert found.decay["hidden1"] == {"kernel": 1.0, "bias": 0.0}
    assert found.decay["scaling"] == 6.0


def test_coslog4_is_four_waves_each_twice_as_long() -> None:
    schedule = make_schedule(training(), total_steps=1500)
    t = np.arange(1501) / 1500
    expected = 0.04 * 0.5 * (1 - np.cos(2 * np.pi * np.log2(1 + 15 * t)))
    np.testing.assert_allclose(jax.vmap(schedule)(jnp.arange(1501)), expected, atol=2e-6)
    assert [float(schedule(round(1500 * (2**i - 1) / 15))) < 1e-6 for i in range(5)] == [True] * 5


def training(**changes) -> Training:
    base = {"optimizer": "adam", "learning_rate": 0.04, "weight_decay": 0.02, "schedule": "coslog4", "adam_b2": 0.95}
    return Training(**(base | {"decay_schedule": "flat_cos"} | changes))


def test_an_update_is_adams_with_factors_and_fading_decay() -> None:
    params = {"scaling": jnp.full(3, 2.0), "hidden1": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 4.0)}}
    grads = jax.tree.map(lambda leaf: 0.5 + jnp.arange(leaf.size, dtype=jnp.float32).reshape(leaf.shape), params)
    total = 100
    optimizer = make_optimizer(training(), total_steps=total, params=params, rates=rates(params))
    state, ours = optimizer.init(params), params
    theirs = {"scaling": (2.0, 6.0, 6.0), "kernel": (3.0, 1.0, 1.0), "bias": (4.0, 0.1, 0.0)}
    values = {
        name: np.full(np.shape(leaf), theirs[name][0])
        for name, leaf in (
            ("scaling", grads["scaling"]),
            ("kernel", grads["hidden1"]["kernel"]),
            ("bias", grads["hidden1"]["bias"]),
        )
    }
    gradient = {"scaling": grads["scaling"], "kernel": grads["hidden1"]["kernel"], "bias": grads["hidden1"]["bias"]}
    first = dict.fromkeys(values, 0.0)
    second = dict.fromkeys(values, 0.0)
    for step in range(total):
        updates, state = optimizer.update(grads, state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        t = step / total
        rate = 0.04 * 0.5 * (1 - np.cos(2 * np.pi * np.log2(1 + 15 * t)))
        fade = 1.0 if t <= 0.5 else 0.5 * (1 + np.cos(np.pi * (2 * t - 1)))
        for name, value in values.items():
            g, (_, factor, decay) = np.asarray(gradient[name], np.float64), theirs[name]
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g * g
            unbiased = (first[name] / (1 - 0.9 ** (step + 1))) / (
                np.sqrt(second[name] / (1 - 0.95 ** (step + 1))) + 1e-8
            )
            values[name] = value - rate * factor * (unbiased + 0.02 * fade * decay * value)
    np.testing.assert_allclose(ours["scaling"], values["scaling"], rtol=1e-4)
    np.testing.assert_allclose(ours["hidden1"]["kernel"], values["kernel"], rtol=1e-4)
    np.testing.assert_allclose(ours["hidden1"]["bias"], values["bias"], rtol=1e-4)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.15), (0.5, 0.15), (0.75, 0.075), (1.0, 0.0)])
def test_dropout_fades(progress: float, share: float) -> None:
    layer, x = FadingDropout(0.15), jnp.ones((400, 256))
    found = layer.apply({}, x, train=True, progress=jnp.float32(progress), rngs={"dropout": jax.random.key(0)})
    assert float((found == 0).mean()) == pytest.approx(share, abs=0.005)
    assert float(found.mean()) == pytest.approx(1.0, abs=0.01)
    np.testing.assert_array_equal(layer.apply({}, x, train=False, progress=None), x)
    assert float(flat_cos(jnp.float32(progress))) == pytest.approx(share / 0.15, abs=1e-6)


def test_one_hot_of_few_categories_is_scaled_and_others_stay() -> None:
    cardinalities = (3, 5, 12, 2)  # two, four, eleven categories and one, each with code 0 for unknown
    codes = np.array([[1, 1, 7, 1], [2, 2, 3, 0], [0, 0, 0, 1], [2, 2, 11, 1], [1, 4, 12, 1]], np.int32)
    transform = scaled_one_hot(cardinalities, 8)
    state = transform.fit({"category": codes})
    found = transform.apply(state, {"category": jnp.asarray(codes)})
    np.testing.assert_array_equal(found["category"], [[7], [3], [0], [11], [0]])
    known = np.where(codes < np.array(cardinalities), codes, 0)
    raw = [np.array([0.0, 1.0, -1.0])[known[:, 0]]]
    raw += [(known[:, 1] == code).astype(float) for code in (1, 2, 3, 4)] + [(known[:, 3] == 1).astype(float)]
    for column, values in zip(np.asarray(found["dense"]).T, raw, strict=True):
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        scale = high - low or np.ptp(values) / 2
        x = (values - median) / scale if np.ptp(values) else 0 * values
        np.testing.assert_allclose(column, x / np.sqrt(1 + (x / 3) ** 2), atol=1e-6)
    assert "category" not in transform.apply(state, {"numeric": np.zeros((1, 1), np.float32)})


def test_wrong_batches_are_refused() -> None:
    with pytest.raises(DataError, match="realmlp: expected at least one of numeric, dense, category"):
        model().init(jax.random.key(0), {"image": np.zeros((1, 1, 4, 4, 3), np.float32)})
    wrong = batch() | {"category": np.zeros((ROWS, 2), np.int32)}
    with pytest.raises(DataError, match="realmlp: expected 1 category columns"):
        model().init(jax.random.key(0), wrong)


def test_the_module_says_what_it_is_made_of() -> None:
    module = RealMLP(1, (4,), jnp.tanh, 0.0, (), 0, False)
    variables = jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x, None, None, train=False, mask=None), jnp.ones((3, 2))
    )
    assert set(variables["params"]) == {"waves", "scaling", "hidden1", "alpha1", "head"}


@settings(deadline=None, max_examples=25)  # each compiles a program of its own
@given(kinds=st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_inputs_in_parts_are_one_product(kinds: list[tuple[int, bool]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = [jnp.asarray(rng.normal(size=(6, width)), jnp.float32) for width, _ in kinds]
    kernel = jnp.asarray(rng.normal(size=(sum(width for width, _ in kinds), 3)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)

    def apart(values: list[jax.Array], kernel: jax.Array) -> jax.Array:
        parts = [Part(each, learned) for each, (_, learned) in zip(values, kinds, strict=True)]
        return (weights * side_by_side(parts, kernel)).sum()

    found = jax.jit(jax.value_and_grad(apart, argnums=(0, 1)))(values, kernel)
    x, k, w = (np.asarray(each, np.float64) for each in (np.concatenate(values, axis=1), kernel, weights))
    np.testing.assert_allclose(found[0], (w * (x @ k)).sum(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.concatenate(found[1][0], axis=1), w @ k.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1][1], x.T @ w, rtol=1e-4, atol=1e-4)


def test_what_is_given_costs_no_gradient() -> None:
    kernel, given_, learned = jnp.ones((9, 4)), jnp.ones((2, 6)), jnp.ones((2, 3))

    def loss(kernel: jax.Array, learned: jax.Array) -> jax.Array:
        return side_by_side([Part(given_, learned=False), Part(learned, learned=True)], kernel).sum()

    products = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(kernel, learned)).count("dot_general")
    assert products == 3 + 2  # of the learned: forward, weights, inputs; of the given: forward, weights


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
def test_a_part_of_no_columns_adds_nothing(sizes: tuple[int, int]) -> None:
    parts = [Part(jnp.ones((4, size)), learned=bool(index)) for index, size in enumerate(sizes)]
    np.testing.assert_array_equal(side_by_side(parts, jnp.ones((3, 2))), np.full((4, 2), 3.0))


def test_answers_stay_within_the_training_targets_as_in_the_paper() -> None:
    labels = np.array([[2.0], [3.0], [7.0]], np.float32)
    output = build_output(NUMBER, "mse", clamp=True)
    state = output.fit(labels)
    found = output.apply(state, jnp.asarray([[-9.0], [0.0], [9.0]])).prediction
    np.testing.assert_allclose(found[:, 0], [2.0, 4.0, 7.0], rtol=1e-6)
    free = build_output(NUMBER, "mse").apply(state, jnp.asarray([[9.0]])).prediction
    assert float(free[0, 0]) > 7.0
