"""Many models as one: a leading axis E over TrainState, for ensembles, folds and seeds.

Each member draws its own randomness and orders its own rows; with folds it has rows and a fitted Transform of its own
too. How they are computed changes nothing but rounding: all in each step (`vmap`), one after the other in one program
(`map`), or a program each on all threads (`loop`). The best differs from net to net and machine to machine, so a short
trial decides, but for images on a CPU (`ensembles.choose_way`).
"""

import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.backend import compiled, platform
from mmjax.config import MemberLoop
from mmjax.training.state import TrainState
from mmjax.training.steps import Learner, Totals, make_train_chunk

MEMBER_LOOPS: tuple[MemberLoop, ...] = ("map", "loop", "vmap")
"""In the order of trial: of tables the first is never far from the best on a CPU; on others the last is."""
TRIAL_S = 0.2
"""About so long is each way tried."""


class Members(NamedTuple):
    """Who is trained: E members and their rows."""

    numbers: tuple[int, ...]
    """What a member's randomness and row order come from; 0 is a single model's."""
    rows: tuple[np.ndarray, ...]
    """Training rows of each member, i64[N_e], indices into all rows."""
    held: tuple[np.ndarray, ...]
    """Validation rows of each, i64[V_e]; with folds those of its fold."""
    folds: int
    """0: all members have the same rows and the same Transform."""

    @property
    def of_fold(self) -> int:
        """Members of each fold."""
        return len(self.numbers) // max(self.folds, 1)

    def transform_of(self, state: Any, index: int) -> Any:
        """Return one member's fitted Transform: its own with folds, else the one of all."""
        return member_of(state, index) if self.folds else state

    @property
    def shortest(self) -> int:
        """Training rows of the member with the fewest."""
        return min(map(len, self.rows))


def member_of(tree: Any, index: int) -> Any:
    """Return one member's part of a tree with a leading axis E."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def apart(tree: Any) -> list[Any]:
    """Return each member's part of a tree on the device, by one program: leaf by leaf is hundreds of calls."""
    return _parter()(tree)


@functools.cache
def _parter() -> Callable[[Any], list[Any]]:
    return compiled(lambda tree: [member_of(tree, e) for e in range(len(jax.tree.leaves(tree)[0]))])


def stacked(trees: list[Any]) -> Any:
    """Return trees of equal structure and shapes as one, with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def where_active(active: Any, new: Any, old: Any) -> Any:
    """Return the tree of `new` where `active bool[E]`, of `old` elsewhere."""

    def chosen(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(jnp.reshape(active, (-1,) + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(chosen, new, old)


Chunk = Callable[..., tuple[TrainState, Totals]]
"""`chunk(state, totals, data, transform_state, output_state, rows i32[E, S, B], start, count, active bool[E])`, with a
leading axis E over state, totals and (with folds) the Transform's state: steps `start .. start + count` of each active
member."""


def make_member_chunk(
    learner: Learner, *, seed: int, loop: bool, folded: bool, how: MemberLoop, precision: str, threads: int
) -> Chunk:
    """Return the compiled Chunk; state and totals are donated to it."""
    one = make_train_chunk(learner, seed=seed, loop=loop)
    if how == "loop":
        return _each(compiled(one, donate=(0, 1), precision=precision), folded, threads)
    whole = _at_once(one, folded) if how == "vmap" else _in_turn(one, folded)
    return compiled(whole, donate=(0, 1), precision=precision)


def _at_once(one: Chunk, folded: bool) -> Chunk:
    every = jax.vmap(one, in_axes=(0, 0, None, 0 if folded else None, None, 0, None, None))

    def chunk(state: Any, totals: Any, *rest: Any):
        *given, active = rest
        return where_active(active, every(state, totals, *given), (state, totals))

    return chunk


def _in_turn(one: Chunk, folded: bool) -> Chunk:
    def chunk(
        state: Any, totals: Any, data: Any, transform: Any, output: Any, rows: Any, start: Any, count: Any, active
    ):
        def member(own: Any) -> tuple[TrainState, Totals]:
            carry, fitted, order, goes_on = own
            arguments = (data, fitted if folded else transform, output, order, start, count)
            return jax.lax.cond(goes_on, lambda now: one(*now, *arguments), lambda now: now, carry)

        return jax.lax.map(member, ((state, totals), transform if folded else (), rows, active))

    return chunk


def _each(program: Chunk, folded: bool, threads: int) -> Chunk:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="member")
    together = compiled(lambda trees: stacked(trees))

    def chunk(
        state: Any, totals: Any, data: Any, transform: Any, output: Any, rows: Any, start: int, count: int, active
    ):
        own = apart((state, totals, transform if folded else (), rows))

        def run(e: int) -> tuple[TrainState, Totals]:
            now, sums, fitted, order = own[e]
            if not active[e]:
                return now, sums
            return program(now, sums, data, fitted if folded else transform, output, order, start, count)

        return together(list(pool.map(run, range(len(active)))))

    return chunk


class Trial(NamedTuple):
    """What a way to compute members took."""

    how: MemberLoop
    seconds: float
    """Of one step of all members."""
    compile_seconds: float


def try_member_loops(
    make: Callable[[MemberLoop], Chunk],
    arguments: Callable[[], tuple[Any, ...]],
    *,
    steps: int,
    most: int,
    ends_at: float | None = None,
) -> list[Trial]:
    """Return a Trial of each way that was tried, the fastest first.

    `arguments()` are fresh ones of a Chunk but for start and count; nothing of the trial is kept. Where a run of
    `steps` steps is over sooner than the next way is compiled, no other is tried; nor where it could not end by
    `ends_at`, of `time.monotonic`, after one more. At most `most` steps are one call.
    """
    found: list[Trial] = []
    for how in MEMBER_LOOPS if platform() == "cpu" else reversed(MEMBER_LOOPS):
        if found and _enough(found, steps, ends_at):
            break
        chunk = make(how)
        began = time.perf_counter()
        _run(chunk, arguments(), 1)
        compile_s = time.perf_counter() - began
        count = max(1, min(most, int(TRIAL_S / max(_run(chunk, arguments(), 1), 1e-6))))
        times = [_run(chunk, arguments(), count) / count for _ in range(3)]
        found = sorted([*found, Trial(how, sorted(times)[1], compile_s)], key=lambda trial: trial.seconds)
    return found


def _enough(found: list[Trial], steps: int, ends_at: float | None) -> bool:
    """Return whether one more way would cost more than it may save, or time that the run needs."""
    run_s, compile_s = found[0].seconds * steps, max(trial.compile_seconds for trial in found)
    if run_s < compile_s:
        return True
    # The compilation of one more way, and that of the run itself: a trial's program is not kept.
    return ends_at is not None and time.monotonic() + 2 * compile_s + run_s > ends_at


def _run(chunk: Chunk, arguments: tuple[Any, ...], steps: int) -> float:
    *given, active = jax.block_until_ready(arguments)
    began = time.perf_counter()
    jax.block_until_ready(chunk(*given, 0, steps, active))
    return time.perf_counter() - began
