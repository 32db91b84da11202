/* Choosing and opening a link; see link_open.h. */
#include "link_open.h"

#include "cuda_edge.h"
#include "log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const kind_names[] = {"local", "mpi", "nccl"};

/* ---- The choice ------------------------------------------------------------------------------------------------ */

/* From this version on, as NCCL writes it, ranks of one communicator may share a GPU. */
enum { NCCL_SHARES = 23000 };

typedef struct version_text {
    char text[32];
} version_text;

static version_text version_of(int nccl) {
    version_text version;
    snprintf(version.text, sizeof version.text, "NCCL %d.%d.%d", nccl / 10000, nccl % 10000 / 100, nccl % 100);
    return version;
}

static bool has_gpu(const pen_link_facts *facts) {
    return facts->bus[0] != '\0';
}

/* Stages that an edge of NCCL would connect, on one GPU. */
static bool must_share(const pen_link_facts *facts, int stages, int r) {
    return r % stages > 0 && facts[r].node == facts[r - 1].node && strcmp(facts[r].bus, facts[r - 1].bus) == 0;
}

static bool may_share(const pen_link_facts *facts) {
    return facts->nccl >= NCCL_SHARES && facts->shares;
}

/* Writes why the ranks, which all have GPUs, cannot use NCCL; false: they can. */
static bool find_obstacle(int stages, const pen_link_facts *facts, int ranks, char *text, size_t size) {
    for (int r = 0; r < ranks; r++) {
        if (facts[r].nccl > 0) continue;
        snprintf(text, size, "rank %d cannot use NCCL: %s", r, facts[r].missing);
        return true;
    }
    for (int r = 1; r < ranks; r++) {
        if (facts[r].nccl == facts[0].nccl) continue;
        snprintf(text, size, "rank 0 has %s and rank %d has %s", version_of(facts[0].nccl).text, r,
                 version_of(facts[r].nccl).text);
        return true;
    }
    for (int r = 0; r < ranks; r++) {
        if (!must_share(facts, stages, r) || (may_share(&facts[r - 1]) && may_share(&facts[r]))) continue;
        snprintf(text, size,
                 "ranks %d and %d have one GPU between them, at %s, which NCCL allows from 2.30 on with"
                 " NCCL_MULTI_RANK_GPU_ENABLE=1; here is %s",
                 r - 1, r, facts[r].bus, version_of(facts[r].nccl).text);
        return true;
    }
    return false;
}

pen_status pen_link_fits(const char *asked, int stages) {
    if (strcmp(asked, "auto") == 0 || (strcmp(asked, "local") == 0) == (stages == 1)) return PEN_OK;
    return pen_fail(PEN_USAGE, "--link %s does not fit %d stage%s, which need%s %s", asked, stages,
                    stages == 1 ? "" : "s", stages == 1 ? "s" : "", stages == 1 ? "local" : "mpi or nccl");
}

pen_status pen_link_choose(const char *asked, int stages, const pen_link_facts *facts, int ranks,
                           pen_link_choice *choice) {
    bool free_choice = strcmp(asked, "auto") == 0;
    *choice = (pen_link_choice){.kind = stages == 1 ? PEN_LINK_LOCAL : PEN_LINK_MPI};
    if (stages == 1 || strcmp(asked, "mpi") == 0) {
        snprintf(choice->reason, sizeof choice->reason, "%s", stages == 1 ? "there is one stage" : "as asked for");
        return PEN_OK;
    }
    int gpus = 0, without = 0;
    for (int r = ranks - 1; r >= 0; r--) {
        gpus += has_gpu(&facts[r]);
        if (!has_gpu(&facts[r])) without = r;
    }
    if (gpus == ranks) {
        choice->warns = find_obstacle(stages, facts, ranks, choice->reason, sizeof choice->reason);
        if (!choice->warns) {
            choice->kind = PEN_LINK_NCCL;
            snprintf(choice->reason, sizeof choice->reason, "all ranks have GPUs and %s",
                     version_of(facts[0].nccl).text);
        }
    } else {
        snprintf(choice->reason, sizeof choice->reason, "rank %d computes on no GPU", without);
    }
    if (free_choice || choice->kind == PEN_LINK_NCCL) return PEN_OK;
    return pen_fail(PEN_UNSUPPORTED, "--link nccl: %s; --link auto takes mpi then", choice->reason);
}

/* ---- Opening --------------------------------------------------------------------------------------------------- */

static pen_status look(pen_world *world, pen_device *device, pen_link_facts *facts) {
    pen_own_memory memory;
    const char *shares = getenv("NCCL_MULTI_RANK_GPU_ENABLE");
    PEN_TRY(pen_device_own_memory(device, &memory));
    *facts = (pen_link_facts){.node = pen_world_place(world, pen_world_rank(world))->node,
                              .shares = shares && strcmp(shares, "1") == 0};
    memcpy(facts->bus, memory.bus, sizeof facts->bus);
    if (has_gpu(facts) && pen_cuda_edge_version(&facts->nccl) != PEN_OK)
        snprintf(facts->missing, sizeof facts->missing, "%s", pen_last_error());
    return PEN_OK;
}

/* Rank 0 chooses from what all ranks say. */
static pen_status choose_for_all(pen_world *world, const char *asked, const pen_blob *blobs, pen_link_choice *choice) {
    int ranks = pen_world_size(world);
    pen_link_facts *facts = calloc((size_t)ranks, sizeof *facts);
    pen_status status = facts ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory for %d ranks", ranks);
    for (int r = 0; r < ranks && status == PEN_OK; r++) {
        if (blobs[r].bytes == sizeof *facts)
            memcpy(&facts[r], blobs[r].data, sizeof *facts);
        else
            status = pen_fail(PEN_BAD_INPUT, "rank %d runs another build than rank 0", r);
    }
    if (status == PEN_OK) status = pen_link_choose(asked, pen_world_stages(world), facts, ranks, choice);
    free(facts);
    return status;
}

static pen_status choose_together(pen_world *world, pen_device *device, const char *asked, pen_link_choice *choice) {
    static const char what[] = "choosing the links";
    int ranks = pen_world_size(world);
    pen_link_facts own;
    pen_blob *blobs = calloc((size_t)ranks, sizeof *blobs), shared = {.data = choice, .bytes = sizeof *choice};
    pen_status status = blobs ? look(world, device, &own) : pen_fail(PEN_NO_MEMORY, "no memory for %d ranks", ranks);
    status = pen_world_agree(world, what, status);
    if (status == PEN_OK) status = pen_world_gather(world, what, &own, sizeof own, blobs);
    if (status == PEN_OK) {
        if (pen_world_rank(world) == 0) status = choose_for_all(world, asked, blobs, choice);
        status = pen_world_agree(world, what, status);
    }
    for (int r = 0; blobs && r < ranks; r++) free(blobs[r].data);
    free(blobs);
    PEN_TRY(status);
    PEN_TRY(pen_world_broadcast(world, what, &shared));
    if (pen_world_rank(world) == 0) return PEN_OK;
    memcpy(choice, shared.data, sizeof *choice);
    free(shared.data);
    return PEN_OK;
}

static void tell(pen_world *world, const pen_link_choice *choice) {
    if (pen_world_rank(world) > 0) return;
    pen_log(choice->warns ? PEN_LOG_WARN : PEN_LOG_INFO, "rows go from stage to stage by %s: %s",
            kind_names[choice->kind], choice->reason);
}

/* What opening a link of NCCL comes to, which all ranks hear of. */
static pen_status open_nccl(pen_world *world, pen_device *device, double patience_s, pen_link **link) {
    pen_link *inner;
    pen_status status = pen_link_create_mpi(world, &inner);
    if (status == PEN_OK) status = pen_link_create_nccl(inner, world, device, patience_s, link);
    if (status != PEN_OK) *link = NULL;
    status = pen_world_agree(world, "connecting the GPUs", status);
    if (status == PEN_OK) return PEN_OK;
    pen_link_destroy(*link);
    *link = NULL;
    return status;
}

pen_status pen_link_open(pen_world *world, pen_device *device, const char *asked, double patience_s, pen_link **link) {
    pen_link_choice choice;
    if (pen_world_stages(world) == 1) return pen_link_create_local(link);
    PEN_TRY(choose_together(world, device, asked, &choice));
    if (choice.kind == PEN_LINK_NCCL) {
        pen_status status = open_nccl(world, device, patience_s, link);
        if (status != PEN_UNSUPPORTED || strcmp(asked, "auto") != 0) {
            if (status == PEN_OK) tell(world, &choice);
            return status == PEN_UNSUPPORTED ? pen_fail(status, "--link nccl: %s", pen_last_error()) : status;
        }
        choice = (pen_link_choice){.kind = PEN_LINK_MPI, .warns = true};
        snprintf(choice.reason, sizeof choice.reason, "NCCL fails: %s", pen_last_error());
    }
    tell(world, &choice);
    return pen_link_create_mpi(world, link);
}
