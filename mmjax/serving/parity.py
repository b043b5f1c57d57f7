"""The server's ways for a parity check: each row as the bytes of a request, through wire and engine, or over HTTP."""

import asyncio
import base64
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.artifact.bundle import BundleContents
from mmjax.artifact.parity import (
    ROW_BY_ROW,
    SAME,
    Answers,
    Comparison,
    answers_of,
    compare,
    formed,
    joined,
    label_tuples,
    read_classes,
    rounding,
    row_by_row,
)
from mmjax.artifact.predictor import Predictor
from mmjax.artifact.sample import Sample, as_bytes, is_missing, row_mappings, typed_rows
from mmjax.client_http import ServerError
from mmjax.data.cells import cell_text
from mmjax.errors import BundleError, DataError
from mmjax.schema import Columns, Schema
from mmjax.serving.answering import answer
from mmjax.serving.client import connected, reply_to
from mmjax.serving.engine import Engine, Served, make_engine, stop, warm
from mmjax.serving.image_bodies import image_columns, image_files
from mmjax.serving.mixed import columns_of_form, columns_of_json, decode_mixed
from mmjax.serving.table_bodies import decode_table, table_columns
from mmjax.serving.wire import ModelName, Refused, encode_reply, words_of

NO_NUMBER = "non-finite-output"
"""The server's word for an answer of NaN: it gives none."""


def compare_server(predictor: Predictor, sample: Sample) -> Comparison:
    """Return the Comparison of wire and engine in this process, one request a row, with the bundle row by row."""
    expected = _finite(row_by_row(predictor, row_mappings(sample.columns)))
    got = server_answers(predictor, sample)
    offset = predictor.schema.target.offset
    return compare("server, in process", got, ROW_BY_ROW, expected, tolerance=0.0, why=SAME, offset=offset)


def compare_live(contents: BundleContents, predictor: Predictor, sample: Sample, url: str) -> Comparison:
    """Return the Comparison of a live server, one request a row, with the bundle row by row.

    ConfigError when nothing answers at `url`; BundleError when it serves another model, or refuses a row.
    """
    expected = _finite(row_by_row(predictor, row_mappings(sample.columns)))
    got, server = live_answers(predictor, sample, url)
    why = f"another process on {server}: f32 may be added in another order"
    allowed, offset = rounding(contents, server), predictor.schema.target.offset
    return compare("live server", got, ROW_BY_ROW, expected, tolerance=allowed, why=why, offset=offset)


def compare_forms(predictor: Predictor, sample: Sample) -> list[Comparison]:
    """Return the Comparison of forms of fields and files, read as the server does, with the bundle row by row.

    None for a model that takes no forms of both.
    """
    schema = predictor.schema
    if schema.modality != "multimodal":
        return []
    expected = row_by_row(predictor, row_mappings(sample.columns))
    rows = (columns_of_form(schema, *form_body(schema, row)) for row in row_mappings(sample.columns))
    got = joined([answers_of(predictor.predict(row)) for row in rows])
    offset = schema.target.offset
    why = "server, forms of fields and files"
    return [compare(why, got, ROW_BY_ROW, expected, tolerance=0.0, why=SAME, offset=offset)]


def form_body(schema: Schema, row: Mapping[str, Any]) -> tuple[str, bytes]:
    """Return (boundary, body) of the multipart form that tells a row: texts as in a CSV file, images as files."""
    line, images = uuid.uuid4().hex, schema.image.columns if schema.image else ()
    parts = []
    for name, cell in row.items():
        is_image = name in images
        value = (b"" if is_missing(cell) else as_bytes(cell)) if is_image else cell_text(cell).encode()
        file = '; filename="image"' if is_image else ""
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        parts += [f'--{line}\r\nContent-Disposition: form-data; name="{quoted}"{file}\r\n\r\n'.encode(), value, b"\r\n"]
    return line, b"".join([*parts, f"--{line}--\r\n".encode()])


def bodies(schema: Schema, sample: Sample, model: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield the body of a request for each row: JSON with typed cells, or the bytes of an image file.

    Images beside cells are in base64.
    """
    if schema.modality == "image":
        assert schema.image is not None
        yield from map(as_bytes, sample.columns[schema.image.columns[0]])
        return
    images = {name: formed(sample.columns[name], as_base64) for name in image_columns_of(schema, sample.columns)}
    for row in typed_rows(schema, sample.columns | images):
        yield json.dumps({"rows": [row], **model}, ensure_ascii=False, allow_nan=False).encode()


def server_answers(predictor: Predictor, sample: Sample) -> Answers:
    """Return the Answers of wire and engine to a request for each row; BundleError for a row that they refuse."""
    modality, name = predictor.schema.modality, ModelName(predictor.config.name, None)
    served = Served(name, predictor, modality, largest=1, description={})
    engine = make_engine({"": served}, queue=1)
    try:
        warm(engine)
        return joined(asyncio.run(_replies(engine, engine.serving[""], sample)))
    finally:
        stop(engine)


async def _replies(engine: Engine, served: Served, sample: Sample) -> list[Answers]:
    schema, found = served.predictor.schema, []
    for row, body in enumerate(bodies(schema, sample, {}), 1):
        try:
            found.append(reply_answers(schema, json.loads(await _reply(engine, served, body))))
        except (Refused, DataError) as error:
            if not isinstance(error, Refused) or error.reason != NO_NUMBER:
                raise _refused("server, in process", row, error.problems) from error
            found.append(_no_answer(schema))
    return found


async def _reply(engine: Engine, served: Served, body: bytes) -> bytes:
    """Return the reply to one request, by the steps of `mmjax.serving.routes`."""
    schema = served.predictor.schema
    match schema.modality:
        case "table":
            columns = table_columns(schema, decode_table(body))
        case "image":
            columns = image_columns(schema, image_files("image/*", body))
        case "multimodal":
            columns = columns_of_json(schema, decode_mixed(body).rows)
    answered = await answer(engine, served, columns, request_id="")
    words = words_of(served.predictor, answered.scores)
    return encode_reply(words, served.name, seconds=answered.infer_s, request_id="")


def live_answers(predictor: Predictor, sample: Sample, url: str) -> tuple[Answers, str]:
    """Return the Answers of a live server to a request for each row, and the platform it computes on."""
    schema, found = predictor.schema, []
    kind = schema.modality
    with connected(url, predictor.digest) as live:
        for row, body in enumerate(bodies(schema, sample, {"model": live.name, "version": live.version}), 1):
            try:
                found.append(reply_answers(schema, reply_to(live, body, kind=kind)))
            except ServerError as error:
                if error.reason != NO_NUMBER:
                    raise _refused(
                        f"live server {url}", row, [f"{error.status}: {'; '.join(error.problems)}"]
                    ) from error
                found.append(_no_answer(schema))
        return joined(found), live.platform


def image_columns_of(schema: Schema, columns: Columns) -> list[str]:
    """Return the columns of images that are there."""
    return [name for name in (schema.image.columns if schema.image else ()) if name in columns]


def as_base64(cell: Any) -> str:
    """Return an image as JSON has it."""
    return base64.b64encode(as_bytes(cell)).decode()


def reply_answers(schema: Schema, reply: Mapping[str, Any]) -> Answers:
    """Return the Answers in a reply of the server."""
    if schema.target.labels:
        return Answers(np.array(reply["probabilities"], np.float64), label_tuples(reply["labels"]))
    if schema.target.classes:
        return Answers(np.array(reply["probabilities"], np.float64), read_classes(schema.target, reply["labels"]))
    return Answers(np.array(reply["predictions"], np.float64)[:, None], None)


def _refused(path: str, row: int, problems: Sequence[str]) -> BundleError:
    return BundleError(f"{path}: expected an answer to row {row}, as the bundle gives one, got {'; '.join(problems)}")


def _finite(answers: Answers) -> Answers:
    """Return the Answers with NaN in rows that are not finite, which a server refuses to answer."""
    finite = np.isfinite(answers.values).all(axis=1)
    return answers._replace(values=np.where(finite[:, None], answers.values, np.nan))


def _no_answer(schema: Schema) -> Answers:
    """Return the Answers for one row that has none."""
    classes = schema.target.classes
    return Answers(np.full((1, len(classes) or 1), np.nan), np.array([None], dtype=object) if classes else None)
