"""Bit cipher: deterministic bit vectors for tokens and labels, from their counts alone.

Source: Williams and Zhao 2023, arXiv 2311.11012. `bitcipher.codes` holds the functions, `BitCipher` the estimator
around them, `CooccurrenceEmbedding` the vectors of what surrounds a token. The estimators are imported (and with them
scikit-learn) only when they are asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from bitcipher import codes
from bitcipher.codes import CapacityError

if TYPE_CHECKING:
    from bitcipher.cipher import BitCipher
    from bitcipher.embedding import CooccurrenceEmbedding

__all__ = ["BitCipher", "CapacityError", "CooccurrenceEmbedding", "codes"]

_HOMES = {"BitCipher": "cipher", "CooccurrenceEmbedding": "embedding"}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"bitcipher.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
