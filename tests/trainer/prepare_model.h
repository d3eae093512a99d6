/* A model folder for tests of `prepare`, made here: the golden tokenizer and text encoder, an
 * autoencoder with random weights, and a transformer's config.json. And clips to go with it. */
#pragma once

#include "data/vae_graph.h"
#include "data/weights.h"
#include "kernels/random.h"
#include "tests/data/clips.h"
#include "tests/data/golden.h"
#include "tests/trainer/program.h"

/* Clips of 5 frames of 32 x 48 become latents [2,16,4,6]. */
enum { MODEL_F = 2, MODEL_H = 4, MODEL_W = 6, MODEL_LATENTS = MODEL_F * 16 * MODEL_H * MODEL_W };

static inline void model_vae(const char *folder) {
    VaeModel m = VAE_PUBLISHED;
    static const int64_t CHANNELS[VAE_LEVELS] = {4, 4, 8, 8};
    memcpy(m.channels, CHANNELS, sizeof CHANNELS);
    m.layers = 1, m.groups = 2;
    VaeNet *net = vae_net_open(&m);
    size_t n = (size_t)net->params->n_params;
    SafetensorsItem *items = xcalloc(n, sizeof *items);
    for (size_t i = 0; i < n; i++) {
        const Param *p = &net->params->param[i];
        float *values = xcalloc((size_t)param_count(p), sizeof *values);
        random_normal((Draw){.ordinal = (uint32_t)i, .purpose = PURPOSE_INIT}, 0, param_count(p),
                      values);
        for (int64_t k = 0; k < param_count(p); k++) values[k] *= 0.2f;
        items[i] = (SafetensorsItem){
            .name = p->name, .dtype = DT_F32, .n_dims = p->shape.rank, .data = values};
        memcpy(items[i].shape, p->shape.dim, (size_t)p->shape.rank * sizeof *p->shape.dim);
    }
    SafetensorsFile file = {.items = items, .n_items = n};
    WeightsText config = {"config.json",
                          "{\"block_out_channels\": [4, 4, 8, 8], \"layers_per_block\": 1, "
                          "\"norm_num_groups\": 2, \"latent_channels\": 16, "
                          "\"sample_height\": 32, \"sample_width\": 48}"};
    Error e;
    if (!weights_save(folder, "diffusion_pytorch_model", (size_t)1 << 40, &file, &config, 1, &e))
        fail_msg("%s", e.text);
    for (size_t i = 0; i < n; i++) free((void *)items[i].data);
    free(items);
}

/* images: conditioned on images, with two frames to a token. */
static inline void model_transformer(const char *model, bool images) {
    char *folder = xprintf("%s/transformer", model), *path = xprintf("%s/config.json", folder);
    char *text =
        xprintf("{\"num_attention_heads\": 1, \"num_layers\": 1, \"text_embed_dim\": 48, "
                "\"sample_frames\": 5, \"sample_height\": 4, \"sample_width\": 6, "
                "\"use_rotary_positional_embeddings\": true, \"in_channels\": %d%s}",
                images ? 32 : 16, images ? ", \"patch_size_t\": 2, \"patch_bias\": false" : "");
    mkdir(folder, 0700);
    write_text(path, text);
    free(folder);
    free(path);
    free(text);
}

static inline void model_make(const char *model) {
    char *t5 = golden_find("t5");
    clips_run("/", "mkdir '%s'", model);
    for (int i = 0; i < 2; i++) {
        const char *part = i ? "tokenizer" : "text_encoder";
        char *from = xprintf("%s/%s", t5, part), *to = xprintf("%s/%s", model, part);
        copy_files(from, to);
        free(from);
        free(to);
    }
    char *vae = xprintf("%s/vae", model);
    model_vae(vae);
    model_transformer(model, false);
    free(vae);
    free(t5);
}

/* One clip with its caption. */
static inline void clip_make(const char *folder, const char *stem, const char *source,
                             double seconds) {
    clips_run(folder,
              FFMPEG "-f lavfi -i '%s=s=96x64:r=8' -t %g -c:v libx264 -pix_fmt yuv420p '%s.mp4'",
              source, seconds, stem);
    char *path = xprintf("%s/%s.txt", folder, stem), *text = xprintf("a clip named %s", stem);
    write_text(path, text);
    free(path);
    free(text);
}

/* The number of that name among a run's counts. */
static inline int64_t count_of(const Run *r, const char *name) {
    if (r->code) fail_msg("exit code %d: %s", r->code, r->err);
    char *line = xprintf("\n%s ", name), *text = xprintf("\n%s", r->out);
    const char *at = strstr(text, line);
    if (!at) fail_msg("no %s in: %s", name, r->out);
    int64_t value = strtoll(at + strlen(line), NULL, 10);
    free(line);
    free(text);
    return value;
}
