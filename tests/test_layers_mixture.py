"""The mixture in PyTorch against numpy: targets, features, rows, generation, gradients, weights on disk, devices."""

import functools

import numpy as np
import pytest
import torch

from warmstart.classes import ClassModel, token_classes
from warmstart.errors import InputError
from warmstart.gate import FLOOR, Gate, buckets
from warmstart.kneser_ney import KneserNey
from warmstart.layers import MixtureLM, NearShallowLM
from warmstart.layers.gate import MixtureGate
from warmstart.mixture import CACHES, Experts, Mixture, network_losses
from warmstart.near_shallow import Config, Fitter
from warmstart.ngrams import count_ngrams
from warmstart.stream import Stream

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")),
    pytest.param("mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="there is no MPS")),
]
V, SEPARATOR = 80, 3
LENGTHS = (30, 0, 1, 2, 400, 0, 7, 1500, 90)  # of the documents that are scored
EXPERTS = {
    "unigram": (),
    "ngrams": ("ngrams",),
    "order 1": ("order 1",),
    "classes": ("ngrams", "classes"),
    "ngrams, cache": ("ngrams", "cache"),
    "cache": ("cache",),
    "cache, radial": ("cache", "radial"),
    "ngrams, document": ("ngrams", "document"),
    "all, radial": ("ngrams", "classes", "cache", "radial"),
    "all, radial, document, memory": ("ngrams", "classes", "cache", "radial", "document", "memory"),
    "all, attended, block": ("ngrams", "classes", "cache", "attended", "block"),
}
ALL = "all, radial, document, memory"


def text(lengths, seed):
    """Return documents of a Markov chain of few successors, half of them the same in all texts and half its own."""
    rng = np.random.default_rng(seed)
    after = np.concatenate([np.random.default_rng(7).integers(0, V, (V, 3)), rng.integers(0, V, (V, 3))], axis=1)
    tokens = [SEPARATOR]
    for length in lengths:
        token = int(rng.integers(V))
        for _ in range(length):
            token = int(after[token, rng.integers(6)]) if rng.random() < 0.9 else int(rng.integers(V))
            tokens.append((token + 1) % V if token == SEPARATOR else token)
        tokens.append(SEPARATOR)
    return np.array(tokens)


def borders(tokens):
    return np.flatnonzero(tokens == SEPARATOR)


def any_gate(experts, seed=0):
    """Return a gate with other weights in every bucket, also zeros, and often the least for the unigram model."""
    rng, m = np.random.default_rng(seed), len(experts.names)
    shares = rng.dirichlet(np.full(m, 0.5), int(np.prod(experts.feature_sizes)))
    if m > 1:
        shares[::3, -1] = 0.0
        shares[1::3, 0] = 0.0
        shares /= shares.sum(axis=1, keepdims=True)
    weights = (1 - FLOOR) * shares
    weights[:, -1] += FLOOR
    return Gate(experts.feature_sizes, weights)


@functools.cache
def built(name):
    parts, tokens = EXPERTS[name], text((150, 20, 3, 300, 0, 800, 60) * 3, seed=0)
    counts = count_ngrams(tokens, borders(tokens), V, 1 if "order 1" in parts else 4)
    unigrams = np.bincount(tokens[1:], minlength=V)
    labels = token_classes(counts, (4, 5)) if "classes" in parts else []
    classes = tuple(ClassModel.of(of_token, counts.levels[0].counts, counts) for of_token in labels)
    network = None
    if contexts := tuple(part for part in parts if part not in ("ngrams", "order 1", "classes", "cache")):
        config = Config(V, SEPARATOR, bits=8, hidden_bits=7, radius=3, block_size=4, contexts=contexts)
        network = Fitter(tokens, borders(tokens), unigrams, config, temperature=1, smoothing=1).fit()
    ngrams = KneserNey(counts) if {"ngrams", "order 1"} & set(parts) else None
    prior = (unigrams + 0.5) / (unigrams + 0.5).sum()
    experts = Experts(SEPARATOR, prior, ngrams, classes, "cache" in parts, network)
    return Mixture(experts, any_gate(experts))


@pytest.fixture(params=EXPERTS)
def mixture(request):
    return built(request.param)


@pytest.fixture(params=["whole documents", "small caches"])
def caches(request, monkeypatch):
    """In half of the tests the oldest tokens leave all caches."""
    if request.param == "small caches":
        for name, shape in {"cache": (4, 300), "cache 1024": (3, 60), "cache 128": (3, 10)}.items():
            monkeypatch.setitem(CACHES, name, shape)


def mixture_contexts(mixture):
    return () if mixture.experts.network is None else mixture.experts.network.config.contexts


def stream_of(tokens):
    """Return ids and targets (1, n) of a text that begins with a separator."""
    ids = torch.from_numpy(tokens)[None]
    return ids[:, :-1], ids[:, 1:]


def batch(length, seed=5):
    """Return ids (4, length): many documents, one from inside, separators only, a document and padding in front."""
    tokens = text((length // 3, 1, 0, 2 * length, 40), seed)
    padded = np.full(length, SEPARATOR)
    padded[length // 2 :] = tokens[: length - length // 2]
    return torch.from_numpy(np.stack([tokens[:length], tokens[-length:], np.full(length, SEPARATOR), padded]))


# Against numpy


def test_targets_and_features_are_those_of_numpy(mixture, caches):
    tokens = text(LENGTHS, seed=1)
    model = MixtureLM.from_model(mixture)
    ids, targets = stream_of(tokens)
    found = model.target_log_probs(ids, targets)
    assert (found.shape, found.dtype) == (ids.shape, torch.float32)
    expected = mixture.score(tokens, borders(tokens)).log_probs
    np.testing.assert_allclose(found[0].detach(), expected, rtol=0, atol=1e-5)

    probs, features = model.evidence(ids, targets)
    ((part, evidence),) = mixture.experts.scan(tokens)
    assert features[0].tolist() == evidence.features.tolist()
    own = list(evidence.probs.T)
    if (network := mixture.experts.network) is not None:
        whole = (tokens, borders(tokens), part, network.start())
        own.insert(-1, np.exp(-network_losses(network, mixture.experts.prior, *whole)[0]))
    assert model.names == mixture.experts.names
    np.testing.assert_allclose(probs[0].detach().log(), np.log(np.stack(own, axis=1)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["unigram", "ngrams, cache", "all, radial"])
def test_float64_is_exact_but_for_the_network(name):
    mixture, tokens = built(name), text(LENGTHS, seed=1)
    found = MixtureLM(mixture, torch.float64).target_log_probs(*stream_of(tokens))
    assert found.dtype == torch.float64
    expected = mixture.score(tokens, borders(tokens)).log_probs
    atol = 1e-12 if mixture.experts.network is None else 1e-5
    np.testing.assert_allclose(found[0].detach(), expected, rtol=0, atol=atol)


def test_rows_and_weights_are_those_of_numpy(mixture, caches):
    tokens = text((25, 450), seed=2)
    model, stream = MixtureLM(mixture), Stream(mixture)
    with torch.no_grad():
        state = model.start(torch.from_numpy(tokens[None, :1]))
        for n, token in enumerate(tokens[1:], start=1):
            if n % 40 in (1, 2, 27):  # the first, a few, and after the separator at 26
                rows, features = model.rows(state)
                np.testing.assert_allclose(rows[0].T.log(), np.log(stream.rows()), rtol=0, atol=1e-5)
                np.testing.assert_allclose(model.gate(features)[0], stream.weights(), rtol=0, atol=1e-6)
                np.testing.assert_allclose(model.logits(state)[0], np.log(stream.row()), rtol=0, atol=1e-5)
            state = model.advance(state, torch.tensor([token]))
            stream.advance([token])


@pytest.mark.parametrize("length", [1, 2, 30])
def test_forward_gives_the_rows_of_the_targets(mixture, length):
    model, ids = MixtureLM(mixture), batch(length)
    rows = model(ids)
    assert (rows.shape, rows.dtype) == ((4, length, V), torch.float32)
    torch.testing.assert_close(rows.exp().sum(-1), torch.ones(4, length), rtol=0, atol=2e-6)
    for targets in (ids.roll(-1, dims=1), (7 * ids + 5) % V):
        found = model.target_log_probs(ids, targets)
        torch.testing.assert_close(rows.gather(-1, targets[..., None])[..., 0], found, rtol=0, atol=1e-5)


def test_by_hand():
    experts = Experts(0, np.array([0.2, 0.5, 0.3]), cache=True)
    weights = np.tile([0.6, 0.2, 0.1, 0.1], (int(np.prod(experts.feature_sizes)), 1))
    model = MixtureLM(Mixture(experts, Gate(experts.feature_sizes, weights)))
    ids = torch.tensor([[0, 1, 2, 1]])
    targets = torch.tensor([[1, 2, 1, 2]])
    after_nothing = 0.5 / 3 + 0.5 * 2 / 3 / 3  # 2 was seen once among three tokens of two types
    after_1 = 0.5 + 0.5 * after_nothing  # and once after the only 1 before the last
    expected = np.log(0.9 * after_1 + 0.1 * 0.3)
    assert model.target_log_probs(ids, targets)[0, 3].item() == pytest.approx(expected, abs=1e-6)
    assert model(ids)[0, 3, 2].item() == pytest.approx(expected, abs=1e-6)
    _, features = model.evidence(ids, ids)
    assert features[0].tolist() == [[0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 2, 2, 0, 1], [1, 1, 1, 1, 0]]


def test_targets_do_not_see_later_tokens_nor_earlier_documents():
    model, tokens = MixtureLM(built(ALL)), text((40, 30, 50), seed=3)
    ids, targets = stream_of(tokens)
    whole = model.target_log_probs(ids, targets)
    torch.testing.assert_close(model.target_log_probs(ids[:, :60], targets[:, :60]), whole[:, :60], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.target_log_probs(ids[:, 72:], targets[:, 72:]), whole[:, 72:], rtol=0, atol=1e-5)


# Step by step


def assert_same(one, other):
    """Compare states: whole numbers must be equal."""
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0 if one.dtype == torch.int64 else 1e-5)
    else:
        assert len(one) == len(other)
        parts = (
            zip(one.values(), other.values(), strict=True) if isinstance(one, dict) else zip(one, other, strict=True)
        )
        for pair in parts:
            assert_same(*pair)


def test_states_go_on_as_the_whole_text_does(mixture, caches):
    model, ids = MixtureLM(mixture), batch(50)
    with torch.no_grad():
        for length in (1, 2, 33):
            state = model.start(ids[:, :length])
            for t in range(length, 50):
                state = model.advance(state, ids[:, t])
            whole = model.start(ids)
            torch.testing.assert_close(model.logits(state), model.logits(whole), rtol=0, atol=1e-5)
    for name, expert in whole.experts.items():
        if name != "network":
            assert_same(state.experts[name], expert)
            continue
        document = ids[0, int((ids[0] == SEPARATOR).nonzero()[-1]) :][None]  # the last one alone
        first = type(expert)(*(part[:1] for part in state.experts[name]))
        torch.testing.assert_close(model.network.logits(first), model.network(document)[:, -1], rtol=0, atol=1e-5)
        assert_same(first[1:], model.network.start(document)[1:])


@pytest.mark.parametrize("length", [1, 21])
def test_greedy_steps_are_those_of_the_whole_prefix(mixture, length):
    model, ids = MixtureLM(mixture), batch(length)
    generated = model.generate(ids, 25, temperature=0)
    assert not generated.requires_grad
    assert torch.equal(generated[:, :length], ids)
    expected = model(generated[:, :-1]).argmax(-1)[:, length - 1 :]
    for row, best in zip(generated[:, length:], expected, strict=True):
        ends = (row == SEPARATOR).nonzero()
        n = int(ends[0]) + 1 if len(ends) else len(row)
        assert row[:n].tolist() == best[:n].tolist()
        assert (row[n:] == SEPARATOR).all()


def test_samples_follow_the_rows_and_the_seed():
    model = MixtureLM(built("all, radial"))
    ids = torch.from_numpy(text((12,), seed=4))[:-1].expand(4000, -1)
    seeds = [model.generate(ids, 1, temperature=1, top_p=1, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(seeds[0], seeds[1])
    assert not torch.equal(seeds[0], seeds[2])
    shares = torch.cat(seeds[1:])[:, -1].bincount(minlength=V) / 8000
    stream = Stream(built("all, radial"))
    stream.advance(ids[0, 1:].tolist())
    np.testing.assert_allclose(shares, stream.row(), atol=5 * 0.5 / 8000**0.5)
    narrow = model.generate(ids, 1, top_p=1e-9)[:, -1]
    assert (narrow == int(stream.row().argmax())).all()


def test_generation_ends_with_the_separator_and_refuses_wrong_numbers():
    experts = Experts(0, np.array([0.6, 0.3, 0.1]))
    model = MixtureLM(Mixture(experts, Gate(experts.feature_sizes, np.ones((2, 1)))))
    assert model.generate(torch.tensor([[1], [2]]), 9, temperature=0).tolist() == [[1, 0], [2, 0]]
    assert model.generate(torch.tensor([[1]]), 0).tolist() == [[1]]
    for name, value in {"max_new_tokens": -1, "temperature": -1.0, "top_p": 0.0, "seed": -1}.items():
        with pytest.raises(InputError, match=f"{name}: expected"):
            model.generate(torch.tensor([[1]]), **{"max_new_tokens": 1} | {name: value})


# The gate


def test_the_gate_has_the_weights_of_numpy():
    gate = any_gate(built(ALL).experts, seed=3)
    module = MixtureGate(gate)
    rng = np.random.default_rng(0)
    features = rng.integers(0, 14, (6, 500, len(gate.sizes)))  # also above the largest values
    expected = gate.weights[buckets(features.reshape(3000, -1), gate.sizes)].reshape(6, 500, -1)
    np.testing.assert_allclose(module(torch.from_numpy(features)).detach(), expected, rtol=0, atol=1e-6)
    assert module.to_model().sizes == gate.sizes
    np.testing.assert_allclose(module.to_model().weights, gate.weights, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(module.to_model().weights.sum(axis=1), 1.0, rtol=0, atol=1e-12)
    assert f"experts={module.to_model().weights.shape[1]}" in repr(module)


def test_the_unigram_model_keeps_its_share_whatever_is_trained():
    module = MixtureGate(Gate((2,), np.array([[0.5, 0.3, 0.2], [0.0, 0.99, 0.01]])))
    with torch.no_grad():
        module.logits.copy_(torch.tensor([[50.0, 0.0, -80.0], [-3.0, 2.0, 1.0]]))
    weights = module(torch.tensor([[0], [1]])).detach()
    torch.testing.assert_close(weights[0], torch.tensor([0.99, 0.0, 0.01]))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2))
    assert module.to_model().weights[:, -1].min() >= FLOOR


@pytest.mark.parametrize(
    "weights",
    [[[0.995, 0.005]], [[-0.1, 1.1]], [[0.5, 0.4]], [[0.5, float("nan")]], [[0.5, 0.5], [0.6, 0.6]]],
    ids=str,
)
def test_wrong_weights_are_refused(weights):
    with pytest.raises(InputError, match="expected weights"):
        Gate((len(weights),), np.array(weights))


def test_a_gate_for_other_experts_is_refused():
    experts = built("ngrams, cache").experts
    for gate in (
        Gate(experts.feature_sizes, any_gate(experts).weights[:-1]),
        Gate(experts.feature_sizes[1:], any_gate(experts).weights[: np.prod(experts.feature_sizes[1:])]),
        any_gate(built("ngrams").experts),
    ):
        with pytest.raises(InputError, match="expected weights"):
            MixtureLM(Mixture(experts, gate))


# Training


def test_gradients_reach_the_gate_and_the_network():
    model = MixtureLM(built(ALL))
    ids, targets = stream_of(text((60, 3, 20), seed=6))
    loss = -model.target_log_probs(ids, targets).mean()
    loss.backward()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            assert weight.grad.isfinite().all(), name
            assert weight.grad.abs().max() > 0, name
    step = torch.optim.SGD(model.parameters(), lr=0.1)
    step.step()
    assert -model.target_log_probs(ids, targets).mean() < loss


@pytest.mark.parametrize(
    ("name", "frozen"), [("all, radial", False), ("all, radial", True), ("ngrams, document", False)]
)
def test_gradients_are_those_of_finite_differences(name, frozen):
    model = MixtureLM(built(name), torch.float64)  # what an empty memory reads has a kink at 0
    model.network.embedding.requires_grad_(not frozen)
    ids, targets = (side.clone() for side in stream_of(text((9, 4), seed=6)))
    targets[0, 5] = -1
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]

    class Losses(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            return self.model.target_log_probs(ids, targets)

    def losses(*weights):
        changed = {f"model.{name}": weight for name, weight in zip(names, weights, strict=True)}
        return torch.func.functional_call(Losses(), changed, ())

    assert torch.autograd.gradcheck(losses, [model.get_parameter(name) for name in names], fast_mode=True)


# Weights


def test_the_state_dict_holds_the_network_and_the_gate():
    mixture = built(ALL)
    model = MixtureLM(mixture)
    network = NearShallowLM.from_model(mixture.experts.network).state_dict()
    assert set(model.state_dict()) == {"gate.logits", *(f"network.{name}" for name in network)}
    assert set(MixtureLM(built("ngrams, cache")).state_dict()) == {"gate.logits"}
    torch.manual_seed(0)
    other = {name: torch.rand_like(weight) for name, weight in network.items()}
    model.load_state_dict({f"network.{name}": weight for name, weight in other.items()}, strict=False)
    model.network.load_state_dict(other)
    again = MixtureLM(mixture)
    again.load_state_dict(model.state_dict())
    ids = batch(12)
    assert torch.equal(again(ids), model(ids))
    assert not torch.equal(MixtureLM(mixture)(ids), model(ids))


def test_the_module_copies_what_it_is_made_from():
    mixture = built(ALL)
    before = [mixture.gate.weights.copy(), *(a.copy() for a in mixture.experts.network.arrays.values())]
    model = MixtureLM(mixture)
    with torch.no_grad():
        for weight in [*model.parameters(), model.prior, *model.classes.buffers()]:
            weight.zero_()
    for array, old in zip([mixture.gate.weights, *mixture.experts.network.arrays.values()], before, strict=True):
        assert np.array_equal(array, old)
    assert mixture.experts.prior.min() > 0
    assert all(own.shares.min() > 0 and own.labels.max() > 0 for own in mixture.experts.classes)
    names = ", ".join(["ngrams", *mixture.experts.class_names, "cache, cache 1024, cache 128, network, unigram"])
    assert len(mixture.experts.classes) == 2
    assert f"experts={names}" in repr(model)


# Input, devices, compiled graphs


def test_negative_targets_do_not_count(mixture):
    model, ids = MixtureLM(mixture), batch(20)
    some = ids.masked_fill(torch.arange(20) % 3 == 0, -100)
    found, whole = model.target_log_probs(ids, some), model.target_log_probs(ids, ids)
    torch.testing.assert_close(found, whole.masked_fill(some < 0, 0.0), rtol=0, atol=1e-6)
    assert (whole < 0).all()


def test_narrow_integers_views_and_an_empty_batch_are_accepted(mixture):
    model, ids = MixtureLM(mixture), batch(12)
    for other in (ids.to(torch.uint8), ids.T.contiguous().T):
        assert torch.equal(model(other), model(ids))
        assert torch.equal(model.target_log_probs(other, other), model.target_log_probs(ids, ids))
        assert torch.equal(model.generate(other, 2, temperature=0), model.generate(ids, 2, temperature=0))
    empty = torch.zeros(0, 3, dtype=torch.int64)
    assert model.target_log_probs(empty, empty).shape == (0, 3)
    if "memory" in mixture_contexts(mixture):
        with pytest.raises(InputError, match="none of them 0"):  # of the delta rule
            model(empty)
    else:
        assert model(empty).shape == (0, 3, V)
        assert model.generate(empty, 2).shape[0] == 0


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor([1]),
        torch.zeros(2, 0, dtype=torch.int64),
        torch.tensor([[1.0]]),
        torch.tensor([[V]]),
        torch.tensor([[-1]]),
    ],
    ids=str,
)
def test_wrong_ids_and_targets_are_refused(mixture, ids):
    model = MixtureLM(mixture)
    right = torch.zeros(1, 2, dtype=torch.int64)
    calls = [model, model.start, lambda ids: model.generate(ids, 1), lambda ids: model.target_log_probs(ids, ids)]
    if ids.dtype.is_floating_point or ids.numel() == 0 or int(ids.max()) >= V or ids.dim() == 1:
        calls.append(lambda ids: model.target_log_probs(right[:, : ids.shape[-1]], ids))
    for call in calls:
        with pytest.raises(InputError, match="expected"):
            call(ids)


@pytest.mark.parametrize("device", DEVICES)
def test_devices(mixture, device):
    model, there, ids = MixtureLM(mixture), MixtureLM(mixture).to(device), batch(40)
    found = there.target_log_probs(ids.to(device), ids.roll(-1, dims=1).to(device))
    assert found.device.type == device
    torch.testing.assert_close(found.cpu(), model.target_log_probs(ids, ids.roll(-1, dims=1)), rtol=0, atol=1e-5)
    state = there.advance(there.start(ids.to(device)), ids[:, 5].to(device))
    expected = model.logits(model.advance(model.start(ids), ids[:, 5]))
    torch.testing.assert_close(there.logits(state).cpu(), expected, rtol=0, atol=1e-5)
    assert there.generate(ids.to(device), 3).device.type == device


@pytest.mark.filterwarnings("default")  # those of the compiler about itself
def test_targets_and_steps_compile_without_a_break():
    model, ids, backend = MixtureLM(built("all, radial")), batch(20), "aot_eager"
    targets = ids.roll(-1, dims=1)
    with torch.no_grad():
        compiled = torch.compile(model.target_log_probs, backend=backend, fullgraph=True)
        torch.testing.assert_close(compiled(ids, targets), model.target_log_probs(ids, targets), rtol=0, atol=1e-6)
        advance = torch.compile(model.advance, backend=backend, fullgraph=True)
        state = model.start(ids)
        assert_same(advance(state, ids[:, 4]), model.advance(state, ids[:, 4]))
        logits = torch.compile(model.logits, backend=backend, fullgraph=True)
        torch.testing.assert_close(logits(state), model.logits(state), rtol=0, atol=1e-5)
