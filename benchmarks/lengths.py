"""Short documents in training: lengths as they come, packed into windows with and without a border mask, or padded.

A small GPT-2 learns the sentences of CLINC150 from its spectral start. Every arm sees as many tokens in a step, and
reads new sentences one by one, from their beginning. Every arm finds its own rate by the validation sentences, with the
first seed and the same minimum number of trials; other seeds are then run at this rate, and these read the test
sentences.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks import claims, harness, render
from benchmarks.decoders import Start
from benchmarks.harness import Results, Workers, search
from benchmarks.training import train
from warmstart.adapters import load_into
from warmstart.corpus import Corpus
from warmstart.counts import count_pairs
from warmstart.finetune import Phase
from warmstart.progress import Progress

PACKED, MASKED = "packed", "packed, border mask"
LONGEST, BATCH, ONE = "padded to the longest of all", "padded to the longest of the step", "lengths as they come"
ARMS = (PACKED, MASKED, LONGEST, BATCH, ONE)
SHAPE = {"vocab_size": 1024, "width": 64, "layers": 2, "heads": 2, "context": 64}
STEPS, TOKENS, START_RATE, TRIALS, SEEDS = 150, 512, 5e-3, 3, (1, 2)
VALIDATED = 3  # every third validation sentence is read
IGNORED = -100  # target of padding

Ids = NDArray[np.int64]


class Batch(NamedTuple):
    """One pass of the network.

    Attributes
    ----------
    inputs, targets : (rows, length) int64
        Targets of padding are `IGNORED`.
    positions : (rows, length) int64
    mask : (rows, 1, length, length) float32, optional
        Added to the logits of attention; causal without one.
    """

    inputs: Tensor
    targets: Tensor
    positions: Tensor
    mask: Tensor | None = None


def padded(sentences: Sequence[Ids], length: int) -> Batch:
    """Return a batch of sentences, separators around each, padded on the right to a number of inputs.

    Examples
    --------
    >>> batch = padded([np.array([0, 5, 6, 0]), np.array([0, 7, 0])], 3)
    >>> batch.inputs.tolist(), batch.targets.tolist()
    ([[0, 5, 6], [0, 7, 0]], [[5, 6, 0], [7, 0, -100]])
    """
    inputs = np.zeros((len(sentences), length), np.int64)
    targets = np.full_like(inputs, IGNORED)
    for row, ids in enumerate(sentences):
        inputs[row, : ids.size - 1], targets[row, : ids.size - 1] = ids[:-1], ids[1:]
    return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.arange(length).expand(len(inputs), -1))


def windows(stream: Ids, length: int, separator: int | None) -> Batch:
    """Return a stream in windows; with a separator nothing is seen across it, and positions begin anew at it.

    Examples
    --------
    >>> batch = windows(np.array([0, 5, 0, 7, 8]), 4, separator=0)
    >>> batch.positions.tolist(), (batch.mask[0, 0] == 0).int().tolist()
    ([[0, 1, 0, 1]], [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]])
    """
    rows = (stream.size - 1) // length
    inputs, targets = (torch.from_numpy(stream[i : i + rows * length].reshape(rows, length)) for i in (0, 1))
    places = torch.arange(length).expand(rows, -1)
    if separator is None:
        return Batch(inputs, targets, places)
    begins = inputs == separator
    sentence = begins.cumsum(1)
    seen = (sentence[:, :, None] == sentence[:, None]) & torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)
    return Batch(inputs, targets, places - torch.where(begins, places, 0).cummax(1).values, mask[:, None])


def steps(arm: str, sentences: Sequence[Ids], tokens: int, random: np.random.Generator) -> Iterator[list[Batch]]:
    """Yield the passes of every step, of about so many tokens, without end; sentences are shuffled anew every epoch."""
    while True:
        shuffled = [sentences[i] for i in random.permutation(len(sentences))]
        yield from (
            packed_steps(shuffled, tokens, arm == MASKED)
            if arm in (PACKED, MASKED)
            else row_steps(arm, shuffled, tokens, random)
        )


def packed_steps(sentences: Sequence[Ids], tokens: int, masked: bool) -> Iterator[list[Batch]]:
    """Yield the steps of an epoch, in windows; a rest that fills no step is left out."""
    separator = int(sentences[0][0])
    stream = np.concatenate([*(ids[:-1] for ids in sentences), sentences[0][:1]])
    for first in range(0, stream.size - tokens, tokens):
        part = stream[first : first + tokens + 1]
        yield [windows(part, min(SHAPE["context"], tokens), separator if masked else None)]


def row_steps(arm: str, sentences: Sequence[Ids], tokens: int, random: np.random.Generator) -> Iterator[list[Batch]]:
    """Yield the steps of an epoch, a sentence in a row."""
    longest = max(ids.size for ids in sentences) - 1
    order: Sequence[Ids] = sentences
    if arm == ONE:  # sentences of one length together, these groups in random order
        groups: dict[int, list[Ids]] = {}
        for ids in sentences:
            groups.setdefault(ids.size, []).append(ids)
        pieces = [
            group[i : i + n]
            for group in groups.values()
            for n in [-(-tokens // (group[0].size - 1))]
            for i in range(0, len(group), n)
        ]
        order = [ids for piece in random.permutation(len(pieces)) for ids in pieces[piece]]
    step: list[Ids] = []
    for ids in order:
        step.append(ids)
        if sum(each.size - 1 for each in step) >= tokens:
            lengths = [each.size - 1 for each in step]
            if arm == ONE:
                yield [padded([s for s in step if s.size - 1 == n], n) for n in dict.fromkeys(lengths)]
            else:
                yield [padded(step, longest if arm == LONGEST else max(lengths))]
            step = []


def losses(start: Start, batch: Batch) -> Tensor:
    """Return the sum of ``-log P`` of the targets of a batch."""
    hidden = start.model.base_model(batch.inputs, position_ids=batch.positions, attention_mask=batch.mask)
    logits = start.model.lm_head(hidden.last_hidden_state).flatten(0, 1)
    return functional.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")


def learn(arm: str, folder: str, rate: float, seed: int, n_steps: int, test: bool) -> dict[str, Any]:
    """Train one arm, in a process of its own.

    Returns
    -------
    dict
        ``nats``: on validation sentences, and ``test``, if wanted; ``seconds``: CPU seconds of training; ``tokens``;
        ``padding``: share of the positions that were computed for nothing; ``passes`` of the network a step.
    """
    texts = {part: sentences_of(Path(folder, part)) for part in ("train", "val", "test")}
    corpus = Corpus.open(Path(folder, "train"))
    longest = max(ids.size for part in texts.values() for ids in part) - 1
    shape = SHAPE | {"context": max(SHAPE["context"], longest)}
    options: dict[str, Any] = {"tie_word_embeddings": False, "attn_implementation": "eager"}
    start = Start.random("gpt2", seed, corpus.vocab_size, shape, **options)
    load_into(start.model, count_pairs(corpus.tokens, corpus.vocab_size))
    made = steps(arm, texts["train"], TOKENS, np.random.default_rng(seed))
    seen = {"tokens": 0, "places": 0, "passes": 0}

    def loss(_: int) -> Tensor:
        batches = next(made)
        tokens = sum(int((batch.targets != IGNORED).sum()) for batch in batches)
        seen["tokens"] += tokens
        seen["places"] += sum(batch.inputs.numel() for batch in batches)
        seen["passes"] += len(batches)
        return torch.stack([losses(start, batch) for batch in batches]).sum() / tokens

    @torch.no_grad()
    def score(part: str) -> float:
        rows = texts[part][:: VALIDATED if part == "val" else 1]
        batches = [padded(rows[i : i + 200], longest) for i in range(0, len(rows), 200)]
        return float(sum(losses(start, batch) for batch in batches)) / sum(ids.size - 1 for ids in rows)

    groups = [{"params": list(start.parameters()), "rate": rate}]
    optimizer = torch.optim.AdamW(groups, rate, (0.9, 0.95), weight_decay=0.0)
    phase = Phase("all", {"all": rate}, warmup=0.05, floor=0.0)
    curve = train([optimizer], loss, n_steps, phase, lambda: score("val"), (n_steps,))
    found = {"nats": curve["nats"][-1], "seconds": curve["seconds"][-1], "tokens": seen["tokens"]}
    found |= {"padding": 1 - seen["tokens"] / seen["places"], "passes": seen["passes"] / n_steps}
    return found | ({"test": score("test")} if test else {})


def sentences_of(folder: Path) -> list[Ids]:
    """Return the sentences of a corpus, with the separators before and after each."""
    corpus = Corpus.open(folder)
    ends = corpus.documents
    return [corpus.tokens[a : b + 1].astype(np.int64) for a, b in pairwise(ends)]


def prepare(data: Path, folder: Path, vocab_size: int) -> None:
    """Write the sentences of CLINC150 as three corpora."""
    content = json.loads((data / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    tokenizer = None
    for part in ("train", "val", "test"):
        file = folder / f"{part}.txt"
        file.write_text("\n".join(sentence for sentence, _ in content[part]), encoding="utf-8")
        if tokenizer is None:
            corpus = Corpus.build(file, vocab_size=vocab_size, split_documents=r"\n")
            tokenizer = corpus.tokenizer
        else:
            corpus = Corpus.encode(file, tokenizer, split_documents=r"\n")
        shutil.copytree(corpus.folder, folder / part)


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Train every arm; ``quick``: one rate, one seed, three steps."""
    results = Results(None if quick else docs / "results" / "lengths.jsonl", __name__, progress=progress)
    n_steps, rows = 3 if quick else STEPS, []
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name, Workers(results, progress, 1) as workers:
        prepare(data, Path(name), 400 if quick else SHAPE["vocab_size"])

        def result(arm: str, seed: int, test: bool, at: dict[str, float]) -> Any:
            key = {"arm": arm, "seed": seed, "rate": at["rate"], "steps": n_steps, "tokens": TOKENS, **SHAPE}
            return workers.do(key | {"test": test}, learn, arm, name, at["rate"], seed, n_steps, test)

        def end(arm: str, at: dict[str, float]) -> float:
            return float(result(arm, 0, False, at)["nats"])

        for arm in ARMS:
            best = {"rate": START_RATE}
            if not quick:
                best, _ = search(partial(end, arm), best, TRIALS)
            runs = [result(arm, seed, True, best) for seed in harness.cut(SEEDS, quick)]
            rows.append({"arm": arm, **best, "runs": runs})
    if not quick:
        render.write(docs, "lengths", "Short documents: packed, padded, or as they come", *section(rows), results)
    return {"arms": rows}


def section(rows: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Return the conclusion and the body of the section."""

    def mean(row: dict[str, Any], measure: str) -> float:
        return float(np.mean([run[measure] for run in row["runs"]]))

    def cell(row: dict[str, Any], measure: str) -> str:
        return render.spread([run[measure] for run in row["runs"]])

    arms = {row["arm"]: row for row in rows}
    seconds = ", ".join(f"{mean(arms[arm], 'seconds'):.1f}" for arm in ARMS)
    nats = ", ".join(f"{mean(arms[arm], 'test'):.3f}" for arm in ARMS)
    conclusion = (
        f"Nats on new sentences after equal tokens, packed, packed with a border mask, padded to the longest of all, "
        f"of the step, and with lengths as they come: {nats}; CPU seconds {seconds}; padding is "
        f"{mean(arms[LONGEST], 'padding'):.0%} and {mean(arms[BATCH], 'padding'):.0%} of the positions."
    )
    columns: dict[str, Any] = {"arm": "arm", "rate": lambda row: f"{row['rate']:g}"}
    columns |= {"validation": lambda row: cell(row, "nats"), "test": lambda row: cell(row, "test")}
    columns |= {"CPU seconds": lambda row: mean(row, "seconds"), "tokens": lambda row: round(mean(row, "tokens"))}
    columns |= {"padding": lambda row: f"{mean(row, 'padding'):.0%}", "passes a step": lambda row: mean(row, "passes")}
    body = f"""{claims.claimed("lengths")}

The sentences of CLINC150 (BPE, V = {SHAPE["vocab_size"]:,}), a GPT-2 of {SHAPE["layers"]} layers and width
{SHAPE["width"]} from its spectral start, {STEPS} steps of about {TOKENS:,} tokens, windows of {SHAPE["context"]}.
Packed: sentences one after the other. Border mask: no attention and no position reaches across a border. Lengths as
they come: every pass has sentences of one length, and a step as many passes as it needs. New sentences are read one by
one, by all arms. Rates from {START_RATE:g} on, at least {TRIALS} trials for each arm; mean and deviation of
{len(SEEDS)} other seeds. CPU seconds of training, one thread.

{render.rows_table(columns, rows)}"""
    return conclusion, body
