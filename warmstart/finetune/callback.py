"""The same schedule in the Hugging Face Trainer (extra ``hf``)."""

from typing import Any

import torch
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState, TrainerCallback

from warmstart.errors import InputError
from warmstart.finetune.phases import Clock, Schedule, apply


class PhaseCallback(TrainerCallback, ExportableState):
    """Run the phases of a `Schedule` in a `transformers.Trainer`.

    Give the trainer an optimizer that holds every parameter from the start, ``schedule.optimizer(model)``: the one it
    makes itself leaves frozen parameters out. The callback sets learning rates before every step, so those of the
    trainer's own scheduler have no effect. Where the run stands is kept in `trainer_state.json`, and
    ``trainer.train(resume_from_checkpoint=True)`` goes on in the same phase.

    Parameters
    ----------
    schedule : Schedule, or what its `to_json` returns
        Its groups match the parameters of the model. Lengths in epochs, or in tokens: then the training arguments need
        ``include_num_input_tokens_seen=True``. A phase with a patience needs an ``eval_loss``; it ends without going
        back to the best weights, which is what ``load_best_model_at_end`` is for.
    max_tokens : int, optional
        Length of the run, for lengths in tokens.

    Raises
    ------
    InputError
        When training begins: the optimizer holds other groups, or tokens are not counted.

    Examples
    --------
    >>> from warmstart.finetune import Phase
    >>> phases = [Phase("frozen", {"head": 1e-3}, epochs=1), Phase("thaw", {"head": 1e-3, "body": 1e-4})]
    >>> schedule = Schedule(phases, groups={"head": ["lm_head.*"], "body": ["*"]})
    >>> callback = PhaseCallback(schedule)

    Then ``Trainer(model, ..., optimizers=(schedule.optimizer(model), None), callbacks=[callback])``.
    """

    def __init__(self, schedule: Schedule | dict[str, Any], max_tokens: int | None = None) -> None:
        self.schedule = schedule if isinstance(schedule, Schedule) else Schedule.from_json(schedule)
        self.max_tokens = max_tokens
        self.clock = Clock(self.schedule, total=max_tokens or 0, epoch=1.0)
        if (max_tokens is None) != all(phase.tokens is None for phase in self.schedule.phases):
            raise InputError("expected max_tokens with lengths in tokens, and lengths in epochs without it")
        if max_tokens is not None and any(phase.epochs is not None for phase in self.schedule.phases):
            raise InputError("expected all lengths in tokens with max_tokens, got one in epochs")

    def state(self) -> dict[str, Any]:
        """Return what `trainer_state.json` keeps."""
        arguments = {"schedule": self.schedule.to_json(), "max_tokens": self.max_tokens}
        return {"args": arguments, "attributes": {"place": self.place}}

    @property
    def place(self) -> dict[str, Any]:
        """Where the clock stands."""
        return self.clock.state()

    @place.setter
    def place(self, state: dict[str, Any]) -> None:
        self.clock.resume(state)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer | None = None,
        **_: Any,
    ) -> None:
        """Check the optimizer and how tokens are counted; go on where the trainer's state says."""
        names = {group.get("name") for group in optimizer.param_groups} if optimizer else set()
        needed = {name for phase in self.schedule.phases for name in phase.rates}
        if not needed <= names:
            raise InputError(
                f"expected an optimizer with the groups {sorted(needed)}, got others; "
                "give the trainer optimizers=(schedule.optimizer(model), None)"
            )
        if self.max_tokens is not None and args.include_num_input_tokens_seen in (False, "no"):
            raise InputError("expected include_num_input_tokens_seen=True for phases in tokens, got False")
        if self.max_tokens is None:
            self.clock.total = float(args.num_train_epochs)
        callbacks = state.stateful_callbacks  # by name, whatever its annotation says
        kept = callbacks.get(type(self).__name__) if isinstance(callbacks, dict) else None
        if isinstance(kept, dict):
            self.place = kept["attributes"]["place"]

    def _position(self, state: TrainerState) -> float:
        return float(state.num_input_tokens_seen if self.max_tokens is not None else state.epoch or 0.0)

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer | None = None,
        **_: Any,
    ) -> None:
        """Set what trains and how fast; stop the training after the last phase."""
        position = self._position(state)
        if self.max_tokens is None and state.global_step:  # the end in epochs, also where ``max_steps`` decides it
            self.clock.total = state.max_steps * position / state.global_step
        self.clock.move(position)
        phase = self.clock.present
        if phase is None:
            control.should_training_stop = True
        elif optimizer is not None:
            apply(phase, optimizer, self.clock.share(position))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """End a phase that has waited long enough for a better ``eval_loss``."""
        if metrics and "eval_loss" in metrics and self.clock.present is not None:
            self.clock.scored(metrics["eval_loss"])
            if self.clock.impatient:
                self.clock.move(self._position(state), stop=True)
