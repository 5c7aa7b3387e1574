"""scikit-learn shells: `ExplicitClassifier`, `BitCipherVectorizer` and `WarmStartLM`."""

from warmstart.estimators.classifier import ExplicitClassifier
from warmstart.estimators.language_model import WarmStartLM
from warmstart.estimators.vectorizer import BitCipherVectorizer

__all__ = ["BitCipherVectorizer", "ExplicitClassifier", "WarmStartLM"]
