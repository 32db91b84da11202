/*
 * The world over MPI; see world.h.
 *
 * Of MPI's collectives only MPI_Init, the duplication of communicators behind it and MPI_Finalize are used, each under
 * a watchdog: they block, and a peer that died in them must not keep us.
 */
#include "world.h"

#include "clock.h"
#include "launcher.h"
#include "log.h"
#include "wait.h"

#include <mpi.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { TAG_LENGTH = 1, TAG_DATA, TAG_BEAT, TAG_HUSH, TAG_CLOCK, TAG_DROPPED };

enum { WATCHDOG_S = 60, ABORT_S = 5, HUSH_MS = 10, DRAIN_MS = 500, TELL_MS = 200 };
static const int64_t BEAT_NS = 1000 * 1000 * 1000;
static const uint64_t BLOB_MAX = 1u << 30;

struct pen_world {
    bool mpi;       /* MPI was started */
    MPI_Comm talk;  /* for this file's conversations */
    MPI_Comm links; /* for the links; duplicates, so that no tags can meet */
    MPI_Comm mail;  /* for the mail between leaders */
    int rank, size, replicas, stages;
    double patience_s;
    pen_place *places; /* [size] */
    pen_share share;
    int64_t beat_ns;     /* of the last beat */
    MPI_Request *beats;  /* [size] of sent beats; one outstanding each */
    int64_t *heard_ns;   /* [size] when something last came from a rank */
    struct pollfd *ends; /* [size] that tell of the end of a rank of this machine; -1 for the others */
    bool headless;       /* rank 0 has ended */
    pen_wait wait;
};

/* ---- Blocking calls under a watchdog; signals ------------------------------------------------------------------- */

static const char *watched;

static void bark(int number) {
    (void)number;
    static const char before[] = "penstock: no answer for a minute in ";
    if (write(STDERR_FILENO, before, sizeof before - 1) < 0 || write(STDERR_FILENO, watched, strlen(watched)) < 0 ||
        write(STDERR_FILENO, "\n", 1) < 0)
        _exit(PEN_IO);
    _exit(PEN_PEER_LOST);
}

static void watchdog(const char *call) {
    watched = call;
    signal(SIGALRM, bark);
    alarm(WATCHDOG_S);
}

/* The launcher kills a rank a second or two after SIGTERM, and MPI_Finalize would wait for the others: just go. */
static void leave_on_signal(int number) {
    (void)number;
    _exit(PEN_INTERRUPTED);
}

static volatile sig_atomic_t draining;

static void drain_on_signal(int number) {
    (void)number;
    draining = 1;
}

bool pen_world_draining(const pen_world *world) {
    (void)world;
    return draining;
}

/* ---- Start ------------------------------------------------------------------------------------------------------ */

static const char *env_or_null(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

/* Open MPI sends messages up to the eager limit without asking the receiver, so they travel while both sides compute.
 * Typical activations of a decode step should; what the user has set stays. */
static void raise_eager_limits(void) {
    static const char *const names[] = {"OMPI_MCA_btl_vader_eager_limit", "OMPI_MCA_btl_sm_eager_limit",
                                        "OMPI_MCA_btl_tcp_eager_limit"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) setenv(names[i], "131072", 0);
    setenv("OMPI_MCA_btl_vader_max_send_size", "131072", 0);
    setenv("OMPI_MCA_btl_sm_max_send_size", "131072", 0);
    setenv("OMPI_MCA_btl_tcp_max_send_size", "262144", 0);
}

/* Once a connection was lost, Open MPI 4.1 believes that nobody uses TCP any more, and looks for what comes over the
 * other ones every 10 ms: a pipeline would crawl. So many µs instead. */
static void keep_looking_at_tcp(void) {
    setenv("OMPI_MCA_mpi_event_tick_rate", "100", 0);
}

static pen_status mpi_status(int code, const char *doing) {
    if (code == MPI_SUCCESS) return PEN_OK;
    char text[MPI_MAX_ERROR_STRING];
    int length;
    MPI_Error_string(code, text, &length);
    return pen_fail(PEN_PEER_LOST, "MPI failed while %s: %s", doing, text);
}

static pen_status start_mpi(pen_world *world) {
    raise_eager_limits();
    keep_looking_at_tcp();
    watchdog("MPI_Init");
    int provided, argc = 0;
    char **argv = NULL;
    PEN_TRY(mpi_status(MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided), "starting"));
    world->mpi = true;
    PEN_TRY(mpi_status(MPI_Comm_dup(MPI_COMM_WORLD, &world->talk), "starting"));
    PEN_TRY(mpi_status(MPI_Comm_dup(MPI_COMM_WORLD, &world->links), "starting"));
    PEN_TRY(mpi_status(MPI_Comm_dup(MPI_COMM_WORLD, &world->mail), "starting"));
    alarm(0);
    PEN_DEBUG("done: MPI_Init");
    MPI_Comm_set_errhandler(world->talk, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(world->links, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(world->mail, MPI_ERRORS_RETURN);
    MPI_Comm_rank(world->talk, &world->rank);
    MPI_Comm_size(world->talk, &world->size);
    signal(SIGTERM, leave_on_signal);
    signal(SIGINT, leave_on_signal);
    return PEN_OK;
}

/* Under Slurm with a PMI that MPI does not speak, every task would be a world of its own and run the whole model. */
static pen_status check_slurm(pen_world *world) {
    const char *tasks = env_or_null("SLURM_STEP_NUM_TASKS"), *task = env_or_null("SLURM_PROCID");
    if (world->size > 1 || !tasks || atoi(tasks) <= 1) return PEN_OK;
    world->rank = task ? atoi(task) : 0; /* so that only one of them says it */
    return pen_fail(
        PEN_USAGE, "Slurm started %s tasks but MPI sees one: use mpirun, or srun with an --mpi that MPI speaks", tasks);
}

/* How messages speak of the ranks: of replicas only where there are several. */
static void name_places(pen_world *world) {
    for (pen_place *p = world->places; p < world->places + world->size; p++) {
        char replica[32] = "";
        if (world->replicas > 1) snprintf(replica, sizeof replica, "replica %d, ", p->replica);
        snprintf(p->name, sizeof p->name, "rank %d (%sstage %d%s%s)", p->rank, replica, p->stage,
                 p->host[0] ? " on " : "", p->host);
    }
}

static pen_status meet(pen_world *world);

pen_status pen_world_create(pen_world **out) {
    pen_world *world = calloc(1, sizeof *world);
    if (!world) return pen_fail(PEN_NO_MEMORY, "no memory for the world");
    *out = world;
    world->size = world->replicas = world->stages = 1;
    world->patience_s = 60;
    signal(SIGUSR1, drain_on_signal); /* before MPI_Init, which takes its time */
    if (pen_launcher_present()) PEN_TRY(start_mpi(world));
    PEN_TRY(check_slurm(world));
    size_t size = (size_t)world->size;
    world->places = calloc(size, sizeof *world->places);
    world->heard_ns = calloc(size, sizeof *world->heard_ns);
    world->beats = malloc(size * sizeof *world->beats);
    world->ends = calloc(size, sizeof *world->ends);
    if (!world->places || !world->heard_ns || !world->beats || !world->ends)
        return pen_fail(PEN_NO_MEMORY, "no memory for the world");
    for (size_t r = 0; r < size; r++) {
        world->beats[r] = MPI_REQUEST_NULL;
        world->ends[r] = (struct pollfd){.fd = -1, .events = POLLIN};
    }
    for (int r = 0; r < world->size; r++) world->places[r] = (pen_place){.rank = r, .stage = r};
    name_places(world);
    pen_wait_init(&world->wait, false);
    return meet(world);
}

void pen_world_destroy(pen_world *world) {
    if (!world) return;
    if (world->mpi) {
        /* MPI_Finalize waits for all and cannot say for whom. */
        pen_status status = pen_world_agree(world, "leaving", PEN_OK);
        if (status != PEN_OK) pen_world_abort(world, status);
        watchdog("MPI_Finalize");
        for (int r = 0; world->beats && r < world->size; r++)
            if (world->beats[r] != MPI_REQUEST_NULL) MPI_Wait(&world->beats[r], MPI_STATUS_IGNORE);
        MPI_Comm_free(&world->talk);
        MPI_Comm_free(&world->links);
        MPI_Comm_free(&world->mail);
        MPI_Finalize();
        alarm(0);
    }
    for (int r = 0; world->ends && r < world->size; r++)
        if (world->ends[r].fd >= 0) close(world->ends[r].fd);
    free(world->places);
    free(world->heard_ns);
    free(world->beats);
    free(world->ends);
    free(world);
}

/* Whether this rank is the one to say what went wrong. The launcher takes a while to end all ranks, and one lost rank
 * may well be missed by several: the first tells the others to be quiet. */
static bool may_speak(pen_world *world) {
    for (int i = 0; i < HUSH_MS; i++) {
        int hushed = 0;
        if (MPI_Iprobe(MPI_ANY_SOURCE, TAG_HUSH, world->talk, &hushed, MPI_STATUS_IGNORE) != MPI_SUCCESS) break;
        if (hushed) return false;
        pen_clock_sleep_until(pen_clock_ns() + 1000 * 1000);
    }
    for (int r = 0; r < world->size; r++) {
        MPI_Request request; /* never waited for: the process ends */
        if (r != world->rank) MPI_Isend(NULL, 0, MPI_BYTE, r, TAG_HUSH, world->talk, &request);
    }
    return true;
}

/* A rank that is lost tells nobody; so neither it nor a launcher that is at a loss may keep us from leaving. */
static void bound_the_end(void) {
    signal(SIGALRM, SIG_DFL);
    alarm(ABORT_S);
}

static _Noreturn void wait_for_the_end(pen_status status) {
    pen_clock_sleep_until(pen_clock_ns() + (int64_t)ABORT_S * 1000 * 1000 * 1000);
    _exit((int)status);
}

void pen_world_abort(pen_world *world, pen_status status) {
    bool others = world->mpi && world->size > 1;
    bound_the_end();
    fflush(stdout);
    if (others && !may_speak(world)) wait_for_the_end(status);
    fprintf(stderr, "penstock: %s\n", pen_last_error());
    if (others && pen_world_recovers(world) && pen_launcher_end(false)) wait_for_the_end(status);
    /* Through the launcher this reaches ranks that hang or are stopped, too. */
    if (others) MPI_Abort(world->talk, (int)status);
    _exit((int)status);
}

void pen_world_drop_out(pen_world *world, pen_status status) {
    if (!pen_world_recovers(world) || world->headless) pen_world_abort(world, status);
    fprintf(stderr, "penstock: %s\n", pen_last_error());
    MPI_Request request; /* rank 0 may be on another machine, where it cannot see us go */
    int told = MPI_Isend(NULL, 0, MPI_BYTE, 0, TAG_DROPPED, world->talk, &request) != MPI_SUCCESS;
    for (int i = 0; i < TELL_MS && !told; i++) {
        pen_clock_sleep_until(pen_clock_ns() + 1000 * 1000);
        if (MPI_Test(&request, &told, MPI_STATUS_IGNORE) != MPI_SUCCESS) break;
    }
    _exit((int)status);
}

/* What we have printed and the launcher has not read yet it might not read any more when it is told to end. */
static void drain_output(int file) {
    int left = 0;
    for (int i = 0; i < DRAIN_MS; i++) {
        if (ioctl(file, isatty(file) ? TIOCOUTQ : FIONREAD, &left) != 0 || left == 0) return;
        pen_clock_sleep_until(pen_clock_ns() + 1000 * 1000);
    }
}

void pen_world_finish(pen_world *world) {
    bound_the_end();
    fflush(stdout);
    drain_output(STDOUT_FILENO);
    drain_output(STDERR_FILENO);
    if (pen_launcher_end(true)) wait_for_the_end(PEN_OK);
    MPI_Abort(world->talk, PEN_OK);
    _exit(PEN_OK);
}

bool pen_world_recovers(const pen_world *world) {
    return world->mpi && pen_launcher_recovers();
}

/* Whether the end of this rank is news; it is not again. */
static bool is_news(pen_world *world, int rank) {
    struct pollfd *end = &world->ends[rank];
    bool news = end->events != 0;
    if (end->fd >= 0) close(end->fd);
    *end = (struct pollfd){.fd = -1};
    world->headless |= rank == 0;
    return news;
}

/* A rank that has told rank 0 that it goes; -1: none. */
static int find_dropped(pen_world *world) {
    int here;
    MPI_Status status;
    if (MPI_Iprobe(MPI_ANY_SOURCE, TAG_DROPPED, world->talk, &here, &status) != MPI_SUCCESS || !here) return -1;
    MPI_Recv(NULL, 0, MPI_BYTE, status.MPI_SOURCE, TAG_DROPPED, world->talk, MPI_STATUS_IGNORE);
    return is_news(world, status.MPI_SOURCE) ? status.MPI_SOURCE : -1;
}

int pen_world_find_dead(pen_world *world) {
    int ended = poll(world->ends, (nfds_t)world->size, 0);
    for (int r = 0; r < world->size && ended > 0; r++)
        if (world->ends[r].revents && is_news(world, r)) return r;
    return world->mpi && world->rank == 0 ? find_dropped(world) : -1;
}

int pen_world_rank(const pen_world *world) {
    return world->rank;
}
int pen_world_size(const pen_world *world) {
    return world->size;
}
const pen_place *pen_world_place(const pen_world *world, int rank) {
    return &world->places[rank];
}
const pen_share *pen_world_share(const pen_world *world) {
    return &world->share;
}
int pen_world_replicas(const pen_world *world) {
    return world->replicas;
}
int pen_world_stages(const pen_world *world) {
    return world->stages;
}
int pen_world_replica(const pen_world *world) {
    return world->rank / world->stages;
}
int pen_world_stage(const pen_world *world) {
    return world->rank % world->stages;
}
void pen_world_set_patience(pen_world *world, double seconds) {
    world->patience_s = seconds;
}
void pen_world_set_threads(pen_world *world, int threads) {
    pen_share_set_threads(&world->share, threads);
}
int pen_world_links_handle(const pen_world *world) {
    return MPI_Comm_c2f(world->links);
}
int pen_world_mail_handle(const pen_world *world) {
    return MPI_Comm_c2f(world->mail);
}

pen_status pen_world_arrange(pen_world *world, int replicas, int stages) {
    if (replicas < 1 || stages < 1 || (int64_t)replicas * stages != world->size)
        return pen_fail(PEN_USAGE, "%d ranks cannot be %d replicas of %d stages", world->size, replicas, stages);
    world->replicas = replicas;
    world->stages = stages;
    for (int r = 0; r < world->size; r++) {
        world->places[r].replica = r / stages;
        world->places[r].stage = r % stages;
    }
    name_places(world);
    return PEN_OK;
}

/* ---- Conversations ---------------------------------------------------------------------------------------------- */

void pen_world_beat(void *context) {
    pen_world *world = context;
    int64_t now = pen_clock_ns();
    if (world->size == 1 || now - world->beat_ns < BEAT_NS) return;
    world->beat_ns = now;
    int first = world->rank == 0 ? 1 : 0, last = world->rank == 0 ? world->size - 1 : 0;
    for (int r = first; r <= last; r++) {
        int sent;
        MPI_Test(&world->beats[r], &sent, MPI_STATUS_IGNORE);
        if (sent) MPI_Isend(NULL, 0, MPI_BYTE, r, TAG_BEAT, world->talk, &world->beats[r]);
    }
}

/* Takes the beats that have arrived. */
static void listen(pen_world *world) {
    for (;;) {
        int here;
        MPI_Status status;
        if (MPI_Iprobe(MPI_ANY_SOURCE, TAG_BEAT, world->talk, &here, &status) != MPI_SUCCESS || !here) return;
        MPI_Recv(NULL, 0, MPI_BYTE, status.MPI_SOURCE, TAG_BEAT, world->talk, MPI_STATUS_IGNORE);
        world->heard_ns[status.MPI_SOURCE] = pen_clock_ns();
    }
}

static pen_status lost(const pen_world *world, int rank, const char *what, const char *why) {
    return pen_fail(PEN_PEER_LOST, "lost %s while %s: %s", world->places[rank].name, what, why);
}

/* Polls `request`, a message to or from `rank`, until it is done or the rank has been silent for too long. */
static pen_status await(pen_world *world, int rank, const char *what, MPI_Request *request) {
    int64_t began = pen_clock_ns();
    pen_wait_reset(&world->wait);
    for (;;) {
        int done;
        if (mpi_status(MPI_Test(request, &done, MPI_STATUS_IGNORE), what) != PEN_OK)
            return lost(world, rank, what, pen_last_error());
        int64_t now = pen_clock_ns();
        if (done) {
            world->heard_ns[rank] = now;
            return PEN_OK;
        }
        pen_world_beat(world);
        listen(world);
        int64_t silent_since = world->heard_ns[rank] > began ? world->heard_ns[rank] : began;
        /* Should rank 0 be lost all others notice: the lowest speaks first and ends the rest. */
        double stagger = world->patience_s / 10 < 0.25 ? world->patience_s / 10 : 0.25;
        if ((double)(now - silent_since) * 1e-9 > world->patience_s + stagger * world->rank) {
            char why[64];
            snprintf(why, sizeof why, "silent for %.0f s", world->patience_s);
            return lost(world, rank, what, why);
        }
        if (pen_wait_tells(&world->wait))
            PEN_DEBUG("rank %d has waited %.1f s for %s while %s", world->rank, pen_wait_seconds(&world->wait),
                      world->places[rank].name, what);
        pen_wait_pause(&world->wait, true, 0);
    }
}

static pen_status send_blob(pen_world *world, int rank, const char *what, const void *data, size_t bytes) {
    uint64_t length = bytes;
    MPI_Request request;
    PEN_TRY(mpi_status(MPI_Isend(&length, sizeof length, MPI_BYTE, rank, TAG_LENGTH, world->talk, &request), what));
    PEN_TRY(await(world, rank, what, &request));
    if (bytes == 0) return PEN_OK;
    PEN_TRY(mpi_status(MPI_Isend(data, (int)bytes, MPI_BYTE, rank, TAG_DATA, world->talk, &request), what));
    return await(world, rank, what, &request);
}

static pen_status receive_blob(pen_world *world, int rank, const char *what, pen_blob *blob) {
    uint64_t length;
    MPI_Request request;
    PEN_TRY(mpi_status(MPI_Irecv(&length, sizeof length, MPI_BYTE, rank, TAG_LENGTH, world->talk, &request), what));
    PEN_TRY(await(world, rank, what, &request));
    if (length > BLOB_MAX)
        return pen_fail(PEN_INTERNAL, "rank %d sent %llu bytes while %s", rank, (unsigned long long)length, what);
    void *data = malloc(length ? length : 1);
    if (!data) return pen_fail(PEN_NO_MEMORY, "no memory for %llu bytes while %s", (unsigned long long)length, what);
    pen_status status = PEN_OK;
    if (length > 0) {
        status = mpi_status(MPI_Irecv(data, (int)length, MPI_BYTE, rank, TAG_DATA, world->talk, &request), what);
        if (status == PEN_OK) status = await(world, rank, what, &request);
    }
    if (status != PEN_OK) {
        free(data);
        return status;
    }
    *blob = (pen_blob){data, length};
    return PEN_OK;
}

pen_status pen_world_broadcast(pen_world *world, const char *what, pen_blob *blob) {
    if (world->rank != 0) return receive_blob(world, 0, what, blob);
    for (int r = 1; r < world->size; r++) PEN_TRY(send_blob(world, r, what, blob->data, blob->bytes));
    return PEN_OK;
}

pen_status pen_world_scatter(pen_world *world, const char *what, const pen_blob *blobs, pen_blob *blob) {
    if (world->rank != 0) return receive_blob(world, 0, what, blob);
    for (int r = 1; r < world->size; r++) PEN_TRY(send_blob(world, r, what, blobs[r].data, blobs[r].bytes));
    return PEN_OK;
}

pen_status pen_world_gather(pen_world *world, const char *what, const void *data, size_t bytes, pen_blob *blobs) {
    if (world->rank != 0) return send_blob(world, 0, what, data, bytes);
    memset(blobs, 0, (size_t)world->size * sizeof *blobs);
    blobs[0] = (pen_blob){malloc(bytes ? bytes : 1), bytes};
    if (!blobs[0].data) return pen_fail(PEN_NO_MEMORY, "no memory for %zu bytes while %s", bytes, what);
    if (bytes > 0) memcpy(blobs[0].data, data, bytes);
    for (int r = 1; r < world->size; r++) {
        pen_status status = receive_blob(world, r, what, &blobs[r]);
        if (status == PEN_OK) continue;
        for (int i = 0; i < r; i++) {
            free(blobs[i].data);
            blobs[i] = (pen_blob){0}; /* the caller frees them, too */
        }
        return status;
    }
    return PEN_OK;
}

/* ---- Clocks ------------------------------------------------------------------------------------------------------ */

static const char comparing_clocks[] = "comparing clocks";

static pen_status ask_clock(pen_world *world, int rank, pen_clock_probe *probe) {
    MPI_Request ask, hear;
    probe->asked_ns = pen_clock_ns();
    PEN_TRY(mpi_status(MPI_Isend(NULL, 0, MPI_BYTE, rank, TAG_CLOCK, world->talk, &ask), comparing_clocks));
    PEN_TRY(
        mpi_status(MPI_Irecv(&probe->other_ns, sizeof probe->other_ns, MPI_BYTE, rank, TAG_CLOCK, world->talk, &hear),
                   comparing_clocks));
    PEN_TRY(await(world, rank, comparing_clocks, &hear));
    probe->heard_ns = pen_clock_ns();
    return await(world, rank, comparing_clocks, &ask);
}

static pen_status tell_clock(pen_world *world) {
    MPI_Request request;
    PEN_TRY(mpi_status(MPI_Irecv(NULL, 0, MPI_BYTE, 0, TAG_CLOCK, world->talk, &request), comparing_clocks));
    PEN_TRY(await(world, 0, comparing_clocks, &request));
    int64_t now = pen_clock_ns();
    PEN_TRY(mpi_status(MPI_Isend(&now, sizeof now, MPI_BYTE, 0, TAG_CLOCK, world->talk, &request), comparing_clocks));
    return await(world, 0, comparing_clocks, &request);
}

pen_status pen_world_probe_clocks(pen_world *world, int count, pen_clock_probe *probes) {
    pen_status status = PEN_OK;
    bool may_spin = world->wait.may_spin;
    world->wait.may_spin = true; /* for the moment: what is measured is how long an answer takes */
    if (world->rank == 0) {
        for (int i = count; i < world->size * count && status == PEN_OK; i++)
            status = ask_clock(world, i / count, &probes[i]);
    } else {
        for (int i = 0; i < count && status == PEN_OK; i++) status = tell_clock(world);
    }
    world->wait.may_spin = may_spin;
    return status;
}

/* ---- Agreement -------------------------------------------------------------------------------------------------- */

typedef struct verdict {
    int32_t status;
    char text[1024];
} verdict;

static verdict verdict_of(pen_status status) {
    verdict v = {.status = (int32_t)status};
    if (status != PEN_OK) snprintf(v.text, sizeof v.text, "%s", pen_last_error());
    return v;
}

pen_status pen_world_agree(pen_world *world, const char *what, pen_status status) {
    verdict mine = verdict_of(status);
    pen_blob *blobs = world->rank == 0 ? calloc((size_t)world->size, sizeof *blobs) : NULL, common = {0};
    if (world->rank == 0) {
        if (!blobs) return pen_fail(PEN_NO_MEMORY, "no memory while %s", what);
        PEN_TRY(pen_world_gather(world, what, &mine, sizeof mine, blobs));
        for (int r = world->size - 1; r >= 0; r--) {
            const verdict *theirs = blobs[r].data;
            if (blobs[r].bytes == sizeof mine && theirs->status != PEN_OK) mine = *theirs;
            free(blobs[r].data);
        }
        free(blobs);
        common = (pen_blob){&mine, sizeof mine};
        PEN_TRY(pen_world_broadcast(world, what, &common));
    } else {
        PEN_TRY(pen_world_gather(world, what, &mine, sizeof mine, NULL));
        PEN_TRY(pen_world_broadcast(world, what, &common));
        if (common.bytes == sizeof mine) mine = *(verdict *)common.data;
        free(common.data);
    }
    mine.text[sizeof mine.text - 1] = '\0';
    return mine.status == PEN_OK ? PEN_OK : pen_fail((pen_status)mine.status, "%s", mine.text);
}

/* ---- Who is where ----------------------------------------------------------------------------------------------- */

/* A process, for others to watch. */
typedef struct process {
    int32_t pid;
    uint64_t space; /* in which the number means something */
} process;

static process this_process(void) {
    struct stat space = {0};
    if (stat("/proc/self/ns/pid", &space) != 0) return (process){0};
    return (process){.pid = getpid(), .space = space.st_ino};
}

/* What a rank tells rank 0. */
typedef struct arrival {
    pen_machine machine;
    process process;
} arrival;

/* What rank 0 tells a rank about itself and all others. */
typedef struct seat {
    pen_place place;
    pen_share share;
    process process;
} seat;

static void warn_if_bound(const pen_machine *const *machines, const pen_share *shares, int ranks) {
    int used = 0;
    for (int r = 0; r < ranks; r++) used += shares[r].own_cores ? shares[r].threads : 0;
    if (used > 0 && used * 2 <= machines[0]->cores_installed && machines[0]->quota <= 0)
        PEN_WARN("%s: the launcher binds %d rank(s) to %d of %d cores; mpirun --bind-to none gives them all",
                 machines[0]->host, ranks, used, machines[0]->cores_installed);
}

/* Rank 0: numbers the machines and divides each between its ranks. */
static pen_status seat_all(const pen_blob *blobs, int size, seat *seats) {
    const pen_machine **machines = malloc((size_t)size * sizeof(void *));
    pen_share *shares = malloc((size_t)size * sizeof *shares);
    int *members = malloc((size_t)size * sizeof *members), nodes = 0;
    bool memory = machines && shares && members;
    for (int r = 0; memory && r < size; r++) seats[r].place.node = -1;
    for (int first = 0; memory && first < size; first++) {
        if (seats[first].place.node >= 0) continue;
        int count = 0;
        for (int r = first; r < size; r++) {
            const arrival *other = blobs[r].data;
            if (other->machine.id != ((const arrival *)blobs[first].data)->machine.id) continue;
            seats[r].process = other->process;
            members[count] = r;
            machines[count++] = &other->machine;
        }
        pen_machine_divide(machines, count, shares);
        warn_if_bound(machines, shares, count);
        for (int i = 0; i < count; i++) {
            seat *s = &seats[members[i]];
            s->place = (pen_place){.rank = members[i], .stage = members[i], .node = nodes, .local_rank = i};
            memcpy(s->place.host, machines[i]->host, sizeof s->place.host);
            s->share = shares[i];
        }
        nodes++;
    }
    free(machines);
    free(shares);
    free(members);
    return memory ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory for %d ranks", size);
}

/* Opens what tells of the end of the other ranks of this machine, where their numbers are ours (in one container). */
static void watch(pen_world *world, const seat *seats) {
    const seat *self = &seats[world->rank];
    for (int r = 0; r < world->size; r++) {
        const seat *other = &seats[r];
        bool seen = other->place.node == self->place.node && other->process.space == self->process.space;
        if (r != world->rank && seen && other->process.pid > 0)
            world->ends[r].fd = (int)syscall(SYS_pidfd_open, other->process.pid, 0);
    }
}

static pen_status meet(pen_world *world) {
    static const char what[] = "meeting the other ranks";
    size_t size = (size_t)world->size;
    arrival self = {.process = this_process()};
    pen_machine_look(&self.machine);
    if (world->rank != 0) PEN_TRY(pen_world_gather(world, what, &self, sizeof self, NULL));
    pen_blob seats = {0};
    if (world->rank == 0) {
        pen_blob *blobs = calloc(size, sizeof *blobs);
        seats = (pen_blob){calloc(size, sizeof(seat)), size * sizeof(seat)};
        if (!blobs || !seats.data) return pen_fail(PEN_NO_MEMORY, "no memory for %zu ranks", size);
        PEN_TRY(pen_world_gather(world, what, &self, sizeof self, blobs));
        pen_status status = seat_all(blobs, world->size, seats.data);
        for (size_t r = 0; r < size; r++) free(blobs[r].data);
        free(blobs);
        PEN_TRY(status);
    }
    PEN_TRY(pen_world_broadcast(world, what, &seats));
    if (seats.bytes != size * sizeof(seat)) return pen_fail(PEN_INTERNAL, "rank 0 is of another build");
    const seat *all = seats.data;
    for (size_t r = 0; r < size; r++) world->places[r] = all[r].place;
    name_places(world);
    world->share = all[world->rank].share;
    watch(world, all);
    free(seats.data);
    return PEN_OK;
}
