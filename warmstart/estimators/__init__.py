"""Estimators with the interface of scikit-learn: `ExplicitClassifier`, `BitCipherVectorizer` and `WarmStartLM`.

Each is imported when it is first asked for, so that the classifier does not load what the language model needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warmstart.estimators.classifier import ExplicitClassifier
    from warmstart.estimators.language_model import WarmStartLM
    from warmstart.estimators.vectorizer import BitCipherVectorizer

__all__ = ["BitCipherVectorizer", "ExplicitClassifier", "WarmStartLM"]

_MODULES = {"BitCipherVectorizer": "vectorizer", "ExplicitClassifier": "classifier", "WarmStartLM": "language_model"}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f"warmstart.estimators.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
