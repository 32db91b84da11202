/*
 * Fuzzes the JSON that is read: plans (`--profile FILE`, what rank 0 broadcasts) and measured profiles (the cache, what
 * ranks send). An input is four bytes of options, and a text. A mutation changes the text as JSON.
 *
 * A plan that was read is solved and written, and read again says the same. A profile that covers a model gives a time
 * for every unit.
 */
#include "plan_json.h"
#include "profile.h"
#include "report.h"

#include <jansson.h>
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

/* ---- Mutation ---------------------------------------------------------------------------------------------------- */

static json_t *changed_number(const json_t *node) {
    double value = json_number_value(node);
    switch (rand() % 8) {
    case 0: return json_integer(0);
    case 1: return json_integer(-1);
    case 2: return json_integer((json_int_t)1 << rand() % 63);
    case 3: return json_real(fabs(value) < 1e290 ? value * 1e9 : 1);
    case 4: return json_real(value / 1e9);
    case 5: return json_integer(rand() % 100);
    case 6: return json_real(rand() % 1000 / 64.0);
    default: return json_integer((json_int_t)(fabs(value) < 1e18 ? value : 0) + rand() % 3 - 1);
    }
}

static json_t *other_kind(void) {
    switch (rand() % 6) {
    case 0: return json_null();
    case 1: return json_true();
    case 2: return json_array();
    case 3: return json_object();
    case 4: return json_string("");
    default: return json_integer(1);
    }
}

static json_t *changed(json_t *node);

static json_t *changed_array(json_t *node) {
    size_t count = json_array_size(node), i = count ? (size_t)rand() % count : 0;
    if (count == 0) return other_kind();
    switch (rand() % 8) {
    case 0: json_array_remove(node, i); break;
    case 1: json_array_insert_new(node, (size_t)rand() % count, json_deep_copy(json_array_get(node, i))); break;
    default: json_array_set_new(node, i, changed(json_array_get(node, i)));
    }
    return json_incref(node);
}

static json_t *changed_object(json_t *node) {
    const char *key = NULL;
    json_t *value;
    size_t count = json_object_size(node), skip = count ? (size_t)rand() % count : 0;
    void *at = json_object_iter(node);
    if (count == 0) return other_kind();
    for (; skip > 0; skip--) at = json_object_iter_next(node, at);
    key = json_object_iter_key(at);
    value = json_object_iter_value(at);
    if (rand() % 10 == 0)
        json_object_del(node, key);
    else
        json_object_iter_set_new(node, at, changed(value));
    return json_incref(node);
}

/* A new reference to what takes the node's place. */
static json_t *changed(json_t *node) {
    if (rand() % 24 == 0) return other_kind();
    if (json_is_array(node)) return changed_array(node);
    if (json_is_object(node)) return changed_object(node);
    if (json_is_number(node)) return changed_number(node);
    char text[256] = {0};
    strncpy(text, json_is_string(node) ? json_string_value(node) : "", sizeof text - 1);
    size_t length = LLVMFuzzerMutate((uint8_t *)text, strlen(text), sizeof text);
    json_t *string = json_stringn(text, length); /* NULL where it is no UTF-8 */
    return string ? string : json_string("\xef\xbf\xbe");
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    srand(seed);
    if (size < OPTIONS_BYTES || rand() % 6 == 0) return LLVMFuzzerMutate(data, size, max_size);
    if (rand() % 6 == 0) {
        LLVMFuzzerMutate(data, OPTIONS_BYTES, OPTIONS_BYTES);
        return size;
    }
    json_t *root = json_loadb((const char *)data + OPTIONS_BYTES, size - OPTIONS_BYTES, 0, NULL);
    if (!root) return LLVMFuzzerMutate(data, size, max_size);
    for (int i = 1 + rand() % 3; i > 0; i--) {
        json_t *next = changed(root);
        json_decref(root);
        root = next;
    }
    size_t written = json_dumpb(root, (char *)data + OPTIONS_BYTES, max_size - OPTIONS_BYTES, JSON_COMPACT);
    json_decref(root);
    if (written > max_size - OPTIONS_BYTES) written = max_size - OPTIONS_BYTES;
    return OPTIONS_BYTES + written;
}
