/* Group norm of channels-last rows, with all that follows it before a causal convolution: the
 * spatial norm's scale and shift, silu, and the frames of context. Two passes over the input: sums,
 * then everything else. */
#include "kernels/cpu.h"
#include "kernels/math.h"

#include <string.h>

/* The workspace: sums and sums of squares [chunks,2,C] in f64, then factor and term [2,C]. */
static int64_t chunks_of(const GroupNorm *n) {
    return (n->frames * n->height * n->width + ROW_CHUNK - 1) / ROW_CHUNK;
}

static int64_t sums_of(const GroupNorm *n) { return chunks_of(n) * 2 * n->channels; }

size_t cpu_group_norm_workspace(Stream *s, const GroupNorm *n) {
    (void)s;
    return (size_t)sums_of(n) * sizeof(double) + (size_t)n->channels * 2 * sizeof(real);
}

/* f64 holds the square of an f32 exactly, so that the variance may come from one pass. */
static void sum_chunk(const GroupNorm *n, int64_t chunk, double *restrict sum) {
    int64_t rows = n->frames * n->height * n->width, c = n->channels;
    int64_t first = chunk * ROW_CHUNK, last = MIN(first + ROW_CHUNK, rows);
    double *restrict squares = sum + c;
    memset(sum, 0, (size_t)c * 2 * sizeof *sum);
    for (int64_t i = first; i < last; i++) {
        const real *x = (const real *)n->x + i * c;
#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            double value = (double)x[j];
            sum[j] += value;
            squares[j] += value * value;
        }
    }
}

/* factor = rstd gamma and term = beta - mean rstd gamma of each channel. */
static void finish_stats(const GroupNorm *n, double *sums, real *factor, real *term) {
    int64_t c = n->channels, width = c / n->groups;
    double count = (double)(n->frames * n->height * n->width * width);
    for (int64_t chunk = 1; chunk < chunks_of(n); chunk++)
        for (int64_t j = 0; j < 2 * c; j++) sums[j] += sums[chunk * 2 * c + j];
    for (int64_t g = 0; g < n->groups; g++) {
        double sum = 0, squares = 0;
        for (int64_t j = g * width; j < (g + 1) * width; j++) {
            sum += sums[j];
            squares += sums[c + j];
        }
        double mean = sum / count, variance = squares / count - mean * mean;
        double rstd = 1 / __builtin_sqrt(MAX(variance, 0) + (double)n->eps);
        for (int64_t j = g * width; j < (g + 1) * width; j++) {
            double scaled = rstd * (double)((const real *)n->gamma)[j];
            factor[j] = (real)scaled;
            term[j] = (real)((double)((const real *)n->beta)[j] - mean * scaled);
        }
    }
}

/* The cell of the small grid that frame t, line h takes: its first column. */
static int64_t cell_line(const GroupNorm *n, int64_t t, int64_t h) {
    const int64_t *grid = n->grid;
    bool first_apart = n->frames > 1 && n->frames % 2 == 1;
    int64_t frame = !first_apart ? t * grid[0] / n->frames
                    : t          ? 1 + (t - 1) * (grid[0] - 1) / (n->frames - 1)
                                 : 0;
    return (frame * grid[1] + h * grid[1] / n->height) * grid[2];
}

static inline void norm_pixel(const real *restrict x, const real *restrict factor,
                              const real *restrict term, int64_t c, real *restrict y) {
#pragma omp simd
    for (int64_t j = 0; j < c; j++) y[j] = silu(x[j] * factor[j] + term[j]);
}

static inline void norm_pixel_at(const real *restrict x, const real *restrict factor,
                                 const real *restrict term, const real *restrict scale,
                                 const real *restrict shift, int64_t c, real *restrict y) {
#pragma omp simd
    for (int64_t j = 0; j < c; j++) y[j] = silu((x[j] * factor[j] + term[j]) * scale[j] + shift[j]);
}

static void norm_line(const GroupNorm *n, int64_t t, int64_t h, const real *factor,
                      const real *term, real *y) {
    int64_t c = n->channels, cell = n->scale ? cell_line(n, t, h) : 0;
    const real *x = (const real *)n->x + (t * n->height + h) * n->width * c;
    for (int64_t w = 0; w < n->width; w++, x += c, y += c) {
        if (!n->scale) {
            norm_pixel(x, factor, term, c, y);
            continue;
        }
        int64_t at = (cell + w * n->grid[2] / n->width) * c;
        norm_pixel_at(x, factor, term, (const real *)n->scale + at, (const real *)n->shift + at, c,
                      y);
    }
}

/* Line h of frame t of y has been written: it may be context too. */
static void spread_line(const GroupNorm *n, int64_t t, int64_t h, real *y) {
    int64_t line = n->width * n->channels, frame = n->height * line;
    size_t bytes = (size_t)line * sizeof *y;
    real *from = y + (CONTEXT + t) * frame + h * line;
    for (int64_t k = 0; t == 0 && k < CONTEXT; k++) {
        real *to = y + k * frame + h * line;
        memcpy(to, n->past ? (const real *)n->past + k * frame + h * line : from, bytes);
    }
    int64_t place = t - (n->frames - CONTEXT);
    real *next = n->next;
    if (next && place >= 0) memcpy(next + place * frame + h * line, from, bytes);
    if (next && n->frames == 1) memcpy(next + h * line, y + frame + h * line, bytes);
}

void cpu_group_norm(Stream *s, const GroupNorm *n, void *y) {
    check_type(n->t, "group_norm");
    CHECK(cpu_group_norm_workspace(s, n) <= s->workspace_bytes,
          "group_norm: needs %zu bytes of workspace", cpu_group_norm_workspace(s, n));
    double *sums = s->workspace;
    real *factor = (real *)(sums + sums_of(n)), *term = factor + n->channels;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < chunks_of(n); i++) sum_chunk(n, i, sums + i * 2 * n->channels);
    finish_stats(n, sums, factor, term);
    int64_t line = n->width * n->channels;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n->frames * n->height; i++) {
        norm_line(n, i / n->height, i % n->height, factor, term,
                  (real *)y + (CONTEXT * n->height + i) * line);
        spread_line(n, i / n->height, i % n->height, y);
    }
}
