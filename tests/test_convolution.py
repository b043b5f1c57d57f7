"""The convolution equals `jax.lax`'s, values and gradients, whatever form the backend takes."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from mmjax import backend
from mmjax.backend import compiled
from mmjax.models import convolution_check
from mmjax.models.convolution import chosen_forms, convolution
from mmjax.models.convolution_check import form_programs, wrong_forms
from mmjax.models.convolution_forms import (
    FORWARD_FORMS,
    INPUT_FORMS,
    WEIGHT_FORMS,
    Geometry,
    by_lax,
    by_lax_folded,
    sums_over_pixels,
)
from mmjax.models.pools import max_pool_3x3
from mmjax.numerics import find_wrong


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


LAYERS = {
    "dense": ((9, 6), (3, 3, 8, 6), Geometry(1, ((1, 1), (1, 1)), 1)),
    "strided": ((9, 6), (3, 3, 8, 6), Geometry(2, ((1, 1), (1, 1)), 1)),
    "strided, odd pads": ((8, 7), (5, 3, 6, 8), Geometry(2, ((1, 2), (0, 1)), 1)),
    "stride beyond the kernel": ((7, 8), (2, 2, 8, 6), Geometry(3, ((0, 0), (0, 0)), 1)),
    "pixels left over": ((8, 8), (3, 3, 8, 6), Geometry(3, ((0, 0), (0, 0)), 1)),
    "pads beyond the kernel": ((5, 5), (2, 2, 8, 6), Geometry(1, ((3, 0), (0, 4)), 1)),
    "pointwise": ((5, 4), (1, 1, 8, 6), Geometry(1, ((0, 0), (0, 0)), 1)),
    "one pixel, strided": ((1, 1), (3, 3, 8, 6), Geometry(2, ((1, 1), (1, 1)), 1)),
    "one row, stride beyond the image": ((1, 4), (7, 7, 8, 6), Geometry(3, ((3, 3), (3, 3)), 1)),
    "few channels": ((6, 7), (3, 3, 3, 6), Geometry(1, ((1, 1), (1, 1)), 1)),
    "depthwise": ((7, 6), (3, 3, 1, 8), Geometry(1, ((1, 1), (1, 1)), 8)),
    "depthwise, strided": ((7, 6), (5, 5, 1, 8), Geometry(2, ((2, 2), (2, 2)), 8)),
    "depthwise, stride beyond the kernel": ((7, 6), (1, 2, 1, 8), Geometry(3, ((0, 0), (0, 0)), 8)),
}
DEPTHWISE_FORMS, DENSE_FORMS = ("shifted", "summed"), ("taps", "rows")
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 1e-2}


def forms_of(layer: str, forms: Any) -> dict[str, Any]:
    """Those that are for such a layer."""
    depthwise = layer.startswith("depthwise")
    others = DENSE_FORMS if depthwise else DEPTHWISE_FORMS
    return {name: form for name, form in forms.items() if name not in others}


@pytest.mark.parametrize(
    ("layer", "dtype"),
    [
        *((layer, jnp.float32) for layer in LAYERS),
        *(
            (layer, jnp.bfloat16)
            for layer in ("dense", "strided", "one pixel, strided", "pointwise", "few channels", "depthwise")
        ),
    ],
)
def test_every_form_equals_lax(layer: str, dtype: Any) -> None:
    size, kernel_shape, geometry = LAYERS[layer]
    inputs = kernel_shape[2] * geometry.groups
    x = jnp.asarray(normals(0, 4, *size, inputs), dtype)
    kernel = jnp.asarray(normals(1, *kernel_shape), dtype)
    wide = [np.asarray(each, np.float32) for each in (x, kernel)]
    forward = partial(reference, stride=geometry.stride, pads=geometry.pads, groups=geometry.groups)
    gradient = jnp.asarray(normals(2, *jax.eval_shape(forward, *wide).shape), dtype)

    @jax.jit
    def by_lax(x: Any, kernel: Any, gradient: Any) -> tuple[jax.Array, ...]:
        expected, back = jax.vjp(forward, x, kernel)
        return (expected, *back(gradient))

    expected, towards_x, towards_kernel = by_lax(*wide, np.asarray(gradient, np.float32))

    @partial(compiled, precision="bfloat16" if dtype == jnp.bfloat16 else "float32")
    def all_forms(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> dict[str, Any]:
        return {
            "forward": {n: form(x, kernel, geometry) for n, form in forms_of(layer, FORWARD_FORMS).items()},
            "input": {n: form(gradient, kernel, x.shape, geometry) for n, form in forms_of(layer, INPUT_FORMS).items()},
            "weight": {
                n: form(x, gradient, kernel.shape, geometry) for n, form in forms_of(layer, WEIGHT_FORMS).items()
            },
        }

    found = all_forms(x, kernel, gradient)
    assert len(found["forward"]) + len(found["input"]) + len(found["weight"]) >= 5
    for what, right in {"forward": expected, "input": towards_x, "weight": towards_kernel}.items():
        for name, got in found[what].items():
            assert got.dtype == dtype
            difference = np.abs(np.asarray(got, np.float32) - right).max() / np.abs(right).max()
            assert difference <= TOLERANCE[dtype], (what, name)


def test_the_choice_is_one_of_the_forms_for_that_layer() -> None:
    for layer, (_, kernel_shape, geometry) in LAYERS.items():
        for narrow in (False, True):
            chosen = chosen_forms(kernel_shape, geometry, narrow=narrow)
            for name, forms in zip(chosen, (FORWARD_FORMS, INPUT_FORMS, WEIGHT_FORMS), strict=True):
                assert name in forms_of(layer, forms), (layer, name)


@settings(max_examples=10, deadline=None)
@given(shape=st.sampled_from([(5, 4, 3, 2), (6, 3), (4, 33, 40, 2)]), seed=st.integers(0, 99), arrays=st.integers(1, 3))
def test_sums_over_pixels_are_sums(shape: tuple[int, ...], seed: int, arrays: int) -> None:
    given_arrays = [normals(seed + number, *shape) for number in range(arrays)]
    got = jax.jit(sums_over_pixels)([jnp.asarray(each) for each in given_arrays])
    for each, total in zip(given_arrays, got, strict=True):
        np.testing.assert_allclose(total, each.sum(tuple(range(len(shape) - 1)), dtype=np.float64), rtol=0, atol=3e-4)


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


@settings(max_examples=25, deadline=None)
@given(
    batch_channels=st.sampled_from([(2, 3), (1, 1), (3, 4), (0, 3)]),
    kernel=st.sampled_from([(7, 7), (3, 3), (4, 7), (2, 5)]),
    stride=st.sampled_from([2, 3]),
    size=st.sampled_from([(12, 9), (7, 8), (1, 3)]),
    pads=st.sampled_from([((3, 3), (3, 3)), ((0, 1), (1, 1)), ((0, 0), (2, -1)), ((5, 0), (9, 9))]),
)
def test_folded_pixels_convolve_to_the_same(
    batch_channels: tuple[int, int], kernel: tuple[int, int], stride: int, size: tuple[int, int], pads: Any
) -> None:
    batch, channels = batch_channels
    x, weights = normals(0, batch, *size, channels), normals(1, *kernel, channels, 5)
    geometry = Geometry(stride, pads, 1)
    expected, back = jax.vjp(lambda x, k: by_lax(x, k, geometry), x, weights)
    got, got_back = jax.vjp(lambda x, k: by_lax_folded(x, k, geometry), x, weights)
    gradient = normals(2, *expected.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)
    for mine, its in zip(got_back(gradient), back(gradient), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=5e-5)


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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_check_finds_no_form_wrong_here_and_each_one_that_is(precision: str) -> None:
    options = backend._compiling("cpu", bfloat16=precision == "bfloat16").options
    programs = form_programs(precision)
    checked = {(part, form) for part, form in convolution_check._FOR}
    assert checked == {
        (part, form)
        for part, forms in (("forward", FORWARD_FORMS), ("input", INPUT_FORMS), ("weight", WEIGHT_FORMS))
        for form in forms
        if form != "lax"
    }
    assert find_wrong(programs, options) == ()
    off = [program._replace(expected=lambda *x, p=program: (1.1 * p.expected(*x)[0],)) for program in programs]
    assert [wrong.program for wrong in find_wrong(off, options)] == [program.name for program in programs]


@pytest.mark.parametrize("group", [1, 8])
def test_a_form_that_is_wrong_here_is_not_used(group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMJAX_CACHE_DIR", str(tmp_path))
    right = INPUT_FORMS["phases"]
    monkeypatch.setitem(INPUT_FORMS, "phases", lambda *asked: right(*asked) * 1.01)  # as a compiler might
    wrong_forms.cache_clear()
    x, kernel = jnp.asarray(normals(0, 2, 6, 6, 8)), jnp.asarray(normals(1, 3, 3, 8 // group, 8))

    def gradient(f: Any) -> jax.Array:
        return jax.grad(lambda x: (f(x) ** 2).sum())(x)

    with pytest.warns(RuntimeWarning, match=r"input of convolutions in float32 by `phases`: wrong on this CPU"):
        got = gradient(lambda x: convolution(x, kernel, padding=1, groups=group))
    np.testing.assert_allclose(
        got, gradient(lambda x: reference(x, kernel, 1, ((1, 1), (1, 1)), group)), rtol=1e-4, atol=1e-4
    )
    assert wrong_forms("float32") == {("input", "phases")}
    monkeypatch.undo()
    wrong_forms.cache_clear()
    assert wrong_forms("float32") == frozenset()


def test_no_images_have_no_gradient() -> None:
    kernel, geometry = (3, 3, 8, 6), Geometry(2, ((1, 1), (1, 1)), 1)
    for name in ("rows", "taps"):
        found = WEIGHT_FORMS[name](jnp.zeros((0, 6, 6, 8)), jnp.zeros((0, 3, 3, 6)), kernel, geometry)
        np.testing.assert_array_equal(found, np.zeros(kernel))


def test_a_form_that_does_not_compile_is_wrong() -> None:
    def refused(x: jax.Array) -> tuple[jax.Array]:
        raise jax.errors.JaxRuntimeError("INTERNAL: no such thing")

    programs = form_programs("float32")[:3]
    broken = programs[1]._replace(run=lambda *inputs: refused(inputs[0]))
    wrong = find_wrong([programs[0], broken, programs[2]], backend._compiling("cpu").options)
    assert [each.program for each in wrong] == [broken.name]
    assert np.isnan(wrong[0].difference)
