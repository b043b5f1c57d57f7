"""Scores become the reply of `POST /v2/models/NAME/infer`: JSON, then raw tensors for the outputs asked as binary."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from mmjax.artifact.predictor import Predictor, to_predictions
from mmjax.errors import did_you_mean
from mmjax.schema import Schema
from mmjax.serving.open_inference_model import outputs_of
from mmjax.serving.open_inference_request import Asked, InferRequest
from mmjax.serving.open_inference_tensors import DTYPES, pack_texts
from mmjax.serving.wire import ModelName, Refused
from mmjax.training.scoring import Scores

_encode = msgspec.json.Encoder().encode


class Reply(NamedTuple):
    """The body of a reply."""

    body: bytes
    header_length: int | None
    """Length of its JSON; None when it is all JSON."""


def asked_outputs(predictor: Predictor, request: InferRequest) -> tuple[Asked, ...]:
    """Return the outputs to answer with; Refused naming those that are unknown, doubled, or no classes."""
    names = [spec.name for spec in outputs_of(predictor)]
    wrong, seen = [], set()
    for asked in request.outputs:
        name = asked.name[:100]
        if asked.name not in names:
            there = did_you_mean(name, names) or f"; there are {', '.join(names)}"
            wrong.append(f"output '{name}': unknown{there}")
        elif asked.name in seen:
            wrong.append(f"output '{name}': expected it once, got it again")
        elif asked.classes and asked.name != "probabilities":
            wrong.append(f"output '{name}', classification: expected it of 'probabilities', got it of another output")
        seen.add(asked.name)
    if wrong:
        raise Refused(400, "bad-output", list(dict.fromkeys(wrong))[:20])
    return request.outputs or tuple(Asked(name, request.binary) for name in names)


def encode_infer(
    predictor: Predictor,
    scores: Scores,
    model: ModelName,
    outputs: Sequence[Asked],
    *,
    request_id: str | None,
    warnings: Sequence[str] = (),
) -> Reply:
    """Return the reply with these outputs, in order; `request_id` is what the client called its request.

    `warnings` become one text among the reply's parameters, which are scalars in this protocol.
    """
    told, raw = [], []
    for asked in outputs:
        values = _values(predictor, scores, asked)
        binary = _raw(values) if asked.binary else None
        told.append(_tensor(asked.name, values, binary))
        raw.append(binary or b"")
    document: dict[str, Any] = {"model_name": model.name}
    if model.version is not None:
        document["model_version"] = str(model.version)
    if request_id is not None:
        document["id"] = request_id
    if warnings:
        document["parameters"] = {"warnings": "\n".join(warnings)}
    head = _encode(document | {"outputs": told})
    any_binary = any(asked.binary for asked in outputs)
    return Reply(b"".join((head, *raw)), len(head) if any_binary else None)


def _values(predictor: Predictor, scores: Scores, asked: Asked) -> np.ndarray:
    """Return an output as the array it is told as; texts as object."""
    schema = predictor.schema
    match asked.name:
        case "probabilities":
            assert scores.probabilities is not None
            return best_classes(schema, scores.probabilities, asked.classes) if asked.classes else scores.probabilities
        case "uncertainty":
            assert scores.uncertainty is not None
            return scores.uncertainty.reshape(-1)
        case "sets" | "intervals" | "abstained" | "quantiles":
            return getattr(to_predictions(predictor, scores), asked.name)
        case "labels" if schema.target.labels:
            texts = np.array([(label.negative, label.positive) for label in schema.target.labels], dtype=object)
            return texts[np.arange(len(texts))[None, :], scores.prediction]
        case "labels":
            return np.array(schema.target.classes, dtype=object)[scores.prediction]
        case _ if scores.probabilities is None:
            return to_predictions(predictor, scores).prediction
        case _:
            return scores.prediction.astype(np.int64)


def best_classes(schema: Schema, probabilities: np.ndarray, count: int) -> np.ndarray:
    """Return object[N, k], the k most probable classes as `value:index:label`, best first; of equals the first.

    As in Triton's `extension_classification.md`; k is at most the number of classes.
    """
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    classes = schema.target.classes
    found = np.empty(best.shape, dtype=object)
    for i, row in enumerate(best.tolist()):
        found[i] = [f"{probabilities[i, k]}:{k}:{classes[k]}" for k in row]
    return found


def _tensor(name: str, values: np.ndarray, binary: bytes | None) -> dict[str, Any]:
    datatype = next((name for name, dtype in DTYPES.items() if dtype == values.dtype), "BYTES")
    tensor = {"name": name, "datatype": datatype, "shape": values.shape}
    return tensor | (
        {"data": values.reshape(-1).tolist()} if binary is None else {"parameters": {"binary_data_size": len(binary)}}
    )


def _raw(values: np.ndarray) -> bytes:
    if values.dtype == object:
        return pack_texts(values.reshape(-1).tolist())
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
