"""Eight members in one program cost no more than a loop of eight on a CPU, and at most 2.5 times one on a GPU.

Question: how long does an epoch of eight models take, computed as the run's own trial chooses, beside eight times an
epoch of one? Table: california_housing, 20,640 rows, four fifths of them for training, of which a fifth chooses the
epoch. Nets: mmjax's default, `realmlp`, and `mlp` of three sizes. Then the whole bag of eight folds of `realmlp`, as
`split.folds: 8` trains it: seconds of training without the first epoch, in which everything is compiled (`--bag`, for
a GPU: on two cores that is ten minutes). Of images (`--images`): how long do four ResNet-18 take to answer the 30
sample images at 32 px, beside four times one?
Hardware: two cores (AMD EPYC, 2.6 GHz, AVX-512), or the GPU that JAX finds. Versions: Python 3.13, jax 0.12 (on the
GPU Python 3.12, jax 0.11.2). n = 3 pairs of processes, one model and eight taking turns; the median epoch of each run,
the first, which compiles, left out. Looking at the validation rows is inside.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import ROOT, SHARED_DATA, Figure, run_json, save_results, skip_if_absent

TABLE = SHARED_DATA / "tabular" / "california_housing.csv"
SAMPLE_IMAGES = ROOT / "data" / "sample" / "images"
MEMBERS = 8
IMAGE_MEMBERS = 4
EPOCHS = 6
NETS: dict[str, dict[str, Any]] = {
    "realmlp": {"name": "realmlp"},
    "mlp 64x64": {"name": "mlp", "architecture": {"hidden_layers": [64, 64]}},
    "mlp 256x256": {"name": "mlp", "architecture": {"hidden_layers": [256, 256]}},
    "mlp 512x512": {"name": "mlp", "architecture": {"hidden_layers": [512, 512]}},
}


def fit_here(request: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds of each epoch of one run in this process, how members were computed, and on what."""
    from mmjax.backend import platform
    from mmjax.config_load import config_from_dict
    from mmjax.train import fit
    from mmjax.training.event_types import EpochEnded, Event

    ends: list[tuple[float, EpochEnded]] = []

    def watch(event: Event) -> None:
        if isinstance(event, EpochEnded):
            ends.append((time.perf_counter(), event))

    document = {
        "name": "members",
        "model": request["model"],
        "evaluation": {"baselines": "none"},
        "training": request["training"],
        "split": {"folds": request["folds"]},
        "data": {
            "tabular": {
                "path": str(ROOT / TABLE),
                "target_column": "median_house_value",
                "train_split": 0.64,
                "validation_split": 0.16,
                "test_split": 0.2,
            }
        },
    }
    config = config_from_dict(document, "benchmark")
    fitted = fit(config, run_dir=request["run_dir"], registry=None, resume="never", callbacks=(watch,))
    decisions = json.loads((fitted.run_dir / "decisions.json").read_text(encoding="utf-8"))
    ways = [decision["value"] for decision in decisions if decision["key"] == "training.member_loop"]
    return {
        "epoch_seconds": [event.seconds for _, event in ends],
        "after_first": ends[-1][0] - ends[0][0],
        "samples_per_second": fitted.report["training"]["samples_per_second"],
        "seconds": fitted.seconds,
        "metrics": fitted.metrics,
        "way": (ways or [""])[0],
        "platform": platform(),
    }


def answer_here(request: dict[str, Any]) -> dict[str, Any]:
    """Return the median seconds in which so many networks for images answer the sample images, once compiled."""
    from mmjax.config_load import config_from_dict
    from mmjax.data.prepare import prepare
    from mmjax.train import fit
    from mmjax.training.scoring import score

    document = {
        "name": "answers",
        "model": {"name": "resnet18"},
        "data": {"image": {"path": str(SAMPLE_IMAGES), "image_size": [32, 32]}},
        "evaluation": {"baselines": "none"},
        "training": {"epochs": 1, "members": request["members"]},
    }
    fitted = fit(config_from_dict(document, "benchmark"), run_dir=request["run_dir"], registry=None, resume="never")
    batch, seconds = prepare(fitted.predictor.config).batch, []
    for _ in range(8):
        began = time.perf_counter()
        score(fitted.predictor.forward, fitted.predictor.states, batch, largest=32, smallest=32)
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds[1:]), "precision": fitted.predictor.config.precision}


def answer_figures(repeats: int) -> list[Figure]:
    """Return how the answers of several networks for images compare with those of one."""
    ratios, seconds, precision = [], [], ""
    for _ in range(repeats):
        took = []
        for members in (1, IMAGE_MEMBERS):
            with tempfile.TemporaryDirectory() as made:
                request = {"members": members, "run_dir": str(Path(made) / "run")}
                command = [sys.executable, __file__, "--answer-here"]
                found = run_json(command, env={}, timeout_s=1800, request=request).document
            took.append(found["seconds"])
            precision = found["precision"]
        ratios.append(took[1] / took[0])
        seconds.append(took[1])
    told = f"answers to images of {IMAGE_MEMBERS} ResNet-18 ({precision}) / of one"
    return [Figure(told, "x", tuple(ratios), "<=", 1.1 * IMAGE_MEMBERS), Figure("  of all", "s", tuple(seconds))]


def measure(model: dict[str, Any], *, members: int = 1, folds: int = 0, epochs: int | None = EPOCHS) -> dict[str, Any]:
    """Return what `fit_here` says in a process of its own."""
    training = {"members": members, **({} if epochs is None else {"epochs": epochs})}
    with tempfile.TemporaryDirectory() as made:
        request = {"model": model, "training": training, "folds": folds, "run_dir": str(Path(made) / "run")}
        command = [sys.executable, __file__, "--fit-here"]
        return run_json(command, env={}, timeout_s=1800, request=request).document


def pair_figures(name: str, model: dict[str, Any], repeats: int) -> list[Figure]:
    """Return how an epoch of eight compares with one of one; the goal is that of the platform."""
    ones, many = [], []
    for _ in range(repeats):
        ones.append(measure(model))
        many.append(measure(model, members=MEMBERS))
    one, eight = ([statistics.median(run["epoch_seconds"][1:]) for run in runs] for runs in (ones, many))
    ratios = tuple(b / a for a, b in zip(one, eight, strict=True))
    on_gpu = many[0]["platform"] == "gpu"
    told = f"{name}: eight members ({many[-1]['way']}) / one"
    return [
        Figure(told, "x", ratios, "<=", 2.5 if on_gpu else float(MEMBERS)),
        Figure("  an epoch of one", "s", tuple(one)),
        Figure("  an epoch of eight", "s", tuple(eight)),
    ]


def bag_figures() -> list[Figure]:
    """Return the time of a bag of eight folds, and what it is worth on test rows."""
    found = measure(NETS["realmlp"], folds=MEMBERS, epochs=None)
    goal = ("<=", 15.0) if found["platform"] == "gpu" else ("", float("nan"))
    return [
        Figure(
            f"8-fold bag of california_housing ({found['way']}), after compiling", "s", (found["after_first"],), *goal
        ),
        Figure("  the whole run", "s", (sum(found["seconds"].values()),)),
        Figure("  RMSE on test rows", "USD", (found["metrics"]["test"]["rmse"],)),
    ]


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="pairs of processes for each net [3]")
    parser.add_argument("--nets", default=",".join(NETS), help=f"some of {', '.join(NETS)} [all]")
    parser.add_argument("--bag", action="store_true", help="the bag of eight folds too")
    parser.add_argument("--images", action="store_true", help="answers to images, instead of the tables")
    parser.add_argument("--answer-here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--fit-here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fit_here:
        print(json.dumps(fit_here(json.load(sys.stdin))))
        return
    if arguments.answer_here:
        print(json.dumps(answer_here(json.load(sys.stdin))))
        return
    if arguments.images:
        save_results("members_images", answer_figures(arguments.repeats))
        return
    skip_if_absent(TABLE)
    figures = []
    for name in arguments.nets.split(","):
        figures += pair_figures(name, NETS[name], arguments.repeats)
    save_results("members", figures + (bag_figures() if arguments.bag else []))


if __name__ == "__main__":
    main()
