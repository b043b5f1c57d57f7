"""airbench: the whitening layer whitens, convolutions start as identities, mirrored answers; when it is chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from msgspec import UNSET

from mmjax.config import Architecture
from mmjax.config import Model as ModelConfig
from mmjax.config_load import config_from_dict
from mmjax.errors import ConfigError
from mmjax.models.airbench import AirNet, dirac_init, max_pool_2x2, whitening_kernel
from mmjax.models.architecture import resolve_architecture
from mmjax.models.build import build_model
from mmjax.recipe import resolve
from mmjax.schema import ImageSpec, Schema, Target


def images(count: int = 24, px: int = 17) -> np.ndarray:
    """Smooth pictures, whose neighbouring pixels go together."""
    rng = np.random.default_rng(0)
    rough = rng.normal(size=(count, px + 4, px + 4, 3)).cumsum(axis=1).cumsum(axis=2)
    return (rough[:, 4:, 4:] / rough.std()).astype(np.float32)


def net(*, mirrored: bool = False, outputs: int = 5) -> AirNet:
    return AirNet(outputs, (8, 8, 8), nn.gelu, 0.0, mirrored)


def started(module: AirNet, x: np.ndarray) -> dict:
    return jax.jit(lambda key: module.init(key, x, train=False, mask=None))(jax.random.key(0))


def test_patches_are_white_after_the_first_layer() -> None:
    rng = np.random.default_rng(1)
    patches = (rng.normal(size=(50_000, 12)) @ rng.normal(size=(12, 12)) * 3).astype(np.float32)
    kernel = np.asarray(whitening_kernel(jnp.asarray(patches.reshape(-1, 2, 2, 3)))).reshape(12, 24)
    white = patches.astype(np.float64) @ kernel
    np.testing.assert_allclose(white[:, :12], -white[:, 12:], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(white[:, :12].T @ white[:, :12] / len(white), np.eye(12), atol=0.02)


def test_the_whitening_layer_is_of_the_rows_and_never_trained() -> None:
    x = images()
    variables = started(net(), x)
    patches = np.lib.stride_tricks.sliding_window_view(x, (2, 2), axis=(1, 2))  # [B, H, W, C, 2, 2]
    flat = np.moveaxis(patches, 3, 5).reshape(-1, 2, 2, 3)
    found = np.asarray(variables["batch_stats"]["whitening"])
    white = flat.reshape(-1, 12).astype(np.float64) @ found.reshape(12, 24)[:, :12]
    strong = (white**2).mean(axis=0) > 0.5  # components above the least variance
    assert strong.sum() >= 6
    np.testing.assert_allclose((white**2).mean(axis=0)[strong], 1.0, atol=0.5)
    assert "whitening" not in variables["params"]
    train = jax.jit(lambda variables: net().apply(variables, x, train=True, mask=None, mutable=["batch_stats"]))
    _, changed = train(variables)
    np.testing.assert_array_equal(changed["batch_stats"]["whitening"], found)


def test_convolutions_start_by_passing_channels_through() -> None:
    kernel = np.asarray(dirac_init(jax.random.key(0), (3, 3, 4, 6), jnp.float32))
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 4)).astype(np.float32)
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    np.testing.assert_allclose(y[..., :4], x, atol=1e-6)
    assert 0 < np.abs(kernel[..., 4:]).max() <= (9 * 4) ** -0.5


def test_pools_as_numpy_does() -> None:
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)
    expected = x[:, :6].reshape(2, 3, 2, 3, 2, 3).max(axis=(2, 4))
    np.testing.assert_array_equal(max_pool_2x2(jnp.asarray(x)), expected)


@pytest.mark.parametrize("size", [(8, 8), (8, 64), (9, 8)])
def test_the_smallest_images_have_pixels_left_to_the_end(size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=(4, *size, 3)).astype(np.float32)
    answer = jax.jit(lambda x: net().apply(started(net(), x), x, train=False, mask=None))(x)
    assert answer.shape == (4, 5)
    assert np.isfinite(answer).all()


def test_mirrored_answers_do_not_tell_left_from_right() -> None:
    x = images(6)
    variables = started(net(mirrored=True), x)
    answer = jax.jit(lambda x: net(mirrored=True).apply(variables, x, train=False, mask=None))
    plain = jax.jit(lambda x: net().apply(variables, x, train=False, mask=None))
    np.testing.assert_allclose(answer(x), answer(x[:, :, ::-1]), atol=1e-5)
    np.testing.assert_allclose(answer(x), (plain(x) + plain(x[:, :, ::-1])) / 2, atol=1e-5)
    assert np.abs(plain(x) - plain(x[:, :, ::-1])).max() > 1e-3


@pytest.mark.parametrize(
    ("px", "rows", "on_cpu", "expected"),
    [
        (64, 5_000, True, "airbench_s"),
        (64, 5_000, False, "airbench"),
        (95, 1_000, True, "airbench_s"),
        (96, 5_000, True, "resnet"),
        (64, 999, False, "resnet"),
    ],
)
def test_chosen_by_size_rows_and_device(px: int, rows: int, on_cpu: bool, expected: str) -> None:
    config = config_from_dict({"name": "x", "data": {"image": {"path": "."}}}, "test")
    target = Target(column="label", task="classification", classes=("a", "b"))
    schema = Schema(target=target, image=ImageSpec(height_px=px, width_px=px))
    assert config.model.name is UNSET
    resolved, decisions = resolve(config, schema, train_rows=rows, validation_rows=200, on_cpu=on_cpu)
    assert resolved.model.name == expected
    assert resolved.training.ema_decay == (0.99 if expected.startswith("airbench") else None)
    why = next(decision.why for decision in decisions if decision.key == "model.name")
    assert f"{rows} images of {px} px" in why


def test_models_that_were_trained_before_there_was_a_width_keep_theirs() -> None:
    schema = Schema(
        target=Target(column="label", task="classification", classes=("a", "b")),
        image=ImageSpec(height_px=32, width_px=32),
    )
    for name, width, groups in (("airbench_s", 24, (24, 48, 96)), ("airbench", 64, (64, 256, 256))):
        before = ModelConfig(type="vision", name=name)
        assert resolve_architecture(before, schema).width == width
        model = build_model(before, schema, outputs=2)
        params = jax.eval_shape(model.init, jax.random.key(0), {"image": images(2, 32)[:, None]})["params"]
        assert tuple(params[f"group{i}_conv2"]["kernel"].shape[-1] for i in (1, 2, 3)) == groups
    config = config_from_dict({"name": "x", "data": {"image": {"path": "."}}, "model": {"name": "airbench_s"}}, "test")
    resolved, _ = resolve(config, schema, train_rows=5_000, validation_rows=200)
    assert resolved.model.architecture.width == 32


def test_a_stem_has_no_effect_and_is_refused() -> None:
    schema = Schema(
        target=Target(column="label", task="classification", classes=("a", "b")),
        image=ImageSpec(height_px=32, width_px=32),
    )
    assert resolve_architecture(ModelConfig(name="airbench"), schema).stem is UNSET
    with pytest.raises(ConfigError, match=r"architecture\.stem: expected to be absent for airbench, got 'large'"):
        resolve_architecture(ModelConfig(name="airbench", architecture=Architecture(stem="large")), schema)
