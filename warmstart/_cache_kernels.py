"""Compiled inner loops of the cache: a tree of n-grams from which the oldest targets leave again.

A node is an n-gram; its parent is the n-gram without its last token, and node 0, the root, is the empty one. A node is
also the context of its children. It is a row of eight int32:

| column | meaning |
|---|---|
| `PARENT`, `TOKEN` | the context of the n-gram and its last token |
| `COUNT` | targets in the cache that end this n-gram; 0 for the root |
| `TOTAL`, `TYPES` | targets in the cache that follow it as a context, and different tokens among them |
| `FIRST` | its first child; 0 if there is none |
| `NEXT`, `PREVIOUS` | its neighbours in the list of its parent's children; 0 at the ends |

``slots`` finds the child of a node: a hash table of nodes by parent and token, open addressing with linear probing, at
most half full; 0 is a free slot. A node lives while it is counted or has a child. So at most
``(size + order) order`` nodes live, the root left out: those of the targets in the cache and of one more, and of the
``order - 1`` tokens before them. A node keeps its place while it lives; then the place is used again. ``ring[i]`` holds
the nodes of the target that was written i-th, modulo its size, shortest n-gram first. ``contexts[k]`` is the node of
the last k tokens. N-grams with the separator are not kept: it stands only at the start, so they are never asked for.
"""

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]

PARENT, TOKEN, COUNT, TOTAL, TYPES, FIRST, NEXT, PREVIOUS = range(8)  # columns of nodes
USED, FREE, WRITTEN = range(3)  # of state: places used so far, first free place among them, targets of the document


@nb.njit(cache=True, nogil=True)
def _home(slots: Ints, parent: int, token: int) -> Any:
    """Return the slot at which the search for a child begins: a hash."""
    x = (np.uint64(parent) << np.uint64(32) | np.uint64(token)) * np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(32)
    return np.int64((x * np.uint64(0xD6E8FEB86659FD93)) >> np.uint64(32)) & (slots.size - 1)  # 32 good bits


@nb.njit(cache=True, nogil=True)
def _find(slots: Ints, nodes: Ints, parent: int, token: int) -> Any:
    """Return a child of a node, or 0."""
    slot = _home(slots, parent, token)
    while slots[slot]:
        node = slots[slot]
        if nodes[node, PARENT] == parent and nodes[node, TOKEN] == token:
            return node
        slot = (slot + 1) & (slots.size - 1)
    return 0


@nb.njit(cache=True, nogil=True)
def _insert(slots: Ints, nodes: Ints, state: Ints, parent: int, token: int) -> Any:
    """Add a child, which the node does not have yet, and return it."""
    node = state[FREE]
    if node:
        state[FREE] = nodes[node, NEXT]
    else:
        state[USED] += 1
        node = state[USED]
    slot = _home(slots, parent, token)
    while slots[slot]:
        slot = (slot + 1) & (slots.size - 1)
    slots[slot] = node
    first = nodes[parent, FIRST]
    nodes[parent, FIRST] = node
    nodes[first, PREVIOUS] = node  # of the root, where it means nothing, if there is no first
    nodes[node] = 0
    nodes[node, PARENT], nodes[node, TOKEN], nodes[node, NEXT] = parent, token, first
    return node


@nb.njit(cache=True, nogil=True)
def _remove(slots: Ints, nodes: Ints, state: Ints, node: int) -> None:
    """Take a node without children out of the tree. Later slots of its run move up, so that no gap breaks the run."""
    parent, after, before = nodes[node, PARENT], nodes[node, NEXT], nodes[node, PREVIOUS]
    if before:
        nodes[before, NEXT] = after
    else:
        nodes[parent, FIRST] = after
    nodes[after, PREVIOUS] = before
    nodes[node, NEXT] = state[FREE]
    state[FREE] = node

    last = slots.size - 1
    gap = _home(slots, parent, nodes[node, TOKEN])
    while slots[gap] != node:
        gap = (gap + 1) & last
    slot = (gap + 1) & last
    while slots[slot]:
        home = _home(slots, nodes[slots[slot], PARENT], nodes[slots[slot], TOKEN])
        if (slot - home) & last >= (slot - gap) & last:
            slots[gap] = slots[slot]
            gap = slot
        slot = (slot + 1) & last
    slots[gap] = 0


@nb.njit(cache=True, nogil=True)
def _withdraw(slots: Ints, nodes: Ints, state: Ints, node: int) -> None:
    """Count a node once less; remove it, and the contexts that stood only for it, when nothing is left of them."""
    parent = nodes[node, PARENT]
    nodes[node, COUNT] -= 1
    nodes[parent, TOTAL] -= 1
    nodes[parent, TYPES] -= nodes[node, COUNT] == 0
    while node and nodes[node, COUNT] == 0 and nodes[node, FIRST] == 0:
        parent = nodes[node, PARENT]
        _remove(slots, nodes, state, node)
        node = parent


@nb.njit(cache=True, nogil=True)
def _empty(slots: Ints, nodes: Ints, state: Ints) -> None:
    """Begin a document. The work grows with the places used since the last one began, not with the size of the table.

    Every node stands in the run of full slots that begins at its home, or a part of this run was emptied before.
    """
    for node in range(1, state[USED] + 1):
        slot = _home(slots, nodes[node, PARENT], nodes[node, TOKEN])
        while slots[slot]:
            slots[slot] = 0
            slot = (slot + 1) & (slots.size - 1)
    nodes[0] = 0
    state[:] = 0


@nb.njit(cache=True, nogil=True)
def read(
    tokens: Ints, separator: int,
    slots: Ints, nodes: Ints, ring: Ints, contexts: Ints, state: Ints,
    counts: Ints, position: Ints,
) -> None:  # fmt: skip
    """For every token write its counts and its position, and then add it to the cache.

    tokens, position (n,); slots (a power of 2,); nodes (places, 8); ring (size, order); contexts (order,); state (3,);
    counts (n, order, 3): of the n-gram, of its context, and the different tokens after the context.
    """
    size, order = ring.shape
    children = np.empty(order, np.int64)
    for n in range(tokens.size):
        y = tokens[n]
        written = state[WRITTEN]
        known = min(order, written + 1)  # contexts without the separator
        position[n] = written
        counts[n] = 0
        for k in range(known):
            parent, child = contexts[k], _find(slots, nodes, contexts[k], y)
            children[k] = child
            counts[n, k, 0] = nodes[child, COUNT]
            counts[n, k, 1] = nodes[parent, TOTAL]
            counts[n, k, 2] = nodes[parent, TYPES]
        if y == separator:
            _empty(slots, nodes, state)
            continue
        for k in range(known):
            child = children[k] or _insert(slots, nodes, state, contexts[k], y)
            children[k] = child
            nodes[contexts[k], TOTAL] += 1
            nodes[contexts[k], TYPES] += nodes[child, COUNT] == 0
            nodes[child, COUNT] += 1
        for k in range(1, min(order, known + 1)):
            contexts[k] = children[k - 1]
        oldest = ring[written % size]
        if written >= size:  # only now, so that no context of the new target was removed
            for k in range(min(order, written - size + 1) - 1, -1, -1):
                _withdraw(slots, nodes, state, oldest[k])
        for k in range(known):
            oldest[k] = children[k]
        state[WRITTEN] = written + 1


@nb.njit(cache=True, nogil=True)
def row(nodes: Ints, contexts: Ints, discount: float, out: NDArray[np.float64]) -> None:
    """Turn ``out`` (V,), the distribution below the empty context, into that of the next token."""
    for k in range(contexts.size):
        total = nodes[contexts[k], TOTAL]
        if total == 0:
            break  # nothing followed longer ones either; the whole document so far is such a context at the latest
        out *= discount * nodes[contexts[k], TYPES] / total
        child = nodes[contexts[k], FIRST]
        while child:
            if nodes[child, COUNT]:
                out[nodes[child, TOKEN]] += (nodes[child, COUNT] - discount) / total
            child = nodes[child, NEXT]


@nb.njit(cache=True, nogil=True)
def count(tokens: Ints, separator: int, end: int, size: int, contexts: Ints, counts: Ints, seen: Ints) -> Any:
    """Count the targets in a cache that followed the last tokens up to ``end``, without a tree.

    tokens (m,): a document begins at the last separator; contexts (order, 2): targets that followed each context, and
    different ones among them; counts (V, at least order), zeros before: by target; seen (V,): the different targets,
    whose number is returned.
    """
    begin = end
    while begin > max(0, end - size - len(contexts)) and tokens[begin] != separator:
        begin -= 1
    contexts[:] = 0
    n = 0
    for j in range(max(begin, end - size) + 1, end + 1):
        y = tokens[j]
        if counts[y, 0] == 0:
            seen[n] = y
            n += 1
        for k in range(len(contexts)):
            if k > 0 and (j - k <= begin or tokens[j - k] != tokens[end + 1 - k]):
                break
            contexts[k, 0] += 1
            contexts[k, 1] += counts[y, k] == 0
            counts[y, k] += 1
    return n


@nb.njit(cache=True, nogil=True)
def add_row(contexts: Ints, counts: Ints, seen: Ints, discount: float, weight: float, out: NDArray[Any]) -> Any:
    """Add the distribution of a cache, times a weight, to that of its targets; return what every token gets besides.

    contexts (order, 2), counts (V, order), seen (n,): of `count`, whose counts are set back to 0; out (V,).
    """
    unseen = 1.0 / out.size
    for k in range(len(contexts)):
        if contexts[k, 0]:
            unseen *= discount * contexts[k, 1] / contexts[k, 0]
    for y in seen:
        p = 1.0 / out.size
        for k in range(len(contexts)):
            if contexts[k, 0]:
                p = (max(counts[y, k] - discount, 0.0) + discount * contexts[k, 1] * p) / contexts[k, 0]
        out[y] += weight * (p - unseen)
        counts[y] = 0
    return weight * unseen
