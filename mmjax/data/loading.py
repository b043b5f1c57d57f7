"""Whether encoded rows are kept in memory or streamed from the cache on disk, and how much memory is free."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import assert_never

from mmjax.config import Loading

GIB = 1 << 30
SHARE = 4
"""`auto` streams what would fill more than one such part of the free memory."""


def choose_loading(wanted: Loading, encoded_bytes: int, *, free_bytes: int | None = None) -> tuple[bool, str]:
    """Return (whether to stream, a line for the user or an empty string) for rows of `encoded_bytes` when encoded.

    `free_bytes` is `free_memory()` unless given.
    """
    free = free_memory() if free_bytes is None else free_bytes
    sizes = f"the encoded rows take {in_units(encoded_bytes)} of the {in_units(free)} of memory that are free"
    match wanted:
        case "streamed":
            return True, "loading: streamed, as data.loading says"
        case "resident":
            crowded = encoded_bytes * 2 > free
            return False, f"loading: resident, as data.loading says, though {sizes}" if crowded else ""
        case "auto":
            large = encoded_bytes * SHARE > free
            return large, f"loading: streamed, as {sizes}; data.loading: resident keeps them there" if large else ""
        case never:
            assert_never(never)


def in_units(size: int) -> str:
    """Return a number of bytes in the largest unit that fits.

    >>> in_units(16967), in_units(3 << 30)
    ('16.6 KiB', '3 GiB')
    """
    for unit, name in ((GIB, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"


def free_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this process could take without swapping: of the machine, and of its control groups.

    File pages count as free, as the kernel gives them back. `root` is where `proc` and `sys` are mounted.
    """
    found = [*_group_memory(root)]
    available = _fields(root / "proc/meminfo").get("MemAvailable:")
    found.append(available * 1024 if available is not None else _physical_memory())
    return max(0, min(found))


def _physical_memory() -> int:
    """Return the bytes of all memory, where the system does not say how much is free (macOS)."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_memory(root: Path) -> Iterator[int]:
    """Yield what each control group that this process is in leaves free (cgroup v2 or v1); nothing where unlimited."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            mount, limit, usage, prefix = "sys/fs/cgroup", "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            mount, prefix = "sys/fs/cgroup/memory", "total_"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # In a container the path may be the host's, while the mount shows the container's group at its top.
        inner = Path(path.lstrip("/"))
        for group in (inner, *inner.parents) if inner.parts else (inner,):
            folder = root / mount / group
            most, taken = _number(folder / limit), _number(folder / usage)
            if most is not None and taken is not None:
                stat = _fields(folder / "memory.stat")
                files = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
                yield most - taken + min(files, taken)


def _fields(path: Path) -> dict[str, int]:
    """Return {first word: second word} of the lines of a file; empty when it cannot be read."""
    words = (line.split() for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in words if len(pair) > 1 and pair[1].isdigit()}


def _number(path: Path) -> int | None:
    """Return the number in a file; None when it is not there, or says `max`."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
