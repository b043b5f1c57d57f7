from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.config import Audit
from mmjax.data.audit import audit, hash_cells, refuse
from mmjax.data.audit_rows import copies
from mmjax.errors import DataError
from tests.auditing import as_split, csv_rows, found, table_rows, text_columns, thirds


def numbers(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Two columns of numbers that never repeat and classes that have nothing to do with them."""
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(size=count),
        "b": rng.normal(size=count),
        "y": np.array(list("no"))[rng.integers(2, size=count)],
    }


def repeated(columns: dict[str, np.ndarray], rows: list[int]) -> dict[str, np.ndarray]:
    """The columns with copies of these rows at the end."""
    return {name: np.concatenate([values, values[rows]]) for name, values in columns.items()}


def test_copies_are_counted_within_and_across_splits_with_their_lines():
    columns = repeated(numbers(200), [0, 0, 3, 5])  # rows 200, 201 copy row 0; 202 copies 3; 203 copies 5
    parts = np.zeros(204, np.int8)
    parts[[3, 201]] = 1
    parts[[203, 10]] = 2
    rows = table_rows(columns, parts=parts)
    (within,) = found(rows, "duplicates")
    assert within.what == "exact copies within a split: 1 row (1 train); 4 in all, across splits too"
    assert (within.found, within.severity) == (1, "warn")
    assert within.examples == ("line 2 (train) = line 203 (validation) = line 202 (train)",)
    (across,) = found(rows, "overlap")
    assert across.what == ("exact copies across splits: 2 validation rows also in train, 1 test row also in train")
    assert across.examples[1:] == ("line 5 (validation) = line 204 (train)", "line 7 (train) = line 205 (test)")
    assert across.leaked == (203,)
    assert across.advice == (
        "scores on them are too good: remove the copies, or add a column that numbers equal rows and keep these "
        "together (split.strategy: group)"
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=80), st.randoms(use_true_random=False))
def test_copies_are_those_of_pandas(keys, random):
    values = np.array(keys, np.uint64)
    found = copies(values)
    assert len(values) - pandas.Series(values).duplicated().sum() == len(values) - len(found.rows) + found.groups
    assert sorted(found.rows.tolist()) == np.flatnonzero(pandas.Series(values).duplicated(keep=False)).tolist()
    for group in range(found.groups):
        members = found.rows[found.group == group]
        assert len(set(values[members].tolist())) == 1
        assert (np.diff(members) > 0).all()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["", "a", "1", "1.0", "é"]), st.sampled_from(["", "a", "b"])), min_size=1, max_size=40
    )
)
def test_cells_hash_alike_exactly_where_their_texts_are_equal_also_in_blocks(cells):
    columns = text_columns({"p": [p for p, _ in cells], "q": [q for _, q in cells]})
    keys = hash_cells(columns, ["p", "q"])
    assert [[a == b for b in keys.tolist()] for a in keys.tolist()] == [[a == b for b in cells] for a in cells]
    blocks = [hash_cells({n: c[i : i + 7] for n, c in columns.items()}, ["p", "q"]) for i in range(0, len(cells), 7)]
    assert np.concatenate(blocks).tolist() == keys.tolist()


def test_cells_hash_differently_in_other_columns():
    columns = text_columns({"p": ["a", "b"], "q": ["b", "a"]})
    assert len(set(hash_cells(columns, ["p", "q"]).tolist())) == 2
    with pytest.raises(ValueError, match="at least one column"):
        hash_cells(columns, [])


def test_numbers_and_missing_cells_hash_as_their_texts():
    columns = {"p": np.array([1.5, np.nan, np.nan]), "q": np.array([None, 2, "2"], object)}
    keys = hash_cells(columns, ["p"])
    assert keys[1] == keys[2] != keys[0]
    keys = hash_cells(columns, ["q"])
    assert keys[1] == keys[2] != keys[0]


def test_a_coarse_table_has_equal_rows_by_chance_and_nothing_is_said():
    rng = np.random.default_rng(0)
    columns = {name: rng.integers(3, size=400).astype(str) for name in "abcd"} | {"y": rng.integers(2, size=400)}
    rows = table_rows(columns, ignore_columns=())
    assert len(copies(rows.row_keys).rows) > 200
    assert audit(rows, Audit()) == ()


def test_rows_equal_but_for_an_identifier_are_told():
    columns = repeated(numbers(200), [4, 9])
    columns["name"] = np.array([f"n{i}" for i in range(202)])
    rows = table_rows(columns, parts=thirds(202))
    (finding,) = found(rows, "overlap")
    assert finding.what.startswith("equal in all features and the answer, though not in 'name', across splits: ")
    assert finding.examples == ("line 6 (test) = line 202 (train)", "line 11 (test) = line 203 (train)")
    assert finding.leaked == (4, 9)
    declared = table_rows(columns, parts=thirds(202), id_column="name")
    (finding,) = found(declared, "overlap")
    assert finding.what == "exact copies across splits: 2 test rows also in train"
    assert finding.examples == ("n4 (test) = n200 (train)", "n9 (test) = n201 (train)")


def test_exact_copies_are_not_told_twice_beside_those_that_differ_in_an_identifier():
    columns = repeated(numbers(200), [4, 9])
    columns["name"] = np.array([f"n{i}" for i in range(200)] + ["n4", "other"])
    findings = found(table_rows(columns, parts=np.zeros(202, np.int8)), "duplicates")
    assert [f.found for f in findings] == [1, 1]
    assert [f.examples for f in findings] == [
        ("line 6 (train) = line 202 (train)",),
        ("line 11 (train) = line 203 (train)",),
    ]


def test_copies_with_different_answers_are_conflicts():
    columns = repeated(numbers(200), [4, 9])
    columns["y"][[4, 9, 200, 201]] = ["n", "n", "o", "n"]
    (finding,) = found(table_rows(columns), "conflicts")
    assert finding.what == "equal in all features but with different labels: 2 rows in 1 group"
    assert finding.examples == ("line 6: n vs line 202: o",)


def test_copies_with_different_targets_are_conflicts_in_regression():
    columns = repeated(numbers(200), [4, 9])
    columns["y"] = np.arange(202) + 0.5
    columns["y"][201] = columns["y"][9]
    (finding,) = found(table_rows(columns), "conflicts")
    assert finding.what == "equal in all features but with different targets: 2 rows in 1 group"
    assert finding.examples == ("line 6: 4.5 vs line 202: 200.5",)


def test_a_group_in_two_splits_is_told():
    rows = table_rows(numbers(200), parts=thirds(200))
    whole = rows._replace(groups=np.array([f"g{part}{i % 7}" for i, part in enumerate(thirds(200))], object))
    assert found(whole, "overlap") == []
    torn = whole.groups.copy()
    torn[0], torn[3] = "torn", "torn"
    (finding,) = found(whole._replace(groups=torn), "overlap")
    assert finding.what == "1 group with rows in more than one split"
    assert finding.examples == ("torn: 1 train, 1 validation",)


def test_severity_comes_from_the_config():
    columns = repeated(numbers(200), [4, 9])
    columns["same"] = columns["a"]
    rows = table_rows(columns, parts=np.zeros(202, np.int8))
    assert [f.check for f in audit(rows, Audit())] == ["duplicates", "columns"]
    assert {f.severity for f in audit(rows, Audit())} == {"warn"}
    assert [f.check for f in audit(rows, Audit(duplicates="ignore"))] == ["columns"]
    failing = audit(rows, Audit(duplicates="fail", columns="fail"))
    refuse(audit(rows, Audit()))
    with pytest.raises(DataError) as caught:
        refuse(failing)
    assert len(caught.value.problems) == 2
    assert caught.value.problems[0] == (
        "audit.duplicates: exact copies within a split: 2 rows (2 train) (line 6 (train) = line 202 (train), "
        "line 11 (train) = line 203 (train)); remove them unless the rows truly repeat; or set audit.duplicates: warn"
    )


def test_everything_is_told_in_the_same_words_again():
    columns = repeated(numbers(300), list(range(40)))
    rows = [table_rows(columns) for _ in range(2)]
    first, second = (audit(r, Audit()) for r in rows)
    assert first == second
    assert len(first[0].examples) == 12


CELLS = st.sampled_from(["numbers", "whole", "few", "category", "words", "gaps", "flag"])


def random_column(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    match kind:
        case "numbers":
            return rng.normal(size=count)
        case "whole":
            return rng.poisson(20, size=count)
        case "few":
            return rng.integers(4, size=count)
        case "category":
            return np.array(list("abcdefgh"))[np.minimum(rng.geometric(0.3, size=count) - 1, 7)]
        case "words":
            return np.array([f"w{i}" for i in rng.zipf(1.7, size=count) % (count // 3)])
        case "gaps":
            return np.where(rng.random(count) < 0.3, np.nan, rng.lognormal(size=count))
        case _:
            return np.array(["yes", "no"])[rng.integers(2, size=count)]


@settings(max_examples=50, deadline=None)
@given(
    kinds=st.lists(CELLS, min_size=1, max_size=8),
    count=st.integers(60, 700),
    seed=st.integers(0, 10**6),
    target=st.sampled_from(["classes", "number"]),
    shares=st.sampled_from([(0.7, 0.15, 0.15), (0.34, 0.33, 0.33), (0.1, 0.45, 0.45), (0.9, 0.05, 0.05)]),
)
def test_random_tables_are_never_called_odd(kinds, count, seed, target, shares):
    rng = np.random.default_rng(seed)
    columns = {f"c{i}": random_column(kind, count, rng) for i, kind in enumerate(kinds)}
    columns["y"] = rng.normal(size=count) if target == "number" else np.array(list("pqr"))[rng.integers(3, size=count)]
    parts = rng.choice(3, size=count, p=shares).astype(np.int8)
    parts[:3] = [0, 1, 2]
    rows = table_rows(columns, parts=parts)
    assert [f.what for f in audit(rows, Audit(classes="ignore"))] == []


def test_the_sample_has_nothing_odd():
    sample = Path(__file__).resolve().parent.parent / "data" / "sample" / "iris.csv"
    assert audit(csv_rows(str(sample), "species"), Audit()) == ()


def copied_rows(path: Path) -> int:
    return int(pandas.read_csv(path, dtype=str, na_filter=False).duplicated().sum())


@pytest.mark.parametrize(
    ("file", "target", "known"),
    [("adult.csv.gz", "income", 52), ("wine_quality.csv", "quality", 1177)],
)
def test_the_known_copies_of_real_tables_are_found(shared_data, file, target, known):
    path = shared_data / "tabular" / file
    assert copied_rows(path) == known
    findings = audit(csv_rows(str(path), target), Audit())
    (within,) = [f for f in findings if f.check == "duplicates"]
    assert f"; {known:,} in all, across splits too" in within.what
    assert any(f.check == "overlap" for f in findings)
    assert not [f.what for f in findings if f.check in ("leaks", "drift", "conflicts")]
    said_twice = [f.examples for f in findings if f.check == "columns"]
    same = "'education' and 'education-num': each value of one goes with one value of the other"
    assert said_twice == ([(same,)] if target == "income" else [])


@pytest.mark.parametrize(
    ("file", "target"),
    [("penguins.csv", "species"), ("california_housing.csv", "median_house_value")],
)
def test_nothing_is_said_of_real_tables_that_are_in_order(shared_data, file, target):
    assert audit(csv_rows(str(shared_data / "tabular" / file), target), Audit()) == ()


def test_twin_houses_are_found_though_their_photos_have_other_names(shared_data):
    path = shared_data / "multimodal" / "houses" / "houses.csv"
    findings = audit(csv_rows(str(path), "price", id_column="house_id"), Audit())
    pairs = {example for f in findings if f.check in ("duplicates", "overlap") for example in f.examples}
    twins = {frozenset(word for word in pair.split() if word.isdigit()) for pair in pairs}
    assert twins == {
        frozenset(pair) for pair in [("59", "72"), ("199", "214"), ("232", "266"), ("270", "305"), ("345", "353")]
    }


def test_parts_that_are_empty_do_no_harm():
    rows = table_rows(numbers(100))
    assert audit(rows._replace(split=as_split(np.zeros(100, np.int8))), Audit()) == ()


def test_arrays_mapped_from_disk_give_the_same_findings(tmp_path):
    columns = repeated(numbers(300), [4, 9])
    columns["almost"] = np.array([0] * 301 + [1])
    columns["twice"] = columns["a"] * 2
    rows = table_rows(columns, parts=thirds(302))
    mapped = {}
    for name, values in rows.batch.items():
        np.save(tmp_path / f"{name}.npy", values)
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    findings = audit(rows._replace(batch=mapped), Audit())
    assert {f.check for f in findings} == {"overlap", "columns"}
    assert findings == audit(rows, Audit())
