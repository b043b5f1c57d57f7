"""The network of images and columns: what is missing has no say, no row sees another, either side may be absent."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from mmjax.config import Architecture, Fusion
from mmjax.config import Model as ModelConfig
from mmjax.models.base import Model
from mmjax.models.build import build_model
from mmjax.models.fusion import Join
from mmjax.schema import Batch, Column, ImageSpec, Schema, Target

ROWS, IMAGES, SIDE = 6, 3, 8
HEADS = ("columns", "images")
OWN = tuple(f"{name}_head" for name in HEADS)
WAYS: list[tuple[Any, ...]] = [("concatenate", "mean"), ("gated", "attention"), ("concatenate", "mean", 0.5, HEADS)]
SCHEMA = Schema(
    target=Target(column="y", task="regression"),
    columns=(Column(name="x", kind="numeric"), Column(name="c", kind="categorical", vocabulary=("k", "m"))),
    image=ImageSpec(columns=("p", "q", "r"), height_px=SIDE, width_px=SIDE),
)


def batch(seed: int = 0) -> Batch:
    """Rows as a Transform leaves them; the last row has no image and the one before no columns."""
    rng = np.random.default_rng(seed)
    present = (rng.random((ROWS, IMAGES)) < 0.7).astype(np.float32)
    present[-1], present[-2, 0] = 0, 1
    return {
        "numeric": rng.normal(size=(ROWS, 1)).astype(np.float32),
        "category": rng.integers(0, 3, (ROWS, 1)).astype(np.int32),
        "columns_present": np.array([1.0] * (ROWS - 2) + [0.0, 1.0], np.float32),
        "image": rng.normal(size=(ROWS, IMAGES, SIDE, SIDE, 3)).astype(np.float32),
        "image_present": present,
    }


def network(
    join: Any, pooling: Any, modality_dropout: float = 0.5, own_heads: Any = UNSET, precision: str = "float32"
) -> Model:
    """A small model."""
    architecture = Architecture(stages=(1,), width=4)
    fusion = Fusion(
        join=join, pooling=pooling, width=8, hidden_layers=(8,), dropout=0.0, modality_dropout=modality_dropout,
        own_heads=own_heads,
    )  # fmt: skip
    config = ModelConfig(type="multimodal", name="resnet", architecture=architecture, fusion=fusion)
    return build_model(config, SCHEMA, outputs=2, precision=precision)


@functools.cache
def made(join: Any, pooling: Any, modality_dropout: float = 0.5, own_heads: Any = UNSET) -> tuple[Model, Any, Any]:
    """A small model, random variables (an `init` that is compiled would take longer), and `apply` compiled."""
    model, random = network(join, pooling, modality_dropout, own_heads), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch())
    params = jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), shapes["params"])
    stats = jax.tree.map(lambda leaf: random.uniform(0.1, 0.9, leaf.shape).astype(np.float32), shapes["batch_stats"])
    variables = {"params": params, "batch_stats": stats}
    return model, variables, jax.jit(functools.partial(model.apply, train=False))


def outputs(way: tuple[Any, ...], rows: Batch) -> np.ndarray:
    _, variables, apply = made(*way)
    return np.asarray(apply(variables, rows)[0])


@pytest.mark.parametrize("way", WAYS)
@given(seed=st.integers(0, 9))
@settings(max_examples=5, deadline=None)
def test_pixels_and_cells_that_are_missing_have_no_say(way: tuple[Any, ...], seed: int) -> None:
    rows, other = batch(seed), batch(seed + 10)
    there = rows["image_present"][..., None, None, None] > 0
    known = rows["columns_present"][:, None] > 0
    changed = rows | {
        "image": np.where(there, rows["image"], other["image"]),
        "numeric": np.where(known, rows["numeric"], other["numeric"]),
        "category": np.where(known, rows["category"], other["category"]),
    }
    np.testing.assert_array_equal(outputs(way, rows), outputs(way, changed))
    all_changed = outputs(way, rows | {"image": other["image"]})
    differs = np.abs(all_changed - outputs(way, rows)).max(axis=1) > 1e-6
    np.testing.assert_array_equal(differs, rows["image_present"].any(axis=1))


def test_bfloat16_stays_near_float32() -> None:
    _, variables, apply = made(*WAYS[1])
    narrow = jax.jit(functools.partial(network(*WAYS[1], precision="bfloat16").apply, train=False))
    wide, found = (np.asarray(run(variables, batch())[0]) for run in (apply, narrow))
    np.testing.assert_allclose(found, wide, rtol=0.1, atol=0.1)
    assert not np.array_equal(found, wide)


@pytest.mark.parametrize("way", WAYS)
def test_no_row_sees_another(way: tuple[Any, ...]) -> None:
    rows, order = batch(), np.array([3, 0, 5, 1, 4, 2])
    whole = outputs(way, rows)
    shuffled = outputs(way, {name: values[order] for name, values in rows.items()})
    np.testing.assert_allclose(shuffled, whole[order], rtol=1e-5, atol=1e-6)


def test_one_image_of_a_row_counts_as_it_would_alone_and_the_mean_is_that_of_those_there() -> None:
    join = Join(2, 4, "concatenate", "mean", 0.0, 0.0)
    seen = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    seen[1, 1] = seen[1, 0]  # equal images, of which one is taken away, have one mean
    present = np.array([[1, 1, 1], [1, 1, 0]], np.float32)
    fewer = np.array([[1, 1, 1], [1, 0, 0]], np.float32)

    @jax.jit
    def applied(there: jax.Array) -> jax.Array:
        variables = join.init(jax.random.key(0), seen, present, None, None, train=False)
        return join.apply(variables, seen, there, None, None, train=False)

    both, one = (np.asarray(applied(there)) for there in (present, fewer))
    np.testing.assert_allclose(both, one, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_columns_of_images_are_told_apart(pooling: str) -> None:
    _, variables, apply = made("concatenate", pooling)
    rows = batch() | {"image_present": np.ones((ROWS, IMAGES), np.float32)}
    swapped = rows | {"image": rows["image"][:, ::-1]}
    assert np.abs(apply(variables, rows)[0] - apply(variables, swapped)[0]).max() > 1e-4


def test_statistics_are_of_images_that_are_there_alone() -> None:
    model, variables, _ = made("concatenate", "mean", 0.0)
    rows = batch()
    there = rows["image_present"][..., None, None, None] > 0
    noisy = rows | {"image": np.where(there, rows["image"], 100.0).astype(np.float32)}
    train = jax.jit(functools.partial(model.apply, train=True))
    stats, others = (train(variables, each, key=jax.random.key(1))[1] for each in (rows, noisy))
    jax.tree.map(np.testing.assert_array_equal, stats, others)
    unweighted = train(variables, rows | {"weight": np.eye(ROWS, dtype=np.float32)[0]}, key=jax.random.key(1))[1]
    assert any(
        np.abs(a - b).max() > 1e-4 for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(unweighted), strict=True)
    )


def test_modality_dropout_hides_either_side_of_some_rows_and_never_both() -> None:
    join, rows = Join(1, 4, "concatenate", "mean", 0.0, 0.4), 20_000

    def hide(module: Join) -> tuple[jax.Array, jax.Array]:
        return module._hidden(jnp.arange(rows) % 5 > 0, jnp.arange(rows) % 7 > 0)

    images, columns = (np.asarray(found) for found in join.apply({}, method=hide, rngs={"dropout": jax.random.key(3)}))
    had_image, had_columns = np.arange(rows) % 5 > 0, np.arange(rows) % 7 > 0
    both = had_image & had_columns
    assert (images | columns)[both].all()
    assert (images == had_image)[~both].all()
    assert (columns == had_columns)[~both].all()
    np.testing.assert_allclose([(~images)[both].mean(), (~columns)[both].mean()], 0.2, atol=0.02)


@pytest.mark.parametrize("way", WAYS)
def test_what_stands_for_a_missing_side_learns(way: tuple[Any, ...]) -> None:
    model, variables, _ = made(*way)
    rows = batch()

    @jax.jit
    def gradient(params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            found, _ = model.apply(variables | {"params": params}, rows, train=True, key=jax.random.key(0))
            return (found**2).sum()

        return jax.grad(loss)(params)

    found = gradient(variables["params"])["join"]
    assert np.abs(found["images_missing"]).max() > 0
    assert np.abs(found["columns_missing"]).max() > 0


def joined(modality_dropout: float) -> tuple[Join, Any, tuple[np.ndarray, ...]]:
    """A Join with both heads, its variables, and what trunks tell of rows, all there."""
    join, rng = Join(2, 4, "concatenate", "mean", 0.0, modality_dropout, HEADS), np.random.default_rng(0)
    seen, told = (rng.normal(size=shape).astype(np.float32) for shape in ((64, 1, 4), (64, 4)))
    given = (seen, np.ones((64, 1), np.float32), told, np.ones(64, np.float32))
    return join, jax.jit(functools.partial(join.init, train=False))(jax.random.key(0), *given), given


def test_each_head_learns_from_its_own_answer_and_their_mean_is_given() -> None:
    join, variables, given = joined(0.0)

    @jax.jit
    def answers(variables: Any, seen: Any, told: Any) -> tuple[Any, Any]:
        inputs = (seen, given[1], told, given[3])
        return join.apply(variables, *inputs, train=True), join.apply(variables, *inputs, train=False)

    trained, answered = answers(variables, given[0], given[2])
    assert trained.shape == (64, 3, 2)
    np.testing.assert_allclose(trained.mean(axis=1), answered, rtol=1e-6, atol=1e-6)
    own = variables["params"]["columns_head"]
    np.testing.assert_allclose(trained[:, 1], given[2] @ own["kernel"] + own["bias"][None], rtol=1e-5, atol=1e-5)
    for number, name in enumerate(("head", *OWN)):
        slopes = jax.grad(lambda *args, at=number: (answers(*args)[0][:, at] ** 2).sum(), argnums=(0, 1, 2))
        params, *inputs = slopes(variables, given[0], given[2])
        moved = {head for head in ("head", *OWN) if params["params"][head]["kernel"].any()}
        assert moved == {name}
        seen, told = (bool(slope.any()) for slope in inputs)
        assert (seen, told) == {"head": (True, True), "columns_head": (False, True), "images_head": (True, False)}[name]


def test_the_join_answers_for_a_trunk_whose_side_is_hidden_in_training() -> None:
    join, variables, given = joined(0.8)
    apply = jax.jit(functools.partial(join.apply, train=True))
    trained = np.asarray(apply(variables, *given, rngs={"dropout": jax.random.key(1)}))
    hidden = [np.array([np.array_equal(row[0], row[at]) for row in trained]) for at in (1, 2)]
    assert not (hidden[0] & hidden[1]).any()
    np.testing.assert_allclose([hidden[0].mean(), hidden[1].mean()], 0.4, atol=0.2)


def test_where_a_trunk_sees_nothing_the_join_answers_for_it() -> None:
    _, variables, apply = made("concatenate", "mean", 0.5, HEADS)
    join = {name: leaf for name, leaf in variables["params"]["join"].items() if name not in OWN}
    _, plain, of_join = made("concatenate", "mean")
    assert join.keys() == plain["params"]["join"].keys()
    alone = variables | {"params": variables["params"] | {"join": join}}
    rows = batch()
    neither = rows | {name: np.zeros_like(rows[name]) for name in ("columns_present", "image_present")}
    np.testing.assert_allclose(apply(variables, neither)[0], of_join(alone, neither)[0], rtol=1e-5, atol=1e-6)
    for name in HEADS:
        louder = jax.tree.map(np.copy, variables)
        louder["params"]["join"][f"{name}_head"]["bias"] += 3.0
        there = {"columns": rows["columns_present"] > 0, "images": rows["image_present"].any(axis=1)}[name]
        moved = np.asarray(apply(louder, rows)[0] - apply(variables, rows)[0])
        np.testing.assert_allclose(moved, np.where(there, 1.0, 0.0)[:, None] * np.ones((1, 2)), atol=1e-5)


def test_training_without_a_key_is_refused() -> None:
    model, variables, _ = made("concatenate", "mean")
    with pytest.raises(ValueError, match="expected a key"):
        model.apply(variables, batch(), train=True)


def test_images_answer_alone_where_there_are_no_columns() -> None:
    schema = Schema(target=SCHEMA.target, image=SCHEMA.image)
    fusion = Fusion(join="gated", pooling="mean", width=8, hidden_layers=(8,), dropout=0.1, modality_dropout=0.5)
    shape = Architecture(stages=(1,), width=4)
    config = ModelConfig(type="multimodal", name="resnet", architecture=shape, fusion=fusion)
    model = build_model(config, schema, outputs=2)
    rows = {name: values for name, values in batch().items() if name.startswith("image")}
    variables = jax.jit(model.init)(jax.random.key(0), rows)
    assert sorted(variables["params"]) == ["images", "join"]
    found, _ = jax.jit(functools.partial(model.apply, train=True))(variables, rows, key=jax.random.key(0))
    assert np.isfinite(found).all()
