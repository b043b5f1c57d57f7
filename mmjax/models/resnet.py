"""Residual networks (He et al. 2015, arXiv 1512.03385), as torchvision and timm build them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.models.layers import Convolution, Dropout
from mmjax.models.norms import BatchNorm
from mmjax.models.pools import average_pool_2x2, global_average_pool, max_pool_3x3
from mmjax.network_facts import ResNetRow

SMALL_IMAGE_PX = 96
"""Images whose shorter side is below this keep their resolution in the stem."""


Unit = Callable[..., jax.Array]
"""`unit(x, name, number, channels, kernel_px, stride=1, zero_scale=False)`: convolution `{name}_conv{number}`, norm."""


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global average pool, dropout, head.

    Stem: 3x3 at stride 1 for images under 96 px, else 7x7 and a max pool, stride 2 each, unless `large_stem` says
    which. Bottlenecks stride in their 3x3 (v1.5). The last scale of each branch starts at zero, so every block starts
    as its shortcut (Goyal et al. 2017, arXiv 1706.02677, 5.1). The first `frozen` of stem and stages are in training as
    they are at inference, and pass no gradient on; `folded` is that of every BatchNorm. Names follow torchvision's
    order: `stem_conv`, `stage1_block1_conv1`, ..., `head`.
    """

    outputs: int
    row: ResNetRow
    activation: Callable[[jax.Array], jax.Array]
    dropout: float
    dtype: Any = jnp.float32
    large_stem: bool | None = None
    frozen: int = 0
    folded: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """Return `[B, outputs]` for `image f32[B, H, W, 3]`, standardised."""

        def unit_of(part: int) -> Unit:
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
                norm = BatchNorm(zero_scale, folded=self.folded, name=f"{name}_norm{number}")
                return norm(x, train=train and part >= self.frozen, mask=mask)

            return unit

        x = self._stem(image, unit_of(0))
        for stage, blocks in enumerate(self.row.stages, start=1):
            x = jax.lax.stop_gradient(x) if stage == self.frozen else x
            for block in range(1, blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                width = self.row.width * 2 ** (stage - 1)
                x = self._block(x, f"stage{stage}_block{block}", width, stride, unit_of(stage))
        x = jax.lax.stop_gradient(x) if self.frozen > len(self.row.stages) else x
        x = Dropout(self.dropout, name="dropout")(global_average_pool(x), train=train)
        return nn.Dense(self.outputs, dtype=self.dtype, name="head")(x)

    def _stem(self, image: jax.Array, unit: Unit) -> jax.Array:
        large = min(image.shape[1:3]) >= SMALL_IMAGE_PX if self.large_stem is None else self.large_stem
        stride, width = 2 if large else 1, self.row.width
        if self.row.deep:
            x = self.activation(unit(image, "stem", "1", width // 2, 3, stride))
            x = self.activation(unit(x, "stem", "2", width // 2, 3))
            x = self.activation(unit(x, "stem", "3", width, 3))
        else:
            x = self.activation(unit(image, "stem", "", width, 7 if large else 3, stride))
        return max_pool_3x3(x) if large else x

    def _block(self, x: jax.Array, name: str, width: int, stride: int, unit: Unit) -> jax.Array:
        if self.row.bottleneck:
            y = self.activation(unit(x, name, "1", width, 1))
            y = self.activation(unit(y, name, "2", width, 3, stride))
            y = unit(y, name, "3", 4 * width, 1, zero_scale=True)
        else:
            y = self.activation(unit(x, name, "1", width, 3, stride))
            y = unit(y, name, "2", width, 3, zero_scale=True)
        if x.shape != y.shape:
            pools = self.row.deep and stride == 2
            x = average_pool_2x2(x) if pools else x
            x = unit(x, f"{name}_shortcut", "", y.shape[-1], 1, 1 if pools else stride)
        return self.activation(x + y)
