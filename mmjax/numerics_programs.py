"""Small programs with what NumPy says they return: what a network is made of, and what XLA has got wrong before."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Arrays = tuple[np.ndarray, ...]

EXACT = 1e-4
"""Largest difference of an f32 program, relative to its largest value: ten times what rounding makes of it."""
ROUGH = 0.03
"""The same for bfloat16, whose numbers have eight bits."""


class Program(NamedTuple):
    """A pure function, what to call it with, and what it must return."""

    name: str
    run: Callable[..., Any]
    """`run(*inputs)` in JAX: a tuple of arrays."""
    inputs: Arrays
    """Arguments, never constants: XLA would fold those."""
    expected: Callable[..., Arrays]
    """`expected(*inputs)` in NumPy, f64."""
    tolerance: float
    """Largest difference allowed, as a share of the largest value expected."""


def check_programs(*, on_cpu: bool) -> tuple[Program, ...]:
    """Return the programs of the start-up check, the costliest to compile first.

    Elsewhere than on a CPU, f32 products may be rounded as coarsely as bfloat16: GPUs and TPUs do so by default.
    """
    exact = EXACT if on_cpu else ROUGH
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    chain = (normal(2, 16, 16, 32), normal(3, 3, 32, 32) / 17, normal(32), normal(32))
    images = (normal(2, 9, 9, 4), normal(3, 3, 4, 8), normal(2, 5, 5, 8))
    rows = (normal(20, 5), rng.integers(0, 20, 50).astype(np.int32), normal(50, 5))
    return (
        Program("bfloat16 convolutions with norms", _chain, chain, _chain_numpy, ROUGH),
        Program("a convolution and its gradients", _convolution, images, convolution_numpy, exact),
        Program("the logarithm of a softmax", _log_softmax, (10 * normal(9, 30),), _log_softmax_numpy, exact),
        Program("gather and scatter-add", _gather, rows, _gather_numpy, exact),
        Program(
            "matrix-vector products of many rows, summed", _rows, (normal(32_773, 3), normal(3, 3)), _rows_numpy, exact
        ),
        Program(
            "a matrix product with bias and relu", _dense, (normal(37, 70), normal(70, 33), normal(33)), _dense, exact
        ),
        Program("a bfloat16 matrix product", _product, (normal(37, 70), normal(70, 33)), _product_numpy, ROUGH),
        Program("a sum over two axes", _sums, (normal(5, 6, 7, 8),), _sums, exact),
        Program("a loop that adds up", _loop, (normal(11, 7), np.array(5, np.int32)), _loop_numpy, exact),
    )


def bfloat16_programs() -> tuple[Program, ...]:
    """Return the programs that decide how a network in bfloat16 is compiled: layers, and the gradients of one."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    chain = (normal(2, 16, 16, 32), normal(3, 3, 32, 32) / 17, normal(32), normal(32))
    images = (normal(2, 9, 9, 16), normal(3, 3, 16, 32), normal(2, 5, 5, 32))
    return (
        Program("bfloat16 convolutions with norms", _chain, chain, _chain_numpy, ROUGH),
        Program("a bfloat16 convolution and its gradients", _narrow_convolution, images, convolution_numpy, ROUGH),
        Program("a bfloat16 matrix product", _product, (normal(37, 70), normal(70, 33)), _product_numpy, ROUGH),
    )


def _dense(x: Any, kernel: Any, bias: Any) -> tuple[Any]:
    """In JAX or NumPy, as `_sums`: what the arguments are decides."""
    return ((x @ kernel + bias[None]).clip(0),)


def _product(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array]:
    return ((x.astype(jnp.bfloat16) @ kernel.astype(jnp.bfloat16)).astype(jnp.float32),)


def _product_numpy(x: np.ndarray, kernel: np.ndarray) -> Arrays:
    return (x @ kernel,)


def _rows(x: jax.Array, matrix: jax.Array) -> tuple[jax.Array]:
    # More than 32,768 rows: YNNPACK in jaxlib 0.10.2 mixes up the last ones (jax #39103).
    return (jax.vmap(lambda row: ((matrix @ row) ** 2).sum())(x),)


def _rows_numpy(x: np.ndarray, matrix: np.ndarray) -> Arrays:
    return (((x @ matrix.T) ** 2).sum(axis=1),)


def _sums(x: Any) -> tuple[Any]:
    return (x.sum(axis=(0, 2)),)


def _log_softmax(logits: jax.Array) -> tuple[jax.Array]:
    below = logits - logits.max(axis=1, keepdims=True)
    return (below - jnp.log(jnp.exp(below).sum(axis=1, keepdims=True)),)


def _log_softmax_numpy(logits: np.ndarray) -> Arrays:
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)),)


def _gather(table: jax.Array, index: jax.Array, added: jax.Array) -> tuple[jax.Array, ...]:
    return table[index], table.at[index].add(added)


def _gather_numpy(table: np.ndarray, index: np.ndarray, added: np.ndarray) -> Arrays:
    sums = table.copy()
    np.add.at(sums, index.astype(np.intp), added)
    return table[index.astype(np.intp)], sums


def _loop(x: jax.Array, times: jax.Array) -> tuple[jax.Array]:
    return (lax.fori_loop(0, times, lambda i, total: total + x * i, x),)


def _loop_numpy(x: np.ndarray, times: np.ndarray) -> Arrays:
    return (x + sum(x * i for i in range(int(times))),)


def _conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    pads = ((1, 1), (1, 1))
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _convolution(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
    y, gradients = jax.vjp(lambda *inputs: _conv(*inputs, stride=2), x, kernel)
    return (y, *gradients(cotangent))


def _narrow_convolution(*inputs: jax.Array) -> tuple[jax.Array, ...]:
    found = _convolution(*(each.astype(jnp.bfloat16) for each in inputs))
    return tuple(each.astype(jnp.float32) for each in found)


def _taps(x: np.ndarray, stride: int) -> list[np.ndarray]:
    """The pixels of `x [B, H, W, C]` (padded by one) under each tap of a 3x3 kernel, as views to read or add to."""
    height, width = (size - 3 for size in x.shape[1:3])
    return [x[:, i : i + height + 1 : stride, j : j + width + 1 : stride] for i in range(3) for j in range(3)]


def convolution_numpy(x: np.ndarray, kernel: np.ndarray, cotangent: np.ndarray, stride: int = 2) -> Arrays:
    """Return `x [B, H, W, C]`, padded by one, convolved with a 3x3 kernel, and the gradients of both."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    towards_x = np.zeros_like(padded)
    for taps, weights in zip(_taps(towards_x, stride), kernel.reshape(9, *kernel.shape[2:]), strict=True):
        taps += cotangent @ weights.T
    towards_kernel = np.stack([np.tensordot(taps, cotangent, ([0, 1, 2], [0, 1, 2])) for taps in _taps(padded, stride)])
    return _conv_numpy(x, kernel, stride), towards_x[:, 1:-1, 1:-1], towards_kernel.reshape(kernel.shape)


def _conv_numpy(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    weights = kernel.reshape(9, *kernel.shape[2:])
    return np.sum([taps @ each for taps, each in zip(_taps(padded, stride), weights, strict=True)], axis=0)


def _chain(x: jax.Array, kernel: jax.Array, mean: jax.Array, scale: jax.Array) -> tuple[jax.Array]:
    # YNNPACK in jaxlib 0.12 makes NaN of this on a CPU with AVX-512 BF16: a ResNet's second stage when it predicts.
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    for stride in (2, 1):
        wide = _conv(x, kernel, stride).astype(jnp.float32)
        x = jnp.maximum(((wide - mean.reshape(1, 1, 1, -1)) * scale.reshape(1, 1, 1, -1)).astype(x.dtype), 0)
    return (x.mean((1, 2), dtype=jnp.float32),)


def _chain_numpy(x: np.ndarray, kernel: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> Arrays:
    for stride in (2, 1):
        x = np.maximum((_conv_numpy(x, kernel, stride) - mean) * scale, 0)
    return (x.mean(axis=(1, 2)),)
