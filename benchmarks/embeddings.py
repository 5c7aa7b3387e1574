"""A new tokenizer for a trained model: its rows from the contexts of a corpus, from the old rows, at random.

A small causal model of the OPT kind is trained on WikiText-2, then gets a tokenizer trained on classic books, and new
rows for it by each way; special tokens keep theirs. All train on the same books. The rate of every way is chosen by one
seed on validation text; three other seeds (of the random rows and the order of the batches) are measured on test text.
"""

import copy
import functools
import itertools
import lzma
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import report
from benchmarks.report import Book
from warmstart.adapters import replace_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CODE = ("bitcipher", "warmstart/adapters/embeddings.py")
VOCAB, LENGTH, BATCH = 2048, 64, 8
WARM_UP = 20  # steps
TRAINED = 1000  # steps on the old text
STEPS = (30, 100)  # on the new text
RATES = (1e-3, 3e-3, 1e-2)
SEEDS = (1, 2, 3)
SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def texts(data: Path) -> dict[str, list[str]]:
    """Return paragraphs: of WikiText-2, and of classic books to train, validate and test on."""
    size = 3_000_000
    with lzma.open(data / "classics" / "train.txt.xz", "rt", encoding="utf-8") as file:
        books = _paragraphs(itertools.islice(file, 0, None, 12), size)
    with (data / "wikitext-2" / "train.txt").open(encoding="utf-8") as file:
        wiki = _paragraphs((line.replace("<unk>", "") for line in file), size)
    parts = {"old": wiki, "new": books}
    for name in ("valid", "test"):
        with (data / "classics" / f"{name}.txt").open(encoding="utf-8") as file:
            parts[name] = _paragraphs(file, 30_000)
    return parts


def _paragraphs(lines: Iterable[str], size: int) -> list[str]:
    """Return lines of more than a few words until they have ``size`` characters."""
    kept: list[str] = []
    for line in lines:
        if size <= 0:
            break
        if len(line) > 20:
            kept.append(line.strip())
            size -= len(line)
    return kept


def train_tokenizer(corpus: list[str]) -> "PreTrainedTokenizerBase":
    """Return a byte-level BPE tokenizer of `VOCAB` tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)  # type: ignore[no-untyped-call]


def encode(tokenizer: Any, corpus: list[str]) -> Tensor:
    """Return the ids of all texts in one row."""
    return torch.tensor(list(itertools.chain(*tokenizer(corpus, verbose=False)["input_ids"])))


def new_model() -> "PreTrainedModel":
    """Return a model of 2 layers and 128 dimensions with default weights."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=VOCAB, hidden_size=128, word_embed_proj_dim=128, num_hidden_layers=2, num_attention_heads=4,
        ffn_dim=512, max_position_embeddings=LENGTH, dropout=0.0, bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return OPTForCausalLM(config)


def train(
    model: Any, ids: Tensor, steps: int, rate: float, seed: int, measured: Callable[[int], None] = lambda step: None
) -> None:
    """Train with AdamW: the rate rises for `WARM_UP` steps and falls linearly to 0."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / WARM_UP) * (1 - step / steps)
        starts = torch.randint(len(ids) - LENGTH, (BATCH,), generator=generator)
        x = ids[starts[:, None] + torch.arange(LENGTH)]
        optimizer.zero_grad()
        model(input_ids=x, labels=x).loss.backward()
        optimizer.step()
        measured(step + 1)


def nats(model: Any, ids: Tensor) -> float:
    """Return the cross-entropy in nats a token, on windows of `LENGTH`."""
    rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    with torch.no_grad():
        losses = [model(input_ids=part, labels=part).loss.item() * len(part) for part in torch.split(rows, 64)]
    return float(sum(losses) / len(rows))


def _with_rows(model: Any, rows: Tensor) -> Any:
    """Return a copy with these rows for all tokens but the special ones, whose ids are the same in both tokenizers."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        made.get_input_embeddings().weight[len(SPECIAL) :] = rows[len(SPECIAL) :]
    return made


def mean_resizing(model: Any) -> Any:
    """Return a copy with the rows that `resize_token_embeddings(mean_resizing=True)` gives to new tokens."""
    grown = copy.deepcopy(model)
    grown.resize_token_embeddings(2 * VOCAB, mean_resizing=True)
    return _with_rows(model, grown.get_input_embeddings().weight.detach()[VOCAB:])


def ways(old: Any, new: Any, corpus: list[str]) -> dict[str, Callable[[Any], Any]]:
    """Return functions of the trained model by name; some draw random numbers."""

    def cipher(model: Any, std: float | None = None) -> Any:
        made = copy.deepcopy(model)
        replace_embeddings(made, new, corpus, old_tokenizer=old, std=std)
        return made

    return {
        "random, initializer_range": lambda m: _with_rows(m, torch.randn(VOCAB, 128) * m.config.init_std),
        "mean resizing": mean_resizing,
        "contextual cipher vectors": lambda m: cipher(m, m.config.init_std),
        "the same, spread of the old rows": cipher,
    }


def measure(
    way: Callable[[Any], Any], trained: Callable[[], Any], ids: dict[str, Tensor], quick: bool
) -> dict[str, Any]:
    """Return the rate chosen for a way, and nats on the test text by step, means over the seeds."""
    seeds, rates, steps = (SEEDS[:1], RATES[:1], (5, 10)) if quick else (SEEDS, RATES, STEPS)
    model = trained()

    def begin(seed: int) -> tuple[Any, float]:
        torch.manual_seed(seed)
        began = time.perf_counter()
        return way(model), time.perf_counter() - began

    validation = {}
    for rate in rates:
        made, _ = begin(0)
        train(made, ids["new"], steps[-1], rate, 0)
        validation[rate] = nats(made, ids["valid"])
    rate = min(validation, key=lambda r: validation[r])
    found = []
    for seed in seeds:
        made, seconds = begin(seed)
        at = {0: nats(made, ids["test"])}

        def measured(step: int, made: Any = made, at: dict[int, float] = at) -> None:
            if step in steps:
                at[step] = nats(made, ids["test"])

        train(made, ids["new"], steps[-1], rate, seed, measured)
        found.append(at)
    return {
        "rate": rate,
        "nats": {str(step): float(np.mean([at[step] for at in found])) for step in found[0]},
        "deviation": float(np.std([at[steps[-1]] for at in found], ddof=1)) if len(found) > 1 else None,
        "seconds": seconds,
        "validation": {str(r): value for r, value in validation.items()},
    }


def run(data: Path, docs: Path, quick: bool = False, progress: Any = None) -> dict[str, Any]:
    """Compare, and write ``results/embeddings.jsonl`` and a section of ``benchmarks.md``.

    Parameters
    ----------
    data : Path
        Folder with ``classics`` and ``wikitext-2``.
    docs : Path
        Folder to write to.
    quick : bool
        A few steps; nothing is written.
    progress : callable of (stage, done, total), optional

    Returns
    -------
    dict
        ``arms``, a list of rows, and what the text and the model are.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # resizing announces itself each time
    show = progress or (lambda stage, done, total: None)
    parts = texts(data)
    old, new = train_tokenizer(parts["old"]), train_tokenizer(parts["new"])
    ids = {name: encode(old if name == "old" else new, part) for name, part in parts.items()}
    steps = 20 if quick else TRAINED

    @functools.cache
    def trained() -> Any:
        model = new_model()
        train(model, ids["old"], steps, RATES[1], 0, lambda step: show("training", step, steps))
        return model

    book = Book(None if quick else docs / "results" / "embeddings.jsonl", report.code_digest(*CODE))
    rows = []
    for name, way in ways(old, new, parts["new"]).items():
        show(name, 0, 0)
        rows.append({"name": name, **book.do(name, functools.partial(measure, way, trained, ids, quick))})
    results = {
        "arms": rows,
        "tokens": {name: len(part) for name, part in ids.items()},
        "shared": len(set(old.get_vocab()) & set(new.get_vocab())),
    }
    if not quick:
        report.write(docs, "embeddings", _section(results))
    return results


def _section(results: dict[str, Any]) -> str:
    tokens, arms = results["tokens"], results["arms"]
    steps = sorted(arms[0]["nats"], key=int)
    table = report.table(
        ["rows of the new tokens", "rate", *(f"step {step}" for step in steps), "deviation", "made in (s)"],
        [[a["name"], f"{a['rate']:g}", *(a["nats"][s] for s in steps), a["deviation"], a["seconds"]] for a in arms],
    )
    return (
        f"## New tokenizer: embeddings\n\nA causal model (OPT, 2 layers, d = 128, tied, {VOCAB:,} tokens) after "
        f"{TRAINED:,} steps of {BATCH * LENGTH:,} tokens of WikiText-2 gets a tokenizer trained on classic books "
        f"({results['shared']:,} tokens in both) and trains on {tokens['new']:,} tokens of them, {BATCH * LENGTH} a "
        "step. Nats a token on "
        f"{tokens['test']:,} tokens of other books; mean of {len(SEEDS)} seeds, deviation at the end. Rates are chosen "
        f"for each way on a third set of books.\n\n{table}"
    )
