/* What lies at a path, found for `cogsmith inspect` and other verbs that ask before they use it:
 * one JSON object, a report.
 *
 *     path     as given
 *     kind     "model": a diffusers folder        class, components: [report, ...]
 *              "transformer"                      class, variant, task, positions, sizes; weights
 *              "vae", "text_encoder", "component" class; weights
 *              "tokenizer"                        class, vocabulary_bytes
 *              "scheduler"                        class, prediction, beta_start, ...
 *              "adapter"                          names, alpha_from, kinds, layers; weights
 *              "cache": what prepare made         bytes, groups: [{kind, shape, entries, bytes}],
 *                                                 entry_list: [{kind, key, shape, source, ...}]
 *              "checkpoint", every file verified  step, samples, global_batch, dataset, world,
 *                                                 zero; result: the report on its adapter or
 *                                                 transformer
 *              "run"                              checkpoints: [report, ...], newest first; result
 *              "tensors": other safetensors       tensor_list, metadata; weights
 *     weights: tensors, parameters, bytes, dtypes: {name: tensors}, shards: [{file, bytes, tensors,
 *              digest: "none" or "verified"}, ...]; tensors is 0 where a folder has no weights
 *
 * A folder with digests.json, of an export or full weights, also has digests: how many files it
 * verified, itself included. In a model, each component also has its name, and present: false where
 * the model's index lists a component that is not there. Headers alone are read, except of files
 * that carry a digest and of adapters, whose values are needed for their norms.
 */
#pragma once

#include "data/weights.h"

struct json_t;

/* NULL: *e says what is wrong. The caller ends the report with json_decref. */
struct json_t *inspect_path(const char *path, Error *e);

/* Parts of it. A model, by its folder; one component, by its own folder. */
struct json_t *inspect_model(const char *folder, Error *e);
struct json_t *inspect_component(const char *folder, Error *e);
/* A cache, by its folder; values are not read (prepare --verify does). */
struct json_t *inspect_cache(const char *folder, Error *e);
/* A checkpoint, and a run's folder. */
struct json_t *inspect_checkpoint(const char *folder, Error *e);
struct json_t *inspect_run(const char *folder, Error *e);
/* Whether a folder is one of these, by the files in it. */
bool inspect_is_checkpoint(const char *folder);
bool inspect_is_run(const char *folder);
bool inspect_is_model(const char *folder);
bool inspect_is_component(const char *folder);
bool inspect_is_cache(const char *folder);

/* Whether a folder holds a file of weights, in a form that is read or not. */
bool inspect_has_weights(const char *folder);
/* Adds what the weights are; false: a digest in a file is wrong. */
bool inspect_weights(struct json_t *report, const Weights *w, Error *e);
/* Verifies digests.json where the folder has it; *files: how many files that made, 0: it has none.
 * false: *e names the file that is not as it was written. */
bool inspect_digests(const char *folder, int *files, Error *e);
/* A text as JSON: bytes that are not UTF-8 become '?'. */
struct json_t *inspect_text(const char *text);
/* Whether folder/name is there. */
bool inspect_has(const char *folder, const char *name);

/* Prints a report as tables. */
void inspect_print(const struct json_t *report);
