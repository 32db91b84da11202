/*
 * Products with many activation rows by cuBLASLt: weights and activations become 16-bit floats first, in scratch
 * memory, but for weights that are. Weights of codes become f16, whose 11 bits hold what they stand for nearly as it is
 * (values past its range are cut), some rows at a time: as few as stay in the L2 cache between being written and read.
 *
 * The bits are others than those of the numeric contract, and depend on how many rows there are. So `--deterministic`
 * leaves all of this out, and without it the contract is given up only where that is worth more than WORTH: each type
 * and shape of a matrix is measured when the first weight of it is made.
 */
#include "cuda_device.h"

#include "log.h"

#include <limits.h>
#include <string.h>

enum { FEWEST_ROWS = 2 * PEN_CUDA_FEW_ROWS, REPEATS = 5 };
#define WORTH 1.05F

static bool is_dense(pen_type type) {
    return type == PEN_TYPE_F16 || type == PEN_TYPE_BF16;
}

/* ---- Products -------------------------------------------------------------------------------------------------- */

/* Rows of several matrices, one behind the other, that one product multiplies. */
typedef struct panel {
    int matrix, first; /* where the next one begins */
    int rows;
    float *out;
} panel;

static bool may_join(const pen_cuda_product_args *args, int matrix) {
    return matrix < args->count && !is_dense(args->w[matrix].type) && !args->bias[matrix] && !args->bias[matrix - 1];
}

/* The next panel, of whole groups or whole matrices; `run` makes its weights 16-bit floats. */
static void next_panel(pen_cuda_device *device, const pen_cuda_product_args *args, bool run, panel *p) {
    const pen_cuda_matrix *w = &args->w[p->matrix];
    size_t row_bytes = (size_t)w->cols * sizeof(uint16_t);
    int most = is_dense(w->type) ? w->rows : (int)(device->arena.dense_w_bytes / row_bytes);
    p->out += p->rows;
    p->rows = 0;
    do {
        w = &args->w[p->matrix];
        int left = w->rows - p->first, room = most - p->rows;
        int take = left <= room ? left : room / PEN_CUDA_BLOCK * PEN_CUDA_BLOCK;
        if (take == 0) return;
        if (run && !is_dense(w->type)) {
            pen_cuda_dequantize_args dequantize = {
                *w, p->first, take, device->arena.dense_w + row_bytes / sizeof(uint16_t) * (size_t)p->rows};
            pen_cuda_launch_dequantize(device->stream, &dequantize);
        }
        p->rows += take;
        p->first += take;
        if (p->first < w->rows) return;
        p->matrix++;
        p->first = 0;
    } while (may_join(args, p->matrix));
}

static void round_rows(pen_cuda_device *device, const pen_cuda_product_args *args, bool bf16) {
    pen_cuda_round_args round = {.x = args->x,
                                 .stride = args->stride,
                                 .tokens = args->tokens,
                                 .parts = args->parts,
                                 .cols = args->w[0].cols,
                                 .bf16 = bf16,
                                 .out = device->arena.dense_x};
    pen_cuda_launch_round(device->stream, &round);
}

/* All products of `args`; or, not to run, whether cuBLASLt can make them. */
static bool walk(pen_cuda_device *device, const pen_cuda_product_args *args, bool run) {
    panel p = {.out = args->out};
    for (int rounded = -1; p.matrix < args->count;) {
        const pen_cuda_matrix *w = &args->w[p.matrix];
        pen_cuda_gemm gemm = {.w = is_dense(w->type) ? (const void *)w->data : device->arena.dense_w,
                              .x = device->arena.dense_x,
                              .bias = args->bias[p.matrix] ? args->bias[p.matrix] + p.first : NULL,
                              .cols = w->cols,
                              .tokens = args->tokens,
                              .out_stride = args->out_stride,
                              .bf16 = w->type == PEN_TYPE_BF16,
                              .add = args->add};
        next_panel(device, args, run, &p);
        gemm.rows = p.rows;
        gemm.out = p.out;
        if (!run) {
            if (!pen_cuda_blas_can(device->blas, &gemm)) return false;
            continue;
        }
        if (rounded != gemm.bf16) round_rows(device, args, gemm.bf16);
        rounded = gemm.bf16;
        pen_cuda_blas_run(device, &gemm);
    }
    return true;
}

static bool fits(const pen_cuda_device *device, const pen_cuda_product_args *args) {
    size_t row_bytes = (size_t)args->w[0].cols * sizeof(uint16_t);
    return args->softcap == 0 && device->arena.dense_w &&
           row_bytes * (size_t)args->tokens <= device->arena.dense_x_bytes;
}

bool pen_cuda_dense_product(pen_cuda_device *device, const pen_cuda_product_args *args) {
    for (int m = 0; m < args->count; m++)
        if (args->tokens < args->w[m].dense_from) return false;
    return fits(device, args) && walk(device, args, false) && walk(device, args, true);
}

/* ---- From how many rows on ------------------------------------------------------------------------------------- */

int pen_cuda_crossover(const pen_cuda_timing *timings, int count) {
    int from = INT_MAX;
    while (count-- > 0 && timings[count].own_ms > WORTH * timings[count].dense_ms) from = timings[count].rows;
    return from;
}

/* Milliseconds of one of REPEATS products in a row, after one that does not count. */
static float time_products(pen_cuda_device *device, const pen_cuda_product_args *args, bool dense,
                           const cudaEvent_t events[2]) {
    float ms = 0;
    for (int i = 0; i <= REPEATS; i++) {
        if (i == 1) pen_cuda_check(device, cudaEventRecord(events[0], device->stream), "measuring");
        if (dense)
            walk(device, args, true);
        else
            pen_cuda_launch_product(device->stream, args);
    }
    pen_cuda_check(device, cudaEventRecord(events[1], device->stream), "measuring");
    pen_cuda_wait(device, events[1]);
    if (device->failure == cudaSuccess)
        pen_cuda_check(device, cudaEventElapsedTime(&ms, events[0], events[1]), "measuring");
    return ms / REPEATS;
}

/* On whatever the arena holds: times do not depend on it. */
static int measure(pen_cuda_device *device, const pen_cuda_matrix *w, const cudaEvent_t events[2]) {
    pen_cuda_timing timings[8];
    int count = 0;
    pen_cuda_product_args args = {.w = {*w},
                                  .count = 1,
                                  .processors = device->processors,
                                  .x = (const unsigned char *)device->arena.gate_up,
                                  .stride = pen_cuda_row_bytes(PEN_ACTIVATIONS_FAST, w->cols),
                                  .parts = 1,
                                  .out_stride = (size_t)w->rows};
    for (int rows = FEWEST_ROWS; rows <= device->limits.rows && count < 8; rows *= 2) {
        size_t x_floats = (args.stride * (size_t)rows / sizeof(float) + 63) / 64 * 64;
        args.tokens = rows;
        args.out = device->arena.gate_up + x_floats;
        if (x_floats + args.out_stride * (size_t)rows > device->arena.gate_up_floats || !fits(device, &args) ||
            !walk(device, &args, false))
            break;
        timings[count++] = (pen_cuda_timing){rows, time_products(device, &args, false, events),
                                             time_products(device, &args, true, events)};
    }
    int from = pen_cuda_crossover(timings, count);
    if (from < INT_MAX)
        PEN_INFO("%s, %d × %d: %d rows and more are multiplied by cuBLASLt, %.1f times as fast; --deterministic keeps"
                 " results that do not depend on the number of rows",
                 pen_type_get(w->type)->name, w->rows, w->cols, from,
                 (double)(timings[count - 1].own_ms / timings[count - 1].dense_ms));
    return from;
}

int pen_cuda_dense_from(pen_cuda_device *device, const pen_cuda_matrix *w) {
    if (!device->blas || !device->arena.dense_w || device->limits.rows < FEWEST_ROWS) return INT_MAX;
    for (int i = 0; i < device->measured_count; i++) {
        const pen_cuda_matrix *m = &device->measured[i];
        if (m->type == w->type && m->rows == w->rows && m->cols == w->cols) return m->dense_from;
    }
    if (device->measured_count == PEN_CUDA_MEASURED) return INT_MAX;
    pen_cuda_matrix *made = &device->measured[device->measured_count++];
    cudaEvent_t events[2] = {NULL, NULL};
    *made = *w;
    made->dense_from = INT_MAX;
    if (pen_cuda_check(device, cudaEventCreateWithFlags(&events[0], cudaEventDefault), "measuring") &&
        pen_cuda_check(device, cudaEventCreateWithFlags(&events[1], cudaEventDefault), "measuring"))
        made->dense_from = measure(device, w, events);
    for (int i = 0; i < 2; i++)
        if (events[i]) cudaEventDestroy(events[i]);
    return made->dense_from;
}
