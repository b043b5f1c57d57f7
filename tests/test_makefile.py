"""The Makefile and the choice of a Python: what a newcomer types first."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TARGETS = """
help install setup train train-images evaluate serve lint format typecheck test soak bench docker-build docker-run clean
"""
PROMISED = TARGETS.split()


def make(*arguments: str, folder: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run make, with nothing of an outer make's settings."""
    env = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "PYTHON"}}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def test_plain_make_lists_every_target_with_a_line():
    listed = re.findall(r"^  make ([a-z-]+) +\S.*$", make().stdout, re.MULTILINE)
    assert listed == PROMISED


def test_every_target_is_one_that_make_can_plan():
    for name in PROMISED:
        planned = make("--dry-run", name)
        assert planned.returncode == 0, f"make {name}: {planned.stderr}"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A folder with the Makefile and an installer that only leaves a mark."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for folder in (".ci", "requirements"):
        (tmp_path / folder).mkdir()
    for name in ("py311.txt", "py312.txt"):
        (tmp_path / "requirements" / name).write_text("")
    (tmp_path / ".ci" / "python").write_text("")
    script(tmp_path / ".ci" / "install", 'mkdir -p "$1"; echo "installed for [$PYTHON]"')
    return tmp_path


def script(path: Path, body: str) -> None:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_install_runs_once_and_again_when_its_inputs_change(house: Path):
    assert "installed for []" in make("install", folder=house).stdout
    assert "installed" not in make("install", folder=house).stdout
    later = (house / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(house / "requirements" / "py312.txt", (later, later))
    assert "installed for []" in make("install", folder=house).stdout


def test_install_runs_again_for_another_python_only(house: Path):
    assert "installed for []" in make("install", folder=house).stdout
    assert "installed for [python3.12]" in make("install", "PYTHON=python3.12", folder=house).stdout
    assert "installed" not in make("install", "PYTHON=python3.12", folder=house).stdout
    assert "installed" not in make("install", folder=house).stdout, "without PYTHON the environment is kept"


def pick(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run .ci/python with nothing on PATH but `folder`/bin and the system's own tools, and pyenv at `folder`/pyenv."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("sh", "sort", "head", "env"):
        if not (tools / name).exists():
            (tools / name).symlink_to(shutil.which(name) or name)
    path = f"{folder / 'bin'}:{tools}"
    return subprocess.run(
        [REPOSITORY / ".ci" / "python"],
        env={"PATH": path, "HOME": str(folder), "PYENV_ROOT": str(folder / "pyenv"), **env},
        capture_output=True,
        text=True,
        timeout=30,
    )


RUNS = 'echo "$0"'
SWITCHED_OFF = 'echo "pyenv: python: command not found" >&2; exit 127'


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"bin/python3.13": RUNS, "bin/python3.12": RUNS}, "bin/python3.13"),
        ({"bin/python3.13": SWITCHED_OFF, "bin/python3.12": RUNS, "bin/python3": RUNS}, "bin/python3.12"),
        ({"bin/python3.13": SWITCHED_OFF, "bin/python3.11": RUNS, "pyenv/versions/3.13.0/bin/python": RUNS},
         "pyenv/versions/3.13.0/bin/python"),
        ({"pyenv/versions/3.12.9/bin/python": RUNS, "pyenv/versions/3.12.10/bin/python": RUNS},
         "pyenv/versions/3.12.10/bin/python"),
        ({"pyenv/versions/3.12.9/bin/python": SWITCHED_OFF, "bin/python3": RUNS}, "bin/python3"),
        ({"pyenv/versions/3.14.0/bin/python": RUNS, "bin/python3": RUNS}, "pyenv/versions/3.14.0/bin/python"),
    ],
)  # fmt: skip
def test_the_newest_python_that_runs_is_taken(tmp_path: Path, there: dict[str, str], expected: str):
    for name, body in there.items():
        script(tmp_path / name, body)
    picked = pick(tmp_path)
    assert (picked.stdout.strip(), picked.returncode) == (str(tmp_path / expected), 0), picked.stderr


def test_no_python_is_said_with_what_to_do(tmp_path: Path):
    script(tmp_path / "bin" / "python3.13", SWITCHED_OFF)
    picked = pick(tmp_path)
    assert picked.returncode == 2
    assert "no Python >= 3.11 that runs was found" in picked.stderr
    assert "make PYTHON=/path/to/python3" in picked.stderr


def test_a_python_asked_for_is_taken_or_refused_by_name(tmp_path: Path):
    script(tmp_path / "bin" / "mine", RUNS)
    script(tmp_path / "bin" / "old", 'echo "it is Python 3.9" >&2; exit 1')
    assert pick(tmp_path, PYTHON="mine").stdout.strip() == str(tmp_path / "bin" / "mine")
    refused = pick(tmp_path, PYTHON="old")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("PYTHON=old: expected a Python >= 3.11")
    assert "got: it is Python 3.9" in refused.stderr
