"""Arms and arithmetic of the mixers bench; the runs themselves are too long for a test."""

import numpy as np
import pytest
import torch

from benchmarks import mixers, transformers
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
        nats = transformers.score(arm, TOKENS, 20, mixers.CONTEXT + 1)
        low, high = (BIGRAM - 0.1, BIGRAM + 0.15) if start == "warm" else (np.log(V) - 0.1, np.log(V) + 0.4)
        assert low < nats < high
        sizes.add(arm.n_parameters)
    assert len(sizes) == 1


def test_arms_are_of_one_size():
    sizes = [mixers.build(mixer, "cold", 0, PAIRS).n_parameters for mixer in mixers.MIXERS]
    assert max(sizes) / min(sizes) < 1.03


def test_a_run_learns():
    arm = mixers.build("delta rule", "warm", 0, PAIRS)
    found = transformers.train(arm, (TOKENS, TOKENS[:4000]), 5e-3, 4, shape=(2, 64), every=2)
    assert found["steps"] == [0, 2, 4]
    assert torch.isfinite(torch.tensor(found["nats"])).all()
    assert any(p.abs().max() > 0 for p in arm.model.transformer.h[2].attn.memory.output.parameters())


def arm_of(*nats, seconds=100.0, made=5.0):
    """An arm of two seeds; the second ends 0.2 higher."""
    one = {"steps": [0, 1000, 2000], "seconds": [0.0, 50.0, seconds], "made": made, "parameters": 7}
    runs = [one | {"nats": [n + up for n in nats], "test": nats[-1] + 0.1 + up} for up in (-0.1, 0.1)]
    return {"rate": 0.005, "runs": runs}


@pytest.mark.parametrize("lowest", [0.1, 0.5, 1.0, 2.0, 3.0])
def test_a_rate_is_halved_or_doubled_until_there_is_a_worse_one_on_either_side(lowest):
    ends = mixers.climb(lambda rate: abs(np.log(rate / lowest)), 1.0)
    best = min(ends, key=ends.get)
    assert abs(np.log2(best / lowest)) < 0.5
    assert sorted(ends) == [2.0**i for i in range(round(np.log2(min(ends))), round(np.log2(max(ends))) + 1)]
    assert min(ends) < best < max(ends)


def test_rows_by_hand():
    arm = arm_of(9.0, 6.0, 5.0)
    assert mixers.row("delta rule, cold", arm, 3.0)[-2:] == ["5.100 ± 0.141", "100"]
    name, parameters, rate, *nats, _, seconds = mixers.row("delta rule, warm", arm, 3.0)
    assert (name, parameters, rate, seconds) == ("delta rule, warm", 7, "0.005", "108")
    assert nats[:2] == [pytest.approx(9.0), pytest.approx(9 - 3 * 500_000 / (1000 * mixers.STEP))]
    assert nats[-1] == pytest.approx(6 - (5_000_000 - 1000 * mixers.STEP) / (1000 * mixers.STEP))


def test_gains_by_hand():
    arms = {f"{mixer}, {start}": arm_of(*nats) for mixer in mixers.MIXERS
            for start, nats in (("cold", (9.0, 6.0, 5.0)), ("warm", (5.6, 5.2, 4.6)))}  # fmt: skip
    arms["TTT linear, warm"] = arm_of(9.0, 6.0, 5.5)
    *found, worse = mixers.gains(arms)
    assert [row[1] for row in found] == ["0.400 ± 0.000"] * 3
    assert [row[2] for row in found] == pytest.approx([(1000 + 1000 * 0.2 / 0.6) / 2000] * 3)
    assert worse == ["TTT linear", "-0.500 ± 0.000", None]


def test_the_section_has_every_arm(tmp_path):
    arms = {", ".join(arm): arm_of(9.0, 6.0, 5.0) for arm in mixers.ARMS}
    mixers._write({"counting": 1.0, "unigram": 6.4, "bigram": 4.7, "arms": arms}, tmp_path)
    text = (tmp_path / "benchmarks.md").read_text()
    assert all(f"| {name} | 7 | 0.005 | 9.000 |" in text for name in arms)
    assert (tmp_path / "images" / "mixers.png").stat().st_size > 1000
