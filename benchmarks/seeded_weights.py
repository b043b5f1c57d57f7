"""State dicts and images made from a seed with NumPy alone, the same on every machine: what golden logits belong to.

Each tensor has a generator of its own, seeded by (seed, CRC-32 of its name), so neither order nor neighbours matter:
kernels and matrices N(0, gain / fan_in), biases N(0, 0.1), a norm's scale U(0.5, 1.0) and shift N(0, 0.1), running
means N(0, 0.1) and running variances U(0.5, 1.5). `gain` keeps what the images say alive through all layers, or equal
logits would prove nothing, and keeps it from exploding: EfficientNets, whose gates halve it at every block, need more.
"""

import zlib
from collections.abc import Mapping

import numpy as np


def seeded_state(shapes: Mapping[str, tuple[int, ...]], seed: int, gain: float) -> dict[str, np.ndarray]:
    """Return a state dict of f32 arrays by name; `num_batches_tracked` is left out."""
    return {
        name: _tensor(name, tuple(shape), seed, gain)
        for name, shape in shapes.items()
        if not name.endswith("num_batches_tracked")
    }


def _tensor(name: str, shape: tuple[int, ...], seed: int, gain: float) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif len(shape) > 1:
        values = rng.normal(size=shape) * np.sqrt(gain / np.prod(shape[1:]))
    elif name.endswith("weight"):
        values = rng.uniform(0.5, 1.0, shape)
    else:
        values = 0.1 * rng.normal(size=shape)
    return values.astype(np.float32)


def gain_of(name: str) -> float:
    """Return the gain for a network of that name."""
    if "efficientnet" not in name:
        return 1.5
    return {"b0": 3.4, "b4": 2.7}.get(name[-2:], 3.1)


def seeded_images(height_px: int, width_px: int, seed: int) -> np.ndarray:
    """Return two images of noise, each around a colour of its own, f32[2, H, W, 3]."""
    rng = np.random.default_rng([seed, height_px, width_px])
    return (rng.normal(size=(2, 1, 1, 3)) + rng.normal(size=(2, height_px, width_px, 3))).astype(np.float32)
