"""A real lamp follows: a server that follows Home Assistant's documented messages, and a real MQTT broker."""

import contextlib
import importlib.util
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from examples.lamp import bridges
from examples.lamp.bridges import PASSWORD, TOKEN, USER, Driver, HomeAssistant, Mqtt, open_bridge, read_token
from examples.lamp.log import Log
from examples.lamp.tags import Tags
from warmstart.errors import InputError

ROOT = Path(__file__).parents[1]
LEVELS = {"off": 0.0, "dim": 0.25, "on": 1.0, "faint": 0.001}
SECRET = "eyJ0-a-secret-token"  # noqa: S105 (of this file's server)
WAIT = 30  # seconds that a test waits for another process at most


def installed(module):
    if os.environ.get("WARMSTART_LAMP") != "1" and importlib.util.find_spec(module) is None:
        pytest.skip(f"needs the package {module}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# Home Assistant: https://developers.home-assistant.io/docs/api/websocket


class FakeHomeAssistant:
    """A server with the documented messages. It keeps the calls of services, and refuses what the test tells it to."""

    def __init__(self, port=0):
        from websockets.sync.server import serve

        self.calls, self.tokens, self.refusal = [], [], None
        self._server = serve(self._talk, "127.0.0.1", port)
        self.port = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()

    def _talk(self, connection):
        assert connection.request.path == "/api/websocket"
        connection.send(json.dumps({"type": "auth_required", "ha_version": "2026.5.3"}))
        message = json.loads(connection.recv())
        assert set(message) == {"type", "access_token"}
        assert message["type"] == "auth"
        self.tokens.append(message["access_token"])
        if message["access_token"] != SECRET:
            connection.send(json.dumps({"type": "auth_invalid", "message": "Invalid access token or password"}))
            return
        connection.send(json.dumps({"type": "auth_ok", "ha_version": "2026.5.3"}))
        numbers = [0]
        for text in connection:
            call = json.loads(text)
            assert call.pop("type") == "call_service"
            numbers.append(call.pop("id"))
            assert numbers[-1] > numbers[-2]
            result = {"id": numbers[-1], "type": "result", "success": self.refusal is None}
            if self.refusal is None:
                self.calls.append(call)
                result["result"] = {
                    "context": {"id": "326ef27d", "parent_id": None, "user_id": "31dd"},
                    "response": None,
                }
            else:
                result["error"] = {"code": "service_validation_error", "message": self.refusal}
            connection.send(json.dumps(result))


@pytest.fixture
def home():
    installed("websockets")
    with FakeHomeAssistant() as home:
        yield home


def bridge_to(home, entity="light.desk", token=SECRET):
    return HomeAssistant(f"http://127.0.0.1:{home.port}", lambda: token, entity, LEVELS)


def test_home_assistant_turns_the_light_on_and_off(home):
    bridge = bridge_to(home)
    for tag in ("on", "off", "dim", "faint"):
        bridge.set(tag)
    target = {"entity_id": "light.desk"}
    on = {"domain": "light", "service": "turn_on", "target": target}
    assert home.calls == [
        {**on, "service_data": {"brightness": 255}},
        {"domain": "light", "service": "turn_off", "target": target},
        {**on, "service_data": {"brightness": 64}},
        {**on, "service_data": {"brightness": 1}},
    ]


def test_a_switch_of_home_assistant_gets_no_brightness(home):
    bridge = bridge_to(home, "switch.heater")
    bridge.set("dim")
    bridge.set("off")
    target = {"entity_id": "switch.heater"}
    assert home.calls == [
        {"domain": "switch", "service": service, "target": target} for service in ("turn_on", "turn_off")
    ]


def test_a_token_that_is_refused_is_not_repeated(home):
    with pytest.raises(InputError, match="expected a valid access token, got one that it refuses") as caught:
        bridge_to(home, token="wrong-token").set("on")  # noqa: S106
    assert "wrong-token" not in str(caught.value)
    assert (home.tokens, home.calls) == (["wrong-token"], [])


def test_a_call_that_is_refused(home):
    home.refusal = "Entity light.desk does not support this"
    with pytest.raises(InputError, match=r"expected light\.desk to follow, got: Entity light\.desk does not support"):
        bridge_to(home).set("on")


def test_home_assistant_that_is_not_there():
    installed("websockets")
    bridge = HomeAssistant(f"http://127.0.0.1:{free_port()}", lambda: SECRET, "light.desk", LEVELS)
    with pytest.raises(ConnectionError, match=r"expected it at ws://127.* got: Connection refused; check") as caught:
        bridge.set("on")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("answer", ["no JSON", "[]", "{}", '{"type": "auth_ok"}', '{"type": 5}'])
def test_a_server_that_is_no_home_assistant(answer):
    installed("websockets")
    from websockets.sync.server import serve

    def talk(connection):
        connection.send(answer)
        connection.recv()
        connection.send("{}")

    with serve(talk, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.socket.getsockname()[1]}"
            with pytest.raises(ConnectionError, match="Home Assistant: expected it at"):
                HomeAssistant(url, lambda: SECRET, "light.desk", LEVELS).set("on")
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://homeassistant.local:8123", "ws://homeassistant.local:8123/api/websocket"),
        ("https://home.example/", "wss://home.example/api/websocket"),
        ("ws://10.0.0.2:8123/api/websocket", "ws://10.0.0.2:8123/api/websocket"),
        ("http://[fe80::1]:8123/below", "ws://[fe80::1]:8123/below/api/websocket"),
    ],
)
def test_addresses_of_home_assistant(url, address):
    assert HomeAssistant(url, lambda: SECRET, "light.desk", LEVELS).address == address


@pytest.mark.parametrize(
    "url",
    ["", "homeassistant.local:8123", "ftp://host", "http://", "http://host:port", "http://host?token=x", "http://["],
)
def test_what_is_no_address_of_home_assistant(url):
    with pytest.raises(InputError, match="home-assistant: expected an address such as"):
        HomeAssistant(url, lambda: SECRET, "light.desk", LEVELS)


@pytest.mark.parametrize("entity", ["", "desk", "light.", "climate.desk"])
def test_what_is_no_lamp_of_home_assistant(entity):
    with pytest.raises(InputError, match=r"entity: expected one of light\.NAME"):
        HomeAssistant("http://host", lambda: SECRET, entity, LEVELS)


def test_a_password_in_an_address_is_refused_and_not_repeated():
    for make in (
        lambda: HomeAssistant("http://me:hunter2@host", lambda: SECRET, "light.desk", LEVELS),
        lambda: Mqtt.parse("me:hunter2@host/topic", LEVELS),
    ):
        with pytest.raises(InputError) as caught:
            make()
        assert "hunter2" not in str(caught.value)


def test_the_token_comes_from_the_environment_or_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv(TOKEN, SECRET)
    assert read_token(None) == SECRET
    (tmp_path / "token").write_text("another\n")
    assert read_token(tmp_path / "token") == "another"


@pytest.mark.parametrize("content", [b"", b" \n", b"Abc Def", b"Abc\nDef", b"\xff\xfe", None])
def test_what_is_no_token(tmp_path, content):
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    with pytest.raises(InputError, match=r"token: expected .* got") as caught:
        read_token(tmp_path / "token")
    assert "Def" not in str(caught.value).removeprefix(str(tmp_path))


def test_no_token_in_the_environment(monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(InputError, match=f"{TOKEN}: expected an access token of Home Assistant, got nothing"):
        read_token(None)


# MQTT, with a real broker


@contextlib.contextmanager
def broker(folder, port, *lines):
    if os.environ.get("WARMSTART_LAMP") != "1":
        if not (shutil.which("mosquitto") or os.path.exists("/usr/sbin/mosquitto")):  # noqa: PTH110
            pytest.skip("needs the MQTT broker mosquitto")
        installed("paho")
    (folder / "mosquitto.conf").write_text("\n".join([f"listener {port} 127.0.0.1", *lines, ""]))
    command = [shutil.which("mosquitto") or "/usr/sbin/mosquitto", "-c", folder / "mosquitto.conf"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + WAIT
            while True:
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.02)
            yield
        finally:
            process.terminate()


@contextlib.contextmanager
def lamp(port, topic):
    """What a lamp hears: a queue of messages."""
    from paho.mqtt import client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    heard, ready = queue.Queue(), threading.Event()
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.reconnect_delay_set(0.1, 0.5)
    client.on_message = lambda _client, _data, message: heard.put((message.topic, json.loads(message.payload)))
    client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
    client.on_subscribe = lambda *_: ready.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        assert ready.wait(WAIT)
        ready.clear()
        heard.ready = ready
        yield heard
    finally:
        client.disconnect()
        client.loop_stop()


def test_mqtt_tells_the_lamp(tmp_path):
    port = free_port()
    bridge = Mqtt.parse(f"127.0.0.1:{port}/home/desk/set", LEVELS)
    with broker(tmp_path, port, "allow_anonymous true"), lamp(port, "#") as heard:
        for tag in ("on", "off", "dim", "faint"):
            bridge.set(tag)
        messages = [heard.get(timeout=WAIT) for _ in range(4)]
    topics, states = zip(*messages, strict=True)
    assert set(topics) == {"home/desk/set"}
    assert states == (
        {"state": "ON", "brightness": 255},
        {"state": "OFF"},
        {"state": "ON", "brightness": 64},
        {"state": "ON", "brightness": 1},
    )


def test_mqtt_with_a_name_and_a_password(tmp_path, monkeypatch):
    port = free_port()
    (tmp_path / "passwords").touch()
    passwords = shutil.which("mosquitto_passwd")
    if passwords is None and os.environ.get("WARMSTART_LAMP") != "1":
        pytest.skip("needs mosquitto_passwd")
    subprocess.run([passwords, "-b", tmp_path / "passwords", "me", "hunter2"], check=True)
    (tmp_path / "passwords").chmod(0o644)
    tmp_path.chmod(0o755)
    bridge = Mqtt("127.0.0.1", port, "desk", LEVELS)
    with broker(tmp_path, port, "allow_anonymous false", f"password_file {tmp_path / 'passwords'}", "user root"):
        monkeypatch.setenv(USER, "me")
        monkeypatch.setenv(PASSWORD, "hunter2")
        bridge.set("on")
        for user, password in (("me", "wrong"), ("", "")):
            monkeypatch.setenv(USER, user)
            monkeypatch.setenv(PASSWORD, password)
            with pytest.raises(InputError, match=f"expected a broker that lets us in, got: .* into {USER}"):
                bridge.set("on")


def test_a_broker_that_is_not_there():
    installed("paho")
    with pytest.raises(ConnectionError, match=r"expected a broker at 127\.0\.0\.1:\d+, got: Connection refused; check"):
        Mqtt("127.0.0.1", free_port(), "desk", LEVELS).set("on")


def test_a_server_that_is_no_broker(monkeypatch):
    """It takes the connection and says nothing."""
    installed("paho")
    monkeypatch.setattr(bridges, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(ConnectionError, match="got: no answer"):
        Mqtt("127.0.0.1", server.getsockname()[1], "desk", LEVELS).set("on")


@pytest.mark.parametrize(
    "place", ["", "host", "host/", "/topic", "host:port/topic", "host:99999/topic", "host/a/#", "[/a"]
)
def test_what_is_no_place_of_mqtt(place):
    with pytest.raises(InputError, match="mqtt: expected HOST:PORT/TOPIC"):
        Mqtt.parse(place, LEVELS)


# The driver


class Recorded:
    """A bridge whose lamp can be out of reach; it keeps what it was asked for."""

    def __init__(self):
        self.error, self.asked, self.done = None, [], []
        self.started, self.gate = threading.Semaphore(0), threading.Event()
        self.gate.set()

    def set(self, tag):
        self.asked.append(tag)
        self.started.release()
        assert self.gate.wait(WAIT)
        if self.error is not None:
            raise self.error
        self.done.append(tag)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(bridges, "FIRST_PAUSE", 0.01)


def until(condition):
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_slow_lamp_gets_the_newest_state_only_and_nobody_waits_for_it(quick):
    bridge, reports = Recorded(), []
    bridge.gate.clear()
    with Driver(bridge, reports.append) as driver:
        driver.set("on")
        assert bridge.started.acquire(timeout=WAIT)
        for number in range(1000):  # a flood, while the lamp is still busy with the first
            driver.set(f"state{number}")
        assert bridge.asked == ["on"]
        bridge.gate.set()
        assert bridge.started.acquire(timeout=WAIT)
        until(lambda: len(bridge.asked) == 2)
        driver.set("state999")  # the same again: somebody may have moved the lamp by hand
        until(lambda: len(bridge.asked) == 3)
    assert bridge.asked == ["on", "state999", "state999"]
    assert reports == []


def test_a_lamp_out_of_reach_is_reported_once_and_tried_again(quick):
    bridge, reports = Recorded(), []
    bridge.error = ConnectionError("the lamp is not there")
    with Driver(bridge, reports.append) as driver:
        driver.set("on")
        until(lambda: bridge.asked.count("on") >= 3)
        driver.set("off")
        until(lambda: bridge.asked.count("off") >= 2)
        bridge.error = None
        until(lambda: bridge.done)
        assert bridge.done == ["off"]
        assert "on" not in bridge.asked[bridge.asked.index("off") :]
        assert reports == ["the lamp is not there"]
        bridge.error = ConnectionError("the lamp is not there")
        driver.set("on")
        until(lambda: len(reports) == 2)


def test_what_somebody_must_mend_is_not_tried_again_but_the_next_state_is(quick):
    bridge, reports = Recorded(), []
    bridge.error = InputError("the token is refused")
    with Driver(bridge, reports.append) as driver:
        driver.set("on")
        until(lambda: reports)
        time.sleep(0.1)
        assert bridge.asked == ["on"]
        bridge.error = None
        driver.set("off")
        until(lambda: bridge.asked == ["on", "off"])
    assert reports == ["the token is refused"]


def test_a_fault_of_a_bridge_is_reported_and_does_not_end_the_driver(quick):
    bridge, reports = Recorded(), []
    bridge.error = ZeroDivisionError("a mistake")
    with Driver(bridge, reports.append) as driver:
        driver.set("on")
        until(lambda: reports)
        bridge.error = None
        driver.set("off")
        until(lambda: bridge.asked == ["on", "off"])
    assert reports == ["lamp: ZeroDivisionError('a mistake')"]


def test_home_assistant_starts_again_and_gets_the_newest_state(quick):
    installed("websockets")
    port, reports = free_port(), []
    bridge = HomeAssistant(f"http://127.0.0.1:{port}", lambda: SECRET, "light.desk", LEVELS)
    with Driver(bridge, reports.append) as driver:
        driver.set("on")
        until(lambda: reports)
        driver.set("dim")
        driver.set("off")
        with FakeHomeAssistant(port) as home:
            until(lambda: home.calls)
            assert [call["service"] for call in home.calls] == ["turn_off"]
        driver.set("on")
        until(lambda: len(reports) == 2)
        with FakeHomeAssistant(port) as home:
            until(lambda: home.calls)
            assert [call["service"] for call in home.calls] == ["turn_on"]
    assert all("expected it at" in report for report in reports)


def test_a_broker_starts_again_and_gets_the_newest_state(tmp_path, quick):
    port, reports = free_port(), []
    with Driver(Mqtt("127.0.0.1", port, "desk", LEVELS), reports.append) as driver:
        with broker(tmp_path, port, "allow_anonymous true"), lamp(port, "desk") as heard:
            driver.set("on")
            assert heard.get(timeout=WAIT)[1]["state"] == "ON"
        driver.set("on")
        until(lambda: reports)
        driver.set("off")
        with broker(tmp_path, port, "allow_anonymous true"), lamp(port, "desk") as heard:
            driver.set("off")
            assert heard.get(timeout=WAIT)[1]["state"] == "OFF"
    assert len(reports) == 1


# The operator's process


@contextlib.contextmanager
def operator(log, *options, **environment):
    command = [sys.executable, "-m", "examples.lamp.operator", "--log", log, *options]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}) as process:
        try:
            yield
            assert process.poll() is None
        finally:
            process.terminate()


def test_the_operator_lets_a_lamp_of_home_assistant_follow(tmp_path):
    installed("websockets")
    port = free_port()
    options = ["--home-assistant", f"http://127.0.0.1:{port}", "--entity", "light.desk"]
    with Log(tmp_path / "log") as log, operator(tmp_path / "log", *options, **{TOKEN: SECRET}):
        log.append("flip", {"tag": "on"})
        until(lambda: log.after(0, ["trouble"]))
        log.append("flip", {"tag": "off"})
        log.append("flip", {"tag": "on"})
        with FakeHomeAssistant(port) as home:
            until(lambda: home.calls)
            assert [call["service"] for call in home.calls] == ["turn_on"]
            log.append("flip", {"tag": "off"})
            until(lambda: len(home.calls) == 2)
        (trouble,) = log.after(0, ["trouble"])
        assert trouble.body["process"] == "operator"
        assert "Home Assistant: expected it at" in trouble.body["why"]
    assert home.calls[1]["service"] == "turn_off"
    assert home.tokens == [SECRET] * 2
    assert all(SECRET.encode() not in file.read_bytes() for file in tmp_path.iterdir())


def test_the_operator_lets_a_lamp_of_mqtt_follow(tmp_path):
    port = free_port()
    with broker(tmp_path, port, "allow_anonymous true"), lamp(port, "desk") as heard, Log(tmp_path / "log") as log:
        log.append("flip", {"tag": "on"})
        with operator(tmp_path / "log", "--mqtt", f"127.0.0.1:{port}/desk"):  # at its start it tells how things stand
            assert heard.get(timeout=WAIT)[1] == {"state": "ON", "brightness": 255}
            log.append("flip", {"tag": "off"})
            until(lambda: heard.get(timeout=WAIT)[1] == {"state": "OFF"})
        assert log.after(0, ["trouble"]) == []


# What the command line names


def test_which_bridge_the_options_name(tmp_path):
    (tmp_path / "token").write_text(SECRET)
    tags = Tags.read()
    assert open_bridge(tags, None, None, None, None) is None
    bridge = open_bridge(tags, "host:1/desk", None, None, None)
    assert isinstance(bridge, Mqtt)
    assert (bridge.host, bridge.port, bridge.topic, bridge.levels) == ("host", 1, "desk", {"on": 1.0, "off": 0.0})
    bridge = open_bridge(tags, None, "http://host", "light.desk", tmp_path / "token")
    assert isinstance(bridge, HomeAssistant)
    assert (bridge.address, bridge.entity, bridge.token()) == ("ws://host/api/websocket", "light.desk", SECRET)
    (tmp_path / "token").write_text("mended")
    assert bridge.token() == "mended"


@pytest.mark.parametrize(
    "options",
    [
        ("host/desk", "http://host", "light.desk", "token"),
        ("host/desk", None, None, "token"),
        (None, "http://host", None, "token"),
        (None, None, "light.desk", "token"),
        ("", None, None, None),
        (None, "", "light.desk", None),
    ],
)
def test_options_that_name_no_lamp(tmp_path, monkeypatch, options):
    monkeypatch.setenv(TOKEN, SECRET)
    (tmp_path / "token").write_text(SECRET)
    *others, token = options
    with pytest.raises(InputError, match="expected"):
        open_bridge(Tags.read(), *others, token and tmp_path / token)
