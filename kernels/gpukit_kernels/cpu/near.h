/* Of each lane the nearest of the rows of a codebook near a point; see `search/near.py`. */

/* Numbers of a table that `picked` takes from, and entries of a part of a list. */
#define PART 16
#define VECTORS (PART / WIDTH)

typedef struct {
    vf part[VECTORS];
} Table;

/* The numbers at the low four bits of `at`. */
ANY vf picked(const Table *from, vi at) {
#if WIDTH == 16
    return (vf)_mm512_permutexvar_ps((__m512i)at, (__m512)from->part[0]);
#else
    return (vf)of_16(from->part, at);
#endif
}

/* Of the lanes with the least number that with the lowest place. */
ANY int32_t first_least(const vf *numbers, const vi *places, int64_t parts) {
#if WIDTH == 16
    __m512 all = (__m512)numbers[0];
    __mmask16 least = _mm512_cmp_ps_mask(all, _mm512_set1_ps(_mm512_reduce_min_ps(all)), _CMP_EQ_OQ);
    /* Of one part the places are those of the lanes. */
    if (parts == 1)
        return __builtin_ctz(least);
    return _mm512_mask_reduce_min_epi32(least, (__m512i)places[0]);
#else
    float least = __builtin_inff();
    int32_t found = INT32_MAX;
    for (int j = 0; j < VECTORS; j++)
        for (int i = 0; i < WIDTH; i++)
            if (numbers[j][i] < least || (numbers[j][i] == least && places[j][i] < found))
                least = numbers[j][i], found = places[j][i];
    return found;
#endif
}

/* The place of the entry with the least error among `parts` parts from `list` on: an error is the
   sum of a row's `terms`, which are tables of them by level. */
ANY int32_t nearest_of(int size, int bits, const int32_t *list, int64_t parts, const Table *terms) {
    vf best[VECTORS];
    vi places[VECTORS], here[VECTORS];
    for (int j = 0; j < VECTORS; j++) {
        best[j] = splat_f(__FLT_MAX__);
        for (int i = 0; i < WIDTH; i++)
            here[j][i] = j * WIDTH + i;
        places[j] = here[j];
    }
    for (int64_t p = 0; p < parts; p++)
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) {
            vi entry = *(const ui *)(list + p * PART + j * WIDTH);
            vf error = picked(&terms[0], entry);
#pragma GCC unroll 8
            for (int k = 1; k < size; k++)
                error = error + picked(&terms[k], entry >> (bits * k));
            vm less = lt_f(error, best[j]);
            best[j] = choose_f(less, error, best[j]);
            places[j] = choose_i(less, here[j] + (int32_t)p * PART, places[j]);
        }
    return first_least(best, places, parts);
}

/* The entries of `point`: rows have `size` levels of `bits` bits, which stand for `lowest` and so
   many times `step` more. Lanes with a list are taken one after the other, the rows of a list side
   by side. */
ANY vi near_rows(int size, int bits, const int32_t *points, const int32_t *lists, vi point, vf scale,
                 int step, vf lowest, const vf *x, const vf *weights) {
    int32_t entries[WIDTH] __attribute__((aligned(64))), lanes[WIDTH], count = 0;
    float scales[WIDTH] __attribute__((aligned(64))), offsets[WIDTH] __attribute__((aligned(64)));
    store_i((float *)entries, gathered(points, point));
    store_f(scales, scale);
    store_f(offsets, lowest);
    for (int i = 0; i < WIDTH; i++)
        lanes[count] = i, count += entries[i] < 0;
    vf numbers[VECTORS];
    for (int j = 0; j < VECTORS; j++)
        for (int i = 0; i < WIDTH; i++)
            numbers[j][i] = step * ((j * WIDTH + i) & ((1 << bits) - 1));
    for (int n = 0; n < count; n++) {
        int i = lanes[n];
        Table terms[8];
#pragma GCC unroll 8
        for (int k = 0; k < size; k++)
            for (int j = 0; j < VECTORS; j++) {
                vf number = splat_f(offsets[i]) + numbers[j];
                vf off = splat_f(scales[i]) * number - splat_f(x[k][i]);
                terms[k].part[j] = splat_f(weights[k][i]) * off * off;
            }
        int64_t place = -1 - (int64_t)entries[i];
        const int32_t *list = lists + (place >> 8) * PART;
        entries[i] = list[nearest_of(size, bits, list, place & 255, terms)];
    }
    return load_i((float *)entries);
}
