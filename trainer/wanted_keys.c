/* Owns what goes into a key, and in which order. */
#include "trainer/wanted_keys.h"

#include <stdlib.h>
#include <string.h>

/* Counts up when the same file and settings come to give other pixels or another value. */
static const double RULE = 1;

/* Height, width, autoencoder and tiles: what the encoding of any picture follows from. */
static void add_encoder(CacheKey *k, const Wanted *w, const WantedShared *shared, bool tiled) {
    cache_key_number(k, "height", (double)w->want.height);
    cache_key_number(k, "width", (double)w->want.width);
    cache_key_text(k, "vae", shared->vae);
    for (int i = 0; tiled && i < 2; i++) {
        cache_key_number(k, "tile", (double)shared->axes[i].tile);
        cache_key_number(k, "stride", (double)shared->axes[i].stride);
        cache_key_number(k, "keep", (double)shared->axes[i].keep);
        cache_key_number(k, "blend", (double)shared->axes[i].blend);
    }
}

/* Which pixels of which clip. */
static void add_clip(CacheKey *k, const Wanted *w, const char *video, int64_t first,
                     int64_t frames) {
    cache_key_text(k, "video", video);
    cache_key_number(k, "fps", w->want.fps);
    cache_key_number(k, "first_frame", (double)first);
    cache_key_number(k, "frames", (double)frames);
}

static void latents_key(const Wanted *w, const WantedShared *shared, const char *video,
                        int64_t first, bool tiled, char key[CACHE_KEY_CHARS]) {
    CacheKey *k = cache_key_open("latents");
    cache_key_number(k, "rule", RULE);
    add_clip(k, w, video, first, w->want.frames);
    add_encoder(k, w, shared, tiled);
    cache_key_close(k, key);
}

/* variant -1: of the picture itself, before noise. */
static void image_key(const Wanted *w, const WantedShared *shared, const char *video,
                      const char *image, int64_t first, int variant, bool tiled,
                      char key[CACHE_KEY_CHARS]) {
    CacheKey *k = cache_key_open("image");
    cache_key_number(k, "rule", RULE);
    cache_key_number(k, "variant", variant);
    if (image)
        cache_key_text(k, "image", image);
    else
        add_clip(k, w, video, first, 1);
    add_encoder(k, w, shared, tiled);
    cache_key_close(k, key);
}

void wanted_embedding_key(const Wanted *w, const WantedShared *shared, const char *caption,
                          char key[CACHE_KEY_CHARS]) {
    CacheKey *k = cache_key_open("embedding");
    cache_key_number(k, "rule", RULE);
    cache_key_text(k, "caption", caption);
    cache_key_number(k, "length", (double)w->text_length);
    cache_key_text(k, "text_encoder", shared->text);
    cache_key_text(k, "tokenizer", shared->tokenizer);
    cache_key_close(k, key);
}

void wanted_keys(const Wanted *w, const WantedShared *shared, const char *video, const char *image,
                 WantedSample *s) {
    latents_key(w, shared, video, s->first_frame, false, s->latents_key.whole);
    latents_key(w, shared, video, s->first_frame, w->tiles, s->latents_key.tiled);
    wanted_embedding_key(w, shared, w->dataset.items[s->item].caption, s->embedding_key);
    for (int v = -1; w->images && v < WANTED_VARIANTS; v++) {
        WantedKeys keys;
        image_key(w, shared, video, image, s->first_frame, v, false, keys.whole);
        image_key(w, shared, video, image, s->first_frame, v, w->tiles, keys.tiled);
        if (v >= 0) s->image_key[v] = keys;
        keys.whole[16] = 0;
        if (v < 0) s->image_seed = strtoull(keys.whole, NULL, 16);
    }
}
