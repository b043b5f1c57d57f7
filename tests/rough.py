"""Programs that compile fast, for tests that compare neither bits nor speed and ask nothing of rounding."""

import contextlib
from collections.abc import Iterator

import jax

from mmjax.backend import configure
from mmjax.models.convolution_check import wrong_forms


@contextlib.contextmanager
def roughly() -> Iterator[None]:
    """Let XLA optimize little in this process meanwhile: compiling takes a third less time.

    What decides compiler options and forms of convolutions by computing is asked before, and what was compiled is
    forgotten before and after, so that no other test gets such a program.
    """
    configure(precision="bfloat16")
    for precision in ("float32", "bfloat16"):
        wrong_forms(precision)
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
        jax.clear_caches()
