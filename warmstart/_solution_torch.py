"""Logarithms of counts by PyTorch on a device, rounded to float32 as those of numpy; see `warmstart.solution`."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from warmstart.errors import InputError

Floats = NDArray[Any]
ERROR = 1e-12  # a bound of the difference between two logarithms in float64, of numbers from 1e-18 to 1e18


def log_likelihood(sums: Floats, scale: float, added: Floats, log_marginal: Floats, device: str) -> Floats:
    """Return ``log(sums * scale + added) - log_marginal``, transposed (D, C) float32, with the bits of numpy.

    sums (C, D); added, log_marginal (C, 1) float64.

    Logarithms in float64 may differ between devices by some units in the last place. Where such a difference could
    round to another float32, in about one cell of a million, numpy computes the cell again.
    """
    counts = torch.from_numpy(np.array(sums)).to(device).double() * scale + torch.from_numpy(added).to(device)
    if not bool(counts.all()):
        raise InputError("a feature never occurred with a class and smoothing is 0; expected smoothing > 0")
    logs = torch.log(counts) - torch.from_numpy(log_marginal).to(device)
    unsure = torch.nonzero((logs - ERROR).float() != (logs + ERROR).float())
    table: Floats = logs.float().T.contiguous().cpu().numpy()
    classes, features = unsure.cpu().numpy().T
    again = np.log(sums[classes, features] * scale + added[classes, 0]) - log_marginal[classes, 0]
    table[features, classes] = again
    return table
