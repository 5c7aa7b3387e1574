"""Accumulators: sums of outer products of inputs and targets. The only place where something is counted.

| symbol | shape | meaning |
|---|---|---|
| `F` | (D, C) | co-occurrence of inputs and targets, ``sum_n outer(x_n, y_n)``, in units of co-occurrences |
| `n` | | examples added |
| `k` | | ``F.sum() / n``: mean L1 norm of the inputs (targets sum to 1) |

An accumulator is a commutative monoid: `empty`, `update`, `merge`. Counts of cipher vectors are kept as integers, in
units of ``1 / unit`` co-occurrences where ``unit`` is the least common multiple of the code weights, so they are exact
and any order or grouping gives the same bits. Other inputs are float64, added example by example; merged parts of
them agree with one long sum up to rounding.
"""

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from warmstart import files
from warmstart.errors import InputError


@dataclass
class Accumulator:
    """Sums of outer products.

    Attributes
    ----------
    sums : (C, D) float64, or (D, C) int64
        The statistic as it is stored: by class for float sums, by feature for integer counts of cipher vectors.
    n_examples : int
        Examples added.
    unit : int
        Integer sums are in units of ``1 / unit`` co-occurrences; 0 marks float sums.
    """

    sums: NDArray[Any]
    n_examples: int = 0
    unit: int = 0

    @property
    def F(self) -> NDArray[Any]:  # noqa: N802 - the symbol of the papers
        """The sums as (D, C), a view; multiply by `scale` for co-occurrences."""
        return self.sums if self.unit else self.sums.T

    @property
    def scale(self) -> float:
        """Co-occurrences per stored unit."""
        return 1.0 / self.unit if self.unit else 1.0

    @property
    def mean_norm(self) -> float:
        """Mean L1 norm of the inputs, the k of the k-rule."""
        if not self.n_examples:
            raise InputError("expected at least one example to take a mean norm of, got none; update first")
        return float(self.sums.sum()) * self.scale / self.n_examples


def empty(n_features: int, n_classes: int, unit: int = 0) -> Accumulator:
    """Return an accumulator of zeros: float64, or int64 in units of ``1 / unit`` when ``unit`` is given.

    Examples
    --------
    >>> empty(3, 2).F.shape
    (3, 2)
    """
    if unit:
        return Accumulator(np.zeros((n_features, n_classes), np.int64), 0, unit)
    return Accumulator(np.zeros((n_classes, n_features)))


def code_unit(code_weights: NDArray[np.integer]) -> int:
    """Return the least common multiple of the code weights: the unit in which cipher counts are integers.

    Examples
    --------
    >>> code_unit(np.array([1, 2, 3]))
    6
    """
    return math.lcm(*(int(w) for w in np.unique(code_weights)))


def update_pairs(
    accumulator: Accumulator, inputs: NDArray[np.integer], targets: NDArray[np.integer], codes: sparse.csr_array
) -> None:
    """Add the cipher vectors of ``inputs`` with the classes ``targets``, exactly.

    Parameters
    ----------
    accumulator : Accumulator of (D, C) with an integer unit
    inputs, targets : (n,) int
        Token ids and class ids.
    codes : (V, D) csr_array
        Bits of each token; the values are not used, a row counts ``unit / weight`` in each of its bits.

    Raises
    ------
    InputError
        Shapes do not fit, an id is out of range or the accumulator has no unit.
    """
    from warmstart import _kernels  # numba is loaded here, not on import

    n_features, n_classes = accumulator.F.shape
    if not accumulator.unit or codes.shape[1] != n_features or inputs.size != targets.size:
        raise InputError(
            f"expected codes of {n_features} bits, as many targets as inputs and an accumulator with a unit, "
            f"got {codes.shape[1]} bits, {targets.size} targets, {inputs.size} inputs and unit {accumulator.unit}"
        )
    _check_ids("inputs", inputs, codes.shape[0])
    _check_ids("targets", targets, n_classes)
    units = accumulator.unit // np.maximum(np.diff(codes.indptr), 1)
    _kernels.add_pairs(inputs, targets, codes.indptr, codes.indices, units, accumulator.sums)
    accumulator.n_examples += inputs.size


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
    X : (n, D) array or csr_array
        Non-negative inputs.
    targets : (n,) int
        Class of each example; with ``labels``, the row of ``labels`` that is its target.
    labels : (n_labels, C) csr_array, optional
        Label embeddings, rows of unit L1 norm. Without them the target is the one-hot vector of its class.
    workers : int
        Threads; the result does not depend on them.

    Raises
    ------
    InputError
        Shapes do not fit, a target is out of range or the accumulator counts integers.
    """
    from warmstart import _kernels  # numba is loaded here, not on import

    n_features, n_classes = accumulator.F.shape
    if labels is None:
        labels = sparse.eye_array(n_classes, format="csr")
    if accumulator.unit or X.shape != (targets.size, n_features) or labels.shape[1] != n_classes:
        raise InputError(
            f"expected float sums, inputs of shape {(targets.size, n_features)} and labels of {n_classes} columns, "
            f"got unit {accumulator.unit}, inputs of shape {X.shape} and labels of {labels.shape[1]} columns"
        )
    _check_ids("targets", targets, labels.shape[0])
    target = (labels.indptr, labels.indices, labels.data, targets, accumulator.sums)
    kernel: Any = _kernels.add_dense
    rows: tuple[Any, ...] = (X,)
    if sparse.issparse(X):
        x: Any = X
        kernel, rows = _kernels.add_sparse, (x.indptr, x.indices, x.data)
    run_parts(lambda part: kernel(*rows, *target, part, workers), range(workers), workers)
    accumulator.n_examples += targets.size


def _check_ids(name: str, ids: NDArray[np.integer], size: int) -> None:
    """Raise InputError for an id out of range: the kernels, compiled, would write to another's memory."""
    if ids.size and (ids.min() < 0 or ids.max() >= size):
        raise InputError(f"expected {name} from 0 to {size - 1}, got {ids.min()} to {ids.max()}")


def run_parts(work: Callable[[int], Any], parts: Iterable[int], workers: int) -> list[Any]:
    """Run ``work`` on every part in as many threads as workers and return the results in the order of the parts."""
    if workers == 1:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, parts))


def merge(a: Accumulator, b: Accumulator) -> Accumulator:
    """Return the accumulator of both sets of examples.

    Raises
    ------
    InputError
        Shapes or units differ.
    """
    if a.sums.shape != b.sums.shape or a.unit != b.unit:
        raise InputError(
            f"expected accumulators of one shape and unit, got {a.F.shape} in 1/{a.unit} and {b.F.shape} in "
            f"1/{b.unit}; count both parts with the same tokenizer, bits and contexts"
        )
    return Accumulator(a.sums + b.sums, a.n_examples + b.n_examples, a.unit)


def save(path: Path, accumulators: dict[str, Accumulator]) -> None:
    """Write named accumulators to one safetensors file, whole or not at all."""
    facts = {name: {"n_examples": a.n_examples, "unit": a.unit} for name, a in accumulators.items()}
    files.save_arrays(path, {name: a.sums for name, a in accumulators.items()}, {"accumulators": facts})


def load(path: Path) -> dict[str, Accumulator]:
    """Read what `save` wrote.

    Raises
    ------
    InputError
        The file is missing, truncated or of another kind.
    """
    arrays, facts = files.load_arrays(path)
    if "accumulators" not in facts:
        raise InputError(f"{path}: expected accumulators, got a safetensors file of another kind")
    return {name: Accumulator(arrays[name], **fact) for name, fact in facts["accumulators"].items()}
