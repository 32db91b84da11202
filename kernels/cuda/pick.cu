/*
 * Picking tokens: a block per row of logits.
 *
 * A row is never sorted: what top-k and top-p keep is everything from some key up, and that key is found by its digits,
 * the highest first, from histograms of counts or of mass. Masses are whole numbers (of 2^-40 of the largest weight),
 * so that their sums do not depend on an order: histograms are made by atomics, and a draw is the same whoever adds.
 */
#include "device.cuh"

enum { THREADS = 512, DIGIT = 8, BINS = 1 << DIGIT };

typedef unsigned long long number;

/* Larger keys come first: by logit, then by lower id. */
__device__ static number key_of(float logit, int id) {
    unsigned bits = __float_as_uint(logit + 0.0F); /* −0 equals 0 */
    bits = bits & 0x80000000U ? ~bits : bits | 0x80000000U;
    return (number)bits << 32 | (unsigned)~id;
}
__device__ static int id_of(number key) {
    return (int)~(unsigned)key;
}

/* A row's logits, perhaps edited, and what its weights are relative to. */
struct row_of_logits {
    const float *x;
    int vocab;
    float max, scale; /* 1 ÷ temperature */

    __device__ number key(int id) const { return key_of(x[id], id); }
    __device__ float weight(int id) const { return expf((x[id] - max) * scale); }
    __device__ number mass(int id) const { return (number)(weight(id) * 0x1p40F); }
};

/* The largest key below `below`; 0 where there is none. */
__device__ static number largest_key(const float *x, int vocab, number below) {
    number best = 0;
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        number key = key_of(x[i], i);
        if (key < below && key > best) best = key;
    }
    return reduce_block<THREADS>(larger(), best);
}

/* ---- Cuts ------------------------------------------------------------------------------------------------------ */

/* The key at which, from the largest key down, masses (1 each where not `by_mass`) first add up to `need` ≥ 1; of keys
 * from `floor` up, which add up to that. */
__device__ static number select_key(const row_of_logits &row, number floor, number need, bool by_mass) {
    __shared__ number bins[BINS], found[2]; /* digits so far, what is still needed */
    number digits = 0;
    for (int shift = 64 - DIGIT; shift >= 0; shift -= DIGIT) {
        for (int b = threadIdx.x; b < BINS; b += THREADS) bins[b] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < row.vocab; i += THREADS) {
            number key = row.key(i);
            if (key < floor || (shift + DIGIT < 64 && key >> (shift + DIGIT) != digits)) continue;
            atomicAdd(&bins[key >> shift & (BINS - 1)], by_mass ? row.mass(i) : 1);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int b = BINS - 1;
            for (; b > 0 && bins[b] < need; b--) need -= bins[b];
            found[0] = digits << DIGIT | (number)b;
            found[1] = need;
        }
        __syncthreads();
        digits = found[0];
        need = found[1];
    }
    return digits;
}

/* ---- Drawing --------------------------------------------------------------------------------------------------- */

/* What a token contributes after all cuts. */
__device__ static number kept_mass(const row_of_logits &row, const pen_cuda_pick_args &pick, number floor, int id) {
    return row.key(id) < floor || row.weight(id) < pick.min_p ? 0 : row.mass(id);
}

/* The kept ones are laid side by side in the order of their ids, and the uniform number points at one. */
__device__ static int draw(const row_of_logits &row, const pen_cuda_pick_args &pick) {
    __shared__ number masses[THREADS];
    __shared__ int chosen;
    number floor = 0;
    if (pick.top_k > 0 && pick.top_k < row.vocab) floor = select_key(row, 0, pick.top_k, false);
    if (pick.top_p < 1) {
        number mass = 0;
        for (int i = threadIdx.x; i < row.vocab; i += THREADS)
            if (row.key(i) >= floor) mass += row.mass(i);
        mass = reduce_block<THREADS>(sum(), mass);
        number need = (number)ceil((double)pick.top_p * (double)mass);
        floor = select_key(row, floor, need < 1 ? 1 : need > mass ? mass : need, true);
    }
    /* Each thread has consecutive ids. */
    int each = (row.vocab + THREADS - 1) / THREADS, begin = min(each * (int)threadIdx.x, row.vocab);
    int end = min(begin + each, row.vocab);
    number own = 0, before = 0;
    for (int i = begin; i < end; i++) own += kept_mass(row, pick, floor, i);
    masses[threadIdx.x] = own;
    if (threadIdx.x == 0) chosen = 0; /* where nothing is kept */
    number total = reduce_block<THREADS>(sum(), own);
    number target = (number)(pick.uniform * (double)total);
    if (target >= total) target = total - 1;
    for (int t = 0; t < (int)threadIdx.x; t++) before += masses[t];
    if (target >= before && target - before < own)
        for (int i = begin; i < end; i++) {
            before += kept_mass(row, pick, floor, i);
            if (target >= before) continue;
            chosen = i;
            break;
        }
    __syncthreads();
    return chosen;
}

/* The token of a row whose best logit is that of `best`. */
__device__ static int choose(const pen_cuda_choose_args &args, const pen_cuda_pick_args &pick, const float *x,
                             int best) {
    if (pick.target >= 0) return pick.target;
    if (pick.edited) {
        x = args.edited + (size_t)blockIdx.x * args.vocab;
        best = id_of(largest_key(x, args.vocab, ~0ULL));
        if (x[best] == -INFINITY) return best;
    }
    if (pick.temperature == 0) return best;
    row_of_logits row = {x, args.vocab, x[best], 1 / pick.temperature};
    return draw(row, pick);
}

/* ---- Rows ------------------------------------------------------------------------------------------------------ */

static __global__ void __launch_bounds__(THREADS) choose_kernel(pen_cuda_choose_args args) {
    const float *x = args.logits + (size_t)blockIdx.x * args.vocab;
    pen_cuda_pick_args pick = args.picks[blockIdx.x];
    pen_choice *choice = &args.choices[blockIdx.x];
    unsigned *words = reinterpret_cast<unsigned *>(choice);
    for (int i = threadIdx.x; i < (int)(sizeof *choice / sizeof *words); i += THREADS) words[i] = 0;

    int bad = 0;
    for (int i = threadIdx.x; i < args.vocab; i += THREADS) bad |= !(x[i] < INFINITY); /* neither NaN nor +∞ is less */
    bad = reduce_block<THREADS>(larger(), bad);
    number best = largest_key(x, args.vocab, ~0ULL);
    float max = x[id_of(best)];
    if (bad || max == -INFINITY) {
        if (threadIdx.x == 0) choice->bad_logits = 1;
        return;
    }
    double total = 0;
    for (int i = threadIdx.x; i < args.vocab; i += THREADS) total += (double)expf(x[i] - max);
    double log_sum = (double)max + log(reduce_block<THREADS>(sum(), total));

    int token = choose(args, pick, x, id_of(best));
    if (threadIdx.x == 0) {
        choice->token = token;
        choice->argmax = id_of(best);
        choice->logprob = (float)((double)x[token] - log_sum);
    }
    int count = min(pick.top_logprobs, args.vocab);
    for (int i = 0; i < count; i++) {
        if (threadIdx.x == 0) {
            choice->top_ids[i] = id_of(best);
            choice->top_logprobs[i] = (float)((double)x[id_of(best)] - log_sum);
        }
        if (i + 1 < count) best = largest_key(x, args.vocab, best);
    }
}

void pen_cuda_launch_choose(cudaStream_t stream, const pen_cuda_choose_args *args) {
    launch(choose_kernel, dim3(args->count), dim3(THREADS), stream, *args);
}

/* ---- Edits ----------------------------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(THREADS) copy_edited_kernel(pen_cuda_choose_args args) {
    size_t first = (size_t)blockIdx.x * args.vocab;
    if (!args.picks[blockIdx.x].edited) return;
    for (int i = threadIdx.x; i < args.vocab; i += THREADS) args.edited[first + i] = args.logits[first + i];
}

void pen_cuda_launch_copy_edited(cudaStream_t stream, const pen_cuda_choose_args *args) {
    launch(copy_edited_kernel, dim3(args->count), dim3(THREADS), stream, *args);
}

struct edit_args {
    pen_cuda_choose_args rows;
    const pen_cuda_edit *edits;
    int count;
};

static __global__ void __launch_bounds__(THREADS) edit_kernel(edit_args args) {
    int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= args.count) return;
    pen_logit_edit edit = args.edits[i].edit;
    size_t at = (size_t)args.edits[i].row * args.rows.vocab + edit.token;
    float x = args.rows.logits[at] + edit.add;
    x = (x > 0 ? x / edit.scale : x * edit.scale) - edit.less;
    const float largest = __uint_as_float(0x7f7fffffU);
    args.rows.edited[at] = x < largest ? x : largest;
}

void pen_cuda_launch_edit(cudaStream_t stream, const pen_cuda_choose_args *args, const pen_cuda_edit *edits,
                          int count) {
    edit_args all = {*args, edits, count};
    launch(edit_kernel, dim3((count + THREADS - 1) / THREADS), dim3(THREADS), stream, all);
}
