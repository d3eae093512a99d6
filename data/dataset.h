/* Datasets as people have them: which clip goes with which caption.
 *
 *     folder of a.mp4 + a.txt            the caption is the whole text file
 *     videos/1.mp4 + labels/1.txt        the same in two folders (CogVideo's SAT)
 *     prompts.txt + videos.txt           line by line; images.txt, where it is, has first frames.
 *                                        Also prompt, caption, captions, video, image
 * (finetrainers) metadata.csv | .json | .jsonl      file_name, and text, prompt or caption
 *     metadata.jsonl with videos/metadata.jsonl, and images/metadata.jsonl where it is
 *                                        {id, prompt} and {file_name, id} (CogKit)
 *     one clip                           with its .txt beside it
 *
 * Lists are UTF-8, with or without a byte order mark, with any line ends. Paths in them are
 * relative to the folder and stay in it; a symbolic link counts as where it lies. A folder that
 * fits two layouts is an error, for none is more right than another.
 *
 *     Error e;
 *     Dataset d;
 *     if (!dataset_open(&d, "clips", "in the style of ohwx", false, &e)) die_error(&e);
 *     printf("%s\n", d.layout);
 *     for (size_t i = 0; i < d.n_items; i++) ...
 *     dataset_close(&d);
 */
#pragma once

#include "kernels/base.h"

typedef struct {
    char *video, *image; /* paths that can be opened; image NULL: the clip's own first frame */
    char *caption;       /* UTF-8, without white space around it, the trigger before it */
    char *origin;        /* where the caption is from: "prompts.txt:3" */
} DatasetItem;

typedef struct {
    char *layout;       /* what was recognised, as a sentence */
    DatasetItem *items; /* in the order of the list, or of the file names' bytes */
    size_t n_items;
    char **problems; /* what was left out and why, one sentence or two each */
    size_t n_problems;
} Dataset;

/* Reads the lists, and looks whether the files are there; opens no clip. An item that cannot be
 * used is an error, or with `skip_bad` one of the problems. The trigger ("": none) is put before
 * every caption, with a blank unless it ends in white space; only with a trigger may a caption be
 * empty. On failure *d is zeroed and *e tells file and line: EXIT_USER if `path` is not there, else
 * EXIT_DATA. */
bool dataset_open(Dataset *d, const char *path, const char *trigger, bool skip_bad, Error *e);
/* Also right for a zeroed *d. */
void dataset_close(Dataset *d);
