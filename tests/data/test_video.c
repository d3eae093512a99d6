/* Video in: real clips and made ones against the ffmpeg program, the choice of frames, geometry,
 * colours, pictures. What happens with bad files is in test_video_bad.c. */
#define _GNU_SOURCE
#include "data/image.h"
#include "tests/data/clips.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define SHARED "../shared/clips"

static char *folder;
static VideoReader *reader;

static int set_up(void **state) {
    Error e;
    (void)state;
    folder = scratch_make();
    reader = video_reader_open(NULL, &e);
    if (!reader) fail_msg("%s", e.text);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    video_reader_close(reader);
    scratch_remove(folder);
    return 0;
}

static float *pixels_for(const VideoWant *w) {
    return xcalloc((size_t)(3 * w->frames * w->height * w->width), sizeof(float));
}

/* Reads a window of a file in the folder, which must succeed. */
static float *read_clip(const char *name, const VideoWant *want, int64_t window, VideoClip *clip) {
    Error e = {0};
    float *pixels = pixels_for(want);
    char *path = xprintf("%s/%s", folder, name);
    if (!video_read(reader, path, want, window, pixels, clip, &e)) fail_msg("%s", e.text);
    free(path);
    return pixels;
}

static VideoInfo probe(const char *name) {
    VideoInfo info = {0};
    Error e = {0};
    char *path = xprintf("%s/%s", folder, name);
    if (!video_probe(reader, path, &info, &e)) fail_msg("%s", e.text);
    free(path);
    return info;
}

/* The first window of a clip against the ffmpeg program with a filter. */
static void expect_like(const char *name, const VideoWant *w, const char *filter, double decibels) {
    int64_t n = 3 * w->frames * w->height * w->width;
    float *pixels = read_clip(name, w, 0, NULL);
    uint8_t *reference = clips_reference(folder, name, filter, w->frames, w->height, w->width);
    double psnr = clips_psnr(pixels, reference, n);
    print_message("%-14s %5.1f dB\n", name, psnr);
    if (!(psnr > decibels)) fail_msg("%s: %.1f dB, expected %.0f", name, psnr, decibels);
    free(pixels);
    free(reference);
}

static void test_real_clips(void **state) {
    static const char *const CLIPS[] = {"graffiti", "portrait", "ship", "suv"};
    const VideoWant whole = {49, 480, 720, 8, 1}, small = {9, 96, 128, 8, 1};
    (void)state;
    if (access(SHARED, R_OK)) {
        print_message("SKIPPED: " SHARED " is not there\n");
        skip();
    }
    for (size_t i = 0; i < COUNT(CLIPS); i++) {
        char *name = xprintf("%s.mp4", CLIPS[i]);
        clips_run(".", "cp " SHARED "/%s '%s'", name, folder);
        VideoInfo info = probe(name);
        assert_int_equal(info.frames, 49);
        assert_int_equal(info.width, 720);
        assert_int_equal(info.height, 480);
        assert_float_equal(info.fps, 8, 1e-9);
        assert_float_equal(info.seconds, 6.125, 1e-9);
        assert_string_equal(info.codec, "h264");
        expect_like(name, &whole, "scale=720:480:" RESIZE, 50);
        /* 49 frames, 9 wanted: the middle begins at frame 20. */
        expect_like(name, &small, "select=gte(n\\,20),scale=144:96:" RESIZE ",crop=128:96", 50);
        free(name);
    }
}

static void test_formats(void **state) {
    static const struct {
        const char *name, *codec, *encode;
        int rate;
    } CASES[] = {
        {"h264.mp4", "h264", "-c:v libx264", 24},
        {"h264.mkv", "h264", "-c:v libx264", 24},
        {"h264.ts", "h264", "-c:v libx264", 24},
        {"h264.avi", "h264", "-c:v libx264 -bf 2", 24},
        {"hevc10.mp4", "hevc",
         "-c:v libx265 -x265-params log-level=error -pix_fmt yuv420p10le -preset ultrafast", 24},
        {"vp9.webm", "vp9", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8", 24},
        {"vp8.webm", "vp8", "-c:v libvpx -auto-alt-ref 1 -lag-in-frames 8", 24},
        {"alpha.webm", "vp8", "-c:v libvpx -pix_fmt yuva420p -auto-alt-ref 0", 24},
        {"av1.mkv", "av1", "-c:v libaom-av1 -cpu-used 8 -usage realtime", 24},
        {"a.gif", "gif", "", 20},
        {"mpeg4.avi", "mpeg4", "-c:v mpeg4 -q:v 3", 24},
        {"a.mpg", "mpeg2video", "-c:v mpeg2video -q:v 3", 24},
        {"444.mp4", "h264", "-c:v libx264 -pix_fmt yuv444p", 24},
        {"mjpeg.mov", "mjpeg", "-c:v mjpeg -q:v 3 -pix_fmt yuvj422p", 24},
        {"prores.mov", "prores", "-c:v prores_ks", 24},
        {"interlaced.mp4", "h264", "-c:v libx264 -flags +ildct+ilme", 24},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(CASES); i++) {
        clips_run(folder, FFMPEG "-f lavfi -i testsrc2=s=320x240:r=%d -frames:v 17 %s %s",
                  CASES[i].rate, CASES[i].encode, CASES[i].name);
        VideoWant want = {17, 96, 160, CASES[i].rate, 1};
        VideoInfo info = probe(CASES[i].name);
        assert_string_equal(info.codec, CASES[i].codec);
        assert_int_equal(info.frames, 17);
        assert_float_equal(info.fps, CASES[i].rate, 0.05);
        expect_like(CASES[i].name, &want, "scale=160:120:" RESIZE ",crop=160:96", 50);
    }
}

/* Odd sizes, pixels that are not square, phones held in any way: each against the ffmpeg program
 * with the sizes worked out by hand. */
static void test_geometry(void **state) {
    static const struct {
        const char *name, *make, *filter;
        int64_t shown_width, shown_height;
    } CASES[] = {
        {"odd.mp4", "-vf scale=321:241 -pix_fmt yuv444p -c:v libx264",
         "scale=160:120:" RESIZE ",crop=160:96", 321, 241},
        {"odd420.mkv", "-vf scale=321:241 -pix_fmt yuv420p -c:v ffv1",
         "scale=160:120:" RESIZE ",crop=160:96", 321, 241},
        {"tall.mp4", "-vf scale=160:320,setsar=1 -c:v libx264",
         "scale=160:320:" RESIZE ",crop=160:96", 160, 320},
        {"wide.mp4", "-vf scale=640:120,setsar=1 -c:v libx264",
         "scale=512:96:" RESIZE ",crop=160:96", 640, 120},
        {"sar2.mp4", "-vf setsar=2/1 -c:v libx264", "scale=256:96:" RESIZE ",crop=160:96", 640,
         240},
        {"sar3-4.mkv", "-vf setsar=3/4 -c:v libx264", "scale=160:160:" RESIZE ",crop=160:96", 240,
         240},
        {"same.mp4", "-vf scale=160:96,setsar=1 -c:v libx264", "scale=160:96:" RESIZE, 160, 96},
    };
    const VideoWant want = {9, 96, 160, 24, 1};
    (void)state;
    for (size_t i = 0; i < COUNT(CASES); i++) {
        clips_run(folder, FFMPEG "-f lavfi -i testsrc2=s=320x240:r=24 -frames:v 9 %s %s",
                  CASES[i].make, CASES[i].name);
        VideoInfo info = probe(CASES[i].name);
        assert_int_equal(info.width, CASES[i].shown_width);
        assert_int_equal(info.height, CASES[i].shown_height);
        expect_like(CASES[i].name, &want, CASES[i].filter, 50);
    }
}

static void test_rotation(void **state) {
    const VideoWant want = {9, 96, 120, 24, 1};
    (void)state;
    clips_run(folder, FFMPEG "-f lavfi -i testsrc2=s=320x240:r=24 -frames:v 9 -c:v libx264 a.mp4");
    for (int degrees = 90; degrees < 360; degrees += 90) {
        char *name = xprintf("phone%d.mp4", degrees);
        clips_run(folder, FFMPEG "-i a.mp4 -c copy -metadata:s:v rotate=%d %s", degrees, name);
        VideoInfo info = probe(name);
        assert_int_equal(info.rotation % 180, degrees % 180);
        assert_int_not_equal(info.rotation, 0);
        assert_int_equal(info.width, degrees == 180 ? 320 : 240);
        assert_int_equal(info.height, degrees == 180 ? 240 : 320);
        /* The program turns by itself, before its filter. */
        expect_like(name, &want,
                    degrees == 180 ? "scale=128:96:" RESIZE ",crop=120:96"
                                   : "scale=120:160:" RESIZE ",crop=120:96",
                    50);
        free(name);
    }
}

/* A clip whose frames carry their number as brightness, every frame or those that `select` keeps.
 */
enum { NUMBER_FIRST = 20, NUMBER_STEP = 4 };

static void make_numbers(const char *name, const char *select, const char *encode) {
    clips_run(folder,
              FFMPEG "-f lavfi -i color=black:s=64x48:r=25:d=2 -vf \"geq=lum='%d+%d*N':cb=128:"
                     "cr=128,%s\" -fps_mode passthrough %s %s",
              NUMBER_FIRST, NUMBER_STEP, select, encode, name);
}

/* The number that output frame k carries. */
static int number_at(const float *pixels, const VideoWant *w, int64_t k) {
    int64_t area = w->height * w->width;
    double grey = ((double)pixels[k * area + area / 2 + w->width / 2] + 1) * 127.5;
    return (int)lround((grey * 219 / 255 + 16 - NUMBER_FIRST) / NUMBER_STEP);
}

/* The source frame that is shown nearest to a time after the first, of two the earlier; times in
 * 1/25 s. */
static int nearest_of(const int *times, int n, double t) {
    int best = 0;
    t += times[0];
    for (int i = 1; i < n; i++)
        if (fabs(times[i] - t) < fabs(times[best] - t) - 1e-6) best = i;
    return times[best];
}

static void expect_numbers(const char *name, const int *times, int n, VideoWant want,
                           int64_t window, int64_t first) {
    VideoClip clip;
    float *pixels = read_clip(name, &want, window, &clip);
    assert_int_equal(clip.first_frame, first);
    for (int64_t k = 0; k < want.frames; k++) {
        int got = number_at(pixels, &want, k);
        int expected = nearest_of(times, n, (double)(first + k) * 25 / want.fps);
        if (got != expected)
            fail_msg("%s at %g a second, window %d: frame %d is number %d, expected %d", name,
                     want.fps, (int)window, (int)k, got, expected);
    }
    free(pixels);
}

static void test_frame_choice(void **state) {
    static const struct {
        const char *name, *encode;
    } CASES[] = {
        {"n.mp4", "-c:v libx264 -qp 0 -g 10 -bf 2"},
        {"n.mkv", "-c:v libx264 -qp 0 -g 10 -bf 2 -x264-params open-gop=1"},
        {"n.avi", "-c:v libx264 -qp 0 -g 10 -bf 0"},
        {"n.ts", "-c:v libx264 -qp 0 -g 10 -bf 2"},
        {"n.webm", "-c:v libvpx-vp9 -lossless 1 -g 10 -deadline realtime -cpu-used 8"},
        {"hevc.mp4",
         "-c:v libx265 -x265-params log-level=error:lossless=1:keyint=10 -preset ultrafast"},
    };
    int times[50];
    (void)state;
    for (int i = 0; i < 50; i++) times[i] = i;
    for (size_t i = 0; i < COUNT(CASES); i++) {
        make_numbers(CASES[i].name, "null", CASES[i].encode);
        /* 2 s: 16 frames at 8 a second, 50 at 25, 100 at 50. */
        for (int w = 0; w < 4; w++)
            expect_numbers(CASES[i].name, times, 50, (VideoWant){5, 48, 64, 8, 4}, w, w * 11 / 3);
        expect_numbers(CASES[i].name, times, 50, (VideoWant){16, 48, 64, 8, 1}, 0, 0);
        expect_numbers(CASES[i].name, times, 50, (VideoWant){9, 48, 64, 25, 1}, 0, 20);
        expect_numbers(CASES[i].name, times, 50, (VideoWant){31, 48, 64, 50, 1}, 0, 34);
        expect_numbers(CASES[i].name, times, 50, (VideoWant){7, 48, 64, 3.7, 1}, 0, 0);
    }
}

static void test_variable_rate(void **state) {
    int times[50], n = 0;
    (void)state;
    for (int i = 0; i < 50; i++)
        if (i % 7 == 0 || i % 5 == 1) times[n++] = i;
    make_numbers("vfr.mp4", "select='eq(mod(n,7),0)+eq(mod(n,5),1)'",
                 "-c:v libx264 -qp 0 -g 6 -bf 2 -video_track_timescale 90000");
    make_numbers("vfr.mkv", "select='eq(mod(n,7),0)+eq(mod(n,5),1)'", "-c:v ffv1");
    VideoInfo info = probe("vfr.mp4");
    assert_int_equal(info.frames, n);
    assert_float_equal(info.last_second, times[n - 1] / 25.0, 1e-9);
    int64_t slack = video_frames_at(&info, 12) - 9;
    expect_numbers("vfr.mp4", times, n, (VideoWant){9, 48, 64, 12, 1}, 0, slack / 2);
    expect_numbers("vfr.mkv", times, n, (VideoWant){9, 48, 64, 8, 2}, 0, 0);
}

/* What cutting without encoding leaves: frames before an edit list's start, and frames at the
 * beginning that refer to what is gone. */
static void test_cut_without_encoding(void **state) {
    int times[50];
    VideoInfo info;
    (void)state;
    for (int i = 0; i < 50; i++) times[i] = i;
    make_numbers("a.mp4", "null", "-c:v libx264 -qp 0 -g 10 -bf 2");
    clips_run(folder, FFMPEG "-ss 0.48 -i a.mp4 -c copy edit.mp4");
    info = probe("edit.mp4");
    assert_int_equal(info.frames, 38);
    expect_numbers("edit.mp4", times + 12, 38, (VideoWant){38, 48, 64, 25, 1}, 0, 0);
    expect_numbers("edit.mp4", times + 12, 38, (VideoWant){5, 48, 64, 8, 2}, 1, 7);
    make_numbers("a.mkv", "null",
                 "-c:v libx265 -x265-params log-level=error:lossless=1:keyint=10:min-keyint=10:"
                 "open-gop=1:bframes=3:scenecut=0");
    clips_run(folder, FFMPEG "-copyts -ss 0.88 -i a.mkv -c copy -copyinkf -avoid_negative_ts "
                             "disabled open.mkv");
    info = probe("open.mkv");
    assert_int_equal(info.frames, 40);
    expect_numbers("open.mkv", times + 10, 40, (VideoWant){40, 48, 64, 25, 1}, 0, 0);
}

static void test_windows(void **state) {
    VideoInfo info = {.seconds = 6.125, .last_second = 6, .fps = 8, .frames = 49};
    VideoWant want = {.frames = 49, .height = 48, .width = 64, .fps = 8, .windows = 5};
    (void)state;
    assert_int_equal(video_frames_at(&info, 8), 49);
    assert_int_equal(video_windows(&info, &want), 1); /* one window, however many are asked for */
    want.frames = 47;
    assert_int_equal(video_windows(&info, &want), 3); /* no two alike */
    want.frames = 17;
    assert_int_equal(video_windows(&info, &want), 5);
    want.frames = 50;
    assert_int_equal(video_windows(&info, &want), 0);
    assert_int_equal(video_window_start(32, 1, 0), 16);
    assert_int_equal(video_window_start(32, 5, 0), 0);
    assert_int_equal(video_window_start(32, 5, 1), 8);
    assert_int_equal(video_window_start(32, 5, 4), 32);
    /* A last frame whose length the file does not tell, or tells in milliseconds. */
    info.seconds = 6.0001;
    assert_int_equal(video_frames_at(&info, 8), 49);
    info.seconds = 6.126;
    info.last_second = 5.9999;
    assert_int_equal(video_frames_at(&info, 8), 49);
    info = (VideoInfo){.seconds = 10.01, .last_second = 9.976};
    assert_int_equal(video_frames_at(&info, 8), 80);
}

/* One colour through each matrix and range comes back as that colour. */
static void test_colours(void **state) {
    static const struct {
        const char *name, *size, *convert, *encode;
    } CASES[] = {
        {"601.mp4", "320x240", "out_color_matrix=bt601:out_range=limited",
         "-c:v libx264 -qp 4 -colorspace smpte170m -color_range tv"},
        {"709.mp4", "320x240", "out_color_matrix=bt709:out_range=limited",
         "-c:v libx264 -qp 4 -colorspace bt709 -color_range tv"},
        {"full.mp4", "320x240", "out_color_matrix=bt709:out_range=full",
         "-c:v libx264 -qp 4 -colorspace bt709 -color_range pc"},
        {"full.webm", "320x240", "out_color_matrix=bt709:out_range=full",
         "-c:v libvpx-vp9 -lossless 1 -colorspace bt709 -color_range pc"},
        {"2020.mp4", "320x240", "out_color_matrix=bt2020:out_range=limited",
         "-c:v libx264 -qp 4 -colorspace bt2020nc -color_range tv"},
        {"sd.mp4", "640x480", "out_color_matrix=bt601:out_range=limited", "-c:v libx264 -qp 4"},
        {"hd.mp4", "1280x720", "out_color_matrix=bt601:out_range=limited", "-c:v libx264 -qp 4"},
    };
    static const int RGB[3] = {200, 60, 30};
    const VideoWant want = {1, 48, 64, 1, 1};
    (void)state;
    for (size_t i = 0; i < COUNT(CASES); i++) {
        clips_run(folder,
                  FFMPEG "-f lavfi -i color=0x%02x%02x%02x:s=%s:r=1,format=rgb24 -vf "
                         "scale=%s,format=yuv420p -frames:v 1 %s %s",
                  RGB[0], RGB[1], RGB[2], CASES[i].size, CASES[i].convert, CASES[i].encode,
                  CASES[i].name);
        float *pixels = read_clip(CASES[i].name, &want, 0, NULL);
        for (int c = 0; c < 3; c++) {
            double got = ((double)pixels[(2 * c + 1) * 48 * 32] + 1) * 127.5;
            if (fabs(got - RGB[c]) > 3)
                fail_msg("%s: channel %d is %.1f, expected %d", CASES[i].name, c, got, RGB[c]);
        }
        free(pixels);
    }
}

static void test_values(void **state) {
    const VideoWant want = {1, 48, 64, 1, 1};
    (void)state;
    clips_run(folder, FFMPEG "-f lavfi -i color=white:s=64x48:r=1 -vf format=gbrp -frames:v 1 "
                             "-c:v ffv1 white.mkv");
    clips_run(folder, FFMPEG "-f lavfi -i color=0x010203:s=64x48:r=1,format=gbrp -vf format=gbrp "
                             "-frames:v 1 -c:v ffv1 dark.mkv");
    float *white = read_clip("white.mkv", &want, 0, NULL);
    float *dark = read_clip("dark.mkv", &want, 0, NULL);
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < 48 * 64; i++) {
            assert_true(white[c * 48 * 64 + i] == 1.0f);
            assert_true(dark[c * 48 * 64 + i] == (float)(c + 1) / 127.5f - 1.0f);
        }
    free(white);
    free(dark);
}

static float *read_image(const char *name, int64_t height, int64_t width) {
    Error e = {0};
    char *path = xprintf("%s/%s", folder, name);
    float *pixels = xcalloc((size_t)(3 * height * width), sizeof(float));
    if (!image_read(reader, path, height, width, pixels, &e)) fail_msg("%s", e.text);
    free(path);
    return pixels;
}

static void test_images(void **state) {
    static const struct {
        const char *name, *make;
    } CASES[] = {
        {"rgb.png", "-pix_fmt rgb24"},           {"alpha.png", "-pix_fmt rgba"},
        {"deep.png", "-pix_fmt rgb48be"},        {"grey.png", "-pix_fmt gray"},
        {"palette.png", "-pix_fmt pal8"},        {"420.jpg", "-pix_fmt yuvj420p -q:v 2"},
        {"444.jpg", "-pix_fmt yuvj444p -q:v 2"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(CASES); i++) {
        clips_run(folder, FFMPEG "-f lavfi -i testsrc2=s=320x240 -frames:v 1 %s %s", CASES[i].make,
                  CASES[i].name);
        float *pixels = read_image(CASES[i].name, 96, 160);
        uint8_t *reference = clips_reference(folder, CASES[i].name,
                                             "scale=160:120:" RESIZE ",crop=160:96", 1, 96, 160);
        double psnr = clips_psnr(pixels, reference, 3 * 96 * 160);
        print_message("%-14s %5.1f dB\n", CASES[i].name, psnr);
        assert_true(psnr > 50);
        free(pixels);
        free(reference);
    }
}

/* A JPEG whose EXIF says how the camera was held: each of the eight ways. */
static void test_exif(void **state) {
    static const char EXIF[] = "\xff\xe1\0\x22"
                               "Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0?\0\0\0\0\0";
    static const char *const TURN[] = {"null",      "hflip",       "hflip,vflip", "vflip",
                                       "transpose", "transpose=1", "transpose=3", "transpose=2"};
    size_t n;
    (void)state;
    clips_run(folder, FFMPEG "-f lavfi -i testsrc2=s=320x240 -frames:v 1 -q:v 2 a.jpg");
    char *plain = xprintf("%s/a.jpg", folder), *turned = xprintf("%s/b.jpg", folder);
    uint8_t *bytes = scratch_read(plain, &n), *more = xcalloc(n + sizeof EXIF - 1, 1);
    memcpy(more, bytes, 2);
    memcpy(more + 2, EXIF, sizeof EXIF - 1);
    memcpy(more + 2 + sizeof EXIF - 1, bytes + 2, n - 2);
    for (int way = 1; way <= 8; way++) {
        more[2 + 29] = (uint8_t)way;
        scratch_write(turned, more, n + sizeof EXIF - 1);
        char *filter = xprintf("%s,scale=%s:" RESIZE ",crop=120:96", TURN[way - 1],
                               way < 5 ? "128:96" : "120:160");
        float *pixels = read_image("b.jpg", 96, 120);
        uint8_t *reference = clips_reference(folder, "a.jpg", filter, 1, 96, 120);
        double psnr = clips_psnr(pixels, reference, 3 * 96 * 120);
        print_message("orientation %d   %5.1f dB\n", way, psnr);
        assert_true(psnr > 50);
        free(pixels);
        free(reference);
        free(filter);
    }
    free(bytes);
    free(more);
    free(plain);
    free(turned);
}

/* Readers side by side give what one gives. */
static void *read_in_thread(void *path) {
    Error e = {0};
    VideoReader *r = video_reader_open(NULL, &e);
    const VideoWant want = {9, 48, 64, 8, 1};
    float *pixels = pixels_for(&want);
    for (int i = 0; i < 3 && r; i++)
        if (!video_read(r, path, &want, 0, pixels, NULL, &e)) print_message("%s\n", e.text);
    video_reader_close(r);
    return pixels;
}

static void test_readers_side_by_side(void **state) {
    const VideoWant want = {9, 48, 64, 8, 1};
    pthread_t threads[3];
    (void)state;
    make_numbers("a.mp4", "null", "-c:v libx264 -qp 0");
    char *path = xprintf("%s/a.mp4", folder);
    float *expected = read_clip("a.mp4", &want, 0, NULL);
    for (size_t i = 0; i < COUNT(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_in_thread, path), 0);
    for (size_t i = 0; i < COUNT(threads); i++) {
        void *pixels;
        pthread_join(threads[i], &pixels);
        assert_memory_equal(pixels, expected, 3 * 9 * 48 * 64 * sizeof(float));
        free(pixels);
    }
    free(expected);
    free(path);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_real_clips),
        TEST(test_formats),
        TEST(test_geometry),
        TEST(test_rotation),
        TEST(test_frame_choice),
        TEST(test_variable_rate),
        TEST(test_cut_without_encoding),
        TEST(test_windows),
        TEST(test_colours),
        TEST(test_values),
        TEST(test_images),
        TEST(test_exif),
        TEST(test_readers_side_by_side),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
