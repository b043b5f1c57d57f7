"""ResNets have torchvision's parameters, and their blocks do what the paper says."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import Architecture, ModelName
from mmjax.config import Model as ModelConfig
from mmjax.models.build import build_model, count_parameters
from mmjax.schema import Schema, Target

SCHEMA = Schema(target=Target(column="y", task="classification", classes=("a", "b")))


def shapes(name: ModelName, px: int, **architecture: Any) -> Any:
    model = build_model(ModelConfig(name=name, architecture=Architecture(**architecture)), SCHEMA, outputs=1000)
    image = jax.ShapeDtypeStruct((2, 1, px, px, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), {"image": image})


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet18d", 11_708_744),
        ("resnet34d", 21_816_904),
        ("resnet50d", 25_576_264),
    ],
)
def test_parameters_are_as_many_as_torchvisions_and_timms(name: ModelName, count: int) -> None:
    assert count_parameters(shapes(name, 224)) == count


@pytest.mark.parametrize(("px", "kernel_px"), [(96, 7), (95, 3)])
def test_the_stem_follows_the_shorter_side(px: int, kernel_px: int) -> None:
    params = shapes("resnet", px)["params"]
    assert params["stem_conv"]["kernel"].shape == (kernel_px, kernel_px, 3, 32)
    assert params["head"]["kernel"].shape == (128, 1000)


def test_a_named_stem_is_taken_at_any_size() -> None:
    assert shapes("resnet", 32, stem="large")["params"]["stem_conv"]["kernel"].shape == (7, 7, 3, 32)
    assert shapes("resnet18", 224, stem="small")["params"]["stem_conv"]["kernel"].shape == (3, 3, 3, 64)
    deep = shapes("resnet50d", 64)["params"]
    assert [deep[f"stem_conv{i}"]["kernel"].shape[2:] for i in (1, 2, 3)] == [(3, 32), (32, 32), (32, 64)]


def test_stages_and_width_shape_the_network() -> None:
    params = shapes("resnet", 28, stages=(1, 2), width=4)["params"]
    convs = {name: leaf["kernel"].shape for name, leaf in params.items() if "conv" in name}
    assert convs == {
        "stem_conv": (3, 3, 3, 4),
        "stage1_block1_conv1": (3, 3, 4, 4),
        "stage1_block1_conv2": (3, 3, 4, 4),
        "stage2_block1_conv1": (3, 3, 4, 8),
        "stage2_block1_conv2": (3, 3, 8, 8),
        "stage2_block1_shortcut_conv": (1, 1, 4, 8),
        "stage2_block2_conv1": (3, 3, 8, 8),
        "stage2_block2_conv2": (3, 3, 8, 8),
    }


def test_a_bottleneck_strides_in_its_3x3_() -> None:
    params = shapes("resnet50", 224)["params"]
    assert params["stage2_block1_conv1"]["kernel"].shape == (1, 1, 256, 128)
    assert params["stage2_block1_conv2"]["kernel"].shape == (3, 3, 128, 128)
    assert params["stage2_block1_shortcut_conv"]["kernel"].shape == (1, 1, 256, 512)


def test_a_fresh_network_is_stem_mean_and_head() -> None:
    """With every branch at zero and one stage, blocks pass their input on: a closed form of the whole network."""
    model = build_model(ModelConfig(name="resnet", architecture=Architecture(stages=(1,), width=4)), SCHEMA, outputs=2)
    image = np.random.default_rng(0).normal(size=(2, 1, 6, 5, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), {"image": image})
    params = jax.tree.map(np.asarray, variables["params"])
    padded = np.pad(image[:, 0], ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    stem = np.einsum("bhwcij,ijco->bhwo", windows, params["stem_conv"]["kernel"]) / np.sqrt(1 + 1e-5)
    expected = np.maximum(stem, 0).mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
    outputs, _ = jax.jit(lambda v, b: model.apply(v, b, train=False))(variables, {"image": image})
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_large_images_shrink_32_times_before_the_pool() -> None:
    model = build_model(ModelConfig(name="resnet18"), SCHEMA, outputs=2)
    batch = {"image": jax.ShapeDtypeStruct((2, 1, 224, 224, 3), jnp.float32)}
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    program = str(jax.make_jaxpr(lambda v, b: model.apply(v, b, train=False))(variables, batch))
    assert "f32[2,112,112,64]" in program
    assert "f32[2,7,7,512]" in program
    assert "f32[2,6,6,512]" not in program
