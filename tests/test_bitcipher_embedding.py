import io
import itertools
import struct
from collections import Counter
from fractions import Fraction

import bitcipher_reference
import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator

from bitcipher import CapacityError, CooccurrenceEmbedding, _stream, _vectors, codes, embedding
from bitcipher.embedding import BITS, COMPONENTS

PLAIN = {"sides": "both", "transform": None, "components": None}  # sums without transform and compression
SENTENCES = [["the", "cat", "sat"], ["the", "dog", "sat", "the"], [], ["a"]]


def text(rng, n, vocabulary, longest=30):
    """A text of n tokens "w0", "w1", ... with falling frequency, cut into sentences."""
    words = [f"w{int(vocabulary * u**3)}" for u in rng.random(n)]
    cuts = np.cumsum(rng.integers(0, longest, n + 1))
    return [words[a:b] for a, b in zip([0, *cuts], [*cuts, n], strict=True) if a <= n]


def exact(sentences, model):
    """The sums of a model by the twin, [token][radius][side][bit]."""
    on = codes.assign_codes(len(model.vocabulary_), model.bits)
    indptr, indices = codes.code_indices(on)
    listed = [indices[a:b].tolist() for a, b in itertools.pairwise(indptr)]
    rows = [[model.vocabulary_.get(token) for token in sentence] for sentence in sentences]
    return bitcipher_reference.neighbour_sums(rows, listed, model.bits, model.radii, bool(model.distance_weights))


def blocks(model):
    """The same from the model, as fractions."""
    sums = np.cumsum(model.sums_, axis=1)
    return [[[[Fraction(int(x), model.unit_) for x in c] for c in b] for b in a] for a in sums]


def test_vectors_by_hand():
    # Ranks: the 3, sat 2, a cat dog 1. Codes of 3 bits: 100, 010, 001, 101, 011, so a is {2}, cat {0, 2}, dog {1, 2}.
    model = CooccurrenceEmbedding(bits=3, radii=(1, 2), **PLAIN | {"sides": "separate"}).fit(SENTENCES)
    assert list(model.vocabulary_) == ["the", "sat", "a", "cat", "dog"]
    assert model.counts_.tolist() == [3, 2, 1, 1, 1]
    the, sat, a, cat, dog = model.vectors_ * 4  # four blocks: each of one quarter
    # Radius 1: before "the" sat; after it cat and dog. Radius 2: before dog, sat; after cat, sat, dog, sat.
    assert the.reshape(4, 3).tolist() == [[0, 1, 0], [0.25, 0.25, 0.5], [0, 0.75, 0.25], [0.125, 0.625, 0.25]]
    # Before "sat": cat, dog at 1; the, the at 2. After it: the.
    np.testing.assert_allclose(sat.reshape(4, 3)[2], [2.5 / 4, 0.5 / 4, 1 / 4], rtol=1e-6)
    assert a.tolist() == [0] * 12
    assert cat.reshape(4, 3).tolist() == [[1, 0, 0], [0, 1, 0]] * 2
    assert dog.reshape(4, 3).tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0.5, 0.5, 0]]


def test_sum_counts_near_neighbours_once_for_every_radius():
    model = CooccurrenceEmbedding(bits=3, radii=(1, 2), mode="sum", **PLAIN).fit([["a", "b", "c"]])  # one-hot
    assert model.vectors_[0].tolist() == [0, np.float32(2 / 3), np.float32(1 / 3)]


def test_distance_weights_by_hand():
    model = CooccurrenceEmbedding(bits=4, radii=(3,), distance_weights="harmonic", **PLAIN).fit([["a", "b", "c", "d"]])
    np.testing.assert_allclose(model.vectors_[0], np.array([0, 1, 1 / 2, 1 / 3]) / (11 / 6), rtol=1e-6)


def test_transforms_by_hand():
    sentences = [["a", "b"]] * 3 + [["a", "a"]] + [["c", "b"]]
    model = CooccurrenceEmbedding(bits=3, radii=(1,), **PLAIN).fit(sentences)  # one-hot: a 5, b 4, c 1
    assert model.sums_[:, 0, 0].tolist() == [[2, 3, 0], [3, 0, 1], [0, 1, 0]]
    assert np.array_equal(model.vectors_[0], np.float32([0.4, 0.6, 0]))
    roots = np.sqrt([0.4, 0.6, 0])
    np.testing.assert_allclose(model.set_params(transform="sqrt").vectors_[0], roots / roots.sum(), rtol=1e-6)
    expected = np.array([5, 4, 1]) / 10
    smooth = (np.array([3, 0, 1]) + expected) / 5
    positive = np.maximum(np.log(smooth / expected), 0)
    with pytest.warns(UserWarning, match="of 3 tokens 0 have a vector of zeros and 2 have the vector of another token"):
        vectors = model.set_params(transform="log_ratio").vectors_
    np.testing.assert_allclose(vectors[1], positive / positive.sum(), rtol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 400])
@pytest.mark.parametrize("bits", [1, 5, 64, 65])
@pytest.mark.parametrize("most", [0, 1_000], ids=["neighbours", "windows"])
def test_kernels_agree_with_twin(n, bits, most, monkeypatch):
    monkeypatch.setattr(embedding, "SUMS_A_DISTANCE", most)
    monkeypatch.setattr(_stream, "_POSITIONS_PER_BLOCK", 37)
    monkeypatch.setattr(_stream, "_SENTENCES_PER_BATCH", 3)
    rng = np.random.default_rng(n)
    known = [[f"w{i}" for i in range(bits if bits == 1 else bits + 3)]]
    sentences = text(rng, n, bits + 20)
    counts = Counter(known[0] * 2 + [w for s in sentences for w in s if w in set(known[0])])
    for sides in ("both", "separate"):
        for weights in (None, "harmonic"):
            model = CooccurrenceEmbedding(bits, (1, 2, 5), sides=sides, distance_weights=weights)
            model.fit(sentences, counts=counts, workers=2)
            twin = exact(sentences, model)
            if sides == "both":
                twin = [[[[x + y for x, y in zip(*sides, strict=True)]] for sides in radius] for radius in twin]
            assert blocks(model) == twin


def test_rows_beyond_65536():
    sentence = [f"w{i:05}" for i in range(66_000)]  # rows are positions
    with pytest.warns(UserWarning, match=r"17 bits do not keep 66000 tokens apart: two codes share 2\.76 bits"):
        model = CooccurrenceEmbedding(17, (1,), sides="separate").fit([sentence])
    vectors = codes.code_vectors(codes.assign_codes(66_000, 17), 17)
    np.testing.assert_allclose(model.sums_[1:, 0, 0] / model.unit_, vectors[:-1], rtol=1e-6)
    np.testing.assert_allclose(model.sums_[:-1, 0, 1] / model.unit_, vectors[1:], rtol=1e-6)
    assert not model.sums_[0, 0, 0].any()
    assert not model.sums_[-1, 0, 1].any()


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 4), st.permutations(range(6)))
def test_any_threads_order_and_cuts_give_the_same_bytes(seed, workers, order):
    sentences = text(np.random.default_rng(seed), 200, 40)
    shards = [sentences[i::6] for i in range(6)]
    settings = {"bits": 7, "radii": (1, 3), "sides": "separate", "transform": "log_ratio", "components": 5}
    whole = CooccurrenceEmbedding(**settings).fit(sentences)
    shuffled = CooccurrenceEmbedding(**settings).fit((s for i in order for s in shards[i]), workers=workers)
    counts = Counter(token for sentence in sentences for token in sentence)
    parts = [CooccurrenceEmbedding(**settings).fit(shards[i], counts=counts) for i in order]
    merged = parts[0]
    for part in parts[1:4]:
        merged.merge(part)
    for i in order[4:]:
        merged.partial_fit(shards[i])
    for other in (shuffled, merged):
        assert list(other.vocabulary_) == list(whole.vocabulary_)
        assert other.sums_.tobytes() == whole.sums_.tobytes()
        assert other.vectors_.tobytes() == whole.vectors_.tobytes()


def test_rows_are_unit_or_zero_and_non_negative():
    sentences = text(np.random.default_rng(1), 5000, 300)
    for transform in (None, "sqrt", "log_ratio"):
        for mode in ("concat", "sum"):
            vectors = CooccurrenceEmbedding(20, mode=mode, **PLAIN | {"transform": transform}).fit(sentences).vectors_
            assert vectors.dtype == np.float32
            assert (vectors >= 0).all()
            norms = vectors.sum(axis=1, dtype=np.float64)
            np.testing.assert_allclose(norms[norms > 0], 1, rtol=1e-5)


def test_equal_counts_are_ranked_by_token_whatever_the_order():
    for sentences in ([["b", "a", "é", "B"]], [["é"], ["B", "a"], ["b"]]):
        assert list(CooccurrenceEmbedding(bits=3).fit(sentences).vocabulary_) == ["B", "a", "b", "é"]


def test_rare_and_unknown_tokens_keep_their_place():
    sentences = [["a", "x", "b"], ["a", "y", "b"]]
    model = CooccurrenceEmbedding(bits=2, radii=(1, 2), sides="both", min_count=2).fit(sentences)
    assert model.vocabulary_ == {"a": 0, "b": 1}
    assert model.sums_[0, :, 0].tolist() == [[0, 0], [0, 2]]
    model.partial_fit([["a", "new", "b"], ["new"]])
    assert model.sums_[0, :, 0].tolist() == [[0, 0], [0, 3]]


class Corpus:
    """What `warmstart.Corpus` has, by hand: documents "b a" and "b", and an unknown word that is never a target."""

    tokens = np.array([2, 0, 1, 2, 0, 2], np.uint16)
    documents = np.array([0, 3, 5])
    counts = np.array([2, 1, 2, 0])
    separator = 2

    class tokenizer:  # noqa: N801
        id_to_token = staticmethod(["b", "a", "<sep>", "<unk>"].__getitem__)


def test_a_corpus_gives_what_its_token_lists_give(monkeypatch):
    monkeypatch.setattr(_stream, "_POSITIONS_PER_BLOCK", 2)
    corpus, lists = (CooccurrenceEmbedding(bits=2).fit(x) for x in (Corpus, [["b", "a"], ["b"]]))
    assert corpus.vocabulary_ == lists.vocabulary_ == {"b": 0, "a": 1}
    assert np.array_equal(corpus.sums_, lists.sums_)


def test_saved_and_loaded_it_goes_on_counting(tmp_path):
    model = CooccurrenceEmbedding(bits=3, radii=(np.int64(1), 2), transform="sqrt").fit(
        [*SENTENCES, ["new\nline", "\ud800"]]
    )
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    model.save(first)
    loaded = CooccurrenceEmbedding.load(first)
    loaded.save(second)
    assert first.read_bytes() == second.read_bytes()
    assert loaded.vocabulary_ == model.vocabulary_
    assert loaded.vectors_.tobytes() == model.vectors_.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
    assert np.array_equal(loaded.partial_fit(SENTENCES).sums_, model.partial_fit(SENTENCES).sums_)


@pytest.mark.parametrize("content", [None, b"", b"\0" * 100])
def test_load_refuses_other_files(tmp_path, content):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors: expected a file that CooccurrenceEmbedding.save wrote"):
        CooccurrenceEmbedding.load(path)


def read_word2vec(path, binary):
    """The format as word2vec.c writes it, read from its description."""
    file = io.BytesIO(path.read_bytes())
    rows, columns = map(int, file.readline().split())
    vectors = {}
    for _ in range(rows):
        if binary:
            token = bytearray()
            while (byte := file.read(1)) != b" ":
                token += byte
            vectors[token.decode()] = struct.unpack(f"<{columns}f", file.read(4 * columns))
            assert file.read(1) == b"\n"
        else:
            token, *values = file.readline().decode().rstrip("\n").split(" ")
            vectors[token] = tuple(map(float, values))
    assert file.read() == b""
    return vectors


@pytest.mark.parametrize("binary", [False, True])
def test_word2vec_files_hold_every_bit(tmp_path, binary):
    model = CooccurrenceEmbedding(bits=4, transform="sqrt").fit([*SENTENCES, ["the", "naïve", "☃", "</s>"]])
    path = tmp_path / "vectors"
    model.save_word2vec(path, binary=binary)
    read = read_word2vec(path, binary)
    assert list(read) == list(model.vocabulary_)
    assert np.array_equal(np.float32(list(read.values())), model.vectors_)


@pytest.mark.parametrize("binary", [False, True])
def test_gensim_opens_word2vec_files(tmp_path, binary):
    keyedvectors = pytest.importorskip("gensim.models.keyedvectors", reason="the extra bench has gensim")
    model = CooccurrenceEmbedding(bits=3).fit([*SENTENCES, ["the", "☃"]])
    model.save_word2vec(tmp_path / "vectors", binary=binary)
    opened = keyedvectors.KeyedVectors.load_word2vec_format(tmp_path / "vectors", binary=binary)
    assert opened.index_to_key == list(model.vocabulary_)
    assert np.array_equal(opened.vectors, model.vectors_)


@pytest.mark.parametrize("token", ["", "a b", "a\n", "\u00a0"])
def test_word2vec_refuses_tokens_and_leaves_nothing(tmp_path, token):
    model = CooccurrenceEmbedding(bits=2).fit([["a", token]])
    with pytest.raises(ValueError, match="without white space"):
        model.save_word2vec(tmp_path / "vectors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radii": (0,)}, "radii"),
        ({"radii": ()}, "radii"),
        ({"radii": 5}, "radii"),
        ({"radii": (5, 1)}, "radii"),
        ({"radii": (1, 1)}, "radii"),
        ({"radii": (1.5,)}, "radii"),
        ({"radii": (True,)}, "radii"),
        ({"bits": 0}, "bits"),
        ({"bits": "all"}, 'expected bits to be an integer >= 1 or "auto"'),
        ({"bits": 6}, "expected bits <= 5, the number of tokens, got 6"),
        ({"min_count": 0}, "min_count"),
        ({"components": 0}, "components"),
        ({"min_count": 9}, "expected tokens that occur 9 times or more, got none among 5 tokens"),
        ({"mode": "mean"}, "mode"),
        ({"sides": "left"}, "sides"),
        ({"mode": "sum", "sides": "separate"}, "a sum of blocks has no sides"),
        ({"transform": "log"}, "transform"),
        ({"distance_weights": "linear"}, "distance_weights"),
        ({"radii": (60,), "distance_weights": "harmonic"}, "to be exact in 64 bits"),
    ],
)
def test_refuses_parameters_and_stays_as_it_was(settings, message):
    model = CooccurrenceEmbedding(bits=3).fit(SENTENCES)
    before = model.vectors_.tobytes()
    with pytest.raises(ValueError, match=message):
        model.set_params(**settings).fit(SENTENCES)
    model.set_params(**CooccurrenceEmbedding(bits=3).get_params())
    assert model.partial_fit([]).vectors_.tobytes() == before


def test_the_defaults_fit_any_vocabulary():
    few = CooccurrenceEmbedding().fit(SENTENCES)
    assert (few.sums_.shape, few.vectors_.shape) == ((5, 2, 2, 5), (5, 5))  # one bit and one component a token
    many = CooccurrenceEmbedding().fit([[f"w{i}" for i in range(BITS + 1)]])
    assert (many.sums_.shape[3], many.vectors_.shape[1]) == (BITS, COMPONENTS)
    assert CooccurrenceEmbedding(bits=3, mode="sum", sides="both").fit(SENTENCES).vectors_.shape == (5, 3)


def test_a_file_has_numbers_in_place_of_auto(tmp_path):
    model = CooccurrenceEmbedding().fit(SENTENCES)
    model.save(tmp_path / "a.safetensors")
    loaded = CooccurrenceEmbedding.load(tmp_path / "a.safetensors")
    assert loaded.get_params() == model.get_params() | {"bits": 5, "components": 5}
    assert loaded.merge(model).sums_.tobytes() == (2 * model.sums_).tobytes()


def test_says_once_that_tokens_have_no_neighbours():
    model = CooccurrenceEmbedding(bits=3).fit([["a"], ["b"], ["e"], ["c", "d", "c"]])
    with pytest.warns(UserWarning, match="of 5 tokens 3 have a vector of zeros"):
        _ = model.vectors_
    _ = model.vectors_  # a second warning would be an error


def test_too_few_bits():
    with pytest.raises(CapacityError, match="needs bits >= 3"):
        CooccurrenceEmbedding(bits=2).fit(SENTENCES)


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        ("a text", "expected an iterable of lists of tokens, got str"),
        (5, "expected an iterable of lists of tokens, got int"),
        (["a text"], "expected sentences that are lists of tokens, got 'a text'"),
        ([["a"], None], "expected sentences that are lists of tokens, got None"),
        ([["a", 5]], "expected tokens that are strings, got 5"),
        ([["a", []]], "expected tokens that are strings"),
        ([], "got none among 0 tokens"),
        ([[], []], "got none among 0 tokens"),
    ],
)
def test_refuses_sentences(sentences, message):
    with pytest.raises(ValueError, match=message):
        CooccurrenceEmbedding(bits=1).fit(sentences)


def test_refuses_what_does_not_fit_together():
    model = CooccurrenceEmbedding(bits=3).fit(SENTENCES)
    with pytest.raises(ValueError, match="one vocabulary"):
        model.merge(CooccurrenceEmbedding(bits=3).fit(SENTENCES[:2]))
    with pytest.raises(ValueError, match="counts on the first call only"):
        model.partial_fit(SENTENCES, counts={"a": 1})
    with pytest.raises(ValueError, match="expected the parameters of the first call"):
        model.set_params(radii=(2,)).partial_fit(SENTENCES)
    for counts in ({"a": 0}, {5: 1}, {"a": 1.5}):
        with pytest.raises(ValueError, match="expected counts >= 1 of tokens that are strings"):
            CooccurrenceEmbedding(bits=1).fit(SENTENCES, counts=counts)
    with pytest.raises(NotFittedError):
        _ = clone(model).vectors_


def compressed(wide, counts, size):
    """The same by a singular value decomposition in float64."""
    weights = (counts / counts.max())[:, None] ** 0.25
    _, values, directions = np.linalg.svd(weights * wide.astype(np.float64), full_matrices=False)
    directions = directions[:size].T
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(size)])
    return wide @ (directions * signs / np.sqrt(values[:size]))


@pytest.mark.parametrize(("n", "d", "size"), [(1, 1, 1), (63, 5, 5), (64, 9, 3), (65, 64, 10), (200, 65, 65)])
def test_compression_is_the_singular_value_decomposition(n, d, size, monkeypatch):
    monkeypatch.setattr(_vectors, "PRODUCT_ROWS", 16)
    rng = np.random.default_rng(n)
    wide = (rng.random((n, d)) * 0.8 ** np.arange(d)).astype(np.float32)
    counts = -np.sort(-rng.integers(1, 100, n))
    found = [_vectors.compress(wide, counts, size, workers) for workers in (1, 2, 3)]
    assert len({x.tobytes() for x in found}) == 1
    sure = min(n, size, 6)  # the directions of the smallest values are those of rounding
    np.testing.assert_allclose(found[0][:, :sure], compressed(wide, counts, size)[:, :sure], atol=2e-3)


def test_compression_to_full_size_keeps_products():
    # With equal counts, S ** 0.5 twice: rows x rows is M Q / S Q' M', the root of M M'.
    rng = np.random.default_rng(0)
    wide = rng.random((30, 8)).astype(np.float32)
    vectors = _vectors.compress(wide, np.ones(30, np.int64), 8, 1).astype(np.float64)
    np.testing.assert_allclose((vectors @ vectors.T) @ (vectors @ vectors.T), wide @ wide.T, atol=1e-3)


def test_the_most_frequent_tokens_decide_the_directions(monkeypatch):
    monkeypatch.setattr(_vectors, "FREQUENT", 2)
    wide = np.float32([[2, 0, 0], [0, 1, 0], [0, 0, 9]])
    vectors = _vectors.compress(wide, np.array([1, 1, 1]), 2, 1)
    np.testing.assert_allclose(vectors, [[np.sqrt(2), 0], [0, 1], [0, 0]], atol=1e-6)


def test_columns_beyond_the_rank_are_zero():
    wide = np.outer(np.arange(1, 6), [1, 2, 3]).astype(np.float32)
    vectors = _vectors.compress(wide, np.arange(5, 0, -1), 3, 1)
    assert vectors[:, 0].all()
    assert not vectors[:, 1:].any()


def test_components_in_any_threads(monkeypatch):
    monkeypatch.setattr(_vectors, "PRODUCT_ROWS", 32)
    monkeypatch.setattr(_vectors, "TRANSFORM_ROWS", 32)
    sentences = text(np.random.default_rng(2), 5000, 150)
    settings = {"bits": 20, "sides": "separate", "transform": "log_ratio", "components": 12}
    one, two = (CooccurrenceEmbedding(**settings).fit(sentences, workers=w).vectors_ for w in (1, 2))
    assert one.shape[1] == 12
    assert one.tobytes() == two.tobytes()
    with pytest.raises(ValueError, match="expected components <= 80, bits x blocks, got 81"):
        _ = CooccurrenceEmbedding(bits=20, sides="separate", components=81).fit(sentences).vectors_


def test_sums_that_are_only_mapped_are_copied_before_the_first_change(tmp_path):
    sentences = [["b", "a", "b", "c"], ["c", "a"]] * 9
    settings = {"bits": 3, "radii": (1,), "components": None, "transform": None, "sides": "both"}
    model = CooccurrenceEmbedding(**settings).fit(sentences)
    joblib.dump(model, tmp_path / "model")
    mapped = joblib.load(tmp_path / "model", mmap_mode="r")
    assert not mapped.sums_.flags.writeable
    mapped.partial_fit(sentences)
    assert np.array_equal(mapped.sums_, model.partial_fit(sentences).sums_)


def test_checks_of_scikit_learn_that_need_no_numbers():
    """Its parameter ``transform`` makes scikit-learn take it for a transformer of tables."""
    with pytest.warns(SkipTestWarning, match="Can't test estimator CooccurrenceEmbedding which requires input"):
        check_estimator(CooccurrenceEmbedding())
