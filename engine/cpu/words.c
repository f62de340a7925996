/* The words' network in 16 bits, layer by layer: convolutions over characters, highways, projection. */

#include "numbers.h"
#include "products.h"
#include "team.h"

enum { AS_IT_IS, RELU, TANH }; /* what is done to sums */

typedef struct {
    int32_t n_rows, n_inputs, n_outputs;
    int32_t activation, together; /* consecutive rows of which only the largest sums are kept, as a word's positions */
    int32_t is_highway;           /* per 32 columns, the transformed ones, then their gates */
    const float *x, *bias;        /* [n, K]; [N / 16] of the sums' columns, [16] each */
    const uint8_t *weights;       /* four groups of 16 columns in a block */
    float *y;                     /* [n / together, N] */
} Layer;

INLINE __m512 activated(int activation, __m512 x) {
    const __m512 one = _mm512_set1_ps(1.f);
    if (activation == RELU) return _mm512_max_ps(_mm512_setzero_ps(), x); /* NaN stays NaN */
    if (activation == AS_IT_IS) return x;
    __m512 e = power_of_2(_mm512_min_ps(_mm512_set1_ps(64.f), _mm512_mul_ps(x, _mm512_set1_ps(2.88539008f))));
    return _mm512_mul_ps(_mm512_sub_ps(e, one), _mm512_rcp14_ps(_mm512_add_ps(e, one)));
}

/* y = g relu(t) + (1 - g) x, g = 1 / (1 + 2^gate). */
INLINE __m512 highway(__m512 transformed, __m512 gate, __m512 x) {
    const __m512 one = _mm512_set1_ps(1.f);
    __m512 g = _mm512_rcp14_ps(_mm512_add_ps(one, power_of_2(gate)));
    return _mm512_fmadd_ps(g, _mm512_sub_ps(activated(RELU, transformed), x), x);
}

/* Computes a block's columns of some rows of a layer, after the products. */
INLINE void finish_rows(const Layer *layer, int block, int first, int here, const float *sums, __m512 *largest) {
    int groups_of_16 = layer->is_highway ? 2 : 4;
    for (int group = 0; group < groups_of_16; group++) {
        int at = (block * groups_of_16 + group) * 16;
        __mmask16 some = first_of_16(layer->n_outputs - at);
        if (!some) continue;
        const float *bias = layer->bias + block * 64 + group * 16;
        for (int i = 0; i < here; i++) {
            __m512 sum = _mm512_load_ps(sums + (group * ROWS + i) * 16);
            int row = first + i, word = row / layer->together;
            float *y = layer->y + (int64_t)word * layer->n_outputs + at;
            if (layer->is_highway) {
                __m512 gate = _mm512_load_ps(sums + ((group + 2) * ROWS + i) * 16);
                __m512 x = _mm512_maskz_loadu_ps(some, layer->x + (int64_t)row * layer->n_inputs + at);
                sum = highway(_mm512_add_ps(sum, _mm512_loadu_ps(bias)), _mm512_add_ps(gate, _mm512_loadu_ps(bias + 32)), x);
            } else {
                largest[group] = row % layer->together ? _mm512_max_ps(largest[group], sum) : sum;
                sum = activated(layer->activation, _mm512_add_ps(largest[group], _mm512_loadu_ps(bias)));
            }
            if ((row + 1) % layer->together == 0) _mm512_mask_storeu_ps(y, some, sum);
        }
    }
}

static void do_layer(Team *team, int thread, const void *call) {
    const Layer *layer = call;
    uint8_t *rows = team->memory;
    const int K = layer->n_inputs, n = layer->n_rows, n_k = groups(K * 2, LINE);
    const int n_blocks = groups(layer->n_outputs, layer->is_highway ? 32 : 64);
    const int words = 16 * layer->together, some = words < TOGETHER ? TOGETHER / words * words : words; /* in whole tiles */
    float sums[4 * ROWS * 16] __attribute__((aligned(LINE))), scale;
    for (EACH(row, n)) store_row(16, K, n_k, layer->x + (int64_t)row * K, line(rows, n_k, row), &scale);
    meet(team);
    begin_products(n);
    for (int from = 0; from < n; from += some)
        for (EACH(block, n_blocks)) {
            __m512 largest[4];
            for (int first = from; first < at_most(n, from + some); first += ROWS) {
                int here = at_most(at_most(n, from + some) - first, ROWS);
                const uint8_t *weights = layer->weights + (int64_t)block * n_k * 4 * TILE;
                multiply((Product){16, here, n_k, 4, line(rows, n_k, first), weights, 0, sums});
                finish_rows(layer, block, first, here, sums, largest);
            }
        }
    end_products();
}

/* Runs a layer: [n, K] -> [n / together, N]. Returns whether there is memory. */
int run_layer(Team *team, const Layer *layer) {
    int64_t n_bytes = (int64_t)groups(layer->n_rows, ROWS) * 2 * groups(layer->n_inputs * 2, LINE) * TILE;
    return do_together(team, n_bytes, do_layer, layer);
}
