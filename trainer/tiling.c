/* Owns the step from the vae.* keys to the autoencoder's own terms. */
#include "trainer/tiling.h"
#include "trainer/device.h"

#include "trainer/profile.h"

VaeTiling config_tiling(const Config *c) {
    static const VaeTileChoice CHOICE[] = {
        [TILING_AUTO] = VAE_TILE_AUTO, [TILING_ON] = VAE_TILE_ON, [TILING_OFF] = VAE_TILE_OFF};
    const VaeConfig *v = &c->vae;
    return (VaeTiling){.choice = CHOICE[v->tiling],
                       .height = v->tile_height,
                       .width = v->tile_width,
                       .overlap_height = v->overlap_height,
                       .overlap_width = v->overlap_width};
}

VaeJob *config_vae_job(const Config *c, Vae *v, VaeHalfName half, int64_t frames, int64_t height,
                       int64_t width, const char *what) {
    return config_vae_job_beside(c, 0, v, half, frames, height, width, what);
}

VaeJob *config_vae_job_beside(const Config *c, int64_t beside, Vae *v, VaeHalfName half,
                              int64_t frames, int64_t height, int64_t width, const char *what) {
    Error e;
    VaeTiling tiling = config_tiling(c);
    int64_t available = device_available(c) - (c->memory.budget ? beside : 0);
    VaeJob *j = vae_job_open(v, half, frames, height, width, &tiling, available, &e);
    if (!j && c->memory.budget && tiling.choice == VAE_TILE_AUTO)
        config_die(c, "memory.budget", "%s: %s", what, e.text);
    if (!j) die("%s: %s", what, e.text);
    double mib = 1 << 20;
    if (c->memory.budget && vae_job_bytes(j) > available)
        config_die(c, "memory.budget",
                   "the autoencoder needs %.0f MiB for %s%s, and %.0f MiB beside it%s",
                   (double)vae_job_bytes(j) / mib, what, vae_job_tiled(j) ? " in tiles" : "",
                   (double)(device_context_bytes(c) + beside) / mib,
                   tiling.choice == VAE_TILE_OFF ? "; leave vae.tiling out" : "");
    return j;
}
