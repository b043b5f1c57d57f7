"""Residual networks (He et al. 2015, arXiv 1512.03385), as torchvision builds them: a table of rows and one module."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.models.layers import BatchNorm, Convolution, Dropout, global_average_pool, max_pool_3x3

SMALL_IMAGE_PX = 96
"""Images whose shorter side is below this keep their resolution in the stem."""


class ResNetRow(NamedTuple):
    """One network: blocks in each stage, channels of the first stage (doubled at each next), kind of block."""

    stages: tuple[int, ...]
    width: int = 64
    bottleneck: bool = False


RESNETS = {
    "resnet18": ResNetRow((2, 2, 2, 2)),
    "resnet34": ResNetRow((3, 4, 6, 3)),
    "resnet50": ResNetRow((3, 4, 6, 3), bottleneck=True),
}


Unit = Callable[..., jax.Array]
"""`unit(x, name, number, channels, kernel_px, stride=1, zero_scale=False)`: convolution `{name}_conv{number}`, norm."""


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global average pool, dropout, head.

    Stem: 3x3 at stride 1 for images under 96 px, else 7x7 and a max pool, stride 2 each. Bottlenecks stride in their
    3x3 (v1.5). The last scale of each branch starts at zero, so every block starts as its shortcut (Goyal et al. 2017,
    arXiv 1706.02677, 5.1). Names follow torchvision's order: `stem_conv`, `stage1_block1_conv1`, ..., `head`.
    """

    outputs: int
    row: ResNetRow
    activation: Callable[[jax.Array], jax.Array]
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool, mask: jax.Array | None) -> jax.Array:
        """Return `[B, outputs]` for `image f32[B, H, W, 3]`, standardised."""

        def unit(
            x: jax.Array,
            name: str,
            number: str,
            channels: int,
            kernel_px: int,
            stride: int = 1,
            zero_scale: bool = False,
        ) -> jax.Array:
            x = Convolution(channels, kernel_px, stride, dtype=self.dtype, name=f"{name}_conv{number}")(x)
            return BatchNorm(zero_scale=zero_scale, name=f"{name}_norm{number}")(x, train=train, mask=mask)

        x = self._stem(image, unit)
        for stage, blocks in enumerate(self.row.stages, start=1):
            for block in range(1, blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                x = self._block(x, f"stage{stage}_block{block}", self.row.width * 2 ** (stage - 1), stride, unit)
        x = Dropout(self.dropout, name="dropout")(global_average_pool(x), train=train)
        return nn.Dense(self.outputs, dtype=self.dtype, name="head")(x)

    def _stem(self, image: jax.Array, unit: Unit) -> jax.Array:
        if min(image.shape[1:3]) < SMALL_IMAGE_PX:
            return self.activation(unit(image, "stem", "", self.row.width, 3))
        return max_pool_3x3(self.activation(unit(image, "stem", "", self.row.width, 7, 2)))

    def _block(self, x: jax.Array, name: str, width: int, stride: int, unit: Unit) -> jax.Array:
        if self.row.bottleneck:
            y = self.activation(unit(x, name, "1", width, 1))
            y = self.activation(unit(y, name, "2", width, 3, stride))
            y = unit(y, name, "3", 4 * width, 1, zero_scale=True)
        else:
            y = self.activation(unit(x, name, "1", width, 3, stride))
            y = unit(y, name, "2", width, 3, zero_scale=True)
        if x.shape != y.shape:
            x = unit(x, f"{name}_shortcut", "", y.shape[-1], 1, stride)
        return self.activation(x + y)
