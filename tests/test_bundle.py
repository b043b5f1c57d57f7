import json
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.artifact import manifest as manifest_module
from mmjax.artifact.bundle import Golden, load_bundle, save_bundle, structural_problems
from mmjax.artifact.files import parse_object, plain, to_json
from mmjax.artifact.manifest import (
    FileEntry,
    Manifest,
    content_digest,
    metrics_of,
    read_manifest,
    read_verified,
    sealed,
    table_of,
)
from mmjax.config import Data, ImageData
from mmjax.errors import BundleError
from mmjax.schema import ImageSpec, Schema, Target
from tests.make_bundle_fixture import example_contents
from tests.test_tree import same

FIXTURE = Path(__file__).parent / "fixtures" / "bundle_v1"


def same_contents(one, other) -> bool:
    """Equal in every part, NaN equal to NaN, arrays bit for bit."""
    golden = (
        list(one.golden.columns) == list(other.golden.columns)
        and repr(one.golden.columns) == repr(other.golden.columns)
        and same(one.golden.expected, other.golden.expected)
        and one.golden.tolerance == other.golden.tolerance
    )
    rest = (one.config, one.schema, one.report, one.card, one.provenance, repr(one.metrics))
    answers = one.answers is other.answers or same(one.answers._asdict(), other.answers._asdict())
    found = (*other[:2], other.report, other.card, other.provenance, repr(other.metrics))
    return golden and answers and same(one.states, other.states) and rest == found


@pytest.fixture
def folder(tmp_path):
    save_bundle(tmp_path / "bundle", example_contents())
    return tmp_path / "bundle"


def rewrite(folder: Path, **changes) -> None:
    """Give the bundle a manifest with other fields and a right seal, as somebody with bad intentions would."""
    found = json.loads((folder / "manifest.json").read_bytes())
    entries = {name: FileEntry(**entry) for name, entry in found.pop("files").items()}
    known = {key: changes.pop(key, value) for key, value in found.items()}
    manifest = Manifest(**{**known, "files": changes.pop("files", entries), "manifest_sha256": ""})
    assert not changes
    (folder / "manifest.json").write_bytes(sealed(manifest))


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Replace a file of the bundle so that every digest agrees with it."""
    (folder / name).write_bytes(data)
    manifest = read_manifest(folder)
    files = {**manifest.files, **table_of({name: data})}
    rewrite(folder, files=files, digest=content_digest(files, manifest.metrics))


def test_what_is_saved_comes_back(folder):
    assert same_contents(load_bundle(folder).contents, example_contents())
    assert structural_problems(folder) == []


def test_bundle_of_format_1_loads_forever():
    bundle = load_bundle(FIXTURE)
    assert same_contents(bundle.contents, example_contents())
    assert bundle.digest == read_manifest(FIXTURE).digest
    assert sum(path.stat().st_size for path in FIXTURE.iterdir()) < 50_000


@pytest.mark.parametrize(("path", "values"), [("digits", ("0", "1")), ("digits.csv", (0, 1))])
def test_names_of_folders_are_texts_also_where_an_older_bundle_says_that_the_task_was_set(tmp_path, path, values):
    contents = example_contents()
    data = Data(image=ImageData(path=path, task="classification"))
    target = Target(column="label", task="classification", classes=("0", "1"), reason="task is set in the config")
    schema = Schema(target=target, image=ImageSpec(height_px=8, width_px=8))
    config = msgspec.structs.replace(contents.config, data=data)
    save_bundle(tmp_path / "b", contents._replace(config=config, schema=schema))
    assert load_bundle(tmp_path / "b").contents.schema.target.values == values


def test_identical_runs_give_one_digest_wherever_and_whenever(tmp_path):
    elsewhere = {"run_id": "other", "host": "elsewhere"}
    contents = example_contents()
    first = save_bundle(tmp_path / "a", contents)
    assert first == save_bundle(
        tmp_path / "b", contents._replace(provenance=elsewhere, report={"seconds": 3}, card="-")
    )
    assert (tmp_path / "a" / "arrays.npz").read_bytes() == (tmp_path / "b" / "arrays.npz").read_bytes()


def _other_config(contents):
    return contents._replace(config=msgspec.structs.replace(contents.config, seed=1))


def _other_schema(contents):
    return contents._replace(schema=msgspec.structs.replace(contents.schema, missing_markers=("-",)))


def _other_weight(contents):
    contents.states["model"]["params"]["Dense_0"]["kernel"][0, 0] = np.nextafter(np.float32(0), np.float32(1))
    return contents


def _other_golden(contents):
    contents.golden.columns["width"][0] = "1.00"
    return contents


def _other_metric(contents):
    return contents._replace(metrics={"test": {"accuracy": 0.961}})


@pytest.mark.parametrize("change", [_other_config, _other_schema, _other_weight, _other_golden, _other_metric])
def test_the_digest_tells_any_other_content(tmp_path, change):
    assert save_bundle(tmp_path / "a", example_contents()) != save_bundle(tmp_path / "b", change(example_contents()))


def test_an_existing_folder_is_refused_and_left_alone(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(BundleError, match=r"bundle: exists already; bundles never change, choose a new folder"):
        save_bundle(folder, example_contents())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_save_that_fails_leaves_nothing(tmp_path):
    contents = example_contents()._replace(states={"model": {"w": 1.0}})
    with pytest.raises(BundleError, match="model/w: expected arrays"):
        save_bundle(tmp_path / "bundle", contents)
    with pytest.raises(TypeError, match="set has no JSON form"):
        save_bundle(tmp_path / "bundle", example_contents()._replace(report={"x": {1}}))
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_flipped_byte_goes_unseen(data):
    name = data.draw(st.sampled_from(sorted(path.name for path in FIXTURE.iterdir())))
    whole = (FIXTURE / name).read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    flip = data.draw(st.integers(1, 255))
    damaged = whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :]
    assert_refused(name, damaged)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_no_truncation_goes_unseen(data):
    name = data.draw(st.sampled_from(sorted(path.name for path in FIXTURE.iterdir())))
    whole = (FIXTURE / name).read_bytes()
    assert_refused(name, whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_every_byte_of_the_manifest_counts(tmp_path):
    whole = (FIXTURE / "manifest.json").read_bytes()
    for position in range(0, len(whole), 7):
        # 0x2a turns the blanks of the indentation into line feeds, which JSON does not mind.
        damaged = whole[:position] + bytes([whole[position] ^ 0x2A]) + whole[position + 1 :]
        (tmp_path / "manifest.json").write_bytes(damaged)
        with pytest.raises(BundleError, match=r"manifest\.json"):
            read_manifest(tmp_path)


def assert_refused(name: str, damaged: bytes) -> None:
    """The fixture with this file damaged does not load, and the file is named."""
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        for path in FIXTURE.iterdir():
            (Path(place) / path.name).write_bytes(damaged if path.name == name else path.read_bytes())
        with pytest.raises(BundleError, match=name.replace(".", r"\.")):
            load_bundle(Path(place))


def test_everything_wrong_is_named_at_once(folder):
    weights = bytearray((folder / "arrays.npz").read_bytes())
    weights[200] ^= 1
    (folder / "arrays.npz").write_bytes(weights)
    (folder / "card.md").write_bytes(b"# flow")
    (folder / "report.json").unlink()
    (folder / "notes.txt").write_text("mine")
    (folder / "schema.json").rename(folder.parent / "moved")
    (folder / "schema.json").symlink_to(folder.parent / "moved")
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    lines = [line.removeprefix(f"{folder}/") for line in caught.value.problems]
    expected = read_manifest(folder).files["arrays.npz"].sha256
    assert lines[0] == "schema.json: expected a plain file, got a link or something else; restore it or retrain"
    assert lines[1].startswith(f"arrays.npz: expected sha256 {expected}, got ")
    assert lines[1].endswith("; restore it or retrain")
    assert lines[2:] == [
        "report.json: is missing; restore it or retrain",
        "card.md: expected 30 bytes, got 6; restore it or retrain",
        "notes.txt: is not in the manifest; take it out",
    ]


def test_a_newer_format_is_refused_by_name(folder):
    rewrite(folder, format=2)
    told = r"manifest\.json: bundle format 2 is newer than this mmjax reads \(1\); install a newer mmjax"
    with pytest.raises(BundleError, match=told):
        load_bundle(folder)


def test_an_older_format_is_upgraded_step_by_step(folder, monkeypatch):
    def to_2(found, files):
        return {**found, "format": 2}, {**files, "card.md": b"# two"}

    def to_3(found, files):
        return {**found, "format": 3, "name": found["name"] + "-3"}, files

    monkeypatch.setattr(manifest_module, "UPGRADES", {1: to_2, 2: to_3})
    monkeypatch.setattr(manifest_module, "BUNDLE_FORMAT", 3)
    assert load_bundle(folder).contents.card == "# two"
    assert read_manifest(folder).name == "flowers-3"


def test_missing_folder_and_missing_manifest(tmp_path):
    with pytest.raises(BundleError, match="nowhere: no such bundle folder; train again or check the path"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"manifest\.json: is missing"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/passwd", "a/b.json", "..", "manifest.json", "a\\b.json", ""])
def test_names_that_lead_elsewhere_are_refused(folder, name):
    (folder.parent / "secret.txt").write_text("secret")
    rewrite(folder, files={**read_manifest(folder).files, name: FileEntry("0" * 64, 6)})
    with pytest.raises(BundleError, match="is no plain file name"):
        load_bundle(folder)


def test_a_pickle_with_right_digests_is_not_read(folder):
    import io

    buffer = io.BytesIO()
    np.savez(buffer, **{"model/w": np.array([{"x": 1}], object)})
    replace_file(folder, "arrays.npz", buffer.getvalue())
    with pytest.raises(BundleError, match=r"arrays\.npz: not readable as arrays: .*allow_pickle=False"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("config.json", b"{", r"config\.json: not readable as JSON"),
        (
            "config.json",
            b'{"name": "x", "datta": {}}',
            r"config\.json: datta: unknown key; .*did you mean 'data'\?; restore it or retrain",
        ),
        ("states.json", b"[]", r"states\.json: expected a JSON object, got list"),
        ("states.json", b'{"model": {"array": "gone"}}', r"states\.json: no array for gone"),
        ("schema.json", b"{}", r"schema\.json: not a schema"),
        ("golden.json", b'{"columns": 3}', r"golden\.json: no golden rows"),
        ("golden.json", b'{"columns": {"a": [{}]}, "tolerance": {}, "expected": null}', r"no golden rows.*no cell"),
        ("card.md", b"\xff", r"card\.md: not UTF-8 text"),
        ("report.json", b"[" * 100_000, r"report\.json: (not readable as JSON|expected a JSON object)"),
    ],
)
def test_files_with_right_digests_and_wrong_content(folder, name, data, message):
    replace_file(folder, name, data)
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


def test_a_digest_that_is_not_of_the_content_is_refused(folder):
    rewrite(folder, digest="0" * 64)
    with pytest.raises(BundleError, match=f"expected content digest {'0' * 64}, got"):
        read_verified(folder)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (b"", "not readable as JSON"),
        (b"[]", "expected a JSON object, got list"),
        (b'{"format": true}', "expected a bundle format number, got True"),
        (b'{"format": 0}', "expected a bundle format number, got 0"),
        (b'{"format": 1}', "expected sha256 None, got"),
        (b'{"format": 1, "manifest_sha256": "\\ud800"}', "expected sha256"),
    ],
)
def test_damaged_manifests_are_told_apart(tmp_path, manifest, message):
    (tmp_path / "manifest.json").write_bytes(manifest)
    with pytest.raises(BundleError, match=r"manifest\.json: ") as caught:
        load_bundle(tmp_path)
    assert message in str(caught.value)


def test_metrics_keep_what_json_cannot(folder):
    metrics = metrics_of(read_manifest(folder))
    assert np.isnan(metrics["test"]["roc_auc"])
    assert metrics["test"]["mape"] == float("inf")


def test_golden_rows_must_agree_in_number(tmp_path):
    golden = Golden({"a": ["1", "2"]}, {"prediction": np.zeros((3, 1))}, {})
    with pytest.raises(BundleError, match="expected one number of rows, got column 'a' 2, expected 'prediction' 3"):
        save_bundle(tmp_path / "b", example_contents()._replace(golden=golden))


def test_golden_cells_of_numpy_and_odd_texts(tmp_path):
    cells = np.array(["\ud800", np.str_("x"), np.float32(0.5), np.int64(3), b"", True], object)
    golden = Golden({"a": cells}, {"prediction": np.zeros((6, 1))}, {"cpu/float32": 0.0})  # pyright: ignore[reportArgumentType]
    save_bundle(tmp_path / "b", example_contents()._replace(golden=golden))
    assert load_bundle(tmp_path / "b").contents.golden.columns == {"a": ["\ud800", "x", 0.5, 3, b"", True]}


def test_golden_cells_of_another_type_are_refused(tmp_path):
    golden = Golden({"a": [{1}]}, {}, {})
    with pytest.raises(BundleError, match="golden rows: expected text, numbers, bytes or u8 arrays, got set"):
        save_bundle(tmp_path / "b", example_contents()._replace(golden=golden))


def test_a_bundle_is_readable_by_others_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        save_bundle(tmp_path / "b", example_contents())
    finally:
        os.umask(before)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "b" / "card.md").stat().st_mode & 0o777 == 0o644


def test_a_moved_bundle_still_loads(folder, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert load_bundle(tmp_path / "link").digest == read_manifest(tmp_path / "elsewhere").digest


def test_plain_json_of_what_programs_hold():
    value = {"x": np.float32(np.inf), "n": np.int64(3), "a": np.array([1.0, np.nan]), "p": Path("a/b"), "b": "\udcff"}
    assert to_json(value) == b'{"x": null, "n": 3, "a": [1.0, null], "p": "a/b", "b": "\\\\udcff"}'
    assert plain(Golden({}, {}, {})) == {"columns": {}, "expected": {}, "tolerance": {}}


def test_parse_object_names_the_file():
    with pytest.raises(BundleError, match=r"^run\.json: not readable as JSON: .*; restore it or retrain$"):
        parse_object(b"{", "run.json")
