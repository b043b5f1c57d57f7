"""Claim: with the same state dict every ResNet and EfficientNet gives the logits of its PyTorch twin, to 1e-4 in f32.

Hardware: any CPU. Versions: those of the environment and of `make_peers.py` (torch 2.13). n: two images at each of two
sizes, one of them odd, for every network; weights and running statistics are random (`seeded_weights.py`), written to
an .npz and loaded as `model.pretrained` is. The twins (`torch_twins.py`) have the state-dict names and shapes of
torchvision and timm; those that `mmjax.models.pretrained` expects must be the same list.

`python benchmarks/pretrained_parity.py` prints the table, of networks whose names hold TEXT with `--only TEXT`;
`--golden` also writes what `tests/test_pretrained.py` compares with: logits and a digest of names and shapes. Exits 1
where a difference is above 1e-4.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from make_peers import peer_python
from seeded_weights import gain_of, seeded_images, seeded_state

from mmjax.config import Architecture
from mmjax.config import Model as ModelConfig
from mmjax.models.base import Model
from mmjax.models.build import build_model
from mmjax.models.pretrained import source_shapes, with_state_dict
from mmjax.models.state_dict import load_state_dict
from mmjax.schema import Schema, Target

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "tests" / "fixtures" / "pretrained_logits.json"
CLASSES, SEED, TOLERANCE = 10, 1, 1e-4
SIZES = ((64, 64), (97, 80))
RESNETS = ("resnet18", "resnet34", "resnet50")
DEEP = ("resnet18d", "resnet34d", "resnet50d")
EFFICIENTNETS = tuple(f"efficientnet_b{size}" for size in range(5))
JOBS = (
    *(("torchvision", name) for name in (*RESNETS, *EFFICIENTNETS)),
    *(("timm", name) for name in (*DEEP, *EFFICIENTNETS, *(f"tf_{name}" for name in EFFICIENTNETS))),
)
SCHEMA = Schema(target=Target(column="y", task="classification", classes=("a", "b")))


def twins(asked: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the twins' logits, and shapes of their state dicts, by source and name."""
    jobs = [{"name": n, "source": s, "classes": CLASSES, "seed": SEED, "sizes": SIZES} for s, n in asked]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "twins.npz"
        command = [peer_python(), HERE / "torch_twins.py", out]
        subprocess.run(command, input=json.dumps(jobs), text=True, check=True)
        with np.load(out) as found:
            return {key: found[key] for key in found.files}


def network(name: str) -> tuple[Model, Any]:
    """Return the Model with the papers' stem, and the shapes of its variables."""
    model = build_model(
        ModelConfig(name=name, architecture=Architecture(stem="large")),
        SCHEMA,
        outputs=CLASSES,  # pyright: ignore
    )
    batch = {"image": jax.ShapeDtypeStruct((2, 1, 64, 64, 3), np.float32)}
    return model, jax.eval_shape(model.init, jax.random.key(0), batch)


def names_digest(shapes: dict[str, Any]) -> str:
    """Return a sha256 of names and shapes, counters of batches left out."""
    lines = sorted(f"{name} {list(shape)}" for name, shape in shapes.items() if "num_batches" not in name)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def logits_of(source: str, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the names and shapes expected of the file, and our logits by size, through a file."""
    model, variables = network(name)
    shapes = source_shapes(name, variables, timm=source == "timm")  # pyright: ignore
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        np.savez(path, **seeded_state(shapes, SEED, gain_of(name)))
        loaded = with_state_dict(name, load_state_dict(path), variables, str(path)).variables  # pyright: ignore
    apply = jax.jit(lambda variables, image: model.apply(variables, {"image": image}, train=False)[0])
    return shapes, {f"{h}x{w}": np.asarray(apply(loaded, seeded_images(h, w, SEED)[:, None])) for h, w in SIZES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", action="store_true", help=f"write {GOLDEN.name} too")
    parser.add_argument("--only", default="", metavar="TEXT", help="networks whose names hold it")
    options, worst = parser.parse_args(), 0.0
    golden: dict[str, Any] = json.loads(GOLDEN.read_text())["networks"] if options.only and options.golden else {}
    asked = [(source, name) for source, name in JOBS if options.only in f"{source}/{name}"]
    found = twins(asked)
    heads = ("weights of", "network", "arrays", "parameters", "same names", "largest logit", "images differ by")
    print(f"| {' | '.join((*heads, *(f'{h}x{w}' for h, w in SIZES)))} |\n{'|---' * (len(heads) + len(SIZES))}|")
    for source, name in asked:
        key = f"{source}/{name}"
        wanted = {k: v for k, v in json.loads(str(found[f"{key}/shapes"])).items() if "num_batches" not in k}
        shapes, ours = logits_of(source, name)
        same = names_digest(wanted) == names_digest(shapes)
        count = sum(int(np.prod(s)) for n, s in wanted.items() if "running" not in n)
        gaps = {size: float(np.abs(values - found[f"{key}/{size}"]).max()) for size, values in ours.items()}
        worst = max(worst, *gaps.values(), 0.0 if same else np.inf)
        largest = max(float(np.abs(found[f"{key}/{size}"]).max()) for size in ours)
        apart = min(float(np.abs(np.diff(found[f"{key}/{size}"], axis=0)).max()) for size in ours)
        row = (source, name, len(wanted), f"{count:,}", same, f"{largest:.2f}", f"{apart:.3f}")
        print(f"| {' | '.join(map(str, (*row, *(f'{gap:.1e}' for gap in gaps.values()))))} |", flush=True)
        golden[key] = {"names": names_digest(wanted)} | {
            size: [[round(float(v), 7) for v in row] for row in found[f"{key}/{size}"]] for size in ours
        }
    if options.golden:
        GOLDEN.write_text(json.dumps({"classes": CLASSES, "seed": SEED, "networks": golden}) + "\n")
    print(f"largest difference {worst:.1e}, {'within' if worst <= TOLERANCE else 'ABOVE'} {TOLERANCE}")
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
