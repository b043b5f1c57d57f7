import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.split import split_json, split_rows
from mmjax.errors import DataError

THIRDS = (0.7, 0.1, 0.2)

shares = st.sampled_from([THIRDS, (0.8, 0.0, 0.2), (1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.34, 0.33, 0.33)])
labels = st.lists(st.integers(0, 6), min_size=3, max_size=200).map(lambda found: np.array(found, dtype=np.int32))


def parts_of(split):
    return split.train, split.validation, split.test


def sizes(split):
    return tuple(len(part) for part in parts_of(split))


def check_partition(split, n):
    assert sorted(np.concatenate(parts_of(split)).tolist()) == list(range(n))
    for part in parts_of(split):
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()


@settings(max_examples=50, deadline=None)
@given(n=st.integers(3, 300), fractions=shares, seed=st.integers(0, 2**31 - 1))
def test_random_parts_share_all_rows_in_the_right_sizes(n, fractions, seed):
    split = split_rows(n, strategy="random", fractions=fractions, seed=seed)
    check_partition(split, n)
    for size, share in zip(sizes(split), fractions, strict=True):
        assert abs(size - n * share) < 1 or (size == 1 and n * share < 1) or n < 12
        assert (size > 0) == (share > 0)


def test_the_seed_decides_and_sizes_are_rounded_by_largest_remainder():
    first, again, other = (split_rows(150, strategy="random", fractions=THIRDS, seed=s) for s in (0, 0, 1))
    assert sizes(first) == (105, 15, 30)
    assert all((a == b).all() for a, b in zip(parts_of(first), parts_of(again), strict=True))
    assert (first.test != other.test).any()
    assert sizes(split_rows(7, strategy="random", fractions=THIRDS, seed=0)) == (5, 1, 1)
    assert split_rows(8, strategy="random", fractions=THIRDS, seed=3).test.tolist() == [0, 3]


@settings(max_examples=50, deadline=None)
@given(labels=labels, fractions=shares, seed=st.integers(0, 2**31 - 1))
def test_stratified_keeps_shares_and_every_class_in_train(labels, fractions, seed):
    split = split_rows(len(labels), strategy="stratified", fractions=fractions, seed=seed, labels=labels)
    check_partition(split, len(labels))
    assert set(labels[split.train].tolist()) == set(labels.tolist())
    assert all(len(part) == 0 for part, share in zip(parts_of(split), fractions, strict=True) if share == 0)


def test_stratified_is_exact_in_total_and_within_one_row_in_each_class():
    counts = [50, 33, 21, 12, 7, 101]
    labels = np.repeat(np.arange(6), counts).astype(np.int32)
    labels = labels[np.random.default_rng(0).permutation(len(labels))]
    split = split_rows(len(labels), strategy="stratified", fractions=THIRDS, seed=0, labels=labels)
    assert sizes(split) == sizes(split_rows(len(labels), strategy="random", fractions=THIRDS, seed=0))
    for part, share in zip(parts_of(split), THIRDS, strict=True):
        assert (np.abs(np.bincount(labels[part], minlength=6) - np.array(counts) * share) <= 1).all()


def test_small_classes():
    labels = np.array([0] * 40 + [1] * 40 + [2, 2, 3, 4], dtype=np.int32)
    split = split_rows(
        84, strategy="stratified", fractions=THIRDS, seed=0, labels=labels, classes=("a", "b", "c", "d", "e")
    )
    assert np.bincount(labels[split.train], minlength=5)[2:].tolist() == [1, 1, 1]
    assert np.bincount(labels[split.test], minlength=5)[2:].tolist() == [1, 0, 0]
    assert split.notes == ("split: classes with a single row, which goes to train: d, e",)
    without_test = split_rows(84, strategy="stratified", fractions=(0.8, 0.2, 0.0), seed=0, labels=labels)
    assert np.bincount(labels[without_test.validation], minlength=5)[2:].tolist() == [1, 0, 0]
    assert without_test.notes == ("split: classes with a single row, which goes to train: 3, 4",)
    pairs = np.repeat(np.arange(30), 2).astype(np.int32)
    assert sizes(split_rows(60, strategy="stratified", fractions=THIRDS, seed=0, labels=pairs)) == (30, 0, 30)


def test_many_single_classes_are_counted():
    labels = np.arange(30, dtype=np.int32)
    split = split_rows(30, strategy="stratified", fractions=THIRDS, seed=0, labels=labels)
    assert sizes(split) == (30, 0, 0)
    assert split.notes[0].endswith("18, 19 and 10 more")


def test_too_few_rows():
    with pytest.raises(DataError, match=r"expected rows for every part with a share .*validation 0\.1.*, got 2 rows"):
        split_rows(2, strategy="random", fractions=THIRDS, seed=0)
    assert sizes(split_rows(3, strategy="random", fractions=THIRDS, seed=0)) == (1, 1, 1)
    with pytest.raises(DataError, match="got 0 rows"):
        split_rows(0, strategy="random", fractions=(1.0, 0.0, 0.0), seed=0)


@pytest.mark.parametrize("strategy", ["column", "folders"])
def test_assigned_parts(strategy):
    assigned = np.array(["train", " Train", "VAL", "valid", "validation", "test"], dtype=object)
    split = split_rows(6, strategy=strategy, fractions=THIRDS, seed=0, assigned=assigned)
    assert [part.tolist() for part in parts_of(split)] == [[0, 1], [2, 3, 4], [5]]
    assert split.notes == ()


def test_assigned_without_validation_takes_some_of_train_and_says_so():
    assigned = np.array(["train"] * 80 + ["test"] * 20, dtype=object)
    labels = np.array([0, 1] * 50, dtype=np.int32)
    split = split_rows(100, strategy="column", fractions=THIRDS, seed=0, assigned=assigned, labels=labels)
    assert sizes(split) == (70, 10, 20)
    assert labels[split.validation].sum() == 5
    assert split.notes == ("split: no row is assigned to validation; 10 of 80 train rows are used for it",)
    plain = split_rows(100, strategy="column", fractions=THIRDS, seed=0, assigned=assigned)
    assert sizes(plain) == (70, 10, 20)
    unasked = split_rows(100, strategy="column", fractions=(0.8, 0.0, 0.2), seed=0, assigned=assigned)
    assert sizes(unasked) == (80, 0, 20)
    assert unasked.notes == ()


def test_assigned_faults():
    assigned = np.array(["train", "dev", "dev", ""], dtype=object)
    with pytest.raises(DataError, match=r"got 'dev' \(2 rows\), '' \(1 rows\)"):
        split_rows(4, strategy="column", fractions=THIRDS, seed=0, assigned=assigned)
    with pytest.raises(DataError, match="assigned to train, got none"):
        split_rows(1, strategy="column", fractions=THIRDS, seed=0, assigned=np.array(["test"], dtype=object))
    only = split_rows(9, strategy="column", fractions=THIRDS, seed=0, assigned=np.array(["train"] * 9, dtype=object))
    assert only.notes[-1] == "split: no row is assigned to test; there will be no test metrics"


def test_missing_arguments_are_a_programming_error():
    with pytest.raises(ValueError, match="needs labels"):
        split_rows(9, strategy="stratified", fractions=THIRDS, seed=0)
    with pytest.raises(ValueError, match="needs assigned"):
        split_rows(9, strategy="folders", fractions=THIRDS, seed=0)


def test_json_tells_each_row_by_its_name():
    split = split_rows(20, strategy="random", fractions=THIRDS, seed=0)._replace(notes=("a note",))
    names = np.array([f"line{i}" for i in range(20)], dtype=object)
    text = "".join(split_json(split, names))
    again = json.loads(text)
    assert again["notes"] == ["a note"]
    assert [again[part] for part in ("train", "validation", "test")] == [rows.tolist() for rows in parts_of(split)]
    assert again["names"] == names.tolist()
    assert " " not in text.replace("a note", "")
