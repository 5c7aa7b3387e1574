r"""N-gram models as ARPA files, the text format of SRILM and KenLM.

A file lists the n-grams of every length, a line each: log10 of the probability, the words, and log10 of the weight of
shorter contexts (back-off), which is 0 where it is left out. A name that ends in ``.gz``, ``.bz2`` or
``.xz`` is a compressed file.

| here | in the file |
|---|---|
| separator as first history | ``<s>``, first word of an n-gram; as a 1-gram it has -99, for it is never predicted |
| separator as target | ``</s>``, last word of an n-gram, without a weight |
| the token ``<unk>``, if there is one | ``<unk>`` |
| other tokens | their words, see `arpa_words` |
| a probability of 0 | -99 |

*Unknown words.* The probabilities of the V tokens sum to 1. If one of them is ``<unk>``, so do those of the file.
Else ``<unk>`` stands beside them, with the smallest probability of a token, which is that of tokens never counted if
there are any: the file sums to 1 over the tokens, and `read_arpa` leaves that line out. KenLM gives the probability of
``<unk>`` in full to each word that it does not know.

Sources: ngram-format(5) of SRILM; Heafield 2011 (WMT), KenLM.
"""

import bz2
import gzip
import itertools
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, Self, cast

import numpy as np
from numpy.typing import NDArray

from warmstart.backoff import BackoffModel
from warmstart.errors import InputError
from warmstart.files import writing
from warmstart.levels import id_type
from warmstart.ngrams import LONGEST
from warmstart.progress import Progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BEGIN, END, UNKNOWN, CAPITAL = "<s>", "</s>", "<unk>", "<UNK>"  # KenLM reads both as the unknown word
KEPT = (BEGIN, END, CAPITAL)  # words of tokens that would mean something else in a file
LOG_ZERO = -99.0  # as SRILM writes the logarithm of 0
OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
BLOCK = 1 << 24  # bytes read at once, and the longest line
LONG = 200  # signs of a line that are shown
TOLERANCE = 1e-4  # of the sum of a row: files with 5 decimals pass
WRONG = (
    "",
    "a decimal logarithm",
    "a logarithm of at most 0, for no probability is above 1",
    "more words",
    "words of the vocabulary",
    "a decimal logarithm of at most 99 as weight",
    "the end of the line",
)  # by the numbers of _arpa_kernels

Array = NDArray[Any]


def arpa_words(tokenizer: "Tokenizer") -> list[str]:
    """Return the words of a tokenizer by id, its unknown token as ``<unk>``, whatever its name.

    Examples
    --------
    >>> from warmstart.tokenizer import train_tokenizer
    >>> arpa_words(train_tokenizer(["a b b"], "words"))
    ['<|endoftext|>', '<unk>', 'b', 'a']
    """
    from warmstart.tokenizer import unknown_id  # the library is loaded here, not on import

    words = [tokenizer.id_to_token(i) or "" for i in range(tokenizer.get_vocab_size())]
    if (unknown := unknown_id(tokenizer)) is not None:
        words[unknown] = UNKNOWN
    return words


def write_arpa(model: BackoffModel, path: Path, words: Sequence[str], progress: Progress | None = None) -> None:
    r"""Write a model as an ARPA file, whole or not at all; the same model gives the same bytes.

    Logarithms have 9 decimals. Time is linear in the n-grams, memory is bounded. Lengths that have no n-grams are left
    out.

    Parameters
    ----------
    model : BackoffModel
    path : Path
        A name that ends in ``.gz``, ``.bz2`` or ``.xz`` is compressed.
    words : sequence of str
        The word of every token, see `arpa_words`; that of the separator is not used. In the file, white space and the
        first sign of ``<s>``, ``</s>`` and ``<UNK>`` are written as bytes, ``<0x20>``, as SentencePiece does.
    progress : callable, optional
        Called as ``progress("write n-grams", n-grams, total)``.

    Raises
    ------
    InputError
        There is not one word for each token, a word is empty, or two are equal; a probability is not in [0, 1].

    Examples
    --------
    >>> import tempfile
    >>> from warmstart.kneser_ney import KneserNey
    >>> from warmstart.ngrams import count_ngrams
    >>> model = KneserNey(count_ngrams(np.array([0, 1, 2, 1, 2, 0]), np.array([0, 5]), vocab_size=3, order=2))
    >>> path = Path(tempfile.mkdtemp()) / "model.arpa"
    >>> write_arpa(model, path, ["separator", "a", "b"])
    >>> path.read_text().splitlines()[4:8]
    ['\\1-grams:', '-0.535113202\t<unk>', '-99\t<s>\t-0.301029996', '-0.535113202\t</s>']
    >>> read_arpa(path, ["separator", "a", "b"], separator=0).row([1]).round(6) == model.row([1]).round(6)
    array([ True,  True,  True])
    """
    from warmstart import _arpa_kernels as kernels  # numba is loaded here, not on import

    if len(words) != model.vocab_size:
        raise InputError(f"words: expected one for each of {model.vocab_size} tokens, got {len(words)}")
    vocabulary = _Vocabulary(words, model.separator)
    order = max(n for n, size in enumerate(model.n_ngrams, start=1) if size)
    sizes = [model.vocab_size + (1 if UNKNOWN in vocabulary.words else 2), *model.n_ngrams[1:order]]
    done = 0
    with writing(path) as file:
        counts = [f"ngram {n}={size}\n" for n, size in enumerate(sizes, start=1)]
        file.write("".join(["\\data\\\n", *counts]).encode())
        for n in range(1, order + 1):
            file.write(f"\n\\{n}-grams:\n".encode())
            for ids, probs, weights in _entries(model, vocabulary, n, order):
                room = 40 * ids.shape[0] + int(vocabulary.lengths[ids].sum()) + ids.size
                out = np.empty(room, np.uint8)
                size = kernels.write_lines(
                    ids, _logs(probs, 1 + 1e-9), _logs(weights, 1e99), *vocabulary.table[1:], out
                )
                file.write(out[:size].data)
                done += ids.shape[0]
                if progress:
                    progress("write n-grams", done, sum(sizes))
        file.write(b"\n\\end\\\n")


def _entries(
    model: BackoffModel, vocabulary: "_Vocabulary", n: int, order: int
) -> Iterator[tuple[Array, Array, Array]]:
    """Yield blocks of the lines of one length: words (m, n), probabilities and weights (m,)."""
    size, separator = model.vocab_size, model.separator
    if n == 1:
        probs = np.append(model.probs[:size], [0.0, model.probs[:size].min()])
        weights = np.ones(size + 2)
        if order > 1:
            weights[:size] = model.gammas[:size]
            weights[[vocabulary.begin, separator]] = weights[separator], 1.0
        first = [vocabulary.begin] if vocabulary.unknown < size else [vocabulary.outside, vocabulary.begin]
        lines = np.array([*first, *range(size)])
        yield lines[:, None], probs[lines], weights[lines]
        return
    for ids, numbers in model.ngrams(n):
        ends = ids[:, -1] == separator
        ids[ids[:, 0] == separator, 0] = vocabulary.begin
        yield ids, model.probs[numbers], np.where(ends, 1.0, model.gammas[numbers]) if n < order else np.ones(ends.size)


def _logs(values: Array, most: float) -> Array:
    """Return decimal logarithms in billionths."""
    from warmstart import _arpa_kernels as kernels  # numba is loaded here, not on import

    if not ((values >= 0) & (values <= most)).all():
        raise InputError(f"expected a model of numbers from 0 to {most:g}, got others; solve the counts again")
    with np.errstate(divide="ignore"):
        logs = np.maximum(np.log10(values), LOG_ZERO)
    return cast(Array, np.rint(logs * kernels.UNIT).astype(np.int64))


class _Vocabulary:
    """The words of a file by number: the tokens, with ``</s>`` for the separator; ``<s>``; ``<unk>`` if it is none."""

    def __init__(self, words: Sequence[str], separator: int) -> None:
        from warmstart import _arpa_kernels as kernels  # numba is loaded here, not on import

        self.size, self.separator = len(words), separator
        if not 0 <= separator < self.size:
            raise InputError(f"separator: expected a token from 0 to {self.size - 1}, got {separator}")
        self.words = [*words[:separator], END, *words[separator + 1 :]]
        self.words = [word if i == separator else _escaped(word) for i, word in enumerate(self.words)]
        if "" in self.words:
            raise InputError(f"words: expected one for every token, got an empty one for {self.words.index('')}")
        twice = [a for a, b in itertools.pairwise(sorted(self.words)) if a == b]
        if twice:
            raise InputError(f"words: expected different ones, got {twice[0]!r} twice; give one of them another name")
        self.begin, self.outside = self.size, self.size + 1
        self.unknown = self.words.index(UNKNOWN) if UNKNOWN in self.words else self.outside
        encoded = [word.encode() for word in [*self.words, BEGIN, UNKNOWN, CAPITAL]]  # of equal words, the first counts
        self.lengths = np.array([len(word) for word in encoded])
        starts = np.concatenate([[0], np.cumsum(self.lengths)])
        letters = np.frombuffer(b"".join(encoded), np.uint8)
        self.table = kernels.word_slots(letters, starts, 2 << len(encoded).bit_length()), letters, starts


def _escaped(word: str) -> str:
    r"""Return a word as a file can hold it.

    Examples
    --------
    >>> _escaped("new\nline"), _escaped("<s>")
    ('new<0x0A>line', '<0x3C>s>')
    """
    signs = [
        "".join(f"<0x{byte:02X}>" for byte in sign.encode())
        if sign.isspace() or sign == "\0" or (i == 0 and word in KEPT)
        else sign
        for i, sign in enumerate(word)
    ]
    return "".join(signs)


def read_arpa(path: Path, words: Sequence[str], separator: int, progress: Progress | None = None) -> BackoffModel:
    r"""Read an ARPA file, in any order of its lines, as a model of tokens.

    Nothing is normalised: a file in which some row does not sum to 1 within 1e-4 is refused. As the file has no counts,
    ``sizes`` of the model is 1 for every context with extensions. The weight of ``</s>`` and the probability of ``<s>``
    are not used; probabilities of 0, written as -99, are read as 1e-99.

    Parameters
    ----------
    path : Path
        A name that ends in ``.gz``, ``.bz2`` or ``.xz`` is compressed.
    words : sequence of str
        The word of every token, as for `write_arpa`. Tokens that the file does not list, and the token ``<unk>``, are
        its unknown words: they share the probability of ``<unk>`` equally, so that rows sum to 1. (KenLM gives it in
        full to each of them.) N-grams of ``<unk>`` are allowed if it stands for one token only. If it stands for none,
        it is left out.
    separator : int
        The token that is ``<s>`` and ``</s>``.
    progress : callable, optional
        Called as ``progress("read n-grams", n-grams, total)``.

    Raises
    ------
    InputError
        The file is missing, truncated or no ARPA file, a line is wrong, a word is not in the vocabulary, an n-gram is
        there twice or without its first or last words, or a row does not sum to 1.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "model.arpa"
    >>> ones = ["-99 <s>", "-0.30103 </s>", "-0.60206 a", "-0.60206 <unk>"]
    >>> _ = path.write_text("\n".join(["\\data\\", "ngram 1=4", "", "\\1-grams:", *ones, "", "\\end\\", ""]))
    >>> read_arpa(path, ["separator", "a", "rare", "rarer"], separator=0).row([]).round(3).tolist()
    [0.5, 0.25, 0.125, 0.125]
    """
    vocabulary = _Vocabulary(words, separator)
    with _Lines(Path(path)) as lines:
        counts = _header(lines)
        tables, done = _Tables(vocabulary, lines), 0
        for n, count in enumerate(counts, start=1):
            parts = [(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))]
            first, top = lines.number + 1, n == len(counts)
            for ids, values in _ngrams(lines, vocabulary, n, top):
                parts.append((tables.keys(ids), values[:, 0].copy(), values[: 0 if top else None, 1].copy()))
                done += values.shape[0]
                if progress:
                    progress("read n-grams", done, sum(counts))
            size = lines.number + 1 - first
            if size != count:
                lines.fail(f"{count} n-grams of length {n}, as the head of the file says", f"{size} up to here")
            keys, probs, weights = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            del parts
            tables.add(keys, probs, weights, first)
            following = f"\\{n + 1}-grams:" if n < len(counts) else "\\end\\"
            if (line := lines.next()) != following:
                lines.fail(following, line)
        if line := lines.next():
            lines.fail("nothing after \\end\\", line)
    return tables.model()


class _Lines:
    """A file in blocks that hold whole lines, and the number of lines that were read."""

    def __init__(self, path: Path) -> None:
        self.path, self.number, self.block, self.place = path, 0, b"", 0
        try:
            self.file = cast(IO[bytes], OPENERS.get(path.suffix.lower(), Path.open)(path, "rb"))
        except OSError as error:
            raise InputError(f"{path}: expected an ARPA file, got: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def more(self) -> bool:
        """Return whether there is a line, after reading on if need be."""
        while self.block.find(b"\n", self.place) < 0:
            rest = self.block[self.place :]
            if len(rest) > BLOCK:
                self.number += 1
                self.fail(f"a line of at most {BLOCK} bytes", "a longer one")
            try:
                read = self.file.read(BLOCK)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise InputError(f"{self.path}: expected a whole file, got: {error}; write it again") from error
            if not read and not rest:
                return False
            self.block, self.place = rest + (read or b"\n"), 0
        return True

    def next(self) -> str:
        """Return the next line that is not empty, without space around it; an empty one at the end of the file."""
        while self.more():
            end = self.block.index(b"\n", self.place)
            line = self.block[self.place : end].decode(errors="replace").strip()
            self.place = end + 1
            self.number += 1
            if line:
                return line
        return ""

    def fail(self, expected: str, got: str, line: int = 0) -> NoReturn:
        """Refuse a line, the last one if no other is given."""
        got = got if len(got) <= LONG else f"{got[:LONG]}..."
        raise InputError(
            f"{self.path}, line {line or self.number}: expected {expected}, got {got or 'the end of the file'}; "
            "write the file again"
        )


def _header(lines: _Lines) -> list[int]:
    """Read the head of a file, up to its 1-grams, and return the number of n-grams of every length."""
    if (line := lines.next().removeprefix("\ufeff")) != "\\data\\":
        lines.fail("\\data\\ as first line", line)
    counts: list[int] = []
    while match := re.fullmatch(r"ngram\s+([0-9]{1,3})\s*=\s*([0-9]{1,18})", line := lines.next()):
        if int(match[1]) != len(counts) + 1 or len(counts) == LONGEST:
            lines.fail(f"the number of n-grams of length {len(counts) + 1}, of at most {LONGEST}", line)
        counts.append(int(match[2]))
    if not counts or line != "\\1-grams:":
        lines.fail("\\1-grams:, after lines such as ngram 1=100", line)
    return counts


def _ngrams(lines: _Lines, vocabulary: "_Vocabulary", n: int, top: bool) -> Iterator[tuple[Array, Array]]:
    """Yield blocks of the n-grams of one length as words (m, n), with probabilities and weights (m, 2)."""
    from warmstart import _arpa_kernels as kernels  # numba is loaded here, not on import

    while lines.more():
        text, end = np.frombuffer(lines.block, np.uint8), lines.block.rfind(b"\n") + 1
        size = lines.block.count(b"\n", lines.place, end)
        ids, values = np.empty((size, n), np.int32), np.empty((size, 2))
        size, lines.place, wrong = kernels.parse(text, lines.place, end, *vocabulary.table, ids, values)
        ids, values = ids[:size], values[:size]
        lines.number += size
        if wrong:
            line = lines.next()
            lines.fail(WRONG[wrong], repr(line))
        ids[ids == vocabulary.size + 2] = vocabulary.unknown
        if top and (places := np.flatnonzero(values[:, 1])).size:
            place = lines.number - size + 1 + int(places[0])
            lines.fail("no weight, for there are no longer n-grams", f"{values[places[0], 1]:g}", place)
        yield ids, 10.0 ** np.maximum(values, LOG_ZERO)
        if lines.place < end:
            return


class _Tables:
    """The tables of a model while they grow, length by length."""

    def __init__(self, vocabulary: "_Vocabulary", lines: _Lines) -> None:
        size = vocabulary.size
        self.vocabulary, self.lines = vocabulary, lines
        self.unknown = -1  # the only token that <unk> stands for
        self.bases = np.array([0])
        self.last, self.offsets = np.arange(size, dtype=id_type(size)), np.array([size])
        self.probs, self.gammas, self.suffixes = np.zeros(0), np.zeros(0), np.full(size, -1)

    def keys(self, ids: Array) -> Array:
        """Return ``context * V + last token`` of n-grams, with contexts numbered in their length."""
        from warmstart import _arpa_kernels as kernels  # numba is loaded here, not on import

        words = self.vocabulary
        if ids.shape[1] == 1:
            return ids[:, 0].astype(np.int64)
        self._refuse(ids, (ids[:, 1:] == words.begin).any(axis=1), f"{BEGIN} as first word only")
        self._refuse(ids, (ids[:, :-1] == words.separator).any(axis=1), f"{END} as last word only")
        if self.unknown < 0:
            reason = f"no n-gram of {UNKNOWN}, which does not stand for exactly one token of the vocabulary"
            self._refuse(ids, (ids == words.unknown).any(axis=1), reason)
        tokens = np.where(ids == words.begin, words.separator, ids)
        tokens[ids == words.unknown] = self.unknown
        nodes = kernels.prefixes(tokens, self.offsets, self.last)
        self._refuse(ids, nodes < 0, f"an n-gram whose first {ids.shape[1] - 1} words are an n-gram of the file")
        return cast(Array, (nodes - self.bases[-2]) * words.size + tokens[:, -1])

    def _refuse(self, ids: Array, wrong: Array, expected: str) -> None:
        """Refuse the first of the n-grams read last that is wrong."""
        if (places := np.flatnonzero(wrong)).size:
            names = [*self.vocabulary.words, BEGIN, UNKNOWN]
            got = repr(" ".join(names[i] for i in ids[places[0]]))
            self.lines.fail(expected, got, self.lines.number - ids.shape[0] + 1 + int(places[0]))

    def add(self, keys: Array, probs: Array, weights: Array, first: int) -> None:
        """Add the n-grams of one length; the longest have no weights. ``first`` is the line of the first one."""
        order = np.argsort(keys, kind="stable")
        keys, probs, weights = keys[order], probs[order], weights[order[: weights.size]]
        if (twice := np.flatnonzero(keys[1:] == keys[:-1])).size:
            self.lines.fail("every n-gram once", "one that is there before", first + int(order[twice[0] + 1]))
        del order
        if self.bases.size == 1:
            self._add_tokens(keys, probs, weights)
            return
        contexts, tokens = np.divmod(keys, self.vocabulary.size)
        start, stop = map(int, self.bases[-2:])
        self.offsets = np.append(self.offsets, stop + np.cumsum(np.bincount(contexts, minlength=stop - start)))
        self.last = np.append(self.last, tokens.astype(self.last.dtype))
        self.probs = np.append(self.probs, probs)
        del keys, contexts, tokens, probs
        self.suffixes = np.append(self.suffixes, np.full(weights.size, -1))
        self._check(start, stop)
        self.bases = np.append(self.bases, self.last.size)
        self.gammas = np.append(self.gammas, weights)

    def _add_tokens(self, keys: Array, given: Array, given_weights: Array) -> None:
        words, size = self.vocabulary, self.vocabulary.size
        probs, weights = np.full(size + 2, -1.0), np.ones(size + 2)
        probs[keys], weights[keys[: given_weights.size]] = given, given_weights
        for word, name in ((words.separator, END), (words.begin, BEGIN)):
            if probs[word] < 0:
                self.lines.fail(f"{name} among the 1-grams", "none up to here")
        unknown = probs[:size] < 0
        if words.unknown < size:
            unknown[words.unknown] = True
        if (missing := np.flatnonzero(unknown)).size:
            if probs[words.unknown] < 0:
                got = f"none for {words.words[missing[0]]!r}"
                self.lines.fail(f"a 1-gram of every token of the vocabulary, or {UNKNOWN}", got)
            probs[missing] = probs[words.unknown] / missing.size
            weights[missing] = weights[words.unknown]
            self.unknown = int(missing[0]) if missing.size == 1 else -1
        weights[words.separator] = weights[words.begin]
        self.probs, self.gammas, self.bases = probs[:size], weights[:size], np.array([0, size])
        if abs(float(self.probs.sum()) - 1) > TOLERANCE:
            got = f"{self.probs.sum():.6g}"
            if not missing.size and probs[-1] > 0:
                got += f" without {UNKNOWN}, which stands for no token of the vocabulary and has {probs[-1]:.6g}"
            self.lines.fail("1-grams that sum to 1", got)

    def _check(self, start: int, stop: int) -> None:
        """Check the rows of the contexts of one length."""
        from warmstart import _arpa_kernels as kernels  # numba is loaded here, not on import

        tables = self.last, self.offsets, self.probs, self.gammas, self.suffixes
        orphan, worst, total = kernels.check_rows(self.vocabulary.size, start, stop, *tables)
        if orphan >= 0:
            self.lines.fail("n-grams whose last words are n-grams of the file, to go on with", self._spell(orphan))
        if not abs(total - 1) <= TOLERANCE:
            reason = f"weights with which every row sums to 1 within {TOLERANCE:g}"
            self.lines.fail(reason, f"{total:.6g} after {self._spell(worst)}")

    def _spell(self, node: int) -> str:
        """Return the words of a context."""
        tokens = []
        while node >= self.vocabulary.size:
            tokens.append(int(self.last[node]))
            node = int(np.searchsorted(self.offsets, node, side="right")) - 1
        names = [BEGIN if node == self.vocabulary.separator else self.vocabulary.words[node]]
        return repr(" ".join(names + [self.vocabulary.words[token] for token in reversed(tokens)]))

    def model(self) -> BackoffModel:
        """Return the finished model."""
        size, contexts = self.vocabulary.size, int(self.bases[-2])
        offsets = self.offsets.astype(np.int32 if self.bases[-1] < 2**31 else np.int64)
        sizes = (np.diff(offsets) > 0).astype(np.uint8)
        arrays: tuple[Array, ...] = self.last, offsets, self.probs, self.gammas[:contexts], sizes
        return BackoffModel(size, self.vocabulary.separator, self.bases.size - 1, self.bases, *arrays)
