"""The commands ``warmstart finetune``, ``compare`` and ``fit --cold``."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from warmstart import Corpus, WarmStartLM
from warmstart.cli import app
from warmstart.errors import InputError
from warmstart.files import load_arrays
from warmstart.finetune.job import Job, Plan
from warmstart.finetune.log import read

TIMEOUT = 600  # seconds; only a hang reaches it
WORDS = ["the cat sat on the mat", "the dog lay on the rug", "a bird sang in the tree", "one fish swam in the sea"]


def write(path, n, seed):
    rng = np.random.default_rng(seed)
    path.write_text("\n\n".join(". ".join(WORDS[i] for i in rng.integers(0, 4, 40)) for _ in range(n)))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune")
    write(folder / "train.txt", 30, 0)
    write(folder / "valid.txt", 4, 1)
    corpus = Corpus.build(folder / "train.txt", vocab_size=300, split_documents=r"\n\n", cache_dir=folder / "cache")
    WarmStartLM("potato", contexts=("radial", "block", "document")).fit(corpus).save_pretrained(folder / "model")
    return folder


def words(place, out, *more):
    return ["finetune", str(place / "model"), str(place / "train.txt"), "--valid", str(place / "valid.txt"), "-o",
            str(out), "--split-documents", r"\n\n", "--batch-tokens", "512", "--json", *map(str, more)]  # fmt: skip


def run(*arguments):
    return CliRunner(env={"COLUMNS": "400"}).invoke(app, list(map(str, arguments)), catch_exceptions=False)


def result(*arguments):
    outcome = run(*arguments)
    assert outcome.exit_code == 0, outcome.output
    return json.loads(outcome.stdout)


def test_finetune_then_eval_and_compare(place, tmp_path):
    warm = result(*words(place, tmp_path / "warm", "--max-tokens", 4000, "--validate-every", 1000, "--rate", 0.1))
    assert warm["tokens"] == 4000
    assert 0 <= warm["padded_share"] < 0.5
    log = read(tmp_path / "warm" / "log.jsonl")
    assert [record["tokens"] for record in log] == [0, 1000, 2000, 3000, 4000]
    assert log[-1]["nats"] == warm["nats"]
    scored = result("eval", tmp_path / "warm", place / "valid.txt", "--split-documents", r"\n\n", "--json")
    assert np.log(scored["perplexity"]) == pytest.approx(log[-1]["nats"], abs=1e-4)
    assert scored["bits_per_byte"] == pytest.approx(log[-1]["bits_per_byte"], abs=1e-4)
    assert np.log(scored["experts"]["network"]) == pytest.approx(log[-1]["network_nats"], abs=1e-4)
    assert scored["shares"].keys() == {"network", "unigram"}

    fit = [
        "fit",
        place / "train.txt",
        "--preset",
        "potato",
        "--contexts",
        "radial,block,document",
        "--vocab-size",
        300,
        "--split-documents",
        r"\n\n",
        "--json",
    ]
    result(*fit, "-o", tmp_path / "cold", "--cold", "--seed", 3)
    result(*fit, "-o", tmp_path / "again", "--cold", "--seed", 3)
    arrays, _ = load_arrays(tmp_path / "cold" / "model.safetensors")
    again, _ = load_arrays(tmp_path / "again" / "model.safetensors")
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    assert arrays["embedding.weight"].std() == pytest.approx(32**-0.5, rel=0.05)  # 32 bits
    cold = words(place, tmp_path / "cold-run", "--max-tokens", 4000, "--validate-every", 1000, "--phases", "all")
    cold[1] = str(tmp_path / "cold")
    result(*cold)
    rows = result("compare", tmp_path / "cold-run", tmp_path / "warm", "-o", tmp_path / "curves.png", "--json")
    assert [row["tokens"] for row in rows] == [4000, 4000]
    assert rows[1]["to_equal_nats"] < 4000 == rows[0]["to_equal_nats"]
    assert rows[1]["start"] < rows[0]["start"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "to equal nats" in run("compare", tmp_path / "cold-run", tmp_path / "warm", "-o", tmp_path / "x.png").stdout
    (tmp_path / "warm").rename(tmp_path / "\udcff")  # a name that is not UTF-8
    result("compare", tmp_path / "\udcff", "-o", tmp_path / "y.png", "--json")
    assert (tmp_path / "y.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_process_resumes_to_the_same_bits(place, tmp_path, number):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "warmstart.cli"]
    options = ("--max-tokens", 60_000, "--validate-every", 2000, "--valid-tokens", 600)

    def start(out, *more):
        words_ = [*command, *words(place, out, *options, *more)]
        return subprocess.Popen(words_, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    whole = json.loads(start(tmp_path / "whole").communicate(timeout=TIMEOUT)[0])
    process = start(tmp_path / "stopped")
    checkpoint = tmp_path / "stopped" / "checkpoint.safetensors"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    error = process.communicate(timeout=TIMEOUT)[1]
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), error
    if number == signal.SIGINT:
        assert "--resume" in error
    refused = start(tmp_path / "stopped")
    assert "--resume" in refused.communicate(timeout=TIMEOUT)[1]
    assert refused.returncode == 1
    resumed = json.loads(start(tmp_path / "stopped", "--resume").communicate(timeout=TIMEOUT)[0])
    assert resumed["resumed"]
    assert resumed["sha256"] == whole["sha256"]


def test_schedules_from_json(place, tmp_path):
    phases = [{"name": "mine", "rates": {"output": 0.01}, "decay": "linear", "warmup": 0.1}]
    (tmp_path / "phases.json").write_text(json.dumps(phases))
    options = ("--max-tokens", 1000, "--phases")
    inline = result(*words(place, tmp_path / "a", *options, json.dumps(phases)))
    assert inline["phase"] == "mine"
    assert result(*words(place, tmp_path / "b", *options, tmp_path / "phases.json"))["sha256"] == inline["sha256"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--phases", "hot"], "phases: expected some of warm, frozen, thaw, all, got hot"),
        (["--phases", "[{"], "phases: expected JSON or names of phases"),
        (["--phases", "none.json"], "phases: expected a JSON file at none.json"),
        (
            ["--phases", '[{"name": "x", "rates": {"output": 1}}]', "--rate", "2"],
            "rate: expected the rates of the JSON",
        ),
        (["--phases", "[" * 100_000], "phases: expected JSON or names of phases, got: brackets within"),
        (
            ["--phases", '{"phases": [{"name": "x", "rates": {"output": 1}}], "groups": {"output": "output.*"}}'],
            "groups: expected lists of patterns of names, got",
        ),
        (
            ["--phases", '[{"name": "x", "rates": {"output": 1}, "epochs": 1%s}]' % ("0" * 400)],
            "epochs: expected a pos",
        ),
        (["--rate", "-1"], "rate: expected a positive number, got -1.0"),
        (["--device", "abacus"], "device: expected one that torch has here, got 'abacus'"),
        (["--rate", "1e38"], r"step \d+: expected a finite"),
        (["--batch-tokens", "10"], "batch_tokens: expected at least a segment of 256, got 10"),
        (["--valid", "none.txt"], "none.txt"),
    ],
)
def test_bad_input_is_refused_and_the_start_is_kept(place, tmp_path, more, message):
    before = (place / "model" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=message):
        run(*words(place, tmp_path / "run", "--max-tokens", 1000, *more))
    assert (place / "model" / "model.safetensors").read_bytes() == before


def test_a_corpus_of_ones_own_needs_a_validation_text(place):
    with pytest.raises(InputError, match="expected --valid FILE"):
        run("finetune", place / "model", place / "train.txt")


def test_compare_needs_runs(tmp_path):
    with pytest.raises(InputError, match="expected the log of a run"):
        run("compare", tmp_path)
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(InputError, match="expected at least one validation"):
        run("compare", tmp_path)


@pytest.mark.filterwarnings("default")  # other people's
def test_curves_for_tensorboard(place, tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs warmstart[tensorboard]"
    )
    options = ("--max-tokens", 1000, "--validate-every", 500, "--tensorboard", tmp_path / "curves")
    result(*words(place, tmp_path / "run", *options))
    events = accumulator.EventAccumulator(str(tmp_path / "curves")).Reload()
    nats = [event.value for event in events.Scalars("valid/nats")]
    assert nats == pytest.approx([record["nats"] for record in read(tmp_path / "run" / "log.jsonl")])


def test_a_corpus_in_other_tokens_is_refused(place, tmp_path):
    model = WarmStartLM.from_pretrained(place / "model")
    other = Corpus.build(place / "valid.txt", vocab_size=300, cache_dir=tmp_path)
    same = Corpus.encode(place / "valid.txt", model.tokenizer_, cache_dir=tmp_path)
    job = Job(model, tmp_path / "run", Plan(max_tokens=300, batch_tokens=512))
    with pytest.raises(InputError, match="expected a corpus in the tokens of the model, got another tokenizer"):
        job.run(other, same)
    assert not (tmp_path / "run").exists()
    assert job.run(same, same)["tokens"] == 300
