"""Attention heads that attend to the previous token: the first thing that a bigram model lacks.

Queries and keys depend on positions only, and values carry the leading factors of the token. The output projection is
zero, so step 0 is unchanged; training can use what the heads see at once.

- *Learned positions* (GPT-2): position i is ``[cos w_j i, sin w_j i]`` in its own coordinates, always of one norm. Keys
  read it as it is, and queries read it turned back by one position. The score is ``mean_j cos w_j (i - 1 - l)``.
- *Rotary positions* (Llama): query and key are constant, and the key is turned by one position. The score is
  ``sum_j u_j^2 cos w_j (i - 1 - l)`` with the model's own frequencies ``w_j``, and ``u_j^2`` in proportion to them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from warmstart.errors import InputError
from warmstart.spectral import Residual

FREQUENCIES = 16  # largest number of frequencies of learned positions
SHARE = 0.3  # norm of a learned position in units of the norm of a token
SHARPNESS = {"learned": 8.0, "rotary": 16.0}  # attention logit of the previous token; the others average about 0
GOLDEN = (np.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Plan:
    """What to write into the first layer, and the coordinates that this needs.

    Attributes
    ----------
    model : nn.Module
    count : int
        Number of heads, or of groups of heads that share keys.
    rotary : bool
    frequencies : int
        Number of frequencies of learned positions, with two coordinates each.
    """

    model: nn.Module
    count: int
    rotary: bool
    frequencies: int

    @property
    def spare(self) -> int:
        """Number of coordinates for positions."""
        return 0 if self.rotary else 2 * self.frequencies

    @property
    def share(self) -> float:
        """Norm of a position in units of the norm of a token."""
        return 0.0 if self.rotary else SHARE

    @property
    def note(self) -> str:
        """Sentence for the report."""
        return f"{self.count} {'groups of ' * self.rotary}heads of the first layer start at the previous token"

    def write(self, placed: Residual, scale: float) -> list[str]:
        """Write positions, queries, keys and values; return the names of the parameters."""
        with torch.no_grad():
            return self._rotary(placed) if self.rotary else self._learned(placed, scale)

    def _learned(self, placed: Residual, scale: float) -> list[str]:
        transformer: Any = self.model.transformer
        attention, wpe = transformer.h[0].attn, transformer.wpe.weight
        width, size = wpe.shape[1], attention.head_dim
        axes = placed.axes[-self.spare :]
        w = np.pi * ((np.arange(1, self.frequencies + 1) * GOLDEN) % 1)  # no two positions alike
        angle = np.outer(np.arange(wpe.shape[0]), w)
        unit = np.concatenate([np.cos(angle), np.sin(angle)], axis=1) / np.sqrt(self.frequencies)  # (n, 2 m), norm 1
        wpe.copy_(_tensor(SHARE * scale * np.sqrt(width) * unit @ axes))
        norm = np.sqrt(width) * SHARE / np.sqrt(1 + SHARE**2)  # of a position after the first LayerNorm
        gain = np.sqrt(SHARPNESS["learned"] * np.sqrt(size)) / norm
        c, s = np.diag(np.cos(w)), np.diag(np.sin(w))
        back = np.block([[c, s], [-s, c]])  # position i to i - 1
        weight, bias = attention.c_attn.weight, attention.c_attn.bias  # (d, 3 d), in to out
        for h in range(self.count):
            for i, rows in enumerate((back @ axes, axes, self._values(placed, h, size) / gain)):  # query, key, value
                columns = slice(i * width + h * size, i * width + (h + 1) * size)
                weight[:, columns] = 0.0
                weight[:, columns.start : columns.start + len(rows)] = _tensor(gain * rows.T)
                bias[columns] = 0.0
        return [f"transformer.{name}" for name in ("wpe.weight", "h.0.attn.c_attn.weight", "h.0.attn.c_attn.bias")]

    def _rotary(self, placed: Residual) -> list[str]:
        decoder: Any = self.model.model
        attention = decoder.layers[0].self_attn
        size, width = attention.head_dim, placed.axes.shape[1]
        w = decoder.rotary_emb.inv_freq.double().cpu().numpy()
        u = np.sqrt(w / w.sum())
        zero = np.zeros_like(u)
        query, key = np.concatenate([u, zero]), np.concatenate([u * np.cos(w), u * np.sin(w)])  # key turned by one
        gain = np.sqrt(SHARPNESS["rotary"] * np.sqrt(size)) / np.sqrt(width / 2)  # the constant is sqrt(d / 2)
        constant = placed.axes[self._rank(placed) + 1]
        shared = attention.num_key_value_groups
        weights = {name: getattr(attention, name).weight for name in ("q_proj", "k_proj", "v_proj")}
        for h in range(self.count):
            rows = slice(h * size, (h + 1) * size)
            weights["q_proj"][h * shared * size : (h + 1) * shared * size] = _tensor(
                np.tile(gain * np.outer(query, constant), (shared, 1))
            )
            weights["k_proj"][rows] = _tensor(gain * np.outer(key, constant))
            weights["v_proj"][rows] = _tensor(self._values(placed, h, size))
        names = []
        for name in weights:
            projection = getattr(attention, name)
            if projection.bias is not None:
                projection.bias[: self.count * size * (shared if name == "q_proj" else 1)] = 0.0
                names.append(f"model.layers.0.self_attn.{name}.bias")
            names.append(f"model.layers.0.self_attn.{name}.weight")
        return names

    def _rank(self, placed: Residual) -> int:
        return len(placed.axes) - 2 - self.spare

    def _values(self, placed: Residual, head: int, size: int) -> NDArray[Any]:
        """Return the factors (size, d) that a head carries, the leading ones in the first head."""
        rank = self._rank(placed)
        return placed.axes[np.arange(head * size, (head + 1) * size) % rank]


def plan(model: nn.Module, heads: int | None) -> Plan | None:
    """Return what to write, None for no heads or another type of model.

    Raises
    ------
    InputError
        ``heads`` is more than the model has, or not 0 for another type of model.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in ("gpt2", "llama", "mistral", "qwen2"):
        if heads:
            raise InputError(f"heads: expected 0 for a model of type {kind}, got {heads}")
        return None
    config: Any = model.config
    available = config.n_head if kind == "gpt2" else config.num_key_value_heads
    count = max(1, available // 2) if heads is None else heads
    if not 0 <= count <= available:
        raise InputError(f"heads: expected 0 to {available}, got {heads}")
    frequencies = 0 if kind != "gpt2" else min(FREQUENCIES, config.n_embd // config.n_head // 2)
    return Plan(model, count, kind != "gpt2", frequencies) if count else None


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
