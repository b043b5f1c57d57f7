"""What the audit found, in lines for people."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.audit_rows import counted
from mmjax.data.prepared import Finding

SHOWN = 12
"""Findings told before the rest are only counted; all of them are in the run's `audit.json`."""
EXAMPLES = 4


def finding_line(finding: Finding) -> str:
    """Return one line: what, examples, what to do."""
    more = ", ..." if finding.found > EXAMPLES or len(finding.examples) > EXAMPLES else ""
    examples = f" ({', '.join(finding.examples[:EXAMPLES])}{more})" if finding.examples else ""
    return f"audit.{finding.check}: {finding.what}{examples}; {finding.advice}"


def finding_json(finding: Finding) -> dict[str, Any]:
    """Return what a file holds of a finding: all but its rows one by one."""
    return {name: value for name, value in finding._asdict().items() if name != "leaked"}


def leaked_rows(findings: Iterable[Finding]) -> np.ndarray:
    """Return the test rows that are copies of training rows, i64[M] in order: places in the batch."""
    return np.array(sorted({row for finding in findings for row in finding.leaked}), np.int64)


def audit_lines(findings: Sequence[Finding], kept: Path | None = None) -> list[str]:
    """Return a line for each of the first findings, those that fail first, and where all of them are."""
    ordered = sorted(findings, key=lambda finding: finding.severity != "fail")
    lines = [finding_line(finding) for finding in ordered[:SHOWN]]
    more = f"; {len(ordered) - SHOWN} more findings" if len(ordered) > SHOWN else ""
    if lines and kept is not None:
        are = "is" if len(ordered) == 1 else "are"
        lines.append(f"audit: {counted(len(ordered), 'finding')} {are} kept in {kept}{more}")
    elif more:
        lines.append(f"audit{more}")
    return lines
