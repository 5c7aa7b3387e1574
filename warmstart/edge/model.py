"""`EdgeLM`: an exported language model, opened from its folder, with the probabilities of `WarmStartLM`.

| file | content |
|---|---|
| `model.bin` | vocabulary and merges, tables, gate: see `warmstart.edge.container` and `warmstart.export` |
| `counts.bin` | the n-grams of the counted text, to count further; a pruned model goes without |
"""

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warmstart._softmax import softmax
from warmstart.edge import container
from warmstart.edge.bytes_bpe import BytesBPE
from warmstart.edge.container import COUNTS, MODEL
from warmstart.edge.document import Document, Followers
from warmstart.edge.tables import Tables
from warmstart.errors import InputError
from warmstart.ids import whole_numbers
from warmstart.sampling import check_sampling, draw

ADDED = 2.0  # tokens, as in `warmstart.classes`

Floats = NDArray[np.float64]


class EdgeLM:
    """A language model that reads one document token by token. A token costs nearly the same always.

    Make one with `open`.

    Attributes
    ----------
    vocab_size, separator : int
    left_out : list of str
        What the model that was exported has besides, and this one has not.

    Examples
    --------
    >>> import tempfile
    >>> from warmstart import WarmStartLM
    >>> from warmstart.export import export
    >>> model = WarmStartLM(preset="potato", vocab_size=300).fit(["the cat sat on the mat. " * 40] * 20)
    >>> folder = tempfile.mkdtemp() + "/edge"
    >>> report = export(model, folder, "numpy")
    >>> small = EdgeLM.open(folder)
    >>> small.generate("the cat", 5, temperature=0) == model.generate("the cat", 5, temperature=0)
    True
    """

    def __init__(self, folder: Path, arrays: dict[str, NDArray[Any]]) -> None:
        self.folder, self.arrays = folder, arrays
        self.vocab_size, self.separator, self.order = arrays["shape"].tolist()
        self.settings = container.facts_of(arrays["settings"]) if "settings" in arrays else {"left_out": []}
        self.left_out: list[str] = self.settings["left_out"]
        self.gate_sizes = tuple(arrays["gate.sizes"].tolist())
        self.gate = arrays["gate"].reshape(int(np.prod(self.gate_sizes)), -1)
        self.ngrams: Tables | None = None
        self.prior: Floats = np.zeros(0)
        self._set_counted(arrays)
        self.classes: list[_Classes] = []
        while own := part_of(arrays, f"classes{len(self.classes)}"):
            self.classes.append(_Classes(self, own))
        self.radius = int(arrays["network.radius"][0]) if "network.radius" in arrays else 0
        self.discount = float(arrays["discount"][0])
        caches = [tuple(shape) for shape in arrays["caches"].reshape(-1, 2).tolist()]
        longest = max([self.order, self.radius, *(classes.tables.order for classes in self.classes)])
        self.document = Document(self.vocab_size, caches, longest)

    def _set_counted(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Set what `count` changes: the n-grams and the unigram model."""
        self.prior = arrays["prior"].astype(np.float64)
        self.prior /= self.prior.sum()
        if self.order:
            self.ngrams = Tables(self.order, self.vocab_size, part_of(arrays, "ngrams"))

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """Open a folder of ``warmstart export --format numpy``. What is not used is not read into memory.

        Raises
        ------
        InputError
            A file is missing, truncated, damaged, of another version or of another model.
        """
        path = Path(folder)
        if not (path / MODEL).is_file():
            raise InputError(
                f"{path}: expected a folder with {MODEL}, got none; write one with `warmstart export MODEL --format "
                f"numpy -o {path}`"
            )
        arrays = container.read(path / MODEL)
        if "shape" not in arrays:
            raise InputError(f"{path / MODEL}: expected a model, got another table; export the model again")
        return cls(path, arrays)

    def start(self) -> None:
        """Begin a new document."""
        self.document.start()

    def advance(self, tokens: Iterable[int]) -> None:
        """Read tokens. A separator begins a new document.

        Raises
        ------
        InputError
            A token is outside the vocabulary. Nothing has changed.
        """
        ids = tokens if hasattr(tokens, "__len__") else list(tokens)
        for token in whole_numbers("token ids", ids, self.vocab_size).tolist():
            if token == self.separator:
                self.start()
            else:
                self.document.add(token)

    def row(self) -> Floats:
        """Return the probability of every token to come next (V,); they sum to 1."""
        followers = self.document.followers()
        contexts = [] if self.ngrams is None else self.ngrams.contexts(self._history(self.ngrams.order - 1))
        weights = self.weights(followers, contexts)
        out = np.zeros(self.vocab_size)
        for weight, row in zip(weights, self._rows(followers, contexts), strict=True):
            out += weight * row
        return out

    def _rows(self, followers: list[list[Followers]], contexts: list[int]) -> Iterator[Floats]:
        """Yield the rows of the experts in the order of their weights."""
        if self.ngrams is not None:
            yield self.ngrams.row(contexts)
        for classes in self.classes:
            yield classes.row()
        for levels in followers:
            yield self._cache_row(levels)
        if self.radius:
            yield self._network_row()
        yield self.prior

    def _history(self, length: int) -> list[int]:
        return self.document.history(self.separator, length)

    def weights(self, followers: list[list[Followers]], contexts: list[int]) -> Floats:
        """Return the weights of the experts (m,), see `warmstart.gate`."""
        features = []
        if followers:
            levels = followers[0]
            types, total = (levels[-1].tokens.size, levels[-1].total) if levels else (0, 0)
            features = [max(0, len(levels) - 1), types.bit_length(), int(total).bit_length()]
            features.append(max(0, len(followers[1]) - 1))
        if self.ngrams is not None:
            features.append(sum(1 for h in contexts if self.ngrams.counted[h]))
        features.append(self._history(1)[-1].bit_length() // 2)
        bucket = 0
        for value, size in zip(features, self.gate_sizes, strict=True):
            bucket = bucket * size + min(value, size - 1)
        weights = self.gate[bucket].astype(np.float64)
        return np.asarray(weights / weights.sum())

    def _cache_row(self, levels: list[Followers]) -> Floats:
        row = np.full(self.vocab_size, 1.0 / self.vocab_size)
        for tokens, counts, total in levels:
            row *= self.discount * tokens.size / total
            row[tokens] += (counts - self.discount) / total
        return row

    def _network_row(self) -> Floats:
        """Return the row of a network with the radial context alone; vectors of tokens are mostly zeros."""
        output = self.arrays["network.output"].reshape(-1, self.vocab_size)
        vectors = self.arrays["network.embedding"].reshape(self.vocab_size, -1)
        newest = self._history(self.radius)[::-1]
        logits, bits = np.zeros(self.vocab_size, np.float32), vectors.shape[1]
        for age in range(self.radius):
            x = vectors[newest[age] if age < len(newest) else self.separator]
            filled = np.flatnonzero(x)
            logits += x[filled] @ output[age * bits + filled]
        return np.asarray(softmax(logits.astype(np.float64)[None])[0])

    def predict_proba(self, ids: ArrayLike) -> Floats:
        """Return the probability of each token (V,) to come after ids (n,) from the beginning of a document."""
        self.start()
        self.advance(whole_numbers("token ids", ids, self.vocab_size))
        return self.row()

    @cached_property
    def tokenizer(self) -> BytesBPE:
        """The tokenizer. An InputError if the model has another kind than byte-level BPE."""
        if "tokens.text" not in self.arrays:
            raise InputError(f"expected a model with a byte-level BPE tokenizer, got one without; {self.left_out[-1]}")
        return BytesBPE(part_of(self.arrays, "tokens"))

    def generate(
        self, prompt: str = "", max_new_tokens: int = 60, temperature: float = 0.8, top_p: float = 0.95, seed: int = 0
    ) -> str:
        """Return a continuation of a prompt, as `WarmStartLM.generate`."""
        check_sampling(max_new_tokens, temperature, top_p, seed)
        ids = self.tokenizer.encode(prompt)
        self.start()
        self.advance(ids)
        rng = np.random.default_rng(seed) if temperature else None  # numpy loads its random numbers only now
        written = []
        for _ in range(max_new_tokens):
            token = draw(self.row(), temperature, top_p, rng)
            if token == self.separator:
                break
            self.advance([token])
            written.append(token)
        first, whole = self.tokenizer.decode(ids), self.tokenizer.decode([*ids, *written])
        return whole[len(os.path.commonprefix([first, whole])) :]  # noqa: RUF071 - of texts

    def count(self, documents: Iterable[str | list[int]]) -> dict[str, Any]:
        """Count more documents, texts or token ids, and solve the n-grams again, see `warmstart.edge.counting`.

        A text ends where ``<|endoftext|>`` stands in it, and a blank one does not count, as in a `warmstart.Corpus`.
        The n-grams are those of a model that has counted all texts at once. The gate, the classes and the network stay
        as they are: `WarmStartLM.partial_fit` fits them again.

        Returns
        -------
        dict
            ``tokens`` that were counted, ``ngrams`` of every length in the tables, and ``kept``: what stays as it was.

        Raises
        ------
        InputError
            The model has no counts, or a token is outside the vocabulary. Nothing has changed.
        """
        from warmstart.edge import counting

        ids = [whole_numbers("token ids", text, self.vocab_size) for text in self._cut(documents)]
        levels = self._read_counts() if self._levels is None else self._levels
        levels = counting.add(levels, counting.count(ids, self.separator, self.vocab_size, len(levels)))
        pruning = self.settings["max_ngrams"], self.settings["prune"]
        arrays, sizes = counting.solve(levels, self.separator, self.order, *pruning)
        self._levels = levels
        self.arrays |= arrays
        self._set_counted(self.arrays)
        kept = ["gate", *(["classes"] if self.classes else []), *(["network"] if self.radius else [])]
        return {"tokens": sum(text.size + 1 for text in ids), "ngrams": sizes, "kept": kept}

    def _read_counts(self) -> Any:
        """Return the levels of what was counted. Refuse those of another text."""
        from warmstart.edge import counting

        path = self.folder / COUNTS
        if not path.is_file():
            raise InputError(
                f"{self.folder}: expected {COUNTS} to count further, got none; a pruned model is saved without its "
                "counts: export it right after fit with warmstart.export.export, or fit one that is not pruned"
            )
        arrays = container.read(path)
        prior = np.maximum(arrays.get("1.counts", np.zeros(1)), 0.5)
        prior /= prior.sum()
        if prior.size != self.vocab_size or not np.allclose(prior, self.prior, rtol=1e-5, atol=0):
            raise InputError(f"{path}: expected the counts of the model, got those of another text; export it again")
        return counting.load(arrays)

    def _cut(self, documents: Iterable[str | list[int]]) -> Iterator[list[int]]:
        """Yield the token ids of documents; texts are cut and blank ones left out as by `warmstart.documents`."""
        from warmstart.documents import SEPARATOR  # not needed to predict

        for document in documents:
            if isinstance(document, str):
                yield from (self.tokenizer.encode(text) for text in document.split(SEPARATOR) if text.strip())
            else:
                yield document

    _levels: Any = None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model with all that was counted to a folder, whole or not at all, see `container.write_folder`."""
        from warmstart.edge import counting

        contents: dict[str, dict[str, NDArray[Any]]] = {MODEL: self.arrays}
        if self._levels is not None:
            contents[COUNTS] = counting.arrays_of(self._levels)
        elif (self.folder / COUNTS).is_file():
            contents[COUNTS] = container.read(self.folder / COUNTS)
        container.write_folder(Path(folder).absolute(), contents)


class _Classes:
    """An n-gram model of classes of tokens, see `warmstart.classes`."""

    def __init__(self, model: EdgeLM, arrays: dict[str, NDArray[Any]]) -> None:
        self.model, self.labels = model, arrays["labels"]
        self.shares = arrays["shares"].astype(np.float64)
        self.size = int(self.labels.max()) + 1
        self.tables = Tables(int(arrays["order"][0]), self.size, arrays)

    def row(self) -> Floats:
        """Return the probability of every token (V,)."""
        document = self.model.document
        history = self.labels[self.model._history(self.tables.order - 1)].tolist()
        row = self.tables.row(self.tables.contexts(history))
        share = self.shares
        if document.seen:
            seen = document.seen[0]
            of_class = np.bincount(self.labels, seen, minlength=self.size)
            share = (seen + ADDED * share) / (of_class[self.labels] + ADDED)
        return np.asarray(row[self.labels] * share)


def part_of(arrays: dict[str, NDArray[Any]], name: str) -> dict[str, NDArray[Any]]:
    """Return the arrays whose names begin with a name and a dot, without it."""
    return {key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")}
