"""Tokenizers: where they cut, that they are deterministic, and that ranking changes nothing but the ids."""

import json
import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from warmstart import tokenizer as module
from warmstart.corpus import Corpus
from warmstart.documents import default_corpus, read_documents
from warmstart.errors import InputError
from warmstart.tokenizer import (
    KINDS,
    SEPARATOR,
    UNKNOWN,
    encoded,
    load_tokenizer,
    rank_tokens,
    token_ranks,
    train_tokenizer,
    unknown_id,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def texts():
    return list(default_corpus("test"))


@pytest.fixture(scope="module")
def bpe(texts):
    return train_tokenizer(texts, "bpe", 600)


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_byte_pairs_worked_out_by_hand():
    # pairs of "ab", " ab", " abc", " c": ab 3 times, then " ab" 2 times; " abc", " c" once
    tokenizer = train_tokenizer(["ab ab abc c"], "bpe", 300)
    assert tokenizer.get_vocab_size() == 257 + 2
    assert tokenizer.token_to_id(SEPARATOR) == 0
    assert tokenizer.encode("abc ab").tokens == ["ab", "c", "Ġab"]


@given(st.text())
def test_bpe_keeps_every_text(bpe, text):
    assert bpe.decode(ids(bpe, text)) == text


def test_words_are_letters_or_signs_and_rare_ones_unknown():
    tokenizer = train_tokenizer(["It is, it is; it was <unk> <unk> <unk>"], "words", 5)
    assert tokenizer.get_vocab() == {SEPARATOR: 0, "<unk>": 1, "is": 2, "it": 3, ",": 4}
    assert ids(tokenizer, "it was, <unk>\n is") == [3, 1, 4, 1, 2]
    assert tokenizer.decode([3, 1, 2]) == "it <unk> is"


def test_characters_decode_to_the_text():
    text = "a\n\n b\r\n\té\U0001f600 <unk>"
    tokenizer = train_tokenizer([text], "characters", 100)
    assert len(ids(tokenizer, text)) == len(text)
    assert tokenizer.decode(ids(tokenizer, text)) == text
    assert tokenizer.encode("aZ").tokens == ["a", "<unk>"]


@pytest.mark.parametrize("kind", ["bpe", "words", "characters"])
def test_a_separator_in_the_text_is_text(kind):
    tokenizer = train_tokenizer([f"a {SEPARATOR} b"], kind)
    separator = tokenizer.token_to_id(SEPARATOR)
    for again in (tokenizer, load_tokenizer(tokenizer), rank_tokens(tokenizer, np.ones(tokenizer.get_vocab_size()))):
        assert separator not in ids(again, f"a {SEPARATOR} b")


@pytest.mark.parametrize(
    ("kind", "size"), [("bpe", 256), ("words", 2), ("characters", 2), ("bpe", "9"), ("syllables", 99)]
)
def test_bad_settings(kind, size):
    with pytest.raises(InputError, match=r"expected (at least|a tokenizer)"):
        train_tokenizer(["a"], kind, size)


def test_errors_of_the_texts_come_through():
    def texts():
        yield "a"
        raise InputError("line 2")

    with pytest.raises(InputError, match="line 2"):
        train_tokenizer(texts())


def test_threads_and_repetition_do_not_change_the_tokenizer(tmp_path, texts):
    code = (
        "import hashlib, json, sys; from warmstart.tokenizer import *\n"
        "texts = json.load(open(sys.argv[1]))\n"
        "for kind in KINDS * 2: print(hashlib.sha256(train_tokenizer(texts, kind, 2000).to_str().encode()).hexdigest())"
    )
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    command = [sys.executable, "-c", code, str(tmp_path / "texts.json")]
    outputs = set()
    for n, parallel in (("1", "false"), ("1", "true"), ("2", "true")):
        environment = os.environ | {"RAYON_NUM_THREADS": n, "TOKENIZERS_PARALLELISM": parallel}
        run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
        outputs.add(run.stdout)
    (output,) = outputs
    digests = output.split()
    assert digests[:3] == digests[3:]
    assert len(set(digests)) == 3


def test_ctrl_c_ends_the_training():
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # what nohup starts ignores it
        "from warmstart.tokenizer import train_tokenizer\n"
        "def texts():\n"
        "    print('ready', flush=True)\n"
        "    while True: yield 'some words'\n"
        "train_tokenizer(texts(), 'words')"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1, stderr=-1, text=True) as process:
        try:
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            errors = process.communicate(timeout=600)[1]  # only a hang takes so long
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")


@given(st.lists(st.integers(0, 9)))
def test_ranks_are_a_permutation_by_falling_counts_then_id(counts):
    ranks = token_ranks(np.array(counts, np.int64))
    ordered = sorted(range(len(counts)), key=lambda i: ranks[i])
    assert sorted(ranks.tolist()) == list(range(len(counts)))
    assert all((-counts[a], a) < (-counts[b], b) for a, b in pairwise(ordered))


def existing(kind, texts):
    """Small tokenizers as others make them."""
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=["<s>", UNKNOWN], unk_token=UNKNOWN, show_progress=False
        )
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=300, special_tokens=[UNKNOWN, "[CLS]", "[SEP]"], limit_alphabet=60, show_progress=False
        )
    else:
        return train_tokenizer(texts, kind, 600)
    tokenizer.train_from_iterator(texts[:8], trainer)
    if kind == "wordpiece":
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
        tokenizer.enable_truncation(8)
        tokenizer.enable_padding()
        tokenizer.add_tokens(["later"])
    return tokenizer


@pytest.mark.parametrize("kind", ["bpe", "words", "characters", "unigram", "wordpiece"])
def test_ranking_changes_the_ids_and_nothing_else(tmp_path, texts, kind):
    existing(kind, texts).save(str(tmp_path / "tokenizer.json"))
    before = load_tokenizer(tmp_path)
    unknown = unknown_id(before)
    text = "\n\n".join(texts) + " ☃ <s> later"
    counts = np.bincount(ids(before, text), minlength=before.get_vocab_size())
    after = rank_tokens(before, counts)
    assert after.encode(text).tokens == before.encode(text).tokens
    ranks = token_ranks(counts)
    assert ids(after, text) == ranks[ids(before, text)].tolist()
    assert {t: ranks[i] for t, i in before.get_vocab().items()} == after.get_vocab()
    assert unknown_id(after) == (None if unknown is None else ranks[unknown])
    again = Tokenizer.from_str(after.to_str())
    assert again.to_str() == after.to_str()
    assert after.decode(ids(after, text)) == before.decode(ids(before, text))
    if kind != "bpe":
        assert counts[unknown] > 0


def test_loading_takes_off_what_would_change_the_text(tmp_path, texts):
    path = tmp_path / "other.json"
    existing("wordpiece", texts).save(str(path))
    content = json.loads(path.read_text())
    assert content["truncation"]["max_length"] == 8
    tokenizer = load_tokenizer(path)
    assert len(tokenizer.encode(texts[0]).ids) > 100
    assert tokenizer.encode("a").tokens == ["a"]
    assert SEPARATOR not in content["model"]["vocab"]
    assert tokenizer.token_to_id(SEPARATOR) == tokenizer.get_vocab_size() - 1


def test_dropout_is_taken_off(bpe, texts):
    content = json.loads(bpe.to_str())
    content["model"]["dropout"] = 0.5
    assert ids(load_tokenizer(Tokenizer.from_str(json.dumps(content))), texts[0]) == ids(bpe, texts[0])


def test_a_long_text_in_pieces_gives_the_tokens_of_the_whole(bpe, texts):
    text = "\n\n".join(texts)
    pieces = [piece.text for piece in read_documents([text])]
    assert len(pieces) > 2
    assert [i for piece in pieces for i in ids(bpe, piece)] == ids(bpe, text)


def test_what_init_writes_reads_a_text_as_it_was_counted(tmp_path, texts):
    """Separators, unknown words and special tokens in a text: the same ids here and in Hugging Face's tokenizer."""
    text = f"a <unk> {SEPARATOR} b [SEP]{SEPARATOR}\n<s> é later<pad>\n{SEPARATOR}\u4e00"
    existing("wordpiece", texts).save(str(tmp_path / "wordpiece.json"))
    loose = existing("bpe", texts)
    loose.add_special_tokens(["<s>", AddedToken("<pad>", lstrip=True), AddedToken("[SEP]", rstrip=True)])
    content = json.loads(loose.to_str())
    for added in content["added_tokens"]:
        added["lstrip"] = added["rstrip"] = True  # as in Phi-3
    (tmp_path / "loose.json").write_text(json.dumps(content))
    for tokenizer in (*KINDS, tmp_path / "wordpiece.json", tmp_path / "loose.json"):
        for build in (Corpus.build, Corpus.encode):
            if build == Corpus.build or tokenizer not in KINDS:
                corpus = build([text], tokenizer=tokenizer, cache_dir=tmp_path / "cache")
                written = PreTrainedTokenizerFast(tokenizer_object=corpus.tokenizer, eos_token=SEPARATOR)
                assert [corpus.separator, *written(text)["input_ids"], corpus.separator] == corpus.tokens.tolist()
                assert corpus.n_documents == 4


@given(st.lists(st.sampled_from(["abé", "12", "-_", "\u4e00" * 7, " ", "\n", "x" * 25])))
def test_runs_without_spaces_are_cut_for_the_training_and_nothing_else(parts):
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "NO_SPACE", re.compile(r"\S{10}"))
        patch.setattr(module, "LONG_RUN", re.compile(module.LONG_RUN.pattern.replace("1000", "10")))
        cut = list(module._without_long_runs(text))
    assert "".join(cut) == text
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    longest = max((b - a for part in cut for _, (a, b) in words.pre_tokenize_str(part)), default=0)
    assert longest <= 11 or " " * 11 in text or "\n" * 11 in text  # a word may have a space before it
    if all(b - a <= 9 for _, (a, b) in words.pre_tokenize_str(text)):
        assert cut == [text]


def test_a_long_run_has_no_long_word(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "_train", lambda tokenizer, texts, trainer: seen.extend(texts))
    train_tokenizer(["\u4e00" * 65_536, "a b"])
    assert [len(part) for part in seen] == [1000] * 65 + [536, 3]


def test_bad_files(tmp_path):
    (tmp_path / "bad.json").write_text('{"a": 1}')
    for path in (tmp_path, tmp_path / "none.json", tmp_path / "bad.json"):
        with pytest.raises(InputError, match=r"tokenizer\.json"):
            load_tokenizer(path)


def test_a_panic_of_the_library_is_an_input_error(tmp_path):
    content = json.loads(train_tokenizer(["a b"]).to_str())
    content["model"]["continuing_subword_prefix"] = "a prefix longer than what follows"
    content["model"]["merges"] = [["a", "b"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"tokenizer.json: expected a tokenizer.json .* got: .*; save one"):
        load_tokenizer(tmp_path)


def test_a_text_that_a_tokenizer_cannot_read_is_named():
    tokenizer = load_tokenizer(Tokenizer(models.WordLevel({"b": 0}, unk_token=UNKNOWN)))
    assert encoded(tokenizer, "b", "prompt") == [0]
    with pytest.raises(InputError, match=r"prompt: expected text that the tokenizer can read, got: WordLevel error"):
        encoded(tokenizer, "a", "prompt")


def test_gaps_and_wrong_counts_are_refused():
    tokenizer = train_tokenizer(["a b"], "words")
    with pytest.raises(InputError, match="one count for each of 4"):
        rank_tokens(tokenizer, np.ones(3))
    gaps = Tokenizer(models.WordLevel({UNKNOWN: 0, "b": 5}, unk_token=UNKNOWN))
    with pytest.raises(InputError, match="without gaps"):
        rank_tokens(gaps, np.ones(2))
