/* The plan: from a profile to stages, as JSON, as text and as a picture. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "plan_json.h"
#include "plan_model.h"
#include "plan_svg.h"
#include "report.h"

#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static pen_plan *parse(const char *text) {
    pen_plan *plan = NULL;
    if (pen_plan_from_json("test.json", text, strlen(text), &plan) != PEN_OK) fail_msg("%s", pen_last_error());
    return plan;
}

static pen_plan *example(const char *name) {
    char path[1024];
    pen_plan *plan = NULL;
    snprintf(path, sizeof path, "%s/%s", PEN_EXAMPLES, name);
    if (pen_plan_read(path, &plan) != PEN_OK) fail_msg("%s", pen_last_error());
    return plan;
}

static void solve(pen_plan *plan, int stages) {
    pen_plan_options options = {.stages = stages};
    if (pen_plan_solve(plan, &options) != PEN_OK) fail_msg("%s", pen_last_error());
}

static char *report(const pen_plan *plan) {
    char *text = NULL;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    assert_non_null(out);
    pen_report_plan(out, plan, 100);
    fclose(out);
    return text;
}

static void assert_says(const char *text, const char *part) {
    if (!strstr(text, part)) fail_msg("\"%s\" is not in:\n%s", part, text);
}

static bool remarked(const pen_plan *plan, bool warning, const char *part) {
    for (int r = 0; r < plan->remark_count; r++)
        if (plan->remarks[r].warning == warning && strstr(plan->remarks[r].text, part)) return true;
    return false;
}

/* ---- Worked examples --------------------------------------------------------------------------------------------- */

static void test_gpt3_on_8_stages_takes_222_9_ms(void **state) {
    (void)state;
    pen_plan *plan = example("gpt3-175b.json");
    solve(plan, 8);
    assert_float_equal(plan->score.max_ms, 222.9, 1e-9);
    assert_float_equal(plan->score.imbalance, 1.02, 0.005);
    assert_int_equal(plan->stages[0].last, 12); /* the embedding and 12 blocks */
    assert_string_equal(plan->method, "dp");
    assert_int_equal(plan->units[5].weight_bytes, 12ll * 12288 * 12288 * 2); /* 12·H²·2, as it gives only `hidden` */
    assert_int_equal(plan->units[5].workspace_bytes, 7ll * 512 * 12288 * 2); /* (3 + 4)·B·S·H·2 */
    char *text = report(plan);
    assert_says(text, "max 222.9 ms");
    assert_says(text, "count 97, sum 1754 ms, mean 18.08, std 1.401, min 4.500 (embedding), max 20.10 (head)");
    assert_says(text, "94×");
    assert_says(text, "units 13/12/12/12/12/12/12/12");
    for (int m = 0; m < plan->rival_count; m++) assert_says(text, plan->rivals[m].method);
    assert_int_equal(plan->rival_count, 5); /* all but custom */
    free(text);
    pen_plan_destroy(plan);
}

static void test_llama_65b_on_4_stages_is_even(void **state) {
    (void)state;
    pen_plan *plan = example("llama-65b.json");
    solve(plan, 4);
    for (int s = 0; s < 4; s++) assert_int_equal(plan->stages[s].last - plan->stages[s].first + 1, 20);
    char *text = report(plan);
    assert_says(text, "units 20/20/20/20");
    assert_says(text, "efficiency 100 %");
    free(text);
    pen_plan_destroy(plan);
}

static void test_uneven_stages_print_75_percent(void **state) {
    (void)state;
    pen_plan *plan = example("uneven.json");
    solve(plan, 4);
    assert_float_equal(plan->score.efficiency, 0.75, 1e-12);
    char *text = report(plan);
    assert_says(text, "efficiency 75 %");
    assert_says(text, "imbalance 1.88×");
    free(text);
    pen_plan_destroy(plan);
    plan = parse("{\"units\":[{\"name\":\"a\",\"time_ms\":11},{\"name\":\"b\",\"time_ms\":12},"
                 "{\"name\":\"c\",\"time_ms\":11},{\"name\":\"d\",\"time_ms\":11}]}");
    solve(plan, 4);
    text = report(plan);
    assert_says(text, "efficiency 94 %");
    free(text);
    pen_plan_destroy(plan);
}

static void test_a_large_embedding_stands_alone_and_a_large_head_takes_fewer_blocks(void **state) {
    (void)state;
    pen_plan *plan = example("large-ends.json");
    solve(plan, 5);
    assert_int_equal(plan->stages[0].last, 0);
    int layers_of_head = plan->stages[4].last - plan->stages[4].first;
    assert_true(layers_of_head < plan->stages[3].last - plan->stages[3].first + 1);
    assert_true(remarked(plan, false, "embedding costs 8.5 layers and has a stage of its own"));
    assert_true(remarked(plan, false, "head costs 4.0 layers: its stage has 3 of them, the others 7"));
    pen_plan_destroy(plan);
}

static void test_mixed_devices_count_speed_and_links(void **state) {
    (void)state;
    pen_plan *plan = example("mixed.json");
    solve(plan, 0); /* a stage per device */
    assert_int_equal(plan->stage_count, 2);
    assert_int_equal(plan->stages[0].device, 0);
    assert_int_equal(plan->stages[1].device, 1);
    assert_float_equal(plan->stages[0].time_ms, 0.1 + 22 * 3.5 + 0.1, 1e-9); /* at twice the speed, and the sending */
    assert_float_equal(plan->stages[1].time_ms, 10 * 7 + 9, 1e-9);
    pen_plan_options three = {.stages = 3};
    assert_int_equal(pen_plan_solve(plan, &three), PEN_USAGE);
    assert_says(pen_last_error(), "3 stages on 2 devices");
    pen_plan_destroy(plan);
}

/* ---- Stages, memory, KV ------------------------------------------------------------------------------------------ */

#define UNIT "{\"name\":\"block\",\"time_ms\":1,\"weight_bytes\":1000,\"kv_bytes_per_token\":1}"
#define SIX  UNIT "," UNIT "," UNIT "," UNIT "," UNIT "," UNIT
static const char six_blocks[] = "{\"workload\":{\"prompt_tokens\":60,\"output_tokens\":40,\"max_num_seqs\":2},"
                                 "\"units\":[" SIX "]}";

static void test_memory_forces_another_number_of_stages(void **state) {
    (void)state;
    pen_plan *plan = parse(six_blocks);
    pen_plan_options options = {.memory = 2600};
    assert_int_equal(pen_plan_solve(plan, &options), PEN_OK);
    assert_int_equal(plan->stage_count, 3); /* 2 × (1000 + 200) each */
    assert_true(remarked(plan, true, "the memory limit forces another number of stages: 3 instead of 1"));
    assert_int_equal(plan->devices[0].memory_bytes, 2600);
    options.stages = 2; /* asked for: an error that says what would do */
    assert_int_equal(pen_plan_solve(plan, &options), PEN_NO_MEMORY);
    assert_says(pen_last_error(), "no split into 2 stages fits");
    assert_says(pen_last_error(), "3 stages");
    assert_int_equal(plan->stage_count, 0);
    options.memory = 900;
    assert_int_equal(pen_plan_solve(plan, &options), PEN_NO_MEMORY);
    assert_says(pen_last_error(), "block alone needs");
    options = (pen_plan_options){.stages = 7};
    assert_int_equal(pen_plan_solve(plan, &options), PEN_USAGE);
    pen_plan_destroy(plan);
}

static void test_memory_changes_the_optimum_with_a_warning(void **state) {
    (void)state;
    pen_plan *plan =
        parse("{\"devices\":[{\"name\":\"small\",\"memory_bytes\":1000},{\"memory_bytes\":9000}],\"units\":["
              "{\"name\":\"a\",\"time_ms\":1,\"weight_bytes\":1000},"
              "{\"name\":\"b\",\"time_ms\":1,\"weight_bytes\":1000},"
              "{\"name\":\"c\",\"time_ms\":1,\"weight_bytes\":1000},"
              "{\"name\":\"d\",\"time_ms\":1,\"weight_bytes\":1000}]}");
    solve(plan, 2);
    assert_int_equal(plan->stages[0].last, 0);
    assert_true(remarked(plan, true, "the memory limits make the slowest stage take 3 ms; without them it would be 2"));
    pen_plan_options uniform = {.stages = 2, .method = "uniform"};
    assert_int_equal(pen_plan_solve(plan, &uniform), PEN_NO_MEMORY);
    assert_says(pen_last_error(), "method uniform: stage 0 (a … b) needs 1.95 KiB (2000 bytes)");
    pen_plan_destroy(plan);
}

static void test_kv_tokens_follow_the_workload_the_memory_or_the_wish(void **state) {
    (void)state;
    pen_plan *plan = parse(six_blocks);
    solve(plan, 2);
    assert_int_equal(plan->kv_tokens, 2 * 100);
    assert_int_equal(plan->point_count, 0); /* nothing is limited */
    pen_plan_options options = {.stages = 2, .memory = 3450};
    assert_int_equal(pen_plan_solve(plan, &options), PEN_OK);
    assert_int_equal(plan->kv_tokens, 150); /* (3450 − 3000) ÷ 3 */
    assert_true(remarked(plan, true, "memory holds 150 tokens of KV, not the 200 that 2 sequences need"));
    assert_int_equal(plan->points[plan->point_count - 1].kv_tokens, 150);
    options.kv_tokens = 151;
    assert_int_equal(pen_plan_solve(plan, &options), PEN_NO_MEMORY);
    options.kv_tokens = 149;
    assert_int_equal(pen_plan_solve(plan, &options), PEN_OK);
    assert_int_equal(plan->stages[0].memory_bytes, 3000 + 3 * 149);
    options = (pen_plan_options){.stages = 2, .memory = 3299}; /* not even one sequence */
    assert_int_equal(pen_plan_solve(plan, &options), PEN_NO_MEMORY);
    pen_plan_destroy(plan);
    plan = parse("{\"units\":[{\"name\":\"a\",\"time_ms\":1}]}");
    solve(plan, 0);
    assert_int_equal(plan->kv_tokens, 16 * (512 + 128)); /* 16 sequences a stage of the default workload */
    pen_plan_destroy(plan);
}

static void test_methods_and_layers_are_checked(void **state) {
    (void)state;
    pen_plan *plan = parse(six_blocks);
    pen_plan_options options = {.layers = "1,2,3"};
    assert_int_equal(pen_plan_solve(plan, &options), PEN_OK);
    assert_int_equal(plan->stage_count, 3);
    assert_string_equal(plan->method, "custom");
    assert_int_equal(plan->stages[2].first, 3);
    assert_int_equal(plan->rival_count, pen_partition_method_count);
    const char *const bad[] = {"", "1,2,", ",6", "1;5", "-1,7", " 3,3", "3,3x", "99999999999999999999", "1,2", "6,0"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        options = (pen_plan_options){.layers = bad[i]};
        assert_int_equal(pen_plan_solve(plan, &options), PEN_USAGE);
    }
    options = (pen_plan_options){.method = "best"};
    assert_int_equal(pen_plan_solve(plan, &options), PEN_USAGE);
    assert_says(pen_last_error(), "best");
    options = (pen_plan_options){.method = "custom"};
    assert_int_equal(pen_plan_solve(plan, &options), PEN_USAGE);
    pen_plan_destroy(plan);
}

static void test_applied_splits_are_checked(void **state) {
    (void)state;
    pen_plan *plan = parse(six_blocks);
    const int good[] = {0, 2, 6}, empty[] = {0, 6, 6}, beyond[] = {0, 2, 7};
    assert_int_equal(pen_plan_apply(plan, "custom", 2, good, 10), PEN_OK);
    assert_int_equal(plan->stages[1].memory_bytes, 4 * 1000 + 4 * 10);
    assert_float_equal(plan->score.max_ms, 4, 0);
    assert_int_equal(pen_plan_apply(plan, "custom", 2, empty, 10), PEN_USAGE);
    assert_int_equal(pen_plan_apply(plan, "custom", 2, beyond, 10), PEN_USAGE);
    assert_int_equal(plan->stage_count, 0);
    pen_plan_destroy(plan);
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static json_t *field(json_t *object, const char *name) {
    json_t *value = json_object_get(object, name);
    if (!value) fail_msg("no field %s", name);
    return value;
}

static double number(json_t *object, const char *name) {
    assert_true(json_is_number(field(object, name)));
    return json_number_value(field(object, name));
}

static void test_json_has_every_field(void **state) {
    (void)state;
    pen_plan *plan = example("mixed.json");
    solve(plan, 2);
    char *text;
    assert_int_equal(pen_plan_to_json(plan, &text), PEN_OK);
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(root);
    assert_int_equal(number(root, "version"), 1);
    assert_int_equal(number(field(root, "workload"), "prompt_tokens"), 512);
    assert_int_equal(number(field(root, "workload"), "output_tokens"), 128);
    assert_int_equal(json_array_size(field(root, "units")), 34);
    json_t *unit = json_array_get(field(root, "units"), 33);
    assert_string_equal(json_string_value(field(unit, "name")), "head");
    assert_float_equal(number(unit, "time_ms"), 9, 0);
    assert_float_equal(number(unit, "weight_bytes"), 128256.0 * 4096, 0);
    assert_float_equal(number(unit, "kv_bytes_per_token"), 0, 0);
    assert_float_equal(number(unit, "workspace_bytes"), 0, 0);
    json_t *device = json_array_get(field(root, "devices"), 0);
    assert_string_equal(json_string_value(field(device, "name")), "fast");
    assert_float_equal(number(device, "memory_bytes"), 24.0 * (1 << 30), 0);
    assert_float_equal(number(device, "speed"), 2, 0);
    assert_string_equal(json_string_value(field(root, "method")), "dp");
    assert_int_equal(json_array_size(field(root, "stages")), 2);
    json_t *stage = json_array_get(field(root, "stages"), 1);
    assert_int_equal(number(stage, "first"), plan->stages[1].first);
    assert_int_equal(number(stage, "last"), 33);
    assert_float_equal(number(stage, "time_ms"), 79, 1e-9);
    assert_float_equal(number(stage, "memory_bytes"), (double)plan->stages[1].memory_bytes, 0);
    assert_float_equal(number(root, "max_ms"), 79, 1e-9);
    assert_float_equal(number(root, "lower_bound_ms"), plan->lower_bound_ms, 1e-9);
    assert_float_equal(number(root, "imbalance"), plan->score.imbalance, 1e-9);
    assert_float_equal(number(root, "efficiency"), plan->score.efficiency, 1e-9);
    assert_true(number(root, "solve_ms") >= 0);
    const char *const methods[] = {"dp", "uniform", "parameters", "greedy", "equal-time"};
    for (size_t m = 0; m < sizeof methods / sizeof *methods; m++) {
        json_t *method = field(field(root, "methods"), methods[m]);
        assert_true(number(method, "max_ms") >= 79 - 1e-9);
        assert_true(number(method, "imbalance") >= 1);
        assert_true(number(method, "efficiency") <= 1);
    }
    assert_int_equal(json_array_size(field(root, "kv_front")), plan->point_count);
    assert_true(plan->point_count > 1);
    json_decref(root);
    free(text);
    pen_plan_destroy(plan);
}

static void test_json_travels_unchanged(void **state) {
    (void)state;
    pen_plan *plan = example("mixed.json");
    plan->devices[1].unit_ms = calloc(34, sizeof(double));
    for (int u = 0; u < 34; u++) plan->devices[1].unit_ms[u] = u * 0.25;
    plan->tied_bytes = 4096;
    solve(plan, 2);
    char *first, *second;
    assert_int_equal(pen_plan_to_json(plan, &first), PEN_OK);
    pen_plan *copy = parse(first);
    assert_int_equal(copy->stage_count, 2);
    assert_memory_equal(copy->stages, plan->stages, 2 * sizeof *plan->stages);
    assert_memory_equal(copy->units, plan->units, 34 * sizeof *plan->units);
    assert_string_equal(copy->method, plan->method);
    assert_int_equal(copy->kv_tokens, plan->kv_tokens);
    assert_int_equal(copy->tied_bytes, 4096);
    assert_memory_equal(copy->devices[1].unit_ms, plan->devices[1].unit_ms, 34 * sizeof(double));
    assert_float_equal(copy->score.max_ms, plan->score.max_ms, 0);
    solve(copy, 2); /* and it is a profile, too */
    copy->solve_ms = plan->solve_ms;
    assert_int_equal(pen_plan_to_json(copy, &second), PEN_OK);
    assert_string_equal(first, second);
    free(first);
    free(second);
    pen_plan_destroy(copy);
    pen_plan_destroy(plan);
}

static void test_idle_stage_has_no_imbalance_in_json(void **state) {
    (void)state;
    pen_plan *plan = parse("{\"units\":[{\"name\":\"a\",\"time_ms\":0},{\"name\":\"b\",\"time_ms\":3}]}");
    solve(plan, 2);
    char *text;
    assert_int_equal(pen_plan_to_json(plan, &text), PEN_OK);
    assert_says(text, "\"imbalance\": null");
    free(text);
    text = report(plan);
    assert_says(text, "imbalance ∞");
    free(text);
    pen_plan_destroy(plan);
}

#define HALF "{\"units\":[{\"name\":\"a\",\"time_ms\":1},"

static void test_bad_profiles_are_refused_by_name_of_field(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"", "test.json: line 1"},
        {"{\"units\":[", "test.json: line 1"},
        {"[]", "no JSON object"},
        {"{}", "units is missing"},
        {"{\"units\":{}}", "units is no list of 1 … 4096"},
        {"{\"units\":[]}", "units is no list of 1 … 4096"},
        {"{\"units\":[7]}", "units[0] is no object"},
        {"{\"units\":[{\"time_ms\":1}]}", "units[0].name is missing"},
        {"{\"units\":[{\"name\":\"a\"}]}", "units[0].time_ms is missing"},
        {HALF "{\"name\":\"b\",\"time_ms\":-1}]}", "units[1].time_ms is no number of 0 …"},
        {HALF "{\"name\":\"b\",\"time_ms\":\"3\"}]}", "units[1].time_ms is no number"},
        {HALF "{\"name\":\"b\",\"time_ms\":1e300}]}", "units[1].time_ms is no number"},
        {HALF "{\"name\":\"b\",\"time_ms\":1e999}]}", "test.json: line 1"},
        {HALF "{\"name\":\"b\",\"time_ms\":NaN}]}", "test.json: line 1"},
        {HALF "{\"name\":5,\"time_ms\":1}]}", "units[1].name is no printable text"},
        {HALF "{\"name\":\"b\\u001b[2J\",\"time_ms\":1}]}", "units[1].name is no printable text"},
        {HALF "{\"name\":\"b\\uffff\",\"time_ms\":1}]}", "units[1].name is no printable text"},
        {HALF "{\"name\":\"b\",\"time_ms\":1,\"weight_bytes\":-5}]}", "units[1].weight_bytes is no number"},
        {HALF "{\"name\":\"b\",\"time_ms\":1,\"weight_bytes\":1e30}]}", "units[1].weight_bytes is no number"},
        {HALF "{\"name\":\"b\",\"time_ms\":1,\"time_ms\":2}]}", "test.json: line 1"},
        {HALF "{\"name\":\"b\",\"time_ms\":1}],\"version\":2}", "version is no whole number of 1 … 1"},
        {HALF "{\"name\":\"b\",\"time_ms\":1}],\"devices\":[]}", "devices is no list"},
        {HALF "{\"name\":\"b\",\"time_ms\":1}],\"devices\":[{\"speed\":0}]}", "devices[0].speed is no number"},
        {HALF "{\"name\":\"b\",\"time_ms\":1}],\"devices\":[{\"unit_ms\":[1]}]}", "devices[0].unit_ms is no list"},
        {HALF "{\"name\":\"b\",\"time_ms\":1}],\"devices\":[{\"unit_ms\":[1,-1]}]}", "devices[0].unit_ms[1]"},
        {HALF "{\"name\":\"b\",\"time_ms\":1}],\"workload\":7}", "workload is no object"},
        {HALF "{\"name\":\"b\",\"time_ms\":1}],\"workload\":{\"prompt_tokens\":0}}", "workload.prompt_tokens"},
        {HALF "{\"name\":\"b\",\"time_ms\":1}],\"hidden\":0.5}", "hidden is no whole number"},
        {HALF "{\"name\":\"b\",\"time_ms\":1}],\"stages\":[{\"first\":0,\"last\":0}]}", "stages: "},
        {HALF "{\"name\":\"b\",\"time_ms\":1}],\"stages\":[{\"first\":0,\"last\":7}]}", "stages[0].last"},
        {HALF "{\"name\":\"b\",\"time_ms\":1}],\"stages\":[{\"first\":1,\"last\":1}]}", "stages[0].first"},
        {HALF "{\"name\":\"b\",\"time_ms\":1}],\"stages\":[{\"last\":1}]}", "stages[0].first is missing"},
        {HALF "{\"name\":\"b\",\"time_ms\":1}],\"stages\":[{\"first\":0,\"last\":1},{\"first\":2,\"last\":2}]}",
         "stages[1].last"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        pen_plan *plan = (pen_plan *)&plan;
        assert_int_equal(pen_plan_from_json("test.json", bad[i].text, strlen(bad[i].text), &plan), PEN_BAD_INPUT);
        assert_null(plan);
        assert_says(pen_last_error(), "test.json: ");
        assert_says(pen_last_error(), bad[i].says);
    }
    pen_plan *plan;
    assert_int_equal(pen_plan_read("/nowhere/at.json", &plan), PEN_IO);
    assert_int_equal(pen_plan_read("/", &plan), PEN_IO);
}

/* Cut anywhere, a profile is refused and nothing is left behind (the sanitisers see to that). */
static void test_cut_profiles_are_refused(void **state) {
    (void)state;
    pen_plan *plan = parse(six_blocks);
    char *text;
    solve(plan, 2);
    assert_int_equal(pen_plan_to_json(plan, &text), PEN_OK);
    pen_plan_destroy(plan);
    for (size_t length = 0; length < strlen(text); length++)
        assert_int_equal(pen_plan_from_json("cut", text, length, &plan), PEN_BAD_INPUT);
    free(text);
}

/* ---- After a run ------------------------------------------------------------------------------------------------- */

static void test_measured_stages_suggest_another_split(void **state) {
    (void)state;
    pen_plan *plan = parse("{\"units\":[{\"name\":\"a\",\"time_ms\":5},{\"name\":\"b\",\"time_ms\":5},"
                           "{\"name\":\"c\",\"time_ms\":5},{\"name\":\"d\",\"time_ms\":5}]}");
    solve(plan, 2);
    const double uneven[] = {10, 30}, even[] = {10, 11};
    char *text = NULL;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    assert_int_equal(pen_report_measured(out, plan, uneven), PEN_OK);
    fclose(out);
    assert_says(text, "measured: max 30.00 ms, min 10.00 ms, mean 20.00 ms, imbalance 3.00×, efficiency 67 %");
    assert_says(text, "planned:  max 10.00 ms");
    assert_says(text, "--layers 3,1");
    free(text);
    out = open_memstream(&text, &length);
    assert_int_equal(pen_report_measured(out, plan, even), PEN_OK);
    fclose(out);
    assert_null(strstr(text, "--layers"));
    free(text);
    pen_plan_destroy(plan);
}

static void test_chart_folds_until_it_fits(void **state) {
    (void)state;
    pen_plan *plan;
    assert_int_equal(pen_plan_create(200, 1, &plan), PEN_OK);
    for (int u = 0; u < 200; u++) {
        snprintf(plan->units[u].name, sizeof plan->units[u].name, "block %d", u);
        plan->units[u].time_ms = 10 + 0.1 * (u % 7);
    }
    solve(plan, 4);
    char *text = report(plan);
    int lines = 0;
    for (const char *c = text; *c; c++) lines += *c == '\n';
    assert_true(lines < 60);
    assert_says(text, "block 0 … ");
    free(text);
    pen_plan_destroy(plan);
}

/* ---- The picture ------------------------------------------------------------------------------------------------- */

static int occurrences(const char *text, const char *part) {
    int count = 0;
    for (; (text = strstr(text, part)); text++) count++;
    return count;
}

static void test_picture_draws_every_unit_and_stage(void **state) {
    (void)state;
    pen_plan *plan = example("large-ends.json");
    snprintf(plan->units[3].name, sizeof plan->units[3].name, "<b> & \"c\"");
    solve(plan, 5);
    char *text;
    assert_int_equal(pen_plan_svg(plan, &text), PEN_OK);
    assert_int_equal(strncmp(text, "<svg ", 5), 0);
    assert_int_equal(occurrences(text, "<title>"), 26);         /* a bar per unit */
    assert_int_equal(occurrences(text, "opacity=\"0.14\""), 5); /* a band per stage */
    assert_int_equal(occurrences(text, ">of 1.00 GiB<"), 5);    /* a limit each */
    assert_int_equal(occurrences(text, "<text"), occurrences(text, "</text>"));
    assert_int_equal(occurrences(text, "&lt;b&gt; &amp; &quot;c&quot;"), 1);
    assert_null(strstr(text, "nan"));
    assert_null(strstr(text, "inf"));
    free(text);
    pen_plan_destroy(plan);
}

static void test_picture_of_nothing_is_no_division_by_zero(void **state) {
    (void)state;
    pen_plan *plan = parse("{\"units\":[{\"name\":\"a\",\"time_ms\":0}]}");
    solve(plan, 1);
    char *text;
    assert_int_equal(pen_plan_svg(plan, &text), PEN_OK);
    assert_null(strstr(text, "nan"));
    assert_null(strstr(text, "inf"));
    free(text);
    text = report(plan);
    assert_null(strstr(text, "nan"));
    free(text);
    pen_plan_destroy(plan);
}

static void test_picture_is_written_whole_or_not_at_all(void **state) {
    (void)state;
    char folder[] = "/tmp/penstock-test-XXXXXX", path[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/plan.svg", folder);
    pen_plan *plan = parse(six_blocks);
    solve(plan, 2);
    assert_int_equal(pen_plan_svg_write(plan, path), PEN_OK);

    /* A limit on file sizes, which fails like a full disk: the old picture stays, and nothing else is left. */
    struct rlimit before, small = {.rlim_cur = 500, .rlim_max = RLIM_INFINITY};
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    pen_status status = pen_plan_svg_write(plan, path);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(status, PEN_IO);
    assert_says(pen_last_error(), path);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    assert_true(ftell(file) > 500);
    fclose(file);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0); /* so nothing was left in it */

    assert_int_equal(pen_plan_svg_write(plan, "/dev/full"), PEN_IO);
    assert_int_equal(access("/dev/full", F_OK), 0);
    assert_int_equal(pen_plan_svg_write(plan, "/nowhere/plan.svg"), PEN_IO);
    pen_plan_destroy(plan);
}

/* ---- A model's plan ---------------------------------------------------------------------------------------------- */

static void test_stages_on_several_numa_nodes_get_advice(void **state) {
    (void)state;
    pen_plan *plan = example("uneven.json");
    char *text;
    assert_int_equal(pen_plan_set_devices(plan, 4), PEN_OK);
    for (int d = 0; d < 4; d++) plan->devices[d].numa_nodes = 1;
    solve(plan, 4);
    assert_false(remarked(plan, false, "NUMA"));
    plan->devices[2].numa_nodes = 2;
    solve(plan, 4);
    assert_true(remarked(plan, false, "stage 2 lie on 2 NUMA nodes"));
    assert_true(remarked(plan, false, "mpirun -np 5 --map-by numa --bind-to numa"));
    assert_int_equal(pen_plan_to_json(plan, &text), PEN_OK);
    assert_says(strstr(text, "\"notes\""), "2 NUMA nodes");
    free(text);
    pen_plan_destroy(plan);
}

static void test_synthetic_models_are_estimated_from_their_shape(void **state) {
    (void)state;
    pen_model *model;
    const char *spec = "synthetic:llama:layers=4,hidden=256,ffn=512/512/512/2048,heads=4,kv_heads=2,vocab=8192,"
                       "type=q4_0,context=1024";
    if (pen_model_open(spec, &model) != PEN_OK) fail_msg("%s", pen_last_error());
    pen_plan_model_options options = {.workload = {.prompt_tokens = 512, .output_tokens = 128}, .stages = 2};
    pen_plan *plan, *longer, *smaller;
    assert_int_equal(pen_plan_from_model(model, &options, &plan), PEN_OK);
    assert_int_equal(plan->unit_count, 6);
    assert_string_equal(plan->units[0].name, "embedding");
    assert_int_equal(plan->units[2].kv_bytes_per_token, 2 * 2 * 64 * 2); /* K and V, 2 heads of 64, f16 */
    assert_int_equal(plan->units[0].weight_bytes, 8192 * 256 / 32 * 18); /* 18 bytes for 32 weights */
    assert_true(plan->units[4].weight_bytes > plan->units[3].weight_bytes);
    assert_true(plan->units[4].time_ms > 1.5 * plan->units[3].time_ms); /* the wide layer */
    assert_true(plan->units[0].time_ms < plan->units[1].time_ms);
    assert_says(plan->source, "estimated");
    options.kv_q8_0 = true;
    assert_int_equal(pen_plan_from_model(model, &options, &smaller), PEN_OK);
    assert_int_equal(smaller->units[2].kv_bytes_per_token, 2 * 2 * 64 / 32 * 34);
    options.kv_q8_0 = false;
    options.workload.prompt_tokens = 8192; /* attention over a longer context takes longer per row */
    assert_int_equal(pen_plan_from_model(model, &options, &longer), PEN_OK);
    double rows = 1 + 512 / 128.0, more_rows = 1 + 8192 / 128.0;
    assert_true(longer->units[1].time_ms / more_rows > 1.5 * plan->units[1].time_ms / rows);
    solve(plan, 2);
    assert_true(plan->stages[0].memory_bytes > plan->units[0].weight_bytes);
    pen_plan_destroy(smaller);
    pen_plan_destroy(longer);
    pen_plan_destroy(plan);
    pen_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpt3_on_8_stages_takes_222_9_ms),
        cmocka_unit_test(test_llama_65b_on_4_stages_is_even),
        cmocka_unit_test(test_uneven_stages_print_75_percent),
        cmocka_unit_test(test_a_large_embedding_stands_alone_and_a_large_head_takes_fewer_blocks),
        cmocka_unit_test(test_mixed_devices_count_speed_and_links),
        cmocka_unit_test(test_memory_forces_another_number_of_stages),
        cmocka_unit_test(test_memory_changes_the_optimum_with_a_warning),
        cmocka_unit_test(test_kv_tokens_follow_the_workload_the_memory_or_the_wish),
        cmocka_unit_test(test_methods_and_layers_are_checked),
        cmocka_unit_test(test_applied_splits_are_checked),
        cmocka_unit_test(test_json_has_every_field),
        cmocka_unit_test(test_json_travels_unchanged),
        cmocka_unit_test(test_idle_stage_has_no_imbalance_in_json),
        cmocka_unit_test(test_bad_profiles_are_refused_by_name_of_field),
        cmocka_unit_test(test_cut_profiles_are_refused),
        cmocka_unit_test(test_measured_stages_suggest_another_split),
        cmocka_unit_test(test_chart_folds_until_it_fits),
        cmocka_unit_test(test_picture_draws_every_unit_and_stage),
        cmocka_unit_test(test_picture_of_nothing_is_no_division_by_zero),
        cmocka_unit_test(test_picture_is_written_whole_or_not_at_all),
        cmocka_unit_test(test_stages_on_several_numa_nodes_get_advice),
        cmocka_unit_test(test_synthetic_models_are_estimated_from_their_shape),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
