"""A CSV of 1,000,000 x 12 mixed columns is read, audited and encoded in <= 20 s and <= 2.5 GB.

Question: how long does `mmjax.data.prepare.prepare` take on a large table, in a process of its own, and how much
memory at its highest? Table: 6 columns of numbers (of 400 to 900,000 distinct values a million rows), 3 of 5, 50 and
1,000 categories, a yes/no, a date, and a target of 3 classes; of most, 1 to 3 cells in a hundred are missing. It is
made from a seed, in a temporary folder; making it is not timed.
Hardware: two cores (AMD EPYC, 2.6 GHz, AVX-512). Versions: Python 3.13, NumPy 2.5, pandas 3.1. n = 3 processes for each
way of loading. `--rows 10000000` measures the streamed way only, once.

Stages are the functions that `prepare_table` calls, timed from outside; the peak of a stage is that of the process when
the stage ends. `streamed` begins with an empty cache, `found again` is a second process over the same file.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import Figure, Finished, run_json, save_results

MILLION = 1_000_000
BLOCK = 100_000
SPREADS = ((1, 3), (10, 4), (1000, 2), (1, 6), (50, 0), (100_000, 0))
"""Of each column of numbers: standard deviation, and digits after the point."""
CATEGORIES = (5, 50, 1000)
STAGES = (
    "read_layout",
    "survey_table",
    "understand",
    "validate_survey",
    "deal",
    "fit_rows",
    "_in_memory",
    "_in_cache",
    "cells_of",
    "row_keys",
    "audit",
    "fingerprint",
    "save",
    "restore",
)


def write_table(path: Path, rows: int) -> None:
    """Write the made-up table."""
    rng = np.random.default_rng(0)
    names = [f"number{i}" for i in range(len(SPREADS))] + [f"category{k}" for k in CATEGORIES]
    with path.open("w", encoding="utf-8") as file:
        file.write(",".join([*names, "flag", "day", "y"]) + "\n")
        for start in range(0, rows, BLOCK):
            columns = _block(rng, min(BLOCK, rows - start))
            file.write("\n".join(map(",".join, zip(*columns, strict=True))) + "\n")


def _block(rng: np.random.Generator, rows: int) -> list[list[str]]:
    columns = []
    for spread, digits in SPREADS:
        cells = np.char.mod(f"%.{digits}f", rng.normal(size=rows) * spread)
        columns.append(np.where(rng.random(rows) < 0.03, "", cells))
    for count in CATEGORIES:
        cells = np.char.mod("v%04d", rng.integers(0, count, rows))
        columns.append(np.where(rng.random(rows) < 0.02, "?", cells))
    columns.append(np.array(["no", "yes"])[rng.integers(0, 2, rows)])
    days = np.datetime64("2015-01-01") + rng.integers(0, 3000, rows)
    columns.append(np.where(rng.random(rows) < 0.01, "", np.datetime_as_string(days)))
    columns.append(np.array(["a", "b", "c"])[rng.integers(0, 3, rows)])
    return [column.tolist() for column in columns]


def timed(stages: dict[str, dict[str, float]], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function`, which adds what it took to its entry in `stages`."""

    def run(*arguments: Any, **named: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = function(*arguments, **named)
        entry = stages.setdefault(name.strip("_"), {"seconds": 0.0, "cpu_seconds": 0.0, "peak_mb": 0.0})
        entry["seconds"] += time.perf_counter() - wall
        entry["cpu_seconds"] += time.process_time() - cpu
        entry["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        return result

    return run


def prepare_here(table: str, loading: str) -> dict[str, Any]:
    """Return the stages of preparing `table` in this process, and how many findings and notes there were."""
    from mmjax.config_load import config_from_dict
    from mmjax.data import prepare_table

    stages: dict[str, dict[str, float]] = {}
    for name in STAGES:
        owner = prepare_table
        setattr(owner, name, timed(stages, name, getattr(owner, name)))
    data = {"tabular": {"path": table, "target_column": "y"}, "loading": loading}
    config = config_from_dict({"name": "large", "data": data}, "benchmark")
    prepare = timed(stages, "all of prepare", prepare_table.prepare_table)
    assert config.data.tabular is not None, "named above"
    found = prepare(config, config.data.tabular)
    return {"stages": stages, "fingerprint": found.fingerprint, "findings": len(found.findings), "notes": found.notes}


def run(table: Path, loading: str, cache: Path) -> Finished:
    """Return the Finished process that prepares `table`."""
    command = [sys.executable, __file__, "--table", table, "--loading", loading]
    finished = run_json([*map(str, command)], env={"MMJAX_CACHE_DIR": str(cache)}, timeout_s=3600)
    print(
        f"{loading}: {finished.seconds:.1f} s, {finished.cpu_seconds:.1f} s of CPU, {finished.peak_mb:.0f} MB",
        flush=True,
    )
    return finished


def measure(rows: int, repeats: int) -> dict[str, list[Finished]]:
    """Return the processes of each way of loading."""
    ways = ("resident", "streamed", "found again") if rows <= MILLION else ("streamed", "found again")
    found: dict[str, list[Finished]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as made:
        table = Path(made) / "table.csv"
        write_table(table, rows)
        for repeat in range(repeats):
            for way, runs in found.items():
                loading = "resident" if way == "resident" else "streamed"
                runs.append(run(table, loading, Path(made) / f"cache-{repeat}"))
    prints = {run.document["fingerprint"] for runs in found.values() for run in runs}
    if len(prints) > 1:
        raise RuntimeError(f"expected the same bits in every way of loading, got fingerprints {sorted(prints)}")
    return found


def figures(found: dict[str, list[Finished]], rows: int) -> list[Figure]:
    """Return the figures: of the whole process, then of each stage."""
    millions, made = max(1.0, rows / MILLION), []
    for way, runs in found.items():
        made += [
            Figure(f"{rows:,} rows, {way}, whole process", "s", tuple(r.seconds for r in runs), "<=", 20.0 * millions),
            Figure(f"  CPU time, {way}", "s", tuple(r.cpu_seconds for r in runs)),
            Figure(f"  peak memory, {way}", "MB", tuple(r.peak_mb for r in runs), "<=", 2500.0),
        ]
        for stage in runs[0].document["stages"]:
            entries = [r.document["stages"][stage] for r in runs]
            made.append(Figure(f"    {stage}, {way}: CPU time", "s", tuple(e["cpu_seconds"] for e in entries)))
            made.append(Figure(f"    {stage}, {way}: wall", "s", tuple(e["seconds"] for e in entries)))
            made.append(Figure(f"    {stage}, {way}: peak so far", "MB", tuple(e["peak_mb"] for e in entries)))
    return made


def main() -> None:
    """Measure, print and save; with `--table` prepare it here and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=MILLION, help="rows of the table [1000000]")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each kind [3]")
    parser.add_argument("--table", help=argparse.SUPPRESS)
    parser.add_argument("--loading", default="auto", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        print(json.dumps(prepare_here(arguments.table, arguments.loading)))
        return
    found = measure(arguments.rows, arguments.repeats if arguments.rows <= MILLION else 1)
    details = {way: [run.document for run in runs] for way, runs in found.items()}
    name = "large_table" if arguments.rows == MILLION else f"large_table_{arguments.rows}"
    save_results(name, figures(found, arguments.rows), **details)


if __name__ == "__main__":
    main()
