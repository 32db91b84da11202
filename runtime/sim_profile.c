/* A profile as model and machine; see sim_profile.h. */
#include "sim_profile.h"

#include "plan_json.h"
#include "sim.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <xxhash.h>

enum {
    HIDDEN_DEFAULT = 1024,
    VOCAB_DEFAULT = 50257,
    CONTEXT_DEFAULT = 8192,
    ROWS_MOST = 1 << 20, /* where the line through a unit without a table ends */
    SLOWDOWNS_MOST = 16,
};

typedef struct slowdown {
    double from_s, to_s, factor;
} slowdown;

struct pen_sim_profile {
    char path[PEN_PLAN_TEXT];
    pen_plan *plan;
    int device;
    int hidden, vocab, context;
    double rows, fixed;
    pen_sim_link link;
    slowdown slowdowns[SLOWDOWNS_MOST]; /* of this rank */
    int slowdown_count;
    pen_profile_class *classes; /* [unit_count], equal ones at different units */
    pen_profile *times;
    pen_model *model;
    uint64_t hash;
};

const char *pen_sim_profile_path(const char *device) {
    const char prefix[] = "sim:";
    return strncmp(device, prefix, sizeof prefix - 1) == 0 ? device + sizeof prefix - 1 : NULL;
}

/* ---- Reading ----------------------------------------------------------------------------------------------------- */

/* An object being read, for messages: "sim" in FILE. */
typedef struct place {
    const char *path;
    char name[48];
    const json_t *object;
} place;

/* Leaves *value as it is where the field is missing. */
static pen_status read_number(const place *at, const char *field, double min, double max, double *value) {
    const json_t *number = json_object_get(at->object, field);
    if (!number) return PEN_OK;
    *value = json_number_value(number);
    if (json_is_number(number) && *value >= min && *value <= max) return PEN_OK;
    return pen_fail(PEN_BAD_INPUT, "%s: %s%s is no number of %g … %g", at->path, at->name, field, min, max);
}

static pen_status read_count(const place *at, const char *field, int max, int *value) {
    double number = *value;
    PEN_TRY(read_number(at, field, 1, max, &number));
    *value = (int)number;
    return PEN_OK;
}

/* Whether the place's number is the one that the field names, if it does. */
static pen_status read_fits(const place *at, const char *field, int number, bool *fits) {
    double named = number;
    PEN_TRY(read_number(at, field, 0, INT32_MAX, &named));
    *fits = *fits && (int)named == number;
    return PEN_OK;
}

static pen_status read_slowdowns(pen_sim_profile *sim, const json_t *list, const pen_place *own) {
    for (size_t i = 0; i < json_array_size(list); i++) {
        place at = {.path = sim->path, .object = json_array_get(list, i)};
        snprintf(at.name, sizeof at.name, "sim.slowdowns[%zu].", i);
        bool fits = true;
        slowdown read = {.to_s = INFINITY, .factor = 1};
        PEN_TRY(read_fits(&at, "replica", own->replica, &fits));
        PEN_TRY(read_fits(&at, "stage", own->stage, &fits));
        PEN_TRY(read_fits(&at, "rank", own->rank, &fits));
        PEN_TRY(read_number(&at, "from_s", 0, 1e9, &read.from_s));
        PEN_TRY(read_number(&at, "to_s", 0, 1e9, &read.to_s));
        PEN_TRY(read_number(&at, "factor", 1e-3, 1e3, &read.factor));
        if (!fits) continue;
        if (sim->slowdown_count == SLOWDOWNS_MOST)
            return pen_fail(PEN_BAD_INPUT, "%s: more than %d slowdowns of a rank", sim->path, SLOWDOWNS_MOST);
        sim->slowdowns[sim->slowdown_count++] = read;
    }
    return PEN_OK;
}

static pen_status read_sim(pen_sim_profile *sim, const json_t *root, const pen_place *own) {
    place top = {.path = sim->path, .object = root}, at = {sim->path, "sim.", json_object_get(root, "sim")};
    double speed = 0; /* GB/s: bytes per ms, in millions */
    PEN_TRY(read_count(&top, "hidden", 1 << 20, &sim->hidden));
    PEN_TRY(read_count(&at, "vocab", 1 << 24, &sim->vocab));
    PEN_TRY(read_count(&at, "context", 1 << 24, &sim->context));
    PEN_TRY(read_number(&at, "rows", 1e-3, ROWS_MOST, &sim->rows));
    PEN_TRY(read_number(&at, "fixed", 0, 1, &sim->fixed));
    PEN_TRY(read_number(&at, "latency_ms", 0, 1e6, &sim->link.latency_ms));
    PEN_TRY(read_number(&at, "gigabytes_per_s", 1e-9, 1e9, &speed));
    if (speed > 0) sim->link.ms_per_byte = 1e-6 / speed;
    if (sim->fixed < 1 && sim->rows == 0)
        return pen_fail(PEN_BAD_INPUT, "%s: sim.fixed needs sim.rows, the rows that time_ms is for", sim->path);
    return read_slowdowns(sim, json_object_get(at.object, "slowdowns"), own);
}

/* ---- Times ------------------------------------------------------------------------------------------------------- */

static pen_profile_point point_of(double ms) {
    return (pen_profile_point){.median = ms, .mean = ms, .min = ms, .max = ms, .count = 1};
}

/* `factor`: of this device against the one that the table is for. */
static pen_status read_ms(const place *at, const char *field, double factor, const pen_profile_class *class,
                          pen_profile_point *points) {
    const json_t *list = json_object_get(at->object, field);
    if (json_array_size(list) != (size_t) class->row_count)
        return pen_fail(PEN_BAD_INPUT, "%s: %s%s is no list of %d times", at->path, at->name, field, class->row_count);
    for (int i = 0; i < class->row_count; i++) {
        const json_t *ms = json_array_get(list, (size_t)i);
        if (!json_is_number(ms) || !(json_number_value(ms) >= 0 && json_number_value(ms) <= 1e12))
            return pen_fail(PEN_BAD_INPUT, "%s: %s%s[%d] is no time", at->path, at->name, field, i);
        points[i] = point_of(json_number_value(ms) * factor);
    }
    return PEN_OK;
}

static pen_status read_table(const place *at, double factor, pen_profile_class *class) {
    const json_t *rows = json_object_get(at->object, "rows");
    size_t count = json_array_size(rows);
    bool good = count >= 1 && count <= PEN_PROFILE_ROWS;
    for (size_t i = 0; good && i < count; i++) {
        json_int_t value = json_integer_value(json_array_get(rows, i));
        good = value <= ROWS_MOST && (i == 0 ? value == 1 : value > class->rows[i - 1]);
        class->rows[i] = (int)value;
    }
    if (!good)
        return pen_fail(PEN_BAD_INPUT, "%s: %srows is no ascending list of 1 to %d numbers from 1", at->path, at->name,
                        PEN_PROFILE_ROWS);
    class->row_count = (int)count;
    class->context_count = 1;
    PEN_TRY(read_ms(at, "ms", factor, class, class->points[0]));
    if (!json_object_get(at->object, "context")) return PEN_OK;
    class->context_count = 2;
    PEN_TRY(read_count(at, "context", 1 << 24, &class->contexts[1]));
    return read_ms(at, "context_ms", factor, class, class->points[1]);
}

/* Units are alike where the file says the same of them but their name, and their times are the same on every device.
 * The hash must not depend on the rank that reads the file. */
static pen_status hash_unit(const pen_sim_profile *sim, const json_t *unit, int u, uint64_t *hash) {
    const pen_plan *plan = sim->plan;
    json_t *nameless = json_copy((json_t *)unit);
    json_object_del(nameless, "name");
    char *text = json_dumps(nameless, JSON_COMPACT | JSON_SORT_KEYS);
    json_decref(nameless);
    if (!text) return pen_fail(PEN_NO_MEMORY, "%s: no memory to read it", sim->path);
    *hash = XXH64(text, strlen(text), u == plan->unit_count - 1);
    free(text);
    for (int d = 0; d < plan->device_count; d++) {
        double ms = pen_plan_unit_ms(plan, u, d);
        *hash = XXH64(&ms, sizeof ms, *hash);
    }
    return PEN_OK;
}

static pen_status read_times(pen_sim_profile *sim, const json_t *root) {
    const pen_plan *plan = sim->plan;
    const json_t *units = json_object_get(root, "units");
    sim->classes = calloc((size_t)plan->unit_count, sizeof *sim->classes);
    if (!sim->classes) return pen_fail(PEN_NO_MEMORY, "%s: no memory for %d units", sim->path, plan->unit_count);
    for (int u = 0; u < plan->unit_count; u++) {
        pen_profile_class *class = &sim->classes[u];
        place at = {.path = sim->path, .object = json_array_get(units, (size_t)u)};
        snprintf(at.name, sizeof at.name, "units[%d].", u);
        double here = pen_plan_unit_ms(plan, u, sim->device), there = plan->units[u].time_ms;
        if (json_object_get(at.object, "rows")) {
            PEN_TRY(read_table(&at, there > 0 ? here / there : 1 / plan->devices[sim->device].speed, class));
        } else {
            class->row_count = 2;
            class->context_count = 1;
            class->rows[0] = 1;
            class->rows[1] = ROWS_MOST;
            for (int i = 0; i < 2; i++)
                class->points[0][i] = point_of(
                    here * (sim->fixed + (sim->fixed < 1 ? (1 - sim->fixed) * class->rows[i] / sim->rows : 0)));
        }
        PEN_TRY(hash_unit(sim, at.object, u, &class->hash));
    }
    return PEN_OK;
}

static bool is_known(const pen_profile *times, uint64_t hash) {
    for (int c = 0; c < times->class_count; c++)
        if (times->classes[c].hash == hash) return true;
    return false;
}

/* The first device that is like ours: equal ones have one name, by which their times are known to be the same. */
static int first_alike(const pen_sim_profile *sim) {
    const pen_plan *plan = sim->plan;
    const pen_plan_device *own = &plan->devices[sim->device];
    int d = 0;
    for (; d < sim->device; d++) {
        const pen_plan_device *other = &plan->devices[d];
        bool alike = strcmp(other->name, own->name) == 0 && other->memory_bytes == own->memory_bytes;
        for (int u = 0; u < plan->unit_count && alike; u++)
            alike = pen_plan_unit_ms(plan, u, d) == pen_plan_unit_ms(plan, u, sim->device);
        if (alike) break;
    }
    return d;
}

pen_status pen_sim_profile_times(const pen_sim_profile *sim, pen_profile **out) {
    int units = sim->plan->unit_count;
    pen_profile *times = calloc(1, sizeof *times + (size_t)units * sizeof *times->classes);
    if (!times) return pen_fail(PEN_NO_MEMORY, "%s: no memory for %d units", sim->path, units);
    const char *device = sim->plan->devices[sim->device].name;
    snprintf(times->device, sizeof times->device, "sim %d: %.44s", first_alike(sim), device[0] ? device : "device");
    for (int u = 0; u < units; u++)
        if (!is_known(times, sim->classes[u].hash)) times->classes[times->class_count++] = sim->classes[u];
    *out = times;
    return PEN_OK;
}

/* ---- The model --------------------------------------------------------------------------------------------------- */

static pen_status make_model(pen_sim_profile *sim) {
    const pen_plan *plan = sim->plan;
    int count = plan->unit_count;
    if (pen_plan_trailing(plan) == 0)
        return pen_fail(PEN_UNSUPPORTED, "%s: the last unit is \"%s\", and a run needs a head there", sim->path,
                        plan->units[count - 1].name);
    pen_outline_unit *units = calloc((size_t)count, sizeof *units);
    if (!units) return pen_fail(PEN_NO_MEMORY, "%s: no memory for %d units", sim->path, count);
    uint64_t kv = 0; /* bytes per token and block: K and V, 16 bits */
    for (int u = 0; u < count; u++) {
        const pen_plan_unit *from = &plan->units[u];
        units[u] = (pen_outline_unit){.name = from->name,
                                      .kind = u == count - 1                         ? PEN_UNIT_HEAD
                                              : u == 0 && pen_plan_leading(plan) > 0 ? PEN_UNIT_EMBEDDING
                                                                                     : PEN_UNIT_BLOCK,
                                      .weight_bytes = from->weight_bytes,
                                      .class_hash = sim->classes[u].hash};
        if (from->kv_bytes_per_token > kv) kv = from->kv_bytes_per_token;
    }
    uint64_t kv_values = kv < 4 ? 1 : kv / 4;
    pen_model_outline outline = {.name = plan->source,
                                 .hidden = sim->hidden,
                                 .vocab = sim->vocab,
                                 .context = sim->context,
                                 .kv_values = kv_values < INT32_MAX ? (int)kv_values : INT32_MAX,
                                 .unit_count = count,
                                 .units = units,
                                 .hash = sim->hash};
    pen_status status = pen_model_from_outline(&outline, &sim->model);
    free(units);
    return status;
}

static pen_status fill(pen_sim_profile *sim, const json_t *root, const pen_place *own) {
    char *text = json_dumps(root, JSON_COMPACT | JSON_SORT_KEYS);
    if (!text) return pen_fail(PEN_NO_MEMORY, "%s: no memory to read it", sim->path);
    sim->hash = XXH64(text, strlen(text), 0);
    free(text);
    PEN_TRY(read_sim(sim, root, own));
    PEN_TRY(read_times(sim, root));
    PEN_TRY(pen_sim_profile_times(sim, &sim->times));
    return make_model(sim);
}

pen_status pen_sim_profile_read(const char *path, const pen_place *own, pen_sim_profile **out) {
    pen_sim_profile *sim = calloc(1, sizeof *sim);
    if (!sim) return pen_fail(PEN_NO_MEMORY, "%s: no memory to read it", path);
    snprintf(sim->path, sizeof sim->path, "%s", path);
    sim->hidden = HIDDEN_DEFAULT;
    sim->vocab = VOCAB_DEFAULT;
    sim->context = CONTEXT_DEFAULT;
    sim->fixed = 1;
    pen_status status = pen_plan_read(path, &sim->plan); /* checks what a plan has, sizes included */
    if (status == PEN_OK) {
        json_error_t error;
        json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
        sim->device = own->rank % sim->plan->device_count;
        status = root ? fill(sim, root, own) : pen_fail(PEN_IO, "%s: %s", path, error.text);
        json_decref(root);
    }
    if (status == PEN_OK)
        *out = sim;
    else
        pen_sim_profile_destroy(sim);
    return status;
}

void pen_sim_profile_destroy(pen_sim_profile *sim) {
    if (!sim) return;
    pen_plan_destroy(sim->plan);
    pen_profile_destroy(sim->times);
    pen_model_close(sim->model);
    free(sim->classes);
    free(sim);
}

const pen_model *pen_sim_profile_model(const pen_sim_profile *sim) {
    return sim->model;
}

uint64_t pen_sim_profile_memory(const pen_sim_profile *sim) {
    return sim->plan->devices[sim->device].memory_bytes;
}

pen_sim_link pen_sim_profile_link(const pen_sim_profile *sim) {
    return sim->link;
}

/* ---- The device -------------------------------------------------------------------------------------------------- */

static double unit_ms(void *context, int unit, const pen_sim_load *load) {
    const pen_sim_profile *sim = context;
    const pen_step_shape shape = {.rows = load->rows,
                                  .logit_rows = load->logit_rows,
                                  .decodes = load->decodes,
                                  .decode_context = load->decode_context,
                                  .prompt_context = load->prompt_context};
    double ms = pen_profile_unit_ms(sim->times, sim->model, unit, &shape);
    for (int i = 0; i < sim->slowdown_count; i++)
        if (load->at_s >= sim->slowdowns[i].from_s && load->at_s < sim->slowdowns[i].to_s)
            ms *= sim->slowdowns[i].factor;
    return ms;
}

pen_status pen_sim_profile_device(const pen_sim_profile *sim, double time_scale, pen_device **device) {
    pen_sim_options options = {
        .name = sim->times->device, .time_scale = time_scale, .unit_ms = unit_ms, .context = (void *)sim};
    return pen_sim_device_create(&options, device);
}
