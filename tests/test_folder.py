"""Model folders: exact content, what stays after an error on the way, and every refusal."""

import json
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest

from warmstart import folder as module
from warmstart.adapters.initialise import check_new
from warmstart.errors import InputError
from warmstart.files import load_arrays, save_arrays
from warmstart.folder import check_target, has_network, load_model, save_model
from warmstart.near_shallow import Config, NearShallowModel

CONTEXTS = ("radial", "block", "document")
SHAPE = {"vocab_size": 9, "separator": 0, "bits": 5, "hidden_bits": 4, "block_size": 3, "contexts": CONTEXTS}


def model(seed=0, **shape):
    config, rng = Config(**SHAPE | shape), np.random.default_rng(seed)
    return NearShallowModel(config, {name: rng.random(size, np.float32) for name, size in config.shapes.items()})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def saved(tmp_path):
    save_model(tmp_path / "model", model(), {"tokenizer.json": b"old"})
    return tmp_path / "model"


# Writing


def test_round_trip_into_a_folder_with_missing_parents(tmp_path):
    before = model()
    save_model(str(tmp_path / "a" / "b"), before)
    after = load_model(str(tmp_path / "a" / "b"))
    assert after.config == before.config
    assert {name: a.tobytes() for name, a in after.arrays.items()} == {n: a.tobytes() for n, a in before.arrays.items()}


def test_the_same_model_gives_the_same_bytes(saved, tmp_path):
    save_model(tmp_path / "again", model(), {"tokenizer.json": lambda path: path.write_text("old")})
    assert content(tmp_path / "again") == content(saved)


def test_config_json_by_hand(saved):
    assert json.loads((saved / "config.json").read_text()) == {
        "model_type": "near-shallow",
        "format_version": 1,
        "vocab_size": 9,
        "separator": 0,
        "bits": 5,
        "hidden_bits": 4,
        "radius": 2,
        "block_size": 3,
        "contexts": ["radial", "block", "document"],
    }


def test_a_model_is_replaced_and_foreign_files_are_kept(saved):
    (saved / "notes").mkdir()
    (saved / "notes" / "config.json").write_text("mine")
    save_model(saved, model(seed=1, contexts=("radial",)), {"tokenizer.json": b"new"})
    assert load_model(saved).config.contexts == ("radial",)
    assert sorted(content(saved)) == ["config.json", "model.safetensors", "notes/config.json", "tokenizer.json"]
    assert (saved / "notes" / "config.json").read_text() == "mine"
    assert (saved / "tokenizer.json").read_bytes() == b"new"
    assert names(saved.parent) == ["model"]


def test_an_empty_folder_and_a_link_are_written_through(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    for seed in (0, 1):
        save_model(tmp_path / "link", model(seed))
        assert (tmp_path / "link").is_symlink()
        assert load_model(tmp_path / "empty").arrays["output.weight"][0, 0] == model(seed).arrays["output.weight"][0, 0]
    assert names(tmp_path) == ["empty", "link"]


def test_permissions_are_as_the_umask_says(tmp_path):
    umask = os.umask(0o027)
    try:
        save_model(tmp_path / "model", model(), {"a": b""})
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()} == {0o640}


def interrupt(*_, **__):
    raise KeyboardInterrupt


def fail_at(monkeypatch, call):
    """Let the n-th rename of a folder fail before it does anything."""
    rename, calls = Path.rename, []

    def failing(self, target):
        calls.append(target)
        if len(calls) == call:
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)


STEPS = {
    "extra file": lambda patch: {"b.json": interrupt},
    "weights": lambda patch: patch.setattr(module, "save_arrays", interrupt),
    "config": lambda patch: patch.setattr(module, "save_json", interrupt),
    "copy": lambda patch: patch.setattr(module.shutil, "copytree", interrupt),
    "swap": lambda patch: patch.setattr(module, "_swap", interrupt),
    "first rename": lambda patch: fail_at(patch, 1),
    "second rename": lambda patch: fail_at(patch, 2),
}


@pytest.mark.parametrize("step", STEPS)
def test_an_error_on_the_way_leaves_the_old_model_and_nothing_else(saved, monkeypatch, step):
    before = content(saved)
    extra = {"tokenizer.json": b"new"} | (STEPS[step](monkeypatch) or {})
    with pytest.raises((KeyboardInterrupt, OSError)):
        save_model(saved, model(seed=1), extra)
    assert content(saved) == before
    assert names(saved.parent) == ["model"]


@pytest.mark.parametrize("step", [step for step in STEPS if step not in ("copy", "second rename")])
def test_an_error_on_the_way_leaves_no_new_model(tmp_path, monkeypatch, step):
    extra = STEPS[step](monkeypatch)
    with pytest.raises((KeyboardInterrupt, OSError)):
        save_model(tmp_path / "model", model(), extra)
    assert names(tmp_path) == []


def test_an_old_model_that_cannot_be_put_back_is_not_deleted(saved, monkeypatch):
    before, rename = content(saved), Path.rename

    def taken(self, target):
        if self.name == "new":
            target.mkdir()
            (target / "foreign").touch()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", taken)
    with pytest.raises(OSError, match="not empty"):
        save_model(saved, model(seed=1))
    (old,) = set(names(saved.parent)) - {"model"}
    assert content(saved.parent / old) == before


def test_weights_that_do_not_fit_are_not_written(tmp_path):
    wrong = model()
    wrong.arrays["output.weight"] = wrong.arrays["output.weight"].astype(np.float64)
    with pytest.raises(InputError, match=r"output.weight: expected float32 \(18, 9\), got float64 \(18, 9\)"):
        save_model(tmp_path / "model", wrong)
    assert names(tmp_path) == []


@pytest.mark.parametrize("config", [None, "{}", '{"model_type": "gpt2"}', "[]", "once upon"])
def test_other_folders_are_not_replaced(tmp_path, config):
    (tmp_path / "thesis.txt").write_text("years of work")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    before = content(tmp_path)
    for refuse in (check_target, lambda path: save_model(path, model())):
        with pytest.raises(InputError, match="expected a new folder, an empty one or a model to replace"):
            refuse(tmp_path)
    assert content(tmp_path) == before


def test_targets_that_cannot_be_folders_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "here" / "below").mkdir(parents=True)
    (tmp_path / "loop").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(tmp_path / "here" / "new")
    monkeypatch.chdir(tmp_path / "here" / "below")
    for path, message in {
        tmp_path / "file": "got a file",
        tmp_path / "file" / "model": "expected .*file to be a folder that can be written to",
        ".": "the working directory",
        "..": "the working directory",
        "/": "a mount point",
        tmp_path / "loop": "got links that lead to each other",
        tmp_path / "back" / "model": "got links that lead to each other",
    }.items():
        with pytest.raises(InputError, match=message):
            check_target(path)
    with pytest.raises(InputError, match="got links that lead to each other"):
        check_new(tmp_path / "loop")
    assert check_target(tmp_path / "link") == check_new(tmp_path / "link") == tmp_path / "here" / "new"
    assert check_target("new/model") == tmp_path / "here" / "below" / "new" / "model"
    assert names(tmp_path / "here" / "below") == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)  # root may write anywhere
    with pytest.raises(InputError, match="can be written to"):
        check_target(tmp_path / "model")


# Reading


def test_a_byte_order_mark_before_the_configuration(saved):
    config = saved / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert load_model(saved).config.bits == 5


def rewrite(saved, **changes):
    """Change fields of config.json; None takes one away."""
    fields = json.loads((saved / "config.json").read_text()) | changes
    kept = {name: value for name, value in fields.items() if value is not None}
    (saved / "config.json").write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "expected model_type 'near-shallow' or 'counts', got 'gpt2'"),
        ({"model_type": None}, "expected model_type 'near-shallow' or 'counts', got None"),
        ({"format_version": 2}, "expected format_version 1, got 2"),
        ({"bits": None, "radius": None}, re.escape("got none of ['bits', 'radius'] and the unknown []")),
        ({"heads": 8}, re.escape("got none of [] and the unknown ['heads']")),
        ({"bits": "5"}, "bits: expected a whole number from 1 to 2147483647, got '5'; save"),
        ({"radius": 2**40}, "radius: expected a whole number from 1 to 65536, got 1099511627776; save"),
        ({"block_size": 10**400}, "block_size: expected a whole number from 1 to 65536, got 1000+; save"),
        ({"separator": "0"}, "config.json: .*save the model again"),
        ({"contexts": 3}, "config.json: contexts: expected some of .*, got 3; save the model again"),
        ({"contexts": [["radial"], {}]}, "config.json: contexts: expected some of .*save the model again"),
        ({"contexts": ["cache"]}, "contexts: expected some of"),
    ],
)
def test_wrong_fields_are_named(saved, changes, message):
    rewrite(saved, **changes)
    with pytest.raises(InputError, match=message):
        load_model(saved)


@pytest.mark.parametrize("text", [None, b"", b'{"bits": 5', b"\xff\xfe", b"[1]", b"null"])
def test_a_damaged_config_is_refused(saved, text):
    (saved / "config.json").unlink()
    if text is not None:
        (saved / "config.json").write_bytes(text)
    with pytest.raises(InputError, match=r"config.json: expected"):
        load_model(saved)


@pytest.mark.parametrize("keep", [None, 0, 7, 300, -1])
def test_damaged_weights_are_refused(saved, keep):
    weights = saved / "model.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    if keep is not None:
        weights.write_bytes(data[:keep])
    with pytest.raises(InputError, match=r"model.safetensors: expected a whole safetensors file"):
        load_model(saved)


def test_foreign_weights_list_the_first_differences(saved):
    arrays, _ = load_arrays(saved / "model.safetensors")
    arrays["lm_head"] = np.ones(3, np.float32)
    arrays["output.weight"] = arrays["output.weight"].T
    arrays["embedding.weight"] = arrays["embedding.weight"].astype(np.float16)
    del arrays["contexts.block.attention.weight"]
    save_arrays(saved / "model.safetensors", arrays)
    with pytest.raises(InputError) as caught:
        load_model(saved)
    message = str(caught.value)
    assert "contexts.block.attention.weight: expected float32 (3, 3), got nothing" in message
    assert "embedding.weight: expected float32 (9, 5), got float16 (9, 5)" in message
    assert "lm_head: expected nothing, got float32 (3,)" in message
    assert "output.weight" not in message


def test_weights_of_another_shape_are_refused(saved):
    rewrite(saved, bits=6)
    with pytest.raises(InputError, match=r"embedding.weight: expected float32 \(9, 6\), got float32 \(9, 5\)"):
        load_model(saved)


def test_a_file_and_nothing_are_no_model_folders(saved):
    for path, got in ((saved / "config.json", "a file"), (saved / "missing", "nothing there")):
        with pytest.raises(InputError, match=f"expected a model folder, got {got}"):
            load_model(path)


def test_folders_of_counts_alone(tmp_path):
    save_model(tmp_path / "model", None, {"mixture.safetensors": b"m"})
    assert names(tmp_path / "model") == ["config.json", "mixture.safetensors"]
    assert not has_network(tmp_path / "model")
    with pytest.raises(InputError, match="expected a model with a network, got counts alone"):
        load_model(tmp_path / "model")
    rewrite(tmp_path / "model", format_version=2)
    with pytest.raises(InputError, match="expected format_version 1, got 2"):
        has_network(tmp_path / "model")
    save_model(tmp_path / "model", None, {})
    assert names(tmp_path / "model") == ["config.json"]


def test_files_of_an_older_model_go_if_the_whole_model_is_written(saved):
    older = ("mixture.safetensors", "counts.safetensors", "ngrams.safetensors")
    for name in older:
        (saved / name).write_bytes(b"old")
    save_model(saved, model(seed=1))
    assert names(saved) == sorted(["config.json", "model.safetensors", "tokenizer.json", *older])
    save_model(saved, model(seed=1), {"counts.safetensors": b"new"})
    assert names(saved) == ["config.json", "counts.safetensors", "model.safetensors", "tokenizer.json"]
    save_model(saved, None, {"tokenizer.json": b"new"})
    assert names(saved) == ["config.json", "tokenizer.json"]


def test_weights_with_a_flipped_bit_are_refused(saved):
    data = bytearray((saved / "model.safetensors").read_bytes())
    data[-9] ^= 4
    (saved / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"expected the content that was written, got other bytes in output\.weight"):
        load_model(saved)
