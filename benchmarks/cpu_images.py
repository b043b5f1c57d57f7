"""On two CPU threads image networks train and answer as fast as PyTorch, or faster; ResNet-18 3x as fast as plain flax.

Question: how many images/s go through whole training steps (forward, backward, SGD with Nesterov momentum, batch
statistics), and through inference? mmjax: its own compiled step as `mmjax.fit` calls it on a CPU, which picks rows of
u8 images and standardises them, and the forward pass of a Predictor, from u8 on the host to probabilities on the host;
in f32 and, where the CPU is fast at it, bfloat16. PyTorch: the twin of torch_twins.py in f32 and bfloat16 autocast
(what favours it: cpu_images_torch.py). flax: the same ResNet-18 written with nn.Conv and nn.BatchNorm, f32.
Under 96 px all have the stem of mmjax's small images: stride 1, no pool. mmjax has memory in huge pages, as its front
doors ask for it where they start; PyTorch is asked both with them and plainly, and its best counts; plain flax is
started plainly, and flax with huge pages is there to compare.
Hardware: two cores (AMD EPYC, AVX-512 with BF16), two threads each side. Versions: Python 3.13, jax 0.12, torch 2.13.0.
Each side is a process, made ready once (two steps of each kind done); they take turns, n = 3 (`--turns`), each the
median of 5 steps after another.
Parameters are counted on all sides and must agree. `--only` saves to a file of its own, as does another `--python`.
"""

import argparse
import contextlib
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness import ROOT, Figure, save_results
from make_peers import NoPeer, peer_python
from turns import Side

from mmjax.huge_pages import TUNABLE

HERE = Path(__file__).resolve().parent
THREADS, CLASSES = 2, 10
HUGE_PAGES = {"GLIBC_TUNABLES": f"{TUNABLE}=1"}
SMALL_PX = 96
"""Under which mmjax's stems keep the resolution."""


class Case(NamedTuple):
    """A network, the side of its images and the batch."""

    net: str
    px: int
    batch: int


CASES = {
    "resnet18-32": Case("resnet18", 32, 64),
    "resnet18-64": Case("resnet18", 64, 32),
    "efficientnet_b0-64": Case("efficientnet_b0", 64, 32),
    "efficientnet_b0-128": Case("efficientnet_b0", 128, 16),
}
Rates = dict[str, dict[str, list[float]]]
"""Images/s of each turn, by side and work (`training, float32`)."""


def measure(case: Case, python: str, peer: Path, turns: int) -> tuple[Rates, dict[str, Any]]:
    """Return the rates of all sides, and what they tell of themselves. Raises RuntimeError when the nets differ."""
    asked: dict[str, Any] = {**case._asdict(), "threads": THREADS, "classes": CLASSES, "small": case.px < SMALL_PX}
    commands = {
        "mmjax": (python, "mmjax", HUGE_PAGES),
        "PyTorch": (peer, "torch", {}),
        "PyTorch, huge pages": (peer, "torch", HUGE_PAGES),
    }
    if case.net == "resnet18":
        commands |= {"flax": (python, "flax", {}), "flax, huge pages": (python, "flax", HUGE_PAGES)}
    with contextlib.ExitStack() as stack:
        sides = {
            side: stack.enter_context(
                Side([interpreter, HERE / f"cpu_images_{name}.py"], asked, {"PYTHONPATH": str(ROOT), **pages})
            )
            for side, (interpreter, name, pages) in commands.items()
        }
        about = {side: found.about for side, found in sides.items()}
        if len({found["parameters"] for found in about.values()}) > 1:
            raise RuntimeError(f"the nets differ in parameters: {about}")
        rates: Rates = {side: {work: [] for work in found["works"]} for side, found in about.items()}
        for turn in range(turns):
            for work in rates["PyTorch"]:
                for side in sorted(sides, reverse=bool(turn % 2)):
                    if work in rates[side]:
                        rates[side][work].append(case.batch / sides[side].seconds(work))
    return rates, about


def figures_of(name: str, rates: Rates) -> list[Figure]:
    """Return the ratios and rates of one case."""
    figures = []
    for what in ("training", "inference"):
        of = {
            side: {work: found for work, found in works.items() if work.startswith(what)}
            for side, works in rates.items()
        }
        best = {side: max(works.values(), key=statistics.median) for side, works in of.items() if works}
        torch = [of[side] for side in ("PyTorch", "PyTorch, huge pages")]
        best["PyTorch"] = max((rates for works in torch for rates in works.values()), key=statistics.median)
        best["PyTorch in f32"] = max((works[f"{what}, float32"] for works in torch), key=statistics.median)
        goals = {"PyTorch": 1.0, "PyTorch in f32": 1.0}
        if what == "training":
            goals |= {"flax": 3.0, "flax, huge pages": None}
        for side, goal in goals.items():
            if side in best:
                ratios = tuple(own / other for own, other in zip(best["mmjax"], best[side], strict=True))
                label = "best of PyTorch" if side == "PyTorch" else side
                promise = (">=", goal) if goal else ("", float("nan"))
                figures.append(Figure(f"{name}, {what}: mmjax / {label}", "x", ratios, *promise))
        figures += [
            Figure(f"  {side}, {work}", "images/s", tuple(found))
            for side, works in of.items()
            for work, found in works.items()
        ]
    return figures


def file_name(only: Mapping[str, Case], about: dict[str, Any], python: str) -> str:
    """Return the name of the results: `cpu_images`, with the cases unless all, and another interpreter's jax."""
    parts = ["cpu_images", *(only if len(only) < len(CASES) else ())]
    if python != sys.executable:
        parts.append(f"jax{next(iter(about.values()))['mmjax']['jax']}")
    return "-".join(parts)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="cases [all]")
    parser.add_argument("--python", default=sys.executable, help="another Python, with mmjax's packages [this one]")
    parser.add_argument("--turns", type=int, default=3, help="turns of each side [3]")
    arguments = parser.parse_args()
    try:
        peer = peer_python()
    except NoPeer as error:
        print(f"skipped: the peer's environment cannot be made: {error}")
        sys.exit(0)
    figures: list[Figure] = []
    about: dict[str, Any] = {}
    chosen = {name: CASES[name] for name in arguments.only}
    for name, case in chosen.items():
        rates, about[name] = measure(case, arguments.python, peer, arguments.turns)
        figures += figures_of(name, rates)
        print(f"{name}: done", flush=True)
    save_results(file_name(chosen, about, arguments.python), figures, sides=about, turns=arguments.turns)


if __name__ == "__main__":
    main()
