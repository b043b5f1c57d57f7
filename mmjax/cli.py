"""The command line: one way to run a front door, with the same exit codes and JSON everywhere.

A front door is a module `mmjax/X.py` with a click command or group named `command` that returns a dict (or None) and
ends in `if __name__ == "__main__": run(command)`. Inside it, `echo` prints for people and `json_option` adds `--json`.
Exit codes: 0; 1 a fault of the system or of mmjax; 2 usage or config; 3 data; 4 training; 5 bundle or registry;
130 Ctrl-C, 141 nobody reads the output any more, 143 SIGTERM.
"""

import contextlib
import importlib
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

from mmjax.analysis.tables import Table, printable, table_lines
from mmjax.artifact.files import plain, to_json
from mmjax.errors import BundleError, ConfigError, DataError, MmjaxError, TrainingError, did_you_mean
from mmjax.huge_pages import start_with_huge_pages
from mmjax.interrupts import Terminated, end_in_time, raise_for

if TYPE_CHECKING:
    from mmjax.analysis.compare import Comparison

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "train": "Train, test and register a model from a config.",
        "evaluate": "Score a registered model on data with known answers.",
        "predict": "Write a model's predictions for a CSV or a folder of images.",
        "serve": "Answer requests over HTTP with registered models.",
        "init": "Write a commented config from a look at a CSV or a folder of images.",
        "check": "Check a config and its data without training.",
        "registry": "List, compare, promote and verify registered models.",
        "runs": "List, show, compare and prune training runs.",
    }
)
"""Front door -> the first line of its help, so that `mmjax --help` imports none of them."""

COMPUTING = ("train", "evaluate", "predict", "serve", "check")
"""Front doors that run networks for long, or tell how long that takes."""

json_option = click.option(
    "--json", expose_value=False, is_flag=True, help="Print one JSON object as the last line on standard output."
)
"""Adds `--json`; `run` acts on it, so the command gets no argument."""


all_option = click.option(
    "--all", "everything", is_flag=True, help="Show every metric of every split, and what the recipe decided too."
)
"""Adds `--all` to what compares."""


class Outcome(NamedTuple):
    """How a command ended: its exit code, the object for `--json`, the lines for standard error."""

    exit_code: int
    document: dict[str, Any]
    lines: tuple[str, ...] = ()


def run(command: click.Command, argv: Sequence[str] | None = None, *, name: str | None = None) -> NoReturn:
    """Run the command on `argv` (by default the process's own) and exit with the code of its outcome.

    With `--json` in `argv` everything printed meanwhile goes to standard error, and standard output gets one line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments[: arguments.index("--")] if "--" in arguments else "--json" in arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    silenced = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    with _terminable(as_json=as_json), silenced:
        outcome = _outcome(command, arguments, name or f"python -m mmjax.{command.name}")
    sys.exit(_report(outcome, as_json=as_json))


def echo(text: str = "") -> None:
    """Print a line for people: to standard output, or with `--json` to standard error."""
    click.echo(text)


def echo_table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int | None = None) -> None:
    """Print a table; columns after the first `text_columns` (by default all) hold numbers and are aligned right."""
    left = len(headers) if text_columns is None else text_columns
    print_table(Table("", tuple(headers), tuple(map(tuple, rows)), text_columns=left))


def print_table(table: Table) -> None:
    """Print a Table: drawn on a terminal, else plain aligned columns; control characters in cells are escaped."""
    table = table._replace(rows=tuple(tuple(map(printable, row)) for row in table.rows))
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        _draw(table)
        return
    for line in table_lines(table) if table.title else table_lines(table)[1:]:
        click.echo(line)


def print_comparison(compared: "Comparison", *, everything: bool, same: str = "") -> None:
    """Print a Comparison: what differs in the configs, then the metrics. `same` is told where no more is to be said."""
    from mmjax.analysis.compare import comparison_tables  # here: other doors have no use for it

    if not compared.metrics:
        echo(f"{compared.noise}\n")
    for table in comparison_tables(compared, everything=everything):
        print_table(table)
        echo()
    if same or not compared.config:
        echo(same or "the configs say the same")


def _draw(table: Table) -> None:
    """Draw a table with rich, which only a terminal needs."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    drawn = Drawn(title=table.title or None, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for index, header in enumerate(table.header):
        justify = "left" if index < table.text_columns else "right"
        drawn.add_column(Text(header), justify=justify, overflow="fold")  # a key that is cut cannot be typed
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    Console(highlight=False).print(drawn)
    if table.note:
        click.echo(table.note)


@contextlib.contextmanager
def _terminable(*, as_json: bool) -> Iterator[None]:
    """Turn the first SIGTERM into Terminated, a second one ends the process at once; see that it ends in time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise_for(number)

    stdout = sys.stdout  # `silenced` replaces it

    def last_words(code: int) -> None:
        if stdout.isatty():
            stdout.write("\x1b[?25h\n")  # a progress bar hides the cursor
        told = "ended at once, for it was busy with what cannot be stopped (such as a compilation)"
        with contextlib.redirect_stdout(stdout):
            _report(_failed("interrupted", code, [told]), as_json=as_json)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with end_in_time(last_words):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _outcome(command: click.Command, arguments: list[str], name: str) -> Outcome:
    """Return how the command ended, whatever it raised."""
    try:
        with command.make_context(name, arguments) as context:
            result = command.invoke(context)
        return Outcome(0, plain(result) if isinstance(result, dict) else {})
    except click.exceptions.Exit as ended:
        return Outcome(ended.exit_code, {})
    # The one broad except: the outermost boundary, where a user must never meet a traceback unasked.
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001
        if os.environ.get("MMJAX_DEBUG") == "1":
            traceback.print_exc()
        return _failure(error)


def _failure(error: Exception | KeyboardInterrupt) -> Outcome:
    """Return the exit code and the words for an error."""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            return _failed("usage", 2, ["missing command"])._replace(lines=(error.format_message(),))
        case click.MissingParameter(ctx=click.Context() as context):
            usage = " ".join([context.command_path, *context.command.collect_usage_pieces(context)])
            told = f"{error.format_message()} The command is: {usage}; with --help it says more"
            return _failed("usage", 2, [told])
        case click.ClickException():
            return _failed("usage", 2, [error.format_message()])
        case Terminated():
            return _failed("interrupted", 143, ["terminated"])
        case KeyboardInterrupt():
            return _failed("interrupted", 130, ["interrupted"])
        case BrokenPipeError():
            return _failed("interrupted", 141, ["nobody reads the output"])._replace(lines=())
        case MmjaxError():
            failed = _failed(_type_of(error), error.exit_code, error.problems)
            return failed._replace(document=plain(error.document) | failed.document)
        case OSError() | MemoryError():
            return _failed("system", 1, [str(error) or type(error).__name__])
        case _:
            told = f"{type(error).__name__}: {error} (a fault of mmjax; MMJAX_DEBUG=1 shows the traceback)"
            return _failed("internal", 1, [told])


def _type_of(error: MmjaxError) -> str:
    """Return the word that `--json` uses for this kind of error."""
    match error:
        case ConfigError():
            return "config"
        case DataError():
            return "data"
        case TrainingError():
            return "training"
        case BundleError():
            return "bundle"
        case _:
            return "internal"


def _failed(kind: str, exit_code: int, problems: Sequence[str]) -> Outcome:
    """Return the outcome of an error, each problem on a line of its own."""
    error = {"type": kind, "message": "\n".join(problems), "problems": list(problems)}
    document = plain({"error": error, "exit_code": exit_code})
    return Outcome(exit_code, document, tuple(f"error: {problem}" for problem in document["error"]["problems"]))


def _report(outcome: Outcome, *, as_json: bool) -> int:
    """Print the outcome and return the exit code of the process."""
    try:
        for line in outcome.lines:
            click.echo(line, err=True)
        if as_json:
            click.echo(to_json(outcome.document))
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output once more at its end, and would complain about the same broken pipe there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return outcome.exit_code


class Doors(click.Group):
    """The group of all front doors; a door's module is imported only when it is entered."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the front doors."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Return the front door of that name, imported now; UsageError with the options when there is none."""
        if cmd_name not in COMMANDS:
            ctx.fail(f"no command '{cmd_name}'; there are {', '.join(COMMANDS)}{did_you_mean(cmd_name, COMMANDS)}")
        return importlib.import_module(f"mmjax.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of front doors without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


command = Doors(
    name="mmjax",
    help="Train, evaluate, register and serve models on tables and images from one YAML file.",
    epilog="`mmjax COMMAND --help` tells more; each is also `python -m mmjax.COMMAND`.",
)
command = click.version_option(package_name="mmjax", prog_name="mmjax")(command)


def main() -> NoReturn:
    """Run the console script `mmjax`."""
    if "_MMJAX_COMPLETE" in os.environ:
        command.main(prog_name="mmjax")
    if sys.argv[1:2] and sys.argv[1] in COMPUTING:
        start_with_huge_pages()
    run(command, name="mmjax")
