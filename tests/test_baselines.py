import numpy as np
import pytest
import torch
from scipy import sparse

from warmstart import baselines
from warmstart.counts import NGrams, count_pairs


@pytest.fixture(scope="module")
def pairs():
    tokens = np.random.default_rng(0).zipf(1.4, 20_000) % 30
    tokens[-1] = tokens[0]
    return tokens, count_pairs(tokens, 30).pairs


def test_the_table_is_the_bigram_model(pairs):
    tokens, counts = pairs
    table = baselines.count_bigram(counts)
    np.testing.assert_allclose(np.exp(table).sum(axis=1), 1, atol=1e-5)
    loss = -table[tokens[:-1], tokens[1:]].mean()
    assert loss == pytest.approx(NGrams(counts.sum(axis=0), counts).cross_entropies(tokens)[1], abs=1e-5)


def test_ppmi_vectors_are_those_of_a_dense_decomposition():
    counts = np.random.default_rng(0).poisson(2.0, (8, 8))
    both = counts + counts.T
    n = both.sum(axis=1)
    context = n**0.75 / (n**0.75).sum()
    with np.errstate(divide="ignore"):
        ppmi = np.maximum(np.log(both / np.outer(n, context)), 0)
    U, S, _ = np.linalg.svd(ppmi)
    vectors = baselines.ppmi_svd(sparse.csr_array(counts), 5)
    np.testing.assert_allclose(vectors @ vectors.T, (U[:, :5] * S[:5]) @ U[:, :5].T, atol=1e-4)


def test_mimetic_products_have_the_diagonals_asked_for():
    q, k, v, o = baselines.mimetic(256, 1, qk=(0.7, 0.5), vo=(0.4, 0.3))
    for product, diagonal, spread in ((q @ k.T, 0.5, 0.7), (v @ o, -0.3, 0.4)):
        assert float(product.diagonal().mean()) == pytest.approx(diagonal, abs=0.02)
        off = product - torch.diag(product.diagonal())
        assert float(off.std()) * 16 == pytest.approx(spread, abs=0.02)
