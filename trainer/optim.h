/* The optimizer: global-norm clipping, AdamW over trained buckets, learning-rate schedules. */
#pragma once

#include "autograd/op.h"
#include "autograd/param.h"
#include "trainer/config.h"

/* What the loss is multiplied by, a power of two, so that small gradients do not vanish in f16
 * (Micikevicius et al. 2018; as torch.amp.GradScaler): a step whose gradients overflow is left out
 * and halves it, LOSS_SCALE_STEPS good ones on end double it. */
enum { LOSS_SCALE_FIRST = 65536, LOSS_SCALE_STEPS = 2000 };
typedef struct {
    double value;       /* 1 where steps compute in another type */
    int64_t good_steps; /* since it last changed */
} LossScale;

typedef struct {
    double *partial; /* device, [chunks]: sums of squares by chunks of 1,024 elements */
    int64_t chunks;
    bool scales; /* steps compute in f16 */
    LossScale scale;
} Optim;

Optim optim_open(const ParamSet *p, DType compute, Memory *m);
void optim_close(Optim *o, Memory *m);
/* What it will keep on the device. */
int64_t optim_bytes(const ParamSet *p);

/* L2 norm of all gradients, less the loss's scale: f64 sums of chunks, added in the order of
 * buckets and chunks. */
double optim_grad_norm(const Optim *o, const ParamSet *p, Memory *m, Stream *s);
/* After the norm: true where the step is to be left out, for the scale was too large; a norm that
 * is not finite and false mean a step that has gone wrong. Moves the scale. */
bool optim_overflowed(Optim *o, double grad_norm);

/* One AdamW step over every trained bucket (see bucket_update); `step` counts from 1. Gradients,
 * less the loss's scale, are first multiplied by min(1, clip_norm / (norm + 1e-6)), as
 * torch.nn.utils.clip_grad_norm_ does; clip_norm 0: never. */
void optim_step(const Optim *o, ParamSet *p, const TrainConfig *c, double learning_rate,
                double grad_norm, int64_t step, Memory *m, Stream *s);

/* The sum of bucket_update_cost. */
Cost optim_cost(const ParamSet *p);

/* The rate of step `step` (from 0), as diffusers' get_scheduler has it: constant, linear to 0 or
 * half a cosine over `steps`, each after `warmup_steps` steps that rise from 0. */
double learning_rate_at(const TrainConfig *c, int64_t step);
