"""Records: their text, found or refused, and the unusable ones counted and named."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from warmstart.errors import InputError

HOPELESS = 1000  # so many unusable records, and no other: the rest is not read
NAMED = 3  # records or files that a message names; the others are counted

Report = Callable[[str], None]
Record = TypeVar("Record")


def named(names: list[str]) -> str:
    """Name the first things of a list and count the others."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def parse_json(text: str | bytes) -> Any:
    """Return a JSON value. What is nested too deep is a ValueError too, like all else that is no JSON.

    Raises
    ------
    ValueError
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("brackets within brackets, too many to follow") from error


def usable(
    source: Path | str,
    unit: str,
    records: Iterable[tuple[int, Record]],
    text_of: Callable[[Record], str],
    skip_bad: bool,
    report: Report,
) -> Iterator[str]:
    """Yield the text of each record. Unusable ones are counted to the end, then refused or reported.

    Parameters
    ----------
    source : Path or str
        What has the records.
    unit : str
        What their numbers count, such as "line".
    records : iterable of (int, record)
    text_of : callable
        Returns the text of a record, or raises an InputError.
    skip_bad : bool
        Leave them out.
    report : callable
        Called with one sentence if records were left out.
    """
    faults: list[str] = []
    n_bad = n_records = 0
    for number, record in records:
        n_records += 1
        try:
            text = text_of(record)
        except InputError as error:
            n_bad += 1
            if n_bad <= NAMED:
                faults.append(f"{unit} {number}: {error}")
            if n_bad == n_records == HOPELESS:
                break
            continue
        if skip_bad or not n_bad:
            yield text
    if n_bad:
        faults += ["..."] * (n_bad > NAMED)
        found = f"{n_bad:,} of the first {n_records:,} records cannot be used ({'; '.join(faults)})"
        if not skip_bad or n_bad == n_records:
            raise InputError(
                f"{source}: {found}; mend them, name another field (--text-field), or leave them out "
                "(--skip-bad-records)"
            )
        report(f"{Path(source).name}: {found}: left out")


def line_text(field: str, line: str) -> str:
    """Return the text in a field of a JSON object. In the line, lone surrogates stand for bytes that are no UTF-8."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"expected UTF-8, got byte 0x{ord(line[error.start]) - 0xDC00:02x}") from error
    try:
        record = parse_json(line.lstrip("\ufeff"))
    except ValueError as error:
        raise InputError(f"expected a JSON object, got: {error}") from error
    if not isinstance(record, dict):
        raise InputError(f"expected a JSON object, got {line.strip()[:60]}")
    return text_of_record(field, record)


def row_text(field: str, value: bytes | None) -> str:
    """Return the text of a value of a column. Refuse a missing one, and what is no UTF-8."""
    if value is None:
        raise InputError(f"column {field!r}: expected a string, got none")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"column {field!r}: expected UTF-8, got byte 0x{value[error.start]:02x}") from error


def text_of_record(field: str, record: Any) -> str:
    """Return the text in a field of a record. Refuse a record without."""
    if not isinstance(record, Mapping):
        raise InputError(f"expected a record, got {type(record).__name__}")
    if field not in record:
        raise InputError(f"expected the field {field!r}, got {', '.join(map(repr, record))[:60] or 'none'}")
    check_text(record[field], f"field {field!r}")
    return str(record[field])


def check_text(text: Any, where: str) -> None:
    """Refuse what is no string, or no Unicode text."""
    if not isinstance(text, str):
        raise InputError(f"{where}: expected a string, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: expected Unicode text, got a lone surrogate at character {error.start}; give valid UTF-8"
        ) from error
