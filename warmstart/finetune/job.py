"""The job of ``warmstart finetune``: from a model and text to a folder with the fine-tuned model."""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from warmstart.corpus import Corpus, Text
from warmstart.errors import InputError
from warmstart.estimators import WarmStartLM
from warmstart.finetune.batches import Batches
from warmstart.finetune.beside import Beside
from warmstart.finetune.checkpoint import CHECKPOINT
from warmstart.finetune.evidence import ExpertTable, expert_table
from warmstart.finetune.log import LOG, Log
from warmstart.finetune.loop import Run, Settings
from warmstart.finetune.phases import BESIDE_GROUPS, GROUPS, Schedule, named_schedule
from warmstart.finetune.words import Marks, words_per_token
from warmstart.folder import WEIGHTS, check_target
from warmstart.formats import read_settings
from warmstart.gate import Gate
from warmstart.mixture import Experts, Mixture
from warmstart.near_shallow import NearShallowModel
from warmstart.ngrams import NGramCounts
from warmstart.progress import Progress
from warmstart.records import parse_json


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
    checkpoints_by_words: Path | None = None

    def settings(self, epoch: int) -> Settings:
        """Return the settings for a corpus of ``epoch`` tokens: by default one pass with twenty validations."""
        max_tokens = epoch if self.max_tokens is None else self.max_tokens
        every = max(1, max_tokens // 20) if self.validate_every is None else self.validate_every
        return Settings(max_tokens, every, self.valid_tokens, self.bf16, self.device)

    def schedule(self, max_tokens: int, groups: Mapping[str, tuple[str, ...]] = GROUPS) -> Schedule:
        """Return the schedule that ``phases`` gives by names, as JSON, or as the path of a JSON file.

        ``groups`` are those of `warmstart.finetune.phases` for the kind of model.

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
                text = read_settings(Path(text)).strip()
            except (OSError, ValueError) as error:
                raise InputError(f"phases: expected a JSON file at {text}, got: {error}") from error
        if text[:1] not in ("[", "{"):
            return named_schedule([name.strip() for name in text.split(",")], max_tokens, self.rate, groups)
        if self.rate != 1.0:
            raise InputError("rate: expected the rates of the JSON schedule alone, got a factor too; leave it out")
        try:
            content = parse_json(text)
        except ValueError as error:
            raise InputError(f"phases: expected JSON or names of phases, got: {error}; correct it") from error
        return Schedule.from_json(content, groups)


@dataclass(frozen=True)
class Job:
    """One fine-tuning of a model folder.

    Parameters
    ----------
    model : WarmStartLM
        The model at the start. It is not changed. A mixture trains its network and its gate beside the counts, see
        `warmstart.finetune.beside`; the gate is refitted on the validation text at the end.
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
        text: Corpus | Text,
        valid: Corpus | Text,
        *,
        resume: bool = False,
        log: Path | None = None,
        tensorboard: Path | None = None,
        progress: Progress | None = None,
        **reading: Any,
    ) -> dict[str, Any]:
        """Train, save the model, and return the results of the run.

        Texts are read as the fields of `warmstart.formats.Reading` say, such as ``split_documents``.

        Raises
        ------
        InputError
            The folder holds another run, a text does not fit the model, a mixture has no network or no counts, or the
            loss is no longer finite.
        KeyboardInterrupt
            The run was stopped. Its checkpoint is complete.
        """
        if (self.folder / CHECKPOINT).exists() and not resume:
            raise InputError(
                f"{self.folder}: expected a folder without a run, got a checkpoint; --resume it or choose another one"
            )
        mixture, network, counts = self._mixture(), self.model.to_torch(), self._statistic()
        train, held = (self._encoded(source, reading, progress) for source in (text, valid))
        batches = Batches(train, network.config, self.plan.batch_tokens, self.plan.seed)
        settings = self.plan.settings(train.n_tokens)
        schedule = self.plan.schedule(settings.max_tokens, GROUPS if mixture is None else BESIDE_GROUPS)
        check_target(self.folder)
        if mixture is None:
            prior = self.model.mixture_.experts.prior
            run = Run(network, batches, held, schedule, settings, self.folder, resume, prior=prior, counts=counts)
        else:
            said, of_held = self._tables(mixture.experts, train, held, progress)
            batches = replace(batches, experts=said)
            module = Beside(network, mixture.gate)
            run = Run(module, batches, held, schedule, settings, self.folder, resume, of_held, counts=counts)
        if self.plan.checkpoints_by_words is not None:
            run.on_step = self._checkpoints(run, train, mixture, self.plan.checkpoints_by_words)
        if not run.resumed:
            self.model.save_pretrained(self.folder)
        record = run.run(Log(log or self.folder / LOG, run.step if run.resumed else -1, tensorboard), progress)
        beside: dict[str, Any] = {}
        if mixture is None:
            network.save_pretrained(self.folder)
        else:
            refit = run.refit()
            self._trained(mixture, network.to_model(), refit.gate).save_pretrained(self.folder)
            beside = {"documents": {"left_out": said.left_out, "new": said.new}, "gate": refit.report()}
        weights = (self.folder / WEIGHTS).read_bytes()
        return {
            "model": str(self.folder),
            **record,
            **beside,
            "tokens_per_second": round(run.tokens / max(run.seconds, 1e-9)),
            "padded_share": batches.padded_share(batches.order(0)),
            "resumed": run.resumed,
            "sha256": hashlib.sha256(weights).hexdigest(),
        }

    def _mixture(self) -> Mixture | None:
        """Return the mixture that the network is part of, None if no counts are beside it.

        Raises
        ------
        InputError
            The mixture has no network, or the model no counts.
        """
        mixture = self.model.mixture_
        if not mixture.experts.counted:
            return None
        if mixture.experts.network is None:
            raise InputError(
                f"expected a model with a network, got {', '.join(mixture.experts.names)}, of which nothing trains; "
                "fit it with contexts that have one, such as ngrams,cache,radial,document"
            )
        if self.model.counts_ is None:
            raise InputError(
                "expected a model with its counts, from which the text can be left out, got a pruned one that was "
                "saved without them; fit it again, without pruning"
            )
        return mixture

    def _statistic(self) -> NGramCounts | None:
        """Return the statistic of the model if it has more than the pairs that a network needs."""
        experts = self.model.mixture_.experts
        return self.model.counts_ if experts.ngrams is not None or experts.classes else None

    def _tables(
        self, experts: Experts, train: Corpus, held: Corpus, progress: Progress | None
    ) -> tuple[ExpertTable, ExpertTable]:
        """Return what the counts say of the training text, without the part of each target, and of new text."""
        said = expert_table(experts, train, self.model.counts_, progress=progress)
        return said, expert_table(experts, held, progress=progress)

    def _checkpoints(
        self, run: Run, train: Corpus, mixture: Mixture | None, folder: Path
    ) -> Callable[[], Sequence[Path]]:
        """Return what writes the model of a run for Hugging Face when a number of words is passed."""
        from warmstart.adapters.initialise import save_folder, wrapped_tokenizer

        tokenizer = wrapped_tokenizer(self.model.tokenizer_)  # refused here without the extra `hf`
        from warmstart.hub import CountedForCausalLM, NearShallowForCausalLM

        marks = Marks(folder, words_per_token(train), run.tokens)

        def save(path: Path) -> None:
            model: CountedForCausalLM | NearShallowForCausalLM
            if mixture is None or not isinstance(run.module, Beside):
                model = NearShallowForCausalLM.of(run.network)
            else:
                trained = self._trained(mixture, run.network.to_model(), run.module.gate.to_model())
                model = CountedForCausalLM.of(trained)
            save_folder(path, model, tokenizer)

        return lambda: marks.passed(run.tokens, save)

    def _trained(self, mixture: Mixture, network: NearShallowModel, gate: Gate) -> WarmStartLM:
        """Return the model with a trained network and a new gate."""
        model = copy.copy(self.model)
        model.model_, model.mixture_ = network, Mixture(replace(mixture.experts, network=network), gate)
        return model

    def _encoded(self, source: Corpus | Text, reading: dict[str, Any], progress: Progress | None) -> Corpus:
        """Return the text in the tokens of the model. Refuse a corpus with another tokenizer."""
        tokenizer = self.model.tokenizer_
        if not isinstance(source, Corpus):
            return Corpus.encode(source, tokenizer, progress=progress, **reading)
        if source.tokenizer.to_str() != tokenizer.to_str():
            raise InputError(
                f"{source.folder}: expected a corpus in the tokens of the model, got another tokenizer; "
                "give the text itself, or encode it with the model's tokenizer"
            )
        return source
