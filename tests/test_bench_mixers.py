"""Arms and arithmetic of the mixers bench; the runs themselves are too long for a test."""

import numpy as np
import pytest
import torch

from benchmarks import mixers
from benchmarks.harness import Results
from warmstart.counts import NGrams, count_pairs

V = 200
TOKENS = (np.random.default_rng(0).zipf(1.5, 150_000) * np.tile([1, 3, 7], 50_000)).cumsum() % V
PAIRS = count_pairs(TOKENS, V)
_, BIGRAM = NGrams(PAIRS.pairs.sum(axis=0), PAIRS.pairs).cross_entropies(TOKENS[:20_000])


@pytest.mark.parametrize("mixer", mixers.MIXERS)
def test_cold_knows_nothing_and_warm_the_bigrams(mixer):
    sizes = set()
    for start in mixers.STARTS:
        arm = mixers.build(mixer, start, 0, PAIRS)
        windows = torch.from_numpy(TOKENS[: 20 * 257].reshape(20, 257))
        with torch.no_grad():
            loss = float(arm.losses(windows).float().mean())
        low, high = (BIGRAM - 0.1, BIGRAM + 0.15) if start == "warm" else (np.log(V) - 0.1, np.log(V) + 0.4)
        assert low < loss < high
        sizes.add(arm.n_parameters)
    assert len(sizes) == 1


def test_arms_are_of_one_size():
    sizes = [mixers.build(mixer, "cold", 0, PAIRS).n_parameters for mixer in mixers.MIXERS]
    assert max(sizes) / min(sizes) < 1.03


def arm_of(*losses):
    """An arm of two seeds; the second ends 0.2 higher."""
    one = {"steps": [0, 1000, 2000], "seconds": [0.0, 50.0, 100.0], "made": 5.0, "parameters": 7}
    runs = [one | {"nats": [n + up for n in losses], "test": losses[-1] + 0.1 + up} for up in (-0.1, 0.1)]
    return {"rate": 0.005, "runs": runs, "mark": " †"}


def test_gains_and_rows_by_hand(tmp_path):
    arms = {(mixer, start): arm_of(*losses) for mixer in mixers.MIXERS
            for start, losses in (("cold", (9.0, 6.0, 5.0)), ("warm", (5.6, 5.2, 4.6)))}  # fmt: skip
    arms["TTT linear", "warm"] = arm_of(9.0, 6.0, 5.5)
    *better, worse = mixers.gains(arms)
    assert [row[1] for row in better] == ["0.400 ± 0.000"] * 3
    assert [row[2] for row in better] == pytest.approx([(1000 + 1000 * 0.2 / 0.6) / 2000] * 3)
    assert worse == ["TTT linear †", "-0.500 ± 0.000", None]
    mixers.write(arms, 6.4, 4.7, tmp_path, Results(None, "benchmarks.mixers"))
    text = (tmp_path / "benchmarks.md").read_text()
    assert "| delta rule, cold † | 7 | 0.005 | 9.000 |" in text
    assert "| 5.100 ± 0.141 | 105 |" in text
    assert (tmp_path / "images" / "mixers.png").stat().st_size > 1000
