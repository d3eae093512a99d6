/* Owns the text of `cogsmith plan`. */
#include "trainer/plan_report.h"

#include <stdio.h>
#include <stdlib.h>

static const double GIB = 1 << 30, GB = 1e9;

const char *recompute_name(RecomputeChoice choice) {
    return choice == MEMORY_RECOMPUTE_NONE        ? "none"
           : choice == MEMORY_RECOMPUTE_SELECTIVE ? "selective"
                                                  : "block";
}

/* "block in 12 of 42 blocks, selective in the others" */
static char *recompute_text(const PlanReport *r, const MemoryChoice *m) {
    int64_t layers = r->model->dit->config.layers;
    return m->hard_blocks == layers || m->recompute == MEMORY_RECOMPUTE_NONE
               ? xstrdup(recompute_name(m->recompute))
               : xprintf("%s in %lld of %lld blocks, %s in the others",
                         recompute_name(m->recompute), (long long)m->hard_blocks, (long long)layers,
                         recompute_name(m->recompute - 1));
}

static const char *moves_text(const MemoryChoice *m) {
    return m->ahead ? "set out a block ahead" : "between the steps";
}

/* The rows that do not round to zero. */
static void print_table(const PlanTable *t, const char *unit, double scale, int decimals) {
    printf("%s\n", t->title);
    for (int i = 0; i < t->n; i++) {
        const PlanRow *row = &t->rows[i];
        if (row->value / scale < (decimals == 3 ? 0.0005 : 0.00005)) continue;
        printf("  %-24s %10.*f %s%s%s\n", row->label, decimals, row->value / scale, unit,
               *row->note ? "  " : "", row->note);
    }
}

static void print_sum(const char *label, double value, const char *unit, int decimals,
                      const char *note) {
    printf("  %-24s %10.*f %s%s%s\n", label, decimals, value, unit, *note ? "  " : "", note);
}

static void print_run(const PlanReport *r) {
    const DitConfig *c = &r->model->dit->config;
    const PackTables *t = &r->learner->shaped[0].io.tables;
    int64_t trained = params_total(r->model->params, true);
    bool lora = r->model->training == TRAIN_LORA;
    int n = r->native.pack.samples;
    printf("model     %s, %lld parameters, %s\n", dit_variant(c),
           (long long)(params_total(r->model->params, false) - (lora ? trained : 0)),
           dtype_name(r->model->stored));
    printf("trains    %lld parameters (%s)\n", (long long)trained, lora ? "lora" : "full");
    printf("pack      %d x %lld frames of %lld x %lld pixels: %lld rows (%lld text, %lld video)\n",
           n, (long long)r->native.frames, (long long)r->native.height, (long long)r->native.width,
           (long long)t->whole.cu[n], (long long)(t->whole.cu[n] - t->video_runs.cu[n]),
           (long long)t->video_runs.cu[n]);
    printf("device    %s: %.3g TFLOP/s products, %.3g attention, %.4g GB/s\n", r->profile.name,
           r->profile.matmul_flops / 1e12, r->profile.attention_forward_flops / 1e12,
           r->profile.memory_rate / GB);
    if (r->model->comm->size > 1)
        printf("ranks     %d, of which %d share a host; ZeRO %d; %d to a sample\n",
               r->model->comm->size, r->planning.host_ranks, r->model->params->zero,
               r->model->sequence->size);
    printf("step      %.4g TFLOP on each rank, %d steps in the plan, %d micro-step%s\n",
           r->step.flops / 1e12, r->learner->shaped[0].plan->n_steps,
           (int)r->config->train.accumulate, r->config->train.accumulate > 1 ? "s" : "");
}

static void print_chosen(const PlanReport *r) {
    const MemoryChoice *m = r->chosen;
    char *recompute = recompute_text(r, m);
    printf("chosen    recompute      %s\n", recompute);
    printf("          base weights   %s\n", m->base_home);
    printf("          optimizer      %s\n", m->optimizer_home);
    printf("          activations    %s\n", m->activations_home);
    printf("          moves          %s\n", moves_text(m));
    printf("          computes in    %s\n", dtype_name(r->model->compute));
    free(recompute);
}

static void print_memory(const PlanReport *r) {
    char *of = xprintf("of %.3f GiB", (double)r->device_limit / GIB);
    print_table(&r->device, "GiB", GIB, 3);
    print_sum("peak", (double)r->device_peak / GIB, "GiB", 3, of);
    free(of);
    print_table(&r->host, "GiB", GIB, 3);
    print_sum("peak", (double)r->host_peak / GIB, "GiB", 3, "");
    of = xprintf("of %.3f GiB: %d rank%s%s", (double)r->planning.host_limit / GIB,
                 r->planning.host_ranks, r->planning.host_ranks > 1 ? "s" : "",
                 r->profile.cuda ? "" : ", with the device's, which is the same memory");
    print_sum("on the whole host", (double)r->chosen->host_together / GIB, "GiB", 3, of);
    free(of);
}

static void print_time(const PlanReport *r) {
    double free_ = r->planning.unlimited_seconds;
    char *cost = r->seconds > 1.001 * free_ ? xprintf("%.4g s without a limit of memory", free_)
                                            : xstrdup("");
    print_table(&r->time, "s", 1, 4);
    print_sum("an optimizer step", r->seconds, "s", 4, cost);
    free(cost);
}

static void print_fits(const PlanReport *r) {
    bool device = r->device_peak <= r->device_limit;
    bool host = r->chosen->host_together <= r->planning.host_limit;
    printf("fits      %s\n", r->chosen->fits ? "yes"
                             : device        ? "no: the host has too little memory"
                             : host          ? "no: the device has too little memory"
                                             : "no: device and host have too little memory");
}

/* What the planner would have taken next; faster by a hair only where it takes more of the host. */
static void print_next(const PlanReport *r) {
    const MemoryChoice *m = r->next;
    if (!m) return;
    char *recompute = recompute_text(r, m);
    printf("next best %.4g s, %.3f GiB on the device, %.3f GiB on the host: recompute %s\n",
           m->seconds, (double)(m->bytes.total + r->profile.context_bytes) / GIB,
           (double)m->host_bytes / GIB, recompute);
    printf("          base weights %s, optimizer %s, activations %s, moves %s%s\n", m->base_home,
           m->optimizer_home, m->activations_home, moves_text(m),
           m->seconds <= r->chosen->seconds ? " (as fast, and takes more of the host)" : "");
    free(recompute);
}

void plan_text(const PlanReport *r) {
    print_run(r);
    print_chosen(r);
    print_memory(r);
    print_table(&r->traffic, "GB", GB, 3);
    print_time(r);
    print_fits(r);
    print_next(r);
}
