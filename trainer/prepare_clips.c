/* Owns the encoding of clips: several decoders that work ahead, and the autoencoder behind them.
 *
 * Samples that lack something are tasks, in order. Decoders take them one after the other into
 * slots; task i goes into slot i % n_slots once what was there has been encoded. So at most n_slots
 * decoded clips are in memory, and what is encoded comes in order. */
#define _DEFAULT_SOURCE
#include "trainer/device.h"
#include "trainer/prepare.h"

#include "data/image.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_DECODERS = 4, MAX_SLOTS = 8 };
static const int64_t DECODED_BYTES = (int64_t)1 << 30; /* of clips waiting to be encoded */

typedef struct {
    float *pixels;  /* [3,T,H,W] */
    float *picture; /* [3,H,W], of samples that have one */
    bool done, ok;
    Error e;
} Slot;

typedef struct {
    Prepare *p;
    WantedSample **tasks;     /* [n] */
    int64_t n, next, encoded; /* taken by decoders; behind us */
    int64_t all;              /* tasks of all ranks */
    Slot slots[MAX_SLOTS];
    int n_slots;
    bool stop;
    pthread_mutex_t lock;
    pthread_cond_t changed;
} Queue;

/* ---- decoding ---------------------------------------------------------------------------------
 */

static bool has_images(const Wanted *w, const WantedSample *s) {
    for (int v = 0; w->images && v < WANTED_VARIANTS; v++)
        if (s->image[v] < 0) return false;
    return true;
}

static const char *picture_of(const Wanted *w, const WantedSample *s) {
    return has_images(w, s) ? NULL : w->dataset.items[s->item].image;
}

static bool same_bytes(const Wanted *w, const char *path, Error *e) {
    return cache_files_unchanged(w->files, path) ||
           error_set(e, EXIT_DATA, "%.400s: has changed while it was read. Run prepare again.",
                     path);
}

static bool decode(const Queue *q, const WantedSample *s, Slot *slot, VideoReader *reader,
                   Error *e) {
    const Wanted *w = q->p->wanted;
    const DatasetItem *item = &w->dataset.items[s->item];
    const char *picture = picture_of(w, s);
    VideoClip clip;
    if (picture && (!image_read(reader, picture, w->want.height, w->want.width, slot->picture, e) ||
                    !same_bytes(w, picture, e)))
        return false;
    if (s->latents >= 0 && (picture || has_images(w, s))) return true;
    return video_read(reader, item->video, &w->want, s->window, slot->pixels, &clip, e) &&
           same_bytes(w, item->video, e);
}

/* The next task, or -1 when there is none. Waits for its slot. */
static int64_t take_task(Queue *q) {
    pthread_mutex_lock(&q->lock);
    while (!q->stop && q->next < q->n && q->next - q->encoded >= q->n_slots)
        pthread_cond_wait(&q->changed, &q->lock);
    int64_t i = q->stop || q->next == q->n ? -1 : q->next++;
    pthread_mutex_unlock(&q->lock);
    return i;
}

static void *decoder(void *context) {
    Queue *q = context;
    VideoReader *reader = NULL;
    for (int64_t i; (i = take_task(q)) >= 0;) {
        Slot *slot = &q->slots[i % q->n_slots];
        Error e = {0};
        if (!reader) reader = video_reader_open(NULL, &e);
        bool ok = reader && decode(q, q->tasks[i], slot, reader, &e);
        pthread_mutex_lock(&q->lock);
        slot->done = true;
        slot->ok = ok;
        slot->e = e;
        pthread_cond_broadcast(&q->changed);
        pthread_mutex_unlock(&q->lock);
    }
    video_reader_close(reader);
    return NULL;
}

static Slot *wait_for(Queue *q, int64_t i) {
    Slot *slot = &q->slots[i % q->n_slots];
    pthread_mutex_lock(&q->lock);
    while (!slot->done) pthread_cond_wait(&q->changed, &q->lock);
    pthread_mutex_unlock(&q->lock);
    return slot;
}

static void give_back(Queue *q, Slot *slot) {
    pthread_mutex_lock(&q->lock);
    slot->done = false;
    q->encoded++;
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
}

/* ---- encoding ---------------------------------------------------------------------------------
 */

Encoder encoder_open(const Config *c, const Wanted *w) {
    Error e;
    Encoder n = {.vae = vae_open(w->vae_folder, device_of_vae(c), &e)};
    if (!n.vae) die_error(&e);
    char *what = xprintf("clips of %lld x %lld x %lld", (long long)w->want.frames,
                         (long long)w->want.height, (long long)w->want.width);
    const VideoWant *v = &w->want;
    n.clips = config_vae_job(c, n.vae, VAE_ENCODER, v->frames, v->height, v->width, what);
    if (w->images) n.images = config_vae_job(c, n.vae, VAE_ENCODER, 1, v->height, v->width, what);
    free(what);
    return n;
}

void encoder_close(Encoder *n) {
    vae_job_close(n->clips);
    vae_job_close(n->images);
    vae_close(n->vae);
}

int64_t encoder_bytes(const Encoder *n) {
    int64_t images = n->images ? vae_job_bytes(n->images) : 0;
    return MAX(vae_job_bytes(n->clips), images);
}

bool moments_finite(const float *moments, int64_t n, const char *source, Error *e) {
    for (int64_t i = 0; i < n; i++)
        if (!(moments[i] - moments[i] == 0))
            return error_set(e, EXIT_WORLD,
                             "%.400s: its encoding is not finite. The autoencoder's weights do not "
                             "fit its config.json, or are damaged.",
                             source);
    return true;
}

/* Planes [C,F,H*W] become frames [F,C,H*W]. */
static void by_frames(const float *planes, const int64_t latent[4], float *frames) {
    int64_t area = latent[2] * latent[3];
    for (int64_t f = 0; f < latent[0]; f++)
        for (int64_t c = 0; c < latent[1]; c++)
            memcpy(frames + (f * latent[1] + c) * area, planes + (c * latent[0] + f) * area,
                   (size_t)area * sizeof *frames);
}

static bool add_latents(Prepare *p, const WantedSample *s, bool tiled, const float *moments,
                        Error *e) {
    const Wanted *w = p->wanted;
    const DatasetItem *item = &w->dataset.items[s->item];
    CacheEntry entry = {.kind = CACHE_LATENTS,
                        .source = item->video,
                        .first_frame = s->first_frame,
                        .frames = w->want.frames,
                        .caption = item->caption,
                        .embedding = s->embedding_key};
    memcpy(entry.shape, w->latent, sizeof entry.shape);
    snprintf(entry.key, sizeof entry.key, "%s",
             tiled ? s->latents_key.tiled : s->latents_key.whole);
    int64_t n = cache_elements(&entry);
    if (cache_find(p->cache, CACHE_LATENTS, entry.key) >= 0) return true; /* a clip that is twice */
    float *mean = xcalloc((size_t)(2 * n), sizeof *mean);
    by_frames(moments, w->latent, mean);
    by_frames(moments + n, w->latent, mean + n);
    bool ok =
        moments_finite(mean, 2 * n, item->video, e) && prepare_add(p, &entry, mean, mean + n, e);
    free(mean);
    prepare_tell(p, &p->news.encoded, ok);
    return ok;
}

static bool encode(Prepare *p, const Encoder *n, const WantedSample *s, const Slot *slot,
                   Error *e) {
    const Wanted *w = p->wanted;
    int64_t size[4], area = w->want.height * w->want.width;
    bool ok = true;
    if (s->latents < 0) {
        vae_job_out(n->clips, size);
        float *moments = xcalloc((size_t)(size[0] * size[1] * size[2] * size[3]), sizeof *moments);
        vae_run(n->clips, slot->pixels, moments);
        ok = add_latents(p, s, vae_job_tiled(n->clips), moments, e);
        free(moments);
    }
    if (!ok || has_images(w, s)) return ok;
    float *picture = xcalloc((size_t)(VAE_COLORS * area), sizeof *picture);
    for (int64_t c = 0; c < VAE_COLORS; c++)
        memcpy(picture + c * area,
               picture_of(w, s) ? slot->picture + c * area
                                : slot->pixels + c * w->want.frames * area,
               (size_t)area * sizeof *picture);
    ok = prepare_image(p, n, s, picture, e);
    free(picture);
    return ok;
}

/* ---- the stage --------------------------------------------------------------------------------
 */

static void open_queue(Queue *q, Prepare *p) {
    Wanted *w = p->wanted;
    int64_t area = VAE_COLORS * w->want.height * w->want.width, pixels = area * w->want.frames;
    *q = (Queue){.p = p, .tasks = xcalloc((size_t)w->n_samples, sizeof *q->tasks)};
    for (int i = 0; i < w->n_samples; i++) {
        WantedSample *s = &w->samples[i];
        if ((s->latents < 0 || !has_images(w, s)) && !s->bad && prepare_mine(p, q->all++))
            q->tasks[q->n++] = s;
    }
    int64_t fit = DECODED_BYTES / (pixels * (int64_t)sizeof(float));
    q->n_slots = (int)MIN(MAX(fit, 2), MAX_SLOTS);
    for (int i = 0; q->n && i < q->n_slots; i++) {
        q->slots[i].pixels = xcalloc((size_t)pixels, sizeof(float));
        if (w->images) q->slots[i].picture = xcalloc((size_t)area, sizeof(float));
    }
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->changed, NULL);
}

static void close_queue(Queue *q) {
    for (int i = 0; i < q->n_slots; i++) {
        free(q->slots[i].pixels);
        free(q->slots[i].picture);
    }
    pthread_cond_destroy(&q->changed);
    pthread_mutex_destroy(&q->lock);
    free(q->tasks);
}

static bool encode_all(Queue *q, Encoder *n, Error *e) {
    Prepare *p = q->p;
    int64_t before = p->wanted->n_samples - q->all;
    Progress *bar = prepare_bar(p, "encoding", "samples", before, p->wanted->n_samples);
    bool ok = true;
    for (int64_t i = 0; ok && i < q->n; i++) {
        WantedSample *s = q->tasks[i];
        Slot *slot = wait_for(q, i);
        if (!slot->ok) {
            *e = slot->e;
            ok = prepare_bad(p, s, e);
        } else if ((ok = encode(p, n, s, slot, e)))
            cache_files_set_bad(p->wanted->files, s->latents_key.whole, NULL);
        give_back(q, slot);
        prepare_tell(p, &p->news.samples, 1);
        prepare_show(p, bar, offsetof(RankNews, samples), before);
    }
    Error late;
    ok = prepare_flush(p, ok ? e : &late) && ok;
    if (ok) prepare_await(p, bar, offsetof(RankNews, samples), before, q->all);
    progress_close(bar);
    return ok;
}

bool prepare_clips(Prepare *p, Encoder *n, Error *e) {
    Queue q;
    pthread_t threads[MAX_DECODERS];
    int started = 0;
    open_queue(&q, p);
    int64_t wanted = MIN(MIN(sysconf(_SC_NPROCESSORS_ONLN), MAX_DECODERS), MIN(q.n_slots, q.n));
    while (started < wanted && !pthread_create(&threads[started], NULL, decoder, &q)) started++;
    bool ok = !q.n || started || error_set(e, EXIT_WORLD, "no thread can be started to decode");
    ok = ok && (!q.n || encode_all(&q, n, e));
    pthread_mutex_lock(&q.lock);
    q.stop = true;
    pthread_cond_broadcast(&q.changed);
    pthread_mutex_unlock(&q.lock);
    for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
    close_queue(&q);
    Error late;
    bool flushed = prepare_flush(p, ok ? e : &late);
    return ok && flushed;
}
