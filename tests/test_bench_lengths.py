"""The bench of lengths: every arm gives the same losses to the same sentences, and sees each once an epoch."""

import numpy as np
import pytest
import torch

from benchmarks import claims, lengths
from benchmarks.decoders import Start

pytest.importorskip("transformers", reason="needs warmstart[hf]")
RANDOM = np.random.default_rng(0)
SENTENCES = [np.array([0, *RANDOM.integers(1, 9, size=n), 0]) for n in RANDOM.integers(1, 12, size=60)]
TARGETS = sum(ids.size - 1 for ids in SENTENCES)


def first_epoch(arm, tokens):
    """Return the steps of an epoch; a step has at least `tokens`, so an epoch ends when too few are left."""
    made, seen, steps = lengths.steps(arm, SENTENCES, tokens, np.random.default_rng(1)), 0, []
    while seen + tokens + 12 < TARGETS:
        steps.append(next(made))
        seen += sum(int((batch.targets != lengths.IGNORED).sum()) for batch in steps[-1])
    return steps


@pytest.mark.parametrize("arm", lengths.ARMS)
def test_an_epoch_has_every_sentence_at_most_once_and_steps_of_equal_tokens(arm):
    steps = first_epoch(arm, 40)
    given = [[int((batch.targets != lengths.IGNORED).sum()) for batch in step] for step in steps]
    assert all(40 <= sum(step) < 52 for step in given)
    ids = np.concatenate([batch.targets[batch.targets != lengths.IGNORED] for step in steps for batch in step])
    every = np.bincount(np.concatenate([ids[1:] for ids in SENTENCES]), minlength=9)
    assert (np.bincount(ids, minlength=9) <= every).all()
    padding = sum(int((batch.targets == lengths.IGNORED).sum()) for step in steps for batch in step)
    assert (padding > 0) == arm.startswith("padded")
    if arm == lengths.ONE:
        assert max(map(len, steps)) > 1
        assert all((batch.inputs[:, 1:] != 0).all() for step in steps for batch in step)


def test_the_border_mask_makes_a_window_of_sentences_the_sentences():
    start = Start.random("gpt2", 0, 9, lengths.SHAPE, attn_implementation="eager")
    stream = np.concatenate([*(ids[:-1] for ids in SENTENCES[:4]), [0]])
    with torch.no_grad():
        alone = sum(lengths.losses(start, lengths.padded([ids], 12)) for ids in SENTENCES[:4])
        masked, plain = (
            lengths.losses(start, lengths.windows(stream, stream.size - 1, separator)) for separator in (0, None)
        )
    assert float(masked) == pytest.approx(float(alone), rel=1e-5)
    assert abs(float(plain) - float(alone)) > 1e-3


def test_the_section_says_what_the_verdict_needs():
    def row(arm, nats, seconds):
        run = {"nats": nats, "test": nats, "seconds": seconds, "tokens": 1000, "padding": 0.5, "passes": 1.0}
        return {"arm": arm, "rate": 0.01, "runs": [run, run]}

    values = [(4.2, 10.0), (4.1, 11.0), (4.0, 30.0), (4.0, 20.0), (3.9, 12.0)]
    conclusion, body = lengths.section([row(arm, *value) for arm, value in zip(lengths.ARMS, values, strict=True)])
    claim = next(claim for claim in claims.CLAIMS if claim.section == "lengths")
    assert claims.verdict(claim, conclusion)[0] == claims.HOLDS
    assert "| lengths as they come | 0.01 | 3.900 ± 0.000 |" in body
    values[-1] = (4.3, 40.0)
    conclusion, _ = lengths.section([row(arm, *value) for arm, value in zip(lengths.ARMS, values, strict=True)])
    assert claims.verdict(claim, conclusion)[0] == claims.FAILS
