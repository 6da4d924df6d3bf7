/* Low-rank deltas added to float32 rows, with the sums of `merge.py`, and floats of 16 bits made
   float32 and back. Before it stands `vectors.h`. */
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

/* Values of 16 bits, kind 1 bfloat16, 2 float16 as in `encode.h`, as float32 and back. */
typedef uint16_t vh __attribute__((vector_size(2 * WIDTH), aligned(1), may_alias));

ANY vf wide(vh v, int64_t kind) {
    vi x = __builtin_convertvector(v, vi);
    return kind == 1 ? (vf)(x << 16) : of_half(x);
}

/* To the nearest, of two the even one. */
ANY vh narrowed(vf v, int64_t kind) {
    vi x = (vi)v, even = (vi)((vu)x >> 16) & 1;
    vi short_float = choose_i(ne_f(v, v), splat_i(0x7FC0), (vi)((vu)(x + 0x7FFF + even) >> 16));
    return __builtin_convertvector(kind == 1 ? short_float : half_of(v), vh);
}

ANY void widen_kind(const uint16_t *from, float *to, int64_t count, int64_t kind) {
    for (; count >= WIDTH; count -= WIDTH, from += WIDTH, to += WIDTH)
        put(to, wide(*(const vh *)from, kind));
    uint16_t last[WIDTH] = {};
    float values[WIDTH];
    memcpy(last, from, 2 * count);
    put(values, wide(*(const vh *)last, kind));
    memcpy(to, values, 4 * count);
}

ANY void narrow_kind(const float *from, uint16_t *to, int64_t count, int64_t kind) {
    for (; count >= WIDTH; count -= WIDTH, from += WIDTH, to += WIDTH)
        *(vh *)to = narrowed(loose(from), kind);
    float last[WIDTH] = {};
    uint16_t values[WIDTH];
    memcpy(last, from, 4 * count);
    *(vh *)values = narrowed(loose(last), kind);
    memcpy(to, values, 2 * count);
}

/* The bits of the largest magnitude: without their signs floats are in the order of their bits,
   infinity and NaN last. */
int64_t largest(const float *values, int64_t count) {
    vi most = {};
    for (; count >= WIDTH; count -= WIDTH, values += WIDTH)
        most = max_i(most, (vi)abs_f(loose(values)));
    float last[WIDTH] = {};
    memcpy(last, values, 4 * count);
    most = max_i(most, (vi)abs_f(loose(last)));
    int32_t found = 0;
    for (int i = 0; i < WIDTH; i++)
        found = most[i] > found ? most[i] : found;
    return found;
}

void widen(const void *from, int64_t kind, void *to, int64_t count) {
    kind == 1 ? widen_kind(from, to, count, 1) : widen_kind(from, to, count, 2);
}

void narrow(const void *from, int64_t kind, void *to, int64_t count) {
    kind == 1 ? narrow_kind(from, to, count, 1) : narrow_kind(from, to, count, 2);
}
