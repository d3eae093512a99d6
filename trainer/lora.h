/* Adapters: which linear maps get one, how they begin, and reading one from a file. */
#pragma once

#include "data/weights.h"
#include "trainer/config.h"
#include "trainer/dit.h"

/* Attaches adapters to the maps whose module is a pattern or ends in ".<pattern>" (PEFT's rule). A
 * pattern that matches nothing is an error that lists what there is. */
bool lora_attach(Dit *d, const LoraConfig *config, Error *e);

/* Gives one map an adapter. */
void lora_give(Linear *l, int64_t rank, double alpha, double dropout);

/* PEFT's initialisation of all adapters: A Kaiming-uniform, U(+-1/sqrt(K)), or normal with standard
 * deviation 1/r; B zero. Drawn by kernels/random.h: ordinal = the map's place in Dit.linears. */
void lora_init(const Dit *d, LoraInitChoice init, uint64_t seed, Memory *m, Stream *s);

/* An adapter on disk: diffusers' pytorch_lora_weights.safetensors (alpha in the header's
 * lora_adapter_metadata; without it alpha = r, as diffusers has it) or PEFT's folder with
 * adapter_config.json. A file with a digest of cogsmith's that is not its own is an error. */
typedef struct Adapter Adapter;
Adapter *adapter_open(const char *path, Error *e);
void adapter_close(Adapter *a);
/* Attaches what the file holds: rank, alpha and maps are the file's. dropout: for training on. */
bool adapter_attach(const Adapter *a, Dit *d, double dropout, Error *e);
/* Copies the file's values into the masters, after params_allocate. */
bool adapter_load(const Adapter *a, const Dit *d, Memory *m, Stream *s, Error *e);
/* Freezes every adapter of the model, its strength times `scale`: before dit_params. */
void lora_freeze(Dit *d, double scale);
/* Says where the values of frozen adapters lie: in `copies` [2 * adapter_count], each of its own
 * memory, which the caller frees when the parameters are gone. NULL on failure. */
void **adapter_sources(const Adapter *a, const Dit *d, Error *e);

/* For `inspect`: what an adapter holds, layer by layer in the order of the file. */
typedef struct {
    const char *module;
    int64_t rank;
    double alpha;                   /* the layer adds (alpha / rank) B A */
    const SafetensorsTensor *a, *b; /* [r,K], [O,r] (a convolution's: [r,C,p,p], [O,r,1,1]) */
} AdapterLayer;
int adapter_count(const Adapter *a);
AdapterLayer adapter_layer(const Adapter *a, int i);
/* Where the file's alphas are: "lora_adapter_metadata", "adapter_config.json" or NULL, nowhere. */
const char *adapter_settings(const Adapter *a);
const Weights *adapter_weights(const Adapter *a);
/* All values of a tensor of the adapter; false: they are of another type, or not finite. */
bool adapter_values(const Adapter *a, const SafetensorsTensor *t, real *to, Error *e);
/* Whether a tensor among the weights has the name of an adapter's. */
bool adapter_holds(const Weights *w);
