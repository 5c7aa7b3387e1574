"""What the lamp is compared with: the most frequent tag, words that name a state, and logistic regression."""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from examples.lamp.features import phrases, words
from examples.lamp.tags import Tags

STRENGTH = 1.0  # C of the logistic regression


class Learner(Protocol):
    """Something that is taught by lessons and tells the tag of an utterance."""

    def learn(self, utterance: int, text: str, tag: str) -> None:
        """Add a lesson, or give one another tag."""

    def tags(self, texts: Sequence[str]) -> list[str]:
        """Return the most probable tag of each text."""


class Majority:
    """The tag that was given most often; before the first lesson it is none."""

    def __init__(self, tags: Tags) -> None:
        self.none, self.lessons = tags.none, dict[int, str]()

    def learn(self, utterance: int, text: str, tag: str) -> None:
        """Add a lesson, or give one another tag."""
        self.lessons[utterance] = tag

    def tags(self, texts: Sequence[str]) -> list[str]:
        """Return the same tag for every text."""
        best = Counter(self.lessons.values()).most_common(1)
        return [best[0][0] if best else self.none for _ in texts]


class Keywords:
    """The first state whose words an utterance has, none otherwise. It learns nothing."""

    def __init__(self, tags: Tags) -> None:
        self.none, self.words = tags.none, {state.name: set(state.words) for state in tags.states}

    def learn(self, utterance: int, text: str, tag: str) -> None:
        """Do nothing."""

    def tags(self, texts: Sequence[str]) -> list[str]:
        """Return the state that each text names."""
        said = [set(words(text)) for text in texts]
        return [next((name for name, own in self.words.items() if own & each), self.none) for each in said]


class LogisticRegression:
    """Logistic regression on words, pairs of words and pieces of words, fitted anew when it is asked.

    Parameters
    ----------
    tags : Tags
    strength : float
        ``C`` of scikit-learn, the inverse of the regularisation.
    balanced : bool
        Whether all tags weigh the same.
    """

    def __init__(self, tags: Tags, strength: float = STRENGTH, balanced: bool = False) -> None:
        self.none, self.strength, self.balanced = tags.none, strength, balanced
        self.lessons: dict[int, tuple[str, str]] = {}
        self.model: Any = None

    def learn(self, utterance: int, text: str, tag: str) -> None:
        """Add a lesson, or give one another tag."""
        self.lessons[utterance], self.model = (text, tag), None

    def tags(self, texts: Sequence[str]) -> list[str]:
        """Return the most probable tag of each text; the only one, or none, before there are two."""
        known = {tag for _, tag in self.lessons.values()}
        if len(known) < 2:
            return [*(known or {self.none})] * len(texts)
        if self.model is None:
            self.model = self._fitted()
        return [str(tag) for tag in self.model.predict(texts)]

    def _fitted(self) -> Any:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression as Regression
        from sklearn.pipeline import make_pipeline, make_union

        of_words = CountVectorizer(analyzer=phrases, binary=True)
        of_pieces = CountVectorizer(analyzer="char_wb", ngram_range=(2, 5), binary=True)
        weight = "balanced" if self.balanced else None
        model = make_pipeline(
            make_union(of_words, of_pieces), Regression(C=self.strength, class_weight=weight, max_iter=1000)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            return model.fit(*zip(*self.lessons.values(), strict=True))
