"""Configurations of the models for Hugging Face: what `config.json` says."""

from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from warmstart.near_shallow import Config


class CountedConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Configuration of a `warmstart.hub.CountedForCausalLM`.

    Parameters
    ----------
    base_config : PreTrainedConfig or dict
        That of the decoder.
    counted_size : int
        V, the number of tokens that were counted. The decoder may have more rows, which are padding.
    separator : int
        Id of the token between documents.
    experts : list of str
        Names of the experts in the order of the gate, "network" last but one and "unigram" last.
    gate_sizes : list of int
        Number of values of each feature of the gate.
    gate_width : int
        Width of the hidden states of the decoder that the gate reads; 0 if it reads none.
    network_loss : float
        Weight of ``-log q``, the loss of the decoder alone, beside the loss of the mixture in training.
    vocabulary : str
        Digest of the vocabulary that was counted, see `warmstart.ngrams.vocabulary_digest`; empty if unknown.
    tables : str
        Digest of the counted experts in the folder of the model, see `warmstart.hub.tables`.

    Examples
    --------
    >>> config = CountedConfig({"model_type": "gpt2", "vocab_size": 90}, counted_size=80)
    >>> config.base_config.vocab_size, config.experts
    (90, ['network', 'unigram'])
    """

    model_type = "warmstart_counted"
    sub_configs: ClassVar[dict[str, Any]] = {"base_config": AutoConfig}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    def __init__(
        self,
        base_config: PreTrainedConfig | dict[str, Any] | None = None,
        counted_size: int = 0,
        separator: int = 0,
        experts: list[str] | None = None,
        gate_sizes: list[int] | None = None,
        gate_width: int = 0,
        network_loss: float = 1.0,
        vocabulary: str = "",
        tables: str = "",
        **kwargs: Any,
    ) -> None:
        if base_config is None:
            base_config = {"model_type": "gpt2"}  # `to_dict` compares with a default configuration
        if isinstance(base_config, dict):
            base_config = AutoConfig.for_model(**base_config)
        self.base_config = base_config
        kwargs.setdefault("attn_implementation", base_config._attn_implementation)  # None would change the decoder's
        self.counted_size, self.separator = counted_size, separator
        self.experts, self.gate_sizes = list(experts or ["network", "unigram"]), list(gate_sizes or [1])
        self.gate_width = gate_width
        self.network_loss, self.vocabulary, self.tables = network_loss, vocabulary, tables
        kwargs.setdefault("tie_word_embeddings", False)  # the decoder ties its own
        super().__init__(**kwargs)

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> PreTrainedConfig:
        """Return the configuration of the decoder: that of the vocabulary, the layers and the cache of generation."""
        return self.base_config.get_text_config(decoder=decoder, encoder=encoder)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Do nothing: a folder that is saved carries `modeling_warmstart.py`, not a copy of this file."""


class NearShallowConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Configuration of a `warmstart.hub.NearShallowForCausalLM`: the fields of `warmstart.near_shallow.Config`.

    Examples
    --------
    >>> NearShallowConfig(vocab_size=20, bits=8, hidden_bits=6, contexts=["radial"]).network().radius
    2
    """

    model_type = "warmstart_near_shallow"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 8192,
        separator: int = 0,
        bits: int = 512,
        hidden_bits: int = 128,
        radius: int = 2,
        block_size: int = 8,
        contexts: Sequence[str] = ("radial", "document"),
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.separator, self.bits, self.hidden_bits = vocab_size, separator, bits, hidden_bits
        self.radius, self.block_size, self.contexts = radius, block_size, list(contexts)
        kwargs.setdefault("tie_word_embeddings", False)
        kwargs.setdefault("bos_token_id", separator)
        kwargs.setdefault("eos_token_id", separator)
        super().__init__(**kwargs)

    def network(self) -> Config:
        """Return the shape of the network. Raises `InputError` if it cannot be built."""
        sizes = self.vocab_size, self.separator, self.bits, self.hidden_bits, self.radius, self.block_size
        return Config(*sizes, contexts=tuple(self.contexts))

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Do nothing: a folder that is saved carries `modeling_warmstart.py`, not a copy of this file."""
