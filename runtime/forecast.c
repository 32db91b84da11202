/* The forecast; see forecast.h. */
#include "forecast.h"

#include "kvcache.h"
#include "plan_model.h"

#include <math.h>

/* A microbatch as the profile is asked for it. */
typedef struct shape {
    double rows, logit_rows, context;
} shape;

typedef struct pipeline {
    const pen_plan *plan;
    const pen_model *model;
    const pen_profile *profile;
    shape planned; /* what the plan's own times are for */
} pipeline;

static double profile_ms(const pipeline *p, int unit, const shape *s) {
    return pen_profile_unit_ms(p->profile, p->model, unit, s->rows, s->logit_rows, s->context);
}

/* The plan's times know every stage's device, and the profile is one device's: it gives the proportion. */
static double unit_ms(const pipeline *p, int unit, int device, const shape *s) {
    double ms = pen_plan_unit_ms(p->plan, unit, device);
    if (!p->profile) return ms;
    double planned = profile_ms(p, unit, &p->planned);
    return planned > 0 ? ms * profile_ms(p, unit, s) / planned : ms;
}

/* Times of a microbatch on its way: the slowest stage (or wire), and all of them. */
typedef struct passage {
    double most_ms, sum_ms;
} passage;

static passage pass(const pipeline *p, const shape *s) {
    passage way = {0, 0};
    for (int i = 0; i < p->plan->stage_count; i++) {
        const pen_plan_stage *stage = &p->plan->stages[i];
        const pen_plan_device *device = &p->plan->devices[stage->device];
        bool sends = i + 1 < p->plan->stage_count;
        double bytes = s->rows / p->planned.rows; /* of those that the link was timed with */
        double ms = sends ? device->send_ms * bytes : 0, wire_ms = sends ? device->wire_ms * bytes : 0;
        for (int u = stage->first; u <= stage->last; u++) ms += unit_ms(p, u, stage->device, s);
        way.most_ms = fmax(way.most_ms, fmax(ms, wire_ms));
        way.sum_ms += ms + wire_ms;
    }
    return way;
}

/* Time between two microbatches' returns of one sequence, with m of them in flight. */
static double period_ms(const pipeline *p, const shape *s, int m) {
    passage way = pass(p, s);
    return fmax(m * way.most_ms, way.sum_ms);
}

/* All prompts in the chunks that take them through soonest, then all decodes. */
static pen_forecast apart(const pipeline *p, const pen_steady *steady, int sequences, int rows) {
    int length = p->plan->workload.prompt_tokens, most_chunks = length / PEN_KV_BLOCK;
    double prompts = (double)length * sequences, prompts_ms = INFINITY;
    for (int chunks = (int)ceil(prompts / rows); isinf(prompts_ms) || chunks <= most_chunks; chunks++) {
        shape chunk = {.rows = prompts / chunks, .logit_rows = (double)sequences / chunks, .context = length / 2.0};
        passage way = pass(p, &chunk);
        prompts_ms = fmin(prompts_ms, way.sum_ms + (chunks - 1) * way.most_ms);
    }
    double decodes = (double)sequences / steady->microbatches;
    shape decode = {.rows = decodes, .logit_rows = decodes, .context = steady->context};
    return (pen_forecast){1000 * prompts / prompts_ms, 1000 * sequences / period_ms(p, &decode, steady->microbatches)};
}

pen_forecast pen_forecast_of(const pen_plan *plan, const pen_model *model, const pen_profile *profile,
                             const pen_forecast_options *options) {
    pen_plan_workload workload = plan->workload;
    pen_steady planned = pen_plan_steady(&workload, plan->stage_count, options->rows);
    pipeline p = {plan, model, profile, {planned.rows, planned.logit_rows, planned.context}};
    workload.max_num_seqs = options->sequences;
    pen_steady steady = pen_plan_steady(&workload, plan->stage_count, options->rows);
    if (options->apart) return apart(&p, &steady, options->sequences, options->rows);
    shape microbatch = {steady.rows, steady.logit_rows, steady.context};
    double period = period_ms(&p, &microbatch, steady.microbatches);
    double decodes = steady.microbatches * steady.decode_rows, all = steady.microbatches * steady.rows;
    return (pen_forecast){1000 * (all - decodes) / period, 1000 * decodes / period};
}
