"""PyTorch modules that hold the solved weights. The earlier stages of the pipeline do not import torch."""

from warmstart.layers.attention import SelfAttention
from warmstart.layers.cache import DocumentCacheLayer
from warmstart.layers.mixture import MixtureLM
from warmstart.layers.near_shallow import NearShallowLM
from warmstart.layers.ngrams import NGramTables
from warmstart.layers.softmax import SoftmaxLayer

__all__ = ["DocumentCacheLayer", "MixtureLM", "NGramTables", "NearShallowLM", "SelfAttention", "SoftmaxLayer"]
