/* Dataset layouts: each is recognised and read in its order, and each mistake is one clear error
 * that names the file and the line. The clips here hold a word: nothing opens them. */
#define _GNU_SOURCE
#include "data/dataset.h"
#include "tests/data/folder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <sys/stat.h>

#include <cmocka.h>

/* Writes a file below the folder, and the folders on its way. */
static void put_bytes(const char *name, const void *bytes, size_t n) {
    char *path = xprintf("%s/%s", folder, name);
    for (char *c = path + strlen(folder) + 1; *c; c++) {
        if (*c != '/') continue;
        *c = 0;
        mkdir(path, 0755);
        *c = '/';
    }
    scratch_write(path, bytes, n);
    free(path);
}

static void put(const char *name, const char *text) { put_bytes(name, text, strlen(text)); }

static void put_clips(const char *const *names, size_t n) {
    for (size_t i = 0; i < n; i++) put(names[i], "clip");
}
#define PUT_CLIPS(...)                                                                             \
    put_clips((const char *const[]){__VA_ARGS__}, COUNT(((const char *const[]){__VA_ARGS__})))

/* "video|image|caption|origin" of an item, paths without the folder. */
static void expect_item(const Dataset *d, size_t i, const char *expected) {
    size_t skip = strlen(folder) + 1;
    assert_in_range(i, 0, d->n_items - 1);
    const DatasetItem *item = &d->items[i];
    assert_int_equal(strncmp(item->video, folder, skip - 1), 0);
    char *got = xprintf("%s|%s|%s|%s", item->video + skip, item->image ? item->image + skip : "",
                        item->caption, item->origin);
    assert_string_equal(got, expected);
    free(got);
}

/* Opens the dataset, which must be recognised by a sentence that has `layout` in it and hold the
 * items up to NULL. */
static void expect_items(const char *trigger, const char *layout, const char *const *items) {
    Dataset d;
    Error e = {0};
    if (!dataset_open(&d, folder, trigger, false, &e)) fail_msg("%s", e.text);
    if (!strstr(d.layout, layout)) fail_msg("expected \"%s\" in: %s", layout, d.layout);
    size_t n = 0;
    for (; items[n]; n++) expect_item(&d, n, items[n]);
    assert_int_equal(d.n_items, n);
    assert_int_equal(d.n_problems, 0);
    dataset_close(&d);
}
#define EXPECT(trigger, layout, ...)                                                               \
    expect_items(trigger, layout, (const char *const[]){__VA_ARGS__, NULL})

static void expect_error(const char *part, const char *other) {
    Dataset d;
    Error e = {0};
    if (dataset_open(&d, folder, "", false, &e))
        fail_msg("opened as: %s; expected: %s", d.layout, part);
    assert_int_equal(e.exit_code, EXIT_DATA);
    assert_null(d.items);
    if (!strstr(e.text, folder) || !strstr(e.text, part) || !strstr(e.text, other))
        fail_msg("expected \"%s\" and \"%s\" in: %s", part, other, e.text);
}

static void remove_file(const char *name) {
    char *path = xprintf("%s/%s", folder, name);
    assert_int_equal(unlink(path), 0);
    free(path);
}

static void test_pairs(void **state) {
    (void)state;
    PUT_CLIPS("b.mp4", "a.mov", "a b.WEBM", ".hidden.mp4");
    put("b.txt", "\xef\xbb\xbf  two\r\nlines \n\n");
    put("a.txt", "gr\xc3\xbc\xc3\x9f");
    put("a b.txt", "with a blank");
    put("picture.png", "not ours");
    EXPECT("", "clips beside their captions", "a.mov||gr\xc3\xbc\xc3\x9f|a.txt:1",
           "a b.WEBM||with a blank|a b.txt:1", "b.mp4||two\r\nlines|b.txt:1");
}

static void test_pairs_in_two_folders(void **state) {
    (void)state;
    PUT_CLIPS("videos/1.mp4", "videos/2.mp4");
    put("labels/1.txt", "one");
    put("labels/2.txt", "two");
    EXPECT("", "clips in videos/ with captions in labels/", "videos/1.mp4||one|labels/1.txt:1",
           "videos/2.mp4||two|labels/2.txt:1");
}

static void test_lists(void **state) {
    (void)state;
    static const char *const NAMES[][2] = {{"prompts.txt", "videos.txt"},
                                           {"prompt.txt", "videos.txt"},
                                           {"captions.txt", "video.txt"},
                                           {"caption.txt", "video.txt"}};
    PUT_CLIPS("videos/1.mp4", "videos/2.mp4");
    for (size_t i = 0; i < COUNT(NAMES); i++) {
        put(NAMES[i][0], "second clip\r\n first clip \r\n\r\n");
        put(NAMES[i][1], "\xef\xbb\xbfvideos/2.mp4\n./videos/1.mp4");
        char *first = xprintf("videos/2.mp4||second clip|%s:1", NAMES[i][0]);
        char *second = xprintf("./videos/1.mp4||first clip|%s:2", NAMES[i][0]);
        EXPECT("", NAMES[i][0], first, second);
        free(first);
        free(second);
        remove_file(NAMES[i][0]);
        remove_file(NAMES[i][1]);
    }
    PUT_CLIPS("images/1.png", "images/2.png");
    put("prompts.txt", "one\ntwo\n");
    put("videos.txt", "videos/1.mp4\nvideos/2.mp4\n");
    put("images.txt", "images/1.png\nimages/2.png\n");
    EXPECT("", "prompts.txt with videos.txt and images.txt",
           "videos/1.mp4|images/1.png|one|prompts.txt:1",
           "videos/2.mp4|images/2.png|two|prompts.txt:2");
}

/* A caption that happens to have the name of a list. */
static void test_list_name_as_caption(void **state) {
    (void)state;
    PUT_CLIPS("prompt.mp4", "videos.mp4");
    put("prompt.txt", "one");
    put("videos.txt", "two");
    EXPECT("", "clips beside", "prompt.mp4||one|prompt.txt:1", "videos.mp4||two|videos.txt:1");
}

static void test_csv(void **state) {
    (void)state;
    PUT_CLIPS("clips/1.mp4", "2.mp4");
    put("metadata.csv", "\xef\xbb\xbfid, file_name ,text\r\n"
                        "7,clips/1.mp4,\"a \"\"quoted\"\" word, a comma\r\nand a line\"\r\n"
                        "\r\n"
                        "8,2.mp4, plain \r\n");
    static const char *const ITEMS[] = {
        "clips/1.mp4||a \"quoted\" word, a comma\r\nand a line|metadata.csv:2",
        "2.mp4||plain|metadata.csv:5", NULL};
    expect_items("", "metadata.csv with file_name and a caption; 2 items.", ITEMS);
    PUT_CLIPS("3.mp4", "other.mov");
    expect_items("", "; 2 items; clips beside them that are not named: 2.", ITEMS);
}

static void test_json(void **state) {
    (void)state;
    PUT_CLIPS("1.mp4", "2.mp4");
    put("metadata.json", "[{\"file_name\": \"2.mp4\", \"prompt\": \"two \\u00fc\"},\n"
                         " {\"caption\": \"one\", \"file_name\": \"1.mp4\", \"n\": 3}]");
    EXPECT("", "metadata.json", "2.mp4||two \xc3\xbc|metadata.json:1",
           "1.mp4||one|metadata.json:2");
    remove_file("metadata.json");
    put("metadata.jsonl", "{\"file_name\": \"2.mp4\", \"text\": \"two\"}\n\n"
                          "{\"file_name\": \"1.mp4\", \"text\": \"one\"}");
    EXPECT("", "metadata.jsonl", "2.mp4||two|metadata.jsonl:1", "1.mp4||one|metadata.jsonl:3");
}

static void test_cogkit(void **state) {
    (void)state;
    PUT_CLIPS("videos/x.mp4", "videos/y.mp4", "images/x.png");
    put("metadata.jsonl", "{\"id\": 1, \"prompt\": \"one\"}\n{\"id\": 0, \"prompt\": \"zero\"}\n");
    put("videos/metadata.jsonl",
        "{\"file_name\": \"x.mp4\", \"id\": 0}\n{\"file_name\": \"y.mp4\", \"id\": 1}\n");
    put("images/metadata.jsonl", "{\"file_name\": \"x.png\", \"id\": 0}\n");
    EXPECT("", "CogKit", "videos/y.mp4||one|metadata.jsonl:1",
           "videos/x.mp4|images/x.png|zero|metadata.jsonl:2");
    put("images/metadata.jsonl", "{\"file_name\": \"x.png\", \"id\": 5}\n");
    expect_error("images/metadata.jsonl:1", "the id 5 has no caption");
    put("images/metadata.jsonl", "");
    put("videos/metadata.jsonl", "{\"file_name\": \"x.mp4\", \"id\": 0}\n");
    expect_error("metadata.jsonl:1", "has no id 1");
    put("videos/metadata.jsonl",
        "{\"file_name\": \"x.mp4\", \"id\": 0}\n{\"file_name\": \"y.mp4\", \"id\": \"0\"}\n");
    expect_error("videos/metadata.jsonl:2", "twice");
    remove_file("images/metadata.jsonl");
    expect_error("images: ", "no metadata.jsonl");
}

static void test_one_file(void **state) {
    (void)state;
    Dataset d;
    Error e = {0};
    PUT_CLIPS("a.mp4", "b.mp4");
    put("a.txt", "one");
    char *path = xprintf("%s/a.mp4", folder);
    if (!dataset_open(&d, path, "", false, &e)) fail_msg("%s", e.text);
    assert_int_equal(d.n_items, 1);
    expect_item(&d, 0, "a.mp4||one|a.txt:1");
    dataset_close(&d);
    path[strlen(path) - 5] = 'b';
    assert_false(dataset_open(&d, path, "", false, &e));
    assert_non_null(strstr(e.text, "b.mp4: it has no caption: expected b.txt"));
    free(path);
    put("other.jsonl", "{\"file_name\": \"b.mp4\", \"text\": \"two\"}");
    path = xprintf("%s/other.jsonl", folder);
    if (!dataset_open(&d, path, "", false, &e)) fail_msg("%s", e.text);
    expect_item(&d, 0, "b.mp4||two|other.jsonl:1");
    dataset_close(&d);
    free(path);
    path = xprintf("%s/nothing", folder);
    assert_false(dataset_open(&d, path, "", false, &e));
    assert_int_equal(e.exit_code, EXIT_USER);
    assert_non_null(strstr(e.text, path));
    free(path);
}

static void test_trigger(void **state) {
    (void)state;
    PUT_CLIPS("a.mp4", "b.mp4");
    put("a.txt", " a cat");
    put("b.txt", "\n");
    EXPECT("ohwx", "beside", "a.mp4||ohwx a cat|a.txt:1", "b.mp4||ohwx|b.txt:1");
    EXPECT("ohwx: ", "beside", "a.mp4||ohwx: a cat|a.txt:1", "b.mp4||ohwx:|b.txt:1");
    expect_error("b.txt:1", "the caption is empty");
}

static void test_pair_errors(void **state) {
    (void)state;
    PUT_CLIPS("a.mp4", "b.mp4");
    put("a.txt", "one");
    expect_error("b.mp4", "it has no caption: expected b.txt");
    put("b.txt", "caf\xe9");
    expect_error("b.txt:1", "not UTF-8: see its byte 4");
    put("b.txt", "two");
    put("c.txt", "three");
    expect_error("c.txt", "there is no clip of this name");
    remove_file("c.txt");
    put("b.mov", "clip");
    expect_error("b.mov", "b.mp4 has the same stem");
    remove_file("b.mov");
    put_bytes("b.txt", "a\0b", 3);
    expect_error("b.txt:1", "zero byte");
}

static void test_list_errors(void **state) {
    (void)state;
    PUT_CLIPS("v/1.mp4", "v/2.mp4");
    put("prompts.txt", "one\ntwo\n");
    expect_error("prompts.txt", "there is no videos.txt");
    put("videos.txt", "v/1.mp4\n");
    expect_error("videos.txt:2", "videos.txt has 1 lines and prompts.txt has 2");
    put("videos.txt", "");
    expect_error("videos.txt", "the list is empty");
    put("videos.txt", "v/1.mp4\nv/3.mp4\n");
    expect_error("videos.txt:2", "v/3.mp4 cannot be read: No such file");
    put("videos.txt", "v/1.mp4\nv\n");
    expect_error("videos.txt:2", "v is not a file");
    put("videos.txt", "v/1.mp4\n\nv/2.mp4\n");
    expect_error("videos.txt:2", "a blank line");
    put("videos.txt", "v/1.mp4\nv/2.mp4\n");
    put("images.txt", "v/1.mp4\n");
    expect_error("images.txt:2", "images.txt has 1 lines");
    put("images.txt", "v/1.mp4\nv/1.png\n");
    expect_error("images.txt:2", "v/1.png cannot be read");
    put("prompts.txt", "one\n\xff\n");
    put("images.txt", "v/1.mp4\nv/1.mp4\n");
    expect_error("prompts.txt:2", "not UTF-8");
    remove_file("images.txt");
    remove_file("prompts.txt");
    expect_error("videos.txt", "there is no prompts.txt");
}

/* Paths that leave the folder are refused even if there is a file; links inside count. */
static void test_paths_that_leave(void **state) {
    (void)state;
    static const char *const OUTSIDE[] = {"../a.mp4", "v/../../a.mp4", "/etc/passwd", "./.././a"};
    char *outside = xprintf("%s/set/link.mp4", folder), *top = folder;
    PUT_CLIPS("a.mp4", "set/v/1.mp4");
    put("set/prompts.txt", "one\n");
    folder = xprintf("%s/set", top);
    for (size_t i = 0; i < COUNT(OUTSIDE); i++) {
        put("videos.txt", OUTSIDE[i]);
        expect_error("videos.txt:1", "leaves the dataset's folder");
    }
    assert_int_equal(symlink("../a.mp4", outside), 0);
    put("videos.txt", "v/../link.mp4");
    EXPECT("", "prompts.txt", "v/../link.mp4||one|prompts.txt:1");
    free(folder);
    free(outside);
    folder = top;
}

static void test_table_errors(void **state) {
    (void)state;
    static const struct {
        const char *file, *text, *part, *other;
    } CASES[] = {
        {"metadata.csv", "", "metadata.csv: ", "the table is empty"},
        {"metadata.csv", "file_name,text\n", ": ", "the dataset is empty"},
        {"metadata.csv", "file_name,text\n1.mp4\n", "metadata.csv:2", "1 cells"},
        {"metadata.csv", "file_name,text\n1.mp4,one\n1.mp4,\"two\n", "metadata.csv:3", "no end"},
        {"metadata.csv", "file_name,text\n1.mp4,\"one\"x\n", "metadata.csv:2", "after a quoted"},
        {"metadata.csv", "file,text\n1.mp4,one\n", "metadata.csv:2", "has no \"file_name\""},
        {"metadata.csv", "file_name,text,prompt\n1.mp4,one,two\n", "metadata.csv:2", "both"},
        {"metadata.jsonl", "\n", ": ", "the dataset is empty"},
        {"metadata.jsonl", "{\"file_name\": \"1.mp4\"}", "metadata.jsonl:1", "has no caption"},
        {"metadata.jsonl", "{\"file_name\": \"1.mp4\", \"text\": \"a\"}\n{", "metadata.jsonl:2",
         "not valid JSON"},
        {"metadata.jsonl", "{\"file_name\": 1.5}", "metadata.jsonl:1", "expected a text"},
        {"metadata.jsonl", "[]", "metadata.jsonl:1", "expected an object"},
        {"metadata.jsonl", "{\"text\": \"a\", \"text\": \"b\"}", "metadata.jsonl:1", "duplicate"},
        {"metadata.jsonl", "{\"file_name\": \"1.mp4\", \"text\": \"\xff\"}", "metadata.jsonl:1",
         "not valid JSON"},
        {"metadata.jsonl", "{\"file_name\": \"../1.mp4\", \"text\": \"a\"}", "metadata.jsonl:1",
         "leaves"},
        {"metadata.json", "{}", "metadata.json:1", "expected a list"},
        {"metadata.json", "[\n{\"file_name\" \"1.mp4\"}]", "metadata.json:2", "not valid JSON"},
    };
    put("1.mp4", "clip");
    for (size_t i = 0; i < COUNT(CASES); i++) {
        put(CASES[i].file, CASES[i].text);
        expect_error(CASES[i].part, CASES[i].other);
        remove_file(CASES[i].file);
    }
}

static void test_ambiguous(void **state) {
    (void)state;
    PUT_CLIPS("a.mp4", "videos/a.mp4");
    put("metadata.csv", "file_name,text\na.mp4,one\n");
    put("a.txt", "one");
    expect_error("metadata.csv and a.mp4", "two ways");
    remove_file("a.txt");
    put("metadata.jsonl", "{\"file_name\": \"a.mp4\", \"text\": \"one\"}");
    expect_error("metadata.csv and metadata.jsonl", "two ways");
    remove_file("metadata.jsonl");
    put("prompts.txt", "one\n");
    put("videos.txt", "a.mp4\n");
    expect_error("videos.txt and metadata.csv", "two ways");
    remove_file("metadata.csv");
    put("captions.txt", "one\n");
    expect_error("prompts.txt and captions.txt", "two ways");
}

static void test_nothing(void **state) {
    (void)state;
    expect_error("no dataset is recognised", "expected clips");
    put("train/metadata.jsonl", "{}");
    expect_error("no dataset is recognised", "/train?");
}

static void test_skip(void **state) {
    (void)state;
    Dataset d;
    Error e = {0};
    PUT_CLIPS("a.mp4", "b.mp4", "b.mov", "c.mp4", "d.mp4");
    put("a.txt", "one");
    put("b.txt", "two");
    put("d.txt", "\xff");
    if (!dataset_open(&d, folder, "", true, &e)) fail_msg("%s", e.text);
    assert_int_equal(d.n_items, 1);
    expect_item(&d, 0, "a.mp4||one|a.txt:1");
    assert_int_equal(d.n_problems, 3);
    assert_non_null(strstr(d.problems[0], "same stem"));
    assert_non_null(strstr(d.problems[1], "c.mp4: it has no caption"));
    assert_non_null(strstr(d.problems[2], "d.txt:1: the caption is not UTF-8"));
    dataset_close(&d);
    remove_file("a.mp4");
    remove_file("a.txt");
    assert_false(dataset_open(&d, folder, "", true, &e));
    assert_non_null(strstr(e.text, "none of its items can be used"));
}

/* Opening as an unprivileged user, for root reads everything. */
static void expect_denied(const char *part) {
    if (!getuid()) assert_int_equal(seteuid(65534), 0);
    expect_error(part, "Permission denied");
    if (!getuid()) assert_int_equal(seteuid(0), 0);
}

static void test_permissions(void **state) {
    (void)state;
    char *text = xprintf("%s/a.txt", folder);
    PUT_CLIPS("a.mp4");
    put("a.txt", "one");
    chmod(folder, 0755);
    chmod(text, 0);
    expect_denied("a.txt: cannot be read");
    chmod(folder, 0);
    expect_denied("the folder cannot be read");
    chmod(folder, 0700);
    free(text);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, enter, leave)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_pairs),        TEST(test_pairs_in_two_folders),
        TEST(test_lists),        TEST(test_list_name_as_caption),
        TEST(test_csv),          TEST(test_json),
        TEST(test_cogkit),       TEST(test_one_file),
        TEST(test_trigger),      TEST(test_pair_errors),
        TEST(test_list_errors),  TEST(test_paths_that_leave),
        TEST(test_table_errors), TEST(test_ambiguous),
        TEST(test_nothing),      TEST(test_skip),
        TEST(test_permissions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
