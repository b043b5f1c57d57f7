"""scale_image: channel statistics over the training images, the same numbers in every mode of use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.transforms import image as room
from mmjax.transforms.image import fit_channels, scale_image

laws = settings(max_examples=25, deadline=None)


def batch(seed: int = 0, rows: int = 9, dtype: type = np.uint8) -> dict:
    rng = np.random.default_rng(seed)
    present = (rng.random((rows, 2)) < 0.7).astype(np.float32)
    return {"image": rng.integers(0, 256, (rows, 2, 5, 4, 3)).astype(dtype), "image_present": present}


@laws
@given(seed=st.integers(0, 1000), dtype=st.sampled_from([np.uint8, np.float32]))
def test_fit_equals_numpy_over_the_images_present(seed, dtype):
    data = batch(seed, dtype=dtype)
    state = scale_image(normalize=True).fit(data)
    chosen = data["image"][data["image_present"] > 0].reshape(-1, 3) / 255.0
    np.testing.assert_allclose(state["mean"], chosen.mean(0), rtol=1e-6)
    np.testing.assert_allclose(state["std"], chosen.std(0), rtol=1e-6)
    assert state["mean"].dtype == state["std"].dtype == np.float32


def test_chunks_change_nothing(monkeypatch):
    data = batch(rows=40)
    whole = fit_channels(data["image"], data["image_present"])
    monkeypatch.setattr(room, "CHUNK_BYTES", 8 * 2 * 20 * 3)
    parts = fit_channels(data["image"], data["image_present"])
    for name in ("mean", "std"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_apply_equals_the_formula_compiled_or_not(normalize, dtype):
    transform, data = scale_image(normalize=normalize), batch(dtype=dtype)
    state = transform.fit(data)
    mean, std = (state["mean"], state["std"]) if normalize else (0.0, 1.0)
    want = (data["image"] / 255.0 - mean) / std * data["image_present"][:, :, None, None, None]
    got = transform.apply(state, data)
    compiled = jax.jit(transform.apply)(state, data)
    assert got["image"].dtype == compiled["image"].dtype == np.float32
    np.testing.assert_allclose(got["image"], want, atol=2e-6)
    np.testing.assert_allclose(compiled["image"], want, atol=2e-6)
    assert data["image"].dtype == dtype
    if not normalize:
        assert jax.tree.leaves(state) == []


def test_training_images_get_mean_zero_and_std_one():
    transform, data = scale_image(normalize=True), batch(rows=60)
    out = np.asarray(transform.apply(transform.fit(data), data)["image"])[data["image_present"] > 0].reshape(-1, 3)
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(0), 1, atol=1e-5)


def test_absent_images_are_zero():
    transform, data = scale_image(normalize=True), batch()
    out = np.asarray(transform.apply(transform.fit(data), data)["image"])
    assert not out[data["image_present"] == 0].any()
    assert out[data["image_present"] > 0].any()


def test_rows_do_not_see_each_other():
    transform, data = scale_image(normalize=True), batch()
    state = transform.fit(data)
    whole = transform.apply(state, data)["image"]
    alone = transform.apply(state, {name: values[3:4] for name, values in data.items()})["image"]
    np.testing.assert_array_equal(whole[3:4], alone)


def test_constant_channels_and_no_images_are_safe():
    flat = np.full((4, 1, 3, 3, 3), (0, 9, 255), np.uint8)
    transform = scale_image(normalize=True)
    state = transform.fit({"image": flat})
    np.testing.assert_array_equal(state["std"], [1, 1, 1])
    np.testing.assert_allclose(transform.apply(state, {"image": flat})["image"], 0, atol=1e-6)
    empty = transform.fit({"image": flat, "image_present": np.zeros((4, 1), np.float32)})
    assert (empty["mean"].tolist(), empty["std"].tolist()) == ([0, 0, 0], [1, 1, 1])


def test_a_batch_without_images_is_unchanged():
    transform, table = scale_image(normalize=True), {"numeric": jnp.ones((2, 3))}
    assert transform.apply(transform.fit(table), table) is table
