"""Sequence layers with an associative memory of fixed size: fast-weight attention and test-time training.

All are causal self-attention in form: queries, keys and values in heads, then an output projection. Each head writes
keys and values into its memory as it reads the text, so time is linear in the length.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from warmstart.errors import InputError
from warmstart.memory.feature_maps import dpfp, sum_normalise
from warmstart.memory.rules import SumState, delta_rule, delta_step, sum_rule, sum_step
from warmstart.memory.shift import ShiftState, shifted
from warmstart.memory.ttt import MINI_BATCH, TTTState, advance_ttt, check_ttt

RULES = ("delta", "sum")
State = SumState | Tensor | TTTState


class MemoryLayer(nn.Module, ABC):
    """What all memory layers share: projections into heads, token shift, and continuing from a state."""

    mix: Tensor | None

    def __init__(self, dim: int, heads: int, token_shift: bool) -> None:
        super().__init__()
        if heads < 1 or dim < 1 or dim % heads:
            raise InputError(f"heads: expected a divisor of dim, {dim}, got {heads}")
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.mix = nn.Parameter(torch.full((dim,), 0.5)) if token_shift else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (batch, length, dim) of inputs (batch, length, dim), see `advance`."""
        return self.advance(x, mask=mask)[0]

    def advance(
        self, x: Tensor, state: State | ShiftState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, State | ShiftState]:
        """Continue from a state: with the next part of a text, or with the next token of a generation.

        Parameters
        ----------
        x : (batch, length, dim)
            A single token takes constant time and memory. In half precision the memory is kept in float32.
        state : as returned, optional
        mask : (batch, length) bool, optional
            False where nothing is written. Only for `FastWeightAttention` without token shift.

        Returns
        -------
        output : (batch, length, dim)
        state
            The state of the memory; a `ShiftState` around it with token shift.
        """
        if x.ndim != 3 or 0 in x.shape:
            raise InputError(f"expected vectors (batch, length, dim), none of them 0, got {tuple(x.shape)}")
        if mask is not None and self.mix is not None:
            raise InputError("mask: expected none for a layer with token shift; cut the text at the gaps instead")
        if state is not None and isinstance(state, ShiftState) == (self.mix is None):
            wanted = "without" if self.mix is None else "with"
            raise InputError(f"state: expected that of a layer {wanted} token shift, got {type(state).__name__}")
        memory, last = state if isinstance(state, ShiftState) else (state, None)
        key_input = x if self.mix is None else shifted(x, self.mix, last)
        dtype = torch.promote_types(x.dtype, torch.float32)  # of the memory: rounding errors would add up over the text
        q, k, v = (
            layer(y).to(dtype).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.query, x), (self.key, key_input), (self.value, x))
        )
        read, after = self._remember(x, q, k, v, memory, mask)
        output = self.output(read.to(x.dtype).transpose(1, 2).flatten(2))
        return output, after if self.mix is None else ShiftState(after, x[:, -1])

    @abstractmethod
    def _remember(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: object, mask: Tensor | None
    ) -> tuple[Tensor, State]:
        """Write keys and values, read queries, all (batch, heads, length, d); return reads and the state after."""


class FastWeightAttention(MemoryLayer):
    """Causal self-attention with an outer-product memory in each head: a replacement for softmax self-attention.

    The sum rule is linear attention, ``S phi(q) / (z . phi(q))``. The delta rule divides features by their sum, has a
    write strength ``beta = sigmoid(w . x)`` for each head, and reads ``S phi(q)`` without a normaliser.

    Parameters
    ----------
    dim : int
        Width of inputs and outputs.
    heads : int
        A divisor of ``dim``.
    feature_map : callable
        Maps (..., dim / heads) to non-negative features (..., d_phi): `dpfp`, `elu_plus_one`, a `FAVOR`, ...
    rule : "delta" or "sum"
        The delta rule can overwrite what a key holds. The sum rule cannot.
    token_shift : bool
        Keys see a learned mix of the token and the previous one. All rows of ``python -m benchmarks mixers`` have it.

    Attributes
    ----------
    query, key, value, output : nn.Linear without bias
    strength : nn.Linear, dim to heads, or None
        Write strength of the delta rule.
    mix : nn.Parameter of shape (dim,), 0.5 at first, or None
        Share of the previous token in what the keys see.

    Raises
    ------
    InputError
        ``heads`` does not divide ``dim``, the rule is unknown, or the feature map does not accept the heads.

    References
    ----------
    Schlag, Irie and Schmidhuber 2021, arXiv 2102.11174.

    Examples
    --------
    >>> attention = FastWeightAttention(dim=16, heads=2)
    >>> x = torch.randn(1, 5, 16)
    >>> y, state = attention.advance(x[:, :4])
    >>> y, state = attention.advance(x[:, 4:], state)
    >>> torch.allclose(y, attention(x)[:, 4:], atol=1e-6)
    True
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        feature_map: Callable[[Tensor], Tensor] = dpfp,
        rule: str = "delta",
        token_shift: bool = True,
    ) -> None:
        super().__init__(dim, heads, token_shift)
        if rule not in RULES:
            raise InputError(f"rule: expected one of {', '.join(RULES)}, got {rule!r}")
        feature_map(torch.zeros(1, dim // heads))  # raises now if it does not accept the heads
        self.rule, self.feature_map = rule, feature_map
        self.strength = nn.Linear(dim, heads) if rule == "delta" else None

    def _remember(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: object, mask: Tensor | None
    ) -> tuple[Tensor, State]:
        one = x.shape[1] == 1 and mask is None  # one token takes the step of the recurrence
        q, k = self.feature_map(q), self.feature_map(k)
        read: Tensor
        after: State
        if self.strength is None:
            if state is not None and not isinstance(state, SumState):
                raise InputError("state: expected a SumState, as the sum rule returns it; got that of another rule")
            if one:
                read, after = sum_step(q[:, :, 0], k[:, :, 0], v[:, :, 0], state)
            else:
                read, after = sum_rule(q, k, v, state=state, mask=mask)
        else:
            if state is not None and not isinstance(state, Tensor):
                raise InputError("state: expected a tensor, as the delta rule returns it; got that of another rule")
            beta = self.strength(x).to(k.dtype).sigmoid().transpose(1, 2)
            q, k = sum_normalise(q), sum_normalise(k)
            if one:
                read, after = delta_step(q[:, :, 0], k[:, :, 0], v[:, :, 0], beta[:, :, 0], state)
            else:
                read, after = delta_rule(q, k, v, beta, state=state, mask=mask)
        return read[:, :, None] if one else read, after

    def extra_repr(self) -> str:
        """Show the settings in the printed model."""
        name = getattr(self.feature_map, "__name__", repr(self.feature_map))
        return f"heads={self.heads}, rule={self.rule}, feature_map={name}, token_shift={self.mix is not None}"


class TTTLinear(MemoryLayer):
    """Test-time training: the memory of each head is a linear model, trained on ``(theta_K x, theta_V x)`` as it reads.

    Parameters
    ----------
    dim, heads, token_shift
        See `FastWeightAttention`. d is ``dim / heads``.
    mini_batch : int
        Number of tokens whose inner gradients are taken at the same weights.
    rate : float, optional
        Largest inner learning rate, in units of 1 / d. The rate of a token is ``rate / d * sigmoid(w . x)``. Default:
        that of the authors, 1 for `TTTLinear` and 0.1 for `TTTMLP`.
    norm : bool
        Whether the inner model has a LayerNorm and a residual connection. Without them, and with mini-batch 1, the
        layer is the delta rule.

    Attributes
    ----------
    query, key, value, output : nn.Linear without bias
        theta_Q, theta_K, theta_V and the output projection.
    gate : nn.Linear, dim to heads
        Inner learning rate of each token.
    weights : nn.ParameterList of (heads, d, d)
        Weights with which the inner model starts.
    scale, shift : nn.Parameter of shape (heads, 1, d)
        Weight and bias of the inner LayerNorm.
    mix
        See `FastWeightAttention`.

    Raises
    ------
    InputError
        ``heads`` does not divide ``dim``, or a number is out of range.

    References
    ----------
    Sun et al. 2024, arXiv 2407.04620.

    Examples
    --------
    >>> layer, x = TTTLinear(dim=16, heads=2), torch.randn(1, 40, 16)
    >>> y, state = layer.advance(x[:, :25])
    >>> y, state = layer.advance(x[:, 25:], state)
    >>> torch.allclose(y, layer(x)[:, 25:], atol=1e-5)
    True
    """

    default_rate = 1.0

    def __init__(
        self,
        dim: int,
        heads: int,
        mini_batch: int = MINI_BATCH,
        rate: float | None = None,
        norm: bool = True,
        token_shift: bool = True,
    ) -> None:
        super().__init__(dim, heads, token_shift)
        rate = self.default_rate if rate is None else rate
        if mini_batch < 1 or not 0 < rate < float("inf"):
            raise InputError(f"expected a mini-batch of at least 1 and a positive rate, got {mini_batch} and {rate}")
        self.mini_batch, self.norm = mini_batch, norm
        d = dim // heads
        self.rate = rate / d
        self.gate = nn.Linear(dim, heads)
        self.weights = nn.ParameterList(nn.Parameter(0.02 * torch.randn(heads, *shape)) for shape in self.shapes(d))
        if norm:
            self.scale = nn.Parameter(torch.ones(heads, 1, d))
            self.shift = nn.Parameter(torch.zeros(heads, 1, d))

    def shapes(self, d: int) -> list[tuple[int, int]]:
        """Return the shapes of the inner model's matrices."""
        return [(d, d)]

    def _remember(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: object, mask: Tensor | None
    ) -> tuple[Tensor, State]:
        if mask is not None:
            raise InputError("mask: expected none for test-time training; cut the text at the gaps instead")
        memory = TTTState([W.to(k.dtype) for W in self.weights]) if state is None else self._checked(state, len(x))
        eta = self.rate * self.gate(x).to(k.dtype).sigmoid().transpose(1, 2)
        check_ttt(q, k, v, eta, memory.weights, self.mini_batch)
        norm = (self.scale.to(k.dtype), self.shift.to(k.dtype)) if self.norm else None
        return advance_ttt(q, k, v, eta, memory, norm, self.mini_batch)

    def _checked(self, state: object, batch: int) -> TTTState:
        """Return the state if this layer can continue from it, or say what is wrong."""
        if not isinstance(state, TTTState) or not 0 <= state.done < self.mini_batch:
            raise InputError(f"state: expected a TTTState within a mini-batch of {self.mini_batch}, got {state!r:.80}")
        expected = [tuple(W.shape) for W in self.weights]
        weights, steps = [tuple(W.shape[-3:]) for W in state.weights], [tuple(W.shape[1:]) for W in state.steps]
        batches = {len(W) for W in (*state.weights, *state.steps) if W.ndim == 4}
        if weights != expected or steps not in ([], expected) or batches - {batch}:
            raise InputError(
                f"state: expected weights {expected} for a batch of {batch}; use one of this layer and batch"
            )
        return state

    def extra_repr(self) -> str:
        """Show the settings in the printed model."""
        settings = f"heads={self.heads}, mini_batch={self.mini_batch}, norm={self.norm}"
        return f"{settings}, token_shift={self.mix is not None}"


class TTTMLP(TTTLinear):
    """`TTTLinear` with a two-layer inner model, ``gelu(k W_1) W_2`` with a hidden layer of 4 d.

    References
    ----------
    Sun et al. 2024, arXiv 2407.04620, section 2.7.

    Examples
    --------
    >>> TTTMLP(dim=16, heads=2)(torch.randn(1, 40, 16)).shape
    torch.Size([1, 40, 16])
    """

    default_rate = 0.1

    def shapes(self, d: int) -> list[tuple[int, int]]:
        """Return the shapes of the inner model's matrices."""
        return [(d, 4 * d), (4 * d, d)]
