"""The training loop of a fine-tuning run: it applies the phases, validates, writes the log and saves checkpoints.

A step depends on the weights, the optimizer and the position in the data only, so a stopped run resumes to the same
bits. A batch is cut at a validation, at the border of a phase and at the end of the run; its rest is the next step. So
all logs have validations at the same token counts, and runs from different starts can be compared.
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
from warmstart.finetune.beside import Beside, Refit, nats, refit, without_network
from warmstart.finetune.carried import Carried, score
from warmstart.finetune.evidence import ExpertTable
from warmstart.finetune.log import Log
from warmstart.finetune.phases import Clock, Phase, Schedule, apply
from warmstart.finetune.targets import CountedTargets, statistic_of
from warmstart.gate import FLOOR
from warmstart.layers import NearShallowLM
from warmstart.layers.near_shallow import IGNORED, Segments
from warmstart.ngrams import NGramCounts
from warmstart.progress import Progress

CHECKPOINT_EVERY = 120.0  # seconds between checkpoints; there is one at every validation too


@dataclass(frozen=True)
class Settings:
    """Length, validation and numerics of a run.

    Parameters
    ----------
    max_tokens : int
        Length of the run.
    validate_every : int
        Number of tokens between two validations.
    valid_tokens : int, optional
        Approximate number of tokens to score, spread over the validation text; all by default.
    bf16 : bool
        Whether matrix products are in bfloat16. Everything else is in float32.
    device : str
        Device to train on, by its name in PyTorch: "cpu", "cuda", "mps".
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
    """One fine-tuning run with a checkpoint in its folder.

    Parameters
    ----------
    module : NearShallowLM or Beside
        The model, trained in place.
    batches : Batches
        The training text. With a module `Beside`, both texts have a table of what the counts say.
    valid : Corpus
        The validation text in the tokens of the model.
    schedule : Schedule
    settings : Settings
    folder : Path
        Folder of the checkpoint.
    resume : bool
        Continue from the checkpoint, if there is one.
    valid_experts : ExpertTable, optional
        What the counts say of the validation text.
    prior : (V,), optional
        Of a network alone: probabilities of the unigram model. Validation then scores the model that is saved, where it
        has `warmstart.gate.FLOOR` of the weight, and the network by itself beside it.
    counts : NGramCounts, optional
        For phases with counted targets: the statistic of the model. Documents that it does not hold are counted.

    Raises
    ------
    InputError
        The validation text is shorter than one block or has other tokens, or the checkpoint is of another run.
    """

    def __init__(
        self,
        module: NearShallowLM | Beside,
        batches: Batches,
        valid: Corpus,
        schedule: Schedule,
        settings: Settings,
        folder: Path,
        resume: bool = False,
        valid_experts: ExpertTable | None = None,
        prior: NDArray[np.float64] | None = None,
        counts: NGramCounts | None = None,
    ) -> None:
        if valid.n_tokens < module.config.block_size:
            raise InputError(
                f"validation text: expected at least one block of {module.config.block_size} tokens, got "
                f"{valid.n_tokens}; give a longer file"
            )
        try:
            self.module = module.to(settings.device)
        except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without the device
            raise InputError(f"device: expected one that torch has here, got {settings.device!r}: {error}") from error
        self.batches, self.settings, self.counts = batches, settings, counts
        self.network = module.network if isinstance(module, Beside) else module
        self.prior = None if prior is None else torch.tensor(prior, dtype=torch.float32, device=settings.device)
        self.valid = Batches(valid, module.config, batches.batch_tokens, experts=valid_experts)
        self.scored = self._scored_batches()
        self.carried = Carried(self.network, batches)
        self.constants = self._constants()
        self.clock = Clock(schedule, settings.max_tokens, batches.corpus.n_tokens)
        self.optimizer = schedule.optimizer(module)
        self.path = folder / checkpoint.CHECKPOINT
        self.best: dict[str, Tensor] = {}
        self.counted: CountedTargets | None = None
        self.step = self.tokens = self.epoch = self.batch = self.offset = 0  # offset: trained targets of the batch
        self.order: list[NDArray[np.int64]] | None = None  # batches of the present epoch
        self.seconds, self.saved, self.stopped = 0.0, time.monotonic(), False
        self.record: dict[str, Any] = {}
        self.best_scores: dict[str, float] = {}
        identity = {
            "config": asdict(module.config),
            "schedule": schedule.to_json(),
            "settings": asdict(settings),
            "corpus": batches.corpus.digest,
            "valid": valid.digest,
            "batch_tokens": batches.batch_tokens,
            "seed": batches.seed,
        }
        if batches.experts is not None and valid_experts is not None:
            identity["experts"] = [batches.experts.key, valid_experts.key]
        self.identity = json.loads(json.dumps(identity))  # in the form that a file gives back
        self.resumed = resume and self.path.exists()
        if self.resumed:
            self._load()

    def _scored_batches(self) -> list[NDArray[np.int64]]:
        batches, tokens = self.valid.in_order(), self.settings.valid_tokens
        return batches if tokens is None else batches[:: max(1, round(self.valid.corpus.n_tokens / tokens))]

    def run(self, log: Log, progress: Progress | None = None) -> dict[str, Any]:
        """Train to the end and return the last record of the log.

        Raises
        ------
        InputError
            The loss is no longer finite. The message names the step of the last checkpoint.
        KeyboardInterrupt
            Ctrl-C or SIGTERM. The step was completed and a checkpoint written.
        """
        if not self.resumed:
            self._validate(log)
        self.clock.move(self.tokens)
        if any(phase.counted for phase in self.clock.schedule.phases[self.clock.phase :]):
            corpus = self.batches.corpus
            statistic = statistic_of(corpus, self.counts, progress)
            self.counted = CountedTargets(statistic, corpus, workers=torch.get_num_threads(), progress=progress)
        with self._finishing_steps():
            while (phase := self.clock.present) is not None:
                start = time.perf_counter()
                self._train(phase)
                self.seconds += time.perf_counter() - start
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
        """Take one step on the rest of the present batch, up to the next validation or border of a phase."""
        numbers = self._numbers()
        segments = self.carried.segments(numbers)
        every, clock = self.settings.validate_every, self.clock
        border = min(math.ceil(clock.end), self.settings.max_tokens, (self.tokens // every + 1) * every)
        targets, n_targets = _cut(segments.targets, self.offset, border - self.tokens)
        share = clock.share(self.tokens)
        apply(phase, self.optimizer, share)
        losses = self._losses(numbers, segments._replace(targets=targets), phase.counted_weight(share))
        loss = losses.sum() / self.batches.batch_tokens  # not the mean: a batch that was cut weighs less
        if not math.isfinite(loss.item()):
            saved = f"step {self._saved_step()} is kept in {self.path}" if self.path.exists() else "nothing is saved"
            raise InputError(
                f"step {self.step + 1}: expected a finite loss, got {loss.item()}; the rates of phase {phase.name!r} "
                f"are too large: start again with smaller ones ({saved})"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step, self.tokens, self.offset = self.step + 1, self.tokens + n_targets, self.offset + n_targets
        if self.offset == int((segments.targets != IGNORED).sum()):
            self.batch, self.offset = self.batch + 1, 0
            self.carried.complete(numbers, segments)

    def _losses(self, numbers: NDArray[np.int64], segments: Segments, counted: float) -> Tensor:
        """Return the losses of the targets of a batch; counted: weight of the counted targets."""
        targets = segments.targets
        with torch.autocast(targets.device.type, torch.bfloat16, enabled=self.settings.bf16):
            if self.counted is None or counted == 0.0:
                network = losses = self.network.token_losses(segments)
            else:
                rows = self.counted.rows(self.batches.targets(numbers, (targets != IGNORED).cpu().numpy()))
                dense = torch.from_numpy(rows.dense()).to(targets.device)
                network, of_rows = self.network.row_losses(segments, dense)
                losses = torch.lerp(network, of_rows, counted)
        if isinstance(self.module, Beside):
            losses = losses + self._mixed(self.module, network, self.batches, numbers, targets)
        return losses

    def _numbers(self) -> NDArray[np.int64]:
        """Return the numbers of the segments of the present batch. After the last batch a new epoch begins."""
        if self.order is None:
            self.order = self.batches.order(self.epoch)
        if self.batch == len(self.order):
            self.epoch, self.batch = self.epoch + 1, 0
            self.order = self.batches.order(self.epoch)
            self.carried.known.clear()
        return self.order[self.batch]

    @torch.no_grad()
    def _validate(self, log: Log) -> None:
        total = of_network = count = 0.0
        for batch, segments, network in score(self.network, self.valid, self.scored):
            losses = self._validated(batch, segments.targets, network)
            total, count = total + losses.sum(dtype=torch.float64).item(), count + len(losses)
            of_network += network.sum(dtype=torch.float64).item()
        corpus, phase = self.valid.corpus, self.clock.present
        loss = total / count
        if not math.isfinite(loss):
            raise InputError(f"step {self.step}: expected a finite validation loss, got {loss}; lower the rates")
        scores = {"nats": loss, "bits_per_byte": loss / math.log(2) * corpus.n_tokens / corpus.n_bytes}
        if isinstance(self.module, Beside) or self.prior is not None:
            scores |= {"network_nats": of_network / count, **self.constants}
        self.record = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "phase": phase.name if phase else "",
            **scores,
        }
        log.write(self.record)
        if self.clock.scored(loss) and phase is not None and phase.patience is not None:
            self.best = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
            self.best_scores = scores

    def _validated(self, numbers: NDArray[np.int64], targets: Tensor, network: Tensor) -> Tensor:
        """Return the losses of targets by the whole model, given those by the network."""
        if isinstance(self.module, Beside):
            return self._mixed(self.module, network, self.valid, numbers, targets)
        if self.prior is None:
            return network
        return -((1 - FLOOR) * network.neg().exp() + FLOOR * self.prior[targets[targets != IGNORED]]).log()

    def _impatient(self) -> bool:
        """Return whether the patience of the phase is over; if so, restore its best weights."""
        if not self.clock.impatient:
            return False
        self.module.load_state_dict(self.best)
        self.record |= self.best_scores
        return True

    def _mixed(
        self, module: Beside, losses: Tensor, batches: Batches, numbers: NDArray[np.int64], targets: Tensor
    ) -> Tensor:
        """Return the losses of targets by the mixture, given those by the network."""
        probs, buckets = batches.said(batches.targets(numbers, (targets != IGNORED).cpu().numpy()))
        return module.mixed(losses, probs.to(losses.device), buckets.to(losses.device))

    @torch.no_grad()
    def refit(self) -> Refit:
        """Refit the gate of a finished run beside counts on the validation text, see `warmstart.finetune.beside`."""
        if not isinstance(self.module, Beside):
            raise InputError("expected a network that was trained beside counts, got one alone")
        losses = [of_batch for _, _, of_batch in score(self.network, self.valid, self.scored)]
        network = torch.cat(losses).cpu().double().neg().exp().numpy()
        places = np.concatenate([self.valid.targets(batch) for batch in self.scored])
        order = np.argsort(places)  # in the order of the text
        probs, buckets = self.valid.said(places[order])
        own = np.insert(probs.double().numpy(), -1, network[order], axis=1)
        return refit(self.module.gate.to_model(), own, buckets.numpy())

    def _constants(self) -> dict[str, float]:
        """Return what the log repeats: beside counts, the loss of the counts without the network."""
        table = self.valid.experts
        if not isinstance(self.module, Beside) or table is None:
            return {}
        places = np.concatenate([self.valid.targets(batch) for batch in self.scored])
        gate = without_network(self.module.start)
        return {"counts_nats": nats(gate, table.probs[places].astype(np.float64), table.buckets[places])}

    def _save(self) -> None:
        names = ("step", "tokens", "epoch", "batch", "offset", "seconds", "record", "best_scores")
        place = {name: getattr(self, name) for name in names} | {"clock": self.clock.state()}
        checkpoint.save(
            self.path, self.module, self.optimizer, self.best, self.carried.known, {**self.identity, "place": place}
        )
        self.saved = time.monotonic()

    def _load(self) -> None:
        self.best, memories, facts = checkpoint.load(self.path, self.module, self.optimizer, self.identity)
        self.carried.known = {number: memory.to(self.settings.device) for number, memory in memories.items()}
        place = facts["place"]
        self.clock.resume(place.pop("clock"))
        for name, value in place.items():
            setattr(self, name, value)

    def _saved_step(self) -> int:
        return int(load_arrays(self.path)[1]["run"]["place"]["step"])

    @contextlib.contextmanager
    def _finishing_steps(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM wait until the step is complete. A second signal acts at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.stopped = True
            signal.signal(number, handlers[signal.Signals(number)])

        if threading.current_thread() is not threading.main_thread():  # only the main thread can set handlers
            yield
            return
        handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _cut(targets: Tensor, offset: int, size: int) -> tuple[Tensor, int]:
    """Keep at most ``size`` targets after the first ``offset``, row by row; return them and their number."""
    mask = targets != IGNORED
    number = mask.flatten().cumsum(0).view(targets.shape)
    mask &= (number > offset) & (number <= offset + size)
    return targets.masked_fill(~mask, IGNORED), int(mask.sum())
