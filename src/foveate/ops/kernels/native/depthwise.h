/* What a depthwise convolution is told, and the piece of it that is done at once. */
#pragma once

/* A vector is a line of the cache, where that takes two registers, too: else lines of maps whose
 * channels lie together would be read twice. */
#if LANES == 8
#define HALVES 2
#undef LANES
#define LANES 16
#else
#define HALVES 1
#endif
#include "lanes.h"

/* Whether registers hold outputs and the taps' gradients at once: else these take a pass of their own. */
#define TOGETHER (HALVES == 1)

#define COPY 0 /* a height of 0 says: no kernel, hand the channels on */

typedef struct {
    view x, y, seen;            /* no data in y: not wanted; in seen: no gradients of weights */
    const float *weight, *bias; /* (channels, kernel_h, kernel_w); (channels) or null */
    float *weight_gradient, *bias_gradient;
    int64_t batch, channels, height, width, out_height, out_width;
    int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int32_t stuff_h, stuff_w; /* distance of input pixels once zeros are stuffed between */
    int32_t turned, half;     /* kernel turned over; x and y are bfloat16 */
} depthwise;

INLINE int64_t blocks_of(const depthwise *d) { return (d->channels + LANES - 1) / LANES; }
INLINE int64_t taps_of(const depthwise *d) { return (int64_t)d->kernel_h * d->kernel_w; }
INLINE int64_t rows_of(const depthwise *d) { return (d->height - 1) * d->stuff_h + 1; }

/* One image, up to LANES channels of it from the first on, and the output's rows from `row` to
 * before `end`. */
typedef struct {
    int64_t image, channel, row, end;
} slab;

INLINE const char *begin_of(view v, slab u, int half) {
    return v.data + (u.image * v.n + u.channel * v.c) * element_size(half);
}
