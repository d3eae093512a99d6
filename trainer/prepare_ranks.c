/* Owns how ranks share `prepare`: they meet several times a second to tell each other how far they
 * are, begin when rank 0 has opened the cache, and end together. */
#define _DEFAULT_SOURCE
#include "trainer/prepare.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MEET_MS = 200, FIELDS = sizeof(RankNews) / sizeof(int64_t) };

/* ---- for those who work -----------------------------------------------------------------------
 */

bool prepare_mine(const Prepare *p, int64_t i) { return i % p->ranks == p->rank; }

void prepare_tell(Prepare *p, int64_t *number, int64_t more) {
    pthread_mutex_lock(&p->news_lock);
    *number += more;
    pthread_mutex_unlock(&p->news_lock);
}

Progress *prepare_bar(const Prepare *p, const char *what, const char *unit, int64_t before,
                      int64_t all) {
    return p->rank ? NULL : progress_open(what, unit, (double)before, (double)all);
}

/* Over all ranks; with the lock. */
static int64_t sum_of(const Prepare *p, size_t column) {
    int64_t sum = *(const int64_t *)((const char *)&p->news + column);
    for (int r = 0; r < p->ranks; r++)
        if (r != p->rank) sum += *(const int64_t *)((const char *)&p->all[r] + column);
    return sum;
}

void prepare_show(Prepare *p, Progress *bar, size_t column, int64_t before) {
    pthread_mutex_lock(&p->news_lock);
    int64_t done = before + sum_of(p, column);
    pthread_mutex_unlock(&p->news_lock);
    if (bar) progress_set(bar, (double)done, NULL);
}

void prepare_await(Prepare *p, Progress *bar, size_t column, int64_t before, int64_t count) {
    pthread_mutex_lock(&p->news_lock);
    for (int64_t done = 0; !p->rank && done < count;) {
        done = sum_of(p, column);
        progress_set(bar, (double)(before + done), NULL);
        if (done < count) pthread_cond_wait(&p->met, &p->news_lock);
    }
    pthread_mutex_unlock(&p->news_lock);
}

/* Until ranks `from` to `to` - 1 have opened the cache; for ever where one fails, for then the
 * program ends. */
static void await_open(Prepare *p, int from, int to) {
    pthread_mutex_lock(&p->news_lock);
    for (int r = from; r < to; r++)
        while (p->all[r].state != RANK_OPEN && p->all[r].state != RANK_DONE)
            pthread_cond_wait(&p->met, &p->news_lock);
    pthread_mutex_unlock(&p->news_lock);
}

void prepare_opened(Prepare *p) {
    pthread_mutex_lock(&p->news_lock);
    p->news.state = RANK_OPEN;
    pthread_mutex_unlock(&p->news_lock);
    prepare_wake();
    if (!p->rank) await_open(p, 1, p->ranks); /* all must see the same index */
}

typedef struct {
    Prepare *p;
    Error e;
} Work;

static void *work(void *context) {
    Work *w = context;
    Prepare *p = w->p;
    if (p->rank) await_open(p, 0, 1);
    bool ok = prepare_share(p, &w->e);
    pthread_mutex_lock(&p->news_lock);
    p->news.state = ok ? RANK_DONE : RANK_FAILED;
    p->news.exit_code = ok ? 0 : w->e.exit_code;
    pthread_mutex_unlock(&p->news_lock);
    prepare_wake();
    return NULL;
}

/* ---- meeting ----------------------------------------------------------------------------------
 */

/* A failure or a request to stop of any rank is all ranks'; else the state of the slowest. */
static RankState state_of_all(const Prepare *p) {
    RankState least = RANK_DONE, most = RANK_OPENING;
    for (int r = 0; r < p->ranks; r++) {
        RankState s = (RankState)p->all[r].state;
        if (s == RANK_FAILED) return s;
        least = MIN(least, s);
        most = MAX(most, s);
    }
    return most == RANK_STOPPED ? most : least;
}

static RankState meet(Prepare *p, Comm *comm) {
    RankNews *all = xcalloc((size_t)p->ranks, sizeof *all);
    pthread_mutex_lock(&p->news_lock);
    RankNews mine = p->news;
    pthread_mutex_unlock(&p->news_lock);
    if (mine.state < RANK_DONE && prepare_asked()) mine.state = RANK_STOPPED;
    comm->all_gather(comm, NULL, DT_I64, FIELDS, &mine, all);
    pthread_mutex_lock(&p->news_lock);
    memcpy(p->all, all, (size_t)p->ranks * sizeof *all);
    RankState state = state_of_all(p);
    pthread_cond_broadcast(&p->met);
    pthread_mutex_unlock(&p->news_lock);
    free(all);
    return state;
}

/* ---- the end ----------------------------------------------------------------------------------
 */

static bool first_to_fail(const Prepare *p) {
    for (int r = 0; r < p->rank; r++)
        if (p->all[r].state == RANK_FAILED) return false;
    return p->all[p->rank].state == RANK_FAILED;
}

/* Whether every rank said so; *me: whether this one is the first that did not. */
static bool all_good(const Prepare *p, Comm *comm, bool good, bool *me) {
    int64_t mine = good, *all = xcalloc((size_t)p->ranks, sizeof *all);
    int first = 0;
    comm->all_gather(comm, NULL, DT_I64, 1, &mine, all);
    while (first < p->ranks && all[first]) first++;
    free(all);
    *me = first == p->rank;
    return first == p->ranks;
}

/* Makes what was done durable on every rank; others may be computing still, so that their memory
 * must stay. */
NORETURN static void end_early(Prepare *p, Comm *comm, RankState state, const Error *failure) {
    Error e = {0}, late;
    bool speaks;
    pthread_mutex_lock(&p->lock); /* for good: nobody may change the cache after this */
    const char *clear = isatty(STDERR_FILENO) && !p->rank ? "\r\033[K" : "";
    bool mine = !p->cache || prepare_durable(p, &e);
    bool ok = all_good(p, comm, mine, &speaks); /* now every part is whole */
    if (!p->rank && p->cache && p->ranks > 1 && !cache_adopt(p->cache, mine ? &e : &late))
        ok = false, speaks = true;
    if (first_to_fail(p)) fprintf(stderr, "%scogsmith: %s\n", clear, failure->text);
    if (state == RANK_STOPPED && ok && !p->rank)
        fprintf(stderr,
                "%scogsmith: stopped; what was done is in the cache: run the same again to "
                "go on\n",
                clear);
    int code = EXIT_STOPPED;
    for (int r = p->ranks - 1; r >= 0; r--)
        if (p->all[r].state == RANK_FAILED) code = (int)p->all[r].exit_code;
    /* Where the disk was full for one rank, it is for all. */
    if (speaks && code != EXIT_WORLD) fprintf(stderr, "%scogsmith: %s\n", clear, e.text);
    fflush(stdout);
    comm_close(comm);
    _exit(ok || state == RANK_FAILED ? code : EXIT_WORLD);
}

/* This rank's bad samples as lines of number, tab and reason; the caller frees them. */
static char *bad_lines(const Prepare *p) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    for (int i = 0; i < p->wanted->n_samples; i++)
        if (p->wanted->samples[i].bad) fprintf(out, "%d\t%s\n", i, p->wanted->samples[i].bad);
    fclose(out);
    return text;
}

static void remember_bad(Prepare *p, char *lines) {
    char *rest = NULL;
    for (char *line = strtok_r(lines, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char *why = strchr(line, '\t');
        int i = atoi(line);
        if (why && i >= 0 && i < p->wanted->n_samples)
            cache_files_set_bad(p->wanted->files, p->wanted->samples[i].latents_key.whole, why + 1);
    }
}

/* Rank 0 remembers what the others could not use. */
static void gather_bad(Prepare *p, Comm *comm) {
    char *lines = bad_lines(p);
    int64_t mine = (int64_t)strlen(lines) + 1, most = 0;
    int64_t *each = xcalloc((size_t)p->ranks, sizeof *each);
    comm->all_gather(comm, NULL, DT_I64, 1, &mine, each);
    for (int r = 0; r < p->ranks; r++) most = MAX(most, each[r]);
    char *all = xcalloc((size_t)(p->ranks * most), 1), *padded = xcalloc((size_t)most, 1);
    memcpy(padded, lines, (size_t)mine);
    comm->all_gather(comm, NULL, DT_U8, most, padded, all);
    for (int r = 1; r < p->ranks && !p->rank; r++) remember_bad(p, all + r * most);
    free(all);
    free(padded);
    free(each);
    free(lines);
}

bool prepare_together(Prepare *p, Error *e) {
    Comm *comm = comm_world(p->config->ranks.timeout);
    Work w = {.p = p};
    pthread_t worker;
    RankState state;
    p->rank = comm->rank, p->ranks = comm->size;
    p->all = xcalloc((size_t)p->ranks, sizeof *p->all);
    CHECK(!pthread_create(&worker, NULL, work, &w), "no thread");
    do {
        prepare_sleep(p->ranks > 1 ? MEET_MS : -1);
        state = meet(p, comm);
    } while (state < RANK_DONE);
    if (state == RANK_STOPPED || (state == RANK_FAILED && p->ranks > 1))
        end_early(p, comm, state, &w.e);
    pthread_join(worker, NULL);
    bool ok = state == RANK_DONE;
    if (!ok) *e = w.e;
    if (ok && p->ranks > 1) gather_bad(p, comm);
    ok = ok && prepare_finish(p, e);
    comm_close(comm);
    return ok;
}
