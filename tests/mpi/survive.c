/*
 * Ranks that outlive another; driven by survive.sh and nodes.sh.   survive finish|abort|drop|drain [VICTIM]
 *
 * VICTIM (default 1; none when draining) kills itself, the ranks of its machine must see it. Then rank 0 ends the job,
 * having said much: as complete, as failed; or the last rank drops out first. The others do as ranks do that hang.
 */
#include "clock.h"
#include "world.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINES = 20000 };

static void sleep_ms(int64_t ms) {
    pen_clock_sleep_until(pen_clock_ns() + ms * 1000 * 1000);
}

static void await_death(pen_world *world, int rank) {
    int64_t began = pen_clock_ns();
    int dead;
    do {
        sleep_ms(1);
        dead = pen_world_find_dead(world);
    } while (dead != rank && pen_clock_ns() - began < 3000LL * 1000 * 1000);
    fprintf(stderr, "rank %d %s the end of rank %d\n", pen_world_rank(world), dead == rank ? "sees" : "misses", rank);
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    int victim = argc > 2 ? atoi(argv[2]) : 1;
    pen_world *world = NULL;
    if (pen_world_create(&world) != PEN_OK) pen_world_abort(world, PEN_INTERNAL);
    int rank = pen_world_rank(world), last = pen_world_size(world) - 1;
    fprintf(stderr, "rank %d is up: pid %d\n", rank, (int)getpid());
    if (strcmp(mode, "drain") == 0) {
        int64_t began = pen_clock_ns();
        while (!pen_world_draining(world) && pen_clock_ns() - began < 30LL * 1000 * 1000 * 1000) sleep_ms(1);
        fprintf(stderr, "rank %d %s\n", rank, pen_world_draining(world) ? "drains" : "has heard nothing");
        pen_world_destroy(world);
        return PEN_INTERRUPTED;
    }
    if (rank == victim) {
        sleep_ms(200);
        kill(getpid(), SIGKILL);
    }
    if (pen_world_place(world, rank)->node == pen_world_place(world, victim)->node) await_death(world, victim);
    sleep_ms(300);
    if (strcmp(mode, "drop") == 0 && rank == last) {
        (void)pen_fail(PEN_PEER_LOST, "the replica of rank %d is lost", rank);
        pen_world_drop_out(world, PEN_PEER_LOST);
    }
    if (rank != 0) sleep(60);
    if (strcmp(mode, "drop") == 0) await_death(world, last);
    sleep_ms(200);
    for (int i = 0; i < LINES; i++) printf("line %d of what rank 0 has to say before it leaves\n", i);
    if (strcmp(mode, "abort") != 0) pen_world_finish(world);
    (void)pen_fail(PEN_PEER_LOST, "rank 0 has had enough");
    pen_world_abort(world, PEN_PEER_LOST);
}
