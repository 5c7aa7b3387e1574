"""Every reader of files from outside, with damaged files: an InputError or a result, soon, and nothing left behind."""

import bz2
import gzip
import json
import shutil
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzzing import damaged, entries, fuzz, no_hang
from warmstart import Corpus, NearShallowLM, WarmStartLM, shards
from warmstart.arpa import arpa_words, read_arpa, write_arpa
from warmstart.backoff import BackoffModel
from warmstart.documents import read_documents
from warmstart.edge import EdgeLM
from warmstart.errors import InputError
from warmstart.export import export
from warmstart.finetune import checkpoint
from warmstart.finetune.compare import compare
from warmstart.finetune.job import Job, Plan
from warmstart.finetune.phases import BESIDE_GROUPS, GROUPS
from warmstart.formats import Reading
from warmstart.ngrams import NGramCounts
from warmstart.token_files import layout_of, read_tokens

try:
    import pyarrow
    import pyarrow.parquet
except ImportError:  # without warmstart[parquet]
    pyarrow = None

TEXT = "\n\n".join(["the cat sat on the mat. the dog lay on the rug. " * 4] * 12)
PHASES = [{"name": "a", "rates": {"output": 0.1}, "epochs": 0.5, "patience": 2}, {"name": "b", "rates": {"middle": 1}}]


class Place:
    """A folder with one of each kind of file, and what is needed to read them."""

    def __init__(self, folder):
        self.folder = folder
        self.text = folder / "text.txt"
        self.text.write_text(TEXT)
        options = {"vocab_size": 300, "cache_dir": folder / "cache", "split_documents": r"\n\n"}
        corpus = Corpus.build(self.text, **options)
        shutil.copytree(corpus.folder, folder / "corpus")
        everything = ("ngrams", "classes", "cache", "radial", "document")
        model = WarmStartLM("potato", contexts=everything, bits=16).fit(corpus)
        model.save_pretrained(folder / "model")
        export(model, folder / "edge", "numpy")
        pruned = WarmStartLM("potato", contexts=("ngrams", "classes", "radial"), bits=16, prune=(0, 1)).fit(corpus)
        pruned.save_pretrained(folder / "pruned")
        for name, text in {"a.stats": self.text, "b.stats": ["a bird sang."]}.items():
            shards.count(text, corpus.tokenizer, order=3).save(folder / name)
        self.words, self.separator = arpa_words(corpus.tokenizer), corpus.separator
        for name in ("model.arpa", "model.arpa.gz"):
            write_arpa(model.mixture_.experts.ngrams, folder / name, self.words)
        words = Corpus.build(self.text, **options, tokenizer="words")
        (folder / "words.json").write_text(words.tokenizer.to_str())
        job = Job(model, folder / "run", Plan(max_tokens=300, batch_tokens=512))
        job.run(corpus, corpus)
        (folder / "phases.json").write_text(json.dumps({"phases": PHASES, "groups": GROUPS}))
        (folder / "lines.jsonl").write_text("\n".join(json.dumps({"text": part}) for part in TEXT.split("\n\n")))
        (folder / "text.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
        (folder / "text.bz2").write_bytes(bz2.compress(TEXT.encode()))
        self.write_tokens(corpus)
        if pyarrow is not None:
            table = pyarrow.table({"id": range(12), "text": TEXT.split("\n\n")})
            pyarrow.parquet.write_table(table, folder / "text.parquet", compression="none", write_page_checksum=True)
            for name, new in (("file.arrow", pyarrow.ipc.new_file), ("stream.arrow", pyarrow.ipc.new_stream)):
                with new(str(folder / name), table.schema) as writer:
                    writer.write_table(table, max_chunksize=5)
        self.network = model.to_torch()
        self.expected = json.loads(json.dumps(self.facts()))
        self.others = [path.read_bytes() for path in self.files(".")]

    def write_tokens(self, corpus):
        ids, ends = corpus.tokens[1:].astype("<u2"), corpus.documents[1:]
        for name in ("bare", "llmc", "megatron", "datatrove"):
            (self.folder / name).mkdir()
            ids.tofile(self.folder / name / ("a.ds" if name == "datatrove" else "a.bin"))
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, len(ids)
        (self.folder / "llmc" / "a.bin").write_bytes(header.tobytes() + ids.tobytes())
        ends.astype("<u8").tofile(self.folder / "datatrove" / "a.ds.index")
        sizes, n = np.diff(corpus.documents), corpus.n_documents
        parts = (sizes.astype("<i4"), 2 * corpus.documents[:-1].astype("<i8"), np.arange(n + 1, dtype="<i8"))
        head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, n, n + 1)
        (self.folder / "megatron" / "a.idx").write_bytes(head + b"".join(part.tobytes() for part in parts))
        self.table, self.tokens = np.arange(corpus.vocab_size), ids

    def facts(self):
        from warmstart.files import load_arrays

        facts = load_arrays(self.folder / "run" / checkpoint.CHECKPOINT)[1]["run"]
        return {name: value for name, value in facts.items() if name != "place"}

    def files(self, under):
        return sorted(path for path in (self.folder / under).rglob("*") if path.is_file() and "cache" not in path.parts)


def read_model(place, path):
    model = WarmStartLM.from_pretrained(path)
    assert model.predict_proba([0, 1]).sum() == pytest.approx(1, abs=1e-4)
    model.generate("the", max_new_tokens=2)
    model.forget if model.counts_ is None else model.counts_ + model.counts_


def read_edge(place, path):
    model = EdgeLM.open(path)
    assert model.predict_proba([0, 1]).sum() == pytest.approx(1, abs=1e-4)
    model.count(["the cat"])


def read_network(place, path):
    NearShallowLM.from_pretrained(path)


def read_tokenizer(place, path):
    corpus = Corpus.build(place.text, tokenizer=path, cache_dir=path.parent / "cache")
    corpus.tokenizer.decode(corpus.tokens[:9].tolist())


def read_statistic(place, path):
    counts = NGramCounts.load(path)
    assert (counts + counts - counts).digest == counts.digest


def read_shard(place, path):
    statistic = shards.merge([place.folder / "b.stats", path])
    assert statistic.counts.n_tokens > statistic.n_unknown >= 0


def read_tables(place, path):
    model = BackoffModel.load(path)
    assert model.row([0]).sum() == pytest.approx(1)


def read_checkpoint(place, path):
    from warmstart.finetune.beside import Beside

    gate = WarmStartLM.from_pretrained(place.folder / "model").mixture_.gate
    module = Beside(place.network, gate)
    schedule = Plan().schedule(300, BESIDE_GROUPS)
    facts = checkpoint.load(path, module, schedule.optimizer(module), place.expected)[2]
    assert facts["place"]["step"] > 0


def read_schedule(place, path):
    schedule = Plan(phases=str(path)).schedule(300)
    schedule.optimizer(place.network)


def read_an_arpa_file(place, path):
    model = read_arpa(path, place.words, place.separator)
    assert model.row([0]).sum() == pytest.approx(1, abs=1e-3)


def read_corpus(place, path):
    corpus = Corpus.open(path)
    corpus.tokenizer.decode(corpus.tokens[:9].tolist())
    assert corpus.n_bytes >= 0
    assert np.asarray(corpus.counts).sum() == corpus.n_tokens


def read_log(place, path):
    compare([path, path])


def read_text(place, path):
    list(read_documents(path, Reading(split_documents=r"\n\n"), lambda sentence: None))


def read_token_files(place, path):
    name = path / ("a.ds" if (path / "a.ds.index").exists() else "a.bin")
    blocks = list(read_tokens(layout_of(name, len(place.table)), place.table, place.separator))
    assert all(np.all(targets[ends] == place.separator) for targets, ends, _ in blocks)


TOKENS = dict.fromkeys(["bare", "llmc", "megatron", "datatrove"], read_token_files)
FOLDERS = {"model": read_model, "pruned": read_model, "corpus": read_corpus, "edge": read_edge, **TOKENS}
READERS = {
    "model/tokenizer.json": read_tokenizer,
    "words.json": read_tokenizer,
    "model/counts.safetensors": read_statistic,
    "a.stats": read_shard,
    "pruned/ngrams.safetensors": read_tables,
    "run/checkpoint.safetensors": read_checkpoint,
    "run/log.jsonl": read_log,
    "phases.json": read_schedule,
    "model.arpa": read_an_arpa_file,
    "model.arpa.gz": read_an_arpa_file,
    "text.txt": read_text,
    "lines.jsonl": read_text,
    "text.txt.gz": read_text,
    "text.bz2": read_text,
}
if pyarrow is not None:
    READERS |= dict.fromkeys(["text.parquet", "file.arrow", "stream.arrow"], read_text)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = Place(tmp_path_factory.mktemp("files"))
    for name, reader in {**READERS, **FOLDERS}.items():
        reader(made, made.folder / name)  # and the kernels are compiled
    read_network(made, made.folder / "model")
    return made


def check(place, reader, path, whole):
    """Read a file: a result or an InputError, with nothing new in the folder, but for a cache of whole corpora."""
    before, message = entries(whole), "as expected"
    with no_hang():
        try:
            reader(place, path)
        except InputError as error:
            message = str(error)
    assert "expected" in message, message
    left = {path for path in entries(whole) - before if path.parts[0] != "cache"}
    assert not left
    assert not list(whole.rglob("cache/.*"))


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
@fuzz
def test_files(place, name, data):
    content = data.draw(damaged((place.folder / name).read_bytes(), place.others), "content")
    work = place.folder.parent / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    path = work / name.split("/")[-1]
    path.write_bytes(content)
    check(place, READERS[name], path, work)


@pytest.mark.parametrize("name", [*FOLDERS, "network"])
@given(data=st.data())
@fuzz
def test_folders(place, name, data):
    reader = FOLDERS.get(name, read_network)
    source = place.folder / ("model" if name == "network" else name)
    work = place.folder.parent / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(source, work / "it", ignore=shutil.ignore_patterns("cache"))
    path = data.draw(st.sampled_from(sorted((work / "it").iterdir())), "file")
    change = data.draw(st.sampled_from(["damaged", "damaged", "damaged", "missing", "a folder"]), "change")
    if change == "damaged":
        path.write_bytes(data.draw(damaged(path.read_bytes(), place.others), "content"))
    else:
        path.unlink()
        if change == "a folder":
            path.mkdir()
    check(place, reader, work / "it", work)
