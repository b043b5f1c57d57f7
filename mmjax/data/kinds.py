"""Which kind a column is, decided from the facts about all its cells, with the reason in words for the user."""

import re
from typing import NamedTuple

from mmjax.config import Inference
from mmjax.data.cells import BOOLEAN_PAIRS, plain_readings
from mmjax.data.facts import Facts, fitting_format
from mmjax.data.schema_file import KIND, DeclaredColumn
from mmjax.schema import Kind

IDENTIFIER_ROWS = 20
"""A column with fewer values is never called an identifier: all distinct says nothing yet."""
ROWS_PER_CATEGORY = 2.0
"""A text column with fewer rows for each distinct value has too little to learn from."""
LONGEST = 100
"""Characters of a cell that a reason quotes."""
MOSTLY = 0.8
"""Share of numbers among distinct values from which a text column looks like a numeric one with mistakes."""
SCHEMA_TOO = f' (a schema file keeps the kind: say "{KIND}": "numeric" there too)'
"""What else there is to do where cells are mended or called missing, so that a column becomes numeric."""
_IDENTIFIER_NAME = re.compile(r"(^|[^a-zA-Z])(id|idx|index|uuid|guid|key|row|rownames?)$|^unnamed: 0$", re.IGNORECASE)
_CAMEL_IDENTIFIER_NAME = re.compile(r"[a-z](Id|ID)$")


class Verdict(NamedTuple):
    """A kind, why, and for datetime the format (see `Column.datetime_format`)."""

    kind: Kind
    reason: str
    datetime_format: str = ""


def decide(facts: Facts, declared: DeclaredColumn | None, inference: Inference) -> Verdict:
    """Return the kind a schema file declares, else the one the cells suggest."""
    found = _from_cells(facts, inference)
    kind = _declared_kind(declared, found.kind) if declared else found.kind
    if kind == found.kind:
        return found
    form = _declared_format(declared, facts) if kind == "datetime" else ""
    return Verdict(kind, f"the schema file says so (it looks {found.kind}: {found.reason})", form)


def _declared_kind(declared: DeclaredColumn, found: Kind) -> Kind:
    if declared.kind is not None:
        return declared.kind
    if declared.enum:
        return "boolean" if declared.type == "boolean" else "categorical"
    match declared.type:
        case "number" | "integer":
            return "numeric"
        case "boolean":
            return "boolean"
        case "string" | None if declared.format is not None:
            return "datetime"
        case "string":
            return found if found in ("identifier", "text", "constant", "boolean") else "categorical"
        case None:
            return found


def _declared_format(declared: DeclaredColumn | None, facts: Facts) -> str:
    stated = declared is not None and declared.format is not None
    return "iso" if stated else fitting_format(facts.traits)[0] or "iso"


def _from_cells(facts: Facts, inference: Inference) -> Verdict:
    if facts.distinct < 2:
        return _constant(facts)
    traits = facts.traits
    if (pair := tuple(sorted(traits.folded))) in BOOLEAN_PAIRS:
        return Verdict("boolean", f"{pair[0]} or {pair[1]}{_gaps(facts)}")
    if facts.all_numbers and not traits.coded:
        return _numeric(facts, inference)
    form, doubt = fitting_format(traits)
    if form:
        return Verdict("datetime", f"dates, {'ISO 8601' if form == 'iso' else form}{_gaps(facts)}", form)
    if facts.all_numbers:
        doubt = "numbers with leading zeros are codes"
    elif looks := written_numbers_doubt(facts):
        return _nearly_numeric(facts, inference, looks)
    elif facts.numbers / facts.distinct >= MOSTLY:
        wrong, others = ", ".join(map(_quoted, traits.wrong[:3])), facts.distinct - facts.numbers
        advice = "mend them or add them to missing_markers"
        return _nearly_numeric(facts, inference, f"all but {others} of its values are numbers: {wrong}; {advice}")
    verdict = _text(facts, inference)
    return verdict._replace(reason=f"{verdict.reason}; {doubt}") if doubt else verdict


def _nearly_numeric(facts: Facts, inference: Inference, why: str) -> Verdict:
    """Return text or categorical: such cells are all different as numbers are, which does not make them identifiers."""
    kind, reason, _ = _text(facts, inference)
    if kind == "identifier" and not _named_like_an_identifier(facts.name):
        kind = "text"
    return Verdict(kind, f"{reason}; {why}{SCHEMA_TOO}")


def _named_like_an_identifier(name: str) -> bool:
    return bool(_IDENTIFIER_NAME.search(name) or _CAMEL_IDENTIFIER_NAME.search(name))


def written_numbers_doubt(facts: Facts) -> str:
    """Return that most texts are numbers written for people and how to write them, or an empty string."""
    others = facts.distinct - facts.numbers - facts.written
    if facts.written <= others or facts.numbers + facts.written < MOSTLY * facts.distinct:
        return ""
    shown = facts.traits.written[0]
    plain = " or ".join(plain_readings(shown))
    wrong = [text for text in facts.traits.wrong if not plain_readings(text)]
    but = f" (but for {others:,}{': ' + ', '.join(map(_quoted, wrong[:3])) if wrong else ''})" if others else ""
    return (
        f"looks like numbers written {shown!r}{but}: write them with a point and no separators or signs ({plain}) to "
        "learn from them as numbers"
    )


def _quoted(text: str) -> str:
    """Return a cell in quotes; the beginning of a long one, as a cell may hold megabytes."""
    return repr(text) if len(text) <= LONGEST else f"{text[:LONGEST]!r} ... ({len(text):,} characters)"


def _gaps(facts: Facts) -> str:
    return f", {facts.missing:,} missing" if facts.missing else ""


def _constant(facts: Facts) -> Verdict:
    if not facts.distinct:
        return Verdict("constant", "every cell is missing")
    (only,) = facts.traits.first
    if not facts.missing:
        return Verdict("constant", f"always {_quoted(only)}")
    return Verdict(
        "constant",
        f"always {_quoted(only)} or missing ({facts.missing:,} of {facts.rows:,}); if that tells something, "
        "declare it categorical in the schema file",
    )


def _numeric(facts: Facts, inference: Inference) -> Verdict:
    traits = facts.traits
    if traits.whole and (why := _row_number(facts, inference)):
        return Verdict("identifier", why)
    some = f" ({', '.join(sorted(traits.first, key=float))})" if facts.distinct <= len(traits.first) else ""
    kind = "whole numbers" if traits.whole else "numbers"
    return Verdict("numeric", f"{kind}, {facts.distinct:,} distinct values{some}{_gaps(facts)}")


def _row_number(facts: Facts, inference: Inference) -> str:
    """Return why whole numbers only number the rows, or an empty string."""
    share = facts.distinct / facts.rows
    if facts.missing or facts.rows < IDENTIFIER_ROWS or share < inference.identifier_unique_ratio:
        return ""
    start = f"whole numbers, {facts.distinct:,} distinct values in {facts.rows:,} rows,"
    if _named_like_an_identifier(facts.name):
        return f"{start} named like an identifier"
    if facts.distinct < facts.rows:
        return ""
    if facts.traits.rising:
        return f"{start} rising from row to row"
    return f"{start} without gaps" if facts.traits.highest - facts.traits.lowest == facts.rows - 1 else ""


def _text(facts: Facts, inference: Inference) -> Verdict:
    distinct, present = facts.distinct, facts.rows - facts.missing
    words = facts.words / distinct
    counts = f"text, {distinct:,} distinct values"
    if words > inference.text_mean_words:
        return Verdict("text", f"free text: {words:.1f} words on average, more than {inference.text_mean_words:g}")
    if present >= IDENTIFIER_ROWS and distinct / present >= inference.identifier_unique_ratio:
        return Verdict("identifier", f"{counts} in {present:,} cells{_gaps(facts)}")
    if distinct > inference.max_categories:
        return Verdict("text", f"{counts}, more than {inference.max_categories:,}{_gaps(facts)}")
    if facts.rows >= IDENTIFIER_ROWS and facts.rows / distinct < ROWS_PER_CATEGORY:
        return Verdict("text", f"{counts} in {facts.rows:,} rows: fewer than {ROWS_PER_CATEGORY:g} rows a value")
    return Verdict("categorical", f"{counts}{_gaps(facts)}")
