/*
 * Which link a run gets. Every rank says what it has, rank 0 chooses one kind for all replicas, and everybody opens it;
 * where NCCL was a choice and not an order, and it does not come up, all fall back to MPI together.
 */
#ifndef PEN_LINK_OPEN_H
#define PEN_LINK_OPEN_H

#include "kernels.h"
#include "link.h"
#include "world.h"

typedef enum pen_link_kind { PEN_LINK_LOCAL, PEN_LINK_MPI, PEN_LINK_NCCL } pen_link_kind;

/* What a rank's choice depends on. Plain data: it travels between ranks as bytes. */
typedef struct pen_link_facts {
    int node;
    char bus[PEN_BUS_MAX]; /* where its GPU is; "": it has none */
    int nccl;              /* version of its NCCL library, as 22809 for 2.28.9; 0: there is none to use, */
    char missing[256];     /* and why */
    bool shares;           /* its NCCL may be on a GPU with another rank (NCCL_MULTI_RANK_GPU_ENABLE=1) */
} pen_link_facts;

typedef struct pen_link_choice {
    pen_link_kind kind;
    bool warns;       /* the reason is one that a person should know of */
    char reason[512]; /* completes "the link is …: " */
} pen_link_choice;

/* PEN_USAGE where a replica of `stages` stages can have no link of the kind that is asked for. */
pen_status pen_link_fits(const char *asked, int stages);

/* Chooses for `ranks` ranks in replicas of `stages` stages. `asked` is auto, local, mpi or nccl, and fits;
 * PEN_UNSUPPORTED where it cannot be. A pure function. */
pen_status pen_link_choose(const char *asked, int stages, const pen_link_facts *facts, int ranks,
                           pen_link_choice *choice);

/* Opens this rank's link. Collective over the world, which is arranged. Until NCCL has connected, it waits for
 * `patience_s`. */
pen_status pen_link_open(pen_world *world, pen_device *device, const char *asked, double patience_s, pen_link **link);

#endif
