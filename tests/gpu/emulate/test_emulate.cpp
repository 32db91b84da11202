/*
 * The emulation notices what it is for: barriers and shuffles that not all threads reach, a barrier that is missing,
 * copies that a host may not ask for, work that is expected before its time. Each deadly mistake is made in a child.
 */
#include "emulate.cuh"
#include "emulate.h"
#include "nccl.h"
#include "stream.hpp"

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

static void streams_wait_for_each_other() {
    machine first, second;
    cudaEvent_t event;
    std::vector<int> order;
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    pen_emulate_enqueue(first.stream, [&] { order.push_back(1); });
    cudaEventRecord(event, first.stream);
    cudaStreamWaitEvent(second.stream, event, 0);
    pen_emulate_enqueue(second.stream, [&] { order.push_back(2); });
    cudaStreamSynchronize(second.stream);
    expect(order == std::vector<int>({1, 2}), "a stream waits for an event of another");
    cudaEventDestroy(event);
}

/* Both sides of a communicator, in one process; `data` is the device's. */
struct pair {
    machine sender, receiver;
    ncclComm_t comms[2];
    char *data;
    pair() {
        ncclUniqueId id;
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        config.blocking = 0;
        config.maxCTAs = 1;
        ncclGetUniqueId(&id);
        for (int i = 0; i < 2; i++) ncclCommInitRankConfig(&comms[i], 2, id, i, &config);
        cudaMalloc((void **)&data, 2000000);
    }
    ~pair() {
        for (ncclComm_t comm : comms) ncclCommAbort(comm);
        cudaFree(data);
    }
    /* Until a side's last call is over; how often it was not. */
    int settle(int side) {
        ncclResult_t result = ncclInProgress;
        int looks = -1;
        for (; result == ncclInProgress; looks++) ncclCommGetAsyncError(comms[side], &result);
        return looks;
    }
    ncclResult_t send(size_t bytes) { return ncclSend(data, bytes, ncclUint8, 1, comms[0], sender.stream); }
    ncclResult_t receive(size_t bytes) {
        return ncclRecv(data + 1000000, bytes, ncclUint8, 0, comms[1], receiver.stream);
    }
};

static void rows_go_from_side_to_side() {
    pair p;
    cudaEvent_t sent;
    cudaEventCreateWithFlags(&sent, cudaEventDisableTiming);
    expect(p.settle(0) > 0 && p.settle(1) > 0, "a communicator is not there at once");
    for (int i = 0; i < 1000000; i++) p.data[i] = (char)(i % 119);
    expect(p.send(1000000) == ncclInProgress && p.settle(0) > 0, "nor is a call over");
    cudaEventRecord(sent, p.sender.stream);
    for (int i = 0; i < 10; i++) cudaEventQuery(sent);
    expect(cudaEventQuery(sent) == cudaErrorNotReady, "a send that nobody receives is not done");
    p.receive(1000000);
    p.settle(1);
    while (cudaEventQuery(sent) != cudaSuccess) pen_emulate_look(p.receiver.stream);
    expect(memcmp(p.data, p.data + 1000000, 1000000) == 0, "it arrives");
    cudaEventDestroy(sent);
}

static void mistakes_with_nccl() {
    expect_abort("a receive before its send", [] {
        pair p;
        p.settle(0), p.settle(1);
        p.receive(10);
    });
    expect_abort("a receive of other bytes than were sent", [] {
        pair p;
        p.settle(0), p.settle(1);
        p.send(10);
        p.settle(0);
        p.receive(11);
    });
    expect_abort("a call before the last one is over", [] {
        pair p;
        p.settle(0), p.settle(1);
        p.send(10);
        p.send(10);
    });
    expect_abort("a call before the communicator is there", [] { pair().send(10); });
    expect_abort("rows in host memory", [] {
        pair p;
        char host[10];
        p.settle(0), p.settle(1);
        ncclSend(host, 10, ncclUint8, 1, p.comms[0], p.sender.stream);
    });
    expect_abort("memory that is freed while a stream waits for another process", [] {
        pair p;
        p.settle(0), p.settle(1);
        p.send(10);
        p.settle(0);
        cudaFree(p.data);
    });
}

/* A graph keeps what a launch was given; what that points to is read when it runs. */
static void graphs_keep_arguments() {
    machine m;
    int argument = 1, *at, got[2] = {};
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaMalloc((void **)&at, sizeof *at);
    *at = 1;
    cudaStreamBeginCapture(m.stream, cudaStreamCaptureModeThreadLocal);
    pen_emulate_launch(dim3(1), dim3(32), m.stream, [=, &got] {
        got[0] = argument;
        got[1] = *at;
    });
    cudaStreamEndCapture(m.stream, &graph);
    cudaGraphInstantiateWithFlags(&exec, graph, 0);
    cudaGraphDestroy(graph);
    cudaStreamSynchronize(m.stream);
    expect(got[0] == 0, "what is captured does not run");
    argument = *at = 2;
    cudaGraphLaunch(exec, m.stream);
    cudaStreamSynchronize(m.stream);
    expect(got[0] == 1 && got[1] == 2, "a graph keeps arguments, not what they point to");
    cudaGraphExecDestroy(exec);
    cudaFree(at);
}

int main() {
    graphs_keep_arguments();
    all_threads_meet();
    copies_run_late();
    streams_wait_for_each_other();
    rows_go_from_side_to_side();
    mistakes_with_nccl();
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
    expect_abort("a thread that does not wait for the kernel before", [] {
        machine().run(32, [] {
            if (threadIdx.x != 5) follow();
            pen_emulate_end_of_thread();
        });
    });
    expect_abort("a copy to the host in a capture", [] {
        machine m;
        void *host, *device;
        cudaMalloc(&device, 16);
        cudaMallocHost(&host, 16);
        cudaStreamBeginCapture(m.stream, cudaStreamCaptureModeThreadLocal);
        cudaMemcpyAsync(host, device, 16, cudaMemcpyDeviceToHost, m.stream);
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
