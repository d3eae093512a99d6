/* One rank on device memory: what it sends comes back to it, in the order of the stream. */
#include "kernels/comm_watch.h"
#include "kernels/cuda_stream.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

bool cuda_holds(const void *p) {
    struct cudaPointerAttributes about;
    cuda_enter();
    cuda_check(cudaPointerGetAttributes(&about, p), "asking where memory lies");
    return about.type == cudaMemoryTypeDevice || about.type == cudaMemoryTypeManaged;
}

/* Host memory is written when what is queued has read it. */
static void move(const Comm *c, Stream *s, DType type, int64_t count, const void *from, void *to) {
    size_t bytes = (size_t)count * dtype_size(type);
    if (!count || to == from) return;
    if (cuda_holds(to)) {
        c->k->copy(s, to, from, bytes);
    } else {
        if (s) c->k->stream_sync(s);
        memmove(to, from, bytes);
    }
}

static void cuda_all_gather(Comm *c, Stream *s, DType type, int64_t count, const void *mine,
                            void *all) {
    move(c, s, type, count, mine, all);
}

static void cuda_reduce_scatter(Comm *c, Stream *s, int64_t count, real *all, real *mine) {
    move(c, s, DT_REAL, count, all, mine);
}

static void cuda_all_to_all(Comm *c, Stream *s, DType type, int64_t count, const void *from,
                            void *to) {
    move(c, s, type, count, from, to);
}

static void alone_close(Comm *c) {
    comm_close(c->own);
    free(c);
}

Comm *comm_cuda(Comm *ranks, const Backend *k) {
    Comm *c = xcalloc(1, sizeof *c);
    *c = (Comm){.size = 1,
                .name = "cuda",
                .all_gather = cuda_all_gather,
                .reduce_scatter = cuda_reduce_scatter,
                .all_to_all = cuda_all_to_all,
                .close = alone_close,
                .k = k,
                .own = ranks};
    return c;
}
