"""New embeddings for small Hugging Face models: rows, special tokens, ties, configuration, reloading."""

import copy

import numpy as np
import pytest
import torch

from warmstart import InputError, replace_embeddings

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
TEXTS = ["the cat sat on the mat", "a dog sat on a log", "the dog saw a cat", "a log and a mat"] * 3
WORDS = sorted(set(" ".join(TEXTS).split()))


def tokenizer(words, special=SPECIAL):
    vocabulary = {token: i for i, token in enumerate([*special.values(), *words])}
    model = tokenizers.models.WordLevel(vocabulary, unk_token=special["unk_token"])
    fast = tokenizers.Tokenizer(model)
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=fast, **special)


OLD = tokenizer(["some", "old", "words", "cat"])
NEW = tokenizer([*WORDS, "unseen"])
SIZES = {"num_attention_heads": 2, "vocab_size": 12, "max_position_embeddings": 20, "hidden_size": 16}


def roberta(**options):
    config = transformers.RobertaConfig(**SIZES, num_hidden_layers=1, intermediate_size=16, **options)
    return transformers.RobertaForMaskedLM(config)


def t5(**options):
    options = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, **options}
    sizes = {"vocab_size": 12, "d_model": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "d_ff": 16}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **options))


def opt(**options):
    config = transformers.OPTConfig(**SIZES, num_hidden_layers=1, ffn_dim=16, word_embed_proj_dim=8, **options)
    return transformers.OPTForCausalLM(config)


MODELS = [roberta, t5, opt]
UNTIED = [*MODELS, lambda: roberta(tie_word_embeddings=False), lambda: t5(tie_word_embeddings=False)]


def fresh(build):
    """Return a model in evaluation mode whose bias is not zero, as after training."""
    torch.manual_seed(0)
    model = build().eval()
    if isinstance(model, transformers.RobertaForMaskedLM):
        with torch.no_grad():
            model.lm_head.bias.copy_(torch.arange(12.0))
    return model


def logits(model):
    ids = NEW("the cat sat on a log", return_tensors="pt")["input_ids"]
    options = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **options).logits


@pytest.mark.parametrize("build", UNTIED)
def test_same_logits_after_saving(build, tmp_path):
    model = fresh(build)
    replace_embeddings(model, NEW, TEXTS, old_tokenizer=OLD)
    assert logits(model).shape[-1] == len(NEW)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(loaded.eval()), logits(model))
    for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"):
        assert getattr(loaded.config, name, None) == getattr(model.config, name, None)
    assert loaded.config.vocab_size == len(NEW)
    assert (loaded.config.pad_token_id, loaded.config.eos_token_id) == (NEW.pad_token_id, NEW.eos_token_id)


@pytest.mark.parametrize("build", UNTIED)
def test_special_tokens_keep_their_rows_and_others_have_the_scale_of_the_old_rows(build):
    model = fresh(build)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head *= 3  # where it is untied, it has a scale of its own
    before = [table.weight.detach().clone() for table in (model.get_input_embeddings(), model.get_output_embeddings())]
    report = replace_embeddings(model, NEW, TEXTS, old_tokenizer=OLD)
    for old, table in zip(before, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True):
        new = table.weight.detach()
        assert torch.equal(new[:5], old[:5])
        assert not new[NEW.convert_tokens_to_ids("unseen")].any()
        rows = new[5 : 5 + len(WORDS)]
        assert rows.std(correction=0).item() == pytest.approx(old[5:].std().item(), rel=1e-4)
        assert rows.mean(0).abs().max() < 1e-5 * rows.std()
    assert report.notes == (
        "rows of special tokens kept: 5",
        f"rows computed: {len(WORDS)}",
        "rows set to zero, of tokens that are not in the corpus: 1",
    )


def test_rows_are_square_roots_of_the_shares_of_the_neighbours():
    """Every sentence has two words, so each word has one neighbour."""
    model = fresh(opt)  # a width of 8: codes of 4 bits
    new = tokenizer(["a", "b", "c", "d"])
    replace_embeddings(model, new, ["a b", "a b", "c d", "a d"], std=1.0)
    shares = np.zeros((4, 2, 4))  # codes are basis vectors by falling count, then by id
    order = sorted("abcd", key=lambda w: (-{"a": 3, "b": 2, "c": 1, "d": 2}[w], str(new.convert_tokens_to_ids(w))))
    for text in ["a b", "a b", "c d", "a d"]:
        left, right = text.split()
        shares["abcd".index(right), 0, order.index(left)] += 1
        shares["abcd".index(left), 1, order.index(right)] += 1
    shares /= np.maximum(shares.sum(axis=2, keepdims=True), 1)
    rows = np.sqrt(shares)
    rows = (rows / rows.sum(axis=(1, 2), keepdims=True)).reshape(4, 8)
    rows -= rows.mean(axis=0)
    rows /= rows.std()
    np.testing.assert_allclose(model.get_input_embeddings().weight.detach()[5:], rows, atol=1e-5)


def test_without_any_special_token_to_keep():
    new = tokenizer(WORDS, {"unk_token": "<unk>"})
    model = fresh(lambda: opt(pad_token_id=None))
    report = replace_embeddings(model, new, TEXTS, old_tokenizer=tokenizer(["x"], {"unk_token": "[unk]"}))
    assert report.notes[0] == "rows of special tokens kept: 0"
    assert model.config.eos_token_id is None


def test_the_bias_of_the_head_goes_with_its_tokens():
    model = fresh(roberta)
    report = replace_embeddings(model, NEW, TEXTS, old_tokenizer=OLD)
    assert model.lm_head.bias[:5].tolist() == [0, 1, 2, 3, 4]
    assert not model.lm_head.bias[5:].any()
    assert report.loaded == ("roberta.embeddings.word_embeddings.weight", "lm_head.bias")
    assert ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight") in report.tied


def test_special_tokens_move_with_the_tokenizer():
    """T5 and OPT do not count positions from the id of the padding, so it may change."""
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}
    new = tokenizer(WORDS, special)
    for build in (t5, opt):
        model = fresh(build)
        before = model.get_input_embeddings().weight.detach().clone()
        replace_embeddings(model, new, TEXTS)  # without the old tokenizer, by the ids in the configuration
        after = model.get_input_embeddings().weight.detach()
        assert torch.equal(after[[0, 1]], before[[1, 2]])
        assert (model.config.pad_token_id, model.config.eos_token_id) == (0, 1)
        assert model.generation_config.pad_token_id == 0
    assert model.get_input_embeddings().padding_idx == 0
    model = fresh(t5)
    replace_embeddings(model, new, TEXTS)
    assert (model.config.decoder_start_token_id, model.generation_config.decoder_start_token_id) == (0, 0)


def test_refused_before_anything_is_written():
    moved = tokenizer(WORDS, {"pad_token": "<pad>", "bos_token": "<s>", "unk_token": "<unk>"})
    unpadded = tokenizer(WORDS, {"unk_token": "<unk>", "eos_token": "</s>"})
    other = tokenizer([f"w{i}" for i in range(20)], dict(zip(SPECIAL, [f"[{i}]" for i in range(5)], strict=True)))
    other.add_special_tokens({"mask_token": "<mask>"})  # at id 25
    for build, new, corpus, message, *rest in [
        (roberta, moved, TEXTS, "pad token at id 1"),
        (t5, unpadded, TEXTS, "with a pad token"),
        (lambda: t5(decoder_start_token_id=5), NEW, TEXTS, "decoder_start_token_id"),
        (roberta, NEW, "a text", "put it in a list"),
        (roberta, NEW, [], "16 dimensions"),
        (opt, tokenizer([f"w{i}" for i in range(20)]), [" ".join(f"w{i}" for i in range(20))], "codes of 4 bits"),
        (t5, NEW, TEXTS, "within the 12 rows", {"old_tokenizer": other}),
        (t5, NEW, TEXTS, "finite number above 0", {"std": 0.0}),
    ]:
        options = rest[0] if rest else {}
        model = fresh(build)
        before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
        with pytest.raises(InputError, match=message):
            replace_embeddings(model, new, corpus, **options)
        assert model.config.to_dict() == config
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
