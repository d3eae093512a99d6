/* The folders of a model's components under model.path. */
#pragma once

#include "kernels/base.h"

/* MODEL_PATH/COMPONENT, or MODEL_PATH itself where that is the component's own folder: the first
 * that holds `file`. The caller frees it. false: *e (EXIT_USER) says what was looked for. */
bool component_folder(const char *model_path, const char *component, const char *file,
                      char **folder, Error *e);
