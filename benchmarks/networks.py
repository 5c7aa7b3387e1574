"""Plain networks on MNIST from PyTorch's default weights and from `warm_start`: a part of the classifier bench.

The learning rate of every arm is chosen by cross-entropy on training images held out; then it trains with three seeds
(of the default weights and of the order of the images) and is measured on the test images.
"""

import copy
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import report
from benchmarks.report import Book
from warmstart.adapters import warm_start

Examples: TypeAlias = tuple[Tensor, Tensor]

SHAPES = ((784, 10), (784, 64, 10), (784, 256, 10))
STARTS = ("default", "warm_start", "default, ReLU")
STEPS = (100, 1200)  # a quarter of an epoch and three
BATCH = 128
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SEEDS = (0, 1, 2)


def network(shape: tuple[int, ...], hidden: Callable[[], nn.Module], seed: int) -> nn.Sequential:
    """Return a network with PyTorch's default weights."""
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    for rows, columns in itertools.pairwise(shape):
        modules += [nn.Linear(rows, columns), hidden()]
    return nn.Sequential(*modules[:-1])


def train(start: nn.Sequential, examples: Examples, steps: int, rate: float, seed: int) -> nn.Sequential:
    """Train a copy with Adam, the rate falling linearly to 0."""
    X, y = examples
    model = copy.deepcopy(start)
    optimizer = torch.optim.Adam(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        rows = torch.randint(len(X), (BATCH,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def measure(model: nn.Sequential, examples: Examples) -> tuple[float, float]:
    """Return accuracy and cross-entropy in nats an image."""
    X, y = examples
    with torch.no_grad():
        z = model(X)
        return (z.argmax(1) == y).double().mean().item(), nn.functional.cross_entropy(z, y).item()


def compare(
    images: tuple[NDArray[Any], ...], book: Book, quick: bool, progress: Callable[[str, int, int], None]
) -> list[dict[str, Any]]:
    """Return a row for each shape, start and number of steps; the last sixth of the training images chooses rates."""
    X, y, X_test, y_test = images
    held = len(X) // 6
    parts = [
        (torch.from_numpy(rows), torch.from_numpy(labels.astype(np.int64)))
        for rows, labels in ((X[:-held], y[:-held]), (X[-held:], y[-held:]), (X_test, y_test))
    ]
    arms = [(s, name) for s in SHAPES for name in STARTS if len(s) > 2 or "ReLU" not in name]
    rows = []
    for i, (shape, name) in enumerate(arms):
        progress("networks", i, len(arms))
        title = "-".join(map(str, shape))
        found = book.do(f"network {title}, {name}", partial(_arm, shape, name, parts, quick))
        rows += [{"shape": title, "start": name, **row} for row in found]
    progress("networks", len(arms), len(arms))
    return rows


def _arm(shape: tuple[int, ...], name: str, parts: Sequence[Examples], quick: bool) -> list[dict[str, Any]]:
    """Return a row for each number of steps; parts are to fit, to choose rates and to test."""
    fit, valid, test = parts
    seeds, lengths = (SEEDS[:1], (0, 20)) if quick else (SEEDS, (0, *STEPS))
    hidden: Callable[[], nn.Module] = nn.ReLU if "ReLU" in name else lambda: nn.Softmax(dim=-1)
    starts = [network(shape, hidden, seed) for seed in seeds]
    began = time.perf_counter()
    if name == "warm_start":  # one start: it does not depend on a seed
        warm_start(starts[0], DataLoader(TensorDataset(*fit), batch_size=4096))
        starts = starts[:1] * len(seeds)
    seconds = time.perf_counter() - began if name == "warm_start" else None
    rows = []
    for steps in lengths:
        rates = RATES if steps else RATES[:1]
        tried = [measure(train(starts[0], fit, steps, rate, seeds[0]), valid)[1] for rate in rates]
        rate = rates[int(np.argmin(tried))]
        found = [measure(train(s, fit, steps, rate, seed), test) for s, seed in zip(starts, seeds, strict=True)]
        accuracy, nats = np.mean(found, axis=0).tolist()
        rows.append(
            {
                "steps": steps,
                "rate": rate if steps else None,
                "accuracy": accuracy,
                "cross_entropy": nats,
                "deviation": float(np.std([each[1] for each in found], ddof=1)) if len(seeds) > 1 else None,
                "seconds": seconds,
                "validation": dict(zip(map(str, rates), tried, strict=True)),
            }
        )
    return rows


def section(rows: list[dict[str, Any]]) -> str:
    """Return the paragraph and the table for docs/benchmarks.md."""
    columns = ("shape", "start", "steps", "rate", "accuracy", "cross_entropy", "deviation", "seconds")
    cells = [[f"{row[c]:g}" if c == "rate" and row[c] else row[c] for c in columns] for row in rows]
    headers = [
        "network",
        "start",
        "steps",
        "rate",
        "accuracy",
        "cross-entropy (nats)",
        "its deviation",
        "solved in (s)",
    ]
    return (
        "Networks of `Linear` and `Softmax` (or ReLU, where named) on five sixths of the training images: `warm_start` "
        f"and PyTorch's default weights, then Adam, batches of {BATCH}, the rate falling to 0. The rate is chosen for "
        f"each arm and length on the last sixth. Mean over {len(SEEDS)} seeds, and the deviation of the "
        "cross-entropy.\n\n"
        f"{report.table(headers, cells)}"
    )
