"""The near-shallow network as a model of Hugging Face, alone and beside counts, against the modules of this package."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import AutoConfig

from warmstart import WarmStartLM
from warmstart.errors import InputError
from warmstart.hub import CountedForCausalLM, NearShallowConfig, NearShallowForCausalLM
from warmstart.layers import NearShallowLM
from warmstart.near_shallow import Config

V, SEPARATOR = 30, 2
CONTEXTS = {"small": ("radial", "document"), "all": ("radial", "attended", "block", "document", "memory")}


def network(name):
    torch.manual_seed(0)
    config = Config(V, SEPARATOR, bits=8, hidden_bits=6, radius=2, block_size=4, contexts=CONTEXTS[name])
    found = NearShallowLM(config)
    with torch.no_grad():
        found.output.weight.mul_(8.0)  # far from equal probabilities
    return found


def text(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    tokens = [token for token in range(V) if token != SEPARATOR]
    return torch.tensor([t for n in lengths for t in [SEPARATOR, *rng.choice(tokens, n)]])[None]


@pytest.fixture(scope="module")
def language_model():
    texts = ["the cat sat on the mat and the dog sat on the rug. " * n for n in (1, 3, 2)]
    texts += ["a rug is not a mat, said the cat. " * n for n in (2, 5)]
    sizes = {"bits": 32, "hidden_bits": 16, "radius": 2, "block_size": 4, "vocab_size": 280}
    return WarmStartLM(contexts=("ngrams", "classes", "cache", "radial", "document"), order=3, **sizes).fit(texts)


@pytest.mark.parametrize("name", CONTEXTS)
def test_logits_and_loss_are_those_of_the_network(name):
    own, ids = network(name), text(9, 0, 4)
    model = NearShallowForCausalLM.of(own)
    expected = own(ids)
    torch.testing.assert_close(model(ids).logits, expected)
    torch.testing.assert_close(model(ids[:, 1:]).logits, expected[:, 1:])  # the separator in front may be missing
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, expected[:, -3:])
    labels = ids.clone()
    labels[0, 3:5] = -100
    losses = torch.nn.functional.cross_entropy(expected[0, :-1], labels[0, 1:])
    torch.testing.assert_close(model(ids, labels=labels).loss, losses)
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=4).loss * 4, losses * (ids.shape[1] - 3))
    model(ids, labels=labels).loss.backward()
    assert model.network.output.weight.grad.abs().sum() > 0
    padded = torch.cat([torch.full((1, 3), 7), ids[:, 1:]], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 3:], expected[:, 1:])


@pytest.mark.parametrize("name", CONTEXTS)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_state_and_in_batches_is_that_of_rows_alone(name, beams):
    model = NearShallowForCausalLM.of(network(name)).eval()
    options = {"max_new_tokens": 9, "num_beams": beams, "do_sample": False, "pad_token_id": 7}
    prompts = [text(6)[0].tolist(), text(2, seed=1)[0, 1:].tolist(), text(3, seed=2)[0].tolist()]
    alone = [model.generate(torch.tensor([p]), use_cache=False, **options)[0].tolist() for p in prompts]
    for prompt, written in zip(prompts, alone, strict=True):
        assert model.generate(torch.tensor([prompt]), **options)[0].tolist() == written
    ids = torch.tensor([[7] * (7 - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (7 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    together = model.generate(ids, attention_mask=mask, **options).tolist()
    for prompt, written, one in zip(prompts, together, alone, strict=True):
        assert written[7 : 7 + len(one) - len(prompt)] == one[len(prompt) :]


def test_a_folder_gives_the_network_back(tmp_path):
    model, ids = NearShallowForCausalLM.of(network("all")).eval(), text(9, 4)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is NearShallowForCausalLM
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert AutoConfig.from_pretrained(tmp_path).network() == network("all").config
    assert (tmp_path / "modeling_warmstart.py").exists()


def test_a_cold_model_starts_as_the_network_does():
    config = NearShallowConfig(**asdict(Config(2000, 0, bits=64, hidden_bits=16, contexts=("radial", "memory"))))
    model = NearShallowForCausalLM(config)
    assert model.network.embedding.weight.std().item() == pytest.approx(64**-0.5, rel=0.02)
    bound = (6 / (64 * 2 + 16 + 2000)) ** 0.5
    assert model.network.output.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    labels = model.network.contexts["memory"].labels.weight
    assert torch.equal(labels, NearShallowLM(config.network()).contexts["memory"].labels.weight)
    with pytest.raises(InputError, match="bits: expected a whole number"):
        NearShallowForCausalLM(NearShallowConfig(bits=0))
    with pytest.raises(InputError, match="expected token ids from 0 to 1999"):
        model(torch.tensor([[2000]]))


def test_a_model_folder_of_this_package(tmp_path):
    own = network("small")
    own.save_pretrained(tmp_path)
    ids = text(5)
    torch.testing.assert_close(NearShallowForCausalLM.from_model_folder(tmp_path)(ids).logits, own(ids))


def test_a_language_model_becomes_a_model_of_hugging_face(language_model, tmp_path):
    model = CountedForCausalLM.of(language_model).eval()
    ids = language_model.tokenizer_.encode("the cat sat on a mat and the cat said the cat").ids
    expected = np.log([language_model.predict_proba(ids[: i + 1]) for i in range(len(ids))])
    np.testing.assert_allclose(model(torch.tensor([ids])).logits[0].detach(), expected, atol=1e-5)
    model.save_pretrained(tmp_path)
    language_model.tokenizer_.save(str(tmp_path / "tokenizer.json"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    np.testing.assert_allclose(again(torch.tensor([ids])).logits[0].detach(), expected, atol=1e-5)
    assert again.config.vocabulary


def test_scores_and_loss_are_those_of_the_language_model(language_model):
    from warmstart.corpus import Corpus

    texts = ["a dog sat on the mat and the cat on a rug. " * 4, "", "said the dog."]
    corpus = Corpus.encode(texts, language_model.tokenizer_)
    model = CountedForCausalLM.of(language_model).eval()
    expected = language_model.mixture_.score(corpus.tokens, corpus.documents)
    found = model.score(corpus.tokens, batch=2)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
    results = model.evaluate(corpus)
    assert results["nats"] == pytest.approx(-expected.log_probs.mean(), abs=1e-5)
    assert results["network_nats"] == pytest.approx(-found.network.mean())
    assert results["bits_per_byte"] == pytest.approx(language_model.evaluate(texts)["bits_per_byte"], abs=1e-5)
    ids = torch.from_numpy(corpus.tokens.astype(np.int64))[None]
    assert model(ids, labels=ids).loss.item() == pytest.approx(-expected.log_probs.mean(), abs=1e-5)
    assert model.generate(ids[:, :9], max_new_tokens=5, do_sample=False, num_beams=2).shape[1] <= 14


def test_counts_alone_are_no_decoder():
    counts = WarmStartLM(preset="potato", vocab_size=280).fit(["some text. " * 9])
    with pytest.raises(InputError, match="expected a model with a network, got counts alone"):
        CountedForCausalLM.of(counts)
