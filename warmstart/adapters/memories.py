"""Memories in place of the softmax attention of GPT-2, and their first queries and keys.

Queries and keys of a head in the first layer carry the same factors of the bigram model, the leading ones in the first
head, so that tokens meet what was written under tokens with like successors. Where keys can see the token before, they
see it alone: what is written is who follows whom. Values carry what makes the head predict the token itself: for a head
W and unigrams p the Newton step ``(W^T (diag p - p p^T) W)^-1 (w_y - W^T p)``, as a linear map of the token's vector.
The output projection is zero, so nothing changes at step 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor, nn

from warmstart.errors import InputError
from warmstart.memory import FastWeightAttention, TTTLinear
from warmstart.spectral import Residual, damped_solve, frame

CURVATURE, RIDGE = 1.0, 0.1  # damping of the Newton step and of the fit, in units of the mean diagonal


def replace_attention(model: nn.Module, make: Callable[[int, int], nn.Module]) -> None:
    """Put a layer of its own in place of the self-attention of every block of a GPT-2.

    There is no cache of keys and values any more (``use_cache=False``), and padding may only stand at the right.

    Parameters
    ----------
    model : nn.Module
        GPT-2 of ``transformers``. Changed in place; its ``state_dict`` is that of a model treated alike.
    make : callable of (width, heads)
        Returns a causal module from (batch, length, width) to the same, such as
        `warmstart.memory.FastWeightAttention`. It keeps its initialisation.

    Raises
    ------
    InputError
        Another model, or what is made is no module; later, when called: a cache, padding at the left.

    Examples
    --------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from warmstart.memory import FastWeightAttention
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=8))
    >>> replace_attention(model, FastWeightAttention)
    >>> model(torch.zeros(1, 8, dtype=torch.long)).logits.shape
    torch.Size([1, 8, 50])
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) != "gpt2":
        raise InputError(f"expected a GPT-2 of transformers, got {type(model).__name__}")
    blocks: Any = model.base_model.h  # type: ignore[union-attr]
    made = [make(config.n_embd, config.n_head) for _ in blocks]
    if wrong := [layer for layer in made if not isinstance(layer, nn.Module)]:
        raise InputError(f"make: expected to get a module, got {type(wrong[0]).__name__}")
    for block, layer in zip(blocks, made, strict=True):
        block.attn = Replaced(layer, config.resid_pdrop)
    config.use_cache = False
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.use_cache = False  # type: ignore[union-attr]


class Replaced(nn.Module):
    """A layer as a block of GPT-2 calls its attention.

    Attributes
    ----------
    memory : nn.Module
        The layer, from (batch, length, width) to the same.
    """

    def __init__(self, memory: nn.Module, dropout: float) -> None:
        super().__init__()
        self.memory, self.dropout = memory, nn.Dropout(dropout)
        for part in (*memory.modules(), *memory.parameters()):
            part._is_hf_initialized = True  # type: ignore[attr-defined] # or the model's `post_init` would do it again

    def forward(
        self, x: Tensor, past_key_values: object = None, attention_mask: Tensor | None = None, **_: object
    ) -> tuple[Tensor, None]:
        """Return (batch, length, width), and no attention weights."""
        if past_key_values is not None:
            raise InputError("past_key_values: expected none, a memory has no keys to keep; call with use_cache=False")
        if attention_mask is not None:
            last = attention_mask[..., -1, :]  # of the last position: which others it sees
            seen = last if last.dtype == torch.bool else last == 0
            if (seen[..., 1:] & ~seen[..., :-1]).any():
                raise InputError("attention_mask: expected padding at the right alone, got gaps before tokens")
        return self.dropout(self.memory(x)), None


@dataclass(frozen=True)
class Plan:
    """What to write into the memory of the first layer; the fields are those of `warmstart.adapters.heads.Plan`.

    Attributes
    ----------
    memory : FastWeightAttention or TTTLinear
    count : int
        Heads.
    """

    memory: FastWeightAttention | TTTLinear
    count: int
    spare: int = 0
    share: float = 0.0

    @property
    def note(self) -> str:
        """Sentence for the report."""
        before = ", keys by the token before" if self.memory.mix is not None else ""
        return f"{self.count} heads of the first memory start as a cache: queries and keys are factors{before}"

    @torch.no_grad()
    def write(self, placed: Residual, _: float) -> list[str]:
        """Write queries, keys, values and the mix of the keys; return the names of the parameters."""
        memory, width = self.memory, placed.axes.shape[1]
        rows = np.arange(self.count * width // memory.heads)
        factors = torch.from_numpy(placed.axes[rows % (len(placed.axes) - 2)])  # the last two are none
        for layer in (memory.query, memory.key):
            layer.weight[: len(rows)] = factors
        values = torch.from_numpy(predicting(placed)).float()
        memory.value.weight[: len(rows)] = (values * (memory.value.weight.norm() / values.norm()))[: len(rows)]
        names = ["query.weight", "key.weight", "value.weight"]
        if memory.mix is not None:
            memory.mix.fill_(1.0)
            names.append("mix")
        return [f"transformer.h.0.attn.memory.{name}" for name in names]


def predicting(placed: Residual) -> NDArray[np.float64]:
    """Return a map (d, d) from the normed vector of a token to what makes the head predict it, mixed over the outputs.

    The map is fitted by least squares with tokens weighted by ``sqrt(p)``.
    """
    E, W = placed.E.astype(np.float64), placed.W.astype(np.float64)
    x = E / np.sqrt((E**2).mean(axis=1, keepdims=True))
    constant = placed.axes[-1]
    prior = softmax(W @ constant * float(x[0] @ constant))  # the part of the logits that all tokens share
    mean = prior @ W
    steps = damped_solve(W.T * prior @ W - np.outer(mean, mean), (W - mean).T, CURVATURE)  # (d, V)
    weighted = x.T * np.sqrt(prior)
    fitted = damped_solve(weighted @ x, weighted @ steps.T, RIDGE).T
    mixed = frame(fitted.shape[0], centred=False)[:, : len(placed.axes)] @ placed.axes  # every head a part of all
    return np.asarray(mixed @ fitted)


def plan(model: nn.Module, heads: int | None) -> Plan | None:
    """Return what to write, None for no heads or a model whose attention was not replaced.

    Raises
    ------
    InputError
        A layer that is no memory of `warmstart.memory`, or more heads than there are.
    """
    replaced = [module.memory for module in model.modules() if isinstance(module, Replaced)]
    memories = [memory for memory in replaced if isinstance(memory, FastWeightAttention | TTTLinear)]
    if wrong := [type(layer).__name__ for layer in replaced if layer not in memories]:
        raise InputError(
            f"expected FastWeightAttention or TTTLinear in place of attention, got {wrong[0]}; give the model's parts"
        )
    if not memories:
        return None
    first = memories[0]
    count = first.heads if heads is None else heads
    if not 0 <= count <= first.heads:
        raise InputError(f"heads: expected 0 to {first.heads}, got {heads}")
    return Plan(first, count) if count else None
