/*
 * engine_run --pressure N: thousands of requests with far less KV than they want at the same time. Lengths are
 * log-normal; some texts begin alike, some requests give up, some are scored, some end at a stop token, and some can
 * never fit and must be refused at once. A request is a function of its number, so that it can be had twice: every
 * SAMPLE-th is first heard alone. Each must end once, in the way expected; no process may grow after the first quarter.
 */
#include "clock.h"
#include "engine_run.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SAMPLE = 47, USUAL_MOST = 200, OUTPUT_MOST = 60, TOO_MANY = 100000 };
/* A few prompts are as long as almost all KV. */
enum { LONG_EVERY = 50 * SAMPLE, PROMPT_MOST = 4000 };

/* How a request is to be, and how it went. */
typedef struct performance {
    struct pressure *all;
    int number, stop_after;   /* tokens after which it gives up; 0: never */
    pen_status expected, got; /* of submitting it */
    int count, ends;
    pen_finish finish;
    uint64_t hash;
} performance;

typedef struct pressure {
    pen_engine *engine;
    const options *o;
    int vocab, ranks;
    const int *pids;
    performance *performances; /* [o->pressure] */
    uint64_t *alone;           /* [o->pressure / SAMPLE + 1] hashes */
    int begun, live, ended;
    long *early, *late; /* [ranks] KiB resident at a quarter, and at the end */
} pressure;

/* Splitmix64. */
static uint64_t draw(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static int draw_log_normal(uint64_t *state, double median, double sigma, int most) {
    double u = ((double)(draw(state) >> 11) + 1) * 0x1p-53, v = (double)(draw(state) >> 11) * 0x1p-53;
    double length = median * exp(sigma * sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
    return length < 1 ? 1 : length > most ? most : (int)length;
}

static bool on_token(void *context, int index, int position, const pen_choice *choice) {
    performance *p = context;
    (void)index;
    struct {
        int position, token;
        float logprob;
    } said = {position, choice->token, choice->logprob};
    for (size_t i = 0; i < sizeof said; i++)
        p->hash = (p->hash ^ ((unsigned char *)&said)[i]) * 0x100000001b3u; /* FNV */
    return ++p->count != p->stop_after;
}

/* Writes the request of a number; `prompt` has room for PROMPT_MOST tokens. */
static void compose(const pressure *all, performance *p, int32_t *prompt, pen_request *request) {
    static const int32_t stop_ids[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int n = p->number;
    uint64_t state = (uint64_t)n, text = n % 3 == 0 ? (uint64_t)(n % 5) : 1000 + (uint64_t)n;
    int count = draw_log_normal(&state, 24, 1, USUAL_MOST), output = draw_log_normal(&state, 12, 0.8, OUTPUT_MOST);
    if (n % LONG_EVERY == SAMPLE) count = PROMPT_MOST;
    for (int i = 0; i < count; i++) {
        uint64_t place = text << 32 | (uint64_t)i;
        prompt[i] = (int32_t)(draw(&place) % (uint64_t)all->vocab);
    }
    if (n % 7 == 3) p->stop_after = 1 + (int)(draw(&state) % (uint64_t)output);
    *request = (pen_request){
        .prompt = prompt,
        .prompt_count = count,
        .max_tokens = output,
        .pick = {.temperature = n % 2 ? 0.8f : 0, .top_p = 0.95f, .seed = (uint64_t)n},
        .on_token = on_token,
        .context = p,
    };
    if (n % 5 == 2) add_rules(request, n);
    if (n % 4 == 1) {
        request->stop_ids = stop_ids;
        request->stop_count = sizeof stop_ids / sizeof *stop_ids;
        request->min_tokens = 0;
    }
    if (n % 11 == 5 && count > 1) {
        request->score = true;
        request->max_tokens = p->stop_after = 0;
    }
    /* One more position than all KV holds; or more than the context. */
    if (n % 40 == 7) {
        p->expected = PEN_NO_MEMORY;
        request->max_tokens = all->o->blocks * PEN_KV_BLOCK - count + 2;
    }
    if (n % 80 == 9) {
        p->expected = PEN_USAGE;
        request->max_tokens = TOO_MANY;
    }
}

static pen_status submit(pressure *all, int number, performance *p, pen_request_done *on_done) {
    int32_t prompt[PROMPT_MOST];
    pen_request request;
    *p = (performance){.all = all, .number = number, .hash = 0xcbf29ce484222325u};
    compose(all, p, prompt, &request);
    request.on_done = on_done;
    return p->got = pen_engine_submit(all->engine, &request);
}

/* ---- Together ---------------------------------------------------------------------------------------------------- */

static void note_memory(const pressure *all, long *resident_kib) {
    for (int r = 0; r < all->ranks; r++) {
        char path[64];
        long pages = -1;
        snprintf(path, sizeof path, "/proc/%d/statm", all->pids[r]);
        FILE *file = fopen(path, "r");
        if (file && fscanf(file, "%*d %ld", &pages) != 1) pages = -1;
        if (file) fclose(file);
        resident_kib[r] = pages * (sysconf(_SC_PAGESIZE) / 1024);
    }
}

static pen_request_done on_done;

static void begin_more(pressure *all) {
    while (all->live < all->o->queue && all->begun < all->o->pressure) {
        performance *p = &all->performances[all->begun];
        if (submit(all, all->begun++, p, on_done) == PEN_OK) all->live++;
    }
}

static void on_done(void *context, int index, pen_finish finish) {
    performance *p = context;
    (void)index;
    pressure *all = p->all;
    p->ends++;
    p->finish = finish;
    all->live--;
    if (++all->ended == all->o->pressure / 4) note_memory(all, all->early);
    begin_more(all);
}

/* ---- Alone, and what is expected --------------------------------------------------------------------------------- */

static void on_done_alone(void *context, int index, pen_finish finish) {
    performance *p = context;
    (void)index;
    p->finish = finish;
    p->ends++;
}

static pen_status hear_alone(pressure *all) {
    for (int n = 0; n < all->o->pressure; n += SAMPLE) {
        performance p;
        if (submit(all, n, &p, on_done_alone) == PEN_OK) PEN_TRY(pen_engine_run(all->engine));
        all->alone[n / SAMPLE] = p.hash;
    }
    return PEN_OK;
}

typedef struct outcome {
    int length, stopped, cancelled, scored, refused, wrong, heard_alone;
} outcome;

/* Whether a request went as it must; what it was is counted. */
static bool is_right(const pressure *all, const performance *p, outcome *counts) {
    performance again = {.number = p->number};
    int32_t prompt[PROMPT_MOST];
    pen_request request;
    compose(all, &again, prompt, &request);
    if (p->got != again.expected) return false;
    if (p->got != PEN_OK) {
        counts->refused++;
        return p->ends == 0 && p->count == 0;
    }
    if (p->ends != 1) return false;
    if (p->number % SAMPLE == 0) {
        counts->heard_alone++;
        if (p->hash != all->alone[p->number / SAMPLE]) return false;
    }
    if (request.score) {
        counts->scored++;
        return p->finish == PEN_FINISH_SCORED && p->count == request.prompt_count - 1;
    }
    if (p->stop_after > 0 && p->count == p->stop_after) {
        counts->cancelled++;
        return p->finish == PEN_FINISH_STOP;
    }
    if (p->count < request.max_tokens) {
        counts->stopped++;
        return p->finish == PEN_FINISH_STOP && request.stop_count > 0;
    }
    counts->length++;
    return p->finish == PEN_FINISH_LENGTH && p->count == request.max_tokens;
}

static void report(const pressure *all, double seconds) {
    outcome counts = {0};
    pen_engine_counts engine = pen_engine_count(all->engine);
    for (int n = 0; n < all->o->pressure; n++)
        if (!is_right(all, &all->performances[n], &counts)) {
            counts.wrong++;
            fprintf(stderr, "request %d: status %d, %d ends, finish %d, %d tokens\n", n, (int)all->performances[n].got,
                    all->performances[n].ends, (int)all->performances[n].finish, all->performances[n].count);
        }
    printf(
        "%d requests in %.1f s: %d to their length, %d stopped, %d cancelled, %d scored, %d refused; %d heard alone; "
        "%d wrong; %" PRIu64 " pauses, %" PRIu64 " of %" PRIu64 " prompt tokens found, %d blocks held\n",
        all->o->pressure, seconds, counts.length, counts.stopped, counts.cancelled, counts.scored, counts.refused,
        counts.heard_alone, counts.wrong, engine.pauses, engine.kv.found, engine.kv.asked, engine.blocks_held);
    for (int r = 0; r < all->ranks; r++)
        printf("rank %d resident: %ld KiB at a quarter, %ld KiB at the end\n", r, all->early[r], all->late[r]);
}

pen_status run_pressure(pen_engine *engine, const options *o, int vocab, const int *pids, int ranks) {
    size_t requests = (size_t)o->pressure, processes = (size_t)ranks;
    pressure all = {.engine = engine,
                    .o = o,
                    .vocab = vocab,
                    .ranks = ranks,
                    .pids = pids,
                    .performances = malloc(requests * sizeof *all.performances),
                    .alone = malloc((requests / SAMPLE + 1) * sizeof *all.alone),
                    .early = calloc(processes, sizeof *all.early),
                    .late = calloc(processes, sizeof *all.late)};
    pen_status status = PEN_OK;
    if (!all.performances || !all.alone || !all.early || !all.late)
        status = pen_fail(PEN_NO_MEMORY, "no memory for %d requests", o->pressure);
    if (status == PEN_OK) {
        memset(all.performances, 0xff, requests * sizeof *all.performances); /* resident from the beginning */
        status = hear_alone(&all);
    }
    if (status == PEN_OK) {
        int64_t begin = pen_clock_ns();
        begin_more(&all);
        status = pen_engine_run(engine);
        note_memory(&all, all.late);
        if (status == PEN_OK) report(&all, (double)(pen_clock_ns() - begin) * 1e-9);
    }
    free(all.performances);
    free(all.alone);
    free(all.early);
    free(all.late);
    return status == PEN_OK ? pen_engine_stop(engine) : status;
}
