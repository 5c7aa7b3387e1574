"""Warm starts of GPT-2 and Llama beside the starts that others use: the same tokens, steps, optimizer and shape.

Every start may choose between two recipes of training, and finds its own rate for each, by the validation text with the
first seed and with the same number of trials. Then it is run for every seed.
"""

import statistics
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import harness, render
from benchmarks.harness import Results, Workers, search
from benchmarks.training import train
from warmstart import accumulators, baselines, solution
from warmstart.adapters import load_into
from warmstart.adapters.decoders import SCALE
from warmstart.corpus import Corpus
from warmstart.counts import PairStatistics, count_pairs
from warmstart.finetune import Phase, decoder_schedule
from warmstart.finetune.compare import crossing, reached
from warmstart.finetune.phases import DECODER_RATE
from warmstart.layers.softmax import fused_cross_entropy
from warmstart.near_shallow import cipher_vectors
from warmstart.progress import Progress

SHAPE = {"vocab_size": 8192, "width": 128, "layers": 3, "heads": 4, "context": 64, "windows": 48, "scored": 480}
STEPS, LONG_STEPS = 600, 2400
CHECKED = (*range(0, 100, 10), *range(100, STEPS + 1, 50))  # steps of the validations
SEEDS = (0, 1, 2)
START_RATE, TRIALS, HIGH_RATE = 5e-3, 4, 7e-3
ARCHITECTURES = {"gpt2": "GPT-2", "llama": "Llama"}
BLIND = ("default, tied", "default, untied", "log-unigram bias", "mimetic + log-unigram bias")
KNOWING = ("PPMI-SVD embedding + bias", "cipher + explicit solution + bias")
TABLE = "count-bigram table"
OURS = ("spectral", "spectral + heads")
ARMS = (*BLIND, *KNOWING, TABLE, *OURS)


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: share of the run for the warm-up, second moment of Adam, rate of blocks over tables."""

    warmup: float
    beta2: float
    blocks: float
    scale: float = SCALE  # of the embedding of our starts


KEPT = decoder_schedule().phases[0]
USUAL = Recipe(0.05, 0.95, 1.0)
KEEPING = Recipe(KEPT.warmup, 0.99, KEPT.rates["blocks"] / KEPT.rates["tables"])
RECIPES = {"usual": USUAL, "keeping": KEEPING, "short": Recipe(USUAL.warmup, KEEPING.beta2, KEEPING.blocks)}
WITHOUT = {  # what the keeping recipe consists of: parts left out, with the rate
    "nothing": (KEEPING, DECODER_RATE),
    "the lower rate": (KEEPING, HIGH_RATE),
    "rate and long warm-up (0.05 of the run)": (replace(KEEPING, warmup=USUAL.warmup), HIGH_RATE),
    "rate and second moment of Adam (0.95)": (replace(KEEPING, beta2=USUAL.beta2), HIGH_RATE),
    "rate and slower blocks": (replace(KEEPING, blocks=1.0), HIGH_RATE),
    "rate and larger embedding rows (0.1)": (replace(KEEPING, scale=0.1), HIGH_RATE),
    "all but the rate": (replace(USUAL, scale=0.1), DECODER_RATE),
}


@dataclass
class Start:
    """A model and what a baseline adds to its logits: a bias (V,), or a row for the token before (V, V)."""

    model: Any
    bias: nn.Parameter | None = None
    table: nn.Embedding | None = None

    def losses(self, ids: Tensor) -> Tensor:
        """Return ``-log P`` of every token of windows (rows, length + 1) but the first."""
        inputs, targets = ids[:, :-1], ids[:, 1:].flatten()
        low = harness.precision() == "bfloat16"
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=low):
            x = self.model.base_model(inputs).last_hidden_state.flatten(0, 1)
            weight = self.model.lm_head.weight.T
            if self.table is not None:
                z = (x @ weight).float() + self.table(inputs).flatten(0, 1)
                return functional.cross_entropy(z, targets, reduction="none")
            if self.bias is not None:
                x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
                weight = torch.cat([weight, self.bias[None]])
            return fused_cross_entropy(x, weight, targets)

    def to(self, device: str) -> None:
        """Move everything that is trained."""
        self.model.to(device)
        if self.table is not None:
            self.table.to(device)
        if self.bias is not None:
            self.bias = nn.Parameter(self.bias.detach().to(device))

    def optimizers(self, rate: float, recipe: Recipe) -> list[torch.optim.Optimizer]:
        """Return AdamW for all dense parameters, and Adam on the rows that a step touches for a table."""
        by_group = decoder_schedule().parameters(self.model)
        groups = [
            {"params": by_group["tables"] + ([self.bias] if self.bias is not None else []), "rate": rate},
            {"params": by_group["blocks"], "rate": rate * recipe.blocks},
        ]
        betas = (0.9, recipe.beta2)
        optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, rate, betas, weight_decay=0.0, fused=True)]
        if self.table is not None:
            rows = [{"params": list(self.table.parameters()), "rate": rate}]
            optimizers.append(torch.optim.SparseAdam(rows, rate, betas))
        return optimizers

    @property
    def n_parameters(self) -> int:
        """Number of trained weights."""
        extra = [self.bias] if self.bias is not None else []
        extra += list(self.table.parameters()) if self.table is not None else []
        return sum(p.numel() for p in (*self.model.parameters(), *extra))


def build(arch: str, arm: str, seed: int, pairs: PairStatistics, scale: float = SCALE) -> Start:
    """Return the start of an arm; its random weights are drawn with the seed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    width, layers, heads, context = (SHAPE[name] for name in ("width", "layers", "heads", "context"))
    if arch == "gpt2":
        shape: dict[str, Any] = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": context}
        shape |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        shape["activation_function"] = "gelu_pytorch_tanh"  # GPT-2's own, in one kernel
    else:
        shape = {"hidden_size": width, "intermediate_size": 344, "num_hidden_layers": layers}
        shape |= {"num_attention_heads": heads, "num_key_value_heads": 2, "max_position_embeddings": context}
    shape |= {"vocab_size": pairs.vocab_size, "tie_word_embeddings": arm == BLIND[0]}
    shape["attn_implementation"] = "eager"  # at windows this short the fused kernel is slower on a CPU
    torch.manual_seed(seed)
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
            rows = baselines.ppmi_svd(pairs.pairs, width)
            weight.copy_(torch.from_numpy(rows * (float(weight.std()) / rows.std())))  # norm-matched
        elif arm.startswith("cipher"):
            _cipher(model, pairs, centred=arch == "gpt2")
        elif arm == TABLE:
            table = torch.from_numpy(baselines.count_bigram(pairs.pairs))
            start.table = nn.Embedding(len(table), len(table), sparse=True, _weight=table)
            model.lm_head.weight.zero_()  # so that the table alone predicts at first
    if arm in OURS:
        load_into(model, pairs, scale=scale, heads=0 if arm == "spectral" else None)
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
    """Write bit-cipher vectors, and the explicit solution for what the final norm makes of them, tempered."""
    width = model.config.hidden_size
    vectors = cipher_vectors(pairs.vocab_size, width)
    E = vectors.toarray().astype(np.float64)
    E -= E.mean(axis=1, keepdims=True) if centred else 0.0
    E /= np.sqrt((E**2).mean(axis=1, keepdims=True))
    counts = accumulators.empty(width, pairs.vocab_size)
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


class Text:
    """Token ids of a training and a validation text in a folder, and windows of them."""

    def __init__(self, folder: str, device: str) -> None:
        self.train, self.valid = (np.load(Path(folder, f"{n}.npy"), mmap_mode="r") for n in ("train", "valid"))
        self.device = device

    def windows(self, ids: NDArray[Any], starts: NDArray[Any], length: int) -> Tensor:
        """Return windows (n, length + 1) of ids."""
        rows = np.stack([ids[s : s + length + 1] for s in starts.tolist()]).astype(np.int64)
        return torch.from_numpy(rows).to(self.device)

    def sampler(self, seed: int, n: int, length: int) -> Any:
        """Return a function of the step that gives ``n`` random windows, the same for a seed."""
        random = np.random.default_rng(seed)
        return lambda step: self.windows(self.train, random.integers(0, self.train.size - length - 1, n), length)

    @torch.no_grad()
    def score(self, start: Start, ids: NDArray[Any], count: int, length: int, rows: int) -> float:
        """Return the mean loss on so many windows spread over a text, or as many as it has."""
        starts = np.linspace(0, ids.size - length - 1, min(count, ids.size // (length + 1))).astype(int)
        parts = (self.windows(ids, starts[i : i + rows], length) for i in range(0, starts.size, rows))
        return float(torch.cat([start.losses(part).float().cpu() for part in parts]).mean())


def run_one(
    folder: str, arch: str, arm: str, seed: int, rate: float, recipe: Recipe, steps: int, at: Collection[int]
) -> dict[str, Any]:
    """Build and train one start, in a process of its own."""
    began = time.process_time()
    start = build(arch, arm, seed, PairStatistics.load(Path(folder, "pairs.safetensors")), recipe.scale)
    made = time.process_time() - began
    start.to(harness.device())
    text, length = Text(folder, harness.device()), SHAPE["context"]
    batch = text.sampler(seed, SHAPE["windows"], length)
    curve = train(
        start.optimizers(rate, recipe),
        lambda step: start.losses(batch(step)).mean(),
        steps,
        Phase("all", {"all": rate}, warmup=recipe.warmup, floor=0.0),
        lambda: text.score(start, text.valid, SHAPE["scored"], length, SHAPE["windows"]),
        at,
    )
    return {**curve, "made": made, "parameters": start.n_parameters}


class Bench:
    """The runs of this bench: their keys, and the search for a recipe and a rate."""

    def __init__(self, folder: str, workers: Workers, quick: bool) -> None:
        self.folder, self.workers, self.quick = folder, workers, quick
        self.steps, self.checked = (4, (0, 4)) if quick else (STEPS, CHECKED)

    def key(self, arch: str, arm: str, seed: int, rate: float, recipe: Recipe, steps: int) -> dict[str, Any]:
        """Return the whole configuration of a run."""
        scale = {"scale": recipe.scale} if arm in OURS else {}
        trained: dict[str, Any] = {
            "steps": steps,
            "rate": rate,
            "warmup": recipe.warmup,
            "beta2": recipe.beta2,
            "clip": 1.0,
        }
        trained |= {"blocks": recipe.blocks, "precision": harness.precision()}
        return {"arch": arch, "arm": arm, "seed": seed, **trained, **scale, **SHAPE, "text": "classics"}

    def run(self, arch: str, arm: str, seed: int, rate: float, recipe: Recipe, steps: int | None = None) -> Any:
        """Return the curve of a run, kept or made; a longer run is validated a dozen times."""
        steps = steps or self.steps
        at = self.checked if steps == self.steps else range(0, steps + 1, steps // 12)
        key = self.key(arch, arm, seed, rate, recipe, steps)
        return self.workers.do(key, run_one, self.folder, arch, arm, seed, rate, recipe, steps, at)

    def tune(self, arch: str, arm: str) -> dict[str, Any]:
        """Find recipe and rate of a start, then run every seed."""
        tried: dict[tuple[str, float], float] = {}
        for name, recipe in list(RECIPES.items())[: 1 if self.quick else None]:

            def end(at: dict[str, float], recipe: Recipe = recipe) -> float:
                return float(self.run(arch, arm, 0, at["rate"], recipe)["nats"][-1])

            if self.quick:
                tried[name, START_RATE] = end({"rate": START_RATE})
                continue
            for point, value in search(end, {"rate": START_RATE}, TRIALS)[1]:
                tried[name, point["rate"]] = value
        recipe_name, rate = min(tried, key=lambda choice: tried[choice])
        seeds = harness.cut(SEEDS, self.quick)
        jobs = [partial(self.run, arch, arm, seed, rate, RECIPES[recipe_name]) for seed in seeds]
        keys = [self.key(arch, arm, seed, rate, RECIPES[recipe_name], self.steps) for seed in seeds]
        runs = self.workers.together(jobs)
        mark = self.workers.results.mark(*keys)
        return {"recipe": recipe_name, "rate": rate, "tried": len(tried), "runs": runs, "mark": mark}


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Run every start, write tables and plots; ``quick``: two starts of each architecture, four steps."""
    results = Results(None if quick else docs / "results" / "transformers.jsonl", __name__)
    books, size = data / "classics", 1024 if quick else SHAPE["vocab_size"]
    text = Corpus.build(books / "train.txt.xz", vocab_size=size, split_documents=r"\n\n")
    valid = Corpus.encode(books / "valid.txt", text.tokenizer, split_documents=r"\n\n")
    arms = ("log-unigram bias", OURS[1]) if quick else ARMS
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder, Workers(results, progress) as workers:
        count_pairs(text.tokens, text.vocab_size).save(Path(folder, "pairs.safetensors"))
        np.save(Path(folder, "train.npy"), text.tokens)
        np.save(Path(folder, "valid.npy"), valid.tokens)
        bench = Bench(folder, workers, quick)
        pairs = [(arch, arm) for arch in ARCHITECTURES for arm in arms]
        tuned = dict(zip(pairs, workers.together([partial(bench.tune, *pair) for pair in pairs]), strict=True))
        found: dict[str, Any] = {"starts": {arch: {arm: tuned[arch, arm] for arm in arms} for arch in ARCHITECTURES}}
        if not quick:
            found["parts"] = parts_left_out(bench, found["starts"])
            found["long"] = longer(bench, found["starts"]["gpt2"])
            write(found, docs, results)
    return found


def parts_left_out(bench: Bench, starts: dict[str, Any]) -> dict[str, Any]:
    """Run our better start of each architecture with one part of the keeping recipe left out, every seed."""
    jobs, names = [], []
    for arch, arms in starts.items():
        ours = min(OURS, key=lambda arm: final(arms[arm]))
        for name, (recipe, rate) in WITHOUT.items():
            jobs += [partial(bench.run, arch, ours, seed, rate, recipe) for seed in SEEDS]
            names += [(arch, name)] * len(SEEDS)
    runs = bench.workers.together(jobs)
    return {
        arch: {name: [r for r, own in zip(runs, names, strict=True) if own == (arch, name)] for name in WITHOUT}
        for arch in starts
    }


def longer(bench: Bench, arms: dict[str, Any]) -> dict[str, Any]:
    """Run the best start that knows unigrams at most, and ours, for four times the steps; a rate is best of two."""
    blind = min(BLIND, key=lambda arm: final(arms[arm]))
    chosen: dict[str, Any] = {}
    names = (blind, *OURS)
    jobs = [
        partial(bench.run, "gpt2", arm, 0, arms[arm]["rate"] * share, RECIPES[arms[arm]["recipe"]], LONG_STEPS)
        for arm in names
        for share in (1.0, 0.5, 0.25)
    ]
    runs = bench.workers.together(jobs)
    for i, arm in enumerate(names):
        chosen[arm] = min(runs[3 * i : 3 * i + 3], key=lambda run: run["nats"][-1])
    return chosen


def final(arm: dict[str, Any]) -> float:
    """Return the mean loss at the end over the seeds."""
    return float(statistics.mean(run["nats"][-1] for run in arm["runs"]))


def mean_curve(arm: dict[str, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return steps, and losses as the mean of the seeds."""
    return np.array(arm["runs"][0]["steps"], float), np.mean([run["nats"] for run in arm["runs"]], axis=0)


def rise(run: dict[str, Any]) -> float:
    """Return how far a validation loss is above the one of step 0 at most."""
    return float(max(run["nats"]) - run["nats"][0])


def marks(arms: dict[str, Any]) -> dict[str, Any]:
    """Return what the best of our starts gains over the best that ignores the text, and over the best of the others."""
    ours, blind, knowing = (min(names, key=lambda arm: final(arms[arm])) for names in (OURS, BLIND, KNOWING))
    warm = arms[ours]
    step, crossed = reached(mean_curve(warm), final(arms[blind])), crossing(mean_curve(warm), mean_curve(arms[blind]))
    return {
        "our best": ours,
        "best start that knows unigrams at most": blind,
        "lead over it at the end": render.nats(final(arms[blind]) - final(warm)),
        "share of the steps after which ours is at its end": None if step is None else step / STEPS,
        "step at which the curves cross": "none" if crossed is None else f"{crossed:.0f}",
        "best other start that knows pairs": knowing,
        "lead over that at the end": render.nats(final(arms[knowing]) - final(warm)),
        "CPU seconds to solve the start": statistics.mean(run["made"] for run in warm["runs"]),
    }


def write(found: dict[str, Any], docs: Path, results: Results) -> None:
    """Write the section of docs/benchmarks.md and its picture."""
    shown = (0, 50, 100, 200, STEPS)
    headers = ["start", "parameters", "recipe", "rate", *(f"step {n}" for n in shown), "highest rise"]
    tables = ""
    for arch, arms in found["starts"].items():
        rows = []
        for name, arm in arms.items():
            steps, mean = mean_curve(arm)
            losses = [render.nats(float(np.interp(n, steps, mean))) for n in shown[:-1]]
            end = render.spread([run["nats"][-1] for run in arm["runs"]])
            highest = render.nats(max(map(rise, arm["runs"])))
            parameters = arm["runs"][0]["parameters"]
            rows.append([name + arm["mark"], parameters, arm["recipe"], f"{arm['rate']:g}", *losses, end, highest])
        tables += f"{ARCHITECTURES[arch]}:\n\n{render.table(headers, rows)}\n"
    columns = [marks(arms) for arms in found["starts"].values()]
    summary = render.table(["", *ARCHITECTURES.values()], [[n, *(c[n] for c in columns)] for n in columns[0]])
    parts = []
    for name in WITHOUT:
        row: list[Any] = [name]
        for arch in ARCHITECTURES:
            runs = found["parts"][arch][name]
            row += [render.nats(max(map(rise, runs))), render.spread([run["nats"][-1] for run in runs])]
        parts.append(row)
    heads = [f"{title}, {what}" for title in ARCHITECTURES.values() for what in ("rise", "end")]
    at = range(0, LONG_STEPS + 1, STEPS)
    long = {arm: np.interp(at, run["steps"], run["nats"]) for arm, run in found["long"].items()}
    blind = next(iter(long))
    lead = long[blind] - np.min([long[arm] for arm in OURS], axis=0)
    rows = [[name, *map(render.nats, values)] for name, values in (*long.items(), ("lead", lead))]
    panels = {
        f"{ARCHITECTURES[arch]}, {STEPS} steps": {name: mean_curve(arm) for name, arm in arms.items()}
        for arch, arms in found["starts"].items()
    }
    panels[f"GPT-2, {LONG_STEPS} steps"] = {n: (run["steps"], run["nats"]) for n, run in found["long"].items()}
    styles = {arm: {"linewidth": 2 if arm in OURS else 1} for arm in ARMS}
    render.curves(docs / "images" / "transformers.png", panels, "steps", "nats a token, validation", 7.0, styles)
    gpt2, llama = columns
    conclusion = (
        f"A spectral start leads the best start without pair counts by {gpt2['lead over it at the end']} nats (GPT-2) "
        f"and {llama['lead over it at the end']} nats (Llama) after {STEPS} steps; the lead shrinks "
        f"to {lead[-1]:.3f} nats after {LONG_STEPS:,}."
    )
    body = f"""{SHAPE["layers"]} layers, width {SHAPE["width"]}, {SHAPE["heads"]} heads, windows of {SHAPE["context"]}
tokens, V = {SHAPE["vocab_size"]:,}, classic books. A run has {STEPS} steps of {SHAPE["windows"] * SHAPE["context"]:,}
tokens, 1.8 M in all; what knows pairs has counted the whole text of 14.2 M tokens before. AdamW without weight decay,
gradients clipped at 1, cosine to 0, matrix products in {harness.precision()}. Losses are nats a token on
{SHAPE["scored"]} windows of validation books; the end is mean and deviation of {len(SEEDS)} seeds.

Every start chose between three recipes, by the validation loss of the first seed, each with at least {TRIALS} rates
around {START_RATE:g} and until the best rate had a neighbour on both sides. *Usual*: warm-up {USUAL.warmup:g} of the
run, second moment {USUAL.beta2:g}, one rate. *Keeping*: warm-up {KEEPING.warmup:g} of the run, second moment
{KEEPING.beta2:g}, blocks at {KEEPING.blocks:g} times the rate of embedding and head. *Short*: the
same with a warm-up of {USUAL.warmup:g}. "Highest rise" is the largest validation loss of any seed above its own loss at
step 0 (checked every 10 steps up to 100, then every 50).

{tables}The marks:

{summary}
What keeps the start: our better start with `decoder_schedule()`, that is the keeping recipe at a rate of
{DECODER_RATE:g} and embedding rows of standard deviation {SCALE:g}, and with parts of it left out: the lower rate
({HIGH_RATE:g} instead), and one more part each. {len(SEEDS)} seeds. "Rise" is the highest rise of any seed.

{render.table(["left out", *heads], parts)}
![Validation loss over steps](images/transformers.png)

GPT-2 for {LONG_STEPS:,} steps, one seed, recipe as above, the best of the rate above, a half and a quarter of it:

{render.table(["start", *(f"step {n:,}" for n in at)], rows)}"""
    render.write(docs, "transformers", "Transformers: spectral warm starts", conclusion, body, results)
