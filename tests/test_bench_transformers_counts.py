"""Arms and arithmetic of the bench of transformers beside counts; the runs themselves are too long for a test."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from benchmarks import beside_decoders, decoders, mixed_attention
from benchmarks import transformers_counts as bench
from warmstart.gate import FLOOR, Gate, with_share


def run(*losses, alone=None, test=5.0):
    extra = {} if alone is None else {"alone": list(alone)}
    return {"steps": [0, 300, 600], "nats": list(losses), "test": test, **extra}


def test_marks_by_hand_and_missing_runs_are_dashes():
    arms = {
        "n-grams and cache, warm": {"runs": [run(5, 4.3, 4.1), run(5, 4.3, 4.2)]},
        "n-grams and cache, cold": {"runs": [run(5, 4.3, 4.25)]},
    }
    long = {name: run(5, 4.5, end) for name, end in (("cold", 4.7), ("warm", 4.6), ("n-grams and cache, warm", 4.0))}
    shown = {what: figure for what, figure, _ in bench.marks(arms, long)}
    assert shown["600 steps, n-grams and cache beside it"] == "4.150"
    assert shown["600 steps, what the start adds beside n-grams and cache"] == "0.100"
    assert shown["2,400 steps, lead of n-grams and cache over the best start alone"] == "0.600"
    assert shown["2,400 steps, what the start adds beside n-grams and cache"] == "-"
    assert shown["600 steps, counted targets, a plain model"] == "-"


def test_a_row_has_the_decoder_by_itself_and_the_test_text():
    arm = {"runs": [run(5, 4.5, 4.4, alone=(6, 5, 4.9)), run(5, 4.5, 4.6, alone=(6, 5, 5.1), test=5.2)], "share": 0.5}
    row = bench.row("name", arm | {"mark": ""})
    assert row == ["name, 0.5 of the rate", "5.000", "4.833", "4.667", "4.500 ± 0.141", "5.000", "5.100 ± 0.141"]


def test_every_run_has_a_key_of_its_own():
    keys = [str(bench.Bench("", None, quick=False).key(name)) for name in bench.ARMS]
    assert len(set(keys)) == len(bench.ARMS)
    assert set(bench.LONG) | set(bench.QUICK) | bench.SEVERAL <= set(bench.ARMS)


def test_the_decoder_gets_its_share_and_the_unigram_model_keeps_its_floor():
    gate = with_share(Gate((2,), np.array([[0.9, 0.1], [0.99, 0.01]])), 0.1)
    assert gate.weights[0] == pytest.approx([0.81, 0.1, 0.09])
    assert gate.weights[1, -1] == FLOOR
    assert gate.weights.sum(axis=1) == pytest.approx([1, 1])


def test_brackets_are_nested():
    windows = beside_decoders.brackets(torch.zeros(4, 200), seed=1).numpy()
    for window in windows:
        stack = []
        for token in window:
            if token < beside_decoders.PAIRS:
                stack.append(token)
            else:
                assert stack.pop() == token - beside_decoders.PAIRS


@pytest.mark.parametrize("size", [1, 5, 8])
def test_scores_are_mixed_by_age(size):
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, size, 4, generator=rng) for _ in range(3))
    layer, W = torch.nn.Module(), torch.randn(8, 8, generator=rng)
    layer.mix = torch.nn.Parameter(W)
    out, _ = mixed_attention.attend(layer, q, k, v, None)
    for i in range(size):  # by the formula, one position at a time
        by_age = (q[:, :, i, None] @ k[:, :, : i + 1].flip(2).mT)[:, :, 0] / 2
        attention = (by_age @ W[: i + 1, : i + 1]).softmax(-1)
        assert torch.allclose(out[:, i], (attention[:, :, None] @ v[:, :, : i + 1].flip(2))[:, :, 0], atol=1e-5)


def test_a_mixed_model_with_the_identity_is_the_model():
    shape = {"width": 16, "layers": 2, "heads": 2, "context": 8}
    start = decoders.Start.random("gpt2", 0, 20, shape, attn_implementation="eager")
    ids = torch.randint(0, 20, (2, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = start.model(ids).logits
        mixed_attention.mix(start.model, torch.zeros(8, 8))
        assert torch.allclose(start.model(ids).logits, before, atol=1e-5)
    functional.cross_entropy(start.model(ids).logits.flatten(0, 1), ids.flatten()).backward()
    assert start.model.transformer.h[0].attn.mix.grad.abs().sum() > 0
