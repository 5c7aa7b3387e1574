"""What the experts of a mixture say of every target of a corpus, computed once and memory-mapped beside the corpus.

A network that trains beside counts needs their probabilities for text that they have not seen. So a document that was
counted is scored as if it, or its part, had not been counted (see `warmstart.kneser_ney.parts`). Other documents are
new text and are scored as they are. Validation text is new text.

| array | shape | meaning |
|---|---|---|
| ``probs`` | (n, m) float32 | probability of each target by every expert but the network, the unigram model last |
| ``buckets`` | (n,) int32 | bucket of the gate |

The name of the file is a digest of the corpus, the statistic and the experts, so other ones have other files. It takes
``4 (m + 1)`` bytes a target, and memory in bytes is about 20 times the tokens of the longest document.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from warmstart.backoff import BackoffModel
from warmstart.classes import ClassModel
from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.files import map_arrays, writing_arrays
from warmstart.gate import buckets
from warmstart.kneser_ney import KneserNey
from warmstart.mixture import CACHES, DISCOUNT, Evidence, Experts
from warmstart.ngrams import NGramCounts, vocabulary_digest
from warmstart.progress import Progress
from warmstart.sample import left_out_scan

if TYPE_CHECKING:
    from warmstart.hub import CountedForCausalLM

FORMAT = 1
TARGETS = 1 << 20  # of documents that are scored together


@dataclass(frozen=True, eq=False)
class ExpertTable:
    """What the experts say of every target of a corpus, see the module.

    Attributes
    ----------
    key : str
        Digest of the corpus, the statistic and the experts.
    corpus : str
        Digest of the corpus.
    left_out : int
        Number of documents that were counted, and are scored as if they had not been.
    new : int
        Number of documents that were scored as they are.
    probs : (n, m) float32
    buckets : (n,) int32
    """

    key: str
    corpus: str
    left_out: int
    new: int
    probs: NDArray[np.float32]
    buckets: NDArray[np.int32]


def expert_table(
    experts: Experts,
    corpus: Corpus,
    counts: NGramCounts | None = None,
    *,
    folder: Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> ExpertTable:
    """Read the table of a corpus, or compute and write it.

    Parameters
    ----------
    experts : Experts
    corpus : Corpus
    counts : NGramCounts, optional
        The statistic that ``experts`` were solved from; its documents are left out. Without it all documents are new
        text.
    folder : Path, optional
        Folder of the file; that of the corpus by default.
    workers : int
        Number of threads. The result does not depend on it.
    progress : callable, optional
        Called as ``progress("score with counts", targets, total)``.

    Raises
    ------
    InputError
        The file is damaged; delete it, and it is computed again. Tables have no counts that could be left out. Or most
        of the new text was counted, cut into other documents.

    Examples
    --------
    >>> import tempfile
    >>> from warmstart.ngrams import count_ngrams
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     corpus = Corpus.build(["a b a b", "a b", "b a"], tokenizer="words", cache_dir=folder)
    ...     counts = count_ngrams(corpus.tokens, corpus.documents, corpus.vocab_size, order=2)
    ...     experts = Experts(corpus.separator, np.full(4, 0.25), KneserNey(counts))
    ...     table = expert_table(experts, corpus, counts)
    >>> table.left_out, table.new, table.probs.shape
    (3, 0, (11, 2))
    """
    tables = [model for model in (experts.ngrams, *(own.model for own in experts.classes)) if model is not None]
    if counts is not None and not all(isinstance(model, KneserNey) for model in tables):
        raise InputError("expected experts that were solved from counts, got tables alone; fit them again")
    key = _key(experts, tables, corpus, counts)
    path = (folder or corpus.folder) / f"experts-{key}.safetensors"
    if not path.exists():
        counted = _counted(corpus, counts)
        m = len(experts.names) - (experts.network is not None)
        shapes = {"probs": ("F32", (corpus.n_tokens, m)), "buckets": ("I32", (corpus.n_tokens,))}
        documents = {"left_out": int(counted.sum()), "new": int((~counted).sum())}
        with writing_arrays(path, shapes, {"experts": {"format": FORMAT, "key": key, **documents}}) as arrays:
            for targets, evidence in _scan(experts, corpus, counted, workers):
                arrays["probs"][targets] = evidence.probs
                arrays["buckets"][targets] = buckets(evidence.features, experts.feature_sizes)
                if progress:
                    progress("score with counts", targets.stop, corpus.n_tokens)
    arrays, facts = map_arrays(path)
    found = facts.get("experts", {})
    if (found.get("format"), found.get("key")) != (FORMAT, key):
        raise InputError(f"{path}: expected what the experts say of this corpus, got another file; delete it")
    return ExpertTable(key, corpus.digest, found["left_out"], found["new"], arrays["probs"], arrays["buckets"])


def counted_table(
    model: "CountedForCausalLM",
    corpus: Corpus,
    counts: NGramCounts | None = None,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> ExpertTable:
    """Return the table of a corpus for a decoder that stands beside counts.

    Parameters
    ----------
    model : CountedForCausalLM
    corpus : Corpus
        In the tokens of the model.
    counts : NGramCounts, optional
        To train on counted text: the statistic of the model, ``NGramCounts.load(folder / "counts.safetensors")`` of a
        folder that ``warmstart init --counted`` wrote. The experts are solved from it again, so that text can be left
        out. Without it all documents are new text. `expert_table` takes texts of which some documents were counted.
    workers, progress
        See `expert_table`.

    Raises
    ------
    InputError
        The corpus has other tokens than the model, the statistic is another one, or a document was not counted, as when
        the text is cut into other documents. See also `expert_table`.

    Use it as ``Windows(corpus, length, counted_table(model, corpus, counts))``; ``examples/train_plain_loop.py`` does.
    """
    experts, size = model.experts, model.config.counted_size
    if experts is None:
        raise InputError("expected a model with its counts, got one without; load it with from_pretrained")
    own = vocabulary_digest({token: i for token, i in corpus.tokenizer.get_vocab().items() if i < size})
    if corpus.counts[size:].any() or model.config.vocabulary not in ("", own):
        raise InputError(
            f"{corpus.folder}: expected text in the {size} tokens of the model, got other ones; encode it with the "
            "tokenizer in the folder of the model"
        )
    if counts is not None:
        experts = _solved_again(experts, counts, tuple(getattr(model.config, "prune", ())))
        if new := int((~_counted(corpus, counts)).sum()):
            raise InputError(
                f"{corpus.folder}: expected documents that were counted, got {new} of {corpus.n_documents} that were "
                "not; cut the text into the documents that were counted, as by the same --split-documents"
            )
    return expert_table(experts, corpus, counts, workers=workers, progress=progress)


def _solved_again(experts: Experts, counts: NGramCounts, prune: tuple[int, ...]) -> Experts:
    """Return experts with their counts. Refuse counts that do not give the same tables."""
    unigrams = counts.levels[0].counts
    ngrams = None if experts.ngrams is None else KneserNey(counts, prune)
    classes = tuple(ClassModel.of(own.labels, unigrams, counts) for own in experts.classes)
    before = [experts.ngrams, *(own.model for own in experts.classes)]
    for old, new in zip(before, (ngrams, *(own.model for own in classes)), strict=True):
        if old is not None and new is not None and not _same_tables(old, new):
            raise InputError("expected the statistic of the model, got another one, which gives other tables")
    return replace(experts, ngrams=ngrams, classes=classes)


def _same_tables(one: BackoffModel, two: BackoffModel) -> bool:
    """Whether two models have the same n-grams and, up to the rounding of a file, the same probabilities."""
    same = all(np.array_equal(getattr(one, name), getattr(two, name)) for name in ("bases", "offsets", "last"))
    return same and np.allclose(one.probs, two.probs, rtol=1e-5, atol=0.0)


def _counted(corpus: Corpus, counts: NGramCounts | None) -> NDArray[np.bool_]:
    """Return which documents of a corpus the statistic holds. Refuse counted text that is cut into other documents."""
    if counts is None:
        return np.zeros(corpus.n_documents, np.bool_)
    counted = counts.documents.known(corpus.tokens, corpus.documents)
    quoted = counts.documents.quoted(corpus.tokens, corpus.documents) & ~counted
    lengths = np.diff(corpus.documents)
    if 2 * lengths[quoted].sum() > lengths[~counted].sum():
        raise InputError(
            f"{corpus.folder}: expected documents that were counted, or new ones, got {int(quoted.sum())} that are "
            "counted text with other borders and would be scored as if they were new; cut the text into the documents "
            "that were counted, as by the same --split-documents"
        )
    return counted


def _scan(
    experts: Experts, corpus: Corpus, counted: NDArray[np.bool_], workers: int
) -> Iterator[tuple[slice, Evidence]]:
    """Yield the evidence for all targets of a corpus, and the slice of targets (from 0)."""
    first = 0
    while first < counted.size:
        changes = np.flatnonzero(counted[first:] != counted[first])
        same = first + int(changes[0]) if changes.size else counted.size
        start = int(corpus.documents[first])
        last = int(np.searchsorted(corpus.documents, start + TARGETS, side="right")) - 1
        last = min(max(last, first + 1), same)
        borders = corpus.documents[first : last + 1] - start
        tokens = corpus.tokens[start : int(corpus.documents[last]) + 1]
        scan = left_out_scan(experts, tokens, borders, workers) if counted[first] else experts.scan(tokens, workers)
        for part, evidence in scan:
            yield slice(start + part.start, start + part.stop), evidence
        first = last


def _key(experts: Experts, tables: list[BackoffModel], corpus: Corpus, counts: NGramCounts | None) -> str:
    """Return the digest of all that a table depends on."""
    facts = [FORMAT, corpus.digest, "" if counts is None else counts.digest, experts.names, CACHES, DISCOUNT]
    facts.append(experts.feature_sizes)
    whole = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16)
    arrays: list[NDArray[Any]] = [experts.prior]
    for own in experts.classes:
        arrays += [own.labels, own.shares]
    for model in tables:
        arrays += [model.bases, model.last, model.offsets, model.probs, model.gammas, model.sizes]
    for array in arrays:
        whole.update(np.ascontiguousarray(array).data)
    return whole.hexdigest()
