/* Token ids against those of the published tokenizer, and folders that are not as they should be.
 */
#define _XOPEN_SOURCE 700
#include "data/safetensors.h"
#include "data/sentencepiece.h"
#include "data/spiece.h"
#include "data/tokenizer.h"
#include "tests/data/golden.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

enum { L = TOKENIZER_LENGTH };

static Tokenizer *open_tokenizer(const char *folder) {
    Error e;
    Tokenizer *t = tokenizer_open(folder, &e);
    if (!t) fail_msg("%s", e.text);
    return t;
}

static bool encode(const Tokenizer *t, const char *text, int64_t ids[L]) {
    Error e;
    bool cut;
    if (!tokenizer_encode(t, text, strlen(text), L, ids, &cut, &e)) fail_msg("%s", e.text);
    return cut;
}

/* ---- golden -----------------------------------------------------------------------------------
 */

static void check_case(void *tokenizer, const Json *line) {
    int64_t want[L] = {0}, got[L];
    size_t n = 0;
    const char *text, *kind;
    Error e;
    assert_true(json_get_string(line, "text", &text, &e) &&
                json_get_string(line, "kind", &kind, &e) &&
                json_get_ints(line, "ids", want, L, &n, &e));
    encode(tokenizer, text, got);
    for (int i = 0; i < L; i++)
        if (got[i] != want[i])
            fail_msg("%s \"%.60s\": id %d is %lld, expected %lld", kind, text, i, (long long)got[i],
                     (long long)want[i]);
}

static void every_text_has_the_published_ids(void **state) {
    assert_int_equal(golden_lines("t5/tokenizer/cases.jsonl", check_case, *state), 300);
}

static void check_bytes(void *tokenizer, const Json *line) {
    int64_t want[64], *got;
    char text[64];
    size_t n = 0, count, bytes;
    const char *hex;
    Error e;
    assert_true(json_get_string(line, "hex", &hex, &e) &&
                json_get_ints(line, "pieces", want, 64, &n, &e));
    for (bytes = 0; hex[2 * bytes]; bytes++) {
        unsigned byte;
        assert_int_equal(sscanf(hex + 2 * bytes, "%2x", &byte), 1);
        text[bytes] = (char)byte;
    }
    const Tokenizer *t = tokenizer;
    assert_true(sentencepiece_encode(t->pieces, text, bytes, &got, &count, &e));
    assert_int_equal(count, n);
    assert_memory_equal(got, want, n * sizeof *got);
    free(got);
    bool cut;
    int64_t ids[L];
    assert_false(tokenizer_encode(t, text, bytes, L, ids, &cut, &e));
    assert_int_equal(e.exit_code, EXIT_DATA);
}

static void malformed_bytes_have_the_published_pieces_and_are_refused(void **state) {
    assert_int_equal(golden_lines("t5/tokenizer/cases_bytes.jsonl", check_bytes, *state), 11);
}

static void prompts_have_the_ids_of_the_golden_batch(void **state) {
    char *path = golden_find("t5/prompts.json"), *batch = golden_find("t5/ids.safetensors");
    size_t n;
    char *text = (char *)scratch_read(path, &n), *object;
    object = xprintf("{\"prompts\": %.*s}", (int)n, text);
    Json j;
    Error e;
    const char *prompts[8];
    size_t count = 0;
    Safetensors file;
    assert_true(json_parse(&j, object, strlen(object), path, &e));
    assert_true(json_get_strings(&j, "prompts", prompts, 8, &count, &e));
    assert_true(safetensors_open(&file, batch, &e));
    const SafetensorsTensor *want = safetensors_find(&file, "input_ids");
    assert_true(count == 3 && want && want->shape[1] == L);
    for (size_t i = 0; i < count; i++) {
        int64_t got[L];
        assert_true(encode(*state, prompts[i], got) == (i == 2));
        assert_memory_equal(got, (const char *)want->data + i * sizeof got, sizeof got);
    }
    safetensors_close(&file);
    json_close(&j);
    free(object);
    free(text);
    free(path);
    free(batch);
}

/* ---- the shape of the output ------------------------------------------------------------------
 */

static void a_cut_is_said(void **state) {
    char text[2 * 300 + 1];
    for (int n = 222; n < 230; n++) {
        int64_t ids[L];
        for (int i = 0; i < n; i++) memcpy(text + 2 * i, "a ", 3);
        assert_true(encode(*state, text, ids) == (n > L - 1));
        assert_true(ids[MIN(n, L - 1)] == 1);
        for (int i = n + 1; i < L; i++) assert_true(ids[i] == 0);
    }
    int64_t short_ids[3];
    bool cut;
    Error e;
    assert_true(tokenizer_encode(*state, "a a a", 5, 3, short_ids, &cut, &e) && cut);
    assert_true(short_ids[0] == 7 && short_ids[1] == 7 && short_ids[2] == 1);
}

/* U+0085 is white space to Python, which takes it away beside <extra_id_k>, and unknown to
 * SentencePiece. */
static void extra_ids_eat_white_space(void **state) {
    int64_t want[L], ids[L];
    encode(*state, "a<extra_id_3>a", want);
    encode(*state,
           "a \xc2\x85<extra_id_3>\xc2\x85\xe3\x80\x80"
           "a",
           ids);
    assert_memory_equal(ids, want, sizeof ids);
    encode(*state,
           "a\xc2\x85<unk>\xc2\x85"
           "a",
           ids);
    assert_true(ids[0] == 7 && ids[1] == 2 && ids[2] == 2 && ids[3] != 7);
}

static void a_text_that_is_too_long_is_refused(void **state) {
    size_t n = CAPTION_MAX_BYTES + 1;
    char *text = memset(xcalloc(n, 1), 'a', n);
    int64_t ids[L];
    bool cut;
    Error e;
    assert_false(tokenizer_encode(*state, text, n, L, ids, &cut, &e));
    assert_true(e.exit_code == EXIT_DATA && strstr(e.text, "at most"));
    assert_true(tokenizer_encode(*state, text, 100000, L, ids, &cut, &e) && cut);
    free(text);
}

/* ---- folders ----------------------------------------------------------------------------------
 */

/* A folder that holds the golden spiece.model, and the other file given. */
static char *folder_with(const char *name, const char *text) {
    char *folder = scratch_make(), *from = golden_find("t5/tokenizer/spiece.model");
    char *model = xprintf("%s/spiece.model", folder), *file = xprintf("%s/%s", folder, name);
    size_t n;
    uint8_t *bytes = scratch_read(from, &n);
    scratch_write(model, bytes, n);
    scratch_write(file, text, strlen(text));
    free(bytes);
    free(from);
    free(model);
    free(file);
    return folder;
}

static void expect_ids(const char *name, const char *config, const char *text, int n,
                       const int64_t *want) {
    char *folder = folder_with(name, config);
    Tokenizer *t = open_tokenizer(folder);
    int64_t ids[L];
    encode(t, text, ids);
    for (int i = 0; i < n; i++)
        if (ids[i] != want[i]) fail_msg("%s %s: id %d is %lld", name, config, i, (long long)ids[i]);
    tokenizer_close(t);
    scratch_remove(folder);
}

static void the_folder_decides_the_special_tokens(void **state) {
    (void)state;
    static const char text[] = "a <extra_id_3> a<new> a</s>";
    expect_ids("other.json", "{}", text, 4, (const int64_t[]){7, 896, 7, 2});
    expect_ids("tokenizer_config.json", "{\"eos_token\": {\"content\": \"</s>\"}}", text, 3,
               (const int64_t[]){7, 896, 7});
    expect_ids("tokenizer_config.json", "{\"extra_ids\": 5}", text, 3,
               (const int64_t[]){7, 801, 7});
    expect_ids("added_tokens.json", "{\"<new>\": 905, \"<extra_id_3>\": 896}", text, 6,
               (const int64_t[]){7, 896, 7, 905, 7, 1});
    static const char decoder[] = "{\"added_tokens_decoder\": {\"907\": {\"content\": \"<new\"},"
                                  "\"906\": {\"content\": \"<new>\", \"lstrip\": true}}}";
    expect_ids("tokenizer_config.json", decoder, text, 6, (const int64_t[]){7, 896, 7, 906, 7, 1});
}

static void expect_refused(const char *name, const char *text, const char *word) {
    char *folder = folder_with(name, text);
    Error e = {0};
    Tokenizer *t = tokenizer_open(folder, &e);
    if (t || e.exit_code != EXIT_USER || !strstr(e.text, word))
        fail_msg("%s %s: expected an error about %s, got \"%s\"", name, text, word, e.text);
    scratch_remove(folder);
}

static void bad_folders_are_refused(void **state) {
    (void)state;
    expect_refused("tokenizer_config.json", "{\"legacy\": false}", "legacy");
    expect_refused("tokenizer_config.json", "{\"tokenizer_class\": \"BertTokenizer\"}", "class");
    expect_refused("tokenizer_config.json", "{\"eos_token\": \"</nothing>\"}", "eos_token");
    expect_refused("tokenizer_config.json", "{\"extra_ids\": -1}", "extra_ids");
    expect_refused("tokenizer_config.json", "{\"model_max_length\": 1}", "model_max_length");
    expect_refused("tokenizer_config.json", "{\"added_tokens_decoder\": {\"x\": {}}}", "\"x\"");
    expect_refused("tokenizer_config.json", "{\"added_tokens_decoder\": {\"9\": {}}}", "content");
    expect_refused("tokenizer_config.json", "[]", "object");
    expect_refused("added_tokens.json", "{\"<new>\": -4}", "<new>");
    expect_refused("spiece.model", "", "no pieces");
    Error e;
    assert_null(tokenizer_open("/nowhere", &e));
}

/* ---- hostile models ---------------------------------------------------------------------------
 */

static void use(void *tokenizer, const Json *line) {
    const Tokenizer *t = tokenizer;
    int64_t ids[L];
    const char *text;
    bool cut;
    Error e;
    assert_true(json_get_string(line, "text", &text, &e));
    tokenizer_encode(t, text, strlen(text), L, ids, &cut, &e);
}

/* Opens the model, which must do or give an error, and uses it; true: it could be opened. */
static bool try_model(const uint8_t *bytes, size_t n) {
    Tokenizer t = {.eos = 1};
    Error e = {0};
    uint8_t *copy = memcpy(xcalloc(n, 1), bytes, n); /* of exactly this size, for the sanitizer */
    if (spiece_check(copy, n, "spiece.model", &e))
        t.pieces = sentencepiece_open(copy, n, "spiece.model", &e);
    free(copy);
    if (!t.pieces) {
        assert_int_equal(e.exit_code, EXIT_USER);
        return false;
    }
    golden_lines("t5/tokenizer/cases.jsonl", use, &t);
    sentencepiece_close(t.pieces);
    return true;
}

static void a_cut_or_mutated_model_is_no_crash(void **state) {
    (void)state;
    int rounds = getenv("COGSMITH_FULL") ? 3000 : 100, opened = 0;
    char *path = golden_find("t5/tokenizer/spiece.model");
    size_t n;
    uint8_t *model = scratch_read(path, &n), *bytes = xcalloc(n, 1);
    uint64_t random = 88172645463325252u;
    assert_true(try_model(model, n));
    for (int i = 0; i < rounds; i++) {
        memcpy(bytes, model, n);
        for (int k = 0; k <= i % 5; k++) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            size_t at = (random >> 8) % (k % 2 ? 12000 : n); /* the pieces come first */
            bytes[k == 4 ? n - 1 - at : at] = (uint8_t)random;
        }
        opened += try_model(bytes, n);
        opened += try_model(model, (random >> 20) % n);
    }
    print_message("%d of %d cut and mutated models could be opened\n", opened, 2 * rounds);
    free(bytes);
    free(model);
    free(path);
}

/* A model of three pieces whose normalizer's map is `map`. */
static bool try_map(const uint8_t *map, uint8_t n) {
    static const uint8_t PIECES[] = "\x0a\x09\x0a\x05<unk>\x18\x02\x0a\x0c\x0a\x03\xe2\x96\x81\x15"
                                    "\0\0\x80\xbf\x18\x01";
    uint8_t model[256];
    size_t at = sizeof PIECES - 1;
    memcpy(model, PIECES, at);
    model[at++] = 0x1a, model[at++] = (uint8_t)(n + 2), model[at++] = 0x12, model[at++] = n;
    memcpy(model + at, map, n);
    return try_model(model, at + n);
}

static void a_map_that_leaves_itself_is_refused(void **state) {
    (void)state;
    static const uint8_t outside[] = {8, 0, 0, 0, 0, 0xff, 0xff, 0x7f, 0, 0, 0, 0, 'x', 0};
    static const uint8_t no_end[] = {8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 'x', 'y'};
    static const uint8_t too_long[] = {255, 255, 255, 255, 0, 0, 0, 0};
    assert_true(try_map(outside, 0));
    assert_false(try_map(outside, sizeof outside));
    assert_false(try_map(no_end, sizeof no_end));
    assert_false(try_map(too_long, sizeof too_long));
}

/* A whole trie whose node points to itself, so that a key of any length is found. */
static void a_map_without_end_is_refused(void **state) {
    (void)state;
    enum { UNITS = 256, MAP = 4 + 4 * UNITS + 2 };
    uint8_t model[64 + MAP] = {0}, *map;
    static const uint8_t HEAD[] = "\x0a\x09\x0a\x05<unk>\x18\x02\x0a\x05\x0a\x01"
                                  "a\x18\x01";
    size_t at = sizeof HEAD - 1;
    memcpy(model, HEAD, at);
    model[at++] = 0x1a;
    model[at++] = 0x80 | ((MAP + 3) & 127), model[at++] = (MAP + 3) >> 7;
    model[at++] = 0x12, model[at++] = 0x80 | (MAP & 127), model[at++] = MAP >> 7;
    map = model + at;
    map[1] = 4 * UNITS >> 8;
    for (int i = 0; i < UNITS; i++) map[4 + 4 * i] = i == 'a' ? 'a' : (uint8_t)(i ^ 1);
    /* Unit 'a' leads to node 0 again: offset 'a'. */
    map[4 + 4 * 'a' + 1] = (uint8_t)('a' << 2), map[4 + 4 * 'a' + 2] = 'a' >> 6;
    assert_false(try_model(model, at + MAP));
    map[4 + 4 * 'a'] = 'a' ^ 1;
    map[4 + 4 * 'a' + 1] = map[4 + 4 * 'a' + 2] = 0;
    assert_true(try_model(model, at + MAP));
}

static int setup(void **state) {
    char *folder = golden_find("t5/tokenizer");
    *state = open_tokenizer(folder);
    free(folder);
    return 0;
}

static int teardown(void **state) {
    tokenizer_close(*state);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_text_has_the_published_ids),
        cmocka_unit_test(malformed_bytes_have_the_published_pieces_and_are_refused),
        cmocka_unit_test(prompts_have_the_ids_of_the_golden_batch),
        cmocka_unit_test(a_cut_is_said),
        cmocka_unit_test(extra_ids_eat_white_space),
        cmocka_unit_test(a_text_that_is_too_long_is_refused),
        cmocka_unit_test(the_folder_decides_the_special_tokens),
        cmocka_unit_test(bad_folders_are_refused),
        cmocka_unit_test(a_cut_or_mutated_model_is_no_crash),
        cmocka_unit_test(a_map_that_leaves_itself_is_refused),
        cmocka_unit_test(a_map_without_end_is_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
