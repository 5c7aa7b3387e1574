"""New embeddings for a Hugging Face model and a new tokenizer: contextual cipher vectors of a corpus.

| symbol | shape | meaning |
|---|---|---|
| `V`, `d` | | tokens of the new tokenizer; width of the embedding (`word_embed_proj_dim` of OPT) |
| `S` | (V, d) | square roots of the shares of cipher bits left and right of each token, see `bitcipher.embedding` |
| `rows` | (V, d) | ``S`` with columns of mean 0, the whole of standard deviation ``std`` |

`bitcipher` sums the codes of ``d / 2`` bits of the neighbours: a block for the left, one for the right. Those vectors
are non-negative and of unit L1 norm, which no transformer was made for: large or one-sided rows drown the positions.
Hence the centring and the one scale. Sources: Williams and Zhao 2023, arXiv 2311.11012; Kim et al. 2024, arXiv
2407.12514 (the scale decides).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from bitcipher import CooccurrenceEmbedding
from warmstart.adapters.report import LoadReport
from warmstart.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROLES = ("pad", "bos", "eos")
TEXTS = 1000  # given to the tokenizer at once


def replace_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Iterable[str],
    *,
    old_tokenizer: PreTrainedTokenizerBase | None = None,
    std: float | None = None,
) -> LoadReport:
    """Give a model a new tokenizer: rows of its embedding, and of its head, from the contexts in a corpus.

    Parameters
    ----------
    model : PreTrainedModel
        With an `nn.Embedding` of tokens: RoBERTa-, T5-, OPT-like. Changed at the end, or not at all.
    tokenizer : PreTrainedTokenizerBase
        The new one.
    corpus : iterable of str
        Texts, read once.
    old_tokenizer : PreTrainedTokenizerBase, optional
        The one the model was trained with. Its special tokens keep their rows where the new one has them too, by name.
        Without it only the tokens for padding, begin and end keep theirs, by the ids in the configuration.
    std : float, optional
        Standard deviation of the new rows. Default: the model's ``initializer_range``, or ``initializer_factor`` (T5).

    Returns
    -------
    LoadReport
        Tables that were written; the rest of the model is as it was. The notes say how many rows were kept, computed,
        and left at zero because the corpus does not have the token.

    Raises
    ------
    InputError
        Not such a model; an old tokenizer that is not the model's; no text; a width too small or too large for codes of
        the vocabulary; a tokenizer without a token that the model needs; RoBERTa with another id for padding, from
        which it counts positions.

    Notes
    -----
    A head with its own weights gets the same rows, its bias keeps the kept tokens' entries and is 0 elsewhere.

    References
    ----------
    Williams and Zhao 2023, arXiv 2311.11012.

    Examples
    --------
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast
    >>> ids = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "the", "cat", "dog", "sat", "ran"])}
    >>> words = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    >>> shape = {"hidden_size": 8, "ffn_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> model = OPTForCausalLM(OPTConfig(vocab_size=20, word_embed_proj_dim=8, **shape))
    >>> replace_embeddings(model, tokenizer, ["the cat sat", "the dog ran"]).notes[:2]
    ('rows of special tokens kept: 3', 'rows computed: 5')
    >>> model.config.vocab_size
    8
    """
    if isinstance(corpus, str):
        raise InputError("expected an iterable of texts as corpus, got one string; put it in a list")
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, torch.nn.Embedding):
        raise InputError(f"expected a model with an nn.Embedding of tokens, got {type(embedding).__name__}")
    if std is not None and not 0 < std < float("inf"):
        raise InputError(f"expected std to be a finite number above 0, got {std!r}")
    ids = _special_ids(model, tokenizer)
    kept = _kept(model, tokenizer, old_tokenizer)
    if kept and max(kept.values()) >= embedding.num_embeddings:
        raise InputError(
            f"expected special tokens within the {embedding.num_embeddings} rows of the model, got id "
            f"{max(kept.values())}; give the tokenizer it was trained with as old_tokenizer"
        )
    size = max(tokenizer.get_vocab().values()) + 1
    seen, vectors = contextual_vectors(_sentences(tokenizer, corpus), embedding.embedding_dim)
    rows = np.zeros((size, embedding.embedding_dim), np.float32)
    rows[seen] = vectors * (_initial_std(model) if std is None else std)

    before = _tables(model)
    old = [table[list(kept.values())].clone() for table in before]
    model.resize_token_embeddings(size, mean_resizing=False)
    for table, own in zip(_tables(model), old, strict=True):
        table.copy_(torch.from_numpy(rows) if table.ndim == 2 else torch.zeros(size))
        table[list(kept)] = own
    _resize_second_bias(model)
    for settings in (model.config.get_text_config(), getattr(model, "generation_config", None)):
        for name, value in ids.items():
            if hasattr(settings, name):
                setattr(settings, name, value)
    if embedding.padding_idx is not None:
        embedding.padding_idx = ids["pad_token_id"]

    computed = np.setdiff1d(seen, list(kept)).size
    return _report(
        model,
        f"rows of special tokens kept: {len(kept)}",
        f"rows computed: {computed}",
        f"rows left at zero, of tokens that are not in the corpus: {size - computed - len(kept)}",
    )


def contextual_vectors(sentences: Iterable[list[int]], width: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the ids seen (n,), and their vectors (n, width): columns of mean 0, the whole of standard deviation 1.

    Raises
    ------
    InputError
        No tokens, or too few dimensions for codes of all of them.

    Examples
    --------
    >>> ids, vectors = contextual_vectors([[5, 3, 5, 3, 7]], width=4)
    >>> ids.tolist(), vectors.shape, vectors.mean(axis=0).round(6).tolist()
    ([3, 5, 7], (3, 4), [0.0, 0.0, 0.0, 0.0])
    """
    bits = -(-width // 2)
    model = CooccurrenceEmbedding(bits=bits, radii=(1,), sides="separate", transform="sqrt", components=None)
    try:
        model.fit([str(token) for token in sentence] for sentence in sentences)
    except ValueError as error:
        raise InputError(f"an embedding of {width} dimensions has codes of {bits} bits: {error}") from error
    ids = np.array([int(token) for token in model.vocabulary_])
    order = np.argsort(ids)
    vectors = model.vectors_[order, :width].astype(np.float64)
    vectors -= vectors.mean(axis=0)
    return ids[order], (vectors / vectors.std()).astype(np.float32)


def _sentences(tokenizer: PreTrainedTokenizerBase, corpus: Iterable[str]) -> Iterator[list[int]]:
    """Give the ids of each text, without the special tokens that frame it."""
    texts = iter(corpus)
    while batch := list(islice(texts, TEXTS)):
        yield from tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]


def _special_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    """Return the ids of special tokens for the configuration, by its names."""
    config = model.config.get_text_config()
    old = {role: getattr(config, f"{role}_token_id", None) for role in ROLES}
    new = {role: getattr(tokenizer, f"{role}_token_id") for role in ROLES}
    start = getattr(config, "decoder_start_token_id", None)
    needed = {"pad"} if old["pad"] is not None else set()
    ids = {f"{role}_token_id": value for role, value in new.items()}
    if start is not None:
        role = next((role for role in ROLES if old[role] == start), None)
        if role is None:
            raise InputError(f"expected decoder_start_token_id to be one of {old}, got {start}; set it in the config")
        needed.add(role)
        ids["decoder_start_token_id"] = new[role]
    for role in sorted(needed):
        if new[role] is None:
            raise InputError(f"expected a tokenizer with a {role} token, which the model needs, got none; add one")
    counted = getattr(model.base_model, "embeddings", None)
    places = getattr(counted, "position_embeddings", None)
    if getattr(places, "padding_idx", None) is not None and new["pad"] != old["pad"]:
        raise InputError(
            f"expected the pad token at id {old['pad']}, from which this model counts its positions, got {new['pad']}; "
            "train the tokenizer with its special tokens in the order of the old one"
        )
    return ids


def _kept(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, old_tokenizer: PreTrainedTokenizerBase | None
) -> dict[int, int]:
    """Return the old row of every special token that has one, by new id."""
    if old_tokenizer is not None:
        old: dict[str, int] = old_tokenizer.get_vocab()
        special = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        return {new: old[token] for new, token in special if token in old}
    config = model.config.get_text_config()
    pairs = [(getattr(tokenizer, f"{r}_token_id"), getattr(config, f"{r}_token_id", None)) for r in ROLES]
    return {new: row for new, row in pairs if new is not None and isinstance(row, int)}


def _initial_std(model: PreTrainedModel) -> float:
    """Return the standard deviation of a fresh embedding, by the name the configuration has for it."""
    config: Any = model.config.get_text_config()
    for name in ("initializer_range", "init_std", "initializer_factor"):
        if (std := getattr(config, name, None)) is not None:
            return float(std)
    raise InputError(f"expected initializer_range in {type(config).__name__}, found none; give std")


def _tables(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return what has a row a token: the embedding, the head where it is another, and the bias of the head."""
    embedding: Any = model.get_input_embeddings()
    tables: list[torch.Tensor] = [embedding.weight]
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    if getattr(head, "bias", None) is not None:
        tables.append(head.bias)
    return [table.detach() for table in tables]


def _resize_second_bias(model: PreTrainedModel) -> None:
    """Give the bias beside an untied RoBERTa head its new length: no one reads it, and the model loads only with it."""
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for module in model.modules():
        second = getattr(module, "bias", None)
        if second is not None and head in module.children() and second.numel() != head.bias.numel():
            second.data = head.bias.detach().clone()


def _report(model: PreTrainedModel, *notes: str) -> LoadReport:
    """Name what was written, and what shares it."""
    places = {table.data_ptr() for table in _tables(model)}
    first: dict[int, str] = {}
    tied = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        place = parameter.data_ptr()
        if place in places and first.setdefault(place, name) != name:
            tied.append((first[place], name))
    return LoadReport(tuple(first.values()), tied=tuple(tied), notes=notes)
