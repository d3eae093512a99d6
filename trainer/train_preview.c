/* Owns previews: videos sampled with the weights as they are in the middle of a run. */
#define _XOPEN_SOURCE 700
#include "data/video_write.h"
#include "data/whole.h"
#include "trainer/folder.h"
#include "trainer/latents.h"
#include "trainer/prompts.h"
#include "trainer/sample_input.h"
#include "trainer/sample_schedule.h"
#include "trainer/sampler.h"
#include "trainer/train.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { OWN_PROMPTS = 2 }; /* captions that are taken where the config has no prompt */

struct Previews {
    ClipSize size;
    Schedule schedule;
    Scheduler scheduler;
    StringList prompts;
    float *text;  /* [n+1,L,E]: prompts, then the negative one */
    int *samples; /* [n] whose captions the prompts are; NULL: the config's own prompts */
    float *image; /* [F,C,H,W], with `samples` one for each prompt; NULL: a text-to-video model */
};

/* sample.prompt or sample.prompts; else captions of held-out clips, or of the first ones. */
static void choose_prompts(Previews *p, const Config *c, const Samples *s) {
    StringList *list = &p->prompts;
    if (c->sample.prompt || c->sample.prompts) {
        *list = prompts_read(c);
        return;
    }
    const int *from = s->n_holdout ? s->holdout : s->train;
    list->items = xcalloc(OWN_PROMPTS, sizeof *list->items);
    p->samples = xcalloc(OWN_PROMPTS, sizeof *p->samples);
    for (int i = 0; i < (s->n_holdout ? s->n_holdout : s->n_train); i++) {
        const WantedSample *sample = &s->wanted->samples[from[i]];
        const char *caption = s->wanted->dataset.items[sample->item].caption;
        bool known = false;
        for (int k = 0; k < list->count; k++) known = known || !strcmp(list->items[k], caption);
        if (known || list->count == OWN_PROMPTS) continue;
        p->samples[list->count] = from[i];
        list->items[list->count++] = xstrdup(caption);
    }
}

/* frames and so on: what a config leaves unsaid. false: *key and *e say what is wrong. */
static bool size_of(const SampleConfig *k, const DitConfig *model, int64_t frames, int64_t height,
                    int64_t width, ClipSize *size, const char **key, Error *e) {
    return clip_size(size, model, k->frames ? k->frames : frames, k->height ? k->height : height,
                     k->width ? k->width : width, key, e);
}

bool previews_size(const Config *c, const DitConfig *model, ClipSize *size) {
    const DataConfig *d = &c->data;
    const char *key;
    Error e;
    return c->train.sample_every &&
           size_of(&c->sample, model, d->frames, d->height, d->width, size, &key, &e);
}

/* How many prompts there will be, at most. */
static int64_t count_prompts(const Config *c) {
    if (!c->sample.prompt && !c->sample.prompts) return OWN_PROMPTS;
    StringList list = prompts_read(c);
    int64_t n = list.count;
    prompts_free(&list);
    return n;
}

int64_t previews_host_bytes(const Config *c, const DitConfig *model, bool first) {
    ClipSize z;
    if (!previews_size(c, model, &z)) return 0;
    int64_t n = count_prompts(c), halves = c->sample.guidance > 1 ? 2 : 1;
    int64_t latents = clip_elements(&z, model), text = model->text_length * model->text_dim;
    int64_t pixels = VAE_COLORS * z.frames_out * z.height * z.width;
    bool image = model->in_channels != model->out_channels;
    int64_t held = (n + 1) * text + n * (image ? 2 : 1) * latents;
    int64_t sampler = halves * (text + (image ? 3 : 2) * latents) + 2 * latents;
    int64_t decoded = 2 * pixels + latents; /* planes and frames */
    if (!first) return (held + sampler) * (int64_t)sizeof(float);
    return (held + MAX(sampler, decoded)) * (int64_t)sizeof(float) + pixels;
}

int64_t previews_decode_bytes(const Config *c, const DitConfig *model, bool foreign) {
    ClipSize z;
    VaeModel vae = VAE_PUBLISHED;
    char *folder;
    Error e;
    if (!previews_size(c, model, &z)) return 0;
    if (component_folder(c->model.path, "vae", "config.json", &folder, &e)) {
        char *path = xprintf("%s/config.json", folder);
        if (!vae_model_read(&vae, path, &e)) die_error(&e);
        free(path);
        free(folder);
    }
    Device device = foreign ? (Device){cuda_table(), DT_BF16} : (Device){&BACKEND_CPU, DT_REAL};
    VaeTiling tiling = config_tiling(c);
    return vae_least_bytes(&vae, device, VAE_DECODER, z.f - z.padding, z.h, z.w, &tiling);
}

int64_t previews_bytes(Model *m, const Config *c) {
    const DitConfig *model = &m->dit->config;
    ClipSize z;
    if (!previews_size(c, model, &z)) return 0;
    int64_t sampler = learner_forward_bytes(m, c, (const int64_t[]){z.f, z.h, z.w});
    return MAX(sampler, previews_decode_bytes(c, model, m->memory.k != &BACKEND_CPU));
}

static void fix_size(Previews *p, const Config *c, const Samples *s) {
    const VideoWant *want = &s->wanted->want;
    const char *key;
    Error e;
    if (!size_of(&c->sample, &s->wanted->model, want->frames, want->height, want->width, &p->size,
                 &key, &e)) {
        char *path = xprintf("sample.%s", key);
        config_die(c, path, "%s", e.text);
    }
}

/* sample.image for every prompt, or each caption's own picture. */
static void read_images(Previews *p, const Config *c, Samples *s) {
    int64_t n = clip_elements(&p->size, &s->wanted->model);
    SampleNoise noise = {.seed = (uint64_t)c->sample.seed};
    Error e;
    if (!s->wanted->images) return;
    if (c->sample.image || !p->samples || n != samples_latent_count(s)) {
        if (!c->sample.image)
            config_die(c, "sample.image",
                       "missing: previews of prompts or sizes of their own need a picture");
        free(p->samples);
        p->samples = NULL;
        p->image = sample_image(c, &s->wanted->model, &p->size, &noise);
        return;
    }
    p->image = xcalloc((size_t)(n * p->prompts.count), sizeof *p->image);
    for (int i = 0; i < p->prompts.count; i++)
        if (!samples_image(s, p->samples[i], p->image + i * n, &e)) die_error(&e);
}

Previews *previews_open(const Config *c, Samples *s) {
    if (!c->train.sample_every) return NULL;
    Previews *p = xcalloc(1, sizeof *p);
    const DitConfig *model = &s->wanted->model;
    SchedulerConfig config = sample_schedule(c, model->rotary, &p->schedule);
    Error e;
    if (!video_write_ready(&e)) die_error(&e);
    if (!scheduler_open(&p->scheduler, &config, &p->schedule, c->sample.steps, &e))
        config_die(c, "sample.steps", "%s", e.text);
    fix_size(p, c, s);
    choose_prompts(p, c, s);
    read_images(p, c, s);
    int n = p->prompts.count;
    char **texts = xcalloc((size_t)n + 1, sizeof *texts);
    memcpy(texts, p->prompts.items, (size_t)n * sizeof *texts);
    texts[n] = c->sample.negative_prompt;
    p->text = prompts_encode(c, model, texts, n + 1);
    free(texts);
    return p;
}

void previews_close(Previews *p) {
    if (!p) return;
    scheduler_close(&p->scheduler);
    prompts_free(&p->prompts);
    free(p->samples);
    free(p->text);
    free(p->image);
    free(p);
}

/* What training holds of the device, all of it while previews are decoded. */
static int64_t training_bytes(const Train *t) {
    int64_t bytes = learner_bytes(t->learner).total;
    if (!t->holdout.learner) return bytes;
    LearnerBytes b = learner_bytes(t->holdout.learner);
    return bytes + b.total - b.resident;
}

/* run/samples/step-000100-0.mp4 and .png */
static bool write_clip(const Train *t, const Vae *v, int prompt, const float *latents, Error *e) {
    const ClipSize *z = &t->previews->size;
    int64_t pixels = z->frames_out * z->height * z->width;
    float *frames = xcalloc((size_t)(pixels * VAE_COLORS), sizeof *frames);
    uint8_t *rgb = xcalloc((size_t)pixels, VAE_COLORS);
    Clip8 clip = {rgb, z->frames_out, z->height, z->width};
    Config rest = *t->config; /* borrows the strings */
    if (rest.memory.budget) rest.memory.budget = MAX(1, rest.memory.budget - training_bytes(t));
    latents_decode(&rest, (Vae *)v, z, latents, frames);
    frames_to_bytes(z, frames, rgb);
    char *stem = xprintf("%s/samples/step-%06lld-%d", t->run.path, (long long)t->at.step, prompt);
    char *mp4 = xprintf("%s.mp4", stem), *png = xprintf("%s.png", stem);
    bool ok = video_write(mp4, &clip, z->fps, e) && sheet_write(png, &clip, e);
    if (ok) progress_say(t->progress, "preview %s: %s", mp4, t->previews->prompts.items[prompt]);
    free(frames);
    free(rgb);
    free(stem);
    free(mp4);
    free(png);
    return ok;
}

static bool make_folder(const Train *t, Error *e) {
    char *path = xprintf("%s/samples", t->run.path);
    bool ok = folders_make(path, e);
    free(path);
    return ok;
}

static bool sample_prompt(Train *t, Sampler *sampler, int prompt, float *latents, Error *e) {
    const Previews *p = t->previews;
    const SampleConfig *c = &t->config->sample;
    const DitConfig *model = &t->model->dit->config;
    int64_t text = model->text_length * model->text_dim;
    int64_t image = p->samples ? prompt * clip_elements(&p->size, model) : 0;
    SampleNoise noise = {.seed = (uint64_t)c->seed, .ordinal = (uint32_t)prompt};
    SampleJob job = {.scheduler = &p->scheduler,
                     .guidance = c->guidance,
                     .dynamic = c->dynamic_guidance,
                     .text = p->text + prompt * text,
                     .negative = c->guidance > 1 ? p->text + p->prompts.count * text : NULL,
                     .image = p->image ? p->image + image : NULL,
                     .noise = &noise};
    sample_noise_start(&noise, clip_elements(&p->size, model), latents);
    return sampler_run(sampler, &job, latents, e);
}

void previews_check(const Train *t) {
    if (!t->previews) return;
    const Config *c = t->config;
    const ClipSize *z = &t->previews->size;
    sampler_close(sampler_open(t->model, c, z, c->sample.guidance > 1));
    if (t->model->comm->rank) return;
    Vae *v = latents_vae(c, &t->model->dit->config);
    vae_job_close(config_vae_job_beside(c, training_bytes(t), v, VAE_DECODER, z->f - z->padding,
                                        z->h, z->w, "previews"));
    vae_close(v);
}

bool previews_make(Train *t, Error *e) {
    const Previews *p = t->previews;
    const DitConfig *model = &t->model->dit->config;
    int64_t n = clip_elements(&p->size, model);
    bool first = t->model->comm->rank == 0, ok = !first || make_folder(t, e);
    float *latents = xcalloc((size_t)(n * p->prompts.count), sizeof *latents);
    Sampler *sampler = sampler_open(t->model, t->config, &p->size, t->config->sample.guidance > 1);
    for (int i = 0; ok && i < p->prompts.count; i++)
        ok = sample_prompt(t, sampler, i, latents + i * n, e);
    sampler_close(sampler);
    Vae *v = ok && first ? latents_vae(t->config, model) : NULL;
    for (int i = 0; ok && first && i < p->prompts.count; i++)
        ok = write_clip(t, v, i, latents + i * n, e);
    vae_close(v);
    free(latents);
    return ok;
}
