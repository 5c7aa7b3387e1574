"""Fine-tuning the near-shallow model: warm and cold starts at equal tokens, phases left out, cached comparisons.

All arms train the same architecture with the same groups of parameters. Each arm has its own rate for every group. It
finds them by a coordinate search of shorter runs, with the same number of trials and from the same point for every
arm. Then it finds a common factor of its rates by whole runs. Finished models read the test text once.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
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
from warmstart.finetune.carried import score
from warmstart.finetune.compare import Curve, crossing, reached
from warmstart.finetune.log import LOG, Log, read
from warmstart.finetune.phases import FROZEN, FROZEN_RATE
from warmstart.finetune.targets import CountedTargets, statistic_of
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
COUNTED = (0.0, 0.5, 1.0)  # weights of counted targets
BLOCKS = (256, 512)

Rates = Mapping[str, float]


def phases(names: Sequence[str], rates: Rates, tokens: int, counted: float = 0.0) -> tuple[Phase, ...]:
    """Return phases with a rate for every group; the last one lasts to the end and can have counted targets.

    "frozen" trains all groups but the embedding. Before another phase it is short and slow, as in `named_schedule`.
    """
    trained = {group: rates[group] for group in GROUPS if group != "embedding"}
    slow = {group: FROZEN_RATE * rate for group, rate in trained.items()}
    by_name = {
        "frozen": Phase("frozen", slow, tokens=max(1, round(FROZEN * tokens))),
        "thaw": Phase("thaw", dict(rates)),
        "one rate": Phase("one rate", dict.fromkeys(GROUPS, rates["output"])),
    }
    chosen = (Phase("frozen", trained),) if tuple(names) == ("frozen",) else tuple(by_name[name] for name in names)
    return (*chosen[:-1], replace(chosen[-1], counted=counted))


def solve(folder: str, preset: str) -> None:
    """Write the warm start of a text and a preset beside its corpora."""
    estimator = WarmStartLM(preset=preset, contexts=CONTEXTS).fit(Corpus.open(Path(folder, "train")))
    estimator.save_pretrained(Path(folder, preset))


def start_of(arm: str, seed: int, preset: str, folder: str) -> NearShallowModel:
    """Return the model that an arm trains: the solved one, or random weights with the initialisation of its class."""
    if arm == "warm":
        return load_model(Path(folder, preset))
    corpus = Corpus.open(Path(folder, "train"))
    model = WarmStartLM(preset=preset, contexts=CONTEXTS).initialise(corpus, seed).to_torch().to_model()
    if arm == "cold + log-unigram":
        add_log_unigram(model, np.asarray(corpus.counts))
    return model


def add_log_unigram(model: NearShallowModel, counts: np.ndarray[Any, Any]) -> None:
    """Add the log-unigram bias to the logits: every hidden context sums to 1, so its rows take an equal part of it."""
    first = sum(width for name, width in model.config.groups if name == "radial")
    log_prior = np.log(class_prior(counts)).astype(np.float32)
    model.arrays["output.weight"][first:] += log_prior / len(model.config.hidden)


def train_one(folder: str, preset: str, arm: str, seed: int, names: Sequence[str], rates: Rates, tokens: int,
              every: int, scored: int, test: bool, counted: float = 0.0) -> dict[str, Any]:  # fmt: skip
    """Train one arm in a process of its own and return its curve; read the test text at the end if asked."""
    corpus, valid = (Corpus.open(Path(folder, part)) for part in ("train", "valid"))
    module = NearShallowLM.from_model(start_of(arm, seed, preset, folder))
    batches = Batches(corpus, module.config, seed=seed)
    schedule = Schedule(phases(names, rates, tokens, counted))
    settings = Settings(tokens, every, scored, harness.precision() == "bfloat16", harness.device())
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as out:
        Run(module, batches, valid, schedule, settings, Path(out)).run(Log(Path(out, LOG)))
        records = read(Path(out, LOG))
    result: dict[str, Any] = {name: [record[name] for record in records] for name in ("tokens", "seconds", "nats")}
    result["padded_share"] = batches.padded_share(batches.order(0))
    if test:
        result["test_nats"] = test_loss(module, Corpus.open(Path(folder, "test")))
    return result


@torch.no_grad()
def test_loss(module: NearShallowLM, corpus: Corpus) -> float:
    """Return nats a token on a whole text."""
    batches = Batches(corpus, module.config)
    losses = [of_batch.double().cpu() for _, _, of_batch in score(module, batches, batches.in_order())]
    return float(torch.cat(losses).mean())


class Case:
    """One text and preset: the search for the rates of every arm, and the runs with the best."""

    def __init__(self, text: str, preset: str, folder: str, workers: Workers, quick: bool) -> None:
        self.text, self.preset, self.folder, self.workers, self.quick = text, preset, folder, workers, quick
        self.lock, self.name = Lock(), f"{text} {preset}"

    def key(self, arm: str, names: Sequence[str], rates: Rates, tokens: int, seed: int) -> dict[str, Any]:
        """Return the whole configuration of a run."""
        key: dict[str, Any] = {"text": self.text, "preset": self.preset, "arm": arm, "seed": seed}
        key |= {"phases": ",".join(names), **rounded(rates), "tokens": tokens, "batch_tokens": 2048}
        key |= {"every": EVERY if tokens > SEARCH_TOKENS else tokens, "scored": SCORED, "vocab_size": VOCAB_SIZE}
        return key | {"contexts": ",".join(CONTEXTS), "precision": harness.precision()}

    def run(
        self, arm: str, names: Sequence[str], rates: Rates, tokens: int, seed: int = 0, counted: float = 0.0
    ) -> Any:
        """Return the curve of a run, kept or made; only runs of the full length read the test text."""
        key = self.key(arm, names, rates, tokens, seed) | ({"counted": counted} if counted else {})
        if arm == "warm" and not self.workers.results.has(key):
            with self.lock:
                if not Path(self.folder, self.preset).exists():
                    self.workers.pool.submit(solve, self.folder, self.preset).result()
        lengths = [key["tokens"], key["every"], key["scored"]]
        if self.quick:
            lengths = [tokens // 500, key["every"] // 500, SCORED // 10]
        arguments = (self.folder, self.preset, arm, seed, names, rounded(rates), *lengths, tokens == TOKENS, counted)
        return self.workers.do(key, train_one, *arguments)

    def tune(self, arm: str) -> dict[str, Any]:
        """Find the rates of an arm, then run it for every seed; a warm arm also runs for a third of the tokens."""
        names = ("frozen", "thaw") if arm == "warm" else ("thaw",)

        def end(tokens: int, rates: Rates) -> float:
            return float(self.run(arm, names, rates, tokens)["nats"][-1])

        rates: Rates = dict.fromkeys(GROUPS, START_RATE)
        short: dict[int, float] = {}
        marks: set[str] = set()
        if not self.quick:
            for tokens, trials in SHORT.items():
                best, tried = search(partial(end, tokens), rates, trials)
                short[tokens] = min(loss for _, loss in tried)
                marks |= {self.workers.results.mark(self.key(arm, names, best, tokens, 0))}
            losses = {factor: end(TOKENS, scaled(best, factor)) for factor in FACTORS}
            while (factor := min(losses, key=lambda factor: losses[factor])) in (min(losses), max(losses)):
                factor *= 0.5 if factor == min(losses) else 2.0
                losses[factor] = end(TOKENS, scaled(best, factor))
            rates = scaled(best, factor)
        seeds = harness.cut(SEEDS, self.quick)
        jobs = [partial(self.run, arm, names, rates, TOKENS, seed) for seed in seeds]
        jobs += [partial(self.run, arm, names, rates, TOKENS // 3, seed) for seed in seeds] * (arm == "warm")
        runs, n = self.workers.together(jobs), len(seeds)
        mark = self.workers.results.mark(*(self.key(arm, names, rates, TOKENS, seed) for seed in seeds))
        return {
            "rates": rates,
            "short": short,
            "runs": runs[:n],
            "third": runs[n:],
            "mark": mark,
            "short_mark": max(marks, default=""),
        }

    def ablate(self, rates: Rates) -> dict[str, float]:
        """Leave out one phase after the other, with the rates of the warm arm."""
        jobs = [partial(self.run, "warm", names, rates, SEARCH_TOKENS) for names in ABLATIONS.values()]
        return {name: run["nats"][-1] for name, run in zip(ABLATIONS, self.workers.together(jobs), strict=True)}

    def count(self, arm: str, rates: Rates) -> list[Any]:
        """Train an arm with every weight of counted targets, with the rates that it has without them."""
        names = ("frozen", "thaw") if arm == "warm" else ("thaw",)
        jobs = [partial(self.run, arm, names, rates, SEARCH_TOKENS, counted=weight) for weight in COUNTED]
        return self.workers.together(jobs)


def rounded(rates: Rates) -> dict[str, float]:
    """Return rates with four significant digits."""
    return {group: float(f"{rates[group]:.4g}") for group in GROUPS}


def scaled(rates: Rates, factor: float) -> dict[str, float]:
    """Return rates times a common factor."""
    return {group: factor * rate for group, rate in rates.items()}


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Run everything, write tables and plots; ``quick``: one small case, short runs, nothing is written."""
    results = Results(None if quick else docs / "results" / "finetune.jsonl", __name__)
    presets, texts, arms = ("potato",) if quick else PRESETS, harness.cut(SPLITS, quick), harness.cut(ARMS, quick, 2)
    tuned: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder, Workers(results, progress) as workers:
        for text in texts:
            encode(data / text, Path(folder, text), 512 if quick else VOCAB_SIZE)
        cases = [Case(text, preset, f"{folder}/{text}", workers, quick) for preset in presets for text in texts]
        pairs = [(case, arm) for case in cases for arm in arms]
        arms_tuned = workers.together([partial(case.tune, arm) for case, arm in pairs])
        for (case, arm), result in zip(pairs, arms_tuned, strict=True):
            tuned.setdefault(case.name, {})[arm] = result
        micro = [case for case in cases if case.preset == "micro"]
        ablations = {case.text: case.ablate(tuned[case.name]["warm"]["rates"]) for case in micro}
        counted = {
            (case.text, arm): case.count(arm, tuned[case.name][arm]["rates"]) for case in micro for arm in ARMS[:2]
        }
    if not quick:
        key = {"part": "speed", "blocks": BLOCKS, "vocab_size": 8192, "bits": 128}
        speeds = results.do(key, lambda: speed(data / "classics"))
        of_rows = results.do({"part": "speed of rows"}, lambda: speed_of_rows(data / "classics"))
        write(tuned, ablations, counted, of_rows, speeds, results.mark(key), docs, results)
    return {"cases": tuned}


def encode(text: Path, folder: Path, vocab_size: int) -> None:
    """Tokenise the three parts of a text; the folder gets folders of links to the cached corpora."""
    train, border = SPLITS[text.name]
    corpora = {"train": Corpus.build(text / train, vocab_size=vocab_size, split_documents=border)}
    for part in ("valid", "test"):
        corpora[part] = Corpus.encode(text / f"{part}.txt", corpora["train"].tokenizer, split_documents=border)
    for part, corpus in corpora.items():
        (folder / part).mkdir(parents=True)
        for file in corpus.folder.resolve().iterdir():
            (folder / part / file.name).symlink_to(file)


def speed(books: Path) -> list[dict[str, Any]]:
    """Time a step of the frozen phase with long blocks on a CPU: windows, block products, cache, in turns."""
    corpus = Corpus.build(books / "train.txt.xz", split_documents=SPLITS["classics"][1])
    rows = []
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
        times = _in_turns({arm: partial(step, module, batch) for arm, step in arms.items()})
        rows += [{"block": size, "arm": arm, "microseconds": each} for arm, each in times.items()]
    return rows


def speed_of_rows(books: Path) -> dict[str, float]:
    """Time a step of the thaw phase of preset micro on a CPU without and with counted targets, in turns."""
    corpus = Corpus.build(books / "train.txt.xz", split_documents=SPLITS["classics"][1])
    module = WarmStartLM(preset="micro", contexts=CONTEXTS).initialise(corpus, 0).to_torch()
    batches, targets = Batches(corpus, module.config), CountedTargets(statistic_of(corpus, None), corpus)
    numbers = batches.order(0)[0]
    batch, places = batches.segments(numbers), batches.targets(numbers)
    arms = {
        "without": lambda: module.token_losses(batch),
        "with": lambda: module.row_losses(batch, torch.from_numpy(targets.rows(places).dense()))[1],
    }
    return _in_turns(arms)


def _in_turns(arms: Mapping[str, Callable[[], torch.Tensor]]) -> dict[str, float]:
    """Return the time of forward and backward pass, in microseconds a token: the median of 15, arms in turns."""
    low, times = harness.precision() == "bfloat16", {arm: list[float]() for arm in arms}
    for _ in range(16):
        for arm, step in arms.items():
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                losses = step()
            (losses.sum() / losses.numel()).backward()  # type: ignore[no-untyped-call]
            times[arm].append((time.perf_counter() - began) / losses.numel())
    return {arm: 1e6 * float(np.median(each[1:])) for arm, each in times.items()}


def _windows(module: NearShallowLM, batch: Segments) -> torch.Tensor:
    """Score a batch as `forward` does: the window of every position by itself."""
    position = batch.position[:, None] + torch.arange(batch.ids.shape[1])
    X, first = module.embedding(batch.ids), module.config.window - 1
    padded = functional.pad(X, (0, 0, first, 0))
    ages = [padded[:, first - age : first - age + X.shape[1]] for age in range(first + 1)]
    sums = module._document_sums(X, position - batch.position[:, None])
    return _cross_entropy(module, module._features(ages, position, sums, recalled=X[..., :0]), batch)


def _products(module: NearShallowLM, batch: Segments) -> torch.Tensor:
    """Score a batch as in the thaw phase, whole blocks without a cache, though the embedding is frozen."""
    return _cross_entropy(module, module._segment_features(batch, cached=False), batch)


def _cross_entropy(module: NearShallowLM, features: torch.Tensor, batch: Segments) -> torch.Tensor:
    fixed = module.config.radius * module.config.bits
    return module.output.cross_entropy(features.flatten(0, 1), batch.targets.flatten(), fixed)


def mean_curve(arm: dict[str, Any]) -> Curve:
    """Return tokens, and losses as the mean of the seeds."""
    return np.array(arm["runs"][0]["tokens"], float), np.mean([run["nats"] for run in arm["runs"]], axis=0)


def ends(runs: Sequence[dict[str, Any]]) -> list[float]:
    """Return the last validation loss of every run."""
    return [run["nats"][-1] for run in runs]


def end_of(arm: dict[str, Any]) -> float:
    """Return the mean loss of the seeds at the end."""
    return statistics.mean(ends(arm["runs"]))


def gap(case: dict[str, Any]) -> float:
    """Return how far the warm start ends below the better cold arm."""
    return min(end_of(case[arm]) for arm in ARMS[1:]) - end_of(case["warm"])


def row_of_ends(name: str, arm: dict[str, Any]) -> list[Any]:
    """Return the row of an arm: start, end, test perplexity, rates."""
    start = render.nats(statistics.mean(run["nats"][0] for run in arm["runs"]))
    perplexity = math.exp(statistics.mean(run["test_nats"] for run in arm["runs"]))
    rates = " / ".join(f"{arm['rates'][group]:.3g}" for group in GROUPS)
    return [name + arm["mark"], start, render.spread(ends(arm["runs"])), perplexity, rates]


def short_losses(case: dict[str, Any], tokens: int) -> list[float]:
    """Return the losses of the best short runs of every arm, and the lead over the better cold arm."""
    warm, *cold = (case[arm]["short"][tokens] for arm in ARMS)
    return [warm, *cold, min(cold) - warm]


def short_mark(case: dict[str, Any]) -> str:
    """Return the mark of older code if it made one of the short runs."""
    return max(str(arm["short_mark"]) for arm in case.values())


def row_of_leads(name: str, case: dict[str, Any]) -> list[Any]:
    """Return the row of the lead over the better cold arm."""
    better = min(ARMS[1:], key=lambda arm: end_of(case[arm]))
    warm, cold, goal = mean_curve(case["warm"]), mean_curve(case[better]), end_of(case[better])
    seeds = [(np.array(run["tokens"], float), np.array(run["nats"])) for run in case[better]["runs"]]
    leads = [*(np.interp(LEADS, *cold) - np.interp(LEADS, *warm)), gap(case)]
    leads += [min((nats - warm[1]).min() for _, nats in seeds), goal - statistics.mean(ends(case["warm"]["third"]))]
    caught = [at for seed in seeds if (at := reached(seed, float(warm[1][0]))) is not None]
    crossings = [at for seed in seeds if (at := crossing(warm, seed)) is not None]
    same = reached(warm, goal)
    return [
        name,
        better,
        *map(render.nats, leads),
        f"{statistics.mean(caught) / 1e6:.2f} M" if caught else "never",
        "never" if same is None else f"{same / warm[0][-1]:.2f}",
        f"{min(crossings) / 1e6:.2f} M" if crossings else "none",
    ]


def write(tuned: dict[str, Any], ablations: dict[str, dict[str, float]], counted: dict[tuple[str, str], list[Any]],
          of_rows: dict[str, float], speeds: list[dict[str, Any]], mark: str, docs: Path,
          results: Results) -> None:  # fmt: skip
    """Write the section of docs/benchmarks.md and its picture."""
    ends_rows = [row_of_ends(f"{name}, {arm}", case[arm]) for name, case in tuned.items() for arm in case]
    table = render.table(["text, preset, start", "start", "end", "test perplexity", "rates"], ends_rows)
    shorts = {name: [short_losses(case, tokens) for tokens in SHORT] for name, case in tuned.items()}
    headers = ["text, preset", *(f"{n / 1e6:g} M, {what}" for n in SHORT for what in (*ARMS, "lead"))]
    short = render.table(
        headers, [[name + short_mark(tuned[name]), *map(render.nats, chain(*rows))] for name, rows in shorts.items()]
    )
    headers = ["text, preset", "better cold arm", *(f"lead at {at / 1e6:.0f} M" for at in LEADS), "lead at the end"]
    headers += ["least lead", f"lead of a warm run of {TOKENS / 3e6:.2f} M", "cold reaches warm's start after"]
    headers += ["share of tokens to cold's end", "curves cross at"]
    leads = render.table(headers, [row_of_leads(*each) for each in tuned.items()])
    without = render.table(
        ["phases", *SPLITS], [[name, *(render.nats(ablations[text][name]) for text in SPLITS)] for name in ABLATIONS]
    )
    rows = [
        [f"{text}, {arm}", *(render.nats(run["nats"][-1]) for run in runs)] for (text, arm), runs in counted.items()
    ]
    weighted = render.table(["text, start", *(f"weight {weight:g}" for weight in COUNTED)], rows)
    times = {(row["block"], row["arm"]): row["microseconds"] for row in speeds}
    labels = {"windows": "windows one by one", "products": "block products", "cached": "cached (default)"}
    timed = [
        [label + mark, *(times[s, arm] for s in BLOCKS), times[512, arm] / times[256, arm],
         times[512, "windows"] / times[512, arm]] for arm, label in labels.items()
    ]  # fmt: skip
    panels: dict[str, Any] = {name: {} for name in tuned}
    for name, arm in ((name, arm) for name, case in tuned.items() for arm in case):
        tokens, nats = mean_curve(tuned[name][arm])
        panels[name][arm] = (tokens / 1e6, nats)
    top = max(case["warm"]["runs"][0]["nats"][0] for case in tuned.values()) + 1.0
    render.curves(docs / "images" / "finetune.png", panels, "million tokens", "nats a token, validation", top)
    shares = ", ".join(f"{name} {case['warm']['runs'][0]['padded_share']:.1%}" for name, case in tuned.items())
    spans = []
    for length, *rows in zip(SHORT, *shorts.values(), strict=True):
        least, most = min(row[-1] for row in rows), max(row[-1] for row in rows)
        spans.append(f"{least:.2f} to {most:.2f} nats after {length / 1e6:g} M tokens")
    gaps = [gap(case) for case in tuned.values()]
    conclusion = (
        "With rates of its own for every arm and length, the warm start leads the better cold start by "
        f"{' and '.join(spans)}; after {TOKENS / 1e6:g} M tokens its lead is {min(gaps):.2f} to {max(gaps):.2f} nats, "
        "negative where it is behind."
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
Counted targets (`warmstart.finetune.targets`) in the last phase, preset micro, {SEARCH_TOKENS:,} tokens: nats on the
validation text at the end by the weight at the start of the phase. The rates are those of the runs without. A step of
the whole network at V = 8,192 on a CPU takes {of_rows["with"] / of_rows["without"]:.2f} times as long with the rows.

{weighted}
One step of the frozen phase on a CPU, microseconds a token (median of 15, arms in turns), V = 8,192, 128 bits, rows of
512:

{render.table(["block context", "block 256", "block 512", "512 / 256", "times as fast at 512"], timed)}"""
    render.write(docs, "finetune", "Fine-tuning: warm and cold starts", conclusion, body, results)
