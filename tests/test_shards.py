"""Counting in shards: whatever the shards and the order of merging, the model has the bytes of one fit."""

import itertools
import json
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest

from warmstart import WarmStartLM, cli, shards
from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.files import checksums, load_arrays, save_arrays
from warmstart.ngrams import count_ngrams
from warmstart.ranks import renumbered
from warmstart.tokenizer import load_tokenizer

WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("an", "er", "ilo", "u")]
OPTIONS = {"preset": "potato", "contexts": ("ngrams", "classes", "cache", "radial", "memory"), "bits": 16}
ARGUMENTS = ["--preset", "potato", "--contexts", "ngrams,classes,cache,radial,memory", "--bits", "16", "--workers", "1"]


def texts(n=21, seed=0):
    """Documents with words that come back, one of them twice."""
    rng = np.random.default_rng(seed)
    documents = [" ".join(rng.choice(WORDS, rng.integers(1, 160))) + "." for _ in range(n - 1)]
    return [*documents, documents[n // 2]]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Of a sample whose frequencies are not those of the text."""
    folder = tmp_path_factory.mktemp("tokenizer") / "t"
    shards.train(texts(5, seed=1), folder, vocab_size=300)
    return folder


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, tokenizer):
    """The model of one fit on the whole text, as the command line does it."""
    folder = tmp_path_factory.mktemp("fitted")
    corpus = Corpus.build(texts(), tokenizer=tokenizer, cache_dir=folder / "cache")
    WarmStartLM(**OPTIONS).fit(corpus).save_pretrained(folder / "model")
    return content(folder / "model")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def cut(documents, n):
    """Cut a list into n parts of different sizes."""
    places = [round(len(documents) * (i / n) ** 1.5) for i in range(n + 1)]
    return [documents[a:b] for a, b in itertools.pairwise(places)]


def write(folder, tokenizer, n, **options):
    paths = []
    for i, part in enumerate(cut(texts(), n)):
        paths.append(folder / f"{i}.stats")
        shards.count(part, tokenizer, **options).save(paths[-1])
    return paths


@pytest.mark.filterwarnings("ignore:.*counted too")  # the document that is there twice can be a whole shard
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_the_model_has_the_bytes_of_one_fit(tmp_path, tokenizer, fitted, n):
    paths = write(tmp_path, tokenizer, n)
    orders = [paths, paths[::-1], [paths[i] for i in np.random.default_rng(n).permutation(n)]]
    merged = {}
    for order in orders:
        shards.merge(order).save(tmp_path / "sum.stats")
        merged[(tmp_path / "sum.stats").read_bytes()] = order
    assert len(merged) == 1
    statistic = shards.Statistic.load(tmp_path / "sum.stats")
    shards.solve(statistic, WarmStartLM(**OPTIONS)).save_pretrained(tmp_path / "model")
    assert content(tmp_path / "model") == fitted


def run(*words):
    """Run a command in this process; return its JSON."""
    from typer.testing import CliRunner

    result = CliRunner().invoke(cli.app, [*map(str, words), "--json", "--quiet"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def fails(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["warmstart", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    return err


def test_commands_give_the_bytes_of_fit_and_two_processes_count_at_the_same_time(tmp_path):
    """With the tokenizer that `fit` would train on the text; the shards differ in form, and are of a higher order."""
    parts = cut(texts(), 2)
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(parts[0]))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in parts[1]))
    (tmp_path / "all").mkdir()
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / "all" / name).write_bytes((tmp_path / name).read_bytes())
    model = [*ARGUMENTS, "--prune", "0,1,1"]  # potato would prune by its size
    whole = run("fit", tmp_path / "all", "-o", tmp_path / "fit", *model, "--vocab-size", 300)
    made = run("tokenizer", tmp_path / "all", "-o", tmp_path / "t", "--vocab-size", 300)
    assert made["vocab_size"] == whole["vocab_size"] <= 300
    command = [sys.executable, "-m", "warmstart.cli", "count", "--tokenizer", tmp_path / "t", "--json"]
    processes = [
        subprocess.Popen([*command, tmp_path / name, "-o", tmp_path / f"{name}.stats"], stdout=-1, stderr=-1, text=True)
        for name in ("a.txt", "b.jsonl")
    ]
    counted = []
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert "count n-grams" in err
        counted.append(json.loads(out))
    merged = run("merge", tmp_path / "b.jsonl.stats", tmp_path / "a.txt.stats", "-o", tmp_path / "sum.stats")
    for name in ("tokens", "documents", "bytes"):
        assert merged[name] == counted[0][name] + counted[1][name] == whole[name]
    assert (merged["files"], merged["documents"], merged["different_documents"]) == (2, 21, 20)
    solved = run("solve", tmp_path / "sum.stats", "-o", tmp_path / "model", *model)
    assert content(tmp_path / "model") == content(tmp_path / "fit")
    for name in ("ngrams", "prune", "temperatures", "left_out_perplexity"):
        assert solved[name] == whole[name]
    loaded = WarmStartLM.from_pretrained(tmp_path / "model")
    assert loaded.perplexity(texts()) < 40 < loaded.unigrams_.size


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_other_tokenizers_and_what_they_do_not_know(tmp_path, kind):
    trained = shards.train(["ban der ban filo"], tmp_path / "t", kind=kind)
    whole = WarmStartLM("potato").fit(Corpus.build(texts(), tokenizer=trained))
    a, b = (shards.count(part, tmp_path / "t", order=3) for part in cut(texts(), 2))
    model = shards.solve(b + a, WarmStartLM("potato"))
    assert model.counts_.digest == whole.counts_.digest
    assert model.tokenizer_.to_str() == whole.tokenizer_.to_str()
    assert (a + b).n_unknown == Corpus.build(texts(), tokenizer=trained).n_unknown > 0


def test_more_texts_are_counted_and_forgotten_after_solve(tmp_path, tokenizer, fitted):
    statistic = shards.count(texts(), tokenizer)
    model = shards.solve(statistic, WarmStartLM(**OPTIONS)).partial_fit(texts(3, seed=2)).forget(texts(3, seed=2))
    model.save_pretrained(tmp_path / "model")
    assert content(tmp_path / "model") == fitted


@pytest.mark.parametrize(("vocab_size", "n"), [(1, 1), (2, 65), (7, 64), (300, 63), (70_000, 400)])
def test_renumbered_is_what_is_counted_with_other_ids(vocab_size, n):
    rng = np.random.default_rng(n)
    ranks = rng.permutation(vocab_size)
    separator = vocab_size // 2
    tokens = rng.integers(0, vocab_size, n + 2)
    borders = np.array([0, 1, n // 2 + 1, n + 1]) if n > 1 else np.array([0, n + 1])
    tokens[borders] = separator
    for order in (1, 2, 4):
        before, after = (
            count_ngrams(ids, borders, vocab_size, order, vocabulary={}) for ids in (tokens, ranks[tokens])
        )
        changed = renumbered(before, ranks, {})
        assert changed.digest == after.digest
        assert renumbered(changed, np.argsort(ranks), {}).digest == before.digest
        assert [level.counts.dtype for level in changed.levels] == [level.counts.dtype for level in after.levels]


# Bad input.


def test_a_statistic_of_another_kind_is_refused_and_both_are_named(tmp_path, tokenizer, monkeypatch, capsys):
    part = texts()[:2]
    paths = {name: tmp_path / f"{name}.stats" for name in ("mine", "order", "tokenizer", "format", "text")}
    shards.count(part, tokenizer).save(paths["mine"])
    shards.count(part, tokenizer, order=4).save(paths["order"])
    shards.train(part, tmp_path / "other", vocab_size=290)
    shards.count(part, tmp_path / "other").save(paths["tokenizer"])
    arrays, facts = load_arrays(paths["mine"])
    facts["shard"]["format"] += 1
    save_arrays(paths["format"], arrays, facts | {"checksums": checksums(arrays, facts)})
    for name, message in {
        "order": "expected the order of {mine}, 5, got 4; count both with the same order",
        "tokenizer": "expected the tokenizer of {mine}, .*; count both with the same tokenizer",
        "format": "expected the format of {mine}, 1.1, got 2.1; count both with the same version of warmstart",
    }.items():
        for first, second in ((name, "mine"), ("mine", name)):
            err = fails(monkeypatch, capsys, "merge", paths[first], paths[second], "-o", tmp_path / "sum.stats")
            assert str(paths[first]) in err
            assert str(paths[second]) in err
        assert re.search(message.format(mine=paths["mine"]), err)
    with pytest.raises(InputError, match=r"format.stats: expected a statistic of format 1, got another one"):
        shards.Statistic.load(paths["format"])
    with pytest.raises(InputError, match="expected statistics of one tokenizer"):
        shards.Statistic.load(paths["mine"]) + shards.Statistic.load(paths["tokenizer"])
    assert not (tmp_path / "sum.stats").exists()


@pytest.fixture(scope="module")
def counted(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("counted") / "a.stats"
    shards.count(texts()[:3], tokenizer, order=3).save(path)
    return path


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bits_and_cut_files_are_found(tmp_path, counted, seed):
    rng, damaged, whole = np.random.default_rng(seed), tmp_path / "a.stats", counted.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    content = bytearray(whole)
    if seed % 3 == 0:
        del content[rng.integers(len(whole)) :]
    else:
        at = rng.integers(8, header) if seed % 3 == 1 else rng.integers(header, len(whole))
        content[at] ^= 1 << int(rng.integers(8))
    damaged.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.stats: expected"):
        shards.merge([counted, damaged])


def test_files_that_come_twice(tmp_path, tokenizer, counted):
    (tmp_path / "link.stats").symlink_to(counted)
    for again in (counted, tmp_path / "link.stats"):
        with pytest.raises(InputError, match=r"expected different files, got the same as .*a\.stats; name it once"):
            shards.merge([counted, again])
    (tmp_path / "copy.stats").write_bytes(counted.read_bytes())
    with pytest.warns(UserWarning, match=r"copy.stats: counted too, though all documents are in .*a.stats; merge it"):
        twice = shards.merge([counted, tmp_path / "copy.stats"])
    assert twice.counts.digest == shards.count(texts()[:3] * 2, tokenizer, order=3).counts.digest
    shards.count(texts()[3:4], tokenizer, order=3).save(tmp_path / "b.stats")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none here
        both = shards.merge([counted, tmp_path / "b.stats"])
    both.save(tmp_path / "both.stats")
    for paths in ((tmp_path / "both.stats", counted), (counted, tmp_path / "both.stats")):
        with pytest.warns(UserWarning, match=r"a.stats: counted too, though all documents are in .*both.stats"):
            assert shards.merge(paths).counts.documents.copies.max() == 2


def test_no_file_of_another_kind_is_replaced(tmp_path, tokenizer, counted, monkeypatch, capsys):
    (tmp_path / "text.txt").write_text("ban der")
    count = ["count", tmp_path / "text.txt", "--tokenizer", tokenizer, "--order", 3, "-o"]
    stats = tmp_path / "a.stats"
    for name, message in {
        "text.txt": "expected a new file or a statistic to replace, got something else",
        ".": "expected a new file or a statistic to replace, got something else",
        "no/a.stats": "expected .*no to be a folder that can be written to; make it",
    }.items():
        assert re.search(message, fails(monkeypatch, capsys, *count, tmp_path / name))
    assert (tmp_path / "text.txt").read_text() == "ban der"
    stats.write_bytes(counted.read_bytes())
    err = fails(monkeypatch, capsys, "merge", counted, stats, "-o", stats)
    assert f"{stats}: expected a new file for the sum, got one of its parts; choose another name" in err
    (tmp_path / "text.txt").write_text(" ")
    assert "expected a corpus with text" in fails(monkeypatch, capsys, *count, stats, "--quiet")
    assert stats.read_bytes() == counted.read_bytes()
    (tmp_path / "text.txt").write_text("ban der")
    assert run(*count, stats)["documents"] == 1  # a statistic is replaced
    assert stats.read_bytes() != counted.read_bytes()


def test_a_folder_of_something_else_is_no_place_for_a_tokenizer(tmp_path, tokenizer):
    (tmp_path / "t").mkdir()
    shards.train(["ban der"], tmp_path / "t")
    shards.train(["ban der"], tmp_path / "t", kind="words")
    assert load_tokenizer(tmp_path / "t").encode("ban der").tokens == ["ban", "der"]
    (tmp_path / "t" / "mine").touch()
    for place in ("t", "t/mine"):
        with pytest.raises(InputError, match="expected a new folder for a tokenizer, got other files"):
            shards.train(["ban"], tmp_path / place)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--contexts", "radial,document"], "got document, which need a pass for each of their layers"),
        (["--contexts", "radial,block,attended"], "got attended, block, which need a pass"),
        (["--order", "4"], "order: expected at most 3, that of the counts, got 4"),
        (["--preset", "small"], "order: expected at most 3, that of the counts, got 5"),
        (["--bits", "2", "--contexts", "radial"], "bits"),
    ],
)
def test_what_cannot_be_solved_is_refused(tmp_path, counted, monkeypatch, capsys, options, message):
    words = ["solve", counted, "-o", tmp_path / "model", "--quiet", "--preset", "potato", *options]
    assert message in fails(monkeypatch, capsys, *words)
    assert not (tmp_path / "model").exists()


def test_no_statistic_is_no_model(tmp_path, counted, tokenizer, monkeypatch, capsys):
    model = tmp_path / "model"
    WarmStartLM("potato").fit(texts()[:3], None).save_pretrained(model)
    for path in (model / "counts.safetensors", model / "config.json", tmp_path / "nothing"):
        for command in ("merge", "solve"):
            err = fails(monkeypatch, capsys, command, path, "-o", tmp_path / "new")
            assert err.startswith(f"error: {path}: expected")
    with pytest.raises(InputError, match="expected statistics to merge, got none"):
        shards.merge([])
    statistic = shards.Statistic.load(counted)
    other = load_tokenizer(model)
    with pytest.raises(InputError, match="expected counts in the tokens of the tokenizer"):
        WarmStartLM("potato").fit_counts(statistic.counts, other, 1)
    nothing = statistic.counts - statistic.counts
    with pytest.raises(InputError, match="expected counts of some text, got none"):
        WarmStartLM("potato").fit_counts(nothing, load_tokenizer(tokenizer), 0)
