"""The audit: what is odd about data that were split, before a model is trained on them.

Every check is silent on data that are merely random: it asks whether chance explains what it sees, and whether it
matters. Severity comes from the config.
"""

from collections.abc import Callable, Iterable

from mmjax.config import Audit
from mmjax.data.audit_columns import class_findings, column_findings
from mmjax.data.audit_copies import copy_findings, group_findings
from mmjax.data.audit_drift import drift_findings
from mmjax.data.audit_images import look_alike_findings
from mmjax.data.audit_images import perceptual_hashes as perceptual_hashes
from mmjax.data.audit_leaks import leak_findings
from mmjax.data.audit_rows import Rows as Rows
from mmjax.data.audit_rows import hash_cells as hash_cells
from mmjax.data.audit_target import target_findings
from mmjax.data.findings import finding_line
from mmjax.data.prepared import Finding
from mmjax.errors import DataError

_Check = Callable[[Rows], list[Finding]]
_CHECKS: tuple[tuple[tuple[str, ...], _Check], ...] = (
    (("duplicates", "overlap", "conflicts"), copy_findings),
    (("overlap",), group_findings),
    (("near_duplicates", "conflicts"), look_alike_findings),
    (("leaks",), leak_findings),
    (("columns",), column_findings),
    (("classes",), class_findings),
    (("tails",), target_findings),
    (("drift",), drift_findings),
)
"""The keys of `audit` that each function can find something for."""


def audit(rows: Rows, settings: Audit) -> tuple[Finding, ...]:
    """Return everything odd about these rows, with the severity that the config gives; what it ignores is left out."""
    severity = {key: getattr(settings, key) for keys, _ in _CHECKS for key in keys}
    found = [
        finding for keys, check in _CHECKS if any(severity[key] != "ignore" for key in keys) for finding in check(rows)
    ]
    kept = [f._replace(severity=severity[f.check]) for f in found if severity[f.check] != "ignore"]
    order = list(severity)
    return tuple(sorted(kept, key=lambda finding: order.index(finding.check)))


def refuse(findings: Iterable[Finding]) -> None:
    """Raise DataError with every finding whose severity is `fail`; return when there is none."""
    failed = [finding for finding in findings if finding.severity == "fail"]
    if failed:
        raise DataError([f"{finding_line(finding)}; or set audit.{finding.check}: warn" for finding in failed])
