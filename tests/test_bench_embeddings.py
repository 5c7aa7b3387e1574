"""The bench of new tokenizers: on toy text, what it compares and what it reports."""

import lzma
import math

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
from benchmarks import embeddings

V = 420  # 256 bytes, and room for whole words


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Sentences of two small grammars, in the files the bench reads."""
    monkeypatch.setattr(embeddings, "VOCAB", V)
    monkeypatch.setattr(embeddings, "BATCH", 2)
    rng = np.random.default_rng(0)

    def text(first, n):
        words = [first + a + b for a in "abcdefghijklm" for b in "nopqrstuvwxyz"]
        return "".join(" ".join(rng.choice(words, 12)) + " <unk> end.\n" for _ in range(n))

    (tmp_path / "classics").mkdir()
    (tmp_path / "wikitext-2").mkdir()
    (tmp_path / "wikitext-2" / "train.txt").write_text(text("wiki", 200))
    with lzma.open(tmp_path / "classics" / "train.txt.xz", "wt") as file:
        file.write(text("book", 1200))
    for name in ("valid", "test"):
        (tmp_path / "classics" / f"{name}.txt").write_text(text("book", 40))
    return tmp_path


def test_text_is_cut_to_its_size(data):
    parts = embeddings.texts(data, 3_000_000)
    assert [len(parts[name]) for name in ("old", "new", "valid", "test")] == [200, 100, 40, 40]
    assert "<unk>" not in "".join(parts["old"])
    assert len(embeddings.texts(data, 150)["old"]) == 2  # lines of about 90 characters


def test_every_way_leaves_the_rest_of_the_model(data):
    parts = embeddings.texts(data, 3_000_000)
    old, new = embeddings.train_tokenizer(parts["old"]), embeddings.train_tokenizer(parts["new"])
    model = embeddings.new_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name, way in embeddings.ways(old, new, parts["new"]).items():
        after = way(model).state_dict()
        changed = {
            key for key, value in after.items() if value.shape != before[key].shape or (value != before[key]).any()
        }
        table = {key for key in changed if "embed_tokens" in key or "lm_head" in key}
        assert changed == table, name
        assert changed, name
        special = len(embeddings.SPECIAL)
        assert all(torch.equal(after[key][:special], before[key][:special]) for key in table)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_model_of_zeros_has_the_nats_of_a_uniform_one(data):
    model = embeddings.new_model()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    assert embeddings.nats(model, torch.randint(V, (1000,))) == pytest.approx(math.log(V), rel=1e-5)


def test_quick_run(data, tmp_path):
    output = embeddings.run(data, tmp_path / "docs", quick=True)
    assert [list(arm["nats"]) for arm in output["arms"]] == [["0", "5", "10"]] * 4
    assert all(arm["nats"]["10"] < arm["nats"]["0"] for arm in output["arms"])
    assert not (tmp_path / "docs").exists()
    assert "| cipher vectors, initializer_range |" in embeddings._section(output)[1]
