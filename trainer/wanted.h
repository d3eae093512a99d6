/* What a dataset and a config want of the cache: the list of samples in order, each with the keys
 * of its values and where they are. `prepare` makes what is missing, `train` reads what is there.
 *
 *     Error e;
 *     char *folder = wanted_cache_folder(c);
 *     Cache *cache = cache_open(folder, false, &e);
 *     Wanted *w = cache ? wanted_open(c, folder, &e) : NULL;
 *     if (!w) die_error(&e);
 *     wanted_find(w, cache);
 *     for (int i = 0; i < w->n_samples; i++)
 *         ... cache_read(cache, w->samples[i].latents, mean, logvar, &e) ...
 *     wanted_close(w);
 *
 * A key is the digest of everything that its value follows from:
 *     latents     the clip's bytes, rate, first frame, frames, height, width, the autoencoder's
 *                 files, and its tiles where it is tiled
 *     image       the same with one frame, or a picture's bytes; and the number of the variant
 *     embedding   caption with trigger, length in tokens, the text encoder's and tokenizer's files
 * On an unchanged dataset no file is read to know them (data/cache_files.h).
 */
#pragma once

#include "data/cache_files.h"
#include "data/dataset.h"
#include "trainer/dit_config.h"
#include "trainer/tiling.h"

/* Noised encodings of one image condition; see trainer/prepare_image.c. */
enum { WANTED_VARIANTS = 8 };

/* The key of a value encoded whole and of one encoded in tiles: they differ in value. */
typedef struct {
    char whole[CACHE_KEY_CHARS], tiled[CACHE_KEY_CHARS];
} WantedKeys;

/* One window of one clip. */
typedef struct {
    int item; /* of the dataset: path of the clip, caption, image */
    int64_t window, windows;
    int64_t first_frame; /* in frames of the wanted rate */
    WantedKeys latents_key, image_key[WANTED_VARIANTS];
    char embedding_key[CACHE_KEY_CHARS];
    uint64_t image_seed; /* of the noise of its images */
    /* Entries of the cache, after wanted_find; -1: missing. */
    int latents, embedding, image[WANTED_VARIANTS];
    char *bad; /* why prepare could not use it, when it tried last; NULL: it could, or has not tried
                */
} WantedSample;

/* Sentences, each with a file's name. */
typedef struct {
    char **items;
    int n;
} WantedNotes;

typedef struct {
    Dataset dataset;
    DitConfig model;
    VaeModel vae;
    char *vae_folder, *text_folder, *tokenizer_folder;
    VideoWant want;
    int64_t latent[4];   /* F, C, H, W of a sample's latents, before any padding in time */
    int64_t text_length; /* tokens of a caption */
    bool images;         /* the model is conditioned on images: in_channels = 2 C */
    bool tiles;          /* the size has tiles at all, if it is to be tiled */
    VaeTiling tiling;
    WantedSample *samples; /* [n_samples] in the dataset's order, windows in order of time */
    int n_samples;
    char empty_key[CACHE_KEY_CHARS]; /* of the empty caption's embedding */
    int empty;                       /* its entry; -1: missing */
    WantedNotes bad;                 /* clips left out, with data.on_bad=skip */
    WantedNotes warnings;            /* about clips that are used all the same */
    CacheFiles *files;
} Wanted;

/* data.cache, or .cogsmith-cache in the folder of data.path. The caller frees it. */
char *wanted_cache_folder(const Config *c);

/* Reads the dataset, probes clips that it does not know yet, and computes all keys. Needs
 * model.path with transformer/config.json, vae/, text_encoder/ and tokenizer/. NULL: *e (EXIT_DATA:
 * a clip that cannot be used, with data.on_bad=stop, or none that can). Mistakes in the config end
 * the program. */
Wanted *wanted_open(const Config *c, const char *cache_folder, Error *e);
void wanted_close(Wanted *w);

/* Looks up every key, and what is remembered of those that could not be made. */
void wanted_find(Wanted *w, const Cache *cache);
/* With data.on_bad=skip: moves samples that `prepare` could not make to w->bad. */
void wanted_leave_out_bad(Wanted *w, const Config *c);
/* Whether the cache has all values of a sample; of all samples, and the empty caption's. */
bool wanted_has(const Wanted *w, const WantedSample *s);
bool wanted_complete(const Wanted *w);
