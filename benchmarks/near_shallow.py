"""Near-shallow networks: what long blocks, more weights and a frozen phase bring, each arm with rates of its own.

Networks are solved from counts, then the embedding stays frozen for the first part of the tokens, then all is trained.
The rates of all groups have the proportions that `benchmarks.finetune` found; every arm finds a factor of its own.
"""

import math
import tempfile
import time
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks import claims, harness, render
from benchmarks.finetune import encode, test_loss
from benchmarks.harness import Results, Workers, search
from warmstart import WarmStartLM
from warmstart.corpus import Corpus
from warmstart.finetune import Batches, Phase, Run, Schedule, Settings
from warmstart.finetune.log import LOG, Log, read
from warmstart.folder import load_model
from warmstart.layers import NearShallowLM
from warmstart.progress import Progress

VOCAB_SIZE, TOKENS, SCORED, TRIALS = 4096, 300_000, 30_000, 3
RATES = {"embedding": 0.0075, "middle": 0.12, "output": 0.06}
FROZEN = 0.5  # of the tokens, before the embedding thaws
STARTS = {"embedding": 1.0, "others": 1.0}  # factors of the rates where both are searched
PHASE_TRIALS = 8
SHARES = {"frozen for half of the tokens, then thaw": 0.5, "frozen for 2 % of them": 0.02, "never frozen": 0.0}
BLOCKS = (8, 64, 256)
PLAIN = "radial only"
CONTEXTS: dict[str, dict[str, Any]] = {
    PLAIN: {"preset": "micro", "contexts": ("radial",)},
    **{
        f"radial and block of {size}": {"preset": "micro", "contexts": ("radial", "block"), "block_size": size}
        for size in BLOCKS
    },
}
FAMILY: dict[str, dict[str, Any]] = {
    preset: {"preset": preset, "contexts": ("radial", "block", "document")}
    for preset in ("potato", "micro", "small", "base")
}
NETWORKS = {**CONTEXTS, **FAMILY}
REFERENCE = "small"  # equal time: the CPU seconds in which it trains on `TOKENS`

Factors = dict[str, float]


def solve(folder: str, name: str) -> None:
    """Write the solved network beside the corpora."""
    WarmStartLM(**NETWORKS[name]).fit(Corpus.open(Path(folder, "train"))).save_pretrained(Path(folder, name))


def train(
    folder: str, name: str, share: float, factors: Factors, tokens: int, scored: int, test: bool
) -> dict[str, Any]:
    """Train a network in a process of its own, with the embedding frozen for a share of the tokens.

    Returns
    -------
    dict
        ``start``: validation loss of the solved network; ``phases``: tokens, CPU seconds of training and the validation
        loss at the end of each; ``weights``, ``test``.
    """
    corpus, valid = (Corpus.open(Path(folder, part)) for part in ("train", "valid"))
    module = NearShallowLM.from_model(load_model(Path(folder, name)))
    module.to(harness.device())
    rates = {group: rate * factors["embedding" if group == "embedding" else "others"] for group, rate in RATES.items()}
    frozen = {group: rate for group, rate in rates.items() if group != "embedding"}
    parts = [(frozen, round(share * tokens)), (rates, tokens - round(share * tokens))]
    found: dict[str, Any] = {"phases": [], "weights": sum(p.numel() for p in module.parameters())}
    for own, length in parts:
        if not length:
            continue
        settings = Settings(length, length, scored, harness.precision() == "bfloat16", harness.device())
        with tempfile.TemporaryDirectory(prefix="benchmarks-") as out:
            run = Run(
                module, Batches(corpus, module.config), valid, Schedule((Phase("own", own),)), settings, Path(out)
            )
            began = time.process_time(), time.perf_counter()
            run.run(Log(Path(out, LOG)))
            cpu, wall = time.process_time() - began[0], time.perf_counter() - began[1]
            records = read(Path(out, LOG))
        found.setdefault("start", records[0]["nats"])
        seconds = cpu * run.seconds / wall  # without validation
        found["phases"].append({"tokens": length, "seconds": seconds, "nats": records[-1]["nats"]})
    return found | ({"test": test_loss(module, Corpus.open(Path(folder, "test")))} if test else {})


class Bench:
    """The runs of this bench and the search for their rates."""

    def __init__(self, folder: str, workers: Workers, quick: bool) -> None:
        self.folder, self.workers, self.quick = folder, workers, quick
        self.lock = Lock()

    def run(
        self, name: str, share: float, factors: Factors, tokens: int = TOKENS, test: bool = False
    ) -> dict[str, Any]:
        """Return a run, kept or made."""
        key = {"network": name, "frozen": share, "factors": factors, "tokens": tokens, "test": test, "rates": RATES}
        key |= {"vocab_size": VOCAB_SIZE, "scored": SCORED, "text": "wikitext-2", "precision": harness.precision()}
        with self.lock:
            if not self.workers.results.has(key) and not Path(self.folder, name).exists():
                self.workers.pool.submit(solve, self.folder, name).result()
        lengths = (tokens // 20, SCORED // 10) if self.quick else (tokens, SCORED)
        made: dict[str, Any] = self.workers.do(key, train, self.folder, name, share, factors, *lengths, test)
        return made

    def tune(self, name: str, share: float = FROZEN, both: bool = False) -> dict[str, Any]:
        """Return the run of an arm at its best factor of the rates, or factors; only this run reads the test text."""

        def factors(at: dict[str, float]) -> Factors:
            return dict(at) if both else dict.fromkeys(STARTS, at["all"])

        def end(at: dict[str, float]) -> float:
            return float(self.run(name, share, factors(at))["phases"][-1]["nats"])

        start, trials = (STARTS, PHASE_TRIALS) if both else ({"all": 1.0}, TRIALS)
        best = start if self.quick else search(end, start, trials)[0]
        return self.run(name, share, factors(best), test=True) | {"factors": factors(best)}


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Run every arm and write the section; ``quick``: two arms, a twentieth of the tokens."""
    results = Results(None if quick else docs / "results" / "near_shallow.jsonl", __name__)
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder, Workers(results, progress) as workers:
        encode(data / "wikitext-2", Path(folder), 512 if quick else VOCAB_SIZE)
        bench = Bench(folder, workers, quick)
        if quick:
            return {"arms": {name: bench.tune(name) for name in (PLAIN, "potato")}}
        names = tuple(NETWORKS)
        arms = dict(zip(names, workers.together([partial(bench.tune, name) for name in names]), strict=True))
        shares = workers.together([partial(bench.tune, "micro", share, True) for share in SHARES.values()])
        phases = dict(zip(SHARES, shares, strict=True))
        timed = {name: bench.run(name, FROZEN, arms[name]["factors"], same_time(arms, name)) for name in FAMILY}
    body = "\n".join([contexts_table(arms), family_table(arms, timed), phases_table(phases)])
    render.write(
        docs,
        "near_shallow",
        "Near-shallow networks: blocks, sizes, the frozen phase",
        *section(arms, phases, body),
        results,
    )
    return {"arms": arms, "phases": phases, "timed": timed}


def same_time(arms: dict[str, Any], name: str) -> int:
    """Return for how many tokens a network trains in the CPU seconds of `REFERENCE`, to two significant digits."""
    seconds = {each: sum(phase["seconds"] for phase in arms[each]["phases"]) for each in (name, REFERENCE)}
    tokens = TOKENS * seconds[REFERENCE] / seconds[name]
    return TOKENS if name == REFERENCE else round(tokens, 1 - math.floor(math.log10(tokens)))


def speeds(arm: dict[str, Any]) -> list[float]:
    """Return tokens a CPU second with the embedding frozen and thawed."""
    return [phase["tokens"] / phase["seconds"] for phase in arm["phases"]]


def cells(arm: dict[str, Any]) -> list[Any]:
    """Return losses at the start and at the end of each phase, and on the test text."""
    return [render.nats(nats) for nats in (arm["start"], *(phase["nats"] for phase in arm["phases"]), arm["test"])]


def contexts_table(arms: dict[str, Any]) -> str:
    """Return the table of the contexts."""
    headers = ["context", "start", "frozen", "thawed", "test", "tokens a second, frozen", "thawed"]
    rows = [[name, *cells(arms[name]), *(f"{speed:,.0f}" for speed in speeds(arms[name]))] for name in CONTEXTS]
    text = (
        "Contexts: preset micro, half of the tokens frozen, then thawed; nats a token on validation text, and of the "
        "finished network on the test text:"
    )
    return f"{text}\n\n{render.table(headers, rows)}"


def family_table(arms: dict[str, Any], timed: dict[str, Any]) -> str:
    """Return the table of the presets."""
    headers = ["preset", "weights", "MB", "tokens a second, frozen", "thawed", "start", "frozen", "thawed", "test"]
    headers += ["tokens in equal time", "nats in equal time"]
    rows = []
    for name in FAMILY:
        weights, run = arms[name]["weights"], timed[name]
        tokens = sum(phase["tokens"] for phase in run["phases"])
        row = [name, f"{weights:,}", f"{4 * weights / 1e6:.1f}", *(f"{speed:,.0f}" for speed in speeds(arms[name]))]
        rows.append([*row, *cells(arms[name]), f"{tokens:,.0f}", render.nats(run["phases"][-1]["nats"])])
    seconds = sum(phase["seconds"] for phase in arms[REFERENCE]["phases"])
    text = (
        f"The family, contexts radial, block and document, after equal tokens, and after equal time: the {seconds:.0f} "
        f"CPU seconds in which {REFERENCE} trains on {TOKENS:,} tokens:"
    )
    return f"{text}\n\n{render.table(headers, rows)}"


def phases_table(phases: dict[str, Any]) -> str:
    """Return the table of the frozen phase."""
    headers = ["preset micro", "factor of the rate of the embedding", "of the others", "validation", "test"]
    rows = [
        [name, *(f"{factor:g}" for factor in arm["factors"].values()), *cells(arm)[-2:]] for name, arm in phases.items()
    ]
    text = (
        f"The frozen phase: every arm finds two factors by at least {PHASE_TRIALS} runs, until "
        "the best have neighbours on both sides:"
    )
    return f"{text}\n\n{render.table(headers, rows)}"


def section(arms: dict[str, Any], phases: dict[str, Any], tables: str) -> tuple[str, str]:
    """Return the conclusion and the body of the section."""
    ends = {name: arm["phases"][-1]["nats"] for name, arm in arms.items()}
    gains = {size: ends[PLAIN] - ends[f"radial and block of {size}"] for size in BLOCKS}
    never, *frozen = (phases[name]["phases"][-1]["nats"] for name in reversed(SHARES))
    conclusion = (
        f"Blocks of {', '.join(map(str, BLOCKS))} tokens beside the radial context are "
        f"{', '.join(f'{gain:.3f}' for gain in gains.values())} nats below it alone after training (negative: above); "
        f"a frozen phase brings {never - min(frozen):.3f} nats over none."
    )
    body = f"""{claims.claimed("near_shallow")}

WikiText-2, V = {VOCAB_SIZE:,}, {TOKENS:,} tokens, matrix products in {harness.precision()}, one seed.
Every arm has the best of at least {TRIALS} factors of the rates, until the best has a neighbour on both sides.
Seconds are CPU seconds of one thread. Blocks of 1,024 and preset large were not run.

{tables}"""
    return conclusion, body
