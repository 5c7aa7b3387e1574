"""Arrays and JSON on disk: exact bytes, and files that are refused."""

import functools

import numpy as np
import pytest

from warmstart.errors import InputError
from warmstart.files import (
    CHECKSUMS,
    TYPES,
    checksums,
    load_arrays,
    map_arrays,
    save_arrays,
    save_json,
    writing_arrays,
)


def test_transposed_views_come_back_as_they_were(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_arrays(tmp_path / "a", {"x.T": x.T, "column": x[:, 1]})
    arrays, facts = load_arrays(tmp_path / "a")
    assert np.array_equal(arrays["x.T"], x.T)
    assert arrays["x.T"].dtype == np.float32
    assert np.array_equal(arrays["column"], [1, 4])
    assert facts == {}


def test_same_content_gives_the_same_bytes_in_any_order(tmp_path):
    x, y = np.ones(3), np.arange(4)
    save_arrays(tmp_path / "a", {"x": x, "y": y}, {"k": 1.5, "name": "é"})
    save_arrays(tmp_path / "b", {"y": y, "x": x}, {"name": "é", "k": 1.5})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert load_arrays(tmp_path / "b")[1] == {"k": 1.5, "name": "é"}


def test_json_has_sorted_keys(tmp_path):
    save_json(tmp_path / "a.json", {"b": 1, "a": [2]})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": [\n    2\n  ],\n  "b": 1\n}\n'


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "a"
    save_arrays(path, {"x": np.ones(100)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="expected a whole safetensors file"):
        load_arrays(path)


def test_foreign_and_missing_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("once upon a time")
    for name in ("text", "missing", "."):
        with pytest.raises(InputError, match="expected a whole safetensors file"):
            load_arrays(tmp_path / name)


@pytest.mark.parametrize("dtype", TYPES.values())
def test_mapped_arrays_come_back_as_they_were(tmp_path, dtype):
    x = np.arange(6).astype(dtype)
    arrays = {"odd": np.arange(3, dtype=np.uint8), "x": x, "X.T": x.reshape(2, 3).T, "none": x[:0], "one": x[5:]}
    save_arrays(tmp_path / "a", arrays, {"unit": 2, CHECKSUMS: checksums(arrays, {"unit": 2})})
    read, facts = map_arrays(tmp_path / "a")
    assert facts == {"unit": 2}
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
        assert read[name].shape == array.shape


def test_writing_to_mapped_arrays_leaves_the_file_as_it_is(tmp_path):
    arrays = {"x": np.arange(3)}
    save_arrays(tmp_path / "a", arrays, {CHECKSUMS: checksums(arrays)})
    before = (tmp_path / "a").read_bytes()
    map_arrays(tmp_path / "a")[0]["x"][:] = 7
    assert (tmp_path / "a").read_bytes() == before


def test_mapped_files_are_compared_with_their_checksums(tmp_path):
    path, arrays, facts = tmp_path / "a", {"x": np.arange(3), "y": np.arange(2)}, {"unit": 2}
    good = checksums(arrays, facts)
    for wrong in (checksums(arrays | {"y": np.arange(2) + 1}, facts), {n: s for n, s in good.items() if n != "y"}, {}):
        save_arrays(path, arrays, facts | {CHECKSUMS: wrong})
        with pytest.raises(InputError, match="expected the content that was written"):
            map_arrays(path)
    save_arrays(path, arrays, {"unit": 3, CHECKSUMS: good})
    with pytest.raises(InputError, match="got other bytes in warmstart"):
        map_arrays(path)
    save_arrays(path, arrays, facts | {CHECKSUMS: good})
    assert map_arrays(path)[1] == load_arrays(path, checked=True)[1] == facts
    save_arrays(path, arrays, facts)  # damage of the word "checksums" would look so
    assert load_arrays(path)[1] == facts
    for read in (map_arrays, functools.partial(load_arrays, checked=True)):
        with pytest.raises(InputError, match="expected a file with checksums of its content, got one without"):
            read(path)


def test_arrays_that_are_filled_in_the_file_come_back_as_they_were(tmp_path):
    arrays = {kind: (np.arange(6) * 7 % 5).astype(dtype).reshape(2, 3) for kind, dtype in TYPES.items()}
    shapes = {name: (name, array.shape) for name, array in arrays.items()}
    for _ in range(2):  # the second time it replaces the first
        with writing_arrays(tmp_path / "a", shapes, {"name": "é"}) as empty:
            for name, array in arrays.items():
                assert not empty[name].any()
                empty[name][:] = array
    assert load_arrays(tmp_path / "a")[1] == {"name": "é"}
    for found in (load_arrays(tmp_path / "a")[0], map_arrays(tmp_path / "a")[0]):
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
    before = (tmp_path / "a").read_bytes()
    with pytest.raises(KeyboardInterrupt), writing_arrays(tmp_path / "a", shapes, {}):
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_arrays_that_cannot_be_mapped_are_refused(tmp_path):
    save_arrays(tmp_path / "a", {"x": np.array([True])})
    with pytest.raises(InputError, match=r"expected arrays of U8, .*, got BOOL in x"):
        map_arrays(tmp_path / "a")
