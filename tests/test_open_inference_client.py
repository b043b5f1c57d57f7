"""Triton's own client, unchanged, against a live server: sync and asyncio, JSON and binary, all that it can ask."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmjax.artifact.models import load_model
from mmjax.artifact.predictor import Predictions, Predictor
from mmjax.data.decode import encode_png
from mmjax.schema import Schema
from tests.inference_server import Server
from tests.untrained import NUMBERS, PRICE, kinds_columns, matrix, picture

pytest.importorskip("tritonclient.http")
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")


@pytest.fixture(scope="module")
def url(untrained_server: Server) -> str:
    return f"127.0.0.1:{untrained_server.port}"


@pytest.fixture
def client(url: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(url) as client:
        yield client


@pytest.fixture(scope="module")
def models(untrained_registry: Path) -> dict[str, Predictor]:
    return {
        name: load_model(name, registry=untrained_registry)
        for name in ("numbers", "kinds", "shades", "price:1", "price:2")
    }


def predicted(predictor: Predictor, values: np.ndarray) -> Predictions:
    names = [column.name for column in predictor.schema.features]
    return predictor.predict({name: values[:, i] for i, name in enumerate(names)})


def tensor(name: str, values: np.ndarray, datatype: str, *, binary: bool = True) -> Any:
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def features(rows: int = 3, *, binary: bool = True, schema: Schema = NUMBERS) -> Any:
    return tensor("features", matrix(schema, rows), "FP32", binary=binary)


def check(result: Any, expected: Predictions, names: tuple[str, ...] = ("probabilities", "predictions", "labels")):
    """The reply is the answer of the bundle to the bit, each output of the kind that metadata says."""
    assert {output["name"] for output in result.get_response()["outputs"]} == set(names)
    for name in names:
        got = result.as_numpy(name)
        match name:
            case "probabilities":
                assert got.dtype == np.float32
                np.testing.assert_array_equal(got, expected.probabilities)
            case "labels":
                texts = [text.decode() if isinstance(text, bytes) else text for text in got.tolist()]
                assert texts == expected.prediction.tolist()
            case _ if expected.probabilities is None:
                assert got.dtype == np.float64
                np.testing.assert_array_equal(got, expected.prediction)
            case _:
                assert got.dtype == np.int64
                assert [expected.classes[i] for i in got] == expected.prediction.tolist()


def close(got: np.ndarray | None, expected: Predictions) -> None:
    """Rows that shared a batch with others may differ in the last bits."""
    assert got is not None
    assert expected.probabilities is not None
    np.testing.assert_allclose(got, expected.probabilities, rtol=1e-5, atol=1e-6)


def test_what_the_server_says_of_itself(client: triton.InferenceServerClient):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("numbers")
    assert client.is_model_ready("price", "2")
    assert not client.is_model_ready("price", "3")
    assert not client.is_model_ready("nope")
    told: Any = client.get_server_metadata()
    assert told["name"] == "mmjax"
    assert {"binary_tensor_data", "classification", "statistics"} <= set(told["extensions"])
    index: Any = client.get_model_repository_index()
    assert {"name": "price", "version": "2", "state": "READY", "reason": ""} in index
    assert len(index) == 5


def test_metadata_and_configuration(client: triton.InferenceServerClient):
    told: Any = client.get_model_metadata("numbers")
    assert (told["name"], told["versions"]) == ("numbers", ["1"])
    assert [(i["name"], i["datatype"], i["shape"]) for i in told["inputs"]] == [("features", "FP32", [-1, 5])]
    outputs = [("probabilities", "FP32", [-1, 3]), ("predictions", "INT64", [-1]), ("labels", "BYTES", [-1])]
    assert [(o["name"], o["datatype"], o["shape"]) for o in told["outputs"]] == outputs
    told = client.get_model_metadata("kinds", "1")
    expected = [("size", "FP32"), ("colour", "BYTES"), ("flag", "BYTES"), ("when", "BYTES")]
    assert [(i["name"], i["datatype"], i["shape"]) for i in told["inputs"]] == [(*pair, [-1]) for pair in expected]
    told = client.get_model_metadata("price", "2")
    assert told["versions"] == ["1", "2"]
    assert told["inputs"][0]["datatype"] == "FP64", "FP32 would lose the seconds"
    assert [o["name"] for o in told["outputs"]] == ["predictions"]
    config: Any = client.get_model_config("numbers")
    assert config["max_batch_size"] == 64
    assert config["input"] == [{"name": "features", "data_type": "TYPE_FP32", "dims": [5]}]


@pytest.mark.parametrize("binary", [True, False])
def test_a_matrix_of_numbers(client, models, binary: bool):
    expected = predicted(models["numbers"], matrix(NUMBERS, 3))
    check(client.infer("numbers", [features(binary=binary)]), expected)
    asked = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("labels", "probabilities")]
    result = client.infer("numbers", [features(binary=binary)], outputs=asked, request_id="job 7")
    check(result, expected, ("labels", "probabilities"))
    assert result.get_response()["id"] == "job 7"
    assert (result.get_response()["model_name"], result.get_response()["model_version"]) == ("numbers", "1")


@pytest.mark.parametrize("datatype", ["FP64", "FP16", "INT8", "INT64", "UINT16"])
def test_numbers_of_other_datatypes_are_cast(client, models, datatype: str):
    values = (np.abs(matrix(NUMBERS, 4)) * 50).astype(triton_to_np_dtype(datatype))
    check(client.infer("numbers", [tensor("features", values, datatype)]), predicted(models["numbers"], values))


def test_nan_is_missing(client, models):
    values = matrix(NUMBERS, 6)
    values[::2, 1] = np.nan
    check(client.infer("numbers", [tensor("features", values, "FP32")]), predicted(models["numbers"], values))


def test_classification(client, models):
    expected = predicted(models["numbers"], matrix(NUMBERS, 3))
    assert expected.probabilities is not None
    for binary in (True, False):
        asked = triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=2)
        got = client.infer("numbers", [features()], outputs=[asked]).as_numpy("probabilities")
        assert got is not None
        assert got.shape == (3, 2)
        for row, probabilities, label in zip(got, expected.probabilities, expected.prediction, strict=True):
            texts = [cell.decode() if isinstance(cell, bytes) else cell for cell in row]
            (value, index, name), (second, *_) = (text.split(":", 2) for text in texts)
            assert (np.float32(value), name) == (probabilities.max(), label)
            assert int(index) == probabilities.argmax()
            assert np.float32(second) == np.sort(probabilities)[-2]
    with pytest.raises(InferenceServerException, match="classification: expected it of 'probabilities'"):
        client.infer("numbers", [features()], outputs=[triton.InferRequestedOutput("labels", class_count=1)])


def test_versions_and_a_regression(client, models):
    values = matrix(PRICE, 5) + np.array([1.7e9, 0.0])
    for version in ("1", "2"):
        expected = predicted(models[f"price:{version}"], values)
        result = client.infer("price", [tensor("features", values, "FP64")], model_version=version)
        assert result.get_response()["model_version"] == version
        check(result, expected, ("predictions",))
        check(
            client.infer("price", [tensor("features", values, "FP64", binary=False)], model_version=version),
            expected,
            ("predictions",),
        )
    with pytest.raises(InferenceServerException, match="versions: expected one of 1, 2, got none"):
        client.infer("price", [tensor("features", values, "FP64")])
    with pytest.raises(InferenceServerException, match="no 'price:3' is served") as refused:
        client.infer("price", [tensor("features", values, "FP64")], model_version="3")
    assert refused.value.status() == "404"


@pytest.mark.parametrize("binary", [True, False])
def test_columns_of_every_kind(client, models, binary: bool):
    columns = kinds_columns(40)
    size = np.array([np.nan if cell is None else cell for cell in columns["size"]], np.float32)
    if not binary:
        size = np.nan_to_num(size)  # JSON has no NaN
        columns["size"] = size.tolist()
    texts = {
        name: np.array([str(cell).encode() for cell in columns[name]], object) for name in ("colour", "flag", "when")
    }
    inputs = [tensor("size", size[:, None], "FP32", binary=binary)]
    inputs += [tensor(name, cells, "BYTES", binary=binary) for name, cells in texts.items()]
    check(client.infer("kinds", inputs[::-1]), models["kinds"].predict(columns))


def test_images_as_files_and_as_pixels(client, models):
    pictures = [picture(level) for level in (10, 100, 190)]
    expected = models["shades"].predict([{"image": pixels} for pixels in pictures])
    files = np.array([encode_png(pixels) for pixels in pictures], object)
    check(client.infer("shades", [tensor("image", files, "BYTES")]), expected)
    check(client.infer("shades", [tensor("image", np.stack(pictures), "UINT8")]), expected)
    check(client.infer("shades", [tensor("image", np.stack(pictures), "UINT8", binary=False)]), expected)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_both_ways(client, models, coding: str):
    expected = predicted(models["numbers"], matrix(NUMBERS, 300))
    for binary in (True, False):
        result = client.infer(
            "numbers",
            [features(300, binary=binary)],
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
        )
        check(result, expected)


def test_a_timeout_covers_the_whole_request_and_priorities_are_taken(client, models):
    expected = predicted(models["numbers"], matrix(NUMBERS, 3))
    check(client.infer("numbers", [features()], timeout=5_000_000, priority=1), expected)
    with pytest.raises(InferenceServerException, match="deadline") as refused:
        client.infer("numbers", [features(4096)], timeout=1)
    assert refused.value.status() == "504"
    check(client.infer("numbers", [features()]), expected)


def test_errors_are_decoded(client, models):
    def refuse(status: str, told: str, inputs: list[Any], model: str = "numbers", **more: Any) -> None:
        with pytest.raises(InferenceServerException, match=told) as refused:
            client.infer(model, inputs, **more)
        assert refused.value.status() == status

    refuse("404", "no 'nope' is served; there are", [features()], "nope")
    refuse(
        "400", "input 'featuers': unknown; did you mean 'features'", [tensor("featuers", matrix(NUMBERS, 1), "FP32")]
    )
    refuse("400", r"expected \[-1, 5\]", [tensor("features", matrix(NUMBERS, 1)[:, :4], "FP32")])
    refuse("400", "datatype: expected FP32 or", [tensor("features", np.array([[b"1"] * 5], object), "BYTES")])
    refuse("400", "column 'x2', row 3: expected a number within", [tensor("features", np.eye(5)[:3] * 1e39, "FP64")])
    refuse("413", "at most 4,096 rows", [features(4097)])
    refuse("400", "sequences of requests are not supported", [features()], sequence_id=3, sequence_start=True)
    refuse("400", "unknown parameter 'colour'", [features()], parameters={"colour": "red"})
    shared = triton.InferInput("features", [1, 5], "FP32")
    shared.set_shared_memory("region", 20)
    refuse("400", "shared memory is not supported", [shared])
    refuse("400", "output 'score': unknown", [features()], outputs=[triton.InferRequestedOutput("score")])
    unsupported = (
        client.get_system_shared_memory_status,
        client.get_log_settings,
        lambda: client.load_model("numbers"),
        lambda: client.unload_model("numbers"),
        lambda: client.get_trace_settings("numbers"),
    )
    for ask in unsupported:
        with pytest.raises(InferenceServerException, match="is not supported; GET /v2 lists") as refused:
            ask()
        assert refused.value.status() == "404"


def test_many_at_once_each_get_their_own(url, models):
    asked = [matrix(NUMBERS, i % 5 + 1, seed=i) for i in range(48)]
    expected = [predicted(models["numbers"], values) for values in asked]
    with triton.InferenceServerClient(url, concurrency=8) as client:
        waiting = [client.async_infer("numbers", [tensor("features", values, "FP32")]) for values in asked]
        for handle, answer in zip(waiting, expected, strict=True):
            close(handle.get_result().as_numpy("probabilities"), answer)

    def alone(values: np.ndarray) -> np.ndarray | None:
        with triton.InferenceServerClient(url) as client:
            asked = [tensor("features", values, "FP32")]
            return client.infer("numbers", asked, parameters={"deterministic": True}).as_numpy("probabilities")

    with ThreadPoolExecutor(4) as clients:
        for got, answer in zip(clients.map(alone, asked), expected, strict=True):
            close(got, answer)


def test_statistics_count_what_was_asked(client):
    def figures() -> dict[str, Any]:
        told: Any = client.get_inference_statistics("numbers", "1")
        return told["model_stats"][0]

    before = figures()
    client.infer("numbers", [features(7)])
    after = figures()
    assert after["inference_count"] == before["inference_count"] + 7
    assert after["execution_count"] == before["execution_count"] + 1
    for stage in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        old, new = (told["inference_stats"][stage] for told in (before, after))
        assert new["count"] == old["count"] + 1
        assert new["ns"] > old["ns"] or stage == "queue", "who finds the device idle does not wait"
    told: Any = client.get_inference_statistics()
    assert len(told["model_stats"]) == 5


def test_asyncio(url, models):
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(url) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("numbers")
            told: Any = await client.get_model_metadata("numbers")
            assert told["inputs"][0]["name"] == "features"
            check(await client.infer("numbers", [features()]), predicted(models["numbers"], matrix(NUMBERS, 3)))
            for coding in ("gzip", "deflate"):
                packed: dict[str, Any] = {f"{way}_compression_algorithm": coding for way in ("request", "response")}
                result = await client.infer("numbers", [features(binary=False)], **packed)
                check(result, predicted(models["numbers"], matrix(NUMBERS, 3)))
            with pytest.raises(InferenceServerException, match="no 'nope' is served"):
                await client.infer("nope", [features()])
            asked = [matrix(NUMBERS, i % 5 + 1, seed=i) for i in range(24)]
            results = await asyncio.gather(
                *(client.infer("numbers", [tensor("features", values, "FP32")]) for values in asked)
            )
            for values, result in zip(asked, results, strict=True):
                close(result.as_numpy("probabilities"), predicted(models["numbers"], values))

    asyncio.run(ask())
