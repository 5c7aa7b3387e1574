"""Warm starts for models people already have: plain networks and Hugging Face models."""

from warmstart.adapters.report import LoadReport

__all__ = ["LoadReport"]
