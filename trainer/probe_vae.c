/* Owns the autoencoder's rows of `probe`: pixels to moments, latents to pixels. */
#include "trainer/probe_vae.h"
#include "trainer/device.h"

#include "trainer/call_files.h"
#include "trainer/folder.h"
#include "trainer/tiling.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    VaeHalfName half;
    const char *in, *out;
} ROWS[] = {{VAE_ENCODER, "video", "moments"}, {VAE_DECODER, "z", "frames"}};

/* Rows of other kinds that a file may ask for. */
static const char *const OTHERS[] = {"latents", "noisy", "input_ids"};

static Vae *open_vae(const Config *c) {
    char *folder;
    Error e;
    if (!component_folder(c->model.path, "vae", "config.json", &folder, &e))
        config_die(c, "model.path", "%s", e.text);
    Vae *v = vae_open(folder, device_of_vae(c), &e);
    if (!v) die_error(&e);
    if (c->model.dtype != NUMBERS_AUTO)
        config_die(c, "model.dtype", "the autoencoder is used as stored; leave it out");
    free(folder);
    return v;
}

/* The tensor as f32, with its sizes checked; the caller frees it. */
static float *read_planes(const Safetensors *file, const SafetensorsTensor *t, int64_t channels) {
    if (t->n_dims != 5 || t->shape[1] != channels || !t->bytes)
        die("%s: %s: expected [B,%lld,T,H,W], none of them 0", file->path, t->name,
            (long long)channels);
    return given_floats(file, t);
}

/* Runs one half over every clip of the tensor. */
static SafetensorsItem compute(const Config *c, Vae *v, VaeHalfName half, const char *name,
                               const Safetensors *file, const SafetensorsTensor *t) {
    float *in = read_planes(file, t, half == VAE_ENCODER ? VAE_COLORS : v->model.latent);
    char *what = xprintf("%s: %s", file->path, t->name);
    VaeJob *j = config_vae_job(c, v, half, t->shape[2], t->shape[3], t->shape[4], what);
    int64_t to[4], from = t->shape[1] * t->shape[2] * t->shape[3] * t->shape[4];
    vae_job_out(j, to);
    int64_t n = to[0] * to[1] * to[2] * to[3];
    float *out = xcalloc((size_t)(t->shape[0] * n), sizeof *out);
    for (int64_t b = 0; b < t->shape[0]; b++) vae_run(j, in + b * from, out + b * n);
    vae_job_close(j);
    free(what);
    free(in);
    return (SafetensorsItem){name, DT_F32, 5, {t->shape[0], to[0], to[1], to[2], to[3]}, out};
}

static bool asks(const Safetensors *file) {
    bool asked = false;
    for (size_t i = 0; i < COUNT(ROWS); i++) asked |= safetensors_find(file, ROWS[i].in) != NULL;
    for (size_t i = 0; asked && i < COUNT(OTHERS); i++)
        if (safetensors_find(file, OTHERS[i]))
            die("%s: %s: goes into a file of its own, without video or z", file->path, OTHERS[i]);
    return asked;
}

bool probe_vae(const Config *c) {
    Safetensors file;
    SafetensorsItem items[COUNT(ROWS)];
    SafetensorsMetadata format = {"format", "pt"};
    SafetensorsFile out = {.items = items, .metadata = &format, .n_metadata = 1};
    Error e;
    if (!safetensors_open(&file, c->probe.inputs, &e)) die_error(&e);
    bool asked = asks(&file);
    Vae *v = asked ? open_vae(c) : NULL;
    for (size_t i = 0; asked && i < COUNT(ROWS); i++) {
        const SafetensorsTensor *t = safetensors_find(&file, ROWS[i].in);
        if (t) items[out.n_items++] = compute(c, v, ROWS[i].half, ROWS[i].out, &file, t);
    }
    if (asked) {
        if (!safetensors_write(c->probe.out, &out, &e)) die_error(&e);
        printf("%s\n", c->probe.out);
        vae_close(v);
    }
    for (size_t i = 0; i < out.n_items; i++) free((void *)items[i].data);
    safetensors_close(&file);
    return asked;
}
