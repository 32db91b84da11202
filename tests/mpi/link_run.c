/*
 * Passes rows of random sizes on random lanes from stage to stage, from device to device, over the link that the ranks
 * choose: link_run [--link KIND] [--device cpu|cuda] [--messages N] [--seed S] [--silent RANK] [--patience S]
 *
 * Each stage adds its mark to every message; the last one looks at all values and sends a token to the first. Up to
 * PEN_LANES messages are under way at a stage, and nothing waits for the device but to look. Rank SILENT stops taking
 * part halfway: the others must notice, and get rid of the link and of the rows under way. Rank 0 prints the link's
 * name when all is well.
 */
#include "clock.h"
#include "cpu.h"
#include "cuda.h"
#include "link_open.h"
#include "log.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { VALUES = 40000, MARKS = 8 };

typedef struct options {
    const char *link, *device;
    int messages, silent;
    unsigned seed;
    double patience_s;
} options;

typedef struct message {
    int lane, values;
} message;

typedef enum phase { IDLE, RECEIVING, SENDING, READING } phase;

/* A lane of this stage: its rows, and the message that they belong to. */
typedef struct slot {
    pen_buffer *rows;
    pen_event *event;
    float *values; /* [VALUES] what was read back */
    float mark;
    int message;
    phase phase;
    pen_transfer transfer;
} slot;

typedef struct run {
    const options *options;
    pen_world *world;
    pen_device *device;
    pen_link *link;
    message *messages; /* the same on all ranks */
    int stage, stages;
    int started, passed, finished; /* passed: to the device, in the order of the messages, as link.h wants the sends */
    slot slots[PEN_LANES];
    int64_t moved_ns;
    int32_t token, expected_token;
    pen_transfer token_transfer; /* 0: none under way */
} run;

static unsigned next_random(unsigned *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static float value_of(int number, int i) {
    return (float)((number * 31 + i * 7) % 1009);
}

static size_t bytes_of(const run *r, int number) {
    return (size_t)r->messages[number].values * sizeof(float);
}

static pen_status open_all(run *r) {
    unsigned state = r->options->seed;
    r->stage = pen_world_stage(r->world);
    r->stages = pen_world_stages(r->world);
    r->messages = calloc((size_t)r->options->messages, sizeof *r->messages);
    for (int i = 0; i < r->options->messages; i++) {
        bool large = next_random(&state) % 4 == 0;
        r->messages[i].values = MARKS + (int)(next_random(&state) % (large ? VALUES - MARKS : 500));
        r->messages[i].lane = (int)(next_random(&state) % PEN_LANES);
    }
    const pen_place *place = pen_world_place(r->world, pen_world_rank(r->world));
    int gpus;
    if (strcmp(r->options->device, "cuda") == 0) {
        PEN_TRY(pen_cuda_device_count(&gpus));
        pen_cuda_options cuda = {.gpu = place->local_rank % gpus};
        PEN_TRY(pen_cuda_device_create(&cuda, &r->device));
    } else {
        pen_cpu_options cpu = {.isa = PEN_CPU_REFERENCE, .threads = 1};
        PEN_TRY(pen_cpu_device_create(&cpu, &r->device));
    }
    PEN_TRY(pen_link_open(r->world, r->device, r->options->link, r->options->patience_s, &r->link));
    for (int lane = 0; lane < PEN_LANES; lane++) {
        slot *s = &r->slots[lane];
        s->values = malloc(VALUES * sizeof *s->values);
        PEN_TRY(pen_buffer_create(r->device, VALUES * sizeof *s->values, &s->rows));
        PEN_TRY(pen_event_create(r->device, &s->event));
        PEN_TRY(pen_link_prepare_rows(r->link, lane, r->device, s->rows, VALUES * sizeof *s->values));
    }
    return PEN_OK;
}

/* What the device does to a message here; the last stage's is to be read. */
static pen_status enqueue(run *r, slot *s) {
    r->passed++;
    if (r->stage == 0) {
        for (int i = 0; i < r->messages[s->message].values; i++) s->values[i] = value_of(s->message, i);
        pen_buffer_write(s->rows, 0, s->values, bytes_of(r, s->message));
    }
    s->mark = (float)(-1 - r->stage);
    pen_buffer_write(s->rows, (size_t)(r->stage % MARKS) * sizeof s->mark, &s->mark, sizeof s->mark);
    bool last = r->stage == r->stages - 1;
    if (last) pen_buffer_read(s->rows, 0, s->values, bytes_of(r, s->message));
    pen_event_record(s->event);
    s->phase = last ? READING : SENDING;
    if (last) return PEN_OK;
    return pen_link_send_rows(r->link, r->stage + 1, r->messages[s->message].lane, s->rows, bytes_of(r, s->message),
                              s->event, &s->transfer);
}

static pen_status look(const run *r, const slot *s) {
    for (int i = 0; i < r->messages[s->message].values; i++) {
        float expected = i < r->stages ? (float)(-1 - i) : value_of(s->message, i);
        if (s->values[i] != expected)
            return pen_fail(PEN_INTERNAL, "message %d: value %d is %g, expected %g", s->message, i,
                            (double)s->values[i], (double)expected);
    }
    return PEN_OK;
}

/* Tokens come and go one at a time beside the rows. */
static pen_status move_token(run *r) {
    if (r->token_transfer && !pen_link_done(r->link, r->token_transfer, NULL)) return PEN_OK;
    r->token_transfer = 0;
    if (r->stage == r->stages - 1 && r->expected_token < r->finished) {
        r->token = r->expected_token++;
        return pen_link_send(r->link, PEN_CHANNEL_TOKEN, 0, 0, &r->token, sizeof r->token, NULL, &r->token_transfer);
    }
    if (r->stage > 0) return PEN_OK;
    if (r->token != r->expected_token - 1)
        return pen_fail(PEN_INTERNAL, "token %d came instead of %d", r->token, r->expected_token - 1);
    if (r->expected_token == r->options->messages) return PEN_OK;
    r->expected_token++;
    return pen_link_receive(r->link, PEN_CHANNEL_TOKEN, r->stages - 1, 0, &r->token, sizeof r->token,
                            &r->token_transfer);
}

static pen_status advance(run *r, slot *s) {
    switch (s->phase) {
    case IDLE: return PEN_OK;
    case RECEIVING:
        if (s->message != r->passed || !pen_link_done(r->link, s->transfer, NULL)) return PEN_OK;
        r->moved_ns = pen_clock_ns();
        return enqueue(r, s);
    case SENDING:
        if (!pen_link_done(r->link, s->transfer, NULL)) return PEN_OK;
        break;
    case READING:
        if (!pen_event_done(s->event)) return PEN_OK;
        PEN_TRY(look(r, s));
        break;
    }
    s->phase = IDLE;
    r->finished++;
    r->moved_ns = pen_clock_ns();
    return PEN_OK;
}

/* Starts the next message if its lane is free. */
static pen_status start(run *r) {
    if (r->started == r->options->messages) return PEN_OK;
    int lane = r->messages[r->started].lane;
    slot *s = &r->slots[lane];
    if (s->phase != IDLE) return PEN_OK;
    s->message = r->started++;
    if (r->stage == 0) return enqueue(r, s);
    s->phase = RECEIVING;
    return pen_link_receive_rows(r->link, r->stage - 1, lane, s->rows, bytes_of(r, s->message), &s->transfer);
}

static pen_status pass_all(run *r) {
    int messages = r->options->messages;
    r->token = r->stage == 0 ? -1 : 0;
    r->moved_ns = pen_clock_ns();
    int tokens = r->stage == 0 || r->stage == r->stages - 1 ? messages : 0;
    while (r->finished < messages || r->expected_token < tokens || r->token_transfer) {
        if (r->options->silent == r->stage && r->finished > messages / 2) pause();
        bool moved = false;
        PEN_TRY(pen_link_progress(r->link, &moved));
        PEN_TRY(start(r));
        for (int lane = 0; lane < PEN_LANES; lane++) PEN_TRY(advance(r, &r->slots[lane]));
        PEN_TRY(move_token(r));
        double seconds = (double)(pen_clock_ns() - r->moved_ns) * 1e-9;
        if (seconds > r->options->patience_s)
            return pen_fail(PEN_PEER_LOST, "silence for %.0f s after %d of %d messages", seconds, r->finished,
                            messages);
        if (!moved) usleep(20);
    }
    return PEN_OK;
}

/* The link first: what it has under way must not outlast the rows. */
static void close_all(run *r) {
    pen_link_destroy(r->link);
    for (int lane = 0; lane < PEN_LANES; lane++) {
        if (r->slots[lane].event && pen_device_sync(r->device) == PEN_OK) pen_event_destroy(r->slots[lane].event);
        pen_buffer_destroy(r->slots[lane].rows);
        free(r->slots[lane].values);
    }
    pen_device_destroy(r->device);
    free(r->messages);
}

static options parse(int argc, char **argv) {
    options o = {.link = "auto", .device = "cuda", .messages = 200, .silent = -1, .seed = 1, .patience_s = 20};
    static const struct option table[] = {{"link", 1, 0, 'l'},   {"device", 1, 0, 'd'},   {"messages", 1, 0, 'm'},
                                          {"silent", 1, 0, 'k'}, {"patience", 1, 0, 'p'}, {"seed", 1, 0, 's'},
                                          {0, 0, 0, 0}};
    for (int c; (c = getopt_long(argc, argv, "", table, NULL)) != -1;) switch (c) {
        case 'l': o.link = optarg; break;
        case 'd': o.device = optarg; break;
        case 'm': o.messages = atoi(optarg); break;
        case 'k': o.silent = atoi(optarg); break;
        case 'p': o.patience_s = atof(optarg); break;
        case 's': o.seed = (unsigned)atoi(optarg); break;
        default: exit(PEN_USAGE);
        }
    return o;
}

int main(int argc, char **argv) {
    options o = parse(argc, argv);
    run r = {.options = &o};
    pen_status status = pen_world_create(&r.world);
    if (status != PEN_OK) pen_world_abort(r.world, status);
    pen_log_init(PEN_LOG_INFO, pen_world_rank(r.world));
    status = pen_world_arrange(r.world, 1, pen_world_size(r.world));
    if (status == PEN_OK) status = open_all(&r);
    bool opened = status == PEN_OK; /* or all ranks know that it is not */
    char failure[1024];
    if (opened) status = pass_all(&r);
    snprintf(failure, sizeof failure, "%s", pen_last_error());
    if (status == PEN_OK && r.stage == 0) printf("%s\n", pen_link_name(r.link));
    close_all(&r);
    if (opened && status != PEN_OK) {
        fprintf(stderr, "rank %d closed its link\n", pen_world_rank(r.world));
        pen_world_abort(r.world, pen_fail(status, "%s", failure));
    }
    if (status != PEN_OK && r.stage == 0) fprintf(stderr, "penstock: %s\n", failure);
    pen_world_destroy(r.world);
    return status;
}
