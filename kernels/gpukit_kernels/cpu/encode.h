/* Values to blocks, tile by tile. Before it stand LANES, BLOCK, NBYTES, ARENA, where in the arena
   the tile's X, WORDS, IMPORTANCE and MEANS lie, `vectors.h`, and tile(), which fills X. */
const int64_t gpukit_lanes = LANES, gpukit_arena = ARENA;

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
        tile(a, from, kind, lanes);
        char *block = out + begin * NBYTES;
        for (int64_t i = 0; i < lanes; i++, block += NBYTES) {
            for (int64_t k = 0; k < NBYTES / 4; k++)
                memcpy(block + 4 * k, &words[k * LANES + i], 4);
            memcpy(block + NBYTES / 4 * 4, &words[NBYTES / 4 * LANES + i], NBYTES % 4);
        }
    }
}
