"""How good are mmjax's networks on tables of 344 to 53,940 rows, beside the best defaults that others publish?

Question: what is the error of `mmjax.fit` on rows that it never saw, as a ratio to that of RealMLP, CatBoost, XGBoost
and LightGBM with pytabkit's tuned defaults, and of scikit-learn's models? Each table is split 80/20, once for each of 5
seeds (3 for tables over 30,000 rows), by class where there are classes; all models get the same two CSV files and may
do with the 80 what they like (mmjax and pytabkit choose the epoch, or the number of trees, on a fifth of it).
Error: 1 - ROC-AUC (two classes), log-loss (more classes), RMSE (numbers). Ratios are of the means over seeds; over
tables their geometric mean is taken, without tables of fewer than 500 rows: there one test row is worth a percent.
Hardware: two cores (AMD EPYC, 2.6 GHz, AVX-512). Versions: Python 3.13, jax 0.12; the peers: Python 3.11, pytabkit
1.7.3, torch 2.13.0 (CPU), catboost 1.2.10, lightgbm 4.7.0, xgboost 3.2.0, scikit-learn 1.9.1 (see make_peers.py).
n = 1 process for each model, table and seed; the seed also seeds the model.

Seconds are those of reading, fitting and predicting, compiling inside (with an empty cache) and imports outside; of
mmjax also the audit, the report and the bundle that `fit` makes. What the peers are given is told in tabular_peer.py.
Their rows are kept in `results/tabular_peers.json` and measured again with `--anew`; mmjax's are measured each time.
Beside other work set `OMP_WAIT_POLICY=passive`: threads that spin while they wait made LightGBM eight times slower.

Errors alone may be measured elsewhere, many fits at once: `--jobs 10 --rows FILE --peer-device cuda` on a machine with
a GPU keeps each row in FILE, without seconds; `--rows FILE` without `--jobs` measures here what is not in it. What was
predicted is kept in the folder FILE.predicted, and where a network and logistic (ridge) regression predicted the same
test rows, their difference gets a 95 % interval: 1,000 paired bootstrap draws of the rows, of each seed's apart, and of
the mean over seeds.
"""

import argparse
import csv
import gzip
import hashlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import RESULTS, ROOT, SHARED_DATA, Figure, environment, run_json, save_results, skip_if_absent
from make_peers import PEERS as ENVIRONMENTS
from make_peers import NoPeer, peer_python

HERE = Path(__file__).resolve().parent
CACHE = RESULTS / "tabular_peers.json"
PROTOCOL = 1
"""To be raised when tabular_peer.py gives a model something else: rows in the cache of another number are not used."""
TEST_SHARE = 0.2
LARGE_ROWS, SMALL_ROWS = 30_000, 500
MISSING = ("", " ", "?", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null")
"""What mmjax takes for a missing cell by default; the peers' reader is told the same."""
BUSY_LOAD = 2.5
"""A load average above which others wanted the cores too: the row before leaves up to two behind."""
FLOOR = 1e-7
"""Smallest probability that log-loss counts: what float32 can tell from 0 beside 1."""
TIMEOUT_S = 7200


class Table(NamedTuple):
    """One data set."""

    file: str
    target: str
    task: str
    """`binary`, `multiclass` or `regression`."""
    dropped: tuple[str, ...] = ()
    """Columns that no model gets."""


TABLES = {
    "penguins": Table("penguins.csv", "species", "multiclass"),
    # PassengerId and Name differ in every row; Ticket (681 values in 891 rows) and Cabin (687 missing, 147 values) are
    # near-identifiers, of which mmjax would make categories and a scikit-learn user nothing
    "titanic": Table("titanic.csv", "Survived", "binary", ("PassengerId", "Name", "Ticket", "Cabin")),
    "wine_quality": Table("wine_quality.csv", "quality", "multiclass"),
    # customerID differs in every row
    "telco_churn": Table("telco_churn.csv", "Churn", "binary", ("customerID",)),
    "california_housing": Table("california_housing.csv", "median_house_value", "regression"),
    "adult": Table("adult.csv.gz", "income", "binary"),
    "diamonds": Table("diamonds.csv", "price", "regression"),
}
ERRORS = {"binary": "1 - ROC-AUC", "multiclass": "log-loss", "regression": "RMSE"}

PRESETS = ("best", "fast")
OWN = (*PRESETS, "realmlp", "realmlp_s", "tabm", "mlp")
PEERS = {
    "RealMLP_TD": ("pytabkit", "torch"),
    "RealMLP_TD_ce": ("pytabkit", "torch"),
    "CatBoost_TD": ("pytabkit", "catboost"),
    "CatBoost_TD_ce": ("pytabkit", "catboost"),
    "XGB_TD": ("pytabkit", "xgboost"),
    "XGB_TD_ce": ("pytabkit", "xgboost"),
    "LGBM_TD": ("pytabkit", "lightgbm"),
    "LGBM_TD_ce": ("pytabkit", "lightgbm"),
    "HistGradientBoosting": ("scikit-learn",),
    "sklearn_MLP": ("scikit-learn",),
    "sklearn_linear": ("scikit-learn",),
}
"""Peer -> the packages whose versions decide what it does."""
LINEAR = "sklearn_linear"
"""What no network may be worse than; fitted in a moment."""


class Pair(NamedTuple):
    """One table, split."""

    train: Path
    test: Path
    classes: tuple[str, ...]
    """Sorted; empty for regression."""
    answers: np.ndarray
    """Of the test rows: i64[N] indices into `classes`, or f64[N] values."""
    rows: int
    """Of both."""
    digest: str
    """Of the bytes of both files."""


def write_pair(name: str, seed: int, folder: Path) -> Pair:
    """Write a table's training and test rows for one seed as two CSV files in `folder`, and return the Pair."""
    table = TABLES[name]
    path = ROOT / SHARED_DATA / "tabular" / table.file
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        header, *cells = csv.reader(file)
    kept = [i for i, column in enumerate(header) if column not in table.dropped]
    target = header.index(table.target)
    answers = np.array([row[target] for row in cells])
    classes = () if table.task == "regression" else tuple(np.unique(answers).tolist())
    groups = [np.flatnonzero(answers == label) for label in classes] or [np.arange(len(cells))]
    test = deal(groups, seed)
    parts = {"train": np.setdiff1d(np.arange(len(cells)), test), "test": test}
    digest = hashlib.sha256()
    for part, rows in parts.items():
        with (folder / f"{part}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([[row[i] for i in kept] for row in (header, *(cells[r] for r in rows))])
        digest.update((folder / f"{part}.csv").read_bytes())
    right = np.searchsorted(classes, answers[test]) if classes else answers[test].astype(np.float64)
    return Pair(folder / "train.csv", folder / "test.csv", classes, right, len(cells), digest.hexdigest()[:16])


def deal(groups: Iterable[np.ndarray], seed: int) -> np.ndarray:
    """Return the rows to test on, in order: a fifth of each group, drawn by the seed."""
    rng = np.random.default_rng(seed)
    return np.sort(np.concatenate([rng.permutation(group)[: round(TEST_SHARE * len(group))] for group in groups]))


def error_of(task: str, predicted: np.ndarray, answers: np.ndarray) -> tuple[float, float | None]:
    """Return the error of a task and, for classes, the accuracy.

    >>> error_of("binary", np.array([[0.9, 0.1], [0.2, 0.8], [0.2, 0.8]]), np.array([0, 1, 0]))
    (0.25, 0.6666666666666666)
    """
    if not np.isfinite(predicted).all():
        raise RuntimeError(f"expected finite predictions, got {np.sum(~np.isfinite(predicted))} others")
    if task == "regression":
        return float(np.sqrt(np.mean((predicted - answers) ** 2))), None
    accuracy = float(np.mean(predicted.argmax(axis=1) == answers))
    if task == "binary":
        return 1.0 - roc_auc(predicted[:, 1], answers), accuracy
    shares = predicted / predicted.sum(axis=1, keepdims=True)
    return float(-np.mean(np.log(np.maximum(shares[np.arange(len(answers)), answers], FLOOR)))), accuracy


def roc_auc(scores: np.ndarray, answers: np.ndarray) -> float:
    """Return the share of (positive, negative) pairs in the right order, ties counted half."""
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    positives = int(answers.sum())
    return float(
        (ranks[answers == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(answers) - positives))
    )


def fit_here(request: dict[str, Any]) -> dict[str, Any]:
    """Return seconds and used columns of one mmjax model, fitted in this process; predictions go to `output`."""
    from mmjax.config_load import config_from_dict
    from mmjax.data.table import read_table
    from mmjax.train import fit

    document = {
        "name": "quality",
        "seed": request["seed"],
        **({"preset": request["model"]} if request["model"] in PRESETS else {"model": {"name": request["model"]}}),
        "evaluation": {"baselines": "none"},  # no model of the peers looks at others either
        "data": {
            "tabular": {
                "path": request["train"],
                "target_column": request["target"],
                "task": "regression" if request["task"] == "regression" else "classification",
                "train_split": 0.8,
                "validation_split": 0.2,
                "test_split": 0.0,
            }
        },
    }
    started = time.perf_counter()
    config = config_from_dict(document, "benchmark")
    predictor = fit(config, run_dir=request["run_dir"], registry=None, resume="never").predictor
    found = predictor.predict(read_table(request["test"]).columns)
    seconds = time.perf_counter() - started
    predicted = found.prediction
    if found.probabilities is not None:
        predicted = np.zeros((len(found.prediction), len(request["classes"])))
        own = predictor.schema.target.classes
        predicted[:, [request["classes"].index(label) for label in own]] = found.probabilities
    np.save(request["output"], predicted)
    unused = {column.name for column in predictor.schema.columns} - {c.name for c in predictor.schema.features}
    return {"seconds": seconds, "unused_columns": sorted(unused - {request["target"]})}


class Asked(NamedTuple):
    """What to measure, and how."""

    tables: Sequence[str]
    models: Sequence[str]
    seeds: int | None
    anew: bool
    jobs: int = 1
    """Fits at once; of more than one no seconds are kept."""
    kept: Path | None = None
    """Rows that are known already, a JSON object a line; new ones are added."""
    peer_device: str = "cpu"
    """PyTorch's."""
    peer_python: str | None = None
    """In place of that of make_peers.py."""


def measure(model: str, table: str, seed: int, pair: Pair, asked: Asked) -> dict[str, Any]:
    """Return the row of one model on one split. Raises RuntimeError when it breaks, NoPeer."""
    if model in OWN:
        command = [sys.executable, __file__, "--fit-here"]
    else:
        command = [asked.peer_python or peer_python("tabular"), HERE / "tabular_peer.py"]
    task = TABLES[table].task
    with tempfile.TemporaryDirectory() as made:
        output = Path(made) / "predicted.npy"
        request = {
            "model": model,
            "train": str(pair.train),
            "test": str(pair.test),
            "target": TABLES[table].target,
            "task": task,
            "classes": pair.classes,
            "missing": MISSING,
            "seed": seed,
            "output": str(output),
            "device": asked.peer_device,
            "run_dir": str(Path(made) / "run"),
        }
        # With nobody beside it a fit begins with an empty cache, as its seconds count
        cache = str(Path(made) / "cache") if asked.jobs == 1 else str(Path(tempfile.gettempdir()) / "mmjax-quality")
        load = round(os.getloadavg()[0], 2)
        finished = run_json(command, env={"MMJAX_CACHE_DIR": cache}, timeout_s=TIMEOUT_S, request=request)
        predicted = np.load(output)
    error, accuracy = error_of(task, predicted, pair.answers)
    if asked.kept:
        keep_predicted(asked.kept, (model, table, seed), predicted, pair.answers)
    if unused := finished.document.pop("unused_columns", []):
        print(f"note: {model} on {table} leaves out {', '.join(unused)}, which peers are given")
    return {
        "model": model,
        "table": table,
        "seed": seed,
        "rows": pair.rows,
        "error": error,
        "accuracy": accuracy,
        "seconds": finished.document["seconds"] if asked.jobs == 1 else None,
        "cpu_seconds": finished.cpu_seconds,
        "peak_mb": finished.peak_mb,
        "load_average_before": load,
    }


def cache_key(model: str, table: str, seed: int, digest: str, cpu: str) -> str:
    """Return what a peer's row depends on: the pinned versions, the bytes of the split, the machine."""
    pins = [pin for pin in ENVIRONMENTS["tabular"].packages if pin.partition("==")[0] in PEERS[model]]
    return " | ".join((model, " ".join(pins), table, f"seed {seed}", digest, cpu, f"protocol {PROTOCOL}"))


def read_cache() -> dict[str, dict[str, Any]]:
    """Return the peers' rows measured before, by their keys."""
    return json.loads(CACHE.read_text(encoding="utf-8")) if CACHE.exists() else {}


def remember(key: str, row: dict[str, Any]) -> None:
    """Add a row to the cache at once, so that a run that is stopped loses only the row it was at."""
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    part = CACHE.with_suffix(".part")
    part.write_text(json.dumps(read_cache() | {key: row}, indent=1) + "\n", encoding="utf-8")
    part.replace(CACHE)


class Fit(NamedTuple):
    """One row to measure."""

    model: str
    table: str
    seed: int
    pair: Pair


def fits(asked: Asked, folder: Path) -> Iterator[Fit]:
    """Yield what to fit, its two files written below `folder`; a seed is done for all tables before the next begins."""
    for table, seed in ((table, seed) for seed in range(asked.seeds or 5) for table in asked.tables):
        place = folder / f"{table}-{seed}"
        place.mkdir()
        pair = write_pair(table, seed, place)
        if asked.seeds is None and seed >= 3 and pair.rows > LARGE_ROWS:
            continue
        for model in asked.models:
            if not (model.endswith("_ce") and TABLES[table].task == "regression"):  # the same as without it
                yield Fit(model, table, seed, pair)


def rows_of(asked: Asked, failed: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the row of each fit, measured or known; what breaks is told and noted in `failed`."""
    known = {(row["model"], row["table"], row["seed"]): row for row in kept_rows(asked.kept)}
    environment_ = environment()
    cpu = f"{environment_['cpu']}, {environment_['cores']} cores"

    def row_of(fit: Fit) -> dict[str, Any] | None:
        model, table, seed, pair = fit
        unread = asked.anew or (asked.kept and model == LINEAR)  # the cache has no predictions
        key = "" if model in OWN or asked.jobs > 1 else cache_key(model, table, seed, pair.digest, cpu)
        row = known.get((model, table, seed)) or (None if unread else read_cache().get(key))
        try:
            row = row or measure(model, table, seed, pair, asked)
        except RuntimeError as error:
            failed.append(f"{model} on {table}, seed {seed}")
            print(f"{failed[-1]}: broke: {error}", flush=True)
            return None
        if key and (model, table, seed) not in known:
            remember(key, row)
        if asked.kept and (model, table, seed) not in known:
            with asked.kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        seconds = "" if row["seconds"] is None else f" in {row['seconds']:.1f} s"
        print(f"{table}, seed {seed}, {model}: {row['error']:.5g}{seconds}", flush=True)
        return row

    with tempfile.TemporaryDirectory() as made, ThreadPoolExecutor(asked.jobs) as pool:
        yield from filter(None, pool.map(row_of, fits(asked, Path(made))))


def kept_rows(path: Path | None) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path and path.exists() else []


def predicted_path(rows_file: Path, fit: tuple[str, str, int]) -> Path:
    """Return where the predictions of one (model, table, seed) are kept."""
    return rows_file.with_name(rows_file.name + ".predicted") / ("-".join(map(str, fit)) + ".npz")


def keep_predicted(rows_file: Path, fit: tuple[str, str, int], predicted: np.ndarray, answers: np.ndarray) -> None:
    """Write what was predicted of the test rows, as float32, and what was right."""
    path = predicted_path(rows_file, fit)
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, predicted=predicted.astype(np.float32), answers=answers)


def differences(task: str, pairs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[float, float, int, int]:
    """Return (low, high) of the mean difference of errors over `pairs`, and on how many of them it is above 0, below 0.

    A pair: what a model and what another predicted of the same rows, and what was right. All at 95 %, by 1,000 draws of
    each pair's rows.
    """
    rng, drawn = np.random.default_rng(0), []
    for ours, theirs, answers in pairs:
        picks = rng.integers(0, len(answers), (1000, len(answers)))
        drawn.append([error_of(task, ours[p], answers[p])[0] - error_of(task, theirs[p], answers[p])[0] for p in picks])
    low, high = np.quantile(drawn, (0.025, 0.975), axis=1)
    low_of_mean, high_of_mean = np.quantile(np.mean(drawn, axis=0), (0.025, 0.975))
    return float(low_of_mean), float(high_of_mean), int(np.sum(low > 0)), int(np.sum(high < 0))


def linear_lines(rows: Sequence[dict[str, Any]], rows_file: Path, table: str) -> Iterator[str]:
    """Yield how each of mmjax's models differs from the linear one, where the predictions of both were kept."""
    found = by_model(rows, table)
    for model in (model for model in found if model in OWN):
        pairs = []
        for seed in sorted(found[model]):
            ours, theirs = (predicted_path(rows_file, (name, table, seed)) for name in (model, LINEAR))
            if ours.exists() and theirs.exists():
                with np.load(ours) as own, np.load(theirs) as other:
                    pairs.append((own["predicted"], other["predicted"], own["answers"]))
        if pairs:
            low, high, worse, better = differences(TABLES[table].task, pairs)
            yield (
                f"  {model} - {LINEAR}, mean of {len(pairs)} seeds: 95 % interval {low:.4g} to {high:.4g}; "
                f"by each seed's own rows worse on {worse}, better on {better}"
            )


def by_model(rows: Iterable[dict[str, Any]], table: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Return model -> seed -> row of one table."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        if row["table"] == table:
            found.setdefault(row["model"], {})[row["seed"]] = row
    return found


def mean(rows: Iterable[dict[str, Any]], field: str) -> float:
    """Return the mean of a field; NaN where it has no values."""
    values = [row[field] for row in rows if row[field] is not None]
    return statistics.fmean(values) if values else math.nan


def table_lines(rows: Sequence[dict[str, Any]], table: str) -> Iterator[str]:
    """Yield one table's lines, the least error first."""
    found = by_model(rows, table)
    count = next(row["rows"] for row in rows if row["table"] == table)
    kind = ERRORS[TABLES[table].task]
    yield f"{table}: {count:,} rows"
    yield f"  {'model':<22} {kind:>12} {'accuracy':>9} {'seconds':>9} {'seeds':>6}"
    for model, seeds in sorted(found.items(), key=lambda item: mean(item[1].values(), "error")):
        error, accuracy, seconds = (mean(seeds.values(), field) for field in ("error", "accuracy", "seconds"))
        told = "" if math.isnan(accuracy) else f"{accuracy:.4f}"
        shown = f"{error:,.1f}" if error >= 100 else f"{error:.5f}"
        taken = "" if math.isnan(seconds) else f"{seconds:.1f}"
        yield f"  {model:<22} {shown:>12} {told:>9} {taken:>9} {len(seeds):>6}"


def ratios(rows: Sequence[dict[str, Any]], model: str, peer: str, field: str) -> dict[str, float]:
    """Return table -> ratio of means over the seeds that both have; in regression a `_ce` peer is its plain self."""
    found = {}
    for table in dict.fromkeys(row["table"] for row in rows):
        models = by_model(rows, table)
        plain = peer.removesuffix("_ce") if TABLES[table].task == "regression" else peer
        own, other = models.get(model, {}), models.get(plain, {})
        seeds = own.keys() & other.keys()
        if field == "seconds":  # measured in one place, or not at all
            seeds = {seed for seed in seeds if own[seed][field] and other[seed][field]}
        if seeds and (bottom := mean((other[seed] for seed in seeds), field)) > 0:
            found[table] = mean((own[seed] for seed in seeds), field) / bottom
    return found


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of ratios; 0 where one is 0.

    >>> geometric_mean([0.5, 2.0, 0.125])
    0.5
    """
    values = list(values)
    return statistics.geometric_mean(values) if all(values) else 0.0


def figures_of(rows: Sequence[dict[str, Any]]) -> list[Figure]:
    """Return the ratios of each of mmjax's models to each peer: over the larger tables, then of each small one."""
    sizes = {row["table"]: row["rows"] for row in rows}
    models = list(dict.fromkeys(row["model"] for row in rows))
    made = []
    for model in (model for model in models if model in OWN):
        for peer in (peer for peer in models if peer not in OWN):
            errors, seconds = (ratios(rows, model, peer, field) for field in ("error", "seconds"))
            large = [table for table in errors if sizes[table] >= SMALL_ROWS]
            if large:
                told = f"{len(large)} table{'s' if len(large) > 1 else ''}"
                error = geometric_mean(errors[table] for table in large)
                made.append(Figure(f"error, {model} / {peer}, {told}", "x", (error,)))
            if timed := [seconds[table] for table in large if table in seconds]:
                made.append(Figure(f"  seconds, {model} / {peer}", "x", (geometric_mean(timed),)))
            small = (table for table in errors if sizes[table] < SMALL_ROWS)
            made += [Figure(f"  error on {table} alone, {model} / {peer}", "x", (errors[table],)) for table in small]
    return made


def listed(known: Iterable[str]) -> Any:
    """Return the reader of an option that lists some of `known`, parted by commas."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := sorted(set(names) - set(known)):
            raise argparse.ArgumentTypeError(f"expected names among {', '.join(known)}, got {', '.join(unknown)}")
        return names

    return read


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = (*OWN, *PEERS)
    parser.add_argument("--tables", type=listed(TABLES), default=tuple(TABLES), help=f"some of {', '.join(TABLES)}")
    parser.add_argument("--models", type=listed(models), default=models, help=f"some of {', '.join(models)}")
    parser.add_argument("--seeds", type=int, help="seeds 0 .. SEEDS - 1 for every table [5, 3 for large tables]")
    parser.add_argument("--anew", action="store_true", help="measure the peers' rows again")
    parser.add_argument("--fit-here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, default=1, help="fits at once, for errors alone [1]")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="rows that are known, and where new ones are added")
    parser.add_argument("--peer-device", default="cpu", help="PyTorch's device for the networks of the peers [cpu]")
    parser.add_argument("--peer-python", metavar="PATH", help="a Python with the peers, in place of make_peers.py's")
    arguments = parser.parse_args()
    if arguments.fit_here:
        print(json.dumps(fit_here(json.load(sys.stdin))))
        return
    for name in arguments.tables:
        skip_if_absent(SHARED_DATA / "tabular" / TABLES[name].file)
    options = arguments.jobs, arguments.rows, arguments.peer_device, arguments.peer_python
    asked, failed = Asked(arguments.tables, arguments.models, arguments.seeds, arguments.anew, *options), []
    try:
        rows = list(rows_of(asked, failed))
    except NoPeer as error:
        print(f"skipped: the peers' environment cannot be made: {error}")
        sys.exit(0)
    for name in dict.fromkeys(row["table"] for row in rows):
        print("\n".join(("", *table_lines(rows, name))))
        if asked.kept:
            print(*linear_lines(rows, asked.kept, name), sep="\n")
    busy = [row for row in rows if row["seconds"] and row["load_average_before"] > BUSY_LOAD]
    if busy:
        print(f"\nnote: before {len(busy)} of {len(rows)} rows the machine was busy: their seconds tell little")
    print()
    save_results("tabular_quality", figures_of(rows), rows=rows, failed=failed, peers=ENVIRONMENTS["tabular"].packages)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
