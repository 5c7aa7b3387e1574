"""Compiled loops over tries of n-grams: counting, merging, look-up. `warmstart.ngrams` explains the layout.

A level is three arrays: ``last`` (m,), the last token of each n-gram; ``counts`` (m,); and ``offsets`` (m + 1,), where
the n-grams that extend it begin on the next level. Those that extend one n-gram are in the order of their last token.
"""

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[Any]
Floats = NDArray[Any]
Flags = NDArray[Any]


@nb.njit(cache=True, nogil=True)
def histories(tokens: Ints, separator: int, longest: int, starts: Ints) -> Ints:
    """Return how many tokens before each one belong to its history (n,) int8, at most ``longest``.

    A history starts at the last separator before the token. starts: ascending positions of tokens without a history.
    """
    out = np.zeros(tokens.size, np.int8)
    for part in range(starts.size):
        length = 0
        for i in range(starts[part] + 1, starts[part + 1] if part + 1 < starts.size else tokens.size):
            length = min(1 if tokens[i - 1] == separator else length + 1, longest)
            out[i] = length
    return out


@nb.njit(cache=True, nogil=True)
def token_order(tokens: Ints, vocab_size: int) -> Ints:
    """Return the positions sorted by token, equal tokens in their order (n,) int32."""
    starts = np.zeros(vocab_size + 1, np.int32)
    for token in tokens:
        starts[token + 1] += 1
    for token in range(vocab_size):
        starts[token + 1] += starts[token]
    out = np.empty(tokens.size, np.int32)
    for i in range(tokens.size):
        out[starts[tokens[i]]] = i
        starts[tokens[i]] += 1
    return out


@nb.njit(cache=True, nogil=True)
def count_level(
    tokens: Ints, history: Ints, order: Ints, prefixes: Ints, n_prefixes: int, n: int, counted: Flags
) -> tuple[Ints, Ints, Ints, Ints]:
    """Count the n-grams of one text whose prefixes are numbered.

    tokens, history, order (from `token_order`) (length,); prefixes (length,) int32: number of the (n-1)-gram that ends
    at each position; counted (length,): n-grams that end elsewhere get a number but are not counted.

    Returns ids (length,) int32 of the n-gram that ends at each position, -1 where there is none; the last tokens (m,);
    counts (m,) int32; offsets (n_prefixes + 1,) int32.
    """
    starts = np.zeros(n_prefixes + 1, np.int32)
    for i in range(1, tokens.size):
        if history[i] >= n - 1:
            starts[prefixes[i - 1] + 1] += 1
    starts = np.cumsum(starts).astype(np.int32)
    places = np.empty(starts[n_prefixes], np.int32)  # positions by prefix, then by token
    for i in order:
        if history[i] >= n - 1:
            p = prefixes[i - 1]
            places[starts[p]] = i
            starts[p] += 1
    ids = np.full(tokens.size, -1, np.int32)
    offsets = np.zeros(n_prefixes + 1, np.int32)
    m = -1
    for j, i in enumerate(places):
        p = prefixes[i - 1]
        if j == 0 or p != prefixes[places[j - 1] - 1] or tokens[i] != tokens[places[j - 1]]:
            m += 1
            offsets[p + 1] += 1
        ids[i] = m
    last = np.empty(m + 1, tokens.dtype)
    counts = np.zeros(m + 1, np.int32)
    for i in places:
        last[ids[i]] = tokens[i]
        counts[ids[i]] += counted[i]
    return ids, last, counts, np.cumsum(offsets).astype(np.int32)


@nb.njit(cache=True, nogil=True)
def merge_level(
    a_ids: Ints, a_offsets: Ints, a_last: Ints, a_counts: Ints,
    b_ids: Ints, b_offsets: Ints, b_last: Ints, b_counts: Ints, sign: int,
    last: Ints, counts: Ints, a_next: Ints, b_next: Ints,
) -> tuple[Ints, int, int]:  # fmt: skip
    """Merge the extensions of n-grams that two tries hold: ``a + sign * b``.

    a_ids, b_ids (m,): number of each merged n-gram in either trie, -1 if it is not there. Written are the last tokens
    and counts of the extensions, and, if the arrays are not empty, their numbers in either trie.

    Returns offsets (m + 1,) int32, the number of extensions and the largest count.
    """
    offsets = np.zeros(a_ids.size + 1, np.int32)
    m: Any = np.int64(0)
    largest: Any = np.int64(0)
    number = a_next.size > 0
    for node in range(a_ids.size):
        a, b = a_ids[node], b_ids[node]
        i, i_end = (np.int64(a_offsets[a]), np.int64(a_offsets[a + 1])) if a >= 0 else (np.int64(0), np.int64(0))
        j, j_end = (np.int64(b_offsets[b]), np.int64(b_offsets[b + 1])) if b >= 0 else (np.int64(0), np.int64(0))
        while i < i_end and j < j_end:
            x, y = a_last[i], b_last[j]
            in_a, in_b = x <= y, y <= x
            last[m] = min(x, y)
            count = in_a * np.int64(a_counts[i]) + in_b * sign * np.int64(b_counts[j])
            counts[m] = count
            largest = max(largest, count)
            if number:
                a_next[m] = i if in_a else -1
                b_next[m] = j if in_b else -1
            i += in_a
            j += in_b
            m += 1
        for rest in range(i, i_end):
            last[m] = a_last[rest]
            counts[m] = a_counts[rest]
            if number:
                a_next[m] = rest
                b_next[m] = -1
            m += 1
        for rest in range(j, j_end):
            last[m] = b_last[rest]
            counts[m] = sign * b_counts[rest]
            if number:
                a_next[m] = -1
                b_next[m] = rest
            m += 1
        offsets[node + 1] = m
    return offsets, m, largest


@nb.njit(cache=True, nogil=True)
def live(counts: Ints, offsets: Ints, children: Flags) -> Flags:
    """Return which n-grams have a count or a living extension; children (next level,)."""
    out: Flags = counts != 0
    for node in range(out.size):
        for child in range(offsets[node], offsets[node + 1]):
            out[node] |= children[child]
    return out


@nb.njit(cache=True, nogil=True)
def find(last: Ints, low: Any, high: Any, token: int) -> Any:
    """Return the place of a token in ``last[low:high]``, which ascends; -1 if it is not there."""
    low, high = np.int64(low), np.int64(high)
    end = high
    while low < high:
        middle = (low + high) >> 1
        if last[middle] < token:
            low = middle + 1
        else:
            high = middle
    return low if low < end and last[low] == token else np.int64(-1)


@nb.njit(cache=True, nogil=True)
def suffixes(offsets: Ints, last: Ints, parent_suffixes: Ints, suffix_offsets: Ints, suffix_last: Ints) -> Ints:
    """Return the number of each n-gram without its first token, on the level below (m,) int32.

    offsets, parent_suffixes: extensions and suffixes of the level of the prefixes; last (m,); suffix_offsets:
    extensions of the level of those suffixes; suffix_last: last tokens of the level below.
    """
    out = np.empty(last.size, np.int32)
    for parent in range(offsets.size - 1):
        start, stop = np.int64(offsets[parent]), np.int64(offsets[parent + 1])
        if start == stop:
            continue
        suffix = parent_suffixes[parent]
        low, high = np.int64(suffix_offsets[suffix]), np.int64(suffix_offsets[suffix + 1])
        for node in range(start, stop):
            low = find(suffix_last, low, high, last[node])
            out[node] = low
    return out


@nb.njit(cache=True, nogil=True)
def bits(total: int) -> int:
    """Return the number of bits of a whole number."""
    n = 0
    while total > 0:
        n += 1
        total >>= 1
    return n


@nb.njit(cache=True, nogil=True)
def solve_level(
    offsets: Ints, counts: Ints, kept: Flags, suffix: Ints, discounts: Floats, lower: Floats,
    probs: Floats, gammas: Floats, sizes: Ints,
) -> None:  # fmt: skip
    """Interpolated Kneser-Ney of the extensions of every context, see `warmstart.kneser_ney`.

    offsets (m + 1,); counts, kept, suffix (extensions,); discounts (4,), of counts 0, 1, 2, and 3 or more; lower:
    probabilities of the level below. Written are the probabilities of extensions that are kept, the weight of the level
    below (m,), and the bits of the sum of the counts (m,); 1 and 0 for a context without counts.
    """
    for h in range(gammas.size):
        total: Any = np.int64(0)
        n1, n2, n3, pruned = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        for i in range(offsets[h], offsets[h + 1]):
            count: Any = np.int64(counts[i])
            total += count
            if not kept[i]:
                pruned += count
            elif count == 1:
                n1 += 1
            elif count == 2:
                n2 += 1
            elif count >= 3:
                n3 += 1
        left = discounts[1] * n1 + discounts[2] * n2 + discounts[3] * n3 + pruned
        gammas[h], sizes[h] = left / total if total else 1.0, bits(total)
        for i in range(offsets[h], offsets[h + 1]):
            if kept[i]:
                seen = (counts[i] - discounts[min(counts[i], 3)]) / total if total else 0.0
                probs[i] = seen + gammas[h] * lower[suffix[i]]


@nb.njit(cache=True, nogil=True)
def score(
    tokens: Ints, separator: int, order: int, last: Ints, offsets: Ints, probs: Floats, gammas: Floats, sizes: Ints,
    start: int, out: Floats, known: Ints, size: Ints,
) -> None:  # fmt: skip
    """Write the probability of every token but the first ``start``, and what is known of its history.

    tokens (start + n,): the first ones are only history. last, offsets, probs, gammas, sizes: the tables, see
    `warmstart.backoff.BackoffModel`. out (n,) float64; known (n,): length of the longest context that was counted;
    size (n,): its size. `contexts` holds the numbers of the n-grams that end the history, shortest first.
    """
    contexts = np.empty(order + 1, np.int64)
    n_contexts = 0
    for i in range(tokens.size):
        token = tokens[i]
        if i >= start:
            n = n_contexts
            while n > 0 and sizes[contexts[n - 1]] == 0:
                n -= 1
            known[i - start] = n
            size[i - start] = sizes[contexts[n - 1]] if n > 0 else 0
        p = -1.0
        weight = 1.0
        for n in range(n_contexts, 0, -1):
            h = contexts[n - 1]
            node = find(last, offsets[h], offsets[h + 1], token)
            contexts[n] = node
            if p < 0:
                if node >= 0:
                    p = weight * probs[node]
                else:
                    weight *= gammas[h]
        if i >= start:
            out[i - start] = p if p >= 0 else weight * probs[token]
        longest = min(1 if token == separator else n_contexts + 1, order - 1)
        contexts[0] = token
        n_contexts = min(1, order - 1)
        while n_contexts < longest and contexts[n_contexts] >= 0:
            n_contexts += 1


@nb.njit(cache=True, nogil=True)
def next_rows(
    tokens: Ints, places: Ints, separator: int, order: int, last: Ints, offsets: Ints, probs: Floats, gammas: Floats,
    out: Floats,
) -> None:  # fmt: skip
    """Write the probability of every token to come after ``tokens[place]``, for each place.

    last, offsets, probs, gammas: the tables, see `warmstart.backoff.BackoffModel`. out (places, V) float.
    """
    for i in range(places.size):
        out[i] = probs[: out.shape[1]]
        end = places[i]
        for length in range(1, order):
            start = end - length + 1
            if start < 0 or (length > 1 and tokens[start + 1] == separator):
                break
            h = np.int64(tokens[start])
            for token in tokens[start + 1 : end + 1]:
                h = find(last, offsets[h], offsets[h + 1], token) if h >= 0 else h
            if h < 0:
                break
            out[i] *= out.dtype.type(gammas[h])
            for j in range(offsets[h], offsets[h + 1]):
                out[i, last[j]] = probs[j]


@nb.njit(cache=True, nogil=True)
def locate(local_offsets: Ints, local_last: Ints, parents: Ints, offsets: Ints, last: Ints) -> Ints:
    """Return the numbers of the n-grams of a part of the text in the tables of the whole (m,) int64, -1 if missing.

    local_offsets, local_last: a level of the part; parents: numbers of the n-grams of the level below.
    """
    out = np.full(local_last.size, -1, np.int64)
    for h in range(parents.size):
        if parents[h] >= 0 and local_offsets[h] < local_offsets[h + 1]:
            low, high = np.int64(offsets[parents[h]]), np.int64(offsets[parents[h] + 1])
            for i in range(local_offsets[h], local_offsets[h + 1]):
                place = find(last, low, high, local_last[i])
                out[i] = place
                low = low if place < 0 else place
    return out


@nb.njit(cache=True, nogil=True)
def enter(tally: Ints, count: Any, raw: Any, threshold: int, sign: int) -> None:
    """Add an extension to the tally of its context (6,), or take it out.

    A tally is the sum of the counts; how many extensions that are kept have count 1, 2, and 3 or more; the sum of the
    counts of those that are pruned, which occur at most ``threshold`` times; and how many are kept.
    """
    tally[0] += sign * count
    if raw > threshold:
        tally[min(count, 3)] += sign
        tally[5] += sign
    else:
        tally[4] += sign * count


@nb.njit(cache=True, nogil=True)
def tallies(contexts: Ints, offsets: Ints, counts: Ints, raw: Ints, threshold: int) -> Ints:
    """Return the tallies of contexts (m, 6) int64, see `enter`. offsets, counts, raw: their extensions in a level."""
    out = np.zeros((contexts.size, 6), np.int64)
    for h in range(contexts.size):
        for i in range(offsets[contexts[h]], offsets[contexts[h] + 1]):
            enter(out[h], np.int64(counts[i]), np.int64(raw[i]), threshold, 1)
    return out


@nb.njit(cache=True, nogil=True)
def context_sums(
    local_offsets: Ints, groups: Ints, whole: Ints, kept: Flags, places: Ints, reduced: Ints, reduced_raw: Ints,
    counts: Ints, raw: Ints, discounts: Floats, threshold: int,
) -> tuple[Ints, Floats]:  # fmt: skip
    """Return the total count (m,) int64 of contexts without a part, and what is left for shorter contexts (m,) float64.

    local_offsets: extensions of the contexts in the part; groups: their rows in ``whole``, the `tallies` with the part;
    kept: whether they are in the tables without the part, as they also are if an extension is; places, reduced,
    reduced_raw: number in the whole, count and raw count without the part, of every extension in the part; counts, raw:
    those of the whole; discounts (4,). The total of a context that is not in the tables is 0.
    """
    totals, left = np.zeros(groups.size, np.int64), np.zeros(groups.size)
    tally = np.zeros(6, np.int64)
    for h in range(groups.size):
        tally[:] = whole[groups[h]]
        for i in range(local_offsets[h], local_offsets[h + 1]):
            enter(tally, np.int64(counts[places[i]]), np.int64(raw[places[i]]), threshold, -1)
            enter(tally, np.int64(reduced[i]), np.int64(reduced_raw[i]), threshold, 1)
        if kept[h] or tally[5]:
            totals[h] = tally[0]
            left[h] = discounts[1] * tally[1] + discounts[2] * tally[2] + discounts[3] * tally[3] + tally[4]
    return totals, left


@nb.njit(cache=True, nogil=True)
def interpolate(
    ids: Ints, before: Ints, counts: Ints, raw: Ints, totals: Ints, left: Floats, discounts: Floats, threshold: int,
    n: int, out: Floats, known: Ints, size: Ints,
) -> None:  # fmt: skip
    """Add level n to the left-out probabilities of targets.

    ids, before (targets,): number of the n-gram that ends at the target, -1 if the history is too short, and of its
    context; counts, raw: reduced counts by ids; totals, left: `context_sums` by contexts. out, known, size (targets,)
    hold level n - 1 and are changed.
    """
    for i in range(ids.size):
        if ids[i] < 0 or totals[before[i]] == 0:
            continue
        total, count = totals[before[i]], counts[ids[i]]
        seen = count - discounts[min(count, 3)] if raw[ids[i]] > threshold else 0.0
        out[i] = (seen + left[before[i]] * out[i]) / total
        if n > 1:
            known[i], size[i] = n - 1, bits(total)


@nb.njit(cache=True, nogil=True)
def base_rows(
    parts: Ints, counts: Ints, roots: Ints, own_last: Ints, own_counts: Ints, discounts: Floats, out: Floats
) -> None:
    """Write level 1 without each of some parts (parts, V), see `left_out_rows`. counts (V,): those of the whole."""
    size = out.shape[1]
    reduced = np.empty(size, np.int64)
    for row in range(parts.size):
        reduced[:] = counts[:size]
        for j in range(roots[parts[row]], roots[parts[row] + 1]):
            reduced[own_last[j]] = own_counts[j]
        total = reduced.sum()
        left = 0.0
        for token in range(size):
            left += discounts[min(reduced[token], 3)]
        for token in range(size):
            seen = (reduced[token] - discounts[min(reduced[token], 3)]) / total if total else 0.0
            out[row, token] = seen + (left / total if total else 1.0) / size


@nb.njit(cache=True, nogil=True)
def extensions_left(
    start: Any, stop: Any, last: Ints, counts: Ints, own_start: Any, own_stop: Any, own_last: Ints, own_counts: Ints,
    discounts: Floats, tokens: Ints, seen: Floats,
) -> tuple[int, int, float]:  # fmt: skip
    """Write the extensions of a context that are left without a part: their tokens, and their counts less discounts.

    Those of the whole are ``start ... stop``; those in the part, with their counts without it, ``own_start ...``, at
    least one. Returns their number, the sum of their counts and that of their discounts.
    """
    n: Any = 0
    total: Any = np.int64(0)
    discounted = 0.0
    j: Any = np.int64(own_start)
    end: Any = np.int64(own_stop) - 1
    for i in range(start, stop):
        same = own_last[j] == last[i]
        count: Any = np.int64(own_counts[j] if same else counts[i])
        j = j + same if j < end else j
        discount = discounts[min(count, 3)]
        tokens[n], seen[n] = last[i], count - discount
        total += count
        discounted += discount
        n += count > 0
    return n, total, discounted


@nb.njit(cache=True, nogil=True)
def flatten(
    n: int, tokens: Ints, probs: Floats, rest: float, base: Floats, tempered: Floats, mass: float, power: float
) -> float:
    """Raise a row to a power and normalise it, in place; return the new ``rest``.

    The row is ``probs`` at ``tokens`` plus ``rest * base``; tempered: ``base ** power / mass``, which sums to 1.
    """
    rest = rest**power * mass
    total = rest
    for j in range(n):
        own = probs[j]
        if own > 0.0:
            whole = (own + (rest / mass) ** (1.0 / power) * base[tokens[j]]) ** power
            own = max(whole - rest * tempered[tokens[j]], 0.0)
        probs[j] = own
        total += own
    probs[:n] /= total
    return rest / total


@nb.njit(cache=True, nogil=True)
def heaviest(n: int, tokens: Ints, probs: Floats, most: int) -> tuple[int, float]:
    """Keep at most so many of n entries, the heaviest and of equal ones the first; return their number and the rest."""
    if n <= most:
        return n, 0.0
    if most == 0:
        return 0, probs[:n].sum()
    least = np.partition(probs[:n], n - most)[n - most]
    ties = most - np.sum(probs[:n] > least)
    kept, rest = 0, 0.0
    for j in range(n):
        if probs[j] > least or (probs[j] == least and ties > 0):
            ties -= probs[j] == least
            tokens[kept], probs[kept] = tokens[j], probs[j]
            kept += 1
        else:
            rest += probs[j]
    return kept, rest


@nb.njit(cache=True, nogil=True)
def left_out_row(
    text: Ints, place: int, separator: int, last: Ints, counts: Ints, offsets: Ints,
    root: Any, root_end: Any, own_last: Ints, own_counts: Ints, own_offsets: Ints, discounts: Floats,
    tokens: Ints, probs: Floats, upper_tokens: Ints, upper: Floats, at: Ints,
) -> tuple[int, float]:  # fmt: skip
    """Write one row, see `left_out_rows`; return the number of its entries and what is left for level 1.

    Level 2 has all entries that longer contexts have. at (V,): their places by token; upper_tokens, upper: scratch.
    """
    n = 0
    left = 1.0
    for length in range(1, discounts.shape[0]):
        start = place - length + 1
        if start < 0 or (length > 1 and text[start + 1] == separator):
            break
        h = np.int64(text[start])
        own = find(own_last, root, root_end, text[start])
        for token in text[start + 1 : place + 1]:
            if own >= 0:
                own = find(own_last, own_offsets[own], own_offsets[own + 1], token)
                h = find(last, offsets[h], offsets[h + 1], token)
        if own < 0 or own_offsets[own] == own_offsets[own + 1]:  # only its part knows the context
            break
        found, total, discounted = extensions_left(
            offsets[h], offsets[h + 1], last, counts, own_offsets[own], own_offsets[own + 1], own_last, own_counts,
            discounts[length], tokens if length == 1 else upper_tokens, probs if length == 1 else upper,
        )  # fmt: skip
        if total == 0:
            break
        left *= discounted / total
        if length == 1:
            n = found
            probs[:n] /= total
            for j in range(n):
                at[tokens[j]] = j
        else:
            probs[:n] *= discounted / total
            for j in range(found):
                probs[at[upper_tokens[j]]] += upper[j] / total
    return n, left


@nb.njit(cache=True, nogil=True)
def left_out_rows(
    text: Ints, places: Ints, parts: Ints, separator: int, last: Ints, counts: Ints, offsets: Ints,
    roots: Ints, own_last: Ints, own_counts: Ints, own_offsets: Ints, discounts: Floats,
    part: Ints, base: Floats, tempered: Floats, masses: Floats, power: float, most: int,
    tokens: Ints, probs: Floats, ends: Ints, rest: Floats,
) -> int:  # fmt: skip
    """Write the rows of what comes after ``text[place]`` without the part of each place, see `warmstart.left_out`.

    last, counts, offsets: n-grams of the whole; roots: first token of each part in own_last, own_counts, own_offsets,
    the n-grams of parts; discounts (order, 4); part (places,): rows of ``base`` and ``tempered`` (., V). Written are
    the entries of row i up to ``ends[i]``, ascending by token, and ``rest[i]``. Returns the number of entries.
    """
    size = base.shape[1]
    row_tokens, row, at = np.empty(size + 1, np.int32), np.empty(size + 1), np.empty(size, np.int32)
    upper_tokens, upper = np.empty(size + 1, np.int32), np.empty(size + 1)
    written = 0
    for i in range(places.size):
        n, left = left_out_row(
            text, places[i], separator, last, counts, offsets, roots[parts[i]], roots[parts[i] + 1],
            own_last, own_counts, own_offsets, discounts, row_tokens, row, upper_tokens, upper, at,
        )  # fmt: skip
        if power != 1.0:
            left = flatten(n, row_tokens, row, left, base[part[i]], tempered[part[i]], masses[part[i]], power)
        n, dropped = heaviest(n, row_tokens, row, most)
        tokens[written : written + n], probs[written : written + n] = row_tokens[:n], row[:n]
        written += n
        ends[i], rest[i] = written, left + dropped
    return written


@nb.njit(cache=True, nogil=True)
def dense_rows(
    tokens: Ints, probs: Floats, offsets: Ints, rest: Floats, part: Ints, base: Floats, scale: float, out: Floats
) -> None:
    """Write sparse rows, times a number, as dense ones (n, V), see `warmstart.left_out.SparseRows`."""
    factor = out.dtype.type(scale)
    for i in range(out.shape[0]):
        out[i] = base[part[i]] * (factor * out.dtype.type(rest[i]))
        for j in range(offsets[i], offsets[i + 1]):
            out[i, tokens[j]] += factor * out.dtype.type(probs[j])
