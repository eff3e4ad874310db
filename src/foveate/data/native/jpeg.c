/* A box out of a baseline JPEG, bit for bit what libjpeg-turbo gives for it.
 *
 * Most of the time of decoding goes to the Huffman codes. Outside of the box they need not be
 * understood, only stepped over, and below it they need not be read at all. Inside, one look
 * into a table gives most coefficients: how long the code, how many zeros, what value.
 *
 * The bytes come from anybody: everything read off them is checked before it is an index. What
 * is not baseline, or looks damaged, is left to libjpeg-turbo by an answer that is not 0.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum { FINE, OTHER, DAMAGED, NO_MEMORY };

#define LOOK 11      /* bits that one look into a table takes */
#define MARGIN 4096  /* zeros after the codes: more than the blocks of one MCU can take */
#define MOST_SIDE 65500

/* ---------------------------------------------------------------- what the header says */

/* An entry of `look`: bits 0-5 how many bits code and value take, 0 if the code is longer than
 * LOOK; 6-11 how many coefficients it stands for, END for all the rest; 12-15 how many bits of
 * value follow the looked-up ones' code, 0 if the value is known; 16-31 the value.
 *
 * An entry of `leap` stands for all codes that begin and end in the bits looked at: bits 0-5 how
 * many bits they and their values take, 8-15 how many coefficients they stand for, 16-23 how
 * many of these those before the last one do. */
typedef struct {
    uint32_t look[1 << LOOK];
    uint32_t leap[1 << LOOK];
    uint8_t length[1 << LOOK]; /* of the code alone */
    int32_t after[17]; /* the first code that is longer than so many bits, at 16 bits */
    int32_t first[17]; /* index of the value of such a code, less the code */
    uint8_t value[256];
    int known;
} codes;

#define END 64
#define LENGTH(e) ((int)((e) & 63))
#define STEPS(e) ((int)((e) >> 6 & 63) + 1)
#define MORE(e) ((int)((e) >> 12 & 15))
#define VALUE(e) ((int16_t)((e) >> 16))
#define LEAP(e) ((int)((e) >> 8 & 255))
#define BEFORE(e) ((int)((e) >> 16 & 255))

typedef struct {
    int id, h, v, quant, dc, ac;
    int16_t last;          /* DC of the block before */
    int width, height;     /* samples that are part of the image */
    int left, right, top, bottom; /* the blocks that are wanted */
    int stride;
    uint8_t *samples;      /* of these blocks */
} part;

typedef struct {
    const uint8_t *next;
    uint64_t bits; /* those to come, uppermost first */
    int held;
} reader;

typedef struct {
    const uint8_t *at, *end; /* the file, from the next segment on */
    uint8_t *clean, *last;   /* codes up to the next marker, without stuffing, then zeros */
    reader from;

    uint16_t quant[4][64];   /* in zigzag order */
    int quant_known[4];
    codes dc[4], ac[4];
    part parts[3];
    int count, width, height, h, v, restart, framed;
} jpeg;

static const uint8_t NATURAL[64] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

INLINE int least(int a, int b) { return a < b ? a : b; }
INLINE int most(int a, int b) { return a > b ? a : b; }
INLINE uint8_t clipped(int v) { return (uint8_t)least(most(v, 0), 255); }
INLINE int two(const uint8_t *p) { return p[0] << 8 | p[1]; }

/* A value of so many bits: those that begin with 0 are negative. */
INLINE int extended(int bits, int size) { return bits < 1 << (size - 1) ? bits - (1 << size) + 1 : bits; }

static void find_leaps(codes *c) {
    for (uint32_t at = 0; at < 1 << LOOK; at++) {
        int used = 0, steps = 0, before = 0;
        for (uint32_t e = c->look[at]; LENGTH(e) && steps < END;) {
            before = steps, steps += STEPS(e), used += LENGTH(e);
            if (used >= LOOK) break;
            uint32_t rest = at << used & ((1 << LOOK) - 1);
            e = c->length[rest] > LOOK - used ? 0 : c->look[rest];
        }
        c->leap[at] = (uint32_t)used | (uint32_t)steps << 8 | (uint32_t)before << 16;
    }
}

/* A table of codes as the file has it: how many of each length, then their values. */
static int read_codes(codes *c, const uint8_t *counts, const uint8_t *values, int is_dc) {
    int code = 0, index = 0;
    memset(c->look, 0, sizeof c->look);
    for (int length = 1; length <= 16; length++, code <<= 1) {
        c->first[length] = index - code;
        for (int i = 0; i < counts[length - 1]; i++, code++, index++) {
            int symbol = values[index], size = symbol & 15, steps = (symbol >> 4) + 1;
            if (code >= 1 << length || (is_dc && symbol > 11)) return DAMAGED;
            c->value[index] = (uint8_t)symbol;
            if (length > LOOK) continue;
            if (!is_dc && size == 0 && symbol != 0xf0) steps = END;
            int rest = LOOK - length;
            for (int low = 0; low < 1 << rest; low++) {
                int value = 0, more = size;
                if (size && size <= rest) {
                    value = extended(low >> (rest - size), size);
                    more = 0;
                }
                c->length[(code << rest) + low] = (uint8_t)length;
                c->look[(code << rest) + low] = (uint32_t)(length + size) | (uint32_t)(steps - 1) << 6 |
                                                (uint32_t)more << 12 | (uint32_t)(uint16_t)value << 16;
            }
        }
        c->after[length] = code << (16 - length);
    }
    if (!is_dc) find_leaps(c);
    c->known = 1;
    return FINE;
}

static int read_frame(jpeg *j, const uint8_t *p, int size) {
    if (size < 6 || p[0] != 8 || j->framed) return OTHER;
    j->height = two(p + 1), j->width = two(p + 3), j->count = p[5];
    if (!j->height || !j->width || j->height > MOST_SIDE || j->width > MOST_SIDE) return OTHER;
    if ((j->count != 1 && j->count != 3) || size < 6 + 3 * j->count) return OTHER;
    for (int i = 0; i < j->count; i++) {
        const uint8_t *q = p + 6 + 3 * i;
        j->parts[i] = (part){.id = q[0], .h = q[1] >> 4, .v = q[1] & 15, .quant = q[2]};
        if (q[2] > 3) return DAMAGED;
    }
    part *luma = &j->parts[0];
    if (j->count == 1) luma->h = luma->v = 1; /* one component alone is never interleaved */
    int plain = luma->h == 1 && luma->v == 1, wide = luma->h == 2 && luma->v == 1;
    if (!plain && !wide && !(luma->h == 2 && luma->v == 2)) return OTHER;
    for (int i = 1; i < j->count; i++)
        if (j->parts[i].h != 1 || j->parts[i].v != 1) return OTHER;
    j->h = luma->h, j->v = luma->v, j->framed = 1;
    for (int i = 0; i < j->count; i++) {
        part *c = &j->parts[i];
        c->width = (j->width * c->h + j->h - 1) / j->h;
        c->height = (j->height * c->v + j->v - 1) / j->v;
    }
    return j->h > 1 && j->parts[1].width <= 2 ? OTHER : FINE; /* too narrow to be smoothed */
}

static int read_scan(jpeg *j, const uint8_t *p, int size) {
    if (!j->framed || size < 4 || p[0] != j->count || size < 4 + 2 * j->count) return OTHER;
    for (int i = 0; i < j->count; i++) {
        part *c = &j->parts[i];
        c->dc = p[2 + 2 * i] >> 4, c->ac = p[2 + 2 * i] & 15;
        if (p[1 + 2 * i] != c->id || c->dc > 3 || c->ac > 3) return OTHER;
        if (!j->dc[c->dc].known || !j->ac[c->ac].known || !j->quant_known[c->quant]) return DAMAGED;
    }
    const uint8_t *band = p + 1 + 2 * j->count;
    return band[0] == 0 && band[1] == 63 && band[2] == 0 ? FINE : OTHER;
}

static int read_quants(jpeg *j, const uint8_t *p, int size) {
    while (size > 0) {
        int wide = p[0] >> 4, which = p[0] & 15, bytes = 1 + 64 * (wide + 1);
        if (wide > 1 || which > 3 || size < bytes) return DAMAGED;
        for (int i = 0; i < 64; i++)
            j->quant[which][i] = (uint16_t)(wide ? two(p + 1 + 2 * i) : p[1 + i]);
        j->quant_known[which] = 1;
        p += bytes, size -= bytes;
    }
    return FINE;
}

static int read_tables(jpeg *j, const uint8_t *p, int size) {
    while (size > 0) {
        int count = 0, is_dc = !(p[0] >> 4), which = p[0] & 15;
        if (p[0] >> 4 > 1 || which > 3 || size < 17) return DAMAGED;
        for (int i = 1; i <= 16; i++) count += p[i];
        if (count > 256 || size < 17 + count) return DAMAGED;
        if (read_codes(is_dc ? &j->dc[which] : &j->ac[which], p + 1, p + 17, is_dc)) return DAMAGED;
        p += 17 + count, size -= 17 + count;
    }
    return FINE;
}

/* Everything before the codes. */
static int read_header(jpeg *j) {
    if (j->end - j->at < 4 || two(j->at) != 0xffd8) return OTHER;
    j->at += 2;
    for (;;) {
        if (j->end - j->at < 4 || j->at[0] != 0xff) return OTHER;
        int kind = j->at[1], size = two(j->at + 2) - 2, answer = FINE;
        const uint8_t *p = j->at + 4;
        if (size < 0 || size > j->end - p) return DAMAGED;
        j->at = p + size;
        if (kind == 0xdb) answer = read_quants(j, p, size);
        else if (kind == 0xc4) answer = read_tables(j, p, size);
        else if (kind == 0xc0 || kind == 0xc1) answer = read_frame(j, p, size);
        else if (kind == 0xdd) answer = size < 2 ? DAMAGED : (j->restart = two(p), FINE);
        else if (kind == 0xda) return read_scan(j, p, size);
        else if (kind < 0xe0 && kind != 0xfe) return OTHER;
        if (answer) return answer;
    }
}

/* ---------------------------------------------------------------- codes */

/* Take in the codes up to the next marker, and forget the DCs. */
static void next_run(jpeg *j) {
    uint8_t *to = j->clean;
    while (j->at < j->end) {
        const uint8_t *stop = memchr(j->at, 0xff, (size_t)(j->end - j->at));
        size_t plain = (size_t)((stop ? stop : j->end) - j->at);
        memcpy(to, j->at, plain);
        to += plain, j->at += plain;
        if (!stop || j->end - stop < 2) break;
        if (stop[1] != 0 && stop[1] != 0xff) break;
        if (stop[1] == 0) *to++ = 0xff;
        j->at += 2 - (stop[1] == 0xff);
    }
    memset(to, 0, MARGIN);
    j->from = (reader){j->clean, 0, 0}, j->last = to;
    for (int i = 0; i < j->count; i++) j->parts[i].last = 0;
}

/* A restart marker, and the codes after it. */
static int restart(jpeg *j, int number) {
    if (j->end - j->at < 2 || j->at[0] != 0xff || j->at[1] != 0xd0 + (number & 7)) return DAMAGED;
    j->at += 2;
    next_run(j);
    return FINE;
}

INLINE void refill(reader *r) {
    uint64_t more;
    memcpy(&more, r->next, 8);
    r->bits |= __builtin_bswap64(more) >> r->held;
    r->next += (63 - r->held) >> 3;
    r->held |= 56;
}

INLINE void drop(reader *r, int count) { r->bits <<= count, r->held -= count; }

/* A code that is longer than LOOK: its entry, or 0 if there is none. */
static uint32_t long_code(const codes *c, uint64_t bits, int is_dc) {
    int code = (int)(bits >> 48);
    for (int length = LOOK + 1; length <= 16; length++) {
        if (code >= c->after[length]) continue;
        int symbol = c->value[((code >> (16 - length)) + c->first[length]) & 255];
        int size = symbol & 15, steps = !is_dc && !size && symbol != 0xf0 ? END : (symbol >> 4) + 1;
        return (uint32_t)(length + size) | (uint32_t)(steps - 1) << 6 | (uint32_t)size << 12;
    }
    return 0;
}

INLINE uint32_t look(reader *r, const codes *c, int is_dc) {
    if (r->held < 32) refill(r);
    uint32_t e = c->look[r->bits >> (64 - LOOK)];
    return __builtin_expect(!LENGTH(e), 0) ? long_code(c, r->bits, is_dc) : e;
}

/* The value of an entry, which may lie in the bits that its length ends with. */
INLINE int value_of(const reader *r, uint32_t e) {
    int size = MORE(e);
    if (!size) return VALUE(e);
    return extended((int)(r->bits >> (64 - LENGTH(e))) & ((1 << size) - 1), size);
}

INLINE int read_dc(reader *r, const codes *dc, int16_t *last) {
    uint32_t e = look(r, dc, 1);
    if (!e) return DAMAGED;
    *last = (int16_t)(*last + value_of(r, e));
    drop(r, LENGTH(e));
    return FINE;
}

/* Step over a block: only its DC is understood. */
static int skip_block(jpeg *j, part *c) {
    const codes *ac = &j->ac[c->ac];
    reader r = j->from; /* a copy can live in registers */
    if (read_dc(&r, &j->dc[c->dc], &c->last)) return DAMAGED;
    int k = 1;
    do {
        refill(&r);
        for (int twice = 0; twice < 2; twice++) {
            uint32_t e = ac->leap[r.bits >> (64 - LOOK)];
            int steps = LEAP(e);
            if (__builtin_expect(!LENGTH(e) || k + BEFORE(e) > 63, 0)) {
                e = look(&r, ac, 0);
                if (!e) return DAMAGED;
                steps = STEPS(e);
            }
            drop(&r, LENGTH(e));
            k += steps;
            if (k > 63) {
                if (k > 64 && steps < END) return DAMAGED;
                break;
            }
        }
    } while (k < 64);
    j->from = r;
    return FINE;
}

/* Read a block, dequantised, in natural order. `far` becomes the last place in zigzag order. */
static int read_block(jpeg *j, part *c, int16_t *block, int *far) {
    const codes *ac = &j->ac[c->ac];
    const uint16_t *quant = j->quant[c->quant];
    reader r = j->from;
    if (read_dc(&r, &j->dc[c->dc], &c->last)) return DAMAGED;
    memset(block, 0, 64 * sizeof *block);
    block[0] = (int16_t)(c->last * quant[0]);
    int end = 0;
    for (int k = 1; k < 64;) {
        refill(&r);
        for (int twice = 0; twice < 2 && k < 64; twice++) {
            uint32_t e = look(&r, ac, 0);
            if (!e) return DAMAGED;
            int value = value_of(&r, e);
            drop(&r, LENGTH(e));
            k += STEPS(e);
            if (k > 64) {
                if (STEPS(e) != END) return DAMAGED;
                break;
            }
            end = k - 1;
            block[NATURAL[end]] = (int16_t)(value * quant[end]);
        }
    }
    j->from = r, *far = end;
    return FINE;
}

/* ---------------------------------------------------------------- cosine transform */

typedef int32_t row __attribute__((vector_size(32)));
typedef int16_t short_row __attribute__((vector_size(16)));
typedef uint8_t byte_row __attribute__((vector_size(8)));

/* One dimension of eight columns at once: Loeffler, Ligtenberg and Moschytz, "Practical fast 1-D
 * DCT algorithms with 11 multiplications", ICASSP 1989, in the fixed point of libjpeg. */
INLINE void transform(row x[8], int shift) {
    row half = {0};
    half += 1 << (shift - 1);
    row z1 = (x[2] + x[6]) * 4433;
    row t2 = z1 - x[6] * 15137, t3 = z1 + x[2] * 6270;
    row t0 = ((x[0] + x[4]) << 13) + half, t1 = ((x[0] - x[4]) << 13) + half;
    row e0 = t0 + t3, e3 = t0 - t3, e1 = t1 + t2, e2 = t1 - t2;
    row z3 = x[7] + x[3], z4 = x[5] + x[1], z5 = (z3 + z4) * 9633;
    z1 = (x[7] + x[1]) * -7373;
    row z2 = (x[5] + x[3]) * -20995;
    z3 = z3 * -16069 + z5;
    z4 = z4 * -3196 + z5;
    row o0 = x[7] * 2446 + z1 + z3, o1 = x[5] * 16819 + z2 + z4;
    row o2 = x[3] * 25172 + z2 + z3, o3 = x[1] * 12299 + z1 + z4;
    x[0] = (e0 + o3) >> shift, x[7] = (e0 - o3) >> shift;
    x[1] = (e1 + o2) >> shift, x[6] = (e1 - o2) >> shift;
    x[2] = (e2 + o1) >> shift, x[5] = (e2 - o1) >> shift;
    x[3] = (e3 + o0) >> shift, x[4] = (e3 - o0) >> shift;
}

#define PAIRS(a, b, from) __builtin_shufflevector(a, b, from, 8 + from, from + 1, 9 + from, \
                                                  from + 4, 12 + from, from + 5, 13 + from)
#define DOUBLES(a, b, from) __builtin_shufflevector(a, b, from, from + 1, 8 + from, 9 + from, \
                                                    from + 4, from + 5, 12 + from, 13 + from)

INLINE void transpose(row x[8]) {
    row p[8], q[8];
    for (int i = 0; i < 4; i++) {
        p[2 * i] = PAIRS(x[2 * i], x[2 * i + 1], 0);
        p[2 * i + 1] = PAIRS(x[2 * i], x[2 * i + 1], 2);
    }
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < 2; k++) {
            q[4 * i + 2 * k] = DOUBLES(p[4 * i + k], p[4 * i + k + 2], 0);
            q[4 * i + 2 * k + 1] = DOUBLES(p[4 * i + k], p[4 * i + k + 2], 2);
        }
    for (int i = 0; i < 4; i++) {
        x[i] = __builtin_shufflevector(q[i], q[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        x[i + 4] = __builtin_shufflevector(q[i], q[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

static void pixels_of(const int16_t *block, int far, uint8_t *to, int stride) {
    if (!far) {
        int grey = (block[0] * 4 + 16) >> 5;
        for (int y = 0; y < 8; y++) memset(to + (int64_t)y * stride, clipped(grey + 128), 8);
        return;
    }
    row x[8];
    for (int i = 0; i < 8; i++) {
        short_row half;
        memcpy(&half, block + 8 * i, sizeof half);
        x[i] = __builtin_convertvector(half, row);
    }
    transform(x, 11);
    transpose(x);
    transform(x, 18);
    transpose(x);
    for (int y = 0; y < 8; y++) {
        int32_t *v = (int32_t *)&x[y];
        for (int i = 0; i < 8; i++) to[(int64_t)y * stride + i] = clipped(v[i] + 128);
    }
}

/* ---------------------------------------------------------------- blocks of the box */

static int decode_mcu(jpeg *j, int mx, int my) {
    int16_t block[64] __attribute__((aligned(32)));
    for (int i = 0; i < j->count; i++) {
        part *c = &j->parts[i];
        for (int v = 0; v < c->v; v++)
            for (int h = 0; h < c->h; h++) {
                int far, bx = mx * c->h + h, by = my * c->v + v;
                if (bx < c->left || bx >= c->right || by < c->top || by >= c->bottom) {
                    if (skip_block(j, c)) return DAMAGED;
                    continue;
                }
                if (read_block(j, c, block, &far)) return DAMAGED;
                int64_t at = (int64_t)(by - c->top) * 8 * c->stride + (int64_t)(bx - c->left) * 8;
                pixels_of(block, far, c->samples + at, c->stride);
            }
    }
    return FINE;
}

static int skip_mcu(jpeg *j) {
    for (int i = 0; i < j->count; i++)
        for (int n = j->parts[i].h * j->parts[i].v; n; n--)
            if (skip_block(j, &j->parts[i])) return DAMAGED;
    return FINE;
}

/* All codes from the first to the last that the box needs. */
static int decode_blocks(jpeg *j) {
    const part *luma = &j->parts[0];
    int wide = (j->width + 8 * j->h - 1) / (8 * j->h);
    int left = luma->left / j->h, right = (luma->right + j->h - 1) / j->h;
    int top = luma->top / j->v, bottom = (luma->bottom + j->v - 1) / j->v;
    for (int i = 1; i < j->count; i++) {
        const part *c = &j->parts[i];
        left = least(left, c->left), right = most(right, c->right);
        top = least(top, c->top), bottom = most(bottom, c->bottom);
    }
    next_run(j);
    for (int my = 0, done = 0; my < bottom; my++)
        for (int mx = 0; mx < wide; mx++, done++) {
            if (my == bottom - 1 && mx >= right) return FINE;
            if (j->restart && done && done % j->restart == 0)
                if (restart(j, done / j->restart - 1)) return DAMAGED;
            int wanted = my >= top && mx >= left && mx < right;
            if (wanted ? decode_mcu(j, mx, my) : skip_mcu(j)) return DAMAGED;
            if (j->from.next - (j->from.held >> 3) > j->last) return DAMAGED;
        }
    return FINE;
}

/* ---------------------------------------------------------------- colours */

/* A row of chroma at the width of the image: `to[x]` is that of pixel `2 * 8 * c->left + x`. Rows
 * and columns between samples weigh their neighbours 3 to 1, as libjpeg's "fancy" ones do. */
static void smooth_row(const jpeg *j, const part *c, int y, int *sums, uint8_t *to) {
    int first = 8 * c->left, count = least(8 * c->right, c->width) - first;
    int row_at = j->v == 2 ? y >> 1 : y;
    const uint8_t *near = c->samples + (int64_t)(row_at - 8 * c->top) * c->stride;
    if (j->v == 2) {
        int other = least(most(row_at + (y & 1 ? 1 : -1), 0), c->height - 1);
        const uint8_t *away = c->samples + (int64_t)(other - 8 * c->top) * c->stride;
        for (int x = 0; x < count; x++) sums[x + 1] = 3 * near[x] + away[x];
    } else
        for (int x = 0; x < count; x++) sums[x + 1] = near[x];
    sums[0] = sums[1], sums[count + 1] = sums[count];
    int shift = j->v == 2 ? 4 : 2, even = j->v == 2 ? 8 : 1, odd = j->v == 2 ? 7 : 2;
    for (int x = 0; x < count; x++) {
        to[2 * x] = (uint8_t)((3 * sums[x + 1] + sums[x] + even) >> shift);
        to[2 * x + 1] = (uint8_t)((3 * sums[x + 1] + sums[x + 2] + odd) >> shift);
    }
}

#define RUN 64 /* pixels whose colours are computed at a time */

typedef uint8_t bytes __attribute__((vector_size(16)));

/* The upper half of a product, rounded: v * factor / 65536, for v in [-128, 127]. */
INLINE int16_t share(int16_t v, int16_t factor) {
    return (int16_t)(((int16_t)(((int16_t)(2 * v) * factor) >> 16) + 1) >> 1);
}

/* Sixteen pixels, one channel after the other, to 48 bytes, pixel by pixel. */
INLINE void interleave(bytes r, bytes g, bytes b, uint8_t *to) {
    bytes rg = __builtin_shufflevector(r, g, 0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
    bytes gr = __builtin_shufflevector(r, g, 21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
    bytes last = __builtin_shufflevector(r, g, 0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
    rg = __builtin_shufflevector(rg, b, 0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15);
    gr = __builtin_shufflevector(gr, b, 0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15);
    last = __builtin_shufflevector(last, b, 26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31);
    memcpy(to, &rg, 16), memcpy(to + 16, &gr, 16), memcpy(to + 32, &last, 16);
}

/* Loops of constant length over 16-bit numbers, which compilers vectorise. The rows of samples
 * can be read, and that of pixels written, to the next multiple of RUN. */
static void colour_row(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int count, uint8_t *to) {
    for (int x = 0; x < count; x += RUN, to += 3 * RUN) {
        uint8_t red[RUN], green[RUN], blue[RUN];
        for (int i = 0; i < RUN; i++) {
            int16_t l = y[x + i], b = (int16_t)(cb[x + i] - 128), r = (int16_t)(cr[x + i] - 128);
            red[i] = clipped((int16_t)(l + r + share(r, 26345)));
            blue[i] = clipped((int16_t)(l + 2 * b + share(b, -14942)));
            green[i] = clipped((int16_t)(l - r + (int16_t)((-22554 * b + 18734 * r + 32768) >> 16)));
        }
        for (int i = 0; i < RUN; i += 16) {
            bytes v[3];
            memcpy(&v[0], red + i, 16), memcpy(&v[1], green + i, 16), memcpy(&v[2], blue + i, 16);
            interleave(v[0], v[1], v[2], to + 3 * i);
        }
    }
}

static int colour(const jpeg *j, int left, int top, int right, int bottom, uint8_t *out) {
    int64_t room = 16 * (int64_t)(j->parts[j->count - 1].right - j->parts[j->count - 1].left) + 64;
    int width = right - left;
    uint8_t *smooth = malloc((size_t)(2 * room + RUN));
    uint8_t *pixels = malloc(3 * ((size_t)width + RUN));
    int *sums = malloc((size_t)room * sizeof *sums);
    if (smooth && sums && pixels)
        for (int y = top; y < bottom; y++, out += 3 * (int64_t)width) {
            const part *luma = &j->parts[0];
            const uint8_t *rows[3] = {luma->samples + (int64_t)(y - 8 * luma->top) * luma->stride +
                                      (left - 8 * luma->left)};
            for (int i = 1; i < j->count; i++) {
                const part *c = &j->parts[i];
                if (j->h == 1)
                    rows[i] = c->samples + (int64_t)(y - 8 * c->top) * c->stride + (left - 8 * c->left);
                else {
                    uint8_t *to = smooth + (i - 1) * room;
                    smooth_row(j, c, y, sums, to);
                    rows[i] = to + (left - 16 * c->left);
                }
            }
            if (j->count == 3) {
                colour_row(rows[0], rows[1], rows[2], width, pixels);
                memcpy(out, pixels, 3 * (size_t)width);
            } else
                for (int x = 0; x < width; x++) memset(out + 3 * x, rows[0][x], 3);
        }
    int answer = smooth && sums && pixels ? FINE : NO_MEMORY;
    free(smooth), free(sums), free(pixels);
    return answer;
}

/* ---------------------------------------------------------------- all of it */

/* The blocks of each component that the box needs, and memory for them. */
static int make_room(jpeg *j, int left, int top, int right, int bottom) {
    for (int i = 0; i < j->count; i++) {
        part *c = &j->parts[i];
        int dx = j->h / c->h, dy = j->v / c->v; /* pixels a sample */
        int x0 = left / dx - (dx > 1), x1 = (right - 1) / dx + 1 + (dx > 1);
        int y0 = top / dy - (dy > 1), y1 = (bottom - 1) / dy + 1 + (dy > 1);
        c->left = most(x0, 0) / 8, c->right = (least(x1, c->width) + 7) / 8;
        c->top = most(y0, 0) / 8, c->bottom = (least(y1, c->height) + 7) / 8;
        c->stride = 8 * (c->right - c->left);
        c->samples = malloc((size_t)c->stride * 8 * (size_t)(c->bottom - c->top) + RUN);
        if (!c->samples) return NO_MEMORY;
    }
    return FINE;
}

/* Decode the pixels from (left, top) up to (right, bottom) of a file of `size` bytes into
 * `out`, which has 3 * (right - left) * (bottom - top). Gives FINE, or why it did not. */
int foveate_jpeg_box(const uint8_t *data, int64_t size, int left, int top, int right, int bottom, uint8_t *out) {
    jpeg *j = calloc(1, sizeof *j);
    if (!j) return NO_MEMORY;
    j->at = data, j->end = data + size;
    int answer = read_header(j);
    if (!answer && (left < 0 || top < 0 || left >= right || top >= bottom || right > j->width || bottom > j->height))
        answer = OTHER;
    if (!answer) answer = make_room(j, left, top, right, bottom);
    if (!answer && !(j->clean = malloc((size_t)(j->end - j->at) + MARGIN))) answer = NO_MEMORY;
    if (!answer) answer = decode_blocks(j);
    if (!answer) answer = colour(j, left, top, right, bottom, out);
    for (int i = 0; i < 3; i++) free(j->parts[i].samples);
    free(j->clean), free(j);
    return answer;
}
