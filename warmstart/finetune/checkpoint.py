"""The checkpoint of a run: one file from which the run resumes to the same bits. It is written whole or not at all."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from warmstart.errors import InputError
from warmstart.files import CHECKSUMS, checksums, load_arrays, save_arrays

CHECKPOINT = "checkpoint.safetensors"


def save(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    memories: dict[int, Tensor],
    facts: dict[str, Any],
) -> None:
    """Write the weights, the best weights of the phase, the state of the optimizer, memories, and JSON facts."""
    tensors = {f"weights/{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    tensors |= {f"memories/{number}": memory for number, memory in memories.items()}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = value
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    content = {"run": facts}
    save_arrays(path, arrays, content | {CHECKSUMS: checksums(arrays, content)})


def load(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, expected: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[int, Tensor], dict[str, Any]]:
    """Set the weights and the optimizer from a checkpoint.

    Parameters
    ----------
    expected : dict
        Facts that must be the same in the checkpoint, such as the architecture and the text.

    Returns
    -------
    best : dict of str to Tensor
    memories : dict of int to Tensor
        The memory of documents at the start of segments.
    facts : dict

    Raises
    ------
    InputError
        The checkpoint is damaged or of another run. The message names every difference.
    """
    arrays, content = load_arrays(path, checked=True)
    facts = content.get("run")
    if not isinstance(facts, dict):
        raise InputError(
            f"{path}: expected the checkpoint of a run, got a safetensors file of another kind; start a new run in "
            "another folder"
        )
    differences = [f"{k}: {v!r} now, {facts.get(k)!r} in the file" for k, v in expected.items() if facts.get(k) != v]
    if differences:
        raise InputError(
            f"{path}: expected the checkpoint of this run, got one with another {'; '.join(differences)}; "
            "resume with the settings of its start, or start a new run in another folder"
        )
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    module.load_state_dict(_under("weights/", tensors))
    parameters = dict(module.named_parameters())
    for name, tensor in _under("optimizer/", tensors).items():
        key, parameter = name.split("/", 1)
        optimizer.state[parameters[parameter]][key] = tensor.to(parameters[parameter].device)
    memories = {int(number): tensor for number, tensor in _under("memories/", tensors).items()}
    return _under("best/", tensors), memories, facts


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
