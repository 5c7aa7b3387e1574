"""The forward pass of the near-shallow language model in numpy; `warmstart.layers` has the same in PyTorch."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits

from bitcipher import codes
from warmstart import contexts, solution
from warmstart.accumulators import run_parts
from warmstart.contexts import Chunk
from warmstart.near_shallow.config import Config


def cipher_vectors(vocab_size: int, bits: int) -> sparse.csr_array:
    """Return the cipher vectors of all ranks as sparse rows (V, bits) float32 of unit L1 norm."""
    packed = codes.assign_codes(vocab_size, bits)
    indptr, indices = codes.code_indices(packed)
    values = np.repeat(1.0 / codes.code_weights(packed), np.diff(indptr)).astype(np.float32)
    return sparse.csr_array((values, indices.astype(np.int64), indptr), shape=(vocab_size, bits))


@dataclass
class State:
    """What is carried from chunk to chunk: sums of the document context (m,), the memory (b, m); both change."""

    sums: NDArray[np.float64]
    memory: NDArray[np.float64]


@dataclass
class NearShallowModel:
    """Configuration and weights (by the names of `Config.shapes`, float32), and the forward pass in numpy."""

    config: Config
    arrays: dict[str, NDArray[np.float32]]

    @cached_property
    def vectors(self) -> sparse.csr_array:
        """The embedding as sparse rows (V, b)."""
        return sparse.csr_array(self.arrays["embedding.weight"])

    @cached_property
    def value_rows(self) -> dict[str, NDArray[np.float32]]:
        """For every context with a value layer, ``E U`` (V, m)."""
        return {
            name: np.asarray(self.vectors @ self.arrays[f"contexts.{name}.values.weight"])
            for name in self.config.valued
        }

    @cached_property
    def keys(self) -> sparse.csr_array:
        """The embedding as sparse rows (V, b) of length 1, the keys of the memory context."""
        lengths = np.sqrt(self.vectors.multiply(self.vectors).sum(axis=1))
        return sparse.csr_array(sparse.diags_array(1.0 / np.maximum(lengths, 1e-12)) @ self.vectors)

    @cached_property
    def labels(self) -> sparse.csr_array:
        """Label embeddings of the memory context as sparse rows (V, m)."""
        return sparse.csr_array(self.arrays["contexts.memory.labels.weight"])

    def start(self) -> State:
        """Return the state that `hidden` carries from chunk to chunk."""
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
            out.append(softmax(z, workers))
        if "memory" in self.config.contexts:
            out.append(contexts.remembered(chunk, self.keys, self.labels, state.memory, workers))
        return out

    def radial(self, chunk: Chunk) -> NDArray[np.int64]:
        """Return the tokens of the radial context (r, n), newest first; (0, n) if it is not used."""
        radius = self.config.radius if "radial" in self.config.contexts else 0
        return chunk.radial(radius, self.config.separator)

    def inputs(self, chunk: Chunk, state: State, workers: int = 1) -> list[solution.Inputs]:
        """Return the inputs of the output layer, one (n, width) a group."""
        return [*(self.vectors[row] for row in self.radial(chunk)), *self.hidden(chunk, state, workers)]

    def logits(self, inputs: list[solution.Inputs]) -> list[NDArray[np.floating]]:
        """Return what each group adds to the logits, (n, V) a group."""
        out, start = [], 0
        for X, (_, width) in zip(inputs, self.config.groups, strict=True):
            out.append(X @ self.arrays["output.weight"][start : start + width])
            start += width
        return out


def softmax(z: NDArray[np.float32], workers: int = 1) -> NDArray[np.float32]:
    """Overwrite logits (n, m) by their softmax and return them."""
    cuts = np.linspace(0, z.shape[0], workers + 1).astype(int)

    def part(i: int) -> None:
        rows = z[cuts[i] : cuts[i + 1]]
        rows -= rows.max(axis=1, keepdims=True)
        np.exp(rows, out=rows)
        rows /= rows.sum(axis=1, keepdims=True)

    run_parts(part, range(workers), workers)
    return z


def nats(
    model: NearShallowModel, chunk: Chunk, state: State, prior: NDArray[np.float64], workers: int = 1
) -> NDArray[np.float64]:
    """Score the targets of a chunk.

    Returns
    -------
    (1 + number of contexts, n) float64
        ``-log P(target)`` by the whole model, then by each context of ``config.contexts`` alone (its part of the
        logits and the rest of the prior).
    """
    groups = model.config.groups
    inputs = model.inputs(chunk, state, workers)
    log_prior = np.log(prior).astype(np.float32)
    out = np.empty((1 + len(model.config.contexts), chunk.targets.size))

    def part(start: int) -> None:
        rows = slice(start, start + solution.ROWS)
        parts = model.logits([X[rows] for X in inputs])
        targets = chunk.targets[rows]
        for i, context in enumerate((None, *model.config.contexts)):
            mine = [z for z, (name, _) in zip(parts, groups, strict=True) if context in (None, name)]
            z = sum(mine[1:], mine[0]) if len(mine) > 1 else mine[0].copy()
            if len(mine) < len(groups):
                z += np.float32(1 - len(mine) / len(groups)) * log_prior
            at_target = z[np.arange(targets.size), targets].astype(np.float64)
            top = z.max(axis=1, keepdims=True)
            mass = np.exp(z - top).sum(axis=1)
            out[i, rows] = np.log(mass) + top[:, 0] - at_target

    with threadpool_limits(1):
        run_parts(part, range(0, chunk.targets.size, solution.ROWS), workers)
    return out
