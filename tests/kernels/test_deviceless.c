/* cuDNN's plans for every attention and convolution of the published models, made without a GPU:
 * by the functions that build the graphs when there is one, for GPUs that are described. The
 * kernels are compiled; COGSMITH_FULL in the environment asks for more GPUs and shapes than one of
 * each kind.
 *
 * The test runs over tests/kernels/no_driver.c, with which a plan is finished and says how much
 * workspace it takes. Over the toolkit's own stub of a driver plans end where their kernels would
 * be loaded: that is taken, too, and nothing else.
 */
#include "data/vae_tiles.h"
#include "kernels/attention_cuda.h"
#include "kernels/conv_cuda.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { SKIPPED = 77 };

/* ---- GPUs -------------------------------------------------------------------------------------
 */

typedef struct {
    const char *name;
    int version; /* 900: sm_90 */
    int processors, shared, blocks, threads, l2;
    long long memory;
} Gpu;

static const Gpu GPUS[] = {
    {"NVIDIA H200", 900, 132, 232448, 32, 2048, 62914560, 150000000000},
    {"NVIDIA A100", 800, 108, 166912, 32, 2048, 41943040, 80000000000},
    {"NVIDIA GeForce RTX 4090", 890, 128, 101376, 24, 1536, 75497472, 25000000000},
    {"NVIDIA GeForce RTX 5090", 1200, 170, 101376, 24, 1536, 100663296, 33000000000},
};

static char *describe(const Gpu *g) {
    return xprintf(
        "{\"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64],"
        "\"regsPerBlock\":65536,\"multiProcessorCount\":%d,\"warpSize\":32,"
        "\"maxSharedMemoryPerBlock\":49152,\"maxSharedMemoryPerBlockOptin\":%d,"
        "\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,\"maxCtasPerSM\":%d,"
        "\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":%d,\"pciDeviceId\":0,\"isTccDriver\":0,"
        "\"supportCoopLaunch\":1,\"smClockRateKHz\":1980000,\"memClockRateKHz\":3201000,"
        "\"l2CacheSize\":%d,\"deviceName\":\"%s\",\"deviceVer\":%d,\"driverVer\":13000,"
        "\"cudaDeviceId\":0,\"totalGlobalMem\":%lld}",
        g->processors, g->shared, g->blocks, g->threads, g->l2, g->name, g->version, g->memory);
}

static bool full(void) { return getenv("COGSMITH_FULL") != NULL; }

/* ---- plans ------------------------------------------------------------------------------------
 */

typedef struct {
    const Gpu *gpu;
    char *json;
    char (*seen)[DNN_KEY];
    int n_seen, finished;
} Trial;

/* A plan of *g, which is closed; fails the test where the graph is refused. NULL: its kernel cannot
 * be loaded here. */
static DnnPlan *plan_of(Trial *t, const char *key, DnnGraph *g, const DnnRules *rules) {
    DnnAnswer answer;
    Error e = {0};
    DnnPlan *p = dnn_plan_make(g, &(DnnDevice){.json = t->json}, rules, &answer, &e);
    dnn_graph_close(g);
    if (answer == DNN_REFUSED) fail_msg("%s: %s: refused: %s", t->gpu->name, key, e.text);
    t->finished += p != NULL;
    if (!p)
        printf("  %-62s compiled\n", key);
    else
        printf("  %-62s engine %2lld, choice %lld %9.3f of %7.1f MiB\n", key,
               (long long)dnn_plan_engine(p), (long long)dnn_plan_choice(p),
               (double)dnn_plan_workspace(p) * 0x1p-20, (double)rules->workspace * 0x1p-20);
    return p;
}

static bool new_key(Trial *t, const char *key) {
    for (int i = 0; i < t->n_seen; i++)
        if (!strcmp(t->seen[i], key)) return false;
    t->seen = xrealloc(t->seen, (size_t)(t->n_seen + 1) * sizeof *t->seen);
    memcpy(t->seen[t->n_seen++], key, DNN_KEY);
    return true;
}

static void check_attention(Trial *t, const AttentionPart *p) {
    char key[DNN_KEY] = "";
    attention_key(p, key);
    if (!new_key(t, key)) return;
    DnnRules rules = attention_rules(p);
    DnnPlan *plan = plan_of(t, key, attention_graph(p), &rules);
    /* Too narrow a bound on the workspace would lead to a slower engine. */
    if (plan && dnn_plan_choice(plan) != 0)
        fail_msg("%s: %s: engine %lld is not the heuristics' first", t->gpu->name, key,
                 (long long)dnn_plan_engine(plan));
    dnn_plan_close(plan);
}

static void check_conv(Trial *t, const ConvPart *p) {
    char key[DNN_KEY] = "";
    conv_key(p, key);
    if (!new_key(t, key)) return;
    DnnRules rules = conv_rules(p);
    dnn_plan_close(plan_of(t, key, conv_graph(p), &rules));
}

static void on_gpus(void (*test)(Trial *t)) {
    for (size_t i = 0; i < (full() ? COUNT(GPUS) : 1); i++) {
        Trial t = {.gpu = &GPUS[i], .json = describe(&GPUS[i])};
        double begin = now_seconds();
        printf("%s, sm_%d\n", t.gpu->name, t.gpu->version / 10);
        test(&t);
        printf("%d plans, %d finished, %.1f s\n", t.n_seen, t.finished, now_seconds() - begin);
        free(t.json);
        free(t.seen);
    }
}

/* ---- attention --------------------------------------------------------------------------------
 */

/* Heads of the published models, and rows of a sample at their own size. The first split over
 * ranks is that of the CI. */
static const struct {
    DType t;
    int64_t heads, rows;
    int64_t ranks[5];
} MODELS[] = {
    {DT_F16, 30, 17776, {2, 3, 5, 6}},     /* CogVideoX-2b, stored in F16 */
    {DT_BF16, 30, 17776, {0}},             /* the same in BF16 */
    {DT_BF16, 48, 17776, {4, 2, 3, 6, 8}}, /* CogVideoX-5b */
    {DT_BF16, 48, 45106, {8, 2, 3, 4, 6}}, /* CogVideoX1.5-5B */
};

/* Forward, backward and the backward that repeats its bits. */
static void check_heads(Trial *t, DType type, int64_t heads, int64_t rows) {
    int64_t cu[] = {0, rows};
    Attention a = {.t = type, .rows = rows, .heads = heads, .head_size = 64};
    a.scale = 0.125f;
    a.segments = 1;
    a.cu_rows = cu;
    for (int form = 0; form < 3; form++) {
        cuda_attention_deterministic(form == 2 ? ATTENTION_SLICE_BYTES : 0);
        AttentionPart p = attention_part(&a, rows, form > 0);
        check_attention(t, &p);
        size_t bytes = cuda_attention_workspace(NULL, &a, form > 0);
        printf("    %lld heads of %lld rows, %s: %lld at once, workspace %.1f MiB\n",
               (long long)heads, (long long)rows,
               form == 0   ? "forward"
               : form == 1 ? "backward"
                           : "backward, repeating",
               (long long)p.heads, (double)bytes * 0x1p-20);
        if (form == 2) assert_in_range(bytes, 1, (size_t)5 << 30);
        p.heads = heads % p.heads ? heads % p.heads : p.heads;
        check_attention(t, &p); /* the last slice */
    }
    cuda_attention_deterministic(0);
}

static void attention_of(Trial *t) {
    for (size_t i = 0; i < COUNT(MODELS); i++) {
        check_heads(t, MODELS[i].t, MODELS[i].heads, MODELS[i].rows);
        for (int j = 0; j < (full() ? 5 : 1) && MODELS[i].ranks[j]; j++)
            check_heads(t, MODELS[i].t, MODELS[i].heads / MODELS[i].ranks[j], MODELS[i].rows);
    }
}

static void attention_plans(void **state) {
    (void)state;
    on_gpus(attention_of);
}

/* A pack of two: the second segment's lse has another stride than its rows. Odd sizes. */
static void odd_attention_of(Trial *t) {
    static const struct {
        int64_t heads, rows, size, lse_stride, lse_alignment;
    } PARTS[] = {{30, 1576, 64, 3200, 16}, {30, 1576, 64, 3200, 4}, {2, 2, 64, 7, 4},
                 {1, 45106, 64, 45106, 8}, {4, 77, 16, 77, 16},     {3, 300, 128, 301, 4}};
    for (size_t i = 0; i < COUNT(PARTS); i++)
        for (int form = 0; form < 3; form++)
            check_attention(t, &(AttentionPart){.t = DT_BF16,
                                                .rows = PARTS[i].rows,
                                                .heads = PARTS[i].heads,
                                                .size = PARTS[i].size,
                                                .row_stride = PARTS[i].heads * PARTS[i].size,
                                                .lse_stride = PARTS[i].lse_stride,
                                                .lse_alignment = PARTS[i].lse_alignment,
                                                .backward = form > 0,
                                                .deterministic = form == 2});
}

static void odd_attention_plans(void **state) {
    (void)state;
    on_gpus(odd_attention_of);
}

/* ---- the autoencoder --------------------------------------------------------------------------
 */

/* Every convolution of a half at a size in units of its input. */
static void check_half(Trial *t, const VaeNet *net, DType type, VaeHalfName half, int64_t frames,
                       int64_t height, int64_t width) {
    const Backend forms = {.conv_packed = cuda_conv_packed};
    Graph *g = graph_open(type, net->params);
    size_t most = 0;
    vae_record(net, half, g, &forms, frames, height, width);
    for (int i = 0; i < g->n_nodes; i++) {
        if (strcmp(g->nodes[i]->op->name, "conv")) continue;
        Conv c = g->nodes[i]->attr.conv;
        c.t = type;
        most = MAX(most, cuda_conv_workspace(NULL, &c));
        for (int64_t first = 0; first < c.frames;) {
            ConvPart p = conv_part(&c, first);
            check_conv(t, &p);
            first += p.frames;
        }
    }
    printf("    %s, %s, %lld x %lld x %lld: workspace %.1f MiB\n",
           half == VAE_ENCODER ? "encoder" : "decoder", dtype_name(type), (long long)frames,
           (long long)height, (long long)width, (double)most * 0x1p-20);
    graph_close(g);
}

/* The tiles of a whole that size; in the CI the inner one. */
static void check_tiles(Trial *t, const VaeNet *net, VaeHalfName half, int64_t frames,
                        int64_t height, int64_t width) {
    TileAxis axes[2];
    bool tiled;
    Error e;
    if (!tile_axes(&net->model, half, &VAE_TILING_DEFAULT, height, width, axes, &tiled, &e))
        fail_msg("%s", e.text);
    for (int i = 0; i < (full() ? tile_count(&axes[0], height) : 1); i++)
        for (int j = 0; j < (full() ? tile_count(&axes[1], width) : 1); j++)
            check_half(t, net, DT_BF16, half, frames, tile_size(&axes[0], height, i),
                       tile_size(&axes[1], width, j));
}

static void vae_of(Trial *t) {
    static const int64_t SIZES[][3] = {{49, 480, 720}, {81, 768, 1360}};
    VaeNet *net = vae_net_open(&VAE_PUBLISHED);
    for (size_t i = 0; i < COUNT(SIZES); i++)
        for (int half = 0; half < VAE_HALVES; half++) {
            int64_t space = half == VAE_ENCODER ? 1 : VAE_SPACE;
            int64_t frames = half == VAE_ENCODER ? SIZES[i][0] : (SIZES[i][0] - 1) / VAE_TIME + 1;
            int64_t height = SIZES[i][1] / space, width = SIZES[i][2] / space;
            check_half(t, net, DT_BF16, (VaeHalfName)half, frames, height, width);
            if (i == 0 || full()) check_tiles(t, net, (VaeHalfName)half, frames, height, width);
            if (full()) check_half(t, net, DT_F32, (VaeHalfName)half, frames, height, width);
        }
    params_close(net->params, &(Memory){.k = &BACKEND_CPU});
    vae_net_close(net);
}

static void vae_plans(void **state) {
    (void)state;
    on_gpus(vae_of);
}

/* One of each kind: F32, F16, channels that are not whole eights, repeats of both kinds. */
static void odd_convs_of(Trial *t) {
    static const Conv CONVS[] = {
        {.t = DT_F32,
         .frames = 3,
         .height = 20,
         .width = 30,
         .in = 16,
         .out = 32,
         .kt = 3,
         .stride = 1,
         .enlarge = 1,
         .add = true},
        {.t = DT_F32,
         .frames = 3,
         .height = 21,
         .width = 31,
         .in = 5,
         .out = 7,
         .kt = 1,
         .stride = 2,
         .enlarge = 1},
        {.t = DT_F16,
         .frames = 3,
         .height = 10,
         .width = 15,
         .in = 16,
         .out = 16,
         .kt = 1,
         .stride = 1,
         .enlarge = 2,
         .repeat = true},
        {.t = DT_BF16,
         .frames = 4,
         .height = 9,
         .width = 7,
         .in = 3,
         .out = 3,
         .kt = 3,
         .stride = 1,
         .enlarge = 1,
         .add = true},
        {.t = DT_BF16,
         .frames = 3,
         .height = 9,
         .width = 7,
         .in = 8,
         .out = 8,
         .kt = 3,
         .stride = 1,
         .enlarge = 1,
         .repeat = true},
    };
    for (size_t i = 0; i < COUNT(CONVS); i++) {
        ConvPart p = conv_part(&CONVS[i], 0);
        check_conv(t, &p);
    }
}

static void odd_conv_plans(void **state) {
    (void)state;
    on_gpus(odd_convs_of);
}

/* ---- what must be refused ---------------------------------------------------------------------
 */

static void expect_refused(const char *what, DnnGraph *g, const DnnRules *rules) {
    char *json = describe(&GPUS[0]);
    DnnAnswer answer;
    Error e = {0};
    DnnPlan *p = dnn_plan_make(g, &(DnnDevice){.json = json}, rules, &answer, &e);
    dnn_graph_close(g);
    free(json);
    if (p || answer != DNN_REFUSED) fail_msg("%s: not refused", what);
    printf("  refused: %s: %s\n", what, e.text);
    assert_int_equal(e.exit_code, EXIT_WORLD);
}

static void wrong_graphs_are_refused(void **state) {
    (void)state;
    AttentionPart a = {.t = DT_BF16, .rows = 256, .heads = 2, .size = 64};
    a.lse_stride = 256;
    a.backward = true;
    a.row_stride = 128;
    a.deterministic = true;
    char *json = describe(&GPUS[0]);
    Trial t = {.gpu = &GPUS[0], .json = json};
    DnnPlan *p = plan_of(&t, "attention_grad", attention_graph(&a), &(DnnRules){.workspace = -1});
    if (p) /* its workspace is known */
        expect_refused("no workspace", attention_graph(&a), &(DnnRules){.workspace = 0});
    dnn_plan_close(p);
    free(json);
    a.t = DT_F32;
    expect_refused("attention in F32", attention_graph(&a), &(DnnRules){.workspace = -1});
    DnnGraph *g = dnn_graph_open();
    DnnShape shape = {.rank = 4, .dim = {1, 8, 16, 16}, .stride = {2048, 1, 128, 8}};
    DnnConv axes = {.axes = 2, .stride = {1, 1}, .before = {1, 1}, .after = {1, 1}};
    int x = dnn_tensor(g, DT_BF16, DNN_STORED, shape),
        y = dnn_tensor(g, DT_BF16, DNN_STORED, shape);
    shape = (DnnShape){.rank = 4, .dim = {8, 16, 3, 3}, .stride = {144, 1, 48, 16}};
    int w = dnn_tensor(g, DT_BF16, DNN_STORED, shape); /* 16 of 8 channels */
    dnn_conv(g, &axes, x, w, y);
    expect_refused("weights of 16 channels for 8", g, &(DnnRules){.workspace = -1});
}

/* ---- files ------------------------------------------------------------------------------------
 */

static void files_are_whole_or_nothing(void **state) {
    (void)state;
    AttentionPart a = {.t = DT_BF16, .rows = 256, .heads = 2, .size = 64};
    a.row_stride = 128;
    a.lse_stride = 256;
    Trial t = {.gpu = &GPUS[0], .json = describe(&GPUS[0])};
    DnnRules rules = attention_rules(&a);
    DnnPlan *p = plan_of(&t, "attention", attention_graph(&a), &rules);
    size_t bytes = 5, file_bytes, found;
    char *text = p ? dnn_plan_save(p, &bytes) : xstrdup("{...}");
    assert_non_null(text);
    char *file = dnn_plan_file("attention-1", text, bytes, &file_bytes);
    printf("  a plan as bytes: %zu, as a file: %zu\n", bytes, file_bytes);
    const char *back = dnn_plan_file_text("attention-1", file, file_bytes, &found);
    assert_non_null(back);
    assert_int_equal(found, bytes);
    assert_memory_equal(back, text, bytes);
    assert_null(dnn_plan_file_text("attention-2", file, file_bytes, &found));
    for (size_t n = 0; n < file_bytes; n += n < 100 ? 1 : file_bytes / 50)
        assert_null(dnn_plan_file_text("attention-1", file, n, &found));
    for (size_t i = 0; i < file_bytes; i += i < 100 ? 1 : file_bytes / 50) {
        file[i] ^= 1;
        assert_null(dnn_plan_file_text("attention-1", file, file_bytes, &found));
        file[i] ^= 1;
    }
    dnn_plan_close(p);
    free(text);
    free(file);
    free(t.json);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_plans),
        cmocka_unit_test(odd_attention_plans),
        cmocka_unit_test(vae_plans),
        cmocka_unit_test(odd_conv_plans),
        cmocka_unit_test(wrong_graphs_are_refused),
        cmocka_unit_test(files_are_whole_or_nothing),
    };
    Error e = {0};
    char blas[16], dnn[16];
    if (!dlopen("libcuda.so.1", RTLD_NOW)) {
        fprintf(stderr, "SKIPPED: no libcuda.so.1, not even a stand-in: %s\n", dlerror());
        return SKIPPED;
    }
    if (!cuda_libraries(blas, dnn, &e)) {
        fprintf(stderr, "SKIPPED: %s\n", e.text);
        return SKIPPED;
    }
    printf("cuDNN %s\n", dnn);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
