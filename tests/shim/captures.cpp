/* Owns captures over the shim: a device that keeps work, with its arguments as they are then, and
 * does it again. Stricter than a GPU: what must not happen meanwhile ends the program. */
#include "tests/shim/captures.h"
#include "tests/shim/shim_backend.h"

#include <cstdlib>
#include <map>
#include <tuple>
#include <vector>

struct Captured {
    std::vector<std::function<void()>> work;
};

static ShimCaptures counts;
ShimCaptures shim_captures(void) { return counts; }

/* The capture under way, its first stream, and of each stream that came to belong to it whether
 * what it was given is waited for. */
static Captured *under_way;
static const void *origin;
static std::map<const void *, bool> joined;

static std::map<const char *, size_t> host_memory; /* of alloc_host, by its end */

namespace shim {

bool capturing() { return under_way; }

void capture(const void *stream, std::function<void()> work) {
    CHECK(joined.count(stream), "work on a stream that does not belong to the capture");
    joined[stream] = stream == origin;
    under_way->work.push_back(std::move(work));
}

/* Entries that call the CPU's kernels: their arguments, and what these point to, are kept. */
template <class T> struct Copy {
    T value;
    operator const T *() const { return &value; }
};
template <class T> static T held(T x) { return x; }
static Copy<Gemm> held(const Gemm *x) { return {*x}; }
static Copy<Attention> held(const Attention *x) { return {*x}; }
static Copy<Conv> held(const Conv *x) { return {*x}; }

template <auto Entry> struct Later;
template <class... A, void (*Backend::*Entry)(Stream *, A...)> struct Later<Entry> {
    static void call(Stream *s, A... a) {
        if (!capturing()) return (BACKEND_SHIM.*Entry)(s, a...);
        capture(s, [s, values = std::make_tuple(held(a)...)] {
            std::apply([s](const auto &...x) { (BACKEND_SHIM.*Entry)(s, x...); }, values);
        });
    }
};

} // namespace shim

/* ---- memory -----------------------------------------------------------------------------------*/

static void *allocate(size_t bytes) {
    CHECK(!under_way, "memory is wanted during a capture");
    return BACKEND_SHIM.alloc(bytes);
}

static void *allocate_host(size_t bytes) {
    char *p = (char *)allocate(bytes);
    if (p) host_memory[p + bytes] = bytes;
    return p;
}

static void release_host(void *p) {
    for (auto i = host_memory.begin(); i != host_memory.end(); ++i)
        if (i->first - i->second == p) {
            host_memory.erase(i);
            break;
        }
    BACKEND_SHIM.release_host(p);
}

static void check_host(const void *p) {
    auto i = host_memory.upper_bound((const char *)p);
    CHECK(!under_way || (i != host_memory.end() && i->first - i->second <= p),
          "a copy of ordinary host memory during a capture");
}

static void upload(Stream *s, void *device, const void *host, size_t bytes) {
    check_host(host);
    shim::Later<&Backend::upload>::call(s, device, host, bytes);
}

static void download(Stream *s, void *host, const void *device, size_t bytes) {
    check_host(host);
    shim::Later<&Backend::download>::call(s, host, device, bytes);
}

static void host_call(Stream *s, HostCall *call, const void *args, size_t bytes) {
    if (!under_way) return BACKEND_SHIM.host_call(s, call, args, bytes);
    const char *from = (const char *)args;
    std::vector<char> kept(from, from + bytes);
    shim::capture(s, [=] { BACKEND_SHIM.host_call(s, call, kept.data(), kept.size()); });
}

static void upload_cast(Stream *s, DType from, DType to, int64_t n, const void *host, void *dst) {
    CHECK(!under_way, "host memory is read during a capture");
    BACKEND_SHIM.upload_cast(s, from, to, n, host, dst);
}

/* ---- streams ----------------------------------------------------------------------------------*/

static void sync(Stream *s) {
    CHECK(!under_way, "a stream is synced during a capture");
    BACKEND_SHIM.stream_sync(s);
}

static void after(Stream *s, Stream *other) {
    if (!under_way) return;
    CHECK(joined.count(other), "a stream of the capture waits for one outside");
    joined.insert({s, true});
    joined[other] = true;
}

static bool begin(Stream *s) {
    CHECK(!under_way, "a capture within a capture");
    counts.begun++;
    under_way = new Captured;
    origin = s;
    joined = {{s, true}};
    return true;
}

static Captured *end(Stream *s) {
    CHECK(under_way && s == origin, "this stream is not captured");
    for (auto &i : joined) CHECK(i.second, "the capture ends before a stream that belongs to it");
    Captured *c = under_way;
    under_way = NULL;
    if (!counts.refuse) return c;
    delete c;
    return NULL;
}

static void replay(Stream *s, Captured *c) {
    (void)s;
    CHECK(!under_way, "a replay within a capture");
    counts.replayed++;
    for (auto &work : c->work) work();
}

static void captured_close(Captured *c) { delete c; }

void shim_refuse(bool refuse) { counts.refuse = refuse; }

const Backend *shim_capturing(void) {
    static Backend table = BACKEND_SHIM;
    table.name = "capturing";
    table.alloc = allocate;
    table.alloc_host = allocate_host;
    table.release_host = release_host;
    table.upload = upload;
    table.download = download;
    table.upload_cast = upload_cast;
    table.host_call = host_call;
    table.stream_sync = sync;
    table.stream_after = after;
    table.capture_begin = begin;
    table.capture_end = end;
    table.replay = replay;
    table.captured_close = captured_close;
#define LATER(name) table.name = shim::Later<&Backend::name>::call
    LATER(copy), LATER(copy_rows), LATER(zero), LATER(gemm), LATER(attention);
    LATER(attention_grad), LATER(conv_pack), LATER(conv);
    return &table;
}
