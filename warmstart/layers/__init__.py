"""PyTorch modules whose weights the solutions fill. Torch is imported here and to the right of here only."""

from warmstart.layers.attention import SelfAttention
from warmstart.layers.near_shallow import NearShallowLM
from warmstart.layers.softmax import SoftmaxLayer

__all__ = ["NearShallowLM", "SelfAttention", "SoftmaxLayer"]
