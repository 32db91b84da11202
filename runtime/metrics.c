/* Metrics; see metrics.h. */
#include "metrics.h"

#include "clock.h"

void pen_meter_start(pen_meter *meter, bool cpu_tells) {
    *meter = (pen_meter){.total.cpu_tells = cpu_tells, .activity = PEN_IDLE, .since_ns = pen_clock_ns()};
}

static void settle(pen_meter *meter, int64_t now) {
    meter->total.seconds[meter->activity] += (double)(now - meter->since_ns) * 1e-9;
    meter->since_ns = now;
    if (meter->activity == PEN_BUSY) {
        int64_t cpu = pen_clock_thread_cpu_ns();
        meter->total.busy_cpu_s += (double)(cpu - meter->since_cpu_ns) * 1e-9;
        meter->since_cpu_ns = cpu;
    }
}

void pen_meter_set(pen_meter *meter, pen_activity activity) {
    if (activity == meter->activity) return;
    settle(meter, pen_clock_ns());
    meter->activity = activity;
    if (activity == PEN_BUSY) meter->since_cpu_ns = pen_clock_thread_cpu_ns();
}

void pen_meter_lap(pen_meter *meter) {
    settle(meter, pen_clock_ns());
    meter->lap = meter->total;
    meter->busy_s += meter->lap.seconds[PEN_BUSY];
    meter->total = (pen_metrics){.cpu_tells = meter->lap.cpu_tells};
}

double pen_meter_busy_s(const pen_meter *meter) {
    double now_s = meter->activity == PEN_BUSY ? (double)(pen_clock_ns() - meter->since_ns) * 1e-9 : 0;
    return meter->busy_s + meter->total.seconds[PEN_BUSY] + now_s;
}

pen_efficiency pen_metrics_efficiency(const pen_metrics *stages, int count) {
    double sum = 0, most = 0, work = stages[0].work_s;
    for (int s = 0; s < count; s++) {
        double busy = stages[s].seconds[PEN_BUSY];
        sum += busy;
        if (busy > most) most = busy;
    }
    if (most <= 0 || work <= 0) return (pen_efficiency){0};
    return (pen_efficiency){.split = sum / count / most, .schedule = most / work, .pipeline = sum / (count * work)};
}
