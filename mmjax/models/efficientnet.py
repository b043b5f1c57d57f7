"""EfficientNet B0 to B4 (Tan & Le 2019, arXiv 1905.11946), as torchvision builds them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.models.layers import Convolution, Dropout, he_normal
from mmjax.models.norms import BatchNorm
from mmjax.models.pools import global_average_pool
from mmjax.models.resnet import SMALL_IMAGE_PX
from mmjax.network_facts import B0_STAGES, SizeRow, StageRow

STEM_CHANNELS = 32
STOCHASTIC_DEPTH = 0.2
"""Share of rows for which the last block is skipped in training; blocks before it rise to it linearly from 0."""


def norm_epsilon(size: SizeRow) -> float:
    """Return what every norm of that size adds to its variance."""
    return 1e-3 if size.tensorflow else 1e-5


def scaled_channels(channels: int, width: float) -> int:
    """Return `channels * width` as the nearest multiple of 8 that is not more than a tenth smaller.

    >>> scaled_channels(24, 1.1)
    24
    """
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


class Block(NamedTuple):
    """One MBConv block of a scaled network."""

    stage: int
    name: str
    expand: int
    kernel_px: int
    stride: int
    channels: int


def scaled_blocks(size: SizeRow, stages: tuple[StageRow, ...] = B0_STAGES) -> tuple[Block, ...]:
    """Return the blocks of that size in order; only the first block of a stage strides."""
    return tuple(
        Block(stage, f"stage{stage}_block{i}", row.expand, row.kernel_px, row.stride if i == 1 else 1, channels)
        for stage, row in enumerate(stages, start=1)
        for channels in (scaled_channels(row.channels, size.width),)
        for i in range(1, math.ceil(row.repeats * size.depth) + 1)
    )


Unit = Callable[..., jax.Array]
"""`unit(x, name, channels, kernel_px, stride=1, depthwise=False)`: convolution `{name}_conv`, norm `{name}_norm`."""


class EfficientNet(nn.Module):
    """Stem, MBConv blocks (expand, depthwise, squeeze-excite, project), 1x1 convolution, average pool, dropout, head.

    The stem has stride 2, or 1 for images under 96 px, unless `large_stem` says which. A block whose input and output
    agree adds its input, and is skipped for a random share of rows in training (stochastic depth); `dropout` 0 switches
    that off too. The first `frozen` of stem, stages and last convolution are in training as they are at inference, and
    pass no gradient on; `folded` is that of every BatchNorm.
    """

    outputs: int
    size: SizeRow
    activation: Callable[[jax.Array], jax.Array]
    dropout: float
    dtype: Any = jnp.float32
    stages: tuple[StageRow, ...] = B0_STAGES
    large_stem: bool | None = None
    frozen: int = 0
    folded: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """Return `[B, outputs]` for `image f32[B, H, W, 3]`, standardised."""

        tensorflow = self.size.tensorflow
        momentum, epsilon, folded = 0.99 if tensorflow else 0.9, norm_epsilon(self.size), self.folded

        def unit_of(part: int) -> Unit:
            def unit(
                x: jax.Array, name: str, channels: int, kernel_px: int, stride: int = 1, depthwise: bool = False
            ) -> jax.Array:
                conv = Convolution(channels, kernel_px, stride, depthwise, self.dtype, tensorflow, name=f"{name}_conv")
                norm = BatchNorm(momentum=momentum, epsilon=epsilon, folded=folded, name=f"{name}_norm")
                return norm(conv(x), train=train and part >= self.frozen, mask=mask)

            return unit

        large = min(image.shape[1:3]) >= SMALL_IMAGE_PX if self.large_stem is None else self.large_stem
        stem_channels = scaled_channels(STEM_CHANNELS, self.size.width)
        x = self.activation(unit_of(0)(image, "stem", stem_channels, 3, 2 if large else 1))
        blocks = scaled_blocks(self.size, self.stages)
        for number, block in enumerate(blocks):
            if block.name == f"stage{self.frozen}_block1":
                x = jax.lax.stop_gradient(x)
            y = self._block(x, block, unit_of(block.stage))
            if block.stride == 1 and x.shape == y.shape:
                drop = STOCHASTIC_DEPTH * number / len(blocks) if self.dropout > 0.0 else 0.0
                learns = train and block.stage >= self.frozen
                y = x + Dropout(drop, rows=True, name=f"{block.name}_depth")(y, train=learns)
            x = y
        last = len(self.stages) + 1
        x = jax.lax.stop_gradient(x) if self.frozen == last else x
        last_channels = 4 * scaled_channels(self.stages[-1].channels, self.size.width)
        x = self.activation(unit_of(last)(x, "last", last_channels, 1))
        x = jax.lax.stop_gradient(x) if self.frozen > last else x
        x = Dropout(self.dropout, name="dropout")(global_average_pool(x), train=train)
        return nn.Dense(self.outputs, dtype=self.dtype, name="head")(x)

    def _block(self, x: jax.Array, block: Block, unit: Unit) -> jax.Array:
        inputs = x.shape[-1]
        if block.expand > 1:
            x = self.activation(unit(x, f"{block.name}_expand", inputs * block.expand, 1))
        x = unit(x, f"{block.name}_depthwise", x.shape[-1], block.kernel_px, block.stride, depthwise=True)
        x = self._squeeze_excite(self.activation(x), block.name, max(1, inputs // 4))
        return unit(x, f"{block.name}_project", block.channels, 1)

    def _squeeze_excite(self, x: jax.Array, name: str, squeezed: int) -> jax.Array:
        """`x` with each channel scaled by a gate computed from all channel means (Hu et al. 2017, arXiv 1709.01507)."""

        def dense(y: jax.Array, part: str, units: int) -> jax.Array:
            return nn.Dense(units, dtype=self.dtype, kernel_init=he_normal, name=f"{name}_{part}")(y)

        gate = self.activation(dense(global_average_pool(x), "squeeze", squeezed))
        gate = nn.sigmoid(dense(gate, "excite", x.shape[-1]))
        return x * gate[:, None, None, :]
