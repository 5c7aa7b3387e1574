"""The n-gram model of classes in PyTorch: `warmstart.classes`, with the tokens of the document within a class."""

import torch
from torch import Tensor, nn

from warmstart.classes import ADDED, ClassModel
from warmstart.layers.cache import DocumentCacheLayer
from warmstart.layers.ngrams import NGramTables


class ClassTables(nn.Module):
    """``P(class | classes before) P(y | class)``. Nothing in it is trained, and nothing is part of ``state_dict()``.

    Token ids are not checked here.

    Parameters
    ----------
    model : ClassModel
    size : int
        Number of targets of the document that count for ``P(y | class)``.
    dtype : torch.dtype
        Of the probabilities.
    """

    labels: Tensor
    shares: Tensor

    def __init__(self, model: ClassModel, size: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.tables = NGramTables(model.model, dtype)
        self.document = DocumentCacheLayer(model.n_classes, self.tables.separator, order=1, size=size)
        self.register_buffer("labels", torch.tensor(model.labels), persistent=False)
        self.register_buffer("shares", torch.tensor(model.shares, dtype=dtype), persistent=False)

    def probabilities(self, ids: Tensor, targets: Tensor, seen: Tensor | None = None) -> Tensor:
        """Return the probability (batch, length) of targets (batch, length) after ids (batch, length).

        ``seen`` (batch, length) says how often the document has used each target; without it the counted text alone
        speaks for a token within its class.
        """
        ids, classes, share = self.labels[ids], self.labels[targets], self.shares[targets]
        if seen is not None:
            share = _within(share, seen, self.document.counts(ids, classes)[..., 0, 0])
        return self.tables.scores(self.tables.contexts(ids), classes).probs * share

    def start(self, ids: Tensor) -> Tensor:
        """Return the contexts of classes (batch, N - 1) after ids (batch, length), see `NGramTables`."""
        return self.tables.start(self.labels[ids])

    def advance(self, contexts: Tensor, token: Tensor) -> Tensor:
        """Return the contexts (batch, N - 1) after one more token (batch,)."""
        return self.tables.advance(contexts, self.labels[token])

    def rows(self, contexts: Tensor, seen: Tensor | None = None) -> Tensor:
        """Return the probability of every token (batch, V); ``seen`` (batch, V) as for `probabilities`."""
        share = self.shares
        if seen is not None:
            of_classes = seen.new_zeros(len(seen), self.tables.vocab_size).index_add_(1, self.labels, seen)
            share = _within(share, seen, of_classes[:, self.labels])
        return self.tables.rows(contexts)[:, self.labels] * share


def _within(share: Tensor, tokens_seen: Tensor, classes_seen: Tensor) -> Tensor:
    """Return ``P(y | class)``, see `warmstart.classes.ClassModel.within`."""
    return (tokens_seen + ADDED * share) / (classes_seen + ADDED)
