/*
 * The plan as JSON: what `plan --json` prints, `--profile FILE` reads and rank 0 broadcasts.
 *
 *     version         1
 *     source          where the times come from, for people
 *     workload        prompt_tokens, output_tokens, max_num_seqs (0: 16 per stage), microbatches (0: stages + 1)
 *     units           name, time_ms, weight_bytes, kv_bytes_per_token, kv_window_bytes (of all sequences, instead of
 *                     bytes per token, where a layer sees a window), workspace_bytes
 *     tied_bytes      of weights that the first and the last unit share
 *     hidden          only read: see below
 *     sim, units[].rows, …  only read, by the simulated device: see sim_profile.h
 *     devices         name, memory_bytes (0: no limit), speed; where they count send_ms, wire_ms, unit_ms: see plan.h
 *     method, kv_tokens, max_ms, lower_bound_ms, imbalance (null: infinite), efficiency, solve_ms
 *     stages          first, last, device, time_ms, memory_bytes
 *     methods         per name max_ms, imbalance, efficiency, fits (the memory limits)
 *     kv_front        kv_tokens, max_ms: the trade of KV capacity for speed
 *     warnings, notes texts
 */
#ifndef PEN_PLAN_JSON_H
#define PEN_PLAN_JSON_H

#include "plan.h"

/* The text belongs to the caller: free(). */
pen_status pen_plan_to_json(const pen_plan *plan, char **text);

/* Untrusted text. Only `units` with `name` and `time_ms` are needed; what is missing costs nothing. With `hidden`,
 * layers without weight_bytes and units without workspace_bytes get the estimates of plan.h. `origin` is the file for
 * messages. `stages` are taken over, if there are any, so that a broadcast plan arrives solved; their times and memory
 * are worked out again. PEN_BAD_INPUT names origin and field. */
pen_status pen_plan_from_json(const char *origin, const char *text, size_t length, pen_plan **plan);
pen_status pen_plan_read(const char *path, pen_plan **plan);

#endif
