"""What PyTorch counts on a device is the same, to the bit, as what compiled loops count: statistics, files, models."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from strategies import texts as small_texts
from test_kneser_ney import ALL, PRUNE
from test_shards import content, texts
from test_spill import joined
from typer.testing import CliRunner

from warmstart import (
    WarmStartLM,
    _ngram_kernels,
    _ngram_torch,
    _pairs_torch,
    _solution_torch,
    cli,
    counts,
    device,
    levels,
    shards,
    spill,
)
from warmstart.accumulators import CodedPairs, empty
from warmstart.budget import Budget
from warmstart.corpus import Corpus
from warmstart.counts import count_pairs
from warmstart.errors import InputError
from warmstart.kneser_ney import KneserNey
from warmstart.ngrams import count_ngrams
from warmstart.solution import class_prior, log_likelihood, solve
from warmstart.spill import count_spilled

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"))
DEVICES = ["cpu", CUDA]
ARGUMENTS = ["--preset", "potato", "--contexts", "ngrams,classes,cache,radial,document", "--bits", "16"]
SOLVED = ["--preset", "potato", "--contexts", "ngrams,classes,cache,radial", "--bits", "16", "--prune", "0,0,1"]
FIXED = ["--smoothing", "30", "--temperature", "1"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the machine stays on


@pytest.fixture
def calls(monkeypatch):
    """How many parts of a text PyTorch counts."""
    calls, count = [], _ngram_torch.count_levels
    monkeypatch.setattr(_ngram_torch, "count_levels", lambda *a: (calls.append(a[0].size), count(*a))[1])
    return calls


def short_of_memory(tokens, *rest, count=_ngram_torch.count_levels):
    """Count on a device whose memory holds 10 places and the 3 tokens after them."""
    if tokens.size > 13:
        raise torch.cuda.OutOfMemoryError("out of memory")
    return count(tokens, *rest)


# Counts


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("vocab_size", [1, 300, 65_536, 65_537])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 5000])
def test_counts_of_awkward_sizes(tmp_path, monkeypatch, size, vocab_size, name):
    drawn = np.random.default_rng(size).zipf(1.3, size) % vocab_size
    text = *joined([drawn.tolist(), [], [vocab_size - 1], [0] * (size % 7), []], vocab_size // 2), vocab_size
    for order in (1, 5):
        expected = count_ngrams(*text, order)
        expected.save(tmp_path / "expected")
        for part in (levels.DEVICE_PART, 40 if size < 100 else 999):
            monkeypatch.setattr(levels, "DEVICE_PART", part)
            found = count_ngrams(*text, order, device=name, workers=2)
            found.save(tmp_path / "found")
            assert found.digest == expected.digest
            assert (tmp_path / "found").read_bytes() == (tmp_path / "expected").read_bytes()


@pytest.mark.parametrize("name", DEVICES)
def test_pairs(name, monkeypatch):
    monkeypatch.setattr(counts, "STRETCH", 8)  # so that some are held out
    for tokens, size in ((np.array([0, 1, 0, 1, 1, 0]), 2), (np.zeros(2, int), 1), (np.arange(3000) ** 2 % 97, 70_000)):
        expected, found = count_pairs(tokens, size), count_pairs(tokens, size, device=name)
        for a, b in ((expected.pairs, found.pairs), (expected.held_out, found.held_out)):
            assert (a.dtype, a.indptr.tolist(), a.indices.tolist(), a.data.tolist()) == (
                b.dtype, b.indptr.tolist(), b.indices.tolist(), b.data.tolist()
            )  # fmt: skip


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("run", [1, 7, 1 << 20])
def test_runs_on_the_disk(tmp_path, monkeypatch, run, name):
    monkeypatch.setattr(levels, "DEVICE_PART", 2)
    text = *joined([[1, 2, 1, 1, 2, 3], [], [2, 1, 2, 1]], 0), 4, 3
    spilled = count_spilled(*text, folder=tmp_path / "runs", run=run, device=name)
    assert spilled.digest == count_ngrams(*text).digest


@given(small_texts(), st.integers(1, 4))
def test_a_part_that_the_memory_does_not_hold_is_halved(text, order):
    size, separator, documents = text
    text = *joined([*documents, *documents, [separator] * 40], separator), size, order
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ngram_torch, "count_levels", short_of_memory)
        assert count_ngrams(*text, device="cpu", workers=3).digest == count_ngrams(*text).digest


def test_a_device_without_memory_is_refused(monkeypatch):
    monkeypatch.setattr(_ngram_torch, "count_levels", full)
    with pytest.raises(InputError, match="device: expected one with free memory, got cpu without; free some, or"):
        count_ngrams(*joined([[1] * 40], 0), 2, device="cpu", workers=2)


# Kneser-Ney and codes


@pytest.fixture
def no_compiled_levels(monkeypatch):
    """Compiled loops that would hide a level that PyTorch does not solve."""

    def solve_level(*arguments, compiled=_ngram_kernels.solve_level):
        assert arguments[0].tolist() == [0, arguments[1].size], "expected only level 1"
        compiled(*arguments)

    monkeypatch.setattr(_ngram_kernels, "suffixes", None)
    monkeypatch.setattr(_ngram_kernels, "solve_level", solve_level)


def tables(model):
    return {name: getattr(model, name) for name in ("bases", "last", "offsets", "probs", "gammas", "sizes")}


def assert_equal_tables(found, expected):
    for name, values in tables(expected).items():
        assert values.dtype == tables(found)[name].dtype, name
        assert values.tobytes() == tables(found)[name].tobytes(), name


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("text", ALL)
def test_kneser_ney_has_the_same_bits(text, order, name, request):
    size, separator, documents = ALL[text]
    counted = count_ngrams(*joined(documents, separator), size, order)
    expected = [KneserNey(counted, prune[:order]) for prune in PRUNE]
    request.getfixturevalue("no_compiled_levels")
    for prune, model in zip(PRUNE, expected, strict=True):
        assert_equal_tables(KneserNey(counted, prune[:order], name), model)


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("vocab_size", [1, 300, 70_000])
def test_kneser_ney_of_larger_texts(vocab_size, name):
    drawn = np.random.default_rng(vocab_size).zipf(1.2, 20_000) % vocab_size
    counted = count_ngrams(*joined([drawn.tolist(), []], 0), vocab_size, 4)
    assert_equal_tables(KneserNey(counted, (0, 0, 1), name), KneserNey(counted, (0, 0, 1)))


def full(*_):
    raise torch.cuda.OutOfMemoryError("out of memory")


def test_levels_that_the_memory_does_not_hold_are_left_to_compiled_loops(monkeypatch):
    size, separator, documents = ALL["random 1"]
    counted = count_ngrams(*joined(documents, separator), size, 4)
    monkeypatch.setattr(_ngram_torch, "suffixes", full)
    monkeypatch.setattr(_ngram_torch, "solve_level", full)
    assert_equal_tables(KneserNey(counted, device="cpu"), KneserNey(counted))


CODES = sparse.csr_array(
    np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]])
)  # of a token without bits too


def added(chunks, name, n_classes, codes=CODES):
    accumulator = empty(codes.shape[1], n_classes, unit=6)
    pairs = CodedPairs(accumulator, codes, name)
    for inputs, targets in chunks:
        pairs.add(inputs, targets)
    pairs.finish()
    return accumulator


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("n_classes", [1, 5, 65_537])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4000])
def test_codes_of_awkward_sizes(size, n_classes, name):
    rng = np.random.default_rng(size)
    inputs, targets = rng.integers(0, 4, size), rng.zipf(1.2, size) % n_classes
    expected = np.zeros((n_classes, 4), np.int64)
    np.add.at(expected, targets, (CODES.toarray() * np.array([6, 3, 6, 2])[:, None])[inputs])
    for cuts in ([], [0, 1], [size // 2]):
        chunks = list(zip(np.split(inputs, cuts), np.split(targets, cuts), strict=True))
        for device_name in (None, name):
            found = added(chunks, device_name, n_classes)
            assert (found.sums.dtype, found.n_examples, np.array_equal(found.sums, expected)) == (np.int64, size, True)


@pytest.mark.parametrize("method", ["__init__", "add"])
def test_codes_that_the_memory_does_not_hold_are_left_to_compiled_loops(method, monkeypatch):
    chunks = [(np.array([0, 1, 3, 3]), np.array([0, 1, 1, 0])), (np.array([1, 2]), np.array([1, 1]))] * 2
    expected = added(chunks, None, 2)
    calls, usual = [], getattr(_pairs_torch.PairSums, method)

    def limited(*arguments):
        calls.append(method)
        return full() if len(calls) > (method == "add") else usual(*arguments)

    monkeypatch.setattr(_pairs_torch.PairSums, method, limited)
    found = added(chunks, "cpu", 2)
    assert (len(calls), found.n_examples) == (1 + (method == "add"), 12)
    assert np.array_equal(found.sums, expected.sums)


def test_pairs_that_do_not_fit_are_refused_and_add_nothing():
    accumulator = empty(4, 2, unit=6)
    pairs = CodedPairs(accumulator, CODES, "cpu")
    for inputs, targets in (([4], [0]), ([0], [2]), ([0, 1], [0])):
        with pytest.raises(InputError, match="expected"):
            pairs.add(np.array(inputs), np.array(targets))
    pairs.finish()
    assert (accumulator.n_examples, accumulator.sums.any()) == (0, False)


# The explicit solution


def sums_of(kind, n_features, n_classes):
    rng = np.random.default_rng(n_features)
    unit = 6 if kind == "codes" else None
    accumulator = empty(n_features, n_classes, unit)
    drawn = rng.zipf(1.3, (n_classes, n_features)) % 100_000 - 1
    accumulator.sums[:] = drawn if unit else drawn * rng.random(drawn.shape)
    accumulator.n_examples = 7
    return accumulator, class_prior(rng.integers(0, 1000, n_classes))


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("kind", ["codes", "floats"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (63, 64), (65, 257), (300, 1000)])
@pytest.mark.parametrize("smoothing", [1e-9, 100.0])
def test_weights_have_the_same_bits(smoothing, shape, kind, name):
    F, prior = sums_of(kind, *shape)
    settings = {"k": 2.0, "smoothing": smoothing, "temperatures": np.array([0.7])}
    for dtype in (np.float32, np.float64):
        expected, found = (solve([F], prior, **settings, dtype=dtype, device=device) for device in (None, name))
        assert (found.dtype, found.shape, found.tobytes()) == (dtype, shape, expected.tobytes())
        assert found.flags.c_contiguous


@pytest.mark.parametrize("error", [-9e-10, 9e-10])
def test_logarithms_of_another_device_round_to_the_same_bits(error, monkeypatch):
    F, prior = sums_of("codes", 500, 1000)
    plain = log_likelihood(F, prior, 100.0)
    log, changed = torch.log, np.log(F.sums.T * F.scale + 100.0 * prior) + error
    monkeypatch.setattr(torch, "log", lambda x: log(x) + error)
    monkeypatch.setattr(_solution_torch, "ERROR", 1e-9)  # a thousand times the real one, so that some cells meet it
    marginal = F.sums.sum(axis=1) * F.scale + F.sums.shape[1] * 100.0 * prior
    assert ((changed - np.log(marginal)).astype(np.float32) != plain).any()  # without care they would differ
    assert log_likelihood(F, prior, 100.0, device="cpu").tobytes() == plain.tobytes()


@pytest.mark.parametrize("name", [None, *DEVICES])
@pytest.mark.parametrize("sums", [[[1, 0], [1, 1]], [[1, 1], [0, 0]]])
def test_a_count_of_zero_has_no_logarithm(sums, name):
    F = empty(2, 2, unit=1)
    F.sums[:] = sums
    with pytest.raises(InputError, match="a feature never occurred with a class and smoothing is 0"):
        log_likelihood(F, np.array([0.5, 0.5]), 0.0, device=name)


def test_logarithms_that_the_memory_does_not_hold_are_left_to_numpy(monkeypatch):
    F, prior = sums_of("codes", 5, 7)
    monkeypatch.setattr(_solution_torch, "log_likelihood", full)
    assert np.array_equal(log_likelihood(F, prior, 1.0, device="cpu"), log_likelihood(F, prior, 1.0))


# Where a device can be named


@pytest.mark.parametrize("name", ["gpu", "cuda:77", "meta"])
def test_a_device_that_is_not_there_is_refused(tmp_path, name):
    said = f"device: expected one that PyTorch can use, such as cuda, got '{name}'"
    text = *joined([[1, 2]], 0), 3
    for work in (
        lambda: count_ngrams(*text, device=name),
        lambda: count_pairs(text[0], 3, device=name),
        lambda: count_spilled(*text, folder=tmp_path / "runs", device=name),
        lambda: KneserNey(count_ngrams(*text), device=name),
        lambda: CodedPairs(empty(4, 2, unit=6), CODES, name),
        lambda: shards.count(["a"], tmp_path / "nothing", device=name),
        lambda: WarmStartLM("potato").fit(["a"], device=name),
    ):
        with pytest.raises(InputError, match=said):
            work()
    assert not (tmp_path / "runs").exists()


def test_a_limit_of_memory_is_for_compiled_loops(tmp_path):
    corpus = Corpus.build(texts(), vocab_size=300, cache_dir=tmp_path)
    with pytest.raises(InputError, match=r"device: expected none with a limit of memory, .* got 'cpu'; leave one out"):
        spill.count_corpus(corpus, 2, budget=Budget(1 << 40), device="cpu")


def test_a_gpu_is_found_where_there_is_a_driver(monkeypatch):
    for driver, available, expected in ((False, True, None), (True, False, None), (True, True, "cuda")):
        monkeypatch.setattr(device, "DRIVERS", ("nothing.so.77", *([None] if driver else [])))  # None is the program
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert device.find_gpu() == expected


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>".join(texts()))
    shards.train([path], tmp_path / "tokenizer", vocab_size=300)
    return path


def run(*arguments):
    return CliRunner().invoke(cli.app, [*map(str, arguments)], standalone_mode=True)


@pytest.mark.parametrize("name", DEVICES)
def test_commands_use_a_gpu_where_there_is_one(tmp_path, corpus, calls, monkeypatch, name):
    tokenizer = ["--tokenizer", tmp_path / "tokenizer"]
    commands = {
        "fit": ["fit", corpus, *tokenizer, *ARGUMENTS, *FIXED, "-o"],
        "count": ["count", corpus, *tokenizer, "-o"],
        "resumed": ["count", corpus, *tokenizer, "--order", 2, "--resume", "-o"],
        "solve": ["solve", tmp_path / "count None", *SOLVED, *FIXED, "-o"],
        "limited": ["count", corpus, *tokenizer, "--order", 2, "--max-memory", "4G", "-o"],
    }
    written = {}
    for gpu in (None, name):
        monkeypatch.setattr(device, "find_gpu", lambda gpu=gpu: gpu)
        for command, arguments in commands.items():
            calls.clear()
            path = tmp_path / f"{command} {gpu}"
            result = run(*arguments, path)
            assert result.exit_code == 0, result.output
            assert bool(calls) == (gpu is not None and command != "limited")
            written[command, gpu] = content(path) if path.is_dir() else path.read_bytes()
    for command in commands:
        assert written[command, None] == written[command, name]
    calls.clear()
    for command in ("count", "solve"):
        assert run(*commands[command], tmp_path / f"{command} cpu", "--device", "cpu").exit_code == 0
    assert not calls


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "cuda:77"], "device: expected one that PyTorch can use, such as cuda, got 'cuda:77'"),
        (["--device", "cuda", "--max-memory", "4G"], "expected --max-memory without --device cuda, got both"),
        (["--device", "cuda", "--cold"], "expected --max-memory, --resume and --device without --cold, got both"),
        (
            ["--device", "cpu", "--engine", "dask", "--scheduler", "a", "--tokenizer", "t.json"],
            "expected --engine dask without --device, got both",
        ),
    ],
)
def test_devices_that_cannot_be_are_refused(tmp_path, corpus, options, said, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["warmstart", "fit", str(corpus), "-o", str(tmp_path / "model"), *options])
    with pytest.raises(SystemExit):
        cli.main()
    assert said in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
