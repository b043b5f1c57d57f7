import io
import zipfile
from typing import NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmjax.artifact import tree
from mmjax.errors import BundleError

DTYPES = (np.float32, np.float64, np.float16, np.int8, np.int32, np.uint8, np.uint32, np.bool_, np.complex64, ">f4")
arrays = st.one_of(
    hnp.arrays(st.sampled_from([np.dtype(kind) for kind in DTYPES]), hnp.array_shapes(min_dims=0, min_side=0)),
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0)).map(lambda array: array.astype(ml_dtypes.bfloat16)),
)
trees = st.recursive(
    st.none() | arrays,
    lambda inner: st.one_of(
        st.dictionaries(st.text(max_size=4), inner, max_size=3),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
    ),
    max_leaves=6,
)


def same(one, other) -> bool:
    """The same containers, keys in the same order, dtypes, shapes and bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if one is None:
        return True
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@settings(max_examples=50, deadline=None)
@given(trees)
def test_a_tree_comes_back_bit_for_bit(original):
    structure, found = tree.flatten(original, "model")
    back = tree.load_arrays(tree.save_arrays(found), "arrays.npz")
    assert same(tree.unflatten(structure, back, "here"), original)


@settings(max_examples=25, deadline=None)
@given(trees)
def test_the_same_arrays_give_the_same_bytes(original):
    assert tree.save_arrays(tree.flatten(original, "a")[1]) == tree.save_arrays(tree.flatten(original, "a")[1])


def test_names_are_paths_and_never_clash():
    leaf = np.zeros(2)
    _, found = tree.flatten({"a": {"b": leaf}, "a/b": leaf, "": [leaf], "file": leaf, "é": leaf}, "state")
    assert list(found) == ["state/a/b", "state/a%2Fb", "state//0", "state/file", "state/%C3%A9"]


def test_device_arrays_and_scalars_become_host_arrays():
    structure, found = tree.flatten({"x": jnp.ones((2, 3), jnp.bfloat16), "t": np.float32(1.5)}, "s")
    back = tree.unflatten(structure, found, "here")
    assert back["x"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(back["x"].astype(np.float32), np.ones((2, 3)))
    assert (back["t"].shape, back["t"].dtype, float(back["t"])) == ((), np.float32, 1.5)


class Pair(NamedTuple):
    mean: np.ndarray
    std: np.ndarray


def test_what_cannot_be_kept_is_refused_all_at_once_by_path():
    state = {"pair": Pair(np.ones(1), np.ones(1)), "x": [1.0], "names": np.array(["a"], object), 3: None}
    with pytest.raises(BundleError) as caught:
        tree.flatten(state, "transform")
    assert caught.value.problems == (
        "transform: expected text keys, got 3; name the entry",
        "transform/pair: expected arrays in dicts, lists and tuples, got Pair; convert it",
        "transform/x/0: expected arrays in dicts, lists and tuples, got float; convert it",
        "transform/names: expected numbers or booleans, got an array of object; convert it",
    )


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ({"array": "s/b"}, "here: no array for s/b; restore the bundle or retrain"),
        (None, "here: arrays that belong nowhere: s/a; restore the bundle or retrain"),
        ({"array": "s/a", "type": "object"}, "no structure of arrays"),
        ({"list": [], "tuple": []}, "no structure of arrays"),
        ({"dict": []}, "no structure of arrays"),
        (7, "here: no structure of arrays: 7; restore the bundle or retrain"),
    ],
)
def test_structure_and_arrays_that_do_not_belong_together(structure, message):
    with pytest.raises(BundleError, match=message.replace("(", "\\(")):
        tree.unflatten(structure, {"s/a": np.zeros(1)}, "here")


def test_pickled_objects_are_never_read():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([{"x": 1}], object))
    with pytest.raises(BundleError, match=r"arrays.npz: not readable as arrays: .*allow_pickle=False"):
        tree.load_arrays(buffer.getvalue(), "arrays.npz")


def test_a_name_given_twice_is_refused():
    buffer = io.BytesIO(tree.save_arrays({"a": np.zeros(1)}))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a.npy", b"")
    with pytest.raises(BundleError, match="a name comes twice"):
        tree.load_arrays(buffer.getvalue(), "arrays.npz")


def test_garbage_is_no_archive():
    with pytest.raises(BundleError, match=r"x\.npz: not readable as arrays"):
        tree.load_arrays(b"PK garbage", "x.npz")
