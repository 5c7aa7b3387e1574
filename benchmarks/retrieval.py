"""Associative retrieval: how many keys a memory of one size can hold, for each feature map and update rule.

Settings 1 and 2 of Schlag, Irie and Schmidhuber 2021 (arXiv 2102.11174, section 6.1). A text is a list of (key, value)
writes; then one key is asked for. Keys are tokens with trained embeddings, mapped to dimension 64 together with the
value they are written with; values are one-hot. The loss is half the squared distance of read and value: 1/2 is chance.

- Setting 1, capacity: S keys and S values, each once.
- Setting 2, re-writes: 2 S writes with keys and values drawn with replacement; the last write of a key counts.

One key of a text is asked for in training, all of them in the evaluation, as in the paper. Training ends with a loss of
0.001, or with 31 evaluations in a row that are no better than the best. The authors end with 11, which some runs need
longer than: keys are learned one by one, and the last ones stay at a loss of 0.5 until a write first answers them. In
setting 2 the paper evaluates on texts of S writes. So do we; the loss of the last weights on texts of 2 S writes, as in
training, stands beside it.

The closed-form part trains nothing: random keys, and the memory that is best for them, the pseudo-inverse.

Runs are kept in ``docs/results/retrieval.jsonl``, those that tell most first, and not made again by the same code: stop
it and start it again at will.
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

from benchmarks import report
from warmstart import figures
from warmstart.memory import FAVOR, delta_rule, dpfp, elu_plus_one, sum_normalise, sum_rule
from warmstart.progress import Progress

DIM, BATCH, RATE = 64, 32, 1e-3
BLOCK = 32  # writes: by time
SOLVED, EVERY, TEXTS, STRIKES, STEPS = 1e-3, 100, 20, 30, 30_000
QUICK_STEPS = 2_000
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "ELU+1": elu_plus_one,
    "DPFP-1": dpfp,
    "DPFP-2": partial(dpfp, nu=2),
    "DPFP-3": partial(dpfp, nu=3),
    "FAVOR+ 128": FAVOR(DIM, 128),
    "softmax": nn.Identity(),
}
PUBLISHED = {"ELU+1": 40, "DPFP-1": 100, "DPFP-2": 240, "DPFP-3": 340, "softmax": 340}  # keys solved, authors' logs
Run = tuple[int, str, str, int]  # setting, feature map, rule, S
FIRST: list[Run] = [
    *((1, name, "sum", size) for name, size in (("ELU+1", 40), ("DPFP-1", 100), ("FAVOR+ 128", 20))),
    *((2, name, rule, 20) for name in ("DPFP-1", "DPFP-2") for rule in ("sum", "delta")),
    *((1, name, "sum", size) for name, size in (("DPFP-2", 240), ("DPFP-3", 340))),
    *((2, "DPFP-2", "delta", size) for size in (200, 180, 160, 140, 120)),
]
# Training can miss what a memory could hold: the median counts.
SEEDS: dict[Run, int] = {(2, "DPFP-2", "delta", size): 5 if size == 200 else 3 for size in (120, 140, 160, 180, 200)}
REDUCED: list[Run] = [
    *((1, "ELU+1", "sum", size) for size in (20, 40, 60)),
    *((1, "DPFP-1", "sum", size) for size in (20, 60)),
    *((2, "DPFP-1", rule, size) for rule, size in (("sum", 20), ("delta", 20), ("delta", 40))),
]
CURVES = [(1, name, "softmax" if name == "softmax" else "sum", 600) for name in MAPS]
CURVES += [(2, name, rule, 200) for name in ("DPFP-1", "DPFP-2", "DPFP-3") for rule in ("sum", "delta")]
SPACING = 20  # keys between two points of a curve
FIXED_SIZES = (16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512)
PASSES = 30


class Memory(nn.Module):
    """Embeddings and maps around a memory of S keys and S one-hot values.

    With one-hot values a read is made of the weights that each write has in it: entry c of ``S phi(q)`` is the sum over
    the writes of value c. So the memory itself need not be formed for one query.
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
    """Draw n texts: keys and values (n, L), and the value (n, S) each key ends with, -1 where it was never written.

    L is S in setting 1 and ``turns`` S in setting 2.
    """
    if setting == 1:
        keys, values = (torch.rand(n, size, generator=generator).argsort(-1) for _ in range(2))
    else:
        keys, values = (torch.randint(size, (n, turns * size), generator=generator) for _ in range(2))
    # The place of the last write of each key: the highest index, not the order of scattered writes, decides.
    places = torch.arange(keys.shape[1]).expand(keys.shape)
    last = torch.full((n, size), -1).scatter_reduce(-1, keys, places, "amax")
    return keys, values, torch.where(last < 0, -1, values.gather(-1, last.clamp(min=0)))


def loss(reads: Tensor, right: Tensor) -> Tensor:
    """Return half the squared distance (...) of reads (..., S) to one-hot values (...)."""
    at_right = reads.gather(-1, right[..., None])[..., 0]
    return (reads.square().sum(-1) - 2 * at_right + 1) / 2


def evaluate(memory: Memory, setting: int, generator: torch.Generator, turns: int = 1) -> float:
    """Return the mean loss over all written keys of texts of its own."""
    keys, values, right = draw(setting, memory.size, TEXTS, generator, turns)
    with torch.no_grad():
        every_key = torch.arange(memory.size).expand(TEXTS, -1)
        losses = loss(memory(keys, values, every_key), right.clamp(min=0))
    return float(losses[right >= 0].mean())


def train(setting: int, name: str, rule: str, size: int, steps: int = STEPS, seed: int = 0) -> dict[str, Any]:
    """Train one memory; return best ``loss``, ``steps``, in setting 2 also ``at 2 S``, the loss of the last weights."""
    generator = torch.Generator().manual_seed(size + 1000 * seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(size + 1000 * seed)
        memory = Memory(size, copy.deepcopy(MAPS[name]), rule)  # random directions are drawn anew below
    optimizer = torch.optim.Adam(memory.parameters(), lr=RATE)
    best, strikes, step = float("inf"), 0, 0
    while step < steps and best > SOLVED and strikes <= STRIKES:
        step += 1
        if isinstance(memory.feature_map, FAVOR):
            memory.feature_map.redraw(step)
        keys, values, right = draw(setting, size, BATCH, generator)
        asked = keys.gather(1, torch.randint(keys.shape[1], (BATCH, 1), generator=generator))
        mean = loss(memory(keys, values, asked), right.gather(1, asked)).mean()
        optimizer.zero_grad()
        mean.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % EVERY == 0:
            now = evaluate(memory, setting, generator)
            strikes = 0 if now < best else strikes + 1
            best = min(best, now)
    longer = {"at 2 S": evaluate(memory, setting, generator, 2)} if setting == 2 else {}
    return {"loss": best, "steps": step, **longer}


def fixed(name: str, size: int) -> dict[str, float]:
    """Write S random keys once and read them, without training: loss of each rule and of the best memory there is."""
    generator = torch.Generator().manual_seed(size)
    phi = functional.normalize(MAPS[name](torch.randn(size, DIM, generator=generator, dtype=torch.float64)), dim=-1)
    k, v = phi[None, None], torch.eye(size, dtype=torch.float64)[None, None]
    right = torch.arange(size)
    beta = torch.ones(1, 1, size, dtype=torch.float64)
    _, (S, z) = sum_rule(k, k, v)
    found = {"sum": loss(phi @ S[0, 0].T / (phi @ z[0, 0])[:, None], right)}
    for passes in (1, PASSES):
        S = torch.zeros_like(S)
        for _ in range(passes):
            _, S = delta_rule(k, k, v, beta, state=S)
        found["delta" if passes == 1 else f"delta, {passes} passes"] = loss(phi @ S[0, 0].T, right)
    found["best memory"] = loss(phi @ torch.linalg.pinv(phi), right)
    return {rule: float(values.mean()) for rule, values in found.items()} | {"d_phi": float(phi.shape[1])}


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Train every memory; write ``results/retrieval.jsonl``, ``images/retrieval.png``, a section of ``benchmarks.md``.

    Parameters
    ----------
    data : Path
        Not read: the texts are drawn.
    docs : Path
        Folder to write to.
    quick : bool
        A reduced grid of short runs, about 30 CPU seconds; nothing is written.
    progress : callable of (stage, done, total), optional

    Returns
    -------
    dict
        ``trained``: rows of setting, map, rule, size, loss, steps; ``fixed``: rows of map, size and losses.
    """
    if quick:
        return {"trained": [_row(job, train(*job, QUICK_STEPS)) for job in REDUCED], "fixed": _fixed((32, 96))}
    book = report.Book(docs / "results" / "retrieval.jsonl", report.code_digest("warmstart/memory/feature_maps.py"))
    results: dict[str, Any] = {"trained": [], "fixed": _fixed(FIXED_SIZES)}

    def measure(job: Run) -> dict[str, Any]:
        if progress:
            progress(_name(job), len(results["trained"]), None)
        runs = [book.do(_name(job, seed), partial(train, *job, seed=seed)) for seed in range(SEEDS.get(job, 1))]
        runs.sort(key=lambda run: float(run["loss"]))
        row = _row(job, runs[len(runs) // 2]) | {"losses": [run["loss"] for run in runs]}
        results["trained"] += [row] if row not in results["trained"] else []
        return row

    grid = [(s, name, rule, n) for s, name, rule, last in CURVES for n in range(SPACING, last + 1, SPACING)]
    for job in grid:
        if book.has(_name(job)) and job not in SEEDS:
            measure(job)
    for job in FIRST:
        measure(job)
        _write(results, docs)
    for setting, name, rule, largest in CURVES:
        failed = 0  # a curve ends with the second size in a row that is not solved
        for size in range(SPACING, largest + 1, SPACING):
            failed = 0 if measure((setting, name, rule, size))["loss"] <= SOLVED else failed + 1
            _write(results, docs)
            if failed == 2:
                break
    return results


def _name(job: Run, seed: int = 0) -> str:
    return "setting {}, {}, {}, {} keys".format(*job) + (f", seed {seed}" if seed else "")


def _row(job: Run, result: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(("setting", "map", "rule", "size"), job, strict=True)) | result


def _fixed(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    return [{"map": name, "size": size, **fixed(name, size)} for name in MAPS if name != "softmax" for size in sizes]


def _write(results: dict[str, Any], docs: Path) -> None:
    """Write the section of docs/benchmarks.md and the plot."""
    trained, still = results["trained"], results["fixed"]
    dims = {row["map"]: int(row["d_phi"]) for row in still}
    rules = [rule for rule in still[0] if rule not in ("map", "size", "d_phi")]
    bound = [
        [name, d_phi, size, *(row[rule] for rule in rules)]
        for name, d_phi in dims.items()
        for row in still
        for size in [row["size"]]
        if row["map"] == name and size in (d_phi // 2, d_phi, 2 * d_phi)
    ]
    body = f"""## Associative retrieval: how many keys a memory holds

Keys of dimension {DIM}, trained embeddings, one-hot values; batch {BATCH}, Adam {RATE:g}. Loss: half the squared
distance, 0.5 is chance; solved: at most {SOLVED:g} over all keys of {TEXTS} texts of its own. A run ends when it has
solved its keys, after {STEPS:,} steps, or after {STRIKES + 1} evaluations without progress, {EVERY} steps apart (the
authors: 11).

Setting 1, every key written once; published: Schlag et al. 2021, the authors' logs:

{_solved(trained, 1, dims)}
Setting 2, S writes drawn with replacement, the last of a key counts; in training 2 S writes. Where several losses are
given they are of several seeds, and the median counts: training can miss what a memory could hold, by a key or two,
each of which costs 0.5 / S.

{_solved(trained, 2, dims)}
![Loss over the number of keys](images/retrieval.png)

Without training: random keys of unit length after the feature map, each written once with strength 1. The best memory
is the pseudo-inverse: exact up to d_phi keys, `(1 - d_phi / S) / 2` beyond; no rule can do better. The delta rule,
given the keys over and over, goes there up to d_phi keys; beyond there is no memory for it to settle on.

{report.table(["feature map", "d_phi", "keys", *rules], bound)}"""
    _draw(docs / "images" / "retrieval.png", trained, still)
    report.write(docs, "retrieval", body)


def _solved(trained: list[dict[str, Any]], setting: int, dims: dict[str, int]) -> str:
    """Return the table of a setting: the most keys that each memory solved, and its losses at the largest sizes."""
    rows = []
    for name, rule in dict.fromkeys((row["map"], row["rule"]) for row in trained if row["setting"] == setting):
        runs = [row for row in trained if (row["setting"], row["map"], row["rule"]) == (setting, name, rule)]
        runs.sort(key=lambda row: int(row["size"]))
        solved = max((row["size"] for row in runs if row["loss"] <= SOLVED), default=0)
        ends = ", ".join(f"{row['size']}: {' / '.join(f'{loss:.4f}' for loss in row['losses'])}" for row in runs[-5:])
        own = PUBLISHED.get(name) if setting == 1 else ", ".join(f"{row['at 2 S']:.4f}" for row in runs[-5:])
        rows.append([name, rule, dims.get(name), solved, ends, own])
    last = "published" if setting == 1 else "the same after 2 S writes"
    headers = ["feature map", "rule", "d_phi", "keys solved", "loss at the largest sizes that were run", last]
    return report.table(headers, rows)


def _draw(path: Path, trained: list[dict[str, Any]], still: list[dict[str, Any]]) -> None:
    figure, axes = figures.figure(3)
    for setting, axis in zip((1, 2), axes, strict=False):
        for name, rule in dict.fromkeys((row["map"], row["rule"]) for row in trained if row["setting"] == setting):
            points = sorted(
                (row["size"], row["loss"])
                for row in trained
                if (row["setting"], row["map"], row["rule"]) == (setting, name, rule)
            )
            style = "x--" if rule == "sum" and setting == 2 else "o-"
            axis.plot(
                *zip(*points, strict=True),
                style,
                color=f"C{list(MAPS).index(name)}",
                markersize=3,
                label=f"{name}, {rule}",
            )
        axis.axhline(SOLVED, color="grey", linestyle=":", label="solved")
        axis.set(yscale="log", title=f"setting {setting}, trained")
    for i, name in enumerate(dict.fromkeys(row["map"] for row in still)):
        rows = [row for row in still if row["map"] == name]
        sizes = [row["size"] for row in rows]
        axes[2].plot(
            sizes, [row["best memory"] for row in rows], color=f"C{i}", label=f"{name}, d_phi {rows[0]['d_phi']:.0f}"
        )
        axes[2].plot(sizes, [row["delta"] for row in rows], "--", color=f"C{i}", linewidth=1)
    axes[2].set(title="fixed keys: best (full), delta (dashed)")
    for axis in axes:
        axis.set(xlabel="keys", ylabel="loss")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figures.save_figure(figure, path)
