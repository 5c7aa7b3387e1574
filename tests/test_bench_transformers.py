"""Starts and arithmetic of the transformers bench; the runs themselves are too long for a test."""

import numpy as np
import pytest
import torch

from benchmarks import transformers as bench
from warmstart.counts import NGrams, count_pairs

V = 200
TOKENS = (np.random.default_rng(0).zipf(1.5, 150_000) * np.tile([1, 3, 7], 50_000)).cumsum() % V
PAIRS = count_pairs(TOKENS, V)
UNIGRAM, BIGRAM = NGrams(PAIRS.pairs.sum(axis=0), PAIRS.pairs).cross_entropies(TOKENS[:20_000])


def at_start(arch, arm):
    start = bench.build(arch, arm, 0, PAIRS)
    windows = torch.from_numpy(TOKENS[: 300 * 65].reshape(300, 65))
    with torch.no_grad():
        return start, float(start.nats(windows).float().mean())


@pytest.mark.parametrize("arch", bench.ARCHITECTURES)
@pytest.mark.parametrize("arm", bench.ARMS)
def test_every_start_knows_what_it_says(arch, arm):
    start, nats = at_start(arch, arm)
    low, high = {
        "default, tied": (np.log(V) - 0.1, np.log(V) + 0.2),
        "default, untied": (np.log(V) - 0.1, np.log(V) + 0.2),
        "log-unigram bias": (UNIGRAM - 0.1, UNIGRAM + 0.1),
        "mimetic + log-unigram bias": (UNIGRAM - 0.1, UNIGRAM + 0.2),
        "PPMI-SVD embedding + bias": (UNIGRAM - 0.1, UNIGRAM + 0.1),
        "cipher + explicit solution + bias": (BIGRAM, UNIGRAM - 0.02),
        "count-bigram table": (BIGRAM - 0.03, BIGRAM + 0.03),
        "spectral": (BIGRAM - 0.1, BIGRAM + 0.1),
        "spectral + heads": (BIGRAM - 0.1, BIGRAM + 0.15),
    }[arm]
    assert low < nats < high
    tied = start.model.lm_head.weight is start.model.get_input_embeddings().weight
    assert tied == (arm == "default, tied")


def test_a_run_is_made_of_its_seed_and_learns():
    runs = []
    for _ in range(2):
        start = bench.build("gpt2", "log-unigram bias", 0, PAIRS)
        runs.append(bench.train(start, (TOKENS, TOKENS[:4000]), 5e-3, 12))
    assert runs[0]["nats"] == runs[1]["nats"]
    assert runs[0]["steps"] == [0, 12]
    assert runs[0]["nats"][1] < runs[0]["nats"][0]


def run(*nats, made=1.0):
    return {"steps": [0, 300, 600], "nats": list(nats), "seconds": [0, 50, 100], "made": made, "parameters": 7}


ARMS = {
    **{name: {"rate": 0.005, "runs": [run(9.0, 6.0, 5.5)]} for name in bench.BLIND},
    "log-unigram bias": {"rate": 0.005, "runs": [run(7.0, 5.6, 5.1), run(7.0, 5.6, 5.3)]},
    **{name: {"rate": 0.005, "runs": [run(6.0, 5.4, 5.15)]} for name in bench.KNOWING},
    "spectral": {"rate": 0.005, "runs": [run(5.4, 5.3, 5.05)]},
    "spectral + heads": {"rate": 0.005, "runs": [run(5.4, 5.1, 4.9, made=2.0), run(5.4, 5.1, 5.0, made=4.0)]},
}


def test_marks_by_hand():
    found = bench.marks(ARMS, counting=1.0, stock=0.5)
    assert found["our best"] == "spectral + heads"
    assert found["best that knows unigrams at most"] == "log-unigram bias"
    assert found["gap to it"] == pytest.approx(5.2 - 4.95)
    assert found["share of steps to its end"] == pytest.approx((5.4 - 5.2) / 0.3 * 300 / 600)
    assert found["share of seconds, counting and solving included"] == pytest.approx((4 + 50 * 2 / 3) / 100)
    assert found["crossing"] == "none"
    assert found["gap to that"] == pytest.approx(5.15 - 4.95)
    assert found["counted and solved (s)"] == pytest.approx(4.0)
    assert found["of the run here"] == pytest.approx(0.04)
    assert found["of a run in float32"] == pytest.approx(4 / 300)
    assert bench.contenders(ARMS) == {"spectral", "spectral + heads", "log-unigram bias", bench.KNOWING[0]}


def test_the_large_shape_runs_on_any_device():
    text = type("Text", (), {"tokens": TOKENS, "vocab_size": V})()
    found = bench.large(text, text, "cpu", seconds=0.1, big=False)
    assert list(found) == ["default, untied", "spectral + heads"]
    assert found["spectral + heads"]["nats"][0] < found["default, untied"]["nats"][0]
