"""TabM: equal to the paper in NumPy, members apart but for what they share, and what its parameters start with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.config import Architecture
from mmjax.config import Model as ModelConfig
from mmjax.errors import DataError
from mmjax.models.base import Model
from mmjax.models.build import build_model, count_parameters
from mmjax.models.tabm import chunked_init
from mmjax.schema import Column, Schema, Target
from mmjax.transforms.piecewise import piecewise_codes, piecewise_linear

TARGET = Target(column="y", task="classification", classes=("a", "b", "c"))
COLUMNS = (
    *(Column(name=name, kind="numeric") for name in "pqr"),
    Column(name="long", kind="categorical", vocabulary=tuple(f"v{i}" for i in range(20))),
)
ROWS, MEMBERS, BINS = 12, 4, 5
SMALL = Architecture(hidden_layers=(6, 7), members=MEMBERS)


def batch(rows: int = ROWS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "numeric": rng.normal(size=(rows, 3)).astype(np.float32),
        "codes": rng.uniform(size=(rows, 3, BINS)).astype(np.float32),
        "dense": rng.normal(size=(rows, 5)).astype(np.float32),
        "category": rng.integers(0, 21, (rows, 1)).astype(np.int32),
    }


def model(architecture: Architecture = SMALL) -> Model:
    schema = Schema(target=TARGET, columns=COLUMNS)
    return build_model(ModelConfig(name="tabm", architecture=architecture), schema, outputs=3, onehots=(3,))


def varied(own: Model) -> dict:
    """Variables of which none is as it starts, so that no part is idle."""
    variables = jax.jit(own.init)(jax.random.key(1), batch())

    def changed(leaf: jax.Array) -> np.ndarray:
        return leaf + 0.3 * np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(np.float32)

    return jax.tree.map(changed, jax.tree.map(np.asarray, variables))


def numpy_forward(params: dict, rows: dict[str, np.ndarray]) -> np.ndarray:
    """The network as the paper writes it, a member and a column at a time, in f64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x, pieces = rows["numeric"].astype(np.float64), p["pieces"]
    embedded = [
        np.outer(x[:, f], pieces["slope"][f]) + pieces["offset"][f] + rows["codes"][:, f] @ pieces["kernel"][f]
        for f in range(x.shape[1])
    ]
    inputs = np.concatenate([*embedded, rows["dense"], p["embedding"][rows["category"][:, 0]]], axis=1)
    outputs = []
    for member in range(len(p["scaling"])):
        h = inputs * p["scaling"][member]
        for number in (1, 2):
            layer = p[f"hidden{number}"]["dense"]
            h = np.maximum(h @ layer["kernel"] + layer["bias"], 0)
        outputs.append(h @ p["head"][member] + p["head_bias"][member])
    return np.stack(outputs, axis=1)


def test_equals_the_paper_in_numpy() -> None:
    own, rows = model(), batch()
    variables = varied(own)
    outputs, _ = jax.jit(lambda v, b: own.apply(v, b, train=False))(variables, rows)
    assert outputs.shape == (ROWS, MEMBERS, 3)
    np.testing.assert_allclose(outputs, numpy_forward(variables["params"], rows), atol=1e-4)
    np.testing.assert_allclose(own.apply(variables, rows, train=False)[0], outputs, atol=1e-5)


def test_no_row_looks_at_another() -> None:
    own, rows = model(), batch()
    variables = varied(own)
    outputs, _ = own.apply(variables, rows, train=False)
    padded = {name: np.concatenate([values, np.zeros_like(values)]) for name, values in rows.items()}
    np.testing.assert_allclose(own.apply(variables, padded, train=False)[0][:ROWS], outputs, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(MEMBERS)))
def test_members_in_another_order_answer_in_that_order(order: list[int]) -> None:
    own, rows = model(), batch()
    variables = varied(own)
    params = variables["params"]
    turned = params | {name: params[name][np.array(order)] for name in ("scaling", "head", "head_bias")}
    outputs, _ = own.apply(variables, rows, train=False)
    found, _ = own.apply(variables | {"params": turned}, rows, train=False)
    np.testing.assert_allclose(found, outputs[:, np.array(order)], atol=1e-5)


def test_a_member_depends_on_its_own_and_on_what_all_share() -> None:
    own, rows = model(), batch()
    variables = varied(own)

    def of_member_0(params: dict) -> jax.Array:
        return jnp.square(own.apply(variables | {"params": params}, rows, train=False)[0][:, 0]).sum()

    grads = jax.jit(jax.grad(of_member_0))(variables["params"])
    for name in ("scaling", "head", "head_bias"):
        assert grads[name][0].any()
        assert not grads[name][1:].any()
    assert all(leaf.any() for leaf in jax.tree.leaves((grads["hidden1"], grads["hidden2"], grads["pieces"])))


def test_starts_as_tabm_does() -> None:
    params = jax.jit(model(Architecture()).init)(jax.random.key(0), batch())["params"]
    width = 3 * 16 + 5 + 8
    scaling = np.asarray(params["scaling"])
    assert scaling.shape == (32, width)
    chunks = np.split(scaling, [16, 32, 48, 49, 50, 53], axis=1)  # numbers, two single columns, one-hots, the embedding
    assert all((chunk == chunk[:, :1]).all() for chunk in chunks)
    assert len(np.unique(scaling)) == 32 * 7
    assert scaling[:, [0, 16, 32, 48, 49, 50, 53]].std() == pytest.approx(1.0, abs=0.15)
    assert not params["pieces"]["kernel"].any()
    bounds = {"hidden1": width**-0.5, "hidden2": 512**-0.5}
    for name, bound in bounds.items():
        for leaf in params[name]["dense"].values():
            assert float(jnp.abs(leaf).max()) <= bound
            assert float(leaf.std()) == pytest.approx(bound / np.sqrt(3), rel=0.1)
    assert float(jnp.abs(params["head"]).max()) <= 512**-0.5
    expected = 3 * 16 * (BINS + 2) + 21 * 8 + 32 * width + (width + 1) * 512 + 513 * 512 + 32 * 513 * 3
    assert count_parameters({"params": params}) == expected


def test_without_numbers_members_start_with_signs() -> None:
    drawn = chunked_init((2, 3), signs=True)(jax.random.key(0), (200, 5), jnp.float32)
    assert set(np.unique(drawn)) == {-1.0, 1.0}
    assert abs(float(drawn[:, 0].mean())) < 0.2
    np.testing.assert_array_equal(drawn[:, :1], drawn[:, 1:2])
    assert (drawn[:, 1] != drawn[:, 2]).any()


def test_codes_apart_are_those_beside() -> None:
    rng = np.random.default_rng(2)
    numeric = np.stack([rng.normal(size=80), rng.integers(0, 3, 80), np.zeros(80)], axis=1).astype(np.float32)
    numeric[3, 0] = np.nan
    beside, apart = piecewise_linear(6), piecewise_codes(6)
    flat = beside.apply(beside.fit({"numeric": numeric}), {"numeric": numeric})["dense"]
    state = apart.fit({"numeric": numeric})
    codes = jax.jit(apart.apply)(state, {"numeric": numeric})["codes"]
    assert codes.shape == (80, 3, 6)
    present = np.asarray(state["per_width"]) > 0
    np.testing.assert_allclose(np.asarray(codes)[:, present], flat, atol=1e-6)
    assert not np.asarray(codes)[:, ~present].any()


def test_wrong_batches_are_refused() -> None:
    with pytest.raises(DataError, match="tabm: expected at least one of numeric, dense, category"):
        model().init(jax.random.key(0), {"image": np.zeros((1, 1, 4, 4, 3), np.float32)})
