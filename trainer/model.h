/* A transformer with its weights on a device, as a config asks for it: the step from files to
 * parameters that the verbs share. */
#pragma once

#include "data/weights.h"
#include "trainer/config.h"
#include "trainer/diffusion.h"
#include "trainer/dit.h"

typedef enum { TRAIN_NOTHING, TRAIN_LORA, TRAIN_FULL } Training;

typedef struct Model Model;
struct Model {
    Training training;
    DType compute;             /* what steps compute in: DT_REAL on the CPU, 16 bits on a GPU */
    int64_t host_limit;        /* bytes of host memory that plans may use */
    bool foreign;              /* planned for a device that is not here: no kernels, no memory */
    Comm *comm;                /* the ranks; of a plan, those that would be there */
    Comm *sequence;            /* those of them that share each sample's rows with this one */
    int data_rank, data_ranks; /* which of how many such groups this one is in */
    Memory memory, host;       /* accounts of device and host memory */
    Stream *stream;
    Dit *dit;
    ParamSet *params;
    Schedule schedule;
    Weights weights; /* mapped; frozen parameters point into it. Zeroed: none were read */
    char *folder;    /* of the transformer */
    DType stored;    /* the type in which its weights are stored, or would be published */
    void **frozen;   /* host memory that frozen parameters are read from and no file has */
    size_t n_frozen;
};

typedef enum {
    MODEL_SHAPES,  /* config.json alone: no weights, no memory (plan) */
    MODEL_RANDOM,  /* weights drawn at random (bench): in f32 on the CPU; on a GPU in the type in
                    * which they are stored, one block of them over and over */
    MODEL_WEIGHTS, /* everything */
} ModelDetail;

/* foreign: plans for a GPU from its profile alone (with MODEL_SHAPES). Ends the program on mistakes
 * in files or settings (exit 2). */
Model *model_open(const Config *c, Training training, ModelDetail detail, bool foreign);
/* For sampling: every weight, nothing trained, and sample.adapter, where it is set, frozen in its
 * place with its strength times sample.adapter_scale. Its numbers stay f32 where the base rests in
 * its file; elsewhere they take the base's form, as diffusers casts them to the model's type. */
Model *model_open_sampling(const Config *c);
/* What the config's method asks for. */
Training model_training(const Config *c);
void model_close(Model *m);
/* What plans of this model may use, its own parameters included: what is free now, or what nothing
 * else of it takes yet of memory.budget, less the context. */
int64_t model_available(const Model *m, const Config *c);

/* The transformer's own folder under model.path: model.path/transformer, or model.path itself. The
 * caller frees it. false: *e says what was looked for. */
bool transformer_folder(const char *model_path, char **folder, Error *e);
/* Every tensor of the weights must be one of the model's parameters, with its shape and a type that
 * can be computed with, and none may be missing; false: *e names the first mistake. Values are not
 * looked at. Used by model_open and by `inspect`. */
bool weights_match(const Weights *w, const Dit *d, Error *e);
