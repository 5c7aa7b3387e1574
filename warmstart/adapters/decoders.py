"""Warm start of decoders with a residual stream (GPT-2, Llama, GPT-NeoX and others): they start as a bigram model.

The embedding and the head hold a bigram model of low rank (`warmstart.spectral`). The output projections of the blocks
are zero, so at step 0 the network is that model. All other weights keep their own initialisation.

The start is verified before it is written, see `warmstart.adapters.stream`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from warmstart.adapters import heads as previous_token
from warmstart.adapters import memories
from warmstart.adapters.parts import Parts, find_parts, unwrapped
from warmstart.adapters.report import LoadReport
from warmstart.adapters.stream import Decoder
from warmstart.counts import PairStatistics
from warmstart.errors import InputError
from warmstart.ngrams import NGramCounts, vocabulary_digest
from warmstart.progress import Progress
from warmstart.spectral import Factors, factorise, residual

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCALE = 0.2  # standard deviation of an embedding row; see `python -m benchmarks transformers`
POSITION_SCALE = 0.1  # standard deviation of learned positions, in units of the scale
MAX_PADDING = 1024  # largest number of padded rows in a vocabulary


def load_into(
    model: nn.Module,
    statistics: NGramCounts | PairStatistics | Factors,
    *,
    parts: Parts | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    scale: float = SCALE,
    heads: int | None = None,
    progress: Progress | None = None,
) -> LoadReport:
    """Make a decoder start as a bigram model of a text.

    Parameters
    ----------
    model : nn.Module
        A decoder of ``transformers``, or another one with ``parts``, also inside `torch.compile`. It is changed in
        place, after all checks. A tied head gets its own weights, because one table cannot hold which token follows
        which. A soft cap of the logits (Gemma 2) is switched off. ``python tests/families.py`` tries all families.
    statistics : NGramCounts, PairStatistics or Factors
        See `warmstart.ngrams.count_ngrams`, `warmstart.counts.count_pairs` and `warmstart.spectral.factorise`.
    parts : Parts, optional
        Names of the modules. Default: found by `warmstart.adapters.parts.find_parts`.
    tokenizer : PreTrainedTokenizerBase, optional
        The model's tokenizer. It is compared with the tokenizer of the statistics.
    scale : float
        Standard deviation of the embedding rows. With Adam, smaller rows change faster.
    heads : int, optional
        Number of heads of the first layer that start by attending to the previous token, in GPT-2 and models of
        Llama's kind (groups of heads where heads share keys). Default: half of them. 0: none, as for ``parts``.
        After `replace_attention`: number of heads of the first memory that start as a cache of which token follows
        which. Default: all.
    progress : callable, optional
        ``progress(stage, done, total)``.

    Returns
    -------
    LoadReport
        The notes give rank, exponents, number of refits and the cross-entropy of held-out pairs.

    Raises
    ------
    InputError
        The model lacks these parts, its logits are not those of the formula (the message says what differs), its head
        cannot be untied, its width is too small, the vocabulary is another one, or the model is wrapped, sharded,
        quantised or on the meta device. The model is unchanged.

    References
    ----------
    Levy and Goldberg 2014 (NeurIPS); Williams and Zhao 2023, arXiv 2311.07498 (softmax layer).

    Examples
    --------
    >>> import torch
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from warmstart.counts import count_pairs
    >>> tokens = np.cumsum(np.random.default_rng(0).integers(0, 4, 200_000)) % 64  # one of four follows a token
    >>> config = GPT2Config(vocab_size=64, n_embd=64, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None)
    >>> model = GPT2LMHeadModel(config)
    >>> load_into(model, count_pairs(tokens, 64)).untied
    ('lm_head.weight',)
    >>> ids = torch.from_numpy(tokens[None, :512])
    >>> loss = model(input_ids=ids, labels=ids).loss.item()  # at best log(4); log(64) without knowledge
    >>> loss < 1.7, np.log([4, 64]).round(1).tolist()
    (True, [1.4, 4.2])
    """
    model = unwrapped(model)
    if parts is not None and heads:
        raise InputError(f"heads: expected none for a model given by its parts, got {heads}; leave heads out")
    decoder = Decoder(model, parts or find_parts(model))
    if not np.isfinite(scale) or scale <= 0:
        raise InputError(f"scale: expected a finite number above 0, got {scale}")
    if isinstance(statistics, NGramCounts):
        statistics = PairStatistics.of(statistics)
    if isinstance(statistics, PairStatistics) and tokenizer is not None:
        _check_vocabulary(statistics, tokenizer)
    plan = None if parts else memories.plan(model, heads) or previous_token.plan(model, heads)
    spare, share = (plan.spare, plan.share) if plan else (0, 0.0)
    width = decoder.embedding.embedding_dim
    _check_rows(decoder, statistics)
    if isinstance(statistics, PairStatistics):
        rank = min(width - 2 - decoder.norm.centred - spare, statistics.vocab_size - 1)
        statistics = factorise(statistics, rank, progress=progress)
    place = partial(
        residual, statistics, width, scale=scale, centred=decoder.norm.centred, spare=spare, spare_share=share
    )
    with decoder.without_cap():
        c, a = decoder.measure(place(eps=decoder.norm.eps), statistics)
        placed = place(eps=decoder.norm.eps / c**2)
        values = decoder.values(replace(placed, W=placed.W / a), statistics)
        decoder.verify(
            values, statistics, gain=float(np.sqrt(1 + share**2 / (1 + decoder.norm.eps / (c * scale) ** 2)))
        )
        untied = decoder.untie()
        decoder.write(values)
    loaded = list(values)
    if plan:
        loaded += plan.write(placed, scale)
    if decoder.positions is not None and f"{decoder.parts.positions}.weight" not in loaded:
        loaded += [decoder.shrink_positions(POSITION_SCALE * scale)]
    names = [name for name, _ in model.named_parameters()]
    return LoadReport(
        loaded=tuple(name for name in names if name in loaded),
        missing=tuple(name for name in names if name not in loaded),
        untied=(decoder.parts.head + ".weight",) if untied else (),
        notes=(*_notes(statistics), *([plan.note] if plan else []), *decoder.notes(len(statistics.A), untied)),
    )


def _notes(factors: Factors) -> list[str]:
    a, b = factors.exponents
    if factors.held_out_loss is None:
        return [
            f"bigram model of rank {factors.rank}, exponents {a} and {b} and no refits: defaults, because a text below "
            "131,072 tokens has no held-out pairs to choose by"
        ]
    return [
        f"bigram model of rank {factors.rank}, {factors.held_out_loss:.3f} nats on held-out pairs of frequent tokens",
        f"exponents {a} and {b}, {factors.sweeps} refits",
    ]


def _check_vocabulary(statistics: PairStatistics, tokenizer: PreTrainedTokenizerBase) -> None:
    if statistics.vocabulary and statistics.vocabulary != vocabulary_digest(tokenizer.get_vocab()):
        raise InputError(
            "expected statistics made with the tokenizer of the model, got those of another vocabulary; "
            "encode the text with this tokenizer and count again"
        )


def _check_rows(decoder: Decoder, statistics: PairStatistics | Factors) -> None:
    size = statistics.vocab_size if isinstance(statistics, PairStatistics) else len(statistics.A)
    rows = {decoder.embedding.num_embeddings, decoder.head.out_features}
    if len(rows) > 1 or not size <= max(rows) <= size + MAX_PADDING:
        raise InputError(
            f"expected an embedding and a head of {size} rows, one for each token of the statistics, or up to "
            f"{MAX_PADDING} more; got {decoder.embedding.num_embeddings} and {decoder.head.out_features}; "
            "count with the model's tokenizer"
        )
