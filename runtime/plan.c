/*
 * The plan: from measurements to stages; see plan.h.
 *
 * The solver in partition/ knows numbers only. What is decided here is which numbers it gets: how many stages, on which
 * device each, how many tokens of KV. And what people are told: the other methods beside the chosen one, and remarks.
 */
#include "plan.h"
#include "clock.h"
#include "size.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEQUENCES_PER_STAGE = 16 };

/* ---- The object -------------------------------------------------------------------------------------------------- */

static void free_devices(pen_plan *plan) {
    for (int d = 0; d < plan->device_count; d++) free(plan->devices[d].unit_ms);
    free(plan->devices);
    plan->devices = NULL;
    plan->device_count = 0;
}

pen_status pen_plan_set_devices(pen_plan *plan, int count) {
    pen_plan_device *devices = calloc((size_t)count, sizeof *devices);
    if (!devices) return pen_fail(PEN_NO_MEMORY, "no memory for a plan on %d devices", count);
    for (int d = 0; d < count; d++) devices[d].speed = 1;
    free_devices(plan);
    plan->devices = devices;
    plan->device_count = count;
    return PEN_OK;
}

pen_status pen_plan_create(int unit_count, int device_count, pen_plan **plan) {
    pen_plan *made = calloc(1, sizeof *made);
    pen_plan_unit *units = calloc((size_t)unit_count, sizeof *units);
    if (!made || !units || pen_plan_set_devices(made, device_count) != PEN_OK) {
        free(made);
        free(units);
        return pen_fail(PEN_NO_MEMORY, "no memory for a plan of %d units on %d devices", unit_count, device_count);
    }
    made->units = units;
    made->unit_count = unit_count;
    made->workload = (pen_plan_workload){.prompt_tokens = PEN_PLAN_PROMPT, .output_tokens = PEN_PLAN_OUTPUT};
    *plan = made;
    return PEN_OK;
}

void pen_plan_destroy(pen_plan *plan) {
    if (!plan) return;
    free_devices(plan);
    free(plan->units);
    free(plan->stages);
    free(plan);
}

double pen_plan_unit_ms(const pen_plan *plan, int unit, int device) {
    const pen_plan_device *d = &plan->devices[device];
    return d->unit_ms ? d->unit_ms[unit] : plan->units[unit].time_ms / d->speed;
}

int pen_plan_leading(const pen_plan *plan) {
    return plan->unit_count > 1 && strcasestr(plan->units[0].name, "embed");
}

int pen_plan_trailing(const pen_plan *plan) {
    return plan->unit_count > 1 && strcasestr(plan->units[plan->unit_count - 1].name, "head");
}

int pen_plan_sequences(const pen_plan_workload *workload, int stages) {
    return workload->max_num_seqs > 0 ? workload->max_num_seqs : SEQUENCES_PER_STAGE * stages;
}

int64_t pen_plan_kv_tokens_needed(const pen_plan_workload *workload, int stages) {
    int64_t tokens = (int64_t)workload->prompt_tokens + workload->output_tokens;
    return pen_plan_sequences(workload, stages) * tokens;
}

uint64_t pen_plan_block_bytes(int hidden) {
    return 12 * (uint64_t)hidden * (uint64_t)hidden * 2;
}

uint64_t pen_plan_activation_bytes(int hidden, double rows) {
    return (uint64_t)((3 * rows * hidden + 4 * rows * hidden) * 2);
}

static void remark(pen_plan *plan, bool warning, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void remark(pen_plan *plan, bool warning, const char *format, ...) {
    if (plan->remark_count == PEN_PLAN_REMARKS) return;
    pen_plan_remark *made = &plan->remarks[plan->remark_count++];
    made->warning = warning;
    va_list args;
    va_start(args, format);
    vsnprintf(made->text, sizeof made->text, format, args);
    va_end(args);
}

/* ---- The numbers for the solver ---------------------------------------------------------------------------------- */

/* A problem with the arrays that it points to, one block of memory for each. */
typedef struct task {
    pen_partition_problem problem;
    pen_partition_unit *units;
    pen_partition_stage *stages;
    double *time_ms;
    int *first; /* [unit_count + 1]: room for a split into any number of stages */
    int custom[PEN_PARTITION_UNITS_MAX];
} task;

static bool same_device(const pen_plan *plan, int a, int b) {
    const pen_plan_device *x = &plan->devices[a], *y = &plan->devices[b];
    if (x->memory_bytes != y->memory_bytes || x->send_ms != y->send_ms || x->wire_ms != y->wire_ms) return false;
    for (int u = 0; u < plan->unit_count; u++)
        if (pen_plan_unit_ms(plan, u, a) != pen_plan_unit_ms(plan, u, b)) return false;
    return true;
}

/* Stage s has device s, or all stages have the one kind of device that there is. */
static pen_status place_stages(const pen_plan *plan, int stages, task *t) {
    bool each = stages == plan->device_count;
    for (int d = 1; !each && d < plan->device_count; d++)
        if (!same_device(plan, 0, d))
            return pen_fail(PEN_USAGE, "%d stages on %d devices that are not all alike: one device per stage is needed",
                            stages, plan->device_count);
    for (int s = 0; s < stages; s++) {
        const pen_plan_device *device = &plan->devices[each ? s : 0];
        bool sends = s + 1 < stages;
        t->stages[s] = (pen_partition_stage){.device = each ? s : 0,
                                             .memory_bytes = device->memory_bytes,
                                             .send_ms = sends ? device->send_ms : 0,
                                             .wire_ms = sends ? device->wire_ms : 0};
    }
    t->problem.stage_count = stages;
    return PEN_OK;
}

static void task_free(task *t) {
    if (!t) return;
    free(t->units);
    free(t->stages);
    free(t->time_ms);
    free(t->first);
    free(t);
}

static pen_status task_make(const pen_plan *plan, task **made) {
    int n = plan->unit_count, devices = plan->device_count;
    if (n < 1 || n > PEN_PARTITION_UNITS_MAX || devices < 1 || devices > PEN_PARTITION_UNITS_MAX)
        return pen_fail(PEN_BAD_INPUT, "a plan of %d units on %d devices, expected 1 … %d", n, devices,
                        PEN_PARTITION_UNITS_MAX);
    task *t = calloc(1, sizeof *t);
    if (!t) return pen_fail(PEN_NO_MEMORY, "no memory for a plan");
    t->units = calloc((size_t)n, sizeof *t->units);
    t->stages = calloc((size_t)n, sizeof *t->stages);
    t->time_ms = calloc((size_t)devices * (size_t)n, sizeof *t->time_ms);
    t->first = calloc((size_t)n + 1, sizeof *t->first);
    if (!t->units || !t->stages || !t->time_ms || !t->first) {
        task_free(t);
        return pen_fail(PEN_NO_MEMORY, "no memory for a plan of %d units on %d devices", n, devices);
    }
    for (int u = 0; u < n; u++) {
        const pen_plan_unit *unit = &plan->units[u];
        t->units[u] = (pen_partition_unit){.name = unit->name,
                                           .weight_bytes = unit->weight_bytes + unit->kv_window_bytes,
                                           .kv_bytes_per_token = unit->kv_bytes_per_token,
                                           .workspace_bytes = unit->workspace_bytes};
        for (int d = 0; d < devices; d++) t->time_ms[d * n + u] = pen_plan_unit_ms(plan, u, d);
    }
    t->problem = (pen_partition_problem){.unit_count = n,
                                         .device_count = devices,
                                         .units = t->units,
                                         .stages = t->stages,
                                         .time_ms = t->time_ms,
                                         .tied_bytes = plan->tied_bytes,
                                         .leading = pen_plan_leading(plan),
                                         .trailing = pen_plan_trailing(plan)};
    *made = t;
    return PEN_OK;
}

/* "10,10,12" */
static pen_status read_layers(const char *layers, task *t) {
    const char *at = layers;
    do {
        char *end;
        long count = isdigit((unsigned char)*at) ? strtol(at, &end, 10) : -1;
        if (count < 0 || count > PEN_PARTITION_UNITS_MAX || (*end != ',' && *end != '\0') ||
            t->problem.custom_count == PEN_PARTITION_UNITS_MAX)
            return pen_fail(PEN_USAGE, "layers \"%s\" are no list of numbers such as 10,10,12", layers);
        t->custom[t->problem.custom_count++] = (int)count;
        at = *end ? end + 1 : NULL;
    } while (at);
    t->problem.custom = t->custom;
    return PEN_OK;
}

/* ---- How many stages, how many tokens ---------------------------------------------------------------------------- */

static pen_status choose_stages(pen_plan *plan, const pen_plan_options *options, task *t) {
    pen_partition_problem *problem = &t->problem;
    int asked = options->stages > 0 ? options->stages : problem->custom ? problem->custom_count : plan->device_count;
    if (options->stages < 0) return pen_fail(PEN_USAGE, "%d stages", options->stages);
    if (asked > plan->unit_count)
        return pen_fail(PEN_USAGE, "%d stages are more than the %d units there are", asked, plan->unit_count);
    PEN_TRY(place_stages(plan, asked, t));
    /* The least that the stages must hold: what was asked for, or a single sequence. */
    problem->kv_tokens = options->kv_tokens > 0 ? options->kv_tokens
                                                : (int64_t)plan->workload.prompt_tokens + plan->workload.output_tokens;
    PEN_TRY(pen_partition_check(problem));
    if (options->stages > 0 || problem->custom) return PEN_OK;
    uint64_t lacking;
    int enough = 0;
    PEN_TRY(pen_partition_shortfall(problem, &lacking));
    if (lacking == 0) return PEN_OK;
    PEN_TRY(pen_partition_stages_needed(problem, &enough));
    if (enough == 0) return PEN_OK; /* the solver will say what is missing */
    if (place_stages(plan, enough, t) != PEN_OK) return place_stages(plan, asked, t);
    remark(plan, true, "the memory limit forces another number of stages: %d instead of %d", enough, asked);
    return PEN_OK;
}

static pen_status choose_kv_tokens(pen_plan *plan, const pen_plan_options *options, task *t) {
    pen_partition_problem *problem = &t->problem;
    if (options->kv_tokens < 0) return pen_fail(PEN_USAGE, "%" PRId64 " tokens of KV", options->kv_tokens);
    if (options->kv_tokens > 0) return PEN_OK;
    int64_t least = problem->kv_tokens, wanted = pen_plan_kv_tokens_needed(&plan->workload, problem->stage_count);
    PEN_TRY(pen_partition_kv_front(problem, plan->points, PEN_PLAN_POINTS, &plan->point_count));
    int64_t most = plan->point_count > 0 ? plan->points[plan->point_count - 1].kv_tokens : INT64_MAX;
    if (most >= wanted) {
        problem->kv_tokens = wanted;
    } else if (most >= least) {
        problem->kv_tokens = most;
        remark(plan, true, "memory holds %" PRId64 " tokens of KV, not the %" PRId64 " that %d sequences need", most,
               wanted, pen_plan_sequences(&plan->workload, problem->stage_count));
    }
    return PEN_OK;
}

/* ---- What follows from a split ----------------------------------------------------------------------------------- */

static pen_status fill_stages(pen_plan *plan, const task *t, const char *method) {
    const pen_partition_problem *problem = &t->problem;
    pen_plan_stage *stages = calloc((size_t)problem->stage_count, sizeof *stages);
    if (!stages) return pen_fail(PEN_NO_MEMORY, "no memory for %d stages", problem->stage_count);
    for (int s = 0; s < problem->stage_count; s++)
        stages[s] = (pen_plan_stage){.first = t->first[s],
                                     .last = t->first[s + 1] - 1,
                                     .device = problem->stages[s].device,
                                     .time_ms = pen_partition_stage_ms(problem, t->first, s),
                                     .memory_bytes = pen_partition_stage_bytes(problem, t->first, s),
                                     .memory_limit = problem->stages[s].memory_bytes};
    free(plan->stages);
    plan->stages = stages;
    plan->stage_count = problem->stage_count;
    plan->kv_tokens = problem->kv_tokens;
    plan->score = pen_partition_evaluate(problem, t->first);
    plan->lower_bound_ms = pen_partition_lower_bound(problem);
    snprintf(plan->method, sizeof plan->method, "%s", method);
    return PEN_OK;
}

static void forget(pen_plan *plan) {
    free(plan->stages);
    plan->stages = NULL;
    plan->stage_count = plan->rival_count = plan->point_count = plan->remark_count = 0;
    plan->solve_ms = 0;
}

static pen_status refuse_full_stage(const pen_plan *plan) {
    for (int s = 0; s < plan->stage_count; s++) {
        const pen_plan_stage *stage = &plan->stages[s];
        char need[PEN_SIZE_TEXT], limit[PEN_SIZE_TEXT];
        if (stage->memory_limit > 0 && stage->memory_bytes > stage->memory_limit)
            return pen_fail(PEN_NO_MEMORY,
                            "method %s: stage %d (%s … %s) needs %s (%" PRIu64 " bytes) and its limit is %s; "
                            "the method dp obeys memory limits",
                            plan->method, s, plan->units[stage->first].name, plan->units[stage->last].name,
                            pen_size_text(stage->memory_bytes, need), stage->memory_bytes,
                            pen_size_text(stage->memory_limit, limit));
    }
    return PEN_OK;
}

/* All methods that can split this, for the table beside the plan. */
static void compare_methods(pen_plan *plan, task *t) {
    for (int m = 0; m < pen_partition_method_count && plan->rival_count < PEN_PLAN_METHODS; m++) {
        const pen_partition_method *method = &pen_partition_methods[m];
        if (method->split(&t->problem, t->first) != PEN_OK) continue;
        plan->rivals[plan->rival_count++] =
            (pen_plan_rival){.method = method->name, .score = pen_partition_evaluate(&t->problem, t->first)};
    }
}

static void remark_on_memory(pen_plan *plan, task *t) {
    if (strcmp(plan->method, "dp") != 0) return; /* the others do not look at memory */
    pen_partition_problem free_of_limits = t->problem;
    pen_partition_stage *stages = malloc((size_t)plan->stage_count * sizeof *stages);
    if (!stages) return;
    for (int s = 0; s < plan->stage_count; s++) {
        stages[s] = t->stages[s];
        stages[s].memory_bytes = 0;
    }
    free_of_limits.stages = stages;
    if (pen_partition_solve(&free_of_limits, t->first) == PEN_OK) {
        double without = pen_partition_evaluate(&free_of_limits, t->first).max_ms;
        if (without < plan->score.max_ms * (1 - 1e-9))
            remark(plan, true,
                   "the memory limits make the slowest stage take %.4g ms; without them it would be %.4g ms",
                   plan->score.max_ms, without);
    }
    free(stages);
}

/* The two hand-made rules for embedding and head, which the optimum follows by itself where they pay. */
static void remark_on_ends(pen_plan *plan) {
    int leading = pen_plan_leading(plan), trailing = pen_plan_trailing(plan), n = plan->unit_count;
    int layers = n - leading - trailing, stages = plan->stage_count;
    double layer_ms = 0;
    for (int u = leading; u < n - trailing; u++) layer_ms += plan->units[u].time_ms / layers;
    if (layers < 1 || stages < 2 || layer_ms <= 0) return;
    double first = plan->units[0].time_ms / layer_ms, last = plan->units[n - 1].time_ms / layer_ms;
    if (leading && first > 3 && plan->stages[0].last == 0)
        remark(plan, false, "%s costs %.1f layers and has a stage of its own", plan->units[0].name, first);
    /* Against the stages that have layers only, or the first one, if there is no other. */
    const pen_plan_stage *tail = &plan->stages[stages - 1], *before = &plan->stages[stages > 2];
    int held = tail->last - tail->first, others = tail->first - (stages > 2 ? before->first : leading);
    double each = (double)others / (stages > 2 ? stages - 2 : 1);
    if (trailing && last > 2 && held < each)
        remark(plan, false, "%s costs %.1f layers: its stage has %d of them, the others %.3g on average",
               plan->units[n - 1].name, last, held, each);
}

/* Weights lie where the thread is that packed them, and any thread may multiply them. */
static void remark_on_numa(pen_plan *plan) {
    int processes = 0, split = -1;
    for (int s = plan->stage_count - 1; s >= 0; s--) {
        int nodes = plan->devices[plan->stages[s].device].numa_nodes;
        processes += nodes > 1 ? nodes : 1;
        if (nodes > 1) split = s;
    }
    if (split >= 0)
        remark(plan, false,
               "the cores of stage %d lie on %d NUMA nodes, and so do its weights: start one process on each node"
               " (mpirun -np %d --map-by numa --bind-to numa)",
               split, plan->devices[plan->stages[split].device].numa_nodes, processes);
}

/* ---- Solving ----------------------------------------------------------------------------------------------------- */

static pen_status solve(pen_plan *plan, const pen_plan_options *options, task *t) {
    const char *name = options->method ? options->method : options->layers ? "custom" : "dp";
    const pen_partition_method *method = pen_partition_method_find(name);
    if (!method) return pen_fail(PEN_USAGE, "no method is called \"%s\"", name);
    if (options->layers) PEN_TRY(read_layers(options->layers, t));
    PEN_TRY(choose_stages(plan, options, t));
    PEN_TRY(choose_kv_tokens(plan, options, t));
    PEN_TRY(pen_partition_check(&t->problem));
    int64_t start = pen_clock_ns();
    PEN_TRY(method->split(&t->problem, t->first));
    plan->solve_ms = (double)(pen_clock_ns() - start) * 1e-6;
    PEN_TRY(fill_stages(plan, t, name));
    PEN_TRY(refuse_full_stage(plan));
    compare_methods(plan, t);
    remark_on_memory(plan, t);
    remark_on_ends(plan);
    remark_on_numa(plan);
    return PEN_OK;
}

pen_status pen_plan_solve(pen_plan *plan, const pen_plan_options *options) {
    task *t;
    forget(plan);
    for (int d = 0; options->memory > 0 && d < plan->device_count; d++) plan->devices[d].memory_bytes = options->memory;
    PEN_TRY(task_make(plan, &t));
    pen_status status = solve(plan, options, t);
    task_free(t);
    if (status != PEN_OK) forget(plan);
    return status;
}

pen_status pen_plan_apply(pen_plan *plan, const char *method, int stages, const int *first, int64_t kv_tokens) {
    task *t;
    forget(plan);
    PEN_TRY(task_make(plan, &t));
    pen_status status = stages >= 1 && stages <= plan->unit_count && first[0] == 0 && first[stages] == plan->unit_count
                            ? place_stages(plan, stages, t)
                            : pen_fail(PEN_USAGE, "a split of %d units into %d stages", plan->unit_count, stages);
    for (int s = 0; s < stages && status == PEN_OK; s++)
        if (first[s] >= first[s + 1]) status = pen_fail(PEN_USAGE, "stage %d of the split has no unit", s);
    if (status == PEN_OK) {
        memcpy(t->first, first, ((size_t)stages + 1) * sizeof *first);
        t->problem.kv_tokens = kv_tokens;
        status = fill_stages(plan, t, method);
    }
    task_free(t);
    return status;
}

pen_status pen_plan_adjust(const pen_plan *plan, const double *measured_ms, double threshold, int *first, int *moves) {
    task *t;
    PEN_TRY(task_make(plan, &t));
    pen_status status = place_stages(plan, plan->stage_count, t);
    if (status == PEN_OK) {
        t->problem.kv_tokens = plan->kv_tokens;
        for (int s = 0; s < plan->stage_count; s++) first[s] = plan->stages[s].first;
        first[plan->stage_count] = plan->unit_count;
        status = pen_partition_adjust(&t->problem, measured_ms, threshold, first, moves);
    }
    task_free(t);
    return status;
}
