/* Everything that a user can set: one struct, one field per key of the configuration.
 *
 * A value comes from the defaults, then from the YAML file, then from `key.path=value` arguments;
 * the last one wins. One const table (config_table.c) gives each key its type, place in Config,
 * default, range and doc line, and drives parsing, `--help` and the dump alike: a new key is one
 * field here and one row there.
 *
 * Keys without a default are unset until given: a string is then NULL and a number 0, and the verb
 * that uses the key decides (it may write its decision into the field, so that the dump shows it).
 * An empty value, or `auto` for a number, makes such a key unset again. `config_is_set` tells what
 * the user gave from what was a default.
 */
#pragma once

#include "kernels/base.h"

typedef struct {
    char **items;
    int count;
} StringList;

typedef struct {
    double *items;
    int count;
} FloatList;

/* cpu, cuda (index -1: the first, or one per rank of a node) or cuda:N. */
typedef struct {
    enum { DEVICE_AUTO, DEVICE_CPU, DEVICE_CUDA } kind;
    int index;
} DeviceChoice;

/* Choices. The order of each enum is the order of the names in the table; 0 is the default. */
typedef enum { NUMBERS_AUTO, NUMBERS_F32, NUMBERS_BF16, NUMBERS_F16 } NumbersChoice;
typedef enum { METHOD_LORA, METHOD_FULL } MethodChoice;
typedef enum {
    IMAGE_SCALE_AUTO,
    IMAGE_SCALE_MULTIPLY,
    IMAGE_SCALE_DIVIDE,
    IMAGE_SCALE_NONE
} ImageScaleChoice;
typedef enum { LORA_INIT_KAIMING, LORA_INIT_GAUSSIAN } LoraInitChoice;
typedef enum { ON_BAD_STOP, ON_BAD_SKIP } OnBadChoice;
typedef enum { SCHEDULE_CONSTANT, SCHEDULE_LINEAR, SCHEDULE_COSINE } ScheduleChoice;
typedef enum { OPTIMIZER_ADAMW } OptimizerChoice;
typedef enum { DECAY_ALL, DECAY_MATRICES } DecayChoice;
typedef enum { TIMESTEPS_EXPLICIT, TIMESTEPS_UNIFORM } TimestepsChoice;
typedef enum { TILING_AUTO, TILING_ON, TILING_OFF } TilingChoice;
typedef enum {
    MEMORY_RECOMPUTE_AUTO,
    MEMORY_RECOMPUTE_NONE,
    MEMORY_RECOMPUTE_SELECTIVE,
    MEMORY_RECOMPUTE_BLOCK
} RecomputeChoice;
typedef enum { PLACE_AUTO, PLACE_DEVICE, PLACE_HOST, PLACE_RANKS, PLACE_FILE } PlaceChoice;
typedef enum { PREFETCH_AUTO, PREFETCH_ON, PREFETCH_OFF } PrefetchChoice;
typedef enum { SCHEDULER_AUTO, SCHEDULER_DDIM, SCHEDULER_DPM } SchedulerChoice;
typedef enum {
    EXPORT_DIFFUSERS,
    EXPORT_PEFT,
    EXPORT_COMFY,
    EXPORT_KOHYA,
    EXPORT_MERGED
} ExportChoice;
typedef enum { BENCH_ALL, BENCH_OPS, BENCH_STEP, BENCH_VAE, BENCH_IO } BenchChoice;

typedef struct {
    char *path; /* NULL: unset */
    NumbersChoice dtype;
    ImageScaleChoice image_latent_scale;
} ModelConfig;

typedef struct {
    int64_t rank;
    double alpha, dropout;
    LoraInitChoice init;
    StringList target_modules; /* suffix patterns */
    char *start;               /* adapter file or folder; NULL: unset */
} LoraConfig;

typedef struct {
    char *path, *cache;            /* NULL: unset */
    int64_t frames, height, width; /* pixels and video frames; 0: the model's own */
    double fps;                    /* 0: by the model */
    int64_t windows, holdout;
    double caption_dropout, image_dropout;
    char *trigger; /* "" by default */
    OnBadChoice on_bad;
} DataConfig;

typedef struct {
    char *out; /* NULL: runs/<model>-<method> */
    int64_t steps, batch, accumulate;
    double learning_rate;
    ScheduleChoice schedule;
    int64_t warmup_steps;
    OptimizerChoice optimizer;
    FloatList betas; /* always 2 items */
    double eps, weight_decay, clip_norm;
    DecayChoice decay;
    NumbersChoice precision;
    TimestepsChoice timesteps;
    bool deterministic;
    int64_t seed, checkpoint_every, keep;
    char *resume;                         /* "auto", "never" or a path */
    int64_t sample_every, validate_every; /* 0: never */
} TrainConfig;

typedef struct {
    TilingChoice tiling;
    int64_t tile_height, tile_width;      /* pixels; 0: half the VAE's own sample size */
    double overlap_height, overlap_width; /* share of a tile */
} VaeConfig;

typedef struct {
    PlaceChoice home;
} HomeConfig;

typedef struct {
    int64_t budget; /* bytes; 0: what the device has */
    RecomputeChoice recompute;
    HomeConfig base, optimizer, activations;
    PrefetchChoice prefetch;
} MemoryConfig;

typedef struct {
    int64_t zero, sequence;
    double timeout; /* seconds */
} RanksConfig;

typedef struct {
    char *device; /* a profile; NULL: this machine */
    int64_t world;
} PlanConfig;

typedef struct {
    char *prompt, *prompts, *negative_prompt, *image, *video;
    double strength;
    int64_t frames, height, width; /* 0: the model's own */
    int64_t steps;
    double guidance;
    bool dynamic_guidance;
    SchedulerChoice scheduler;
    int64_t seed;
    char *adapter;
    double adapter_scale;
    char *out, *noise, *latents_out;
} SampleConfig;

typedef struct {
    char *adapter, *checkpoint;
    ExportChoice preset;
    char *out;
    NumbersChoice dtype; /* NUMBERS_AUTO: as stored; adapters f32 */
} ExportConfig;

typedef struct {
    char *preset;
} InitConfig;

typedef struct {
    char *inputs, *out, *captions;
} ProbeConfig;

typedef struct {
    BenchChoice what;
    int64_t repeat;
} BenchConfig;

typedef struct Config {
    ModelConfig model;
    MethodChoice method;
    LoraConfig lora;
    DataConfig data;
    TrainConfig train;
    VaeConfig vae;
    MemoryConfig memory;
    RanksConfig ranks;
    DeviceChoice device;
    PlanConfig plan;
    SampleConfig sample;
    ExportConfig export;
    InitConfig init;
    ProbeConfig probe;
    BenchConfig bench;
    char **places; /* of each row of the table: where the user gave it; NULL: not given */
} Config;

/* All defaults. The Config owns its strings: replace one with config_assign, or free it first. */
Config *config_new(void);
void config_free(Config *c);

/* Reads YAML over what is there: nested mappings only, no aliases, tags or second document, no key
 * twice. Nothing is read beyond 1 MiB. On a mistake returns false with an Error of EXIT_USER whose
 * text is `file:line:column: key: what was expected; hint`; the config is then half changed. */
bool config_read_file(Config *c, const char *path, Error *e);
bool config_read_text(Config *c, const char *text, size_t bytes, const char *name, Error *e);

/* One argument, "lora.rank=3". Lists are written "[a, b]". The errors' place is
 * `command line: 'lora.rank=3'`. */
bool config_assign(Config *c, const char *assignment, Error *e);

/* Whether the user gave the key, and where: "run.yaml:3:9", "command line: 'lora.rank=3'", or
 * "default". An unknown path is a bug. */
bool config_is_set(const Config *c, const char *path);
/* Whether any key of the section was given a value. */
bool config_section_is_set(const Config *c, const char *section);
const char *config_place(const Config *c, const char *path);

/* Ends the program (exit 2) with `place: path: text`, for mistakes that only a verb can see. */
NORETURN void config_die(const Config *c, const char *path, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Ends the program when the key, one of text, is unset, saying which verb needs it. */
void config_require(const Config *c, const char *path, const char *verb);

/* The whole config as YAML with each key's doc beside it; unset keys are comments. Reading it back
 * gives the same values and the same dump (and every key in it then counts as given). The caller
 * frees it. */
char *config_dump(const Config *c);

/* One line for each key of the given sections ("train lora") but `except` ("train.steps") that
 * differs: "  lora.rank: was 16, is 32"; "" where none does. The caller frees it. */
char *config_differences(const Config *before, const Config *now, const char *sections,
                         const char *except);

/* Prints the keys of the given sections ("lora", "device"), a space between names, for --help. */
void config_help(const char *sections);
