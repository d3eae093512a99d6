/* `prepare` on real clips with a trained model: what the cache holds, decoded again, looks like the
 * clip. And on one clip each of what people have. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "data/cache.h"
#include "tests/data/folder.h"
#include "tests/trainer/prepare_model.h"

#include <signal.h>

static const char TINY[] = "../shared/tiny/model", CLIPS[] = "../shared/clips";
enum {
    T = 17,
    H = 64,
    W = 96,
    F = 5,
    C = 16,
    N = F * C * (H / 8) * (W / 8),
    PIXELS = 3 * T * H * W
};

/* Planes [C,F,h*w] of the cache's frames [F,C,h*w]. */
static void to_planes(const float *frames, float *planes) {
    int area = N / F / C;
    for (int f = 0; f < F; f++)
        for (int c = 0; c < C; c++)
            memcpy(planes + (c * F + f) * area, frames + (f * C + c) * area,
                   (size_t)area * sizeof *planes);
}

/* What `probe` decodes. */
static void decode(const float *z, float *pixels) {
    char *in = xprintf("%s/z.safetensors", folder), *out = xprintf("%s/frames.safetensors", folder);
    char *model = xprintf("model.path=%s/vae", TINY);
    char *in_set = xprintf("probe.inputs=%s", in), *out_set = xprintf("probe.out=%s", out);
    SafetensorsItem item = {"z", DT_F32, 5, {1, C, F, H / 8, W / 8}, z};
    Error e;
    Safetensors s;
    if (!safetensors_write(in, &(SafetensorsFile){.items = &item, .n_items = 1}, &e))
        fail_msg("%s", e.text);
    const Run *r = RUN("probe", model, in_set, out_set);
    if (r->code || !safetensors_open(&s, out, &e)) fail_msg("%s", r->err);
    const SafetensorsTensor *t = safetensors_find(&s, "frames");
    assert_true(t && t->bytes == PIXELS * sizeof *pixels);
    memcpy(pixels, t->data, t->bytes);
    safetensors_close(&s);
    free(in);
    free(out);
    free(model);
    free(in_set);
    free(out_set);
}

static double psnr(const float *a, const float *b) {
    double sum = 0;
    for (int i = 0; i < PIXELS; i++) {
        double x = fmin(fmax(a[i], -1), 1) - b[i];
        sum += x * x;
    }
    return 10 * log10(4.0 * PIXELS / sum);
}

static void real_clips_come_back(void **state) {
    (void)state;
    static float mean[N], logvar[N], z[N], got[PIXELS], want[PIXELS];
    if (access(TINY, F_OK) || access(CLIPS, F_OK)) {
        print_message("real_clips_come_back: SKIPPED: there is no ../shared\n");
        skip();
    }
    Error e;
    char *cache = xprintf("%s/cache", folder), *cache_set = xprintf("data.cache=%s", cache);
    char *model = xprintf("model.path=%s", TINY), *data = xprintf("data.path=%s", CLIPS);
    const Run *r = RUN("prepare", model, data, cache_set);
    assert_int_equal(count_of(r, "encoded"), 4);
    VideoReader *reader = video_reader_open(NULL, &e);
    Cache *c = cache_open(cache, false, &e);
    assert_true(reader && c);
    VideoWant size = {T, H, W, 8, 1};
    for (int i = 0; i < cache_count(c); i++) {
        const CacheEntry *n = cache_entry(c, i);
        if (n->kind != CACHE_LATENTS) continue;
        if (!cache_read(c, i, mean, logvar, &e)) fail_msg("%s", e.text);
        assert_true(video_read(reader, n->source, &size, 0, want, NULL, &e));
        to_planes(mean, z);
        decode(z, got);
        print_message("%s: %.2f dB\n", n->source, psnr(got, want));
        assert_true(psnr(got, want) > 17);
    }
    cache_close(c, &e);
    video_reader_close(reader);
    free(cache);
    free(cache_set);
    free(model);
    free(data);
}

static void what_people_have_is_used(void **state) {
    (void)state;
    static const char *const MAKE[] = {
        "-f lavfi -i testsrc2=s=96x64:r=24 -t 2 -c:v libx265 -x265-params log-level=none "
        "-pix_fmt yuv420p10le hevc10.mp4",
        "-f lavfi -i testsrc2=s=96x64:r=25 -t 2 -c:v libvpx-vp9 vp9.webm",
        "-f lavfi -i testsrc2=s=96x64:r=10 -t 2 moving.gif",
        "-f lavfi -i testsrc2=s=96x64:r=30 -t 2 -c:v libx264 -metadata:s:v rotate=90 phone.mp4",
        "-f lavfi -i testsrc2=s=96x64:r=30 -t 2 -vf 'select=not(mod(n\\,3))+gt(mod(n\\,7)\\,4)' "
        "-fps_mode vfr -c:v libx264 variable.mp4",
        "-f lavfi -i testsrc2=s=97x65:r=12 -t 2 -c:v libx264 -pix_fmt yuv444p odd.mp4",
    };
    char *clips = xprintf("%s/clips", folder), *model = xprintf("%s/model", folder);
    char *model_set = xprintf("model.path=%s", model), *data = xprintf("data.path=%s", clips);
    mkdir(clips, 0755);
    model_make(model);
    for (size_t i = 0; i < COUNT(MAKE); i++) clips_run(clips, FFMPEG "%s", MAKE[i]);
    clips_run(clips, "for f in *; do echo \"this is $f\" >${f%%.*}.txt; done");
    const Run *r = RUN("prepare", model_set, data, "data.windows=2");
    assert_int_equal(count_of(r, "clips"), 6);
    assert_int_equal(count_of(r, "encoded"), 12);
    assert_int_equal(count_of(r, "skipped"), 0);
    free(clips);
    free(model);
    free(model_set);
    free(data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(real_clips_come_back),
        cmocka_unit_test(what_people_have_is_used),
    };
    return cmocka_run_group_tests(tests, enter, leave);
}
