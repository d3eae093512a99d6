/* Owns the count of what lies in host memory while a run trains. */
#include "trainer/host_needs.h"

#include "kernels/comm.h"
#include "trainer/checkpoint.h"
#include "trainer/profile.h"
#include "trainer/train.h"

/* noisy, target, perhaps image [F,C,H,W]; text [L,E] */
static int64_t batch_elements(const DitConfig *d, const Pack *pack, int samples) {
    int64_t latents = 0, text = 0;
    for (int i = 0; i < samples; i++) {
        latents += d->out_channels * pack->fhw[i][0] * pack->fhw[i][1] * pack->fhw[i][2];
        text += pack->text_rows[i] * d->text_dim;
    }
    return (d->in_channels == d->out_channels ? 2 : 3) * latents + text;
}

static int64_t batch_bytes(const Config *c, const DitConfig *d, const Pack *pack) {
    int64_t elements = LOADER_BATCHES * batch_elements(d, pack, pack->samples);
    if (c->data.holdout && c->train.validate_every) elements += 2 * batch_elements(d, pack, 1);
    return elements * (int64_t)sizeof(float);
}

HostNeeds host_needs(const Config *c, const Model *m, const Pack *pack, bool first) {
    const DitConfig *d = &m->dit->config;
    bool cpu = !m->foreign && m->memory.k == &BACKEND_CPU; /* its context is the program */
    return (HostNeeds){.copies = saver_needs(m, first),
                       .batches = batch_bytes(c, d, pack),
                       .previews = previews_host_bytes(c, d, first),
                       .program = cpu ? 0 : GPU_HOST_BYTES};
}

int64_t host_needs_total(const HostNeeds *n) {
    return n->copies + n->batches + n->previews + n->program;
}

int64_t host_needs_together(const Config *c, const Model *m, const Pack *pack, int ranks) {
    HostNeeds first = host_needs(c, m, pack, true), other = host_needs(c, m, pack, false);
    return host_needs_total(&first) + (ranks - 1) * host_needs_total(&other);
}

void host_needs_reserve(const Config *c, Model *m, const Pack *pack) {
    int ranks = comm_local_size();
    m->host_limit -= host_needs_together(c, m, pack, ranks) / ranks;
}
