"""The mixture in PyTorch: the experts of `warmstart.mixture` and their gate, for whole batches and step by step.

Of the experts the network alone has weights, and the gate has logits: both can be trained. Tables, caches and the
unigram model are buffers that are made anew from the counts. For targets the experts but the network give one number
each; whole rows are there for the next token.
"""

from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from warmstart.layers._ids import as_tensor, checked_ids, checked_targets
from warmstart.layers.cache import DocumentCacheLayer
from warmstart.layers.classes import ClassTables
from warmstart.layers.gate import MixtureGate
from warmstart.layers.generation import continued
from warmstart.layers.near_shallow import NearShallowLM
from warmstart.layers.ngrams import NGramTables
from warmstart.mixture import CACHES, DISCOUNT, Mixture


class Evidence(NamedTuple):
    """What the experts say of targets, see `warmstart.mixture.Evidence`.

    Attributes
    ----------
    probs : (..., m)
        Probabilities by every expert, in the order of `MixtureLM.names`.
    features : (..., k) int64
        Of the gate.
    """

    probs: Tensor
    features: Tensor


class MixtureState(NamedTuple):
    """What the experts keep of texts.

    Attributes
    ----------
    token : (batch,) int64
        The newest token.
    experts : dict of str to state
        State of every expert but the unigram model, by its name.
    """

    token: Tensor
    experts: dict[str, Any]


class MixtureLM(nn.Module):
    """Language model of a mixture of experts.

    ``state_dict()`` holds ``gate.logits`` and the network, whose names are those of `NearShallowLM` after ``network.``.
    The tables are not part of it. `torch.compile` takes `target_log_probs`, `advance` and `logits` as one graph each,
    unless the network has the memory context, whose loop depends on the text.

    Parameters
    ----------
    mixture : Mixture
    dtype : torch.dtype
        float32 gives log-probabilities to 1e-5.

    Attributes
    ----------
    names : list of str
        The experts in the order of the weights.
    ngrams : NGramTables or None
    classes : nn.ModuleDict of ClassTables
        Empty without class models.
    caches : nn.ModuleDict of DocumentCacheLayer
        Empty if the mixture has no caches.
    network : NearShallowLM or None
    gate : MixtureGate

    Examples
    --------
    >>> import numpy as np
    >>> from warmstart.gate import Gate
    >>> from warmstart.mixture import Experts
    >>> experts = Experts(separator=0, prior=np.array([0.2, 0.5, 0.3]), cache=True)
    >>> weights = np.full((int(np.prod(experts.feature_sizes)), 4), 0.25)  # of three caches and the unigram model
    >>> model = MixtureLM(Mixture(experts, Gate(experts.feature_sizes, weights)))
    >>> ids = torch.tensor([[0, 1, 2, 1]])
    >>> model.target_log_probs(ids, torch.tensor([[1, 2, 1, 2]])).exp().detach()
    tensor([[0.3750, 0.2000, 0.4375, 0.5542]])
    >>> model(ids).exp()[0, 3].detach()  # 2 followed 1
    tensor([0.0917, 0.3542, 0.5542])
    """

    prior: Tensor

    def __init__(self, mixture: Mixture, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        experts, gate = mixture.experts, mixture.gate
        self.vocab_size, self.separator, self.names = len(experts.prior), experts.separator, experts.names
        shapes, common = CACHES if experts.cache else {}, (self.vocab_size, self.separator)
        self.caches = nn.ModuleDict({n: DocumentCacheLayer(*common, *shapes[n], DISCOUNT, dtype) for n in shapes})
        self.ngrams = None if experts.ngrams is None else NGramTables(experts.ngrams, dtype)
        models, window = zip(experts.class_names, experts.classes, strict=True), CACHES["cache"][1]
        self.classes = nn.ModuleDict({name: ClassTables(model, window, dtype) for name, model in models})
        self.network = None if experts.network is None else NearShallowLM.from_model(experts.network).to(dtype)
        self.gate = MixtureGate(gate, dtype)
        self.register_buffer("prior", torch.tensor(experts.prior, dtype=dtype), persistent=False)

    @classmethod
    def from_model(cls, mixture: Mixture, dtype: torch.dtype = torch.float32) -> Self:
        """Return a module with a copy of the tables and weights."""
        return cls(mixture, dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Return ``log P`` (batch, length, V) of the token after each of ``ids``, step by step; for short texts.

        Parameters
        ----------
        ids : (batch, length) tensor, array or lists of int
            A separator begins a document, and so does the first token of a sequence.

        Raises
        ------
        InputError
            The shape or type is wrong, or an id is outside the vocabulary.
        """
        ids = checked_ids(ids, self.vocab_size, self.prior.device)
        state = self.start(ids[:, :1])
        out = [self.logits(state)]
        for token in ids[:, 1:].unbind(1):
            state = self.advance(state, token)
            out.append(self.logits(state))
        return torch.stack(out, dim=1)

    def target_log_probs(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return ``log P(target)`` (batch, length) in nats after each of ``ids``, without whole rows.

        Parameters
        ----------
        ids : (batch, length) int64
            As for `forward`.
        targets : (batch, length) int64
            A negative target does not count: 0.
        """
        targets = as_tensor(targets, self.prior.device)
        probs, features = self.evidence(ids, targets)
        P: Tensor = (self.gate(features) * probs).sum(dim=-1)
        return P.log().where(targets >= 0, 0.0)

    def evidence(self, ids: Tensor, targets: Tensor) -> Evidence:
        """Return what the experts say of targets (batch, length), see `target_log_probs`; of token 0 for negative ones.

        The experts but the network give constants. Gradients reach the weights of the network.
        """
        ids = checked_ids(ids, self.vocab_size, self.prior.device)
        y = checked_targets(targets, ids.shape, self.vocab_size, ids.device).clamp(min=0)
        said = {name: cache.scores(ids, y) for name, cache in self._caches.items()}
        probs = {"unigram": self.prior[y]} | {name: scores.probs for name, scores in said.items()}
        known = None
        if self.ngrams is not None:
            probs["ngrams"], known, _ = self.ngrams.scores(self.ngrams.contexts(ids), y)
        seen = said["cache"].counts[..., 0, 0] if said else None
        probs |= {name: model.probabilities(ids, y, seen) for name, model in self._classes.items()}
        if self.network is not None:
            probs["network"] = self.network.target_log_probs(ids, y).exp()
        contexts = {name: scores.counts[..., 1:] for name, scores in said.items()}
        return Evidence(torch.stack([probs[name] for name in self.names], dim=-1), _features(contexts, known, ids))

    def start(self, ids: Tensor) -> MixtureState:
        """Return the state after ``ids``, which are as for `forward`."""
        ids = checked_ids(ids, self.vocab_size, self.prior.device)
        return MixtureState(ids[:, -1], {name: expert.start(ids) for name, expert in self._experts.items()})

    def advance(self, state: MixtureState, token: Tensor) -> MixtureState:
        """Return the state after one more token (batch,) int64.

        The token is one of the vocabulary; its value is not checked again.
        """
        return MixtureState(token, {n: expert.advance(state.experts[n], token) for n, expert in self._experts.items()})

    def rows(self, state: MixtureState) -> Evidence:
        """Return what the experts say of every token to come next: probs (batch, V, m) and features (batch, k).

        The work is bounded by V and the sizes of the caches.
        """
        token, states = state
        counts = {name: cache.row_counts(states[name]) for name, cache in self._caches.items()}
        rows = {name: cache.distribution(counts[name]) for name, cache in self._caches.items()}
        rows["unigram"] = self.prior.expand(len(token), -1)
        known = None
        if self.ngrams is not None:
            rows["ngrams"], (known, _) = self.ngrams.rows(states["ngrams"]), self.ngrams.features(states["ngrams"])
        seen = counts["cache"][:, 0] if counts else None
        rows |= {name: model.rows(states[name], seen) for name, model in self._classes.items()}
        if self.network is not None:
            rows["network"] = self.network.logits(states["network"]).softmax(dim=-1)
        contexts = {name: cache.contexts(counts[name]) for name, cache in self._caches.items()}
        return Evidence(torch.stack([rows[name] for name in self.names], dim=-1), _features(contexts, known, token))

    def logits(self, state: MixtureState) -> Tensor:
        """Return ``log P`` (batch, V) of the next token."""
        rows, features = self.rows(state)
        P: Tensor = (rows @ self.gate(features)[..., None])[..., 0]
        return P.log()

    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int = 60,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> Tensor:
        """Continue prompts by sampling, see `NearShallowLM.generate`. The work of a token is that of `rows`."""
        ids = as_tensor(ids, self.prior.device)
        return continued(self, ids, self.separator, max_new_tokens, temperature, top_p, seed)

    @property
    def _experts(self) -> dict[str, Any]:
        """The experts that read step by step: all but the unigram model."""
        found = {"ngrams": self.ngrams, **self._classes, **self._caches, "network": self.network}
        return {name: expert for name, expert in found.items() if expert is not None}

    @property
    def _classes(self) -> dict[str, ClassTables]:
        return cast("dict[str, ClassTables]", dict(self.classes.items()))

    @property
    def _caches(self) -> dict[str, DocumentCacheLayer]:
        return cast("dict[str, DocumentCacheLayer]", dict(self.caches.items()))

    def extra_repr(self) -> str:
        """Show the experts in the printed model."""
        return f"vocab_size={self.vocab_size}, experts={', '.join(self.names)}"


def _features(contexts: dict[str, Tensor], known: Tensor | None, previous: Tensor) -> Tensor:
    """Return the features of the gate (..., k) int64, see `warmstart.mixture.features`.

    ``contexts`` are ``c(h)`` and ``types(h)`` (..., N, 2) of every cache; ``known`` and ``previous`` are (...).
    """
    columns = []
    if contexts:
        longest = _known(contexts["cache"])
        totals, types = contexts["cache"].take_along_dim(longest[..., None, None], dim=-2)[..., 0, :].unbind(-1)
        columns = [longest, _bits(types), _bits(totals), _known(contexts["cache 1024"])]
    if known is not None:
        columns.append(known)
    columns.append(_bits(previous) // 2)
    return torch.stack(columns, dim=-1)


def _known(contexts: Tensor) -> Tensor:
    return (contexts[..., 1:, 0] > 0).sum(dim=-1)


def _bits(numbers: Tensor) -> Tensor:
    """Return the number of bits of whole numbers below 2 ** 31."""
    return torch.bucketize(numbers.contiguous(), 1 << torch.arange(31, device=numbers.device), right=True)
