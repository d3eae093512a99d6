/* The command line: finds the verb, builds its Call, runs it. */
#define _XOPEN_SOURCE 700
#include "data/nearest.h"
#include "kernels/comm.h"
#include "trainer/cli.h"
#include "trainer/same.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OPTION_JSON = 1, OPTION_VERIFY = 2 };

typedef struct {
    const char *name, *summary;
    const char *sections; /* of the configuration: the keys that the verb uses */
    int options;
    const char *operands; /* what positional arguments are; NULL: a config */
    int (*run)(const Call *call);
} Verb;

static const Verb VERBS[] = {
    {"init", "makes a run: a commented config.yaml for a model and a method", "init", 0, "DIR",
     verb_init},
    {"prepare", "clips and captions into the cache of latents and embeddings",
     "model data vae memory device", OPTION_VERIFY, NULL, verb_prepare},
    {"plan", "peak memory, traffic and step time of a run, before it runs",
     "plan model method lora data train memory ranks device", OPTION_JSON, NULL, verb_plan},
    {"train", "trains, checkpoints, and goes on by itself where it stopped",
     "model method lora data train sample vae memory ranks device", 0, NULL, verb_train},
    {"sample", "videos from text, an image or a video, with or without an adapter",
     "sample model vae memory device", 0, NULL, verb_sample},
    {"export", "an adapter or a full model in another runtime's format", "export model", 0, NULL,
     verb_export},
    {"inspect", "what is in a model folder, adapter, cache or checkpoint", "", OPTION_JSON,
     "FILE...", verb_inspect},
    {"doctor", "machine, libraries, GPU, MPI, disk: what is wrong and how to mend it", "",
     OPTION_JSON, NULL, verb_doctor},
    {"bench", "ops and steps timed, with their share of the machine's limit",
     "bench model method lora data train vae memory ranks device", OPTION_JSON, NULL, verb_bench},
    {"probe", "one computation with every input from a file, to compare implementations",
     "probe model method lora train vae memory device", 0, NULL, verb_probe},
};

static const struct {
    const char *name, *doc;
    int bit;
} OPTIONS[] = {
    {"--json", "print results as JSON", OPTION_JSON},
    {"--verify", "check what is there and make nothing", OPTION_VERIFY},
};

static const char USAGE[] = "usage: cogsmith VERB [config.yaml] [key.path=value ...]\n"
                            "       cogsmith VERB --help | --help | --version\n";

static const char EXITS[] =
    "exit codes: 0 done; 1 failure of the world (disk, GPU, rank); 2 mistake in the call, the\n"
    "configuration or an input file; 3 data could not be used; 75 stopped on request\n";

static void print_usage(FILE *out) {
    fprintf(out, "%s\nverbs:\n", USAGE);
    for (size_t i = 0; i < COUNT(VERBS); i++)
        fprintf(out, "  %-10s %s\n", VERBS[i].name, VERBS[i].summary);
    fprintf(out, "\n%s", EXITS);
}

static void print_verb_help(const Verb *verb) {
    printf("usage: cogsmith %s %s", verb->name,
           verb->operands ? verb->operands : "[config.yaml] [key.path=value ...]");
    for (size_t i = 0; i < COUNT(OPTIONS); i++)
        if (verb->options & OPTIONS[i].bit) printf(" [%s]", OPTIONS[i].name);
    printf("\n\n%s.\n", verb->summary);
    for (size_t i = 0; i < COUNT(OPTIONS); i++)
        if (verb->options & OPTIONS[i].bit)
            printf("\n  %-10s %s\n", OPTIONS[i].name, OPTIONS[i].doc);
    if (!*verb->sections) return;
    printf("\nkeys [default], in the YAML file as nested mappings or here as key.path=value:\n");
    config_help(verb->sections);
}

static const Verb *find_verb(const char *name) {
    const char *names[COUNT(VERBS)];
    for (size_t i = 0; i < COUNT(VERBS); i++) {
        if (!strcmp(VERBS[i].name, name)) return &VERBS[i];
        names[i] = VERBS[i].name;
    }
    const char *near = nearest_name(name, names, COUNT(names));
    if (near) die("command line: '%.80s' is not a verb; did you mean '%s'?", name, near);
    die("command line: '%.80s' is not a verb; `cogsmith --help` lists them", name);
}

static int find_option(const Verb *verb, const char *name) {
    const char *names[COUNT(OPTIONS)];
    for (size_t i = 0; i < COUNT(OPTIONS); i++) {
        if (!strcmp(OPTIONS[i].name, name) && (verb->options & OPTIONS[i].bit))
            return OPTIONS[i].bit;
        names[i] = OPTIONS[i].name;
    }
    if (strchr(name, '='))
        die("command line: '%.80s': keys are given without dashes, as lora.rank=64", name);
    const char *near = nearest_name(name, names, COUNT(names));
    if (near && strcmp(near, name))
        die("command line: '%.80s' is not an option; did you mean '%s'?", name, near);
    die("command line: '%.80s' is not an option of %s; see `cogsmith %s --help`", name, verb->name,
        verb->name);
}

/* key=value, and not a path that happens to hold '='. */
static bool is_assignment(const char *arg) { return arg[strcspn(arg, "=/")] == '='; }

static void read_config(Config *config, const Verb *verb, int n, char **args) {
    const char *file = NULL;
    Error e = {0};
    for (int i = 0; i < n && !verb->operands; i++) {
        if (args[i][0] == '-' || is_assignment(args[i])) continue;
        if (file)
            die("command line: '%.80s': one config file is read and '%.80s' is it; keys are given "
                "as key.path=value",
                args[i], file);
        file = args[i];
        if (!config_read_file(config, file, &e)) die_error(&e);
    }
    for (int i = 0; i < n; i++)
        if (args[i][0] != '-' && is_assignment(args[i]) && !config_assign(config, args[i], &e))
            die_error(&e);
}

static int run_verb(const Verb *verb, int n, char **args) {
    int options = 0;
    for (int i = 0; i < n; i++) {
        if (args[i][0] != '-') continue;
        if (!strcmp(args[i], "--help") || !strcmp(args[i], "-h")) {
            print_verb_help(verb);
            return 0;
        }
        options |= find_option(verb, args[i]);
    }
    Config *config = config_new();
    read_config(config, verb, n, args);
    const char **files = xcalloc(n, sizeof *files);
    Call call = {.verb = verb->name, .config = config, .files = files};
    for (int i = 0; i < n && verb->operands; i++)
        if (args[i][0] != '-' && !is_assignment(args[i])) files[call.n_files++] = args[i];
    if (verb->operands && !call.n_files)
        die("command line: %s needs %s %.*s; see `cogsmith %s --help`", verb->name,
            strstr(verb->operands, "...") ? "at least one" : "one",
            (int)strcspn(verb->operands, "."), verb->operands, verb->name);
    call.json = options & OPTION_JSON;
    call.verify = options & OPTION_VERIFY;
    ranks_program(verb->name);
    int code = verb->run(&call);
    comm_meet(config->ranks.timeout);
    free(files);
    config_free(config);
    return code;
}

static int run_program(int argc, char **argv) {
    if (argc < 2) {
        print_usage(stderr);
        return EXIT_USER;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        print_usage(stdout);
        return 0;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("cogsmith %s\n", COGSMITH_VERSION);
        return 0;
    }
    return run_verb(find_verb(argv[1]), argc - 2, argv + 2);
}

/* OpenMP's threads would spin for milliseconds after each parallel region. Beside another busy
 * process that makes a step up to twenty times slower, and alone it gains nothing over a short
 * spin. The library reads its setting before main begins: so the program begins again with it. */
static void spin_briefly(char **argv) {
    char path[4096] = ""; /* by its name: that is how people find the process */
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
    if (!setenv("GOMP_SPINCOUNT", "1000", 1) &&
        readlink("/proc/self/exe", path, sizeof path - 1) > 0)
        execv(path, argv);
}

/* A page of a mapped file is not to be had. Whoever reads it cannot go on, on whatever thread. */
static void lose_page(int number) {
    static const char text[] = "cogsmith: a file was cut short while it was read, or its disk "
                               "failed: see that nothing writes to it, and start again\n";
    (void)number;
    ssize_t written = write(STDERR_FILENO, text, sizeof text - 1);
    (void)written;
    _exit(EXIT_WORLD);
}

/* More than mpirun takes to end the other ranks once one has failed. */
static const double END_SECONDS = 2;

int main(int argc, char **argv) {
    spin_briefly(argv);
    if (comm_world_rank()) die_after(END_SECONDS, xprintf("rank %d: ", comm_world_rank()));
    signal(SIGBUS, lose_page);
    signal(SIGXFSZ, SIG_IGN); /* a file size limit is then a failed write, like a full disk */
    int code = run_program(argc, argv);
    if (fflush(stdout) || ferror(stdout)) {
        fprintf(stderr, "cogsmith: cannot write the results to stdout: %s\n", strerror(errno));
        return code ? code : EXIT_WORLD;
    }
    return code;
}
