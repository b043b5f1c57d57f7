"""The network for images under 96 px: a whitening layer, then three groups of two convolutions each, after airbench.

Constants are those of `airbench94` (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single A100", arXiv 2404.00498,
section 3, and `KellerJordan/cifar10-airbench`). Deviations: norms have a scale and learn as fast as all else, and
the kernels of the whitening layer are `batch_stats`, so that no optimizer moves or decays them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.models.convolution import convolution
from mmjax.models.layers import Convolution, Dropout
from mmjax.models.norms import BatchNorm

WHITENED_PX = 2
"""Side of the patches that the first layer whitens."""
WHITENED_IMAGES = 512
"""Training images whose patches decide it; airbench takes 5,000. Of 28 px this is a third of a million patches."""
LEAST_VARIANCE = 5e-4
"""Added to the variance of each principal component, in units of a standardised pixel."""
NORM_MOMENTUM = 0.6
LOGIT_SCALE = 1 / 9
WIDTHS = {"airbench_s": 24, "airbench": 64}
"""Channels of the first group where no config says: the recipe gives `airbench_s` more for images alone."""
GROUPS = {"airbench_s": (1, 2, 4), "airbench": (1, 4, 4)}
"""Channels of the three groups, in those of the first: for two cores of a CPU, and airbench94's."""


def whitening_kernel(patches: jax.Array) -> jax.Array:
    """Return `f32[k, k, C, 2 k k C]` for `patches f32[N, k, k, C]`: convolved, they are white but for the sign.

    The eigenvectors of the patches' second moments, each over the root of its eigenvalue, and their negatives.
    """
    count, side, _, channels = patches.shape
    flat = patches.reshape(count, -1).astype(jnp.float32)
    values, vectors = jnp.linalg.eigh(flat.T @ flat / count)
    scaled = vectors / jnp.sqrt(values + LEAST_VARIANCE)[None, :]
    return jnp.concatenate([scaled, -scaled], axis=1).reshape(side, side, channels, -1)


def dirac_init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Return a kernel `[h, w, C, O]` whose first C filters pass the channels through; the others are U(-b, b).

    `b = 1 / sqrt(h w C)`, PyTorch's default.
    """
    height, width, inputs, outputs = shape
    bound = (height * width * inputs) ** -0.5
    kernel = jax.random.uniform(key, (height * width * inputs * outputs,), dtype, -bound, bound).reshape(shape)
    same = min(inputs, outputs)
    passed = jnp.zeros((height, width, inputs, same), dtype).at[height // 2, width // 2, :same].set(jnp.eye(same))
    return kernel.at[..., :same].set(passed)


class AirNet(nn.Module):
    """`image f32[B, H, W, 3] -> [B, outputs]`.

    2x2 whitening and GELU; three times convolution, 2x2 max pool, norm, GELU, convolution, norm, GELU, all 3x3; the
    maximum over what pixels are left, and a linear map. When it does not train, `mirrored` answers with the mean of an
    image and its mirror image, at twice the work.
    """

    outputs: int
    widths: tuple[int, ...]
    activation: Callable[[jax.Array], jax.Array]
    dropout: float
    mirrored: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """Return the outputs; rows of the first call decide the whitening layer."""
        if train or not self.mirrored:
            return self._logits(image, train=train, mask=mask)
        both = self._logits(jnp.concatenate([image, image[:, :, ::-1]]), train=False, mask=None)
        return 0.5 * (both[: len(image)] + both[len(image) :])

    def _logits(self, image: jax.Array, *, train: bool, mask: jax.Array | None) -> jax.Array:
        x = self.activation(self._whiten(image))
        for number, width in enumerate(self.widths, start=1):
            name = f"group{number}"
            x = max_pool_2x2(self._convolve(x, f"{name}_conv1", width))
            x = self._norm(x, f"{name}_norm1", train=train, mask=mask)
            x = self._norm(self._convolve(x, f"{name}_conv2", width), f"{name}_norm2", train=train, mask=mask)
        x = Dropout(self.dropout, name="dropout")(x.max((1, 2)), train=train)
        head = nn.Dense(self.outputs, use_bias=False, dtype=self.dtype, name="head")
        return head(x).astype(jnp.float32) * LOGIT_SCALE

    def _whiten(self, image: jax.Array) -> jax.Array:
        def start() -> jax.Array:
            patches = [
                image[:, i : image.shape[1] - 1 + i, j : image.shape[2] - 1 + j, None, :]
                for i in range(WHITENED_PX)
                for j in range(WHITENED_PX)
            ]
            stacked = jnp.concatenate(patches, axis=3)
            return whitening_kernel(stacked.reshape(-1, WHITENED_PX, WHITENED_PX, image.shape[-1]))

        kernel = self.variable("batch_stats", "whitening", start).value
        bias = jnp.asarray(self.param("whitening_bias", nn.initializers.zeros, (kernel.shape[-1],), jnp.float32))
        white = convolution(image.astype(self.dtype), kernel.astype(self.dtype))
        return white + bias.astype(self.dtype)[None, None, None, :]

    def _convolve(self, x: jax.Array, name: str, channels: int) -> jax.Array:
        return Convolution(channels, 3, dtype=self.dtype, kernel_init=dirac_init, name=name)(x)

    def _norm(self, x: jax.Array, name: str, *, train: bool, mask: jax.Array | None) -> jax.Array:
        return self.activation(BatchNorm(momentum=NORM_MOMENTUM, name=name)(x, train=train, mask=mask))


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Return the maximum over 2x2 windows, stride 2; a last odd row or column is left out, a side of 1 stays."""
    height, width = (size // 2 * 2 for size in x.shape[1:3])
    rows = jnp.maximum(x[:, 0:height:2], x[:, 1:height:2]) if height else x
    return jnp.maximum(rows[:, :, 0:width:2], rows[:, :, 1:width:2]) if width else rows
