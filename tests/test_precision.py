"""bfloat16 programs as `backend.compiled` makes them: near their float32 twins, in training mode and out of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backend import compiled
from mmjax.config import Architecture, ModelName
from mmjax.config import Model as ModelConfig
from mmjax.models.build import ARCHITECTURE_DEFAULTS, build_model, served_variables
from mmjax.models.convolution import convolution
from mmjax.models.layers import folded_norm
from mmjax.schema import Column, ImageSpec, Schema, Target

TARGET = Target(column="y", task="classification", classes=("a", "b", "c"))
IMAGES = Schema(target=TARGET, image=ImageSpec(height_px=32, width_px=32))
TABLE = Schema(target=TARGET, columns=tuple(Column(name=name, kind="numeric") for name in "pqr"))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("mlp", Architecture(hidden_layers=(16,), dropout=0.0, normalization="batch")),
        ("resnet", Architecture(stages=(1, 1), width=16)),
    ],
)
def test_bfloat16_stays_near_float32(getkey, name: ModelName, architecture: Architecture, train: bool) -> None:
    schema = TABLE if name == "mlp" else IMAGES
    shape = (8, 3) if name == "mlp" else (8, 1, 32, 32, 3)
    batch = {"numeric" if name == "mlp" else "image": jax.random.normal(getkey(), shape)}
    outputs = []
    for precision in ("float32", "bfloat16"):
        config = ModelConfig(name=name, architecture=architecture)
        model = build_model(config, schema, outputs=3, precision=precision)
        variables = compiled(model.init)(jax.random.key(0), batch)

        def forward(variables, batch, model=model):
            return model.apply(variables, batch, train=train, key=jax.random.key(0))[0]

        outputs.append(np.asarray(compiled(forward)(variables, batch)))
    np.testing.assert_allclose(outputs[1], outputs[0], atol=0.05)


@pytest.mark.parametrize("name", ["resnet", "tf_efficientnet_b0", "airbench_s"])
def test_a_served_network_answers_as_the_trained_one(getkey, name: ModelName) -> None:
    small = Architecture(stages=(1,), width=8) if name == "resnet" else ARCHITECTURE_DEFAULTS[name]
    config = ModelConfig(name=name, type="vision", architecture=small)
    batch = {"image": jax.random.normal(getkey(), (3, 1, 16, 16, 3))}
    trained, served = (build_model(config, IMAGES, outputs=3, precision="bfloat16", served=s) for s in (False, True))
    rng = np.random.default_rng(0)  # of any norm, so that all of it is folded
    variables = jax.tree.map(
        lambda leaf: leaf + np.abs(rng.normal(0, 0.2, leaf.shape).astype(np.float32)) if leaf.ndim == 1 else leaf,
        jax.tree.map(np.asarray, compiled(trained.init)(jax.random.key(0), batch)),
    )
    ready = served_variables(config, variables, "bfloat16")
    assert jax.tree.structure(ready) == jax.tree.structure(variables)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(ready)} == {"bfloat16", "float32"}
    answers = [
        np.asarray(compiled(lambda v, model=model: model.apply(v, batch, train=False)[0], precision="bfloat16")(given))
        for model, given in ((trained, variables), (served, ready))
    ]
    np.testing.assert_allclose(answers[1], answers[0], atol=0.03 * np.abs(answers[0]).max())


def test_a_folded_norm_is_the_norm() -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 5, 5, 3)).astype(np.float32), rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
    scale, bias, mean, var = rng.uniform(0.5, 2, (4, 4)).astype(np.float32)
    y = np.asarray(convolution(jnp.asarray(x), jnp.asarray(kernel), padding=1))
    expected = (y - mean) / np.sqrt(var + 1e-3) * scale + bias
    folded, shift = folded_norm(kernel, {"scale": scale, "bias": bias}, {"mean": mean, "var": var}, 1e-3)
    got = convolution(jnp.asarray(x), jnp.asarray(folded), padding=1) + shift.reshape(1, 1, 1, 4)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    norm, stats = (
        {"scale": np.stack([scale] * 2), "bias": np.stack([bias] * 2)},
        {"mean": mean[None], "var": var[None]},
    )
    kernels, shifts = folded_norm(np.stack([kernel] * 2), norm, stats, 1e-3)  # of members
    np.testing.assert_array_equal(kernels[1], folded)
    np.testing.assert_array_equal(shifts[1], shift)


def test_only_images_in_bfloat16_are_changed() -> None:
    kernel = {"head": {"kernel": np.ones(2, np.float32)}}
    variables = {"params": {"images": kernel, "columns": kernel}, "batch_stats": {"images": {}, "columns": {}}}
    fused = served_variables(ModelConfig(type="multimodal", name="resnet"), variables, "bfloat16")["params"]
    assert [str(fused[trunk]["head"]["kernel"].dtype) for trunk in ("images", "columns")] == ["bfloat16", "float32"]
    assert served_variables(ModelConfig(type="vision", name="resnet"), variables, "float32") is variables
    assert served_variables(ModelConfig(type="tabular", name="mlp"), variables, "bfloat16") is variables
