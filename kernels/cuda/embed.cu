/* Rows of weights as numbers: the embedding. */
#include "weights.cuh"

enum { EMBED_THREADS = 64 };

/* Calls put(column, w) for runs of four of a row's values, as many as there are threads at a time: w(i) is the i'th. */
template <int TYPE, class Put> static __device__ void each_run(const pen_cuda_matrix &table, int row, Put put) {
    int slot = row % WARP / 8;
    for (int i = threadIdx.x; i < table.cols / 8; i += EMBED_THREADS) {
        int tile = i / 4, t = i % 4;
        lane_values<TYPE> values(table, row / WARP, tile, 4 * (row % 8) + t);
#pragma unroll
        for (int s = 0; s < LANE_ROWS; s++)
#pragma unroll
            for (int run = 0; run < 2; run++)
                if (s == slot)
                    put(PEN_CUDA_BLOCK * tile + values.run_at(t, run),
                        make_float4(values.at(s, RUN * run), values.at(s, RUN * run + 1), values.at(s, RUN * run + 2),
                                    values.at(s, RUN * run + 3)));
    }
}

template <int TYPE> static __global__ void __launch_bounds__(EMBED_THREADS) embed_kernel(pen_cuda_embed_args args) {
    follow();
    float *x = args.x + (size_t)blockIdx.x * args.table.cols, scale = args.scale;
    each_run<TYPE>(args.table, args.token[blockIdx.x], [=](int at, float4 w) {
        *reinterpret_cast<float4 *>(x + at) = make_float4(scale * w.x, scale * w.y, scale * w.z, scale * w.w);
    });
}

/* x += rows of a second table, by position. */
template <int TYPE>
static __global__ void __launch_bounds__(EMBED_THREADS) add_positions_kernel(pen_cuda_embed_args args) {
    follow();
    float *x = args.x + (size_t)blockIdx.x * args.table.cols;
    each_run<TYPE>(args.positions, args.position[blockIdx.x], [=](int at, float4 w) {
        float4 *to = reinterpret_cast<float4 *>(x + at);
        *to = make_float4(to->x + w.x, to->y + w.y, to->z + w.z, to->w + w.w);
    });
}

struct embed_call {
    cudaStream_t stream;
    const pen_cuda_embed_args &args;
    bool positions;

    template <int TYPE> void run() {
        launch(positions ? add_positions_kernel<TYPE> : embed_kernel<TYPE>, dim3(args.count), dim3(EMBED_THREADS),
               stream, args);
    }
};

void pen_cuda_launch_embed(cudaStream_t stream, const pen_cuda_embed_args *args) {
    for_type(args->table.type, embed_call{stream, *args, false});
    if (args->positions.data) for_type(args->positions.type, embed_call{stream, *args, true});
}
