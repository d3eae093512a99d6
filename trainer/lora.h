/* Adapters: which linear maps get one, how they begin, and reading one from a file. */
#pragma once

#include "trainer/config.h"
#include "trainer/dit.h"

/* Attaches adapters to the maps whose module is a pattern or ends in ".<pattern>" (PEFT's rule). A
 * pattern that matches nothing is an error that lists what there is. */
bool lora_attach(Dit *d, const LoraConfig *config, Error *e);

/* Gives one map an adapter. */
void lora_give(Linear *l, int64_t rank, double alpha, double dropout);

/* PEFT's initialisation of all adapters: A Kaiming-uniform, U(+-1/sqrt(K)), or normal with standard
 * deviation 1/r; B zero. Drawn by kernels/random.h: ordinal = the map's place in Dit.linears. */
void lora_init(const Dit *d, LoraInitChoice init, uint64_t seed);

/* An adapter on disk: diffusers' pytorch_lora_weights.safetensors (alpha in the header's
 * lora_adapter_metadata; without it alpha = r, as diffusers has it) or PEFT's folder with
 * adapter_config.json. */
typedef struct Adapter Adapter;
Adapter *adapter_open(const char *path, Error *e);
void adapter_close(Adapter *a);
/* Attaches what the file holds: rank, alpha and maps are the file's. dropout: for training on. */
bool adapter_attach(const Adapter *a, Dit *d, double dropout, Error *e);
/* Copies the file's values into the masters, after params_allocate. */
bool adapter_load(const Adapter *a, const Dit *d, Error *e);
/* For `inspect`: maps with an adapter, and rank and alpha of the i-th, in file order. */
int adapter_count(const Adapter *a);
const char *adapter_module(const Adapter *a, int i, int64_t *rank, double *alpha);
