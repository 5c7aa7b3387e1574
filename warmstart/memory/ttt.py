"""The rule of test-time training: the memory is a small model, trained by gradient steps while the text is read.

| symbol | shape | meaning |
|---|---|---|
| `q`, `k`, `v` | (batch, heads, length, d) | ``theta_Q x``, ``theta_K x``, ``theta_V x`` |
| `eta` | (batch, heads, length) | inner learning rate of each token |
| `W` | (batch, heads, d_in, d_out) | weights of the inner model, one matrix or two |
| `f(k)` | (..., d) | inner model: ``k W``, or ``gelu(k W_1) W_2`` |
| `C` | | tokens in a mini-batch |

The inner loss of a token is ``1/2 |LN(f(k)) + k - v|^2``, so a gradient step is ``eta`` times the error. The gradients
of a mini-batch are all taken at the weights ``W`` before it, and token t is read after the steps of the tokens up to t.
Steps are outer products, ``W_t = W - sum_(s<=t) eta_s outer(a_s, g_s)``, of the inputs `a_s` of a matrix and the
gradients `g_s` at its outputs. So no ``W_t`` has to be formed (dual form):

    b_t W_t = b_t W - sum_(s<=t) (b_t . a_s) eta_s g_s            b_t: the input of the matrix when q_t is read

All gradients of the inner loss are written out. Autograd sees matrix products only, and the outer loss differentiates
through the inner steps. Source: Sun et al. 2024, arXiv 2407.04620.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from warmstart.errors import InputError
from warmstart.memory.rules import check_finite, check_like

MINI_BATCH = 16
EPSILON = 1e-6  # added to the variance in the inner LayerNorm
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
        Weights with which the inner model starts. Two matrices have a GELU (tanh form) between them.
    norm : (scale, shift), each (heads, 1, d) or a shape that broadcasts to it, optional
        Weight and bias of the inner LayerNorm. Without it there is no residual connection either: the loss is
        ``1/2 |f(k) - v|^2`` and the read ``f(q)``. One matrix and mini-batch 1 then give the delta rule.
    mini_batch : int
        C.

    Returns
    -------
    output : (batch, heads, length, d)
    weights : list of (batch, heads, d_in, d_out)

    Raises
    ------
    InputError
        A size is 0, shapes or dtypes do not fit, or entries are NaN or infinite.

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
    check_ttt(q, k, v, eta, weights, mini_batch)
    output, state = advance_ttt(q, k, v, eta, TTTState(list(weights)), norm, mini_batch)
    return output, state.after


class TTTState(NamedTuple):
    """The inner model in the middle of a mini-batch.

    Attributes
    ----------
    weights : list of (batch, heads, d_in, d_out)
        Weights before the mini-batch, at which its gradients are taken.
    steps : list of (batch, heads, d_in, d_out)
        Sum of the steps of the mini-batch so far; empty if there are none.
    done : int
        Number of tokens of the mini-batch that have been read, below C.
    """

    weights: list[Tensor]
    steps: Sequence[Tensor] = ()
    done: int = 0

    @property
    def after(self) -> list[Tensor]:
        """The weights after the steps so far."""
        return [W - step for W, step in zip(self.weights, self.steps, strict=True)] if self.steps else self.weights


def advance_ttt(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, state: TTTState, norm: Norm | None, mini_batch: int
) -> tuple[Tensor, TTTState]:
    """Do `ttt_rule` from a state: finish its mini-batch, then do whole ones, then begin the last."""
    length, first = k.shape[2], min(mini_batch - state.done, k.shape[2])
    sizes = [first, *(min(mini_batch, length - at) for at in range(first, length, mini_batch))]
    outputs = []
    with torch.autocast(q.device.type, enabled=False):  # rounding errors of the steps would add up over the text
        # torch.split, not slices: the gradient of every slice is as long as the text, so all would be quadratic.
        batches = (torch.split(x, sizes, dim=2) for x in (q, k, v, eta[..., None]))
        for tensors in zip(*batches, strict=True):
            read, steps = _mini_batch(state, norm, *tensors)
            outputs.append(read)
            state = TTTState(state.weights, steps, state.done + read.shape[2])
            if state.done == mini_batch:
                state = TTTState(state.after)
    output = torch.cat(outputs, dim=2)
    check_finite(output, k=k, q=q, v=v, eta=eta)
    return output, state


def _mini_batch(
    state: TTTState, norm: Norm | None, q: Tensor, k: Tensor, v: Tensor, eta: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return reads and the sum of steps of (a part of) a mini-batch: q, k, v (..., n, d), eta (..., n, 1)."""
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
    """Return z (..., d) with mean 0 and variance 1, and its standard deviation (..., 1)."""
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


def check_ttt(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, weights: Sequence[Tensor], mini_batch: int) -> None:
    """Raise InputError if shapes or dtypes do not fit."""
    if k.ndim != 4 or 0 in k.shape:
        raise InputError(f"k: expected (batch, heads, length, d), none of them 0, got {tuple(k.shape)}")
    if mini_batch < 1:
        raise InputError(f"mini_batch: expected at least 1, got {mini_batch}")
    for name, x, shape in (("q", q, k.shape), ("v", v, k.shape), ("eta", eta, k.shape[:3])):
        check_like(name, x, k, shape)
    d, sizes = k.shape[-1], [tuple(W.shape[-2:]) for W in weights]
    fits = len(sizes) == 1 and sizes[0] == (d, d)
    fits |= len(sizes) == 2 and sizes[0][0] == d == sizes[1][1] and sizes[0][1] == sizes[1][0]
    if not fits or any(W.dtype != k.dtype for W in weights):
        raise InputError(f"weights: expected one ({d}, {d}) or ({d}, m) and (m, {d}) in {k.dtype}, got {sizes}")
