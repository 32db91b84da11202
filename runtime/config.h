/*
 * What a person asked for: the options that the engine needs, as plain data that rank 0 broadcasts byte by byte (the
 * environment and the command line of other ranks do not count). Filled by the one option table in launch/.
 */
#ifndef PEN_CONFIG_H
#define PEN_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

enum { PEN_PATH_MAX = 1024, PEN_LAYERS_MAX = 512 };

typedef struct pen_config {
    char model[PEN_PATH_MAX];
    char device[PEN_PATH_MAX]; /* auto, cpu, cuda, sim:PROFILE */
    double time_scale;         /* of a simulated device: what takes a second takes so many */
    char isa[16];              /* auto, or a CPU instruction set */
    bool exact;                /* --activations f32 */
    bool kv_q8_0;              /* --kv-type q8_0 */
    bool deterministic;        /* on a GPU: the same bits for any number of rows */
    bool enforce_eager;        /* on a GPU: no CUDA graphs */
    int threads;               /* per rank; 0: this rank's share of the allowed cores */
    char link[16];             /* auto, local, mpi, nccl */

    /* How the ranks are arranged. 0: data_parallel 1; pipeline_parallel what follows from the world's size. */
    int data_parallel;     /* replicas of the model */
    int pipeline_parallel; /* stages of a replica */

    /* The plan. */
    uint64_t memory;                      /* bytes per rank; 0: the machine's */
    double gpu_memory_utilization;        /* of a GPU's free memory without --memory */
    int64_t kv_tokens;                    /* KV capacity in tokens; 0: what the requested sequences need */
    int workload_prompt, workload_output; /* --workload P:G */
    int max_num_seqs;                     /* of a replica; 0: 16 per stage */
    char method[16];                      /* dp, uniform, parameters, greedy, equal-time, custom */
    char layers[PEN_LAYERS_MAX];          /* --layers 10,10,12: units… of a custom split, as given */
    char profile[PEN_PATH_MAX];           /* read instead of measured; "" */
    char cache[PEN_PATH_MAX];             /* folder of the profile cache; "": $XDG_CACHE_HOME/penstock; "-": none */

    /* The run. */
    int max_model_len;          /* 0: the model's context, at most 8192 */
    int max_num_batched_tokens; /* rows of a microbatch at most: the chunk of a long prompt; 0: chosen from the profile
                                 */
    double step_timeout_s;      /* 0: max(30 s, 20 × predicted) */
    bool ignore_eos;
    char policy[24];          /* of the distributor: one of policy.h */
    bool steals, preempts;    /* leaders take requests from each other; put running ones aside for more urgent ones */
    int max_queue;            /* requests that wait for a replica at most */
    double queue_timeout_s;   /* one that has not started after so long ends; 0: never */
    char trace[PEN_PATH_MAX]; /* written by rank 0; "": nothing is recorded */
    int log_level;
} pen_config;

/* Rows of a microbatch at most. */
static inline int pen_config_rows(const pen_config *config) {
    return config->max_num_batched_tokens ? config->max_num_batched_tokens : 512;
}

/* The longest sequence for a model of this context. */
static inline int pen_config_max_len(const pen_config *config, int model_context) {
    if (config->max_model_len) return config->max_model_len;
    return model_context < 8192 ? model_context : 8192;
}

#endif
