/*
 * limits: what the GPU can do, measured, a line of JSON for each figure; bench.c's figures are held against these.
 *
 *   copy       a large copy from device to device, bytes read and written, GB/s
 *   read       a large buffer, only read, GB/s
 *   gemm bf16  a product of large square matrices by cuBLASLt, bf16 with f32 sums, TFLOP/s
 *   gemm int8  the same of int8 with int32 sums
 *
 * cuBLASLt is opened when it is needed, so that a machine without it has the other figures. Each is the median of some
 * repetitions, timed by events, on random numbers: zeros take less power, and a GPU is then faster than it is.
 */
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <string>
#include <vector>

static constexpr size_t MEMORY_BYTES = size_t(2) << 30, WORKSPACE_BYTES = size_t(64) << 20;
static constexpr int REPEATS = 15, WARM_UP = 3, SIDE = 8192;

static void fail(const char *what, const char *why) {
    fprintf(stderr, "limits: %s: %s\n", what, why);
    exit(1);
}

static void check(cudaError_t error, const char *what) {
    if (error != cudaSuccess) fail(what, cudaGetErrorString(error));
}

static void *allocate(size_t bytes) {
    void *memory;
    check(cudaMalloc(&memory, bytes), "allocating device memory");
    return memory;
}

static void print(const char *name, double value, const char *unit) {
    printf("{\"kind\": \"limit\", \"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"}\n", name, value, unit);
    fflush(stdout);
}

/* The median of some calls, in milliseconds. */
template <typename Work> static double time_ms(const Work &work) {
    cudaEvent_t begin, end;
    check(cudaEventCreate(&begin), "creating an event");
    check(cudaEventCreate(&end), "creating an event");
    std::vector<float> times(REPEATS);
    for (int i = 0; i < WARM_UP; i++) work();
    for (float &ms : times) {
        check(cudaEventRecord(begin), "recording an event");
        work();
        check(cudaEventRecord(end), "recording an event");
        check(cudaEventSynchronize(end), "waiting for the GPU");
        check(cudaEventElapsedTime(&ms, begin, end), "reading an event");
    }
    check(cudaGetLastError(), "launching a kernel");
    check(cudaEventDestroy(begin), "destroying an event");
    check(cudaEventDestroy(end), "destroying an event");
    std::sort(times.begin(), times.end());
    return double(times[REPEATS / 2]);
}

/* ---- Memory -------------------------------------------------------------------------------------------------------
 */

__global__ void read_kernel(const uint4 *memory, size_t count, unsigned *sum) {
    size_t step = size_t(gridDim.x) * blockDim.x;
    unsigned own = 0;
#pragma unroll 8
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        uint4 word = memory[i];
        own += word.x ^ word.y ^ word.z ^ word.w;
    }
    if (own == 0x12345678) *sum = own; /* so that it is read */
}

/* The finaliser of SplitMix64, of each word's place. */
__global__ void fill_kernel(unsigned long long *memory, size_t count) {
    size_t step = size_t(gridDim.x) * blockDim.x;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        unsigned long long z = (i + 1) * 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        memory[i] = z ^ (z >> 31);
    }
}

static void measure_memory(int processors) {
    unsigned char *from = static_cast<unsigned char *>(allocate(MEMORY_BYTES));
    unsigned char *to = static_cast<unsigned char *>(allocate(MEMORY_BYTES));
    unsigned *sum = static_cast<unsigned *>(allocate(sizeof *sum));
    fill_kernel<<<processors * 8, 256>>>(reinterpret_cast<unsigned long long *>(from), MEMORY_BYTES / 8);
    double copy_ms = time_ms(
        [&] { check(cudaMemcpyAsync(to, from, MEMORY_BYTES, cudaMemcpyDeviceToDevice), "copying device memory"); });
    print("copy", 2 * double(MEMORY_BYTES) / copy_ms / 1e6, "GB/s");
    double best = 0;
    for (int blocks = 2; blocks <= 16; blocks *= 2) {
        double ms = time_ms([&] {
            read_kernel<<<processors * blocks, 256>>>(reinterpret_cast<const uint4 *>(from), MEMORY_BYTES / 16, sum);
        });
        best = std::max(best, double(MEMORY_BYTES) / ms / 1e6);
    }
    print("read", best, "GB/s");
    check(cudaFree(from), "freeing device memory");
    check(cudaFree(to), "freeing device memory");
    check(cudaFree(sum), "freeing device memory");
}

/* ---- Products -----------------------------------------------------------------------------------------------------
 */

struct cublaslt {
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtMatmulDescCreate) describe;
    decltype(&cublasLtMatmulDescSetAttribute) set;
    decltype(&cublasLtMatrixLayoutCreate) lay_out;
    decltype(&cublasLtMatmulPreferenceCreate) prefer;
    decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference;
    decltype(&cublasLtMatmulAlgoGetHeuristic) choose;
    decltype(&cublasLtMatmul) multiply;
};

template <typename Function> static void find(void *library, const char *name, Function &function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (!function) fail("libcublasLt has no function of this name", name);
}

static bool open_cublaslt(cublaslt &lt) {
    std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
    void *library = dlopen(name.c_str(), RTLD_NOW);
    if (!library) library = dlopen("libcublasLt.so", RTLD_NOW);
    if (!library) {
        fprintf(stderr, "limits: no peak of products: %s\n", dlerror());
        return false;
    }
    find(library, "cublasLtCreate", lt.create);
    find(library, "cublasLtMatmulDescCreate", lt.describe);
    find(library, "cublasLtMatmulDescSetAttribute", lt.set);
    find(library, "cublasLtMatrixLayoutCreate", lt.lay_out);
    find(library, "cublasLtMatmulPreferenceCreate", lt.prefer);
    find(library, "cublasLtMatmulPreferenceSetAttribute", lt.set_preference);
    find(library, "cublasLtMatmulAlgoGetHeuristic", lt.choose);
    find(library, "cublasLtMatmul", lt.multiply);
    return true;
}

static void check(cublasStatus_t status, const char *what) {
    if (status != CUBLAS_STATUS_SUCCESS) fail(what, ("cuBLASLt says " + std::to_string(int(status))).c_str());
}

/* Numbers of a type. */
struct form {
    const char *name;
    cudaDataType_t in, out, scale;
    cublasComputeType_t compute;
    size_t in_bytes;
};

/* 16 random bits as a bf16 of −1 to 1; random bytes are int8 numbers as they are. */
__global__ void bf16_kernel(unsigned short *values, size_t count) {
    size_t step = size_t(gridDim.x) * blockDim.x;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        float value = float(short(values[i])) / 32768.0F;
        values[i] = static_cast<unsigned short>(__float_as_uint(value) >> 16);
    }
}

/* d = aᵀ·b of matrices SIDE × SIDE, as cuBLASLt has its fastest kernels for. */
static void measure_product(const cublaslt &lt, cublasLtHandle_t handle, const form &f, int processors) {
    constexpr size_t count = size_t(SIDE) * SIDE;
    void *a = allocate(count * f.in_bytes), *b = allocate(count * f.in_bytes), *d = allocate(count * 4);
    void *workspace = allocate(WORKSPACE_BYTES);
    for (void *in : {a, b}) {
        fill_kernel<<<processors * 8, 256>>>(static_cast<unsigned long long *>(in), count * f.in_bytes / 8);
        if (f.in == CUDA_R_16BF) bf16_kernel<<<processors * 8, 256>>>(static_cast<unsigned short *>(in), count);
    }
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t in, out;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t chosen;
    cublasOperation_t transposed = CUBLAS_OP_T;
    size_t workspace_bytes = WORKSPACE_BYTES;
    int found = 0;
    check(lt.describe(&product, f.compute, f.scale), "describing a product");
    check(lt.set(product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed), "describing a product");
    check(lt.lay_out(&in, f.in, SIDE, SIDE, SIDE), "describing a matrix");
    check(lt.lay_out(&out, f.out, SIDE, SIDE, SIDE), "describing a matrix");
    check(lt.prefer(&preference), "making a preference");
    check(lt.set_preference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes,
                            sizeof workspace_bytes),
          "making a preference");
    if (lt.choose(handle, product, in, in, out, out, preference, 1, &chosen, &found) != CUBLAS_STATUS_SUCCESS ||
        !found) {
        fprintf(stderr, "limits: no %s: cuBLASLt has no kernel for it\n", f.name);
        return;
    }
    float one = 1, zero = 0;
    int whole_one = 1, whole_zero = 0;
    bool whole = f.scale == CUDA_R_32I;
    const void *alpha = whole ? static_cast<const void *>(&whole_one) : &one;
    const void *beta = whole ? static_cast<const void *>(&whole_zero) : &zero;
    double ms = time_ms([&] {
        check(lt.multiply(handle, product, alpha, a, in, b, in, beta, d, out, d, out, &chosen.algo, workspace,
                          WORKSPACE_BYTES, nullptr),
              f.name);
    });
    print(f.name, 2.0 * SIDE * double(count) / ms / 1e9, "TFLOP/s");
    for (void *memory : {a, b, d, workspace}) check(cudaFree(memory), "freeing device memory");
}

int main() {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, 0), "looking at the GPU");
    int processors = properties.multiProcessorCount;
    fprintf(stderr, "limits: %s, %d multiprocessors, %d MB of L2\n", properties.name, processors,
            properties.l2CacheSize >> 20);
    measure_memory(processors);
    cublaslt lt;
    if (!open_cublaslt(lt)) return 0;
    cublasLtHandle_t handle;
    check(lt.create(&handle), "opening cuBLASLt");
    static const form forms[] = {
        {"gemm bf16", CUDA_R_16BF, CUDA_R_16BF, CUDA_R_32F, CUBLAS_COMPUTE_32F, 2},
        {"gemm int8", CUDA_R_8I, CUDA_R_32I, CUDA_R_32I, CUBLAS_COMPUTE_32I, 1},
    };
    for (const form &f : forms) measure_product(lt, handle, f, processors);
    return 0;
}
