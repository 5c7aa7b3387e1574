"""The softmax layer whose weights the explicit solution gives: one matrix, no bias, and its fused cross-entropy."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BLOCK_ROWS = 64  # rows of logits in one block on a CPU: a few MiB, which stay in its cache


class SoftmaxLayer(nn.Module):
    """Logits ``x U`` of a softmax. There is no bias: the k-rule puts the class prior into the weights.

    Parameters
    ----------
    in_features : int
        D, the dimension of the inputs, which are non-negative.
    n_classes : int
        C, the number of classes.

    Attributes
    ----------
    weight : nn.Parameter of shape (in_features, n_classes), float32
        U. It starts at zero, which gives equal probabilities.

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
        """Return logits (..., C) of inputs (..., D)."""
        return x @ self.weight

    def cross_entropy(self, x: Tensor, targets: Tensor, fixed: int = 0) -> Tensor:
        """Return ``-log softmax(x U)[target]`` (n,) of inputs (n, D), see `fused_cross_entropy`."""
        return fused_cross_entropy(x, self.weight, targets, fixed)

    def probabilities(self, x: Tensor) -> Tensor:
        """Return probabilities (..., C) of inputs (..., D)."""
        return torch.softmax(self(x), dim=-1)

    def extra_repr(self) -> str:
        """Show the shape in the printed model."""
        return f"in_features={self.weight.shape[0]}, n_classes={self.weight.shape[1]}"


def fused_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, fixed: int = 0) -> Tensor:
    """Return ``-log softmax(x U)[target]`` (n,), the cross-entropy of every row in nats.

    The gradient of the logits overwrites the logits, so there is one array (n, C) instead of three. Under
    `torch.autocast` the three matrix products run in its type. Logarithms, sums and the gradient of U stay in float32.

    Parameters
    ----------
    x : (n, D)
    weight : (D, C)
    targets : (n,) int64
    fixed : int
        Number of leading features that need no gradient.

    Examples
    --------
    >>> fused_cross_entropy(torch.eye(2), torch.zeros(2, 4), torch.tensor([0, 3])).exp()
    tensor([4., 4.])
    """
    loss: Tensor = _FusedCrossEntropy.apply(x, weight, targets, fixed)  # type: ignore[no-untyped-call]
    return loss


class _FusedCrossEntropy(torch.autograd.Function):
    """``-log softmax(x U)[target]``. The forward pass leaves ``p - onehot``, the gradient of the logits, in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, fixed: int) -> Tensor:
        device = x.device.type
        wide = torch.promote_types(x.dtype, torch.float32)
        if torch.is_autocast_enabled(device):
            x, weight = x.to(torch.get_autocast_dtype(device)), weight.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            z = x @ weight
            loss = torch.empty(len(z), dtype=wide, device=z.device)
            size = BLOCK_ROWS if device == "cpu" else max(1, len(z))
            for start in range(0, len(z), size):
                rows = slice(start, start + size)
                block, target = z[rows].to(wide), targets[rows, None]
                highest = block.amax(dim=1, keepdim=True)
                at_target = block.gather(1, target)
                mass = block.sub_(highest).exp_().sum(dim=1, keepdim=True)
                loss[rows] = (mass.log() + highest - at_target)[:, 0]
                block /= mass
                block.scatter_add_(1, target, block.new_full(target.shape, -1.0))
                if z.dtype != wide:
                    z[rows] = block
        ctx.fixed, ctx.wide = fixed, wide
        ctx.save_for_backward(x, weight, z)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, dz = ctx.saved_tensors
        scale = scale[:, None]
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = torch.zeros(x.shape, dtype=ctx.wide, device=x.device)
            dx[:, ctx.fixed :] = (dz @ weight[ctx.fixed :].T) * scale
        if ctx.needs_input_grad[1]:
            dweight = ((x * scale.to(x.dtype)).T @ dz).to(ctx.wide)
        return dx, dweight, None, None
