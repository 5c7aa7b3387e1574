"""A real lamp that follows the picture: through Home Assistant or through an MQTT broker.

A bridge connects, moves the lamp, waits until that is confirmed and hangs up. So there is no connection to lose, and a
token or a broker that was mended is used the next time. The `Driver` does this in a thread: nothing waits for a lamp.
"""

import json
import os
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from examples.lamp.tags import Tags
from warmstart.errors import InputError

TOKEN, USER, PASSWORD = (f"WARMSTART_LAMP_{name}" for name in ("TOKEN", "MQTT_USER", "MQTT_PASSWORD"))
TIMEOUT = 5.0  # seconds for each step
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between attempts
BRIGHTEST = 255
SWITCHES = ("light", "switch", "input_boolean")  # Home Assistant's domains with turn_on and turn_off


class Bridge(Protocol):
    """A way to a real lamp."""

    def set(self, tag: str) -> None:
        """Move the lamp to a state; return when that is confirmed.

        Raises
        ------
        InputError
            The lamp will not follow before somebody mends something.
        OSError
            The lamp cannot be reached now. It is worth trying again.
        """


class HomeAssistant:
    """A lamp of Home Assistant, through its WebSocket interface.

    Parameters
    ----------
    url : str
        Address of Home Assistant, such as `http://homeassistant.local:8123`.
    token : callable
        Returns a long-lived access token, as the user's profile page of Home Assistant makes them.
    entity : str
        A light, such as `light.kitchen`; or a switch or an `input_boolean`, which know no brightness.
    levels : mapping of str to float
        Brightness of each state, 0 to 1. The lamp is turned off at 0.

    References
    ----------
    https://developers.home-assistant.io/docs/api/websocket
    """

    def __init__(self, url: str, token: Callable[[], str], entity: str, levels: Mapping[str, float]) -> None:
        self.address = _websocket_address(url)
        self.token, self.entity, self.levels = token, entity, levels
        domain, _, name = entity.partition(".")
        if domain not in SWITCHES or not name:
            kinds = ", ".join(f"{kind}.NAME" for kind in SWITCHES)
            raise InputError(f"entity: expected one of {kinds}, got {entity!r}; give its name in Home Assistant")

    def set(self, tag: str) -> None:
        """Call the service that turns the lamp on or off."""
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        call = self._call(tag)
        try:
            with connect(self.address, open_timeout=TIMEOUT, close_timeout=TIMEOUT, proxy=None) as socket:
                answer: dict[str, Any] = json.loads(socket.recv(TIMEOUT))
                if answer["type"] == "auth_required":
                    socket.send(json.dumps({"type": "auth", "access_token": self.token()}))
                    answer = json.loads(socket.recv(TIMEOUT))
                if answer["type"] == "auth_invalid":
                    raise InputError(
                        "Home Assistant: expected a valid access token, got one that it refuses; make a new one in "
                        f"your profile there, and put it into {TOKEN} or the token's file"
                    )
                socket.send(json.dumps(call))
                answer = json.loads(socket.recv(TIMEOUT))
                refused = None if answer["success"] else answer["error"]["message"]
        except InputError:
            raise
        except (OSError, WebSocketException, ValueError, LookupError, TypeError) as error:
            raise ConnectionError(
                f"Home Assistant: expected it at {self.address}, got: {_cause(error)}; check that it runs and that its "
                "address is right"
            ) from error
        if refused is not None:
            raise InputError(
                f"Home Assistant: expected {self.entity} to follow, got: {refused}; check its name and what it can do"
            )

    def _call(self, tag: str) -> dict[str, Any]:
        level, domain = self.levels[tag], self.entity.partition(".")[0]
        bright = {"service_data": {"brightness": max(1, round(level * BRIGHTEST))}} if domain == "light" else {}
        return {
            "id": 1,
            "type": "call_service",
            "domain": domain,
            "service": "turn_on" if level else "turn_off",
            **(bright if level else {}),
            "target": {"entity_id": self.entity},
        }


def _cause(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or "no answer"


def _websocket_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https", "ws", "wss") and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known or parts.username is not None or parts.query or parts.fragment:
        raise InputError(
            f"home-assistant: expected an address such as http://homeassistant.local:8123, got {_hidden(url)!r}; "
            f"the token does not belong there, but into {TOKEN} or a file"
        )
    path = parts.path.rstrip("/").removesuffix("/api/websocket")
    return f"{parts.scheme.replace('http', 'ws')}://{parts.netloc}{path}/api/websocket"


def _hidden(url: str) -> str:
    """Return an address without a name and a password."""
    scheme, mark, rest = url.rpartition("://")
    return f"{scheme}{mark}...@{rest.rpartition('@')[2]}" if "@" in rest else url


def read_token(path: Path | None) -> str:
    """Return the access token: from a file, or without one from the environment variable `WARMSTART_LAMP_TOKEN`.

    Raises
    ------
    InputError
        There is none, or it has spaces or line breaks inside.
    """
    try:
        token = (os.environ.get(TOKEN, "") if path is None else path.read_text(encoding="utf-8")).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a file with an access token, got: {error}; choose another file") from error
    if not token or any(not sign.isprintable() or sign.isspace() for sign in token):
        place = TOKEN if path is None else path
        found = "nothing" if not token else "more than one word"
        raise InputError(f"{place}: expected an access token of Home Assistant, got {found}; make one in your profile")
    return token


class Mqtt:
    """A lamp that listens to a topic of an MQTT broker.

    A message is `{"state": "ON", "brightness": 128}`, at brightness 0 `{"state": "OFF"}`, as Zigbee2MQTT and Home
    Assistant's MQTT lights with the JSON schema take it. A name and password for the broker come from the environment
    variables `WARMSTART_LAMP_MQTT_USER` and `WARMSTART_LAMP_MQTT_PASSWORD`.

    Parameters
    ----------
    host, port, topic
        The broker, and where the lamp listens, such as `zigbee2mqtt/desk/set`.
    levels : mapping of str to float
        Brightness of each state, 0 to 1. The lamp is turned off at 0.
    """

    def __init__(self, host: str, port: int, topic: str, levels: Mapping[str, float]) -> None:
        self.host, self.port, self.topic, self.levels = host, port, topic, levels

    @classmethod
    def parse(cls, place: str, levels: Mapping[str, float]) -> "Mqtt":
        """Read `HOST:PORT/TOPIC`; the port may be left out.

        Examples
        --------
        >>> bridge = Mqtt.parse("broker.local/desk/set", {})
        >>> bridge.host, bridge.port, bridge.topic
        ('broker.local', 1883, 'desk/set')
        """
        broker, _, topic = place.partition("/")
        try:
            parts = urlsplit(f"mqtt://{broker}")
            host, port = parts.hostname, parts.port or 1883
        except ValueError:
            host = None
        if not host or not topic or set(topic) & set("#+\0") or "@" in broker:
            raise InputError(
                f"mqtt: expected HOST:PORT/TOPIC with a topic without # and +, got {_hidden(place)!r}; a name and a "
                f"password belong into {USER} and {PASSWORD}"
            )
        return cls(host, port, topic, levels)

    def set(self, tag: str) -> None:
        """Publish the state, and wait until the broker has confirmed it."""
        from paho.mqtt import client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        client = mqtt.Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        client.on_connect = lambda _client, _data, _flags, reason, _properties: answers.put(reason)
        client.on_disconnect = lambda _client, _data, _flags, reason, _properties: answers.put(reason)
        client.connect_timeout = TIMEOUT
        if user := os.environ.get(USER):
            client.username_pw_set(user, os.environ.get(PASSWORD))
        try:
            client.connect(self.host, self.port)
            client.loop_start()
            reason = answers.get(timeout=TIMEOUT)
            if str(reason) in ("Not authorized", "Bad user name or password"):
                raise InputError(
                    f"MQTT: expected a broker that lets us in, got: {reason}; put a name and a password into {USER} "
                    f"and {PASSWORD}"
                )
            if reason.is_failure:
                raise ConnectionError(str(reason))
            sent = client.publish(self.topic, self._message(tag), qos=1)
            sent.wait_for_publish(TIMEOUT)
            if not sent.is_published():
                raise TimeoutError("no confirmation")
        except (OSError, queue.Empty, RuntimeError) as error:
            raise ConnectionError(
                f"MQTT: expected a broker at {self.host}:{self.port}, got: {_cause(error)}; check that it runs and "
                "that its address is right"
            ) from error
        finally:
            client.disconnect()
            client.loop_stop()

    def _message(self, tag: str) -> str:
        level = self.levels[tag]
        return json.dumps(
            {"state": "ON", "brightness": max(1, round(level * BRIGHTEST))} if level else {"state": "OFF"}
        )


def open_bridge(
    tags: Tags, mqtt: str | None, home_assistant: str | None, entity: str | None, token: Path | None
) -> Bridge | None:
    """Return the bridge that the options of the command line name, or None if they name none. Nothing is connected yet.

    Raises
    ------
    InputError
        The options do not fit together, or one of them cannot be used.
    """
    levels = {state.name: state.level for state in tags.states}
    if entity is None and (home_assistant is not None or token is not None):
        raise InputError("expected --entity beside --home-assistant and --token, got none; give one, as in light.desk")
    if entity is None:
        return None if mqtt is None else Mqtt.parse(mqtt, levels)
    if home_assistant is None or mqtt is not None:
        raise InputError("expected --home-assistant with --entity, or --mqtt, got another mixture; name one lamp")
    read_token(token)  # so that it is missed at the start
    return HomeAssistant(home_assistant, lambda: read_token(token), entity, levels)


class Driver:
    """Moves a lamp from a thread of its own, with the newest state only; a context manager.

    What goes wrong is reported once, in plain words, and again only after it went well in between. A lamp that cannot
    be reached is tried again, less and less often, up to once a minute.

    Parameters
    ----------
    bridge : Bridge
        The way to the lamp.
    report : callable
        Takes a sentence. It is called in the thread of the driver.
    """

    def __init__(self, bridge: Bridge, report: Callable[[str], None]) -> None:
        self._bridge, self._report = bridge, report
        self._wanted: str | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="lamp", daemon=True)

    def __enter__(self) -> "Driver":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(TIMEOUT)

    def set(self, tag: str) -> None:
        """Ask for a state, in place of any that is still waiting, and return at once."""
        with self._changed:
            self._wanted = tag
            self._changed.notify()

    def _run(self) -> None:
        pause, reported = FIRST_PAUSE, ""
        while (tag := self._next()) is not None:
            try:
                self._bridge.set(tag)
            except Exception as error:
                sentence = str(error) if isinstance(error, InputError | OSError) else f"lamp: {error!r}"
                if sentence != reported:
                    self._report(sentence)
                reported = sentence
                with self._changed:
                    if self._wanted is None and isinstance(error, OSError):
                        self._wanted = tag
                    self._changed.wait_for(lambda: self._closed, pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause, reported = FIRST_PAUSE, ""

    def _next(self) -> str | None:
        """Wait for a state; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._wanted is not None)
            tag, self._wanted = self._wanted, None
            return None if self._closed else tag
