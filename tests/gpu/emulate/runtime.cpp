/* The emulated runtime: memory, streams and events; see emulate.h. */
#include "emulate.h"
#include "stream.hpp"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <set>
#include <unistd.h>
#include <vector>

/* Closures hold a launch's arguments as they were at its capture. */
struct CUgraph_st {
    std::vector<std::function<void()>> nodes;
};
struct CUgraphExec_st {
    std::vector<std::function<void()>> nodes;
};

struct CUstream_st {
    std::deque<std::function<void()>> work;
    bool at_work;
    CUgraph_st *capture; /* or NULL: what is enqueued goes there instead */
};

struct CUevent_st {
    cudaStream_t stream;
    unsigned flags;
    unsigned long long recorded, done; /* numbers of the last record, and of that which the stream has reached */
    double ms;
};

namespace {

enum { WORK_OF_A_POLL = 8 };

struct allocation {
    size_t bytes;
    bool device;
};

std::map<char *, allocation> allocations;
std::set<cudaStream_t> streams;
unsigned long long memory_left = 1ULL << 32, records;
enum pen_emulated_machine machine = PEN_EMULATE_GPU;
int gpus = 1;
bool lost, not_yet;
unsigned long long until_lost; /* pieces of work that are still done; 0: all */
cudaError_t last_error;
pen_emulated_graphs graphs;
int graphs_left = 1 << 30;

[[noreturn]] void die(const char *what) {
    fprintf(stderr, "emulated runtime: %s\n", what);
    abort();
}

cudaError_t result(cudaError_t error = cudaSuccess) {
    if (lost) error = cudaErrorLaunchFailure;
    if (error != cudaSuccess) last_error = error; /* also where it is only not ready */
    return error;
}

/* Whether [at, at + bytes) lies within an allocation of the kind. */
bool within(const void *at, size_t bytes, bool device) {
    char *begin = (char *)(size_t)at;
    auto found = allocations.upper_bound(begin);
    if (found == allocations.begin()) return false;
    --found;
    size_t offset = (size_t)(begin - found->first);
    return found->second.device == device && offset <= found->second.bytes && bytes <= found->second.bytes - offset;
}

/* While a stream is captured, its thread may enqueue kernels and copies within the device, and no more. */
void not_in_a_capture(const char *what) {
    for (cudaStream_t stream : streams)
        if (stream->capture) die(what);
}

cudaError_t allocate(void **memory, size_t bytes, bool device) {
    not_in_a_capture("memory is allocated in a capture");
    if (device && bytes > memory_left) return result(cudaErrorMemoryAllocation);
    if (lost) return result();
    void *pages = nullptr; /* without padding, which would hide what is read past the end */
    if (posix_memalign(&pages, 256, bytes) != 0) return result(cudaErrorMemoryAllocation);
    char *made = (char *)pages;
    memset(made, 0xff, bytes);
    allocations[made] = {bytes, device};
    if (device) memory_left -= bytes;
    *memory = made;
    return result();
}

/* Does so much of a stream's work; less where some of it waits. */
void work(cudaStream_t stream, size_t most) {
    if (stream->at_work) return; /* for an event of another stream, which waits for one of this */
    stream->at_work = true;
    for (; most > 0 && !stream->work.empty(); most--) {
        std::function<void()> next = std::move(stream->work.front());
        stream->work.pop_front();
        not_yet = false;
        if (!lost) next();
        if (not_yet) {
            stream->work.push_front(std::move(next));
            break;
        }
        if (until_lost > 0 && --until_lost == 0) lost = true;
    }
    not_yet = stream->at_work = false;
}

/* Does it all, however long that takes. */
void finish(cudaStream_t stream) {
    for (work(stream, ~(size_t)0); !stream->work.empty(); work(stream, ~(size_t)0)) usleep(20);
}

cudaError_t release(void *memory, bool device) {
    not_in_a_capture("memory is freed in a capture");
    auto found = allocations.find((char *)memory);
    if (found == allocations.end() || found->second.device != device) die("memory is freed that was not allocated so");
    for (cudaStream_t stream : streams) { /* as cudaFree and cudaFreeHost do */
        work(stream, ~(size_t)0);
        if (!stream->work.empty()) die("memory is freed, which waits for a stream that waits for another process");
    }
    if (device) memory_left += found->second.bytes;
    allocations.erase(found);
    free(memory);
    return result();
}

/* What the environment says, of a program that is not a test itself. */
unsigned long long environment(const char *name, unsigned long long otherwise) {
    const char *value = getenv(name);
    return value ? strtoull(value, nullptr, 10) : otherwise;
}

bool pretend() {
    static const char *const names[] = {"gpu", "no-driver", "old-driver", "no-device", "other-gpu"};
    const char *name = getenv("EMULATED_MACHINE");
    for (int i = 0; name && i < 5; i++)
        if (strcmp(name, names[i]) == 0) machine = (enum pen_emulated_machine)i;
    gpus = (int)environment("EMULATED_GPUS", 1);
    memory_left = environment("EMULATED_MEMORY", memory_left);
    until_lost = environment("EMULATED_LOST", 0);
    return true;
}
const bool pretending = pretend();

} // namespace

void pen_emulate_enqueue(cudaStream_t stream, std::function<void()> closure) {
    if (!stream) die("the default stream is not used");
    if (stream->capture)
        stream->capture->nodes.push_back(std::move(closure));
    else
        stream->work.push_back(std::move(closure));
}

void pen_emulate_not_yet() {
    not_yet = true;
}

void pen_emulate_look(cudaStream_t stream) {
    work(stream, WORK_OF_A_POLL);
}

bool pen_emulate_is_device_memory(const void *at, size_t bytes) {
    return within(at, bytes, true);
}

void pen_emulate_take_memory(unsigned long long bytes) {
    memory_left -= bytes < memory_left ? bytes : memory_left;
}

void pen_emulate_machine(pen_emulated_machine what) {
    machine = what;
}
void pen_emulate_lost(bool is) {
    lost = is;
}
void pen_emulate_memory(unsigned long long bytes) {
    memory_left = bytes;
}

/* ---- Devices --------------------------------------------------------------------------------------------------- */

cudaError_t cudaDriverGetVersion(int *version) {
    *version = machine == PEN_EMULATE_NO_DRIVER ? 0 : machine == PEN_EMULATE_OLD_DRIVER ? 11040 : CUDART_VERSION;
    return result();
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 0;
    if (machine == PEN_EMULATE_OLD_DRIVER || machine == PEN_EMULATE_NO_DRIVER)
        return result(cudaErrorInsufficientDriver);
    if (machine == PEN_EMULATE_NO_DEVICE) return result(cudaErrorNoDevice);
    *count = gpus;
    return result();
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    if (device < 0 || device >= gpus) return result(cudaErrorInvalidValue);
    *properties = {};
    strcpy(properties->name, "Emulated GPU");
    properties->major = 9;
    properties->multiProcessorCount = 2;
    properties->l2CacheSize = 1 << 16;
    return result();
}

cudaError_t cudaDeviceGetPCIBusId(char *address, int length, int device) {
    snprintf(address, (size_t)length, "ffff:%02x:00.0", (unsigned)device); /* nobody's */
    return result();
}

cudaError_t cudaSetDevice(int device) {
    return result(device >= 0 && device < gpus ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaGetLastError() {
    cudaError_t error = lost ? cudaErrorLaunchFailure : last_error;
    last_error = cudaSuccess;
    return error;
}

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    default: return "another error";
    }
}

cudaError_t pen_emulate_kernel_attributes() {
    return result(machine == PEN_EMULATE_OTHER_GPU ? cudaErrorNoKernelImageForDevice : cudaSuccess);
}

/* ---- Memory ---------------------------------------------------------------------------------------------------- */

cudaError_t cudaMalloc(void **memory, size_t bytes) {
    return allocate(memory, bytes, true);
}
cudaError_t cudaFree(void *memory) {
    return release(memory, true);
}
cudaError_t cudaMallocHost(void **memory, size_t bytes) {
    return allocate(memory, bytes, false);
}
cudaError_t cudaFreeHost(void *memory) {
    return release(memory, false);
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    *free_bytes = memory_left;
    *total_bytes = 1ULL << 32;
    return result();
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
    if (kind != cudaMemcpyDeviceToDevice) not_in_a_capture("a copy to or from the host in a capture");
    if (!within(to, bytes, kind != cudaMemcpyDeviceToHost)) die("a copy to memory that is not allocated so");
    if (!within(from, bytes, kind != cudaMemcpyHostToDevice)) die("a copy from memory that is not allocated so");
    pen_emulate_enqueue(stream, [=] { memmove(to, from, bytes); });
    return result();
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    if (!within(to, bytes, true)) die("memory is set that is not allocated so");
    pen_emulate_enqueue(stream, [=] { memset(to, value, bytes); });
    return result();
}

/* ---- Streams and events ---------------------------------------------------------------------------------------- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    *stream = new CUstream_st();
    streams.insert(*stream);
    return result();
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int) {
    return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    streams.erase(stream);
    delete stream;
    return result();
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    not_in_a_capture("a stream is waited for in a capture");
    finish(stream);
    return result();
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    unsigned long long number = event->recorded;
    pen_emulate_enqueue(stream, [=] {
        if (event->done < number) work(event->stream, WORK_OF_A_POLL);
        if (event->done < number) not_yet = true;
    });
    return result();
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    *event = new CUevent_st{nullptr, flags, 0, 0, 0};
    return result();
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    if (event->stream && event->done != event->recorded && !lost) die("an event is destroyed that is still to come");
    delete event;
    return result();
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    not_in_a_capture("an event is recorded in a capture");
    if (lost) return result();
    unsigned long long number = ++records;
    event->stream = stream;
    event->recorded = number;
    pen_emulate_enqueue(stream, [=] {
        event->done = number;
        event->ms =
            std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
    });
    return result();
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    not_in_a_capture("an event is polled in a capture");
    if (event->done == event->recorded || lost) return result();
    work(event->stream, WORK_OF_A_POLL);
    return result(cudaErrorNotReady); /* whoever asks again may hear otherwise */
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end) {
    if (begin->flags || end->flags || !begin->recorded || !end->recorded) return result(cudaErrorInvalidValue);
    if (begin->done != begin->recorded || end->done != end->recorded) return result(cudaErrorNotReady);
    *ms = (float)(end->ms - begin->ms);
    return result();
}

/* ---- Graphs ---------------------------------------------------------------------------------------------------- */

pen_emulated_graphs pen_emulate_graphs() {
    return graphs;
}
void pen_emulate_graphs_left(int count) {
    graphs_left = count;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode) {
    not_in_a_capture("a capture in a capture");
    if (!lost) stream->capture = new CUgraph_st();
    return result();
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = stream->capture;
    stream->capture = nullptr;
    if (!*graph) return result(cudaErrorStreamCaptureUnsupported);
    graphs.captured++;
    graphs.nodes = (int)(*graph)->nodes.size();
    return result();
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = nullptr;
    if (graphs_left == 0) return result(cudaErrorMemoryAllocation);
    graphs_left--;
    *exec = new CUgraphExec_st{graph->nodes};
    return result();
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return result();
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return result();
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    if (lost) return result();
    graphs.launched++;
    for (const std::function<void()> &node : exec->nodes) pen_emulate_enqueue(stream, node);
    return result();
}
