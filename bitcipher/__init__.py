"""Bit cipher: bit vectors for tokens and labels, computed from their counts without training and without randomness.

`bitcipher.codes` has the functions. `BitCipher` is the scikit-learn estimator around them. `CooccurrenceEmbedding`
makes word vectors from the codes of neighbouring tokens. The estimators, and scikit-learn with them, are imported on
first use. Source: Williams and Zhao 2023, arXiv 2311.11012.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from bitcipher import codes
from bitcipher.codes import CapacityError

if TYPE_CHECKING:
    from bitcipher.cipher import BitCipher
    from bitcipher.embedding import CooccurrenceEmbedding

__all__ = ["BitCipher", "CapacityError", "CooccurrenceEmbedding", "codes"]

_MODULES = {"BitCipher": "cipher", "CooccurrenceEmbedding": "embedding"}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f"bitcipher.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
