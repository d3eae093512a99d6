/* The recipes of configs/, which the build puts into the program. */
#pragma once

typedef struct {
    const char *name; /* "2b-lora": the file's name without .yaml */
    const char *text;
} Recipe;

/* By name; the last one's name is NULL. */
extern const Recipe RECIPES[];
