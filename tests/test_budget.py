"""A limit of memory chooses how much is counted at once, refuses before, and is not passed."""

import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.test_shards import content, texts
from warmstart import WarmStartLM, cli, shards
from warmstart import budget as budgets
from warmstart.budget import LIBRARIES, SMALLEST_RUN, Budget, counting_bytes, parse_size
from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.ngrams import count_ngrams
from warmstart.solving import Recipe
from warmstart.spill import RUN, Work


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def place(tmp_path):
    (tmp_path / "text.txt").write_text("<|endoftext|>".join(texts()))
    shards.train(texts(5), tmp_path / "t", vocab_size=300)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("2K", 2048), ("800M", 800 * 2**20), ("4g", 2**32), (" 0.5 TiB ", 2**39), ("3MB", 3 * 2**20)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1G", "G", "4X", "4 G G", "1e9", "nan", "٣G", "4GG", "9" * 16, "0.1"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match="max_memory: expected a size such as 800M or 4G, got"):
        parse_size(text)


@pytest.fixture
def resident(monkeypatch):
    """Say that the process holds nothing yet."""
    for name in ("peak_memory", "resident_memory"):
        monkeypatch.setattr(budgets, name, lambda: 0)


def test_the_largest_run_that_fits_is_taken(resident, tmp_path):
    text, said, work = (50_000_000, 1000, 8192, 5), [], Work(tmp_path, always=False)
    bound = [LIBRARIES + counting_bytes(*text, run=run) for run in (None, RUN, RUN // 2, SMALLEST_RUN)]
    assert bound == sorted(bound, reverse=True)
    for limit, run in (
        (bound[0], None),
        (bound[0] - 1, RUN),
        (bound[1] - 1, RUN // 2),
        (bound[3], SMALLEST_RUN),
    ):
        budget = Budget(limit, 2, lambda *stage: said.append(stage))
        assert budget.counting(*text, work) == run
        assert limit >= budget.estimate
        assert said[-1][0].startswith("at most ")
    for limit, place in ((bound[0] - 1, None), (bound[3] - 1, work)):
        with pytest.raises(InputError, match=r"expected room for .+ of memory to count n-grams, got a limit of"):
            Budget(limit, 2).counting(*text, place)


def test_more_of_anything_needs_more(resident):
    least = counting_bytes(1000, 10, 300, 3)
    for more in ((2000, 10, 300, 3), (1000, 20, 300, 3), (1000, 10, 600, 3), (1000, 10, 300, 4)):
        assert counting_bytes(*more) > least
    assert counting_bytes(1000, 10, 70_000, 3) > counting_bytes(1000, 10, 65_536, 3) + 2 * 1000 * 2 * 4
    rng = np.random.default_rng(0)
    tokens = np.append(0, np.append(rng.integers(1, 50, 5000), 0))
    counts, needs = count_ngrams(tokens, [0, 5001], 50, order=3), []
    for contexts in (("cache",), ("ngrams",), ("ngrams", "cache"), ("ngrams", "classes", "cache")):
        for network in ((), ("radial",), ("radial", "document"), ("radial", "block", "document")):
            sizes = {"bits": 16, "hidden_bits": 16, "radius": 2, "block_size": 4}
            needs.append(budgets.solving_bytes(counts, Recipe((*contexts, *network), 3, network=sizes)))
    assert (np.diff(np.reshape(needs, (4, 4)), axis=1) > 0).all()
    assert (np.diff(np.reshape(needs, (4, 4))[[0, 2, 3]], axis=0) >= 0).all()
    budget = Budget(LIBRARIES + needs[-1], 1)
    budget.solve(counts, Recipe((*contexts, *network), 3, network=sizes))
    with pytest.raises(InputError, match="of memory to solve, got a limit of"):
        Budget(LIBRARIES + needs[-1] - 1, 1).solve(counts, Recipe((*contexts, *network), 3, network=sizes))


def test_a_limit_does_not_show_in_the_result(place):
    counted = shards.count(texts(), place / "t", budget=Budget(1 << 40))
    assert counted.counts.digest == shards.count(texts(), place / "t").counts.digest
    corpus = Corpus.build(texts(), tokenizer=place / "t")
    for name, budget in {"free": None, "bound": Budget(1 << 40)}.items():
        WarmStartLM("potato").fit(corpus, budget=budget).save_pretrained(place / name)
    assert content(place / "free") == content(place / "bound")


def run(*words):
    return CliRunner().invoke(cli.app, [*map(str, words), "--json"])


def test_commands_show_the_bound_and_refuse(place):
    count = ["count", place / "text.txt", "--tokenizer", place / "t", "-o", place / "a.stats", "--order", 3]
    fit = ["fit", place / "text.txt", "-o", place / "model", "--preset", "potato", "--tokenizer", place / "t"]
    for words in (count, fit):
        result = run(*words, "--max-memory", "64G")
        assert result.exit_code == 0, result.output
        shown = json.loads(result.stdout)
        assert shown["peak_memory_bytes"] <= shown["estimated_memory_bytes"] < 64 * 2**30
        assert "of 64.0 GiB memory to count n-grams" in result.stderr
        assert "estimated_memory_bytes" not in json.loads(run(*words).stdout)
        for size, message in {
            "1M": "to count n-grams, got a limit of 1 MiB; count less text at once",
            "x": "max_memory",
        }.items():
            refused = run(*words, "--max-memory", size)
            assert isinstance(refused.exception, InputError)
            assert message in str(refused.exception)
    assert run(*fit, "--max-memory", "4G", "--cold", "--contexts", "radial").exit_code == 2


@pytest.mark.slow  # processes of their own, whose peak is measured
@pytest.mark.parametrize(("n", "workers"), [(40_000, 2)])
def test_the_bound_is_not_below_the_measured_peak(place, n, workers):
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(3000)])
    text = place / "long.txt"  # nearly all long n-grams are new
    text.write_text(
        "<|endoftext|>".join(" ".join(words[(3000 * rng.random(2000) ** 3).astype(int)]) for _ in range(n // 2000))
    )
    limit = ["--max-memory", "64G", "--workers", workers, "--json", "--quiet"]
    for command in (
        ["count", text, "--tokenizer", place / "t", "-o", place / "a.stats"],
        ["fit", text, "--tokenizer", "words", "-o", place / "model", "--preset", "micro"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "warmstart.cli", *map(str, [*command, *limit])],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        shown = json.loads(done.stdout)
        assert shown["tokens"] >= n
        assert shown["peak_memory_bytes"] <= shown["estimated_memory_bytes"]
