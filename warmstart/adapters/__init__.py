"""Warm starts for existing models: plain classifiers and Hugging Face models."""

from warmstart.adapters.decoders import load_into
from warmstart.adapters.embeddings import replace_embeddings
from warmstart.adapters.memories import replace_attention
from warmstart.adapters.parts import Parts
from warmstart.adapters.plain import warm_start
from warmstart.adapters.report import LoadReport

__all__ = ["LoadReport", "Parts", "load_into", "replace_attention", "replace_embeddings", "warm_start"]
