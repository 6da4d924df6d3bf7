/* Vectors of 32-bit numbers, for the C that `emit.py` and `drivers.py` write.

   WIDTH lanes: what the processor has, 16 with AVX-512, 8 with AVX2, else 4 (SSE2, NEON), or what
   GPUKIT_WIDTH says. Operators are those of GCC's and clang's vector extensions; here is what they
   lack in C: comparisons that give masks, choices, half floats, tables. All of it is exact: nothing
   is contracted, reordered or rounded other than IEEE 754 says. */
#include <stdint.h>
#include <string.h>

#ifndef GPUKIT_WIDTH
#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define GPUKIT_WIDTH 16
#elif defined(__AVX2__) && defined(__F16C__)
#define GPUKIT_WIDTH 8
#else
#define GPUKIT_WIDTH 4
#endif
#endif
#define WIDTH GPUKIT_WIDTH

typedef float vf __attribute__((vector_size(4 * WIDTH)));
typedef int32_t vi __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t vu __attribute__((vector_size(4 * WIDTH)));
/* The same where memory is not aligned. */
typedef int32_t ui __attribute__((vector_size(4 * WIDTH), aligned(1), may_alias));

#define ANY static inline __attribute__((always_inline, unused))

ANY vf splat_f(float v) { return v - (vf){}; } /* v + 0 would turn -0 */
ANY vi splat_i(int32_t v) { return v + (vi){}; }
ANY vf load_f(const float *at) { return *(const vf *)at; }
ANY vi load_i(const float *at) { return *(const vi *)at; }
ANY void store_f(float *at, vf v) { *(vf *)at = v; }
ANY void store_i(float *at, vi v) { *(vi *)at = v; }
ANY int32_t word(const float *at) { int32_t v; memcpy(&v, at, 4); return v; }
ANY vf bits_f(vi v) { return (vf)v; }
ANY vi bits_i(vf v) { return (vi)v; }
ANY vf to_f(vi v) { return __builtin_convertvector(v, vf); }
ANY vf abs_f(vf v) { return (vf)((vi)v & 0x7FFFFFFF); }
/* Arithmetic to the right, of the low bits to the left. */
ANY vi left(vi v, vi by) { return (vi)((vu)v << (vu)by); }

/* Truths are bits of a mask with AVX-512, else numbers of which all bits are set or none. */
#if WIDTH == 16
#include <immintrin.h>
typedef __mmask16 vm;
ANY vm not_m(vm m) { return (vm)~m; }
#else
typedef vi vm;
ANY vm not_m(vm m) { return ~m; }
ANY vm lt_i(vi a, vi b) { return a < b; }
ANY vm le_i(vi a, vi b) { return a <= b; }
ANY vm eq_i(vi a, vi b) { return a == b; }
ANY vm ne_i(vi a, vi b) { return a != b; }
#endif

#if WIDTH == 16
#define COMPARE(name, how) \
    ANY vm name##_f(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_##how); }
COMPARE(lt, LT_OQ) COMPARE(le, LE_OQ) COMPARE(eq, EQ_OQ) COMPARE(ne, NEQ_UQ)
ANY vm lt_i(vi a, vi b) { return _mm512_cmplt_epi32_mask((__m512i)a, (__m512i)b); }
ANY vm le_i(vi a, vi b) { return _mm512_cmple_epi32_mask((__m512i)a, (__m512i)b); }
ANY vm eq_i(vi a, vi b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
ANY vm ne_i(vi a, vi b) { return _mm512_cmpneq_epi32_mask((__m512i)a, (__m512i)b); }
ANY vf choose_f(vm m, vf a, vf b) { return (vf)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
ANY vi choose_i(vm m, vi a, vi b) { return (vi)_mm512_mask_blend_epi32(m, (__m512i)b, (__m512i)a); }
ANY vi min_i(vi a, vi b) { return (vi)_mm512_min_epi32((__m512i)a, (__m512i)b); }
ANY vi max_i(vi a, vi b) { return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b); }
/* a > b ? a : b, a < b ? a : b: b beside a NaN. */
ANY vf larger_f(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
ANY vf smaller_f(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
/* |v| with the sign of `sign`. */
ANY vf signed_f(vf v, vf sign) {
    __m512i bit = _mm512_set1_epi32(INT32_MIN);
    return (vf)_mm512_ternarylogic_epi32(bit, (__m512i)sign, (__m512i)v, 0xCA);
}
ANY vf root_f(vf v) { return (vf)_mm512_sqrt_ps((__m512)v); }
ANY vi whole(vf v) { return (vi)_mm512_cvttps_epi32((__m512)v); }
ANY vi half_of(vf v) { return (vi)_mm512_cvtepu16_epi32(_mm512_cvtps_ph((__m512)v, 0)); }
ANY vf of_half(vi v) { return (vf)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)v)); }
ANY vf fused(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
ANY vi gathered(const void *table, vi at) { return (vi)_mm512_i32gather_epi32((__m512i)at, table, 4); }
ANY vi of_16(const void *table, vi at) {
    return (vi)_mm512_permutexvar_epi32((__m512i)at, _mm512_loadu_si512(table));
}
#elif WIDTH == 8
#include <immintrin.h>
#define COMPARE(name, how) \
    ANY vm name##_f(vf a, vf b) { return (vi)_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_##how); }
COMPARE(lt, LT_OQ) COMPARE(le, LE_OQ) COMPARE(eq, EQ_OQ) COMPARE(ne, NEQ_UQ)
ANY vf choose_f(vm m, vf a, vf b) { return (vf)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)m); }
ANY vi choose_i(vm m, vi a, vi b) { return (vi)choose_f(m, (vf)a, (vf)b); }
ANY vi min_i(vi a, vi b) { return (vi)_mm256_min_epi32((__m256i)a, (__m256i)b); }
ANY vi max_i(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
ANY vf larger_f(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
ANY vf smaller_f(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
ANY vf root_f(vf v) { return (vf)_mm256_sqrt_ps((__m256)v); }
ANY vi whole(vf v) { return (vi)_mm256_cvttps_epi32((__m256)v); }
ANY vi half_of(vf v) { return (vi)_mm256_cvtepu16_epi32(_mm256_cvtps_ph((__m256)v, 0)); }
ANY vf of_half(vi v) {
    __m256i low = _mm256_and_si256((__m256i)v, _mm256_set1_epi32(0xFFFF));
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
    return (vf)_mm256_cvtph_ps(_mm256_castsi256_si128(packed));
}
#ifdef __FMA__
ANY vf fused(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#else
ANY vf fused(vf a, vf b, vf c) { return a * b + c; }
#endif
ANY vi gathered(const void *table, vi at) {
    return (vi)_mm256_i32gather_epi32((const int *)table, (__m256i)at, 4);
}
ANY vi of_16(const void *table, vi at) {
    __m256i low = _mm256_loadu_si256((const __m256i *)table);
    __m256i high = _mm256_loadu_si256((const __m256i *)table + 1);
    __m256 a = (__m256)_mm256_permutevar8x32_epi32(low, (__m256i)at);
    __m256 b = (__m256)_mm256_permutevar8x32_epi32(high, (__m256i)at);
    return (vi)_mm256_blendv_ps(a, b, (__m256)(at << 28));
}
#else
ANY vm lt_f(vf a, vf b) { return a < b; }
ANY vm le_f(vf a, vf b) { return a <= b; }
ANY vm eq_f(vf a, vf b) { return a == b; }
ANY vm ne_f(vf a, vf b) { return a != b; }
ANY vi choose_i(vm m, vi a, vi b) { return (m & a) | (~m & b); }
ANY vf choose_f(vm m, vf a, vf b) { return (vf)choose_i(m, (vi)a, (vi)b); }
ANY vi min_i(vi a, vi b) { return choose_i(a < b, a, b); }
ANY vi max_i(vi a, vi b) { return choose_i(a > b, a, b); }
ANY vf larger_f(vf a, vf b) { return choose_f(b < a, a, b); }
ANY vf smaller_f(vf a, vf b) { return choose_f(a < b, a, b); }
ANY vf root_f(vf v) {
    for (int i = 0; i < WIDTH; i++) v[i] = __builtin_sqrtf(v[i]);
    return v;
}
/* What does not fit becomes the lowest number, as on x86, whatever the processor's conversion. */
ANY vi whole(vf v) {
    vm fits = (v >= -2147483648.0f) & (v < 2147483648.0f);
    return choose_i(fits, __builtin_convertvector(choose_f(fits, v, (vf){}), vi), splat_i(INT32_MIN));
}
/* The fp16 pattern: a power of two whose last bit is fp16's last is added, so that the sum is
   rounded there. */
ANY vi half_of(vf v) {
    vi bits = (vi)v;
    vf magnitude = (abs_f(v) * 0x1p112f) * 0x1p-110f;
    vi last = max_i(bits & 0x7F800000, splat_i(0x38800000)) + 0x07800000;
    vi rounded = (vi)((vf)last + magnitude);
    vi half = ((rounded >> 13) & 0x7C00) + (rounded & 0x0FFF);
    vi none = ((bits >> 13) & 0x1FF) | 0x7E00;
    return ((bits >> 16) & 0x8000) | choose_i(v != v, none, half);
}
/* Shifted into place the exponent is 112 too low; infinity and NaN lack another 112. */
ANY vf of_half(vi v) {
    vf scaled = (vf)((v & 0x7FFF) << 13) * 0x1p112f;
    vi high = (vi)scaled | ((v & 0x7C00) == 0x7C00 & 0x7F800000);
    high |= ((v & 0x7C00) == 0x7C00) & ((v & 0x3FF) != 0) & 0x400000;
    return (vf)(high | ((v & 0x8000) << 16));
}
ANY vf fused(vf a, vf b, vf c) { return a * b + c; }
ANY vi gathered(const void *table, vi at) {
    vi found;
    for (int i = 0; i < WIDTH; i++) memcpy((char *)&found + 4 * i, (const char *)table + 4 * (int64_t)at[i], 4);
    return found;
}
ANY vi of_16(const void *table, vi at) { return gathered(table, at & 15); }
#endif

#if WIDTH != 16
ANY vf signed_f(vf v, vf sign) { return (vf)((vi)abs_f(v) | ((vi)sign & INT32_MIN)); }
#endif

/* The table of WIDTH rows of WIDTH numbers, turned over: of pairs of rows `s` apart, the squares of
   `s` numbers that do not lie on their diagonals change places, for s = 1, 2, 4 … */
#if defined(__clang__) || __GNUC__ >= 12
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif
#define UPPER(c, s) ((c) & (s) ? WIDTH + (c) - (s) : (c))
#define LOWER(c, s) ((c) & (s) ? WIDTH + (c) : (c) + (s))
#define FOUR(of, c, s) of(c, s), of(c + 1, s), of(c + 2, s), of(c + 3, s)
#if WIDTH == 16
#define COLUMNS(of, s) FOUR(of, 0, s), FOUR(of, 4, s), FOUR(of, 8, s), FOUR(of, 12, s)
#elif WIDTH == 8
#define COLUMNS(of, s) FOUR(of, 0, s), FOUR(of, 4, s)
#else
#define COLUMNS(of, s) FOUR(of, 0, s)
#endif
#define EXCHANGE(s) \
    for (int i = 0; i < WIDTH; i++) \
        if (!(i & s)) { \
            vi a = row[i], b = row[i + s]; \
            row[i] = PICK(a, b, COLUMNS(UPPER, s)); \
            row[i + s] = PICK(a, b, COLUMNS(LOWER, s)); \
        }
ANY void turn_over(vi row[WIDTH]) {
    _Pragma("GCC unroll 16") EXCHANGE(1)
    _Pragma("GCC unroll 16") EXCHANGE(2)
#if WIDTH > 4
    _Pragma("GCC unroll 16") EXCHANGE(4)
#endif
#if WIDTH > 8
    _Pragma("GCC unroll 16") EXCHANGE(8)
#endif
}
