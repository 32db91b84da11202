/*
 * The world: the ranks of this run, started by mpirun (or one process alone), and what they say to each other at
 * start-up and when they leave. During a run ranks talk over links (link.h).
 *
 * A process without a launcher is a world of one and never touches MPI. Rank = replica · stages + stage; stage 0 of a
 * replica is its leader.
 *
 * Everything here is a star around rank 0, made of non-blocking messages that are polled: so every wait has a name and
 * an end, and the rank that failed to answer can be named. A rank that is busy for long (loading, profiling) calls
 * pen_world_beat now and then; a rank that neither answers nor beats for the world's patience is lost (PEN_PEER_LOST).
 */
#ifndef PEN_WORLD_H
#define PEN_WORLD_H

#include "clock_map.h"
#include "machine.h"
#include "status.h"

#include <stddef.h>

typedef struct pen_world pen_world;

/* A rank as others speak of it. */
typedef struct pen_place {
    int rank, replica, stage;
    int node, local_rank; /* number of its machine, and its number on that machine */
    char host[PEN_HOST_MAX];
    char name[PEN_HOST_MAX + 64]; /* for messages: "rank 3 (replica 1, stage 1 on node7)" */
} pen_place;

/* Joins the world. Collective. On failure *world may still be set: pass it to one of the next two. */
pen_status pen_world_create(pen_world **world);
/* Leaves in an orderly way: all ranks must get here. NULL is allowed. */
void pen_world_destroy(pen_world *world);
/* For failures that not all ranks know of: says this thread's last error in a line "penstock: …" on stderr, unless
 * another rank has said what it found, and ends this process and every other rank with the status as exit code, now.
 * Where the launcher recovers, its exit code is 1 if this rank is on its node, and 0 otherwise: it will not be told. */
_Noreturn void pen_world_abort(pen_world *world, pen_status status);
/* For failures of this rank's replica: says what went wrong, and ends this process only where the launcher recovers.
 * Elsewhere the same as pen_world_abort, and where rank 0 was found dead, without whom nobody goes on. */
_Noreturn void pen_world_drop_out(pen_world *world, pen_status status);
/* For rank 0 when all is done and some ranks are lost, so that pen_world_destroy would wait in vain: ends this process
 * and every other rank, now; the launcher's exit code is 0. */
_Noreturn void pen_world_finish(pen_world *world);

/* Whether SIGUSR1 has come (mpirun forwards it to all ranks): take nothing new on, finish what runs, and leave. */
bool pen_world_draining(const pen_world *world);
/* Whether the launcher lets the others live when a rank is lost (mpirun --enable-recovery). */
bool pen_world_recovers(const pen_world *world);
/* A rank of this machine that has ended, each told of once; -1: none. Those of other machines cannot be seen from here
 * and MPI says nothing of them; but rank 0 is told of here by those that drop out. Costs a microsecond. */
int pen_world_find_dead(pen_world *world);

int pen_world_rank(const pen_world *world);
int pen_world_size(const pen_world *world);
const pen_place *pen_world_place(const pen_world *world, int rank);
const pen_share *pen_world_share(const pen_world *world); /* this rank's part of its machine */

/* Overrides this rank's number of threads; see pen_share_set_threads. */
void pen_world_set_threads(pen_world *world, int threads);

/* Says how ranks are arranged; every rank calls it with the same numbers. PEN_USAGE unless replicas·stages = size. */
pen_status pen_world_arrange(pen_world *world, int replicas, int stages);
int pen_world_replicas(const pen_world *world);
int pen_world_stages(const pen_world *world);  /* of a replica */
int pen_world_replica(const pen_world *world); /* of this rank */
int pen_world_stage(const pen_world *world);   /* of this rank */

/* Communicators of their own as MPI numbers them (Fortran handles): the links', for link_mpi.c, and the mail's between
 * leaders, for mail.c. Ranks are the world's. */
int pen_world_links_handle(const pen_world *world);
int pen_world_mail_handle(const pen_world *world);

/* ---- Start-up conversations: every rank calls the same ones in the same order. `what` completes "while …": it names
 * the wait in errors ("sharing the plan"). ------------------------------------------------------------------------- */

typedef struct pen_blob {
    void *data; /* malloc'ed; the receiver frees it */
    size_t bytes;
} pen_blob;

/* Rank 0's blob goes to all; the others' is set. */
pen_status pen_world_broadcast(pen_world *world, const char *what, pen_blob *blob);
/* Every other rank gets its own of rank 0's blobs[size], of which the first one goes nowhere; `blob` is set there. */
pen_status pen_world_scatter(pen_world *world, const char *what, const pen_blob *blobs, pen_blob *blob);
/* Everyone's data comes to rank 0, which gets blobs[size]; the others' `blobs` is not touched. */
pen_status pen_world_gather(pen_world *world, const char *what, const void *data, size_t bytes, pen_blob *blobs);

/* Asks everyone's clock `count` times: rank 0 gets probes[size][count], its own are not touched; the others' `probes`
 * neither. */
pen_status pen_world_probe_clocks(pen_world *world, int count, pen_clock_probe *probes);

/* Makes one outcome of all ranks' outcomes: PEN_OK if all have that, else the status and error text of the lowest
 * rank that failed, on every rank. So all leave with one code, and one of them (rank 0) says why. */
pen_status pen_world_agree(pen_world *world, const char *what, pen_status status);

/* "I am alive": cheap enough for a device's poke or a progress callback. */
void pen_world_beat(void *world);
/* Seconds of silence after which a rank counts as lost; 60 at first. */
void pen_world_set_patience(pen_world *world, double seconds);

#endif
