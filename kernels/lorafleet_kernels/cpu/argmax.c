/* Greedy choice. */
#include "vector.h"

/* tokens [rows]: the lowest index of each row's largest logit; -1 where that is not finite or a logit is NaN. */
void lorafleet_argmax(const elem *logits, int64_t *tokens, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(team(threads, rows * width)) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const elem *const from = logits + row * width;
        vec best = splat(-INFINITY);
        ivec at = {0}, broken = {0};
        ivec index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES, index += LANES) {
            const vec v = load(from + i);
            const ivec better = v > best;
            broken |= v != v;
            best = choose(better, v, best);
            at = (better & index) | (~better & at);
        }
        float value = -INFINITY;
        int64_t token = -1;
        int bad = 0;
        for (int lane = 0; lane < LANES; lane++) {
            bad |= broken[lane] != 0;
            if (best[lane] > value || (best[lane] == value && at[lane] < token)) {
                value = best[lane];
                token = at[lane];
            }
        }
        for (; i < width; i++) {
            const float v = load_one(from + i);
            bad |= v != v;
            if (v > value) {
                value = v;
                token = i;
            }
        }
        tokens[row] = bad || !isfinite(value) ? -1 : token;
    }
}
