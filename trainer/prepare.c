/* Owns the course of `prepare`: what it says first, its stages, what it says last. */
#define _DEFAULT_SOURCE
#include "trainer/prepare.h"
#include "trainer/device.h"

#include "data/t5.h"
#include "data/whole.h"
#include "trainer/profile.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static const double DURABLE_SECONDS = 30; /* what is older is on the disk */

enum { NOTES_SHOWN = 10 };

#define MIB(bytes) ((double)(bytes) / (1 << 20))

/* ---- the cache --------------------------------------------------------------------------------
 */

bool prepare_durable(Prepare *p, Error *e) {
    p->flushed = now_seconds();
    return cache_flush(p->cache, e) && (p->rank || cache_files_save(p->wanted->files, e));
}

bool prepare_add(Prepare *p, const CacheEntry *entry, const float *values, const float *logvar,
                 Error *e) {
    pthread_mutex_lock(&p->lock);
    bool ok = cache_add(p->cache, entry, values, logvar, e) &&
              (now_seconds() - p->flushed < DURABLE_SECONDS || prepare_durable(p, e));
    pthread_mutex_unlock(&p->lock);
    return ok;
}

bool prepare_flush(Prepare *p, Error *e) {
    pthread_mutex_lock(&p->lock);
    bool ok = prepare_durable(p, e);
    pthread_mutex_unlock(&p->lock);
    return ok;
}

bool prepare_bad(Prepare *p, WantedSample *s, Error *e) {
    if (e->exit_code != EXIT_DATA) return false;
    if (p->config->data.on_bad == ON_BAD_STOP) {
        Error with;
        error_set(&with, EXIT_DATA, "%.1000s Mend or remove it, or say data.on_bad=skip.", e->text);
        *e = with;
        return false;
    }
    cache_files_set_bad(p->wanted->files, s->latents_key.whole, e->text);
    free(s->bad);
    s->bad = xstrdup(e->text);
    return true;
}

/* A digest of the samples' keys and of the lock file, which names rank 0: ranks that do not see the
 * same files must not share the work. */
static int64_t view_of(const Prepare *p) {
    const Wanted *w = p->wanted;
    Error ignored;
    char *lock = xprintf("%s/lock", p->folder), digest[CACHE_KEY_CHARS];
    CacheKey *k = cache_key_open("view");
    cache_key_file(k, lock, &ignored);
    for (int i = 0; i < w->n_samples; i++) {
        cache_key_text(k, "latents", w->samples[i].latents_key.whole);
        cache_key_text(k, "embedding", w->samples[i].embedding_key);
    }
    cache_key_close(k, digest);
    digest[16] = 0;
    free(lock);
    return (int64_t)strtoull(digest, NULL, 16);
}

static Cache *open_or_join(Prepare *p, Error *e) {
    if (p->rank) return cache_join(p->folder, (int)p->all[0].shared, p->rank, p->ranks, e);
    if (p->config->data.cache && !folders_make_above(p->folder, e)) return NULL;
    return cache_open(p->folder, true, e);
}

static bool open_cache(Prepare *p, Error *e) {
    Cache *cache = open_or_join(p, e);
    if (!cache) return false;
    pthread_mutex_lock(&p->lock);
    p->cache = cache;
    bool ok = prepare_durable(p, e);
    pthread_mutex_unlock(&p->lock);
    int64_t view = view_of(p);
    pthread_mutex_lock(&p->news_lock);
    if (!p->rank) p->news.shared = cache_share(cache, p->ranks);
    p->news.view = view;
    bool same = !p->rank || view == p->all[0].view;
    pthread_mutex_unlock(&p->news_lock);
    if (!same)
        return error_set(e, EXIT_USER,
                         "rank %d: its clips, its model or its %.300s are not those of rank 0: all "
                         "ranks must see the same files",
                         p->rank, p->folder);
    wanted_find(p->wanted, cache);
    for (int i = 0; i < p->wanted->n_samples; i++) { /* what failed once is tried again */
        free(p->wanted->samples[i].bad);
        p->wanted->samples[i].bad = NULL;
    }
    return ok;
}

/* After this a request to stop finds nothing to do. */
static bool close_cache(Prepare *p, Error *e) {
    pthread_mutex_lock(&p->lock);
    Cache *cache = p->cache;
    bool ok = !cache || p->rank || cache_files_save(p->wanted->files, e);
    p->cache = NULL;
    Error late;
    ok = cache_close(cache, ok ? e : &late) && ok;
    pthread_mutex_unlock(&p->lock);
    return ok;
}

/* ---- before -----------------------------------------------------------------------------------
 */

Todo prepare_todo(const Prepare *p) {
    const Wanted *w = p->wanted;
    WantedSample **list;
    int64_t n = prepare_captions(p, &list);
    Todo t = {.captions = w->empty < 0, .all_captions = n + 1};
    for (int64_t i = 0; i < n; i++)
        t.captions += list[i]->embedding < 0 && strcmp(list[i]->embedding_key, w->empty_key);
    for (int i = 0; i < w->n_samples; i++) {
        t.samples += w->samples[i].latents < 0;
        for (int v = 0; w->images && v < WANTED_VARIANTS; v++)
            t.images += w->samples[i].image[v] < 0;
    }
    int64_t image = 2 * w->latent[1] * w->latent[2] * w->latent[3]; /* numbers; 2 bytes each */
    t.bytes = 2 * (t.samples * image * w->latent[0] + t.images * image +
                   t.captions * w->text_length * w->model.text_dim);
    free(list);
    return t;
}

/* Arithmetic of one caption's embedding. */
static double caption_flops(const Wanted *w) {
    char *path = xprintf("%s/config.json", w->text_folder);
    T5Config t;
    Error e;
    if (!t5_config_read(&t, path, &e)) die_error(&e);
    free(path);
    double inner = (double)(t.heads * t.head_size), length = (double)w->text_length;
    double weights = (double)t.width * (4 * inner + 3 * (double)t.hidden);
    return length * (double)t.layers * (2 * weights + 4 * length * inner);
}

/* All of the work at the device's rates: what they allow, so a lower bound. The bars then tell by
 * the rate that is reached. */
static double predict(const Config *c, const Wanted *w, const Encoder *n, const Todo *t) {
    Profile m = device_profile(c);
    Cost clip = vae_job_cost(n->clips), image = {0};
    if (n->images) image = vae_job_cost(n->images);
    double flops = clip.flops * (double)t->samples + image.flops * (double)t->images +
                   caption_flops(w) * (double)t->captions;
    double bytes = clip.bytes * (double)t->samples + image.bytes * (double)t->images;
    return flops / m.matmul_flops + bytes / m.memory_rate;
}

static void print_notes(const WantedNotes *notes, const char *before, int most) {
    for (int i = 0; i < MIN(notes->n, most); i++)
        fprintf(stderr, "%s%s\n", before, notes->items[i]);
    if (notes->n > most) fprintf(stderr, "%sand %d more\n", before, notes->n - most);
}

static void print_disk(const Prepare *p, const Todo *t) {
    struct statvfs disk;
    fprintf(stderr, "  disk      %.1f MiB more in %s", MIB(t->bytes), p->folder);
    if (!statvfs(p->folder, &disk)) {
        double free_bytes = (double)disk.f_bavail * (double)disk.f_frsize;
        fprintf(stderr, ", of %.0f MiB free", MIB(free_bytes));
        if (free_bytes < (double)t->bytes * 1.05) fprintf(stderr, ": NOT ENOUGH");
    }
    fprintf(stderr, "\n");
}

/* What will be done, in which memory, space and time. */
static void announce(const Prepare *p, const Encoder *n) {
    const Wanted *w = p->wanted;
    Todo t = prepare_todo(p);
    fprintf(stderr, "%s\n", w->dataset.layout);
    fprintf(
        stderr,
        "  samples   %d of %lld frames, %lld x %lld, %g a second; at most %lld window%s a clip\n",
        w->n_samples, (long long)w->want.frames, (long long)w->want.width,
        (long long)w->want.height, w->want.fps, (long long)w->want.windows,
        w->want.windows == 1 ? "" : "s");
    print_notes(&w->warnings, "  warning   ", NOTES_SHOWN);
    if (!t.samples && !t.captions && !t.images) {
        fprintf(stderr, "  to do     nothing: all of it is in %s\n", p->folder);
        return;
    }
    fprintf(stderr, "  to do     %lld samples", (long long)t.samples);
    if (w->images) fprintf(stderr, ", %lld image conditions", (long long)t.images);
    fprintf(stderr, " and %lld captions; in the cache are %lld and %lld\n", (long long)t.captions,
            (long long)(w->n_samples - t.samples), (long long)(t.all_captions - t.captions));
    print_disk(p, &t);
    fprintf(stderr, "  memory    %.0f MiB for the autoencoder%s%s, of %.0f MiB%s\n",
            MIB(encoder_bytes(n)), vae_job_tiled(n->clips) ? ", which works in tiles" : "",
            p->ranks > 1 ? ", on each rank" : "", MIB(device_available(p->config)),
            p->config->memory.budget ? " in memory.budget" : " free");
    if (p->ranks > 1) fprintf(stderr, "  ranks     %d, which share the work\n", p->ranks);
    double seconds = predict(p->config, w, n, &t) / p->ranks;
    if (seconds < 1)
        fprintf(stderr, "  time      seconds\n");
    else
        fprintf(stderr, "  time      about %.0f min %02.0f s or more\n",
                (double)(int)(seconds / 60), seconds - 60 * (double)(int)(seconds / 60));
}

/* ---- after ------------------------------------------------------------------------------------
 */

static RankNews sum_of(const Prepare *p) {
    RankNews sum = {0};
    for (int r = 0; r < p->ranks; r++) {
        sum.encoded += p->all[r].encoded;
        sum.embedded += p->all[r].embedded;
        sum.images += p->all[r].images;
    }
    return sum;
}

static void print_table(Prepare *p) {
    Wanted *w = p->wanted;
    const RankNews made = sum_of(p);
    wanted_find(w, p->cache);
    wanted_leave_out_bad(w, p->config);
    int64_t clips = 0;
    for (int i = 0; i < w->n_samples; i++)
        clips += !i || w->samples[i].item != w->samples[i - 1].item;
    fprintf(stderr, "  used      %lld clips, %d samples, %lld of them encoded now\n",
            (long long)clips, w->n_samples, (long long)made.encoded);
    if (w->images)
        fprintf(stderr, "  images    %d to a sample, %lld encoded now\n", WANTED_VARIANTS,
                (long long)made.images);
    fprintf(stderr,
            "  captions  %lld and the empty one, %lld embedded now, %lld cut at %lld tokens\n",
            (long long)p->captions, (long long)made.embedded, (long long)p->cut,
            (long long)w->text_length);
    fprintf(stderr, "  skipped   %d\n", w->bad.n);
    print_notes(&w->bad, "            ", w->bad.n);
    fprintf(stderr, "  cache     %.1f MiB in %s\n", MIB(cache_bytes(p->cache)), p->folder);
    printf(
        "clips %lld\nsamples %d\nencoded %lld\nimages %lld\nembedded %lld\nskipped %d\ncut %lld\n"
        "bytes %lld\n",
        (long long)clips, w->n_samples, (long long)made.encoded, (long long)made.images,
        (long long)made.embedded, w->bad.n, (long long)p->cut, (long long)cache_bytes(p->cache));
}

/* ---- the course -------------------------------------------------------------------------------
 */

bool prepare_share(Prepare *p, Error *e) {
    p->wanted = wanted_open(p->config, p->folder, e);
    if (!p->wanted) return false;
    Encoder encoder = encoder_open(p->config, p->wanted); /* a mistake leaves no empty cache */
    bool ok = open_cache(p, e);
    if (ok && !p->rank) announce(p, &encoder);
    if (ok) prepare_opened(p);
    ok = ok && prepare_text(p, e) && prepare_clips(p, &encoder, e);
    encoder_close(&encoder);
    return ok;
}

/* What the others encoded. */
static bool adopt(Prepare *p, Error *e) {
    Wanted *w = p->wanted;
    if (!cache_adopt(p->cache, e)) return false;
    wanted_find(w, p->cache);
    for (int i = 0; i < w->n_samples; i++)
        if (wanted_has(w, &w->samples[i]))
            cache_files_set_bad(w->files, w->samples[i].latents_key.whole, NULL);
    return true;
}

bool prepare_finish(Prepare *p, Error *e) {
    if (p->rank) return true;
    if (p->ranks > 1 && !adopt(p, e)) return false;
    print_table(p);
    return p->wanted->n_samples ||
           error_set(e, EXIT_DATA, "%.300s: no clip of it can be used. The first: %.600s",
                     p->config->data.path, p->wanted->bad.items[0]);
}

bool prepare_run(const Config *c, Error *e) {
    /* Not on the stack: a request to stop may be answered while this returns. */
    static Prepare p = {.lock = PTHREAD_MUTEX_INITIALIZER,
                        .news_lock = PTHREAD_MUTEX_INITIALIZER,
                        .met = PTHREAD_COND_INITIALIZER};
    p.config = c;
    p.folder = wanted_cache_folder(c);
    prepare_on_stop();
    bool ok = prepare_together(&p, e);
    Error late;
    ok = close_cache(&p, ok ? e : &late) && ok;
    wanted_close(p.wanted);
    free(p.folder);
    return ok;
}
