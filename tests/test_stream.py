"""Streaming: the same rows in the same order as from memory, read ahead, and ending when nobody wants more."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.config import Cache
from mmjax.data.cache import open_or_build
from mmjax.data.pipeline import epoch_batches, take
from mmjax.data.stream import WINDOW_BYTES, gather, window_steps, windows
from mmjax.schema import Batch

ROWS = 500


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """Return a batch of ROWS images and labels, mapped from a cache."""
    rng = np.random.default_rng(0)
    whole = {"image": rng.integers(0, 256, (ROWS, 1, 8, 8, 3), np.uint8), "label": np.arange(ROWS, dtype=np.int32)}

    def build(writer):
        writer.append(whole)
        return {}

    return open_or_build(Cache(path=str(tmp_path_factory.mktemp("c"))), {}, build).batch


@settings(max_examples=30, deadline=None)
@given(
    batch_size=st.integers(1, 60),
    steps=st.integers(1, 12),
    part=st.integers(60, ROWS),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_windows_are_the_rows_in_the_order_asked(mapped: Batch, batch_size, steps, part, seed, data) -> None:
    rows = np.random.default_rng(seed).permutation(ROWS)[:part]
    order = epoch_batches(seed, 1, part, batch_size)
    start = data.draw(st.integers(0, len(order)))
    want = [rows[order[first : first + steps].reshape(-1)] for first in range(start, len(order), steps)]
    found = list(windows(mapped, rows, order, steps=steps, start=start))
    assert len(found) == len(want)
    for window, indices in zip(found, want, strict=True):
        assert {name: values.shape for name, values in window.items()} == {
            "image": (steps * batch_size, 1, 8, 8, 3),
            "label": (steps * batch_size,),
        }
        expected = take(mapped, np.resize(indices, steps * batch_size))
        assert all(np.array_equal(window[name], values) for name, values in expected.items())
        assert {type(values) for values in window.values()} == {np.ndarray}


def test_arrays_in_memory_are_gathered_alike(mapped: Batch) -> None:
    rows = np.array([7, 7, 499, 0, 3])
    resident = {name: np.array(values) for name, values in mapped.items()}
    for name, values in gather(resident, rows).items():
        assert np.array_equal(values, mapped[name][rows])
    assert gather(mapped, rows[:0])["image"].shape == (0, 1, 8, 8, 3)


def test_a_window_is_some_megabytes(mapped: Batch) -> None:
    row = 8 * 8 * 3 + 4
    assert window_steps(mapped, 64) == WINDOW_BYTES // (64 * row)
    assert window_steps({"image": np.zeros((1, 1, 2048, 2048, 3), np.uint8)}, 8) == 1


def readers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("grain")}


def ended(before: set[threading.Thread]) -> bool:
    end = time.monotonic() + 10
    while readers() - before and time.monotonic() < end:
        time.sleep(0.01)
    return not readers() - before


def test_reading_ends_when_nobody_wants_more(mapped: Batch) -> None:
    before, rows, order = readers(), np.arange(ROWS), epoch_batches(0, 1, ROWS, 5)
    with contextlib.closing(windows(mapped, rows, order, steps=1, start=0)) as stream:
        first = next(stream)
        assert readers() - before
    assert first["label"].tolist() == order[0].tolist()
    assert ended(before)

    def fails() -> None:
        with contextlib.closing(windows(mapped, rows, order, steps=1, start=0)) as stream:
            for _ in stream:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert ended(before)
    assert len(list(windows(mapped, rows, order, steps=3, start=0))) == 34
    assert ended(before)


def test_an_error_while_reading_reaches_who_reads(mapped: Batch) -> None:
    before = readers()
    stream = windows(mapped, np.array([0, ROWS]), np.array([[0], [1]]), steps=1, start=0)
    assert next(stream)["label"].tolist() == [0]
    with pytest.raises(IndexError, match=f"index {ROWS} is out of bounds"):
        next(stream)
    assert ended(before)


def test_what_was_read_does_not_stay_in_memory(tmp_path: Path) -> None:
    size = 96 << 20
    with open(tmp_path / "x.bin", "wb") as file:
        os.truncate(file.fileno(), size)
    script = (
        "import sys, numpy as np\nfrom mmjax.data.stream import windows\n"
        "x = np.memmap(sys.argv[1], np.uint8, 'r', shape=(96, 1 << 20))\n"
        "order = np.random.default_rng(0).permutation(96).reshape(24, 4)\n"
        "def pages(): return int(next(line.split()[1] for line in open('/proc/self/status') if 'RssFile' in line))\n"
        "stream = windows({'x': x}, np.arange(96), order, steps=1, start=0)\n"
        "next(stream); before = pages()\n"
        "for window in stream: pass\n"
        "print(pages() - before)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "x.bin")]
    grown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert int(grown) < 24 << 10, "KiB of mapped pages kept, of 96 MiB read"
