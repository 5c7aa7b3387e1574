"""What a normalisation layer does, measured: the families of transformers spell the same two norms in many ways."""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from warmstart.adapters.parts import still
from warmstart.errors import InputError

CLOSE = 8  # rounding errors, in units of the machine epsilon
LARGE, SMALL = 100.0, 1e-2  # vectors of this size do not show epsilon, and do


@dataclass(frozen=True)
class Norm:
    """A layer that maps x (..., d) to ``x / sqrt(mean(x**2) + eps)``, as RMSNorm or LayerNorm without a factor.

    Attributes
    ----------
    centred : bool
        Whether the mean of x is subtracted first, as LayerNorm does and RMSNorm does not.
    eps : float
    values : dict of str to float
        Value of each parameter with which it only normalises: 1 for a factor, 0 for a factor of ``1 + weight``.
    """

    centred: bool
    eps: float
    values: dict[str, float]


def measure(name: str, norm: nn.Module, like: Tensor) -> Norm:
    """Return what a module does to vectors of the width, the type and the device of some weights (V, d).

    Raises
    ------
    InputError
        It is neither a LayerNorm nor an RMSNorm.

    Examples
    --------
    >>> found = measure("norm", nn.LayerNorm(32, eps=1e-3), torch.zeros(5, 32))
    >>> found.centred, round(found.eps, 6), found.values
    (True, 0.001, {'weight': 1.0, 'bias': 0.0})
    """
    parameters = dict(norm.named_parameters())
    x = torch.cos(torch.arange(like.shape[1], device=like.device) * 0.7).add(0.5).mul(LARGE).to(like.dtype)[None]
    tolerance = CLOSE * max(torch.finfo(like.dtype).eps, torch.finfo(torch.float32).eps)  # many compute in float32

    def call(x: Tensor, values: tuple[float, ...]) -> Tensor:
        filled = {key: torch.full_like(p, value) for (key, p), value in zip(parameters.items(), values, strict=True)}
        result = torch.func.functional_call(norm, filled, (x,))
        return result.double() if isinstance(result, Tensor) and result.shape == x.shape else x.double() * torch.nan

    with still(norm):
        for values in product((1.0, 0.0), repeat=len(parameters)) if len(parameters) < 4 else ():
            try:
                found = call(x, values)
            except (TypeError, ValueError, RuntimeError):
                break  # it takes something other than vectors
            for centred in (False, True):
                inner = x.double() - centred * x.double().mean()
                unit = inner / inner.square().mean().sqrt()
                if (found - unit).abs().max() < tolerance * unit.abs().max():
                    small = (inner * SMALL / inner.square().mean().sqrt()).to(x.dtype)
                    m = small.double().square().mean()
                    eps = float((small.double().norm() / call(small, values).norm()).square() - m)
                    return Norm(centred, max(eps, 0.0), dict(zip(parameters, values, strict=True)))
    raise InputError(f"{name}: expected a LayerNorm or an RMSNorm, got {type(norm).__name__}")
