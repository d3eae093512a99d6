/* Outputs larger than the caches, which the CPU's kernels store past them. */
#include "tests/kernels/fixture.h"

/* More bytes than the caches hold; and rows of it alone, which they do. */
enum { MANY_ROWS = (8 << 20) / (int)sizeof(real) / 1920 + 3, WIDE_ROW = 1920 };

static void large_norm_as_row_by_row(void **state) {
    int64_t elements = (int64_t)MANY_ROWS * WIDE_ROW;
    real *x = numbers(elements, 1), *affine = numbers(2 * WIDE_ROW, 2),
         *mod = numbers(4 * WIDE_ROW, 3);
    real *y = output(elements, 0, 4), *alone = output(WIDE_ROW, 0, 5),
         *stats = numbers(2 * MANY_ROWS, 6);
    int32_t mod_row[MANY_ROWS];
    for (int i = 0; i < MANY_ROWS; i++) mod_row[i] = i > 200;
    Norm n = {.t = DT_REAL,
              .rows = MANY_ROWS,
              .width = WIDE_ROW,
              .eps = (real)1e-5,
              .mod_rows = 2,
              .mod_width = 2 * WIDE_ROW,
              .x = x,
              .gamma = affine,
              .beta = affine + WIDE_ROW,
              .mod = mod,
              .mod_row = mod_row,
              .stats = stats};
    BACKEND_CPU.norm(*state, &n, y);
    n.rows = 1;
    for (int i = 0; i < MANY_ROWS; i++) {
        n.x = x + i * WIDE_ROW;
        n.mod_row = mod_row + i;
        BACKEND_CPU.norm(*state, &n, alone);
        expect_same("a row", alone, y + i * WIDE_ROW, WIDE_ROW * sizeof *y);
    }
    release(6, x, affine, mod, y, alone, stats);
}

static void large_dropout_as_added_to_zeros(void **state) {
    int64_t cu[2] = {0, MANY_ROWS}, elements = (int64_t)MANY_ROWS * WIDE_ROW;
    uint32_t ordinal = 5;
    DropoutState drawn = {.seed = 3, .step = 2};
    Dropout d = {.t = DT_REAL,
                 .width = WIDE_ROW,
                 .segments = 1,
                 .cu_rows = cu,
                 .ordinals = &ordinal,
                 .p = (real)0.25,
                 .state = &drawn,
                 .purpose = 1};
    real *x = numbers(elements, 1), *y = output(elements, 0, 2), *sum = numbers(elements, 3);
    BACKEND_CPU.zero(*state, sum, (size_t)elements * sizeof *sum);
    BACKEND_CPU.dropout(*state, &d, x, 0, y);
    BACKEND_CPU.dropout(*state, &d, x, 1, sum);
    expect_same("dropout", y, sum, (size_t)elements * sizeof *y);
    release(3, x, y, sum);
}

static void large_copies_may_overlap(void **state) {
    enum { BYTES = (3 << 20) + 5, SHIFT = 1 << 20, ROOM = BYTES + SHIFT };
    int64_t n = ROOM / (int64_t)sizeof(real) + 1;
    real *x = numbers(n, 1), *y = output(n, 0, 2), *moved = copy_of(x, n), *want = copy_of(x, n);
    BACKEND_CPU.copy(*state, y, x, BYTES);
    expect_same("a copy", y, x, BYTES);
    assert_true(isnan(y[BYTES / sizeof *y + 1]));
    memmove((char *)want + SHIFT, want, BYTES);
    BACKEND_CPU.copy(*state, (char *)moved + SHIFT, moved, BYTES);
    expect_same("a move", moved, want, ROOM);
    release(4, x, y, moved, want);
}

static int setup(void **state) {
    *state = open_stream(1 << 20);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(large_norm_as_row_by_row),
        cmocka_unit_test(large_dropout_as_added_to_zeros),
        cmocka_unit_test(large_copies_may_overlap),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
