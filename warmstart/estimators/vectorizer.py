"""Documents as features: the mean of the vectors of their tokens, for scikit-learn pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from bitcipher import CooccurrenceEmbedding
from warmstart.errors import InputError


class BitCipherVectorizer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    r"""Documents to the mean vectors of their tokens, each row of unit L1 norm.

    `fit` counts which tokens stand around which in the documents themselves; the rest of the work is a product of
    counts and vectors.

    Parameters
    ----------
    embedding : CooccurrenceEmbedding, optional
        What makes the vectors; it is cloned and fitted on the documents, one a sentence. By default
        ``CooccurrenceEmbedding(sides="separate", transform="sqrt")``.
    lowercase : bool, default=True
        As for ``CountVectorizer``.
    token_pattern : str, default=r"(?u)\b\w\w+\b"
        As for ``CountVectorizer``; not used where there is a ``tokenizer``.
    tokenizer : callable, optional
        A document (lower-cased if so wanted) to its list of tokens.

    Attributes
    ----------
    embedding_ : CooccurrenceEmbedding
        Fitted.

    Notes
    -----
    Tokens that were not in the documents of `fit` are left out of the mean; a document without known tokens is a row
    of zeros.

    Examples
    --------
    >>> documents = ["the lamp is on", "the lamp is off", "it is cold"]
    >>> vectorizer = BitCipherVectorizer(CooccurrenceEmbedding(bits=3, radii=(1,)))
    >>> vectorizer.fit_transform(documents).shape
    (3, 3)
    >>> vectorizer.transform(["unknown words"]).tolist()
    [[0.0, 0.0, 0.0]]
    >>> vectorizer.get_feature_names_out().tolist()
    ['bitciphervectorizer0', 'bitciphervectorizer1', 'bitciphervectorizer2']
    """

    def __init__(
        self,
        embedding: CooccurrenceEmbedding | None = None,
        lowercase: bool = True,
        token_pattern: str = r"(?u)\b\w\w+\b",  # noqa: S107 - no password
        tokenizer: Callable[[str], list[str]] | None = None,
    ) -> None:
        self.embedding = embedding
        self.lowercase = lowercase
        self.token_pattern = token_pattern
        self.tokenizer = tokenizer

    def fit(self, documents: Iterable[str], y: Any = None) -> Self:
        """Count the tokens around every token of the documents.

        Parameters
        ----------
        documents : iterable of str
        y : None
            Ignored.

        Returns
        -------
        self

        Raises
        ------
        InputError
            The documents are no iterable of strings.
        ValueError
            The embedding cannot be fitted: too few tokens, a parameter out of its range.
        """
        default = CooccurrenceEmbedding(sides="separate", transform="sqrt")
        embedding = clone(default if self.embedding is None else self.embedding)
        analyze = self._counter().build_analyzer()
        self.embedding_ = embedding.fit(map(analyze, _checked(documents)))
        return self

    def transform(self, documents: Iterable[str]) -> NDArray[np.float32]:
        """Return the mean vectors (n, features) float32 of documents, rows of unit L1 norm.

        Raises
        ------
        InputError
            The documents are no iterable of strings.
        """
        check_is_fitted(self)
        counts = self._counter(self.embedding_.vocabulary_).transform(_checked(documents))
        sums: NDArray[np.float32] = counts.astype(np.float32) @ self.embedding_.vectors_
        norms = np.abs(sums).sum(axis=1, keepdims=True)
        rows: NDArray[np.float32] = np.divide(sums, norms, out=np.zeros_like(sums), where=norms > 0)
        return rows

    def _counter(self, vocabulary: dict[str, int] | None = None) -> CountVectorizer:
        """Return what cuts documents into tokens and counts those of the vocabulary."""
        pattern = self.token_pattern if self.tokenizer is None else None
        return CountVectorizer(
            lowercase=self.lowercase, token_pattern=pattern, tokenizer=self.tokenizer, vocabulary=vocabulary
        )

    @property
    def _n_features_out(self) -> int:
        """Number of features, for the names."""
        return int(self.embedding_.vectors_.shape[1])

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.transformer_tags.preserves_dtype = []
        return tags


def _checked(documents: Any) -> Iterable[str]:
    """Yield documents that are strings."""
    if isinstance(documents, str | bytes) or not isinstance(documents, Iterable):
        raise InputError(f"expected an iterable of documents, got {documents!r}; put a single text into a list")
    for document in documents:
        if not isinstance(document, str):
            raise InputError(f"expected documents that are strings, got {document!r}; decode bytes, leave out None")
        yield document
