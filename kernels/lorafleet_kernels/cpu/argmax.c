/* Greedy choice, also of what a mask allows. */
#include "vector.h"

/* The lanes of a mask's sixteen bits, without a branch: nobody can foresee them. */
INLINE ivec lanes_of(const uint8_t *mask) {
    const ivec bit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    return (bit & (mask[0] | mask[1] << 8)) != 0;
}

/* A logit that is no number, or infinite, spoils its row whether it is allowed or not. */
INLINE int64_t best_of(const elem *from, int64_t width, const uint8_t *mask) {
    vec best = splat(-INFINITY);
    ivec at = {0}, broken = {0};
    ivec index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES, index += LANES) {
        const vec v = load(from + i);
        broken |= ~(v < INFINITY);
        ivec better = v > best;
        if (mask) better &= lanes_of(mask + i / 8);
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
        bad |= !(v < INFINITY);
        if (v > value && (!mask || mask[i / 8] >> i % 8 & 1)) {
            value = v;
            token = i;
        }
    }
    return bad ? -1 : token;
}

/* tokens [rows]: the lowest index of each row's largest logit; -1 where that is not finite or a logit is NaN or inf.
 * masks [rows], where there are any: null, or a bit for each logit, 1 where it may be chosen. */
void lorafleet_argmax(
    const elem *logits, const uint8_t *const *masks, int64_t *tokens, int64_t rows, int64_t width, int threads
) {
#pragma omp parallel for num_threads(team(threads, rows * width)) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const elem *const from = logits + row * width;
        const uint8_t *const mask = masks ? masks[row] : NULL;
        tokens[row] = mask ? best_of(from, width, mask) : best_of(from, width, NULL);
    }
}
