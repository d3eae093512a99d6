/* What the parts of `bench` share: the rows of its table. */
#pragma once

#include "trainer/config.h"
#include "trainer/profile.h"

typedef struct {
    char name[96];
    double *seconds; /* [repeat] */
    Cost cost;
    int steps;          /* of the plan, that are added up here; 0: another kind of row */
    int64_t rows;       /* of a training step; 0: not one */
    int64_t peak_bytes; /* of a whole computation, on its device; 0: not one */
    int64_t host_bytes; /* of a training step: what rests or waits in host memory beside it */
} BenchRow;

typedef struct {
    const Config *config;
    Limits limit;
    double idle; /* seconds that a GPU takes to be started and waited for; 0 on a CPU */
    int repeat;
    BenchRow *rows;
    int n_rows;
} Bench;

Bench bench_open(const Config *c);
void bench_close(Bench *b);

/* The row of that name, made where there is none. */
BenchRow *bench_row(Bench *b, const char *name);
/* Adds the timers of one run to the rows of its steps: one for each op, phase and size. What they
 * hold beside the device's work, `idle` for each, is taken off. */
void bench_add_steps(Bench *b, const Plan *p, const double *seconds, int turn);
/* A table or JSON on stdout; sorts the times. */
void bench_print(Bench *b, bool json);

/* The video autoencoder: encode and decode, whole and step by step (bench_vae.c). */
void bench_vae(Bench *b);
/* Decoding of the clips in data.path, where it is set, and reading from a cache (bench_io.c). */
void bench_io(Bench *b);
