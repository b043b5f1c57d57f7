import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from mmjax.data.audit_drift import ks_distance, total_variation
from tests.auditing import found, table_rows, thirds

COUNT = 1000
PARTS = thirds(COUNT)


def drift(**columns: np.ndarray) -> tuple[str, tuple[str, ...]]:
    """What is said, and the examples, of these columns beside one of noise, dealt in turns."""
    rng = np.random.default_rng(9)
    rows = table_rows({"noise": rng.normal(size=COUNT), "y": rng.integers(2, size=COUNT)} | columns, parts=PARTS)
    findings = found(rows, "drift")
    return (findings[0].what, findings[0].examples) if findings else ("", ())


def normal(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=COUNT)


def test_a_number_that_moved_in_test_rows_is_told():
    moved = np.round(normal() + 2.0 * (PARTS == 2), 2)
    what, examples = drift(moved=moved)
    assert what == "differ between train and test: 1 column, 'moved'"
    medians = [np.median(moved[i == PARTS]) for i in (0, 2)]
    distance = ks_2samp(moved[PARTS == 0], moved[PARTS == 2], method="asymp").statistic
    said = f"median {medians[0]:.6g} in train, median {medians[1]:.6g} in test (distance {distance:.2f})"
    assert examples == (f"'moved': {said}",)


def test_a_column_that_goes_missing_is_told():
    what, examples = drift(gone=np.where((PARTS == 1) & (normal(1) > 0), np.nan, normal()))
    assert what == "differ between train and validation: 1 column, 'gone'"
    assert "missing in validation" in examples[0]


def test_a_category_that_became_frequent_is_told():
    rare = np.array(list("abcd"))[np.random.default_rng(0).integers(4, size=COUNT)]
    what, examples = drift(kind=np.where((PARTS == 2) & (normal() > 0), "a", rare))
    assert what == "differ between train and test: 1 column, 'kind'"
    assert examples[0].startswith("'kind': 'a' is 2")


def test_categories_that_no_training_row_has_are_told():
    kind = np.array(list("abcd"))[np.random.default_rng(0).integers(4, size=COUNT)]
    what, examples = drift(kind=np.where((PARTS == 2) & (normal() > 0), "new", kind))
    assert what == "differ between train and test: 1 column, 'kind'"
    assert examples[0].startswith("'kind': 'none or rare' is 0.0% of train, ")


def test_targets_that_differ_are_told():
    what, examples = drift(y=np.where((PARTS == 2) | (normal() > 1), "yes", "no"))
    assert what == "differ between train and test: 1 column, 'y'"
    assert examples[0].startswith("'y': 'yes' is 14")
    what, examples = drift(y=normal() + 3.0 * (PARTS == 1))
    assert what == "differ between train and validation: 1 column, 'y'"
    assert examples[0].startswith("'y': median -0.12")
    assert " in train, median 2.8" in examples[0]


def test_small_differences_are_not_told():
    assert drift(moved=normal() + 0.1 * (PARTS == 2)) == ("", ())


def test_the_column_that_orders_the_rows_is_meant_to_differ():
    rng = np.random.default_rng(0)
    days = np.sort(rng.integers(20_000, 21_000, size=COUNT))
    dates = np.array([str(np.datetime64(int(day), "D")) for day in days])
    parts = np.repeat([0, 1, 2], [700, 150, 150]).astype(np.int8)
    rows = table_rows({"day": dates, "x": normal(), "y": rng.integers(2, size=COUNT)}, parts=parts)
    (finding,) = found(rows, "drift")
    assert "'day'" in finding.what
    assert found(rows._replace(ordered_by="day"), "drift") == []


def test_groups_count_as_one_row_each():
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(20), 50)
    parts = np.array([0] * 12 + [1] * 4 + [2] * 4, np.int8)[group]
    columns = {"x": rng.normal(size=20)[group] + 0.1 * rng.normal(size=COUNT), "y": rng.integers(2, size=COUNT)}
    rows = table_rows(columns, parts=parts)
    assert len(found(rows, "drift")) == 1
    assert found(rows._replace(groups=group.astype(str).astype(object)), "drift") == []


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(-9, 9), min_size=3, max_size=60),
    st.lists(st.integers(-9, 9), min_size=3, max_size=60),
)
def test_the_distance_of_numbers_is_that_of_kolmogorov_and_smirnov(a, b):
    a, b = np.array(a, float), np.array(b, float)
    assert ks_distance(a, b) == pytest.approx(ks_2samp(a, b, method="asymp").statistic, abs=1e-12)


def test_the_bound_holds_for_the_exact_distribution():
    for a, b in ((30, 10), (100, 20), (500, 500)):
        size = a * b / (a + b)
        for distance in (0.2, 0.4, 0.6):
            steps = np.arange(a) / a
            moved = steps + distance  # two samples whose distance is `distance`
            found = ks_2samp(steps, np.quantile(moved, (np.arange(b) + 0.5) / b), method="exact")
            assert found.pvalue <= 2 * np.exp(-2 * size * found.statistic**2) + 1e-12


def test_missing_numbers_count_as_the_largest():
    assert ks_distance(np.array([1.0, 2.0, np.nan, np.nan]), np.array([1.0, 2.0])) == 0.5


def test_random_dealing_moves_shares_less_than_the_bound_says():
    rng = np.random.default_rng(0)
    codes = np.minimum(rng.zipf(1.5, size=600), 200)
    a, b, level = 400, 200, 0.05
    size = a * b / (a + b)
    pooled = np.bincount(codes, minlength=201) / 600
    limit = 0.5 * np.sqrt(pooled * (1 - pooled) / size).sum() + np.sqrt(-np.log(level) / (2 * size))
    beyond = 0
    for _ in range(400):
        dealt = rng.permutation(codes)
        counts = np.stack([np.bincount(part, minlength=201) for part in (dealt[:a], dealt[a:])]).astype(float)
        beyond += total_variation(counts)[0] > limit
    assert beyond <= 400 * level


@pytest.mark.parametrize("sizes", [(500, 500), (900, 100), (960, 40), (100, 900)])
def test_columns_of_rare_words_are_not_told(sizes):
    rng = np.random.default_rng(1)
    words = np.array([f"w{i}" for i in rng.zipf(1.6, size=COUNT) % 400])
    parts = rng.permutation(np.repeat([0, 2], sizes)).astype(np.int8)
    rows = table_rows({"word": words, "x": normal(), "y": rng.integers(2, size=COUNT)}, parts=parts)
    assert rows.schema.column("word").kind == "categorical"
    assert found(rows, "drift") == []
