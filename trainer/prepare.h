/* `cogsmith prepare`: from clips and captions to the cache, in two stages that never hold memory
 * together: embeddings of captions through T5, then clips and image conditions through the
 * autoencoder. Each does what is missing; what is done is durable within a minute, whatever ends
 * the program. Private to trainer/prepare*.c and trainer/verb_prepare.c. */
#pragma once

#include "trainer/wanted.h"

#include <pthread.h>

typedef struct {
    const Config *config;
    Wanted *wanted;
    char *folder;                      /* of the cache */
    Cache *cache;                      /* NULL: not open yet, or no more */
    pthread_mutex_t lock;              /* over the cache; a request to stop takes it, too */
    double flushed;                    /* when the cache was durable last */
    int64_t encoded, embedded, images; /* made by this run */
    int64_t captions, cut; /* different captions, and those longer than the model takes */
} Prepare;

/* What there is to do. */
typedef struct {
    int64_t samples, images; /* samples without latents; image encodings */
    int64_t captions;        /* different ones, the empty one included */
    int64_t all_captions;
    int64_t bytes; /* that they will take in the cache */
} Todo;
Todo prepare_todo(const Prepare *p);

/* Adds a value and makes the cache durable from time to time. */
bool prepare_add(Prepare *p, const CacheEntry *entry, const float *values, const float *logvar,
                 Error *e);
bool prepare_flush(Prepare *p, Error *e);
/* A sample cannot be used: false where that ends the run (data.on_bad=stop, or not its own fault).
 * With data.on_bad=skip it is remembered. */
bool prepare_bad(Prepare *p, WantedSample *s, Error *e);

/* Embeddings of every caption and of the empty one. Looks at all captions, also when none is
 * missing. */
bool prepare_text(Prepare *p, Error *e);
/* The distinct captions: one sample of each, by key; the caller frees the list. */
int64_t prepare_captions(const Prepare *p, WantedSample ***list);

/* What encodes clips: planned, and without memory of its own until it runs. */
typedef struct {
    Vae *vae;
    VaeJob *clips, *images; /* images NULL: the model needs none */
} Encoder;
/* Ends the program on mistakes. */
Encoder encoder_open(const Config *c, const Wanted *w);
void encoder_close(Encoder *n);
int64_t encoder_bytes(const Encoder *n);
bool prepare_clips(Prepare *p, Encoder *n, Error *e);

/* Noised encodings of the picture [3,H,W] of a sample. */
bool prepare_image(Prepare *p, const Encoder *n, const WantedSample *s, const float *picture,
                   Error *e);
/* Whether every number of an encoding is finite; else *e names the clip. */
bool moments_finite(const float *moments, int64_t n, const char *source, Error *e);

/* From now on a request to stop (SIGINT, SIGTERM, SIGUSR1) calls prepare_stop in a thread of its
 * own and ends the program with EXIT_STOPPED. */
void prepare_on_stop(Prepare *p);
/* Makes what was done durable, and keeps the lock. */
bool prepare_stop(Prepare *p);

/* The whole; a failure's code and text are in *e, and what was done is in the cache. */
bool prepare_run(const Config *c, Error *e);
/* Reads every value of a cache and compares its digest. Returns the exit code. */
int prepare_verify(const Config *c);
