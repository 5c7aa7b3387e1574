"""lm-evaluation-harness, a client that we did not write: its scores of our models are our own (extra `bench`)."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs warmstart[bench]")
pytest.importorskip("transformers", reason="needs warmstart[hf]")

import lm_eval
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM

from benchmarks import blimp
from benchmarks.needs import data_folder
from warmstart import WarmStartLM
from warmstart.adapters.initialise import initialise, save_folder, wrapped_tokenizer
from warmstart.corpus import Corpus
from warmstart.hub import CountedForCausalLM, NearShallowForCausalLM
from warmstart.hub.initialise import counted_recipe, initialise_counted

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.slow]  # others warn; imports take long
ROOT = Path(__file__).parents[1]
LINES = ["the dog barks and the dogs bark"] * 40 + ["a dog barks .", "many dogs bark ."] * 40
LINES += [f"the {noun} {verb} here" for noun in ("cat", "bird", "fox") for verb in ("sings", "runs", "sits")]
TASKS = ROOT / "benchmarks" / "lm_eval_tasks"
PARADIGMS = re.findall(r"^    task: (\w+)", (TASKS / "blimp_dev15.yaml").read_text(), re.M)
SENTENCES = [
    ("the dog barks", "the dog bark"),
    ("many dogs bark .", "many dogs barks ."),
    ("the cat sits here", "cat the sits here and"),
    ("the bird runs", "a dog barks and the dogs bark"),
]
PAIRS = [(*SENTENCES[i % 4], name) for i, name in enumerate(PARADIGMS)]
CONFIG = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus.build(LINES, tokenizer="words", cache_dir=tmp_path_factory.mktemp("corpus"))


def start_counted(corpus, folder):
    initialise_counted(corpus, "gpt2", CONFIG, counted_recipe(order=3)).save(folder)
    return blimp.beside(CountedForCausalLM.from_pretrained(folder))


def start_plain(corpus, folder):
    save_folder(folder, *initialise(corpus, "gpt2", CONFIG)[:2])
    model = AutoModelForCausalLM.from_pretrained(folder)

    def score(tokens, documents):
        return np.concatenate([_log_probs(model, tokens[a : b + 1]) for a, b in itertools.pairwise(documents)])

    return score


def _log_probs(model, tokens):
    import torch

    ids = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        rows = model(ids[None, :-1]).logits[0].double().log_softmax(-1)
    return rows.gather(1, ids[1:, None])[:, 0].numpy()


def start_near_shallow(corpus, folder):
    model = WarmStartLM("potato", contexts=("radial",), bits=8).fit(corpus)
    save_folder(folder, NearShallowForCausalLM.of(model), wrapped_tokenizer(corpus.tokenizer))
    return blimp.fitted(model)


def start_mixture(corpus, folder):
    """All contexts of a language model, its network as the decoder."""
    model = WarmStartLM("potato", contexts=("ngrams", "classes", "cache", "radial"), bits=8, order=3).fit(corpus)
    save_folder(folder, CountedForCausalLM.of(model), wrapped_tokenizer(corpus.tokenizer))
    return blimp.fitted(model)


@pytest.mark.parametrize("start", [start_counted, start_plain, start_near_shallow, start_mixture])
def test_its_scores_are_our_own(corpus, tmp_path, monkeypatch, start):
    names = ("sentence_good", "sentence_bad", "UID")
    (tmp_path / "blimp").mkdir()
    lines = [json.dumps(dict(zip(names, pair, strict=True))) for pair in PAIRS]
    (tmp_path / "blimp" / "blimp_dev15.jsonl").write_text("\n".join(lines))
    monkeypatch.setenv("WARMSTART_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    score = start(corpus, tmp_path / "model")
    found = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": str(tmp_path / "model"), "trust_remote_code": True},
        tasks=["blimp_dev15"], task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        batch_size=3, device="cpu", log_samples=True, bootstrap_iters=0,
    )  # fmt: skip
    theirs = [
        answer[0] for name in PARADIGMS for (sample,) in [found["samples"][f"blimp_dev15::{name}"]]
        for answer in sample["filtered_resps"]
    ]  # fmt: skip
    tokens, documents, sentence = blimp.packed([pair[i] for pair in PAIRS for i in (0, 1)], corpus, "")
    scored = sentence >= 0
    ours = np.bincount(sentence[scored], score(tokens, documents)[scored])
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    shares = blimp.by_field(score, corpus, PAIRS, "")
    assert found["results"]["blimp_dev15"]["acc,none"] == pytest.approx(shares.pop("all"))
    assert {name: found["results"][f"blimp_dev15::{name}"]["acc,none"] for name in PARADIGMS} == shares
    assert set(shares.values()) == {0.0, 1.0}


@pytest.mark.data
def test_the_paradigms_are_those_of_the_file():
    path = data_folder() / "blimp" / "blimp_dev15.jsonl"
    if not path.exists():
        pytest.skip(f"no {path}; set WARMSTART_DATA")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["UID"] for line in lines} == set(PARADIGMS)
