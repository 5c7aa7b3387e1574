"""The arithmetic of the fine-tuning bench; the runs themselves are too long for a test."""

import pytest

from benchmarks.finetune import _ends, _lead


def run(*nats):
    return {"tokens": [0, 1_000_000, 5_000_000], "nats": list(nats), "test_perplexity": 50.0}


CASE = {
    "warm": run(5.0, 4.5, 4.0),
    "third": run(5.0, 4.4, 4.1),
    "cold": [run(8.0, 4.9, 4.1), run(9.0, 4.7, 4.3), run(8.0, 4.8, 4.2)],
    "best": {"warm": 0.6, "cold": 1.2},
    "sweep": {"warm": {"0.6": 4.6, "1.2": 4.7}, "cold": {"0.6": 5.3, "1.2": 5.1}},
}


def test_ends_by_hand():
    name, start, warm, cold, seeds, gap, *_ = _ends("case", CASE)
    assert (name, start, warm, cold, seeds) == ("case", 5.0, 4.0, "4.200 ± 0.100", 3)
    assert gap == pytest.approx(0.2)


def test_lead_by_hand():
    _, short, at_1, at_2, at_4, least, third, caught, share, crossing = _lead("case", CASE)
    assert short == pytest.approx(0.5)
    assert (at_1, at_2, at_4) == pytest.approx((0.3, 0.275, 0.225))
    assert least == pytest.approx(0.1)
    assert third == pytest.approx(0.1)
    mean = (3.0 / 3.1 + 4.0 / 4.3 + 3.0 / 3.2) / 3  # million tokens at which each seed is at 5.0
    assert caught == f"{mean:.2f} M"
    assert share == f"{(1 + 4 * 0.3 / 0.5) / 5:.2f}"
    assert crossing == "none"
