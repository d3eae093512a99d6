/* `cogsmith prepare`: from clips and captions to the cache, in two stages that never hold memory
 * together: embeddings of captions through T5, then clips and image conditions through the
 * autoencoder. Each does what is missing; what is done is durable within a minute, whatever ends
 * the program. Private to trainer/prepare*.c and trainer/verb_prepare.c.
 *
 * Ranks share the work: what is missing is dealt out among them, each writes parts of its own, and
 * rank 0 holds the lock and the index, says what is done, and takes the others' parts into the
 * index at the end. On every rank a thread does the work, while the program's own meets the other
 * ranks: an encoding of any length keeps nobody waiting beyond ranks.timeout. */
#pragma once

#include "kernels/comm.h"
#include "trainer/progress.h"
#include "trainer/wanted.h"

#include <pthread.h>

typedef enum {
    RANK_OPENING,
    RANK_OPEN, /* has the cache and knows the samples */
    RANK_DONE, /* has nothing left to do */
    RANK_FAILED,
    RANK_STOPPED /* was asked to */
} RankState;

/* What ranks tell each other when they meet: 64-bit numbers only. */
typedef struct {
    int64_t state, exit_code;
    int64_t view;   /* a digest of the files that it sees */
    int64_t shared; /* of rank 0: cache_share */
    /* Of its share: captions and samples behind it, and what it made of them. */
    int64_t captions, samples, encoded, embedded, images;
} RankNews;

typedef struct {
    const Config *config;
    Wanted *wanted;
    char *folder;          /* of the cache */
    Cache *cache;          /* NULL: not open yet, or no more */
    pthread_mutex_t lock;  /* over the cache; a request to stop takes it, too */
    double flushed;        /* when the cache was durable last */
    int64_t captions, cut; /* different captions, and those longer than the model takes */
    int rank, ranks;
    pthread_mutex_t news_lock; /* over what follows; taken after `lock`, if both are */
    pthread_cond_t met;
    RankNews news, *all; /* this rank's; [ranks] as they were when the ranks met last */
} Prepare;

/* Whether item i of a list of work is this rank's. */
bool prepare_mine(const Prepare *p, int64_t i);
/* Adds to a number of this rank's news, p->news.x. */
void prepare_tell(Prepare *p, int64_t *number, int64_t more);
/* A bar of rank 0; NULL on others. `column` (offsetof in RankNews) is what it shows of all. */
Progress *prepare_bar(const Prepare *p, const char *what, const char *unit, int64_t before,
                      int64_t all);
void prepare_show(Prepare *p, Progress *bar, size_t column, int64_t before);
/* Rank 0 shows the others' progress until `count` items are behind all. */
void prepare_await(Prepare *p, Progress *bar, size_t column, int64_t before, int64_t count);

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
/* The same; the caller has the lock. */
bool prepare_durable(Prepare *p, Error *e);
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

/* From now on a request to stop (SIGINT, SIGTERM, SIGUSR1) is kept, and wakes prepare_sleep. */
void prepare_on_stop(void);
bool prepare_asked(void);
/* Until the time is over (-1: never), a request to stop or prepare_wake. */
void prepare_sleep(int milliseconds);
void prepare_wake(void);

/* The share of this rank, from opening the cache to its last sample. */
bool prepare_share(Prepare *p, Error *e);
/* This rank has opened the cache. Rank 0 waits for the others: what is missing is dealt out by what
 * the index says now. */
void prepare_opened(Prepare *p);
/* What follows when every rank has done its share, on rank 0: the table. */
bool prepare_finish(Prepare *p, Error *e);
/* Runs prepare_share in a thread and meets the other ranks until all are done; false: *e, and what
 * was done is in the cache. A request to stop, and a failure among several ranks, end the program.
 */
bool prepare_together(Prepare *p, Error *e);

/* The whole; a failure's code and text are in *e, and what was done is in the cache. */
bool prepare_run(const Config *c, Error *e);
/* Reads every value of a cache and compares its digest. Returns the exit code. */
int prepare_verify(const Config *c);
