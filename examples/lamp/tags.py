"""The states of the switch, and the tag for "do nothing", as a small file names them."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.errors import InputError

DEFAULT = Path(__file__).with_name("tags.toml")
NAME = re.compile("[a-z0-9_-]+")


@dataclass(frozen=True)
class State:
    """One position of the switch: its name, its label on the page, and its brightness in the picture.

    The words are those by which the keyword baseline recognises it. The model does not see them.
    """

    name: str
    label: str
    level: float
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tags:
    """What an utterance can ask for: one of the states, or nothing.

    Examples
    --------
    >>> Tags.read().names
    ('on', 'off', 'none')
    """

    name: str
    none: str
    start: str
    states: tuple[State, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The tags: the names of the states, then the one for "do nothing"."""
        return (*(state.name for state in self.states), self.none)

    @staticmethod
    def read(path: str | Path = DEFAULT) -> "Tags":
        """Read a file such as ``tags.toml``.

        Raises
        ------
        InputError
            The file cannot be read, or has something else than the example. The message says what.
        """
        try:
            table = tomllib.loads(Path(path).read_text("utf-8"))
            return _tags(table)
        except OSError as error:
            raise InputError(f"expected a file of tags such as {DEFAULT.name}, got {path}: {error.strerror}") from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"expected a TOML file of tags such as {DEFAULT.name}, got {path}: {error}") from error
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def _tags(table: Mapping[str, Any]) -> Tags:
    _known(table, {"name", "none", "start", "state"}, "the file")
    rows = table.get("state")
    if not isinstance(rows, list) or not 2 <= len(rows) <= 8 or not all(isinstance(row, dict) for row in rows):
        raise InputError("expected two to eight tables [[state]]")
    tags = Tags(_text(table, "name"), _name(table, "none"), _name(table, "start"), tuple(map(_state, rows)))
    if len(set(tags.names)) < len(tags.names):
        raise InputError(f"expected a name of its own for each state and for none, got {', '.join(tags.names)}")
    if tags.start not in tags.names[:-1]:
        raise InputError(f"expected as start one of the states {', '.join(tags.names[:-1])}, got {tags.start}")
    return tags


def _state(row: Mapping[str, Any]) -> State:
    _known(row, {"name", "label", "level", "words"}, "a [[state]]")
    level, words = row.get("level", 1.0), row.get("words", [])
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 <= level <= 1:
        raise InputError(f"expected as level a number from 0 to 1, got {level!r}")
    if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
        raise InputError(f"expected as words a list of words, got {words!r}")
    return State(_name(row, "name"), _text(row, "label"), float(level), tuple(words))


def _known(table: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(set(table) - known):
        raise InputError(f"expected in {where} only {', '.join(sorted(known))}, got {', '.join(unknown)}")


def _text(table: Mapping[str, Any], key: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f'expected a line such as {key} = "...", got {value!r}')
    return value


def _name(table: Mapping[str, Any], key: str) -> str:
    value = _text(table, key)
    if not NAME.fullmatch(value):
        raise InputError(f"expected as {key} small letters, digits, - and _, got {value!r}")
    return value
