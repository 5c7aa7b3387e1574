"""A model for places where this package is not: with numpy alone, in C, in PyTorch, or in an ONNX runtime.

| format | what is written | what it holds |
|---|---|---|
| numpy | a folder for `warmstart.edge` | counts, gate, classes, caches, a radial network; to count further too |
| c | one file for ``examples/edge/warmstart.c`` | n-grams up to order 8, caches and gate; at most 65,536 tokens |
| torch | a folder for `warmstart.NearShallowLM` | the network |
| onnx | one file for an ONNX runtime | a network with the radial context |

What a format cannot hold is left out, and named in the report; the weights of the experts that stay keep their
proportions. The arrays of `model.bin` and of the C table are these, with vocabulary size V and m experts; for the file
itself see `warmstart.edge.container`.

| array | content |
|---|---|
| ``shape`` | V, the separator, and the order of the n-grams, 0 without |
| ``prior`` (V,) | probabilities of the unigram model, float32 |
| ``gate.sizes``, ``gate`` (buckets, m) | values of every feature; weights, float32, the last feature fastest |
| ``caches`` (caches, 2), ``discount`` | order and size of every cache |
| ``ngrams.last``, ``.own``, ``.offsets``, ``.counted`` | see `warmstart.edge.tables` |
| ``classes0.*``, ... | the same of classes; ``order``; ``labels`` (V,), and ``shares`` (V,) in their class |
| ``tokens.*`` | vocabulary and merges, see `warmstart.edge.bytes_bpe` |
| ``network.embedding`` (V, b), ``network.output`` (r b, V), ``network.radius`` | weights of the network |
| ``settings`` | JSON: what was left out, and how n-grams are pruned |
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.backoff import BackoffModel
from warmstart.classes import ClassModel
from warmstart.edge import container, counting
from warmstart.edge.container import COUNTS, MODEL
from warmstart.errors import InputError
from warmstart.estimators import WarmStartLM
from warmstart.folder import Folder
from warmstart.levels import id_type
from warmstart.mixture import CACHES, DISCOUNT, Mixture
from warmstart.near_shallow import NearShallowModel
from warmstart.ngrams import NGramCounts
from warmstart.records import parse_json
from warmstart.tokenizer import SEPARATOR

PLAIN = {  # what a tokenizer.json must say, or leave out, for `warmstart.edge.bytes_bpe`
    "dropout": (None,), "unk_token": (None,), "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""), "byte_fallback": (None, False), "ignore_merges": (None, False),
}  # fmt: skip
FORMATS = ("numpy", "c", "torch", "onnx")
C_ORDER = 8  # WS_ORDER of examples/edge/warmstart.h
FLASH = 16_000_000  # bytes of a board's flash

Arrays = dict[str, NDArray[Any]]


def export(model: WarmStartLM, output: Folder, form: str) -> dict[str, Any]:
    """Write a model in one of `FORMATS`; see the module.

    Parameters
    ----------
    model : WarmStartLM
    output : path
        A folder for "numpy" and "torch", which is replaced if it holds such a model; a file for "c" and "onnx".
    form : str

    Returns
    -------
    dict
        ``bytes``; ``experts`` that are in it; ``left_out``: what is not; ``fits_16_mb`` for "c".

    Raises
    ------
    InputError
        The format is unknown or cannot hold the model, or the place cannot be written to.
    """
    if form not in FORMATS:
        raise InputError(f"format: expected one of {', '.join(FORMATS)}, got {form!r}")
    path = Path(output)
    if form == "numpy":
        return _numpy(model, path)
    if form == "c":
        return _table(model, path)
    if form == "torch":
        network = model.to_torch()
        network.save_pretrained(path)
        left_out = [name for name in model.mixture_.experts.names if name not in ("network", "unigram")]
        size = sum(file.stat().st_size for file in path.iterdir())
        return {"bytes": size, "experts": ["network"], "left_out": left_out}
    return _onnx(model, path)


def _numpy(model: WarmStartLM, path: Path) -> dict[str, Any]:
    """Write a folder for `warmstart.edge`, whole or not at all."""
    experts, recipe = model.mixture_.experts, model._recipe()
    network = experts.network
    left_out = [] if network is None or network.config.contexts == ("radial",) else ["network"]
    if network is not None and left_out and not experts.counted:
        got = ", ".join(network.config.contexts)
        raise InputError(f"expected counts, or a network with the radial context alone, got a network with {got} alone")
    arrays, kept = model_arrays(model.mixture_, left_out)
    content = parse_json(model.tokenizer_.to_str(pretty=False))
    if problem := obstacle(content):
        left_out.append(f"text: its tokenizer has {problem}, give token ids")
    else:
        arrays |= {f"tokens.{name}": array for name, array in _of_tokenizer(content["model"]).items()}
    settings = {"left_out": left_out, "max_ngrams": recipe.max_ngrams, "prune": list(recipe.prune)}
    arrays["settings"] = container.packed_facts(settings)
    contents = {MODEL: arrays} | ({} if model.counts_ is None else {COUNTS: _of_counts(model.counts_)})
    sizes = container.write_folder(path.absolute(), contents)
    return {"bytes": sizes, "experts": kept, "left_out": left_out, "counts_further": COUNTS in sizes}


def _table(model: WarmStartLM, path: Path) -> dict[str, Any]:
    """Write the table that ``examples/edge/warmstart.c`` reads."""
    experts = model.mixture_.experts
    left_out = [*experts.class_names, *(["network"] if experts.network is not None else [])]
    if len(experts.prior) > 2**16:
        raise InputError(f"expected at most 65536 tokens for a table in C, got {len(experts.prior)}")
    if experts.ngrams is not None and experts.ngrams.order > C_ORDER:
        raise InputError(f"expected n-grams up to order {C_ORDER} for a table in C, got {experts.ngrams.order}")
    if experts.ngrams is None and not experts.cache:
        raise InputError("expected n-grams or a cache for a table in C, got neither; fit with contexts ngrams,cache")
    arrays, kept = model_arrays(model.mixture_, left_out)
    size = container.write(path, arrays)
    return {"bytes": size, "experts": kept, "left_out": left_out, "fits_16_mb": size <= FLASH}


def model_arrays(mixture: Mixture, left_out: Collection[str] = ()) -> tuple[Arrays, list[str]]:
    """Return the arrays of a mixture without some of its experts, and the names of those that stay; see the module."""
    experts = mixture.experts
    gate, kept = gate_without(mixture, left_out)
    order = experts.ngrams.order if experts.ngrams is not None else 0
    arrays: Arrays = {
        "shape": np.array([len(experts.prior), experts.separator, order], np.uint32),
        "prior": experts.prior.astype(np.float32),
        "gate.sizes": np.array(experts.feature_sizes, np.uint32),
        "gate": gate.astype(np.float32).reshape(-1),
        "caches": np.array(list(CACHES.values()) if experts.cache else [], np.uint32).reshape(-1),
        "discount": np.array([DISCOUNT], np.float32),
    }
    if experts.ngrams is not None:
        arrays |= {f"ngrams.{name}": array for name, array in _of_tables(experts.ngrams).items()}
    classes = [own for own, name in zip(experts.classes, experts.class_names, strict=True) if name in kept]
    for i, own in enumerate(classes):
        arrays |= {f"classes{i}.{name}": array for name, array in _of_classes(own).items()}
    if experts.network is not None and "network" in kept:
        weights = experts.network.arrays
        arrays |= {f"network.{name}": weights[f"{name}.weight"].reshape(-1) for name in ("embedding", "output")}
        arrays["network.radius"] = np.array([experts.network.config.radius], np.uint32)
    return arrays, kept


def gate_without(mixture: Mixture, left_out: Collection[str]) -> tuple[NDArray[np.float64], list[str]]:
    """Return the weights (buckets, m) of a gate without some experts, and the names of those that stay."""
    names = mixture.experts.names
    stays = [name not in left_out for name in names]
    weights = mixture.gate.weights[:, stays]
    return weights / weights.sum(axis=1, keepdims=True), [name for name, stay in zip(names, stays, strict=True) if stay]


def obstacle(content: dict[str, Any]) -> str | None:
    """Return what keeps a tokenizer from being a byte-level BPE as `warmstart.tokenizer` trains it; None if nothing."""
    model, pre = content["model"], content.get("pre_tokenizer") or {}
    if model.get("type") != "BPE":
        return f"the kind {model.get('type')}"
    wanted = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    if any(pre.get(name) != value for name, value in wanted.items()) or content.get("normalizer"):
        return "another preparation of the text"
    if others := [token["content"] for token in content["added_tokens"] if token["content"] != SEPARATOR]:
        return f"the added token {others[0]}"
    return next((f"another {name}" for name, values in PLAIN.items() if model.get(name) not in values), None)


def _of_tokenizer(model: dict[str, Any]) -> Arrays:
    """Return vocabulary and merges as arrays, see `warmstart.edge.bytes_bpe.BytesBPE`."""
    ids: dict[str, int] = model["vocab"]
    own = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    signs = [chr(byte if byte in own else next(others)) for byte in range(256)]  # as GPT-2 writes bytes
    byte_of = {sign: byte for byte, sign in enumerate(signs)}
    ranked = sorted(ids, key=ids.__getitem__)
    words = [word.encode() if word == SEPARATOR else bytes(byte_of[sign] for sign in word) for word in ranked]
    pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    keys = np.array([ids[left] * len(ids) + ids[right] for left, right in pairs], np.uint64)
    order = np.argsort(keys)
    merged = np.array([ids[left + right] for left, right in pairs], np.int64)
    kind = id_type(len(ids))
    return {
        "text": np.frombuffer(b"".join(words), np.uint8),
        "ends": np.cumsum([len(word) for word in words]).astype(np.uint32),
        "bytes": np.array([ids[sign] for sign in signs]).astype(kind),
        "pairs": keys[order].astype(np.uint32 if len(ids) <= 2**16 else np.uint64),
        "ranks": order.astype(np.uint32),
        "merged": merged[order].astype(kind),
    }


def _of_tables(tables: BackoffModel) -> Arrays:
    own = tables.own_parts()
    return {
        "last": tables.last.astype(id_type(tables.vocab_size)),
        "own": own.astype(np.float32),
        "offsets": tables.offsets.astype(np.uint32),
        "counted": (tables.sizes > 0).astype(np.uint8),
    }


def _of_classes(classes: ClassModel) -> Arrays:
    return {
        "order": np.array([classes.model.order], np.uint32),
        "labels": classes.labels.astype(id_type(classes.n_classes)),
        "shares": classes.shares.astype(np.float32),
        **_of_tables(classes.model),
    }


def _of_counts(counts: NGramCounts) -> Arrays:
    levels = [counting.Level(np.arange(counts.vocab_size), counts.levels[0].counts.astype(np.int64))]
    for below, level in zip(counts.levels, counts.levels[1:], strict=False):
        context = np.repeat(np.arange(below.last.size), np.diff(below.offsets))
        levels.append(counting.Level(context * counts.vocab_size + level.last, level.counts.astype(np.int64)))
    return counting.arrays_of(levels)


def _onnx(model: WarmStartLM, path: Path) -> dict[str, Any]:
    """Write the network as a graph from the last tokens (n, radius), newest first, to logits (n, V)."""
    network = model.model_
    if network is None or network.config.contexts != ("radial",):
        got = "counts alone" if network is None else f"a network with {', '.join(network.config.contexts)}"
        raise InputError(f"expected a network with the radial context alone, got {got}; fit it with contexts radial")
    left_out = [name for name in model.mixture_.experts.names if name not in ("network", "unigram")]
    content = onnx_graph(network).SerializeToString()
    from bitcipher.files import replacing

    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return {"bytes": len(content), "experts": ["network"], "left_out": left_out}


def onnx_graph(network: NearShallowModel) -> Any:
    """Return the graph of `_onnx`: embedding, the vectors side by side, output layer."""
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError as error:
        raise InputError("expected onnx, found none; pip install 'warmstart[onnx]'") from error
    config = network.config
    width = config.radius * config.bits
    constants = [
        numpy_helper.from_array(network.arrays["embedding.weight"], "embedding"),
        numpy_helper.from_array(network.arrays["output.weight"], "output"),
        numpy_helper.from_array(np.array([-1, width]), "wide"),
    ]
    nodes = [
        helper.make_node("Gather", ["embedding", "tokens"], ["vectors"]),
        helper.make_node("Reshape", ["vectors", "wide"], ["inputs"]),
        helper.make_node("MatMul", ["inputs", "output"], ["logits"]),
    ]
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n", config.radius])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", config.vocab_size])
    graph = helper.make_graph(nodes, "near-shallow", [tokens], [logits], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(made)
    return made
