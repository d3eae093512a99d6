/* What a GPU's libraries are given to work in, and how work is cut so that this stays bounded:
 * known without a GPU and without the libraries, so that plans for one are the same everywhere. */
#include "kernels/attention_cuda.h"
#include "kernels/conv_cuda.h"
#include "kernels/cuda.h"

/* One number for all, so that a plan needs no device to ask. */
size_t cuda_gemm_workspace(Stream *s, const Gemm *g) {
    (void)s;
    return g->m && g->n && g->k ? GEMM_WORKSPACE : 0;
}

size_t cuda_group_norm_workspace(Stream *s, const GroupNorm *n) {
    (void)s; /* what the sums need is in the scratch */
    (void)n;
    return 0;
}

/* ---- attention ----------------------------------------------------------------------------------
 */

enum { MAX_SIZE = 128, SPARE_BYTES = 16 << 20 };

static int64_t slice_bytes; /* 0: not deterministic */

void cuda_attention_deterministic(int64_t bytes) { slice_bytes = bytes; }

void cuda_deterministic(bool repeats) {
    cuda_attention_deterministic(repeats ? ATTENTION_SLICE_BYTES : 0);
}

bool attention_suits(const Attention *a, int64_t rows) {
    return (a->t == DT_BF16 || a->t == DT_F16) && !a->bias && a->head_size % 8 == 0 &&
           a->head_size <= MAX_SIZE && rows > 1;
}

/* Bytes of dS of one head, as cuDNN pads it. */
static int64_t score_bytes(int64_t rows) {
    int64_t padded = align_up(MAX(rows, 1), 128);
    return 2 * padded * padded;
}

AttentionPart attention_part(const Attention *a, int64_t rows, bool backward) {
    AttentionPart p = {.t = a->t,
                       .rows = rows,
                       .heads = a->heads,
                       .size = a->head_size,
                       .row_stride = a->heads * a->head_size,
                       .lse_stride = a->rows,
                       .lse_alignment = 16,
                       .backward = backward,
                       .deterministic = backward && slice_bytes > 0};
    if (p.deterministic) {
        int64_t most = MAX(slice_bytes / score_bytes(rows), 1);
        int64_t slices = (a->heads + most - 1) / most;
        p.heads = (a->heads + slices - 1) / slices;
    }
    return p;
}

/* What the best engines of cuDNN 9.19 take on sm_80 to sm_120: some hundred bytes; the
 * deterministic backward dS, too; the other one a second sum of dq, but for sm_90. A bound that is
 * too narrow would quietly lead to a slower engine. */
int64_t attention_library_bytes(const AttentionPart *p) {
    if (!p->backward) return SPARE_BYTES;
    if (p->deterministic) return SPARE_BYTES + p->heads * score_bytes(p->rows);
    return SPARE_BYTES + p->heads * align_up(p->rows, 128) * align_up(p->size, 64) * 4;
}

int64_t attention_lse_bytes(const AttentionPart *p) {
    return p->backward && p->lse_stride != p->rows ? align_up(p->heads * p->rows * 4, 256) : 0;
}

int64_t attention_sum_bytes(const AttentionPart *p) {
    return p->backward ? align_up(p->heads * p->rows * 4, 256) : 0;
}

int64_t attention_dq_sum_bytes(const AttentionPart *p) {
    return p->backward && !p->deterministic ? align_up(p->heads * p->rows * p->size * 4, 256) : 0;
}

int64_t attention_part_workspace(const AttentionPart *p) {
    return attention_lse_bytes(p) + attention_sum_bytes(p) + attention_dq_sum_bytes(p) +
           attention_library_bytes(p);
}

size_t cuda_attention_workspace(Stream *s, const Attention *a, bool backward) {
    (void)s;
    int64_t most = 0;
    for (int b = 0; b < a->segments; b++) {
        int64_t rows = a->cu_rows[b + 1] - a->cu_rows[b];
        AttentionPart p = attention_part(a, rows, backward);
        if (attention_suits(a, rows)) most = MAX(most, attention_part_workspace(&p));
    }
    return (size_t)most;
}

/* ---- convolutions -------------------------------------------------------------------------------
 */

/* Of a group: elements of a tensor, and bytes of what is prepared in the workspace. */
static const int64_t MAX_ELEMENTS = (int64_t)1 << 30, MAX_PREPARED = (int64_t)256 << 20;

void conv_check_sizes(const Conv *c) {
    CHECK(c->t == DT_F32 || c->t == DT_BF16 || c->t == DT_F16, "conv: %s", dtype_name(c->t));
    CHECK((c->kt == 1 || c->kt == 3) && (c->stride == 1 || c->stride == 2) &&
              (c->enlarge == 1 || (c->enlarge == 2 && c->kt == 1 && c->stride == 1)) &&
              !(c->add && c->repeat),
          "conv: kt %lld, stride %lld, enlarge %lld, add %d, repeat %d", (long long)c->kt,
          (long long)c->stride, (long long)c->enlarge, c->add, c->repeat);
}

/* Elements of a frame as cuDNN reads and writes it. */
static int64_t frame_in(const Conv *c) {
    return c->enlarge * c->height * c->enlarge * c->width * align_up(c->in, CONV_CHANNELS);
}

int64_t conv_frame_out(const Conv *c) {
    return conv_size_out(c, c->height) * conv_size_out(c, c->width) *
           align_up(c->out, CONV_CHANNELS);
}

/* x is read from the workspace, where it is spread; y is written there, to be brought to its
 * place by conv_finish. */
bool conv_spreads(const Conv *c) { return c->enlarge == 2 || c->in % CONV_CHANNELS; }

bool conv_finishes(const Conv *c) { return c->t == DT_F32 || c->out % CONV_CHANNELS; }

int64_t conv_x_bytes(const Conv *c, int64_t frames) {
    int64_t bytes = (frames + c->kt - 1) * frame_in(c) * (int64_t)dtype_size(c->t);
    return conv_spreads(c) ? align_up(bytes, 256) : 0;
}

int64_t conv_y_bytes(const Conv *c, int64_t frames) {
    return conv_finishes(c) ? align_up(frames * conv_frame_out(c) * (int64_t)dtype_size(c->t), 256)
                            : 0;
}

static bool too_many(const Conv *c, int64_t frames) {
    return (frames + c->kt - 1) * frame_in(c) > MAX_ELEMENTS ||
           frames * conv_frame_out(c) > MAX_ELEMENTS ||
           conv_x_bytes(c, frames) + conv_y_bytes(c, frames) > MAX_PREPARED;
}

/* Frames of a group, but the last: as equal as can be. Frames that are written apart from each
 * other go one by one: cuDNN copies results that do not lie side by side. */
int64_t conv_group_size(const Conv *c) {
    if (c->repeat && !conv_finishes(c)) return 1;
    int64_t groups = 1;
    while (groups < c->frames && too_many(c, (c->frames + groups - 1) / groups)) groups++;
    return (c->frames + groups - 1) / groups;
}

ConvPart conv_part(const Conv *c, int64_t first) {
    conv_check_sizes(c);
    return (ConvPart){.t = c->t,
                      .frames = MIN(conv_group_size(c), c->frames - first),
                      .height = c->height * c->enlarge,
                      .width = c->width * c->enlarge,
                      .in = align_up(c->in, CONV_CHANNELS),
                      .out = align_up(c->out, CONV_CHANNELS),
                      .kt = c->kt,
                      .stride = c->stride,
                      .add = c->add && c->t != DT_F32};
}

int64_t cuda_conv_packed(const Conv *c) {
    conv_check_sizes(c);
    return align_up(c->out, CONV_CHANNELS) * align_up(c->in, CONV_CHANNELS) * c->kt * 9;
}

/* A bias is copied to where cuDNN can read it. */
int64_t conv_bias_bytes(const Conv *c) {
    return align_up(align_up(c->out, CONV_CHANNELS) * (int64_t)dtype_size(c->t), 256);
}

size_t cuda_conv_workspace(Stream *s, const Conv *c) {
    (void)s;
    conv_check_sizes(c);
    int64_t frames = conv_group_size(c);
    return (size_t)(conv_x_bytes(c, frames) + conv_y_bytes(c, frames) + conv_bias_bytes(c) +
                    CONV_LIBRARY_BYTES);
}

/* ---- the table ----------------------------------------------------------------------------------
 */

static const Backend PLANNED = {
    .name = "cuda",
    .gemm_workspace = cuda_gemm_workspace,
    .attention_workspace = cuda_attention_workspace,
    .conv_packed = cuda_conv_packed,
    .conv_workspace = cuda_conv_workspace,
    .group_norm_workspace = cuda_group_norm_workspace,
};

const Backend *cuda_table(void) { return &PLANNED; }
