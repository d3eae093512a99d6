/* Owns the reader's side: the decoding process, its deadline, and what may be believed of it. */
#define _GNU_SOURCE
#include "data/image.h"
#include "data/video_child.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct VideoReader {
    VideoLimits limits;
    pid_t child; /* leads its process group; 0: none */
    int socket;
    int memory; /* descriptor of the shared memory; -1: none yet */
    uint8_t *shared;
    int64_t shared_bytes;
};

int64_t video_frames_at(const VideoInfo *info, double fps) {
    /* As many as last until the clip ends, and every one that begins with a source frame. */
    static const double NOISE = 1e-3; /* of time stamps in milliseconds, in frames */
    int64_t lasting = llround(info->seconds * fps);
    int64_t beginning = (int64_t)floor(info->last_second * fps + NOISE) + 1;
    return MAX(lasting, beginning);
}

int64_t video_windows(const VideoInfo *info, const VideoWant *want) {
    int64_t slack = video_frames_at(info, want->fps) - want->frames;
    return slack < 0 ? 0 : MIN(want->windows, slack + 1);
}

int64_t video_window_start(int64_t slack, int64_t n, int64_t i) {
    return n < 2 ? slack / 2 : i * slack / (n - 1);
}

/* Starts the process in a group of its own; false: errno. */
static bool spawn_child(VideoReader *r, int socket) {
    char *argv[] = {(char *)VIDEO_CHILD_NAME, NULL};
    posix_spawn_file_actions_t files;
    posix_spawnattr_t how;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&files);
    for (int fd = 0; fd < 3; fd++)
        posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_RDWR, 0);
    posix_spawn_file_actions_adddup2(&files, socket, VIDEO_CHILD_SOCKET);
    posix_spawnattr_init(&how);
    posix_spawnattr_setflags(&how, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK |
                                       POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setpgroup(&how, 0);
    posix_spawnattr_setsigmask(&how, &none);
    posix_spawnattr_setsigdefault(&how, &all);
    errno = posix_spawn(&r->child, "/proc/self/exe", &files, &how, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&how);
    return !errno;
}

static bool start_child(VideoReader *r, Error *e) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return error_set(e, EXIT_WORLD, "No socket for the decoder: %s.", strerror(errno));
    if (pair[1] == VIDEO_CHILD_SOCKET) { /* dup2 onto itself would leave it closed on exec */
        int other = fcntl(pair[1], F_DUPFD_CLOEXEC, VIDEO_CHILD_SOCKET + 1);
        close(pair[1]);
        pair[1] = other;
    }
    bool ok = pair[1] >= 0 && spawn_child(r, pair[1]);
    int reason = errno;
    if (pair[1] >= 0) close(pair[1]);
    r->socket = pair[0];
    if (ok) return true;
    close(pair[0]);
    r->child = 0;
    return error_set(e, EXIT_WORLD,
                     "The decoder cannot be started: %s. It is this program, run "
                     "through /proc/self/exe.",
                     strerror(reason));
}

/* Ends the process and what it forked, whatever they do. */
static void stop_child(VideoReader *r) {
    if (!r->child) return;
    close(r->socket);
    kill(-r->child, SIGKILL);
    while (waitpid(r->child, NULL, 0) < 0 && errno == EINTR) {
    }
    r->child = 0;
}

VideoReader *video_reader_open(const VideoLimits *limits, Error *e) {
    VideoReader *r = xcalloc(1, sizeof *r);
    r->limits = limits ? *limits : VIDEO_LIMITS;
    r->memory = -1;
    if (start_child(r, e)) return r;
    free(r);
    return NULL;
}

static void drop_memory(VideoReader *r) {
    if (r->shared) munmap(r->shared, (size_t)r->shared_bytes);
    if (r->memory >= 0) close(r->memory);
    r->shared = NULL;
    r->memory = -1;
    r->shared_bytes = 0;
}

void video_reader_close(VideoReader *r) {
    if (!r) return;
    stop_child(r);
    drop_memory(r);
    free(r);
}

int video_reader_group(const VideoReader *r) { return (int)r->child; }

/* Shared memory of at least so many bytes, which nobody can make smaller: else reading it could be
 * made to fail. */
static bool need_memory(VideoReader *r, int64_t bytes, Error *e) {
    if (r->shared && r->shared_bytes >= bytes) return true;
    drop_memory(r);
    r->memory = memfd_create("cogsmith-frames", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    bool ok = r->memory >= 0 && !ftruncate(r->memory, bytes) &&
              !fcntl(r->memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    void *p = ok ? mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, r->memory, 0)
                 : MAP_FAILED;
    if (p == MAP_FAILED) {
        error_set(e, EXIT_WORLD, "No %lld bytes of memory for decoded frames: %s.",
                  (long long)bytes, strerror(errno));
        drop_memory(r);
        return false;
    }
    r->shared = p;
    r->shared_bytes = bytes;
    return true;
}

/* A readable file that is one, or -1. */
static int open_file(const char *path, int64_t *bytes, Error *e) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* a pipe must not hang us */
    if (fd < 0) {
        error_set(e, EXIT_DATA, "%.400s: cannot be read: %s.", path, strerror(errno));
        return -1;
    }
    if (fstat(fd, &st) || !S_ISREG(st.st_mode) || !st.st_size) {
        error_set(e, EXIT_DATA, "%.400s: %s.", path,
                  S_ISREG(st.st_mode) ? "is empty" : "is not a file");
        close(fd);
        return -1;
    }
    *bytes = st.st_size;
    return fd;
}

static bool send_request(const VideoReader *r, const VideoRequest *request, int file) {
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control = {0};
    struct iovec data = {.iov_base = (void *)request, .iov_len = sizeof *request};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(2 * sizeof(int));
    memcpy(CMSG_DATA(header), (int[]){file, r->memory}, 2 * sizeof(int));
    return sendmsg(r->socket, &message, MSG_NOSIGNAL) == sizeof *request;
}

typedef enum { CHILD_ENDED, CHILD_LATE, CHILD_GONE } Outcome;

/* Waits for the fork's end, at most until the deadline. */
static Outcome await(const VideoReader *r, double deadline, int *status) {
    for (;;) {
        double left = deadline - now_seconds();
        if (left <= 0) return CHILD_LATE;
        struct pollfd p = {.fd = r->socket, .events = POLLIN};
        int n = poll(&p, 1, (int)fmin(ceil(left * 1000), 1e6));
        if (n < 0 && errno != EINTR) return CHILD_GONE;
        if (n > 0) break;
    }
    return recv(r->socket, status, sizeof *status, MSG_DONTWAIT) == sizeof *status ? CHILD_ENDED
                                                                                   : CHILD_GONE;
}

/* Why a decoder that did not finish ended. */
static bool explain(const VideoReader *r, const char *path, int status, Error *e) {
    int signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    if (signal == SIGXCPU)
        return error_set(e, EXIT_DATA, "%.400s: decoding took more than %lld s of computing.", path,
                         (long long)r->limits.cpu_seconds);
    if (signal == SIGSYS)
        return error_set(e, EXIT_DATA,
                         "%.400s: decoding was stopped: it asked the system for what no decoder "
                         "needs. Do not trust this file.",
                         path);
    if (signal)
        return error_set(e, EXIT_DATA, "%.400s: the decoder crashed on it (%s).", path,
                         strsignal(signal));
    return error_set(e, EXIT_WORLD,
                     "%.400s: the decoder could not start (out of memory or "
                     "processes?).",
                     path);
}

static void tame(char *text, size_t n) {
    text[n - 1] = 0;
    for (char *c = text; *c; c++)
        if (*c < ' ' || *c > '~') *c = '?';
}

static bool within(double v, double low, double high) { return v >= low && v <= high; }

/* Whether what the decoder says of a file can be true. Also ends its texts. */
static bool believe(VideoReply *p) {
    VideoInfo *i = &p->info;
    double side = 1e6;
    tame(p->text, sizeof p->text);
    tame(i->container, sizeof i->container);
    tame(i->codec, sizeof i->codec);
    tame(i->pixel_format, sizeof i->pixel_format);
    if (p->exit_code) return p->exit_code == EXIT_DATA || p->exit_code == EXIT_WORLD;
    return within(i->seconds, 0, 1e6) && within(i->last_second, 0, i->seconds) &&
           within(i->fps, 0, 1e9) && within((double)i->frames, 1, 1e9) &&
           within((double)i->width, 1, side) && within((double)i->height, 1, side) &&
           within((double)i->stored_width, 1, side) && within((double)i->stored_height, 1, side) &&
           (i->rotation % 90 == 0 && within(i->rotation, 0, 270)) && within(i->hdr, 0, 1) &&
           within((double)p->clip.first_frame, 0, 1e9) && within(p->clip.first_second, 0, 1e6);
}

/* Sends the request and takes what comes back; a decoder that is late or gone is ended, and the
 * next request starts another. */
static bool ask(VideoReader *r, const char *path, const VideoRequest *request, int file,
                VideoReply *reply, Error *e) {
    int status = 0;
    double deadline = now_seconds() + r->limits.seconds;
    if (!r->child && !start_child(r, e)) return false;
    /* A decoder that died between two files is nobody's fault. */
    if (!send_request(r, request, file)) {
        stop_child(r);
        if (!start_child(r, e)) return false;
        if (!send_request(r, request, file))
            return error_set(e, EXIT_WORLD, "%.400s: the decoder does not start.", path);
    }
    Outcome outcome = await(r, deadline, &status);
    if (outcome != CHILD_ENDED) stop_child(r);
    if (outcome == CHILD_LATE)
        return error_set(e, EXIT_DATA, "%.400s: decoding took longer than %g s and was stopped.",
                         path, r->limits.seconds);
    if (outcome == CHILD_GONE)
        return error_set(e, EXIT_DATA, "%.400s: the decoding process ended while it was at work.",
                         path);
    memcpy(reply, r->shared, sizeof *reply);
    if (status || reply->exit_code == VIDEO_UNFINISHED) return explain(r, path, status, e);
    if (!believe(reply))
        return error_set(e, EXIT_DATA, "%.400s: the decoder's answer makes no sense.", path);
    if (!reply->exit_code) return true;
    return error_set(e, reply->exit_code, "%.400s: %.700s.", path, reply->text);
}

/* One task on one file. On success the pixels are in r->shared. */
static bool perform(VideoReader *r, const char *path, VideoTask task, const VideoWant *want,
                    int64_t window, VideoReply *reply, Error *e) {
    VideoRequest request = {.task = task, .window = window, .limits = r->limits};
    int64_t pixels = 0;
    if (want) {
        request.want = *want;
        pixels = 3 * want->frames * want->height * want->width;
    }
    int file = open_file(path, &request.file_bytes, e);
    if (file < 0) return false;
    bool ok = need_memory(r, VIDEO_PIXELS + pixels, e);
    if (ok) {
        request.shared_bytes = r->shared_bytes;
        *(VideoReply *)r->shared = (VideoReply){.exit_code = VIDEO_UNFINISHED};
        ok = ask(r, path, &request, file, reply, e);
    }
    close(file);
    return ok;
}

bool video_probe(VideoReader *r, const char *path, VideoInfo *info, Error *e) {
    VideoReply reply;
    if (!perform(r, path, VIDEO_PROBE, NULL, 0, &reply, e)) return false;
    *info = reply.info;
    return true;
}

bool image_probe(VideoReader *r, const char *path, VideoInfo *info, Error *e) {
    VideoReply reply;
    if (!perform(r, path, IMAGE_PROBE, NULL, 0, &reply, e)) return false;
    *info = reply.info;
    return true;
}

static void to_signed(float *to, const uint8_t *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = (float)from[i] / 127.5f - 1.0f;
}

static void check_want(const VideoWant *w) {
    CHECK(w->frames > 0 && w->frames <= VIDEO_MAX_FRAMES && w->height > 0 && w->width > 0 &&
              w->height <= VIDEO_MAX_SIDE && w->width <= VIDEO_MAX_SIDE && w->fps > 0 &&
              w->fps <= 1000 && w->windows > 0 && w->windows <= VIDEO_MAX_WINDOWS,
          "%lld frames of %lldx%lld, %g a second, %lld windows", (long long)w->frames,
          (long long)w->width, (long long)w->height, w->fps, (long long)w->windows);
}

static bool read_pixels(VideoReader *r, const char *path, VideoTask task, const VideoWant *want,
                        int64_t window, float *pixels, VideoClip *clip, Error *e) {
    VideoReply reply;
    check_want(want);
    if (!perform(r, path, task, want, window, &reply, e)) return false;
    to_signed(pixels, r->shared + VIDEO_PIXELS, 3 * want->frames * want->height * want->width);
    if (clip) *clip = reply.clip;
    return true;
}

bool video_read(VideoReader *r, const char *path, const VideoWant *want, int64_t window,
                float *pixels, VideoClip *clip, Error *e) {
    CHECK(window >= 0, "window %lld", (long long)window);
    return read_pixels(r, path, VIDEO_READ, want, window, pixels, clip, e);
}

bool image_read(VideoReader *r, const char *path, int64_t height, int64_t width, float *pixels,
                Error *e) {
    VideoWant want = {.frames = 1, .height = height, .width = width, .fps = 1, .windows = 1};
    return read_pixels(r, path, IMAGE_READ, &want, 0, pixels, NULL, e);
}
