"""The model of the lamp: which tag comes after an utterance, from exact counts of a few lessons.

A conversation is a row of utterances, each followed by its tag, as tokens: bytes, `SAID`, and a token for each tag. So
no tokenizer has to be trained. Experts give the probability of each tag, and a gate weighs them by how familiar the
utterance is: n-grams of the bytes, a cache of the last lessons, the words (explicit solution), similar lessons, and the
frequency of the tags. Whatever is fitted sees each lesson as if it had not been given.

`LampModel` learns and forgets. Its solution depends on nothing but the lessons that it holds, so a forgotten one leaves
no trace. `Predictor` reads what was saved; it needs numpy alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from examples.lamp.features import Features, Table, features, numbers, phrases
from warmstart.backoff import BackoffModel
from warmstart.errors import InputError
from warmstart.files import load_arrays, save_arrays
from warmstart.gate import Gate, fit_gate

SAID, FIRST_TAG = 256, 257  # tokens: bytes, the end of an utterance, the tags, the end of a lesson
ORDER = 8
FAMILIAR = (0.3, 0.45, 0.6, 0.8)  # similarities that part the buckets of the gate
EXPERTS = ("n-grams", "recent", "similar", "words", "frequency")
NEWEST = 512  # lessons that are compared with, and that the gate is fitted on; all are counted
SHOWN = 4  # words and sentences of an explanation
TABLES = ("bases", "last", "offsets", "probs", "gammas", "sizes")


class Guess(NamedTuple):
    """What the model thinks of an utterance.

    Attributes
    ----------
    probabilities : dict of float
        Of each tag.
    words : list of (text, tag, nats)
        The words that speak most for the most probable tag.
    sentences : list of (utterance, tag, weight)
        The lessons that speak most for it.
    """

    probabilities: dict[str, float]
    words: list[tuple[str, str, float]]
    sentences: list[tuple[int, str, float]]

    @property
    def tag(self) -> str:
        """The most probable tag."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])


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
        Y = np.eye(len(self.names))[own]
        newest = slice(max(0, len(order) - NEWEST), None)
        tables = Table.of([each.phrases for each in said]), Table.of([each.pieces for each in said])
        words, of_words = Words.fit(tables, Y, newest)
        compared = [Table.of([getattr(each, name) for each in said[newest]]) for name in ("words", "pieces")]
        similar, of_similar, familiar = Similar.fit(compared[0], compared[1], Y[newest], self.sharpness, self.ridge)
        ngrams, of_ngrams = self._ngrams(texts, own, newest)
        endings, counts = endings_of(texts), Y.sum(axis=0)
        lesson, of_own = np.arange(own.size)[newest], (np.arange(of_similar.size), own[newest])
        earlier = lesson[:, None] - np.arange(1, RECENT + 1)
        same = np.where(earlier < 0, -1, same_ends(endings[np.maximum(earlier, 0)], endings[lesson][:, None]))
        of_recent = recent(same, own[np.maximum(earlier, 0)], prior(np.cumsum(Y, axis=0) - Y)[newest])[of_own]
        of_prior = prior(counts - Y[newest])[of_own]
        left_out = [of_ngrams, of_recent, of_similar, of_words, of_prior]
        gate, _ = fit_gate(np.stack(left_out, axis=1), bucket(familiar)[:, None], (len(FAMILIAR) + 1,))
        parts = Parts(
            np.array(order[newest]), words, similar, ngrams, endings[-RECENT:], own[-RECENT:], prior(counts), gate
        )
        return Predictor(self.names, self.none, parts)

    def _ngrams(self, texts: Sequence[str], own: NDArray[np.integer], newest: slice) -> tuple[BackoffModel, Array]:
        """Return the n-gram model of the conversation, and its probability of the tags of the newest, left out."""
        from warmstart.kneser_ney import KneserNey
        from warmstart.ngrams import count_ngrams, joined

        size = FIRST_TAG + len(self.names) + 1
        lessons = [np.array([*text.encode(), SAID, FIRST_TAG + tag]) for text, tag in zip(texts, own, strict=True)]
        model = KneserNey(count_ngrams(*joined(lessons, size - 1, size), size, ORDER))
        tokens, borders = joined(lessons[newest], size - 1, size)
        return model, model.left_out(tokens, borders).probs[borders[1:] - 2]


class Parts(NamedTuple):
    """The solved experts and the gate of a `Predictor`."""

    utterances: NDArray[np.int64]
    words: Words
    similar: Similar
    ngrams: BackoffModel
    endings: NDArray[np.uint8]
    tags: NDArray[np.int64]
    prior: Array
    gate: Gate


class Predictor:
    """The solution of a `LampModel`: it predicts, and says why.

    Parameters
    ----------
    names : sequence of str
    none : str
    parts : Parts or None
        None before the first lesson.
    """

    def __init__(self, names: Sequence[str], none: str, parts: Parts | None) -> None:
        self.names, self.none, self.parts = tuple(names), none, parts

    def predict(self, text: str) -> Guess:
        """Return what the model thinks of an utterance. Before the first lesson it is sure of doing nothing."""
        if self.parts is None:
            return Guess({name: float(name == self.none) for name in self.names}, [], [])
        parts, said = self.parts, features(text)
        similarity = parts.similar.similarity(said)
        row = parts.ngrams.row([*text.encode()[-ORDER:], SAID])[FIRST_TAG:-1]
        probs = [
            row / row.sum(),
            recent(same_ends(parts.endings, endings_of([text]))[None], parts.tags[None], parts.prior[None])[0],
            parts.similar.predict(similarity),
            parts.words.predict(said),
            parts.prior,
        ]
        weights = parts.gate.weights[bucket(similarity.max(keepdims=True))[0]]
        mixed = weights @ np.array(probs)
        best = int(mixed.argmax())
        return Guess(
            dict(zip(self.names, mixed.tolist(), strict=True)),
            self._words(text, best),
            self._sentences(similarity, best),
        )

    def _words(self, text: str, tag: int) -> list[tuple[str, str, float]]:
        """Return the words and pairs that speak most for a tag, by how many nats more than for the others."""
        assert self.parts is not None  # noqa: S101 - asked for after the first lesson
        found = []
        for phrase in dict.fromkeys(phrases(text)):
            seen, evidence = self.parts.words.evidence(0, numbers([phrase]))
            if seen.size:
                others = np.delete(evidence[0], tag).mean()
                found.append((phrase, self.names[tag], float(evidence[0, tag] - others)))
        return sorted((each for each in found if each[2] > 0), key=lambda each: -each[2])[:SHOWN]

    def _sentences(self, similarity: Array, tag: int) -> list[tuple[int, str, float]]:
        """Return the lessons whose similarity adds most to the score of a tag."""
        assert self.parts is not None  # noqa: S101 - asked for after the first lesson
        adds = similarity * self.parts.similar.alphas[:, tag]
        best = [i for i in np.argsort(-adds, kind="stable")[:SHOWN].tolist() if adds[i] > 0]
        return [(int(self.parts.utterances[i]), self.names[tag], float(adds[i])) for i in best]

    def arrays(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return what `save_arrays` writes."""
        facts: dict[str, Any] = {"names": self.names, "none": self.none}
        if self.parts is None:
            return {}, facts
        utterances, words, similar, ngrams, endings, tags, of_tags, gate = self.parts
        arrays: dict[str, NDArray[Any]] = {"utterances": utterances, "endings": endings, "tags": tags, "prior": of_tags, "gate": gate.weights}
        arrays |= {f"words.ids.{i}": ids for i, ids in enumerate(words.ids)}
        arrays |= {f"words.weights.{i}": weights for i, weights in enumerate(words.weights)}
        arrays |= {"words.log_prior": words.log_prior, "alphas": similar.alphas, "mean": similar.mean}
        for name in ("words", "pieces"):
            arrays |= {f"{name}.{field}": value for field, value in vars(getattr(similar, name)).items()}
        arrays |= {f"ngrams.{name}": getattr(ngrams, name) for name in TABLES}
        return arrays, {**facts, "temperature": similar.temperature, "sharpness": similar.sharpness}

    @classmethod
    def load(cls, path: Path) -> "Predictor":
        """Read what `LampModel.save` wrote.

        Raises
        ------
        InputError
            The file is damaged, or is something else.
        """
        a, facts = load_arrays(path)
        if not {"names", "none"} <= facts.keys():
            raise InputError(f"{path}: expected a model of the lamp, got another file; delete it, it is made anew")
        names, none = facts["names"], facts["none"]
        if not a:
            return cls(names, none, None)
        tables = [
            Table(*(a[f"{name}.{field}"] for field in ("ids", "columns", "starts"))) for name in ("words", "pieces")
        ]
        words = Words(
            (a["words.ids.0"], a["words.ids.1"]), (a["words.weights.0"], a["words.weights.1"]), a["words.log_prior"]
        )
        similar = Similar(tables[0], tables[1], a["alphas"], a["mean"], facts["temperature"], facts["sharpness"])
        size = FIRST_TAG + len(names) + 1
        ngrams = BackoffModel(size, size - 1, ORDER, *(a[f"ngrams.{name}"] for name in TABLES))
        gate = Gate((len(FAMILIAR) + 1,), a["gate"])
        return cls(
            names, none, Parts(a["utterances"], words, similar, ngrams, a["endings"], a["tags"], a["prior"], gate)
        )


def prior(counts: Array) -> Array:
    """Return the frequency of tags (..., C) given their counts, with half a lesson more for each."""
    return np.asarray((counts + 0.5) / (counts + 0.5).sum(axis=-1, keepdims=True))


def bucket(similarity: Array) -> NDArray[np.int64]:
    """Return the bucket (n,) of the gate for the highest similarity of utterances to a lesson (n,)."""
    return np.searchsorted(FAMILIAR, similarity, side="right").astype(np.int64)
