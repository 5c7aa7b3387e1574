"""The near-shallow language model in numpy: its shape, its forward pass, and how it is solved from counts."""

from warmstart.near_shallow.config import PRESETS, Config
from warmstart.near_shallow.fit import Fitter, Report
from warmstart.near_shallow.model import NearShallowModel, State, cipher_vectors, nats, softmax

__all__ = ["PRESETS", "Config", "Fitter", "NearShallowModel", "Report", "State", "cipher_vectors", "nats", "softmax"]
