"""Warm start of plain classifiers: every `Linear` before a softmax is solved from data, bottom-up, without gradients.

| symbol | shape | meaning |
|---|---|---|
| `x` | (n, D) | inputs of a layer |
| `y` | (n,) | class of each example, 0 to C - 1 |
| `m` | | width of a hidden layer |
| `labels` | (L, m) | hidden targets: bit-cipher vectors of L labels, rows of unit L1 norm |
| `U` | (D, m) | explicit solution, see `warmstart.solution` |

*Hidden targets.* If a layer has at most as many units as there are classes, the labels are the classes, and their
cipher vectors are the targets. In a wider layer the codes of the classes would use C units only. There each class is
divided into sub-classes by k-means on the inputs of the layer, m in all, and each sub-class is a unit.

*Inputs.* The solution needs non-negative inputs, which the outputs of a softmax are. The first layer gets the data. If
it has a bias, it reads each feature as its place u in its range, and the complement,

    u = (x - low) / (high - low);    [u, 1 - u] [U+; U-] = x W + bias,    W = (U+ - U-) / (high - low),
                                                                          bias = sum_d U-[d] - low W

This is exact, does not depend on the offset and scale of a feature, and gives every example the L1 norm D. Without a
bias the layer gets the published formula on the data, which must not be negative; this suits counts. The bias of a
layer on a softmax is zero.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn

from bitcipher import BitCipher, CapacityError
from warmstart import accumulators, solution
from warmstart.adapters.parts import unwrapped
from warmstart.adapters.report import LoadReport
from warmstart.errors import InputError

Batches = Iterable[tuple[Tensor, Tensor]]
Rows = NDArray[np.float32]
Classes = NDArray[np.int64]

HIDDEN_SMOOTHING = 1.0  # co-occurrences; sub-classes come from the inputs themselves, so held-out loss cannot choose it
FITTED = 2048  # number of examples on which the temperature is fitted
DIVIDED = 16384  # number of examples for k-means
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: its multiples modulo 2**64 are evenly spread
LARGEST = 2**64 - 2**11  # the largest float64 that is a uint64


def warm_start(model: nn.Sequential, loader: Batches) -> LoadReport:
    """Solve every `Linear` of a classifier from data, so that it predicts before the first training step.

    The loader is read once at first and two or three times for each layer. A layer takes O(D m) memory, and k-means
    16,384 examples. The result is deterministic if the loader is, so do not shuffle here.

    Parameters
    ----------
    model : nn.Sequential
        First any modules without a `Linear` (`Flatten`, a trained encoder), which stay as they are. Then one or more
        `Linear`, each followed by a `Softmax` over the last dimension. The last `Linear` may be followed by
        `LogSoftmax` or by nothing instead. `Dropout` and `Identity` may stand in between. The model is changed in
        place, after all layers are solved.
    loader : iterable of (x, y)
        Batches of inputs (n, ...) for the model and int64 classes (n,), as a `DataLoader` or a list. It is read several
        times, so an iterator does not work.

    Returns
    -------
    LoadReport
        The notes give the targets, the temperature and the cross-entropy of each layer.

    Raises
    ------
    InputError
        The architecture is another one, classes do not fit the last layer, inputs are not finite or are negative for a
        first layer without a bias, a hidden layer has more units than there are distinct examples or too few for codes
        of all classes, or the loader cannot be read again.

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
    model = cast("nn.Sequential", unwrapped(model))
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
    loaded = {f"{name}.{parameter}" for name, layer in layers for parameter, _ in layer.named_parameters()}
    names = [name for name, _ in model.named_parameters()]
    return LoadReport(
        loaded=tuple(name for name in names if name in loaded),
        missing=tuple(name for name in names if name not in loaded),
        notes=tuple(data.notes),
    )


def _layers(model: nn.Sequential) -> tuple[int, list[tuple[str, nn.Linear]]]:
    """Return the index of the first `Linear`, and all `Linear` modules by name. Refuse other architectures."""
    expected = "expected a Sequential of Linear and Softmax layers in turn, with or without the last softmax"
    if not isinstance(model, nn.Sequential):
        raise InputError(f"{expected}; got {type(model).__name__}")
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
        raise InputError(f"{expected}; got {kinds}; other activations have no explicit solution")
    return first, layers


def _sampled(numbers: NDArray[np.int64], n: int, size: int) -> NDArray[np.bool_]:
    """Return a mask of about ``size`` of n examples by their running numbers; number 0 is always in the sample."""
    return np.asarray(numbers.astype(np.uint64) * GOLDEN <= np.uint64(min(1.0, size / n) * LARGEST))


@dataclass
class _Target:
    """Targets of a layer: label embeddings (L, m), the first label of each class (C,), k-means by class."""

    labels: sparse.csr_array
    first: Classes
    means: dict[int, MiniBatchKMeans]
    note: str

    def of(self, x: Rows, y: Classes) -> Classes:
        """Return the label of each example (n,)."""
        labels = self.first[y]
        for c, means in self.means.items():
            if (members := y == c).any():
                labels[members] += means.predict(x[members])
        return labels


class _Data:
    """The loader as inputs of the next layer to solve, and the layers solved so far: weights (m, D), bias (m,)."""

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
        """Number of examples in the loader."""
        return int(self.counts.sum())

    def _read(self) -> Iterator[tuple[Rows, Classes]]:
        """Yield the inputs of the first `Linear` and the classes, batch by batch. Refuse wrong shapes and types."""
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
        """Yield non-negative inputs of the next layer, classes, and a mask that samples ``size`` examples in all."""
        seen = 0
        for x, y in self._read():
            h = torch.from_numpy(x)
            for weight, bias in self.solved:
                h = torch.softmax(nn.functional.linear(h, weight, bias), dim=-1)
            rows = h.numpy()
            if self.ranged and not self.solved:
                u = ((x - self.low) * self.per_width).clip(0, 1).astype(np.float32)
                rows = np.concatenate([u, 1 - u], axis=1)
            yield rows, y, _sampled(seen + np.arange(y.size), self.n_examples, size)
            seen += y.size
        if seen != self.n_examples:
            raise InputError(f"expected a loader to read again, got {self.n_examples:,} examples, then {seen:,}")

    def target(self, width: int, *, last: bool) -> _Target:
        """Return the targets of a layer of ``width`` units."""
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
        samples = [(x[sampled], y[sampled]) for x, y, sampled in self.inputs(DIVIDED)]
        x, y = (np.concatenate(arrays) for arrays in zip(*samples, strict=True))
        distinct = np.array([len(np.unique(x[y == c], axis=0)) for c in classes])
        shares = _shares(np.maximum(distinct, self.counts > 0), width)
        means = {
            int(c): MiniBatchKMeans(shares[c], n_init=1, random_state=0, batch_size=1024).fit(x[y == c])
            for c in np.flatnonzero(shares > 1)
        }
        note = f"{width} sub-classes of {n_classes} classes"
        return _Target(sparse.eye_array(width, format="csr"), np.cumsum(shares) - shares, means, note)

    def solve(self, name: str, layer: nn.Linear, *, last: bool) -> None:
        """Solve one layer on top of the solved ones; append its weights and a note."""
        target = self.target(layer.out_features, last=last)
        n_features = layer.in_features * (2 if self.ranged and not self.solved else 1)
        statistics = accumulators.empty(n_features, layer.out_features)
        samples: list[tuple[Rows, Classes]] = []
        for x, y, sampled in self.inputs(FITTED):
            labels = target.of(x, y)
            accumulators.update(statistics, x, labels, target.labels)
            samples.append((x[sampled], labels[sampled]))
        rows, labels = (np.concatenate(arrays) for arrays in zip(*samples, strict=True))
        sample = solution.Sample([rows.astype(np.float64)], target.labels[labels])
        prior, k = solution.marginal_prior(statistics), statistics.mean_norm
        fit = solution.fit(sample, [statistics], prior, k=k, smoothing="fit" if last else HIDDEN_SMOOTHING)
        U = solution.solve(
            [statistics],
            prior,
            k=k,
            smoothing=fit.smoothing,
            temperatures=fit.temperatures,
            dtype=np.float64,
        )
        bias = np.zeros(layer.out_features)
        if self.ranged and not self.solved:
            present, absent = np.split(U, 2)
            U = (present - absent) * self.per_width[:, None]
            bias = absent.sum(axis=0) - self.low @ U
        self.solved.append((torch.from_numpy(U.T.astype(np.float32)), torch.from_numpy(bias.astype(np.float32))))
        ends = f"; a bound of its search: {', '.join(fit.bounds)}" if fit.bounds else ""
        self.notes.append(
            f"{name}: solved for {target.note}, temperature {fit.temperatures[0]:.3g}, smoothing "
            f"{fit.smoothing:g}, {fit.cross_entropy:.3f} nats{ends}"
        )


def _shares(distinct: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Divide the units among the classes as evenly as their numbers of distinct examples (C,) allow.

    Examples
    --------
    >>> _shares(np.array([100, 2, 100]), 9).tolist()
    [4, 2, 3]
    """
    if distinct.sum() < width:
        raise InputError(
            f"expected at least {width} distinct examples for a hidden layer of {width} units, got {distinct.sum()}; "
            "make it narrower"
        )
    shares = np.zeros(distinct.size, np.int64)
    for _ in range(width):
        shares[np.where(shares < distinct, shares, width).argmin()] += 1
    return shares
