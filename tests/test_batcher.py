"""The batcher's laws: each request gets its own rows whoever shares the batch; order, bounds, deadlines, failures."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.pipeline import batch_rows
from mmjax.schema import Batch
from mmjax.serving.batcher import Batcher, expected_s, leave, submit
from mmjax.serving.device import COMPUTE, Device, on_device, start_device, stop_device
from mmjax.serving.wire import Refused
from mmjax.training.scoring import Scores

LARGEST = 8
POISON = 666.0


class Model:
    """A NumPy program per bucket that doubles numbers and notes what it is given; a gate can hold it up."""

    def __init__(self, device: Device, *, slow_s: float = 0.0, known_s: float = 1.0) -> None:
        self.batches: list[np.ndarray] = []
        self.told: list[tuple[int, int]] = []
        self.open = threading.Event()
        self.open.set()
        self.slow_s = slow_s
        sizes = (1, 2, 4, 8)
        self.batcher = Batcher(
            device,
            {size: self._program(size) for size in sizes},
            {"numeric": np.zeros((1, 1), np.float32)},
            dict.fromkeys(sizes, known_s),
            observe=lambda rows, bucket: self.told.append((rows, bucket)),
        )

    def _program(self, size: int) -> Callable[[Batch], Scores]:
        def program(batch: Batch) -> Scores:
            assert self.open.wait(10)
            time.sleep(self.slow_s)
            values = batch["numeric"]
            assert values.shape == (size, 1)
            if (values == POISON).any():
                raise FloatingPointError("poison")
            self.batches.append(values[:, 0].copy())
            return Scores(np.empty((0, 0), np.float32), 2 * values, None)

        return program


@pytest.fixture
def device() -> Iterator[Device]:
    device = start_device()
    yield device
    stop_device(device)
    assert not device.thread.is_alive()


def rows(*values: float) -> Batch:
    return {"numeric": np.array(values, np.float32)[:, None]}


async def ask(model: Model, batch: Batch, **options: Any) -> list[float]:
    return (await submit(model.batcher, batch, **options).result).prediction[:, 0].tolist()


def done(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=24), st.booleans())
def test_every_caller_gets_exactly_its_own_rows(sizes: list[int], hold: bool):
    device = start_device()
    model = Model(device)
    numbers = np.arange(sum(sizes), dtype=np.float32) + 1
    asked = [rows(*part) for part in np.split(numbers, np.cumsum(sizes)[:-1])]

    async def all_at_once() -> list[list[float]]:
        if hold:
            model.open.clear()
            asyncio.get_running_loop().call_later(0.005, model.open.set)
        return await asyncio.gather(*(ask(model, batch) for batch in asked))

    try:
        answers = done(all_at_once())
    finally:
        stop_device(device)
    assert answers == [(2 * batch["numeric"][:, 0]).tolist() for batch in asked]
    assert model.batcher.rows_waiting == 0
    assert not model.batcher.waiting
    assert sum(count for count, _ in model.told) == len(numbers)
    assert all(count <= bucket <= LARGEST for count, bucket in model.told)


def test_what_comes_while_the_device_is_busy_goes_together_in_order_and_padded(device: Device):
    model = Model(device)
    model.open.clear()

    async def work() -> list[list[float]]:
        first = asyncio.ensure_future(ask(model, rows(1)))
        await asyncio.sleep(0.05)
        others = [asyncio.ensure_future(ask(model, rows(*values))) for values in ((2, 3), (4,), (5, 6), (7, 8, 9, 10))]
        await asyncio.sleep(0.05)
        model.open.set()
        return await asyncio.gather(first, *others)

    assert done(work()) == [[2], [4, 6], [8], [10, 12], [14, 16, 18, 20]]
    assert [batch.tolist() for batch in model.batches] == [[1], [2, 3, 4, 5, 6, 0, 0, 0], [7, 8, 9, 10]]
    assert model.told == [(1, 1), (5, 8), (4, 4)]


def test_a_poisoned_member_fails_alone(device: Device):
    model = Model(device)
    model.open.clear()

    async def work() -> list[Any]:
        asked = [ask(model, rows(value)) for value in (1, 2, POISON, 3)]
        gathered = asyncio.gather(*asked, return_exceptions=True)
        asyncio.get_running_loop().call_later(0.05, model.open.set)
        return await gathered

    first, second, poisoned, last = done(work())
    assert (first, second, last) == ([2], [4], [6])
    assert isinstance(poisoned, FloatingPointError)
    assert model.batcher.rows_waiting == 0


def test_a_failed_slice_fails_its_request_and_no_other(device: Device):
    model = Model(device)

    async def work() -> list[Any]:
        large = rows(*range(1, 20), POISON)
        return await asyncio.gather(ask(model, large), ask(model, rows(5)), return_exceptions=True)

    failed, other = done(work())
    assert isinstance(failed, FloatingPointError)
    assert other == [10]
    assert model.batcher.rows_waiting == 0


def test_who_leaves_before_dispatch_is_not_computed_and_harms_nobody(device: Device):
    model = Model(device)
    model.open.clear()

    async def work() -> list[float]:
        first = asyncio.ensure_future(ask(model, rows(1)))
        await asyncio.sleep(0.02)
        gone, stays = submit(model.batcher, rows(2, 2, 2)), submit(model.batcher, rows(3))
        assert model.batcher.rows_waiting == 5
        leave(model.batcher, gone)
        leave(model.batcher, gone)
        assert model.batcher.rows_waiting == 2
        model.open.set()
        assert gone.result.cancelled()
        await first
        return (await stays.result).prediction[:, 0].tolist()

    assert done(work()) == [6]
    assert [batch.tolist() for batch in model.batches] == [[1], [3]]


def test_who_leaves_while_the_device_computes_is_only_not_answered(device: Device):
    model = Model(device)
    model.open.clear()

    async def work() -> list[float]:
        gone, stays = submit(model.batcher, rows(1)), submit(model.batcher, rows(2))
        await asyncio.sleep(0.02)
        leave(model.batcher, gone)
        model.open.set()
        return (await stays.result).prediction[:, 0].tolist()

    assert done(work()) == [4]
    assert model.batcher.rows_waiting == 0


def test_what_cannot_be_done_by_its_deadline_is_refused_at_once_and_what_became_late_is_not_computed(device: Device):
    model = Model(device, known_s=0.05)
    model.open.clear()

    async def work() -> tuple[float, list[float]]:
        with pytest.raises(Refused, match="deadline") as refused:
            submit(model.batcher, rows(1), deadline=time.monotonic() + 0.01)
        assert (refused.value.status, refused.value.reason) == (504, "deadline")
        first = asyncio.ensure_future(ask(model, rows(1)))
        await asyncio.sleep(0.02)
        late = submit(model.batcher, rows(2), deadline=time.monotonic() + 0.3)
        stays = submit(model.batcher, rows(3), deadline=time.monotonic() + 15)
        began = time.monotonic()
        with pytest.raises(Refused, match="deadline"):
            await late.result
        waited = time.monotonic() - began
        model.open.set()
        await first
        return waited, (await stays.result).prediction[:, 0].tolist()

    waited, answer = done(work())
    assert answer == [6]
    assert 0.2 < waited < 5, "refused when the deadline passed, though the device was busy"
    assert [batch.tolist() for batch in model.batches] == [[1], [3]]


def test_a_batch_stays_small_where_a_larger_one_would_be_late(device: Device):
    model = Model(device, known_s=0.001)
    model.open.clear()

    async def work() -> None:
        asked = [submit(model.batcher, rows(value), deadline=time.monotonic() + 20) for value in range(1, 7)]
        model.batcher.service_s[8] = 100.0
        model.open.set()
        await asyncio.gather(*(job.result for job in asked))

    done(work())
    assert max(bucket for _, bucket in model.told) <= 4
    assert sum(count for count, _ in model.told) == 6


def test_deterministic_rows_go_alone_through_the_bucket_of_one(device: Device):
    model = Model(device)
    model.open.clear()

    async def work() -> list[list[float]]:
        both = asyncio.gather(ask(model, rows(1)), ask(model, rows(2, 3), deterministic=True), ask(model, rows(4)))
        model.open.set()
        return await both

    assert done(work()) == [[2], [4, 6], [8]]
    assert [len(batch) for batch in model.batches if batch[0] in (2, 3)] == [1, 1]


def test_deterministic_rows_that_cannot_be_done_one_by_one_by_the_deadline_are_not_begun(device: Device):
    model = Model(device, known_s=0.1)

    async def work() -> list[float]:
        with pytest.raises(Refused, match="deadline"):
            submit(model.batcher, rows(*range(8)), deadline=time.monotonic() + 0.5, deterministic=True)
        assert model.batcher.rows_waiting == 0
        return await ask(model, rows(1, 2), deadline=time.monotonic() + 10, deterministic=True)

    assert done(work()) == [2, 4]
    assert [batch.tolist() for batch in model.batches] == [[1], [2]]


def test_a_large_request_is_cut_and_joined(device: Device):
    model = Model(device)
    assert done(ask(model, rows(*range(1, 28)))) == [2 * i for i in range(1, 28)]
    assert [len(batch) for batch in model.batches] == [8, 8, 8, 4]


def test_the_time_expected_counts_whole_batches_and_the_rest(device: Device):
    model = Model(device)
    model.batcher.warm_s.update({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0})
    assert [expected_s(model.batcher, n) for n in (0, 1, 3, 8, 11)] == [0, 1, 4, 8, 12]


def test_a_stall_makes_those_behind_others_wait_elsewhere_but_never_one_that_is_alone(device: Device):
    model = Model(device, known_s=0.001)
    model.batcher.service_s.update(dict.fromkeys((1, 2, 4, 8), 100.0))
    model.open.clear()

    async def work() -> list[float]:
        alone = submit(model.batcher, rows(1), deadline=time.monotonic() + 10)
        with pytest.raises(Refused, match="deadline"):
            submit(model.batcher, rows(2), deadline=time.monotonic() + 10)
        model.open.set()
        return (await alone.result).prediction[:, 0].tolist()

    assert done(work()) == [2]


def test_small_requests_of_one_round_of_the_loop_are_run_together_on_it(device: Device):
    quick = Model(device, known_s=1e-5)

    async def work(*asked: Batch) -> list[Any]:
        return await asyncio.gather(*(ask(quick, batch) for batch in asked), return_exceptions=True)

    assert done(work(rows(1, 2), rows(3))) == [[2, 4], [6]]
    assert (quick.told, len(quick.batches)) == ([(3, 4)], 1)
    failed, alone = done(work(rows(POISON), rows(5)))
    assert isinstance(failed, FloatingPointError)
    assert alone == [10]
    assert not device.busy.locked()


def test_a_slow_or_busy_model_leaves_the_event_loop_free(device: Device):
    async def free(model: Model) -> list[float]:
        model.open.clear()  # run on the event loop, it would never be opened
        asked = submit(model.batcher, rows(1))
        await asyncio.sleep(0.05)
        assert not asked.result.done()
        model.open.set()
        return (await asked.result).prediction[:, 0].tolist()

    assert done(free(Model(device, known_s=1.0))) == [2]
    busy = Model(device, known_s=1e-5)

    async def while_busy() -> list[float]:
        with device.busy:
            asked = submit(busy.batcher, rows(4))
            await asyncio.sleep(0.05)
            assert not asked.result.done()
        return (await asked.result).prediction[:, 0].tolist()

    assert done(while_busy()) == [8]
    many = Model(device, known_s=1e-5)

    async def more_than_fit() -> list[Any]:
        return await asyncio.gather(*(ask(many, rows(i)) for i in range(12)))

    assert done(more_than_fit()) == [[2 * i] for i in range(12)]


def test_the_device_does_one_thing_at_a_time_and_tells_failures(device: Device):
    inside: list[int] = []

    def work(number: int) -> int:
        inside.append(number)
        assert len(inside) == 1
        time.sleep(0.002)
        inside.remove(number)
        return number

    with ThreadPoolExecutor(8) as callers:
        assert list(callers.map(lambda n: on_device(device, lambda: work(n)), range(16))) == list(range(16))

    def fail() -> None:
        raise ValueError("told")

    with pytest.raises(ValueError, match="told"):
        on_device(device, fail)


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
def test_the_device_goes_behind_other_threads(device: Device) -> None:
    here = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    there = on_device(device, lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert there == min(here + COMPUTE, 19)


def test_a_batcher_needs_no_copy_of_a_request_that_fills_its_bucket(device: Device):
    model = Model(device)
    batch = rows(*range(8))
    assert batch_rows(batch) == 8
    assert done(ask(model, batch)) == [2 * i for i in range(8)]
    assert all(not host["numeric"].any() for host in model.batcher.hosts.values())
