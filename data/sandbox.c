/* Owns the limits and the seccomp list of a decoding process. */
#define _GNU_SOURCE
#include "data/sandbox.h"

#include <errno.h>
#include <seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

/* Reading what is open, memory, locks that nobody else holds, the clock, and the end. */
static const int ALLOWED[] = {
    SCMP_SYS(read),
    SCMP_SYS(pread64),
    SCMP_SYS(lseek),
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(madvise),
    SCMP_SYS(brk),
    SCMP_SYS(futex),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(sched_yield),
    SCMP_SYS(sched_getaffinity),
    SCMP_SYS(getpid),
    SCMP_SYS(gettid),
    SCMP_SYS(getrandom),
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    SCMP_SYS(restart_syscall),
};

/* What libraries try and do without: they get EPERM. */
static const int REFUSED[] = {
    SCMP_SYS(open),       SCMP_SYS(openat),   SCMP_SYS(stat),    SCMP_SYS(fstat),
    SCMP_SYS(newfstatat), SCMP_SYS(statx),    SCMP_SYS(access),  SCMP_SYS(faccessat),
    SCMP_SYS(faccessat2), SCMP_SYS(readlink), SCMP_SYS(ioctl),   SCMP_SYS(fcntl),
    SCMP_SYS(write),      SCMP_SYS(writev),   SCMP_SYS(sysinfo), SCMP_SYS(prlimit64),
    SCMP_SYS(uname),      SCMP_SYS(close),
};

static bool limit(int resource, rlim_t n) {
    return !setrlimit(resource, &(struct rlimit){.rlim_cur = n, .rlim_max = n});
}

/* Bytes of address space that the process has; 0: unknown. */
static int64_t address_space(void) {
    long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f) return 0;
    if (fscanf(f, "%lld", &pages) != 1) pages = 0;
    fclose(f);
    return pages * sysconf(_SC_PAGESIZE);
}

static bool set_limits(const SandboxLimits *limits) {
    int64_t space = address_space();
    rlim_t cpu = (rlim_t)limits->cpu_seconds;
    /* SIGXCPU first: it tells the reason, SIGKILL does not. */
    struct rlimit soft_cpu = {.rlim_cur = cpu, .rlim_max = cpu + 1};
    return space > 0 && limit(RLIMIT_AS, (rlim_t)(space + limits->memory_bytes)) &&
           !setrlimit(RLIMIT_CPU, &soft_cpu) && limit(RLIMIT_CORE, 0) && limit(RLIMIT_FSIZE, 0) &&
           limit(RLIMIT_NOFILE, 0);
}

/* Adds the rules; 0, or a negative errno. */
static int add_rules(scmp_filter_ctx filter) {
    struct scmp_arg_cmp not_executable = SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0);
    struct scmp_arg_cmp itself = SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)getpid());
    int bad = 0;
    for (size_t i = 0; i < COUNT(ALLOWED) && !bad; i++)
        bad = seccomp_rule_add(filter, SCMP_ACT_ALLOW, ALLOWED[i], 0);
    for (size_t i = 0; i < COUNT(REFUSED) && !bad; i++)
        bad = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), REFUSED[i], 0);
    if (!bad) bad = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, not_executable);
    if (!bad) bad = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, not_executable);
    /* abort() shall look like one. */
    if (!bad) bad = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1, itself);
    return bad;
}

bool sandbox_enter(const SandboxLimits *limits, Error *e) {
    if (!set_limits(limits) || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) ||
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return error_set(e, EXIT_WORLD, "the decoder's limits cannot be set: %s", strerror(errno));
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (!filter) return error_set(e, EXIT_WORLD, "the decoder's seccomp list has no memory");
    int bad = add_rules(filter);
    if (!bad) bad = seccomp_load(filter);
    seccomp_release(filter);
    if (!bad) return true;
    return error_set(e, EXIT_WORLD, "the kernel refused the decoder's seccomp list: %s",
                     strerror(-bad));
}
