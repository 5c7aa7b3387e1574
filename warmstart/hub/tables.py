"""The counted experts in the folder of a model: written whole, and checked when they are read.

| file | content |
|---|---|
| `experts.safetensors` | the unigram model, the classes of tokens, and what the other files must be |
| `ngrams.safetensors`, `classes-0.safetensors`, ... | tables, see `BackoffModel.save` |
| `modeling_warmstart.py` | lets ``trust_remote_code=True`` find the package |
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from warmstart.backoff import BackoffModel
from warmstart.classes import ClassModel
from warmstart.errors import InputError
from warmstart.files import CHECKSUMS, FACTS, checksums, load_arrays, replacing, save_arrays
from warmstart.folder import CLASSES, NGRAMS, TOKENIZER
from warmstart.mixture import Experts
from warmstart.ngrams import vocabulary_digest
from warmstart.tokenizer import load_tokenizer

FORMAT = 1
EXPERTS, CODE = "experts.safetensors", "modeling_warmstart.py"
SOURCE = '''"""This model needs the package warmstart."""

try:
    from warmstart.hub import CountedConfig, CountedForCausalLM, NearShallowConfig, NearShallowForCausalLM
except ImportError as error:
    raise ImportError(f"this model needs warmstart: pip install 'warmstart[hf]' ({error})") from error

__all__ = ["CountedConfig", "CountedForCausalLM", "NearShallowConfig", "NearShallowForCausalLM"]
'''


def find_folder(name: Any, place: Mapping[str, Any]) -> Path:
    """Return the folder of a model; files of a repository are downloaded.

    Parameters
    ----------
    name : str or path
        What was given to ``from_pretrained``.
    place : mapping
        Arguments of ``huggingface_hub.snapshot_download``, and ``subfolder``.
    """
    options = dict(place)
    subfolder = options.pop("subfolder", "")
    if Path(name).is_dir():
        return Path(name, subfolder)
    from huggingface_hub import snapshot_download

    patterns = [f"{subfolder}/{file}".lstrip("/") for file in (EXPERTS, NGRAMS, "classes-*.safetensors", TOKENIZER)]
    return Path(snapshot_download(str(name), allow_patterns=patterns, **options), subfolder)


def save_code(folder: str | os.PathLike[str]) -> None:
    """Write `modeling_warmstart.py`."""
    with replacing(Path(folder, CODE)) as temporary:
        temporary.write_text(SOURCE, encoding="utf-8")


def save_experts(folder: Path, experts: Experts) -> str:
    """Write counted experts to a folder, and return the digest by which `load_experts` knows them."""
    tables = dict(zip(CLASSES, (own.model for own in experts.classes), strict=False))
    if experts.ngrams is not None:
        tables[NGRAMS] = experts.ngrams
    for name, model in tables.items():
        model.save(folder / name)
    arrays: dict[str, NDArray[Any]] = {"prior": experts.prior}
    if experts.classes:
        arrays["labels"] = np.stack([own.labels for own in experts.classes])
        arrays["shares"] = np.stack([own.shares for own in experts.classes])
    facts: dict[str, Any] = {"format": FORMAT, "separator": experts.separator, "cache": experts.cache}
    facts["tables"] = {name: _sums(folder / name) for name in sorted(tables)}
    whole: dict[str, Any] = {"experts": facts}
    whole |= {CHECKSUMS: checksums(arrays, whole)}
    save_arrays(folder / EXPERTS, arrays, whole)
    return _digest(whole[CHECKSUMS])


def copy_experts(source: Path, folder: Path, digest: str) -> bool:
    """Copy the files of counted experts, which is faster than to write them; return False if they are no longer there.

    The tables are compared with their checksums when they are read.
    """
    try:
        facts = load_arrays(source / EXPERTS)[1]["experts"]
        if _digest(_sums(source / EXPERTS)) != digest:
            return False
        if any(_sums(source / name) != sums for name, sums in facts["tables"].items()):
            return False
    except (InputError, OSError):  # the folder was deleted or is being written
        return False
    for name in (*facts["tables"], EXPERTS):
        if source.resolve() != folder.resolve():
            with replacing(folder / name) as temporary:
                shutil.copyfile(source / name, temporary)
    return True


def load_experts(folder: Path, digest: str) -> Experts:
    """Read what `save_experts` wrote.

    Raises
    ------
    InputError
        A file is missing or damaged, or is that of another model.
    """
    path = folder / EXPERTS
    arrays, content = load_arrays(path)
    facts = content.get("experts", {})
    if facts.get("format") != FORMAT:
        raise InputError(f"{path}: expected experts of format {FORMAT}, got another file; save the model again")
    if _digest(_sums(path)) != digest:
        raise InputError(f"{path}: expected the experts of this model, got those of another one; save the model again")
    tables = {name: _table(folder / name, sums) for name, sums in facts["tables"].items()}
    experts = Experts(facts["separator"], arrays["prior"], cache=facts["cache"], ngrams=tables.pop(NGRAMS, None))
    for name, labels, shares in zip(CLASSES, arrays.get("labels", []), arrays.get("shares", []), strict=False):
        experts.classes += (ClassModel(labels, tables[name], shares),)
    return experts


def _table(path: Path, sums: dict[str, int]) -> BackoffModel:
    model = BackoffModel.load(path)
    if _sums(path) != sums:
        raise InputError(f"{path}: expected the tables of this model, got those of another one; save the model again")
    return model


def _sums(path: Path) -> dict[str, int]:
    """Return the checksums that a file states."""
    with safe_open(path, framework="numpy") as file:
        return dict(json.loads(file.metadata()[FACTS])[CHECKSUMS])


def _digest(sums: dict[str, int]) -> str:
    return hashlib.blake2b(json.dumps(sums, sort_keys=True).encode(), digest_size=16).hexdigest()


def check_tokenizer(folder: Path, vocabulary: str, size: int) -> None:
    """Refuse a folder whose tokenizer has other tokens than those that were counted; more of them are padding.

    Parameters
    ----------
    folder : Path
        A folder without a tokenizer is not checked.
    vocabulary : str
        Digest of the vocabulary that was counted; empty if it is unknown.
    size : int
        Number of counted tokens.
    """
    if vocabulary and (folder / TOKENIZER).exists():
        tokens = {token: i for token, i in load_tokenizer(folder).get_vocab().items() if i < size}
        if vocabulary_digest(tokens) != vocabulary:
            raise InputError(
                f"{folder / TOKENIZER}: expected the tokenizer that the text was counted with, got another one; "
                "count the text again with it"
            )
