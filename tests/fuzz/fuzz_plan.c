/*
 * Fuzzes the JSON that is read: plans (`--profile FILE`, what rank 0 broadcasts) and measured profiles (the cache, what
 * ranks send). An input is four bytes of options, and a text. A mutation changes the text as JSON.
 *
 * A plan that was read is solved and written, and read again says the same. A profile that covers a model gives a time
 * for every unit.
 */
#include "json_mutator.h"
#include "plan_json.h"
#include "profile.h"
#include "report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { OPTIONS_BYTES = 4 };

static void require(bool truth) {
    if (!truth) abort();
}

/* ---- Plans ------------------------------------------------------------------------------------------------------- */

static void check_split(const pen_plan *plan) {
    int next = 0;
    require(plan->stage_count >= 1 && plan->stage_count <= plan->unit_count);
    for (int s = 0; s < plan->stage_count; s++) {
        require(plan->stages[s].first == next && plan->stages[s].last >= next);
        require(isfinite(plan->stages[s].time_ms) && plan->stages[s].time_ms >= 0);
        require(plan->stages[s].device >= 0 && plan->stages[s].device < plan->device_count);
        next = plan->stages[s].last + 1;
    }
    require(next == plan->unit_count);
}

static void check_written(const pen_plan *plan) {
    char *text;
    pen_plan *again;
    require(pen_plan_to_json(plan, &text) == PEN_OK);
    if (pen_plan_from_json("again", text, strlen(text), &again) != PEN_OK) {
        fprintf(stderr, "%s\n%s\n", pen_last_error(), text);
        abort();
    }
    require(again->unit_count == plan->unit_count && again->stage_count == plan->stage_count);
    for (int s = 0; s < plan->stage_count; s++) {
        require(again->stages[s].first == plan->stages[s].first && again->stages[s].last == plan->stages[s].last);
        require(again->stages[s].memory_bytes == plan->stages[s].memory_bytes);
    }
    pen_plan_destroy(again);
    free(text);
}

static void use_plan(const uint8_t *bytes, const char *text, size_t length) {
    static const char *const methods[] = {NULL, "dp", "uniform", "parameters", "greedy", "equal-time"};
    static FILE *nowhere;
    if (!nowhere) nowhere = fopen("/dev/null", "w");
    pen_plan *plan;
    if (pen_plan_from_json("input", text, length, &plan) != PEN_OK) return;
    if (plan->stage_count > 0) check_split(plan);
    pen_plan_options options = {.stages = bytes[0] % 20,
                                .method = methods[bytes[1] % (sizeof methods / sizeof *methods)],
                                .memory = bytes[2] <= 53 ? UINT64_C(1) << bytes[2] : 0,
                                .kv_tokens = bytes[3] < 50 ? INT64_C(1) << bytes[3] : 0};
    if (pen_plan_solve(plan, &options) == PEN_OK) {
        check_split(plan);
        require(isfinite(plan->score.max_ms) && plan->score.max_ms >= plan->lower_bound_ms * (1 - 1e-9));
        for (int s = 0; s < plan->stage_count; s++)
            require(plan->stages[s].memory_limit == 0 || plan->stages[s].memory_bytes <= plan->stages[s].memory_limit ||
                    plan->remark_count > 0);
        check_written(plan);
        pen_report_plan(nowhere, plan, 80);
    }
    pen_plan_destroy(plan);
}

/* ---- Profiles ---------------------------------------------------------------------------------------------------- */

static void use_profile(const char *text, size_t length) {
    static pen_model *model; /* the seeds' */
    if (!model) require(pen_model_open("synthetic:llama:layers=2,hidden=32,ffn=64,heads=2,vocab=64", &model) == PEN_OK);
    pen_profile *profile;
    if (pen_profile_decode(text, length, &profile) != PEN_OK) return;
    for (int u = 0; pen_profile_covers(profile, model) && u < pen_model_unit_count(model); u++)
        for (double rows = 0; rows < 2000; rows = 3 * rows + 1) {
            const pen_step_shape shape = {rows, rows / 2, rows / 2, 100 * rows, 10 * rows};
            double ms = pen_profile_unit_ms(profile, model, u, &shape);
            require(!isnan(ms) && ms >= 0);
        }
    char *again = pen_profile_encode(profile);
    pen_profile *same = NULL;
    require(again && pen_profile_decode(again, strlen(again), &same) == PEN_OK);
    free(again);
    pen_profile_destroy(same);
    pen_profile_destroy(profile);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < OPTIONS_BYTES) return 0;
    size_t length = size - OPTIONS_BYTES;
    char *text = malloc(length ? length : 1); /* of its own, so that a read past its end is seen */
    require(text != NULL);
    memcpy(text, data + OPTIONS_BYTES, length);
    use_plan(data, text, length);
    use_profile(text, length);
    free(text);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    srand(seed);
    if (size < OPTIONS_BYTES || rand() % 6 == 0) return LLVMFuzzerMutate(data, size, max_size);
    if (rand() % 6 == 0) {
        LLVMFuzzerMutate(data, OPTIONS_BYTES, OPTIONS_BYTES);
        return size;
    }
    return OPTIONS_BYTES + json_mutate(data + OPTIONS_BYTES, size - OPTIONS_BYTES, max_size - OPTIONS_BYTES);
}
