import numpy as np
import pytest
import reference
from scipy import sparse

from warmstart import contexts
from warmstart.near_shallow import cipher_vectors

TOKENS = np.array([9, 1, 2, 3, 9, 4, 9, 9, 5, 9])  # "1 2 3", "4", "" and "5"; the separator is 9
DOCUMENTS = np.array([0, 4, 6, 7, 9])
V, BITS = 30, 6


@pytest.fixture
def corpus():
    """Return tokens and documents of 1, 2, ... 60 tokens, the separator 0."""
    rng = np.random.default_rng(0)
    lengths = np.arange(1, 61)
    documents = np.concatenate([[0], np.cumsum(lengths + 1)])
    tokens = rng.integers(1, V, size=documents[-1] + 1)
    tokens[documents] = 0
    return tokens, documents


def histories(tokens, documents):
    """Yield for every target its history, oldest first: the separator and all that follows it."""
    begin = 0
    for i in range(1, tokens.size):
        if i - 1 in documents:
            begin = i - 1
        yield tokens[begin:i].tolist()


def test_radial_pads_with_the_separator_and_never_looks_across_documents():
    chunk = contexts.read(TOKENS, DOCUMENTS, size=3, start=1, stop=10)
    assert chunk.radial(2, separator=9).tolist() == [[9, 1, 2, 3, 9, 4, 9, 9, 5], [9, 9, 1, 2, 9, 9, 9, 9, 9]]


def test_blocks_begin_at_documents_and_at_multiples_of_their_size():
    chunk = contexts.read(TOKENS, DOCUMENTS, size=3, start=1, stop=10)
    assert chunk.block(2).tolist() == [[9, 1, 2, 3, 9, 4, 9, 9, 5], [-1, 9, -1, 2, -1, 9, -1, -1, 9]]
    assert chunk.block(1).tolist() == [[9, 1, 2, 3, 9, 4, 9, 9, 5]]


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_windows_against_whole_histories(corpus, size):
    (chunk,) = contexts.read_all(*corpus, size)
    for n, history in enumerate(histories(*corpus)):
        newest_first = history[::-1][:size] + [-1] * (size - len(history))
        assert chunk.window[:, n].tolist() == newest_first
        assert chunk.position[n] == len(history) - 1
        in_block = (len(history) - 1) % size + 1
        assert chunk.block(size)[:, n].tolist() == newest_first[:in_block] + [-1] * (size - in_block)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
@pytest.mark.parametrize("chunk_size", [1, 7, 1829, 1830, 1831])  # there are 1,890 targets
def test_chunks_joined_are_the_corpus_read_at_once(corpus, chunk_size, dtype):
    tokens, documents = corpus
    (whole,) = contexts.read_all(tokens, documents, 8)
    chunks = list(contexts.read_all(tokens.astype(dtype), documents, 8, chunk_size))
    assert [chunk.first for chunk in chunks] == list(range(1, tokens.size, chunk_size))
    for name in ("targets", "position", "window"):
        joined = np.concatenate([getattr(chunk, name) for chunk in chunks], axis=-1)
        assert joined.dtype == (np.int64 if name == "position" else np.int32)
        assert joined.tolist() == getattr(whole, name).tolist()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("chunk_size", [1, 7, 1000, 65_536])
def test_same_bits_for_any_chunk_size_and_workers(corpus, chunk_size, workers):
    rng = np.random.default_rng(1)
    rows, W = rng.random((V, 5), dtype=np.float32), rng.normal(size=(8, 8))
    vectors = cipher_vectors(V, BITS)

    def run(chunk_size, workers):
        state, out = np.zeros(5), []
        for chunk in contexts.read_all(*corpus, 8, chunk_size):
            window = chunk.block(8)
            A = contexts.attend(window, W, vectors)
            superposed = contexts.superposed(window, A, vectors).toarray()
            attended = contexts.superposed_rows(window, A, rows, workers)
            means = contexts.document_means(chunk, rows, state, workers)
            out.append(np.hstack([A, superposed, attended, means]))
        return np.concatenate(out).tobytes()

    assert run(chunk_size, workers) == run(10_000, 1)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("chunk_size", [1, 7, 63, 64, 65, 10_000])
def test_memory_is_the_readable_one_for_any_chunk_size_and_workers(corpus, chunk_size, workers):
    keys, labels = cipher_vectors(V, BITS), cipher_vectors(V, 5)
    keys = sparse.csr_array(keys.multiply(1 / np.sqrt(keys.multiply(keys).sum(axis=1))[:, None]))
    memory, out = np.ones((BITS, 5)), []  # what another text left
    for chunk in contexts.read_all(*corpus, 1, chunk_size):
        out.append(contexts.remembered(chunk, keys, labels, memory, workers))
    (whole,) = contexts.read_all(*corpus, 1, len(corpus[0]))
    sides = (keys.toarray().astype(float), labels.toarray().astype(float))
    reads = reference.remember(whole.window[0], whole.targets, whole.position, *sides, contexts.WRITE_STRENGTH)
    expected = np.maximum(reads, 0) + contexts.EMPTY_MASS / 5
    np.testing.assert_allclose(np.concatenate(out), expected / expected.sum(axis=1, keepdims=True), atol=1e-6)


def test_memory_by_hand():
    # "0 1 2 1", tokens are their own keys and labels: after the second 1 it has read 0.15 of the label 2
    tokens, eye = np.array([0, 1, 2, 1, 0]), sparse.csr_array(np.eye(3))
    (chunk,) = contexts.read_all(tokens, np.array([0, 4]), 1)
    h = contexts.remembered(chunk, eye, eye, np.zeros((3, 3)))
    rest = contexts.EMPTY_MASS / 3
    np.testing.assert_allclose(h[:3], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(h[3], np.array([rest, rest, 0.15 + rest]) / (0.15 + contexts.EMPTY_MASS), rtol=1e-6)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_no_target_is_no_row(workers):
    window = np.empty((4, 0), dtype=np.int64)
    vectors = cipher_vectors(V, BITS)
    A = contexts.attend(window, np.zeros((4, 4)), vectors)
    assert contexts.superposed(window, A, vectors).shape == (0, BITS)
    assert contexts.superposed_rows(window, A, vectors.toarray(), workers).shape == (0, BITS)
