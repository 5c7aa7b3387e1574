"""The solution of the near-shallow language model from a corpus, bottom-up: vectors, attention, values, output."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from warmstart import accumulators, contexts, solution
from warmstart._threads import run_parts
from warmstart.accumulators import Accumulator
from warmstart.attention import fit_attention
from warmstart.contexts import TARGETS_PER_CHUNK, Chunk
from warmstart.errors import InputError
from warmstart.near_shallow.config import Config
from warmstart.near_shallow.model import NearShallowModel, cipher_vectors
from warmstart.progress import Progress

SAMPLE = 4096  # targets on which temperatures are fitted
ATTENTION_TARGETS = 1_000_000  # targets from which attention is learned, at most
STRETCHES = 64  # places in the corpus that they are taken from
WINDOWS_PER_POSITION = 64  # full windows needed for each position of an attention


@dataclass
class Report:
    """Smoothing, temperatures and bounds (see `warmstart.solution.Fit`) by layer, held-out losses, seconds by stage.

    The held-out losses are those of the attention rounds, by context.
    """

    smoothing: dict[str, float] = field(default_factory=dict)
    temperatures: dict[str, list[float]] = field(default_factory=dict)
    bounds: dict[str, list[str]] = field(default_factory=dict)
    attention_losses: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Fitter:
    """One bottom-up fit; the result does not depend on ``workers``, ``chunk_size`` and ``device``.

    ``tokens``, ``documents`` and ``counts`` are those of a `warmstart.corpus.Corpus`, ``smoothing`` and ``temperature``
    those of `warmstart.solution.fit`; with the report ``like`` of another fit, its values are taken instead. ``device``
    is one of PyTorch, see `warmstart.accumulators.CodedPairs` and `warmstart.solution.log_likelihood`.
    """

    tokens: NDArray[np.integer]
    documents: NDArray[np.integer]
    counts: NDArray[np.integer]
    config: Config
    smoothing: float | str = "fit"
    temperature: float | str = "fit"
    workers: int = 1
    chunk_size: int = TARGETS_PER_CHUNK
    progress: Progress | None = None
    like: Report | None = None
    device: str | None = None
    report: Report = field(default_factory=Report)

    def fit(self) -> NearShallowModel:
        """Solve vectors, attention, values and output, in this order.

        Raises
        ------
        InputError
            The corpus is shorter than the context, or too few documents fill a block.
        bitcipher.CapacityError
            There are too few bits for the vocabulary.
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
        """Yield every chunk, and which of its targets belong to the sample."""
        n = self.tokens.size - 1
        for chunk in contexts.read_all(self.tokens, self.documents, self.config.window, self.chunk_size):
            last = chunk.first + chunk.targets.size
            low, high = np.searchsorted(self.sampled, [chunk.first, last])
            yield chunk, self.sampled[low:high] - chunk.first
            if self.progress:
                self.progress(stage, last - 1, n)

    def _attention(self, model: NearShallowModel) -> None:
        """Solve the attention weights of every context that has them."""
        for name in self.config.hidden:
            if not (size := self.config.attention_size(name)):
                continue
            window, targets = self._full_windows(size)
            fit = fit_attention(
                window, targets, model.vectors, self.prior, workers=self.workers, progress=self._rounds(name)
            )
            model.arrays[f"contexts.{name}.attention.weight"] = fit.W
            self.report.attention_losses[name] = fit.held_out_losses
            self._note(f"{name} attention", fit.bounds)

    def _rounds(self, context: str) -> Callable[[int, float], None] | None:
        progress = self.progress
        return progress and (lambda round_, _: progress(f"attention of {context}", round_, None))

    def _full_windows(self, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return windows (size, n) whose positions are all filled, from stretches all over the corpus, and targets."""
        n = self.tokens.size - 1
        length, starts = n, np.ones(1, np.int64)
        if n > ATTENTION_TARGETS:
            length = ATTENTION_TARGETS // STRETCHES
            starts = np.unique(np.linspace(1, n + 1 - length, STRETCHES).astype(np.int64))
        stretches = [contexts.read(self.tokens, self.documents, size, int(s), int(s) + length) for s in starts]
        window = np.concatenate([stretch.window for stretch in stretches], axis=1)
        targets = np.concatenate([stretch.targets for stretch in stretches])
        full = window[-1] >= 0
        if full.sum() < WINDOWS_PER_POSITION * size:
            raise InputError(
                f"expected at least {WINDOWS_PER_POSITION * size} full windows of {size} tokens to learn attention "
                f"from, got {full.sum()}; give more text or longer documents, a smaller block size or radius, or leave "
                "the contexts with attention out"
            )
        return window[:, full], targets[full]

    def _values(self, model: NearShallowModel) -> None:
        """Solve the value weights of every context that has them, in one pass."""
        config = self.config
        if not config.valued:
            return
        labels = cipher_vectors(config.vocab_size, config.hidden_bits)
        F = {name: accumulators.empty(config.bits, config.hidden_bits) for name in config.valued}
        inputs: dict[str, list[Any]] = {name: [] for name in config.valued}
        targets = []
        state = np.zeros(config.bits)
        rows = model.arrays["embedding.weight"]
        for chunk, sampled in self._chunks("values"):
            for name in config.valued:
                X = (
                    contexts.document_means(chunk, rows, state, self.workers)
                    if name == "document"
                    else contexts.superposed(*model.attended(name, chunk), model.vectors)
                )
                accumulators.update(F[name], X, chunk.targets, labels, self.workers)
                inputs[name].append(X[sampled])
            targets.append(chunk.targets[sampled])
        y = labels[np.concatenate(targets)]
        for name in config.valued:
            sample = solution.Sample([_stack(inputs[name])], y)
            prior = solution.marginal_prior(F[name])
            U = self._solve(f"{name} values", sample, [F[name]], prior, 1.0)
            model.arrays[f"contexts.{name}.values.weight"] = U

    def _output(self, model: NearShallowModel) -> None:
        """Solve the output weights of all groups, in one pass."""
        config = self.config
        unit = accumulators.code_unit(np.diff(model.vectors.indptr))
        F = [
            accumulators.empty(width, config.vocab_size, unit if name == "radial" else None)
            for name, width in config.groups
        ]
        coded = [accumulators.CodedPairs(sums, model.vectors, self.device) for sums in F if sums.exact]
        inputs: list[list[Any]] = [[] for _ in F]
        targets = []
        state = model.start()
        for chunk, sampled in self._chunks("output"):
            radial = model.radial(chunk)
            run_parts(lambda i: coded[i].add(radial[i], chunk.targets), range(len(radial)), self.workers)  # noqa: B023
            hidden = model.hidden(chunk, state, self.workers)
            for i, h in enumerate(hidden, start=len(radial)):
                accumulators.update(F[i], h, chunk.targets, workers=self.workers)
            for i, X in enumerate([*(model.vectors[row[sampled]] for row in radial), *(h[sampled] for h in hidden)]):
                inputs[i].append(X)
            targets.append(chunk.targets[sampled])
        for sums in coded:
            sums.finish()
        y = sparse.eye_array(config.vocab_size, format="csr")[np.concatenate(targets)]
        sample = solution.Sample([_stack(parts) for parts in inputs], y, keep_scores=True)
        model.arrays["output.weight"] = self._solve("output", sample, F, self.prior, float(len(F)))

    def _note(self, layer: str, bounds: tuple[str, ...]) -> None:
        if bounds:
            self.report.bounds[layer] = list(bounds)

    def _solve(
        self, layer: str, sample: solution.Sample, F: list[Accumulator], prior: NDArray[np.float64], k: float
    ) -> NDArray[np.float32]:
        """Return the weights of a layer, and report its smoothing and temperatures."""
        if self.progress:
            self.progress(f"solving {layer}", 0, None)
        if self.like is None:
            settings: dict[str, Any] = {"smoothing": self.smoothing, "temperature": self.temperature}
            fit = solution.fit(sample, F, prior, k=k, **settings, workers=self.workers, device=self.device)
            smoothing, temperatures = fit.smoothing, fit.temperatures
            self._note(layer, fit.bounds)
        else:
            smoothing, temperatures = self.like.smoothing[layer], np.array(self.like.temperatures[layer])
        self.report.smoothing[layer] = smoothing
        self.report.temperatures[layer] = [float(tau) for tau in temperatures]
        found: dict[str, Any] = {"smoothing": smoothing, "temperatures": temperatures}
        weights = solution.solve(F, prior, k=k, **found, device=self.device)
        weights -= weights.mean(axis=1, keepdims=True)  # a softmax ignores it, and float32 logits stay small
        return weights


def _stack(parts: list[Any]) -> solution.Inputs:
    return sparse.csr_array(sparse.vstack(parts)) if sparse.issparse(parts[0]) else np.concatenate(parts)
