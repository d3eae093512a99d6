/* Files that are not what they seem, and decoders that crash, hang or reach for more than they may:
 * each costs one file, tells why, and leaves the reader good for the next. */
#define _GNU_SOURCE
#include "data/image.h"
#include "tests/data/clips.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>

#include <cmocka.h>

static char *folder;
static VideoReader *reader;
static const VideoWant WANT = {9, 48, 64, 8, 1};
static float pixels[3 * 9 * 48 * 64];

static char *path_of(const char *name) { return xprintf("%s/%s", folder, name); }

static int set_up(void **state) {
    Error e;
    (void)state;
    folder = scratch_make();
    reader = video_reader_open(NULL, &e);
    if (!reader) fail_msg("%s", e.text);
    clips_run(folder, FFMPEG "-f lavfi -i testsrc2=s=320x240:r=24:d=2 -c:v libx264 good.mp4");
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    video_reader_close(reader);
    scratch_remove(folder);
    return 0;
}

static bool read_it(VideoReader *r, const char *name, Error *e) {
    char *path = path_of(name);
    *e = (Error){0};
    bool ok = video_read(r, path, &WANT, 0, pixels, NULL, e);
    free(path);
    return ok;
}

static void expect_good(VideoReader *r) {
    Error e;
    if (!read_it(r, "good.mp4", &e)) fail_msg("%s", e.text);
}

static void expect_text(const char *name, const Error *e, const char *part) {
    if (!strstr(e->text, name) || !strstr(e->text, part))
        fail_msg("expected \"%s\" and \"%s\" in: %s", name, part, e->text);
    assert_int_equal(e->exit_code, EXIT_DATA);
}

/* The file cannot be used; the next one can. */
static void expect_bad(const char *name, const char *part) {
    Error e;
    if (read_it(reader, name, &e)) fail_msg("%s was read; expected: %s", name, part);
    expect_text(name, &e, part);
    expect_good(reader);
}

static void put(const char *name, const void *bytes, size_t n) {
    char *path = path_of(name);
    scratch_write(path, bytes, n);
    free(path);
}
#define PUT_TEXT(name, text) put(name, text, sizeof(text) - 1)

/* The first `keep` hundredths of a file under another name. */
static void cut(const char *from, const char *to, size_t keep) {
    size_t n;
    char *path = path_of(from);
    uint8_t *bytes = scratch_read(path, &n);
    put(to, bytes, n * keep / 100);
    free(bytes);
    free(path);
}

static void test_not_a_video(void **state) {
    (void)state;
    PUT_TEXT("text.mp4", "This is a text.\n");
    PUT_TEXT("empty.mp4", "");
    PUT_TEXT("list.mp4", "ffconcat version 1.0\nfile good.mp4\n");
    PUT_TEXT("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\ngood.mp4\n");
    clips_run(folder, FFMPEG "-f lavfi -i sine=d=3 -c:a aac audio.mp4");
    clips_run(folder, FFMPEG "-i audio.mp4 -f lavfi -i color=red:s=64x64:d=1 -map 0 -map 1 -c:a "
                             "copy -frames:v 1 -c:v mjpeg -disposition:v attached_pic cover.mp4");
    clips_run(folder, "mkdir dir.mp4; mkfifo pipe.mp4");
    expect_bad("text.mp4", "is not a video that can be read");
    expect_bad("empty.mp4", "is empty");
    expect_bad("list.mp4", "is not a video that can be read");
    expect_bad("list.m3u8", "is not a video that can be read");
    expect_bad("audio.mp4", "has no video in it, only sound");
    expect_bad("cover.mp4", "has no video in it, only sound");
    expect_bad("dir.mp4", "is not a file");
    expect_bad("pipe.mp4", "is not a file");
    expect_bad("missing.mp4", "No such file");
}

static void test_cut_off(void **state) {
    (void)state;
    clips_run(folder, FFMPEG "-i good.mp4 -c copy -movflags faststart front.mp4");
    clips_run(folder, FFMPEG "-i good.mp4 -c:v libvpx-vp9 -deadline realtime -cpu-used 8 a.webm");
    cut("good.mp4", "no-index.mp4", 60);
    cut("front.mp4", "cut.mp4", 60);
    cut("front.mp4", "cut-late.mp4", 98);
    cut("a.webm", "cut.webm", 80);
    expect_bad("no-index.mp4", "moov atom not found");
    expect_bad("cut.mp4", "is damaged or cut off");
    expect_bad("cut-late.mp4", "is damaged or cut off");
    expect_bad("cut.webm", "is damaged or cut off");
}

/* Bytes of the picture data changed: pictures that the decoder guesses at are not taken. */
static void test_damaged(void **state) {
    size_t n;
    (void)state;
    clips_run(folder, FFMPEG "-i good.mp4 -c copy -movflags faststart front.mp4");
    char *path = path_of("front.mp4");
    uint8_t *bytes = scratch_read(path, &n), *data = memmem(bytes, n, "mdat", 4);
    assert_non_null(data);
    for (int i = 0; i < 40; i++)
        data[3000 + i] ^= 0x55; /* in the first picture, which is not wanted itself */
    put("slice.mp4", bytes, n);
    expect_bad("slice.mp4", "s does not decode cleanly");
    for (int i = 0; i < 40; i++) data[3000 + i] ^= 0x55;
    for (size_t i = n / 2; i < n / 2 + 3000; i++) bytes[i] ^= 0x55;
    put("units.mp4", bytes, n);
    expect_bad("units.mp4", "has video that cannot be decoded");
    free(bytes);
    free(path);
}

static void test_too_short(void **state) {
    (void)state;
    clips_run(folder, FFMPEG "-i good.mp4 -frames:v 12 -c:v libx264 short.mp4");
    clips_run(folder, FFMPEG "-i good.mp4 -frames:v 1 one.gif");
    expect_bad("short.mp4", "is too short: 0.500 s long");
    expect_bad("short.mp4", "which is 4 frames at 8 a second; 9 frames (1.125 s) are needed");
    expect_bad("one.gif", "is too short");
}

/* 30,000 x 30,000 in the header, with and without the container's knowledge. */
static void test_huge(void **state) {
    static const uint8_t SOF[] = {0xff, 0xc0, 0x00, 0x11, 0x08}, HUGE_SIDE[] = {0x75, 0x30};
    size_t n;
    (void)state;
    PUT_TEXT("huge.gif", "GIF89a\x30\x75\x30\x75\xf7\0\0");
    PUT_TEXT("huge.y4m", "YUV4MPEG2 W30000 H30000 F25:1 Ip A1:1 C420\nFRAME\n");
    clips_run(folder, FFMPEG "-f lavfi -i color=red:s=64x48:d=2 -c:v mjpeg a.mov");
    char *path = path_of("a.mov");
    uint8_t *bytes = scratch_read(path, &n);
    for (size_t i = 0; i + 9 < n; i++) {
        if (memcmp(bytes + i, SOF, sizeof SOF) != 0) continue;
        memcpy(bytes + i + 5, HUGE_SIDE, 2);
        memcpy(bytes + i + 7, HUGE_SIDE, 2);
    }
    put("huge.mov", bytes, n);
    expect_bad("huge.gif", "is 30000x30000, more pixels than");
    expect_bad("huge.y4m", "30000x30000");
    expect_bad("huge.mov", "cannot be decoded");
    free(bytes);
    free(path);
}

/* A line of pixels would have to grow to a picture of 983,040 x 480 before it is cut. */
static void test_thin(void **state) {
    static float large[3 * 480 * 720];
    const VideoWant want = {1, 480, 720, 8, 1};
    Error e = {0};
    (void)state;
    clips_run(folder, FFMPEG "-f lavfi -i color=red:s=4096x2:d=2 -c:v ffv1 thin.mkv");
    char *path = path_of("thin.mkv");
    assert_false(video_read(reader, path, &want, 0, large, NULL, &e));
    expect_text("thin.mkv", &e, "is 4096x2, too narrow for 720x480");
    free(path);
}

static void expect_bad_image(const char *name, const char *part) {
    static float picture[3 * 48 * 64];
    Error e = {0};
    char *path = path_of(name);
    if (image_read(reader, path, 48, 64, picture, &e))
        fail_msg("%s was read; expected: %s", name, part);
    expect_text(name, &e, part);
    free(path);
    expect_good(reader);
}

static void test_bad_images(void **state) {
    size_t n;
    (void)state;
    clips_run(folder, FFMPEG "-f lavfi -i testsrc2=s=320x240 -frames:v 1 a.png");
    clips_run(folder, FFMPEG "-f lavfi -i testsrc2=s=320x240 -frames:v 1 -q:v 2 a.jpg");
    cut("a.png", "cut.png", 50);
    cut("a.jpg", "cut.jpg", 50);
    PUT_TEXT("text.png", "This is a text.\n");
    char *path = path_of("a.png");
    uint8_t *bytes = scratch_read(path, &n);
    memcpy(bytes + 16, "\0\0\x75\x30\0\0\x75\x30", 8);
    put("huge.png", bytes, n);
    free(bytes);
    free(path);
    expect_bad_image("cut.png", "");
    expect_bad_image("cut.jpg", "");
    expect_bad_image("huge.png", "");
    expect_bad_image("text.png", "is not a PNG or JPEG picture");
    expect_bad_image("good.mp4", "is not a PNG or JPEG picture");
}

/* As an unprivileged user: root reads everything. */
static void test_unreadable(void **state) {
    Error e;
    (void)state;
    chmod(folder, 0755);
    clips_run(folder, "cp good.mp4 secret.mp4 && chmod 000 secret.mp4");
    if (!getuid()) assert_int_equal(seteuid(65534), 0);
    assert_false(read_it(reader, "secret.mp4", &e));
    if (!getuid()) assert_int_equal(seteuid(0), 0);
    expect_text("secret.mp4", &e, "Permission denied");
}

static void test_late(void **state) {
    Error e;
    VideoLimits limits = VIDEO_LIMITS;
    (void)state;
    limits.seconds = 0;
    VideoReader *r = video_reader_open(&limits, &e);
    for (int i = 0; i < 3; i++) {
        assert_false(read_it(r, "good.mp4", &e));
        expect_text("good.mp4", &e, "took longer than 0 s");
    }
    video_reader_close(r);
}

/* Something happens to the decoder's processes while one is at work. */
typedef struct {
    int group, signal;
    bool fork_only; /* not the process that waits for it */
} Accident;

static int child_of(int process) {
    int child = 0;
    char *path = xprintf("/proc/%d/task/%d/children", process, process);
    FILE *f = fopen(path, "r");
    if (!f || fscanf(f, "%d", &child) != 1) print_message("%s tells no child\n", path);
    if (f) fclose(f);
    free(path);
    return child;
}

static void *happen(void *accident) {
    const Accident *a = accident;
    usleep(150000);
    kill(a->fork_only ? child_of(a->group) : -a->group, a->signal);
    return NULL;
}

/* Decodes a clip that takes seconds, with an accident in it. */
static double read_with_accident(VideoReader *r, int signal, bool fork_only, Error *e) {
    static float large[3 * 97 * 96 * 128];
    const VideoWant want = {97, 96, 128, 8, 1};
    Accident a = {video_reader_group(r), signal, fork_only};
    pthread_t thread;
    char *path = path_of("long.mp4");
    double begin = now_seconds();
    assert_int_equal(pthread_create(&thread, NULL, happen, &a), 0);
    bool ok = video_read(r, path, &want, 0, large, NULL, e);
    double seconds = now_seconds() - begin;
    pthread_join(thread, NULL);
    if (ok) fail_msg("the clip was read in %.2f s, before signal %d", seconds, signal);
    free(path);
    return seconds;
}

static void make_long(void) {
    clips_run(folder, FFMPEG "-f lavfi -i testsrc2=s=1280x720:r=60:d=13 -c:v libx264 -preset "
                             "ultrafast long.mp4");
}

static void test_crashing(void **state) {
    static const struct {
        int signal;
        const char *text;
    } CASES[] = {{SIGSEGV, "the decoder crashed on it (Segmentation fault)"},
                 {SIGABRT, "the decoder crashed on it (Aborted)"},
                 {SIGSYS, "it asked the system for what no decoder needs"},
                 {SIGXCPU, "took more than 120 s of computing"}};
    Error e;
    (void)state;
    make_long();
    int group = video_reader_group(reader);
    for (size_t i = 0; i < COUNT(CASES); i++) {
        read_with_accident(reader, CASES[i].signal, true, &e);
        expect_text("long.mp4", &e, CASES[i].text);
        expect_good(reader);
    }
    assert_int_equal(video_reader_group(reader), group); /* only the forks died */
}

static void test_hanging_and_killed(void **state) {
    Error e;
    VideoLimits limits = VIDEO_LIMITS;
    (void)state;
    limits.seconds = 1.5;
    make_long();
    VideoReader *r = video_reader_open(&limits, &e);
    double seconds = read_with_accident(r, SIGSTOP, false, &e);
    expect_text("long.mp4", &e, "took longer than 1.5 s");
    if (seconds < 1.4 || seconds > 3) fail_msg("ended after %.2f s", seconds);
    assert_int_equal(video_reader_group(r), 0);
    expect_good(r);
    seconds = read_with_accident(r, SIGKILL, false, &e);
    expect_text("long.mp4", &e, "ended while it was at work");
    if (seconds > 1) fail_msg("ended after %.2f s", seconds);
    expect_good(r);
    kill(-video_reader_group(r), SIGKILL); /* between two files */
    usleep(50000);
    expect_good(r);
    video_reader_close(r);
}

/* The limits of the decoder itself. */
static void test_limits(void **state) {
    Error e;
    VideoLimits limits = VIDEO_LIMITS;
    (void)state;
    clips_run(folder, FFMPEG "-f lavfi -i testsrc2=s=1280x720:r=60:d=8 -c:v libx264 -preset "
                             "ultrafast -threads 1 long.avi");
    limits.seconds = 20;
    limits.memory_bytes = 1 << 20;
    VideoReader *r = video_reader_open(&limits, &e);
    assert_false(read_it(r, "long.avi", &e));
    expect_text("long.avi", &e, "memory");
    video_reader_close(r);
    limits = VIDEO_LIMITS;
    limits.max_pixels = 1280 * 719;
    r = video_reader_open(&limits, &e);
    assert_false(read_it(r, "long.avi", &e));
    expect_text("long.avi", &e, "is 1280x720, more pixels");
    expect_good(r);
    video_reader_close(r);
}

/* Random numbers that repeat. */
static uint64_t random_state = 0x9e3779b97f4a7c15u;

static uint64_t random_below(uint64_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % n;
}

/* Spoils a file in one of the ways in which files are spoilt; headers oftener than the rest. */
static size_t spoil(uint8_t *bytes, size_t n) {
    size_t head = MIN(n, 2048), from = random_below(n), length = 1 + random_below(n / 8);
    size_t area = random_below(2) ? head : n;
    switch (random_below(5)) {
    case 0:
        return 1 + random_below(n); /* cut */
    case 1:                         /* a hole */
        memset(bytes + from, (int)random_below(2) * 255, MIN(length, n - from));
        return n;
    case 2: /* a piece in the wrong place */
        memmove(bytes + from, bytes + random_below(n - MIN(length, n - from)),
                MIN(length, n - from));
        return n;
    case 3: /* big numbers where sizes are */
        for (uint64_t k = 1 + random_below(4); k; k--)
            memset(bytes + random_below(area - 4), random_below(2) ? 0xff : 0x7f, 4);
        return n;
    default: /* bytes */
        for (uint64_t k = 1 + random_below(64); k; k--)
            bytes[random_below(area)] ^= (uint8_t)(1 + random_below(255));
        return n;
    }
}

static void test_mutated(void **state) {
    static const char *const BASES[] = {"good.mp4", "m.webm", "m.avi", "m.gif", "m.ts", "m.mkv"};
    int clips = getenv("COGSMITH_FULL") ? 500 : 60, read = 0;
    VideoLimits limits = VIDEO_LIMITS;
    Error e;
    (void)state;
    limits.seconds = 20;
    clips_run(folder, FFMPEG "-i good.mp4 -c:v libvpx-vp9 -deadline realtime -cpu-used 8 m.webm");
    clips_run(folder, FFMPEG "-i good.mp4 -c:v mpeg4 m.avi");
    clips_run(folder, FFMPEG "-i good.mp4 -vf scale=160:-1 m.gif");
    clips_run(folder, FFMPEG "-i good.mp4 -c copy m.ts");
    clips_run(folder, FFMPEG "-i good.mp4 -c:v libx265 -x265-params log-level=error -preset "
                             "ultrafast m.mkv");
    VideoReader *r = video_reader_open(&limits, &e);
    for (int i = 0; i < clips; i++) {
        size_t n;
        char *path = path_of(BASES[i % (int)COUNT(BASES)]);
        uint8_t *bytes = scratch_read(path, &n);
        put("mutated", bytes, spoil(bytes, n));
        if (read_it(r, "mutated", &e))
            read++;
        else
            expect_text("mutated", &e, ": ");
        if (strstr(e.text, "crashed") || strstr(e.text, "stopped") || strstr(e.text, "computing"))
            print_message("clip %d: %s\n", i, e.text);
        free(bytes);
        free(path);
    }
    print_message("%d mutated clips: %d read, %d refused\n", clips, read, clips - read);
    assert_in_range(read, 1, clips - 1);
    expect_good(r);
    video_reader_close(r);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void) {
    /* A decoder built with the address sanitizer shall find no memory as any other does. */
    setenv("ASAN_OPTIONS", "allocator_may_return_null=1", 0);
    const struct CMUnitTest tests[] = {
        TEST(test_not_a_video),
        TEST(test_cut_off),
        TEST(test_damaged),
        TEST(test_too_short),
        TEST(test_huge),
        TEST(test_thin),
        TEST(test_bad_images),
        TEST(test_unreadable),
        TEST(test_late),
        TEST(test_crashing),
        TEST(test_hanging_and_killed),
        TEST(test_limits),
        TEST(test_mutated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
