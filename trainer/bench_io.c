/* Owns the rows of `bench` for files: clips through the decoder, latents from the cache. */
#define _XOPEN_SOURCE 700
#include "trainer/bench.h"

#include "data/cache.h"
#include "data/dataset.h"
#include "data/video.h"
#include "kernels/random.h"
#include "trainer/model.h"
#include "trainer/native.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { CLIPS = 8, ENTRIES = 16 };

static NativePack sizes_of(const Config *c, DitConfig *model) {
    char *folder;
    Error e;
    if (!transformer_folder(c->model.path, &folder, &e)) config_die(c, "model.path", "%s", e.text);
    char *path = xprintf("%s/config.json", folder);
    if (!dit_config_read(model, path, &e)) die_error(&e);
    free(path);
    free(folder);
    return native_pack(c, model);
}

/* One reader; a row's time is that of one clip: decoded, resized and as floats. */
static void bench_decode(Bench *b, const VideoWant *want) {
    const Config *c = b->config;
    Dataset d;
    Error e;
    int64_t pixels = 3 * want->frames * want->height * want->width;
    if (!dataset_open(&d, c->data.path, c->data.trigger, true, &e)) die_error(&e);
    VideoReader *r = video_reader_open(NULL, &e);
    if (!r) die_error(&e);
    float *to = xcalloc((size_t)pixels, sizeof *to);
    size_t n = MIN(d.n_items, (size_t)CLIPS);
    char *name = xprintf("decode %lldx%lldx%lld", (long long)want->frames, (long long)want->height,
                         (long long)want->width);
    BenchRow *row = bench_row(b, name);
    row->cost.bytes = (double)pixels * sizeof *to;
    for (int turn = -1; turn < b->repeat; turn++) { /* the first only fills the page cache */
        double start = now_seconds();
        for (size_t i = 0; i < n; i++)
            if (!video_read(r, d.items[i].video, want, 0, to, NULL, &e)) die_error(&e);
        if (turn >= 0) row->seconds[turn] = (now_seconds() - start) / (double)n;
    }
    free(name);
    free(to);
    video_reader_close(r);
    dataset_close(&d);
}

static void key_of(int i, char key[CACHE_KEY_CHARS]) {
    CacheKey *k = cache_key_open("bench");
    cache_key_number(k, "i", i);
    cache_key_close(k, key);
}

static void write_cache(const char *folder, const int64_t shape[4], float *values) {
    Error e;
    Cache *cache = cache_open(folder, true, &e);
    if (!cache) die_error(&e);
    for (int i = 0; i < ENTRIES; i++) {
        CacheEntry n = {.kind = CACHE_LATENTS,
                        .shape = {shape[0], shape[1], shape[2], shape[3]},
                        .source = "bench",
                        .caption = ""};
        key_of(i, n.key);
        if (!cache_add(cache, &n, values, values, &e)) die_error(&e);
    }
    if (!cache_close(cache, &e)) die_error(&e);
}

/* Seconds of one entry, over all of them. */
static double read_entries(Cache *cache, float *mean, float *logvar) {
    Error e;
    double start = now_seconds();
    for (int i = 0; i < ENTRIES; i++)
        if (!cache_read(cache, i, mean, logvar, &e)) die_error(&e);
    return (now_seconds() - start) / ENTRIES;
}

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *walk) {
    (void)info, (void)type, (void)walk;
    return remove(path);
}

/* Latents of a clip: the first reading compares the part's digest, too. bytes are the file's. */
static void bench_cache(Bench *b, const int64_t shape[4]) {
    static const char *const NAMES[] = {"first", "again"};
    const char *tmp = getenv("TMPDIR");
    char *folder = xprintf("%s/cogsmith-bench-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(folder)) die("%s: a folder for the cache cannot be made; set TMPDIR", folder);
    int64_t n = shape[0] * shape[1] * shape[2] * shape[3];
    float *mean = xcalloc((size_t)n, sizeof *mean), *logvar = xcalloc((size_t)n, sizeof *mean);
    random_normal((Draw){.purpose = PURPOSE_NOISE}, 0, n, mean);
    write_cache(folder, shape, mean);
    for (int turn = 0; turn < b->repeat; turn++) {
        Error e;
        Cache *cache = cache_open(folder, false, &e);
        if (!cache) die_error(&e);
        for (size_t i = 0; i < COUNT(NAMES); i++) {
            char *name =
                xprintf("cache read %lldx%lldx%lldx%lld, %s", (long long)shape[0],
                        (long long)shape[1], (long long)shape[2], (long long)shape[3], NAMES[i]);
            BenchRow *row = bench_row(b, name);
            row->seconds[turn] = read_entries(cache, mean, logvar);
            row->cost.bytes = 4.0 * (double)n;
            free(name);
        }
        cache_close(cache, &e);
    }
    nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    free(mean);
    free(logvar);
    free(folder);
}

void bench_io(Bench *b) {
    const Config *c = b->config;
    DitConfig model;
    NativePack native = sizes_of(c, &model);
    VideoWant want = {.frames = native.frames,
                      .height = native.height,
                      .width = native.width,
                      .fps = c->data.fps > 0        ? c->data.fps
                             : model.temporal_patch ? 16
                                                    : 8,
                      .windows = 1};
    if (c->data.path) bench_decode(b, &want);
    bench_cache(b, (int64_t[]){(native.frames - 1) / model.temporal_ratio + 1, model.out_channels,
                               native.height / VAE_SCALE, native.width / VAE_SCALE});
    native_pack_free(&native);
}
