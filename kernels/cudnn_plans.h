/* cuDNN plans that were made: kept by what they are of, in memory and in files.
 *
 * Files lie in $XDG_CACHE_HOME/cogsmith/cudnn (or ~/.cache/cogsmith/cudnn), in a folder for each
 * GPU model and version of cuDNN: making a plan takes half a second, reading one a millisecond. A
 * file that is not whole is made anew; where none can be written the program says so once and
 * goes on.
 */
#pragma once

#include "kernels/cudnn_graph.h"

enum { DNN_KEY = 160 };

C_BEGIN

typedef struct DnnPlans DnnPlans;

/* `folder` NULL: that of the GPU that the process has opened. */
DnnPlans *dnn_plans_open(DnnHandle handle, const char *folder);
void dnn_plans_close(void *plans);

/* The plan named `key` (letters, digits, '-', '_', '.' only), of the graph that `graph(what)`
 * builds when it has to be made. Ends the program (exit 1) where cuDNN makes none. */
const DnnPlan *dnn_plans_find(DnnPlans *p, const char *key, const DnnRules *r,
                              DnnGraph *(*graph)(const void *what), const void *what);

/* The file's form, apart from where it lies: bytes to write, to be freed; and the plan's part of
 * what was read, NULL: not whole, or of another key. */
char *dnn_plan_file(const char *key, const char *text, size_t bytes, size_t *file_bytes);
const char *dnn_plan_file_text(const char *key, const char *file, size_t file_bytes, size_t *bytes);

C_END
