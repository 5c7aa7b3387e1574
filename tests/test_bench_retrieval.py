"""The retrieval bench: its texts, its loss by hand, its reads against the rules, the bound of the closed form."""

import pytest
import torch

from benchmarks import retrieval
from warmstart.memory import delta_rule, softmax_attention, sum_normalise, sum_rule


def test_texts_of_setting_1_write_every_key_and_value_once():
    keys, values, right = retrieval.draw(1, 7, 5, torch.Generator().manual_seed(0))
    for k, v, r in zip(keys.tolist(), values.tolist(), right.tolist(), strict=True):
        assert sorted(k) == sorted(v) == list(range(7))
        assert [r[key] for key in k] == v


def test_texts_of_setting_2_keep_the_last_write():
    keys, values, right = retrieval.draw(2, 9, 50, torch.Generator().manual_seed(0))
    assert keys.shape == (50, 18)
    absent = 0
    for k, v, r in zip(keys.tolist(), values.tolist(), right.tolist(), strict=True):
        last = dict(zip(k, v, strict=True))
        assert r == [last.get(key, -1) for key in range(9)]
        absent += 9 - len(last)
    assert 0 < absent < 50 * 9 / 4  # a share of about exp(-2) is never written


def test_the_loss_is_half_the_squared_distance():
    reads = torch.randn(4, 3, 6, dtype=torch.float64)
    right = torch.randint(6, (4, 3))
    expected = (reads - torch.nn.functional.one_hot(right, 6)).square().sum(-1) / 2
    torch.testing.assert_close(retrieval.loss(reads, right), expected)
    assert retrieval.loss(torch.zeros(1, 6), torch.tensor([2])).item() == 0.5


@pytest.mark.parametrize("rule", ["sum", "delta", "softmax"])
def test_the_read_is_that_of_the_update_rules(rule):
    q, k = torch.rand(2, 3, 70, 8, dtype=torch.float64)
    q, k = q[:, :5], k - 0.3 * (rule == "softmax")
    beta = torch.rand(3, 70, 1, dtype=torch.float64)
    v = torch.eye(70, dtype=torch.float64).expand(3, 1, 70, 70)  # a value for each write: the read is its weight
    weights = retrieval.write_weights(q, k, beta, rule)
    for i in range(5):
        asked = q[:, None, i : i + 1].expand(3, 1, 70, 8)
        if rule == "sum":
            expected = sum_rule(asked, k[:, None], v)[0]
        elif rule == "delta":
            expected = delta_rule(sum_normalise(asked), sum_normalise(k)[:, None], v, beta[:, None, :, 0])[0]
        else:
            expected = softmax_attention(asked, k[:, None], v)
        torch.testing.assert_close(weights[:, i], expected[:, 0, -1], rtol=0, atol=1e-10)


def test_the_delta_rule_learns_to_forget_and_the_sum_does_not():
    settings = retrieval.SETTINGS | {"steps": 200}
    delta, total = (retrieval.train(2, "DPFP-1", rule, 10, 0, settings) for rule in ("delta", "sum"))
    assert delta["steps"] == total["steps"] == 200
    assert delta["loss"] < 0.06 < total["loss"]


@pytest.mark.parametrize(("name", "d_phi"), [("ELU+1", 64), ("DPFP-1", 128), ("DPFP-2", 256)])
def test_fixed_keys_are_exact_up_to_the_features_and_not_beyond(name, d_phi):
    within, beyond = retrieval.fixed(name, d_phi // 2), retrieval.fixed(name, 2 * d_phi)
    assert within["d_phi"] == d_phi
    assert within["best memory"] < 1e-12
    assert beyond["best memory"] == pytest.approx(0.25)  # (1 - d_phi / S) / 2
    assert within["delta, 30 passes"] < within["sum"]


def test_training_ends_when_its_keys_are_solved_or_without_progress():
    solved = retrieval.train(1, "softmax", "softmax", 20, 0, retrieval.SETTINGS | {"steps": 3000})
    assert solved["loss"] <= retrieval.SOLVED
    assert solved["steps"] < 3000
    still = retrieval.SETTINGS | {"steps": 3000, "rate": 1e-12, "evaluations without progress": 1}
    assert retrieval.train(1, "ELU+1", "sum", 20, 0, still)["steps"] < 3000
