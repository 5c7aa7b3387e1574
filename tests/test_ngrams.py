"""Counts of n-grams: equal to a twin, exact under + and - in any order, safe on disk."""

import itertools
import json
from collections import Counter
from functools import reduce

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from strategies import texts

from warmstart import files, levels
from warmstart.errors import InputError
from warmstart.ngrams import NGramCounts, count_ngrams, vocabulary_digest

ORDERS = st.integers(1, 6)


def joined(documents, separator, dtype=None):
    """Tokens and positions of separators of some documents."""
    tokens = [separator, *itertools.chain.from_iterable([*document, separator] for document in documents)]
    borders = np.cumsum([0, *(len(document) + 1 for document in documents)])
    return np.array(tokens, dtype or (np.uint16 if max(tokens) < 2**16 else np.uint32)), borders


def counted(text, order=3, **options):
    vocab_size, separator, documents = text
    return count_ngrams(*joined(documents, separator), vocab_size, order, **options)


def as_counter(counts):
    """N-grams as tuples; that those of one prefix ascend, and that all longer ones occur, is checked on the way."""
    paths = [(token,) for token in range(counts.vocab_size)]
    out = Counter(dict(zip(paths, counts.levels[0].counts.tolist(), strict=True)))
    assert counts.levels[0].last.tolist() == list(range(counts.vocab_size))
    for lower, upper in itertools.pairwise(counts.levels):
        children = [upper.last[a:b].tolist() for a, b in itertools.pairwise(lower.offsets.tolist())]
        assert all(last == sorted(set(last)) for last in children)
        paths = [(*path, token) for path, last in zip(paths, children, strict=True) for token in last]
        assert (upper.counts > 0).all()
        out.update(dict(zip(paths, upper.counts.tolist(), strict=True)))
    assert counts.levels[-1].offsets.size == 0
    return +out


def documents_of(counts):
    return {tuple(text.tolist()): copies for copies, text in counts.documents.texts().values()}


def assert_equal_text(counts, text):
    _, separator, documents = text
    tokens, _ = joined(documents, separator)
    twin = reference.ngram_counts(tokens.tolist(), separator, counts.order)
    assert as_counter(counts) == twin
    assert documents_of(counts) == Counter(map(tuple, documents))
    assert counts.n_tokens == tokens.size - 1
    assert counts.sizes == [sum(len(gram) == n for gram in twin) for n in range(1, counts.order + 1)]


@given(texts(), ORDERS)
def test_counts_are_those_of_the_twin(text, order):
    assert_equal_text(counted(text, order), text)


@given(texts(), ORDERS)
def test_parts_and_workers_do_not_show(text, order):
    whole = counted(text, order).digest
    with pytest.MonkeyPatch.context() as patch:
        for parts, workers in itertools.product((1, 2, 5), (1, 3)):
            patch.setattr(levels, "PARTS", parts)
            assert counted(text, order, workers=workers).digest == whole


@given(texts(), ORDERS, st.data())
def test_parts_of_a_text_add_up(text, order, data):
    vocab_size, separator, documents = text
    tokens, _ = joined(documents, separator)
    cuts = sorted(data.draw(st.sets(st.integers(1, tokens.size - 2), max_size=3))) if tokens.size > 2 else []
    arguments = separator, vocab_size, order
    parts = [
        levels.count_levels(tokens, slice(a, b), *arguments, device=data.draw(st.sampled_from([None, "cpu"])))
        for a, b in itertools.pairwise([0, *cuts, tokens.size - 1])
    ]
    whole = levels.count_levels(tokens, slice(0, tokens.size - 1), *arguments)
    for found, expected in zip(reduce(lambda a, b: levels.merge(a, b, 1), parts), whole, strict=True):
        for name in ("last", "counts", "offsets"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("order", [5, 6, 12])
@pytest.mark.parametrize("vocab_size", [2, 9000, 70_000])
def test_a_long_text_is_counted_as_its_n_grams_are(vocab_size, order):
    drawn = np.random.default_rng(order).zipf(1.4, 4000) % vocab_size
    documents = [drawn[:2500].tolist(), [], drawn[2500:].tolist(), [vocab_size - 1] * 300]
    assert_equal_text(counted((vocab_size, 1, documents), order, workers=2), (vocab_size, 1, documents))


@given(texts(), ORDERS)
def test_pytorch_counts_the_same_to_the_bit(text, order):
    whole = counted(text, order).digest
    for part in (1, 3, levels.DEVICE_PART):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(levels, "DEVICE_PART", part)
            assert counted(text, order, workers=2, device="cpu").digest == whole


def test_order_above_the_longest_document():
    counts = counted((3, 0, [[1, 2], [1]]), 9)
    assert counts.sizes == [3, 4, 3, 1, 0, 0, 0, 0, 0]
    assert_equal_text(counts, (3, 0, [[1, 2], [1]]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.int64])
def test_the_type_of_the_tokens_does_not_show(dtype):
    tokens, borders = joined([[1, 2, 1], [], [2]], 0, dtype)
    expected = counted((3, 0, [[1, 2, 1], [], [2]]))
    for documents in (borders, borders.astype(np.uint32)):
        assert count_ngrams(tokens, documents, 3, 3).digest == expected.digest


def test_a_vocabulary_above_65_536():
    documents = [[65_536, 65_535, 69_999, 0], [1, 65_536, 65_535]]
    tokens, borders = joined(documents, 69_998, np.int64)
    counts = count_ngrams(tokens, borders, 70_000, 3)
    assert as_counter(counts) == reference.ngram_counts(tokens.tolist(), 69_998, 3)
    assert documents_of(counts) == Counter(map(tuple, documents))
    assert {level.last.dtype for level in counts.levels} == {counts.documents.tokens.dtype} == {np.dtype(np.uint32)}


def test_the_largest_vocabulary_of_two_bytes():
    counts = count_ngrams(*joined([[65_535, 0, 65_535]], 65_534), 65_536, 2)
    assert counts.levels[1].last.dtype == np.uint16
    assert as_counter(counts)[(65_535, 65_534)] == 1


# + and -


@given(texts(), st.data())
def test_sums_are_counts_of_the_whole_text_in_any_order(text, data):
    vocab_size, separator, documents = text
    order = data.draw(ORDERS)
    cut = data.draw(st.integers(1, len(documents)))
    shuffled = data.draw(st.permutations(documents))
    a, b = shuffled[:cut], shuffled[cut:]
    whole = counted(text, order)
    first = counted((vocab_size, separator, a), order)
    if b:
        second = counted((vocab_size, separator, b), order)
        assert (first + second).digest == (second + first).digest == whole.digest
        assert (whole - second).digest == first.digest
        assert_equal_text(whole - first, (vocab_size, separator, b))
    one_by_one = [counted((vocab_size, separator, [document]), order) for document in shuffled]
    assert sum(one_by_one[1:], one_by_one[0]).digest == whole.digest


@given(texts(), texts(), ORDERS)
def test_what_is_added_can_be_taken_out(text, other, order):
    vocab_size, separator = max(text[0], other[0]), text[1]
    a, b = (counted((vocab_size, separator, documents), order) for documents in (text[2], other[2]))
    assert ((a + b) - b).digest == a.digest
    assert ((b + a) - b).digest == a.digest
    assert ((a - a) + b).digest == b.digest


def test_nothing_left_is_an_empty_statistic(tmp_path):
    some = counted((3, 0, [[1, 2], [1]]), 3)
    none = some - some
    assert (none.sizes, none.n_tokens, documents_of(none)) == ([0, 0, 0], 0, {})
    assert (none + none).digest == (none - none).digest == none.digest
    none.save(tmp_path / "none")
    assert NGramCounts.load(tmp_path / "none").digest == none.digest
    assert (NGramCounts.load(tmp_path / "none") + some).digest == some.digest


@pytest.mark.parametrize(
    ("documents", "size"), [([[2, 1]], 2), ([[1, 2], [1, 2]], 2), ([[]], 0), ([[1, 0]], 2), ([[1, 2], [1, 2, 1]], 3)]
)
def test_what_was_not_counted_cannot_be_taken_out(documents, size):
    counts = counted((3, 0, [[1, 2], [1]]))
    before = counts.digest
    with pytest.raises(InputError, match=f"expected documents that were counted, got one of {size} tokens"):
        counts - counted((3, 0, documents))
    assert counts.digest == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"vocab_size": 4}, r"\(3, 0, 2, '[0-9a-f]{8}'\) and \(4, 0, 2, '[0-9a-f]{8}'\)"),
        ({"separator": 1}, r"\(3, 0, 2, .* and \(3, 1, 2, "),
        ({"order": 3}, r"\(3, 0, 2, .* and \(3, 0, 3, "),
        ({"vocabulary": {"a": 1, "b": 0, "c": 2}}, f"{vocabulary_digest({'a': 1, 'b': 0, 'c': 2})[:8]}"),
        ({"vocabulary": None}, r"\(3, 0, 2, ''\)"),
    ],
)
def test_counts_that_do_not_fit_are_refused(options, named):
    def make(vocab_size=3, separator=0, order=2, vocabulary=None):
        return counted((vocab_size, separator, [[2]]), order, vocabulary=vocabulary)

    usual = {"vocabulary": {"a": 0, "b": 1, "c": 2}}
    a, b = make(**usual), make(**usual | options)
    for operation in (a.__add__, a.__sub__):
        with pytest.raises(InputError, match=named):
            operation(b)


def test_the_order_of_a_vocabulary_does_not_matter():
    assert vocabulary_digest({"a": 0, "b": 1}) == vocabulary_digest({"b": 1, "a": 0})


def test_too_many_occurrences_are_refused(monkeypatch):
    monkeypatch.setattr(levels, "MOST", 5)
    counts = counted((2, 0, [[1, 1, 1, 1]]), 2)
    with pytest.raises(InputError, match="at most 5 n-grams of 2 tokens"):
        counts + counts


# Bad input


@pytest.mark.parametrize(
    ("tokens", "documents", "message"),
    [
        ([0, 3, 0], [0, 2], "tokens from 0 to 2, got 0 to 3"),
        ([0, -1, 0], [0, 2], "got -1 to 0"),
        ([0], [0], "at least two separators"),
        ([[0, 0]], [0, 1], "at least two separators"),
        ([0.0, 1.0, 0.0], [0, 2], "got float64"),
        ([False, True, False], [0, 2], "got bool"),
        ([0, 1, 0], [0], "ascending positions"),
        ([0, 1, 0], [], "ascending positions"),
        ([0, 1, 0], [0, 1, 2], "ascending positions"),
        ([0, 1, 0], [2, 0], "ascending positions"),
        ([0, 1, 0, 0], [0, 2], "ascending positions"),
        ([0, 1, 0, 1], [0, 3], "ascending positions"),
        ([0, 0, 0, 0], [0, 2, 1, 3], "ascending positions"),
        ([0, 0, 0], np.array([0, 2, 1, 2], np.uint64), "ascending positions"),
        ([0, 1, 0], [0.0, 2.0], "ascending positions"),
        ([0, 1, 0], [[0, 2]], "ascending positions"),
    ],
)
def test_other_texts_are_refused(tokens, documents, message):
    with pytest.raises(InputError, match=message):
        count_ngrams(np.array(tokens), np.array(documents), 3)


@pytest.mark.parametrize("order", [0, -1, 101])
def test_other_orders_are_refused(order):
    with pytest.raises(InputError, match=f"from 1 to 100, got {order}"):
        counted((3, 0, [[1]]), order)


def test_progress_ends_at_the_whole_text():
    for workers in (1, 2):
        seen = []
        counted((3, 0, [[1, 2] * 20]), workers=workers, progress=lambda *now, seen=seen: seen.append(now))
        assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
        assert seen[-1] == ("count n-grams", 41, 41)


# On disk

AWKWARD = {
    "small": (3, 1, [[0, 2], [0], []]),
    "counts above 254": (2, 0, [[1] * 253, [1] * 254, [1] * 600]),
    "counts above 65,535": (2, 0, [[1] * 70_000]),
}


@pytest.fixture(params=AWKWARD)
def statistic(request):
    return counted(AWKWARD[request.param], 3, vocabulary={"a": 0})


def test_a_statistic_is_read_as_it_was_written(statistic, tmp_path):
    statistic.save(tmp_path / "a")
    read = NGramCounts.load(tmp_path / "a")
    assert read.digest == statistic.digest
    assert as_counter(read) == as_counter(statistic)
    assert [level.counts.dtype for level in read.levels] == [level.counts.dtype for level in statistic.levels]
    read.save(tmp_path / "b")
    ((statistic + statistic) - statistic).save(tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    assert ((read + statistic) - read).digest == statistic.digest


def test_large_arrays_stay_on_the_disk(tmp_path):
    counted((3, 1, [[0, 2], [0]])).save(tmp_path / "a")
    read = NGramCounts.load(tmp_path / "a")
    for array in (read.levels[1].last, read.levels[1].offsets, read.documents.tokens):
        while array.base is not None and not isinstance(array, np.memmap):
            array = array.base
        assert isinstance(array, np.memmap)


def test_the_digest_is_the_same_on_every_machine():
    counts = counted((3, 0, [[1, 2, 1, 2], [], [2]]), 3)
    assert counts.digest == "98be55e974c7b78f1a02fb836955780a"


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "a"
    counted((3, 0, [[1, 2, 1] * 200, [2]]), 3).save(path)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    entries = json.loads(whole[8:start])
    facts = json.loads(entries.pop("__metadata__")["warmstart"])
    assert facts["ngrams"]["order"] == 3
    for name, entry in entries.items():
        begin, end = entry["data_offsets"]
        for place in {begin, (begin + end) // 2, end - 1} if end > begin else ():
            path.write_bytes(flipped(whole, start + place, 4))
            with pytest.raises(InputError, match=f"other bytes in {name}"):
                NGramCounts.load(path)
    for size in (0, 7, 8, 100, start, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="whole safetensors file"):
            NGramCounts.load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match="whole safetensors file"):
        NGramCounts.load(path)


def flipped(content, place, bit):
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def test_a_damaged_header_is_refused_or_harmless(tmp_path):
    counts = counted((3, 0, [[1, 2], [2]]), 2)
    path = tmp_path / "a"
    counts.save(path)
    whole = path.read_bytes()
    refused = 0
    places = range(8 + int.from_bytes(whole[:8], "little"))
    for place in places:
        path.write_bytes(flipped(whole, place, 0))
        try:
            assert NGramCounts.load(path).digest == counts.digest
        except InputError:
            refused += 1
    assert refused > 0.9 * len(places)


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(InputError, match="whole safetensors file"):
        NGramCounts.load(path)
    with pytest.raises(InputError, match="whole safetensors file"):
        NGramCounts.load(tmp_path)
    for content in (b"", b"text", b"\x10" + bytes(7) + b"[1, 2, 3, 4, 5] "):
        path.write_bytes(content)
        with pytest.raises(InputError, match="whole safetensors file"):
            NGramCounts.load(path)
    for facts in ({}, {"pairs": {}}, {"ngrams": {"format": 0}}, {"ngrams": 3}, []):
        files.save_arrays(path, {"x": np.arange(3)}, facts)
        with pytest.raises(InputError, match=r"expected (n-grams of format 1|a file with checksums)"):
            NGramCounts.load(path)


def test_documents_of_a_statistic_are_known():
    counts = counted((5, 0, [[1, 2], [], [3], [3]]))
    tokens, borders = joined([[3], [2, 1], [1, 2], [1, 2, 3], []], 0, np.uint32)
    assert counts.documents.known(tokens, borders).tolist() == [True, False, True, False, True]
    empty = counts.documents.plus(counts.documents, -1)
    assert not empty.known(tokens, borders).any()
