"""The lamp's processes: each step by itself, then all of them running, killed and started again."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.lamp import recorder
from examples.lamp.anticipator import Anticipator
from examples.lamp.log import Log
from examples.lamp.model import Guess, LampModel, Predictor
from examples.lamp.operator import Operator
from examples.lamp.process import BAD_INPUT
from examples.lamp.recorder import LONGEST, Recorder
from examples.lamp.stress import stress
from examples.lamp.supervisor import LOG, PROCESSES, Supervisor
from examples.lamp.tags import Tags
from examples.lamp.trainer import MODEL, Trainer
from warmstart.errors import InputError

ROOT = Path(__file__).parents[1]
TAGS = Tags.read()
PATIENCE = 60  # seconds


@pytest.fixture
def path(tmp_path):
    return tmp_path / LOG


@pytest.fixture
def log(path):
    with Log(path) as log:
        yield log


def all_of(step):
    """Call a step until there is nothing to do."""
    while step():
        pass


def bodies(log, *kinds):
    return [event.body for event in log.after(0, kinds)]


def say(log, text="light", time=None):
    """Say something, as if the recorder had dealt with it."""
    typed = log.append("typed", {"text": text, "via": "typed"}, time=time)
    return log.append("said", {"text": text, "via": "typed"}, typed, time=time)


# The recorder


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("  light\r\n\ton  ", "light on"),
        ("light\0on\x1b[31m", "light on [31m"),
        ("cafe\u0301", "caf\u00e9"),
        ("💡 an 👩‍👧", "💡 an 👩‍👧"),
        ("أطفئ الضوء", "أطفئ الضوء"),
        ("a\ud800b", "a b"),
        ("a\u2028b\u00a0c", "a b c"),
    ],
)
def test_what_was_typed_becomes_one_clean_line(log, typed, said):
    number = log.append("typed", {"text": typed, "via": "speech"}, time=12.5)
    all_of(Recorder(log).step)
    (event,) = log.after(0, ("said",))
    assert event[1:5] == (12.5, "said", number, {"text": said, "via": "speech"})


def test_a_long_utterance_is_cut_and_that_is_noted(log):
    for length in (LONGEST, LONGEST + 1, 100_000):
        log.append("typed", {"text": "x" * length, "via": "typed"})
    all_of(Recorder(log).step)
    assert [(len(body["text"]), body.get("cut")) for body in bodies(log, "said")] == [
        (LONGEST, None),
        (LONGEST, LONGEST + 1),
        (LONGEST, 100_000),
    ]


def test_nothing_is_refused_in_plain_words(log):
    empty = [log.append("typed", {"text": text, "via": "typed"}) for text in ("", " \n ", "\u200b\u200d", "\0")]
    all_of(Recorder(log).step)
    assert bodies(log, "said") == []
    assert [event.about for event in log.after(0, ("refused",))] == empty
    assert all("There is nothing in it" in body["why"] for body in bodies(log, "refused"))


def test_something_spoken_has_the_time_when_it_was_spoken(log):
    sound = log.append("sound", sound=b"", time=3.0)
    log.append("typed", {"text": "light", "via": "speech"}, sound, time=8.0)
    all_of(Recorder(log).step)
    assert log.newest(("said",)).time == 3.0


def test_a_file_is_followed_line_by_line_and_none_is_read_twice(log, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_bytes("\ufeffone\r\n\n  \ntwo\nhal".encode())
    all_of(Recorder(log, file).step)
    assert [body["text"] for body in bodies(log, "said")] == ["one", "two"]
    with file.open("ab") as opened:
        opened.write("f\nthrée\n".encode())
    all_of(Recorder(log, file).step)  # as after a kill
    all_of(Recorder(log, file).step)
    assert [body["text"] for body in bodies(log, "said")] == ["one", "two", "half", "thrée"]
    assert {body["via"] for body in bodies(log, "said")} == {"file"}


def test_lines_that_cannot_be_read_are_reported_and_the_others_are_kept(log, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_bytes(b"one\n\xff\xfe\ntwo\n")
    follower = Recorder(log, file)
    all_of(follower.step)
    file.write_bytes(b"new\n")
    all_of(follower.step)
    assert [body["text"] for body in bodies(log, "typed")] == ["one", "two", "new"]
    first, second = (body["why"] for body in bodies(log, "trouble"))
    assert "not in UTF-8" in first
    assert "has become shorter" in second


def test_a_line_without_end_does_not_fill_the_memory(log, tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "CHUNK", 10)
    file = tmp_path / "notes.txt"
    file.write_bytes(b"abcdefghijKLMNOPQRSTuv\nw\n")
    all_of(Recorder(log, file).step)
    assert [body["text"] for body in bodies(log, "typed")] == ["abcdefghij", "KLMNOPQRST", "uv", "w"]


def test_a_file_that_is_missing_is_named(log, tmp_path):
    for place in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(InputError, match=f"expected a text file to follow, got {place}; create it"):
            Recorder(log, place)


# The anticipator


class Fixed:
    """A model that always says the same."""

    def __init__(self, **probabilities):
        self.guess = Guess(probabilities, [("light", "on", 1.5)], [(7, "on", 0.5)])

    def predict(self, text):
        return self.guess


def lessons(log):
    return [(event.about, event.body["tag"], event.body["reason"]) for event in log.after(0, ("lesson",))]


def test_without_a_model_nothing_is_done(log):
    said = say(log)
    all_of(Anticipator(log, TAGS).step)
    (guess,) = log.about(said, ("guess",))
    assert guess.body["probabilities"] == {"on": 0.0, "off": 0.0, "none": 1.0}
    assert (guess.body["tag"], guess.body["act"]) == ("none", False)


@pytest.mark.parametrize(
    ("on", "none", "threshold", "tag", "act"),
    [
        (0.75, 0.2, 0.7, "on", True),
        (0.75, 0.2, 0.75, "on", True),
        (0.75, 0.2, 0.76, "on", False),
        (0.4, 0.6, 0.1, "none", False),
    ],
)
def test_it_acts_if_the_most_probable_tag_is_a_state_and_sure_enough(log, on, none, threshold, tag, act):
    log.set("threshold", threshold)
    anticipator = Anticipator(log, TAGS)
    anticipator.predictor = Fixed(on=on, none=none, off=1 - on - none)
    say(log)
    all_of(anticipator.step)
    (guess,) = bodies(log, "guess")
    assert (guess["tag"], guess["act"], guess["window"]) == (tag, act, 10.0)
    assert guess["why"] == {"words": [["light", "on", 1.5]], "sentences": [[7, "on", 0.5]]}
    assert guess["ms"] > 0


def test_flips_and_silence_become_lessons_by_the_clock(log):
    now = time.time()
    clock = [now]
    anticipator = Anticipator(log, TAGS, lambda: clock[0])
    first = say(log, time=now)
    log.append("flip", {"tag": "on"}, time=now + 4)
    second = say(log, time=now + 20)
    third = say(log, time=now + 22)
    log.append("act", {"tag": "off"}, third, time=now + 23)
    all_of(anticipator.step)
    assert lessons(log) == [(first, "on", "flip")]
    clock[0] = now + 30
    all_of(anticipator.step)
    assert len(lessons(log)) == 1
    clock[0] = now + 40
    all_of(anticipator.step)
    assert lessons(log)[1:] == [(second, "none", "silence"), (third, "off", "kept")]


def story(log, now):
    """A day: said, flips, acts, corrections, silence, another window, and things that arrive late."""
    events = [
        ("typed", 0), ("flip", 1, "on"), ("said", 0), ("typed", 3), ("said", 3), ("flip", 4, "off"), ("flip", 5, "on"),
        ("typed", 6), ("typed", 7), ("said", 7), ("flip", 8, "off"), ("said", 6), ("typed", 30), ("said", 30),
        ("act", 31, "on"), ("window", 2), ("typed", 50), ("said", 50), ("flip", 53, "off"), ("typed", 60),
        ("flip", 61, "on"), ("flip", 75, "off"), ("said", 60), ("typed", 80), ("said", 80), ("act", 80, "on"),
        ("flip", 81, "off"),
    ]  # fmt: skip
    typed, said = {}, 0
    for kind, when, *tag in events:
        if kind == "typed":
            typed[when] = log.append("typed", {"text": "light", "via": "typed"}, time=now + when)
        elif kind == "said":
            said = log.append("said", {"text": "light", "via": "typed"}, typed[when], time=now + when)
        elif kind == "window":
            log.set("window", when)
        else:
            log.append(kind, {"tag": tag[0]}, said if kind == "act" else None, time=now + when)
        yield


TAUGHT = {
    0: ("on", "flip"),
    3: ("none", "correction"),
    6: ("none", "silence"),
    7: ("off", "flip"),
    30: ("on", "kept"),
    50: ("none", "silence"),
    60: ("on", "flip"),
    80: ("none", "correction"),
}


@pytest.mark.parametrize("restart", ["never", "at each event", "at the end"])
def test_lessons_do_not_depend_on_when_the_process_was_killed(log, restart):
    now = time.time() - 1000
    anticipator = Anticipator(log, TAGS, lambda: now)
    for _ in story(log, now):
        if restart == "at each event":
            all_of(anticipator.step)
            anticipator = Anticipator(log, TAGS, lambda: now)
        elif restart == "never":
            all_of(anticipator.step)
    anticipator = Anticipator(log, TAGS) if restart != "never" else anticipator
    anticipator.now = time.time
    all_of(anticipator.step)
    final = {}
    for utterance, tag, reason in lessons(log):
        final[round(log.event(utterance).time - now)] = (tag, reason)
    assert final == TAUGHT
    before = lessons(log)
    all_of(Anticipator(log, TAGS).step)
    assert lessons(log) == before


@pytest.mark.parametrize("restart", [False, True])
def test_a_changed_window_counts_for_new_utterances(log, restart):
    now = time.time() - 1000
    anticipator = Anticipator(log, TAGS, lambda: now)
    first = say(log, time=now)
    all_of(anticipator.step)
    log.set("window", 2)
    if restart:
        anticipator = Anticipator(log, TAGS, lambda: now)
    log.append("flip", {"tag": "on"}, time=now + 5)
    second = say(log, time=now + 20)
    all_of(anticipator.step)
    log.append("flip", {"tag": "on"}, time=now + 25)
    all_of(anticipator.step)
    assert lessons(log) == [(first, "on", "flip"), (second, "none", "silence")]


def test_an_utterance_that_is_forgotten_while_it_waits_is_not_taught(log):
    now = time.time()
    anticipator = Anticipator(log, TAGS, lambda: now + 1)
    first, second, third = (say(log, time=now) for _ in range(3))
    anticipator.step()
    anticipator.step()
    log.erase(third)  # before its guess
    log.erase(second)
    log.append("flip", {"tag": "on"}, time=now + 1)
    all_of(anticipator.step)
    anticipator.now = lambda: now + 100
    all_of(anticipator.step)
    assert lessons(log) == [(first, "on", "flip")]
    assert [event.about for event in log.after(0, ("guess",))] == [first]


def test_an_utterance_that_is_forgotten_during_its_prediction_gets_no_guess(log, path):
    class Slow(Fixed):
        def predict(self, text):
            with Log(path) as other:
                other.erase(said)
            return self.guess

    anticipator = Anticipator(log, TAGS)
    anticipator.predictor = Slow(on=1.0)
    said = say(log)
    all_of(anticipator.step)
    assert log.after(0, ("said", "guess", "lesson")) == []


def test_a_flood_of_flips_is_kept_and_the_last_one_counts(log):
    anticipator, operated, now = Anticipator(log, TAGS), [], time.time()
    operator = Operator(log, TAGS, operated.append)
    said = say(log, time=now)
    for number in range(301):
        log.append("flip", {"tag": "on" if number % 2 else "off"}, time=now + number / 100)
    all_of(anticipator.step)
    all_of(operator.step)
    assert len(bodies(log, "flip")) == 301
    assert lessons(log)[-1] == (said, "none", "correction")
    assert operated == ["off", "off"]  # at the start, and the newest
    assert log.lamp(TAGS) == "off"


def test_a_model_that_is_missing_is_reported(log, path):
    log.append("trained", {"model": MODEL, "names": list(TAGS.names)})
    for damage in (lambda file: None, lambda file: file.write_bytes(b"no model")):
        damage(path.with_name(MODEL))
        anticipator = Anticipator(log, TAGS)
        say(log)
        all_of(anticipator.step)
        assert "There is no model to guess with" in bodies(log, "trouble")[-1]["why"]
        assert bodies(log, "guess")[-1]["tag"] == "none"


def test_a_model_of_another_switch_is_not_asked(log, path):
    model = LampModel(["up", "none"], "none")
    model.save(path.with_name(MODEL))
    log.append("trained", {"model": MODEL, "names": ["up", "none"]})
    assert Anticipator(log, TAGS).predictor is None


# The trainer


def teach(log, text, tag):
    said = say(log, text)
    log.append("lesson", {"tag": tag, "reason": "flip"}, said)
    return said


def guessed(path, text):
    guess = Predictor.load(path.with_name(MODEL)).predict(text).probabilities
    return max(guess, key=guess.get)


def test_all_lessons_that_wait_are_learnt_at_once_and_the_anticipator_uses_them(log, path):
    anticipator = Anticipator(log, TAGS)
    for _ in range(3):
        teach(log, "light please", "on")
        teach(log, "nice weather", "none")
    relabelled = teach(log, "nice weather", "on")
    log.append("lesson", {"tag": "none", "reason": "correction"}, relabelled)
    trainer = Trainer(log, TAGS)
    assert trainer.step()
    assert not trainer.step()
    (trained,) = bodies(log, "trained")
    assert (trained["lessons"], trained["model"]) == (7, MODEL)
    assert trained["ms"] > 0
    assert (guessed(path, "light please"), guessed(path, "nice weather")) == ("on", "none")
    all_of(anticipator.step)
    say(log, "light please")
    all_of(anticipator.step)
    assert bodies(log, "guess")[-1]["tag"] == "on"


def test_a_forgotten_utterance_leaves_no_trace(log, path):
    teach(log, "light please", "on")
    all_of(Trainer(log, TAGS).step)
    before = path.with_name(MODEL).read_bytes()
    trainer = Trainer(log, TAGS)
    secret = teach(log, "xylophone", "off")
    all_of(Anticipator(log, TAGS).step)
    all_of(trainer.step)
    assert path.with_name(MODEL).read_bytes() != before
    log.append("forget", {}, secret)
    log.append("forget", {}, secret)  # from two tabs
    log.append("lesson", {"tag": "none", "reason": "silence"}, secret)
    all_of(trainer.step)
    log.append("forget", {}, secret)
    all_of(trainer.step)
    assert path.with_name(MODEL).read_bytes() == before
    assert bodies(log, "trained")[-1]["lessons"] == 1
    assert all(b"xylophone" not in file.read_bytes() for file in path.parent.rglob("*") if file.is_file())


@pytest.mark.parametrize("where", ["erase", "move"])
def test_a_trainer_that_is_killed_while_it_forgets_does_it_again(log, path, monkeypatch, where):
    teach(log, "light please", "on")
    all_of(Trainer(log, TAGS).step)
    before = path.with_name(MODEL).read_bytes()
    secret = teach(log, "xylophone", "off")
    all_of(Trainer(log, TAGS).step)
    log.append("forget", {}, secret)
    with monkeypatch.context() as patch:
        patch.setattr(log, where, None)
        with pytest.raises(TypeError):
            Trainer(log, TAGS).step()
    all_of(Trainer(log, TAGS).step)
    assert path.with_name(MODEL).read_bytes() == before
    assert log.event(secret) is None
    assert all(b"xylophone" not in file.read_bytes() for file in path.parent.glob(LOG + "*"))


@pytest.mark.parametrize("way", ["missing", "older", "damaged"])
def test_a_model_that_is_not_that_of_the_log_is_learnt_anew(log, path, way):
    file = path.with_name(MODEL)
    teach(log, "light please", "on")
    all_of(Trainer(log, TAGS).step)
    older = file.read_bytes()
    teach(log, "good night", "off")
    all_of(Trainer(log, TAGS).step)
    whole = file.read_bytes()
    assert not Trainer(log, TAGS).step()  # it is as it should be
    if way == "missing":
        file.unlink()
    else:
        file.write_bytes(older if way == "older" else whole[:-1])
    all_of(Trainer(log, TAGS).step)
    assert file.read_bytes() == whole
    assert [body["lessons"] for body in bodies(log, "trained")] == [1, 2, 2]


def test_a_switch_with_other_states_keeps_the_lessons_that_it_has(log, path, tmp_path):
    teach(log, "light please", "on")
    teach(log, "some light", "dim")
    trainer = Trainer(log, TAGS)
    all_of(trainer.step)
    teach(log, "some light", "dim")
    all_of(trainer.step)
    assert [body["lessons"] for body in bodies(log, "trained")] == [1, 1]
    assert [body["why"] for body in bodies(log, "trouble")] == [
        "The switch no longer has the state dim: what was learnt of it is left out."
    ]
    (tmp_path / "tags.toml").write_text(
        'name = "L"\nnone = "none"\nstart = "off"\n'
        + "".join(f'[[state]]\nname = "{name}"\nlabel = "L"\n' for name in ("on", "dim", "off"))
    )
    all_of(Trainer(log, Tags.read(tmp_path / "tags.toml")).step)
    assert bodies(log, "trained")[-1]["lessons"] == 3
    assert guessed(path, "some light") == "dim"


def test_what_a_killed_trainer_has_left_half_written_is_removed(log, path):
    half = path.with_name(f".{MODEL}.abc")
    half.mkdir()
    (half / MODEL).write_bytes(b"xylophone")
    Trainer(log, TAGS)
    assert not half.exists()


# The operator


def guess(log, act=True, **times):
    said = say(log, **times)
    log.append("guess", {"tag": "on", "act": act, "window": 10.0}, said)
    return said


def test_it_acts_on_a_sure_guess(log):
    moved = []
    operator = Operator(log, TAGS, moved.append)
    said = guess(log)
    all_of(operator.step)
    all_of(Operator(log, TAGS).step)
    assert [(event.about, event.body) for event in log.after(0, ("act",))] == [(said, {"tag": "on"})]
    assert moved == ["off", "on"]


def test_it_does_not_act_if_unsure_or_late_or_forgotten_or_after_a_flip(log):
    guess(log, act=False)
    guess(log, time=time.time() - 11)
    log.erase(guess(log))
    log.append("guess", {"tag": "on", "act": True, "window": 10.0}, 999)
    all_of(Operator(log, TAGS).step)
    guess(log)
    log.append("flip", {"tag": "off"})
    all_of(Operator(log, TAGS).step)
    assert bodies(log, "act") == []


def test_it_acts_if_the_flip_was_before(log):
    log.append("flip", {"tag": "off"})
    said = guess(log)
    all_of(Operator(log, TAGS).step)
    assert [event.about for event in log.after(0, ("act",))] == [said]


# All of them, running


def running(folder):
    """Return the processes whose command line names the folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        if os.fsencode(folder / LOG) in words:
            found.append(int(file.parent.name))
    return found


def until(what, log=None):
    end = time.monotonic() + PATIENCE
    while not (result := what()):
        assert time.monotonic() < end, "it did not come"
        if log:
            log.wait(0.1)
        else:
            time.sleep(0.02)
    return result


def learnt(log, count):
    return until(lambda: (last := log.newest(("trained",))) and last.body["lessons"] == count, log)


def interact(log):
    log.append("typed", {"text": "light please", "via": "typed"})
    log.append("flip", {"tag": "on"})


def test_each_process_is_killed_in_turn_and_nothing_is_lost(tmp_path):
    with Supervisor(tmp_path / "lamp") as supervisor, Log(supervisor.log) as log:
        interact(log)
        learnt(log, 1)
        first = until(lambda: len(supervisor.pids()) == len(PROCESSES) and supervisor.pids())
        for number, name in enumerate(PROCESSES):
            os.kill(first[name], signal.SIGKILL)
            interact(log)
            assert log.lamp(TAGS) == "on"
            learnt(log, number + 2)
        second = until(lambda: len(supervisor.pids()) == len(PROCESSES) and supervisor.pids())
        assert not set(first.values()) & set(second.values())
        told = bodies(log, "trouble")
        with pytest.raises(InputError, match="a lamp runs there already; stop it first"):
            Supervisor(tmp_path / "lamp").__enter__()
        memory = sum(resident(second[name]) for name in ("anticipator", "trainer"))
    assert sorted(body["process"] for body in told) == sorted(PROCESSES)
    assert all("was killed (SIGKILL). It is started again" in body["why"] for body in told)
    assert running(tmp_path / "lamp") == []
    assert memory < 300 * 2**20


def resident(pid):
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def test_a_process_that_fails_again_and_again_is_started_less_and_less_often(tmp_path):
    options = {"recorder": ["--file", str(tmp_path / "missing.txt")]}
    with Supervisor(tmp_path / "lamp", options=options) as supervisor, Log(supervisor.log) as log:
        told = until(lambda: len(events := log.after(0, ("trouble",))) > 2 and events, log)
        log.append("flip", {"tag": "on"})
        assert log.lamp(TAGS) == "on"
    assert {event.body["process"] for event in told} == {"recorder"}
    assert all("create it first" in event.body["why"] for event in told)
    assert told[1].time - told[0].time > 0.25
    assert told[2].time - told[1].time > 0.5


def test_a_damaged_log_starts_nothing_and_is_left_as_it_is(tmp_path):
    (tmp_path / LOG).write_bytes(b"damaged" * 1000)
    for _ in range(2):  # the folder is free again
        with pytest.raises(InputError, match=r"is damaged .* left as it is"):
            Supervisor(tmp_path).__enter__()
    assert (tmp_path / LOG).read_bytes() == b"damaged" * 1000
    assert running(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="expected a folder"):
        Supervisor(tmp_path / "file").__enter__()


def start(name, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"examples.lamp.{name}", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_processes_end_with_their_supervisor_however_it_ends(tmp_path, number):
    folder = tmp_path / "lamp"
    with start("supervisor", folder) as supervisor:
        until(lambda: len(running(folder)) == len(PROCESSES))
        if number == signal.SIGINT:
            os.killpg(supervisor.pid, number)  # as a terminal does
        else:
            supervisor.send_signal(number)
        assert supervisor.wait(PATIENCE) == (-signal.SIGKILL if number == signal.SIGKILL else 0)
        assert supervisor.stderr.read() == ""
    until(lambda: not running(folder))
    shutil.rmtree(folder)


def test_a_process_says_what_is_wrong_and_ends(tmp_path, path):
    path.write_bytes(b"damaged" * 1000)
    with start("recorder", "--log", path) as process:
        assert (process.wait(PATIENCE), "is damaged" in process.stderr.read()) == (BAD_INPUT, True)
    path.unlink()
    with start("operator", "--log", path, "--tags", tmp_path / "missing.toml") as process:
        assert process.wait(PATIENCE) == BAD_INPUT
        assert process.stderr.read().startswith("expected a file of tags")
    with Log(path) as log:
        (told,) = bodies(log, "trouble")
    assert told["process"] == "operator"
    assert told["why"].startswith("expected a file of tags")


def test_processes_that_need_no_numbers_load_none():
    names = ", ".join(f"examples.lamp.{name}" for name in ("recorder", "operator", "log", "supervisor", "process"))
    code = f"import {names}, sys; print({{'numpy', 'numba', 'torch', 'scipy', 'sklearn'}} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "set()\n"
    code = "import examples.lamp.anticipator, sys; print({'numba', 'torch', 'scipy', 'sklearn'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "set()\n"


def test_nothing_is_lost_while_processes_are_killed_at_random(tmp_path):
    found = stress(tmp_path / "lamp", count=40, kill_every=8)
    assert {name: found[name] for name in ("said", "logged", "guessed", "lessons", "learnt")} == dict.fromkeys(
        ("said", "logged", "guessed", "lessons", "learnt"), 40
    )
    assert {name: found[name] for name in ("wrong_lessons", "flips_refused", "lost", "doubled")} == dict.fromkeys(
        ("wrong_lessons", "flips_refused", "lost", "doubled"), 0
    )
    assert found["kills"] == found["restarts"] == 5
    assert found["flips"] > 20
