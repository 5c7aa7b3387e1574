"""Columns of Parquet and Arrow files, and data sets of Hugging Face: the same corpus as from the texts."""

import gzip
import json
import sys

import numpy as np
import pytest

from warmstart import columns
from warmstart.corpus import Corpus
from warmstart.documents import SEPARATOR, read_documents
from warmstart.errors import InputError
from warmstart.formats import Reading

TEXTS = ["to be or not to be", "é \U0001f600\r\n", "", f"one{SEPARATOR}two", "or not\n\nto be " * 9]


@pytest.fixture
def arrow():
    return pytest.importorskip("pyarrow", reason="needs warmstart[parquet]")


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason="needs the package datasets")


def write(arrow, path, table, **settings):
    if path.suffix == ".parquet":
        arrow.parquet.write_table(table, path, **settings)
        return path
    new = arrow.ipc.new_stream if path.name == "stream.arrow" else arrow.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, **settings)
    return path


@pytest.fixture(params=["a.parquet", "a.arrow", "stream.arrow"])
def save(request, tmp_path, arrow):
    """Write a table in each of the formats."""
    from pyarrow import parquet  # noqa: F401 - else pyarrow does not have it

    (tmp_path / "data").mkdir()
    return lambda table, **settings: write(arrow, tmp_path / "data" / request.param, table, **settings)


def texts(source, report=None, **reading):
    return [piece.text for piece in read_documents(source, Reading(**reading), report or pytest.fail)]


def test_every_format_gives_the_corpus_of_the_texts(tmp_path, arrow, save, monkeypatch):
    monkeypatch.setattr(columns, "ROWS", 2)
    expected = Corpus.build(TEXTS, vocab_size=280, cache_dir=tmp_path / "texts")
    table = arrow.table({"id": list(range(5)), "body": TEXTS, "picture": [b"\xff"] * 5})
    path = save(table)
    for source in (path, path.parent):  # folders are searched for them
        corpus = Corpus.build(source, vocab_size=280, text_field="body", cache_dir=tmp_path / "cache")
        assert corpus.digest == expected.digest
    assert str(tmp_path) not in (corpus.folder / "manifest.json").read_text()


@pytest.mark.parametrize("name", ["string", "large_string", "string_view", "binary", "large_binary", "dictionary"])
def test_every_type_of_text(arrow, save, name):
    if name == "dictionary":
        values = arrow.array(["a", "b", "a"]).dictionary_encode()
    else:
        values = arrow.array(["a", "b", "a"], getattr(arrow, name)())
    assert texts(save(arrow.table({"text": values}))) == ["a", "b", "a"]


def test_rows_without_text_are_refused_or_left_out_and_named(arrow, save):
    values = arrow.array([b"one", None, b"t\xff", b"four", None, None], arrow.binary())
    path = save(arrow.table({"text": values}))
    message = (
        r"4 of the first 6 records cannot be used \(row 2: column 'text': expected a string, got none; row 3: column "
        r"'text': expected UTF-8, got byte 0xff; row 5: .*; \.\.\.\)"
    )
    with pytest.raises(InputError, match=message + r"; mend them, name another field \(--text-field\)"):
        texts(path)
    said = []
    assert texts(path, said.append, skip_bad_records=True) == ["one", "four"]
    assert len(said) == 1
    assert said[0].endswith(": left out")


def test_columns_that_are_not_there_or_no_text_are_refused(arrow, save):
    path = save(arrow.table({"text": [["a"], ["b"]], "number": [1, 2]}))
    for field, message in [
        ("text", r"expected strings in column 'text', got list<.*--text-field"),
        ("number", "expected strings in column 'number', got int64"),
        ("body", "expected one column 'body', got 'text', 'number'"),
    ]:
        with pytest.raises(InputError, match=message):
            texts(path, text_field=field)
    twice = arrow.Table.from_arrays([arrow.array(["a"]), arrow.array(["b"])], ["text", "text"])
    with pytest.raises(InputError, match="expected one column 'text', got 'text', 'text'"):
        texts(save(twice))


def test_files_that_are_cut_or_something_else_are_refused(tmp_path, arrow, save):
    table = arrow.table({"text": ["some text " * 100] * 300})
    path = save(table, **({"max_chunksize": 100} if save(table).suffix == ".arrow" else {"row_group_size": 100}))
    whole = path.read_bytes()
    assert len(texts(path)) == 300
    for n_bytes in (10, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(InputError, match=f"{path.name}: expected a whole (Parquet|Arrow).*write it again"):
            texts(path, lambda _: None)
    path.write_bytes(b"to be or not")
    with pytest.raises(InputError, match="no first bytes of Parquet or Arrow"):
        texts(path)
    packed = tmp_path / f"{path.name}.gz"
    packed.write_bytes(gzip.compress(whole))
    with pytest.raises(InputError, match="write it again, unpacked"):
        texts(packed)


def test_a_stream_that_stops_between_two_batches_is_reported(tmp_path, arrow):
    path = write(arrow, tmp_path / "stream.arrow", arrow.table({"text": ["a"]}))
    path.write_bytes(path.read_bytes()[: -len(columns.END)])
    said = []
    assert texts(path, said.append) == ["a"]
    assert said == [f"{path}: read to the last whole batch; the stream does not say that it ends there"]


def test_a_bit_that_flipped_in_parquet_is_noticed(tmp_path, arrow):
    from pyarrow import parquet

    table = arrow.table({"text": ["some text"] * 300})
    parquet.write_table(table, tmp_path / "a.parquet", compression="none", write_page_checksum=True)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[content.index(b"some text") + 2] ^= 1
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"expected a whole Parquet, got: .*CRC"):
        texts(tmp_path / "a.parquet")


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"the package pyarrow, found none; pip install 'warmstart\[parquet\]'"):
        texts(tmp_path / "a.parquet")


def test_a_file_is_never_whole_in_memory(arrow, save):
    letters = np.random.default_rng(0).integers(97, 123, (20_000, 1000), np.uint8)
    texts = [row.tobytes().decode() for row in letters]
    size = save(arrow.table({"text": texts, "other": texts[::-1]})).stat().st_size
    path, held = save(arrow.table({"text": texts, "other": texts[::-1]})), arrow.total_allocated_bytes()
    peak = max(arrow.total_allocated_bytes() for _ in read_documents(path)) - held
    assert peak < size / 4


def test_data_sets_give_the_corpus_of_the_texts(tmp_path, datasets, monkeypatch):
    expected = Corpus.build(TEXTS, vocab_size=280, cache_dir=tmp_path / "texts")
    table = datasets.Dataset.from_dict({"text": TEXTS, "id": list(range(5))})
    stream = datasets.IterableDataset.from_generator(lambda: ({"text": text, "id": 0} for text in TEXTS))
    assert stream.column_names is None
    for number, source in enumerate((table, table.with_format("numpy"), table.to_iterable_dataset(), stream)):
        corpus = Corpus.build(source, vocab_size=280, cache_dir=tmp_path / str(number))
        assert corpus.digest == expected.digest
    table.save_to_disk(tmp_path / "saved")
    with pytest.warns(UserWarning, match=r"left out dataset_info\.json, state\.json"):
        corpus = Corpus.build(tmp_path / "saved", vocab_size=280, cache_dir=tmp_path / "cache")
    assert corpus.digest == expected.digest


def test_other_columns_of_a_data_set_are_not_decoded(datasets):
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "picture": [{"bytes": b"none", "path": None}] * 2})
    table = table.cast_column("picture", datasets.Image())
    with pytest.raises(OSError, match="cannot identify image"):
        table[0]
    assert texts(table) == texts(table.to_iterable_dataset()) == ["a", "b"]


def test_records_are_those_of_json_lines(tmp_path):
    rows = [{"body": text, "id": number} for number, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert texts(iter(rows), text_field="body") == texts(tmp_path / "a.jsonl", text_field="body")
    bad = [{"body": "one"}, {"body": None}, {"text": "x"}, 3]
    with pytest.raises(InputError, match=r"^list: 3 of the first 4 records cannot be used \(record 2: field 'body': "):
        texts(bad, text_field="body")
    said = []
    assert texts(bad, said.append, text_field="body", skip_bad_records=True) == ["one"]
    assert "record 4: expected a record, got int" in said[0]
    with pytest.warns(UserWarning, match="record 3: expected the field 'body', got 'text'"):
        corpus = Corpus.build(
            bad, text_field="body", skip_bad_records=True, tokenizer="words", cache_dir=tmp_path / "cache"
        )
    assert corpus.n_documents == 1


def test_a_data_set_with_several_splits_is_refused():
    splits = {"train": [{"text": "a"}], "test": [{"text": "b"}]}
    with pytest.raises(InputError, match="expected one split of a data set, got dict with 'train', 'test'; choose one"):
        texts(splits)
