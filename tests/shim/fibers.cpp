/* Owns the shim's scheduler: blocks on threads of the CPU, the CUDA threads of a block on fibers.
 *
 * A fiber runs until it waits at a barrier that others have yet to reach. Each thread of the CPU
 * runs one block at a time, so that shared memory is what that thread alone sees.
 */
#include "tests/shim/fibers.h"
#include "tests/shim/captures.h"
#include "tests/shim/cuda_on_cpu.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <sys/mman.h>
#include <thread>
#include <vector>

/* void shim_swap(void **save, void *to): pushes the registers that a function must preserve, saves
 * the stack pointer, and returns on the other stack. */
asm(".text\n"
    ".globl shim_swap\n"
    ".type shim_swap, @function\n"
    "shim_swap:\n"
    "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    "mov %rsp, (%rdi)\n"
    "mov %rsi, %rsp\n"
    "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n"
    "ret\n"
    ".size shim_swap, . - shim_swap\n");
extern "C" void shim_swap(void **save, void *to);

/* AddressSanitizer wants to know of stacks; these are NULL where it is not linked. */
extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void **save, const void *bottom,
                                                          size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void *save, const void **bottom,
                                                           size_t *size);
}

namespace shim {

__thread Place here = {{0, 0, 0}, {0, 0, 0}, dim3(), dim3()};

namespace {

/* Stacks lie so that their used ends do not all fall into the same sets of the CPU's caches. */
enum {
    STACK = 64 << 10,
    STACK_STEP = STACK + 17 * 64,
    WARP = 32,
    MAX_THREADS = 1024,
    SHARED_LIMIT = 48 << 10
};
const uint64_t CANARY = UINT64_C(0x5ca1ab1e0ddba11);

/* A barrier over the threads that have not left yet. */
struct Barrier {
    int arrived, alive;
    unsigned round;
};

struct Fiber {
    void *stack_pointer, *fake_stack;
    char *stack;
    uint3 thread;
    int flat;
    bool started, done;
    Barrier *waits;
    unsigned round; /* of the barrier it waits at */
    unsigned shuffles;
};

struct Block {
    const char *kernel;
    const std::function<void()> *body;
    int count;
    Fiber fibers[MAX_THREADS];
    Barrier all, warps[MAX_THREADS / WARP];
    /* What lanes bring to shuffles; two, so that one barrier a shuffle is enough. */
    uint64_t slots[2][MAX_THREADS];
    char *shared, *stacks;
    void *scheduler, *fake_stack;
    const void *scheduler_bottom;
    size_t scheduler_size;
    Fiber *running;
};

__thread Block *block;
std::atomic<uint64_t> seed{[] {
    const char *text = getenv("COGSMITH_SHIM_SEED");
    return text ? strtoull(text, nullptr, 10) : 0;
}()};

[[noreturn]] void stop(const char *why) {
    fprintf(stderr, "shim: %s, block (%u,%u,%u), thread (%u,%u,%u): %s\n",
            block ? block->kernel : "launch", here.block.x, here.block.y, here.block.z,
            here.thread.x, here.thread.y, here.thread.z, why);
    abort();
}

uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15); /* splitmix64 */
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

void to_scheduler(bool last) {
    Fiber *f = block->running;
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(last ? nullptr : &f->fake_stack, block->scheduler_bottom,
                                       block->scheduler_size);
    shim_swap(&f->stack_pointer, block->scheduler);
    if (__sanitizer_finish_switch_fiber)
        __sanitizer_finish_switch_fiber(f->fake_stack, nullptr, nullptr);
}

void open_if_full(Barrier *b) {
    if (!b->alive || b->arrived < b->alive) return;
    b->arrived = 0;
    b->round++;
}

void wait(Barrier *b) {
    Fiber *f = block->running;
    f->waits = b;
    f->round = b->round;
    b->arrived++;
    open_if_full(b);
    while (b->round == f->round) to_scheduler(false);
    f->waits = nullptr;
}

void leave(Barrier *b) {
    b->alive--;
    open_if_full(b);
}

extern "C" void shim_enter() {
    if (__sanitizer_finish_switch_fiber)
        __sanitizer_finish_switch_fiber(nullptr, &block->scheduler_bottom, &block->scheduler_size);
    (*block->body)();
    Fiber *f = block->running;
    f->done = true;
    Barrier *warp = &block->warps[f->flat / WARP];
    if (warp->arrived) stop("ends while lanes of its warp wait for it in a shuffle or __syncwarp");
    leave(&block->all);
    leave(warp);
    to_scheduler(true);
}

/* The stack as shim_swap leaves one: six registers, then where to return to. */
void prepare_stack(Fiber *f) {
    void **top = (void **)(f->stack + STACK) - 2;
    *top = (void *)shim_enter;
    f->stack_pointer = top - 6;
    memset(f->stack_pointer, 0, 6 * sizeof *top);
    memcpy(f->stack, &CANARY, sizeof CANARY);
}

void run_fiber(Block *b, Fiber *f) {
    b->running = f;
    here.thread = f->thread;
    if (!f->started) prepare_stack(f);
    f->started = true;
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(&b->fake_stack, f->stack, STACK);
    shim_swap(&b->scheduler, f->stack_pointer);
    if (__sanitizer_finish_switch_fiber)
        __sanitizer_finish_switch_fiber(b->fake_stack, nullptr, nullptr);
    if (f->done && memcmp(f->stack, &CANARY, sizeof CANARY))
        stop("the stack of 64 KiB is too small");
}

void begin_block(Block *b, size_t shared) {
    if (shared) memset(b->shared, 0xff, shared); /* NaN in every floating-point type */
    b->all = {0, b->count, 0};
    for (int i = 0; i < b->count; i++) {
        Fiber *f = &b->fibers[i];
        f->started = f->done = false;
        f->waits = nullptr;
        f->shuffles = 0;
        if (i % WARP == 0) b->warps[i / WARP] = {0, std::min<int>(WARP, b->count - i), 0};
    }
}

/* Numbers [0, n) in an order that `random` says; in theirs if it is 0. */
void shuffle(int n, uint64_t *random, int *order) {
    for (int i = 0; i < n; i++) order[i] = i;
    for (int i = n - 1; *random && i > 0; i--)
        std::swap(order[i], order[next_random(random) % (unsigned)(i + 1)]);
}

/* Runs the fibers of a warp in turn until all of them wait for others; whether one moved. */
bool run_warp(Block *b, int warp, const int *lanes, int *left) {
    bool moved = false;
    for (bool again = true; again; moved |= again) {
        again = false;
        for (int i = 0; i < WARP; i++) {
            int at = warp * WARP + lanes[i];
            Fiber *f = &b->fibers[at];
            if (at >= b->count || f->done || (f->waits && f->waits->round == f->round)) continue;
            again = true;
            run_fiber(b, f);
            *left -= f->done;
        }
    }
    return moved;
}

/* A warp runs as far as it can while the others stand: a barrier of the block that is missing shows
 * as soon as one warp may overtake another. */
void run_block(Block *b, uint64_t random) {
    int warps[MAX_THREADS / WARP], lanes[WARP], count = (b->count + WARP - 1) / WARP;
    shuffle(WARP, &random, lanes);
    for (int left = b->count; left;) {
        bool moved = false;
        shuffle(count, &random, warps);
        for (int i = 0; i < count; i++) moved |= run_warp(b, warps[i], lanes, &left);
        if (!moved) stop("some threads of the block never reach the barrier where others wait");
    }
}

/* Stacks stay mapped for the next launch. */
std::mutex spare_mutex;
std::vector<Block *> &spare = *new std::vector<Block *>;

Block *take_block() {
    std::lock_guard<std::mutex> lock(spare_mutex);
    if (!spare.empty()) {
        Block *b = spare.back();
        spare.pop_back();
        return b;
    }
    Block *b = (Block *)calloc(1, sizeof(Block));
    void *stacks = mmap(nullptr, (size_t)MAX_THREADS * STACK_STEP, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!b || stacks == MAP_FAILED) stop("no memory for stacks");
    b->stacks = (char *)stacks;
    return b;
}

void give_block(Block *b) {
    std::lock_guard<std::mutex> lock(spare_mutex);
    spare.push_back(b);
}

struct Launch {
    const char *kernel;
    dim3 grid, size;
    size_t shared;
    const std::function<void()> *body;
    uint64_t total, step, seed; /* block k is k * step % total in order of their numbers */
    std::atomic<uint64_t> next;
};

void work(Launch *l) {
    Block *b = take_block();
    block = b;
    b->kernel = l->kernel;
    b->body = l->body;
    b->count = (int)(l->size.x * l->size.y * l->size.z);
    b->shared = (char *)malloc(l->shared); /* of its exact size, for AddressSanitizer */
    here.block_size = l->size;
    here.grid_size = l->grid;
    for (int i = 0; i < b->count; i++) {
        unsigned u = (unsigned)i;
        b->fibers[i].flat = i;
        b->fibers[i].stack = b->stacks + (size_t)i * STACK_STEP;
        b->fibers[i].thread = {u % l->size.x, u / l->size.x % l->size.y,
                               u / (l->size.x * l->size.y)};
    }
    for (uint64_t k; (k = l->next++) < l->total;) {
        uint64_t at = (uint64_t)((unsigned __int128)k * l->step % l->total);
        here.block = {(unsigned)(at % l->grid.x), (unsigned)(at / l->grid.x % l->grid.y),
                      (unsigned)(at / ((uint64_t)l->grid.x * l->grid.y))};
        begin_block(b, l->shared);
        run_block(b, l->seed ? l->seed + at * 2 + 1 : 0);
    }
    free(b->shared);
    block = nullptr;
    give_block(b);
}

void check_sizes(const char *kernel, dim3 grid, dim3 size, size_t shared) {
    uint64_t threads = (uint64_t)size.x * size.y * size.z;
    bool right = grid.x && grid.y && grid.z && grid.x <= 0x7fffffffu && grid.y <= 65535 &&
                 grid.z <= 65535 && threads && threads <= MAX_THREADS && size.z <= 64 &&
                 shared <= SHARED_LIMIT;
    if (right) return;
    fprintf(stderr, "shim: %s: no GPU takes grid (%u,%u,%u), block (%u,%u,%u), shared %zu\n",
            kernel, grid.x, grid.y, grid.z, size.x, size.y, size.z, shared);
    abort();
}

/* A fiber may bring values to shuffles only while its whole warp is there. */
void check_warp(unsigned mask) {
    Fiber *f = block->running;
    if (mask != ~0u) stop("the shim knows whole warps only: the mask must be 0xffffffff");
    if (block->warps[f->flat / WARP].alive != WARP)
        stop("a shuffle or vote where lanes of the warp are missing");
}

/* A step that visits all of `total` blocks. */
uint64_t step_for(uint64_t total, uint64_t random) {
    uint64_t step = random ? 0 : 1;
    while (!step || std::gcd(step, total) != 1) step = next_random(&random) % total + 1;
    return step;
}

} // namespace

void wait_block() { wait(&block->all); }

void wait_warp(unsigned mask) {
    if (mask != ~0u) stop("the shim knows whole warps only: the mask must be 0xffffffff");
    wait(&block->warps[block->running->flat / WARP]);
}

uint64_t exchange(unsigned mask, uint64_t value, unsigned from) {
    check_warp(mask);
    Fiber *f = block->running;
    uint64_t *slots = block->slots[f->shuffles++ % 2];
    slots[f->flat] = value;
    wait(&block->warps[f->flat / WARP]);
    return slots[f->flat / WARP * WARP + (int)(from % WARP)];
}

unsigned ballot(unsigned mask, bool vote) {
    check_warp(mask);
    Fiber *f = block->running;
    uint64_t *slots = block->slots[f->shuffles++ % 2];
    slots[f->flat] = vote;
    wait(&block->warps[f->flat / WARP]);
    unsigned votes = 0;
    for (int i = 0; i < WARP; i++) votes |= (unsigned)slots[f->flat / WARP * WARP + i] << i;
    return votes;
}

void *dynamic_shared() { return block->shared; }

static void run(const char *kernel, dim3 grid, dim3 size, size_t shared,
                const std::function<void()> &body) {
    Launch l = {};
    l.kernel = kernel;
    l.grid = grid;
    l.size = size;
    l.shared = shared;
    l.body = &body;
    l.total = (uint64_t)grid.x * grid.y * grid.z;
    l.seed = seed;
    l.step = step_for(l.total, seed);
    uint64_t threads = std::min<uint64_t>(std::thread::hardware_concurrency(), l.total);
    std::vector<std::thread> helpers;
    for (uint64_t i = 1; i < threads && l.total * size.x * size.y * size.z > 8192; i++)
        helpers.emplace_back(work, &l);
    work(&l);
    for (std::thread &t : helpers) t.join();
}

void launch(const char *kernel, dim3 grid, dim3 size, size_t shared, const void *queue,
            const std::function<void()> &body) {
    check_sizes(kernel, grid, size, shared);
    if (capturing())
        capture(queue, [=] { run(kernel, grid, size, shared, body); });
    else
        run(kernel, grid, size, shared, body);
}

} // namespace shim

void shim_shuffle(uint64_t seed) { shim::seed = seed; }
