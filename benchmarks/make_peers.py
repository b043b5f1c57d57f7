"""Makes the environments of the peers that mmjax is measured against, on Python 3.11: PyTorch, and models of tables.

Environments of their own, because PyTorch's CPU build installs on 3.11 and their pins must not touch mmjax's.
`python benchmarks/make_peers.py` makes `benchmarks/.peers` (PyTorch and servers, about 1 GB), `... tabular` makes
`benchmarks/.peers-tabular` (about 2.5 GB); the benchmarks that need one do so by themselves.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
SERVERS = ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0", "litserve==0.2.19")
BOOSTED = ("catboost==1.2.10", "lightgbm==4.7.0", "xgboost==3.2.0")
TABULAR = ("torch==2.13.0", "pytabkit==1.7.3", *BOOSTED, "scikit-learn==1.9.1", "pandas==3.1.1")
PROBE = "import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 11))"


class Peers(NamedTuple):
    """One environment."""

    folder: Path
    packages: tuple[str, ...]


PEERS = {
    "torch": Peers(HERE / ".peers", ("torch==2.13.0", "numpy", *SERVERS)),
    "tabular": Peers(HERE / ".peers-tabular", TABULAR),
}


class NoPeer(Exception):
    """The environment cannot be made here; the message says why."""


def peer_python(name: str = "torch") -> Path:
    """Return the interpreter of an environment in PEERS, made first when it is not there. Raises NoPeer."""
    folder, packages = PEERS[name]
    python, done = folder / "bin" / "python", folder / "packages.txt"
    wanted = "\n".join(packages)
    if done.exists() and done.read_text() == wanted:
        return python
    base = next(filter(_is_3_11, _candidates()), None)
    if base is None:
        raise NoPeer("expected a Python 3.11 with venv and ensurepip on PATH or in pyenv, found none; install one")
    print(f"making {folder.name} with {' '.join(packages)} (once) ...", flush=True)
    for command in (
        [base, "-m", "venv", "--clear", folder],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages],
    ):
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            shutil.rmtree(folder, ignore_errors=True)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=PEERS, default="torch", help="which environment [torch]")
    try:
        print(peer_python(parser.parse_args().name))
    except NoPeer as error:
        sys.exit(str(error))
