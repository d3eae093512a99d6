/* The ops of a training step, as autograd calls them. */
#include "tests/kernels/bench_device.h"

/* ---- matrix products -------------------------------------------------------------------------
 */

/* Leading dimensions and strides are those of matrices that lie close together. Every call has the
 * same operands, as in the bare loop that it is compared with. */
static void product_and_sums(Bench *b, Gemm g, bool sums) {
    b->in.used = b->out.used = 0;
    g.type = b->t;
    g.type_c = g.k_is_rows ? DT_REAL : b->t;
    g.batch = MAX(g.batch, 1);
    g.alpha = 1;
    g.lda = g.a_transposed ? g.m : g.k;
    g.ldb = g.b_transposed ? g.k : g.n;
    g.ldc = g.n;
    g.stride_b = g.k * g.n;
    g.stride_c = g.m * g.n;
    g.stride_bias = g.n;
    b->a = reads(b, g.type, g.m * g.k);
    b->b = reads(b, g.type, g.batch * g.stride_b);
    b->bias = g.has_bias ? reads(b, g.type, g.batch * g.n) : NULL;
    if (g.epilogue == EPILOGUE_GELU) g.aux = writes(b, g.type, g.m * g.n);
    if (g.epilogue == EPILOGUE_GELU_GRAD) g.aux = (void *)reads(b, g.type, g.m * g.n);
    if (sums) g.sums = writes(b, DT_REAL, g.m);
    b->c = g.beta ? updates(b, g.type_c, g.batch * g.stride_c)
                  : writes(b, g.type_c, g.batch * g.stride_c);
    b->flops = 2.0 * (double)(g.m * g.n) * (double)(g.k * g.batch);
    b->gemm = g;
    need_workspace(b, b->k->gemm_workspace(b->stream, &g));
    b->k->gemm(b->stream, &g, b->a, b->b, b->bias, b->c);
}

static void product(Bench *b, Gemm g) { product_and_sums(b, g, false); }

/* y = x W^T + bias, dx = dy W, dW = dy^T x, for W [out, in]. */
static void linear(Bench *b, int64_t rows, int64_t out, int64_t in, int64_t batch) {
    product(
        b,
        (Gemm){
            .m = rows, .n = out, .k = in, .batch = batch, .b_transposed = true, .has_bias = true});
}

static void linear_dx(Bench *b, int64_t out, int64_t in) {
    product(b, (Gemm){.m = b->rows, .n = in, .k = out});
}

static void linear_dw(Bench *b, int64_t out, int64_t in) {
    product(b, (Gemm){.m = out, .n = in, .k = b->rows, .a_transposed = true, .k_is_rows = true});
}

/* With what a step does of it: u and gelu(u) forward; gelu'(u) dy W; dW and db at once. */
static void ff_in_gelu(Bench *b) {
    product(b, (Gemm){.m = b->rows,
                      .n = 4 * b->width,
                      .k = b->width,
                      .b_transposed = true,
                      .has_bias = true,
                      .epilogue = EPILOGUE_GELU});
}

static void ff_out_dx_gelu(Bench *b) {
    product(b,
            (Gemm){.m = b->rows, .n = 4 * b->width, .k = b->width, .epilogue = EPILOGUE_GELU_GRAD});
}

static void linear_dw_db(Bench *b, int64_t out, int64_t in) {
    Gemm g = {.m = out, .n = in, .k = b->rows, .a_transposed = true, .k_is_rows = true};
    product_and_sums(b, g, true);
}

static void qkv(Bench *b) { linear(b, b->rows, b->width, b->width, 3); }
static void to_out(Bench *b) { linear(b, b->rows, b->width, b->width, 1); }
static void ff_in(Bench *b) { linear(b, b->rows, 4 * b->width, b->width, 1); }
static void ff_out(Bench *b) { linear(b, b->rows, b->width, 4 * b->width, 1); }
static void modulation(Bench *b) { linear(b, 1, 6 * b->width, TIME, 1); }

static void lora_a(Bench *b) {
    product(b, (Gemm){.m = b->rows, .n = RANK, .k = b->width, .b_transposed = true});
}

static void lora_b(Bench *b) {
    product(b, (Gemm){.m = b->rows, .n = b->width, .k = RANK, .b_transposed = true, .beta = 1});
}

static void to_q_dx(Bench *b) { linear_dx(b, b->width, b->width); }
static void ff_in_dx(Bench *b) { linear_dx(b, 4 * b->width, b->width); }
static void ff_out_dx(Bench *b) { linear_dx(b, b->width, 4 * b->width); }
static void lora_a_dx(Bench *b) { linear_dx(b, RANK, b->width); }
static void lora_b_dx(Bench *b) { linear_dx(b, b->width, RANK); }
static void to_q_dw(Bench *b) { linear_dw(b, b->width, b->width); }
static void ff_in_dw(Bench *b) { linear_dw(b, 4 * b->width, b->width); }
static void ff_out_dw(Bench *b) { linear_dw(b, b->width, 4 * b->width); }
static void ff_in_dw_db(Bench *b) { linear_dw_db(b, 4 * b->width, b->width); }
static void ff_out_dw_db(Bench *b) { linear_dw_db(b, b->width, 4 * b->width); }
static void lora_a_dw(Bench *b) { linear_dw(b, RANK, b->width); }
static void lora_b_dw(Bench *b) { linear_dw(b, b->width, RANK); }

static void bias_gradient(Bench *b) {
    const void *x = reads(b, b->t, b->rows * b->width);
    b->k->column_sum(b->stream, b->t, b->rows, b->width, b->width, x, 0,
                     writes(b, DT_REAL, b->width));
}

/* ---- attention -------------------------------------------------------------------------------
 */

/* Every call has the same operands: backward needs a true output and lse. */
static void attend(Bench *b, bool backward) {
    b->in.used = b->out.used = 0;
    int64_t n = b->rows * b->width, cu[2] = {0, b->rows};
    Attention a = {.t = b->t,
                   .rows = b->rows,
                   .heads = b->model->heads,
                   .head_size = HEAD,
                   .scale = (real)0.125,
                   .segments = 1,
                   .cu_rows = cu};
    a.q = reads(b, b->t, n), a.k = reads(b, b->t, n), a.v = reads(b, b->t, n);
    void *out = writes(b, b->t, n);
    real *lse = writes(b, DT_REAL, b->model->heads * b->rows);
    b->flops = (backward ? 10.0 : 4.0) * (double)b->rows * (double)n;
    need_workspace(b, b->k->attention_workspace(b->stream, &a, backward));
    if (b->first || !backward) b->k->attention(b->stream, &a, out, lse);
    if (!backward) return;
    const void *dout = reads(b, b->t, n);
    void *dq = writes(b, b->t, n), *dk = writes(b, b->t, n), *dv = writes(b, b->t, n);
    b->k->attention_grad(b->stream, &a, out, lse, dout, dq, dk, dv);
}

static void attention(Bench *b) { attend(b, false); }
static void attention_grad(Bench *b) { attend(b, true); }

/* ---- norms, gates ----------------------------------------------------------------------------
 */

/* The modulation of a block's half: shift, scale and gate, one row for video and one for text. */
static int64_t mod_elements(const Bench *b) { return 2 * 3 * b->width; }

static Norm norm_of(Bench *b) {
    b->bytes += 4.0 * (double)b->rows; /* mod_row */
    return (Norm){.t = b->t,
                  .rows = b->rows,
                  .width = b->width,
                  .eps = (real)1e-5,
                  .mod_rows = 2,
                  .mod_width = 3 * b->width,
                  .x = reads(b, b->t, b->rows * b->width),
                  .gamma = reads(b, b->t, b->width),
                  .beta = reads(b, b->t, b->width),
                  .mod = reads(b, b->t, mod_elements(b)),
                  .mod_row = b->mod_row};
}

static void norm(Bench *b) {
    Norm n = norm_of(b);
    n.stats = writes(b, DT_REAL, 2 * b->rows);
    b->k->norm(b->stream, &n, writes(b, b->t, b->rows * b->width));
}

static void norm_back(Bench *b, bool all) {
    Norm n = norm_of(b);
    NormGrad g = {.dy = reads(b, b->t, b->rows * b->width)};
    n.stats = (real *)reads(b, DT_REAL, 2 * b->rows);
    g.dx = writes(b, b->t, b->rows * b->width);
    if (all) {
        g.dgamma = writes(b, DT_REAL, b->width);
        g.dbeta = writes(b, DT_REAL, b->width);
        g.dmod = writes(b, b->t, mod_elements(b));
    }
    b->k->norm_grad(b->stream, &n, &g);
}

static void norm_dx(Bench *b) { norm_back(b, false); }
static void norm_grads(Bench *b) { norm_back(b, true); }

static Gate gate_of(Bench *b, bool with_a) {
    b->bytes += 4.0 * (double)b->rows; /* mod_row */
    return (Gate){.t = b->t,
                  .rows = b->rows,
                  .width = b->width,
                  .mod_rows = 2,
                  .mod_width = 3 * b->width,
                  .offset = 2 * b->width,
                  .a = with_a ? reads(b, b->t, b->rows * b->width) : NULL,
                  .mod = reads(b, b->t, mod_elements(b)),
                  .mod_row = b->mod_row};
}

static void gate(Bench *b) {
    Gate g = gate_of(b, true);
    const void *x = reads(b, b->t, b->rows * b->width);
    b->k->gate(b->stream, &g, x, writes(b, b->t, b->rows * b->width));
}

static void gate_back(Bench *b, bool all) {
    Gate g = gate_of(b, all);
    const void *dy = reads(b, b->t, b->rows * b->width);
    void *da = writes(b, b->t, b->rows * b->width);
    b->k->gate_grad(b->stream, &g, dy, 0, da, 0, all ? writes(b, b->t, mod_elements(b)) : NULL);
}

static void gate_da(Bench *b) { gate_back(b, false); }
static void gate_grads(Bench *b) { gate_back(b, true); }

static QkNorm qk_norm_of(Bench *b) {
    QkNorm q = {.t = b->t,
                .rows = b->rows,
                .heads = b->model->heads,
                .head_size = HEAD,
                .eps = (real)1e-6,
                .x = reads(b, b->t, 2 * b->rows * b->width),
                .rope = reads(b, DT_REAL, b->rows * HEAD)};
    for (int i = 0; i < 2; i++) {
        q.gamma[i] = reads(b, b->t, HEAD);
        q.beta[i] = reads(b, b->t, HEAD);
    }
    return q;
}

static void qk_norm(Bench *b) {
    QkNorm q = qk_norm_of(b);
    b->k->qk_norm(b->stream, &q, writes(b, b->t, 2 * b->rows * b->width));
}

static void qk_norm_back(Bench *b, bool all) {
    QkNorm q = qk_norm_of(b);
    QkNormGrad g = {.dy = reads(b, b->t, 2 * b->rows * b->width)};
    g.dx = writes(b, b->t, 2 * b->rows * b->width);
    for (int i = 0; all && i < 2; i++) {
        g.dgamma[i] = writes(b, DT_REAL, HEAD);
        g.dbeta[i] = writes(b, DT_REAL, HEAD);
    }
    b->k->qk_norm_grad(b->stream, &q, &g);
}

static void qk_norm_dx(Bench *b) { qk_norm_back(b, false); }
static void qk_norm_grads(Bench *b) { qk_norm_back(b, true); }

/* ---- pointwise -------------------------------------------------------------------------------
 */

static void gelu(Bench *b) {
    int64_t n = 4 * b->rows * b->width;
    const void *x = reads(b, b->t, n);
    b->k->gelu(b->stream, b->t, n, x, writes(b, b->t, n));
}

static void gelu_grad(Bench *b) {
    int64_t n = 4 * b->rows * b->width;
    const void *x = reads(b, b->t, n), *dy = reads(b, b->t, n);
    b->k->gelu_grad(b->stream, b->t, n, x, dy, 0, writes(b, b->t, n));
}

static void add(Bench *b) {
    int64_t n = b->rows * b->width;
    const void *x = reads(b, b->t, n);
    b->k->axpy(b->stream, b->t, n, 1, x, 1, updates(b, b->t, n));
}

static void dropout(Bench *b) {
    int64_t cu[2] = {0, b->rows};
    Dropout d = {.t = b->t,
                 .width = b->width,
                 .segments = 1,
                 .cu_rows = cu,
                 .ordinals = b->ordinals,
                 .state = b->state,
                 .p = (real)0.125};
    const void *x = reads(b, b->t, b->rows * b->width);
    b->k->dropout(b->stream, &d, x, 0, writes(b, b->t, b->rows * b->width));
}

static void cast_masters(Bench *b) {
    int64_t n = b->model->trained;
    const void *x = reads(b, DT_F32, n);
    b->k->cast(b->stream, DT_F32, b->t, n, x, writes(b, b->t, n));
}

/* ---- rows, patches, loss, optimizer ----------------------------------------------------------
 */

static void join(Bench *b) {
    int64_t text = b->model->text * b->width, video = b->video * b->width;
    const void *t = reads(b, b->t, text), *v = reads(b, b->t, video);
    b->k->join(b->stream, b->t, b->rows, b->width, b->source, t, v, writes(b, b->t, text + video));
}

static void split(Bench *b) {
    int64_t text = b->model->text * b->width, video = b->video * b->width;
    const void *dy = reads(b, b->t, text + video);
    void *dtext = writes(b, b->t, text);
    b->k->split(b->stream, b->t, b->rows, b->width, b->source, dy, 0, dtext, 0,
                writes(b, b->t, video));
}

static void gather_rows(Bench *b) {
    const void *x = reads(b, b->t, b->video * b->width);
    b->k->gather_rows(b->stream, b->t, b->video, b->width, b->index, x,
                      writes(b, b->t, b->video * b->width));
}

static void scatter_rows(Bench *b) {
    const void *dy = reads(b, b->t, b->video * b->width);
    b->k->scatter_rows(b->stream, b->t, b->video, b->video, b->width, b->index, dy, 0,
                       writes(b, b->t, b->video * b->width));
}

static Patch patch_of(const Bench *b) {
    const Published *m = b->model;
    return (Patch){.t = b->t,
                   .frames = m->frames,
                   .channels = CHANNELS,
                   .height = m->height,
                   .width = m->width,
                   .patch = PATCH,
                   .patch_t = m->patch_t,
                   .row_width = CHANNELS * PATCH * PATCH * m->patch_t};
}

static int64_t latents(const Bench *b) {
    const Published *m = b->model;
    return m->frames * CHANNELS * m->height * m->width;
}

static void patchify(Bench *b) {
    Patch p = patch_of(b);
    const void *x = reads(b, b->t, latents(b));
    b->k->patchify(b->stream, &p, x, 0, writes(b, b->t, latents(b)));
}

static void unpatchify(Bench *b) {
    Patch p = patch_of(b);
    const void *x = reads(b, b->t, latents(b));
    b->k->unpatchify(b->stream, &p, x, 0, writes(b, b->t, latents(b)));
}

static void add_axes(Bench *b) {
    const Published *m = b->model;
    int64_t size[3] = {m->frames / m->patch_t, m->height / PATCH, m->width / PATCH};
    int64_t widths[3] = {b->width / 4, b->width * 3 / 8, b->width * 3 / 8};
    const void *tf = reads(b, b->t, size[0] * widths[0]);
    const void *tw = reads(b, b->t, size[2] * widths[1]);
    const void *th = reads(b, b->t, size[1] * widths[2]);
    const void *x = reads(b, b->t, b->video * b->width);
    b->k->add_axes(b->stream, b->t, size, widths, tf, tw, th, 0, b->video, x,
                   writes(b, b->t, b->video * b->width));
}

static void mse(Bench *b) {
    int64_t n = latents(b), cu[2] = {0, n};
    const void *x = reads(b, b->t, n);
    const real *target = reads(b, DT_REAL, n);
    real *loss = writes(b, DT_REAL, 1);
    b->k->mse(b->stream, b->t, 1, cu, x, target, loss, writes(b, DT_REAL, 1));
}

static void mse_grad(Bench *b) {
    int64_t n = latents(b), cu[2] = {0, n};
    const void *x = reads(b, b->t, n);
    const real *target = reads(b, DT_REAL, n), *dloss = reads(b, DT_REAL, 1);
    b->k->mse_grad(b->stream, b->t, 1, cu, x, target, dloss, 0, writes(b, b->t, n));
}

static void adamw(Bench *b) {
    int64_t n = b->model->trained;
    AdamW a = {.learning_rate = (real)1e-4,
               .beta1 = (real)0.9,
               .beta2 = (real)0.95,
               .eps = (real)1e-8,
               .weight_decay = (real)1e-3,
               .correction1 = (real)0.1,
               .correction2 = (real)0.05,
               .grad_scale = 1};
    const real *grad = reads(b, DT_REAL, n);
    real *master = updates(b, DT_REAL, n), *m = updates(b, DT_REAL, n);
    b->k->adamw(b->stream, &a, n, grad, master, m, updates(b, DT_REAL, n));
}

static void sum_squares(Bench *b) {
    int64_t n = b->model->trained;
    const real *x = reads(b, DT_REAL, n);
    b->k->sum_squares(b->stream, n, x, writes(b, DT_F64, (n + 1023) / 1024));
}

const BenchOp BENCH_OPS[] = {
    {"gemm qkv", qkv},
    {"gemm to_out", to_out},
    {"gemm ff in", ff_in},
    {"gemm ff in, gelu", ff_in_gelu},
    {"gemm ff out", ff_out},
    {"gemm modulation", modulation},
    {"gemm lora A", lora_a},
    {"gemm lora B", lora_b},
    {"gemm to_q dx", to_q_dx},
    {"gemm ff in dx", ff_in_dx},
    {"gemm ff out dx", ff_out_dx},
    {"gemm ff out dx, gelu", ff_out_dx_gelu},
    {"gemm lora A dx", lora_a_dx},
    {"gemm lora B dx", lora_b_dx},
    {"gemm to_q dw", to_q_dw},
    {"gemm ff in dw", ff_in_dw},
    {"gemm ff in dw, db", ff_in_dw_db},
    {"gemm ff out dw", ff_out_dw},
    {"gemm ff out dw, db", ff_out_dw_db},
    {"gemm lora A dw", lora_a_dw},
    {"gemm lora B dw", lora_b_dw},
    {"attention", attention},
    {"attention backward", attention_grad},
    {"norm", norm},
    {"norm dx", norm_dx},
    {"norm all gradients", norm_grads},
    {"gate", gate},
    {"gate da", gate_da},
    {"gate all gradients", gate_grads},
    {"qk_norm", qk_norm},
    {"qk_norm dx", qk_norm_dx},
    {"qk_norm all gradients", qk_norm_grads},
    {"gelu", gelu},
    {"gelu backward", gelu_grad},
    {"add", add},
    {"dropout", dropout},
    {"column_sum", bias_gradient},
    {"join", join},
    {"split", split},
    {"gather_rows", gather_rows},
    {"scatter_rows", scatter_rows},
    {"patchify", patchify},
    {"unpatchify", unpatchify},
    {"add_axes", add_axes},
    {"mse", mse},
    {"mse backward", mse_grad},
    {"cast f32 masters", cast_masters},
    {"adamw", adamw},
    {"sum_squares", sum_squares},
    {NULL, NULL},
};
