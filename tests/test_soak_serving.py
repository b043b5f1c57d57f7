"""The server for a long time: a million mixed requests while models change, then a hundred reloads, memory flat.

Every answer is compared with what `Predictor.predict` says of its rows, of exactly the version that the reply names.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from mmjax.artifact.predictor import Predictor, largest_difference, load_predictor
from mmjax.artifact.registry import promote
from mmjax.data.encode import columns_from_rows
from mmjax.serving.open_inference_tensors import pack_texts
from mmjax.serving.wire import MAX_ROWS
from tests import inference_server
from tests.live import png, request
from tests.soak_driver import Answer, Ask, Load, descriptors, resident_mib, run, threads
from tests.test_engine import TOLERANCE
from tests.test_open_inference import binary, outputs, plain, tensor
from tests.test_serve_life import Process, eventually
from tests.untrained import KINDS, NUMBERS, PRICE, SHADES, add_model, kinds_columns, matrix

REQUESTS = int(os.environ.get("MMJAX_SOAK_REQUESTS", "1000000"))
RELOADS = 100
CONNECTIONS = 32
"""Fewer than `--queue`: no request may be turned away."""
MOST_S = 25 * 60
"""A million requests that take longer have failed."""
FLIP_S = 3.0
"""Time between one change of the alias, once it is seen, and the next."""
SEEN_S = 30.0
"""Time in which a change of the alias has to be seen in the answers."""
WATCH_S = 0.5
GROWTH_MIB = 16.0
"""How far resident memory may grow once warm."""
RELOADING_MIB = 5.0
"""How far over eighty reloads: with a cache of JAX's that kept every program it was 6.6, without it 3.0."""
TELLING_REQUESTS = 200_000
"""Fewer requests do not tell a leak from warming up."""
ALIAS, MODELS = "numbers@production", ("kinds", "shades", "price")
BUCKETS = 11
"""Programs that are compiled for a table model: 1, 2, 4 ... 1,024 rows."""
JSON = ["Content-Type: application/json"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a registry of all models of `tests/untrained.py`; `numbers` in two versions, the first promoted."""
    for name, schema in (("numbers", NUMBERS), ("kinds", KINDS), ("shades", SHADES), ("price", PRICE)):
        add_model(tmp_path / "registry", name, schema)
    add_model(tmp_path / "registry", "numbers", NUMBERS, seed=1)
    promote(tmp_path / "registry", "numbers:1")
    return tmp_path


@contextlib.contextmanager
def serving(home: Path, *arguments: str) -> Iterator[Process]:
    """A server of all of them that is ready, and ends well when it is told to."""
    named = [word for model in (ALIAS, *MODELS) for word in ("--model", model)]
    server = Process(home, *named, *arguments)
    try:
        yield server.ready()
        server.process.terminate()
        assert server.process.wait(60) == 0, f"the server ended badly: {server.lines[-5:]}"
    finally:
        server.kill()


# ---- what has to be answered


class Expected(NamedTuple):
    """What a reply has to say, as it says it."""

    predictions: list[float]
    labels: list[str] | None
    probabilities: list[list[float]] | None
    classes: tuple[str, ...] = ()


class Which(msgspec.Struct):
    name: str
    version: int


class Told(msgspec.Struct):
    """A reply of `/predict/*`."""

    predictions: list[float]
    labels: list[str] | None
    probabilities: list[list[float]] | None
    model: Which


decode_told = msgspec.json.Decoder(Told).decode


class Known(NamedTuple):
    """A model in all the versions that may answer."""

    name: str
    versions: dict[int, Predictor]

    def expect(self, columns: dict[str, Any], *, alone: bool = False) -> dict[int, Expected]:
        """By version, what `predict` says of these rows together; with `alone` of each by itself."""
        return {version: _expected(predictor, columns, alone) for version, predictor in self.versions.items()}


def _expected(predictor: Predictor, columns: dict[str, Any], alone: bool) -> Expected:
    rows = len(next(iter(columns.values())))
    slices = [slice(i, i + 1) for i in range(rows)] if alone else [slice(None)]
    parts = [predictor.predict({name: cells[part] for name, cells in columns.items()}) for part in slices]
    prediction = np.concatenate([part.prediction for part in parts])
    if parts[0].probabilities is None:
        return Expected(prediction.tolist(), None, None)
    probabilities = np.concatenate([part.probabilities for part in parts])
    indices = [parts[0].classes.index(label) for label in prediction]
    return Expected(indices, prediction.tolist(), probabilities.tolist(), parts[0].classes)


def known_models(home: Path) -> dict[str, Known]:
    """The models of the registry by name."""
    registry = home / "registry"
    versions = {"numbers": (1, 2)} | dict.fromkeys(MODELS, (1,))
    return {
        name: Known(name, {number: load_predictor(registry / name / str(number)) for number in numbers})
        for name, numbers in versions.items()
    }


def compare(expected: Expected, told: Expected | Told, *, exact: bool = False) -> None:
    """Raise AssertionError unless a reply says what is expected: numbers within the tolerance, and labels of them."""
    if expected.probabilities is None or told.probabilities is None:
        nothing = told.labels, told.probabilities, expected.probabilities
        assert nothing == (None, None, None), f"a value has no labels and no probabilities, a class has: {nothing}"
        offset = PRICE.target.offset  # one number for all rows: the tolerance is for what the model computes
        wanted, got = np.array(expected.predictions) - offset, np.array(told.predictions) - offset
    else:
        if told.probabilities == expected.probabilities:
            assert (told.predictions, told.labels) == (expected.predictions, expected.labels), f"{told}, not {expected}"
            return
        # Where two classes are as likely, the last bits tell which of them comes first.
        predictions = [row.index(max(row)) for row in told.probabilities]
        labels = [expected.classes[index] for index in predictions]
        assert told.predictions == predictions, f"predictions: expected {predictions}, got {told.predictions}"
        assert told.labels == labels, f"labels: expected {labels}, got {told.labels}"
        wanted, got = np.array(expected.probabilities), np.array(told.probabilities)
    difference, most = largest_difference(wanted, got), 0.0 if exact else TOLERANCE
    assert difference <= most, f"expected {wanted.tolist()} within {most:g}, got {got.tolist()}, off by {difference:g}"


def right(known: Known, expected: dict[int, Expected], *, exact: bool = False) -> Callable[[Answer], int | None]:
    """A check of replies of `/predict/*`. What is followed is the version of `numbers`."""
    follows = len(expected) > 1

    def check(answer: Answer) -> int | None:
        assert answer.status == 200, f"expected 200, got {answer.status}"
        told = decode_told(answer.body)
        assert told.model.name == known.name, f"expected model {known.name}, got {told.model.name}"
        assert told.model.version in expected, f"expected version {list(expected)}, got {told.model.version}"
        compare(expected[told.model.version], told, exact=exact)
        return told.model.version if follows else None

    return check


def right_tensors(known: Known, expected: dict[int, Expected]) -> Callable[[Answer], int | None]:
    """A check of replies of the Open Inference Protocol, in JSON or raw."""
    follows = len(expected) > 1

    def check(answer: Answer) -> int | None:
        lines = (line.split(": ", 1) for line in answer.head.decode("latin-1").split("\r\n")[1:])
        headers = {name.lower(): value for name, value in lines}
        found = outputs(inference_server.Answer(answer.status, headers, answer.body))
        document = json.loads(answer.body[: int(headers.get("inference-header-content-length", len(answer.body)))])
        assert document["model_name"] == known.name, f"expected model {known.name}, got {document['model_name']}"
        version = int(document["model_version"])
        wanted = expected[version]
        predictions = np.ravel(found["predictions"]).tolist()
        if wanted.labels is None or wanted.probabilities is None:
            compare(wanted, Expected(predictions, None, None))
        else:
            labels = found["labels"]
            if isinstance(labels, bytes):  # packed: they are compared as they are
                assert labels == pack_texts([wanted.classes[index] for index in predictions]), labels
                labels = [wanted.classes[index] for index in predictions]
            shape = np.shape(wanted.probabilities)
            probabilities = np.float32(found["probabilities"]).reshape(shape).tolist()
            compare(wanted, Expected(predictions, labels, probabilities))
        return version if follows else None

    return check


def refused(status: int, reason: str) -> Callable[[Answer], None]:
    """A check of refusals."""

    def check(answer: Answer) -> None:
        assert answer.status == status, f"expected {status}, got {answer.status}"
        document = json.loads(answer.body)
        assert (document["type"], document["status"]) == (f"urn:mmjax:{reason}", status), document
        assert document["errors"], "a refusal says what is wrong"

    return check


def pinned(known: Known, expected: dict[int, Expected], version: int) -> Callable[[Answer], None]:
    """A check of replies to who asks for one version, which is served or is not."""
    served, absent = right(known, {version: expected[version]}), refused(404, "no-such-model")

    def check(answer: Answer) -> None:
        (absent if answer.status == 404 else served)(answer)

    return check


def tells(*words: bytes) -> Callable[[Answer], None]:
    """A check of documents for operators."""

    def check(answer: Answer) -> None:
        assert answer.status == 200, f"expected 200, got {answer.status}"
        absent = [word for word in words if word not in answer.body]
        assert not absent, f"expected {absent} in the document"

    return check


# ---- what is asked


def post(path: str, document: Any, *headers: str) -> bytes:
    """The bytes of a request; a document that is bytes already goes as it is."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return request("POST", path, body, [*JSON, *headers])


def table(**document: Any) -> bytes:
    return post("/predict/tabular", document)


def by_row(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def cells_of(name: str, rows: int, seed: int) -> list[list[float | None]]:
    """Rows of numbers, some missing."""
    schema = {"numbers": NUMBERS, "price": PRICE}[name]
    values = matrix(schema, rows, seed=seed).astype(np.float64) + [column.offset for column in schema.features]
    gaps = np.random.default_rng(seed).random(values.shape) < 0.1
    return [
        [None if gap else cell for cell, gap in zip(*row, strict=True)]
        for row in zip(values.tolist(), gaps, strict=True)
    ]


def columns_of(known: Known, cells: list[list[float | None]]) -> dict[str, Any]:
    names = [column.name for column in next(iter(known.versions.values())).schema.features]
    return columns_from_rows([dict(zip(names, row, strict=True)) for row in cells])


Weighted = tuple[float, list[Ask]]
"""How many of a hundred requests these are together, and they, each as often as the others."""


def tables(models: dict[str, Known]) -> Iterator[Weighted]:
    """Rows of tables."""

    def numbers(kind: str, name: str, sizes: Iterable[int], **more: Any) -> list[Ask]:
        asks, alone = [], more.get("deterministic", False)
        for i, rows in enumerate(sizes):
            known, cells = models[name], cells_of(name, rows, seed=1000 * rows + i)
            expected = known.expect(columns_of(known, cells), alone=alone)
            asks.append(Ask(kind, table(model=name, features=cells, **more), right(known, expected, exact=alone)))
        return asks

    def kinds(kind: str, sizes: Iterable[int]) -> list[Ask]:
        asks, known = [], models["kinds"]
        cells = kinds_columns(sum(sizes := list(sizes)))
        stop = 0
        for rows in sizes:
            start, stop = stop, stop + rows
            part = {name: values[start:stop] for name, values in cells.items()}
            data = table(model="kinds", rows=by_row(part))
            asks.append(Ask(kind, data, right(known, known.expect(part))))
        return asks

    yield 60, numbers("one row", "numbers", [1] * 200)
    yield 5, numbers("one value", "price", [1] * 50)
    yield 4, numbers("a few rows", "numbers", [2, 3, 4, 7, 8, 12, 16, 20, 31, 32])
    yield 0.5, numbers("many rows", "numbers", [33, 64, 100])
    yield 0.1, numbers("more rows than a batch", "numbers", [300, 700])
    yield 1, numbers("a few values", "price", [2, 5, 30])
    yield 1.5, numbers("deterministic", "numbers", [1] * 20 + [2, 3, 9], deterministic=True)
    yield 12, kinds("one row of every kind", [1] * 100)
    yield 3, kinds("rows of every kind", [2, 3, 5, 8, 13, 40])
    known, cells = models["numbers"], cells_of("numbers", 1, seed=5)
    expected = known.expect(columns_of(known, cells))
    asks = [(version, table(model="numbers", version=version, features=cells)) for version in known.versions]
    yield 1, [Ask(f"version {version}", data, pinned(known, expected, version)) for version, data in asks]


def tensors(models: dict[str, Known]) -> Iterator[Weighted]:
    """The Open Inference Protocol, and images."""
    known, in_json, raw = models["numbers"], [], []
    for rows in (1, 1, 1, 2, 5, 50):
        values = matrix(NUMBERS, rows, seed=len(raw))
        check = right_tensors(known, known.expect({f"x{i}": values[:, i] for i in range(5)}))
        in_json.append(Ask("tensors in JSON", post("/v2/models/numbers/infer", plain(values)), check))
        body, headers = binary(values, parameters={"binary_data_output": True})
        told = [f"{name}: {value}" for name, value in headers.items()]
        raw.append(Ask("raw tensors", request("POST", "/v2/models/numbers/infer", body, told), check))
    yield 3, in_json
    yield 3, raw
    known, kinds = models["kinds"], []
    for rows in (1, 4):
        cells = kinds_columns(rows)
        inputs = [
            tensor(name, [rows], "FP32" if name == "size" else "BYTES", data=values) for name, values in cells.items()
        ]
        check = right_tensors(known, known.expect(cells))
        kinds.append(Ask("columns as tensors", post("/v2/models/kinds/infer", {"inputs": inputs}), check))
    yield 0.5, kinds
    known, images = models["shades"], []
    for level in range(5, 185, 20):
        file = png(level)
        check = right(known, known.expect({SHADES.image.columns[0]: [file]}))  # pyright: ignore[reportOptionalMemberAccess]
        images.append(Ask("images", request("POST", "/predict/image", file, ["Content-Type: image/png"]), check))
    yield 2, images


def refusals() -> Iterator[Weighted]:
    """Bad requests, whose connection is kept, and some that end it."""
    good, rows = matrix(NUMBERS, 1).tolist(), by_row(kinds_columns(1))
    image = ["Content-Type: image/png"]
    bad = [
        (400, "bad-json", post("/predict/tabular", b'{"model": "numbers", ')),
        (400, "bad-request", table(model="numbers", features=good, more=1)),
        (400, "doubled-key", post("/predict/tabular", b'{"model": "numbers", "features": [], "model": "kinds"}')),
        (400, "no-rows", table(model="numbers", features=[])),
        (400, "bad-row", table(model="numbers", features=[[1, 2]])),
        (400, "bad-row", table(model="kinds", rows=[{"size": 1}])),
        (400, "bad-cell", table(model="numbers", features=[[1, 2, 3, 4, "much"]])),
        (400, "bad-cell", table(model="kinds", rows=[rows[0] | {"when": "soon"}])),
        (400, "which-model", table(features=good)),
        (400, "wrong-model", table(model="shades", features=good)),
        (404, "no-such-model", table(model="numbers", version=3, features=good)),
        (
            400,
            "bad-timeout",
            post("/predict/tabular", {"model": "numbers", "features": good}, "X-Request-Timeout-Ms: x"),
        ),
        (415, "bad-content-type", request("POST", "/predict/tabular", b"1,2", ["Content-Type: text/csv"])),
        (413, "too-many-rows", table(model="numbers", features=[[0] * 5] * (MAX_ROWS + 1))),
        (400, "bad-image", request("POST", "/predict/image", png(9)[:200], image)),
        (400, "bad-query", request("POST", "/predict/image?modle=shades", png(9), image)),
        (400, "bad-tensor", post("/v2/models/numbers/infer", {"inputs": []})),
        (404, "no-such-model", post("/v2/models/nobody/infer", plain())),
        (404, "not-found", request("GET", "/nowhere")),
        (405, "bad-method", request("GET", "/predict/tabular")),
    ]
    yield 3, [Ask(f"{status} {reason}", data, refused(status, reason)) for status, reason, data in bad]
    ends = [
        (400, "bad-http", b"HELLO\r\n\r\n"),
        (400, "bad-host", b"GET /health HTTP/1.1\r\n\r\n"),
        (400, "long-url", request("GET", "/" + "x" * 9000)),
        (431, "many-headers", request("GET", "/health", headers=[f"X-{i}: 1" for i in range(101)])),
    ]
    yield 0.2, [Ask(f"{status} {reason}", data, refused(status, reason)) for status, reason, data in ends]


def visits() -> Iterator[Weighted]:
    """What operators ask, and clients that hang up before, in the middle of and right after a request."""
    yield 0.04, [Ask("/metrics", request("GET", "/metrics"), tells(b"mmjax_requests_total", b"mmjax_in_flight"))]
    yield (
        0.1,
        [
            Ask("/health", request("GET", "/health"), tells(b'"status":"ok"', b'"name":"numbers"')),
            Ask("/health/ready", request("GET", "/health/ready"), tells(b"status")),
            Ask("/models", request("GET", "/models"), tells(b'"name":"numbers"', b'"name":"shades"')),
            Ask("/models/kinds", request("GET", "/models/kinds"), tells(b"gr\xc3\xbcn")),
        ],
    )
    one = table(model="numbers", features=matrix(NUMBERS, 1).tolist())
    large = table(model="numbers", features=matrix(NUMBERS, 900).tolist(), deterministic=True)
    body = one.index(b"\r\n\r\n") + 4
    cuts = [b"", one[:30], one[: body - 2], one[:body], one[: body + 9], one, large[:70_000], large, png(7)[:50]]
    cuts[-1] = request("POST", "/predict/image", png(7), ["Content-Type: image/png"])[:-9]
    yield 0.3, [Ask("hang-up", cut, None) for cut in cuts]


def mixture(home: Path) -> tuple[list[Ask], list[int]]:
    """All requests, and an order in which to ask them, without end when repeated."""
    models = known_models(home)
    weighted = [*tables(models), *tensors(models), *refusals(), *visits()]
    asks = [ask for _, some in weighted for ask in some]
    weights = np.array([weight / len(some) for weight, some in weighted for _ in some])
    order = np.random.default_rng(0).choice(len(asks), 200_003, p=weights / weights.sum())
    return asks, order.tolist()


# ---- a million requests


class Changes:
    """An alias that is moved between the two versions while a server runs."""

    def __init__(self, home: Path, server: Process, load: Load) -> None:
        self.registry, self.server, self.load = home / "registry", server, load
        self.version = 1
        self.made = 0

    async def flip(self, *, hang_up: bool) -> None:
        """Move it, and wait until answers come from the other version; a fault of the load where none does in time."""
        self.version, self.made = 3 - self.version, self.made + 1
        seen = self.load.expect_change(self.version)
        await asyncio.to_thread(promote, self.registry, f"numbers:{self.version}")
        if hang_up:
            self.server.process.send_signal(signal.SIGHUP)
        try:
            await asyncio.wait_for(seen, SEEN_S)
        except TimeoutError:
            how = "SIGHUP" if hang_up else f"--watch {WATCH_S}"
            self.load.give_up(
                f"change {self.made}: numbers:{self.version} was promoted, but {how} has not brought it in within "
                f"{SEEN_S:g} s; the server told {self.server.lines[-3:]}"
            )

    async def go_on(self) -> None:
        """Move it every few seconds; at every fifth time with a SIGHUP, and at once back again without one."""
        while not self.load.enough:
            for turn in range(5):
                await asyncio.sleep(FLIP_S)
                await self.flip(hang_up=turn == 4)
            await self.flip(hang_up=False)


async def ended(load: Load, within_s: float) -> None:
    """Wait for the end; a fault of the load where it does not come in time."""
    try:
        await asyncio.wait_for(load.ended.wait(), within_s)
    except TimeoutError:
        told = f"{load.sent:,} of {load.count:,} requests sent, {load.answered:,} answered, {load.left} left"
        load.give_up(f"not done within {within_s:g} s: {told}")
        await load.ended.wait()


async def sampled(pid: int, samples: list[float]) -> None:
    """Look at the process every second."""
    while True:
        samples.append(resident_mib(pid))
        await asyncio.sleep(1)


async def beside(work: Awaitable[Any], *others: Any) -> None:
    """Do the work while the others run, and then end them; what one of them raises is raised."""
    tasks = [asyncio.ensure_future(other) for other in others]
    try:
        await work
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in ended:
        if isinstance(outcome, Exception):
            raise outcome


def growth(values: Sequence[float]) -> tuple[float, float]:
    """(growth from the first tenth to the last, slope a sample) of values, once warm."""
    tenth = max(1, len(values) // 10)
    slope = np.polyfit(np.arange(len(values)), np.asarray(values), 1)[0] if len(values) > 2 else 0.0
    return float(np.median(values[-tenth:]) - np.median(values[:tenth])), float(slope)


class Figures:
    """The server's own figures; asking for them is a request too, which is counted after it is answered."""

    def __init__(self, server: Process) -> None:
        status, _, self.families = server.ask("GET", "/metrics?format=json")
        assert status == 200, self.families

    def sum(self, name: str, **labels: str) -> int:
        """The sum of a figure over all series with these labels."""
        samples = self.families.get(f"mmjax_{name}", {"samples": []})["samples"]  # no series before the first event
        return round(sum(s["value"] for s in samples if labels.items() <= s["labels"].items()))

    def outcomes(self) -> Counter[tuple[str, str, int, str]]:
        """Requests by route, method, status and reason."""
        counted: Counter[tuple[str, str, int, str]] = Counter()
        for sample in self.families["mmjax_requests"]["samples"]:
            labels = sample["labels"]
            counted[labels["route"], labels["method"], int(labels["status"]), labels["reason"]] = round(sample["value"])
        return counted


def settled(server: Process, before: Figures, load: Load, changes: Changes) -> tuple[Figures, int]:
    """The figures once all is counted, and how often they were asked for before, so that they count themselves."""
    asked = 1  # `before` was counted after it was told

    def look() -> Figures | None:
        nonlocal asked
        now = Figures(server)
        counted = now.sum("requests") - before.sum("requests")
        if counted >= load.answered + load.left + asked and now.sum("reloads") - before.sum("reloads") >= changes.made:
            return now
        asked += 1
        return None

    try:
        return eventually(look), asked
    except AssertionError:
        now = Figures(server)
        counted, reloads = (now.sum(name) - before.sum(name) for name in ("requests", "reloads"))
        wanted = load.answered + load.left + asked
        raise AssertionError(
            f"expected {wanted} requests to be counted, got {counted} ({now.outcomes()}), and of the clients "
            f"{load.left} left; expected {changes.made} reloads, got {reloads}; "
            f"numbers:{changes.version} is promoted, and the server told {server.lines[-3:]}"
        ) from None


def check_books(server: Process, before: Figures, load: Load, changes: Changes) -> None:
    """What the server counted is what was done, and it is at rest."""
    after, asked = settled(server, before, load, changes)
    outcomes = after.outcomes() - before.outcomes()
    statuses: Counter[int] = Counter()
    for (_, _, status, _), count in outcomes.items():
        statuses[status] += count
    # Who hangs up right after a request may have been answered, or not: the one or the other is counted.
    left = statuses.pop(499, 0) + statuses.pop(200) - load.statuses[200] - asked
    told = f"the clients had {dict(load.statuses)} for {dict(load.kinds)}; counted were {dict(outcomes)}"
    assert left == load.left, f"{load.left} clients left after some bytes, but {left} were counted; {told}"
    assert statuses == load.statuses - Counter({200: load.statuses[200]}), f"replies by status differ: {told}"
    done, failed = (after.sum("reloads", outcome=outcome) for outcome in ("done", "failed"))
    assert (done, failed) == (changes.made, 0), f"{changes.made} changes, {done} reloads, {failed} of them failed"
    compiled = after.sum("compiles") - before.sum("compiles")
    assert compiled == BUCKETS * done, f"{done} reloads of {BUCKETS} programs each, but {compiled} were compiled"
    assert after.sum("in_flight") == 1, "nothing is in the server but the request for these figures"
    assert after.sum("shed") == before.sum("shed") == 0, "nobody was turned away"
    models = after.families["mmjax_model_info"]["samples"]
    versions = sorted((s["labels"]["name"], s["labels"]["version"]) for s in models)
    assert versions == sorted([("numbers", str(changes.version)), *((name, "1") for name in MODELS)]), versions
    assert "mmjax_waiting" in after.families, "docs/API.md promises the figure mmjax_waiting"
    assert after.sum("waiting") == 0, "nothing waits for the device"


def show(capsys: pytest.CaptureFixture[str], figures: str) -> None:
    """Tell figures, whether the test passes or not."""
    with capsys.disabled():
        sys.stdout.write(f"\n{figures}\n")


@pytest.mark.soak
def test_a_million_mixed_requests_while_models_change(home: Path, capsys: pytest.CaptureFixture[str]):
    asks, order = mixture(home)
    samples: list[float] = []
    with serving(home, "--watch", str(WATCH_S)) as server:
        pid, before = server.process.pid, Figures(server)
        files, threads_before = descriptors(pid), threads(pid)
        began = time.monotonic()

        async def soak() -> tuple[Load, Changes]:
            load = Load(server.port, asks, order, count=REQUESTS)
            changes = Changes(home, server, load)
            await load.begin(CONNECTIONS)
            await beside(ended(load, MOST_S), changes.go_on(), sampled(pid, samples))
            return load, changes

        load, changes = run(soak())
        seconds = time.monotonic() - began
        warm = samples[len(samples) // 3 :]
        grown, slope = growth(warm)
        memory = (
            f"resident memory grew by {grown:.1f} MiB over {len(warm)} s once warm, {60 * slope:.2f} MiB a minute, "
            f"from {samples[0]:.0f} MiB at first and {warm[0]:.0f} MiB when warm"
        )
        rate = f"{load.sent / seconds:,.0f}/s, {changes.made} changes, answers by version {dict(load.versions)}"
        show(capsys, f"{load.sent:,} requests in {seconds:.0f} s, {rate}; {memory}; {dict(load.statuses)}")
        assert not load.faults, "\n".join(load.faults)
        assert load.sent == load.answered + load.left + load.silent == REQUESTS, "every request was answered"
        assert set(load.kinds) == {ask.kind for ask in asks} or REQUESTS < TELLING_REQUESTS, "all kinds were asked"
        check_books(server, before, load, changes)
        assert eventually(lambda: descriptors(pid) == files), f"{files} files were open, now {descriptors(pid)}"
        # Threads of pools start when they are first needed: asyncio's own, which /metrics uses, and the decoders.
        cores = os.cpu_count() or 1
        most = threads_before + min(32, cores + 4) + min(4, cores)
        assert threads(pid) <= most, f"{threads_before} threads at first, at most {most} later, now {threads(pid)}"
        if REQUESTS >= TELLING_REQUESTS:
            assert grown < GROWTH_MIB, memory


# ---- a hundred reloads


@pytest.mark.soak
def test_a_hundred_reloads_under_gentle_load(home: Path, capsys: pytest.CaptureFixture[str]):
    asks, order = mixture(home)
    resident: list[float] = []
    with serving(home) as server:
        before = Figures(server)
        began = time.monotonic()

        async def reloading(load: Load, changes: Changes) -> None:
            for _ in range(RELOADS):
                await changes.flip(hang_up=True)
                if load.enough:
                    break
                resident.append(resident_mib(server.process.pid))
            load.stop()
            await ended(load, 60)

        async def soak() -> tuple[Load, Changes]:
            load = Load(server.port, asks, order, count=10**9, pause_s=0.02)
            changes = Changes(home, server, load)
            await load.begin(4)
            await asyncio.wait_for(reloading(load, changes), MOST_S)
            return load, changes

        load, changes = run(soak())
        seconds = time.monotonic() - began
        grown, slope = growth(resident[20:])
        memory = f"resident memory grew by {grown:.1f} MiB over the last {RELOADS - 20} reloads, {slope:.3f} MiB each"
        show(capsys, f"{changes.made} reloads and {load.sent:,} requests in {seconds:.0f} s; {memory}")
        assert not load.faults, "\n".join(load.faults)
        check_books(server, before, load, changes)
        assert grown < RELOADING_MIB, memory
