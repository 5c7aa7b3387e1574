"""What the page may send: each message is checked, written into the log, and answered.

| do | fields | event |
|---|---|---|
| `say` | text, via: "typed" or "speech" | `typed` |
| `sound` | wav: base64 | `sound` |
| `flip` | tag: a state | `flip` |
| `lesson` | about: an utterance, tag | `lesson`, with the reason "correction", by "page" |
| `forget` | about: an utterance | `forget` |
| `set` | name, value | none: a setting of the log |

Each has a `key` as well, which the answer repeats.
"""

import base64
import json
from collections import deque
from collections.abc import Collection
from typing import Any

from examples.lamp.log import Log
from examples.lamp.tags import Tags
from warmstart.errors import InputError

LONGEST = 1_400_000  # characters of a message
LONGEST_TEXT = 10_000  # characters; the recorder keeps fewer
LONGEST_SOUND = 1_000_000  # bytes; 30 seconds of 16-bit samples at 16 kHz are 960,044
LONGEST_KEY = 64


def answer(log: Log, text: str | None, tags: Tags, transcriber: bool, taken: deque[str]) -> dict[str, str]:
    """Write a message into the log, unless its key is among those ``taken``. Return the key, and why it was refused."""
    key = ""
    try:
        message = _message(text)
        key = _text(message, "key", LONGEST_KEY)
        if key not in taken:
            _write(log, message, tags, transcriber)
            taken.append(key)
    except InputError as error:
        return {"answer": key, "refused": str(error)}
    return {"answer": key}


def _write(log: Log, message: dict[str, Any], tags: Tags, transcriber: bool) -> None:
    match message.get("do"):
        case "say":
            text, via = _text(message, "text", LONGEST_TEXT), _among(message, "via", ("typed", "speech"))
            log.append("typed", {"text": text, "via": via})
        case "sound" if transcriber:
            log.append("sound", sound=_wav(message))
        case "sound":
            raise InputError("expected words, got sound: no transcriber runs; start it or type what you say")
        case "flip":
            log.append("flip", {"tag": _among(message, "tag", tags.names[:-1])})
        case "lesson":
            lesson = {"tag": _among(message, "tag", tags.names), "reason": "correction", "by": "page"}
            log.append("lesson", lesson, _utterance(log, message))
        case "forget":
            log.append("forget", about=_utterance(log, message))
        case "set":
            value: Any = message.get("value")
            log.set(_text(message, "name", LONGEST_KEY), value)
        case other:
            raise InputError(f"expected as do say, sound, flip, lesson, forget or set, got {_short(other)}")


def _message(text: str | None) -> dict[str, Any]:
    if text is None:
        raise InputError("expected a message of text, got bytes")
    if len(text) > LONGEST:
        raise InputError(f"expected a message of at most {LONGEST:,} characters, got {len(text):,}")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected a message in JSON, got {_short(text)}") from error
    if not isinstance(message, dict):
        raise InputError(f"expected a message with names and values, got {_short(message)}")
    return message


def _text(message: dict[str, Any], name: str, longest: int) -> str:
    value = message.get(name)
    if not isinstance(value, str):
        raise InputError(f"expected as {name} a text, got {_short(value)}")
    if len(value) > longest:
        raise InputError(f"expected as {name} at most {longest:,} characters, got {len(value):,}; make it shorter")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"expected as {name} a text in Unicode, got half of a character in it") from error
    return value


def _among(message: dict[str, Any], name: str, known: Collection[str]) -> str:
    value = message.get(name)
    if not isinstance(value, str) or value not in known:
        raise InputError(f"expected as {name} one of {', '.join(known)}, got {_short(value)}")
    return value


def _utterance(log: Log, message: dict[str, Any]) -> int:
    number = message.get("about")
    if type(number) is int and 0 < number < 2**62 and (event := log.event(number)) and event.kind == "said":
        return number
    raise InputError(f"expected something that was said and is not forgotten, got the number {_short(number)}")


def _wav(message: dict[str, Any]) -> bytes:
    try:
        sound = base64.b64decode(_text(message, "wav", LONGEST), validate=True)
    except ValueError as error:
        raise InputError(f"expected as wav a sound in base64, got something else ({error})") from error
    if len(sound) > LONGEST_SOUND:
        raise InputError(f"expected a sound of at most {LONGEST_SOUND:,} bytes (30 seconds), got {len(sound):,}")
    if sound[:4] != b"RIFF" or sound[8:12] != b"WAVE":
        raise InputError("expected a sound in a WAV file, got another kind of file")
    return sound


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
