"""The published attention in a standard block: ``softmax((X Q K' X') W)``, with a square matrix W over ages.

| symbol | shape | meaning |
|---|---|---|
| ``s`` | (L, L) | scores of a head, ``X Q K' X' / sqrt(size)``; row i compares position i with those up to it |
| age | | distance to the position that looks back: 0 is itself, 1 the one before |
| ``W`` | (B, B) | what the score at one age adds at another; the identity gives the usual attention |

Each row of s is read by age, multiplied by W, and read by position again. All heads of a layer share W, which trains
like any weight. Source: Williams and Zhao 2023, arXiv 2311.07510; that both can be integrated is from the talk CS25 V4
of 2024.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "mixed"


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attend with scores (batch, heads, L, L) that W mixes by age, see the module; an attention of ``transformers``.

    Examples
    --------
    >>> layer, x = nn.Module(), torch.randn(1, 1, 5, 4)
    >>> layer.mix = nn.Parameter(torch.eye(5))
    >>> usual = nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
    >>> torch.allclose(attend(layer, x, x, x, None)[0], usual.transpose(1, 2), atol=1e-6)
    True
    """
    length = query.shape[-2]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.mT) * scale
    position = torch.arange(length, device=query.device)
    age = position[:, None] - position  # of a position seen from another; its own inverse: position = i - age
    seen, by_age = age >= 0, age.clamp(min=0).expand_as(scores)
    mix = module.mix[:length, :length].to(scores.dtype)  # type: ignore[index]
    mixed = scores.gather(-1, by_age).masked_fill(~seen, 0.0) @ mix
    attention = mixed.gather(-1, by_age).float().masked_fill(~seen, float("-inf")).softmax(-1)
    return (attention.to(value.dtype) @ value).transpose(1, 2), None


def mix(model: Any, weights: Tensor) -> None:
    """Give every attention of a GPT-2 its own W, the identity plus solved weights (B, B)."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, lambda *args, **options: None)  # `attend` has its own mask
    model.set_attn_implementation(NAME)
    for block in model.base_model.h:
        block.attn.mix = nn.Parameter(torch.eye(len(weights)) + weights)
