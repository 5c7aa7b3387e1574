"""The memory context in PyTorch: a delta-rule memory that maps a token to the label embedding of its successor."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from warmstart.contexts import EMPTY_MASS, WRITE_STRENGTH
from warmstart.memory.rules import delta_rule, delta_step
from warmstart.near_shallow import Config, cipher_vectors


class MemoryContext(nn.Module):
    """Features of what followed the newest token earlier in its document, see `warmstart.contexts`.

    Parameters
    ----------
    config : Config

    Attributes
    ----------
    labels : nn.Embedding of shape (V, m)
        Label embeddings. They are a buffer and never train.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.labels = nn.Embedding(config.vocab_size, config.hidden_bits)
        del self.labels.weight  # a buffer: no phase of training can reach it
        labels = cipher_vectors(config.vocab_size, config.hidden_bits)
        self.labels.register_buffer("weight", torch.from_numpy(labels.toarray()))

    def forward(self, ids: Tensor, X: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (n, L, m), and the memory (n, m, b) after the last token of every row.

        ``ids`` and ``position``, the position of each token in its document, are (n, L); vectors ``X`` are (n, L, b).
        """
        if not len(ids):
            none = X.new_empty(*ids.shape, self.labels.embedding_dim, dtype=_dtype(X))
            return none, none.new_empty(0, self.labels.embedding_dim, X.shape[2])
        X = functional.pad(X, (0, 0, 1, 0))  # the first token of a row has no previous one
        rows = [self._row(*row) for row in zip(*(torch.split(x, 1) for x in (ids, X, position)), strict=True)]
        features, memories = zip(*rows, strict=True)
        return torch.cat(features), torch.cat(memories)

    def _row(self, ids: Tensor, X: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Go through the documents of one row (1, L); X is (1, 1 + L, b)."""
        begins = [*torch.nonzero(position[0] == 0).flatten().tolist(), ids.shape[1]]
        documents = [
            self.segments(ids[:, begin:end], X[:, begin : end + 1], position[:, begin])
            for begin, end in itertools.pairwise(begins)
        ]
        return torch.cat([features for features, _ in documents], dim=1), documents[-1][1]

    def segments(self, ids: Tensor, X: Tensor, position: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return features (n, L, m) and the memory (n, m, b) after segments of documents, one a row.

        At each token, first the pair (previous token, token) is written; the first token of a document has none.

        Parameters
        ----------
        ids : (n, L) int64
        X : (n, 1 + L, b)
            Vectors of the token before the segment, which may be any before a document, and of ``ids``.
        position : (n,) int64
            Position of the first token in its document.
        memory : (n, m, b), optional
            The memory before; zeros by default.
        """
        k = _keys(X)
        labels = self.labels(ids).to(k.dtype)
        if not torch.isfinite(k).all():  # the delta rule would refuse them; with NaN, the loss shows what diverged
            nan = torch.full_like(labels, torch.nan)
            return nan, nan.new_full((len(ids), labels.shape[2], k.shape[2]), torch.nan)
        beta = k.new_full(ids.shape, WRITE_STRENGTH)
        beta[:, 0].masked_fill_(position == 0, 0.0)
        state = None if memory is None else memory[:, None]
        read, S = delta_rule(k[:, None, 1:], k[:, None, :-1], labels[:, None], beta[:, None], state=state)
        return self.features(read[:, 0]), S[:, 0]

    def step(self, previous: Tensor, token: Tensor, X: Tensor, memory: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (n, m) and the memory (n, m, b) after one more token.

        ``previous`` and ``X`` are the vectors (n, b) of the previous token and of ``token`` (n,); ``begins`` (n,) says
        whether the token begins a document.
        """
        k, q = (_keys(x)[:, None] for x in (previous, X))
        labels = self.labels(token)[:, None].to(q.dtype)
        beta = q.new_full(k.shape[:2], WRITE_STRENGTH).masked_fill(begins[:, None], 0.0)
        read, S = delta_step(q, k, labels, beta, memory.masked_fill(begins[:, None, None], 0.0)[:, None])
        return self.features(read[:, 0]), S[:, 0]

    @staticmethod
    def features(read: Tensor) -> Tensor:
        """Return reads (..., m) as non-negative rows of unit L1 norm."""
        h = read.clamp(min=0.0) + EMPTY_MASS / read.shape[-1]
        return h / h.sum(dim=-1, keepdim=True)


def _keys(X: Tensor) -> Tensor:
    """Return vectors of length 1."""
    return functional.normalize(X.to(_dtype(X)), dim=-1)


def _dtype(X: Tensor) -> torch.dtype:
    """Return float32 at least, which the triangular systems of the delta rule need."""
    return torch.promote_types(X.dtype, torch.float32)
