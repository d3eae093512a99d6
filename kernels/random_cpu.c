/* Owns the draws of kernels/random.h, four elements to a Philox counter. */
#include "kernels/math.h"
#include "kernels/random.h"

#include <Random123/philox.h>

static inline void draw_four(Draw d, int64_t group, uint32_t out[4]) {
    philox4x32_ctr_t counter = {{(uint32_t)group, d.ordinal, d.step, d.purpose}};
    philox4x32_key_t key = {{(uint32_t)d.seed, (uint32_t)(d.seed >> 32)}};
    philox4x32_ctr_t drawn = philox4x32(counter, key);
    for (int i = 0; i < 4; i++) out[i] = drawn.v[i];
}

static float uniform(uint32_t u) { return fmaf((float)(u >> 9), 0x1p-23f, 0x1p-24f); }

void random_bits(Draw d, int64_t first, int64_t n, uint32_t *out) {
    CHECK(first >= 0 && first + n <= INT64_C(4) << 32, "random: element %lld is out of range",
          (long long)(first + n));
    int64_t i = 0, head = MIN((4 - first % 4) % 4, n);
    uint32_t four[4];
    if (head) draw_four(d, first / 4, four);
    for (; i < head; i++) out[i] = four[(first + i) % 4];
    for (; i + 4 <= n; i += 4) draw_four(d, (first + i) / 4, out + i);
    if (i < n) draw_four(d, (first + i) / 4, four);
    for (; i < n; i++) out[i] = four[(first + i) % 4];
}

enum { BLOCK = 256 };

void random_halves(Draw d, int64_t first, int64_t n, uint16_t *out) {
    CHECK(first % 2 == 0, "random: element %lld is odd", (long long)first);
    for (int64_t i = 0; i < n; i += 2 * BLOCK) {
        uint32_t bits[BLOCK];
        int64_t count = MIN(2 * BLOCK, n - i);
        random_bits(d, (first + i) / 2, (count + 1) / 2, bits);
        memcpy(out + i, bits, (size_t)count * sizeof *out); /* machines are little-endian */
    }
}

void random_uniform(Draw d, int64_t first, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i += BLOCK) {
        uint32_t bits[BLOCK];
        int64_t count = MIN(BLOCK, n - i);
        random_bits(d, first + i, count, bits);
        for (int64_t j = 0; j < count; j++) out[i + j] = uniform(bits[j]);
    }
}

void random_normal(Draw d, int64_t first, int64_t n, float *out) {
    for (int64_t i = first / 2 * 2; i < first + n; i += BLOCK) {
        uint32_t bits[BLOCK];
        float z[BLOCK];
        int64_t count = MIN(BLOCK, align_up(first + n - i, 2));
        random_bits(d, i, count, bits);
        for (int64_t j = 0; j < count; j += 2)
            normal_pair(uniform(bits[j]), uniform(bits[j + 1]), &z[j], &z[j + 1]);
        int64_t from = MAX(i, first), to = MIN(i + BLOCK, first + n);
        memcpy(out + (from - first), z + (from - i), (size_t)(to - from) * sizeof *out);
    }
}
