"""For the fuzzers: damaged files, a limit for hangs, and the number of examples (``make fuzz`` sets a larger one)."""

import bz2
import contextlib
import gzip
import json
import os
import signal

from hypothesis import Phase, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("WARMSTART_FUZZ", "100"))
LIMIT = 10.0  # seconds of processor time: on a busy machine a clock would count the work of others
PHASES = [phase for phase in Phase if phase is not Phase.explain]
fuzz = settings(max_examples=EXAMPLES, derandomize=EXAMPLES == 100, phases=PHASES)  # `make test`: always the same ones

OTHER_KINDS = [
    b"", b"\0", b"\n", b"{}", b"[]", b"null", b"3", b'"a"', b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000,
    b"\xff\xfe\xff\xfe", b"\xef\xbb\xbf{}", b"\x89PNG\r\n\x1a\n" + bytes(40), b"PK\3\4" + bytes(40),
    b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00]\x94.", gzip.compress(b"text"), bz2.compress(b"text"),
    b"\x93NUMPY\1\0", (2**62).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"{}",
    b"\\data\\\nngram 1=0\n\n\\1-grams:\n\n\\end\\\n", b"plain text\n" * 20,
]  # fmt: skip
VALUES = [None, True, False, 0, 1, -1, 2**40, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "a", "\ud800", "\0"]
VALUES += [[], [0], ["a"], [[]], {}, {"a": 0}]


@st.composite
def damaged(draw, content, others=()):
    """Draw a file that was cut, has wrong bits, is another one, or, if it is JSON, has another value in some place."""
    kind = draw(st.sampled_from(["cut", "bits", "other", "value", "value"]))
    if kind == "value":
        lines = content.split(b"\n") if content.count(b"}\n{") else [content]
        number = draw(st.integers(0, len(lines) - 1))
        try:
            lines[number] = json.dumps(mutated(draw, json.loads(lines[number]))).encode()
            return b"\n".join(lines)
        except ValueError:
            kind = "bits"
    if kind == "other":
        return draw(st.sampled_from([*others, *OTHER_KINDS]))
    if kind == "cut":
        start, stop = draw(st.integers(0, 9)), draw(st.integers(0, len(content)))
        return content[start if start > 7 else 0 : stop]
    out = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, min(300, len(out) - 1)) | st.integers(0, len(out) - 1))
        out[place] ^= 1 << draw(st.integers(0, 7))
    return bytes(out)


def mutated(draw, value):
    """Return a JSON value in which one part is another, is missing, or is there under another name."""
    place = draw(st.integers(0, 2))
    if not isinstance(value, list | dict) or not value or place == 0:
        return draw(st.sampled_from(VALUES))
    value = value.copy()
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    if place == 1:
        value[key] = mutated(draw, value[key])
        return value
    part = value.pop(key)
    if isinstance(value, dict) and draw(st.booleans()):
        value[draw(st.sampled_from(["a", "", *value]))] = part
    return value


class Hang(BaseException):
    """No handler of the project catches it."""


@contextlib.contextmanager
def no_hang():
    """End what takes longer than `LIMIT`."""

    def stop(*_):
        raise Hang(f"longer than {LIMIT} s of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def entries(folder):
    """Return all paths below a folder, hidden ones too."""
    return {path.relative_to(folder) for path in folder.rglob("*")}
