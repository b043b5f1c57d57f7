"""The body of `POST /v2/models/NAME/infer`: JSON, then perhaps raw tensors, become an InferRequest, strictly."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from mmjax.errors import did_you_mean
from mmjax.serving.open_inference_tensors import DTYPES, Tensor, check_shape, from_binary, from_json
from mmjax.serving.table_bodies import json_words, no_json, placed, refuse_doubled
from mmjax.serving.wire import MAX_ROWS, MAX_TABLE_BYTES, Refused

Parameters = dict[str, str | int | float | bool | None] | msgspec.UnsetType | None

DATATYPES = ("BYTES", *DTYPES)
REQUEST_PARAMETERS: dict[str, type] = {
    "timeout": int,
    "binary_data_output": bool,
    "deterministic": bool,
    "priority": int,
}
"""Of a request. `priority` is taken from clients that send it and changes nothing: there is one queue."""
INPUT_PARAMETERS: dict[str, type] = {"binary_data_size": int, "content_type": str}
"""Of an input. `content_type` is how MLServer's clients name their codec; the datatype says all that is needed."""
OUTPUT_PARAMETERS: dict[str, type] = {"binary_data": bool, "classification": int}
MOST_TIMEOUT_US = 3_600_000_000
MOST_INPUTS = 4096
MOST_ID = 1024
"""Characters of an id."""


class WireInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input as it is sent."""

    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: Parameters = msgspec.UNSET


class WireOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An output that is asked for."""

    name: str
    parameters: Parameters = msgspec.UNSET


class WireInfer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON of a request."""

    inputs: list[WireInput]
    id: str | msgspec.UnsetType | None = msgspec.UNSET
    outputs: list[WireOutput] | msgspec.UnsetType | None = msgspec.UNSET
    parameters: Parameters = msgspec.UNSET


class Asked(NamedTuple):
    """An output that is asked for."""

    name: str
    binary: bool
    classes: int = 0
    """Above 0: the best so many classes with their names, instead of the tensor."""


class InferRequest(NamedTuple):
    """What a request asks."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Asked, ...]
    """Empty: all of the model, as `binary` says."""
    id: str | None = None
    binary: bool = False
    timeout_us: int = 0
    """Microseconds for waiting and computing together; 0 is no bound."""
    deterministic: bool = False


_decoder = msgspec.json.Decoder(WireInfer)


def decode_infer(body: bytes, header_length: int | None) -> InferRequest:
    """Return the request in a body whose first `header_length` bytes (None: all) are JSON; Refused where it is none."""
    if header_length is not None and not 0 < header_length <= len(body):
        told = f"expected 1 to {len(body):,}, the length of the body, got {header_length:,}"
        raise Refused(400, "bad-header-length", f"Inference-Header-Content-Length: {told}")
    header = body if header_length is None else body[:header_length]
    if len(header) > MAX_TABLE_BYTES:
        told = f"expected at most {MAX_TABLE_BYTES:,} bytes of JSON, got {len(header):,}; send tensors as binary data"
        raise Refused(413, "too-large", f"body: {told}")
    wire = _parsed(header)
    if len(wire.inputs) > MOST_INPUTS:
        told = f"expected at most {MOST_INPUTS:,} of them, got {len(wire.inputs):,}"
        raise Refused(413, "too-many-inputs", f"inputs: {told}")
    inputs = _inputs(wire.inputs, memoryview(body)[len(header) :])
    refuse_doubled(header, _keys(wire))
    return _request(wire, inputs)


def _parsed(header: bytes) -> WireInfer:
    try:
        return _decoder.decode(header)
    except msgspec.ValidationError as error:
        raise Refused(400, "bad-request", _told(str(error))) from error
    except RecursionError as error:
        raise Refused(400, "bad-json", "body: expected data of at most 4 dimensions, got a deeper nesting") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        told = no_json(header, error, instead="write null for a missing number, or send binary data")
        raise Refused(400, "bad-json", f"body: expected JSON, got {told}") from error


def _told(message: str) -> str:
    """Return msgspec's message in the words of JSON, with the place in front.

    >>> _told("Expected `int`, got `float` - at `$.inputs[0].shape[1]`")
    'inputs[0].shape[1]: expected a whole number, got a number'
    """
    path, told = placed(message)
    return f"{'body' if path is None else path.removeprefix('.')}: {json_words(told)}"


def _keys(wire: WireInfer) -> int:
    """Return how many keys the objects of a request have."""
    objects = (wire, *wire.inputs, *(wire.outputs or ()))
    set_ = sum(getattr(item, name) is not msgspec.UNSET for item in objects for name in item.__struct_fields__)
    return set_ + sum(len(item.parameters or ()) for item in objects)


# ---- inputs


def _inputs(inputs: Sequence[WireInput], data: memoryview) -> tuple[Tensor, ...]:
    """Return the tensors, those of raw bytes from `data` in order; Refused with all that is wrong with them."""
    found, wrong, at = [], [], 0
    for given in inputs:
        where = f"input '{given.name[:100]}'"
        try:
            parameters = _known(given.parameters, INPUT_PARAMETERS, where)
            size = parameters.get("binary_data_size")
            _check_input(given, size, where)
            if size is not None:
                if at + size > len(data):
                    told = f"expected {size:,} bytes after the JSON, got {max(len(data) - at, 0):,}"
                    raise Refused(400, "bad-tensor", f"{where}, binary_data_size: {told}")
                values = from_binary(given.datatype, given.shape, data[at : at + size], where)
                at += size
            else:
                assert given.data is not msgspec.UNSET
                values = from_json(given.datatype, given.shape, memoryview(given.data), where)
            found.append(Tensor(given.name, given.datatype, values))
        except Refused as refused:
            wrong += refused.problems
    if wrong:
        raise Refused(400, "bad-tensor", wrong[:20])
    if at != len(data):
        told = f"expected {at:,} bytes of binary data after the JSON, as the inputs say, got {len(data):,}"
        raise Refused(400, "bad-tensor", f"body: {told}")
    return tuple(found)


def _check_input(given: WireInput, size: int | None, where: str) -> None:
    """Refuse an input whose datatype, shape or data cannot be."""
    wrong = []
    if given.datatype not in DATATYPES:
        wrong.append(f"{where}, datatype: expected one of {', '.join(DATATYPES)}, got '{given.datatype[:40]}'")
    if told := check_shape(given.shape, f"{where}, shape"):
        wrong.append(told)
    if (given.data is msgspec.UNSET) == (size is None):
        got = "none" if size is None else "both"
        wrong.append(f"{where}: expected data in JSON, or parameters.binary_data_size and raw bytes, got {got}")
    if given.datatype == "BYTES" and not wrong and math.prod(given.shape) > MAX_ROWS:
        wrong.append(f"{where}, shape: expected at most {MAX_ROWS:,} elements of BYTES, got {math.prod(given.shape):,}")
    if size is not None and size < 0:
        wrong.append(f"{where}, binary_data_size: expected 0 or more bytes, got {size}")
    if wrong:
        raise Refused(400, "bad-tensor", wrong)


# ---- what is asked


def _request(wire: WireInfer, inputs: tuple[Tensor, ...]) -> InferRequest:
    parameters = _known(wire.parameters, REQUEST_PARAMETERS, "parameters")
    timeout = parameters.get("timeout", 0)
    if not 0 <= timeout <= MOST_TIMEOUT_US:
        told = f"expected microseconds from 1 to {MOST_TIMEOUT_US:,}, or 0 for none"
        raise Refused(400, "bad-parameter", f"parameters, timeout: {told}, got another number")
    if isinstance(wire.id, str) and len(wire.id) > MOST_ID:
        raise Refused(400, "bad-request", f"id: expected at most {MOST_ID:,} characters, got {len(wire.id):,}")
    binary = parameters.get("binary_data_output", False)
    return InferRequest(
        inputs=inputs,
        outputs=_outputs(wire.outputs or (), binary=binary),
        id=wire.id if isinstance(wire.id, str) else None,
        binary=binary,
        timeout_us=timeout,
        deterministic=parameters.get("deterministic", False),
    )


def _outputs(outputs: Iterable[WireOutput], *, binary: bool) -> tuple[Asked, ...]:
    found = []
    for output in outputs:
        where = f"output '{output.name[:100]}'"
        parameters = _known(output.parameters, OUTPUT_PARAMETERS, where)
        classes = parameters.get("classification", 0)
        if "classification" in parameters and not 0 < classes < 1 << 31:
            raise Refused(
                400, "bad-parameter", f"{where}, classification: expected 1 class or more, got another number"
            )
        found.append(Asked(output.name, parameters.get("binary_data", binary), classes))
    return tuple(found)


UNSUPPORTED = {"shared_memory": "shared memory is", "sequence": "sequences of requests are"}


def _known(given: Parameters, known: Mapping[str, type], where: str) -> dict[str, Any]:
    """Return parameters, nulls left out; Refused naming those that are unknown, unsupported or of another type."""
    found = {name: value for name, value in (given or {}).items() if value is not None}
    wrong = []
    for name, value in list(found.items())[:100]:
        unsupported = next((what for start, what in UNSUPPORTED.items() if name.startswith(start)), None)
        if unsupported:
            wrong.append(f"{where}, {name[:100]}: {unsupported} not supported; send the data with each request")
        elif name not in known:
            wrong.append(f"{where}: unknown parameter '{name[:100]}'; remove it{did_you_mean(name[:100], known)}")
        elif type(value) is not known[name]:
            wrong.append(f"{where}, {name}: expected {known[name].__name__}, got {type(value).__name__}")
    if wrong:
        raise Refused(400, "bad-parameter", wrong[:20])
    return found
