/* A load as the simulator runs it: the log that pen_load_run would have written, without a device or a clock. */
#ifndef PEN_LOAD_SIMULATE_H
#define PEN_LOAD_SIMULATE_H

#include "load.h"
#include "simulate.h"

/* Simulates the requests; pen_session_simulate and whatever else knows a pipeline. */
typedef pen_status pen_load_simulator(const void *context, const pen_simulated_watch *watch,
                                      pen_simulated_request *requests, int count, pen_simulation *simulation);

/* The load is not in phases. Free the log in any case. */
pen_status pen_load_simulate(const pen_load *load, pen_load_simulator *simulator, const void *context, int stages,
                             pen_load_log *log);

#endif
