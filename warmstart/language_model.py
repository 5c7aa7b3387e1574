"""The near-shallow language model, solved bottom-up: vectors, W, U, O.

| symbol | shape | meaning |
|---|---|---|
| `E` | (V, b) | embedding: cipher vectors, rows of unit L1 norm |
| `W` | (B, B) | attention of a context, ``A = softmax(q W)`` |
| `U` | (b, m) | values of a context, ``h = softmax((A^T X) U)``, targets are label embeddings of m bits |
| `O` | (D, V) | output, ``softmax(concat(x_1 ... x_r, h_1, ..., h_c) O)`` |

The radial context enters the output as it is, position by position, and so does what the memory context reads;
attended, block and document contexts enter through a value layer. Every group of inputs has L1 norm 1, so k is the
number of groups and no layer needs a bias. Source:
Williams and Zhao 2023, arXiv 2311.07498 and 2311.07510.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits

from bitcipher import codes
from warmstart import accumulators, contexts, solution
from warmstart.accumulators import Accumulator, run_parts
from warmstart.attention import fit_attention
from warmstart.contexts import CHUNK, CONTEXTS, Chunk
from warmstart.errors import InputError

if TYPE_CHECKING:
    from warmstart.corpus import Progress

PRESETS: dict[str, dict[str, Any]] = {
    "potato": {"bits": 32, "hidden_bits": 16, "radius": 1, "block_size": 4},
    "micro": {"bits": 128, "hidden_bits": 32, "radius": 2, "block_size": 8},
    "small": {"bits": 512, "hidden_bits": 128, "radius": 2, "block_size": 8},
    "base": {"bits": 1024, "hidden_bits": 256, "radius": 2, "block_size": 8},
    "large": {"bits": 2048, "hidden_bits": 128, "radius": 2, "block_size": 16},
}
SAMPLE = 4096  # targets on which temperatures are fitted
ATTENTION_TARGETS = 1_000_000  # targets W is learned from
STRETCHES = 64  # places in the corpus they are taken from


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
        Dimension m of the label embeddings, the width of a value layer.
    radius : int
        Vectors in the radial and the attended context.
    block_size : int
        Vectors in a full block.
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
    contexts: tuple[str, ...] = ("radial", "block", "document")

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built; put the contexts in their canonical order."""
        for name in ("vocab_size", "bits", "hidden_bits", "radius", "block_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name}: expected a whole number of at least 1, got {value!r}")
        unknown = [name for name in self.contexts if name not in CONTEXTS]
        if unknown or not self.contexts or len(set(self.contexts)) < len(self.contexts):
            raise InputError(f"contexts: expected some of {', '.join(CONTEXTS)}, once each, got {list(self.contexts)}")
        if type(self.separator) is not int or not 0 <= self.separator < self.vocab_size:
            raise InputError(f"separator: expected a token id below {self.vocab_size}, got {self.separator!r}")
        object.__setattr__(self, "contexts", tuple(name for name in CONTEXTS if name in self.contexts))

    @property
    def hidden(self) -> tuple[str, ...]:
        """Contexts of m features: those with a value layer, and the memory."""
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
        """Tokens a window must hold for all contexts."""
        return max(self.radius, self.block_size if "block" in self.contexts else 1)

    def attention_size(self, context: str) -> int:
        """Positions the attention of a context sees; 0 if it has none."""
        return {"block": self.block_size, "attended": self.radius}.get(context, 0)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of every weight by its name in the state_dict."""
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


@dataclass
class Report:
    """What a fit found and what it cost: temperatures by layer, smoothing, nats of the attention rounds, seconds."""

    smoothing: dict[str, float] = field(default_factory=dict)
    temperatures: dict[str, list[float]] = field(default_factory=dict)
    attention_nats: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Fitter:
    """One bottom-up fit of a corpus ``tokens``, ``documents``, target ``counts`` (see `warmstart.corpus.Corpus`)."""

    tokens: NDArray[np.integer]
    documents: NDArray[np.integer]
    counts: NDArray[np.integer]
    config: Config
    smoothing: float | str = "fit"
    temperature: float | str = "fit"
    workers: int = 1
    chunk_size: int = CHUNK
    progress: "Progress | None" = None
    report: Report = field(default_factory=Report)

    def fit(self) -> NearShallowModel:
        """Solve vectors, attention, values and output, in this order.

        Raises
        ------
        InputError
            The corpus is shorter than the context, or no document fills a block.
        bitcipher.CapacityError
            Too few bits for the vocabulary.
        """
        solution.check_settings(self.smoothing, self.temperature)
        config, n = self.config, self.tokens.size - 1
        if n <= config.window:
            raise InputError(f"expected more tokens than the context of {config.window} holds, got {n}; give more text")
        self.prior = solution.class_prior(self.counts)
        self.sampled = np.unique(np.linspace(1, n, min(n, SAMPLE)).astype(np.int64))
        vectors = cipher_vectors(config.vocab_size, config.bits)
        model = NearShallowModel(config, {"embedding.weight": vectors.toarray()})
        model.vectors = vectors
        if "memory" in config.contexts:
            labels = cipher_vectors(config.vocab_size, config.hidden_bits)
            model.arrays["contexts.memory.labels.weight"] = labels.toarray()
        for stage in (self._attention, self._values, self._output):
            began = time.perf_counter()
            stage(model)
            self.report.seconds[stage.__name__.strip("_")] = time.perf_counter() - began
        return model

    def _chunks(self, stage: str) -> Iterator[tuple[Chunk, NDArray[np.int64]]]:
        """Yield every chunk with the rows of it that belong to the sample."""
        n = self.tokens.size - 1
        for chunk in contexts.read_all(self.tokens, self.documents, self.config.window, self.chunk_size):
            last = chunk.first + chunk.targets.size
            low, high = np.searchsorted(self.sampled, [chunk.first, last])
            yield chunk, self.sampled[low:high] - chunk.first
            if self.progress:
                self.progress(stage, last - 1, n)

    def _attention(self, model: NearShallowModel) -> None:
        for name in self.config.hidden:
            if not (size := self.config.attention_size(name)):
                continue
            window, targets = self._full_windows(size)
            found = fit_attention(
                window,
                targets,
                model.vectors,
                self.prior,
                workers=self.workers,
                progress=self._rounds(name),
            )
            model.arrays[f"contexts.{name}.attention.weight"] = found.W
            self.report.attention_nats[name] = found.nats

    def _rounds(self, context: str) -> Callable[[int, float], None]:
        def show(done: int, _: float) -> None:
            if self.progress:
                self.progress(f"attention of {context}", done, None)

        return show

    def _full_windows(self, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return windows (size, n) with every position filled, from stretches all over the corpus, and targets."""
        n = self.tokens.size - 1
        length = max(1, min(n, ATTENTION_TARGETS) // STRETCHES)
        starts = np.unique(np.linspace(1, n + 1 - length, STRETCHES).astype(int)) if n > ATTENTION_TARGETS else [1]
        length = length if n > ATTENTION_TARGETS else n
        read = [contexts.read(self.tokens, self.documents, size, int(s), int(s) + length) for s in starts]
        full = [chunk.window[-1] >= 0 for chunk in read]
        windows = np.concatenate([c.window[:, f] for c, f in zip(read, full, strict=True)], axis=1)
        if windows.shape[1] < 64 * size:
            raise InputError(
                f"expected at least {64 * size} full windows of {size} tokens to learn attention from, got "
                f"{windows.shape[1]}; give more text or longer documents, a smaller block size or radius, or leave "
                "the contexts with attention out"
            )
        return windows, np.concatenate([c.targets[f] for c, f in zip(read, full, strict=True)])

    def _values(self, model: NearShallowModel) -> None:
        """Solve U of every context with a value layer in one pass."""
        config = self.config
        if not config.valued:
            return
        labels = cipher_vectors(config.vocab_size, config.hidden_bits)
        F = {name: accumulators.empty(config.bits, config.hidden_bits) for name in config.valued}
        samples: dict[str, list[Any]] = {name: [] for name in config.valued}
        sampled_targets = []
        state = np.zeros(config.bits)
        rows = model.arrays["embedding.weight"]
        for chunk, picked in self._chunks("values"):
            for name in config.valued:
                X = (
                    contexts.document_means(chunk, rows, state, self.workers)
                    if name == "document"
                    else contexts.superposed(*model.attended(name, chunk), model.vectors)
                )
                accumulators.update(F[name], X, chunk.targets, labels, self.workers)
                samples[name].append(X[picked])
            sampled_targets.append(chunk.targets[picked])
        targets = labels[np.concatenate(sampled_targets)]
        for name in config.valued:
            sample = solution.Sample([_stack(samples[name])], targets)
            prior = solution.marginal_prior(F[name])
            U = self._solve(f"{name} values", sample, [F[name]], prior, 1.0)
            model.arrays[f"contexts.{name}.values.weight"] = U

    def _output(self, model: NearShallowModel) -> None:
        """Solve O on all groups in one pass."""
        config = self.config
        unit = accumulators.code_unit(np.diff(model.vectors.indptr))
        F: list[Accumulator] = [
            accumulators.empty(width, config.vocab_size, unit if name == "radial" else 0)
            for name, width in config.groups
        ]
        samples: list[list[Any]] = [[] for _ in F]
        sampled_targets = []
        state = model.start()
        for chunk, picked in self._chunks("output"):
            radial = model.radial(chunk)
            run_parts(
                lambda i: accumulators.update_pairs(F[i], radial[i], chunk.targets, model.vectors),  # noqa: B023
                range(len(radial)),
                self.workers,
            )
            hidden = model.hidden(chunk, state, self.workers)
            for i, h in enumerate(hidden, start=len(radial)):
                accumulators.update(F[i], h, chunk.targets, workers=self.workers)
            for i, X in enumerate([*(model.vectors[row[picked]] for row in radial), *(h[picked] for h in hidden)]):
                samples[i].append(X)
            sampled_targets.append(chunk.targets[picked])
        y = np.concatenate(sampled_targets)
        targets = sparse.csr_array((np.ones(y.size), y, np.arange(y.size + 1)), shape=(y.size, config.vocab_size))
        sample = solution.Sample([_stack(parts) for parts in samples], targets, keep_scores=True)
        model.arrays["output.weight"] = self._solve("output", sample, F, self.prior, float(len(F)))

    def _solve(
        self, layer: str, sample: solution.Sample, F: list[Accumulator], prior: NDArray[np.float64], k: float
    ) -> NDArray[np.float32]:
        if self.progress:
            self.progress(f"solving {layer}", 0, None)
        found = solution.fit(
            sample, F, prior, k=k, smoothing=self.smoothing, temperature=self.temperature, workers=self.workers
        )
        self.report.smoothing[layer] = found.smoothing
        self.report.temperatures[layer] = [float(tau) for tau in found.temperatures]
        weights = solution.solve(F, prior, k=k, smoothing=found.smoothing, temperatures=found.temperatures)
        weights -= weights.mean(axis=1, keepdims=True)  # no softmax sees it, and float32 logits stay small
        return weights


def _stack(parts: list[Any]) -> solution.Inputs:
    return sparse.csr_array(sparse.vstack(parts)) if sparse.issparse(parts[0]) else np.concatenate(parts)
