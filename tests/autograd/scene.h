/* A graph under test with numbers in its inputs: what the tests of autograd/ share. Every run has a
 * poisoned arena. */
#pragma once

#include "autograd/ops.h"
#include "autograd/run.h"
#include "tests/kernels/fixture.h"

enum { SCENE_INPUTS = 16 };

typedef struct {
    Memory memory;
    Stream *stream;
    Graph *graph;
    Plan *plan;
    Run *run;
    Tensor *input[SCENE_INPUTS];
    void *value[SCENE_INPUTS]; /* what input[i] is given before each run */
    int n_inputs;
    int next;      /* of the inputs, while a graph is recorded again over them */
    int only;      /* the input that gets a gradient; -1: all that may */
    uint32_t seed; /* of the numbers */
    RunArgs args;
} Scene;

/* params may be NULL. */
static inline Scene scene_open(uint32_t seed, ParamSet *params) {
    return (Scene){.memory = {.k = &BACKEND_CPU},
                   .stream = BACKEND_CPU.stream_open(),
                   .graph = graph_open(DT_REAL, params),
                   .only = -1,
                   .seed = seed,
                   .args = {.seed = 5, .step = 3, .loss_grad = (real)0.75}};
}

static inline void scene_close(Scene *s) {
    run_close(s->run);
    plan_close(s->plan);
    graph_close(s->graph);
    for (int i = 0; i < s->n_inputs; i++) BACKEND_CPU.release(s->value[i]);
    BACKEND_CPU.stream_close(s->stream);
}

/* An input of random numbers within +-2 * scale; the same ones in the same order after next = 0. */
static inline Tensor *scene_input(Scene *s, const char *name, Shape shape, double scale,
                                  bool grad) {
    if (s->next < s->n_inputs) return s->input[s->next++];
    CHECK(s->n_inputs < SCENE_INPUTS, "%s is one input too many", name);
    real *values = numbers(shape_count(shape), s->seed + (uint32_t)s->n_inputs * 7919);
    for (int64_t i = 0; i < shape_count(shape); i++) values[i] *= (real)scale;
    Tensor *t = graph_input(s->graph, name, shape, DT_REAL);
    t->needs_grad = grad && (s->only < 0 || s->only == s->n_inputs);
    s->value[s->n_inputs] = values;
    s->next = s->n_inputs + 1;
    return s->input[s->n_inputs++] = t;
}

/* Segments of the lengths given, a list that 0 ends. */
static inline Segments scene_segments(Scene *s, const int64_t *length) {
    int n = 0;
    while (length[n]) n++;
    int64_t *cu = graph_alloc(s->graph, (size_t)(n + 1) * sizeof *cu);
    for (int i = 0; i < n; i++) cu[i + 1] = cu[i] + length[i];
    return (Segments){.n = n, .cu = cu};
}

static inline void scene_place(Scene *s) {
    plan_place(s->plan, &(Ctx){.k = s->memory.k, .stream = s->stream});
    s->run = run_open(s->plan, &s->memory, s->stream, NULL);
    s->run->poison = true;
    memory_seal(&s->memory, true);
}

/* Gives every input its numbers and runs the plan. */
static inline void scene_run(Scene *s) {
    for (int i = 0; i < s->n_inputs; i++) run_input(s->run, s->input[i], s->value[i]);
    run_plan(s->run, &s->args);
}

/* The numbers of an output, in memory of the caller. */
static inline real *scene_read(Scene *s, const Tensor *t) {
    real *values = BACKEND_CPU.alloc(tensor_bytes(t));
    run_output(s->run, t, values);
    return values;
}
