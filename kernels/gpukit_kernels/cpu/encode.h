/* Values to blocks, tile by tile. Before it stand LANES, BLOCK, NBYTES, ARENA, where in the arena
   the tile's X, WORDS, IMPORTANCE and MEANS lie, `vectors.h`, and tile(). */
const int64_t gpukit_lanes = LANES, gpukit_arena = ARENA;

/* The tile x [BLOCK, LANES] of `lanes` blocks, kind 0 float32, 1 bfloat16, 2 float16. Lanes without
   a block repeat the last. */
ANY void fill(float *x, const char *values, int64_t kind, int64_t lanes) {
    int64_t size = kind == 0 ? 4 : 2, at_once = 4 * WIDTH / size;
    for (int64_t i = 0; i < LANES; i += WIDTH)
        for (int64_t k = 0; k < BLOCK; k += at_once) {
            vi row[WIDTH];
            for (int64_t j = 0; j < WIDTH; j++) {
                int64_t lane = i + j < lanes ? i + j : lanes - 1;
                row[j] = *(const ui *)(values + (lane * BLOCK + k) * size);
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

/* Of blocks `first` to `first` + `count` of a tensor whose rows have `of_row` blocks; of each of
   the experts, `rows` rows, the importance of its own `columns`, float32 [experts, of_row, BLOCK].
   The arena is ARENA bytes, `means` a number a block. */
void encode(char *a, const void *values, int64_t kind, char *out, int64_t count, int64_t first,
            const float *columns, int64_t experts, int64_t of_row, int64_t rows,
            const float *means) {
    const uint32_t *words = (const uint32_t *)(a + WORDS);
    for (int64_t begin = 0; begin < count; begin += LANES) {
        int64_t lanes = count - begin < LANES ? count - begin : LANES;
        const char *from = (const char *)values + begin * BLOCK * (kind == 0 ? 4 : 2);
        /* Of a constant kind, so that each has loops of its own. */
        if (kind == 0)
            fill((float *)(a + X), from, 0, lanes);
        else if (kind == 1)
            fill((float *)(a + X), from, 1, lanes);
        else
            fill((float *)(a + X), from, 2, lanes);
#ifdef IMPORTANCE
        float *importance = (float *)(a + IMPORTANCE);
        for (int64_t i = 0; i < lanes; i++) {
            int64_t at = first + begin + i, expert = at / (of_row * rows) % experts;
            const float *column = columns + (expert * of_row + at % of_row) * BLOCK;
            for (int64_t k = 0; k < BLOCK; k++)
                importance[k * LANES + i] = column[k];
        }
        memcpy(a + MEANS, means + begin, lanes * sizeof(float));
#endif
        tile(a);
        char *block = out + begin * NBYTES;
        for (int64_t i = 0; i < lanes; i++, block += NBYTES) {
            for (int64_t k = 0; k < NBYTES / 4; k++)
                memcpy(block + 4 * k, &words[k * LANES + i], 4);
            memcpy(block + NBYTES / 4 * 4, &words[NBYTES / 4 * LANES + i], NBYTES % 4);
        }
    }
}
