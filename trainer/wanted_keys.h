/* The keys of what a dataset and a config want. Private to trainer/wanted*. */
#pragma once

#include "data/vae_tiles.h"
#include "trainer/wanted.h"

/* Digests of everything that all samples share. */
typedef struct {
    char vae[CACHE_KEY_CHARS], text[CACHE_KEY_CHARS], tokenizer[CACHE_KEY_CHARS];
    TileAxis axes[2]; /* where w->tiles */
} WantedShared;

/* Fills the keys of a sample whose clip (and picture; NULL: none) has these digests. */
void wanted_keys(const Wanted *w, const WantedShared *shared, const char *video, const char *image,
                 WantedSample *s);
void wanted_embedding_key(const Wanted *w, const WantedShared *shared, const char *caption,
                          char key[CACHE_KEY_CHARS]);
