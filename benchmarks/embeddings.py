"""A new tokenizer for a trained model: new rows of the embedding from contexts, from the old rows, or at random.

A small causal model (OPT) trains on WikiText-2, then gets a tokenizer that was trained on classic books. Every arm
gives its tokens new rows in another way; special tokens keep theirs. All arms then train on the same books. The
learning rate of an arm is chosen on validation text with one seed. Three other seeds, of the random rows and of the
order of the batches, are measured on test text.
"""

import copy
import itertools
import lzma
import time
from collections.abc import Callable, Collection, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import render, training
from benchmarks.harness import Results, search
from warmstart.adapters.embeddings import replace_embeddings
from warmstart.finetune.phases import Phase
from warmstart.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VOCAB, LENGTH, BATCH, WIDTH, LAYERS = 2048, 64, 8, 128, 2
SETTINGS: dict[str, Any] = {
    "vocabulary": VOCAB, "length": LENGTH, "batch": BATCH, "width": WIDTH, "layers": LAYERS, "characters": 3_000_000,
    "first steps": 1000, "first rate": 3e-3, "warm-up steps": 20, "steps": (0, 30, 100), "seeds": (1, 2, 3),
    "rate": 3e-3, "trials": 7, "factor": 3.0,
}  # fmt: skip
QUICK = {"first steps": 20, "steps": (0, 5, 10), "seeds": (1,), "trials": 1, "characters": 100_000}
SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def texts(data: Path, characters: int) -> dict[str, list[str]]:
    """Return paragraphs of WikiText-2 ("old") and of classic books to train on ("new"), to validate and to test."""
    with lzma.open(data / "classics" / "train.txt.xz", "rt", encoding="utf-8") as file:
        paragraphs = {"new": _paragraphs(itertools.islice(file, 0, None, 12), characters)}
    for name, path in (("old", "wikitext-2/train"), ("valid", "classics/valid"), ("test", "classics/test")):
        with (data / f"{path}.txt").open(encoding="utf-8") as file:
            lines = (line.replace("<unk>", "") for line in file)
            paragraphs[name] = _paragraphs(lines, characters if name == "old" else 30_000)
    return paragraphs


def _paragraphs(lines: Iterable[str], characters: int) -> list[str]:
    """Return lines of more than 20 characters until they have so many characters together."""
    paragraphs: list[str] = []
    for line in lines:
        if len(line) > 20 and characters > 0:
            paragraphs.append(line.strip())
            characters -= len(line)
    return paragraphs


def train_tokenizer(corpus: list[str]) -> "PreTrainedTokenizerBase":
    """Return a byte-level BPE tokenizer of `VOCAB` tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), list(SPECIAL.values())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)  # type: ignore[no-untyped-call]


def encode(tokenizer: Any, corpus: list[str]) -> Tensor:
    """Return the ids of all texts in one row."""
    return torch.tensor(list(itertools.chain(*tokenizer(corpus, verbose=False)["input_ids"])))


def new_model() -> "PreTrainedModel":
    """Return a model with default weights."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, word_embed_proj_dim=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
        ffn_dim=4 * WIDTH, max_position_embeddings=LENGTH, dropout=0.0, bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return OPTForCausalLM(config)


def train(
    model: Any, ids: Tensor, steps: int, rate: float, seed: int, scored: Tensor | None = None, at: Collection[int] = ()
) -> list[float]:
    """Train with AdamW, warm-up and linear decay; return the nats of ``scored`` before the steps ``at``."""
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "rate": rate}], weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        starts = torch.randint(len(ids) - LENGTH, (BATCH,), generator=generator)
        x = ids[starts[:, None] + torch.arange(LENGTH)]
        output: Tensor = model(input_ids=x, labels=x).loss
        return output

    phase = Phase("all", warmup=min(1.0, SETTINGS["warm-up steps"] / steps), decay="linear", floor=0.0)
    curve = training.train([optimizer], loss, steps, phase, lambda: nats(model, scored), at, clip=None)
    return list(curve["nats"])


@torch.no_grad()
def nats(model: Any, ids: Any) -> float:
    """Return the cross-entropy in nats a token, on windows of `LENGTH`."""
    rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    losses = [model(input_ids=part, labels=part).loss.item() * len(part) for part in torch.split(rows, 64)]
    return float(sum(losses) / len(rows))


def _with_rows(model: Any, rows: Tensor) -> Any:
    """Return a copy with these rows for all tokens but the special ones, whose ids are the same in both tokenizers."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.get_input_embeddings().weight[len(SPECIAL) :] = rows[len(SPECIAL) :]
    return changed


def mean_resizing(model: Any) -> Any:
    """Return a copy with the rows that `resize_token_embeddings(mean_resizing=True)` gives to new tokens."""
    larger = copy.deepcopy(model)
    larger.resize_token_embeddings(2 * VOCAB, mean_resizing=True)
    return _with_rows(model, larger.get_input_embeddings().weight.detach()[VOCAB:])


def ways(old: Any, new: Any, corpus: list[str]) -> dict[str, Callable[[Any], Any]]:
    """Return functions that give a copy of a trained model new rows, by name; some draw random numbers."""

    def cipher(model: Any, std: float) -> Any:
        changed = copy.deepcopy(model)
        replace_embeddings(changed, new, corpus, old_tokenizer=old, std=std)
        return changed

    def deviation(model: Any) -> float:
        return float(model.get_input_embeddings().weight.detach()[len(SPECIAL) :].std())

    return {
        "random, initializer_range": lambda m: _with_rows(m, torch.randn(VOCAB, WIDTH) * m.config.init_std),
        "mean resizing": mean_resizing,
        "cipher vectors, initializer_range": lambda m: cipher(m, m.config.init_std),
        "cipher vectors, deviation of the old rows": lambda m: cipher(m, deviation(m)),
    }


def measure(way: Callable[[Any], Any], model: Any, ids: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the rate of an arm, and its nats on the test text by step: means over the seeds."""
    at, trials, best = settings["steps"], settings["trials"], {"rate": settings["rate"]}
    tried: list[tuple[dict[str, float], float]] = []
    seconds: list[float] = []

    def curve(rate: float, seed: int, scored: str, at: Collection[int]) -> list[float]:
        torch.manual_seed(seed)
        began = time.process_time()
        changed = way(model)
        seconds.append(time.process_time() - began)
        return train(changed, ids["new"], settings["steps"][-1], rate, seed, ids[scored], at)

    if trials > 1:
        best, tried = search(lambda s: curve(s["rate"], 0, "valid", at[-1:])[0], best, trials, settings["factor"])
    curves = [curve(best["rate"], seed, "test", at) for seed in settings["seeds"]]
    return {
        "rate": best["rate"],
        "nats": dict(zip(map(str, at), np.mean(curves, axis=0).tolist(), strict=True)),
        "deviation": float(np.std(curves, axis=0, ddof=1)[-1]) if len(curves) > 1 else None,
        "seconds": seconds[-1],
        "validation": {f"{setting['rate']:g}": loss for setting, loss in tried},
    }


def run(data: Path, docs: Path, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Train the model, give it new rows in every way, train it further."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # every resizing prints a message
    settings = SETTINGS | (QUICK if quick else {})
    results = Results(None if quick else docs / "results" / "embeddings.jsonl", __name__, progress=progress)
    paragraphs = texts(data, settings["characters"])
    old, new = train_tokenizer(paragraphs["old"]), train_tokenizer(paragraphs["new"])
    ids = {name: encode(old if name == "old" else new, part) for name, part in paragraphs.items()}

    @cache
    def trained() -> Any:
        model = new_model()
        train(model, ids["old"], settings["first steps"], settings["first rate"], 0)
        return model

    output: dict[str, Any] = {
        "arms": [
            results.row({"rows": name, **settings}, lambda way=way: measure(way, trained(), ids, settings), name=name)  # type: ignore[misc]
            for name, way in ways(old, new, paragraphs["new"]).items()
        ],
        "tokens": {name: len(part) for name, part in ids.items()},
        "shared": len(set(old.get_vocab()) & set(new.get_vocab())),
    }
    if not quick:
        render.write(docs, "embeddings", "New tokenizer for a trained model", *_section(output), results)
    return output


def _section(output: dict[str, Any]) -> tuple[str, str]:
    tokens, steps = output["tokens"], list(output["arms"][0]["nats"])
    columns: dict[str, Any] = {"rows of the new tokens": "name", "rate": lambda row: f"{row['rate']:.3g}"}
    columns |= {f"step {step}": lambda row, step=step: render.nats(row["nats"][step]) for step in steps}
    columns |= {"deviation": lambda row: render.nats(row["deviation"]), "computed in (CPU s)": "seconds"}
    ends = ", ".join(f"{row['nats'][steps[-1]]:.2f} ({row['name']})" for row in output["arms"])
    conclusion = f"Nats a token {steps[-1]} steps after the change of tokenizer, by the new rows: {ends}."
    body = f"""A causal model (OPT, {LAYERS} layers, d = {WIDTH}, tied embedding and head, {VOCAB:,} tokens) trains for
{SETTINGS["first steps"]:,} steps of {BATCH * LENGTH} tokens on WikiText-2. It gets a tokenizer that was trained on
classic books ({output["shared"]:,} tokens are in both vocabularies), and trains on {tokens["new"]:,} tokens of them,
{BATCH * LENGTH} a step, in float32. Values are nats a token on {tokens["test"]:,} tokens of other books, means of
{len(SETTINGS["seeds"])} seeds, and the standard deviation at the end. The rate of every arm is the best of at least
{SETTINGS["trials"]} trials on a third set of books, and lies inside of what was tried.

{render.rows_table(columns, output["arms"])}"""
    return conclusion, body
