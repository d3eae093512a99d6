/* `export`: what an export is made from, where it goes, and the parts of making it.
 *
 *     preset      from         files in export.out
 *     diffusers   adapter      pytorch_lora_weights.safetensors
 *                 full model   config.json, diffusion_pytorch_model*.safetensors (and .index.json)
 *     peft        adapter      adapter_model.safetensors, adapter_config.json
 *     comfy       adapter      <name of the folder>.safetensors: ComfyUI shows files by name
 *     kohya       adapter      <name of the folder>.safetensors
 *     merged      adapter and base, or full model: as diffusers from a full model
 *
 * and README.md, the model card, and digests.json (data/digests.h), by which `inspect` tells damage
 * of the files that carry no digest themselves. The folder appears whole or not at all; one that an
 * earlier export made is replaced, any other that is not empty is refused.
 */
#pragma once

#include "trainer/adapter_write.h"
#include "trainer/config.h"

/* ---- what it is made from (export_source.c) ---- */

typedef struct {
    char *adapter;     /* file or folder; NULL: a full model */
    char *transformer; /* folder of the full weights, or of the base model; NULL: not known */
    char *model;       /* model.path, or the run's own; NULL: not known */
} ExportSource;

/* From export.adapter or export.checkpoint: an adapter's file or folder, a transformer's folder, a
 * checkpoint or a run folder (the final result, or else the latest checkpoint). Without model.path
 * the base model is that of the config.yaml of the run in which the source lies, if there is one.
 * Ends the program on mistakes (exit 2). */
ExportSource export_source(const Config *c);
void export_source_free(ExportSource *s);

/* ---- where it goes (export_out.c) ---- */

typedef struct {
    char *path;
    char *work; /* where it is made: a name that is free */
} ExportOut;

/* Checks that export.out may be written, and makes the folders above it. false: *e. */
bool export_out_open(ExportOut *o, const char *path, Error *e);
/* Puts the finished folder `work` in its place, and prints the paths of its files on stdout. */
bool export_out_commit(ExportOut *o, Error *e);
void export_out_discard(ExportOut *o);

/* ---- the model card (export_card.c) ---- */

typedef struct {
    const char *variant; /* the published model of its sizes, "CogVideoX-2b"; NULL: none */
    char *name;          /* "THUDM/CogVideoX-2b"; NULL: not known */
    char *licence, *licence_name, *licence_url; /* Hugging Face's identifiers; NULL: not known */
} BaseModel;

/* From the model's own card, from _name_or_path of its config, from the sizes of the published
 * models, and from its folder's name. */
BaseModel base_model(const ExportSource *s);
void base_model_free(BaseModel *b);

/* The text of README.md; the caller frees it. layers NULL: a full model, whole or merged. */
char *export_card(const BaseModel *b, const char *title, ExportChoice preset,
                  const AdapterLayer *layers, int n);
/* Every card begins its text with this, by which an earlier export is known. */
extern const char EXPORT_MARK[];

/* ---- full models (export_merged.c) ---- */

/* The largest shard, as of the published models. */
#define EXPORT_SHARD_BYTES ((size_t)5000000000)

/* Writes the transformer in `folder` as a diffusers folder, with the adapter (NULL: none) merged:
 * W + (alpha / r) (B A) in f32, the sum over r in order by fused multiply-adds, rounded once to
 * `type` (DT_COUNT: the base's); all other tensors are copied, or rounded once. The base weights
 * are rounded to `form` before anything else (DT_COUNT: as stored; F64 counts as F32). Tensor by
 * tensor: memory holds no more than the largest. A tensor of the adapter that the
 * transformer has no place for, and a result that is not finite, are EXIT_USER. */
bool export_merged(const char *out, const char *folder, const Adapter *adapter, DType form,
                   DType type, size_t shard_bytes, const char *card, Error *e);
