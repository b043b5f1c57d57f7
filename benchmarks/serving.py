"""mmjax's server answers single rows sooner, and more of them, than FastAPI with PyTorch, and sheds what is too much.

Questions: what does the server add to the compiled call; how many rows, tables (1,000 x 50 as raw tensors against JSON)
and images go through a second; what happens at 2, 5 and 10 times that; how soon is it ready? Nets: hidden layers
[64, 64] with SiLU, 2 classes, in the peers too (serving_peer.py says what favours them); ResNet-18 at 64 x 64 pixels.
Loopback; the load (serving_load.py) comes from a process of its own on the same cores, so rates are of both.
Hardware: two cores. Versions: Python 3.13 with jax 0.12; peers on Python 3.11 with torch 2.13.0, FastAPI 0.165,
LitServe 0.2.19. n = `--repeats` (3) runs of `--seconds` (2.5; images and overload twice that), servers taking turns.

The bare compiled call is timed in a process of its own in the same run. What the server adds is the client's latency
less the median of that call: loopback and the client count as the server's. Latencies of an open loop count from the
moment a request was due. `--only rows,images` measures those only, and leaves the other results as they are.
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness import Figure, run_json, save_results
from make_peers import NoPeer, peer_python
from serving_asks import (
    CLIENTS,
    CONNECTIONS,
    DIFFERENT,
    IMAGES,
    SHARES,
    TIMES,
    images_in_forms,
    rows_as_binary,
    rows_as_json,
    single_images,
)
from serving_figures import (
    Each,
    Found,
    binary_figures,
    common_figures,
    each_of,
    images_figures,
    overload_figures,
    rows_figures,
    start_figures,
)
from serving_models import HIDDEN
from serving_servers import HERE, Ask, Server, environment, load, mmjax_server, peer_server, resident_mb

QUEUE = 64
"""Requests in the server at a time, in all of these."""


class Plan(NamedTuple):
    """What is measured, where and for how long."""

    home: Path
    seconds: float
    repeat: int


# ---- measuring


def rows(plan: Plan) -> Found:
    """Return loads of single rows on mmjax and the peers, and the latencies of mmjax at shares of its peak."""
    ask, found = rows_as_json(1, 20, DIFFERENT), Found()
    kinds: list[Literal["mmjax", "fastapi", "litserve"]] = ["mmjax", "fastapi", "litserve"]
    for kind in kinds if plan.repeat % 2 == 0 else kinds[::-1]:
        if kind != "mmjax":
            with peer_server(kind, ask, columns=20, hidden_layers=HIDDEN) as server:
                found[kind] = _one_and_many(server, ask, plan.seconds, CLIENTS)
            continue
        found["bare_ms"] = bare_ms(plan, "twenty", 1)
        with mmjax_server(plan.home, "twenty", "--queue", str(QUEUE)) as server:
            found[kind] = _one_and_many(server, ask, plan.seconds, CLIENTS)
            peak = found[kind]["many"]["good_per_s"]
            found["open"] = {
                share: load(server, ask, plan.seconds, rate=share / 100 * peak, connections=CONNECTIONS)
                for share in SHARES
            }
            found["resident_mb"] = resident_mb(server)
    return found


def binary(plan: Plan) -> Found:
    """Return loads of 1,000 x 50 numbers: raw and as JSON on mmjax, as JSON on FastAPI."""
    raw, text = rows_as_binary("fifty", 1000, 50), rows_as_json(1000, 50)
    with mmjax_server(plan.home, "fifty", "--queue", str(QUEUE)) as server:
        found: Found = {"binary": _one_and_many(server, raw, plan.seconds, 4)}
        found["json"] = load(server, text, plan.seconds, clients=1)
        found["resident_mb"] = resident_mb(server)
    with peer_server("fastapi", text, columns=50, hidden_layers=HIDDEN) as server:
        found["fastapi"] = _one_and_many(server, text, plan.seconds, 4)
    return found


def images(plan: Plan) -> Found:
    """Return loads of images, and the milliseconds of the bare executable at its largest bucket."""
    found: Found = {"bare_ms": bare_ms(plan._replace(seconds=2 * plan.seconds), "pictures", IMAGES)}
    one, form = single_images(), images_in_forms(IMAGES)
    with mmjax_server(plan.home, "pictures", "--queue", str(QUEUE)) as server:
        found["single"] = _one_and_many(server, one, 2 * plan.seconds, CLIENTS, ramp_s=2.0)
        found["forms"] = load(server, form, 2 * plan.seconds, clients=4, ramp_s=2.0)
        found["resident_mb"] = resident_mb(server)
    return found


def overload(plan: Plan) -> Found:
    """Return open loops at times of the peak, which is measured just before on the same server; of images and rows."""
    found: Found = {}
    seconds = 2 * plan.seconds
    for what, model, ask in (
        ("image", "pictures", single_images()),
        ("row", "twenty", rows_as_json(1, 20, DIFFERENT)),
    ):
        with mmjax_server(plan.home, model, "--queue", str(QUEUE)) as server:
            peak = load(server, ask, seconds, ramp_s=2.0, clients=CLIENTS)
            floods = {
                times: load(server, ask, seconds, ramp_s=1.5, rate=times * peak["good_per_s"], connections=CONNECTIONS)
                for times in TIMES
            }
            found[what] = {"peak": peak, "floods": floods, "resident_mb": resident_mb(server)}
    return found


def start(plan: Plan) -> Found:
    """Return the seconds from the start of the process to ready, with an empty compile cache and with a full one."""
    found: Found = {}
    for cache in ("empty", "warm"):
        folder = str(plan.home / f"cache{plan.repeat}")
        with mmjax_server(plan.home, "twenty", MMJAX_CACHE_DIR=folder) as server:
            found[cache] = server.start_s
    return found


def bare_ms(plan: Plan, model: str, rows: int) -> float:
    """Return the median milliseconds of the compiled call for so many rows, in a process of its own."""
    asked = {"registry": str(plan.home / "registry"), "model": model, "rows": rows, "seconds": plan.seconds}
    command = [sys.executable, HERE / "serving_bare.py"]
    return run_json(command, env=environment(plan.home), timeout_s=300, request=asked).document["ms"]


def _one_and_many(server: Server, ask: Ask, seconds: float, clients: int, **how: Any) -> Found:
    return {
        "one": load(server, ask, seconds, clients=1, **how),
        "many": load(server, ask, seconds, clients=clients, **how),
    }


PARTS: dict[str, tuple[Callable[[Plan], Found], Callable[[Each], list[Figure]]]] = {
    "rows": (rows, rows_figures),
    "binary": (binary, binary_figures),
    "images": (images, images_figures),
    "overload": (overload, overload_figures),
    "start": (start, start_figures),
}
"""Part -> what measures it, and what makes Figures of it."""


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, with commas between [{','.join(PARTS)}]")
    arguments = parser.parse_args()
    parts = [part for part in PARTS if part in arguments.only.split(",")]
    if unknown := set(arguments.only.split(",")) - set(PARTS):
        parser.error(f"--only: expected parts among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    try:
        peer_python()
    except NoPeer as error:
        sys.exit(f"skipped: {error}")
    found: dict[str, list[Found]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        command = [sys.executable, HERE / "serving_models.py", home / "registry"]
        run_json(command, env=environment(home), timeout_s=120)
        for repeat in range(arguments.repeats):
            for part in parts:
                print(f"{part}, {repeat + 1} of {arguments.repeats}", flush=True)
                found[part].append(PARTS[part][0](Plan(home, arguments.seconds, repeat)))
    figures = [figure for part in parts for figure in PARTS[part][1](each_of(found[part]))]
    figures += common_figures([repeat for part in parts for repeat in found[part]])
    name = "serving" if parts == list(PARTS) else f"serving-{'-'.join(parts)}"
    save_results(name, figures, found=found, seconds=arguments.seconds)


if __name__ == "__main__":
    main()
