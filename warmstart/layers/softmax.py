"""The softmax layer that the explicit solution is for: a matrix and nothing else."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


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

    def probabilities(self, x: Tensor) -> Tensor:
        """Return probabilities (..., C) of inputs (..., D)."""
        return torch.softmax(self(x), dim=-1)

    def extra_repr(self) -> str:
        """Name the shape in the printed model."""
        return f"in_features={self.weight.shape[0]}, n_classes={self.weight.shape[1]}"
