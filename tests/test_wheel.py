"""The wheel: built from a copy of the checkout, installed into a fresh environment and run; and the Dockerfile."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def run(command: Sequence[str | Path], folder: Path) -> str:
    """The output of a command that must succeed."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(REPOSITORY / "mmjax", folder / "source" / "mmjax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / "source")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "."]
    run([*build, "--wheel-dir", folder / "dist"], folder / "source")
    (built,) = (folder / "dist").glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path):
    inside = set(zipfile.ZipFile(wheel).namelist())
    code = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "mmjax").rglob("*.py")}
    assert code <= inside
    assert "mmjax/py.typed" in inside
    pages = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "mmjax/serving/pages").iterdir()}
    assert pages <= inside
    assert {name.split("/")[0].split("-")[0] for name in inside} == {"mmjax"}
    assert any(fnmatch(name, "*.dist-info/licenses/LICENSE") for name in inside)


def test_the_wheel_runs_from_a_fresh_environment(wheel: Path, tmp_path: Path):
    run([sys.executable, "-m", "venv", "--without-pip", "fresh"], tmp_path)
    python = tmp_path / "fresh" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet"]
    run([*install, wheel], tmp_path)
    packages = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], tmp_path).strip())
    # Dependencies come from this environment; a path line does not load what editable installs leave there.
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    place = run([python, "-c", "import mmjax; print(mmjax.__file__)"], tmp_path).strip()
    assert Path(place).is_relative_to(packages)
    version = run([tmp_path / "fresh" / "bin" / "mmjax", "--version"], tmp_path)
    assert wheel.name.split("-")[1] in version


def dockerfile() -> list[list[str]]:
    """The words of each instruction."""
    text = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_image_is_given_what_it_copies():
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    copied = [word for words in dockerfile() if words[0] == "COPY" for word in words[1:-1] if "=" not in word]
    for name in (name for name in copied if not name.startswith("/")):
        assert (REPOSITORY / name).exists(), name
        assert f"!{name.split('/')[0]}" in ignored, name


def test_the_image_does_not_run_as_root():
    users = [words[1] for words in dockerfile() if words[0] == "USER"]
    assert users
    assert not users[-1].startswith(("root", "0"))
