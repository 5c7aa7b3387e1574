"""The corpus on disk: tokens worked out by hand, the same bytes for the same text, nothing left after an error."""

import gzip
import hashlib
import io
import json
import os
import re
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from warmstart import corpus as module
from warmstart.corpus import Corpus, default_cache
from warmstart.documents import PIECE, default_corpus
from warmstart.errors import InputError
from warmstart.tokenizer import SEPARATOR, UNKNOWN, train_tokenizer


def data(name):
    home = Path(os.environ.get("WARMSTART_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (home / name).exists():
        pytest.skip(f"no {name} in {home}; set WARMSTART_DATA")
    return home / name


def left_behind(cache):
    return [path.name for path in cache.iterdir() if path.name.startswith(".")] if cache.exists() else []


def contents(corpus):
    return {path.name: path.read_bytes() for path in corpus.folder.iterdir()}


def check(corpus, texts):
    """Compare with the texts, encoded one by one by the corpus's own tokenizer."""
    expected = [corpus.separator]
    ends = [0]
    for text in texts:
        expected += [*corpus.tokenizer.encode(text, add_special_tokens=False).ids, corpus.separator]
        ends.append(len(expected) - 1)
    assert corpus.tokens.tolist() == expected
    assert corpus.documents.tolist() == ends
    assert corpus.documents.dtype == corpus.counts.dtype == np.int64
    assert corpus.counts.tolist() == np.bincount(expected[1:], minlength=corpus.vocab_size).tolist()
    assert corpus.n_tokens == len(expected) - 1 == corpus.counts.sum()
    assert corpus.n_documents == len(texts)
    assert corpus.n_bytes == sum(len(text.encode()) for text in texts)


def test_tokens_worked_out_by_hand(tmp_path):
    # b 3 times, the separator 2 times as a target, a once, <unk> never: ids 0, 1, 2, 3
    corpus = Corpus.build(["b a b", " \n", "b"], tokenizer="words", cache_dir=tmp_path)
    assert corpus.tokens.tolist() == [1, 0, 2, 0, 1, 0, 1]
    assert corpus.documents.tolist() == [0, 4, 6]
    assert corpus.counts.tolist() == [3, 2, 1, 0]
    assert [corpus.tokenizer.id_to_token(i) for i in range(4)] == ["b", SEPARATOR, "a", UNKNOWN]
    assert (corpus.vocab_size, corpus.separator, corpus.n_tokens, corpus.n_documents) == (4, 1, 6, 2)
    assert (corpus.n_bytes, corpus.n_unknown) == (6, 0)
    assert isinstance(corpus.tokens, np.memmap)
    assert corpus.tokens.dtype == np.uint16


@pytest.mark.parametrize("kind", ["bpe", "words", "characters"])
def test_awkward_documents(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 1000)
    monkeypatch.setattr(module, "BLOCK", 7)
    texts = ["x", "é\U0001f600", "a\r\nb", "line " * PIECE, f"no {SEPARATOR} here", "\ufeffbom"]
    corpus = Corpus.build(iter(texts), tokenizer=kind, vocab_size=300, cache_dir=tmp_path)
    check(corpus, [*texts[:4], "no ", " here", "\ufeffbom"])
    assert np.all(np.diff(corpus.counts) <= 0)
    other = Corpus.encode(["unseen ☃ x", "x"], corpus.tokenizer, cache_dir=tmp_path)
    check(other, ["unseen ☃ x", "x"])
    assert other.tokenizer.get_vocab() == corpus.tokenizer.get_vocab()
    assert (other.n_unknown > 0) == (kind != "bpe")


def test_more_than_65536_ids_need_32_bits(tmp_path):
    for size, dtype in ((2**16, np.uint16), (2**16 + 1, np.uint32)):
        vocabulary = {SEPARATOR: 0} | {f"w{i}": i for i in range(1, size)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w1"))  # noqa: S106 - no password
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        last = f"w{size - 1}"
        corpus = Corpus.encode([f"w2 {last}"], tokenizer, cache_dir=tmp_path)
        assert corpus.tokens.tolist() == [0, 2, size - 1, 0]
        assert corpus.tokens.dtype == dtype
        ranked = Corpus.build([f"w2 {last} {last}"], tokenizer=tokenizer, cache_dir=tmp_path)
        assert ranked.tokens.tolist() == [1, 2, 0, 0, 1]
        assert ranked.tokens.dtype == dtype


def test_the_same_text_gives_the_same_bytes_wherever_it_comes_from(tmp_path, monkeypatch):
    texts = list(default_corpus("test"))[:20]
    first = Corpus.build(texts, vocab_size=400, cache_dir=tmp_path / "a")
    second = Corpus.build(iter(texts), vocab_size=400, cache_dir=tmp_path / "b")
    assert contents(first) == contents(second)
    with gzip.open(tmp_path / "texts.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    packed = Corpus.build(tmp_path / "texts.jsonl.gz", vocab_size=400, cache_dir=tmp_path / "a")
    joined = "\n=====\n".join(texts).encode()
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(joined)))
    cut = {"split_documents": "\n=====\n", "vocab_size": 400, "cache_dir": tmp_path / "a"}
    piped = Corpus.build("-", **cut)
    assert first.digest == packed.digest == piped.digest
    check(piped, texts)
    assert len({first.folder, packed.folder, piped.folder}) == 3
    assert piped.manifest["sources"] == [{"name": "standard input", "sha256": hashlib.sha256(joined).hexdigest()}]


def test_a_pipe_can_be_read_only_once(tmp_path):
    os.mkfifo(tmp_path / "raw")
    with ThreadPoolExecutor(1) as pool:
        pool.submit((tmp_path / "raw").write_text, "b a b")
        corpus = Corpus.build(tmp_path / "raw", tokenizer="words", cache_dir=tmp_path)
    assert corpus.counts.tolist() == [2, 1, 1, 0]


def test_two_pipes_of_one_name_are_both_read(tmp_path):
    pipes = [tmp_path / folder / "raw" for folder in "ab"]
    for pipe in pipes:
        pipe.parent.mkdir()
        os.mkfifo(pipe)
    with ThreadPoolExecutor(2) as pool:
        for pipe in pipes:
            pool.submit(pipe.write_text, f"from {pipe.parent.name}")
        corpus = Corpus.build(pipes, tokenizer="words", cache_dir=tmp_path / "cache")
    assert [corpus.tokenizer.token_to_id(word) is not None for word in "abc"] == [True, True, False]


def test_a_file_called_as_standard_input_is_not_read_in_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-").write_text("file")
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"stream")))
    corpus = Corpus.build("-", tokenizer="words", cache_dir=tmp_path / "cache")
    assert corpus.tokenizer.token_to_id("stream") is not None
    corpus = Corpus.build(tmp_path / "-", tokenizer="words", cache_dir=tmp_path / "cache")
    assert corpus.tokenizer.token_to_id("file") is not None


def test_copies_are_named(tmp_path):
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text("text" if name < "c" else "other")
    with pytest.warns(UserWarning, match=r"^b\.txt: read too, though a file before has the same content$"):
        assert Corpus.build(tmp_path, tokenizer="words", cache_dir=tmp_path / "cache").n_documents == 3


def test_what_a_killed_run_left_is_deleted_when_it_is_old(tmp_path):
    old, new = (tmp_path / f".building-{name}" for name in ("old", "new"))
    for folder in (old, new):
        (folder / "spool").mkdir(parents=True)
        (folder / "spool" / "raw").write_bytes(b"x")
    (tmp_path / "mine").mkdir()
    for path in (old, *old.rglob("*"), new, new / "spool", tmp_path / "mine"):  # in the new one something has changed
        os.utime(path, (0, 0))
    Corpus.build(["a"], tokenizer="words", cache_dir=tmp_path)
    assert not old.exists()
    assert (new / "spool" / "raw").exists()
    assert (tmp_path / "mine").exists()


def test_an_error_of_the_cache_names_what_moves_it(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set WARMSTART_CACHE"):
        Corpus.build(["a"], tokenizer="words")
    monkeypatch.delenv("WARMSTART_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(InputError, match=r"home directory.*set WARMSTART_CACHE"):
        default_cache()


def test_a_second_build_encodes_nothing_and_a_broken_entry_is_rebuilt(tmp_path):
    stages = []

    def build(**settings):
        stages.clear()
        return Corpus.build(
            ["b a b"],
            tokenizer="words",
            cache_dir=tmp_path,
            progress=lambda stage, done, total: stages.append((stage, done, total)),
            **settings,
        )

    first = build()
    assert stages == [("train tokenizer", 5, 5), ("encode text", 5, 5)]
    whole = contents(first)
    assert build().folder == first.folder
    assert stages == []
    assert build(vocab_size=3).folder != first.folder
    for name in whole:
        for broken in (b"", whole[name][:-1], whole[name][:-1] + b"?", None):
            path = first.folder / name
            path.unlink() if broken is None else path.write_bytes(broken)
            if (name, broken) != ("manifest.json", whole[name][:-1]):  # without its last newline it says the same
                assert contents(build()) == whole
                assert stages
    assert left_behind(tmp_path) == []


def test_changed_content_is_another_corpus(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = Corpus.build(path, tokenizer="words", cache_dir=tmp_path / "cache")
    path.write_text("two")
    second = Corpus.build(path, tokenizer="words", cache_dir=tmp_path / "cache")
    assert first.folder != second.folder
    assert Corpus.open(first.folder).tokenizer.token_to_id("one") == 1  # as often as the separator, of id 0


def test_progress_counts_bytes_of_text(tmp_path):
    seen = []
    path = tmp_path / "a.txt"
    path.write_text("some é text\n" * 300_000)
    size = path.stat().st_size
    Corpus.build(path, vocab_size=300, cache_dir=tmp_path, progress=lambda *report: seen.append(report))
    for stage in ("train tokenizer", "encode text"):
        done = [report[1] for report in seen if report[0] == stage]
        assert done == sorted(done)
        assert done[-1] == size
        assert max(np.diff([0, *done])) < 2**20 + 2 * PIECE
    assert {report[2] for report in seen} == {size}


def test_settings_and_sources_are_in_the_manifest_and_keys_are_sorted(tmp_path):
    (tmp_path / "a.txt").write_text("one two")
    corpus = Corpus.build(tmp_path / "a.txt", tokenizer="words", vocab_size=99, cache_dir=tmp_path / "cache")
    text = (corpus.folder / "manifest.json").read_text()
    manifest = json.loads(text)
    assert text == json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    assert manifest["sources"] == [{"name": "a.txt", "sha256": hashlib.sha256(b"one two").hexdigest()}]
    assert manifest["tokenizer"]["kind"] == "words"
    assert manifest["tokenizer"]["vocab_size"] == 99
    tokens = hashlib.sha256((corpus.folder / "tokens.npy").read_bytes()).hexdigest()
    assert manifest["files"]["tokens.npy"] == tokens
    assert str(tmp_path) not in text


def test_errors_leave_nothing_behind(tmp_path):
    silent = Tokenizer(models.WordLevel({"a": 0, UNKNOWN: 1}, unk_token=UNKNOWN))
    silent.normalizer = normalizers.Replace("b", "")
    (tmp_path / "bad.txt").write_bytes(b"ok " * 10**6 + b"\xff")
    cache = tmp_path / "cache"
    for arguments, message in [
        ({"sources": [" "]}, "whitespace"),
        ({"sources": iter([])}, "whitespace"),
        ({"sources": tmp_path / "bad.txt"}, "offset 3000000"),
        ({"sources": tmp_path / "bad.txt", "tokenizer": "words"}, "offset 3000000"),
        ({"sources": ["b"], "tokenizer": silent}, "gives tokens"),
        ({"sources": ["b"], "tokenizer": "bpee"}, "bpee"),
        ({"sources": ["b"], "vocab_size": 3}, "257"),
        ({"sources": ["b"], "split_documents": "("}, "split_documents"),
        ({"sources": tmp_path / "none.txt"}, "none.txt"),
    ]:
        with pytest.raises(InputError, match=message):
            Corpus.build(**arguments, cache_dir=cache)
    assert list(cache.iterdir()) == []


def test_ctrl_c_leaves_nothing_behind(tmp_path):
    for stop in ("train tokenizer", "encode text"):

        def interrupt(stage, done, total, stop=stop):
            if stage == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Corpus.build(["a b"], tokenizer="words", cache_dir=tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    resource = pytest.importorskip("resource", reason="needs a limit of file sizes, which Windows lacks")
    path = tmp_path / "a.txt"
    path.write_text("a b c d e f g h\n" * 20_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # stands in for the disk: writes beyond fail
    try:
        with pytest.raises(InputError, match=re.escape(str(tmp_path / "cache")) + ".*free space"):
            Corpus.build(path, tokenizer="words", cache_dir=tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_is_a_file_is_named(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError, match=r"cache.*writable"):
        Corpus.build(["a"], tokenizer="words", cache_dir=tmp_path / "cache")


def test_open_refuses_what_is_no_corpus(tmp_path):
    with pytest.raises(InputError, match="build it again"):
        Corpus.open(tmp_path)
    corpus = Corpus.build(["b a b"], tokenizer="words", cache_dir=tmp_path)
    manifest = (corpus.folder / "manifest.json").read_text()
    for written, changed, message in (
        ('"n_documents": 1', '"n_documents": 2', "other sizes"),
        ('"separator": 1', '"separator": 0', "other sizes"),
        ('"n_tokens": 4', '"n_tokens": 5', "tokens of another number or type"),
        ('"n_bytes": 5', '"n_bytes": "5"', "without whole numbers"),
    ):
        assert written in manifest
        (corpus.folder / "manifest.json").write_text(manifest.replace(written, changed))
        with pytest.raises(InputError, match=message):
            Corpus.open(corpus.folder)
    (corpus.folder / "manifest.json").write_text(manifest)
    np.save(corpus.folder / "documents.npy", np.arange(5))
    with pytest.raises(InputError, match=r"other content of documents.npy than"):
        Corpus.open(corpus.folder)
    np.save(corpus.folder / "documents.npy", corpus.documents)
    assert np.array_equal(Corpus.open(corpus.folder).tokens, corpus.tokens)
    tokens = np.array(corpus.tokens)
    tokens[2] = 0
    np.save(corpus.folder / "tokens.npy", tokens)  # of the same number and type
    with pytest.raises(InputError, match=r"other content of tokens.npy than"):
        Corpus.open(corpus.folder)
    (corpus.folder / "manifest.json").write_text('{"format": 0}')
    with pytest.raises(InputError, match="format 0"):
        Corpus.open(str(corpus.folder))


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("WARMSTART_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "warmstart"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_cache() == tmp_path / "x" / "warmstart"
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "w"))
    assert Corpus.build(["a"], tokenizer="words").folder.parent == tmp_path / "w"


def test_a_tokenizer_file_is_used_as_it_is(tmp_path):
    train_tokenizer(["a b b"], "words").save(str(tmp_path / "tokenizer.json"))
    corpus = Corpus.encode(["b c a"], tmp_path, cache_dir=tmp_path / "cache")
    assert corpus.tokens.tolist() == [0, 2, 1, 3, 0]
    assert corpus.n_unknown == 1


@pytest.mark.data
def test_wikitext_2_keeps_its_unknown_words(tmp_path):
    path = data("wikitext-2/test.txt")
    corpus = Corpus.build(path, tokenizer="words", vocab_size=30_000, cache_dir=tmp_path)
    assert corpus.n_unknown == 15_218  # counted in the data set's README
    assert corpus.n_bytes == path.stat().st_size == 1_256_449


@pytest.mark.data
@pytest.mark.parametrize("kind", ["bpe", "words", "characters"])
def test_tiny_shakespeare(tmp_path, kind):
    path = data("tinyshakespeare/input.txt")
    corpus = Corpus.build(path, tokenizer=kind, vocab_size=20_000, cache_dir=tmp_path)
    check(corpus, [path.read_text()])
    assert corpus.n_unknown == 0
    if kind == "words":
        assert corpus.n_tokens == len(re.findall(r"\w+|[^\w\s]+", path.read_text())) + 1
    elif kind == "characters":
        assert corpus.n_tokens == 1_115_394 + 1
        assert corpus.vocab_size == 65 + 2
    else:
        assert corpus.tokenizer.decode(corpus.tokens[1:-1].tolist()) == path.read_text()


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ({UNKNOWN: 0, "b": 1, SEPARATOR: 7}, "expected a tokenizer with the ids 0 to 2, got 3 different ids up to 7"),
        ({"b": 0, SEPARATOR: 1}, "expected a tokenizer that reads every text, got: .*; give it an unknown token"),
    ],
)
def test_tokenizers_that_cannot_read_the_text_are_refused(tmp_path, vocabulary, message):
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for make in (lambda: Corpus.build(["b a"], tokenizer=tokenizer, cache_dir=tmp_path),
                 lambda: Corpus.encode(["b a"], tokenizer, cache_dir=tmp_path)):  # fmt: skip
        with pytest.raises(InputError, match=message):
            make()
    assert not list(tmp_path.iterdir())


def test_a_sample_is_chosen_by_content_and_contains_every_smaller_one(tmp_path):
    texts = [f"text {i} " * (i % 3 + 1) for i in range(400)] + ["line " * PIECE]
    tokenizer = train_tokenizer(texts, "words")

    def documents(share, sources):
        corpus = Corpus.build(sources, tokenizer=tokenizer, sample=share, cache_dir=tmp_path)
        decoded = corpus.tokenizer.decode(corpus.tokens.tolist(), skip_special_tokens=False)
        return [text.strip() for text in decoded.split(SEPARATOR)[1:-1]]

    whole = [text.strip() for text in texts]
    found = [documents(share, texts) for share in (0.2, 0.5, 0.99, 1)]
    for less, more in zip(found, [*found[1:], whole], strict=True):
        assert 0 < len(less) <= len(more)
        assert set(less) <= set(more)
    assert 50 < len(found[0]) < 110 < len(found[1]) < 250 < len(found[2]) < len(found[3]) == 401
    assert documents(0.5, texts[::-1]) == found[1][::-1]
    parts = documents(0.5, texts[:99]), documents(0.5, texts[99:])
    assert parts[0] + parts[1] == found[1]
    check(Corpus.build(found[1], tokenizer="bpe", vocab_size=300, cache_dir=tmp_path), found[1])
    sampled, direct = (
        Corpus.build(source, vocab_size=300, sample=share, cache_dir=tmp_path)
        for source, share in ((texts, 0.5), ([text for text in texts if text.strip() in found[1]], 1))
    )
    assert sampled.digest == direct.digest  # the tokenizer is that of the sample


def test_a_sample_is_a_setting_of_the_cache_and_all_of_it_is_none(tmp_path):
    texts = [f"text {i}" for i in range(20)]
    corpora = [Corpus.build(texts, tokenizer="words", cache_dir=tmp_path, **more) for more in ({}, {"sample": 1.0})]
    assert corpora[0].folder == corpora[1].folder
    assert "sample" not in corpora[0].manifest
    part = Corpus.build(texts, tokenizer="words", sample=0.2, cache_dir=tmp_path)
    assert part.folder != corpora[0].folder
    assert part.manifest["sample"] == 0.2


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan"), "0.1", True, None])
def test_a_share_that_is_none_is_refused(tmp_path, share):
    with pytest.raises(InputError, match="sample: expected a number above 0, at most 1, got"):
        Corpus.build(["a"], sample=share, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_sample_without_documents_is_refused(tmp_path):
    with pytest.raises(InputError, match="some of 2 documents, got none with 1e-12; give a larger share"):
        Corpus.build(["a", "b"], tokenizer="words", sample=1e-12, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())
