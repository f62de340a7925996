/* Stands in for libcuda.so.1 where there is no card: Triton's own launchers run, and their launches are recorded. */
#include <cuda.h>
#include <string.h>

#define MOST 64
#define CALL(name, ...) CUresult name(__VA_ARGS__)

struct {
    unsigned long long launches, stream, function, attributes, threads, shared, context, grid[3], parameters[MOST];
} launched;
int version = 13000;
static __thread CUcontext current; /* a new thread has none, and may launch nothing */
int n_parameters; /* to record of each launch, without scratch memory; the first 4 bytes of each */

CALL(cuLaunchKernelEx, const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra) {
    if (!current) return CUDA_ERROR_INVALID_CONTEXT;
    launched.launches++;
    launched.context = (unsigned long long)current;
    launched.stream = (unsigned long long)config->hStream;
    launched.function = (unsigned long long)function;
    launched.threads = config->blockDimX * config->blockDimY * config->blockDimZ;
    launched.shared = config->sharedMemBytes;
    launched.grid[0] = config->gridDimX;
    launched.grid[1] = config->gridDimY;
    launched.grid[2] = config->gridDimZ;
    launched.attributes = 0;
    for (unsigned i = 0; i < config->numAttrs; i++)
        launched.attributes |= (unsigned long long)(config->attrs[i].value.cooperative != 0) << config->attrs[i].id;
    for (int i = 0; i < n_parameters; i++) memcpy(&launched.parameters[i], parameters[i], 4);
    return CUDA_SUCCESS;
}

/* Of a descriptor only the tensor's address is recorded. */
CALL(cuTensorMapEncodeTiled, CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
     const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box, const cuuint32_t *steps,
     CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
     CUtensorMapFloatOOBfill fill) {
    memset(map, 0, sizeof *map);
    memcpy(map, &address, sizeof address);
    return CUDA_SUCCESS;
}

CALL(cuPointerGetAttribute, void *found, CUpointer_attribute attribute, CUdeviceptr pointer) {
    *(CUdeviceptr *)found = pointer;
    return CUDA_SUCCESS;
}

CALL(cuDeviceGetAttribute, int *found, CUdevice_attribute attribute, CUdevice device) {
    *found = 227 << 10; /* bytes of shared memory that a program may have; large enough for everything else */
    return CUDA_SUCCESS;
}

CALL(cuFuncGetAttribute, int *found, CUfunction_attribute attribute, CUfunction function) {
    *found = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
    return CUDA_SUCCESS;
}

CALL(cuModuleGetFunction, CUfunction *function, CUmodule module, const char *name) {
    static unsigned long long n_functions;
    *function = (CUfunction)++n_functions;
    return CUDA_SUCCESS;
}

CALL(cuDriverGetVersion, int *found) { return *found = version, CUDA_SUCCESS; }
CALL(cuCtxGetDevice, CUdevice *device) { return *device = 0, CUDA_SUCCESS; }
CALL(cuModuleUnload, CUmodule module) { return CUDA_SUCCESS; }
CALL(cuStreamIsCapturing, CUstream stream, CUstreamCaptureStatus *status) {
    return *status = CU_STREAM_CAPTURE_STATUS_NONE, CUDA_SUCCESS;
}
CALL(cuModuleLoadData, CUmodule *module, const void *image) { return *module = (CUmodule)1, CUDA_SUCCESS; }
CALL(cuCtxGetCurrent, CUcontext *context) { return *context = current, CUDA_SUCCESS; }
CALL(cuCtxSetCurrent, CUcontext context) { return current = context, CUDA_SUCCESS; }
CALL(cuDeviceGet, CUdevice *device, int number) { return *device = number, CUDA_SUCCESS; }
CALL(cuDevicePrimaryCtxRetain, CUcontext *context, CUdevice device) {
    return *context = (CUcontext)(size_t)(device + 1), CUDA_SUCCESS;
}
CALL(cuFuncSetAttribute, CUfunction function, CUfunction_attribute attribute, int value) { return CUDA_SUCCESS; }
CALL(cuFuncSetCacheConfig, CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }
CALL(cuGetErrorString, CUresult result, const char **text) { return *text = "", CUDA_SUCCESS; }
CALL(cuCtxGetLimit, size_t *value, CUlimit limit) { return *value = 0, CUDA_SUCCESS; }
CALL(cuCtxSetLimit, CUlimit limit, size_t value) { return CUDA_SUCCESS; }
CALL(cuOccupancyMaxActiveClusters, int *n, CUfunction function, const CUlaunchConfig *config) {
    return *n = 1, CUDA_SUCCESS;
}
