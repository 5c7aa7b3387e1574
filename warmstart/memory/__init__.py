"""Memories of fixed size that a sequence layer writes while it reads: fast weights and test-time training."""

from warmstart.memory.feature_maps import FAVOR, dpfp, elu_plus_one, softmax_attention, sum_normalise
from warmstart.memory.layers import TTTMLP, FastWeightAttention, MemoryLayer, TTTLinear
from warmstart.memory.rules import SumState, delta_rule, delta_step, sum_rule, sum_step
from warmstart.memory.shift import ShiftState, shifted
from warmstart.memory.ttt import TTTState, ttt_rule

__all__ = [
    "FAVOR",
    "TTTMLP",
    "FastWeightAttention",
    "MemoryLayer",
    "ShiftState",
    "SumState",
    "TTTLinear",
    "TTTState",
    "delta_rule",
    "delta_step",
    "dpfp",
    "elu_plus_one",
    "shifted",
    "softmax_attention",
    "sum_normalise",
    "sum_rule",
    "sum_step",
    "ttt_rule",
]
