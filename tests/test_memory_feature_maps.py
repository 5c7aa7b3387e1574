"""Feature maps: values by hand, the kernels they approximate, bad sizes; softmax attention against torch."""

import numpy as np
import pytest
import torch

from warmstart.errors import InputError
from warmstart.memory import FAVOR, dpfp, elu_plus_one, softmax_attention, sum_normalise, sum_rule


def test_elu_plus_one_by_hand():
    found = elu_plus_one(torch.tensor([-1.0, 0.0, 2.5], dtype=torch.float64))
    np.testing.assert_allclose(found, [np.exp(-1), 1, 3.5])


@pytest.mark.parametrize("nu", [1, 2, 5])
def test_dpfp_is_all_products_of_rotations(nu):
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = dpfp(x, nu)
    assert found.shape == (4, 6 * nu)
    for row, phi in zip(x.tolist(), found.tolist(), strict=True):
        r = [max(s, 0) for s in row] + [max(-s, 0) for s in row]
        np.testing.assert_allclose(phi, [r[i] * r[i - j] for j in range(1, nu + 1) for i in range(6)])


@pytest.mark.parametrize("nu", [0, -1, 6, 7])
def test_dpfp_of_a_wrong_nu_is_refused(nu):
    with pytest.raises(InputError, match=rf"nu: expected 1 to 5, 2 d - 1 for keys of dimension 3, got {nu}"):
        dpfp(torch.ones(2, 3), nu)


@pytest.mark.parametrize(("features", "dim"), [(3, 5), (5, 5), (12, 5), (4, 1)])
def test_directions_are_orthogonal_in_groups_of_the_dimension(features, dim):
    phi = FAVOR(dim, features, seed=3)
    assert phi.directions.shape == (features, dim)
    for block in phi.directions.split(dim):
        products = (block @ block.T).numpy()
        np.testing.assert_allclose(products - np.diag(np.diag(products)), 0, atol=1e-5)
    assert phi(torch.randn(2, 7, dim)).shape == (2, 7, 2 * features)


def test_random_features_estimate_the_softmax_kernel_without_bias():
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2
    estimates = [float(phi(q) @ phi(k)) for phi in (FAVOR(8, 16, seed) for seed in range(400))]
    exact = float(torch.exp(q @ k / 8**0.5))
    error = np.std(estimates) / len(estimates) ** 0.5
    assert abs(np.mean(estimates) - exact) < 4 * error < 0.1 * exact


def test_orthogonal_directions_estimate_better_than_independent_ones():
    """Theorem 2 of the source: the error is smaller for every number of directions up to the dimension."""
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 3
    exact, errors = float(torch.exp(q @ k / 8**0.5)), {}
    for kind in ("orthogonal", "independent"):
        phi, found = FAVOR(8, 8).double(), []
        for seed in range(1000):
            phi.redraw(seed)
            if kind == "independent":
                phi.directions.normal_(generator=torch.Generator().manual_seed(seed))
            found.append(float(phi(q) @ phi(k)))
        errors[kind] = np.mean((np.array(found) - exact) ** 2)
    assert errors["orthogonal"] < 0.8 * errors["independent"]


def test_attention_with_many_random_features_is_softmax_attention():
    q, k, v = torch.randn(3, 1, 1, 20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    phi = FAVOR(4, 20_000)
    q, k = q / 2, k / 2  # the variance grows with exp(|q + k|^2)
    found, _ = sum_rule(phi(q), phi(k), v)
    torch.testing.assert_close(found, softmax_attention(q, k, v), rtol=0, atol=0.05)


def test_the_lengths_of_directions_are_those_of_normal_vectors():
    lengths = FAVOR(16, 4000).directions.square().sum(1)
    assert lengths.mean() == pytest.approx(16, rel=0.03)  # chi-squared with 16 degrees of freedom
    assert lengths.var() == pytest.approx(32, rel=0.15)


def test_the_seed_decides_the_directions():
    first, again, other = FAVOR(4, 6, seed=1), FAVOR(4, 6, seed=0), FAVOR(4, 6, seed=0)
    assert not torch.equal(first.directions, again.directions)
    assert torch.equal(other.directions, again.directions)
    again.redraw(1)
    assert torch.equal(first.directions, again.directions)
    other.load_state_dict(first.state_dict())
    assert torch.equal(other.directions, first.directions)


def test_sizes_that_random_features_cannot_serve_are_refused():
    for dim, features in ((0, 4), (4, 0), (-1, 4)):
        with pytest.raises(InputError, match="expected at least 1 dimension and 1 feature"):
            FAVOR(dim, features)
    with pytest.raises(InputError, match=r"expected keys of dimension 4, got 5; make FAVOR\(dim=5\)"):
        FAVOR(4, 8)(torch.ones(2, 5))


def test_sum_normalised_features_have_sum_1_or_0():
    phi = torch.tensor([[1.0, 3.0], [0.0, 0.0]], requires_grad=True)
    found = sum_normalise(phi)
    assert found.tolist() == [[0.25, 0.75], [0, 0]]
    found.square().sum().backward()
    assert phi.grad.isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
def test_softmax_attention_is_that_of_torch(masked):
    q, k, v = torch.randn(3, 2, 3, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(2, 9, dtype=torch.bool)
    if masked:
        mask[1, [2, 5, 8]] = False
    visible = torch.ones(9, 9, dtype=torch.bool).tril() & mask[:, None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    torch.testing.assert_close(softmax_attention(q, k, v, mask), expected)


def test_a_query_that_sees_no_token_reads_zero():
    q = k = v = torch.ones(1, 1, 2, 3)
    found = softmax_attention(q, k, v, torch.tensor([[False, True]]))
    assert found[0, 0].tolist() == [[0, 0, 0], [1, 1, 1]]
