"""Checkpoints by words seen: when they are due, whole or not at all, from the Trainer and from finetune."""

import itertools

import numpy as np
import pytest
import torch
from test_finetune import texts

from warmstart import WarmStartLM
from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.finetune import Windows, words
from warmstart.finetune.job import Job, Plan
from warmstart.finetune.words import Marks, marks, words_per_token


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus.build(texts(40), tokenizer="words", cache_dir=tmp_path_factory.mktemp("corpus"))


def test_marks_are_those_of_babylm():
    whole = [*range(1, 10), *range(10, 100, 10), *range(100, 1001, 100)]
    assert marks(0, 1e9) == whole
    steps = np.cumsum([0, *np.random.default_rng(0).integers(1, 7_000_000, 300)])
    found = [mark for a, b in itertools.pairwise(steps) for mark in marks(a, b)]
    assert found == [mark for mark in whole if mark * 1_000_000 <= steps[-1]]
    assert marks(999_999, 1_000_000) == [1]
    assert marks(1_000_000, 1_999_999) == []


def test_words_are_counted_in_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(words, "DOCUMENTS", 2)
    found = ["one two\nthree", "four  five six seven", "eight"]
    for tokenizer in ("words", "bpe", "characters"):
        corpus = Corpus.build(found, tokenizer=tokenizer, vocab_size=300, cache_dir=tmp_path)
        assert words_per_token(corpus) * corpus.n_tokens == pytest.approx(8)
        assert words_per_token(corpus, 4) == 2.0


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(words, "MILLION", 10)
    folders = Marks(tmp_path / "out", 0.5)

    def save(path):
        path.mkdir()
        (path / "one").write_text("1")

    assert folders.passed(19, save) == []
    assert [path.name for path in folders.passed(41, save)] == ["chck_1M", "chck_2M"]

    def fails(path):
        save(path)
        raise OSError("disk is full")

    with pytest.raises(OSError, match="full"):
        folders.passed(60, fails)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["chck_1M", "chck_2M"]

    def other(path):
        path.mkdir()
        (path / "two").write_text("2")

    Marks(tmp_path / "out", 0.5, tokens=39).passed(41, other)  # a run that began again replaces its own
    assert [[file.name for file in path.iterdir()] for path in sorted((tmp_path / "out").iterdir())] == [
        ["one"],
        ["two"],
    ]


@pytest.mark.filterwarnings("default")  # transformers warns
def test_the_trainer_writes_them_also_in_a_resumed_run(corpus, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="needs warmstart[hf]")
    pytest.importorskip("accelerate", reason="needs warmstart[hf]")
    from warmstart.finetune.callback import WordCheckpoints

    monkeypatch.setattr(words, "MILLION", 100)
    windows = Windows(corpus, 8)
    ratio = words_per_token(corpus, len(windows) * windows.length)

    def train(steps, resume=None, **options):
        sizes = {"vocab_size": corpus.vocab_size, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "run"), report_to=[], use_cpu=True, disable_tqdm=True, max_steps=steps,
            per_device_train_batch_size=4, save_steps=5, **options,
        )  # fmt: skip
        callback = WordCheckpoints(tmp_path / "out", ratio)
        trainer = transformers.Trainer(model, arguments, train_dataset=windows, callbacks=[callback])
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model

    counting = {"include_num_input_tokens_seen": True}
    train(8, **counting)
    expected = [f"chck_{mark}M" for mark in range(1, int(8 * 32 * ratio / 100) + 1)]
    assert len(expected) >= 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == expected
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    trained = train(12, resume=str(tmp_path / "run" / "checkpoint-5"), **counting)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert len(after) > len(times)
    early = [f"chck_{mark}M" for mark in range(1, int(5 * 32 * ratio / 100) + 1)]
    assert [after[name] for name in early] == [times[name] for name in early]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "chck_1M")
    assert loaded.num_parameters() == trained.num_parameters()
    with pytest.raises(InputError, match="include_num_input_tokens_seen=True"):
        train(1)


def test_finetune_writes_models_of_hugging_face(corpus, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="needs warmstart[hf]")
    valid = Corpus.encode(texts(10, seed=1), corpus.tokenizer, cache_dir=tmp_path)
    monkeypatch.setattr(words, "MILLION", int(600 * words_per_token(corpus) / 3))  # the third is passed at the end
    for name, contexts in (("alone", ("radial",)), ("beside", ("ngrams", "radial"))):
        model = WarmStartLM("potato", contexts=contexts, order=2, prune=(0,)).fit(corpus)
        plan = Plan("all", max_tokens=600, batch_tokens=256, checkpoints_by_words=tmp_path / name)
        Job(model, tmp_path / f"run-{name}", plan).run(corpus, valid)
        folders = sorted((tmp_path / name).iterdir())
        assert [folder.name for folder in folders] == ["chck_1M", "chck_2M", "chck_3M"]
        first, _, last = (transformers.AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
        trained = WarmStartLM.from_pretrained(tmp_path / f"run-{name}").to_torch().state_dict()
        found = [(each.base if name == "beside" else each).network.state_dict() for each in (first, last)]
        assert all(torch.equal(found[1][key], value) for key, value in trained.items())
        assert not all(torch.equal(found[0][key], value) for key, value in trained.items())
        tokenizer = transformers.AutoTokenizer.from_pretrained(folders[0])
        text = texts(1)[0]
        assert tokenizer(text)["input_ids"] == corpus.tokenizer.encode(text).ids
        assert tokenizer.eos_token_id == corpus.separator
        if name == "beside":
            assert np.isfinite(last.evaluate(valid)["nats"])
