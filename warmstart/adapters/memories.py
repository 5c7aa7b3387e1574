"""Memories in place of the softmax attention of GPT-2, and the queries, keys and values that they start with.

In the first layer the queries and keys of a head are the same factors of the bigram model, the leading ones in the
first head. A token therefore reads what was written under tokens with similar successors. With token shift, keys start
at the previous token alone, so the memory holds which token follows which. The value of a token is what makes the head
predict that token: for the head W and the unigrams p it is the Newton step
``(W^T (diag p - p p^T) W)^-1 (w_y - W^T p)``, fitted as a linear map of the token's vector. The output projection is
zero, so step 0 is unchanged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor, nn

from warmstart.adapters.parts import unwrapped
from warmstart.errors import InputError
from warmstart.memory import MemoryLayer
from warmstart.spectral import Residual, damped_solve, frame

CURVATURE, RIDGE = 1.0, 0.1  # damping of the Newton step and of the fit, in units of the mean diagonal


def replace_attention(model: nn.Module, make: Callable[[int, int], nn.Module]) -> None:
    """Replace the self-attention of every block of a GPT-2 by another causal layer.

    The model then has no cache of keys and values (``use_cache=False``). Padding may stand anywhere.

    Parameters
    ----------
    model : nn.Module
        GPT-2 of ``transformers``, changed in place. To load its ``state_dict``, replace the attention of another model
        in the same way.
    make : callable of (width, heads)
        Returns a causal module that maps (batch, length, width) to the same shape, such as
        `warmstart.memory.FastWeightAttention`. The module keeps its initialisation.

    Raises
    ------
    InputError
        The model is no GPT-2, or ``make`` returns no module. When the model is called: it gets a cache, or a mask that
        is more than padding, as for packed texts.

    Examples
    --------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from warmstart.memory import FastWeightAttention
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=8))
    >>> replace_attention(model, FastWeightAttention)
    >>> model(torch.zeros(1, 8, dtype=torch.long)).logits.shape
    torch.Size([1, 8, 50])
    """
    model = unwrapped(model)
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) != "gpt2":
        raise InputError(f"expected a GPT-2 of transformers, got {type(model).__name__}")
    blocks: Any = model.base_model.h  # type: ignore[union-attr]
    layers = [make(config.n_embd, config.n_head) for _ in blocks]
    if wrong := [layer for layer in layers if not isinstance(layer, nn.Module)]:
        raise InputError(f"make: expected to get a module, got {type(wrong[0]).__name__}")
    for block, layer in zip(blocks, layers, strict=True):
        block.attn = ReplacedAttention(layer, config.resid_pdrop)
    config.use_cache = False
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.use_cache = False  # type: ignore[union-attr]


class ReplacedAttention(nn.Module):
    """Another layer, ``memory``, with the interface of GPT-2's attention."""

    def __init__(self, memory: nn.Module, dropout: float) -> None:
        super().__init__()
        self.memory, self.dropout = memory, nn.Dropout(dropout)
        for item in (*memory.modules(), *memory.parameters()):
            item._is_hf_initialized = True  # type: ignore[attr-defined] # else `post_init` would initialise it again

    def forward(
        self, x: Tensor, past_key_values: object = None, attention_mask: Tensor | None = None, **_: object
    ) -> tuple[Tensor, None]:
        """Return (batch, length, width), and no attention weights."""
        if past_key_values is not None:
            raise InputError("past_key_values: expected none, a memory has no key cache; call with use_cache=False")
        if attention_mask is None:
            return self.dropout(self.memory(x)), None
        order = _tokens_first(attention_mask, x)[..., None].expand_as(x)
        read = self.memory(x.gather(1, order))  # causal: padding behind the tokens changes nothing
        return self.dropout(torch.empty_like(read).scatter(1, order, read)), None


def _tokens_first(attention_mask: Tensor, x: Tensor) -> Tensor:
    """Return the positions (batch, length) with padding behind the tokens, from what each position sees."""
    seen = (attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0)[:, 0]
    token = seen[:, -1].expand(len(x), -1)  # the last position sees all tokens
    causal = token[:, None] & torch.ones_like(seen[0]).tril()
    if ((seen != causal).any(-1) & ~seen.all(-1)).any():  # transformers may let a row that sees nothing see all
        raise InputError("attention_mask: expected causal attention with padding, got another mask, as of packed texts")
    return (~token).to(torch.uint8).argsort(dim=1, stable=True)


@dataclass(frozen=True)
class Plan:
    """What to write into ``count`` heads of the memory of the first layer; see `warmstart.adapters.heads.Plan`."""

    memory: MemoryLayer
    count: int
    spare: int = 0
    share: float = 0.0

    @property
    def note(self) -> str:
        """Sentence for the report."""
        shifted = ", keys see the previous token" if self.memory.mix is not None else ""
        return f"{self.count} heads of the first memory start as a cache: queries and keys are factors{shifted}"

    @torch.no_grad()
    def write(self, placed: Residual, _: float) -> list[str]:
        """Write queries, keys, values and the mix of the keys; return the names of the parameters."""
        memory, width = self.memory, placed.axes.shape[1]
        rows = np.arange(self.count * width // memory.heads)
        factors = torch.from_numpy(placed.axes[rows % (len(placed.axes) - 2)])  # the last two axes are not factors
        for layer in (memory.query, memory.key):
            layer.weight[: len(rows)] = factors
        values = torch.from_numpy(value_map(placed)).float()
        memory.value.weight[: len(rows)] = (values * (memory.value.weight.norm() / values.norm()))[: len(rows)]
        names = ["query.weight", "key.weight", "value.weight"]
        if memory.mix is not None:
            memory.mix.fill_(1.0)
            names.append("mix")
        return [f"transformer.h.0.attn.memory.{name}" for name in names]


def value_map(placed: Residual) -> NDArray[np.float64]:
    """Return a map (d, d) from the normalised vector of a token to a value that makes the head predict the token.

    The map is fitted by least squares with tokens weighted by ``sqrt(p)``, and mixed over the outputs.
    """
    E, W = placed.E.astype(np.float64), placed.W.astype(np.float64)
    x = E / np.sqrt((E**2).mean(axis=1, keepdims=True))
    constant = placed.axes[-1]
    prior = softmax(W @ constant * float(x[0] @ constant))  # from the logits that all tokens share
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
        A layer is not from `warmstart.memory`, or ``heads`` is more than the layer has.
    """
    layers = [module.memory for module in model.modules() if isinstance(module, ReplacedAttention)]
    memories = [layer for layer in layers if isinstance(layer, MemoryLayer)]
    if wrong := [type(layer).__name__ for layer in layers if layer not in memories]:
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
