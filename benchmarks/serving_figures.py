"""The Figures that `serving.py` makes of what it found: the claims of docs/BENCHMARKS.md, and what explains them."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from harness import Figure
from serving_asks import IMAGES, SHARES, TIMES

Found = dict[str, Any]
"""What one repeat of a part found."""
Each = Callable[[str], tuple[Any, ...]]
"""`each("mmjax one p50_ms")` gives a number that was found, of every repeat."""


def rows_figures(each: Each) -> list[Figure]:
    """Return the Figures of single rows."""
    bare, peer, peer_rate = each("bare_ms"), each("fastapi one p50_ms"), each("fastapi many good_per_s")
    added = {p: tuple(v - b for v, b in zip(each(f"mmjax one {p}_ms"), bare, strict=True)) for p in ("p50", "p99")}
    rate = each("mmjax many good_per_s")
    made = [
        Figure("row: time beyond the compiled call, p50", "ms", added["p50"], "<=", 0.3),
        Figure("row: time beyond the compiled call, p99", "ms", added["p99"], "<=", 1.0),
        Figure("row: whole reply, p50", "ms", each("mmjax one p50_ms"), "<=", statistics.median(peer)),
        Figure("row: whole reply of FastAPI + PyTorch, p50", "ms", peer),
        Figure("row: whole reply of LitServe, p50", "ms", each("litserve one p50_ms")),
        Figure("rows, 32 clients, over FastAPI + PyTorch's", "x", _over(rate, peer_rate), ">=", 3.0),
        Figure("rows, 32 clients", "rows/s", rate),
        Figure("rows, 32 clients, FastAPI + PyTorch", "rows/s", peer_rate),
        Figure("rows, 32 clients, LitServe", "rows/s", each("litserve many good_per_s")),
    ]
    for share in SHARES:
        for p in ("p50", "p99"):
            made.append(
                Figure(f"rows due at {share} % of that rate, {p} from when due", "ms", each(f"open {share} {p}_ms"))
            )
    return [*made, _resident("after rows", each)]


def binary_figures(each: Each) -> list[Figure]:
    """Return the Figures of tables of 1,000 x 50."""
    made: list[Figure] = []
    for clients, key in (("1 client", "one"), ("4 clients", "many")):
        raw, peer = each(f"binary {key} good_per_s"), each(f"fastapi {key} good_per_s")
        made += [
            Figure(f"1,000 x 50 binary, {clients}, over JSON to FastAPI", "x", _over(raw, peer), ">=", 10.0),
            Figure(f"1,000 x 50 binary, {clients}", "requests/s", raw),
            Figure(f"1,000 x 50 JSON to FastAPI + PyTorch, {clients}", "requests/s", peer),
        ]
    made.append(Figure("1,000 x 50 JSON, 1 client", "requests/s", each("json good_per_s")))
    return [*made, _resident("after 1,000 x 50", each)]


def images_figures(each: Each) -> list[Figure]:
    """Return the Figures of images."""
    bare = tuple(IMAGES / (ms / 1e3) for ms in each("bare_ms"))
    single = each("single many good_per_s")
    forms = tuple(IMAGES * rate for rate in each("forms good_per_s"))
    return [
        Figure("image: whole reply, p50", "ms", each("single one p50_ms"), "<=", 25.0),
        Figure("image: whole reply, p99", "ms", each("single one p99_ms"), "<=", 60.0),
        Figure("images, 32 clients, over the bare executable's", "", _paired(single, bare), ">=", 0.9),
        Figure("images, 4 clients of 16, over the bare executable's", "", _paired(forms, bare), ">=", 0.9),
        Figure("images, 32 clients", "images/s", single),
        Figure("images, 4 clients of 16", "images/s", forms),
        Figure("images, bare executable of 16", "images/s", bare),
        _resident("after images", each),
    ]


def overload_figures(each: Each) -> list[Figure]:
    """Return the Figures of overload."""
    made: list[Figure] = []
    for what in ("image", "row"):
        peak = each(f"{what} peak good_per_s")
        made.append(Figure(f"{what} overload: the peak", f"{what}s/s", peak))
        for times in TIMES:
            at, name = f"{what} floods {times}", f"{what} overload {times}x"
            bad = tuple(_bad(*pair) for pair in zip(each(f"{at} statuses"), each(f"{at} probe bad"), strict=True))
            made += [
                Figure(f"{name}: really sent, over the peak", "x", _paired(each(f"{at} sent_per_s"), peak)),
                Figure(f"{name}: answered, over the peak", "", _paired(each(f"{at} good_per_s"), peak), ">=", 0.9),
                Figure(f"{name}: accepted, p99 from when due", "ms", each(f"{at} p99_ms")),
                Figure(f"{name}: probe, p99", "ms", each(f"{at} probe p99_ms"), "<=", 5.0),
                Figure(f"{name}: probe over a new connection, slowest", "ms", each(f"{at} probe anew p100_ms")),
                Figure(f"{name}: replies other than 200 and 503", "", bad, "<=", 0.0),
            ]
        made.append(_resident(f"after {what} overload", lambda key, what=what: each(f"{what} {key}")))
    return made


def start_figures(each: Each) -> list[Figure]:
    """Return the Figures of the start."""
    return [
        Figure("cold start to ready, empty cache", "s", each("empty"), "<=", 6.0),
        Figure("cold start to ready, warm cache", "s", each("warm"), "<=", 3.0),
    ]


def _over(values: tuple[float, ...], peer: tuple[float, ...]) -> tuple[float, ...]:
    """Return values over the median of a peer's."""
    return tuple(value / statistics.median(peer) for value in values)


def _paired(values: tuple[float, ...], bases: tuple[float, ...]) -> tuple[float, ...]:
    """Return values over those of the same repeat."""
    return tuple(value / base for value, base in zip(values, bases, strict=True))


def loads(found: Any) -> Iterator[dict[str, Any]]:
    """Yield what each load in what was found told."""
    if isinstance(found, dict):
        if "statuses" in found:
            yield found
        for value in found.values():
            yield from loads(value)


def common_figures(repeats: Sequence[Found]) -> list[Figure]:
    """Return the Figures of all loads: whether they went as they should, on a quiet machine."""
    every = [load for repeat in repeats for load in loads(repeat)]
    closed = [load["statuses"] for load in every if "probe" not in load]
    if not every:
        return []
    failed = tuple(float(sum(n for status, n in told.items() if status != "200")) for told in closed)
    return [
        Figure("replies other than 200, each closed loop", "", failed, "<=", 0.0),
        Figure("cores that other processes took, each load", "", tuple(load["cores_of_others"] for load in every)),
    ]


def _bad(statuses: Mapping[str, int], probes: float) -> float:
    """Return how many replies, or probes without one, were neither answers nor refusals nor unsent."""
    return probes + sum(n for status, n in statuses.items() if status not in ("200", "503", "-2", "-3"))


def _resident(when: str, each: Each) -> Figure:
    return Figure(f"resident memory {when}", "MB", each("resident_mb"))


def each_of(repeats: Sequence[Found]) -> Each:
    """Return the Each of what the repeats of a part found."""

    def each(keys: str) -> tuple[Any, ...]:
        values: list[Any] = list(repeats)
        for key in keys.split():
            values = [value[int(key) if key.isdecimal() else key] for value in values]
        return tuple(values)

    return each
