"""The convolution equals `jax.lax`'s, values and gradients, whatever form the backend takes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from mmjax.models.convolution import convolution
from mmjax.models.layers import max_pool_3x3


def reference(x: Any, kernel: Any, stride: int, pads: Any, groups: int) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=layout, feature_group_count=groups, precision="highest"
    )


def normals(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# The shapes are drawn from a few values, so that most examples find their program compiled.
@settings(max_examples=20, deadline=None)
@given(
    kernel_px=st.sampled_from([1, 2, 3, 5]),
    stride=st.sampled_from([1, 2, 3]),
    size=st.sampled_from([(5, 8), (9, 6)]),
    padding=st.sampled_from([0, 1, ((0, 1), (2, 1))]),
    channels_groups=st.sampled_from([(3, 4, 1), (4, 4, 4), (4, 8, 4), (4, 6, 2), (1, 1, 1)]),
    seed=st.integers(0, 9),
)
def test_equals_lax_with_its_gradients(
    kernel_px: int, stride: int, size: tuple[int, int], padding: Any, channels_groups: tuple[int, int, int], seed: int
) -> None:
    inputs, outputs, groups = channels_groups
    x = normals(seed, 2, *size, inputs)
    kernel = normals(seed + 100, kernel_px, kernel_px, inputs // groups, outputs)
    pads = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding

    @jax.jit
    def both(x: jax.Array, kernel: jax.Array) -> list[Any]:
        expected, back = jax.vjp(lambda x, k: reference(x, k, stride, pads, groups), x, kernel)
        got, got_back = jax.vjp(
            lambda x, k: convolution(x, k, stride=stride, padding=padding, groups=groups), x, kernel
        )
        gradient = jnp.sin(jnp.arange(expected.size, dtype=jnp.float32)).reshape(expected.shape)
        return [(got, expected), *zip(got_back(gradient), back(gradient), strict=True)]

    for got, expected in both(x, kernel):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 4])
def test_bfloat16_rounds_the_f32_result_once(groups: int) -> None:
    x = jnp.asarray(normals(0, 2, 6, 6, 4), jnp.bfloat16)
    kernel = jnp.asarray(normals(1, 3, 3, 4 // groups, 4), jnp.bfloat16)
    got = convolution(x, kernel, padding=1, groups=groups)
    wide = reference(x.astype(jnp.float32), kernel.astype(jnp.float32), 1, ((1, 1), (1, 1)), groups)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), wide, rtol=2**-8, atol=1e-6)


def test_depthwise_maps_over_members() -> None:
    x, kernels = normals(0, 3, 2, 4, 4, 4), normals(1, 3, 2, 2, 1, 4)

    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return (convolution(x, kernel, padding=1, groups=4) ** 2).sum()

    together = jax.jit(jax.vmap(jax.grad(loss)))(kernels, x)
    one_by_one = jax.jit(lambda *pairs: lax.map(lambda pair: jax.grad(loss)(*pair), pairs))(kernels, x)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [(7, 8), (1, 2), (12, 5)])
def test_max_pool_equals_the_windowed_reduction(size: tuple[int, int]) -> None:
    x = normals(0, 2, *size, 3)
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))

    def windowed(x: Any) -> jax.Array:
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)

    @jax.jit
    def both(x: jax.Array) -> list[Any]:
        expected, back = jax.vjp(windowed, x)
        got, got_back = jax.vjp(max_pool_3x3, x)
        return [(got, expected), (got_back(expected)[0], back(expected)[0])]

    for got, expected in both(x):
        np.testing.assert_allclose(got, expected, rtol=1e-6)
