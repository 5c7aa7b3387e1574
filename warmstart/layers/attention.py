"""Self-attention over a window of vectors. Its only weight is a small matrix W that acts on comparisons.

| symbol | shape | meaning |
|---|---|---|
| `X` | (..., B, b) | vectors of a window, newest first; the newest, ``x_0``, is the pivot |
| `q` | (..., B) | comparisons ``<x_i, x_0>`` |
| `A` | (..., B) | attention ``softmax(q W)``; the context vector is ``A^T X`` |
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Weight the vectors of a window by ``A = softmax(q W)``, ``q_i = <x_i, x_0>``, and return ``A^T X``.

    There are no query, key and value projections: the vectors themselves are compared. W turns the comparisons of all
    positions into the weight of each position. A window of length L < B uses ``W[:L, :L]``. `warmstart.attention`
    solves W without gradients.

    Parameters
    ----------
    size : int
        B, the number of positions in a window.

    Attributes
    ----------
    weight : nn.Parameter of shape (size, size), float32
        W. It starts at zero, which gives equal attention.

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
        vectors : (..., B, b), or a sequence of B tensors (..., b)
            Newest first. The tensors of a sequence may be shifted views of one text, which saves B copies.
        mask : (..., B) bool
            True where a position is filled. Position 0 is always filled.

        Returns
        -------
        context : (..., b)
        attention : (..., B)
            0 where the mask is False.
        """
        X = vectors.unbind(-2) if isinstance(vectors, Tensor) else vectors
        A = self.attention(comparisons(X), mask)
        return superpose(A, X), A

    def attention(self, q: Tensor, mask: Tensor) -> Tensor:
        """Return ``softmax(q W)`` (..., L) of comparisons (..., L), L at most B; 0 where the mask is False."""
        size = q.shape[-1]
        z = q.masked_fill(~mask, 0.0) @ self.weight[:size, :size]
        return z.masked_fill(~mask, float("-inf")).softmax(-1)

    def blocks(self, q: Tensor, values: Tensor) -> Tensor:
        """Attend within whole blocks: the window of a position runs from the start of its block to itself.

        Parameters
        ----------
        q : (..., L, L)
            ``q[p, age] = <x_(p - age), x_p>``. Entries with an age above p are not read.
        values : (..., L, m)
            In text order.

        Returns
        -------
        (..., L, m)
        """
        age = ages(q.shape[-1], q.device)
        A = self.attention(q, age >= 0)
        A = A.gather(-1, age.clamp(min=0).expand(A.shape)).tril()
        return A @ values

    def extra_repr(self) -> str:
        """Show the size in the printed model."""
        return f"size={self.weight.shape[0]}"


def comparisons(X: Sequence[Tensor]) -> Tensor:
    """Return ``<x_i, x_0>`` (..., B) of the B vectors (..., b) of a window."""
    return torch.stack([(x * X[0]).sum(-1) for x in X], dim=-1)


def superpose(A: Tensor, X: Sequence[Tensor]) -> Tensor:
    """Return ``sum_i A_i x_i`` (..., b) of attention (..., B) and B tensors (..., b)."""
    total = A[..., :1] * X[0]
    for i in range(1, len(X)):
        total = total + A[..., i : i + 1] * X[i]
    return total


def ages(size: int, device: torch.device) -> Tensor:
    """Return ``p - j`` (size, size): the age of position j at position p. It is negative for later positions.

    Examples
    --------
    >>> ages(2, torch.device("cpu")).tolist()
    [[0, -1], [1, 0]]
    """
    position = torch.arange(size, device=device)
    return position[:, None] - position
