"""Starts and arithmetic of the transformers bench; the runs themselves are too long for a test."""

from functools import partial

import numpy as np
import pytest
import torch

from benchmarks import decoders
from benchmarks import transformers as bench
from warmstart.counts import NGrams, PairStatistics
from warmstart.ngrams import count_ngrams

V = 200
TOKENS = (np.random.default_rng(0).zipf(1.5, 150_000) * np.tile([1, 3, 7], 50_000)).cumsum() % V
TOKENS[-1] = TOKENS[0]
COUNTS = count_ngrams(TOKENS, np.array([0, TOKENS.size - 1]), V, order=2)
PAIRS = PairStatistics.of(COUNTS)
UNIGRAM, BIGRAM = NGrams(PAIRS.pairs.sum(axis=0), PAIRS.pairs).cross_entropies(TOKENS[:20_000])


def at_start(arch, arm):
    start = bench.build(arch, arm, 0, PAIRS)
    windows = torch.from_numpy(TOKENS[: 300 * 65].reshape(300, 65))
    with torch.no_grad():
        return start, float(start.losses(windows).float().mean())


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


def test_a_run_is_made_of_its_seed_and_learns(tmp_path):
    for name, ids in (("train", TOKENS), ("valid", TOKENS[:4000])):
        np.save(tmp_path / f"{name}.npy", ids)
    COUNTS.save(tmp_path / "pairs.safetensors")
    build = partial(bench.build, "gpt2", "log-unigram bias", 0)
    runs = [
        decoders.train_start(str(tmp_path), build, 0, 5e-3, bench.KEEPING, bench.SHAPE, 12, (0, 12)) for _ in range(2)
    ]
    assert runs[0]["nats"] == runs[1]["nats"]
    assert runs[0]["steps"] == [0, 12]
    assert runs[0]["nats"][1] < runs[0]["nats"][0]


def arm(*losses):
    common = {"steps": [0, 300, 600], "seconds": [0, 50, 100], "made": 2.0, "parameters": 7}
    runs = [common | {"nats": list(values)} for values in losses]
    return {"rate": 0.005, "runs": runs, "recipe": "usual", "mark": ""}


ARMS = {
    **{name: arm((9.0, 6.0, 5.5)) for name in bench.BLIND},
    "log-unigram bias": arm((7.0, 5.6, 5.1), (7.0, 5.6, 5.3)),
    **{name: arm((6.0, 5.4, 5.15)) for name in bench.KNOWING},
    "spectral": arm((5.4, 5.3, 5.05)),
    "spectral + heads": arm((5.4, 5.45, 4.9), (5.4, 5.1, 5.0)),
}


def test_marks_by_hand():
    marks = bench.marks(ARMS)
    assert marks["our best"] == "spectral + heads"
    assert marks["best start that knows unigrams at most"] == "log-unigram bias"
    assert marks["lead over it at the end"] == "0.250"  # 5.2 - 4.95
    mean = (5.4, 5.275, 4.95)
    assert marks["share of the steps after which ours is at its end"] == pytest.approx(
        (300 + 300 * (mean[1] - 5.2) / (mean[1] - mean[2])) / 600
    )
    assert marks["step at which the curves cross"] == "none"
    assert marks["lead over that at the end"] == "0.200"  # 5.15 - 4.95
    assert bench.highest_rise(ARMS["spectral + heads"]) == pytest.approx(0.05)
