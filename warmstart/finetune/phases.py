"""Phases of training: which groups of parameters train, at which learning rates, and for how long.

The optimizer holds all parameters from the first step. A phase only sets `requires_grad` and the learning rates. So the
state of the optimizer survives the change of a phase, and a run can be resumed in any phase.
"""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Self

import torch
from torch import nn

from warmstart.errors import InputError

GROUPS = {"embedding": ("embedding.*",), "middle": ("contexts.*",), "output": ("output.*",)}
BESIDE_GROUPS = {  # of a network beside counts, see `warmstart.finetune.beside`
    **{group: tuple(f"network.{pattern}" for pattern in patterns) for group, patterns in GROUPS.items()},
    "gate": ("gate.*",),
}
RATE = 0.03  # learning rate of the output layer; it and the next two were chosen on validation text
EMBEDDING_RATE = 0.15 * RATE  # smaller, because a vector affects all outputs at once
MIDDLE_RATE = 10 * RATE  # larger, because the softmaxes of the contexts give small features
GATE_RATE = 0.01  # chosen in the same way
FROZEN_RATE = 0.1  # of both: what was solved is near the best for these vectors
FROZEN = 0.02  # of the run
COLD_RATES = {"embedding": 0.01, "middle": 0.03, "output": 0.025}  # best for random weights, chosen in the same way
DECODER_GROUPS = {  # embedding and head by their names in GPT-2, Llama, GPT-NeoX and their relatives; the rest
    "tables": ("*wte.*", "*wpe.*", "*embed_tokens.*", "*embed_in.*", "lm_head.*", "embed_out.*"),
    "blocks": ("*",),
}
DECODER_RATE = 5e-3
DECAYS = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class Phase:
    """One phase of training.

    Parameters
    ----------
    name : str
    rates : dict of str to float
        Peak learning rate of every group that trains. Other groups are frozen. If it is empty, nothing trains and the
        phase takes no tokens; the start is scored.
    tokens : int, optional
        Length in tokens.
    epochs : float, optional
        Length in passes over the corpus, instead of tokens. Without both, the phase lasts to the end of the run.
    warmup : float
        Fraction of the phase during which the rates rise linearly from 0.
    decay : {"cosine", "linear", "constant"}
        Shape of the decay after the warm-up.
    floor : float
        Final learning rate as a fraction of the peak; unused with "constant".
    patience : int, optional
        Number of validations in a row without a new best after which the phase ends. The best weights are restored.
    counted : float
        Weight of counted targets in the loss at the start of the phase, from 0 to 1. It falls to 0 at the end, see
        `warmstart.finetune.targets`.

    Examples
    --------
    >>> phase = Phase("thaw", {"output": 0.02}, warmup=0.1, decay="linear", floor=0.0)
    >>> [round(phase.scale(share), 3) for share in (0.05, 0.1, 0.55, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """

    name: str
    rates: Mapping[str, float] = field(default_factory=dict)
    tokens: int | None = None
    epochs: float | None = None
    warmup: float = 0.02
    decay: str = "cosine"
    floor: float = 0.05
    patience: int | None = None
    counted: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        wrong = [group for group, rate in self.rates.items() if not _number(rate) or rate <= 0]
        if wrong:
            raise InputError(f"phase {self.name!r}: expected positive learning rates, got {dict(self.rates)}")
        for name, low, high in (("warmup", 0.0, 1.0), ("floor", 0.0, 1.0), ("counted", 0.0, 1.0)):
            value = getattr(self, name)
            if not _number(value) or not low <= value <= high:
                raise InputError(f"phase {self.name!r}: {name}: expected a share from 0 to 1, got {value!r}")
        if self.decay not in DECAYS:
            raise InputError(f"phase {self.name!r}: decay: expected one of {', '.join(DECAYS)}, got {self.decay!r}")
        if self.tokens is not None and self.epochs is not None:
            raise InputError(f"phase {self.name!r}: expected tokens or epochs, got both")
        for name in ("tokens", "epochs", "patience"):
            value = getattr(self, name)
            if value is not None and (not _number(value) or value <= 0):
                raise InputError(f"phase {self.name!r}: {name}: expected a positive number, got {value!r}")
        if not self.rates and (self.tokens or self.epochs or self.counted):
            raise InputError(
                f"phase {self.name!r}: expected no length and no counted targets where nothing trains; leave them out"
            )

    def scale(self, share: float) -> float:
        """Return the factor of the learning rates after a fraction of the phase."""
        if share < self.warmup:
            return share / self.warmup
        left = 1.0 - (share - self.warmup) / max(1.0 - self.warmup, 1e-12)
        left = min(max(left, 0.0), 1.0)
        if self.decay == "cosine":
            left = 0.5 - 0.5 * math.cos(math.pi * left)
        return self.floor + (1.0 - self.floor) * left if self.decay != "constant" else 1.0

    def counted_weight(self, share: float) -> float:
        """Return the weight of counted targets after a fraction of the phase: it falls linearly to 0."""
        return self.counted * (1.0 - share)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


@dataclass(frozen=True)
class Schedule:
    """A list of phases and the groups of parameters that they name.

    Parameters
    ----------
    phases : sequence of Phase
    groups : dict of str to sequence of str
        Shell patterns of parameter names for each group. A parameter belongs to the first group with a match.

    Examples
    --------
    >>> schedule = Schedule([Phase("frozen", {"output": 0.01}, tokens=1000), Phase("thaw", {"embedding": 0.001})])
    >>> schedule.group("embedding.weight")
    'embedding'
    >>> Schedule.from_json(schedule.to_json()) == schedule
    True
    """

    phases: tuple[Phase, ...]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(GROUPS))

    def __post_init__(self) -> None:
        """Convert sequences to tuples; check that every group has patterns."""
        groups = self.groups
        object.__setattr__(self, "phases", tuple(self.phases))
        object.__setattr__(self, "groups", {name: tuple(patterns) for name, patterns in self.groups.items()})
        if any(isinstance(given, str) or not all(isinstance(p, str) for p in given) for given in groups.values()):
            raise InputError(f"groups: expected lists of patterns of names, got {groups}; correct them")
        if not any(phase.rates for phase in self.phases):
            raise InputError("expected a schedule with a phase that trains something, got none")
        unknown = sorted({group for phase in self.phases for group in phase.rates} - self.groups.keys())
        if unknown:
            raise InputError(f"expected rates for the groups {', '.join(self.groups)}, got {', '.join(unknown)}")

    def parameters(self, module: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of every group.

        Raises
        ------
        InputError
            A parameter belongs to no group, or a group that trains has no parameters.
        """
        parameters: dict[str, list[nn.Parameter]] = {group: [] for group in self.groups}
        for name, parameter in module.named_parameters():
            group = self.group(name)
            if group is None:
                raise InputError(f"groups: expected a pattern that matches the parameter {name}, found none; add one")
            parameters[group].append(parameter)
        needed = {group for phase in self.phases for group in phase.rates}
        if self.groups in (GROUPS, BESIDE_GROUPS):
            needed.discard("middle")  # a near-shallow model with the radial context alone has none
        if empty := sorted(group for group in needed if not parameters[group]):
            raise InputError(f"groups: expected parameters in {', '.join(empty)}, found none; correct the patterns")
        return parameters

    def group(self, parameter: str) -> str | None:
        """Return the group of a parameter, given by its name."""
        matches = (g for g, patterns in self.groups.items() if any(fnmatchcase(parameter, p) for p in patterns))
        return next(matches, None)

    def optimizer(self, module: nn.Module, weight_decay: float = 0.0) -> torch.optim.AdamW:
        """Return an AdamW with one named parameter group for each group."""
        groups = [{"params": p, "name": g} for g, p in self.parameters(module).items() if p]
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)

    def to_json(self) -> dict[str, Any]:
        """Return the schedule in the form that `from_json` reads."""
        return {"phases": [asdict(phase) for phase in self.phases], "groups": dict(self.groups)}

    @classmethod
    def from_json(cls, content: Any, groups: Mapping[str, tuple[str, ...]] = GROUPS) -> Self:
        """Read a list of phases, or an object of ``phases`` and ``groups``; those of the argument are the default.

        Raises
        ------
        InputError
            A field is unknown or missing, or a value has the wrong type.
        """
        content = {"phases": content} if isinstance(content, list) else content
        try:
            phases = [Phase(**phase) for phase in content["phases"]]
            return cls(tuple(phases), content.get("groups", groups))
        except InputError:
            raise
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise InputError(f"expected phases as a list of objects with the fields of Phase, got: {error}") from error


def named_schedule(
    names: Iterable[str], max_tokens: int, rate: float = 1.0, groups: Mapping[str, tuple[str, ...]] = GROUPS
) -> Schedule:
    """Return a schedule of named phases. The last one lasts to the end of the run.

    Parameters
    ----------
    names : iterable of str
        - "warm": nothing trains, the start is scored;
        - "frozen": middle and output train at a tenth of their rates;
        - "thaw": all groups train, each at its rate;
        - "all": all groups train, each at the rate that suits a cold start.
    max_tokens : int
        Length of the run.
    rate : float
        Factor of all learning rates.
    groups : dict
        `GROUPS`, or `BESIDE_GROUPS` for a network beside counts, whose gate trains in all phases.

    Raises
    ------
    InputError
        A name is unknown, or no phase trains.

    Examples
    --------
    >>> [(phase.name, phase.tokens) for phase in named_schedule(["warm", "frozen", "thaw"], 1_000_000).phases]
    [('warm', None), ('frozen', 20000), ('thaw', None)]
    """
    upper = {"middle": MIDDLE_RATE * rate, "output": RATE * rate}
    lower = {group: FROZEN_RATE * value for group, value in upper.items()}
    gate = {"gate": GATE_RATE * rate} if "gate" in groups else {}
    known = {
        "warm": Phase("warm"),
        "frozen": Phase("frozen", lower | gate, tokens=max(1, round(FROZEN * max_tokens))),
        "thaw": Phase("thaw", {"embedding": EMBEDDING_RATE * rate, **upper} | gate),
        "all": Phase("all", {group: cold * rate for group, cold in COLD_RATES.items()} | gate),
    }
    names = list(names)
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"phases: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    phases = [known[name] for name in names]
    return Schedule((*phases[:-1], replace(phases[-1], tokens=None)) if phases else (), groups)


def decoder_schedule(rate: float = DECODER_RATE, model: nn.Module | None = None, counted: float = 0.0) -> Schedule:
    """Return the schedule that keeps what `warmstart.load_into` wrote into a decoder of Hugging Face.

    It has one phase to the end of the run. The rates rise during the first quarter, and the blocks train at half the
    rate of embedding and head. With a short warm-up and one rate for all, the validation loss of a small GPT-2 first
    rises by 0.7 nats. ``python -m benchmarks transformers`` shows what each part does.

    Parameters
    ----------
    rate : float
        Peak learning rate of embedding and head. The default suits a width of 128; wider models need less.
    model : nn.Module, optional
        The model, which is asked for its embedding and head; the gate of one beside counts trains at `GATE_RATE`.
        Without it the tables have the names of GPT-2, Llama, GPT-NeoX and their relatives.
    counted : float
        Weight of counted targets at the start, see `warmstart.finetune.targets`.

    Examples
    --------
    >>> schedule = decoder_schedule(1e-3)
    >>> schedule.phases[0].rates, schedule.group("transformer.wte.weight"), schedule.group("transformer.h.0.ln_1.bias")
    ({'tables': 0.001, 'blocks': 0.0005}, 'tables', 'blocks')
    """
    groups = DECODER_GROUPS if model is None else _decoder_groups(model)
    rates = {"tables": rate, "blocks": 0.5 * rate} | ({"gate": GATE_RATE} if "gate" in groups else {})
    return Schedule((Phase("all", rates, warmup=0.25, floor=0.0, counted=counted),), groups)


def _decoder_groups(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the groups of a decoder of Hugging Face by the names of its own tables."""
    given: Any = model
    tables = [given.get_input_embeddings(), given.get_output_embeddings()]
    own = {id(parameter) for table in tables if table is not None for parameter in table.parameters()}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in own]
    gate = {"gate": ("gate.logits", "gate.state")} if "gate.logits" in dict(model.named_parameters()) else {}
    return {"tables": (*names, *DECODER_GROUPS["tables"]), **gate, "blocks": ("*",)}


def apply(phase: Phase, optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set `requires_grad` and the learning rates of an optimizer's named groups after a share of a phase."""
    for group in optimizer.param_groups:
        trains = group["name"] in phase.rates
        group["lr"] = phase.rates[group["name"]] * phase.scale(share) if trains else 0.0
        for parameter in group["params"]:
            parameter.requires_grad_(trains)
            if not trains:
                parameter.grad = None


@dataclass
class Clock:
    """The position of a run in its schedule, in tokens, or in epochs for the Hugging Face Trainer.

    Attributes
    ----------
    phase : int
        Index of the present phase.
    began : float
        Position at which the phase began.
    best : float or None
        Lowest validation loss in the phase; None before the first validation.
    waited : int
        Number of validations in a row without a new best.

    Examples
    --------
    >>> clock = Clock(Schedule([Phase("warm"), Phase("thaw", {"output": 1.0})]), total=100, epoch=100)
    >>> clock.move(0), clock.present.name, clock.share(50), clock.move(100), clock.present
    (True, 'thaw', 0.5, True, None)
    """

    schedule: Schedule
    total: float
    epoch: float
    phase: int = 0
    began: float = 0
    best: float | None = None
    waited: int = 0

    @property
    def present(self) -> Phase | None:
        """The present phase, None after the last."""
        return self.schedule.phases[self.phase] if self.phase < len(self.schedule.phases) else None

    @property
    def end(self) -> float:
        """Position at which the present phase ends."""
        phase = self.schedule.phases[self.phase]
        length = phase.tokens if phase.epochs is None else phase.epochs * self.epoch
        return self.began if not phase.rates else self.total if length is None else min(self.total, self.began + length)

    def share(self, position: float) -> float:
        """Return the fraction of the present phase that is done at a position."""
        return (position - self.began) / max(self.end - self.began, 1e-9)

    def over(self, position: float) -> bool:
        """Whether the present phase is over at a position; lengths in epochs are sums of rounded numbers."""
        return position >= self.end - 1e-9

    def move(self, position: float, stop: bool = False) -> bool:
        """Leave the phases that are over at a position, or the present one on ``stop``. Return whether one was left."""
        first = self.phase
        while self.phase < len(self.schedule.phases) and (stop or self.over(position)):
            self.phase, self.began, self.best, self.waited, stop = self.phase + 1, position, None, 0, False
        return self.phase > first

    def scored(self, nats: float) -> bool:
        """Record a validation loss; return whether it is the best of the phase."""
        better = self.best is None or nats < self.best
        self.best, self.waited = (nats, 0) if better else (self.best, self.waited + 1)
        return better

    @property
    def impatient(self) -> bool:
        """Whether the patience of the present phase is over."""
        phase = self.present
        return phase is not None and phase.patience is not None and self.waited >= phase.patience

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"phase": self.phase, "began": self.began, "best": self.best, "waited": self.waited}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue from the result of `state`."""
        for name in ("phase", "began", "best", "waited"):
            setattr(self, name, state[name])
