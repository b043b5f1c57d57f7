"""The run's diary: structured events as JSON lines, beside what the terminal shows."""

import json
import sys
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, NoReturn


def configure_logging(run_dir: Path | None) -> None:
    """Send every log event to `run_dir/log.jsonl`, one JSON object a line; None: warnings and errors to stderr.

    A line holds `timestamp` (UTC, ISO 8601), `level`, `event` and the values that were given. Each line is appended by
    itself, so that a killed run keeps all it said and two processes may write to one file.
    """
    import structlog  # here: a quarter of a second that `import mmjax` does without

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _write_to(run_dir / "log.jsonl" if run_dir is not None else None),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info" if run_dir is not None else "warning"),
        cache_logger_on_first_use=False,
    )


def get_logger() -> Any:
    """Return the logger: `log.info("event name", key=value)`; it obeys the latest `configure_logging`."""
    import structlog

    if not structlog.is_configured():
        configure_logging(None)
    return structlog.get_logger()


def _write_to(path: Path | None) -> Callable[[Any, str, MutableMapping[str, Any]], NoReturn]:
    import structlog

    def write(logger: Any, method: str, event: MutableMapping[str, Any]) -> NoReturn:
        first = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
        line = json.dumps({**first, **event}, default=str) + "\n"
        if path is None:
            sys.stderr.write(line)
        else:
            with path.open("a", encoding="utf-8") as file:
                file.write(line)
        raise structlog.DropEvent  # written: nothing is left for a logger of structlog's own to do

    return write
