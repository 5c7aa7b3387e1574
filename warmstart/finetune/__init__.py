"""Fine-tuning in phases: a `Schedule` of phases, a `Run` that trains, and the comparison of runs in `compare`.

A network that is part of a mixture trains beside its counts: `warmstart.finetune.evidence` says what they know of the
text, `warmstart.finetune.beside` trains network and gate. `warmstart.finetune.callback.PhaseCallback` runs a schedule
in the Hugging Face Trainer (extra ``hf``). `warmstart.finetune.targets` has counted targets, for any network.
"""

from warmstart.finetune.batches import Batches
from warmstart.finetune.log import Log
from warmstart.finetune.loop import Run, Settings
from warmstart.finetune.phases import Clock, Phase, Schedule, apply, decoder_schedule, named_schedule
from warmstart.finetune.targets import CountedLoss, CountedTargets

__all__ = [
    "Batches",
    "Clock",
    "CountedLoss",
    "CountedTargets",
    "Log",
    "Phase",
    "Run",
    "Schedule",
    "Settings",
    "apply",
    "decoder_schedule",
    "named_schedule",
]
