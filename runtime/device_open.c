/* Choosing and opening a device; see device_open.h. */
#include "device_open.h"

#include "cpu.h"
#include "cuda.h"
#include "gpu_share.h"
#include "log.h"

#include <string.h>

static pen_activations activations_of(const pen_config *config) {
    return config->exact ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST;
}

static pen_status open_cpu(const pen_config *config, const pen_share *share, pen_device **device) {
    int cpus[PEN_CORES_MAX];
    for (int i = 0; i < share->threads && i < PEN_CORES_MAX; i++) cpus[i] = share->cpu[i];
    pen_cpu_options options = {
        .activations = activations_of(config),
        .kv_q8_0 = config->kv_q8_0,
        .threads = share->threads,
        .cpus = share->own_cores ? cpus : NULL,
        .may_spin = share->may_spin,
    };
    PEN_TRY(pen_cpu_isa_parse(config->isa[0] ? config->isa : "auto", &options.isa));
    return pen_cpu_device_create(&options, device);
}

static pen_status open_gpu(const pen_config *config, const pen_share *share, int gpu, pen_device **device) {
    pen_own_memory memory;
    if (config->kv_q8_0) return pen_fail(PEN_UNSUPPORTED, "--kv-type q8_0: a GPU keeps K and V in f16");
    pen_cuda_options options = {
        .activations = activations_of(config),
        .gpu = gpu,
        .threads = share->threads,
        .enforce_eager = config->enforce_eager,
        .deterministic = config->deterministic,
    };
    PEN_TRY(pen_cuda_device_create(&options, device));
    if (pen_device_own_memory(*device, &memory) == PEN_OK && pen_machine_stay_near(memory.bus))
        PEN_DEBUG("stays on the cores next to GPU %d at %s", gpu, memory.bus);
    return PEN_OK;
}

pen_status pen_device_open(const pen_config *config, const pen_share *share, int local, int ranks,
                           pen_device **device) {
    int gpus;
    bool must = strcmp(config->device, "cuda") == 0;
    if (strcmp(config->device, "cpu") == 0) return open_cpu(config, share, device);
    pen_status status = pen_cuda_device_count(&gpus);
    if (status == PEN_OK) {
        status = open_gpu(config, share, pen_gpu_for(local, ranks, gpus), device);
        if (status == PEN_UNSUPPORTED && !must) PEN_WARN("computes on the CPU: %s", pen_last_error());
    } else if (!must && pen_cuda_version()) {
        PEN_INFO("computes on the CPU: %s", pen_last_error());
    }
    if (status != PEN_UNSUPPORTED) return status;
    if (must) return pen_fail(status, "--device cuda: %s; --device auto takes the CPU then", pen_last_error());
    return open_cpu(config, share, device);
}
