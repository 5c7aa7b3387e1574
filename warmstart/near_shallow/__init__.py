"""The near-shallow language model in numpy: its shape, its forward pass, its scores, and its solution from counts."""

from warmstart.near_shallow.config import PRESETS, Config
from warmstart.near_shallow.fit import Fitter, Report
from warmstart.near_shallow.model import NearShallowModel, State, cipher_vectors
from warmstart.near_shallow.scoring import token_losses

__all__ = ["PRESETS", "Config", "Fitter", "NearShallowModel", "Report", "State", "cipher_vectors", "token_losses"]
