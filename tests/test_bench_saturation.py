"""The bench of saturation: which experts have enough, and a plan from a few invented runs, checked by hand."""

import lzma
import math

import pytest

from benchmarks import plan, render
from benchmarks import saturation as bench
from benchmarks import saturation_section as section
from warmstart.levels import MOST
from warmstart.spill import RUN


def run(tokens, loss, **more):
    """A run whose n-grams of 2 tokens grow as the root, those of 3 tokens as the text."""
    own = {"mixture": loss, "ngrams": loss, "classes": loss, "cache": 6.0, "network": 4.5, "unigram": 6.5}
    seconds = {"count": 1e-6 * tokens, "merge": 2e-8 * tokens, "files": 1.0, "solve": 60 + 1e-5 * tokens, "load": 1.0}
    ngrams = [1000, round(10 * math.sqrt(tokens)), tokens // 4]
    memory = {"before": 100, "count": 200, "files": 300, "merge": 100 + 10 * tokens, "solve": 100 + 20 * tokens}
    sizes = {"statistic_bytes": 4 * tokens, "model_bytes": 8 * tokens, "scored": 1000, "documents": 3}
    return {"tokens": tokens, "nats": own, "seconds": seconds, "ngrams": ngrams, **sizes} | {
        "memory": memory | {"load": memory["solve"]}, **more
    }  # fmt: skip


ROWS = [run(1_000_000 * 2**i, 5.0 - 0.1 * i, mark="") for i in range(4)]
COSTS = plan.Costs.of(ROWS, {"tokens": 10**6, "seconds": 2.0})


def test_what_has_enough_and_what_gains():
    assert [section.enough(ROWS, expert) for expert in ("n-grams", "cache")] == [None, 1_000_000]
    steps = [run(1_000_000 * 2**i, loss) for i, loss in enumerate((5.0, 4.99, 5.2, 5.01, 5.0))]
    assert section.enough(steps, "n-grams") == 8_000_000  # nothing after it is farther away than NEAR
    conclusion, body = (" ".join(text.split()) for text in section.section(ROWS))
    assert "cache from 1.0 M tokens on, network from 1.0 M tokens on, unigram from 1.0 M tokens on" in conclusion
    assert "still gives, in nats: mixture 0.100, n-grams 0.100, classes 0.100." in conclusion
    assert "| 1,000,000 | 3 | 5.000 | 5.000 | 5.000 | 6.000 | 4.500 | 6.500 |" in body
    assert "From 1.0 M tokens to all 8.0 M the gain in nats is: mixture 0.300" in body


def test_growth_is_fitted_to_large_runs_and_bounded_by_what_exists():
    (_, b2), (_, b3) = COSTS.growth
    assert (b2, b3) == (pytest.approx(0.5, abs=1e-3), pytest.approx(1, abs=1e-6))
    assert COSTS.predicted == pytest.approx((0, 0), abs=1e-3)
    assert COSTS.ngrams(4e6) == pytest.approx([20_000, 1e6], rel=1e-3)
    assert COSTS.ngrams(1e15) == [1000.0**2, 1000.0**3]
    small = [run(100_000, 1.0, ngrams=[1000, 1, 1]), *ROWS]
    assert plan.Costs.of(small, COSTS.tokenized).growth == COSTS.growth
    assert COSTS.limit() == math.inf  # 1,000 tokens have fewer trigrams
    more = [row | {"ngrams": [8192, *row["ngrams"][1:]]} for row in ROWS]
    assert plan.Costs.of(more, COSTS.tokenized).limit() == pytest.approx(4 * MOST, rel=1e-3)


def test_time_of_the_stages():
    tokens = 8.0 * RUN
    one, many = COSTS.seconds(tokens, 1), COSTS.seconds(tokens, 16)
    assert one["tokenize"] == pytest.approx(tokens * 2e-6 / plan.CORES)
    assert one["count"] == pytest.approx(tokens * 1e-6 / plan.CORES) == pytest.approx(16 * many["count"])
    assert one["solve"] == many["solve"] == pytest.approx(60 + 1e-5 * tokens)
    # three levels of merges, all with fewer merges than cores: the sums have 2, 4 and 8 runs
    m = ROWS[-1]["seconds"]["merge"] / sum(ROWS[-1]["ngrams"][1:])
    expected = sum(sum(COSTS.ngrams(k * RUN)) for k in (2, 4, 8))
    assert one["merge"] == pytest.approx(m * expected)
    files = 1.0 / sum(ROWS[-1]["ngrams"][1:])  # the sums of 16 machines are written and read
    assert many["merge"] == pytest.approx((m + files) * expected)
    # 64 runs on 16 cores: the 32 merges of the first level take two turns
    turns = {2: 2, 4: 1, 8: 1, 16: 1, 32: 1, 64: 1}
    expected = m * sum(n * sum(COSTS.ngrams(k * RUN)) for k, n in turns.items())
    assert COSTS.seconds(64.0 * RUN, 1)["merge"] == pytest.approx(expected)


def test_memory_is_what_was_measured_at_the_measured_size():
    for row in ROWS[-1:]:
        assert COSTS.memory("solve", row["tokens"]) == pytest.approx(20 * row["tokens"], rel=1e-2)
    assert COSTS.memory("merge", 1e9) < COSTS.memory("solve", 1e9)


def test_the_page_has_the_tables(tmp_path):
    text = COSTS.section()
    assert "| tokenize | 500,000 | 2.00 | - |" in text
    assert "| 3 | 1.000 | 2,000,000 | +0.0 |" in text
    assert len([line for line in text.splitlines() if " G | " in line]) == len(plan.TOKENS) * len(plan.MACHINES)
    (tmp_path / "scale.md").write_text("# Scale\n\nText.\n")
    for _ in range(2):
        render.insert(tmp_path / "scale.md", "plan", text)
    page = (tmp_path / "scale.md").read_text()
    assert page.startswith("# Scale\n\nText.\n\n<!-- plan -->\n## A plan")
    assert page.count("<!-- plan -->") == page.count("<!-- /plan -->") == 1


@pytest.mark.slow  # two models are counted and solved
def test_a_quick_run_measures_two_shares(tmp_path):
    (tmp_path / "classics").mkdir()
    lines = [f"the {a} saw the {b} and then the {a} ran" for a in ("cat", "dog", "cow") for b in ("man", "boy", "girl")]
    with lzma.open(tmp_path / "classics" / "train.txt.xz", "wt") as file:
        file.write("\n".join(f"{line} {i}" for i, line in enumerate(lines * 20)))
    (tmp_path / "classics" / "valid.txt").write_text("\n".join(lines))
    found = bench.run(tmp_path, tmp_path / "docs", quick=True)
    half, whole = found["shares"]
    assert 0 < half["documents"] < whole["documents"] == 180
    assert half["tokens"] < whole["tokens"]
    assert {"mixture", "ngrams", "cache", "network", "unigram"} <= set(whole["nats"])
    assert all(value > 0 for value in whole["seconds"].values())
    assert not (tmp_path / "docs").exists()
