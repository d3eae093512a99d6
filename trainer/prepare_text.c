/* Owns the embeddings of captions: which are missing, and their way through tokenizer and T5. */
#include "trainer/device.h"
#include "trainer/prepare.h"
#include "trainer/prompts.h"

#include "data/t5.h"
#include "data/tokenizer.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Captions that go through T5 at once: its weights are read from the file once for all of them. */
enum { BATCH = 8 };

static int by_key(const void *a, const void *b) {
    const WantedSample *const *x = a, *const *y = b;
    int order = strcmp((*x)->embedding_key, (*y)->embedding_key);
    return order ? order : (*x > *y) - (*x < *y);
}

static int by_order(const void *a, const void *b) {
    const WantedSample *const *x = a, *const *y = b;
    return (*x > *y) - (*x < *y);
}

int64_t prepare_captions(const Prepare *p, WantedSample ***list) {
    Wanted *w = p->wanted;
    int64_t n = 0;
    WantedSample **s = xcalloc((size_t)w->n_samples, sizeof *s);
    for (int i = 0; i < w->n_samples; i++) s[i] = &w->samples[i];
    qsort(s, (size_t)w->n_samples, sizeof *s, by_key);
    for (int i = 0; i < w->n_samples; i++)
        if (!n || strcmp(s[n - 1]->embedding_key, s[i]->embedding_key)) s[n++] = s[i];
    qsort(s, (size_t)n, sizeof *s, by_order);
    *list = s;
    return n;
}

/* One caption that is to be embedded. */
typedef struct {
    const char *caption, *key;
    int64_t *ids; /* [text_length] */
} Text;

typedef struct {
    Prepare *p;
    Tokenizer *tokenizer;
    Text *texts;    /* [n] what is missing, the empty caption first: this rank's share of it */
    int64_t n, all; /* of all ranks */
} TextStage;

static bool add_text(TextStage *t, const char *caption, const char *key, bool missing, bool *cut,
                     Error *e) {
    int64_t length = t->p->wanted->text_length;
    int64_t *ids = xcalloc((size_t)length, sizeof *ids);
    bool ok = tokenizer_encode(t->tokenizer, caption, strlen(caption), length, ids, cut, e);
    if (ok && missing && prepare_mine(t->p, t->all++))
        t->texts[t->n++] = (Text){caption, key, ids};
    else
        free(ids);
    return ok;
}

/* A caption that cannot be tokenized spoils every sample that has it. */
static bool spoil(TextStage *t, const WantedSample *first, Error *e) {
    Wanted *w = t->p->wanted;
    Error named;
    error_set(&named, EXIT_DATA, "%.300s: %.800s", w->dataset.items[first->item].origin, e->text);
    *e = named;
    for (int i = 0; i < w->n_samples; i++)
        if (!strcmp(w->samples[i].embedding_key, first->embedding_key) &&
            !prepare_bad(t->p, &w->samples[i], e))
            return false;
    return true;
}

static bool tokenize(TextStage *t, Error *e) {
    Prepare *p = t->p;
    const Wanted *w = p->wanted;
    WantedSample **list;
    bool cut, ok = add_text(t, "", w->empty_key, w->empty < 0, &cut, e);
    int64_t n = prepare_captions(p, &list);
    p->captions = n;
    for (int64_t i = 0; ok && i < n; i++) {
        WantedSample *s = list[i];
        const DatasetItem *item = &w->dataset.items[s->item];
        bool empty = !strcmp(s->embedding_key, w->empty_key);
        cut = false;
        ok = add_text(t, item->caption, s->embedding_key, s->embedding < 0 && !empty, &cut, e) ||
             spoil(t, s, e);
        p->cut += cut;
        if (cut && p->cut <= 3 && !p->rank)
            fprintf(stderr, "cogsmith: %s: the caption is cut: it has more than %lld tokens\n",
                    item->origin, (long long)w->text_length);
    }
    if (p->cut > 3 && !p->rank)
        fprintf(stderr, "cogsmith: %lld captions in all are cut at %lld tokens\n",
                (long long)p->cut, (long long)w->text_length);
    free(list);
    return ok;
}

static bool embed(TextStage *t, T5 *t5, int64_t first, int64_t n, Error *e) {
    const Wanted *w = t->p->wanted;
    int64_t length = w->text_length, width = t5->config.width;
    int64_t *ids = xcalloc((size_t)(n * length), sizeof *ids);
    float *values = xcalloc((size_t)(n * length * width), sizeof *values);
    for (int64_t i = 0; i < n; i++)
        memcpy(ids + i * length, t->texts[first + i].ids, (size_t)length * sizeof *ids);
    bool ok = t5_encode(t5, ids, n, length, values, e);
    for (int64_t i = 0; ok && i < n; i++) {
        CacheEntry entry = {.kind = CACHE_EMBEDDING,
                            .shape = {length, width, 1, 1},
                            .caption = t->texts[first + i].caption};
        snprintf(entry.key, sizeof entry.key, "%s", t->texts[first + i].key);
        ok = prepare_add(t->p, &entry, values + i * length * width, NULL, e);
        prepare_tell(t->p, &t->p->news.embedded, ok);
    }
    free(ids);
    free(values);
    return ok;
}

static bool embed_all(TextStage *t, Error *e) {
    const Wanted *w = t->p->wanted;
    T5 *t5 = t5_open(w->text_folder, device_backend(t->p->config), e);
    if (!t5) return false;
    if (t5->config.width != w->model.text_dim)
        die("%s/config.json: d_model: expected %lld as the transformer's text_embed_dim, found "
            "%lld: they are of two models",
            w->text_folder, (long long)w->model.text_dim, (long long)t5->config.width);
    int64_t before = t->p->captions + 1 - t->all;
    Progress *bar = prepare_bar(t->p, "embedding", "captions", before, before + t->all);
    bool ok = true;
    int64_t together = captions_together(t->p->config, t5, w->text_length, BATCH);
    for (int64_t i = 0; ok && i < t->n; i += together) {
        int64_t n = MIN(together, t->n - i);
        ok = embed(t, t5, i, n, e);
        prepare_tell(t->p, &t->p->news.captions, n);
        prepare_show(t->p, bar, offsetof(RankNews, captions), before);
    }
    t5_close(t5);
    ok = ok && prepare_flush(t->p, e);
    if (ok) prepare_await(t->p, bar, offsetof(RankNews, captions), before, t->all);
    progress_close(bar);
    return ok;
}

bool prepare_text(Prepare *p, Error *e) {
    const Wanted *w = p->wanted;
    TextStage t = {.p = p, .tokenizer = tokenizer_open(w->tokenizer_folder, e)};
    if (!t.tokenizer) return false;
    t.texts = xcalloc((size_t)w->n_samples + 1, sizeof *t.texts);
    bool ok = tokenize(&t, e);
    tokenizer_close(t.tokenizer);
    if (ok && t.n) ok = embed_all(&t, e);
    for (int64_t i = 0; i < t.n; i++) free(t.texts[i].ids);
    free(t.texts);
    return ok;
}
