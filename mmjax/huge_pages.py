"""Memory in pages of 2 MB, which Linux gives to those who ask for it. Standard library only, as it comes first of all.

XLA takes the scratch of each step from malloc and gives it back after the step, so on a CPU a step of a network of
images begins with tens of thousands of page faults. glibc (2.35 and newer) asks for huge pages where the tunable
`glibc.malloc.hugetlb` is 1 when a process starts (glibc manual, "Memory Allocation Tunables"). NumPy asks for its own
arrays in the same way.
"""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb"
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
AGAIN = "mmjax_started_anew"
"""Interpreter option (`-X`) of a program that was started anew: it is so once, whatever became of its environment."""


def start_with_huge_pages() -> None:
    """Start this front door anew, with the same process id, where huge pages are there for the asking.

    To be called before anything else is imported or opened. Nothing is done where the process may be more than the
    front door (a notebook, a debugger, a program of somebody's own), or where starting anew fails. Whoever sets the
    tunable, to 0 for instance, has the say. Processes that the front door starts inherit it.
    """
    asked = asking(os.environ, SETTING)
    if asked is None or AGAIN in sys._xoptions or sys.gettrace() or not is_front_door(sys.orig_argv, sys.argv):
        return
    with contextlib.suppress(OSError):
        if os.path.samefile(sys.executable, "/proc/self/exe"):
            again = [sys.executable, "-X", AGAIN, *sys.orig_argv[1:]]
            os.execve(sys.executable, again, {**os.environ, "GLIBC_TUNABLES": asked})


def is_front_door(started: Sequence[str], arguments: Sequence[str]) -> bool:
    """Return whether a process `started` so (`sys.orig_argv`) is `python -m mmjax...` or the console script alone."""
    if "-m" in started:
        module = started[started.index("-m") + 1 :][:1]
        return bool(module) and module[0].split(".")[0] == "mmjax"
    script = arguments[0] if arguments else ""
    return os.path.basename(script) == "mmjax" and script in started and os.path.isfile(script)


def asking(environment: Mapping[str, str], setting: Path) -> str | None:
    """Return the GLIBC_TUNABLES that ask for huge pages; None where they are set already or the kernel gives none.

    It gives them to those who ask under the setting `madvise`: under `always` all get them, under `never` nobody.
    """
    tunables = environment.get("GLIBC_TUNABLES", "")
    try:
        given = setting.read_text(encoding="ascii")
    except OSError:
        return None
    if TUNABLE in (each.split("=")[0] for each in tunables.split(":")) or "[madvise]" not in given:
        return None
    return ":".join(filter(None, (tunables, f"{TUNABLE}=1")))
