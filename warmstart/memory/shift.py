"""Token shift: a layer reads a mix of the token and the previous one, with a share for each channel.

A key of the previous token with a value of this token makes a memory of which token follows which.

Sources: Peng et al. 2023, arXiv 2305.13048 (RWKV, token shift); Yang et al. 2024, arXiv 2406.06484 (DeltaNet, short
convolutions; here the width is two).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from warmstart.errors import InputError


class ShiftState(NamedTuple):
    """State of a layer with token shift.

    Attributes
    ----------
    memory
        State of the memory.
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
        0 takes this token, 1 the previous one.
    last : (batch, dim), optional
        The input before the first; zeros by default.

    Returns
    -------
    (batch, length, dim)

    Raises
    ------
    InputError
        ``last`` has another shape or dtype.

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
    return torch.lerp(x, torch.cat([last[:, None], x[:, :-1]], dim=1), mix.to(x.dtype))
