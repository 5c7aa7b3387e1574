"""Save a language model as a folder, whole or not at all, and load it. PyTorch is not needed.

| file | content |
|---|---|
| `config.json` | ``model_type``, ``format_version`` and the fields of `Config`; no fields without a network |
| `model.safetensors` | float32 weights of the network by the names of `Config.shapes`; `safetensors.torch` reads it |
| `mixture.safetensors` | the weights of the experts by bucket, the classes of tokens, token counts, and the settings |
| `counts.safetensors` | the statistic of the text, see `warmstart.ngrams`; a pruned model goes without |
| `ngrams.safetensors`, `classes-0.safetensors`, ... | tables of a pruned model, see `BackoffModel.save` |
| `tokenizer.json` and others | files of the caller |
"""

import dataclasses
import itertools
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.errors import InputError
from warmstart.files import CHECKSUMS, checksums, load_arrays, replacing, save_arrays, save_json
from warmstart.formats import read_settings
from warmstart.near_shallow import Config, NearShallowModel
from warmstart.records import parse_json

MODEL_TYPE, COUNTS_TYPE = "near-shallow", "counts"  # with a network, and without
HUB_TYPES = "warmstart_"  # as those of warmstart.hub begin
FORMAT_VERSION = 1
MIXTURE_FORMAT = 1
TOKENIZER = "tokenizer.json"
CONFIG, WEIGHTS, MIXTURE, COUNTS = "config.json", "model.safetensors", "mixture.safetensors", "counts.safetensors"
NGRAMS, CLASSES = "ngrams.safetensors", tuple(f"classes-{i}.safetensors" for i in range(8))

Folder = str | os.PathLike[str]
Content = bytes | Callable[[Path], object]


def save_model(folder: Folder, model: NearShallowModel | None, extra: Mapping[str, Content] | None = None) -> None:
    """Write a model folder. An older model in it stays until the new one is complete.

    Other files of the folder are kept, but no file of the older model if ``extra`` is given.

    Parameters
    ----------
    folder : path
        A new or an empty folder, or the folder of a model. Missing parents are created.
    model : NearShallowModel or None
        The network, if there is one.
    extra : mapping of file name to bytes or to a callable, optional
        More files. A callable gets a path and writes the file to it.

    Raises
    ------
    InputError
        The folder cannot be used (see `check_target`), or the weights do not fit the configuration.
    OSError
        The disk is full, for example. After any error the folder is as it was.

    Examples
    --------
    >>> import numpy as np
    >>> config = Config(vocab_size=3, separator=0, bits=2, contexts=("radial",))
    >>> model = NearShallowModel(config, {name: np.ones(shape, np.float32) for name, shape in config.shapes.items()})
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     save_model(f"{parent}/model", model, {"note.txt": b"by hand"})
    ...     print(sorted(os.listdir(f"{parent}/model")), load_model(f"{parent}/model").config == config)
    ['config.json', 'model.safetensors', 'note.txt'] True
    """
    path = check_target(folder)
    fields: dict[str, Any] = {"model_type": COUNTS_TYPE, "format_version": FORMAT_VERSION}
    if model is not None:
        _check_arrays(model.config, model.arrays, "model.arrays")
        fields |= {"model_type": MODEL_TYPE, **dataclasses.asdict(model.config)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as work:
        new = Path(work, "new")
        new.mkdir()
        for name, content in (extra or {}).items():
            with replacing(new / name) as temporary:
                temporary.write_bytes(content) if isinstance(content, bytes) else content(temporary)
        if model is not None:
            save_arrays(new / WEIGHTS, model.arrays, {CHECKSUMS: checksums(model.arrays)})
        save_json(new / CONFIG, fields)
        if path.exists():
            older = set() if extra is None else {WEIGHTS, MIXTURE, COUNTS, NGRAMS, *CLASSES}
            replaced = {str(path): older | {file.name for file in new.iterdir()}}
            shutil.copytree(path, new, symlinks=True, ignore=lambda at, _: replaced.get(at, set()), dirs_exist_ok=True)
        _swap(path, new, old=Path(f"{work}.old"))


def beside_network(
    config: Config, tokenizer: bytes, unigrams: NDArray[np.int64], facts: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return the files that make a network alone a language model: its tokenizer, and token counts with the settings.

    ``facts`` are those of the `mixture.safetensors` of the model that the network comes from.
    """
    parameters = facts["parameters"] | {"contexts": config.contexts, "prune": None}
    kept = {name: facts[name] for name in ("format", "tokenizer", "bytes")}
    arrays: dict[str, NDArray[Any]] = {"unigrams": unigrams}
    whole: dict[str, Any] = {"language_model": kept | {"parameters": parameters, "pruned": True}}
    with tempfile.TemporaryDirectory() as work:
        path = Path(work, MIXTURE)
        save_arrays(path, arrays, whole | {CHECKSUMS: checksums(arrays, whole)})
        return {TOKENIZER: tokenizer, MIXTURE: path.read_bytes()}


def read_beside(folder: Folder, config: Config) -> dict[str, bytes]:
    """Return `beside_network` for the network of a model folder; nothing if the folder holds a network only."""
    if not (Path(folder, MIXTURE).exists() and Path(folder, TOKENIZER).exists()):
        return {}
    arrays, facts, tokenizer = read_mixture(folder)
    return beside_network(config, tokenizer, arrays["unigrams"], facts)


def read_mixture(folder: Folder) -> tuple[dict[str, NDArray[Any]], dict[str, Any], bytes]:
    """Return arrays and facts of the `mixture.safetensors` of a model folder, and its `tokenizer.json`.

    Raises
    ------
    InputError
        A file is missing, damaged, or of another model.
    """
    path = Path(folder, MIXTURE)
    if not path.exists():
        raise InputError(f"{path}: expected the file, got none; the model is of an older version or no `fit` wrote it")
    arrays, content = load_arrays(path, checked=True)
    facts = content.get("language_model")
    if not isinstance(facts, dict) or facts.get("format") != MIXTURE_FORMAT:
        raise InputError(f"{path}: expected a language model of format {MIXTURE_FORMAT}, got another file; fit again")
    path = Path(folder, TOKENIZER)
    try:
        tokenizer = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected the tokenizer of the model, got: {error.strerror}; fit again") from error
    if zlib.crc32(tokenizer) != facts["tokenizer"]:
        raise InputError(f"{path}: expected the tokenizer of the model, got another one; fit again")
    return arrays, facts, tokenizer


def _swap(path: Path, new: Path, old: Path) -> None:
    """Move the folder ``path`` to ``old`` and ``new`` to ``path``, then delete ``old``. On any error move it back."""
    try:
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        if not new.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():
            old.rename(path)


def check_target(folder: Folder) -> Path:
    """Return the absolute path of a folder if `save_model` may write it. Call this before a long computation.

    Raises
    ------
    InputError
        The path is a file, a folder with files that are no model, a mount point or the working directory, or the
        folder above it cannot be written to.
    """
    path = resolved(folder)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: expected a folder for the model, got a file; choose another name")
    if path.is_mount() or Path.cwd().is_relative_to(path):
        raise InputError(
            f"{path}: expected a folder that can be replaced, got a mount point or the working directory; "
            "choose a folder inside it"
        )
    above = next(parent for parent in path.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{path}: expected {above} to be a folder that can be written to; choose another place")
    if path.exists() and any(path.iterdir()):
        try:
            _read_json(path)
        except InputError as error:
            raise InputError(
                f"{path}: expected a new folder, an empty one or a model to replace, got another folder with files; "
                "choose another name or empty it"
            ) from error
    return path


def resolved(folder: Folder) -> Path:
    """Return the absolute path without links of a folder that may not exist yet.

    Raises
    ------
    InputError
        Links lead to each other.
    """
    path = Path(os.path.realpath(folder))  # Path.resolve raises a RuntimeError, before Python 3.13
    if any(part.is_symlink() for part in (path, *path.parents)):
        raise InputError(f"{path}: expected a folder, got links that lead to each other; choose another name")
    return path


def has_network(folder: Folder) -> bool:
    """Return whether the model in a folder has a network.

    Raises
    ------
    InputError
        There is no model of this version in the folder.
    """
    path = Path(folder)
    if not path.is_dir():
        got = "a file" if path.exists() else "nothing there"
        raise InputError(f"{path}: expected a model folder, got {got}; make one with `warmstart fit -o {path}`")
    content = _read_json(path)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path / CONFIG}: expected format_version {FORMAT_VERSION}, got {version!r}; save the model again"
        )
    return bool(content["model_type"] == MODEL_TYPE)


def load_model(folder: Folder) -> NearShallowModel:
    """Read the network of a model folder.

    Raises
    ------
    InputError
        The folder or one of its two files is missing, damaged, or of another kind of model.
    """
    path = Path(folder)
    if not has_network(path):
        raise InputError(
            f"{path}: expected a model with a network, got counts alone; fit it with contexts such as radial,document"
        )
    config = _config(_read_json(path), path / CONFIG)
    try:
        arrays, _ = load_arrays(path / WEIGHTS)
    except TypeError as error:  # numpy has no such type
        raise InputError(f"{path / WEIGHTS}: expected float32 weights, got: {error}; convert them") from error
    _check_arrays(config, arrays, str(path / WEIGHTS))
    return NearShallowModel(config, arrays)


def _read_json(folder: Path) -> dict[str, Any]:
    """Return the content of `config.json`. Refuse other types of model."""
    path = folder / CONFIG
    try:
        content = parse_json(read_settings(path))
    except (OSError, ValueError) as error:  # ValueError: not JSON or not UTF-8
        raise InputError(f"{path}: expected the JSON of a model, got: {error}; save the model again") from error
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if model_type not in (MODEL_TYPE, COUNTS_TYPE):
        what = "give the folder of such a model"
        if str(model_type).startswith(HUB_TYPES):
            what = "import warmstart.hub and open it with transformers.AutoModelForCausalLM.from_pretrained"
        raise InputError(f"{path}: expected model_type {MODEL_TYPE!r} or {COUNTS_TYPE!r}, got {model_type!r}; {what}")
    return dict(content)


def _config(content: dict[str, Any], path: Path) -> Config:
    fields = {name: value for name, value in content.items() if name not in ("model_type", "format_version")}
    known = {field.name for field in dataclasses.fields(Config)}
    if fields.keys() != known:
        raise InputError(
            f"{path}: expected the fields {', '.join(sorted(known))}, got none of {sorted(known - fields.keys())} and "
            f"the unknown {sorted(fields.keys() - known)}; save the model again"
        )
    try:
        return Config(**fields)
    except InputError as error:
        raise InputError(f"{path}: {error}; save the model again") from error


def _check_arrays(config: Config, arrays: Mapping[str, Any], source: str) -> None:
    """Refuse arrays whose names, shapes or type are not those of the configuration. List the first three."""
    expected = {name: f"float32 {shape}" for name, shape in config.shapes.items()}
    got = {name: f"{array.dtype} {array.shape}" for name, array in arrays.items()}
    differences = (
        f"{name}: expected {expected.get(name, 'nothing')}, got {got.get(name, 'nothing')}"
        for name in sorted(expected.keys() | got.keys())
        if expected.get(name) != got.get(name)
    )
    if first := list(itertools.islice(differences, 3)):
        raise InputError(f"{source}: the weights do not fit {CONFIG}; {'; '.join(first)}; save the model again")
