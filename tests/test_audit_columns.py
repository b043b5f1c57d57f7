import numpy as np
import pytest
import scipy.stats

from mmjax.config import Audit
from mmjax.data.audit import audit
from tests.auditing import csv_rows, found, table_rows, thirds

COUNT = 400
PARTS = thirds(COUNT)


def normal(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=COUNT)


def said(**columns: np.ndarray) -> list[tuple[str, int, tuple[str, ...]]]:
    """What is found about these columns beside one of noise."""
    y = np.random.default_rng(9).integers(2, size=COUNT)
    findings = found(table_rows({"noise": normal(9), "y": y} | columns, parts=PARTS), "columns")
    return [(f.what, f.found, f.examples) for f in findings]


def test_columns_of_one_value_are_told():
    ((what, count, examples),) = said(unit=np.full(COUNT, "kg"), empty=np.full(COUNT, ""))
    assert (what, count) == ("left out, as they hold one value: 2 columns, 'unit', 'empty'", 2)
    assert examples == ("'unit': always 'kg'", "'empty': every cell is missing")


def test_identifiers_are_told_unless_one_is_declared():
    name = np.array([f"n{i}" for i in range(COUNT)])
    ((what, _, examples),) = said(name=name)
    assert what == "left out, as they only identify rows: 1 column, 'name'"
    assert examples == ("'name': text, 400 distinct values in 400 cells",)
    columns = {"noise": normal(), "name": name, "y": np.arange(COUNT) % 2}
    assert found(table_rows(columns, parts=PARTS, id_column="name"), "columns") == []


def test_a_column_with_one_row_that_differs_is_told_with_its_line():
    almost = np.zeros(COUNT)
    almost[17] = 3
    ((what, count, examples),) = said(almost=almost)
    assert (what, count) == ("nearly constant: 1 column, 'almost'", 1)
    assert examples == ("'almost': 1 of 400 rows differ (line 19)",)
    almost[[3, 200]] = [5, 6]
    assert said(almost=almost) == []


def test_a_category_and_a_column_of_gaps_can_be_nearly_constant():
    kind = np.full(COUNT, "usual")
    kind[5] = "odd"
    gaps = np.full(COUNT, np.nan)
    gaps[[7]] = 1.5
    findings = said(kind=kind, gaps=gaps)
    assert findings[0][2][0].startswith("'gaps': always '1.5' or missing (399 of 400)")
    assert findings[1][2] == ("'kind': 1 of 400 rows differ (line 7)",)


def test_numbers_with_a_few_odd_cells_are_told_with_the_cells_and_their_lines():
    code = np.random.default_rng(0).integers(50, size=COUNT).astype(str).astype(object)
    code[[1, 202]] = "12,5"
    code[9] = "seven"
    ((what, count, examples),) = said(code=code)
    assert (what, count) == ("numbers but for a few cells: 1 column of text, 'code'", 1)
    assert examples == ("'code': '12,5' in 2 rows (line 3, line 204)",)  # row 9 is of test: its text is not known
    assert PARTS[9] == 2


def test_the_odd_cell_of_many_numbers_that_were_left_out_as_text_is_told():
    code = np.array([f"{x:.6f}" for x in normal()], object)
    code[9] = "n.a."
    ((what, _, examples),) = said(code=code)
    assert what == "numbers but for a few cells: 1 column of text, 'code'"
    assert examples == ("'code', left out: 'n.a.'",)


def test_numbers_written_for_people_are_told_with_how_to_write_them():
    price = np.array([f"{i + 1},{i % 900 + 100}" for i in range(COUNT)], object)
    share = np.array([f"{i % 9}%" for i in range(COUNT)], object)
    ((what, count, examples),) = said(price=price, share=share)
    assert (what, count) == ("text that looks like numbers: 2 columns, 'price', 'share'", 2)
    assert examples == ("'price', left out: '1,100'", "'share': '0%'")


def test_texts_and_codes_are_not_called_numbers():
    words = np.array([f"w{i % 9}" for i in range(COUNT)])
    mixed = np.array([str(i % 9) if i % 2 else f"w{i % 9}" for i in range(COUNT)])
    assert said(words=words, mixed=mixed) == []


def test_columns_that_say_the_same_are_told():
    grade = np.random.default_rng(1).integers(6, size=COUNT)
    celsius = np.round(normal(2), 3) + 20
    findings = said(
        grade=grade,
        word=np.array(["none", "some", "more", "much", "most", "all"])[grade],
        celsius=celsius,
        fahrenheit=celsius * 1.8 + 32,
        below=-celsius,
    )
    ((what, count, examples),) = findings
    assert (what, count) == ("say the same as another: 3 columns, 'fahrenheit', 'below', 'word'", 3)
    assert examples[2] == "'word' and 'grade': each value of one goes with one value of the other"


def test_columns_that_say_nearly_the_same_are_not_told():
    grade = np.random.default_rng(1).integers(6, size=COUNT)
    other = grade.copy()
    other[3] = (grade[3] + 1) % 6
    assert said(grade=grade, other=other, rounded=normal(2), exact=normal(2) + 0.1 * normal(3)) == []


def test_two_columns_that_agree_by_chance_are_not_told():
    first, second = np.zeros(COUNT), np.zeros(COUNT)
    first[[4, 9, 12]], second[[4, 9, 12]] = 1, 1
    assert said(first=first, second=second) == []


def classes(counts: dict[str, int]) -> dict[str, np.ndarray]:
    y = np.repeat(list(counts), list(counts.values()))
    return {"x": np.random.default_rng(0).normal(size=len(y)), "y": y}


def test_classes_with_few_rows_and_imbalance_are_told():
    rows = table_rows(classes({"a": 700, "b": 60, "c": 6, "d": 200}), seed=1)
    few, imbalance = audit(rows, Audit())
    assert few.what == "fewer than 10 train rows: 1 of 4 classes"
    assert few.examples == ("c: 4",)
    assert (
        imbalance.what == "classes are imbalanced 122 to 1: always answering 'a' is right for 72.5% of the train rows"
    )
    assert imbalance.examples == ("c: 4 of 676", "b: 42 of 676")
    assert "balanced" in imbalance.advice


def test_classes_that_no_test_row_has_are_told():
    columns = classes({"a": 100, "b": 100, "c": 100})
    parts = thirds(300)
    parts[200:][parts[200:] == 2] = 0
    (finding,) = found(table_rows(columns, parts=parts), "classes")
    assert finding.what == "no test row: 1 of 3 classes, of which test tells nothing"
    assert finding.examples == ("c",)


@pytest.mark.parametrize("counts", [{"a": 100, "b": 400}, {"a": 60, "b": 90, "c": 200}])
def test_classes_of_a_fair_size_are_not_told(counts):
    assert found(table_rows(classes(counts)), "classes") == []


def test_classes_that_differ_by_case_or_blanks_alone_are_told():
    counts = dict.fromkeys(["YES", "Yes", "no", " yes", "No", "maybe"], 60)
    (finding,) = found(table_rows(classes(counts)), "classes")
    assert finding.what == "differ by case or blanks around them alone: 5 of 6 classes"
    assert (finding.found, finding.examples) == (2, ("' yes' and 'YES' and 'Yes'", "'No' and 'no'"))
    assert "write them one way" in finding.advice
    assert finding.severity == "warn"


def test_numbers_have_no_classes():
    assert found(table_rows({"x": normal(), "y": normal(1)}), "classes") == []


def heavy(spread: float, count: int = COUNT) -> np.ndarray:
    return np.exp(spread * np.random.default_rng(0).normal(size=count))


def test_a_target_with_a_heavy_tail_is_told_and_what_to_try():
    y = heavy(1.5)
    rows = table_rows({"x": normal(), "y": y})
    (finding,) = found(rows, "tails")
    plain, logged = (scipy.stats.skew(f(y[rows.split.train])) for f in (np.asarray, np.log))
    assert f"'y' has a heavy tail: skewness {plain:.1f} over {len(rows.split.train)} train rows, {logged:.1f} of" in (
        finding.what
    )
    assert finding.examples[0] == f"line {rows.split.train[y[rows.split.train].argmax()] + 2}"
    assert "training.loss: huber" in finding.advice


@pytest.mark.parametrize(
    "y",
    [
        np.random.default_rng(0).normal(9, 1, COUNT),
        np.random.default_rng(0).uniform(1, 9, COUNT),
        np.random.default_rng(0).exponential(1, COUNT),
        heavy(0.5),
        heavy(1.5) - 1,
        np.where(np.arange(COUNT) < COUNT - 2, normal() + 9, 1e6),
    ],
    ids=["normal", "uniform", "exponential", "slightly", "negative", "two outliers"],
)
def test_a_target_without_one_is_not_told(y: np.ndarray):
    """Nor one with negative values, of which there is no logarithm, or whose logarithm has the same tail."""
    assert found(table_rows({"x": normal(), "y": y}), "tails") == []
    assert found(table_rows({"x": normal(), "y": np.where(y > np.median(y), "a", "b")}), "tails") == []


def test_the_small_classes_of_wine_are_found(shared_data):
    few, imbalance = found(csv_rows(str(shared_data / "tabular" / "wine_quality.csv"), "quality"), "classes")
    assert few.what == "fewer than 10 train rows: 1 of 7 classes"
    assert imbalance.examples[0].startswith("9: ")
