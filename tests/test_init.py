"""`warmstart init` writes a folder for from_pretrained and the Trainer, whole or not at all."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling
from transformers.utils import logging
from typer.testing import CliRunner

from warmstart.cli import app
from warmstart.errors import InputError

logging.set_verbosity_error()
logging.disable_progress_bar()
ROOT = Path(__file__).parents[1]
TINY = {
    "gpt2": {"n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 32},
    "llama": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 32,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A chain of words, long enough for held-out pairs."""
    rng, words = np.random.default_rng(0), [f"w{i}" for i in range(60)]
    ids = (rng.zipf(1.5, 150_000) + np.arange(150_000) % 3 * 7).cumsum() % 60
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(" ".join(words[i] for i in row) for row in ids.reshape(-1, 50)))
    return path


@pytest.fixture(scope="module")
def init(text, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def run(folder, *options):
        arguments = ["init", str(text), "-o", str(folder), "--tokenizer", "words", "--json", "--quiet", *options]
        return CliRunner(env={"WARMSTART_CACHE": str(cache)}).invoke(app, arguments)

    return run


@pytest.fixture(scope="module")
def models(init, tmp_path_factory):
    """The folder and the output of the command, for each architecture."""
    models, folder = {}, tmp_path_factory.mktemp("models")
    for arch, config in TINY.items():
        result = init(folder / arch, "--arch", arch, "--config", json.dumps(config))
        assert result.exit_code == 0, result.output
        models[arch] = (folder / arch, json.loads(result.stdout))
    return models


@pytest.mark.parametrize("arch", TINY)
def test_the_folder_opens_and_beats_unigrams_before_training(models, arch, text):
    folder, printed = models[arch]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() == printed["parameters"]
    ids = torch.tensor(tokenizer(text.read_text()[:40_000])["input_ids"])[: 32 * 100].view(-1, 32)
    counts = np.bincount(ids.flatten().numpy(), minlength=tokenizer.vocab_size)
    p = counts[counts > 0] / counts.sum()
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss)
    assert loss < -(p * np.log(p)).sum() - 0.2
    assert tokenizer.eos_token_id == model.config.eos_token_id == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert tokenizer.model_max_length == 32


@pytest.mark.parametrize("arch", TINY)
def test_the_end_of_a_document_is_trained_and_padding_is_not(models, arch):
    tokenizer = AutoTokenizer.from_pretrained(models[arch][0])
    model = AutoModelForCausalLM.from_pretrained(models[arch][0])
    short, long = (tokenizer(text)["input_ids"] for text in ("w1<|endoftext|>", "w1 w2 w3<|endoftext|>"))
    batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)([{"input_ids": ids} for ids in (short, long)])
    assert batch["labels"].tolist() == [[*short, -100, -100], long]
    assert short[-1] == long[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id == model.config.pad_token_id
    assert len(tokenizer) == model.config.vocab_size
    assert torch.isfinite(model(**batch).loss)


def test_the_same_seed_gives_the_same_weights(init, models, tmp_path):
    again = init(tmp_path / "again", "--config", json.dumps(TINY["gpt2"]))
    assert again.exit_code == 0, again.output
    one, two = ((folder / "model.safetensors").read_bytes() for folder in (models["gpt2"][0], tmp_path / "again"))
    assert one == two


def test_an_existing_tokenizer_keeps_its_ids(init, models, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TINY["llama"]))
    folder = models["gpt2"][0]
    result = init(tmp_path / "model", "--arch", "llama", "--config", str(config), "--tokenizer", str(folder))
    assert result.exit_code == 0, result.output
    one, two = (AutoTokenizer.from_pretrained(path) for path in (folder, tmp_path / "model"))
    assert one.get_vocab() == two.get_vocab()


@pytest.mark.parametrize("arch", ["qwen3", "mamba", "mixtral", "granitemoehybrid"])
def test_other_families_start_as_a_bigram_model_too(init, arch, text, tmp_path):
    """Of Llama's kind, a state space without positions, experts, and layers of two kinds; at the default size."""
    result = init(tmp_path / arch, "--arch", arch)
    assert result.exit_code == 0, result.output
    tokenizer, model = (
        AutoTokenizer.from_pretrained(tmp_path / arch),
        AutoModelForCausalLM.from_pretrained(tmp_path / arch),
    )
    ids = torch.tensor(tokenizer(text.read_text()[:8_000])["input_ids"])[: 32 * 20].view(-1, 32)
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss)
    counts = np.bincount(ids.flatten().numpy(), minlength=tokenizer.vocab_size)
    p = counts[counts > 0] / counts.sum()
    assert loss < -(p * np.log(p)).sum() - 0.2
    assert (tokenizer.model_max_length == 256) == (arch != "mamba")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arch", "gpt2000"], "arch: expected a decoder of transformers, such as gpt2, llama, qwen3"),
        (["--arch", "bert"], "expected a BertLMHeadModel in which cls.predictions.transform.LayerNorm gets"),
        (["--arch", "llama4"], "llama4 cannot be built from it: a small one has"),
        (["--config", '{"n_embed": 64}'], "expected fields of GPT2Config, got n_embed"),
        (["--config", '{"n_embd": 64, "n_head": 3}'], "gpt2 cannot be built"),
        (["--config", '{"vocab_size": 10}'], "a vocab_size of at least"),
        (["--config", '{"model_type": "llama"}'], "expected model_type 'gpt2'"),
        (["--config", "none.json"], "expected a JSON object or a file of one"),
        (["--config", "[1]"], "expected a JSON object or a file of one"),
        (["--config", '{"n_embd": 16, "n_head": 2}'], "rank: expected 8 to"),
        (["--heads", "5", "--config", json.dumps(TINY["gpt2"])], "heads: expected 0 to 2"),
    ],
)
def test_bad_input_writes_nothing(init, tmp_path, options, message):
    result = init(tmp_path / "model", *options)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_stays(init, tmp_path):
    (tmp_path / "note.txt").write_text("a note")
    result = init(tmp_path)
    assert "expected a new or an empty folder" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_the_example_trains_it(models, text, tmp_path):
    assert example(models["gpt2"][0], text, tmp_path / "trained", "--steps", "3").returncode == 0
    assert (tmp_path / "trained" / "model.safetensors").exists()


def example(folder, text, output, *options):
    command = [sys.executable, str(ROOT / "examples" / "train_with_trainer.py"), str(folder), str(text)]
    return subprocess.run([*command, "-o", str(output), *options], capture_output=True, text=True, check=False)


@pytest.mark.slow  # starts processes
def test_the_example_trains_on_counted_targets(models, text, tmp_path):
    """The validation loss is the plain one, and the trained folder holds a plain model."""
    lines = text.read_text().splitlines()
    train, held = tmp_path / "train.txt", tmp_path / "held.txt"
    train.write_text("<|endoftext|>".join("\n".join(lines[i : i + 10]) for i in range(0, 400, 10)))
    held.write_text("\n".join(lines[400:440]))
    for weight in ("0", "0.9"):
        options = ("--steps", "30", "--valid", str(held), "--counted-targets", weight)
        done = example(models["gpt2"][0], train, tmp_path / weight, *options)
        assert done.returncode == 0, done.stderr
        model = AutoModelForCausalLM.from_pretrained(tmp_path / weight).eval()
        assert model.config.model_type == "gpt2"
        ids = torch.tensor(AutoTokenizer.from_pretrained(tmp_path / weight)(held.read_text())["input_ids"])
        ids = ids[: 32 * (len(ids) // 32)].view(-1, 32)
        with torch.no_grad():
            own = float(model(ids, labels=ids).loss)
        losses = [float(value) for value in re.findall(r"'eval_loss': '?([\d.]+)", done.stdout + done.stderr)]
        assert losses[-1] == pytest.approx(own, abs=0.1)
        assert losses[-1] < losses[0]
    weights = [load_file(tmp_path / weight / "model.safetensors")["lm_head.weight"] for weight in ("0", "0.9")]
    assert not np.array_equal(*weights)


@pytest.mark.slow  # starts a process
def test_the_command_shows_nothing_if_it_is_quiet(text, tmp_path):
    command = [sys.executable, "-m", "warmstart.cli", "init", str(text), "-o", str(tmp_path / "model"), "--quiet"]
    command += ["--tokenizer", "words", "--config", json.dumps(TINY["gpt2"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
