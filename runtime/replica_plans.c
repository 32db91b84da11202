/* The plans of all replicas; see replica_plans.h. */
#include "replica_plans.h"

#include "budget.h"
#include "kvcache.h"
#include "plan_json.h"
#include "plan_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOISE 0.1 /* by which equal devices may differ */

typedef struct kind {
    pen_plan *plan;
    pen_step_cost *cost;
} kind;

struct pen_replica_plans {
    int replicas, kind_count;
    int *kind_of; /* [replicas] */
    kind *kinds;  /* [kind_count], of replicas at most */
};

/* What is worked with: the options, and the file that the config names instead of measurements, or NULL. */
typedef struct task {
    const pen_replica_plans_options *options;
    pen_plan *file;
    int *kind_of;
} task;

void pen_replica_plans_destroy(pen_replica_plans *plans) {
    if (!plans) return;
    for (int k = 0; k < plans->kind_count; k++) {
        pen_plan_destroy(plans->kinds[k].plan);
        pen_step_cost_destroy(plans->kinds[k].cost);
    }
    free(plans->kinds);
    free(plans->kind_of);
    free(plans);
}

const pen_plan *pen_replica_plans_plan(const pen_replica_plans *plans, int replica) {
    return plans->kinds[plans->kind_of[replica]].plan;
}

const pen_step_cost *pen_replica_plans_cost(const pen_replica_plans *plans, int replica) {
    return plans->kinds[plans->kind_of[replica]].cost;
}

pen_plan_workload pen_replica_plans_workload(const pen_config *config) {
    return (pen_plan_workload){.prompt_tokens = config->workload_prompt,
                               .output_tokens = config->workload_output,
                               .max_num_seqs = config->max_num_seqs};
}

/* ---- The ranks' devices ------------------------------------------------------------------------------------------ */

/* Unit times on a rank's device: the average over the ranks of its machine that have the same device, since what
 * differs between those is noise. */
static void average_times(const pen_replica_plans_options *options, int rank, const pen_steady *steady,
                          double *unit_ms) {
    const pen_rank_report *own = &options->ranks[rank];
    int count = 0, units = pen_model_unit_count(options->model);
    pen_step_shape shape = pen_profile_shape(steady);
    for (int r = 0; r < options->replicas * options->stages; r++) {
        const pen_rank_report *other = &options->ranks[r];
        if (other->node != own->node || strcmp(other->profile->device, own->profile->device) != 0) continue;
        for (int u = 0; u < units; u++) unit_ms[u] += pen_profile_unit_ms(other->profile, options->model, u, &shape);
        count++;
    }
    for (int u = 0; u < units; u++) unit_ms[u] /= count;
}

/* The device of a rank with its times for a workload; its unit_ms is the caller's. */
static pen_status describe(const task *t, const pen_plan_workload *workload, int rank, pen_plan_device *device) {
    const pen_replica_plans_options *options = t->options;
    const pen_rank_report *from = &options->ranks[rank];
    *device = (pen_plan_device){.speed = 1};
    if (t->file) {
        *device = t->file->devices[rank % t->file->device_count];
        device->unit_ms = NULL;
    } else {
        pen_plan_workload timed = pen_replica_plans_workload(options->config); /* what the links were timed with */
        pen_steady steady = pen_plan_steady(workload, options->stages, options->rows);
        double share = steady.rows / pen_plan_steady(&timed, options->stages, options->rows).rows;
        device->send_ms = share * from->send_ms;
        device->wire_ms = share * from->wire_ms;
        device->unit_ms = calloc((size_t)pen_model_unit_count(options->model), sizeof *device->unit_ms);
        if (!device->unit_ms) return pen_fail(PEN_NO_MEMORY, "no memory for the plans");
        average_times(options, rank, &steady, device->unit_ms);
    }
    memcpy(device->name, from->device, sizeof device->name);
    device->numa_nodes = from->numa_nodes;
    if (device->memory_bytes == 0) device->memory_bytes = from->memory;
    return PEN_OK;
}

static void free_devices(pen_plan_device *devices, int count) {
    for (int d = 0; devices && d < count; d++) free(devices[d].unit_ms);
    free(devices);
}

/* ---- Kinds of replicas ------------------------------------------------------------------------------------------- */

static bool is_near(double a, double b) {
    return fabs(a - b) <= NOISE * fmax(a, b);
}

static double total_ms(const pen_plan_device *device, int units) {
    double sum = 0;
    for (int u = 0; u < units; u++) sum += device->unit_ms[u];
    return sum;
}

/* A wire that takes longer matters as far as a stage's time does not hide it. */
static bool devices_alike(const pen_plan_device *a, const pen_plan_device *b, int units, int stages) {
    if (strcmp(a->name, b->name) != 0 || !is_near((double)a->memory_bytes, (double)b->memory_bytes)) return false;
    if (!a->unit_ms) return a->speed == b->speed && a->send_ms == b->send_ms && a->wire_ms == b->wire_ms;
    double x = total_ms(a, units), y = total_ms(b, units);
    return is_near(x, y) && fabs(a->wire_ms - b->wire_ms) <= NOISE * (x + y) / 2 / stages;
}

/* Finds the replicas' kinds; devices[replicas · stages]. Returns how many there are. */
static int sort_kinds(const pen_replica_plans_options *options, const pen_plan_device *devices, int *kind_of) {
    int kinds = 0, stages = options->stages, units = pen_model_unit_count(options->model);
    for (int r = 0; r < options->replicas; r++) {
        kind_of[r] = kinds;
        for (int q = 0; q < r && kind_of[r] == kinds; q++) {
            bool alike = true;
            for (int s = 0; s < stages && alike; s++)
                alike = devices_alike(&devices[q * stages + s], &devices[r * stages + s], units, stages);
            if (alike) kind_of[r] = kind_of[q];
        }
        kinds += kind_of[r] == kinds;
    }
    return kinds;
}

/* The device of a stage of a kind: what its replicas have there, on average, and no more memory than the least. */
static pen_status merge(const task *t, const pen_plan_workload *workload, int k, int stage, pen_plan_device *merged) {
    const pen_replica_plans_options *options = t->options;
    int units = pen_model_unit_count(options->model), count = 0;
    for (int r = 0; r < options->replicas; r++) {
        if (t->kind_of[r] != k) continue;
        pen_plan_device one;
        PEN_TRY(describe(t, workload, r * options->stages + stage, &one));
        if (count++ == 0) {
            *merged = one;
            continue;
        }
        merged->send_ms += one.send_ms;
        merged->wire_ms += one.wire_ms;
        if (one.memory_bytes < merged->memory_bytes) merged->memory_bytes = one.memory_bytes;
        for (int u = 0; one.unit_ms && u < units; u++) merged->unit_ms[u] += one.unit_ms[u];
        free(one.unit_ms);
    }
    merged->send_ms /= count;
    merged->wire_ms /= count;
    for (int u = 0; merged->unit_ms && u < units; u++) merged->unit_ms[u] /= count;
    return PEN_OK;
}

/* ---- One kind's plan --------------------------------------------------------------------------------------------- */

static uint64_t larger(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

static const pen_profile *profile_of(const task *t, int k) {
    int r = 0;
    while (t->kind_of[r] != k) r++;
    return t->options->ranks[r * t->options->stages].profile;
}

/* The bytes of units on the device where they take most: the solver knows one size of a unit. Devices of one sort
 * agree; between a CPU and a GPU the scratch differs, of which a GPU, whose memory is scarce, needs more. */
static void take_largest(const task *t, int k, pen_plan_unit *sizes) {
    const pen_replica_plans_options *options = t->options;
    for (int r = 0; r < options->replicas * options->stages; r++)
        for (int u = 0; t->kind_of[r / options->stages] == k && u < pen_model_unit_count(options->model); u++) {
            const pen_plan_unit *own = &options->ranks[r].sizes[u];
            pen_plan_unit *most = &sizes[u];
            most->weight_bytes = larger(most->weight_bytes, own->weight_bytes);
            most->kv_bytes_per_token = larger(most->kv_bytes_per_token, own->kv_bytes_per_token);
            most->kv_window_bytes = larger(most->kv_window_bytes, own->kv_window_bytes);
            most->workspace_bytes = larger(most->workspace_bytes, own->workspace_bytes);
        }
}

/* The model's bytes and the times on the kind's devices. */
static pen_status make_plan(const task *t, const pen_plan_workload *workload, int k, pen_plan **plan) {
    const pen_replica_plans_options *options = t->options;
    pen_plan_unit *sizes = calloc((size_t)pen_model_unit_count(options->model), sizeof *sizes);
    pen_plan_model_options from = {
        .workload = *workload,
        .stages = options->stages,
        .profile = profile_of(t, k),
        .sizes = sizes,
        .rows = options->rows,
    };
    pen_status status = sizes ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory for the plans");
    if (status == PEN_OK) take_largest(t, k, sizes);
    if (status == PEN_OK) status = pen_plan_from_model(options->model, &from, plan);
    free(sizes);
    PEN_TRY(status);
    pen_plan *made = *plan;
    PEN_TRY(pen_plan_set_devices(made, options->stages));
    for (int s = 0; s < options->stages; s++) PEN_TRY(merge(t, workload, k, s, &made->devices[s]));
    for (int u = 0; u < made->unit_count; u++)
        made->units[u].time_ms = t->file ? t->file->units[u].time_ms : made->devices[0].unit_ms[u];
    if (t->file) memcpy(made->source, t->file->source, sizeof made->source);
    return PEN_OK;
}

pen_status pen_replica_plans_make_cost(const pen_plan *plan, const pen_model *model, const pen_profile *profile,
                                       int rows, pen_step_cost **cost) {
    pen_steady steady = pen_plan_steady(&plan->workload, plan->stage_count, rows);
    pen_step_shape planned = pen_profile_shape(&steady);
    return pen_step_cost_create(plan, model, profile, &planned, cost);
}

/* A kind's plan for this workload. */
static pen_status solve_for(const task *t, const pen_plan_workload *workload, int k, kind *solved) {
    const pen_replica_plans_options *options = t->options;
    const pen_config *config = options->config;
    PEN_TRY(make_plan(t, workload, k, &solved->plan));
    pen_plan_options wanted = {
        .stages = options->stages,
        .method = config->method,
        .layers = config->layers[0] ? config->layers : NULL,
        .memory = config->memory,
        .kv_tokens = options->kv_tokens,
    };
    PEN_TRY(pen_plan_solve(solved->plan, &wanted));
    return pen_replica_plans_make_cost(solved->plan, options->model, profile_of(t, k), options->rows, &solved->cost);
}

/* Microbatches over which the schedule spreads the workload's sequences on the plan's stages; no fewer than those, for
 * which a microbatch's memory was laid out. */
static int spread_of(const kind *solved, int rows) {
    const pen_plan_workload *workload = &solved->plan->workload;
    int stages = solved->plan->stage_count, sequences = pen_plan_sequences(workload, stages);
    int prompt = workload->prompt_tokens, output = workload->output_tokens;
    pen_budget_demand demand = {.decodes = sequences,
                                .settled = sequences,
                                .decode_context = prompt + output / 2.0,
                                .prompts = 1,
                                .prompt_rows = prompt,
                                .prompt_context = prompt / 2.0,
                                .prompt_rate = (double)prompt / output,
                                .output = output};
    int depth = pen_budget_of(solved->cost, &demand, stages > 1 ? stages + 1 : 1, rows).depth;
    return depth > stages ? depth : stages;
}

/* The split decides how many microbatches are best, and their number how large they are and what their units take; so
 * where there will be fewer, it is solved again for those. */
static pen_status solve_kind(const task *t, int k, kind *solved) {
    pen_plan_workload workload = pen_replica_plans_workload(t->options->config);
    PEN_TRY(solve_for(t, &workload, k, solved));
    workload.microbatches = spread_of(solved, t->options->rows);
    if (t->file || workload.microbatches > solved->plan->stage_count) return PEN_OK;
    pen_step_cost_destroy(solved->cost);
    pen_plan_destroy(solved->plan);
    *solved = (kind){0};
    return solve_for(t, &workload, k, solved);
}

/* ---- All of them ------------------------------------------------------------------------------------------------- */

/* `--profile FILE` in a run: the file's unit times, and what it says of its devices and links, instead of our own. It
 * has a device for each rank, for each stage of a replica, or one for all. */
static pen_status read_file(task *t) {
    const pen_replica_plans_options *options = t->options;
    const char *path = options->config->profile;
    int units = pen_model_unit_count(options->model), stages = options->stages, ranks = options->replicas * stages;
    if (!path[0]) return PEN_OK;
    PEN_TRY(pen_plan_read(path, &t->file));
    int devices = t->file->device_count;
    if (t->file->unit_count != units)
        return pen_fail(PEN_BAD_INPUT, "%s: has %d units; %s has %d", path, t->file->unit_count, options->config->model,
                        units);
    if (devices != 1 && devices != stages && devices != ranks)
        return pen_fail(PEN_BAD_INPUT, "%s: has %d devices for %d stages", path, devices, ranks);
    return PEN_OK;
}

static pen_status find_kinds(task *t, pen_replica_plans *plans) {
    const pen_replica_plans_options *options = t->options;
    pen_plan_workload workload = pen_replica_plans_workload(options->config);
    int ranks = options->replicas * options->stages;
    pen_plan_device *devices = calloc((size_t)ranks, sizeof *devices);
    if (!devices) return pen_fail(PEN_NO_MEMORY, "no memory for the devices of %d ranks", ranks);
    pen_status status = PEN_OK;
    for (int r = 0; r < ranks && status == PEN_OK; r++) status = describe(t, &workload, r, &devices[r]);
    if (status == PEN_OK) plans->kind_count = sort_kinds(options, devices, plans->kind_of);
    free_devices(devices, ranks);
    return status;
}

static pen_status solve_all(task *t, pen_replica_plans *plans) {
    PEN_TRY(read_file(t));
    PEN_TRY(find_kinds(t, plans));
    for (int k = 0; k < plans->kind_count; k++) PEN_TRY(solve_kind(t, k, &plans->kinds[k]));
    return PEN_OK;
}

pen_status pen_replica_plans_solve(const pen_replica_plans_options *options, pen_replica_plans **out) {
    size_t replicas = (size_t)options->replicas;
    pen_replica_plans *plans = *out = calloc(1, sizeof *plans);
    if (plans) {
        plans->replicas = options->replicas;
        plans->kind_of = calloc(replicas, sizeof *plans->kind_of);
        plans->kinds = calloc(replicas, sizeof *plans->kinds);
    }
    task t = {.options = options, .kind_of = plans ? plans->kind_of : NULL};
    pen_status status = plans && plans->kind_of && plans->kinds
                            ? solve_all(&t, plans)
                            : pen_fail(PEN_NO_MEMORY, "no memory for the plans of %d replicas", options->replicas);
    pen_plan_destroy(t.file);
    if (status == PEN_OK) return PEN_OK;
    pen_replica_plans_destroy(plans);
    *out = NULL;
    return status;
}
