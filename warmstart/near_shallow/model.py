"""The forward pass of the near-shallow language model in numpy; `warmstart.layers` has the same pass in PyTorch."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from bitcipher import codes
from warmstart import contexts
from warmstart._softmax import softmax
from warmstart._threads import run_parts, shares
from warmstart.contexts import Chunk
from warmstart.near_shallow.config import Config
from warmstart.solution import Inputs

DENSE = 0.2  # share of entries that are not 0 from which dense products are faster, as for a trained embedding


def cipher_vectors(vocab_size: int, bits: int) -> sparse.csr_array:
    """Return the cipher vectors of all ranks as sparse rows (V, bits) float32 of unit L1 norm."""
    packed = codes.assign_codes(vocab_size, bits)
    indptr, indices = codes.code_indices(packed)
    values = np.repeat(1.0 / codes.code_weights(packed), np.diff(indptr)).astype(np.float32)
    return sparse.csr_array((values, indices.astype(np.int64), indptr), shape=(vocab_size, bits))


@dataclass
class State:
    """State from chunk to chunk: the sums of the document context (m,) and the memory (b, m). `hidden` changes both."""

    sums: NDArray[np.float64]
    memory: NDArray[np.float64]


@dataclass
class NearShallowModel:
    """A configuration and its weights, with the forward pass.

    Attributes
    ----------
    config : Config
    arrays : dict of name to float32 array
        The weights, with the names and shapes of `Config.shapes`.
    """

    config: Config
    arrays: dict[str, NDArray[np.float32]]

    @cached_property
    def vectors(self) -> sparse.csr_array:
        """The embedding as sparse rows (V, b)."""
        return sparse.csr_array(self.arrays["embedding.weight"])

    @property
    def dense(self) -> NDArray[np.float32]:
        """The embedding as dense rows (V, b)."""
        return self.arrays["embedding.weight"]

    @cached_property
    def value_rows(self) -> dict[str, NDArray[np.float32]]:
        """``E U`` (V, m) of every context with a value layer."""
        return {
            name: np.asarray(self.vectors @ self.arrays[f"contexts.{name}.values.weight"])
            for name in self.config.valued
        }

    @cached_property
    def keys(self) -> sparse.csr_array:
        """The keys of the memory context: the embedding as sparse rows (V, b) of Euclidean length 1."""
        lengths = np.sqrt(self.vectors.multiply(self.vectors).sum(axis=1))
        return sparse.csr_array(sparse.diags_array(1.0 / np.maximum(lengths, 1e-12)) @ self.vectors)

    @cached_property
    def labels(self) -> sparse.csr_array:
        """The label embeddings of the memory context as sparse rows (V, m)."""
        return sparse.csr_array(self.arrays["contexts.memory.labels.weight"])

    def start(self) -> State:
        """Return the state before the first chunk of a corpus."""
        rows = self.config.bits if "memory" in self.config.contexts else 0
        return State(np.zeros(self.config.hidden_bits), np.zeros((rows, self.config.hidden_bits)))

    def attended(self, context: str, chunk: Chunk) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the window (B, n) of a context with attention and its attention (n, B)."""
        window = chunk.block(self.config.block_size) if context == "block" else chunk.window[: self.config.radius]
        return window, contexts.attend(window, self.arrays[f"contexts.{context}.attention.weight"], self.vectors)

    def hidden(self, chunk: Chunk, state: State, workers: int = 1) -> list[NDArray[np.float32]]:
        """Return ``h`` (n, m) of every context but the radial one."""
        out = []
        for name in self.config.valued:
            rows = self.value_rows[name]
            if name == "document":
                z = contexts.document_means(chunk, rows, state.sums, workers)
            else:
                z = contexts.superposed_rows(*self.attended(name, chunk), rows, workers)
            run_parts(lambda part: softmax(z[part]), shares(len(z), workers), workers)  # noqa: B023 - run at once
            out.append(z)
        if "memory" in self.config.contexts:
            out.append(contexts.remembered(chunk, self.keys, self.labels, state.memory, workers))
        return out

    def radial(self, chunk: Chunk) -> NDArray[np.int64]:
        """Return the tokens of the radial context (r, n), newest first; (0, n) for a model without it."""
        radius = self.config.radius if "radial" in self.config.contexts else 0
        return chunk.radial(radius, self.config.separator)

    def inputs(self, chunk: Chunk, state: State, workers: int = 1) -> list[Inputs]:
        """Return the inputs of the output layer, (n, width) for each group."""
        rows = self.vectors if self.vectors.nnz < DENSE * self.vectors.shape[0] * self.vectors.shape[1] else self.dense
        return [*(rows[row] for row in self.radial(chunk)), *self.hidden(chunk, state, workers)]

    def logits(self, inputs: list[Inputs]) -> list[NDArray[np.floating]]:
        """Return what each group adds to the logits, (n, V) for each group."""
        out, start = [], 0
        for X, (_, width) in zip(inputs, self.config.groups, strict=True):
            out.append(X @ self.arrays["output.weight"][start : start + width])
            start += width
        return out
