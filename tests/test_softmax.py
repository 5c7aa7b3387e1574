import numpy as np
import pytest
from scipy import special

from warmstart._softmax import log_sum_exp, softmax


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (7, 65)])
@pytest.mark.parametrize("level", [0.0, 1e4])
def test_both_are_those_of_scipy(dtype, shape, level):
    z = (level + np.random.default_rng(0).normal(size=shape)).astype(dtype)
    z[:, :1] -= 1e4  # a class that underflows
    precision = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(softmax(z.copy()), special.softmax(z, axis=1), rtol=precision)
    found = log_sum_exp(z.copy())
    np.testing.assert_allclose(found, special.logsumexp(z, axis=1), rtol=precision, atol=precision)
    assert found.dtype == dtype
