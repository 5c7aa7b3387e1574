"""What counts beside a decoder cost: time of training and of generation, bytes of the tables, and what pruning loses.

Times are CPU seconds of one thread. Both sides of a comparison are timed in turns in one fresh process, because the
speed of a machine changes from minute to minute; a ratio is the median of the ratios of the turns. A folder holds the
data, see `benchmarks.beside_decoders.prepare`.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import harness, render
from benchmarks.beside_decoders import ORDER
from benchmarks.decoders import autocast
from benchmarks.harness import Results
from benchmarks.starts import OURS, SHAPE, build
from warmstart.corpus import Corpus
from warmstart.counts import PairStatistics
from warmstart.files import map_arrays
from warmstart.finetune import decoder_schedule
from warmstart.finetune.evidence import ExpertTable, expert_table
from warmstart.finetune.targets import CountedTargets
from warmstart.finetune.windows import Windows
from warmstart.gate import Gate
from warmstart.hub import CountedForCausalLM
from warmstart.hub.losses import network_nats
from warmstart.kneser_ney import KneserNey
from warmstart.layers.counted import fused_counted_cross_entropy
from warmstart.left_out import left_out
from warmstart.mixture import Experts, Mixture
from warmstart.ngrams import NGramCounts
from warmstart.solution import class_prior
from warmstart.solving import Recipe as Solution
from warmstart.solving import solve

EXPERTS = "ngrams,cache"
PRUNES = ((), (0, 0, 1), (0, 0, 1, 2), (0, 0, 2, 4))
STEPS_A_TURN, TURNS = 4, 12
PROMPT, NEW = 16, 48  # tokens; together they are all that the decoder sees
CALLS = {1: 4, 8: 2, 32: 1}  # of `generate` in a turn, by batch
WEIGHT = 0.5  # of counted targets; their cost does not depend on it
ALONE, BESIDE = "decoder alone", "n-grams and cache beside it"
TARGETS, FUSED = "counted targets, from logits", "counted targets, from hidden states"
LEAST_TRAINING, LEAST_GENERATION = 0.9, 0.8
TABLES = ("last", "offsets", "probs", "gammas", "sizes")

Step = Callable[[Mapping[str, Tensor]], Tensor]


def corpus_of(folder: str, part: str) -> Corpus:
    """Return a corpus of the folder."""
    return Corpus.open(Path(Path(folder, f"{part}.folder").read_text(encoding="utf-8")))


def model_of(folder: str) -> CountedForCausalLM:
    """Return a spectral GPT-2 beside n-grams and cache."""
    counts = NGramCounts.load(Path(folder, "counts.safetensors"))
    with np.load(Path(folder, f"{EXPERTS}.npz")) as arrays:
        gate = Gate(tuple(arrays["sizes"].tolist()), arrays["weights"])
    experts = Experts(counts.separator, class_prior(counts.levels[0].counts), KneserNey(counts), cache=True)
    pairs = PairStatistics.of(NGramCounts.load(Path(folder, "pairs.safetensors")))
    return CountedForCausalLM.beside(build("gpt2", OURS[1], 0, pairs).model, Mixture(experts, gate))


def in_turns(sides: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Return the CPU seconds of functions, called one after another in each of some turns; one turn before warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, work in sides.items():
            began = time.process_time()
            work()
            if turn:
                seconds[name].append(time.process_time() - began)
    return seconds


def training(folder: str, turns: int, steps: int, windows: int) -> dict[str, Any]:
    """Time steps of training, each on some windows of a `DataLoader`: loss, gradients and AdamW.

    Returns
    -------
    dict
        ``seconds`` of a turn of some steps on each side, and ``tokens`` of a turn.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    corpus, length = corpus_of(folder, "train"), SHAPE["context"]
    arrays, facts = map_arrays(Path(folder, f"{EXPERTS}.train"))
    known = facts["experts"]
    documents = known["left_out"], known["new"]
    table = ExpertTable(known["key"], corpus.digest, *documents, arrays["probs"], arrays["buckets"])
    targets = CountedTargets(NGramCounts.load(Path(folder, "counts.safetensors")), corpus, folder=Path(folder))
    model = model_of(folder)
    plain, places = Windows(corpus, length), Windows(corpus, length, labels="places")
    take = partial(stepper, steps, windows)
    bases = [deepcopy(model.base) for _ in range(3)]
    sides = {
        ALONE: take(bases[0], plain, partial(alone_loss, bases[0])),
        BESIDE: take(model, Windows(corpus, length, table), partial(beside_loss, model)),
        TARGETS: take(bases[1], places, partial(targets_loss, bases[1], targets)),
        FUSED: take(bases[2], places, partial(fused_loss, bases[2], targets)),
    }
    return {"seconds": in_turns(sides, turns), "tokens": steps * windows * (length - 1)}


def stepper(steps: int, size: int, model: nn.Module, windows: Windows, loss: Step) -> Callable[[], None]:
    """Return what takes some steps of training, each on ``size`` windows. Rates are 0, which takes as long."""
    schedule = decoder_schedule(model=model)
    optimizer = schedule.optimizer(model.train())
    loader = DataLoader(windows, size, shuffle=True)
    batches: Iterator[Any] = chain.from_iterable(repeat(loader))

    def turn() -> None:
        for _ in range(steps):
            batch = next(batches)
            with autocast(torch.device("cpu")):
                value = loss(batch)
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return turn


def alone_loss(base: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the loss of the decoder, by the fused cross-entropy."""
    ids = batch["input_ids"]
    spot = slice(0, ids.shape[1] - 1)
    nats, _ = network_nats(base, True, ids[:, 1:], spot, base.config.vocab_size, input_ids=ids)
    mean: Tensor = nats.mean()
    return mean


def beside_loss(model: CountedForCausalLM, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the loss of the mixture and of the decoder."""
    names = ("input_ids", "labels", "expert_probs", "expert_buckets")
    loss: Tensor = model(**{name: batch[name] for name in names}).loss
    return loss


def targets_loss(base: Any, targets: CountedTargets, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the loss of the decoder with counted targets, from logits."""
    logits: Tensor = base(input_ids=batch["input_ids"]).logits
    return targets.loss(logits, batch["labels"], WEIGHT)


def fused_loss(base: Any, targets: CountedTargets, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the same loss from hidden states."""
    x = base.base_model(input_ids=batch["input_ids"]).last_hidden_state[:, :-1].flatten(0, 1)
    places = batch["labels"][:, 1:].flatten()
    here = places >= 0
    rows = targets.rows(places[here])
    losses: Tensor = fused_counted_cross_entropy(x, base.lm_head.weight, targets.tokens(places), rows, WEIGHT)
    total: Tensor = losses.sum() / here.sum()
    return total


def generation(folder: str, batch: int, sampled: bool, turns: int) -> dict[str, Any]:
    """Time ``generate`` from the validation text.

    Returns
    -------
    dict
        ``seconds`` of a turn on each side, and the new ``tokens`` of a turn.
    """
    torch.set_num_threads(1)
    ids, model = corpus_of(folder, "valid").tokens, model_of(folder)
    model.train(False)
    firsts = np.linspace(0, ids.size - PROMPT, batch * CALLS[batch]).astype(int)
    prompts = torch.from_numpy(np.stack([ids[first : first + PROMPT] for first in firsts]).astype(np.int64))
    options = {"max_new_tokens": NEW, "do_sample": sampled, "pad_token_id": 0}

    def texts(of: Any) -> None:
        torch.manual_seed(0)
        for rows in torch.split(prompts, batch):
            found = of.generate(rows, attention_mask=torch.ones_like(rows), **options)
            assert found.shape[1] == PROMPT + NEW  # noqa: S101 - there is no end of a text

    seconds = in_turns({ALONE: partial(texts, model.base), BESIDE: partial(texts, model)}, turns)
    return {"seconds": seconds, "tokens": len(prompts) * NEW}


def tables(folder: str, prune: Sequence[int]) -> dict[str, Any]:
    """Measure tables with rare n-grams pruned.

    Returns
    -------
    dict
        ``ngrams``: how many there are; bytes on ``disk`` and in ``memory``; nats a token of the validation text by
        n-grams alone, ``nats``, and with the cache, ``mixed``.
    """
    counts = NGramCounts.load(Path(folder, "counts.safetensors"))
    mixture = solve(counts, Solution(tuple(EXPERTS.split(",")), ORDER, tuple(prune))).mixture
    ngrams, valid = mixture.experts.ngrams, corpus_of(folder, "valid")
    assert ngrams is not None  # noqa: S101 - asked for
    path = Path(folder, f"pruned{'-'.join(map(str, prune))}.safetensors")
    ngrams.save(path)
    text = valid.tokens, valid.documents
    return {
        "ngrams": sum(ngrams.n_ngrams),
        "disk": path.stat().st_size,
        "memory": sum(getattr(ngrams, name).nbytes for name in TABLES),
        "nats": -float(ngrams.log_probs(*text).mean()),
        "mixed": -float(mixture.score(*text).log_probs.mean()),
    }


def precomputation(folder: str) -> dict[str, Any]:
    """Measure what is computed once before training: CPU ``seconds`` of each part, and the ``tokens`` of the text."""
    torch.set_num_threads(1)
    counts, train = NGramCounts.load(Path(folder, "counts.safetensors")), corpus_of(folder, "train")
    seconds, place = {}, Path(folder, "precomputed")
    place.mkdir()
    began = time.process_time()
    experts = solve(counts, Solution(tuple(EXPERTS.split(",")), ORDER)).mixture.experts
    seconds["tables and gate"], began = time.process_time() - began, time.process_time()
    expert_table(experts, train, counts, folder=place)
    seconds["probabilities"], began = time.process_time() - began, time.process_time()
    left_out(counts, train, folder=place)
    seconds["rows"] = time.process_time() - began
    return {"seconds": seconds, "tokens": train.n_tokens}


def measure(folder: str, results: Results, quick: bool) -> dict[str, Any]:
    """Return all measurements, kept or made; ``quick``: few, in this process."""
    common = {**SHAPE, "text": "classics", "order": ORDER, "experts": EXPERTS, "precision": harness.precision()}
    turns, steps, windows = (1, 1, 4) if quick else (TURNS, STEPS_A_TURN, SHAPE["windows"])

    def do(key: dict[str, Any], function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        work = partial(function, folder, *arguments) if quick else partial(harness.alone, function, folder, *arguments)
        return results.row({"cost": function.__name__, **key, **common}, work)

    return {
        "training": do({"turns": turns, "steps": steps}, training, turns, steps, windows),
        "generation": [
            {"batch": batch, "sampled": sampled}
            | do({"batch": batch, "sampled": sampled, "turns": turns, "new": NEW}, generation, batch, sampled, turns)
            for batch in harness.cut(CALLS, quick)
            for sampled in harness.cut((False, True), quick)
        ],
        "tables": [
            {"prune": list(prune)} | do({"prune": list(prune)}, tables, prune) for prune in harness.cut(PRUNES, quick)
        ],
        "precomputation": do({}, precomputation),
    }


def ratio(measured: Mapping[str, Any], side: str) -> float:
    """Return the speed of a side over that of the decoder alone: the median of the ratios of the turns."""
    seconds = measured["seconds"]
    return float(statistics.median(a / b for a, b in zip(seconds[ALONE], seconds[side], strict=True)))


def speed(measured: Mapping[str, Any], side: str) -> float:
    """Return tokens a second of CPU time, in the median turn."""
    return float(measured["tokens"] / statistics.median(measured["seconds"][side]))


def section(costs: Mapping[str, Any]) -> str:
    """Return paragraphs and tables for the section of the bench."""
    steps, first = costs["training"], costs["tables"][0]
    least = {BESIDE: f"at least {LEAST_TRAINING}"}
    trained = [
        [name + steps["mark"], speed(steps, name), f"{ratio(steps, name):.2f}", least.get(name, "")]
        for name in steps["seconds"]
    ]
    generated = [
        [f"{row['batch']}, {'sampled' if row['sampled'] else 'greedy'}{row['mark']}", speed(row, ALONE),
         speed(row, BESIDE), f"{ratio(row, BESIDE):.2f}", f"at least {LEAST_GENERATION}"]
        for row in costs["generation"]
    ]  # fmt: skip
    sizes = [
        [(", ".join(map(str, row["prune"])) or "none") + row["mark"], row["ngrams"], row["disk"] / 2**20,
         row["memory"] / 2**20, *(render.nats(row[name]) for name in ("nats", "mixed")),
         render.nats(row["mixed"] - first["mixed"])]
        for row in costs["tables"]
    ]  # fmt: skip
    before = costs["precomputation"]
    parts = before["seconds"]
    return f"""What it costs. Times are CPU seconds of one thread, both sides in turns in one process; a ratio is the
median of the ratios of {len(steps["seconds"][ALONE])} turns. Training: windows of {SHAPE["context"]} tokens from a
`DataLoader`, {SHAPE["windows"]} a step, loss, gradients, AdamW; the decoder alone has the same fused cross-entropy.

{render.table(["training", "tokens a second", "ratio", "mark"], trained)}
Before training, once for {before["tokens"]:,} tokens{before["mark"]}: {parts["tables and gate"]:.0f} s for tables and
gate, {parts["probabilities"]:.0f} s for what the experts say of every token, {parts["rows"]:.0f} s for the rows of
counted targets.

`generate`, {PROMPT} tokens of validation text and {NEW} new ones, float32:

{render.table(["batch", "tokens a second, alone", "beside counts", "ratio", "mark"], generated)}
Tables with n-grams pruned that occur at most so often, by their length (the last number holds for longer ones), and
nats a token of the validation text without a decoder:

{render.table(["pruned", "n-grams", "MiB on disk", "MiB in memory", "n-grams alone", "with cache", "lost"], sizes)}"""
