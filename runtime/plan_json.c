/* The plan as JSON; see plan_json.h. Reading trusts nothing; writing leaves out what is not there. */
#include "plan_json.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Numbers beyond these are mistakes, and would make sums overflow. */
#define MS_MAX    1e15
#define BYTES_MAX 0x1p53
#define FILE_MAX  ((size_t)64 << 20)

/* ---- Writing ----------------------------------------------------------------------------------------------------- */

static json_t *bytes_json(uint64_t bytes) {
    return json_integer((json_int_t)bytes);
}

/* Infinite imbalance, where a stage costs nothing, has no number in JSON. */
static json_t *ratio_json(double ratio) {
    return isfinite(ratio) ? json_real(ratio) : json_null();
}

static json_t *units_json(const pen_plan *plan) {
    json_t *units = json_array();
    for (int u = 0; u < plan->unit_count; u++) {
        const pen_plan_unit *unit = &plan->units[u];
        json_array_append_new(units, json_pack("{s:s, s:f, s:o, s:o, s:o, s:o}", "name", unit->name, "time_ms",
                                               unit->time_ms, "weight_bytes", bytes_json(unit->weight_bytes),
                                               "kv_bytes_per_token", bytes_json(unit->kv_bytes_per_token),
                                               "kv_window_bytes", bytes_json(unit->kv_window_bytes), "workspace_bytes",
                                               bytes_json(unit->workspace_bytes)));
    }
    return units;
}

static json_t *devices_json(const pen_plan *plan) {
    json_t *devices = json_array();
    for (int d = 0; d < plan->device_count; d++) {
        const pen_plan_device *device = &plan->devices[d];
        json_t *made = json_pack("{s:s, s:o, s:f}", "name", device->name, "memory_bytes",
                                 bytes_json(device->memory_bytes), "speed", device->speed);
        if (device->send_ms > 0) json_object_set_new(made, "send_ms", json_real(device->send_ms));
        if (device->wire_ms > 0) json_object_set_new(made, "wire_ms", json_real(device->wire_ms));
        if (device->unit_ms) {
            json_t *times = json_array();
            for (int u = 0; u < plan->unit_count; u++) json_array_append_new(times, json_real(device->unit_ms[u]));
            json_object_set_new(made, "unit_ms", times);
        }
        json_array_append_new(devices, made);
    }
    return devices;
}

static void add_split(const pen_plan *plan, json_t *root) {
    json_t *stages = json_array(), *methods = json_object();
    for (int s = 0; s < plan->stage_count; s++) {
        const pen_plan_stage *stage = &plan->stages[s];
        json_array_append_new(stages, json_pack("{s:i, s:i, s:i, s:f, s:o}", "first", stage->first, "last", stage->last,
                                                "device", stage->device, "time_ms", stage->time_ms, "memory_bytes",
                                                bytes_json(stage->memory_bytes)));
    }
    for (int m = 0; m < plan->rival_count; m++) {
        const pen_partition_score *score = &plan->rivals[m].score;
        json_object_set_new(methods, plan->rivals[m].method,
                            json_pack("{s:f, s:o, s:f, s:b}", "max_ms", score->max_ms, "imbalance",
                                      ratio_json(score->imbalance), "efficiency", score->efficiency, "fits",
                                      score->fits));
    }
    json_object_set_new(root, "method", json_string(plan->method));
    json_object_set_new(root, "kv_tokens", json_integer(plan->kv_tokens));
    json_object_set_new(root, "stages", stages);
    json_object_set_new(root, "max_ms", json_real(plan->score.max_ms));
    json_object_set_new(root, "lower_bound_ms", json_real(plan->lower_bound_ms));
    json_object_set_new(root, "imbalance", ratio_json(plan->score.imbalance));
    json_object_set_new(root, "efficiency", json_real(plan->score.efficiency));
    json_object_set_new(root, "solve_ms", json_real(plan->solve_ms));
    json_object_set_new(root, "methods", methods);
}

static void add_advice(const pen_plan *plan, json_t *root) {
    json_t *front = json_array(), *warnings = json_array(), *notes = json_array();
    for (int p = 0; p < plan->point_count; p++)
        json_array_append_new(front, json_pack("{s:I, s:f}", "kv_tokens", (json_int_t)plan->points[p].kv_tokens,
                                               "max_ms", plan->points[p].max_ms));
    for (int r = 0; r < plan->remark_count; r++)
        json_array_append_new(plan->remarks[r].warning ? warnings : notes, json_string(plan->remarks[r].text));
    json_object_set_new(root, "kv_front", front);
    json_object_set_new(root, "warnings", warnings);
    json_object_set_new(root, "notes", notes);
}

pen_status pen_plan_to_json(const pen_plan *plan, char **text) {
    const pen_plan_workload *workload = &plan->workload;
    json_t *root = json_pack("{s:i, s:s, s:{s:i, s:i, s:i, s:i}, s:o, s:o, s:o}", "version", PEN_PLAN_VERSION, "source",
                             plan->source, "workload", "prompt_tokens", workload->prompt_tokens, "output_tokens",
                             workload->output_tokens, "max_num_seqs", workload->max_num_seqs, "microbatches",
                             workload->microbatches, "units", units_json(plan), "tied_bytes",
                             bytes_json(plan->tied_bytes), "devices", devices_json(plan));
    if (root && plan->stage_count > 0) {
        add_split(plan, root);
        add_advice(plan, root);
    }
    *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(12)) : NULL;
    json_decref(root);
    return *text ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory to write a plan of %d units", plan->unit_count);
}

/* ---- Reading ----------------------------------------------------------------------------------------------------- */

/* An object being read, and how to name it: "units[3]." or "". */
typedef struct place {
    const char *origin;
    char prefix[48];
    const json_t *object;
} place;

static pen_status wrong(const place *at, const char *field, const char *expected) {
    return pen_fail(PEN_BAD_INPUT, "%s: %s%s is %s", at->origin, at->prefix, field,
                    json_object_get(at->object, field) ? expected : "missing");
}

static pen_status read_number(const place *at, const char *field, double min, double max, double *value) {
    const json_t *number = json_object_get(at->object, field);
    char expected[80];
    if (json_is_number(number) && json_number_value(number) >= min && json_number_value(number) <= max) {
        *value = json_number_value(number);
        return PEN_OK;
    }
    snprintf(expected, sizeof expected, "no number of %.4g … %.4g", min, max);
    return wrong(at, field, expected);
}

/* The optional forms leave *value as it is where the field is missing. */
static pen_status read_ms(const place *at, const char *field, double *value) {
    return json_object_get(at->object, field) ? read_number(at, field, 0, MS_MAX, value) : PEN_OK;
}

static pen_status read_bytes(const place *at, const char *field, uint64_t *value) {
    double number = 0;
    if (!json_object_get(at->object, field)) return PEN_OK;
    PEN_TRY(read_number(at, field, 0, BYTES_MAX, &number));
    *value = (uint64_t)number;
    return PEN_OK;
}

static pen_status read_int(const place *at, const char *field, int min, int max, int *value) {
    const json_t *number = json_object_get(at->object, field);
    if (!number) return PEN_OK;
    char expected[80];
    snprintf(expected, sizeof expected, "no whole number of %d … %d", min, max);
    if (!json_is_integer(number) || json_integer_value(number) < min || json_integer_value(number) > max)
        return wrong(at, field, expected);
    *value = (int)json_integer_value(number);
    return PEN_OK;
}

/* Names reach terminals and XML: no control characters, and none of the two code points that XML forbids. */
static bool is_printable(const char *text) {
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c < 0x20 || *c == 0x7f) return false;
        if (*c == 0xc2 && c[1] < 0xa0) return false;
        if (*c == 0xef && c[1] == 0xbf && c[2] >= 0xbe) return false;
    }
    return true;
}

static pen_status read_text(const place *at, const char *field, size_t size, char *value) {
    const char *text = json_string_value(json_object_get(at->object, field));
    if (!text || strlen(text) >= size || !is_printable(text)) {
        char expected[80];
        snprintf(expected, sizeof expected, "no printable text shorter than %zu bytes", size);
        return wrong(at, field, expected);
    }
    memcpy(value, text, strlen(text) + 1);
    return PEN_OK;
}

/* Element i of an array of objects. */
static pen_status enter(const char *origin, const char *array, const json_t *list, size_t i, place *at) {
    *at = (place){.origin = origin, .object = json_array_get(list, i)};
    snprintf(at->prefix, sizeof at->prefix, "%s[%zu].", array, i);
    return json_is_object(at->object) ? PEN_OK : pen_fail(PEN_BAD_INPUT, "%s: %s[%zu] is no object", origin, array, i);
}

static pen_status read_units(const place *root, const json_t *list, pen_plan *plan) {
    for (size_t u = 0; u < json_array_size(list); u++) {
        pen_plan_unit *unit = &plan->units[u];
        place at;
        PEN_TRY(enter(root->origin, "units", list, u, &at));
        PEN_TRY(read_text(&at, "name", sizeof unit->name, unit->name));
        PEN_TRY(read_number(&at, "time_ms", 0, MS_MAX, &unit->time_ms));
        PEN_TRY(read_bytes(&at, "weight_bytes", &unit->weight_bytes));
        PEN_TRY(read_bytes(&at, "kv_bytes_per_token", &unit->kv_bytes_per_token));
        PEN_TRY(read_bytes(&at, "kv_window_bytes", &unit->kv_window_bytes));
        PEN_TRY(read_bytes(&at, "workspace_bytes", &unit->workspace_bytes));
    }
    return PEN_OK;
}

static pen_status read_unit_ms(const place *at, int unit_count, pen_plan_device *device) {
    const json_t *times = json_object_get(at->object, "unit_ms");
    if (!times) return PEN_OK;
    if (json_array_size(times) != (size_t)unit_count) return wrong(at, "unit_ms", "no list of a time for every unit");
    device->unit_ms = calloc((size_t)unit_count, sizeof *device->unit_ms);
    if (!device->unit_ms) return pen_fail(PEN_NO_MEMORY, "no memory for the times of %d units", unit_count);
    for (int u = 0; u < unit_count; u++) {
        const json_t *time = json_array_get(times, (size_t)u);
        double ms = json_number_value(time);
        if (!json_is_number(time) || ms < 0 || ms > MS_MAX)
            return pen_fail(PEN_BAD_INPUT, "%s: %sunit_ms[%d] is no number of 0 … %.4g", at->origin, at->prefix, u,
                            MS_MAX);
        device->unit_ms[u] = ms;
    }
    return PEN_OK;
}

static pen_status read_devices(const place *root, const json_t *list, pen_plan *plan) {
    for (size_t d = 0; d < json_array_size(list); d++) {
        pen_plan_device *device = &plan->devices[d];
        place at;
        PEN_TRY(enter(root->origin, "devices", list, d, &at));
        if (json_object_get(at.object, "name")) PEN_TRY(read_text(&at, "name", sizeof device->name, device->name));
        PEN_TRY(read_bytes(&at, "memory_bytes", &device->memory_bytes));
        if (json_object_get(at.object, "speed")) PEN_TRY(read_number(&at, "speed", 1e-6, 1e6, &device->speed));
        PEN_TRY(read_ms(&at, "send_ms", &device->send_ms));
        PEN_TRY(read_ms(&at, "wire_ms", &device->wire_ms));
        PEN_TRY(read_unit_ms(&at, plan->unit_count, device));
    }
    return PEN_OK;
}

static pen_status read_workload(const place *root, pen_plan_workload *workload) {
    const json_t *object = json_object_get(root->object, "workload");
    if (!object) return PEN_OK;
    if (!json_is_object(object)) return wrong(root, "workload", "no object");
    place at = {.origin = root->origin, .prefix = "workload.", .object = object};
    PEN_TRY(read_int(&at, "prompt_tokens", 1, 1 << 30, &workload->prompt_tokens));
    PEN_TRY(read_int(&at, "output_tokens", 1, 1 << 30, &workload->output_tokens));
    PEN_TRY(read_int(&at, "max_num_seqs", 0, 1 << 20, &workload->max_num_seqs));
    return read_int(&at, "microbatches", 0, 1 << 20, &workload->microbatches);
}

/* Layers without weights and units without a workspace get the 16-bit estimates, with a prompt in the microbatch. */
static pen_status estimate_bytes(const place *root, const json_t *units, pen_plan *plan) {
    int hidden = 0, rows = plan->workload.prompt_tokens;
    PEN_TRY(read_int(root, "hidden", 1, 1 << 20, &hidden));
    for (int u = 0; hidden > 0 && u < plan->unit_count; u++) {
        const json_t *unit = json_array_get(units, (size_t)u);
        bool layer = u >= pen_plan_leading(plan) && u < plan->unit_count - pen_plan_trailing(plan);
        if (layer && !json_object_get(unit, "weight_bytes")) plan->units[u].weight_bytes = pen_plan_block_bytes(hidden);
        if (!json_object_get(unit, "workspace_bytes"))
            plan->units[u].workspace_bytes = pen_plan_activation_bytes(hidden, rows);
    }
    return PEN_OK;
}

static pen_status read_stages(const place *root, const json_t *list, pen_plan *plan) {
    int count = (int)json_array_size(list), *first = calloc(json_array_size(list) + 1, sizeof *first);
    if (!first) return pen_fail(PEN_NO_MEMORY, "no memory for %d stages", count);
    char method[sizeof plan->method] = "custom";
    uint64_t kv_tokens = 0;
    pen_status status = read_bytes(root, "kv_tokens", &kv_tokens);
    if (status == PEN_OK && json_object_get(root->object, "method"))
        status = read_text(root, "method", sizeof method, method);
    for (int s = 0, next = 0; s < count && status == PEN_OK; s++, next++) {
        place at;
        int last = -1;
        status = enter(root->origin, "stages", list, (size_t)s, &at);
        first[s] = -1;
        if (status == PEN_OK) status = read_int(&at, "first", next, next, &first[s]);
        if (status == PEN_OK) status = read_int(&at, "last", next, plan->unit_count - 1, &last);
        if (status == PEN_OK && (first[s] < 0 || last < 0)) status = wrong(&at, first[s] < 0 ? "first" : "last", "");
        next = last;
        first[s + 1] = last + 1;
    }
    if (status == PEN_OK) status = pen_plan_apply(plan, method, count, first, (int64_t)kv_tokens);
    if (status == PEN_USAGE) status = pen_fail(PEN_BAD_INPUT, "%s: stages: %s", root->origin, pen_last_error());
    free(first);
    return status;
}

/* A list field with 1 … PEN_PARTITION_UNITS_MAX elements, or NULL where there is none. */
static pen_status find_list(const place *root, const char *field, const json_t **list) {
    *list = json_object_get(root->object, field);
    if (!*list) return PEN_OK;
    char expected[64];
    snprintf(expected, sizeof expected, "no list of 1 … %d elements", PEN_PARTITION_UNITS_MAX);
    bool good = json_array_size(*list) >= 1 && json_array_size(*list) <= PEN_PARTITION_UNITS_MAX;
    return good ? PEN_OK : wrong(root, field, expected);
}

static pen_status read_plan(const place *root, pen_plan **made) {
    const json_t *units, *devices, *stages;
    int version = PEN_PLAN_VERSION;
    PEN_TRY(read_int(root, "version", PEN_PLAN_VERSION, PEN_PLAN_VERSION, &version));
    PEN_TRY(find_list(root, "units", &units));
    PEN_TRY(find_list(root, "devices", &devices));
    PEN_TRY(find_list(root, "stages", &stages));
    if (!units) return wrong(root, "units", "");
    PEN_TRY(pen_plan_create((int)json_array_size(units), devices ? (int)json_array_size(devices) : 1, made));
    pen_plan *plan = *made;
    if (json_object_get(root->object, "source")) PEN_TRY(read_text(root, "source", sizeof plan->source, plan->source));
    PEN_TRY(read_workload(root, &plan->workload));
    PEN_TRY(read_units(root, units, plan));
    PEN_TRY(read_bytes(root, "tied_bytes", &plan->tied_bytes));
    PEN_TRY(read_devices(root, devices, plan));
    PEN_TRY(estimate_bytes(root, units, plan));
    return stages ? read_stages(root, stages, plan) : PEN_OK;
}

pen_status pen_plan_from_json(const char *origin, const char *text, size_t length, pen_plan **plan) {
    json_error_t error;
    *plan = NULL;
    json_t *object = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
    if (!object)
        return pen_fail(PEN_BAD_INPUT, "%s: line %d, column %d: %s", origin, error.line, error.column, error.text);
    place root = {.origin = origin, .object = object};
    pen_status status =
        json_is_object(object) ? read_plan(&root, plan) : pen_fail(PEN_BAD_INPUT, "%s: no JSON object", origin);
    if (status != PEN_OK) {
        pen_plan_destroy(*plan);
        *plan = NULL;
    }
    json_decref(object);
    return status;
}

/* All of a file (or a pipe), NUL-terminated. */
static pen_status read_file(const char *path, char **text, size_t *length) {
    FILE *file = fopen(path, "rb");
    if (!file) return pen_fail(PEN_IO, "%s: %s", path, strerror(errno));
    pen_status status = PEN_OK;
    size_t room = 1 << 16, used = 0;
    char *data = malloc(room);
    while (data) {
        used += fread(data + used, 1, room - used, file);
        if (used < room || room > FILE_MAX) break;
        char *more = realloc(data, room *= 2);
        if (!more) free(data);
        data = more;
    }
    if (!data)
        status = pen_fail(PEN_NO_MEMORY, "no memory to read %s", path);
    else if (ferror(file))
        status = pen_fail(PEN_IO, "%s: %s", path, strerror(errno));
    else if (used == room)
        status = pen_fail(PEN_BAD_INPUT, "%s: larger than any profile", path);
    fclose(file);
    if (status != PEN_OK) free(data);
    *text = status == PEN_OK ? data : NULL;
    *length = used;
    return status;
}

pen_status pen_plan_read(const char *path, pen_plan **plan) {
    char *text = NULL;
    size_t length = 0;
    PEN_TRY(read_file(path, &text, &length));
    pen_status status = pen_plan_from_json(path, text, length, plan);
    free(text);
    if (status != PEN_OK || (*plan)->source[0] != '\0') return status;
    bool plain = true; /* else it might be no UTF-8 */
    for (const char *c = path; *c; c++) plain = plain && *c >= 0x20 && *c < 0x7f;
    snprintf((*plan)->source, sizeof(*plan)->source, "%s", plain ? path : "a profile");
    return PEN_OK;
}
