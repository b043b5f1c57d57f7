"""Splits by group and by time: their laws, what is said, and the rows of real files."""

from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.config import Config
from mmjax.config_load import config_from_dict
from mmjax.data.prepare import prepare
from mmjax.data.split import Split, split_rows
from mmjax.data.split_groups import group_codes
from mmjax.data.split_time import deal_times
from mmjax.errors import DataError
from tests.doors import HEADER, image_config, table_config, table_rows, write_csv, write_images

THIRDS = (0.7, 0.1, 0.2)
shares = st.sampled_from([THIRDS, (0.8, 0.0, 0.2), (1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.34, 0.33, 0.33)])
seeds = st.integers(0, 2**31 - 1)


def parts_of(split: Split) -> tuple[np.ndarray, ...]:
    return split.train, split.validation, split.test


def sizes(split: Split) -> list[int]:
    return [len(part) for part in parts_of(split)]


def check_partition(split: Split, n: int, fractions: tuple[float, float, float]) -> None:
    assert sorted(np.concatenate(parts_of(split)).tolist()) == list(range(n))
    for part, share in zip(parts_of(split), fractions, strict=True):
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
        assert (len(part) > 0) == (share > 0)


def as_cells(values: list) -> np.ndarray:
    return np.array([str(value) for value in values], dtype=object)


def dealt(cells: np.ndarray, strategy, fractions=THIRDS, seed: int = 0, labels=None) -> Split:
    return split_rows(len(cells), strategy=strategy, fractions=fractions, seed=seed, assigned=cells, labels=labels)


# ---- groups


@settings(max_examples=50, deadline=None)
@given(
    group_sizes=st.lists(st.one_of(st.integers(1, 3), st.integers(1, 60)), min_size=3, max_size=40),
    fractions=shares,
    seed=seeds,
    by_class=st.booleans(),
    data=st.data(),
)
def test_no_group_is_in_two_splits_and_parts_keep_their_size(group_sizes, fractions, seed, by_class, data):
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(group_sizes)), group_sizes))
    n, cells = len(groups), as_cells([f"g{group}" for group in groups])
    labels = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), np.int32) if by_class else None
    strategy = "group_stratified" if by_class else "group"
    split = dealt(cells, strategy, fractions, seed, labels)
    check_partition(split, n, fractions)
    found = [set(groups[part].tolist()) for part in parts_of(split)]
    assert sum(map(len, found)) == len(group_sizes)
    assert "; 0 groups in two splits" in split.notes[0]
    again = dealt(cells, strategy, fractions, seed, labels)
    assert all((a == b).all() for a, b in zip(parts_of(split), parts_of(again), strict=True))
    if not by_class:
        for size, share in zip(sizes(split), fractions, strict=True):
            assert size - n * share < max(group_sizes)


def test_equal_groups_are_dealt_exactly_and_by_the_seed():
    cells = as_cells([i // 10 for i in range(1000)])
    first, other = dealt(cells, "group"), dealt(cells, "group", seed=1)
    assert sizes(first) == sizes(other) == [700, 100, 200]
    assert set(first.test.tolist()) != set(other.test.tolist())
    assert first.notes == (
        "split: 70 groups (700 rows) in train, 10 groups (100 rows) in validation, 20 groups (200 rows) in test; "
        "0 groups in two splits",
    )


def test_very_unequal_groups_keep_the_shares():
    rng = np.random.default_rng(0)
    group_sizes = np.maximum(1, (1000 * rng.pareto(1.2, 300)).astype(int) % 3000)
    cells = as_cells(np.repeat(np.arange(300), group_sizes).tolist())
    got = np.array(sizes(dealt(cells, "group"))) / len(cells)
    assert np.abs(got - THIRDS).max() < 0.001


def test_a_group_larger_than_its_share_is_told():
    cells = as_cells(["big"] * 90 + ["b"] * 5 + ["c"] * 5)
    split = dealt(cells, "group")
    assert sizes(split) == [90, 5, 5]
    assert split.notes[1] == (
        "split: groups are too large for the shares 0.70 0.10 0.20: got 0.90 0.05 0.05 (the largest group has 90 rows)"
    )


def test_class_shares_are_kept_where_plain_groups_lose_them():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(200), rng.integers(5, 30, 200))
    rate = np.where(np.arange(200) % 10 == 0, 0.9, 0.02)  # one class stands in few groups
    labels = (rng.random(len(groups)) < rate[groups]).astype(np.int32)
    off = {}
    for strategy in ("group", "group_stratified"):
        split = dealt(as_cells(groups.tolist()), strategy, labels=labels)
        off[strategy] = max(abs(labels[part].mean() - labels.mean()) for part in parts_of(split))
        assert np.abs(np.array(sizes(split)) / len(groups) - THIRDS).max() < 0.01
    assert off["group_stratified"] < 0.01 < off["group"]


def test_a_class_of_one_group_is_trained_on():
    labels = np.array([0] * 60 + [1] * 60 + [2] * 4, np.int32)
    cells = as_cells([f"{i // 6}" for i in range(120)] + ["rare"] * 4)
    split = dealt(cells, "group_stratified", labels=labels)
    assert set(labels[split.train].tolist()) == {0, 1, 2}


def test_too_few_groups():
    with pytest.raises(DataError) as caught:
        dealt(as_cells(["a", "b"] * 20), "group")
    assert caught.value.problems == (
        "split.column: expected at least 3 groups, one for every part with a share, got 2; name another column, or "
        "give parts a share of 0",
    )
    assert sizes(dealt(as_cells(["a", "b"] * 20), "group", (0.5, 0.0, 0.5))) == [20, 0, 20]
    assert sizes(dealt(as_cells(["a"] * 9), "group", (1.0, 0.0, 0.0))) == [9, 0, 0]


def test_groups_are_compared_as_read():
    codes, groups = group_codes(np.array(["1", "1.0", " 1", "1"], object))
    assert (codes.tolist(), groups) == ([0, 1, 2, 0], ("1", "1.0", " 1"))


# ---- time


@settings(max_examples=50, deadline=None)
@given(times=st.lists(st.integers(-9, 30), min_size=3, max_size=120), fractions=shares, seed=seeds)
def test_older_rows_come_first_and_one_time_stays_together(times, fractions, seed):
    cells, values = as_cells(times), np.array(times)
    split = dealt(cells, "time", fractions, seed)
    check_partition(split, len(times), fractions)
    parts = [values[part] for part in parts_of(split) if len(part)]
    enough = len(set(times)) >= len(parts)
    for before, after in pairwise(parts):
        assert before.max() < after.min() if enough else before.max() <= after.min()
    assert ("; 0 times in two splits" in split.notes[0]) == enough
    if len(set(times)) == len(times) >= 12:
        for size, share in zip(sizes(split), fractions, strict=True):
            assert abs(size - len(times) * share) < 1 or size == 1


@settings(max_examples=50, deadline=None)
@given(runs=st.lists(st.integers(1, 9), min_size=3, max_size=8), wanted=st.integers(0, 10**6))
def test_parts_end_at_the_nearest_changes_of_time(runs, wanted):
    times = np.repeat(np.arange(float(len(runs))), runs)
    first = 1 + wanted % (len(times) - 2)
    second = first + 1 + wanted // 7 % (len(times) - first - 1)
    target = np.array([first, second])
    parts = deal_times(times, np.diff([0, *target, len(times)]))
    edges = np.cumsum(runs)[:-1]
    best = min(abs(a - first) + abs(b - second) for a in edges for b in edges if a < b)
    assert np.abs(np.cumsum(np.bincount(parts, minlength=3))[:2] - target).sum() == best


@pytest.mark.parametrize(
    ("cells", "note"),
    [
        (
            [f"2024-01-{i + 1:02d}" for i in range(10)],
            "split: train 2024-01-01 to 2024-01-07 (7 rows), validation 2024-01-08 to 2024-01-08 (1 rows), "
            "test 2024-01-09 to 2024-01-10 (2 rows); 0 times in two splits",
        ),
        (
            [f"{i + 1}.2.2024 10:00" for i in range(10)],
            "split: train 1.2.2024 10:00 to 7.2.2024 10:00 (7 rows), validation 8.2.2024 10:00 to 8.2.2024 10:00 "
            "(1 rows), test 9.2.2024 10:00 to 10.2.2024 10:00 (2 rows); 0 times in two splits",
        ),
        (
            [f"{i - 3}e1" for i in range(10)],
            "split: train -3e1 to 3e1 (7 rows), validation 4e1 to 4e1 (1 rows), test 5e1 to 6e1 (2 rows); "
            "0 times in two splits",
        ),
        (
            ["7"] * 6 + ["9"] * 4,
            "split: train 7 to 9 (7 rows), validation 9 to 9 (1 rows), test 9 to 9 (2 rows); 2 times in two splits; "
            "there are fewer different times than splits",
        ),
    ],
)
def test_dates_and_numbers_give_ranges_of_time(cells: list[str], note: str):
    turned = np.random.default_rng(0).permutation(len(cells))
    split = dealt(np.array(cells, object)[turned], "time")
    assert split.notes == (note,)


def test_zones_are_compared_in_one_time():
    cells = as_cells(["2024-01-01T10:00+05:00", "2024-01-01T06:00Z", "2024-01-01T04:00-03:00"])
    split = dealt(cells, "time", (0.34, 0.33, 0.33))
    assert [part.tolist() for part in parts_of(split)] == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("odd", "got"),
    [
        ("soon", "'2024-01-01', '2024-01-02', 'soon'"),
        ("2024-01-03T00:00Z", "dates, some with and some without a time zone"),
        ("17", "'2024-01-01', '2024-01-02'"),
    ],
)
def test_what_is_no_time_is_named(odd: str, got: str):
    if "zone" in got:
        cells = as_cells(["2024-01-01T00:00", "2024-01-02T00:00", odd])
    else:
        cells = as_cells(["2024-01-01", "2024-01-02", odd])
    with pytest.raises(DataError) as caught:
        dealt(cells, "time", (0.34, 0.33, 0.33))
    assert caught.value.problems == (
        f"split.column: expected dates in one format (such as ISO 8601) or numbers, got {got}; mend these or name "
        "another column",
    )


# ---- from a file


def with_split(config: Config, strategy: str, column: str) -> Config:
    return config_from_dict(msgspec.to_builtins(config) | {"split": {"strategy": strategy, "column": column}}, "test")


def grouped_csv(folder: Path, *, gap: bool = False) -> Path:
    rows = [(*row, f"p{i // 4}" if not (gap and i in (3, 7)) else "NA") for i, row in enumerate(table_rows(80))]
    return write_csv(folder / "t.csv", (*HEADER, "patient"), rows)


@pytest.mark.parametrize("strategy", ["group", "group_stratified"])
def test_groups_of_a_table_are_no_feature(tmp_path: Path, strategy: str):
    found = prepare(with_split(table_config(grouped_csv(tmp_path)), strategy, "patient"))
    assert found.schema.column("patient").kind == "ignored"
    for part in found.split[:3]:
        assert (np.bincount(part // 4, minlength=20) % 4 == 0).all()
    assert any(note.endswith("; 0 groups in two splits") for note in found.notes)


def test_rows_without_a_group_or_a_time_are_named(tmp_path: Path):
    path = grouped_csv(tmp_path, gap=True)
    with pytest.raises(DataError) as caught:
        prepare(with_split(table_config(path), "group", "patient"))
    assert caught.value.problems == (
        "split.column: expected a group in every row of 'patient', got 2 missing (line 5, 9); fill them or remove "
        "these rows",
    )
    rows = [(*row[:4], "" if i == 9 else row[4], row[5]) for i, row in enumerate(table_rows(60))]
    path = write_csv(tmp_path / "t.csv", HEADER, rows)
    with pytest.raises(DataError, match=r"expected a time in every row of 'when', got 1 missing \(line 11\)"):
        prepare(with_split(table_config(path), "time", "when"))
    with pytest.raises(DataError, match=r"split.column: no column 'whenn'; .*; did you mean 'when'"):
        prepare(with_split(table_config(path), "time", "whenn"))


def test_time_stays_a_feature_unless_it_is_ignored(tmp_path: Path):
    path = write_csv(tmp_path / "t.csv", HEADER, table_rows(60))
    found = prepare(with_split(table_config(path), "time", "when"))
    assert "when" in [column.name for column in found.schema.features]
    when = found.batch["numeric"][:, found.schema.numeric_features.index("when.elapsed_days")]
    assert when[found.split.train].max() < when[found.split.validation].min()
    assert when[found.split.validation].max() < when[found.split.test].min()
    ignored = prepare(with_split(table_config(path, ignore_columns=["when"]), "time", "when"))
    assert "when" not in [column.name for column in ignored.schema.features]
    assert all((a == b).all() for a, b in zip(found.split[:3], ignored.split[:3], strict=True))


def test_a_number_is_dealt_by_group_but_not_by_class(tmp_path: Path):
    config = table_config(grouped_csv(tmp_path), target_column="size", missing_markers=["?"], on_invalid="drop")
    assert prepare(with_split(config, "group", "patient")).schema.target.task == "regression"
    with pytest.raises(DataError, match=r"split.strategy: expected group for regression \(.*\), got group_stratified"):
        prepare(with_split(config, "group_stratified", "patient"))


@pytest.mark.parametrize("strategy", ["group", "group_stratified", "time"])
def test_images_of_a_list_by_group_and_time(tmp_path: Path, strategy: str):
    images = write_images(tmp_path / "i")
    rows = [(f"{s}/{i}.png", s, f"{i // 2}", f"2024-05-{i + 1:02d}") for s in ("dark", "light") for i in range(8)]
    listed = write_csv(images / "l.csv", ("image", "label", "camera", "taken"), rows)
    column = "taken" if strategy == "time" else "camera"
    found = prepare(with_split(image_config(listed, train_split=0.5, test_split=0.4), strategy, column))
    values = np.array([row[3 if strategy == "time" else 2] for row in rows])
    parts = [set(values[part]) for part in found.split[:3]]
    assert all(parts)
    assert sum(map(len, parts)) == len(set(values))
    rows[5] = (*rows[5][:2], "", "")
    listed = write_csv(images / "l.csv", ("image", "label", "camera", "taken"), rows)
    with pytest.raises(DataError, match=r"in every row of '(camera|taken)', got 1 missing \(dark/5.png\)"):
        prepare(with_split(image_config(listed), strategy, column))
