"""Laws that every network keeps, and how the config's model section is read."""

import importlib
import pkgutil
from functools import cache
from inspect import signature
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from mmjax import models
from mmjax.config import Architecture, ModelName
from mmjax.config import Model as ModelConfig
from mmjax.errors import ConfigError, DataError
from mmjax.models.architecture import ARCHITECTURE_DEFAULTS, resolve_architecture
from mmjax.models.base import Model, Variables
from mmjax.models.build import build_model, count_parameters
from mmjax.network_facts import EFFICIENTNETS, OPTIONS
from mmjax.schema import Batch, Column, ImageSpec, Schema, Target

ROWS, OUTPUTS = 4, 3

SCHEMA = Schema(
    target=Target(column="y", task="classification", classes=("a", "b", "c")),
    columns=(
        Column(name="age", kind="numeric"),
        Column(name="city", kind="categorical", vocabulary=("x", "y", "z")),
        Column(name="member", kind="boolean", vocabulary=("no", "yes")),
    ),
)

SMALL: dict[str, ModelConfig] = {
    "mlp": ModelConfig(name="mlp", architecture=Architecture(hidden_layers=(8, 8))),
    "mlp_batch": ModelConfig(
        name="mlp", architecture=Architecture(hidden_layers=(8, 8), dropout=0.0, normalization="batch", residual=True)
    ),
    "mlp_layer": ModelConfig(
        name="mlp", architecture=Architecture(hidden_layers=(8,), dropout=0.5, normalization="layer", activation="mish")
    ),
    "resnet": ModelConfig(name="resnet", architecture=Architecture(stages=(1, 1), width=4, dropout=0.1)),
}
PRECISIONS = ("float32", "bfloat16")
CASES = [(name, "float32") for name in SMALL] + [("mlp_batch", "bfloat16"), ("resnet", "bfloat16")]


def batch_of(seed: int = 0, rows: int = ROWS) -> Batch:
    random = np.random.default_rng(seed)
    return {
        "numeric": random.normal(size=(rows, 1)).astype(np.float32),
        "dense": random.integers(0, 2, size=(rows, 2)).astype(np.float32),
        "category": np.stack([random.integers(0, 4, rows), random.integers(0, 3, rows)], axis=1).astype(np.int32),
        "image": random.normal(size=(rows, 1, 8, 6, 3)).astype(np.float32),
    }


@cache
def built(name: str, precision: str) -> tuple[Model, Variables]:
    """The model, and random variables: positive, so that they can be variances, and cheaper than a compiled init."""
    model = build_model(SMALL[name], SCHEMA, outputs=OUTPUTS, precision=precision)
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch_of())
    return model, jax.tree.map(lambda leaf: random.uniform(0.1, 0.9, leaf.shape).astype(np.float32), shapes)


@cache
def evaluated(name: str, precision: str) -> Any:
    model, _ = built(name, precision)
    return jax.jit(lambda variables, batch: model.apply(variables, batch, train=False)[0])


def tolerance(precision: str) -> dict[str, Any]:
    return {"rtol": 1e-5, "atol": 1e-5} if precision == "float32" else {"rtol": 0.05, "atol": 0.05}


@pytest.mark.parametrize(("name", "precision"), [("mlp", "bfloat16"), ("resnet", "float32")])
def test_variables_are_plain_f32_and_follow_the_key(name: str, precision: str) -> None:
    model, _ = built(name, precision)
    init = jax.jit(model.init)
    first, again, other = (init(jax.random.key(seed), batch_of(seed)) for seed in (0, 0, 1))
    assert set(first) == {"params", "batch_stats"}
    assert all(type(node) is dict for node in (first, first["params"], first["batch_stats"]))
    assert {leaf.dtype for leaf in jax.tree.leaves(first)} == {jnp.dtype(jnp.float32)}
    jax.tree.map(np.testing.assert_array_equal, first, again)
    weights = [tree["params"]["head"]["kernel"] for tree in (first, other)]
    assert not np.array_equal(*weights)
    assert count_parameters(first) == count_parameters(jax.eval_shape(model.init, jax.random.key(0), batch_of()))


@pytest.mark.parametrize(("name", "precision"), [case for case in CASES if case[1] == "float32"])
def test_jit_equals_eager_and_statistics_rest_in_evaluation(name: str, precision: str) -> None:
    model, variables = built(name, precision)
    outputs, stats = model.apply(variables, batch_of(), train=False)
    assert outputs.shape == (ROWS, OUTPUTS)
    assert outputs.dtype == jnp.float32
    np.testing.assert_allclose(outputs, evaluated(name, precision)(variables, batch_of()), **tolerance(precision))
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])


def test_a_network_answers_as_in_evaluation_unless_it_is_told_to_train() -> None:
    """That of every family, and each of its layers: none asks a notebook for `train`, `mask` or `progress`."""
    for name in SMALL:
        model, variables = built(name, "float32")
        expected, _ = model.apply(variables, batch_of(), train=False)
        np.testing.assert_array_equal(model.apply(variables, batch_of())[0], expected)
    wanted = {"train": False, "mask": None, "progress": None}
    files = [importlib.import_module(f"mmjax.models.{file.name}") for file in pkgutil.iter_modules(models.__path__)]
    classes = {kind for file in files for kind in vars(file).values() if isinstance(kind, type)}
    asked = {kind.__name__: signature(kind.__call__).parameters for kind in classes if issubclass(kind, nn.Module)}
    assert {name for name, parameters in asked.items() if "train" in parameters} >= {
        "MLP", "RealMLP", "TabM", "ResNet", "EfficientNet", "AirNet", "Join", "BatchNorm", "Dropout", "FadingDropout",
    }  # fmt: skip
    for parameters in asked.values():
        found = {name: parameters[name].default for name in wanted if name in parameters}
        assert found == {name: wanted[name] for name in found}


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_rows_are_independent_in_evaluation(name: str, precision: str) -> None:
    _, variables = built(name, precision)
    run = evaluated(name, precision)

    @settings(max_examples=10, deadline=None)
    @given(order=st.permutations(range(ROWS)), seed=st.integers(0, 3))
    def law(order: list[int], seed: int) -> None:
        batch = batch_of(seed)
        outputs = np.asarray(run(variables, batch))
        permuted = run(variables, {field: array[order] for field, array in batch.items()})
        np.testing.assert_allclose(permuted, outputs[order], **tolerance(precision))
        alone = run(variables, {field: np.where(np.arange(ROWS) == 0, a.T, 0).T for field, a in batch.items()})
        np.testing.assert_allclose(alone[0], outputs[0], **tolerance(precision))

    law()


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_training_moves_statistics_and_gradients_are_finite(name: str, precision: str) -> None:
    model, variables = built(name, precision)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        key = jax.random.key(3)
        outputs, stats = model.apply({**variables, "params": params}, batch_of(), train=True, key=key)
        return (outputs**2).mean(), stats

    (_, stats), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    for new, old in zip(jax.tree.leaves(stats), jax.tree.leaves(variables["batch_stats"]), strict=True):
        assert new.dtype == jnp.float32
        assert not np.array_equal(new, old)
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0


@pytest.mark.parametrize("name", list(SMALL))
def test_a_key_is_needed_only_for_dropout(name: str) -> None:
    model, variables = built(name, "float32")
    run = jax.jit(lambda key: model.apply(variables, batch_of(), train=True, key=key)[0])
    first, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    if name == "mlp_batch":
        np.testing.assert_array_equal(first, other)
        np.testing.assert_allclose(model.apply(variables, batch_of(), train=True)[0], first, rtol=1e-4, atol=1e-5)
    else:
        assert not np.array_equal(first, other)
        with pytest.raises(ValueError, match=r"Model.apply: expected a key, for dropout in training, got None"):
            model.apply(variables, batch_of(), train=True)


@pytest.mark.parametrize("name", ["mlp_batch", "resnet"])
def test_rows_of_weight_zero_change_no_statistics(name: str) -> None:
    model, variables = built(name, "float32")
    run = jax.jit(lambda batch: model.apply(variables, batch, train=True, key=jax.random.key(0))[1])
    padded = {field: np.concatenate([array, 100 * array]) for field, array in batch_of().items() if field != "category"}
    padded["category"] = np.concatenate([batch_of()["category"], np.zeros((ROWS, 2), np.int32)])
    padded["weight"] = np.repeat(np.array([0.5, 0.0], np.float32), ROWS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), run(padded), run(batch_of()))
    nothing = run({**batch_of(), "weight": np.zeros(ROWS, np.float32)})
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(nothing))


def test_bfloat16_stays_near_float32() -> None:
    _, variables = built("resnet", "float32")
    wide, narrow = (evaluated("resnet", precision)(variables, batch_of()) for precision in PRECISIONS)
    np.testing.assert_allclose(narrow, wide, rtol=0.1, atol=0.1)
    assert not np.array_equal(narrow, wide)


def test_architecture_defaults_are_complete_and_resolving_twice_changes_nothing() -> None:
    assert set(ARCHITECTURE_DEFAULTS) == set(ModelName.__args__)
    for name in ModelName.__args__:
        once = resolve_architecture(ModelConfig(name=name), SCHEMA)
        assert resolve_architecture(ModelConfig(name=name, architecture=once), SCHEMA) == once
    mlp = resolve_architecture(ModelConfig(name="mlp", architecture=Architecture(dropout=0.3)), SCHEMA)
    assert (mlp.input_dim, mlp.dropout, mlp.hidden_layers, mlp.embedding_dim) == (3, 0.3, (256, 256), 3)


def test_a_config_may_set_all_that_a_network_uses() -> None:
    """But for EfficientNet's activation, which is no choice."""
    assert set(OPTIONS) == set(ModelName.__args__)
    both = msgspec.structs.replace(SCHEMA, image=ImageSpec(height_px=8, width_px=8))
    for name in ModelName.__args__:
        resolved = resolve_architecture(ModelConfig(name=name), both)
        used = {field for field in resolved.__struct_fields__ if getattr(resolved, field) not in (UNSET, None)}
        assert used - ({"activation"} if name in EFFICIENTNETS else set()) == set(OPTIONS[name])


def test_a_wrong_architecture_is_refused_all_at_once() -> None:
    wrong = ModelConfig(name="mlp", architecture=Architecture(input_dim=7, stages=(1,), width=8))
    with pytest.raises(ConfigError) as caught:
        build_model(wrong, SCHEMA, outputs=2)
    assert caught.value.problems == (
        "model.architecture.stages: expected to be absent for mlp, got (1,); "
        "remove it, mlp uses activation, dropout, embedding_dim, hidden_layers, input_dim, normalization, residual",
        "model.architecture.width: expected to be absent for mlp, got 8; "
        "remove it, mlp uses activation, dropout, embedding_dim, hidden_layers, input_dim, normalization, residual",
        "model.architecture.input_dim: expected 3, the feature columns in the data, got 7; "
        "correct it or remove it, then it is counted",
    )
    with pytest.raises(ConfigError, match=r"model.architecture.hidden_layers: expected to be absent for resnet18"):
        build_model(ModelConfig(name="resnet18", architecture=Architecture(hidden_layers=(8,))), SCHEMA, outputs=2)
    with pytest.raises(ConfigError, match=r"model.name: expected a name, got none"):
        resolve_architecture(ModelConfig(), SCHEMA)


def test_a_missing_or_wrong_modality_is_named() -> None:
    mlp, resnet = built("mlp", "float32")[0], built("resnet", "float32")[0]
    images = {"image": np.zeros((2, 2, 8, 8, 3), np.float32)}
    table = {"category": np.zeros((2, 5), np.int32)}
    with pytest.raises(DataError, match=r"mlp: expected at least one of numeric, dense, category .* got \['image'\]"):
        mlp.init(jax.random.key(0), images)
    with pytest.raises(DataError, match=r"mlp: expected 2 category columns, as in the schema, got 5; encode"):
        mlp.init(jax.random.key(0), table)
    with pytest.raises(DataError, match=r"resnet: expected image in the batch, got \['category'\]; give the config"):
        resnet.init(jax.random.key(0), table)
    with pytest.raises(DataError, match=r"resnet: expected one image a row.* got shape \[2, 2, 8, 8, 3\]"):
        resnet.init(jax.random.key(0), images)
    with pytest.raises(DataError, match=r"resnet: expected image as a Transform returns it.*got uint8"):
        resnet.init(jax.random.key(0), {"image": np.zeros((2, 1, 8, 8, 3), np.uint8)})
