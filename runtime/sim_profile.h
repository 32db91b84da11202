/*
 * `--device sim:PROFILE`: a profile stands for model and machine. The file is a plan's JSON (plan_json.h); what a run
 * needs besides is optional and has these places:
 *
 *     hidden                  values in a row of activations, which travel as f32 (default 1024)
 *     units[].rows, ms        a table of times instead of time_ms: at rows [1, …] (logit rows for the head), ascending,
 *                             at most 10; linear between them, in proportion beyond the last
 *     units[].context, context_ms
 *                             the same with so many positions before each row; linear in the context
 *     sim.vocab, sim.context  tokens and positions that there are (default 50257, 8192)
 *     sim.rows, sim.fixed     without a table a unit takes time_ms·(fixed + (1 − fixed)·rows ÷ sim.rows); fixed is 1 by
 *                             default: one time per microbatch, whatever is in it
 *     sim.latency_ms, sim.gigabytes_per_s
 *                             of the links between stages (default: what the real ones take, and no more)
 *     sim.slowdowns[]         replica, stage, rank (those that are given must fit; default: all ranks), from_s, to_s,
 *                             factor: units that begin in that time after the start take `factor` times as long, which
 *                             no plan knows of
 *
 * The devices' speeds, unit_ms and memory count as in a plan. The ranks of the world take the devices in turn. So one
 * device serves all; with as many as a replica has stages all replicas are alike; and with one for each rank, replica
 * after replica, they may differ:
 *
 *     "devices": [{"speed": 1}, {"speed": 2}]               with 2 stages: each replica has a slow and a fast one;
 *                                                           with 2 replicas of 1 stage: one is slow, the other fast
 *     "sim": {"slowdowns": [{"replica": 1, "factor": 2}]}   one replica is half as fast as its plan says
 *
 * The last unit must be a head (its name says so), and the KV of every block is as large as that of the largest. All
 * times are before --time-scale.
 */
#ifndef PEN_SIM_PROFILE_H
#define PEN_SIM_PROFILE_H

#include "model.h"
#include "profile.h"
#include "world.h"

typedef struct pen_sim_profile pen_sim_profile;

/* The file in `device` as --device has it; NULL where that is no simulated device. */
const char *pen_sim_profile_path(const char *device);

/* Reads the file for the rank at `place`. The model is made with it and belongs to it. */
pen_status pen_sim_profile_read(const char *path, const pen_place *place, pen_sim_profile **sim);
void pen_sim_profile_destroy(pen_sim_profile *sim);

const pen_model *pen_sim_profile_model(const pen_sim_profile *sim);
uint64_t pen_sim_profile_memory(const pen_sim_profile *sim); /* bytes of the device; 0: no limit */

/* The device of that rank; the profile outlives it. */
pen_status pen_sim_profile_device(const pen_sim_profile *sim, double time_scale, pen_device **device);
/* What measuring the units on it would give; the caller destroys it. */
pen_status pen_sim_profile_times(const pen_sim_profile *sim, pen_profile **times);

/* What a message takes between stages besides what it really takes. */
typedef struct pen_sim_link {
    double latency_ms, ms_per_byte;
} pen_sim_link;
pen_sim_link pen_sim_profile_link(const pen_sim_profile *sim);

#endif
