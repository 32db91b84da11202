/* What a step costs; see step_cost.h. A profile's times are linear between the rows of its grid, and linear in the
 * positions that decodes and chunks attend to. So are sums over a stage's units, which are kept at rows 1, 2, 3, 4, 5,
 * 6, 7, 8, 10, 12, 14, 16, 20, …: four to each doubling, all that profiles are measured at among them. */
#include "step_cost.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Without a profile: the fixed part of a microbatch's time, in rows. */
#define FIXED_ROWS 16.0

enum { DOUBLINGS = 14, GRID = 3 + 4 * DOUBLINGS + 1 }; /* up to 65,536 rows */

typedef struct curve {
    double ms[GRID]; /* without context */
} curve;

typedef struct stage_cost {
    curve rows, logits; /* of the units that all rows go through, and of the head */
    double decode_position_ms, prompt_position_ms;
    double send_ms, wire_ms; /* per row */
} stage_cost;

/* Most stages of a long pipeline are alike; what is asked of all of them is worked out once for each kind. */
typedef struct kind {
    stage_cost cost;
    int stages; /* of this kind */
} kind;

struct pen_step_cost {
    int stages, kind_count;
    int *kind_of; /* [stages] */
    kind *kinds;  /* [kind_count], of stages at most */
};

void pen_step_cost_destroy(pen_step_cost *cost) {
    if (!cost) return;
    free(cost->kind_of);
    free(cost->kinds);
    free(cost);
}

int pen_step_cost_stages(const pen_step_cost *cost) {
    return cost->stages;
}

static double grid_rows(int i) {
    return i < 3 ? i + 1 : (4 + (i - 3) % 4) << (i - 3) / 4;
}

/* At most one row costs as one; beyond the last point in proportion. */
static double look_up(const curve *c, double rows) {
    if (rows <= 0) return 0;
    if (rows <= 1) return c->ms[0];
    int i = (int)rows - 1; /* the last grid point at or below `rows` */
    if (rows >= 4) {
        int doubling = ilogb(rows);
        i = 3 + 4 * (doubling - 2) + (int)(4 * rows / (1 << doubling) - 4);
    }
    if (i >= GRID - 1) return c->ms[GRID - 1] * rows / grid_rows(GRID - 1);
    double share = (rows - grid_rows(i)) / (grid_rows(i + 1) - grid_rows(i));
    return c->ms[i] + share * (c->ms[i + 1] - c->ms[i]);
}

/* ---- Making ------------------------------------------------------------------------------------------------------ */

static pen_status make(int stages, pen_step_cost **made) {
    pen_step_cost *cost = *made = calloc(1, sizeof *cost);
    if (cost) {
        cost->stages = stages;
        cost->kind_of = calloc((size_t)stages, sizeof *cost->kind_of);
        cost->kinds = calloc((size_t)stages, sizeof *cost->kinds);
    }
    if (cost && cost->kind_of && cost->kinds) return PEN_OK;
    pen_step_cost_destroy(cost);
    *made = NULL;
    return pen_fail(PEN_NO_MEMORY, "no memory for the costs of %d stages", stages);
}

static void set_stage(pen_step_cost *cost, int stage, const stage_cost *of) {
    int k = 0;
    while (k < cost->kind_count && memcmp(&cost->kinds[k].cost, of, sizeof *of) != 0) k++;
    if (k == cost->kind_count) cost->kinds[cost->kind_count++].cost = *of;
    cost->kinds[k].stages++;
    cost->kind_of[stage] = k;
}

/* `planned_ms` is what the unit takes there with the planned rows; the profile, of one device, gives the proportion. */
static void add_profiled(stage_cost *stage, curve *to, const pen_model *model, const pen_profile *profile, int unit,
                         const pen_step_shape *planned, double planned_ms) {
    double measured = pen_profile_unit_ms(profile, model, unit, planned);
    double factor = measured > 0 ? planned_ms / measured : 1;
    for (int i = 0; i < GRID; i++) {
        pen_step_shape bare = {.rows = grid_rows(i), .logit_rows = grid_rows(i)};
        to->ms[i] += factor * pen_profile_unit_ms(profile, model, unit, &bare);
    }
    pen_step_shape row = {.rows = 1, .logit_rows = 1}, decode = {1, 1, 1, 1, 0}, prompt = {1, 1, 0, 0, 1};
    double bare_ms = pen_profile_unit_ms(profile, model, unit, &row);
    stage->decode_position_ms += factor * (pen_profile_unit_ms(profile, model, unit, &decode) - bare_ms);
    stage->prompt_position_ms += factor * (pen_profile_unit_ms(profile, model, unit, &prompt) - bare_ms);
}

static void add_even(curve *to, double fixed_ms, double row_ms) {
    for (int i = 0; i < GRID; i++) to->ms[i] += fixed_ms + row_ms * grid_rows(i);
}

pen_status pen_step_cost_create(const pen_plan *plan, const pen_model *model, const pen_profile *profile,
                                const pen_step_shape *planned, pen_step_cost **cost) {
    PEN_TRY(make(plan->stage_count, cost));
    for (int s = 0; s < plan->stage_count; s++) {
        const pen_plan_stage *stage = &plan->stages[s];
        stage_cost own = {0};
        for (int u = stage->first; u <= stage->last; u++) {
            bool head = u == plan->unit_count - 1 && pen_plan_trailing(plan) > 0;
            double ms = pen_plan_unit_ms(plan, u, stage->device), rows = head ? planned->logit_rows : planned->rows;
            curve *units = head ? &own.logits : &own.rows;
            if (profile)
                add_profiled(&own, units, model, profile, u, planned, ms);
            else
                add_even(units, ms * FIXED_ROWS / (FIXED_ROWS + rows), ms / (FIXED_ROWS + rows));
        }
        bool sends = s + 1 < plan->stage_count;
        own.send_ms = sends ? plan->devices[stage->device].send_ms / planned->rows : 0;
        own.wire_ms = sends ? plan->devices[stage->device].wire_ms / planned->rows : 0;
        set_stage(*cost, s, &own);
    }
    return PEN_OK;
}

pen_status pen_step_cost_create_even(int stages, double fixed_ms, double row_ms, pen_step_cost **cost) {
    PEN_TRY(make(stages, cost));
    stage_cost each = {0};
    add_even(&each.rows, fixed_ms, row_ms);
    for (int s = 0; s < stages; s++) set_stage(*cost, s, &each);
    return PEN_OK;
}

/* ---- Asking ------------------------------------------------------------------------------------------------------ */

static double compute_ms(const stage_cost *stage, const pen_step_shape *shape) {
    return look_up(&stage->rows, shape->rows) + look_up(&stage->logits, shape->logit_rows) +
           stage->decode_position_ms * shape->decodes * shape->decode_context +
           stage->prompt_position_ms * (shape->rows - shape->decodes) * shape->prompt_context;
}

double pen_step_cost_stage_ms(const pen_step_cost *cost, int stage, const pen_step_shape *shape) {
    return compute_ms(&cost->kinds[cost->kind_of[stage]].cost, shape);
}

pen_passage pen_step_cost_passage(const pen_step_cost *cost, const pen_step_shape *shape) {
    pen_passage way = {0, 0};
    for (int k = 0; k < cost->kind_count; k++) {
        const stage_cost *each = &cost->kinds[k].cost;
        double wire = each->wire_ms * shape->rows;
        double ms = compute_ms(each, shape) + each->send_ms * shape->rows;
        way.most_ms = fmax(way.most_ms, fmax(ms, wire));
        way.sum_ms += cost->kinds[k].stages * (ms + wire);
    }
    return way;
}
