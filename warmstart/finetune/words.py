"""Checkpoints by the number of words seen, as the evaluation of BabyLM expects them: ``chck_1M``, ``chck_2M``, ...

Words are what white space separates. Up to 10 million words there is a checkpoint at every million, up to 100 million
at every ten, and so on.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from warmstart.corpus import Corpus

MILLION = 1_000_000
DOCUMENTS = 1024  # that are decoded together


def words_per_token(corpus: Corpus, tokens: int | None = None) -> float:
    """Return the number of words of a corpus for each token that is read.

    Parameters
    ----------
    corpus : Corpus
    tokens : int, optional
        Number of tokens that one pass over the corpus reads, such as ``len(windows) * windows.length`` where windows
        overlap. Default: those of the corpus.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as cache:
    ...     words_per_token(Corpus.build(["one two", "three one"], tokenizer="words", cache_dir=cache))
    0.6666666666666666
    """
    borders, words = corpus.documents, 0
    for first in range(0, corpus.n_documents, DOCUMENTS):
        last = min(first + DOCUMENTS, corpus.n_documents)
        texts = [corpus.tokens[borders[i] + 1 : borders[i + 1]].tolist() for i in range(first, last)]
        words += sum(len(text.split()) for text in corpus.tokenizer.decode_batch(texts))
    return words / (corpus.n_tokens if tokens is None else tokens)


def marks(before: float, after: float) -> list[int]:
    """Return the numbers of words, in millions, that are passed between two numbers of words.

    Examples
    --------
    >>> marks(0, 2e6), marks(2e6, 2.5e6), marks(9.5e6, 31e6)
    ([1, 2], [], [10, 20, 30])
    """
    found, mark = [], 1
    while mark * MILLION <= after:
        if mark * MILLION > before:
            found.append(mark)
        mark += 10 ** (len(str(mark)) - 1)
    return found


class Marks:
    """Write a checkpoint whenever a number of words is passed.

    Parameters
    ----------
    folder : Path
        Folder of the checkpoints. An older checkpoint of the same number of words is replaced.
    words_per_token : float
    tokens : int
        Number of tokens that were read before.
    """

    def __init__(self, folder: Path, words_per_token: float, tokens: int = 0) -> None:
        self.folder, self.words_per_token = folder, words_per_token
        self.words = tokens * words_per_token

    def passed(self, tokens: int, save: Callable[[Path], object]) -> list[Path]:
        """Write the checkpoints that are due after so many tokens, whole or not at all, and return their folders.

        ``save`` gets the path of a new folder and writes it.
        """
        before, self.words = self.words, tokens * self.words_per_token
        paths = [self.folder / f"chck_{mark}M" for mark in marks(before, self.words)]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as work:
                save(Path(work, "new"))
                if path.exists():
                    path.rename(Path(work, "old"))
                Path(work, "new").rename(path)
        return paths
