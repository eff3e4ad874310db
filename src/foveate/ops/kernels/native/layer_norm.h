/* The channels of pixels brought to mean 0 and variance 1.
 *
 * LANES pixels are done together: their sums are turned, so that a lane holds
 * a pixel's, and roots and quotients are taken once for all of them.
 */
#pragma once
#include "lanes.h"

/* 1 for the lanes of the vector at `channel` that hold channels, 0 for padding. */
INLINE vec held(int64_t channel, int64_t channels) {
    vec mask;
    EACH_LANE mask[lane] = channel + lane < channels ? 1.0f : 0.0f;
    return mask;
}

/* The sum of each vector in the lane of its number. */
INLINE vec totals(vec *v) {
    transpose(v);
    vec sum = v[0];
    UNROLL for (int i = 1; i < LANES; i++) sum += v[i];
    return sum;
}

/* Normalise LANES rows of channels, padded with zeros to whole vectors; 1 / deviation is returned. */
INLINE vec normalise(float *rows, int64_t pitch, int64_t channels, float eps) {
    int64_t whole = channels / LANES * LANES;
    vec mask = held(whole, channels), sums[LANES];
    for (int p = 0; p < LANES; p++) {
        vec sum = {0};
        for (int64_t c = 0; c < channels; c += LANES) sum += load(rows + p * pitch + c);
        sums[p] = sum;
    }
    vec mean = totals(sums) / (float)channels;
    for (int p = 0; p < LANES; p++) {
        vec sum = {0}, middle = splat(mean[p]);
        float *row = rows + p * pitch;
        for (int64_t c = 0; c < whole; c += LANES) {
            vec centred = load(row + c) - middle;
            store(row + c, centred);
            sum += centred * centred;
        }
        if (whole < channels) {
            vec centred = (load(row + whole) - middle) * mask;
            store(row + whole, centred);
            sum += centred * centred;
        }
        sums[p] = sum;
    }
    vec variance = totals(sums) / (float)channels + eps, scale;
    EACH_LANE scale[lane] = 1.0f / __builtin_sqrtf(variance[lane]);
    for (int p = 0; p < LANES; p++) {
        vec factor = splat(scale[p]);
        float *row = rows + p * pitch;
        for (int64_t c = 0; c < channels; c += LANES) store(row + c, load(row + c) * factor);
    }
    return scale;
}

/* From the gradients of LANES normalised rows to those of the rows, in place. */
INLINE void normalise_back(
    float *gradients, const float *normal, int64_t pitch, int64_t channels, vec scale
) {
    vec sums[LANES], products[LANES];
    for (int p = 0; p < LANES; p++) {
        vec sum = {0}, product = {0};
        for (int64_t c = 0; c < channels; c += LANES) {
            vec gradient = load(gradients + p * pitch + c);
            sum += gradient;
            product += gradient * load(normal + p * pitch + c);
        }
        sums[p] = sum, products[p] = product;
    }
    vec mean = totals(sums) / (float)channels, along = totals(products) / (float)channels;
    for (int p = 0; p < LANES; p++) {
        vec middle = splat(mean[p]), slope = splat(along[p]), factor = splat(scale[p]);
        float *row = gradients + p * pitch;
        for (int64_t c = 0; c < channels; c += LANES)
            store(row + c, (load(row + c) - middle - load(normal + p * pitch + c) * slope) * factor);
    }
}
