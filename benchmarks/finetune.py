"""Fine-tuning the near-shallow model: warm and cold starts at equal tokens, phases left out, cached comparisons.

All arms train the same architecture with the same groups of parameters. Each finds its own rates, one for every group,
by the validation text: a coordinate search of shorter runs, with the same number of trials and from the same point
for every arm, then a factor of all rates by whole runs. The test text is read once, by the finished models.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks import harness, render
from benchmarks.harness import Results, Workers, search
from warmstart import WarmStartLM
from warmstart.corpus import Corpus
from warmstart.finetune import Batches, Phase, Run, Schedule, Settings
from warmstart.finetune.compare import Curve, crossing, reached
from warmstart.finetune.log import LOG, Log, read
from warmstart.finetune.phases import FROZEN, FROZEN_RATE
from warmstart.folder import load_model
from warmstart.layers import NearShallowLM
from warmstart.layers.near_shallow import Segments
from warmstart.near_shallow import Config, NearShallowModel, cipher_vectors
from warmstart.progress import Progress
from warmstart.solution import class_prior

SPLITS = {"wikitext-2": ("train.txt", r"\n(?= = [^=])"), "classics": ("train.txt.xz", r"\n\n")}  # file, border
PRESETS = ("micro", "small")
VOCAB_SIZE, CONTEXTS = 4096, ("radial", "block", "document")
TOKENS, EVERY, SCORED = 5_000_000, 250_000, 30_000
SHORT = {300_000: 30, 1_000_000: 24}  # lengths of the shorter runs, in tokens, and trials of the search for their rates
SEARCH_TOKENS = max(SHORT)
START_RATE, FACTORS = 0.03, (0.5, 1.0, 2.0)
GROUPS = ("embedding", "middle", "output")
ARMS = ("warm", "cold", "cold + log-unigram")
SEEDS = (0, 1, 2)
LEADS = (1_000_000, 2_000_000, 4_000_000)  # tokens
ABLATIONS = {
    "warm, frozen, thaw (default)": ("frozen", "thaw"),
    "no frozen phase": ("thaw",),
    "no thaw: the embedding stays frozen": ("frozen",),
    "one phase, one rate": ("one rate",),
}
BLOCKS = (256, 512)

Rates = Mapping[str, float]


def phases(names: Sequence[str], rates: Rates, tokens: int) -> tuple[Phase, ...]:
    """Return phases with a rate for every group; the last one lasts to the end.

    "frozen" trains all groups but the embedding, slowly, for a small share of the run, as `named_schedule` does.
    """
    others = {group: rates[group] for group in GROUPS if group != "embedding"}
    slow = {group: FROZEN_RATE * rate for group, rate in others.items()}
    alone = len(names) == 1
    known = {
        "frozen": Phase("frozen", others if alone else slow, tokens=None if alone else max(1, round(FROZEN * tokens))),
        "thaw": Phase("thaw", dict(rates)),
        "one rate": Phase("one rate", dict.fromkeys(GROUPS, rates["output"])),
    }
    return tuple(known[name] for name in names)


def solve(folder: str, preset: str) -> None:
    """Write the warm start of a text and a preset beside its corpora."""
    estimator = WarmStartLM(preset=preset, contexts=CONTEXTS).fit(Corpus.open(Path(folder, "train")))
    estimator.save_pretrained(Path(folder, preset))


def start_of(arm: str, seed: int, preset: str, folder: str) -> NearShallowModel:
    """Return the model that an arm trains: the solved one, or random weights with the initialisation of its class."""
    if arm == "warm":
        return load_model(Path(folder, preset))
    train = Corpus.open(Path(folder, "train"))
    model = WarmStartLM(preset=preset, contexts=CONTEXTS).initialise(train, seed).model_
    if arm == "cold + log-unigram":
        add_log_unigram(model, np.asarray(train.counts))
    return model


def add_log_unigram(model: NearShallowModel, counts: np.ndarray[Any, Any]) -> None:
    """Add the log-unigram bias to the logits: every hidden context sums to 1, so its rows take an equal part of it."""
    config = model.config
    log_prior = np.log(class_prior(counts)).astype(np.float32)
    first = sum(width for name, width in config.groups if name == "radial")
    model.arrays["output.weight"][first:] += log_prior / len(config.hidden)


def train_one(folder: str, preset: str, arm: str, seed: int, names: Sequence[str], rates: Rates, tokens: int,
              every: int, scored: int, test: bool) -> dict[str, Any]:  # fmt: skip
    """Train one arm in a process of its own and return its curve; read the test text at the end if asked."""
    corpus, valid = (Corpus.open(Path(folder, part)) for part in ("train", "valid"))
    module = NearShallowLM.from_model(start_of(arm, seed, preset, folder))
    batches = Batches(corpus, module.config, seed=seed)
    settings = Settings(tokens, every, scored, harness.precision() == "bfloat16", harness.device())
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as out:
        schedule = Schedule(phases(names, rates, tokens))
        run = Run(module, batches, valid, schedule, settings, Path(out))
        run.run(Log(Path(out, LOG)))
        records = read(Path(out, LOG))
    result: dict[str, Any] = {key: [record[key] for record in records] for key in ("tokens", "seconds", "nats")}
    result |= {"padded_share": batches.padded_share(batches.order(0))}
    if test:
        result["test_nats"] = test_loss(module, Corpus.open(Path(folder, "test")))
    return result


@torch.no_grad()
def test_loss(module: NearShallowLM, corpus: Corpus) -> float:
    """Return nats a token on a whole text."""
    batches = Batches(corpus, module.config)
    device = next(module.parameters()).device
    total = count = 0.0
    for batch in batches.in_order():
        losses = module.token_losses(Segments(*(tensor.to(device) for tensor in batches.segments(batch))))
        total, count = total + losses.sum(dtype=torch.float64).item(), count + len(losses)
    return total / count


class Case:
    """One text and preset: the search for the rates of every arm, and the runs with the best."""

    def __init__(self, text: Path, preset: str, folder: str, workers: Workers, quick: bool) -> None:
        self.text, self.preset, self.folder, self.workers = text.name, preset, folder, workers
        self.lock = Lock()
        self.less = 500 if quick else 1
        self.name = f"{text.name} {preset}"

    def key(self, arm: str, seed: int, names: Sequence[str], rates: Rates, tokens: int) -> dict[str, Any]:
        """Return the whole configuration of a run."""
        key: dict[str, Any] = {"text": self.text, "preset": self.preset, "arm": arm, "seed": seed}
        key |= {"phases": ",".join(names), **{group: float(f"{rates[group]:.4g}") for group in GROUPS}}
        key |= {"tokens": tokens, "batch_tokens": 2048, "every": self._every(tokens), "scored": SCORED}
        return key | {"vocab_size": VOCAB_SIZE, "contexts": ",".join(CONTEXTS), "precision": harness.precision()}

    def run(self, arm: str, seed: int, names: Sequence[str], rates: Rates, tokens: int, test: bool = False) -> Any:
        """Return the curve of a run, kept or made."""
        rounded = {group: float(f"{rates[group]:.4g}") for group in GROUPS}
        key = self.key(arm, seed, names, rates, tokens)
        if arm == "warm" and not self.workers.results.has(key):
            with self.lock:
                if not Path(self.folder, self.preset).exists():
                    self.workers.pool.submit(solve, self.folder, self.preset).result()
        lengths = (tokens // self.less, self._every(tokens) // self.less, SCORED // min(self.less, 10))
        arguments = (self.folder, self.preset, arm, seed, names, rounded, *lengths, test)
        return self.workers.do(key, train_one, *arguments)

    def _every(self, tokens: int) -> int:
        return EVERY if tokens > SEARCH_TOKENS else tokens

    def tune(self, arm: str) -> dict[str, Any]:
        """Find the rates of an arm, then run it for every seed; the warm start does not depend on one."""
        names = ("frozen", "thaw") if arm == "warm" else ("thaw",)

        def end(tokens: int, rates: Rates) -> float:
            return float(self.run(arm, 0, names, rates, tokens)["nats"][-1])

        best: Rates = dict.fromkeys(GROUPS, START_RATE)
        short: dict[int, float] = {}
        if self.less == 1:
            for tokens, trials in SHORT.items():
                best, tried = search(partial(end, tokens), dict.fromkeys(GROUPS, START_RATE), trials)
                short[tokens] = min(loss for _, loss in tried)
            best = self.scaled(arm, names, best)
        seeds = harness.cut(SEEDS, self.less > 1)
        jobs = [partial(self.run, arm, seed, names, best, TOKENS, test=True) for seed in seeds]
        jobs += [partial(self.run, arm, seed, names, best, TOKENS // 3) for seed in seeds] * (arm == "warm")
        runs = self.workers.together(jobs)
        mark = self.workers.results.mark(*(self.key(arm, seed, names, best, TOKENS) for seed in seeds))
        third = runs[len(seeds) :]
        return {"rates": best, "short": short, "runs": runs[: len(seeds)], "third": third, "mark": mark}

    def scaled(self, arm: str, names: Sequence[str], rates: Rates) -> Rates:
        """Return the rates times the factor that is best for a whole run; more factors are tried beyond a border."""
        ends: dict[float, float] = {}
        factors: tuple[float, ...] = FACTORS
        while factors:
            points = [{group: factor * rate for group, rate in rates.items()} for factor in factors]
            runs = self.workers.together([partial(self.run, arm, 0, names, p, TOKENS, test=True) for p in points])
            ends |= {factor: run["nats"][-1] for factor, run in zip(factors, runs, strict=True)}
            best = min(ends, key=lambda factor: ends[factor])
            beyond = {min(ends): min(ends) / 2, max(ends): 2 * max(ends)}
            factors = (beyond[best],) if best in beyond else ()
        return {group: best * rate for group, rate in rates.items()}

    def ablate(self, rates: Rates) -> dict[str, float]:
        """Leave out one phase after the other, with the rates of the warm arm."""
        jobs = [partial(self.run, "warm", 0, names, rates, SEARCH_TOKENS) for names in ABLATIONS.values()]
        return {name: run["nats"][-1] for name, run in zip(ABLATIONS, self.workers.together(jobs), strict=True)}


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Run everything, write tables and plots; ``quick``: one small case, short runs, nothing is written."""
    results = Results(None if quick else docs / "results" / "finetune.jsonl", __name__)
    presets = ("potato",) if quick else PRESETS
    texts = harness.cut(SPLITS, quick)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder, Workers(results, progress) as workers:
        for text in texts:
            encode(data / text, Path(folder, text), 512 if quick else VOCAB_SIZE)
        cases = [Case(data / t, p, str(Path(folder, t)), workers, quick) for p in presets for t in texts]
        arms = harness.cut(ARMS, quick, 2)
        pairs = [(case, arm) for case in cases for arm in arms]
        tuned = workers.together([partial(case.tune, arm) for case, arm in pairs])
        for (case, arm), result in zip(pairs, tuned, strict=True):
            found.setdefault(case.name, {})[arm] = result
        micro = [case for case in cases if case.preset == "micro"]
        ablations = {case.text: case.ablate(found[case.name]["warm"]["rates"]) for case in micro}
    if not quick:
        key = {"part": "speed", "blocks": BLOCKS, "vocab_size": 8192, "bits": 128}
        speeds = results.do(key, lambda: speed(data / "classics"))
        write(found, ablations, speeds, results.mark(key), docs, results)
    return {"cases": found}


def encode(text: Path, folder: Path, vocab_size: int) -> None:
    """Tokenise the three parts of a text; the folder gets links to the cached corpora."""
    train, border = SPLITS[text.name]
    corpus = Corpus.build(text / train, vocab_size=vocab_size, split_documents=border)
    folder.mkdir()
    (folder / "train").symlink_to(corpus.folder.resolve())
    for part in ("valid", "test"):
        encoded = Corpus.encode(text / f"{part}.txt", corpus.tokenizer, split_documents=border)
        (folder / part).symlink_to(encoded.folder.resolve())


def speed(books: Path) -> list[dict[str, Any]]:
    """Time a step of the frozen phase with long blocks on a CPU: windows, block products, cache, in turns."""
    corpus = Corpus.build(books / "train.txt.xz", split_documents=SPLITS["classics"][1])
    low, rows = harness.precision() == "bfloat16", []
    for size in BLOCKS:
        config = Config(corpus.vocab_size, corpus.separator, 128, 32, 2, size, CONTEXTS)
        module = NearShallowLM(config)
        with torch.no_grad():
            module.embedding.weight.copy_(torch.from_numpy(cipher_vectors(corpus.vocab_size, 128).toarray()))
        module.embedding.weight.requires_grad_(False)
        batches = Batches(corpus, config, batch_tokens=4 * max(BLOCKS))
        full = (b for b in batches.order(0) if b.size * int(batches.table[2][b].min()) == 4 * max(BLOCKS))
        batch = batches.segments(next(full))
        arms = {"windows": _windows, "products": _products, "cached": NearShallowLM.token_losses}
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        for _ in range(16):
            for arm, step in arms.items():
                began = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=low):
                    losses = step(module, batch)
                (losses.sum() / losses.numel()).backward()  # type: ignore[no-untyped-call]
                times[arm].append((time.perf_counter() - began) / losses.numel())
        rows += [{"block": size, "arm": arm, "microseconds": 1e6 * float(np.median(t[1:]))} for arm, t in times.items()]
    return rows


def _windows(module: NearShallowLM, batch: Segments) -> torch.Tensor:
    """Score a batch as `forward` does: the window of every position by itself."""
    position = batch.position[:, None] + torch.arange(batch.ids.shape[1])
    X, first = module.embedding(batch.ids), module.config.window - 1
    padded = functional.pad(X, (0, 0, first, 0))
    ages = [padded[:, first - age : first - age + X.shape[1]] for age in range(first + 1)]
    sums = module._document_sums(X, position - batch.position[:, None])
    features = module._features(ages, position, sums, recalled=X[..., :0])
    fixed = module.config.radius * module.config.bits
    return module.output.cross_entropy(features.flatten(0, 1), batch.targets.flatten(), fixed)


def _products(module: NearShallowLM, batch: Segments) -> torch.Tensor:
    """Score a batch as in the thaw phase, whole blocks without a cache, though the embedding is frozen."""
    features = module._segment_features(batch, cached=False)
    fixed = module.config.radius * module.config.bits
    return module.output.cross_entropy(features.flatten(0, 1), batch.targets.flatten(), fixed)


def _curve(run: dict[str, Any]) -> Curve:
    return np.array(run["tokens"], float), np.array(run["nats"])


def mean_curve(runs: list[dict[str, Any]]) -> Curve:
    """Return millions of tokens, and losses as the mean of the seeds."""
    return np.array(runs[0]["tokens"]) / 1e6, np.mean([run["nats"] for run in runs], axis=0)


def ends(arm: dict[str, Any]) -> list[float]:
    """Return the last validation loss of every seed."""
    return [run["nats"][-1] for run in arm["runs"]]


def gap(case: dict[str, Any]) -> float:
    """Return how far the warm start ends below the better cold arm."""
    return min(statistics.mean(ends(case[arm])) for arm in ARMS[1:]) - statistics.mean(ends(case["warm"]))


def rows_of_ends(name: str, case: dict[str, Any]) -> list[list[Any]]:
    """Return a row for every arm: start, end, test perplexity, rates."""
    return [
        [
            f"{name}, {arm}{result['mark']}",
            render.nats(statistics.mean(run["nats"][0] for run in result["runs"])),
            render.spread(ends(result)),
            math.exp(statistics.mean(run["test_nats"] for run in result["runs"])),
            " / ".join(f"{result['rates'][group]:.3g}" for group in GROUPS),
        ]
        for arm, result in case.items()
    ]


def rows_of_short_runs(found: dict[str, Any]) -> list[list[Any]]:
    """Return a row for every text and preset: the losses of the best short runs, and the lead over the better cold."""
    rows = []
    for name, case in found.items():
        row: list[Any] = [name]
        for tokens in SHORT:
            losses = [case[arm]["short"][tokens] for arm in ARMS]
            row += [*map(render.nats, losses), render.nats(min(losses[1:]) - losses[0])]
        rows.append(row)
    return rows


def row_of_leads(name: str, case: dict[str, Any]) -> list[Any]:
    """Return the row of the lead over the better cold arm."""
    better = min(ARMS[1:], key=lambda arm: statistics.mean(ends(case[arm])))
    warms, colds = ([_curve(run) for run in case[arm]["runs"]] for arm in ("warm", better))
    warm = warms[0][0], np.mean([nats for _, nats in warms], axis=0)
    leads = [float(statistics.mean(np.interp(at, *cold) for cold in colds) - np.interp(at, *warm)) for at in LEADS]
    least = min(float((cold[1] - warm[1]).min()) for cold in colds)
    goal = statistics.mean(ends(case[better]))
    third = statistics.mean(run["nats"][-1] for run in case["warm"]["third"])
    caught = [at for cold in colds if (at := reached(cold, float(warm[1][0]))) is not None]
    same = reached(warm, goal)
    crossings = [at for cold in colds if (at := crossing(warm, cold)) is not None]
    return [
        name,
        better,
        *map(render.nats, leads),
        render.nats(gap(case)),
        render.nats(least),
        render.nats(goal - third),
        f"{statistics.mean(caught) / 1e6:.2f} M" if caught else "never",
        "never" if same is None else f"{same / warm[0][-1]:.2f}",
        f"{min(crossings) / 1e6:.2f} M" if crossings else "none",
    ]


def write(found: dict[str, Any], ablations: dict[str, dict[str, float]], speeds: list[dict[str, Any]], mark: str,
          docs: Path, results: Results) -> None:  # fmt: skip
    """Write the section of docs/benchmarks.md and its picture."""
    headers = ["text, preset, start", "start", "end", "test perplexity", "rates"]
    table = render.table(headers, [row for name, case in found.items() for row in rows_of_ends(name, case)])
    headers = ["text, preset", *(f"{n / 1e6:g} M, {what}" for n in SHORT for what in (*ARMS, "lead"))]
    short = render.table(headers, rows_of_short_runs(found))
    headers = ["text, preset", "better cold arm", *(f"lead at {at / 1e6:.0f} M" for at in LEADS), "lead at the end"]
    headers += ["least lead", f"lead of a warm run of {TOKENS / 3e6:.2f} M", "cold reaches warm's start after"]
    headers += ["share of tokens to cold's end", "curves cross at"]
    leads = render.table(headers, [row_of_leads(name, case) for name, case in found.items()])
    without = render.table(
        ["phases", *SPLITS], [[name, *(render.nats(ablations[text][name]) for text in SPLITS)] for name in ABLATIONS]
    )
    times = {(row["block"], row["arm"]): row["microseconds"] for row in speeds}
    labels = {"windows": "windows one by one", "products": "block products", "cached": "cached (default)"}
    timed = [
        [label + mark, *(times[s, arm] for s in BLOCKS), times[512, arm] / times[256, arm],
         times[512, "windows"] / times[512, arm]] for arm, label in labels.items()
    ]  # fmt: skip
    panels = {name: {arm: mean_curve(result["runs"]) for arm, result in case.items()} for name, case in found.items()}
    top = max(case["warm"]["runs"][0]["nats"][0] for case in found.values()) + 1.0
    render.curves(docs / "images" / "finetune.png", panels, "million tokens", "nats a token, validation", top)
    shares = ", ".join(f"{name} {case['warm']['runs'][0]['padded_share']:.1%}" for name, case in found.items())
    gaps = [gap(case) for case in found.values()]
    spans = []
    for i, tokens in enumerate(SHORT):
        leads_there = [float(row[4 * (i + 1)]) for row in rows_of_short_runs(found)]
        spans.append(f"{min(leads_there):.2f} to {max(leads_there):.2f} nats after {tokens / 1e6:g} M tokens")
    conclusion = (
        "With rates of its own for every arm and length, the warm start leads the better cold start by "
        f"{' and '.join(spans)}; after {TOKENS / 1e6:g} M tokens the cold start is ahead by {-max(gaps):.2f} to "
        f"{-min(gaps):.2f} nats"
    )
    body = f"""{TOKENS:,} tokens in steps of 2,048, V = {VOCAB_SIZE:,}, contexts {", ".join(CONTEXTS)}, AdamW, matrix
products in {harness.precision()}. *Warm*: solved from counts, a short phase with the embedding frozen, then all groups.
*Cold*: the initialisation of `NearShallowLM`, all groups from the start; *+ log-unigram* adds the log-unigram
distribution to the logits. Every arm has a rate for each of the groups {", ".join(GROUPS)}.

Losses are nats a token on about {SCORED:,} tokens of validation text. Short runs: every arm finds its rates by
{" and ".join(f"{trials} trials of {tokens:,} tokens" for tokens, trials in SHORT.items())}, each annealed to its own
end. The search goes coordinate by coordinate from {START_RATE:g} for every group and every arm; there are more trials
only where a chosen rate would else be the largest or smallest that was tried. The losses of the best runs (first seed)
and the lead over the better cold arm:

{short}
Long runs: the rates of the runs of {SEARCH_TOKENS:,} tokens, times a common factor that is chosen by whole runs among
{", ".join(f"{factor:g}" for factor in FACTORS)} and more beyond a border. The end is mean and deviation of {len(SEEDS)}
seeds (of the random weights and of the order of the batches). The perplexity is that of the whole test text, read once.

{table}
The lead over the better cold arm, in nats; negative where the warm start is behind. "Least lead" is the smallest one of
any seed at any validation. The warm run of a third of the tokens is annealed to its own end: above 0, a third of the
tokens is enough to pass the end of the cold runs.

{leads}
Padded positions: {shares}.

![Validation loss over tokens](images/finetune.png)

Phases left out, preset micro, {SEARCH_TOKENS:,} tokens, nats on the validation text at the end:

{without}
One step of the frozen phase on a CPU, microseconds a token (median of 15, arms in turns), V = 8,192, 128 bits, rows of
512:

{render.table(["block context", "block 256", "block 512", "512 / 256", "times as fast at 512"], timed)}"""
    render.write(docs, "finetune", "Fine-tuning: warm and cold starts", conclusion + ".", body, results)
