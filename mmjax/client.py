"""`mmjax.Client`: a server of mmjax from Python. It needs no JAX: only NumPy and the standard library.

with mmjax.Client("http://localhost:8000") as client:
    client.predict([{"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}])
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, cast
from urllib.parse import quote

import numpy as np

from mmjax.client_binary import as_matrix, binary_requests, read_binary
from mmjax.client_bodies import (
    Request,
    Rows,
    as_images,
    by_name,
    has_images,
    image_names,
    image_requests,
    mixed_requests,
    named_images,
    refuse_none,
    table_requests,
)
from mmjax.client_http import Reply, ServerError, ask, close, make_server, send
from mmjax.frames import Frame, ImageFile, answers_in_a_line, frame_columns, is_frame

__all__ = ["Answers", "Client", "Model", "ServerError"]

ANSWER = {"predictions", "labels", "probabilities", "inference_time_ms", "model", "request_id"}
"""What every answer tells."""


class Model(NamedTuple):
    """A model that is served."""

    name: str
    version: int | None
    """None for a bundle that is in no registry."""
    digest: str
    modality: str
    """`table`, `image`, or `multimodal`: several images, or images beside cells."""
    task: str
    """`classification`, `regression` or `multilabel`."""
    classes: tuple[str, ...]
    """In the order of probabilities, as texts."""
    features: tuple[str, ...]
    """In the order of cells."""


class Answers(NamedTuple):
    """Answers for N rows or images in the order they were given: the fields of `Predictions`, and who gave them."""

    prediction: np.ndarray
    """Classes (texts object[N], numbers i64[N] or f64[N], bool[N]), values f64[N], or which labels hold, bool[N, L]."""
    probabilities: np.ndarray | None
    """f32[N, K] in the order of `classes`, or f32[N, L] of labels, each by itself; None for regression."""
    classes: tuple[str, ...] | tuple[int, ...] | tuple[float, ...] | tuple[bool, ...]
    model: str
    version: int | None
    inference_time_ms: float
    """Of the compiled calls, added."""
    request_ids: tuple[str, ...]
    """One for each request that was sent."""
    uncertainty: np.ndarray | None = None
    """f32[N]: how far the members of the model disagree; None for a model of one member."""
    sets: np.ndarray | None = None
    """bool[N, K]: the classes, or labels, in each row's set; None unless trained with `training.coverage`."""
    intervals: np.ndarray | None = None
    """f64[N, 2], lower and upper end; None unless trained with `training.coverage` or the loss `pinball`."""
    abstained: np.ndarray | None = None
    """bool[N]: rows that the model is too unsure of; None where it never abstains."""
    warnings: tuple[str, ...] = ()
    """What the answers may suffer from, such as cells of a category that training did not see, a line each."""
    quantiles: np.ndarray | None = None
    """f64[N, Q] in the order of `quantile_levels`, never descending in a row; None but for the loss `pinball`."""
    quantile_levels: tuple[float, ...] = ()
    """`training.quantiles`, ascending: the target is below `quantiles[:, i]` in about that share of cases."""

    def __repr__(self) -> str:
        """What there is, in a line."""
        return answers_in_a_line(self)


class Client:
    """A server at `url`. Threads may share a client; connections are kept until `close` or the end of `with`.

    `timeout_s` is for one request with all its tries, and is told to the server, which does not begin what would come
    too late. 429, 503 and broken connections are tried again `retries` times. A server that is starting, where nothing
    listens yet or models are compiled, is waited for as long as `timeout_s` allows; `retries=0` waits for nothing: any
    failure is told at once, as `health` always does. Raises ConfigError for a URL of no server; its methods raise
    ServerError, and DataError for rows that cannot be sent.
    """

    def __init__(self, url: str, api_key: str | None = None, *, timeout_s: float = 30.0, retries: int = 4) -> None:
        self._server = make_server(url, api_key=api_key, timeout_s=timeout_s, retries=retries)
        self._described: dict[tuple[str, int | None], dict[str, Any]] = {}

    def predict(self, rows: Rows, *, model: str | None = None, version: int | None = None) -> Answers:
        """Return the Answers for rows of a table, or for images.

        Rows are dicts by column name, a dict of lists or arrays, a pandas DataFrame, or a 2-D array or lists of cells
        in the order of the model's features; None and NaN are missing. Images are paths or bytes of files, one or a
        list of them, or rows by column name; pixels are refused. Where a model looks at images beside cells, rows are
        by column name, and hold both. What exceeds the limits of a request is sent as several. Without `model` there
        must be only one that is meant.
        """
        rows = frame_columns(cast(Frame, rows)) if is_frame(rows) else rows
        refuse_none(rows)
        try:
            return self._predict(rows, model, version)
        except ServerError as error:
            if error.status != 404 or version is not None:
                raise
            return self._predict(rows, model, version)  # another version took its place between two requests

    def models(self) -> tuple[Model, ...]:
        """Return the models that are served."""
        told = self._get("/models").json()["models"]
        return tuple(Model(**{key: _tuples(model[key]) for key in Model._fields}) for model in told)

    def describe(self, name: str, version: int | None = None) -> dict[str, Any]:
        """Return what `/models/NAME` tells: schema, metrics by split, card, and what `models` tells."""
        if (name, version) not in self._described:
            query = "" if version is None else f"?version={version}"
            told = self._get(f"/models/{quote(name, safe='')}{query}").json()
            if version is None:
                return told
            self._described[name, version] = told  # a version never changes
        return self._described[name, version]

    def health(self) -> dict[str, Any]:
        """Return what `/health` tells, also of a server that is not ready (`status` is then not `ok`)."""
        reply = ask(self._server, "GET", "/health")
        document = reply.json()
        if "status" not in document or "model_loaded" not in document:
            raise ServerError(
                reply.where, "expected the health of a server of mmjax, got something else", status=reply.status,
                reason="not-mmjax", request_id=reply.request_id,
            )  # fmt: skip
        return document

    def wait_until_ready(self, patience_s: float = 60.0) -> None:
        """Return when the server answers requests; ServerError when it does not within `patience_s`."""
        ends = time.monotonic() + patience_s
        while True:
            patience = self._server._replace(timeout_s=min(self._server.timeout_s, max(ends - time.monotonic(), 1.0)))
            try:
                reply = ask(patience, "GET", "/health/ready")
                if reply.status == 200:
                    return
                told = ServerError(
                    reply.where, f"expected a server that is ready, got status {reply.status}", status=reply.status,
                    reason="not-ready", request_id=reply.request_id,
                )  # fmt: skip
            except ServerError as error:
                told = error
            if time.monotonic() > ends:
                told.problems = tuple(f"{problem} (waited {patience_s:g} s)" for problem in told.problems)
                raise told
            time.sleep(0.1)

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        close(self._server)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get(self, path: str) -> Reply:
        return send(self._server, "GET", path)

    def _predict(self, rows: Rows, model: str | None, version: int | None) -> Answers:
        """Return the Answers; ServerError (404) also where the version that answers leaves before it was described."""
        if has_images(rows):
            if (mixed := self._mixed(rows, model, version)) is not None:
                return mixed
            if as_images(rows) is None:  # the server says which model may be meant, or that it takes no images
                return self._joined(list(self._replies(mixed_requests(rows, model, version, None))))
        try:
            return self._plain(rows, model, version)
        except ServerError as error:
            if error.reason not in ("which-model", "wrong-model") or not by_name(rows):
                raise
            if (mixed := self._mixed(rows, model, version)) is None:  # rows may lack images, or name them by texts
                raise
            return mixed

    def _plain(self, rows: Rows, model: str | None, version: int | None) -> Answers:
        images = as_images(rows)
        if images is not None:
            return self._joined(list(self._replies(image_requests(images, model, version), images)))
        if isinstance(rows, Mapping | np.ndarray):
            return self._by_column(rows, model, version)
        return self._joined(list(self._replies(table_requests(rows, model, version, None))))

    def _mixed(self, rows: Rows, name: str | None, version: int | None) -> Answers | None:
        """Return the Answers for rows by name of images, or of both; None where the model that is meant takes no such.

        Where images are all of a row, they are sent as files.
        """
        meant = self._meant(name, version)
        if meant is None or meant.modality == "table":
            return None
        description = self.describe(meant.name, meant.version)
        if meant.modality == "image" and (images := named_images(rows, description)) is not None:
            return self._joined(list(self._replies(image_requests(images, meant.name, meant.version), images)))
        return self._joined(list(self._replies(mixed_requests(rows, meant.name, meant.version, description))))

    def _meant(self, name: str | None, version: int | None) -> Model | None:
        """Return the one served model that is meant; None where there is none, or several."""
        served = [model for model in self.models() if version in (None, model.version)]
        found = [model for model in served if name in (None, model.name, f"{model.name}:{model.version}")]
        return found[0] if len(found) == 1 else None

    def _by_column(self, rows: Mapping[str, Any] | np.ndarray, name: str | None, version: int | None) -> Answers:
        """Return the Answers of the version whose order of columns the cells are sent in."""
        served = [model for model in self.models() if version in (None, model.version)]
        found = [model for model in served if name in (None, model.name, f"{model.name}:{model.version}")]
        tables = [model for model in found if model.modality == "table"]
        if len(tables) != 1:  # the server says best what there is
            return self._joined(list(self._replies(table_requests(rows, name, version, None))))
        name, version = tables[0].name, tables[0].version
        description = self.describe(name, version)
        # Sets, intervals and the like are read from JSON only.
        matrix = None if description.get("answers") else as_matrix(rows, description)
        if matrix is None:
            return self._joined(list(self._replies(table_requests(rows, name, version, description))))
        return self._joined(list(self._replies(binary_requests(matrix, description))))

    def _replies(self, requests: Iterator[Request], images: Sequence[ImageFile] = ()) -> Iterator[dict[str, Any]]:
        """Yield the answer to each request; what is wrong with one of the `images` is told with its path."""
        first = 1
        for request in requests:
            try:
                reply = send(self._server, "POST", request.path, request.body, request.headers)
                yield read_binary(reply) if request.path.startswith("/v2/") else _checked(reply)
            except ServerError as error:
                if images:
                    error.problems = tuple(image_names(images, first, problem) for problem in error.problems)
                elif first > 1:
                    error.where += f", the part from row {first:,} on, where rows are counted from 1 again"
                raise
            first += request.rows

    def _joined(self, replies: list[dict[str, Any]]) -> Answers:
        """Return the replies to the parts of one call as one."""
        models = {(reply["model"]["name"], reply["model"]["version"]) for reply in replies}
        ids = tuple(reply["request_id"] for reply in replies)
        if len(models) > 1:
            told = f"expected one version to answer all parts, got {', '.join(map(str, sorted(models)))}; ask again"
            raise ServerError("predict", told, status=None, reason="model-changed", request_id=ids[-1])
        ((name, version),) = models
        taken = sum(reply["inference_time_ms"] for reply in replies)
        told = [reply["predictions"] for reply in replies]
        apart = [reply["uncertainty"] for reply in replies if reply.get("uncertainty") is not None]
        uncertainty = np.concatenate(apart).astype(np.float32) if apart else None
        warnings = _warnings(replies)
        if replies[0]["probabilities"] is None:
            answers = Answers(np.concatenate(told).astype(np.float64), None, (), name, version, taken, ids, uncertainty)
            intervals, quantiles = _stacked(replies, "intervals", np.float64), _quantiles(replies)
            return answers._replace(intervals=intervals, warnings=warnings, **quantiles)
        probabilities = np.concatenate([np.asarray(reply["probabilities"], np.float32) for reply in replies])
        described = self.describe(name, version)
        names, classes = described["classes"], tuple(described.get("class_values", described["classes"]))
        indices = np.concatenate(told).astype(np.int64)
        array = np.array(classes, dtype=object if isinstance(classes[0], str) else None)
        labels = indices > 0 if indices.ndim == 2 else array[indices]
        answers = Answers(labels, probabilities, classes, name, version, taken, ids, uncertainty)
        inside = [
            {"sets": [[name in texts for name in names] for texts in reply["sets"]]}
            for reply in replies
            if "sets" in reply
        ]
        return answers._replace(
            sets=_stacked(inside, "sets", np.bool_),
            abstained=_stacked(replies, "abstained", np.bool_),
            warnings=warnings,
        )


def _warnings(replies: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return what the replies warn of; a part but the first says from which row on it counts."""
    told, first = [], 1
    for reply in replies:
        where = f"from row {first:,} on, where rows are counted from 1 again: " if first > 1 else ""
        told += [f"{where}{warning}" for warning in reply.get("warnings", ())]
        first += len(reply["predictions"])
    return tuple(told)


def _stacked(replies: list[dict[str, Any]], key: str, kind: type) -> np.ndarray | None:
    """Return what the replies have under a key as one array; None where they have it not."""
    return (
        np.concatenate([np.asarray(reply[key], kind) for reply in replies]) if replies and key in replies[0] else None
    )


def _quantiles(replies: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the fields of Answers that quantiles by level become; none where the replies have none."""
    rows: list[dict[str, float]] = [row for reply in replies for row in reply.get("quantiles", ())]
    if not rows:
        return {}
    found = np.array([[row[level] for level in rows[0]] for row in rows], np.float64)
    return {"quantiles": found, "quantile_levels": tuple(map(float, rows[0]))}


def _checked(reply: Reply) -> dict[str, Any]:
    """Return the answer in a reply; ServerError where it is none."""
    document = reply.json()
    if not set(document) >= ANSWER:
        told = "expected an answer of mmjax, got something else"
        raise ServerError(reply.where, told, status=reply.status, reason="not-mmjax", request_id=reply.request_id)
    return document


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
