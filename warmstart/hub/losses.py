"""What a decoder says of targets: one number each, and nothing of size (batch, length, V) beyond a block.

Families whose logits are the output of a linear head and nothing else take the fused cross-entropy. Others scale or
cap their logits; theirs are computed as they are. Which of the two holds is found in a run on two tokens.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from warmstart.adapters.parts import still
from warmstart.layers.softmax import fused_cross_entropy

BLOCK = 4096  # targets whose logits are in memory at once


def plain_head(base: nn.Module) -> bool:
    """Return whether the logits of a decoder are its linear head of the last hidden state, and nothing else."""
    if not isinstance(base, PreTrainedModel) or base.base_model is base:
        return False
    head, body = base.get_output_embeddings(), base.base_model
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward or _hooked(head):
        return False
    ids = torch.arange(2, device=head.weight.device)[None]
    with still(base):
        found, states = base(input_ids=ids).logits, body(input_ids=ids)
        hidden = getattr(states, "last_hidden_state", None)
        return hidden is not None and torch.equal(head(hidden).to(found.dtype), found)


def _hooked(module: nn.Module) -> bool:
    """Whether something changes what a module is given or returns: hooks, or a weight that is computed."""
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"))


def hidden_nats(base: PreTrainedModel, hidden: Tensor, targets: Tensor, size: int) -> Tensor:
    """Return ``-log q`` (n,) of targets (n,) after hidden states (n, d) of a decoder with a plain head.

    The softmax is over the first ``size`` tokens: those above are padding.
    """
    head = cast("nn.Linear", base.get_output_embeddings())
    weight = head.weight[:size].T
    if head.bias is not None:
        hidden = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], dim=1)
        weight = torch.cat([weight, head.bias[None, :size]])
    return fused_cross_entropy(hidden, weight, targets)


def logit_nats(logits: Tensor, targets: Tensor, size: int) -> Tensor:
    """Return ``-log q`` (n,) of targets (n,) from logits (n, rows); the softmax is over the first ``size`` tokens."""
    blocks = [slice(i, i + BLOCK) for i in range(0, max(1, len(targets)), BLOCK)]
    losses: list[Tensor] = [
        functional.cross_entropy(logits[rows, :size].float(), targets[rows], reduction="none") for rows in blocks
    ]
    return torch.cat(losses)


def network_nats(base: Any, plain: bool, targets: Tensor, size: int, **inputs: Any) -> Tensor:
    """Return ``-log q`` (batch, n) of a decoder for targets (batch, n) after its first n inputs."""
    y, n = targets.flatten(), targets.shape[1]
    if plain:
        hidden = base.base_model(**inputs).last_hidden_state[:, :n]
        return hidden_nats(base, hidden.flatten(0, 1), y, size).view(targets.shape)
    return logit_nats(base(**inputs).logits[:, :n].flatten(0, 1), y, size).view(targets.shape)
