/* Component folders: the published sharded layout read and written, an index that lies, files that
 * are not where they should be, and files too large for memory. */
#define _GNU_SOURCE
#include "data/json.h"
#include "data/nearest.h"
#include "data/weights.h"
#include "data/whole.h"
#include "tests/data/scratch.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cmocka.h>

#define GOLDEN "tests/golden/dit/2b/transformer_sharded"
#define STEM "diffusion_pytorch_model"
#define SHARD_1 STEM "-00001-of-00003.safetensors"
#define INDEX STEM ".safetensors.index.json"

static void open_good(Weights *w, const char *path) {
    Error e = {0};
    if (!weights_open(w, path, &e)) fail_msg("%s", e.text);
}

/* Opening must fail with a user's mistake whose text holds each of the parts. */
static void expect_refusal(const char *path, const char *part, const char *other) {
    Weights w;
    Error e = {0};
    if (weights_open(&w, path, &e)) fail_msg("%s opened; expected: %s", path, part);
    assert_int_equal(e.exit_code, EXIT_USER);
    if (!strstr(e.text, part) || !strstr(e.text, other))
        fail_msg("expected \"%s\" and \"%s\" in: %s", part, other, e.text);
    assert_null(w.shards);
}

static void run(const char *command) {
    if (system(command)) fail_msg("%s", command);
}

/* A copy of the golden folder inside the test's own, whose path it returns. */
static char *copy_golden(const char *folder) {
    char *path = xprintf("%s/transformer", folder);
    char *command =
        xprintf("rm -rf %s && cp -r " GOLDEN " %s && chmod -R u+w %s", path, path, path);
    run(command);
    free(command);
    return path;
}

static void test_sharded(void **state) {
    (void)state;
    Weights w;
    open_good(&w, GOLDEN);
    assert_int_equal(w.n_shards, 3);
    assert_int_equal(w.n_tensors, 64);
    for (size_t i = 1; i < w.n_tensors; i++)
        assert_true(strcmp(w.tensors[i - 1].name, w.tensors[i].name) < 0);
    Error e = {0};
    const SafetensorsTensor *t = weights_expect(&w, "proj_out.weight", 2, (int64_t[]){64, -1}, &e);
    if (!t) fail_msg("%s", e.text);
    Safetensors s;
    bool same = false;
    for (size_t i = 0; i < w.n_shards; i++) {
        assert_true(safetensors_open(&s, w.shards[i].path, &e));
        const SafetensorsTensor *there = safetensors_find(&s, "proj_out.weight");
        if (there) same = !memcmp(there->data, t->data, t->bytes);
        safetensors_close(&s);
    }
    assert_true(same);
    weights_close(&w);
}

static void test_lookup_errors(void **state) {
    (void)state;
    Weights w;
    Error e = {0};
    open_good(&w, GOLDEN);
    assert_null(weights_find(&w, "proj_out.wieght", &e));
    assert_non_null(strstr(e.text, "nearest is \"proj_out.weight\""));
    assert_null(weights_find(&w, "something else altogether", &e));
    assert_null(strstr(e.text, "nearest"));
    assert_null(weights_expect(&w, "proj_out.weight", 2, (int64_t[]){3, -1}, &e));
    assert_non_null(strstr(e.text, "expected the shape [3, any], got [64, 64]"));
    assert_null(weights_expect(&w, "proj_out.weight", 1, (int64_t[]){-1}, &e));
    weights_close(&w);
}

static void test_single_file(void **state) {
    Weights w;
    open_good(&w, GOLDEN "/" SHARD_1);
    assert_int_equal(w.n_shards, 1);
    assert_int_equal(w.n_tensors, w.shards[0].n_tensors);
    weights_close(&w);
    static const char *const stems[] = {STEM, "model", "pytorch_lora_weights", "adapter_model"};
    for (size_t i = 0; i < COUNT(stems); i++) {
        char *command = xprintf("rm -f %s/*; cp " GOLDEN "/" SHARD_1 " %s/%s.safetensors",
                                (char *)*state, (char *)*state, stems[i]);
        run(command);
        free(command);
        open_good(&w, *state);
        assert_int_equal(w.n_shards, 1);
        weights_close(&w);
    }
}

static void test_missing(void **state) {
    expect_refusal("/no/such/folder", "/no/such/folder", "No such file");
    expect_refusal(*state, "expected diffusion_pytorch_model.safetensors", "index.json");
    char *path = copy_golden(*state), *both = xprintf("%s/model.safetensors", path);
    scratch_write(both, "", 0);
    expect_refusal(path, "holds both", INDEX);
    unlink(both);
    char *shard = xprintf("%s/" SHARD_1, path);
    unlink(shard);
    expect_refusal(path, SHARD_1, "No such file");
    assert_int_equal(symlink("/etc/passwd", shard), 0);
    expect_refusal(path, SHARD_1, "symbolic link");
    unlink(shard);
    char *outside = xprintf("%s/outside.safetensors", (char *)*state);
    char *command =
        xprintf("cp " GOLDEN "/" SHARD_1 " %s && ln -s ../outside.safetensors %s", outside, shard);
    run(command);
    expect_refusal(path, SHARD_1, "symbolic link");
    unlink(shard);
    assert_int_equal(mkfifo(shard, 0600), 0);
    expect_refusal(path, SHARD_1, "pipe");
    free(command);
    free(outside);
    free(shard);
    free(both);
    free(path);
}

/* The golden index with the first `from` replaced by `to`. */
static void edit_index(const char *path, const char *from, const char *to) {
    size_t n;
    uint8_t *bytes = scratch_read(GOLDEN "/" INDEX, &n);
    char *at = memmem(bytes, n, from, strlen(from));
    if (!at) fail_msg("no %s in the index", from);
    size_t before = (size_t)(at - (char *)bytes), after = n - before - strlen(from);
    char *text = xprintf("%.*s%s%.*s", (int)before, bytes, to, (int)after, at + strlen(from));
    char *file = xprintf("%s/" INDEX, path);
    scratch_write(file, text, strlen(text));
    free(file);
    free(text);
    free(bytes);
}

static void test_lying_index(void **state) {
    static const struct {
        const char *from, *to, *part, *other;
    } rows[] = {
        {"\"" SHARD_1 "\"", "\"../" SHARD_1 "\"", "expected a file of this folder", INDEX},
        {"\"" SHARD_1 "\"", "\"/etc/passwd\"", "expected a file of this folder", INDEX},
        {"\"" SHARD_1 "\"", "\"..\"", "expected a file of this folder", INDEX},
        {"\"" SHARD_1 "\"", "\".safetensors\"", "expected a file of this folder", INDEX},
        {"\"" SHARD_1 "\"", "\"a b.safetensors\"", "expected a file of this folder", INDEX},
        {"\"" SHARD_1 "\"", "\"\"", "expected a file of this folder", INDEX},
        {"\"" SHARD_1 "\"", "\"other.safetensors\"", "other.safetensors", "No such file"},
        {"\"" SHARD_1 "\"", "7", "expected a text, got 7", INDEX},
        {"\"proj_out.bias\"", "\"proj_out.bais\"", "\"proj_out.bias\"",
         "nearest is \"proj_out.bais\""},
        {"\"proj_out.bias\": ", "\"surplus\": \"" SHARD_1 "\", \"proj_out.bias\": ", "\"surplus\"",
         "does not hold"},
        {"\"proj_out.bias\": ",
         "\"proj_out.bia\": \"" STEM "-00003-of-00003.safetensors\", "
         "\"proj_out.bias\": ",
         "\"proj_out.bia\"", "nearest is \"proj_out.bias\""},
        {"\"proj_out.bias\": ", "\"proj_out.bias\": \"x.safetensors\", \"proj_out.bias\": ",
         INDEX ":", "duplicate object key"},
        {"\"weight_map\"", "\"weights_map\"", "expected the key \"weight_map\"", INDEX},
        {"\"total_size\": ", "\"total_size\": 1", "metadata.total_size is 1", "the tensors have"},
        {"\"total_size\": ", "\"total_size\": -", "metadata.total_size is -", "the tensors have"},
        {"\"total_size\": ", "\"total_size\": \"x\", \"y\": ", "expected a number", INDEX},
        {"{", "[", INDEX ":", "not valid JSON"},
    };
    char *path = copy_golden(*state);
    for (size_t i = 0; i < COUNT(rows); i++) {
        edit_index(path, rows[i].from, rows[i].to);
        expect_refusal(path, rows[i].part, rows[i].other);
    }
    free(path);
}

/* What other writers put into an index, and an index without a size. */
static void test_lenient_index(void **state) {
    static const char *const rows[][2] = {
        {"\"total_size\": ", "\"total_parameters\": 5, \"total_size\": "},
        {"\"total_size\"", "\"another\""},
        {"\"metadata\"", "\"other_data\""},
        {"\n  },\n  \"weight_map\"", ".0\n  },\n  \"weight_map\""},
    };
    char *path = copy_golden(*state);
    for (size_t i = 0; i < COUNT(rows); i++) {
        Weights w;
        edit_index(path, rows[i][0], rows[i][1]);
        open_good(&w, path);
        weights_close(&w);
    }
    free(path);
}

static void write_tensor(const char *folder, const char *file_name, const char *a, const char *b) {
    static const float zeros[4];
    SafetensorsItem items[] = {{a, DT_F32, 1, {4}, zeros}, {b, DT_F32, 1, {4}, zeros}};
    SafetensorsFile file = {.items = items, .n_items = b ? 2 : 1};
    char *path = xprintf("%s/%s", folder, file_name);
    Error e = {0};
    if (!safetensors_write(path, &file, &e)) fail_msg("%s", e.text);
    free(path);
}

static void test_two_shards(void **state) {
    char *index = xprintf("%s/model.safetensors.index.json", (char *)*state);
    const char *text = "{\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"y.safetensors\"}}";
    scratch_write(index, text, strlen(text));
    write_tensor(*state, "x.safetensors", "a", NULL);
    write_tensor(*state, "y.safetensors", "b", NULL);
    Weights w;
    open_good(&w, *state);
    assert_int_equal(w.n_tensors, 2);
    weights_close(&w);
    write_tensor(*state, "y.safetensors", "b", "a");
    expect_refusal(*state, "tensor \"a\" is in two files", "y.safetensors");
    write_tensor(*state, "x.safetensors", "b", NULL);
    write_tensor(*state, "y.safetensors", "a", NULL);
    expect_refusal(*state, "is listed in", "lies in");
    free(index);
}

/* Resident pages of this process. */
static long resident_bytes(void) {
    long pages = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_true(f && fscanf(f, "%ld %ld", &pages, &resident) == 2);
    fclose(f);
    return resident * sysconf(_SC_PAGESIZE);
}

/* A file of one U8 tensor of `n` bytes, all of them a hole. */
static void write_sparse(const char *path, int64_t n) {
    char text[200] = {0};
    snprintf(text + 8, 192, "{\"w\":{\"dtype\":\"U8\",\"shape\":[%lld],\"data_offsets\":[0,%lld]}}",
             (long long)n, (long long)n);
    size_t header = strlen(text + 8);
    text[0] = (char)header;
    scratch_write(path, text, 8 + header);
    if (truncate(path, (off_t)(8 + header) + n)) fail_msg("%s: no sparse files here", path);
}

static void test_sparse(void **state) {
    char *path = xprintf("%s/model.safetensors", (char *)*state);
    write_sparse(path, (int64_t)10 << 30);
    Weights w;
    long before = resident_bytes();
    open_good(&w, *state);
    assert_true(resident_bytes() - before < 4 << 20);
    assert_int_equal(w.tensors[0].bytes, (int64_t)10 << 30);
    assert_int_equal(((const uint8_t *)w.tensors[0].data)[((int64_t)10 << 30) - 1], 0);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_true(st.st_blocks * 512 < 1 << 20);
    weights_close(&w);
    free(path);
}

static unsigned sum_of(const SafetensorsTensor *t) {
    unsigned sum = 0;
    for (size_t i = 0; i < t->bytes; i += 512) sum += ((const uint8_t *)t->data)[i];
    return sum;
}

static void test_release(void **state) {
    enum { BYTES = 64 << 20 };
    char *path = xprintf("%s/model.safetensors", (char *)*state);
    write_sparse(path, BYTES);
    Weights w;
    open_good(&w, *state);
    const SafetensorsTensor *t = &w.tensors[0];
    assert_int_equal(sum_of(t), 0);
    long touched = resident_bytes();
    weights_release(&w, t->data, t->bytes);
    assert_true(touched - resident_bytes() > BYTES - (4 << 20));
    assert_int_equal(sum_of(t), 0);
    weights_release(&w, t->data, 1);
    weights_release(&w, (const char *)t->data + t->bytes, 0);
    weights_close(&w);
    free(path);
}

/* The golden folder's tensors in the order of its shards, each shard's largest first: as in the
 * model's own order, it is what did not fit into the shard before. */
static SafetensorsItem *golden_items(const Weights *w) {
    SafetensorsItem *items = xcalloc(w->n_tensors, sizeof *items), *item = items;
    for (size_t i = 0; i < w->n_shards; i++) {
        SafetensorsItem *first = item;
        for (size_t k = 0; k < w->shards[i].n_tensors; k++, item++) {
            const SafetensorsTensor *t = &w->shards[i].tensors[k];
            *item = (SafetensorsItem){t->name, t->dtype, t->n_dims, {0}, t->data};
            memcpy(item->shape, t->shape, sizeof t->shape);
            if (t->bytes <= safetensors_item_bytes(first)) continue;
            SafetensorsItem largest = *item;
            *item = *first;
            *first = largest;
        }
    }
    return items;
}

/* Saved again with the same limit, the published folder comes out byte for byte. */
static void test_save_published(void **state) {
    Weights w;
    Error e = {0};
    open_good(&w, GOLDEN);
    SafetensorsItem *items = golden_items(&w);
    SafetensorsFile file = {.items = items, .n_items = w.n_tensors};
    char *folder = xprintf("%s/saved/", (char *)*state);
    size_t n;
    char *config = (char *)scratch_read(GOLDEN "/config.json", &n);
    config = xrealloc(config, n + 1);
    config[n] = 0;
    WeightsText text = {"config.json", config};
    if (!weights_save(folder, STEM, 250000, &file, &text, 1, &e)) fail_msg("%s", e.text);
    char *command = xprintf("diff -r " GOLDEN " %s", folder);
    run(command);
    assert_false(weights_save(folder, STEM, 250000, &file, &text, 1, &e));
    assert_int_equal(e.exit_code, EXIT_USER);
    run(command);
    assert_int_equal(scratch_count(*state), 1);
    free(command);
    free(config);
    free(folder);
    free(items);
    weights_close(&w);
}

static bool fill_index(void *context, size_t item, size_t offset, size_t bytes, void *buffer,
                       Error *e) {
    (void)context, (void)offset, (void)e;
    memset(buffer, (int)item + 1, bytes);
    return true;
}

/* Shards by fill, a tensor larger than a shard, digests, one shard without an index. */
static void test_save_fill(void **state) {
    static const SafetensorsItem items[] = {{"e", DT_F32, 1, {10}, NULL},
                                            {"d", DT_F32, 1, {1000}, NULL},
                                            {"c", DT_U8, 1, {20}, NULL},
                                            {"b", DT_F32, 1, {15}, NULL},
                                            {"a", DT_F32, 1, {10}, NULL}};
    static const size_t limits[] = {100, 0, SIZE_MAX}, shards[] = {4, 5, 1};
    for (size_t i = 0; i < COUNT(limits); i++) {
        SafetensorsFile file = {.items = items, .n_items = 5, .digest = true, .fill = fill_index};
        char *folder = xprintf("%s/%zu", (char *)*state, i);
        Error e = {0};
        if (!weights_save(folder, "model", limits[i], &file, NULL, 0, &e)) fail_msg("%s", e.text);
        Weights w;
        open_good(&w, folder);
        assert_int_equal(w.n_shards, shards[i]);
        assert_int_equal(scratch_count(folder), shards[i] > 1 ? shards[i] + 2 : 1);
        for (size_t k = 0; k < 5; k++) assert_int_equal(*(const uint8_t *)w.tensors[k].data, 5 - k);
        for (size_t k = 0; k < w.n_shards; k++) {
            assert_non_null(safetensors_metadata(&w.shards[k], SAFETENSORS_DIGEST_KEY));
            assert_string_equal(safetensors_metadata(&w.shards[k], "format"), "pt");
            assert_true(safetensors_verify(&w.shards[k], &e));
        }
        weights_close(&w);
        free(folder);
    }
}

static void test_save_failure(void **state) {
    SafetensorsItem items[] = {{"a", DT_F32, 1, {10}, NULL}, {"b", DT_F32, 1, {100000}, NULL}};
    SafetensorsFile file = {.items = items, .n_items = 2, .fill = fill_index};
    struct rlimit old, limit;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    limit = (struct rlimit){1000, old.rlim_max};
    char *folder = xprintf("%s/out", (char *)*state);
    Error e = {0};
    setrlimit(RLIMIT_FSIZE, &limit);
    bool saved = weights_save(folder, "model", 100, &file, NULL, 0, &e);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_false(saved);
    assert_int_equal(e.exit_code, EXIT_WORLD);
    assert_int_equal(scratch_count(*state), 0);
    free(folder);
}

static void test_nearest(void **state) {
    (void)state;
    assert_int_equal(edit_distance("kitten", "sitting"), 3);
    assert_int_equal(edit_distance("steps", "setps"), 1);
    assert_int_equal(edit_distance("", "abc"), 3);
    static const char *const names[] = {"train.steps", "train.seed", "lora.rank"};
    assert_string_equal(nearest_name("train.setps", names, 3), "train.steps");
    assert_string_equal(nearest_name("lora.rnak", names, 3), "lora.rank");
    assert_null(nearest_name("memory.budget", names, 3));
    char *huge = xcalloc(1 << 20, 1);
    memset(huge, 'x', (1 << 20) - 1);
    assert_null(nearest_name(huge, names, 3));
    free(huge);
}

static void test_json(void **state) {
    (void)state;
    static const char text[] = "{\"i\": 3, \"d\": 1e-5, \"s\": \"x\", \"b\": true, \"none\": null,"
                               " \"list\": [1, 2, 3], \"o\": {\"k\": 4}}";
    Json j, o;
    Error e = {0};
    assert_true(json_parse(&j, text, strlen(text), "config.json", &e));
    int64_t i = 7, list[3], k = 0;
    double d = 0, whole = 0;
    bool b = false;
    const char *s = NULL;
    size_t n = 0;
    assert_true(json_get_int(&j, "i", &i, &e) && i == 3);
    assert_true(json_get_int(&j, "none", &i, &e) && json_get_int(&j, "absent", &i, &e) && i == 3);
    assert_true(json_get_double(&j, "d", &d, &e) && d == 1e-5);
    assert_true(json_get_double(&j, "i", &whole, &e) && whole == 3);
    assert_true(json_get_bool(&j, "b", &b, &e) && b);
    assert_true(json_get_string(&j, "s", &s, &e) && !strcmp(s, "x"));
    assert_true(json_get_ints(&j, "list", list, 3, &n, &e) && n == 3 && list[2] == 3);
    assert_true(json_get_object(&j, "o", &o, &e) && json_get_int(&o, "k", &k, &e) && k == 4);
    assert_true(json_get_object(&j, "absent", &o, &e) && json_get_int(&o, "k", &k, &e));
    assert_true(json_has(&j, "i") && !json_has(&j, "none"));
    assert_false(json_get_ints(&j, "list", list, 2, &n, &e));
    assert_false(json_require(&j, "none", &e));
    assert_false(json_get_int(&j, "d", &i, &e));
    assert_string_equal(e.text,
                        "config.json: \"d\": expected a whole number, got 1.0000000000000001e-5.");
    assert_false(json_get_bool(&j, "i", &b, &e));
    assert_string_equal(e.text, "config.json: \"i\": expected true or false, got 3.");
    json_close(&j);
    assert_false(json_parse(&j, "{\n \"a\": 1,\n \"a\": 2}", 21, "config.json", &e));
    assert_memory_equal(e.text, "config.json:3:", 14);
    assert_false(json_parse(&j, "[]", 2, "config.json", &e));
}

static int set_up(void **state) {
    *state = scratch_make();
    return 0;
}

static int tear_down(void **state) {
    scratch_remove(*state);
    return 0;
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sharded), cmocka_unit_test(test_lookup_errors),
        IN_FOLDER(test_single_file),    IN_FOLDER(test_missing),
        IN_FOLDER(test_lying_index),    IN_FOLDER(test_lenient_index),
        IN_FOLDER(test_two_shards),     IN_FOLDER(test_sparse),
        IN_FOLDER(test_release),        IN_FOLDER(test_save_published),
        IN_FOLDER(test_save_fill),      IN_FOLDER(test_save_failure),
        cmocka_unit_test(test_nearest), cmocka_unit_test(test_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
