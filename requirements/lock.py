"""Write the lock files: `python requirements/lock.py [PYTHON ...]`, from a checkout, with any Python >= 3.11.

Each interpreter given (default: python3.11 python3.12 python3.13) gets a fresh virtual environment, into which pip
installs the ranges of `pyproject.toml` (base + dev + serve) and nothing else; what stands there afterwards is the lock.
3.11 has a file of its own, because the newest JAX for it is older; 3.12 and 3.13 share one, with an environment marker
on each line in which they differ. A file is rewritten only when every interpreter it is for was given.
The lock files pin for Linux on x86-64 and arm64; `baselines` and `track` are not locked.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCKS = {"py311.txt": ("3.11",), "py312.txt": ("3.12", "3.13")}
EXTRAS = ("dev", "serve")


def wanted() -> list[str]:
    """The requirement ranges of `pyproject.toml`, base and extras."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *(r for extra in EXTRAS for r in project["optional-dependencies"][extra])]


def resolve(python: str) -> tuple[str, dict[str, str]]:
    """The minor version of `python`, such as "3.12", and what a fresh environment of it holds: name to version."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        inside = str(Path(folder) / "bin" / "python")
        subprocess.run([inside, "-m", "pip", "install", "--quiet", *wanted()], check=True)
        minor = subprocess.run(
            [inside, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            check=True,
            capture_output=True,
            text=True,
        )
        listed = subprocess.run(
            [inside, "-m", "pip", "list", "--format=json", "--exclude=pip"], check=True, capture_output=True, text=True
        )
    return minor.stdout.strip(), {row["name"].lower(): row["version"] for row in json.loads(listed.stdout)}


def lock_lines(resolved: dict[str, dict[str, str]]) -> list[str]:
    """One pin a line, by name; a line that is not the same for all minor versions carries a marker.

    >>> lock_lines({"3.12": {"a": "1", "b": "1"}, "3.13": {"a": "1", "b": "2"}})[1:]
    ["b==1 ; python_version == '3.12'", "b==2 ; python_version == '3.13'"]
    """
    lines = []
    for name in sorted(set().union(*resolved.values())):
        found = {minor: packages.get(name) for minor, packages in resolved.items()}
        if len(set(found.values())) == 1:
            lines.append(f"{name}=={next(iter(found.values()))}")
        else:
            lines += [f"{name}=={v} ; python_version == '{minor}'" for minor, v in found.items() if v is not None]
    return lines


def main(pythons: list[str]) -> None:
    """Resolve each interpreter and write the files that are complete."""
    resolved = dict(resolve(python) for python in pythons)
    for file, minors in LOCKS.items():
        if all(minor in resolved for minor in minors):
            what = f"Python {' and '.join(minors)}: base + {' + '.join(EXTRAS)}"
            lines = [f"# {what}. Written by requirements/lock.py; do not edit."]
            lines += lock_lines({minor: resolved[minor] for minor in minors})
            (HERE / file).write_text("\n".join(lines) + "\n")
            print(f"wrote {file}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["python3.11", "python3.12", "python3.13"])
