/* One HDF5 part of a cache: rows of u16 arrays in groups, and a text. Only cache.c uses it. */
#pragma once

#include "kernels/base.h"

enum { PART_MAX_DIMS = 5 };

typedef struct PartWriter PartWriter;
/* A new part, in memory until part_finish writes it to `path`. NULL: *e (EXIT_WORLD). */
PartWriter *part_create(const char *path, Error *e);
/* Appends one row [dims] of bf16 to `group/name`, made on first use; *row is its place. */
bool part_append(PartWriter *p, const char *group, const char *name, int n_dims,
                 const int64_t *dims, const uint16_t *values, int64_t *row, Error *e);
/* Writes `text` as /entries and closes the file. Ends the use of p, also on failure. */
bool part_finish(PartWriter *p, const char *text, Error *e);
void part_abandon(PartWriter *p);

typedef struct PartReader PartReader;
/* NULL: *e (EXIT_DATA). */
PartReader *part_open(const char *path, Error *e);
/* Row `row` of group/name, which must have rows of `count` values. */
bool part_read(PartReader *p, const char *group, const char *name, int64_t row, int64_t count,
               uint16_t *values, Error *e);
/* /entries; the caller frees it. NULL: *e. */
char *part_entries(PartReader *p, Error *e);
void part_close(PartReader *p);
