"""The network for tables against a NumPy twin, and its parts."""

from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, expit

from mmjax.config import Activation, Architecture
from mmjax.config import Model as ModelConfig
from mmjax.models.activations import activation_function
from mmjax.models.build import build_model
from mmjax.models.layers import Dropout
from mmjax.models.mlp import default_embedding_dim
from mmjax.models.norms import batch_norm
from mmjax.schema import Batch, Column, Schema, Target

SCHEMA = Schema(
    target=Target(column="y", task="regression"),
    columns=(
        Column(name="a", kind="numeric"),
        Column(name="b", kind="categorical", vocabulary=("x", "y")),
        Column(name="c", kind="categorical", vocabulary=("p", "q", "r", "s")),
    ),
)
BATCH: Batch = {
    "numeric": np.array([[0.5], [-1.0], [2.0]], np.float32),
    "dense": np.array([[1, 0], [0, 1], [0, 0]], np.float32),
    "category": np.array([[1, 4], [2, 0], [0, 3]], np.int32),
}


def random_like(shapes: Any) -> Any:
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype), shapes)


def made(batch: Batch = BATCH, **architecture: Any) -> tuple[Any, Any]:
    """A model and random variables, which cost less than a compiled init."""
    model = build_model(ModelConfig(name="mlp", architecture=Architecture(**architecture)), SCHEMA, outputs=2)
    return model, random_like(jax.eval_shape(model.init, jax.random.key(0), batch))


def test_equals_a_numpy_twin() -> None:
    model, variables = made(hidden_layers=(5, 5), activation="tanh", residual=True, embedding_dim=2)
    params = variables["params"]
    table = params["embedding"]
    embedded = np.concatenate([table[BATCH["category"][:, 0]], table[3 + BATCH["category"][:, 1]]], axis=1)
    x = np.concatenate([BATCH["numeric"], BATCH["dense"], embedded], axis=1)
    x = np.tanh(x @ params["hidden1"]["kernel"] + params["hidden1"]["bias"])
    x = x + np.tanh(x @ params["hidden2"]["kernel"] + params["hidden2"]["bias"])
    expected = x @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(model.apply(variables, BATCH, train=False)[0], expected, rtol=1e-5, atol=1e-6)


def test_batch_norm_equals_a_numpy_twin_and_its_running_statistics() -> None:
    model, variables = made(hidden_layers=(5,), dropout=0.0, activation="relu", normalization="batch")
    params = variables["params"]
    table, category = params["embedding"], BATCH["category"]
    x = np.concatenate([BATCH["numeric"], BATCH["dense"], table[category[:, 0]], table[3 + category[:, 1]]], axis=1)
    x = x @ params["hidden1"]["kernel"] + params["hidden1"]["bias"]
    mean, var = x.mean(0), x.var(0)
    norm, running = params["norm1"], variables["batch_stats"]["norm1"]
    hidden = np.maximum((x - mean) / np.sqrt(var + 1e-5) * norm["scale"] + norm["bias"], 0)
    outputs, stats = model.apply(variables, BATCH, train=True)
    expected = hidden @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["norm1"]["mean"], 0.9 * running["mean"] + 0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["norm1"]["var"], 0.9 * running["var"] + 0.1 * var, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_of_batch_norm_is_that_of_its_formula(masked: bool) -> None:
    rng = np.random.default_rng(0)
    x, towards_y = (jnp.asarray(rng.normal(3, 2, (6, 4, 5, 3)), jnp.float32) for _ in range(2))
    scale, bias = (jnp.asarray(rng.normal(1, 1, 3), jnp.float32) for _ in range(2))
    mask = jnp.asarray([True, True, False, True, False, True]) if masked else None
    rows = np.flatnonzero(np.ones(6) if mask is None else mask)

    def formula(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        mean, var = x[rows].mean((0, 1, 2)), x[rows].var((0, 1, 2))
        normal = (x - mean.reshape(1, 1, 1, 3)) / jnp.sqrt(var + 1e-5).reshape(1, 1, 1, 3)
        return normal * scale.reshape(1, 1, 1, 3) + bias.reshape(1, 1, 1, 3)

    @jax.jit
    def both(*inputs: jax.Array) -> list[Any]:
        expected, back = jax.vjp(formula, *inputs)
        got, got_back = jax.vjp(lambda *inputs: batch_norm(*inputs, mask, 1e-5)[0], *inputs)
        return [(got, expected), *zip(got_back(towards_y), back(towards_y), strict=True)]

    for got, expected in both(x, scale, bias):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_all_embeddings_are_one_table_whose_unknown_rows_start_at_zero() -> None:
    model, _ = made(hidden_layers=(4,))
    variables = jax.jit(model.init)(jax.random.key(0), BATCH)
    table = np.asarray(variables["params"]["embedding"])
    assert table.shape == (8, default_embedding_dim((3, 5)))
    np.testing.assert_array_equal(table[[0, 3]], 0.0)
    assert (np.abs(table[[1, 2, 4, 5, 6, 7]]).max(axis=1) > 0).all()
    assert sorted(variables["params"]) == ["embedding", "head", "hidden1"]


@pytest.mark.parametrize("absent", [("dense",), ("category",), ("numeric", "dense")])
def test_any_part_may_be_absent(absent: tuple[str, ...]) -> None:
    batch = {field: array for field, array in BATCH.items() if field not in absent}
    model, variables = made(batch)
    outputs, _ = jax.eval_shape(lambda v: model.apply(v, batch, train=False), variables)
    assert outputs.shape == (3, 2)
    assert ("embedding" in variables["params"]) == ("category" not in absent)


def test_without_hidden_layers_it_is_linear() -> None:
    model, variables = made(hidden_layers=())
    assert sorted(variables["params"]) == ["embedding", "head"]
    assert jax.eval_shape(lambda v: model.apply(v, BATCH, train=True), variables)[0].shape == (3, 2)


def test_variables_map_over_a_leading_axis() -> None:
    model, _ = made(hidden_layers=(6,))
    keys = jax.random.split(jax.random.key(0), 3)
    members = random_like(jax.eval_shape(jax.vmap(lambda key: model.init(key, BATCH)), keys))

    def run(variables: Any, key: jax.Array) -> jax.Array:
        return model.apply(variables, BATCH, train=True, key=key)[0]

    together = jax.jit(jax.vmap(run))(members, keys)
    one_by_one = jax.jit(lambda members, keys: jax.lax.map(lambda pair: run(*pair), (members, keys)))(members, keys)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-4, atol=1e-5)
    assert not np.allclose(together[0], together[1])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("rows", [False, True])
def test_dropout_keeps_the_mean_and_the_rate(rate: float, rows: bool) -> None:
    x = jnp.ones((4001, 1) if rows else (40, 101))
    layer = Dropout(rate, rows=rows)
    y = np.asarray(layer.apply({}, x, train=True, rngs={"dropout": jax.random.key(0)}))
    assert set(np.unique(y)) == {np.float32(0), np.float32(65536 / (65536 - round(rate * 65536)))}
    share = 1 - rate
    assert abs((y > 0).mean() - share) < 4 * np.sqrt(rate * share / y.size)
    np.testing.assert_array_equal(layer.apply({}, x, train=False), x)


def test_dropout_of_rows_drops_whole_rows() -> None:
    x = jnp.ones((64, 3, 2))
    y = np.asarray(Dropout(0.5, rows=True).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)}))
    assert all(len(np.unique(row)) == 1 for row in y)


X = np.linspace(-4, 4, 33, dtype=np.float32)
CLOSED_FORMS = {
    "relu": np.maximum(X, 0),
    "gelu": X * 0.5 * (1 + erf(X / np.sqrt(2))),
    "silu": X * expit(X),
    "selu": 1.0507009873554805 * np.where(X > 0, X, 1.6732632423543772 * np.expm1(X)),
    "mish": X * np.tanh(np.log1p(np.exp(X))),
    "tanh": np.tanh(X),
}


@pytest.mark.parametrize("name", get_args(Activation))
def test_activations_equal_their_closed_forms(name: Activation) -> None:
    tolerance = 1e-3 if name == "gelu" else 1e-5  # flax's gelu is the tanh approximation
    np.testing.assert_allclose(activation_function(name)(jnp.asarray(X)), CLOSED_FORMS[name], atol=tolerance)


@pytest.mark.parametrize("name", get_args(Activation))
def test_bfloat16_activations_and_their_gradients_are_f32_ones_rounded_once(name: Activation) -> None:
    function, narrow = activation_function(name), jnp.asarray(np.linspace(-12, 12, 97), jnp.bfloat16)
    wide = narrow.astype(jnp.float32)
    towards = jnp.full_like(wide, 0.75)
    expected, back = jax.vjp(function, wide)
    got, got_back = jax.vjp(function, narrow)
    assert got.dtype == jnp.bfloat16
    for ours, theirs in ((got, expected), (got_back(towards.astype(jnp.bfloat16))[0], back(towards)[0])):
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, rtol=2**-8, atol=4e-6)
