"""New embeddings for a Hugging Face model that gets a new tokenizer: contextual cipher vectors of a corpus.

| symbol | shape | meaning |
|---|---|---|
| `V`, `d` | | number of tokens of the new tokenizer; width of the embedding (`word_embed_proj_dim` of OPT) |
| `S` | (V, d) | square roots of the shares of cipher bits left and right of each token, see `bitcipher.embedding` |
| `rows` | (V, d) | ``S`` with columns of mean 0, scaled to a given standard deviation |

`bitcipher` sums the codes of the neighbours, ``d / 2`` bits for the left side and ``d / 2`` for the right side. The
sums are non-negative. Transformers expect rows around 0 of the scale that they were trained with, hence the centring
and the scaling. Sources: Williams and Zhao 2023, arXiv 2311.11012; Kim et al. 2024, arXiv 2407.12514 (the scale is
decisive).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from bitcipher import CooccurrenceEmbedding
from warmstart.adapters.parts import unwrapped
from warmstart.adapters.report import LoadReport
from warmstart.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROLES = ("pad", "bos", "eos")
TEXTS = 1000  # texts in one call of the tokenizer


def replace_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Iterable[str],
    *,
    old_tokenizer: PreTrainedTokenizerBase | None = None,
    std: float | None = None,
) -> LoadReport:
    """Give a model a new tokenizer: compute the rows of its embedding and head from the contexts in a corpus.

    Parameters
    ----------
    model : PreTrainedModel
        A model with an `nn.Embedding` of tokens, such as RoBERTa, T5 or OPT. It is changed in place, after all checks.
    tokenizer : PreTrainedTokenizerBase
        The new tokenizer.
    corpus : iterable of str
        Texts, read once.
    old_tokenizer : PreTrainedTokenizerBase, optional
        The tokenizer that the model was trained with. Special tokens that both tokenizers have, by name, keep their
        rows. Without it only the tokens for padding, begin and end keep their rows, by their ids in the configuration.
    std : float, optional
        Standard deviation of the new rows. Default: that of the rows they replace, which is much better than the
        deviation of a fresh model (5.67 against 5.93 nats after 100 steps, ``python -m benchmarks embeddings``).

    Returns
    -------
    LoadReport
        The tables that were written. The notes count the rows that were kept, computed, and set to zero because their
        tokens do not occur in the corpus.

    Raises
    ------
    InputError
        The model has no embedding of tokens, the old tokenizer is not the model's, there is no text, the width is too
        small for codes of the vocabulary, the tokenizer lacks a token that the model needs, or it has another id for
        padding in a model like RoBERTa, which counts positions from that id.

    Notes
    -----
    A head with its own weights gets the same vectors at the scale of its own old rows. The bias of a head keeps its
    entries for the kept tokens and is 0 elsewhere.

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
    model = cast("PreTrainedModel", unwrapped(model))
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, torch.nn.Embedding):
        raise InputError(f"expected a model with an nn.Embedding of tokens, got {type(embedding).__name__}")
    if std is not None and not 0 < std < float("inf"):
        raise InputError(f"expected std to be a finite number above 0, got {std!r}")
    ids = _special_ids(model, tokenizer)
    kept_rows = _kept_rows(model, tokenizer, old_tokenizer)  # old row by new id
    if kept_rows and max(kept_rows.values()) >= embedding.num_embeddings:
        raise InputError(
            f"expected special tokens within the {embedding.num_embeddings} rows of the model, got id "
            f"{max(kept_rows.values())}; give the tokenizer it was trained with as old_tokenizer"
        )
    size = max(tokenizer.get_vocab().values()) + 1
    seen, vectors = contextual_vectors(_sentences(tokenizer, corpus), embedding.embedding_dim)
    rows = torch.zeros(size, embedding.embedding_dim)
    rows[torch.from_numpy(seen)] = torch.from_numpy(vectors)

    _write_tables(model, rows, kept_rows, std)
    for settings in (model.config.get_text_config(), getattr(model, "generation_config", None)):
        for name, value in ids.items():
            if hasattr(settings, name):
                setattr(settings, name, value)
    if embedding.padding_idx is not None:
        embedding.padding_idx = ids["pad_token_id"]

    computed = np.setdiff1d(seen, list(kept_rows)).size
    return _report(
        model,
        f"rows of special tokens kept: {len(kept_rows)}",
        f"rows computed: {computed}",
        f"rows set to zero, of tokens that are not in the corpus: {size - computed - len(kept_rows)}",
    )


def contextual_vectors(sentences: Iterable[list[int]], width: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the ids that occur (n,) and their vectors (n, width): columns of mean 0, overall standard deviation 1.

    Raises
    ------
    InputError
        There are no tokens, or too few dimensions for codes of all of them.

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


def _write_tables(model: PreTrainedModel, rows: torch.Tensor, kept_rows: dict[int, int], std: float | None) -> None:
    """Resize the tables of the model; write rows of standard deviation 1 times ``std``, and the rows that are kept."""
    old_tables = [table.clone() for table in _tables(model)]
    model.resize_token_embeddings(len(rows), mean_resizing=False)
    for table, old in zip(_tables(model), old_tables, strict=True):
        if table.ndim == 2:
            replaced = torch.ones(len(old), dtype=torch.bool)
            replaced[list(kept_rows.values())] = False
            table.copy_(rows * (float(old[replaced].std()) if std is None else std))
        else:
            table.zero_()
        table[list(kept_rows)] = old[list(kept_rows.values())]
    _resize_second_bias(model)


def _sentences(tokenizer: PreTrainedTokenizerBase, corpus: Iterable[str]) -> Iterator[list[int]]:
    """Yield the ids of each text without special tokens around it."""
    texts = iter(corpus)
    while batch := list(islice(texts, TEXTS)):
        yield from tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]


def _special_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    """Return the ids of the new special tokens by their names in the configuration."""
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
    embeddings = getattr(model.base_model, "embeddings", None)
    positions = getattr(embeddings, "position_embeddings", None)
    if getattr(positions, "padding_idx", None) is not None and new["pad"] != old["pad"]:
        raise InputError(
            f"expected the pad token at id {old['pad']}, from which this model counts its positions, got {new['pad']}; "
            "train the tokenizer with its special tokens in the order of the old one"
        )
    return ids


def _kept_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, old_tokenizer: PreTrainedTokenizerBase | None
) -> dict[int, int]:
    """Return the old row of every special token that keeps its row, by its new id."""
    if old_tokenizer is not None:
        old: dict[str, int] = old_tokenizer.get_vocab()
        special = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        return {new: old[token] for new, token in special if token in old}
    config = model.config.get_text_config()
    pairs = [(getattr(tokenizer, f"{r}_token_id"), getattr(config, f"{r}_token_id", None)) for r in ROLES]
    return {new: row for new, row in pairs if new is not None and isinstance(row, int)}


def _tables(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return the tables with a row for each token: the embedding, an untied head, and the bias of the head."""
    embedding: Any = model.get_input_embeddings()
    tables: list[torch.Tensor] = [embedding.weight]
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    if getattr(head, "bias", None) is not None:
        tables.append(head.bias)
    return [table.detach() for table in tables]


def _resize_second_bias(model: PreTrainedModel) -> None:
    """Resize the second bias of an untied RoBERTa head. It is never read, but a saved model must have it."""
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for module in model.modules():
        second = getattr(module, "bias", None)
        if second is not None and head in module.children() and second.numel() != head.bias.numel():
            second.data = head.bias.detach().clone()


def _report(model: PreTrainedModel, *notes: str) -> LoadReport:
    """Return the names of the tables that were written, and of the parameters that share them."""
    written = {table.data_ptr() for table in _tables(model)}
    names: dict[int, str] = {}
    tied = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        address = parameter.data_ptr()
        if address in written and names.setdefault(address, name) != name:
            tied.append((names[address], name))
    return LoadReport(tuple(names.values()), tied=tuple(tied), notes=notes)
