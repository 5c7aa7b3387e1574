"""Warm starts of GPT-2 and Llama beside the starts others would use: the same tokens, steps, optimizer and shape.

The learning rate of every start is the best of three by the validation text, then it is run for more seeds. The V x V
table is four times as slow: its rate is chosen by short runs, and it has one seed. Finished runs are kept in
``docs/results/transformers.jsonl`` and not run again by the same code. As many runs at a time as there are cores, one
thread each.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import report
from benchmarks.report import Book
from warmstart import accumulators, baselines, figures, solution
from warmstart.adapters import load_into
from warmstart.corpus import Corpus
from warmstart.counts import PairStatistics, count_pairs
from warmstart.finetune.compare import crossing, reached
from warmstart.layers.softmax import fused_cross_entropy
from warmstart.near_shallow import cipher_vectors
from warmstart.progress import Progress

VOCAB_SIZE, WIDTH, CONTEXT, ROWS = 8192, 128, 64, 48
STEPS, TABLE_STEPS, LONG_STEPS = 600, 100, 2400  # the second: to choose the rate of the table
EVERY, SCORED = 50, 480  # steps between validations, windows of them
WARMUP = 30  # steps
RATES = (2.5e-3, 5e-3, 1e-2)
SEEDS = (0, 1, 2)
ARCHITECTURES = {"gpt2": "GPT-2", "llama": "Llama"}
BLIND = ("default, tied", "default, untied", "log-unigram bias", "mimetic + log-unigram bias")
KNOWING = ("PPMI-SVD embedding + bias", "cipher + explicit solution + bias")
TABLE = "count-bigram table"
OURS = ("spectral", "spectral + heads")
ARMS = (*BLIND, *KNOWING, TABLE, *OURS)
LONG_ARMS = ("log-unigram bias", OURS[1], OURS[0])
GPT2_124M: dict[str, Any] = {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}
FILES = ("adapters/decoders", "adapters/heads", "baselines", "spectral", "counts", "layers/softmax")
CODE = tuple(f"warmstart/{name}.py" for name in FILES)
Rows = NDArray[np.float32]


@dataclass
class Start:
    """A model and what a baseline adds to its logits: a bias (V,) or a row for the token before (V, V)."""

    model: Any
    bias: nn.Parameter | None = None
    table: nn.Embedding | None = None

    def nats(self, ids: Tensor) -> Tensor:
        """Return ``-log P`` of every token (rows, length + 1) but the first."""
        inputs, targets = ids[:, :-1], ids[:, 1:].flatten()
        with torch.autocast(ids.device.type, torch.bfloat16):
            x = self.model.base_model(inputs).last_hidden_state.flatten(0, 1)
            weight = self.model.lm_head.weight.T
            if self.table is not None:
                z = (x @ weight).float() + self.table(inputs).flatten(0, 1)
                return functional.cross_entropy(z, targets, reduction="none")
            if self.bias is not None:
                x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
                weight = torch.cat([weight, self.bias[None]])
            return fused_cross_entropy(x, weight, targets)

    def optimizers(self, rate: float) -> list[torch.optim.Optimizer]:
        """Return AdamW of all dense parameters, and Adam on the rows that a step touches for a table."""
        dense = [*self.model.parameters(), *([self.bias] if self.bias is not None else [])]
        out: list[torch.optim.Optimizer] = [torch.optim.AdamW(dense, rate, (0.9, 0.95), weight_decay=0.0, fused=True)]
        if self.table is not None:
            out.append(torch.optim.SparseAdam(list(self.table.parameters()), rate, (0.9, 0.95)))
        return out

    @property
    def n_parameters(self) -> int:
        """Number of trained weights."""
        extra = [self.bias] if self.bias is not None else []
        extra += list(self.table.parameters()) if self.table is not None else []
        return sum(p.numel() for p in (*self.model.parameters(), *extra))


def build(arch: str, arm: str, seed: int, pairs: PairStatistics, big: bool = False) -> Start:
    """Return the start of an arm; what is random has the seed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if arch == "gpt2":
        shape: dict[str, Any] = (
            GPT2_124M if big else {"n_embd": WIDTH, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT}
        )
        shape = shape | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        shape["activation_function"] = "gelu_pytorch_tanh"  # GPT-2's own, in one kernel
    else:
        shape = {"hidden_size": WIDTH, "intermediate_size": 344, "num_hidden_layers": 3, "num_attention_heads": 4}
        shape |= {"num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
    shape |= {"vocab_size": pairs.vocab_size, "tie_word_embeddings": arm == BLIND[0]}
    torch.manual_seed(seed)
    shape["attn_implementation"] = "eager"  # at windows this short the fused kernel is slower on a CPU
    config = AutoConfig.for_model(arch, **shape, **dict.fromkeys(("bos_token_id", "eos_token_id")))
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    start = Start(model)
    if arm.endswith("bias"):
        start.bias = nn.Parameter(torch.from_numpy(baselines.log_unigram(pairs.pairs.sum(axis=0))))
    with torch.no_grad():
        if arm.startswith("mimetic"):
            _mimetic(model, arch, seed)
        elif arm.startswith("PPMI"):
            weight = model.get_input_embeddings().weight
            rows = baselines.ppmi_svd(pairs.pairs, WIDTH)
            weight.copy_(torch.from_numpy(rows * (float(weight.std()) / rows.std())))  # norm-matched
        elif arm.startswith("cipher"):
            _cipher(model, pairs, centred=arch == "gpt2")
        elif arm == TABLE:
            table = torch.from_numpy(baselines.count_bigram(pairs.pairs))
            start.table = nn.Embedding(len(table), len(table), sparse=True, _weight=table)
            model.lm_head.weight.zero_()  # so that the table alone predicts at first
    if arm in OURS:
        load_into(model, pairs, heads=0 if arm == "spectral" else None)
    return start


def _mimetic(model: Any, arch: str, seed: int) -> None:
    width, n_heads = model.config.hidden_size, model.config.num_attention_heads
    for i, layer in enumerate(model.base_model.h if arch == "gpt2" else model.base_model.layers):
        q, k, v, o = baselines.mimetic(width, n_heads, seed=1000 * seed + i)
        if arch == "gpt2":
            layer.attn.c_attn.weight.copy_(torch.cat([q, k, v], dim=1))
            layer.attn.c_proj.weight.copy_(o)
            continue
        attention = layer.self_attn  # heads that share keys and values get those of the first of them
        size, shared = attention.head_dim, attention.num_key_value_groups
        first = torch.arange(width).view(n_heads // shared, shared, size)[:, 0].flatten()
        for name, matrix in (("q_proj", q), ("k_proj", k[:, first]), ("v_proj", v[:, first]), ("o_proj", o)):
            getattr(attention, name).weight.copy_(matrix.T)


def _cipher(model: Any, pairs: PairStatistics, centred: bool) -> None:
    """Write bit-cipher vectors and the explicit solution for what the final norm makes of them, tempered."""
    vectors = cipher_vectors(pairs.vocab_size, WIDTH)
    E = vectors.toarray().astype(np.float64)
    E -= E.mean(axis=1, keepdims=True) if centred else 0.0
    E /= np.sqrt((E**2).mean(axis=1, keepdims=True))
    counts = accumulators.empty(WIDTH, pairs.vocab_size)
    counts.sums += (vectors.astype(np.float64).T @ pairs.pairs).toarray().T
    counts.n_examples = int(pairs.pairs.sum())
    prior = solution.class_prior(pairs.pairs.sum(axis=0))
    U = solution.log_likelihood(counts, prior, smoothing=100.0)
    held_out, log_prior = pairs.held_out.tocoo(), np.log(prior)
    best = (np.inf, 1.0)
    for temperature in (0.03, 0.06, 0.1, 0.15, 0.2):
        z = temperature * E @ U + log_prior
        x, y = held_out.coords
        loss = held_out.data @ (np.log(np.exp(z).sum(axis=1))[x] - z[x, y])
        best = min(best, (float(loss), temperature))
    model.get_input_embeddings().weight.copy_(torch.from_numpy(0.1 * E))
    model.lm_head.weight.copy_(torch.from_numpy(best[1] * U.T))


def train(
    start: Start,
    texts: tuple[NDArray[Any], NDArray[Any]],
    rate: float,
    steps: int,
    *,
    seed: int = 0,
    device: str = "cpu",
    shape: tuple[int, int] = (ROWS, CONTEXT),
    every: int = EVERY,
) -> dict[str, Any]:
    """Train a start on windows of a text; return nats on windows of the other before some steps and at the end."""
    text, valid = texts
    random, length = np.random.default_rng(seed), shape[1] + 1
    for part in (start.model, *((start.table,) if start.table is not None else ())):
        part.to(device)
    optimizers = start.optimizers(rate)
    found: dict[str, Any] = {"steps": [], "nats": [], "seconds": []}
    seconds = 0.0
    for step in range(steps + 1):
        if step % every == 0 or step == steps:
            scored = score(start, valid, SCORED * CONTEXT // shape[1], length, device)
            for name, value in (("steps", step), ("nats", scored), ("seconds", seconds)):
                found[name].append(value)
        if step == steps:
            break
        began = time.process_time() if device == "cpu" else time.perf_counter()
        factor = min(1.0, (step + 1) / WARMUP) * (0.5 + 0.5 * np.cos(np.pi * step / steps))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        ids = _windows(text, random.integers(0, text.size - length, shape[0]), length, device)
        start.nats(ids).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(start.model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        seconds += (time.process_time() if device == "cpu" else time.perf_counter()) - began
    return found


def score(start: Start, text: NDArray[Any], count: int, length: int, device: str = "cpu") -> float:
    """Return nats on so many windows of a text, or as many as it has, spread over it."""
    starts = np.linspace(0, text.size - length, min(count, text.size // length)).astype(int)
    with torch.no_grad():
        parts = (_windows(text, starts[i : i + ROWS], length, device) for i in range(0, starts.size, ROWS))
        return float(torch.cat([start.nats(part).float().cpu() for part in parts]).mean())


def _windows(text: NDArray[Any], starts: NDArray[Any], length: int, device: str) -> Tensor:
    rows = np.stack([text[s : s + length] for s in starts.tolist()]).astype(np.int64)
    return torch.from_numpy(rows).to(device)


def _run(folder: str, arch: str, arm: str, seed: int, rate: float, steps: int) -> dict[str, Any]:
    """Build and train one start, in a process of its own."""
    torch.set_num_threads(1)
    texts = (np.load(Path(folder, "train.npy"), mmap_mode="r"), np.load(Path(folder, "valid.npy"), mmap_mode="r"))
    pairs = PairStatistics.load(Path(folder, "pairs.safetensors"))
    began = time.process_time()
    start = build(arch, arm, seed, pairs)
    made = time.process_time() - began
    return {**train(start, texts, rate, steps, seed=seed), "made": made, "parameters": start.n_parameters}


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Run every start, write tables and plots; ``quick``: two starts of each, one rate, 5 steps."""
    book = Book(None if quick else docs / "results" / "transformers.jsonl", report.code_digest(*CODE))
    books = data / "classics"
    text = Corpus.build(books / "train.txt.xz", vocab_size=1024 if quick else VOCAB_SIZE, split_documents=r"\n\n")
    valid = Corpus.encode(books / "valid.txt", text.tokenizer, split_documents=r"\n\n")
    with tempfile.TemporaryDirectory(prefix="warmstart-bench-") as folder:
        began = time.process_time()
        count_pairs(text.tokens, text.vocab_size).save(Path(folder, "pairs.safetensors"))
        counting = time.process_time() - began
        np.save(Path(folder, "train.npy"), text.tokens)
        np.save(Path(folder, "valid.npy"), valid.tokens)
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as processes:
            bench = _Bench(folder, book, processes, progress)
            results: dict[str, Any] = {"counting": counting, "architectures": {}}
            if quick:
                results["architectures"] = {arch: bench.compare(arch, (), quick) for arch in ARCHITECTURES}
                return results
            results["stock"] = book.do("stock step", lambda: stock_seconds(folder))
            for arch in ARCHITECTURES:
                arms = results["architectures"][arch] = bench.compare(arch, ())
                _write(results, docs)  # a table early
                arms = results["architectures"][arch] = bench.compare(arch, contenders(arms))
                _write(results, docs)
                if arch == "gpt2":
                    results["long"] = bench.longer(arms)
            for arch in ARCHITECTURES:
                results["architectures"][arch] = bench.compare(arch, {*ARMS} - {TABLE})
                _write(results, docs)
    if torch.cuda.is_available():
        results["gpu"] = book.do("gpu", lambda: large(text, valid, "cuda", seconds=600.0))
        _write(results, docs)
    return results


class _Bench:
    """Runs by name, kept in a book, as many at a time as there are processes."""

    def __init__(self, folder: str, book: Book, processes: ProcessPoolExecutor, progress: Progress | None) -> None:
        self.folder, self.book, self.processes, self.progress = folder, book, processes, progress

    def compare(self, arch: str, often: Collection[str], quick: bool = False) -> dict[str, Any]:
        """Run every start at every rate, then some at their best for the other seeds."""
        steps, rates = (5, RATES[:1]) if quick else (STEPS, RATES)
        few = ("log-unigram bias", OURS[1])
        arms = [arm for arm in ARMS if (arm in few if quick else arch == "gpt2" or arm != TABLE)]
        tried = [(arch, arm, 0, rate, TABLE_STEPS if arm == TABLE else steps) for arm in arms for rate in rates]
        ends = {(job[1], job[3]): run["nats"][-1] for job, run in zip(tried, self._all(tried), strict=True)}
        sweep = {arm: [ends[arm, rate] for rate in rates] for arm in arms}
        best = {arm: rates[int(np.argmin(sweep[arm]))] for arm in arms}
        jobs = [(arch, arm, seed, best[arm], steps) for seed in SEEDS for arm in arms]
        wanted = [job for job in jobs if not job[2] or job[1] in often or self.book.has(_name(*job))]
        found = self._all(wanted)
        runs = {arm: [run for run, job in zip(found, wanted, strict=True) if job[1] == arm] for arm in arms}
        return {arm: {"sweep": sweep[arm], "rate": best[arm], "runs": runs[arm]} for arm in arms}

    def longer(self, short: dict[str, Any]) -> dict[str, Any]:
        """Run some starts for four times the steps, at half their rate."""
        runs = self._all([("gpt2", arm, 0, short[arm]["rate"] / 2, LONG_STEPS) for arm in LONG_ARMS])
        return dict(zip(LONG_ARMS, runs, strict=True))

    def _all(self, jobs: Sequence[tuple[str, str, int, float, int]]) -> list[Any]:
        def one(job: tuple[str, str, int, float, int]) -> Any:
            name = _name(*job)
            found = self.book.do(name, lambda: self.processes.submit(_run, self.folder, *job).result())
            if self.progress:
                self.progress(name, 0, None)
            return found

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(one, jobs))


def _name(arch: str, arm: str, seed: int, rate: float, steps: int) -> str:
    return f"{arch}: {arm}, seed {seed}, rate {rate:g}, {steps} steps"


def contenders(arms: dict[str, Any]) -> set[str]:
    """Return our starts, the best of those that know unigrams at most, and the best of the others of their size."""
    return {*OURS, *(min(names, key=lambda name: _final(arms[name])) for names in (BLIND, KNOWING))}


def stock_seconds(folder: str) -> float:
    """Return CPU seconds of a step as the Trainer takes it: float32, the model's own loss, AdamW."""
    torch.set_num_threads(1)
    text = np.load(Path(folder, "train.npy"), mmap_mode="r")
    model = build("gpt2", BLIND[1], 0, PairStatistics.load(Path(folder, "pairs.safetensors"))).model
    optimizer, times = torch.optim.AdamW(model.parameters(), 1e-3), []
    for i in range(6):
        ids = _windows(text, np.arange(ROWS) * 1000 + i, CONTEXT, "cpu")
        began = time.process_time()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - began)
    return float(np.median(times[1:]))


def large(text: Corpus, valid: Corpus, device: str, seconds: float, big: bool = True) -> dict[str, Any]:
    """Train GPT-2 of 124 M from two starts, an untied default and a spectral one, for so many seconds each."""
    pairs = count_pairs(text.tokens, text.vocab_size)
    texts, shape = (
        (np.asarray(text.tokens), np.asarray(valid.tokens)),
        (32, GPT2_124M["n_positions"] if big else CONTEXT),
    )
    probe = train(build("gpt2", BLIND[1], 0, pairs, big), texts, 6e-4, 4, device=device, shape=shape)
    steps = max(1, int(seconds / (probe["seconds"][-1] / 4)))
    return {
        arm: train(build("gpt2", arm, 0, pairs, big), texts, 6e-4, steps, device=device, shape=shape)
        for arm in (BLIND[1], OURS[1])
    }


def _final(arm: dict[str, Any]) -> float:
    return float(statistics.mean(run["nats"][-1] for run in arm["runs"]))


def mean_curve(arm: dict[str, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return steps, and nats as the mean of the seeds."""
    return np.array(arm["runs"][0]["steps"], float), np.mean([run["nats"] for run in arm["runs"]], axis=0)


def _row(name: str, arm: dict[str, Any]) -> list[Any]:
    steps, mean = mean_curve(arm)
    ends = [run["nats"][-1] for run in arm["runs"]]
    return [
        name,
        arm["runs"][0]["parameters"],
        f"{arm['rate']:g}",
        *(float(np.interp(at, steps, mean)) for at in (0, 50, 100, 200)),
        report.spread(ends),
        len(ends),
        arm["runs"][0]["made"],
    ]


def marks(arms: dict[str, Any], counting: float, stock: float) -> dict[str, Any]:
    """Return what the best of our starts gains over the best that ignores the text, and over the best of the others."""
    ours, blind, knowing = (min(names, key=lambda name: _final(arms[name])) for names in (OURS, BLIND, KNOWING))
    warm = arms[ours]
    step = reached(mean_curve(warm), _final(arms[blind]))
    made = counting + statistics.mean(run["made"] for run in warm["runs"])
    seconds = statistics.mean(run["seconds"][-1] for run in arms[blind]["runs"])
    spent = np.mean([run["seconds"] for run in warm["runs"]], axis=0)
    equal = None if step is None else made + float(np.interp(step, mean_curve(warm)[0], spent))
    crossed = crossing(mean_curve(warm), mean_curve(arms[blind]))
    return {
        "our best": ours,
        "step 0": float(mean_curve(warm)[1][0]),
        "best that knows unigrams at most": blind,
        "gap to it": _final(arms[blind]) - _final(warm),
        "share of steps to its end": None if step is None else step / STEPS,
        "share of seconds, counting and solving included": None if equal is None else equal / seconds,
        "crossing": "none" if crossed is None else f"step {crossed:.0f}",
        "best other": knowing,
        "gap to that": _final(arms[knowing]) - _final(warm),
        "counted and solved (s)": made,
        "of the run here": made / seconds,
        "of a run in float32": made / (STEPS * stock),
    }


def _write(results: dict[str, Any], docs: Path) -> None:
    headers = ["start", "parameters", "rate", "step 0", "50", "100", "200", str(STEPS), "seeds", "made (s)"]
    done = {arch: results["architectures"][arch] for arch in ARCHITECTURES if arch in results["architectures"]}
    found = [marks(arms, results["counting"], results["stock"]) for arms in done.values()]
    rows = [[name, *(column[name] for column in found)] for name in found[0]]
    tables = ""
    for arch, arms in done.items():
        rows_of = [_row(name, arm) for name, arm in arms.items()]
        tables += f"{ARCHITECTURES[arch]}:\n\n{report.table(headers, rows_of)}\n"
    _draw(docs / "images" / "transformers.png", results)
    body = f"""## Transformers: spectral warm starts

3 layers, d = {WIDTH}, 4 heads, windows of {CONTEXT} tokens, V = {VOCAB_SIZE:,}, classics; {STEPS} steps of
{ROWS * CONTEXT:,} tokens, AdamW, cosine after {WARMUP} steps, products in bfloat16. Nats a token on validation books
({SCORED} windows). The rate is the best of {", ".join(f"{rate:g}" for rate in RATES)} (of the table: after
{TABLE_STEPS} steps). What knows the text counted all of it, 14.2 M tokens; a run reads
{STEPS * ROWS * CONTEXT / 1e6:.1f} M. Seconds are of one core, and of weights alone: counting the pairs took
{results["counting"]:.1f} s.

{tables}The marks. "A run in float32" has the model's own loss, as the Trainer takes it,
{results["stock"]:.3f} s a step.

{report.table(["", *(ARCHITECTURES[arch] for arch in done)], rows)}
![Nats over steps](images/transformers.png)
"""
    if "long" in results:
        at = range(STEPS, LONG_STEPS + 1, STEPS)
        long = {arm: np.interp(at, run["steps"], run["nats"]) for arm, run in results["long"].items()}
        lead = long[LONG_ARMS[0]] - np.min([long[arm] for arm in OURS], axis=0)
        longer = [[name, *map(float, values)] for name, values in (*long.items(), ("lead", lead))]
        body += f"\nGPT-2, {LONG_STEPS:,} steps, one seed, half the rate above:\n\n"
        body += report.table(["start", *(f"{n:,}" for n in at)], longer)
    if "gpu" in results:
        rows = [[arm, *(float(np.interp(n, run["steps"], run["nats"])) for n in (0, 100, 1000)), run["nats"][-1]]
                for arm, run in results["gpu"].items()]  # fmt: skip
        body += "\nGPT-2 of 124 M on a GPU, ten minutes for each start:\n\n"
        body += report.table(["start", "0", "100", "1,000", "end"], rows)
    report.write(docs, "transformers", body)


def _draw(path: Path, results: dict[str, Any]) -> None:
    panels = [
        (f"{ARCHITECTURES[arch]}, {STEPS} steps", {name: mean_curve(arm) for name, arm in arms.items()})
        for arch, arms in results["architectures"].items()
    ]
    if "long" in results:
        curves = {name: (np.array(run["steps"]), np.array(run["nats"])) for name, run in results["long"].items()}
        panels.append((f"GPT-2, {LONG_STEPS} steps", curves))
    figure, axes = figures.figure(len(panels))
    for axis, (title, lines) in zip(axes, panels, strict=True):
        for name, line in lines.items():
            axis.plot(*line, linewidth=2 if name in OURS else 1, label=name)
        axis.set(title=title, xlabel="steps", ylim=(None, 7.0))
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small")
    axes[0].set_ylabel("nats a token, validation")
    figures.save_figure(figure, path)
