"""`ExplicitClassifier`: a softmax classifier for scikit-learn whose weights are computed from counts.

| symbol | shape | meaning |
|---|---|---|
| `X`, `y` | (n, D), (n,) | non-negative inputs and their classes |
| `F` | (D, C) | co-occurrences of features and classes, see `warmstart.accumulators` |
| `U` | (D, C) | weights, ``coef_.T``, see `warmstart.solution` |
"""

from __future__ import annotations

import copy
import warnings
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.special import log_softmax, logsumexp
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, check_non_negative, validate_data

from warmstart import accumulators, solution
from warmstart.errors import InputError

if TYPE_CHECKING:
    from warmstart.layers.softmax import SoftmaxLayer

SAMPLE_SIZE = 2048  # most rows that are kept to fit the temperature
MOST_SMOOTHING = 1e4  # pseudo-counts a count, from which single precision no longer tells classes apart
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio


class _Sample(NamedTuple):
    """Rows kept to fit the temperature: X (m, D) float64, dense or csr; class, number in the stream and weight (m,)."""

    X: Any
    targets: NDArray[np.intp]
    number: NDArray[np.int64]
    weight: NDArray[np.float64]

    def thin(self, stride: int) -> _Sample:
        """Keep about one row in ``stride``, a power of two. A smaller stride keeps these rows too.

        A row stays if its number times the golden ratio is, modulo 1, below ``1 / stride``. These rows are spread
        evenly over every period of the data. Where the classes of a stream take turns, each is sampled in proportion.
        Every 32nd row, for example, could be of one class.
        """
        keep = self.number.astype(np.uint64) * GOLDEN <= np.uint64((2**64 - 1) // stride)
        return _Sample._make(values[keep] for values in self)

    def join(self, other: _Sample) -> _Sample:
        """Append rows. The result is sparse if one of the two is."""
        if sparse.issparse(self.X) or sparse.issparse(other.X):
            X: Any = sparse.vstack([sparse.csr_array(self.X), sparse.csr_array(other.X)], format="csr")
        else:
            X = np.concatenate([self.X, other.X])
        return _Sample._make([X, *(np.concatenate(values) for values in zip(self[1:], other[1:], strict=True))])


class _Solved(NamedTuple):
    """Weights (C, D), and the k and the temperatures (G,) that were used."""

    coef: NDArray[np.floating]
    k: float
    temperatures: NDArray[np.float64]


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
    class_weight : dict, "balanced" or None, default=None
        Factor of the counts of each class, 1 for a class that the dict leaves out. "balanced" gives all classes the
        same number of rows in total.
    class_prior : array-like of shape (C,), default=None
        Probabilities of the classes, in the order of ``classes_``. By default their shares of the counts.
    groups : array-like of shape (D,), default=None
        The group of each feature, 0 to G - 1, where features of several kinds stand side by side, such as the pixels of
        an image and the words of its caption. Each group is normalised by itself and has its own temperature. By
        default all features are one group.

    Attributes
    ----------
    classes_ : ndarray of shape (C,)
        Class labels, sorted.
    class_count_ : ndarray of shape (C,), float64
        Rows of each class, or the sum of their weights. A class without rows has the prior of half a row.
    coef_ : ndarray of shape (C, D)
        Weights. They are solved when they are first used after new rows.
    intercept_ : ndarray of shape (C,)
        Zeros: the explicit solution needs no bias.
    k_ : float
        Number of features per prediction in use.
    temperature_ : float, or ndarray of shape (G,) with ``groups``
        Temperature in use. 0 for a group whose features do not help to predict.
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
    >>> model.set_params(groups=[0, 0, 1]).solve().temperature_  # one for each group; here the published 1
    array([1., 1.])
    """

    classes_: NDArray[Any]
    class_count_: NDArray[np.float64]
    _statistics: accumulators.Accumulator
    _stride: int
    _sample: _Sample
    _solved: _Solved | None
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "k": [StrOptions({"mean_norm"}), Interval(Real, 0, np.inf, closed="right")],
        "smoothing": [Interval(Real, 0, np.inf, closed="neither")],
        "temperature": [StrOptions({"fit"}), Interval(Real, 0, np.inf, closed="neither")],
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "class_prior": ["array-like", None],
        "groups": ["array-like", None],
    }

    def __init__(
        self,
        k: str | float = "mean_norm",
        smoothing: float = 1.0,
        temperature: str | float = "fit",
        class_weight: dict[Any, float] | str | None = None,
        class_prior: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> None:
        self.k = k
        self.smoothing = smoothing
        self.temperature = temperature
        self.class_weight = class_weight
        self.class_prior = class_prior
        self.groups = groups

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> ExplicitClassifier:
        """Count rows, then solve. Earlier counts are forgotten; after an error they are still there.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, D)
            Non-negative.
        y : array of shape (n,)
        sample_weight : array of shape (n,)
            A row of weight 2 counts as two rows, one of weight 0 as none.

        Raises
        ------
        ValueError
            Values are negative, missing or infinite, shapes do not fit, or a parameter is out of its range.
        InputError
            k is "mean_norm" and all features are zero, or ``class_prior`` does not fit.
        """
        self.__dict__ = self._counted(X, y, None, sample_weight, first=True).solve().__dict__
        return self

    def partial_fit(
        self, X: Any, y: ArrayLike, classes: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> ExplicitClassifier:
        """Count more rows. The next prediction solves. After an error nothing has changed.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, D)
            Non-negative.
        y : array of shape (n,)
        classes : array of shape (C,)
            All classes, also those of later calls. Required on the first call.
        sample_weight : array of shape (n,)
            As for `fit`.

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
        self.__dict__ = self._counted(X, y, classes, sample_weight, first=first).__dict__
        return self

    def _counted(
        self, X: Any, y: Any, classes: ArrayLike | None, sample_weight: ArrayLike | None, *, first: bool
    ) -> ExplicitClassifier:
        """Return an estimator with more rows. It shares the sums with this one, and adds to them when all is valid."""
        self._validate_params()
        new = copy.copy(self)
        X, y = new._validated(X, y, reset=first)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        check_non_negative(weight, "ExplicitClassifier (sample_weight)")
        check_classification_targets(y)
        labels = unique_labels(y if classes is None else classes)
        known = labels if first else new.classes_
        if classes is not None and not np.array_equal(labels, known):
            raise InputError(
                f"expected the classes of the first call, {known}, got {labels}; leave them out or start anew"
            )
        unknown = np.setdiff1d(y, known)
        if unknown.size:
            raise InputError(f"expected classes among {known}, got {unknown}; declare them on the first call")
        counted = weight > 0
        X, targets, weight = X[counted], np.searchsorted(known, y[counted]), weight[counted]
        if first:
            new.classes_ = known
            new.class_count_ = np.zeros(known.size)
            new._statistics = accumulators.empty(X.shape[1], known.size)
            new._stride = 1
            new._sample = _Sample(np.zeros((0, X.shape[1])), targets[:0], np.zeros(0, np.int64), weight[:0])
        number = int(new._statistics.n_examples) + np.arange(targets.size)
        rows = _Sample(X, targets, number, weight).thin(new._stride)
        new._add_to_sample(rows._replace(X=rows.X.astype(np.float64)))
        new.class_count_ = new.class_count_.copy()
        np.add.at(new.class_count_, targets, weight)  # row by row, as the sums
        new._solved = None
        accumulators.update(new._statistics, X, np.arange(targets.size), _one_hot(targets, weight, known.size))
        return new

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
        ValueError
            A parameter is out of its range.
        InputError
            k is "mean_norm" and all features are zero, or ``class_prior`` does not fit.
        """
        check_is_fitted(self)
        self._validate_params()
        factors = self._class_factors()
        sums = self._statistics.sums if self.class_weight is None else self._statistics.sums * factors[:, None]
        statistics = accumulators.Accumulator(sums, float((self.class_count_ * factors).sum()))
        k = float(statistics.mean_norm if self.k == "mean_norm" else self.k)
        if not k:
            raise InputError('expected features that are not all zero with k="mean_norm", got zeros; give a number k')
        total, added = float(sums.sum()), self.smoothing * self.n_features_in_
        if 0 < total * MOST_SMOOTHING < added:
            warnings.warn(
                f"smoothing: {self.smoothing:g} for each of {self.n_features_in_} features drowns counts of {total:g} "
                "in all, and every row gets the prior; give a smaller number, or the features in smaller units",
                stacklevel=2,
            )
        prior = solution.marginal_prior(statistics) if self.class_prior is None else self._given_prior()
        settings: dict[str, Any] = {"k": k, "smoothing": float(self.smoothing)}
        columns = self._columns()
        parts = [accumulators.Accumulator(sums[:, of_group], statistics.n_examples) for of_group in columns]
        if self.temperature != "fit":
            temperatures = np.full(len(columns), self.temperature, np.float64)
        else:
            X, targets, _, weight = self._sample
            one_hot = _one_hot(targets, np.minimum(weight, 1) * factors[targets], self.classes_.size)
            repeats = np.maximum(weight, 1) if (weight > 1).any() else None
            inputs = [X] if self.groups is None else [X[:, of_group] for of_group in columns]
            sample = solution.Sample(inputs, one_hot, repeats=repeats)
            temperatures = solution.fit(sample, parts, prior, **settings).temperatures
            if not temperatures.any():
                warnings.warn(
                    "temperature: the search ended at its bound 0, the features do not help to predict, and every row "
                    "gets the prior; give other features, or a number as temperature",
                    stacklevel=2,
                )
            if self.groups is None:
                objective = solution.CrossEntropy(sample, parts, prior, **settings, dtype=np.float64)
                temperatures = np.atleast_1d(solution.refined(objective, float(temperatures[0])))
        U = solution.solve(parts, prior, temperatures=temperatures, dtype=np.float64, **settings)
        if self.groups is not None:
            U[np.concatenate(columns)] = U.copy()  # from the order of the groups to that of the features
        self._solved = _Solved(U.T, k, temperatures)
        return self

    def _columns(self) -> list[Any]:
        """Return the columns of each group of features."""
        if self.groups is None:
            return [slice(None)]
        groups = np.asarray(self.groups)
        numbers = np.unique(groups)
        if (
            groups.shape != (self.n_features_in_,)
            or groups.dtype.kind not in "iu"
            or not np.array_equal(numbers, np.arange(numbers.size))
        ):
            raise InputError(
                f"groups: expected the group of each of {self.n_features_in_} features, whole numbers from 0 on "
                f"without a gap, got an array {groups.shape} of {groups.dtype} with {numbers.tolist()[:10]}"
            )
        return [np.flatnonzero(groups == number) for number in numbers]

    def _class_factors(self) -> NDArray[np.float64]:
        """Return the factor of the counts of each class (C,)."""
        if self.class_weight == "balanced":
            counts = self.class_count_
            return np.asarray(np.divide(counts.mean(), counts, out=np.ones_like(counts), where=counts > 0))
        factors = compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_)
        if not (np.isfinite(factors).all() and (factors >= 0).all()):
            raise InputError(f"class_weight: expected finite factors of at least 0, got {self.class_weight}")
        return np.asarray(factors, np.float64)

    def _given_prior(self) -> NDArray[np.float64]:
        prior, shape = np.asarray(self.class_prior), self.classes_.shape
        if (
            prior.dtype.kind not in "iuf"
            or prior.shape != shape
            or not (prior > 0).all()
            or not np.isclose(prior.sum(), 1)
        ):
            raise InputError(f"class_prior: expected probabilities {shape} above 0 that sum to 1, got {prior.tolist()}")
        return prior.astype(np.float64)

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
    def temperature_(self) -> float | NDArray[np.float64]:
        """Temperature in use, or those of the groups (G,)."""
        temperatures = self._solution().temperatures
        return float(temperatures[0]) if self.groups is None else temperatures

    def _scores(self, X: Any) -> NDArray[np.float64]:
        """Return logits (n, C)."""
        check_is_fitted(self)
        return np.asarray(self._validated(X) @ self.coef_.T)

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return the log odds ``log(p / (1 - p))`` of each class (n, C), or of the second of two classes (n,)."""
        scores = self._scores(X)
        if self.classes_.size == 2:
            return np.asarray(scores[:, 1] - scores[:, 0])
        log_p, best = log_softmax(scores, axis=1), scores.argmax(axis=1)[:, None]
        odds = log_p - np.log1p(-np.minimum(np.exp(log_p), 0.5))  # of the best class 1 - p may be rounded to 0
        others = scores.copy()
        np.put_along_axis(others, best, -np.inf, axis=1)
        rest = logsumexp(others, axis=1, keepdims=True)
        np.put_along_axis(odds, best, np.take_along_axis(scores, best, axis=1) - rest, axis=1)
        return np.asarray(odds)

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


def _one_hot(targets: NDArray[np.intp], values: NDArray[np.float64], n_classes: int) -> sparse.csr_array:
    """Return a row (n, C) for each target, with its value at the target."""
    return sparse.csr_array((values, targets, np.arange(targets.size + 1)), shape=(targets.size, n_classes))
