/*
 * A small driver of world, links, stages and engine for the tests under mpirun: no tokeniser, no plan, no profile.
 * Splits a model's units evenly, runs some made-up requests and prints what came out, bit for bit, on stdout.
 *
 *   engine_run [--model SPEC] [--requests N] [--prompt P] [--output G] [--rows R] [--overhead X] [--threads T]
 *              [--timeout S] [--temperature X] [--exact] [--score] [--sequences N] [--choices N [--apart]]
 *              [--penalties] [--measure] [--announce] [--debug] [--times] [--blocks N] [--in-flight M]
 *              [--schedules N [--seed S]] [--pressure N [--queue M]] [--preempts]
 *
 * With --apart every choice is a request of its own.
 *
 * With --schedules it runs a dozen requests, each choice by itself, and then N random mixtures of them: some begin
 * while others run, some want several choices, some give up, some are cancelled, some go on where they were alone after
 * some tokens, prompts begin alike, KV may be short, priorities differ. Whatever a choice says must be what it said
 * alone, and it must end once.
 * --pressure is in engine_pressure.c.
 */
#include "engine_run.h"
#include "clock.h"
#include "log.h"
#include "machinery.h"

#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct output {
    int number, choice;
    int count;
    int64_t first_ns, last_ns;
    uint64_t hash; /* FNV over positions, ids and log-probabilities */
    int32_t ids[16];
    int finish;
} output;

static void hash_bytes(uint64_t *hash, const void *data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) *hash = (*hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
}

/* The context is the request's first; there the choices' indices begin with its number. */
static output *output_of(void *context, int index) {
    output *first = context;
    return first + (index - first->number - first->choice);
}

static bool on_token(void *context, int index, int position, const pen_choice *choice) {
    output *out = output_of(context, index);
    if (out->count < 16) out->ids[out->count] = choice->token;
    if (out->count++ == 0) out->first_ns = pen_clock_ns();
    out->last_ns = pen_clock_ns();
    hash_bytes(&out->hash, &position, sizeof position);
    hash_bytes(&out->hash, &choice->token, sizeof choice->token);
    hash_bytes(&out->hash, &choice->logprob, sizeof choice->logprob);
    hash_bytes(&out->hash, choice->top_ids, 3 * sizeof choice->top_ids[0]);
    hash_bytes(&out->hash, choice->top_logprobs, 3 * sizeof choice->top_logprobs[0]);
    return true;
}

static void on_done(void *context, int index, pen_finish finish) {
    output_of(context, index)->finish = (int)finish;
}

static options parse(int argc, char **argv) {
    options o = {.model = "synthetic:llama:layers=6,hidden=128,ffn=256,heads=4,kv_heads=2,vocab=512,type=q4_0",
                 .requests = 3,
                 .choices = 1,
                 .prompt = 100,
                 .output = 20,
                 .rows = 64,
                 .sequences = 2, /* fewer than requests: slots and blocks are used again */
                 .overhead = 8,
                 .queue = 1000,
                 .timeout = 30};
    static const struct option table[] = {
        {"model", 1, 0, 'm'},     {"requests", 1, 0, 'n'},  {"prompt", 1, 0, 'p'},
        {"output", 1, 0, 'g'},    {"rows", 1, 0, 'r'},      {"overhead", 1, 0, 'o'},
        {"threads", 1, 0, 't'},   {"timeout", 1, 0, 's'},   {"temperature", 1, 0, 'T'},
        {"choices", 1, 0, 'C'},   {"apart", 0, 0, 'A'},     {"exact", 0, 0, 'e'},
        {"score", 0, 0, 'c'},     {"sequences", 1, 0, 'q'}, {"measure", 0, 0, 'M'},
        {"announce", 0, 0, 'a'},  {"times", 0, 0, 'S'},     {"blocks", 1, 0, 'b'},
        {"in-flight", 1, 0, 'f'}, {"schedules", 1, 0, 'N'}, {"seed", 1, 0, 'd'},
        {"penalties", 0, 0, 'P'}, {"debug", 0, 0, 'D'},     {"pressure", 1, 0, 'R'},
        {"queue", 1, 0, 'Q'},     {"preempts", 0, 0, 'E'},  {0, 0, 0, 0}};
    for (int c; (c = getopt_long(argc, argv, "", table, NULL)) != -1;) switch (c) {
        case 'm': o.model = optarg; break;
        case 'n': o.requests = atoi(optarg); break;
        case 'p': o.prompt = atoi(optarg); break;
        case 'g': o.output = atoi(optarg); break;
        case 'r': o.rows = atoi(optarg); break;
        case 'o': o.overhead = atof(optarg); break;
        case 't': o.threads = atoi(optarg); break;
        case 'q': o.sequences = atoi(optarg); break;
        case 's': o.timeout = atof(optarg); break;
        case 'T': o.temperature = atof(optarg); break;
        case 'C': o.choices = atoi(optarg); break;
        case 'A': o.apart = true; break;
        case 'e': o.exact = true; break;
        case 'c': o.score = true; break;
        case 'P': o.penalties = true; break;
        case 'M': o.measure = true; break;
        case 'a': o.announce = true; break;
        case 'D': o.debug = true; break;
        case 'S': o.times = true; break;
        case 'b': o.blocks = atoi(optarg); break;
        case 'f': o.in_flight = atoi(optarg); break;
        case 'N': o.schedules = atoi(optarg); break;
        case 'd': o.seed = atoi(optarg); break;
        case 'R': o.pressure = atoi(optarg); break;
        case 'Q': o.queue = atoi(optarg); break;
        case 'E': o.preempts = true; break;
        default: exit(PEN_USAGE);
        }
    return o;
}

/* For tests that kill or stop a rank at a point of their choice. */
static void announce(const options *o, const pen_world *world, const char *phase) {
    if (!o->announce) return;
    char line[96];
    int length = snprintf(line, sizeof line, "rank %d pid %d %s\n", pen_world_rank(world), (int)getpid(), phase);
    if (write(STDOUT_FILENO, line, (size_t)length) < 0) exit(PEN_IO);
}

static int64_t submit(pen_engine *engine, const pen_request *request) {
    int64_t number;
    if (pen_engine_submit(engine, request, &number) == PEN_OK) return number;
    fprintf(stderr, "penstock: %s\n", pen_last_error());
    exit(PEN_USAGE);
}

static void submit_all(pen_engine *engine, const options *o, int vocab, output *outputs) {
    int32_t *prompt = malloc((size_t)(o->prompt + 7 * o->requests) * sizeof *prompt);
    for (int r = 0; r < o->requests; r++) {
        int count = o->prompt + 7 * r; /* lengths that differ, so that phases mix */
        uint64_t state = 88172645463325252u + (uint64_t)r;
        for (int i = 0; i < count; i++) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            prompt[i] = (int32_t)(state % (uint64_t)vocab);
        }
        output *first = &outputs[r * o->choices];
        for (int c = 0; c < o->choices; c++)
            first[c] = (output){.number = r, .choice = c, .hash = 0xcbf29ce484222325u, .finish = -1};
        pen_request request = {
            .prompt = prompt,
            .prompt_count = count,
            .max_tokens = o->score ? 0 : o->output,
            .score = o->score,
            .pick = {.temperature = (float)o->temperature, .top_p = 1, .seed = 42, .choice = r, .top_logprobs = 3},
            .on_token = on_token,
            .on_done = on_done,
            .context = first};
        if (o->penalties) add_rules(&request, r);
        if (!o->apart) request.choices = o->choices;
        submit(engine, &request);
        while (o->apart && ++request.pick.choice < r + o->choices) {
            request.context = ++first;
            submit(engine, &request);
        }
    }
    free(prompt);
}

static void print_output(const options *o, const output *out, int64_t begin_ns) {
    printf("request %d", out->number);
    if (o->choices > 1) printf(" choice %d", out->choice);
    printf(": finish %d, %d tokens, hash %016" PRIx64 ":", out->finish, out->count, out->hash);
    for (int i = 0; i < out->count && i < 16; i++) printf(" %d", out->ids[i]);
    printf("\n");
    if (o->times)
        printf("  first after %.1f ms, then %.3f ms a token\n", (double)(out->first_ns - begin_ns) * 1e-6,
               (double)(out->last_ns - out->first_ns) * 1e-6 / (out->count - 1));
}

static pen_status lead(pen_engine *engine, const options *o, int stages, int vocab) {
    int output_count = o->requests * o->choices;
    output *outputs = calloc((size_t)output_count, sizeof *outputs);
    pen_metrics *metrics = calloc((size_t)stages, sizeof *metrics);
    double *ms = calloc((size_t)stages, sizeof *ms);
    int64_t begin = pen_clock_ns();
    submit_all(engine, o, vocab, outputs);
    PEN_TRY(pen_engine_run(engine));
    for (int i = 0; i < output_count; i++) print_output(o, &outputs[i], begin);
    PEN_TRY(pen_engine_lap(engine));
    PEN_TRY(pen_engine_metrics(engine, metrics));
    for (int s = 0; o->times && s < stages; s++)
        printf("stage %d: busy %.3f (cpu %.3f) receive %.3f send %.3f idle %.3f s, %" PRIu64 " steps, %" PRIu64
               " rows\n",
               s, metrics[s].seconds[PEN_BUSY], metrics[s].busy_cpu_s, metrics[s].seconds[PEN_WAIT_RECEIVE],
               metrics[s].seconds[PEN_WAIT_SEND], metrics[s].seconds[PEN_IDLE], metrics[s].steps, metrics[s].rows);
    if (o->times) {
        pen_efficiency e = pen_metrics_efficiency(metrics, stages);
        printf("split %.3f schedule %.3f pipeline %.3f\n", e.split, e.schedule, e.pipeline);
    }
    if (o->measure) {
        pen_engine_shape shape = {.decode_rows = 2, .prompt_rows = o->rows - 2, .position = 30, .logit_rows = 2};
        PEN_TRY(pen_engine_measure(engine, &shape, 10, INFINITY, ms));
        for (int s = 0; s < stages; s++) printf("measured stage %d: %s\n", s, ms[s] > 0 ? "yes" : "no");
        for (int s = 0; o->times && s < stages; s++) printf("  %.3f ms\n", ms[s]);
    }
    free(outputs);
    free(metrics);
    free(ms);
    return pen_engine_stop(engine);
}

/* ---- Random schedules -------------------------------------------------------------------------------------------- */

enum { PIECES = 12, CHOICES = 4, OUTPUT_MOST = 40, PROMPT_MOST = 160, PIECE_MOST = PROMPT_MOST + OUTPUT_MOST };

/* A request, and what each choice of it says when nobody else is there. */
typedef struct piece {
    int32_t prompt[PROMPT_MOST];
    pen_request request;
    int count[CHOICES];
    pen_choice said[CHOICES][PIECE_MOST];
} piece;

/* A performance of some choices of a piece, each of which ends after `stop_after` tokens. */
typedef struct play {
    struct stage_play *all;
    piece *piece;
    int64_t number;
    bool cancelled;
    int first, choices, given;
    int count[CHOICES], stop_after[CHOICES], ends[CHOICES];
} play;

typedef struct stage_play {
    pen_engine *engine;
    piece *pieces;
    play plays[4096]; /* of one schedule */
    int begun, wanted;
    uint64_t tokens, given_up, cancelled, continued, differences;
    bool recording;
} stage_play;

/* Where a piece's first choice begins to be heard: where its prompt is scored, with that. */
static int first_heard(const piece *p, int choice) {
    return p->request.score && choice == 0 ? 1 : p->request.prompt_count;
}

/* Goes on behind some of the tokens that the choice has said alone. */
static void continue_play(play *p, pen_request *request, int32_t *tokens) {
    const piece *said = p->piece;
    int prompt = request->prompt_count, skipped = prompt - first_heard(said, p->first);
    int most = said->count[p->first] - skipped;
    if (most > request->max_tokens - 1) most = request->max_tokens - 1;
    if (most < 1) return;
    request->given = p->given = 1 + rand() % most;
    memcpy(tokens, request->prompt, (size_t)prompt * sizeof *tokens);
    for (int i = 0; i < p->given; i++) tokens[prompt + i] = said->said[p->first][skipped + i].token;
    request->prompt = tokens;
    p->all->continued++;
}

static void begin_play(stage_play *all) {
    play *p = &all->plays[all->begun++];
    *p = (play){.all = all, .piece = &all->pieces[rand() % PIECES], .first = rand() % CHOICES};
    for (int c = 0; c < CHOICES; c++)
        p->stop_after[c] = rand() % 4 == 0 ? 1 + rand() % p->piece->request.max_tokens : PIECE_MOST + 1;
    pen_request request = p->piece->request;
    int32_t tokens[PIECE_MOST];
    request.context = p;
    request.pick.choice = p->first;
    request.choices = p->choices = 1 + rand() % (CHOICES - p->first);
    request.score = request.score && p->first == 0;
    request.priority = rand() % 3;
    if (p->choices == 1 && rand() % 2) continue_play(p, &request, tokens);
    p->number = submit(all->engine, &request);
}

static bool equal_choices(const pen_choice *a, const pen_choice *b) {
    return a->token == b->token && memcmp(&a->logprob, &b->logprob, sizeof a->logprob) == 0 &&
           memcmp(a->top_ids, b->top_ids, 3 * sizeof a->top_ids[0]) == 0 &&
           memcmp(a->top_logprobs, b->top_logprobs, 3 * sizeof a->top_logprobs[0]) == 0;
}

/* Now and then somebody is cancelled, who may have ended long ago. All its choices have ended then. */
static void cancel_some(stage_play *all, int seldom) {
    if (rand() % seldom) return;
    play *p = &all->plays[rand() % all->begun];
    p->cancelled = true;
    pen_engine_cancel(all->engine, p->number);
    for (int c = p->first; c < p->first + p->choices; c++) all->differences += p->ends[c] != 1;
}

static bool play_token(void *context, int index, int position, const pen_choice *choice) {
    play *p = context;
    stage_play *all = p->all;
    pen_choice *said = &p->piece->said[index][position - first_heard(p->piece, index)];
    int prompt = p->piece->request.prompt_count;
    bool is_given = position >= prompt && position < prompt + p->given;
    if (all->recording)
        *said = *choice;
    else if (!equal_choices(said, choice) || is_given || p->ends[index] > 0)
        all->differences++;
    all->tokens++;
    if (!all->recording && all->begun < all->wanted && rand() % 8 == 0) begin_play(all);
    bool goes_on = ++p->count[index] < p->stop_after[index];
    all->given_up += !goes_on;
    if (!all->recording) cancel_some(all, 300);
    return goes_on;
}

static void play_done(void *context, int index, pen_finish finish) {
    play *p = context;
    stage_play *all = p->all;
    int count = p->count[index];
    bool whole = count + p->given == p->piece->count[index], cut = count == p->stop_after[index];
    p->ends[index]++;
    if (all->recording) {
        p->piece->count[index] = count;
        return;
    }
    all->cancelled += finish == PEN_FINISH_CANCELLED;
    all->differences += finish == PEN_FINISH_CANCELLED ? !p->cancelled : !whole && !cut;
    if (all->begun < all->wanted) begin_play(all);
}

/* Prompts of few texts and many lengths: beginnings are shared. */
static void make_piece(piece *made, int number, int vocab, const options *o) {
    int count = 20 + number * 11;
    for (int i = 0; i < count; i++)
        made->prompt[i] = (int32_t)(((unsigned)(number % 3) * 7919u + (unsigned)i * 104729u) % (unsigned)vocab);
    made->request = (pen_request){.prompt = made->prompt,
                                  .prompt_count = count,
                                  .max_tokens = 5 + number * 3 % (OUTPUT_MOST - 5),
                                  .pick = {.temperature = number % 2 ? 0.8f : (float)o->temperature,
                                           .top_p = 0.95f,
                                           .seed = (uint64_t)number,
                                           .top_logprobs = 3},
                                  .on_token = play_token,
                                  .score = number % 4 == 3, /* its prompt is heard, too */
                                  .on_done = play_done};
    add_rules(&made->request, number);
    made->request.min_tokens /= 2;
}

static pen_status record(stage_play *all, piece *made) {
    play *p = &all->plays[0];
    for (int c = 0; c < CHOICES; c++) {
        *p = (play){.all = all, .piece = made};
        p->stop_after[c] = PIECE_MOST + 1;
        pen_request request = made->request;
        request.context = p;
        request.pick.choice = c;
        request.score = request.score && c == 0;
        submit(all->engine, &request);
        PEN_TRY(pen_engine_run(all->engine));
    }
    return PEN_OK;
}

/* pen_engine_run, and somebody who cancels between turns. */
static pen_status run_with_cancels(stage_play *all) {
    while (pen_engine_has_work(all->engine)) {
        bool moved = false;
        PEN_TRY(pen_engine_turn(all->engine, &moved));
        if (moved)
            cancel_some(all, 100);
        else
            PEN_TRY(pen_engine_rest(all->engine, false));
    }
    return PEN_OK;
}

static pen_status play_schedules(pen_engine *engine, const options *o, int vocab) {
    stage_play *all = calloc(1, sizeof *all);
    all->engine = engine;
    all->pieces = calloc(PIECES, sizeof *all->pieces);
    all->recording = true;
    for (int i = 0; i < PIECES; i++) {
        make_piece(&all->pieces[i], i, vocab, o);
        PEN_TRY(record(all, &all->pieces[i]));
    }
    all->recording = false;
    srand((unsigned)o->seed + 1);
    for (int i = 0; i < o->schedules; i++) {
        all->begun = 0;
        all->wanted = 1 + rand() % (2 * o->sequences);
        for (int now = 1 + rand() % all->wanted; all->begun < now;) begin_play(all);
        PEN_TRY(run_with_cancels(all));
        for (int k = 0; k < all->begun; k++)
            for (int c = 0; c < CHOICES; c++) {
                const play *p = &all->plays[k];
                all->differences += p->ends[c] != (c >= p->first && c < p->first + p->choices);
            }
    }
    pen_engine_counts counts = pen_engine_count(engine);
    printf("%d schedules, %" PRIu64 " tokens, %" PRIu64 " differences, %" PRIu64 " given up, %" PRIu64
           " cancelled, %" PRIu64 " continued, %" PRIu64 " pauses, %" PRIu64 " preemptions, %" PRIu64 " of %" PRIu64
           " prompt tokens found, %" PRIu64 " forks, %" PRIu64 " blocks copied, %d blocks held\n",
           o->schedules, all->tokens, all->differences, all->given_up, all->cancelled, all->continued, counts.pauses,
           counts.preemptions, counts.kv.found, counts.kv.asked, counts.kv.forks, counts.kv.copied, counts.blocks_held);
    free(all->pieces);
    free(all);
    return pen_engine_stop(engine);
}

/* ---- The machinery ----------------------------------------------------------------------------------------------- */

int main(int argc, char **argv) {
    options o = parse(argc, argv);
    pen_world *world = NULL;
    machinery m = {0};
    pen_status status = pen_world_create(&world);
    if (status == PEN_OK) status = pen_world_arrange(world, 1, pen_world_size(world));
    if (status != PEN_OK) pen_world_abort(world, status);
    pen_log_init(o.debug ? PEN_LOG_DEBUG : PEN_LOG_WARN, pen_world_rank(world));
    pen_world_set_threads(world, o.threads);
    pen_world_set_patience(world, o.timeout);
    announce(&o, world, "loading");
    machinery_spec spec = {.model = o.model,
                           .rows = o.rows,
                           .context = o.prompt + 7 * o.requests + o.output,
                           .sequences = o.sequences,
                           .blocks = o.blocks,
                           .in_flight = o.in_flight,
                           .overhead = o.overhead,
                           .timeout = o.timeout,
                           .exact = o.exact,
                           .preempts = o.preempts};
    status = pen_world_agree(world, "loading", load_machinery(world, &spec, &m));
    int *pids = NULL;
    if (status == PEN_OK) status = gather_pids(world, &pids);
    bool together = status != PEN_PEER_LOST;
    if (status == PEN_OK) {
        announce(&o, world, "running");
        together = false;
        bool leads = pen_world_rank(world) == 0;
        int vocab = pen_model_hparams(m.model)->vocab;
        status = !leads        ? pen_engine_serve(m.engine)
                 : o.schedules ? play_schedules(m.engine, &o, vocab)
                 : o.pressure  ? run_pressure(m.engine, &o, vocab, pids, pen_world_size(world))
                               : lead(m.engine, &o, pen_world_stages(world), vocab);
    }
    if (status != PEN_OK && !together) pen_world_abort(world, status);
    if (status != PEN_OK && pen_world_rank(world) == 0) fprintf(stderr, "penstock: %s\n", pen_last_error());
    free(pids);
    unload_machinery(&m);
    pen_world_destroy(world);
    return (int)status;
}
