"""The fine-tuning bench: its arithmetic by hand, the log-unigram start, and that arms differ in nothing else."""

import numpy as np
import pytest

from benchmarks import finetune as bench
from warmstart.near_shallow import Config, NearShallowModel


def arm(*runs, third=()):
    whole = [{"tokens": [0, 1_000_000, 5_000_000], "nats": list(r), "test_nats": np.log(50.0)} for r in runs]
    return {"runs": whole, "third": third, "rates": dict.fromkeys(bench.GROUPS, 0.03), "mark": ""}


CASE = {
    "warm": arm((5.0, 4.5, 4.0), third=[{"nats": [5.0, 4.1]}]),
    "cold": arm((8.0, 4.9, 4.1), (9.0, 4.7, 4.3), (8.0, 4.8, 4.2)),
    "cold + log-unigram": arm((6.5, 5.5, 4.4)),
}


def test_ends_by_hand():
    warm, cold = (bench.row_of_ends(name, CASE[name]) for name in ("warm", "cold"))
    assert warm[:4] == ["warm", "5.000", "4.000", pytest.approx(50.0)]
    assert cold[:3] == ["cold", "8.333", "4.200 ± 0.100"]
    assert bench.gap(CASE) == pytest.approx(0.2)


def test_lead_by_hand():
    name, better, *leads, end, least, third, caught, share, crossing = bench.row_of_leads("case", CASE)
    assert (name, better, leads) == ("case", "cold", ["0.300", "0.275", "0.225"])
    assert (end, least, third, crossing) == ("0.200", "0.100", "0.100", "none")
    mean = (3.0 / 3.1 + 4.0 / 4.3 + 3.0 / 3.2) / 3  # million tokens at which each seed is at 5.0
    assert caught == f"{mean:.2f} M"
    assert share == f"{(1 + 4 * 0.3 / 0.5) / 5:.2f}"


def test_log_unigram_is_added_to_the_logits_and_to_nothing_else():
    config = Config(5, 0, bits=4, hidden_bits=3, block_size=2, contexts=bench.CONTEXTS)
    rng = np.random.default_rng(0)
    before = {name: rng.random(shape).astype(np.float32) for name, shape in config.shapes.items()}
    model = NearShallowModel(config, {name: array.copy() for name, array in before.items()})
    counts = np.array([4, 3, 2, 1, 1])
    bench.add_log_unigram(model, counts)
    x = np.concatenate([rng.random(2 * 4), rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3))])
    added = x @ (model.arrays["output.weight"] - before["output.weight"])
    np.testing.assert_allclose(added, np.log(counts / counts.sum()), rtol=1e-5)
    assert all(np.array_equal(model.arrays[name], before[name]) for name in before if name != "output.weight")


def test_cold_and_warm_arms_train_the_same_groups():
    rates = {"embedding": 0.1, "middle": 0.2, "output": 0.3}
    frozen, thaw = bench.phases(("frozen", "thaw"), rates, 1000)
    (cold,) = bench.phases(("thaw",), rates, 1000)
    assert dict(thaw.rates) == dict(cold.rates) == rates
    assert (set(frozen.rates), frozen.tokens) == ({"middle", "output"}, 20)
