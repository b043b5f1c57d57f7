"""A table is prepared alike in memory and streamed, in chunks of any size, whatever texts the survey forgets."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.config import Config
from mmjax.config_load import config_from_dict
from mmjax.data import table_survey
from mmjax.data.audit_rows import hash_cells
from mmjax.data.encode import encode
from mmjax.data.encode_survey import row_keys
from mmjax.data.infer import infer_schema
from mmjax.data.prepare import prepare
from mmjax.data.prepared import Prepared
from mmjax.data.survey import ColumnSurvey, Keep, Seen, Strip, see
from mmjax.data.table import read_table
from mmjax.errors import DataError
from mmjax.schema import Kind, schema_to_json
from tests.conftest import REPOSITORY

MARKERS = ("NA", "?")
TARGETS = {
    "adult.csv.gz": "income",
    "titanic.csv": "Survived",
    "penguins.csv": "species",
    "diamonds.csv": "price",
    "california_housing.csv": "median_house_value",
    "wine_quality.csv": "quality",
    "telco_churn.csv": "Churn",
}


def config_of(path: Path, folder: Path, loading: str, **data: Any) -> Config:
    tabular = {"path": str(path), "target_column": "y"} | data
    split = tabular.pop("split", {})
    content = {
        "name": "t",
        "data": {"tabular": tabular, "loading": loading, "cache": {"path": str(folder / "cache")}},
        "split": split,
        "golden_rows": 7,
    }
    return config_from_dict(content, "test")


def outcome(config: Config) -> dict[str, Any] | tuple[str, ...]:
    """Everything that was prepared, as plain values, but for how it was loaded; or what is wrong."""
    try:
        found = prepare(config)
    except DataError as error:
        return error.problems
    assert found.streamed == (config.data.loading == "streamed")
    assert all(isinstance(values, np.memmap) == found.streamed for values in found.batch.values())
    return content_of(found)


def content_of(found: Prepared) -> dict[str, Any]:
    return {
        "schema": schema_to_json(found.schema),
        "names": found.names.tolist(),
        "split": [part.tolist() for part in found.split[:3]],
        "split notes": found.split.notes,
        "batch": {name: (v.dtype, v.shape, v.tobytes()) for name, v in found.batch.items()},
        "golden": {name: cells.tolist() for name, cells in found.golden.items()},
        "notes": [note for note in found.notes if not note.startswith(("loading:", "cache:"))],
        "quarantined": found.quarantined,
        "findings": found.findings,
        "fingerprint": found.fingerprint,
    }


@contextmanager
def forgetful() -> Iterator[None]:
    """Read a few rows at a time, and keep no more than three texts of a column."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_survey, "CHUNK_CELLS", 100)
        patch.setattr(table_survey, "share", lambda _columns: 3)
        yield


def write(path: Path, names: list[str], rows: list[tuple[str, ...]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])
    return path


POOLS = {
    "whole": [str(i) for i in range(60)],
    "number": ["0.5", "-1e3", " 4 ", "1e9", "7", "8.25", "-0.125", "16", "3e-5", "", "NA", " NA "],
    "nearly": ["1.5", "2.5", "3", "4", "5", "6", "7.5", "8", "9", "1_0"],
    "word": ["a", "b", "B", "?", "ü", " a", "long text of several words, six"],
    "flag": ["yes", "No", "NO", " yes"],
    "code": [f"{i:03d}" for i in range(40)],
    "day": [f"20{i:02d}-0{i % 9 + 1}-1{i % 10}" for i in range(30)] + ["", "2024-02-29"],
    "dotted": ["31.01.2024", "01.02.2023", "3.4.2022", "29.02.2024"],
    "slashed": ["01/02/2024", "03/04/2024", "05/06/2024", "12/12/2023"],
    "moment": [f"2024-01-01T0{i}:0{j}:00" for i in range(10) for j in range(10)],
    "text": ["", "a b c", "x,y", 'say "hi"', "two\nlines", "a", "abc abc", "zz"],
    "note": [f"one of many texts, number {i}" for i in range(500)],
    "same": ["k"],
    "w": ["1", "0.5", "2"],
}
"""What the cells of each column are drawn from."""
TARGET_POOLS = {
    "classes": ["a", "b", "c"],
    "whole": [str(i) for i in range(-30, 30)],
    "few": ["0", "1"],
    "number": ["0.5", "1", "-3.25", "1e6", "4", "5", "6.5", "7"],
    "gaps": ["a", "b", ""],
    "mixed": ["1", "2", "3", "4", "5", "x"],
}
SCHEMA = (
    '{"properties": {"whole": {"type": "integer", "maximum": 55}, "number": {"type": "number", "minimum": -1e2}, '
    '"nearly": {"type": "number"}, "word": {"enum": ["a", "b", "B"]}, "code": {"x-mmjax-kind": "categorical"}, '
    '"day": {"format": "date"}, "note": {"pattern": "[^7]$"}}, "required": ["number"]}'
)


def made_up(seed: int, rows: int, target: str) -> list[tuple[str, ...]]:
    rng = np.random.default_rng(seed)
    pools = [*POOLS.values(), TARGET_POOLS[target]]
    return [(f"r{i}ä", *(pool[rng.integers(len(pool))] for pool in pools)) for i in range(rows)]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(20, 60),
    target=st.sampled_from(sorted(TARGET_POOLS)),
    policy=st.sampled_from(["fail", "drop", "report"]),
    declared=st.booleans(),
    identified=st.booleans(),
    split=st.sampled_from([{}, {"strategy": "group", "column": "whole"}, {"strategy": "time", "column": "moment"}]),
)
def test_streamed_is_resident_and_chunks_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    rows: int,
    target: str,
    policy: str,
    declared: bool,
    identified: bool,
    split: dict[str, str],
) -> None:
    folder = tmp_path_factory.mktemp("law")
    path = write(folder / "t.csv", ["id", *POOLS, "y"], made_up(seed, rows, target))
    (folder / "s.json").write_text(SCHEMA)
    data: dict[str, Any] = {
        "on_invalid": policy,
        "weight_column": "w",
        "missing_markers": list(MARKERS),
        "split": split,
    }
    data |= {"schema": str(folder / "s.json")} if declared else {}
    data |= {"id_column": "id"} if identified else {}
    whole = outcome(config_of(path, folder, "resident", **data))
    with forgetful():
        assert outcome(config_of(path, folder, "resident", **data)) == whole
        assert outcome(config_of(path, folder, "streamed", **data)) == whole
    assert outcome(config_of(path, folder, "streamed", **data)) == whole  # as found in the cache


def test_encoded_rows_are_what_the_encoder_of_serving_makes_of_them(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["id", *POOLS, "y"], made_up(0, 200, "number"))
    with forgetful():
        found = prepare(config_of(path, tmp_path, "streamed", weight_column="w", missing_markers=list(MARKERS)))
    columns = read_table(path).columns
    expected = encode(found.schema, columns, label=True)
    assert found.batch.keys() == expected.keys() == {"numeric", "category", "label", "weight"}
    for name, values in expected.items():
        assert values.dtype == found.batch[name].dtype
        np.testing.assert_array_equal(found.batch[name], values)
    chosen = np.concatenate([found.split.test, found.split.validation, found.split.train])[:7]
    for name, cells in found.golden.items():
        assert cells.tolist() == columns[name][chosen].tolist()


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    pool=st.sampled_from([*POOLS.values(), *TARGET_POOLS.values()]),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    many=st.integers(0, 8),
)
def test_a_column_is_seen_alike_in_chunks_and_with_its_texts_forgotten(
    seed: int, pool: list[str], sizes: list[int], many: int
) -> None:
    rng = np.random.default_rng(seed)
    chunks = [[pool[i] for i in rng.integers(len(pool), size=size)] for size in sizes]
    whole = see("c", np.array([cell for chunk in chunks for cell in chunk], dtype=object), MARKERS)
    column = ColumnSurvey("c", MARKERS, many, Keep(numbers=True, days=True), lambda _name, dtype: Strip(dtype))
    for chunk in chunks:
        column.add(chunk)
    found = column.seen()
    distinct = whole.vocabulary().texts.tolist()
    assert (found.coded is None) == (len(distinct) > many)
    # Whether numbers rise matters only where all cells differ: a text given twice may be counted again.
    assert comparable(found) == comparable(whole)
    np.testing.assert_array_equal(found.numbers().read(), whole.numbers().read())
    if whole.facts.all_numbers:
        np.testing.assert_array_equal(found.missing(), whole.missing())
    np.testing.assert_array_equal(found.hashes().read(), whole.hashes().read())
    for form in {*whole.facts.traits.formats, "iso"} if whole.facts.distinct else ():
        np.testing.assert_array_equal(found.days(form).read(), whole.days(form).read())


def comparable(seen: Seen) -> tuple[Any, ...]:
    facts, traits = seen.facts, seen.facts.traits
    all_differ = facts.distinct == facts.rows and facts.all_numbers
    traits = traits._replace(rising=traits.rising and all_differ, start=0.0, end=0.0)
    return facts._replace(traits=traits._replace(folded=frozenset() if len(traits.folded) > 2 else traits.folded))


@pytest.mark.parametrize("name", TARGETS)
def test_real_tables_are_alike_in_memory_and_streamed(shared_data: Path, tmp_path: Path, name: str) -> None:
    target = TARGETS[name]
    whole = outcome(config_of(shared_data / "tabular" / name, tmp_path, "resident", target_column=target))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_survey, "CHUNK_CELLS", 30_000)
        patch.setattr(table_survey, "share", lambda _columns: 50)
        streamed = outcome(config_of(shared_data / "tabular" / name, tmp_path, "streamed", target_column=target))
    assert isinstance(streamed, dict)
    assert streamed == whole


def test_the_schema_that_is_inferred_from_chunks_is_that_of_the_whole_table(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["id", *POOLS, "y"], made_up(1, 300, "classes"))
    columns = read_table(path).columns
    with forgetful():
        found = prepare(config_of(path, tmp_path, "resident", missing_markers=list(MARKERS)))
    expected = infer_schema(columns, target_column="y", missing_markers=MARKERS)
    kinds = [(column.name, column.kind, column.reason) for column in expected.columns]
    assert [(column.name, column.kind, column.reason) for column in found.schema.columns] == kinds
    assert {kind for _, kind, _ in kinds} == set(get_args(Kind))


def test_keys_of_rows_are_those_of_their_cells(tmp_path: Path) -> None:
    columns = read_table(write(tmp_path / "t.csv", ["id", *POOLS, "y"], made_up(2, 50, "gaps"))).columns
    keep = np.arange(50) % 3 > 0
    seen = {name: see(name, cells, MARKERS) for name, cells in columns.items()}
    expected = hash_cells({name: cells[keep] for name, cells in columns.items()}, list(columns))
    np.testing.assert_array_equal(row_keys(seen, [list(columns)], keep)[0], expected)


def test_an_unchanged_file_is_not_read_again_and_a_changed_one_is(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["id", *POOLS, "y"], made_up(3, 40, "classes"))
    config = config_of(path, tmp_path, "streamed")
    first, second = prepare(config), prepare(config)
    assert any("made now" in note for note in first.notes)
    assert any("found there" in note for note in second.notes)
    assert content_of(first) == content_of(second)
    os.utime(path, ns=(1, 1))  # the same bytes, though nobody knows
    third = prepare(config)
    assert any("made now" in note for note in third.notes)
    assert third.fingerprint == first.fingerprint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmjax.data.prepare_table.versions", lambda: {"mmjax": "another"})
        assert any("made now" in note for note in prepare(config).notes)
    other = prepare(config_of(path, tmp_path, "streamed", ignore_columns=["word"]))
    assert other.fingerprint != first.fingerprint
    assert not list((tmp_path / "cache").glob("*/survey")), "the survey's own files are gone"


def test_a_first_block_of_rows_that_are_all_dropped_changes_nothing(tmp_path: Path) -> None:
    rows = [(str(i - 30), str(i % 7), "ab"[i % 2]) for i in range(90)]
    path = write(tmp_path / "t.csv", ["whole", "other", "y"], rows)
    (tmp_path / "s.json").write_text('{"properties": {"whole": {"type": "integer", "minimum": 0}}}')
    data = {"schema": str(tmp_path / "s.json"), "on_invalid": "drop"}
    whole = content_of(prepare(config_of(path, tmp_path, "resident", **data)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmjax.data.encode_survey.BLOCK_ROWS", 20)
        assert content_of(prepare(config_of(path, tmp_path, "streamed", **data))) == whole
    assert len(prepare(config_of(path, tmp_path, "streamed", **data)).names) == 60


def test_a_table_without_a_place_for_its_cache_stays_in_memory_where_that_is_left_open(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["id", *POOLS, "y"], made_up(4, 40, "classes"))
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(DataError, match=r"data\.cache\.path: expected a folder to write encoded rows to"):
        prepare(config_of(path, tmp_path, "streamed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmjax.data.loading.free_memory", lambda: 1)
        found = prepare(config_of(path, tmp_path, "auto"))
    assert not found.streamed
    assert any(note.startswith("loading: resident, as ") for note in found.notes)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["id", *POOLS, "y"], made_up(5, 40, "classes"))
    heard = []

    def append(line: str) -> None:
        heard.append(line)
        with path.open("a", encoding="utf-8") as file:
            file.write(path.read_text(encoding="utf-8").splitlines()[-1] + "\n")

    for loading in ("resident", "streamed"):
        with forgetful(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(table_survey, "TELL_S", 0.0)
            with pytest.raises(DataError, match=r"t\.csv: the file changed while it was read; start again"):
                prepare(config_of(path, tmp_path, loading), append)
    assert heard[0] == f"{path}: 6 of 40 rows are read"
    assert not list((tmp_path / "cache").glob("*/facts.json")), "nothing was kept"


TEN_MILLION = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
from large_table import write_table
from mmjax.config_load import config_from_dict
from mmjax.data.prepare import prepare

folder = Path(sys.argv[1])
write_table(folder / "t.csv", 10_000_000)
made = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cache = {"path": str(folder / "cache")}
data = {"tabular": {"path": str(folder / "t.csv"), "target_column": "y"}, "loading": "streamed", "cache": cache}
found = prepare(config_from_dict({"name": "t", "data": data}, "test"))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows, kinds = len(found.names), [column.kind for column in found.schema.columns]
print(json.dumps({"rows": rows, "made": made, "peak": peak, "kinds": kinds}))
"""


@pytest.mark.soak
def test_ten_million_rows_take_bounded_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TEN_MILLION, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] == 10_000_000
    assert found["kinds"] == ["numeric"] * 6 + ["categorical"] * 3 + ["boolean", "datetime", "ignored"]
    assert found["peak"] < 2_500_000, "kB; the CSV alone has 750 MB, its cells as texts 6 GB"
