/* An LSTM with projection in 16 or 8 bits, for processors with AMX, or with AVX-512 instructions that multiply them.

The cell is bilm-tf's LSTMCell with projection, cell_clip and proj_clip (Sak et al. 2014):

    i, f, g, o = part + h W                         sums in float32; for 8 bits in integers, times both scales
    c = clip(sigmoid(f) c + sigmoid(i) tanh(g))     float32
    h = clip((sigmoid(o) tanh(c)) W_p)              float32, rounded where it is multiplied

Products alone would be limited by reading weights, and cells by their arithmetic. So a thread has some blocks of 16
cells, with all four gates of each: while the tiles multiply the next 32 rows, the vector units compute the cells of the
previous ones, whose sums are still in the first-level cache. Arrays that pass between calls are stored block by block,
so that memory is read in order:

    part     [C / 16, rows, 4, 16]  bfloat16: the non-recurrent product, including the bias; or a table of words
    cells    [C / 16, rows, 16]     float32

Sizes that are not multiples of these are padded with zeros. products.h says how weights and multiplied rows are stored.
*/

#include <sys/syscall.h>
#include <unistd.h>

#include "numbers.h"
#include "products.h"
#include "team.h"

typedef struct {
    int32_t n_inputs, n_cells, bits;  /* P, C, 16 or 8 */
    float cell_clip, projection_clip; /* 0 for no clip */
    const uint8_t *input, *recurrent, *projection; /* of P and P columns of C; no projection if P is C */
    const float *bias, *input_scale, *recurrent_scale; /* [C / 16, 4, 16] */
    const float *projection_scale;                     /* [P / 32, 2, 16] */
    const int32_t *input_start, *recurrent_start, *projection_start; /* likewise, for 8 bits: see SHIFT */
} Cell;

typedef struct {
    int32_t n_steps, n_rows;
    int64_t part_rows, before_rows, after_rows; /* rows of the arrays that hold parts, cells and new cells */
    const int32_t *parents, *gate_rows;         /* [n] rows of the previous states; [T, n] rows of a table, or NULL */
    const float *hidden, *cells;                /* [p, P]; the previous states */
    const bf16 *parts;
    float *new_hidden, *new_cells; /* [T, n, P]; the last step's */
} Steps;

/* ---------------------------------------------------------------------------------------------------- input product */

typedef struct { const Cell *cell; int n; int64_t part_rows; const float *x; bf16 *parts; } Inputs;

INLINE void multiply_inputs(int bits, Team *team, int thread, const Inputs *call) {
    const Cell *cell = call->cell;
    const int n = call->n, P = cell->n_inputs, n_k = groups(P * bits / 8, LINE), n_blocks = groups(cell->n_cells, 16);
    uint8_t *rows = team->memory;
    float *scales = (float *)(rows + (int64_t)groups(n, ROWS) * 2 * n_k * TILE);
    float sums[4 * ROWS * 16] __attribute__((aligned(LINE)));
    for (EACH(row, n)) store_row(bits, P, n_k, call->x + (int64_t)row * P, line(rows, n_k, row), scales + row);
    meet(team);
    begin_products(n);
    for (int some = 0; some < n; some += TOGETHER) /* whose rows stay in the second-level cache */
        for (EACH(block, n_blocks))
            for (int first = some; first < at_most(n, some + TOGETHER); first += ROWS) {
                const uint8_t *weights = cell->input + (int64_t)block * n_k * 4 * TILE;
                int here = at_most(n - first, ROWS);
                multiply((Product){bits, here, n_k, 4, line(rows, n_k, first), weights, cell->input_start + block * 64, sums});
                for (int i = 0; i < here; i++)
                    for (int gate = 0; gate < 4; gate++) {
                        __m512 bias = _mm512_loadu_ps(cell->bias + block * 64 + gate * 16);
                        __m512 y = sum_of(bits, sums, gate, i, scales[first + i], cell->input_scale + block * 64, bias);
                        store_bf16(call->parts + (block * call->part_rows + first + i) * 64 + gate * 16, y);
                    }
            }
    end_products();
}

/* ------------------------------------------------------------------------------------------------------------ steps */

/* Computes a row's cells of a block, from its sums with the previous hidden state. Returns what will be projected.

sigmoid(x) is 1 / (1 + e^-x) and tanh(x) is (e^2x - 1) / (e^2x + 1), whose error is relative to x where x is small. The
weights are such that the sums are exponents of 2: -x log2(e), for the candidate 2 x log2(e). Reciprocals have 14 bits.
*/
INLINE __m512 compute_cells(int bits, const float *sums, int row, float scale, const float *scales, const bf16 *part,
                            const float *before, float *after, float cell_clip) {
#define GATE(k) sum_of(bits, sums, k, row, scale, scales, load_bf16(part + 16 * k))
#define BELOW(x) _mm512_min_ps(_mm512_set1_ps(64.f), x) /* NaN stays NaN */
    const __m512 one = _mm512_set1_ps(1.f);
    __m512 input = _mm512_add_ps(one, power_of_2(GATE(0))), forget = _mm512_add_ps(one, power_of_2(GATE(1)));
    __m512 candidate = power_of_2(BELOW(GATE(2)));
    __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(before), _mm512_rcp14_ps(forget));
    __m512 divisor = _mm512_mul_ps(input, _mm512_add_ps(candidate, one));
    __m512 c = _mm512_fmadd_ps(_mm512_sub_ps(candidate, one), _mm512_rcp14_ps(divisor), kept);
    c = clipped(c, cell_clip);
    _mm512_storeu_ps(after, c);
    __m512 output = _mm512_add_ps(one, power_of_2(GATE(3)));
    __m512 squashed = power_of_2(BELOW(_mm512_mul_ps(c, _mm512_set1_ps(2.88539008f))));
    divisor = _mm512_mul_ps(output, _mm512_add_ps(squashed, one));
    return _mm512_mul_ps(_mm512_sub_ps(squashed, one), _mm512_rcp14_ps(divisor));
}

typedef struct { const Cell *cell; const Steps *steps; } Run;

INLINE void do_steps(int bits, Team *team, int thread, const Run *call) {
    const Cell *cell = call->cell;
    const Steps *steps = call->steps;
    const int P = cell->n_inputs, n = steps->n_rows, n_blocks = groups(cell->n_cells, 16), n_groups = groups(n, ROWS);
    const int n_k = groups(P * bits / 8, LINE), n_u = 2 * groups(cell->n_cells, 64), n_p = n_u * bits / 16;
    const int columns = cell->projection ? groups(P, 32) : 0;
    uint8_t *hidden = team->memory, *unprojected = hidden + (int64_t)n_groups * 2 * n_k * TILE; /* in 16 bits */
    uint8_t *multiplied = bits == 16 ? unprojected : unprojected + (int64_t)n_groups * 2 * n_u * TILE;
    float *scales = (float *)(multiplied + (int64_t)n_groups * 2 * n_p * TILE), *u_scales = scales + n_groups * ROWS;
    float both_sums[2][4 * ROWS * 16] __attribute__((aligned(LINE))); /* of the previous unit and of this one */
    /* This thread's blocks; a unit of work is 32 rows of a block. */
    int first = share(team, thread, n_blocks), n_units = (share(team, thread + 1, n_blocks) - first) * n_groups;
    Product product = {bits, 0, n_k, 4, 0, 0, 0, 0};
    begin_products(n);
    for (int t = 0; t < steps->n_steps; t++) {
        for (EACH(row, n)) {
            const float *from = t ? steps->new_hidden + ((int64_t)(t - 1) * n + row) * P
                                  : steps->hidden + (int64_t)steps->parents[row] * P;
            store_row(bits, P, n_k, from, line(hidden, n_k, row), scales + row);
            for (int at = n_blocks; at < 2 * n_u; at++)
                store_bf16(line(unprojected, n_u, row) + at / 2 * TILE + at % 2 * 32, _mm512_setzero_ps());
        }
        meet(team);
        for (int unit = 0; unit <= n_units; unit++) { /* products of this one, cells of the previous one */
            int piece = 0, pieces = 0;
            if (unit < n_units) {
                int group = unit % n_groups;
                product.n_rows = at_most(n - group * ROWS, ROWS), product.rows = line(hidden, n_k, group * ROWS);
                product.weights = cell->recurrent + (int64_t)(first + unit / n_groups) * n_k * 4 * TILE;
                product.start = cell->recurrent_start + (first + unit / n_groups) * 64;
                product.sums = both_sums[unit % 2];
                pieces = n_pieces(product);
            }
            int done = unit ? at_most(n - (unit - 1) % n_groups * ROWS, ROWS) : 0, block = unit ? first + (unit - 1) / n_groups : 0;
            const float *before = t ? steps->new_cells + block * steps->after_rows * 16
                                    : steps->cells + block * steps->before_rows * 16;
            for (int i = 0; i < done; i++) {
                int row = (unit - 1) % n_groups * ROWS + i;
                int64_t at = steps->gate_rows ? steps->gate_rows[(int64_t)t * n + row] : (int64_t)t * n + row;
                __m512 u = compute_cells(bits, both_sums[(unit + 1) % 2], i, scales[row], cell->recurrent_scale + block * 64,
                                         steps->parts + (block * steps->part_rows + at) * 64,
                                         before + (int64_t)(t ? row : steps->parents[row]) * 16,
                                         steps->new_cells + (block * steps->after_rows + row) * 16, cell->cell_clip);
                store_bf16(line(unprojected, n_u, row) + block / 2 * TILE + block % 2 * 32, u);
                if (!cell->projection)
                    _mm512_mask_storeu_ps(steps->new_hidden + ((int64_t)t * n + row) * P + block * 16,
                                          first_of_16(P - block * 16), u);
                for (; piece * done < pieces * (i + 1); piece++) do_piece(product, piece);
            }
            for (; piece < pieces; piece++) do_piece(product, piece);
        }
        meet(team);
        if (bits == 8) {
            for (EACH(row, n)) narrow_row(n_u, line(unprojected, n_u, row), line(multiplied, n_p, row), u_scales + row);
            meet(team);
        }
        for (EACH(tile, columns * n_groups)) {
            int from = tile % n_groups * ROWS, column = tile / n_groups, here = at_most(n - from, ROWS);
            const uint8_t *weights = cell->projection + (int64_t)column * n_p * 2 * TILE;
            multiply((Product){bits, here, n_p, 2, line(multiplied, n_p, from), weights,
                               cell->projection_start + column * 32, both_sums[0]});
            for (int half = 0; half < 2; half++)
                for (int i = 0; i < here; i++) {
                    int at = column * 32 + half * 16;
                    __m512 y = sum_of(bits, both_sums[0], half, i, u_scales[from + i], cell->projection_scale + column * 32,
                                      _mm512_setzero_ps());
                    _mm512_mask_storeu_ps(steps->new_hidden + ((int64_t)t * n + from + i) * P + at, first_of_16(P - at),
                                          clipped(y, cell->projection_clip));
                }
        }
        meet(team);
    }
    end_products();
}

/* ------------------------------------------------------------- entry points, which return whether there is memory */

/* Returns the bytes of memory that n rows need in either of the following functions. */
static int64_t memory_bytes(const Cell *cell, int n) {
    int n_k = groups(cell->n_inputs * cell->bits / 8, LINE), n_u = 2 * groups(cell->n_cells, 64), n_groups = groups(n, ROWS);
    return (int64_t)n_groups * (2 * TILE * (n_k + n_u + (cell->bits == 8 ? n_u / 2 : 0)) + 2 * ROWS * 4);
}

static void input_product_8(Team *team, int thread, const void *call) { multiply_inputs(8, team, thread, call); }
static void input_product_16(Team *team, int thread, const void *call) { multiply_inputs(16, team, thread, call); }
static void steps_8(Team *team, int thread, const void *call) { do_steps(8, team, thread, call); }
static void steps_16(Team *team, int thread, const void *call) { do_steps(16, team, thread, call); }

/* Computes the gates' non-recurrent part: x [n, P] -> parts, n of `part_rows` rows. */
int input_product(Team *team, const Cell *cell, int n, int64_t part_rows, const float *x, bf16 *parts) {
    Work *work = cell->bits == 8 ? input_product_8 : input_product_16;
    return do_together(team, memory_bytes(cell, n), work, &(Inputs){cell, n, part_rows, x, parts});
}

/* Does T steps of the same n rows. */
int run_steps(Team *team, const Cell *cell, const Steps *steps) {
    Work *work = cell->bits == 8 ? steps_8 : steps_16;
    return do_together(team, memory_bytes(cell, steps->n_rows), work, &(Run){cell, steps});
}

/* Asks Linux for the tiles; returns 0 if the processor has them and Linux grants them to this process. */
int ask_for_tiles(void) {
#ifdef __AMX_TILE__
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* the tiles' data */) != 0;
#else
    return 0;
#endif
}
