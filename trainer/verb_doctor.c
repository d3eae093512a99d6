/* `cogsmith doctor`: what this machine gives to a run, what is wrong with it and how to mend it. */
#define _GNU_SOURCE
#include "data/video.h"
#include "kernels/comm.h"
#include "trainer/cli.h"
#include "trainer/inspect.h"
#include "trainer/profile.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { LINE = 400, MAX_ROWS = 24 };

static const double GIB = 1 << 30;
static const double LITTLE_DISK = 20, LITTLE_MEMORY = 4, LITTLE_SHARED = 0.06; /* GiB */

/* FINE and NOTE leave the machine usable; WRONG does not. */
typedef enum { FINE, NOTE, WRONG } State;

typedef struct {
    const char *name;
    State state;
    char found[LINE], mend[LINE]; /* mend "": nothing to do */
} Row;

typedef struct {
    Row rows[MAX_ROWS];
    int n;
} Doctor;

static Row *add(Doctor *d, const char *name) {
    CHECK(d->n < MAX_ROWS, "doctor: more than %d rows", MAX_ROWS);
    d->rows[d->n].name = name;
    return &d->rows[d->n++];
}

/* Says what is wrong, and how to mend it. */
static void complain(Row *r, State state, const char *mend) {
    r->state = state;
    snprintf(r->mend, LINE, "%s", mend);
}

/* The text after ':' of the first line of a file that begins with `key`; false: there is none. */
static bool line_of(const char *path, const char *key, char *value) {
    FILE *f = fopen(path, "r");
    char line[LINE];
    bool found = false;
    while (f && !found && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        found = colon && !strncmp(line, key, strlen(key));
        if (!found) continue;
        value[0] = 0;
        sscanf(colon + 1, " %399[^\n]", value);
    }
    if (f) fclose(f);
    return found;
}

/* The first line that a command prints; false: it fails. */
static bool first_line(const char *command, char line[LINE]) {
    FILE *f = popen(command, "r");
    line[0] = 0;
    bool got = f && fgets(line, LINE, f);
    line[strcspn(line, "\n")] = 0;
    return f && !pclose(f) && got;
}

/* ---- the machine ------------------------------------------------------------------------------
 */

static void check_cpu(Doctor *d) {
    char model[LINE] = "unknown";
    line_of("/proc/cpuinfo", "model name", model);
    Row *r = add(d, "cpu");
    snprintf(r->found, LINE, "%.200s, %ld cores here", model, sysconf(_SC_NPROCESSORS_ONLN));
    const char *threads = getenv("OMP_NUM_THREADS");
    if (!threads) return;
    size_t n = strlen(r->found);
    snprintf(r->found + n, LINE - n, ", OMP_NUM_THREADS=%.20s", threads);
}

static void check_speed(Doctor *d) {
    Profile p = profile_measure();
    Row *r = add(d, "speed");
    snprintf(r->found, LINE, "%d-bit vectors; %.0f GFLOP/s in products, %.1f GB/s of memory, f32",
             8 * VECTOR_BYTES, p.matmul_flops / 1e9, p.memory_rate / 1e9);
}

static void check_memory(Doctor *d) {
    char total[LINE] = "0", available[LINE] = "0";
    line_of("/proc/meminfo", "MemTotal", total);
    line_of("/proc/meminfo", "MemAvailable", available);
    double gib = atof(available) * 1024 / GIB;
    Row *r = add(d, "memory");
    snprintf(r->found, LINE, "%.1f GiB, %.1f GiB of it free", atof(total) * 1024 / GIB, gib);
    if (gib < LITTLE_MEMORY)
        complain(r, NOTE, "little: close other programs; `cogsmith plan` says what a run needs");
}

/* What the kernel shows, whether this program can use it or not. */
static const char *gpu_seen(void) {
    bool driver = !access("/proc/driver/nvidia/version", F_OK),
         device = !access("/dev/nvidia0", F_OK);
    return driver && device ? "an NVIDIA GPU is here; "
           : driver         ? "an NVIDIA driver is here, and no device; "
                            : "";
}

static void describe_gpu(Row *r, const CudaDevice *gpu) {
    snprintf(r->found, LINE,
             "%.80s, compute capability %d.%d, %.1f GiB, %.1f GiB of it free; the driver runs CUDA "
             "%s; built with CUDA %s; cuBLASLt %s, cuDNN %s",
             gpu->name, gpu->major, gpu->minor, (double)gpu->total_bytes / GIB,
             (double)gpu->free_bytes / GIB, gpu->driver, gpu->runtime,
             *gpu->blas ? gpu->blas : "missing", *gpu->dnn ? gpu->dnn : "missing");
    if (gpu->trouble.exit_code) complain(r, NOTE, gpu->trouble.text);
}

/* What several GPUs work together with; where there is one, that it is missing is no harm. */
static void check_nccl(Doctor *d, int gpus) {
    Row *r = add(d, "nccl");
    char version[16];
    Error e;
    if (nccl_library(version, &e)) {
        snprintf(r->found, LINE, "version %s, for several ranks on GPUs", version);
        return;
    }
    snprintf(r->found, LINE, "%.390s", e.text);
    if (gpus > 1) complain(r, NOTE, "until then one rank can train, on one of the GPUs");
}

static void check_gpu(Doctor *d) {
    static const char *const NAMES[] = {"gpu 0", "gpu 1", "gpu 2", "gpu 3",
                                        "gpu 4", "gpu 5", "gpu 6", "gpu 7"};
    CudaDevice gpus[COUNT(NAMES)];
    Error e = {0};
    int count = cuda_devices(gpus, COUNT(gpus), &e);
    for (int i = 0; i < MIN(count, (int)COUNT(gpus)); i++) describe_gpu(add(d, NAMES[i]), &gpus[i]);
    if (!count) {
        Row *r = add(d, "gpu");
        snprintf(r->found, LINE, "%s%.330s", gpu_seen(), e.text);
        complain(r, NOTE,
                 "until then the CPU is used: the tiny model trains there in minutes, the "
                 "published ones need a GPU: plan for one with plan.device=rtx4090");
    }
    check_nccl(d, count);
}

/* ---- what it works with -----------------------------------------------------------------------
 */

static void check_libraries(Doctor *d) {
    snprintf(add(d, "cogsmith")->found, LINE, "version %s", COGSMITH_VERSION);
    snprintf(add(d, "libraries")->found, LINE, "%s", COGSMITH_LIBRARIES);
}

static void check_mpi(Doctor *d) {
    Row *r = add(d, "mpi");
    char version[LINE];
    bool mpirun = first_line("mpirun --version 2>/dev/null", version);
    if (!COGSMITH_MPI) {
        snprintf(r->found, LINE, "built without MPI: one rank");
        complain(r, NOTE, "for several ranks install libopenmpi-dev and build again");
        return;
    }
    snprintf(r->found, LINE, "%.300s", mpirun ? version : "built with MPI; no mpirun on the PATH");
    if (!mpirun) complain(r, NOTE, "for several ranks install openmpi-bin");
    if (mpirun && !geteuid() &&
        (!getenv("OMPI_ALLOW_RUN_AS_ROOT") || !getenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")))
        complain(r, NOTE,
                 "as root mpirun wants OMPI_ALLOW_RUN_AS_ROOT=1 and "
                 "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; better, be another user");
}

/* A file that is no video is refused by a decoder that works: anything else is the machine. */
static void check_decoder(Doctor *d) {
    Row *r = add(d, "decoder");
    Error e = {0};
    VideoInfo info;
    VideoReader *reader = video_reader_open(NULL, &e);
    if (reader) video_probe(reader, "/proc/self/status", &info, &e);
    video_reader_close(reader);
    if (e.exit_code == EXIT_DATA) {
        snprintf(r->found, LINE, "starts, and is shut in its sandbox");
        return;
    }
    snprintf(r->found, LINE, "does not start: %.300s", e.text);
    complain(r, WRONG,
             "videos cannot be read: allow seccomp and memfd_create here (a container's profile?)");
}

/* ---- where it writes --------------------------------------------------------------------------
 */

static void check_disk(Doctor *d) {
    Row *r = add(d, "disk");
    struct statvfs fs;
    char here[LINE] = "this folder";
    if (!getcwd(here, sizeof here)) snprintf(here, sizeof here, "this folder");
    if (statvfs(".", &fs)) {
        snprintf(r->found, LINE, "%.200s cannot be asked", here);
        complain(r, WRONG, "go to a folder that is there");
        return;
    }
    double gib = (double)fs.f_bavail * (double)fs.f_frsize / GIB;
    bool writable = !access(".", W_OK | X_OK);
    snprintf(r->found, LINE, "%.1f GiB free in %.200s%s", gib, here,
             writable ? "" : ", which you may not write to");
    if (!writable)
        complain(r, NOTE, "runs write where train.out says: choose a folder of yours");
    else if (gib < LITTLE_DISK)
        complain(r, NOTE, "little: a 5B model has 20 GB, its LoRA checkpoints 2 GB each");
}

static void check_limits(Doctor *d) {
    struct rlimit file;
    if (getrlimit(RLIMIT_FSIZE, &file) || file.rlim_cur == RLIM_INFINITY) return;
    Row *r = add(d, "file size");
    snprintf(r->found, LINE, "limited to %.1f GiB a file", (double)file.rlim_cur / GIB);
    complain(r, (double)file.rlim_cur < GIB ? WRONG : NOTE, "lift it with `ulimit -f unlimited`");
}

static void check_shared(Doctor *d) {
    struct statvfs fs;
    Row *r = add(d, "/dev/shm");
    if (statvfs("/dev/shm", &fs)) {
        snprintf(r->found, LINE, "not there");
        complain(r, NOTE, "ranks on one machine talk through it: mount a tmpfs there");
        return;
    }
    double gib = (double)fs.f_bavail * (double)fs.f_frsize / GIB;
    snprintf(r->found, LINE, "%.1f GiB free", gib);
    if (gib < LITTLE_SHARED)
        complain(r, NOTE, "ranks on one machine talk through it: docker run --shm-size=1g");
}

/* ---- the report -------------------------------------------------------------------------------
 */

static const char *const STATES[] = {[FINE] = "ok", [NOTE] = "note", [WRONG] = "wrong"};

static void print_table(const Doctor *d, bool usable) {
    for (int i = 0; i < d->n; i++) {
        const Row *r = &d->rows[i];
        printf("%-5s  %-10s %s\n", STATES[r->state], r->name, r->found);
        if (*r->mend) printf("       %-10s -> %s\n", "", r->mend);
    }
    printf("%s\n",
           usable ? "cogsmith can work here" : "cogsmith cannot work here: mend what is wrong");
}

static void print_json(const Doctor *d, bool usable) {
    json_t *rows = json_array();
    for (int i = 0; i < d->n; i++) {
        const Row *r = &d->rows[i];
        json_t *row = json_pack("{s:s, s:s, s:o, s:o}", "name", r->name, "state", STATES[r->state],
                                "found", inspect_text(r->found), "mend",
                                *r->mend ? json_string(r->mend) : json_null());
        CHECK(row, "doctor: JSON");
        json_array_append_new(rows, row);
    }
    json_t *report = json_pack("{s:b, s:o}", "usable", (int)usable, "checks", rows);
    json_dumpf(report, stdout, JSON_INDENT(2));
    printf("\n");
    json_decref(report);
}

int verb_doctor(const Call *call) {
    Doctor d = {0};
    check_cpu(&d);
    check_speed(&d);
    check_memory(&d);
    check_gpu(&d);
    check_libraries(&d);
    check_mpi(&d);
    check_decoder(&d);
    check_disk(&d);
    check_limits(&d);
    check_shared(&d);
    bool usable = true;
    for (int i = 0; i < d.n; i++) usable &= d.rows[i].state != WRONG;
    if (call->json)
        print_json(&d, usable);
    else
        print_table(&d, usable);
    return usable ? 0 : EXIT_WORLD;
}
