/* Owns the search over homes. */
#include "trainer/planner.h"

#include "trainer/native.h"

#include <stdio.h>
#include <stdlib.h>

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

static MemoryChoice try_one(const Config *c, MemoryChoice m, Training training, const Profile *p,
                            bool foreign, int64_t available) {
    Config trial = *c; /* borrows the strings */
    trial.memory.base.home = m.base;
    trial.memory.optimizer.home = m.optimizer;
    trial.memory.activations.home = m.activations;
    trial.memory.prefetch = m.prefetch;
    Model *model = model_open(&trial, training, MODEL_SHAPES, foreign);
    NativePack native = native_pack(&trial, &model->dit->config);
    if (foreign) model->host_limit = p->host_bytes;
    Learner *l = learner_try(model, &trial, &native.pack, 1, true, available);
    m.recompute = l->recompute;
    m.hard_blocks = l->hard_blocks;
    m.bytes = learner_bytes(l);
    m.seconds = predicted_seconds(&trial, p, l);
    m.fits = m.bytes.total <= available && m.bytes.host <= model->host_limit;
    learner_close(l);
    native_pack_free(&native);
    model_close(model);
    return m;
}

/* Nothing is faster than the usual homes without recomputation. */
static bool is_best(const MemoryChoice *m) {
    return m->fits && m->prefetch != PREFETCH_OFF && m->recompute == MEMORY_RECOMPUTE_NONE &&
           m->base != PLACE_HOST && m->optimizer != PLACE_HOST && m->activations != PLACE_HOST;
}

static bool better(const MemoryChoice *a, const MemoryChoice *b) {
    if (a->fits != b->fits) return a->fits;
    return a->fits ? a->seconds < b->seconds : a->bytes.total < b->bytes.total;
}

static void rank(Planning *p) {
    p->next = -1;
    for (int i = 1; i < p->n; i++)
        if (better(&p->tried[i], &p->tried[p->chosen])) p->chosen = i;
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
    MemoryChoice m = {.base = PLACE_AUTO, .prefetch = prefetch_first(c, p)};
    return try_one(c, m, training, p, foreign, INT64_MAX).seconds;
}

Planning planner_try(const Config *c, Training training, const Profile *profile, bool foreign,
                     int64_t available) {
    const MemoryConfig *k = &c->memory;
    PlaceChoice base[MAX_PLACES], optimizer[MAX_PLACES], activations[MAX_PLACES];
    bool many = c->plan.world > 1;
    int n_base =
        places(k->base.home, training != TRAIN_FULL, many ? PLACE_RANKS : PLACE_AUTO, base);
    int n_optimizer = places(k->optimizer.home, true, PLACE_AUTO, optimizer);
    int n_activations = places(k->activations.home, true, PLACE_AUTO, activations);
    size_t most = 2 * (size_t)(n_base * n_optimizer * n_activations);
    Planning p = {.tried = xcalloc(most, sizeof *p.tried)};
    for (int o = 0; o < n_optimizer; o++)
        for (int b = 0; b < n_base; b++)
            for (int a = 0; a < n_activations; a++) {
                if (p.n && is_best(&p.tried[0])) continue;
                MemoryChoice m = {.base = base[b],
                                  .optimizer = optimizer[o],
                                  .activations = activations[a],
                                  .prefetch = prefetch_first(c, profile)};
                p.tried[p.n++] = try_one(c, m, training, profile, foreign, available);
                if (m.prefetch == PREFETCH_OFF || k->prefetch == PREFETCH_ON ||
                    is_best(&p.tried[p.n - 1]))
                    continue;
                m.prefetch = PREFETCH_OFF;
                p.tried[p.n++] = try_one(c, m, training, profile, foreign, available);
            }
    rank(&p);
    p.unlimited_seconds =
        is_best(&p.tried[0]) ? p.tried[0].seconds : unlimited(c, training, profile, foreign);
    return p;
}

void planner_close(Planning *p) {
    free(p->tried);
    *p = (Planning){0};
}

static const char *home_name(PlaceChoice place) {
    static const char *const NAMES[] = {"their usual home", "device", "host", "ranks", "file"};
    return NAMES[place];
}

void planner_apply(Config *c, const Planning *p, int64_t available) {
    const MemoryChoice *m = &p->tried[p->chosen];
    double gib = 1 << 30;
    if (c->memory.budget && !m->fits)
        config_die(c, "memory.budget",
                   "%.3f GiB is too little: the least possible is %.3f GiB, with base weights at "
                   "%s, the optimizer at %s, activations at %s and every block recomputed. Fewer "
                   "frames, a smaller size, batch or rank need less",
                   (double)c->memory.budget / gib,
                   (double)(c->memory.budget - available + m->bytes.total) / gib,
                   home_name(m->base), home_name(m->optimizer), home_name(m->activations));
    c->memory.base.home = m->base;
    c->memory.optimizer.home = m->optimizer;
    c->memory.activations.home = m->activations;
    c->memory.prefetch = m->prefetch;
}

void planner_decide(Config *c, Training training) {
    int64_t available = available_bytes(c->memory.budget, NULL), world = c->plan.world;
    if (!c->memory.budget) return;
    c->plan.world = comm_world_size();
    Planning p = planner_try(c, training, profile_find("cpu"), false, available);
    planner_apply(c, &p, available);
    planner_close(&p);
    c->plan.world = world;
}
