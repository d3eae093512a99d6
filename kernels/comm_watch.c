/* Owns the words in which ranks are named, and the threads that watch the collectives of GPUs: one
 * looks at the device, whose driver can make it wait; the other talks and keeps the deadline. */
#define _DEFAULT_SOURCE
#include "kernels/comm_watch.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    TICK_US = 5000,
    NAP_SECONDS = 1, /* a process that was stopped for longer looks again before it complains */
    LAST_CALL_SECONDS = 2,
    ABORT_SECONDS = 5,
    HISTORY = 4096, /* collectives that are remembered */
    TOLD_MOST = 64, /* messages to the next rank at a time */
};
enum { SAYS_CAME, SAYS_ASKS, SAYS_ANSWERS };

static const double TELL_SECONDS = 0.1, ALONE_TIMEOUT = 120;

static const char *const NAMES[COMM_NAMES] = {"all_gather", "reduce_scatter", "all_to_all",
                                              "the start of NCCL", "the end of NCCL"};

static _Atomic int64_t step;

void comm_at_step(int64_t now) { step = now; }

static char program[64];

void comm_program(const char *what) { snprintf(program, sizeof program, "%s", what); }

const char *own_program(void) { return program; }

static pthread_mutex_t latest_lock = PTHREAD_MUTEX_INITIALIZER;
static Header latest_of_all;

void came_to(const Header *h) {
    pthread_mutex_lock(&latest_lock);
    latest_of_all = *h;
    pthread_mutex_unlock(&latest_lock);
}

/* ", in step 12," */
static const char *in_step(char text[32]) {
    if (!step) return "";
    snprintf(text, 32, ", in step %lld,", (long long)step);
    return text;
}

void say_missing(int rank, const Header *h, double timeout_s, int me) {
    char text[32];
    fprintf(stderr,
            "cogsmith: rank %d did not answer in %s number %lld%s within %g s (ranks.timeout), "
            "says rank %d. The job ends; start it again to go on from the last checkpoint\n",
            rank, NAMES[h->kind], (long long)h->number, in_step(text), timeout_s, me);
}

void say_apart(int me, const Header *mine, int other, const Header *theirs) {
    char text[32];
    fprintf(stderr,
            "cogsmith: ranks went apart: at collective %lld%s rank %d asks for %s of %lld %s, rank "
            "%d for %s of %lld %s. The job ends\n",
            (long long)mine->number, in_step(text), me, NAMES[mine->kind], (long long)mine->count,
            dtype_name((DType)mine->type), other, NAMES[theirs->kind], (long long)theirs->count,
            dtype_name((DType)theirs->type));
}

void say_unfinished(int me, const Header *h, double timeout_s) {
    char text[32];
    fprintf(stderr,
            "cogsmith: rank %d: every rank is there, but %s number %lld%s did not end within %g s "
            "(ranks.timeout): the link is too slow or unsteady. The job ends\n",
            me, NAMES[h->kind], (long long)h->number, in_step(text), timeout_s);
}

/* What the ranks of a list do. */
static const char *verb_of(const char *ranks, const char *one, const char *several) {
    if (!*ranks) return "";
    return strstr(ranks, ", rank ") ? several : one;
}

void say_gone(const char *gone, const char *silent, int me) {
    char text[32], where[80] = "no collective yet";
    pthread_mutex_lock(&latest_lock);
    Header h = latest_of_all;
    pthread_mutex_unlock(&latest_lock);
    if (h.number)
        snprintf(where, sizeof where, "%s number %lld", NAMES[h.kind], (long long)h.number);
    fprintf(stderr,
            "cogsmith: %s%s%s%s%s; rank %d%s had come to %s. The job ends; start it again to go on "
            "from what it saved last\n",
            gone, verb_of(gone, " is gone", " are gone"), *gone && *silent ? "; " : "", silent,
            verb_of(silent, " does not answer", " do not answer"), me, in_step(text), where);
}

/* ---- the watch --------------------------------------------------------------------------------
 */

typedef struct {
    Header header;
    bool queued, over;
    double since; /* when it was first seen to run; 0: it was not */
} Call;

struct Watch {
    Comm *ranks;
    const Talk *talk;
    Watched what;
    int me; /* among all ranks */
    double timeout_s;
    pthread_t eyes, mouth;
    pthread_mutex_t lock; /* of what follows, to `failure` */
    Call calls[WATCH_SLOTS];
    int64_t came, ended; /* calls so far */
    Header history[HISTORY];
    double looked; /* when the device was last seen to answer */
    bool stops;
    bool fails; /* see `failure` */
    Error failure;
    /* of the mouth alone */
    double tells;           /* when it tells the next rank again */
    int64_t told;           /* the last number that the next rank was told */
    Header before[HISTORY]; /* what the rank before came to */
    int64_t heard, compared;
    bool *asked, *answered; /* [size] the ranks that were, and that did */
    Header *answer;         /* [size] how far they are */
};

static void end_now(int signal) {
    (void)signal;
    _exit(EXIT_WORLD);
}

/* The mouth's alone: the other threads may wait for what never comes. */
NORETURN static void end_job(Watch *w) {
    fflush(stderr);
    signal(SIGALRM, end_now); /* neither library promises that its abort returns */
    alarm(ABORT_SECONDS);
    w->what.abandon(w->what.context);
    if (w->talk) w->talk->give_up();
    _exit(EXIT_WORLD);
}

/* How far this rank's device is: the call that runs, or the last that is over. */
static Header reached(Watch *w) {
    pthread_mutex_lock(&w->lock);
    const Call *oldest = &w->calls[w->ended % WATCH_SLOTS];
    bool runs = w->ended < w->came && oldest->since > 0;
    Header h = runs ? oldest->header : w->history[w->ended % HISTORY];
    pthread_mutex_unlock(&w->lock);
    return h;
}

static int64_t latest(Watch *w) {
    pthread_mutex_lock(&w->lock);
    int64_t number = w->came;
    pthread_mutex_unlock(&w->lock);
    return number;
}

static Header recalled(Watch *w, int64_t number) {
    pthread_mutex_lock(&w->lock);
    Header h = w->history[number % HISTORY];
    pthread_mutex_unlock(&w->lock);
    return h;
}

static int neighbour(const Watch *w, int by) {
    return (w->ranks->rank + by + w->ranks->size) % w->ranks->size;
}

static void tell(Watch *w) {
    int64_t last = latest(w);
    w->told = MAX(w->told, last - HISTORY);
    for (int i = 0; i < TOLD_MOST && w->told < last; i++) {
        Message m = {.says = SAYS_CAME, .n = MIN(last - w->told, MESSAGE_HEADERS)};
        for (int64_t j = 0; j < m.n; j++) m.header[j] = recalled(w, w->told + 1 + j);
        if (!w->talk->send(w->ranks, neighbour(w, 1), &m)) return;
        w->told += m.n;
    }
}

static void hear(Watch *w) {
    Message m;
    int from;
    while (w->talk->receive(w->ranks, &from, &m)) {
        if (m.says == SAYS_CAME) {
            for (int64_t i = 0; i < m.n; i++) w->before[m.header[i].number % HISTORY] = m.header[i];
            w->heard = m.header[m.n - 1].number;
        } else if (m.says == SAYS_ASKS) {
            Message back = {.says = SAYS_ANSWERS, .n = 1, .header = {reached(w)}};
            w->talk->send(w->ranks, from, &back);
        } else {
            w->answered[from] = true;
            w->answer[from] = m.header[0];
        }
    }
}

/* What the rank before came to is what this one came to. */
static void compare(Watch *w) {
    int64_t both = MIN(latest(w), w->heard);
    w->compared = MAX(w->compared, MAX(latest(w), w->heard) - HISTORY);
    while (w->compared < both) {
        int64_t number = ++w->compared;
        Header mine = recalled(w, number), *theirs = &w->before[number % HISTORY];
        if (theirs->number != number || !memcmp(&mine, theirs, sizeof mine)) continue;
        say_apart(w->me, &mine, w->talk->first + neighbour(w, -1), theirs);
        end_job(w);
    }
}

/* Asks every rank how far it is, and waits for the answers. */
static void ask(Watch *w) {
    Message m = {.says = SAYS_ASKS};
    int n = w->ranks->size;
    double end = now_seconds() + LAST_CALL_SECONDS;
    for (int i = 0; i < n; i++) w->asked[i] = w->answered[i] = i == w->ranks->rank;
    for (int missing = n; missing && now_seconds() < end; usleep(1000)) {
        for (int i = 0; i < n; i++)
            if (!w->asked[i]) w->asked[i] = w->talk->send(w->ranks, i, &m);
        hear(w);
        missing = 0;
        for (int i = 0; i < n; i++) missing += !w->answered[i];
    }
}

/* Names the ranks that do not answer, or else, where the deadline passed, those whose devices are
 * not at call h. Returns how many those are. */
static int name_missing(Watch *w, const Header *h, bool late) {
    int silent = 0, n = w->ranks->size;
    ask(w);
    for (int i = 0; i < n; i++) silent += !w->answered[i];
    int named = 0;
    for (int i = 0; i < n; i++) {
        bool behind = late && i != w->ranks->rank && w->answer[i].number < h->number;
        if (silent ? w->answered[i] : !behind) continue;
        say_missing(w->talk->first + i, h, w->timeout_s, w->me);
        named++;
    }
    return named;
}

/* e: what the library says of it; NULL: nothing, the deadline passed. */
NORETURN static void last_call(Watch *w, const Header *h, const Error *e) {
    if (e) fprintf(stderr, "cogsmith: rank %d: %s\n", w->me, e->text);
    if (w->talk) {
        tell(w);
        if (!name_missing(w, h, !e) && !e) {
            compare(w);
            say_unfinished(w->me, h, w->timeout_s);
        }
    } else if (!e) {
        say_unfinished(w->me, h, w->timeout_s);
    }
    end_job(w);
}

/* ---- the eyes ---------------------------------------------------------------------------------
 */

/* Looks at the oldest call and drops it if it is over. The lock is not held while the device is
 * asked. */
static bool see(Watch *w) {
    pthread_mutex_lock(&w->lock);
    bool any = w->ended < w->came;
    int slot = (int)(w->ended % WATCH_SLOTS);
    Call c = w->calls[slot];
    pthread_mutex_unlock(&w->lock);
    CallState state = CALL_RUNS;
    if (any && (c.over || c.queued))
        state = c.over ? CALL_OVER : w->what.state(w->what.context, slot);
    pthread_mutex_lock(&w->lock);
    w->looked = now_seconds();
    if (any && state == CALL_OVER) w->ended++;
    double *since = &w->calls[slot].since;
    if (any && state == CALL_RUNS && *since == 0) *since = w->looked;
    if (any && state == CALL_AHEAD) *since = 0;
    pthread_mutex_unlock(&w->lock);
    return any && state == CALL_OVER;
}

static bool stops(Watch *w) {
    pthread_mutex_lock(&w->lock);
    bool yes = w->stops;
    pthread_mutex_unlock(&w->lock);
    return yes;
}

static void fail(Watch *w, const Error *e) {
    pthread_mutex_lock(&w->lock);
    if (!w->fails) w->failure = *e;
    w->fails = true;
    pthread_mutex_unlock(&w->lock);
}

static void *eyes(void *arg) {
    Watch *w = arg;
    Error e;
    w->what.enter(w->what.context);
    for (; !stops(w); usleep(TICK_US)) {
        while (see(w)) continue;
        if (!w->what.works(w->what.context, &e)) fail(w, &e);
    }
    return NULL;
}

/* ---- the mouth --------------------------------------------------------------------------------
 */

/* The oldest call runs for too long, or the library or the device failed, and *e says how, or is
 * empty. *h: that call, or the last that is over. */
static bool in_trouble(Watch *w, Header *h, Error *e) {
    pthread_mutex_lock(&w->lock);
    const Call *oldest = &w->calls[w->ended % WATCH_SLOTS];
    bool any = w->ended < w->came, fails = w->fails;
    double earliest = now_seconds() - w->timeout_s;
    bool blind = any && w->looked < earliest;
    bool late = any && oldest->since > 0 && oldest->since < earliest;
    *h = any ? oldest->header : w->history[w->ended % HISTORY];
    *e = fails ? w->failure : (Error){0};
    pthread_mutex_unlock(&w->lock);
    if (blind && !fails)
        error_set(
            e, EXIT_WORLD,
            "the GPU did not answer for %g s (ranks.timeout), in %s number %lld or before it. "
            "The job ends; `dmesg | grep -i xid` says whether the GPU or its driver failed",
            w->timeout_s, NAMES[h->kind], (long long)h->number);
    return fails || blind || late;
}

static void *mouth(void *arg) {
    Watch *w = arg;
    double last = now_seconds(), awake = last;
    for (; !stops(w); usleep(TICK_US)) {
        Header h;
        Error e;
        if (now_seconds() > last + NAP_SECONDS) awake = now_seconds() + NAP_SECONDS;
        last = now_seconds();
        if (last > awake && in_trouble(w, &h, &e)) last_call(w, &h, e.exit_code ? &e : NULL);
        if (!w->talk) continue;
        if (now_seconds() > w->tells) {
            tell(w);
            w->tells = now_seconds() + TELL_SECONDS;
        }
        hear(w);
        compare(w);
    }
    return NULL;
}

/* ---- for the program --------------------------------------------------------------------------
 */

Watch *watch_open(Comm *ranks, const Watched *what) {
    const Talk *talk = ranks->talk;
    if (talk && !talk->open(ranks)) return NULL;
    Watch *w = xcalloc(1, sizeof *w);
    w->ranks = ranks;
    w->talk = talk;
    w->what = *what;
    w->me = (talk ? talk->first : 0) + ranks->rank;
    w->timeout_s = talk ? talk->timeout_s : ALONE_TIMEOUT;
    w->asked = xcalloc((size_t)ranks->size, sizeof *w->asked);
    w->answered = xcalloc((size_t)ranks->size, sizeof *w->answered);
    w->answer = xcalloc((size_t)ranks->size, sizeof *w->answer);
    pthread_mutex_init(&w->lock, NULL);
    w->looked = now_seconds();
    bool good =
        !pthread_create(&w->eyes, NULL, eyes, w) && !pthread_create(&w->mouth, NULL, mouth, w);
    CHECK(good, "no thread for the watch over ranks");
    return w;
}

int watch_begin(Watch *w, Header h) {
    came_to(&h);
    pthread_mutex_lock(&w->lock);
    while (w->came - w->ended >= WATCH_SLOTS) {
        pthread_mutex_unlock(&w->lock);
        usleep(TICK_US / 10);
        pthread_mutex_lock(&w->lock);
    }
    int slot = (int)(w->came % WATCH_SLOTS);
    CHECK(h.number == w->came + 1, "collective %lld after %lld", (long long)h.number,
          (long long)w->came);
    w->calls[slot] = (Call){.header = h};
    w->history[h.number % HISTORY] = h;
    w->came++;
    pthread_mutex_unlock(&w->lock);
    return slot;
}

void watch_queued(Watch *w, int slot) {
    pthread_mutex_lock(&w->lock);
    w->calls[slot].queued = true;
    w->calls[slot].since = 0; /* what lies before it on the device is no rank's fault */
    pthread_mutex_unlock(&w->lock);
}

void watch_over(Watch *w, int slot) {
    pthread_mutex_lock(&w->lock);
    w->calls[slot].over = true;
    pthread_mutex_unlock(&w->lock);
}

void watch_drain(Watch *w) {
    for (bool done = false; !done; usleep(TICK_US / 10)) {
        pthread_mutex_lock(&w->lock);
        done = w->came == w->ended;
        pthread_mutex_unlock(&w->lock);
    }
}

void watch_fail(Watch *w, const Error *e) {
    fail(w, e);
    for (;;) pause(); /* the mouth ends the job */
}

void watch_close(Watch *w) {
    watch_drain(w);
    pthread_mutex_lock(&w->lock);
    w->stops = true;
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->eyes, NULL);
    pthread_join(w->mouth, NULL);
    if (w->talk) {
        uint8_t mine = 0, *all = xcalloc((size_t)w->ranks->size, 1);
        w->ranks->all_gather(w->ranks, NULL, DT_U8, 1, &mine, all);
        free(all);
        hear(w); /* what the rank before told last */
    }
    pthread_mutex_destroy(&w->lock);
    free(w->asked);
    free(w->answered);
    free(w->answer);
    free(w);
}
