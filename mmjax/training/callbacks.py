"""Watchers of a training run: they write down or show what the trainer yields, and change nothing.

`metrics_logger` keeps every epoch; `progress` shows a person as many of them as can be read.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO, assert_never

from mmjax.training.event_types import Checkpointed, EpochEnded, Event, Finished, Progressed, Started, Stopped

if TYPE_CHECKING:
    from rich.progress import Progress

Callback = Callable[[Event], None]
"""Called with every event of a run, in order."""

LINE_S = 0.2
"""Seconds there should be between two epoch lines: about five a second can be read."""


def metrics_logger(path: Path) -> Callback:
    """Return a Callback that appends one JSON line per epoch to `path`; a NaN or infinite metric becomes null.

    Each line is on disk (flushed) before the next epoch. A line cut short by a killed run stays where it is and the
    next one starts on a line of its own; after a resume an epoch may stand twice, and the later line counts.
    """
    _end_last_line(path)

    def write(event: Event) -> None:
        if isinstance(event, EpochEnded):
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_metrics_row(event), allow_nan=False) + "\n")

    return write


def _end_last_line(path: Path) -> None:
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _metrics_row(event: EpochEnded) -> dict[str, int | float | bool | None]:
    numbers = {
        "seconds": event.seconds,
        "samples_per_second": event.samples_per_second,
        "learning_rate": event.learning_rate,
        **event.metrics,
    }
    finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
    return {"epoch": event.epoch, "step": event.step, "improved": event.improved, **finite}


@contextmanager
def progress(stream: TextIO) -> Iterator[Callback]:
    """Yield a Callback that shows the run on `stream` while the block lasts.

    One line per epoch in aligned columns; where epochs are too fast to be read, every k-th and always the first
    and the last. On a terminal also a live bar below the lines, taken away at the end of the block however it
    ends; elsewhere no control codes are written.
    """
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        with _live(stream) as show:
            yield show
    else:

        def write(line: str) -> None:
            stream.write(line + "\n")
            stream.flush()

        yield epoch_lines(write, width=None)


def epoch_lines(write: Callable[[str], object], *, width: int | None) -> Callback:
    """Return a Callback that gives `write` the lines of a run: what starts, epochs in columns, how it ended.

    `width` is the number of characters a line may have, None for any number.
    """
    thinning = Thinning()
    monitor = ""
    columns: tuple[_Metric, ...] = ()

    def show_epochs(events: tuple[EpochEnded, ...]) -> None:
        for event in events:
            write(_epoch_line(event, columns))

    def show(event: Event) -> None:
        nonlocal thinning, monitor, columns
        match event:
            case Started():
                monitor = event.monitor
                for line in _started_lines(event):
                    write(line)
            case EpochEnded():
                if not columns:
                    columns = _metric_columns(event, monitor, width)
                    write(_heading(event, columns))
                before = thinning.every
                thinning, shown = thin(thinning, event)
                if thinning.every != before:
                    write(f"(showing every {_ordinal(thinning.every)} epoch)")
                show_epochs(shown)
            case Stopped() | Finished():
                thinning, shown = flush(thinning)
                show_epochs(shown)
                write(_last_line(event))
            case Progressed() | Checkpointed():
                pass
            case _:
                assert_never(event)

    return show


class Thinning(NamedTuple):
    """Which epochs are shown: every `every`-th; the last is held back until it is known that it is the last."""

    every: int = 1
    fastest: float = math.inf
    """Seconds of the fastest epoch after the first one."""
    started: bool = False
    held_last: EpochEnded | None = None


def thin(state: Thinning, event: EpochEnded) -> tuple[Thinning, tuple[EpochEnded, ...]]:
    """Return the next state and the epochs to show now."""
    fastest = min(state.fastest, event.seconds) if state.started else math.inf
    # Once chosen, k changes only when it is far too small: it is told to the user, preferably once.
    crowded = state.every * fastest < (LINE_S if state.every == 1 else LINE_S / 4)
    every = max(state.every, readable_interval(fastest, event.epochs)) if crowded else state.every
    last = event.epoch == event.epochs
    shown = not state.started or last or event.epoch % every == 0
    state = Thinning(
        every=every,
        fastest=fastest,
        started=True,
        held_last=None if shown else event,
    )
    return state, (event,) if shown else ()


def flush(state: Thinning) -> tuple[Thinning, tuple[EpochEnded, ...]]:
    """Return the state with nothing held back, and the last epoch where it was not shown yet."""
    return state._replace(held_last=None), () if state.held_last is None else (state.held_last,)


def readable_interval(epoch_s: float, epochs: int) -> int:
    """Return the k of 1, 2, 5, 10, 20, ... that leaves about five epochs a second, yet ten epochs in all.

    >>> readable_interval(0.01, 200), readable_interval(0.001, 1_000_000), readable_interval(30.0, 60)
    (20, 200, 1)
    """
    every = 1
    for candidate in (digit * 10**power for power in range(7) for digit in (1, 2, 5)):
        if every * epoch_s >= LINE_S or candidate > epochs // 10:
            break
        every = candidate
    return every


class _Metric(NamedTuple):
    heading: str
    key: str


def _metric_columns(first: EpochEnded, monitor: str, width: int | None) -> tuple[_Metric, ...]:
    scores = (
        "val_accuracy",
        "val_rmse",
        "train_accuracy",
        "train_rmse",
        "val_subset_accuracy",
        "train_subset_accuracy",
    )
    score = next((key for key in scores if key in first.metrics), None)
    keys = dict.fromkeys(("train_loss", "val_loss", monitor, score))
    columns = tuple(_Metric(key, key) for key in keys if key is not None and key in first.metrics)
    if width is not None and len(_heading(first, columns)) > width:
        return tuple(_Metric("monitored", c.key) if c.key == monitor and len(monitor) > 9 else c for c in columns)
    return columns


def _heading(first: EpochEnded, columns: tuple[_Metric, ...]) -> str:
    cells = [f"{column.heading:>{_width(column)}}" for column in columns]
    return "  ".join(["epoch".rjust(_epoch_width(first)), *cells, "     lr", "  time"])


def _epoch_line(event: EpochEnded, columns: tuple[_Metric, ...]) -> str:
    epoch = f"{event.epoch}/{event.epochs}".rjust(_epoch_width(event))
    cells = [f"{_number(event.metrics.get(column.key)):>{_width(column)}}" for column in columns]
    end = [f"{event.learning_rate:7.2g}", f"{_duration(event.seconds):>6}"]
    return "  ".join([epoch, *cells, *end, *(["best"] if event.improved else [])])


def _width(column: _Metric) -> int:
    return max(len(column.heading), 8)


def _epoch_width(event: EpochEnded) -> int:
    return max(len("epoch"), 2 * len(str(event.epochs)) + 1)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.4f}"
    return f"{value:.1f}" if 1e3 <= abs(value) < 1e6 else f"{value:.2e}"


def _duration(seconds: float) -> str:
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f}ms" if seconds >= 0.00995 else f"{seconds * 1000:.1f}ms"
    if seconds >= 99.5:
        return f"{seconds:.0f}s"
    return f"{seconds:.1f}s" if seconds >= 9.95 else f"{seconds:.2f}s"


def _ordinal(number: int) -> str:
    return f"{number}nd" if number == 2 else f"{number}th"


def _started_lines(event: Started) -> tuple[str, str]:
    held_out = f", {event.validation_rows:,} to validate on" if event.validation_rows else ""
    better = "lower" if event.direction == "min" else "higher"
    best = f"; best by {event.monitor} ({better} is better)" if event.monitor else ""
    epochs = f"{event.epochs:,} epoch{'' if event.epochs == 1 else 's'}"
    size = f"{event.parameters:,} parameters"
    if event.seeds > 1:
        size = f"{event.seeds} seeds of {event.parameters // event.seeds:,} parameters each; the first is kept"
    return (
        f"{event.name}: {event.train_rows:,} rows to train on{held_out}; {size}",
        f"{'up to ' if event.may_stop else ''}{epochs} of {event.steps_per_epoch:,} x {event.batch_size:,} rows{best}",
    )


def _last_line(event: Stopped | Finished) -> str:
    if isinstance(event, Stopped):
        return f"stopped after epoch {event.epoch}: {event.reason}"
    epochs = f"{event.epoch} epoch{'' if event.epoch == 1 else 's'} in {_duration(event.seconds)} ({event.reason})"
    several = f"{event.seeds} seeds, the first of which is kept" if event.seeds > 1 else f"{event.models} models"
    which = f"epoch {event.best_epoch} with" if event.models == 1 else f"mean of {several}:"
    best = f"; best: {which} {event.monitor} {_number(event.best_metric)}"
    return epochs + (best if event.monitor and event.best_epoch else "")


@contextmanager
def _live(stream: TextIO) -> Iterator[Callback]:
    from rich import progress as bars  # here: 0.1 s that only a terminal needs
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    live = bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=None),
        bars.TextColumn("{task.fields[steps]}"),
        bars.TextColumn("{task.fields[speed]}"),
        bars.TextColumn("{task.fields[loss]}"),
        bars.TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        expand=True,
    )

    def write(line: str) -> None:
        text = Text(line)
        text.highlight_regex(r"  best$", "bold green")
        console.print(text)

    lines, bar = epoch_lines(write, width=console.width), _bar(live)

    def show(event: Event) -> None:
        if isinstance(event, Started):  # not before: what is told about the data comes first
            live.start()
        lines(event)
        bar(event)

    try:
        yield show
    finally:
        live.stop()


def _bar(live: "Progress") -> Callback:
    task = live.add_task("starting", total=None, steps="", speed="", loss="")
    steps_per_epoch = 0
    moving = False

    def move(event: Progressed | EpochEnded, loss: float) -> None:
        nonlocal moving
        total = event.epochs * steps_per_epoch
        if not moving:  # after a resume the steps done before say nothing about the speed now
            live.reset(task, total=total, completed=event.step)
            moving = True
        live.update(
            task,
            completed=event.step,
            description=f"epoch {event.epoch}/{event.epochs}",
            steps=f"step {event.step}/{total}",
            speed=f"{event.samples_per_second:,.0f} samples/s" if event.samples_per_second > 0 else "",
            loss=f"loss {_number(loss)}",
        )

    def show(event: Event) -> None:
        nonlocal steps_per_epoch
        match event:
            case Started():
                steps_per_epoch = event.steps_per_epoch
                live.update(task, description="compiling")
            case Progressed():
                move(event, event.loss)
            case EpochEnded():
                move(event, event.metrics.get("train_loss", math.nan))
            case Checkpointed() | Stopped() | Finished():
                pass
            case _:
                assert_never(event)

    return show
