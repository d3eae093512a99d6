/* Matrix products: split into parts, each compiled once per shape and kept.
 *
 * Members of a batch run one after the other through one product.
 */
#include "kernels/gemm.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

typedef struct Compiled Compiled;
struct Compiled {
    GemmPart part;
    Product *product; /* NULL: the tiles compute it */
    Compiled *next;
};

enum { BUCKETS = 256 };
struct GemmCache {
    Library *library;
    Compiled *buckets[BUCKETS];
};

GemmCache *gemm_cache_open(void) {
    GemmCache *c = xcalloc(1, sizeof *c);
    c->library = library_open();
    return c;
}

void gemm_cache_close(GemmCache *c) {
    for (int i = 0; i < BUCKETS; i++)
        for (Compiled *p = c->buckets[i], *next; p; p = next) {
            next = p->next;
            if (p->product) product_free(p->product);
            free(p);
        }
    library_close(c->library);
    free(c);
}

/* NULL where the tiles are to compute the part. */
static Product *product_for(Library *l, const GemmPart *part) {
    Product *p = product_create(l, part);
    if (!p || product_stands_alone(p)) return p;
    product_free(p);
    return NULL;
}

static const Compiled *compiled(GemmCache *cache, const GemmPart *part) {
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < sizeof *part; i++)
        hash = (hash ^ ((const unsigned char *)part)[i]) * 1099511628211u;
    Compiled **bucket = &cache->buckets[hash % BUCKETS];
    for (Compiled *p = *bucket; p; p = p->next)
        if (!memcmp(&p->part, part, sizeof *part)) return p;
    Compiled *p = xcalloc(1, sizeof *p);
    p->part = *part;
    p->product = product_for(cache->library, part);
    p->next = *bucket;
    return *bucket = p;
}

static size_t workspace_of(const Compiled *c) {
    return c->product ? product_workspace(c->product) : tiles_workspace(&c->part);
}

/* The part of the sum that begins at `first`. */
static GemmPart part_of(const Gemm *g, int64_t first) {
    GemmPart p = {.m = g->m, .n = g->n, .lda = g->lda, .ldb = g->ldb, .ldc = g->ldc};
    p.k = g->k_is_rows ? MIN(ROW_CHUNK, g->k - first) : g->k;
    p.threads = omp_get_max_threads();
    p.alpha = (double)g->alpha;
    p.beta = first ? 1 : (double)g->beta;
    p.a_transposed = g->a_transposed;
    p.b_transposed = g->b_transposed;
    p.has_bias = g->has_bias && !first;
    return p;
}

void gemm_check(const Gemm *g) {
    CHECK(g->batch >= 1 && g->batch <= INT32_MAX, "gemm: a batch of %lld", (long long)g->batch);
    CHECK(!g->has_bias || g->beta == 0, "gemm: a bias comes with beta 0");
    CHECK(!g->sums || g->a_transposed, "gemm: sums over rows are of a transposed A");
    CHECK(!g->of_samples || !g->a_transposed || !g->b_transposed, "gemm: samples' columns");
    CHECK(!g->of_samples || !g->has_bias || g->b_transposed, "gemm: a gradient with a bias");
    if (!g->epilogue) return;
    CHECK(g->batch == 1 && g->beta == 0 && g->ldc == g->n && g->type_c == g->type,
          "gemm: an epilogue of %lld matrices [%lld,%lld], ldc %lld, beta %g", (long long)g->batch,
          (long long)g->m, (long long)g->n, (long long)g->ldc, (double)g->beta);
    CHECK(g->epilogue != EPILOGUE_GELU_GRAD || (g->aux && !g->has_bias),
          "gemm: a gradient of gelu without its input, or with a bias");
}

static void check_gemm(const Gemm *g) {
    check_type(g->type, "gemm");
    check_type(g->type_c, "gemm");
    gemm_check(g);
}

size_t cpu_gemm_workspace(Stream *s, const Gemm *g) {
    check_gemm(g);
    if (!g->m || !g->n || !g->k) return 0;
    if (g->of_samples) return samples_workspace(g);
    size_t bytes = 0;
    for (int64_t first = 0; first < g->k; first += g->k_is_rows ? ROW_CHUNK : g->k) {
        GemmPart part = part_of(g, first);
        bytes = MAX(bytes, workspace_of(compiled(s->gemms, &part)));
    }
    return bytes;
}

static void run_part(Stream *s, const GemmPart *part, const real *a, const real *b,
                     const real *bias, real *c) {
    const Compiled *p = compiled(s->gemms, part);
    CHECK(workspace_of(p) <= s->workspace_bytes, "gemm: needs %zu bytes of workspace, has %zu",
          workspace_of(p), s->workspace_bytes);
    if (p->product)
        product_run(s->gemms->library, p->product, a, b, bias, c, s->workspace);
    else
        tiles_run(part, a, b, bias, c, s->workspace);
}

/* An empty sum: C = bias + beta * C. */
static void fill(const Gemm *g, const real *bias, real *c) {
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t j = 0; j < g->n; j++)
            c[i * g->ldc + j] = kept(g->beta, c + i * g->ldc + j, bias ? bias[j] : 0);
}

static void multiply(Stream *s, const Gemm *g, const real *a, const real *b, const real *bias,
                     real *c) {
    if (!g->k) return fill(g, bias, c);
    if (g->of_samples) return samples_run(g, a, b, bias, c, s->workspace);
    for (int64_t first = 0; first < g->k; first += g->k_is_rows ? ROW_CHUNK : g->k) {
        GemmPart part = part_of(g, first);
        run_part(s, &part, a + first * (g->a_transposed ? g->lda : 1),
                 b + first * (g->b_transposed ? 1 : g->ldb), bias, c);
    }
}

void cpu_gemm(Stream *s, const Gemm *g, const void *a, const void *b, const void *bias, void *c) {
    check_gemm(g);
    for (int64_t i = 0; g->sums && i < g->batch; i++)
        cpu_column_sum(s, g->type, g->k, g->m, g->lda, (const real *)a + i * g->stride_a,
                       g->keep_sums, g->sums + i * g->m);
    if (!g->m || !g->n) return;
    void *u = g->epilogue == EPILOGUE_GELU && g->aux ? g->aux : c;
    for (int64_t i = 0; i < g->batch; i++)
        multiply(s, g, (const real *)a + i * g->stride_a, (const real *)b + i * g->stride_b,
                 g->has_bias ? (const real *)bias + i * g->stride_bias : NULL,
                 (real *)u + i * g->stride_c);
    if (g->epilogue == EPILOGUE_GELU && c) cpu_gelu(s, g->type, g->m * g->n, u, c);
    if (g->epilogue == EPILOGUE_GELU_GRAD) cpu_gelu_grad(s, g->type, g->m * g->n, g->aux, c, 0, c);
}
