/* Any bytes into the safetensors reader. The corpus is the files of cases.jsonl that have a name of
 * their own (not the mutants), below 1 KiB. */
#include "data/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

/* What is true of every accepted file; reads each byte through the tensors that hold it. */
static void check(const Safetensors *s) {
    size_t end = 8 + s->header_bytes;
    unsigned sum = 0;
    for (size_t i = 0; i < s->n_tensors; i++) {
        const SafetensorsTensor *t = &s->tensors[i];
        CHECK(safetensors_find(s, t->name) == t, "%s", t->name);
        CHECK(t->name[0] && t->n_dims >= 0 && t->n_dims <= SAFETENSORS_MAX_DIMS, "%s", t->name);
        size_t bits = (size_t)t->bits;
        for (int d = 0; d < t->n_dims; d++) bits *= (size_t)t->shape[d];
        CHECK(bits == t->bytes * 8, "%s", t->name);
        for (size_t k = 0; k < t->bytes; k++) sum += ((const uint8_t *)t->data)[k];
        end += t->bytes;
    }
    CHECK(end == s->n_bytes, "%zu bytes of %zu, sum %u", end, s->n_bytes, sum);
    for (size_t i = 0; i < s->n_metadata; i++)
        CHECK(safetensors_metadata(s, s->metadata[i].key), "%s", s->metadata[i].key);
}

static void parse(const uint8_t *bytes, size_t n) {
    Safetensors s;
    Error e = {0};
    bool accepted = safetensors_parse(&s, bytes, n, "fuzz", &e);
    CHECK(accepted == !e.exit_code && accepted == (s.path != NULL), "%s", e.text);
    if (accepted) {
        check(&s);
        safetensors_verify(&s, &e);
    }
    safetensors_close(&s);
}

/* The bytes as they are, and with a header length that fits: up to the last brace. Blind changes
 * would seldom keep the two together. */
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    parse(bytes, n);
    if (n < 8) return 0;
    uint8_t *fitted = memcpy(xcalloc(n, 1), bytes, n);
    size_t end = n;
    while (end > 8 && bytes[end - 1] != '}') end--;
    for (int i = 0; i < 8; i++) fitted[i] = (uint8_t)((end - 8) >> 8 * i);
    parse(fitted, n);
    free(fitted);
    return 0;
}
