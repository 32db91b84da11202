/*
 * Threads of a block as fibers: each has a stack, runs until it waits for a barrier or for its warp, and is resumed
 * when all have got there. What cannot happen on a GPU without a hang or undefined behaviour ends the test: a barrier
 * that some threads have left behind, a shuffle that not all lanes meet.
 */
#include "emulate.cuh"
#include "emulate.h"
#include "stream.hpp"

#include <cstdio>
#include <cstdlib>
#include <random>
#include <sys/mman.h>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

enum { LANES = 32, STACK = 256 << 10, EXCHANGED = 16, THREADS_MAX = 1024 };

enum state { READY, AT_BARRIER, AT_EXCHANGE, DONE };

struct fiber {
    char *stack;
    void *pointer; /* of the stack, while it does not run */
    void *fake;    /* ASan's */
    enum state state;
    dim3 index;
    unsigned number; /* in the block */
};

struct warp {
    unsigned arrived;
    uint64_t round;
    size_t size;
    char bytes[2][LANES][EXCHANGED]; /* by round: a quick lane puts down the next before a slow one has read the last */
};

std::vector<fiber> fibers;
std::vector<warp> warps;
fiber *current;
void *scheduler_pointer, *scheduler_fake;
const void *scheduler_stack;
size_t scheduler_stack_bytes;
const std::function<void()> *body;
unsigned thread_order;

[[noreturn]] void die(const char *what) {
    fprintf(stderr, "emulated kernel: %s (block %u,%u,%u thread %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z,
            current ? current->number : 0);
    abort();
}

} // namespace

/* Saves the callee's registers on this stack and goes on where the other one was saved. */
extern "C" void pen_emulate_switch(void **save, void *to);
asm(R"(
.text
.globl pen_emulate_switch
.type pen_emulate_switch, @function
pen_emulate_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size pen_emulate_switch, .-pen_emulate_switch
)");

namespace {

/* ASan follows: `fake` keeps what it knows of the stack that is left, NULL where that ends. */
void before_switch(void **fake, const void *stack, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(fake, stack, bytes);
#else
    (void)fake, (void)stack, (void)bytes;
#endif
}
void after_switch(void *fake, const void **left_stack, size_t *left_bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, left_stack, left_bytes);
#else
    (void)fake, (void)left_stack, (void)left_bytes;
#endif
}

void leave_to_scheduler() {
    fiber *self = current;
    before_switch(self->state == DONE ? nullptr : &self->fake, scheduler_stack, scheduler_stack_bytes);
    pen_emulate_switch(&self->pointer, scheduler_pointer);
    after_switch(self->fake, &scheduler_stack, &scheduler_stack_bytes);
}

void fiber_main() {
    after_switch(nullptr, &scheduler_stack, &scheduler_stack_bytes);
    (*body)();
    current->state = DONE;
    leave_to_scheduler();
    abort();
}

void resume(fiber *f) {
    current = f;
    threadIdx = f->index;
    before_switch(&scheduler_fake, f->stack, STACK);
    pen_emulate_switch(&scheduler_pointer, f->pointer);
    after_switch(scheduler_fake, nullptr, nullptr);
}

void start(fiber *f, unsigned number) {
    if (!f->stack) {
        void *memory = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) die("no memory for a stack");
        f->stack = (char *)memory;
    }
    void **top = (void **)(f->stack + STACK);
    *--top = nullptr; /* as if fiber_main had been called from nowhere */
    *--top = (void *)fiber_main;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    f->pointer = top;
    f->state = READY;
    f->number = number;
    f->index.x = number % blockDim.x;
    f->index.y = number / blockDim.x % blockDim.y;
    f->index.z = number / blockDim.x / blockDim.y;
}

/* Runs every warp up to a barrier, one after the other: as far apart as they may get. Returns how many threads are not
 * done. */
unsigned run_all(const std::vector<unsigned> &order) {
    unsigned resumed = 0, left = 0, waiting = 0;
    for (size_t first = 0; first < order.size(); first += LANES)
        for (bool again = true; again;) {
            again = false;
            for (size_t i = first; i < first + LANES; i++) {
                if (fibers[order[i]].state != READY) continue;
                resume(&fibers[order[i]]);
                again = true;
                resumed++;
            }
        }
    for (unsigned number : order) {
        left += fibers[number].state != DONE;
        waiting += fibers[number].state == AT_BARRIER;
    }
    if (waiting == order.size())
        for (unsigned number : order) fibers[number].state = READY;
    else if (left > 0 && resumed == 0)
        die("threads wait for others that do not come");
    return left;
}

/* Puts the warps, and the lanes of each, in the order that is asked for. */
void arrange(std::vector<unsigned> &order) {
    static std::mt19937 generator(5);
    unsigned threads = (unsigned)order.size(), lane[LANES];
    std::vector<unsigned> leaders;
    for (unsigned i = 0; i < threads; i += LANES) leaders.push_back(i);
    for (unsigned i = 0; i < LANES; i++) lane[i] = i;
    if (thread_order == 1) {
        std::reverse(leaders.begin(), leaders.end());
        std::reverse(lane, lane + LANES);
    } else if (thread_order > 1) {
        std::shuffle(leaders.begin(), leaders.end(), generator);
        std::shuffle(lane, lane + LANES, generator);
    }
    for (unsigned i = 0; i < threads; i++) order[i] = leaders[i / LANES] + lane[i % LANES];
}

void run_block(std::vector<unsigned> &order) {
    arrange(order);
    for (warp &w : warps) w = {};
    for (unsigned i = 0; i < order.size(); i++) start(&fibers[i], i);
    while (run_all(order) > 0) continue;
    current = nullptr;
}

void run_grid(dim3 grid, dim3 block, const std::function<void()> &thread) {
    unsigned threads = block.x * block.y * block.z;
    body = &thread;
    gridDim = grid;
    blockDim = block;
    if (fibers.size() < threads) fibers.resize(threads);
    warps.resize(threads / LANES);
    std::vector<unsigned> order(threads);
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) run_block(order);
}

} // namespace

void pen_emulate_launch(dim3 grid, dim3 block, cudaStream_t stream, std::function<void()> thread) {
    unsigned threads = block.x * block.y * block.z;
    if (threads == 0 || threads % LANES || threads > THREADS_MAX) die("a block of a strange size");
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffU || grid.y > 65535 || grid.z > 65535)
        die("a grid of a strange size");
    pen_emulate_enqueue(stream, [=] { run_grid(grid, block, thread); });
}

void pen_emulate_order(unsigned order) {
    thread_order = order;
}

void __syncthreads() {
    current->state = AT_BARRIER;
    leave_to_scheduler();
}

unsigned pen_emulate_lane() {
    return current->number % LANES;
}

const void *pen_emulate_exchange(unsigned mask, const void *bytes, size_t size, unsigned from) {
    fiber *self = current;
    warp *w = &warps[self->number / LANES];
    if (mask != 0xffffffffU || size > EXCHANGED || from >= LANES) die("a shuffle of a strange kind");
    if (w->arrived > 0 && w->size != size) die("lanes of a warp meet in different shuffles");
    uint64_t round = w->round;
    w->size = size;
    memcpy(w->bytes[round % 2][self->number % LANES], bytes, size);
    if (++w->arrived == LANES) {
        w->arrived = 0;
        w->round++;
        for (unsigned i = 0; i < LANES; i++) {
            fiber *lane = &fibers[self->number / LANES * LANES + i];
            if (lane->state == AT_EXCHANGE) lane->state = READY;
        }
    } else {
        self->state = AT_EXCHANGE;
        leave_to_scheduler();
    }
    return w->bytes[round % 2][from];
}
