"""A new Hugging Face model from a corpus: configuration, tokenizer, and weights that start as a bigram model."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from warmstart.adapters.decoders import SCALE, load_into
from warmstart.adapters.families import SMALL, configuration, small_fields
from warmstart.adapters.report import LoadReport
from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.folder import resolved
from warmstart.ngrams import NGramCounts, count_ngrams
from warmstart.progress import Progress
from warmstart.tokenizer import SEPARATOR

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PADDING = "<|padding|>"  # not the end of a document: the collators of transformers train no padding
LARGEST = 500_000_000  # weights of a model whose sizes were not given


def initialise(
    corpus: Corpus,
    arch: str,
    config: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    scale: float = SCALE,
    heads: int | None = None,
    statistics: NGramCounts | None = None,
    progress: Progress | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, LoadReport]:
    """Make a model of ``transformers`` that starts as a bigram model of a corpus.

    Parameters
    ----------
    corpus : Corpus
    arch : str
        ``model_type`` of a decoder of ``transformers`` that `load_into` takes: gpt2, llama, and most others.
    config : mapping, optional
        Fields of the architecture's configuration, by its own names. ``vocab_size`` must have room for `PADDING` and
        may be larger. Default: a small model, see `warmstart.adapters.families.SMALL`.
    seed : int
        Seed of the weights that stay random.
    scale, heads, progress
        See `warmstart.adapters.load_into`.
    statistics : NGramCounts, optional
        Of the corpus, if it was counted before.

    Returns
    -------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerFast
        That of the corpus, and `PADDING`.
    report : LoadReport

    Raises
    ------
    InputError
        The extra `hf` is not installed, the architecture or a field is unknown, or the architecture refuses a value.
        See also `load_into`.
    """
    model = _model(corpus, arch, config, seed)
    tokenizer = wrapped_tokenizer(corpus.tokenizer, getattr(model.config, "max_position_embeddings", None))
    if statistics is None:
        vocabulary = corpus.tokenizer.get_vocab()
        statistics = count_ngrams(corpus.tokens, corpus.documents, corpus.vocab_size, order=2, vocabulary=vocabulary)
    report = load_into(model, statistics, tokenizer=tokenizer, scale=scale, heads=heads, progress=progress)
    tokenizer.add_special_tokens({"pad_token": PADDING})
    return model, tokenizer, report


def wrapped_tokenizer(tokenizer: Tokenizer, length: int | None = None) -> PreTrainedTokenizerBase:
    """Return a tokenizer of ``transformers`` with the separator as first and last token of a document.

    Parameters
    ----------
    tokenizer : Tokenizer
    length : int, optional
        Number of tokens that the model sees, if there is a limit.

    Raises
    ------
    InputError
        The extra `hf` is not installed.
    """
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise InputError("expected transformers, found none; pip install 'warmstart[hf]'") from error
    special: dict[str, Any] = {} if length is None else {"model_max_length": length}
    special |= dict.fromkeys(("bos_token", "eos_token"), SEPARATOR)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)  # type: ignore[no-untyped-call]


def _model(corpus: Corpus, arch: str, config: Mapping[str, Any] | None, seed: int) -> Any:
    """Return a model with random weights, or say what is wrong with its configuration."""
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise InputError("expected transformers, found none; pip install 'warmstart[hf]'") from error
    settings = _settings(corpus, arch, config)
    try:
        if config is None:  # parts for pictures or sound keep their own sizes
            with torch.device("meta"):
                found = sum(p.numel() for p in AutoModelForCausalLM.from_config(settings).parameters())  # type: ignore[no-untyped-call]
            if found > LARGEST:
                raise ValueError(f"a small one has {found:,} weights")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(settings)  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever the code of a family raises
        raise InputError(
            f"config: {arch} cannot be built from it: {error or type(error).__name__}; change its fields"
        ) from error


def _settings(corpus: Corpus, arch: str, config: Mapping[str, Any] | None) -> Any:
    """Return the configuration of an architecture, or say which field is wrong."""
    padding = corpus.tokenizer.get_vocab().get(PADDING, corpus.vocab_size)
    least = max(corpus.vocab_size, padding + 1)
    fields = small_fields(arch, SMALL | {"vocabulary": least})
    if config is not None:
        fields = dict(config)
    default = configuration(arch)
    known = {*default.to_dict(), *default.attribute_map}
    if unknown := sorted(fields.keys() - known):
        raise InputError(f"config: expected fields of {type(default).__name__}, got {', '.join(unknown)}")
    if fields.get("model_type", arch) != arch:
        raise InputError(f"config: expected model_type {arch!r}, got {fields['model_type']!r}")
    size = fields.setdefault("vocab_size", least)
    if not isinstance(size, int) or size < least:
        raise InputError(
            f"config: expected a vocab_size of at least {least}, the tokens of the corpus and padding, got {size!r}"
        )
    special = {"bos_token_id": corpus.separator, "eos_token_id": corpus.separator, "pad_token_id": padding}
    fields = {"tie_word_embeddings": False} | fields | special
    fields.pop("model_type", None)
    return configuration(arch, **fields)


def save_folder(
    folder: str | os.PathLike[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    extra: Mapping[str, Callable[[Path], object]] | None = None,
) -> None:
    """Write a folder for ``AutoModelForCausalLM.from_pretrained``, whole or not at all.

    Parameters
    ----------
    folder : path
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    extra : mapping of file name to callable, optional
        More files. The callable gets a path and writes the file to it.

    Raises
    ------
    InputError
        See `check_new`.
    """
    path = check_new(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as work:
        new = Path(work, "new")
        with _no_bar():
            model.save_pretrained(new)
        tokenizer.save_pretrained(str(new))
        for name, write in (extra or {}).items():
            write(new / name)
        if path.exists():
            path.rmdir()
        new.rename(path)


@contextlib.contextmanager
def _no_bar() -> Iterator[None]:
    """Let ``transformers`` show no progress of its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def check_new(folder: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a new folder. Call this before a long computation.

    Raises
    ------
    InputError
        The folder exists and is not empty, or cannot be made.
    """
    path = resolved(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: expected a new or an empty folder, got one with files; choose another name")
    above = next(parent for parent in path.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{path}: expected {above} to be a folder that can be written to; choose another place")
    return path
