"""Plain classifiers: the layers that warm_start writes, against the formula in loops; what it refuses."""

import itertools

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

from warmstart import InputError, solution, warm_start


def data(n=300, features=5, classes=3, seed=0):
    """Return examples of classes around different means; features differ in offset and scale, one is constant."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    x = rng.normal(size=(classes, features))[y] + 0.3 * rng.normal(size=(n, features))
    x = x * [1, 50, 0.01, 3, 0][:features] + [0, -100, 7, 3, 4][:features]
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


def batches(x, y, size=64):
    return list(zip(x.split(size), y.split(size), strict=True))


def network(*widths, bias=True):
    modules = []
    for rows, columns in itertools.pairwise(widths):
        modules += [nn.Linear(rows, columns, bias=bias), nn.Softmax(-1)]
    return nn.Sequential(*modules[:-1])


def formula(inputs, y, classes, smoothing=1.0):
    """Return logits at temperature 1: log counts minus (k - 1) / k log sums, in loops."""
    F = np.zeros((inputs.shape[1], classes))
    for row, c in zip(inputs, y, strict=True):
        F[:, c] += row
    share = F.sum(axis=0) / F.sum()
    k = inputs.sum(axis=1).mean()
    U = np.log(F + smoothing * share) - np.log((F + smoothing * share).sum(axis=0)) + np.log(share) / k
    return inputs @ U


@pytest.fixture
def _published(monkeypatch):
    """Fix temperature 1 and smoothing 1, as in the published formula."""
    monkeypatch.setattr(solution, "fit", lambda *_, **__: solution.Fit(1.0, np.ones(1), 0.0))


@pytest.mark.usefixtures("_published")
@pytest.mark.parametrize("bias", [True, False])
def test_one_layer_is_the_formula(bias):
    x, y = data()
    x = x if bias else x.abs()
    model = network(5, 3, bias=bias)
    warm_start(model, batches(x, y))
    inputs = x.double().numpy()
    if bias:
        width = inputs.max(0) - inputs.min(0)
        u = (inputs - inputs.min(0)) / np.where(width == 0, 1, width)
        inputs = np.concatenate([u, 1 - u], axis=1)
    expected = log_softmax(formula(inputs, y.numpy(), 3), axis=1)
    np.testing.assert_allclose(model(x).detach().log_softmax(1), expected, atol=1e-4)


@pytest.mark.usefixtures("_published")
def test_the_upper_layer_is_the_formula_on_the_lower_one():
    x, y = data()
    model = network(5, 7, 3)
    warm_start(model, batches(x, y))
    hidden = model[:2](x).detach().double().numpy()
    expected = log_softmax(formula(hidden, y.numpy(), 3), axis=1)
    np.testing.assert_allclose(model(x).detach().log_softmax(1), expected, atol=1e-4)
    assert not model[2].bias.any()


def test_shift_and_scale_of_a_feature_change_nothing():
    x, y = data()
    scale, shift = torch.tensor([2.0, 0.5, 8.0, 4.0, 1.0]), torch.tensor([0.0, 32.0, -8.0, 1.0, 5.0])
    probabilities = []
    for inputs in (x, x * scale + shift):
        model = network(5, 3)
        report = warm_start(model, batches(inputs, y))
        assert report.notes[0].endswith("; a bound of its search: smoothing 1")
        probabilities.append(model(inputs).softmax(1).detach())
    torch.testing.assert_close(*probabilities, atol=1e-3, rtol=0)


def test_sub_classes_solve_what_no_single_layer_can():
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 2, (600, 2))
    x = torch.from_numpy((corner + 0.1 * rng.normal(size=(600, 2))).astype(np.float32))
    y = torch.from_numpy(corner[:, 0] ^ corner[:, 1])
    right = {}
    for widths in ((2, 2), (2, 4, 2), (2, 8, 4, 2)):
        model = network(*widths)
        warm_start(model, batches(x, y))
        right[len(widths)] = float((model(x).argmax(1) == y).float().mean())
    assert right[2] < 0.8
    assert min(right[3], right[4]) > 0.98


def test_codes_of_classes_are_targets_of_few_dimensions():
    x, y = data(n=2000, features=3, classes=6)
    model = network(3, 3, 6)  # 7 codes of 3 bits
    report = warm_start(model, batches(x, y))
    assert "codes of 6 classes in 3 bits" in report.notes[0]
    loss = nn.functional.cross_entropy(model(x), y).item()
    prior = np.bincount(y) / y.numel()
    assert loss < 0.8 * -(prior * np.log(prior)).sum()


def test_other_batch_sizes_give_the_same_weights():
    x, y = data()
    states = []
    for size in (1, 64, 300):
        model = network(5, 8, 3)
        warm_start(model, batches(x, y, size))
        states.append(model.state_dict())
    for state in states[1:]:
        torch.testing.assert_close(state, states[0], atol=1e-3, rtol=1e-3)


def test_other_modules_stay_as_they_are():
    x, y = data()
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(5))
    model = nn.Sequential(encoder, nn.Linear(5, 8), nn.Dropout(0.5), nn.Softmax(-1), nn.Linear(8, 3), nn.LogSoftmax(-1))
    model.train()
    model[2].eval()
    before = {name: value.clone() for name, value in model[0].state_dict().items()}
    report = warm_start(model, batches(x[:, None], y))
    assert (model.training, encoder[1].training, model[2].training) == (True, True, False)
    assert all(torch.equal(value, before[name]) for name, value in model[0].state_dict().items())
    assert report.loaded == ("1.weight", "1.bias", "4.weight", "4.bias")
    assert report.missing == ("0.1.weight", "0.1.bias")
    model.eval()
    assert (model(x[:, None]).argmax(1) == y).float().mean() > 0.9


def test_a_class_never_seen_and_one_seen_once():
    x, y = data()
    y[y == 2] = 0
    y[0] = 2
    model = network(5, 16, 4)
    warm_start(model, batches(x, y))
    mean = model(x).softmax(1).mean(0)
    assert torch.isfinite(mean).all()
    assert mean[3] < mean[:2].min() / 10


X, Y = data()
REFUSED = [
    (network(5, 3).requires_grad_(False)[0], batches(X, Y), "expected a Sequential"),
    (nn.Sequential(nn.Flatten()), batches(X, Y), "got Flatten"),
    (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), batches(X, Y), "Linear, ReLU, Linear"),
    (nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), batches(X, Y), "Linear, Linear"),
    (nn.Sequential(nn.Linear(5, 4), nn.Softmax(0), nn.Linear(4, 3)), batches(X, Y), "in turn"),
    (nn.Sequential(nn.Linear(5, 4), nn.LogSoftmax(1), nn.Linear(4, 3)), batches(X, Y), "in turn"),
    (network(5, 3), batches(X, Y + 1), "classes from 0 to 2, got 1 to 3"),
    (network(5, 3), batches(X, Y.float()), "whole numbers as classes, got torch.float32"),
    (network(5, 3), batches(X * float("nan"), Y), "finite"),
    (network(5, 3), batches(X[:, :4], Y), r"shape \(n, 5\)"),
    (network(5, 3), [], "at least one example"),
    (network(5, 3), iter(batches(X, Y)), "300 examples, then 0"),
    (network(5, 3, bias=False), batches(X, Y), "give it a bias"),
    (network(5, 3, bias=False), batches(X * 0, Y), "not all zero"),
    (network(5, 400, 3), batches(X, Y), "make it narrower"),
    (network(5, 1, 3), batches(X, Y), "1 units for 3 classes"),
]


@pytest.mark.parametrize(("model", "loader", "message"), REFUSED, ids=[case[2] for case in REFUSED])
def test_refused_before_anything_is_written(model, loader, message):
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(InputError, match=message):
        warm_start(model, loader)
    assert all(map(torch.equal, model.parameters(), before))
