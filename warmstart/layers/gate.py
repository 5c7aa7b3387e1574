"""The gate of a mixture in PyTorch: the weights of `warmstart.gate`, ready for training."""

from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from warmstart.errors import InputError
from warmstart.gate import FLOOR, Gate

STATE_SCALE = 0.1
LEAST = 1e-30  # share of the softmax that stands for a weight of 0, so that logits are finite
LEAST_TRAINED = 1e-8  # of a weight at the start of training: with 0, the gate would have no gradient that gives it more
NOTHING = np.zeros((0, 0), np.float32)
LEAST_NETWORK = 1e-3  # of the network's; costs 1e-3 nats


class MixtureGate(nn.Module):
    """Weights of experts by bucket b and state h: ``FLOOR onehot(last) + (1 - FLOOR) softmax(logits[b] + G h / 10)``.

    So the last expert, the unigram model, keeps at least `warmstart.gate.FLOOR` whatever is trained. G starts at zero,
    so at first the weights are those of the gate that is given. The factor of a tenth lets G train at the rate of the
    logits with Adam.

    Parameters
    ----------
    gate : Gate
    dtype : torch.dtype
    width : int
        Size of h, the last hidden state of the network; 0 for a gate that does not read it.

    Attributes
    ----------
    logits : nn.Parameter of shape (B, m)
    state : nn.Parameter of shape (m, width), or None
        G.

    Examples
    --------
    >>> gate = MixtureGate(Gate((2,), np.array([[0.75, 0.25], [0.99, 0.01]])))
    >>> gate(torch.tensor([[0], [1], [7]])).detach()
    tensor([[0.7500, 0.2500],
            [0.9900, 0.0100],
            [0.9900, 0.0100]])
    """

    def __init__(self, gate: Gate, dtype: torch.dtype = torch.float32, width: int = 0) -> None:
        super().__init__()
        m = gate.weights.shape[1]
        self.state = nn.Parameter(torch.zeros(m, width, dtype=dtype)) if width else None
        self.sizes = tuple(int(size) for size in gate.sizes)
        free = gate.weights.copy()
        free[:, -1] -= FLOOR
        self.logits = nn.Parameter(torch.tensor(np.log(np.maximum(free / (1 - FLOOR), LEAST)), dtype=dtype))

    @classmethod
    def ready(cls, start: Gate, width: int = 0) -> Self:
        """Return a gate to train, whose network is the last expert but one, and has a state of that width.

        The weights are those of ``start``, but at least `LEAST_NETWORK` for the network and `LEAST_TRAINED` for others.
        """
        least = np.full(start.weights.shape[1], LEAST_TRAINED)
        least[-2:] = LEAST_NETWORK, FLOOR + LEAST_TRAINED
        weights = np.maximum(start.weights, least)
        weights[:, :-1] *= (1.0 - weights[:, -1:]) / weights[:, :-1].sum(axis=1, keepdims=True)
        return cls(Gate(start.sizes, weights), width=width)

    def forward(self, features: Tensor) -> Tensor:
        """Return the weights of the experts (..., m) for features (..., k) int64; they sum to 1."""
        return self.weights(self.index(features))

    def weights(self, buckets: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Return the weights of the experts (..., m) in buckets (...) int64; they sum to 1.

        ``hidden`` (..., width) are the states of the network, if the gate reads them.
        """
        shares = (1 - FLOOR) * self._scores(buckets, hidden).softmax(dim=-1)
        return torch.cat([shares[..., :-1], shares[..., -1:] + FLOOR], dim=-1)

    def constants(self, buckets: NDArray[np.int64], hidden: Tensor | None = None) -> NDArray[np.float32]:
        """Return the weights of the experts (n, m) in buckets (n,), as numbers without a gradient."""
        from warmstart import _mixture_kernels as kernels  # numba is loaded here, not on import

        index = torch.from_numpy(buckets).to(self.logits.device)
        logits = self.logits.detach().index_select(0, index).cpu().float().numpy()
        state, h = NOTHING, NOTHING
        if self.state is not None and hidden is not None:
            state, h = (each.detach().cpu().float().numpy() for each in (self.state, hidden))
        out = np.empty(logits.shape, np.float32)
        kernels.gate_weights(logits, state, h, STATE_SCALE, FLOOR, out)
        return out

    def _scores(self, buckets: Tensor, hidden: Tensor | None) -> Tensor:
        scores = functional.embedding(buckets, self.logits)
        if self.state is None:
            return scores
        if hidden is None:
            raise InputError("expected the states of the network, which this gate reads, got none; give them as hidden")
        return scores + STATE_SCALE * (hidden.to(scores.dtype) @ self.state.T)

    def nats(self, network: Tensor, probs: Tensor, buckets: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Return ``-log P`` (...) of targets by the mixture, whose network is the last expert but one.

        Parameters
        ----------
        network : (...)
            ``-log q`` of the network.
        probs : (..., m - 1)
            Probabilities by the other experts.
        buckets : (...) int64
        hidden : (..., width), optional
            States of the network, if the gate reads them.
        """
        weights = self.weights(buckets, hidden)
        others = (weights[..., :-2] * probs[..., :-1]).sum(-1) + weights[..., -1] * probs[..., -1]
        return -(others + weights[..., -2] * network.neg().exp()).log()

    def index(self, features: Tensor) -> Tensor:
        """Return the bucket (...) of features (..., k), see `warmstart.gate.Gate.index`."""
        index = torch.zeros_like(features[..., 0])
        for column, size in zip(features.unbind(-1), self.sizes, strict=True):
            index = index * size + column.clamp(0, size - 1)
        return index

    def to_model(self) -> Gate:
        """Return the weights as a gate in numpy."""
        weights = FLOOR * np.eye(self.logits.shape[1])[-1] + (1 - FLOOR) * (
            self.logits.detach().cpu().double().softmax(dim=-1).numpy()
        )
        return Gate(self.sizes, weights)

    def extra_repr(self) -> str:
        """Show the sizes in the printed model."""
        return f"buckets={len(self.logits)}, experts={self.logits.shape[1]}"
