/* `cogsmith init DIR`: a run's folder with the commented config of one recipe. */
#define _XOPEN_SOURCE 700
#include "data/nearest.h"
#include "data/whole.h"
#include "trainer/cli.h"
#include "trainer/recipes.h"

#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define SHIPPED "configs/tiny/"

/* "1.5-5b-full, ..., tiny"; the caller frees it. */
static char *list_recipes(void) {
    char *text = xstrdup("");
    for (const Recipe *r = RECIPES; r->name; r++) {
        char *longer = xprintf("%s%s%s", text, *text ? ", " : "", r->name);
        free(text);
        text = longer;
    }
    return text;
}

static const Recipe *find_recipe(const Config *c) {
    const char *name = c->init.preset;
    if (!name) {
        char *list = list_recipes();
        config_die(c, "init.preset", "not set; give one as init.preset=2b-lora; there are: %s",
                   list);
    }
    Nearest near = nearest_to(name);
    for (const Recipe *r = RECIPES; r->name; r++) {
        if (!strcmp(r->name, name)) return r;
        nearest_offer(&near, r->name);
    }
    char *list = list_recipes();
    if (near.best)
        config_die(c, "init.preset", "no recipe '%.80s'; did you mean '%s'? There are: %s", name,
                   near.best, list);
    config_die(c, "init.preset", "no recipe '%.80s'; there are: %s", name, list);
}

/* The checkout in whose build/ this program lies; the caller frees it. NULL: it lies elsewhere. */
static char *checkout(void) {
    char *program = realpath("/proc/self/exe", NULL);
    if (!program) return NULL;
    char *folder = xstrdup(dirname(dirname(program))), *model = xprintf("%s/" SHIPPED, folder);
    struct stat info;
    bool there = !stat(model, &info);
    free(program);
    free(model);
    if (there) return folder;
    free(folder);
    return NULL;
}

/* The recipe, of the caller's own. Paths begin at the current folder: elsewhere than in a checkout
 * those to what the project ships are written whole. */
static char *text_here(const Recipe *recipe) {
    char *text = xstrdup(recipe->text), *root = NULL;
    struct stat info;
    if (!strstr(text, SHIPPED) || !stat(SHIPPED, &info)) return text;
    if (!(root = checkout()))
        die("init.preset: '%s' is for a checkout of cogsmith, with " SHIPPED
            "; go there, and start it again",
            recipe->name);
    for (char *at = text; (at = strstr(at, SHIPPED));) {
        char *longer = xprintf("%.*s%s/%s", (int)(at - text), text, root, at);
        at = longer + (at - text) + strlen(root) + strlen("/" SHIPPED);
        free(text);
        text = longer;
    }
    free(root);
    return text;
}

int verb_init(const Call *call) {
    if (call->n_files != 1)
        die("command line: '%.80s': init makes one run; give one DIR", call->files[1]);
    const Recipe *recipe = find_recipe(call->config);
    char *folder = xstrdup(call->files[0]);
    for (size_t n = strlen(folder); n > 1 && folder[n - 1] == '/'; n--) folder[n - 1] = 0;
    char *path = xprintf("%s/config.yaml", folder);
    struct stat info;
    if (!lstat(path, &info))
        die("%.300s: is there already, and is not written over; choose another DIR, or move it "
            "away",
            path);
    Error e;
    char *text = text_here(recipe);
    if (!folders_make(folder, &e) || !whole_text(path, text, &e)) die_error(&e);
    printf("%s\n", path);
    free(text);
    free(path);
    free(folder);
    return 0;
}
