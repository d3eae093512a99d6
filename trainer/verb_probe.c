/* `cogsmith probe`: one computation with every input from a file, for comparison with another
 * implementation. See --help and the README for the names of inputs and outputs. */
#include "data/nearest.h"
#include "trainer/call_files.h"
#include "trainer/cli.h"
#include "trainer/learner.h"
#include "trainer/probe_text.h"
#include "trainer/probe_vae.h"
#include "trainer/profile.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- inputs -----------------------------------------------------------------------------------
 */

/* One tensor of the input file as f32. */
typedef struct {
    float *values;
    int n_dims;
    int64_t dim[SAFETENSORS_MAX_DIMS];
} Array;

/* The inputs of K steps (K = 1 without a leading axis). */
typedef struct {
    const char *path;
    bool replay;                /* there is a leading axis K */
    int64_t steps;              /* K */
    int64_t batch, f, ch, h, w; /* B and latent sizes */
    int64_t text_rows, text_dim;
    Array latents, noise, noisy, text, image;
    int64_t *timesteps; /* [K,B] */
} Inputs;

static Array read_floats(const Safetensors *file, const char *name) {
    const SafetensorsTensor *t = safetensors_find(file, name);
    Array a = {0};
    if (!t) return a;
    a.values = given_floats(file, t);
    a.n_dims = t->n_dims;
    memcpy(a.dim, t->shape, sizeof a.dim);
    return a;
}

/* The array must be [K,] B, F, C, H, W. */
static void expect_latents(const Inputs *in, const Array *a, const char *name) {
    int64_t want[6] = {in->steps, in->batch, in->f, in->ch, in->h, in->w};
    const int64_t *shape = in->replay ? want : want + 1;
    int n = in->replay ? 6 : 5;
    if (!a->values) die("%s: %s: missing; it goes with latents", in->path, name);
    for (int i = 0; i < n; i++)
        if (a->n_dims != n || a->dim[i] != shape[i])
            die("%s: %s: expected the shape of latents", in->path, name);
}

static void read_sizes(Inputs *in) {
    const Array *x = in->noisy.values ? &in->noisy : &in->latents;
    if (!x->values)
        die("%s: latents: missing; expected latents [B,F,C,H,W], noise, text and timesteps, all of "
            "them with a leading axis K for K training steps",
            in->path);
    if (x->n_dims != 5 && x->n_dims != 6)
        die("%s: latents: expected [B,F,C,H,W] or [K,B,F,C,H,W], found %d axes", in->path,
            x->n_dims);
    in->replay = x->n_dims == 6;
    const int64_t *d = in->replay ? x->dim + 1 : x->dim;
    in->steps = in->replay ? x->dim[0] : 1;
    in->batch = d[0], in->f = d[1], in->ch = d[2], in->h = d[3], in->w = d[4];
    if (in->steps < 1 || in->batch < 1 || in->batch > 1024)
        die("%s: latents: expected 1 to 1024 samples", in->path);
}

static void read_text(Inputs *in) {
    const Array *t = &in->text;
    int lead = in->replay ? 1 : 0;
    if (!t->values || t->n_dims != 3 + lead || t->dim[lead] != in->batch ||
        (lead && t->dim[0] != in->steps))
        die("%s: text: expected %s[%lld,L,E]", in->path, lead ? "K steps of " : "",
            (long long)in->batch);
    in->text_rows = t->dim[lead + 1];
    in->text_dim = t->dim[lead + 2];
}

static void read_timesteps(Inputs *in, const Safetensors *file) {
    const SafetensorsTensor *t = safetensors_find(file, "timesteps");
    int64_t n = in->steps * in->batch;
    if (!t || t->dtype != DT_I64 || t->n_dims != (in->replay ? 2 : 1) ||
        safetensors_count(t) != n || (in->replay && t->shape[0] != in->steps))
        die("%s: timesteps: expected %lld numbers of type I64, [B] or [K,B]", in->path,
            (long long)n);
    in->timesteps = memcpy(xcalloc(t->bytes, 1), t->data, t->bytes);
    for (int64_t i = 0; i < n; i++)
        if (in->timesteps[i] < 0 || in->timesteps[i] >= TRAIN_TIMESTEPS)
            die("%s: timesteps: expected whole numbers from 0 to %d, found %lld", in->path,
                TRAIN_TIMESTEPS - 1, (long long)in->timesteps[i]);
}

/* A name that is almost an input's is a mistake ("timestep", but not "moments" for "latents").
 * Others may be what the file holds to compare with; that they are not read is said. */
static void check_names(const char *path) {
    static const char *const NAMES[] = {"latents",       "noise", "noisy", "text",     "timesteps",
                                        "image_latents", "video", "z",     "input_ids"};
    Safetensors file;
    Error e;
    if (!safetensors_open(&file, path, &e)) die_error(&e);
    for (size_t i = 0; i < file.n_tensors; i++) {
        const char *name = file.tensors[i].name;
        const char *near = nearest_name(name, NAMES, COUNT(NAMES));
        int edits = near ? edit_distance(near, name) : INT_MAX;
        if (edits && edits <= 2 && 3 * (size_t)edits <= strlen(name))
            die("%s: %s: no such input of probe; did you mean '%s'?", path, name, near);
        if (edits) fprintf(stderr, "cogsmith: %s: %s: no input of probe, not read\n", path, name);
    }
    safetensors_close(&file);
}

static Inputs inputs_read(const char *path) {
    Safetensors file;
    Error e;
    if (!safetensors_open(&file, path, &e)) die_error(&e);
    Inputs in = {.path = path,
                 .latents = read_floats(&file, "latents"),
                 .noise = read_floats(&file, "noise"),
                 .noisy = read_floats(&file, "noisy"),
                 .text = read_floats(&file, "text"),
                 .image = read_floats(&file, "image_latents")};
    read_sizes(&in);
    if (in.latents.values) expect_latents(&in, &in.latents, "latents");
    if (in.latents.values) expect_latents(&in, &in.noise, "noise");
    if (in.noise.values && !in.latents.values)
        die("%s: latents: missing; noise goes with latents, and noisy without", path);
    if (in.image.values) expect_latents(&in, &in.image, "image_latents");
    read_text(&in);
    read_timesteps(&in, &file);
    safetensors_close(&file);
    return in;
}

static void inputs_free(Inputs *in) {
    free(in->latents.values);
    free(in->noise.values);
    free(in->noisy.values);
    free(in->text.values);
    free(in->image.values);
    free(in->timesteps);
}

static void check_inputs(const Inputs *in, const DitConfig *c) {
    Error e;
    if (in->ch != c->out_channels)
        die("%s: latents: expected %lld channels, found %lld: they are of another VAE", in->path,
            (long long)c->out_channels, (long long)in->ch);
    if (in->text_dim != c->text_dim)
        die("%s: text: expected embeddings of %lld values, found %lld: they are of another text "
            "encoder",
            in->path, (long long)c->text_dim, (long long)in->text_dim);
    if ((c->in_channels != c->out_channels) != (in->image.values != NULL))
        die("%s: image_latents: %s", in->path,
            in->image.values ? "expected none: this is a text-to-video model; remove them"
                             : "missing; expected the shape of latents: this is an image-to-video "
                               "model");
    if (!dit_check_sample(c, in->f, in->h, in->w, in->text_rows, &e))
        die("%s: %s", in->path, e.text);
}

/* ---- outputs ----------------------------------------------------------------------------------
 */

typedef struct {
    SafetensorsItem *items;
    size_t n;
} Outputs;

/* Takes a copy of the values. */
static void add_output(Outputs *out, char *name, int n_dims, const int64_t *dims,
                       const float *values) {
    out->items = xrealloc(out->items, (out->n + 1) * sizeof *out->items);
    SafetensorsItem *item = &out->items[out->n++];
    *item = (SafetensorsItem){.name = name, .dtype = DT_F32, .n_dims = n_dims};
    memcpy(item->shape, dims, (size_t)n_dims * sizeof *dims);
    size_t bytes = safetensors_item_bytes(item);
    item->data = memcpy(xcalloc(1, bytes), values, bytes);
}

static void add_latents(Outputs *out, const char *name, const Inputs *in, const float *values) {
    add_output(out, xstrdup(name), 5, (int64_t[]){in->batch, in->f, in->ch, in->h, in->w}, values);
}

/* Gradients or values of every trained parameter; every rank must call it. */
/* scale: what the values were multiplied by. */
static void add_params(Outputs *out, const char *prefix, Model *m, Part part, double scale) {
    const ParamSet *p = m->params;
    for (int b = 0; b < p->n_buckets; b++) {
        if (!p->bucket[b].trained) continue;
        real *values = xcalloc((size_t)p->bucket[b].count, sizeof *values);
        bucket_read(p, b, part, values, &m->memory, m->stream);
        for (int64_t i = 0; i < p->bucket[b].count; i++) values[i] /= (real)scale;
        for (int i = 0; i < p->n_params; i++) {
            const Param *q = &p->param[i];
            if (q->bucket == b)
                add_output(out, xprintf("%s.%s", prefix, q->name), q->shape.rank, q->shape.dim,
                           values + q->offset);
        }
        free(values);
    }
}

static void outputs_write(const Outputs *out, const char *path) {
    SafetensorsMetadata format = {"format", "pt"};
    SafetensorsFile file = {
        .items = out->items, .n_items = out->n, .metadata = &format, .n_metadata = 1};
    Error e;
    if (!safetensors_write(path, &file, &e)) die_error(&e);
}

static void outputs_free(Outputs *out) {
    for (size_t i = 0; i < out->n; i++) {
        free((char *)out->items[i].name);
        free((void *)out->items[i].data);
    }
    free(out->items);
}

/* ---- the computation --------------------------------------------------------------------------
 */

/* The samples of a step are cut into equal parts: micro-step i of rank r takes part i * ranks + r.
 */
typedef struct {
    const Config *config;
    Model *model;
    Learner *learner;
    const Inputs *in;
    int64_t count;         /* latent elements of one step */
    int64_t samples;       /* of a part */
    int micros;            /* micro-steps of a step */
    float *noisy, *target; /* [count] */
    float *prediction;     /* [count] of the last step; NULL: not wanted */
} Probe;

/* Inputs of step k, all samples. */
static void diffuse_step(Probe *p, int64_t k) {
    const Inputs *in = p->in;
    int64_t each = p->count / in->batch;
    for (int64_t b = 0; b < in->batch && in->latents.values; b++) {
        int64_t at = k * p->count + b * each;
        diffuse(&p->model->schedule, in->timesteps[k * in->batch + b], each,
                in->latents.values + at, in->noise.values + at,
                in->noisy.values ? NULL : p->noisy + b * each, p->target + b * each);
    }
    if (in->noisy.values)
        memcpy(p->noisy, in->noisy.values + k * p->count, (size_t)p->count * sizeof *p->noisy);
}

/* Predictions of the ranks' parts of micro-step i. */
static void keep_prediction(Probe *p, int i) {
    const Model *m = p->model;
    Comm *comm = m->comm;
    int64_t part = p->samples * (p->count / p->in->batch);
    float *all = xcalloc((size_t)(comm->size * part), sizeof *all), *mine = all + comm->rank * part;
    learner_prediction(p->learner, 0, mine);
    comm->all_gather(comm, m->stream, DT_F32, part, mine, all);
    for (int r = 0; r < m->data_ranks; r++)
        memcpy(p->prediction + (i * m->data_ranks + r) * part, all + r * m->sequence->size * part,
               (size_t)part * sizeof *all);
    free(all);
}

/* Returns the loss of the step. */
static double run_step(Probe *p, int64_t k) {
    const Inputs *in = p->in;
    const Model *m = p->model;
    int64_t each = p->count / in->batch, text = in->text_rows * in->text_dim;
    double loss = 0;
    diffuse_step(p, k);
    for (int i = 0; i < p->micros; i++) {
        int64_t first = (i * m->data_ranks + m->data_rank) * p->samples;
        uint32_t *ordinals = xcalloc((size_t)p->samples, sizeof *ordinals);
        for (int64_t b = 0; b < p->samples; b++)
            ordinals[b] = (uint32_t)(k * in->batch + first + b);
        Micro micro = {.noisy = p->noisy + first * each,
                       .image =
                           in->image.values ? in->image.values + k * p->count + first * each : NULL,
                       .text = in->text.values + (k * in->batch + first) * text,
                       .target = p->target + first * each,
                       .timesteps = in->timesteps + k * in->batch + first,
                       .ordinals = ordinals,
                       .seed = (uint64_t)p->config->train.seed,
                       .step = (uint32_t)k,
                       .micro = i,
                       .micros = p->micros};
        loss += learner_micro(p->learner, &micro);
        free(ordinals);
        if (p->prediction) keep_prediction(p, i);
    }
    return loss / p->micros;
}

static void probe_once(Probe *p, Outputs *out) {
    const Inputs *in = p->in;
    Model *m = p->model;
    p->prediction = xcalloc((size_t)p->count, sizeof *p->prediction);
    float loss = (float)run_step(p, 0);
    add_latents(out, "noisy", in, p->noisy);
    add_latents(out, "prediction", in, p->prediction);
    free(p->prediction);
    if (!in->latents.values) return;
    add_output(out, xstrdup("loss"), 1, (int64_t[]){1}, &loss);
    if (m->training == TRAIN_NOTHING) return;
    float norm = (float)optim_grad_norm(&p->learner->optim, m->params, &m->memory, m->stream);
    add_output(out, xstrdup("grad_norm"), 1, (int64_t[]){1}, &norm);
    add_params(out, "grad", m, PART_GRAD, p->learner->optim.scale.value);
}

static void probe_replay(Probe *p, Outputs *out) {
    Model *m = p->model;
    const TrainConfig *train = &p->config->train;
    int64_t steps = p->in->steps;
    float *loss = xcalloc((size_t)steps, sizeof *loss),
          *norm = xcalloc((size_t)steps, sizeof *norm);
    for (int64_t k = 0; k < steps; k++) {
        loss[k] = (float)run_step(p, k);
        double exact = optim_grad_norm(&p->learner->optim, m->params, &m->memory, m->stream);
        norm[k] = (float)exact;
        if (optim_overflowed(&p->learner->optim, exact)) continue;
        optim_step(&p->learner->optim, m->params, train, learning_rate_at(train, k), exact, k + 1,
                   &m->memory, m->stream);
    }
    add_output(out, xstrdup("loss"), 1, &steps, loss);
    add_output(out, xstrdup("grad_norm"), 1, &steps, norm);
    add_params(out, "param", m, PART_MASTER, 1);
    free(loss);
    free(norm);
}

/* Gradients only where the call asks for a method; any setting of an adapter asks for LoRA. */
static Training training_of(const Config *c, const Inputs *in) {
    if (c->method == METHOD_FULL) return TRAIN_FULL;
    bool asked = config_is_set(c, "method") || config_section_is_set(c, "lora");
    if (in->replay && !asked)
        die("%s: latents with an axis of steps: say method=full or method=lora", in->path);
    return asked ? TRAIN_LORA : TRAIN_NOTHING;
}

/* The pack of one part. The caller frees its arrays. */
static Pack part_pack(const Probe *p) {
    int64_t(*fhw)[3] = xcalloc((size_t)p->samples, sizeof *fhw);
    int64_t *text_rows = xcalloc((size_t)p->samples, sizeof *text_rows);
    for (int64_t b = 0; b < p->samples; b++) {
        fhw[b][0] = p->in->f, fhw[b][1] = p->in->h, fhw[b][2] = p->in->w;
        text_rows[b] = p->in->text_rows;
    }
    return (Pack){(int)p->samples, (const int64_t(*)[3])fhw, text_rows};
}

static void cut_batch(Probe *p) {
    int64_t parts = p->config->train.accumulate * p->model->data_ranks;
    if (p->in->batch % parts)
        config_die(p->config, "train.accumulate",
                   "%lld samples cannot be cut into %d micro-steps of %d ranks",
                   (long long)p->in->batch, (int)p->config->train.accumulate, p->model->data_ranks);
    p->samples = p->in->batch / parts;
    p->micros = (int)p->config->train.accumulate;
}

static void run_probe(Config *c, const Inputs *in) {
    Probe p = {.config = c, .in = in, .count = in->batch * in->f * in->ch * in->h * in->w};
    p.model = model_open(c, training_of(c, in), MODEL_WEIGHTS, false);
    check_inputs(in, &p.model->dit->config);
    if (!in->latents.values && p.model->training != TRAIN_NOTHING)
        die("%s: latents: missing; gradients need latents and noise", in->path);
    cut_batch(&p);
    Pack pack = part_pack(&p);
    p.learner =
        learner_plan(p.model, c, &pack, 1, in->latents.values != NULL, model_available(p.model, c));
    learner_bind(p.learner, false);
    p.noisy = xcalloc((size_t)p.count, sizeof *p.noisy);
    p.target = xcalloc((size_t)p.count, sizeof *p.target);
    Outputs out = {0};
    if (in->replay)
        probe_replay(&p, &out);
    else
        probe_once(&p, &out);
    if (p.model->comm->rank == 0) {
        outputs_write(&out, c->probe.out);
        printf("%s\n", c->probe.out);
    }
    outputs_free(&out);
    learner_close(p.learner);
    model_close(p.model);
    free(p.noisy);
    free(p.target);
    free((void *)pack.fhw);
    free((void *)pack.text_rows);
}

int verb_probe(const Call *call) {
    Config *c = call->config;
    config_require(c, "model.path", "probe");
    if (!c->probe.captions) config_require(c, "probe.inputs", "probe");
    config_require(c, "probe.out", "probe");
    check_writable(c, "probe.out", c->probe.out);
    if (c->probe.inputs) check_names(c->probe.inputs);
    if (probe_text(c) || probe_vae(c)) return 0;
    if (!config_is_set(c, "train.warmup_steps")) c->train.warmup_steps = 0;
    Inputs in = inputs_read(c->probe.inputs);
    run_probe(c, &in);
    inputs_free(&in);
    return 0;
}
