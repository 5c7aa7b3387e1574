"""A language model of counts with numpy alone: for small machines. Importing it loads nothing but numpy.

`warmstart.export` writes its folders. `EdgeLM` opens one without reading it into memory, predicts token by token, and
counts more text. ``examples/edge`` reads the same tables in C.
"""

from warmstart.edge.model import EdgeLM

__all__ = ["EdgeLM"]
