"""The near-shallow language model as an estimator: text in, weights, scores and text out."""

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
from warmstart.counts import NGrams, bigram_counts
from warmstart.documents import Sources
from warmstart.errors import InputError
from warmstart.files import load_arrays, save_arrays
from warmstart.folder import Content, load_model, save_model
from warmstart.near_shallow import PRESETS, Config, Fitter, token_losses
from warmstart.progress import Progress, peak_memory
from warmstart.solution import class_prior
from warmstart.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch

    from warmstart.layers import NearShallowLM

SCORED = 8192  # targets scored between two reports of progress


class WarmStartLM(BaseEstimator):  # type: ignore[misc]
    """A near-shallow language model, counted and solved from text without a gradient.

    One pass counts the pairs of the context, one more the hidden layers; cost is linear in the text and memory is
    ``radius * bits * vocab_size * 8`` bytes for the counts, whatever the length of the text.

    Parameters
    ----------
    preset : {"potato", "micro", "small", "base", "large"}
        Sizes from 0.8 to 53 million weights with the default contexts at a vocabulary of 8,192.
    bits, radius, block_size : int, optional
        Instead of the preset's: dimension of the cipher vectors, tokens in the radial and attended contexts, tokens in
        a block.
    contexts : tuple of str
        Some of "radial", "attended", "block", "document" (see `warmstart.contexts`).
    vocab_size : int
        Largest vocabulary of the byte-level BPE that `fit` trains on strings.
    smoothing : float or "fit"
        Co-occurrences added to each feature, spread over the tokens in proportion to their frequency.
    temperature : float or "fit"
        1 is the published formula; "fit" finds one scalar a group of features.

    Attributes
    ----------
    model_ : warmstart.near_shallow.NearShallowModel
    tokenizer_ : tokenizers.Tokenizer
        Its ids are frequency ranks.
    ngrams_ : warmstart.counts.NGrams
        Unigram and bigram counts of the training text.
    report_ : dict
        Seconds, tokens per second, memory, temperatures and smoothing of the fit.

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
        contexts: tuple[str, ...] = ("radial", "block", "document"),
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
            A `warmstart.corpus.Corpus` (any tokenizer), or what `Corpus.build` reads; None is Python's documentation.
        y : None
            Not used.
        workers : int
            Threads; the result does not depend on them.
        progress : callable of (stage, done, total), optional

        Raises
        ------
        InputError
            A setting, a path or the text is at fault.
        bitcipher.CapacityError
            Too few bits for the vocabulary.
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
        """Give the same architecture random weights instead, PyTorch's defaults, to compare with.

        A normal embedding of deviation 1, uniform matrices within ``1 / sqrt(rows)``; attention starts equal.
        """
        import torch
        from torch import nn

        from warmstart.layers import NearShallowLM

        began = time.perf_counter()
        config = self._config(corpus)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = NearShallowLM(config)
            nn.init.normal_(module.embedding.weight)
            for name, weight in module.named_parameters():
                if name.endswith(("values.weight", "output.weight")):
                    nn.init.uniform_(weight, -(weight.shape[0] ** -0.5), weight.shape[0] ** -0.5)
        self.model_ = module.to_model()
        self._describe(corpus, {"initialise": time.perf_counter() - began})
        return self

    def _describe(self, corpus: Corpus, seconds: dict[str, float]) -> None:
        """Set what every fit leaves beside the model."""
        began = time.perf_counter()
        self.tokenizer_ = corpus.tokenizer
        self.ngrams_ = NGrams(np.asarray(corpus.counts), bigram_counts(corpus.tokens, corpus.vocab_size))
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
        own = {
            name: getattr(self, name) for name in ("bits", "radius", "block_size") if getattr(self, name) is not None
        }
        shape = {**PRESETS[self.preset], **own}
        return Config(corpus.vocab_size, corpus.separator, contexts=tuple(self.contexts), **shape)

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
            ``perplexity``, ``bits_per_byte``, ``tokens`` (the end of each document is one), ``documents``, ``bytes``,
            ``unknown_tokens`` (they make bits per byte too small), ``unigram_perplexity``, ``bigram_perplexity``
            (absolute discounting, counted from the training text), ``contexts`` (each alone), ``seconds``.
        """
        check_is_fitted(self, "model_")
        began = time.perf_counter()
        with contextlib.ExitStack() as stack:
            if not isinstance(text, Corpus):
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="warmstart-"))
                text = Corpus.encode(
                    text, self.tokenizer_, split_documents=split_documents, cache_dir=folder, progress=progress
                )
            config, state = self.model_.config, self.model_.start()
            prior = class_prior(self.ngrams_.unigrams)
            total = np.zeros(1 + len(config.contexts))
            for chunk in read_all(text.tokens, text.documents, config.window, SCORED):
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
        """Return the perplexity of a text: a corpus, paths, or an iterable of strings."""
        return float(self.evaluate(text)["perplexity"])

    def predict_proba(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Return the distribution of the next token.

        Parameters
        ----------
        ids : (n,) array-like of int
            Token ids since the document began; may be empty.

        Returns
        -------
        (V,) float32
        """
        check_is_fitted(self, "model_")
        config = self.model_.config
        given = np.asarray(ids, dtype=np.int64).reshape(-1)
        if given.size and (given.min() < 0 or given.max() >= config.vocab_size):
            largest = config.vocab_size - 1
            raise InputError(f"expected token ids from 0 to {largest}, got {given.min()} to {given.max()}")
        tokens = np.concatenate([[config.separator], given, [config.separator]])
        documents = np.flatnonzero(tokens == config.separator)
        state = self.model_.start()
        for chunk in read_all(tokens, documents, config.window):
            inputs = self.model_.inputs(chunk, state)
        return np.asarray(softmax(np.sum(self.model_.logits([X[-1:] for X in inputs]), axis=0))[0])

    def generate(
        self, prompt: str = "", *, max_tokens: int = 60, temperature: float = 0.8, top_p: float = 0.95, seed: int = 0
    ) -> str:
        """Return text that goes on from a prompt; it ends early where the model ends its document."""
        import torch

        config = self.model_.config
        ids = [config.separator, *self.tokenizer_.encode(prompt, add_special_tokens=False).ids]
        out = (
            self.to_torch()
            .generate(
                torch.tensor([ids]),
                max_tokens,
                temperature=temperature,
                top_p=top_p,
                generator=torch.Generator().manual_seed(seed),
            )[0, len(ids) :]
            .tolist()
        )
        if config.separator in out:
            out = out[: out.index(config.separator)]
        return str(self.tokenizer_.decode(out))

    def to_torch(self) -> "NearShallowLM":
        """Return the model as a `torch.nn.Module` with these weights."""
        check_is_fitted(self, "model_")
        from warmstart.layers import NearShallowLM

        return NearShallowLM.from_model(self.model_)

    def state_dict(self) -> "dict[str, torch.Tensor]":
        """Return the weights by name, as PyTorch tensors."""
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
            The folder is missing, incomplete, or holds something else.
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
        self = cls(bits=config.bits, radius=config.radius, block_size=config.block_size, contexts=config.contexts)
        self.model_, self.tokenizer_ = model, tokenizer
        shape = (config.vocab_size, config.vocab_size)
        bigrams = sparse.csr_array((arrays["count"], arrays["next"], arrays["indptr"]), shape=shape)
        self.ngrams_ = NGrams(arrays["unigrams"], bigrams)
        return self
