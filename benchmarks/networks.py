"""Plain networks on MNIST from PyTorch's default weights and from `warm_start`: a part of the classifier bench.

Every network, start and number of steps has its own learning rate, the one with the lowest cross-entropy on held-out
training images. It then trains with three seeds, which decide the default weights and the order of the images, and is
measured on the test images.
"""

import copy
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import render, training
from benchmarks.harness import Results
from warmstart.adapters.plain import warm_start
from warmstart.finetune.phases import Phase

SHAPES = ((784, 10), (784, 64, 10), (784, 256, 10))
STARTS = ("default", "warm_start", "default, ReLU")
SETTINGS: dict[str, Any] = {
    "steps": (0, 100, 1200),  # none, a quarter of an epoch, three epochs
    "rates": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    "batch": 128,
    "seeds": (0, 1, 2),
    "decay": "linear",
    "held out": "last sixth",
}
QUICK: dict[str, Any] = {"steps": (0, 20), "rates": (1e-2,), "seeds": (0,)}


def network(shape: tuple[int, ...], activation: Callable[[], nn.Module], seed: int) -> nn.Sequential:
    """Return a network with PyTorch's default weights."""
    torch.manual_seed(seed)
    layers = [module for sizes in itertools.pairwise(shape) for module in (nn.Linear(*sizes), activation())]
    return nn.Sequential(*layers[:-1])


def train(start: nn.Sequential, X: Tensor, y: Tensor, steps: int, rate: float, seed: int) -> nn.Sequential:
    """Train a copy with Adam; the rate falls linearly to 0."""
    model = copy.deepcopy(start)
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(X), (SETTINGS["batch"],), generator=generator)
        return functional.cross_entropy(model(X[rows]), y[rows])

    optimizer = torch.optim.Adam([{"params": list(model.parameters()), "rate": rate}])
    phase = Phase("all", warmup=0.0, decay="linear", floor=0.0)
    training.train([optimizer], loss, steps, phase, lambda: 0.0, at=(), clip=None)
    return model


@torch.no_grad()
def measure(model: nn.Sequential, X: Tensor, y: Tensor) -> tuple[float, float]:
    """Return accuracy and cross-entropy in nats an image."""
    z = model(X)
    return (z.argmax(1) == y).double().mean().item(), functional.cross_entropy(z, y).item()


def arm(shape: tuple[int, ...], start: str, settings: dict[str, Any], images: Callable[[], Any]) -> list[Any]:
    """Return a row for each number of steps: the chosen rate, and means over the seeds on the test images."""
    X, y, X_test, y_test = (torch.from_numpy(np.array(part)) for part in images())
    held, seeds, rates = len(X) // 6, settings["seeds"], settings["rates"]
    fit, valid, test = (X[:-held], y[:-held].long()), (X[-held:], y[-held:].long()), (X_test, y_test.long())
    models = [network(shape, nn.ReLU if "ReLU" in start else partial(nn.Softmax, dim=-1), seed) for seed in seeds]
    seconds = None
    if start == "warm_start":  # it does not depend on the seed
        began = time.perf_counter()
        warm_start(models[0], DataLoader(TensorDataset(*fit), batch_size=4096))
        seconds, models = time.perf_counter() - began, models[:1] * len(seeds)
    rows = []
    for steps in settings["steps"]:
        row = {"steps": steps, "rate": None, "seconds": seconds}
        if steps:
            losses = {rate: measure(train(models[0], *fit, steps, rate, seeds[0]), *valid)[1] for rate in rates}
            row |= {"rate": min(rates, key=losses.__getitem__)}
            if len(rates) > 1 and row["rate"] in (rates[0], rates[-1]):
                raise RuntimeError(f"{shape}, {start}: the best rate is at the border of {rates}; widen SETTINGS")
        ends = [train(model, *fit, steps, row["rate"] or 0.0, seed) for model, seed in zip(models, seeds, strict=True)]
        measured = np.array([measure(model, *test) for model in ends])
        row["accuracy"], row["cross_entropy"] = measured.mean(axis=0).tolist()
        row["deviation"] = float(measured[:, 1].std(ddof=1)) if len(seeds) > 1 else None
        rows.append(row)
    return rows


def compare(images: Callable[[], Any], results: Results, quick: bool) -> list[dict[str, Any]]:
    """Return a row for each network, start and number of steps."""
    settings, rows = SETTINGS | (QUICK if quick else {}), []
    for shape, start in itertools.product(SHAPES[:2] if quick else SHAPES, STARTS):
        if len(shape) > 2 or "ReLU" not in start:
            key = {"data": "MNIST", "network": "-".join(map(str, shape)), "start": start, **settings}
            for row in results.do(key, partial(arm, shape, start, settings, images)):
                rows.append({**row, "network": key["network"], "start": start, "mark": results.mark(key)})
    return rows


def section(rows: list[dict[str, Any]]) -> str:
    """Return the paragraph and the table for docs/benchmarks.md."""
    columns: dict[str, Any] = {name: name for name in ("network", "start", "steps")}
    columns |= {"rate": lambda row: row["rate"] and f"{row['rate']:g}", "accuracy": "accuracy"}
    columns |= {"cross-entropy (nats)": lambda row: render.nats(row["cross_entropy"])}
    columns |= {"deviation": lambda row: render.nats(row["deviation"]), "solved in (s)": "seconds"}
    rates = SETTINGS["rates"]
    return f"""Networks of `Linear` and `Softmax` layers (or ReLU, where the table says so) from `warm_start` and from
PyTorch's default weights, on five sixths of the training images. Adam in float32, batches of {SETTINGS["batch"]}, the
rate falls linearly to 0. Every arm has its own rate, the best on the last sixth of {len(rates)} from {rates[0]:g} to
{rates[-1]:g}; none is at the border. Values are means over {len(SETTINGS["seeds"])} seeds, and the standard deviation
of the cross-entropy.

{render.rows_table(columns, rows)}"""


def conclusion(rows: list[dict[str, Any]]) -> str:
    """Return the sentence that compares the widest networks at the end of the longest training."""
    last = {row["start"]: f"{row['cross_entropy']:.3f}" for row in rows}  # later rows are wider and longer
    return (
        f"a trained network of softmax layers has {last['warm_start']} nats from `warm_start` and {last['default']} "
        f"from default weights, a ReLU network {last['default, ReLU']}."
    )
