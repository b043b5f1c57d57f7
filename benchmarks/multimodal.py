"""On houses (four photographs and columns) and emoji (a picture and keywords) a model of both beats either alone.

Question: how good is a network of images and columns beside the same network of the images alone, the same trunk of the
columns alone (an mlp), and mmjax's default for the columns (realmlp)? Cross-validation: each row is tested once, by a
model trained on the other folds, of which a tenth chooses the epoch. Houses: RMSE of the logarithm of the price (535
rows). Emoji: accuracy of the category (1,820 rows). All settings are fixed below; nothing looks at the test rows.
Hardware: two cores (AMD EPYC, 2.6 GHz, AVX-512). Versions: Python 3.13, jax 0.12. n = 5 folds.

Images of houses are brought to 40 px, those of emoji to 32 px: about 10 minutes for each data set. `hidden` figures are
the cheap ablation of the report: the model of both, with the one or the other hidden from it.
"""

import argparse
import csv
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import ROOT, SHARED_DATA, Figure, save_results, skip_if_absent

from mmjax.config_load import config_from_dict
from mmjax.train import FitResult, fit

PART = "part"


class Case(NamedTuple):
    """A data set with the question that is asked of it."""

    name: str
    target: str
    columns: tuple[str, ...]
    """What is learnt from beside the images."""
    images: tuple[str, ...]
    size_px: int
    width: int
    epochs: int
    flip: bool
    own_heads: tuple[str, ...]
    """Of the network of both (`model.fusion.own_heads`)."""
    metric: str
    less: bool
    """Whether less is better."""
    seed: int = 0
    """Of the folds, the validation rows and the initial weights."""


CASES = (
    Case(
        "houses", "log_price", ("bedrooms", "bathrooms", "area", "zipcode"),
        ("frontal_image", "kitchen_image", "bedroom_image", "bathroom_image"),
        40, 16, 60, True, ("columns",), "rmse", True,
    ),
    Case("emoji", "category", ("keywords",), ("image",), 32, 16, 30, False, (), "accuracy", False),
)  # fmt: skip
KINDS = ("fused", "columns (mlp)", "columns (realmlp)", "images")


def read(case: Case) -> list[dict[str, str]]:
    """Return the rows of the data set, with the logarithm of the price where it is predicted."""
    with (ROOT / SHARED_DATA / "multimodal" / case.name / f"{case.name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row | {"log_price": repr(math.log(float(row["price"])))} if "price" in row else row for row in rows]


def folds_of(rows: list[dict[str, str]], case: Case, folds: int) -> np.ndarray:
    """Return the fold of each row, dealt at random; of classes, each alike."""
    order = np.random.default_rng(case.seed).permutation(len(rows))
    if not case.less:
        order = order[np.argsort([rows[i][case.target] for i in order], kind="stable")]
    found = np.empty(len(rows), np.int64)
    found[order] = np.arange(len(rows)) % folds
    return found


def write(path: Path, rows: list[dict[str, str]], case: Case, folds: np.ndarray, fold: int) -> None:
    """Write the table of one fold: its rows are for test, a tenth of the others for validation."""
    chosen = np.random.default_rng(case.seed + 1 + fold).random(len(rows)) < 0.1
    parts = ["test" if folds[i] == fold else "validation" if chosen[i] else "train" for i in range(len(rows))]
    names = (*case.columns, *case.images, case.target, PART)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | {PART: part} for row, part in zip(rows, parts, strict=True))


def document(case: Case, kind: str, path: Path) -> dict[str, Any]:
    """Return the config of one kind of model."""
    folder = ROOT / SHARED_DATA / "multimodal" / case.name
    images = {
        "columns": case.images,
        "folder": str(folder),
        "image_size": [case.size_px] * 2,
        "augmentation": {"horizontal_flip": case.flip},
    }
    table: dict[str, Any] = {"path": str(path), "target_column": case.target}
    table["task"] = "regression" if case.less else "classification"
    table["inference"] = {"identifier_unique_ratio": 1.0}
    model: dict[str, Any] = {"name": "resnet", "architecture": {"stages": [1, 1, 1], "width": case.width}}
    training: dict[str, Any] = {"epochs": case.epochs, "batch_size": 16}
    match kind:
        case "fused":
            table["images"] = images
            model["fusion"] = {"own_heads": case.own_heads}
        case "images":
            table |= {"images": images, "ignore_columns": case.columns}
        case "columns (mlp)":
            table["ignore_columns"] = case.images
            model, training = {"name": "mlp", "architecture": {"hidden_layers": [128, 128]}}, {}
        case "columns (realmlp)":
            table["ignore_columns"] = case.images
            model, training = {"name": "realmlp"}, {}
    return {
        "name": case.name,
        "seed": case.seed,
        "data": {"tabular": table},
        "split": {"strategy": "column", "column": PART},
        "model": model,
        "training": training | {"calibration": "none"} if not case.less else training,
        "evaluation": {"baselines": "none"},
    }


def measured(
    case: Case, kinds: tuple[str, ...], folds: int, most: int
) -> Iterator[tuple[str, float, float, FitResult]]:
    """Yield (kind, metric on the test rows, seconds, result) of each fold and kind."""
    rows = read(case)
    dealt = folds_of(rows, case, folds)
    for fold in range(min(folds, most)):
        for kind in kinds:
            with tempfile.TemporaryDirectory() as made:
                path = Path(made) / "rows.csv"
                write(path, rows, case, dealt, fold)
                started = time.perf_counter()
                config = config_from_dict(document(case, kind, path), "benchmark")
                result = fit(config, runs_dir=Path(made) / "runs", registry=None, resume="never")
            seconds, value = time.perf_counter() - started, result.metrics["test"][case.metric]
            print(f"{case.name}, fold {fold + 1}: {kind} {value:.4f} in {seconds:.0f} s", flush=True)
            yield kind, value, seconds, result


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=[case.name for case in CASES], action="append", help="only this data set")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind of model")
    parser.add_argument("--folds", type=int, default=5, help="folds [5]")
    parser.add_argument("--most", type=int, default=100, help="train for at most so many of the folds [all]")
    parser.add_argument("--epochs", type=int, help="of the models that see images [as in CASES]")
    parser.add_argument("--size", type=int, help="pixels of the images' sides [as in CASES]")
    parser.add_argument("--seed", type=int, default=0, help="of folds, validation rows and initial weights [0]")
    parser.add_argument(
        "--own-heads",
        nargs="*",
        choices=("columns", "images"),
        help="trunks with a head of their own, perhaps none [as in CASES]",
    )
    parser.add_argument("--width", type=int, help="channels of the first stage of the images' trunk [as in CASES]")
    arguments = parser.parse_args()
    figures, details = [], {}
    for case in (case for case in CASES if arguments.case is None or case.name in arguments.case):
        skip_if_absent(SHARED_DATA / "multimodal" / case.name)
        case = case._replace(
            seed=arguments.seed,
            epochs=arguments.epochs or case.epochs,
            size_px=arguments.size or case.size_px,
            width=arguments.width or case.width,
            own_heads=case.own_heads if arguments.own_heads is None else tuple(arguments.own_heads),
        )
        kinds = tuple(kind for kind in KINDS if arguments.kind is None or kind in arguments.kind)
        values: dict[str, list[float]] = {kind: [] for kind in kinds}
        taken: dict[str, list[float]] = {kind: [] for kind in kinds}
        for kind, value, seconds, result in measured(case, kinds, arguments.folds, arguments.most):
            values[kind].append(value)
            taken[kind].append(seconds)
            for seen in (result.report["modalities"] or {"each": ()})["each"][1:]:
                values.setdefault(f"fused, {seen['name']} (hidden)", []).append(seen["metrics"][case.metric])
        figures += [Figure(f"{case.name}, {kind}: {case.metric}", "", tuple(found)) for kind, found in values.items()]
        figures += [Figure(f"{case.name}, {kind}", "seconds", tuple(found)) for kind, found in taken.items()]
        details[case.name] = {kind: _spread(found) for kind, found in values.items()}
        details[case.name] |= _wins(case, values)
    for name, told in details.items():
        print(name, told)
    save_results("multimodal", figures, mean_and_deviation=details)


def _spread(values: list[float]) -> str:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return f"{np.mean(values):.4f} +- {deviation:.4f}"


def _wins(case: Case, values: dict[str, list[float]]) -> dict[str, str]:
    """Return in how many folds the fused model is better than each other one, and by how much in the mean."""
    if "fused" not in values:
        return {}
    found = {}
    for kind in (kind for kind in KINDS[1:] if kind in values):
        gains = (np.array(values[kind]) - np.array(values["fused"])) * (1 if case.less else -1)
        found[f"fused better than {kind}"] = f"in {(gains > 0).sum()} of {len(gains)} folds, by {gains.mean():.4f}"
    return found


if __name__ == "__main__":
    main()
