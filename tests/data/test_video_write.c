/* Videos and contact sheets as written: read back by the ffmpeg program, marked as promised, whole
 * or not there at all. Lanczos against numbers of Pillow. */
#define _GNU_SOURCE
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "data/lanczos.h"
#include "data/video_write.h"
#include "tests/data/folder.h"

enum { FRAMES = 9, HEIGHT = 64, WIDTH = 96, BYTES = FRAMES * HEIGHT * WIDTH * 3 };

static char *path_of(const char *name) { return xprintf("%s/%s", folder, name); }

/* Slow waves of colour that move, with red on the left and blue on the right. */
static const uint8_t *picture(void) {
    static uint8_t rgb[BYTES];
    for (int t = 0; t < FRAMES; t++)
        for (int y = 0; y < HEIGHT; y++)
            for (int x = 0; x < WIDTH; x++) {
                uint8_t *p = rgb + ((t * HEIGHT + y) * WIDTH + x) * 3;
                p[0] = (uint8_t)(230 - 2 * x);
                p[1] = (uint8_t)(128 + 100 * sin((x + y + 4 * t) / 15.0));
                p[2] = (uint8_t)(20 + 2 * x);
            }
    return rgb;
}

static Clip8 clip(void) { return (Clip8){picture(), FRAMES, HEIGHT, WIDTH}; }

/* What a command says on stdout, the caller's. */
static char *output_of(char *command, size_t *n) {
    FILE *pipe = popen(command, "r");
    size_t room = 1 << 20;
    uint8_t *bytes = xcalloc(room, 1);
    assert_non_null(pipe);
    *n = fread(bytes, 1, room - 1, pipe);
    if (pclose(pipe)) fail_msg("%s", command);
    free(command);
    return (char *)bytes;
}

static double psnr(const uint8_t *a, const uint8_t *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return 10 * log10(255.0 * 255 * (double)n / fmax(sum, 1e-9));
}

static void videos_hold_their_frames(void **state) {
    (void)state;
    char *path = path_of("clip.mp4");
    Clip8 c = clip();
    size_t n;
    Error e;
    if (!video_write(path, &c, 8, &e)) fail_msg("%s", e.text);
    char *rgb =
        output_of(xprintf("ffmpeg -v error -i %s -vf scale=in_color_matrix=bt709 -f rawvideo "
                          "-pix_fmt rgb24 -",
                          path),
                  &n);
    assert_int_equal(n, BYTES);
    double quality = psnr((uint8_t *)rgb, picture(), n);
    print_message("PSNR %.1f dB\n", quality);
    assert_true(quality > 38);
    free(rgb);
    free(path);
}

static void videos_say_what_they_are(void **state) {
    (void)state;
    static const char *const SAID[] = {
        "codec_name=h264",
        "width=96",
        "height=64",
        "pix_fmt=yuv420p",
        "color_range=tv",
        "color_space=bt709",
        "color_transfer=bt709",
        "color_primaries=bt709",
        "r_frame_rate=16/1",
        "nb_frames=9",
        "sample_aspect_ratio=1:1",
        "format_name=mov,mp4",
    };
    char *path = path_of("marked.mp4");
    Clip8 c = clip();
    size_t n;
    Error e;
    assert_true(video_write(path, &c, 16, &e));
    char *text =
        output_of(xprintf("ffprobe -v error -show_streams -show_format %s 2>&1", path), &n);
    for (size_t i = 0; i < COUNT(SAID); i++)
        if (!strstr(text, SAID[i])) fail_msg("expected %s in %s", SAID[i], text);
    free(text);
    free(path);
}

static void the_same_frames_give_the_same_bytes(void **state) {
    (void)state;
    char *a = path_of("a.mp4"), *b = path_of("b.mp4");
    Clip8 c = clip();
    size_t n, m;
    Error e;
    assert_true(video_write(a, &c, 8, &e) && video_write(b, &c, 8, &e));
    uint8_t *x = scratch_read(a, &n), *y = scratch_read(b, &m);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
    free(a);
    free(b);
}

/* Nine pictures in rows of four, 2 pixels apart, exactly. */
static void sheets_hold_their_pictures(void **state) {
    (void)state;
    enum { W = 4 * (WIDTH + 2) - 2, H = 3 * (HEIGHT + 2) - 2 };
    char *path = path_of("sheet.png");
    Clip8 c = clip();
    size_t n;
    Error e;
    if (!sheet_write(path, &c, &e)) fail_msg("%s", e.text);
    uint8_t *rgb = (uint8_t *)output_of(
        xprintf("ffmpeg -v error -i %s -f rawvideo -pix_fmt rgb24 -", path), &n);
    assert_int_equal(n, W * H * 3);
    for (int t = 0; t < FRAMES; t++)
        for (int y = 0; y < HEIGHT; y++)
            assert_memory_equal(rgb + ((t / 4 * (HEIGHT + 2) + y) * W + t % 4 * (WIDTH + 2)) * 3,
                                picture() + (t * HEIGHT + y) * WIDTH * 3, WIDTH * 3);
    assert_int_equal(rgb[WIDTH * 3], 255);
    free(rgb);
    free(path);
}

/* A large clip is shrunk; one frame and twenty both make a sheet. */
static void sheets_fit(void **state) {
    (void)state;
    enum { LARGE_H = 480, LARGE_W = 720, MANY = 20 };
    char *path = path_of("large.png");
    uint8_t *rgb = xcalloc((size_t)MANY * LARGE_H * LARGE_W, 3);
    Error e;
    size_t n;
    assert_true(sheet_write(path, &(Clip8){rgb, MANY, LARGE_H, LARGE_W}, &e));
    char *text = output_of(xprintf("ffprobe -v error -show_streams %s", path), &n);
    assert_non_null(strstr(text, "width=1446\n"));
    assert_non_null(strstr(text, "height=724\n"));
    assert_true(sheet_write(path, &(Clip8){rgb, 1, LARGE_H, LARGE_W}, &e));
    free(text);
    free(rgb);
    free(path);
}

static void failures_leave_nothing(void **state) {
    (void)state;
    Clip8 c = clip(), odd = {picture(), 1, 63, 96};
    char *path = path_of("full.mp4"), *sheet = path_of("full.png");
    struct rlimit any, little;
    Error e;
    assert_false(video_write(path, &odd, 8, &e));
    assert_non_null(strstr(e.text, "even"));
    int before = scratch_count(folder);
    getrlimit(RLIMIT_FSIZE, &any);
    little = (struct rlimit){1000, any.rlim_max};
    setrlimit(RLIMIT_FSIZE, &little);
    bool wrote = video_write(path, &c, 8, &e);
    assert_true(!wrote && e.exit_code == EXIT_WORLD && strstr(e.text, "full.mp4"));
    wrote = sheet_write(sheet, &c, &e);
    setrlimit(RLIMIT_FSIZE, &any);
    assert_true(!wrote && e.exit_code == EXIT_WORLD && strstr(e.text, "full.png"));
    assert_int_equal(scratch_count(folder), before);
    assert_false(video_write("/nowhere/x.mp4", &c, 8, &e));
    assert_non_null(strstr(e.text, "/nowhere"));
    free(path);
    free(sheet);
}

/* Image.fromarray(x).resize((w, h), Image.LANCZOS) of x[y,x] = (40 y + 29 x^2) % 256, 6 x 8. */
static void lanczos_is_pillows(void **state) {
    (void)state;
    enum { H = 6, W = 8 };
    static const uint8_t SMALL[3 * 4] = {46, 94, 177, 123, 128, 147, 70, 116, 177, 124, 156, 119};
    static const uint8_t LARGE[7 * 9] = {
        0,   14,  115, 28,  84,  252, 149, 24,  146, 29,  44,  146, 55,  127, 255, 199,
        51,  169, 68,  84,  171, 114, 73,  96,  91,  111, 244, 100, 112, 232, 177, 48,
        17,  54,  126, 112, 131, 155, 169, 154, 112, 81,  124, 130, 0,   168, 214, 35,
        102, 174, 105, 155, 175, 58,  198, 242, 88,  145, 201, 136, 185, 204, 81};
    uint8_t in[H * W], out[7 * 9];
    for (int y = 0; y < H; y++)
        for (int x = 0; x < W; x++) in[y * W + x] = (uint8_t)(40 * y + 29 * x * x);
    lanczos_resize(in, H, W, out, 3, 4);
    assert_memory_equal(out, SMALL, sizeof SMALL);
    lanczos_resize(in, H, W, out, 7, 9);
    assert_memory_equal(out, LARGE, sizeof LARGE);
    lanczos_resize(in, H, W, out, H, W);
    assert_memory_equal(out, in, sizeof in);
}

int main(void) {
    signal(SIGXFSZ, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(videos_hold_their_frames),
        cmocka_unit_test(videos_say_what_they_are),
        cmocka_unit_test(the_same_frames_give_the_same_bytes),
        cmocka_unit_test(sheets_hold_their_pictures),
        cmocka_unit_test(sheets_fit),
        cmocka_unit_test(failures_leave_nothing),
        cmocka_unit_test(lanczos_is_pillows),
    };
    return cmocka_run_group_tests(tests, enter, leave);
}
