"""Counting with runs on the disk: the same statistic to the bit, also after a kill at any moment."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import texts as small_texts
from typer.testing import CliRunner

from tests.test_shards import content, texts
from warmstart import budget as budgets
from warmstart import cli, files, levels, shards, spill
from warmstart.blocks import read_rows, writing_rows
from warmstart.budget import LIBRARIES, counting_bytes
from warmstart.errors import InputError
from warmstart.ngrams import count_ngrams
from warmstart.spill import Work, count_spilled


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda _: None)  # there are many files here, and the machine stays on


def joined(documents, separator):
    tokens = [separator, *itertools.chain.from_iterable([*document, separator] for document in documents)]
    return np.array(tokens), np.cumsum([0, *(len(document) + 1 for document in documents)])


# Rows in blocks.


def test_rows_come_back_in_any_slice(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 1000, 500).astype(np.uint16)
    with writing_rows(tmp_path / "a", {"unit": 2}) as out:
        for start, stop in itertools.pairwise([0, 0, 1, 64, 64, 65, 400, 500]):
            out.add("x", x[start:stop])
            out.add("none", x[:0].astype(np.int64))
    rows, facts = read_rows(tmp_path / "a", checked=True)
    assert (facts, rows["none"].size, rows["none"].read().dtype) == ({"unit": 2}, 0, np.int64)
    for start, stop in [(0, 500), (0, 0), (500, 500), (1, 64), (63, 66), (399, 401), *rng.integers(0, 501, (20, 2))]:
        assert np.array_equal(rows["x"].read(start, max(start, stop)), x[start : max(start, stop)])
    with writing_rows(tmp_path / "b", {}) as out:
        out.add("x", x)
        with pytest.raises(TypeError, match="expected numbers of type <u2, got <i8"):
            out.add("x", x.astype(np.int64))


def test_an_error_leaves_no_file(tmp_path):
    def stop():
        with writing_rows(tmp_path / "a", {}) as out:
            out.add("x", np.arange(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", range(30))
def test_damaged_rows_are_found(tmp_path, seed):
    rng, path = np.random.default_rng(seed), tmp_path / "a"
    with writing_rows(path, {}) as out:
        out.add("x", np.arange(50))
    whole = bytearray(path.read_bytes())
    if seed % 2:
        whole[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
    else:
        del whole[rng.integers(len(whole)) :]
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"a: expected the content that was written, got other bytes; delete it"):
        read_rows(path, checked=True)


@pytest.mark.parametrize("dtypes", list(itertools.permutations(files.TYPES.values(), 3))[::5])
def test_what_is_copied_has_the_bytes_of_safetensors(tmp_path, dtypes):
    arrays = {name: np.arange(7 * n, dtype=kind) for n, (name, kind) in enumerate(zip("cab", dtypes, strict=True))}
    facts = {"name": 'a "b" \\ é', "n": 1.5}
    with writing_rows(tmp_path / "rows", {}) as out:
        for name, array in arrays.items():
            out.add(name, array[:3])
            out.add(name, array[3:])
    stored = read_rows(tmp_path / "rows")[0]
    assert files.checksums(stored, facts) == files.checksums(arrays, facts)
    files.save_arrays(tmp_path / "a", arrays, facts)
    files.save_arrays(tmp_path / "b", {"c": arrays["c"], "b": stored["b"], "a": stored["a"]}, facts)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# The same statistic.


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(spill, "BLOCK", 40)


@given(text=small_texts(), order=st.integers(1, 6), run=st.integers(1, 9))
def test_runs_do_not_show(tmp_path_factory, text, order, run):
    vocab_size, separator, documents = text
    given_text = *joined(documents, separator), vocab_size, order
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "BLOCK", run)
        spilled = count_spilled(*given_text, folder=folder / "a", run=run, workers=2)
    whole = count_ngrams(*given_text)
    assert spilled.digest == whole.digest == spilled.loaded().digest
    assert (spilled.sizes, spilled.n_tokens) == (whole.sizes, whole.n_tokens)
    for name, array in spilled.loaded().content()[0].items():
        assert array.dtype == whole.content()[0][name].dtype, name
    assert [path.name for path in (folder / "a").iterdir()] == [f"run-0-{whole.n_tokens}"]
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("vocab_size", "size", "run"), [(2, 5000, 1000), (70_000, 3000, 700), (3, 63, 64), (3, 64, 64), (3, 65, 64)]
)
def test_counts_above_a_byte_and_large_vocabularies(tmp_path, monkeypatch, vocab_size, size, run):
    monkeypatch.setattr(spill, "BLOCK", 2 * run)
    rng = np.random.default_rng(0)
    tokens = np.append(0, np.append(rng.integers(1, vocab_size, size - 1), 0))
    given_text = tokens, np.array([0, size]), vocab_size, 3
    spilled, whole = count_spilled(*given_text, folder=tmp_path / "a", run=run), count_ngrams(*given_text)
    assert spilled.digest == whole.digest
    if vocab_size == 2:
        assert whole.levels[2].counts.max() > 255
    again = [level.counts.dtype for level in spilled.loaded().levels]
    assert again == [level.counts.dtype for level in whole.levels]


def test_too_many_occurrences_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(levels, "MOST", 5)
    with pytest.raises(InputError, match="at most 5 n-grams of 2 tokens"):
        count_spilled(*joined([[1] * 10], 0), 2, 2, folder=tmp_path / "a", run=5)
    assert [path.name[:4] for path in (tmp_path / "a").iterdir()] == ["run-"] * 2


def test_progress_ends_where_it_should(tmp_path, tiny):
    seen = []
    text = *joined([[1, 2] * 9, [2, 1, 1]], 0), 3, 2
    count_spilled(*text, folder=tmp_path / "a", run=4, progress=lambda *stage: seen.append(stage))
    assert {stage[0] for stage in seen} == {"count n-grams"}
    done = [stage[1] for stage in seen]
    assert done == sorted(set(done))
    assert seen[-1][1] == seen[-1][2]
    again = []
    count_spilled(*text, folder=tmp_path / "a", run=4, progress=lambda *stage: again.append(stage))
    assert again == seen[-1:]


# Going on.


class StopError(Exception):
    pass


@pytest.mark.parametrize(("first", "second"), [(16, 16), (16, 50), (50, 16)])
def test_what_is_counted_is_not_counted_again(tmp_path, tiny, monkeypatch, first, second):
    """Stop at each run in turn, also when the size of the runs changes."""
    rng = np.random.default_rng(0)
    tokens = np.append(0, np.append(rng.integers(1, 9, 200), 0))
    text = tokens, np.array([0, 201]), 9, 3
    counted, count = [], spill.count_levels

    def counts(*arguments, **options):
        if len(counted) == most:
            raise StopError
        counted.append(arguments[1])
        return count(*arguments, **options)

    monkeypatch.setattr(spill, "count_levels", counts)
    for stop in (1, 2, 3, 5, 8, 13, 21):
        most, folder, run = stop, tmp_path / str(stop), first
        for _ in range(40):
            try:
                spilled = count_spilled(*text, folder=folder, run=run)
                break
            except StopError:
                most, run = most + stop, second
        assert spilled.digest == count_ngrams(*text).digest
        if first == second:
            assert sorted(part.start for part in counted) == sorted({part.start for part in counted})
        counted.clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": 2}, "expected parts with the order 2, got those of another, 3"),
        ({"vocab_size": 10}, "expected parts with the vocab_size 10, got those of another, 9"),
        (
            {"vocabulary": {"a": 0}},
            "expected parts with the vocabulary ........, got those of another, ; give the same",
        ),
        ({"documents": np.array([0, 1, 9])}, "expected parts with the text ........, got those of another, ........;"),
        ({"tokens": np.array([0, 0, 1, 2, 3, 4, 5, 6, 8, 0])}, "expected parts with the text"),
    ],
)
def test_runs_of_another_text_are_refused(tmp_path, change, message):
    text = {
        "tokens": np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 0]),
        "documents": np.array([0, 9]),
        "vocab_size": 9,
        "order": 3,
    }
    digest = count_spilled(**text, folder=tmp_path / "a", run=4).digest
    before = content(tmp_path / "a")
    with pytest.raises(InputError, match=message):
        count_spilled(**text | change, folder=tmp_path / "a", run=4)
    assert content(tmp_path / "a") == before
    assert count_spilled(**text, folder=tmp_path / "a", run=4).digest == digest


def test_a_damaged_run_is_refused_and_named(tmp_path):
    text = *joined([[1, 2] * 9], 0), 3, 2
    count_spilled(*text, folder=tmp_path / "a")
    (run,) = (tmp_path / "a").iterdir()
    damaged = bytearray(run.read_bytes())
    damaged[3] ^= 1
    run.write_bytes(damaged)
    with pytest.raises(InputError, match=f"{run.name}: expected the content that was written"):
        count_spilled(*text, folder=tmp_path / "a")
    run.unlink()
    assert count_spilled(*text, folder=tmp_path / "a").digest == count_ngrams(*text).digest


# The command line.


@pytest.fixture
def place(tmp_path):
    (tmp_path / "text.txt").write_text("<|endoftext|>".join(texts()))
    shards.train(texts(5), tmp_path / "t", vocab_size=300)
    return tmp_path


def run(*words, code=0):
    result = CliRunner().invoke(cli.app, [*map(str, words), "--json", "--quiet"])
    assert result.exit_code == code, (result.output, result.exception)
    return json.loads(result.stdout) if code == 0 else str(result.exception)


def commands(place, name):
    count = ["count", place / "text.txt", "--tokenizer", place / "t", "-o", place / f"{name}.stats"]
    fit = ["fit", place / "text.txt", "--tokenizer", place / "t", "-o", place / f"{name}.model", "--preset", "potato"]
    return count, [*fit, "--contexts", "ngrams,cache"]


def test_a_limit_spills_only_what_does_not_fit(place, monkeypatch):
    for name in ("peak_memory", "resident_memory"):
        monkeypatch.setattr(budgets, name, lambda: 0)
    monkeypatch.setattr(budgets, "SMALLEST_RUN", 100)
    monkeypatch.setattr(budgets, "RUN", 800)
    monkeypatch.setattr(budgets, "BLOCK", 10)
    monkeypatch.setattr(spill, "BLOCK", 10)
    runs = []
    monkeypatch.setattr(spill, "count_levels", lambda *a, **k: runs.append(a[1]) or levels.count_levels(*a, **k))
    count, fit = commands(place, "free")
    free = run(*count)
    run(*fit)
    n, documents = free["tokens"], free["documents"]
    sizes = n, documents, shards.Statistic.load(place / "free.stats").counts.vocab_size, 5
    least, spilled = counting_bytes(*sizes), counting_bytes(*sizes, run=100)
    assert spilled < least
    count, fit = commands(place, "bound")
    run(*count, "--workers", 1, "--max-memory", LIBRARIES + least)
    assert runs == []
    shown = run(*count, "--workers", 1, "--max-memory", LIBRARIES + least - 1)
    assert shown["estimated_memory_bytes"] < LIBRARIES + least
    assert [part.start for part in runs] == [n * i // 4 for i in range(4)]
    assert "of memory to count n-grams, got a limit of" in run(
        *count, "--workers", 1, "--max-memory", LIBRARIES + spilled - 1, code=1
    )
    assert (place / "bound.stats").read_bytes() == (place / "free.stats").read_bytes()
    assert {key: shown[key] for key in ("ngrams", "tokens", "unknown_tokens")} == {
        key: free[key] for key in ("ngrams", "tokens", "unknown_tokens")
    }
    runs.clear()
    run(*fit, "--resume")
    assert len(runs) > 1 or n < spill.RUN
    assert content(place / "bound.model") == content(place / "free.model")
    assert not list(place.glob("*.parts"))


def test_what_is_solved_is_in_memory_again(place):
    corpus = shards.Corpus.encode(place / "text.txt", place / "t")
    spilled = count_spilled(corpus.tokens, corpus.documents, corpus.vocab_size, 3, folder=place / "work", run=900)
    recipe = budgets.Recipe(("ngrams",), 3)
    more = budgets.solving_bytes(spilled, recipe) - budgets.solving_bytes(spilled.loaded(), recipe)
    assert more >= sum(
        level.last.nbytes + level.counts.nbytes + level.offsets.nbytes for level in spilled.loaded().levels[1:]
    )
    work = Work(place / "again")
    statistic = shards.count(place / "text.txt", place / "t", order=3, work=work)
    statistic.save(place / "a.stats")
    plain = shards.count(place / "text.txt", place / "t", order=3)
    assert shards.Statistic.load(place / "a.stats").counts.digest == plain.counts.digest
    assert (statistic + plain).counts.digest == (plain + plain).counts.digest
    assert statistic.n_unknown == plain.n_unknown


@pytest.mark.parametrize("command", [0, 1])
def test_a_folder_that_is_there(place, monkeypatch, command):
    words = commands(place, "a")[command]
    parts = Path(f"{words[words.index('-o') + 1]}.parts")
    parts.mkdir()
    limit = ["--max-memory", "64G"]
    assert f"{parts}: expected no such folder, got that of a run which did not end" in run(*words, *limit, code=1)
    (parts / "mine.txt").touch()
    for option in (["--resume"], limit):
        assert f"{parts}: expected a folder for parts of the counts, got something else" in run(*words, *option, code=1)
    assert [path.name for path in parts.iterdir()] == ["mine.txt"]
    (parts / "mine.txt").unlink()
    whole = place / "cut.txt"
    whole.write_text("ban der")
    monkeypatch.setattr(spill, "_text_digest", lambda *_: "another")
    other = [whole if word == place / "text.txt" else word for word in words]
    monkeypatch.setattr(shards.Statistic, "save", interrupt)
    monkeypatch.setattr("warmstart.estimators.language_model.WarmStartLM.save_pretrained", interrupt)
    run(*other, "--resume", code=1)
    monkeypatch.undo()
    assert any(path.name.startswith("run-") for path in parts.iterdir())
    assert "expected parts with the" in run(*words, "--resume", code=1)
    assert any(path.name.startswith("run-") for path in parts.iterdir())
    shutil.rmtree(parts)
    run(*words, "--resume")
    assert not parts.exists()


def interrupt(*_):
    raise StopError


def test_what_was_counted_is_kept_where_the_solution_is_refused(place, monkeypatch):
    def refuse(*_):
        raise InputError("expected room")

    _, fit = commands(place, "a")
    monkeypatch.setattr(budgets.Budget, "solve", refuse)
    assert run(*fit, "--resume", "--max-memory", "64G", code=1) == "expected room"
    assert [path.name[:6] for path in (place / "a.model.parts").iterdir()] == ["run-0-"]
    monkeypatch.undo()
    monkeypatch.setattr(spill, "count_levels", interrupt)  # which is not called
    run(*fit, "--resume", "--max-memory", "64G")
    assert not (place / "a.model.parts").exists()


def test_bad_input_leaves_no_folder(place):
    (place / "empty.txt").write_text(" ")
    count = ["count", place / "empty.txt", "--tokenizer", place / "t", "-o", place / "a.stats", "--resume"]
    assert "expected a corpus with text" in run(*count, code=1)
    assert not (place / "a.stats.parts").exists()
    run("fit", place / "text.txt", "-o", place / "m", "--cold", "--contexts", "radial", "--resume", code=2)


KILLS = 20 if "WARMSTART_FUZZ" in os.environ else 5
CODE = """
import os, random, shutil, signal, sys, time
from pathlib import Path

from warmstart import cli, spill

spill.RUN, spill.BLOCK = 300, 200
os.fsync = lambda _: None
place, n = Path(sys.argv[1]), int(sys.argv[2])
random.seed(0)


def run(*words):
    sys.argv = ["warmstart", *map(str, words), "--quiet", "--workers", "1"]
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code or 0


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def state(path):
    return {p.name: p.read_bytes() for p in path.iterdir()} if path.is_dir() else path.read_bytes()


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


for command, options in (("count", []), ("fit", ["--preset", "potato", "--contexts", "ngrams"])):
    words = [command, place / "text.txt", "--tokenizer", place / "t", *options, "-o"]
    assert run(*words, place / "whole") == 0
    expected, goal = state(place / "whole"), place / "a"
    assert run(*words, goal, "--resume") == 0  # everything is loaded and compiled
    remove(goal)
    began = time.perf_counter()
    assert run(*words, goal, "--resume") == 0
    seconds, kills, resumed = time.perf_counter() - began, 0, 0
    while kills < n:
        if goal.exists() and not (place / "a.parts").exists():
            remove(goal)
        resumed += (place / "a.parts").exists()
        child = os.fork()
        if not child:
            os._exit(run(*words, goal, "--resume"))
        time.sleep(random.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        code = ended(child)
        assert code in (0, -signal.SIGKILL), code
        kills += code != 0
        assert not goal.exists() or state(goal) == expected
        assert code != 0 or goal.exists() and not (place / "a.parts").exists()
    assert run(*words, goal, "--resume") == 0
    assert state(goal) == expected
    assert not (place / "a.parts").exists()
    remove(goal), remove(place / "whole")
    if command == "count":
        assert {p.name for p in place.iterdir()} <= {"text.txt", "t", "cache", "kills.py"}
    print(command, kills, resumed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which starts a process at once")
def test_killed_at_any_moment_it_goes_on(place):
    """Kill and resume at random moments: what is there under the name of the result is always whole, and the same."""
    (place / "kills.py").write_text(CODE)
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-W", "ignore", place / "kills.py", place, str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    for line, command in zip(done.stdout.splitlines(), ("count", "fit"), strict=True):
        name, killed, resumed = line.split()
        assert (name, int(killed)) == (command, KILLS)
        assert int(resumed) > 0
