/*
 * The CUDA device: finding a GPU, its objects, events and waiting, and the table that says which file does what.
 */
#include "cuda_device.h"

#include "clock.h"
#include "log.h"
#include "rope_table.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WRITE_RING = 16 << 20, READ_RING = 1 << 20, POLL_NS = 20000 };

/* ---- Failures and waiting -------------------------------------------------------------------------------------- */

bool pen_cuda_check(pen_cuda_device *device, cudaError_t error, const char *what) {
    if (error == cudaSuccess) return true;
    if (device->failure == cudaSuccess) {
        device->failure = error;
        device->failed = what;
    }
    return false;
}

cudaError_t pen_cuda_query(cudaEvent_t event) {
    cudaError_t error = cudaEventQuery(event);
    if (error == cudaErrorNotReady) cudaGetLastError(); /* the runtime keeps it otherwise */
    return error;
}

void pen_cuda_wait(pen_cuda_device *device, cudaEvent_t event) {
    while (device->failure == cudaSuccess) {
        cudaError_t error = pen_cuda_query(event);
        if (error != cudaErrorNotReady) {
            pen_cuda_check(device, error, "waiting for an event");
            return;
        }
        if (device->poke) device->poke(device->poke_context);
        pen_clock_sleep_until(pen_clock_ns() + POLL_NS);
    }
}

static pen_status first_failure(pen_device *base) {
    const pen_cuda_device *device = pen_cuda(base);
    if (device->failure == cudaSuccess) return PEN_OK;
    return pen_fail(PEN_INTERNAL, "%s failed in %s: %s", device->name, device->failed,
                    cudaGetErrorString(device->failure));
}

/* Waits for all that is enqueued: for a copy of nothing behind it. */
pen_status pen_cuda_sync(pen_device *base) {
    pen_cuda_device *device = pen_cuda(base);
    pen_cuda_check(device, pen_cuda_launch_failure(), "a launch");
    uint64_t reads = pen_cuda_staging_reads(device->reads);
    pen_cuda_staging_room(device->writes, 0);
    pen_cuda_staging_sent(device->writes);
    pen_cuda_staging_drain(device->writes);
    PEN_TRY(first_failure(base));
    pen_cuda_staging_land(device->reads, reads);
    return PEN_OK;
}

/* ---- Memory ---------------------------------------------------------------------------------------------------- */

pen_status pen_cuda_allocate(pen_cuda_device *device, size_t bytes, void *memory) {
    void *made = NULL;
    cudaError_t error = bytes > SIZE_MAX / 2 ? cudaErrorMemoryAllocation : cudaMalloc(&made, bytes ? bytes : 1);
    if (error != cudaSuccess && error != cudaErrorMemoryAllocation) {
        pen_cuda_check(device, error, "allocating memory");
        return first_failure(&device->base);
    }
    if (error != cudaSuccess) {
        size_t left = 0, total = 0;
        cudaGetLastError(); /* the runtime keeps it otherwise */
        cudaMemGetInfo(&left, &total);
        return pen_fail(PEN_NO_MEMORY, "cannot allocate %zu bytes on %s: %zu of %zu are free", bytes, device->name,
                        left, total);
    }
    device->bytes_used += bytes;
    memcpy(memory, &made, sizeof made);
    return PEN_OK;
}

void pen_cuda_release(pen_cuda_device *device, void *memory, size_t bytes) {
    if (!memory) return;
    pen_cuda_graphs_forget(device->graphs);
    cudaFree(memory); /* waits for the stream, which may be at work there */
    device->bytes_used -= bytes;
}

static pen_status no_memory(const char *what) {
    return pen_fail(PEN_NO_MEMORY, "no memory for %s", what);
}

static pen_status buffer_create(pen_device *device, size_t bytes, pen_buffer **buffer) {
    pen_cuda_buffer *made = calloc(1, sizeof *made);
    if (!made) return no_memory("a buffer");
    made->base = (pen_buffer){.device = device, .bytes = bytes};
    pen_status status = pen_cuda_allocate(pen_cuda(device), bytes, &made->data);
    if (status != PEN_OK) {
        free(made);
        return status;
    }
    *buffer = &made->base;
    return PEN_OK;
}

static void buffer_destroy(pen_buffer *buffer) {
    pen_cuda_release(pen_cuda(buffer->device), pen_cuda_data(buffer), buffer->bytes);
    free(buffer);
}

static void *buffer_host(pen_buffer *buffer) {
    (void)buffer;
    return NULL;
}

static void copy(pen_cuda_device *device, void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    pen_cuda_check(device, cudaMemcpyAsync(to, from, bytes, kind, device->stream), "copying between host and GPU");
}

static void buffer_write(pen_buffer *buffer, size_t offset, const void *source, size_t bytes) {
    pen_cuda_device *device = pen_cuda(buffer->device);
    unsigned char *target = (unsigned char *)pen_cuda_data(buffer) + offset;
    if (pen_cuda_is_pinned(device, source, bytes))
        copy(device, target, source, bytes, cudaMemcpyHostToDevice);
    else
        pen_cuda_staging_write(device->writes, target, source, bytes);
}

static void buffer_read(pen_buffer *buffer, size_t offset, void *target, size_t bytes) {
    pen_cuda_device *device = pen_cuda(buffer->device);
    const unsigned char *source = (const unsigned char *)pen_cuda_data(buffer) + offset;
    if (pen_cuda_is_pinned(device, target, bytes))
        copy(device, target, source, bytes, cudaMemcpyDeviceToHost);
    else
        pen_cuda_staging_read(device->reads, target, source, bytes);
}

static size_t activation_bytes(const pen_device *device, int rows, int cols) {
    return (size_t)rows * pen_cuda_row_bytes(device->activations, cols);
}

static size_t fine_bytes(const pen_device *device, int rows, int cols) {
    return (size_t)pen_cuda_parts(device->activations) * activation_bytes(device, rows, cols);
}

/* ---- The KV cache and the rotation table ----------------------------------------------------------------------- */

enum { KV_WIDTH = PEN_CUDA_HEAD_WIDTH };

static size_t kv_block_bytes(const pen_device *device, int kv_heads, int head_size) {
    size_t width = (size_t)(head_size + KV_WIDTH - 1) / KV_WIDTH * KV_WIDTH;
    return pen_type_row_bytes(device->kv_type, (int64_t)width) * PEN_KV_BLOCK * (size_t)kv_heads;
}

static size_t kv_bytes(const pen_device *device, int kv_heads, int head_size, int blocks) {
    return 2 * kv_block_bytes(device, kv_heads, head_size) * (size_t)blocks;
}

static pen_status kv_create(pen_device *device, int kv_heads, int head_size, int blocks, pen_kv **kv) {
    if (head_size > PEN_CUDA_HEAD_MAX)
        return pen_fail(PEN_UNSUPPORTED, "heads of %d values: a GPU can have %d", head_size, PEN_CUDA_HEAD_MAX);
    pen_cuda_kv *made = calloc(1, sizeof *made);
    if (!made) return no_memory("a KV cache");
    made->base.device = device;
    made->blocks = blocks;
    made->block_bytes = kv_block_bytes(device, kv_heads, head_size);
    made->pages = (pen_cuda_pages){.kv_heads = kv_heads,
                                   .head_size = head_size,
                                   .width = (head_size + KV_WIDTH - 1) / KV_WIDTH * KV_WIDTH,
                                   .half = device->kv_type == PEN_TYPE_F16};
    pen_status status =
        pen_cuda_allocate(pen_cuda(device), kv_bytes(device, kv_heads, head_size, blocks), &made->pages.k);
    if (status != PEN_OK) {
        free(made);
        return status;
    }
    made->pages.v = made->pages.k + made->block_bytes * (size_t)blocks;
    *kv = &made->base;
    return PEN_OK;
}

static void kv_destroy(pen_kv *base) {
    pen_cuda_kv *kv = (pen_cuda_kv *)base;
    pen_cuda_release(pen_cuda(base->device), kv->pages.k, 2 * kv->block_bytes * (size_t)kv->blocks);
    free(kv);
}

static void kv_copy(pen_device *base, pen_kv *base_kv, int from, int to) {
    const pen_cuda_kv *kv = (const pen_cuda_kv *)base_kv;
    pen_cuda_device *device = pen_cuda(base);
    assert(from >= 0 && from < kv->blocks && to >= 0 && to < kv->blocks && from != to);
    unsigned char *halves[] = {kv->pages.k, kv->pages.v};
    for (int i = 0; i < 2; i++)
        pen_cuda_check(device,
                       cudaMemcpyAsync(halves[i] + kv->block_bytes * (size_t)to,
                                       halves[i] + kv->block_bytes * (size_t)from, kv->block_bytes,
                                       cudaMemcpyDeviceToDevice, device->stream),
                       "copying a block of the KV cache");
}

static size_t rope_bytes(const pen_device *device, const pen_rope_options *options) {
    (void)device;
    return pen_rope_table_bytes(options);
}

static pen_status rope_create(pen_device *device, const pen_rope_options *options, pen_rope **rope) {
    pen_cuda_rope *made = calloc(1, sizeof *made);
    float *table = malloc(pen_rope_table_bytes(options));
    pen_status status = made && table ? PEN_OK : no_memory("a rotation table");
    if (status == PEN_OK) {
        *made = (pen_cuda_rope){.base.device = device,
                                .dims = options->dims,
                                .interleaved = options->interleaved,
                                .bytes = pen_rope_table_bytes(options)};
        status = pen_cuda_allocate(pen_cuda(device), made->bytes, &made->table);
    }
    if (status == PEN_OK) {
        pen_rope_table_fill(options, table);
        pen_cuda_staging_write(pen_cuda(device)->writes, made->table, table, made->bytes);
        *rope = &made->base;
    } else {
        free(made);
    }
    free(table);
    return status;
}

static void rope_destroy(pen_rope *base) {
    pen_cuda_rope *rope = (pen_cuda_rope *)base;
    pen_cuda_release(pen_cuda(base->device), rope->table, rope->bytes);
    free(rope);
}

/* ---- Events ---------------------------------------------------------------------------------------------------- */

static pen_status event_create(pen_device *device, pen_event **event) {
    pen_cuda_event *made = calloc(1, sizeof *made);
    if (!made) return no_memory("an event");
    made->base.device = device;
    cudaError_t error = cudaEventCreateWithFlags(&made->event, cudaEventDisableTiming);
    if (error != cudaSuccess) {
        free(made);
        return pen_fail(PEN_NO_MEMORY, "cannot create an event: %s", cudaGetErrorString(error));
    }
    *event = &made->base;
    return PEN_OK;
}

static void event_destroy(pen_event *base) {
    cudaEventDestroy(((pen_cuda_event *)base)->event);
    free(base);
}

static void event_record(pen_event *base) {
    pen_cuda_event *event = (pen_cuda_event *)base;
    pen_cuda_device *device = pen_cuda(base->device);
    event->reads = pen_cuda_staging_reads(device->reads);
    pen_cuda_check(device, pen_cuda_launch_failure(), "a launch");
    pen_cuda_check(device, cudaEventRecord(event->event, device->stream), "recording an event");
}

/* A failed device's events are never done; pen_device_status() says what happened. */
static bool event_done(const pen_event *base) {
    const pen_cuda_event *event = (const pen_cuda_event *)base;
    pen_cuda_device *device = pen_cuda(base->device);
    if (device->failure != cudaSuccess) return false;
    cudaError_t error = pen_cuda_query(event->event);
    if (error == cudaErrorNotReady || !pen_cuda_check(device, error, "waiting for an event")) return false;
    pen_cuda_staging_land(device->reads, event->reads);
    return true;
}

/* ---- The device ------------------------------------------------------------------------------------------------ */

static const char *name(const pen_device *device) {
    return pen_cuda(device)->name;
}

static size_t cache_bytes(const pen_device *device) {
    return pen_cuda(device)->cache_bytes;
}

static pen_status own_memory(pen_device *base, pen_own_memory *memory) {
    const pen_cuda_device *device = pen_cuda(base);
    memcpy(memory->bus, device->bus, sizeof memory->bus);
    cudaError_t error = cudaMemGetInfo(&memory->free_bytes, &memory->total_bytes);
    if (error == cudaSuccess) return PEN_OK;
    return pen_fail(PEN_INTERNAL, "%s does not say how much memory it has: %s", device->name,
                    cudaGetErrorString(error));
}

static size_t bytes_used(const pen_device *device) {
    return pen_cuda(device)->bytes_used;
}

static void set_poke(pen_device *device, pen_poke *poke, void *context) {
    pen_cuda(device)->poke = poke;
    pen_cuda(device)->poke_context = context;
    pen_pool_set_poke(pen_cuda(device)->pool, poke, context);
}

static void destroy(pen_device *base) {
    pen_cuda_device *device = pen_cuda(base);
    if (device->stream) cudaStreamSynchronize(device->stream);
    pen_cuda_release(device, device->arena.memory, device->arena.bytes);
    assert(device->bytes_used == 0 && !device->pinned);
    pen_cuda_graphs_destroy(device->graphs);
    pen_cuda_blas_destroy(device->blas);
    pen_pool_destroy(device->pool);
    pen_cuda_markers_destroy(device->markers);
    pen_cuda_staging_destroy(device->reads);
    pen_cuda_staging_destroy(device->writes);
    if (device->stream) cudaStreamDestroy(device->stream);
    free(device);
}

static const pen_device_class cuda_class = {
    .scratch_bytes = pen_cuda_scratch_bytes,
    .reserve = pen_cuda_reserve,
    .name = name,
    .cache_bytes = cache_bytes,
    .own_memory = own_memory,
    .bytes_used = bytes_used,
    .destroy = destroy,
    .set_poke = set_poke,
    .buffer_create = buffer_create,
    .buffer_destroy = buffer_destroy,
    .buffer_host = buffer_host,
    .buffer_write = buffer_write,
    .buffer_read = buffer_read,
    .host_create = pen_cuda_host_create,
    .host_destroy = pen_cuda_host_destroy,
    .activation_bytes = activation_bytes,
    .fine_bytes = fine_bytes,
    .weight_bytes = pen_cuda_weight_bytes,
    .weight_create = pen_cuda_weight_create,
    .weight_destroy = pen_cuda_weight_destroy,
    .weight_write = pen_cuda_weight_write,
    .kv_bytes = kv_bytes,
    .kv_create = kv_create,
    .kv_destroy = kv_destroy,
    .rope_bytes = rope_bytes,
    .rope_create = rope_create,
    .rope_destroy = rope_destroy,
    .event_create = event_create,
    .event_destroy = event_destroy,
    .event_record = event_record,
    .event_done = event_done,
    .sync = pen_cuda_sync,
    .status = first_failure,
    .unit_begin = pen_cuda_unit_begin,
    .unit_end = pen_cuda_unit_end,
    .unit_reset = pen_cuda_unit_reset,
    .unit_ms = pen_cuda_unit_ms,
    .graph_begin = pen_cuda_graph_begin,
    .graph_end = pen_cuda_graph_end,
    .set_batch = pen_cuda_set_batch,
    .embed = pen_cuda_embed,
    .norm = pen_cuda_norm,
    .qkv = pen_cuda_qkv,
    .rope_kv = pen_cuda_rope_kv,
    .kv_copy = kv_copy,
    .attention = pen_cuda_attention,
    .out_project = pen_cuda_project,
    .gate_up = pen_cuda_gate_up,
    .down = pen_cuda_project,
    .logits = pen_cuda_logits,
    .pick = pen_cuda_pick,
};

/* ---- Opening --------------------------------------------------------------------------------------------------- */

/* CUDA's numbers are 1000·major + 10·minor. */
const char *pen_cuda_version(void) {
    static char text[16];
    snprintf(text, sizeof text, "%d.%d", CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    return text;
}

static pen_status too_old(int driver) {
    return pen_fail(PEN_UNSUPPORTED, "the NVIDIA driver knows CUDA %d.%d: this build needs %d.%d or newer",
                    driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
}

pen_status pen_cuda_device_count(int *count) {
    int driver = 0;
    *count = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
        return pen_fail(PEN_UNSUPPORTED, "there is no NVIDIA driver on this machine");
    cudaError_t error = cudaGetDeviceCount(count);
    if (error == cudaErrorInsufficientDriver) return too_old(driver);
    if (error == cudaErrorNoDevice || (error == cudaSuccess && *count == 0))
        return pen_fail(PEN_UNSUPPORTED, "there is an NVIDIA driver, but no GPU that this process may use");
    if (error != cudaSuccess) return pen_fail(PEN_UNSUPPORTED, "no GPU: %s", cudaGetErrorString(error));
    return PEN_OK;
}

static pen_status open_gpu(pen_cuda_device *device, int ordinal) {
    struct cudaDeviceProp properties;
    cudaError_t error = cudaSetDevice(ordinal);
    if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, ordinal);
    if (error == cudaSuccess) error = cudaDeviceGetPCIBusId(device->bus, sizeof device->bus, ordinal);
    if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&device->stream, cudaStreamNonBlocking);
    if (error != cudaSuccess)
        return pen_fail(PEN_UNSUPPORTED, "cannot use GPU %d: %s", ordinal, cudaGetErrorString(error));
    snprintf(device->name, sizeof device->name, "cuda %s", properties.name);
    device->processors = properties.multiProcessorCount;
    device->cache_bytes = (size_t)properties.l2CacheSize;
    if (!pen_cuda_kernels_fit())
        return pen_fail(PEN_UNSUPPORTED, "this build has no kernels for GPU %d, %s (compute capability %d.%d)", ordinal,
                        properties.name, properties.major, properties.minor);
    PEN_TRY(pen_cuda_staging_create(device, WRITE_RING, &device->writes));
    PEN_TRY(pen_cuda_staging_create(device, READ_RING, &device->reads));
    return pen_cuda_markers_create(device, &device->markers);
}

/* What a profile depends on: one that was measured with it is worth nothing without. */
static void add_to_name(pen_cuda_device *device, const char *what) {
    strncat(device->name, what, sizeof device->name - strlen(device->name) - 1);
}

/* Its absence is no failure. */
static void open_blas(pen_cuda_device *device, const pen_cuda_options *options) {
    if (options->deterministic || options->activations != PEN_ACTIVATIONS_FAST) return;
    if (pen_cuda_blas_create(&device->blas) == PEN_OK)
        add_to_name(device, ", cuBLASLt");
    else
        PEN_INFO("%s: long prompts are slower without it: %s", device->name, pen_last_error());
}

pen_status pen_cuda_device_create(const pen_cuda_options *options, pen_device **out) {
    int count;
    PEN_TRY(pen_cuda_device_count(&count));
    assert(options->gpu >= 0 && options->gpu < count);
    pen_cuda_device *device = calloc(1, sizeof *device);
    if (!device) return no_memory("a CUDA device");
    bool fast = options->activations == PEN_ACTIVATIONS_FAST;
    device->base = (pen_device){
        .class = &cuda_class, .activations = options->activations, .kv_type = fast ? PEN_TYPE_F16 : PEN_TYPE_F32};
    pen_status status = pen_pool_create(options->threads > 0 ? options->threads : 1, NULL, false, &device->pool);
    if (status == PEN_OK) status = open_gpu(device, options->gpu);
    if (status == PEN_OK) open_blas(device, options);
    if (status == PEN_OK) pen_cuda_launch_early(!options->enforce_eager);
    if (status == PEN_OK && !options->enforce_eager) status = pen_cuda_graphs_create(device, &device->graphs);
    if (status == PEN_OK && options->enforce_eager) add_to_name(device, ", eager");
    if (status != PEN_OK) {
        destroy(&device->base);
        return status;
    }
    *out = &device->base;
    return PEN_OK;
}
