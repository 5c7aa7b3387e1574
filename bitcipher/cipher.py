"""BitCipher: codes for tokens or labels from their counts, as a scikit-learn estimator.

Shapes: V tokens (or classes), b bits, n ids. Maths and references are in `bitcipher.codes`.
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
    """Deterministic bit vectors for tokens or class labels, from their counts.

    The more frequent a token, the fewer bits its code has on; see `bitcipher.codes.assign_codes`. `fit` takes
    O(V bits words) time at worst: about a second for a million tokens and 1,024 bits.

    Parameters
    ----------
    bits : int, default=256
        Dimension of the vectors, at least 1. ``2**bits - 1`` tokens fit; ``bits >= V`` is plain one-hot.

    Attributes
    ----------
    codes_ : ndarray of shape (V, words), uint64
        Packed codes in the order of the input: row i belongs to the i-th token.
    ranks_ : ndarray of shape (V,), int64
        Rank of each token, 0 the most frequent; equal counts keep the order of the input.
    vocabulary_ : dict or None
        Token to row, in the order of the mapping; None when fitted on an array, where a token is its row number.
    n_features_in_ : int
        1: a column of counts. Only when fitted on an array of shape (V, 1).

    Notes
    -----
    `fit` takes counts and `transform` takes ids or tokens. There is therefore no ``fit_transform``.

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

    Label embeddings, from class counts: low-dimensional targets for a hidden layer, and back.

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
        """Assign a code to every token.

        Parameters
        ----------
        counts : array-like of shape (V,) or (V, 1), or mapping of token to count
            Non-negative and finite. Tokens of count zero come last.
        y : None
            Ignored.

        Returns
        -------
        BitCipher
            The estimator itself.

        Raises
        ------
        CapacityError
            If ``bits`` are too few for V tokens; the message names how many fit.
        TypeError, ValueError
            If ``bits`` is not a positive integer, or counts are empty, negative, not finite or more than one column.
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
        # Stable and descending for every dtype: the negative of an unsigned count would wrap around.
        by_rank = vocab_size - 1 - np.argsort(column[::-1], kind="stable")[::-1]
        validate_data(self, counts, skip_check_array=True)  # sets n_features_in_
        self.ranks_ = np.empty(vocab_size, np.int64)
        self.ranks_[by_rank] = np.arange(vocab_size)
        self.codes_ = ranked[self.ranks_]
        self.vocabulary_ = vocabulary
        return self

    @property
    def vectors_(self) -> NDArray[np.float32]:
        """Vectors of all tokens, (V, bits) float32, in the order of the input.

        Computed from ``codes_`` on every access; takes ``V * bits * 4`` bytes.
        """
        check_is_fitted(self)
        return codes.code_vectors(self.codes_, self.bits)

    def transform(self, ids: ArrayLike | Iterable[Hashable]) -> NDArray[np.float32]:
        """Look up the vectors of ids, or of tokens when fitted on a mapping.

        Parameters
        ----------
        ids : array-like of int of shape (n,), or iterable of n tokens
            Row numbers in the order of the counts, whole floats included; tokens when fitted on a mapping.

        Returns
        -------
        ndarray of shape (n, bits), float32
            Non-negative vectors of unit L1 norm.

        Raises
        ------
        ValueError
            If an id is out of range or a token unknown; the message names it.
        """
        return codes.code_vectors(self.codes_[self._rows(ids)], self.bits)

    def inverse_transform(self, vectors: ArrayLike) -> NDArray[np.int64] | list[Hashable]:
        """Find the most probable token of every vector; see `bitcipher.codes.decode`.

        Takes O(n nnz) time, nnz being the bits of all codes together.

        Parameters
        ----------
        vectors : array-like of shape (n, bits)
            Non-negative and finite, of any scale: for instance the predictions of a layer trained on `transform`.

        Returns
        -------
        ndarray of shape (n,), int64, or list of n tokens
            Ids; tokens when fitted on a mapping. Ties go to the more frequent token.

        Raises
        ------
        ValueError
            If a vector is negative, not finite, zero on some bit of every code, or not of ``bits`` columns.
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
        """Return the inner products of the vectors of ids or tokens, pair by pair.

        Computed from the packed codes, without any vector.

        Parameters
        ----------
        ids_a, ids_b : array-like of int of shape (n,), or iterable of n tokens
            Two lists of the same length, or one of them of length 1.

        Returns
        -------
        ndarray of shape (n,), float64
            Inner products, between 0 and 1.

        Raises
        ------
        ValueError
            If an id is out of range or a token unknown; the message names it.
        """
        return codes.similarity(self.codes_[self._rows(ids_a)], self.codes_[self._rows(ids_b)])

    def _rows(self, ids: Any) -> NDArray[np.int64]:
        """Return the rows (n,) of ids or tokens, or raise a ValueError that names the first without a row."""
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
