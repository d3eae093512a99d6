/* Owns the decoding process: how it comes to be, and one fork of it for each file. */
#define _GNU_SOURCE
#include "data/video_child.h"
#include "data/video_decode.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

const char VIDEO_CHILD_NAME[] = "cogsmith: decoding";

/* The next request and its two descriptors; false: the reader is gone. */
static bool receive(VideoRequest *request, int fds[2]) {
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control;
    struct iovec data = {.iov_base = request, .iov_len = sizeof *request};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    ssize_t got;
    do got = recvmsg(VIDEO_CHILD_SOCKET, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (got != sizeof *request || !header || header->cmsg_len != CMSG_LEN(2 * sizeof(int)))
        return false;
    memcpy(fds, CMSG_DATA(header), 2 * sizeof(int));
    return true;
}

/* The fork: decodes one file into the shared memory. */
static void decode_and_exit(const VideoRequest *request, const int fds[2]) {
    Error e = {0};
    uint8_t *shared = mmap(NULL, (size_t)request->shared_bytes, PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_POPULATE, fds[1], 0);
    if (shared == MAP_FAILED) _exit(1);
    close(fds[1]);
    close(VIDEO_CHILD_SOCKET);
    VideoReply *reply = (VideoReply *)shared;
    const SandboxLimits limits = {request->limits.memory_bytes, request->limits.cpu_seconds};
    bool ok = sandbox_enter(&limits, &e) &&
              video_decode(fds[0], request, reply, shared + VIDEO_PIXELS, &e);
    snprintf(reply->text, sizeof reply->text, "%s", ok ? "" : e.text);
    reply->exit_code = ok ? 0 : e.exit_code;
    _exit(0);
}

/* Waits until the fork has ended; ends with it when the reader is gone. */
static int wait_for(pid_t fork_id, int alive) {
    struct pollfd watched[2] = {{.fd = alive}, {.fd = VIDEO_CHILD_SOCKET, .events = POLLRDHUP}};
    int status;
    while (poll(watched, 2, -1) < 0 && errno == EINTR) {
    }
    if (!watched[0].revents) {
        kill(fork_id, SIGKILL);
        _exit(1);
    }
    while (waitpid(fork_id, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

static int serve(const VideoRequest *request, const int fds[2]) {
    int alive[2]; /* reports hanging up when the fork ends */
    if (pipe2(alive, O_CLOEXEC)) return -1;
    pid_t fork_id = fork();
    if (!fork_id) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (int i = 1; i < NSIG; i++) signal(i, SIG_DFL); /* no library explains a crash in here */
        close(alive[0]);
        decode_and_exit(request, fds);
    }
    close(alive[1]);
    int status = fork_id < 0 ? -1 : wait_for(fork_id, alive[0]);
    close(alive[0]);
    return status;
}

/* This program, executed under VIDEO_CHILD_NAME, never reaches main: so every program that links
 * the reader has its decoder, and none runs its main by accident. The process is new and has one
 * thread, no file of the reader's, and no memory of its. */
__attribute__((constructor)) static void video_child(int argc, char **argv) {
    VideoRequest request;
    int fds[2], type = 0;
    if (argc != 1 || strcmp(argv[0], VIDEO_CHILD_NAME)) return;
    if (getsockopt(VIDEO_CHILD_SOCKET, SOL_SOCKET, SO_TYPE, &type, &(socklen_t){sizeof type}))
        _exit(1);
    close_range(VIDEO_CHILD_SOCKET + 1, ~0u, 0);
    while (receive(&request, fds)) {
        int status = serve(&request, fds);
        close(fds[0]);
        close(fds[1]);
        if (send(VIDEO_CHILD_SOCKET, &status, sizeof status, MSG_NOSIGNAL) != sizeof status) break;
    }
    _exit(0);
}
