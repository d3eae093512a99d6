/* Where the videos of a call go. */
#pragma once

#include "trainer/config.h"

typedef struct {
    char **items; /* one for each prompt */
    int count;
    bool sheet; /* contact sheets (.png), not videos */
} SamplePaths;

/* sample.out, or without it a name made of the prompt and the seed, in the current folder; with
 * sample.prompts the files 000.mp4, 001.mp4, ... in the folder sample.out [samples], which is made.
 * Ends the program where nothing could be written there (exit 2). */
SamplePaths sample_paths(const Config *c, const StringList *prompts);
void sample_paths_free(SamplePaths *p);
