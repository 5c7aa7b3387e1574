"""Explanations as text and as a picture: what spoke for the next token, and which expert predicted each token."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from warmstart.files import writing
from warmstart.stream import Explanation, Stream
from warmstart.tokenizer import continuation

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from warmstart.mixture import Mixture

SHOWN_BEFORE = 5  # tokens before an earlier place of the document
COLOURS = {  # of experts, by the first word of their names; they differ in lightness too
    "ngrams": "#4c78a8",
    "classes": "#72b7b2",
    "cache": "#f58518",
    "network": "#b279a2",
    "unigram": "#9d9da1",
}


def described(explanation: Explanation, ids: Sequence[int], tokenizer: "Tokenizer") -> dict[str, Any]:
    """Return an explanation with token ids as text, ready for JSON.

    Parameters
    ----------
    explanation : Explanation
    ids : sequence of int
        The tokens of the document that it is for.
    tokenizer : Tokenizer
    """

    def text(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=False))

    history = [-1, *ids]  # positions count the separator in front
    return {
        "weights": explanation.weights,
        "tokens": [
            {
                "token": text([reason.token]),
                "id": reason.token,
                "probability": reason.probability,
                "experts": reason.shares,
                "ngrams": [{"text": text(gram), "ids": list(gram), "share": share} for gram, share in reason.ngrams],
                "places": [
                    {
                        "position": place - 1,
                        "text": text(history[max(1, place - SHOWN_BEFORE) : place + 1]),
                        "share": share,
                    }
                    for place, share in reason.places
                ],
            }
            for reason in explanation.reasons
        ],
    }


def token_shares(mixture: "Mixture", ids: Sequence[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the probability of every token of a document (n,) and the share of every expert in it (n, m)."""
    stream = Stream(mixture)
    probs, shares = np.empty(len(ids)), np.empty((len(ids), len(mixture.experts.names)))
    for i, token in enumerate(ids):
        added = stream.weights() * stream.rows()[:, token]
        probs[i] = added.sum()
        shares[i] = added / probs[i]
        stream.advance([token])
    return probs, shares


def write_picture(path: Path, mixture: "Mixture", ids: Sequence[int], tokenizer: "Tokenizer") -> None:
    """Write a text as an HTML page, each token in the colour of the expert that predicted it; pale means improbable.

    The page needs no other file. Pointing at a token shows its probability and the shares.
    """
    probs, shares = token_shares(mixture, ids)
    names = mixture.experts.names
    spans = []
    for i, (token, p, share) in enumerate(zip(ids, probs.tolist(), shares, strict=True)):
        colour = COLOURS[names[int(share.argmax())].split()[0]]
        title = f"{p:.2%}: " + ", ".join(f"{name} {part:.0%}" for name, part in zip(names, share, strict=True))
        strength = round(100 * min(1.0, 0.15 + 0.85 * p**0.3))
        word = html.escape(continuation(tokenizer, ids[max(0, i - 1) : i], [token])).replace("\n", "↵<br>")
        style = f"background: color-mix(in srgb, {colour} {strength}%, transparent)"
        spans.append(f'<span style="{style}" title="{html.escape(title)}">{word}</span>')
    legend = " ".join(
        f'<span style="background: {COLOURS[name]}">{name}</span>'
        for name in COLOURS
        if any(expert.split()[0] == name for expert in names)
    )
    page = (
        '<!doctype html><meta charset="utf-8"><title>What predicted each token</title>'
        "<style>body { font: 1.1rem/2 serif; max-width: 45rem; margin: 2rem auto; padding: 0 1rem }"
        " span { border-radius: 0.2em; padding: 0.1em 0 } p:first-of-type span { padding: 0.2em 0.5em }</style>"
        f"<p>{legend}</p><p>{''.join(spans)}</p>\n"
    )
    with writing(path) as file:
        file.write(page.encode())
