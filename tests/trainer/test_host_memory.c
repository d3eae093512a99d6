/* What control groups leave of a host's memory, by files as the system has them. */
#define _GNU_SOURCE
#include "trainer/host_memory.h"

#include "tests/data/folder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <sys/stat.h>

#include <cmocka.h>

static void put(const char *path, const char *text) {
    char *whole = xprintf("%s/%s", folder, path), *slash = strrchr(whole, '/');
    *slash = 0;
    char *line = xprintf("mkdir -p %s", whole);
    assert_int_equal(system(line), 0);
    *slash = '/';
    scratch_write(whole, text, strlen(text));
    free(line);
    free(whole);
}

static void expect(const char *groups, int64_t bytes) {
    char *self = xprintf("%s/self", folder);
    scratch_write(self, groups, strlen(groups));
    assert_int_equal(groups_free_bytes(folder, self), bytes);
    free(self);
}

static void no_groups_no_limit(void **state) {
    (void)state;
    expect("", INT64_MAX);
    expect("0::/\n", INT64_MAX);
    assert_int_equal(groups_free_bytes("/nowhere", "/nowhere/self"), INT64_MAX);
    assert_true(host_free_bytes() > 0);
}

/* What was read of files is given up; "max" is no limit; the tightest group above counts. */
static void version_two(void **state) {
    (void)state;
    put("slice/job/task/memory.max", "max\n");
    put("slice/job/memory.max", "1000000\n");
    put("slice/job/memory.current", "400000\n");
    put("slice/job/memory.stat", "anon 250000\ninactive_file 150000\nactive_file 7\n");
    put("slice/memory.max", "2000000\n");
    put("slice/memory.current", "500000\n");
    expect("0::/slice/job/task\n", 750000);
    put("slice/memory.current", "1800000\n");
    expect("0::/slice/job/task\n", 200000);
    expect("0::/slice/job\n", 200000);
    expect("0::/elsewhere\n", INT64_MAX);
}

/* A container sees its own group as the root of what is mounted, and perhaps not its own path. */
static void as_in_a_container(void **state) {
    (void)state;
    put("memory.max", "900000\n");
    put("memory.current", "100000\n");
    expect("0::/\n", 800000);
    expect("0::/not/seen/here\n", 800000);
    put("memory.max", "max\n");
}

static void version_one(void **state) {
    (void)state;
    put("memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("memory/pod/memory.limit_in_bytes", "600000\n");
    put("memory/pod/memory.usage_in_bytes", "300000\n");
    put("memory/pod/memory.stat", "inactive_file 5\ntotal_inactive_file 100000\n");
    expect("5:cpu:/pod\n4:memory:/pod\n0::/\n", 400000);
    expect("4:cpu,memory:/pod/inner\n", 400000);
    expect("4:cpu:/pod\n", INT64_MAX);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_groups_no_limit),
        cmocka_unit_test(version_two),
        cmocka_unit_test(as_in_a_container),
        cmocka_unit_test(version_one),
    };
    return cmocka_run_group_tests(tests, enter, leave);
}
