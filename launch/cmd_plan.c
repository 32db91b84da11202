/*
 * penstock plan: how the units of a model, or of a profile, would be split. One process, no MPI.
 *
 * A file's units are measured on this machine's CPU, or on its GPU. A synthetic model, and a file with a unit that is
 * too large for this machine (of which perhaps only the header is here), are estimated; a profile is taken as it is.
 * Without --memory and without devices in the profile there is no memory limit: the machines that are planned for need
 * not be this one.
 */
#include "command.h"
#include "device_open.h"
#include "help.h"
#include "machine.h"
#include "plan_json.h"
#include "plan_model.h"
#include "plan_svg.h"
#include "profile_cache.h"
#include "report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static pen_status measure(const pen_config *config, const pen_model *model, pen_device *device, int context,
                          pen_profile **profile) {
    pen_profile_key key = {.model = model, .device = device, .ranks = 1, .context = context};
    *profile = pen_profile_cache_load(config->cache, &key);
    if (*profile) return PEN_OK;
    pen_profile_options options = {.context = context};
    PEN_TRY(pen_profile_measure(model, device, &options, profile));
    pen_profile_cache_store(config->cache, &key, *profile);
    return PEN_OK;
}

/* Every stage has a machine like this one, in which it is alone. */
static pen_status plan_measured(const pen_config *config, const pen_model *model, const pen_machine *machine,
                                pen_plan_model_options *options, pen_plan **plan) {
    pen_device *device = NULL;
    pen_profile *profile = NULL;
    pen_share share;
    pen_machine_divide(&machine, 1, &share);
    pen_share_set_threads(&share, config->threads);
    PEN_TRY(pen_device_open(config, &share, 0, 1, &device));
    int context = options->workload.prompt_tokens + options->workload.output_tokens;
    pen_status status = measure(config, model, device, context, &profile);
    options->device = device;
    options->profile = profile;
    pen_own_memory own;
    if (status == PEN_OK) status = pen_device_own_memory(device, &own);
    if (status == PEN_OK && own.total_bytes == 0) options->numa_nodes = pen_share_numa_nodes(&share);
    if (status == PEN_OK) status = pen_plan_from_model(model, options, plan);
    pen_profile_destroy(profile);
    pen_device_destroy(device);
    return status;
}

/* Measuring makes units of the model's sizes, and room to work in, one kind at a time. */
static bool can_measure(const pen_model *model, const pen_machine *machine) {
    uint64_t largest = 0;
    if (!pen_model_gguf(model)) return false;
    for (int u = 0; u < pen_model_unit_count(model); u++) {
        uint64_t bytes = pen_model_unit(model, u)->weight_bytes;
        if (bytes > largest) largest = bytes;
    }
    return largest <= machine->memory / 4;
}

static pen_status plan_model(const pen_options *given, pen_plan **plan) {
    const pen_config *config = &given->config;
    pen_model *model;
    PEN_TRY(pen_model_open(config->model, &model));
    pen_command_warn_if_cut(pen_model_gguf(model));
    int rows = pen_config_rows(config);
    pen_plan_model_options options = {.workload = {.prompt_tokens = config->workload_prompt,
                                                   .output_tokens = config->workload_output,
                                                   .max_num_seqs = config->max_num_seqs},
                                      .stages = config->pipeline_parallel > 0 ? config->pipeline_parallel : 1,
                                      .kv_q8_0 = config->kv_q8_0,
                                      .rows = rows,
                                      .context = pen_config_max_len(config, pen_model_hparams(model)->context),
                                      .positions = config->workload_prompt + config->workload_output,
                                      .slots = 1};
    options.sequences = pen_plan_sequences(&options.workload, options.stages);
    options.logit_rows = (int)ceil(pen_plan_steady(&options.workload, options.stages, rows).logit_rows);
    pen_machine machine;
    pen_machine_look(&machine);
    pen_status status = can_measure(model, &machine) ? plan_measured(config, model, &machine, &options, plan)
                                                     : pen_plan_from_model(model, &options, plan);
    pen_model_close(model);
    return status;
}

static pen_status print_json(const pen_plan *plan) {
    char *text;
    PEN_TRY(pen_plan_to_json(plan, &text));
    puts(text);
    free(text);
    return PEN_OK;
}

static pen_status solve_and_show(const pen_options *options, pen_plan *plan) {
    const pen_config *config = &options->config;
    pen_plan_options wanted = {.stages = config->pipeline_parallel,
                               .method = config->method,
                               .layers = config->layers[0] ? config->layers : NULL,
                               .memory = config->memory,
                               .kv_tokens = config->kv_tokens};
    /* A profile's own workload stands until another one than the default is asked for. It decides about KV only: the
     * times are what they are. */
    if (config->workload_prompt != PEN_PLAN_PROMPT || config->workload_output != PEN_PLAN_OUTPUT) {
        plan->workload.prompt_tokens = config->workload_prompt;
        plan->workload.output_tokens = config->workload_output;
    }
    if (config->max_num_seqs > 0) plan->workload.max_num_seqs = config->max_num_seqs;
    PEN_TRY(pen_plan_solve(plan, &wanted));
    if (options->svg) PEN_TRY(pen_plan_svg_write(plan, options->svg));
    if (options->json) return print_json(plan);
    pen_report_plan(stdout, plan, pen_help_width());
    return PEN_OK;
}

pen_status pen_cmd_plan(const pen_options *options) {
    pen_plan *plan = NULL;
    PEN_TRY(options->config.profile[0] ? pen_plan_read(options->config.profile, &plan) : plan_model(options, &plan));
    pen_status status = solve_and_show(options, plan);
    pen_plan_destroy(plan);
    return status;
}
