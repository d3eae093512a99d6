/* The numbers of one micro-step, for tests that drive a Learner. */
#pragma once

#include "trainer/learner.h"

enum { MICRO_SAMPLES = 12 };

/* What is drawn of a pack, all its samples end to end. */
typedef enum { DRAWN_NOISY, DRAWN_IMAGE, DRAWN_TARGET, DRAWN_TEXT, DRAWN_KINDS } Drawn;

typedef struct {
    Micro micro; /* step, micro and micros are the caller's to set */
    float *values[DRAWN_KINDS];
    int64_t timesteps[MICRO_SAMPLES]; /* so are these */
    uint32_t ordinals[MICRO_SAMPLES]; /* and these: 0, 1, ... */
    int64_t count;                    /* latent elements */
} DrawnMicro;

/* draw(context, kind, n): n numbers in memory of BACKEND_CPU. */
static inline void micro_draw(DrawnMicro *d, const Learner *l, int shape,
                              float *(*draw)(const void *context, Drawn kind, int64_t n),
                              const void *context) {
    const DitGraph *io = &l->shaped[shape].io;
    d->count = tensor_count(io->latents);
    for (Drawn k = 0; k < DRAWN_KINDS; k++)
        d->values[k] = draw(context, k, k == DRAWN_TEXT ? tensor_count(io->text) : d->count);
    for (uint32_t i = 0; i < MICRO_SAMPLES; i++) d->ordinals[i] = i;
    d->micro = (Micro){.shape = shape,
                       .noisy = d->values[DRAWN_NOISY],
                       .image = io->image ? d->values[DRAWN_IMAGE] : NULL,
                       .text = d->values[DRAWN_TEXT],
                       .target = d->values[DRAWN_TARGET],
                       .timesteps = d->timesteps,
                       .ordinals = d->ordinals,
                       .seed = 11,
                       .micros = 1};
}

static inline void micro_release(DrawnMicro *d) {
    for (int k = 0; k < DRAWN_KINDS; k++) BACKEND_CPU.release(d->values[k]);
}
