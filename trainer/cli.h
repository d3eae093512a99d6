/* What a verb gets from the command line, and the verbs that there are.
 *
 * A verb prints results on stdout and progress on stderr, and returns the program's exit code
 * (kernels/base.h). Mistakes of the user end it through die, config_die or die_error.
 */
#pragma once

#include "trainer/config.h"

typedef struct {
    const char *verb;         /* "plan" */
    Config *config;           /* defaults, file and arguments, in this order */
    const char *const *files; /* [n_files] what `inspect` looks at; other verbs have none */
    int n_files;
    bool json;   /* --json: results as JSON */
    bool verify; /* --verify (prepare): check what is there, make nothing */
} Call;

int verb_prepare(const Call *call);
int verb_sample(const Call *call);
int verb_probe(const Call *call);
int verb_plan(const Call *call);
int verb_train(const Call *call);
int verb_inspect(const Call *call);
int verb_bench(const Call *call);
int verb_export(const Call *call);
int verb_init(const Call *call);
int verb_doctor(const Call *call);
