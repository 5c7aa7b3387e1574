"""Fast weights as language models: random features, no positions, and a state that goes on over the border of a window.

The protocol of `benchmarks.mixers`, shortened, and from the warm start alone, with which every memory ended lower
there. All memories are of one size: 64 features for a head of 32. `FAVOR` has 32 directions, fixed by a seed.

Arms with random windows are compared with and without positions. Arms that read the text in order either go on from the
state of the window before, without its gradient, or forget it; both read the same windows in the same order. There the
windows of a step stand in as many places of the text, equally far apart, and each moves on by its length.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks import claims, harness, render
from benchmarks.decoders import Recipe, Start, prepare, train_start
from benchmarks.harness import Results, Workers
from benchmarks.mixers import SCALE, SHAPE, STEP, WARMUP_STEPS
from benchmarks.training import train
from warmstart.adapters import load_into, replace_attention
from warmstart.counts import PairStatistics
from warmstart.errors import InputError
from warmstart.finetune import Phase
from warmstart.memory import FAVOR, FastWeightAttention
from warmstart.ngrams import NGramCounts
from warmstart.progress import Progress

TOKENS, SEARCH_TOKENS, RATE, SEEDS = 1_000_000, 400_000, 2.5e-3, (0, 1, 2)
RANDOM, RESET, CARRIED = "random", "in order, reset", "in order, carried"


class Arm(NamedTuple):
    """A model and how it reads.

    Attributes
    ----------
    memory : str
        One of `MEMORIES`.
    positions : bool
        False: the embeddings of positions are zero and not trained.
    windows : str
        `RANDOM`, `RESET` or `CARRIED`.
    """

    memory: str
    positions: bool
    windows: str = RANDOM


class Carrying(FastWeightAttention):
    """Fast weights that go on from the state of the last call while `carry` is True."""

    carry: bool = False
    state: Any = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (batch, length, dim), see `MemoryLayer.advance`."""
        if not self.carry:
            return super().forward(x, mask)
        read, after = self.advance(x, self.state, mask)
        self.state = detached(after)
        return read


def detached(state: Any) -> Any:
    """Return a state, a tensor or a named tuple of states, without its gradient."""
    if isinstance(state, Tensor):
        return state.detach()
    return type(state)(*map(detached, state))


@contextmanager
def reading(model: nn.Module, carry: bool) -> Iterator[None]:
    """Read from empty memories on, carrying their states from call to call or not; give back the states before."""
    memories = [module for module in model.modules() if isinstance(module, Carrying)]
    before = [(memory.carry, memory.state) for memory in memories]
    for memory in memories:
        memory.carry, memory.state = carry, None
    try:
        yield
    finally:
        for memory, (carried, state) in zip(memories, before, strict=True):
            memory.carry, memory.state = carried, state


def favor(rule: str, dim: int, heads: int) -> Carrying:
    """Return a memory with as many random features as DPFP has, two for each direction."""
    return Carrying(dim, heads, FAVOR(dim // heads, dim // heads), rule)


FAVOR_SUM, FAVOR_DELTA, DPFP_DELTA = "FAVOR+, sum rule", "FAVOR+, delta rule", "DPFP, delta rule"
MEMORIES: dict[str, Callable[[int, int], nn.Module]] = {
    FAVOR_SUM: partial(favor, "sum"),
    FAVOR_DELTA: partial(favor, "delta"),
    DPFP_DELTA: Carrying,
}
PAIRS = (
    *((Arm(memory, True), Arm(memory, False)) for memory in MEMORIES),
    (Arm(DPFP_DELTA, False, RESET), Arm(DPFP_DELTA, False, CARRIED)),
)
QUICK = ((Arm(FAVOR_DELTA, False),), (Arm(DPFP_DELTA, False, CARRIED),))


def build(arm: Arm, seed: int, pairs: PairStatistics, shape: Mapping[str, int] = SHAPE) -> Start:
    """Return the warm start of an arm; its random weights are drawn with the seed."""
    start = Start.random("gpt2", seed, pairs.vocab_size, shape, tie_word_embeddings=False)
    replace_attention(start.model, MEMORIES[arm.memory])
    load_into(start.model, pairs, scale=SCALE)
    if not arm.positions:
        nn.init.zeros_(start.model.base_model.wpe.weight).requires_grad_(False)
    return start


def in_order(ids: NDArray[Any], n: int, length: int) -> NDArray[np.int64]:
    """Return windows (steps, n, length + 1) of a text: row i of every step goes on where that of the step before ended.

    Examples
    --------
    >>> in_order(np.arange(9), 2, 2).tolist()
    [[[0, 1, 2], [4, 5, 6]], [[2, 3, 4], [6, 7, 8]]]
    """
    steps = (ids.size - 1) // (n * length)
    firsts = length * (np.arange(steps)[:, None] + steps * np.arange(n))
    windows: NDArray[np.int64] = ids[firsts[..., None] + np.arange(length + 1)].astype(np.int64)
    return windows


@torch.no_grad()
def score(start: Start, windows: NDArray[np.int64], carry: bool) -> float:
    """Return the mean loss on windows (steps, n, length + 1) that follow each other."""
    with reading(start.model, carry):
        losses = [start.losses(torch.from_numpy(ids).to(harness.device())).float().mean() for ids in windows]
    return float(torch.stack(losses).mean())


def learn(folder: str, arm: Arm, seed: int, rate: float, steps: int, test: bool) -> dict[str, Any]:
    """Build and train an arm; see `benchmarks.decoders.train_start`."""
    recipe = Recipe(min(1.0, WARMUP_STEPS / steps), beta2=0.95, blocks=1.0)
    if arm.windows == RANDOM:
        return train_start(folder, partial(build, arm, seed), seed, rate, recipe, SHAPE, steps, (0, steps), test)
    return learn_in_order(folder, arm, seed, rate, recipe, steps, test)


def learn_in_order(
    folder: str, arm: Arm, seed: int, rate: float, recipe: Recipe, steps: int, test: bool
) -> dict[str, Any]:
    """Build and train an arm on windows in order, from a place of the text that the seed chooses.

    Returns
    -------
    dict
        As of `benchmarks.decoders.train_start`; ``other``: loss on the test text, read in the way of the other arm.
    """
    began = time.process_time()
    start = build(arm, seed, PairStatistics.of(NGramCounts.load(Path(folder, "pairs.safetensors"))))
    made = time.process_time() - began
    start.to(harness.device())
    n, length, carry = SHAPE["windows"], SHAPE["context"], arm.windows == CARRIED
    texts = {part: in_order(np.load(Path(folder, f"{part}.npy")), n, length) for part in ("train", "valid", "test")}
    first = int(np.random.default_rng(seed).integers(0, len(texts["train"]) - steps + 1))
    read, valid = texts["train"][first : first + steps], texts["valid"][: SHAPE["scored"] // n]
    with reading(start.model, carry):
        result = train(
            start.optimizers(rate, recipe),
            lambda step: start.losses(torch.from_numpy(read[step]).to(harness.device())).mean(),
            steps,
            Phase("all", {"all": rate}, warmup=recipe.warmup, floor=0.0),
            partial(score, start, valid, carry),
            (0, steps),
        )
    if test:
        result |= {"test": score(start, texts["test"], carry), "other": score(start, texts["test"], not carry)}
    return {**result, "made": made, "parameters": start.n_parameters}


class Bench:
    """The runs of this bench, kept or made.

    Parameters
    ----------
    results : Results
    workers : Workers, optional
        Without them a run that is not kept is an error.
    folder : str
        Of `benchmarks.decoders.prepare`.
    quick : bool
        Two arms, two steps.
    """

    def __init__(self, results: Results, workers: Workers | None = None, folder: str = "", quick: bool = False) -> None:
        self.results, self.workers, self.folder, self.quick = results, workers, folder, quick
        self.pairs = QUICK if quick else PAIRS

    def key(self, arm: Arm, seed: int, rate: float, tokens: int) -> dict[str, Any]:
        """Return the whole configuration of a run."""
        key = {"memory": arm.memory, "positions": arm.positions, "order": arm.windows, "start": "warm", "seed": seed}
        key |= {"rate": rate, **SHAPE, "tokens": tokens, "warmup_steps": WARMUP_STEPS, "beta2": 0.95, "clip": 1.0}
        return key | {"scale": SCALE, "precision": harness.precision(), "text": "wikitext-2"}

    def run(self, arm: Arm, seed: int, rate: float, tokens: int = TOKENS) -> dict[str, Any]:
        """Return the result of a run; only whole runs read the test text."""
        key, steps = self.key(arm, seed, rate, tokens), 2 if self.quick else tokens // STEP
        if self.workers is None:
            kept: dict[str, Any] = self.results.do(key, partial(_missing, key))
            return kept
        made: dict[str, Any] = self.workers.do(key, learn, self.folder, arm, seed, rate, steps, tokens == TOKENS)
        return made

    def search(self, arm: Arm) -> float:
        """Return the rate that an arm finds by short runs with the first seed."""
        best, _ = harness.search(
            lambda at: float(self.run(arm, SEEDS[0], at["rate"], SEARCH_TOKENS)["nats"][-1]), {"rate": RATE}, trials=3
        )
        return best["rate"]

    def rates(self) -> dict[Arm, float]:
        """Return the rate of every arm; arms that read in order have that of the same model with random windows."""
        arms = [arm for pair in self.pairs for arm in pair]
        if self.quick:
            return dict.fromkeys(arms, RATE)
        searched = [arm for arm in arms if arm.windows == RANDOM]
        found = self._together([partial(self.search, arm) for arm in searched])
        own = dict(zip(searched, found, strict=True))
        return {arm: own[arm._replace(windows=RANDOM)] for arm in arms}

    def first(self, rates: Mapping[Arm, float]) -> None:
        """Run every arm with the first seed."""
        self._together([partial(self.run, arm, SEEDS[0], rate) for arm, rate in rates.items()])

    def others(self, rates: Mapping[Arm, float]) -> None:
        """Run the other seeds of the memory with the lowest validation loss, and of the arms that read in order."""

        def loss(pair: Sequence[Arm]) -> float:
            return min(float(self.run(arm, SEEDS[0], rates[arm])["nats"][-1]) for arm in pair)

        arms = (*min(self.pairs[:-1], key=loss), *self.pairs[-1])
        self._together([partial(self.run, arm, seed, rates[arm]) for seed in SEEDS[1:] for arm in arms])

    def rows(self, rates: Mapping[Arm, float]) -> list[dict[str, Any]]:
        """Return every arm with the runs of the seeds that both arms of its pair have."""
        rows = []
        for pair in self.pairs:
            kept = [s for s in SEEDS if all(self.results.has(self.key(arm, s, rates[arm], TOKENS)) for arm in pair)]
            for arm in pair:
                runs = [self.run(arm, seed, rates[arm]) for seed in kept or SEEDS[:1]]
                mark = self.results.mark(*(self.key(arm, seed, rates[arm], TOKENS) for seed in kept))
                rows.append({**arm._asdict(), "rate": rates[arm], "runs": runs, "mark": mark})
        return rows

    def _together(self, jobs: Sequence[Any]) -> list[Any]:
        return [job() for job in jobs] if self.workers is None else self.workers.together(jobs)


def _missing(key: Mapping[str, Any]) -> NoReturn:
    names = ", ".join(f"{name} {key[name]}" for name in ("memory", "positions", "order", "seed", "rate", "tokens"))
    raise InputError(f"expected the kept result of {names}, found none; run python -m benchmarks fast_weights")


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Run every arm and write the section, then the other seeds, and write it again; ``quick``: two arms, two steps."""
    results = Results(None if quick else docs / "results" / "fast_weights.jsonl", __name__)
    wiki, size = data / "wikitext-2", 512 if quick else SHAPE["vocab_size"]
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder, Workers(results, progress) as workers:
        prepare(folder, wiki / "train.txt", [wiki / "valid.txt", wiki / "test.txt"], size)
        bench = Bench(results, workers, folder, quick)
        rates = bench.rates()
        bench.first(rates)
        if not quick:
            write(bench.rows(rates), docs, results)
            bench.others(rates)
            write(bench.rows(rates), docs, results)
    return {"arms": bench.rows(rates)}


def write_kept(docs: Path) -> None:
    """Write the section from the results that are kept: every arm with the first seed, other seeds if they are there.

    Raises
    ------
    InputError
        A result of the first seed is missing.
    """
    results = Results(docs / "results" / "fast_weights.jsonl", __name__)
    bench = Bench(results)
    write(bench.rows(bench.rates()), docs, results)


def write(rows: Sequence[Mapping[str, Any]], docs: Path, results: Results) -> None:
    """Write the section of docs/benchmarks.md."""
    title = "Fast weights: random features, no positions, carried states"
    render.write(docs, "fast_weights", title, *section(rows), results)


def section(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the conclusion and the body of the section."""

    def values(row: Mapping[str, Any], name: str) -> list[float]:
        return [run[name][-1] if isinstance(run[name], list) else run[name] for run in row["runs"]]

    def cell(name: str, row: Mapping[str, Any]) -> str:
        return render.spread(values(row, name))

    drawn, ordered = [row for row in rows if row["windows"] == RANDOM], [r for r in rows if r["windows"] != RANDOM]
    ends = [f"{np.mean(values(row, 'test')):.3f}" for row in (*drawn, *ordered)]
    sums, deltas, dpfp = (", ".join(ends[i : i + 2]) for i in (0, 2, 4))
    conclusion = (
        f"With and without positions, FAVOR+ has {sums} with the sum rule and {deltas} with the delta rule, and DPFP "
        f"with the delta rule {dpfp} nats on the test text; reading in order, without positions, DPFP has {ends[7]} "
        f"with the state carried over the borders of windows and {ends[6]} with a reset."
    )
    shared: dict[str, Any] = {"rate": lambda row: f"{row['rate']:g}", "seeds": lambda row: len(row["runs"])}
    shared |= {"step 0": lambda row: render.nats(row["runs"][0]["nats"][0]), "validation": partial(cell, "nats")}
    seconds = {"CPU seconds": lambda row: float(np.mean(values(row, "seconds")))}
    by_memory: dict[str, Any] = {"memory": "memory", "positions": lambda row: "yes" if row["positions"] else "no"}
    by_state = {"state": lambda row: row["windows"].removeprefix("in order, ")}
    own = {"test": partial(cell, "test")}
    other = {"test, read in the other way": partial(cell, "other")}
    body = f"""{claims.claimed("fast_weights")}

The GPT-2 and the protocol of "Memories as language models", V = {SHAPE["vocab_size"]:,}, windows of {SHAPE["context"]},
from the warm start alone, which was the better one there, and {TOKENS / 1e6:g} M tokens. Every memory has 64 features
for a head of 32, so all are of one size; FAVOR+ has 32 orthogonal directions, drawn once. Keys see a learned mix of a
token and the one before. No positions: their embeddings are zero and stay so. Every arm of the first table finds its
rate by runs of {SEARCH_TOKENS:,} tokens with the first seed, from {RATE:g} on, until the best rate has a neighbour on
both sides. More seeds: the
memory with the lowest validation loss, and the second table.

{render.rows_table(by_memory | shared | own | seconds, drawn)}
DPFP with the delta rule and no positions, on windows in order: each of the {SHAPE["windows"]} windows of a step goes on
where that of the step before ended. Carried: memories, and the token before, go on from the last window in training
and evaluation, without its gradient. Reset: they forget, and see the same windows. Both have the rate of the same model
with random windows. The last column reads the test text with the state that the arm was not trained with. Validation
windows are not those of the first table.

{render.rows_table(by_state | shared | own | other | seconds, ordered)}"""
    return conclusion, body
