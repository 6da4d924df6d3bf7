/* Blocks to values, and products with them. Before it stand LANES, BLOCK, NBYTES and GROUP,
   `vectors.h`, values_of(words, values, 0), of LANES times GROUP blocks, their words [WORDS, LANES],
   the values [TILE, LANES], and dots_of(words, x, sums), which adds to sums [LANES] the products with
   one row of x [TILE]. With LINE, the elements that a word of a float type has, line_of(words, x, sums)
   adds to sums [LINE, LANES] the products of LANES words of one row of W, [LANES], with x of that form. */
#define TILE (GROUP * BLOCK)
#define BYTES (GROUP * NBYTES)
#define WORDS ((BYTES + 3) / 4)
/* Rows of x whose sums are kept at a time. */
#define CHUNK 128
/* The same of `tiles.h`, and rows of W. */
#define TILED_X 512
#define TILED_W 256
typedef struct {
    float words[(WORDS + WIDTH) * LANES] __attribute__((aligned(64)));
    float values[TILE * LANES] __attribute__((aligned(64)));
    float sums[CHUNK * LANES] __attribute__((aligned(64)));
    char split[2][2 * (TILE / 32)][1024] __attribute__((aligned(64)));
    float tiled[TILED_W / 32][TILED_X / 32][1024] __attribute__((aligned(64)));
} Arena;
const int64_t gpukit_arena = sizeof(Arena), gpukit_lanes = LANES, gpukit_panel = WIDTH == 16 ? 16 : 8;
const int64_t gpukit_line = LINE;

/* The words of what begins at `from`, one a lane, nothing of it read behind `end`; what lies `ahead`
   bytes behind is fetched meanwhile. */
ANY void words_of(float *words, const char *const from[LANES], const char *end, int64_t ahead) {
    for (int64_t i = 0; i < LANES; i++)
        for (int64_t k = 0; k < BYTES; k += 64)
            __builtin_prefetch(from[i] + ahead + k);
    for (int64_t i = 0; i < LANES; i += WIDTH)
        for (int64_t k = 0; k < WORDS; k += WIDTH) {
            vi row[WIDTH];
            for (int64_t j = 0; j < WIDTH; j++) {
                const char *at = from[i + j] + 4 * k;
                if (end - at >= 4 * WIDTH) {
                    row[j] = *(const ui *)at;
                } else {
                    row[j] = (vi){};
                    if (at < end)
                        memcpy(&row[j], at, end - at);
                }
            }
            turn_over(row);
            for (int64_t j = 0; j < WIDTH; j++)
                store_i(words + (k + j) * LANES + i, row[j]);
        }
}

/* Float32 `out` [count, BLOCK] of `count` blocks; arenas for all threads. */
typedef struct {
    Arena *arenas;
    const char *blocks;
    int64_t count;
    float *out;
} Decoding;

/* Of blocks `first` to `last`. */
void decode(const Decoding *job, int64_t first, int64_t last, int64_t thread) {
    Arena *a = job->arenas + thread;
    const char *blocks = job->blocks, *end = blocks + job->count * NBYTES, *from[LANES];
    float *out = job->out;
    int64_t count = last;
    for (int64_t begin = first; begin < count; begin += LANES * GROUP) {
        for (int64_t i = 0; i < LANES; i++) {
            int64_t block = begin + i * GROUP;
            from[i] = blocks + (block < count ? block : begin) * NBYTES;
        }
        words_of(a->words, from, end, LANES * BYTES);
        values_of(a->words, a->values, 0);
        for (int64_t i = 0; i < LANES; i += WIDTH)
            for (int64_t k = 0; k < TILE; k += WIDTH) {
                vi row[WIDTH];
                for (int64_t j = 0; j < WIDTH; j++)
                    row[j] = load_i(a->values + (k + j) * LANES + i);
                turn_over(row);
                for (int64_t j = 0; j < WIDTH; j++) {
                    int64_t at = (begin + (i + j) * GROUP) * BLOCK + k, left = count * BLOCK - at;
                    if (left >= WIDTH)
                        *(ui *)(out + at) = row[j];
                    else if (left > 0)
                        memcpy(out + at, &row[j], 4 * left);
                }
            }
    }
}

/* To the sums of S rows of x those of `n` elements: x [n, S], PARTS of the elements side by side, so
   that no sum waits for the one before. */
#define PANEL(S, PARTS) \
    static __attribute__((noinline)) void panel_##S(const float *w, const float *x, int64_t n, \
                                                    float *sums) { \
        for (int64_t l = 0; l < LANES; l += WIDTH) { \
            vf t[S][PARTS] = {}; \
            int64_t e = 0; \
            for (; e + PARTS <= n; e += PARTS) \
                _Pragma("GCC unroll 8") for (int p = 0; p < PARTS; p++) { \
                    vf v = load_f(w + (e + p) * LANES + l); \
                    _Pragma("GCC unroll 16") for (int s = 0; s < S; s++) \
                        t[s][p] = fused(v, splat_f(x[(e + p) * S + s]), t[s][p]); \
                } \
            for (; e < n; e++) \
                for (int s = 0; s < S; s++) \
                    t[s][0] = fused(load_f(w + e * LANES + l), splat_f(x[e * S + s]), t[s][0]); \
            _Pragma("GCC unroll 16") for (int s = 0; s < S; s++) { \
                _Pragma("GCC unroll 8") for (int p = 1; p < PARTS; p++) t[s][0] += t[s][p]; \
                store_f(sums + s * LANES + l, load_f(sums + s * LANES + l) + t[s][0]); \
            } \
        } \
    }
PANEL(1, 8) PANEL(2, 4) PANEL(4, 2) PANEL(8, 1)
#if WIDTH == 16
PANEL(16, 1)
#endif

/* y [count, stride], of which column r is row r of W: x W^T for rows of `width` values in blocks,
   `row_bytes` apart, nothing read behind `end`. x lies in panels: of as many rows as are left, at
   most gpukit_panel and a power of two, [width, rows of the panel] each. */
typedef struct {
    Arena *arenas;
    const char *blocks;
    int64_t row_bytes, width;
    const char *end;
    const float *x;
    int64_t count;
    float *y;
    int64_t stride;
} Product;

/* The products of LANES rows of W from `r` on, of which `lanes` are there, with rows `done` to `done`
   + `here` of x. */
ANY void multiply_lanes(const Product *job, Arena *a, int64_t r, int64_t lanes, int64_t done,
                        int64_t here) {
    const char *from[LANES];
    int64_t width = job->width;
    memset(a->sums, 0, here * LANES * sizeof(float));
    for (int64_t c = 0; c < width; c += TILE) {
        int64_t n = width - c < TILE ? width - c : TILE, place = c / BLOCK * NBYTES;
        for (int64_t i = 0; i < LANES; i++)
            from[i] = job->blocks + (r + (i < lanes ? i : 0)) * job->row_bytes + place;
        words_of(a->words, from, job->end, n < width - c ? BYTES : LANES * job->row_bytes - place);
        if (here == 1 && n == TILE) {
            dots_of(a->words, (float *)job->x + done * width + c, a->sums);
            continue;
        }
        values_of(a->words, a->values, 0);
        for (int64_t m = 0; m < here;) {
            const float *panel = job->x + (done + m) * width;
            float *sums = a->sums + m * LANES;
            int64_t left = here - m;
#if WIDTH == 16
            if (left >= 16)
                panel_16(a->values, panel + c * 16, n, sums), m += 16;
            else
#endif
            if (left >= 8)
                panel_8(a->values, panel + c * 8, n, sums), m += 8;
            else if (left >= 4)
                panel_4(a->values, panel + c * 4, n, sums), m += 4;
            else if (left >= 2)
                panel_2(a->values, panel + c * 2, n, sums), m += 2;
            else
                panel_1(a->values, panel + c, n, sums), m += 1;
        }
    }
}

/* Of rows `first` to `last` of W. */
void multiply(const Product *job, int64_t first, int64_t last, int64_t thread) {
    Arena *a = job->arenas + thread;
    for (int64_t done = 0; done < job->count; done += CHUNK) {
        int64_t here = job->count - done < CHUNK ? job->count - done : CHUNK;
        for (int64_t r = first; r < last; r += LANES) {
            int64_t lanes = last - r < LANES ? last - r : LANES;
            multiply_lanes(job, a, r, lanes, done, here);
            for (int64_t m = 0; m < here; m++)
                memcpy(job->y + (done + m) * job->stride + r, a->sums + m * LANES,
                       lanes * sizeof(float));
        }
    }
}

#if LINE
/* Rows of W that are read side by side: enough to be waited for together. What lies AHEAD bytes behind
   is fetched meanwhile: a row's end and the next one's first bytes would be waited for. */
#define TOGETHER 8
#define AHEAD 512
#define STEP (LINE * LANES)

/* The sum of `sums` [STEP], which change. */
ANY float total(float *sums) {
    vf all = load_f(sums);
    for (int k = WIDTH; k < STEP; k += WIDTH)
        all += load_f(sums + k);
    store_f(sums, all);
    for (int half = WIDTH / 2; half; half /= 2)
        for (int k = 0; k < half; k++)
            sums[k] += sums[k + half];
    return sums[0];
}

/* As `multiply`, of one row of x, [width / STEP, LINE, LANES], and a width that STEP divides: rows of W
   are read from end to end, and lanes are elements of them. */
void multiply_line(const Product *job, int64_t first, int64_t last, int64_t thread) {
    (void)thread;
    for (int64_t r = first; r < last; r += TOGETHER) {
        float sums[TOGETHER][STEP] __attribute__((aligned(64)));
        float words[LANES] __attribute__((aligned(64)));
        memset(sums, 0, sizeof sums);
        for (int64_t c = 0; c < job->width; c += STEP)
            _Pragma("GCC unroll 8") for (int64_t i = 0; i < TOGETHER; i++) {
                int64_t row = r + i < last ? r + i : r;
                const char *from = job->blocks + row * job->row_bytes + c * NBYTES;
                __builtin_prefetch(from + AHEAD);
                memcpy(words, from, sizeof words);
                line_of(words, job->x + c, sums[i]);
            }
        for (int64_t i = 0; i < TOGETHER && r + i < last; i++)
            job->y[r + i] = total(sums[i]);
    }
}
#endif
