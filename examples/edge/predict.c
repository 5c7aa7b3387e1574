/* Read a table from a file and token ids from standard input, and print for the token after each of them
 * (and for the first; a separator begins a document) the most probable one, its probability, and that of the token which came: see README.md. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "warmstart.h"

static void *whole_file(const char *name, size_t *size) {
    void *content = NULL;
    FILE *file = fopen(name, "rb");
    if (!file) return NULL;
    if (!fseek(file, 0, SEEK_END)) {
        long end = ftell(file);
        *size = end < 0 ? 0 : (size_t)end;
        content = malloc(*size + 1);
        rewind(file);
        if (content && fread(content, 1, *size, file) != *size) *size = 0;
    }
    fclose(file);
    return content;
}

int main(int argc, char **argv) {
    static uint16_t document[1 << 18];
    size_t size = 0, n = 0;
    unsigned token, rows = 0;
    clock_t spent = 0;
    ws_model model;
    void *table = argc == 2 ? whole_file(argv[1], &size) : NULL;
    const char *problem = table ? ws_open(&model, table, size) : "expected the name of a table that can be read";
    if (problem) {
        fprintf(stderr, "%s\n", problem);
        free(table);
        return 1;
    }
    float *row = malloc(model.vocab_size * sizeof *row);
    uint32_t *counts = malloc(model.vocab_size * sizeof *counts);
    if (!row || !counts) return 1;
    for (int more = 1; more;) {
        clock_t began = clock();
        uint32_t best = ws_predict(&model, document, n, row, counts);
        spent += clock() - began, rows++;
        more = n < sizeof document / sizeof *document && scanf("%u", &token) == 1 && token < model.vocab_size;
        printf("%u %.9g", best, row[best]);
        if (more) {
            printf(" %.9g %.9g", row[token], ws_ngram_probability(&model, document, n, token));
            if (token == model.separator) n = 0; else document[n++] = (uint16_t)token;
        }
        printf("\n");
    }
    fprintf(stderr, "%.6f ms a token\n", 1000.0 * (double)spent / CLOCKS_PER_SEC / rows);
    free(counts), free(row), free(table);
    return 0;
}
