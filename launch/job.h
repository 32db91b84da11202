/*
 * A job: what every command that runs a model has in common. It joins the world, starts a session, shows the plan and
 * what the stages really take, lets rank 0 do the command's own work with the front end while all ranks serve, and says
 * how busy the stages were.
 *
 * On stdout nothing; everything here goes to stderr, from rank 0.
 */
#ifndef PEN_JOB_H
#define PEN_JOB_H

#include "front.h"
#include "options.h"
#include "session.h"
#include "tokenizer.h"

#include <stdio.h>

/* What a command adds. Both functions run on rank 0 only. */
typedef struct pen_job {
    /* Reads the request and says what it needs. */
    pen_status (*prepare)(void *context, const pen_session *session, pen_tokenizer *tokenizer, pen_session_need *need);
    /* Submits to the front end, runs it, writes the result. */
    pen_status (*work)(void *context, pen_front *front);
    void *context;
    bool measures; /* is about speed: shows metrics itself, and has the stages timed with patience */
} pen_job;

/* Runs the job; the same status on all ranks, or the process has ended (a lost peer). */
pen_status pen_job_run(const pen_options *options, const pen_job *job);

/* The text of -p or -f ("-": standard input). The caller frees it. */
pen_status pen_job_text(const pen_options *options, char **text, size_t *length);

#endif
