/* Owns the account of device memory. */
#include "autograd/memory.h"

#include <stdio.h>
#include <stdlib.h>

void *memory_alloc(Memory *m, size_t bytes, const char *what) {
    CHECK(!m->sealed, "%zu bytes for %s wanted after the plan was placed", bytes, what);
    void *p = m->on_host ? m->k->alloc_host(bytes ? bytes : 1) : m->k->alloc(bytes ? bytes : 1);
    if (!p) {
        Error e;
        error_set(&e, EXIT_WORLD,
                  "%s: no %.2f GiB of %s memory left beside the %.2f GiB in use. `cogsmith plan` "
                  "says what this configuration needs",
                  what, (double)bytes / (1 << 30), m->on_host ? "host" : m->k->name,
                  (double)m->bytes / (1 << 30));
        die_error(&e);
    }
    (m->on_host ? &BACKEND_CPU : m->k)->zero(NULL, p, bytes);
    m->bytes += bytes;
    m->peak_bytes = MAX(m->peak_bytes, m->bytes);
    m->allocations++;
    return p;
}

void memory_release(Memory *m, void *p, size_t bytes) {
    if (!p) return;
    if (m->on_host)
        m->k->release_host(p);
    else
        m->k->release(p);
    m->bytes -= bytes;
}

Memory *memory_host(Memory *m) { return m->host ? m->host : m; }

void memory_seal(Memory *m, bool sealed) { m->sealed = sealed; }
