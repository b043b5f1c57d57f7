"""What the terminal says when a run is over: metrics, classes, confusion, and the commands that come next."""

import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from msgspec import UNSET

from mmjax.analysis.report import (
    OUT_OF_FOLD,
    Report,
    baseline_table,
    beaten,
    class_columns,
    confused_pairs,
    evaluated_splits,
    headline_split,
    interval_cell,
    kept_epoch,
    leak_line,
    member_spreads,
    members_note,
    members_title,
    metric_cell,
    modality_table,
    split_words,
    weight_column,
    zero_line,
)
from mmjax.analysis.tables import (
    GAP,
    Table,
    cell_width,
    count,
    number,
    printable,
    shorten,
    table_lines,
    table_width,
)
from mmjax.config import Config
from mmjax.schema import NAMES_IMAGES, Schema

if TYPE_CHECKING:
    from rich.table import Table as RichTable

HEADLINE = (
    *("accuracy", "balanced_accuracy", "top_3_accuracy", "top_5_accuracy", "precision", "recall", "f1"),
    *(
        "subset_accuracy",
        "hamming_loss",
        "f1_macro",
        "roc_auc",
        "pr_auc",
        "log_loss",
        "refined_log_loss",
        "brier",
        "ece",
        "mcc",
        "rmse",
        "mae",
        "r2",
        "mape",
    ),
)
"""The metrics shown, in this order; report.json has all."""

MOST_CLASSES = 20
"""More classes than this are not shown one by one."""
WORST = 10
"""How many classes or confusions are shown instead."""
DEFAULT_REGISTRY = "registry"


def print_results(report: Report, stream: TextIO) -> None:
    """Write the results to `stream`: coloured tables on a terminal, the same content as plain lines elsewhere."""
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        _print_rich(report, stream)
        return
    text = results_text(report, width=80)
    encoding = stream.encoding or "utf-8"
    stream.write("\n" + text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def results_text(report: Report, *, width: int) -> str:
    """Return the results as plain aligned lines of at most `width` characters where names allow it."""
    blocks = ["\n".join(table_lines(table)) for table in result_tables(report, width=width)]
    return "\n\n".join([*_first_line(report), _summary(report), *blocks]) + "\n"


def result_tables(report: Report, *, width: int) -> tuple[Table, ...]:
    """Return the tables of the results: metrics by split; for classes also their scores and the confusion."""
    split = headline_split(report)
    if split is None:
        return ()
    tables = [_metrics_table(report, width), *_members_table(report)]
    if (baselines := baseline_table(report, seconds=True)) is not None:
        lines = [line for note in baselines.note.splitlines() for line in textwrap.wrap(note, width)]
        tables.append(_narrowed(baselines, width)._replace(note="\n".join(lines)))
    if (added := modality_table(report)) is not None:
        tables.append(added._replace(note="\n".join(textwrap.wrap(added.note, width))))
    if report["per_class"].get(split):
        tables.append(_class_table(report, split, width))
    if report["confusion"].get(split):
        tables.append(_confusion_table(report, split, width))
    return tuple(tables)


def _narrowed(table: Table, width: int) -> Table:
    """Return the table without what does not fit: its settings, then numbers from the right."""
    while table_width(table) > width and len(table.header) > 2:
        gone = table.text_columns - 1 if table.text_columns > 1 else len(table.header) - 1
        rows = tuple(row[:gone] + row[gone + 1 :] for row in table.rows)
        text_columns = table.text_columns - (gone < table.text_columns)
        table = table._replace(
            header=table.header[:gone] + table.header[gone + 1 :], rows=rows, text_columns=text_columns
        )
    return table


def _first_line(report: Report) -> list[str]:
    """Return what comes before everything else: that a baseline is better."""
    verdict = beaten(report)
    return [printable(verdict)] if verdict else []


def _summary(report: Report) -> str:
    model = report["model"]
    if model["task"] == "multilabel":
        what, classes = f"{len(model['classes'])} labels, {shorten(printable(model['target']), 60)}", ""
    else:
        what = f"{model['task']} of {printable(model['target'])}"
        classes = f" into {len(model['classes'])} classes" if model["classes"] else ""
    kept = kept_epoch(report)
    kept = f"; kept {kept}" if kept else ""
    return f"{model['name']}: {what}{classes}{kept}"


def _metrics_table(report: Report, width: int) -> Table:
    by_split = {split: report["metrics"][split] for split in evaluated_splits(report)}
    first, *others = by_split
    spread = [f"95 % of {first}"] if report.get("intervals", {}).get(first) else []
    names = [name for name in HEADLINE if any(name in metrics for metrics in by_split.values())]
    sizes = report["data"]["split_sizes"]
    size = {split: sizes.get("train" if split == OUT_OF_FOLD else split) for split in by_split}
    rows = (
        ("rows", count(size[first]), *("" for _ in spread), *(count(size[split]) for split in others)),
        *(
            (
                *(name, metric_cell(report, first, name), *(interval_cell(report, first, name) for _ in spread)),
                *(metric_cell(report, split, name) for split in others),
            )
            for name in names
        ),
    )
    positive = report["model"]["positive_class"]
    about = f"precision, recall, f1, roc_auc and pr_auc are about class {printable(positive)}" if positive else ""
    lines = [about] if about else []
    lines += [line for told in (zero_line(report), leak_line(report)) for line in textwrap.wrap(told, width)]
    title = "Metrics (weighted)" if weight_column(report) else "Metrics"
    return Table(title, ("metric", first, *spread, *others), rows, note="\n".join(lines))


def _members_table(report: Report) -> Iterator[Table]:
    split, spreads = member_spreads(report, HEADLINE)
    if spreads:
        rows = tuple((one.metric, *map(number, one[1:])) for one in spreads)
        header = ("metric", "mean", "std", "lowest", "highest")
        yield Table(f"{members_title(report)} ({split})", header, rows, note=members_note(report))


def _class_table(report: Report, split: str, width: int) -> Table:
    scores = report["per_class"][split]
    note = ""
    if len(scores) > MOST_CLASSES:
        note = (
            f"the {WORST} of {len(scores)} {class_columns(report)[0].lower()} with the lowest f1; report.json has all"
        )
        scores = sorted(scores, key=lambda row: -1.0 if row["f1"] is None else row["f1"])[:WORST]
    title, first, columns = class_columns(report)
    where = split_words(report, split)
    numbers = [(*(number(row[c]) for c in columns), count(row["support"])) for row in scores]
    table = Table(f"{title} ({where})", ("", *columns, "support"), tuple(("", *row) for row in numbers), note=note)
    room = max(width - table_width(table), 8)
    names = [shorten(printable(row["class"]), room) for row in scores]
    rows = tuple((name, *row) for name, row in zip(names, numbers, strict=True))
    return table._replace(header=(first, *table.header[1:]), rows=rows)


def _confusion_table(report: Report, split: str, width: int) -> Table:
    names = [printable(name) for name in report["model"]["classes"]]
    matrix, where = report["confusion"][split], split_words(report, split)
    if len(names) <= MOST_CLASSES:
        for table in (_named_confusion(names, matrix, where), _numbered_confusion(names, matrix, where)):
            if table is not None and table_width(table) <= width:
                return table
    return _pairs_table(names, matrix, where, width)


def _named_confusion(names: list[str], matrix: list[list[float]], where: str) -> Table | None:
    short = [shorten(name, 12) for name in names]
    if len(set(short)) < len(short):
        return None
    rows = tuple((shorten(names[i], 24), *map(count, row)) for i, row in enumerate(matrix))
    return Table(f"Confusion ({where}; rows: true, columns: predicted)", ("", *short), rows, diagonal=True)


def _numbered_confusion(names: list[str], matrix: list[list[float]], where: str) -> Table:
    digits = len(str(len(names)))
    rows = tuple((f"{i + 1:>{digits}} {shorten(names[i], 20)}", *map(count, row)) for i, row in enumerate(matrix))
    header = ("", *(str(i + 1) for i in range(len(names))))
    title = f"Confusion ({where}; rows: true, columns: predicted, by number)"
    return Table(title, header, rows, diagonal=True)


def _pairs_table(names: list[str], matrix: list[list[float]], where: str, width: int) -> Table:
    room = max((width - 24) // 2, 8)
    rows = tuple(
        (shorten(pair.truth, room), shorten(pair.predicted, room), count(pair.rows), f"{pair.share:.1%}")
        for pair in confused_pairs(matrix, names, WORST)
    )
    note = "share: of the rows of that true class; report.json has the whole matrix" if rows else "no row was mistaken"
    return Table(f"Most confused ({where})", ("true", "predicted", "rows", "share"), rows, note=note, text_columns=2)


def _print_rich(report: Report, stream: TextIO) -> None:
    from rich.console import Console  # here: only a terminal needs it
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    console.print(Text("\n" + "\n".join([*_first_line(report), _summary(report)]), style="bold"))
    for table in result_tables(report, width=console.width):
        console.print(Text("\n" + table.title, style="bold cyan"))
        console.print(_rich_table(table))
        if table.note:
            console.print(Text(table.note, style="dim"))


def _rich_table(table: Table) -> "RichTable":
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for i, heading in enumerate(table.header):
        made.add_column(Text(heading), justify="left" if i < table.text_columns else "right", no_wrap=True)
    for i, row in enumerate(table.rows):
        made.add_row(*(Text(cell, style=_style(table, i, j, cell)) for j, cell in enumerate(row)))  # Text: no markup
    return made


def _style(table: Table, row: int, column: int, cell: str) -> str:
    if not table.diagonal or column == 0:
        return ""
    if cell == "0":
        return "dim"
    return "green" if column == row + 1 else "yellow"


def closing_lines(
    model: str, config: Config, *, registry: str = DEFAULT_REGISTRY, python: str | None = None
) -> list[str]:
    """Return the shell commands that evaluate, predict with and serve this very model, a line each, quoted.

    `model` is `NAME:VERSION`; `registry` is named in the commands unless it is the default. `python` is by default
    what the user can type: `python` where PATH finds this one, else its path.
    """
    source = config.data.tabular or config.data.image
    data = source.path if source is not None else "DATA"
    left_out = source is not None and source.on_invalid != "fail"  # training went on without rows of this very data
    drop, report = (["--on-invalid", word] if left_out else [] for word in ("drop", "report"))
    tail = [] if registry == DEFAULT_REGISTRY else ["--registry", registry]
    commands = {
        "evaluate": ["--data", data, *drop],
        "predict": ["--input", data, "--output", "predictions.csv", *report],
        "serve": [],
    }
    start = this_python() if python is None else python
    lines = [[start, "-m", f"mmjax.{door}", "--model", model, *options, *tail] for door, options in commands.items()]
    return [f"{door + ':':<10}{shlex.join(line)}" for door, line in zip(commands, lines, strict=True)]


def this_python() -> str:
    """Return how to call the running Python from here: by name, by a path below the working directory, or in full."""
    running = Path(sys.executable)
    for name in ("python", "python3"):
        found = shutil.which(name)
        if found is not None and Path(found).absolute() == running.with_name(name):
            return name
    return str(running.relative_to(Path.cwd())) if running.is_relative_to(Path.cwd()) else str(running)


def describe_schema(schema: Schema, *, width: int = 80) -> str:
    """Return a table of the target and the columns: name, kind, why; long reasons go on below."""
    target = schema.target
    classes = f" into {len(target.classes)} classes" if target.classes else ""
    why = f"; {target.reason}" if target.reason else ""
    rows = [(target.column, "target", f"{target.task}{classes}{why}")]
    if target.labels:
        rows = [
            (x.column, "label", f"holds where it is {x.positive!r}, not where {x.negative!r}") for x in target.labels
        ]
    if schema.image is not None:
        share = "" if schema.image.crop_share is UNSET else f" of {schema.image.crop_share:.3g}"
        size = f"{schema.image.height_px} x {schema.image.width_px} pixels"
        size += f", {schema.image.resize}{share}, {schema.image.filter}"
        rows += [(column, "image", size) for column in schema.image.columns]
    told = {name for name, *_ in rows}
    columns = [c for c in schema.columns if c.name not in (*target.columns, *told)]
    rows += [(c.name, "image" if c.reason == NAMES_IMAGES else c.kind, c.reason) for c in columns]
    rows = [(shorten(printable(name), 24), kind, printable(why)) for name, kind, why in rows]
    rows = [("column", "kind", "why"), *rows]
    first, second = max(cell_width(row[0]) for row in rows), max(cell_width(row[1]) for row in rows)
    return "".join(_described(row, first, second, width) for row in rows)


def _described(row: tuple[str, str, str], first: int, second: int, width: int) -> str:
    name, kind, why = row
    start = name + " " * (first - cell_width(name)) + GAP + kind.ljust(second) + GAP
    indent = first + second + 2 * len(GAP)
    lines = textwrap.wrap(why, max(width - indent, 20)) or [""]
    return "\n".join([start + lines[0], *(" " * indent + line for line in lines[1:])]).rstrip() + "\n"
