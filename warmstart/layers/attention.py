"""Self-attention over a window of vectors, its only weight a small matrix W that works on comparisons.

| symbol | shape | meaning |
|---|---|---|
| `X` | (..., B, b) | vectors of a window, newest first; the pivot is ``x_0`` |
| `q` | (..., B) | comparisons ``<x_i, x_0>`` |
| `A` | (..., B) | attention ``softmax(q W)``; the context is ``A^T X`` |
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Superpose the vectors of a window by ``A = softmax(q W)``, ``q_i = <x_i, x_0>``; return ``A^T X``.

    There are no query, key and value maps: vectors are compared as they are, and W says how much each age counts
    given the comparisons of all. A shorter window of length L uses ``W[:L, :L]``. `warmstart.attention` finds W
    without gradients, from the responsibilities of the positions as hidden targets.

    Parameters
    ----------
    size : int
        B, the positions of a window.

    Attributes
    ----------
    weight : nn.Parameter of shape (size, size), float32
        W; zeros, that is equal attention, until it is loaded or trained.

    References
    ----------
    Williams and Zhao 2023, arXiv 2311.07510.

    Examples
    --------
    >>> attention = SelfAttention(2)
    >>> X = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> context, A = attention(X, torch.tensor([[True, True]]))
    >>> context.tolist(), A.tolist()
    ([[0.5, 0.5]], [[0.5, 0.5]])
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, size))

    def forward(self, vectors: Tensor | Sequence[Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """Attend to every window.

        Parameters
        ----------
        vectors : (..., B, b), or its B slices (..., b)
            Newest first. Slices may be views of one sequence, so that windows need not be copied B times.
        mask : (..., B) bool
            True where a position is filled; position 0 always is.

        Returns
        -------
        context : (..., b)
        attention : (..., B)
            0 where the mask is False.
        """
        X = vectors.unbind(-2) if isinstance(vectors, Tensor) else vectors
        A = self.attention(torch.stack([(x * X[0]).sum(-1) for x in X], dim=-1), mask)
        context = A[..., :1] * X[0]
        for age in range(1, len(X)):
            context = context + A[..., age : age + 1] * X[age]
        return context, A

    def attention(self, q: Tensor, mask: Tensor) -> Tensor:
        """Return ``softmax(q W)`` (..., L) of comparisons (..., L), L at most B; 0 where the mask is False."""
        size = q.shape[-1]
        z = q.masked_fill(~mask, 0.0) @ self.weight[:size, :size]
        return z.masked_fill(~mask, float("-inf")).softmax(-1)

    def blocks(self, q: Tensor, values: Tensor) -> Tensor:
        """Attend within whole blocks: the window of a position is its block up to itself.

        Parameters
        ----------
        q : (..., L, L)
            ``q[p, age] = <x_(p - age), x_p>``; what stands at ages above p is not read.
        values : (..., L, m)
            In the order of the text.

        Returns
        -------
        (..., L, m)
        """
        age = ages(q.shape[-1], q.device)
        A = self.attention(q, age >= 0)
        A = A.gather(-1, age.clamp(min=0).expand(A.shape)).tril()
        return A @ values

    def extra_repr(self) -> str:
        """Name the size in the printed model."""
        return f"size={self.weight.shape[0]}"


def ages(size: int, device: torch.device) -> Tensor:
    """Return ``p - j`` (size, size): at row p the age of position j, or the position of age j; negative is later text.

    Examples
    --------
    >>> ages(2, torch.device("cpu")).tolist()
    [[0, -1], [1, 0]]
    """
    place = torch.arange(size, device=device)
    return place[:, None] - place
