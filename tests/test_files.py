"""Arrays and JSON on disk: exact bytes, and files that are refused."""

import numpy as np
import pytest

from warmstart.errors import InputError
from warmstart.files import load_arrays, save_arrays, save_json


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
