/* A file that is cut short while it is read: one clear line, and the exit code of the world. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/trainer/program.h"

#include <time.h>

/* One tensor of zeros, all of it a hole, and a digest that takes long to find wrong. */
static void write_hole(const char *path, int64_t bytes) {
    char *header =
        xprintf("{\"__metadata__\":{\"%s\":\"%032d\"},\"a\":{\"dtype\":\"F32\",\"shape\":"
                "[%lld],\"data_offsets\":[0,%lld]}}",
                SAFETENSORS_DIGEST_KEY, 0, (long long)bytes / 4, (long long)bytes);
    uint64_t n = strlen(header);
    char *whole = xcalloc(n + 8, 1);
    memcpy(whole, &n, 8);
    memcpy(whole + 8, header, n);
    scratch_write(path, whole, n + 8);
    assert_int_equal(truncate(path, (off_t)(8 + n) + bytes), 0);
    free(whole);
    free(header);
}

/* Whether the process has mapped the file. */
static bool mapped(pid_t child, const char *path) {
    char *maps = xprintf("/proc/%d/maps", (int)child), line[1024];
    FILE *file = fopen(maps, "r");
    bool found = false;
    while (file && !found && fgets(line, sizeof line, file)) found = strstr(line, path);
    if (file) fclose(file);
    free(maps);
    return found;
}

static void cut_while_read(void **state) {
    (void)state;
    char *folder = scratch_make(), *path = xprintf("%s/hole.safetensors", folder);
    write_hole(path, INT64_C(64) << 30);
    FILE *out = tmpfile(), *err = tmpfile();
    pid_t child = fork();
    if (!child) run_child(out, err, (char *[]){"cogsmith", "inspect", path, NULL});
    while (!mapped(child, path) && !kill(child, 0)) {
        nanosleep(&(struct timespec){0, 1000000}, NULL);
        assert_int_equal(waitpid(child, NULL, WNOHANG), 0);
    }
    assert_int_equal(truncate(path, 4096), 0);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), EXIT_WORLD);
    char *text = run_output(err);
    assert_parts(text, (const char *const[]){"cogsmith: a file was cut short", NULL});
    free(text);
    fclose(out);
    scratch_remove(folder);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(cut_while_read)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
