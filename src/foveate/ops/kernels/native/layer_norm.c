/* Layer norm over the channels of contiguous maps (B, C, H, W), and its gradients.
 *
 * A lane is a pixel, so channels are added up without shuffles, and a tile of
 * pixels is read from memory once: its other readings find it in the caches.
 * The way there leaves each pixel's mean and scale behind for the way back.
 * Where channels lie together PyTorch's own layer norm is as fast as memory.
 */
#include "lanes.h"

#define WIDE 4 /* vectors of pixels in most tiles; 1 to 5 in the others */
#define SPLITS 8

typedef struct {
    const char *x, *g; /* g: the output's gradient, on the way back */
    char *out;         /* the output, or the gradient of x */
    const float *weight, *bias; /* (channels); bias may be null */
    float *weight_gradient, *bias_gradient;
    float *means, *scales; /* (batch, pixels): kept for the way back, unless null */
    int64_t batch, channels, pixels; /* pixels of one map */
    float eps;
    int32_t half;
} layer_norm;

typedef struct {
    const layer_norm *job;
    float *sums; /* (SPLITS, 2, channels, LANES) */
} norm_run;

/* Neighbouring pixels: where the first is in a map's memory and among all pixels, where the next
 * such place is, how many vectors hold them, and how many of them the last vector holds. */
typedef struct {
    int64_t from, pixel, next;
    int vectors, last;
    int half, far; /* far: the output goes past the caches */
} place;

INLINE int held_by(place at, int v) { return v + 1 < at.vectors ? LANES : at.last; }

/* Channel c of vector v of a place. */
INLINE vec read(const layer_norm *job, const char *map, place at, int64_t c, int v) {
    const char *from = map + (at.from + c * job->pixels + v * LANES) * element_size(at.half);
    return load_part(from, held_by(at, v), at.half);
}
INLINE void write(const layer_norm *job, place at, int64_t c, int v, vec value) {
    char *to = job->out + (at.from + c * job->pixels + v * LANES) * element_size(at.half);
    if (at.far) stream(to, value);
    else store_part(to, value, held_by(at, v), at.half);
}

/* Ask for the same of the next tile: each channel lies in a page of its own, so no processor guesses it. */
INLINE void expect_next(
    const layer_norm *job, const char *map, place at, int64_t c, int v, const int write
) {
    int64_t next = at.next + c * job->pixels + v * LANES;
    fetch(map + next * element_size(at.half), write);
}

/* One value for each pixel of vector v. */
INLINE float *kept(float *values, place at, int v) { return values + at.pixel + v * LANES; }

#define EACH(v) UNROLL for (int v = 0; v < V; v++)
#define CHANNELS(c) _Pragma("clang loop unroll(disable)") for (int64_t c = 0; c < job->channels; c++)

/* What a pixel's channels are measured from: its first channel, and their mean seen from there.
 * Subtracting a near number first loses nothing, however large both are. */
typedef struct {
    vec first, mean, scale;
} origin;

/* Channel c of vector v, less the mean. */
INLINE vec centred(const layer_norm *job, place at, int64_t c, int v, const origin *o) {
    return read(job, job->x, at, c, v) - o[v].first - o[v].mean;
}

INLINE void moments(const int V, const layer_norm *job, place at, origin *o) {
    vec sum[V], squares[V];
    EACH(v) {
        sum[v] = squares[v] = (vec){0};
        o[v].first = read(job, job->x, at, 0, v);
    }
    CHANNELS(c) EACH(v) sum[v] += read(job, job->x, at, c, v) - o[v].first;
    EACH(v) o[v].mean = sum[v] / (float)job->channels;
    CHANNELS(c) EACH(v) {
        vec from = centred(job, at, c, v, o);
        squares[v] += from * from;
    }
    EACH(v) {
        vec variance = squares[v] / (float)job->channels + job->eps;
        EACH_LANE o[v].scale[lane] = 1.0f / __builtin_sqrtf(variance[lane]);
    }
    if (job->means) EACH(v) {
        store_part((char *)kept(job->means, at, v), o[v].mean, held_by(at, v), 0);
        store_part((char *)kept(job->scales, at, v), o[v].scale, held_by(at, v), 0);
    }
}

INLINE void kept_moments(const int V, const layer_norm *job, place at, origin *o) {
    EACH(v) {
        o[v].first = read(job, job->x, at, 0, v);
        o[v].mean = load_part((const char *)kept(job->means, at, v), held_by(at, v), 0);
        o[v].scale = load_part((const char *)kept(job->scales, at, v), held_by(at, v), 0);
    }
}

INLINE void norm(const int V, const layer_norm *job, place at) {
    origin o[V];
    moments(V, job, at, o);
    CHANNELS(c) {
        float weight = job->weight[c], bias = job->bias ? job->bias[c] : 0.0f;
        EACH(v) {
            vec normal = centred(job, at, c, v, o) * o[v].scale;
            expect_next(job, job->x, at, c, v, 0);
            if (!at.far) expect_next(job, job->out, at, c, v, 1);
            write(job, at, c, v, normal * weight + bias);
        }
    }
}

/* sums: of g times the normalised pixels, then of g, for each channel. */
INLINE void norm_back(const int V, const layer_norm *job, place at, float *sums) {
    origin o[V];
    vec sum[V], product[V];
    float *along = sums, *plain = sums + job->channels * LANES;
    kept_moments(V, job, at, o);
    EACH(v) sum[v] = product[v] = (vec){0};
    CHANNELS(c) {
        vec shares = load(along + c * LANES), gradients = load(plain + c * LANES);
        EACH(v) {
            vec g = read(job, job->g, at, c, v);
            vec share = g * centred(job, at, c, v, o) * o[v].scale;
            shares += share, gradients += g;
            sum[v] += g * job->weight[c];
            product[v] += share * job->weight[c];
        }
        store(along + c * LANES, shares);
        store(plain + c * LANES, gradients);
    }
    EACH(v) sum[v] /= (float)job->channels, product[v] /= (float)job->channels;
    CHANNELS(c) EACH(v) {
        vec normal = centred(job, at, c, v, o) * o[v].scale;
        vec inner = read(job, job->g, at, c, v) * job->weight[c];
        expect_next(job, job->x, at, c, v, 0);
        expect_next(job, job->g, at, c, v, 0);
        if (!at.far) expect_next(job, job->out, at, c, v, 1);
        write(job, at, c, v, (inner - sum[v] - normal * product[v]) * o[v].scale);
    }
}

INLINE int64_t vectors_of(const layer_norm *job) { return (job->pixels + LANES - 1) / LANES; }
INLINE int64_t tiles_of(const layer_norm *job) { return most(1, (vectors_of(job) + 2) / WIDE); }

/* Whether no cache would hold the output, whose whole vectors all begin where vectors may. */
INLINE int outgrows(const layer_norm *job) {
    int64_t bytes = 4 * job->batch * job->channels * job->pixels;
    return bytes > CACHED && job->pixels % LANES == 0 && is_even(job->out);
}

INLINE void either(const int V, const layer_norm *job, place at, float *sums, const int back) {
    if (back) norm_back(V, job, at, sums);
    else norm(V, job, at);
}

/* Whole vectors of float32 are most of the work; these, parts of them, and bfloat16 are compiled
 * apart. */
INLINE void pixels(const int V, const layer_norm *job, place at, float *sums, const int back) {
    place whole = {at.from, at.pixel, at.next, V, LANES, 0, outgrows(job)};
    place part = {at.from, at.pixel, at.next, V, at.last, 0, 0};
    place halves = {at.from, at.pixel, at.next, V, at.last, 1, 0};
    if (at.half) either(V, job, halves, sums, back);
    else if (at.last == LANES) either(V, job, whole, sums, back);
    else either(V, job, part, sums, back);
}

/* A map's vectors are dealt to its tiles as evenly as can be. */
INLINE void tile(const layer_norm *job, int64_t unit, float *sums, const int back) {
    int64_t image = unit / tiles_of(job), number = unit % tiles_of(job);
    int64_t first = vectors_of(job) * number / tiles_of(job);
    int64_t end = vectors_of(job) * (number + 1) / tiles_of(job), pixel = first * LANES;
    int64_t past = least(end * LANES, job->pixels);
    int64_t ends = number + 1 == tiles_of(job); /* then the next is of the next image */
    place at = {
        .from = image * job->channels * job->pixels + pixel,
        .pixel = image * job->pixels + pixel,
        .last = (int)(past - (end - 1) * LANES),
        .half = job->half,
    };
    at.next = at.from + past - pixel + ends * (job->channels - 1) * job->pixels;
    switch (end - first) {
        case 1: pixels(1, job, at, sums, back); break;
        case 2: pixels(2, job, at, sums, back); break;
        case 3: pixels(3, job, at, sums, back); break;
        case 4: pixels(4, job, at, sums, back); break;
        case 5: pixels(5, job, at, sums, back); break;
    }
}

static void norm_tiles(int64_t begin, int64_t end, void *context) {
    const layer_norm *job = ((norm_run *)context)->job;
    for (int64_t unit = begin; unit < end; unit++) tile(job, unit, 0, 0);
    settle();
}

static void norm_back_splits(int64_t begin, int64_t end, void *context) {
    norm_run *run = context;
    const layer_norm *job = run->job;
    int64_t units = job->batch * tiles_of(job);
    for (int64_t split = begin; split < end; split++) {
        float *sums = run->sums + split * 2 * job->channels * LANES;
        int64_t last = units * (split + 1) / SPLITS;
        for (int64_t unit = units * split / SPLITS; unit < last; unit++) tile(job, unit, sums, 1);
    }
    settle();
}

int foveate_layer_norm(const layer_norm *job, loop run) {
    norm_run context = {job, 0};
    return run(0, job->batch * tiles_of(job), 1, norm_tiles, &context);
}

/* Gradients of x, weight and bias. Sums are split and added in an order that threads don't change. */
int foveate_layer_norm_back(const layer_norm *job, loop run) {
    int64_t each = job->channels * LANES;
    norm_run context = {job, zeros(SPLITS * 2 * each)};
    if (!context.sums) return 1;
    int failed = run(0, SPLITS, 1, norm_back_splits, &context);
    for (int64_t c = 0; c < job->channels; c++) {
        vec weight = {0}, bias = {0};
        for (int64_t s = 0; s < SPLITS; s++) {
            weight += load(context.sums + s * 2 * each + c * LANES);
            bias += load(context.sums + (s * 2 + 1) * each + c * LANES);
        }
        job->weight_gradient[c] = total(weight);
        job->bias_gradient[c] = total(bias);
    }
    free(context.sums);
    return failed;
}
