"""The process that takes utterances: what was typed, spoken or read from a file becomes one clean line, or is refused.

With ``--file`` it follows a text file; each line that is added is an utterance. How far the file was read is kept in
the log, in one transaction with the lines, so that no line is lost or read twice.
"""

import argparse
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

from examples.lamp.log import Event, Log
from examples.lamp.process import arguments, run
from examples.lamp.tags import Tags
from warmstart.errors import InputError

NAME = "recorder"
LONGEST = 500  # characters of an utterance
CHUNK = 2**16  # bytes of the file that are read at once, and the longest line


def clean(text: str) -> str:
    r"""Return a text in composed form (NFC), on one line, with single spaces and without control characters.

    Examples
    --------
    >>> clean(" Light\n on,\tplease ")
    'Light on, please'
    """
    kept = (" " if unicodedata.category(sign) in ("Cc", "Cs") else sign for sign in unicodedata.normalize("NFC", text))
    return " ".join("".join(kept).split())


class Recorder:
    """Reads ``typed`` events, and the lines of a file; writes ``said`` and ``refused``."""

    def __init__(self, log: Log, file: Path | None = None) -> None:
        self.log, self.file = log, file
        if file is not None and not file.is_file():
            raise InputError(f"expected a text file to follow, got {file}; create it first, it may be empty")

    def step(self) -> bool:
        """Deal with the next text, or the next lines; return whether there were any."""
        return self.log.step(NAME, ("typed",), self._record) or (self.file is not None and self._follow(self.file))

    def _record(self, typed: Event) -> None:
        text = clean(typed.body["text"])
        if not any(unicodedata.category(sign)[0] not in "CZ" for sign in text):
            self.log.append(
                "refused", {"why": "There is nothing in it: an utterance needs a letter or a sign."}, typed.id
            )
            return
        body = {"text": text[:LONGEST].rstrip(), "via": typed.body["via"]}
        if len(text) > LONGEST:
            body["cut"] = len(text)  # characters that there were
        spoken = typed.about and self.log.event(typed.about)
        self.log.append("said", body, typed.id, time=(spoken or typed).time)

    def _follow(self, file: Path) -> bool:
        place = f"file {file.absolute()}"
        start, size = self.log.position(place), file.stat().st_size
        if size == start:
            return False
        if size < start:
            with self.log.transaction():
                self._trouble(f"{file} has become shorter: it is read again from its beginning.")
                self.log.move(place, 0)
            return True
        with file.open("rb") as opened:
            opened.seek(start)
            chunk = opened.read(CHUNK)
        length = chunk.rfind(b"\n") + 1 or (len(chunk) if len(chunk) == CHUNK else 0)
        if not length:  # the line has no end yet
            return False
        with self.log.transaction():
            for line in chunk[:length].splitlines():
                self._line(file, line)
            self.log.move(place, start + length)
        return True

    def _line(self, file: Path, line: bytes) -> None:
        try:
            text = line.decode("utf-8-sig")
        except UnicodeDecodeError:
            self._trouble(f"A line of {file} is not in UTF-8 and was left out: save the file in UTF-8.")
            return
        if text.strip():
            self.log.append("typed", {"text": text, "via": "file"})

    def _trouble(self, why: str) -> None:
        self.log.append("trouble", {"process": NAME, "why": why})


def prepare(log: Log, _tags: Tags, options: argparse.Namespace) -> Callable[[], bool]:
    """Return the step of the process."""
    return Recorder(log, options.file).step


if __name__ == "__main__":
    parser = arguments("Take utterances: clean what was typed, and follow a file.")
    parser.add_argument("--file", type=Path, help="a text file to follow; each line that is added is an utterance")
    sys.exit(run(parser, prepare))
