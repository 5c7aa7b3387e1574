import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid
from torch import nn

from warmstart import baselines
from warmstart.counts import NGrams, bigram_counts


@pytest.fixture(scope="module")
def pairs():
    tokens = np.random.default_rng(0).zipf(1.4, 20_000) % 30
    return tokens, bigram_counts(tokens, 30)


def test_the_table_is_the_bigram_model(pairs):
    tokens, counts = pairs
    table = baselines.count_bigram(counts)
    np.testing.assert_allclose(np.exp(table).sum(axis=1), 1, atol=1e-5)
    own = -table[tokens[:-1], tokens[1:]].mean()
    assert own == pytest.approx(NGrams(counts.sum(axis=0), counts).nats(tokens)[1], abs=1e-5)


def test_ppmi_at_full_rank_gives_its_matrix_back():
    counts = np.array([[0, 9, 1, 1], [9, 0, 1, 1], [1, 1, 0, 9], [1, 1, 9, 0]])
    n = 2 * counts.sum(axis=1)
    context = n**0.75 / (n**0.75).sum()
    with np.errstate(divide="ignore"):
        expected = np.maximum(np.log(2 * counts / np.outer(n, context)), 0)
    U = baselines.ppmi_svd(sparse.csr_array(counts), 4).astype(float)
    np.testing.assert_allclose(U @ U.T @ U @ U.T, expected @ expected.T, atol=1e-4)  # U S U^T squared


def test_mimetic_products_have_the_diagonals_asked_for():
    q, k, v, o = baselines.mimetic(256, 1, qk=(0.7, 0.5), vo=(0.4, 0.3))
    for product, diagonal, spread in ((q @ k.T, 0.5, 0.7), (v @ o, -0.3, 0.4)):
        assert float(product.diagonal().mean()) == pytest.approx(diagonal, abs=0.02)
        off = product - torch.diag(product.diagonal())
        assert float(off.std()) * 16 == pytest.approx(spread, abs=0.02)


def test_lsuv_gives_every_layer_unit_variance():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 50), nn.Tanh(), nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 5))
    batch = 3 * torch.randn(500, 20) + 1
    baselines.lsuv_(model, batch)
    with torch.no_grad():
        for layer in model:
            batch = layer(batch)
            if isinstance(layer, nn.Linear):
                assert float(batch.var()) == pytest.approx(1, abs=0.06)


def test_linear_heads_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    X, y = random.normal(size=(300, 6)).astype(np.float32), random.integers(0, 4, 300)
    X[:, 0] += y
    W, bias = baselines.least_squares_head(X, y, 4, ridge=2.0)
    ridge = Ridge(alpha=2.0).fit(X.astype(float), np.eye(4)[y])
    np.testing.assert_allclose(X @ W + bias, ridge.predict(X), atol=1e-5)
    W, bias = baselines.nearest_mean(X, y, 4)
    assert ((X @ W + bias).argmax(axis=1) == NearestCentroid().fit(X, y).predict(X)).all()


@pytest.mark.parametrize(("fill", "variance"), [(baselines.xavier_, 2 / 500), (baselines.he_, 2 / 300)])
def test_random_starts_have_their_variance(fill, variance):
    torch.manual_seed(0)
    layer = nn.Linear(300, 200)
    fill([layer, nn.ReLU()])
    assert float(layer.weight.detach().var()) == pytest.approx(variance, rel=0.03)
    assert not layer.bias.any()
