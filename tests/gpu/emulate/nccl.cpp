/*
 * NCCL between processes without GPUs, for tests: communicators of two ranks with a non-blocking configuration, which
 * send in one direction.
 *
 * Both processes map a piece of shared memory that the unique id names. Nothing is ever ready at once: a communicator
 * says ncclInProgress until its peer has come and for a few polls more, and so does every call on it, whose work is in
 * the stream only then. A send is done when the other side has taken its last byte. What real NCCL leaves to hang, or
 * to chance, ends the process here with a message: a receive that is enqueued before its send (behind which, on one
 * stream, two processes would wait for each other), sides that disagree about the bytes, a call before the last one is
 * over, memory that is not the device's. A communicator takes BUFFERS bytes of the GPU's memory.
 *
 * From the environment: EMULATED_NCCL, the version to pretend (22809; 0: there is no library); EMULATED_NCCL_FAULT:
 * `connect` fails to, `corrupt` changes a byte of what it receives.
 */
extern "C" {
#include "nccl_library.h"
}
#include "stream.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <functional>
#include <memory>
#include <sys/mman.h>
#include <unistd.h>

namespace {

enum { CHUNK = 1 << 16, SIZES = 64, POLLS = 3, BUFFERS = 4 << 20 };

[[noreturn]] void die(const char *what) {
    fprintf(stderr, "emulated NCCL: %s\n", what);
    abort();
}

const char *environment(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value ? value : otherwise;
}

bool faulty(const char *how) {
    return strcmp(environment("EMULATED_NCCL_FAULT", ""), how) == 0;
}

/* What the two processes share; fresh memory is zero. Bytes are counted from the first transfer on. */
struct wire {
    std::atomic<int> joined, aborted;
    std::atomic<uint64_t> sends; /* enqueued */
    std::atomic<uint64_t> sizes[SIZES];
    std::atomic<uint64_t> written, read;
    char data[CHUNK];
};

struct unmap {
    void operator()(wire *w) const { munmap(w, sizeof *w); }
};

/* A rank's side of a communicator. Closures in streams keep it alive. */
struct side {
    std::unique_ptr<wire, unmap> shared;
    int rank = 0, polls = 0;
    bool connected = false, aborted = false; /* of this side */
    std::function<void()> call;              /* what the call in progress will enqueue */
    uint64_t transfers = 0, bytes = 0;
};

/* True when the last byte has been taken; else as far as it goes. `begin` and `end` count the wire's bytes. */
bool push(wire *w, const char *data, uint64_t begin, uint64_t end) {
    uint64_t written = w->written;
    if (written < end && w->read == written) {
        uint64_t some = std::min<uint64_t>(end - written, CHUNK);
        memcpy(w->data, data + (written - begin), some);
        w->written = written + some;
    }
    return w->read == end;
}

bool pull(wire *w, char *data, uint64_t begin, uint64_t end) {
    uint64_t read = w->read, written = w->written;
    if (written > read) {
        memcpy(data + (read - begin), w->data, written - read);
        if (faulty("corrupt")) data[written - begin - 1] ^= 1;
        w->read = written;
    }
    return w->read == end;
}

/* Work of a stream that takes several looks. */
template <class Move> void enqueue(const std::shared_ptr<side> &self, cudaStream_t stream, Move move) {
    pen_emulate_enqueue(stream, [=] {
        if (!self->aborted && !move(self->shared.get())) pen_emulate_not_yet();
    });
}

wire *map_wire(const char *name) {
    int file = shm_open(name, O_CREAT | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, sizeof(wire)) != 0) die("no shared memory");
    void *memory = mmap(nullptr, sizeof(wire), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) die("no shared memory");
    return (wire *)memory;
}

} // namespace

struct ncclComm {
    std::shared_ptr<side> self;
};

static ncclResult_t begin_call(ncclComm_t comm, const void *data, size_t bytes, std::function<void()> call) {
    side &self = *comm->self;
    if (!self.connected || self.call) die("a call before the last one is over");
    if (!pen_emulate_is_device_memory(data, bytes)) die("rows that are not in the device's memory");
    self.call = std::move(call);
    self.polls = 0;
    self.transfers++;
    self.bytes += bytes;
    return ncclInProgress;
}

ncclResult_t ncclSend(const void *data, size_t count, ncclDataType_t, int peer, ncclComm_t comm, cudaStream_t stream) {
    std::shared_ptr<side> self = comm->self;
    if (self->rank != 0 || peer != 1) die("rank 0 sends, to rank 1");
    uint64_t begin = self->bytes, number = self->transfers;
    return begin_call(comm, data, count, [=] {
        self->shared->sizes[number % SIZES] = count;
        self->shared->sends++;
        enqueue(self, stream, [=](wire *w) { return push(w, (const char *)data, begin, begin + count); });
    });
}

ncclResult_t ncclRecv(void *data, size_t count, ncclDataType_t, int peer, ncclComm_t comm, cudaStream_t stream) {
    std::shared_ptr<side> self = comm->self;
    if (self->rank != 1 || peer != 0) die("rank 1 receives, from rank 0");
    uint64_t begin = self->bytes, number = self->transfers;
    if (self->shared->sends <= number) die("a receive is enqueued before its send: a cycle of those never ends");
    if (self->shared->sizes[number % SIZES] != count) die("a receive of other bytes than the send has");
    return begin_call(comm, data, count, [=] {
        enqueue(self, stream, [=](wire *w) { return pull(w, (char *)data, begin, begin + count); });
    });
}

/* ---- Communicators --------------------------------------------------------------------------------------------- */

ncclResult_t ncclGetVersion(int *version) {
    *version = atoi(environment("EMULATED_NCCL", "22809"));
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    static unsigned made;
    snprintf(id->internal, sizeof id->internal, "/emulated-nccl-%d-%u", (int)getpid(), made++);
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result) {
    switch (result) {
    case ncclSuccess: return "no error";
    case ncclSystemError: return "unhandled system error";
    case ncclRemoteError: return "remote process exited or there was a network error";
    default: return "another error";
    }
}

const char *ncclGetLastError(ncclComm_t) {
    return "emulated";
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config) {
    if (ranks != 2 || config->blocking != 0 || config->maxCTAs < 1) die("a communicator of another kind");
    auto self = std::make_shared<side>();
    self->shared.reset(map_wire(id.internal));
    self->rank = rank;
    if (++self->shared->joined == 2) shm_unlink(id.internal);
    pen_emulate_take_memory(BUFFERS);
    *comm = new ncclComm{self};
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *result) {
    side &self = *comm->self;
    *result = ncclInProgress;
    if (self.shared->joined < 2) return ncclSuccess;
    if (!self.connected || self.call) {
        if (++self.polls < POLLS) return ncclSuccess;
        if (self.call) self.call();
        self.call = nullptr;
        self.connected = true;
    }
    *result = faulty("connect") ? ncclSystemError : self.shared->aborted ? ncclRemoteError : ncclSuccess;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
    if (comm->self->call) die("a communicator ends in the middle of a call");
    comm->self->polls = 0;
    comm->self->connected = false;
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    if (!comm->self->connected) die("a communicator is destroyed before it is finalized");
    delete comm;
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
    comm->self->aborted = true;
    comm->self->shared->aborted = 1;
    comm->self->call = nullptr; /* it may hold the side itself */
    delete comm;
    return ncclSuccess;
}

/* ---- The library ----------------------------------------------------------------------------------------------- */

extern "C" pen_status pen_nccl_load(const pen_nccl **nccl) {
    static const pen_nccl table = {
#define ENTRY(name) nccl##name,
        PEN_NCCL_FUNCTIONS(ENTRY)
#undef ENTRY
    };
    if (atoi(environment("EMULATED_NCCL", "22809")) == 0)
        return pen_fail(PEN_UNSUPPORTED, "no NCCL: libnccl.so.2: cannot open shared object file");
    *nccl = &table;
    return PEN_OK;
}
