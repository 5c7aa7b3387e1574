"""Token shift: what a layer reads at a position, mixed channel by channel with what it reads at the one before.

A key of the token before with a value of this one makes a memory of who follows whom.

Sources: Peng et al. 2023, arXiv 2305.13048 (RWKV, token shift); Yang et al. 2024, arXiv 2406.06484 (DeltaNet, short
convolutions), here of width two.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from warmstart.errors import InputError


class ShiftState(NamedTuple):
    """What a layer with token shift goes on from.

    Attributes
    ----------
    memory
        The state of its memory.
    last : (batch, dim)
        The last input.
    """

    memory: object
    last: Tensor


def shifted(x: Tensor, mix: Tensor, last: Tensor | None = None) -> Tensor:
    """Return ``(1 - mix) x_t + mix x_(t-1)``.

    Parameters
    ----------
    x : (batch, length, dim)
    mix : (dim,)
        0: this token, 1: the one before.
    last : (batch, dim), optional
        The token before the first; zeros by default.

    Returns
    -------
    (batch, length, dim)

    Raises
    ------
    InputError
        ``last`` of another shape or dtype.

    Examples
    --------
    >>> shifted(torch.tensor([[[1.0, 1.0], [3.0, 3.0]]]), torch.tensor([0.0, 1.0])).tolist()
    [[[1.0, 0.0], [3.0, 1.0]]]
    """
    if last is None:
        last = torch.zeros_like(x[:, 0])
    if last.shape != x[:, 0].shape or last.dtype != x.dtype:
        raise InputError(
            f"state: expected a last input {tuple(x[:, 0].shape)} in {x.dtype}, got {tuple(last.shape)} in {last.dtype}"
        )
    return torch.lerp(x, torch.cat([last[:, None], x[:, :-1]], dim=1), mix)


def unpacked(state: object, mix: Tensor | None) -> tuple[object, Tensor | None]:
    """Return the state of the memory and the last input, None for a text that begins."""
    if (mix is None) == isinstance(state, ShiftState) and state is not None:
        wanted = "without" if mix is None else "with"
        raise InputError(f"state: expected that of a layer {wanted} token shift, got {type(state).__name__}")
    return (state.memory, state.last) if isinstance(state, ShiftState) else (state, None)
