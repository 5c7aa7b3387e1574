"""`WarmStartLM`: a language model solved from counts, as an estimator that fits, scores, explains and writes text."""

import contextlib
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from joblib import effective_n_jobs
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from warmstart import folder as folders
from warmstart.backoff import BackoffModel
from warmstart.budget import Budget
from warmstart.classes import ClassModel
from warmstart.corpus import Corpus, Text
from warmstart.counts import NGrams
from warmstart.device import check_device
from warmstart.errors import InputError
from warmstart.files import CHECKSUMS, checksums, save_arrays
from warmstart.gate import Gate
from warmstart.ids import whole_numbers
from warmstart.kneser_ney import KneserNey
from warmstart.mixture import Experts, Mixture
from warmstart.near_shallow import PRESETS as NETWORKS
from warmstart.near_shallow import NearShallowModel
from warmstart.ngrams import NGramCounts, vocabulary_digest
from warmstart.progress import Progress, peak_memory
from warmstart.ranks import ranked
from warmstart.sampling import check_seed
from warmstart.solution import class_prior
from warmstart.solving import COUNT_CONTEXTS, Recipe, Solved, solve
from warmstart.spill import Work, count_corpus
from warmstart.stream import Explanation, Stream
from warmstart.tokenizer import SEPARATOR, continuation, encoded, load_tokenizer

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from warmstart.layers import NearShallowLM

SIZES = ("bits", "hidden_bits", "radius", "block_size")  # of the network
MOST = ("ngrams", "classes", "cache", "radial")
PRESETS: dict[str, dict[str, Any]] = {  # the network has the sizes of `warmstart.near_shallow.PRESETS`
    "potato": {"order": 3, "max_ngrams": 1_800_000, "contexts": ("ngrams", "cache")},
    "micro": {"order": 4, "contexts": ("ngrams", "cache", "radial")},
    "small": {"order": 5, "contexts": MOST, "classes": (512,)},
    "base": {"order": 5, "contexts": MOST, "classes": (256, 1024)},
    "large": {"order": 6, "contexts": MOST, "classes": (256, 512, 1024)},
}


class WarmStartLM(BaseEstimator):  # type: ignore[misc]
    """A language model that is computed from counts of text, without a gradient.

    `fit` counts the n-grams of a text once. What predicts the next token is a mixture of experts: the n-grams, classes
    of tokens, a cache of the document so far, and a near-shallow network, which can be trained further. Time is linear
    in the length of the text.

    Parameters
    ----------
    preset : {"potato", "micro", "small", "base", "large"}
        Size of the model: what the following parameters are if they are not given.
    bits, hidden_bits, radius, block_size : int, optional
        Of the network: dimension of the cipher vectors, width of the value layers, number of tokens in the radial and
        attended contexts, number of tokens in a block.
    contexts : tuple of str, optional
        What the next token is predicted from. "ngrams": the n-grams of the counted text. "classes": those of classes of
        tokens. "cache": what this document has said so far. "radial", "attended", "block", "document", "memory":
        contexts of the network (see `warmstart.contexts`). Only with one of these can the model be trained further, and
        best with "document" among them.
    order : int, optional
        Length of the longest n-grams.
    prune : tuple of int, optional
        For every length, n-grams that occur at most so often are left out of the tables, see
        `warmstart.kneser_ney.KneserNey`. A pruned model is saved without its counts.
    vocab_size : int
        Largest vocabulary of the byte-level BPE tokenizer that `fit` trains, unless it is given a `Corpus`.
    smoothing : float or "fit"
        Of the network: pseudo-counts added to each feature, divided among the tokens by their frequency.
    temperature : float or "fit"
        Of the network: factor of the weights. 1 is the published formula. "fit" finds one factor for each group of
        features.
    n_jobs : int, optional
        Number of threads, 1 by default; -1 for all processors. The result does not depend on it.

    Attributes
    ----------
    counts_ : warmstart.ngrams.NGramCounts or None
        The statistic of the text. None for a pruned model that was loaded.
    mixture_ : warmstart.mixture.Mixture
        Experts and gate. With the network, 1 % for the unigram model if no counts are beside it.
    model_ : warmstart.near_shallow.NearShallowModel or None
        The network. None without a context of the network.
    tokenizer_ : tokenizers.Tokenizer
        Its ids are frequency ranks of the text of `fit`.
    unigrams_ : (V,) int64
        Number of times each token was a target.
    ngrams_ : warmstart.counts.NGrams or None
        Unigram and bigram models of the text, to compare with. None without a statistic of order 2.
    report_ : dict
        Sizes, seconds, tokens per second, peak memory and what was fitted.

    References
    ----------
    Chen and Goodman 1999 (n-grams); Williams and Zhao 2023: arXiv 2311.07498, 2311.07510, 2311.11012 (network).

    Examples
    --------
    >>> model = WarmStartLM(preset="potato", vocab_size=300).fit(["the cat sat on the mat. " * 40] * 20)
    >>> model.perplexity(["the cat sat on the mat. the cat sat."]) < 5
    True
    """

    def __init__(
        self,
        preset: str = "small",
        *,
        bits: int | None = None,
        hidden_bits: int | None = None,
        radius: int | None = None,
        block_size: int | None = None,
        contexts: tuple[str, ...] | None = None,
        order: int | None = None,
        prune: tuple[int, ...] | None = None,
        vocab_size: int = 8192,
        smoothing: float | str = "fit",
        temperature: float | str = "fit",
        n_jobs: int | None = None,
    ) -> None:
        self.preset = preset
        self.bits = bits
        self.hidden_bits = hidden_bits
        self.radius = radius
        self.block_size = block_size
        self.contexts = contexts
        self.order = order
        self.prune = prune
        self.vocab_size = vocab_size
        self.smoothing = smoothing
        self.temperature = temperature
        self.n_jobs = n_jobs

    @property
    def _workers(self) -> int:
        if self.n_jobs is not None and (not isinstance(self.n_jobs, Integral) or not self.n_jobs):
            raise InputError(f"n_jobs: expected a whole number other than 0, or None, got {self.n_jobs!r}")
        return int(effective_n_jobs(self.n_jobs))

    def fit(
        self,
        corpus: Corpus | Text,
        y: None = None,
        *,
        device: str | None = None,
        budget: Budget | None = None,
        work: Work | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Count a corpus and solve the counts.

        Parameters
        ----------
        corpus : Corpus, paths, or an iterable of strings
            A `warmstart.Corpus` with any tokenizer, or sources of `Corpus.build`, such as `TokenFiles`. None is
            Python's documentation.
        y : None
            Not used.
        device : str, optional
            Device of PyTorch, such as "cuda", that counts, adds up codes and solves n-grams and network; None is the
            CPU with compiled loops, which are faster there than "cpu". The result does not depend on it.
        budget : Budget, optional
            A limit of memory: it chooses how much is counted at once, and refuses before what would not fit.
        work : Work, optional
            A folder for what is counted so far, see `warmstart.spill`. The same call goes on from it.
        progress : callable, optional
            Called as ``progress(stage, done, total)``.

        Raises
        ------
        InputError
            A parameter, a path, the device or the text cannot be used, or the budget does not suffice.
        bitcipher.CapacityError
            There are fewer codes of so many bits than tokens.
        """
        recipe, workers = self._recipe(), self._workers
        check_device(device)
        began = time.perf_counter()
        if not isinstance(corpus, Corpus):
            corpus = Corpus.build(corpus, vocab_size=self.vocab_size, progress=progress)
        built = time.perf_counter()
        tokenizer = corpus.tokenizer
        options: dict[str, Any] = {"workers": workers, "device": device, "budget": budget, "work": work}
        counts = count_corpus(corpus, recipe.counted_order, progress=progress, **options)
        seconds = {"corpus": built - began, "count": time.perf_counter() - built}
        if budget is not None:
            budget.solve(counts, recipe)
        return self._solve(counts.loaded(), tokenizer, corpus.n_bytes, seconds, progress, device)

    @property
    def counted_order(self) -> int:
        """Order of the counts that `fit_counts` takes. It raises an `InputError` where `fit_counts` would for any."""
        recipe = self._recipe()
        config = recipe.config(vocab_size=1, separator=0)
        if config is not None and config.valued:
            raise InputError(
                f"contexts: expected those that one pass over the counted documents solves, got "
                f"{', '.join(config.valued)}, which need a pass for each of their layers; leave them out, or give the "
                "whole text to fit"
            )
        return recipe.counted_order

    def fit_counts(
        self,
        counts: NGramCounts,
        tokenizer: "Tokenizer",
        n_bytes: int,
        *,
        device: str | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Solve a statistic, as `fit` does after it has counted: its ids become frequency ranks. No text is read.

        Parameters
        ----------
        counts : NGramCounts
            Made with the ``vocabulary`` of the tokenizer. The order may be higher than that of the model.
        tokenizer : Tokenizer
        n_bytes : int
            UTF-8 bytes of the counted text.
        device : str, optional
            See `fit`.
        progress : callable, optional
            Called as ``progress(stage, done, total)``.

        Raises
        ------
        InputError
            A parameter cannot be used; the counts are empty, have a lower order or another tokenizer; or a context
            ("attended", "block", "document") has layers of its own, each of which needs a pass over the text.
        bitcipher.CapacityError
            There are fewer codes of so many bits than tokens.
        """
        check_device(device)
        order = self.counted_order
        if counts.order < order:
            raise InputError(
                f"order: expected at most {counts.order}, that of the counts, got {order}; choose another one, or "
                "count again"
            )
        if counts.vocabulary != vocabulary_digest(tokenizer.get_vocab()):
            raise InputError("expected counts in the tokens of the tokenizer, got those of another one; count again")
        if not counts.n_tokens:
            raise InputError("expected counts of some text, got none; count a text")
        began = time.perf_counter()
        counts, tokenizer = ranked(counts.shortened(order), tokenizer)
        return self._solve(counts, tokenizer, n_bytes, {"ranks": time.perf_counter() - began}, progress, device)

    def _solve(
        self,
        counts: NGramCounts,
        tokenizer: "Tokenizer",
        n_bytes: int,
        seconds: dict[str, float],
        progress: Progress | None,
        device: str | None = None,
    ) -> Self:
        solved = solve(counts, self._recipe(), self._workers, progress, device=device)
        self._set(tokenizer, counts, counts.levels[0].counts, solved, seconds, n_bytes)
        return self

    def partial_fit(self, texts: Corpus | Text, y: None = None, *, progress: Progress | None = None) -> Self:
        """Count more texts and solve again. The tokenizer stays. On a model without a fit this is `fit`.

        Parameters and errors are those of `fit`.
        """
        if not hasattr(self, "tokenizer_"):
            return self.fit(texts, progress=progress)
        return self._update(texts, 1, progress)

    def forget(self, texts: Corpus | Text, *, progress: Progress | None = None) -> Self:
        """Take texts out of the counts and solve again, as if they had never been counted (the tokenizer stays).

        Parameters
        ----------
        texts
            Whole documents that were counted, as for `fit`.

        Raises
        ------
        InputError
            A document was never counted. Nothing has changed.
        """
        return self._update(texts, -1, progress)

    def _update(self, texts: Corpus | Text, sign: int, progress: Progress | None) -> Self:
        check_is_fitted(self, "tokenizer_")
        if self.counts_ is None:
            raise InputError(
                "expected a model with its counts, got a pruned one that was saved without them; fit it again, without "
                "pruning"
            )
        recipe = self._recipe()
        if self.counts_.order != recipe.counted_order:
            raise InputError(
                f"expected the order of the counts, {self.counts_.order}, got parameters for {recipe.counted_order}; "
                "set order and contexts back, or fit again"
            )
        with self._encoded(texts, {}, progress) as corpus:
            began = time.perf_counter()
            change = _count(corpus, self.counts_.order, self._workers, progress)
            counts = self.counts_ + change if sign > 0 else self.counts_ - change
            seconds = {"count": time.perf_counter() - began}
            n_bytes = self.report_["bytes"] + sign * corpus.n_bytes
        if not counts.n_tokens:
            raise InputError("expected some text that stays, got all of it to forget; fit another text instead")
        return self._solve(counts, self.tokenizer_, n_bytes, seconds, progress)

    def initialise(self, corpus: Corpus, seed: int = 0) -> Self:
        """Set the random weights that `warmstart.NearShallowLM` starts with, for a cold start to compare with.

        What is counted is counted as in `fit`.
        """
        import torch

        from warmstart.layers import NearShallowLM

        check_seed(seed)
        recipe = self._recipe()
        began = time.perf_counter()
        config = recipe.config(corpus.vocab_size, corpus.separator)
        if config is None:
            raise InputError("contexts: expected one of the network for a cold start, got none; add radial")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            network = NearShallowLM(config).to_model()
        counts = _count(corpus, recipe.counted_order, self._workers, None)
        solved = solve(counts, recipe, self._workers, network=network)
        seconds = {"initialise": time.perf_counter() - began}
        self._set(corpus.tokenizer, counts, counts.levels[0].counts, solved, seconds, corpus.n_bytes)
        return self

    def _recipe(self) -> Recipe:
        if not isinstance(self.preset, str) or self.preset not in PRESETS:
            raise InputError(f"preset: expected one of {', '.join(PRESETS)}, got {self.preset!r}")
        for name in ("contexts", "prune"):
            if isinstance(value := getattr(self, name), str) or not isinstance(value, Iterable | None):
                raise InputError(f"{name}: expected several values, such as a tuple, got {value!r}; put it into one")
        preset = PRESETS[self.preset]
        contexts = preset["contexts"] if self.contexts is None else tuple(self.contexts)
        sizes = {name: getattr(self, name) for name in SIZES if getattr(self, name) is not None}
        if sizes and contexts and set(contexts) <= set(COUNT_CONTEXTS):
            raise InputError(
                f"{next(iter(sizes))}: expected a context of the network with it, such as radial, got contexts "
                f"{', '.join(contexts)}; add one or leave it out"
            )
        return Recipe(
            contexts,
            preset["order"] if self.order is None else self.order,
            () if self.prune is None else tuple(self.prune),
            preset.get("max_ngrams") if self.prune is None else None,
            preset.get("classes", (512,)),
            NETWORKS[self.preset] | sizes,
            self.smoothing,
            self.temperature,
        )

    def _set(
        self,
        tokenizer: "Tokenizer",
        counts: NGramCounts | None,
        unigrams: NDArray[np.int64],
        solved: Solved,
        seconds: dict[str, float],
        n_bytes: int,
    ) -> None:
        """Set the attributes of a fitted model."""
        self.tokenizer_, self.counts_, self.unigrams_ = tokenizer, counts, unigrams
        self.model_, self.mixture_ = solved.network, solved.mixture
        self.ngrams_ = None if counts is None or counts.order < 2 else NGrams.of(counts)
        report = dict(solved.report)
        seconds = {**seconds, **report.pop("seconds", {})}
        n_tokens = int(unigrams.sum())
        self.report_: dict[str, Any] = {
            "tokens": n_tokens,
            **({} if counts is None else {"documents": int(counts.documents.copies.sum())}),
            "bytes": n_bytes,
            "vocab_size": tokenizer.get_vocab_size(),
            "parameters": 0 if self.model_ is None else self.model_.config.n_parameters,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "tokens_per_second": round(n_tokens / max(sum(seconds.values()), 1e-9)),
            "peak_memory_bytes": peak_memory(),
            **report,
        }

    @contextlib.contextmanager
    def _encoded(self, text: Corpus | Text, reading: dict[str, Any], progress: Progress | None) -> Iterator[Corpus]:
        """Give a text in the tokens of the model. Refuse a corpus with another tokenizer."""
        if isinstance(text, Corpus):
            if text.tokenizer.get_vocab() != self.tokenizer_.get_vocab():
                raise InputError(
                    f"{text.folder}: expected text in the tokens of the model, got another tokenizer; encode the text "
                    "with it"
                )
            yield text
            return
        with tempfile.TemporaryDirectory(prefix="warmstart-", ignore_cleanup_errors=True) as folder:  # Windows does not
            yield Corpus.encode(  # delete files that are memory-mapped
                text, self.tokenizer_, cache_dir=folder, progress=progress, **reading
            )

    def evaluate(
        self,
        text: Corpus | Text,
        *,
        progress: Progress | None = None,
        **reading: Any,
    ) -> dict[str, Any]:
        """Score a text. It is read as the fields of `warmstart.formats.Reading` say, such as ``split_documents``.

        Returns
        -------
        dict
            ``perplexity`` and ``bits_per_byte`` of the model; ``experts``, the perplexity of each expert alone;
            ``shares``, the mean share of each expert in the probability of the text; ``contexts``, the perplexity of
            each context of the network alone; ``unigram_perplexity`` and ``bigram_perplexity`` of models of the
            training text, the bigram model with absolute discounting; ``tokens`` (each end of a document is one),
            ``documents``, ``bytes``, ``unknown_tokens`` (they make bits per byte too small) and ``seconds``.
        """
        check_is_fitted(self, "tokenizer_")
        began = time.perf_counter()
        with self._encoded(text, reading, progress) as corpus:
            scores = self.mixture_.score(corpus.tokens, corpus.documents, self._workers, progress)
            nats = -float(scores.log_probs.mean())
            parts = {"experts": _perplexities(scores.experts), "shares": scores.shares}
            if scores.contexts:
                parts["contexts"] = _perplexities(scores.contexts)
            result: dict[str, Any] = {
                "perplexity": float(np.exp(nats)),
                "bits_per_byte": float(nats * corpus.n_tokens / np.log(2) / corpus.n_bytes),
                "tokens": corpus.n_tokens,
                "documents": corpus.n_documents,
                "bytes": corpus.n_bytes,
                "unknown_tokens": corpus.n_unknown,
                **parts,
            }
            if self.ngrams_ is not None:
                unigram, bigram = self.ngrams_.cross_entropies(corpus.tokens)
                result |= {"unigram_perplexity": float(np.exp(unigram)), "bigram_perplexity": float(np.exp(bigram))}
            return result | {"seconds": round(time.perf_counter() - began, 3)}

    @property
    def _network(self) -> NearShallowModel:
        check_is_fitted(self, "tokenizer_")
        if self.model_ is None:
            raise InputError("expected a model with a network, got counts alone; fit it with contexts such as radial")
        return self.model_

    def perplexity(self, text: Corpus | Text) -> float:
        """Return the perplexity of a corpus, of files or of an iterable of strings."""
        return float(self.evaluate(text)["perplexity"])

    def score(self, text: Corpus | Text, y: None = None) -> float:
        """Return minus the bits per byte of a text: higher is better, whatever the tokenizer."""
        return -float(self.evaluate(text)["bits_per_byte"])

    def predict_proba(self, ids: ArrayLike) -> NDArray[np.floating]:
        """Return the probability of each token to come next.

        Parameters
        ----------
        ids : (n,) array-like or tensor of int, or (batch, n), or a list of lists of any lengths
            Token ids from the beginning of the document, or of each document. May be empty.

        Returns
        -------
        (V,), or (batch, V), float64
        """
        check_is_fitted(self, "tokenizer_")
        several = ids.ndim > 1 if hasattr(ids, "ndim") else isinstance(ids, list | tuple) and any(map(np.ndim, ids))
        if several:
            rows = [self._stream(self._checked(row)).row() for row in ids]  # type: ignore[union-attr]
            return np.stack(rows) if rows else np.empty((0, self.tokenizer_.get_vocab_size()))
        return self._stream(self._checked(ids)).row()

    def explain(self, ids: ArrayLike, top: int = 5) -> Explanation:
        """Return what speaks for the most probable next tokens: experts, n-grams, and earlier places of the document.

        Parameters
        ----------
        ids : (n,) array-like or tensor of int
            Token ids from the beginning of the document. May be empty.
        top : int
            Number of tokens.
        """
        return self._stream(self._checked(ids)).explain(top)

    def _stream(self, history: NDArray[np.int64]) -> Stream:
        stream = Stream(self.mixture_)
        stream.advance(history.tolist())
        return stream

    def _checked(self, ids: ArrayLike) -> NDArray[np.int64]:
        check_is_fitted(self, "tokenizer_")
        return whole_numbers("token ids", ids, self.tokenizer_.get_vocab_size()).astype(np.int64)

    def generate(
        self, prompt: str = "", max_new_tokens: int = 60, temperature: float = 0.8, top_p: float = 0.95, seed: int = 0
    ) -> str:
        """Return a continuation of a prompt. It ends where the model ends the document, or after ``max_new_tokens``.

        The two are one text: a continuation in whole words begins with a space.
        """
        check_is_fitted(self, "tokenizer_")
        ids = encoded(self.tokenizer_, prompt, "prompt")
        tokens = self._stream(np.array(ids, np.int64)).generate(max_new_tokens, temperature, top_p, seed)
        return continuation(self.tokenizer_, ids, tokens)

    def to_torch(self) -> "NearShallowLM":
        """Return a PyTorch module with a copy of the network's weights. What it saves is a model folder."""
        from warmstart.layers import NearShallowLM

        module = NearShallowLM.from_model(self._network)
        tokenizer = self.tokenizer_.to_str(pretty=False).encode()
        module.beside = folders.beside_network(module.config, tokenizer, self.unigrams_, self._facts(tokenizer))
        return module

    def state_dict(self) -> "dict[str, torch.Tensor]":
        """Return the weights of the network as PyTorch tensors by name."""
        weights: dict[str, torch.Tensor] = self.to_torch().state_dict()
        return weights

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder, whole or not at all; `warmstart.folder` lists its files."""
        check_is_fitted(self, "tokenizer_")
        tokenizer = self.tokenizer_.to_str(pretty=False).encode()
        facts = self._facts(tokenizer)
        pruned = facts["pruned"]
        arrays: dict[str, Any] = {"unigrams": self.unigrams_}
        extra: dict[str, folders.Content] = {"tokenizer.json": tokenizer}
        experts, gate = self.mixture_.experts, self.mixture_.gate
        facts["gate"] = list(gate.sizes)
        arrays["gate"] = gate.weights
        if experts.classes:
            arrays["classes"] = np.stack([model.labels for model in experts.classes]).astype(np.int32)
        if pruned:
            tables = dict(zip(folders.CLASSES, (model.model for model in experts.classes), strict=False))
            if experts.ngrams is not None:
                tables[folders.NGRAMS] = experts.ngrams
            extra |= {name: model.save for name, model in tables.items()}
            facts["tables"] = {name: model.n_ngrams for name, model in tables.items()}
        if self.counts_ is not None and not pruned:
            extra[folders.COUNTS] = self.counts_.save
        whole = {"language_model": facts}
        whole |= {CHECKSUMS: checksums(arrays, whole)}
        extra[folders.MIXTURE] = lambda path: save_arrays(path, arrays, whole)
        folders.save_model(Path(folder), self.model_, extra)

    def _facts(self, tokenizer: bytes) -> dict[str, Any]:
        """Return what a model folder says of the model beside its arrays."""
        recipe, parameters = self._recipe(), self.get_params()
        del parameters["n_jobs"]  # of the machine
        sizes = {name: recipe.network.get(name) for name in SIZES if self.model_ is not None}
        return {
            "format": folders.MIXTURE_FORMAT,
            "parameters": parameters | sizes | {"contexts": recipe.contexts, "order": recipe.order},
            "tokenizer": zlib.crc32(tokenizer),
            "bytes": self.report_["bytes"],
            "pruned": self.counts_ is None or any(self.report_.get("prune", [])),
        }

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, n_jobs: int | None = None) -> Self:
        """Read a folder that `save_pretrained` wrote. What the counts determine is solved again.

        The estimator has the parameters of the one that was saved, and ``n_jobs``.

        Raises
        ------
        InputError
            The folder is missing or incomplete, a file is damaged or of another model, or the folder holds something
            else.
        """
        folder = Path(folder)
        network = folders.load_model(folder) if folders.has_network(folder) else None
        arrays, facts, _ = folders.read_mixture(folder)
        tokenizer = load_tokenizer(folder)
        unigrams, separator = arrays["unigrams"], int(tokenizer.get_vocab()[SEPARATOR])
        if network is not None and (network.config.vocab_size, network.config.separator) != (unigrams.size, separator):
            raise InputError(
                f"{folder}/{folders.CONFIG}: expected {unigrams.size} tokens and separator {separator}, got "
                f"{network.config.vocab_size} and {network.config.separator}; fit again"
            )
        counts = None if facts["pruned"] else _read_counts(folder, unigrams, tokenizer)
        parameters = facts["parameters"]
        contexts, prune = tuple(parameters["contexts"]), parameters["prune"]
        fixed = {"contexts": contexts, "prune": None if prune is None else tuple(prune), "n_jobs": n_jobs}
        model = cls(**parameters | fixed)
        experts = Experts(separator, class_prior(unigrams), cache="cache" in contexts, network=network)
        if "ngrams" in contexts:
            experts.ngrams = _read_tables(folder, folders.NGRAMS, facts) if counts is None else KneserNey(counts)
        for labels, name in zip(arrays.get("classes", []), folders.CLASSES, strict=False):
            tables = _read_tables(folder, name, facts) if counts is None else None
            experts.classes += (ClassModel.of(labels.astype(np.int64), unigrams, counts, tables, model._workers),)
        if "gate" in facts:
            mixture = Mixture(experts, Gate(tuple(facts["gate"]), arrays["gate"]))
        else:  # a network alone, of an older version or saved by itself
            mixture = Mixture.alone(experts)
        model._set(tokenizer, counts, unigrams, Solved(network, mixture, {}), {}, facts["bytes"])
        return model

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags


def _read_counts(folder: Path, unigrams: NDArray[np.int64], tokenizer: "Tokenizer") -> NGramCounts:
    path = folder / folders.COUNTS
    counts = NGramCounts.load(path)
    if counts.vocabulary != vocabulary_digest(tokenizer.get_vocab()):
        raise InputError(f"{path}: expected counts in the tokens of tokenizer.json, got those of another tokenizer")
    if not np.array_equal(counts.levels[0].counts, unigrams):
        raise InputError(f"{path}: expected the counts of the model, got those of another text; fit again")
    return counts


def _read_tables(folder: Path, name: str, facts: dict[str, Any]) -> BackoffModel:
    tables = BackoffModel.load(folder / name)
    if tables.n_ngrams != facts["tables"].get(name):
        raise InputError(
            f"{folder / name}: expected {facts['tables'].get(name)} n-grams of each length, got {tables.n_ngrams}; the "
            "tables are those of another model, fit again"
        )
    return tables


def _count(corpus: Corpus, order: int, workers: int, progress: Progress | None) -> NGramCounts:
    return count_corpus(corpus, order, workers=workers, progress=progress).loaded()


def _perplexities(losses: dict[str, float]) -> dict[str, float]:
    return {name: float(np.exp(loss)) for name, loss in losses.items()}
