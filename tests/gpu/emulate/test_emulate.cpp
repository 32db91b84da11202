/*
 * The emulation notices what it is for: barriers and shuffles that not all threads reach, a barrier that is missing,
 * copies that a host may not ask for, work that is expected before its time. Each deadly mistake is made in a child.
 */
#include "emulate.cuh"
#include "emulate.h"

#include <cstdio>
#include <cstdlib>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

static int failures;

static void expect(bool holds, const char *what) {
    printf("%s: %s\n", holds ? "ok" : "FAILED", what);
    failures += !holds;
}

/* A stream, and a launch of one block that has been waited for. */
struct machine {
    cudaStream_t stream;
    machine() { cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking); }
    ~machine() { cudaStreamDestroy(stream); }
    void run(unsigned threads, std::function<void()> kernel) {
        pen_emulate_launch(dim3(1), dim3(threads), stream, kernel);
        cudaStreamSynchronize(stream);
    }
};

template <class Mistake> static void expect_abort(const char *what, Mistake mistake) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        mistake();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    expect(WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) != 0), what);
}

/* Every thread passes its number on to the next; `careful` waits in between. */
static std::vector<int> rotate(bool careful, unsigned order) {
    static int shared[64];
    std::vector<int> got(64);
    machine m;
    for (int &value : shared) value = -1;
    pen_emulate_order(order);
    m.run(64, [&] {
        shared[threadIdx.x] = (int)threadIdx.x;
        if (careful) __syncthreads();
        got[threadIdx.x] = shared[(threadIdx.x + 1) % 64];
    });
    pen_emulate_order(0);
    return got;
}

static void all_threads_meet() {
    machine m;
    std::vector<int> sums(96);
    m.run(96, [&] {
        int value = (int)threadIdx.x;
        for (int step = 1; step < 32; step *= 2) value += __shfl_xor_sync(0xffffffffU, value, step);
        sums[threadIdx.x] = value;
    });
    bool right = true;
    for (int i = 0; i < 96; i++) right &= sums[(size_t)i] == 496 + i / 32 * 1024;
    expect(right, "warps sum by themselves");
}

static void copies_run_late() {
    machine m;
    char *host, *device;
    cudaMallocHost((void **)&host, 16);
    cudaMalloc((void **)&device, 16);
    strcpy(host, "first");
    cudaMemcpyAsync(device, host, 16, cudaMemcpyHostToDevice, m.stream);
    strcpy(host, "second");
    cudaStreamSynchronize(m.stream);
    expect(strcmp(device, "second") == 0, "a copy reads its source when its turn comes");
    cudaFree(device);
    cudaFreeHost(host);
}

int main() {
    all_threads_meet();
    copies_run_late();
    expect(rotate(true, 0) == rotate(true, 1) && rotate(true, 0) == rotate(true, 2), "a barrier makes orders alike");
    expect(rotate(false, 0) != rotate(false, 1), "a missing barrier shows");
    expect_abort("a barrier that some threads leave out", [] {
        machine().run(64, [] {
            if (threadIdx.x != 5) __syncthreads();
        });
    });
    expect_abort("a shuffle that some lanes leave out", [] {
        machine().run(32, [] {
            if (threadIdx.x != 5) __shfl_xor_sync(0xffffffffU, 1, 1);
        });
    });
    expect_abort("a copy from memory that is not pinned", [] {
        machine m;
        char host[16];
        void *device;
        cudaMalloc(&device, 16);
        cudaMemcpyAsync(device, host, 16, cudaMemcpyHostToDevice, m.stream);
    });
    expect_abort("a copy past the end of an allocation", [] {
        machine m;
        void *host, *device;
        cudaMalloc(&device, 16);
        cudaMallocHost(&host, 17);
        cudaMemcpyAsync(device, host, 17, cudaMemcpyHostToDevice, m.stream);
    });
    return failures > 0;
}
