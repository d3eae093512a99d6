/* `cogsmith sample`: videos from text, from an image or from a video.
 *
 * One part of the model is in memory at a time: the autoencoder's encoder, the text encoder, the
 * transformer, the decoder. With several prompts the transformer stays open, and its memory for
 * activations is free while the decoder works. */
#define _XOPEN_SOURCE 700
#include "data/video_write.h"
#include "trainer/cli.h"
#include "trainer/latents.h"
#include "trainer/lora.h"
#include "trainer/progress.h"
#include "trainer/prompts.h"
#include "trainer/sample_input.h"
#include "trainer/sample_paths.h"
#include "trainer/sample_schedule.h"
#include "trainer/sampler.h"
#include "trainer/stop.h"
#include "trainer/tiling.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    const Config *config;
    DitConfig dit;
    ClipSize size;
    Schedule schedule;
    Scheduler scheduler;
    bool guided, takes_image;
    StringList prompts;
    SamplePaths paths;
    SampleNoise noise;
    float *image, *video;         /* latents [F,C,H,W]; NULL: none */
    float *embeddings, *negative; /* [n,L,E], [L,E]; one allocation */
    Model *model;                 /* open while prompts are left */
    Progress *progress;
} Sampling;

/* ---- what is asked for ------------------------------------------------------------------------
 */

static void read_model(Sampling *s) {
    const Config *c = s->config;
    char *folder, *file;
    Error e;
    if (!transformer_folder(c->model.path, &folder, &e)) config_die(c, "model.path", "%s", e.text);
    file = xprintf("%s/config.json", folder);
    if (!dit_config_read(&s->dit, file, &e)) die_error(&e);
    s->takes_image = s->dit.in_channels != s->dit.out_channels;
    free(file);
    free(folder);
}

static void check_start(const Sampling *s) {
    const Config *c = s->config;
    if (c->sample.image && !s->takes_image)
        config_die(c, "sample.image",
                   "%s makes videos from text; leave the image out, or use an image-to-video model",
                   dit_variant(&s->dit));
    if (c->sample.video && s->takes_image)
        config_die(c, "sample.video",
                   "%s makes videos from an image; video to video works with text-to-video models",
                   dit_variant(&s->dit));
    if (!c->sample.image && s->takes_image)
        config_die(c, "sample.image", "missing: %s makes videos from an image",
                   dit_variant(&s->dit));
}

static void fix_size(Sampling *s) {
    const Config *c = s->config;
    const char *key;
    Error e;
    if (!clip_size(&s->size, &s->dit, c->sample.frames, c->sample.height, c->sample.width, &key,
                   &e)) {
        char *path = xprintf("sample.%s", key);
        config_die(c, path, "%s", e.text);
    }
    if (c->sample.video && s->size.padding)
        config_die(
            c, "sample.frames",
            "%lld frames are an odd number of latent frames, which cannot start from a video "
            "with this model; %lld are an even one",
            (long long)s->size.frames, (long long)(s->size.frames + s->dit.temporal_ratio));
    if (s->size.frames_out != s->size.frames)
        fprintf(stderr,
                "cogsmith: %lld frames are an even number of latent frames, from which the decoder "
                "makes %lld; 8 n + 1 frames come out as asked for\n",
                (long long)s->size.frames, (long long)s->size.frames_out);
}

static void fix_steps(Sampling *s) {
    const Config *c = s->config;
    SchedulerConfig config = sample_schedule(c, s->dit.rotary, &s->schedule);
    Scheduler *plan = &s->scheduler;
    Error e;
    if (!scheduler_open(plan, &config, &s->schedule, c->sample.steps, &e))
        config_die(c, "sample.steps", "%s", e.text);
    if (c->sample.video && !scheduler_cut(plan, c->sample.strength))
        config_die(c, "sample.strength", "%g of %lld steps leaves none", c->sample.strength,
                   (long long)c->sample.steps);
    if (scheduler_end(plan, plan->count - 1) >= 0)
        fprintf(stderr,
                "cogsmith: with %lld steps the published scheduler ends at timestep %lld and not "
                "at the clean video: some noise stays\n",
                (long long)c->sample.steps, (long long)scheduler_end(plan, plan->count - 1));
    s->guided = c->sample.guidance > 1;
}

/* An adapter of another model is known by its names and sizes alone. */
static void check_adapter(const Sampling *s) {
    const char *path = s->config->sample.adapter;
    Error e;
    if (!path) return;
    Adapter *a = adapter_open(path, &e);
    Dit *d = dit_open(&s->dit);
    if (!a || !adapter_attach(a, d, 0, &e)) config_die(s->config, "sample.adapter", "%s", e.text);
    dit_close(d);
    adapter_close(a);
}

/* The decoder comes last, and must not fail then. */
static void check_decoder(const Sampling *s) {
    const ClipSize *z = &s->size;
    Vae *v = latents_vae(s->config, &s->dit);
    vae_job_close(
        config_vae_job(s->config, v, VAE_DECODER, z->f - z->padding, z->h, z->w, "decoding"));
    vae_close(v);
}

static void read_noise(Sampling *s) {
    const Config *c = s->config;
    int64_t posterior = c->sample.image   ? 1
                        : c->sample.video ? vae_frames_out(VAE_ENCODER, s->size.frames)
                                          : 0;
    s->noise.seed = (uint64_t)c->sample.seed;
    if (c->sample.noise)
        sample_noise_read(&s->noise, c->sample.noise, &s->size, &s->dit,
                          scheduler_all_draws(&s->scheduler), posterior);
}

/* Everything that can be a mistake before anything takes long. */
static void prepare(Sampling *s) {
    const Config *c = s->config;
    Error e;
    read_model(s);
    check_start(s);
    s->prompts = prompts_read(c);
    fix_size(s);
    fix_steps(s);
    read_noise(s);
    check_adapter(s);
    check_decoder(s);
    s->paths = sample_paths(c, &s->prompts);
    if (!s->paths.sheet && !video_write_ready(&e)) die_error(&e);
}

static void encode_inputs(Sampling *s) {
    const Config *c = s->config;
    int n = s->prompts.count;
    char **texts = xcalloc((size_t)n + 1, sizeof *texts);
    if (c->sample.image) s->image = sample_image(c, &s->dit, &s->size, &s->noise);
    if (c->sample.video) s->video = sample_video(c, &s->dit, &s->size, &s->noise);
    memcpy(texts, s->prompts.items, (size_t)n * sizeof *texts);
    texts[n] = c->sample.negative_prompt;
    s->embeddings = prompts_encode(c, &s->dit, texts, n + s->guided);
    if (s->guided) s->negative = s->embeddings + n * s->dit.text_length * s->dit.text_dim;
    free(texts);
}

/* Where nothing is half done. */
static void stop_if_asked(const char *before) {
    Error e;
    if (!stop_asked()) return;
    error_set(&e, EXIT_STOPPED, "stopped before %s", before);
    die_error(&e);
}

/* ---- one video --------------------------------------------------------------------------------
 */

static bool after_step(void *context, const SampleStep *step) {
    Sampling *s = context;
    if (s->progress) progress_set(s->progress, (double)step->step + 1, NULL);
    return !stop_asked();
}

/* Noise, or the video under the noise of the first timestep. */
static void start_latents(const Sampling *s, float *latents) {
    int64_t n = clip_elements(&s->size, &s->dit);
    sample_noise_start(&s->noise, n, latents);
    if (s->video)
        diffuse(&s->schedule, s->scheduler.timesteps[0], n, s->video, latents, latents, NULL);
}

static void denoise(Sampling *s, int prompt, float *latents) {
    const SampleConfig *c = &s->config->sample;
    const char *what = s->prompts.count > 1 ? s->paths.items[prompt] : "sampling";
    Error e;
    Sampler *sampler = sampler_open(s->model, s->config, &s->size, s->guided);
    SampleJob job = {.scheduler = &s->scheduler,
                     .guidance = c->guidance,
                     .dynamic = c->dynamic_guidance,
                     .text = s->embeddings + prompt * s->dit.text_length * s->dit.text_dim,
                     .negative = s->negative,
                     .image = s->image,
                     .noise = &s->noise,
                     .each = after_step,
                     .context = s};
    s->noise.ordinal = (uint32_t)prompt;
    start_latents(s, latents);
    if (s->model->comm->rank == 0)
        s->progress = progress_open(what, "steps", 0, (double)s->scheduler.count);
    bool ok = sampler_run(sampler, &job, latents, &e);
    progress_close(s->progress);
    s->progress = NULL;
    if (!ok) die_error(&e);
    sampler_close(sampler);
}

static void write_latents(const Sampling *s, const float *latents, const float *frames) {
    const ClipSize *z = &s->size;
    SafetensorsItem items[] = {
        {"latents", DT_F32, 5, {1, z->f, s->dit.out_channels, z->h, z->w}, latents},
        {"frames", DT_F32, 5, {1, z->frames_out, VAE_COLORS, z->height, z->width}, frames}};
    SafetensorsMetadata format = {"format", "pt"};
    SafetensorsFile file = {.items = items, .n_items = 2, .metadata = &format, .n_metadata = 1};
    Error e;
    if (!safetensors_write(s->config->sample.latents_out, &file, &e)) die_error(&e);
}

static void write_video(const Sampling *s, int prompt, const float *frames) {
    const ClipSize *z = &s->size;
    const char *path = s->paths.items[prompt];
    uint8_t *rgb = xcalloc((size_t)(z->frames_out * z->height * z->width), VAE_COLORS);
    Clip8 clip = {rgb, z->frames_out, z->height, z->width};
    Error e;
    frames_to_bytes(z, frames, rgb);
    if (!(s->paths.sheet ? sheet_write(path, &clip, &e) : video_write(path, &clip, z->fps, &e)))
        die_error(&e);
    printf("%s\n", path);
    fflush(stdout); /* the next one may take an hour */
    free(rgb);
}

static void decode(Sampling *s, int prompt, const float *latents) {
    const ClipSize *z = &s->size;
    float *frames =
        xcalloc((size_t)(z->frames_out * VAE_COLORS * z->height * z->width), sizeof *frames);
    Vae *v = latents_vae(s->config, &s->dit);
    Progress *p = progress_open("decoding", "frames", 0, (double)z->frames_out);
    latents_decode(s->config, v, z, latents, frames);
    progress_set(p, (double)z->frames_out, NULL);
    progress_close(p);
    vae_close(v);
    stop_if_asked("the video was written");
    if (s->config->sample.latents_out) write_latents(s, latents, frames);
    write_video(s, prompt, frames);
    free(frames);
}

static void make_videos(Sampling *s) {
    float *latents = xcalloc((size_t)clip_elements(&s->size, &s->dit), sizeof *latents);
    stop_if_asked("sampling");
    s->model = model_open_sampling(s->config);
    bool writes = s->model->comm->rank == 0;
    for (int i = 0; i < s->prompts.count; i++) {
        denoise(s, i, latents);
        if (i == s->prompts.count - 1) model_close(s->model);
        if (writes) decode(s, i, latents);
    }
    free(latents);
}

int verb_sample(const Call *call) {
    const Config *c = call->config;
    Sampling s = {.config = c};
    config_require(c, "model.path", "sample");
    stop_catch();
    prepare(&s);
    encode_inputs(&s);
    make_videos(&s);
    sample_paths_free(&s.paths);
    sample_noise_free(&s.noise);
    scheduler_close(&s.scheduler);
    prompts_free(&s.prompts);
    free(s.embeddings);
    free(s.image);
    free(s.video);
    return 0;
}
