"""The training loop: batches in, phases applied, validations logged, checkpoints kept.

Every step is a function of the weights, the optimizer and its place in the data, so a run that was stopped goes on to
the same bits. A step never crosses a validation, a border of phases or the end: the batch is cut there and its rest is
the next step. So logs hold the same token counts whatever is trained, from whatever start, in whatever order.
"""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from warmstart.corpus import Corpus
from warmstart.errors import InputError
from warmstart.files import load_arrays
from warmstart.finetune import checkpoint
from warmstart.finetune.batches import Batches
from warmstart.finetune.log import Log
from warmstart.finetune.phases import Clock, Phase, Schedule, apply
from warmstart.layers import NearShallowLM
from warmstart.layers.near_shallow import IGNORED, Segments
from warmstart.progress import Progress

CHECKPOINT_EVERY = 120.0  # seconds, and at every validation


@dataclass(frozen=True)
class Settings:
    """How long a run is and how it is watched.

    Parameters
    ----------
    max_tokens : int
    validate_every : int
        Tokens between two validations.
    valid_tokens : int, optional
        Score about so many tokens, evenly from the validation text; all by default.
    bf16 : bool
        Matrix products in bfloat16, everything else in float32.
    device : str
        Where to train, as PyTorch names it: "cpu", "cuda", "mps".
    """

    max_tokens: int
    validate_every: int
    valid_tokens: int | None = None
    bf16: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse lengths below one token."""
        for name in ("max_tokens", "validate_every", "valid_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}: expected at least 1, got {value}")


class Run:
    """One run of fine-tuning, in a folder of its own.

    Parameters
    ----------
    module : NearShallowLM
        Trained in place.
    batches : Batches
    valid : Corpus
        Validation text in the tokens of the model.
    schedule : Schedule
    settings : Settings
    folder : Path
        Holds the checkpoint.
    resume : bool
        Go on from it, if there is one.

    Raises
    ------
    InputError
        The validation text is shorter than one block or in other tokens; the checkpoint is one of another run.
    """

    def __init__(
        self,
        module: NearShallowLM,
        batches: Batches,
        valid: Corpus,
        schedule: Schedule,
        settings: Settings,
        folder: Path,
        resume: bool = False,
    ) -> None:
        if valid.n_tokens < module.config.block_size:
            raise InputError(
                f"validation text: expected at least one block of {module.config.block_size} tokens, got "
                f"{valid.n_tokens}; give a longer file"
            )
        try:
            self.module = module.to(settings.device)
        except (RuntimeError, AssertionError) as error:  # an assertion: this torch was built without it
            raise InputError(f"device: expected one that torch has here, got {settings.device!r}: {error}") from error
        self.batches, self.settings = batches, settings
        self.valid = Batches(valid, module.config, batches.batch_tokens)
        self.scored = self._scored_batches()
        self.clock = Clock(schedule, settings.max_tokens, batches.corpus.n_tokens)
        self.optimizer = schedule.optimizer(module)
        self.path = folder / checkpoint.CHECKPOINT
        self.best: dict[str, Tensor] = {}
        self.step = self.tokens = self.epoch = self.batch = self.offset = 0
        self.seconds, self.saved, self.stopped = 0.0, time.monotonic(), False
        self.record: dict[str, Any] = {}
        identity = {
            "config": asdict(module.config),
            "schedule": schedule.to_json(),
            "settings": asdict(settings),
            "corpus": batches.corpus.digest,
            "valid": valid.digest,
            "batch_tokens": batches.batch_tokens,
            "seed": batches.seed,
        }
        self.identity = json.loads(json.dumps(identity))  # as it comes back from a file
        self.resumed = resume and self.path.exists()
        if self.resumed:
            self._load()

    def _scored_batches(self) -> list[NDArray[np.int64]]:
        batches, most = self.valid.in_order(), self.settings.valid_tokens
        return batches if most is None else batches[:: max(1, round(self.valid.corpus.n_tokens / most))]

    def run(self, log: Log, progress: Progress | None = None) -> dict[str, Any]:
        """Train to the end and return the last record of the log.

        Raises
        ------
        InputError
            The loss is not finite any more; the last checkpoint is kept, the message says which step it holds.
        KeyboardInterrupt
            Ctrl-C or SIGTERM: the present step was finished and a checkpoint written.
        """
        if not self.resumed:
            self._validate(log)
        self.clock.move(self.tokens)
        with self._finishing_steps():
            while (phase := self.clock.present) is not None:
                began = time.perf_counter()
                self._train(phase)
                self.seconds += time.perf_counter() - began
                if progress:
                    progress(phase.name, self.tokens, self.settings.max_tokens)
                due = self.tokens % self.settings.validate_every == 0 or self.tokens == self.settings.max_tokens
                if due:
                    self._validate(log)
                if self.clock.move(self.tokens, stop=due and self._impatient()):
                    self.best = {}
                if due or self.stopped or time.monotonic() - self.saved > CHECKPOINT_EVERY:
                    self._save()
                if self.stopped:
                    raise KeyboardInterrupt
        return self.record

    def _train(self, phase: Phase) -> None:
        """Take one step on the rest of the present batch, as far as the next border."""
        place = self._batch()
        every, clock = self.settings.validate_every, self.clock
        border = min(math.ceil(clock.end), self.settings.max_tokens, (self.tokens // every + 1) * every)
        targets, taken = _cut(place.targets, self.offset, border - self.tokens)
        apply(phase, self.optimizer, clock.share(self.tokens))
        with torch.autocast(targets.device.type, torch.bfloat16, enabled=self.settings.bf16):
            nats = self.module.token_losses(place._replace(targets=targets))
        loss = nats.sum() / self.batches.batch_tokens  # not the mean: what is cut short weighs less
        if not math.isfinite(loss.item()):
            kept = f"step {self._kept()} is kept in {self.path}" if self.path.exists() else "nothing was saved yet"
            raise InputError(
                f"step {self.step + 1}: expected a finite loss, got {loss.item()}; the rates of phase {phase.name!r} "
                f"are too large: begin again with smaller ones ({kept})"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step, self.tokens, self.offset = self.step + 1, self.tokens + taken, self.offset + taken
        if self.offset == int((place.targets != IGNORED).sum()):
            self.batch, self.offset = self.batch + 1, 0

    def _batch(self) -> Segments:
        """Return the segments of the present batch; begin a new epoch after the last."""
        if self.batch == len(self._order(self.epoch)):
            self.epoch, self.batch = self.epoch + 1, 0
        return self._segments(self.batches, self._order(self.epoch)[self.batch])

    def _segments(self, batches: Batches, batch: NDArray[np.int64]) -> Segments:
        return Segments(*(tensor.to(self.settings.device) for tensor in batches.segments(batch)))

    def _order(self, epoch: int) -> list[NDArray[np.int64]]:
        if getattr(self, "_ordered", (None,))[0] != epoch:
            self._ordered = (epoch, self.batches.order(epoch))
        return self._ordered[1]

    @torch.no_grad()
    def _validate(self, log: Log) -> None:
        total = count = 0.0
        for batch in self.scored:
            nats = self.module.token_losses(self._segments(self.valid, batch))
            total, count = total + nats.sum(dtype=torch.float64).item(), count + len(nats)
        corpus, phase = self.valid.corpus, self.clock.present
        nats_a_token = total / count
        if not math.isfinite(nats_a_token):
            raise InputError(
                f"step {self.step}: expected a finite validation loss, got {nats_a_token}; lower the rates"
            )
        self.record = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "phase": phase.name if phase else "",
            "nats": nats_a_token,
            "bits_per_byte": nats_a_token / math.log(2) * corpus.n_tokens / corpus.n_bytes,
        }
        log.write(self.record)
        if self.clock.scored(nats_a_token) and phase is not None and phase.patience is not None:
            self.best = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}

    def _impatient(self) -> bool:
        """Go back to the best weights if the phase has waited long enough."""
        if not self.clock.impatient:
            return False
        self.module.load_state_dict(self.best)
        again = self.clock.best / self.record["nats"] if self.clock.best is not None else 1.0
        self.record = {**self.record, **{name: self.record[name] * again for name in ("nats", "bits_per_byte")}}
        return True

    def _save(self) -> None:
        names = ("step", "tokens", "epoch", "batch", "offset", "seconds", "record")
        place = {name: getattr(self, name) for name in names} | {"clock": self.clock.state()}
        checkpoint.save(self.path, self.module, self.optimizer, self.best, {**self.identity, "place": place})
        self.saved = time.monotonic()

    def _load(self) -> None:
        self.best, facts = checkpoint.load(self.path, self.module, self.optimizer, self.identity)
        place = facts["place"]
        self.clock.resume(place.pop("clock"))
        for name, value in place.items():
            setattr(self, name, value)

    def _kept(self) -> int:
        return int(load_arrays(self.path)[1]["run"]["place"]["step"])

    @contextlib.contextmanager
    def _finishing_steps(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM wait for the end of a step; a second one does not wait."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.stopped = True
            signal.signal(number, before[signal.Signals(number)])

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _cut(targets: Tensor, offset: int, room: int) -> tuple[Tensor, int]:
    """Keep at most ``room`` targets after the first ``offset``, row by row; return them and their number."""
    there = targets != IGNORED
    number = there.flatten().cumsum(0).view(targets.shape)
    kept = there & (number > offset) & (number <= offset + room)
    return targets.masked_fill(~kept, IGNORED), int(kept.sum())
