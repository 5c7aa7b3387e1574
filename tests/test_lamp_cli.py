"""The command line of the lamp: what it writes into the log, what it refuses, that `serve` starts all; its README."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from typer.main import get_command

from examples.lamp import __main__ as command_line
from examples.lamp.bridges import PASSWORD, TOKEN, USER
from examples.lamp.log import Log
from examples.lamp.supervisor import LOG, PROCESSES
from examples.lamp.tags import Tags

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "examples" / "lamp" / "README.md").read_text(encoding="utf-8")
WAIT = 60  # seconds that a test waits for a process at most


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder; return its status and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["lamp", *words])
        status = command_line.main()
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def log(tmp_path):
    (tmp_path / "lamp-data").mkdir()
    with Log(tmp_path / "lamp-data" / LOG) as log:
        yield log


def test_say(run, log):
    status, out, err = run("say", "light on 💡", "--json")
    (event,) = log.after(0, ["typed"])
    assert (status, json.loads(out), err) == (0, {"event": event.id}, "")
    assert event.body == {"text": "light on 💡", "via": "typed"}


def test_flip(run, log):
    assert run("flip", "on") == (0, "event: 1\n", "")
    assert log.event(1).body == {"tag": "on"}
    status, out, err = run("flip", "dim")
    assert (status, out, err) == (2, "", "error: expected one of the states on, off, got 'dim'\n")
    assert run("flip", "none")[0] == 2
    assert log.event(2) is None


def test_forget(run, log):
    typed = log.append("typed", {"text": "secret", "via": "typed"})
    said = log.append("said", {"text": "secret", "via": "typed"}, typed)
    assert run("forget", str(said), "--json") == (0, '{"event": 3}\n', "")
    assert (log.event(3).kind, log.event(3).about) == ("forget", said)
    for number, found in ((typed, "typed"), (99, "nothing"), (0, "nothing"), (2**70, "nothing")):
        status, out, err = run("forget", str(number))
        assert (status, out) == (2, "")
        assert err == f"error: expected the number of what was said, got {number}, which is {found}; see the log\n"
    assert log.event(4) is None


def test_log(run, log):
    assert run("log") == (0, "", "")
    log.append("flip", {"tag": "on"}, time=0.0)
    log.append("sound", sound=b"12345", time=1.0)
    log.append("typed", {"text": "日本", "via": "typed"}, 2, time=2.0)
    _, out, _ = run("log", "-n", "2")
    first, second = out.splitlines()
    assert first.split()[0] == "2"
    assert second.split()[0] == "3"
    assert 'typed   about 2  {"text": "日本", "via": "typed"}' in second
    events = json.loads(run("log", "--json")[1])
    assert [event["id"] for event in events] == [1, 2, 3]
    assert (events[1]["sound"], events[2]["body"]["text"]) == (5, "日本")


@pytest.mark.parametrize("words", [["say", "hi"], ["flip", "on"], ["forget", "1"], ["log"]])
def test_a_folder_without_a_lamp(run, tmp_path, words):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.startswith("error: expected the folder of a lamp, got lamp-data; start it with serve")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_log_is_left_as_it_is(run, tmp_path):
    (tmp_path / "lamp-data").mkdir()
    (tmp_path / "lamp-data" / LOG).write_bytes(b"no database" * 1000)
    for words in (["say", "hi"], ["log"], ["serve"]):
        status, _, err = run(*words)
        assert status == 2
        assert "is damaged" in err
        assert err.count("\n") == 1
    assert (tmp_path / "lamp-data" / LOG).read_bytes() == b"no database" * 1000


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["flip"], "Missing argument"),
        (["dance"], "No such command 'dance'"),
        (["serve", "--port", "0"], "--port"),
        (["serve", "--tags", "none.toml"], "none.toml"),
        (["serve", "--speech", "nowhere"], "nowhere: expected a folder with a wav2vec2 model"),
        (["serve", "--mqtt", "host"], "expected HOST:PORT/TOPIC"),
        (["serve", "--home-assistant", "http://host"], "expected --entity"),
        (["serve", "--token", "file"], "expected --entity"),
        (["serve", "--entity", "light.desk"], "expected --home-assistant with --entity, or --mqtt"),
        (["serve", "--home-assistant", "http://host", "--entity", "light.desk"], f"{TOKEN}: expected an access token"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_anything_starts(run, tmp_path, monkeypatch, words, found):
    monkeypatch.delenv(TOKEN, raising=False)
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert found in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_words_it_helps(run):
    status, out, _ = run()
    assert status == 0
    assert all(name in out for name in ("serve", "say", "flip", "forget", "log", "stress"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition):
    end = time.monotonic() + WAIT
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


def page(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=WAIT) as answer:
            return answer.read()
    except urllib.error.URLError:
        return None


def test_serve_starts_the_page_and_the_processes_and_ctrl_c_ends_them(tmp_path):
    port, notes = free_port(), tmp_path / "notes.txt"
    notes.write_text("from the file\n")
    words = [sys.executable, "-m", "examples.lamp", "serve", "--folder", tmp_path / "data", "--port", str(port)]
    process = subprocess.Popen(
        [*words, "--file", notes], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == f"Lamp: http://localhost:{port}/ (Ctrl-C ends it)\n"
        assert b"<html" in until(lambda: process.poll() or page(port))
        words[-1] = str(free_port())
        again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (again.returncode, again.stderr.count("\n")) == (2, 1)
        assert "a lamp runs there already" in again.stderr
        with Log(tmp_path / "data" / LOG) as log:
            log.append("typed", {"text": "hello", "via": "typed"})
            log.append("sound", sound=b"nothing")
            until(lambda: len(log.after(0, ["said"])) == 2)
            assert {event.body["text"] for event in log.after(0, ["said"])} == {"from the file", "hello"}
            told = until(lambda: [e for e in log.after(0, ["trouble"]) if e.body["process"] == "transcriber"])
            assert "start with --speech FOLDER" in told[0].body["why"]
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=WAIT)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert page(port) is None


# examples/lamp/README.md


def test_its_commands_and_options_exist():
    known = get_command(command_line.app).commands
    lines = re.findall(r"python -m examples\.lamp ([^\n#`]*)", GUIDE)
    assert len(lines) >= 8
    for name, *words in map(str.split, lines):
        options = {option for parameter in known[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options
    named = set(re.findall(r"`(--[a-z-]+)", GUIDE)) - {"--help"}
    assert named <= {option for command in known.values() for parameter in command.params for option in parameter.opts}


def test_its_variables_and_files_exist():
    assert set(re.findall(r"WARMSTART_\w+", GUIDE)) == {TOKEN, USER, PASSWORD}
    assert f"lamp-data/{LOG}" in GUIDE
    assert all(f"\n| {name} |" in GUIDE for name in PROCESSES)


def test_its_switch_is_one(tmp_path):
    (tmp_path / "tags.toml").write_text(re.search(r"```toml\n(.*?)```", GUIDE, re.S)[1])
    assert Tags.read(tmp_path / "tags.toml").names == ("off", "dim", "bright", "none")
