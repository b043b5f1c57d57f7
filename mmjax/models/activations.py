"""The activation functions of every network by name; in bfloat16 computed in f32 and rounded once."""

from collections.abc import Callable
from typing import assert_never

import jax
import jax.numpy as jnp

from mmjax.config import Activation


def activation_function(name: Activation) -> Callable[[jax.Array], jax.Array]:
    """Return the elementwise function of that name, in the dtype of its argument.

    In bfloat16 it has reverse-mode gradients only.
    """
    match name:
        case "relu":
            return jax.nn.relu
        case "gelu":
            return _rounded_once(jax.nn.gelu)
        case "silu":
            return _rounded_once(jax.nn.silu, _silu_by_tanh)
        case "selu":
            return _rounded_once(jax.nn.selu)
        case "mish":
            return _rounded_once(jax.nn.mish)
        case "tanh":
            return _rounded_once(jnp.tanh)
        case _:
            assert_never(name)


def _silu_by_tanh(x: jax.Array) -> jax.Array:
    """`x sigmoid(x)`, within 1e-6: XLA has a faster tanh than exponential and division (EfficientNet, bf16: 1.3 x)."""
    return x * (0.5 + 0.5 * jnp.tanh(0.5 * x))


def _rounded_once(
    exact: Callable[[jax.Array], jax.Array], narrow: Callable[[jax.Array], jax.Array] | None = None
) -> Callable[[jax.Array], jax.Array]:
    """Return `exact` for f32, and for bfloat16 `narrow` (or `exact`) computed in f32, whose gradient keeps `x` only.

    Step by step in bfloat16 each step would be rounded, on a CPU in code that is slower than f32's.
    """

    wide = narrow or exact

    @jax.custom_vjp
    def apply(x: jax.Array) -> jax.Array:
        return wide(x.astype(jnp.float32)).astype(x.dtype)

    def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return apply(x), x

    def backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
        _, back = jax.vjp(wide, x.astype(jnp.float32))
        return (back(gradient.astype(jnp.float32))[0].astype(x.dtype),)

    apply.defvjp(forward, backward)
    return lambda x: apply(x) if x.dtype == jnp.bfloat16 else exact(x)
