"""`ExplicitClassifier`: a softmax classifier for scikit-learn whose weights are computed from counts.

| symbol | shape | meaning |
|---|---|---|
| `X`, `y` | (n, D), (n,) | non-negative inputs and their classes |
| `F` | (D, C) | co-occurrences of features and classes, see `warmstart.accumulators` |
| `U` | (D, C) | weights, ``coef_.T``, see `warmstart.solution` |
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, check_non_negative, validate_data

from warmstart import accumulators, solution
from warmstart.errors import InputError

if TYPE_CHECKING:
    from warmstart.layers.softmax import SoftmaxLayer

SAMPLE_SIZE = 2048  # most rows that are kept to fit the temperature
MOST_SMOOTHING = 1e4  # pseudo-counts a count, from which single precision no longer tells classes apart
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio


class _Sample(NamedTuple):
    """Rows kept to fit the temperature: X (m, D) float64, dense or csr; class and number in the stream of each (m,)."""

    X: Any
    targets: NDArray[np.intp]
    number: NDArray[np.int64]

    def thin(self, stride: int) -> _Sample:
        """Keep about one row in ``stride``, a power of two. A smaller stride keeps these rows too.

        A row stays if its number times the golden ratio is, modulo 1, below ``1 / stride``. These rows are spread
        evenly over every period of the data. Where the classes of a stream take turns, each is sampled in proportion.
        Every 32nd row, for example, could be of one class.
        """
        keep = self.number.astype(np.uint64) * GOLDEN <= np.uint64((2**64 - 1) // stride)
        return _Sample(self.X[keep], self.targets[keep], self.number[keep])

    def join(self, other: _Sample) -> _Sample:
        """Append rows. The result is sparse if one of the two is."""
        if sparse.issparse(self.X) or sparse.issparse(other.X):
            X: Any = sparse.vstack([sparse.csr_array(self.X), sparse.csr_array(other.X)], format="csr")
        else:
            X = np.concatenate([self.X, other.X])
        return _Sample(X, np.r_[self.targets, other.targets], np.r_[self.number, other.number])


class _Solved(NamedTuple):
    """Weights (C, D), and the k and the temperature that were used."""

    coef: NDArray[np.floating]
    k: float
    temperature: float


class ExplicitClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Softmax classifier whose weights are computed from counts, without a gradient step.

    Counting takes O(non-zero entries of X), solving takes O(D C). Fitting the temperature scores at most 2,048 rows
    about ten times.

    Parameters
    ----------
    k : "mean_norm" or float, default="mean_norm"
        Number of features per prediction. The prior of the classes has the exponent ``|x|_1 / k``. "mean_norm" is the
        mean L1 norm of the rows. ``numpy.inf`` leaves the prior out.
    smoothing : float, default=1.0
        Pseudo-counts added to each feature, divided among the classes in proportion to their prior. Above 0.
    temperature : "fit" or float, default="fit"
        Factor of the log ratios of the counts. 1 is the published solution; see `warmstart.solution`. "fit" minimises
        the cross-entropy on a sample of the rows. Each row is scored without its own count.

    Attributes
    ----------
    classes_ : ndarray of shape (C,)
        Class labels, sorted.
    class_count_ : ndarray of shape (C,), int64
        Rows of each class. A class without rows has the prior of half a row.
    coef_ : ndarray of shape (C, D)
        Weights. They are solved when they are first used after new rows.
    intercept_ : ndarray of shape (C,)
        Zeros: the explicit solution needs no bias.
    k_ : float
        Number of features per prediction in use.
    temperature_ : float
        Temperature in use.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (D,)
        Only if X had column names.

    See Also
    --------
    sklearn.naive_bayes.MultinomialNB : The same function at temperature 1 when all rows have the L1 norm k.

    Notes
    -----
    Rows are added one after the other. So `partial_fit` gives the same bits however a stream is cut into calls. `merge`
    gives the same bits if the features are integers, and the same numbers up to rounding otherwise.

    References
    ----------
    Williams and Zhao 2023, arXiv 2311.07498, theorem 1.

    Examples
    --------
    >>> X, y = np.array([[3, 0, 1], [2, 1, 0], [0, 2, 3], [1, 0, 2]]), ["sea", "sea", "sky", "sky"]
    >>> model = ExplicitClassifier(temperature=1).fit(X, y)
    >>> model.predict([[2, 1, 1], [0, 1, 1]]).tolist()
    ['sea', 'sky']
    >>> model.k_
    3.75

    New parameters do not need the data again:

    >>> model.set_params(k=np.inf).solve().k_
    inf
    """

    classes_: NDArray[Any]

    def __init__(self, k: str | float = "mean_norm", smoothing: float = 1.0, temperature: str | float = "fit") -> None:
        self.k = k
        self.smoothing = smoothing
        self.temperature = temperature

    def fit(self, X: Any, y: ArrayLike) -> ExplicitClassifier:
        """Count rows, then solve. Earlier counts are forgotten.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, D)
            Non-negative.
        y : array of shape (n,)

        Raises
        ------
        ValueError
            Values are negative, missing or infinite, or shapes do not fit.
        InputError
            A parameter is out of its range.
        """
        return self._count(X, y, None, first=True).solve()

    def partial_fit(self, X: Any, y: ArrayLike, classes: ArrayLike | None = None) -> ExplicitClassifier:
        """Count more rows. The next prediction solves.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, D)
            Non-negative.
        y : array of shape (n,)
        classes : array of shape (C,)
            All classes, also those of later calls. Required on the first call.

        Raises
        ------
        ValueError
            As for `fit`.
        InputError
            ``classes`` is missing on the first call or differs later, or ``y`` has a class that is not among them.
        """
        first = not hasattr(self, "classes_")
        if first and classes is None:
            raise InputError("expected classes on the first call of partial_fit, got None; pass all class labels")
        return self._count(X, y, classes, first=first)

    def _count(self, X: Any, y: ArrayLike, classes: ArrayLike | None, *, first: bool) -> ExplicitClassifier:
        """Validate the rows, then count them."""
        X, y = self._validated(X, y, reset=first)
        check_classification_targets(y)
        labels = unique_labels(y if classes is None else classes)
        known = labels if first else self.classes_
        if classes is not None and not np.array_equal(labels, known):
            raise InputError(
                f"expected the classes of the first call, {known}, got {labels}; leave them out or start anew"
            )
        unknown = np.setdiff1d(y, known)
        if unknown.size:
            raise InputError(f"expected classes among {known}, got {unknown}; declare them on the first call")
        targets = np.searchsorted(known, y)
        if first:
            self.classes_ = known
            self.class_count_ = np.zeros(known.size, np.int64)
            self._statistics = accumulators.empty(X.shape[1], known.size)
            self._stride = 1
            self._sample = _Sample(np.zeros((0, X.shape[1])), targets[:0], np.zeros(0, np.int64))
        number = self._statistics.n_examples + np.arange(targets.size)
        rows = _Sample(X, targets, number).thin(self._stride)
        self._add_to_sample(rows._replace(X=rows.X.astype(np.float64)))
        accumulators.update(self._statistics, X, targets)
        self.class_count_ += np.bincount(targets, minlength=known.size)
        self._solved: _Solved | None = None
        return self

    def _validated(self, X: Any, *y: ArrayLike, reset: bool = False) -> Any:
        """Return X, and y if given, as arrays. Entries that a sparse row has twice are summed."""
        checked = validate_data(self, X, *y, reset=reset, accept_sparse="csr", dtype=(np.float64, np.float32))
        X = checked[0] if y else checked
        check_non_negative(X, "ExplicitClassifier (input X)")
        if sparse.issparse(X):
            X = sparse.csr_array(X)
            if not X.has_canonical_format:
                X = X.copy()  # sum_duplicates changes the arrays in place
                X.sum_duplicates()
        return (X, checked[1]) if y else X

    def _add_to_sample(self, rows: _Sample) -> None:
        """Add rows to the sample, then double the stride until the sample is small enough."""
        sample = self._sample.join(rows)
        while sample.number.size > SAMPLE_SIZE:
            self._stride *= 2
            sample = sample.thin(self._stride)
        self._sample = sample

    def merge(self, other: ExplicitClassifier) -> ExplicitClassifier:
        """Add the counts of another classifier. The next prediction solves.

        Parameters
        ----------
        other : ExplicitClassifier
            It has the same classes and features. It is not changed.

        Raises
        ------
        InputError
            Classes or features differ.
        """
        check_is_fitted(self)
        check_is_fitted(other)
        for name in ("classes_", "n_features_in_", "feature_names_in_"):
            values: list[Any] = [getattr(classifier, name, None) for classifier in (self, other)]
            if not np.array_equal(*values):
                raise InputError(f"expected classifiers of the same {name}, got {values[0]} and {values[1]}")
        self._stride = max(self._stride, other._stride)
        self._sample = self._sample.thin(self._stride)
        self._add_to_sample(other._sample.thin(self._stride))
        self._statistics = accumulators.merge(self._statistics, other._statistics)
        self.class_count_ = self.class_count_ + other.class_count_
        self._solved = None
        return self

    def solve(self) -> ExplicitClassifier:
        """Compute the weights from the counts, with the present parameters.

        Raises
        ------
        InputError
            A parameter is out of its range, or k is "mean_norm" and all features are zero.
        """
        check_is_fitted(self)
        _check_number("smoothing", self.smoothing)
        if self.temperature != "fit":
            _check_number("temperature", self.temperature, 'or "fit"')
        k: Any = self._statistics.mean_norm if self.k == "mean_norm" else self.k
        _check_number("k", k, 'or numpy.inf or "mean_norm" with features that are not all zero', infinite=True)
        total, added = float(self._statistics.sums.sum()), self.smoothing * self.n_features_in_
        if 0 < total * MOST_SMOOTHING < added:
            warnings.warn(
                f"smoothing: {self.smoothing:g} for each of {self.n_features_in_} features drowns counts of {total:g} "
                "in all, and every row gets the prior; give a smaller number, or the features in smaller units",
                stacklevel=2,
            )
        prior = solution.marginal_prior(self._statistics)
        settings: dict[str, Any] = {"k": float(k), "smoothing": float(self.smoothing)}
        temperatures = np.atleast_1d(self.temperature)
        if self.temperature == "fit":
            rows = np.arange(self._sample.targets.size)
            one_hot = sparse.csr_array(
                (np.ones(rows.size), (rows, self._sample.targets)), shape=(rows.size, self.classes_.size)
            )
            sample = solution.Sample([self._sample.X], one_hot)
            found = solution.fit(sample, [self._statistics], prior, **settings)
            temperatures = found.temperatures
            if found.bounds:
                warnings.warn(
                    "temperature: the search ended at its bound 0, the features do not help to predict, and every row "
                    "gets the prior; give other features, or a number as temperature",
                    stacklevel=2,
                )
        U = solution.solve([self._statistics], prior, temperatures=temperatures, dtype=np.float64, **settings)
        self._solved = _Solved(U.T, float(k), float(temperatures[0]))
        return self

    def _solution(self) -> _Solved:
        check_is_fitted(self)
        if self._solved is None:
            self.solve()
        return self._solved  # type: ignore[return-value]

    @property
    def coef_(self) -> NDArray[np.floating]:
        """Weights (C, D)."""
        return self._solution().coef

    @property
    def intercept_(self) -> NDArray[np.float64]:
        """Zeros (C,)."""
        check_is_fitted(self)
        return np.zeros(self.classes_.size)

    @property
    def k_(self) -> float:
        """Number of features per prediction in use."""
        return self._solution().k

    @property
    def temperature_(self) -> float:
        """Temperature in use."""
        return self._solution().temperature

    def _scores(self, X: Any) -> NDArray[np.float64]:
        """Return logits (n, C)."""
        check_is_fitted(self)
        return np.asarray(self._validated(X) @ self.coef_.T)

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Return log probabilities (n, C) in nats, columns as in ``classes_``."""
        return np.asarray(log_softmax(self._scores(X), axis=1))

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return probabilities (n, C), columns as in ``classes_``."""
        return np.asarray(np.exp(self.predict_log_proba(X)))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each row (n,). Among equals it is the first in ``classes_``."""
        best = self._scores(X).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def to_torch(self) -> SoftmaxLayer:
        """Return a PyTorch layer with these weights in float32. It gives the same logits."""
        from warmstart.layers.softmax import SoftmaxLayer

        return SoftmaxLayer.from_weights(self.coef_.T)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.input_tags.sparse = True
        tags.classifier_tags.poor_score = True  # as for naive Bayes: scikit-learn's points in a plane are no counts
        return tags


def _check_number(name: str, value: Any, otherwise: str = "", *, infinite: bool = False) -> None:
    """Raise InputError unless ``value`` is a number above 0, and finite unless ``infinite``."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not value > 0 or (np.isinf(value) and not infinite):
        raise InputError(f"expected {name} to be a number above 0 {otherwise}, got {value!r}".replace("  ", " "))
