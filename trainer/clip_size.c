/* Owns the sizes that follow from what is asked for and a model. */
#include "trainer/clip_size.h"

#include "data/vae_graph.h"
#include "trainer/dit.h"

static bool check_multiples(const ClipSize *s, const DitConfig *m, const char **key, Error *e) {
    int64_t pixels = VAE_SPACE * m->patch;
    *key = "frames";
    if (s->frames < 1 || (s->frames - 1) % m->temporal_ratio)
        return error_set(e, EXIT_USER, "expected %lld n + 1 frames, found %lld",
                         (long long)m->temporal_ratio, (long long)s->frames);
    *key = s->height % pixels ? "height" : "width";
    if (s->height % pixels || s->width % pixels)
        return error_set(e, EXIT_USER, "expected a multiple of %lld pixels, found %lld",
                         (long long)pixels, (long long)(s->height % pixels ? s->height : s->width));
    return true;
}

bool clip_size(ClipSize *s, const DitConfig *m, int64_t frames, int64_t height, int64_t width,
               const char **key, Error *e) {
    *s = (ClipSize){.frames = frames ? frames : m->sample_frames,
                    .height = height ? height : m->sample_height * VAE_SPACE,
                    .width = width ? width : m->sample_width * VAE_SPACE,
                    .fps = m->temporal_patch ? 16 : 8};
    if (!check_multiples(s, m, key, e)) return false;
    int64_t own = (s->frames - 1) / m->temporal_ratio + 1;
    s->f = align_up(own, m->patch_t);
    s->padding = s->f - own;
    s->frames_out = vae_frames_out(VAE_DECODER, own);
    s->h = s->height / VAE_SPACE;
    s->w = s->width / VAE_SPACE;
    *key = frames && !height && !width ? "frames" : "height";
    return dit_check_sample(m, s->f, s->h, s->w, m->text_length, e);
}

int64_t clip_frame_elements(const ClipSize *s, const DitConfig *m) {
    return m->out_channels * s->h * s->w;
}

int64_t clip_elements(const ClipSize *s, const DitConfig *m) {
    return s->f * clip_frame_elements(s, m);
}
