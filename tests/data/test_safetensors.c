/* The safetensors reader against the verdicts on 900 files, the writer against the published one's
 * bytes, and what both do when something goes wrong. */
#define _GNU_SOURCE
#include "data/safetensors.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cmocka.h>
#include <xxhash.h>

#include "tests/data/verdicts.h"

/* Reads every byte that a parsed file offers, so that the sanitizers see each pointer. */
static unsigned touch(const Safetensors *s) {
    unsigned sum = 0;
    size_t bytes = 8 + s->header_bytes;
    for (size_t i = 0; i < s->n_tensors; i++) {
        const SafetensorsTensor *t = &s->tensors[i];
        assert_ptr_equal(safetensors_find(s, t->name), t);
        for (size_t k = 0; k < t->bytes; k++) sum += ((const uint8_t *)t->data)[k];
        bytes += t->bytes;
    }
    assert_int_equal(bytes, s->n_bytes);
    return sum;
}

static bool verdict_differs(const char *name, const uint8_t *bytes, size_t n, bool accept) {
    uint8_t *exact = memcpy(xcalloc(n, 1), bytes, n);
    Safetensors s;
    Error e = {0};
    bool accepted = safetensors_parse(&s, exact, n, name, &e);
    if (accepted != accept) print_message("%s: expected %d; %s\n", name, accept, e.text);
    if (accepted) touch(&s);
    if (!accepted) {
        assert_int_equal(e.exit_code, EXIT_USER);
        assert_memory_equal(e.text, name, strlen(name));
    }
    safetensors_close(&s);
    free(exact);
    return accepted != accept;
}

static void test_cases(void **state) {
    (void)state;
    expect_verdicts(verdict_differs);
}

/* A file of this header text and `n_data` bytes, parsed. */
static bool parse_text(const char *header, size_t n_data, Safetensors *s, Error *e) {
    static uint8_t bytes[2000];
    size_t n = strlen(header);
    assert_true(8 + n + n_data <= sizeof bytes);
    memset(bytes, 0, 8);
    bytes[0] = (uint8_t)n;
    bytes[1] = (uint8_t)(n >> 8);
    memcpy(bytes + 8, header, n);
    return safetensors_parse(s, bytes, 8 + n + n_data, "text", e);
}

/* What the 900 cases do not ask: types that cogsmith only stores, and stricter rules. */
static void test_headers(void **state) {
    (void)state;
    static const struct {
        const char *header;
        size_t n_data;
        bool good;
    } rows[] = {
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[2,3],\"data_offsets\":[0,3]}}", 3, true},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2, false},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, false},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":"
         "[9223372036854775807,9223372036854775807]}}",
         0, false},
        {"{\"a\":{\"dtype\":\"F6_E2M3\",\"shape\":[4],\"data_offsets\":[0,3]}}", 3, true},
        {"{\"a\":{\"dtype\":\"F6_E3M2\",\"shape\":[5],\"data_offsets\":[0,4]}}", 4, false},
        {"{\"a\":{\"dtype\":\"F8_E8M0\",\"shape\":[5],\"data_offsets\":[0,5]}}", 5, true},
        {"{\"a\":{\"dtype\":\"F8_E4M3FNUZ\",\"shape\":[5],\"data_offsets\":[0,5]}}", 5, true},
        {"{\"a\":{\"dtype\":\"C64\",\"shape\":[2],\"data_offsets\":[0,16]}}", 16, true},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-0,1]}}", 1, false},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0,-1],\"data_offsets\":[0,0]}}", 0, false},
        {"{\"a\x7f\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, true},
        {"{\"a\x1f\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, false},
        {"{\"\xc2\x9b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, true},
        {"{\"\xc3\xa9\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, true},
        {"{\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
         0, false},
        {"{\"a\\", 0, false},
        {"{\"", 0, false},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        Safetensors s;
        Error e = {0};
        bool good = parse_text(rows[i].header, rows[i].n_data, &s, &e);
        if (good != rows[i].good) fail_msg("%s: %s", rows[i].header, e.text);
        safetensors_close(&s);
    }
}

static void test_fields(void **state) {
    (void)state;
    Safetensors s;
    Error e;
    assert_true(parse_text("{\"w\":{\"dtype\":\"F4\",\"shape\":[2,3],\"data_offsets\":[12,15]},"
                           "\"__metadata__\":{\"n\":\"1\",\"format\":\"pt\"},"
                           "\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]}}  ",
                           15, &s, &e));
    assert_int_equal(s.n_tensors, 2);
    assert_string_equal(s.tensors[0].name, "b");
    const SafetensorsTensor *w = safetensors_find(&s, "w"), *b = safetensors_find(&s, "b");
    assert_int_equal(w->dtype, DT_COUNT);
    assert_string_equal(w->dtype_name, "F4");
    assert_int_equal(w->n_dims, 2);
    assert_int_equal(w->shape[1], 3);
    assert_int_equal(w->bits, 4);
    assert_int_equal(b->dtype, DT_F32);
    assert_ptr_equal(b->data, s.bytes + 8 + s.header_bytes);
    assert_ptr_equal(w->data, (const char *)b->data + 12);
    assert_null(safetensors_find(&s, "x"));
    assert_string_equal(safetensors_metadata(&s, "format"), "pt");
    assert_null(safetensors_metadata(&s, "m"));
    safetensors_close(&s);
}

/* A header of as many bytes as are allowed, and of one more, both all there. */
static void test_largest_header(void **state) {
    (void)state;
    for (uint64_t more = 0; more < 2; more++) {
        uint64_t n = SAFETENSORS_MAX_HEADER_BYTES + more;
        char *bytes = xcalloc(n + 8, 1);
        memcpy(bytes, &n, 8);
        memset(bytes + 8, ' ', n);
        memcpy(bytes + 8, "{}", 2);
        Safetensors s;
        Error e;
        assert_true(safetensors_parse(&s, bytes, n + 8, "text", &e) == !more);
        if (more) assert_non_null(strstr(e.text, "more than the 16000000 that are allowed"));
        safetensors_close(&s);
        free(bytes);
    }
}

static void test_error_text(void **state) {
    (void)state;
    Safetensors s;
    Error e;
    assert_false(
        parse_text("{\"x\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, &s, &e));
    assert_string_equal(e.text, "text: tensor \"x\": its shape and dtype make 12 bytes, its "
                                "data_offsets 8. The file is damaged or not a safetensors file: "
                                "download or export it again.");
    assert_false(parse_text("{\"__metadata__\":{\"\\u001b[2J\":null}}", 0, &s, &e));
    assert_null(strchr(e.text, 0x1b));
    assert_false(parse_text("{\"a\":{\"shape\":[[1]]}}", 0, &s, &e));
    assert_non_null(strstr(e.text, "nested deeper than 3 levels"));
}

static void test_not_files(void **state) {
    char *folder = *state, *pipe = xprintf("%s/pipe", folder), *empty = xprintf("%s/empty", folder);
    assert_int_equal(mkfifo(pipe, 0600), 0);
    scratch_write(empty, "", 0);
    const char *paths[] = {folder, pipe, empty, "/dev/zero", "/no/such.safetensors"};
    for (size_t i = 0; i < COUNT(paths); i++) {
        Safetensors s;
        Error e = {0};
        assert_false(safetensors_open(&s, paths[i], &e));
        assert_int_equal(e.exit_code, EXIT_USER);
        assert_non_null(strstr(e.text, paths[i]));
        assert_null(s.path);
    }
    free(pipe);
    free(empty);
}

/* The items of an open file, to write it again. */
static SafetensorsItem *items_of(const Safetensors *s) {
    SafetensorsItem *items = xcalloc(s->n_tensors, sizeof *items);
    for (size_t i = 0; i < s->n_tensors; i++) {
        const SafetensorsTensor *t = &s->tensors[i];
        items[i] = (SafetensorsItem){t->name, t->dtype, t->n_dims, {0}, t->data};
        memcpy(items[i].shape, t->shape, sizeof t->shape);
    }
    return items;
}

/* Files of the published writer, read and written again, come out byte for byte. */
static void test_published_bytes(void **state) {
    static const char *const files[] = {"tests/golden/safetensors/python.safetensors",
                                        "tests/golden/dit/2b/transformer_sharded/"
                                        "diffusion_pytorch_model-00001-of-00003.safetensors"};
    char *path = xprintf("%s/again.safetensors", (char *)*state);
    for (size_t i = 0; i < COUNT(files); i++) {
        Safetensors s;
        Error e = {0};
        if (!safetensors_open(&s, files[i], &e)) fail_msg("%s", e.text);
        SafetensorsItem *items = items_of(&s);
        SafetensorsFile file = {.items = items,
                                .n_items = s.n_tensors,
                                .metadata = s.metadata,
                                .n_metadata = s.n_metadata};
        if (!safetensors_write(path, &file, &e)) fail_msg("%s", e.text);
        size_t n;
        uint8_t *bytes = scratch_read(path, &n);
        assert_int_equal(n, s.n_bytes);
        assert_memory_equal(bytes, s.bytes, n);
        free(bytes);
        free(items);
        safetensors_close(&s);
    }
    free(path);
}

enum { LARGE = SAFETENSORS_FILL_BYTES + 12345 };

static uint8_t pattern(size_t item, size_t i) { return (uint8_t)(item * 7 + i * 13 + (i >> 12)); }

typedef struct {
    size_t fail_at;       /* the item at which fill fails */
    const char *sabotage; /* the file in which fill breaks a byte of what was written before */
} Plan;

static bool fill(void *context, size_t item, size_t offset, size_t bytes, void *buffer, Error *e) {
    const Plan *plan = context;
    if (item == plan->fail_at) return error_set(e, EXIT_DATA, "no data");
    for (size_t i = 0; i < bytes; i++) ((uint8_t *)buffer)[i] = pattern(item, offset + i);
    if (plan->sabotage && item == 1) {
        int fd = open(plan->sabotage, O_WRONLY);
        assert_int_equal(pwrite(fd, "\xee", 1, 4096), 1);
        close(fd);
    }
    return true;
}

static const SafetensorsItem LARGE_ITEMS[] = {{"large", DT_F32, 2, {LARGE / 4, 1}, NULL},
                                              {"small", DT_BF16, 1, {5}, NULL},
                                              {"none", DT_F64, 2, {0, 9}, NULL}};

static bool write_large(const char *path, Plan *plan, Error *e) {
    SafetensorsFile file = {.items = LARGE_ITEMS,
                            .n_items = COUNT(LARGE_ITEMS),
                            .digest = true,
                            .fill = fill,
                            .context = plan};
    return safetensors_write(path, &file, e);
}

static void test_round_trip(void **state) {
    char *path = xprintf("%s/large.safetensors", (char *)*state);
    Safetensors s;
    Error e = {0};
    if (!write_large(path, &(Plan){.fail_at = 9}, &e)) fail_msg("%s", e.text);
    if (!safetensors_open(&s, path, &e)) fail_msg("%s", e.text);
    assert_int_equal(s.n_tensors, 3);
    for (size_t i = 0; i < 3; i++) {
        const SafetensorsTensor *t = safetensors_find(&s, LARGE_ITEMS[i].name);
        assert_int_equal(t->dtype, LARGE_ITEMS[i].dtype);
        assert_int_equal(t->n_dims, LARGE_ITEMS[i].n_dims);
        assert_memory_equal(t->shape, LARGE_ITEMS[i].shape, sizeof t->shape);
        assert_int_equal((uintptr_t)t->data % dtype_size(t->dtype), 0);
        for (size_t k = 0; k < t->bytes; k++)
            if (((const uint8_t *)t->data)[k] != pattern(i, k)) fail_msg("%s[%zu]", t->name, k);
    }
    if (!safetensors_verify(&s, &e)) fail_msg("%s", e.text);
    safetensors_close(&s);
    assert_int_equal(scratch_count(*state), 1);
    free(path);
}

/* After each failure: the old file's bytes, no temporary, a text with this part. */
static void expect_failure(const char *folder, const char *path, Plan *plan, int exit_code,
                           const char *part) {
    Error e = {0};
    scratch_write(path, "old", 3);
    assert_false(write_large(path, plan, &e));
    assert_int_equal(e.exit_code, exit_code);
    if (!strstr(e.text, part)) fail_msg("expected \"%s\" in: %s", part, e.text);
    size_t n;
    uint8_t *bytes = scratch_read(path, &n);
    assert_int_equal(n, 3);
    assert_memory_equal(bytes, "old", 3);
    free(bytes);
    assert_int_equal(scratch_count(folder), 1);
}

static void test_writer_failures(void **state) {
    char *folder = *state, *path = xprintf("%s/x.safetensors", folder);
    signal(SIGXFSZ, SIG_IGN);
    Error e = {0};
    struct stat whole;
    assert_true(write_large(path, &(Plan){.fail_at = 9}, &e) && !stat(path, &whole));
    const size_t sizes[] = {0,    4,         100,         300,
                            4096, LARGE / 2, LARGE + 200, (size_t)whole.st_size - 5};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        struct rlimit old, limit;
        scratch_write(path, "old", 3);
        getrlimit(RLIMIT_FSIZE, &old);
        limit =
            (struct rlimit){MAX(sizes[i], 3), old.rlim_max}; /* 3: expect_failure writes "old" */
        setrlimit(RLIMIT_FSIZE, &limit);
        expect_failure(folder, path, &(Plan){.fail_at = 9}, EXIT_WORLD,
                       "x.safetensors: cannot write the file: File too large");
        setrlimit(RLIMIT_FSIZE, &old);
    }
    for (size_t item = 0; item < 2; item++)
        expect_failure(folder, path, &(Plan){.fail_at = item}, EXIT_DATA, "no data");
    char *temporary = xprintf("%s.tmp.%ld.0", path, (long)getpid());
    expect_failure(folder, path, &(Plan){.fail_at = 9, .sabotage = temporary}, EXIT_WORLD,
                   "x.safetensors: reads back otherwise");
    assert_false(write_large("/no/such/folder/x.safetensors", &(Plan){.fail_at = 9}, &e));
    assert_int_equal(e.exit_code, EXIT_WORLD);
    free(temporary);
    free(path);
}

/* A small file with a digest, in memory. */
static uint8_t *digest_file(const char *folder, size_t *n) {
    char *path = xprintf("%s/digest.safetensors", folder);
    float values[300];
    for (int i = 0; i < 300; i++) values[i] = (float)i / 7;
    SafetensorsItem items[] = {{"a.weight", DT_F32, 2, {15, 20}, values},
                               {"a.bias", DT_F32, 1, {20}, values}};
    SafetensorsMetadata metadata[] = {{"format", "pt"}, {"lora_adapter_metadata", "{\"r\": 4}"}};
    SafetensorsFile file = {
        .items = items, .n_items = 2, .metadata = metadata, .n_metadata = 2, .digest = true};
    Error e = {0};
    if (!safetensors_write(path, &file, &e)) fail_msg("%s", e.text);
    uint8_t *bytes = scratch_read(path, n);
    free(path);
    return bytes;
}

static bool is_good(const uint8_t *bytes, size_t n) {
    Safetensors s;
    Error e;
    bool good = safetensors_parse(&s, bytes, n, "file", &e) && safetensors_verify(&s, &e);
    safetensors_close(&s);
    return good;
}

static void test_digest_value(void **state) {
    size_t n;
    uint8_t *bytes = digest_file(*state, &n);
    static const char field[] = "\"cogsmith.xxh3\":\"";
    char *at = memmem(bytes, n, field, strlen(field));
    assert_non_null(at);
    at += strlen(field);
    char expected[33], written[33] = {0};
    memcpy(written, at, 32);
    memset(at, '0', 32);
    XXH128_hash_t h = XXH3_128bits(bytes, n);
    snprintf(expected, 33, "%016llx%016llx", (unsigned long long)h.high64,
             (unsigned long long)h.low64);
    assert_string_equal(written, expected);
    free(bytes);
}

static void test_digest_flips(void **state) {
    size_t n;
    uint8_t *bytes = digest_file(*state, &n);
    size_t header_bits = (8 + bytes[0] + 256u * bytes[1]) * 8, missed = 0;
    assert_true(is_good(bytes, n));
    srand(3);
    for (size_t i = 0; i < header_bits + 100; i++) {
        size_t bit = i < header_bits ? i : header_bits + (size_t)rand() % (n * 8 - header_bits);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (is_good(bytes, n)) missed++, print_message("byte %zu bit %zu\n", bit / 8, bit % 8);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    assert_int_equal(missed, 0);
    for (size_t cut = 1; cut < n; cut++)
        if (is_good(bytes, n - cut)) fail_msg("%zu bytes cut and not seen", cut);
    assert_true(is_good(bytes, n));
    free(bytes);
}

static int set_up(void **state) {
    *state = scratch_make();
    return 0;
}

static int tear_down(void **state) {
    scratch_remove(*state);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_error_text),
        cmocka_unit_test(test_largest_header),
        cmocka_unit_test_setup_teardown(test_not_files, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_published_bytes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_round_trip, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_writer_failures, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_digest_value, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_digest_flips, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
