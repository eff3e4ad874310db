/* Vectors of LANES floats, and rows of pixels in and out of them.
 *
 * Compiled once for each instruction set, with LANES floats a register, or in two.
 */
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")
#define EACH_LANE UNROLL for (int lane = 0; lane < LANES; lane++)

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float loose_vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t int_vec __attribute__((vector_size(4 * LANES)));

/* The part of a vector that one register holds. */
#ifdef __AVX512F__
#define SIDE 16
#else
#define SIDE 8
#endif
typedef float part_vec __attribute__((vector_size(4 * SIDE), may_alias));
typedef float loose_part __attribute__((vector_size(4 * SIDE), aligned(4), may_alias));
typedef uint32_t word_part __attribute__((vector_size(4 * SIDE)));
typedef uint16_t half_part __attribute__((vector_size(2 * SIDE)));

/* A tensor (n, c, h, w): its memory, and the distance of neighbours in elements. */
typedef struct {
    char *data;
    int64_t n, c, h, w;
} view;

/* torch_parallel_for of PyTorch's stable C interface: its threads are those of the caller's net. */
typedef void (*body)(int64_t begin, int64_t end, void *context);
typedef int (*loop)(int64_t begin, int64_t end, int64_t grain, body run, void *context);

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
INLINE int64_t element_size(int half) { return half ? 2 : 4; }

/* Zeroed memory for so many floats, or null. */
static float *zeros(int64_t floats) {
    size_t bytes = (size_t)rounded_up(4 * floats, 64);
    float *memory = aligned_alloc(64, bytes);
    return memory ? memset(memory, 0, bytes) : memory;
}

INLINE vec load(const float *from) { return *(const loose_vec *)from; }
INLINE void store(float *to, vec v) { *(loose_vec *)to = v; }
INLINE part_vec load_side(const float *from) { return *(const loose_part *)from; }
INLINE void store_side(float *to, part_vec v) { *(loose_part *)to = v; }

INLINE vec splat(float value) {
    vec v;
    EACH_LANE v[lane] = value;
    return v;
}

/* a where the mask is set, else b. */
INLINE vec chosen(int_vec mask, vec a, vec b) {
    return (vec)(((int_vec)a & mask) | ((int_vec)b & ~mask));
}

/* Outputs of more bytes than this go past the caches, which would read each line before they write
 * it, and keep none of it until it is needed. */
#define CACHED (32 << 20)

/* To memory at a multiple of a vector's size. A thread that wrote so settles before it ends, lest
 * others read what was there before. */
INLINE int is_even(const char *to) { return (uintptr_t)to % sizeof(vec) == 0; }
INLINE void stream(char *to, vec v) { __builtin_nontemporal_store(v, (vec *)to); }
INLINE void settle(void) { _mm_sfence(); }

/* Copy bytes past the caches: all that fills whole lines. */
static void copy_past(char *to, const char *from, int64_t bytes) {
    int64_t head = least(-(intptr_t)to & (sizeof(vec) - 1), bytes), at = head;
    memcpy(to, from, (size_t)head);
    for (; at + (int64_t)sizeof(vec) <= bytes; at += sizeof(vec))
        stream(to + at, load((const float *)(from + at)));
    memcpy(to + at, from + at, (size_t)(bytes - at));
}

/* The lesser and the greater of each lane, or what is no number if the second is that. */
#ifdef __AVX512F__
INLINE vec lesser(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vec greater(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
#else
INLINE vec lesser(vec a, vec b) {
    vec v;
    UNROLL for (int i = 0; i < LANES / SIDE; i++)
        ((part_vec *)&v)[i] =
            (part_vec)_mm256_min_ps(((const __m256 *)&a)[i], ((const __m256 *)&b)[i]);
    return v;
}
INLINE vec greater(vec a, vec b) {
    vec v;
    UNROLL for (int i = 0; i < LANES / SIDE; i++)
        ((part_vec *)&v)[i] =
            (part_vec)_mm256_max_ps(((const __m256 *)&a)[i], ((const __m256 *)&b)[i]);
    return v;
}
#endif

/* The sum of the lanes, halved again and again. */
INLINE float total(vec v) {
    float part[LANES];
    store(part, v);
    UNROLL for (int half = LANES / 2; half > 0; half /= 2)
        UNROLL for (int i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
}

/* bfloat16 is the upper half of a float; rounding is to the nearest, ties to even. */
INLINE part_vec widened(half_part half) {
    return (part_vec)(__builtin_convertvector(half, word_part) << 16);
}

INLINE half_part narrowed(part_vec v) {
    word_part bits = (word_part)v;
    word_part rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    word_part nan = (word_part)(v != v);
    return __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), half_part);
}

/* Copy fewer bytes than a register has, in pieces of constant size. */
INLINE void copy_part(char *to, const char *from, int bytes) {
    UNROLL for (int size = 2 * SIDE; size > 1; size /= 2)
        if (bytes & size) {
            __builtin_memcpy(to, from, (size_t)size);
            to += size, from += size;
        }
}

/* The first `count` of SIDE values; the others are 0. */
INLINE part_vec load_some(const char *from, int count, int half) {
    if (half) {
        half_part v = {0};
        if (count >= SIDE) __builtin_memcpy(&v, from, sizeof v);
        else if (count > 0) copy_part((char *)&v, from, 2 * count);
        return widened(v);
    }
    if (count >= SIDE) return *(const loose_part *)from;
#ifdef __AVX512F__
    return (part_vec)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
#else
    int32_t at __attribute__((vector_size(4 * SIDE))) = {0, 1, 2, 3, 4, 5, 6, 7};
    return (part_vec)_mm256_maskload_ps((const float *)from, (__m256i)(at < count));
#endif
}

INLINE void store_some(char *to, part_vec v, int count, int half) {
    if (half) {
        half_part h = narrowed(v);
        if (count >= SIDE) __builtin_memcpy(to, &h, sizeof h);
        else if (count > 0) copy_part(to, (char *)&h, 2 * count);
        return;
    }
    if (count >= SIDE) {
        *(loose_part *)to = v;
        return;
    }
#ifdef __AVX512F__
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), (__m512)v);
#else
    if (count > 0) copy_part(to, (char *)&v, 4 * count);
#endif
}

/* The first `count` of LANES values; the others are 0. */
INLINE vec load_part(const char *from, int count, int half) {
    vec v;
    UNROLL for (int i = 0; i < LANES; i += SIDE)
        ((part_vec *)&v)[i / SIDE] = load_some(from + i * element_size(half), count - i, half);
    return v;
}

INLINE void store_part(char *to, vec v, int count, int half) {
    UNROLL for (int i = 0; i < LANES; i += SIDE)
        store_some(to + i * element_size(half), ((part_vec *)&v)[i / SIDE], count - i, half);
}

/* Turn SIDE rows of SIDE values into columns, by as many perfect shuffles as 2 divides SIDE. */
INLINE void transpose(part_vec *v) {
    UNROLL for (int round = 1; round < SIDE; round *= 2) {
        part_vec next[SIDE];
        UNROLL for (int i = 0; i < SIDE / 2; i++) {
            part_vec a = v[i], b = v[i + SIDE / 2];
#if SIDE == 16
            next[2 * i] = __builtin_shufflevector(
                a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            next[2 * i + 1] = __builtin_shufflevector(
                a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#else
            next[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
            next[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#endif
        }
        UNROLL for (int i = 0; i < SIDE; i++) v[i] = next[i];
    }
}

/* Ask for a line of memory before it is read or written. */
INLINE void fetch(const char *line, const int write) {
    if (write) __builtin_prefetch(line, 1, 2);
    else __builtin_prefetch(line, 0, 2);
}

/* Ask for LANES channels of a row of pixels. */
INLINE void expect(const char *row, view s, int64_t width, int half, const int write) {
    int64_t size = element_size(half);
    if (s.c == 1)
        for (int64_t i = 0; i < width; i++) fetch(row + i * s.w * size, write);
    else
        for (int64_t c = 0; c < LANES; c++)
            for (int64_t i = 0; i < width; i += LANES)
                fetch(row + (c * s.c + i) * size, write);
}

/* Up to LANES channels of `width` neighbouring pixels, to vectors `pitch` floats apart. */
INLINE void pack(
    float *to, int64_t pitch, const char *from, view s, int64_t width, int lanes, int half
) {
    int64_t size = element_size(half);
    if (s.c == 1) {
        for (int64_t i = 0; i < width; i++)
            store(to + i * pitch, load_part(from + i * s.w * size, lanes, half));
        return;
    }
    for (int64_t i = 0; i < width; i += SIDE) {
        int pixels = (int)least(width - i, SIDE);
        UNROLL for (int first = 0; first < LANES; first += SIDE) {
            part_vec v[SIDE];
            UNROLL for (int c = 0; c < SIDE; c++)
                v[c] = first + c < lanes ? load_some(from + ((first + c) * s.c + i) * size, pixels, half)
                                         : (part_vec){0};
            transpose(v);
            UNROLL for (int p = 0; p < SIDE; p++)
                if (p < pixels) *(loose_part *)(to + (i + p) * pitch + first) = v[p];
        }
    }
}

/* The way back. */
INLINE void unpack(
    char *to, view s, const float *from, int64_t pitch, int64_t width, int lanes, int half
) {
    int64_t size = element_size(half);
    if (s.c == 1) {
        for (int64_t i = 0; i < width; i++)
            store_part(to + i * s.w * size, load(from + i * pitch), lanes, half);
        return;
    }
    for (int64_t i = 0; i < width; i += SIDE) {
        int pixels = (int)least(width - i, SIDE);
        UNROLL for (int first = 0; first < LANES; first += SIDE) {
            part_vec v[SIDE];
            UNROLL for (int p = 0; p < SIDE; p++)
                v[p] = p < pixels ? *(const loose_part *)(from + (i + p) * pitch + first) : (part_vec){0};
            transpose(v);
            UNROLL for (int c = 0; c < SIDE; c++)
                if (first + c < lanes)
                    store_some(to + ((first + c) * s.c + i) * size, v[c], pixels, half);
        }
    }
}
