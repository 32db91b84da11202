/* Weights; see replica_weight.h. */
#include "replica_weight.h"

#include <math.h>

static const int64_t LOOK_NS = 1000000000;

/* Time with a full pipeline that a look at the speed takes: less says more of single steps than of the replica. */
static const double LEAST_FULL_MS = 200;
static const double LEAST_SPEED = 0.01, MOST_SPEED = 100;

/* How much a look counts against all before it: the first ones as in a mean, so that a slow replica shows soon. */
static double share_of_look(int looks) {
    return fmax(1.0 / (looks + 1), 0.3);
}

pen_replica_weight pen_replica_weight_at_first(void) {
    return (pen_replica_weight){.speed = 1, .band = 1};
}

double pen_replica_weight_value(const pen_replica_weight *weight) {
    return weight->speed * weight->band;
}

static void learn_speed(pen_replica_weight *weight, const pen_replica_load *load) {
    double full_ms = load->full_ms - weight->full_ms, planned_ms = load->planned_ms - weight->planned_ms;
    if (full_ms < LEAST_FULL_MS) return;
    double speed = fmin(fmax(planned_ms / full_ms, LEAST_SPEED), MOST_SPEED);
    weight->speed += share_of_look(weight->speeds++) * (speed - weight->speed);
    weight->full_ms = load->full_ms;
    weight->planned_ms = load->planned_ms;
}

void pen_replica_weight_learn(pen_replica_weight *weight, const pen_replica_load *load, int64_t now_ns) {
    if (weight->looks > 0 && now_ns - weight->looked_ns < LOOK_NS) return;
    if (weight->looks > 0) {
        double seconds = (double)(now_ns - weight->looked_ns) * 1e-9;
        double busy = fmin(fmax((load->busy_s - weight->busy_s) / seconds, 0), 1);
        double band = busy > 0.9 ? 0.5 : busy < 0.5 ? 1.5 : 1;
        double share = share_of_look(weight->looks - 1);
        weight->utilisation += share * (busy - weight->utilisation);
        weight->band += share * (band - weight->band);
    }
    learn_speed(weight, load);
    weight->looks++;
    weight->looked_ns = now_ns;
    weight->busy_s = load->busy_s;
}
