/* Products of rows with weights, in 16 or 8 bits, in AMX's tiles or in vectors.

    weights  [N / 16, K / k, gates, 16, 16, 4 bytes]    a tile is 16 lines of 64 bytes: four bytes each of 16 columns
    rows     [rows / 16, K / k, 16, 64 bytes]           the rows that are multiplied; 64 bytes are k numbers

In 8 bits each row is divided by its own largest magnitude, and so is each column of the weights. So no sum depends on
other rows: a row's bits are the same in any batch.
*/

#ifndef PRODUCTS_H
#define PRODUCTS_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { LINE = 64, TILE = 1024, ROWS = 32, TOGETHER = 256 };

#define INLINE static inline __attribute__((always_inline))

INLINE int groups(int n, int size) { return (n + size - 1) / size; }
INLINE int at_most(int n, int most) { return n < most ? n : most; }
INLINE __mmask16 first_of_16(int n) { return n >= 16 ? 0xffff : n > 0 ? (1u << n) - 1 : 0; }
INLINE uint8_t *line(uint8_t *rows, int n_k, int row) { return rows + (int64_t)(row / 16) * n_k * TILE + row % 16 * LINE; }

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

/* Functions of their own: inside larger ones, compilers have moved rows from the registers into memory. */
#define MULTIPLY_FEW(BITS, GATES, N)                                                                     \
    static __attribute__((noinline)) void multiply_##BITS##_##GATES##_##N(Product product, int piece) { \
        product.bits = BITS, product.n_gates = GATES;                                                    \
        multiply_few(product, piece, N);                                                                 \
    }
MULTIPLY_FEW(8, 4, 1)
MULTIPLY_FEW(8, 2, 1)
#ifndef __AMX_TILE__
MULTIPLY_FEW(8, 4, 4)
MULTIPLY_FEW(8, 2, 4)
MULTIPLY_FEW(16, 4, 1)
MULTIPLY_FEW(16, 2, 1)
MULTIPLY_FEW(16, 4, 4)
MULTIPLY_FEW(16, 2, 4)
#endif

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
        product.n_gates == 4 ? multiply_8_4_1(product, 0) : multiply_8_2_1(product, 0);
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
    int is_8 = product.bits == 8, has_4 = product.n_gates == 4;
    if (product.n_rows == 1) (is_8 ? has_4 ? multiply_8_4_1 : multiply_8_2_1 : has_4 ? multiply_16_4_1 : multiply_16_2_1)(product, 0);
    else (is_8 ? has_4 ? multiply_8_4_4 : multiply_8_2_4 : has_4 ? multiply_16_4_4 : multiply_16_2_4)(product, piece);
}

#endif

INLINE void multiply(Product product) {
    for (int piece = 0; piece < n_pieces(product); piece++) do_piece(product, piece);
}

#endif
