"""The bench of image and text: its captions, and a section from made results."""

import numpy as np
import pytest

from benchmarks import claims, mixed


def test_captions_are_as_noisy_as_said():
    digits = np.random.default_rng(0).integers(10, size=5000)
    said = mixed.captions(digits, 0.3, np.random.default_rng(1))
    words = [set(text.split()) for text in said]
    right = np.mean([mixed.NAMES[digit] in text for digit, text in zip(digits, words, strict=True)])
    named = np.mean([bool(text & set(mixed.NAMES)) for text in words])
    intact = 1 - mixed.MISTYPED * 25 / 26  # the wrong letter can be the right one
    assert named == pytest.approx((1 - mixed.UNNAMED) * intact, abs=0.02)
    assert right == pytest.approx((1 - mixed.UNNAMED - 0.3) * intact, abs=0.02)


def test_every_seed_has_its_own_images_and_test_images_stay():
    X = np.arange(40.0).reshape(20, 2)
    images = X, np.arange(20) % 10, X[:5] + 100, np.arange(5)
    sizes = {"train": 10, "valid": 4}
    (pixels, words), labels = mixed.inputs(sizes, 0.1, 0, lambda: images)
    assert [part.shape[0] for part in pixels] == [part.shape[0] for part in words] == [10, 4, 5]
    assert [part.tolist() for part in labels] == [(part[:, 0] / 2 % 10).tolist() for part in pixels[:2]] + [
        [0, 1, 2, 3, 4]
    ]
    other = mixed.inputs(sizes, 0.1, 1, lambda: images)[0][0]
    assert not np.array_equal(other[0], pixels[0])
    assert np.array_equal(other[2], pixels[2])


def test_the_section_says_what_the_verdict_needs():
    def row(name, wrong, nats):
        run = {"accuracy": 1 - nats, "cross_entropy": nats, "setting": 1.0, "temperatures": [0.1]}
        return {"arm": name, "wrong": wrong, "setting": "smoothing", "runs": [run] * 2, "mark": ""}

    nats = dict(zip(mixed.ARMS, (0.2, 0.4, 0.21, 0.5, 0.3, 0.1, 0.25, 0.31), strict=True))
    rows = [row(name, wrong, value) for wrong in mixed.WRONG for name, value in nats.items()]
    conclusion, body = mixed.section(rows)
    claim = next(claim for claim in claims.CLAIMS if claim.section == "mixed")
    word, why = claims.verdict(claim, conclusion)
    assert word == claims.PARTLY
    assert "in 2 of 2 cases with a temperature for each kind, in 0 with one for both" in why
    assert "logistic regression in 0" in why
    assert f"| {mixed.GROUPED} | 0.800 ± 0.000 | 0.200 ± 0.000 |" in body
