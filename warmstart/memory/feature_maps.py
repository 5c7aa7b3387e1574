"""Feature maps ``phi`` for keys and queries, and softmax attention as the reference that they approximate.

All give non-negative features, so that ``phi(q) . phi(k)`` can be a weight.

| name | d_phi | source |
|---|---|---|
| `elu_plus_one` | d | Katharopoulos et al. 2020, arXiv 2006.16236 |
| `dpfp` | 2 d nu | Schlag, Irie and Schmidhuber 2021, arXiv 2102.11174, section 5.3 |
| `FAVOR` | 2 m | Choromanski et al. 2021, arXiv 2009.14794 |
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from warmstart.errors import InputError


def elu_plus_one(x: Tensor) -> Tensor:
    """Return ``x + 1`` where x is positive and ``exp(x)`` elsewhere, of any shape.

    References
    ----------
    Katharopoulos et al. 2020, arXiv 2006.16236, equation 7.

    Examples
    --------
    >>> elu_plus_one(torch.tensor([2.0, 0.0])).tolist()
    [3.0, 1.0]
    """
    return functional.elu(x) + 1


def dpfp(x: Tensor, nu: int = 1) -> Tensor:
    """Return the deterministic parameter-free projection: products of ``r = relu([x, -x])`` with its rotations.

    Parameters
    ----------
    x : (..., d)
    nu : int, 1 to 2 d - 1
        Number of rotations; ``d_phi = 2 d nu``. Few features are positive at once, so distant keys are nearly
        orthogonal.

    Returns
    -------
    (..., 2 d nu)

    Raises
    ------
    InputError
        ``nu`` is not in 1 to 2 d - 1.

    References
    ----------
    Schlag, Irie and Schmidhuber 2021, arXiv 2102.11174, section 5.3.

    Examples
    --------
    >>> dpfp(torch.tensor([2.0, 3.0])).tolist()
    [0.0, 6.0, 0.0, 0.0]
    """
    size = 2 * x.shape[-1]
    if not 1 <= nu < size:
        raise InputError(f"nu: expected 1 to {size - 1}, 2 d - 1 for keys of dimension {x.shape[-1]}, got {nu}")
    r = torch.cat([x, -x], dim=-1).relu()
    return torch.cat([r * r.roll(shift, -1) for shift in range(1, nu + 1)], dim=-1)


class FAVOR(nn.Module):
    """Positive orthogonal random features: ``phi(q) . phi(k)`` estimates ``exp(q . k / sqrt(d))`` without bias.

    ``phi(x) = [exp(w . x - |x|^2 / 2), exp(-w . x - |x|^2 / 2)] / sqrt(2 m)`` over m random directions w, after x is
    divided by ``d ** 0.25``. Directions are orthogonal in groups of d and have the lengths of normal random vectors.

    Parameters
    ----------
    dim : int
        d, the dimension of keys and queries.
    features : int
        m, the number of directions; ``d_phi = 2 m``.
    seed : int
        Seed of the directions.

    Attributes
    ----------
    directions : buffer of shape (m, d)

    Raises
    ------
    InputError
        A size is below 1; when called, keys do not have the dimension d.

    References
    ----------
    Choromanski et al. 2021, arXiv 2009.14794, lemma 1 and section 2.4.

    Examples
    --------
    >>> phi = FAVOR(dim=4, features=8)
    >>> phi(torch.zeros(1, 4)).square().sum().item()
    1.0
    """

    directions: Tensor

    def __init__(self, dim: int, features: int, seed: int = 0) -> None:
        super().__init__()
        if dim < 1 or features < 1:
            raise InputError(f"expected at least 1 dimension and 1 feature, got {dim} and {features}")
        self.dim, self.features = dim, features
        self.register_buffer("directions", torch.empty(features, dim))
        self.redraw(seed)

    def redraw(self, seed: int) -> None:
        """Replace the directions by those of another seed. Memories written with the old ones become unreadable."""
        generator = torch.Generator().manual_seed(seed)
        blocks = []
        for _ in range(0, self.features, self.dim):
            normal = torch.randn(self.dim, self.dim, dtype=torch.float64, generator=generator)
            lengths = torch.randn(self.dim, self.dim, dtype=torch.float64, generator=generator).norm(dim=1)
            blocks.append(lengths[:, None] * _orthogonal(normal))
        self.directions.copy_(torch.cat(blocks)[: self.features])

    def forward(self, x: Tensor) -> Tensor:
        """Return features (..., 2 m) of keys or queries (..., d)."""
        if x.shape[-1] != self.dim:
            raise InputError(f"expected keys of dimension {self.dim}, got {x.shape[-1]}; make FAVOR(dim={x.shape[-1]})")
        x = x / math.sqrt(math.sqrt(self.dim))
        along = x @ self.directions.T.to(x.dtype)
        exponents = torch.cat([along, -along], dim=-1) - x.square().sum(-1, keepdim=True) / 2
        return exponents.exp() / math.sqrt(2 * self.features)

    def extra_repr(self) -> str:
        """Show the sizes in the printed model."""
        return f"dim={self.dim}, features={self.features}"


def _orthogonal(normal: Tensor) -> Tensor:
    """Return an orthogonal matrix, uniformly distributed if the entries of ``normal`` (d, d) are standard normal."""
    Q, R = torch.linalg.qr(normal)
    return torch.mul(Q, R.diagonal().sign())


def sum_normalise(phi: Tensor) -> Tensor:
    """Divide non-negative features (..., d_phi) by their sum. Features that are all zero stay zero.

    The delta rule is stable on the result: ``|phi|_2 <= |phi|_1 = 1``, so writes do not overshoot for beta up to 1.

    References
    ----------
    Schlag, Irie and Schmidhuber 2021, arXiv 2102.11174, section 4.2.

    Examples
    --------
    >>> sum_normalise(torch.tensor([[1.0, 3.0], [0.0, 0.0]])).tolist()
    [[0.25, 0.75], [0.0, 0.0]]
    """
    total = phi.sum(-1, keepdim=True)
    return phi / torch.where(total == 0, 1.0, total)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return causal softmax attention. Time and memory grow with the square of the length.

    Parameters
    ----------
    q, k : (batch, heads, length, d)
    v : (batch, heads, length, d_v)
    mask : (batch, length) bool, optional
        False where a token is not read. The output is 0 where no token is read.

    Returns
    -------
    (batch, heads, length, d_v)

    Examples
    --------
    >>> v = torch.tensor([[[[1.0], [3.0]]]])
    >>> softmax_attention(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), v).flatten().tolist()
    [1.0, 2.0]
    """
    length = q.shape[-2]
    visible = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        visible = visible & mask[:, None, None, :]
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~visible, float("-inf"))
    empty = ~visible.any(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(empty, 0.0), dim=-1).masked_fill(~visible, 0.0) @ v
