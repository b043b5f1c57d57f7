"""Memory in pages of 2 MB, which Linux gives to those who ask for it. Standard library only, as it comes first of all.

XLA takes the scratch of each step from malloc and gives it back after the step, so on a CPU a step of a network of
images begins with tens of thousands of page faults. glibc (2.35 and newer) asks for huge pages where the tunable
`glibc.malloc.hugetlb` is 1 when a process starts (glibc manual, "Memory Allocation Tunables"). NumPy asks for its own
arrays in the same way.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb"
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def start_with_huge_pages() -> None:
    """Start this process's program anew, with the same process id, where huge pages are there for the asking.

    To be called before anything else is imported or opened. Whoever sets the tunable, to 0 for instance, has the say.
    """
    asked = asking(os.environ, SETTING)
    if asked and sys.executable:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "GLIBC_TUNABLES": asked})


def asking(environment: Mapping[str, str], setting: Path) -> str | None:
    """Return the GLIBC_TUNABLES that ask for huge pages; None where they are set already or asking changes nothing.

    It changes something where the kernel's setting is `madvise`: under `always` all get them, under `never` nobody.
    """
    tunables = environment.get("GLIBC_TUNABLES", "")
    try:
        given = setting.read_text(encoding="ascii")
    except OSError:
        return None
    if TUNABLE in tunables or "[madvise]" not in given:
        return None
    return ":".join(filter(None, (tunables, f"{TUNABLE}=1")))
