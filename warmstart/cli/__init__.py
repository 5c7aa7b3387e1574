"""The command line: commands of a model, of shards and of training, and how it ends.

Results go to stdout, as a table or as one JSON object (``--json``). Progress and errors go to stderr.
"""

import io
import sys
import traceback
import warnings
from typing import Any

import typer

from bitcipher import CapacityError
from warmstart.cli import models, shards, training  # noqa: F401 - their commands
from warmstart.cli.app import app
from warmstart.errors import InputError

__all__ = ["app", "main"]

UsageError = typer.BadParameter.__mro__[1]  # typer does not export it in all versions
MEND = "mend its name or permissions, free space on the disk, or choose another place"


def main() -> None:
    """Run the command line and exit with 0, with 1 after an error, 2 after wrong usage, 130 after Ctrl-C.

    An error is one line on stderr, which says what was expected, what came and what to do.
    ``warmstart --debug COMMAND`` shows its traceback too.
    """
    warnings.formatwarning = lambda message, *_, **__: f"warning: {_line(message)}\n"
    for stream in (sys.stdout, sys.stderr):  # names of files and generated text may not be in its encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] or ["--help"]
    try:
        code = app(arguments, prog_name="warmstart", standalone_mode=False)
    except Exception as error:
        if "--debug" in arguments[:1]:
            traceback.print_exc()
        sys.stderr.write(f"error: {_line(_sentence(error))}\n")
        code = 2 if isinstance(error, UsageError) else 1
    sys.exit(code)


def _sentence(error: Exception) -> str:
    """Return what was expected, what came, and what to do."""
    if isinstance(error, UsageError):
        usage: Any = error
        name = "warmstart" if usage.ctx is None else usage.ctx.command_path
        return f"{usage.format_message().rstrip('.')}; see {name} --help"
    if isinstance(error, InputError | CapacityError):
        return str(error)
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}expected files that can be read and written, got: {error.strerror or error}; {MEND}"
    if isinstance(error, OverflowError):
        return f"expected numbers that can be computed with, got a larger one: {error}; give smaller ones"
    if isinstance(error, MemoryError):
        return "expected more memory, got no more; choose a smaller preset, fewer bits or a smaller radius"
    return (
        f"expected no {type(error).__name__}, got a fault of warmstart itself: {error}; please report what "
        "warmstart --debug COMMAND shows"
    )


def _line(message: object) -> str:
    """Return a message without line breaks and other control characters, which names of files can have."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in str(message))
