"""The n-gram tables in PyTorch: the look-ups of `warmstart.backoff`, for whole batches and step by step.

| symbol | shape | meaning |
|---|---|---|
| ``keys`` | (M - V + 1,) int64 | ``context * V + last token`` of all n-grams above one token, ascending; a bound |
| ``probs`` | (M,) | probability of every n-gram |
| ``gammas`` | (C,) | back-off weight of every context |
| ``sizes`` | (C,) uint8 | bits of the number of times that it was counted |
| contexts | (..., N - 1) int64 | numbers of the n-grams of 1, 2, ... tokens that end a history; -1 if there is none |

The contexts are all that a look-up needs to know of a history. So they are the state of generation, too.

One binary search over all keys finds an n-gram, and the extensions of one context are a stretch of the keys. The numpy
tables have offsets and tokens of 2 bytes instead, which is half of it. But in PyTorch a search between offsets is a
loop of a dozen gathers, which costs as much for the few look-ups of a step as for thousands.
"""

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from warmstart.backoff import BackoffModel
from warmstart.layers._ids import checked_ids, checked_targets


class NGramScores(NamedTuple):
    """What the tables say of targets, see `warmstart.backoff.Scores`.

    Attributes
    ----------
    probs : (...)
        1 where the target does not count.
    known : (...) int64
    size : (...) int64
    """

    probs: Tensor
    known: Tensor
    size: Tensor


class NGramTables(nn.Module):
    """An n-gram model as buffers. Nothing in it is trained.

    The buffers are not part of ``state_dict()``. The counts or tables on the disk are the one place that holds them;
    whoever loads a model makes this module from them anew. They move with ``to(device)``. Types of 2 bytes are too
    coarse for probabilities: leave the tables in float32 when other modules are made narrower.

    Parameters
    ----------
    model : BackoffModel
        N-grams of at most N tokens.
    dtype : torch.dtype
        Of the probabilities. float32 gives log-probabilities to 1e-5.

    Examples
    --------
    >>> from warmstart.kneser_ney import KneserNey
    >>> from warmstart.ngrams import count_ngrams
    >>> model = KneserNey(count_ngrams(np.array([0, 1, 2, 1, 2, 0]), np.array([0, 5]), vocab_size=3, order=2))
    >>> tables, ids = NGramTables(model), torch.tensor([[0, 1]])
    >>> tables(ids).exp()[0, 1].numpy().round(3), model.row([0, 1]).round(3)
    (array([0.146, 0.208, 0.646], dtype=float32), array([0.146, 0.208, 0.646]))
    >>> contexts = tables.start(ids)
    >>> tables.rows(tables.advance(contexts, torch.tensor([2]))).shape
    torch.Size([1, 3])
    """

    keys: Tensor
    probs: Tensor
    gammas: Tensor
    sizes: Tensor

    def __init__(self, model: BackoffModel, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.vocab_size, self.separator, self.order = model.vocab_size, model.separator, model.order
        last = model.last[self.vocab_size :]
        keys = np.full(last.size + 1, np.iinfo(np.int64).max)
        keys[:-1] = np.repeat(np.arange(model.gammas.size), np.diff(model.offsets))
        keys[:-1] *= self.vocab_size
        keys[:-1] += last
        self.register_buffer("keys", torch.from_numpy(keys), persistent=False)
        self.register_buffer("probs", torch.tensor(model.probs, dtype=dtype), persistent=False)
        self.register_buffer("gammas", torch.tensor(model.gammas, dtype=dtype), persistent=False)
        self.register_buffer("sizes", torch.tensor(model.sizes), persistent=False)

    @classmethod
    def from_model(cls, model: BackoffModel, dtype: torch.dtype = torch.float32) -> Self:
        """Return a module with a copy of the tables."""
        return cls(model, dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Return ``log P`` (batch, length, V) of the token after each of ``ids``; for short texts.

        Parameters
        ----------
        ids : (batch, length) int64
            A separator begins a document, and so does the first token of a sequence.

        Raises
        ------
        InputError
            The shape or type is wrong, or an id is outside the vocabulary.
        """
        return self.rows(self.contexts(ids)).log()

    def target_log_probs(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return ``log P(target)`` (batch, length) in nats after each of ``ids``, without whole rows.

        Parameters
        ----------
        ids : (batch, length) int64
            As for `forward`.
        targets : (batch, length) int64
            A negative target does not count: 0.
        """
        return self.scores(self.contexts(ids), targets).probs.log()

    def scores(self, contexts: Tensor, targets: Tensor) -> NGramScores:
        """Score one target (...) after each of the histories whose contexts are given (..., N - 1)."""
        targets = checked_targets(targets, contexts.shape[:-1], self.vocab_size)
        y = targets.clamp(min=0)[..., None]
        nodes = torch.cat([y, self._find(contexts, y)], dim=-1)  # (..., N): the target after 0, 1, ... tokens
        lengths = torch.arange(self.order, device=nodes.device)
        longest = (lengths * (nodes >= 0)).amax(dim=-1, keepdim=True)
        weights = self._gammas(contexts).where(lengths[1:] > longest, 1.0).prod(dim=-1)
        probs = self.probs[nodes.gather(-1, longest)[..., 0]] * weights
        return NGramScores(probs.where(targets >= 0, 1.0), *self.features(contexts))

    def features(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``known`` and ``size`` (...) int64 of histories, see `warmstart.backoff.Scores`."""
        sizes = torch.where(contexts >= 0, self.sizes[contexts.clamp(min=0)], 0).long()
        sizes = nn.functional.pad(sizes, (1, 0))  # (..., N): of contexts of 0, 1, ... tokens
        known = (torch.arange(self.order, device=sizes.device) * (sizes > 0)).amax(dim=-1)
        return known, sizes.gather(-1, known[..., None])[..., 0]

    def contexts(self, ids: Tensor) -> Tensor:
        """Return the contexts (batch, length, N - 1) after each of ``ids``, which are as for `forward`."""
        ids = checked_ids(ids, self.vocab_size)
        nodes = [ids]
        for _ in range(2, self.order):
            before = nn.functional.pad(nodes[-1][:, :-1], (1, 0), value=-1)
            nodes.append(self._find(before.masked_fill(ids == self.separator, -1), ids))
        return torch.stack(nodes, dim=-1)[..., : self.order - 1]

    def start(self, ids: Tensor) -> Tensor:
        """Return the contexts (batch, N - 1) after ``ids``, which are as for `forward`."""
        return self.contexts(ids[..., -self.order :])[:, -1]

    def advance(self, contexts: Tensor, token: Tensor) -> Tensor:
        """Return the contexts (batch, N - 1) after one more token (batch,) int64, in constant work.

        The token is one of the vocabulary; its value is not checked again.
        """
        before = contexts[:, :-1].masked_fill((token == self.separator)[:, None], -1)
        return torch.cat([token[:, None], self._find(before, token[:, None])], dim=1)[:, : self.order - 1]

    def rows(self, contexts: Tensor) -> Tensor:
        """Return the probability of every token (..., V) to come after the histories with contexts (..., N - 1)."""
        flat = contexts.flatten(0, -2)  # (n, N - 1)
        P = self.probs[: self.vocab_size].expand(len(flat), -1).clone()
        for h, gammas in zip(flat.unbind(-1), self._gammas(flat).unbind(-1), strict=True):
            P *= gammas[:, None]
            start, stop = torch.searchsorted(self.keys, torch.stack([h, h + 1]) * self.vocab_size)
            lengths = stop - start
            rows = torch.repeat_interleave(lengths)
            places = torch.arange(len(rows), device=rows.device) + (start - lengths.cumsum(0) + lengths)[rows]
            P[rows, self.keys[places] % self.vocab_size] = self.probs[self.vocab_size + places]
        return P.view(*contexts.shape[:-1], self.vocab_size)

    def _gammas(self, contexts: Tensor) -> Tensor:
        return self.gammas[contexts.clamp(min=0)].where(contexts >= 0, 1.0)

    def _find(self, contexts: Tensor, tokens: Tensor) -> Tensor:
        """Return the numbers of the n-grams that extend contexts by tokens; -1 if one is not in the tables."""
        keys = (contexts * self.vocab_size + tokens).contiguous()  # negative without a context
        places = torch.searchsorted(self.keys, keys)
        return torch.where(self.keys[places] == keys, self.vocab_size + places, -1)

    def extra_repr(self) -> str:
        """Show the sizes in the printed model."""
        return f"vocab_size={self.vocab_size}, order={self.order}, n_ngrams={len(self.probs)}"
