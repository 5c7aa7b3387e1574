"""Test-time training: a memory that is itself a small model, trained by gradient steps while the text is read.

| symbol | shape | meaning |
|---|---|---|
| `q`, `k`, `v` | (batch, heads, length, d) | ``theta_Q x``, ``theta_K x``, ``theta_V x`` |
| `eta` | (batch, heads, length) | inner rate of each token |
| `W` | (batch, heads, d_in, d_out) | weights of the inner model, one matrix or two |
| `f(k)` | (..., d) | inner model: ``k W``, or ``gelu(k W_1) W_2`` |
| `C` | | tokens of a mini-batch |

The inner loss of a token is ``1/2 |LN(f(k)) + k - v|^2``, half the square, so that a step is ``eta`` times the error.
Every token of a mini-batch has its gradient taken at the weights ``W`` before the mini-batch, and token t is read with
the steps of the tokens up to t. Steps are outer products, ``W_t = W - sum_(s<=t) eta_s outer(a_s, g_s)`` with the
inputs `a_s` of a matrix and the gradients `g_s` at its outputs, so no ``W_t`` is ever formed (dual form):

    b_t W_t = b_t W - sum_(s<=t) (b_t . a_s) eta_s g_s            b_t the input of the matrix on the way of q_t

Source: Sun et al. 2024, arXiv 2407.04620. All gradients of the inner loss are written out; autograd sees products only,
so the outer loss differentiates through the inner steps.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from warmstart.errors import InputError
from warmstart.memory.shift import ShiftState, shifted, unpacked

MINI_BATCH = 16
EPSILON = 1e-6  # of the inner LayerNorm
Norm = tuple[Tensor, Tensor]


def ttt_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    weights: Sequence[Tensor],
    norm: Norm | None = None,
    mini_batch: int = MINI_BATCH,
) -> tuple[Tensor, list[Tensor]]:
    """Train the inner model on ``(k, v)`` along the text and read it at ``q``.

    Parameters
    ----------
    q, k, v : (batch, heads, length, d)
    eta : (batch, heads, length)
    weights : one or two matrices (batch, heads, d_in, d_out), or shapes that broadcast to it
        Where the inner model begins. Between two matrices stands a GELU (tanh form).
    norm : (scale, shift), each (heads, 1, d) or a shape that broadcasts to it, optional
        LayerNorm and residual of the inner model. Without: the loss is ``1/2 |f(k) - v|^2``, the read ``f(q)``; with
        one matrix and mini-batch 1 that is the delta rule of strength ``eta``.
    mini_batch : int
        C.

    Returns
    -------
    output : (batch, heads, length, d)
    weights : list of (batch, heads, d_in, d_out)

    Raises
    ------
    InputError
        Length 0, shapes that do not fit, mixed dtypes, NaN or infinite entries.

    References
    ----------
    Sun et al. 2024, arXiv 2407.04620, sections 2.4 to 2.7.

    Examples
    --------
    >>> k, v = torch.ones(1, 1, 2, 1), torch.tensor([[[[1.0], [3.0]]]])
    >>> read, (W,) = ttt_rule(k, k, v, torch.full((1, 1, 2), 0.5), [torch.zeros(1, 1)], mini_batch=1)
    >>> read.flatten().tolist(), W.item()
    ([0.5, 1.75], 1.75)
    """
    _check(q, k, v, eta, weights, mini_batch)
    output, state = _advance(q, k, v, eta, TTTState(list(weights)), norm, mini_batch)
    return output, state.after


class TTTState(NamedTuple):
    """Where a text has got to within a mini-batch.

    Attributes
    ----------
    weights : list of (batch, heads, d_in, d_out)
        Before the mini-batch: gradients are taken there.
    steps : list of (batch, heads, d_in, d_out)
        Sum of the steps since; empty for none.
    done : int
        Tokens of the mini-batch that have been read, below C.
    """

    weights: list[Tensor]
    steps: Sequence[Tensor] = ()
    done: int = 0

    @property
    def after(self) -> list[Tensor]:
        """Weights that the next token would be read with, before its own step."""
        return [W - step for W, step in zip(self.weights, self.steps, strict=True)] if self.steps else self.weights


def _advance(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, state: TTTState, norm: Norm | None, mini_batch: int
) -> tuple[Tensor, TTTState]:
    """Go on from a state: finish its mini-batch, then whole ones, then begin the last."""
    length, first = k.shape[2], min(mini_batch - state.done, k.shape[2])
    sizes = [first, *(min(mini_batch, length - at) for at in range(first, length, mini_batch))]
    outputs = []
    with torch.autocast(q.device.type, enabled=False):  # the steps of a whole text add up
        # split, not slices: the gradient of a slice is as long as the text, so that of all would be quadratic.
        parts = (torch.split(x, sizes, dim=2) for x in (q, k, v, eta[..., None]))
        for q_part, k_part, v_part, eta_part in zip(*parts, strict=True):
            read, steps = _part(q_part, k_part, v_part, eta_part, state, norm)
            outputs.append(read)
            state = TTTState(state.weights, steps, state.done + k_part.shape[2])
            if state.done == mini_batch:
                state = TTTState(state.after)
    return torch.cat(outputs, dim=2), state


def _part(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, state: TTTState, norm: Norm | None
) -> tuple[Tensor, list[Tensor]]:
    """Read a part of a mini-batch, q, k, v (batch, heads, n, d), eta (batch, heads, n, 1); return the sum of steps."""
    weights = state.weights
    inputs, outputs = [k], [k @ weights[0]]
    for W in weights[1:]:
        inputs.append(_gelu(outputs[-1]))
        outputs.append(inputs[-1] @ W)
    gradients = [outputs[-1] - v if norm is None else _normed_gradient(outputs[-1], v - k, norm)]
    for W, z in zip(weights[:0:-1], outputs[-2::-1], strict=True):
        gradients.insert(0, gradients[0] @ W.mT * _gelu_slope(z))
    read, steps = q, []
    for i, (W, a, g) in enumerate(zip(state.after, inputs, gradients, strict=True)):
        b = read if i == 0 else _gelu(read)
        g = eta * g
        read = b @ W - (b @ a.mT).tril() @ g
        steps.append(a.mT @ g + (state.steps[i] if state.steps else 0))
    return (read if norm is None else _normed(read, norm) + q), steps


def _standardised(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return z (..., d) with mean 0 and variance 1, and what it was divided by (..., 1)."""
    deviation = (z.var(-1, correction=0, keepdim=True) + EPSILON).sqrt()
    return (z - z.mean(-1, keepdim=True)) / deviation, deviation


def _normed(z: Tensor, norm: Norm) -> Tensor:
    return _standardised(z)[0] * norm[0] + norm[1]


def _normed_gradient(z: Tensor, target: Tensor, norm: Norm) -> Tensor:
    """Return the gradient of ``1/2 |LN(z) - target|^2`` in z (..., d)."""
    unit, deviation = _standardised(z)
    g = (unit * norm[0] + norm[1] - target) * norm[0]
    return (g - g.mean(-1, keepdim=True) - unit * (g * unit).mean(-1, keepdim=True)) / deviation


def _gelu(z: Tensor) -> Tensor:
    return functional.gelu(z, approximate="tanh")


def _gelu_slope(z: Tensor) -> Tensor:
    """Return the derivative of `_gelu`."""
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(scale * (z + cubic * z * z * z))
    return (1 + t) / 2 + z * (1 - t * t) / 2 * scale * (1 + 3 * cubic * z * z)


def _check(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, weights: Sequence[Tensor], mini_batch: int) -> None:
    if k.ndim != 4 or 0 in k.shape:
        raise InputError(f"k: expected (batch, heads, length, d), none of them 0, got {tuple(k.shape)}")
    if mini_batch < 1:
        raise InputError(f"mini_batch: expected at least 1, got {mini_batch}")
    for name, x, shape in (("q", q, k.shape), ("k", k, k.shape), ("v", v, k.shape), ("eta", eta, k.shape[:3])):
        if x.shape != shape or x.dtype != k.dtype:
            raise InputError(f"{name}: expected {tuple(shape)} in {k.dtype} as k, got {tuple(x.shape)} in {x.dtype}")
        if not torch.isfinite(x).all():
            raise InputError(f"{name}: expected finite numbers, got NaN or infinity")
    d, sizes = k.shape[-1], [tuple(W.shape[-2:]) for W in weights]
    fits = len(sizes) == 1 and sizes[0] == (d, d)
    fits |= len(sizes) == 2 and sizes[0][0] == d == sizes[1][1] and sizes[0][1] == sizes[1][0]
    if not fits or any(W.dtype != k.dtype for W in weights):
        raise InputError(f"weights: expected one ({d}, {d}) or ({d}, m) and (m, {d}) in {k.dtype}, got {sizes}")


class TTTLinear(nn.Module):
    """Sequence layer whose memory in each head is a linear model, trained on ``(theta_K x, theta_V x)`` as it reads.

    Parameters
    ----------
    dim : int
        Of inputs and outputs.
    heads : int
        A divisor of ``dim``; d is ``dim / heads``.
    mini_batch : int
        Tokens whose inner gradients are taken at the same weights.
    rate : float
        Largest inner rate, in units of 1 / d; that of a token is ``rate / d * sigmoid(w . x)``.
    norm : bool
        LayerNorm and residual of the inner model. Without them, and with mini-batch 1, this is the delta rule.
    shift : bool
        Keys see a learned mix of the token and the one before it.

    Attributes
    ----------
    query, key, value, output : nn.Linear without bias
        theta_Q, theta_K, theta_V and the map out of the heads.
    gate : nn.Linear, dim to heads
        Of the inner rate.
    weights : nn.ParameterList of (heads, d, d)
        Where the inner model begins.
    scale, shift : nn.Parameter of shape (heads, 1, d)
        Of the inner LayerNorm.
    mix : nn.Parameter of shape (dim,), 0.5 at first, or None
        Share of the token before in what the keys see.

    Raises
    ------
    InputError
        ``heads`` does not divide ``dim``.

    References
    ----------
    Sun et al. 2024, arXiv 2407.04620.

    Examples
    --------
    >>> layer, x = TTTLinear(dim=16, heads=2), torch.randn(1, 40, 16)
    >>> y, state = layer.advance(x[:, :25])
    >>> y, state = layer.advance(x[:, 25:], state)
    >>> torch.allclose(y, layer(x)[:, 25:], atol=1e-5)
    True
    """

    mix: Tensor | None

    def __init__(
        self,
        dim: int,
        heads: int,
        mini_batch: int = MINI_BATCH,
        rate: float = 1.0,
        norm: bool = True,
        shift: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1 or dim < 1 or dim % heads:
            raise InputError(f"heads: expected a divisor of dim, {dim}, got {heads}")
        if mini_batch < 1 or not 0 < rate < float("inf"):
            raise InputError(f"expected a mini-batch of at least 1 and a positive rate, got {mini_batch} and {rate}")
        self.heads, self.mini_batch, self.norm = heads, mini_batch, norm
        d = dim // heads
        self.rate = rate / d
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.gate = nn.Linear(dim, heads)
        self.weights = nn.ParameterList(nn.Parameter(0.02 * torch.randn(heads, *shape)) for shape in self.shapes(d))
        if norm:
            self.scale = nn.Parameter(torch.ones(heads, 1, d))
            self.shift = nn.Parameter(torch.zeros(heads, 1, d))
        self.mix = nn.Parameter(torch.full((dim,), 0.5)) if shift else None

    def shapes(self, d: int) -> list[tuple[int, int]]:
        """Return the shapes of the inner model's matrices."""
        return [(d, d)]

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, length, dim) of inputs (batch, length, dim)."""
        return self.advance(x)[0]

    def advance(self, x: Tensor, state: TTTState | ShiftState | None = None) -> tuple[Tensor, TTTState | ShiftState]:
        """Go on from a state: the next part of a text, or the next token of a generation in constant time and memory.

        Parameters
        ----------
        x : (batch, length, dim)
        state : as returned, optional
            A `ShiftState` for layers with token shift.

        Returns
        -------
        output : (batch, length, dim)
        state : TTTState or ShiftState
        """
        if x.ndim != 3 or 0 in x.shape:
            raise InputError(f"expected vectors (batch, length, dim), none of them 0, got {tuple(x.shape)}")
        memory, last = unpacked(state, self.mix)
        k = x if self.mix is None else shifted(x, self.mix, last)
        q, k, v = (
            layer(y).to(x.dtype).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.query, x), (self.key, k), (self.value, x))
        )
        eta = self.rate * self.gate(x).to(x.dtype).sigmoid().transpose(1, 2)
        norm = (self.scale, self.shift) if self.norm else None
        memory = self._checked(memory, x) if memory is not None else TTTState(list(self.weights))
        _check(q, k, v, eta, memory.weights, self.mini_batch)
        read, memory = _advance(q, k, v, eta, memory, norm, self.mini_batch)
        out: Tensor = self.output(read.transpose(1, 2).flatten(2))
        return out, memory if self.mix is None else ShiftState(memory, x[:, -1])

    def _checked(self, state: object, x: Tensor) -> TTTState:
        """Return a state that this layer can go on from, or say what is wrong."""
        if not isinstance(state, TTTState) or not 0 <= state.done < self.mini_batch:
            raise InputError(f"state: expected a TTTState within a mini-batch of {self.mini_batch}, got {state!r:.80}")
        right = [tuple(W.shape) for W in self.weights]
        shapes = [tuple(W.shape[-3:]) for W in state.weights], [tuple(W.shape[1:]) for W in state.steps]
        batches = {len(W) for W in (*state.weights, *state.steps) if W.ndim == 4}
        if shapes[0] != right or shapes[1] not in ([], right) or batches - {len(x)}:
            raise InputError(
                f"state: expected weights {right} for a batch of {len(x)}; use one of this layer and batch"
            )
        return state

    def extra_repr(self) -> str:
        """Name the settings in the printed model."""
        return f"heads={self.heads}, mini_batch={self.mini_batch}, norm={self.norm}"


class TTTMLP(TTTLinear):
    """`TTTLinear` with a two-layer inner model, ``gelu(k W_1) W_2`` with a hidden layer of 4 d.

    Its step moves two matrices at once; a smaller ``rate``, 0.1, is what the authors take.

    References
    ----------
    Sun et al. 2024, arXiv 2407.04620, section 2.7.

    Examples
    --------
    >>> TTTMLP(dim=16, heads=2, rate=0.1)(torch.randn(1, 40, 16)).shape
    torch.Size([1, 40, 16])
    """

    def shapes(self, d: int) -> list[tuple[int, int]]:
        """Return the shapes of the inner model's matrices."""
        return [(d, 4 * d), (4 * d, d)]
