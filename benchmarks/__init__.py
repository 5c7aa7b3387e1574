"""Measurements side by side with peers; each module has a ``run`` and writes a section of docs/benchmarks.md."""
