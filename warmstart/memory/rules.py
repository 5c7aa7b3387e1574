"""Update rules of an outer-product memory, the sum rule and the delta rule, in chunks or one token at a time.

| symbol | shape | meaning |
|---|---|---|
| `q`, `k` | (batch, heads, length, d_phi) | queries and keys after the feature map |
| `v` | (batch, heads, length, d_v) | values |
| `beta` | (batch, heads, length) | write strength |
| `S` | (batch, heads, d_v, d_phi) | the memory; ``S q`` reads it |
| `z` | (batch, heads, d_phi) | sum of the keys, the normaliser of the sum rule |
| `C` | | tokens in a chunk |

Each position reads what was written up to and including itself. The reads of a chunk are one triangular product, and
only `S` goes from chunk to chunk. So time and memory grow linearly with the length.

The writes of the delta rule in a chunk, ``u_t = beta_t (v_t - S_(t-1) k_t)``, depend on each other through the memory:
``u_t = beta_t (v_t - S k_t - sum_(s<t) (k_s . k_t) u_s)`` with the S before the chunk. This is the triangular system
``(I + L) U = diag(beta) (V - K S^T)``, ``L = tril(diag(beta) K K^T, -1)`` (the WY representation of a product of
Householder-like matrices). The code keeps ``S^T`` and solves the transposed system, the layouts that CPU libraries
handle fastest.

Sources: Katharopoulos et al. 2020, arXiv 2006.16236 (sum); Schlag, Irie and Schmidhuber 2021, arXiv 2102.11174 (delta);
Yang et al. 2024, arXiv 2406.06484 (delta in chunks). `tests/reference.py` has both as plain recurrences.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from warmstart.errors import InputError

Memory = TypeVar("Memory")  # the state that goes from chunk to chunk
CHUNK = 64  # tokens in a chunk; 32 and 128 are a little slower on a CPU


class SumState(NamedTuple):
    """State of the sum rule.

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
        Non-negative if ``normalise`` is True.
    v : (batch, heads, length, d_v)
    normalise : bool
        False reads ``S q``.
    state : SumState, optional
        The state before; empty by default.
    mask : (batch, length) bool, optional
        False where nothing is written.
    chunk_size : int
        Tokens computed together. It changes speed and rounding only.

    Returns
    -------
    output : (batch, heads, length, d_v)
        0 where ``z . q`` is 0, that is, where no key matches the query.
    state : SumState

    Raises
    ------
    InputError
        A size is 0, shapes or dtypes do not fit, the dtype is half precision, or entries are NaN or infinite.

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
    if state is None:
        state = SumState(v.new_zeros(*k.shape[:2], v.shape[-1], k.shape[-1]), k.new_zeros(*k.shape[:2], k.shape[-1]))
    _check_state("S", state.S, (*k.shape[:2], v.shape[-1], k.shape[-1]), k)
    _check_state("z", state.z, (*k.shape[:2], k.shape[-1]), k)
    before = state.S.flatten(0, 1).mT, state.z.flatten(0, 1)[..., None]
    reads, (after, z) = _in_chunks(partial(_sum_chunk, normalise), before, (q, k, v), chunk_size)
    output = reads.view(v.shape)
    check_finite(output, k=k, q=q, v=v)
    return output, SumState(after.mT.reshape(state.S.shape), z.view(state.z.shape))


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

    What the memory holds for the key moves towards the value by the fraction ``beta |k|^2``. So a key that is written
    again loses its old value. Keys are used as they are: normalise them by `sum_normalise`, or to unit length.

    Parameters
    ----------
    q, k, v, mask, chunk_size
        As for `sum_rule`; keys may have any sign.
    beta : (batch, heads, length)
        Write strength, 0 to 1. The rule is stable while ``beta |k|^2`` is at most 2.
    state : (batch, heads, d_v, d_phi), optional
        The memory before; zeros by default.

    Returns
    -------
    output : (batch, heads, length, d_v)
    state : (batch, heads, d_v, d_phi)

    Raises
    ------
    InputError
        As for `sum_rule`.

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
    check_like("beta", beta, k, k.shape[:-1])
    state = v.new_zeros(*k.shape[:2], v.shape[-1], k.shape[-1]) if state is None else state
    _check_state("S", state, (*k.shape[:2], v.shape[-1], k.shape[-1]), k)
    reads, after = _in_chunks(_delta_chunk, state.flatten(0, 1).mT, (q, k, v, beta[..., None]), chunk_size)
    output = reads.view(v.shape)
    check_finite(output, k=k, q=q, v=v, beta=beta)
    return output, after.mT.reshape(state.shape)


def sum_step(
    q: Tensor, k: Tensor, v: Tensor, state: SumState | None = None, *, normalise: bool = True
) -> tuple[Tensor, SumState]:
    """Do one position of `sum_rule`, for generation: q, k are (batch, heads, d_phi), v is (batch, heads, d_v).

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
    output = _apply(S, q)
    if normalise:
        output = _normalised(output, (z * q).sum(-1, keepdim=True))
    check_finite(output, k=k, q=q, v=v)
    return output, SumState(S, z)


def delta_step(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Do one position of `delta_rule`, for generation: q, k are (batch, heads, d_phi), v is (batch, heads, d_v).

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
    check_like("beta", beta, k, k.shape[:-1])
    S = v.new_zeros(*v.shape, k.shape[-1])
    if state is not None:
        _check_state("S", state, S.shape, k)
        S = state
    u = beta[..., None] * (v - _apply(S, k))
    S = S + u[..., None] * k[..., None, :]
    output = _apply(S, q)
    check_finite(output, k=k, q=q, v=v, beta=beta)
    return output, S


def _apply(S: Tensor, x: Tensor) -> Tensor:
    """Return ``S x`` (..., d_v)."""
    with torch.autocast(S.device.type, enabled=False):  # as in `_in_chunks`
        return (S @ x[..., None])[..., 0]


def _normalised(read: Tensor, total: Tensor) -> Tensor:
    """Divide a read (..., d_v) by ``z . q`` (..., 1)."""
    return read / torch.where(total == 0, 1.0, total)


def _in_chunks(
    chunk: Callable[..., tuple[Tensor, Memory]], state: Memory, tensors: Sequence[Tensor], chunk_size: int
) -> tuple[Tensor, Memory]:
    """Call ``chunk(state, *tensors)`` on every chunk (batch x heads, C, .) of tensors (batch, heads, length, .).

    Returns
    -------
    reads : (batch x heads, length, d_v)
    state
    """
    # torch.split, not slices: the gradient of every slice is as long as the text, so all would be quadratic.
    chunks = (torch.split(x.flatten(0, 1), chunk_size, dim=1) for x in tensors)
    reads = []
    with torch.autocast(tensors[0].device.type, enabled=False):  # rounding errors would add up over the text
        for chunk_tensors in zip(*chunks, strict=True):
            read, state = chunk(state, *chunk_tensors)
            reads.append(read)
    return torch.cat(reads, dim=1), state


def _sum_chunk(
    normalise: bool, state: tuple[Tensor, Tensor], q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Read and write a chunk by the sum rule; the state is ``M = S^T`` and z as a column."""
    M, z = state
    scores = torch.bmm(q, k.mT).tril_()
    read = torch.bmm(q, M).baddbmm_(scores, v)
    if normalise:
        read = _normalised(read, scores.sum(-1, keepdim=True).baddbmm_(q, z))
    return read, (torch.baddbmm(M, k.mT, v), z + k.sum(1)[..., None])


def _delta_chunk(M: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Read and write a chunk by the delta rule; the state is ``M = S^T``."""
    u = beta * torch.baddbmm(v, k, M, alpha=-1)
    system = beta * torch.bmm(k, k.mT)  # only the part below the diagonal is read
    u = torch.linalg.solve_triangular(system.mT, u.mT, upper=True, left=False, unitriangular=True).mT
    read = torch.bmm(q, M).baddbmm_(torch.bmm(q, k.mT).tril_(), u)
    return read, torch.baddbmm(M, k.mT, u)


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
    check_like("q", q, k, k.shape)
    check_like("v", v, k, (*k.shape[:3], v.shape[-1]))
    return k, v


def check_like(name: str, x: Tensor, k: Tensor, shape: Sequence[int]) -> None:
    """Raise InputError if a tensor has not the expected shape and the dtype of the keys."""
    if x.shape != tuple(shape):
        raise InputError(f"{name}: expected the shape {tuple(shape)} after k, got {tuple(x.shape)}")
    if x.dtype != k.dtype:
        raise InputError(f"{name}: expected {k.dtype} as k, got {x.dtype}; convert one of them")


def check_finite(output: Tensor, **inputs: Tensor) -> None:
    """Raise InputError for the input that has NaN or infinity.

    A bad entry spoils the read of its position, so one pass over the reads is usually enough. A sum that overflows
    without a bad entry only costs the search.
    """
    if math.isfinite(output.detach().sum()):
        return
    for name, x in inputs.items():
        if not torch.isfinite(x).all():
            raise InputError(f"{name}: expected finite numbers, got NaN or infinity; mask positions without data")


def _check_state(name: str, x: Tensor, shape: Sequence[int], k: Tensor) -> None:
    if x.shape != tuple(shape) or x.dtype != k.dtype:
        raise InputError(
            f"state: expected {name} of shape {tuple(shape)} in {k.dtype}, got {tuple(x.shape)} in {x.dtype}; "
            "use a state that came from the same batch, heads and feature map"
        )
