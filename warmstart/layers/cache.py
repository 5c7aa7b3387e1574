"""The cache of the document in PyTorch: `warmstart.cache` for whole batches and step by step.

| symbol | meaning |
|---|---|
| `h`, `y` | the last k tokens of the document, k = 0, 1, ..., N - 1, and the next token |
| `c(hy)`, `c(h)` | how often y, and how often anything, followed h among the last ``size`` targets of the document |
| `types(h)` | how many different tokens followed h, among the same |

    P_k(y | h) = (max(c(hy) - d, 0) + d types(h) P_{k-1}(y | h')) / c(h),    P_{k-1} alone if c(h) = 0

with h' = h without its oldest token, and ``1 / V`` below k = 0. The first token of a document is its separator: history
of the others, and no target. So is the first token of a sequence, whatever it is.

For a known text nothing is read token by token. All n-grams of one length are numbered by sorting, and every count is a
difference of two places in a sorted array of pairs (number, position). The newest occurrence of hy stands for the type
until the next one comes or ``size`` targets have followed; so ``types(h)`` are the occurrences of h up to now, less
those whose time has ended. The work is that of sorting, N times.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from warmstart.errors import InputError
from warmstart.layers._ids import checked_ids, checked_targets, positions


class CacheScores(NamedTuple):
    """What the cache says of targets, each before it is written; see `warmstart.cache.CacheCounts`.

    Attributes
    ----------
    probs : (batch, length)
        1 where the target does not count.
    counts : (batch, length, N, 3) int64
        ``c(hy)``, ``c(h)`` and ``types(h)`` for k = 0, 1, ..., N - 1.
    position : (batch, length) int64
        Tokens of the document before the target, 0 right after a separator.
    """

    probs: Tensor
    counts: Tensor
    position: Tensor

    @property
    def known(self) -> Tensor:
        """Tokens (batch, length) of the longest context that was seen; 0 if it is the empty one or there is none."""
        return (self.counts[..., 1:, 1] > 0).sum(dim=-1)


class CacheState(NamedTuple):
    """What the cache keeps of texts.

    Attributes
    ----------
    window : (batch, n) int64
        The newest tokens, the oldest first: all of them, or as many as the cache can see.
    position : (batch,) int64
        Tokens of the document without its first one.
    """

    window: Tensor
    position: Tensor


class DocumentCacheLayer(nn.Module):
    """Distribution of the next token by the n-grams of its document so far. It has no weights.

    Parameters
    ----------
    vocab_size, separator : int
    order : int
        N, length of the longest n-grams.
    size : int
        Number of targets that count, the newest ones of the document.
    discount : float
        d, above 0 and at most 1.
    dtype : torch.dtype
        Of the probabilities. float32 gives log-probabilities to 1e-5.

    Raises
    ------
    InputError
        A number is out of range.

    Examples
    --------
    >>> cache = DocumentCacheLayer(vocab_size=4, separator=0, discount=0.5)
    >>> ids, targets = torch.tensor([[0, 1, 2, 1]]), torch.tensor([[1, 2, 1, 2]])
    >>> scores = cache.scores(ids, targets)
    >>> scores.probs, scores.known.tolist()
    (tensor([[0.2500, 0.1250, 0.3750, 0.6250]]), [[0, 0, 0, 1]])
    >>> cache.rows(cache.advance(cache.start(ids), targets[:, 3]))[0, 1]  # 2 was followed by 1
    tensor(0.8594)
    """

    def __init__(
        self,
        vocab_size: int,
        separator: int,
        order: int = 3,
        size: int = 65_536,
        discount: float = 0.7,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if not 0 <= separator < vocab_size:
            raise InputError(f"separator: expected a token id from 0 to {vocab_size - 1}, got {separator}")
        if min(order, size) < 1 or not 0 < discount <= 1:
            raise InputError(
                "expected an order and a size of at least 1 and a discount above 0 and at most 1, got "
                f"{order}, {size} and {discount}"
            )
        self.vocab_size, self.separator, self.order, self.size = vocab_size, separator, order, size
        self.discount, self.dtype = discount, dtype

    def forward(self, ids: Tensor) -> Tensor:
        """Return ``log P`` (batch, length, V) of the token after each of ``ids``, step by step; for short texts.

        Parameters
        ----------
        ids : (batch, length) int64
            A separator begins a document, and so does the first token of a sequence.

        Raises
        ------
        InputError
            The shape or type is wrong, or an id is outside the vocabulary.
        """
        state = self.start(ids[..., :1])
        rows = [self.rows(state)]
        for token in checked_ids(ids, self.vocab_size)[:, 1:].unbind(1):
            state = self.advance(state, token)
            rows.append(self.rows(state))
        return torch.stack(rows, dim=1).log()

    def target_log_probs(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return ``log P(target)`` (batch, length) in nats after each of ``ids``, see `scores`."""
        return self.scores(ids, targets).probs.log()

    def scores(self, ids: Tensor, targets: Tensor) -> CacheScores:
        """Score one target after each of ``ids``. The cache holds the tokens of ``ids`` so far.

        Parameters
        ----------
        ids : (batch, length) int64
            As for `forward`.
        targets : (batch, length) int64
            A negative target does not count.
        """
        counts = self.counts(ids, targets)
        P = torch.full(ids.shape, 1 / self.vocab_size, dtype=self.dtype, device=ids.device)
        for pair, total, types in (of_length.unbind(-1) for of_length in counts.unbind(-2)):
            P = self._interpolate(P, pair, total, types)
        return CacheScores(P.where(targets >= 0, 1.0), counts, positions(ids, self.separator))

    def counts(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return ``c(hy)``, ``c(h)`` and ``types(h)`` (batch, length, N, 3) int64, see `scores`.

        The first is that of token 0 where the target does not count.
        """
        ids = checked_ids(ids, self.vocab_size).contiguous()
        y = checked_targets(targets, ids.shape, self.vocab_size).clamp(min=0).contiguous()
        position = positions(ids, self.separator)
        # Number of the last k tokens; of the document for k = 0. Tokens across documents are numbered, too, but are not
        # the context of any target that is written, since a separator is only the first token of a document.
        context = (position == 0).cumsum(dim=1) - 1
        out = []
        for k in range(self.order):
            before = pad(context[:, :-1], (1, 0)) if k else context
            keys, order = (before * self.vocab_size + ids).sort(dim=1)
            numbers = pad((keys[:, 1:] != keys[:, :-1]).cumsum(dim=1), (1, 0))
            grams = numbers.scatter(1, order, numbers)  # number of the last k + 1 tokens
            query = context * self.vocab_size + y
            place = torch.searchsorted(keys, query).clamp(max=ids.shape[1] - 1)
            gram = torch.where(keys.gather(1, place) == query, numbers.gather(1, place), -1)
            out.append(self._count(position >= max(k, 1), before, grams, context, gram))
            context = grams
        return torch.stack(out, dim=-2)

    def _count(self, written: Tensor, before: Tensor, grams: Tensor, context: Tensor, gram: Tensor) -> Tensor:
        """Return the counts (batch, length, 3) of one length, all arguments (batch, length).

        Where a target was ``written``, ``before`` is the number of its context and ``grams`` that of its n-gram.
        ``context`` and ``gram`` are the numbers that are asked for, where -1 has no occurrence.
        """
        length = written.shape[1]
        span = length + 1  # positions are 0 ... length; pairs (number, position) are number * span + position
        now = torch.arange(length, device=written.device)
        oldest = (now + 1 - self.size).clamp(min=0)
        nothing = span * span

        def pairs(number: Tensor, position: Tensor, there: Tensor) -> Tensor:
            return torch.where(there, number * span + position, nothing).sort(dim=1).values

        def up_to(pairs: Tensor, number: Tensor, position: Tensor) -> Tensor:
            return torch.searchsorted(pairs, number * span + position)

        of_gram, of_context = pairs(grams, now, written), pairs(before, now, written)
        following = pad(of_gram[:, 1:], (0, 1), value=nothing)
        at = (of_gram % span).clamp(max=length - 1)
        again = torch.where(following // span == of_gram // span, following % span, length)
        ends = pairs(before.gather(1, at), torch.minimum(again, at + self.size), of_gram < nothing)
        all_before = up_to(of_context, context, now + 1)
        pair = up_to(of_gram, gram, now + 1) - up_to(of_gram, gram, oldest)
        total = all_before - up_to(of_context, context, oldest)
        return torch.stack([pair, total, all_before - up_to(ends, context, now + 1)], dim=-1)

    def start(self, ids: Tensor) -> CacheState:
        """Return the state after ``ids``, which are as for `forward`."""
        ids = checked_ids(ids, self.vocab_size)
        return CacheState(self._newest(ids), positions(ids, self.separator)[:, -1])

    def advance(self, state: CacheState, token: Tensor) -> CacheState:
        """Return the state after one more token (batch,) int64.

        The token is one of the vocabulary; its value is not checked again.
        """
        window = self._newest(torch.cat([state.window, token[:, None]], dim=1))
        return CacheState(window, torch.where(token == self.separator, 0, state.position + 1))

    def _newest(self, ids: Tensor) -> Tensor:
        return ids[:, -(self.size + self.order - 1) :]

    def rows(self, state: CacheState) -> Tensor:
        """Return the probability of every token (batch, V) to come next. The work is bounded by ``size`` and V."""
        return self.distribution(self.row_counts(state))

    def row_counts(self, state: CacheState) -> Tensor:
        """Return ``c(hy)`` (batch, N, V) int64 of every token y and k = 0, 1, ..., N - 1."""
        window, n = state.window, state.window.shape[1]
        age = torch.arange(n - 1, -1, -1, device=window.device)
        match = (age < self.size) & (age < state.position[:, None])  # targets that come after the last k tokens
        counts = torch.zeros(len(window), self.order, self.vocab_size, dtype=torch.int64, device=window.device)
        for k in range(min(self.order, n)):
            if k:  # nothing matches across documents: a separator is only the first token of one
                match = match & (pad(window[:, :-k], (k, 0), value=-1) == window[:, n - k, None])
            counts[:, k].scatter_add_(1, window, match.long())
        return counts

    def distribution(self, counts: Tensor) -> Tensor:
        """Return probabilities (batch, V) from the counts (batch, N, V) of `row_counts`."""
        P = torch.full_like(counts[:, 0], 1 / self.vocab_size, dtype=self.dtype)
        for pair, seen in zip(counts.unbind(1), self.contexts(counts).unbind(1), strict=True):
            P = self._interpolate(P, pair, seen[:, :1], seen[:, 1:])
        return P

    @staticmethod
    def contexts(counts: Tensor) -> Tensor:
        """Return ``c(h)`` and ``types(h)`` (batch, N, 2) from the counts (batch, N, V) of `row_counts`."""
        return torch.stack([counts.sum(dim=-1), (counts > 0).sum(dim=-1)], dim=-1)

    def _interpolate(self, P: Tensor, pair: Tensor, total: Tensor, types: Tensor) -> Tensor:
        left = types * P * self.discount
        return torch.where(total > 0, ((pair.to(P.dtype) - self.discount).clamp(min=0) + left) / total.clamp(min=1), P)

    def extra_repr(self) -> str:
        """Show the sizes in the printed model."""
        return f"vocab_size={self.vocab_size}, order={self.order}, size={self.size}, discount={self.discount}"
