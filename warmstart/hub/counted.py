"""A decoder of Hugging Face beside counts: one model whose logits are log-probabilities of the mixture.

| symbol | meaning |
|---|---|
| ``P_m`` | probability of the next token by expert m; the experts but the network are counted |
| ``q`` | probability of the next token by the decoder, the expert "network" |
| ``lambda_m(b)`` | weight of expert m in bucket b, see `warmstart.gate` |

In training the loss is ``-log(sum_m lambda_m(b) P_m) - network_loss log q``. The first term alone starves the decoder:
counts explain most targets, and what is explained gives no gradient.
"""

from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from warmstart.errors import InputError
from warmstart.gate import FLOOR, Gate
from warmstart.hub.configs import CountedConfig
from warmstart.hub.losses import network_nats, plain_head
from warmstart.kneser_ney import KneserNey
from warmstart.layers.gate import MixtureGate
from warmstart.mixture import Experts, Mixture

IGNORED = -100  # a label that does not count


class CountedForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A decoder and counts in one mixture.

    Parameters
    ----------
    config : CountedConfig

    Attributes
    ----------
    base : PreTrainedModel
        The decoder.
    gate : MixtureGate
        Weights of the experts; they train too.
    experts : Experts or None
        The counted experts. They have no weights; `beside` and `from_pretrained` set them.
    """

    config_class = CountedConfig
    _keep_in_fp32_modules_strict = ("gate.logits",)
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True  # as the decoder

    def __init__(self, config: CountedConfig) -> None:
        super().__init__(config)
        self.base = AutoModelForCausalLM.from_config(config.base_config)
        buckets, m = int(np.prod(config.gate_sizes)), len(config.experts)
        self.gate = MixtureGate(Gate(tuple(config.gate_sizes), _equal(buckets, m)))
        self.experts: Experts | None = None
        self._plain: bool | None = None  # whether the head of the decoder is plain, see `plain_head`
        self._inherit()
        self.post_init()

    def _inherit(self) -> None:
        """Take over what the decoder can do and cannot do."""
        self.supports_gradient_checkpointing = getattr(self.base, "supports_gradient_checkpointing", False)
        self._is_stateful = getattr(self.base, "_is_stateful", False)

    @classmethod
    def beside(
        cls,
        base: PreTrainedModel,
        mixture: Mixture,
        network_share: float = 0.1,
        network_loss: float = 1.0,
        vocabulary: str = "",
    ) -> Self:
        """Put a decoder beside the counted experts of a mixture.

        Parameters
        ----------
        base : PreTrainedModel
            The decoder. It is not copied. Rows of its vocabulary above that of the counts are padding.
        mixture : Mixture
            Without a network, see `warmstart.solving.solve`.
        network_share : float
            Weight of the decoder at the start, in every bucket. The other weights stay in proportion.
        network_loss : float
            See `CountedConfig`.
        vocabulary : str, optional
            Digest of the vocabulary that was counted. Default: that of the counts, if the mixture has them.

        Raises
        ------
        InputError
            The mixture has a network, the decoder has fewer tokens than the counts, or a number is out of range.
        """
        experts = mixture.experts
        if experts.network is not None:
            raise InputError("expected a mixture without a network, got one with it; leave its contexts out of `solve`")
        if not 0 < network_share < 1 - FLOOR:
            raise InputError(f"network_share: expected a number above 0 and below {1 - FLOOR}, got {network_share}")
        weights = np.insert(mixture.gate.weights, -1, 0.0, axis=1)
        weights *= (1.0 - network_share) / weights.sum(axis=1, keepdims=True)
        weights[:, -2] = network_share
        names = [*experts.names[:-1], "network", experts.names[-1]]
        if not vocabulary and isinstance(experts.ngrams, KneserNey):
            vocabulary = experts.ngrams.counts.vocabulary
        gate = MixtureGate.ready(_floored(Gate, mixture.gate.sizes, weights))
        return cls._of(base, experts, names, gate, network_loss, vocabulary)

    @classmethod
    def _of(
        cls, base: Any, experts: Experts, names: list[str], gate: MixtureGate, network_loss: float, vocabulary: str
    ) -> Self:
        """Return the model of its parts, which are not copied."""
        size = len(experts.prior)
        if base.config.get_text_config().vocab_size < size:
            raise InputError(
                f"expected a decoder with at least the {size} tokens of the counts, got "
                f"{base.config.get_text_config().vocab_size}; count with the tokenizer of the decoder"
            )
        config = CountedConfig(base.config, size, experts.separator, names, list(gate.sizes), network_loss, vocabulary)
        with torch.device("meta"):
            model = cls(config)
        config.base_config = base.config
        model.base, model.gate, model.experts = base, gate.to(base.device), experts
        model._inherit()
        model.post_init()
        model.generation_config = base.generation_config
        model.train(base.training)
        return cast("Self", model)

    def get_input_embeddings(self) -> Any:
        """Return the embedding of the decoder."""
        return self.base.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        """Set the embedding of the decoder."""
        self.base.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        """Return the head of the decoder."""
        return self.base.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Set the head of the decoder."""
        self.base.set_output_embeddings(new_embeddings)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        expert_probs: Tensor | None = None,
        expert_buckets: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Score labels.

        Parameters
        ----------
        input_ids : (batch, L) int64
        attention_mask : (batch, L), optional
        labels : (batch, L) int64, optional
            What comes after ``input_ids[:, t]`` is ``labels[:, t + 1]``, as everywhere in Hugging Face; -100 does not
            count.
        expert_probs : (batch, L, m), optional
            Probabilities of ``labels`` by every expert but the network, the unigram model last, as in an
            `warmstart.finetune.evidence.ExpertTable`. Needed in training.
        expert_buckets : (batch, L) int64, optional
            Buckets of the gate.
        num_items_in_batch : int, optional
            Number of labels by which the sum of the losses is divided.

        Raises
        ------
        InputError
            Labels are outside the vocabulary, or there is nothing that the counts say of them in training.
        """
        if labels is None:
            raise NotImplementedError
        return self._scored(
            labels, expert_probs, expert_buckets, num_items_in_batch, input_ids=input_ids,
            attention_mask=attention_mask, **kwargs
        )  # fmt: skip

    def _scored(
        self, labels: Tensor, probs: Tensor | None, buckets: Tensor | None, number: Tensor | int | None, **inputs: Any
    ) -> CausalLMOutputWithPast:
        """Return the loss of labels."""
        if probs is None or buckets is None:
            raise InputError(
                "expected expert_probs and expert_buckets in training, got none: counts that include the token are "
                "worse than none; train on windows of warmstart.finetune.Windows with an expert_table"
            )
        counted = labels[:, 1:] != IGNORED
        targets = self._checked(labels[:, 1:], counted)
        if self._plain is None and not torch.compiler.is_compiling():
            self._plain = plain_head(self.base)
        alone = network_nats(self.base, bool(self._plain), targets, self.config.counted_size, **inputs)
        mixed = self.gate.nats(alone, probs[:, 1:].to(alone.dtype), buckets[:, 1:].long())
        losses = mixed + self.config.network_loss * alone if self.training else mixed
        total = (losses * counted).sum()
        return CausalLMOutputWithPast(loss=total / (counted.sum() if number is None else number))

    def _checked(self, targets: Tensor, counted: Tensor) -> Tensor:
        """Return targets with token 0 where they do not count. Refuse what is outside the vocabulary."""
        targets = targets.masked_fill(~counted, 0)
        if not torch.compiler.is_compiling() and targets.numel():
            least, most = int(targets.min()), int(targets.max())
            if least < 0 or most >= self.config.counted_size:
                raise InputError(
                    f"labels: expected {IGNORED} or tokens from 0 to {self.config.counted_size - 1}, got {least} to "
                    f"{most}; use the tokenizer of this model"
                )
        return targets


def _equal(buckets: int, m: int) -> Any:
    """Return equal weights (buckets, m)."""
    return np.full((buckets, m), 1.0 / m)


def _floored(kind: type[Gate], sizes: tuple[int, ...], weights: Any) -> Gate:
    """Return a gate of weights, the last of which are at least `FLOOR`."""
    weights[:, -1] = np.maximum(weights[:, -1], FLOOR)
    weights[:, :-1] *= (1.0 - weights[:, -1:]) / weights[:, :-1].sum(axis=1, keepdims=True)
    return kind(sizes, weights)
