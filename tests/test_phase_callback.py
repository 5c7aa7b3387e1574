"""PhaseCallback: the Trainer runs the phases of a schedule (extra `hf`)."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs warmstart[hf]")
pytest.importorskip("accelerate", reason="needs warmstart[hf]")

from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from warmstart.errors import InputError
from warmstart.finetune import Phase, Schedule, decoder_schedule
from warmstart.finetune.callback import PhaseCallback

pytestmark = pytest.mark.filterwarnings("default")  # transformers warns

GROUPS = {"embedding": ["*.wte.*", "*.wpe.*"], "head": ["lm_head.*"], "middle": ["*"]}
FROZEN = {"middle": 1e-3, "head": 1e-3}
EPOCHS = Schedule(
    [Phase("warm"), Phase("frozen", FROZEN, epochs=1), Phase("thaw", {**FROZEN, "embedding": 1e-4})], GROUPS
)
TOKENS = Schedule([Phase("frozen", FROZEN, tokens=8 * 4 * 6), Phase("thaw", {**FROZEN, "embedding": 1e-4})], GROUPS)


def gpt2():
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2, "tie_word_embeddings": False}
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


def train(folder, schedule=EPOCHS, max_tokens=None, resume=None, stop=None, **options):
    model, watch = gpt2(), Watch()
    arguments = TrainingArguments(
        output_dir=str(folder), num_train_epochs=3, per_device_train_batch_size=4, save_strategy="steps", save_steps=2,
        report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no", max_steps=stop or -1, **options,
    )  # fmt: skip
    callback = PhaseCallback(schedule, max_tokens)
    optimizers = (schedule.optimizer(model), None)
    trainer = Trainer(model, arguments, train_dataset=data(), optimizers=optimizers, callbacks=[callback, watch])
    trainer.train(resume_from_checkpoint=resume)
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
    assert len(steps) <= 11


@pytest.mark.parametrize("steps", [4, 30])
def test_max_steps_decides_the_end_of_the_schedule(tmp_path, steps):
    """Fewer steps than an epoch, and more than the three epochs that the Trainer plans by default."""
    _, seen, _ = train(tmp_path, decoder_schedule(1e-2), stop=steps)
    rates = [rates["tables"] for _, rates in seen]
    expected = [1e-2 * decoder_schedule().phases[0].scale(step / steps) for step in range(steps)]
    np.testing.assert_allclose(rates, expected, atol=1e-6)
    assert all(rates["blocks"] == 0.5 * rates["tables"] for _, rates in seen)


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected max_tokens with lengths in tokens"):
        PhaseCallback(TOKENS)
    with pytest.raises(InputError, match="lengths in epochs without it"):
        PhaseCallback(EPOCHS, max_tokens=5)
    with pytest.raises(InputError, match="include_num_input_tokens_seen=True"):
        train(tmp_path, TOKENS, max_tokens=100)
    model = gpt2()
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True)
    with pytest.raises(InputError, match="expected an optimizer with the groups"):
        Trainer(model, arguments, train_dataset=data(), callbacks=[PhaseCallback(EPOCHS)]).train()
