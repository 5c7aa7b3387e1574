"""`WarmStartLM`: the near-shallow language model as an estimator that fits, scores and writes text."""

import contextlib
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from warmstart._softmax import softmax
from warmstart.contexts import read_all
from warmstart.corpus import Corpus
from warmstart.counts import NGrams
from warmstart.documents import Sources
from warmstart.errors import InputError
from warmstart.files import load_arrays, save_arrays
from warmstart.folder import Content, load_model, save_model
from warmstart.near_shallow import PRESETS, Config, Fitter, token_losses
from warmstart.ngrams import count_ngrams
from warmstart.progress import Progress, peak_memory
from warmstart.solution import class_prior
from warmstart.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch

    from warmstart.layers import NearShallowLM

SCORED_TARGETS = 8192  # targets scored between two reports of progress


class WarmStartLM(BaseEstimator):  # type: ignore[misc]
    """A near-shallow language model whose weights are computed from counts of text, without a gradient.

    `fit` reads the text once for the output layer, and once more if a context has layers of its own. Time is linear in
    the length of the text. The counts take ``8 * radius * bits * vocab_size`` bytes, whatever its length.

    Parameters
    ----------
    preset : {"potato", "micro", "small", "base", "large"}
        Size of the model: from 0.7 to 52 million weights at a vocabulary of 8,192.
    bits, radius, block_size : int, optional
        Dimension of the cipher vectors, number of tokens in the radial and attended contexts, number of tokens in a
        block. By default those of the preset.
    contexts : tuple of str
        What the next token is predicted from: "radial", "attended", "block", "document", "memory" (see
        `warmstart.contexts`). The default suits a model that is trained further: "radial" alone has nothing
        between embedding and output to train, and "block" costs time for little. For a model that is used as it is,
        take ("radial", "memory"): the perplexity is 172 in place of 201 (novels, preset base, ``python -m benchmarks
        lm``), but `warmstart finetune` cannot train it.
    vocab_size : int
        Largest vocabulary of the byte-level BPE tokenizer that `fit` trains, unless it is given a `Corpus`.
    smoothing : float or "fit"
        Pseudo-counts added to each feature, divided among the tokens in proportion to their frequency.
    temperature : float or "fit"
        Factor of the weights. 1 is the published formula. "fit" finds one factor for each group of features.

    Attributes
    ----------
    model_ : warmstart.near_shallow.NearShallowModel
    tokenizer_ : tokenizers.Tokenizer
        Its ids are frequency ranks.
    ngrams_ : warmstart.counts.NGrams
        Unigram and bigram counts of the training text.
    report_ : dict
        Sizes, seconds, tokens per second, peak memory, temperatures and smoothing of the fit.

    References
    ----------
    Williams and Zhao 2023: arXiv 2311.07498, 2311.07510, 2311.11012.

    Examples
    --------
    >>> model = WarmStartLM(preset="potato", vocab_size=300).fit(["the cat sat on the mat. " * 40] * 20)
    >>> model.perplexity(["the cat sat on the mat. the cat sat."]) < 60
    True
    """

    def __init__(
        self,
        preset: str = "base",
        *,
        bits: int | None = None,
        radius: int | None = None,
        block_size: int | None = None,
        contexts: tuple[str, ...] = ("radial", "document"),
        vocab_size: int = 8192,
        smoothing: float | str = "fit",
        temperature: float | str = "fit",
    ) -> None:
        self.preset = preset
        self.bits = bits
        self.radius = radius
        self.block_size = block_size
        self.contexts = contexts
        self.vocab_size = vocab_size
        self.smoothing = smoothing
        self.temperature = temperature

    def fit(
        self,
        corpus: Corpus | Sources,
        y: None = None,
        *,
        workers: int = 1,
        progress: Progress | None = None,
    ) -> Self:
        """Count a corpus and solve the counts.

        Parameters
        ----------
        corpus : Corpus, paths, or an iterable of strings
            A `warmstart.Corpus` with any tokenizer, or sources of `Corpus.build`. None is Python's documentation.
        y : None
            Not used.
        workers : int
            Number of threads. The result does not depend on it.
        progress : callable, optional
            Called as ``progress(stage, done, total)``.

        Raises
        ------
        InputError
            A parameter, a path or the text cannot be used.
        bitcipher.CapacityError
            There are fewer codes of so many bits than tokens.
        """
        began = time.perf_counter()
        if not isinstance(corpus, Corpus):
            corpus = Corpus.build(corpus, vocab_size=self.vocab_size, progress=progress)
        built = time.perf_counter()
        fitter = Fitter(
            corpus.tokens,
            corpus.documents,
            corpus.counts,
            self._config(corpus),
            smoothing=self.smoothing,
            temperature=self.temperature,
            workers=workers,
            progress=progress,
        )
        self.model_ = fitter.fit()
        self._describe(corpus, {"corpus": built - began, **fitter.report.seconds})
        self.report_ |= {"smoothing": fitter.report.smoothing, "temperatures": fitter.report.temperatures}
        return self

    def initialise(self, corpus: Corpus, seed: int = 0) -> Self:
        """Set the random weights that `warmstart.NearShallowLM` starts with, for a cold start to compare with."""
        import torch

        from warmstart.layers import NearShallowLM

        began = time.perf_counter()
        config = self._config(corpus)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = NearShallowLM(config)
        self.model_ = module.to_model()
        self._describe(corpus, {"initialise": time.perf_counter() - began})
        return self

    def _describe(self, corpus: Corpus, seconds: dict[str, float]) -> None:
        """Set the tokenizer, the bigram model and the report."""
        began = time.perf_counter()
        self.tokenizer_ = corpus.tokenizer
        self.ngrams_ = NGrams.of(count_ngrams(corpus.tokens, corpus.documents, corpus.vocab_size, order=2))
        seconds = {**seconds, "bigrams": time.perf_counter() - began}
        self.report_: dict[str, Any] = {
            "tokens": corpus.n_tokens,
            "documents": corpus.n_documents,
            "bytes": corpus.n_bytes,
            "vocab_size": corpus.vocab_size,
            "parameters": self.model_.config.n_parameters,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "tokens_per_second": round(corpus.n_tokens / sum(seconds.values())),
            "peak_memory_bytes": peak_memory(),
        }

    def _config(self, corpus: Corpus) -> Config:
        if self.preset not in PRESETS:
            raise InputError(f"preset: expected one of {', '.join(PRESETS)}, got {self.preset!r}")
        sizes: dict[str, Any] = {"bits": self.bits, "radius": self.radius, "block_size": self.block_size}
        sizes = PRESETS[self.preset] | {name: size for name, size in sizes.items() if size is not None}
        return Config(corpus.vocab_size, corpus.separator, contexts=tuple(self.contexts), **sizes)

    def evaluate(
        self,
        text: Corpus | Sources,
        *,
        split_documents: str | None = None,
        workers: int = 1,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Score a text.

        Returns
        -------
        dict
            ``perplexity`` and ``bits_per_byte`` of the model, ``contexts`` (the perplexity of each context alone),
            ``unigram_perplexity`` and ``bigram_perplexity`` (models of the training text, the bigram model with
            absolute discounting), ``tokens`` (each end of a document is one), ``documents``, ``bytes``,
            ``unknown_tokens`` (they make bits per byte too small) and ``seconds``.
        """
        check_is_fitted(self, "model_")
        began = time.perf_counter()
        with contextlib.ExitStack() as stack:
            if not isinstance(text, Corpus):
                temporary = tempfile.TemporaryDirectory(prefix="warmstart-", ignore_cleanup_errors=True)
                folder = stack.enter_context(temporary)  # Windows does not delete files that are memory-mapped
                text = Corpus.encode(
                    text, self.tokenizer_, split_documents=split_documents, cache_dir=folder, progress=progress
                )
            config, state = self.model_.config, self.model_.start()
            prior = class_prior(self.ngrams_.unigrams)
            total = np.zeros(1 + len(config.contexts))
            for chunk in read_all(text.tokens, text.documents, config.window, SCORED_TARGETS):
                total += token_losses(self.model_, chunk, state, prior, workers).sum(axis=1)
                if progress:
                    progress("scoring", chunk.first + chunk.targets.size - 1, text.n_tokens)
            mean = total / text.n_tokens
            unigram, bigram = self.ngrams_.cross_entropies(text.tokens)
            return {
                "perplexity": float(np.exp(mean[0])),
                "bits_per_byte": float(total[0] / np.log(2) / text.n_bytes),
                "tokens": text.n_tokens,
                "documents": text.n_documents,
                "bytes": text.n_bytes,
                "unknown_tokens": text.n_unknown,
                "unigram_perplexity": float(np.exp(unigram)),
                "bigram_perplexity": float(np.exp(bigram)),
                "contexts": {name: float(np.exp(x)) for name, x in zip(config.contexts, mean[1:], strict=True)},
                "seconds": round(time.perf_counter() - began, 3),
            }

    def perplexity(self, text: Corpus | Sources) -> float:
        """Return the perplexity of a corpus, of files or of an iterable of strings."""
        return float(self.evaluate(text)["perplexity"])

    def predict_proba(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Return the probability of each token to come next.

        Parameters
        ----------
        ids : (n,) array-like of int
            Token ids from the beginning of the document. May be empty.

        Returns
        -------
        (V,) float32
        """
        check_is_fitted(self, "model_")
        config = self.model_.config
        history = np.asarray(ids, dtype=np.int64).reshape(-1)
        if history.size and (history.min() < 0 or history.max() >= config.vocab_size):
            largest = config.vocab_size - 1
            raise InputError(f"expected token ids from 0 to {largest}, got {history.min()} to {history.max()}")
        tokens = np.concatenate([[config.separator], history, [config.separator]])
        documents = np.flatnonzero(tokens == config.separator)
        state = self.model_.start()
        for chunk in read_all(tokens, documents, config.window):
            inputs = self.model_.inputs(chunk, state)
        return np.asarray(softmax(np.sum(self.model_.logits([X[-1:] for X in inputs]), axis=0))[0])

    def generate(
        self, prompt: str = "", *, max_tokens: int = 60, temperature: float = 0.8, top_p: float = 0.95, seed: int = 0
    ) -> str:
        """Return a continuation of a prompt. It ends where the model ends the document, or after ``max_tokens``."""
        import torch

        config = self.model_.config
        ids = [config.separator, *self.tokenizer_.encode(prompt, add_special_tokens=False).ids]
        generator = torch.Generator().manual_seed(seed)
        generated = self.to_torch().generate(torch.tensor([ids]), max_tokens, temperature, top_p, generator)
        tokens = generated[0, len(ids) :].tolist()
        if config.separator in tokens:
            tokens = tokens[: tokens.index(config.separator)]
        return str(self.tokenizer_.decode(tokens))

    def to_torch(self) -> "NearShallowLM":
        """Return a PyTorch module with a copy of the weights."""
        check_is_fitted(self, "model_")
        from warmstart.layers import NearShallowLM

        return NearShallowLM.from_model(self.model_)

    def state_dict(self) -> "dict[str, torch.Tensor]":
        """Return the weights as PyTorch tensors by name."""
        return self.to_torch().state_dict()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors, config.json, tokenizer.json and counts.safetensors, whole or not at all."""
        check_is_fitted(self, "model_")
        B = self.ngrams_.bigrams
        counts = {"unigrams": self.ngrams_.unigrams, "count": B.data, "next": B.indices, "indptr": B.indptr}
        extra: dict[str, Content] = {
            "tokenizer.json": self.tokenizer_.to_str(pretty=False).encode(),
            "counts.safetensors": lambda path: save_arrays(path, counts, {"counts": "unigrams and bigrams"}),
        }
        save_model(Path(folder), self.model_, extra)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read a folder that `save_pretrained` wrote.

        Raises
        ------
        InputError
            The folder is missing or incomplete, or holds something else.
        """
        folder = Path(folder)
        model = load_model(folder)
        config = model.config
        arrays, facts = load_arrays(folder / "counts.safetensors")
        if "counts" not in facts or arrays["unigrams"].shape != (config.vocab_size,):
            raise InputError(f"{folder}/counts.safetensors: expected the counts of this model, got others; fit again")
        tokenizer = load_tokenizer(folder)
        if tokenizer.get_vocab_size() != config.vocab_size:
            raise InputError(
                f"{folder}/tokenizer.json: expected {config.vocab_size} tokens, got {tokenizer.get_vocab_size()}; "
                "fit again"
            )
        estimator = cls(bits=config.bits, radius=config.radius, block_size=config.block_size, contexts=config.contexts)
        estimator.model_, estimator.tokenizer_ = model, tokenizer
        shape = (config.vocab_size, config.vocab_size)
        bigrams = sparse.csr_array((arrays["count"], arrays["next"], arrays["indptr"]), shape=shape)
        estimator.ngrams_ = NGrams(arrays["unigrams"], bigrams)
        return estimator
