/* Values to blocks, tile by tile. Before it stand LANES, BLOCK, NBYTES, ARENA, where in the arena
   the tile's X, WORDS, IMPORTANCE and MEANS lie, `vectors.h`, and tile(), which fills X. */
const int64_t gpukit_lanes = LANES, gpukit_arena = ARENA;

/* Blocks of a tensor, of numbers of one kind, and where they go: experts of `rows` rows of `of_row`
   blocks, each with the importance of its own `columns`, float32 [experts, of_row, BLOCK]; `means` is a
   number a block. */
typedef struct {
    const void *values;
    int64_t kind;
    char *out;
    const float *columns;
    int64_t experts, of_row, rows;
    const float *means;
} Encoding;

/* Blocks `start` to `stop`; the arena is ARENA bytes. */
void encode(const Encoding *job, char *a, int64_t start, int64_t stop) {
    const uint32_t *words = (const uint32_t *)(a + WORDS);
    for (int64_t begin = start; begin < stop; begin += LANES) {
        int64_t lanes = stop - begin < LANES ? stop - begin : LANES;
        const char *from = (const char *)job->values + begin * BLOCK * (job->kind == 0 ? 4 : 2);
#ifdef IMPORTANCE
        float *importance = (float *)(a + IMPORTANCE);
        for (int64_t i = 0; i < lanes; i++) {
            int64_t at = begin + i, expert = at / (job->of_row * job->rows) % job->experts;
            const float *column = job->columns + (expert * job->of_row + at % job->of_row) * BLOCK;
            for (int64_t k = 0; k < BLOCK; k++)
                importance[k * LANES + i] = column[k];
        }
        memcpy(a + MEANS, job->means + begin, lanes * sizeof(float));
#endif
        tile(a, from, job->kind, lanes);
        char *block = job->out + begin * NBYTES;
        for (int64_t i = 0; i < lanes; i++, block += NBYTES) {
            for (int64_t k = 0; k < NBYTES / 4; k++)
                memcpy(block + 4 * k, &words[k * LANES + i], 4);
            memcpy(block + NBYTES / 4 * 4, &words[NBYTES / 4 * LANES + i], NBYTES % 4);
        }
    }
}
