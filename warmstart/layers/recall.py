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
        Label embeddings. They are not trained.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.labels = nn.Embedding(config.vocab_size, config.hidden_bits)
        self.labels.requires_grad_(False)
        with torch.no_grad():
            labels = cipher_vectors(config.vocab_size, config.hidden_bits)
            self.labels.weight.copy_(torch.from_numpy(labels.toarray()))

    def forward(self, ids: Tensor, X: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (n, L, m), and the memory (n, m, b) after the last token of every row.

        ``ids`` and ``position``, the position of each token in its document, are (n, L); vectors ``X`` are (n, L, b).
        """
        k = _keys(X)
        reads = k.new_empty(*ids.shape, self.labels.embedding_dim)
        memories = k.new_empty(len(ids), self.labels.embedding_dim, k.shape[2])
        for i in range(len(ids)):
            reads[i], memories[i] = self._row(ids[i], k[i], position[i])
        return self.features(reads), memories

    def _row(self, ids: Tensor, k: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Go through the documents of one row. At each token, first the pair (previous token, token) is written."""
        begins = [*torch.nonzero(position == 0).flatten().tolist(), len(ids)]
        reads, S = [], k.new_zeros(1, 1, self.labels.embedding_dim, k.shape[1])
        for begin, end in itertools.pairwise(begins):
            q = k[begin:end]
            beta = q.new_full((1, 1, end - begin), WRITE_STRENGTH)
            beta[..., 0] = 0.0  # the first token of a document has no previous one
            previous = functional.pad(q[:-1], (0, 0, 1, 0))
            labels = self.labels(ids[begin:end]).to(q.dtype)
            read, S = delta_rule(q[None, None], previous[None, None], labels[None, None], beta)
            reads.append(read[0, 0])
        return torch.cat(reads), S[0, 0]

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
    """Return vectors of length 1, in float32 at least, which the triangular systems of the delta rule need."""
    return functional.normalize(X.to(torch.promote_types(X.dtype, torch.float32)), dim=-1)
