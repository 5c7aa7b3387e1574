"""Losses of the near-shallow language model on a text, target by target, as a whole and for each context alone."""

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from warmstart._softmax import log_sum_exp
from warmstart._threads import blocks, run_parts
from warmstart.contexts import Chunk
from warmstart.near_shallow.model import NearShallowModel, State
from warmstart.solution import EXAMPLES_PER_BLOCK


def token_losses(
    model: NearShallowModel, chunk: Chunk, state: State, prior: NDArray[np.float64], workers: int = 1
) -> NDArray[np.float64]:
    """Score the targets of a chunk.

    Parameters
    ----------
    model : NearShallowModel
    chunk : Chunk of n targets
    state : State
        The state after the previous chunk; it is changed.
    prior : (V,)
        Token probabilities.
    workers : int
        Number of threads.

    Returns
    -------
    (1 + number of contexts, n) float64
        ``-log P(target)`` in nats: by the whole model, then by each context of ``config.contexts`` alone. A context
        alone has its own part of the logits, and the prior takes the place of the others.
    """
    groups = model.config.groups
    inputs = model.inputs(chunk, state, workers)
    log_prior = np.log(prior).astype(np.float32)
    out = np.empty((1 + len(model.config.contexts), chunk.targets.size))

    def score(rows: slice) -> None:
        parts = model.logits([X[rows] for X in inputs])
        targets = chunk.targets[rows]
        for i, context in enumerate((None, *model.config.contexts)):
            logits = [z for z, (name, _) in zip(parts, groups, strict=True) if context in (None, name)]
            z = sum(logits[1:], logits[0]) if len(logits) > 1 else logits[0].copy()
            if len(logits) < len(groups):
                z += np.float32(1 - len(logits) / len(groups)) * log_prior
            at_target = z[np.arange(targets.size), targets].astype(np.float64)
            out[i, rows] = log_sum_exp(z) - at_target

    with threadpool_limits(1):
        run_parts(score, blocks(chunk.targets.size, EXAMPLES_PER_BLOCK), workers)
    return out
