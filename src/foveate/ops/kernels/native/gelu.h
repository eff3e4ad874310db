/* GELU by the normal distribution's function, and its slope.
 *
 * For z = |x| / sqrt 2, erfc z / 2 = exp(-z^2) R(1 / (1 + 0.4 z)) with a polynomial R of degree 8,
 * fitted to a relative error of 1e-7; exp by a polynomial of degree 5 over half a power of two.
 */
#pragma once
#include "lanes.h"

#define FAR 13.0f          /* beyond it the tail is less than a float can be */
#define ROUNDER 12582912.0f /* 1.5 * 2^23: adding it rounds to a whole number */

/* 2^v for v in [-126, 0]. Polynomials are summed in pairs: a chain of additions would be waited for. */
INLINE vec power_of_two(vec v) {
    vec whole = v + ROUNDER, r = v - (whole - ROUNDER), square = r * r;
    vec low = 0.693146944f * r + 1.00000012f, middle = 0.0555071346f * r + 0.240221202f;
    vec high = 0.00132764666f * r + 0.00967554096f;
    vec p = (high * square + middle) * square + low;
    return (vec)((int_vec)p + ((int_vec)whole << 23));
}

/* 1 / v for v >= 1: a table's 14 bits, doubled by a step of Newton's. */
INLINE vec reciprocal(vec v) {
#ifdef __AVX512F__
    vec guess = (vec)_mm512_rcp14_ps((__m512)v);
    return guess * (2.0f - v * guess);
#else
    return 1.0f / v;
#endif
}

typedef struct {
    vec value, slope;
} gelu_pair;

INLINE gelu_pair gelu_of(vec x) {
    vec size = (vec)((int_vec)x & 0x7fffffff);
    size = chosen(size < FAR, size, splat(FAR));
    vec bell = power_of_two(size * size * -0.721347520f); /* exp(-x^2 / 2) */
    vec t = reciprocal(1.0f + 0.282842712f * size);
    vec t2 = t * t, t4 = t2 * t2;
    vec r01 = 0.112001121f * t + 3.87831715e-05f, r23 = 0.064027332f * t + 0.120550089f;
    vec r45 = -0.189878464f * t + 0.211655006f, r67 = -0.193552554f * t + 0.339171171f;
    vec upper = 0.0359870903f * t4 + (r67 * t2 + r45);
    vec tail = bell * (upper * t4 + (r23 * t2 + r01)); /* half of erfc */
    vec below = chosen(x < 0.0f, tail, 1.0f - tail);
    return (gelu_pair){x * below, below + 0.398942280f * x * bell};
}
