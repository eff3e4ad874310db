/* Layer norm over the channels of contiguous maps (B, C, H, W), and its gradients.
 *
 * A lane is a pixel, so channels are added up without shuffles, and a tile of
 * pixels is read from memory once: its other two readings find it in the caches.
 * Where channels lie together PyTorch's own layer norm is as fast as memory.
 */
#include "lanes.h"

#define WIDE 4 /* vectors of pixels in a tile */
#define SPLITS 8

typedef struct {
    const char *x, *g; /* g: the output's gradient, on the way back */
    char *out;         /* the output, or the gradient of x */
    const float *weight, *bias; /* (channels); bias may be null */
    float *weight_gradient, *bias_gradient;
    int64_t batch, channels, pixels; /* pixels of one map */
    float eps;
    int32_t half;
} layer_norm;

typedef struct {
    const layer_norm *job;
    float *sums; /* (SPLITS, 2, channels, LANES) */
} norm_run;

/* Neighbouring pixels: where the first is in a map's memory, and how many. */
typedef struct {
    int64_t from, count;
} place;

/* Channel c of vector v of a place. */
INLINE vec read(const layer_norm *job, const char *map, place at, int64_t c, int v) {
    const char *from = map + (at.from + c * job->pixels + v * LANES) * element_size(job->half);
    return load_part(from, (int)least(LANES, at.count - v * LANES), job->half);
}
INLINE void write(const layer_norm *job, place at, int64_t c, int v, vec value) {
    char *to = job->out + (at.from + c * job->pixels + v * LANES) * element_size(job->half);
    store_part(to, value, (int)least(LANES, at.count - v * LANES), job->half);
}

#define EACH(v) UNROLL for (int v = 0; v < V; v++)
#define CHANNELS(c) for (int64_t c = 0; c < job->channels; c++)

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
}

INLINE void norm(const int V, const layer_norm *job, place at) {
    origin o[V];
    moments(V, job, at, o);
    CHANNELS(c) {
        float weight = job->weight[c], bias = job->bias ? job->bias[c] : 0.0f;
        EACH(v) {
            vec normal = centred(job, at, c, v, o) * o[v].scale;
            write(job, at, c, v, normal * weight + bias);
        }
    }
}

/* sums: of g times the normalised pixels, then of g, for each channel. */
INLINE void norm_back(const int V, const layer_norm *job, place at, float *sums) {
    origin o[V];
    vec sum[V], product[V];
    float *along = sums, *plain = sums + job->channels * LANES;
    moments(V, job, at, o);
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
        write(job, at, c, v, (inner - sum[v] - normal * product[v]) * o[v].scale);
    }
}

INLINE int64_t tiles_of(const layer_norm *job) {
    return (job->pixels + WIDE * LANES - 1) / (WIDE * LANES);
}

INLINE void pixels(const int V, const layer_norm *job, place at, float *sums, const int back) {
    if (back) norm_back(V, job, at, sums);
    else norm(V, job, at);
}

INLINE void tile(const layer_norm *job, int64_t unit, float *sums, const int back) {
    int64_t first = unit % tiles_of(job) * WIDE * LANES;
    int64_t from = unit / tiles_of(job) * job->channels * job->pixels + first;
    int64_t left = least(WIDE * LANES, job->pixels - first);
    if (left == WIDE * LANES) pixels(WIDE, job, (place){from, WIDE * LANES}, sums, back);
    else
        for (; left > 0; left -= LANES, from += LANES)
            pixels(1, job, (place){from, least(left, LANES)}, sums, back);
}

static void norm_tiles(int64_t begin, int64_t end, void *context) {
    const layer_norm *job = ((norm_run *)context)->job;
    for (int64_t unit = begin; unit < end; unit++) tile(job, unit, 0, 0);
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
