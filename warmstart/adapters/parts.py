"""The parts of a model by their names: found in a run on a few tokens, whatever the family calls them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from warmstart.errors import InputError

WRAPPERS = {
    "DistributedDataParallel": "DistributedDataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel",
    "FSDPModule": "fully_shard",
    "DeepSpeedEngine": "DeepSpeed",
    "PeftModel": "PEFT",
}
OUTPUTS = (  # names of the projections whose results blocks add to the stream, in the families of transformers
    *("o_proj", "out_proj", "c_proj", "o_b_proj", "wo", "to_out", "linear_out", "attn_out"),
    *("self_attn.dense", "attention.dense", "self_attention.dense", "multi_head_attention.dense", "attention.output"),
    *("attention.output.dense", "output.dense", "attn.memory.output"),
    *("down_proj", "down_proj_bias", "dense_4h_to_h", "fc2", "fc_out", "ff_out", "w2", "ffn.2"),
    *("output_linear", "feed_forward.value", "per_layer_projection", "Wo"),
)
OTHERS = r"\.gate\.|router|layernorm\."  # parts of blocks with such names that are no outputs


@dataclass(frozen=True)
class Parts:
    """Names of the modules of a decoder, as `torch.nn.Module.named_modules` spells them.

    Attributes
    ----------
    embedding, norm, head : str
        The embedding of tokens, the norm after the last block (LayerNorm or RMSNorm), the linear layer to logits.
    outputs : tuple of str
        Shell patterns for the output projections of the blocks, whose results are added to the residual stream: names
        of modules, or of single parameters, as for experts that share one tensor.
    positions : str, optional
        The embedding of positions, if positions are learned.
    """

    embedding: str
    norm: str
    head: str
    outputs: tuple[str, ...]
    positions: str | None = None


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside `torch.compile` and `DataParallel`.

    Raises
    ------
    InputError
        The model is wrapped or sharded by something else, has adapters, or has no memory for its weights.
    """
    while isinstance(model, nn.DataParallel) or hasattr(model, "_orig_mod"):  # the latter: torch.compile
        model = cast("nn.Module", model.module if isinstance(model, nn.DataParallel) else model._orig_mod)
    advice = "give the model itself, and wrap, shard or extend it afterwards"
    for kind in type(model).__mro__:
        if kind.__name__ in WRAPPERS:
            raise InputError(f"expected a model, got one wrapped by {WRAPPERS[kind.__name__]}; {advice}")
    for name, module in model.named_modules():
        if type(module).__module__.split(".")[0] == "peft":
            raise InputError(
                f"{name}: expected a model without adapters, got a {type(module).__name__} of PEFT; {advice}"
            )
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "full_tensor") or hasattr(parameter, "ds_id"):
            raise InputError(f"{name}: expected whole weights, got a part of sharded ones; {advice}")
        if parameter.is_meta:
            raise InputError(f"{name}: expected weights in memory, got the meta device; load or initialise them first")
    return model


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Run a model as it is: without dropout, gradients and compilation."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, training in modes:
            module.training = training


def run(
    model: nn.Module, values: Mapping[str, Tensor], ids: Tensor, hooks: Mapping[nn.Module, Any] | None = None
) -> Tensor:
    """Return the logits (n, length, V) of ids (n, length) with other values of some parameters.

    Parameters
    ----------
    model : nn.Module
    values : dict of str to Tensor
        Values of parameters by name; the model keeps its own. Tied parameters have a value each.
    ids : Tensor
    hooks : dict of nn.Module to callable, optional
        Called with the arguments and the result of a module.

    Raises
    ------
    InputError
        The model does not map token ids to logits.
    """
    with ExitStack() as stack:
        stack.enter_context(still(model))
        for module, hook in (hooks or {}).items():
            stack.callback(module.register_forward_hook(lambda _, args, result, hook=hook: hook(args, result)).remove)
        try:
            out = torch.func.functional_call(model, dict(values), (ids,), tie_weights=False)
        except InputError:
            raise
        except Exception as error:  # whatever the code of another's model raises
            what = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            raise InputError(
                f"expected a {type(model).__name__} that maps token ids to logits, got {what:.200}; use a text decoder"
            ) from error
    logits = getattr(out, "logits", out)
    if not isinstance(logits, Tensor) or logits.shape[:2] != ids.shape:
        raise InputError(f"expected logits for each token from {type(model).__name__}, got {type(out).__name__}")
    return logits


def _multiple(x: Tensor, base: Tensor) -> bool:
    """Whether a tensor is a multiple of another one."""
    same = x.shape == base.shape and x.dtype == base.dtype
    return same and bool(torch.cosine_similarity(x.flatten().float(), base.flatten().float(), dim=0) > 1 - 1e-5)


def find_parts(model: nn.Module) -> Parts:
    """Return the names of the parts of a model of ``transformers``.

    The norm is the module whose result, or a multiple of it, the head reads. Learned positions are the only other
    embedding of the width of the stream. Output projections are found by their usual names, `OUTPUTS`.

    Raises
    ------
    InputError
        The model lacks one of them.
    """
    given: Any = model
    advice = "give its parts"
    try:
        embedding, head = given.get_input_embeddings(), given.get_output_embeddings()
    except (AttributeError, NotImplementedError) as error:
        raise InputError(f"expected a decoder of transformers, got {type(model).__name__}; {advice}") from error
    names = {module: name for name, module in model.named_modules()}
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        got = f"{type(embedding).__name__} and {type(head).__name__}"
        raise InputError(f"expected an Embedding and a Linear head in {type(model).__name__}, got {got}; {advice}")
    results: list[tuple[str, Tensor]] = []
    read: list[Tensor] = []

    def record(name: str) -> Any:
        return lambda _, result: results.append((name, result)) if isinstance(result, Tensor) else None

    hooks = {module: record(name) for module, name in names.items() if module is not head}
    ids = torch.arange(2, device=embedding.weight.device)[None]
    run(model, {}, ids, hooks | {head: lambda args, _: read.append(args[0])})
    norm = next((name for name, result in results if read and torch.equal(result, read[-1])), None)
    norm = norm or next((name for name, result in reversed(results) if read and _multiple(read[-1], result)), None)
    if norm is None:
        raise InputError(f"expected a norm before the head of {type(model).__name__}, found none; {advice}")
    positions = {
        name
        for name, _ in results
        if isinstance(module := model.get_submodule(name), nn.Embedding)
        and module is not embedding
        and module.embedding_dim == embedding.embedding_dim
    }
    ends = tuple(f".{name}" for name in OUTPUTS)
    candidates = [*names.values(), *(name for name, _ in model.named_parameters())]
    inside = (name for name in candidates if re.search(r"\.\d+\.", name) and not re.search(OTHERS, name))
    outputs = {re.sub(r"\.\d+\.", ".*.", name) for name in inside if name.endswith(ends)}
    return Parts(
        names[embedding], norm, names[head], tuple(sorted(outputs)), positions.pop() if len(positions) == 1 else None
    )
