/* What handing a microbatch on costs; see link_cost.h. */
#include "link_cost.h"

#include "clock.h"
#include "link.h"
#include "log.h"
#include "wait.h"

#include <stdlib.h>

enum { ROUNDS = 7 }; /* the first warms up */

typedef struct trial {
    pen_link *link;
    pen_wait wait;
    pen_world *world;
    pen_device *device;
    pen_buffer *rows;
    size_t bytes;
    double patience_s;
} trial;

static pen_status finish(trial *t, int peer, pen_transfer transfer) {
    const pen_world *world = t->world;
    int rank = pen_world_rank(world) - pen_world_stage(world) + peer;
    const char *name = pen_world_place(world, rank)->name;
    pen_wait_reset(&t->wait);
    while (!pen_link_done(t->link, transfer, NULL)) {
        bool moved = false;
        PEN_TRY(pen_link_progress(t->link, &moved));
        if (moved) continue;
        /* Ours, that is: the neighbour waits for us, so there is nobody to agree with. */
        if (pen_device_status(t->device) != PEN_OK)
            return pen_fail(PEN_PEER_LOST, "%s: %s", pen_world_place(world, pen_world_rank(world))->name,
                            pen_last_error());
        pen_world_beat(t->world);
        if (pen_wait_tells(&t->wait))
            PEN_DEBUG("has waited %.1f s for %s while timing the %s link", pen_wait_seconds(&t->wait), name,
                      pen_link_name(t->link));
        if (pen_wait_seconds(&t->wait) > t->patience_s)
            return pen_fail(PEN_PEER_LOST, "lost %s while timing the %s link: silent for %.0f s", name,
                            pen_link_name(t->link), t->patience_s);
        pen_wait_pause(&t->wait, true, 0);
    }
    return PEN_OK;
}

static pen_status send(trial *t, int peer) {
    pen_transfer transfer;
    PEN_TRY(pen_link_send_rows(t->link, peer, 0, t->rows, t->bytes, NULL, &transfer));
    return finish(t, peer, transfer);
}

static pen_status receive(trial *t, int peer) {
    pen_transfer transfer;
    PEN_TRY(pen_link_receive_rows(t->link, peer, 0, t->rows, t->bytes, &transfer));
    return finish(t, peer, transfer);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static pen_status time_link(trial *t, double *ms) {
    int stage = pen_world_stage(t->world), stages = pen_world_stages(t->world);
    double samples[ROUNDS];
    for (int i = 0; stage > 0 && i < ROUNDS; i++) {
        PEN_TRY(receive(t, stage - 1));
        PEN_TRY(send(t, stage - 1));
    }
    for (int i = 0; stage + 1 < stages && i < ROUNDS; i++) {
        int64_t begin = pen_clock_ns();
        PEN_TRY(send(t, stage + 1));
        PEN_TRY(receive(t, stage + 1));
        samples[i] = (double)(pen_clock_ns() - begin) * 1e-6 / 2;
    }
    if (stage + 1 == stages) return PEN_OK;
    qsort(samples + 1, ROUNDS - 1, sizeof *samples, by_value);
    *ms = samples[1 + (ROUNDS - 1) / 2];
    return PEN_OK;
}

pen_status pen_link_cost(pen_world *world, pen_device *device, size_t bytes, double patience_s, double *ms) {
    *ms = 0;
    if (pen_world_stages(world) == 1) return PEN_OK;
    trial t = {.world = world, .device = device, .bytes = bytes, .patience_s = patience_s};
    pen_wait_init(&t.wait, pen_world_share(world)->may_spin);
    PEN_TRY(pen_buffer_create(device, bytes, &t.rows));
    pen_status status = pen_link_create_mpi(world, &t.link);
    if (status == PEN_OK) status = pen_link_prepare_rows(t.link, 0, device, t.rows, bytes);
    if (status == PEN_OK) status = time_link(&t, ms);
    pen_link_destroy(t.link);
    pen_buffer_destroy(t.rows);
    return status;
}
