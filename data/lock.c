/* Owns lock files. The lock is the descriptor's, so that it ends with its process. */
#define _DEFAULT_SOURCE
#include "data/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static bool take(int fd, const char *folder, const char *what, Error *e) {
    char holder[200] = {0};
    if (!flock(fd, LOCK_EX | LOCK_NB)) return true;
    if (errno != EWOULDBLOCK)
        return error_set(e, EXIT_WORLD, "%.600s: cannot lock it: %s", folder, strerror(errno));
    if (pread(fd, holder, sizeof holder - 1, 0) < 1) strcpy(holder, "another process");
    return error_set(e, EXIT_USER, "%.600s: %s %s; wait for it, or stop it", folder, holder, what);
}

static bool sign(int fd, const char *path, Error *e) {
    char host[100] = "this host";
    gethostname(host, sizeof host - 1);
    char *text = xprintf("process %d on %s", (int)getpid(), host);
    bool ok = !ftruncate(fd, 0) && pwrite(fd, text, strlen(text), 0) >= 0;
    free(text);
    return ok || error_set(e, EXIT_WORLD, "%.600s: %s", path, strerror(errno));
}

int folder_lock(const char *folder, const char *what, Error *e) {
    char *path = xprintf("%s/lock", folder);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) error_set(e, EXIT_WORLD, "%.600s: %s", path, strerror(errno));
    bool ok = fd >= 0 && take(fd, folder, what, e) && sign(fd, path, e);
    if (!ok) folder_unlock(fd);
    free(path);
    return ok ? fd : -1;
}

void folder_unlock(int lock) {
    if (lock >= 0) close(lock);
}
