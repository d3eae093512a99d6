/* Owns the opening of an autoencoder: its config, its tensors, where they lie. */
#include "data/nearest.h"
#include "data/vae.h"

#include "kernels/random.h"

#include <stdlib.h>
#include <string.h>

static const SafetensorsTensor *tensor_of(const Vae *v, const Param *p, Error *e) {
    const SafetensorsTensor *t =
        weights_expect(&v->weights, p->name, p->shape.rank, p->shape.dim, e);
    if (!t || t->dtype == DT_F32 || t->dtype == DT_BF16 || t->dtype == DT_F16) return t;
    error_set(e, EXIT_USER, "%.300s: tensor %s: expected F32, BF16 or F16, found %s",
              v->weights.path, p->name, t->dtype_name);
    return NULL;
}

static bool no_surplus(const Vae *v, Error *e) {
    const ParamSet *p = v->net->params;
    for (size_t i = 0; i < v->weights.n_tensors; i++) {
        const char *name = v->weights.tensors[i].name;
        if (params_find(p, name) >= 0) continue;
        Nearest near = nearest_to(name);
        for (int j = 0; j < p->n_params; j++) nearest_offer(&near, p->param[j].name);
        return error_set(e, EXIT_USER,
                         "%.300s: tensor %.120s is not of an autoencoder as config.json describes "
                         "it%s%.120s",
                         v->weights.path, name, near.best ? "; the nearest name is " : "",
                         near.best ? near.best : "");
    }
    return true;
}

/* The pages of mapped numbers that have been read need not stay resident. */
static void release_pages(void *context, const void *data, size_t bytes) {
    const Vae *v = context;
    weights_release(&v->weights, data, bytes);
}

/* NaN and infinity have the greatest exponent. */
static bool finite(const Vae *v, const SafetensorsTensor *t, int64_t n, Error *e) {
    static const uint32_t EXPONENT[] = {
        [DT_F32] = 0x7f800000u, [DT_BF16] = 0x7f80u, [DT_F16] = 0x7c00u};
    uint32_t mask = EXPONENT[t->dtype];
    size_t size = dtype_size(t->dtype);
    bool bad = false;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = 0; /* files are little-endian, and so are the machines */
        memcpy(&bits, (const char *)t->data + (size_t)i * size, size);
        bad |= (bits & mask) == mask;
    }
    weights_release(&v->weights, t->data, t->bytes);
    return !bad || error_set(e, EXIT_USER,
                             "%.300s: tensor %s: expected finite numbers: the file is damaged. "
                             "Download it again",
                             v->weights.path, t->name);
}

static bool find_weights(Vae *v, Error *e) {
    ParamSet *p = v->net->params;
    params_rest(p, HOME_FILE, DT_F32);
    for (int i = 0; i < p->n_params; i++) {
        const SafetensorsTensor *t = tensor_of(v, &p->param[i], e);
        if (!t || !finite(v, t, param_count(&p->param[i]), e)) return false;
        param_source(p, i, t->data, t->dtype);
    }
    p->release = release_pages;
    p->release_context = v;
    return no_surplus(v, e);
}

static Vae *vae_new(Device device) {
    Vae *v = xcalloc(1, sizeof *v);
    v->compute = device.compute;
    v->memory.k = device.k;
    v->stream = v->memory.k->stream_open();
    return v;
}

Vae *vae_open(const char *folder, Device device, Error *e) {
    Vae *v = vae_new(device);
    char *config = xprintf("%s/config.json", folder);
    bool ok = vae_model_read(&v->model, config, e) && weights_open(&v->weights, folder, e);
    free(config);
    if (ok) {
        v->net = vae_net_open(&v->model);
        ok = find_weights(v, e);
    }
    if (ok) return v;
    vae_close(v);
    return NULL;
}

/* All parameters read the same numbers: norms keep what comes of them in bounds. */
Vae *vae_open_random(const VaeModel *model, Device device) {
    const float deviation = 0.02f;
    Vae *v = vae_new(device);
    v->model = *model;
    v->net = vae_net_open(model);
    ParamSet *p = v->net->params;
    int64_t most = 0;
    for (int i = 0; i < p->n_params; i++) most = MAX(most, param_count(&p->param[i]));
    v->drawn = xcalloc((size_t)most, sizeof *v->drawn);
    random_normal((Draw){.purpose = PURPOSE_INIT}, 0, most, v->drawn);
    for (int64_t i = 0; i < most; i++) v->drawn[i] *= deviation;
    params_rest(p, HOME_FILE, DT_F32);
    for (int i = 0; i < p->n_params; i++) param_source(p, i, v->drawn, DT_F32);
    return v;
}

void vae_close(Vae *v) {
    if (!v) return;
    memory_release(&v->memory, v->arena, v->arena_bytes);
    if (v->net) {
        params_close(v->net->params, &v->memory);
        vae_net_close(v->net);
    }
    v->memory.k->stream_close(v->stream);
    weights_close(&v->weights);
    free(v->drawn);
    free(v);
}
