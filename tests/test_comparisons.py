"""Cached comparisons of frozen vectors against their inner products."""

import numpy as np
import pytest
import torch

from warmstart.layers import comparisons
from warmstart.layers.comparisons import Comparisons
from warmstart.near_shallow import cipher_vectors

V, BITS = 90, 70


def cipher():
    return torch.from_numpy(cipher_vectors(V, BITS).toarray())


def normal(vocab_size=V):
    return torch.randn(vocab_size, BITS, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize(
    ("weight", "table", "kind"),
    [
        (cipher, V, "table"),
        (cipher, V - 1, "popcount"),
        (normal, V, "table"),
        (normal, 30, "bounded"),
        (normal, 1, "bounded"),
    ],
)
def test_lookups_are_the_products(monkeypatch, shape, weight, table, kind):
    monkeypatch.setattr(comparisons, "TABLE_TOKENS", table)
    E = weight()
    rng = np.random.default_rng(1)
    pivots = torch.from_numpy(rng.integers(0, V, shape))
    windows = torch.from_numpy(rng.integers(0, V, (*shape, 6)))
    compare = Comparisons(E)
    assert compare.kind == kind
    expected = (E.double()[pivots][..., None, :] * E.double()[windows]).sum(-1)
    products = compare(pivots, windows)
    assert products.dtype == torch.float32
    torch.testing.assert_close(products.double(), expected, rtol=1e-6, atol=1e-5 if weight is normal else 1e-7)


def test_vectors_similar_to_codes_are_not_taken_for_them(monkeypatch):
    monkeypatch.setattr(comparisons, "TABLE_TOKENS", 1)
    scaled, empty = cipher() * 2, cipher()
    empty[3] = 0
    for E in (scaled, empty, normal()):
        assert Comparisons(E).kind == "bounded"


def test_a_change_in_place_and_another_tensor_are_detected():
    E = cipher()
    compare = Comparisons(E)
    assert compare.fits(E)
    assert not compare.fits(E.clone())
    E[0, 0] = 2
    assert not compare.fits(E)
