"""scikit-learn shells: `ExplicitClassifier` and `WarmStartLM`."""

from warmstart.estimators.classifier import ExplicitClassifier
from warmstart.estimators.language_model import WarmStartLM

__all__ = ["ExplicitClassifier", "WarmStartLM"]
