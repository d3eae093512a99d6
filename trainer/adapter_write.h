/* Writing adapters: one safetensors file with the tensor names of a runtime.
 *
 *     form       names (of module transformer_blocks.0.attn1.to_q)                   where alpha is
 *     diffusers  transformer.<module>.lora_A.weight, lora_B.weight         lora_adapter_metadata
 *     peft       base_model.model.<module>.lora_A.weight, lora_B.weight    adapter_config.json
 *     comfy      diffusion_model.blocks.0.q.lora_A.weight, lora_B.weight   ….alpha, a scalar
 *     kohya      lora_unet__transformer_blocks_0_attn1_to_q.lora_down.weight, lora_up.weight
 *                                                                          ….alpha, a scalar
 *
 * Header metadata: {"format": "pt"} and the file's own digest (data/safetensors.h). diffusers adds
 * `lora_adapter_metadata`, a JSON text of exactly these of PEFT's LoraConfig, each under the prefix
 * "transformer.": r, lora_alpha, target_modules, rank_pattern, and alpha_pattern where modules
 * differ in it. (Without the first four diffusers 0.35 fails or takes a wrong strength; fields that
 * it does not know are errors there.) kohya adds ss_network_dim, ss_network_alpha and
 * ss_network_module.
 */
#pragma once

#include "trainer/lora.h"

typedef enum { ADAPTER_DIFFUSERS, ADAPTER_PEFT, ADAPTER_COMFY, ADAPTER_KOHYA } AdapterForm;

/* Writes the file whole under a temporary name, reads it back, and renames it over what is at
 * `path`. Of a layer are read: module, rank, alpha, and of `a` and `b` dtype (F32, BF16 or F16),
 * n_dims, shape and data (any address). Values are rounded once, to `type`: one that is not finite
 * there is EXIT_USER, as is a layer for which the form has no name. n is at least 1. */
bool adapter_write(const char *path, AdapterForm form, const AdapterLayer *layers, int n,
                   DType type, Error *e);

/* The name of a layer in a form, without ".lora_A.weight" and its like; the caller frees it. NULL:
 * the form has none. */
char *adapter_layer_name(AdapterForm form, const char *module);

/* PEFT's settings of the layers as an object: r (the most frequent rank), lora_alpha (the most
 * frequent), target_modules (ends of names where every block has the module, else whole names),
 * rank_pattern and alpha_pattern (the modules that differ). The caller ends it with json_decref. */
struct json_t *adapter_settings_json(const AdapterLayer *layers, int n);

/* The layers of a transformer's own adapters, to be written: values[b] is the host copy (as
 * bucket_read gives it, PART_MASTER) of trained bucket b of d->params, NULL for frozen buckets. The
 * layers point into it and into d. One allocation: the caller frees it. *n: how many. */
AdapterLayer *adapter_layers_of(const Dit *d, const real *const *values, int *n);

/* Values [first, first + n) of a tensor of F32, BF16, F16 or F64, rounded once to `type`; false:
 * one of them is not finite there. */
bool values_round(const SafetensorsTensor *t, size_t first, size_t n, DType type, void *to);
