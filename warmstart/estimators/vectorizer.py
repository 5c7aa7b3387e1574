"""BitCipherVectorizer: a document becomes the mean of the word vectors of its tokens, for scikit-learn pipelines."""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Set
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, RealNotInt
from sklearn.utils.validation import check_is_fitted

from bitcipher import CooccurrenceEmbedding
from warmstart.errors import InputError


class BitCipherVectorizer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    r"""Turn each document into the mean of the vectors of its tokens, scaled to a root mean square of 1.

    `fit` learns the word vectors from the documents themselves, without labels. The scale suits the default
    regularisation of linear models such as ``LogisticRegression``.

    Parameters
    ----------
    embedding : CooccurrenceEmbedding, optional
        It is cloned, and the clone is fitted on the documents; each document is one sentence. By default
        ``CooccurrenceEmbedding()``.
    lowercase : bool, default=True
        As for ``CountVectorizer``.
    token_pattern : str, optional
        As for ``CountVectorizer``. By default tokens are runs of two or more letters, digits and underscores, with the
        marks and joiners within words of scripts such as Devanagari and Thai, and single letters that are not of ASCII,
        such as Chinese ones. It is not used if there is a ``tokenizer``.
    tokenizer : callable, optional
        A function that cuts a document into a list of tokens. With ``lowercase`` it gets the document in lower case.
    min_df : int or float, default=1
        Tokens of fewer documents, or of a smaller share of the documents, get no vector.
    max_features : int, optional
        Only so many of the most frequent tokens get a vector.

    Attributes
    ----------
    embedding_ : CooccurrenceEmbedding
        The fitted embedding.

    Notes
    -----
    Tokens that were not in the documents of `fit` are left out of the mean. A document without known tokens is a row
    of zeros. For a linear model counts of words are often the better features: on CLINC150 the accuracy is 0.90 with
    either, on a tenth of it 0.77 with ``CountVectorizer`` and 0.74 with these 300 dense features.

    Examples
    --------
    >>> documents = ["the lamp is on", "the lamp is off", "it is cold"]
    >>> vectorizer = BitCipherVectorizer(CooccurrenceEmbedding(components=3))
    >>> vectorizer.fit_transform(documents).shape
    (3, 3)
    >>> vectorizer.transform(["unknown words"]).tolist()
    [[0.0, 0.0, 0.0]]
    >>> vectorizer.get_feature_names_out().tolist()
    ['bitciphervectorizer0', 'bitciphervectorizer1', 'bitciphervectorizer2']
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "embedding": [CooccurrenceEmbedding, None],
        "lowercase": ["boolean"],
        "token_pattern": [str, None],
        "tokenizer": [callable, None],
        "min_df": [Interval(RealNotInt, 0, 1, closed="both"), Interval(Integral, 1, None, closed="left")],
        "max_features": [Interval(Integral, 1, None, closed="left"), None],
    }

    def __init__(
        self,
        embedding: CooccurrenceEmbedding | None = None,
        lowercase: bool = True,
        token_pattern: str | None = None,
        tokenizer: Callable[[str], list[str]] | None = None,
        min_df: float = 1,
        max_features: int | None = None,
    ) -> None:
        self.embedding = embedding
        self.lowercase = lowercase
        self.token_pattern = token_pattern
        self.tokenizer = tokenizer
        self.min_df = min_df
        self.max_features = max_features

    def fit(self, documents: Iterable[str], y: Any = None) -> Self:
        """Learn the vectors of the tokens from the documents, an iterable of strings. ``y`` is ignored.

        Raises
        ------
        InputError
            The documents are no iterable of strings.
        ValueError
            The embedding cannot be fitted: there are too few tokens, or a parameter is out of its range.
        """
        self._validate_params()
        embedding = CooccurrenceEmbedding() if self.embedding is None else clone(self.embedding)
        documents = list(_checked(documents))
        counter = self._counter(min_df=self.min_df, max_features=self.max_features)
        occurrences = np.asarray(counter.fit_transform(documents).sum(axis=0)).ravel().tolist()
        counts = dict(zip(counter.get_feature_names_out().tolist(), occurrences, strict=True))
        self.embedding_ = embedding.fit(map(counter.build_analyzer(), documents), counts=counts)
        return self

    def transform(self, documents: Iterable[str]) -> NDArray[np.float32]:
        """Return the mean vectors (n, features) float32 of documents, each with a root mean square of 1.

        Raises
        ------
        InputError
            The documents are no iterable of strings.
        """
        check_is_fitted(self)
        counts = self._counter(vocabulary=self.embedding_.vocabulary_).transform(_checked(documents))
        sums: NDArray[np.float32] = counts.astype(np.float32) @ self.embedding_.vectors_
        scales = np.sqrt(np.square(sums).mean(axis=1, keepdims=True))
        rows: NDArray[np.float32] = np.divide(sums, scales, out=np.zeros_like(sums), where=scales > 0)
        return rows

    def _counter(self, **settings: Any) -> CountVectorizer:
        """Return the vectorizer that cuts documents into tokens and counts the tokens of the vocabulary."""
        pattern = (
            (_word_pattern() if self.token_pattern is None else self.token_pattern) if not self.tokenizer else None
        )
        return CountVectorizer(lowercase=self.lowercase, token_pattern=pattern, tokenizer=self.tokenizer, **settings)

    @property
    def _n_features_out(self) -> int:
        """Return the number of features, which scikit-learn needs to name them."""
        return int(self.embedding_.vectors_.shape[1])

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.transformer_tags.preserves_dtype = []
        return tags


@functools.cache
def _word_pattern() -> str:
    """Return the pattern of a word: letters, digits, underscores, combining marks and zero-width joiners.

    Python's module ``re`` does not count marks among the signs of words, and would cut words of many scripts.
    """
    marks = "".join(filter(lambda sign: unicodedata.category(sign)[0] == "M", map(chr, range(sys.maxunicode + 1))))
    return rf"\w[\w\u200c\u200d{re.escape(marks)}]+|[^\W\x00-\x7f]"


def _checked(documents: Any) -> Iterable[str]:
    """Yield the documents. Raise InputError if they are not strings."""
    if len(getattr(documents, "shape", (0,))) != 1:
        raise InputError(
            f"expected an iterable of documents, got {type(documents).__name__} of shape {documents.shape}; give one "
            "column of it"
        )
    if isinstance(documents, str | bytes | Mapping | Set) or not isinstance(documents, Iterable):
        raise InputError(f"expected an iterable of documents, got {documents!r}; put a single text into a list")
    for document in documents:
        if not isinstance(document, str):
            raise InputError(f"expected documents that are strings, got {document!r}; decode bytes, leave out None")
        yield document
