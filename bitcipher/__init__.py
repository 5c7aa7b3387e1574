"""Bit cipher: deterministic bit vectors for tokens and labels, from their counts alone.

Source: Williams and Zhao 2023, arXiv 2311.11012. `bitcipher.codes` holds the functions, `BitCipher` the estimator
around them, which is imported (and with it scikit-learn) only when it is asked for.
"""

from typing import TYPE_CHECKING

from bitcipher import codes
from bitcipher.codes import CapacityError

if TYPE_CHECKING:
    from bitcipher.cipher import BitCipher

__all__ = ["BitCipher", "CapacityError", "codes"]


def __getattr__(name: str) -> object:
    if name == "BitCipher":
        from bitcipher.cipher import BitCipher

        return BitCipher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
