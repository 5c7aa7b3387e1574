"""Accumulators: sums of outer products of inputs and targets, the statistic that every layer is solved from.

| symbol | shape | meaning |
|---|---|---|
| `F` | (D, C) | co-occurrence of inputs and targets, ``sum_n outer(x_n, y_n)`` |
| `n` | | number of examples |
| `k` | | ``F.sum() / n``: the mean L1 norm of the inputs, because targets sum to 1 |

An accumulator is a commutative monoid: `empty` makes one, `update` adds examples, `merge` adds two of them. This is the
only module that adds to a statistic.

Counts of cipher vectors are integers. Their unit is ``1 / unit`` co-occurrences, where ``unit`` is the least common
multiple of the code weights. So they are exact, and any order or grouping of the examples gives the same bits. Other
inputs give float64 sums. Examples are added to them one by one, so any cut of a stream gives the same bits; a merge of
two float sums agrees with one long sum up to rounding.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from warmstart._threads import run_parts
from warmstart.device import check_device, if_it_fits
from warmstart.errors import InputError
from warmstart.ids import whole_numbers

if TYPE_CHECKING:
    from warmstart._pairs_torch import PairSums


@dataclass
class Accumulator:
    """Sums of outer products.

    Attributes
    ----------
    sums : (C, D) int64 or float64
        The transpose of `F`, in units of ``1 / unit`` co-occurrences: int64 for cipher vectors, float64 otherwise.
    n_examples : int, or float for examples with weights
        Number of examples added.
    unit : int
        Stored units per co-occurrence; 1 for float sums.
    """

    sums: NDArray[Any]
    n_examples: float = 0
    unit: int = 1

    @property
    def F(self) -> NDArray[Any]:  # noqa: N802 - the symbol of the papers
        """The sums as a view (D, C). Multiply it by `scale` to get co-occurrences."""
        return self.sums.T

    @property
    def scale(self) -> float:
        """Co-occurrences per stored unit."""
        return 1.0 / self.unit

    @property
    def exact(self) -> bool:
        """Whether the sums are integers."""
        return np.issubdtype(self.sums.dtype, np.integer)

    @property
    def mean_norm(self) -> float:
        """Mean L1 norm of the inputs: the k of the k-rule."""
        if not self.n_examples:
            raise InputError("expected at least one example to take a mean norm of, got none; update first")
        return float(self.sums.sum()) * self.scale / self.n_examples


def empty(n_features: int, n_classes: int, unit: int | None = None) -> Accumulator:
    """Return an accumulator of zeros: int64 with a ``unit``, for `update_pairs`; float64 without one, for `update`.

    Examples
    --------
    >>> empty(3, 2).F.shape
    (3, 2)
    """
    dtype = np.float64 if unit is None else np.int64
    return Accumulator(np.zeros((n_classes, n_features), dtype), 0, unit or 1)


def code_unit(code_weights: NDArray[np.integer]) -> int:
    """Return the least common multiple of the code weights, the unit in which cipher counts are integers.

    Examples
    --------
    >>> code_unit(np.array([1, 2, 3]))
    6
    """
    return math.lcm(*(int(w) for w in np.unique(code_weights)))


def update_pairs(
    accumulator: Accumulator, inputs: NDArray[np.integer], targets: NDArray[np.integer], codes: sparse.csr_array
) -> None:
    """Add examples whose inputs are cipher vectors, exactly.

    Parameters
    ----------
    accumulator : Accumulator of (D, C), int64
    inputs, targets : (n,) array-like of int
        Token ids and class ids.
    codes : (V, D) csr_array
        Bits of each token. The values are not used: a token counts ``1 / weight`` in each of its bits.

    Raises
    ------
    InputError
        Shapes do not fit, an id is out of range, or the accumulator holds float sums. Nothing is added.
    """
    from warmstart import _kernels  # numba is loaded here, not on import

    inputs, targets = _checked_pairs(accumulator, inputs, targets, codes)
    _kernels.add_pairs(inputs, targets, codes.indptr, codes.indices, _units(accumulator, codes), _writable(accumulator))
    accumulator.n_examples += inputs.size


class CodedPairs:
    """Examples of `update_pairs`, added chunk by chunk. The accumulator has them after `finish`.

    Parameters
    ----------
    accumulator, codes
        See `update_pairs`.
    device : str, optional
        Device of PyTorch, such as "cuda", on which the sums stay until `finish`, as far as its memory holds them; else
        the compiled loops add. The result does not depend on it, to the bit.

    Raises
    ------
    InputError
        There is no such device.

    Examples
    --------
    >>> accumulator = empty(2, 2, unit=2)
    >>> pairs = CodedPairs(accumulator, sparse.csr_array([[1, 0], [1, 1]]), device="cpu")
    >>> pairs.add(np.array([0, 1, 1]), np.array([0, 0, 1]))
    >>> pairs.finish()
    >>> accumulator.F.tolist()
    [[3, 1], [1, 1]]
    """

    def __init__(self, accumulator: Accumulator, codes: sparse.csr_array, device: str | None = None) -> None:
        check_device(device)
        self.accumulator, self.codes, self.n_examples = accumulator, codes, 0
        self.sums: PairSums | None = None
        if device is not None:
            from warmstart import _pairs_torch  # torch is loaded here, not on import

            arrays = codes.indptr, codes.indices, _units(accumulator, codes)
            self.sums = if_it_fits(_pairs_torch.PairSums, *arrays, accumulator.sums.shape, device)

    def add(self, inputs: NDArray[np.integer], targets: NDArray[np.integer]) -> None:
        """Add examples; parameters and errors are those of `update_pairs`."""
        inputs, targets = _checked_pairs(self.accumulator, inputs, targets, self.codes)
        if self.sums is not None and if_it_fits(self.sums.add, inputs, targets):
            self.n_examples += inputs.size
        else:
            self.finish()
            update_pairs(self.accumulator, inputs, targets, self.codes)

    def finish(self) -> None:
        """Move the sums of the device to the accumulator. What is added after it is added without the device."""
        if self.sums is not None:
            _writable(self.accumulator)[:] += self.sums.read()
            self.accumulator.n_examples += self.n_examples
        self.sums = None


def _units(accumulator: Accumulator, codes: sparse.csr_array) -> NDArray[np.int64]:
    """Return the units of each bit of a token (V,)."""
    weights = np.diff(codes.indptr)
    of_weight = accumulator.unit // np.maximum(np.arange(weights.max(initial=0) + 1), 1)
    units: NDArray[np.int64] = of_weight[weights]
    return units


def _checked_pairs(
    accumulator: Accumulator, inputs: NDArray[np.integer], targets: NDArray[np.integer], codes: sparse.csr_array
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return inputs and targets, or refuse them, see `update_pairs`."""
    n_features, n_classes = accumulator.F.shape
    inputs = whole_numbers("inputs", inputs, codes.shape[0])
    targets = whole_numbers("targets", targets, n_classes)
    if not accumulator.exact or codes.shape[1] != n_features or inputs.size != targets.size:
        raise InputError(
            f"expected codes of {n_features} bits, as many targets as inputs and integer sums, "
            f"got {codes.shape[1]} bits, {targets.size} targets, {inputs.size} inputs and {accumulator.sums.dtype} sums"
        )
    return inputs, targets


def update(
    accumulator: Accumulator,
    X: NDArray[np.floating] | sparse.csr_array,
    targets: NDArray[np.integer],
    labels: sparse.csr_array | None = None,
    workers: int = 1,
) -> None:
    """Add examples: ``F += sum_n outer(x_n, y_n)``.

    Parameters
    ----------
    accumulator : Accumulator of (D, C), float64
    X : (n, D) array-like or csr_array
        Non-negative inputs.
    targets : (n,) array-like of int
        Class of each example. With ``labels``, the row of ``labels`` that is its target.
    labels : (n_labels, C) csr_array, optional
        Label embeddings, rows of unit L1 norm, or of the weight of an example. Without them the target is the one-hot
        vector of its class.
    workers : int
        Number of threads; the result does not depend on it.

    Raises
    ------
    InputError
        Shapes do not fit, a target is out of range, or the accumulator holds integer sums. Nothing is added.
    """
    from warmstart import _kernels  # numba is loaded here, not on import

    if getattr(X, "dtype", None) not in (np.float32, np.float64):  # the kernels are compiled for no others
        X = X.astype(np.float64) if sparse.issparse(X) else np.asarray(X, np.float64)
    n_features, n_classes = accumulator.F.shape
    if labels is None:
        labels = sparse.eye_array(n_classes, format="csr")
    targets = whole_numbers("targets", targets, labels.shape[0])
    if accumulator.exact or X.shape != (targets.size, n_features) or labels.shape[1] != n_classes:
        raise InputError(
            f"expected float sums, inputs of shape {(targets.size, n_features)} and labels of {n_classes} columns, "
            f"got {accumulator.sums.dtype} sums, inputs of shape {X.shape} and labels of {labels.shape[1]} columns"
        )
    target = (labels.indptr, labels.indices, labels.data, targets, _writable(accumulator))
    kernel: Any = _kernels.add_dense
    rows: tuple[Any, ...] = (X,)
    if sparse.issparse(X):
        x: Any = X
        kernel, rows = _kernels.add_sparse, (x.indptr, x.indices, x.data)
    run_parts(lambda thread: kernel(*rows, *target, thread, workers), range(workers), workers)
    accumulator.n_examples += targets.size


def _writable(accumulator: Accumulator) -> NDArray[Any]:
    """Return the sums to add to; those of a file that is only mapped are copied first."""
    if not accumulator.sums.flags.writeable:
        accumulator.sums = accumulator.sums.copy()
    return accumulator.sums


def merge(a: Accumulator, b: Accumulator) -> Accumulator:
    """Return the accumulator of both sets of examples.

    Raises
    ------
    InputError
        Shapes, types or units differ.
    """
    kinds = [f"{x.F.shape} {x.sums.dtype} in 1/{x.unit}" for x in (a, b)]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"expected accumulators of one shape, type and unit, got {kinds[0]} and {kinds[1]}; "
            "count both texts with the same tokenizer, bits and contexts"
        )
    return Accumulator(a.sums + b.sums, a.n_examples + b.n_examples, a.unit)
