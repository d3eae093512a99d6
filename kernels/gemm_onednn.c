/* Matrix products by the matmul primitive of oneDNN 2.x, compiled once per shape and kept.
 *
 * Members of a batch run one after the other through one primitive.
 */
#include "kernels/cpu.h"

#include <dnnl.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* All that a primitive depends on; compared byte by byte, so it has no padding and starts zeroed.
 */
typedef struct {
    int64_t m, n, k, lda, ldb, ldc;
    int64_t threads;
    float alpha, beta;
    int32_t a_transposed, b_transposed, has_bias, padding;
} Key;

typedef struct Product Product;
struct Product {
    Key key;
    Product *next;
    dnnl_primitive_t primitive;
    dnnl_memory_t a, b, bias, c, scratch;
    size_t scratch_bytes;
};

enum { BUCKETS = 256 };
struct GemmCache {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    Product *buckets[BUCKETS];
};

static void check(dnnl_status_t status, const char *call) {
    CHECK(status == dnnl_success, "gemm: oneDNN's %s returned %d", call, (int)status);
}

GemmCache *gemm_cache_open(void) {
    GemmCache *c = xcalloc(1, sizeof *c);
    check(dnnl_engine_create(&c->engine, dnnl_cpu, 0), "engine_create");
    check(dnnl_stream_create(&c->stream, c->engine, dnnl_stream_default_flags), "stream_create");
    return c;
}

static void product_free(Product *p) {
    dnnl_memory_t memories[] = {p->a, p->b, p->bias, p->c, p->scratch};
    for (size_t i = 0; i < COUNT(memories); i++)
        if (memories[i]) dnnl_memory_destroy(memories[i]);
    dnnl_primitive_destroy(p->primitive);
    free(p);
}

void gemm_cache_close(GemmCache *c) {
    for (int i = 0; i < BUCKETS; i++)
        for (Product *p = c->buckets[i], *next; p; p = next) {
            next = p->next;
            product_free(p);
        }
    dnnl_stream_destroy(c->stream);
    dnnl_engine_destroy(c->engine);
    free(c);
}

static dnnl_memory_desc_t matrix(int64_t rows, int64_t cols, int64_t ld, bool transposed) {
    dnnl_memory_desc_t d;
    dnnl_dims_t size = {rows, cols}, strides = {transposed ? 1 : ld, transposed ? ld : 1};
    check(dnnl_memory_desc_init_by_strides(&d, 2, size, dnnl_f32, strides), "memory_desc");
    return d;
}

/* oneDNN would scale its own bias by alpha too: with another alpha than 1, bias is a post op. */
static bool bias_after_alpha(const Key *k) { return k->has_bias && k->alpha != 1; }

/* op(A) op(B) (+ bias), then alpha times it (+ bias), then beta * C added. */
static dnnl_primitive_attr_t attributes(const Key *k, const dnnl_memory_desc_t *bias) {
    dnnl_primitive_attr_t attr;
    dnnl_post_ops_t post;
    check(dnnl_primitive_attr_create(&attr), "attr_create");
    check(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user), "scratchpad");
    check(dnnl_post_ops_create(&post), "post_ops_create");
    if (k->alpha != 1)
        check(dnnl_post_ops_append_eltwise(post, 1, dnnl_eltwise_linear, k->alpha, 0), "eltwise");
    if (bias_after_alpha(k))
        check(dnnl_post_ops_append_binary(post, dnnl_binary_add, bias), "binary");
    if (k->beta != 0) check(dnnl_post_ops_append_sum(post, k->beta), "sum");
    check(dnnl_primitive_attr_set_post_ops(attr, post), "set_post_ops");
    dnnl_post_ops_destroy(post);
    return attr;
}

static dnnl_memory_t memory_of(const dnnl_memory_desc_t *d, dnnl_engine_t engine) {
    dnnl_memory_t m;
    check(dnnl_memory_create(&m, d, engine, DNNL_MEMORY_NONE), "memory_create");
    return m;
}

static Product *product_create(GemmCache *cache, const Key *k) {
    Product *p = xcalloc(1, sizeof *p);
    p->key = *k;
    dnnl_memory_desc_t a = matrix(k->m, k->k, k->lda, k->a_transposed);
    dnnl_memory_desc_t b = matrix(k->k, k->n, k->ldb, k->b_transposed);
    dnnl_memory_desc_t c = matrix(k->m, k->n, k->ldc, false), bias = matrix(1, k->n, k->n, false);
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t plan;
    dnnl_primitive_attr_t attr = attributes(k, &bias);
    bool own_bias = k->has_bias && !bias_after_alpha(k);
    check(dnnl_matmul_desc_init(&desc, &a, &b, own_bias ? &bias : NULL, &c), "matmul_desc");
    check(dnnl_primitive_desc_create(&plan, &desc, attr, cache->engine, NULL), "primitive_desc");
    check(dnnl_primitive_create(&p->primitive, plan), "primitive_create");
    const dnnl_memory_desc_t *scratch =
        dnnl_primitive_desc_query_md(plan, dnnl_query_scratchpad_md, 0);
    p->scratch_bytes = dnnl_memory_desc_get_size(scratch);
    p->a = memory_of(&a, cache->engine);
    p->b = memory_of(&b, cache->engine);
    p->c = memory_of(&c, cache->engine);
    p->bias = memory_of(&bias, cache->engine);
    p->scratch = memory_of(scratch, cache->engine);
    dnnl_primitive_desc_destroy(plan);
    dnnl_primitive_attr_destroy(attr);
    return p;
}

static Product *product_get(GemmCache *cache, const Key *k) {
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < sizeof *k; i++)
        hash = (hash ^ ((const unsigned char *)k)[i]) * 1099511628211u;
    Product **bucket = &cache->buckets[hash % BUCKETS];
    for (Product *p = *bucket; p; p = p->next)
        if (!memcmp(&p->key, k, sizeof *k)) return p;
    Product *p = product_create(cache, k);
    p->next = *bucket;
    return *bucket = p;
}

/* The key of the part of the sum that begins at `first`. */
static Key key_of(const Gemm *g, int64_t first) {
    Key k = {.m = g->m, .n = g->n, .lda = g->lda, .ldb = g->ldb, .ldc = g->ldc};
    k.k = g->k_is_rows ? MIN(ROW_CHUNK, g->k - first) : g->k;
    k.threads = omp_get_max_threads();
    k.alpha = (float)g->alpha;
    k.beta = first ? 1 : (float)g->beta;
    k.a_transposed = g->a_transposed;
    k.b_transposed = g->b_transposed;
    k.has_bias = g->has_bias && !first;
    return k;
}

static void check_gemm(const Gemm *g) {
    check_type(g->type, "gemm");
    check_type(g->type_c, "gemm");
    CHECK(!g->has_bias || g->beta == 0, "gemm: a bias comes with beta 0");
}

size_t cpu_gemm_workspace(Stream *s, const Gemm *g) {
    check_gemm(g);
    if (!g->m || !g->n || !g->k) return 0;
    size_t bytes = 0;
    for (int64_t first = 0; first < g->k; first += g->k_is_rows ? ROW_CHUNK : g->k) {
        Key key = key_of(g, first);
        bytes = MAX(bytes, product_get(s->gemms, &key)->scratch_bytes);
    }
    return bytes;
}

static void product_run(Stream *s, const Product *p, const real *a, const real *b, const real *bias,
                        real *c) {
    CHECK(p->scratch_bytes <= s->workspace_bytes, "gemm: needs %zu bytes of workspace, has %zu",
          p->scratch_bytes, s->workspace_bytes);
    check(dnnl_memory_set_data_handle(p->a, (void *)a), "set_data_handle");
    check(dnnl_memory_set_data_handle(p->b, (void *)b), "set_data_handle");
    check(dnnl_memory_set_data_handle(p->c, c), "set_data_handle");
    check(dnnl_memory_set_data_handle(p->bias, (void *)bias), "set_data_handle");
    check(dnnl_memory_set_data_handle(p->scratch, s->workspace), "set_data_handle");
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, p->a},
                              {DNNL_ARG_WEIGHTS, p->b},
                              {DNNL_ARG_DST, p->c},
                              {DNNL_ARG_SCRATCHPAD, p->scratch},
                              {DNNL_ARG_BIAS, p->bias}};
    if (bias_after_alpha(&p->key)) args[4].arg = DNNL_ARG_ATTR_MULTIPLE_POST_OP(1) | DNNL_ARG_SRC_1;
    int count = (int)COUNT(args) - !p->key.has_bias;
    check(dnnl_primitive_execute(p->primitive, s->gemms->stream, count, args), "execute");
}

/* An empty sum: C = bias + beta * C. */
static void fill(const Gemm *g, const real *bias, real *c) {
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t j = 0; j < g->n; j++)
            c[i * g->ldc + j] = kept(g->beta, c + i * g->ldc + j, bias ? bias[j] : 0);
}

static void multiply(Stream *s, const Gemm *g, const real *a, const real *b, const real *bias,
                     real *c) {
    if (!g->k) fill(g, bias, c);
    for (int64_t first = 0; first < g->k; first += g->k_is_rows ? ROW_CHUNK : g->k) {
        Key key = key_of(g, first);
        product_run(s, product_get(s->gemms, &key), a + first * (g->a_transposed ? g->lda : 1),
                    b + first * (g->b_transposed ? 1 : g->ldb), bias, c);
    }
}

void cpu_gemm(Stream *s, const Gemm *g, const void *a, const void *b, const void *bias, void *c) {
    check_gemm(g);
    if (!g->m || !g->n) return;
    for (int64_t i = 0; i < g->batch; i++)
        multiply(s, g, (const real *)a + i * g->stride_a, (const real *)b + i * g->stride_b,
                 g->has_bias ? (const real *)bias + i * g->stride_bias : NULL,
                 (real *)c + i * g->stride_c);
}
