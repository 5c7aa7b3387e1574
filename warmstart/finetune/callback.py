"""A callback that runs a `Schedule` in the Hugging Face Trainer (extra ``hf``)."""

import math
from typing import Any

from transformers import TrainerControl as Control
from transformers import TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState, TrainerCallback

from warmstart.errors import InputError
from warmstart.finetune.phases import Clock, Schedule, apply
from warmstart.finetune.targets import CountedLoss


class PhaseCallback(TrainerCallback, ExportableState):
    """Run the phases of a `Schedule` in a `transformers.Trainer`.

    Give the trainer the optimizer ``schedule.optimizer(model)``, which holds every parameter from the start. The
    trainer's own optimizer would leave frozen parameters out. The callback sets the learning rates before every step
    and overrides the trainer's scheduler. The trainer's log shows the highest rate in use. The run is as long as the
    trainer plans it, in steps or in epochs. The position in the schedule is saved in `trainer_state.json`, and
    ``trainer.train(resume_from_checkpoint=True)`` continues in the same phase.

    Parameters
    ----------
    schedule : Schedule, or the result of its `to_json`
        The groups match the parameters of the model. Lengths are in epochs or in tokens. Lengths in tokens need the
        training argument ``include_num_input_tokens_seen=True``. A phase with ``patience`` needs an ``eval_loss``. It
        does not restore the best weights when it ends; use ``load_best_model_at_end`` for that.
    max_tokens : int, optional
        Length of the run, for lengths in tokens.
    counted : CountedLoss, optional
        The trainer's ``compute_loss_func``, whose weight is that of the phase. Phases with counted targets need it.

    Raises
    ------
    InputError
        When training begins: the optimizer has other groups, the trainer does not count tokens, or phases in epochs
        meet data without a length.

    Examples
    --------
    >>> from warmstart.finetune import Phase
    >>> phases = [Phase("frozen", {"head": 1e-3}, epochs=1), Phase("thaw", {"head": 1e-3, "body": 1e-4})]
    >>> schedule = Schedule(phases, groups={"head": ["lm_head.*"], "body": ["*"]})
    >>> callback = PhaseCallback(schedule)

    Use it as ``Trainer(model, ..., optimizers=(schedule.optimizer(model), None), callbacks=[callback])``. With counted
    targets, ``loss = CountedLoss(targets)`` is the trainer's ``compute_loss_func=loss``, and the callback is
    ``PhaseCallback(schedule, counted=loss)``.
    """

    def __init__(
        self,
        schedule: Schedule | dict[str, Any],
        max_tokens: int | None = None,
        counted: CountedLoss | None = None,
    ) -> None:
        self.counted = counted
        self.schedule = schedule if isinstance(schedule, Schedule) else Schedule.from_json(schedule)
        self.max_tokens = max_tokens
        self.clock = Clock(self.schedule, total=max_tokens or 0, epoch=1.0)
        self.steps_per_epoch, self.rate = 1, 0.0  # of the trainer's plan; the highest learning rate in use
        if (max_tokens is None) != all(phase.tokens is None for phase in self.schedule.phases):
            raise InputError("expected max_tokens with lengths in tokens, and lengths in epochs without it")
        if max_tokens is not None and any(phase.epochs is not None for phase in self.schedule.phases):
            raise InputError("expected all lengths in tokens with max_tokens, got one in epochs")
        names = [phase.name for phase in self.schedule.phases if phase.counted]
        if names and counted is None:
            raise InputError(
                f"expected phases without counted targets, got {names}; give the trainer a CountedLoss as "
                "compute_loss_func, and the same to this callback as counted"
            )

    def state(self) -> dict[str, Any]:
        """Return the content for `trainer_state.json`."""
        arguments = {"schedule": self.schedule.to_json(), "max_tokens": self.max_tokens}
        return {"args": arguments, "attributes": {"place": self.place}}

    @property
    def place(self) -> dict[str, Any]:
        """The position in the schedule."""
        return self.clock.state()

    @place.setter
    def place(self, state: dict[str, Any]) -> None:
        self.clock.resume(state)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Control, **kwargs: Any) -> None:
        """Check the optimizer and the counting of tokens; continue from the position in the trainer's state."""
        optimizer = kwargs.get("optimizer")
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
            self.steps_per_epoch = self._plan(args, state, kwargs.get("train_dataloader"))
            self.clock.total = state.max_steps / self.steps_per_epoch
        callbacks = state.stateful_callbacks  # a dict by name, in spite of its annotation
        saved = callbacks.get(type(self).__name__) if isinstance(callbacks, dict) else None
        if isinstance(saved, dict):
            self.place = saved["attributes"]["place"]

    def _plan(self, args: TrainingArguments, state: TrainerState, loader: Any) -> int:
        """Return the number of the trainer's steps in an epoch: batches on each device, by those of a step, rounded up.

        Without a length of the data, the trainer takes the whole run for an epoch.
        """
        try:
            return max(1, math.ceil(len(loader) / args.gradient_accumulation_steps))
        except TypeError as error:  # a loader of an iterable data set has `__len__` and raises this
            if any(phase.epochs is not None for phase in self.schedule.phases):
                raise InputError("expected data with a length for phases in epochs, got none; use tokens") from error
            return state.max_steps

    def _position(self, state: TrainerState) -> float:
        return state.num_input_tokens_seen if self.max_tokens is not None else state.global_step / self.steps_per_epoch

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: Control, **kwargs: Any) -> None:
        """Freeze groups and set the learning rates; stop training after the last phase."""
        position = self._position(state)
        self.clock.move(position)
        phase = self.clock.present
        if phase is None:
            control.should_training_stop = True
        elif (optimizer := kwargs.get("optimizer")) is not None:
            share = self.clock.share(position)
            apply(phase, optimizer, share)
            if self.counted is not None:
                self.counted.weight = phase.counted_weight(share)
            self.rate = max(group["lr"] for group in optimizer.param_groups)
            self._report_rate(**kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Control, **kwargs: Any) -> None:
        """Stop training at the end of the last phase."""
        self._report_rate(**kwargs)  # the trainer's scheduler has made a step of its own
        if self.clock.phase == len(self.schedule.phases) - 1 and self.clock.over(self._position(state)):
            control.should_training_stop = True

    def _report_rate(self, lr_scheduler: Any = None, optimizer: Any = None, **_: Any) -> None:
        """Let the trainer's scheduler return the highest rate in use, which the trainer logs."""
        if lr_scheduler is not None and optimizer is not None:
            lr_scheduler._last_lr = [self.rate] * len(optimizer.param_groups)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: Control, **kwargs: Any) -> None:
        """End the phase if ``eval_loss`` has not improved for as long as its ``patience``."""
        metrics = kwargs.get("metrics") or {}
        if "eval_loss" in metrics and self.clock.present is not None:
            self.clock.scored(metrics["eval_loss"])
            if self.clock.impatient:
                self.clock.move(self._position(state), stop=True)
