"""The job of ``warmstart finetune``: from a model and text to a folder with the fine-tuned model."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.corpus import Corpus
from warmstart.documents import Sources
from warmstart.errors import InputError
from warmstart.estimators import WarmStartLM
from warmstart.finetune.batches import Batches
from warmstart.finetune.checkpoint import CHECKPOINT
from warmstart.finetune.log import LOG, Log
from warmstart.finetune.loop import Run, Settings
from warmstart.finetune.phases import Schedule, named_schedule
from warmstart.folder import WEIGHTS, check_target
from warmstart.progress import Progress


@dataclass(frozen=True)
class Plan:
    """Settings of a fine-tuning: the options of ``warmstart finetune`` with the same names."""

    phases: str = "warm,frozen,thaw"
    rate: float = 1.0
    max_tokens: int | None = None
    validate_every: int | None = None
    valid_tokens: int | None = None
    batch_tokens: int = 2048
    seed: int = 0
    bf16: bool = False
    device: str = "cpu"

    def settings(self, epoch: int) -> Settings:
        """Return the settings for a corpus of ``epoch`` tokens: by default one pass with twenty validations."""
        max_tokens = epoch if self.max_tokens is None else self.max_tokens
        every = max(1, max_tokens // 20) if self.validate_every is None else self.validate_every
        return Settings(max_tokens, every, self.valid_tokens, self.bf16, self.device)

    def schedule(self, max_tokens: int) -> Schedule:
        """Return the schedule that ``phases`` gives by names, as JSON, or as the path of a JSON file.

        Raises
        ------
        InputError
            ``phases`` is none of these, or ``rate`` does not fit.
        """
        if not 0 < self.rate < float("inf"):
            raise InputError(f"rate: expected a positive number, got {self.rate}")
        text = self.phases.strip()
        if text.endswith(".json"):
            try:
                text = Path(text).read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as error:
                raise InputError(f"phases: expected a JSON file at {text}, got: {error}") from error
        if text[:1] not in ("[", "{"):
            return named_schedule([name.strip() for name in text.split(",")], max_tokens, self.rate)
        if self.rate != 1.0:
            raise InputError("rate: expected the rates of the JSON schedule alone, got a factor too; leave it out")
        try:
            return Schedule.from_json(json.loads(text))
        except json.JSONDecodeError as error:
            raise InputError(f"phases: expected JSON or names of phases, got: {error}") from error


@dataclass(frozen=True)
class Job:
    """One fine-tuning of a model folder.

    Parameters
    ----------
    model : WarmStartLM
        The model at the start. It is not changed.
    folder : Path
        Folder of the run. It holds ``log.jsonl``, ``checkpoint.safetensors``, and the model: that of the start until
        the run has ended.
    plan : Plan
    """

    model: WarmStartLM
    folder: Path
    plan: Plan

    def run(
        self,
        text: Corpus | Sources,
        valid: Corpus | Sources,
        *,
        split_documents: str | None = None,
        resume: bool = False,
        log: Path | None = None,
        tensorboard: Path | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Train, save the model, and return the results of the run.

        Raises
        ------
        InputError
            The folder holds another run, a text does not fit the model, or the loss is no longer finite.
        KeyboardInterrupt
            The run was stopped. Its checkpoint is complete.
        """
        if (self.folder / CHECKPOINT).exists() and not resume:
            raise InputError(
                f"{self.folder}: expected a folder without a run, got a checkpoint; --resume it or choose another one"
            )
        train, held = (self._encoded(source, split_documents, progress) for source in (text, valid))
        module = self.model.to_torch()
        batches = Batches(train, module.config, self.plan.batch_tokens, self.plan.seed)
        settings = self.plan.settings(train.n_tokens)
        schedule = self.plan.schedule(settings.max_tokens)
        check_target(self.folder)
        run = Run(module, batches, held, schedule, settings, self.folder, resume)
        if not run.resumed:
            self.model.save_pretrained(self.folder)
        record = run.run(Log(log or self.folder / LOG, run.step if run.resumed else -1, tensorboard), progress)
        module.save_pretrained(self.folder)
        weights = (self.folder / WEIGHTS).read_bytes()
        return {
            "model": str(self.folder),
            **record,
            "tokens_per_second": round(run.tokens / max(run.seconds, 1e-9)),
            "padded_share": batches.padded_share(batches.order(0)),
            "resumed": run.resumed,
            "sha256": hashlib.sha256(weights).hexdigest(),
        }

    def _encoded(self, source: Corpus | Sources, split_documents: str | None, progress: Progress | None) -> Corpus:
        """Return the text in the tokens of the model. Refuse a corpus with another tokenizer."""
        tokenizer = self.model.tokenizer_
        if not isinstance(source, Corpus):
            return Corpus.encode(source, tokenizer, split_documents=split_documents, progress=progress)
        if source.tokenizer.to_str() != tokenizer.to_str():
            raise InputError(
                f"{source.folder}: expected a corpus in the tokens of the model, got another tokenizer; "
                "give the text itself, or encode it with the model's tokenizer"
            )
        return source
