"""Models for Hugging Face: a decoder beside counts, and the near-shallow network. Importing this needs the extra `hf`.

``AutoConfig`` and ``AutoModelForCausalLM`` know the classes as soon as this package is imported.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from warmstart.hub.configs import CountedConfig, NearShallowConfig
from warmstart.hub.counted import CountedForCausalLM
from warmstart.hub.near_shallow import NearShallowForCausalLM

__all__ = ["CountedConfig", "CountedForCausalLM", "NearShallowConfig", "NearShallowForCausalLM"]

AutoConfig.register(CountedConfig.model_type, CountedConfig, exist_ok=True)
AutoModelForCausalLM.register(CountedConfig, CountedForCausalLM, exist_ok=True)
AutoConfig.register(NearShallowConfig.model_type, NearShallowConfig, exist_ok=True)
AutoModelForCausalLM.register(NearShallowConfig, NearShallowForCausalLM, exist_ok=True)
