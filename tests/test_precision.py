"""bfloat16 programs as `backend.compiled` makes them: near their float32 twins, in training mode and out of it."""

import jax
import numpy as np
import pytest

from mmjax.backend import compiled
from mmjax.config import Architecture, ModelName
from mmjax.config import Model as ModelConfig
from mmjax.models.build import ARCHITECTURE_DEFAULTS, build_model, computed_kernels
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


@pytest.mark.parametrize("name", ["resnet", "airbench_s"])
def test_kernels_rounded_beforehand_give_the_same_answers(getkey, name: ModelName) -> None:
    small = Architecture(stages=(1,), width=8) if name == "resnet" else ARCHITECTURE_DEFAULTS[name]
    config = ModelConfig(name=name, type="vision", architecture=small)
    model = build_model(config, IMAGES, outputs=3, precision="bfloat16")
    batch = {"image": jax.random.normal(getkey(), (3, 1, 32, 32, 3))}
    variables = jax.tree.map(np.asarray, compiled(model.init)(jax.random.key(0), batch))
    rounded = computed_kernels(config, variables, "bfloat16")
    assert jax.tree.structure(rounded) == jax.tree.structure(variables)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(rounded)} == {"bfloat16", "float32"}
    run = compiled(lambda variables: model.apply(variables, batch, train=False)[0], precision="bfloat16")
    np.testing.assert_allclose(np.asarray(run(rounded)), np.asarray(run(variables)), atol=0.02)


def test_no_other_kernels_are_rounded() -> None:
    variables = {
        "params": {"images": {"kernel": np.ones(2, np.float32)}, "columns": {"kernel": np.ones(2, np.float32)}}
    }
    fused = computed_kernels(ModelConfig(type="multimodal"), variables, "bfloat16")["params"]
    assert [str(fused[trunk]["kernel"].dtype) for trunk in ("images", "columns")] == ["bfloat16", "float32"]
    assert computed_kernels(ModelConfig(type="vision"), variables, "float32") is variables
    assert computed_kernels(ModelConfig(type="tabular"), variables, "bfloat16") is variables
