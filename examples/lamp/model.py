"""The model of the lamp: which tag comes after an utterance, from exact counts of a few lessons.

A conversation is a row of utterances, each followed by its tag, as tokens: bytes, `SAID`, and a token for each tag. So
no tokenizer has to be trained. Experts give the probability of each tag, and a gate weighs them by how familiar the
utterance is: n-grams of the bytes, a cache of the last lessons, similar lessons, the words (explicit solution), and the
frequency of the tags. Whatever is fitted sees each lesson as if it had not been given.

The solution depends on nothing but the lessons that the model holds, so a forgotten one leaves no trace.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.lamp.experts import (
    RECENT,
    RIDGE,
    SHARPNESS,
    Array,
    Similar,
    Words,
    endings_of,
    recent,
    same_ends,
)
from examples.lamp.features import Features, Table, features
from examples.lamp.predictor import BUCKETS, FIRST_TAG, ORDER, SAID, Guess, Parts, Predictor, bucket
from warmstart.backoff import BackoffModel
from warmstart.errors import InputError
from warmstart.files import save_arrays
from warmstart.gate import fit_gate

NEWEST = 448  # lessons that are compared with, and that the gate is fitted on; all are counted
START, START_NONE = 0.5, 5.0  # lessons that are counted before the first: doing nothing is usual
TRUST = 4  # lessons in each bucket of the gate before the first; similar ones told their tags
TRUSTED = (0.3, 0.3, 0.9, 0.5, 0.3)  # probability by each expert in these lessons


class LampModel:
    """Lessons, and what is solved from them.

    Parameters
    ----------
    names : sequence of str
        All tags.
    none : str
        The one that stands for doing nothing; it must be among them.
    sharpness, ridge : float
        Of the expert of similar lessons, see `examples.lamp.experts.Similar`.

    Examples
    --------
    >>> model = LampModel(["on", "off", "none"], "none")
    >>> for i, tag in enumerate(["on", "none"] * 3):
    ...     model.learn(i, "light please" if tag == "on" else "nice weather", tag)
    >>> model.predict("some light").tag
    'on'
    >>> for i in (0, 2, 4):
    ...     model.forget(i)
    >>> model.predict("some light").tag
    'none'
    """

    def __init__(self, names: Sequence[str], none: str, sharpness: float = SHARPNESS, ridge: float = RIDGE) -> None:
        if none not in names or len(set(names)) != len(names):
            raise InputError(f"expected different tags with {none!r} among them, got {list(names)}")
        self.names, self.none, self.sharpness, self.ridge = tuple(names), none, sharpness, ridge
        self.start = np.array([START_NONE if name == none else START for name in names])
        self.lessons: dict[int, tuple[str, int]] = {}
        self._features: dict[int, Features] = {}
        self._predictor: Predictor | None = None

    def learn(self, utterance: int, text: str, tag: str) -> None:
        """Add a lesson. The same utterance again gets the new tag.

        Raises
        ------
        InputError
            The tag is unknown.
        """
        if tag not in self.names:
            raise InputError(f"expected one of the tags {', '.join(self.names)}, got {tag!r}")
        self.lessons[utterance] = text, self.names.index(tag)
        self._features[utterance] = features(text)
        self._predictor = None

    def forget(self, utterance: int) -> None:
        """Take a lesson out, as if it had never been given; one that was not given stays away."""
        self.lessons.pop(utterance, None)
        self._features.pop(utterance, None)
        self._predictor = None

    def solve(self) -> "Predictor":
        """Return the solution of all lessons."""
        if self._predictor is None:
            self._predictor = self._solved()
        return self._predictor

    def predict(self, text: str) -> Guess:
        """Return what the model thinks of an utterance, see `Predictor.predict`."""
        return self.solve().predict(text)

    def save(self, path: Path) -> None:
        """Write the solution for `Predictor.load`, whole or not at all."""
        arrays, facts = self.solve().arrays()
        save_arrays(path, arrays, facts)

    def _solved(self) -> "Predictor":
        if not self.lessons:
            return Predictor(self.names, self.none, None)
        order = sorted(self.lessons)
        texts, tags = zip(*(self.lessons[u] for u in order), strict=True)
        own, said = np.array(tags), [self._features[u] for u in order]
        Y, newest = np.eye(len(self.names))[own], slice(max(0, len(order) - NEWEST), None)
        phrases, pieces = (Table.of([getattr(each, name) for each in said]) for name in ("phrases", "pieces"))
        words, of_words = Words.fit((phrases, pieces), Y, newest)
        compared = [Table.of([getattr(each, name) for each in said[newest]]) for name in ("words", "pieces")]
        similar, of_similar, familiar = Similar.fit(
            compared[0], compared[1], Y[newest], self.start, self.sharpness, self.ridge
        )
        ngrams, of_ngrams = self._ngrams(texts, own, newest)
        endings, counts = endings_of(texts), Y.sum(axis=0) + self.start
        of_recent, of_prior = self._earlier(endings, own, Y, newest), frequency(counts - Y)[np.arange(own.size), own]
        left_out = np.stack([of_ngrams, of_recent, of_similar, of_words, of_prior[newest]], axis=1)
        before = np.repeat(np.arange(BUCKETS), TRUST)
        gate, _ = fit_gate(
            np.concatenate([left_out, np.tile(TRUSTED, (before.size, 1))]),
            np.concatenate([bucket(familiar), before])[:, None],
            (BUCKETS,),
        )
        lessons = np.array(order[newest]), endings[-RECENT:], own[-RECENT:]
        return Predictor(self.names, self.none, Parts(words, similar, ngrams, *lessons, frequency(counts), gate))

    def _earlier(self, endings: NDArray[np.uint8], own: NDArray[np.integer], Y: Array, newest: slice) -> Array:
        """Return the probability of the tag of each of the newest lessons by the cache of those before it."""
        lesson = np.arange(own.size)[newest]
        earlier = lesson[:, None] - np.arange(1, RECENT + 1)
        there = np.maximum(earlier, 0)
        same = np.where(earlier < 0, -1, same_ends(endings[there], endings[lesson][:, None]))
        before = np.cumsum(Y, axis=0) - Y + self.start
        probs = recent(same, own[there], frequency(before[newest]))
        return np.asarray(probs[np.arange(lesson.size), own[newest]])

    def _ngrams(self, texts: Sequence[str], own: NDArray[np.integer], newest: slice) -> tuple[BackoffModel, Array]:
        """Return the n-gram model of the conversation, and its probability of the tags of the newest, left out.

        A lesson that is more than an eighth of the text is left out piece by piece, see `KneserNey.left_out`.
        """
        from warmstart.kneser_ney import KneserNey
        from warmstart.ngrams import count_ngrams, joined

        size = FIRST_TAG + len(self.names) + 1
        lessons = [np.array([*text.encode(), SAID, FIRST_TAG + tag]) for text, tag in zip(texts, own, strict=True)]
        model = KneserNey(count_ngrams(*joined(lessons, size - 1, size), size, ORDER))
        tokens, borders = joined(lessons[newest], size - 1, size)
        return model, model.left_out(tokens, borders).probs[borders[1:] - 2]


def frequency(counts: Array) -> Array:
    """Return the frequency of tags (..., C) of their counts."""
    return np.asarray(counts / counts.sum(axis=-1, keepdims=True))


def warm_up() -> None:
    """Solve a model that is thrown away, so that no lesson has to wait for code to be compiled or loaded."""
    model = LampModel(("some", "none"), "none")
    model.learn(0, "some", "some")
    model.learn(1, "none", "none")
    model.predict("some")
