"""Fast-weight attention: causal self-attention whose memory has one size, however long the text."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from warmstart.errors import InputError
from warmstart.memory.feature_maps import dpfp, sum_normalise
from warmstart.memory.rules import SumState, delta_rule, delta_step, sum_rule, sum_step
from warmstart.memory.shift import ShiftState, shifted, unpacked

RULES = ("delta", "sum")
State = SumState | Tensor


class FastWeightAttention(nn.Module):
    """Causal self-attention by an outer-product memory in each head; a drop-in for softmax self-attention.

    Sum rule: linear attention, ``S phi(q) / (z . phi(q))``. Delta rule: features are divided by their sum, the write
    strength of each head is ``beta = sigmoid(w . x)``, and the read ``S phi(q)`` has no normaliser.

    Parameters
    ----------
    dim : int
        Of inputs and outputs.
    heads : int
        A divisor of ``dim``.
    feature_map : callable
        From (..., dim / heads) to non-negative features (..., d_phi): `dpfp`, `elu_plus_one`, a `FAVOR`, ...
    rule : "delta" or "sum"
    shift : bool
        Keys see a learned mix of the token and the one before it.

    Attributes
    ----------
    query, key, value, output : nn.Linear without bias
    strength : nn.Linear, dim to heads
        Of the delta rule only.
    mix : nn.Parameter of shape (dim,), 0.5 at first, or None
        Share of the token before in what the keys see.

    Raises
    ------
    InputError
        ``heads`` does not divide ``dim``, an unknown rule, a feature map that cannot serve the heads.

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

    mix: Tensor | None

    def __init__(
        self,
        dim: int,
        heads: int,
        feature_map: Callable[[Tensor], Tensor] = dpfp,
        rule: str = "delta",
        shift: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1 or dim < 1 or dim % heads:
            raise InputError(f"heads: expected a divisor of dim, {dim}, got {heads}")
        if rule not in RULES:
            raise InputError(f"rule: expected one of {', '.join(RULES)}, got {rule!r}")
        feature_map(torch.zeros(1, dim // heads))  # a map that cannot serve the heads says so now
        self.heads, self.rule, self.feature_map = heads, rule, feature_map
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.strength = nn.Linear(dim, heads) if rule == "delta" else None
        self.mix = nn.Parameter(torch.full((dim,), 0.5)) if shift else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (batch, length, dim) of inputs (batch, length, dim); where ``mask`` is False nothing is written."""
        return self.advance(x, mask=mask)[0]

    def advance(
        self, x: Tensor, state: State | ShiftState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, State | ShiftState]:
        """Go on from a state: the next part of a text, or the next token of a generation.

        Parameters
        ----------
        x : (batch, length, dim)
            One token takes the step of the recurrence, in constant time and memory.
        state : as returned, optional
        mask : (batch, length) bool, optional
            Not for layers with token shift: what is the token before a gap?

        Returns
        -------
        output : (batch, length, dim)
        state : SumState or (batch, heads, dim / heads, d_phi), in a `ShiftState` for layers with token shift
        """
        if x.ndim != 3 or 0 in x.shape:
            raise InputError(f"expected vectors (batch, length, dim), none of them 0, got {tuple(x.shape)}")
        if mask is not None and self.mix is not None:
            raise InputError("mask: expected none for a layer with token shift; cut the text at the gaps instead")
        memory, last = unpacked(state, self.mix)
        k = x if self.mix is None else shifted(x, self.mix, last)
        q, k, v = (
            layer(y).to(x.dtype).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.query, x), (self.key, k), (self.value, x))
        )
        read, memory = self._remember(self.feature_map(q), self.feature_map(k), v, x, memory, mask)
        out = self.output(read.transpose(1, 2).flatten(2))
        return out, memory if self.mix is None else ShiftState(memory, x[:, -1])

    def _remember(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: object, mask: Tensor | None
    ) -> tuple[Tensor, State]:
        """Write and read by the rule, one token by its step."""
        one = x.shape[1] == 1 and mask is None
        read: Tensor
        found: State
        if self.strength is None:
            if state is not None and not isinstance(state, SumState):
                raise InputError("state: expected a SumState, as the sum rule returns it; got that of another rule")
            if one:
                read, found = sum_step(q[:, :, 0], k[:, :, 0], v[:, :, 0], state)
            else:
                read, found = sum_rule(q, k, v, state=state, mask=mask)
        else:
            if state is not None and not isinstance(state, Tensor):
                raise InputError("state: expected a tensor, as the delta rule returns it; got that of another rule")
            beta = self.strength(x).to(x.dtype).sigmoid().transpose(1, 2)
            q, k = sum_normalise(q), sum_normalise(k)
            if one:
                read, found = delta_step(q[:, :, 0], k[:, :, 0], v[:, :, 0], beta[:, :, 0], state)
            else:
                read, found = delta_rule(q, k, v, beta, state=state, mask=mask)
        return read[:, :, None] if one else read, found

    def extra_repr(self) -> str:
        """Name the settings in the printed model."""
        name = getattr(self.feature_map, "__name__", repr(self.feature_map))
        return f"heads={self.heads}, rule={self.rule}, feature_map={name}"
