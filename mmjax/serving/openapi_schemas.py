"""JSON Schemas of what goes over the wire: those of our structs, and those that follow from the models served."""

from collections.abc import Sequence
from typing import Any

import msgspec

from mmjax.data.cells import LARGEST
from mmjax.schema import Column, Schema
from mmjax.serving.engine import Served
from mmjax.serving.mixed import rows_at_most
from mmjax.serving.open_inference_request import DATATYPES, WireInfer
from mmjax.serving.wire import MAX_IMAGES, MAX_ROWS, Problem, Reply

Json = dict[str, Any]

ANY_CELL: Json = {"type": ["string", "number", "boolean", "null"]}
TEXT: Json = {"type": "string"}
STATUS: Json = {"type": "object", "required": ["status"], "properties": {"status": TEXT}}


def components(models: Sequence[Served]) -> Json:
    """Return `components.schemas`: structs of the wire, and a request body for each table that is served."""
    _, made = msgspec.json.schema_components((Reply, Problem, WireInfer), ref_template="#/components/schemas/{name}")
    made |= {"Health": HEALTH, "ModelSummary": SUMMARY, "Model": MODEL, "Metrics": METRICS}
    made |= {"TensorSpec": TENSOR_SPEC, "Tensor": TENSOR, "InferReply": INFER_REPLY, "ModelMetadata": METADATA}
    made["WireInput"]["properties"]["datatype"] = {"enum": list(DATATYPES)}
    made["WireInput"]["properties"]["shape"] |= {"minItems": 1, "maxItems": 4}
    tables = [model for model in models if model.modality == "table"]
    for model in tables:
        made[f"Row.{_label(model)}"] = row_schema(model.predictor.schema)
        made[f"Rows.{_label(model)}"] = body_schema(model, tables)
    for model in models:
        schema = model.predictor.schema
        made[f"MixedRow.{_label(model)}"] = mixed_row_schema(schema)
        made[f"MixedRows.{_label(model)}"] = mixed_body_schema(model, models)
        made[f"Form.{_label(model)}"] = form_schema(schema)
    return made


def mixed_bodies(models: Sequence[Served]) -> Json:
    """Return the content of the body of `/predict`."""
    kinds = {"application/json": "MixedRows", "multipart/form-data": "Form"}
    return {
        media: {"schema": {"anyOf": [reference(f"{kind}.{_label(model)}") for model in models]}}
        for media, kind in kinds.items()
    }


BASE64: Json = {"type": ["string", "null"], "format": "byte", "description": "an image file in base64, or missing"}
FILE: Json = {"type": "string", "format": "binary"}


def mixed_row_schema(schema: Schema) -> Json:
    """Return what a row by column name is where images may stand beside cells."""
    images = schema.image.columns if schema.image else ()
    made = row_schema(schema)
    return _with_images(made, schema, dict.fromkeys(images, BASE64))


def form_schema(schema: Schema) -> Json:
    """Return what a form for one row is: a field for each cell, as texts of a CSV file are, and a file an image."""
    made = row_schema(schema)
    made["properties"] = dict.fromkeys(made["properties"], TEXT)
    for column in schema.of_kind("numeric"):
        number = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
        made["properties"][column.name] = {"anyOf": [number, {"enum": ["", *schema.missing_markers]}]}
    for column in schema.of_kind("datetime"):
        made["properties"][column.name] = cell_schema(column, schema) if column.datetime_format == "iso" else TEXT
    if schema.image is None:
        return made
    told = "A part for each column; images may be left out, or all the others (tools trip over saying so as a schema)."
    made["properties"] |= dict.fromkeys(schema.image.columns, FILE)
    return made | {"description": told, "required": [], "minProperties": 1}


def _with_images(row: Json, schema: Schema, images: dict[str, Json]) -> Json:
    """Return the schema of a row with columns of images; see `data.encode.left_out` for what may be absent."""
    if not images:
        return row
    row["properties"] |= images
    features = row.pop("required")
    some_image = {"anyOf": [{"required": [name]} for name in images]}
    if not features:
        return row | some_image
    no_feature = {"not": {"anyOf": [{"required": [name]} for name in features]}}
    return row | {"anyOf": [{"required": features}, {"allOf": [some_image, no_feature]}]}


def mixed_body_schema(model: Served, models: Sequence[Served]) -> Json:
    """Return what a JSON body of `/predict` is."""
    rows = array_of(reference(f"MixedRow.{_label(model)}"), minItems=1, maxItems=rows_at_most(model.predictor.schema))
    return body_of(model, models, {"rows": rows})


def table_body(models: Sequence[Served]) -> Json:
    """Return the schema of the body of `/predict/tabular`: that of one of the tables served."""
    tables = [model for model in models if model.modality == "table"]
    return {"anyOf": [reference(f"Rows.{_label(model)}") for model in tables]} if tables else {"type": "object"}


def reference(name: str) -> Json:
    """Return a reference to a component."""
    return {"$ref": f"#/components/schemas/{name}"}


def array_of(items: Json, **bounds: int) -> Json:
    """Return the schema of a list."""
    return {"type": "array", "items": items, **bounds}


def _label(model: Served) -> str:
    return model.name.name if model.name.version is None else f"{model.name.name}.{model.name.version}"


def cell_schema(column: Column, schema: Schema) -> Json:
    """Return what a cell of a column may be."""
    missing = [{"enum": [None, "", *schema.missing_markers]}]
    match column.kind:
        case "numeric":
            number = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
            return {"description": "a number, or missing (null)", "anyOf": [number, *missing]}
        case "datetime" if column.datetime_format == "iso":
            return {
                "description": "a date (ISO 8601), or missing (null)",
                "anyOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}, *missing],
            }
        case "datetime":
            return {"type": ["string", "null"], "description": f"a date as {column.datetime_format}"}
        case _:  # what the vocabulary does not hold is an unknown category
            return ANY_CELL


def row_schema(schema: Schema) -> Json:
    """Return what a row by column name is: every feature, and whatever else the table has."""
    names = {column.name: ANY_CELL for column in schema.columns} | dict.fromkeys(schema.target.columns, ANY_CELL)
    names |= {name: ANY_CELL for name in (schema.id_column, schema.weight_column) if name}
    names |= {column.name: cell_schema(column, schema) for column in schema.features}
    return {
        "type": "object",
        "required": [column.name for column in schema.features],
        "properties": names,
        "additionalProperties": False,
    }


def body_schema(model: Served, tables: Sequence[Served]) -> Json:
    """Return what a request to a table is: rows by name, or cells in order; the model is named where it must be."""
    schema = model.predictor.schema
    cells = [cell_schema(column, schema) for column in schema.features]
    in_order = {"type": "array", "prefixItems": cells, "items": False, "minItems": len(cells), "maxItems": len(cells)}
    rows = {"rows": reference(f"Row.{_label(model)}"), "features": in_order}
    return body_of(model, tables, {key: array_of(row, minItems=1, maxItems=MAX_ROWS) for key, row in rows.items()})


def body_of(model: Served, others: Sequence[Served], forms: dict[str, Json]) -> Json:
    """Return what a JSON body is that has exactly one of `forms`; the model is named where it must be among others."""
    name = model.name
    needed = ["model"] if len({other.name.name for other in others}) > 1 else []
    needed += ["version"] if sum(other.name.name == name.name for other in others) > 1 else []
    common: Json = {
        "model": {"enum": list(dict.fromkeys((name.name, str(model))))},
        "version": {"enum": [name.version]},
    }
    for key, words in common.items():
        words["enum"] += [None] if key not in needed and None not in words["enum"] else []
    common["deterministic"] = {"type": "boolean"}
    return {
        "description": f"Rows for {model}.",
        "oneOf": [
            {
                "type": "object",
                "required": [key, *needed],
                "properties": {key: items, **common},
                "additionalProperties": False,
            }
            for key, items in forms.items()
        ],
    }


def image_bodies() -> Json:
    """Return the content of the body of `/predict/image`."""
    file = {"type": "string", "format": "binary"}
    form = {
        "type": "object",
        "required": ["file"],
        "properties": {"file": array_of(file, minItems=1, maxItems=MAX_IMAGES)},
        "additionalProperties": False,
    }
    kinds = ("image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif")
    return {"multipart/form-data": {"schema": form}} | {kind: {"schema": file} for kind in kinds}


def _record(properties: Json, *, optional: Sequence[str] = ()) -> Json:
    """Return the schema of an object that has these keys and no other."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


WHOLE: Json = {"type": "integer"}
MAYBE_WHOLE: Json = {"type": ["integer", "null"]}
NAMED = _record({"name": TEXT, "version": MAYBE_WHOLE})
HEALTH = _record(
    {
        "status": {"enum": ["ok", "starting", "stopping"]},
        "timestamp": {"type": "string", "format": "date-time"},
        "model_loaded": {"type": "boolean"},
        "models": array_of(NAMED),
        "system": _record(
            {
                "memory": _record({"process_bytes": MAYBE_WHOLE, "total_bytes": WHOLE}),
                "disk": _record({"free_bytes": WHOLE, "total_bytes": WHOLE}),
                "device": _record({"platform": TEXT, "kind": TEXT, "count": WHOLE}),
            }
        ),
    }
)
_SUMMARY: Json = {
    "name": TEXT,
    "version": MAYBE_WHOLE,
    "digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "modality": {"enum": ["table", "image", "multimodal"]},
    "task": {"enum": ["classification", "regression", "multilabel"]},
    "classes": array_of(TEXT),
    "features": array_of(TEXT),
}
SUMMARY: Json = {"type": "object", "required": list(_SUMMARY), "properties": _SUMMARY}
_MODEL = _SUMMARY | {
    "target": TEXT,
    "class_values": array_of({"type": ["string", "number", "boolean"]}),
    "uncertainty": {"type": "boolean"},
    "schema": {"type": "object"},
    "metrics": {"type": "object"},
    "card": TEXT,
}
_ADDED = {"answers": array_of({"enum": ["sets", "intervals", "abstained", "quantiles"]})}
MODEL: Json = {"type": "object", "required": list(_MODEL), "properties": _MODEL | _ADDED}
_SAMPLE = _record(
    {
        "name": TEXT,
        "labels": {"type": "object", "additionalProperties": TEXT},
        "value": {"type": ["number", "null"]},
    }
)
METRICS: Json = {
    "type": "object",
    "additionalProperties": _record({"type": TEXT, "help": TEXT, "samples": array_of(_SAMPLE)}),
}

# ---- the Open Inference Protocol

SHAPE = array_of(WHOLE)
DATATYPE: Json = {"enum": list(DATATYPES)}
TENSOR_SPEC = _record(
    {"name": TEXT, "datatype": DATATYPE, "shape": SHAPE, "parameters": {"type": "object"}}, optional=["parameters"]
)
TENSOR = _record(
    {
        "name": TEXT,
        "datatype": DATATYPE,
        "shape": SHAPE,
        "data": array_of({"type": ["number", "string", "boolean"]}),
        "parameters": {"type": "object"},
    },
    optional=["data", "parameters"],
)
INFER_REPLY = _record(
    {
        "model_name": TEXT,
        "model_version": TEXT,
        "id": TEXT,
        "parameters": _record({"warnings": TEXT}),
        "outputs": array_of(reference("Tensor")),
    },
    optional=["model_version", "id", "parameters"],
)
METADATA = _record(
    {
        "name": TEXT,
        "versions": array_of(TEXT),
        "platform": TEXT,
        "inputs": array_of(reference("TensorSpec")),
        "outputs": array_of(reference("TensorSpec")),
    }
)
