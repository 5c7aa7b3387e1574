"""Associative retrieval: how many keys a memory of one size holds, for each feature map and update rule.

Settings 1 and 2 of Schlag, Irie and Schmidhuber 2021 (arXiv 2102.11174, section 6.1). A text is a list of writes of a
key and a value; then the value of a key is asked for. Keys are tokens with trained embeddings, mapped to dimension 64
together with the value that they are written with; values are one-hot. In setting 1, each of S keys and S values is
written once. In setting 2, keys and values are drawn with replacement, and the last write of a key counts. Training has
2 S writes and asks for one key; evaluation has S writes and asks for all keys, as in the paper.

Training ends with a loss of 0.001, or after 31 evaluations in a row without a new best. The authors end after 11, and
some runs need longer. The closed-form part trains nothing: it writes random keys into memories.
"""

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import render, training
from benchmarks.harness import Results, Workers
from warmstart.finetune.phases import Phase
from warmstart.memory.feature_maps import FAVOR, dpfp, elu_plus_one, sum_normalise
from warmstart.memory.rules import delta_rule, sum_rule
from warmstart.progress import Progress

DIM, SOLVED = 64, 1e-3
SETTINGS: dict[str, Any] = {
    "dim": DIM, "batch": 32, "rate": 1e-3, "steps": 30_000, "solved": SOLVED, "evaluated every": 100, "texts": 20,
    "evaluations without progress": 31,
}  # fmt: skip
BLOCK = 32  # writes that are solved together; chosen by speed
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "ELU+1": elu_plus_one,
    "DPFP-1": dpfp,
    "DPFP-2": partial(dpfp, nu=2),
    "DPFP-3": partial(dpfp, nu=3),
    "FAVOR+ 128": FAVOR(DIM, 128),
    "softmax": nn.Identity(),
}
PUBLISHED = {"ELU+1": 40, "DPFP-1": 100, "DPFP-2": 240, "DPFP-3": 340, "softmax": 340}  # keys solved, authors' logs
SPACING = 20  # keys between two points of a curve
CURVES = {  # setting, feature map, rule: the largest number of keys
    (1, "ELU+1", "sum"): 80,
    (1, "DPFP-1", "sum"): 140,
    (1, "DPFP-2", "sum"): 280,
    (1, "DPFP-3", "sum"): 340,
    (1, "FAVOR+ 128", "sum"): 20,
    (1, "softmax", "softmax"): 440,
    (2, "DPFP-1", "sum"): 40,
    (2, "DPFP-1", "delta"): 120,
    (2, "DPFP-2", "sum"): 40,
    (2, "DPFP-2", "delta"): 200,
    (2, "DPFP-3", "sum"): 40,
    (2, "DPFP-3", "delta"): 120,
}
QUICK = {(1, "ELU+1", "sum"): 20, (2, "DPFP-1", "delta"): 20}
SEEDS = {(2, "DPFP-2", "delta", keys): 5 if keys == 200 else 3 for keys in (120, 140, 160, 180, 200)}  # else 1
PASSES = 30


class Memory(nn.Module):
    """Embeddings and maps around a memory of S keys and S one-hot values.

    With one-hot values, entry c of a read is the sum of the weights of the writes of value c, so that the memory itself
    need not be formed.
    """

    def __init__(self, size: int, feature_map: Callable[[Tensor], Tensor], rule: str) -> None:
        super().__init__()
        width = int(2.2 * size)
        self.size, self.feature_map, self.rule = size, feature_map, rule
        self.embedding = nn.Embedding(size, width)
        self.query = nn.Linear(width, DIM)
        self.key = nn.Linear(width, DIM)
        self.key_of_value = nn.Embedding(size, DIM)
        self.strength = nn.Linear(width, 1)
        self.strength_of_value = nn.Embedding(size, 1)
        wide = width + size  # of an embedding with its one-hot value
        for weight, inputs in ((self.query.weight, width), (self.key.weight, wide), (self.key_of_value.weight, wide)):
            # The authors' starts; a softmax of larger scores would look at one write only.
            bound = math.sqrt(6 / (inputs + DIM)) if rule == "softmax" else DIM**-0.5
            nn.init.uniform_(weight, -bound, bound)
        nn.init.zeros_(self.strength_of_value.weight)

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        """Return the reads (B, n, S) of asked keys (B, n) after the writes (B, L) of keys and values."""
        E = self.embedding.weight
        k = self.feature_map(functional.embedding(keys, self.key(E)) + self.key_of_value(values))
        q = self.feature_map(functional.embedding(asked, self.query(E)))
        beta = torch.sigmoid(functional.embedding(keys, self.strength(E)) + self.strength_of_value(values))
        weights = write_weights(q, k, beta, self.rule)
        reads = weights.new_zeros(*asked.shape, self.size)
        return reads.scatter_add(-1, values[:, None].expand(weights.shape), weights)


def write_weights(q: Tensor, k: Tensor, beta: Tensor, rule: str) -> Tensor:
    """Return the weight (B, n, L) of every write in the reads of queries after all of them.

    q (B, n, d_phi), k (B, L, d_phi), beta (B, L, 1). Delta rule: the read is ``sum_t a_t v_t`` with
    ``a_t = beta_t k_t . (q - sum_(s>t) a_s k_s)``, a triangular system for every block of writes, the last one first.
    """
    if rule == "softmax":
        return torch.softmax(q @ k.mT / math.sqrt(k.shape[-1]), dim=-1)
    if rule == "sum":
        weights = q @ k.mT
        total = weights.sum(-1, keepdim=True)
        return weights / torch.where(total == 0, 1.0, total)
    q, k = sum_normalise(q), sum_normalise(k)
    rest, blocks = q, []
    for keys, strength in zip(reversed(torch.split(k, BLOCK, 1)), reversed(torch.split(beta, BLOCK, 1)), strict=True):
        system, right = strength * (keys @ keys.mT), strength * (keys @ rest.mT)
        columns: Tensor = torch.linalg.solve_triangular(system, right, upper=True, unitriangular=True)
        rest = rest - columns.mT @ keys
        blocks.append(columns.mT)
    return torch.cat(blocks[::-1], dim=-1)


def draw(setting: int, size: int, n: int, generator: torch.Generator, turns: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys and values (n, L) of n texts, and the value (n, S) that each key ends with, -1 if never written.

    L is S in setting 1 and ``turns`` S in setting 2.
    """
    if setting == 1:
        keys, values = (torch.rand(n, size, generator=generator).argsort(-1) for _ in range(2))
    else:
        keys, values = (torch.randint(size, (n, turns * size), generator=generator) for _ in range(2))
    # The place of the last write of each key: the highest index decides, not the order of scattered writes.
    places = torch.arange(keys.shape[1]).expand(keys.shape)
    last = torch.full((n, size), -1).scatter_reduce(-1, keys, places, "amax")
    return keys, values, torch.where(last < 0, -1, values.gather(-1, last.clamp(min=0)))


def loss(reads: Tensor, right: Tensor) -> Tensor:
    """Return half the squared distance (...) of reads (..., S) to one-hot values (...)."""
    at_right = reads.gather(-1, right[..., None])[..., 0]
    return (reads.square().sum(-1) - 2 * at_right + 1) / 2


def evaluate(memory: Memory, setting: int, n: int, generator: torch.Generator) -> float:
    """Return the mean loss over all written keys of n new texts."""
    keys, values, right = draw(setting, memory.size, n, generator, turns=1)
    with torch.no_grad():
        losses = loss(memory(keys, values, torch.arange(memory.size).expand(n, -1)), right.clamp(min=0))
    return float(losses[right >= 0].mean())


def train(setting: int, name: str, rule: str, size: int, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Train one memory; return its best ``loss`` and its ``steps``."""
    generator = torch.Generator().manual_seed(size + 1000 * seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(size + 1000 * seed)
        memory = Memory(size, copy.deepcopy(MAPS[name]), rule)  # random directions are drawn again below

    def batch_loss(step: int) -> Tensor:
        if isinstance(memory.feature_map, FAVOR):
            memory.feature_map.redraw(step + 1)
        keys, values, right = draw(setting, size, settings["batch"], generator)
        asked = keys.gather(1, torch.randint(keys.shape[1], (settings["batch"], 1), generator=generator))
        return loss(memory(keys, values, asked), right.gather(1, asked)).mean()

    def ended(losses: list[float]) -> bool:
        best = losses.index(min(losses))
        return losses[best] <= SOLVED or len(losses) - best > int(settings["evaluations without progress"])

    optimizer = torch.optim.Adam([{"params": list(memory.parameters()), "rate": settings["rate"]}])
    at = range(settings["evaluated every"], settings["steps"] + 1, settings["evaluated every"])
    curve = training.train(
        [optimizer], batch_loss, settings["steps"], Phase("all", warmup=0.0, decay="constant"),
        lambda: evaluate(memory, setting, settings["texts"], generator), at, clip=None, stop=ended,
    )  # fmt: skip
    return {"loss": min(curve["nats"]), "steps": curve["steps"][-1]}


def fixed(name: str, keys: int) -> dict[str, Any]:
    """Write random keys once and read them: the loss of each rule, and of the best memory that there is."""
    generator = torch.Generator().manual_seed(keys)
    phi = functional.normalize(MAPS[name](torch.randn(keys, DIM, generator=generator, dtype=torch.float64)), dim=-1)
    k, v = phi[None, None], torch.eye(keys, dtype=torch.float64)[None, None]
    beta = torch.ones(1, 1, keys, dtype=torch.float64)
    _, (S, z) = sum_rule(k, k, v)
    reads = {"sum": phi @ S[0, 0].T / (phi @ z[0, 0])[:, None]}
    S = torch.zeros_like(S)
    for passes in range(1, PASSES + 1):
        _, S = delta_rule(k, k, v, beta, state=S)
        if passes in (1, PASSES):
            reads["delta" if passes == 1 else f"delta, {passes} passes"] = phi @ S[0, 0].T
    reads["best memory"] = phi @ torch.linalg.pinv(phi)
    losses = {rule: float(loss(read, torch.arange(keys)).mean()) for rule, read in reads.items()}
    return {"map": name, "d_phi": phi.shape[1], "keys": keys, **losses}


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Train every memory; write random keys into memories without training. No data set is read."""
    results = Results(None if quick else docs / "results" / "retrieval.jsonl", __name__, progress=progress)
    settings = SETTINGS | ({"steps": 100} if quick else {})

    def point(workers: Workers, setting: int, name: str, rule: str, keys: int) -> dict[str, Any]:
        """Return the median run over the seeds of a point."""
        runs = []
        for seed in range(SEEDS.get((setting, name, rule, keys), 1)):
            key = {"setting": setting, "map": name, "rule": rule, "keys": keys, "seed": seed, **settings}
            result = workers.do(key, train, setting, name, rule, keys, seed, settings)
            runs.append({**key, **result, "mark": results.mark(key), "curve": f"{name}, {rule}"})
        runs.sort(key=lambda run: float(run["loss"]))
        return runs[len(runs) // 2] | {"losses": [run["loss"] for run in runs]}

    curves = (QUICK if quick else CURVES).items()
    points = [(*curve, keys) for curve, last in curves for keys in range(SPACING, last + 1, SPACING)]
    with Workers(results) as workers:
        trained = workers.together([partial(point, workers, *each) for each in points])
    features = {name: MAPS[name](torch.zeros(1, DIM)).shape[-1] for name in MAPS if name != "softmax"}
    shares = (0.5,) if quick else (0.5, 1, 2)
    untrained = [fixed(name, int(share * d_phi)) for name, d_phi in features.items() for share in shares]
    if not quick:
        panels = {}
        for setting in (1, 2):
            rows = [row for row in trained if row["setting"] == setting]
            panels[f"setting {setting}"] = render.series(rows, "curve", "keys", "loss")
        styles = {line: {"marker": "."} for lines in panels.values() for line in lines}
        render.curves(docs / "images" / "retrieval.png", panels, "keys", "loss", styles=styles, log="y")
        render.write(docs, "retrieval", "Associative retrieval", *_section(trained, untrained), results)
    return {"trained": trained, "fixed": untrained}


def _section(trained: list[dict[str, Any]], untrained: list[dict[str, Any]]) -> tuple[str, str]:
    features = {row["map"]: row["d_phi"] for row in untrained}
    solved, rows = {}, []
    for setting, name, rule in CURVES:
        points = [row for row in trained if (row["setting"], row["map"], row["rule"]) == (setting, name, rule)]
        most = max((point["keys"] for point in points if point["loss"] <= SOLVED), default=0)
        solved[setting, name, rule] = f"at least {most}" if most == points[-1]["keys"] else str(most)
        losses = (f"{point['keys']}: {' / '.join(f'{x:.4f}' for x in point['losses'])}" for point in points[-5:])
        row = {"setting": setting, "feature map": name, "rule": rule, "d_phi": features.get(name)}
        row |= {"keys solved": solved[setting, name, rule], "published": PUBLISHED.get(name) if setting == 1 else None}
        rows.append(row | {"loss by keys": ", ".join(losses), "mark": max(point["mark"] for point in points)})
    table, bounds = (
        render.rows_table({name: name for name in part[0] if name != "mark"}, part) for part in (rows, untrained)
    )
    conclusion = (
        f"Where keys are written again, the delta rule with DPFP-2 solves {solved[2, 'DPFP-2', 'delta']} keys and the "
        f"sum rule {solved[2, 'DPFP-2', 'sum']}; where each is written once, softmax attention solves "
        f"{solved[1, 'softmax', 'softmax']}, the sum rule about as many as its features "
        f"({solved[1, 'DPFP-2', 'sum']} with the 256 of DPFP-2), and FAVOR+ {solved[1, 'FAVOR+ 128', 'sum']}."
    )
    body = f"""Setting 1: each of S keys is written once. Setting 2: S writes are drawn with replacement (2 S in
training), and the last write of a key counts. Keys of dimension {DIM} with trained embeddings, one-hot values; batch
{SETTINGS["batch"]}, Adam, float32, the learning rate of the authors, {SETTINGS["rate"]:g}. The loss is half the squared
distance; 0.5 is chance. Keys are solved with a loss of at most {SOLVED:g} over all keys of {SETTINGS["texts"]} new
texts. A run ends when its keys are solved, after {SETTINGS["steps"]:,} steps, or after
{SETTINGS["evaluations without progress"]} evaluations without progress, {SETTINGS["evaluated every"]} steps apart (the
authors: 11). "Keys solved" is the largest number that was solved; training may have missed a smaller one (see the
plot). "Loss by keys" has the largest numbers of keys; where it has several seeds, their median decides. Published:
Schlag et al. 2021, the authors' logs.

{table}
![Loss over the number of keys](images/retrieval.png)

Without training: random keys of unit length after the feature map, each written once with strength 1. The best memory
is the pseudo-inverse. It is exact up to d_phi keys and has a loss of `(1 - d_phi / S) / 2` beyond; no rule can do
better. The delta rule approaches it up to d_phi keys if the keys are written again and again.

{bounds}"""
    return conclusion, body
