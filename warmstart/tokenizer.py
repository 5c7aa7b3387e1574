"""Train, load and renumber tokenizers of the library `tokenizers`; after renumbering ids are frequency ranks.

| term | meaning |
|---|---|
| `V` | size of the vocabulary, added tokens included |
| `SEPARATOR` | the token between documents; every tokenizer of this module has it |
| rank | 0 for the most frequent token, 1 for the next; equal counts are ranked by the old id |

A separator in a text is encoded as text; `warmstart.documents` ends documents there, so that none comes. Other added
tokens are read in a text, as by Hugging Face: a "words" tokenizer reads ``<unk>``, as WikiText-2 has it, as the unknown
word.
"""

import contextlib
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from warmstart.documents import SEPARATOR as SEPARATOR
from warmstart.errors import InputError
from warmstart.formats import read_settings
from warmstart.records import check_text

UNKNOWN = "<unk>"
KINDS = ("bpe", "words", "characters")
NO_SPACE = re.compile(r"\S{1000}")  # quick to search for; nothing else can have a LONG_RUN
LONG_RUN = re.compile(r"[^\W\d_]{1000}|\d{1000}|(?:[^\w\s]|_){1000}")
ONE_BYTE = re.compile("<0x[0-9A-F]{2}>")  # of a tokenizer that falls back to bytes
SMALLEST = {"bpe": 257, "words": 3, "characters": 3}  # vocabularies; bpe has 256 bytes and the separator


def train_tokenizer(texts: Iterable[str], kind: str = "bpe", vocab_size: int = 8192) -> Tokenizer:
    """Train a tokenizer. The same texts give the same tokenizer for any number of threads.

    Parameters
    ----------
    texts : iterable of str
        Documents or pieces of documents. They are read once.
    kind : {"bpe", "words", "characters"}
        "bpe": byte-level byte-pair encoding as in GPT-2, of pairs that occur at least twice. It encodes every text.
        Runs of more than 1,000 letters without a space are cut for the training.
        "words": runs of letters and digits, and runs of other signs. Spaces are lost. Rare words are ``<unk>``.
        "characters": each character is a token. Rare characters are ``<unk>``.
    vocab_size : int
        Largest ``V``. A small corpus gives fewer tokens.

    Raises
    ------
    InputError
        The kind is unknown, or ``vocab_size`` is below 257 ("bpe") or 3 (the others).

    References
    ----------
    Sennrich, Haddow and Birch (2016), section 3.2; Radford et al. (2019), section 2.2.

    Examples
    --------
    >>> tokenizer = train_tokenizer(["to be or not to be"], "words", 4)
    >>> tokenizer.encode("to be or be").tokens
    ['to', 'be', '<unk>', 'be']
    """
    if kind not in KINDS:
        raise InputError(f"expected a tokenizer of the kinds {', '.join(KINDS)}, got {kind!r}")
    if not isinstance(vocab_size, int) or vocab_size < SMALLEST[kind]:
        raise InputError(f"vocab_size: expected at least {SMALLEST[kind]} for {kind!r}, got {vocab_size!r}; raise it")
    if kind == "bpe":
        texts = (part for text in texts for part in _without_long_runs(text))
    if kind == "words":
        texts = (text.replace(UNKNOWN, " ") for text in texts)
    tokenizer = _untrained(kind)
    _train(tokenizer, texts, _trainer(kind, vocab_size))
    if kind == "characters":  # <unk> in a text is five characters
        content = json.loads(tokenizer.to_str())
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != UNKNOWN]
        tokenizer = _from_content(content)
    return _plain(tokenizer)


def _without_long_runs(text: str) -> Iterator[str]:
    """Cut runs of letters, digits or signs: each merge of byte pairs scans whole runs, which took minutes for a MB."""
    start = 0
    for run in LONG_RUN.finditer(text) if NO_SPACE.search(text) else ():
        yield text[start : run.end()]
        start = run.end()
    yield text[start:]


def _untrained(kind: str) -> Tokenizer:
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if kind == "characters":
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _trainer(kind: str, vocab_size: int) -> trainers.Trainer:
    if kind != "bpe":
        return trainers.WordLevelTrainer(
            vocab_size=vocab_size, special_tokens=[SEPARATOR, UNKNOWN], show_progress=False
        )
    return trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def _train(tokenizer: Tokenizer, texts: Iterable[str], trainer: Any) -> None:
    """Train in a thread, so that Ctrl-C reaches the main thread, which then ends the texts."""
    stop = threading.Event()

    def until_stopped() -> Iterator[str]:
        for text in texts:
            if stop.is_set():
                raise RuntimeError("stopped")
            yield text

    pool = ThreadPoolExecutor(1)
    try:
        pool.submit(tokenizer.train_from_iterator, until_stopped(), trainer).result()
    finally:
        stop.set()
        pool.shutdown()


def load_tokenizer(source: str | Path | Tokenizer) -> Tokenizer:
    """Load a ``tokenizer.json`` to encode text as it is.

    Truncation, padding, merge dropout and the post-processor are removed. `SEPARATOR` is added as the one special token
    if it is missing; other added tokens are read where a text has them, as by Hugging Face.

    Parameters
    ----------
    source : str, Path or Tokenizer
        A file, a folder with a ``tokenizer.json``, or a tokenizer, which is copied.

    Raises
    ------
    InputError
        The file is missing or is no tokenizer.

    Examples
    --------
    >>> tokenizer = load_tokenizer(Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")))
    >>> tokenizer.get_vocab_size(), tokenizer.token_to_id(SEPARATOR)
    (3, 2)
    """
    tokenizer = read_tokenizer(source)
    with refused("expected a tokenizer that can be changed", "use another one"):
        return _plain(tokenizer)


def read_tokenizer(source: str | Path | Tokenizer) -> Tokenizer:
    """Return a tokenizer as it is; parameters and errors are those of `load_tokenizer`."""
    if isinstance(source, Tokenizer):
        return source
    path = Path(source)
    path = path / "tokenizer.json" if path.is_dir() else path
    expected = f"{path}: expected a tokenizer.json (or one of {', '.join(KINDS)})"
    with refused(expected, "save one with Tokenizer.save, or convert a slow tokenizer first"):
        return Tokenizer.from_str(read_settings(path))


@contextlib.contextmanager
def refused(expected: str, hint: str) -> Iterator[None]:
    """Make an InputError of what the library `tokenizers` raises, which is nothing narrower, and of its panics."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{expected}, got: {error}; {hint}") from error


def check_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the vocabulary of a tokenizer. Refuse ids that are not 0 to V - 1."""
    ids: dict[str, int] = tokenizer.get_vocab()
    if sorted(ids.values()) != list(range(len(ids))):
        raise InputError(
            f"expected a tokenizer with the ids 0 to {len(ids) - 1}, got {len(set(ids.values()))} different ids up to "
            f"{max(ids.values(), default=0)}; use a tokenizer without gaps"
        )
    return ids


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer that reads a text as one of Hugging Face does that is made of it, the separator left out."""
    content = json.loads(tokenizer.to_str())
    content |= {"truncation": None, "padding": None, "post_processor": None}
    if "dropout" in content["model"]:
        content["model"]["dropout"] = None
    for token in content["added_tokens"]:
        token["special"] = token["content"] == SEPARATOR
        if token["special"]:  # it takes no space from the documents beside it
            token |= {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    plain = _from_content(content)
    plain.add_special_tokens([AddedToken(SEPARATOR, normalized=False)])
    return plain


def _from_content(content: dict[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.encode_special_tokens = True  # encode them as text; the JSON does not store this
    return tokenizer


def encoded(tokenizer: Tokenizer, text: Any, name: str) -> list[int]:
    """Return the ids of a text without borders of documents. Refuse what is no Unicode text; ``name`` is what it is."""
    check_text(text, name)
    with refused(f"{name}: expected text that the tokenizer can read", "leave out what it has no token for"):
        return [int(token) for token in tokenizer.encode(text, add_special_tokens=False).ids]


def continuation(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> str:
    """Return the text of tokens that follow others, with the space between them that a decoder puts between words.

    Examples
    --------
    >>> tokenizer = train_tokenizer(["to be or not to be"], "words")
    >>> continuation(tokenizer, tokenizer.encode("to be").ids, tokenizer.encode("or not").ids)
    ' or not'
    """
    first, whole = (tokenizer.decode(list(each), skip_special_tokens=False) for each in (before, [*before, *ids]))
    return str(whole[len(os.path.commonprefix([first, whole])) :])  # noqa: RUF071 - of texts


def token_ranks(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the rank of each id: 0 for the largest count. Equal counts are ranked by id.

    Parameters
    ----------
    counts : (V,) int

    Returns
    -------
    (V,) int64

    Examples
    --------
    >>> token_ranks(np.array([1, 5, 5, 9])).tolist()
    [3, 1, 2, 0]
    """
    ranks = np.empty(len(counts), np.int64)
    ranks[np.argsort(-np.asarray(counts, np.int64), kind="stable")] = np.arange(len(counts))
    return ranks


def rank_tokens(tokenizer: Tokenizer, counts: NDArray[np.integer]) -> Tokenizer:
    """Return the tokenizer with `token_ranks` of the counts as ids. Texts are cut into the same tokens as before.

    Parameters
    ----------
    tokenizer : Tokenizer
        Its model is BPE, WordPiece, WordLevel or Unigram. Added tokens become part of the model's vocabulary.
    counts : (V,) int
        Number of occurrences of each id.

    Raises
    ------
    InputError
        The ids are not 0 to V - 1, or the number of counts is not ``V``.

    Examples
    --------
    >>> tokenizer = train_tokenizer(["a b b"], "words")
    >>> ranked = rank_tokens(tokenizer, np.array([1, 0, 2, 1]))
    >>> [ranked.id_to_token(i) for i in range(4)]
    ['b', '<|endoftext|>', 'a', '<unk>']
    """
    ids = check_ids(tokenizer)
    if len(counts) != len(ids):
        raise InputError(f"expected one count for each of {len(ids)} ids, got {len(counts)}")
    ranks = token_ranks(counts).tolist()
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    if model["type"] == "Unigram":
        _rank_unigram(model, ids, ranks)
    else:
        model["vocab"] = {token: ranks[ids[token]] for token in sorted(ids, key=lambda token: ranks[ids[token]])}
    for added in content["added_tokens"]:
        added["id"] = ranks[added["id"]]
    content["added_tokens"].sort(key=lambda added: added["id"])
    return _from_content(content)


def _rank_unigram(model: dict[str, Any], ids: dict[str, int], ranks: list[int]) -> None:
    """Reorder the list of (token, score). Added tokens get the lowest score, so texts are still cut in the same way."""
    lowest = min(score for _, score in model["vocab"])
    entries = [list(entry) for entry in model["vocab"]]
    entries += [[token, lowest] for token in sorted(ids, key=lambda token: ids[token])[len(entries) :]]
    model["vocab"] = [entry for _, entry in sorted(zip(ranks, entries, strict=True))]
    if model["unk_id"] is not None:
        model["unk_id"] = ranks[model["unk_id"]]


def token_bytes(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return the number of UTF-8 bytes that each token adds to a text, after another token.

    It is exact for byte-level tokenizers, such as those of GPT-2 and Llama 3. Others decode the token after itself,
    with the space that they put between the two.

    Returns
    -------
    (V,) int64

    Examples
    --------
    >>> token_bytes(train_tokenizer(["a b b"], "words")).tolist()  # <|endoftext|>, <unk>, b, a
    [13, 5, 2, 2]
    """
    content = json.loads(tokenizer.to_str())
    ids = check_ids(tokenizer)
    twice = [[number, number] for number in range(len(ids))]
    texts = (tokenizer.decode_batch(each, skip_special_tokens=False) for each in (twice, [[i] for i, _ in twice]))
    sizes = np.array([len(two.encode()) - len(one.encode()) for two, one in zip(*texts, strict=True)], np.int64)
    byte_level = '"type": "ByteLevel"' in json.dumps(content["decoder"])
    for token, number in ids.items():
        if byte_level:  # each sign stands for a byte, which need not be a character
            sizes[number] = len(token)
        elif content["model"].get("byte_fallback") and ONE_BYTE.fullmatch(token):
            sizes[number] = 1
    for token in content["added_tokens"]:
        sizes[token["id"]] = len(token["content"].encode())
    return sizes


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id of the unknown token, or None if the tokenizer has none.

    Examples
    --------
    >>> unknown_id(train_tokenizer(["a b b"], "words")), unknown_id(train_tokenizer(["a b b"]))
    (1, None)
    """
    model = json.loads(tokenizer.to_str())["model"]
    if model["type"] == "Unigram":
        unigram_id: int | None = model["unk_id"]
        return unigram_id
    token = model.get("unk_token")
    return None if token is None else tokenizer.token_to_id(token)
