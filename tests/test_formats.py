"""Files of text: recognised or refused by name and first bytes, unpacked, decoded; records counted and named."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import sys
import types
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from warmstart.corpus import Corpus
from warmstart.documents import SEPARATOR, _separated, read_documents
from warmstart.errors import InputError
from warmstart.finetune.job import Plan
from warmstart.formats import HEAD, Reading, read_settings
from warmstart.records import line_text
from warmstart.tokenizer import load_tokenizer

LINES = b'{"text": "one", "id": 1}\n{"text": "two", "id": 2}\n'


def texts(path, **reading):
    """Documents, each of which is short enough for one piece."""
    return [piece.text for piece in read_documents(path, Reading(**reading))]


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    "name", ["d.jsonl", "d.ndjson", "d.json", "d", "d.log", "D.JSON.GZ", "d.json.bz2", "d.jsonl.xz", "d.gz"]
)
def test_json_lines_are_read_under_any_name(write, name):
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(name.rsplit(".", 1)[-1].lower(), bytes)
    assert texts(write(name, pack(LINES))) == ["one", "two"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_json_lines_come_through_a_pipe(monkeypatch, pack):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(pack(LINES))))
    assert texts("-") == ["one", "two"]
    assert not sys.stdin.buffer.closed


def test_a_first_record_longer_than_what_is_looked_at_is_one(write):
    long = "word " * HEAD
    records = [json.dumps({"text": long}), json.dumps({"text": "two"})]
    got = "".join(texts(write("d.json", "\n".join(records).encode())))
    assert got == long + "two"


@pytest.mark.parametrize(
    "content",
    [
        "[1] A footnote.\n[2] Another.",
        "[[Category:Birds]] of the sea",
        '["Hello," he said, and left.',
        "{curly} braces",
        '{"a": 1} begins a sentence',
        "{}\nan empty object is nothing",
        "yes,no\nThat was all.",
        "Hello, world\nDear Sir, Madam, all",
        "one line, without, an end",
        "a|b\nc|d",
        "[" * 5000,
        "1,2\n3,4",
    ],
)
def test_what_only_looks_like_something_else_is_text(write, content):
    assert texts(write("a.txt", content.encode())) == [content]
    assert texts(write("a", content.encode())) == [content]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", LINES, r"a\.txt: expected text or JSON lines, got JSON lines: .*--format jsonl.*--format text"),
        ("a.json", b'[{"text": "a"}]', "a JSON document: .*jq"),
        ("a.json", b'{\n  "text": "a"\n}', "a JSON document"),
        ("a", b'[{"text": "' + b"a" * HEAD, "a JSON document"),
        ("a", b'{\n "x": [' + b"1, " * HEAD, "a JSON document"),
        ("a.json", b"plain text", "no JSON object in the first line"),
        ("a.csv", b"text\nhello", r"a table: convert it to JSON lines, or take it .*\(--format text\)"),
        ("a.tsv.gz", gzip.compress(b"x"), "a table"),
        ("a", b'id,text\n1,"the cat, the dog"\n', "a table"),
        ("a", b'\xef\xbb\xbf"id";"text"\r\n1;a', "a table"),
        ("a.txt", b"word\tcount\nthe\t12\n", "a table"),
        ("a", b"<!DOCTYPE html><p>", "HTML"),
        ("a.html", b"\n <HTML><p>", "HTML"),
        ("a", b"<?xml version='1.0'?>", "XML"),
        ("a.txt", b"{\\rtf1 a}", "RTF"),
        ("a.pdf", b"%PDF-1.7\n", "PDF"),
        ("a.docx", b"PK\3\4\0\0", "zip"),
        ("a.parquet", b"PAR1\0\0", "Parquet"),
        ("a.tar", b"name.txt\0\0\0", "NUL byte at offset 8"),
        ("a.txt", b"x" * HEAD * 20 + b"\0", f"NUL byte at offset {HEAD * 20}"),
        ("a.txt", "the cat".encode("utf-16-le"), "NUL byte at offset 1; .*UTF-16 without a byte order mark"),
        ("a.txt", "the cat".encode("utf-16-be"), "NUL byte at offset 0"),
        ("a.jsonl", LINES.decode().encode("utf-16-le"), "NUL byte at offset 1"),
        ("a.txt", b"\xff\xfea\0\0\xd8b\0", "expected UTF-16 text.*at offset 4"),
        ("a.gz", b"text", "expected a whole .gz file, got: other data"),
        ("a.gz", bz2.compress(b"text"), "expected a whole .gz file, got: .bz2 data"),
        ("a.txt.bz2", bz2.compress(b"text" * 99)[:-9], "expected a whole .bz2 file"),
        ("a", gzip.compress(b"text" * 99)[:-9], "expected a whole .gz file"),
    ],
)
def test_what_is_no_text_is_refused(write, name, content, message):
    with pytest.raises(InputError, match=message):
        texts(write(name, content))


def test_the_format_decides_where_names_and_bytes_do_not(write):
    assert texts(write("a.txt", LINES), format="jsonl") == ["one", "two"]
    assert texts(write("a.json", LINES), format="text") == [LINES.decode()]
    assert texts(write("a.csv", b"a,b\n1,2"), format="text") == ["a,b\n1,2"]
    with pytest.raises(InputError, match="format: expected text or jsonl, got 'csv'"):
        Reading(format="csv")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("swapped", [False, True])
def test_byte_order_marks_are_accepted_in_texts(write, encoding, swapped):
    def encoded(text):
        little, big = (encoding + "-le", encoding + "-be") if encoding != "utf-8-sig" else (encoding, encoding)
        mark = {"utf-16": codecs.BOM_UTF16_BE, "utf-32": codecs.BOM_UTF32_BE}.get(encoding, b"")
        return mark + text.encode(big) if swapped else text.encode(encoding or little)

    assert texts(write("a.txt", encoded("é\r\nz\U0001f600"))) == ["é\nz\U0001f600"]
    assert texts(write("b.json", encoded('{"text": "é"}\n{"text": "z"}'))) == ["é", "z"]


def test_marks_inside_joined_json_lines_are_dropped(write):
    assert texts(write("a.jsonl", codecs.BOM_UTF8 + LINES + codecs.BOM_UTF8 + LINES)) == ["one", "two"] * 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_accepted_in_settings(tmp_path, encoding):
    (tmp_path / "a.json").write_text('{"é": 1}', encoding)
    assert json.loads(read_settings(tmp_path / "a.json")) == {"é": 1}
    (tmp_path / "tokenizer.json").write_text(Tokenizer(models.WordLevel({"é": 0}, "é")).to_str(), encoding)
    assert load_tokenizer(tmp_path).token_to_id("é") == 0
    (tmp_path / "phases.json").write_text(json.dumps([asdict(phase) for phase in Plan().schedule(99).phases]), encoding)
    assert Plan(str(tmp_path / "phases.json")).schedule(99) == Plan().schedule(99)


def records(*values):
    return b"\n".join(value if isinstance(value, bytes) else json.dumps(value).encode() for value in values)


BAD = records(
    {"text": "one"}, b"", {"text": None}, b"{", b"[1]", {"body": "x"}, b'{"text": "\xff"}', {"text": "\ud800"},
    {"text": "two"},
)  # fmt: skip


def test_records_that_cannot_be_used_are_counted_and_named(write):
    path = write("a.jsonl", BAD)
    with pytest.raises(InputError) as error:
        texts(path)
    assert str(error.value).startswith(
        f"{path}: 6 of the first 8 records cannot be used (line 3: field 'text': expected a string, got NoneType; "
        "line 4: expected a JSON object, got: "
    )
    assert "; line 5: expected a JSON object, got [1]; ...); mend them" in str(error.value)
    assert "--text-field" in str(error.value)
    assert "--skip-bad-records" in str(error.value)
    with pytest.warns(UserWarning, match=r"^a\.jsonl: 6 of the first 8 records cannot be used .*: left out$"):
        assert texts(path, skip_bad_records=True) == ["one", "two"]


def test_each_fault_of_a_record_is_told():
    for line, message in [
        ('{"text": "\udcff"}', "expected UTF-8, got byte 0xff"),
        ('{"text": "\\ud800"}', "lone surrogate"),
        ("[" * 10**5, "expected a JSON object, got: "),
        ('{"body": 1, "id": 2}', "expected the field 'text', got 'body', 'id'"),
        ("{}", "got none"),
        ('{"text": 3}', "expected a string, got int"),
    ]:
        with pytest.raises(InputError, match=message):
            line_text("text", line)


def test_the_text_is_in_another_field(write):
    path = write("a.json", records({"body": "one"}, {"body": "two", "text": "no"}))
    assert texts(path, text_field="body") == ["one", "two"]


def test_a_file_without_any_usable_record_is_refused_early(write):
    n_read = 10**5
    path = write("a.jsonl", records(*[{"content": "x"}] * n_read))
    for skip in (False, True):
        with pytest.raises(InputError, match=r"1,000 of the first 1,000 records .*got 'content'"):
            texts(path, skip_bad_records=skip)


def test_what_was_skipped_is_told_again_by_a_corpus_from_the_cache(write, tmp_path):
    path = write("a.jsonl", BAD)
    for _ in range(2):
        with pytest.warns(UserWarning, match="6 of the first 8 records") as told:
            corpus = Corpus.build(path, tokenizer="words", cache_dir=tmp_path, skip_bad_records=True)
        assert len(told) == 1
        assert corpus.n_documents == 2
    with pytest.raises(InputError, match="6 of the first 8"):
        Corpus.build(path, tokenizer="words", cache_dir=tmp_path)


def test_options_of_reading_do_not_concern_strings(tmp_path):
    corpus = Corpus.build(["a b"], tokenizer="words", cache_dir=tmp_path, text_field="body", format="text")
    assert corpus.n_tokens == 3
    with pytest.raises(TypeError, match="splitdocuments"):
        Corpus.build(["a b"], tokenizer="words", cache_dir=tmp_path, splitdocuments=r"\n")


def test_zstandard(write):
    zstd = pytest.importorskip("backports.zstd", reason="extra zstd")
    packed = zstd.compress(LINES)
    assert texts(write("a.jsonl.zst", packed)) == ["one", "two"]
    assert texts(write("b", packed + packed)) == ["one", "two"] * 2
    for damaged in (packed[:-5], packed + b"rest", packed[:20]):
        with pytest.raises(InputError, match=r"expected a whole \.zst file"):
            texts(write("a.jsonl.zst", damaged))


def test_zstandard_needs_a_package(write, monkeypatch):
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"pip install 'warmstart\[zstd\]'"):
        texts(write("a.txt.zst", b"\x28\xb5\x2f\xfd"))


@given(st.lists(st.sampled_from([SEPARATOR, SEPARATOR[:5], SEPARATOR[5:], "<", "a", "\n"]), max_size=20), st.data())
def test_a_literal_separator_ends_a_document_wherever_it_is_cut(parts, data):
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    fragments = [(text[a:b], b == len(text)) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    fragments = [*((part, False) for part, _ in fragments[:-1]), (fragments[-1][0], True)]
    got, part = [], ""
    for piece, ends in _separated(iter(fragments)):
        part += piece
        if ends:
            got.append(part)
            part = ""
    assert part == ""
    assert got == text.split(SEPARATOR)


def test_literal_separators_end_documents_of_every_source(write):
    text = f"one{SEPARATOR}two\n{SEPARATOR}\nthree\n---\nfour{SEPARATOR}"
    expected = ["one", "two\n", "\nthree\n---\nfour"]
    assert texts([text]) == expected
    assert texts(write("a.txt", text.encode())) == expected
    assert texts(write("a.jsonl", records({"text": text}))) == expected
    assert texts(write("a.txt", text.encode()), split_documents="\n---\n") == ["one", "two\n", "\nthree", "four"]
