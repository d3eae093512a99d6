/* Owns the search over homes. */
#include "trainer/planner.h"

#include "trainer/device.h"
#include "trainer/host_memory.h"
#include "trainer/native.h"
#include "trainer/same.h"
#include "trainer/train.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Where the frozen or the trained parameters of a planned model rest, and what its steps save; as
 * in MemoryChoice. */
static const char *planned_home(const Model *m, bool trained) {
    static const char *const NAMES[] = {[HOME_DEVICE] = "device",
                                        [HOME_HOST] = "host",
                                        [HOME_RANKS] = "ranks",
                                        [HOME_FILE] = "file"};
    for (int i = 0; i < m->params->n_buckets; i++) {
        const Bucket *b = &m->params->bucket[i];
        if (b->trained == trained) return b->host ? "host" : NAMES[b->home];
    }
    return "none";
}

static const char *planned_activations(const Learner *l) {
    return l->shaped[0].plan->host_bytes ? "host" : "device";
}

/* ---- what is tried ----------------------------------------------------------------------------
 */

enum { MAX_PLACES = 3 };

/* The homes of one kind that the config leaves open, the usual one first. */
static int places(PlaceChoice set, bool open, PlaceChoice more, PlaceChoice out[MAX_PLACES]) {
    int n = 0;
    out[n++] = set;
    if (set != PLACE_AUTO || !open) return n;
    if (more != PLACE_AUTO) out[n++] = more;
    out[n++] = PLACE_HOST;
    return n;
}

/* Of the plan for held-out losses, which lies beside the training one. */
static int64_t holdout_bytes(Model *m, const Config *c, const Pack *pack) {
    bool any = c->data.holdout && c->train.validate_every;
    return any ? learner_forward_bytes(m, c, pack->fhw[0]) : 0;
}

/* Of that for previews. */
static int64_t sampler_bytes(Model *m, const Config *c) {
    ClipSize z;
    bool any = previews_size(c, &m->dit->config, &z);
    return any ? learner_forward_bytes(m, c, (const int64_t[]){z.f, z.h, z.w}) : 0;
}

static bool moves_ahead(const Plan *p) {
    for (int i = 0; i < p->n_steps; i++)
        if (p->steps[i].phase == WAIT) return true;
    return false;
}

static void apply(Config *c, const MemoryChoice *m) {
    c->memory.base.home = m->base;
    c->memory.optimizer.home = m->optimizer;
    c->memory.activations.home = m->activations;
    c->memory.prefetch = m->prefetch;
    c->memory.recompute = m->asked;
}

/* Where there is no limit. */
static const Planning NO_LIMIT = {.host_limit = INT64_MAX, .host_ranks = 1};

static MemoryChoice try_one(const Config *c, MemoryChoice m, Training training, const Profile *p,
                            bool foreign, int64_t available, const Planning *limits) {
    Config trial = *c; /* borrows the strings */
    apply(&trial, &m);
    Model *model = model_open(&trial, training, MODEL_SHAPES, foreign);
    NativePack native = native_pack(&trial, &model->dit->config);
    int ranks = limits->host_ranks;
    int64_t holdout = holdout_bytes(model, &trial, &native.pack);
    int64_t sampler = sampler_bytes(model, &trial), decoder = limits->decoder_bytes;
    m.holdout_bytes = holdout + MAX(sampler, decoder);
    m.host = host_needs(&trial, model, &native.pack, true);
    int64_t beside = host_needs_together(&trial, model, &native.pack, ranks) +
                     (limits->one_memory ? m.holdout_bytes + (ranks - 1) * (holdout + sampler) : 0);
    m.host_left = model->host_limit = (limits->host_limit - beside) / ranks;
    Learner *l = learner_try(model, &trial, &native.pack, 1, true, available - m.holdout_bytes);
    m.recompute = l->recompute;
    m.hard_blocks = l->hard_blocks;
    m.ahead = moves_ahead(l->shaped[0].plan);
    m.base_home = planned_home(model, false);
    m.optimizer_home = planned_home(model, true);
    m.activations_home = planned_activations(l);
    m.bytes = learner_bytes(l);
    m.bytes.total += m.holdout_bytes;
    m.host_bytes = m.bytes.host + host_needs_total(&m.host);
    m.host_together = ranks * learner_on_host(l) + beside;
    m.seconds = predicted_seconds(&trial, p, l);
    m.fits = m.bytes.total <= available && m.host_together <= limits->host_limit;
    learner_close(l);
    native_pack_free(&native);
    model_close(model);
    return m;
}

/* Nothing is faster than the usual homes without recomputation. */
static bool is_best(const MemoryChoice *m) {
    return m->fits && m->recompute == MEMORY_RECOMPUTE_NONE && m->base != PLACE_HOST &&
           m->optimizer != PLACE_HOST && m->activations != PLACE_HOST;
}

/* Of those that do not fit the better one is what the host can hold, and then the smaller. */
static bool better(const Planning *p, const MemoryChoice *a, const MemoryChoice *b) {
    bool holds_a = a->host_together <= p->host_limit, holds_b = b->host_together <= p->host_limit;
    if (a->fits != b->fits) return a->fits;
    if (a->fits) return a->seconds < b->seconds;
    if (holds_a != holds_b) return holds_a;
    return p->one_memory && !holds_a ? a->host_together < b->host_together
                                     : a->bytes.total < b->bytes.total;
}

/* Of those that are as good as the fastest the one that takes the least of the host's memory. */
static void prefer_less(Planning *p) {
    const double as_good = 1.005;
    double most = as_good * p->tried[p->chosen].seconds;
    if (!p->tried[p->chosen].fits) return;
    for (int i = 0; i < p->n; i++) {
        const MemoryChoice *m = &p->tried[i];
        if (m->fits && m->seconds <= most && m->host_bytes < p->tried[p->chosen].host_bytes)
            p->chosen = i;
    }
}

static void rank(Planning *p) {
    p->next = -1;
    for (int i = 1; i < p->n; i++)
        if (better(p, &p->tried[i], &p->tried[p->chosen])) p->chosen = i;
    prefer_less(p);
    for (int i = 0; i < p->n; i++) {
        if (i == p->chosen || !p->tried[i].fits) continue;
        if (p->next < 0 || p->tried[i].seconds < p->tried[p->next].seconds) p->next = i;
    }
}

/* A CPU's copies are its own work: nothing runs beside the steps. */
static PrefetchChoice prefetch_first(const Config *c, const Profile *p) {
    if (c->memory.prefetch != PREFETCH_AUTO) return c->memory.prefetch;
    return p->cuda ? PREFETCH_ON : PREFETCH_OFF;
}

/* Without a limit nothing is recomputed and everything has its usual home. */
static double unlimited(const Config *c, Training training, const Profile *p, bool foreign) {
    MemoryChoice m = {
        .base = PLACE_AUTO, .prefetch = prefetch_first(c, p), .asked = c->memory.recompute};
    return try_one(c, m, training, p, foreign, INT64_MAX, &NO_LIMIT).seconds;
}

enum { MAX_RECOMPUTES = 3 };

/* What is computed again need not wait in host memory: there more of it may be faster. */
static int recomputes(const Config *c, PlaceChoice activations,
                      RecomputeChoice out[MAX_RECOMPUTES]) {
    int n = 0;
    out[n++] = c->memory.recompute;
    if (c->memory.recompute != MEMORY_RECOMPUTE_AUTO || activations != PLACE_HOST) return n;
    out[n++] = MEMORY_RECOMPUTE_SELECTIVE;
    out[n++] = MEMORY_RECOMPUTE_BLOCK;
    return n;
}

/* With these homes: moves beside the steps, and between them where both are open. */
static int add_candidates(const Config *c, const Profile *profile, MemoryChoice m,
                          MemoryChoice *out) {
    RecomputeChoice asked[MAX_RECOMPUTES];
    int n = 0, n_asked = recomputes(c, m.activations, asked);
    for (int i = 0; i < n_asked; i++) {
        m.asked = asked[i];
        m.prefetch = prefetch_first(c, profile);
        out[n++] = m;
        if (m.prefetch == PREFETCH_OFF || c->memory.prefetch == PREFETCH_ON) continue;
        m.prefetch = PREFETCH_OFF;
        if (i == 0) out[n++] = m;
    }
    return n;
}

enum { MAX_CANDIDATES = MAX_PLACES * MAX_PLACES * MAX_PLACES * MAX_RECOMPUTES * 2 };

/* The usual homes first. */
static int candidates(const Config *c, Training training, const Profile *profile,
                      MemoryChoice out[MAX_CANDIDATES]) {
    const MemoryConfig *k = &c->memory;
    PlaceChoice base[MAX_PLACES], optimizer[MAX_PLACES], activations[MAX_PLACES];
    PlaceChoice shared = c->plan.world > 1 ? PLACE_RANKS : PLACE_AUTO;
    int n = 0, n_base = places(k->base.home, training != TRAIN_FULL, shared, base);
    int n_optimizer = places(k->optimizer.home, true, PLACE_AUTO, optimizer);
    int n_activations = places(k->activations.home, true, PLACE_AUTO, activations);
    for (int o = 0; o < n_optimizer; o++)
        for (int b = 0; b < n_base; b++)
            for (int a = 0; a < n_activations; a++) {
                MemoryChoice m = {
                    .base = base[b], .optimizer = optimizer[o], .activations = activations[a]};
                n += add_candidates(c, profile, m, out + n);
            }
    return n;
}

/* Moves between the steps, where the same beside the steps has just been found to fit. */
static bool is_slower(const MemoryChoice *m, const MemoryChoice *before) {
    return before->fits && before->prefetch == PREFETCH_ON && m->prefetch == PREFETCH_OFF;
}

Planning planner_try(const Config *c, Training training, const Profile *profile, bool foreign,
                     int64_t available) {
    MemoryChoice list[MAX_CANDIDATES];
    int n = candidates(c, training, profile, list);
    Planning p = {.tried = xcalloc((size_t)n, sizeof *p.tried),
                  .host_limit = profile->host_bytes ? profile->host_bytes : host_free_bytes(),
                  .host_ranks = profile_host_ranks(profile, (int)c->plan.world),
                  .one_memory = !foreign};
    Model *shapes = model_open(c, training, MODEL_SHAPES, foreign);
    p.decoder_bytes = previews_decode_bytes(c, &shapes->dit->config, foreign);
    model_close(shapes);
    if (p.one_memory) p.host_limit -= p.host_ranks * profile->context_bytes;
    for (int i = 0; i < n && !(p.n && is_best(&p.tried[0])); i++)
        if (!p.n || !is_slower(&list[i], &p.tried[p.n - 1]))
            p.tried[p.n++] = try_one(c, list[i], training, profile, foreign, available, &p);
    rank(&p);
    p.unlimited_seconds =
        is_best(&p.tried[0]) ? p.tried[0].seconds : unlimited(c, training, profile, foreign);
    return p;
}

void planner_close(Planning *p) {
    free(p->tried);
    *p = (Planning){0};
}

/* The smallest of those that would fit if the host had more memory; NULL: there is none. */
static const MemoryChoice *smallest(const Planning *p, int64_t available) {
    const MemoryChoice *found = NULL;
    for (int i = 0; i < p->n; i++) {
        const MemoryChoice *m = &p->tried[i];
        if (m->host_together <= p->host_limit || m->bytes.total > available) continue;
        if (!found || m->host_together < found->host_together) found = m;
    }
    return found;
}

/* What there is does not do. budget: of the device, context included; 0: what is free there. */
NORETURN static void refuse(const Config *c, const Planning *p, int64_t available) {
    const MemoryChoice *m = &p->tried[p->chosen], *else_ = smallest(p, available);
    const double gib = 1 << 30, host_free = (double)MAX(p->host_limit, 0) / gib;
    bool frozen = strcmp(m->base_home, "none") != 0;
    int64_t most = c->memory.budget ? c->memory.budget : available;
    char *host = else_ ? xprintf("; it would do with %.3f GiB of host memory, of which %.3f GiB "
                                 "are free",
                                 (double)else_->host_together / gib, host_free)
                       : xstrdup("");
    char *others = m->holdout_bytes ? xprintf(", %.3f GiB of it for previews and held-out losses",
                                              (double)m->holdout_bytes / gib)
                                    : xstrdup("");
    char *least = xprintf(
        "the least possible is %.3f GiB%s, with %s%s%sthe optimizer at %s, activations at %s and "
        "%s%s. Fewer frames, a smaller size, batch or rank need less",
        (double)(most - available + m->bytes.total) / gib, others, frozen ? "base weights at " : "",
        frozen ? m->base_home : "", frozen ? ", " : "", m->optimizer_home, m->activations_home,
        m->recompute == MEMORY_RECOMPUTE_BLOCK       ? "every block recomputed"
        : m->recompute == MEMORY_RECOMPUTE_SELECTIVE ? "blocks recomputed but for attention"
                                                     : "nothing recomputed",
        host);
    if (m->bytes.total <= available)
        die("%.3f GiB of host memory are needed for what rests or waits there%s, and %.3f GiB are "
            "free; %s",
            (double)m->host_together / gib, p->host_ranks > 1 ? ", by all ranks of a host" : "",
            host_free, least);
    if (c->memory.budget)
        config_die(c, "memory.budget", "%.3f GiB is too little: %s", (double)most / gib, least);
    die("the %.3f GiB of device memory that are free are too little: %s", (double)most / gib,
        least);
}

void planner_apply(Config *c, const Planning *p, int64_t available) {
    const MemoryChoice *m = &p->tried[p->chosen];
    if (c->memory.budget && m->bytes.total > available) refuse(c, p, available);
    apply(c, m);
}

/* ---- before a run -----------------------------------------------------------------------------
 */

/* Rank 0's figures, the least memory of all and the most ranks that share it. */
static Profile agree(Comm *ranks, Profile mine) {
    Profile *all = xcalloc((size_t)ranks->size, sizeof *all);
    ranks->all_gather(ranks, NULL, DT_U8, sizeof mine, &mine, all);
    all[0].name = mine.name; /* an address of another process */
    all[0].host_bytes = ranks_least(ranks, NULL, mine.host_bytes);
    all[0].host_ranks = (int)-ranks_least(ranks, NULL, -mine.host_ranks);
    mine = all[0];
    free(all);
    return mine;
}

void planner_choose(Config *c, Training training, Comm *ranks, const Profile *mine,
                    int64_t available) {
    int64_t world = c->plan.world;
    Profile profile = agree(ranks, *mine);
    available = ranks_least(ranks, NULL, available);
    c->plan.world = ranks->size;
    Planning p = planner_try(c, training, &profile, profile.cuda, available);
    const MemoryChoice *m = &p.tried[p.chosen];
    if (!m->fits) refuse(c, &p, available);
    apply(c, m);
    planner_close(&p);
    c->plan.world = world;
}

/* Of a GPU whose memory nobody limits: what is lost between the plan and the run, to modules that
 * load and to allocations that are rounded up to pages of 2 MiB. */
enum { SPARE_BYTES = 256 << 20 };

void planner_decide(Config *c, Training training, Comm *ranks) {
    const Backend *k = device_backend(c);
    ranks_agree(ranks, "device", k->name);
    if (k == &BACKEND_CPU && !c->memory.budget) return;
    ranks_least(ranks, NULL, 0); /* every rank has its device before memory is measured */
    int64_t host_bytes = ranks_least(ranks, NULL, host_free_bytes()); /* before any is taken */
    Profile mine = device_profile(c);
    mine.host_bytes = host_bytes;
    int64_t available = device_available(c) - (c->memory.budget ? 0 : SPARE_BYTES);
    planner_choose(c, training, ranks, &mine, available);
}
