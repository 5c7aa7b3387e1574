"""The lamp's model: it learns from a few lessons, forgets without a trace, says why, and keeps quiet when unsure."""

import math
from pathlib import Path

import numpy as np
import pytest

from examples.lamp.experts import Similar, Words, endings_of, recent, same_ends, softmax
from examples.lamp.features import Table, features, numbers, words
from examples.lamp.model import LampModel
from examples.lamp.predictor import Predictor
from warmstart.errors import InputError
from warmstart.files import save_arrays

NAMES = ("on", "off", "none")
LESSONS = [
    ("turn on the light", "on"),
    ("lights off please", "off"),
    ("what time is it", "none"),
    ("please switch on the lamp", "on"),
    ("make it dark", "off"),
    ("play some music", "none"),
    ("light on", "on"),
    ("switch the lamp off", "off"),
    ("set a timer", "none"),
]


def taught(lessons: list[tuple[str, str]] = LESSONS) -> LampModel:
    model = LampModel(NAMES, "none")
    for utterance, (text, tag) in enumerate(lessons):
        model.learn(utterance, text, tag)
    return model


@pytest.mark.parametrize("tag", ["on", "off"])
def test_three_examples_of_a_phrase_that_nobody_knows_are_enough(tag):
    model = taught()
    assert model.predict("abracadabra").tag == "none"
    for i in range(3):
        model.learn(100 + i, "abracadabra", tag)
    guess = model.predict("abracadabra")
    assert guess.tag == tag
    assert guess.probabilities[tag] > 0.6
    assert model.predict("what time is it").tag == "none"


def test_probabilities_sum_to_1_for_any_text():
    predictor = taught().solve()
    for text in ("", " ", "💡", "Licht an", "开灯", "أطفئ النور", "x" * 5000, "turn on the light", "\0"):
        probabilities = predictor.predict(text).probabilities
        assert set(probabilities) == set(NAMES)
        assert math.isclose(sum(probabilities.values()), 1.0, abs_tol=1e-9)
        assert min(probabilities.values()) >= 0


def test_before_the_first_lesson_nothing_is_done():
    assert LampModel(NAMES, "none").predict("light").probabilities == {"on": 0.0, "off": 0.0, "none": 1.0}


def test_after_one_lesson_it_keeps_quiet_about_other_things():
    model = LampModel(NAMES, "none")
    model.learn(1, "turn on the light", "on")
    assert model.predict("what is the weather like in Madrid").probabilities["on"] < 0.6


def test_forgetting_leaves_the_same_bytes_as_never_having_heard(tmp_path: Path):
    model = taught()
    model.learn(50, "a secret phrase", "on")
    model.solve()
    model.forget(50)
    model.save(tmp_path / "forgotten")
    taught().save(tmp_path / "never")
    assert (tmp_path / "forgotten").read_bytes() == (tmp_path / "never").read_bytes()


def test_the_order_of_learning_changes_nothing(tmp_path: Path):
    model = LampModel(NAMES, "none")
    for utterance, (text, tag) in reversed(list(enumerate(LESSONS))):
        model.learn(utterance, text, tag)
    model.save(tmp_path / "reversed")
    taught().save(tmp_path / "usual")
    assert (tmp_path / "reversed").read_bytes() == (tmp_path / "usual").read_bytes()


def test_a_correction_replaces_the_lesson(tmp_path: Path):
    model = taught()
    model.learn(0, LESSONS[0][0], "none")
    model.save(tmp_path / "corrected")
    taught([(LESSONS[0][0], "none"), *LESSONS[1:]]).save(tmp_path / "right")
    assert (tmp_path / "corrected").read_bytes() == (tmp_path / "right").read_bytes()


def test_the_saved_model_predicts_the_same(tmp_path: Path):
    model = taught()
    model.save(tmp_path / "model")
    for text in ("lamp on", "never heard", ""):
        assert Predictor.load(tmp_path / "model").predict(text) == model.predict(text)
    empty = LampModel(NAMES, "none")
    empty.save(tmp_path / "empty")
    assert Predictor.load(tmp_path / "empty").predict("light").tag == "none"


def test_it_says_why():
    guess = taught().predict("please turn on a light")
    assert guess.tag == "on"
    assert {"on", "turn"} & {text for text, *_ in guess.words}
    assert all(tag == "on" and nats > 0 for _, tag, nats in guess.words)
    assert guess.sentences[0][0] in (0, 3, 6)
    assert all(weight > 0 for *_, weight in guess.sentences)


def test_other_switches_have_other_tags():
    model = LampModel(("low", "middle", "high", "stay"), "stay")
    for i, tag in enumerate(("low", "middle", "high", "stay") * 3):
        model.learn(i, f"fan {tag}", tag)
    assert [model.predict(f"the fan {tag} please").tag for tag in ("low", "middle", "high")] == [
        "low",
        "middle",
        "high",
    ]


def test_more_lessons_than_are_compared_with(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("examples.lamp.model.NEWEST", 5)
    model = taught()
    assert model.solve().parts.utterances.tolist() == [4, 5, 6, 7, 8]
    assert model.predict("light on").tag == "on"


@pytest.mark.parametrize("names", [("on", "off"), ("on", "on", "none")])
def test_tags_that_cannot_be_are_refused(names):
    with pytest.raises(InputError, match="different tags with 'none' among them"):
        LampModel(names, "none")


def test_an_unknown_tag_is_refused_and_nothing_changes():
    model = taught()
    with pytest.raises(InputError, match="one of the tags on, off, none, got 'dim'"):
        model.learn(99, "dim", "dim")
    assert 99 not in model.lessons


def test_a_file_of_something_else_is_refused(tmp_path: Path):
    save_arrays(tmp_path / "other", {"x": np.zeros(3)})
    with pytest.raises(InputError, match="expected a model of the lamp"):
        Predictor.load(tmp_path / "other")


def test_left_out_similar_lessons_are_those_of_a_model_without_them():
    tables = [Table.of([getattr(features(text), name) for text, _ in LESSONS]) for name in ("words", "pieces")]
    Y = np.eye(3)[[NAMES.index(tag) for _, tag in LESSONS]]
    _, probs, highest = Similar.fit(*tables, Y, np.full(3, 0.5), 1.0, 0.3)
    K = np.array([[_similarity(a, b) for b, _ in LESSONS] for a, _ in LESSONS])
    weights = np.full(len(Y), 1.0)  # three of each tag
    mean = (weights @ Y + 0.5) / (weights.sum() + 1.5)
    fitted, own = Similar.fit(*tables, Y, np.full(3, 0.5), 1.0, 0.3)[0], Y.argmax(axis=1)
    for i in range(len(Y)):
        rest = np.delete(np.arange(len(Y)), i)
        alphas = np.linalg.solve(K[np.ix_(rest, rest)] + 0.3 * np.eye(rest.size), Y[rest] - mean)
        expected = softmax((K[i, rest] @ alphas + mean) / fitted.temperature)[own[i]]
        assert math.isclose(probs[i], expected, rel_tol=1e-9)
        assert math.isclose(highest[i], K[i, rest].max(), rel_tol=1e-9)


def _similarity(first: str, second: str) -> float:
    def cosine(a: set[str], b: set[str]) -> float:
        return len(a & b) / math.sqrt(len(a) * len(b))

    def pieces(text: str) -> set[str]:
        return {f" {w} "[i : i + n] for w in text.split() for n in range(2, 6) for i in range(len(w) + 3 - n)}

    both = cosine(set(first.split()), set(second.split())) + cosine(pieces(first), pieces(second))
    return math.exp(-(1 - both / 2))


def test_the_words_are_the_explicit_solution_with_its_own_lesson_left_out():
    tables = tuple(Table.of([getattr(features(text), name) for text, _ in LESSONS]) for name in ("phrases", "pieces"))
    Y = np.eye(3)[[NAMES.index(tag) for _, tag in LESSONS]]
    model, left_out = Words.fit(tables, Y, slice(None))
    assert left_out.shape == (9,)
    own = [model.predict(features(text))[NAMES.index(tag)] for text, tag in LESSONS]
    assert (left_out < own).all()
    newest = Words.fit(tables, Y, slice(6, None))[1]
    assert newest.shape == (3,)


@pytest.mark.parametrize("said", ["my light on", "light on", "on", "", "a lamp that is longer than what is kept of it"])
def test_the_cache_is_absolute_discounting_of_the_tags_after_every_same_ending(said):
    texts, tags = ["light on", "lamp on", "music", "light on", "on", "", "é"], [0, 0, 1, 1, 2, 2, 0]
    prior = [0.5, 0.3, 0.2]
    P, query = dict(enumerate(prior)), said.encode().rjust(16, b"\0")
    for length in range(17):
        alike = [
            t for text, t in zip(texts, tags, strict=True) if _ending(text, length) == query[len(query) - length :]
        ]
        if alike:
            kinds = len(set(alike))
            P = {t: (max(alike.count(t) - 0.5, 0) + 0.5 * kinds * P[t]) / len(alike) for t in P}
    same = same_ends(endings_of(texts), endings_of([said]))[None]
    found = recent(same, np.array([tags]), np.array([prior]))[0]
    assert found.tolist() == pytest.approx(list(P.values()), rel=1e-12)
    assert found.sum() == pytest.approx(1, rel=1e-12)


def _ending(text: str, length: int) -> bytes:
    padded = text.encode().rjust(16, b"\0")
    return padded[len(padded) - length :]


def test_features_of_all_scripts():
    assert words("Don't turn it ON!") == ["don't", "turn", "it", "on"]
    assert words("ﬁre straße") == ["fire", "strasse"]
    assert words("💡💡") == ["💡", "💡"]
    assert words("...") == []
    assert features("开灯").pieces.size > 0
    assert features("").words.size == features("").pieces.size == 0


def test_tables_of_awkward_sizes():
    for sizes in ([], [0], [0, 3, 0], [1, 65, 2]):
        rows = [numbers(str(i) for i in range(n)) for n in sizes]
        table = Table.of(rows)
        assert table.sizes.tolist() == sizes
        assert table.shared(numbers("0")).tolist() == [int(n > 0) for n in sizes]
        assert table.shared(numbers([])).tolist() == [0] * len(sizes)
