"""The softmax layer that the explicit solution is for: a matrix and nothing else."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ROWS = 64  # rows of logits worked on at once: a few MiB, so that they stay in the cache


class SoftmaxLayer(nn.Module):
    """Logits ``x U`` of a softmax, without a bias: the k-rule puts the prior of the classes into the weights.

    Parameters
    ----------
    in_features : int
        D, the dimension of the inputs; they are non-negative.
    n_classes : int
        C.

    Attributes
    ----------
    weight : nn.Parameter of shape (in_features, n_classes), float32
        U; zeros, that is equal probabilities, until it is loaded.

    References
    ----------
    Williams and Zhao 2023, arXiv 2311.07498, theorem 1.

    Examples
    --------
    >>> layer = SoftmaxLayer.from_weights(np.log([[0.9, 0.1], [0.2, 0.8]]))
    >>> layer.probabilities(torch.eye(2)).detach().numpy().round(2)
    array([[0.9, 0.1],
           [0.2, 0.8]], dtype=float32)
    """

    def __init__(self, in_features: int, n_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(in_features, n_classes))

    @classmethod
    def from_weights(cls, weights: NDArray[Any]) -> "SoftmaxLayer":
        """Return a layer that holds a copy of ``weights`` (D, C)."""
        layer = cls(*weights.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weights.astype(np.float32)))
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (..., C) of inputs (..., D); a cross-entropy loss takes them as they are."""
        return x @ self.weight

    def nats(self, x: Tensor, targets: Tensor, fixed: int = 0) -> Tensor:
        """Return ``-log softmax(x U)[target]`` (n,) of inputs (n, D): see `nats`."""
        return nats(x, self.weight, targets, fixed)

    def probabilities(self, x: Tensor) -> Tensor:
        """Return probabilities (..., C) of inputs (..., D)."""
        return torch.softmax(self(x), dim=-1)

    def extra_repr(self) -> str:
        """Name the shape in the printed model."""
        return f"in_features={self.weight.shape[0]}, n_classes={self.weight.shape[1]}"


def nats(x: Tensor, weight: Tensor, targets: Tensor, fixed: int = 0) -> Tensor:
    """Return ``-log softmax(x U)[target]`` (n,), the cross-entropy of every row.

    Logits and their gradient share one array (n, C). Under `torch.autocast` the three products run in its type;
    logarithms, sums and the gradient of U stay float32.

    Parameters
    ----------
    x : (n, D)
    weight : (D, C)
    targets : (n,) int64
    fixed : int
        The first so many features need no gradient.

    Examples
    --------
    >>> nats(torch.eye(2), torch.zeros(2, 4), torch.tensor([0, 3])).exp()
    tensor([4., 4.])
    """
    out: Tensor = _Nats.apply(x, weight, targets, fixed)  # type: ignore[no-untyped-call]
    return out


class _Nats(torch.autograd.Function):
    """``-log softmax(x U)[target]``, its gradient ``x (p - onehot)`` prepared in place of the logits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, fixed: int) -> Tensor:
        kind = x.device.type
        wide = torch.promote_types(x.dtype, torch.float32)
        if torch.is_autocast_enabled(kind):
            x, weight = x.to(torch.get_autocast_dtype(kind)), weight.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            z = x @ weight
            nats = torch.empty(len(z), dtype=wide, device=z.device)
            at_once = ROWS if kind == "cpu" else max(1, len(z))
            for start in range(0, len(z), at_once):
                rows = slice(start, start + at_once)
                part, at = z[rows].to(wide), targets[rows, None]
                top = part.amax(dim=1, keepdim=True)
                picked = part.gather(1, at)
                mass = part.sub_(top).exp_().sum(dim=1, keepdim=True)
                nats[rows] = (mass.log() + top - picked)[:, 0]
                part /= mass
                part.scatter_add_(1, at, part.new_full(at.shape, -1.0))
                if part.data_ptr() != z[rows].data_ptr():
                    z[rows] = part
        ctx.fixed, ctx.wide = fixed, wide
        ctx.save_for_backward(x, weight, z)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, d = ctx.saved_tensors
        scale = scale[:, None]
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = torch.zeros(x.shape, dtype=ctx.wide, device=x.device)
            dx[:, ctx.fixed :] = (d @ weight[ctx.fixed :].T) * scale
        if ctx.needs_input_grad[1]:
            dweight = ((x * scale.to(x.dtype)).T @ d).to(ctx.wide)
        return dx, dweight, None, None
