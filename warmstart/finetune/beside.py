"""A network that trains beside counts: the mixture of both, whose gate trains too, and the gate refitted at the end.

| symbol | meaning |
|---|---|
| ``P_m`` | probability of the target by expert m; those of the counts are given, see `warmstart.finetune.evidence` |
| ``q`` | probability of the target by the network |
| ``lambda_m(b)`` | weight of expert m in bucket b, see `warmstart.gate` |

The loss of a target is ``-log(sum_m lambda_m(b) P_m) - log q``. The first term alone starves the network: counts
explain most targets, and what is explained gives no gradient.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from warmstart.gate import Gate, with_expert
from warmstart.layers import NearShallowLM
from warmstart.layers.gate import MixtureGate

Floats = NDArray[np.float64]


class Beside(nn.Module):
    """A network, and the gate of the mixture that it is part of.

    The weights start at those of a gate, see `MixtureGate.ready`.

    Parameters
    ----------
    network : NearShallowLM
    start : Gate
        Weights at the start. The network is the last expert but one, the unigram model the last.

    Examples
    --------
    >>> import torch
    >>> from warmstart.near_shallow import Config
    >>> network = NearShallowLM(Config(vocab_size=20, separator=0, bits=8))
    >>> module = Beside(network, Gate((1,), np.array([[0.5, 0.3, 0.2]])))
    >>> module.gate.to_model().weights.round(3).tolist()
    [[0.5, 0.3, 0.2]]
    >>> nats = module.mixed(torch.tensor([0.5]).log().neg(), torch.tensor([[0.1, 0.2]]), torch.tensor([0]))
    >>> round(nats.neg().exp().item(), 3)  # 0.5 * 0.1 + 0.3 * 0.5 + 0.2 * 0.2
    0.24
    """

    def __init__(self, network: NearShallowLM, start: Gate) -> None:
        super().__init__()
        self.network, self.start, self.config = network, start, network.config
        self.gate = MixtureGate.ready(start)

    def mixed(self, network: Tensor, probs: Tensor, buckets: Tensor) -> Tensor:
        """Return ``-log P`` (n,) of targets by the mixture.

        Parameters
        ----------
        network : (n,)
            ``-log q``.
        probs : (n, m - 1)
            ``P_m`` of the other experts.
        buckets : (n,) int64
        """
        return self.gate.nats(network, probs, buckets)


def without_network(gate: Gate) -> Gate:
    """Return the gate of the other experts: their weights in proportion."""
    weights = np.delete(gate.weights, -2, axis=1)
    return Gate(gate.sizes, weights / weights.sum(axis=1, keepdims=True))


def nats(gate: Gate, probs: Floats, buckets: NDArray[np.integer]) -> float:
    """Return the mean of ``-log P`` of targets by experts (n, m) and a gate."""
    return -float(np.log((gate.weights[buckets] * probs).sum(axis=1)).mean())


class Refit(NamedTuple):
    """A gate whose weights for the network are refitted by expectation-maximisation.

    Attributes
    ----------
    gate : Gate
        The refitted gate, or the old one if that is better.
    kept : bool
        Whether the old one is kept.
    before : float
        Nats a target with the old gate.
    after : float
        The same with gates refitted on one half of the targets and judged on the other, both ways.
    """

    gate: Gate
    kept: bool
    before: float
    after: float

    def report(self) -> dict[str, str | float]:
        """Return what was done, for the results of a run."""
        text = "the trained gate is kept" if self.kept else "refitted on the validation text"
        return {"weights": text, "nats_before": self.before, "nats_refitted_on_the_other_half": self.after}


def refit(gate: Gate, probs: Floats, buckets: NDArray[np.integer]) -> Refit:
    """Fit the weight of the network anew, on text that neither network nor counts have seen.

    The network has seen its training text, while the counts are left out there; so the trained gate leans too far to
    the network. This holds from the first step if the network was solved from that text. The other experts keep their
    weights in proportion, see `warmstart.gate.with_expert`.

    Parameters
    ----------
    gate : Gate
        The gate after training.
    probs : (n, m)
        Probability of each target by each expert, in the order of the text.
    buckets : (n,) int
    """
    features, others = np.stack(np.unravel_index(buckets, gate.sizes), axis=1), without_network(gate)

    def fitted(targets: NDArray[np.bool_]) -> Gate:
        own = probs[targets]
        return with_expert(others, np.delete(own, -2, axis=1), own[:, -2], features[targets])

    if len(probs) < 2:
        return Refit(gate, True, nats(gate, probs, buckets), nats(gate, probs, buckets))
    first = np.arange(len(probs)) < len(probs) // 2
    halves = [nats(fitted(~half), probs[half], buckets[half]) for half in (first, ~first)]
    before, after = nats(gate, probs, buckets), float(np.average(halves, weights=[first.sum(), (~first).sum()]))
    kept = before <= after
    return Refit(gate if kept else fitted(np.ones(len(probs), np.bool_)), kept, before, after)
