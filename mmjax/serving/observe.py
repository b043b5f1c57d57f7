"""What the server counts: requests, stages, batches, cells, predictions; as Prometheus text or the same as JSON.

Each `Metrics` has a registry of its own, so that two apps in a process do not add up. Every label has a bounded set of
values: routes are templates, reasons are words of ours, classes and columns come from the schema.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, Literal

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

Stage = Literal["queue", "decode", "infer", "encode"]
Gap = Literal["unknown", "missing", "out_of_range"]

NOTES = "mmjax_notes"
"""Where the scope keeps a dict of what the log tells of the request: `reason`, and what the handlers add."""
RECEIVED = "mmjax_received"
"""Where the scope keeps when a request came that had to wait before it was parsed, by `time.monotonic`."""
REFUSAL = "mmjax_refusal"
"""Where the scope keeps the (status, reason) of a refusal that the client got while the app was at work."""
SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper ends of the histograms of time."""
ROWS = tuple(float(1 << power) for power in range(0, 13, 2))
"""Upper ends of the histogram of rows."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods with a label of their own; all others share `other`."""
MOST_LABELS = 200
"""Classes of a model with a count of their own; all others share `(other)`."""

MEMORY = {
    "bytes_in_use": ("mmjax_device_memory_bytes", "Memory of the device that is in use."),
    "peak_bytes_in_use": ("mmjax_device_memory_peak_bytes", "Most memory of the device that was in use at a time."),
    "bytes_limit": ("mmjax_device_memory_limit_bytes", "Memory of the device that this process may use."),
}

_encode = msgspec.json.Encoder(order="deterministic").encode


class Metrics:
    """All figures of one server. `request`, `stage` and `batch` are called on the event loop, the others anywhere.

    Series appear with their first event, except those that alerts rest on, which start at 0 with `served`.
    """

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=registry)
        registry.register(DeviceMemory())
        self._requests = Counter(
            "mmjax_requests", "Requests answered.", ("route", "method", "status", "reason"), registry=registry
        )
        self._request_seconds = Histograms("mmjax_request_seconds", "From request to reply.", ("route",), SECONDS)
        self._stage_seconds = Histograms("mmjax_stage_seconds", "Time per stage.", ("model", "stage"), SECONDS)
        self._batch_rows = Histograms("mmjax_batch_rows", "Rows per compiled call.", ("model",), ROWS)
        for histograms in (self._request_seconds, self._stage_seconds, self._batch_rows):
            registry.register(histograms)
        self._batches = Counter(
            "mmjax_batches", "Compiled calls by batch size.", ("model", "bucket"), registry=registry
        )
        self._padding = Counter("mmjax_padding_rows", "Rows that only filled a batch.", ("model",), registry=registry)
        self._shed = Counter("mmjax_shed", "Requests turned away to protect the rest.", ("reason",), registry=registry)
        self._compiles = Counter("mmjax_compiles", "Programs compiled; flat once ready.", ("model",), registry=registry)
        self._cells = Counter(
            "mmjax_cells",
            "Cells that were unknown, missing or out of range.",
            ("model", "column", "kind"),
            registry=registry,
        )
        self._predicted = Counter("mmjax_predicted", "Answers by class.", ("model", "label"), registry=registry)
        self._model = Gauge("mmjax_model_info", "Models served.", ("name", "version", "digest"), registry=registry)
        self._reloads = Counter(
            "mmjax_reloads", "Attempts to serve another version.", ("reference", "outcome"), registry=registry
        )
        self._lines_lost = Counter(
            "mmjax_log_lines_lost", "Log lines dropped as the log was blocked.", registry=registry
        )
        self._bound: dict[tuple[str, ...], Any] = {}
        self._labels: dict[str, set[str]] = {}

    def request(self, route: str, method: str, status: int, reason: str, seconds: float) -> None:
        """Count a reply. `route` is a template such as `/models/{name}`, never a path of a client's."""
        method = method if method in METHODS else "other"
        key = ("request", route, method, str(status), reason)
        if (child := self._bound.get(key)) is None:
            child = self._bind(key, self._requests.labels(*key[1:]))
        child.inc()
        self._request_seconds.observe((route,), seconds)

    def stage(self, model: str, stage: Stage, seconds: float, times: int = 1) -> None:
        """Count the time that one request, or each of several, spent in a stage."""
        self._stage_seconds.observe((model, stage), seconds, times)

    def batch(self, model: str, rows: int, bucket: int) -> None:
        """Count a compiled call for `rows` rows, padded to `bucket`."""
        key = ("batch", model, str(bucket))
        if (found := self._bound.get(key)) is None:
            found = self._bind(key, (self._batches.labels(model, bucket), self._padding.labels(model)))
        batches, padding = found
        self._batch_rows.observe((model,), rows)
        batches.inc()
        if bucket > rows:
            padding.inc(bucket - rows)

    def shed(self, reason: str) -> None:
        """Count a request that was turned away for load: a full queue, a spent rate, a deadline that cannot be met."""
        self._shed.labels(reason).inc()

    def compiled(self, model: str) -> None:
        """Count a compiled program."""
        self._compiles.labels(model).inc()

    def cells(self, model: str, column: str, kind: Gap, count: int) -> None:
        """Count cells of a column that were unknown, missing or out of the range of training."""
        if count:
            key = ("cells", model, column, kind)
            if (child := self._bound.get(key)) is None:
                child = self._bind(key, self._cells.labels(model, column, kind))
            child.inc(count)

    def predicted(self, model: str, label: str, count: int) -> None:
        """Count answers of a class; beyond the first 200 classes of a model they are counted as `(other)`."""
        key = ("predicted", model, label)
        if (child := self._bound.get(key)) is None:
            labels = self._labels.setdefault(model, set())
            shown = label if len(labels) < MOST_LABELS else "(other)"
            labels.add(label)
            child = self._bind(key, self._predicted.labels(model, shown))
        child.inc(count)

    def served(self, name: str, version: int | None, digest: str) -> None:
        """Tell that a model is served."""
        self._model.labels(name, str(version or ""), digest).set(1)
        self._compiles.labels(name if version is None else f"{name}:{version}")

    def retired(self, name: str, version: int | None, digest: str) -> None:
        """Tell that a model is served no more."""
        self._model.labels(name, str(version or ""), digest)  # so that removing it cannot fail
        self._model.remove(name, str(version or ""), digest)

    def reloaded(self, reference: str, outcome: Literal["done", "failed"]) -> None:
        """Count an attempt to serve another version of what a reference means."""
        self._reloads.labels(reference, outcome).inc()

    def watch(self, name: Literal["waiting", "in_flight"], read: Callable[[], float]) -> None:
        """Read a gauge whenever figures are asked for: requests `waiting` in queues, or `in_flight` in the server."""
        told = {"waiting": "Requests that wait for the device.", "in_flight": "Requests in the server."}
        gauge = Gauge(f"mmjax_{name}", told[name], registry=self.registry)
        gauge.set_function(read)

    def line_lost(self) -> None:
        """Count a line of the log that was dropped, for the log was blocked."""
        self._lines_lost.inc()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return (document, content type): JSON where `accept` asks for it, else Prometheus or OpenMetrics text."""
        lean = Lean(self.registry)
        if "application/json" in accept:
            return to_json(lean), "application/json"
        encoder, content_type = choose_encoder(accept)
        return encoder(lean), content_type  # pyright: ignore[reportArgumentType]

    def _bind(self, key: tuple[str, ...], made: Any) -> Any:
        return self._bound.setdefault(key, made)


class Histograms:
    """Histograms written by one thread and read by any: an observation costs a third of prometheus_client's."""

    def __init__(self, name: str, told: str, labels: tuple[str, ...], ends: tuple[float, ...]) -> None:
        self._name, self._told, self._labels, self._ends = name, told, labels, ends
        self._series: dict[tuple[str, ...], list[float]] = {}
        """Values of the labels to counts by bucket, the last beyond all ends, and then the sum."""

    def observe(self, labels: tuple[str, ...], value: float, times: int = 1) -> None:
        """Count a value, or several that are equal."""
        if (series := self._series.get(labels)) is None:
            series = self._series.setdefault(labels, [0.0] * (len(self._ends) + 2))
        series[bisect_left(self._ends, value)] += times
        series[-1] += times * value

    def describe(self) -> list[Metric]:
        """Return the family, without its samples."""
        return [HistogramMetricFamily(self._name, self._told, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        """Yield the family."""
        family = HistogramMetricFamily(self._name, self._told, labels=self._labels)
        ends = [*map(floatToGoString, self._ends), "+Inf"]
        for labels, series in list(self._series.items()):
            *counts, total = series.copy()
            family.add_metric(labels, list(zip(ends, accumulate(counts), strict=True)), total)
        yield family


class Lean:
    """A registry without the `_created` series, which double the document and which nobody reads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Yield the families of the registry."""
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class DeviceMemory:
    """Collects the memory of each device, as far as it tells; a CPU does not."""

    def describe(self) -> list[Metric]:
        """Return no families: what there is depends on the device."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield a gauge for each figure with a sample for each device."""
        import jax

        told = {str(device.id): device.memory_stats() or {} for device in jax.local_devices()}
        for key, (name, text) in MEMORY.items():
            if found := {device: stats[key] for device, stats in told.items() if key in stats}:
                family = GaugeMetricFamily(name, text, labels=("device",))
                for device, value in found.items():
                    family.add_metric((device,), value)
                yield family


def to_json(registry: Any) -> bytes:
    """Return the figures as JSON: family -> type, help and samples of name, labels and value (null for NaN)."""
    families = {
        family.name: {
            "type": family.type,
            "help": family.documentation,
            "samples": [{"name": s.name, "labels": dict(s.labels), "value": s.value} for s in family.samples],
        }
        for family in registry.collect()
    }
    return _encode(families)
