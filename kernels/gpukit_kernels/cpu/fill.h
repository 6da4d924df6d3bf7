/* Values of blocks as the tile that stages compute on. Before it stand LANES, BLOCK and `vectors.h`. */

/* Rows `first` to `last`, multiples of what a vector holds of 16-bit values, of the tile x [BLOCK,
   LANES] of `lanes` blocks, kind 0 float32, 1 bfloat16, 2 float16. Lanes without a block repeat the
   last. What lies at the same place of the next tile is asked for meanwhile: blocks are too far
   apart for the processor to see what comes. */
ANY void fill_kind(float *x, const char *values, int64_t kind, int64_t lanes, int64_t first, int64_t last) {
    int64_t size = kind == 0 ? 4 : 2, at_once = 4 * WIDTH / size;
    for (int64_t i = 0; i < LANES; i += WIDTH)
        for (int64_t k = first; k < last; k += at_once) {
            vi row[WIDTH];
            for (int64_t j = 0; j < WIDTH; j++) {
                int64_t lane = i + j < lanes ? i + j : lanes - 1;
                const char *from = values + (lane * BLOCK + k) * size;
                row[j] = *(const ui *)from;
                __builtin_prefetch(from + LANES * BLOCK * size, 0, 2);
            }
            turn_over(row);
            for (int64_t j = 0; j < WIDTH; j++) {
                float *to = x + (k + (kind == 0 ? j : 2 * j)) * LANES + i;
                if (kind == 0)
                    store_i(to, row[j]);
                else if (kind == 1)
                    store_i(to, row[j] << 16), store_i(to + LANES, row[j] & (int32_t)0xFFFF0000);
                else
                    store_f(to, of_half(row[j] & 0xFFFF)),
                        store_f(to + LANES, of_half((vi)((vu)row[j] >> 16)));
            }
        }
}

__attribute__((noinline)) static void fill(float *x, const char *values, int64_t kind, int64_t lanes,
                                           int64_t first, int64_t last) {
    /* Of a constant kind, so that each has loops of its own. */
    if (kind == 0)
        fill_kind(x, values, 0, lanes, first, last);
    else if (kind == 1)
        fill_kind(x, values, 1, lanes, first, last);
    else
        fill_kind(x, values, 2, lanes, first, last);
}
