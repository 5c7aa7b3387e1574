"""The person with a switch, and what the lamp is compared with."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from examples.lamp.baselines import Keywords, LogisticRegression, Majority
from examples.lamp.simulator import WINDOW, Said, flips, misheard, play, points, read, scored, simulate, told
from examples.lamp.tags import Tags
from warmstart.errors import InputError

TAGS = Tags.read()
STREAM = [
    Said(f"{verb} {thing}", tag)
    for verb, tag in (("switch on", "on"), ("switch off", "off"), ("tell me about", "none"))
    for thing in ("the light", "the lamp", "my light", "that lamp", "the kitchen light", "this lamp", "light", "lamp")
]
random.Random(0).shuffle(STREAM)  # noqa: S311 - nothing secret


def table(path: Path, rows: list[tuple[str, ...]]) -> Path:
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_it_learns_and_is_scored():
    result = simulate(STREAM, TAGS, seed=1, test=STREAM[:6])
    assert result["interactions"] == 24
    assert result["macro_f1"] > 0.7
    assert result["actions"]["right"] > result["actions"]["wrong"]
    assert result["first_right_action"] <= 20
    assert [point["interactions"] for point in result["curve"]] == points(24)
    assert [point["interactions"] for point in result["test"]] == points(24)
    assert set(result["baselines"]) == {"majority", "keywords", "logistic_regression"}
    assert "macro F1 on the test" in told(result)


def test_a_run_is_the_same_again_but_for_its_times():
    first, second = (simulate(STREAM[:12], TAGS, seed=3, baselines=False) for _ in range(2))
    assert first.pop("milliseconds").keys() == second.pop("milliseconds").keys()
    assert first == second


def test_the_person_flips_late_wrong_or_not_at_all():
    rng = random.Random(0)  # noqa: S311
    assert list(flips("on", "on", ["on", "off"], rng)) == []
    played = [list(flips("off", "on", ["on", "off"], rng)) for _ in range(500)]
    assert all(each[-1][1] == "on" for each in played)
    assert 5 < sum(len(each) == 2 for each in played) < 40
    assert 10 < sum(each[0][0] > WINDOW for each in played) < 60


def test_a_late_flip_teaches_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("examples.lamp.simulator.LATE", 1.0)
    result = simulate([Said("light on", "on")] * 3, TAGS, baselines=False)
    assert result["lessons"] == {"all": 3, "not_meant": 3}


def test_baselines_before_and_after_lessons():
    majority, words, regression = Majority(TAGS), Keywords(TAGS), LogisticRegression(TAGS)
    assert majority.tags(["x", "y"]) == ["none", "none"]
    assert words.tags(["it is too dark", "lights out", "light it", "nothing"]) == ["off", "off", "on", "none"]
    assert regression.tags(["x"]) == ["none"]
    for arm in (majority, words, regression):
        for i, said in enumerate(STREAM):
            arm.learn(i, said.text, said.tag)
        arm.learn(0, STREAM[0].text, STREAM[0].tag)
    assert regression.tags([said.text for said in STREAM]) == [said.tag for said in STREAM]
    majority.learn(99, "more", "off")
    assert majority.tags(["x"]) == ["off"]


def test_misheard_words_are_dropped_swapped_or_misspelt():
    rng = random.Random(5)  # noqa: S311
    text = "please turn on the light in the kitchen"
    assert misheard(text, 0.0, rng) == text
    heard = [misheard(text, 0.3, rng) for _ in range(50)]
    assert len(set(heard)) > 40
    assert any(len(each.split()) < 8 for each in heard)
    assert any(sorted(each.split()) == sorted(text.split()) and each != text for each in heard)


def test_scores_by_hand():
    scores = scored(["on", "on", "off", "none"], ["on", "none", "off", "none"], TAGS)
    assert scores.accuracy == 0.75
    assert scores.precision == {"on": 1.0, "off": 1.0, "none": 0.5}
    assert scores.recall == {"on": 0.5, "off": 1.0, "none": 1.0}
    assert scores.macro_f1 == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("text", "label")], "under a line with these names, got none"),
        ([("words", "label"), ("a", "on")], "line 2: expected columns text and label"),
        ([("text", "label"), ("a", "on"), ("b", "dim")], "line 3: .*on, off, none, got .*dim"),
        ([("text", "label"), ("a",)], "line 2"),
    ],
)
def test_files_that_cannot_be_played_are_refused(tmp_path: Path, rows, message):
    with pytest.raises(InputError, match=message):
        read(table(tmp_path / "a.tsv", rows), TAGS)


def test_a_missing_file_and_an_unknown_source_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="expected a text file with tabs"):
        read(tmp_path / "none.tsv", TAGS)
    path = table(tmp_path / "a.tsv", [("text", "label", "source"), ("a", "on", "me"), ("b", "off", "you")])
    with pytest.raises(InputError, match="me, you, got 'them'"):
        play(path, TAGS, "them", 0, 0.0, False)
    assert play(path, TAGS, "me", 0, 0.0, False)["test"][0]["interactions"] == 1


def test_the_command_prints_json(tmp_path: Path):
    path = table(tmp_path / "a.tsv", [("text", "label"), *STREAM[:6]])
    command = [sys.executable, "-m", "examples.lamp", "simulate", str(path), "--json", "--quiet", "--errors", "0.1"]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert result["interactions"] == 6
    assert {"macro_f1", "accuracy", "precision", "recall", "curve", "baselines"} <= result.keys()
