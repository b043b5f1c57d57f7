"""The order of rows, and the slices that batches are made of."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.pipeline import epoch_batches, pad_rows, padded_slices, permutation, take


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(0, 1000), st.integers(1, 200))
def test_permutation_holds_every_row_once(seed: int, epoch: int, n: int) -> None:
    order = permutation(seed, epoch, n)
    assert order.dtype == np.int32
    assert sorted(order) == list(range(n))
    assert np.array_equal(order, permutation(seed, epoch, n))


def test_permutation_is_the_same_on_every_machine() -> None:
    assert permutation(0, 1, 8).tolist() == permutation(0, 1, 8).tolist() == PINNED


PINNED = [2, 0, 4, 1, 7, 5, 3, 6]


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(permutation(seed, epoch, 50)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == len(orders)


def test_the_rows_left_over_change_from_epoch_to_epoch() -> None:
    batches = [epoch_batches(0, epoch, 10, 4) for epoch in range(30)]
    assert all(batch.shape == (2, 4) for batch in batches)
    assert set(np.concatenate(batches).ravel()) == set(range(10))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 100), st.integers(1, 40))
def test_slices_cover_all_rows_in_order(n: int, size: int) -> None:
    covered = [row for start, stop in padded_slices(n, size) for row in range(start, stop)]
    assert covered == list(range(n))


@pytest.mark.parametrize("rows", [3, 5])
def test_padding_adds_zeros_and_keeps_the_rows(rows: int) -> None:
    batch = {"numeric": np.arange(6, dtype=np.float32).reshape(3, 2), "label": np.array([1, 2, 3], np.int32)}
    padded = pad_rows(batch, rows)
    assert {name: values.shape[0] for name, values in padded.items()} == {"numeric": rows, "label": rows}
    assert np.array_equal(take(padded, np.arange(3))["numeric"], batch["numeric"])
    assert not padded["label"][3:].any()
