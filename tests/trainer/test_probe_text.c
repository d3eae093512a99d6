/* The text rows of `probe`: the program against the published ids and embeddings, and mistakes. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/data/golden.h"
#include "tests/trainer/program.h"

#include <math.h>

static char *folder, *model, *ids_file, *captions; /* of the test; the golden ones */

static char *setting(const char *key, const char *value) { return xprintf("%s=%s", key, value); }

/* Runs probe with the settings; the result's path in `folder` is out.safetensors. */
static const Run *probe(const char *path, const char *key, const char *value) {
    static char *args[3];
    for (int i = 0; i < 3; i++) free(args[i]);
    args[0] = setting("model.path", path);
    args[1] = setting(key, value);
    args[2] = xprintf("probe.out=%s/out.safetensors", folder);
    return RUN("probe", args[0], args[1], args[2]);
}

static Safetensors result(const Run *r) {
    Safetensors s;
    Error e;
    char *path = xprintf("%s/out.safetensors", folder);
    if (r->code) fail_msg("%s", r->err);
    assert_true(!strncmp(r->out, path, strlen(path)) && safetensors_open(&s, path, &e));
    free(path);
    return s;
}

static void embeddings_come_out(void **state) {
    (void)state;
    char *golden = golden_find("t5/embeddings.safetensors"),
         *own = xprintf("%s/text_encoder", model);
    const char *const paths[] = {model, own};
    for (int i = 0; i < 2; i++) {
        Safetensors got = result(probe(paths[i], "probe.inputs", ids_file)), want;
        Error e;
        assert_true(safetensors_open(&want, golden, &e));
        const SafetensorsTensor *a = safetensors_find(&got, "embeddings");
        const SafetensorsTensor *b = safetensors_find(&want, "embeddings");
        assert_true(a && a->dtype == DT_F32 && a->n_dims == 3 && a->bytes == b->bytes);
        assert_memory_equal(a->shape, b->shape, sizeof a->shape);
        for (size_t k = 0; k < a->bytes / 4; k++)
            assert_true(fabsf(((const float *)a->data)[k] - ((const float *)b->data)[k]) <= 8e-5f);
        safetensors_close(&got);
        safetensors_close(&want);
    }
    free(golden);
    free(own);
}

typedef struct {
    const int64_t *got;
    int length;
} Rows;

static void check_row(void *context, const Json *line) {
    Rows *rows = context;
    int64_t want[226] = {0};
    size_t n = 0;
    Error e;
    assert_true(json_get_ints(line, "ids", want, 226, &n, &e));
    if ((int)n <= rows->length)
        assert_memory_equal(rows->got, want, (size_t)rows->length * sizeof *want);
    else
        assert_int_equal(rows->got[rows->length - 1], 1);
    rows->got += rows->length;
}

static void check_ids(const char *path, int length) {
    const Run *r = probe(path, "probe.captions", captions);
    assert_non_null(strstr(r->err, "cases.jsonl, line 45: the caption is cut"));
    assert_null(strstr(r->err, "line 40:"));
    Safetensors s = result(r);
    const SafetensorsTensor *t = safetensors_find(&s, "input_ids");
    assert_true(t && t->dtype == DT_I64 && t->n_dims == 2 && t->shape[1] == length);
    Rows rows = {t->data, length};
    assert_int_equal(golden_lines("t5/tokenizer/cases.jsonl", check_row, &rows), t->shape[0]);
    safetensors_close(&s);
}

static void ids_come_out(void **state) {
    (void)state;
    char *own = xprintf("%s/tokenizer", model);
    check_ids(model, 226);
    check_ids(own, 226);
    free(own);
}

/* Writes `text` to a file of the test, and runs probe on it. */
static const Run *probe_captions(const char *text) {
    static char *path;
    free(path);
    path = xprintf("%s/captions.jsonl", folder);
    write_text(path, text);
    return probe(model, "probe.captions", path);
}

/* The length is the transformer's max_text_seq_length where there is one. */
static void the_transformer_says_how_long(void **state) {
    (void)state;
    char *copy = xprintf("%s/model", folder), *sub = xprintf("%s/transformer", copy);
    char *config = xprintf("%s/config.json", sub);
    copy_files(model, copy);
    assert_int_equal(mkdir(sub, 0700), 0);
    write_text(config, "{\"max_text_seq_length\": 90}");
    check_ids(copy, 90);
    write_text(config, "{\"max_text_seq_length\": 1}");
    REFUSED(probe(copy, "probe.captions", captions), EXIT_USER, "max_text_seq_length",
            "config.json");
    free(copy);
    free(sub);
    free(config);
}

static void mistakes_are_said(void **state) {
    (void)state;
    REFUSED(probe_captions("{\"text\": \"a\"}\n{\"txt\": \"b\"}\n"), EXIT_USER, "line 2",
            "\"text\"");
    REFUSED(probe_captions("{\"text\": 4}\n"), EXIT_USER, "line 1", "a text");
    REFUSED(probe_captions("{\"text\": \"\xff\"}\n"), EXIT_USER, "line 1", "0xff");
    REFUSED(probe_captions("{\"text\": \"\xc3"), EXIT_USER, "line 1");
    REFUSED(probe_captions("{\"text\": \"a\"}\n\n"), EXIT_USER, "line 2");
    REFUSED(probe_captions(""), EXIT_USER, "captions.jsonl", "at least one line");
    REFUSED(probe(model, "probe.captions", "/nowhere"), EXIT_USER, "/nowhere");
    REFUSED(probe("/nowhere", "probe.captions", captions), EXIT_USER, "no such folder");
    REFUSED(probe(folder, "probe.captions", captions), EXIT_USER, "tokenizer/spiece.model");
    REFUSED(probe(folder, "probe.inputs", ids_file), EXIT_USER, "text_encoder/config.json");
    char *path = xprintf("%s/in.safetensors", folder);
    int64_t ids[] = {1, 928};
    SafetensorsItem items[] = {{"input_ids", DT_I64, 2, {1, 2}, ids},
                               {"latents", DT_I64, 1, {1}, ids}};
    SafetensorsFile file = {.items = items, .n_items = 1};
    Error e;
    assert_true(safetensors_write(path, &file, &e));
    REFUSED(probe(model, "probe.inputs", path), EXIT_USER, "token 1", "928");
    file.n_items = 2;
    assert_true(safetensors_write(path, &file, &e));
    REFUSED(probe(model, "probe.inputs", path), EXIT_USER, "latents", "alone");
    items[0].n_dims = 3;
    items[0].shape[2] = 1;
    file.n_items = 1;
    assert_true(safetensors_write(path, &file, &e));
    REFUSED(probe(model, "probe.inputs", path), EXIT_USER, "input_ids", "[n,L]");
    free(path);
}

static int setup(void **state) {
    (void)state;
    folder = scratch_make();
    model = golden_find("t5");
    ids_file = golden_find("t5/ids.safetensors");
    captions = golden_find("t5/tokenizer/cases.jsonl");
    return 0;
}

static int teardown(void **state) {
    (void)state;
    scratch_remove(folder);
    free(model);
    free(ids_file);
    free(captions);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(embeddings_come_out),
        cmocka_unit_test(ids_come_out),
        cmocka_unit_test(the_transformer_says_how_long),
        cmocka_unit_test(mistakes_are_said),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
