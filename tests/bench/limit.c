/* The limits of the machine; see limit.h. */
#include "limit.h"

#include "clock.h"
#include "pool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { REPEATS = 25, TASKS_PER_THREAD = 8, ROUNDS = 10000, CHAINS = 12, READ_TASKS = 256 };

int64_t bench_now_ns(int threads) {
    return threads == 1 ? pen_clock_thread_cpu_ns() : pen_clock_ns();
}

size_t bench_cache_bytes(void) {
    long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return bytes > 0 ? (size_t)bytes : (size_t)32 << 20;
}

typedef struct limit_job {
    const unsigned char *memory;
    size_t bytes;                     /* of a task */
    uint64_t sums[BENCH_THREADS_MAX]; /* results, so that nothing can be left out */
} limit_job;

static int shorter_first(const void *a, const void *b) {
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* Nanoseconds of some runs, the shortest first. */
static void time_runs(int threads, pen_pool_task *task, limit_job *job, int tasks, double ns[REPEATS]) {
    pen_pool *pool;
    if (pen_pool_create(threads, NULL, true, &pool) != PEN_OK) {
        fprintf(stderr, "bench: %s\n", pen_last_error());
        exit(1);
    }
    for (int i = 0; i < REPEATS; i++) {
        int64_t begin = bench_now_ns(threads);
        pen_pool_run(pool, task, job, tasks);
        ns[i] = (double)(bench_now_ns(threads) - begin);
    }
    pen_pool_destroy(pool);
    qsort(ns, REPEATS, sizeof *ns, shorter_first);
}

/* ---- Multiplying ----------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
/* A task of independent chains: `step` of sums[i], a and b, as often as it takes; `add` adds two sums. */
#define PEAK_TASK(name, isa, vector, start, step, add)                                                                 \
    __attribute__((target(isa))) static void name(void *context, int task, int thread) {                               \
        vector sums[CHAINS], a = start(thread), b = start(task);                                                       \
        _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) sums[i] = a;                                         \
        for (int round = 0; round < ROUNDS; round++) _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) {       \
                sums[i] = step(sums[i], a, b);                                                                         \
                __asm__("" : "+v"(sums[i]));                                                                           \
            }                                                                                                          \
        _Pragma("GCC unroll 12") for (int i = 1; i < CHAINS; i++) sums[0] = add(sums[0], sums[i]);                     \
        memcpy(&((limit_job *)context)->sums[thread], &sums[0], sizeof(uint64_t));                                     \
    }

#define FLOATS_512(x)      _mm512_set1_ps((float)(x))
#define FLOATS_256(x)      _mm256_set1_ps((float)(x))
#define FMA_512(sum, a, b) _mm512_fmadd_ps(a, b, sum)
#define FMA_256(sum, a, b) _mm256_fmadd_ps(a, b, sum)

PEAK_TASK(int8_avx512, "avx512f,avx512vnni", __m512i, _mm512_set1_epi32, _mm512_dpbusd_epi32, _mm512_add_epi32)
PEAK_TASK(int8_avxvnni, "avx2,avxvnni", __m256i, _mm256_set1_epi32, _mm256_dpbusd_avx_epi32, _mm256_add_epi32)
PEAK_TASK(f32_avx512, "avx512f", __m512, FLOATS_512, FMA_512, _mm512_add_ps)
PEAK_TASK(f32_avx2, "avx2,fma", __m256, FLOATS_256, FMA_256, _mm256_add_ps)

/* What AVX2 has instead of VNNI: products of pairs, their sums, and the addition. The products are the same each time,
 * but the compiler is not to see that. */
__attribute__((target("avx2"))) static void int8_avx2(void *context, int task, int thread) {
    __m256i sums[CHAINS], ones = _mm256_set1_epi16(1), a = _mm256_set1_epi32(thread), b = _mm256_set1_epi32(task);
    _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) sums[i] = a;
    for (int round = 0; round < ROUNDS; round++) _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) {
            __asm__("" : "+x"(b));
            sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
        }
    _Pragma("GCC unroll 12") for (int i = 1; i < CHAINS; i++) sums[0] = _mm256_add_epi32(sums[0], sums[i]);
    memcpy(&((limit_job *)context)->sums[thread], &sums[0], sizeof(uint64_t));
}
#endif

typedef struct peak {
    const char *instructions;
    pen_pool_task *task;
    int values; /* multiplied by a step */
} peak;

static peak peak_of(bench_limit limit) {
#if defined(__x86_64__)
    if (limit == BENCH_F32) {
        if (__builtin_cpu_supports("avx512f")) return (peak){"vfmadd zmm", f32_avx512, 16};
        if (__builtin_cpu_supports("fma")) return (peak){"vfmadd ymm", f32_avx2, 8};
    } else {
        if (__builtin_cpu_supports("avx512vnni")) return (peak){"vpdpbusd zmm", int8_avx512, 64};
        if (__builtin_cpu_supports("avxvnni")) return (peak){"vpdpbusd ymm", int8_avxvnni, 32};
        if (__builtin_cpu_supports("avx2")) return (peak){"vpmaddubsw ymm", int8_avx2, 32};
    }
#endif
    (void)limit;
    return (peak){"none", NULL, 0};
}

const char *bench_limit_instructions(bench_limit limit) {
    return peak_of(limit).instructions;
}

double bench_limit_tops(bench_limit limit, int threads) {
    peak best = peak_of(limit);
    limit_job *job = calloc(1, sizeof *job);
    if (!job || !best.task) return free(job), 0;
    int tasks = threads * TASKS_PER_THREAD;
    double operations = 2.0 * best.values * CHAINS * ROUNDS * tasks;
    double ns[REPEATS];
    time_runs(threads, best.task, job, tasks, ns);
    free(job);
    return operations / ns[0] / 1e3;
}

/* ---- Reading --------------------------------------------------------------------------------------------------- */

enum { LINE = 64, STREAMS = 8 };

#define READ_TASK(name, isa, vector, load, join)                                                                       \
    isa static void name(void *context, int task, int thread) {                                                        \
        limit_job *job = context;                                                                                      \
        const unsigned char *p = job->memory + job->bytes * (size_t)task;                                              \
        vector sums[STREAMS];                                                                                          \
        memset(sums, 0, sizeof sums);                                                                                  \
        for (size_t i = 0; i < job->bytes; i += STREAMS * sizeof(vector))                                              \
            _Pragma("GCC unroll 8") for (size_t j = 0; j < STREAMS; j++) sums[j] =                                     \
                join(sums[j], load((const void *)(p + i + j * sizeof(vector))));                                       \
        for (int j = 1; j < STREAMS; j++) sums[0] = join(sums[0], sums[j]);                                            \
        uint64_t sum;                                                                                                  \
        memcpy(&sum, &sums[0], sizeof sum);                                                                            \
        job->sums[thread] += sum;                                                                                      \
    }

#define LOAD_WORD(p)    (*(const uint64_t *)(p))
#define ADD_WORDS(a, b) ((a) + (b))
READ_TASK(read_words, , uint64_t, LOAD_WORD, ADD_WORDS)
#if defined(__x86_64__)
READ_TASK(read_avx512, __attribute__((target("avx512f"))), __m512i, _mm512_load_si512, _mm512_or_si512)
READ_TASK(read_avx2, __attribute__((target("avx2"))), __m256i, _mm256_load_si256, _mm256_or_si256)
#endif

static pen_pool_task *read_task(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return read_avx512;
    if (__builtin_cpu_supports("avx2")) return read_avx2;
#endif
    return read_words;
}

bench_reading bench_limit_read(int threads) {
    enum { HUGE = 2 << 20 };
    limit_job *job = calloc(1, sizeof *job);
    size_t bytes = (4 * bench_cache_bytes() + HUGE - 1) / HUGE * HUGE; /* whole lines for each task */
    unsigned char *memory = aligned_alloc(HUGE, bytes);
    if (!job || !memory) exit(1);
    madvise(memory, bytes, MADV_HUGEPAGE); /* as weights are */
    memset(memory, 1, bytes);
    job->memory = memory;
    job->bytes = bytes / READ_TASKS;
    double ns[REPEATS];
    time_runs(threads, read_task(), job, READ_TASKS, ns);
    free(memory);
    free(job);
    return (bench_reading){.best = (double)bytes / ns[0], .median = (double)bytes / ns[REPEATS / 2]};
}
