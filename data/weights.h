/* The weights of one model component (transformer/, vae/, text_encoder/) as one table of tensors,
 * whether they lie in one safetensors file or in many with an index; nothing is copied.
 *
 * An index is not trusted: shard names are plain file names inside the folder, symbolic links are
 * not followed, every tensor is in exactly one shard and in the index, and total_size is checked
 * where the index has it. Opening touches no page of tensor data, so a folder of published size
 * opens at once, even as sparse files.
 *
 *     Weights w;
 *     Error e;
 *     if (!weights_open(&w, "CogVideoX-2b/transformer", &e)) die_error(&e);
 *     const SafetensorsTensor *t = weights_find(&w, "proj_out.weight", &e);
 *     if (!t) die_error(&e);
 *     ...
 *     weights_close(&w);
 */
#pragma once

#include "data/safetensors.h"

typedef struct {
    char *path;                 /* what was opened, for error texts */
    SafetensorsTensor *tensors; /* by name (strcmp order) */
    size_t n_tensors;
    Safetensors *shards; /* by file name */
    size_t n_shards;
} Weights;

/* Opens a component's folder, or one .safetensors file. In a folder looks for
 * diffusion_pytorch_model, model, pytorch_lora_weights and adapter_model, each as
 * NAME.safetensors.index.json or NAME.safetensors; more than one of them is an error, for none is
 * more right than another. On failure *w is zeroed and *e says what to do. */
bool weights_open(Weights *w, const char *path, Error *e);
/* Also right for a zeroed *w. */
void weights_close(Weights *w);

/* safetensors_verify of every file: reads the whole of those that carry a digest. */
bool weights_verify(const Weights *w, Error *e);

/* NULL: no such tensor; *e (may be NULL) then names the nearest. */
const SafetensorsTensor *weights_find(const Weights *w, const char *name, Error *e);
/* The same, and a tensor of another shape is an error: a dimension of -1 matches any. */
const SafetensorsTensor *weights_expect(const Weights *w, const char *name, int n_dims,
                                        const int64_t *shape, Error *e);

/* Takes the whole pages of these bytes out of this process's resident set; they stay in the page
 * cache, and may be read again. Bytes outside the files are a bug (CHECK). */
void weights_release(const Weights *w, const void *data, size_t bytes);

/* A text file that goes into a folder beside the weights, such as config.json. */
typedef struct {
    const char *name, *text;
} WeightsText;

/* Writes a folder as diffusers and transformers lay it out: `items` fill shards in the order given,
 * each up to max_shard_bytes of tensor data; one shard is STEM.safetensors, several are
 * STEM-00001-of-0000N.safetensors with STEM.safetensors.index.json. Every file carries the metadata
 * {"format": "pt"} and, with file->digest, its digest; file->metadata comes on top. With
 * file->digest digests.json (data/digests.h) covers the other files. The folder is written under a
 * temporary name and renamed: it must not exist, or be empty. */
bool weights_save(const char *folder, const char *stem, size_t max_shard_bytes,
                  const SafetensorsFile *file, const WeightsText *texts, size_t n_texts, Error *e);
