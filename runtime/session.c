/* Start-up; see session.h. */
#include "session.h"

#include "budget.h"
#include "cpu.h"
#include "link_cost.h"
#include "log.h"
#include "plan_json.h"
#include "plan_model.h"
#include "profile.h"
#include "profile_cache.h"
#include "sim_profile.h"
#include "step_cost.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MEASURE_REPEATS = 10,
    TRACE_RECORDS = 1 << 17, /* 5 MiB of steps a rank */
    LINK_PATIENCE_S = 30,
};

/* Left for the program, the libraries and the page tables where the machine's memory is the limit. */
static const uint64_t memory_reserve = UINT64_C(256) << 20;

/* What all ranks must know to make their stages alike. Plain data: it is broadcast beside the plan. */
typedef struct stage_layout {
    int context, logit_rows, rows;
    int sequences, positions; /* that run at a time, and the longest of them */
    int longest;              /* that --max-model-len allows */
    int kv_blocks;            /* where layers see all positions */
    double step_timeout_s;
} stage_layout;

struct pen_session {
    pen_world *world;
    pen_config config;
    pen_session_progress *progress;
    void *progress_context;
    pen_sim_profile *sim; /* what stands for model and machine; NULL: both are real */
    pen_model *own_model; /* NULL where it is the simulation's */
    const pen_model *model;
    pen_device *device;
    pen_profile *profile; /* this rank's own; NULL where the times come from a file */
    pen_plan *plan;
    pen_step_cost *cost; /* of the plan's stages; rank 0 */
    stage_layout layout;
    pen_stage *stage;
    pen_engine *engine;
    bool settled; /* all ranks have agreed on a failure: there is nothing left to agree on */
};

const pen_model *pen_session_model(const pen_session *session) {
    return session->model;
}
const pen_plan *pen_session_solved(const pen_session *session) {
    return session->plan;
}
pen_engine *pen_session_engine(pen_session *session) {
    return session->engine;
}

int pen_session_max_len(const pen_session *session) {
    return pen_config_max_len(&session->config, pen_model_hparams(session->model)->context);
}

/* ---- Conversations ----------------------------------------------------------------------------------------------- */

/* Makes rank 0's `bytes` bytes at `data` everyone's. */
static pen_status broadcast_plain(pen_world *world, const char *what, void *data, size_t bytes) {
    pen_blob blob = {.data = data, .bytes = bytes};
    PEN_TRY(pen_world_broadcast(world, what, &blob));
    if (pen_world_rank(world) == 0) return PEN_OK;
    pen_status status = PEN_OK;
    if (blob.bytes == bytes)
        memcpy(data, blob.data, bytes);
    else
        status = pen_fail(PEN_BAD_INPUT, "rank %d runs another build than rank 0: %zu bytes instead of %zu while %s",
                          pen_world_rank(world), blob.bytes, bytes, what);
    free(blob.data);
    return status;
}

/* Ends a step: everyone's outcome becomes one. A failure inside a step that was agreed on already, or a lost rank,
 * which can agree on nothing, is passed on. */
static pen_status agree(pen_session *session, const char *what, pen_status status) {
    if (session->settled || status == PEN_PEER_LOST) return status;
    status = pen_world_agree(session->world, what, status);
    session->settled = status != PEN_OK;
    return status;
}

static bool is_first(const pen_session *session) {
    return pen_world_rank(session->world) == 0;
}

/* ---- Open -------------------------------------------------------------------------------------------------------- */

static pen_status open_device(pen_session *session) {
    const pen_config *config = &session->config;
    pen_world_set_threads(session->world, config->threads);
    const pen_share *share = pen_world_share(session->world);
    int cpus[PEN_CORES_MAX];
    for (int i = 0; i < share->threads && i < PEN_CORES_MAX; i++) cpus[i] = share->cpu[i];
    pen_cpu_options options = {
        .activations = config->exact ? PEN_ACTIVATIONS_F32 : PEN_ACTIVATIONS_FAST,
        .threads = share->threads,
        .cpus = share->own_cores ? cpus : NULL,
        .may_spin = share->may_spin,
    };
    PEN_TRY(pen_cpu_isa_parse(config->isa[0] ? config->isa : "auto", &options.isa));
    if (session->sim)
        PEN_TRY(pen_sim_profile_device(session->sim, config->time_scale, &session->device));
    else
        PEN_TRY(pen_cpu_device_create(&options, &session->device));
    pen_device_set_poke(session->device, pen_world_beat, session->world); /* until the engine has its own */
    return PEN_OK;
}

/* All ranks must mean the same weights. The hash covers metadata, tensor shapes and sizes. */
static pen_status check_same_model(pen_session *session) {
    uint64_t first = pen_model_hash(session->model);
    PEN_TRY(broadcast_plain(session->world, "comparing the model files", &first, sizeof first));
    if (pen_model_hash(session->model) == first) return PEN_OK;
    const pen_place *place = pen_world_place(session->world, pen_world_rank(session->world));
    return pen_fail(PEN_BAD_INPUT, "rank %d on %s has another model file than rank 0 under the name %s", place->rank,
                    place->host, session->config.model);
}

/* The link follows from the number of stages; asking for one only makes sure. */
static pen_status check_link(const pen_session *session) {
    int stages = pen_world_size(session->world);
    const char *asked = session->config.link, *have = stages == 1 ? "local" : "mpi";
    if (strcmp(asked, "auto") == 0 || strcmp(asked, have) == 0) return PEN_OK;
    return pen_fail(PEN_USAGE, "--link %s does not fit %d stage%s, which need%s %s", asked, stages,
                    stages == 1 ? "" : "s", stages == 1 ? "s" : "", have);
}

static pen_status open_model(pen_session *session) {
    const char *profile = pen_sim_profile_path(session->config.device);
    if (profile) {
        PEN_TRY(pen_sim_profile_read(profile, pen_world_rank(session->world), &session->sim));
        session->model = pen_sim_profile_model(session->sim);
        return PEN_OK;
    }
    PEN_TRY(pen_model_open(session->config.model, &session->own_model));
    session->model = session->own_model;
    return PEN_OK;
}

static pen_status open_local(pen_session *session) {
    PEN_TRY(check_link(session));
    PEN_TRY(open_model(session));
    if (pen_model_gguf(session->model)) PEN_TRY(pen_gguf_check_data(pen_model_gguf(session->model)));
    int context = pen_model_hparams(session->model)->context;
    if (session->config.max_model_len > context)
        return pen_fail(PEN_USAGE, "--max-model-len %d is more than the model's context of %d tokens",
                        session->config.max_model_len, context);
    return open_device(session);
}

pen_status pen_session_open(pen_world *world, const pen_config *config, pen_session_progress *progress, void *context,
                            pen_session **result) {
    pen_session *session = calloc(1, sizeof *session);
    if (!session) return pen_fail(PEN_NO_MEMORY, "no memory for a session");
    *result = session;
    session->world = world;
    session->config = *config;
    session->progress = progress;
    session->progress_context = context;
    pen_status status = broadcast_plain(world, "sharing the options", &session->config, sizeof session->config);
    PEN_TRY(agree(session, "sharing the options", status));
    if (session->config.step_timeout_s > 0) pen_world_set_patience(world, session->config.step_timeout_s);
    PEN_TRY(agree(session, "opening the model", open_local(session)));
    return agree(session, "comparing the model files", check_same_model(session));
}

void pen_session_close(pen_session *session) {
    if (!session) return;
    pen_engine_destroy(session->engine);
    pen_stage_destroy(session->stage);
    pen_step_cost_destroy(session->cost);
    pen_plan_destroy(session->plan);
    pen_profile_destroy(session->profile);
    if (session->device) pen_device_destroy(session->device);
    pen_model_close(session->own_model);
    pen_sim_profile_destroy(session->sim);
    free(session);
}

/* ---- Profile ----------------------------------------------------------------------------------------------------- */

static pen_status profile_barrier(void *context) {
    pen_session *session = context;
    return agree(session, "profiling together", PEN_OK);
}

static bool profile_progress(void *context, int done, int total) {
    pen_session *session = context;
    pen_world_beat(session->world);
    if (session->progress)
        session->progress(session->progress_context, PEN_PHASE_PROFILE, (uint64_t)done, (uint64_t)total);
    return true;
}

static int ranks_here(pen_world *world) {
    int node = pen_world_place(world, pen_world_rank(world))->node, count = 0;
    for (int r = 0; r < pen_world_size(world); r++) count += pen_world_place(world, r)->node == node;
    return count;
}

/* Whether every rank's flag is set, on every rank. */
static pen_status all_of(pen_world *world, const char *what, bool flag, bool *all) {
    int size = pen_world_size(world);
    pen_blob *blobs = calloc((size_t)size, sizeof *blobs);
    if (!blobs) return pen_fail(PEN_NO_MEMORY, "no memory for %d ranks", size);
    *all = true;
    pen_status status = pen_world_gather(world, what, &flag, sizeof flag, blobs);
    for (int r = 0; r < size; r++) {
        if (status == PEN_OK && pen_world_rank(world) == 0)
            *all &= blobs[r].bytes == sizeof flag && *(const bool *)blobs[r].data;
        free(blobs[r].data);
    }
    free(blobs);
    PEN_TRY(status);
    return broadcast_plain(world, what, all, sizeof *all);
}

/* This rank's profile: from the cache where every rank has one, else measured by all at the same time. */
static pen_status profile_device(pen_session *session) {
    const pen_config *config = &session->config;
    if (session->sim) return pen_sim_profile_times(session->sim, &session->profile);
    pen_profile_key key = {
        .model = session->model,
        .device = session->device,
        .ranks = ranks_here(session->world),
        .context = config->workload_prompt + config->workload_output / 2,
    };
    session->profile = pen_profile_cache_load(config->cache, &key);
    bool all;
    PEN_TRY(all_of(session->world, "looking for cached profiles", session->profile != NULL, &all));
    if (all) return PEN_OK;
    pen_profile_destroy(session->profile);
    session->profile = NULL;
    pen_profile_options options = {
        .context = key.context,
        .barrier = profile_barrier,
        .barrier_context = session,
        .progress = profile_progress,
        .progress_context = session,
    };
    PEN_TRY(pen_profile_measure(session->model, session->device, &options, &session->profile));
    pen_profile_cache_store(config->cache, &key, session->profile);
    return PEN_OK;
}

/* ---- Plan -------------------------------------------------------------------------------------------------------- */

/* What rank 0 learns of each rank. */
typedef struct report {
    uint64_t memory;
    double send_ms, wire_ms; /* to the next stage, as in pen_plan_device */
    char device[PEN_PLAN_NAME];
} report;

static uint64_t memory_limit(const pen_session *session) {
    if (session->config.memory) return session->config.memory;
    if (session->sim) return pen_sim_profile_memory(session->sim);
    uint64_t memory = pen_world_share(session->world)->memory;
    return memory > 2 * memory_reserve ? memory - memory_reserve : memory;
}

static pen_plan_workload workload_of(const pen_config *config) {
    return (pen_plan_workload){.prompt_tokens = config->workload_prompt,
                               .output_tokens = config->workload_output,
                               .max_num_seqs = config->max_num_seqs};
}

/* Unit times on stage s's device: the average over the ranks of its machine that have the same device, since what
 * differs between those is noise. profiles[r] is rank r's. */
static void average_times(const pen_session *session, pen_profile *const *profiles, int s, const pen_steady *steady,
                          double *unit_ms) {
    const pen_place *here = pen_world_place(session->world, s);
    int count = 0, units = pen_model_unit_count(session->model);
    pen_step_shape shape = pen_profile_shape(steady);
    for (int r = 0; r < pen_world_size(session->world); r++) {
        if (pen_world_place(session->world, r)->node != here->node) continue;
        if (strcmp(profiles[r]->device, profiles[s]->device) != 0) continue;
        for (int u = 0; u < units; u++) unit_ms[u] += pen_profile_unit_ms(profiles[r], session->model, u, &shape);
        count++;
    }
    for (int u = 0; u < units; u++) unit_ms[u] /= count;
}

/* The model's bytes on our device, and where there are profiles every stage's own times. */
static pen_status plan_from_model(const pen_session *session, const pen_plan_workload *workload,
                                  pen_profile *const *profiles, pen_plan **plan) {
    const stage_layout *want = &session->layout;
    int stages = pen_world_stages(session->world);
    pen_plan_model_options options = {
        .workload = *workload,
        .stages = stages,
        .profile = session->profile,
        .device = session->device,
        .rows = want->rows,
        .logit_rows = want->logit_rows,
        .context = want->context,
        .sequences = want->sequences,
        .positions = want->positions,
        .slots = PEN_ENGINE_SLOTS,
    };
    PEN_TRY(pen_plan_from_model(session->model, &options, plan));
    PEN_TRY(pen_plan_set_devices(*plan, stages));
    if (!session->profile) return PEN_OK;
    pen_steady steady = pen_plan_steady(workload, stages, want->rows);
    for (int s = 0; s < stages; s++) {
        double *unit_ms = calloc((size_t)(*plan)->unit_count, sizeof *unit_ms);
        if (!unit_ms) return pen_fail(PEN_NO_MEMORY, "no memory for a plan");
        (*plan)->devices[s].unit_ms = unit_ms;
        average_times(session, profiles, s, &steady, unit_ms);
    }
    for (int u = 0; u < (*plan)->unit_count; u++) (*plan)->units[u].time_ms = (*plan)->devices[0].unit_ms[u];
    return PEN_OK;
}

/* `--profile FILE` in a run: the file's unit times, and what it says of its devices and links, instead of our own. */
static pen_status times_from_file(const pen_session *session, pen_plan *plan) {
    const char *path = session->config.profile;
    pen_plan *file;
    PEN_TRY(pen_plan_read(path, &file));
    pen_status status = PEN_OK;
    if (file->unit_count != plan->unit_count)
        status = pen_fail(PEN_BAD_INPUT, "%s: has %d units; %s has %d", path, file->unit_count, session->config.model,
                          plan->unit_count);
    else if (file->device_count != 1 && file->device_count != plan->device_count)
        status =
            pen_fail(PEN_BAD_INPUT, "%s: has %d devices for %d stages", path, file->device_count, plan->device_count);
    for (int u = 0; status == PEN_OK && u < plan->unit_count; u++) plan->units[u].time_ms = file->units[u].time_ms;
    for (int s = 0; status == PEN_OK && s < plan->device_count; s++) {
        const pen_plan_device *from = &file->devices[file->device_count == 1 ? 0 : s];
        plan->devices[s].speed = from->speed;
        plan->devices[s].memory_bytes = from->memory_bytes;
        plan->devices[s].send_ms = from->send_ms;
        plan->devices[s].wire_ms = from->wire_ms;
    }
    memcpy(plan->source, file->source, sizeof plan->source);
    pen_plan_destroy(file);
    return status;
}

static pen_status make_cost(pen_session *session) {
    const pen_plan *plan = session->plan;
    pen_steady steady = pen_plan_steady(&plan->workload, plan->stage_count, session->layout.rows);
    pen_step_shape planned = pen_profile_shape(&steady);
    return pen_step_cost_create(plan, session->model, session->profile, &planned, &session->cost);
}

/* What all ranks measured, solved for this workload. */
static pen_status solve_for(pen_session *session, const pen_plan_workload *workload, const pen_blob *reports,
                            pen_profile *const *profiles) {
    const pen_config *config = &session->config;
    PEN_TRY(plan_from_model(session, workload, profiles, &session->plan));
    pen_plan *plan = session->plan;
    if (config->profile[0]) PEN_TRY(times_from_file(session, plan));
    pen_plan_workload timed = workload_of(config); /* what the links were timed with */
    double share = pen_plan_steady(workload, plan->device_count, session->layout.rows).rows /
                   pen_plan_steady(&timed, plan->device_count, session->layout.rows).rows;
    for (int s = 0; s < plan->device_count; s++) {
        const report *from = reports[s].data;
        snprintf(plan->devices[s].name, sizeof plan->devices[s].name, "%.*s", PEN_PLAN_NAME - 1, from->device);
        if (plan->devices[s].memory_bytes == 0) plan->devices[s].memory_bytes = from->memory;
        if (config->profile[0]) continue;
        plan->devices[s].send_ms = share * from->send_ms;
        plan->devices[s].wire_ms = share * from->wire_ms;
    }
    pen_plan_options options = {
        .stages = pen_world_stages(session->world),
        .method = config->method,
        .layers = config->layers[0] ? config->layers : NULL,
        .memory = config->memory,
        .kv_tokens = (int64_t)session->layout.kv_blocks * PEN_KV_BLOCK,
    };
    PEN_TRY(pen_plan_solve(plan, &options));
    return make_cost(session);
}

/* Microbatches over which the schedule spreads the workload's sequences on the plan's stages; no fewer than those, for
 * which a microbatch's memory was laid out. */
static int spread_of(const pen_session *session) {
    const pen_plan_workload *workload = &session->plan->workload;
    int stages = session->plan->stage_count, sequences = pen_plan_sequences(workload, stages);
    int prompt = workload->prompt_tokens, output = workload->output_tokens;
    pen_budget_demand demand = {.decodes = sequences,
                                .settled = sequences,
                                .decode_context = prompt + output / 2.0,
                                .prompts = 1,
                                .prompt_rows = prompt,
                                .prompt_context = prompt / 2.0,
                                .prompt_rate = (double)prompt / output};
    int depth = pen_budget_of(session->cost, &demand, stages > 1 ? stages + 1 : 1, session->layout.rows).depth;
    return depth > stages ? depth : stages;
}

/* Rank 0: solves what all ranks measured. The split decides how many microbatches are best, and their number how large
 * they are and what their units take; so where there will be fewer, it is solved again for those. */
static pen_status solve(pen_session *session, const pen_blob *reports, pen_profile *const *profiles) {
    pen_plan_workload workload = workload_of(&session->config);
    PEN_TRY(solve_for(session, &workload, reports, profiles));
    workload.microbatches = spread_of(session);
    if (!session->profile || workload.microbatches > session->plan->stage_count) return PEN_OK;
    pen_step_cost_destroy(session->cost);
    pen_plan_destroy(session->plan);
    session->cost = NULL;
    session->plan = NULL;
    return solve_for(session, &workload, reports, profiles);
}

/* What the workload's microbatch takes to the next stage. */
static pen_status time_link(const pen_session *session, report *mine) {
    pen_plan_workload workload = workload_of(&session->config);
    pen_steady steady = pen_plan_steady(&workload, pen_world_stages(session->world), pen_config_rows(&session->config));
    size_t row_bytes = (size_t)pen_model_hparams(session->model)->hidden * sizeof(float);
    double patience_s = session->config.step_timeout_s > 0 ? session->config.step_timeout_s : LINK_PATIENCE_S;
    if (session->sim) {
        mine->wire_ms = steady.rows * (double)row_bytes * pen_sim_profile_link(session->sim).ms_per_byte;
        return PEN_OK;
    }
    PEN_TRY(pen_link_cost(session->world, (size_t)ceil(steady.rows) * row_bytes, patience_s, &mine->wire_ms));
    mine->send_ms = mine->wire_ms; /* the sender's own thread does the copying */
    return PEN_OK;
}

/* Rank 0: everyone's device, memory and profile → the solved plan. */
static pen_status collect_and_solve(pen_session *session) {
    pen_world *world = session->world;
    int size = pen_world_size(world);
    pen_blob *reports = calloc((size_t)size, sizeof *reports);
    pen_blob *texts = calloc((size_t)size, sizeof *texts);
    pen_profile **profiles = calloc((size_t)size, sizeof(pen_profile *));
    char *own = session->profile ? pen_profile_encode(session->profile) : NULL;
    pen_status status = PEN_OK;
    if (!reports || !texts || !profiles || (session->profile && !own))
        status = pen_fail(PEN_NO_MEMORY, "no memory for the profiles of %d ranks", size);
    status = agree(session, "collecting the profiles", status);

    report mine = {.memory = memory_limit(session)};
    if (status == PEN_OK && !session->config.profile[0]) status = time_link(session, &mine);
    status = agree(session, "timing the links", status);
    snprintf(mine.device, sizeof mine.device, "%s", pen_device_name(session->device));
    if (status == PEN_OK) status = pen_world_gather(world, "collecting the devices", &mine, sizeof mine, reports);
    if (status == PEN_OK)
        status = pen_world_gather(world, "collecting the profiles", own ? own : "", own ? strlen(own) : 0, texts);
    if (status == PEN_OK && is_first(session)) {
        for (int r = 0; r < size && status == PEN_OK; r++) {
            if (session->profile) status = pen_profile_decode(texts[r].data, texts[r].bytes, &profiles[r]);
            bool covers = !profiles[r] || pen_profile_covers(profiles[r], session->model);
            if (status == PEN_OK && (reports[r].bytes != sizeof mine || !covers))
                status = pen_fail(PEN_BAD_INPUT, "rank %d runs another build than rank 0", r);
        }
        if (status == PEN_OK) status = solve(session, reports, profiles);
    }
    for (int r = 0; r < size; r++) {
        if (reports) free(reports[r].data);
        if (texts) free(texts[r].data);
        if (profiles) pen_profile_destroy(profiles[r]);
    }
    free(reports);
    free(texts);
    free(profiles);
    free(own);
    return status;
}

static pen_status share_plan(pen_session *session) {
    pen_blob blob = {0};
    char *text = NULL;
    PEN_TRY(agree(session, "writing the plan", is_first(session) ? pen_plan_to_json(session->plan, &text) : PEN_OK));
    if (text) blob = (pen_blob){.data = text, .bytes = strlen(text)};
    pen_status status = pen_world_broadcast(session->world, "sharing the plan", &blob);
    if (status == PEN_OK && !is_first(session))
        status = pen_plan_from_json("rank 0's plan", blob.data, blob.bytes, &session->plan);
    free(blob.data);
    return status;
}

static int at_most(int value, int limit) {
    return value < limit ? value : limit;
}

/* The workload's microbatch in whole rows, as far as the model's context goes. */
static pen_engine_shape steady_shape(const pen_session *session, const pen_plan_workload *workload, int stages) {
    pen_steady steady = pen_plan_steady(workload, stages, session->layout.rows);
    int decode_rows = (int)fmax(1, floor(steady.decode_rows)), context = pen_model_hparams(session->model)->context;
    int prompt_rows = at_most((int)lround(steady.rows) - decode_rows, context);
    return (pen_engine_shape){
        .decode_rows = decode_rows,
        .prompt_rows = prompt_rows,
        .position = at_most((int)lround(steady.context), context - (prompt_rows > 1 ? prompt_rows : 1)),
        .logit_rows = at_most((int)fmax(1, lround(steady.logit_rows)), decode_rows + prompt_rows),
    };
}

/* Rank 0: the sizes that every stage is made with. */
static pen_status lay_out(pen_session *session, const pen_session_need *need) {
    const pen_config *config = &session->config;
    int max_len = pen_session_max_len(session);
    if (need->context > max_len)
        return pen_fail(PEN_USAGE, "the sequence needs %d tokens, more than the longest allowed, %d", need->context,
                        max_len);
    int per_sequence = (need->context + PEN_KV_BLOCK - 1) / PEN_KV_BLOCK;
    pen_plan_workload workload = workload_of(config);
    int sequences = at_most(need->sequences, pen_plan_sequences(&workload, pen_world_size(session->world)));
    int64_t blocks = (int64_t)per_sequence * sequences;
    if (config->kv_tokens) blocks = config->kv_tokens / PEN_KV_BLOCK;
    if (blocks > INT32_MAX / PEN_KV_BLOCK) return pen_fail(PEN_USAGE, "too many KV tokens");
    /* One sequence must fit; the others wait, or are paused. */
    pen_kv_pools pools =
        pen_stage_kv_pools(session->model, sequences, pen_config_rows(config), need->context, (int)blocks);
    if (blocks == 0 || pen_kv_short_group(&pools, pen_config_rows(config), need->context) >= 0)
        return pen_fail(PEN_USAGE, "--kv-tokens %lld is less than the %d tokens that a request needs",
                        (long long)config->kv_tokens, per_sequence * PEN_KV_BLOCK);
    stage_layout *layout = &session->layout;
    layout->rows = pen_config_rows(&session->config);
    layout->sequences = sequences;
    layout->kv_blocks = (int)blocks;
    layout->positions = need->context;
    layout->longest = max_len;
    /* Besides the requests themselves, the workload's microbatch must fit, to be timed. */
    workload.microbatches = pen_world_size(session->world); /* the fewest that it may be spread over */
    pen_engine_shape shape = steady_shape(session, &workload, pen_world_size(session->world));
    int measured = shape.position + (shape.prompt_rows > 1 ? shape.prompt_rows : 1);
    layout->context = per_sequence * PEN_KV_BLOCK > measured ? per_sequence * PEN_KV_BLOCK : measured;
    layout->logit_rows = need->logit_rows > shape.logit_rows ? need->logit_rows : shape.logit_rows;
    return PEN_OK;
}

pen_status pen_session_plan(pen_session *session, pen_status request, const pen_session_need *need) {
    pen_world *world = session->world;
    if (is_first(session) && request == PEN_OK) request = lay_out(session, need);
    PEN_TRY(agree(session, "preparing the request", request));
    int size = pen_world_size(world), units = pen_model_unit_count(session->model);
    if (size > units) return pen_fail(PEN_USAGE, "%d stages are more than the model's %d units", size, units);
    PEN_TRY(pen_world_arrange(world, 1, size));
    if (!session->config.profile[0]) PEN_TRY(agree(session, "profiling", profile_device(session)));
    PEN_TRY(agree(session, "planning", collect_and_solve(session)));
    PEN_TRY(agree(session, "sharing the plan", share_plan(session)));
    if (is_first(session)) {
        double timeout = session->config.step_timeout_s, step_s = session->plan->score.max_ms * size / 1000;
        step_s *= session->config.time_scale;
        session->layout.step_timeout_s = timeout > 0 ? timeout : fmax(30, 20 * step_s);
    }
    return agree(session, "sharing the layout",
                 broadcast_plain(world, "sharing the layout", &session->layout, sizeof session->layout));
}

pen_forecast pen_session_forecast(const pen_session *session, int sequences, bool apart) {
    pen_forecast_options options = {.sequences = sequences, .rows = session->layout.rows, .apart = apart};
    return pen_forecast_of(&session->plan->workload, session->cost, &options);
}

/* ---- Load -------------------------------------------------------------------------------------------------------- */

static bool load_progress(void *context, uint64_t done, uint64_t total) {
    pen_session *session = context;
    pen_world_beat(session->world);
    if (session->progress) session->progress(session->progress_context, PEN_PHASE_LOAD, done, total);
    return true;
}

static pen_status make_stage(pen_session *session) {
    const stage_layout *want = &session->layout;
    const pen_hparams *hparams = pen_model_hparams(session->model);
    const pen_plan_stage *own = &session->plan->stages[pen_world_stage(session->world)];
    pen_stage_options options = {
        .first = own->first,
        .last = own->last,
        .rows = want->rows,
        .logit_rows = want->logit_rows,
        .context = want->context,
        .longest = want->longest,
        .kv = pen_stage_kv_pools(session->model, want->sequences, want->rows, want->positions, want->kv_blocks),
        .slots = PEN_ENGINE_SLOTS,
        .progress = load_progress,
        .progress_context = session,
    };
    PEN_TRY(pen_stage_create(session->model, session->device, &options, &session->stage));
    pen_engine_options engine = {
        .hidden = hparams->hidden,
        .vocab = hparams->vocab,
        .rows = want->rows,
        .logit_rows = want->logit_rows,
        .context = want->context,
        .kv = options.kv,
        .sequences = want->sequences,
        .cost = session->cost,
        .step_timeout_s = want->step_timeout_s,
        .trace = session->config.trace[0] ? TRACE_RECORDS : 0,
    };
    if (session->sim) {
        pen_sim_link link = pen_sim_profile_link(session->sim);
        engine.simulated = true;
        engine.link_latency_ms = link.latency_ms * session->config.time_scale;
        engine.link_ms_per_byte = link.ms_per_byte * session->config.time_scale;
    }
    return pen_engine_create(session->world, session->device, session->stage, &engine, &session->engine);
}

pen_status pen_session_load(pen_session *session) {
    return agree(session, "loading the model", make_stage(session));
}

pen_status pen_session_measure(pen_session *session, double *ms) {
    const pen_plan *plan = session->plan;
    pen_engine_shape shape = steady_shape(session, &plan->workload, plan->stage_count);
    PEN_TRY(pen_engine_measure(session->engine, &shape, session->sim ? 1 : MEASURE_REPEATS, ms));
    for (int s = 0; s < plan->stage_count; s++) ms[s] /= session->config.time_scale;
    return PEN_OK;
}

/* ---- Prediction -------------------------------------------------------------------------------------------------- */

static double predicted_ms(void *context, int stage, const pen_simulated_step *step) {
    const pen_session *session = context;
    return pen_step_cost_stage_ms(session->cost, stage, &step->shape);
}

pen_status pen_session_simulate(const pen_session *session, const pen_simulated_watch *watch,
                                pen_simulated_request *requests, int count, pen_simulation *simulation) {
    if (!session->profile)
        return pen_fail(PEN_UNSUPPORTED, "a file of unit times says nothing of other microbatches: no prediction");
    const stage_layout *want = &session->layout;
    const pen_plan *plan = session->plan;
    int stages = plan->stage_count;
    pen_simulate_options options = {
        .schedule = {.stages = stages,
                     .sequences = want->sequences,
                     .rows = want->rows,
                     .logit_rows = want->logit_rows,
                     .context = want->context,
                     .cost = session->cost},
        .kv = pen_stage_kv_pools(session->model, want->sequences, want->rows, want->positions, want->kv_blocks),
        .slots = PEN_ENGINE_SLOTS,
        .leader_computes = !session->sim,
        .stage_ms = predicted_ms,
        .context = (void *)session,
    };
    if (watch) options.watch = *watch;
    if (session->sim) {
        pen_sim_link link = pen_sim_profile_link(session->sim);
        options.latency_ms = link.latency_ms;
        options.ms_per_row =
            link.ms_per_byte * (double)pen_model_hparams(session->model)->hidden * (double)sizeof(float);
    } else {
        options.ms_per_row =
            plan->devices[plan->stages[0].device].wire_ms / pen_plan_steady(&plan->workload, stages, want->rows).rows;
    }
    return pen_simulate(&options, requests, count, simulation);
}
