"""The device of PyTorch that counts, such as "cuda". None is the CPU with compiled loops, which are faster there.

A device counts by sums of integers over sorted keys, without atomic additions. It solves by single operations in
float64, which IEEE 754 defines to the bit, and by logarithms for float32, of which numpy computes those again that can
be rounded otherwise. So the result is the same to the bit on every device, "cpu" included, and in every run.
"""

import contextlib
import ctypes
from collections.abc import Callable
from typing import TypeVar

from warmstart.errors import InputError

DRIVERS = ("libcuda.so.1", "nvcuda.dll")  # of NVIDIA, on Linux and on Windows

Result = TypeVar("Result")


def find_gpu() -> str | None:
    """Return "cuda" if there is an NVIDIA GPU that PyTorch can use, else None.

    Where there is no driver for one, PyTorch is not loaded, which would take seconds and some 100 MB.
    """
    if not any(map(_loads, DRIVERS)):
        return None
    import torch

    return "cuda" if torch.cuda.is_available() else None


def _loads(library: str) -> bool:
    with contextlib.suppress(OSError):  # it is not there
        ctypes.CDLL(library)
        return True
    return False


def check_device(device: str | None) -> None:
    """Refuse a device that is not there, before a long computation.

    Raises
    ------
    InputError
        See above.
    """
    if device is None:
        return
    import torch

    try:
        torch.zeros(1, dtype=torch.float64, device=device).cpu()  # not all devices have this type
    except (RuntimeError, AssertionError, TypeError) as error:  # torch raises any of these
        raise InputError(f"device: expected one that PyTorch can use, such as cuda, got {device!r}: {error}") from error


def if_it_fits(work: Callable[..., Result], *arguments: object) -> Result | None:
    """Return what ``work(*arguments)`` returns, or None if the memory of a GPU does not suffice for it.

    Examples
    --------
    >>> if_it_fits(max, 1, 2)
    2
    """
    import torch

    try:
        return work(*arguments)
    except torch.cuda.OutOfMemoryError:
        pass  # what `work` holds is released here, with the error
    torch.cuda.empty_cache()
    return None
