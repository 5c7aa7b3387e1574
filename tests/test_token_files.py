"""Files of tokens: the same corpus from each format as from the text; what does not fit is refused, with its place."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from warmstart import token_files
from warmstart.corpus import Corpus
from warmstart.documents import read_documents
from warmstart.errors import InputError
from warmstart.token_files import TokenFiles, layout_of, read_tokens
from warmstart.tokenizer import SEPARATOR, load_tokenizer, token_bytes, train_tokenizer

TEXTS = ["to be or not to be", "é \U0001f600", "to", "or not\n\nto be " * 9]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=280)


@pytest.fixture
def ids(tokenizer):
    return [tokenizer.encode(text).ids for text in TEXTS]


def flat(lists):
    return [number for numbers in lists for number in numbers]


def bare(folder, documents, end, dtype="<u2"):
    """As nanoGPT's ``prepare.py`` writes it: the end-of-text id after each document."""
    path = folder / "train.bin"
    np.array(flat([*document, end] for document in documents), dtype).tofile(path)
    return path


def llm_c(folder, documents, end, magic=20240520, version=1, dtype="<u2"):
    """As llm.c's ``data_common.py`` writes it: the end-of-text id before each document."""
    tokens = flat([end, *document] for document in documents)
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens)
    (folder / "llmc.bin").write_bytes(header.tobytes() + np.array(tokens, dtype).tobytes())
    return folder / "llmc.bin"


def megatron(folder, documents, end, code=8, dtype="<u2"):
    """As Megatron's ``preprocess_data.py --append-eod`` writes it; the last document has two sequences."""
    *first, last = ([*document, end] for document in documents)
    sequences = [*first, last[:2], last[2:]]
    lengths = np.array([len(sequence) for sequence in sequences], "<i4")
    pointers = np.concatenate([[0], np.cumsum(lengths[:-1])]) * np.dtype(dtype).itemsize
    borders = [*range(len(documents)), len(sequences)]
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(sequences), len(borders))
    parts = (lengths, pointers.astype("<i8"), np.array(borders, "<i8"))
    (folder / "text_document.idx").write_bytes(head + b"".join(part.tobytes() for part in parts))
    np.array(flat(sequences), dtype).tofile(folder / "text_document.bin")
    return folder / "text_document.bin"


def datatrove(folder, documents, end, dtype="<u2"):
    """As datatrove's ``DocumentTokenizer`` writes it, without an end-of-text token."""
    np.array(flat(documents), dtype).tofile(folder / "00000_unshuffled.ds")
    np.cumsum([len(document) for document in documents]).astype("<u8").tofile(folder / "00000_unshuffled.ds.index")
    return folder / "00000_unshuffled.ds"


@pytest.mark.parametrize("block", [1, 2, 7, 64, 2**22])
@pytest.mark.parametrize("write", [bare, llm_c, megatron, datatrove])
def test_every_format_gives_the_corpus_of_the_text(tmp_path, tokenizer, ids, write, block, monkeypatch):
    monkeypatch.setattr(token_files, "BLOCK", block)
    path = write(tmp_path, ids, tokenizer.token_to_id(SEPARATOR))
    text = Corpus.build(TEXTS, tokenizer=tokenizer, cache_dir=tmp_path / "text")
    tokens = Corpus.build(TokenFiles(path, tokenizer), cache_dir=tmp_path / "tokens")
    assert tokens.digest == text.digest
    assert np.all(np.diff(tokens.counts) <= 0)
    for name in ("n_bytes", "n_documents", "n_tokens", "n_unknown", "separator", "vocab_size"):
        assert getattr(tokens, name) == getattr(text, name), name
    test = Corpus.encode(TokenFiles(path, tokenizer), text.tokenizer, cache_dir=tmp_path / "test")  # other ids
    assert np.array_equal(test.tokens, text.tokens)
    same = Corpus.encode(TokenFiles(path, tokenizer), tokenizer, cache_dir=tmp_path / "same")
    assert same.digest == Corpus.encode(TEXTS, tokenizer, cache_dir=tmp_path / "text").digest


@pytest.mark.parametrize(
    ("write", "settings"),
    [
        (llm_c, {"magic": 20240801, "version": 7, "dtype": "<u4"}),
        (megatron, {"code": 4, "dtype": "<i4"}),
        (datatrove, {"dtype": "<u4"}),
    ],
)
def test_ids_of_more_than_16_bits(tmp_path, write, settings):
    path = write(tmp_path, [[2**16 + 8, 2], [3, 3]], 2**16 + 9, **settings)
    table = np.arange(2**16 + 10, dtype=np.uint32)
    ((targets, ends, _),) = read_tokens(layout_of(path, len(table)), table, 2**16 + 9)
    assert targets.tolist() == [2**16 + 8, 2, 2**16 + 9, 3, 3, 2**16 + 9]
    assert ends.tolist() == [2, 5]


@pytest.mark.parametrize("end", [2**16 + 9, f"w{2**16 + 9}"])
def test_more_than_65536_tokens(tmp_path, end):
    vocabulary = {f"w{i}": i for i in range(2**16 + 10)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w1"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path = bare(tmp_path, [[2**16 + 8, 2], [3, 3]], 2**16 + 9, "<u4")
    corpus = Corpus.encode(TokenFiles(path, tokenizer, end), tokenizer, cache_dir=tmp_path / "cache")
    new = 2**16 + 10  # the separator, which the tokenizer did not have
    assert corpus.tokens.tolist() == [new, 2**16 + 8, 2, new, 3, 3, new]
    assert corpus.n_bytes == len(f" w{2**16 + 8} w2 w3 w3")  # a token's own space is counted with it


class Plain:
    """The readable twin: documents of ids, cut at ends and at separators."""

    def __init__(self, ids, ends, separator):
        self.documents = [[]]
        for place, number in enumerate(ids):
            if place in ends:
                self.documents.append([])
            if number == separator:
                self.documents.append([])
            else:
                self.documents[-1].append(number)
        self.documents = [document for document in self.documents if document]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.data(), st.integers(1, 12))
def test_blocks_agree_with_the_twin(tmp_path_factory, ids, data, block):
    path = tmp_path_factory.getbasetemp() / "twin.ds"
    ends = sorted([*data.draw(st.lists(st.integers(0, len(ids)), max_size=9)), len(ids)])
    np.array(ids, "<u2").tofile(path)
    np.array(ends, "<u8").tofile(f"{path}.index")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "BLOCK", block)
        blocks = list(read_tokens(layout_of(path, 5), np.array([9, 1, 2, 3, 4], np.uint16), 9))
    expected = Plain(ids, ends, 0).documents
    assert flat(targets.tolist() for targets, _, _ in blocks) == flat([*document, 9] for document in expected)
    for targets, places, _ in blocks:
        assert np.flatnonzero(targets == 9).tolist() == places.tolist()


def test_files_are_read_in_order_and_each_ends_a_document(tmp_path, tokenizer, ids):
    paths = []
    for name, documents in (("b", ids[:2]), ("a", ids[2:])):
        (tmp_path / name).mkdir()
        paths.append(llm_c(tmp_path / name, documents, 0))
    stages = []
    corpus = Corpus.build(
        TokenFiles(paths, tokenizer), cache_dir=tmp_path / "cache", progress=lambda *report: stages.append(report)
    )
    assert corpus.digest == Corpus.build(TEXTS, tokenizer=tokenizer, cache_dir=tmp_path / "text").digest
    assert [stage for stage, _, _ in stages] == ["read tokens"] * 2
    assert stages[-1][1] == stages[-1][2]


def test_an_index_that_changes_gives_another_corpus(tmp_path, tokenizer):
    path = datatrove(tmp_path, [[5, 6], [7]], 0)
    first = Corpus.encode(TokenFiles(path, tokenizer), tokenizer, cache_dir=tmp_path / "cache")
    datatrove(tmp_path, [[5], [6, 7]], 0)
    second = Corpus.encode(TokenFiles(path, tokenizer), tokenizer, cache_dir=tmp_path / "cache")
    assert (first.documents.tolist(), second.documents.tolist()) == ([0, 3, 5], [0, 2, 5])
    assert str(tmp_path) not in (first.folder / "manifest.json").read_text()


def test_a_stream_without_ends_is_one_document_and_says_so(tmp_path, tokenizer):
    np.array([5, 6, 7], "<u2").tofile(tmp_path / "a.bin")
    with pytest.warns(UserWarning, match=r"^a\.bin: read as one document; end_of_text \(--end-of-text\) names another"):
        corpus = Corpus.encode(TokenFiles(tmp_path / "a.bin", tokenizer), tokenizer, cache_dir=tmp_path)
    assert corpus.n_documents == 1
    named = TokenFiles(tmp_path / "a.bin", tokenizer, 6)
    assert Corpus.encode(named, tokenizer, cache_dir=tmp_path).documents.tolist() == [0, 2, 4]


def test_bytes_that_the_packages_wrote(tmp_path, tokenizer):
    """Written by datatrove 0.10.1: `TokenizedFile` and `MegatronTokenizedFile`, of [5, 6, 7], [258] and [8, 9]."""
    ids = b"\5\0\6\0\7\0\2\1\10\0\11\0"
    files = {
        "a.ds": ids,
        "a.ds.index": b"\3" + bytes(7) + b"\4" + bytes(7) + b"\6" + bytes(7),
        "a.ds.metadata": b"Unknown Tokenizer|2|2\n6\n6.00 T",
        "b.bin": ids,
        "b.idx": b"MMIDIDX\0\0\1" + bytes(7) + b"\10\3" + bytes(7) + b"\4" + bytes(7)
        + b"\3\0\0\0\1\0\0\0\2\0\0\0" + bytes(8) + b"\6" + bytes(7) + b"\10" + bytes(7)
        + bytes(8) + b"\1" + bytes(7) + b"\2" + bytes(7) + b"\3" + bytes(7),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name, kind in (("a.ds", "datatrove"), ("b.bin", "Megatron")):
        layout = layout_of(tmp_path / name, 280)
        assert (layout.kind, layout.dtype, layout.n_tokens, layout.ends.tolist()) == (kind, "<u2", 6, [3, 4, 6])
        corpus = Corpus.encode(TokenFiles(tmp_path / name, tokenizer), tokenizer, cache_dir=tmp_path / "cache")
        assert corpus.tokens.tolist() == [0, 5, 6, 7, 0, 258, 0, 8, 9, 0]


def damaged(path, change):
    path.write_bytes(change(path.read_bytes()))


def index_of(path):
    return token_files.index_of(path)


@pytest.mark.parametrize(
    ("write", "change", "message"),
    [
        (bare, lambda b: b"", "expected token ids, got an empty file"),
        (bare, lambda b: b[:-1], r"expected whole ids of 2 bytes, got 1 bytes at offset \d+"),
        (bare, lambda b: b[:6] + b"\xff\xff" + b[8:], "0 to 2.., got 65535 at offset 6; give the tokenizer that wrote"),
        (bare, lambda b: np.frombuffer(b, "<u2").astype("<u4").tobytes(), "in every second one from offset 2 on"),
        (bare, lambda b: struct.pack("<3i", 7, 1, len(b) // 2) + bytes(1012) + b, "got a header of magic 7"),
        (bare, lambda b: struct.pack("<i", 20240520) + b, "expected version 1 of llm.c's files"),
        (
            llm_c,
            lambda b: b[:-2],
            r"expected [\d,]+ ids of 2 bytes after its header, got .* bytes; the file is cut",
        ),
        (llm_c, lambda b: b[:9], "2 bytes after its header, got 0 bytes"),
        (llm_c, lambda b: b[:4] + b"\2" + b[5:], r"expected version 1 of llm.c's files \(magic 20240520\), got 2"),
        (llm_c, lambda b: struct.pack("<i", 20240522) + b[4:], "questions for llm.c"),
        (llm_c, lambda b: b[:1026] + b"\x18\1" + b[1028:], "got 280 at offset 1026"),
        (llm_c, lambda b: b[:1024] + np.frombuffer(b[1024:], "<u2").astype("<u4").tobytes(), "of another width"),
        (megatron, lambda b: b[:-2], "that text_document.idx has, got .* bytes; the file is cut"),
        (megatron, lambda b: b"\xff\xff" + b[2:], "got 65535 at offset 0"),
        (datatrove, lambda b: b[:-2], "ids of 2 or 4 bytes that 00000_unshuffled.ds.index has"),
        (datatrove, lambda b: b + b[:2], "ids of 2 or 4 bytes that 00000_unshuffled.ds.index has"),
        (datatrove, lambda b: np.frombuffer(b, "<u2").astype("<u8").tobytes(), "ids of 2 or 4 bytes that"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tmp_path, tokenizer, ids, write, change, message):
    path = write(tmp_path, ids, 0)
    damaged(path, change)
    with pytest.raises(InputError, match=f"{path.name}: .*{message}"):
        Corpus.build(TokenFiles(path, tokenizer), cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("*")) == []


@pytest.mark.parametrize(
    ("write", "change", "message"),
    [
        (megatron, lambda b: b"TNTIDX\0\0\0" + b[9:], r"expected the index of a Megatron file.*got b'TNTIDX"),
        (megatron, lambda b: b[:20], "expected the index of a Megatron file"),
        (megatron, lambda b: b[:-8], "expected 5 sequences and 5 borders of documents, got .* bytes"),
        (megatron, lambda b: b[:9] + b"\2" + b[10:], "got version 2 and type 8"),
        (megatron, lambda b: b[:17] + b"\7" + b[18:], "got version 1 and type 7"),
        (megatron, lambda b: b[:17] + b"\4" + b[18:], "sequences one after the other"),
        (megatron, lambda b: b[:18] + b"\xff" * 8 + b[26:], "18,446,744,073,709,551,615 sequences"),
        (megatron, lambda b: b[:34] + b"\xff\xff\xff\xff" + b[38:], "sequences one after the other"),
        (megatron, lambda b: b[:-8] + b"\6" + b[-7:], "expected borders of documents from 0 to 5"),
        (megatron, lambda b: b[:17] + b"\5" + b[18:], "sequences one after the other"),
        (datatrove, lambda b: b[:-1], "expected rising ends of documents of 8 bytes"),
        (datatrove, lambda b: b"", "expected rising ends"),
        (datatrove, lambda b: b[8:] + b[:8], "expected rising ends"),
        (datatrove, lambda b: b[:-8] + b"\xff" * 8, "expected rising ends"),
        (datatrove, None, "index: expected a readable file, got: No such file"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path, tokenizer, ids, write, change, message):
    path = write(tmp_path, ids, 0)
    index = index_of(path)
    index.unlink() if change is None else damaged(index, change)
    with pytest.raises(InputError, match=message):
        Corpus.build(TokenFiles(path, tokenizer), cache_dir=tmp_path / "cache")


def test_sources_that_do_not_go_together_are_refused(tmp_path, tokenizer, ids):
    path = bare(tmp_path, ids, 0)
    other = train_tokenizer(["quite another text"], "words")
    for arguments, message in [
        ((tmp_path / "a.txt", tokenizer), r"a\.txt: expected a file of tokens \(\.bin or \.ds"),
        ((tmp_path / "a.idx", tokenizer), r"a\.idx: expected a file of tokens \(.*an index is found beside it"),
        ((tmp_path / "no.bin", tokenizer), r"no\.bin: expected a readable file"),
        ((path, tmp_path / "no.json"), r"no\.json: expected a tokenizer\.json"),
        ((path, tokenizer, "</s>"), r"end_of_text: expected a token of the tokenizer, or an id from 0 to .*'</s>'"),
        ((path, tokenizer, 10**6), "end_of_text: .*got 1000000"),
        ((path, tokenizer, -1), "end_of_text: .*got -1"),
    ]:
        with pytest.raises(InputError, match=message):
            Corpus.build(TokenFiles(*arguments), cache_dir=tmp_path / "cache")
    files = TokenFiles(path, tokenizer)
    with pytest.raises(InputError, match=r"tokens of the model, got a tokenizer with \d+ others, such as"):
        Corpus.encode(files, other, cache_dir=tmp_path / "cache")
    with pytest.raises(InputError, match="without settings of how text is read"):
        Corpus.build(files, split_documents="x", cache_dir=tmp_path / "cache")
    with pytest.raises(InputError, match="expected no tokenizer besides"):
        Corpus.build(files, tokenizer=other, cache_dir=tmp_path / "cache")
    with pytest.raises(InputError, match=r"a file of tokens by its name: give the tokenizer that wrote it"):
        list(read_documents(path))
    np.zeros(3, "<u2").tofile(path)
    with pytest.raises(InputError, match="expected files with tokens, got none"):
        Corpus.build(files, cache_dir=tmp_path / "cache")


def test_an_id_that_only_the_added_separator_has_is_refused(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}))
    np.array([0, 1, 2], "<u2").tofile(tmp_path / "a.bin")
    assert load_tokenizer(tokenizer).token_to_id(SEPARATOR) == 2
    with pytest.raises(InputError, match="0 to 1, got 2 at offset 4"):
        Corpus.build(TokenFiles(tmp_path / "a.bin", tokenizer), cache_dir=tmp_path / "cache")


def test_bytes_of_tokens():
    byte_level = train_tokenizer(TEXTS, vocab_size=300)
    encoded = byte_level.encode("né \U0001f600 \x00").ids
    assert token_bytes(byte_level)[encoded].sum() == len("né \U0001f600 \x00".encode())
    content = {"▁the": 0, "<unk>": 1, "<0xE2>": 2, "é": 3}
    fallback = Tokenizer(models.BPE(content, [], byte_fallback=True, unk_token="<unk>"))  # noqa: S106
    fallback.decoder = Tokenizer.from_str(
        json.dumps(json.loads(fallback.to_str()) | {"decoder": {"type": "Metaspace", "replacement": "▁",
                                                                "prepend_scheme": "always", "split": True}})
    ).decoder  # fmt: skip
    assert token_bytes(fallback).tolist() == [4, 5, 1, 2]


@pytest.mark.parametrize("block", [1, 7, 2**22])
@pytest.mark.parametrize("write", [bare, datatrove])
def test_a_sample_of_tokens_has_whole_documents_and_contains_every_smaller_one(
    tmp_path, tokenizer, write, block, monkeypatch
):
    monkeypatch.setattr(token_files, "BLOCK", block)
    texts = [f"to be {i} or not" for i in range(40)]
    ids = [tokenizer.encode(text).ids for text in texts]
    files = TokenFiles(write(tmp_path, ids, tokenizer.token_to_id(SEPARATOR)), tokenizer)
    before: set[str] = set()
    for share in (0.2, 0.5, 0.9):
        corpus = Corpus.build(files, sample=share, cache_dir=tmp_path / "tokens")
        decoded = corpus.tokenizer.decode(corpus.tokens.tolist(), skip_special_tokens=False)
        chosen = decoded.split(SEPARATOR)[1:-1]
        assert Corpus.build(chosen, tokenizer=tokenizer, cache_dir=tmp_path / "text").digest == corpus.digest
        assert corpus.n_bytes == len("".join(chosen))
        assert before < set(chosen) < set(texts)
        before = set(chosen)
    with pytest.raises(InputError, match="some of 40 documents"):
        Corpus.build(files, sample=1e-12, cache_dir=tmp_path / "tokens")
