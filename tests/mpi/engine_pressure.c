/*
 * engine_run --pressure N: thousands of requests with far less KV than they want at the same time. Lengths are
 * log-normal; some texts begin alike, some requests give up, some are scored, some end at a stop token, some want
 * several completions, and some can never fit and must be refused at once. A request is a function of its number, so
 * that it can be had twice: every SAMPLE-th is first heard alone. Each completion must end once, in the way expected;
 * no process may grow after the first quarter.
 */
#include "clock.h"
#include "engine_run.h"
#include "machinery.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SAMPLE = 47, USUAL_MOST = 200, OUTPUT_MOST = 60, TOO_MANY = 100000 };
/* Where there is KV for them, a few prompts are long: they take nearly all of it. */
enum { CHOICES_MOST = 3, LONG_EVERY = 10 * SAMPLE, PROMPT_MOST = 4000 };

/* How a completion went. */
typedef struct completion {
    int count, ends;
    pen_finish finish;
    uint64_t hash;
} completion;

/* How a request is to be, and how it went. */
typedef struct performance {
    struct pressure *all;
    int number, stop_after;   /* tokens after which each completion gives up; 0: never */
    pen_status expected, got; /* of submitting it */
    completion completions[CHOICES_MOST];
} performance;

typedef struct pressure {
    pen_engine *engine;
    const options *o;
    int vocab, ranks;
    const int *pids;
    performance *performances; /* [o->pressure] */
    uint64_t *alone;           /* [o->pressure / SAMPLE + 1][CHOICES_MOST] hashes */
    int begun, live;           /* requests, and completions that have not ended */
    long *early, *late;        /* [ranks] KiB resident at a quarter, and at the end */
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
    completion *c = &p->completions[index];
    struct {
        int position, token;
        float logprob;
    } said = {position, choice->token, choice->logprob};
    for (size_t i = 0; i < sizeof said; i++)
        c->hash = (c->hash ^ ((unsigned char *)&said)[i]) * 0x100000001b3u; /* FNV */
    return ++c->count != p->stop_after;
}

/* Writes the request of a number; `prompt` has room for PROMPT_MOST tokens. */
static void compose(const pressure *all, performance *p, int32_t *prompt, pen_request *request) {
    static const int32_t stop_ids[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int n = p->number;
    uint64_t state = (uint64_t)n, text = n % 3 == 0 ? (uint64_t)(n % 5) : 1000 + (uint64_t)n;
    int count = draw_log_normal(&state, 24, 1, USUAL_MOST), output = draw_log_normal(&state, 12, 0.8, OUTPUT_MOST);
    if (n % LONG_EVERY == SAMPLE && all->o->blocks * PEN_KV_BLOCK > PROMPT_MOST + OUTPUT_MOST) count = PROMPT_MOST;
    for (int i = 0; i < count; i++) {
        uint64_t place = text << 32 | (uint64_t)i;
        prompt[i] = (int32_t)(draw(&place) % (uint64_t)all->vocab);
    }
    if (n % 7 == 3) p->stop_after = 1 + (int)(draw(&state) % (uint64_t)output);
    *request = (pen_request){
        .prompt = prompt,
        .prompt_count = count,
        .max_tokens = output,
        .choices = n % 13 == 6 ? CHOICES_MOST : 1,
        .priority = n % 37 % 3, /* where the engine preempts, some are put aside for others */
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
        request->choices = 1;
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

static void begin(performance *p, pressure *all, int number) {
    *p = (performance){.all = all, .number = number};
    for (int k = 0; k < CHOICES_MOST; k++) p->completions[k].hash = 0xcbf29ce484222325u;
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
    int32_t prompt[PROMPT_MOST];
    while (all->live < all->o->queue && all->begun < all->o->pressure) {
        performance *p = &all->performances[all->begun];
        pen_request request;
        begin(p, all, all->begun++);
        compose(all, p, prompt, &request);
        request.on_done = on_done;
        p->got = pen_engine_submit(all->engine, &request, NULL);
        if (p->got == PEN_OK) all->live += request.choices;
        if (all->begun == all->o->pressure / 4) note_memory(all, all->early);
    }
}

static void on_done(void *context, int index, pen_finish finish) {
    performance *p = context;
    p->completions[index].ends++;
    p->completions[index].finish = finish;
    p->all->live--;
    begin_more(p->all);
}

/* ---- Alone, and what is expected --------------------------------------------------------------------------------- */

static void on_done_alone(void *context, int index, pen_finish finish) {
    (void)context, (void)index, (void)finish;
}

static pen_status hear_alone(pressure *all) {
    int32_t prompt[PROMPT_MOST];
    for (int n = 0; n < all->o->pressure; n += SAMPLE) {
        performance p;
        pen_request request;
        begin(&p, all, n);
        compose(all, &p, prompt, &request);
        request.on_done = on_done_alone;
        int choices = request.choices;
        request.choices = 1;
        for (; request.pick.choice < choices; request.pick.choice++)
            if (pen_engine_submit(all->engine, &request, NULL) == PEN_OK) PEN_TRY(pen_engine_run(all->engine));
        for (int k = 0; k < CHOICES_MOST; k++) all->alone[n / SAMPLE * CHOICES_MOST + k] = p.completions[k].hash;
    }
    return PEN_OK;
}

/* What became of the completions. */
typedef struct outcome {
    int length, stopped, cancelled, scored, heard_alone;
    int refused, wrong; /* requests */
} outcome;

static bool is_right(const pen_request *request, int stop_after, const completion *c, outcome *counts) {
    if (c->ends != 1) return false;
    if (request->score) {
        counts->scored++;
        return c->finish == PEN_FINISH_SCORED && c->count == request->prompt_count - 1;
    }
    if (stop_after > 0 && c->count == stop_after) {
        counts->cancelled++;
        return c->finish == PEN_FINISH_STOP;
    }
    if (c->count < request->max_tokens) {
        counts->stopped++;
        return c->finish == PEN_FINISH_STOP && request->stop_count > 0;
    }
    counts->length++;
    return c->finish == PEN_FINISH_LENGTH && c->count == request->max_tokens;
}

/* Whether a request went as it must; what it was is counted. */
static bool went_right(const pressure *all, const performance *p, outcome *counts) {
    performance again;
    int32_t prompt[PROMPT_MOST];
    pen_request request;
    begin(&again, NULL, p->number);
    compose(all, &again, prompt, &request);
    counts->refused += p->got != PEN_OK;
    bool right = p->got == again.expected;
    for (int k = 0; k < CHOICES_MOST; k++) {
        const completion *c = &p->completions[k];
        if (p->got != PEN_OK || k >= request.choices) {
            right = right && c->ends == 0 && c->count == 0;
            continue;
        }
        right = right && is_right(&request, p->stop_after, c, counts);
        if (p->number % SAMPLE != 0) continue;
        counts->heard_alone++;
        right = right && c->hash == all->alone[p->number / SAMPLE * CHOICES_MOST + k];
    }
    return right;
}

static void report(const pressure *all, double seconds) {
    outcome counts = {0};
    pen_engine_counts engine = pen_engine_count(all->engine);
    for (int n = 0; n < all->o->pressure; n++) {
        const performance *p = &all->performances[n];
        if (went_right(all, p, &counts)) continue;
        counts.wrong++;
        fprintf(stderr, "request %d: status %d", n, (int)p->got);
        for (int k = 0; k < CHOICES_MOST; k++)
            fprintf(stderr, "; %d ends, finish %d, %d tokens", p->completions[k].ends, (int)p->completions[k].finish,
                    p->completions[k].count);
        fprintf(stderr, "\n");
    }
    printf("%d requests in %.1f s, %d refused, %d wrong; completions: %d to their length, %d stopped, %d cancelled, %d "
           "scored, %d heard alone, too; %" PRIu64 " pauses, %" PRIu64 " preemptions, %" PRIu64 " of %" PRIu64
           " prompt tokens found, %" PRIu64 " blocks copied, %d blocks held\n",
           all->o->pressure, seconds, counts.refused, counts.wrong, counts.length, counts.stopped, counts.cancelled,
           counts.scored, counts.heard_alone, engine.pauses, engine.preemptions, engine.kv.found, engine.kv.asked,
           engine.kv.copied, engine.blocks_held);
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
                    .alone = malloc((requests / SAMPLE + 1) * CHOICES_MOST * sizeof *all.alone),
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
