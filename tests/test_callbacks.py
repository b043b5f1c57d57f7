"""Watchers of a run: nothing is lost in metrics.jsonl, and a person reads the important epochs, terminal or not."""

import io
import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.training.callbacks import LINE_S, Thinning, flush, metrics_logger, progress, readable_interval, thin
from mmjax.training.event_types import Checkpointed, EpochEnded, Event, Finished, Progressed, Started, Stopped


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def epoch(number: int, *, of: int, seconds: float = 1.0, improved: bool = False, **metrics: float) -> EpochEnded:
    found = {"train_loss": 1.0 / number, "val_loss": 2.0 / number, "val_accuracy": 0.5} | metrics
    return EpochEnded(number, of, 4 * number, found, 1e-3, seconds, 420.0, improved)


def run(epochs: int, *, seconds: float = 1.0, best: int = 1, last: int | None = None) -> list[Event]:
    """A run whose metric improves up to epoch `best` and which early stopping ends after `last`."""
    end = last or epochs
    body = [epoch(i, of=epochs, seconds=seconds, improved=i <= best) for i in range(1, end + 1)]
    stopped = [Stopped(end, "no better val_loss for 2 epochs")] if last else []
    return [
        Started("iris", epochs, 4, 32, 105, 15, 12345, "val_loss", "min"),
        Progressed(1, epochs, 2, 4 * epochs, 420.0, 0.5),
        *body,
        Checkpointed(4 * end, "checkpoints/last"),
        *stopped,
        Finished(end, best, "val_loss", 2.0 / best, end * seconds, "early stopping" if last else "all epochs done"),
    ]


def shown(events: list[Event], stream: io.StringIO) -> str:
    with progress(stream) as show:
        for event in events:
            show(event)
    return stream.getvalue()


def test_without_early_stopping_all_epochs_are_promised():
    started, *rest = run(4)
    assert "\n4 epochs of 4 x 32 rows; best by" in shown([started._replace(may_stop=False), *rest], io.StringIO())


def test_plain_lines_read_so():
    assert shown(run(4, best=2, last=3), io.StringIO()) == (
        "iris: 105 rows to train on, 15 to validate on; 12,345 parameters\n"
        "up to 4 epochs of 4 x 32 rows; best by val_loss (lower is better)\n"
        "epoch  train_loss  val_loss  val_accuracy       lr    time\n"
        "  1/4      1.0000    2.0000        0.5000    0.001   1.00s  best\n"
        "  2/4      0.5000    1.0000        0.5000    0.001   1.00s  best\n"
        "  3/4      0.3333    0.6667        0.5000    0.001   1.00s\n"
        "stopped after epoch 3: no better val_loss for 2 epochs\n"
        "3 epochs in 3.00s (early stopping); best: epoch 2 with val_loss 1.0000\n"
    )


def test_undefined_missing_tiny_and_huge_values_keep_the_columns():
    events = [
        Started("x", 3, 1, 8, 8, 0, 5, "train_loss", "min"),
        epoch(1, of=3, train_loss=math.nan, val_rmse=123456.7),
        epoch(2, of=3, train_loss=1.234e-5, val_loss=math.inf),
        EpochEnded(3, 3, 3, {"train_loss": 0.0}, 2.5e-7, 123.4, 1.0, improved=True),
    ]
    lines = shown(events, io.StringIO()).splitlines()
    assert lines[0] == "x: 8 rows to train on; 5 parameters"
    assert lines[3:] == [
        "  1/3         nan    2.0000        0.5000    0.001   1.00s",
        "  2/3    1.23e-05       inf        0.5000    0.001   1.00s",
        "  3/3      0.0000         -             -  2.5e-07    123s  best",
    ]


def test_of_seeds_one_model_is_told_and_that_the_first_is_kept():
    started, *rest = run(1)
    assert isinstance(started, Started)
    events = [started._replace(parameters=30, seeds=3), *rest[:-1], rest[-1]._replace(models=3, seeds=3)]
    lines = shown(events, io.StringIO()).splitlines()
    assert lines[0].endswith("; 3 seeds of 10 parameters each; the first is kept")
    assert lines[-1].endswith("; best: mean of 3 seeds, the first of which is kept: val_loss 2.0000")


def test_without_a_monitor_no_epoch_is_called_best():
    start, *_ = run(1)
    assert isinstance(start, Started)
    events = [start._replace(monitor=""), epoch(1, of=1, seconds=0.0042), Finished(1, 0, "", math.nan, 0.04, "done")]
    lines = shown(events, io.StringIO()).splitlines()
    assert lines[1] == "up to 1 epoch of 4 x 32 rows"
    assert lines[3:] == [
        "  1/1      1.0000    2.0000        0.5000    0.001   4.2ms",
        "1 epoch in 40ms (done)",
    ]


def test_regression_shows_its_rmse_and_the_monitored_metric():
    events = [Started("x", 1, 1, 8, 8, 4, 5, "val_mae", "min"), EpochEnded(1, 1, 1, {}, 1e-3, 1.0, 1.0, improved=True)]
    metrics = {"train_loss": 1.0, "val_loss": 1.0, "val_rmse": 1.5, "val_mae": 1.25, "val_r2": 0.5}
    events[1] = events[1]._replace(metrics=metrics)
    heading = shown(events, io.StringIO()).splitlines()[2]
    assert heading.split() == ["epoch", "train_loss", "val_loss", "val_mae", "val_rmse", "lr", "time"]


def test_fast_epochs_are_thinned_but_first_and_last_stay_in_order():
    lines = shown(run(200, seconds=0.01, best=47, last=93), io.StringIO()).splitlines()
    numbers = [int(found[1]) for line in lines if (found := re.match(r" *(\d+)/200 ", line))]
    assert numbers == [1, 20, 40, 60, 80, 93]
    assert "best: epoch 47 with val_loss" in lines[-1]
    assert lines.count("(showing every 20th epoch)") == 1


def test_slow_epochs_are_all_shown():
    assert shown(run(30, seconds=0.5), io.StringIO()).count("/30 ") == 30


@given(
    st.lists(st.tuples(st.floats(0.0, 2.0), st.booleans()), min_size=1, max_size=60),
    st.integers(0, 100),
)
@settings(max_examples=50, deadline=None)
def test_thinning_shows_first_and_last_and_each_once_in_order(epochs: list[tuple[float, bool]], more: int):
    state, out = Thinning(), []
    events = [
        epoch(i + 1, of=len(epochs) + more, seconds=seconds, improved=improved or i == 0)
        for i, (seconds, improved) in enumerate(epochs)
    ]
    for event in events:
        state, ready = thin(state, event)
        out += ready
    state, held = flush(state)
    out += held
    numbers = [event.epoch for event in out]
    assert numbers == sorted(set(numbers))
    assert {1, len(epochs)} <= set(numbers)
    assert flush(state)[1] == ()


@given(st.floats(1e-6, 100.0), st.integers(1, 1_000_000))
@settings(max_examples=50, deadline=None)
def test_interval_is_readable_or_leaves_ten_epochs(seconds: float, epochs: int):
    every = readable_interval(seconds, epochs)
    assert every == 1 or every <= epochs // 10
    assert every * seconds >= LINE_S or every * 2.5 >= epochs // 10 or every == 5_000_000


def test_piped_output_has_no_control_codes():
    assert "\x1b" not in shown(run(3), io.StringIO())


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in shown(run(3), Terminal())


@pytest.mark.parametrize("width", [80, 120])
def test_terminal_shows_the_same_lines_and_a_bar(width: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain, live = shown(run(4, best=2, last=3), io.StringIO()), shown(run(4, best=2, last=3), Terminal())
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", live).replace("\r", "")
    for line in plain.splitlines():
        assert line in text
    assert "compiling" in text or "epoch 1/4" in text
    assert live.rstrip().endswith(("\x1b[?25h", "\x1b[2K"))  # the cursor is back, the bar is gone


def test_terminal_is_left_whole_when_the_run_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()

    def fail_midway() -> None:
        with progress(stream) as show:
            show(run(3)[0])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    assert "\x1b[?25h" in stream.getvalue()


def test_a_long_monitor_gives_way_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    name = "val_balanced_accuracy"
    start = Started("iris", 9, 4, 32, 105, 15, 12345, name, "max")
    live = shown([start, epoch(1, of=9, val_balanced_accuracy=0.75)], Terminal())
    heading = next(line for line in live.splitlines() if "train_loss" in line)
    assert "monitored" in heading
    assert f"best by {name} (higher is better)" in re.sub(r"\s+", " ", live)


def test_metrics_jsonl_has_every_epoch_and_null_for_nan(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write = metrics_logger(path)
    for event in run(50, seconds=0.001):
        write(event)
    write(epoch(51, of=51, val_loss=math.nan, train_loss=-math.inf))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 52))
    assert rows[0] == {
        "epoch": 1,
        "step": 4,
        "improved": True,
        "seconds": 0.001,
        "samples_per_second": 420.0,
        "learning_rate": 1e-3,
        "train_loss": 1.0,
        "val_loss": 2.0,
        "val_accuracy": 0.5,
    }
    assert rows[-1]["val_loss"] is None
    assert rows[-1]["train_loss"] is None


def test_a_line_cut_short_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n{"epoch": 2, "st')
    metrics_logger(path)(epoch(2, of=3))
    lines = path.read_text().splitlines()
    assert lines[:2] == ['{"epoch": 1}', '{"epoch": 2, "st']
    assert json.loads(lines[2])["epoch"] == 2
