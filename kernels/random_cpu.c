/* Owns the draws of kernels/random.h, four elements to a Philox counter: one at a time by
 * Random123, and WIDE together. */
#include "kernels/cpu.h"
#include "kernels/math.h"
#include "kernels/random.h"

#include <Random123/philox.h>

static inline void draw_four(Draw d, int64_t group, uint32_t out[4]) {
    philox4x32_ctr_t counter = {{(uint32_t)group, d.ordinal, d.step, d.purpose}};
    philox4x32_key_t key = {{(uint32_t)d.seed, (uint32_t)(d.seed >> 32)}};
    philox4x32_ctr_t drawn = philox4x32(counter, key);
    for (int i = 0; i < 4; i++) out[i] = drawn.v[i];
}

/* Words of Philox in 64-bit lanes, a lane to a counter. What lies above a word's 32 bits is left
 * over, and does not count. */
enum { WORDS = VECTOR_BYTES / 8, WIDE = 2 * WORDS };
typedef uint64_t Words __attribute__((vector_size(VECTOR_BYTES)));
typedef int IntVector __attribute__((vector_size(VECTOR_BYTES)));
typedef uint64_t WordsAnywhere __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

static const uint64_t LOW = 0xffffffffu;

static inline void philox_round(Words x[4], uint32_t key0, uint32_t key1) {
    const Words m0 = (Words){0} + PHILOX_M4x32_0, m1 = (Words){0} + PHILOX_M4x32_1;
    Words p0 = (Words)LOW_PRODUCTS(x[0], m0), p1 = (Words)LOW_PRODUCTS(x[2], m1);
    Words x0 = p1 >> 32 ^ x[1] ^ key0, x2 = p0 >> 32 ^ x[3] ^ key1;
    x[0] = x0;
    x[1] = p1;
    x[2] = x2;
    x[3] = p0;
}

/* Counters' four words side by side: lane k of a and b, then lane k + 1. */
static inline void store_drawn(const Words x[4], uint32_t *out) {
    Words a = (x[0] & LOW) | x[1] << 32, b = (x[2] & LOW) | x[3] << 32, low, high;
    for (int k = 0; k < WORDS; k++) {
        low[k] = (uint64_t)(k / 2 + k % 2 * WORDS);
        high[k] = low[k] + WORDS / 2;
    }
    *(WordsAnywhere *)out = __builtin_shuffle(a, b, low);
    *(WordsAnywhere *)(out + 2 * WORDS) = __builtin_shuffle(a, b, high);
}

/* The words of counters [group, group + WIDE), in two vectors so that products need not be waited
 * for. */
static void draw_wide(Draw d, int64_t group, uint32_t *out) {
    Words lanes, ordinal = (Words){0} + d.ordinal, step = (Words){0} + d.step;
    Words purpose = (Words){0} + d.purpose;
    for (int k = 0; k < WORDS; k++) lanes[k] = (uint64_t)(group + k);
    Words x[4] = {lanes, ordinal, step, purpose}, z[4] = {lanes + WORDS, ordinal, step, purpose};
    uint32_t key0 = (uint32_t)d.seed, key1 = (uint32_t)(d.seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
        philox_round(x, key0, key1);
        philox_round(z, key0, key1);
        key0 += PHILOX_W32_0;
        key1 += PHILOX_W32_1;
    }
    store_drawn(x, out);
    store_drawn(z, out + 4 * WORDS);
}

static float uniform(uint32_t u) { return fmaf((float)(u >> 9), 0x1p-23f, 0x1p-24f); }

void random_bits(Draw d, int64_t first, int64_t n, uint32_t *out) {
    CHECK(first >= 0 && first + n <= INT64_C(4) << 32, "random: element %lld is out of range",
          (long long)(first + n));
    int64_t i = 0, head = MIN((4 - first % 4) % 4, n);
    uint32_t four[4];
    if (head) draw_four(d, first / 4, four);
    for (; i < head; i++) out[i] = four[(first + i) % 4];
    for (; i + 4 * WIDE <= n; i += 4 * WIDE) draw_wide(d, (first + i) / 4, out + i);
    for (; i + 4 <= n; i += 4) draw_four(d, (first + i) / 4, out + i);
    if (i < n) draw_four(d, (first + i) / 4, four);
    for (; i < n; i++) out[i] = four[(first + i) % 4];
}

enum { BLOCK = 512 };

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
