"""What a gate costs on new text that was fitted on counted text, by what was left out of the counts meanwhile.

The experts are n-grams and a cache. The gate is fitted on text that the n-grams have counted, of which is left out

- nothing;
- each token alone: once from the counts of the n-grams that end with it;
- its part, a document or an eighth of it (see `warmstart.kneser_ney.KneserNey.left_out`): what the package does;

or on text that was never counted: the n-grams are those of one half of the text, the gate that of the other half.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import texts
from benchmarks.counted import CORES
from warmstart._threads import blocks, run_parts
from warmstart.backoff import Ids, Scores
from warmstart.kneser_ney import TARGETS_PER_BATCH, KneserNey
from warmstart.mixture import Experts, Mixture
from warmstart.ngrams import NGramCounts, count_ngrams, joined
from warmstart.sample import fit_mixture
from warmstart.solution import class_prior


class NothingLeftOut(KneserNey):
    """N-grams that see counted text as they see new text."""

    def left_out(self, tokens: Ids, documents: Ids, workers: int = 1) -> Scores:
        """Score a text with the counts of everything."""
        return self.score(tokens, documents, workers)


class TokenLeftOut(KneserNey):
    """N-grams that see counted text without the token that they predict, but with the rest of its document."""

    def left_out(self, tokens: Ids, documents: Ids, workers: int = 1) -> Scores:
        """Score counted text, each target as a part of its own."""
        ends = np.flatnonzero(tokens == self.separator)
        batches = [
            [slice(i, i + 1) for i in range(batch.start + 1, batch.stop + 1)]
            for batch in blocks(tokens.size - 1, TARGETS_PER_BATCH)
        ]
        scores = run_parts(lambda spans: self._without(tokens, ends, spans), batches, workers)
        return Scores(*(np.concatenate(arrays) for arrays in zip(*scores, strict=True)))


ARMS = {"nothing": NothingLeftOut, "the token alone": TokenLeftOut, "its part": KneserNey}
HALVES = ("half is counted, the gate fitted on the other half", "the same gate, all is counted")


def gates(data: Path, name: str, vocabulary: int, order: int) -> dict[str, Any]:
    """Fit the gate every way.

    Returns
    -------
    dict
        By arm: ``sample``: perplexity of the sample on which the gate was fitted, as it saw it; ``valid``: perplexity
        of new text; ``ngrams``: the same by the n-grams alone, on both.
    """
    text = texts.load(data, name, vocabulary)
    counts = count_ngrams(*text.parts["train"], text.vocab_size, order, workers=CORES)
    result = {}
    for arm, kind in ARMS.items():
        fitted, losses = fit_mixture(experts(kind(counts), counts), counts, workers=CORES)
        result[arm] = measured(fitted, text, losses)
    counted, other = (counts_of(half, counts, n) for half, n in zip(halves(counts), (order, 1), strict=True))
    fitted, losses = fit_mixture(experts(NothingLeftOut(counted), counted), other, workers=CORES)
    result[HALVES[0]] = measured(fitted, text, losses)
    result[HALVES[1]] = measured(Mixture(experts(KneserNey(counts), counts), fitted.gate), text, losses)
    return result


def experts(ngrams: KneserNey, counts: NGramCounts) -> Experts:
    """Return n-grams and a cache, not yet weighed."""
    return Experts(counts.separator, class_prior(counts.levels[0].counts), ngrams=ngrams, cache=True)


def measured(fitted: Mixture, text: texts.Text, losses: dict[str, float]) -> dict[str, Any]:
    """Return what an arm has on its sample and on validation text."""
    scores = fitted.score(*text.parts["valid"], CORES)
    sample, ngrams = (float(np.exp(losses[name])) for name in ("mixture", "ngrams"))
    alone = float(np.exp(scores.experts["ngrams"]))
    return {"sample": sample, "valid": text.perplexity(scores.log_probs), "ngrams": {"sample": ngrams, "valid": alone}}


def halves(counts: NGramCounts) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Return the documents of a statistic in two halves, in the order of their digests; a single one is cut.

    Examples
    --------
    >>> counts = count_ngrams(np.array([0, 1, 2, 1, 2, 0]), np.array([0, 5]), vocab_size=3, order=1)
    >>> [[document.tolist() for document in half] for half in halves(counts)]
    [[[1, 2]], [[1, 2]]]
    """
    documents = counts.documents.all()
    if len(documents) == 1:
        middle = documents[0].size // 2
        documents = [documents[0][:middle], documents[0][middle:]]
    ends = np.cumsum([document.size for document in documents])
    first = int(np.argmin(np.abs(ends[:-1] - ends[-1] / 2))) + 1
    return documents[:first], documents[first:]


def counts_of(documents: list[NDArray[Any]], like: NGramCounts, order: int) -> NGramCounts:
    """Return the statistic of some documents."""
    text = joined(documents, like.separator, like.vocab_size)
    return count_ngrams(*text, like.vocab_size, order, workers=CORES)
