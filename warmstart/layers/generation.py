"""Text written by sampling, token by token, from any module that reads step by step."""

from typing import Any, Protocol

import torch
from torch import Tensor

from warmstart.sampling import check_sampling


class Steps(Protocol):
    """A language model that reads step by step. Its state is a tuple of tensors or of states."""

    def start(self, ids: Tensor) -> Any:
        """Return the state after ``ids`` (batch, length), which are checked."""

    def advance(self, state: Any, token: Tensor) -> Any:
        """Return the state after one more token (batch,)."""

    def logits(self, state: Any) -> Tensor:
        """Return the logits (batch, V) of the next token."""


@torch.no_grad()
def continued(
    model: Steps,
    ids: Tensor,
    separator: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> Tensor:
    """Continue prompts by sampling, see `warmstart.layers.NearShallowLM.generate`."""
    check_sampling(max_new_tokens, temperature, top_p, seed)
    state, generator = model.start(ids), torch.Generator(ids.device).manual_seed(int(seed))
    columns = [ids.long()]
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for _ in range(max_new_tokens):
        token = sample(model.logits(state), temperature, top_p, generator).masked_fill(ended, separator)
        columns.append(token[:, None])
        ended |= token == separator
        if ended.all():
            break
        state = model.advance(state, token)
    return torch.cat(columns, dim=1)


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw one token (n,) for each row of logits (n, V), see `warmstart.layers.NearShallowLM.generate`.

    Examples
    --------
    >>> sample(torch.tensor([[0.0, 3.0, 1.0]]), temperature=1.0, top_p=0.5).tolist()
    [1]
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() - logits.max(dim=-1, keepdim=True).values
    p, order = (logits / max(temperature, 1e-6)).softmax(-1).sort(descending=True, stable=True)  # no division by 0
    nucleus = torch.where(p.cumsum(dim=-1) - p < top_p, p, 0.0)
    return order.gather(1, torch.multinomial(nucleus, 1, generator=generator))[:, 0]
