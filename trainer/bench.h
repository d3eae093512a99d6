/* What the parts of `bench` share: the rows of its table. */
#pragma once

#include "trainer/config.h"
#include "trainer/profile.h"

/* Two buffers larger than caches, copied from one to the other a part at a time. */
typedef struct {
    Stream *stream;
    char *from, *to;
    int64_t at; /* bytes: where the next copy begins */
} Copies;

typedef struct {
    char name[96];
    double *seconds;  /* [repeat] */
    double *compared; /* [repeat] of what it is compared with; 0: with the machine's limits */
    Cost cost;
    int64_t rows;       /* of a training step; 0: not one */
    int64_t peak_bytes; /* of a whole computation, on its device; 0: not one */
    int64_t host_bytes; /* of a training step: what rests or waits in host memory beside it */
} BenchRow;

typedef struct {
    const Config *config;
    Limits limit;
    double idle; /* seconds that a GPU takes to be started and waited for; 0 on a CPU */
    Copies copies; /* opened with the first op */
    int repeat;
    BenchRow *rows;
    int n_rows;
} Bench;

Bench bench_open(const Config *c);
void bench_close(Bench *b);

/* The row of that name, made where there is none. */
BenchRow *bench_row(Bench *b, const char *name);
/* Adds the timers of one run to the rows of its steps: one for each op, phase and size. What they
 * hold beside the device's work, `idle` for each, is taken off. A copy of as many bytes is timed
 * for each step that memory bounds, so that what slows the machine down for a while slows both. */
void bench_add_steps(Bench *b, const Plan *p, const double *seconds, int turn);
/* Rows of the matrix products of a micro-step, one for each size, compared with the library's own
 * for the whole product; on a CPU. `micro` runs the micro-step, with `memory`'s backend
 * (bench_products.c).
 */
void bench_products(Bench *b, Memory *memory, void (*micro)(void *of), void *of);
/* A table or JSON on stdout: the share of a row that is compared is the median over the turns, as
 * both were timed within one. Ends with the times sorted. */
void bench_print(Bench *b, bool json);

/* The video autoencoder: encode and decode, whole and step by step (bench_vae.c). */
void bench_vae(Bench *b);
/* Decoding of the clips in data.path, where it is set, and reading from a cache (bench_io.c). */
void bench_io(Bench *b);
