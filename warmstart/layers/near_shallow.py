"""The near-shallow language model in PyTorch: the forward pass of `warmstart.near_shallow`, ready for training.

| symbol | shape | meaning |
|---|---|---|
| `E` | (V, b) | ``embedding.weight`` |
| `W` | (B, B) | ``contexts.<name>.attention.weight`` |
| `U` | (b, m) | ``contexts.<name>.values.weight`` |
| `O` | (D, V) | ``output.weight`` |
| age | | distance to the newest token of a history: 0 is the newest, 1 the token before it |
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from warmstart.errors import InputError
from warmstart.folder import MIXTURE, load_model, read_beside, save_model
from warmstart.layers._ids import as_tensor, checked_ids, checked_targets, positions
from warmstart.layers.attention import SelfAttention, ages, comparisons, superpose
from warmstart.layers.comparisons import Comparisons
from warmstart.layers.generation import continued
from warmstart.layers.recall import MemoryContext
from warmstart.layers.softmax import SoftmaxLayer
from warmstart.near_shallow import Config, NearShallowModel

IGNORED = -100  # a target that does not count, as in torch.nn.functional.cross_entropy
TARGETS_PER_BLOCK = 4096  # whose rows of logits are in memory at once


class Segments(NamedTuple):
    """A batch of document segments for training, one a row, padded with separators on the right.

    Attributes
    ----------
    ids : (n, L) int64
    targets : (n, L) int64
        The token after each of ``ids``; `IGNORED` in the padding.
    history : (n, h) int64
        The h tokens before the segment, oldest first, with separators before the document. h is at least radius - 1,
        and 1 with the memory context.
    position : (n,) int64
        Position of the first token in its document, a multiple of the block size. The separator has position 0.
    counts : (n, V) float32
        Number of times each token occurs in the document before the segment. Only the document context reads it.
    memory : (n, m, b), optional
        What the memory context holds of the document before the segment. It is needed if a segment does not begin its
        document.
    """

    ids: Tensor
    targets: Tensor
    history: Tensor
    position: Tensor
    counts: Tensor
    memory: Tensor | None = None

    def to(self, device: torch.device | str) -> "Segments":
        """Return the tensors on a device."""
        return self._replace(**{name: x.to(device) for name, x in self._asdict().items() if x is not None})


class NetworkState(NamedTuple):
    """What the model keeps of texts; its size does not depend on their length.

    Attributes
    ----------
    window : (batch, B) int64
        The last tokens, newest first.
    position : (batch,) int64
        Place of the newest token in its document; the separator has place 0.
    sums, recalled, memory : (batch, m), (batch, m), (batch, m, b)
        Sums of the document context, features and memory of the memory context. Without these contexts m is 0.
    """

    window: Tensor
    position: Tensor
    sums: Tensor
    recalled: Tensor
    memory: Tensor


class Context(nn.Module):
    """A context with a value layer: ``X U``, or ``A^T X U`` if it has an attention.

    Parameters
    ----------
    config : Config
    name : str
        "attended", "block" or "document".
    """

    def __init__(self, config: Config, name: str) -> None:
        super().__init__()
        size = config.attention_size(name)
        self.size = size
        self.attention = SelfAttention(size) if size else None
        self.values = SoftmaxLayer(config.bits, config.hidden_bits)
        nn.init.xavier_uniform_(self.values.weight)

    def forward(self, vectors: Tensor | Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
        """Return (..., m) from vectors (..., b), or from the B vectors (..., b) of a window and its mask (..., B)."""
        attended = vectors if self.attention is None else self.attention(vectors, mask)[0]
        z: Tensor = self.values(attended)
        return z

    def blocks(self, ids: Tensor, X: Tensor, compare: Comparisons | None) -> Tensor:
        """Return (n, L, m) of ids (n, L) and vectors (n, L, b) whose rows start at the start of a block."""
        n, length = ids.shape
        size = min(self.size, length)
        padding = -length % size
        ids = functional.pad(ids, (0, padding)).view(n, -1, size)
        X = functional.pad(X, (0, 0, 0, padding)).view(*ids.shape, -1)
        age = ages(size, ids.device).clamp(min=0)
        if compare is None:
            products = X @ X.mT
            q = products.gather(-1, age.expand(products.shape))
        else:
            q = compare(ids, ids[..., age])
        z: Tensor = cast(SelfAttention, self.attention).blocks(q, self.values(X)).view(n, length + padding, -1)
        return z[:, :length]

    def windows(self, ids: list[Tensor], X: list[Tensor], position: Tensor, compare: Comparisons | None) -> Tensor:
        """Return (n, L, m) of ids (n, L) and vectors (n, L, b), each a list by age."""
        q = comparisons(X) if compare is None else compare(ids[0], torch.stack(ids, dim=-1))
        mask = torch.arange(len(ids), device=position.device) <= position[..., None]
        A = cast(SelfAttention, self.attention).attention(q, mask)
        return superpose(A, [self.values(x) for x in X])


class NearShallowLM(nn.Module):
    """Language model of an embedding, attention over comparisons, value layers and one output layer.

    The names in ``state_dict()`` are those of ``config.shapes``, so the weights of a `NearShallowModel` load unchanged
    and give its logits. A cold model starts with an embedding from a normal distribution of standard deviation
    ``b ** -0.5``: comparisons are then at most about 1, while the standard deviation 1 of `nn.Embedding` would make
    them about b. Values and output start Xavier-uniform, attention weights at zero.

    Parameters
    ----------
    config : Config

    References
    ----------
    Williams and Zhao 2023, arXiv 2311.07498 and 2311.07510.

    Examples
    --------
    >>> model = NearShallowLM(Config(vocab_size=20, separator=0, bits=8, hidden_bits=6, block_size=4))
    >>> ids = torch.tensor([[0, 5, 3, 0, 7]])
    >>> model(ids).shape
    torch.Size([1, 5, 20])
    >>> bool((model.generate(ids, 3)[:, :5] == ids).all())
    True
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.bits)
        self.contexts = nn.ModuleDict({name: Context(config, name) for name in config.valued})
        if "memory" in config.contexts:
            self.contexts["memory"] = MemoryContext(config)
        self.output = SoftmaxLayer(sum(width for _, width in config.groups), config.vocab_size)
        nn.init.normal_(self.embedding.weight, std=config.bits**-0.5)
        nn.init.xavier_uniform_(self.output.weight)
        self.comparisons: Comparisons | None = None
        self.beside: dict[str, bytes] = {}  # files that make it a language model, see `warmstart.folder`

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (batch, length, V) of the token after each of ``ids``.

        Parameters
        ----------
        ids : (batch, length) tensor, array or lists of int
            A separator begins a document, and so does the first token of a sequence.

        Raises
        ------
        InputError
            The shape or type is wrong, or an id is outside the vocabulary.
        """
        logits: Tensor = self.output(self._inputs(ids))
        return logits

    def logits_after(self, ids: Tensor, n: int) -> Tensor:
        """Return the logits (batch, n, V) of `forward` after the last n of ``ids``."""
        logits: Tensor = self.output(self._inputs(ids)[:, -n:])
        return logits

    def target_log_probs(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return ``log P(target)`` (batch, length) in nats after each of ``ids``, without all logits at once.

        Parameters
        ----------
        ids : (batch, length) int64
            As for `forward`.
        targets : (batch, length) int64
            A negative target does not count: 0.
        """
        ids = as_tensor(ids, self.embedding.weight.device)
        x = self._inputs(ids).flatten(0, 1)
        targets = checked_targets(targets, ids.shape, self.config.vocab_size, ids.device)
        y = targets.clamp(min=0).flatten()
        blocks = [slice(i, i + TARGETS_PER_BLOCK) for i in range(0, max(1, len(y)), TARGETS_PER_BLOCK)]
        losses = torch.cat([self.output.cross_entropy(x[rows], y[rows], self._fixed) for rows in blocks])
        return -losses.view(targets.shape).where(targets >= 0, 0.0)

    def _inputs(self, ids: Tensor) -> Tensor:
        """Return the inputs of the output layer (batch, length, D) after each of ``ids``."""
        ids = checked_ids(ids, self.config.vocab_size, self.embedding.weight.device)
        position = positions(ids, self.config.separator)
        X = self.embedding(ids)  # (batch, length, b)
        first = self.config.window - 1
        padded = functional.pad(X, (0, 0, first, 0))
        ages = [padded[:, first - age : first - age + X.shape[1]] for age in range(first + 1)]  # views
        sums, recalled = self._document_sums(X, position), self._recalled(ids, X, position)[0]
        return self._features(ages, position, sums, recalled)

    @property
    def _fixed(self) -> int:
        """Number of leading inputs of the output layer that need no gradient: the radial ones of a frozen embedding."""
        radial = sum(width for name, width in self.config.groups if name == "radial")
        return 0 if self.embedding.weight.requires_grad else radial

    def token_losses(self, segments: Segments) -> Tensor:
        """Return ``-log P(target)`` (number of targets,) in nats, row by row.

        The numbers are those of `forward`; the computation is arranged for training. Attention works on whole blocks.
        While the embedding is frozen, comparisons come from a cache. The first call makes the cache, and a change of
        the embedding removes it.
        """
        mask = segments.targets != IGNORED
        x = self._segment_features(segments)[mask]
        return self.output.cross_entropy(x, segments.targets[mask], self._fixed)

    def row_losses(self, segments: Segments, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``-log q(target)``, see `token_losses`, and ``-sum_y P(y) log q(y)`` (number of targets,) in nats.

        ``rows`` (number of targets, V) hold the probabilities P; they are overwritten.
        """
        mask = segments.targets != IGNORED
        x, targets = self._segment_features(segments)[mask], segments.targets[mask]
        losses = self.output.cross_entropy(x, targets, self._fixed)
        away = rows.neg_().scatter_add_(1, targets[:, None], rows.new_ones(len(targets), 1))  # one for the target - P
        return losses, losses + ((away @ self.output.weight.T) * x).sum(-1)

    def _segment_features(self, segments: Segments, cached: bool = True) -> Tensor:
        """Return the inputs of the output layer (n, L, D)."""
        config, length, before = self.config, segments.ids.shape[1], segments.history.shape[1]
        compare = self._cached_comparisons() if cached else None
        ids = torch.cat([segments.history, segments.ids], dim=1)
        X = self.embedding(ids)  # (n, h + L, b)
        position = segments.position[:, None] + torch.arange(length, device=ids.device)
        columns = [slice(before - age, before - age + length) for age in range(config.radius)]
        ids_by_age, X_by_age = [ids[:, span] for span in columns], [X[:, span] for span in columns]
        features = [*X_by_age] if "radial" in config.contexts else []
        for name, context in self._named_contexts():
            if name == "document":
                earlier = context.values(segments.counts @ self.embedding.weight)
                z = (earlier[:, None] + context.values(X[:, before:]).cumsum(dim=1)) / (position + 1)[..., None]
            elif name == "block":
                z = context.blocks(segments.ids, X[:, before:], compare)
            else:
                z = context.windows(ids_by_age, X_by_age, position, compare)
            features.append(z.softmax(-1))
        if "memory" in config.contexts:
            if segments.memory is None and segments.position.any():
                raise InputError("segments: expected the memory of documents that began earlier, got none; read them")
            features.append(
                self._memory.segments(ids[:, before:], X[:, before - 1 :], segments.position, segments.memory)[0]
            )
        return torch.cat(features, dim=-1)

    @torch.no_grad()
    def remember(self, ids: Tensor, previous: Tensor, position: Tensor, memory: Tensor | None = None) -> Tensor:
        """Return what the memory context holds (n, m, b) after segments of documents, one a row.

        Parameters
        ----------
        ids : (n, L) int64
        previous : (n,) int64
            The token before the segment, any before a document.
        position : (n,) int64
            Position of the first token in its document.
        memory : (n, m, b), optional
            The memory before; zeros by default.
        """
        X = self.embedding(torch.cat([previous[:, None], ids], dim=1))
        return self._memory.segments(ids, X, position, memory)[1]

    @property
    def _memory(self) -> MemoryContext:
        return cast(MemoryContext, self.contexts["memory"])

    def _named_contexts(self) -> list[tuple[str, Context]]:
        """Return name and module of the contexts with a value layer."""
        return cast("list[tuple[str, Context]]", [(name, self.contexts[name]) for name in self.config.valued])

    def _cached_comparisons(self) -> Comparisons | None:
        """Return the cache of comparisons if the embedding is frozen, else None."""
        weight = self.embedding.weight
        if weight.requires_grad or not any(self.config.attention_size(name) for name in self.contexts):
            self.comparisons = None
        elif self.comparisons is None or not self.comparisons.fits(weight):
            self.comparisons = Comparisons(weight)
        return self.comparisons

    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int = 60,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> Tensor:
        """Continue prompts by sampling. A step costs the same after any length.

        Parameters
        ----------
        ids : (batch, length) int64
            Prompts. Separators in front pad them to one length and change nothing after the last of them.
        max_new_tokens : int
        temperature : float
            0 takes the most probable token.
        top_p : float
            In (0, 1]. Sample from the smallest set of most probable tokens whose total probability is ``top_p``.
        seed : int
            The same seed gives the same tokens on the same device.

        Returns
        -------
        (batch, length + new) int64
            A sequence ends at its first new separator and is filled with separators. Generation stops early when all
            sequences have ended.

        Raises
        ------
        InputError
            ``ids`` are wrong, see `forward`, or a number is out of range.

        References
        ----------
        Holtzman et al. 2020, arXiv 1904.09751 (nucleus sampling).
        """
        ids = as_tensor(ids, self.embedding.weight.device)
        return continued(self, ids, self.config.separator, max_new_tokens, temperature, top_p, seed)

    def start(self, ids: Tensor) -> NetworkState:
        """Return the state after ``ids``, which are as for `forward`."""
        ids = checked_ids(ids, self.config.vocab_size, self.embedding.weight.device)
        position, X = positions(ids, self.config.separator), self.embedding(ids)
        sums, (recalled, memory) = self._document_sums(X, position), self._recalled(ids, X, position)
        padding = (0, max(0, self.config.window - ids.shape[1]))
        window = functional.pad(ids.flip(1)[:, : self.config.window], padding, value=self.config.separator)
        return NetworkState(window, position[:, -1], sums[:, -1], recalled[:, -1], memory)

    def advance(self, state: NetworkState, token: Tensor) -> NetworkState:
        """Return the state after one more token (batch,) int64; the work does not depend on the length.

        The token is one of the vocabulary; its value is not checked again.
        """
        window, position, sums, recalled, memory = state
        begins, x = token == self.config.separator, self.embedding(token)
        if "document" in self.contexts:
            sums = sums.masked_fill(begins[:, None], 0.0) + self.contexts["document"](x)
        if "memory" in self.contexts:
            recalled, memory = self._memory.step(self.embedding(window[:, 0]), token, x, memory, begins)
        window = torch.cat([token[:, None], window[:, :-1]], dim=1)
        return NetworkState(window, (position + 1).masked_fill(begins, 0), sums, recalled, memory)

    def logits(self, state: NetworkState) -> Tensor:
        """Return the logits (batch, V) of the next token."""
        window, position, sums, recalled, _ = state
        z: Tensor = self.output(self._features(self.embedding(window).unbind(1), position, sums, recalled))
        return z

    def _document_sums(self, X: Tensor, position: Tensor) -> Tensor:
        """Return the sums of ``x U`` since the document start (batch, length, m). Without that context m is 0."""
        if "document" not in self.contexts:
            return X[..., :0]
        wide = torch.float32 if X.device.type == "mps" else torch.float64  # MPS has no float64
        values = self.contexts["document"](X).to(wide)
        sums = functional.pad(values.cumsum(dim=1), (0, 0, 1, 0))  # (batch, length + 1, m): before each token
        start = torch.arange(X.shape[1], device=X.device) - position
        return sums[:, 1:] - sums.gather(1, start[..., None].expand_as(values))

    def _recalled(self, ids: Tensor, X: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (batch, length, m) and the memory (batch, m, b). Without that context m is 0."""
        if "memory" not in self.contexts:
            return X[..., :0], X[:, :0]
        features, memory = self._memory(ids, X, position)
        return features, memory

    def _features(self, ages: Sequence[Tensor], position: Tensor, sums: Tensor, recalled: Tensor) -> Tensor:
        """Return the inputs of the output layer (..., D).

        ``ages`` holds vectors (..., b) by age; those outside the document may be anything. ``position`` (...) is that
        of the newest token. ``sums`` (..., m) are of the document context, ``recalled`` (..., m) of the memory context.
        """
        config, features = self.config, []
        if "radial" in config.contexts:
            empty = self.embedding.weight[config.separator]
            for age, x in enumerate(ages[: config.radius]):
                features.append(torch.where((position >= age)[..., None], x, empty))
        for name, context in self._named_contexts():
            if name == "document":
                z = (sums / (position + 1)[..., None]).to(ages[0].dtype)
            else:
                size = config.attention_size(name)
                oldest = position % size if name == "block" else position
                z = context(ages[:size], torch.arange(size, device=position.device) <= oldest[..., None])
            features.append(z.softmax(-1))
        return torch.cat([*features, recalled.to(ages[0].dtype)], dim=-1)

    @classmethod
    def from_model(cls, model: NearShallowModel) -> Self:
        """Return a module with a copy of the weights."""
        module = cls(model.config)
        module.load_state_dict({name: torch.tensor(array) for name, array in model.arrays.items()})
        return module

    def to_model(self) -> NearShallowModel:
        """Return a copy of the weights, float32, with the forward pass in numpy."""
        arrays = {name: weight.detach().cpu().float().numpy().copy() for name, weight in self.state_dict().items()}
        return NearShallowModel(self.config, arrays)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a model folder, see `warmstart.folder.save_model`.

        In the folder of a model the network is replaced and the rest stays. A new folder gets the tokenizer and the
        token counts of the model that the network comes from, and is a network alone.
        """
        alone = self.beside if self.beside and not Path(folder, MIXTURE).exists() else None
        save_model(folder, self.to_model(), alone)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Self:
        """Read a model folder, see `warmstart.folder.load_model`."""
        module = cls.from_model(load_model(folder))
        module.beside = read_beside(folder, module.config)
        return module
