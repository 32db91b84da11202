/*
 * Row by row: norms, the feed-forward's activation, and the rounding of f32 rows to activation rows. A block of
 * THREADS threads does a row, a warp 32 consecutive columns at a time.
 */
#include "quantize.cuh"

enum { THREADS = 256 };

/* Calls put(column) for this thread's columns, whole warps at a time: put has to look whether column < cols. */
template <class Put> static __device__ void each_column(int cols, Put put) {
    int padded = (cols + WARP - 1) / WARP * WARP;
    for (int i = threadIdx.x; i < padded; i += THREADS) put(i);
}

static __global__ void __launch_bounds__(THREADS) norm_kernel(pen_cuda_norm_args args) {
    follow();
    int row = blockIdx.x, cols = args.cols;
    const float *x = args.x + (size_t)(args.rows ? args.rows[row] : row) * cols;
    float center = 0, squares = 0;
    int first = threadIdx.x;
#ifdef PEN_PLANT_ORDER_DEPENDENT /* a fault for the property tests to find: who adds what depends on the batch */
    first = (first + gridDim.x - 1) % THREADS;
#endif
    if (args.mean) {
        for (int i = first; i < cols; i += THREADS) center += x[i];
        center = reduce_block<THREADS>(sum(), center) / (float)cols;
    }
    for (int i = first; i < cols; i += THREADS) squares = fmaf(x[i] - center, x[i] - center, squares);
    float scale = 1 / sqrtf(reduce_block<THREADS>(sum(), squares) / (float)cols + args.eps);
    unsigned char *out = args.out + args.stride * args.parts * row;
    each_column(cols, [&](int i) {
        float y = 0;
        if (i < cols) {
            y = (x[i] - center) * scale * args.weight[i];
            if (args.bias) y += args.bias[i];
        }
        if (args.out && args.activations == PEN_ACTIVATIONS_FAST)
            store_parts(y, out, args.stride, args.parts, cols, i / WARP);
        else if (i < cols && args.out)
            reinterpret_cast<float *>(out)[i] = y;
        else if (i < cols)
            args.add_to[(size_t)row * cols + i] += y;
    });
}

void pen_cuda_launch_norm(cudaStream_t stream, const pen_cuda_norm_args *args) {
    launch(norm_kernel, dim3(args->count), dim3(THREADS), stream, *args);
}

static __global__ void __launch_bounds__(THREADS) store_kernel(pen_cuda_store_args args) {
    follow();
    const float *x = args.x + (size_t)blockIdx.x * args.cols;
    each_column(args.cols, [&](int i) { store_block(x[i], args.out + args.stride * blockIdx.x, args.cols, i / WARP); });
}

void pen_cuda_launch_store(cudaStream_t stream, const pen_cuda_store_args *args) {
    launch(store_kernel, dim3(args->count), dim3(THREADS), stream, *args);
}

static __global__ void __launch_bounds__(THREADS) activate_kernel(pen_cuda_activate_args args) {
    follow();
    size_t first = args.in_stride * blockIdx.x;
    unsigned char *out = args.out + args.stride * blockIdx.x;
    each_column(args.cols, [&](int i) {
        float y = args.gate ? activate(args.gate[first + i], args.act) * args.up[first + i]
                            : activate(args.up[first + i], args.act);
        if (args.activations == PEN_ACTIVATIONS_FAST)
            store_block(y, out, args.cols, i / WARP);
        else
            reinterpret_cast<float *>(out)[i] = y;
    });
}

void pen_cuda_launch_activate(cudaStream_t stream, const pen_cuda_activate_args *args) {
    launch(activate_kernel, dim3(args->count), dim3(THREADS), stream, *args);
}

/* ---- What this build's code can do on the current GPU ---------------------------------------------------------- */

static bool launches_early;

bool pen_cuda_launches_early(void) {
    return launches_early;
}

cudaError_t pen_cuda_launch_failure(void) {
    cudaError_t failure = launch_failure;
    launch_failure = cudaSuccess;
    return failure;
}

bool pen_cuda_kernels_fit(void) {
    cudaFuncAttributes attributes;
    bool fit = cudaFuncGetAttributes(&attributes, norm_kernel) == cudaSuccess;
    cudaGetLastError(); /* the runtime keeps it otherwise */
    return fit;
}

void pen_cuda_launch_early(bool early) {
    cudaFuncAttributes attributes;
    launches_early = early && cudaFuncGetAttributes(&attributes, norm_kernel) == cudaSuccess &&
                     attributes.binaryVersion >= 90 && attributes.ptxVersion >= 90; /* code that has follow() */
}
