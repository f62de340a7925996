/* Queues launches one after the other through the card's driver, while other threads hold the interpreter lock. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <cuda.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MOST 128       /* parameters of a kernel */
#define ALIGNED 128    /* bytes: tensor maps are placed at multiples of it */
#define DEPENDENT 1    /* flags: may begin before the previous launch ends */
#define AT_ONCE 2      /* all programs run at the same time */

typedef struct {
    CUfunction function;
    CUlaunchConfig config;
    CUlaunchAttribute attributes[2];
    void *parameters[MOST + 2];
    char *values;     /* what the parameters point to */
    int32_t *integer; /* the value among these in which launches differ; NULL if there is none */
} Part;

static CUresult (*launch_kernel)(const CUlaunchConfig *, CUfunction, void **, void **);
static CUresult (*error_text)(CUresult, const char **);
static CUresult (*driver_version)(int *);
static CUresult (*current_context)(CUcontext *);
static CUresult (*set_context)(CUcontext);
static CUresult (*find_device)(CUdevice *, int);
static CUresult (*retain_context)(CUcontext *, CUdevice);
static CUdeviceptr no_scratch;

static int find_driver(void) {
    static const struct {
        const char *name;
        void *found;
    } functions[] = {
        {"cuLaunchKernelEx", &launch_kernel}, {"cuGetErrorString", &error_text},
        {"cuDriverGetVersion", &driver_version}, {"cuCtxGetCurrent", &current_context},
        {"cuCtxSetCurrent", &set_context}, {"cuDeviceGet", &find_device},
        {"cuDevicePrimaryCtxRetain", &retain_context},
    };
    static void *driver; /* once all functions are found */
    if (driver) return 1;
    void *opened = dlopen("libcuda.so.1", RTLD_LAZY);
    for (size_t k = 0; k < sizeof functions / sizeof *functions; k++) {
        void *function = opened ? dlsym(opened, functions[k].name) : NULL;
        if (!function) {
            PyErr_Format(PyExc_RuntimeError, "libcuda.so.1: expected %s, found no such function", functions[k].name);
            return 0;
        }
        memcpy(functions[k].found, &function, sizeof function);
    }
    driver = opened;
    return 1;
}

/* Gives a thread that has no context, as a new one, that of a device; Triton's launchers do so too. */
static CUresult ensure_context(int number) {
    CUcontext context = NULL;
    CUdevice device;
    CUresult result = current_context(&context);
    if (result != CUDA_SUCCESS || context) return result;
    if ((result = find_device(&device, number)) != CUDA_SUCCESS) return result;
    if ((result = retain_context(&context, device)) != CUDA_SUCCESS) return result;
    return set_context(context);
}

/* Whether graphs may have launches that begin early: only since CUDA 12.3; a capture fails on an older driver. */
static int captures_dependent(void) {
    int version = 0;
    return driver_version(&version) == CUDA_SUCCESS && version >= 12030;
}

/* Reads a part: (function, threads, shared, flags, values, parameter offsets, offset of the integer or -1). */
static int read_part(PyObject *given, Part *part, CUstream stream) {
    unsigned long long function;
    unsigned threads, shared, flags;
    Py_buffer values, offsets;
    int at;
    if (!PyArg_ParseTuple(given, "KIIIy*y*i", &function, &threads, &shared, &flags, &values, &offsets, &at)) return 0;
    Py_ssize_t n = offsets.len / (Py_ssize_t)sizeof(int32_t), size = (values.len / ALIGNED + 1) * ALIGNED;
    part->values = n <= MOST && at + (Py_ssize_t)sizeof(int32_t) <= values.len ? aligned_alloc(ALIGNED, size) : NULL;
    if (part->values) {
        memcpy(part->values, values.buf, values.len);
        for (Py_ssize_t k = 0; k < n; k++) part->parameters[k] = part->values + ((int32_t *)offsets.buf)[k];
        part->parameters[n] = part->parameters[n + 1] = &no_scratch;
        part->integer = at < 0 ? NULL : (int32_t *)(part->values + at);
        part->function = (CUfunction)function;
        unsigned n_attributes = 0;
        if (flags & DEPENDENT && captures_dependent()) {
            part->attributes[n_attributes].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            part->attributes[n_attributes++].value.programmaticStreamSerializationAllowed = 1;
        }
        if (flags & AT_ONCE) {
            part->attributes[n_attributes].id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
            part->attributes[n_attributes++].value.cooperative = 1;
        }
        part->config = (CUlaunchConfig){.blockDimX = threads, .blockDimY = 1, .blockDimZ = 1, .sharedMemBytes = shared,
                                        .hStream = stream, .attrs = part->attributes, .numAttrs = n_attributes};
    } else {
        PyErr_SetString(PyExc_ValueError, "part: expected fewer parameters, and the integer among their values");
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&offsets);
    return part->values != NULL;
}

/* launch(parts, which, integers, grids, device, stream): each launch's part, its integer and its grid; int32 [n], [n],
   [n, 3]. */
static PyObject *launch(PyObject *self, PyObject *args) {
    PyObject *given;
    Py_buffer which, integers, grids;
    int device;
    unsigned long long stream;
    if (!PyArg_ParseTuple(args, "O!y*y*y*iK", &PyTuple_Type, &given, &which, &integers, &grids, &device, &stream))
        return NULL;
    Py_ssize_t n = which.len / (Py_ssize_t)sizeof(int32_t), n_parts = PyTuple_GET_SIZE(given), n_read = 0;
    Part *parts = calloc(n_parts + 1, sizeof(Part));
    CUresult result = CUDA_SUCCESS;
    if (parts && find_driver())
        while (n_read < n_parts && read_part(PyTuple_GET_ITEM(given, n_read), &parts[n_read], (CUstream)stream)) n_read++;
    if (parts && n_read == n_parts && !PyErr_Occurred()) {
        Py_BEGIN_ALLOW_THREADS;
        result = ensure_context(device);
        for (Py_ssize_t k = 0; k < n && result == CUDA_SUCCESS; k++) {
            Part *part = &parts[((int32_t *)which.buf)[k]];
            const int32_t *grid = (int32_t *)grids.buf + 3 * k;
            part->config.gridDimX = grid[0], part->config.gridDimY = grid[1], part->config.gridDimZ = grid[2];
            if (part->integer) *part->integer = ((int32_t *)integers.buf)[k];
            result = launch_kernel(&part->config, part->function, part->parameters, NULL);
        }
        Py_END_ALLOW_THREADS;
    }
    for (Py_ssize_t k = 0; parts && k < n_parts; k++) free(parts[k].values);
    free(parts);
    PyBuffer_Release(&which), PyBuffer_Release(&integers), PyBuffer_Release(&grids);
    if (!parts) return PyErr_NoMemory();
    if (result != CUDA_SUCCESS) {
        const char *text = NULL;
        error_text(result, &text);
        PyErr_Format(PyExc_RuntimeError, "Triton Error [CUDA]: %s", text ? text : "unknown");
    }
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

/* Returns the bytes of a tensor map that Triton encoded: the end of an object that its driver.c aligns to 64 or 128. */
static PyObject *map_bytes(PyObject *self, PyObject *map) {
    const char *name = strrchr(Py_TYPE(map)->tp_name, '.');
    Py_ssize_t start = Py_TYPE(map)->tp_basicsize - (Py_ssize_t)sizeof(CUtensorMap);
    if (strcmp(name ? name + 1 : Py_TYPE(map)->tp_name, "PyCUtensorMap") || (start != 64 && start != 128))
        return PyErr_Format(PyExc_TypeError, "map: expected Triton's tensor map, found %s", Py_TYPE(map)->tp_name);
    return PyBytes_FromStringAndSize((char *)map + start, sizeof(CUtensorMap));
}

static PyMethodDef methods[] = {
    {"launch", launch, METH_VARARGS, NULL}, {"map_bytes", map_bytes, METH_O, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "flashelmo_series", NULL, -1, methods};
PyMODINIT_FUNC PyInit_flashelmo_series(void) { return PyModule_Create(&module); }
