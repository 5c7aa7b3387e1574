"""Update rules of an outer-product memory: what is written, what is read, in chunks or a token at a time.

| symbol | shape | meaning |
|---|---|---|
| `q`, `k` | (batch, heads, length, d_phi) | queries and keys after the feature map |
| `v` | (batch, heads, length, d_v) | values |
| `beta` | (batch, heads, length) | write strength |
| `S` | (batch, heads, d_v, d_phi) | the memory; it is read by ``S q`` |
| `z` | (batch, heads, d_phi) | sum of the keys, the normaliser of the sum rule |
| `C` | | tokens of a chunk |

A position reads what was written up to and with itself. Within a chunk all reads are one triangular product; from chunk
to chunk goes `S` alone. So time and memory grow with the length, not with its square.

The delta rule in a chunk: its writes ``u_t = beta_t (v_t - S_(t-1) k_t)`` depend on each other through the memory,
``u_t = beta_t (v_t - S k_t - sum_(s<t) (k_s . k_t) u_s)`` with the S before the chunk. That is a triangular system
``(I + L) U = diag(beta) (V - K S^T)``, ``L = tril(diag(beta) K K^T, -1)`` (the WY representation of a product of
Householder-like matrices), solved chunk by chunk. What a chunk needs stays in a processor's cache.

Sources: Katharopoulos et al. 2020, arXiv 2006.16236 (sum); Schlag, Irie and Schmidhuber 2021, arXiv 2102.11174 (delta);
Yang et al. 2024, arXiv 2406.06484 (delta in chunks). `warmstart._reference` has both as plain recurrences.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from warmstart.errors import InputError

CHUNK = 64  # tokens; on a CPU 32 to 128 are about as fast


class SumState(NamedTuple):
    """What the sum rule has written.

    Attributes
    ----------
    S : (batch, heads, d_v, d_phi)
    z : (batch, heads, d_phi)
        Sum of the keys.
    """

    S: Tensor
    z: Tensor


def sum_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    normalise: bool = True,
    state: SumState | None = None,
    mask: Tensor | None = None,
    chunk_size: int = CHUNK,
) -> tuple[Tensor, SumState]:
    """Add ``v k^T`` to the memory and ``k`` to the normaliser at every position, then read ``S q / (z . q)``.

    Parameters
    ----------
    q, k : (batch, heads, length, d_phi)
        Non-negative, unless ``normalise`` is off.
    v : (batch, heads, length, d_v)
    normalise : bool
        Off: read ``S q``.
    state : SumState, optional
        What was written before; nothing by default.
    mask : (batch, length) bool, optional
        Where it is False nothing is written.
    chunk_size : int
        Tokens worked on at once. It changes speed and rounding only.

    Returns
    -------
    output : (batch, heads, length, d_v)
        0 where ``z . q`` is 0: a query that no key meets reads nothing.
    state : SumState

    Raises
    ------
    InputError
        Length 0, shapes that do not fit, mixed or half-precision dtypes, NaN or infinite entries.

    References
    ----------
    Katharopoulos et al. 2020, arXiv 2006.16236.

    Examples
    --------
    >>> k, v = torch.eye(2).view(1, 1, 2, 2), torch.tensor([[[[1.0], [3.0]]]])
    >>> output, state = sum_rule(torch.ones(1, 1, 2, 2), k, v)
    >>> output.flatten().tolist(), state.z.flatten().tolist()
    ([1.0, 2.0], [1.0, 1.0])
    """
    k, v = _checked(q, k, v, mask, chunk_size)
    S = None
    if state is not None:
        _check_state("S", state.S, (*k.shape[:2], v.shape[-1], k.shape[-1]), k)
        _check_state("z", state.z, (*k.shape[:2], k.shape[-1]), k)
        S = torch.cat([state.S, state.z[..., None, :]], dim=-2)
    # The normaliser is the read of a memory whose values are 1: one more row of S.
    output, S = _read(q, k, functional.pad(v, (0, 1), value=1.0), None, S, chunk_size)
    return _normalised(output, normalise), SumState(S[..., :-1, :], S[..., -1, :])


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    state: Tensor | None = None,
    mask: Tensor | None = None,
    chunk_size: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Correct the memory by ``beta (v - S k) k^T`` at every position, then read ``S q``.

    What the memory holds for the key moves towards the value by the share ``beta |k|^2``; so a key that is written
    again forgets its old value. Keys are used as they are: `sum_normalise` them, or give them unit length.

    Parameters
    ----------
    q, k : (batch, heads, length, d_phi)
    v : (batch, heads, length, d_v)
    beta : (batch, heads, length)
        Write strength, 0 to 1; stable while ``beta |k|^2`` is at most 2.
    state : (batch, heads, d_v, d_phi), optional
        The memory before; zeros by default.
    mask : (batch, length) bool, optional
        Where it is False nothing is written.
    chunk_size : int
        Tokens worked on at once. It changes speed and rounding only.

    Returns
    -------
    output : (batch, heads, length, d_v)
    state : (batch, heads, d_v, d_phi)

    Raises
    ------
    InputError
        Length 0, shapes that do not fit, mixed or half-precision dtypes, NaN or infinite entries.

    References
    ----------
    Schlag, Irie and Schmidhuber 2021, arXiv 2102.11174, section 4.2; Yang et al. 2024, arXiv 2406.06484, section 3.

    Examples
    --------
    The second write to a key replaces the first:

    >>> k, v = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]), torch.tensor([[[[1.0], [3.0]]]])
    >>> output, S = delta_rule(k, k, v, torch.ones(1, 1, 2))
    >>> output.flatten().tolist(), S.flatten().tolist()
    ([1.0, 3.0], [3.0, 0.0])
    """
    k, v = _checked(q, k, v, mask, chunk_size)
    _check_like("beta", beta, k, k.shape[:-1])
    if state is not None:
        _check_state("S", state, (*k.shape[:2], v.shape[-1], k.shape[-1]), k)
    return _read(q, k, v, beta, state, chunk_size)


def sum_step(
    q: Tensor, k: Tensor, v: Tensor, state: SumState | None = None, *, normalise: bool = True
) -> tuple[Tensor, SumState]:
    """Do one position of `sum_rule`, for generation: q, k (batch, heads, d_phi), v (batch, heads, d_v).

    Returns
    -------
    output : (batch, heads, d_v)
    state : SumState

    Examples
    --------
    >>> k = torch.ones(1, 1, 2)
    >>> _, state = sum_step(k, k, torch.tensor([[[1.0]]]))
    >>> output, _ = sum_step(k, k, torch.tensor([[[3.0]]]), state)
    >>> output.item()
    2.0
    """
    _checked(q[..., None, :], k[..., None, :], v[..., None, :])
    S, z = v[..., None] * k[..., None, :], k
    if state is not None:
        _check_state("S", state.S, S.shape, k)
        _check_state("z", state.z, z.shape, k)
        S, z = state.S + S, state.z + z
    both = torch.cat([_apply(S, q), (z * q).sum(-1, keepdim=True)], dim=-1)
    return _normalised(both, normalise), SumState(S, z)


def delta_step(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Do one position of `delta_rule`, for generation: q, k (batch, heads, d_phi), v (batch, heads, d_v).

    Parameters
    ----------
    beta : (batch, heads)

    Returns
    -------
    output : (batch, heads, d_v)
    state : (batch, heads, d_v, d_phi)

    Examples
    --------
    >>> k = torch.tensor([[[1.0, 0.0]]])
    >>> _, S = delta_step(k, k, torch.tensor([[[1.0]]]), torch.ones(1, 1))
    >>> output, _ = delta_step(k, k, torch.tensor([[[3.0]]]), torch.tensor([[0.5]]), S)
    >>> output.item()
    2.0
    """
    _checked(q[..., None, :], k[..., None, :], v[..., None, :])
    _check_like("beta", beta, k, k.shape[:-1])
    S = v.new_zeros(*v.shape, k.shape[-1])
    if state is not None:
        _check_state("S", state, S.shape, k)
        S = state
    u = beta[..., None] * (v - _apply(S, k))
    S = S + u[..., None] * k[..., None, :]
    return _apply(S, q), S


def _apply(S: Tensor, x: Tensor) -> Tensor:
    """Return ``S x`` (..., d_v)."""
    return (S @ x[..., None])[..., 0]


def _normalised(output: Tensor, normalise: bool) -> Tensor:
    """Divide a read (..., d_v + 1) by its last entry, ``z . q``, and drop that."""
    total = output[..., -1:]
    return output[..., :-1] / torch.where(total == 0, 1.0, total) if normalise else output[..., :-1]


def _read(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, S: Tensor | None, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Write and read in chunks; without ``beta`` by the sum rule."""
    S = v.new_zeros(*k.shape[:2], v.shape[-1], k.shape[-1]) if S is None else S
    shape = S.shape
    # split, not slices: the gradient of a slice is as long as the text, so that of all would be quadratic.
    parts = [torch.split(x.flatten(0, 1), chunk_size, dim=1) for x in (q, k, v)]  # of (G, C, .), G = batch x heads
    strengths: Sequence[Tensor | None] = [None] * len(parts[0])
    if beta is not None:
        strengths = torch.split(beta.flatten(0, 1)[..., None], chunk_size, dim=1)
    reads = []
    with torch.autocast(q.device.type, enabled=False):  # sums over a whole text need their digits
        S = S.flatten(0, 1)
        for q_part, k_part, u, strong in zip(*parts, strengths, strict=True):
            if strong is not None:  # only what is below the diagonal of the system is read
                u = strong * torch.baddbmm(u, k_part, S.mT, alpha=-1)
                system = strong * (k_part @ k_part.mT)
                u = torch.linalg.solve_triangular(system, u, upper=False, unitriangular=True)
            reads.append(torch.baddbmm(q_part @ S.mT, (q_part @ k_part.mT).tril(), u))
            S = torch.baddbmm(S, u.mT, k_part)
    return torch.cat(reads, dim=1).view(v.shape), S.view(shape)


def _checked(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, chunk_size: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Return keys and values with zeros where the mask is False, or say what is wrong."""
    if k.ndim != 4 or 0 in k.shape:
        raise InputError(f"k: expected (batch, heads, length, d_phi), none of them 0, got {tuple(k.shape)}")
    if k.dtype not in (torch.float32, torch.float64):
        raise InputError(f"k: expected float32 or float64, got {k.dtype}; convert all inputs")
    if v.ndim != 4 or v.shape[-1] == 0:
        raise InputError(f"v: expected (batch, heads, length, d_v), none of them 0, got {tuple(v.shape)}")
    if chunk_size < 1:
        raise InputError(f"chunk_size: expected at least 1, got {chunk_size}")
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != (k.shape[0], k.shape[2]):
            expected = (k.shape[0], k.shape[2])
            raise InputError(f"mask: expected bool {expected}, (batch, length), got {mask.dtype} {tuple(mask.shape)}")
        k, v = (x.masked_fill(~mask[:, None, :, None], 0.0) for x in (k, v))
    _check_like("k", k, k, k.shape)
    _check_like("q", q, k, k.shape)
    _check_like("v", v, k, (*k.shape[:3], v.shape[-1]))
    return k, v


def _check_like(name: str, x: Tensor, k: Tensor, shape: Sequence[int]) -> None:
    if x.shape != tuple(shape):
        raise InputError(f"{name}: expected the shape {tuple(shape)} after k, got {tuple(x.shape)}")
    if x.dtype != k.dtype:
        raise InputError(f"{name}: expected {k.dtype} as k, got {x.dtype}; convert one of them")
    # One pass in the usual case; a sum of finite numbers can overflow, so a bad one is only a reason to look.
    if not math.isfinite(x.detach().sum()) and not torch.isfinite(x).all():
        raise InputError(f"{name}: expected finite numbers, got NaN or infinity; mask positions that are not to count")


def _check_state(name: str, x: Tensor, shape: Sequence[int], k: Tensor) -> None:
    if x.shape != tuple(shape) or x.dtype != k.dtype:
        raise InputError(
            f"state: expected {name} of shape {tuple(shape)} in {k.dtype}, got {tuple(x.shape)} in {x.dtype}; "
            "use a state that came from the same batch, heads and feature map"
        )
