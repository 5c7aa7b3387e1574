"""The shape of a near-shallow language model: its presets, its contexts, and the shape of every weight.

| symbol | shape | meaning |
|---|---|---|
| `E` | (V, b) | embedding: cipher vectors, rows of unit L1 norm |
| `W` | (B, B) | attention weights of a context, ``A = softmax(q W)`` |
| `U` | (b, m) | value weights of a context, ``h = softmax((A^T X) U)``; the targets are label embeddings of m bits |
| `O` | (D, V) | output weights, ``softmax(concat(x_1, ..., x_r, h_1, ..., h_c) O)`` |

The radial context enters the output layer position by position, without a layer between. What the memory context reads
enters it without a layer too. The attended, block and document contexts pass a value layer first. Every group of inputs
has L1 norm 1, so k is the number of groups and no layer needs a bias. Source: Williams and Zhao 2023, arXiv 2311.07498
and 2311.07510.
"""

from dataclasses import dataclass
from typing import Any

from warmstart.contexts import CONTEXTS
from warmstart.errors import InputError

PRESETS: dict[str, dict[str, Any]] = {
    "potato": {"bits": 32, "hidden_bits": 16, "radius": 1, "block_size": 4},
    "micro": {"bits": 128, "hidden_bits": 32, "radius": 2, "block_size": 8},
    "small": {"bits": 512, "hidden_bits": 128, "radius": 2, "block_size": 8},
    "base": {"bits": 1024, "hidden_bits": 256, "radius": 2, "block_size": 8},
    "large": {"bits": 2048, "hidden_bits": 128, "radius": 2, "block_size": 16},
}
LARGEST, LONGEST = 2**31 - 1, 2**16  # a layer, and a context in tokens


@dataclass(frozen=True)
class Config:
    """Shape of a near-shallow language model; `config.json` holds these fields.

    Parameters
    ----------
    vocab_size : int
    separator : int
        Id of the token between documents.
    bits : int
        Dimension b of the cipher vectors.
    hidden_bits : int
        Dimension m of the label embeddings and width of a value layer.
    radius : int
        Number of vectors in the radial and in the attended context.
    block_size : int
        Number of vectors in a full block.
    contexts : tuple of str
        Some of "radial", "attended", "block", "document", "memory".

    Examples
    --------
    >>> Config(vocab_size=8192, separator=0, bits=1024, radius=2, contexts=("radial",)).n_parameters
    25165824
    """

    vocab_size: int
    separator: int
    bits: int = 1024
    hidden_bits: int = 256
    radius: int = 2
    block_size: int = 8
    contexts: tuple[str, ...] = ("radial", "document")

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built, and put the contexts in their canonical order."""
        for name in ("vocab_size", "bits", "hidden_bits", "radius", "block_size"):
            value, most = getattr(self, name), LONGEST if name in ("radius", "block_size") else LARGEST
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise InputError(f"{name}: expected a whole number from 1 to {most}, got {value!r:.40}")
        names = self.contexts if isinstance(self.contexts, list | tuple) else ()
        known = [name for name in CONTEXTS if name in names]
        if not names or len(known) < len(names):
            raise InputError(f"contexts: expected some of {', '.join(CONTEXTS)}, once each, got {self.contexts!r}")
        if type(self.separator) is not int or not 0 <= self.separator < self.vocab_size:
            raise InputError(f"separator: expected a token id below {self.vocab_size}, got {self.separator!r}")
        object.__setattr__(self, "contexts", tuple(known))

    @property
    def hidden(self) -> tuple[str, ...]:
        """Contexts that give m features: those with a value layer, and the memory."""
        return tuple(name for name in self.contexts if name != "radial")

    @property
    def valued(self) -> tuple[str, ...]:
        """Contexts with a value layer."""
        return tuple(name for name in self.hidden if name != "memory")

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Context and width of every group of output features, in order."""
        radial = [("radial", self.bits)] * (self.radius if "radial" in self.contexts else 0)
        return radial + [(name, self.hidden_bits) for name in self.hidden]

    @property
    def window(self) -> int:
        """Number of tokens that a window must hold to serve all contexts."""
        return max(self.radius, self.block_size if "block" in self.contexts else 1)

    def attention_size(self, context: str) -> int:
        """Return the number of positions that the attention of a context sees; 0 for a context without attention."""
        return {"block": self.block_size, "attended": self.radius}.get(context, 0)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of every weight, by its name in the state_dict."""
        shapes = {"embedding.weight": (self.vocab_size, self.bits)}
        for name in self.valued:
            if size := self.attention_size(name):
                shapes[f"contexts.{name}.attention.weight"] = (size, size)
            shapes[f"contexts.{name}.values.weight"] = (self.bits, self.hidden_bits)
        if "memory" in self.contexts:
            shapes["contexts.memory.labels.weight"] = (self.vocab_size, self.hidden_bits)
        shapes["output.weight"] = (sum(width for _, width in self.groups), self.vocab_size)
        return shapes

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return sum(rows * columns for rows, columns in self.shapes.values())
