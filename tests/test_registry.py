import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mmjax.artifact import registry
from mmjax.artifact.bundle import load_bundle, structural_problems
from mmjax.artifact.registry import delete, list_models, list_versions, promote, register, resolve, rollback, verify
from mmjax.errors import BundleError

BUNDLE = Path(__file__).parent / "fixtures" / "bundle_v1"


@pytest.fixture
def root(tmp_path):
    """A registry with three versions of iris and one of wine."""
    for run in "abc":
        register(tmp_path / "registry", "iris", BUNDLE, run_id=run)
    register(tmp_path / "registry", "wine", BUNDLE, run_id="w")
    return tmp_path / "registry"


def versions(root: Path, name: str = "iris") -> list[int]:
    return [model.version for model in list_versions(root, name)]


def test_registering_counts_up_and_copies_the_bundle(root):
    assert list_models(root) == ["iris", "wine"]
    assert versions(root) == [1, 2, 3]
    found = resolve(root, "iris:2")
    assert found == ("iris", 2, root / "iris" / "2")
    assert str(found) == "iris:2"
    assert load_bundle(found.path).digest == load_bundle(BUNDLE).digest
    assert {path.name: path.read_bytes() for path in found.path.iterdir()} == {
        path.name: path.read_bytes() for path in BUNDLE.iterdir()
    }


def test_the_same_run_registers_once(root):
    assert register(root, "iris", BUNDLE, run_id="b") == 2
    assert versions(root) == [1, 2, 3]


def test_a_damaged_bundle_is_not_registered(root, tmp_path):
    shutil.copytree(BUNDLE, tmp_path / "bad")
    (tmp_path / "bad" / "card.md").write_text("longer than it was, and other")
    with pytest.raises(BundleError, match=r"bad/card\.md: expected 30 bytes, got 29; restore it or retrain"):
        register(root, "iris", tmp_path / "bad", run_id="x")
    assert versions(root) == [1, 2, 3]
    assert register(root, "iris", BUNDLE, run_id="y") == 4


def test_eight_processes_register_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from mmjax.artifact.registry import register\n"
        "sys.stdin.read()\n"
        "print(*[register(Path(sys.argv[1]), 'iris', Path(sys.argv[2]), run_id=r) for r in (sys.argv[3], 'shared')])"
    )
    root = tmp_path / "registry"
    command = [sys.executable, "-c", code, str(root), str(BUNDLE)]
    started = [
        subprocess.Popen([*command, f"run{i}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for i in range(8)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
    outputs = []
    for process in started:
        assert process.stdout is not None
        outputs.append([int(number) for number in process.stdout.read().split()])
        process.stdout.close()
        assert process.wait() == 0
    own, shared = zip(*outputs, strict=True)
    assert len(set(own)) == 8
    assert len(set(shared)) == 1
    assert sorted({*own, *shared}) == versions(root) == list(range(1, 10))
    assert all(structural_problems(model.path) == [] for model in list_versions(root, "iris"))


def test_a_name_alone_is_production_else_the_newest(root):
    assert resolve(root, "iris").version == 3
    promote(root, "iris:1")
    assert resolve(root, "iris").version == 1
    assert resolve(root, "iris@production").version == 1


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("irsi", "no model 'irsi'; there are iris, wine; did you mean 'iris'?"),
        ("iris:9", "iris has no version 9; there are 1, 2, 3"),
        (
            "iris@staging",
            "iris has no alias 'staging'; promote one with `mmjax registry promote iris:3 --alias staging --registry ",
        ),
        ("iris@", "'iris@': expected NAME, NAME:VERSION or NAME@ALIAS"),
        ("iris:0", "expected NAME, NAME:VERSION or NAME@ALIAS"),
        ("iris:1@production", "expected NAME, NAME:VERSION or NAME@ALIAS"),
        ("../iris", "expected NAME, NAME:VERSION or NAME@ALIAS"),
        ("..", "expected NAME, NAME:VERSION or NAME@ALIAS"),
        (".hidden", "expected NAME, NAME:VERSION or NAME@ALIAS"),
        ("", "expected NAME, NAME:VERSION or NAME@ALIAS"),
        ("iris:1\n", "expected NAME, NAME:VERSION or NAME@ALIAS"),
    ],
)
def test_unknown_references_say_what_there_is(root, ref, message):
    with pytest.raises(BundleError) as caught:
        resolve(root, ref)
    assert message in str(caught.value)


def test_the_hint_is_a_command_that_can_be_typed(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    root.rename("registry")
    with pytest.raises(BundleError) as caught:
        resolve(Path("registry"), "iris@production")
    told = "registry: iris has no alias 'production'; promote one with `mmjax registry promote iris:3`"
    assert str(caught.value) == told


def test_unknown_alias_lists_the_others(root):
    promote(root, "iris:1", "staging")
    with pytest.raises(BundleError, match="no alias 'stagin'; there are staging; did you mean 'staging'\\?"):
        resolve(root, "iris@stagin")


def test_an_empty_registry_says_so(tmp_path):
    with pytest.raises(BundleError, match=r"no model 'iris'; it has none; train one first"):
        resolve(tmp_path / "none", "iris")
    assert list_models(tmp_path / "none") == []
    for change in (rollback, lambda root, name: promote(root, name), lambda root, name: delete(root, f"{name}:1")):
        with pytest.raises(BundleError, match="no model 'iris'"):
            change(tmp_path / "none", "iris")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "a" * 101, "x\n"])
def test_names_that_lead_elsewhere_are_refused(root, name):
    with pytest.raises(BundleError, match="no name for a model"):
        register(root, name, BUNDLE, run_id="x")
    with pytest.raises(BundleError, match="no name for an alias"):
        promote(root, "iris:1", name)


def test_promote_takes_the_newest_of_a_plain_name(root):
    promote(root, "iris:1")
    assert promote(root, "iris").version == 3
    assert resolve(root, "iris@production").version == 3


def test_promote_refuses_what_a_check_finds(root):
    calls = []

    def first(folder):
        calls.append(folder)
        return ["golden rows differ", "and more"]

    def second(folder):
        raise AssertionError("a later check relies on the ones before")

    with pytest.raises(BundleError) as caught:
        promote(root, "iris:2", checks=(first, second))
    assert caught.value.problems == ("iris:2 is not promoted: golden rows differ", "iris:2 is not promoted: and more")
    assert calls == [root / "iris" / "2"]
    assert registry.read_aliases(root, "iris").aliases == {}


def test_promote_and_verify_refuse_a_damaged_version(root):
    weights = root / "iris" / "2" / "arrays.npz"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"iris:2 is not promoted: .*arrays\.npz: expected 1674 bytes, got 1673"):
        promote(root, "iris:2", checks=(structural_problems,))
    assert verify(root, "iris:1", (structural_problems,)) == []
    assert len(verify(root, "iris:2", (structural_problems,))) == 1
    (root / "iris" / "2" / "manifest.json").write_bytes(b"{")
    assert "not readable as JSON" in verify(root, "iris:2", ())[0]


def test_a_bundle_that_is_not_the_registered_one_is_told(root):
    path = root / "iris" / "versions.json"
    path.write_text(path.read_text().replace('"digest": "', '"digest": "0'))
    assert "as registered, got" in verify(root, "iris:1", (structural_problems,))[0]


def test_rollback_walks_back_through_the_promotions(root):
    for number in (1, 2, 2, 3):
        promote(root, f"iris:{number}")
    assert rollback(root, "iris").version == 2
    assert rollback(root, "iris").version == 1
    with pytest.raises(BundleError, match="iris@production has no version before it; promote one by its number"):
        rollback(root, "iris")
    promote(root, "iris:3")
    assert rollback(root, "iris").version == 1
    log = registry.read_aliases(root, "iris").log
    assert [(change.action, change.version) for change in log] == [
        ("promote", 1),
        ("promote", 2),
        ("promote", 3),
        ("rollback", 2),
        ("rollback", 1),
        ("promote", 3),
        ("rollback", 1),
    ]


def test_rollback_passes_over_deleted_versions_and_refuses_unsound_ones(root):
    for number in (1, 2, 3):
        promote(root, f"iris:{number}")
    delete(root, "iris:2")
    with pytest.raises(BundleError, match="iris@production is not rolled back to 1: cracked"):
        rollback(root, "iris", checks=(lambda folder: ["cracked"],))
    assert rollback(root, "iris").version == 1


def test_delete_keeps_the_number_and_refuses_what_is_in_use(root):
    promote(root, "iris:3")
    with pytest.raises(BundleError, match="iris:3: is production; promote another version first, or force it"):
        delete(root, "iris:3")
    with pytest.raises(BundleError, match="iris: expected NAME:VERSION"):
        delete(root, "iris")
    assert delete(root, "iris@production", force=True).version == 3
    assert versions(root) == [1, 2]
    assert not (root / "iris" / "3").exists()
    assert registry.read_aliases(root, "iris").aliases == {}
    assert register(root, "iris", BUNDLE, run_id="c") == 4
    assert versions(root) == [1, 2, 4]


def test_a_model_whose_versions_are_all_deleted_is_gone_and_its_numbers_stay(root):
    delete(root, "wine:1")
    assert list_models(root) == ["iris"]
    with pytest.raises(BundleError, match="no model 'wine'"):
        resolve(root, "wine")
    assert register(root, "wine", BUNDLE, run_id="w") == 2


def test_leftovers_of_killed_processes_are_ignored_and_cleared(root):
    half = root / "iris" / ".4.123-abcd.tmp"
    half.mkdir()
    (half / "arrays.npz").write_bytes(b"half")
    (root / "iris" / ".versions.json.123-abcd.tmp").write_bytes(b"{")
    (root / "iris" / "notes").mkdir()
    assert versions(root) == [1, 2, 3]
    assert register(root, "iris", BUNDLE, run_id="d") == 4
    assert list((root / "iris").glob(".*.tmp")) == []
    assert (root / "iris" / "notes").is_dir()


def test_a_registration_killed_before_its_rename_keeps_its_number(root):
    shutil.rmtree(root / "iris" / "3")
    assert versions(root) == [1, 2]
    assert register(root, "iris", BUNDLE, run_id="d") == 4
    assert register(root, "iris", BUNDLE, run_id="c") == 3


def test_a_deletion_killed_before_its_end_is_a_deletion(root):
    path = root / "iris" / "versions.json"
    records = json.loads(path.read_text())
    records["2"]["deleted"] = "2026-01-01T00:00:00+00:00"
    path.write_text(json.dumps(records))
    assert versions(root) == [1, 3]
    promote(root, "iris:1")
    assert not (root / "iris" / "2").exists()


def test_a_folder_that_was_put_there_by_hand_counts(root):
    shutil.copytree(BUNDLE, root / "iris" / "7")
    assert versions(root) == [1, 2, 3, 7]
    assert register(root, "iris", BUNDLE, run_id="d") == 8
    delete(root, "iris:7")
    assert versions(root) == [1, 2, 3, 8]


def test_damaged_tables_are_named(root):
    (root / "iris" / "versions.json").write_text("{")
    with pytest.raises(BundleError, match=r"versions\.json: not readable as JSON"):
        resolve(root, "iris")
    (root / "wine" / "aliases.json").write_text('{"aliases": {"production": {"version": "one"}}}')
    with pytest.raises(BundleError, match=r"aliases\.json: damaged: .*restore it"):
        resolve(root, "wine")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_registry_can_be_read(root):
    (root / "iris").chmod(0o555)
    assert resolve(root, "iris").version == 3


def test_readers_see_whole_states_while_others_write(root):
    stop = threading.Event()
    seen = []

    def read():
        while not stop.is_set():
            seen.append(resolve(root, "iris@production").version)

    promote(root, "iris:1")
    reader = threading.Thread(target=read)
    reader.start()
    for number in (2, 3, 1) * 5:
        promote(root, f"iris:{number}")
    stop.set()
    reader.join()
    assert set(seen) <= {1, 2, 3}
    assert seen


def real_bundle(folder: Path, *, scale: float = 1.0) -> Path:
    """A bundle of a tiny network with honest golden rows; `scale` other than 1 then changes its weights."""
    import jax
    import numpy as np

    from mmjax.artifact.bundle import BundleContents, save_bundle
    from mmjax.artifact.predictor import make_golden, make_predictor
    from mmjax.config import Architecture, Config, Data, Model, TabularData
    from mmjax.data.encode import encode
    from mmjax.parts import States, build_parts
    from mmjax.recipe import resolve as decide
    from mmjax.schema import Column, Schema, Target

    target = Target(column="kind", task="classification", classes=("a", "b"))
    schema = Schema(target=target, columns=(Column(name="x", kind="numeric"), Column(name="y", kind="numeric")))
    data = Data(tabular=TabularData(path="tiny.csv", target_column="kind"))
    model = Model(architecture=Architecture(hidden_layers=(4,)))
    config = Config(name="tiny", data=data, model=model)
    config, _ = decide(config, schema, train_rows=4, validation_rows=0)
    columns = {"x": np.array(["1", "2", "3", "5"], object), "y": np.array(["0.5", "", "-1", "7"], object)}
    batch = encode(schema, columns)
    parts = build_parts(config, schema)
    transform = parts.transform.fit(batch)
    variables = jax.jit(parts.model.init)(jax.random.key(0), parts.transform.apply(transform, batch))
    states = States(variables, transform, parts.output.fit(np.array([0, 1, 1, 0])))
    golden = make_golden(make_predictor(config, schema, states), columns)
    scaled = jax.tree.map(lambda leaf: np.asarray(leaf) * np.asarray(scale, leaf.dtype), variables)
    kept = {"model": scaled, "transform": states.transform, "output": states.output}
    save_bundle(folder, BundleContents(config, schema, kept, {"test": {"accuracy": 0.5}}, golden, {}, "", {}))
    return folder


def test_promote_replays_the_golden_rows(tmp_path):
    from mmjax.artifact.predictor import golden_problems

    checks = (structural_problems, golden_problems)
    root = tmp_path / "registry"
    register(root, "tiny", real_bundle(tmp_path / "sound"), run_id="a")
    register(root, "tiny", real_bundle(tmp_path / "drifted", scale=1.01), run_id="b")
    assert promote(root, "tiny:1", checks=checks).version == 1
    assert verify(root, "tiny:1", checks) == []
    command = [sys.executable, "-m", "mmjax.registry", "promote", "tiny:2", "--registry", str(root)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 5
    assert refused.stderr.startswith("error: tiny:2 is not promoted: golden rows: expected probabilities within")
    assert resolve(root, "tiny@production").version == 1


class Against(RuleBasedStateMachine):
    """The registry against a model of it in plain Python: numbers, one alias, its history."""

    def __init__(self):
        super().__init__()
        import tempfile

        self.place = tempfile.TemporaryDirectory()
        self.root = Path(self.place.name)
        self.alive: set[int] = set()
        self.runs: dict[int, int] = {}
        self.last = 0
        self.stack: list[int] = []

    def teardown(self):
        self.place.cleanup()

    @rule(run=st.integers(0, 5))
    def register(self, run):
        if self.runs.get(run) not in self.alive:
            self.last += 1
            self.runs[run] = self.last
            self.alive.add(self.last)
        assert register(self.root, "m", BUNDLE, run_id=str(run)) == self.runs[run]

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def promote(self, data):
        number = data.draw(st.sampled_from(sorted(self.alive)))
        promote(self.root, f"m:{number}")
        if self.stack[-1:] != [number]:
            self.stack.append(number)

    @precondition(lambda self: self.alive)
    @rule()
    def rollback(self):
        before = [number for number in self.stack[:-1] if number in self.alive]
        if before:
            assert rollback(self.root, "m").version == before[-1]
            self.stack = before
        else:
            with pytest.raises(BundleError, match="no version before it"):
                rollback(self.root, "m")

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), force=st.booleans())
    def delete(self, data, force):
        number = data.draw(st.sampled_from(sorted(self.alive)))
        if self.stack[-1:] == [number] and not force:
            with pytest.raises(BundleError, match="promote another version first"):
                delete(self.root, f"m:{number}")
            return
        delete(self.root, f"m:{number}", force=force)
        self.alive.remove(number)
        if self.stack[-1:] == [number]:
            self.stack = []

    @invariant()
    def agree(self):
        assert versions(self.root, "m") == sorted(self.alive)
        if self.alive:
            expected = self.stack[-1] if self.stack else max(self.alive)
            assert resolve(self.root, "m").version == expected


TestAgainst = Against.TestCase
TestAgainst.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
