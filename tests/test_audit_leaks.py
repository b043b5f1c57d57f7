import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chatterjeexi

from mmjax.data.audit_leaks import RANK_TOLERANCE, _answers, _leak
from tests.auditing import found, table_rows, thirds

COUNT = 400


def noise(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def classes(names: str, count: int = COUNT, *, seed: int = 5) -> np.ndarray:
    return np.array(list(names))[noise(seed).integers(len(names), size=count)]


def leaks(column: np.ndarray, y: np.ndarray, *, other: np.ndarray | None = None) -> list[str]:
    """What is said of a leaking column beside one of noise."""
    columns = {"suspect": column, "noise": noise(7).normal(size=len(y)) if other is None else other, "y": y}
    findings = found(table_rows(columns, parts=thirds(len(y))), "leaks")
    return list(findings[0].examples) if findings else []


def one_answer(values: int) -> list[str]:
    return [f"'suspect': each of its {values} values has one answer"]


SORTED = ["'suspect': sorted by it, the rows are sorted by their answer, or nearly"]


def test_a_category_with_one_answer_for_each_value_is_a_leak():
    y = classes("no")
    status = np.where(y == "n", classes("abc", seed=1), classes("xyz", seed=2))
    assert leaks(status, y) == one_answer(6)


def test_many_values_of_one_answer_each_are_a_leak():
    code = noise().integers(60, size=COUNT)
    assert leaks(code, np.array(list("pq"))[code * 7 % 11 % 2]) == one_answer(60)


def test_a_category_that_only_hints_is_none():
    y = classes("no")
    status = np.where(noise(1).random(COUNT) < 0.1, classes("ab", seed=2), np.where(y == "n", "a", "b"))
    assert leaks(status, y) == []


def test_a_category_of_rows_that_hardly_repeat_is_none():
    y = classes("no")
    assert leaks(np.array([f"v{i // 2}" for i in range(COUNT)]), y) == []


def test_a_threshold_that_separates_the_classes_is_a_leak():
    score = noise().normal(size=COUNT)
    assert leaks(score, np.where(score > 0.3, "yes", "no")) == SORTED
    assert leaks(score, np.digitize(score, [-1, 0, 1]).astype(str)) == SORTED


def test_a_good_but_honest_score_is_none():
    score = noise().normal(size=COUNT)
    blurred = score + noise(1).normal(scale=0.2, size=COUNT)
    assert leaks(score, np.where(blurred > 0.3, "yes", "no")) == []


def test_a_column_filled_in_once_the_answer_is_known_is_a_leak():
    y = classes("no")
    reason = np.where(y == "n", "", classes("abc", seed=1))
    amount = np.where(y == "n", np.nan, noise(1).lognormal(size=COUNT))
    assert leaks(reason, y) == one_answer(4)
    assert "has one answer" in leaks(amount, y)[0]


def test_missing_cells_that_mark_one_of_three_classes_are_a_leak():
    y = classes("pqr")
    gaps = np.where(y == "q", np.nan, noise(1).normal(size=COUNT))
    train = (y == "q")[thirds(COUNT) == 0].sum()
    assert leaks(gaps, y) == [f"'suspect': it is missing in the rows of one class and in no others ({train} rows)"]
    assert leaks(np.where(noise(2).random(COUNT) < 0.3, np.nan, noise(1).normal(size=COUNT)), y) == []


def test_missing_cells_that_mark_the_largest_targets_are_a_leak():
    y = noise().normal(size=COUNT)
    gaps = np.where(y > 1, np.nan, noise(1).normal(size=COUNT))
    train = (y > 1)[thirds(COUNT) == 0].sum()
    said = f"'suspect': its {train} missing cells are the rows with the largest or smallest targets"
    assert leaks(gaps, y) == [said]
    assert leaks(np.where(y > 1, noise(3).choice([np.nan, 0.5], size=COUNT), noise(1).normal(size=COUNT)), y) == []


@pytest.mark.parametrize("shape", [lambda y: 3 * y - 100, lambda y: -np.exp(y), lambda y: y + 0.01 * np.sin(9 * y)])
def test_a_number_that_rises_or_falls_with_the_target_is_a_leak(shape):
    y = noise().normal(size=COUNT)
    assert leaks(shape(y), y) == SORTED


def test_any_function_of_the_column_as_target_is_a_leak():
    x = noise().uniform(-3, 3, size=4000)
    assert leaks(x, np.cos(x) + 2) == SORTED


def test_a_correlated_number_is_none():
    y = noise().normal(size=COUNT)
    assert np.corrcoef(y, (x := y + noise(1).normal(scale=0.1, size=COUNT)))[0, 1] > 0.99
    assert leaks(x, y) == []


def test_a_code_for_each_target_value_is_a_leak():
    code = noise().integers(40, size=COUNT)
    assert leaks(np.array([f"k{i}" for i in code]), np.sqrt(code * 17 % 41) + 0.5) == one_answer(40)


def test_copies_of_rows_do_not_make_a_column_of_numbers_a_leak():
    y, x = classes("no"), noise().normal(size=COUNT)
    twice = table_rows({"x": np.tile(x, 2), "y": np.tile(y, 2)}, parts=np.zeros(2 * COUNT, np.int8))
    assert found(twice, "leaks") == []


def test_rows_of_one_group_do_not_either():
    group = np.repeat(np.arange(COUNT // 4), 4)
    height, visit = noise().normal(size=COUNT // 4)[group], noise(2).normal(size=COUNT)
    y = classes("no", COUNT // 4)[group]
    rows = table_rows({"height": height, "visit": visit, "y": y}, parts=np.zeros(COUNT, np.int8))
    assert len(found(rows, "leaks")) == 1
    assert found(rows._replace(groups=group.astype(str).astype(object)), "leaks") == []


def test_few_rows_say_nothing():
    x = np.arange(40) + 0.5
    assert leaks(x, np.where(x < 20, "a", "b"), other=noise().permutation(x)) == []


def test_one_finding_names_all_columns():
    y = classes("no")
    columns = {
        "a": np.where(y == "n", 1, 2),
        "fine": noise().normal(size=COUNT),
        "b": np.where(y == "n", "u", "v"),
        "y": y,
    }
    (finding,) = found(table_rows(columns, parts=np.zeros(COUNT, np.int8)), "leaks")
    assert finding.what == f"give the target away: 2 columns, 'a', 'b' (seen in {COUNT} train rows)"
    assert (finding.found, len(finding.examples)) == (2, 2)
    assert "ignore_columns" in finding.advice


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.001, 1), st.booleans())
def test_the_measure_for_numbers_is_chatterjees(seed, blur, coarse):
    rng = noise(seed)
    y = rng.normal(size=300)
    y = np.round(y, 1) if coarse else y
    x = y + rng.normal(scale=blur, size=300)
    rows = table_rows({"x": x, "y": y + 0.05}, parts=np.zeros(300, np.int8))
    ((_, answers),) = _answers(rows, np.arange(300))
    xi = chatterjeexi(x, y, y_continuous=False).statistic
    ranks = answers.values[np.argsort(x)]
    assert 1 - np.abs(np.diff(ranks)).sum() / (300 * answers.expected) == pytest.approx(xi, abs=1e-9)
    if xi < 1 - RANK_TOLERANCE - 4 / 300:
        assert _leak(x.astype(np.float32), answers) == ""
