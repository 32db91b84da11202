/* An engine for tests; see machinery.h. */
#include "machinery.h"

#include "cpu.h"
#include "kvcache.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool beat(void *context, uint64_t done, uint64_t total) {
    (void)done, (void)total;
    pen_world_beat(context);
    return true;
}

pen_status load_machinery(pen_world *world, const machinery_spec *spec, machinery *m) {
    PEN_TRY(pen_model_open(spec->model, &m->model));
    const pen_share *share = pen_world_share(world);
    pen_cpu_options cpu = {.activations = spec->exact ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST,
                           .threads = share->threads,
                           .may_spin = share->may_spin};
    PEN_TRY(pen_cpu_device_create(&cpu, &m->device));
    int units = pen_model_unit_count(m->model), stages = pen_world_stages(world), stage = pen_world_stage(world);
    if (units < stages) return pen_fail(PEN_USAGE, "%d stages for %d units", stages, units);
    pen_stage_options limits = {.first = units * stage / stages,
                                .last = units * (stage + 1) / stages - 1,
                                .rows = spec->rows,
                                .logit_rows = 24,
                                .context = spec->context,
                                .slots = PEN_ENGINE_SLOTS,
                                .progress = beat,
                                .progress_context = world};
    PEN_TRY(pen_step_cost_create_even(stages, spec->overhead, 1, &m->cost));
    int blocks = spec->blocks ? spec->blocks : spec->sequences * pen_kv_blocks_for(limits.context + PEN_KV_BLOCK);
    limits.kv = pen_stage_kv_pools(m->model, spec->sequences, spec->rows, limits.context, blocks);
    PEN_TRY(pen_stage_create(m->model, m->device, &limits, &m->stage));
    const pen_hparams *h = pen_model_hparams(m->model);
    pen_engine_options engine = {.hidden = h->hidden,
                                 .vocab = h->vocab,
                                 .rows = limits.rows,
                                 .logit_rows = limits.logit_rows,
                                 .context = limits.context,
                                 .kv = limits.kv,
                                 .sequences = spec->sequences,
                                 .in_flight = spec->in_flight,
                                 .preempts = spec->preempts,
                                 .cost = m->cost,
                                 .step_timeout_s = spec->timeout};
    pen_link *link;
    PEN_TRY(pen_world_stages(world) == 1 ? pen_link_create_local(&link) : pen_link_create_mpi(world, &link));
    return pen_engine_create(world, m->device, m->stage, link, &engine, &m->engine);
}

void unload_machinery(machinery *m) {
    pen_engine_destroy(m->engine);
    pen_stage_destroy(m->stage);
    pen_step_cost_destroy(m->cost);
    pen_device_destroy(m->device);
    pen_model_close(m->model);
}

pen_status gather_pids(pen_world *world, int **pids) {
    int own = (int)getpid(), size = pen_world_size(world);
    bool first = pen_world_rank(world) == 0;
    pen_blob *blobs = first ? calloc((size_t)size, sizeof *blobs) : NULL;
    *pids = first ? calloc((size_t)size, sizeof **pids) : NULL;
    pen_status status = pen_world_gather(world, "asking for processes", &own, sizeof own, blobs);
    for (int r = 0; first && r < size; r++) {
        if (blobs[r].bytes == sizeof own) memcpy(&(*pids)[r], blobs[r].data, sizeof own);
        free(blobs[r].data);
    }
    free(blobs);
    return status;
}

void add_rules(pen_request *request, int number) {
    static const pen_logit_bias biases[] = {{3, 4}, {5, -30}, {9, 2.5f}};
    static const int32_t stop_ids[] = {1, 9, 17, 200};
    if (number % 3 == 1) return;
    request->repetition_penalty = 1.3f;
    request->presence_penalty = 0.5f * (float)(number % 2);
    request->frequency_penalty = 0.25f;
    request->biases = biases;
    request->bias_count = number % 4;
    request->stop_ids = stop_ids;
    request->stop_count = 4;
    request->min_tokens = request->max_tokens;
}
