/* See warmstart.h. The tables are those of warmstart/edge/tables.py, the caches those of warmstart/cache.py, the gate that
 * of warmstart/gate.py. Every expert adds to one row, so the factor of its short contexts is found first. */
#include "warmstart.h"

#include <string.h>

enum { HEADER = 32, ENTRY = 40, CHECKED_FROM = 16, NAME = 20 };

static uint32_t u32(const uint8_t *at) {
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static uint32_t crc32(const uint8_t *bytes, size_t n) { /* four bits at a time, as in zlib */
    static const uint32_t table[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
                                       0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
                                       0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
    uint32_t sum = 0xffffffff;
    for (size_t i = 0; i < n; i++) {
        sum = table[(sum ^ bytes[i]) & 15] ^ sum >> 4;
        sum = table[(sum ^ bytes[i] >> 4) & 15] ^ sum >> 4;
    }
    return ~sum;
}

/* Return an array of the table by name and type, NULL if it is not there; count: its number of items. */
static const void *find_array(const uint8_t *table, size_t size, const char *name, const char *type, uint32_t *count) {
    uint32_t arrays = u32(table + 24), width = (uint32_t)(type[1] - '0');
    *count = 0;
    if (arrays > (size - HEADER) / ENTRY) return NULL;
    for (uint32_t i = 0; i < arrays; i++) {
        const uint8_t *entry = table + HEADER + ENTRY * i;
        if (strncmp((const char *)entry, name, NAME) || strncmp((const char *)entry + NAME, type, 4)) continue;
        uint32_t at = u32(entry + 24), n = u32(entry + 32);
        if (u32(entry + 28) || u32(entry + 36) || at % 4 || at > size || n > (size - at) / width) return NULL;
        *count = n;
        return table + at;
    }
    return NULL;
}

const char *ws_open(ws_model *m, const void *address, size_t size) {
    const uint8_t *table = address;
    const uint16_t one = 1;
    if (!*(const uint8_t *)&one) return "expected a little-endian processor";
    if ((uintptr_t)address % 4) return "expected a table at an address that is a multiple of 4";
    if (size < HEADER || memcmp(table, "WARMEDGE", 8)) return "expected a table of warmstart, got something else";
    if (u32(table + 8) != WS_VERSION) return "expected a table of version 1, got another version";
    if (u32(table + 16) != size || u32(table + 20)) return "expected the whole table, got another size";
    if (crc32(table + CHECKED_FROM, size - CHECKED_FROM) != u32(table + 12)) return "expected other bytes: damaged";

    uint32_t n, n_prior, n_gate, n_sizes, n_caches, n_last, n_own, n_offsets, n_counted, buckets = 1;
    const uint32_t *shape = find_array(table, size, "shape", "u4", &n);
    if (!shape || n != 3) return "expected the array shape, got none";
    memset(m, 0, sizeof *m);
    m->vocab_size = shape[0], m->separator = shape[1], m->order = shape[2];
    m->prior = find_array(table, size, "prior", "f4", &n_prior);
    m->gate_sizes = find_array(table, size, "gate.sizes", "u4", &n_sizes);
    m->gate = find_array(table, size, "gate", "f4", &n_gate);
    m->caches = find_array(table, size, "caches", "u4", &n_caches);
    const float *discount = find_array(table, size, "discount", "f4", &n);
    m->last = find_array(table, size, "ngrams.last", "u2", &n_last);
    m->own = find_array(table, size, "ngrams.own", "f4", &n_own);
    m->offsets = find_array(table, size, "ngrams.offsets", "u4", &n_offsets);
    m->counted = find_array(table, size, "ngrams.counted", "u1", &n_counted);
    if (!m->prior || n_prior != m->vocab_size || m->separator >= m->vocab_size || m->vocab_size > 65536 || !discount)
        return "expected at most 65536 tokens and a probability of each, got others";
    if (m->order > WS_ORDER || n_caches > 2 * WS_CACHES || n_sizes > WS_FEATURES || !n_sizes || !m->gate_sizes || !m->gate)
        return "expected a smaller order, and fewer caches and features; see warmstart.h";
    if (m->order) {
        uint32_t contexts = n_offsets ? n_offsets - 1 : 0;
        if (!m->last || !m->own || !m->offsets || !m->counted || n_own != n_last || n_counted != contexts ||
            n_last < m->vocab_size || (m->order > 1 && contexts < m->vocab_size))
            return "expected the four arrays of n-grams, got others";
        for (uint32_t i = 0; i < n_offsets; i++)
            if (m->offsets[i] > n_last || (i && m->offsets[i] < m->offsets[i - 1])) return "expected ascending offsets";
        for (uint32_t i = 0; i < n_last; i++)
            if (m->last[i] >= m->vocab_size) return "expected tokens of the vocabulary";
        m->n_contexts = contexts;
    }
    m->discount = *discount, m->n_features = n_sizes, m->n_caches = n_caches / 2;
    m->n_experts = (m->order > 0) + m->n_caches + 1;
    for (uint32_t i = 0; i < n_sizes; i++) {
        if (!m->gate_sizes[i] || m->gate_sizes[i] > n_gate) return "expected a gate with values of its features";
        buckets *= m->gate_sizes[i];
    }
    if (n_sizes != (m->n_caches ? 4u : 0u) + (m->order > 0) + 1 || (size_t)buckets * m->n_experts != n_gate)
        return "expected the gate of n-grams and caches, got another one; export the model with --format c";
    for (uint32_t i = 0; i < m->n_caches; i++)
        if (!m->caches[2 * i] || m->caches[2 * i] > WS_ORDER || !m->caches[2 * i + 1]) return "expected other caches";
    return NULL;
}

/* The n-gram h y, or its place if it is not there: *found tells. */
static uint32_t extension(const ws_model *m, uint32_t h, uint32_t y, int *found) {
    uint32_t low = m->offsets[h], high = m->offsets[h + 1], end = high;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (m->last[middle] < y) low = middle + 1; else high = middle;
    }
    *found = low < end && m->last[low] == y;
    return low;
}

/* Token number `age` before the next one, counted from 0; the separator stands before the document. */
static uint32_t before(const ws_model *m, const uint16_t *document, size_t n, size_t age) {
    return age < n ? document[n - 1 - age] : m->separator;
}

/* Write the n-grams that end the document and are in the tables, shortest first, with what each leaves to shorter ones. */
static uint32_t find_contexts(const ws_model *m, const uint16_t *document, size_t n, uint32_t *nodes, double *gammas) {
    uint32_t count = 0;
    for (uint32_t length = 1; length < m->order && length <= n + 1; length++) {
        uint32_t h = before(m, document, n, length - 1);
        int found = 1;
        for (uint32_t age = length - 1; found && h < m->n_contexts && age-- > 0;) h = extension(m, h, before(m, document, n, age), &found);
        if (!found || h >= m->n_contexts) break;
        double left = 1.0;
        for (uint32_t i = m->offsets[h]; i < m->offsets[h + 1]; i++) left -= m->own[i];
        nodes[count] = h;
        gammas[count++] = left > 0 ? left : 0;
    }
    return count;
}

float ws_ngram_probability(const ws_model *m, const uint16_t *document, size_t n, uint32_t token) {
    uint32_t nodes[WS_ORDER];
    double gammas[WS_ORDER], p;
    if (!m->order || token >= m->vocab_size) return 0;
    uint32_t count = find_contexts(m, document, n, nodes, gammas);
    p = m->own[token];
    for (uint32_t k = 0; k < count; k++) {
        int found;
        uint32_t place = extension(m, nodes[k], token, &found);
        p = gammas[k] * p + (found ? m->own[place] : 0);
    }
    return (float)p;
}

static void add_ngrams(const ws_model *m, const uint32_t *nodes, const double *gammas, uint32_t count, double weight,
                       float *row) {
    while (count-- > 0) {
        for (uint32_t i = m->offsets[nodes[count]]; i < m->offsets[nodes[count] + 1]; i++)
            row[m->last[i]] += (float)(weight * m->own[i]);
        weight *= gammas[count];
    }
    for (uint32_t y = 0; y < m->vocab_size; y++) row[y] += (float)(weight * m->own[y]);
}

/* Whether the last k tokens stand before document[j] too. */
static int follows(const uint16_t *document, size_t n, size_t j, uint32_t k) {
    if (j < k) return 0;
    for (uint32_t age = 1; age <= k; age++)
        if (document[j - age] != document[n - age]) return 0;
    return 1;
}

/* Count what followed the last k tokens within a cache: counts[vocab_size], zeros before. Return how many did; types: how
 * many different ones. */
static uint32_t count_followers(const uint16_t *document, size_t n, size_t size, uint32_t k, uint32_t *types,
                                uint32_t *counts) {
    uint32_t total = 0;
    *types = 0;
    for (size_t j = n > size ? n - size : 0; j < n; j++)
        if (follows(document, n, j, k)) {
            total++;
            *types += !counts[document[j]]++;
        }
    return total;
}

/* Set the counts back to zeros, and add (count - discount) scale of every token to its place in a row, if there is one. */
static void use_counts(const uint16_t *document, size_t n, size_t size, float discount, double scale, float *row,
                       uint32_t *counts) {
    for (size_t j = n > size ? n - size : 0; j < n; j++) {
        uint32_t y = document[j];
        if (row && counts[y]) row[y] += (float)(((double)counts[y] - discount) * scale);
        counts[y] = 0;
    }
}

static void add_cache(const ws_model *m, const uint16_t *document, size_t n, size_t size, uint32_t known,
                      double weight, float *row, uint32_t *counts) {
    for (uint32_t k = known; k-- > 0;) {
        uint32_t types, total = count_followers(document, n, size, k, &types, counts);
        use_counts(document, n, size, m->discount, weight / total, row, counts);
        weight *= (double)m->discount * types / total;
    }
    for (uint32_t y = 0; y < m->vocab_size; y++) row[y] += (float)(weight / m->vocab_size);
}

static uint32_t bits(uint32_t number) {
    uint32_t n = 0;
    for (; number; number >>= 1) n++;
    return n;
}

uint32_t ws_predict(const ws_model *m, const uint16_t *document, size_t n, float *row, uint32_t *counts) {
    uint32_t nodes[WS_ORDER], known[WS_CACHES], features[WS_FEATURES], f = 0, bucket = 0, counted = 0, best = 0;
    uint32_t types = 0, total = 0;
    double gammas[WS_ORDER];
    uint32_t contexts = find_contexts(m, document, n, nodes, gammas);
    for (uint32_t k = 0; k < contexts; k++) counted += m->counted[nodes[k]];
    memset(counts, 0, m->vocab_size * sizeof *counts);
    for (uint32_t c = 0; c < m->n_caches; c++) /* known: contexts that something followed, the empty one among them */
        for (known[c] = 0; known[c] < m->caches[2 * c] && known[c] <= n; known[c]++) {
            uint32_t size = m->caches[2 * c + 1], other, all = count_followers(document, n, size, known[c], &other, counts);
            use_counts(document, n, size, 0, 0, NULL, counts);
            if (!all) break;
            if (!c) types = other, total = all; /* of the longest one */
        }
    if (m->n_caches) {
        features[f++] = known[0] ? known[0] - 1 : 0;
        features[f++] = bits(types);
        features[f++] = bits(total);
        features[f++] = m->n_caches > 1 && known[1] ? known[1] - 1 : 0;
    }
    if (m->order) features[f++] = counted;
    features[f++] = bits(before(m, document, n, 0)) / 2;
    for (uint32_t i = 0; i < f; i++) {
        uint32_t most = m->gate_sizes[i] - 1;
        bucket = bucket * m->gate_sizes[i] + (features[i] < most ? features[i] : most);
    }
    const float *weights = m->gate + (size_t)bucket * m->n_experts;
    for (uint32_t y = 0; y < m->vocab_size; y++) row[y] = weights[m->n_experts - 1] * m->prior[y];
    if (m->order) add_ngrams(m, nodes, gammas, contexts, *weights++, row);
    for (uint32_t c = 0; c < m->n_caches; c++)
        add_cache(m, document, n, m->caches[2 * c + 1], known[c], *weights++, row, counts);
    for (uint32_t y = 1; y < m->vocab_size; y++)
        if (row[y] > row[best]) best = y;
    return best;
}
