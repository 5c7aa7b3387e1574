"""Models for Hugging Face: a decoder beside counts, against the mixture token by token and by hand."""

import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from mixtures import mixture
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

from warmstart import mixture as mixtures
from warmstart.errors import InputError
from warmstart.gate import FLOOR, Gate
from warmstart.hub import CountedConfig, CountedForCausalLM
from warmstart.hub.losses import plain_head
from warmstart.hub.scoring import windows
from warmstart.hub.tables import CODE, EXPERTS
from warmstart.layers.gate import MixtureGate
from warmstart.mixture import Experts, Mixture
from warmstart.stream import Stream

V, SEPARATOR, PADDED = 40, 3, 43
COUNTS = ("ngrams", "classes", "cache")
SIZES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
    },
}
SIZES["granite"] = SIZES["llama"] | {"logits_scaling": 3.0}  # logits are no plain head
SIZES["gemma2"] = SIZES["llama"] | {"head_dim": 16, "final_logit_softcapping": 2.0}
FAMILIES = list(SIZES)


def documents(seed=0, lengths=(5, 1, 30, 60, 0, 24)):
    rng = np.random.default_rng(seed)
    others = [token for token in range(V) if token != SEPARATOR]
    return [rng.choice(others[:12], size=n).tolist() + [int(rng.choice(others))] * (n > 3) for n in lengths]


def text(seed=1):
    return np.array([SEPARATOR, *(token for document in documents(seed) for token in [*document, SEPARATOR])])


def rows(*arrays):
    return torch.from_numpy(np.stack(arrays))


@functools.cache
def counted(experts=COUNTS):
    return mixture((V, SEPARATOR, documents()), experts, order=4)[0]


def decoder(family="gpt2", vocab_size=PADDED, **more):
    torch.manual_seed(0)
    special = {"bos_token_id": SEPARATOR, "eos_token_id": SEPARATOR, "pad_token_id": V}
    config = AutoConfig.for_model(family, vocab_size=vocab_size, **special, **SIZES[family], **more)
    base = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in base.parameters():
            weight.mul_(3.0)  # far from equal probabilities
    return base


def build(family="gpt2", experts=COUNTS, share=0.3, **more):
    return CountedForCausalLM.beside(decoder(family, **more), counted(experts), share).eval()


def by_hand(model, ids, experts):
    """Return the mixture after each token of one row (n, V), read token by token in numpy."""
    with torch.no_grad():
        q = model.base(torch.tensor([ids])).logits[0, :, :V].double().softmax(-1).numpy()
    weights, found = model.gate.to_model().weights, []
    stream = Stream(counted(experts))
    for i, token in enumerate(ids):
        stream.advance([token])
        own = counted(experts).gate
        bucket = int(np.flatnonzero((own.weights == stream.weights()).all(axis=1))[0])  # the drawn weights differ
        every = np.insert(stream.rows(), -1, q[i], axis=0)
        found.append(weights[bucket] @ every)
    return np.array(found)


@pytest.mark.parametrize("experts", [("ngrams",), ("cache",), ("ngrams", "classes"), COUNTS])
@pytest.mark.parametrize("begun", [True, False])
def test_logits_are_log_probabilities_of_the_mixture(experts, begun):
    model, ids = build(experts=experts), [SEPARATOR, *documents(2)[3][:20]][not begun :]
    out = model(torch.tensor([ids])).logits
    assert out.dtype == torch.float32
    assert out[0, :, V:].eq(-torch.inf).all()
    np.testing.assert_allclose(out.exp().sum(-1).detach(), 1.0, atol=1e-5)
    np.testing.assert_allclose(out[0, :, :V].detach(), np.log(by_hand(model, ids, experts)), atol=2e-5)
    with torch.no_grad():  # another way through the code: in place
        np.testing.assert_allclose(model(torch.tensor([ids])).logits, out.detach(), atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_labels_is_that_of_the_logits(family):
    model = build(family)
    ids = rows(text()[:20], text(5)[:20])
    labels = ids.clone()
    labels[:, 4:7] = -100
    assert plain_head(model.base) == (family in ("gpt2", "llama"))
    scored = model(ids, labels=labels)
    assert scored.logits is None
    both = model(ids, labels=labels, return_logits=True)
    log_probs = both.logits[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    expected = -log_probs[labels[:, 1:] != -100].mean()
    torch.testing.assert_close(scored.loss, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(both.loss, scored.loss)
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=7).loss * 7, expected * 32)


def test_the_loss_in_training_is_that_of_the_mixture_and_of_the_decoder():
    model = build().train()
    model.config.network_loss = 0.5
    model.base.eval()  # no dropout
    rng, ids = np.random.default_rng(0), rows(text()[:12])
    m = len(model.config.experts) - 1
    probs = torch.from_numpy(rng.random((1, 12, m))).float()
    buckets = torch.from_numpy(rng.integers(0, len(model.gate.logits), (1, 12)))
    labels = ids.clone()
    labels[0, 5] = -100
    loss = model(ids, labels=labels, expert_probs=probs, expert_buckets=buckets).loss
    q = model.base(ids).logits[0, :, :V].double().softmax(-1).detach().numpy()
    weights, total = model.gate.to_model().weights, []
    for t in range(1, 12):
        if t != 5:
            own = q[t - 1, ids[0, t]]
            every = np.insert(probs[0, t].double().numpy(), -1, own)
            total.append(-np.log(weights[buckets[0, t]] @ every) - 0.5 * np.log(own))
    assert loss.item() == pytest.approx(np.mean(total), abs=1e-5)
    loss.backward()
    assert model.gate.logits.grad.abs().sum() > 0
    assert all(weight.grad is not None for weight in model.base.parameters())
    assert model.base.lm_head.weight.grad[V:].abs().sum() == 0 or model.base.config.tie_word_embeddings


def test_what_the_experts_say_can_be_given_or_computed():
    model, tokens = build(), text()
    ids = rows(tokens[30:50])
    (evidence,) = [evidence for _, evidence in counted().experts.scan(tokens)]
    place = np.arange(29, 49)  # targets are numbered from 0
    probs = torch.from_numpy(evidence.probs[place])[None].float()
    buckets = model.gate.index(torch.from_numpy(evidence.features[place]))[None]
    given = model(ids, labels=ids, expert_probs=probs, expert_buckets=buckets).loss
    history = rows(tokens[:30])
    torch.testing.assert_close(model(ids, labels=ids, history_ids=history).loss, given, atol=1e-5, rtol=0)
    assert abs((model(ids, labels=ids).loss - given).item()) > 1e-3
    last = model(ids, history_ids=history).logits[:, :-1].gather(2, ids[:, 1:, None]).mean()
    torch.testing.assert_close(-last, given, atol=1e-5, rtol=0)
    padded = torch.cat([torch.full((1, 3), V), history], dim=1)  # a token above the counts is padding
    torch.testing.assert_close(model(ids, labels=ids, history_ids=padded).loss, given, atol=1e-5, rtol=0)


def test_start():
    model = build(share=0.25)
    weights = model.gate.to_model().weights
    assert model.config.experts[-2:] == ["network", "unigram"]
    np.testing.assert_allclose(weights[:, -2], 0.25, atol=0.005)  # the floor of the unigram model takes the rest
    assert weights[:, -1].min() >= FLOOR - 1e-9
    others = np.delete(weights, -2, axis=1)
    before = counted().gate.weights
    np.testing.assert_allclose(others[:, :-1] / others[:, :1], before[:, :-1] / before[:, :1], rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.train()(IDS, labels=IDS), "expert_probs and expert_buckets in training, got none"),
        (lambda m: m.train()(IDS), "labels and no logits in training"),
        (lambda m: m.train()(IDS, labels=IDS, **said(m, -1)), r"expected expert_probs \(.*\) and expert_buckets"),
        (lambda m: m.train()(IDS, labels=IDS, **said(m, 0, 10**6)), "expert_buckets: expected 0 to"),
        (lambda m: m(IDS, labels=IDS + V), r"labels: expected -100 or tokens from 0 to 39, got 40 to \d\d"),
        (lambda m: m(IDS, labels=IDS.flip(1)), "the tokens of input_ids or -100, got others"),
        (lambda m: m(IDS, history_ids=-IDS), "expected token ids from 0, got -"),
        (lambda m: AutoModelForCausalLM.from_config(m.config).eval()(IDS, labels=IDS), "got weights alone"),
        (lambda m: m.score(IDS + V), "expected token ids from 0 to 39"),
        (lambda m: m.score(IDS, length=33), "from 1 to 32 tokens, which the decoder can read, got 33"),
        (lambda m: m.score(IDS, stride=40), "from 1 to 32 targets"),
        (lambda m: m.__setattr__("experts", None) or m.save_pretrained("nothing"), "got weights alone"),
        (lambda m: CountedForCausalLM.beside(decoder(vocab_size=39), counted()), "at least the 40 tokens"),
        (lambda m: CountedForCausalLM.beside(decoder(), counted(("ngrams", "network"))), "without a network"),
        (lambda m: CountedForCausalLM.beside(decoder(), counted(), 1.0), "network_share: expected a number above 0"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(InputError, match=message):
        change(build())


IDS = rows(text()[:10])


def said(model, more=0, buckets=0):
    """Return what experts say of IDS: of a model with ``more`` experts, in a bucket."""
    m = model.gate.logits.shape[1] - 1 + more
    return {"expert_probs": torch.full((*IDS.shape, m), 0.5), "expert_buckets": torch.full(IDS.shape, buckets)}


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_cache_and_in_batches_is_that_of_rows_alone(family, beams):
    model = build(family)
    options = {"max_new_tokens": 9, "num_beams": beams, "do_sample": False, "pad_token_id": V}
    prompts = [text(2)[:7].tolist(), text(3)[1:4].tolist(), text(4)[:5].tolist()]
    alone = [model.generate(torch.tensor([row]), use_cache=False, **options)[0] for row in prompts]
    for row, written in zip(prompts, alone, strict=True):
        again = model.generate(torch.tensor([row]), **options)[0]
        assert again.tolist() == written.tolist()
    ids = torch.tensor([[V] * (7 - len(row)) + row for row in prompts])
    together = model.generate(ids, attention_mask=(ids != V).long(), **options)
    for row, written, one in zip(prompts, together.tolist(), alone, strict=True):
        new = written[7 : 7 + len(one) - len(row)]
        assert new == one[len(row) :].tolist()
    if beams == 1:  # greedy: the most probable token of the mixture, each time
        for written, row in zip(alone, prompts, strict=True):
            logits = model(written[None, :-1]).logits[0, len(row) - 1 :]
            assert logits.argmax(-1).tolist() == written[len(row) :].tolist()


def test_sampling_draws_from_the_mixture():
    model = build()
    ids = rows(text(2)[:7]).repeat(4000, 1)
    torch.manual_seed(0)
    drawn = model.generate(ids, max_new_tokens=1, do_sample=True, top_k=0)[:, -1]
    share = torch.bincount(drawn, minlength=PADDED) / 4000
    expected = model(ids[:1]).logits[0, -1].exp()
    assert (share - expected).abs().max() < 0.03
    assert not share[V:].any()


@pytest.mark.parametrize("batch", [1, 3])
def test_scores_of_a_text(batch):
    model, tokens = build(), text()
    scores = model.score(tokens, length=16, stride=5, batch=batch)
    expected = np.empty(tokens.size - 1)
    for start, first, end in windows(slice(0, tokens.size - 1), 16, 5):
        with torch.no_grad():
            logits = model(rows(tokens[start:end]), history_ids=rows(tokens[:start])).logits[0]
        expected[first:end] = logits[first - start :].gather(1, torch.tensor(tokens[first + 1 : end + 1])[:, None])[
            :, 0
        ]
    np.testing.assert_allclose(scores.log_probs, expected, atol=2e-5)
    with torch.no_grad():
        q = model.base(rows(tokens[:16])).logits[0, :, :V].log_softmax(-1)
    np.testing.assert_allclose(scores.network[:5], q[:5].gather(1, torch.tensor(tokens[1:6])[:, None])[:, 0], atol=1e-5)
    np.testing.assert_allclose(model.score(tokens[1:], length=16, stride=5).log_probs, scores.log_probs, atol=1e-5)


@pytest.mark.parametrize("width", [0, 5])
def test_weights_without_a_gradient_are_those_with_one(width):
    torch.manual_seed(0)
    gate = MixtureGate(Gate((7,), np.full((7, 4), 0.25)), width=width)
    with torch.no_grad():
        for weight in gate.parameters():
            weight.copy_(3 * torch.randn(weight.shape))
    buckets, hidden = np.array([6, 0, 6]), 5 * torch.randn(3, 5) if width else None
    expected = gate.weights(torch.from_numpy(buckets), hidden).detach().numpy()
    np.testing.assert_allclose(gate.constants(buckets, hidden), expected, rtol=1e-5)


def test_caches_that_are_smaller_than_the_text(monkeypatch):
    shapes = {"cache": (4, 20), "cache 1024": (3, 9), "cache 128": (2, 4)}
    monkeypatch.setattr(mixtures, "CACHES", shapes)
    monkeypatch.setattr("warmstart.stream.CACHES", shapes)
    monkeypatch.setattr(mixtures, "CACHE_SHAPES", tuple(np.array(list(shapes.values())).T.copy()))
    own, tokens = counted(), text()
    places = np.arange(tokens.size)
    weights = own.gate.weights[own.experts.buckets_after(tokens, places)]
    mixed = np.ones((tokens.size, V), np.float32)
    own.experts.mix_rows(tokens, places, np.insert(weights, -1, 0.0, axis=1).astype(np.float32), mixed)
    stream = Stream(own)
    for i, token in enumerate(tokens):
        stream.advance([token])
        np.testing.assert_allclose(weights[i], stream.weights())
        np.testing.assert_allclose(mixed[i], stream.row(), rtol=1e-5)


def test_a_folder_gives_the_model_back(tmp_path):
    model = build()
    with torch.no_grad():
        model.gate.logits += torch.randn(model.gate.logits.shape)
    model.save_pretrained(tmp_path / "a")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert type(again) is CountedForCausalLM
    assert not again.training
    torch.testing.assert_close(again(IDS).logits[..., :V], model(IDS).logits[..., :V], atol=1e-5, rtol=0)
    again.save_pretrained(tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "b").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "a").iterdir())
    narrow = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.bfloat16, device_map="cpu")
    assert (narrow.dtype, narrow.gate.logits.dtype) == (torch.bfloat16, torch.float32)
    out = narrow(IDS).logits
    torch.testing.assert_close(out.exp().sum(-1), torch.ones(out.shape[:2]), atol=1e-3, rtol=0)
    torch.testing.assert_close(out[..., :V], model(IDS).logits[..., :V], atol=0.05, rtol=0)
    _, found = AutoModelForCausalLM.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]  # noqa: PT018


def test_tables_are_copied_from_a_folder_that_still_has_them(tmp_path, monkeypatch):
    model = build()
    model.save_pretrained(tmp_path / "a")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr("warmstart.hub.counted.save_experts", None)
        for one in (model, again):
            one.save_pretrained(tmp_path / "b")
            one.save_pretrained(tmp_path / "b")
            for name in (EXPERTS, "ngrams.safetensors", "classes-1.safetensors"):
                assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    (tmp_path / "b" / "ngrams.safetensors").unlink()
    again.save_pretrained(tmp_path / "c")  # written anew
    again.experts = mixture((V, SEPARATOR, documents(9)), COUNTS, order=4)[0].experts
    again.save_pretrained(tmp_path / "d")
    for name, expected in (("c", model), ("d", again)):
        found = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        logits = found(IDS).logits[..., :V], expected(IDS).logits[..., :V]
        torch.testing.assert_close(*logits, atol=1e-5, rtol=0)


def test_attention_stays_that_of_the_decoder(tmp_path):
    model = build(attn_implementation="eager")
    assert model.base.config._attn_implementation == "eager"
    assert build().base.config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path)
    asked = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert asked.base.config._attn_implementation == "eager"


def damage(path, how):
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:] if how == "changed" else content[:-9])


@pytest.mark.parametrize("name", [EXPERTS, "ngrams.safetensors", "classes-0.safetensors"])
@pytest.mark.parametrize("how", ["missing", "changed", "truncated"])
def test_damaged_tables_are_refused(tmp_path, name, how):
    build().save_pretrained(tmp_path)
    damage(tmp_path / name, how)
    with pytest.raises(InputError, match=name):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_tables_of_another_model_are_refused(tmp_path):
    build().save_pretrained(tmp_path / "a")
    other = mixture((V, SEPARATOR, documents(9)), COUNTS, order=4)[0]
    CountedForCausalLM.beside(decoder(), other).save_pretrained(tmp_path / "b")
    for name in ("ngrams.safetensors", EXPERTS):
        kept = (tmp_path / "a" / name).read_bytes()
        (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
        with pytest.raises(InputError, match=f"{name}: expected the .* of this model, got those of another one"):
            AutoModelForCausalLM.from_pretrained(tmp_path / "a")
        (tmp_path / "a" / name).write_bytes(kept)
    AutoModelForCausalLM.from_pretrained(tmp_path / "a")


def test_a_tokenizer_that_changed_is_refused(tmp_path):
    from tokenizers import Tokenizer, models

    from warmstart.ngrams import vocabulary_digest
    from warmstart.tokenizer import SEPARATOR as NAME

    vocabulary = {f"t{i}": i for i in range(V)} | {NAME: SEPARATOR}
    del vocabulary[f"t{SEPARATOR}"]
    model = CountedForCausalLM.beside(decoder(), counted(), vocabulary=vocabulary_digest(vocabulary))
    model.save_pretrained(tmp_path)

    def write(tokens):
        Tokenizer(models.WordLevel(tokens, unk_token="t0")).save(str(tmp_path / "tokenizer.json"))  # noqa: S106

    write(vocabulary | {"padding": V})
    AutoModelForCausalLM.from_pretrained(tmp_path)
    write(vocabulary | {"t7": 8, "t8": 7})
    with pytest.raises(InputError, match=r"tokenizer.json: expected the tokenizer that the text was counted with"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_fresh_process_loads_a_folder_by_its_own_code(tmp_path):
    build().save_pretrained(tmp_path / "model")
    code = (
        "import sys; from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'model')!r}, trust_remote_code=True)\n"
        "import torch; print(type(model).__module__, model(torch.tensor([[3, 1]])).logits.exp().sum(-1).tolist())\n"
        f"model.save_pretrained({str(tmp_path / 'again')!r})"
    )
    options = {"capture_output": True, "text": True, "check": False}
    options["env"] = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    result = subprocess.run([sys.executable, "-c", code], **options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("warmstart.hub.counted [[")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["auto_map"]["AutoModelForCausalLM"] == "modeling_warmstart.CountedForCausalLM"
    assert (tmp_path / "again" / CODE).read_text() == (tmp_path / "model" / CODE).read_text()
    without = "import sys; sys.modules['warmstart'] = None\n" + code
    result = subprocess.run([sys.executable, "-c", without], **options)
    assert "pip install 'warmstart[hf]'" in result.stderr


class Data(torch.utils.data.Dataset):
    """Windows of a text with what its experts say of every token."""

    def __init__(self, model, tokens, length=16):
        (evidence,) = [evidence for _, evidence in model.experts.scan(tokens)]
        self.probs = torch.from_numpy(evidence.probs).float()
        self.buckets = model.gate.index(torch.from_numpy(evidence.features))
        self.tokens, self.length = torch.from_numpy(tokens), length

    def __len__(self):
        return (len(self.tokens) - 2) // self.length

    def __getitem__(self, i):
        span = slice(1 + i * self.length, 1 + (i + 1) * self.length)
        said = slice(span.start - 1, span.stop - 1)
        ids = self.tokens[span]
        out = {"input_ids": ids, "labels": ids, "document": i, "offset": 0}
        return out | {"expert_probs": self.probs[said], "expert_buckets": self.buckets[said]}


@pytest.mark.filterwarnings("ignore:.*pin_memory")
def test_checkpoints_of_the_trainer_are_folders_of_the_model(tmp_path):
    model = build()
    train(model, tmp_path, save_strategy="steps", save_steps=6)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-12")
    torch.testing.assert_close(found(IDS).logits[..., :V], model(IDS).logits[..., :V], atol=1e-5, rtol=0)
    options = TrainingArguments(str(tmp_path), max_steps=14, use_cpu=True, disable_tqdm=True, report_to=[])
    begun = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-6")
    trainer = Trainer(begun, options, train_dataset=Data(model, text()))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert trainer.state.global_step == 14


def train(model, folder, **more):
    usual = {"max_steps": 12, "learning_rate": 1e-2, "per_device_train_batch_size": 4, "save_strategy": "no"}
    options = TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, report_to=[], **usual | more)
    data = Data(model, text())
    trainer = Trainer(model, options, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    return before, trainer.evaluate()["eval_loss"]


@pytest.mark.filterwarnings("ignore:.*pin_memory")
@pytest.mark.parametrize("more", [{}, {"gradient_accumulation_steps": 2}, {"activation_checkpointing": True}])
def test_the_stock_trainer_trains_it(tmp_path, more):
    before, after = train(build(), tmp_path, **more)
    assert after < before - 0.1


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of PyTorch itself
@pytest.mark.parametrize("family", ["gpt2", "granite"])
def test_a_compiled_step_is_that_of_the_model(family):
    model = build(family).train()
    model.base.eval()
    row = Data(model, text())[1]
    inputs = {name: value[None] for name, value in row.items() if isinstance(value, torch.Tensor)}
    expected = model(**inputs).loss
    expected.backward()
    gradient = model.gate.logits.grad.clone()
    model.zero_grad()
    found = torch.compile(model, backend="aot_eager")(**inputs).loss
    found.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(model.gate.logits.grad, gradient)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
def test_adapters_of_the_decoder_train():
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    model = build("llama")
    model.base = peft.get_peft_model(model.base, peft.LoraConfig(target_modules=["q_proj", "lm_head"], r=2))
    model.train()
    row = Data(model, text())[0]
    inputs = {name: value[None] for name, value in row.items() if isinstance(value, torch.Tensor)}
    model(**inputs).loss.backward()
    trained = [name for name, weight in model.base.named_parameters() if weight.grad is not None]
    assert trained
    assert all("lora_" in name for name in trained)
    model.eval()
    logits = model(IDS, labels=IDS, return_logits=True)
    expected = -logits.logits[:, :-1].gather(2, IDS[:, 1:, None]).mean()
    torch.testing.assert_close(logits.loss, expected, atol=1e-5, rtol=0)


def test_the_unigram_model_alone_can_be_beside():
    experts = Experts(SEPARATOR, counted().experts.prior)
    sizes = experts.feature_sizes
    model = CountedForCausalLM.beside(decoder(), Mixture(experts, Gate(sizes, np.ones((int(np.prod(sizes)), 1)))), 0.7)
    with torch.no_grad():
        q = model.base.eval()(IDS).logits[..., :V].softmax(-1)
        expected = 0.7 * q + 0.3 * torch.from_numpy(experts.prior)
        torch.testing.assert_close(model.eval()(IDS).logits[..., :V].exp(), expected.float(), atol=1e-5, rtol=1e-4)


def test_a_configuration_goes_through_json():
    config = build().config
    again = CountedConfig.from_dict(json.loads(config.to_json_string()))
    assert again.base_config.n_embd == 32
    assert again.to_dict() == config.to_dict()
    assert config.get_text_config().vocab_size == PADDED
