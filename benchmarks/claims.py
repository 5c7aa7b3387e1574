"""The claims of papers and talks that the benches measure, and the verdict that follows from each section's conclusion.

A verdict is computed from the numbers in the conclusion of a section of docs/benchmarks.md. So the table at the head of
the page, which `benchmarks.render.write` renews with every section, cannot differ from what was measured. Claims are
told in our own words.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from warmstart.errors import InputError

HOLDS, PARTLY, FAILS, OPEN = "holds", "holds in part", "does not hold", "not measured yet"


class Claim(NamedTuple):
    """A claim.

    Attributes
    ----------
    sentence : str
    section : str
        Name of the section that measures it.
    pattern : str
        Regular expression for the conclusion of the section; its groups are numbers.
    verdict : callable of these numbers
        Returns the verdict, and why in a few words.
    """

    sentence: str
    section: str
    pattern: str
    verdict: Callable[..., tuple[str, str]]


def judged(holds: bool, why: str, partly: bool = False) -> tuple[str, str]:
    """Return a verdict and its reason."""
    return HOLDS if holds else PARTLY if partly else FAILS, why


def _layer(*values: float) -> tuple[str, str]:
    explicit, bayes, logistic = values[:3], values[3:6], values[6:]
    over = sum(a >= b for a, b in zip(explicit, bayes, strict=True))
    wins = sum(a >= b for a, b in zip(explicit, logistic, strict=True))
    why = f"as accurate as naive Bayes on {over} of 3 data sets, as trained logistic regression on {wins}"
    return judged(wins == 3, why, partly=over > 0)


def _plain(warm: float, cold: float, relu: float) -> tuple[str, str]:
    why = f"{warm:.3f} nats, from default weights {cold:.3f}; a ReLU network has {relu:.3f}"
    return judged(warm < min(cold, relu), why, partly=warm < cold)


def _attention(uniform: float, found: float, mixture: float, decay: float, decay_mixture: float) -> tuple[str, str]:
    why = f"perplexity {found:.0f}; uniform {uniform:.0f}, best decay by hand {decay:.0f}"
    return judged(found < decay and mixture < decay_mixture, why, partly=found < uniform)


def _near_shallow(*leads: float) -> tuple[str, str]:
    why = f"its lead is {leads[0]} to {leads[1]} nats after 0.3 M tokens, {leads[4]} to {leads[5]} after 5 M"
    return judged(min(leads[4:]) > 0, why, partly=leads[0] > 0)


def _transformers(gpt2: float, llama: float, later: float) -> tuple[str, str]:
    why = f"by {gpt2:.2f} and {llama:.2f} nats after 600 steps; after 2,400 still by {later:.2f}"
    return judged(min(gpt2, llama, later) > 0, why, partly=max(gpt2, llama, later) > 0)


def _long(cold: float, warm: float, beside: float) -> tuple[str, str]:
    why = f"{warm:.2f} nats alone, one seed; from a cold start {cold:.2f}; beside counts {beside:.2f}"
    return judged(warm < cold, why)


def _few(*gains: float) -> tuple[str, str]:
    why = f"with the least text its lead is {gains[0]:.2f} nats, with the most {gains[-1]:.2f}"
    return judged(gains[0] == max(gains) > 0, why, partly=gains[0] > 0)


def _vectors(ours: float, cost: float, similar: float, best: float, dear: float, better: float) -> tuple[str, str]:
    why = f"parts of speech {ours}, peers {best} in {dear / cost:.0f} times the time; similarity {similar}, {better}"
    return judged(ours >= best and similar >= better, why, partly=ours >= best or similar >= better)


def _rewritten(delta: float, added: float) -> tuple[str, str]:
    return judged(delta > added, f"at least {delta:.0f} keys, the sum rule {added:.0f}")


def _features(dpfp: float, random: float) -> tuple[str, str]:
    return judged(dpfp > random, f"{dpfp:.0f} keys, FAVOR+ {random:.0f}")


def _linear(time: float, memory: float, attention: float, its_memory: float) -> tuple[str, str]:
    why = f"powers of the length: time {time}, memory {memory}; attention {attention} and {its_memory}"
    return judged(max(time, memory) < 1.1, why, partly=time < attention)


def _mixers(cold: float, warm: float, attention_cold: float, attention_warm: float) -> tuple[str, str]:
    why = f"{cold:.2f} nats and {attention_cold:.2f} (cold), {warm:.2f} and {attention_warm:.2f} (warm)"
    return judged(cold <= attention_cold and warm <= attention_warm, why, partly=cold <= attention_cold)


def _grammar(ours: float, bigram: float, unigram: float, trained: float) -> tuple[str, str]:
    why = f"{ours} % of the pairs; bigram {bigram} %, unigram {unigram} %, a small trained GPT-2 {trained} %"
    return judged(ours >= trained, why, partly=ours > bigram)


def _lamp(usual: float, places: float, chosen: float, of: float) -> tuple[str, str]:
    why = f"no worse than logistic regression in {usual:.0f} of {places:.0f} places, in {chosen:.0f} if that is tuned"
    return judged(usual == places and chosen == of, why, partly=usual > places / 2)


def _mixed(*nats: float) -> tuple[str, str]:
    rows = [nats[i : i + 5] for i in range(0, len(nats), 5)]  # grouped, one temperature, scaled, best alone, trained
    better = sum(row[0] < row[3] for row in rows)
    trained = sum(row[0] <= row[4] for row in rows)
    one = sum(row[1] < row[3] for row in rows)
    why = (
        f"better than the better input alone in {better} of {len(rows)} cases with a temperature for each kind, in "
        f"{one} with one for both; no worse than logistic regression in {trained}"
    )
    return judged(better == one == len(rows), why, partly=better > 0)


def _frequent(*values: float) -> tuple[str, str]:
    """Judge 2 losses by frequency, at random, by similarity, with the frequent first; 3 accuracies of the first 3."""
    lower = sum(a < b for a, b in zip(values[0:2], values[2:4], strict=True))
    higher = sum(a > b for a, b in zip(values[8:11], values[11:14], strict=True))
    gains = ", ".join(f"{b - a:.3f}" for a, b in zip(values[0:2], values[2:4], strict=True))
    why = f"the network is {gains} nats better than at random; label embeddings in {higher} of 3 cases"
    return judged(lower == 2 and higher == 3, why, partly=lower + higher > 0)


def _similar(*values: float) -> tuple[str, str]:
    lower = sum(a < min(b, c) for a, b, c in zip(values[4:6], values[0:2], values[6:8], strict=True))
    higher = sum(a > max(b, c) for a, b, c in zip(values[14:17], values[8:11], values[11:14], strict=True))
    gains = ", ".join(f"{b - a:.3f}" for a, b in zip(values[4:6], values[0:2], strict=True))
    why = f"the network is {gains} nats better than by frequency; label embeddings are best in {higher} of 3 cases"
    return judged(lower == 2 and higher == 3, why, partly=lower + higher > 0)


def _lengths(*values: float) -> tuple[str, str]:
    """Judge 5 losses and 5 times: packed, with border mask, padded to the longest of all, of the step, as they come."""
    nats, seconds = values[:5], values[5:10]
    why = (
        f"{nats[4]:.3f} nats in {seconds[4]:.1f} s; packed {nats[0]:.3f} in {seconds[0]:.1f} s, with a border mask "
        f"{nats[1]:.3f} in {seconds[1]:.1f} s; padded {nats[3]:.3f} in {seconds[3]:.1f} s or more"
    )
    cheap = seconds[4] < min(seconds[2:4])
    return judged(cheap and nats[4] <= min(nats[:2]), why, partly=cheap and nats[4] < nats[0])


def _tickets(half: float, by_chance: float, most: float, *cold: float) -> tuple[str, str]:
    told, cold_told = by_chance - half, cold[1] - cold[0]  # what the magnitude knows
    why = (
        f"half pruned by magnitude costs {half:.3f} nats, {told:.3f} less than at random; from a cold start "
        f"{cold_told:.3f} less; nine tenths cost {most:.3f}"
    )
    return judged(half < 0.02 and told > max(0.01, cold_told), why, partly=told > 0.01)


def _rules(*values: float) -> tuple[str, str]:
    """Judge the losses of the sum rule and of the delta rule, with positions and without."""
    better = sum(delta < added for added, delta in zip(values[0:2], values[2:4], strict=True))
    why = f"{values[2]:.3f} and {values[0]:.3f} nats with positions, {values[3]:.3f} and {values[1]:.3f} without"
    return judged(better == 2, f"delta and sum rule have {why}", partly=better > 0)


def _positions(*values: float) -> tuple[str, str]:
    """Judge the losses of three memories, with positions and without."""
    costs = [round(without - given, 3) for given, without in zip(values[0:6:2], values[1:6:2], strict=True)]
    near = sum(cost <= 0.01 for cost in costs)
    why = f"without them FAVOR+ loses {costs[0]} (sum rule) and {costs[1]} (delta rule), DPFP {costs[2]} nats"
    return judged(near == 3, why, partly=near > 0)


def _carried(*values: float) -> tuple[str, str]:
    carried, reset = values[6:]
    why = f"{carried:.3f} nats carried, {reset:.3f} reset, in the same order of windows"
    return judged(round(reset - carried, 3) > 0.01, why, partly=carried < reset)


FAST_WEIGHTS = (
    r"FAVOR\+ has ([\d.]+, [\d.]+) with the sum rule and ([\d.]+, [\d.]+) with the delta rule, .*?rule "
    r"([\d.]+, [\d.]+) nats .*? DPFP has ([\d.]+) with .*? and ([\d.]+) with a reset\."
)


def _enough(ngrams: float, network: float) -> tuple[str, str]:
    why = f"the last doubling, to 14 M tokens, still gives the network {network:.3f} and the n-grams {ngrams:.3f} nats"
    return judged(network < 0.02, why)


def _blocks(*gains: float) -> tuple[str, str]:
    why = f"blocks of 8, 64, 256 tokens are {', '.join(f'{gain:.3f}' for gain in gains)} nats better than none"
    growing = gains[0] < gains[1] < gains[2]
    return judged(growing and gains[2] > 0.01, why, partly=max(gains) > 0.01)


def _frozen(gain: float) -> tuple[str, str]:
    return judged(gain > 0.01, f"the best frozen phase is {gain:.3f} nats better than none", partly=gain > 0.0)


ORDERS = (
    r"bits has (.+?) nats with .*?, ([\d.]+, [\d.]+) with random ones, (.+?) by similarity and (.+?) with the .*"
    r"accuracy is (.+?) by frequency, (.+?) at random and (.+?) by similarity"
)
CLAIMS = (
    Claim(
        "The weights of a softmax layer can be computed from co-occurrences; training is not needed",
        "classifier",
        r"explicit solution (.+?); naive Bayes (.+?); logistic regression (.+?);",
        _layer,
    ),
    Claim(
        "Networks of softmax layers train better from their explicit solution",
        "classifier",
        r"([\d.]+) nats from `warm_start` and ([\d.]+) from default weights, a ReLU network ([\d.]+)\.",
        _plain,
    ),
    Claim(
        "Self-attention has hidden targets, so that it can be solved too",
        "attention",
        r"from (\d+) \(uniform\) to (\d+), and to (\d+) as a mixture; the best .* has (\d+) and (\d+)\.",
        _attention,
    ),
    Claim(
        "A solved near-shallow language model stays ahead of a random one in training",
        "finetune",
        r"by ([\d.]+ to [\d.]+) nats after 0.* and ([\d.]+ to [\d.]+) nats .* lead is (-?[\d.]+ to -?[\d.]+) ",
        _near_shallow,
    ),
    Claim(
        "Transformers can start from counts too, and learn faster",
        "transformers",
        r"by ([\d.]+) nats \(GPT-2\) and ([\d.]+) nats \(Llama\) .* shrinks to ([\d.]+) nats",
        _transformers,
    ),
    Claim(
        "They also end lower when they train for long",
        "transformers_counts",
        r"two epochs, the cold start ends at ([\d.]+), the warm one at ([\d.]+) and .* beside counts at ([\d.]+)",
        _long,
    ),
    Claim(
        "A warm start helps most where data are few",
        "little_data",
        r"ends (.+?) nats below the cold one",
        _few,
    ),
    Claim(
        "Vectors from bit ciphers are as good as trained ones",
        "vectors",
        r"vectors ([\d.]+) after (\d+) CPU .*? and ([\d.]+) \(.*; peers ([\d.]+) after (\d+) CPU .*? and ([\d.]+) \(",
        _vectors,
    ),
    Claim(
        "The network knows grammar before any training",
        "blimp",
        r"in ([\d.]+)% of the pairs, a bigram model in ([\d.]+)%, a unigram model in ([\d.]+)%; .* in ([\d.]+)%\.",
        _grammar,
    ),
    Claim(
        "The delta rule can overwrite, the sum rule cannot",
        "retrieval",
        r"solves at least (\d+) keys and the sum rule (\d+);",
        _rewritten,
    ),
    Claim(
        "Deterministic features (DPFP) hold more than random ones (FAVOR+)",
        "retrieval",
        r"\((\d+) with the \d+ of DPFP-2\), and FAVOR\+ (\d+)\.",
        _features,
    ),
    Claim(
        "Memories take time and memory linear in the length",
        "memory",
        r"to the power ([\d.]+) and ([\d.]+) \(sum rule\), those of softmax attention to ([\d.]+) and ([\d.]+)\.",
        _linear,
    ),
    Claim(
        "Fast weights can take the place of attention in a language model",
        "mixers",
        r"the delta rule has ([\d.]+) \(cold\) and ([\d.]+) \(warm\), softmax attention ([\d.]+) and ([\d.]+)\.",
        _mixers,
    ),
    Claim("The delta rule makes better language models than the sum rule", "fast_weights", FAST_WEIGHTS, _rules),
    Claim("Fast weights as language models need no positions", "fast_weights", FAST_WEIGHTS, _positions),
    Claim(
        "A state of fast weights that is carried over the border of a window predicts better than a reset",
        "fast_weights",
        FAST_WEIGHTS,
        _carried,
    ),
    Claim(
        "A lamp learns from the flips of its switch",
        "lamp",
        r"in (\d+) of (\d+) places of the table, and .* in (\d+) of (\d+)\.",
        _lamp,
    ),
    Claim(
        "Inputs of several kinds, image and text, can stand side by side in one explicit layer",
        "mixed",
        ".*?".join(2 * [r"each block has ([\d.]+) .*? ([\d.]+), .*? ([\d.]+), .*? ([\d.]+), .*? ([\d.]+)"]),
        _mixed,
    ),
    Claim(
        "Short documents need no packing and no padding: take lengths as they come",
        "lengths",
        r"and with lengths as they come: (.+?); CPU seconds (.+?); padding",
        _lengths,
    ),
    Claim(
        "A warm start shows before training which parts are superfluous",
        "tickets",
        r"cost the warm start (.+?) nats and the cold start (.+?), after",
        _tickets,
    ),
    Claim("The most frequent tokens should have the codes with the fewest bits", "orders", ORDERS, _frequent),
    Claim("Codes by contextual similarity are better than codes by frequency", "orders", ORDERS, _similar),
    Claim(
        "The warm start of the papers, the network, needs no more than about 10 M tokens",
        "saturation",
        r"in nats: .*n-grams ([\d.]+), .*network ([\d.]+)\.",
        _enough,
    ),
    Claim(
        "Longer contexts get better, and blocks of thousands of tokens are practical",
        "near_shallow",
        r"beside the radial context are (.+?) nats below",
        _blocks,
    ),
    Claim(
        "Vectors that are frozen in the first passes, then thawed, end lower",
        "near_shallow",
        r"a frozen phase brings (.+?) nats over none",
        _frozen,
    ),
)
NOT_BUILT = ("convolution", "logistic activations", "translation", "a lamp that answers")


def verdict(claim: Claim, conclusion: str) -> tuple[str, str]:
    r"""Return the verdict on a claim, and why, from the conclusion of its section.

    Raises
    ------
    InputError
        The conclusion has another form.

    Examples
    --------
    >>> judge = lambda warm, cold: judged(warm < cold, f"by {cold - warm:.1f}")
    >>> claim = Claim("Warm is better", "x", r"warm ([\d.]+), cold ([\d.]+)", judge)
    >>> verdict(claim, "After 600 steps warm 4.5, cold 5.0.")
    ('holds', 'by 0.5')
    """
    found = re.search(claim.pattern, conclusion)
    if not found:
        raise InputError(
            f"claims: expected a conclusion of the section {claim.section} like {claim.pattern!r}, got {conclusion!r}; "
            "change the pattern in benchmarks/claims.py with the sentence"
        )
    numbers = [float(n.replace(",", "")) for group in found.groups() for n in re.findall(r"-?\d[\d,]*\.?\d*", group)]
    return claim.verdict(*numbers)


def claimed(section: str) -> str:
    """Return the claims that a section measures, as its first paragraph."""
    return f"Claimed: {'. '.join(claim.sentence for claim in CLAIMS if claim.section == section)}."


def table(sections: Mapping[str, tuple[str, str]]) -> str:
    """Return the table of all claims.

    Parameters
    ----------
    sections : mapping of name to link and conclusion
        The sections of docs/benchmarks.md.
    """
    lines = ["| claim | verdict | measured |", "|---|---|---|"]
    for claim in CLAIMS:
        link, conclusion = sections.get(claim.section, ("", ""))
        word, why = verdict(claim, conclusion) if conclusion else (OPEN, "")
        lines.append(f"| {claim.sentence} | {word} | {why}{f' ({link})' if link else ''} |")
    return "\n".join([*lines, "", f"Not built, so not measured: {', '.join(NOT_BUILT)}."])
