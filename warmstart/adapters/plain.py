"""Plain networks: every `Linear` before a softmax of a `Sequential` solved from data, bottom-up, without a gradient.

| symbol | shape | meaning |
|---|---|---|
| `x` | (n, D) | inputs of a layer |
| `y` | (n,) | class of each example, 0 to C - 1 |
| `m` | | width of a hidden layer |
| `labels` | (L, m) | hidden targets: bit-cipher vectors of L labels by rank, rows of unit L1 norm |
| `U` | (D, m) | explicit solution, see `warmstart.solution` |

*Hidden targets.* Where a layer is narrower than the classes are many, the labels are the classes: their cipher vectors
are targets of few dimensions. Where it is wider, class codes would leave all but C units without a target and alike,
so each class is divided into sub-classes by k-means on the inputs of the layer, m in all, with a basis vector each.

*Inputs.* The solution needs non-negative inputs. Outputs of a softmax are. A layer on the data that has a bias reads
each feature on its range and its complement,

    u = (x - low) / (high - low);    [u, 1 - u] [U+; U-] = x W + bias,    W = (U+ - U-) / (high - low),
                                                                          bias = sum_d U-[d] - low W

which is exact, blind to shift and scale of a feature, and has L1 norm D for every example. Without a bias the layer
gets the published formula on the data as they are, which must not be negative: the choice for counts. The bias of a
layer on a softmax stays zero.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn

from bitcipher import BitCipher, CapacityError
from warmstart import accumulators, solution
from warmstart.adapters.report import LoadReport
from warmstart.errors import InputError

Batches = Iterable[tuple[Tensor, Tensor]]
Rows = NDArray[np.float32]
Classes = NDArray[np.int64]

HIDDEN_SMOOTHING = 1.0  # co-occurrences; sub-classes are cut from the inputs, so no held-out example could choose it
FITTED = 2048  # examples on which a temperature is fitted
DIVIDED = 16384  # examples by which classes are divided
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: its multiples fall evenly, whatever period the data have
LARGEST = 2**64 - 2**11  # the largest float64 that is a uint64


def warm_start(model: nn.Sequential, loader: Batches) -> LoadReport:
    """Solve every `Linear` of a classifier from data, so that it predicts before the first training step.

    The loader is read two or three times a layer, and once before. Memory is O(D m) a layer and 16,384 examples. The
    result is deterministic if the loader is: leave the shuffling to the training.

    Parameters
    ----------
    model : nn.Sequential
        Some modules without a `Linear`, applied as they are (`Flatten`, a trained encoder), then one or more `Linear`,
        each followed by a `Softmax` over the last dimension; the last one by `LogSoftmax`, or by nothing where the
        softmax is in the loss. `Dropout` and `Identity` may stand between. It is changed at the end, or not at all.
    loader : iterable of (x, y)
        Batches: inputs for the model, (n, ...), and int64 classes (n,). A `DataLoader` or a list; it is read again
        for each layer, so an iterator will not do.

    Returns
    -------
    LoadReport
        The notes say what each layer was solved for, its temperature and its cross-entropy.

    Raises
    ------
    InputError
        Another architecture; classes that do not fit the last layer; inputs that are negative where the first layer
        has no bias, or not finite; a hidden layer of more units than there are examples, or too few for codes of all
        classes; a loader that cannot be read twice.

    References
    ----------
    Williams and Zhao 2023, arXiv 2311.07498, theorem 1 (solution); arXiv 2311.11012 (label embeddings).

    Examples
    --------
    >>> x = torch.tensor([[-1.0, 20.0], [-2.0, 30.0], [2.0, 20.0], [1.0, 10.0]])
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Softmax(-1), nn.Linear(3, 2))
    >>> warm_start(model, [(x, torch.tensor([0, 0, 1, 1]))]).loaded
    ('0.weight', '0.bias', '2.weight', '2.bias')
    >>> model(x).argmax(1).tolist()
    [0, 0, 1, 1]
    """
    first, layers = _layers(model)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            data = _Data(model[:first], layers[0][1], loader, layers[-1][1].out_features)
            for name, layer in layers:
                data.solve(name, layer, last=layer is layers[-1][1])
            for (_, layer), (weight, bias) in zip(layers, data.solved, strict=True):
                layer.weight.copy_(weight)
                if layer.bias is not None:
                    layer.bias.copy_(bias)
    finally:
        for module, training in modes:
            module.training = training
    loaded = {f"{name}.{part}" for name, layer in layers for part, _ in layer.named_parameters()}
    names = [name for name, _ in model.named_parameters()]
    return LoadReport(
        loaded=tuple(name for name in names if name in loaded),
        missing=tuple(name for name in names if name not in loaded),
        notes=tuple(data.notes),
    )


def _layers(model: nn.Sequential) -> tuple[int, list[tuple[str, nn.Linear]]]:
    """Return the place of the first `Linear` and the `Linear` modules by name; refuse other architectures."""
    wanted = "expected a Sequential of Linear and Softmax layers in turn, with or without the last softmax"
    if not isinstance(model, nn.Sequential):
        raise InputError(f"{wanted}; got {type(model).__name__}")
    children = list(model.named_children())
    first = next((i for i, (_, module) in enumerate(children) if isinstance(module, nn.Linear)), len(children))
    rest = [(name, module) for name, module in children[first:] if not isinstance(module, nn.Dropout | nn.Identity)]
    layers = [(name, module) for name, module in rest[::2] if isinstance(module, nn.Linear)]
    between = [module for _, module in rest[1::2]]
    inner, end = (between, []) if len(between) < len(layers) else (between[:-1], between[-1:])
    fits = (
        layers
        and len(layers) + len(between) == len(rest)
        and all(isinstance(module, nn.Softmax) and module.dim in (-1, 1) for module in inner)
        and all(isinstance(module, nn.Softmax | nn.LogSoftmax) and module.dim in (-1, 1) for module in end)
    )
    if not fits:
        kinds = ", ".join(type(module).__name__ for _, module in children)
        raise InputError(f"{wanted}; got {kinds}; other activations have no explicit solution")
    return first, layers


def _chosen(numbers: NDArray[np.int64], n: int, size: int) -> NDArray[np.bool_]:
    """Mark about ``size`` of n examples by their running numbers (all if they are fewer); number 0 is one of them."""
    return np.asarray(numbers.astype(np.uint64) * GOLDEN <= np.uint64(min(1.0, size / n) * LARGEST))


@dataclass
class _Target:
    """What a layer is solved for: label embeddings (L, m), the first label of each class (C,), k-means by class."""

    labels: sparse.csr_array
    first: Classes
    means: dict[int, MiniBatchKMeans]
    note: str

    def of(self, x: Rows, y: Classes) -> Classes:
        """Return the label of each example (n,)."""
        out = self.first[y]
        for c, means in self.means.items():
            if (here := y == c).any():
                out[here] += means.predict(x[here])
        return out


class _Data:
    """The loader as inputs of the layer to solve next, and what has been solved so far: weights (m, D), bias (m,)."""

    def __init__(self, encoder: nn.Module, linear: nn.Linear, loader: Batches, n_classes: int) -> None:
        self.encoder, self.linear, self.loader = encoder, linear, loader
        self.counts = np.zeros(n_classes, np.int64)
        self.solved: list[tuple[Tensor, Tensor]] = []
        self.notes: list[str] = []
        low: list[Rows] = []
        high: list[Rows] = []
        for x, y in self._read():
            if y.size and not 0 <= y.min() <= y.max() < n_classes:
                raise InputError(f"expected classes from 0 to {n_classes - 1}, got {y.min()} to {y.max()}")
            if not np.isfinite(x).all():
                raise InputError("expected finite inputs, got NaN or infinity; fill in what is missing first")
            self.counts += np.bincount(y, minlength=n_classes)
            low.append(x.min(axis=0))
            high.append(x.max(axis=0))
        if not low:
            raise InputError("expected a loader of at least one example, got none")
        self.low = np.min(low, axis=0).astype(np.float64)
        width = np.max(high, axis=0) - self.low
        self.per_width = np.divide(1.0, width, out=np.zeros_like(width), where=width > 0)
        self.ranged = self.linear.bias is not None
        if not self.ranged and not np.any(high):
            raise InputError("expected inputs that are not all zero for a first Linear without a bias, got zeros")
        if not self.ranged and self.low.min() < 0:
            raise InputError(
                f"expected inputs >= 0 for a first Linear without a bias, got {self.low.min():g}; give it a bias, "
                "which can take up the shift, or make the features non-negative"
            )

    @property
    def n_examples(self) -> int:
        """Examples in the loader."""
        return int(self.counts.sum())

    def _read(self) -> Iterator[tuple[Rows, Classes]]:
        """Give what the first `Linear` sees, batch by batch, refusing what is no batch."""
        weight = self.linear.weight
        for inputs, targets in self.loader:
            x = self.encoder(inputs.to(weight.device))
            if x.ndim != 2 or x.shape[1] != self.linear.in_features or targets.shape != x.shape[:1]:
                raise InputError(
                    f"expected inputs of shape (n, {self.linear.in_features}) and classes (n,), got "
                    f"{tuple(x.shape)} and {tuple(targets.shape)}; put a Flatten before the first Linear for images"
                )
            if targets.is_floating_point():
                raise InputError(f"expected whole numbers as classes, got {targets.dtype}")
            if len(x):
                yield x.float().cpu().numpy(), targets.cpu().numpy().astype(np.int64)

    def inputs(self, size: int) -> Iterator[tuple[Rows, Classes, NDArray[np.bool_]]]:
        """Give non-negative inputs of the layer to solve next, classes, and marks of ``size`` examples in all."""
        seen = 0
        for x, y in self._read():
            h = torch.from_numpy(x)
            for weight, bias in self.solved:
                h = torch.softmax(nn.functional.linear(h, weight, bias), dim=-1)
            rows = h.numpy()
            if self.ranged and not self.solved:
                u = ((x - self.low) * self.per_width).clip(0, 1).astype(np.float32)
                rows = np.concatenate([u, 1 - u], axis=1)
            yield rows, y, _chosen(seen + np.arange(y.size), self.n_examples, size)
            seen += y.size
        if seen != self.n_examples:
            raise InputError(f"expected a loader to read again, got {self.n_examples:,} examples, then {seen:,}")

    def target(self, width: int, *, last: bool) -> _Target:
        """Choose what a layer of so many units is solved for."""
        n_classes = self.counts.size
        classes = np.arange(n_classes)
        if last:
            return _Target(sparse.eye_array(n_classes, format="csr"), classes, {}, f"{n_classes} classes")
        if width <= n_classes:
            try:
                labels = BitCipher(bits=width).fit(self.counts).vectors_
            except CapacityError as error:
                raise InputError(f"a hidden layer of {width} units for {n_classes} classes: {error}") from error
            return _Target(sparse.csr_array(labels), classes, {}, f"codes of {n_classes} classes in {width} bits")
        kept = [(x[keep], y[keep]) for x, y, keep in self.inputs(DIVIDED)]
        x, y = (np.concatenate(rows) for rows in zip(*kept, strict=True))
        distinct = np.array([len(np.unique(x[y == c], axis=0)) for c in classes])
        shares = _shares(np.maximum(distinct, self.counts > 0), width)
        means = {
            int(c): MiniBatchKMeans(shares[c], n_init=1, random_state=0, batch_size=1024).fit(x[y == c])
            for c in np.flatnonzero(shares > 1)
        }
        note = f"{width} sub-classes of {n_classes} classes"
        return _Target(sparse.eye_array(width, format="csr"), np.cumsum(shares) - shares, means, note)

    def solve(self, name: str, layer: nn.Linear, *, last: bool) -> None:
        """Solve one layer on the solved layers below; append its weights and a note."""
        target = self.target(layer.out_features, last=last)
        n_features = layer.in_features * (2 if self.ranged and not self.solved else 1)
        statistics = accumulators.empty(n_features, layer.out_features)
        kept: list[tuple[Rows, Classes]] = []
        for x, y, keep in self.inputs(FITTED):
            labelled = target.of(x, y)
            accumulators.update(statistics, x, labelled, target.labels)
            kept.append((x[keep], labelled[keep]))
        rows, labelled = (np.concatenate(part) for part in zip(*kept, strict=True))
        sample = solution.Sample([rows.astype(np.float64)], target.labels[labelled])
        prior, k = solution.marginal_prior(statistics), statistics.mean_norm
        found = solution.fit(sample, [statistics], prior, k=k, smoothing="fit" if last else HIDDEN_SMOOTHING)
        U = solution.solve(
            [statistics],
            prior,
            k=k,
            smoothing=found.smoothing,
            temperatures=found.temperatures,
            dtype=np.float64,
        )
        bias = np.zeros(layer.out_features)
        if self.ranged and not self.solved:
            present, absent = np.split(U, 2)
            U = (present - absent) * self.per_width[:, None]
            bias = absent.sum(axis=0) - self.low @ U
        self.solved.append((torch.from_numpy(U.T.astype(np.float32)), torch.from_numpy(bias.astype(np.float32))))
        self.notes.append(
            f"{name}: solved for {target.note}, temperature {found.temperatures[0]:.3g}, smoothing "
            f"{found.smoothing:g}, {found.cross_entropy:.3f} nats"
        )


def _shares(room: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Divide the units among the classes as evenly as their distinct examples (C,) allow; each class has one first.

    Examples
    --------
    >>> _shares(np.array([100, 2, 100]), 9).tolist()
    [4, 2, 3]
    """
    if room.sum() < width:
        raise InputError(
            f"expected at least {width} distinct examples for a hidden layer of {width} units, got {room.sum()}; "
            "make it narrower"
        )
    shares = np.zeros(room.size, np.int64)
    for _ in range(width):
        shares[np.where(shares < room, shares, width).argmin()] += 1
    return shares
