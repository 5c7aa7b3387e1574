"""A gradient-free warm start: count a corpus once, solve the counts into weights, load them into a PyTorch model.

Public names are imported when they are first asked for: ``import warmstart`` takes no time and loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from warmstart.errors import InputError

if TYPE_CHECKING:
    from warmstart.adapters import load_into, replace_embeddings, warm_start
    from warmstart.corpus import Corpus
    from warmstart.estimators import BitCipherVectorizer, ExplicitClassifier, WarmStartLM
    from warmstart.layers import NearShallowLM

__version__ = "0.1.0"  # pyproject.toml reads it

__all__ = [
    "BitCipherVectorizer",
    "Corpus",
    "ExplicitClassifier",
    "InputError",
    "NearShallowLM",
    "WarmStartLM",
    "load_into",
    "replace_embeddings",
    "warm_start",
]

_MODULES = {
    "BitCipherVectorizer": "estimators",
    "Corpus": "corpus",
    "ExplicitClassifier": "estimators",
    "NearShallowLM": "layers",
    "WarmStartLM": "estimators",
    "load_into": "adapters",
    "replace_embeddings": "adapters",
    "warm_start": "adapters",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f"warmstart.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
