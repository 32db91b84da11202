/*
 * Replicas as their front end shows them, without a command, a plan or a profile; driven by replicas.sh and
 * recovery.py.
 *
 *   front_run [--dp R] [--model SPEC] [--policy NAME] [--steal] [--preempts] [--requests N] [--waves N] [--seed S]
 *                [--sequences N] [--blocks N] [--rows R] [--max-queue N] [--queue-timeout S] [--timeout S]
 *                [--victim RANK [--and RANK] [--after TOKENS] [--stop]]
 *
 * Some made-up requests are first heard alone on rank 0's engine, each choice by itself. Then waves of N of them at
 * random: at random moments, of several choices or one, of all priorities; some are cancelled, by callbacks or between
 * turns, some are ended by their callback, some wait for too long, some find the queue full and try again. Whatever a
 * completion says must be what it said alone, bit for bit, from the beginning and without a gap; and it must end once,
 * for a reason that there is. In the end no account has anything left, and no engine holds a block.
 *
 * VICTIM is killed (or stopped) when so many tokens have come, and another one when it is twice as many; where the
 * launcher recovers nothing else may change.
 */
#include "clock.h"
#include "front.h"
#include "log.h"
#include "machinery.h"

#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PIECES = 16, CHOICES = 4, OUTPUT_MOST = 40, PROMPT_MOST = 200, PIECE_MOST = PROMPT_MOST + OUTPUT_MOST };
enum { SAID_TOP = 3 };

typedef struct options {
    const char *model, *policy;
    int replicas, requests, waves, seed, sequences, blocks, rows, max_queue, victims[2], after;
    double queue_timeout, timeout;
    bool steals, preempts, stops;
} options;

/* A request, and what each choice of it says alone. */
typedef struct piece {
    int32_t prompt[PROMPT_MOST];
    pen_request request;
    int count[CHOICES];
    pen_finish finish[CHOICES];
    pen_choice said[CHOICES][PIECE_MOST];
} piece;

/* A performance of some choices of a piece, each of which its callback ends after `stop_after` tokens. */
typedef struct play {
    struct theatre *all;
    piece *piece;
    int64_t id;
    bool cancelled;
    int first, choices;
    int count[CHOICES], stop_after[CHOICES], ends[CHOICES];
} play;

typedef struct theatre {
    const options *o;
    pen_front *front; /* NULL: a piece is heard alone */
    piece *pieces;    /* [PIECES] */
    play *plays;      /* [o->requests] of this wave */
    int begun, live, live_most;
    pid_t victims[2]; /* 0: none, or done */
    pen_status failure;
    uint64_t tokens, stopped, cancelled, expired, full, differences;
} theatre;

static options parse(int argc, char **argv) {
    options o = {.model = "synthetic:llama:layers=4,hidden=64,ffn=96,heads=4,kv_heads=2,vocab=331,type=q8_0",
                 .policy = "least-cost",
                 .replicas = 1,
                 .requests = 200,
                 .waves = 2,
                 .sequences = 4,
                 .rows = 48,
                 .max_queue = 1000,
                 .timeout = 20,
                 .victims = {-1, -1},
                 .after = 500};
    static const struct option table[] = {{"model", 1, 0, 'm'},
                                          {"dp", 1, 0, 'd'},
                                          {"policy", 1, 0, 'p'},
                                          {"steal", 0, 0, 's'},
                                          {"preempts", 0, 0, 'e'},
                                          {"waves", 1, 0, 'w'},
                                          {"requests", 1, 0, 'n'},
                                          {"seed", 1, 0, 'S'},
                                          {"sequences", 1, 0, 'q'},
                                          {"blocks", 1, 0, 'b'},
                                          {"rows", 1, 0, 'r'},
                                          {"max-queue", 1, 0, 'Q'},
                                          {"queue-timeout", 1, 0, 't'},
                                          {"victim", 1, 0, 'v'},
                                          {"after", 1, 0, 'a'},
                                          {"stop", 0, 0, 'X'},
                                          {"timeout", 1, 0, 'T'},
                                          {"and", 1, 0, 'V'},
                                          {0, 0, 0, 0}};
    for (int c; (c = getopt_long(argc, argv, "", table, NULL)) != -1;) switch (c) {
        case 'm': o.model = optarg; break;
        case 'd': o.replicas = atoi(optarg); break;
        case 'p': o.policy = optarg; break;
        case 's': o.steals = true; break;
        case 'e': o.preempts = true; break;
        case 'w': o.waves = atoi(optarg); break;
        case 'n': o.requests = atoi(optarg); break;
        case 'S': o.seed = atoi(optarg); break;
        case 'q': o.sequences = atoi(optarg); break;
        case 'b': o.blocks = atoi(optarg); break;
        case 'r': o.rows = atoi(optarg); break;
        case 'Q': o.max_queue = atoi(optarg); break;
        case 't': o.queue_timeout = atof(optarg); break;
        case 'T': o.timeout = atof(optarg); break;
        case 'v': o.victims[0] = atoi(optarg); break;
        case 'V': o.victims[1] = atoi(optarg); break;
        case 'a': o.after = atoi(optarg); break;
        case 'X': o.stops = true; break;
        default: exit(PEN_USAGE);
        }
    return o;
}

/* ---- Pieces ------------------------------------------------------------------------------------------------------ */

/* Where a choice begins to be heard: where its prompt is scored, which the first one does, with that. */
static int first_heard(const piece *p, int choice) {
    return p->request.score && choice == 0 ? 1 : p->request.prompt_count;
}

static bool equal_choices(const pen_choice *a, const pen_choice *b) {
    return a->token == b->token && a->argmax == b->argmax && memcmp(&a->logprob, &b->logprob, sizeof a->logprob) == 0 &&
           memcmp(a->top_ids, b->top_ids, SAID_TOP * sizeof a->top_ids[0]) == 0 &&
           memcmp(a->top_logprobs, b->top_logprobs, SAID_TOP * sizeof a->top_logprobs[0]) == 0;
}

static pen_request_token on_token;
static pen_request_done on_done;

/* Prompts of few texts and many lengths: beginnings are shared. */
static void make_piece(piece *made, int number, int vocab) {
    int count = 10 + number * 11;
    for (int i = 0; i < count; i++)
        made->prompt[i] = (int32_t)(((unsigned)(number % 3) * 7919u + (unsigned)i * 104729u) % (unsigned)vocab);
    made->request = (pen_request){.prompt = made->prompt,
                                  .prompt_count = count,
                                  .max_tokens = number == 7 ? 0 : 5 + number * 7 % (OUTPUT_MOST - 5),
                                  .pick = {.temperature = number % 2 ? 0.8f : 0,
                                           .top_p = 0.95f,
                                           .seed = (uint64_t)number,
                                           .top_logprobs = SAID_TOP},
                                  .on_token = on_token,
                                  .on_done = on_done,
                                  .score = number % 4 == 3};
    add_rules(&made->request, number);
    made->request.min_tokens /= 2;
}

/* A piece of no tokens has one choice. */
static int choices_of(const piece *p) {
    return p->request.max_tokens > 0 ? CHOICES : 1;
}

static pen_status hear_alone(theatre *all, pen_engine *engine) {
    for (int i = 0; i < PIECES; i++) {
        piece *heard = &all->pieces[i];
        for (int c = 0; c < choices_of(heard); c++) {
            play p = {.all = all, .piece = heard, .first = c, .choices = 1};
            pen_request request = heard->request;
            request.context = &p;
            request.pick.choice = c;
            request.score = request.score && c == 0;
            PEN_TRY(pen_engine_submit(engine, &request, NULL));
            PEN_TRY(pen_engine_run(engine));
        }
    }
    return PEN_OK;
}

/* ---- Plays ------------------------------------------------------------------------------------------------------- */

/* False: there is no room now. */
static bool begin_play(theatre *all) {
    play *p = &all->plays[all->begun];
    *p = (play){.all = all, .piece = &all->pieces[rand() % PIECES]};
    int most = choices_of(p->piece);
    p->first = rand() % most;
    p->choices = rand() % 2 ? 1 : 1 + rand() % (most - p->first);
    for (int c = 0; c < CHOICES; c++) p->stop_after[c] = rand() % 4 == 0 ? 1 + rand() % OUTPUT_MOST : PIECE_MOST + 1;
    pen_request request = p->piece->request;
    request.context = p;
    request.pick.choice = p->first;
    request.choices = p->choices;
    request.score = request.score && p->first == 0;
    request.priority = rand() % 3;
    bool has_room = pen_front_has_room(all->front);
    pen_status status = pen_front_submit(all->front, &request, &p->id);
    all->differences += has_room ? status == PEN_QUEUE_FULL : status == PEN_OK;
    if (status == PEN_OK) {
        all->begun++;
        all->live++;
        return true;
    }
    if (status == PEN_QUEUE_FULL)
        all->full++;
    else if (all->failure == PEN_OK)
        all->failure = status;
    return false;
}

static void begin_some(theatre *all, int most) {
    while (most-- > 0 && all->begun < all->o->requests && all->live < all->live_most)
        if (!begin_play(all)) return;
}

/* Now and then somebody is cancelled, who may have ended long ago. */
static void cancel_some(theatre *all, int seldom) {
    if (all->begun == 0 || rand() % seldom) return;
    int recent = all->begun < 50 ? all->begun : 50;
    play *p = &all->plays[all->begun - 1 - rand() % recent];
    p->cancelled = true;
    pen_front_cancel(all->front, p->id);
}

static void strike(theatre *all) {
    for (int i = 0; i < 2; i++) {
        if (all->victims[i] == 0 || all->tokens < (uint64_t)(all->o->after * (i + 1))) continue;
        kill(all->victims[i], all->o->stops ? SIGSTOP : SIGKILL);
        all->victims[i] = 0;
    }
}

static bool on_token(void *context, int index, int position, const pen_choice *choice) {
    play *p = context;
    theatre *all = p->all;
    int at = position - first_heard(p->piece, index);
    if (!all->front) {
        p->piece->said[index][at] = *choice;
        p->piece->count[index]++;
        return true;
    }
    bool may = index >= p->first && index < p->first + p->choices && !p->cancelled && p->ends[index] == 0;
    if (!may || at != p->count[index] || !equal_choices(&p->piece->said[index][at], choice)) all->differences++;
    all->tokens++;
    strike(all);
    if (rand() % 8 == 0) begin_some(all, 1);
    cancel_some(all, 300);
    return ++p->count[index] < p->stop_after[index];
}

/* Whether a completion may end like this. */
static bool may_end(const play *p, int index, pen_finish finish) {
    int count = p->count[index];
    if (finish == PEN_FINISH_STOP && count == p->stop_after[index]) return true;
    if (finish == PEN_FINISH_EXPIRED) return p->all->o->queue_timeout > 0 && count == 0 && !p->cancelled;
    if (p->cancelled || finish == PEN_FINISH_CANCELLED) return p->cancelled && finish == PEN_FINISH_CANCELLED;
    return count == p->piece->count[index] && finish == p->piece->finish[index];
}

static void on_done(void *context, int index, pen_finish finish) {
    play *p = context;
    theatre *all = p->all;
    if (!all->front) {
        p->piece->finish[index] = finish;
        return;
    }
    if (!may_end(p, index, finish) || p->ends[index]++ > 0) all->differences++;
    all->stopped += finish == PEN_FINISH_STOP;
    all->cancelled += finish == PEN_FINISH_CANCELLED;
    all->expired += finish == PEN_FINISH_EXPIRED;
    int ended = 0;
    for (int c = 0; c < CHOICES; c++) ended += p->ends[c];
    all->live -= ended == p->choices;
    begin_some(all, 2);
    if (rand() % 4 == 0) pen_front_wake(all->front);
}

/* ---- Waves ------------------------------------------------------------------------------------------------------- */

static pen_status play_wave(theatre *all, pen_metrics *metrics) {
    static const int lives[] = {3, 24, 1000};
    const options *o = all->o;
    all->begun = all->live = 0;
    all->live_most = lives[rand() % 3];
    while (all->begun < o->requests || pen_front_open(all->front) > 0) {
        begin_some(all, 1 + rand() % 20);
        PEN_TRY(pen_front_run_until(all->front, pen_clock_ns() + rand() % 2000000));
        PEN_TRY(all->failure);
        cancel_some(all, 3);
    }
    for (int k = 0; k < o->requests; k++)
        for (int c = 0; c < CHOICES; c++) {
            const play *p = &all->plays[k];
            all->differences += p->ends[c] != (c >= p->first && c < p->first + p->choices);
        }
    PEN_TRY(pen_front_lap(all->front));
    PEN_TRY(pen_front_metrics(all->front, metrics));
    for (int r = 0; r < o->replicas; r++) {
        pen_replica_state state = pen_front_replica(all->front, r);
        bool is_settled =
            state.account.requests == 0 && state.account.waiting == 0 && state.account.outstanding_ms == 0;
        bool worked = metrics[r * pen_front_stages(all->front)].steps > 0;
        if (!is_settled || (o->replicas == 1 && !worked)) all->differences++;
    }
    return PEN_OK;
}

static pen_status play_waves(theatre *all) {
    int stages = pen_front_stages(all->front) * all->o->replicas;
    pen_metrics *metrics = calloc((size_t)stages, sizeof *metrics);
    pen_status status = metrics ? PEN_OK : pen_fail(PEN_NO_MEMORY, "no memory for %d stages", stages);
    srand((unsigned)all->o->seed + 1);
    for (int wave = 0; wave < all->o->waves && status == PEN_OK; wave++) status = play_wave(all, metrics);
    free(metrics);
    return status;
}

static pen_status make_front(pen_world *world, const options *o, pen_mail *mail, pen_replica *local,
                             pen_front **front) {
    pen_token_cost *costs = calloc((size_t)o->replicas, sizeof *costs);
    int *slots = calloc((size_t)o->replicas, sizeof *slots);
    if (!costs || !slots) return pen_fail(PEN_NO_MEMORY, "no memory for %d replicas", o->replicas);
    for (int r = 0; r < o->replicas; r++) {
        costs[r] = (pen_token_cost){0.01, 0.1};
        slots[r] = o->sequences;
    }
    pen_front_options want = {.replicas = o->replicas,
                              .stages = pen_world_stages(world),
                              .policy = o->policy,
                              .max_queue = o->max_queue,
                              .queue_timeout_s = o->queue_timeout,
                              .patience_s = 1.5 * o->timeout,
                              .costs = costs,
                              .slots = slots};
    pen_status status = pen_front_create(world, mail, local, &want, front);
    free(costs);
    free(slots);
    return status;
}

static void report(const theatre *all) {
    const options *o = all->o;
    uint64_t stolen = 0;
    for (int r = 0; r < o->replicas; r++) stolen += pen_front_replica(all->front, r).account.stolen;
    printf("%d requests, %" PRIu64 " tokens, %" PRIu64 " differences, %" PRIu64 " stopped, %" PRIu64
           " cancelled, %" PRIu64 " expired, %" PRIu64 " times full, %" PRIu64 " stolen, %d lost\n",
           o->waves * o->requests, all->tokens, all->differences, all->stopped, all->cancelled, all->expired, all->full,
           stolen, pen_front_lost(all->front));
}

static pen_status lead(pen_world *world, const options *o, pen_mail *mail, pen_replica *local, const int *pids,
                       int *lost) {
    theatre all = {.o = o};
    for (int i = 0; i < 2; i++) all.victims[i] = o->victims[i] >= 0 ? (pid_t)pids[o->victims[i]] : 0;
    all.pieces = calloc(PIECES, sizeof *all.pieces);
    all.plays = calloc((size_t)o->requests, sizeof *all.plays);
    if (!all.pieces || !all.plays) return pen_fail(PEN_NO_MEMORY, "no memory for %d requests", o->requests);
    for (int i = 0; i < PIECES; i++) make_piece(&all.pieces[i], i, 331);
    pen_status status = hear_alone(&all, pen_replica_engine(local));
    pen_front *front = NULL;
    if (status == PEN_OK) status = make_front(world, o, mail, local, &front);
    all.front = front;
    if (status == PEN_OK) status = play_waves(&all);
    if (status == PEN_OK) status = pen_front_stop(front);
    if (status == PEN_OK) report(&all);
    if (status == PEN_OK) *lost = pen_front_lost(front);
    pen_front_destroy(front);
    free(all.pieces);
    free(all.plays);
    return status;
}

/* ---- The machinery ----------------------------------------------------------------------------------------------- */

static pen_status take_part(pen_world *world, const options *o, pen_engine *engine, const int *pids, int *lost) {
    if (pen_world_stage(world) > 0) return pen_engine_serve(engine);
    double *ms = calloc((size_t)pen_world_stages(world), sizeof *ms);
    pen_replica_options want = {.self = pen_world_replica(world),
                                .replicas = o->replicas,
                                .stages = pen_world_stages(world),
                                .steals = o->steals,
                                .preempts = o->preempts,
                                .cost = {0.01, 0.1},
                                .busy_share = 1,
                                .measured_ms = ms};
    pen_mail *mail = NULL;
    pen_replica *replica = NULL;
    pen_status status = ms ? pen_mail_create(world, &mail) : pen_fail(PEN_NO_MEMORY, "no memory for a replica");
    if (status == PEN_OK) status = pen_replica_create(world, mail, engine, &want, &replica);
    free(ms);
    if (status == PEN_OK && pen_world_rank(world) > 0) {
        status = pen_replica_serve(replica);
        if (status != PEN_OK) pen_replica_give_up(replica);
    } else if (status == PEN_OK) {
        status = lead(world, o, mail, replica, pids, lost);
    }
    pen_replica_destroy(replica);
    pen_mail_destroy(mail);
    return status;
}

/* What the leaders' engines have to say when all is done. */
static pen_status report_engines(pen_world *world, const pen_engine *engine) {
    pen_engine_counts own = {0}, sum = {0};
    if (pen_world_stage(world) == 0) own = pen_engine_count(engine);
    pen_blob *blobs = calloc((size_t)pen_world_size(world), sizeof *blobs);
    if (!blobs) return pen_fail(PEN_NO_MEMORY, "no memory for %d ranks", pen_world_size(world));
    bool first = pen_world_rank(world) == 0;
    pen_status status = pen_world_gather(world, "counting", &own, sizeof own, blobs);
    for (int r = 0; first && status == PEN_OK && r < pen_world_size(world); r++) {
        pen_engine_counts counts;
        memcpy(&counts, blobs[r].data, sizeof counts);
        free(blobs[r].data);
        sum.pauses += counts.pauses;
        sum.preemptions += counts.preemptions;
        sum.blocks_held += counts.blocks_held;
    }
    free(blobs);
    if (first && status == PEN_OK)
        printf("%" PRIu64 " pauses, %" PRIu64 " preemptions, %d blocks held\n", sum.pauses, sum.preemptions,
               sum.blocks_held);
    return status;
}

int main(int argc, char **argv) {
    options o = parse(argc, argv);
    pen_world *world = NULL;
    machinery m = {0};
    pen_status status = pen_world_create(&world);
    if (status == PEN_OK) status = pen_world_arrange(world, o.replicas, pen_world_size(world) / o.replicas);
    if (status != PEN_OK) pen_world_abort(world, status);
    pen_log_init(PEN_LOG_WARN, pen_world_rank(world));
    pen_world_set_threads(world, 1);
    machinery_spec spec = {.model = o.model,
                           .rows = o.rows,
                           .context = PIECE_MOST,
                           .sequences = o.sequences,
                           .blocks = o.blocks,
                           .overhead = 8,
                           .timeout = o.timeout,
                           .preempts = o.preempts};
    status = pen_world_agree(world, "loading", load_machinery(world, &spec, &m));
    int *pids = NULL, lost = 0;
    if (status == PEN_OK) status = gather_pids(world, &pids);
    bool together = status != PEN_PEER_LOST;
    if (status == PEN_OK) {
        together = false;
        status = take_part(world, &o, m.engine, pids, &lost);
        if (status == PEN_OK && lost > 0) pen_world_finish(world);
        if (status == PEN_OK) status = report_engines(world, m.engine);
    }
    if (status != PEN_OK && !together && pen_world_replica(world) > 0) pen_world_drop_out(world, status);
    if (status != PEN_OK && !together) pen_world_abort(world, status);
    if (status != PEN_OK && pen_world_rank(world) == 0) fprintf(stderr, "penstock: %s\n", pen_last_error());
    free(pids);
    unload_machinery(&m);
    pen_world_destroy(world);
    return (int)status;
}
