"""Decoders that train beside counts, with counted targets, or with what others add for the same purpose.

A folder holds the data of a bench, see `benchmarks.decoders`: the corpora, and for every set of experts the start of
the gate and what the experts say of each token. Every training book is left out of the counts that score it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks import mixed_attention, texts
from benchmarks.decoders import Batch, Recipe, Start, autocast
from benchmarks.starts import SHAPE
from warmstart.corpus import Corpus
from warmstart.files import map_arrays
from warmstart.finetune.evidence import expert_table
from warmstart.finetune.phases import GATE_RATE
from warmstart.finetune.targets import CountedTargets
from warmstart.gate import Gate, with_share
from warmstart.layers.counted import fused_counted_cross_entropy
from warmstart.layers.gate import STATE_SCALE, MixtureGate
from warmstart.layers.softmax import fused_cross_entropy
from warmstart.ngrams import NGramCounts, count_ngrams
from warmstart.solving import Recipe as Solution
from warmstart.solving import solve

ORDER = 5
PARTS = ("train", "valid", "test")
NETWORK_SHARE = 0.1  # of the decoder in the mixture at the start
SOLVED_TOKENS = 100_000  # at least so many, for the published attention
PAIRS = 64  # kinds of brackets


@dataclass(frozen=True)
class Extra:
    """What an arm adds to a start.

    Attributes
    ----------
    experts : str
        Contexts of counts beside the decoder, with commas between them; none if empty.
    targets : float
        Weight of counted targets at the start; it falls to 0 over the run.
    constant : bool
        Whether this weight stays as it is.
    order : int
        Length of the longest n-grams of counted targets; `ORDER` if 0.
    temperature : float
        Of counted targets; 1 if 0.
    leave : bool
        Whether the loss of the mixture falls to 0 over the second half of the run, so that the decoder stands alone.
    late : float
        Weight of counted targets in the last fifth of the run: what the counts know is distilled at the end.
    hashed : int
        Rows of a table that starts at zero: one is added to the embedding of a token, chosen by the token and the one
        before it (a hash). Of none if 0.
    brackets : float
        Share of the steps, the first ones, on nested brackets in place of text (procedural pre-training).
    attention : str
        Start of the matrix of `benchmarks.mixed_attention`: "identity", or "solved", the identity plus solved weights.
    """

    experts: str = ""
    targets: float = 0.0
    constant: bool = False
    order: int = 0
    temperature: float = 0.0
    leave: bool = False
    late: float = 0.0
    hashed: int = 0
    brackets: float = 0.0
    attention: str = ""

    @property
    def key(self) -> dict[str, Any]:
        """What decides the result, for the key of a run: the fields that are set."""
        key: dict[str, Any] = {name: value for name, value in asdict(self).items() if value}
        return key | (
            {"gate": GATE_RATE, "state": GATE_RATE * STATE_SCALE, "network_share": NETWORK_SHARE}
            if self.experts
            else {}
        )


def prepare(
    folder: str, data: Path, name: str, vocab_size: int, experts: set[str], workers: int,
    others: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write corpora, counts, gates and expert tables of a text to a folder, and of ``others``, parts by name.

    Returns
    -------
    dict
        For every set of experts: nats a token of the validation and the test text without a decoder, bytes on disk of
        its tables, and seconds to solve and to score.
    """
    from warmstart.finetune.beside import nats

    root = Path(folder)
    options: dict[str, Any] = {"split_documents": texts.SPLITS[name], "cache_dir": folder}
    corpora = {"train": Corpus.build(texts.source(data, name, "train"), vocab_size=vocab_size, **options)}
    for part in PARTS[1:]:
        corpora[part] = Corpus.encode(texts.source(data, name, part), corpora["train"].tokenizer, **options)
    for part, documents in (others or {}).items():
        corpora[part] = Corpus.encode(documents, corpora["train"].tokenizer, cache_dir=folder)
    facts: dict[str, Any] = {}
    train = corpora["train"]
    text = train.tokens, train.documents, train.vocab_size
    counts = count_ngrams(*text, ORDER, vocabulary=train.tokenizer.get_vocab(), workers=workers)
    counts.save(root / "counts.safetensors")
    count_ngrams(*text, order=2).save(root / "pairs.safetensors")
    for part, corpus in corpora.items():
        np.save(root / f"{part}.npy", corpus.tokens)
        (root / f"{part}.folder").write_text(str(corpus.folder), encoding="utf-8")
    for contexts in sorted(experts):
        mixture = solve(counts, Solution(tuple(contexts.split(",")), ORDER), workers).mixture
        assert mixture is not None  # noqa: S101 - it has an expert of counts
        np.savez(root / f"{contexts}.npz", weights=mixture.gate.weights, sizes=mixture.gate.sizes)
        facts[contexts] = {"experts": mixture.experts.names}
        for part, corpus in corpora.items():
            left_out = counts if part == "train" else None
            table = expert_table(mixture.experts, corpus, left_out, folder=root, workers=workers)
            (root / f"experts-{table.key}.safetensors").rename(root / f"{contexts}.{part}")
            if part in PARTS[1:]:
                facts[contexts][part] = nats(mixture.gate, table.probs.astype(np.float64), table.buckets)
    return facts


class Beside(Start):
    """A start with an `Extra`. Its ``nats`` are those of the mixture if experts are beside it.

    Parameters
    ----------
    start : Start
        It is not copied.
    extra : Extra
    folder : str
        What `prepare` wrote.
    """

    def __init__(self, start: Start, extra: Extra, folder: str) -> None:
        super().__init__(start.model)
        self.bias, self.table, self.extra = start.bias, start.table, extra
        self.root = root = Path(folder)
        self.gate: MixtureGate | None = None
        self.said: dict[str, Mapping[str, NDArray[Any]]] = {}
        if extra.experts:
            with np.load(root / f"{extra.experts}.npz") as gate:
                start_of_gate = Gate(tuple(gate["sizes"].tolist()), gate["weights"])
            self.gate = MixtureGate.ready(with_share(start_of_gate, NETWORK_SHARE), start.model.config.hidden_size)
        self.targets: CountedTargets | None = None
        if extra.targets or extra.late:
            corpus = Corpus.open(Path((root / "train.folder").read_text(encoding="utf-8")))
            options: dict[str, Any] = {"order": extra.order or None, "temperature": extra.temperature or 1.0}
            counts = NGramCounts.load(root / "counts.safetensors")
            self.targets = CountedTargets(counts, corpus, folder=root, **options)
        if extra.attention:
            weights = torch.from_numpy(np.load(root / "attention.npy"))
            mixed_attention.mix(start.model, weights if extra.attention == "solved" else torch.zeros_like(weights))
        self.hashed: nn.Embedding | None = None
        if extra.hashed:
            width = start.model.config.hidden_size
            self.hashed = nn.Embedding(extra.hashed, width, sparse=True, _weight=torch.zeros(extra.hashed, width))

    def stream(self, inputs: Tensor) -> Tensor:
        """Return the last hidden states (rows, length, width)."""
        if self.hashed is None:
            return super().stream(inputs)
        before = nn.functional.pad(inputs[:, :-1], (1, 0))
        rows = (before * 36_313 ^ inputs * 27_191) % self.hashed.num_embeddings
        embedded = self.model.get_input_embeddings()(inputs) + self.hashed(rows)
        hidden: Tensor = self.model.base_model(inputs_embeds=embedded).last_hidden_state
        return hidden

    def optimizers(self, rate: float, recipe: Recipe) -> list[torch.optim.Optimizer]:
        """Return those of the start, AdamW for the gate, and Adam on the rows that a step touches for the table."""
        optimizers, betas = super().optimizers(rate, recipe), (0.9, recipe.beta2)
        if self.gate is not None:
            groups = [{"params": list(self.gate.parameters()), "rate": GATE_RATE}]
            optimizers.append(torch.optim.AdamW(groups, GATE_RATE, betas, weight_decay=0.0, fused=True))
        if self.hashed is not None:
            rows = [{"params": list(self.hashed.parameters()), "rate": rate}]
            optimizers.append(torch.optim.SparseAdam(rows, rate, betas))
        return optimizers

    def training_loss(self, batch: Batch, done: float) -> Tensor:
        """Return the loss of a step: of the decoder, and of the mixture if there is one."""
        if done < self.extra.brackets:
            return self.losses(brackets(batch.ids, int(batch.firsts[0]))).mean()
        falling = 1.0 if self.extra.constant else 1.0 - done
        weight = self.extra.late if self.extra.late and done >= 0.8 else self.extra.targets * falling
        y = batch.ids[:, 1:].flatten()
        with autocast(batch.ids.device):
            x, head = self.head(batch.ids[:, :-1])
            counted = self.targets is not None and weight > 0
            loss = self.counted(x, head, y, batch, weight) if counted else fused_cross_entropy(x, head, y)
            if self.gate is None:
                return loss.mean()
            alone = fused_cross_entropy(x, head, y) if counted else loss
        share = min(1.0, 2 * (1 - done)) if self.extra.leave else 1.0
        return loss.mean() + share * self.mixed(batch, alone, x).mean()

    def counted(self, x: Tensor, head: Tensor, y: Tensor, batch: Batch, weight: float) -> Tensor:
        """Return the losses (n,) with counted targets of that weight."""
        assert self.targets is not None  # noqa: S101 - asked for with targets only
        return fused_counted_cross_entropy(x, head.T, y, self.targets.rows(places(batch)), weight)

    def nats(self, batch: Batch) -> Tensor:
        """Return ``-log P`` (k, n) of the targets: by the mixture if experts are beside the decoder, and by itself."""
        with autocast(batch.ids.device):
            x, head = self.head(batch.ids[:, :-1])
            alone = fused_cross_entropy(x, head, batch.ids[:, 1:].flatten())
        return torch.stack([alone] if self.gate is None else [self.mixed(batch, alone, x), alone])

    def mixed(self, batch: Batch, alone: Tensor, x: Tensor) -> Tensor:
        """Return ``-log P`` (n,) by the mixture, given that of the decoder and its states (n, D)."""
        assert self.gate is not None  # noqa: S101 - asked for with a gate only
        if batch.part not in self.said:
            self.said[batch.part] = map_arrays(self.root / f"{self.extra.experts}.{batch.part}")[0]
        said, at = self.said[batch.part], places(batch)
        probs = torch.from_numpy(said["probs"][at]).to(alone.device)
        buckets = torch.from_numpy(said["buckets"][at].astype(np.int64)).to(alone.device)
        return self.gate.nats(alone.float(), probs, buckets, x[:, : self.model.config.hidden_size].float())


def places(batch: Batch) -> NDArray[np.int64]:
    """Return the targets (n,) of a batch in its text, from 0."""
    return (batch.firsts[:, None] + np.arange(batch.ids.shape[1] - 1)).ravel()


def solve_attention(folder: str, context: int) -> None:
    """Write the published attention over the last ``context`` tokens, solved from the first of the training text."""
    root = Path(folder)
    corpus = Corpus.open(Path((root / "train.folder").read_text(encoding="utf-8")))
    last = min(int(np.searchsorted(corpus.documents, SOLVED_TOKENS)), len(corpus.documents) - 1)
    borders = corpus.documents[: last + 1]
    end = int(borders[-1])
    counts = count_ngrams(corpus.tokens[: end + 1], borders, corpus.vocab_size, order=2)
    network = {"bits": SHAPE["width"], "hidden_bits": 32, "radius": context, "block_size": 8}
    solved = solve(counts, Solution(("attended",), 2, network=network)).network
    assert solved is not None  # noqa: S101 - its context is one of the network
    np.save(root / "attention.npy", solved.arrays["contexts.attended.attention.weight"])


def brackets(ids: Tensor, seed: int) -> Tensor:
    """Return windows of nested brackets in the shape of ids: `PAIRS` kinds, opened and closed by chance.

    Examples
    --------
    >>> brackets(torch.zeros(1, 8), seed=0).shape
    torch.Size([1, 8])
    """
    rng, out = np.random.default_rng(seed), np.empty(ids.shape, np.int64)
    for row in out:
        stack: list[int] = []
        for i in range(row.size):
            if stack and rng.random() < 0.5:
                row[i] = PAIRS + stack.pop()
            else:
                stack.append(int(rng.integers(PAIRS)))
                row[i] = stack[-1]
    return torch.from_numpy(out).to(ids.device)
