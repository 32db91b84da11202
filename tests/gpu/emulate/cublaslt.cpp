/*
 * The emulated cuBLASLt: one kind of product, in plain loops, when its turn in the stream comes. It is strict: shapes
 * and alignments that have not been asked for, an algorithm that was chosen for other ones, or memory that is not the
 * device's end the test.
 */
extern "C" {
#include "cublaslt.h"
#include "types.h"
}
#include "emulate.h"
#include "stream.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

struct cublasLtContext {};
struct cublasLtMatmulDescOpaque_t {
    cublasOperation_t transpose_a;
    cublasLtEpilogue_t epilogue;
    const float *bias;
};
struct cublasLtMatrixLayoutOpaque_t {
    cudaDataType type;
    uint64_t rows, cols;
    int64_t ld;
};
struct cublasLtMatmulPreferenceOpaque_t {
    size_t workspace;
    uint32_t alignment;
};

namespace {

enum { WORKSPACE = 1 << 20, ALIGNMENT = 256 };

bool present;
int objects; /* that have been made and not destroyed */

void require(bool holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "emulated cuBLASLt: %s\n", what);
    abort();
}

/* What an algorithm is chosen for. */
cublasLtMatmulAlgo_t algorithm_for(cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                   cublasLtMatrixLayout_t d, uint32_t alignment) {
    return {{a->rows, a->cols, b->cols, (uint64_t)d->ld, (uint64_t)a->type, (uint64_t)desc->epilogue, alignment, 7}};
}

template <class T> void take(T *to, const void *value, size_t size) {
    require(size == sizeof *to, "an attribute of another size");
    memcpy(to, value, size);
}

const char *last_byte(const void *matrix, cublasLtMatrixLayout_t layout, size_t element) {
    return (const char *)matrix + (((size_t)layout->ld * (layout->cols - 1)) + layout->rows) * element;
}

void require_matrix(const void *matrix, cublasLtMatrixLayout_t layout, size_t element, size_t alignment) {
    size_t bytes = (size_t)(last_byte(matrix, layout, element) - (const char *)matrix);
    require(pen_emulate_is_device_memory(matrix, bytes), "a matrix that is not in the device's memory");
    require((uintptr_t)matrix % alignment == 0, "a matrix is not aligned as was said");
}

float value_of(const void *matrix, size_t at, cudaDataType type) {
    uint16_t bits;
    memcpy(&bits, (const char *)matrix + 2 * at, 2);
    return type == CUDA_R_16BF ? pen_bf16_to_f32(bits) : pen_f16_to_f32(bits);
}

} // namespace

void pen_emulate_cublaslt(bool is_present) {
    present = is_present;
}

extern "C" pen_status pen_cublaslt_open(const pen_cublaslt **calls) {
#define PEN_CALL(name) cublasLt##name,
    static const pen_cublaslt table = {PEN_CUBLASLT_CALLS(PEN_CALL)};
#undef PEN_CALL
    if (!present) return pen_fail(PEN_UNSUPPORTED, "cannot open libcublasLt.so.13: there is none in the emulation");
    *calls = &table;
    return PEN_OK;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    *handle = new cublasLtContext;
    objects++;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    require(--objects == 0, "something of a handle's is left");
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute, cudaDataType scale) {
    require(compute == CUBLAS_COMPUTE_32F && scale == CUDA_R_32F, "another precision");
    *desc = new cublasLtMatmulDescOpaque_t{CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, nullptr};
    objects++;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    objects--;
    delete desc;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t size) {
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA: take(&desc->transpose_a, value, size); break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE: take(&desc->epilogue, value, size); break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: take(&desc->bias, value, size); break;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t ld) {
    require(rows > 0 && cols > 0 && ld >= (int64_t)rows, "a matrix of a strange shape");
    *layout = new cublasLtMatrixLayoutOpaque_t{type, rows, cols, ld};
    objects++;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    objects--;
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    *preference = new cublasLtMatmulPreferenceOpaque_t{0, ALIGNMENT};
    objects++;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    objects--;
    delete preference;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void *value,
                                                    size_t size) {
    if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES)
        take(&preference->workspace, value, size);
    else
        take(&preference->alignment, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference,
                                              int wanted, cublasLtMatmulHeuristicResult_t results[], int *found) {
    require(desc->transpose_a == CUBLAS_OP_T && c == d && wanted == 1, "another kind of product");
    require(a->type != CUDA_R_32F && a->type == b->type && d->type == CUDA_R_32F, "types that do not go together");
    require(a->rows == b->rows && a->cols == d->rows && b->cols == d->cols, "shapes that do not go together");
    *found = preference->workspace >= WORKSPACE && a->ld % 8 == 0 && d->ld % 4 == 0;
    if (!*found) return CUBLAS_STATUS_NOT_SUPPORTED;
    results[0] = {algorithm_for(desc, a, b, d, preference->alignment), WORKSPACE, CUBLAS_STATUS_SUCCESS};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
                              const void *beta, const void *c, cublasLtMatrixLayout_t, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algorithm, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
    uint32_t alignment = (uint32_t)algorithm->data[6];
    cublasLtMatmulAlgo_t expected = algorithm_for(desc, a_layout, b_layout, d_layout, alignment);
    require(memcmp(&expected, algorithm, sizeof expected) == 0, "an algorithm that was chosen for another product");
    require(workspace_bytes >= WORKSPACE && pen_emulate_is_device_memory(workspace, workspace_bytes), "no workspace");
    require_matrix(a, a_layout, 2, ALIGNMENT);
    require_matrix(b, b_layout, 2, ALIGNMENT);
    require_matrix(d, d_layout, 4, alignment);
    require(c == d && *(const float *)alpha == 1, "another kind of product");
    bool add = *(const float *)beta != 0;
    const float *bias = desc->epilogue == CUBLASLT_EPILOGUE_BIAS ? desc->bias : nullptr;
    cublasLtMatrixLayoutOpaque_t w = *a_layout, x = *b_layout, out = *d_layout; /* theirs may be gone by then */
    pen_emulate_enqueue(stream, [=] {
        memset(workspace, 0x5a, workspace_bytes);
        for (uint64_t t = 0; t < out.cols; t++)
            for (uint64_t n = 0; n < out.rows; n++) {
                float sum = 0, *to = (float *)d + t * (uint64_t)out.ld + n;
                for (uint64_t k = 0; k < w.rows; k++)
                    sum = fmaf(value_of(a, n * (uint64_t)w.ld + k, w.type), value_of(b, t * (uint64_t)x.ld + k, x.type),
                               sum);
                *to = sum + (add ? *to : 0) + (bias ? bias[n] : 0);
            }
    });
    return CUBLAS_STATUS_SUCCESS;
}
