/* `cogsmith inspect FILE...`: what is in a model folder, a component, an adapter or a tensor file.
 *
 * A file that cannot be read costs its own report alone: the others are printed, and the exit code
 * is that of the first failure. */
#include "trainer/cli.h"
#include "trainer/inspect.h"

#include <jansson.h>
#include <stdio.h>

int verb_inspect(const Call *call) {
    int code = 0;
    json_t *reports = json_array();
    for (int i = 0; i < call->n_files; i++) {
        Error e = {0};
        json_t *report = inspect_path(call->files[i], &e);
        if (!report) {
            fprintf(stderr, "cogsmith: %s\n", e.text);
            if (!code) code = e.exit_code;
        } else if (call->json) {
            json_array_append(reports, report);
        } else {
            inspect_print(report);
        }
        json_decref(report);
    }
    if (json_array_size(reports)) {
        json_dumpf(reports, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
        printf("\n");
    }
    json_decref(reports);
    return code;
}
