"""Rows of counted text without the part of each target: equal to those of the rest counted again; their file."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from strategies import texts
from test_finetune import texts as chains
from test_kneser_ney import ALL, AWKWARD, RANDOM, joined, random_text
from tokenizers import Tokenizer

from warmstart import kneser_ney
from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.kneser_ney import KneserNey, parts
from warmstart.left_out import SparseRows, left_out
from warmstart.ngrams import count_ngrams, vocabulary_digest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


def corpus_of(text):
    """A stand-in for a corpus: what rows need of one."""
    vocab_size, separator, documents = text
    tokens, borders = joined(documents, separator)
    names = {"tokens": tokens, "documents": borders, "vocab_size": vocab_size, "separator": separator}
    return SimpleNamespace(**names, n_tokens=tokens.size - 1, digest=repr(text))


def table_of(text, order, folder, **options):
    """The table of a text, and the text as an array and borders."""
    corpus = corpus_of(text)
    counts = count_ngrams(corpus.tokens, corpus.documents, corpus.vocab_size, order)
    return left_out(counts, corpus, folder=folder, **options), corpus.tokens, corpus.documents


def counted_again(text, order):
    """Every row of a text, from the twin that counts it again without the part of the target."""
    vocab_size, separator, documents = text
    tokens, borders = joined(documents, separator)
    whole = tokens.tolist()
    twin = reference.KneserNey(reference.ngram_counts(whole, separator, order), vocab_size, separator, order)
    rows = []
    for span in parts(borders, tokens.size - 1):
        targets = range(span.start, span.stop)
        rest = twin.without(whole, targets)
        rows += [[rest.probability(y, rest.history(whole[:i])) for y in range(vocab_size)] for i in targets]
    return np.array(rows)


def assert_rows_are_counted_again(text, order, folder):
    table, tokens, _ = table_of(text, order, folder)
    rows = table.rows(np.arange(tokens.size - 1))
    np.testing.assert_allclose(rows.dense(), counted_again(text, order), rtol=2e-6, atol=1e-7)
    assert (rows.probs >= 0).all()  # 0 if a discount is as large as its count
    for i in range(len(rows)):
        assert (np.diff(rows.tokens[rows.offsets[i] : rows.offsets[i + 1]]) > 0).all()


@given(texts(), st.integers(1, 6))
def test_small_texts_are_counted_again(folder, text, order):
    assert_rows_are_counted_again(text, order, folder)


@pytest.mark.parametrize("name", ALL)
def test_texts_are_counted_again(name, folder):
    for order in (1, 2, 4):
        assert_rows_are_counted_again(ALL[name], order, folder)


def test_a_document_of_a_third_is_left_out_piece_by_piece(folder):
    vocab_size, separator, documents = random_text(5, documents=16, length=20)
    rng = np.random.default_rng(5)
    documents.insert(3, (rng.zipf(1.4, sum(map(len, documents)) // 2) % vocab_size).tolist())
    assert_rows_are_counted_again((vocab_size, separator, documents), 4, folder)


def test_a_vocabulary_above_65_536(folder):
    text = (70_000, 69_998, [[65_536, 65_535, 69_999, 0], [1, 65_536, 65_535], [0, 65_536, 65_535, 1]])
    table, tokens, borders = table_of(text, 3, folder)
    counts = count_ngrams(tokens, borders, 70_000, 3)
    dense = table.rows(np.arange(tokens.size - 1)).dense()
    expected = KneserNey(counts).left_out(tokens, borders).probs
    np.testing.assert_allclose(dense[np.arange(tokens.size - 1), tokens[1:]], expected, rtol=2e-6)
    np.testing.assert_allclose(dense.sum(axis=1), 1.0, atol=1e-4)  # 70,000 float32


def test_larger_texts_have_the_left_out_probabilities_of_their_targets(folder):
    text = random_text(7, documents=40, length=400, vocab_size=300)
    table, tokens, borders = table_of(text, 5, folder)
    places = np.random.default_rng(0).permutation(tokens.size - 1)
    dense = table.rows(places, workers=2).dense()
    expected = KneserNey(count_ngrams(tokens, borders, 300, 5)).left_out(tokens, borders).probs
    np.testing.assert_allclose(dense[np.arange(places.size), tokens[places + 1]], expected[places], rtol=2e-6)
    np.testing.assert_allclose(dense.sum(axis=1), 1.0, atol=2e-6)


def test_by_hand(folder):
    # Without the first document 0 1, 1 2 and 2 0 are left seven times, and 0 3 and 3 0 once.
    table, *_ = table_of((4, 0, [*[[1, 2]] * 8, [3]]), 2, folder)
    rows = table.rows([1, 0])
    # Discounts are the fallback 0.5, 1, 1.5. Level 1: 0 comes after two tokens, the others after one.
    base = (np.array([2 - 1, 0.5, 0.5, 0.5]) + (1 + 3 * 0.5) / 4) / 5
    np.testing.assert_allclose(rows.base, base[None], rtol=1e-6)
    assert (rows.part.tolist(), rows.offsets.tolist(), rows.tokens.tolist()) == ([0, 0], [0, 1, 3], [2, 1, 3])
    np.testing.assert_allclose(rows.probs, [5.5 / 7, 5.5 / 8, 0.5 / 8], rtol=1e-6)
    np.testing.assert_allclose(rows.rest, [1.5 / 7, 2 / 8], rtol=1e-6)


@pytest.mark.parametrize("name", RANDOM)
def test_batches_and_workers_do_not_show(name, tmp_path, monkeypatch):
    table, tokens, _ = table_of(RANDOM[name], 4, tmp_path)
    places = np.arange(tokens.size - 1)
    expected = table.rows(places)
    for block, workers in itertools.product((1, 50), (1, 2, 3)):
        monkeypatch.setattr(kneser_ney, "TARGETS_PER_BATCH", block)
        (made := tmp_path / f"{block} {workers}").mkdir()
        other, *_ = table_of(RANDOM[name], 4, made, workers=workers)
        for key, array in table.tables.items():
            np.testing.assert_array_equal(array, other.tables[key])
        for field in ("tokens", "probs", "offsets", "rest", "part", "base"):
            np.testing.assert_array_equal(getattr(expected, field), getattr(other.rows(places, workers=workers), field))


def test_the_order_may_be_shorter_than_that_of_the_statistic(folder):
    text = corpus_of(RANDOM["random 1"])
    counts = [count_ngrams(text.tokens, text.documents, text.vocab_size, n) for n in (1, 2, 4)]
    places = np.arange(text.n_tokens)
    for order, own in ((1, counts[0]), (2, counts[1])):
        a, b = left_out(counts[2], text, order, folder=folder), left_out(own, text, folder=folder)
        assert a.key == b.key
        np.testing.assert_array_equal(a.rows(places).dense(), b.rows(places).dense())
    for wrong in (0, 5, 2.5):
        with pytest.raises(InputError, match="order: expected a number from 1 to 4"):
            left_out(counts[2], text, wrong, folder=folder)


def test_some_of_the_counted_documents_can_be_given(folder):
    vocab_size, separator, documents = RANDOM["random 2"]
    whole, some = corpus_of(RANDOM["random 2"]), corpus_of((vocab_size, separator, documents[3:6]))
    counts = count_ngrams(whole.tokens, whole.documents, vocab_size, 3)
    start, stop = whole.documents[3], whole.documents[6]
    expected = left_out(counts, whole, folder=folder).rows(np.arange(start, stop)).dense()
    found = left_out(counts, some, folder=folder).rows(np.arange(some.n_tokens)).dense()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top", [None, 0, 1, 3, 1000])
def test_top_and_temperature(top, temperature, folder):
    table, tokens, _ = table_of(RANDOM["random 3"], 4, folder)
    places = np.arange(tokens.size - 1)
    rows, cut = table.rows(places, temperature=temperature), table.rows(places, top, temperature)
    power = table.rows(places).dense().astype(np.float64) ** (1 / temperature)
    np.testing.assert_allclose(rows.dense(), power / power.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(cut.dense().sum(axis=1), 1.0, rtol=1e-5)
    for i in range(len(rows)):
        here, kept = (slice(*each.offsets[i : i + 2]) for each in (rows, cut))
        order = np.argsort(-rows.probs[here].astype(np.float64), kind="stable")[:top]
        np.testing.assert_allclose(np.sort(rows.probs[here][order]), np.sort(cut.probs[kept]), rtol=1e-6)
        dropped = rows.probs[here].sum() - cut.probs[kept].sum()
        assert cut.rest[i] == pytest.approx(rows.rest[i] + dropped, abs=1e-5)


def test_of_equal_entries_the_first_are_kept(folder):
    # Any of 1, 2, 3 follows 0 in two other documents.
    table, *_ = table_of((5, 0, [[1], [2], [3], [1], [2], [3], [1], [2], [3], [4]]), 2, folder)
    last = 18
    assert table.rows([last]).tokens.tolist() == [1, 2, 3]
    assert [table.rows([last], top).tokens.tolist() for top in (1, 2, 3)] == [[1], [1, 2], [1, 2, 3]]


def test_some_of_the_rows():
    base = np.full((2, 3), 1 / 3, np.float32)
    part, rest = np.array([0, 1, 1]), np.array([0.5, 1.0, 0.25], np.float32)
    rows = SparseRows(
        np.array([2, 0, 1]), np.array([0.5, 0.5, 0.25], np.float32), np.array([0, 1, 1, 3]), rest, part, base
    )
    np.testing.assert_array_equal(rows[1:].dense(), rows.dense()[1:])
    np.testing.assert_array_equal(rows[:2].dense(), rows.dense()[:2])
    np.testing.assert_allclose(rows.dense(0.5), 0.5 * rows.dense(), rtol=1e-6)
    assert (len(rows), len(rows[1:2]), rows[3:].dense().shape) == (3, 1, (0, 3))


# The file


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus.build(chains(60), tokenizer="words", cache_dir=tmp_path_factory.mktemp("corpus"))


def count(corpus, order=3, **options):
    return count_ngrams(corpus.tokens, corpus.documents, corpus.vocab_size, order, **options)


def test_the_file_is_made_once(corpus, tmp_path):
    counts, reports = count(corpus), []
    report = lambda *said: reports.append(said)  # noqa: E731
    first = left_out(counts, corpus, folder=tmp_path, progress=report)
    (path,) = tmp_path.iterdir()
    assert reports[-1] == ("leave out", corpus.n_tokens, corpus.n_tokens)
    made = path.stat().st_mtime_ns, len(reports)
    second = left_out(counts, corpus, folder=tmp_path, progress=report)
    assert (path.stat().st_mtime_ns, len(reports)) == made
    np.testing.assert_array_equal(first.rows([0, 5]).dense(), second.rows([0, 5]).dense())
    left_out(count(corpus, 2), corpus, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert left_out(counts, corpus).key == first.key
    assert (corpus.folder / path.name).read_bytes() == path.read_bytes()


def test_a_damaged_file_is_refused(corpus, tmp_path):
    left_out(count(corpus), corpus, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"other bytes in .*write it again"):
        left_out(count(corpus), corpus, folder=tmp_path)
    path.unlink()
    left_out(count(corpus, 2), corpus, folder=tmp_path)
    (other,) = tmp_path.iterdir()
    other.rename(path)
    with pytest.raises(InputError, match="got another file; delete it"):
        left_out(count(corpus), corpus, folder=tmp_path)


def test_nothing_is_left_of_a_pass_that_was_stopped(corpus, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        left_out(count(corpus), corpus, folder=tmp_path, progress=stop)
    assert not list(tmp_path.iterdir())


def test_tokens_that_were_not_counted_are_padding_unless_they_occur(corpus, tmp_path):
    vocabulary, padded = corpus.tokenizer.get_vocab(), Tokenizer.from_str(corpus.tokenizer.to_str())
    padded.add_special_tokens(["<|padding|>"])
    same = Corpus.encode([*chains(20)], padded, cache_dir=tmp_path / "same")
    plain = Corpus.encode([*chains(20)], corpus.tokenizer, cache_dir=tmp_path / "plain")
    assert same.vocab_size == plain.vocab_size + 1
    counts = count(plain, vocabulary=vocabulary)
    rows = [left_out(counts, text, folder=tmp_path).rows(np.arange(30)).dense() for text in (same, plain)]
    np.testing.assert_array_equal(*rows)
    used = Corpus.encode([*chains(20), "a <|padding|>"], padded, cache_dir=tmp_path / "used")
    with pytest.raises(InputError, match="in the tokens of the counts"):
        left_out(counts, used, folder=tmp_path)


def test_what_cannot_work_is_refused(corpus, tmp_path):
    counts = count(corpus)
    with pytest.raises(InputError, match=r"expected the statistic of n-grams.*KneserNey"):
        left_out(KneserNey(counts), corpus, folder=tmp_path)
    other = count_ngrams(np.array([1, 2, 1]), np.array([0, 2]), 3, 2)
    with pytest.raises(InputError, match="in the tokens of the counts"):
        left_out(other, corpus, folder=tmp_path)
    vocabulary = corpus.tokenizer.get_vocab()
    left_out(count(corpus, vocabulary=vocabulary), corpus, folder=tmp_path)
    swapped = vocabulary | {"a": vocabulary["b"], "b": vocabulary["a"]}
    assert vocabulary_digest(swapped) != vocabulary_digest(vocabulary)
    with pytest.raises(InputError, match="in the tokens of the counts"):
        left_out(count(corpus, vocabulary=swapped), corpus, folder=tmp_path)
    half = Corpus.encode(chains(30), corpus.tokenizer, cache_dir=tmp_path / "cache")
    with pytest.raises(InputError, match="expected documents that were counted"):
        left_out(count(half), corpus, folder=tmp_path)
    table = left_out(counts, corpus, folder=tmp_path)
    for places in ([-1], [corpus.n_tokens], [0.5]):
        with pytest.raises(InputError, match="expected places"):
            table.rows(places)
    for options in (
        {"top": -1},
        {"top": 2.5},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
    ):
        with pytest.raises(InputError, match="top, temperature: expected a whole number"):
            table.rows([0], **options)
    assert len(table.rows([])) == 0


def test_awkward_texts_have_rows_of_all_kinds(folder):
    sizes = {name: np.diff(table_of(AWKWARD[name], 3, folder)[0].rows([0]).offsets)[0] for name in AWKWARD}
    assert 0 in sizes.values()
    assert max(sizes.values()) > 0
