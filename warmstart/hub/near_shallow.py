"""The near-shallow network as a model of Hugging Face."""

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from warmstart.hub.configs import NearShallowConfig
from warmstart.hub.tables import save_code
from warmstart.layers._ids import checked_targets
from warmstart.layers.near_shallow import IGNORED, NearShallowLM, NetworkState
from warmstart.layers.softmax import SoftmaxLayer

if TYPE_CHECKING:
    from warmstart.estimators import WarmStartLM


class NetworkCache:
    """What the network keeps of texts, for `generate`: a state whose size does not depend on their length.

    Attributes
    ----------
    state : NetworkState
    length : int
        Number of tokens that were read.
    """

    is_compileable = False

    def __init__(self, state: NetworkState, length: int) -> None:
        self.state, self.length = state, length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens that were read."""
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the states of some rows, as beam search does."""
        self.state = NetworkState(*(x[beam_idx.to(x.device)] for x in self.state))


class NearShallowForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """The near-shallow network.

    A text begins with a document: it is read as if a separator were in front of it. So a prompt needs none, and
    padding on the left, under a mask of 0, changes nothing.

    Parameters
    ----------
    config : NearShallowConfig

    Attributes
    ----------
    network : NearShallowLM

    Examples
    --------
    >>> config = NearShallowConfig(vocab_size=20, separator=0, bits=8, hidden_bits=6, contexts=["radial"])
    >>> model = NearShallowForCausalLM(config)
    >>> model(torch.tensor([[5, 3]])).logits.shape
    torch.Size([1, 2, 20])
    """

    config_class = NearShallowConfig
    _is_stateful = True

    def __init__(self, config: NearShallowConfig) -> None:
        super().__init__(config)
        self.network = NearShallowLM(config.network())
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw the weights as `NearShallowLM` does, unless they are loaded."""
        weight = getattr(module, "weight", None)
        if getattr(weight, "_is_hf_initialized", False):
            return
        if module is self.network.embedding:
            nn.init.normal_(module.weight, std=self.config.bits**-0.5)
        elif isinstance(module, SoftmaxLayer):
            nn.init.xavier_uniform_(module.weight)

    @classmethod
    def of(cls, model: "WarmStartLM | NearShallowLM") -> Self:
        """Return a model with a copy of the weights of a network, or of the network of a language model alone.

        Raises
        ------
        InputError
            The language model has no network.
        """
        network = model if isinstance(model, NearShallowLM) else model.to_torch()
        found = cls(NearShallowConfig(**asdict(network.config)))
        found.network.load_state_dict(network.state_dict())
        return found

    @classmethod
    def from_model_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """Return the network of a model folder that `WarmStartLM` or `NearShallowLM` wrote."""
        return cls.of(NearShallowLM.from_pretrained(folder))

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embedding."""
        return self.network.embedding

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the logits of the next tokens, or the loss of labels, which needs no whole logits.

        Parameters
        ----------
        input_ids : (batch, L) int64
        attention_mask : (batch, L) or (batch, past + L), optional
            0 for padding.
        labels : (batch, L) int64, optional
            What comes after ``input_ids[:, t]`` is ``labels[:, t + 1]``; -100 does not count.
        past_key_values : NetworkCache, optional
            What was read before.
        use_cache : bool, optional
        logits_to_keep : int
            Number of last positions that get logits; 0 for all.
        num_items_in_batch : int, optional
            Number of labels by which the sum of the losses is divided.

        Raises
        ------
        InputError
            An id is outside the vocabulary.
        """
        if attention_mask is not None:
            input_ids = input_ids.masked_fill(attention_mask[:, -input_ids.shape[1] :] == 0, self.config.separator)
        if labels is not None:
            counted = labels[:, 1:] != IGNORED
            losses = self.target_nats(input_ids[:, :-1], labels[:, 1:].masked_fill(~counted, IGNORED))
            return CausalLMOutputWithPast(
                loss=losses.sum() / (counted.sum() if num_items_in_batch is None else num_items_in_batch)
            )
        if past_key_values is not None:
            logits, cache = self._continued(input_ids, past_key_values)
            return CausalLMOutputWithPast(logits=logits[:, -logits_to_keep:], past_key_values=cache)
        text = self._text(input_ids)
        state: Any = NetworkCache(self.network.start(text), input_ids.shape[1]) if use_cache else None
        if logits_to_keep == 1 and state is not None:
            logits = self.network.logits(state.state)[:, None]
        else:
            logits = self.network.logits_after(text, logits_to_keep or input_ids.shape[1])
        return CausalLMOutputWithPast(logits=logits, past_key_values=state)

    def target_nats(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Return ``-log q`` (batch, L) of targets (batch, L) after each of the ids; 0 for a negative one."""
        begin = targets.new_full((len(targets), 1), IGNORED)
        checked_targets(targets, input_ids.shape, self.config.vocab_size)
        return -self.network.target_log_probs(self._text(input_ids), torch.cat([begin, targets], dim=1))[:, 1:]

    def _text(self, input_ids: Tensor) -> Tensor:
        """Return ids (batch, 1 + L) after a separator."""
        return torch.cat([input_ids.new_full((len(input_ids), 1), self.config.separator), input_ids], dim=1)

    def _continued(self, input_ids: Tensor, cache: NetworkCache) -> tuple[Tensor, Any]:
        """Return the logits (batch, L, V) after more tokens, and the cache, which is changed."""
        logits = []
        for token in input_ids.unbind(1):
            cache.state = self.network.advance(cache.state, token)
            logits.append(self.network.logits(cache.state))
        cache.length += input_ids.shape[1]
        return torch.stack(logits, dim=1), cache

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, past_key_values: NetworkCache | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the tokens that were not read yet."""
        read = 0 if past_key_values is None else past_key_values.get_seq_length()
        names = "attention_mask", "use_cache", "logits_to_keep"
        kept: dict[str, Any] = {name: kwargs[name] for name in names if name in kwargs}
        return kept | {"input_ids": input_ids[:, read:], "past_key_values": past_key_values}

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write a folder for `from_pretrained`: the weights, and code that asks for this package."""
        self.config.auto_map = {
            "AutoConfig": "modeling_warmstart.NearShallowConfig",
            "AutoModelForCausalLM": "modeling_warmstart.NearShallowForCausalLM",
        }
        super().save_pretrained(save_directory, *args, **kwargs)
        save_code(save_directory)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Do nothing: a folder that is saved carries `modeling_warmstart.py`, not a copy of this file."""
