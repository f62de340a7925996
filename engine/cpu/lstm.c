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
    weights  [N / 16, K / k, gates, 16, 16, 4 bytes]    a tile is 16 lines of 64 bytes: four bytes each of 16 columns
    rows     [rows / 16, K / k, 16, 64 bytes]           the rows that are multiplied; 64 bytes are k numbers

Sizes that are not multiples of these are padded with zeros. In 8 bits each row is divided by its own largest magnitude,
and so is each column of the weights. So no sum depends on other rows: a row's bits are the same in any batch.
*/

#include <immintrin.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint16_t bf16;

enum { LINE = 64, TILE = 1024, ROWS = 32, TOGETHER = 256 };

#define INLINE static inline __attribute__((always_inline))

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

INLINE int groups(int n, int size) { return (n + size - 1) / size; }
INLINE int at_most(int n, int most) { return n < most ? n : most; }
INLINE __mmask16 first_of_16(int n) { return n >= 16 ? 0xffff : n > 0 ? (1u << n) - 1 : 0; }
INLINE uint8_t *line(uint8_t *rows, int n_k, int row) { return rows + (int64_t)(row / 16) * n_k * TILE + row % 16 * LINE; }

/* --------------------------------------------------------------------------------------------------------- threads */

/* Threads that do a call's work together, and the memory that they need: the caller, and others that wait for its next
call. Whoever waits polls for some 50 us and then sleeps: polling for longer would keep a core from threads that have work,
such as the other direction's. OpenMP's threads poll for milliseconds. */
typedef struct Team Team;
typedef void Work(Team *team, int thread, const void *call);

struct Team {
    int threads;
    uint8_t *memory; /* `n_bytes`, aligned to 64 */
    int64_t n_bytes;
    Work *work; /* of this call; NULL to end */
    const void *call;
    atomic_uint calls, meetings, arrived, sleeping; /* the first two are counters that threads wait for */
    pthread_t others[];
};

enum { POLLED_CYCLES = 1 << 17 };

static void wait_while(Team *team, atomic_uint *counter, unsigned value) {
    for (uint64_t begin = __rdtsc(); __rdtsc() - begin < POLLED_CYCLES; _mm_pause())
        if (atomic_load(counter) != value) return;
    atomic_fetch_add(&team->sleeping, 1); /* before the system compares the counter, as `advance` does it the other way round */
    while (atomic_load(counter) == value) syscall(SYS_futex, counter, FUTEX_WAIT_PRIVATE, value, NULL);
    atomic_fetch_sub(&team->sleeping, 1);
}

static void advance(Team *team, atomic_uint *counter) {
    atomic_fetch_add(counter, 1);
    if (atomic_load(&team->sleeping)) syscall(SYS_futex, counter, FUTEX_WAKE_PRIVATE, INT_MAX);
}

/* Returns when all threads are here. */
static void meet(Team *team) {
    if (team->threads == 1) return;
    unsigned meeting = atomic_load(&team->meetings);
    if ((int)atomic_fetch_add(&team->arrived, 1) < team->threads - 1) {
        wait_while(team, &team->meetings, meeting);
        return;
    }
    atomic_store(&team->arrived, 0);
    advance(team, &team->meetings);
}

/* Does a call's work with so many bytes of memory. Returns whether there is that much. */
static int do_together(Team *team, int64_t n_bytes, Work *work, const void *call) {
    if (team->n_bytes < n_bytes) {
        free(team->memory);
        team->memory = aligned_alloc(LINE, (n_bytes + LINE - 1) / LINE * LINE);
        team->n_bytes = team->memory ? n_bytes : 0;
        if (!team->memory) return 0;
    }
    team->work = work, team->call = call;
    if (team->threads > 1) advance(team, &team->calls);
    work(team, 0, call);
    meet(team);
    return 1;
}

typedef struct { Team *team; int thread; } Member;

static void *be_member(void *given) {
    Member member = *(Member *)given;
    free(given);
    for (unsigned call = 0;; call++) {
        wait_while(member.team, &member.team->calls, call);
        if (!member.team->work) return NULL;
        member.team->work(member.team, member.thread, member.team->call);
        meet(member.team);
    }
}

/* The first of a thread's share of n things; that of the next thread is the end. */
INLINE int share(Team *team, int thread, int n) { return (int64_t)n * thread / team->threads; }

#define EACH(i, n) int i = share(team, thread, n), i##_end = share(team, thread + 1, n); i < i##_end; i++

/* -------------------------------------------------------------------------------------------------------- products */

/* Sums [gates][ROWS][16] of up to 32 rows with 16 columns of each gate; `n_pieces` pieces of work. */
typedef struct {
    int bits, n_rows, n_k, n_gates;
    const uint8_t *rows, *weights;
    const int32_t *start;
    float *sums;
} Product;

enum { FEW = 4 }; /* rows whose sums are in registers, for four gates */

/* VNNI multiplies unsigned 8-bit rows by signed weights. So 128 is added to the rows, and sums start with what offsets
that, -128 times the sum of a column's weights. Tiles multiply signed rows. */
#ifdef __AMX_TILE__
enum { SHIFT = 0 };
#else
enum { SHIFT = 0x80 }; /* of rows as they are stored */
#endif

#ifdef __AVX512BF16__
#define MULTIPLY_16(sum, row, column) _mm512_dpbf16_ps(sum, (__m512bh)(row), (__m512bh)(column))
#else
#define MULTIPLY_16(sum, row, column) (sum)
#endif

/* Multiplies `n` rows, 1 or FEW, from the piece's first on, with all gates. */
INLINE void multiply_few(Product product, int piece, const int n) {
    __m512i sums[4][FEW];
    const uint8_t *rows = product.rows + (int64_t)(piece * FEW / 16) * product.n_k * TILE + piece * FEW % 16 * LINE;
    #pragma GCC unroll 4
    for (int gate = 0; gate < product.n_gates; gate++) {
        __m512i start = product.bits == 8 ? _mm512_loadu_si512(product.start + gate * 16) : _mm512_setzero_si512();
        #pragma GCC unroll 4
        for (int row = 0; row < n; row++) sums[gate][row] = start;
    }
    for (int k = 0; k < product.n_k; k++)
        for (int at = 0; at < 16; at++) {
            __m512i columns[4], some[FEW];
            #pragma GCC unroll 4
            for (int gate = 0; gate < product.n_gates; gate++)
                columns[gate] = _mm512_load_si512(product.weights + (int64_t)(k * product.n_gates + gate) * TILE + at * LINE);
            #pragma GCC unroll 4
            for (int row = 0; row < n; row++) {
                int32_t numbers;
                memcpy(&numbers, rows + k * TILE + row * LINE + at * 4, 4);
                some[row] = _mm512_set1_epi32(numbers);
                if (product.bits == 8 && !SHIFT) some[row] = _mm512_xor_si512(some[row], _mm512_set1_epi8((char)0x80));
            }
            #pragma GCC unroll 4
            for (int gate = 0; gate < product.n_gates; gate++)
                #pragma GCC unroll 4
                for (int row = 0; row < n; row++)
                    sums[gate][row] = product.bits == 8
                        ? _mm512_dpbusd_epi32(sums[gate][row], some[row], columns[gate])
                        : (__m512i)MULTIPLY_16((__m512)sums[gate][row], some[row], columns[gate]);
        }
    #pragma GCC unroll 4
    for (int gate = 0; gate < product.n_gates; gate++)
        #pragma GCC unroll 4
        for (int row = 0; row < n; row++)
            _mm512_store_si512(product.sums + (gate * ROWS + piece * FEW + row) * 16, sums[gate][row]);
}

#ifdef __AMX_TILE__

#define MULTIPLY(sum, row, column)                               \
    do {                                                         \
        if (product.bits == 8) _tile_dpbssd(sum, row, column);   \
        else _tile_dpbf16ps(sum, row, column);                   \
    } while (0)

/* Configures tiles of at most `n` rows: 0 to 3 are sums, 4 (and 5 for 32 rows) multiplied rows, the others weights. */
INLINE void begin_products(int n) {
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t lines[16]; } shapes = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) shapes.bytes[tile] = LINE, shapes.lines[tile] = tile <= 4 ? at_most(n, 16) : 16;
    _tile_loadconfig(&shapes);
}
INLINE void end_products(void) { _tile_release(); }

/* One row only waits for its weights, and longer with tiles; 8-bit sums are the same either way. */
INLINE int is_single(Product product) { return product.n_rows == 1 && product.bits == 8; }
/* 16 rows with all gates, or 32 with two at a time: tiles hold at most four sums. */
INLINE int is_short(Product product) { return product.n_rows <= 16; }
INLINE int n_pieces(Product product) {
    return is_single(product) ? 1 : is_short(product) ? product.n_k : product.n_k * product.n_gates / 2;
}

INLINE void do_piece(Product product, int piece) {
    if (is_single(product)) {
        multiply_few(product, 0, 1);
        return;
    }
    int short_ = is_short(product), k = piece % product.n_k, gate = piece / product.n_k * 2;
    const uint8_t *row = product.rows + k * TILE, *weights = product.weights + (int64_t)(k * product.n_gates + gate) * TILE;
    if (k == 0) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    _tile_loadd(4, row, LINE);
    _tile_loadd(6, weights, LINE);
    MULTIPLY(0, 4, 6);
    _tile_loadd(7, weights + TILE, LINE);
    if (short_) {
        MULTIPLY(1, 4, 7);
        if (product.n_gates == 4) {
            _tile_loadd(5, weights + 2 * TILE, LINE);
            MULTIPLY(2, 4, 5);
            _tile_loadd(6, weights + 3 * TILE, LINE);
            MULTIPLY(3, 4, 6);
        }
    } else {
        MULTIPLY(2, 4, 7);
        _tile_loadd(5, row + product.n_k * TILE, LINE);
        MULTIPLY(1, 5, 6);
        MULTIPLY(3, 5, 7);
    }
    if (k < product.n_k - 1) return;
    float *to = product.sums + gate * ROWS * 16; /* tiles 0 to 3: gates if short, else (gate, 16 rows) */
    int step = short_ ? ROWS * 16 : 256;
    _tile_stored(0, to, LINE);
    _tile_stored(1, to + step, LINE);
    if (short_ && product.n_gates == 2) return;
    _tile_stored(2, to + 2 * step, LINE);
    _tile_stored(3, to + 3 * step, LINE);
}

#else

INLINE void begin_products(int n) {}
INLINE void end_products(void) {}
INLINE int n_pieces(Product product) { return groups(product.n_rows, FEW); }
INLINE void do_piece(Product product, int piece) {
    if (product.n_rows == 1) multiply_few(product, 0, 1);
    else multiply_few(product, piece, FEW);
}

#endif

INLINE void multiply(Product product) {
    for (int piece = 0; piece < n_pieces(product); piece++) do_piece(product, piece);
}

/* --------------------------------------------------------------------------------------------------------- numbers */

INLINE __m512 load_bf16(const void *from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16));
}

/* Stores 16 numbers of a line of 32, rounded to nearest. */
INLINE void store_bf16(void *to, __m512 x) {
#ifdef __AVX512BF16__
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
#else
    __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 none = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); /* NaN stays NaN */
    bits = _mm512_mask_mov_epi32(bits, none, _mm512_set1_epi32(0x7fc00000));
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
#endif
}

/* 2^x: the nearest whole power, times a polynomial for the rest, fitted to a relative error of 3e-6; 1 at 0. */
INLINE __m512 power_of_2(__m512 x) {
    __m512 rest = _mm512_reduce_ps(x, 0);
    __m512 y = _mm512_set1_ps(9.58285467e-3f);
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(5.59064297e-2f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(2.40240987e-1f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(6.93124193e-1f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.f));
    return _mm512_scalef_ps(y, _mm512_sub_ps(x, rest));
}

INLINE __m512 clipped(__m512 x, float most) {
    return most > 0 ? _mm512_max_ps(_mm512_set1_ps(-most), _mm512_min_ps(_mm512_set1_ps(most), x)) : x;
}

/* Returns a row's sums with 16 columns of a gate, as floats, plus `more`. */
INLINE __m512 sum_of(int bits, const float *sums, int gate, int row, float row_scale, const float *scales, __m512 more) {
    const float *from = sums + (gate * ROWS + row) * 16;
    if (bits == 16) return _mm512_add_ps(_mm512_load_ps(from), more);
    __m512 scale = _mm512_mul_ps(_mm512_set1_ps(row_scale), _mm512_loadu_ps(scales + gate * 16));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(from)), scale, more);
}

/* ----------------------------------------------------------------------------------------- rows that are multiplied */

/* Stores 16 numbers times a factor as 8-bit integers. */
INLINE void store_8bits(void *to, __m512 x, float factor) {
    __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(factor)));
    _mm_storeu_si128((__m128i *)to, _mm_xor_si128(_mm512_cvtsepi32_epi8(whole), _mm_set1_epi8((char)SHIFT)));
}

INLINE float factor_of(__m512 magnitudes, float *scale) {
    float largest = _mm512_reduce_max_ps(magnitudes);
    *scale = largest / 127.f;
    return largest > 0 ? 127.f / largest : 0.f;
}

/* Stores a row of float32 [n] in its lines, followed by zeros. */
INLINE void store_row(int bits, int n, int n_k, const float *x, uint8_t *to, float *scale) {
    float factor = 1;
    if (bits == 8) {
        __m512 most = _mm512_setzero_ps();
        for (int at = 0; at < n; at += 16)
            most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(first_of_16(n - at), x + at)));
        factor = factor_of(most, scale);
    }
    for (int k = 0; k < n_k; k++)
        for (int part = 0; part < 512 / bits; part += 16) {
            int at = k * 512 / bits + part;
            __m512 numbers = at < n ? _mm512_maskz_loadu_ps(first_of_16(n - at), x + at) : _mm512_setzero_ps();
            if (bits == 8) store_8bits(to + k * TILE + part, numbers, factor);
            else store_bf16(to + k * TILE + part * 2, numbers);
        }
}

/* Converts a row of 16-bit numbers in `n_k` lines into half as many of 8 bits. */
INLINE void narrow_row(int n_k, const uint8_t *from, uint8_t *to, float *scale) {
    __m512 most = _mm512_setzero_ps();
    for (int half = 0; half < 2 * n_k; half++)
        most = _mm512_max_ps(most, _mm512_abs_ps(load_bf16(from + half / 2 * TILE + half % 2 * 32)));
    float factor = factor_of(most, scale);
    for (int half = 0; half < 2 * n_k; half++)
        store_8bits(to + half / 4 * TILE + half % 4 * 16, load_bf16(from + half / 2 * TILE + half % 2 * 32), factor);
}

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

/* ------------------------------------------------------------------------------------------------------------ words */

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

/* --------------------------------------------------------------------------------------------------- entry points */

/* Those that compute return whether there is enough memory. */

/* Returns a team of so many threads, or of fewer if the system gives no more; NULL if there is no memory for it. */
Team *make_team(int threads) {
    Team *team = calloc(1, sizeof(Team) + threads * sizeof(pthread_t));
    if (!team) return NULL;
    sigset_t all, before; /* signals are for the program's own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (team->threads = 1; team->threads < threads; team->threads++) {
        Member *member = malloc(sizeof(Member));
        if (!member) break;
        *member = (Member){team, team->threads};
        if (pthread_create(team->others + team->threads, NULL, be_member, member)) {
            free(member);
            break;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return team;
}

/* Ends a team's threads. */
void end_team(Team *team) {
    team->work = NULL;
    advance(team, &team->calls);
    for (int thread = 1; thread < team->threads; thread++) pthread_join(team->others[thread], NULL);
    free(team->memory);
    free(team);
}


/* Runs a layer of the words' network, in 16 bits: [n, K] -> [n / together, N]. */
int run_layer(Team *team, const Layer *layer) {
    int64_t n_bytes = (int64_t)groups(layer->n_rows, ROWS) * 2 * groups(layer->n_inputs * 2, LINE) * TILE;
    return do_together(team, n_bytes, do_layer, layer);
}

/* Asks Linux for the tiles; returns 0 if the processor has them and Linux grants them to this process. */
int ask_for_tiles(void) {
#ifdef __AMX_TILE__
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* the tiles' data */) != 0;
#else
    return 0;
#endif
}

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
