"""`warmstart init --counted` writes a decoder beside counts that trains on windows of the counted text."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs warmstart[hf]")
pytest.importorskip("accelerate", reason="needs warmstart[hf]")

from safetensors.numpy import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from transformers.utils import logging
from typer.testing import CliRunner

from warmstart.cli import app
from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.finetune import Windows, decoder_schedule
from warmstart.finetune.callback import PhaseCallback
from warmstart.finetune.evidence import counted_table, expert_table
from warmstart.finetune.phases import GATE_RATE
from warmstart.hub import CountedForCausalLM
from warmstart.hub.initialise import counted_recipe
from warmstart.kneser_ney import KneserNey
from warmstart.ngrams import NGramCounts, count_ngrams
from warmstart.solving import solve

pytestmark = pytest.mark.filterwarnings("default")  # transformers warns
logging.set_verbosity_error()
logging.disable_progress_bar()
ROOT = Path(__file__).parents[1]
CONFIG = json.dumps({"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16})
BERT = json.dumps({"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "is_decoder": True})
MAMBA = json.dumps({"hidden_size": 16, "num_hidden_layers": 1})
OPTIONS = ["--tokenizer", "words", "--json", "--quiet", "--config", CONFIG]


def texts(n, seed=0):
    """Return documents in which a word depends on the last but one: pairs do not know it, a network can learn it."""
    rng, documents = np.random.default_rng(seed), []
    for _ in range(n):
        found = rng.integers(0, 16, 2).tolist()
        for _ in range(int(rng.integers(1, 60))):
            found.append((found[-2] * 5 + int(rng.integers(3)) + (found[-1] == 3)) % 16)
        documents.append(" ".join("abcdefghijklmnop"[i] for i in found))
    return documents


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("<|endoftext|>".join(texts(300)))
    return path


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    path = tmp_path_factory.mktemp("held") / "held.txt"
    path.write_text("<|endoftext|>".join(texts(40, seed=9)))
    return path


def init(text, folder, *options):
    return CliRunner().invoke(app, ["init", str(text), "-o", str(folder), *OPTIONS, *options])


@pytest.fixture(scope="module")
def started(text, tmp_path_factory):
    """The folder of the default contexts, and what the command printed."""
    folder = tmp_path_factory.mktemp("models") / "counted"
    result = init(text, folder, "--counted", "--order", "2")
    assert result.exit_code == 0, result.output
    return folder, json.loads(result.stdout)


@pytest.fixture(scope="module")
def folder(started):
    return started[0]


@pytest.fixture(scope="module")
def counts(folder):
    return NGramCounts.load(folder / "counts.safetensors")


@pytest.fixture(scope="module")
def corpora(folder, text, held, tmp_path_factory):
    return [Corpus.encode(path, folder, cache_dir=tmp_path_factory.mktemp("cache")) for path in (text, held)]


@pytest.fixture
def model(folder):
    return CountedForCausalLM.from_pretrained(folder)


# The folder


def test_the_decoder_is_the_one_without_counts(started, text, tmp_path):
    folder, printed = started
    plain = init(text, tmp_path / "plain")
    assert plain.exit_code == 0, plain.output
    alone, beside = (load_file(path / "model.safetensors") for path in (tmp_path / "plain", folder))
    assert {
        name.removeprefix("base."): value.tobytes() for name, value in beside.items() if not name.startswith("gate.")
    } == {name: value.tobytes() for name, value in alone.items()}
    assert printed["loaded"] == json.loads(plain.stdout)["loaded"]
    assert {"corpus", "weights", "ngrams", "gate"} == printed["seconds"].keys()
    assert min(printed["seconds"].values()) >= 0
    assert printed["vocab_size"] == json.loads(plain.stdout)["vocab_size"]


def test_the_start_is_the_mixture_that_was_solved(started, counts, corpora):
    """A tenth of the weight is the network's, so new text costs about as much as with the counts alone."""
    folder, printed = started
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, CountedForCausalLM)
    scores = model.evaluate(corpora[1])
    solved = solve(counts, counted_recipe(order=2)).mixture
    alone = -solved.score(corpora[1].tokens, corpora[1].documents).log_probs.mean()
    assert scores["nats"] < min(alone - np.log(0.9), scores["network_nats"])
    weights = model.gate.to_model().weights
    np.testing.assert_allclose(weights[:, -2], 0.1, atol=0.01)
    np.testing.assert_allclose(np.delete(weights, -2, axis=1), 0.9 * solved.gate.weights, atol=0.01)
    assert printed["ngrams"] == solved.experts.ngrams.n_ngrams
    assert printed["left_out_perplexity"]["mixture"] == pytest.approx(np.exp(alone), rel=0.2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(tokenizer.eos_token + "a f", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape == (1, ids["input_ids"].shape[1] + 3)


@pytest.mark.parametrize("options", [("--prune", "0,0,1"), ("--contexts", "classes,cache"), ("--contexts", "cache")])
def test_other_experts(text, corpora, tmp_path, options):
    assert init(text, tmp_path / "model", "--counted", "--order", "3", *options).exit_code == 0
    model = CountedForCausalLM.from_pretrained(tmp_path / "model")
    counts = NGramCounts.load(tmp_path / "model" / "counts.safetensors")
    table = counted_table(model, corpora[0], counts)
    assert (table.left_out, table.new) == (corpora[0].n_documents, 0)
    assert (model.experts.ngrams is not None) == (options[0] == "--prune")
    if model.experts.ngrams is not None:
        kept = KneserNey(counts, (0, 0, 1))
        assert model.experts.ngrams.n_ngrams == kept.n_ngrams < KneserNey(counts).n_ngrams
        said = kept.left_out(corpora[0].tokens, corpora[0].documents).probs
        np.testing.assert_allclose(table.probs[:, 0], said, rtol=1e-6)
    batch = next(iter(DataLoader(Windows(corpora[0], 16, table), batch_size=2)))
    names = ("input_ids", "labels", "expert_probs", "expert_buckets")
    assert torch.isfinite(model.train()(**{name: batch[name] for name in names}).loss)


# What the counts say of the text


def test_the_counted_text_is_left_out_and_new_text_is_not(model, counts, corpora):
    table, new = counted_table(model, corpora[0], counts), counted_table(model, corpora[1])
    assert (table.left_out, table.new) == (corpora[0].n_documents, 0)
    assert (new.left_out, new.new) == (0, corpora[1].n_documents)
    experts = solve(counts, counted_recipe(order=2)).mixture.experts
    expected = expert_table(experts, corpora[0], counts)
    np.testing.assert_array_equal(table.probs, expected.probs)
    np.testing.assert_array_equal(table.buckets, expected.buckets)
    counted_as_new = counted_table(model, corpora[0])
    assert np.log(counted_as_new.probs[:, 0]).mean() > np.log(table.probs[:, 0]).mean() + 0.02


def test_what_is_of_another_text_is_refused(model, counts, corpora, text, tmp_path):
    fewer = counts - NGramCounts.load(_counts_of(texts(300)[:1], corpora[0].tokenizer, tmp_path))
    with pytest.raises(InputError, match="expected the statistic of the model, got another one"):
        counted_table(model, corpora[0], fewer)
    other = Corpus.build([f"{line} zz" for line in texts(300)], tokenizer="words", cache_dir=tmp_path)
    with pytest.raises(InputError, match=r"expected text in the .* tokens of the model, got other ones"):
        counted_table(model, other)
    padded = Corpus.encode(["a b <|padding|> c"], corpora[0].tokenizer, cache_dir=tmp_path)
    with pytest.raises(InputError, match=r"expected text in the .* tokens of the model, got other ones"):
        counted_table(model, padded)
    model.experts = None
    with pytest.raises(InputError, match="expected a model with its counts, got one without"):
        counted_table(model, corpora[1])


def test_a_text_cut_into_other_documents_is_refused(model, counts, corpora, text, tmp_path):
    """Its tokens were counted and could not be left out."""
    joined = text.read_text().replace("<|endoftext|>", " ")
    other = Corpus.encode([joined], corpora[0].tokenizer, cache_dir=tmp_path)
    with pytest.raises(InputError, match=r"expected documents that were counted, got 1 of 1 .* --split-documents"):
        counted_table(model, other, counts)


def test_other_commands_say_how_to_open_the_folder(folder):
    result = CliRunner().invoke(app, ["eval", str(folder)])
    assert "import warmstart.hub and open it with transformers.AutoModelForCausalLM" in str(result.exception)


def _counts_of(found, tokenizer, folder):
    """Write the counts of some texts in the ids of a tokenizer, without its token for padding."""
    corpus = Corpus.encode(found, tokenizer, cache_dir=folder)
    vocabulary = {word: i for word, i in tokenizer.get_vocab().items() if word != "<|padding|>"}
    counted = count_ngrams(corpus.tokens, corpus.documents, len(vocabulary), 2, vocabulary=vocabulary)
    counted.save(folder / "other.safetensors")
    return folder / "other.safetensors"


# Training


def test_the_trainer_reports_for_windows_what_the_model_scores_itself(model, corpora, tmp_path):
    windows = Windows(corpora[1], 16, counted_table(model, corpora[1]))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, prediction_loss_only=True,
        per_device_eval_batch_size=len(windows),
    )  # fmt: skip
    found = Trainer(model, arguments, eval_dataset=windows).evaluate()["eval_loss"]
    assert found == pytest.approx(_scored(model, corpora[1], 16), abs=1e-5)


def _scored(model, corpus, length):
    """Return nats a target by the experts of the model, its gate, and its decoder on stretches of the text."""
    probs = counted_table(model, corpus).probs.astype(float)
    buckets = counted_table(model, corpus).buckets
    network = np.empty(corpus.n_tokens)
    last = corpus.n_tokens + 1 - length
    ids = torch.from_numpy(np.asarray(corpus.tokens, dtype=np.int64))
    for start in [*range(0, last, length - 1), last][::-1]:  # so that the first window with a target counts
        with torch.no_grad():
            logits = model.base(ids[None, start : start + length]).logits[0, :-1, : model.config.counted_size]
        targets = ids[start + 1 : start + length, None]
        network[start : start + length - 1] = logits.softmax(-1).gather(1, targets)[:, 0]
    weights = model.gate.to_model().weights[buckets]
    return -np.log((weights * np.insert(probs, -1, network, axis=1)).sum(axis=1)).mean()


def test_the_stock_trainer_trains_network_and_gate(model, counts, corpora, tmp_path):
    train = Windows(corpora[0], 16, counted_table(model, corpora[0], counts))
    before = model.evaluate(corpora[1])
    schedule = decoder_schedule(1e-2, model)
    assert schedule.phases[0].rates == {"tables": 1e-2, "gate": GATE_RATE, "blocks": 5e-3}
    assert {schedule.group(name) for name, _ in model.named_parameters()} == {"tables", "gate", "blocks"}
    assert schedule.group("base.lm_head.weight") == schedule.group("base.transformer.wte.weight") == "tables"
    start = {name: value.clone() for name, value in model.named_parameters()}
    arguments = TrainingArguments(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, max_steps=60, save_strategy="no",
        per_device_train_batch_size=8,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=train, callbacks=[PhaseCallback(schedule)],
        optimizers=(schedule.optimizer(model), None),
    )  # fmt: skip
    trainer.train()
    after = model.eval().evaluate(corpora[1])
    assert after["nats"] < before["nats"] - 0.005
    assert after["network_nats"] < before["network_nats"] - 0.1
    assert not any(torch.equal(start[name], value) for name, value in model.named_parameters())


def test_the_schedule_of_any_family_finds_its_tables(text, tmp_path):
    assert init(text, tmp_path / "model", "--arch", "mamba", "--config", MAMBA).exit_code == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    schedule = decoder_schedule(1e-3, model)
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    found = schedule.parameters(model)["tables"]
    assert [any(p is table for p in found) for table in tables] == [True, True]
    assert "gate" not in schedule.groups
    with pytest.raises(InputError, match="expected parameters in tables, found none"):
        decoder_schedule(1e-3).parameters(torch.nn.Linear(1, 1))


@pytest.mark.slow  # starts a process
@pytest.mark.parametrize("script", ["train_with_trainer", "train_plain_loop"])
def test_the_examples_train_it(folder, text, held, corpora, tmp_path, script):
    options = ["--output" if script == "train_plain_loop" else "-o", tmp_path / "trained", "--steps", 100]
    options += ["--valid", held] if script == "train_with_trainer" else []
    done = example(script, folder, text, *options)
    assert done.returncode == 0, done.stderr
    assert ("eval_loss" in done.stdout + done.stderr) == (script == "train_with_trainer")
    before, after = (CountedForCausalLM.from_pretrained(path) for path in (folder, tmp_path / "trained"))
    assert after.evaluate(corpora[1])["network_nats"] < before.evaluate(corpora[1])["network_nats"] - 0.02
    assert len(AutoTokenizer.from_pretrained(tmp_path / "trained")) == before.config.base_config.vocab_size


@pytest.mark.slow  # starts processes
def test_the_examples_take_families_without_positions_and_refuse_what_cannot_be(folder, text, tmp_path):
    assert init(text, tmp_path / "mamba", "--counted", "--arch", "mamba", "--config", MAMBA).exit_code == 0
    options = ["--output", str(tmp_path / "trained"), "--steps", "1", "--split-documents", r"<\|endoftext\|>"]
    done = example("train_plain_loop", tmp_path / "mamba", text, *options)
    assert done.returncode == 0, done.stderr
    assert CountedForCausalLM.from_pretrained(tmp_path / "trained").config.base_config.model_type == "mamba"
    done = example("train_with_trainer", folder, text, "--counted-targets", "0.5", "-o", str(tmp_path / "none"))
    assert done.returncode == 2
    assert "expected a model without counts" in done.stderr
    assert not (tmp_path / "none").exists()


def example(script, *words):
    command = [sys.executable, str(ROOT / "examples" / f"{script}.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_plain_loop_is_short():
    lines = (ROOT / "examples" / "train_plain_loop.py").read_text().split('"""', 2)[2].strip().splitlines()
    assert len([line for line in lines if line]) <= 45


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--counted", "--contexts", "ngrams,radial"], "contexts: expected some of ngrams, classes, cache"),
        (["--counted", "--order", "1"], "order: expected at least 2"),
        (["--counted", "--prune", "1"], "prune"),
        (["--counted", "--arch", "bert", "--config", BERT], "expected a BertLMHeadModel"),
        (["--contexts", "ngrams"], "expected --counted with --contexts"),
        (["--order", "3", "--prune", "0"], "expected --counted with --order, --prune"),
    ],
)
def test_bad_input_writes_nothing(text, tmp_path, options, message):
    result = init(text, tmp_path / "model", *options)
    assert result.exit_code != 0
    assert message in str(result.exception) + result.output
    assert not list(tmp_path.iterdir())
