/* Low-rank deltas added to float32 rows, with the sums of `merge.py`. Before it stands `vectors.h`. */
#define COLUMNS (4 * WIDTH)
/* Floats of `a` that stay in the second-level cache while rows go by. */
#define KEPT (1 << 16)
#define SUMS 32

/* To w [rows, width] is added (`adds`), or there is put, scale * b·a: b [rows, rank], a
   [rank, width]. */
typedef struct {
    float *w;
    const float *b, *a;
    int64_t width, rank;
    float scale;
    int32_t adds;
} Delta;

ANY vf loose(const float *at) { return (vf) * (const ui *)at; }
ANY void put(float *at, vf v) { *(ui *)at = (vi)v; }

/* R rows from `r` on, V vectors from column `c` on. */
#define TILE(R, V) \
    static __attribute__((noinline)) void tile_##R##_##V(const Delta *d, int64_t r, int64_t c) { \
        vf t[R][V] = {}, scale = splat_f(d->scale); \
        const float *b = d->b + r * d->rank, *a = d->a + c; \
        for (int64_t k = 0; k < d->rank; k++, a += d->width) { \
            vf v[V]; \
            _Pragma("GCC unroll 4") for (int i = 0; i < V; i++) v[i] = loose(a + i * WIDTH); \
            _Pragma("GCC unroll 4") for (int s = 0; s < R; s++) { \
                vf x = splat_f(b[s * d->rank + k]); \
                _Pragma("GCC unroll 4") for (int i = 0; i < V; i++) t[s][i] = t[s][i] + x * v[i]; \
            } \
        } \
        _Pragma("GCC unroll 4") for (int s = 0; s < R; s++) \
            _Pragma("GCC unroll 4") for (int i = 0; i < V; i++) { \
                float *at = d->w + (r + s) * d->width + c + i * WIDTH; \
                vf by = t[s][i] * scale; \
                put(at, d->adds ? loose(at) + by : by); \
            } \
    }
TILE(4, 4) TILE(1, 4) TILE(4, 1) TILE(1, 1)

static void single(const Delta *d, int64_t r, int64_t c) {
    float total = 0, *at = d->w + r * d->width + c;
    for (int64_t k = 0; k < d->rank; k++)
        total = total + d->b[r * d->rank + k] * d->a[k * d->width + c];
    float by = total * d->scale;
    *at = d->adds ? *at + by : by;
}

/* Of rows `first` to `last`. */
void delta(const Delta *d, int64_t first, int64_t last) {
    int64_t strip = KEPT / (d->rank > 0 ? d->rank : 1) / COLUMNS * COLUMNS;
    if (strip < COLUMNS)
        strip = COLUMNS;
    for (int64_t begin = 0; begin < d->width; begin += strip) {
        int64_t end = begin + strip < d->width ? begin + strip : d->width;
        for (int64_t r = first; r < last;) {
            int64_t four = last - r >= 4, c = begin;
            for (; c + COLUMNS <= end; c += COLUMNS)
                four ? tile_4_4(d, r, c) : tile_1_4(d, r, c);
            for (; c + WIDTH <= end; c += WIDTH)
                four ? tile_4_1(d, r, c) : tile_1_1(d, r, c);
            for (; c < end; c++)
                for (int64_t s = 0; s < (four ? 4 : 1); s++)
                    single(d, r + s, c);
            r += four ? 4 : 1;
        }
    }
}

/* out [rows]: the length of each row of w + delta, both [rows, width]. */
void lengths(const float *w, const float *delta, float *out, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; r++, w += width, delta += width) {
        vf t[SUMS / WIDTH] = {};
        float sums[SUMS] __attribute__((aligned(64)));
        int64_t c = 0;
        for (; c + SUMS <= width; c += SUMS)
            for (int i = 0; i < SUMS / WIDTH; i++) {
                vf x = loose(w + c + i * WIDTH) + loose(delta + c + i * WIDTH);
                t[i] = t[i] + x * x;
            }
        for (int i = 0; i < SUMS / WIDTH; i++)
            store_f(sums + i * WIDTH, t[i]);
        for (int i = 0; c < width; c++, i++) {
            float x = w[c] + delta[c];
            sums[i] = sums[i] + x * x;
        }
        for (int n = SUMS / 2; n > 0; n /= 2)
            for (int i = 0; i < n; i++)
                sums[i] = sums[2 * i] + sums[2 * i + 1];
        out[r] = __builtin_sqrtf(sums[0]);
    }
}
