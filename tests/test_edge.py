"""The runtime of numpy alone: the probabilities of the mixture, its tokenizer, counting further, damaged files."""

import itertools
import json
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from mixtures import EXPERTS, corpora, mixture
from test_ngrams import joined
from tokenizers import Tokenizer, models, pre_tokenizers

from warmstart import InputError, WarmStartLM
from warmstart.cache import DocumentCache
from warmstart.edge import EdgeLM, container, counting
from warmstart.edge.bytes_bpe import BytesBPE, runs
from warmstart.edge.document import Document
from warmstart.edge.model import part_of
from warmstart.export import export, model_arrays
from warmstart.kneser_ney import KneserNey
from warmstart.ngrams import count_ngrams
from warmstart.stream import Stream

TEXTS = ["the cat sat on the mat and the dog sat on the rug. " * n for n in (1, 3, 2)]
TEXTS += ["a rug is not a mat, said the cat. " * n for n in (2, 5)]
MORE = ["a new cat said: the dog is not on the mat. " * 2, " ", "the rug sat. <|endoftext|>a mat"]
MODELS = {
    "potato": {"preset": "potato"},
    "micro": {"preset": "micro", "bits": 32},
    "all that is kept": {"contexts": ("ngrams", "classes", "cache", "radial"), "order": 4, "bits": 32, "radius": 3},
    "pruned": {"preset": "potato", "prune": (0, 1)},
    "cache": {"contexts": ("cache",)},
    "network": {"contexts": ("radial",), "bits": 32},
    "order 1": {"contexts": ("ngrams",), "order": 1},
}


@pytest.fixture(scope="module")
def fitted():
    known = {}

    def fit(name):
        if name not in known:
            known[name] = WarmStartLM(vocab_size=290, **MODELS[name]).fit(TEXTS)
        return known[name]

    return fit


@pytest.fixture
def folder(fitted, tmp_path):
    export(fitted("potato"), tmp_path / "edge", "numpy")
    return tmp_path / "edge"


@pytest.mark.parametrize("name", MODELS)
def test_probabilities_are_those_of_the_model_token_by_token(fitted, tmp_path, name):
    model = fitted(name)
    report = export(model, tmp_path / "edge", "numpy")
    assert (report["experts"], report["left_out"]) == (model.mixture_.experts.names, [])
    small, stream = EdgeLM.open(tmp_path / "edge"), Stream(model.mixture_)
    text = model.tokenizer_.encode(TEXTS[1][:90] + "what a new dog").ids
    for token in [*text, small.separator, small.separator, *text[3:40]]:
        row = small.row()
        np.testing.assert_allclose(row, stream.row(), rtol=0, atol=1e-7)
        assert row.sum() == pytest.approx(1, abs=1e-6)
        small.advance([token])
        stream.advance([token])
    np.testing.assert_allclose(small.predict_proba(text), model.predict_proba(text), rtol=0, atol=1e-7)
    for seed, temperature in ((0, 0.0), (3, 1.0)):
        options = {"max_new_tokens": 12, "temperature": temperature, "seed": seed}
        assert small.generate("the dog", **options) == model.generate("the dog", **options)


@given(corpora(), st.sets(st.sampled_from(EXPERTS)), st.integers(1, 4), st.integers(0, 2), st.integers(0, 9))
def test_rows_are_those_of_the_definitions(corpus, experts, order, limit, seed):
    found, twin = mixture(corpus, experts, order, (0, limit)[:order], ("radial",), seed)
    small = EdgeLM(None, model_arrays(found)[0])
    past = max(corpus[2], key=len)
    small.advance(past)
    np.testing.assert_allclose(small.row(), twin.row(past), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shapes", [[(4, 500), (3, 40), (3, 7)], [(1, 3)], [(3, 1), (2, 1)], [(2, 1200), (1, 1)]])
def test_what_followed_is_what_a_cache_holds_however_long_the_document_is(shapes):
    rng, size = np.random.default_rng(0), 9
    document = Document(size, shapes, 2)
    caches = [DocumentCache(size, 0, *shape, 0.5) for shape in shapes]
    for i, token in enumerate(rng.zipf(1.5, 5000) % (size - 1) + 1):
        if i % 97 == 0 or i in (1023, 1024, 1025, 2047, 2048, 2049):
            for levels, cache in zip(document.followers(), caches, strict=True):
                counts = cache.contexts().counts[0]
                seen = counts[: len(levels)]
                assert [[level.total, level.tokens.size] for level in levels] == seen[:, 1:].tolist()
                assert not counts[len(levels) :].any()
                row = np.full(size, 1 / size)
                for tokens, times, total in levels:
                    row *= 0.5 * tokens.size / total
                    row[tokens] += (times - 0.5) / total
                np.testing.assert_allclose(row, cache.row(), rtol=0, atol=1e-12)
        document.add(int(token))
        for cache in caches:
            cache.read([token])
    assert document.text.size < 2 * 1024 + 4 * max(size for _, size in shapes)


AWKWARD = [
    "", " ", "   a", "a   ", " \n\n\t x", "I'm we've they'll he'd it's 'tis 's'S'LL", "don''t", "x=1234567890;½²三",
    "na\u0308ive", "ÄÖß éèê", "日本語 テスト", "مرحبا", "🙂👩‍👩‍👧🇩🇪", "\x00\x1c\x1d\x85\xa0\u2003\u3000x",
    "<|endoftext|> <|endoftext|>x", "a" * 300, "the cat " * 40, "\r\n\r\n", "_a_ - -- ...", "ͅ١٢٣", "\U0010ffff\ue000",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers(fitted):
    model = WarmStartLM(preset="potato", vocab_size=700, contexts=("cache",)).fit(AWKWARD * 3 + TEXTS)
    return model.tokenizer_, EdgeLM(None, part_arrays(model)).tokenizer


def part_arrays(model):
    from warmstart.export import _of_tokenizer

    content = json.loads(model.tokenizer_.to_str())["model"]
    words = {f"tokens.{name}": array for name, array in _of_tokenizer(content).items()}
    return model_arrays(model.mixture_)[0] | words


@pytest.mark.parametrize("text", AWKWARD)
def test_ids_are_those_of_tokenizers(tokenizers, text):
    theirs, ours = tokenizers
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False) == text


@given(st.text(st.characters(exclude_categories=("Cs", "Cn"))), st.integers(0, 10**6))
def test_ids_of_any_text_are_those_of_tokenizers(tokenizers, text, seed):
    theirs, ours = tokenizers
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    ids = np.random.default_rng(seed).integers(0, theirs.get_vocab_size(), 20).tolist()
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


def test_every_character_is_cut_as_by_tokenizers():
    cut = pre_tokenizers.Split(pre_tokenizers_pattern(), "isolated")
    signs = "".join(f"a{chr(c)}1{chr(c)} " for c in range(0x30000) if unicodedata.category(chr(c)) not in ("Cs", "Cn"))
    for start in range(0, len(signs), 50_000):
        part = signs[start : start + 50_000]
        assert list(runs(part)) == [text for text, _ in cut.pre_tokenize_str(part)]


def pre_tokenizers_pattern():
    from tokenizers import Regex

    return Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


@pytest.mark.parametrize("text", [b"a", 3, None, "\ud800"])
def test_what_is_no_text_is_refused(tokenizers, text):
    with pytest.raises(InputError, match="text: expected"):
        tokenizers[1].encode(text)


PROBE = """
import sys
BLOCKED = "torch numba scipy sklearn tokenizers safetensors rich typer joblib threadpoolctl llvmlite".split()
for name in BLOCKED:
    sys.modules[name] = None
import numpy, resource, time
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before, memory = set(sys.modules), resident()
began = time.process_time()
import warmstart.edge
seconds = time.process_time() - began
foreign = {name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
model = warmstart.edge.EdgeLM.open(sys.argv[1])
model.advance(model.tokenizer.encode("the cat"))
row = model.row()
memory = resident() - memory
text = model.generate("the dog", 5)
report = model.count(["the new dog sat"])
model.save(sys.argv[1])
again = warmstart.edge.EdgeLM.open(sys.argv[1])
assert (again.predict_proba([3]) == model.predict_proba([3])).all()
import json
print(json.dumps([sorted(foreign), seconds, memory, report, row.tolist()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process where Linux writes it")
def test_in_a_fresh_process_numpy_is_enough(fitted, folder):
    done = subprocess.run([sys.executable, "-c", PROBE, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    foreign, seconds, memory, report, row = json.loads(done.stdout)
    assert foreign == ["numpy", "warmstart"]
    assert seconds < 0.1
    assert memory < 15 * 2**20
    assert report["tokens"] == len(fitted("potato").tokenizer_.encode("the new dog sat").ids) + 1
    ids = fitted("potato").tokenizer_.encode("the cat").ids
    np.testing.assert_allclose(row, fitted("potato").predict_proba(ids), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["potato", "micro", "pruned", "order 1", "cache", "all that is kept"])
def test_counted_further_it_is_the_model_of_all_texts(fitted, tmp_path, name):
    model = fitted(name)
    export(model, tmp_path / "edge", "numpy")
    small = EdgeLM.open(tmp_path / "edge")
    report = small.count(MORE[:1])
    report = small.count(MORE[1:])
    whole = WarmStartLM(vocab_size=290, **MODELS[name]).fit(TEXTS)
    whole.partial_fit(MORE)
    ngrams = whole.mixture_.experts.ngrams
    np.testing.assert_allclose(small.prior, whole.mixture_.experts.prior, rtol=1e-6)
    assert report["kept"][0] == "gate"
    small.save(tmp_path / "other")
    again = EdgeLM.open(tmp_path / "other")
    again.count([])
    for each in (small, again):
        if ngrams is None:
            assert each.ngrams is None
            continue
        assert report["ngrams"] == ngrams.n_ngrams
        for text in TEXTS[:2]:
            ids = [small.separator, *model.tokenizer_.encode(text).ids]
            for i in range(1, 25):
                context = ids[:i][max(0, i - ngrams.order + 1) :]
                row = each.ngrams.row(each.ngrams.contexts(context))
                np.testing.assert_allclose(row, ngrams.row(context), rtol=0, atol=1e-7)
        np.testing.assert_array_equal(each.ngrams.counted, (ngrams.sizes > 0))


@given(corpora(), st.integers(1, 4), st.integers(0, 2), st.integers(0, 6))
def test_levels_are_solved_as_by_the_definition(corpus, order, limit, cut):
    vocab_size, separator, documents = corpus
    parts = [[np.array(d, int) for d in part] for part in (documents[:cut], documents[cut:])]
    levels = counting.add(*(counting.count(part, separator, vocab_size, order) for part in parts))
    tokens, borders = joined(documents, separator)
    raw = reference.ngram_counts(tokens.tolist(), separator, order)
    grams = [(token,) for token in range(vocab_size)]
    for n, level in enumerate(levels):
        if n:
            grams = [(*grams[key // vocab_size], key % vocab_size) for key in level.keys.tolist()]
        assert level.counts.tolist() == [raw[gram] for gram in grams]
        assert grams == sorted(grams)
    thresholds = [0, *[limit] * (order - 1)]
    arrays, sizes = counting.solve(levels, separator, order, None, thresholds)
    expected = KneserNey(count_ngrams(tokens, borders, vocab_size, order), thresholds)
    assert sizes == expected.n_ngrams
    found = part_of(arrays, "ngrams")
    np.testing.assert_array_equal(found["last"], expected.last)
    np.testing.assert_array_equal(found["offsets"], expected.offsets)
    np.testing.assert_allclose(found["own"], expected.own_parts(), rtol=1e-6, atol=1e-9)
    again = counting.load(counting.arrays_of(levels))
    assert all((a.keys == b.keys).all() and (a.counts == b.counts).all() for a, b in zip(levels, again, strict=True))


def test_as_many_ngrams_stay_as_are_asked_for():
    levels = counting.count([np.array([1, 2, 1, 2, 1, 2, 3, 1, 3])], 0, 4, 3)
    tables = [counting.solve(levels, 0, 3, most, ())[1] for most in (100, 12, 7, 5)]
    assert [sum(sizes) for sizes in tables] == [18, 8, 5, 5]


@pytest.mark.parametrize("ids", [[[0, 9999]], [[1.5]], [[-1]], [["a"]]])
def test_what_cannot_be_counted_changes_nothing(folder, ids):
    small = EdgeLM.open(folder)
    before = small.row()
    with pytest.raises(InputError):
        small.count(ids)
    with pytest.raises(InputError, match="without separators"):
        small.count([[3, small.separator, 4]])
    with pytest.raises(InputError):
        small.advance(ids[0])
    np.testing.assert_array_equal(small.row(), before)


def test_a_model_without_counts_says_so(fitted, folder):
    (folder / "counts.bin").unlink()
    with pytest.raises(InputError, match=r"expected counts\.bin to count further, got none; a pruned model"):
        EdgeLM.open(folder).count(TEXTS)


def test_every_damaged_byte_is_found(folder):
    path = folder / "model.bin"
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    places = [*range(80), len(content) - 1, *rng.integers(0, len(content), 40).tolist()]
    for place, bit in itertools.product(places, (0, 7)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"model\.bin: expected"):
            EdgeLM.open(folder)
    for size in (0, 1, 31, 32, 100, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"model\.bin: expected"):
            EdgeLM.open(folder)
    path.write_bytes(content + b"\0")
    with pytest.raises(InputError, match="not whole"):
        EdgeLM.open(folder)
    damaged = bytearray(content)
    damaged[8] = 9
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="expected version 1, got 9"):
        EdgeLM.open(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"expected a folder with model\.bin, got none"):
        EdgeLM.open(folder)


def test_counts_of_another_text_are_refused(fitted, folder, tmp_path):
    small = EdgeLM.open(folder)
    small.count(MORE)
    small.save(tmp_path / "other")
    (folder / "counts.bin").write_bytes((tmp_path / "other" / "counts.bin").read_bytes())
    with pytest.raises(InputError, match=r"counts\.bin: expected the counts of the model, got those of another text"):
        EdgeLM.open(folder).count(MORE)
    (folder / "counts.bin").replace(folder / "model.bin")
    with pytest.raises(InputError, match=r"model\.bin: expected a model, got another table"):
        EdgeLM.open(folder)
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(InputError, match=r"got mine\.txt"):
        small.save(tmp_path / "other")
    assert len(list((tmp_path / "other").iterdir())) == 3


def test_damaged_counts_are_found_when_they_are_used(folder):
    content = bytearray((folder / "counts.bin").read_bytes())
    content[-3] ^= 1
    (folder / "counts.bin").write_bytes(content)
    small = EdgeLM.open(folder)
    assert small.row().sum() == pytest.approx(1)
    with pytest.raises(InputError, match=r"counts\.bin: expected the content that was written"):
        small.count(TEXTS)


@given(st.lists(st.lists(st.integers(0, 2**16 - 1)), max_size=5))
def test_arrays_come_back_as_they_were_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("flat") / "a.bin"
    kinds = itertools.cycle([np.uint16, np.float32, np.uint32, np.uint64])
    arrays = {f"array.{i}": np.array(row, kind) for i, (row, kind) in enumerate(zip(rows, kinds, strict=False))}
    assert container.write(path, arrays) == path.stat().st_size
    found = container.read(path)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_a_tokenizer_of_another_kind_is_named(tmp_path):
    from warmstart import Corpus

    model = WarmStartLM(preset="potato").fit(Corpus.build(TEXTS, tokenizer="words", cache_dir=tmp_path / "cache"))
    report = export(model, tmp_path / "edge", "numpy")
    assert report["left_out"] == ["text: its tokenizer has the kind WordLevel, give token ids"]
    small = EdgeLM.open(tmp_path / "edge")
    np.testing.assert_allclose(small.predict_proba([3, 1]), model.predict_proba([3, 1]), rtol=0, atol=1e-7)
    with pytest.raises(InputError, match="expected a model with a byte-level BPE tokenizer, got one without"):
        small.generate("the cat")


def test_the_class_can_be_made_from_a_tokenizer_that_has_no_merges():
    theirs = Tokenizer(models.BPE({sign: i for i, sign in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    from warmstart.export import _of_tokenizer

    ours = BytesBPE(_of_tokenizer(json.loads(theirs.to_str())["model"]))
    assert ours.encode("naïve cat") == theirs.encode("naïve cat").ids
