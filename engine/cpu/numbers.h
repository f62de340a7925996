/* Numbers in vectors of 16: their functions, and the rows that are multiplied, in 16 or 8 bits. */

#ifndef NUMBERS_H
#define NUMBERS_H

#include "products.h"

typedef uint16_t bf16;

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

#endif
