"""What tests of the front doors share: small data, quick configs, doors in this process and as processes."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pytest

from mmjax.cli import run
from mmjax.config import Config
from mmjax.config_load import config_from_dict
from mmjax.data.decode import encode_png

REPOSITORY = Path(__file__).resolve().parent.parent
HEADER: tuple[str, ...] = ("id", "size", "colour", "open", "when", "kind")
KINDS = ("a", "b", "c")


class Ended(NamedTuple):
    """How a door ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object on the last line."""
        return json.loads(self.out.splitlines()[-1])


def door(capsys: pytest.CaptureFixture[str], command: click.Command, *argv: str | Path) -> Ended:
    """Enter a front door in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run(command, [str(word) for word in argv])
    captured = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return Ended(ended.value.code, captured.out, captured.err)


def start(name: str, *argv: str | Path, folder: Path, **env: str) -> subprocess.Popen[str]:
    """Start a front door as a process in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", f"mmjax.{name}", *map(str, argv)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def process(name: str, *argv: str | Path, folder: Path, **env: str) -> Ended:
    """Run a front door as a process in `folder`."""
    with start(name, *argv, folder=folder, **env) as running:
        out, err = running.communicate(timeout=120)
    return Ended(running.returncode, out, err)


def table_rows(rows: int, *, seed: int = 0) -> list[tuple[str, ...]]:
    """Rows with every kind of column and gaps; `kind` follows from `colour`, mostly."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(rows):
        colour = rng.integers(3)
        size = "?" if rng.random() < 0.1 else f"{rng.normal():.3f}"
        when = f"2024-{rng.integers(1, 13):02d}-{rng.integers(1, 29):02d}"
        kind = KINDS[colour if rng.random() < 0.9 else 0]
        made.append((f"r{i}", size, ("red", "green", "blue")[colour], ("yes", "no")[rng.integers(2)], when, kind))
    return made


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Path:
    """A CSV of these cells; returns the path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_table(path: Path, *, rows: int = 80, seed: int = 0) -> Path:
    """A CSV of `table_rows`."""
    return write_csv(path, HEADER, table_rows(rows, seed=seed))


def write_images(folder: Path, *, each: int = 8) -> Path:
    """Class folders `dark` and `light` of 8 x 8 PNGs."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 100, (8, 8, 3)) + 150 * index
            (folder / name / f"{i}.png").write_bytes(encode_png(pixels.astype(np.uint8)))
    return folder


def tiny(**changes: Any) -> dict[str, Any]:
    """Sections of a config that train in a moment; `changes` go to `training`."""
    training = {"epochs": 2, "batch_size": 16, "learning_rate": 0.05}
    return {"model": {"name": "mlp", "architecture": {"hidden_layers": [4]}}, "training": training | changes}


def table_config(path: Path, **data: Any) -> Config:
    """A quick config for such a table, named `tiny`; `data` goes to `data.tabular`."""
    tabular = {"path": str(path), "target_column": "kind", "id_column": "id"} | data
    return config_from_dict({"name": "tiny", "data": {"tabular": tabular}, **tiny()}, "test")


def image_config(path: Path, **data: Any) -> Config:
    """A quick config for such images, named `shades`; `data` goes to `data.image`."""
    content = {
        "name": "shades",
        "data": {"image": {"path": str(path)} | data},
        "model": {"architecture": {"stages": [1], "width": 4}},
        "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.02},
    }
    return config_from_dict(content, "test")


TABLE_YAML = """\
data:
  tabular: {path: table.csv, target_column: kind, id_column: id}
model:
  name: mlp
  architecture: {hidden_layers: [4]}
training: {epochs: 2, batch_size: 16}
"""
