/* Owns the JSON of `cogsmith plan`. */
#include "trainer/plan_report.h"

#include <jansson.h>
#include <stdio.h>

static json_t *made(json_t *j) {
    CHECK(j, "plan: JSON");
    return j;
}

static json_int_t whole(double value) { return (json_int_t)value; }

/* bytes: whole numbers. */
static json_t *table(const PlanTable *t, bool bytes) {
    json_t *j = made(json_object());
    for (int i = 0; i < t->n; i++) {
        double value = t->rows[i].value;
        json_object_set_new(j, t->rows[i].key,
                            bytes ? json_integer(whole(value)) : json_real(value));
    }
    return j;
}

/* One way to hold it, and what that takes. */
static json_t *choice(const PlanReport *r, const MemoryChoice *m) {
    return made(json_pack("{s:s, s:I, s:s, s:s, s:s, s:b, s:b, s:I, s:I, s:I, s:f}", "recompute",
                          recompute_name(m->recompute), "recomputed_blocks",
                          (json_int_t)m->hard_blocks, "base_home", m->base_home, "optimizer_home",
                          m->optimizer_home, "activations_home", m->activations_home, "prefetch",
                          m->ahead, "fits", m->fits, "peak_device_bytes",
                          (json_int_t)(m->bytes.total + r->profile.context_bytes),
                          "peak_host_bytes", (json_int_t)m->host_bytes, "host_together_bytes",
                          (json_int_t)m->host_together, "step_seconds", m->seconds));
}

static json_t *model(const PlanReport *r) {
    int64_t trained = params_total(r->model->params, true);
    bool lora = r->model->training == TRAIN_LORA;
    return made(json_pack(
        "{s:s, s:s, s:s, s:I, s:I, s:I, s:s}", "variant", dit_variant(&r->model->dit->config),
        "stored", dtype_name(r->model->stored), "compute", dtype_name(r->model->compute),
        "parameters", (json_int_t)(params_total(r->model->params, false) - (lora ? trained : 0)),
        "trained", (json_int_t)trained, "blocks", (json_int_t)r->model->dit->config.layers,
        "method", lora ? "lora" : "full"));
}

static json_t *pack(const PlanReport *r) {
    const PackTables *t = &r->learner->shaped[0].io.tables;
    int n = r->native.pack.samples;
    json_int_t video = t->video_runs.cu[n], rows = t->whole.cu[n];
    return made(json_pack("{s:i, s:I, s:I, s:I, s:I, s:I}", "samples", n, "frames",
                          (json_int_t)r->native.frames, "height", (json_int_t)r->native.height,
                          "width", (json_int_t)r->native.width, "text_rows", rows - video,
                          "video_rows", video));
}

static json_t *device(const PlanReport *r) {
    const Profile *p = &r->profile;
    return made(json_pack("{s:s, s:b, s:f, s:f, s:f}", "name", p->name, "cuda", p->cuda,
                          "product_flops", p->matmul_flops, "attention_flops",
                          p->attention_forward_flops, "memory_bytes_per_second", p->memory_rate));
}

static json_t *ranks(const PlanReport *r) {
    return made(json_pack("{s:i, s:i, s:i, s:i}", "world", r->model->comm->size, "on_a_host",
                          r->planning.host_ranks, "zero", r->model->params->zero, "sequence",
                          r->model->sequence->size));
}

void plan_json(const PlanReport *r) {
    json_t *j = made(json_pack(
        "{s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:I, s:i, s:i, s:i}",
        "model", model(r), "pack", pack(r), "device", device(r), "ranks", ranks(r),
        "peak_device_bytes", (json_int_t)r->device_peak, "device_limit_bytes",
        (json_int_t)r->device_limit, "peak_host_bytes", (json_int_t)r->host_peak,
        "host_together_bytes", (json_int_t)r->chosen->host_together, "host_limit_bytes",
        (json_int_t)r->planning.host_limit, "step_seconds", r->seconds, "unlimited_seconds",
        r->planning.unlimited_seconds, "flops", r->step.flops, "micro_sent_bytes", r->micro_sent,
        "rows", (json_int_t)r->learner->shaped[0].io.tables.whole.cu[r->native.pack.samples],
        "steps", r->learner->shaped[0].plan->n_steps, "micro_steps",
        (int)r->config->train.accumulate, "world", r->model->comm->size));
    json_object_set_new(j, "choices", choice(r, r->chosen));
    json_object_set_new(j, "next", r->next ? choice(r, r->next) : json_null());
    json_object_set_new(j, r->device.key, table(&r->device, true));
    json_object_set_new(j, r->host.key, table(&r->host, true));
    json_object_set_new(j, r->traffic.key, table(&r->traffic, true));
    json_object_set_new(j, r->time.key, table(&r->time, false));
    json_dumpf(j, stdout, JSON_INDENT(2));
    printf("\n");
    json_decref(j);
}
