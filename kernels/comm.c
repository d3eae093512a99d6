/* Owns what all groups of ranks share, the group of one, and the group that only counts. */
#include "kernels/comm_watch.h"

#include <stdlib.h>
#include <string.h>

void comm_close(Comm *c) {
    if (c) c->close(c);
}

void comm_sum(Comm *c, Stream *s, int64_t count, real *x) {
    int64_t part = count / c->size;
    CHECK(part * c->size == count, "a sum of %lld over %d ranks", (long long)count, c->size);
    real *mine = x + c->rank * part;
    c->reduce_scatter(c, s, part, x, mine);
    c->all_gather(c, s, DT_REAL, part, mine, x);
}

Range comm_part(const Comm *c, int rank, int64_t rows) {
    int64_t from = rows * rank / c->size;
    return (Range){from, rows * (rank + 1) / c->size - from};
}

Comm *comm_neighbours(Comm *c, int size) {
    CHECK(size >= 1 && c->size % size == 0, "groups of %d of %d ranks", size, c->size);
    return size == 1 ? comm_over(comm_self(), c->k) : c->neighbours(c, size);
}

Comm *comm_over(Comm *ranks, const Backend *k) {
    if (!k || k == &BACKEND_CPU || ranks->recording) return ranks;
    return ranks->size == 1 ? comm_cuda(ranks, k) : comm_nccl(ranks, k);
}

/* ---- one rank ---------------------------------------------------------------------------------
 */

static void move(void *to, const void *from, DType type, int64_t count) {
    if (to != from && count) memmove(to, from, (size_t)count * dtype_size(type));
}

static void self_all_gather(Comm *c, Stream *s, DType type, int64_t count, const void *mine,
                            void *all) {
    (void)c, (void)s;
    move(all, mine, type, count);
}

static void self_reduce_scatter(Comm *c, Stream *s, int64_t count, real *all, real *mine) {
    (void)c, (void)s;
    move(mine, all, DT_REAL, count);
}

static void self_all_to_all(Comm *c, Stream *s, DType type, int64_t count, const void *from,
                            void *to) {
    (void)c, (void)s;
    move(to, from, type, count);
}

static void alone_close(Comm *c) { free(c); }

Comm *comm_self(void) {
    Comm *c = xcalloc(1, sizeof *c);
    *c = (Comm){.size = 1,
                .name = "self",
                .all_gather = self_all_gather,
                .reduce_scatter = self_reduce_scatter,
                .all_to_all = self_all_to_all,
                .close = alone_close};
    return c;
}

/* ---- recording --------------------------------------------------------------------------------
 */

static void record(Comm *c, CommKind kind, DType type, int64_t count) {
    c->sent_bytes[kind] += (c->size - 1) * count * (int64_t)dtype_size(type);
    c->calls++;
}

static void record_all_gather(Comm *c, Stream *s, DType type, int64_t count, const void *mine,
                              void *all) {
    (void)s, (void)mine, (void)all;
    record(c, COMM_ALL_GATHER, type, count);
}

static void record_reduce_scatter(Comm *c, Stream *s, int64_t count, real *all, real *mine) {
    (void)s, (void)all, (void)mine;
    record(c, COMM_REDUCE_SCATTER, DT_REAL, count);
}

static void record_all_to_all(Comm *c, Stream *s, DType type, int64_t count, const void *from,
                              void *to) {
    (void)s, (void)from, (void)to;
    record(c, COMM_ALL_TO_ALL, type, count);
}

static Comm *record_neighbours(Comm *c, int size) { return comm_recording(c->rank % size, size); }

Comm *comm_recording(int rank, int size) {
    Comm *c = xcalloc(1, sizeof *c);
    *c = (Comm){.rank = rank,
                .size = size,
                .name = "recording",
                .recording = true,
                .neighbours = record_neighbours,
                .all_gather = record_all_gather,
                .reduce_scatter = record_reduce_scatter,
                .all_to_all = record_all_to_all,
                .close = alone_close};
    return c;
}
