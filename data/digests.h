/* A file of digests: JSON that holds the size and the XXH3-128 of every file of its folder, and its
 * own digest as "xxh3", for which those 32 digits count as '0'.
 *
 *     {"xxh3": "...", <fields of the writer>, "files": {"config.json": {"bytes": ..., "xxh3":
 * ...}}}
 *
 * A folder of an export or of full weights has digests.json for the files that carry no digest of
 * their own; a checkpoint has manifest.json (trainer/checkpoint.h) for all of them.
 */
#pragma once

#include "kernels/base.h"

struct json_t;

enum { DIGEST_CHARS = 33 }; /* 32 hex digits and a NUL */

typedef struct {
    const char *name;   /* of the file of digests */
    const char *kind;   /* goes into the digests of the files */
    const char *skip;   /* files whose names end so are not listed; NULL: all are */
    const char *advice; /* how an error about damage ends */
} DigestsKind;

extern const DigestsKind FOLDER_DIGESTS; /* digests.json */

/* Digests the files below a folder, but hidden ones, and writes the file. `fields` (NULL: none) is
 * ended. */
bool digests_write(const char *folder, const DigestsKind *kind, struct json_t *fields, Error *e);
/* Reads the file and compares its own digest; NULL: *e (EXIT_USER). The caller ends it with
 * json_decref. */
struct json_t *digests_read(const char *folder, const DigestsKind *kind, Error *e);
/* Compares every file that is listed; false: *e (EXIT_USER) names the first that differs. */
bool digests_verify(const char *folder, const DigestsKind *kind, const struct json_t *digests,
                    Error *e);
