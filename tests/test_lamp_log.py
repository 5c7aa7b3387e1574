"""The lamp's log: nothing is lost or done twice, forgotten words are nowhere, and a damaged file is left as it is."""

import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from examples.lamp.log import KINDS, SETTINGS, Log
from examples.lamp.tags import DEFAULT, Tags
from warmstart.errors import InputError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lamp.sqlite"


@pytest.fixture
def log(path):
    with Log(path) as log:
        yield log


def run(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment)


def test_events_are_found_by_number_kind_and_what_they_are_about(log):
    typed = log.append("typed", {"text": "é \ud800"}, time=5.0)
    said = log.append("said", {"text": "a"}, typed, time=7.0)
    sound = log.append("sound", sound=b"\0wav", time=6.0)
    assert log.event(typed) == (typed, 5.0, "typed", None, {"text": "é \ud800"}, None)
    assert log.event(sound).sound == b"\0wav"
    assert log.event(99) is None
    assert [event.id for event in log.after(0, ("typed", "said"))] == [typed, said]
    assert [event.id for event in log.after(typed, ("typed", "said"))] == [said]
    assert [event.id for event in log.after(0, ("typed", "said"), limit=1)] == [typed]
    assert [event.id for event in log.since(6.0, ("typed", "said", "sound"))] == [sound, said]
    assert log.newest(("typed", "said")).id == said
    assert log.newest(("typed", "said"), before=said).id == typed
    assert log.newest(("flip",)) is None
    assert [event.id for event in log.about(typed, ("said",))] == [said]
    assert log.about(typed, ("guess",)) == []
    log.blank(sound)
    assert log.event(sound).sound is None


def test_an_unknown_kind_is_refused(log):
    with pytest.raises(ValueError, match="expected one of the kinds"):
        log.append("flipp")


def test_the_state_of_the_lamp_is_the_newest_flip_or_act(log):
    tags = Tags.read()
    assert log.lamp(tags) == "off"
    first = log.append("flip", {"tag": "on"})
    second = log.append("act", {"tag": "off"}, about=1)
    assert log.lamp(tags) == "off"
    assert log.lamp(tags, before=second) == "on"
    assert log.lamp(tags, before=first) == "off"
    log.append("flip", {"tag": "dim"})  # from the time of other tags
    assert log.lamp(tags) == "off"


def test_a_step_deals_with_each_event_once(log):
    numbers = [log.append(kind) for kind in ("flip", "typed", "flip")]
    seen = []
    while log.step("reader", ("flip",), lambda event: seen.append(event.id)):
        pass
    assert seen == [numbers[0], numbers[2]]
    assert log.position("reader") == numbers[2]
    assert log.next("reader", ("flip",)) is None
    assert log.next("other", ("flip",)).id == numbers[0]


def test_a_step_that_fails_leaves_nothing(log):
    log.append("flip")

    def fail(event):
        log.append("act", about=event.id)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        log.step("reader", ("flip",), fail)
    assert (log.newest(("act",)), log.position("reader")) == (None, 0)
    assert log.step("reader", ("flip",), lambda event: None)


KILLED = """
import os, signal, sys
from examples.lamp.log import Log
def handle(event):
    log.append("act", about=event.id)
    if len(sys.argv) > 2:
        os.kill(os.getpid(), signal.SIGKILL)
with Log(sys.argv[1]) as log:
    while log.step("reader", ("flip",), handle):
        pass
"""


def test_a_process_that_is_killed_in_a_step_has_done_nothing_and_the_next_does_it_once(path, log):
    numbers = [log.append("flip") for _ in range(3)]
    assert run(KILLED, path, "kill").wait(60) == -signal.SIGKILL
    assert log.after(0, ("act",)) == []
    assert run(KILLED, path).wait(60) == 0
    assert [event.about for event in log.after(0, ("act",))] == numbers


def test_two_processes_of_one_name_are_noticed(log):
    log.move("reader", 5)
    with pytest.raises(InputError, match=r"expected one reader for .*, got two"):
        log.move("reader", 5)
    log.move("reader", 0)
    assert log.position("reader") == 0


WRITER = """
import sys
from examples.lamp.log import Log
with Log(sys.argv[1]) as log:
    for i in range(25):
        log.append("flip", {"tag": sys.argv[2], "i": i})
"""


def test_processes_that_open_and_write_at_once_lose_nothing(path):
    writers = [run(WRITER, path, name) for name in "abcd"]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    with Log(path) as log:
        events = log.after(0, ("flip",))
    assert sorted((event.body["tag"], event.body["i"]) for event in events) == [
        (name, i) for name in "abcd" for i in range(25)
    ]
    times = [event.time for event in events]
    assert times == sorted(times)


def test_waiting_ends_when_another_connection_writes_and_not_before(path, log):
    while log.wait(0):
        pass
    assert not log.wait(0.05)
    log.append("flip")
    assert not log.wait(0)  # one's own is no news

    def write():
        time.sleep(0.1)
        with Log(path) as other:
            other.append("flip")

    writer = threading.Thread(target=write)
    writer.start()
    assert log.wait(60)
    writer.join()


def test_what_was_written_between_two_waits_is_not_slept_over(path, log):
    with Log(path) as other:
        while log.wait(0):
            pass
        other.append("flip")
        assert log.wait(0)


def contents(path):
    return b"".join(file.read_bytes() for file in path.parent.glob(path.name + "*"))


@pytest.mark.parametrize("length", [1, 40, 3000])  # in a page of the tree, and in pages of its own
def test_erased_words_are_nowhere_in_the_files(path, log, length):
    words = ["w" + f"{number:05d}" * length for number in range(30)]  # ASCII
    utterances = []
    for word in words:
        sound = log.append("sound", sound=word.encode() * 2)
        typed = log.append("typed", {"text": f" {word} "}, sound)
        said = log.append("said", {"text": word}, typed)
        log.append("guess", {"why": {"words": [[word, "on", 1.0]]}}, said)
        log.append("act", {"tag": "on"}, said)
        log.append("lesson", {"tag": "on"}, said)
        log.blank(sound)
        utterances.append(said)
    traces = [word[:60].encode()[1:] if length > 1 else word.encode() for word in words]  # of any page of it
    assert all(trace in contents(path) for trace in traces)
    with Log(path) as other:  # a reader does not keep the words alive
        assert other.event(utterances[3]).body["text"] == words[3]
        for number in (3, 4, 29, 0):
            log.erase(utterances[number])
            log.erase(utterances[number])  # again, after it was killed
            assert other.event(utterances[number]) is None
        left = contents(path)
        erased = {0, 3, 4, 29}
        for number, trace in enumerate(traces):
            assert (trace in left) == (number not in erased)
    assert len(log.after(0, ("sound", "typed", "said", "guess", "lesson"))) == 26 * 5
    assert len(log.after(0, ("act",))) == 30  # the lamp stays as it is
    assert sorted(event.about for event in log.after(0, ("act",)) if event.about) == [
        said for number, said in enumerate(utterances) if number not in erased
    ]
    assert log.append("flip") > max(utterances)  # a number is never given twice


def test_no_trace_is_left_where_pages_were_split(path, log):
    sizes, utterances = random.Random(31), []  # noqa: S311 - here `secure_delete` leaves a trace without VACUUM
    with log.transaction():
        for number in range(40):
            word = f"Q{number:04d}" + "z" * sizes.choice([3, 30, 300, 900, 2500])
            typed = log.append("typed", {"text": word})
            utterances.append(log.append("said", {"text": word}, typed))
            log.append("guess", {"why": [word, word]}, utterances[-1])
    for number in sizes.sample(range(40), 12):
        assert f"Q{number:04d}z".encode() in contents(path)
        log.erase(utterances[number])
        assert f"Q{number:04d}z".encode() not in contents(path)


def test_erasing_keeps_the_wish_to_forget(log):
    said = log.append("said", {"text": "a"}, log.append("typed", {"text": "a"}))
    forget = log.append("forget", {}, said)
    log.erase(said)
    assert log.event(forget).about == said


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_kept_and_have_a_range(path, log, name):
    start, low, high = SETTINGS[name]
    assert log.setting(name) == start
    for value in (low, high):
        log.set(name, value)
        with Log(path) as other:
            assert other.setting(name) == value
    for value in (low - 0.01, high + 0.01, math.nan, math.inf, "1", None, True, 10**400):
        with pytest.raises(InputError, match=f"expected as {name} a number from"):
            log.set(name, value)
    assert log.setting(name) == high
    with pytest.raises(InputError, match="expected one of the settings"):
        log.set("colour", 1)


def filled(path):
    with Log(path) as log:
        for number in range(200):
            log.append("typed", {"text": f"{number} " * 50})
    return path.read_bytes()


def broken(whole, way):
    if way == "text":
        return b"a letter to my aunt " * 300
    if way == "half":
        return whole[: len(whole) // 2]
    if way == "page":
        return whole[:8192] + b"\xa5" * 4096 + whole[12288:]
    return b"\0" * 100 + whole[100:]  # its head


@pytest.mark.parametrize("way", ["text", "half", "page", "head"])
def test_a_damaged_file_is_named_and_left_as_it_is(path, way):
    damaged = broken(filled(path), way)
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"is damaged \(.*left as it is: move it away to begin anew, or restore"):
        Log(path)
    assert path.read_bytes() == damaged


def test_a_file_that_is_damaged_while_it_is_open_is_named(path):
    whole = filled(path)
    with Log(path) as log:
        path.write_bytes(broken(whole, "head"))
        with pytest.raises(InputError, match="is damaged"), Log(path) as other:
            other.after(0, sorted(KINDS))
        log._database.execute("PRAGMA cache_size = 0")
        with pytest.raises(InputError, match="is damaged"):
            log.after(0, sorted(KINDS))


def test_another_database_is_not_taken_for_a_log(path):
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE bookmarks (address)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="another SQLite database; name another file"):
        Log(path)
    assert path.read_bytes() == before


def test_a_log_that_cannot_be_opened_is_named(tmp_path):
    for place in (tmp_path, tmp_path / "missing" / "lamp.sqlite"):
        with pytest.raises(InputError, match=f"got {place}"):
            Log(place)


def test_an_empty_file_becomes_a_log(path):
    path.touch()
    with Log(path) as log:
        assert log.append("flip") == 1


def test_the_file_of_tags_is_read():
    tags = Tags.read()
    assert (tags.name, tags.none, tags.start, tags.names) == ("Lamp", "none", "off", ("on", "off", "none"))
    assert [(state.label, state.level) for state in tags.states] == [("On", 1.0), ("Off", 0.0)]


STATE = '[[state]]\nname = "{}"\nlabel = "A"\n'
HEAD = 'name = "Fan"\nnone = "none"\nstart = "a"\n'


def test_a_switch_may_have_other_states(tmp_path):
    (tmp_path / "tags.toml").write_text(HEAD + "".join(map(STATE.format, "abcdefgh")))
    assert Tags.read(tmp_path / "tags.toml").names == (*"abcdefgh", "none")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (HEAD + STATE.format("a"), "two to eight tables"),
        (HEAD + "".join(map(STATE.format, "abcdefghi")), "two to eight tables"),
        (HEAD + "state = [1, 2]", "two to eight tables"),
        (HEAD + STATE.format("a") * 2, "a name of its own"),
        (HEAD + STATE.format("a") + STATE.format("none"), "a name of its own"),
        (HEAD + STATE.format("b") + STATE.format("c"), "expected as start one of the states b, c, got a"),
        (HEAD + STATE.format("a") + STATE.format("B"), "small letters"),
        (HEAD + STATE.format("a") + STATE.format("<b>"), "small letters"),
        (HEAD + STATE.format("a") + STATE.format("b") + "level = 2", "a number from 0 to 1"),
        (HEAD + STATE.format("a") + STATE.format("b") + "level = nan", "a number from 0 to 1"),
        (HEAD + STATE.format("a") + STATE.format("b") + "words = 1", "a list of words"),
        (HEAD + STATE.format("a") + STATE.format("b") + "colour = 1", "got colour"),
        ("colour = 1\n" + HEAD + STATE.format("a") + STATE.format("b"), "got colour"),
        (HEAD.replace('"Fan"', "3") + STATE.format("a") + STATE.format("b"), "expected a line such as name"),
        ("name = ", "expected a TOML file"),
        ("name = '\udcff'", "expected a TOML file"),
        (None, "expected a file of tags"),
    ],
)
def test_a_file_of_tags_that_cannot_be_used_is_named(tmp_path, text, problem):
    file = tmp_path / "tags.toml"
    if text is not None:
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=problem) as caught:
        Tags.read(file)
    assert str(file) in str(caught.value)


def test_the_comments_of_the_file_of_tags_are_true():
    assert "--tags" in DEFAULT.read_text()
    assert json.loads(json.dumps(Tags.read().names)) == ["on", "off", "none"]
