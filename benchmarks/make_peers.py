"""Makes `benchmarks/.peers`, the environment of the peers that mmjax is measured against: PyTorch on Python 3.11.

An environment of its own, because PyTorch's CPU build installs on 3.11 and its pins must not touch mmjax's.
`python benchmarks/make_peers.py` makes it (about 1 GB); the benchmarks that need it do so by themselves.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / ".peers"
SERVERS = ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0", "litserve==0.2.19")
PACKAGES = ("torch==2.13.0", "numpy", *SERVERS)
PROBE = "import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 11))"


class NoPeer(Exception):
    """The environment cannot be made here; the message says why."""


def peer_python() -> Path:
    """Return the interpreter of the peers' environment, made first when it is not there. Raises NoPeer."""
    python, done = FOLDER / "bin" / "python", FOLDER / "packages.txt"
    wanted = "\n".join(PACKAGES)
    if done.exists() and done.read_text() == wanted:
        return python
    base = next(filter(_is_3_11, _candidates()), None)
    if base is None:
        raise NoPeer("expected a Python 3.11 with venv and ensurepip on PATH or in pyenv, found none; install one")
    print(f"making {FOLDER.name} with {' '.join(PACKAGES)} (once) ...", flush=True)
    for command in (
        [base, "-m", "venv", "--clear", FOLDER],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES],
    ):
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            shutil.rmtree(FOLDER, ignore_errors=True)
            raise NoPeer(f"{' '.join(map(str, command))}: exit code {made.returncode}:\n{made.stderr[-2000:]}")
    done.write_text(wanted)
    return python


def _candidates() -> Iterator[Path]:
    """Yield every python3.11 on PATH (a shim may be switched off), then those of pyenv, newest first."""
    for folder in os.get_exec_path():
        if (path := Path(folder) / "python3.11").exists():
            yield path
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(root.glob("versions/3.11.*/bin/python"), reverse=True)


def _is_3_11(python: Path) -> bool:
    return subprocess.run([python, "-c", PROBE], capture_output=True).returncode == 0


if __name__ == "__main__":
    try:
        print(peer_python())
    except NoPeer as error:
        sys.exit(str(error))
