"""Model: a pair of pure functions over variables that are plain dicts of arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from mmjax.schema import Batch

Variables = dict[str, Any]
"""`{"params": ..., "batch_stats": ...}`; `batch_stats` is `{}` for a network without running statistics."""


class Init(Protocol):
    """`init(key, Batch) -> variables`, f32."""

    def __call__(self, key: jax.Array, batch: Batch) -> Variables:
        """Return fresh variables for batches like this one."""
        ...


class Apply(Protocol):
    """`apply(variables, Batch, *, train, key, progress) -> (outputs f32[B, O], batch_stats)`."""

    def __call__(
        self,
        variables: Variables,
        batch: Batch,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        progress: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Return the outputs of every row, and the running statistics after this batch.

        `progress f32[]` is the share of training that is done, for what changes over it; None counts as 0.
        """
        ...


class Rates(NamedTuple):
    """How fast each parameter learns and decays; trees of numbers like the parameters."""

    learning_rate: Any
    """Factors of the learning rate."""
    decay: Any
    """Factors of the weight decay, beside those of the learning rate, which multiply it too."""


class Model(NamedTuple):
    """A network. Unless it trains (`train=True`) no row's output depends on another row, and it needs no `key`."""

    init: Init
    """Rows of the batch may decide initial values."""
    apply: Apply
    rates: Callable[[Any], Rates] | None = None
    """`rates(params)`; None where all parameters learn alike, and norms and biases do not decay."""
    images_to_start: int = 2
    """Training images that initial values are fitted to; two tell a network their shape."""
