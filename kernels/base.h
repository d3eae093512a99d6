/* What every file may rely on: the number types, the two kinds of failure, small helpers.
 *
 * This is the only file in which #ifdef is legal. The f64 build (gradient checks) compiles the
 * same sources with REAL_IS_DOUBLE; `real` is then double and DT_REAL is DT_F64.
 */
#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* LAUNCH(kernel, grid, block, shared, queue, arguments ...) starts a CUDA kernel; in it,
 * DYN_SHARED(type, name) declares the `shared` bytes. Without nvcc it is tests/shim that says what
 * these do. */
#ifdef __CUDACC__
#define HD __host__ __device__
#define LAUNCH(kernel, grid, block, shared, queue, ...)                                            \
    kernel<<<(grid), (block), (shared), (queue)>>>(__VA_ARGS__)
#define DYN_SHARED(type, name)                                                                     \
    extern __shared__ uint4 dyn_shared[];                                                          \
    type *name = (type *)dyn_shared
#else
#define HD
#endif

#ifdef __cplusplus
#define NORETURN [[noreturn]]
#define C_BEGIN extern "C" {
#define C_END }
#else
#define NORETURN _Noreturn
#define C_BEGIN
#define C_END
#endif

#ifdef REAL_IS_DOUBLE
typedef double real;
#define DT_REAL DT_F64
#else
typedef float real;
#define DT_REAL DT_F32
#endif

/* The widest vector registers that the CPU kernels count on. */
#ifdef __AVX512F__
#define VECTOR_BYTES 64
#else
#define VECTOR_BYTES 32
#endif

/* Products of the lower halves of 64-bit lanes, of two vectors of VECTOR_BYTES. gcc alone does not
 * find the instruction by itself. */
#if defined(__AVX512F__) && !defined(__clang__)
#define LOW_PRODUCTS(a, b)                                                                         \
    __builtin_ia32_pmuludq512_mask((IntVector)(a), (IntVector)(b), (LongVector)(a), (uint8_t)-1)
#elif defined(__AVX2__) && !defined(__clang__)
#define LOW_PRODUCTS(a, b) __builtin_ia32_pmuludq256((IntVector)(a), (IntVector)(b))
#else
#define LOW_PRODUCTS(a, b) (((a) & 0xffffffffu) * ((b) & 0xffffffffu))
#endif

/* Stores a vector past the caches, where that can be said: memory need not be read first. p lies at
 * a multiple of the vector's bytes. STREAM_FENCE before another thread reads it. */
#if defined(__clang__)
#define STREAM_STORE(p, v) __builtin_nontemporal_store(v, p)
#elif defined(__AVX512F__)
#define STREAM_STORE(p, v) __builtin_ia32_movntdq512((LongVector *)(p), (LongVector)(v))
#elif defined(__AVX__)
#define STREAM_STORE(p, v) __builtin_ia32_movntdq256((LongVector *)(p), (LongVector)(v))
#else
#define STREAM_STORE(p, v) ((void)(*(p) = (v)))
#endif
#ifdef __SSE__
#define STREAM_FENCE() __builtin_ia32_sfence()
#else
#define STREAM_FENCE() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#endif

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* Number types as they are stored. Arithmetic is done in DT_REAL, DT_BF16 and DT_F16 only; the
 * others occur in files and in index inputs. The names are those of safetensors ("F32", "BF16"). */
typedef enum {
    DT_F32,
    DT_BF16,
    DT_F16,
    DT_F64,
    DT_I64,
    DT_I32,
    DT_I16,
    DT_I8,
    DT_U64,
    DT_U32,
    DT_U16,
    DT_U8,
    DT_BOOL,
    DT_F8_E4M3,
    DT_F8_E5M2,
    DT_COUNT
} DType;

C_BEGIN

size_t dtype_size(DType t);                       /* bytes of one element */
const char *dtype_name(DType t);                  /* "F32" */
bool dtype_from_name(const char *name, DType *t); /* false: no such type */

static inline int64_t align_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* Exit codes of the program (the interface of scripts; see README). */
enum { EXIT_WORLD = 1, EXIT_USER = 2, EXIT_DATA = 3, EXIT_STOPPED = 75 };

/* A failure that the caller decides about. `text` is one or more complete sentences without the
 * trailing newline: where, what was expected, how to mend it. exit_code 0 means no error. */
typedef struct {
    int exit_code;
    char text[1200];
} Error;

/* Whether a character of UTF-8 is a control character, of ASCII or of the C1 set, that a terminal
 * could obey. */
static inline bool is_control(const char *c) {
    unsigned char a = (unsigned char)c[0];
    return a < 0x20 || a == 0x7f || (a == 0xc2 && (unsigned char)c[1] < 0xa0);
}
/* Puts '?' in the place of control characters, in texts that quote paths and files; `lines`: the
 * text has lines, which stay. */
void text_disarm(char *text, bool lines);

/* Fills *e (which may be NULL) and returns false, so that `return error_set(...)` reads well. The
 * text is disarmed: it is one line, and a terminal obeys nothing in it. */
bool error_set(Error *e, int exit_code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* A user's mistake: prints "cogsmith: " and the text, disarmed but for its lines, on stderr, and
 * ends the program with 2. */
NORETURN void die(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Ends the program with an error's own text and exit code. */
NORETURN void die_error(const Error *e);

/* For one of several ranks, which often fail alike: from now on a failure is told with `who`
 * ("rank 3: ") and after so many seconds, which this process does not live to see where another has
 * told it and so ended them all. */
void die_after(double seconds, const char *who);

/* A bug: prints file:line, the condition and the text, and aborts. */
NORETURN void check_failed(const char *file, int line, const char *condition, const char *format,
                           ...) __attribute__((format(printf, 4, 5)));
#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) check_failed(__FILE__, __LINE__, #condition, __VA_ARGS__);               \
    } while (0)

/* Host memory for metadata; ends the program when there is none. Never returns NULL. */
void *xcalloc(size_t count, size_t size);
void *xrealloc(void *p, size_t size);
char *xstrdup(const char *s);
/* A formatted string of its own memory. */
char *xprintf(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Seconds of a monotonic clock. */
double now_seconds(void);

C_END
