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
from warmstart.hub.near_shallow import NearShallowForCausalLM
from warmstart.layers.near_shallow import IGNORED
from warmstart.layers.softmax import fused_cross_entropy

BLOCK = 4096  # targets whose logits are in float32 at once


def plain_head(base: nn.Module) -> bool:
    """Return whether the logits of a decoder are its linear head of the last hidden state, and nothing else."""
    if not isinstance(base, PreTrainedModel) or base.base_model is base:
        return False
    model: Any = base
    head, body = model.get_output_embeddings(), model.base_model
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward or _changed(head):
        return False
    ids = torch.arange(2, device=head.weight.device)[None]
    with still(base):
        found, hidden = base(input_ids=ids).logits, getattr(body(input_ids=ids), "last_hidden_state", None)
        return hidden is not None and torch.equal(head(hidden).to(found.dtype), found)


def _changed(module: nn.Module) -> bool:
    """Whether something changes what a module is given or returns: hooks, or a weight that is computed."""
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"))


def state_width(base: nn.Module) -> int:
    """Return the width of the last hidden states of a decoder; 0 if it returns none, or not those of its head."""
    if not isinstance(base, PreTrainedModel) or isinstance(base, NearShallowForCausalLM):
        return 0
    model: Any = base
    ids = torch.arange(2, device=base.device)[None]
    with still(base):
        states = getattr(model(input_ids=ids, output_hidden_states=True), "hidden_states", None)
        if not states or (plain_head(base) and not torch.equal(model.base_model(input_ids=ids)[0], states[-1])):
            return 0
    return int(states[-1].shape[-1])


def network_nats(
    base: Any, plain: bool, targets: Tensor, spot: slice, size: int, states: bool = False, **inputs: Any
) -> tuple[Tensor, Tensor | None]:
    """Return ``-log q`` (batch, n) of a decoder for targets (batch, n), and its last hidden states (batch, n, width).

    Parameters
    ----------
    base : PreTrainedModel
    plain : bool
        See `plain_head`.
    targets : (batch, n) int64
    spot : slice
        Places of the last tokens before the targets.
    size : int
        The softmax is over so many tokens; those above are padding.
    states : bool
        Whether hidden states are wanted; None otherwise.
    inputs : dict
        Of the decoder.
    """
    y = targets.flatten()
    if isinstance(base, NearShallowForCausalLM) and "past_key_values" not in inputs:
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        ids = ids if mask is None else ids.masked_fill(mask == 0, base.config.separator)
        wanted = torch.full_like(ids, IGNORED)
        wanted[:, spot] = targets
        return base.target_nats(ids, wanted)[:, spot], None
    if plain:
        hidden = base.base_model(**inputs).last_hidden_state[:, spot]
        head = cast("nn.Linear", base.get_output_embeddings())
        return _hidden_nats(head, hidden.flatten(0, 1), y, size).view(targets.shape), hidden
    out = base(**inputs, **({"output_hidden_states": True} if states else {}))
    nats = _logit_nats(out.logits[:, spot].flatten(0, 1), y, size).view(targets.shape)
    return nats, out.hidden_states[-1][:, spot] if states else None


def _hidden_nats(head: nn.Linear, hidden: Tensor, targets: Tensor, size: int) -> Tensor:
    weight = head.weight[:size].T
    if head.bias is not None:
        hidden = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], dim=1)
        weight = torch.cat([weight, head.bias[None, :size]])
    return fused_cross_entropy(hidden, weight, targets)


def _logit_nats(logits: Tensor, targets: Tensor, size: int) -> Tensor:
    blocks = [slice(i, i + BLOCK) for i in range(0, max(1, len(targets)), BLOCK)]
    losses: list[Tensor] = [
        functional.cross_entropy(logits[rows, :size].float(), targets[rows], reduction="none") for rows in blocks
    ]
    return torch.cat(losses)
