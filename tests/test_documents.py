"""Documents: what is read, where it is cut, and which place an error names."""

import bz2
import gzip
import io
import json
import lzma
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from warmstart import documents, formats
from warmstart.corpus import Corpus
from warmstart.documents import PIECE, Piece, default_corpus, find_sources, read_documents
from warmstart.errors import InputError
from warmstart.formats import CONTEXT, READ, Reading


def whole(sources, split=None, **reading):
    """Join pieces to documents."""
    texts, part = [], ""
    for piece in read_documents(sources, Reading(split, **reading)):
        assert 0 < len(piece.text) <= PIECE
        part += piece.text
        if piece.ends_document:
            texts.append(part)
            part = ""
    assert part == ""
    return texts


def test_each_string_is_a_document_and_blank_ones_are_dropped():
    assert list(read_documents(iter(["a\r\n", "", " \n", "b"]))) == [Piece("a\r\n", True), Piece("b", True)]


def test_files_are_read_by_ending(tmp_path):
    (tmp_path / "plain.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    (tmp_path / "odd.log").write_text("log")
    with gzip.open(tmp_path / "a.md.gz", "wt") as file:
        file.write("packed")
    with lzma.open(tmp_path / "b.jsonl.xz", "wt") as file:
        file.write('\ufeff{"text": "r1\\r\\n", "id": 3}\n\n{"text": ""}\n{"text": "r2"}')
    assert whole(tmp_path / "plain.txt") == ["one\ntwo\nthree\n"]
    assert whole(str(tmp_path / "odd.log")) == ["log"]
    assert whole(tmp_path / "a.md.gz") == ["packed"]
    assert whole(tmp_path / "b.jsonl.xz") == ["r1\r\n", "r2"]
    assert whole([tmp_path / "a.md.gz", tmp_path / "plain.txt"]) == ["packed", "one\ntwo\nthree\n"]


def test_a_folder_is_read_in_the_order_of_relative_paths(tmp_path):
    for name in ("b.txt", "a/z.md", "a/y/x.text", "A.TXT", "skip.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    with pytest.warns(UserWarning, match=r"left out skip\.py; a folder"):
        assert whole(tmp_path) == ["A.TXT", "a/y/x.text", "a/z.md", "b.txt"]


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"one\n\n\ntwo")))
    assert whole("-", r"\n{2,}") == ["one", "two"]


@pytest.mark.parametrize("shift", range(4))
def test_characters_across_a_read_boundary(tmp_path, shift):
    text = "x" * (READ - shift) + "\U0001f600é\r\nend"
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert whole(tmp_path / "a.txt") == [text.replace("\r\n", "\n")]


def test_cr_lf_across_a_read_boundary(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * (READ - 1) + b"\r\ny")
    assert whole(tmp_path / "a.txt") == ["x" * (READ - 1) + "\ny"]


def test_pieces_end_before_a_newline_else_before_a_space_else_anywhere():
    lines = "a b\n" * PIECE
    pieces = list(read_documents([lines]))
    assert all(piece.text[0] == "\n" for piece in pieces[1:])
    assert "".join(piece.text for piece in pieces) == lines
    assert [piece.ends_document for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    spaced = list(read_documents(["ab  " * PIECE]))
    assert all(piece.text.startswith(" a") for piece in spaced[1:])
    solid = "x" * (3 * PIECE + 1)
    assert [len(piece.text) for piece in read_documents([solid])] == [PIECE, PIECE, PIECE, 1]


def test_blank_pieces_count_as_soon_as_text_follows():
    late = "\n" * (3 * PIECE) + "x" * (2 * PIECE)
    assert whole([" " * (3 * PIECE), late, " " * PIECE]) == [late]


@given(
    st.lists(st.sampled_from(["word", " ", "\n", "\r\n", "\t", "'s", "é", "1", "..", "\u2028", "\x1c"]), max_size=300)
)
def test_cut_text_gives_the_words_of_the_uncut_text(parts):
    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = "".join(parts) + "end"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE", 40)
        pieces = [piece.text for piece in read_documents([text])]
    if all(len(piece) < 40 for piece in pieces[:-1]):  # cut at a blank, not anywhere
        words = [word for piece in pieces for word, _ in cutter.pre_tokenize_str(piece)]
        assert words == [word for word, _ in cutter.pre_tokenize_str(text)]


@pytest.mark.parametrize("expression", [r"\n\n+", r"(?m)^=+$\n", r"(?=CHAPTER)", r"(?<=\n)--\n", r"(a)|(b)"])
@given(
    st.lists(st.sampled_from(["\n", "\n\n\n", "=\n", "==", "CHAPTER", "--\n", "a", "b", "word "]), max_size=60),
    st.integers(1, 9),
)
def test_splitting_a_stream_is_splitting_the_text(expression, parts, read):
    text = "".join(parts)
    pattern = re.compile(expression)
    ends = [0, *(at for match in pattern.finditer(text) for at in match.span()), len(text)]
    expected = [text[a:b] for a, b in zip(ends[::2], ends[1::2], strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "CONTEXT", 12)
        chunks = (text[i : i + read] for i in range(0, len(text), read))
        texts, part = [], ""
        for fragment, end in formats.split_text(chunks, pattern):
            part += fragment
            if end:
                texts.append(part)
                part = ""
    assert [t for t in texts if t.strip()] == [t for t in expected if t.strip()]


def test_a_separator_as_long_as_the_context_is_found(tmp_path):
    text = "a" * (READ - 100) + "\n" * (CONTEXT - 1) + "b"
    (tmp_path / "a.txt").write_text(text)
    assert whole(tmp_path / "a.txt", r"\n{2,}") == ["a" * (READ - 100), "b"]


def test_reading_memory_does_not_grow_with_the_file(tmp_path):
    with gzip.open(tmp_path / "big.txt.gz", "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"some words\n" * 95_000)
    code = (
        "import sys; from warmstart.documents import Reading, read_documents\n"
        "from warmstart.progress import peak_memory\n"
        "n = sum(len(piece.text) for piece in read_documents(sys.argv[1], Reading(r'\\n\\n')))\n"
        "print(n, peak_memory() // 2**20)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "big.txt.gz")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    size, peak = map(int, done.stdout.split())
    assert size == 64 * 95_000 * 11
    assert peak < 150  # MiB; the interpreter with tokenizers and numpy is about 50, the text 64


def test_the_default_corpus_is_python_s_documentation_in_two_parts():
    texts = list(default_corpus())
    assert list(find_sources()) == texts
    assert sum(len(text.split()) for text in texts) > 200_000
    assert any(text.startswith("Support for regular expressions (RE).") for text in texts)
    assert list(default_corpus("test")) == texts[9::10]
    assert sorted([*default_corpus("train"), *default_corpus("test")]) == sorted(texts)
    with pytest.raises(InputError, match="valid"):
        default_corpus("valid")


def jsonl(*records):
    return "\n".join(json.dumps(record) for record in records).encode()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"ok\n\xff", "a.txt.*0xff at offset 3"),
        ("bom.txt", b"\xef\xbb\xbfok\xc3", "bom.txt.*0xc3 at offset 5"),
        ("late.txt", b"x" * READ + "é".encode() * 2 + b"\xe9x", f"offset {READ + 4}"),
        ("cut.txt", b"x" * (READ - 1) + b"\xe2x", f"offset {READ - 1}"),
        ("b.txt.gz", gzip.compress(b"ok\xff"), "offset 2"),
        ("c.txt.gz", gzip.compress(b"a" * 9999)[:-9], "c.txt.gz.*whole .gz"),
        ("d.txt.gz", b"no gzip", "whole .gz"),
        ("e.txt.xz", lzma.compress(b"a" * 9999)[:-20], "whole .xz"),
        ("f.txt.xz", b"no xz at all", "whole .xz"),
        (
            "g.jsonl",
            jsonl({"text": "a"}, {"txt": "b"}),
            "g.jsonl: 1 of the first 2 .*line 2: expected the field 'text', got 'txt'",
        ),
        ("h.jsonl", jsonl({"text": 3}), "line 1.*string"),
        ("i.jsonl", b'{"text": "a"}\n\n{"text": ', "line 3"),
        ("j.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "line 2: expected UTF-8, got byte 0xff"),
        ("k.jsonl", b'{"text": "\\ud800"}', "surrogate"),
        ("l.jsonl", b"[1]", "line 1"),
        ("m.txt", b" \n\n", "whitespace"),
        ("n.txt", b"", "whitespace"),
    ],
)
def test_errors_in_files_name_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_documents(tmp_path / name))


def test_errors_in_sources(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "empty").mkdir()
    for sources, message in [
        (tmp_path / "missing.txt", "missing.txt"),
        ("a text, not a path. " * 99, "list"),
        ("a\0b", "list"),
        (tmp_path / "empty", "got none"),
        ([], "whitespace"),
        (["a", 3], "document 2.*int"),
        (["a", b"b"], "document 2.*bytes"),
        (["\ud800"], "surrogate"),
        ([tmp_path / "a.txt", "b"], "Paths"),
        ([str(tmp_path / "a.txt")], "write Path"),
        (3, "int"),
    ]:
        with pytest.raises(InputError, match=message):
            list(read_documents(sources))
    assert whole(["é" * 300 + ".txt"]) == ["é" * 300 + ".txt"]


@pytest.mark.parametrize("expression", ["(", "", r"\n*"])
def test_bad_expressions_are_refused_before_reading(expression):
    with pytest.raises(InputError, match="split_documents"):
        Reading(expression)


def test_links_in_a_folder_are_followed_once_and_hidden_files_are_read(tmp_path):
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    for path, text in [(folder / "a.txt", "a"), (folder / ".hidden/.h.txt", "h"), (outside / "o.txt", "o")]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "link").symlink_to(outside)
    (folder / "again").symlink_to(outside)
    (outside / "loop").symlink_to(folder)
    assert whole(folder) == ["h", "a", "o"]
    (folder / "b.txt").symlink_to(folder / "a.txt")
    with pytest.warns(UserWarning, match=r"b\.txt: read once, it is the same file as .*a\.txt"):
        assert whole(folder) == ["h", "a", "o"]
    with pytest.warns(UserWarning, match="read once"):
        assert whole([folder / "a.txt", outside / "o.txt", folder / "a.txt"]) == ["a", "o"]


def test_what_a_folder_has_besides_text_is_named(tmp_path):
    for name in ("a.txt", "b.csv", "c.py", "d.pdf", "e"):
        (tmp_path / name).write_text("text")
    (tmp_path / "settings.json").write_text('{\n  "bits": 5\n}\n')
    (tmp_path / "lines.json").write_text('{"text": "record"}')
    os.mkfifo(tmp_path / "aa.txt")
    (tmp_path / "ab.txt").symlink_to("nowhere")
    with pytest.warns(UserWarning, match=r"left out aa\.txt, ab\.txt, b\.csv and 4 more; a folder"):
        assert whole(tmp_path) == ["text", "record"]
    (tmp_path / "a.txt").unlink()
    (tmp_path / "lines.json").unlink()
    with pytest.raises(InputError, match="got none, and 7 others"):
        find_sources(tmp_path)


@pytest.mark.parametrize("large", [False, True])
def test_settings_in_one_line_are_no_record(tmp_path, large):
    """A tokenizer.json is one JSON object, and may be one line; so may be a record."""
    vocab = {f"w{i}": i for i in range(20_000 if large else 3)}
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {"vocab": vocab}}) + "\n")
    (tmp_path / "b.json").write_bytes("\ufeff".encode() + jsonl({"id": vocab, "text": "record"}))
    with pytest.warns(UserWarning, match=r"left out tokenizer\.json; a folder .*; give other files by name"):
        assert whole(tmp_path) == ["text", "record"]
    with pytest.warns(UserWarning, match=r"left out b\.json, tokenizer\.json; a folder"):
        assert list(read_documents(tmp_path, Reading(text_field="txt"))) == [Piece("text", True)]
    with pytest.raises(
        InputError, match=r"tokenizer.json: 1 of the first 1 .*expected the field 'text', got 'version'"
    ):
        whole(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_bytes(jsonl({"version": vocab}, {"version": 2}))
    with pytest.raises(
        InputError, match=r"tokenizer.json: 2 of the first 2 .*expected the field 'text', got 'version'"
    ):
        whole(tmp_path)


def test_a_file_that_is_there_packed_and_unpacked_is_named(tmp_path):
    for name in ("a.txt", "a.txt.gz", "b.txt.xz", "b.TXT.bz2"):
        opener = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(Path(name).suffix, open)
        with opener(tmp_path / name, "wt") as file:
            file.write(name)
    with pytest.warns(UserWarning, match=r"a.txt.gz: read too, though .*/a.txt is beside it; if .*$") as warned:
        assert whole(tmp_path) == ["a.txt", "a.txt.gz", "b.TXT.bz2", "b.txt.xz"]
    assert len(warned) == 1
    with pytest.warns(UserWarning, match=r"a.txt: read too, though .*a.txt.gz is beside it"):
        assert whole([tmp_path / "a.txt.gz", tmp_path / "a.txt"]) == ["a.txt.gz", "a.txt"]
    assert whole([tmp_path / "a.txt.gz", tmp_path / "b.txt.xz"]) == ["a.txt.gz", "b.txt.xz"]


@pytest.mark.parametrize(
    "name", [b"-.txt", b"--help.txt", b"two\nlines.txt", b"\xff\xfe.txt", b" .txt", "é*?.txt".encode()]
)
def test_unusual_names(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.write_text("text")
    assert whole(tmp_path) == ["text"]
    corpus = Corpus.build(path, tokenizer="words", cache_dir=tmp_path / "cache")
    assert corpus.manifest["sources"][0]["name"] == path.name
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="0xff at offset 0"):
        whole(path)
