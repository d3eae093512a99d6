/* Every kernel of a training step on a device, at the sizes of the published models: milliseconds,
 * TFLOP/s, GB/s and share of what bounds it. Needs no library but the backend's, so that it can be
 * built where nothing but a toolkit and CMake is.
 *
 * usage: bench_device [--device N | --cpu] [--small] [--type bf16|f16|f32] [--repeat N]
 *                     [--json FILE] [NAME ...]
 *   --small   a toy model, which a CPU can wait for
 *   --json    adds an object a row to the file
 *   NAME      only the rows whose names begin so, as "5b attention"
 *
 * share: the time that the measured rates allow, of a large product or of a copy, over the time
 * taken. bare: for products, the time of the fastest of the library's own algorithms for the same,
 * over ours; where the library has none with what is fused to the product, without that. Times hold
 * many calls, started without waiting in between. */
#include "tests/kernels/bench_device.h"
#include "kernels/random.h"
#include "tests/kernels/bare_gemm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const Published PUBLISHED[] = {
    {"2b", 226, 13, 60, 90, 30, 1, 58982400},
    {"5b", 226, 13, 60, 90, 48, 1, 132120576},
    {"1.5-5b", 226, 22, 96, 170, 48, 2, 132120576},
};
static const Published SMALL = {"small", 26, 5, 16, 16, 8, 1, 1 << 20};

enum { MOST_REPEATS = 100, MOST_CALLS = 500, DRAWN = 1 << 20 };
static const double SECONDS_OF_A_RUN = 0.02;

typedef struct {
    const Backend *k;
    char device[300];
    DType t;
    bool small;
    int repeat;
    FILE *json; /* NULL: no JSON is wanted */
    char **names;
    int n_names;
    double product_rate, copy_rate;
} Options;

/* ---- operands --------------------------------------------------------------------------------
 */

static void *device_memory(const Backend *k, size_t bytes) {
    void *p = k->alloc(bytes);
    if (p) return p;
    fprintf(stderr, "bench_device: no %.2f GiB of memory left\n", (double)bytes / (1 << 30));
    exit(EXIT_WORLD);
}

/* Goes round: a piece that does not fit behind the last is the first again. */
static void *take(Pool *p, size_t bytes) {
    bytes = (size_t)align_up((int64_t)bytes, 256);
    CHECK(bytes <= p->bytes, "an operand of %zu bytes in a pool of %zu", bytes, p->bytes);
    if (p->used + bytes > p->bytes) p->used = 0;
    p->used += bytes;
    return p->at + p->used - bytes;
}

static size_t counted(Bench *b, DType t, int64_t n, int times) {
    size_t bytes = (size_t)n * dtype_size(t);
    b->bytes += times * (double)bytes;
    return bytes;
}

const void *reads(Bench *b, DType t, int64_t n) { return take(&b->in, counted(b, t, n, 1)); }

void *writes(Bench *b, DType t, int64_t n) { return take(&b->out, counted(b, t, n, 1)); }

void *updates(Bench *b, DType t, int64_t n) { return take(&b->out, counted(b, t, n, 2)); }

void need_workspace(Bench *b, size_t bytes) {
    if (bytes <= b->workspace_bytes) return;
    b->k->stream_sync(b->stream);
    if (b->workspace) b->k->release(b->workspace);
    b->workspace = device_memory(b->k, bytes);
    b->workspace_bytes = bytes;
    b->k->stream_workspace(b->stream, b->workspace, bytes);
}

/* Normals of the type, over and over; two 16-bit ones are a number as f32, too. */
static void fill(Bench *b) {
    int64_t size = (int64_t)dtype_size(b->t);
    float *drawn = xcalloc(DRAWN, sizeof *drawn);
    random_normal((Draw){.purpose = PURPOSE_NOISE}, 0, DRAWN, drawn);
    b->k->upload_cast(b->stream, DT_F32, b->t, DRAWN, drawn, b->in.at);
    for (size_t have = (size_t)(DRAWN * size); have < b->in.bytes; have *= 2)
        b->k->copy(b->stream, b->in.at + have, b->in.at, MIN(have, b->in.bytes - have));
    b->k->zero(b->stream, b->out.at, b->out.bytes);
    free(drawn);
}

static int32_t *upload(const Bench *b, int64_t n, const int32_t *values) {
    int32_t *p = device_memory(b->k, (size_t)n * sizeof *p);
    b->k->upload(b->stream, p, values, (size_t)n * sizeof *p);
    return p;
}

static void make_indices(Bench *b) {
    int64_t text = b->model->text;
    int32_t *values = xcalloc((size_t)b->rows, sizeof *values);
    b->ordinals = (uint32_t *)upload(b, 1, values);
    b->state = (DropoutState *)upload(b, sizeof *b->state / sizeof *values, values);
    for (int64_t i = 0; i < b->rows; i++) values[i] = i < text;
    b->mod_row = upload(b, b->rows, values);
    for (int64_t i = 0; i < b->rows; i++) values[i] = (int32_t)(i < text ? i : -1 - (i - text));
    b->source = upload(b, b->rows, values);
    for (int64_t i = 0; i < b->video; i++) values[i] = (int32_t)i;
    b->index = upload(b, b->video, values);
    free(values);
}

static Bench bench_open(const Options *o, const Published *m) {
    Bench b = {.k = o->k, .t = o->t, .model = m, .stream = o->k->stream_open()};
    size_t pool = o->small ? (size_t)128 << 20 : (size_t)4 << 30;
    b.width = m->heads * HEAD;
    b.video = m->frames / m->patch_t * (m->height / PATCH) * (m->width / PATCH);
    b.rows = b.video + m->text;
    b.in = (Pool){.at = device_memory(b.k, pool), .bytes = pool};
    b.out = (Pool){.at = device_memory(b.k, pool), .bytes = pool};
    fill(&b);
    make_indices(&b);
    b.k->stream_sync(b.stream);
    return b;
}

static void bench_close(Bench *b) {
    void *all[] = {b->in.at,  b->out.at, b->workspace, b->mod_row,
                   b->source, b->index,  b->ordinals,  b->state};
    b->k->stream_close(b->stream);
    for (size_t i = 0; i < COUNT(all); i++)
        if (all[i]) b->k->release(all[i]);
}

/* ---- timing ----------------------------------------------------------------------------------
 */

/* Seconds of one of `calls` calls. */
static double timed(Bench *b, void (*run)(Bench *), int calls) {
    double start = now_seconds();
    for (int i = 0; i < calls; i++) {
        b->flops = b->bytes = 0;
        b->gemm.batch = 0;
        run(b);
    }
    b->k->stream_sync(b->stream);
    return (now_seconds() - start) / calls;
}

static int by_value(const void *x, const void *y) {
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

/* Seconds of `repeat` runs, sorted; answers how many calls each had. */
static int measure(Bench *b, void (*run)(Bench *), int repeat, double *seconds) {
    b->first = true;
    timed(b, run, 1);
    b->first = false;
    double one = timed(b, run, 1);
    int calls = (int)MAX(1, MIN(SECONDS_OF_A_RUN / one, MOST_CALLS));
    for (int i = 0; i < repeat; i++) seconds[i] = timed(b, run, calls);
    qsort(seconds, (size_t)repeat, sizeof *seconds, by_value);
    return calls;
}

static void large_product(Bench *b) {
    int64_t n = b->model == &SMALL ? 768 : 8192;
    Gemm g = {.type = b->t,
              .type_c = b->t,
              .m = n,
              .n = n,
              .k = n,
              .batch = 1,
              .b_transposed = true,
              .lda = n,
              .ldb = n,
              .ldc = n,
              .alpha = 1};
    const void *x = reads(b, b->t, n * n), *w = reads(b, b->t, n * n);
    need_workspace(b, b->k->gemm_workspace(b->stream, &g));
    b->flops = 2.0 * (double)n * (double)n * (double)n;
    b->k->gemm(b->stream, &g, x, w, NULL, writes(b, b->t, n * n));
}

static void large_copy(Bench *b) {
    int64_t n = (int64_t)(b->in.bytes / 4 / dtype_size(b->t));
    const void *x = reads(b, b->t, n);
    b->k->copy(b->stream, writes(b, b->t, n), x, (size_t)n * dtype_size(b->t));
}

static void measure_limits(Bench *b, Options *o) {
    double seconds[MOST_REPEATS];
    measure(b, large_product, o->repeat, seconds);
    o->product_rate = b->flops / seconds[0];
    measure(b, large_copy, o->repeat, seconds);
    o->copy_rate = b->bytes / seconds[0];
    printf("%s, %s: large products %.4g TFLOP/s, copies %.4g GB/s\n", o->device, dtype_name(o->t),
           o->product_rate / 1e12, o->copy_rate / 1e9);
    printf("%-32s %10s %10s %10s %8s %6s %6s\n", "name", "min ms", "median ms", "TFLOP/s", "GB/s",
           "share", "bare");
    if (o->json)
        fprintf(
            o->json,
            "{\"name\": \"limits\", \"device\": \"%s\", \"type\": \"%s\", \"flops_rate\": %.6g, "
            "\"copy_rate\": %.6g}\n",
            o->device, dtype_name(o->t), o->product_rate, o->copy_rate);
}

static void bench_op(Bench *b, const Options *o, const char *name, const BenchOp *op) {
    double seconds[MOST_REPEATS], bare = 0;
    int calls = measure(b, op->run, o->repeat, seconds);
    if (b->gemm.batch && o->k != &BACKEND_CPU)
        bare = bare_gemm(&b->gemm, b->a, b->b, b->bias, b->c, o->repeat, calls);
    double best = seconds[0], median = seconds[o->repeat / 2];
    double share = MAX(b->flops / o->product_rate, b->bytes / o->copy_rate) / best;
    printf("%-32s %10.4f %10.4f %10.2f %8.1f %6.2f", name, 1e3 * best, 1e3 * median,
           b->flops / best / 1e12, b->bytes / best / 1e9, share);
    if (bare > 0) printf(" %6.2f", bare / best);
    printf("\n");
    fflush(stdout);
    if (!o->json) return;
    fprintf(o->json,
            "{\"name\": \"%s\", \"min_ms\": %.6g, \"median_ms\": %.6g, \"flops\": %.6g, "
            "\"bytes\": %.6g, \"share\": %.4g, \"bare_ms\": %.6g}\n",
            name, 1e3 * best, 1e3 * median, b->flops, b->bytes, share, 1e3 * bare);
    fflush(o->json);
}

static bool wanted(const Options *o, const char *name) {
    for (int i = 0; i < o->n_names; i++)
        if (!strncmp(name, o->names[i], strlen(o->names[i]))) return true;
    return !o->n_names;
}

static int bench_model(Options *o, const Published *m) {
    Bench b = bench_open(o, m);
    int rows = 0;
    if (!o->product_rate) measure_limits(&b, o);
    for (const BenchOp *op = BENCH_OPS; op->name; op++) {
        char *name = xprintf("%s %s", m->name, op->name);
        if (wanted(o, name)) bench_op(&b, o, name, op);
        rows += wanted(o, name);
        free(name);
    }
    bench_close(&b);
    return rows;
}

/* ---- the command line ------------------------------------------------------------------------
 */

static void usage(void) {
    fprintf(stderr, "usage: bench_device [--device N | --cpu] [--small] [--type bf16|f16|f32] "
                    "[--repeat N] [--json FILE] [NAME ...]\n");
    exit(EXIT_USER);
}

static void open_gpu(Options *o, int index) {
    CudaDevice list[64];
    Error e = {0};
    o->k = cuda_backend(index, &e);
    if (!o->k || cuda_devices(list, COUNT(list), &e) <= index) {
        fprintf(stderr, "bench_device: nothing was timed: %s\n", e.text);
        exit(EXIT_WORLD);
    }
    snprintf(o->device, sizeof o->device, "%s", list[index].name);
}

static DType type_of(const char *name) {
    static const char *const NAMES[] = {"f32", "bf16", "f16"};
    static const DType TYPES[] = {DT_F32, DT_BF16, DT_F16};
    for (size_t i = 0; i < COUNT(NAMES); i++)
        if (!strcmp(name, NAMES[i])) return TYPES[i];
    usage();
    return DT_F32;
}

static Options options_of(int n, char **words) {
    Options o = {.t = DT_BF16, .repeat = 7, .device = "cpu"};
    bool cpu = false;
    int device = 0, i = 1;
    for (; i < n && !strncmp(words[i], "--", 2); i++) {
        const char *word = words[i], *value = i + 1 < n ? words[i + 1] : NULL;
        bool flag = !strcmp(word, "--cpu") || !strcmp(word, "--small");
        if (!flag && !value) usage();
        if (!strcmp(word, "--cpu"))
            cpu = true;
        else if (!strcmp(word, "--small"))
            o.small = true;
        else if (!strcmp(word, "--device"))
            device = atoi(value);
        else if (!strcmp(word, "--type"))
            o.t = type_of(value);
        else if (!strcmp(word, "--repeat"))
            o.repeat = atoi(value);
        else if (strcmp(word, "--json") || !(o.json = fopen(value, "a")))
            usage();
        i += !flag;
    }
    if (o.repeat < 1 || o.repeat > MOST_REPEATS) usage();
    o.names = words + i;
    o.n_names = n - i;
    if (cpu)
        o.k = &BACKEND_CPU, o.t = DT_REAL;
    else
        open_gpu(&o, device);
    return o;
}

int main(int n, char **words) {
    Options o = options_of(n, words);
    int rows = 0;
    if (o.small) rows = bench_model(&o, &SMALL);
    for (size_t i = 0; !o.small && i < COUNT(PUBLISHED); i++)
        rows += bench_model(&o, &PUBLISHED[i]);
    if (o.json) fclose(o.json);
    if (!rows) fprintf(stderr, "bench_device: no row has such a name\n");
    return rows ? 0 : EXIT_USER;
}
