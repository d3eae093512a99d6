/* Owns the list of what is wanted: how a dataset becomes samples, and where they are. */
#define _DEFAULT_SOURCE
#include "trainer/wanted.h"

#include "trainer/folder.h"
#include "trainer/model.h"
#include "trainer/native.h"
#include "trainer/progress.h"
#include "trainer/wanted_keys.h"

#include <libgen.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void note(WantedNotes *notes, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void note(WantedNotes *notes, const char *format, ...) {
    char text[2000];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    notes->items = xrealloc(notes->items, (size_t)(notes->n + 1) * sizeof *notes->items);
    notes->items[notes->n++] = xstrdup(text);
}

static void free_notes(WantedNotes *notes) {
    for (int i = 0; i < notes->n; i++) free(notes->items[i]);
    free(notes->items);
}

char *wanted_cache_folder(const Config *c) {
    if (c->data.cache) return xstrdup(c->data.cache);
    struct stat info;
    char *copy = xstrdup(c->data.path);
    bool file = !stat(copy, &info) && !S_ISDIR(info.st_mode);
    char *folder = xprintf("%s/.cogsmith-cache", file ? dirname(copy) : copy);
    free(copy);
    return folder;
}

/* ---- the model --------------------------------------------------------------------------------
 */

static char *folder_of(const Config *c, const char *component, const char *file) {
    char *folder;
    Error e;
    if (!component_folder(c->model.path, component, file, &folder, &e))
        config_die(c, "model.path", "%s", e.text);
    return folder;
}

static void read_model(Wanted *w, const Config *c) {
    char *folder, *path;
    Error e;
    if (!transformer_folder(c->model.path, &folder, &e)) config_die(c, "model.path", "%s", e.text);
    path = xprintf("%s/config.json", folder);
    if (!dit_config_read(&w->model, path, &e)) die_error(&e);
    free(path);
    free(folder);
    w->vae_folder = folder_of(c, "vae", "config.json");
    w->text_folder = folder_of(c, "text_encoder", "config.json");
    w->tokenizer_folder = folder_of(c, "tokenizer", "spiece.model");
    path = xprintf("%s/config.json", w->vae_folder);
    if (!vae_model_read(&w->vae, path, &e)) die_error(&e);
    if (w->vae.latent != w->model.out_channels)
        die("%s: latent_channels: expected %lld as the transformer has, found %lld: they are of "
            "two models",
            path, (long long)w->model.out_channels, (long long)w->vae.latent);
    free(path);
    w->images = w->model.in_channels != w->model.out_channels;
    w->text_length = w->model.text_length;
}

static void check_limit(const Config *c, const char *key, int64_t value, int64_t most) {
    if (value > most)
        config_die(c, key, "expected at most %lld, found %lld", (long long)most, (long long)value);
}

static void read_sizes(Wanted *w, const Config *c) {
    NativePack native = native_pack(c, &w->model);
    w->want = (VideoWant){.frames = native.frames,
                          .height = native.height,
                          .width = native.width,
                          .fps = c->data.fps > 0           ? c->data.fps
                                 : w->model.temporal_patch ? 16
                                                           : 8,
                          .windows = c->data.windows};
    native_pack_free(&native);
    check_limit(c, "data.frames", w->want.frames, VIDEO_MAX_FRAMES);
    check_limit(c, "data.height", w->want.height, VIDEO_MAX_SIDE);
    check_limit(c, "data.width", w->want.width, VIDEO_MAX_SIDE);
    check_limit(c, "data.windows", w->want.windows, VIDEO_MAX_WINDOWS);
    int64_t latent[4] = {vae_frames_out(VAE_ENCODER, w->want.frames), w->vae.latent,
                         w->want.height / VAE_SPACE, w->want.width / VAE_SPACE};
    memcpy(w->latent, latent, sizeof latent);
    int64_t unit = w->model.temporal_patch ? 16 : 8;
    if ((w->want.frames - 1) % unit)
        note(&w->warnings,
             "data.frames=%lld: the published model was trained on clips of %lld n + 1 "
             "frames.",
             (long long)w->want.frames, (long long)unit);
}

static bool share_keys(Wanted *w, const Config *c, WantedShared *shared, Error *e) {
    *shared = (WantedShared){0};
    w->tiling = config_tiling(c);
    if (w->tiling.choice != VAE_TILE_OFF &&
        !tile_axes(&w->vae, VAE_ENCODER, &w->tiling, w->want.height, w->want.width, shared->axes,
                   &w->tiles, e)) {
        if (w->tiling.choice == VAE_TILE_ON) config_die(c, "vae.tiling", "%s", e->text);
        w->tiles = false; /* then it must fit whole */
    }
    if (!cache_files_digest_folder(w->files, w->vae_folder, shared->vae, e) ||
        !cache_files_digest_folder(w->files, w->text_folder, shared->text, e) ||
        !cache_files_digest_folder(w->files, w->tokenizer_folder, shared->tokenizer, e))
        return false;
    wanted_embedding_key(w, shared, "", w->empty_key);
    return true;
}

/* ---- looking at every clip --------------------------------------------------------------------
 */

typedef struct {
    char video[CACHE_KEY_CHARS], image[CACHE_KEY_CHARS];
    VideoInfo info;
    int exit_code; /* 0: it can be used */
    char *why;
} Look;

typedef struct {
    Wanted *wanted;
    Look *looks; /* [n_items] */
    pthread_mutex_t lock;
    size_t next, done;
    bool stop, stop_at_bad;
    double start;
    Progress *bar; /* opened when it takes a while */
} Survey;

enum { MAX_WORKERS = 8 };
static const double QUIET_SECONDS = 0.5;

static bool look_at(const Survey *s, const DatasetItem *item, Look *look, VideoReader **reader,
                    Error *e) {
    CacheFiles *files = s->wanted->files;
    const VideoWant *want = &s->wanted->want;
    if (!cache_files_probe(files, item->video, reader, &look->info, e) ||
        !cache_files_digest(files, item->video, look->video, e) ||
        (item->image && !cache_files_digest(files, item->image, look->image, e)))
        return false;
    if (video_windows(&look->info, want)) return true;
    int64_t n = video_frames_at(&look->info, want->fps);
    return error_set(e, EXIT_DATA,
                     "%.400s: is too short: %.3f s long, which is %lld frame%s at %g a second; "
                     "%lld frames (%.3f s) are needed. Take a longer clip, or a smaller "
                     "data.frames.",
                     item->video, look->info.seconds, (long long)n, n == 1 ? "" : "s", want->fps,
                     (long long)want->frames, (double)want->frames / want->fps);
}

/* The next clip to look at, or -1. */
static int64_t take(Survey *s) {
    pthread_mutex_lock(&s->lock);
    int64_t i = s->stop || s->next == s->wanted->dataset.n_items ? -1 : (int64_t)s->next++;
    pthread_mutex_unlock(&s->lock);
    return i;
}

static void finish(Survey *s, bool ok) {
    pthread_mutex_lock(&s->lock);
    s->done++;
    s->stop |= !ok && s->stop_at_bad;
    if (!s->bar && now_seconds() - s->start > QUIET_SECONDS)
        s->bar = progress_open("looking at", "clips", (double)s->done,
                               (double)s->wanted->dataset.n_items);
    if (s->bar) progress_set(s->bar, (double)s->done, NULL);
    pthread_mutex_unlock(&s->lock);
}

static void *survey_worker(void *context) {
    Survey *s = context;
    VideoReader *reader = NULL;
    for (int64_t i; (i = take(s)) >= 0;) {
        Error e = {0};
        Look *look = &s->looks[i];
        bool ok = look_at(s, &s->wanted->dataset.items[i], look, &reader, &e);
        if (!ok) {
            look->exit_code = e.exit_code;
            look->why = xstrdup(e.text);
        }
        finish(s, ok);
    }
    video_reader_close(reader);
    return NULL;
}

static void survey(Survey *s) {
    pthread_t threads[MAX_WORKERS];
    int n = (int)MIN(MIN((size_t)sysconf(_SC_NPROCESSORS_ONLN), (size_t)MAX_WORKERS),
                     s->wanted->dataset.n_items),
        started = 0;
    pthread_mutex_init(&s->lock, NULL);
    s->start = now_seconds();
    while (started < n - 1 && !pthread_create(&threads[started], NULL, survey_worker, s)) started++;
    survey_worker(s);
    for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
    progress_close(s->bar);
    pthread_mutex_destroy(&s->lock);
}

/* ---- samples ----------------------------------------------------------------------------------
 */

static void warn_of(Wanted *w, const DatasetItem *item, const VideoInfo *info) {
    if (info->hdr)
        note(&w->warnings,
             "%s: is HDR (PQ or HLG), which is read as if it were not: it will look flat. "
             "Convert it first.",
             item->video);
    if (info->fps < w->want.fps * 0.99)
        note(&w->warnings,
             "%s: has %.4g frames a second, fewer than the %g that are taken: some come "
             "twice. A smaller data.fps avoids it.",
             item->video, info->fps, w->want.fps);
}

static void add_samples(Wanted *w, const WantedShared *shared, int item, const Look *look) {
    const DatasetItem *from = &w->dataset.items[item];
    int64_t n = video_windows(&look->info, &w->want);
    int64_t slack = video_frames_at(&look->info, w->want.fps) - w->want.frames;
    warn_of(w, from, &look->info);
    for (int64_t i = 0; i < n; i++) {
        w->samples = xrealloc(w->samples, (size_t)(w->n_samples + 1) * sizeof *w->samples);
        WantedSample *s = &w->samples[w->n_samples++];
        *s = (WantedSample){.item = item,
                            .window = i,
                            .windows = n,
                            .first_frame = video_window_start(slack, n, i),
                            .latents = -1,
                            .embedding = -1};
        for (int v = 0; v < WANTED_VARIANTS; v++) s->image[v] = -1;
        wanted_keys(w, shared, look->video, from->image ? look->image : NULL, s);
    }
}

/* Every clip becomes samples, a note, or the error. */
static bool use_looks(Wanted *w, const Config *c, const WantedShared *shared, const Look *looks,
                      Error *e) {
    for (size_t i = 0; i < w->dataset.n_problems; i++) note(&w->bad, "%s", w->dataset.problems[i]);
    for (size_t i = 0; i < w->dataset.n_items; i++) {
        const Look *look = &looks[i];
        if (!look->why)
            add_samples(w, shared, (int)i, look);
        else if (c->data.on_bad == ON_BAD_STOP || look->exit_code != EXIT_DATA)
            return error_set(
                e, look->exit_code, "%.1000s%s", look->why,
                look->exit_code == EXIT_DATA ? " Mend or remove it, or say data.on_bad=skip." : "");
        else
            note(&w->bad, "%s", look->why);
    }
    if (w->n_samples) return true;
    return error_set(e, EXIT_DATA, "%.300s: no clip of it can be used. The first: %.600s",
                     c->data.path, w->bad.n ? w->bad.items[0] : "there is none");
}

static bool make_samples(Wanted *w, const Config *c, Error *e) {
    WantedShared shared;
    if (!share_keys(w, c, &shared, e)) return false;
    Survey s = {.wanted = w,
                .looks = xcalloc(w->dataset.n_items, sizeof *s.looks),
                .stop_at_bad = c->data.on_bad == ON_BAD_STOP};
    survey(&s);
    bool ok = use_looks(w, c, &shared, s.looks, e);
    for (size_t i = 0; i < w->dataset.n_items; i++) free(s.looks[i].why);
    free(s.looks);
    return ok;
}

Wanted *wanted_open(const Config *c, const char *cache_folder, Error *e) {
    Wanted *w = xcalloc(1, sizeof *w);
    w->empty = -1;
    w->files = cache_files_open(cache_folder);
    read_model(w, c);
    read_sizes(w, c);
    if (dataset_open(&w->dataset, c->data.path, c->data.trigger, c->data.on_bad == ON_BAD_SKIP,
                     e) &&
        make_samples(w, c, e))
        return w;
    wanted_close(w);
    return NULL;
}

void wanted_close(Wanted *w) {
    if (!w) return;
    for (int i = 0; i < w->n_samples; i++) free(w->samples[i].bad);
    free(w->samples);
    free_notes(&w->bad);
    free_notes(&w->warnings);
    dataset_close(&w->dataset);
    cache_files_close(w->files);
    free(w->vae_folder);
    free(w->text_folder);
    free(w->tokenizer_folder);
    free(w);
}

/* ---- where they are ---------------------------------------------------------------------------
 */

/* The entry encoded whole unless tiles are asked for, then the one encoded in tiles. */
static int find_encoded(const Wanted *w, const Cache *cache, CacheKind kind, const WantedKeys *k) {
    bool tiled_only = w->tiles && w->tiling.choice == VAE_TILE_ON;
    int i = tiled_only ? -1 : cache_find(cache, kind, k->whole);
    return i < 0 && w->tiles ? cache_find(cache, kind, k->tiled) : i;
}

void wanted_find(Wanted *w, const Cache *cache) {
    w->empty = cache_find(cache, CACHE_EMBEDDING, w->empty_key);
    for (int i = 0; i < w->n_samples; i++) {
        WantedSample *s = &w->samples[i];
        s->latents = find_encoded(w, cache, CACHE_LATENTS, &s->latents_key);
        s->embedding = cache_find(cache, CACHE_EMBEDDING, s->embedding_key);
        for (int v = 0; w->images && v < WANTED_VARIANTS; v++)
            s->image[v] = find_encoded(w, cache, CACHE_IMAGE, &s->image_key[v]);
        free(s->bad);
        s->bad = wanted_has(w, s) ? NULL : cache_files_bad(w->files, s->latents_key.whole);
    }
}

bool wanted_has(const Wanted *w, const WantedSample *s) {
    bool has = s->latents >= 0 && s->embedding >= 0;
    for (int v = 0; w->images && v < WANTED_VARIANTS; v++) has &= s->image[v] >= 0;
    return has;
}

bool wanted_complete(const Wanted *w) {
    bool complete = w->empty >= 0;
    for (int i = 0; i < w->n_samples; i++) complete &= wanted_has(w, &w->samples[i]);
    return complete;
}

void wanted_leave_out_bad(Wanted *w, const Config *c) {
    int kept = 0;
    for (int i = 0; i < w->n_samples; i++) {
        WantedSample *s = &w->samples[i];
        if (c->data.on_bad == ON_BAD_SKIP && s->bad) {
            note(&w->bad, "%s", s->bad);
            free(s->bad);
        } else
            w->samples[kept++] = *s;
    }
    w->n_samples = kept;
}
