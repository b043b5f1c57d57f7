"""Resident or streamed: as asked, or by the memory that is free for this process."""

from pathlib import Path

import pytest

from mmjax.data.loading import GIB, choose_loading, free_memory


def test_auto_streams_what_fills_more_than_a_quarter() -> None:
    assert choose_loading("auto", 2 * GIB, free_bytes=8 * GIB) == (False, "")
    streamed, note = choose_loading("auto", 3 * GIB, free_bytes=8 * GIB)
    assert streamed
    assert note == (
        "loading: streamed, as the encoded rows take 3 GiB of the 8 GiB of memory that are free; "
        "data.loading: resident keeps them there"
    )
    assert choose_loading("auto", 1000) == (False, "")
    assert choose_loading("auto", 1 << 60)[0]


def test_what_is_asked_for_is_done() -> None:
    assert choose_loading("streamed", 10) == (True, "loading: streamed, as data.loading says")
    assert choose_loading("resident", 4 * GIB, free_bytes=8 * GIB) == (False, "")
    assert choose_loading("resident", 5 * GIB, free_bytes=8 * GIB) == (
        False,
        "loading: resident, as data.loading says, though "
        "the encoded rows take 5 GiB of the 8 GiB of memory that are free",
    )


def test_free_memory_of_this_machine_is_what_it_says() -> None:
    total = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines())
    assert 0 < free_memory() <= total * 1024


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in ({"proc/meminfo": "MemTotal: 16384 kB\nMemAvailable:  8192 kB\n"} | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = {
    "proc/self/cgroup": "0::/a/b\n",
    "sys/fs/cgroup/a/memory.max": "6000000\n",
    "sys/fs/cgroup/a/memory.current": "4000000\n",
    "sys/fs/cgroup/a/memory.stat": "anon 3000000\ninactive_file 600000\nactive_file 400000\n",
    "sys/fs/cgroup/a/b/memory.max": "max\n",
    "sys/fs/cgroup/a/b/memory.current": "4000000\n",
}
V1 = {
    "proc/self/cgroup": "3:cpu,cpuacct:/x\n2:memory:/x\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000000\n",
    "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "2000000\n",
    "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "1500000\n",
    "sys/fs/cgroup/memory/x/memory.stat": "total_inactive_file 200000\ninactive_file 7\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8192 * 1024),
        (V2, 3_000_000),
        (V2 | {"sys/fs/cgroup/a/b/memory.max": "4100000\n"}, 100_000),
        (V2 | {"sys/fs/cgroup/a/b/memory.max": "3900000\n"}, 0),
        (V1, 700_000),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 8192 * 1024),
        ({"proc/self/cgroup": "0::/gone\n", "sys/fs/cgroup/memory.max": "9\n", "sys/fs/cgroup/memory.current": "2"}, 7),
    ],
)
def test_control_groups_may_leave_less(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert free_memory(system(tmp_path, files)) == expected


def test_a_system_that_does_not_say_counts_all_memory(tmp_path: Path) -> None:
    assert free_memory(tmp_path) > 1 << 28
