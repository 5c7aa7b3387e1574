"""Byte-level byte-pair encoding in plain Python, with the ids of the library `tokenizers`.

Text is cut into runs of letters, of digits and of other signs, each with one space before it, and the endings of English
contractions. The bytes of each run are merged pair by pair, the earliest merge first. Source: Radford et al. 2019,
section 2.2.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from warmstart.errors import InputError

SEPARATOR = "<|endoftext|>"
RUNS = re.compile(r"'(?:[stmd]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
SPACES = frozenset("\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {chr(c) for c in range(0x2000, 0x200B)}
MOST_RUNS = 1 << 14  # that are remembered
LONGEST_RUN = 64  # characters of a run that is remembered
PLAIN = {  # what a tokenizer.json must say, or leave out, for a text to be encoded here
    "dropout": (None,), "unk_token": (None,), "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""), "byte_fallback": (None, False), "ignore_merges": (None, False),
}  # fmt: skip


class _Classes(dict[int, str]):
    """What stands for a character in `RUNS`: ASCII for itself, an `a`, a `0`, a line break or an `!` for others."""

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        kind = unicodedata.category(sign)[0]
        self[code] = sign if code < 128 else "\n" if sign in SPACES else {"L": "a", "N": "0"}.get(kind, "!")
        return self[code]


class BytesBPE:
    """A tokenizer, from the content of a ``tokenizer.json``.

    Raises
    ------
    InputError
        It is another kind of tokenizer.

    Examples
    --------
    >>> tokens = [SEPARATOR, *map(byte_signs().__getitem__, b"hat"), "ha"]
    >>> model = {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": [["h", "a"]]}
    >>> pre = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    >>> tokenizer = BytesBPE({"model": model, "pre_tokenizer": pre, "added_tokens": [{"content": SEPARATOR}]})
    >>> tokenizer.encode("hath"), tokenizer.decode([4, 3])
    ([4, 3, 1], 'hat')
    """

    def __init__(self, content: dict[str, Any]) -> None:
        if problem := obstacle(content):
            raise InputError(f"expected a byte-level BPE tokenizer as `fit` trains it, got {problem}; give token ids")
        model = content["model"]
        self.ids: dict[str, int] = model["vocab"]
        self.ranks: dict[tuple[str, str], int] = {}
        for rank, pair in enumerate(model["merges"]):
            left, right = pair if isinstance(pair, list) else pair.split(" ")
            self.ranks[left, right] = rank
        self.known: dict[str, list[int]] = {}

    @classmethod
    def open(cls, path: Path) -> "BytesBPE":
        """Read a ``tokenizer.json``."""
        return cls(json.loads(path.read_bytes()))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text without borders of documents; a separator in it is text.

        Raises
        ------
        InputError
            It is no Unicode text.
        """
        if not isinstance(text, str):
            raise InputError(f"text: expected a string, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"text: expected Unicode text, got a lone surrogate at character {error.start}; give valid UTF-8"
            ) from error
        return [token for run in runs(text) for token in self._run(run)]

    def _run(self, run: str) -> list[int]:
        ids = self.known.get(run)
        if ids is None:
            signs = byte_signs()
            ids = [self.ids[part] for part in self._merged([signs[byte] for byte in run.encode()])]
            if len(run) <= LONGEST_RUN:
                if len(self.known) >= MOST_RUNS:
                    self.known.clear()
                self.known[run] = ids
        return ids

    def _merged(self, parts: list[str]) -> list[str]:
        """Merge neighbours until no pair is in the list of merges, the earliest merge first."""
        ranks, last = self.ranks, len(self.ranks)
        while len(parts) > 1:
            best = min(zip(parts, parts[1:], strict=False), key=lambda pair: ranks.get(pair, last))
            if best not in ranks:
                break
            merged, i = [], 0
            while i < len(parts):
                if i + 1 < len(parts) and (parts[i], parts[i + 1]) == best:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        return parts

    @cached_property
    def tokens(self) -> list[str]:
        """The vocabulary in the order of the ids."""
        return sorted(self.ids, key=self.ids.__getitem__)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of tokens; bytes that are no UTF-8 become U+FFFD."""
        return self.bytes_of(ids).decode("utf-8", "replace")

    def bytes_of(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of tokens."""
        of_sign = {sign: byte for byte, sign in enumerate(byte_signs())}
        words = (self.tokens[token] for token in ids)
        return b"".join(
            word.encode() if word == SEPARATOR else bytes(of_sign[sign] for sign in word) for word in words
        )


def runs(text: str) -> Iterator[str]:
    """Yield the runs of a text, in order; together they are the text.

    Examples
    --------
    >>> list(runs("I'm 21,  ok"))
    ['I', "'m", ' 21', ',', ' ', ' ok']
    """
    classes = text if text.isascii() else text.translate(_CLASSES)
    for run in RUNS.finditer(classes):
        yield text[run.start() : run.end()]


_CLASSES = _Classes()
_SIGNS: list[str] = []


def byte_signs() -> list[str]:
    """Return the character that stands for each of the 256 bytes in a vocabulary."""
    if not _SIGNS:
        own = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
        others = iter(range(256, 512))
        _SIGNS.extend(chr(byte if byte in own else next(others)) for byte in range(256))
    return _SIGNS


def obstacle(content: dict[str, Any]) -> str | None:
    """Return what keeps a tokenizer from being a byte-level BPE as `warmstart.tokenizer` trains it; None if nothing."""
    model, pre = content["model"], content.get("pre_tokenizer") or {}
    if model.get("type") != "BPE":
        return f"the kind {model.get('type')}"
    wanted = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    if any(pre.get(name) != value for name, value in wanted.items()) or content.get("normalizer"):
        return "another preparation of the text"
    if others := [token["content"] for token in content["added_tokens"] if token["content"] != SEPARATOR]:
        return f"the added token {others[0]}"
    return next((name for name, values in PLAIN.items() if model.get(name) not in values), None)
