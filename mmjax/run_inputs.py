"""What decides a run, kept in its folder and told before it trains: config, schema, split, audit, decisions."""

import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path

from mmjax.analysis.log import get_logger
from mmjax.analysis.tables import shorten
from mmjax.artifact.files import write_json_atomic
from mmjax.artifact.runs import DECISIONS, RESOLVED
from mmjax.backend import Backend
from mmjax.config import Config
from mmjax.config_load import config_to_yaml
from mmjax.data.findings import audit_lines, finding_json
from mmjax.data.prepare import Prepared
from mmjax.data.prepared import split_sizes
from mmjax.data.quarantine import QUARANTINE, quarantine_lines, write_quarantine
from mmjax.data.split import split_json
from mmjax.recipe import Decision, as_yaml
from mmjax.schema import schema_to_json


def save_inputs(run_dir: Path, config: Config, prepared: Prepared, decisions: tuple[Decision, ...]) -> None:
    """Keep what decides the run: the resolved config, the schema, the realised split, the recipe's decisions."""
    save_decisions(run_dir, config, decisions)
    (run_dir / "schema.json").write_bytes(schema_to_json(prepared.schema))
    save_split(run_dir, prepared)
    write_json_atomic(run_dir / "audit.json", [finding_json(finding) for finding in prepared.findings])
    if prepared.quarantined:
        write_quarantine(run_dir / QUARANTINE, prepared.quarantined)


def save_split(run_dir: Path, prepared: Prepared) -> None:
    """Keep which part each row is in."""
    with (run_dir / "split.json").open("w", encoding="utf-8") as file:
        file.writelines(split_json(prepared.split, prepared.names))


def save_decisions(run_dir: Path, config: Config, decisions: tuple[Decision, ...]) -> None:
    """Keep the resolved config, and why each field is as it is."""
    (run_dir / RESOLVED).write_text(config_to_yaml(config), encoding="utf-8")
    write_json_atomic(run_dir / DECISIONS, [decision._asdict() for decision in decisions])


def tell_inputs(
    tell: Callable[[str], None],
    run_dir: Path,
    backend: Backend,
    prepared: Prepared,
    decisions: tuple[Decision, ...],
) -> None:
    """Tell the user where the run is, what it runs on, what happened to the data and what the recipe decided."""
    sizes = ", ".join(f"{count} {name}" for name, count in split_sizes(prepared).items())
    lines = [
        f"run {run_dir} on {backend.platform} ({backend.device}), {backend.threads} threads",
        *backend.notes,
        f"data: {len(prepared.names)} rows: {sizes}; target {shorten(prepared.schema.target.column, 60)}: "
        f"{prepared.schema.target.reason}",
        *prepared.notes,
        *quarantine_lines(prepared.quarantined, run_dir / QUARANTINE),
        *audit_lines(prepared.findings, run_dir / "audit.json"),
    ]
    for line in lines:
        tell(line)
        get_logger().info("told", line=line)
    if decisions:
        decided = ", ".join(f"{d.key}={as_yaml(d.value).replace(' ', '')}" for d in decisions)
        width = min(100, shutil.get_terminal_size((100, 24)).columns)
        told = f"decided: {decided}; why: {run_dir / DECISIONS}"
        tell(textwrap.fill(told, width, subsequent_indent="  ", break_on_hyphens=False))
    get_logger().info("decided", decisions=[decision._asdict() for decision in decisions])
