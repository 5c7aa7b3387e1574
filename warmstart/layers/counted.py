"""Cross-entropy against whole rows of counted probabilities beside the token that came, see `counted_cross_entropy`."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from warmstart.errors import InputError
from warmstart.layers.near_shallow import IGNORED
from warmstart.layers.softmax import BLOCK_ROWS
from warmstart.left_out import SparseRows

DEVICE_ROWS = 1024  # rows of logits in one block on other devices
TARGETS_PER_CHUNK = 512  # whose logits exist at once, if they are made from hidden states


def counted_cross_entropy(logits: Tensor, targets: Tensor, rows: SparseRows, weight: float) -> Tensor:
    """Return the loss of every target (n,) in nats; 0 where the target is ignored.

    With the network's probability q and the counted probability P the loss of a target y is

        (1 - a) (-log q(y)) + a (-sum_y' P(y') log q(y'))

    and the gradient of the logits is ``q - (1 - a) onehot(y) - a P``. It is made in the forward pass, block by block,
    so beside logits and gradient there is no array (n, V). Logarithms and sums are in float32.

    Parameters
    ----------
    logits : (n, V)
        V may be larger than the number of counted tokens. The tokens above are padding: their P is 0.
    targets : (n,) int64
        -100 is ignored.
    rows : SparseRows
        One row for every target that is not ignored.
    weight : float
        ``a``, from 0 to 1.

    Raises
    ------
    InputError
        Rows, targets or the weight do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> base = np.full((1, 4), 0.25, np.float32)
    >>> rows = SparseRows(np.array([2]), np.array([0.5]), np.array([0, 1]), np.array([0.5]), np.array([0]), base)
    >>> logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    >>> P = torch.tensor([0.125, 0.125, 0.625, 0.125])
    >>> counted_cross_entropy(logits, torch.tensor([3]), rows, 1.0), -(P * logits).sum()
    (tensor([1.3560]), tensor(1.3560))
    """
    _check(targets, logits.shape[-1], rows, weight)
    loss: Tensor = _CountedCrossEntropy.apply(logits, targets, rows, weight)  # type: ignore[no-untyped-call]
    return loss


def fused_counted_cross_entropy(x: Tensor, head: Tensor, targets: Tensor, rows: SparseRows, weight: float) -> Tensor:
    """Return the same losses (n,) for the logits ``x head'``, of which only those of a few targets exist at once.

    They are made again in the backward pass, which costs a third product of matrices more.

    Parameters
    ----------
    x : (n, D)
        Hidden states.
    head : (V, D)
        Weight of the output layer.
    targets, rows, weight
        As for `counted_cross_entropy`, and so are the errors.

    Examples
    --------
    >>> import numpy as np
    >>> base = np.full((1, 4), 0.25, np.float32)
    >>> rows = SparseRows(np.array([2]), np.array([0.5]), np.array([0, 1]), np.array([0.5]), np.array([0]), base)
    >>> x, head = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    >>> fused_counted_cross_entropy(x, head, torch.tensor([3]), rows, 0.5)
    tensor([2.3152])
    >>> counted_cross_entropy(x @ head.T, torch.tensor([3]), rows, 0.5)
    tensor([2.3152])
    """
    _check(targets, len(head), rows, weight)
    here = targets != IGNORED
    x, y = x[here], targets[here]

    def of_chunk(x: Tensor, head: Tensor, chunk: slice) -> Tensor:
        loss: Tensor = _CountedCrossEntropy.apply(x @ head.T, y[chunk], rows[chunk], weight)  # type: ignore[no-untyped-call]
        return loss

    chunks = [slice(i, i + TARGETS_PER_CHUNK) for i in range(0, len(y), TARGETS_PER_CHUNK)]
    losses = [checkpoint(of_chunk, x[chunk], head, chunk, use_reentrant=False) for chunk in chunks]
    found = torch.cat([x.new_zeros(0, dtype=torch.promote_types(x.dtype, torch.float32)), *losses])
    return found.new_zeros(len(targets)).masked_scatter(here, found)


def _check(targets: Tensor, size: int, rows: SparseRows, weight: float) -> None:
    """Refuse what does not fit together."""
    here, counted = targets[targets != IGNORED], rows.base.shape[1]
    if not 0.0 <= weight <= 1.0:
        raise InputError(f"weight: expected a share from 0 to 1, got {weight}")
    if counted > size or len(here) != len(rows):
        raise InputError(
            f"expected a row of {size} probabilities for each of {len(here)} targets, got {len(rows)} rows of "
            f"{counted}; give counts in the vocabulary of the model"
        )
    if len(here) and not (int(here.min()) >= 0 and int(here.max()) < counted):
        raise InputError(
            f"expected targets from 0 to {counted - 1} or {IGNORED}, got {int(here.min())} to {int(here.max())}"
        )


class _Wanted:
    """The probabilities that a loss wants, ``(1 - a) onehot + a P``, block by block, on one device."""

    def __init__(self, targets: Tensor, rows: SparseRows, weight: float, dtype: torch.dtype) -> None:
        self.targets, self.rows, self.weight, self.dtype = targets, rows, weight, dtype
        if not self.on_cpu:
            arrays = rows.tokens, rows.probs, rows.offsets, rows.rest, rows.part, rows.base
            self.tensors = [torch.from_numpy(array).to(targets.device, non_blocking=True) for array in arrays]

    @property
    def on_cpu(self) -> bool:
        return self.targets.device.type == "cpu"

    def block(self, start: int, stop: int) -> Tensor:
        """Return some of the rows (n, V)."""
        if self.on_cpu:
            out = torch.from_numpy(self.rows[start:stop].dense(self.weight)).to(self.dtype)
        else:
            tokens, probs, offsets, rest, part, base = self.tensors
            out = (base[part[start:stop]] * (self.weight * rest[start:stop, None])).to(self.dtype)
            first, last = (int(self.rows.offsets[i]) for i in (start, stop))
            sizes = offsets[start + 1 : stop + 1] - offsets[start:stop]
            row = torch.arange(stop - start, device=out.device).repeat_interleave(sizes, output_size=last - first)
            places = row * out.shape[1] + tokens[first:last]
            out.view(-1).index_add_(0, places, (self.weight * probs[first:last]).to(self.dtype))
        target = self.targets[start:stop, None]
        return out.scatter_add_(1, target, out.new_full(target.shape, 1.0 - self.weight))


class _CountedCrossEntropy(torch.autograd.Function):
    """See `counted_cross_entropy`. The forward pass leaves the gradient of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, rows: SparseRows, weight: float) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            wide = torch.promote_types(logits.dtype, torch.float32)
            here = (targets != IGNORED).nonzero()[:, 0]
            whole = len(here) == len(targets)
            wanted = _Wanted(targets[here], rows, weight, wide)
            loss = logits.new_zeros(len(targets), dtype=wide)
            gradient = None
            if ctx.needs_input_grad[0]:
                gradient = torch.empty_like(logits) if whole else torch.zeros_like(logits)
            size = BLOCK_ROWS if logits.device.type == "cpu" else DEVICE_ROWS
            for start in range(0, len(here), size):
                stop = min(start + size, len(here))
                at = slice(start, stop) if whole else here[start:stop]
                z, of_rows = logits[at].to(wide), wanted.block(start, stop)
                z = z - z.amax(dim=1, keepdim=True)
                cross = (of_rows * z[:, : of_rows.shape[1]]).sum(dim=1)
                mass = z.exp_().sum(dim=1, keepdim=True)
                loss[at] = mass[:, 0].log() - cross
                if gradient is not None:
                    z.div_(mass)[:, : of_rows.shape[1]].sub_(of_rows)
                    gradient[at] = z.to(logits.dtype)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return None if gradient is None else gradient * scale[:, None].to(gradient.dtype), None, None, None
