"""What the benches of decoder models share: models with an added bias or table, windows of text, and one training run.

A folder holds the data of a bench: the token ids of each part of a text, and the pair counts of the training part.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import harness
from benchmarks.training import train
from warmstart.adapters.decoders import SCALE
from warmstart.corpus import Corpus
from warmstart.counts import PairStatistics
from warmstart.finetune import Phase, decoder_schedule
from warmstart.finetune.compare import Curve
from warmstart.layers.softmax import fused_cross_entropy
from warmstart.ngrams import NGramCounts, count_ngrams


@dataclass(frozen=True)
class Recipe:
    """How a model is trained."""

    warmup: float  # share of the run
    beta2: float  # decay of Adam's second moment
    blocks: float  # rate of the blocks over the rate of embedding and head
    scale: float = SCALE  # standard deviation of the embedding rows of our starts


class Batch(NamedTuple):
    """Windows of a part of the text.

    Attributes
    ----------
    part : str
    firsts : (n,) int64
        Position of the first token of every window in its part.
    ids : (n, length + 1) int64
    """

    part: str
    firsts: NDArray[np.int64]
    ids: Tensor


class Start(nn.Module):
    """A model, and what a baseline adds to its logits: a bias (V,), or a table with a row for each token (V, V)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.bias: nn.Parameter | None = None
        self.table: nn.Embedding | None = None

    @classmethod
    def random(cls, arch: str, seed: int, vocab_size: int, shape: Mapping[str, int], **options: Any) -> "Start":
        """Return a GPT-2 or Llama whose random weights are drawn with the seed."""
        from transformers import AutoConfig, AutoModelForCausalLM

        width, layers, heads, context = (shape[name] for name in ("width", "layers", "heads", "context"))
        if arch == "gpt2":
            options |= {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": context}
            options |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
            options["activation_function"] = "gelu_pytorch_tanh"  # GPT-2's own, in one kernel
        else:
            options |= {"hidden_size": width, "intermediate_size": 344, "num_hidden_layers": layers}
            options |= {"num_attention_heads": heads, "num_key_value_heads": 2, "max_position_embeddings": context}
        options |= {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": None}
        torch.manual_seed(seed)
        return cls(AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **options)))  # type: ignore[no-untyped-call]

    def losses(self, ids: Tensor) -> Tensor:
        """Return ``-log P`` of every token but the first of windows (rows, length + 1)."""
        inputs, targets = ids[:, :-1], ids[:, 1:].flatten()
        with autocast(ids.device):
            if self.table is not None:
                x, weight = self.head(inputs)
                z = (x @ weight).float() + self.table(inputs).flatten(0, 1)
                return functional.cross_entropy(z, targets, reduction="none")
            return fused_cross_entropy(*self.head(inputs), targets)

    def head(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the head reads (n, D) of inputs (rows, length), and its weights (D, V), the bias among them."""
        x = self.stream(inputs).flatten(0, 1)
        weight = self.model.lm_head.weight.T
        if self.bias is None:
            return x, weight
        return torch.cat([x, torch.ones_like(x[:, :1])], dim=1), torch.cat([weight, self.bias[None]])

    def stream(self, inputs: Tensor) -> Tensor:
        """Return the last hidden states (rows, length, width)."""
        hidden: Tensor = self.model.base_model(inputs).last_hidden_state
        return hidden

    def training_loss(self, batch: Batch, done: float) -> Tensor:
        """Return the loss of a step, when a share of the run is done."""
        return self.losses(batch.ids).mean()

    def nats(self, batch: Batch) -> Tensor:
        """Return ``-log P`` (k, n) of the n targets of a batch by k models, the first of which is the arm's."""
        return self.losses(batch.ids)[None]

    def optimizers(self, rate: float, recipe: Recipe) -> list[torch.optim.Optimizer]:
        """Return AdamW for all dense parameters, and Adam on the rows that a step touches for a table."""
        by_group, betas = decoder_schedule().parameters(self.model), (0.9, recipe.beta2)
        groups = [
            {"params": by_group["tables"] + ([self.bias] if self.bias is not None else []), "rate": rate},
            {"params": by_group["blocks"], "rate": rate * recipe.blocks},
        ]
        optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, rate, betas, weight_decay=0.0, fused=True)]
        if self.table is not None:
            rows = [{"params": list(self.table.parameters()), "rate": rate}]
            optimizers.append(torch.optim.SparseAdam(rows, rate, betas))
        return optimizers

    @property
    def n_parameters(self) -> int:
        """Number of trained weights."""
        return sum(parameter.numel() for parameter in self.parameters())


def autocast(device: torch.device) -> torch.autocast:
    """Return the context in which matrix products have the type of the benches."""
    return torch.autocast(device.type, torch.bfloat16, enabled=harness.precision() == "bfloat16")


def prepare(folder: str, train: Path, parts: Sequence[Path], vocab_size: int) -> PairStatistics:
    """Write the token ids of the training text and of other parts to a folder, and the pair counts; return these."""
    corpus = Corpus.build(train, vocab_size=vocab_size, split_documents=r"\n\n")
    np.save(Path(folder, "train.npy"), corpus.tokens)
    for part in parts:
        encoded = Corpus.encode(part, corpus.tokenizer, split_documents=r"\n\n")
        np.save(Path(folder, f"{part.stem}.npy"), encoded.tokens)
    counts = count_ngrams(corpus.tokens, corpus.documents, corpus.vocab_size, order=2)
    counts.save(Path(folder, "pairs.safetensors"))
    return PairStatistics.of(counts)


def train_start(
    folder: str, build: Callable[[PairStatistics], Start], seed: int, rate: float, recipe: Recipe,
    shape: Mapping[str, int], steps: int, at: Collection[int], test: bool = False,
    judge: Callable[[Start], Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Build and train one start, in a process of its own.

    Parameters
    ----------
    folder : str
    build : callable of the pair counts
    seed : int
        Chooses the training windows.
    rate : float
    recipe : Recipe
    shape : mapping
        ``context``: tokens of a window; ``windows``: windows of a step; ``scored``: windows of a validation.
    steps : int
    at : collection of int
        Steps before which to validate.
    test : bool
        Read the whole test text at the end.
    judge : callable of the start, optional
        Called at every validation; the list of its results is ``judged``.

    Returns
    -------
    dict
        The curve (see `benchmarks.training.train`), ``made``: CPU seconds to build the start, ``parameters``, ``test``;
        ``alone`` and ``test_alone``: losses of the decoder by itself where the arm is a mixture.
    """
    began = time.process_time()
    start = build(PairStatistics.of(NGramCounts.load(Path(folder, "pairs.safetensors"))))
    made = time.process_time() - began
    start.to(harness.device())
    length, n, random = shape["context"], shape["windows"], np.random.default_rng(seed)

    def read(part: str) -> NDArray[Any]:
        ids: NDArray[Any] = np.load(Path(folder, f"{part}.npy"), mmap_mode="r")
        return ids

    texts = {part: read(part) for part in ("train", "valid", *(["test"] if test else []))}

    def windows(part: str, firsts: NDArray[np.int64]) -> Batch:
        rows = np.stack([texts[part][first : first + length + 1] for first in firsts.tolist()])
        return Batch(part, firsts, torch.from_numpy(rows.astype(np.int64)).to(harness.device()))

    @torch.no_grad()
    def score(part: str, count: int) -> list[float]:
        """Return the mean losses on so many windows spread over a text, or on as many as it has."""
        size = texts[part].size
        firsts = np.linspace(0, size - length - 1, min(count, size // (length + 1))).astype(int)
        batches = (windows(part, firsts[i : i + n]) for i in range(0, firsts.size, n))
        means: list[float] = torch.cat([start.nats(batch).float().cpu() for batch in batches], dim=1).mean(1).tolist()
        return means

    others: list[list[float]] = []
    judged: list[Any] = []

    def validate() -> float:
        first, *rest = score("valid", shape["scored"])
        others.append(rest)
        if judge is not None:
            judged.append(judge(start))
        return first

    last = texts["train"].size - length - 1
    curve = train(
        start.optimizers(rate, recipe),
        lambda step: start.training_loss(windows("train", random.integers(0, last, n)), step / steps),
        steps,
        Phase("all", {"all": rate}, warmup=recipe.warmup, floor=0.0),
        validate,
        at,
    )
    if any(others):
        curve["alone"] = [rest[0] for rest in others]
    if test:
        curve["test"], *rest = score("test", texts["test"].size)
        curve |= {"test_alone": rest[0]} if rest else {}
    if judged:
        curve["judged"] = judged
    return {**curve, "made": made, "parameters": start.n_parameters}


def mean_curve(arm: Mapping[str, Any]) -> Curve:
    """Return steps, and losses as the mean of the seeds."""
    return np.array(arm["runs"][0]["steps"], float), np.mean([run["nats"] for run in arm["runs"]], axis=0)
