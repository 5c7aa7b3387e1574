"""Training beside the counts: networks from warm and cold starts in mixtures with the counts of the same text.

All runs have the rates that `benchmarks.finetune` found for the same start without counts, and the gate has that of the
library. What `warmstart finetune` does is measured: counts leave out each document that is trained on, and the gate is
refitted at the end. Finished mixtures read the test text once.
"""

import json
import tempfile
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import beside_section, finetune, harness
from benchmarks.finetune import CONTEXTS, EVERY, PRESETS, SCORED, SPLITS, TOKENS, Case, Rates
from benchmarks.harness import Results, Workers
from warmstart import WarmStartLM
from warmstart.corpus import Corpus
from warmstart.finetune import Batches
from warmstart.finetune.beside import nats, without_network
from warmstart.finetune.carried import score
from warmstart.finetune.evidence import expert_table
from warmstart.finetune.job import Job, Plan
from warmstart.finetune.log import LOG, read
from warmstart.finetune.phases import GATE_RATE
from warmstart.gate import Gate
from warmstart.layers import NearShallowLM
from warmstart.mixture import Experts
from warmstart.progress import Progress

PHASES = {"warm": ("frozen", "thaw"), "cold": ("thaw",)}
COUNTS = ("ngrams", "ngrams,classes,cache")
RUNS = [(t, preset, arm, counts) for preset in PRESETS for arm in PHASES for t in SPLITS for counts in COUNTS]
SEED = 0

Row = dict[str, Any]


def train(folder: str, preset: str, arm: str, counts: str, rates: Rates, tokens: int, every: int, scored: int) -> Row:
    """Train one arm in a process of its own; return its curve, the gate's report and the losses on the test text."""
    corpora = {part: Corpus.open(Path(folder, part)) for part in ("train", "valid", "test")}
    model = WarmStartLM(preset=preset, contexts=(*counts.split(","), *CONTEXTS))
    model = model.fit(corpora["train"]) if arm == "warm" else model.initialise(corpora["train"], SEED)
    phases = finetune.phases(PHASES[arm], rates, tokens)
    phases = tuple(replace(phase, rates={**phase.rates, "gate": GATE_RATE}) for phase in phases)
    plan = Plan(
        json.dumps([asdict(phase) for phase in phases]),
        max_tokens=tokens,
        validate_every=every,
        valid_tokens=scored,
        seed=SEED,
        bf16=harness.precision() == "bfloat16",
        device=harness.device(),
    )
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as out:
        done = Job(model, Path(out, "model"), plan).run(corpora["train"], corpora["valid"])
        records = read(Path(out, "model", LOG))
        finished = WarmStartLM.from_pretrained(Path(out, "model")).mixture_
    start = model.mixture_
    assert start is not None  # noqa: S101 - models with counts
    assert finished is not None  # noqa: S101 - the same
    result: Row = {name: [record[name] for record in records] for name in ("tokens", "seconds", "nats", "network_nats")}
    result |= {"counts_nats": records[0]["counts_nats"], "gate": done["gate"], "documents": done["documents"]}
    gates = {"counts": without_zeros(start.gate), "mixture": finished.gate}
    return result | {"test_nats": test_losses(finished.experts, gates, corpora["test"])}


def without_zeros(gate: Gate) -> Gate:
    """Return the gate of the counts alone, with a weight of 0 for the network."""
    alone = without_network(gate)
    return Gate(alone.sizes, np.insert(alone.weights, -1, 0.0, axis=1))


@torch.no_grad()
def test_losses(experts: Experts, gates: dict[str, Gate], corpus: Corpus) -> dict[str, float]:
    """Return nats a token on a whole text by mixtures of the same experts with several gates, and by the network."""
    assert experts.network is not None  # noqa: S101 - it was trained
    network, table = NearShallowLM.from_model(experts.network).to(harness.device()), expert_table(experts, corpus)
    batches, losses = Batches(corpus, network.config), np.empty(corpus.n_tokens)
    for batch, _, of_batch in score(network, batches, batches.in_order()):
        losses[batches.targets(batch)] = of_batch.double().cpu().numpy()
    probs: NDArray[np.float64] = np.insert(table.probs.astype(np.float64), -1, np.exp(-losses), axis=1)
    return {"network": float(losses.mean())} | {name: nats(gate, probs, table.buckets) for name, gate in gates.items()}


class Bench:
    """The kept results of this bench and of `benchmarks.finetune`, and the workers that make what is missing."""

    def __init__(self, docs: Path, folder: str, quick: bool = False, progress: Progress | None = None) -> None:
        path = docs / "results"
        self.folder, self.quick = folder, quick
        self.results = Results(None if quick else path / "beside.jsonl", __name__)
        self.workers = Workers(self.results, progress)
        alone = Results(None if quick else path / "finetune.jsonl", finetune.__name__)
        self.alone = Workers(alone, progress)
        self.tuned: dict[tuple[str, str, str], Row] = {}
        self.runs = [("wikitext-2", "potato", arm, COUNTS[1]) for arm in PHASES] if quick else RUNS

    def tune(self) -> None:
        """Find the rates of every start without counts, all kept if `benchmarks.finetune` has run."""
        with self.alone:
            for text, preset, arm, _ in self.runs:
                if (text, preset, arm) not in self.tuned:
                    case = Case(text, preset, f"{self.folder}/{text}", self.alone, self.quick)
                    self.tuned[text, preset, arm] = {**case.tune(arm), "case": case}

    def key(self, text: str, preset: str, arm: str, counts: str) -> Row:
        """Return the whole configuration of a run."""
        tuned = self.tuned[text, preset, arm]
        key: Row = tuned["case"].key(arm, PHASES[arm], tuned["rates"], TOKENS, SEED)
        return {"counts": counts, **key, "gate": GATE_RATE}

    def make(self, text: str, preset: str, arm: str, counts: str) -> Row:
        """Return the result of a run, kept or made."""
        lengths = [length // 500 for length in (TOKENS, EVERY)] if self.quick else [TOKENS, EVERY]
        rates = finetune.rounded(self.tuned[text, preset, arm]["rates"])
        key = self.key(text, preset, arm, counts)
        arguments = (f"{self.folder}/{text}", preset, arm, counts, rates, *lengths, SCORED // 10**self.quick)
        made: Row = self.workers.do(key, train, *arguments)
        return made

    def rows(self) -> list[Row]:
        """Return labels and results of all runs; the result of a run that is not kept is None."""
        rows = []
        for run in self.runs:
            key, tuned = self.key(*run), self.tuned[run[:3]]
            row: Row = dict(zip(("text", "preset", "arm", "counts"), run, strict=True))
            row |= {"alone": tuned["runs"], "tokens": TOKENS, "result": None, "mark": ""}
            if self.results.has(key):
                row |= {"result": self.results.do(key, dict), "mark": self.results.mark(key)}
            rows.append(row)
        return rows


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Run everything and write the table; ``quick``: one small case, short runs, nothing is written."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        bench = Bench(docs, folder, quick, progress)
        for text in dict.fromkeys(text for text, *_ in bench.runs):
            finetune.encode(data / text, Path(folder, text), 512 if quick else finetune.VOCAB_SIZE)
        bench.tune()
        with bench.workers:
            bench.workers.together([partial(bench.make, *each) for each in bench.runs])
    if not quick:
        beside_section.write(bench.rows(), docs, bench.results)
    return {"rows": bench.rows()}


def write_kept(docs: Path) -> None:
    """Write the table of the runs that are kept."""
    bench = Bench(docs, "")
    bench.tune()
    beside_section.write(bench.rows(), docs, bench.results)
