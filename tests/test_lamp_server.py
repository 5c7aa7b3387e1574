"""The server of the lamp's page: who may talk to it, what it takes, and what it tells."""

import base64
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the lamp needs its packages: pip install 'warmstart[lamp]'")
pytest.importorskip("websockets", reason="the lamp needs its packages: pip install 'warmstart[lamp]'")

from fastapi.testclient import TestClient
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from examples.lamp.log import KINDS, Log
from examples.lamp.messages import LONGEST, LONGEST_SOUND, LONGEST_TEXT
from examples.lamp.server import PAGE, app, serve, serving
from examples.lamp.supervisor import LOG
from examples.lamp.tags import Tags
from warmstart.errors import InputError

TAGS = Tags.read()
PATIENCE = 30  # seconds
KEYS = map(str, count())


class Tab:
    """What a tab of a browser does, without drawing."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []
        self.erased: list[int] = []
        self.answers: list[dict[str, str]] = []
        self.state: dict[str, Any] = {}
        self.wait(lambda: bool(self.state))

    def wait(self, done: Callable[[], bool]) -> None:
        while not done():
            news = json.loads(self.socket.recv(PATIENCE))
            if "answer" in news:
                self.answers.append(news)
            else:
                self.state |= news
                self.events += news.get("events", [])
                self.erased += news.get("erased", [])

    def send(self, **message: Any) -> None:
        self.socket.send(json.dumps({"key": next(KEYS), **message}))

    def ask(self, **message: Any) -> str:
        """Send a message, and return why it was refused; "" if it was not."""
        return self.ask_raw(json.dumps({"key": next(KEYS), **message}))

    def ask_raw(self, message: str | bytes) -> str:
        known = len(self.answers)
        self.socket.send(message)
        self.wait(lambda: len(self.answers) > known)
        return self.answers[-1].get("refused", "")

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with serving(app(tmp_path, TAGS)) as address:
        yield address


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with Log(tmp_path / LOG) as log:
        yield log


@contextlib.contextmanager
def opened(address: str, query: str = "") -> Iterator[Tab]:
    with connect(f"{address.replace('http', 'ws')}/events{query}", origin=address) as socket:  # type: ignore[arg-type]
        yield Tab(socket)


def everything(log: Log) -> list[Any]:
    return log.after(0, sorted(KINDS))


def said(log: Log, text: str) -> int:
    return log.append("said", {"text": text, "via": "typed"}, log.append("typed", {"text": text, "via": "typed"}))


def a_sound(samples: int = 100) -> bytes:
    file = BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16000)
        sound.writeframes(bytes(2 * samples))
    return file.getvalue()


def test_the_page_is_served_with_a_strict_policy_and_nothing_else_is(tmp_path):
    client = TestClient(app(tmp_path, TAGS), base_url="http://localhost:8000")
    for file in PAGE.iterdir():
        answer = client.get("/" if file.name == "index.html" else f"/{file.name}")
        assert answer.content == file.read_bytes()
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    for path in ("/docs", "/openapi.json", "/server.py", "/..%2fserver.py", "/%2e%2e/tags.toml", f"/{LOG}"):
        assert client.get(path).status_code == 404


def test_the_page_loads_nothing_from_elsewhere():
    for file in PAGE.iterdir():
        text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text
        assert "innerHTML" not in text
        assert "eval(" not in text


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "10.0.0.7"]
)
def test_a_host_of_this_machine_is_answered(tmp_path, host):
    assert TestClient(app(tmp_path, TAGS)).get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["example.org", "localhost.example.org", "127.0.0.1.example.org", "x@", "[::1", ""])
def test_another_host_is_refused(tmp_path, host):
    answer = TestClient(app(tmp_path, TAGS)).get("/", headers={"Host": host})
    assert answer.status_code == 400
    assert "Expected as host a number address or one of: localhost" in answer.text


def test_a_name_that_is_told_is_answered(tmp_path):
    client = TestClient(app(tmp_path, TAGS, hosts=["Lamp.local"]))
    assert client.get("/", headers={"Host": "lamp.local:80"}).status_code == 200
    assert client.get("/", headers={"Host": "localhost"}).status_code == 400


@pytest.mark.parametrize("origin", [None, "http://example.org", "null", "http://127.0.0.1", "http://localhost:{port}"])
def test_a_websocket_of_another_origin_is_refused(address, origin):
    port = address.rpartition(":")[2]
    with pytest.raises(InvalidStatus, match="400"):
        connect(f"{address.replace('http', 'ws')}/events", origin=origin and origin.format(port=port))


def test_what_a_person_does_is_written_into_the_log(address, log):
    utterance = said(log, "light")
    with opened(address) as tab:
        assert tab.ask(do="say", text="It is dark", via="typed") == ""
        assert tab.ask(do="flip", tag="on") == ""
        assert tab.ask(do="lesson", about=utterance, tag="none") == ""
        assert tab.ask(do="forget", about=utterance) == ""
        assert tab.ask(do="set", name="threshold", value=0.9) == ""
        tab.wait(lambda: tab.state["settings"]["threshold"] == 0.9 and "forget" in tab.kinds())
    written = [(event.kind, event.about, event.body) for event in everything(log)[2:]]
    assert written == [
        ("typed", None, {"text": "It is dark", "via": "typed"}),
        ("flip", None, {"tag": "on"}),
        ("lesson", utterance, {"tag": "none", "reason": "correction", "by": "page"}),
        ("forget", utterance, {}),
    ]
    assert log.setting("threshold") == 0.9
    assert tab.state["lamp"] == "on"


BAD = {
    "no JSON": ("{", "a message in JSON, got '{'"),
    "deep": ("[" * 100_000, "a message in JSON"),
    "a long number": ("9" * 10_000, "a message in JSON"),
    "a list": ("[1]", "a message with names and values, got a list"),
    "bytes": (b"{}", "a message of text, got bytes"),
    "too long": (json.dumps("x" * LONGEST), "at most 1,400,000 characters, got 1,400,002"),
    "no key": ('{"do": "flip", "tag": "on"}', "as key a text, got None"),
    "a long key": (json.dumps({"key": "k" * 65}), "as key at most 64 characters, got 65"),
    "nothing to do": ('{"key": "k"}', "say, sound, flip, lesson, forget or set, got None"),
    "no text": ('{"key": "k", "do": "say", "text": 7, "via": "typed"}', "as text a text, got 7"),
    "no way": ('{"key": "k", "do": "say", "text": "x", "via": "file"}', "as via one of typed, speech, got 'file'"),
    "half a character": ('{"key": "k", "do": "say", "text": "\\ud83d", "via": "typed"}', "half of a character"),
    "another tag": ('{"key": "k", "do": "flip", "tag": "blue"}', "as tag one of on, off, got 'blue'"),
    "no state": ('{"key": "k", "do": "flip", "tag": "none"}', "as tag one of on, off, got 'none'"),
    "tags": ('{"key": "k", "do": "flip", "tag": ["on"]}', "as tag one of on, off, got a list"),
    "no utterance": (
        '{"key": "k", "do": "forget", "about": 99}',
        "that was said and is not forgotten, got the number 99",
    ),
    "a flip": ('{"key": "k", "do": "lesson", "about": 1, "tag": "on"}', "not forgotten, got the number 1"),
    "true": ('{"key": "k", "do": "forget", "about": true}', "not forgotten, got the number True"),
    "huge": ('{"key": "k", "do": "forget", "about": 1e999}', "not forgotten, got the number inf"),
    "beyond SQLite": (f'{{"key": "k", "do": "forget", "about": {2**80}}}', "not forgotten"),
    "no setting": ('{"key": "k", "do": "set", "name": "colour", "value": 1}', "threshold, window, got 'colour'"),
    "out of range": ('{"key": "k", "do": "set", "name": "threshold", "value": 2}', "from 0 to 1, got 2"),
    "no number": ('{"key": "k", "do": "set", "name": "threshold", "value": NaN}', "from 0 to 1, got nan"),
    "no value": ('{"key": "k", "do": "set", "name": "threshold"}', "from 0 to 1, got None"),
    "no transcriber": ('{"key": "k", "do": "sound", "wav": ""}', "no transcriber runs"),
}


@pytest.mark.parametrize(("message", "why"), BAD.values(), ids=BAD)
def test_a_bad_message_is_refused_in_plain_words_and_writes_nothing(address, log, message, why):
    log.append("flip", {"tag": "off"})
    with opened(address) as tab:
        refused = tab.ask_raw(message)
        assert refused.startswith("expected ")
        assert why in refused
        assert len(refused) < 200
        assert tab.ask(do="flip", tag="on") == ""  # the connection goes on
    assert [event.body for event in everything(log)] == [{"tag": "off"}, {"tag": "on"}]
    assert log.setting("threshold") == 0.6


def test_a_message_beyond_all_limits_ends_its_connection_and_no_other(address):
    with opened(address) as other:
        with opened(address) as tab, pytest.raises(ConnectionClosedError, match="1009"):
            tab.ask_raw("x" * (4 * LONGEST))
        assert other.ask(do="flip", tag="on") == ""


@pytest.mark.parametrize(
    "text", ["", " \n", "💡🌙", "灯をつけて", "أضئ المصباح", "a\0b", "<script>x</script>", "x" * LONGEST_TEXT]
)
def test_any_text_comes_to_the_log_and_to_the_page_as_it_is(address, log, text):
    with opened(address) as tab:
        assert tab.ask(do="say", text=text, via="typed") == ""
        tab.wait(lambda: bool(tab.events))
    assert tab.events[0]["body"] == everything(log)[0].body == {"text": text, "via": "typed"}


def test_a_text_that_is_too_long_is_refused(address, log):
    with opened(address) as tab:
        refused = tab.ask(do="say", text="x" * (LONGEST_TEXT + 1), via="typed")
    assert refused == "expected as text at most 10,000 characters, got 10,001; make it shorter"
    assert everything(log) == []


def test_sound_goes_to_the_transcriber_and_not_to_the_page(tmp_path, log):
    sound = a_sound()
    with serving(app(tmp_path, TAGS, transcriber=True)) as address, opened(address) as tab:
        assert tab.state["hello"]["transcriber"]
        assert tab.ask(do="sound", wav=base64.b64encode(sound).decode()) == ""
        tab.wait(lambda: bool(tab.events))
        assert "sound" not in tab.events[0]
        assert "in base64" in tab.ask(do="sound", wav="§")
        assert "another kind of file" in tab.ask(do="sound", wav=base64.b64encode(b"GIF89a").decode())
        long = base64.b64encode(a_sound(LONGEST_SOUND // 2)).decode()
        assert "at most 1,000,000 bytes (30 seconds), got 1,000,044" in tab.ask(do="sound", wav=long)
    assert [event.sound for event in everything(log)] == [sound]


def test_the_longest_recording_of_the_page_fits():
    assert len(a_sound(30 * 16000)) <= LONGEST_SOUND
    assert len(base64.b64encode(bytes(LONGEST_SOUND))) + 200 < LONGEST


def test_a_message_that_is_sent_again_is_taken_once(address, log):
    with opened(address) as tab:
        assert tab.ask(do="say", text="x", via="typed", key="a") == ""
    with opened(address) as tab:
        assert tab.ask(do="say", text="x", via="typed", key="a") == ""
        assert tab.ask(do="say", text="y", via="typed", key="b") == ""
    assert [event.body["text"] for event in everything(log)] == ["x", "y"]


def test_a_message_that_was_refused_may_be_sent_again(address, log):
    with opened(address) as tab:
        assert tab.ask(do="forget", about=2, key="a") != ""
        said(log, "x")
        assert tab.ask(do="forget", about=2, key="a") == ""


def test_two_tabs_see_the_same(address, log):
    with opened(address) as one, opened(address) as two:
        one.ask(do="flip", tag="on")
        two.ask(do="say", text="x", via="typed")
        two.ask(do="set", name="window", value=3)
        for tab in (one, two):
            tab.wait(lambda tab=tab: len(tab.events) == 2 and tab.state["settings"]["window"] == 3)
    assert one.events == two.events
    assert one.state["lamp"] == two.state["lamp"] == "on"


def test_a_flood_of_flips_is_taken_whole_and_in_order(address, log):
    flips = ["on", "off", "off"] * 70
    with opened(address) as one, opened(address) as two:
        for tag in flips:
            one.send(do="flip", tag=tag)
        for tab in (one, two):
            tab.wait(lambda tab=tab: len(tab.events) == len(flips))
        one.wait(lambda: len(one.answers) == len(flips))
    assert [event.body["tag"] for event in everything(log)] == flips
    assert [event["body"]["tag"] for event in two.events] == flips
    assert not any("refused" in answer for answer in one.answers)


def test_a_tab_goes_on_after_the_last_event_that_it_has(address, log):
    first = log.append("flip", {"tag": "on"})
    with opened(address) as tab:
        run = tab.state["hello"]["server"]
    second = log.append("flip", {"tag": "off"})
    with opened(address, f"?server={run}&after={first}") as tab:
        assert [event["id"] for event in tab.events] == [second]
        assert "hello" not in tab.state
    with opened(address, f"?server=another&after={first}") as tab:  # another log, perhaps
        assert [event["id"] for event in tab.events] == [first, second]
        assert tab.state["hello"]["tags"]["states"][0]["name"] == "on"


def test_many_events_come_in_parts(address, log):
    with log.transaction():
        for number in range(1201):
            log.append("typed", {"text": str(number), "via": "typed"})
    with opened(address) as tab:
        tab.wait(lambda: len(tab.events) == 1201)
    assert [event["body"]["text"] for event in tab.events] == [str(number) for number in range(1201)]


def test_a_tab_is_told_what_was_erased_also_when_it_was_away(address, log):
    gone, waits = said(log, "gone"), said(log, "waits")
    with opened(address) as tab:
        tab.wait(lambda: len(tab.events) == 4)
        run, after = tab.state["hello"]["server"], tab.events[-1]["id"]
        forgotten = log.append("forget", about=gone)
        log.append("forget", about=waits)
        tab.wait(lambda: len(tab.events) == 6)
        away = tab.events[-1]["id"]
        assert tab.erased == []
        log.erase(gone)
        tab.ask(do="set", name="window", value=9.0)
        tab.wait(lambda: tab.state["settings"]["window"] == 9.0)
        assert tab.erased == []  # the trainer has not moved on: the text may still be in its model
        log.move("trainer", forgotten)
        tab.wait(lambda: bool(tab.erased))
        assert tab.erased == [gone]
    for number in (after, away):
        with opened(address, f"?server={run}&after={number}") as tab:
            assert tab.erased == [gone]


def test_the_page_is_told_which_processes_run(tmp_path):
    class Two:
        def pids(self) -> dict[str, int]:
            return {"recorder": 7} if ended.is_set() else {"recorder": 7, "trainer": 8}

    ended = Event()
    none = dict.fromkeys(["recorder", "transcriber", "anticipator", "trainer", "operator"], False)
    with serving(app(tmp_path, TAGS, supervisor=Two())) as address, opened(address) as tab:  # type: ignore[arg-type]
        assert tab.state["processes"] == none | {"recorder": True, "trainer": True}
        ended.set()
        tab.wait(lambda: tab.state["processes"] == none | {"recorder": True})


def test_a_damaged_log_is_told_in_plain_words_and_left_as_it_is(tmp_path):
    with Log(tmp_path / LOG) as log:
        for number in range(300):
            said(log, f"number {number}")
    damaged = bytearray((tmp_path / LOG).read_bytes())
    damaged[4096:12288] = b"\xff" * 8192
    (tmp_path / LOG).write_bytes(damaged)
    with serving(app(tmp_path, TAGS)) as address, opened(address) as tab:
        assert "is damaged" in tab.state["trouble"]
        assert "move it away to begin anew, or restore a copy" in tab.state["trouble"]
    assert (tmp_path / LOG).read_bytes() == damaged


def test_an_address_that_cannot_be_used_is_refused(tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(InputError, match="a free address of this mach"),
    ):
        serve(tmp_path / "lamp", port=other.getsockname()[1])
    with pytest.raises(InputError, match=r"got 192\.0\.2\.1, port 8765"):
        serve(tmp_path / "lamp", host="192.0.2.1")
    assert not (tmp_path / "lamp").exists()


def test_serve_starts_the_processes_and_ends_with_them(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "examples.lamp", "serve", "--folder", str(tmp_path), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert f"http://localhost:{port}/" in process.stdout.readline()
        for _ in range(100 * PATIENCE):
            with contextlib.suppress(OSError), opened(f"http://127.0.0.1:{port}") as tab:
                tab.wait(lambda: all(tab.state["processes"].values()))
                assert tab.ask(do="say", text="hello", via="typed") == ""
                tab.wait(lambda: "guess" in tab.kinds())
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
    assert process.returncode in (0, 130)
    assert said == ""


def test_the_server_reports_to_nobody(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with serving(app(tmp_path, TAGS)) as address, opened(address) as tab:
        assert tab.ask(do="flip", tag="on") == ""
    assert "telemetry" not in caplog.text


def test_the_server_is_light():
    command = "import sys, examples.lamp.server; print(sorted({'numpy', 'torch', 'numba', 'scipy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
