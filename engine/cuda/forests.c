/* The forests of a window, as text/schedule.py builds them, in one call that leaves the interpreter to other threads.

   With rows in order of their words, each row shares its common beginning with the previous one; each further step is a
   node. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct {
    uint64_t key; /* of the first two words, for comparing rows; 0 in place of a word is the end */
    int64_t first, steps, row;
} Row;

/* Whether a comes after b, comparing word by word; if one is the beginning of the other, the longer comes later. */
static int is_after(const Row *a, const Row *b, const int32_t *sequences, int64_t stride) {
    if (a->key != b->key) return a->key > b->key;
    int64_t common = a->steps < b->steps ? a->steps : b->steps;
    for (int64_t depth = 2; depth < common; depth++) {
        int32_t of_a = sequences[a->first + stride * depth], of_b = sequences[b->first + stride * depth];
        if (of_a != of_b) return of_a > of_b;
    }
    return a->steps > b->steps;
}

/* Sorts rows by merging runs, with room for as many; returns whichever of the two holds the result. */
static Row *sort(Row *rows, Row *room, int64_t n, const int32_t *sequences, int64_t stride) {
    for (int64_t run = 1; run < n; run *= 2) {
        for (int64_t start = 0; start < n; start += 2 * run) {
            int64_t middle = start + run < n ? start + run : n, end = start + 2 * run < n ? start + 2 * run : n;
            int64_t left = start, right = middle;
            for (int64_t k = start; k < end; k++) {
                int takes_right = left == middle || (right < end && is_after(&rows[left], &rows[right], sequences, stride));
                room[k] = takes_right ? rows[right++] : rows[left++];
            }
        }
        Row *sorted = room;
        room = rows, rows = sorted;
    }
    return rows;
}

/* Builds one direction. depths [T + 1] is zero at first; path and next have room for T, rows and room for B.
   Returns the number of nodes. */
static int64_t build(const int32_t *sequences, const int64_t *firsts, const int64_t *steps, const int64_t *order,
                     int64_t B, int64_t T, int64_t stride, int share, Row *rows, Row *room, int64_t *shared,
                     int64_t *next, int32_t *path, int32_t *words, int32_t *parents, int64_t *depths,
                     int32_t *position_nodes) {
    int64_t n = 0;
    for (int64_t k = 0; k < B; k++) {
        int64_t row = order[k], first = firsts[row];
        if (steps[row] == 0) continue;
        uint64_t second = steps[row] > 1 ? (uint64_t)sequences[first + stride] + 1 : 0;
        rows[n++] = (Row){((uint64_t)sequences[first] + 1) << 32 | second, first, steps[row], row};
    }
    if (share) rows = sort(rows, room, n, sequences, stride);
    for (int64_t k = 0; k < n; k++) {
        const Row *row = &rows[k], *before = row - 1;
        int64_t depth = 0;
        if (share && k > 0)
            while (depth < row->steps && depth < before->steps &&
                   sequences[row->first + stride * depth] == sequences[before->first + stride * depth])
                depth++;
        shared[k] = depth;
        for (; depth < row->steps; depth++) depths[depth + 1]++;
    }
    for (int64_t depth = 0; depth < T; depth++) {
        next[depth] = depths[depth];
        depths[depth + 1] += depths[depth];
    }
    for (int64_t k = 0; k < n; k++) {
        const Row *row = &rows[k];
        for (int64_t depth = 0; depth < row->steps; depth++) {
            int64_t position = row->first + stride * depth;
            if (depth >= shared[k]) {
                int32_t node = (int32_t)next[depth]++;
                words[node] = sequences[position];
                parents[node] = depth ? path[depth - 1] - (int32_t)depths[depth - 1] : share ? 0 : (int32_t)row->row;
                path[depth] = node;
            }
            position_nodes[position] = path[depth];
        }
    }
    return depths[T];
}

/* build_forests(sequences, firsts, steps, order, share, words, parents, depths, position_nodes) -> nodes of each
   direction. Buffers: int32 [S]; int64 [2, B], [B], [B]; int32 [2, E], [2, E]; int64 [2, T + 1], zero; int32 [2, S]. */
static PyObject *build_forests(PyObject *self, PyObject *args) {
    Py_buffer in[4], out[4];
    int share;
    if (!PyArg_ParseTuple(args, "y*y*y*y*pw*w*w*w*", &in[0], &in[1], &in[2], &in[3], &share, &out[0], &out[1], &out[2],
                          &out[3]))
        return NULL;
    int64_t B = in[2].len / 8, S = in[0].len / 4, E = out[0].len / 8, T = out[2].len / 16 - 1, n_nodes[2];
    Row *rows = malloc(2 * (B + 1) * sizeof(Row));
    int64_t *numbers = malloc((B + 2 * T + 1) * sizeof(int64_t));
    if (rows && numbers) {
        Py_BEGIN_ALLOW_THREADS;
        for (int64_t d = 0; d < 2; d++)
            n_nodes[d] = build(in[0].buf, (int64_t *)in[1].buf + d * B, in[2].buf, in[3].buf, B, T, 1 - 2 * d, share,
                               rows, rows + B, numbers, numbers + B, (int32_t *)(numbers + B + T),
                               (int32_t *)out[0].buf + d * E, (int32_t *)out[1].buf + d * E,
                               (int64_t *)out[2].buf + d * (T + 1), (int32_t *)out[3].buf + d * S);
        Py_END_ALLOW_THREADS;
    }
    int failed = !rows || !numbers;
    free(rows);
    free(numbers);
    for (int k = 0; k < 4; k++) PyBuffer_Release(&in[k]), PyBuffer_Release(&out[k]);
    return failed ? PyErr_NoMemory() : Py_BuildValue("LL", (long long)n_nodes[0], (long long)n_nodes[1]);
}

static PyMethodDef methods[] = {{"build_forests", build_forests, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "flashelmo_forests", NULL, -1, methods};
PyMODINIT_FUNC PyInit_flashelmo_forests(void) { return PyModule_Create(&module); }
