/* What a training run keeps in its host's memory beside what the learner's plan has there. */
#pragma once

#include "trainer/learner.h"

/* Bytes of one rank. */
typedef struct {
    int64_t copies;   /* of the state, for checkpoints */
    int64_t batches;  /* read ahead, and the held-out one */
    int64_t previews; /* their texts, latents and decoded frames */
    int64_t program;  /* of a GPU: stated (GPU_HOST_BYTES) */
} HostNeeds;

/* Of a run over such packs, on rank 0, which keeps the masters whole and decodes the previews, or
 * on another. */
HostNeeds host_needs(const Config *c, const Model *m, const Pack *pack, bool first);
int64_t host_needs_total(const HostNeeds *n);
/* Of all ranks that share a host with rank 0. */
int64_t host_needs_together(const Config *c, const Model *m, const Pack *pack, int ranks);

/* Before a run plans: leaves room for this in what its plans may use (Model.host_limit), evenly on
 * the ranks of this host. */
void host_needs_reserve(const Config *c, Model *m, const Pack *pack);
