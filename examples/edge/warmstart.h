/* Predict the next token from a table of `warmstart export MODEL --format c -o FILE`, where it lies: in flash or in a file
 * that is mapped. C99, little-endian, no other library, no memory of its own. See README.md. */
#ifndef WARMSTART_H
#define WARMSTART_H

#include <stddef.h>
#include <stdint.h>

#define WS_VERSION 1
#define WS_CACHES 3 /* most caches of a document, and most features of the gate */
#define WS_FEATURES 6
#define WS_ORDER 8 /* longest n-gram */

typedef struct {
    uint32_t vocab_size, separator, order; /* order 0: without n-grams */
    const uint16_t *last;                  /* last token of every n-gram */
    const float *own;                      /* its own part of the probability */
    const uint32_t *offsets;               /* numbers of the extensions of every context */
    const uint8_t *counted;                /* whether the text had an extension of it */
    const float *prior;                    /* (vocab_size) of the unigram model */
    const float *gate;                     /* (buckets, experts) */
    const uint32_t *gate_sizes;            /* (n_features) */
    const uint32_t *caches;                /* (n_caches, 2): order and size */
    uint32_t n_contexts, n_features, n_caches, n_experts;
    float discount;
} ws_model;

/* Set a model to a table of `size` bytes at an address that is a multiple of 4. The whole table is read once, for its
 * checksum. Returns NULL, or what is wrong. */
const char *ws_open(ws_model *model, const void *table, size_t size);

/* Write the probability of every token to come next to row[vocab_size]; they sum to 1.
 * document[n]: the tokens since the last separator, oldest first, none of them the separator; of a long document the
 * newest ones do, but the caches then know only these. counts[vocab_size]: room to work in. Returns the most probable
 * token. */
uint32_t ws_predict(const ws_model *model, const uint16_t *document, size_t n, float *row, uint32_t *counts);

/* The probability of a token by the n-grams alone, which needs no room. */
float ws_ngram_probability(const ws_model *model, const uint16_t *document, size_t n, uint32_t token);

#endif
