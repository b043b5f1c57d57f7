"""Images as the network sees them: f32 with each channel near mean 0 and standard deviation 1."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.schema import Batch
from mmjax.transforms.base import State, Transform

CHUNK_BYTES = 32 * 1024 * 1024
"""Size of the f64 copy of one channel of a chunk, in the fit."""

SMALLEST_STD = 1e-3
"""A channel whose std is less (a quarter of a grey level of 255) is constant but for noise, and is only centred."""


Channels = tuple[float, float, float]


def scale_image(*, normalize: bool, fixed: tuple[Channels, Channels] | None = None) -> Transform:
    """Return the Transform of `image` [B, I, H, W, 3] (u8 or f32, 0..255) to f32 `(x / 255 - mean) / std`.

    `fit` takes mean and std of each channel over all pixels of the training images that are present, in f64 on the
    host, in chunks: `{"mean": f32[3], "std": f32[3]}`, of values in 0..1; or the `fixed` ones. With `normalize=False`
    it is `x / 255` and the state is empty. A constant channel becomes 0. An image with `image_present` 0 becomes 0. A
    batch without images is unchanged.
    """

    def fit(batch: Batch) -> State:
        if not normalize or "image" not in batch:
            return {}
        if fixed is not None:
            return {"mean": np.array(fixed[0], np.float32), "std": np.array(fixed[1], np.float32)}
        present = np.asarray(batch["image_present"]) if "image_present" in batch else None
        return fit_channels(batch["image"], present)

    def apply(state: State, batch: Batch) -> Batch:
        if "image" not in batch:
            return batch
        image = jnp.asarray(batch["image"], jnp.float32) / 255
        if state:
            image = (image - channels(state["mean"])) / channels(state["std"])
        if "image_present" in batch:
            image = jnp.where(jnp.asarray(batch["image_present"])[:, :, None, None, None] > 0, image, 0.0)
        return {**batch, "image": image}

    return Transform(fit, apply)


def fit_channels(images: np.ndarray, present: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return mean and std of each channel of `images [N, I, H, W, 3]` (0..255) on the scale 0..1, as f32[3].

    They are read slice by slice, so they may lie on disk. `present [N, I]` tells which images count; no image at all
    gives mean 0 and std 1.
    """
    pixels = int(np.prod(images.shape[1:4]))
    rows = max(1, CHUNK_BYTES // max(1, 8 * pixels))
    count, total, squares = 0, np.zeros(3), np.zeros(3)
    for start in range(0, len(images), rows):
        chunk = images[start : start + rows]
        if present is not None:
            chunk = chunk[present[start : start + rows] > 0]
        count += chunk.size // 3
        for channel in range(3):
            values = chunk[..., channel].astype(np.float64).ravel()
            total[channel] += values.sum()
            squares[channel] += values @ values
    if count == 0:
        return {"mean": np.zeros(3, np.float32), "std": np.ones(3, np.float32)}
    mean = total / count / 255
    std = np.sqrt(np.maximum(squares / count / 255**2 - mean**2, 0.0))
    return {"mean": mean.astype(np.float32), "std": np.where(std < SMALLEST_STD, 1.0, std).astype(np.float32)}


def channels(values: np.ndarray | jax.Array) -> jax.Array:
    """Return `f32[3]` as `f32[1, 1, 1, 1, 3]`, to stand beside images."""
    return jnp.asarray(values)[None, None, None, None, :]
