"""The one training loop of the benches: steps with a schedule, validation losses at given steps, seconds."""

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from warmstart.finetune import Phase


def train(
    optimizers: Sequence[torch.optim.Optimizer],
    loss: Callable[[int], Tensor],
    steps: int,
    phase: Phase,
    validate: Callable[[], float],
    at: Collection[int],
    clip: float | None = 1.0,
    stop: Callable[[list[float]], bool] = lambda losses: False,
) -> dict[str, Any]:
    """Train for some steps and return the curve of the validation loss.

    Parameters
    ----------
    optimizers : sequence of optimizers
        Every parameter group has its ``rate``, the peak of its learning rate.
    loss : callable of the step
        The mean loss of the step's batch.
    steps : int
    phase : Phase
        Gives warm-up and decay, as shares of the run.
    validate : callable
    at : collection of int
        Steps before which to validate; ``steps`` is the end.
    clip : float, optional
        Largest norm of the gradient of all dense parameters together.
    stop : callable of the validation losses so far
        Ends the run after a validation when it returns True.

    Returns
    -------
    dict
        Lists ``steps``, ``nats`` (validation losses) and ``seconds`` (of training alone: CPU seconds, or wall-clock
        seconds with a GPU), one value for every validation.
    """
    curve: dict[str, Any] = {"steps": [], "nats": [], "seconds": []}
    seconds, clock = 0.0, time.perf_counter if torch.cuda.is_available() else time.process_time
    clipped = [o for o in optimizers if not isinstance(o, torch.optim.SparseAdam)]
    dense = [parameter for optimizer in clipped for group in optimizer.param_groups for parameter in group["params"]]
    for step in range(steps + 1):
        if step in at:
            for name, value in (("steps", step), ("nats", validate()), ("seconds", seconds)):
                curve[name].append(value)
        if step == steps or (step in at and stop(curve["nats"])):
            return curve
        began = clock()
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["rate"] * phase.scale((step + 0.5) / steps)
        loss(step).backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(dense, clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        seconds += clock() - began
    return curve
