/* Kernels that move rows and patches to other places. */
#include "kernels/cpu.h"

#include <string.h>

/* y = keep * y + x over one row. */
static inline void put_row(const real *x, int64_t width, real keep, real *y) {
    if (keep == 0)
        memcpy(y, x, (size_t)width * sizeof *y);
    else
        for (int64_t j = 0; j < width; j++) y[j] = kept(keep, y + j, x[j]);
}

void cpu_join(Stream *s, DType t, int64_t rows, int64_t width, const int32_t *source,
              const void *text, const void *video, void *y) {
    (void)s;
    check_type(t, "join");
#pragma omp parallel for schedule(static) if (rows * width >= PARALLEL_MIN)
    for (int64_t i = 0; i < rows; i++) {
        int64_t from = source[i];
        const real *x = from >= 0 ? (const real *)text + from * width
                                  : (const real *)video + (-1 - from) * width;
        put_row(x, width, 0, (real *)y + i * width);
    }
}

void cpu_split(Stream *s, DType t, int64_t rows, int64_t width, const int32_t *source,
               const void *dy, real keep_text, void *dtext, real keep_video, void *dvideo) {
    (void)s;
    check_type(t, "split");
#pragma omp parallel for schedule(static) if (rows * width >= PARALLEL_MIN)
    for (int64_t i = 0; i < rows; i++) {
        int64_t to = source[i];
        const real *grad = (const real *)dy + i * width;
        if (to >= 0 && dtext) put_row(grad, width, keep_text, (real *)dtext + to * width);
        if (to < 0 && dvideo) put_row(grad, width, keep_video, (real *)dvideo + (-1 - to) * width);
    }
}

void cpu_gather_rows(Stream *s, DType t, int64_t n, int64_t width, const int32_t *index,
                     const void *x, void *y) {
    (void)s;
    check_type(t, "gather_rows");
#pragma omp parallel for schedule(static) if (n * width >= PARALLEL_MIN)
    for (int64_t i = 0; i < n; i++)
        put_row((const real *)x + index[i] * width, width, 0, (real *)y + i * width);
}

/* Rows [first, last) of zeros. */
static void clear_rows(real *x, int64_t first, int64_t last, int64_t width) {
    if (first < last) memset(x + first * width, 0, (size_t)((last - first) * width) * sizeof *x);
}

static bool rising(int64_t n, const int32_t *index) {
    for (int64_t i = 1; i < n; i++)
        if (index[i] <= index[i - 1]) return false;
    return true;
}

void cpu_scatter_rows(Stream *s, DType t, int64_t n, int64_t rows, int64_t width,
                      const int32_t *index, const void *dy, real keep, void *dx) {
    (void)s;
    check_type(t, "scatter_rows");
    bool gaps =
        keep == 0 && rising(n, index); /* then whoever writes a row clears those before it */
    if (keep == 0) clear_rows(dx, gaps && n ? index[n - 1] + 1 : 0, rows, width);
#pragma omp parallel for schedule(static) if (n * width >= PARALLEL_MIN)
    for (int64_t i = 0; i < n; i++) {
        if (gaps) clear_rows(dx, i ? index[i - 1] + 1 : 0, index[i], width);
        put_row((const real *)dy + i * width, width, keep, (real *)dx + index[i] * width);
    }
}

/* Between one row of latents and the same patches' columns in a line of rows. */
static void move_line(const Patch *p, bool to_rows, const real *from, real keep, real *to) {
    int64_t row = p->row_width, patch = p->patch;
    for (int64_t w = 0; w < p->width / patch; w++)
        for (int64_t j = 0; j < patch; j++) {
            const real *x = from + (to_rows ? w * patch : w * row) + j;
            real *y = to + (to_rows ? w * row : w * patch) + j;
            *y = kept(keep, y, *x);
        }
}

/* Asks for n elements ahead of their use: the pieces that patches move are too short for the memory
 * to foresee the next. */
static inline void fetch(const real *x, int64_t n) {
    for (int64_t i = 0; i < n; i += 64 / (int64_t)sizeof *x) __builtin_prefetch(x + i);
}

/* Patches of 2 x 2 and nothing kept: a channel's four values are neighbours in their row. The
 * latents are the upper of two lines. */
static void move_squares(const Patch *p, bool to_rows, const real *restrict from,
                         real *restrict to) {
    int64_t pairs = p->width / 2, row = p->row_width, width = p->width;
    enum { PAIR = 2 * sizeof(real) };
    fetch((to_rows ? from : to) + 2 * width, 2 * width); /* the next strip's lines of this plane */
    for (int64_t w = 0; w < pairs && to_rows; w++) {
        memcpy(to + w * row, from + 2 * w, PAIR);
        memcpy(to + w * row + 2, from + width + 2 * w, PAIR);
    }
    for (int64_t w = 0; w < pairs && !to_rows; w++) {
        memcpy(to + 2 * w, from + w * row, PAIR);
        memcpy(to + width + 2 * w, from + w * row + 2, PAIR);
    }
}

/* One line of patches: frame f, row h of the grid. */
static void move_strip(const Patch *p, int64_t f, int64_t h, bool to_rows, const real *from,
                       real keep, real *to) {
    int64_t across = p->width / p->patch, down = p->height / p->patch, patch = p->patch;
    int64_t column = (f * down + h) * across * p->row_width + p->offset;
    int64_t planes = p->channels * p->patch_t, strip = across * p->row_width;
    bool squares = patch == 2 && keep == 0;
    const real *next = (to_rows ? to : from) + (f * down + h + 1) * strip;
    for (int64_t c = 0; c < p->channels; c++)
        for (int64_t a = 0; a < p->patch_t; a++, column += patch * patch) {
            int64_t plane = (f * p->patch_t + a) * p->channels + c;
            int64_t latent = (plane * p->height + h * patch) * p->width;
            if (squares) {
                fetch(next + (c * p->patch_t + a) * (strip / planes), strip / planes);
                move_squares(p, to_rows, from + (to_rows ? latent : column),
                             to + (to_rows ? column : latent));
            }
            for (int64_t i = 0; i < (squares ? 0 : patch); i++) {
                int64_t line = latent + i * p->width, place = column + i * patch;
                move_line(p, to_rows, from + (to_rows ? line : place), keep,
                          to + (to_rows ? place : line));
            }
        }
}

static void move_patches(const Patch *p, bool to_rows, const real *from, real keep, real *to) {
    check_type(p->t, to_rows ? "patchify" : "unpatchify");
    CHECK(p->frames % p->patch_t == 0 && p->height % p->patch == 0 && p->width % p->patch == 0,
          "patches of %lld x %lld do not tile [%lld,%lld,%lld]", (long long)p->patch_t,
          (long long)p->patch, (long long)p->frames, (long long)p->height, (long long)p->width);
    int64_t elements = p->frames * p->height * p->width;
    int64_t down = p->height / p->patch, strips = p->frames / p->patch_t * down;
#pragma omp parallel for schedule(static) if (elements * p->channels >= PARALLEL_MIN)
    for (int64_t i = 0; i < strips; i++) move_strip(p, i / down, i % down, to_rows, from, keep, to);
}

void cpu_patchify(Stream *s, const Patch *p, const void *x, real keep, void *rows) {
    (void)s;
    move_patches(p, true, x, keep, rows);
}

void cpu_unpatchify(Stream *s, const Patch *p, const void *rows, real keep, void *x) {
    (void)s;
    move_patches(p, false, rows, keep, x);
}

static inline void add_part(const real *x, const real *table, int64_t n, real *y) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) y[j] = x[j] + table[j];
}

void cpu_add_axes(Stream *s, DType t, const int64_t size[3], const int64_t widths[3],
                  const void *tf, const void *tw, const void *th, int64_t first, int64_t rows,
                  const void *x, void *y) {
    (void)s;
    check_type(t, "add_axes");
    int64_t df = widths[0], dw = widths[1], dh = widths[2], width = df + dw + dh;
#pragma omp parallel for schedule(static) if (rows * width >= PARALLEL_MIN)
    for (int64_t i = 0; i < rows; i++) {
        int64_t at = first + i;
        int64_t w = at % size[2], h = at / size[2] % size[1], f = at / size[2] / size[1];
        const real *from = (const real *)x + i * width;
        real *to = (real *)y + i * width;
        add_part(from, (const real *)tf + f * df, df, to);
        add_part(from + df, (const real *)tw + w * dw, dw, to + df);
        add_part(from + df + dw, (const real *)th + h * dh, dh, to + df + dw);
    }
}
