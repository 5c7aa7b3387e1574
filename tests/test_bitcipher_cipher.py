import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from bitcipher import BitCipher, CapacityError, codes

COUNTS = {"cat": 2, "the": 9, "sat": 1, "a": 5, "on": 2}

# `fit` takes a vector of counts, so its tags say one_d_array. scikit-learn then cuts its data down to one column, and
# these checks go on as if there were several: all of them fail in their own code but check_fit1d.
CUTS_TWICE = "the check takes X[:, 0] of data that is already one-dimensional"
NEEDS_COLUMNS = "the check asks for the number of columns of one-dimensional data"
EXPECTED_FAILURES = {
    "check_dict_unchanged": CUTS_TWICE,
    "check_dont_overwrite_parameters": CUTS_TWICE,
    "check_f_contiguous_array_estimator": CUTS_TWICE,
    "check_fit2d_1feature": CUTS_TWICE,
    "check_fit2d_1sample": CUTS_TWICE,
    "check_fit2d_predict1d": CUTS_TWICE,
    "check_methods_sample_order_invariance": CUTS_TWICE,
    "check_methods_subset_invariance": CUTS_TWICE,
    "check_dtype_object": "the check passes its first part, then writes to X[0, 0] of one-dimensional data",
    "check_n_features_in": NEEDS_COLUMNS,
    "check_n_features_in_after_fitting": NEEDS_COLUMNS,
    "check_transformer_data_not_an_array": NEEDS_COLUMNS,
    "check_transformer_general": NEEDS_COLUMNS,
    "check_estimator_sparse_array": "scipy cannot convert the check's one-dimensional sparse array to lil format",
    "check_fit1d": "the check wants one-dimensional data refused; here it is the very input",
}


@parametrize_with_checks(
    [BitCipher(bits=16)], expected_failed_checks=lambda estimator: EXPECTED_FAILURES, xfail_strict=True
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


# What the checks above cannot reach, for one column of counts.


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_fit_takes_a_vector_or_a_column_and_leaves_it_alone(shape):
    counts = np.array([2, 9, 1, 5, 2]).reshape(shape)
    counts.setflags(write=False)
    cipher = BitCipher(bits=3)
    assert cipher.fit(counts) is cipher
    assert cipher.ranks_.tolist() == [2, 0, 4, 1, 3]
    assert cipher.vocabulary_ is None
    assert cipher.get_params() == {"bits": 3}
    assert getattr(cipher, "n_features_in_", None) == (1 if counts.ndim == 2 else None)


def test_transform_does_not_depend_on_the_batch():
    cipher = BitCipher(bits=5).fit(np.arange(20))
    ids = np.array([3, 19, 3, 0, 7])
    whole = cipher.transform(ids)
    assert np.array_equal(whole[::-1], cipher.transform(ids[::-1]))
    assert np.array_equal(whole, np.vstack([cipher.transform(ids[i : i + 1]) for i in range(5)]))
    assert cipher.transform([]).shape == (0, 5)


def test_rows_are_in_the_order_of_the_input_by_hand():
    cipher = BitCipher(bits=3).fit(COUNTS)
    assert cipher.vocabulary_ == {"cat": 0, "the": 1, "sat": 2, "a": 3, "on": 4}
    assert cipher.ranks_.tolist() == [2, 0, 4, 1, 3]  # "cat" before "on": equal counts keep their order
    assert cipher.codes_[:, 0].tolist() == [0b100, 0b001, 0b110, 0b010, 0b101]
    assert cipher.vectors_.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0.5, 0.5], [0, 1, 0], [0.5, 0, 0.5]]
    assert cipher.vectors_.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.int64, np.float32, bool])
def test_ranks_for_every_dtype(dtype):
    assert BitCipher(bits=3).fit(np.array([0, 1, 0, 1], dtype)).ranks_.tolist() == [2, 0, 3, 1]


def test_counts_beyond_float_precision_keep_their_order():
    assert BitCipher(bits=2).fit([2**53, 2**53 + 1]).ranks_.tolist() == [1, 0]


@settings(max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_properties_of_fit(counts):
    cipher = BitCipher(bits=6).fit(counts)
    by_hand = sorted(range(len(counts)), key=lambda row: (-counts[row], row))
    assert np.argsort(cipher.ranks_).tolist() == by_hand
    assert np.array_equal(cipher.codes_[by_hand], codes.assign_codes(len(counts), 6))
    assert np.array_equal(cipher.transform(np.arange(len(counts))), cipher.vectors_)
    assert np.array_equal(cipher.inverse_transform(cipher.vectors_), np.arange(len(counts)))


def test_tokens_go_and_come_back():
    cipher = BitCipher(bits=3).fit(COUNTS)
    tokens = ["a", "sat", "the", "a"]
    assert cipher.inverse_transform(3 * cipher.transform(tokens)) == tokens
    assert cipher.transform(iter(tokens)).shape == (4, 3)
    assert cipher.similarity(tokens, ["on"]).tolist() == [0.0, 0.25, 0.5, 0.0]
    assert BitCipher(bits=2).fit({("a", 1): 3, None: 1}).inverse_transform([[0, 1]]) == [None]


def test_labels_go_and_come_back():
    y = np.repeat(np.arange(40), np.arange(40, 0, -1))
    cipher = BitCipher(bits=6).fit(np.bincount(y))
    targets = cipher.transform(y)
    assert targets.shape == (len(y), 6)
    assert np.array_equal(cipher.inverse_transform(targets), y)


def test_similarity_is_the_product_of_vectors():
    cipher = BitCipher(bits=7).fit(np.arange(100))
    a, b = np.arange(100), np.arange(100)[::-1]
    expected = (cipher.transform(a).astype(np.float64) * cipher.transform(b)).sum(axis=1)
    np.testing.assert_allclose(cipher.similarity(a, b), expected, rtol=1e-6)


def test_refitting_forgets_the_mapping():
    cipher = BitCipher(bits=3).fit(COUNTS).fit([1, 2])
    assert cipher.vocabulary_ is None
    assert cipher.inverse_transform([[0, 1, 0]]).tolist() == [0]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1, np.nan], "NaN"),
        ({"a": np.nan}, "NaN"),
        ([1, np.inf], "infinity"),
        ([1, -1], "Negative values"),
        ([], "0 sample"),
        ({}, "0 sample"),
        (np.ones((2, 2)), r"expected counts of shape \(V,\) or \(V, 1\), got shape \(2, 2\)"),
        (["a", "b"], "not compatible with arrays of bytes/strings"),
    ],
)
def test_fit_refuses_counts(counts, message):
    with pytest.raises(ValueError, match=message):
        BitCipher(bits=3).fit(counts)


def test_fit_refuses_sparse_counts_even_where_they_are_a_dict():
    for kind in ("csr", "dok"):
        with pytest.raises(TypeError, match=r"[Ss]parse"):
            BitCipher(bits=3).fit(csr_array(np.ones((3, 1))).asformat(kind))


@pytest.mark.parametrize(("bits", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), ("3", TypeError)])
def test_fit_refuses_bits(bits, error):
    with pytest.raises(error, match="expected bits to be an integer"):
        BitCipher(bits=bits).fit([1, 2])


def test_too_few_bits_change_nothing():
    cipher = BitCipher(bits=2).fit([3, 1])
    before = clone(cipher).fit([3, 1]).codes_
    with pytest.raises(CapacityError, match="needs bits >= 3, got bits=2"):
        cipher.fit(COUNTS)
    assert np.array_equal(cipher.codes_, before)
    assert cipher.vocabulary_ is None


@pytest.mark.parametrize("ids", [[5], [-1], [0.5], [1e300], [True], [[0]], 0, ["the"], [np.nan]])
def test_refuses_ids(ids):
    cipher = BitCipher(bits=3).fit([2, 9, 1, 5, 2])
    with pytest.raises(ValueError, match=r"ids|strings"):
        cipher.transform(ids)


def test_names_the_id_or_token_it_does_not_know():
    with pytest.raises(ValueError, match="expected integer ids from 0 to 1, got 7"):
        BitCipher(bits=3).fit([2, 9]).transform([0, 7, 9])
    with pytest.raises(ValueError, match="expected tokens seen in fit, got 'dog'"):
        BitCipher(bits=3).fit(COUNTS).similarity(["the"], ["dog"])


def test_inverse_transform_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"expected vectors of shape \(n, 3\), got shape \(1, 2\)"):
        BitCipher(bits=3).fit([1]).inverse_transform([[1.0, 0.0]])


def test_unfitted():
    with pytest.raises(NotFittedError):
        _ = BitCipher().vectors_
