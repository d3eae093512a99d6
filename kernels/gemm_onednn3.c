/* Matrix products by the matmul primitive of oneDNN 3.x. */
#include "kernels/gemm.h"

#include <dnnl.h>
#include <stdlib.h>
#include <string.h>

struct Library {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
};

struct Product {
    dnnl_primitive_t primitive;
    dnnl_memory_t a, b, bias, c, scratch;
    size_t scratch_bytes;
    int bias_arg; /* 0: no bias */
    bool stands_alone;
};

static void check(dnnl_status_t status, const char *call) {
    CHECK(status == dnnl_success, "gemm: oneDNN's %s returned %d", call, (int)status);
}

Library *library_open(void) {
    Library *l = xcalloc(1, sizeof *l);
    check(dnnl_engine_create(&l->engine, dnnl_cpu, 0), "engine_create");
    check(dnnl_stream_create(&l->stream, l->engine, dnnl_stream_default_flags), "stream_create");
    return l;
}

void library_close(Library *l) {
    dnnl_stream_destroy(l->stream);
    dnnl_engine_destroy(l->engine);
    free(l);
}

void product_free(Product *p) {
    dnnl_memory_t memories[] = {p->a, p->b, p->bias, p->c, p->scratch};
    for (size_t i = 0; i < COUNT(memories); i++) dnnl_memory_destroy(memories[i]);
    dnnl_primitive_destroy(p->primitive);
    free(p);
}

size_t product_workspace(const Product *p) { return p->scratch_bytes; }

bool product_stands_alone(const Product *p) { return p->stands_alone; }

static dnnl_memory_desc_t matrix(int64_t rows, int64_t cols, int64_t ld, bool transposed) {
    dnnl_memory_desc_t d;
    dnnl_dims_t size = {rows, cols}, strides = {transposed ? 1 : ld, transposed ? ld : 1};
    check(dnnl_memory_desc_create_with_strides(&d, 2, size, dnnl_f32, strides), "memory_desc");
    return d;
}

/* oneDNN would scale its own bias by alpha too: with another alpha than 1, bias is a post op. */
static bool bias_after_alpha(const GemmPart *g) { return g->has_bias && g->alpha != 1; }

/* op(A) op(B) (+ bias), then alpha times it (+ bias), then beta * C added. */
static dnnl_primitive_attr_t attributes(const GemmPart *g, const_dnnl_memory_desc_t bias) {
    dnnl_primitive_attr_t attr;
    dnnl_post_ops_t post;
    check(dnnl_primitive_attr_create(&attr), "attr_create");
    check(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user), "scratchpad");
    check(dnnl_post_ops_create(&post), "post_ops_create");
    if (g->alpha != 1)
        check(dnnl_post_ops_append_eltwise(post, dnnl_eltwise_linear, (float)g->alpha, 0),
              "eltwise");
    if (bias_after_alpha(g))
        check(dnnl_post_ops_append_binary(post, dnnl_binary_add, bias), "binary");
    if (g->beta != 0)
        check(dnnl_post_ops_append_sum(post, (float)g->beta, 0, dnnl_data_type_undef), "sum");
    check(dnnl_primitive_attr_set_post_ops(attr, post), "set_post_ops");
    dnnl_post_ops_destroy(post);
    return attr;
}

/* Only "brg_matmul" gives a row the same bits in any number of rows. */
static bool is_brgemm(const_dnnl_primitive_desc_t plan) {
    const char *name;
    check(dnnl_primitive_desc_query(plan, dnnl_query_impl_info_str, 0, &name), "query");
    return strstr(name, "brg") != NULL;
}

static dnnl_memory_t memory_of(const_dnnl_memory_desc_t d, dnnl_engine_t engine) {
    dnnl_memory_t m;
    check(dnnl_memory_create(&m, d, engine, DNNL_MEMORY_NONE), "memory_create");
    return m;
}

static Product *product_of(Library *l, const GemmPart *g, const_dnnl_primitive_desc_t plan,
                           const_dnnl_memory_desc_t bias) {
    Product *p = xcalloc(1, sizeof *p);
    const_dnnl_memory_desc_t scratch =
        dnnl_primitive_desc_query_md(plan, dnnl_query_scratchpad_md, 0);
    check(dnnl_primitive_create(&p->primitive, plan), "primitive_create");
    p->stands_alone = is_brgemm(plan);
    p->scratch_bytes = dnnl_memory_desc_get_size(scratch);
    p->a = memory_of(dnnl_primitive_desc_query_md(plan, dnnl_query_src_md, 0), l->engine);
    p->b = memory_of(dnnl_primitive_desc_query_md(plan, dnnl_query_weights_md, 0), l->engine);
    p->c = memory_of(dnnl_primitive_desc_query_md(plan, dnnl_query_dst_md, 0), l->engine);
    p->bias = memory_of(bias, l->engine);
    p->scratch = memory_of(scratch, l->engine);
    if (g->has_bias) p->bias_arg = DNNL_ARG_BIAS;
    if (bias_after_alpha(g)) p->bias_arg = DNNL_ARG_ATTR_MULTIPLE_POST_OP(1) | DNNL_ARG_SRC_1;
    return p;
}

Product *product_create(Library *l, const GemmPart *g) {
    dnnl_memory_desc_t a = matrix(g->m, g->k, g->lda, g->a_transposed);
    dnnl_memory_desc_t b = matrix(g->k, g->n, g->ldb, g->b_transposed);
    dnnl_memory_desc_t c = matrix(g->m, g->n, g->ldc, false), bias = matrix(1, g->n, g->n, false);
    dnnl_memory_desc_t descs[] = {a, b, c, bias};
    dnnl_primitive_desc_t plan;
    dnnl_primitive_attr_t attr = attributes(g, bias);
    bool own_bias = g->has_bias && !bias_after_alpha(g);
    check(
        dnnl_matmul_primitive_desc_create(&plan, l->engine, a, b, own_bias ? bias : NULL, c, attr),
        "primitive_desc");
    Product *p = product_of(l, g, plan, bias);
    for (size_t i = 0; i < COUNT(descs); i++) dnnl_memory_desc_destroy(descs[i]);
    dnnl_primitive_desc_destroy(plan);
    dnnl_primitive_attr_destroy(attr);
    return p;
}

void product_run(Library *l, const Product *p, const real *a, const real *b, const real *bias,
                 real *c, void *workspace) {
    check(dnnl_memory_set_data_handle(p->a, (void *)a), "set_data_handle");
    check(dnnl_memory_set_data_handle(p->b, (void *)b), "set_data_handle");
    check(dnnl_memory_set_data_handle(p->c, c), "set_data_handle");
    check(dnnl_memory_set_data_handle(p->bias, (void *)bias), "set_data_handle");
    check(dnnl_memory_set_data_handle(p->scratch, workspace), "set_data_handle");
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, p->a},
                              {DNNL_ARG_WEIGHTS, p->b},
                              {DNNL_ARG_DST, p->c},
                              {DNNL_ARG_SCRATCHPAD, p->scratch},
                              {p->bias_arg, p->bias}};
    int count = (int)COUNT(args) - !p->bias_arg;
    check(dnnl_primitive_execute(p->primitive, l->stream, count, args), "execute");
}
