"""The near-shallow model in PyTorch against numpy and a loop: logits, gradients, generation, files."""

import itertools

import numpy as np
import pytest
import torch
from reference import language_model_logits
from safetensors.torch import load_file, save_file
from scipy import special

from warmstart import NearShallowLM, contexts
from warmstart.errors import InputError
from warmstart.layers import SelfAttention, near_shallow
from warmstart.layers.generation import sample
from warmstart.near_shallow import Config, Fitter

V, SEPARATOR, BLOCK = 25, 24, 4
SHAPE = {"vocab_size": V, "separator": SEPARATOR, "bits": 8, "hidden_bits": 6, "radius": 3, "block_size": BLOCK}
SUBSETS = [names for size in range(1, 5) for names in itertools.combinations(contexts.CONTEXTS, size)]
LENGTHS = (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 2, 200)


def markov_tokens(n, seed=0):
    """Return n tokens of a Markov chain in documents of 15 tokens on average, with a separator at both ends."""
    P = np.random.default_rng(7).dirichlet(2 / np.arange(1, V), V)  # (V, V - 1)
    rng = np.random.default_rng(seed)
    tokens = [SEPARATOR]
    for _ in range(n - 2):
        tokens.append(SEPARATOR if rng.random() < 1 / 15 else int(rng.choice(V - 1, p=P[tokens[-1]])))
    return np.array([*tokens, SEPARATOR])


TOKENS = markov_tokens(3300)


def fitted(names, **options):
    counts = np.bincount(TOKENS[1:], minlength=V)
    documents = np.flatnonzero(TOKENS == SEPARATOR)
    return Fitter(TOKENS, documents, counts, Config(**SHAPE, contexts=names), **options).fit()


@pytest.fixture(scope="module")
def full():
    return fitted(contexts.CONTEXTS, temperature=1, smoothing=1)


def numpy_logits(model, ids):
    """Return the logits (length, V) that `NearShallowModel` gives after each token of a sequence."""
    documents = np.union1d(0, np.flatnonzero(ids == SEPARATOR))
    chunk = contexts.read(np.append(ids, 0), documents, model.config.window, 1, len(ids) + 1)
    return sum(model.logits(model.inputs(chunk, model.start())))


def log_softmax(z):
    return special.log_softmax(np.asarray(z, dtype=np.float64), axis=-1)


def sequences(length, seed=1):
    """Return ids (4, length): from a document start, from inside one, separators only, and two separators in a row."""
    tokens = markov_tokens(5000, seed)
    start, inside = tokens[:length], tokens[3 : 3 + length]
    assert inside[0] != SEPARATOR
    twice = start.copy()
    twice[length // 2 : length // 2 + 2] = SEPARATOR
    return np.stack([start, inside, np.full(length, SEPARATOR), twice])


# Logits against two other forward passes


@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
def test_logits_are_those_of_numpy_and_of_the_loop(names):
    model = fitted(names, temperature=1, smoothing=1)
    module, wide = NearShallowLM.from_model(model), NearShallowLM.from_model(model).double()
    for length in LENGTHS:
        ids = sequences(length)
        logits = module(torch.from_numpy(ids))
        assert logits.shape == (4, length, V)
        assert logits.dtype == torch.float32
        for row, z, z64 in zip(ids, logits.detach(), wide(torch.from_numpy(ids)).detach(), strict=True):
            loop = language_model_logits(model.config, model.arrays, row)
            np.testing.assert_allclose(z64, loop, rtol=0, atol=1e-10)
            np.testing.assert_allclose(log_softmax(z), log_softmax(loop), rtol=0, atol=1e-5)
            np.testing.assert_allclose(log_softmax(z), log_softmax(numpy_logits(model, row)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("names", [("radial", "block", "document"), ("document",)], ids="-".join)
def test_fitted_temperatures_agree_up_to_the_rounding_of_float32(names):
    model = fitted(names)
    (row, *_) = sequences(200)
    z = NearShallowLM.from_model(model)(torch.from_numpy(row[None]))[0].detach()
    atol = max(1e-5, 8 * np.finfo(np.float32).eps * float(z.abs().max()))  # temperatures of 25 make logits of 70
    np.testing.assert_allclose(log_softmax(z), log_softmax(numpy_logits(model, row)), rtol=0, atol=atol)


@pytest.mark.parametrize(("radius", "block_size"), [(1, 1), (1, 7), (6, 2), (5, 16)])
def test_other_sizes_and_any_weights_agree_with_the_loop(radius, block_size):
    config = Config(**SHAPE | {"radius": radius, "block_size": block_size}, contexts=contexts.CONTEXTS)
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in config.shapes.items()}
    module = NearShallowLM(config)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    for row in sequences(40):
        z = module(torch.from_numpy(row[None]))[0].detach().numpy()
        np.testing.assert_allclose(z, language_model_logits(config, arrays, row), rtol=1e-4, atol=1e-4)


def test_logits_do_not_see_later_tokens_nor_earlier_documents(full):
    module = NearShallowLM.from_model(full)
    ids = torch.from_numpy(sequences(60)[:1])
    whole = module(ids)[0]
    for n in (1, 7, 33):
        torch.testing.assert_close(module(ids[:, :n])[0], whole[:n], rtol=0, atol=1e-5)
    start = int((ids[0] == SEPARATOR).nonzero()[-1])
    assert start > 0
    torch.testing.assert_close(module(ids[:, start:])[0], whole[start:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
def test_targets_and_steps_are_those_of_the_whole_text(names, monkeypatch):
    monkeypatch.setattr(near_shallow, "TARGETS_PER_BLOCK", 30)
    torch.manual_seed(0)
    module, ids = NearShallowLM(Config(**SHAPE, contexts=names)), torch.from_numpy(sequences(25))
    rows = module(ids).log_softmax(-1)
    targets = ids.roll(-1, dims=1).masked_fill(torch.arange(25) % 6 == 0, -1)
    expected = rows.gather(-1, targets.clamp(min=0)[..., None])[..., 0].masked_fill(targets < 0, 0.0)
    torch.testing.assert_close(module.target_log_probs(ids, targets), expected, rtol=0, atol=1e-5)
    state = module.start(ids[:, :1])
    for t in range(25):
        torch.testing.assert_close(module.logits(state).log_softmax(-1), rows[:, t], rtol=0, atol=1e-5)
        state = module.advance(state, ids[:, (t + 1) % 25])


def test_document_means_stay_exact_in_a_long_sequence():
    config = Config(**SHAPE, contexts=("document",))
    module = NearShallowLM(config)
    ids = torch.zeros(1, 100_000, dtype=torch.int64)
    ids[0, 0] = SEPARATOR
    ids[0, 99_000] = SEPARATOR
    short = module(ids[:, :1000])[0, -1]
    torch.testing.assert_close(module(ids)[0, -1], short, rtol=0, atol=1e-6)


def test_state_dict_has_the_names_and_shapes_of_the_configuration(full):
    shapes = {name: tuple(weight.shape) for name, weight in NearShallowLM(full.config).state_dict().items()}
    assert shapes == full.config.shapes
    back = NearShallowLM.from_model(full).to_model()
    assert {name: a.tobytes() for name, a in back.arrays.items()} == {n: a.tobytes() for n, a in full.arrays.items()}


# Attention


def test_attention_by_hand():
    attention = SelfAttention(3)
    with torch.no_grad():
        attention.weight.copy_(torch.tensor([[np.log(2), 0, 5], [0, np.log(3), 5], [9, 9, 9]]))
    X = torch.tensor([[[1.0, 0.0], [1.0, 2.0], [7.0, 7.0]]])  # q = (1, 1, 7); the last position is empty
    context, A = attention(X, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(A, torch.tensor([[2 / 5, 3 / 5, 0.0]]))
    torch.testing.assert_close(context, torch.tensor([[1.0, 6 / 5]]))


# Training


def test_gradients_reach_every_weight(full):
    module = NearShallowLM.from_model(full)
    ids = torch.from_numpy(sequences(50))
    loss = torch.nn.functional.cross_entropy(module(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    for name, weight in module.named_parameters():
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 0, name
    assert [name for name, _ in module.named_buffers()] == ["contexts.memory.labels.weight"]


def test_gradients_are_those_of_finite_differences():
    config = Config(vocab_size=7, separator=0, bits=3, hidden_bits=3, block_size=3, contexts=contexts.CONTEXTS)
    torch.manual_seed(0)
    module = NearShallowLM(config).double()
    ids = torch.tensor([[0, 3, 1, 0, 4, 5, 1, 6]])
    names, weights = zip(*module.named_parameters(), strict=True)

    def forward(*weights):
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (ids,))

    assert torch.autograd.gradcheck(forward, weights, fast_mode=True)


def test_a_cold_model_learns():
    torch.manual_seed(0)
    module = NearShallowLM(Config(**SHAPE, contexts=contexts.CONTEXTS))
    ids = torch.from_numpy(TOKENS[:3200].reshape(32, 100))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(module(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    frequency = np.bincount(TOKENS, minlength=V) / TOKENS.size
    assert losses[0] == pytest.approx(np.log(V), abs=0.3)
    assert losses[-1] < -(frequency * np.log(frequency)).sum() - 0.3


# Generation


@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
@pytest.mark.parametrize("length", [1, BLOCK, 21])
def test_greedy_steps_are_those_of_the_whole_prefix(names, length):
    torch.manual_seed(length)
    module = NearShallowLM(Config(**SHAPE, contexts=names))
    with torch.no_grad():
        module.output.weight *= 20
        module.output.weight[:, SEPARATOR] -= 3  # so that documents rarely end
    ids = torch.from_numpy(sequences(length))
    generated = module.generate(ids, 30, temperature=0)
    assert torch.equal(generated[:, :length], ids)
    expected = module(generated[:, :-1]).argmax(-1)[:, length - 1 :]
    for row, best in zip(generated[:, length:], expected, strict=True):
        ends = (row == SEPARATOR).nonzero()
        n = int(ends[0]) + 1 if len(ends) else len(row)
        assert row[:n].tolist() == best[:n].tolist()
        assert (row[n:] == SEPARATOR).all()


def test_the_same_seed_gives_the_same_tokens(full):
    module, ids = NearShallowLM.from_model(full), torch.from_numpy(sequences(5))
    runs = [module.generate(ids, 40, seed=seed).tolist() for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_generation_ends_with_the_separator_row_by_row():
    module = NearShallowLM(Config(vocab_size=3, separator=0, bits=3, radius=1, contexts=("radial",)))
    with torch.no_grad():  # 2 -> 1 -> 0 (the separator) -> 2
        module.embedding.weight.copy_(torch.eye(3))
        module.output.weight.copy_(9 * torch.eye(3)[[2, 0, 1]])
    generated = module.generate(torch.tensor([[0], [1], [2]]), 10, temperature=0)
    assert generated.tolist() == [[0, 2, 1, 0], [1, 0, 0, 0], [2, 1, 0, 0]]
    assert module.generate(torch.tensor([[2]]), 1, temperature=0).tolist() == [[2, 1]]
    assert module.generate(torch.tensor([[2]]), 0).tolist() == [[2]]


def test_separators_in_front_change_nothing(full):
    module = NearShallowLM.from_model(full)
    prompt = torch.tensor([[SEPARATOR, 3, 1, 4]])
    padded = torch.cat([torch.full((1, 6), SEPARATOR), prompt], dim=1)
    short, long = (module.generate(ids, 20, temperature=0) for ids in (prompt, padded))
    assert short[0].tolist() == long[0, 6:].tolist()


def test_samples_follow_the_nucleus():
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.3, 0.2]])).expand(20_000, 4)
    generator = torch.Generator().manual_seed(0)
    for top_p, expected in [(0.4, [0, 1, 0, 0]), (0.5, [0, 4 / 7, 3 / 7, 0]), (1.0, [0.1, 0.4, 0.3, 0.2])]:
        shares = sample(logits, 1.0, top_p, generator).bincount(minlength=4) / 20_000
        np.testing.assert_allclose(shares, expected, atol=0.015)
        assert [p == 0 for p in shares.tolist()] == [p == 0 for p in expected]
    sharp = sample(logits, 0.5, 1.0, generator).bincount(minlength=4) / 20_000
    np.testing.assert_allclose(sharp, np.array([1, 16, 9, 4]) / 30, atol=0.015)
    for temperature in (0, 1e-300, 1e-8):
        assert (sample(logits, temperature, 1.0, generator) == 1).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": -1},
        {"seed": -1},
        {"seed": 2**63},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
    ],
    ids=str,
)
def test_wrong_numbers_are_refused_by_name(full, wrong):
    options = {"max_new_tokens": 3} | wrong
    with pytest.raises(InputError, match=f"{next(iter(wrong))}: expected"):
        NearShallowLM.from_model(full).generate(torch.tensor([[1]]), **options)


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor([1, 2]),
        torch.zeros(2, 0, dtype=torch.int64),
        torch.tensor([[1.0]]),
        torch.tensor([[True]]),
        torch.tensor([[V]]),
        torch.tensor([[-1]]),
    ],
    ids=str,
)
def test_wrong_ids_are_refused(full, ids):
    module = NearShallowLM.from_model(full)
    for call in (module, lambda ids: module.generate(ids, 1)):
        with pytest.raises(InputError, match="expected token ids"):
            call(ids)


def test_an_empty_batch_and_narrow_integers_are_accepted(full):
    module = NearShallowLM.from_model(full)
    assert module(torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3, V)
    ids = sequences(9)
    narrow = torch.from_numpy(ids.astype(np.uint16))
    assert torch.equal(module(narrow), module(torch.from_numpy(ids)))


# On disk


def test_a_saved_model_loads_unchanged(full, tmp_path):
    module = NearShallowLM.from_model(full)
    module.save_pretrained(tmp_path / "model")
    loaded = NearShallowLM.from_pretrained(str(tmp_path / "model"))
    ids = torch.from_numpy(sequences(30))
    assert loaded.config == full.config
    assert torch.equal(loaded(ids), module(ids))
    state = load_file(tmp_path / "model" / "model.safetensors")
    assert {name: weight.tolist() for name, weight in state.items()} == {
        name: weight.tolist() for name, weight in module.state_dict().items()
    }


def test_a_half_precision_model_is_saved_in_float32(full, tmp_path):
    module = NearShallowLM.from_model(full).half()
    module.save_pretrained(tmp_path / "model")
    loaded = NearShallowLM.from_pretrained(tmp_path / "model")
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.output.weight.half(), module.output.weight)


def test_weights_in_bfloat16_are_refused(full, tmp_path):
    module = NearShallowLM.from_model(full)
    module.save_pretrained(tmp_path / "model")
    save_file(module.bfloat16().state_dict(), tmp_path / "model" / "model.safetensors")
    with pytest.raises(InputError, match=r"expected float32 weights, got: .*bfloat16"):
        NearShallowLM.from_pretrained(tmp_path / "model")
