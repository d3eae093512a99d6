/* Checkpoints: the state of a run in a folder that is there whole or not at all.
 *
 *     step-000500/
 *         adapter/pytorch_lora_weights.safetensors     f32, usable as it is (method lora)
 *         transformer/                                 in the stored types, usable as it is (full)
 *         state-00001-of-00004.safetensors             one of each rank that wrote it
 *         config.yaml                                  of the run, resolved
 *         manifest.json                                position, and the digest of every file above
 *
 * A state file holds runs of the flat buckets, named "master/block.3.trained@4096" (likewise m and
 * v): elements from 4096 of that bucket, f32. Offsets do not depend on the number of ranks or the
 * ZeRO stage, so any world reads what another wrote. manifest.json carries its own digest, with its
 * 32 digits counted as '0'.
 *
 * It is written as .step-000500.writing, every file synced, and renamed when the manifest is there;
 * then read back and compared, `latest` is pointed at it, and only then are older ones removed.
 */
#pragma once

#include "trainer/model.h"
#include "trainer/optim.h"

enum { CHECKPOINT_DIGEST_CHARS = 33 };

/* Where a run stands. */
typedef struct {
    int64_t step;                          /* optimizer steps done */
    int64_t samples;                       /* consumed */
    int64_t global_batch;                  /* samples of a step */
    char dataset[CHECKPOINT_DIGEST_CHARS]; /* of the samples (samples.h) */
    LossScale scale;                       /* see optim.h */
    int world, zero;                       /* ranks and ZeRO stage that wrote it; the saver's */
} Position;

/* ---- reading ----------------------------------------------------------------------------------
 */

/* Reads a checkpoint's manifest and compares every file with its digest. false: *e (EXIT_USER)
 * names what is damaged. */
bool checkpoint_verify(const char *path, Position *position, Error *e);
/* The manifest alone. */
bool checkpoint_position(const char *path, Position *position, Error *e);
/* Puts masters and moments in place, this rank's part. The checkpoint must be a verified one. */
bool checkpoint_load(const char *path, Model *m, Error *e);
/* The steps of the checkpoints in a folder, newest first; *n of them; the caller frees the list. */
int64_t *checkpoint_list(const char *folder, int *n);
/* folder/step-000500, of the caller's own. */
char *checkpoint_path(const char *folder, int64_t step);

/* ---- writing ----------------------------------------------------------------------------------
 */

/* Writes checkpoints in the background: training waits for the copy to host memory alone. What one
 * rank alone holds there anyway is written as it is, while training waits. */
typedef struct Saver Saver;

/* Of a run folder, whose checkpoints/ is made; sweeps up what killed writers left. Every rank opens
 * one. */
Saver *saver_open(const Config *c, Model *m, const char *run_folder);
/* Copies the state to host memory; waits first until the one before is written. Every rank must
 * call it. false: writing the one before failed. */
bool saver_copy(Saver *s, const Position *at, Error *e);
/* Begins to write what was copied. Metrics that were recorded before are on the disk before the
 * checkpoint is there. */
void saver_write(Saver *s);
/* Waits until nothing is being written. false: it failed; what was there before is still there. */
bool saver_wait(Saver *s, Error *e);
/* Whether the last one begun has failed already, without waiting. */
bool saver_failed(Saver *s);
void saver_close(Saver *s);
/* Host bytes that copies are kept in, on rank 0, which keeps all masters, or on another. */
int64_t saver_needs(const Model *m, bool first);
