"""Texts as token ids, in three parts: BPE, or the words of WikiText-2 as its perplexities are published.

The published form is one document a part: every word, ``<unk>`` too, and ``<eos>`` after every line are tokens.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from warmstart.corpus import Corpus
from warmstart.levels import id_type
from warmstart.progress import Progress

SPLITS = {"classics": r"\n\n", "wikitext-2": r"\n(?= = [^=])"}  # a blank line between books, a heading
PUBLISHED = "wikitext-2, as published"
TEXTS = (*SPLITS, PUBLISHED)
EOS, UNKNOWN = "<eos>", "<unk>"


class Text(NamedTuple):
    """A text.

    Attributes
    ----------
    vocab_size, separator : int
    parts : mapping of str to tokens and positions of separators, see `warmstart.ngrams.count_ngrams`
        "train", "valid" and "test".
    ends : bool
        Whether the ends of documents are among the tokens that are scored.
    """

    vocab_size: int
    separator: int
    parts: Mapping[str, tuple[NDArray[Any], NDArray[np.int64]]]
    ends: bool = True

    def perplexity(self, log_probs: NDArray[np.float64]) -> float:
        """Return the perplexity of a part from ``log P`` of its targets."""
        return float(np.exp(-log_probs[: None if self.ends else -1].mean()))


def source(data: Path, name: str, part: str) -> Path:
    """Return the file of a part of a text."""
    packed = data / name / f"{part}.txt.xz"
    return packed if packed.exists() else data / name / f"{part}.txt"


def load(data: Path, name: str, vocabulary: int, progress: Progress | None = None) -> Text:
    """Return a text in the tokens of its training part; ``vocabulary`` is the number of BPE tokens."""
    if name == PUBLISHED:
        lines = {part: source(data, "wikitext-2", part).read_text("utf-8") for part in ("train", "valid", "test")}
        return published(lines)
    train = Corpus.build(
        source(data, name, "train"), vocab_size=vocabulary, split_documents=SPLITS[name], progress=progress
    )
    parts: dict[str, tuple[NDArray[Any], NDArray[np.int64]]] = {"train": (train.tokens, train.documents)}
    for part in ("valid", "test"):
        corpus = Corpus.encode(source(data, name, part), train.tokenizer, split_documents=SPLITS[name])
        parts[part] = corpus.tokens, corpus.documents
    return Text(train.vocab_size, train.separator, parts)


def published(texts: Mapping[str, str]) -> Text:
    r"""Return word-level texts: ids are the ranks of the words of "train", and the separator is the last.

    Examples
    --------
    >>> text = published({"train": "a b b <unk> \n b \n", "test": "b c \n"})
    >>> text.vocab_size, text.separator, text.parts["train"][0].tolist(), text.parts["test"][0].tolist()
    (5, 4, [4, 2, 0, 0, 3, 1, 0, 1, 4], [4, 0, 3, 1, 4])
    """
    words = {
        part: [word for line in text.splitlines() for word in [*line.split(), EOS]] for part, text in texts.items()
    }
    ranks = {word: rank for rank, (word, _) in enumerate(Counter(words["train"]).most_common())}  # ties as they come
    separator = len(ranks)
    parts = {}
    for part, text in words.items():
        ids = [ranks[word if word in ranks else UNKNOWN] for word in text]
        tokens = np.array([separator, *ids, separator], id_type(separator + 1))
        parts[part] = tokens, np.array([0, tokens.size - 1])
    return Text(separator + 1, separator, parts, ends=False)
