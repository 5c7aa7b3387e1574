"""The bench of what counts beside a decoder cost: its measurements on a small text, and its arithmetic by hand."""

import numpy as np
import pytest

from benchmarks import counted_costs as bench
from benchmarks.beside_decoders import prepare
from benchmarks.harness import Results
from warmstart.kneser_ney import KneserNey
from warmstart.ngrams import count_ngrams


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder as `prepare` makes it, of books of drawn words."""
    place, rng = tmp_path_factory.mktemp("costs"), np.random.default_rng(0)
    words = np.array([f"w{i:x}" for i in range(300)])
    (place / "classics").mkdir()
    for part, n in (("train", 30), ("valid", 4), ("test", 4)):
        books = [" ".join(words[(rng.zipf(1.5, 300) - 1).clip(max=299)]) for _ in range(n)]
        (place / "classics" / f"{part}.txt").write_text("\n\n".join(books), "utf-8")
    (place / "out").mkdir()
    prepare(str(place / "out"), place, "classics", 300, {bench.EXPERTS}, 1)
    return str(place / "out")


def test_every_cost_is_measured(folder):
    costs = bench.measure(folder, Results(None, "benchmarks.counted_costs"), quick=True)
    assert set(costs["training"]["seconds"]) == {bench.ALONE, bench.BESIDE, bench.TARGETS, bench.FUSED}
    assert costs["training"]["tokens"] == 4 * 63  # one step of four windows
    assert [row["tokens"] for row in costs["generation"]] == [bench.CALLS[1] * bench.NEW]
    assert set(costs["precomputation"]["seconds"]) == {"tables and gate", "probabilities", "rows"}
    assert bench.section(costs).count("\n| ") == 4 + 1 + 1 + 3  # rows and headers of three tables


def test_pruned_tables_are_smaller_and_say_what_the_model_says(folder):
    whole, pruned = (bench.tables(folder, prune) for prune in ((), (0, 0, 1)))
    valid, train = (bench.corpus_of(folder, part) for part in ("valid", "train"))
    counts = count_ngrams(train.tokens, train.documents, train.vocab_size, bench.ORDER)
    model = KneserNey(counts)
    assert whole["nats"] == pytest.approx(-model.log_probs(valid.tokens, valid.documents).mean())
    assert whole["ngrams"] == sum(level.last.size for level in counts.levels)
    assert all(pruned[name] < whole[name] for name in ("ngrams", "disk", "memory"))
    contexts = whole["ngrams"] - counts.levels[-1].last.size
    itemsize = model.last.itemsize
    assert whole["memory"] == whole["ngrams"] * (8 + itemsize) + contexts * (8 + 1) + 4 * (contexts + 1)


def test_ratios_are_those_of_the_turns():
    measured = {"seconds": {bench.ALONE: [1.0, 8.0, 3.0], bench.BESIDE: [2.0, 10.0, 4.0]}, "tokens": 60}
    assert bench.ratio(measured, bench.BESIDE) == 0.75  # the median of 0.5, 0.8 and 0.75
    assert bench.ratio(measured, bench.ALONE) == 1.0
    assert bench.speed(measured, bench.BESIDE) == 15.0


def test_turns_are_in_turn_and_the_first_warms_up():
    called = []
    seconds = bench.in_turns({name: lambda name=name: called.append(name) for name in "ab"}, 2)
    assert "".join(called) == "ababab"
    assert [len(values) for values in seconds.values()] == [2, 2]


ROW = {"mark": " †", "seconds": {bench.ALONE: [1.0], bench.BESIDE: [1.25]}, "tokens": 100}
COSTS = {
    "training": ROW,
    "generation": [{"batch": 8, "sampled": True, **ROW}],
    "tables": [
        {"prune": [], "ngrams": 10, "disk": 2**20, "memory": 2**21, "nats": 4.5, "mixed": 4.2, "mark": ""},
        {"prune": [0, 0, 1], "ngrams": 5, "disk": 2**19, "memory": 2**20, "nats": 4.6, "mixed": 4.25, "mark": ""},
    ],
    "precomputation": {
        "seconds": {"tables and gate": 1.0, "probabilities": 2.0, "rows": 3.0}, "tokens": 7000, "mark": ""
    },
}  # fmt: skip


def test_the_section_by_hand():
    lines = bench.section(COSTS).splitlines()
    assert f"| {bench.BESIDE} † | 80.0 | 0.80 | at least 0.9 |" in lines
    assert "| 8, sampled † | 100 | 80.0 | 0.80 | at least 0.8 |" in lines
    assert "| 0, 0, 1 | 5 | 0.500 | 1.00 | 4.600 | 4.250 | 0.050 |" in lines
