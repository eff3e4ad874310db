/* GELU by the normal distribution's function, and its slope.
 *
 * tail is half of erfc(|x| / sqrt 2), and bell its slope's size. With 32 registers of 16 lanes both
 * come from a table of polynomials, which two registers hold per coefficient; else from
 * exp(-x^2 / 2) R(1 / (1 + 0.283 |x|)), R of degree 8, fitted to a relative error of 1e-7.
 */
#pragma once
#include "lanes.h"

#define ROUNDER 12582912.0f /* 1.5 * 2^23: adding it rounds to a whole number */

typedef struct {
    vec tail, bell;
} side;

#ifdef __AVX512F__
#include "gelu_tails.h"

#define FAR ((STEPS - 0.51f) * STEP)

INLINE vec coefficient(int k, int_vec point) {
    __m512 low = _mm512_loadu_ps(TAILS[k]), high = _mm512_loadu_ps(TAILS[k] + 16);
    return (vec)_mm512_permutex2var_ps(low, (__m512i)point, high);
}

/* Horner's rule for a polynomial and its slope at once. */
INLINE side side_of(vec size) {
    vec whole = size * (1 / STEP) + ROUNDER, r = size - (whole - ROUNDER) * STEP;
    vec tail = coefficient(5, (int_vec)whole), slope = {0};
    UNROLL for (int k = 4; k >= 0; k--) {
        slope = slope * r + tail;
        tail = tail * r + coefficient(k, (int_vec)whole);
    }
    return (side){tail, -slope};
}
#else
#define FAR 13.0f /* beyond it the tail is less than a float can be */

/* 2^v for v in [-126, 0]. Polynomials are summed in pairs: a chain of additions would be waited for. */
INLINE vec power_of_two(vec v) {
    vec whole = v + ROUNDER, r = v - (whole - ROUNDER), square = r * r;
    vec low = 0.693146944f * r + 1.00000012f, middle = 0.0555071346f * r + 0.240221202f;
    vec high = 0.00132764666f * r + 0.00967554096f;
    vec p = (high * square + middle) * square + low;
    return (vec)((int_vec)p + ((int_vec)whole << 23));
}

INLINE side side_of(vec size) {
    vec bell = power_of_two(size * size * -0.721347520f); /* exp(-x^2 / 2) */
    vec t = 1.0f / (1.0f + 0.282842712f * size), t2 = t * t, t4 = t2 * t2;
    vec r01 = 0.112001121f * t + 3.87831715e-05f, r23 = 0.064027332f * t + 0.120550089f;
    vec r45 = -0.189878464f * t + 0.211655006f, r67 = -0.193552554f * t + 0.339171171f;
    vec upper = 0.0359870903f * t4 + (r67 * t2 + r45);
    return (side){bell * (upper * t4 + (r23 * t2 + r01)), 0.398942280f * bell};
}
#endif

typedef struct {
    vec value, slope;
} gelu_pair;

INLINE gelu_pair gelu_of(vec x) {
    vec size = lesser(splat(FAR), (vec)((int_vec)x & 0x7fffffff));
    side s = side_of(size);
    vec below = chosen(x < 0.0f, s.tail, 1.0f - s.tail);
    return (gelu_pair){greater((vec){0}, x) - size * s.tail, below + x * s.bell};
}
