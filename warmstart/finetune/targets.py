"""Counted targets: a whole row of probabilities of what follows a history elsewhere in the training text.

The loss of a target y after the history h is

    (1 - a) (-log q(y | h)) + a (-sum_y' P(y' | h) log q(y' | h))

with the network's probability q, the probability P of an n-gram model, and a weight a that falls to 0 over a phase. A
row says more than one token, so the network needs less text to learn. The trained network needs no n-grams.

An n-gram model that has counted the target is too sure of it. So every row is that of the text without the part of its
target (see `warmstart.left_out`).

Source of the loss: distillation, Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), with counts for the teacher.
Gradient and rows: docs/math.md, section 8.

`CountedTargets` gives rows and the loss in a loop of one's own. `CountedLoss` is the loss of a Hugging Face Trainer.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.ids import as_array, whole_numbers
from warmstart.layers.counted import counted_cross_entropy
from warmstart.layers.near_shallow import IGNORED
from warmstart.left_out import SparseRows, left_out
from warmstart.ngrams import NGramCounts, count_ngrams, joined, vocabulary_digest
from warmstart.progress import Progress


class CountedTargets:
    """Rows of probabilities for the targets of a counted text, each as if its part had not been counted.

    Target i of a corpus, its *place*, is ``corpus.tokens[i + 1]``. The first call makes a file beside the corpus, see
    `warmstart.left_out`; later ones map it.

    Parameters
    ----------
    statistic : NGramCounts
        It holds all documents of the corpus.
    corpus : Corpus
        The training text.
    order : int, optional
        Length of the longest n-grams; that of the statistic by default.
    top : int, optional
        Keep the so many entries of a row with the most mass; the mass of the others is spread as the unigram model
        says. This is an approximation that takes less memory.
    temperature : float
        Rows are raised to the power of ``1 / temperature`` and normalised.
    folder : Path, optional
        Folder of the file; that of the corpus by default.
    workers : int
        Number of threads. The result does not depend on it.
    progress : callable, optional
        Called as ``progress("leave out", targets, total)``.

    Raises
    ------
    InputError
        A document was not counted, or the statistic has another vocabulary or no n-grams of that length.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     corpus = Corpus.build(["a b a b", "a b", "b a"], tokenizer="words", cache_dir=Path(folder))
    ...     statistic = count_ngrams(corpus.tokens, corpus.documents, corpus.vocab_size, order=2)
    ...     targets = CountedTargets(statistic, corpus)
    ...     rows = targets.rows([1]).dense()
    ...     places = torch.arange(3)[None]  # of a window of three tokens; the last two are targets
    ...     loss = targets.loss(torch.zeros(1, 3, corpus.vocab_size), places, weight=0.5)
    >>> rows.shape, round(float(rows.sum()), 6), round(loss.exp().item(), 6)
    ((1, 4), 1.0, 4.0)
    """

    def __init__(
        self,
        statistic: NGramCounts,
        corpus: Corpus,
        *,
        order: int | None = None,
        top: int | None = None,
        temperature: float = 1.0,
        folder: Path | None = None,
        workers: int = 1,
        progress: Progress | None = None,
    ) -> None:
        self.corpus, self.top, self.temperature, self.workers = corpus, top, temperature, workers
        self.table = left_out(statistic, corpus, order, folder=folder, workers=workers, progress=progress)
        self.table.rows([], top, temperature)  # refuses settings now and not at the first step

    def rows(self, places: ArrayLike) -> SparseRows:
        """Return the rows of targets, given by their places (n,) from 0.

        Raises
        ------
        InputError
            A place is outside the corpus.
        """
        return self.table.rows(places, self.top, self.temperature, self.workers)

    def tokens(self, places: Tensor) -> Tensor:
        """Return the tokens at places, of any shape; -100 stays.

        Raises
        ------
        InputError
            A place is outside the corpus.
        """
        flat = as_array("places", places).reshape(-1)
        here = flat != IGNORED
        chosen = whole_numbers("places", flat[here], self.corpus.n_tokens)
        out = np.full(flat.shape, IGNORED, np.int64)
        out[here] = self.corpus.tokens[chosen.astype(np.int64) + 1]
        return torch.from_numpy(out).view(places.shape).to(places.device)

    def losses(self, logits: Tensor, places: Tensor, weight: float) -> Tensor:
        """Return the loss (n,) of every target, 0 where ``places`` (n,) is -100; ``logits`` (n, V) predict them."""
        targets = self.tokens(places)
        return counted_cross_entropy(logits, targets, self.rows(places[places != IGNORED]), weight)

    def loss(self, logits: Tensor, places: Tensor, weight: float) -> Tensor:
        """Return the mean loss of the targets of windows, in nats.

        Parameters
        ----------
        logits : (batch, length, V)
            Those at t predict the target at t + 1, as in Hugging Face.
        places : (batch, length) int64
            Place of every token of the windows as a target of the corpus; -100 is ignored, and so is the first column.
        weight : float
            ``a``, from 0 to 1.
        """
        shifted = _shifted(logits, places)
        return self.losses(logits.flatten(0, 1), shifted, weight).sum() / (shifted != IGNORED).sum()


class CountedLoss:
    """The loss of a Hugging Face Trainer: ``Trainer(..., compute_loss_func=CountedLoss(targets))``.

    While it trains, the labels of the data set are places: at t the place of token t as a target of the corpus, -100
    where there is none. The first label of a window is never a target; let it be -100 too, because the Trainer counts
    it for some models (GPT-2 is one) and not for others. In evaluation, where no gradient is made, the text is another
    one: labels are token ids, and the loss is ``-log q(y)``.

    Parameters
    ----------
    targets : CountedTargets
    weight : float
        Weight of the counted rows, ``a``. `warmstart.finetune.callback.PhaseCallback` sets it before every step, if it
        gets this loss as ``counted``.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     corpus = Corpus.build(["a b a b", "a b", "b a"], tokenizer="words", cache_dir=Path(folder))
    ...     loss = CountedLoss(CountedTargets(statistic_of(corpus, None), corpus), weight=0.5)
    ...     outputs = {"logits": torch.zeros(1, 3, corpus.vocab_size, requires_grad=True)}
    ...     trained = loss(outputs, torch.tensor([[-100, 1, 2]]))  # places; with the number of the step: a part of it
    ...     with torch.no_grad():
    ...         scored = loss(outputs, torch.tensor([[-100, 0, 1]]))  # tokens
    >>> round(trained.exp().item(), 4), round(scored.exp().item(), 4)
    (4.0, 4.0)
    """

    def __init__(self, targets: CountedTargets, weight: float = 0.0) -> None:
        self.targets, self.weight = targets, weight

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Return the sum of the losses of a batch by the number of targets of the step, the mean without that number.

        Raises
        ------
        InputError
            A label is outside the corpus or no place in training, or outside the vocabulary in evaluation.
        """
        logits = outputs["logits"]
        shifted = _shifted(logits, labels)
        here = shifted != IGNORED
        if torch.is_grad_enabled():
            _check_places(labels)
            losses = self.targets.losses(logits.flatten(0, 1), shifted, self.weight)
        else:
            whole_numbers("labels in evaluation, which are token ids,", shifted[here], logits.shape[-1])
            losses = functional.cross_entropy(
                logits.flatten(0, 1).float(), shifted, ignore_index=IGNORED, reduction="none"
            )
        return losses.sum() / (here.sum() if num_items_in_batch is None else num_items_in_batch)


def statistic_of(corpus: Corpus, counts: NGramCounts | None, progress: Progress | None = None) -> NGramCounts:
    """Return a statistic that holds all documents of a corpus: ``counts`` and what they do not hold."""
    vocabulary = corpus.tokenizer.get_vocab()
    if counts is None:
        return count_ngrams(
            corpus.tokens, corpus.documents, corpus.vocab_size, vocabulary=vocabulary, progress=progress
        )
    known = counts.documents.known(corpus.tokens, corpus.documents)
    if known.all():
        return counts
    borders = zip(corpus.documents[:-1][~known] + 1, corpus.documents[1:][~known], strict=True)
    text = joined((np.asarray(corpus.tokens[a:b]) for a, b in borders), corpus.separator, corpus.vocab_size)
    same = vocabulary if counts.vocabulary == vocabulary_digest(vocabulary) else None
    new = count_ngrams(*text, corpus.vocab_size, counts.order, vocabulary=same, progress=progress)
    return counts + new


def _check_places(labels: Tensor) -> None:
    """Refuse labels (batch, length) that are tokens: places of a stretch of text go up one by one."""
    pairs = (labels[:, :-1] != IGNORED) & (labels[:, 1:] != IGNORED)
    steps = (labels[:, 1:] - labels[:, :-1])[pairs]
    if len(steps) > 1 and 2 * int((steps == 1).sum()) < len(steps):
        raise InputError(
            "expected labels that are places in training, one after another, got others; make them with "
            'warmstart.finetune.Windows(corpus, length, labels="places")'
        )


def _shifted(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the labels (batch * length,) that logits (batch, length, V) predict: the next ones, -100 at the end."""
    if labels.shape != logits.shape[:2]:
        raise InputError(
            f"expected labels of the shape of the windows {tuple(logits.shape[:2])}, got {tuple(labels.shape)}"
        )
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
