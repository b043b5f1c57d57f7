"""README, typed as a newcomer would: its marked blocks run, in order, in a copy of the repository."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
BLOCK = re.compile(r"^<!-- test: run -->\n```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OUTER = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "VENV"}


def copy_repository(folder: Path) -> None:
    """A copy without the library, which is imported from here, so that its coverage counts; with this environment."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder)
    for name in ("configs", "data", "requirements", ".ci"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("venv", "__pycache__"))
    (folder / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        (folder / ".venv" / part.name).symlink_to(part)
    stamp = folder / ".venv" / ".installed"
    stamp.unlink(missing_ok=True)
    stamp.write_text("\n")


def run(language: str, text: str, folder: Path) -> str:
    """What a block prints; it must succeed."""
    command = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
    env = {name: value for name, value in os.environ.items() if name not in OUTER}
    done = subprocess.run(
        command,
        cwd=folder,
        env=env | {"PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of someone who typed every marked block, and what each block printed."""
    folder = tmp_path_factory.mktemp("readme")
    copy_repository(folder)
    with (REPOSITORY / "data" / "sample" / "iris.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    for name, width in (("my.csv", 5), ("new.csv", 4)):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows(row[:width] for row in [[*header[:4], "y"], *rows])
    return folder, [run(language, text, folder) for language, text in BLOCK.findall(README)]


def test_make_train_registers_a_good_iris_model(newcomer: tuple[Path, list[str]]):
    folder, printed = newcomer
    manifest = json.loads((folder / "registry" / "iris" / "1" / "manifest.json").read_text())
    assert manifest["metrics"]["test"]["accuracy"] >= 0.93
    for door in ("evaluate", "predict"):
        assert re.search(rf"\bmmjax[ .]{door} --model iris:1 ", printed[0]), printed[0]


def test_a_table_of_ones_own_gets_predictions_row_by_row(newcomer: tuple[Path, list[str]]):
    with (newcomer[0] / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (newcomer[0] / "my.csv").open(newline="") as file:
        answers = [row["y"] for row in csv.DictReader(file)]
    classes = sorted(set(answers))
    assert [name for name in rows[0] if name.startswith("probability_")] == [f"probability_{name}" for name in classes]
    assert len(rows) == len(answers) == 150
    right = sum(row["prediction"] == answer for row, answer in zip(rows, answers, strict=True))
    assert right / 150 >= 0.9


def test_the_python_example_prints_what_it_says(newcomer: tuple[Path, list[str]]):
    accuracy, answers = newcomer[1][-1].splitlines()
    evaluated, species, *_ = answers.split()
    assert float(accuracy) >= 0.93
    assert float(evaluated) >= 0.93
    assert species == "setosa"


def test_ci_calls_the_test_command_of_the_readme():
    (command,) = re.findall(r"<!-- test: this is what .ci/run calls -->\n```bash\n(.*)\n```", README)
    assert command == "make test"
    assert re.search(r"^step test ", (REPOSITORY / ".ci" / "run").read_text(), re.MULTILINE)


def test_the_readme_names_every_command_and_target():
    import mmjax.cli

    targets = re.findall(r"^([a-z-]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert [name for name in mmjax.cli.COMMANDS if f"`mmjax {name}`" not in README] == []
    assert [name for name in targets if name != "help" and f"`make {name}`" not in README] == []


def test_every_file_the_readme_points_to_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert [link for link in links if not (REPOSITORY / link).exists()] == []
