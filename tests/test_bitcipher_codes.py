import subprocess
import sys
from pathlib import Path

import bitcipher_reference
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import vocabularies

from bitcipher import CapacityError, codes


def dense(packed, bits):
    """Unpacked codes (V, bits) of 0 and 1, one Python integer at a time."""
    rows = [sum(int(word) << 64 * i for i, word in enumerate(code)) for code in packed]
    return np.array([[row >> bit & 1 for bit in range(bits)] for row in rows]).reshape(-1, bits)


def test_order_of_four_bits_by_hand():
    # Weight 2: {3}+0 {3}+1 {3}+2 | {2}+0 {2}+1 | {1}+0 (the rest was seen).
    # Weight 3, from {1,0}: +2 +3 | {2,1}: +0 seen, +3 | {2,0}: +1 seen, +3 | the rest was seen.
    by_hand = [(0,), (1,), (2,), (3,), (0, 3), (1, 3), (2, 3), (0, 2), (1, 2), (0, 1)]
    by_hand += [(0, 1, 2), (0, 1, 3), (1, 2, 3), (0, 2, 3), (0, 1, 2, 3)]
    assert codes.assign_codes(15, 4)[:, 0].tolist() == [sum(2**bit for bit in code) for code in by_hand]


def test_capacity_and_smallest_bits():
    assert [codes.capacity(bits) for bits in (1, 2, 3, 64)] == [1, 3, 7, 18446744073709551615]
    assert [codes.smallest_bits(size) for size in (0, 1, 2, 3, 4, 255, 256, 50257)] == [1, 1, 2, 2, 3, 8, 9, 16]


def test_too_few_bits_names_what_fits():
    with pytest.raises(CapacityError, match=r"vocab_size=8 needs bits >= 4, got bits=3, which has 7 codes"):
        codes.assign_codes(8, 3)


@pytest.mark.parametrize(
    ("vocab_size", "bits", "error"),
    [
        (3, 0, ValueError),
        (3, -1, ValueError),
        (3, 2.0, TypeError),
        (3, "2", TypeError),
        (1, True, ValueError),
        (-1, 2, ValueError),
        (1.5, 2, TypeError),
    ],
)
def test_refuses_other_arguments(vocab_size, bits, error):
    with pytest.raises(error, match="to be an integer"):
        codes.assign_codes(vocab_size, bits)


@pytest.mark.parametrize("bits", [1, 8, 63, 64, 65, 128, 129])
@pytest.mark.parametrize("vocab_size", [0, 1, 63, 64, 65, 1000])
def test_kernel_agrees_with_twin(vocab_size, bits):
    vocab_size = min(vocab_size, 2**bits - 1)
    packed = codes.assign_codes(vocab_size, bits)
    assert packed.shape == (vocab_size, -(-bits // 64))
    assert packed.dtype == np.uint64
    assert np.array_equal(packed, bitcipher_reference.assign_codes(vocab_size, bits))


@pytest.mark.parametrize("bits", range(1, 13))
def test_kernel_agrees_with_twin_when_exactly_full(bits):
    packed = codes.assign_codes(2**bits - 1, bits)
    assert np.array_equal(packed, bitcipher_reference.assign_codes(2**bits - 1, bits))
    assert sorted(packed[:, 0].tolist()) == list(range(1, 2**bits))


def test_kernel_agrees_with_twin_beyond_65536():
    assert np.array_equal(codes.assign_codes(66_000, 300), bitcipher_reference.assign_codes(66_000, 300))


@given(vocabularies(), st.integers(0, 400))
def test_properties_of_the_order(vocabulary, smaller):
    vocab_size, bits = vocabulary
    packed = codes.assign_codes(vocab_size, bits)
    weights = codes.code_weights(packed)
    assert len({code.tobytes() for code in packed}) == vocab_size
    assert (np.diff(weights) >= 0).all()
    assert (weights >= 1).all()
    smaller = min(smaller, vocab_size)
    assert np.array_equal(codes.assign_codes(smaller, bits), packed[:smaller])


@pytest.mark.parametrize(("vocab_size", "bits"), [(0, 5), (1, 1), (64, 64), (65, 65), (65, 200)])
def test_as_many_bits_as_tokens_is_one_hot(vocab_size, bits):
    assert np.array_equal(codes.code_vectors(codes.assign_codes(vocab_size, bits), bits), np.eye(vocab_size, bits))


@given(vocabularies(max_bits=130))
def test_weights_indices_and_vectors_agree_with_the_bits(vocabulary):
    vocab_size, bits = vocabulary
    packed = codes.assign_codes(vocab_size, bits)
    on = dense(packed, bits)
    weights = codes.code_weights(packed)
    assert weights.dtype == np.int64
    assert np.array_equal(weights, on.sum(axis=1))
    indptr, indices = codes.code_indices(packed)
    assert (indptr.dtype, indices.dtype) == (np.int64, np.int32)
    assert np.array_equal(indptr, np.concatenate([[0], np.cumsum(weights)]))
    assert np.array_equal(indices, np.nonzero(on)[1])
    vectors = codes.code_vectors(packed, bits)
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, (on / on.sum(axis=1, keepdims=True)).astype(np.float32))


def test_indices_go_on_after_the_first_chunk(monkeypatch):
    packed = codes.assign_codes(200, 65)
    whole = codes.code_indices(packed)
    monkeypatch.setattr(codes, "_UNPACKED_ROWS", 7)
    for in_chunks, at_once in zip(codes.code_indices(packed), whole, strict=True):
        assert np.array_equal(in_chunks, at_once)


@given(vocabularies(max_bits=130, max_size=100))
def test_similarity_is_the_matrix_product(vocabulary):
    vocab_size, bits = vocabulary
    packed = codes.assign_codes(vocab_size, bits)
    vectors = codes.code_vectors(packed, bits).astype(np.float64)
    pairs = codes.similarity(packed[:, None], packed[None, :])
    assert pairs.dtype == np.float64
    np.testing.assert_allclose(pairs, vectors @ vectors.T, rtol=1e-6)


@given(vocabularies(max_bits=70))
def test_decode_finds_every_code_again(vocabulary):
    vocab_size, bits = vocabulary
    packed = codes.assign_codes(vocab_size, bits)
    vectors = codes.code_vectors(packed, bits)
    assert np.array_equal(codes.decode(vectors, packed), np.arange(vocab_size))
    assert np.array_equal(codes.decode(1e-20 * vectors, packed), np.arange(vocab_size))


@given(st.integers(1, 5).flatmap(lambda bits: st.tuples(st.just(bits), st.integers(bits, 2**bits - 1))), st.data())
def test_decode_agrees_with_exact_arithmetic(size, data):
    bits, vocab_size = size  # at least one code a bit: every vector but zero has an answer
    vector = st.lists(st.integers(0, 3), min_size=bits, max_size=bits).filter(any)  # small integers: many ties
    vectors = data.draw(st.lists(vector, min_size=1, max_size=4))
    packed = codes.assign_codes(vocab_size, bits)
    listed = [np.flatnonzero(code).tolist() for code in dense(packed, bits)]
    assert codes.decode(vectors, packed).tolist() == bitcipher_reference.decode(vectors, listed)


def test_decode_of_a_tie_is_the_more_frequent():
    # {0,1,2} is rank 10 and {1,2,3} rank 12; log 4 + log 5 + log 11 is another float when added in another order.
    assert codes.decode([[4, 5, 11, 4]], codes.assign_codes(13, 4)).tolist() == [10]
    # {2} ties with {0,1,2}: 18 = 3 (3 * 4 * 18)^(1/3).
    assert codes.decode([[3, 4, 18, 3]], codes.assign_codes(13, 4)).tolist() == [2]
    # {0} ties with {0,1}: 4 = 2 (4 * 1)^(1/2).
    assert codes.decode([[4.0, 1.0]], codes.assign_codes(3, 2)).tolist() == [0]


def test_decode_in_chunks_and_of_nothing():
    packed = codes.assign_codes(200, 8)
    assert np.array_equal(codes.decode(codes.code_vectors(packed, 8), packed), np.arange(200))
    assert codes.decode(np.empty((0, 8)), packed).shape == (0,)
    assert codes.decode(np.empty((0, 8)), packed[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, np.nan, 0.0]], "non-negative and finite"),
        ([[1.0, np.inf, 0.0]], "non-negative and finite"),
        ([[1.0, -1.0, 0.0]], "non-negative and finite"),
        ([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], "vector 1 is zero"),
        ([1.0, 0.0, 0.0], "shape"),
        ([[1.0, 0.0]], "expected codes of 2 bits"),
        (np.ones((1, 65)), "expected codes of 65 bits"),
    ],
)
def test_decode_refuses(vectors, message):
    with pytest.raises(ValueError, match=message):
        codes.decode(vectors, codes.assign_codes(7, 3))


def test_refuses_what_are_no_codes():
    with pytest.raises(ValueError, match="uint64"):
        codes.code_weights(np.zeros((3, 1), np.int64))
    with pytest.raises(ValueError, match="empty code"):
        codes.code_vectors(np.zeros((3, 1), np.uint64), 3)
    with pytest.raises(ValueError, match="equal numbers of words"):
        codes.similarity(codes.assign_codes(3, 64), codes.assign_codes(3, 65))


def run(program):
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return result.stdout


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import bitcipher.codes", {"numba", "sklearn", "scipy", "torch"}),
        ("from bitcipher import BitCipher, CooccurrenceEmbedding", {"numba", "torch", "tokenizers", "rich"}),
    ],
)
def test_import_is_silent_and_loads_no_more_than_it_needs(statement, absent):
    assert run(f"import sys; {statement}; print({absent} & set(sys.modules))") == "set()\n"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory is read from /proc")
@pytest.mark.slow  # a million codes, and the peak memory of a process of its own
def test_a_million_tokens_in_less_than_a_gigabyte():
    program = "from bitcipher import codes; codes.code_indices(codes.assign_codes(1_000_000, 1024)); "
    # Linux: ru_maxrss would count the parent that was forked.
    peak = run(program + "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])")
    assert int(peak) < 2**20  # KiB
