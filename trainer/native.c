/* Owns the sizes that follow from a config and a model. */
#include "trainer/native.h"

#include "trainer/dit.h"

#include <stdlib.h>

/* Of a pack: many times what any device holds. */
enum { MAX_ROWS = 1 << 20 };

static int64_t or_else(int64_t given, int64_t own) { return given ? given : own; }

NativePack native_pack(const Config *c, const DitConfig *model) {
    NativePack n = {.frames = or_else(c->data.frames, model->sample_frames),
                    .height = or_else(c->data.height, model->sample_height * VAE_SCALE),
                    .width = or_else(c->data.width, model->sample_width * VAE_SCALE)};
    int64_t ratio = model->temporal_ratio, pixels = VAE_SCALE * model->patch;
    if ((n.frames - 1) % ratio)
        config_die(c, "data.frames", "expected %lld n + 1 frames, found %lld", (long long)ratio,
                   (long long)n.frames);
    if (n.height % pixels || n.width % pixels)
        config_die(c, n.height % pixels ? "data.height" : "data.width",
                   "expected a multiple of %lld pixels", (long long)pixels);
    int64_t f = align_up((n.frames - 1) / ratio + 1, model->patch_t);
    int64_t h = n.height / VAE_SCALE, w = n.width / VAE_SCALE;
    Error e;
    if (!dit_check_sample(model, f, h, w, model->text_length, &e))
        config_die(c, "data.frames", "%s", e.text);
    int64_t rows = dit_video_rows(model, f, h, w) + model->text_length;
    if (rows > MAX_ROWS / c->train.batch)
        config_die(
            c, rows > MAX_ROWS ? "data.frames" : "train.batch",
            "%lld frames of %lld x %lld pixels are %lld rows, and %lld such samples in a "
            "pack are more than %d; expected fewer or smaller ones (train.accumulate adds up "
            "gradients of several packs)",
            (long long)n.frames, (long long)n.height, (long long)n.width, (long long)rows,
            (long long)c->train.batch, MAX_ROWS);
    int64_t(*fhw)[3] = xcalloc((size_t)c->train.batch, sizeof *fhw);
    int64_t *text = xcalloc((size_t)c->train.batch, sizeof *text);
    for (int64_t b = 0; b < c->train.batch; b++) {
        fhw[b][0] = f, fhw[b][1] = h, fhw[b][2] = w;
        text[b] = model->text_length;
    }
    n.pack = (Pack){(int)c->train.batch, (const int64_t(*)[3])fhw, text};
    return n;
}

void native_pack_free(NativePack *n) {
    free((void *)n->pack.fhw);
    free((void *)n->pack.text_rows);
}
