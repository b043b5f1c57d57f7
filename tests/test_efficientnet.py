"""EfficientNets have torchvision's parameters, and a small one trains."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import Architecture, ModelName
from mmjax.config import Model as ModelConfig
from mmjax.models.build import build_model, count_parameters
from mmjax.models.efficientnet import EfficientNet, scaled_blocks, scaled_channels
from mmjax.network_facts import EFFICIENTNETS, SizeRow, StageRow
from mmjax.schema import Schema, Target

SCHEMA = Schema(target=Target(column="y", task="classification", classes=("a", "b")))
TINY = EfficientNet(
    2, SizeRow(1.0, 1.0, 0.2), jax.nn.silu, 0.2, stages=(StageRow(1, 3, 2, 8, 1), StageRow(2, 3, 1, 8, 1))
)
"""Every kind of block, with and without its input added."""


def random_like(shapes: Any) -> Any:
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.uniform(0.1, 0.4, leaf.shape).astype(leaf.dtype), shapes)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("efficientnet_b0", 5_288_548),
        ("efficientnet_b1", 7_794_184),
        ("efficientnet_b2", 9_109_994),
        ("efficientnet_b3", 12_233_232),
        ("efficientnet_b4", 19_341_616),
    ],
)
def test_parameters_are_as_many_as_torchvisions(name: ModelName, count: int) -> None:
    model = build_model(ModelConfig(name=name), SCHEMA, outputs=1000)
    image = jax.ShapeDtypeStruct((1, 1, 64, 64, 3), jnp.float32)
    assert count_parameters(jax.eval_shape(model.init, jax.random.key(0), {"image": image})) == count


def test_scaling_follows_the_paper() -> None:
    assert [scaled_channels(32, width) for width in (1.0, 1.1, 1.2, 1.4)] == [32, 32, 40, 48]
    assert [len(scaled_blocks(size)) for size in EFFICIENTNETS.values()] == [16, 23, 23, 26, 32] * 2
    assert [block.stride for block in scaled_blocks(EFFICIENTNETS["efficientnet_b0"])].count(2) == 4


@pytest.mark.parametrize(("px", "head_px"), [(96, 3), (64, 4)])
def test_the_stem_keeps_the_resolution_of_small_images(px: int, head_px: int) -> None:
    model = build_model(ModelConfig(name="efficientnet_b0"), SCHEMA, outputs=2)
    batch = {"image": jax.ShapeDtypeStruct((2, 1, px, px, 3), jnp.float32)}
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    program = str(jax.make_jaxpr(lambda v, b: model.apply(v, b, train=False))(variables, batch))
    assert f"f32[2,{head_px},{head_px},1280]" in program


def test_a_small_one_trains_and_its_rows_are_independent() -> None:
    image = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    variables = random_like(jax.eval_shape(partial(TINY.init, train=False, mask=None), jax.random.key(0), image))
    keys = {"dropout": jax.random.key(1)}

    def loss(params: Any) -> Any:
        v = {**variables, "params": params}
        outputs, stats = TINY.apply(v, image, train=True, mask=None, rngs=keys, mutable=["batch_stats"])
        return (outputs**2).mean(), stats["batch_stats"]

    (_, stats), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0
    changed = jax.tree.map(lambda new, old: not np.array_equal(new, old), stats, variables["batch_stats"])
    assert all(jax.tree.leaves(changed))
    evaluate = jax.jit(lambda image: TINY.apply(variables, image, train=False, mask=None))
    np.testing.assert_allclose(evaluate(image[::-1].copy())[::-1], evaluate(image), rtol=1e-4, atol=1e-5)


def test_dropout_0_switches_stochastic_depth_off_and_needs_no_key() -> None:
    batch = {"image": jax.ShapeDtypeStruct((2, 1, 16, 16, 3), jnp.float32)}
    config = ModelConfig(name="efficientnet_b0", architecture=Architecture(dropout=0.0))
    model = build_model(config, SCHEMA, outputs=2)
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    outputs, stats = jax.eval_shape(lambda v, b: model.apply(v, b, train=True), variables, batch)
    assert outputs.shape == (2, 2)
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
