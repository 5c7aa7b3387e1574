"""BitCipher: a scikit-learn estimator that turns the counts of tokens or labels into bit vectors.

Shapes: V tokens (or classes), b bits, n ids. The mathematics and the references are in `bitcipher.codes`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.utils import Tags, TransformerTags
from sklearn.utils.validation import check_array, check_is_fitted, check_non_negative, validate_data

from bitcipher import codes


class BitCipher(BaseEstimator):  # type: ignore[misc]
    """Deterministic bit vectors for tokens or class labels, computed from their counts.

    Frequent tokens get codes with few bits on; see `bitcipher.codes.assign_codes`. `fit` takes at most O(V bits words)
    time: about a second for a million tokens and 1,024 bits.

    Parameters
    ----------
    bits : int, default=256
        Dimension of the vectors, at least 1. There are ``2**bits - 1`` codes. With ``bits >= V`` they are one-hot.

    Attributes
    ----------
    codes_ : ndarray of shape (V, words), uint64
        Packed codes in the order of the input: row i is the code of the i-th token.
    ranks_ : ndarray of shape (V,), int64
        Rank of each token; 0 is the most frequent. Tokens with equal counts keep the order of the input.
    vocabulary_ : dict or None
        Row of each token, in the order of the mapping. None after a fit on an array: then tokens are row numbers.
    n_features_in_ : int
        1. It exists only after a fit on an array of shape (V, 1).

    Notes
    -----
    There is no ``fit_transform``, because `fit` takes counts and `transform` takes ids or tokens.

    References
    ----------
    Williams and Zhao 2023, arXiv 2311.11012.

    Examples
    --------
    Token vectors, from a mapping of counts:

    >>> cipher = BitCipher(bits=3).fit({"cat": 2, "the": 9, "sat": 1, "a": 5})
    >>> cipher.transform(["the", "sat"])
    array([[1. , 0. , 0. ],
           [0.5, 0. , 0.5]], dtype=float32)
    >>> cipher.similarity(["the", "the"], ["sat", "cat"])
    array([0.5, 0. ])

    Label embeddings from class counts: low-dimensional targets for a hidden layer, and the way back to labels.

    >>> import numpy as np
    >>> y = np.array([0, 2, 2, 1, 2, 1])
    >>> labels = BitCipher(bits=2).fit(np.bincount(y))
    >>> labels.transform([0, 1, 2])
    array([[0.5, 0.5],
           [0. , 1. ],
           [1. , 0. ]], dtype=float32)
    >>> labels.inverse_transform([[0.4, 0.6], [0.1, 0.9]])
    array([0, 1])
    """

    def __init__(self, bits: int = 256) -> None:
        self.bits = bits

    def fit(self, counts: ArrayLike | Mapping[Hashable, float], y: None = None) -> BitCipher:
        """Assign a code to every token, and return the estimator itself.

        Parameters
        ----------
        counts : array-like of shape (V,) or (V, 1), or mapping of token to count
            Non-negative and finite. Tokens with count zero get the last ranks.
        y : None
            Ignored.

        Raises
        ------
        CapacityError
            If there are fewer codes than tokens. The message names the smallest number of bits that is enough.
        TypeError, ValueError
            If ``bits`` is not a positive integer, or if the counts are empty, negative, not finite or have more than
            one column.
        """
        vocabulary = None
        if isinstance(counts, Mapping) and not issparse(counts):  # scipy's dok_matrix is a dict
            vocabulary = {token: row for row, token in enumerate(counts)}
            counts = list(counts.values())
        column = check_array(counts, ensure_2d=False, input_name="counts")
        if column.ndim == 2 and column.shape[1] == 1:
            column = column[:, 0]
        if column.ndim != 1:
            raise ValueError(f"expected counts of shape (V,) or (V, 1), got shape {column.shape}")
        check_non_negative(column, "BitCipher.fit: expected counts >= 0")

        vocab_size = len(column)
        ranked = codes.assign_codes(vocab_size, self.bits)
        # A stable descending sort for every dtype. Sorting -column would fail: unsigned counts wrap around.
        by_rank = vocab_size - 1 - np.argsort(column[::-1], kind="stable")[::-1]
        validate_data(self, counts, skip_check_array=True)  # sets n_features_in_
        self.ranks_ = np.empty(vocab_size, np.int64)
        self.ranks_[by_rank] = np.arange(vocab_size)
        self.codes_ = ranked[self.ranks_]
        self.vocabulary_ = vocabulary
        return self

    @property
    def vectors_(self) -> NDArray[np.float32]:
        """Vectors of all tokens in the order of the input, (V, bits) float32, computed on every access."""
        check_is_fitted(self)
        return codes.code_vectors(self.codes_, self.bits)

    def transform(self, ids: ArrayLike | Iterable[Hashable]) -> NDArray[np.float32]:
        """Return the vectors of ids, or of tokens after a fit on a mapping.

        Parameters
        ----------
        ids : array-like of int of shape (n,), or iterable of n tokens
            Row numbers in the order of the counts; floats with whole values are accepted. After a fit on a mapping:
            tokens.

        Returns
        -------
        ndarray of shape (n, bits), float32
            Non-negative vectors with L1 norm 1.

        Raises
        ------
        ValueError
            If an id is out of range or a token is unknown. The message names it.
        """
        return codes.code_vectors(self.codes_[self._rows(ids)], self.bits)

    def inverse_transform(self, vectors: ArrayLike) -> NDArray[np.int64] | list[Hashable]:
        """Find the most probable token of every vector; see `bitcipher.codes.decode` for the time it takes.

        Parameters
        ----------
        vectors : array-like of shape (n, bits)
            Non-negative and finite, of any scale. For instance the output of a layer that was trained on `transform`.

        Returns
        -------
        ndarray of shape (n,), int64, or list of n tokens
            Ids; after a fit on a mapping, tokens. In a tie the more frequent token wins.

        Raises
        ------
        ValueError
            If there are not ``bits`` columns, if a value is negative or not finite, or if every code has a bit where a
            vector is zero.
        """
        check_is_fitted(self)
        vectors = np.asarray(vectors)
        if vectors.shape[1:] != (self.bits,):
            raise ValueError(f"expected vectors of shape (n, {self.bits}), got shape {vectors.shape}")
        by_rank = np.argsort(self.ranks_)
        ids: NDArray[np.int64] = by_rank[codes.decode(vectors, self.codes_[by_rank])]
        if self.vocabulary_ is None:
            return ids
        tokens = list(self.vocabulary_)
        return [tokens[i] for i in ids]

    def similarity(
        self, ids_a: ArrayLike | Iterable[Hashable], ids_b: ArrayLike | Iterable[Hashable]
    ) -> NDArray[np.float64]:
        """Return the inner product of each pair of vectors, computed from the packed codes.

        Parameters
        ----------
        ids_a, ids_b : array-like of int of shape (n,), or iterable of n tokens
            Two lists of ids, or of tokens after a fit on a mapping. They have the same length, or one has length 1.

        Returns
        -------
        ndarray of shape (n,), float64
            Inner products, between 0 and 1.

        Raises
        ------
        ValueError
            If an id is out of range or a token is unknown. The message names it.
        """
        return codes.similarity(self.codes_[self._rows(ids_a)], self.codes_[self._rows(ids_b)])

    def _rows(self, ids: Any) -> NDArray[np.int64]:
        """Return the rows (n,) of ids or tokens. Raise a ValueError that names the first one without a row."""
        check_is_fitted(self)
        if self.vocabulary_ is not None:
            try:
                return np.array([self.vocabulary_[token] for token in ids], np.int64)
            except KeyError as error:
                raise ValueError(f"expected tokens seen in fit, got {error.args[0]!r}") from None
        rows = check_array(ids, ensure_2d=False, ensure_min_samples=0, input_name="ids")
        if rows.ndim != 1 or rows.dtype.kind not in "iuf":
            raise ValueError(f"expected integer ids of shape (n,), got shape {rows.shape} and dtype {rows.dtype}")
        wrong = (rows < 0) | (rows >= len(self.codes_)) | (rows != np.floor(rows))
        if wrong.any():
            raise ValueError(f"expected integer ids from 0 to {len(self.codes_) - 1}, got {rows[wrong.argmax()]}")
        return rows.astype(np.int64)  # type: ignore[no-any-return]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.positive_only = True
        tags.input_tags.categorical = True
        tags.input_tags.dict = True
        tags.transformer_tags = TransformerTags(preserves_dtype=[])
        return tags
