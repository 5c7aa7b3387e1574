"""Named arrays on disk: safetensors, byte-stable, written whole or not at all."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from warmstart.errors import InputError

FACTS = "warmstart"  # one metadata key: safetensors does not keep the order of several


def save_arrays(path: Path, arrays: dict[str, NDArray[Any]], facts: dict[str, Any] | None = None) -> None:
    """Write arrays and JSON facts to a safetensors file; the same content gives the same bytes.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> save_arrays(path, {"x": np.arange(3)}, {"unit": 2})
    >>> arrays, facts = load_arrays(path)
    >>> arrays["x"].tolist(), facts
    ([0, 1, 2], {'unit': 2})
    """
    whole = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    with replacing(path) as temporary:
        try:
            save_file(whole, temporary, {FACTS: json.dumps(facts or {}, sort_keys=True)})
        except SafetensorError as error:  # a full disk comes as this
            raise OSError(f"{path}: could not be written: {error}") from error


def load_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read arrays and facts.

    Raises
    ------
    InputError
        The file is missing, truncated or no safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {}).get(FACTS, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: expected a whole safetensors file, got: {error}; write it again") from error


def save_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON with sorted keys, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` on success, remove it on any error."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
