/*
 * Products of matrices of 16-bit floats by cuBLASLt.
 *
 * How a product of a certain shape is best made is asked once; the answers ("recipes") stay in a cache in which a shape
 * has one place, so that nothing grows. Row-major matrices are column-major ones transposed: cuBLASLt is told of
 * outᵀ[rows][tokens] = w[rows][cols]·xᵀ[cols][tokens].
 */
#include "cublaslt.h"
#include "cuda_device.h"

#include <stdlib.h>
#include <string.h>

enum { RECIPES = 256, OUT_ALIGNMENT = 16 };

/* Without holes: it is compared and hashed as bytes. */
typedef struct shape {
    int64_t out_stride;
    int32_t rows, cols, tokens;
    int32_t bf16, bias, add;
} shape;

typedef struct recipe {
    shape shape;
    bool made, usable;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t w, x, out;
    cublasLtMatmulAlgo_t algorithm;
} recipe;

struct pen_cuda_blas {
    const pen_cublaslt *calls;
    cublasLtHandle_t handle;
    recipe recipes[RECIPES];
};

pen_status pen_cuda_blas_create(pen_cuda_blas **blas) {
    const pen_cublaslt *calls;
    PEN_TRY(pen_cublaslt_open(&calls));
    pen_cuda_blas *made = calloc(1, sizeof *made);
    if (!made) return pen_fail(PEN_NO_MEMORY, "no memory for cuBLASLt's recipes");
    made->calls = calls;
    cublasStatus_t status = calls->Create(&made->handle);
    if (status != CUBLAS_STATUS_SUCCESS) {
        free(made);
        return pen_fail(PEN_UNSUPPORTED, "cuBLASLt does not start: status %d", (int)status);
    }
    *blas = made;
    return PEN_OK;
}

static void forget(const pen_cublaslt *calls, recipe *r) {
    if (r->product) calls->MatmulDescDestroy(r->product);
    if (r->w) calls->MatrixLayoutDestroy(r->w);
    if (r->x) calls->MatrixLayoutDestroy(r->x);
    if (r->out) calls->MatrixLayoutDestroy(r->out);
    *r = (recipe){.made = false};
}

void pen_cuda_blas_destroy(pen_cuda_blas *blas) {
    if (!blas) return;
    for (int i = 0; i < RECIPES; i++) forget(blas->calls, &blas->recipes[i]);
    blas->calls->Destroy(blas->handle);
    free(blas);
}

static bool describe(const pen_cublaslt *calls, recipe *r) {
    const shape *s = &r->shape;
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const cublasLtEpilogue_t epilogue = s->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    const cudaDataType_t type = s->bf16 ? CUDA_R_16BF : CUDA_R_16F;
    uint64_t rows = (uint64_t)s->rows, cols = (uint64_t)s->cols, tokens = (uint64_t)s->tokens;
    return !calls->MatmulDescCreate(&r->product, CUBLAS_COMPUTE_32F, CUDA_R_32F) &&
           !calls->MatmulDescSetAttribute(r->product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed) &&
           !calls->MatmulDescSetAttribute(r->product, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue) &&
           !calls->MatrixLayoutCreate(&r->w, type, cols, rows, s->cols) &&
           !calls->MatrixLayoutCreate(&r->x, type, cols, tokens, s->cols) &&
           !calls->MatrixLayoutCreate(&r->out, CUDA_R_32F, rows, tokens, s->out_stride);
}

static bool choose(pen_cuda_blas *blas, recipe *r) {
    const pen_cublaslt *calls = blas->calls;
    const size_t workspace = PEN_CUDA_BLAS_WORKSPACE;
    const uint32_t alignment = OUT_ALIGNMENT;
    cublasLtMatmulPreference_t wishes;
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    if (calls->MatmulPreferenceCreate(&wishes)) return false;
    bool chosen = !calls->MatmulPreferenceSetAttribute(wishes, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                       sizeof workspace) &&
                  !calls->MatmulPreferenceSetAttribute(wishes, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &alignment,
                                                       sizeof alignment) &&
                  !calls->MatmulPreferenceSetAttribute(wishes, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &alignment,
                                                       sizeof alignment) &&
                  !calls->MatmulAlgoGetHeuristic(blas->handle, r->product, r->w, r->x, r->out, r->out, wishes, 1,
                                                 &result, &found) &&
                  found == 1 && result.state == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= workspace;
    calls->MatmulPreferenceDestroy(wishes);
    if (chosen) r->algorithm = result.algo;
    return chosen;
}

static recipe *recipe_of(pen_cuda_blas *blas, const pen_cuda_gemm *gemm) {
    const shape wanted = {(int64_t)gemm->out_stride, gemm->rows, gemm->cols, gemm->tokens, gemm->bf16,
                          gemm->bias ? 1 : 0,        gemm->add};
    const unsigned char *bytes = (const unsigned char *)&wanted;
    uint32_t hash = 2166136261U; /* FNV-1a */
    for (size_t i = 0; i < sizeof wanted; i++) hash = (hash ^ bytes[i]) * 16777619U;
    recipe *r = &blas->recipes[hash % RECIPES];
    if (r->made && memcmp(&r->shape, &wanted, sizeof wanted) == 0) return r;
    forget(blas->calls, r);
    r->shape = wanted;
    r->made = true;
    r->usable = describe(blas->calls, r) && choose(blas, r);
    return r;
}

bool pen_cuda_blas_can(pen_cuda_blas *blas, const pen_cuda_gemm *gemm) {
    return ((uintptr_t)gemm->out | gemm->out_stride * sizeof(float)) % OUT_ALIGNMENT == 0 &&
           recipe_of(blas, gemm)->usable;
}

void pen_cuda_blas_run(pen_cuda_device *device, const pen_cuda_gemm *gemm) {
    const pen_cublaslt *calls = device->blas->calls;
    const float one = 1, beta = gemm->add ? 1 : 0;
    recipe *r = recipe_of(device->blas, gemm);
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    if (gemm->bias)
        status = calls->MatmulDescSetAttribute(r->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &gemm->bias,
                                               sizeof gemm->bias);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = calls->Matmul(device->blas->handle, r->product, &one, gemm->w, r->w, gemm->x, r->x, &beta, gemm->out,
                               r->out, gemm->out, r->out, &r->algorithm, device->arena.blas_workspace,
                               PEN_CUDA_BLAS_WORKSPACE, device->stream);
    if (status != CUBLAS_STATUS_SUCCESS) pen_cuda_check(device, cudaErrorUnknown, "a product of cuBLASLt");
}
