/* T5-XXL never fits whole: one caption through a folder of the published size (four shards of
 * holes, 18 GiB) stays under 1.5 GiB of resident memory. Without COGSMITH_FULL=1 it has two of
 * the 24 layers, at full width; memory does not grow with layers, for each goes before the next
 * comes. */
#define _XOPEN_SOURCE 700
#include "data/t5.h"
#include "tests/data/scratch.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

enum { SHARDS = 4, WIDTH = 4096, HIDDEN = 10240, HEADS = 64, VOCABULARY = 32128, L = 226 };

/* The folder while it is written: tensors fill the shards in turn, as equal in number as can be. */
typedef struct {
    char *folder, *map; /* map: weight_map of the index so far */
    char *header[SHARDS];
    int64_t bytes[SHARDS];
    int n, total;
} Folder;

static void append(char **text, char *more) {
    char *whole = xprintf("%s%s", *text ? *text : "", more);
    free(*text);
    free(more);
    *text = whole;
}

static void add(Folder *f, char *name, int64_t rows, int64_t cols) {
    int shard = f->n++ * SHARDS / f->total;
    int64_t from = f->bytes[shard], to = from + MAX(rows, 1) * cols * 4;
    char *shape = rows ? xprintf("%lld,%lld", (long long)rows, (long long)cols)
                       : xprintf("%lld", (long long)cols);
    append(&f->header[shard],
           xprintf("%c\"%s\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%lld,%lld]}",
                   from ? ',' : '{', name, shape, (long long)from, (long long)to));
    append(&f->map, xprintf("%s\"%s\":\"model-%05d-of-%05d.safetensors\"", f->map ? "," : "", name,
                            shard + 1, SHARDS));
    f->bytes[shard] = to;
    free(shape);
    free(name);
}

static void add_layer(Folder *f, int i) {
    static const char PARTS[] = "qkvo";
    for (int k = 0; k < 4; k++)
        add(f, xprintf("encoder.block.%d.layer.0.SelfAttention.%c.weight", i, PARTS[k]), WIDTH,
            WIDTH);
    for (int k = 0; k < 2; k++) {
        add(f, xprintf("encoder.block.%d.layer.1.DenseReluDense.wi_%d.weight", i, k), HIDDEN,
            WIDTH);
        add(f, xprintf("encoder.block.%d.layer.%d.layer_norm.weight", i, k), 0, WIDTH);
    }
    add(f, xprintf("encoder.block.%d.layer.1.DenseReluDense.wo.weight", i), WIDTH, HIDDEN);
}

static void write_text(const Folder *f, const char *name, char *text) {
    char *path = xprintf("%s/%s", f->folder, name);
    scratch_write(path, text, strlen(text));
    free(path);
    free(text);
}

static void write_shard(Folder *f, int shard) {
    char *path = xprintf("%s/model-%05d-of-%05d.safetensors", f->folder, shard + 1, SHARDS);
    append(&f->header[shard], xstrdup("}"));
    uint64_t n = strlen(f->header[shard]), odd = shard % 2; /* other writers align nothing */
    for (; n % 8 != odd; n++) append(&f->header[shard], xstrdup(" "));
    FILE *file = fopen(path, "wb");
    assert_true(file && fwrite(&n, 8, 1, file) == 1 && fputs(f->header[shard], file) >= 0);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(truncate(path, (off_t)(8 + n) + f->bytes[shard]), 0);
    free(f->header[shard]);
    free(path);
}

static char *sparse_folder(int layers) {
    Folder f = {.folder = scratch_make(), .total = 3 + 9 * layers};
    add(&f, xstrdup("shared.weight"), VOCABULARY, WIDTH);
    add(&f, xstrdup("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"), 32,
        HEADS);
    for (int i = 0; i < layers; i++) add_layer(&f, i);
    add(&f, xstrdup("encoder.final_layer_norm.weight"), 0, WIDTH);
    assert_int_equal(f.n, f.total);
    for (int i = 0; i < SHARDS; i++) write_shard(&f, i);
    write_text(&f, "model.safetensors.index.json", xprintf("{\"weight_map\":{%s}}", f.map));
    write_text(&f, "config.json",
               xprintf("{\"model_type\": \"t5\", \"vocab_size\": %d, \"d_model\": %d, \"d_kv\": "
                       "%d, \"d_ff\": %d, \"num_heads\": %d, \"num_layers\": %d, "
                       "\"feed_forward_proj\": \"gated-gelu\", \"torch_dtype\": \"float32\"}",
                       VOCABULARY, WIDTH, WIDTH / HEADS, HIDDEN, HEADS, layers));
    free(f.map);
    return f.folder;
}

/* The most that this process ever had resident. */
static int64_t peak_resident_bytes(void) {
    long long kib = -1;
    char line[200];
    FILE *f = fopen("/proc/self/status", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) sscanf(line, "VmHWM: %lld", &kib);
    fclose(f);
    assert_true(kib > 0);
    return kib * 1024;
}

static void one_caption_stays_under_a_gibibyte_and_a_half(void **state) {
    (void)state;
    int layers = getenv("COGSMITH_FULL") ? 24 : 2;
    char *folder = sparse_folder(layers);
    int64_t ids[L] = {VOCABULARY - 1, 7, 1};
    float *out = xcalloc(L * WIDTH, sizeof *out);
    Error e;
    double start = now_seconds();
    T5 *t = t5_open(folder, &BACKEND_CPU, &e);
    if (!t) fail_msg("%s", e.text);
    double opened = now_seconds() - start;
    for (int i = 0; i < L * WIDTH; i++) out[i] = 1;
    if (!t5_encode(t, ids, 1, L, out, &e)) fail_msg("%s", e.text);
    for (int i = 0; i < L * WIDTH; i++) assert_true(out[i] == 0);
    int64_t peak = peak_resident_bytes();
    print_message("%d layers, %.1f GiB: opened in %.3f s, encoded in %.1f s; resident at most %.2f "
                  "GiB, of it %.2f GiB arena\n",
                  layers, (double)params_total(t->params, false) * 4 / (1 << 30), opened,
                  now_seconds() - start - opened, (double)peak / (1 << 30),
                  (double)t->memory.peak_bytes / (1 << 30));
    assert_true(opened < 1 && peak < (int64_t)3 << 29);
    assert_int_equal(t->memory.peak_bytes, t5_bytes(t, 1, L));
    t5_close(t);
    free(out);
    scratch_remove(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_caption_stays_under_a_gibibyte_and_a_half),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
