/* What a load's log says: speeds, latencies and how busy the stages were. Pure: numbers in, numbers out. */
#ifndef PEN_LOAD_SUMMARY_H
#define PEN_LOAD_SUMMARY_H

#include "load.h"
#include "statistics.h"

/* The run from its first request's arrival to its last token: also what no steady state shows, replicas that have
 * nothing left to do while others have. */
typedef struct pen_load_whole {
    double seconds, total_tokens_per_s;
    pen_statistics ttft, e2el;
    pen_statistics predicted_ttft;   /* what was said at admission */
    pen_statistics prediction_error; /* how far off each of those was, either way */
} pen_load_whole;

typedef struct pen_load_summary {
    double seconds; /* of the spans */
    int requests;   /* that ended in them: whose latencies these are */
    int expired;    /* that waited for too long */
    /* With requests one after the other: prompt tokens ÷ time to the first token, and later tokens ÷ later time. In
     * phases: of each phase. Else tokens ÷ time. */
    double prompt_tokens_per_s, decode_tokens_per_s, total_tokens_per_s;
    /* Milliseconds: to the first token; per later token of a request; between two tokens; to the last token. */
    pen_statistics ttft, tpot, itl, e2el;
    pen_efficiency efficiency; /* the replicas' average */
    pen_load_whole whole;
} pen_load_summary;

pen_status pen_load_summarise(const pen_load_log *log, pen_load_summary *summary);

/* The stages' metrics in all spans together: stages[log->replicas][log->stages]. */
void pen_load_total(const pen_load_log *log, pen_metrics *stages);

#endif
