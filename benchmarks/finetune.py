"""Fine-tuning: warm against cold starts at equal tokens, phases left out, and what cached comparisons save.

Every run is the command line in a process and on a core of its own. Learning rates are chosen for each start by short
runs on the validation text; the test text is read once, by the finished models. Finished runs are kept in
``docs/results/finetune.jsonl`` and not run again by the same code.
"""

import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks import report
from benchmarks.report import Book
from warmstart import figures
from warmstart.corpus import Corpus
from warmstart.finetune.batches import Batches
from warmstart.finetune.compare import Curve, crossing, reached
from warmstart.finetune.log import LOG, read
from warmstart.layers import NearShallowLM
from warmstart.layers.near_shallow import Segments
from warmstart.near_shallow import Config, cipher_vectors
from warmstart.progress import Progress

TEXTS = {  # folder of the data, training file, expression between documents
    "wikitext-2": ("train.txt", r"\n(?= = [^=])"),
    "classics": ("train.txt.xz", r"\n\n"),
}
PRESETS = ("micro", "small")
VOCAB_SIZE = 4096
TOKENS, SWEEP_TOKENS, ABLATION_TOKENS, EVERY, SCORED = 5_000_000, 300_000, 1_000_000, 250_000, 30_000
RATES = (0.15, 0.3, 0.6, 1.2, 2.4)
SEEDS = (0, 1, 2)
WARM, COLD = "warm,frozen,thaw", "all"
ABLATIONS = {
    "warm, frozen, thaw (default)": "warm,frozen,thaw",
    "no warm: not scored at the start": "frozen,thaw",
    "no frozen": "warm,thaw",
    "no thaw: the embedding stays frozen": "warm,frozen",
    "one phase, one rate": "all",
}
BLOCKS = (256, 512)
LEADS = (1_000_000, 2_000_000, 4_000_000)  # tokens
PARTS = ("finetune", "layers", "language_model.py", "solution.py")
CODE = ("bitcipher/codes.py", *(f"warmstart/{part}" for part in PARTS))


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Run everything, write tables and plots; ``quick``: one small case, short runs, nothing is written.

    Raises
    ------
    RuntimeError
        A run failed; its own message is shown.
    """
    book = Book(None if quick else docs / "results" / "finetune.jsonl", report.code_digest(*CODE))
    cases = [(text, preset) for preset in (["potato"] if quick else PRESETS) for text in TEXTS]
    less = 250 if quick else 1
    rounds = (1,) if quick else (1, len(SEEDS))  # one of each first, so that there is a table early
    with tempfile.TemporaryDirectory(prefix="warmstart-bench-") as folder:
        made = [Case(data / text, preset, Path(folder), book, less) for text, preset in (cases[:1] if quick else cases)]
        for seeds in rounds:
            results: dict[str, Any] = {"cases": {}, "ablation": {}}
            for i, case in enumerate(made):
                if progress:
                    progress(f"{case.name}, {seeds} cold seeds", i, len(made))
                results["cases"][case.name] = case.compare(seeds)
            for case in made:
                if case.preset == "micro":
                    results["ablation"][case.text.name] = case.ablate()
            if progress:
                progress("cached comparisons", 0, None)
            results["speed"] = book.do("speed", lambda: speed(data / "classics", less))
            if not quick:
                _write(results, docs)
    return results


class Case:
    """One text and preset: its starts, and the runs from them."""

    def __init__(self, text: Path, preset: str, folder: Path, book: Book, less: int) -> None:
        self.text, self.preset, self.folder, self.book, self.less = text, preset, folder, book, less
        self.train, self.split = TEXTS[text.name]
        self.name = f"{text.name} {preset}"

    def compare(self, seeds: int) -> dict[str, Any]:
        """Choose rates, then run every arm to the end; cold ones for so many seeds and all that are kept."""
        rates = RATES if self.less == 1 else RATES[1:2]
        sweep = {
            name: dict(zip(rates, self._all([(start, phases, rate, SWEEP_TOKENS) for rate in rates]), strict=True))
            for name, start, phases in (("warm", "warm", WARM), ("cold", "cold 0", COLD))
        }
        best = {name: min(runs, key=lambda rate: runs[rate]["nats"][-1]) for name, runs in sweep.items()}
        colds = [(f"cold {seed}", COLD, best["cold"], TOKENS) for seed in SEEDS]
        chosen = [job for i, job in enumerate(colds) if i < seeds or self.book.has(self._name(*job))]
        warm, third, *cold = self._all([("warm", WARM, best["warm"], n) for n in (TOKENS, TOKENS // 3)] + chosen)
        ends = {name: {str(rate): run["nats"][-1] for rate, run in runs.items()} for name, runs in sweep.items()}
        return {"sweep": ends, "best": best, "warm": warm, "third": third, "cold": cold}

    def ablate(self) -> dict[str, Any]:
        """Leave out one phase after the other, at the default rates."""
        runs = self._all([("warm", phases, 1.0, ABLATION_TOKENS) for phases in ABLATIONS.values()])
        return dict(zip(ABLATIONS, runs, strict=True))

    def _all(self, jobs: Sequence[tuple[str, str, float, int]]) -> list[Any]:
        """Run jobs (start, phases, rate, tokens), as many at once as there are cores."""
        for start in sorted({job[0] for job in jobs if not self.book.has(self._name(*job))}):
            self._start(start)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda job: self.book.do(self._name(*job), lambda: self._run(*job)), jobs))

    def _name(self, start: str, phases: str, rate: float, tokens: int) -> str:
        return f"{self.name}: {start}, {phases}, rate {rate}, {tokens} tokens"

    def _start(self, start: str) -> Path:
        """Fit the start of an arm once: "warm", or "cold" and a seed."""
        path = self.folder / f"{self.name} {start}".replace(" ", "-")
        if not path.exists():
            options = ["--cold", "--seed", start.split()[1]] if start != "warm" else []
            size = ["--preset", self.preset, "--vocab-size", str(VOCAB_SIZE if self.less == 1 else 512)]
            _warmstart(
                "fit", str(self.text / self.train), "-o", str(path), "--split-documents", self.split, *size, *options
            )
        return path

    def _run(self, start: str, phases: str, rate: float, tokens: int) -> dict[str, Any]:
        out = self.folder / hashlib.sha256(self._name(start, phases, rate, tokens).encode()).hexdigest()[:16]
        sources = (str(self.text / self.train), "--valid", str(self.text / "valid.txt"))
        every, scored = (EVERY, SCORED) if self.less == 1 else (tokens // self.less // 2, 3000)
        done = _warmstart(
            *("finetune", str(self._start(start)), *sources, "-o", str(out)),
            *("--split-documents", self.split, "--phases", phases, "--rate", str(rate), "--bf16"),
            *("--max-tokens", str(tokens // self.less), "--validate-every", str(every)),
            *("--valid-tokens", str(scored)),
        )
        log = read(out / LOG)
        result = {key: [record[key] for record in log] for key in ("tokens", "seconds", "nats")}
        result |= {"padded_share": done["padded_share"]}
        if tokens == TOKENS and start in ("warm", "cold 0"):
            found = _warmstart("eval", str(out), str(self.text / "test.txt"), "--split-documents", self.split)
            result |= {"test_perplexity": found["perplexity"], "test_bits_per_byte": found["bits_per_byte"]}
        return result


def _warmstart(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "warmstart.cli", *arguments, "--json", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # two that share cores wait in turns
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603 - ours
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {result.stderr.strip()}")
    return dict(json.loads(result.stdout))


def speed(books: Path, less: int) -> list[dict[str, Any]]:
    """Time a step of the frozen phase with long blocks, on the classics: windows, block products, cache."""
    corpus = Corpus.build(books / "train.txt.xz", split_documents=TEXTS["classics"][1])
    rows = []
    for size in BLOCKS[: 1 if less > 1 else None]:
        config = Config(corpus.vocab_size, corpus.separator, 128, 32, 2, size, ("radial", "block", "document"))
        module = NearShallowLM(config)
        with torch.no_grad():
            module.embedding.weight.copy_(torch.from_numpy(cipher_vectors(corpus.vocab_size, 128).toarray()))
        module.embedding.weight.requires_grad_(False)
        batches = Batches(corpus, config, batch_tokens=4 * max(BLOCKS))
        order = batches.order(0)
        batch = next(batches.segments(b) for b in order if b.size * int(batches.table[2][b].min()) == 4 * max(BLOCKS))
        arms = {"windows": _windows, "products": _products, "cached": NearShallowLM.token_losses}
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        for _ in range(3 if less > 1 else 16):
            for arm, step in arms.items():  # in turns
                began = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16):
                    nats = step(module, batch)
                (nats.sum() / nats.numel()).backward()  # type: ignore[no-untyped-call]
                times[arm].append((time.perf_counter() - began) / nats.numel())
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
    return module.output.cross_entropy(
        features.flatten(0, 1), batch.targets.flatten(), module.config.radius * module.config.bits
    )


def _curve(run: dict[str, Any]) -> Curve:
    return np.array(run["tokens"], float), np.array(run["nats"])


def _ends(name: str, case: dict[str, Any]) -> list[Any]:
    warm, ends = case["warm"], [run["nats"][-1] for run in case["cold"]]
    return [
        name,
        warm["nats"][0],
        warm["nats"][-1],
        report.spread(ends),
        len(ends),
        statistics.mean(ends) - warm["nats"][-1],
        warm["test_perplexity"],
        case["cold"][0]["test_perplexity"],
        case["best"]["warm"],
        case["best"]["cold"],
    ]


def _lead(name: str, case: dict[str, Any]) -> list[Any]:
    warm, colds = _curve(case["warm"]), [_curve(run) for run in case["cold"]]
    least = min(float((cold[1] - warm[1]).min()) for cold in colds)
    goal = statistics.mean(float(cold[1][-1]) for cold in colds)
    caught = statistics.mean(reached(cold, float(warm[1][0])) or math.nan for cold in colds)
    same, crossings = reached(warm, goal), [x for cold in colds if (x := crossing(warm, cold)) is not None]
    short = {arm: min(case["sweep"][arm].values()) for arm in ("warm", "cold")}
    return [
        name,
        short["cold"] - short["warm"],
        *(float(statistics.mean(np.interp(at, *cold) for cold in colds) - np.interp(at, *warm)) for at in LEADS),
        least,
        goal - case["third"]["nats"][-1],
        f"{caught / 1e6:.2f} M",
        "never" if same is None else f"{same / warm[0][-1]:.2f}",
        f"{min(crossings) / 1e6:.2f} M" if crossings else "none",
    ]


def _write(results: dict[str, Any], docs: Path) -> None:
    cases = results["cases"].items()
    short = f"{SWEEP_TOKENS / 1e6:.1f} M"
    ends = report.table(
        [
            "text, preset",
            "start",
            "end, warm",
            "end, cold",
            "seeds",
            "gap",
            "test ppl, warm",
            "test ppl, cold",
            "rate, warm",
            "rate, cold",
        ],
        [_ends(name, case) for name, case in cases],
    )
    leads = report.table(
        [
            "text, preset",
            f"gap, runs of {short}",
            *(f"gap at {at / 1e6:.0f} M" for at in LEADS),
            "least gap",
            f"warm run of {TOKENS / 3e6:.2f} M, under cold's end",
            "cold is at warm's start after",
            "share of tokens to cold's end",
            "crossing",
        ],
        [_lead(name, case) for name, case in cases],
    )
    ablations = [[name, *(results["ablation"][text][name]["nats"][-1] for text in TEXTS)] for name in ABLATIONS]
    by_block = {size: {r["arm"]: r["microseconds"] for r in results["speed"] if r["block"] == size} for size in BLOCKS}
    labels = {"windows": "windows one by one", "products": "block products", "cached": "cached (default)"}
    speeds = [
        [
            label,
            *(by_block[s][arm] for s in BLOCKS),
            by_block[512][arm] / by_block[256][arm],
            by_block[512]["windows"] / by_block[512][arm],
        ]
        for arm, label in labels.items()
    ]
    _draw(docs / "images" / "finetune.png", results["cases"])
    shares = ", ".join(f"{name} {case['warm']['padded_share']:.1%}" for name, case in results["cases"].items())
    body = f"""## Fine-tuning: warm and cold starts

{TOKENS:,} tokens in steps of 2,048, V = {VOCAB_SIZE:,}, AdamW, products in bfloat16. Warm: `fit`, phases
`{WARM}`. Cold: `fit --cold`, phase `{COLD}`. The factor of the learning rates is the best of
{", ".join(map(str, RATES))} for each start after {SWEEP_TOKENS:,} tokens. Nats a token on the validation text (about
{SCORED:,} tokens of it), every {EVERY:,} tokens; perplexity of finished models (cold: the first seed) on the whole test
text, read once.

{ends}
The lead over tokens. "Runs of {short}" are the best of the short runs, annealed to their own end; the other columns
read the curves of the long ones. "Least gap" is the smallest lead over any cold seed at any logged point, negative
where the warm start is behind. The warm run of a third of the tokens is annealed to its own end; where it is under the
end of the cold runs (above 0), a third of the tokens is enough.

{leads}
Padded positions: {shares}.

![Nats over tokens](images/finetune.png)

Phases left out, preset micro, {ABLATION_TOKENS:,} tokens, nats on the validation text at the end:

{report.table(["phases", *TEXTS], ablations)}
One step of the frozen phase, microseconds a token (median of 15, arms in turns), V = 8,192, 128 bits, bfloat16, rows of
512:

{report.table(["block context", "block 256", "block 512", "512 / 256", "times as fast at 512"], speeds)}
"""
    report.write(docs, "finetune", body)


def _draw(path: Path, cases: dict[str, Any]) -> None:
    figure, axes = figures.figure(len(cases))
    for axis, (name, case) in zip(axes, cases.items(), strict=True):
        for run in case["cold"]:
            axis.plot(np.array(run["tokens"]) / 1e6, run["nats"], "--", color="tab:blue", linewidth=1)
        axis.plot(np.array(case["warm"]["tokens"]) / 1e6, case["warm"]["nats"], color="tab:red")
        axis.plot([], [], "--", color="tab:blue", label=f"cold, seeds: {len(case['cold'])}")
        axis.plot([], [], color="tab:red", label="warm")
        axis.set(title=name, xlabel="million tokens", ylim=(None, case["warm"]["nats"][0] + 1.5))
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_ylabel("nats a token, validation")
    figures.save_figure(figure, path)
