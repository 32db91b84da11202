/* Start-up; see session.h. */
#include "session.h"

#include "device_open.h"
#include "gpu_share.h"
#include "link_cost.h"
#include "link_open.h"
#include "log.h"
#include "plan_json.h"
#include "plan_model.h"
#include "profile.h"
#include "profile_cache.h"
#include "replica_plans.h"
#include "sim_profile.h"
#include "step_cost.h"
#include "token_cost.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MEASURE_REPEATS = 10,
    MEASURE_PATIENCE_MS = 100,
    TRACE_RECORDS = 1 << 17, /* 5 MiB of steps a rank */
    LINK_PATIENCE_S = 30,
};

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
    pen_memory *memories;      /* [size] that the ranks compute in, see share_memories() */
    pen_profile *profile;      /* this rank's own; NULL where the times come from a file */
    pen_replica_plans *plans;  /* rank 0's, of all replicas */
    pen_plan *own_plan;        /* NULL on rank 0 */
    const pen_plan *plan;      /* of this rank's replica */
    pen_step_cost *own_cost;   /* NULL on rank 0 */
    const pen_step_cost *cost; /* of the plan's stages; leaders */
    stage_layout layout;
    pen_stage *stage;
    pen_link *link; /* until the engine has it */
    pen_engine *engine;
    bool settled; /* all ranks have agreed on a failure: there is nothing left to agree on */
};

const pen_model *pen_session_model(const pen_session *session) {
    return session->model;
}
const pen_config *pen_session_config(const pen_session *session) {
    return &session->config;
}
double pen_session_step_timeout_s(const pen_session *session) {
    return session->layout.step_timeout_s;
}
int pen_session_replicas(const pen_session *session) {
    return pen_world_replicas(session->world);
}
int pen_session_slots(const pen_session *session) {
    return session->layout.sequences;
}
pen_world *pen_session_world(const pen_session *session) {
    return session->world;
}
const pen_plan *pen_session_solved(const pen_session *session) {
    return session->plan;
}
const pen_plan *pen_session_solved_of(const pen_session *session, int replica) {
    return pen_replica_plans_plan(session->plans, replica);
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
    if (session->device && pen_device_status(session->device) != PEN_OK)
        status = pen_fail(PEN_INTERNAL, "%s: %s", pen_world_place(session->world, pen_world_rank(session->world))->name,
                          pen_last_error());
    status = pen_world_agree(session->world, what, status);
    session->settled = status != PEN_OK;
    if (status == PEN_OK) PEN_DEBUG("done: %s", what);
    return status;
}

static bool is_first(const pen_session *session) {
    return pen_world_rank(session->world) == 0;
}

/* ---- Open -------------------------------------------------------------------------------------------------------- */

static int ranks_here(pen_world *world) {
    int node = pen_world_place(world, pen_world_rank(world))->node, count = 0;
    for (int r = 0; r < pen_world_size(world); r++) count += pen_world_place(world, r)->node == node;
    return count;
}

static pen_status open_device(pen_session *session) {
    const pen_config *config = &session->config;
    pen_world *world = session->world;
    pen_world_set_threads(world, config->threads);
    if (session->sim)
        PEN_TRY(pen_sim_profile_device(session->sim, config->time_scale, &session->device));
    else
        PEN_TRY(pen_device_open(config, pen_world_share(world),
                                pen_world_place(world, pen_world_rank(world))->local_rank, ranks_here(world),
                                &session->device));
    pen_device_set_poke(session->device, pen_world_beat, world); /* until the engine has its own */
    return PEN_OK;
}

/* Everybody's memory, to everybody: a profile is one of so many ranks on a device, and a plan divides what they share.
 * Done at first, and again when links are open, which on a GPU take memory of their own, as do kernels once they are
 * loaded. */
static pen_status share_memories(pen_session *session) {
    static const char what[] = "comparing memories";
    pen_world *world = session->world;
    size_t size = (size_t)pen_world_size(world);
    pen_own_memory own;
    pen_blob *blobs = calloc(size, sizeof *blobs);
    if (!session->memories) session->memories = calloc(size, sizeof *session->memories);
    pen_status status = blobs && session->memories ? pen_device_own_memory(session->device, &own)
                                                   : pen_fail(PEN_NO_MEMORY, "no memory for %zu ranks", size);
    if (status == PEN_OK) {
        pen_memory mine = {.node = pen_world_place(world, pen_world_rank(world))->node,
                           .free = own.total_bytes > 0 ? own.free_bytes : pen_world_share(world)->memory,
                           .held = pen_device_bytes_used(session->device)};
        memcpy(mine.bus, own.bus, sizeof own.bus);
        status = pen_world_gather(world, what, &mine, sizeof mine, blobs);
    }
    for (size_t r = 0; blobs && r < size; r++) {
        if (blobs[r].bytes == sizeof *session->memories) session->memories[r] = *(const pen_memory *)blobs[r].data;
        free(blobs[r].data);
    }
    free(blobs);
    PEN_TRY(status);
    return broadcast_plain(world, what, session->memories, size * sizeof *session->memories);
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

/* The launcher chose how many processes there are; the options say what they are to be. */
static pen_status arrange(const pen_session *session) {
    int size = pen_world_size(session->world), stages = session->config.pipeline_parallel;
    int replicas = session->config.data_parallel > 0 ? session->config.data_parallel : 1;
    const char *were = size == 1 ? " was" : "es were";
    if (stages == 0) {
        if (size % replicas == 0) return pen_world_arrange(session->world, replicas, size / replicas);
        int fewest = (size / replicas + 1) * replicas;
        return pen_fail(PEN_USAGE,
                        "--data-parallel-size is %d, and %d process%s started: use mpirun -np %d, or another"
                        " multiple of %d",
                        replicas, size, were, fewest, replicas);
    }
    if ((int64_t)replicas * stages == size) return pen_world_arrange(session->world, replicas, stages);
    if (session->config.data_parallel > 0)
        return pen_fail(PEN_USAGE,
                        "--data-parallel-size is %d and --pipeline-parallel-size %d, and %d process%s started: use"
                        " mpirun -np %lld",
                        replicas, stages, size, were, (long long)replicas * stages);
    if (size % stages == 0)
        return pen_fail(PEN_USAGE,
                        "--pipeline-parallel-size is %d, and %d processes were started: use mpirun -np %d, or"
                        " --data-parallel-size %d",
                        stages, size, stages, size / stages);
    return pen_fail(PEN_USAGE, "--pipeline-parallel-size is %d, and %d process%s started: use mpirun -np %d", stages,
                    size, were, stages);
}

static pen_status open_model(pen_session *session) {
    const char *profile = pen_sim_profile_path(session->config.device);
    if (profile) {
        PEN_TRY(pen_sim_profile_read(profile, pen_world_place(session->world, pen_world_rank(session->world)),
                                     &session->sim));
        session->model = pen_sim_profile_model(session->sim);
        return PEN_OK;
    }
    PEN_TRY(pen_model_open(session->config.model, &session->own_model));
    session->model = session->own_model;
    return PEN_OK;
}

static pen_status open_local(pen_session *session) {
    PEN_TRY(arrange(session));
    PEN_TRY(pen_link_fits(session->config.link, pen_world_stages(session->world)));
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
    PEN_TRY(agree(session, "comparing the model files", check_same_model(session)));
    /* Everybody has a device by now, and nobody will take memory before this is agreed on. */
    return agree(session, "comparing memories", share_memories(session));
}

void pen_session_close(pen_session *session) {
    if (!session) return;
    pen_engine_destroy(session->engine);
    pen_link_destroy(session->link);
    pen_stage_destroy(session->stage);
    pen_step_cost_destroy(session->own_cost);
    pen_plan_destroy(session->own_plan);
    pen_replica_plans_destroy(session->plans);
    pen_profile_destroy(session->profile);
    if (session->device) pen_device_destroy(session->device);
    free(session->memories);
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
        .ranks = pen_memory_sharers(session->memories, pen_world_size(session->world), pen_world_rank(session->world)),
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

static double link_patience_s(const pen_session *session) {
    return session->config.step_timeout_s > 0 ? session->config.step_timeout_s : LINK_PATIENCE_S;
}

static pen_status open_link(pen_session *session) {
    return pen_link_open(session->world, session->device, session->config.link, link_patience_s(session),
                         &session->link);
}

/* What the workload's microbatch takes to the next stage. */
static pen_status time_link(pen_session *session, pen_rank_report *mine) {
    pen_plan_workload workload = pen_replica_plans_workload(&session->config);
    pen_steady steady = pen_plan_steady(&workload, pen_world_stages(session->world), pen_config_rows(&session->config));
    size_t row_bytes = (size_t)pen_model_hparams(session->model)->hidden * sizeof(float);
    if (session->sim) {
        mine->wire_ms = steady.rows * (double)row_bytes * pen_sim_profile_link(session->sim).ms_per_byte;
        return PEN_OK;
    }
    PEN_TRY(pen_link_cost(session->world, &session->link, session->device, (size_t)ceil(steady.rows) * row_bytes,
                          link_patience_s(session), &mine->wire_ms));
    /* Over MPI the sender's own thread does the copying, or its GPU's stream; NCCL has a stream of its own. */
    if (strcmp(pen_link_name(session->link), "mpi") == 0) mine->send_ms = mine->wire_ms;
    return PEN_OK;
}

static pen_status solve(pen_session *session, const pen_rank_report *ranks) {
    const stage_layout *layout = &session->layout;
    pen_replica_plans_options options = {
        .model = session->model,
        .config = &session->config,
        .replicas = pen_world_replicas(session->world),
        .stages = pen_world_stages(session->world),
        .ranks = ranks,
        .rows = layout->rows,
        .kv_tokens = (int64_t)layout->kv_blocks * PEN_KV_BLOCK,
    };
    PEN_TRY(pen_replica_plans_solve(&options, &session->plans));
    session->plan = pen_replica_plans_plan(session->plans, 0);
    session->cost = pen_replica_plans_cost(session->plans, 0);
    return PEN_OK;
}

/* Once: the others are not told anything new. */
static void warn_if_shared(const pen_session *session) {
    const pen_memory *memories = session->memories;
    int size = pen_world_size(session->world), r = 0;
    while (r < size && (!memories[r].bus[0] || pen_memory_sharers(memories, size, r) == 1)) r++;
    if (r == size) return;
    PEN_WARN("%s: %d ranks share the GPU at %s and its memory; with a rank for each GPU nobody waits for another",
             pen_world_place(session->world, r)->host, pen_memory_sharers(memories, size, r), memories[r].bus);
}

/* What a rank may fill. */
static uint64_t memory_limit(const pen_session *session, int rank) {
    const pen_config *config = &session->config;
    if (config->memory) return config->memory;
    if (session->sim) return pen_sim_profile_memory(session->sim);
    return pen_memory_limit(session->memories, pen_world_size(session->world), rank, config->gpu_memory_utilization);
}

/* What every rank sends rank 0 of itself. */
enum { REPORT, PROFILE, SIZES, PARTS };

/* Rank 0: the plans that follow from what the ranks sent, of each part [size]. */
static pen_status solve_reports(pen_session *session, const pen_blob *parts) {
    int size = pen_world_size(session->world);
    const pen_blob *reports = parts + REPORT * size, *texts = parts + PROFILE * size, *sizes = parts + SIZES * size;
    size_t sizes_bytes = (size_t)pen_model_unit_count(session->model) * sizeof(pen_plan_unit);
    pen_rank_report *ranks = calloc((size_t)size, sizeof *ranks);
    pen_profile **profiles = calloc((size_t)size, sizeof(pen_profile *));
    pen_status status =
        ranks && profiles ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory for the profiles of %d ranks", size);
    for (int r = 0; r < size && status == PEN_OK; r++) {
        if (session->profile) status = pen_profile_decode(texts[r].data, texts[r].bytes, &profiles[r]);
        bool covers = !profiles[r] || pen_profile_covers(profiles[r], session->model);
        if (status == PEN_OK && (reports[r].bytes != sizeof *ranks || sizes[r].bytes != sizes_bytes || !covers))
            status = pen_fail(PEN_BAD_INPUT, "rank %d runs another build than rank 0", r);
        if (status != PEN_OK) break;
        memcpy(&ranks[r], reports[r].data, sizeof *ranks);
        ranks[r].profile = profiles[r];
        ranks[r].sizes = sizes[r].data;
    }
    if (status == PEN_OK) {
        warn_if_shared(session);
        status = solve(session, ranks);
    }
    for (int r = 0; profiles && r < size; r++) pen_profile_destroy(profiles[r]);
    free(profiles);
    free(ranks);
    return status;
}

static void free_blobs(pen_blob *blobs, int count) {
    for (int i = 0; blobs && i < count; i++) free(blobs[i].data);
    free(blobs);
}

/* What units take on this rank's device; the caller frees it. NULL: no memory. */
static pen_plan_unit *size_units(const pen_session *session) {
    const stage_layout *layout = &session->layout;
    pen_plan_model_options options = {
        .workload = pen_replica_plans_workload(&session->config),
        .stages = pen_world_stages(session->world),
        .device = session->device,
        .rows = layout->rows,
        .logit_rows = layout->logit_rows,
        .context = layout->context,
        .sequences = layout->sequences,
        .positions = layout->positions,
        .slots = PEN_ENGINE_SLOTS,
    };
    pen_plan_unit *sizes = calloc((size_t)pen_model_unit_count(session->model), sizeof *sizes);
    if (sizes) pen_plan_model_sizes(session->model, &options, sizes);
    return sizes;
}

/* Everyone's device, memory, profile and sizes come to rank 0, which solves them. */
static pen_status collect_and_solve(pen_session *session) {
    pen_world *world = session->world;
    int size = pen_world_size(world), rank = pen_world_rank(world);
    pen_blob *parts = calloc((size_t)(PARTS * size), sizeof *parts);
    char *text = session->profile ? pen_profile_encode(session->profile) : NULL;
    pen_plan_unit *sizes = size_units(session);
    pen_status status = PEN_OK;
    if (!parts || !sizes || (session->profile && !text))
        status = pen_fail(PEN_NO_MEMORY, "no memory for the profiles of %d ranks", size);
    status = agree(session, "collecting the profiles", status);

    pen_rank_report mine = {.node = session->memories[rank].node};
    if (status == PEN_OK && !session->config.profile[0]) status = time_link(session, &mine);
    status = agree(session, "timing the links", status);
    if (status == PEN_OK) status = agree(session, "comparing memories", share_memories(session));
    mine.memory = memory_limit(session, rank);
    if (!session->sim && !session->memories[rank].bus[0])
        mine.numa_nodes = pen_share_numa_nodes(pen_world_share(world));
    snprintf(mine.device, sizeof mine.device, "%s", pen_device_name(session->device));
    const struct {
        const char *what;
        const void *data;
        size_t bytes;
    } own[PARTS] = {
        [REPORT] = {"collecting the devices", &mine, sizeof mine},
        [PROFILE] = {"collecting the profiles", text ? text : "", text ? strlen(text) : 0},
        [SIZES] = {"collecting sizes", sizes, (size_t)pen_model_unit_count(session->model) * sizeof *sizes},
    };
    for (int i = 0; i < PARTS && status == PEN_OK; i++)
        status = pen_world_gather(world, own[i].what, own[i].data, own[i].bytes, parts + i * size);
    if (status == PEN_OK && is_first(session)) status = solve_reports(session, parts);
    free_blobs(parts, PARTS * size);
    free(sizes);
    free(text);
    return status;
}

/* Rank 0: each rank's text is its replica's plan; texts[size], of which the ranks of a replica share one. */
static pen_status write_plans(const pen_session *session, pen_blob *texts) {
    int stages = pen_world_stages(session->world);
    for (int r = 0; r < pen_world_size(session->world); r++) {
        if (r % stages > 0) {
            texts[r] = texts[r - 1];
            continue;
        }
        char *text;
        PEN_TRY(pen_plan_to_json(pen_replica_plans_plan(session->plans, r / stages), &text));
        texts[r] = (pen_blob){.data = text, .bytes = strlen(text)};
    }
    return PEN_OK;
}

/* Every rank gets its replica's plan, and a leader what steps cost on it. */
static pen_status share_plans(pen_session *session) {
    static const char what[] = "sharing the plan";
    pen_world *world = session->world;
    pen_blob *texts = calloc((size_t)pen_world_size(world), sizeof *texts), own = {0};
    pen_status status = texts ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory to share the plan");
    if (status == PEN_OK && is_first(session)) status = write_plans(session, texts);
    status = agree(session, "writing the plan", status);
    if (status == PEN_OK) status = pen_world_scatter(world, what, texts, &own);
    for (int r = 0; texts && r < pen_world_size(world); r += pen_world_stages(world)) free(texts[r].data);
    free(texts);
    if (status != PEN_OK || is_first(session)) return status;
    status = pen_plan_from_json("rank 0's plan", own.data, own.bytes, &session->own_plan);
    free(own.data);
    PEN_TRY(status);
    session->plan = session->own_plan;
    if (pen_world_stage(world) > 0) return PEN_OK;
    PEN_TRY(pen_replica_plans_make_cost(session->plan, session->model, session->profile, session->layout.rows,
                                        &session->own_cost));
    session->cost = session->own_cost;
    return PEN_OK;
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
    int max_len = pen_session_max_len(session), stages = pen_world_stages(session->world);
    if (need->context > max_len)
        return pen_fail(PEN_USAGE, "the sequence needs %d tokens, more than the longest allowed, %d", need->context,
                        max_len);
    int per_sequence = (need->context + PEN_KV_BLOCK - 1) / PEN_KV_BLOCK;
    pen_plan_workload workload = pen_replica_plans_workload(config);
    int sequences = at_most(need->sequences, pen_plan_sequences(&workload, stages));
    int64_t blocks = (int64_t)per_sequence * sequences;
    if (need->typical) {
        int typical = (config->workload_prompt + config->workload_output + PEN_KV_BLOCK - 1) / PEN_KV_BLOCK;
        blocks = (int64_t)at_most(typical, per_sequence) * sequences;
        if (blocks < per_sequence) blocks = per_sequence;
    }
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
    workload.microbatches = stages; /* the fewest that it may be spread over */
    pen_engine_shape shape = steady_shape(session, &workload, stages);
    int measured = shape.position + (shape.prompt_rows > 1 ? shape.prompt_rows : 1);
    layout->context = per_sequence * PEN_KV_BLOCK > measured ? per_sequence * PEN_KV_BLOCK : measured;
    layout->logit_rows = need->logit_rows > shape.logit_rows ? need->logit_rows : shape.logit_rows;
    return PEN_OK;
}

/* Rank 0: after which a step counts as lost, on any replica. */
static double step_timeout(const pen_session *session) {
    double asked = session->config.step_timeout_s, longest_ms = 0;
    for (int r = 0; r < pen_session_replicas(session); r++) {
        const pen_plan *plan = pen_session_solved_of(session, r);
        longest_ms = fmax(longest_ms, plan->score.max_ms * plan->stage_count);
    }
    return asked > 0 ? asked : fmax(30, 20 * longest_ms / 1000 * session->config.time_scale);
}

pen_status pen_session_plan(pen_session *session, pen_status request, const pen_session_need *need) {
    if (is_first(session) && request == PEN_OK) request = lay_out(session, need);
    PEN_TRY(agree(session, "preparing the request", request));
    stage_layout *layout = &session->layout;
    PEN_TRY(agree(session, "sharing the layout",
                  broadcast_plain(session->world, "sharing the layout", layout, sizeof *layout)));
    int stages = pen_world_stages(session->world), units = pen_model_unit_count(session->model);
    if (stages > units) return pen_fail(PEN_USAGE, "%d stages are more than the model's %d units", stages, units);
    if (!session->config.profile[0]) PEN_TRY(agree(session, "profiling", profile_device(session)));
    PEN_TRY(agree(session, "opening the links", open_link(session)));
    PEN_TRY(agree(session, "planning", collect_and_solve(session)));
    if (is_first(session)) layout->step_timeout_s = step_timeout(session);
    pen_status shared = broadcast_plain(session->world, "sharing the plan", &layout->step_timeout_s, sizeof(double));
    PEN_TRY(agree(session, "sharing the plan", shared));
    return agree(session, "sharing the plan", share_plans(session));
}

/* ---- What the plans promise -------------------------------------------------------------------------------------- */

pen_token_cost pen_session_token_cost(const pen_session *session, int replica) {
    bool own = replica == pen_world_replica(session->world);
    const pen_plan *plan = own ? session->plan : pen_session_solved_of(session, replica);
    const pen_step_cost *cost = own ? session->cost : pen_replica_plans_cost(session->plans, replica);
    pen_steady steady = pen_plan_steady(&plan->workload, plan->stage_count, session->layout.rows);
    return pen_token_cost_of(cost, &steady);
}

/* Deals sequences to the replicas as fast as they are: each goes where it is done first, as long as there is room.
 * shares[replicas]. */
static void deal(const pen_session *session, int sequences, int *shares, double *each_ms) {
    const pen_plan_workload *workload = &session->plan->workload;
    int replicas = pen_session_replicas(session), room = replicas * session->layout.sequences;
    for (int r = 0; r < replicas; r++) {
        pen_token_cost token = pen_session_token_cost(session, r);
        each_ms[r] = workload->prompt_tokens * token.prompt_ms + workload->output_tokens * token.output_ms;
    }
    for (int left = at_most(sequences, room); left > 0; left--) {
        int best = -1;
        for (int r = 0; r < replicas; r++) {
            if (shares[r] == session->layout.sequences) continue;
            if (best < 0 || (shares[r] + 1) * each_ms[r] < (shares[best] + 1) * each_ms[best]) best = r;
        }
        shares[best]++;
    }
}

pen_forecast pen_session_forecast(const pen_session *session, int sequences, bool apart) {
    int replicas = pen_session_replicas(session);
    pen_forecast all = {0, 0};
    int *shares = calloc((size_t)replicas, sizeof *shares);
    double *each_ms = calloc((size_t)replicas, sizeof *each_ms);
    if (shares && each_ms) deal(session, sequences, shares, each_ms);
    for (int r = 0; shares && r < replicas; r++) {
        if (shares[r] == 0) continue;
        pen_forecast_options options = {.sequences = shares[r], .rows = session->layout.rows, .apart = apart};
        pen_forecast one = pen_forecast_of(&pen_session_solved_of(session, r)->workload,
                                           pen_replica_plans_cost(session->plans, r), &options);
        all.prompt_tokens_per_s += one.prompt_tokens_per_s;
        all.decode_tokens_per_s += one.decode_tokens_per_s;
    }
    free(shares);
    free(each_ms);
    return all;
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
    PEN_TRY(pen_device_sync(session->device)); /* what is loaded has arrived */
    pen_engine_options engine = {
        .hidden = hparams->hidden,
        .vocab = hparams->vocab,
        .rows = want->rows,
        .logit_rows = want->logit_rows,
        .context = want->context,
        .kv = options.kv,
        .sequences = want->sequences,
        .cost = session->cost,
        .preempts = session->config.preempts,
        .step_timeout_s = want->step_timeout_s,
        .trace = session->config.trace[0] ? TRACE_RECORDS : 0,
    };
    if (session->sim) {
        pen_sim_link link = pen_sim_profile_link(session->sim);
        engine.simulated = true;
        engine.time_scale = session->config.time_scale;
        engine.link_latency_ms = link.latency_ms * session->config.time_scale;
        engine.link_ms_per_byte = link.ms_per_byte * session->config.time_scale;
    }
    pen_link *link = session->link;
    session->link = NULL;
    return pen_engine_create(session->world, session->device, session->stage, link, &engine, &session->engine);
}

pen_status pen_session_load(pen_session *session) {
    return agree(session, "loading the model", make_stage(session));
}

pen_status pen_session_measure(pen_session *session, bool exactly, double *ms) {
    const pen_plan *plan = session->plan;
    pen_engine_shape shape = steady_shape(session, &plan->workload, plan->stage_count);
    bool compared = !session->sim && plan->stage_count > 1;
    PEN_TRY(pen_engine_measure(session->engine, &shape, compared ? MEASURE_REPEATS : 1,
                               exactly ? INFINITY : MEASURE_PATIENCE_MS, ms));
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
