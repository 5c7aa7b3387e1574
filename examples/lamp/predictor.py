"""The solution of a `LampModel` as it predicts: what each expert says, weighed by the gate, and why.

It reads a file and needs numpy alone, so the process that waits for utterances stays small.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from examples.lamp.experts import Array, Similar, Words, endings_of, recent, same_ends
from examples.lamp.features import Table, features, numbers, phrases
from warmstart.backoff import BackoffModel
from warmstart.errors import InputError
from warmstart.files import load_arrays
from warmstart.gate import Gate

SAID, FIRST_TAG = 256, 257  # tokens: bytes, the end of an utterance, the tags, the end of a lesson
ORDER = 8  # of the n-grams
FAMILIAR = (0.45, 0.55, 0.65, 0.8)  # similarities that part the buckets of the gate
BUCKETS = len(FAMILIAR) + 1
SHOWN = 4  # words and sentences of an explanation
TABLES = ("bases", "last", "offsets", "probs", "gammas", "sizes")
LESSONS = ("utterances", "endings", "tags", "frequency")


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


class Parts(NamedTuple):
    """The solved experts and the gate of a `Predictor`, and the lessons of which it keeps an ending and the tag."""

    words: Words
    similar: Similar
    ngrams: BackoffModel
    utterances: NDArray[np.int64]
    endings: NDArray[np.uint8]
    tags: NDArray[np.int64]
    frequency: Array
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
            recent(same_ends(parts.endings, endings_of([text]))[None], parts.tags[None], parts.frequency[None])[0],
            parts.similar.predict(similarity),
            parts.words.predict(said),
            parts.frequency,
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
            if len(evidence := self.parts.words.evidence(0, numbers([phrase]))):
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
        words, similar, ngrams = self.parts.words, self.parts.similar, self.parts.ngrams
        arrays: dict[str, NDArray[Any]] = {name: getattr(self.parts, name) for name in LESSONS}
        arrays["gate"] = self.parts.gate.weights
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
        lessons = a["utterances"], a["endings"], a["tags"], a["frequency"]
        return cls(names, none, Parts(words, similar, ngrams, *lessons, Gate((BUCKETS,), a["gate"])))


def bucket(similarity: Array) -> NDArray[np.int64]:
    """Return the bucket (n,) of the gate for the highest similarity of utterances to a lesson (n,)."""
    return np.searchsorted(FAMILIAR, similarity, side="right").astype(np.int64)
