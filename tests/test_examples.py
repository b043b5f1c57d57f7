"""The notebooks in `examples/`, executed from top to bottom beside a copy of the sample data."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[1])
"""


@pytest.mark.parametrize(
    ("name", "model", "answers"),
    [
        ("01_tables", "iris", ("setosa {", "virginica {")),
        ("02_images", "images", ("['green', 'green']", "(4, 3), (4, 32, 32, 1)")),
    ],
)
def test_a_notebook_runs_and_shows_what_it_promises(name: str, model: str, answers: tuple[str, ...], tmp_path: Path):
    for folder in ("configs", "data", "examples"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    path = tmp_path / "examples" / f"{name}.ipynb"
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, path],
        cwd=path.parent,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime")},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "registry" / model / "1" / "manifest.json").is_file()
    shown = path.read_text(encoding="utf-8")
    assert [answer for answer in answers if answer not in shown] == []


@pytest.mark.parametrize("path", sorted((REPOSITORY / "examples").glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_kept_without_outputs(path: Path):
    cells = nbformat.read(path, as_version=4).cells
    assert [cell.source for cell in cells if cell.get("outputs")] == []
