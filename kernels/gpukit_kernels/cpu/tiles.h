/* Products of many rows of x on the processor's tiles (Intel's AMX), after `decode.h`, where `probe.c`
   has found that they can be used (TILES).

   A tile multiplies bfloat16 numbers, so a float32 number is two of them: the nearest one and what
   that lacks, rounded, off by 2^-16 of the number at most. Of the four products of two such pairs the
   last, of what both lack, is left out: 2^-16 of the whole again. All others are exact, their sums
   float32. Where W is exactly bfloat16, as many types are, two products are enough. A W of float32
   is not for tiles: who keeps one wants all of its bits. */
const int64_t gpukit_tiled = 0
#if defined(TILES) && WIDTH == 16 && LANES == 16 && NBYTES < 4 * BLOCK
    + 1;
#include <sys/syscall.h>
#include <unistd.h>

#define STEPS (TILE / 32)

/* Whether the system lets this process use tiles, which it wants to be asked. */
int64_t may_tile(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

/* The nearest bfloat16 numbers as float32. */
ANY vf nearest(vf v) {
    __m256i halves = (__m256i)_mm512_cvtneps_pbh((__m512)v);
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
}
/* What `high` lacks of `v`; nothing where it is infinite. */
ANY vf lacking(vf v, vf high) {
    return choose_f(lt_f(abs_f(high), splat_f(__builtin_inff())), v - high, (vf){});
}

/* float32 x [count, width] as tiles, [blocks of 16 rows, steps of 32 elements, 2, 16, 32]: the
   nearest bfloat16 numbers, then what they lack; 0 where there is no x. */
typedef struct {
    Arena *arenas;
    const float *x;
    int64_t count, width;
    char *out;
} Tiling;

/* Of blocks `first` to `last`. */
void tile(const Tiling *job, int64_t first, int64_t last, int64_t thread) {
    int64_t width = job->width, steps = (width + 31) / 32;
    for (int64_t b = first; b < last; b++)
        for (int64_t s = 0; s < steps; s++)
            for (int64_t m = 0; m < 16; m++) {
                int64_t left = b * 16 + m < job->count ? width - 32 * s : 0;
                const float *from = job->x + (b * 16 + m) * width + 32 * s;
                float some[32] __attribute__((aligned(64))) = {};
                if (left > 0)
                    memcpy(some, from, (left < 32 ? left : 32) * sizeof(float));
                vf low = load_f(some), high = load_f(some + 16), a = nearest(low), b_ = nearest(high);
                char *to = job->out + ((b * steps + s) * 32 + m) * 64;
                _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)b_, (__m512)a));
                _mm512_storeu_si512(to + 1024, (__m512i)_mm512_cvtne2ps_pbh(
                    (__m512)lacking(high, b_), (__m512)lacking(low, a)));
            }
}

/* The first `n` elements of `values` [TILE, LANES] as tiles [2, STEPS, 16, 16] of pairs of elements,
   others 0; whether any is not exactly bfloat16. */
ANY int split(const float *values, int64_t n, char *high, char *low) {
    vi some = {};
    for (int64_t e = 0; e < TILE; e += 2) {
        vf a = e < n ? load_f(values + e * LANES) : (vf){};
        vf b = e + 1 < n ? load_f(values + (e + 1) * LANES) : (vf){};
        vf c = nearest(a), d = nearest(b), f = nearest(lacking(a, c)), g = nearest(lacking(b, d));
        store_i((float *)(high + e * 32), (vi)((vu)bits_i(c) >> 16) | bits_i(d));
        vi rest = (vi)((vu)bits_i(f) >> 16) | bits_i(g);
        store_i((float *)(low + e * 32), rest);
        some |= rest;
    }
    return _mm512_test_epi32_mask((__m512i)some, (__m512i)some) != 0;
}

#define FOUR_PRODUCTS \
    _tile_dpbf16ps(0, 6, 4); _tile_dpbf16ps(1, 6, 5); _tile_dpbf16ps(2, 7, 4); _tile_dpbf16ps(3, 7, 5);

/* To the sums of 32 rows of x, two blocks `apart` bytes, and of 32 of W those of `steps` steps. */
ANY void add_products(float *sums, const char *x, int64_t apart, const char *w, int64_t steps, int rest) {
    const char *v = w + 2 * STEPS * 1024, *y = x + apart;
    _tile_loadd(0, sums, 64); _tile_loadd(1, sums + 256, 64);
    _tile_loadd(2, sums + 512, 64); _tile_loadd(3, sums + 768, 64);
    for (int64_t k = 0; k < steps; k++) {
        _tile_loadd(4, w + k * 1024, 64); _tile_loadd(5, v + k * 1024, 64);
        _tile_loadd(6, x + k * 2048, 64); _tile_loadd(7, y + k * 2048, 64);
        FOUR_PRODUCTS
        if (rest) {
            _tile_loadd(4, w + (STEPS + k) * 1024, 64); _tile_loadd(5, v + (STEPS + k) * 1024, 64);
            FOUR_PRODUCTS
            _tile_loadd(4, w + k * 1024, 64); _tile_loadd(5, v + k * 1024, 64);
        }
        _tile_loadd(6, x + k * 2048 + 1024, 64); _tile_loadd(7, y + k * 2048 + 1024, 64);
        FOUR_PRODUCTS
    }
    _tile_stored(0, sums, 64); _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64); _tile_stored(3, sums + 768, 64);
}

/* Rows `first` to `last` of W, of a Product whose x is what `tile` makes. For as many rows of both as
   an arena has sums of, TILE elements at a time: those of x stay in the second-level cache while W
   passes, those of 32 rows of W in the first while x does. */
void multiply_tiled(const Product *job, int64_t first, int64_t last, int64_t thread) {
    static const struct {
        uint8_t palette, start, none[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    Arena *a = job->arenas + thread;
    int64_t width = job->width, across = (width + 31) / 32 * 2048;
    const char *from[LANES], *x = (const char *)job->x;
    _tile_loadconfig(&shape);
    for (int64_t done = 0; done < job->count; done += TILED_X)
        for (int64_t begin = first; begin < last; begin += TILED_W) {
            int64_t here = job->count - done < TILED_X ? job->count - done : TILED_X;
            int64_t rows = last - begin < TILED_W ? last - begin : TILED_W;
            int64_t pairs = (here + 31) / 32, panels = (rows + 31) / 32;
            for (int64_t p = 0; p < panels; p++)
                memset(a->tiled[p], 0, pairs * sizeof(a->tiled[p][0]));
            for (int64_t c = 0; c < width; c += TILE) {
                int64_t n = width - c < TILE ? width - c : TILE;
                for (int64_t p = 0; p < panels; p++) {
                    int rest = 0;
                    for (int64_t half = 0; half < 2; half++) {
                        for (int64_t i = 0; i < LANES; i++) {
                            int64_t r = begin + p * 32 + half * 16 + i;
                            from[i] = job->blocks + (r < last ? r : begin) * job->row_bytes +
                                      c / BLOCK * NBYTES;
                        }
                        words_of(a->words, from, job->end, LANES * job->row_bytes);
                        values_of(a->words, a->values, 0);
                        rest |= split(a->values, n, a->split[half][0], a->split[half][STEPS]);
                    }
                    for (int64_t m = 0; m < pairs; m++)
                        add_products(a->tiled[p][m], x + (done / 16 + 2 * m) * across + c * 64, across,
                                     a->split[0][0], (n + 31) / 32, rest);
                }
            }
            for (int64_t m = 0; m < here; m++)
                for (int64_t p = 0; p < panels; p++) {
                    const float *sums = a->tiled[p][m / 32] + m % 32 / 16 * 512 + m % 16 * 16;
                    float *to = job->y + (done + m) * job->stride + begin + p * 32;
                    int64_t left = rows - p * 32;
                    memcpy(to, sums, (left < 16 ? left : 16) * sizeof(float));
                    if (left > 16)
                        memcpy(to + 16, sums + 256, (left < 32 ? left - 16 : 16) * sizeof(float));
                }
        }
    _tile_release();
}
#else
    ;
#endif
