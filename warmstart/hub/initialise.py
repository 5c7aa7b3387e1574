"""A new decoder of Hugging Face beside the counts of a corpus, from one statistic: tables, gate, and the start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from warmstart.adapters.initialise import initialise, save_folder
from warmstart.adapters.report import LoadReport
from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.folder import COUNTS
from warmstart.hub.counted import CountedForCausalLM
from warmstart.ngrams import NGramCounts, count_ngrams
from warmstart.progress import Progress
from warmstart.solving import COUNT_CONTEXTS, Recipe, solve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXTS = ("ngrams", "cache")
ORDER = 5


def counted_recipe(
    contexts: tuple[str, ...] = CONTEXTS, order: int = ORDER, prune: tuple[int, ...] = (), **options: Any
) -> Recipe:
    """Return what to solve beside a decoder.

    Raises
    ------
    InputError
        A context is not one of counts, or the order is below 2: the decoder starts from pairs. See also `Recipe`.

    Examples
    --------
    >>> counted_recipe(order=3).contexts
    ('ngrams', 'cache')
    """
    if unknown := [name for name in contexts if name not in COUNT_CONTEXTS]:
        raise InputError(f"contexts: expected some of {', '.join(COUNT_CONTEXTS)} beside a decoder, got {unknown}")
    recipe = Recipe(contexts, order, prune, **options)
    if recipe.counted_order < 2:
        raise InputError(f"order: expected at least 2, because the decoder starts from pairs, got {order}")
    return recipe


@dataclass(frozen=True, eq=False)
class CountedStart:
    """A model that was made, and what was found on the way.

    Attributes
    ----------
    model : CountedForCausalLM
    tokenizer : PreTrainedTokenizerFast
    counts : NGramCounts
        The statistic. Training needs it, to leave the text out of the counts.
    report : LoadReport
        Of the decoder.
    solved : dict
        Sizes of the tables, seconds, and perplexities of counted text with its part left out, without the decoder.
    """

    model: CountedForCausalLM
    tokenizer: PreTrainedTokenizerBase
    counts: NGramCounts
    report: LoadReport
    solved: dict[str, Any]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model, the tokenizer, and the statistic as ``counts.safetensors``, whole or not at all."""
        save_folder(folder, self.model, self.tokenizer, {COUNTS: self.counts.save})


def initialise_counted(
    corpus: Corpus,
    arch: str,
    config: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
    *,
    workers: int = 1,
    progress: Progress | None = None,
    **options: Any,
) -> CountedStart:
    """Make a decoder that starts as a bigram model, and stands beside the counts of the same corpus.

    Parameters
    ----------
    corpus : Corpus
    arch, config
        See `warmstart.adapters.initialise.initialise`.
    recipe : Recipe, optional
        See `counted_recipe`.
    workers : int
        Number of threads. The result does not depend on it.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.
    **options
        ``seed``, ``scale``, ``heads`` of `initialise`.

    Raises
    ------
    InputError
        See `initialise` and `warmstart.solving.solve`.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> texts = [" ".join(np.random.default_rng(i).choice(list("abcdefghijklmnop"), 400)) for i in range(20)]
    >>> fields = {"n_embd": 32, "n_layer": 1, "n_head": 2}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     corpus = Corpus.build(texts, tokenizer="words", cache_dir=folder)
    ...     start = initialise_counted(corpus, "gpt2", fields, counted_recipe(order=2))
    >>> start.model.config.counted_size == corpus.vocab_size, start.model.config.experts[:2]
    (True, ['ngrams', 'cache'])
    """
    recipe = counted_recipe() if recipe is None else recipe
    vocabulary = corpus.tokenizer.get_vocab()
    text = corpus.tokens, corpus.documents, corpus.vocab_size
    counts = count_ngrams(*text, recipe.counted_order, vocabulary=vocabulary, workers=workers, progress=progress)
    base, tokenizer, report = initialise(corpus, arch, config, statistics=counts, progress=progress, **options)
    solved = solve(counts, recipe, workers, progress)
    model = CountedForCausalLM.beside(base, solved.mixture)
    model.config.prune = solved.report.get("prune", [])
    return CountedStart(model, tokenizer, counts, report, solved.report)
