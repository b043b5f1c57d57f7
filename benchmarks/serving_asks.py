"""What `serving.py` asks of the servers: rows as JSON, rows as raw tensors, images alone and in forms."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from serving_models import matrix, png
from serving_servers import Ask

CLIENTS, IMAGES = 32, 16
"""Clients that ask for one thing each; images in a form, and in the largest compiled batch."""
CONNECTIONS = 500
"""Most connections of an open loop."""
TIMES = (2, 5, 10)
"""Times of the peak that are offered."""
SHARES = (25, 50, 75, 90)
"""Percent of the peak that are offered."""
DIFFERENT = 64
"""Different single rows and images that are sent in turn."""
LENGTH = "Inference-Header-Content-Length"
BOUNDARY = "mmjax-benchmark"


def rows_as_json(rows: int, columns: int, different: int = 1) -> Ask:
    """Return an Ask for rows of numbers; all servers understand it."""
    numbers = matrix(rows * different, columns).astype(float).round(4)
    bodies = [json.dumps({"features": part.tolist()}).encode() for part in np.split(numbers, different)]
    return Ask("/predict/tabular", tuple(bodies), {"Content-Type": "application/json"}, _in_json, rows)


def rows_as_binary(model: str, rows: int, columns: int) -> Ask:
    """Return an Ask for the same rows as raw FP32, with raw outputs, by the Open Inference Protocol."""
    raw = matrix(rows, columns).tobytes()
    tensor: dict[str, Any] = {"name": "features", "shape": [rows, columns], "datatype": "FP32"}
    names = ("probabilities", "predictions")
    head = json.dumps(
        {
            "inputs": [tensor | {"parameters": {"binary_data_size": len(raw)}}],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in names],
        }
    ).encode()
    headers = {"Content-Type": "application/octet-stream", LENGTH: str(len(head))}
    return Ask(f"/v2/models/{model}/infer", (head + raw,), headers, _in_binary, rows)


def single_images() -> Ask:
    """Return an Ask for one image, its file as the body."""
    bodies = tuple(png(number) for number in range(DIFFERENT))
    return Ask("/predict/image", bodies, {"Content-Type": "image/png"}, _in_json)


def images_in_forms(images: int) -> Ask:
    """Return an Ask for several images in a form."""
    files = [png(number) for number in range(DIFFERENT)]
    bodies = tuple(_form(files[start : start + images]) for start in range(0, DIFFERENT, images))
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return Ask("/predict/image", bodies, headers, _in_json, images)


def _form(files: Sequence[bytes]) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="%d.png"\r\n'
    head += "Content-Type: image/png\r\n\r\n"
    parts = [(head % number).encode() + content + b"\r\n" for number, content in enumerate(files)]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def _in_json(reply: bytes) -> int:
    return len(json.loads(reply)["predictions"])


def _in_binary(reply: bytes) -> int:
    """Return the rows of the first output; the tensors' bytes have to be there."""
    head, _ = json.JSONDecoder().raw_decode(reply.decode("latin-1"))
    sizes = [output["parameters"]["binary_data_size"] for output in head["outputs"]]
    return head["outputs"][0]["shape"][0] if sum(sizes) < len(reply) else 0
