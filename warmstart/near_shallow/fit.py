"""The near-shallow language model, solved bottom-up from a corpus: vectors, attention, values, output."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from warmstart import accumulators, contexts, solution
from warmstart.accumulators import Accumulator, run_parts
from warmstart.attention import fit_attention
from warmstart.contexts import CHUNK, Chunk
from warmstart.errors import InputError
from warmstart.near_shallow.config import Config
from warmstart.near_shallow.model import NearShallowModel, cipher_vectors
from warmstart.progress import Progress

SAMPLE = 4096  # targets on which temperatures are fitted
ATTENTION_TARGETS = 1_000_000  # targets W is learned from
STRETCHES = 64  # places in the corpus they are taken from


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
    progress: Progress | None = None
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
