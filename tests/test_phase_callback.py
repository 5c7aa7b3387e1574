"""PhaseCallback: the Trainer runs the phases of a schedule (extra `hf`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs warmstart[hf]")
pytest.importorskip("accelerate", reason="needs warmstart[hf]")

from test_finetune import texts
from torch.utils.data import IterableDataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.finetune import Phase, Schedule, decoder_schedule
from warmstart.finetune.callback import PhaseCallback
from warmstart.finetune.targets import CountedLoss, CountedTargets, statistic_of

pytestmark = pytest.mark.filterwarnings("default")  # transformers warns

GROUPS = {"embedding": ["*.wte.*", "*.wpe.*"], "head": ["lm_head.*"], "middle": ["*"]}
FROZEN = {"middle": 1e-3, "head": 1e-3}
EPOCHS = Schedule(
    [Phase("warm"), Phase("frozen", FROZEN, epochs=1), Phase("thaw", {**FROZEN, "embedding": 1e-4})], GROUPS
)
TOKENS = Schedule([Phase("frozen", FROZEN, tokens=8 * 4 * 6), Phase("thaw", {**FROZEN, "embedding": 1e-4})], GROUPS)


def gpt2(vocab_size=20):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": vocab_size,
        "n_positions": 8,
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "tie_word_embeddings": False,
    }
    dropped = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropped, bos_token_id=0, eos_token_id=0))


def data(n=24):
    ids = np.random.default_rng(0).integers(0, 20, (n, 8))
    return [{"input_ids": row, "labels": row} for row in torch.from_numpy(ids)]


class Watch(TrainerCallback):
    """Records the embedding and the rates before every step."""

    def __init__(self):
        self.steps = []

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **_):
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        self.steps.append((model.transformer.wte.weight.detach().clone(), rates))


def train(folder, schedule=EPOCHS, max_tokens=None, resume=None, stop=None, dataset=None, **options):
    model, watch = gpt2(), Watch()
    options = {"num_train_epochs": 3, "logging_strategy": "no", "save_strategy": "steps"} | options
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, save_steps=2,
        report_to=[], use_cpu=True, disable_tqdm=True, max_steps=stop or -1, **options,
    )  # fmt: skip
    callback = PhaseCallback(schedule, max_tokens)
    optimizers = (schedule.optimizer(model), None)
    dataset = data() if dataset is None else dataset
    trainer = Trainer(model, arguments, train_dataset=dataset, optimizers=optimizers, callbacks=[callback, watch])
    trainer.train(resume_from_checkpoint=resume)
    callback.logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    return model, watch.steps, callback


def test_the_embedding_moves_after_the_first_epoch_only(tmp_path):
    start = gpt2().transformer.wte.weight
    _, steps, callback = train(tmp_path)
    assert len(steps) == 18
    for step, (embedding, rates) in enumerate(steps):
        assert torch.equal(embedding, start) == (step <= 6)
        assert (rates["embedding"] > 0) == (step > 6)  # the rate of the first step of a phase is 0: warm-up
        assert rates["head"] <= 1e-3
    assert callback.clock.phase == 2


def test_a_resumed_run_ends_in_the_same_bits(tmp_path):
    whole, *_ = train(tmp_path / "whole")
    resumed, steps, _ = train(tmp_path / "again", resume=str(tmp_path / "whole" / "checkpoint-8"))
    assert len(steps) == 10
    saved = json.loads((tmp_path / "whole" / "checkpoint-8" / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"]["PhaseCallback"]["attributes"]["place"]["phase"] == 2
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_phases_in_tokens(tmp_path):
    _, steps, _ = train(tmp_path, TOKENS, max_tokens=8 * 4 * 10, include_num_input_tokens_seen=True)
    start = gpt2().transformer.wte.weight
    assert [torch.equal(e, start) for e, _ in steps][:10] == [True] * 6 + [True] + [False] * 3  # rate 0 at first
    assert len(steps) == 10


TWO_DEVICES = """
import json, os, sys, torch
import test_phase_callback as t
phases = [t.Phase("frozen", {"middle": 1e-2}, epochs=1), t.Phase("all", {"head": 1e-2, "middle": 1e-3})]
options = {"num_train_epochs": 2, "gradient_accumulation_steps": 2, "logging_strategy": "steps", "logging_steps": 1}
_, seen, callback = t.train(sys.argv[1], t.Schedule(phases, t.GROUPS), save_strategy="no", **options)
if os.environ["RANK"] == "0":
    rates = [max(rates.values()) for _, rates in seen]
    with open(sys.argv[1] + "/rates.json", "w") as file:
        json.dump([torch.distributed.get_world_size(), rates, callback.logged], file)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
os._exit(0)  # without the teardown of the interpreter, in which threads of gloo may abort the process
"""


@pytest.mark.slow  # starts two processes
def test_two_devices(tmp_path):
    """24 examples in batches of 4 are 3 batches on each device: a step of 2 and one of 1 in an epoch."""
    script = tmp_path / "two.py"
    script.write_text(TWO_DEVICES)
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    devices, rates, logged = json.loads((tmp_path / "rates.json").read_text())
    assert devices == 2
    scales = [Phase("any", epochs=None, rates={"x": 1}).scale(share) for share in (0, 0.5)]
    np.testing.assert_allclose(rates, 1e-2 * np.array([*scales, *scales]))
    assert logged == rates


class Stream(IterableDataset):
    """Data without a length."""

    def __iter__(self):
        return iter(data())


@pytest.mark.parametrize(
    ("options", "steps", "in_epoch"),
    [
        ({"num_train_epochs": 2}, 12, 6),
        ({"num_train_epochs": 2, "logging_strategy": "epoch"}, 12, 6),
        ({"num_train_epochs": 2.5}, 15, 6),
        ({"num_train_epochs": 2, "gradient_accumulation_steps": 4}, 4, 2),  # 6 batches: a step of 4 and one of 2
        ({"num_train_epochs": 2, "dataset": data(26), "dataloader_drop_last": True}, 12, 6),
        ({"num_train_epochs": 2, "dataset": data(26)}, 14, 7),
        ({"num_train_epochs": 1, "gradient_accumulation_steps": 50, "stop": 3}, 3, 1),
        ({"stop": 4}, 4, 6),  # less than an epoch
        ({"stop": 21}, 21, 6),  # more than the three epochs of the arguments
        ({"stop": 11, "gradient_accumulation_steps": 4}, 11, 2),
        ({"num_train_epochs": 2, "lr_scheduler_type": "cosine", "warmup_steps": 3}, 12, 6),
    ],
    ids=str,
)
def test_the_schedule_is_as_long_as_the_trainer_plans_and_the_log_has_the_rate(tmp_path, options, steps, in_epoch):
    phases = [Phase("frozen", {"middle": 1e-2}, epochs=1, decay="linear"), Phase("all", {"head": 1e-2, "middle": 1e-3})]
    options = {"logging_strategy": "steps", "logging_steps": 1, "save_strategy": "no"} | options
    _, seen, callback = train(tmp_path, Schedule(phases, GROUPS), **options)
    first = min(in_epoch, steps)
    expected = [1e-2 * phases[0].scale(step / first) for step in range(first)]
    expected += [1e-2 * phases[1].scale(step / (steps - first)) for step in range(steps - first)]
    highest = [max(rates.values()) for _, rates in seen]
    np.testing.assert_allclose(highest, expected, atol=1e-9)
    at = (
        range(steps)
        if options["logging_strategy"] == "steps"
        else [*range(in_epoch - 1, steps - 1, in_epoch), steps - 1]
    )
    np.testing.assert_allclose(callback.logged, [highest[step] for step in at], atol=1e-12)


def test_data_without_a_length(tmp_path):
    schedule = decoder_schedule(1e-2)
    _, seen, callback = train(tmp_path, schedule, stop=14, dataset=Stream(), logging_steps=1, logging_strategy="steps")
    expected = [1e-2 * schedule.phases[0].scale(step / 14) for step in range(14)]
    np.testing.assert_allclose([rates["tables"] for _, rates in seen], expected, atol=1e-9)
    np.testing.assert_allclose(callback.logged, expected, atol=1e-9)
    with pytest.raises(InputError, match="expected data with a length for phases in epochs"):
        train(tmp_path / "epochs", stop=14, dataset=Stream())


def test_training_stops_with_the_last_phase(tmp_path):
    phases = [Phase("frozen", {"middle": 1e-2}, epochs=0.5), Phase("all", {"head": 1e-2}, epochs=0.5)]
    _, seen, _ = train(tmp_path, Schedule(phases, GROUPS))
    assert [rates["head"] > 0 for _, rates in seen] == [False] * 4 + [True] * 2  # the first rate of a phase is 0
    tokens = Schedule([Phase("all", {"middle": 1e-2}, tokens=8 * 4 * 5)], GROUPS)
    _, seen, _ = train(tmp_path / "tokens", tokens, max_tokens=10**6, include_num_input_tokens_seen=True)
    assert len(seen) == 5


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected max_tokens with lengths in tokens"):
        PhaseCallback(TOKENS)
    with pytest.raises(InputError, match="lengths in epochs without it"):
        PhaseCallback(EPOCHS, max_tokens=5)
    counted = Schedule([Phase("soft", {"middle": 1e-3}, counted=0.5)], {"middle": ["*"]})
    with pytest.raises(InputError, match=r"phases without counted targets.*soft.*give the trainer a CountedLoss"):
        PhaseCallback(counted)
    with pytest.raises(InputError, match="include_num_input_tokens_seen=True"):
        train(tmp_path, TOKENS, max_tokens=100)
    model = gpt2()
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True)
    with pytest.raises(InputError, match="expected an optimizer with the groups"):
        Trainer(model, arguments, train_dataset=data(), callbacks=[PhaseCallback(EPOCHS)]).train()


# Counted targets


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    corpus = Corpus.build(texts(300), tokenizer="words", cache_dir=tmp_path_factory.mktemp("corpus"))
    return CountedTargets(statistic_of(corpus, None), corpus)


def windows(corpus, n=24, places=True):
    """Windows of 8 tokens; the label of a token is its place as a target, or the token; the first is no target."""
    out = []
    for start in range(1, 1 + 8 * n, 8):
        ids = torch.from_numpy(corpus.tokens[start : start + 8].astype(np.int64))
        labels = torch.arange(start - 1, start + 7) if places else ids.clone()
        labels[0] = -100
        out.append({"input_ids": ids, "labels": labels})
    return out


COUNTED = Schedule([Phase("soft", {"all": 1e-2}, epochs=1, counted=0.8), Phase("plain", {"all": 1e-2})], {"all": ["*"]})


def train_counted(folder, targets, accumulate=1, weight=None, **options):
    """Train on counted targets with a Trainer; return the model, the weights at every step and the log."""
    model, weights = gpt2(targets.corpus.vocab_size), []
    loss = CountedLoss(targets, weight or 0.0)

    class Watched(TrainerCallback):
        def on_optimizer_step(self, *_, **__):
            weights.append(loss.weight)

    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4 // accumulate, gradient_accumulation_steps=accumulate,
        num_train_epochs=2, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
        per_device_eval_batch_size=5, prediction_loss_only=True, **options,
    )  # fmt: skip
    callbacks = [PhaseCallback(COUNTED, counted=loss), Watched()] if weight is None else [Watched()]
    trainer = Trainer(
        model, arguments, train_dataset=windows(targets.corpus), eval_dataset=windows(targets.corpus, 12, places=False),
        compute_loss_func=loss, callbacks=callbacks,
        optimizers=(COUNTED.optimizer(model), None) if weight is None else (None, None),
    )  # fmt: skip
    trainer.train()
    return model, weights, trainer


def test_the_weight_of_counted_targets_falls_with_the_phase(tmp_path, targets):
    _, weights, trainer = train_counted(tmp_path, targets)
    np.testing.assert_allclose(weights, [0.8 * (1 - step / 6) for step in range(6)] + [0.0] * 6, atol=1e-12)
    first = trainer.state.log_history[0]["loss"]
    start, examples = gpt2(targets.corpus.vocab_size), [windows(targets.corpus)[i] for i in _first_batch(trainer)]
    ids, places = (torch.stack([each[name] for each in examples]) for name in ("input_ids", "labels"))
    assert first == pytest.approx(targets.loss(start(ids).logits, places, 0.8).item(), rel=1e-4)


def _first_batch(trainer):
    """Return the numbers of the examples of the first batch: the ones whose windows the loader gives."""
    torch.manual_seed(trainer.args.seed)  # as when training began
    found = next(iter(trainer.get_train_dataloader()))["labels"][:, 1].tolist()
    return [place // 8 for place in found]


def test_gradient_accumulation_changes_nothing(tmp_path, targets):
    whole, *_ = train_counted(tmp_path / "whole", targets)
    cut, *_ = train_counted(tmp_path / "cut", targets, accumulate=4)
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_evaluation_has_the_plain_loss(tmp_path, targets):
    model, _, trainer = train_counted(tmp_path, targets, weight=0.9)
    examples = windows(targets.corpus, 12, places=False)
    ids = torch.stack([each["input_ids"] for each in examples])
    with torch.no_grad():
        expected = model.eval()(ids, labels=ids).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_model_of_another_vocabulary_is_refused(targets):
    loss = CountedLoss(targets, 0.5)
    with pytest.raises(InputError, match="in the vocabulary of the model"):
        loss({"logits": torch.zeros(1, 8, 5, requires_grad=True)}, windows(targets.corpus)[0]["labels"][None])


def test_labels_that_are_tokens_are_refused_in_training(targets):
    loss, logits = CountedLoss(targets, 0.5), torch.zeros(4, 8, targets.corpus.vocab_size, requires_grad=True)
    wrong, right = (
        torch.stack([each["labels"] for each in windows(targets.corpus, 4, places)]) for places in (False, True)
    )
    with pytest.raises(InputError, match="expected labels that are places in training, one after another"):
        loss({"logits": logits}, wrong)
    right[1, 3:6] = -100  # some do not count
    assert loss({"logits": logits}, right).isfinite()
