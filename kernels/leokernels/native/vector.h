// Vectors of the width that this library is compiled for, and the two ways in which numbers are stored.
//
// The same source is compiled once for each instruction set; which library is loaded is decided at run time.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

constexpr float INFINITE = std::numeric_limits<float>::infinity();

template <class To, class From>
static inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class T>
static inline T load(const void* from) {
    T to;
    std::memcpy(&to, from, sizeof to);
    return to;
}

template <class T>
static inline void store(void* to, T from) {
    std::memcpy(to, &from, sizeof from);
}

static inline Floats all(float x) { return x - (Floats){}; }
static inline Words all(uint32_t x) { return x - (Words){}; }

static inline Words lane_numbers() {
    Words lanes;
    for (uint32_t lane = 0; lane < LANES; lane++) lanes[lane] = lane;
    return lanes;
}

// bfloat16 is the upper half of a float32. Rounded to the nearest, ties to even; NaN stays NaN.
struct BFloat16 {
    uint16_t bits;
};

static inline Words rounded_bits(Floats x) {
    Words bits = same_bits<Words>(x);
    Words rounded = bits + 0x7FFFu + ((bits >> 16) & 1u);
    Words is_nan = (Words)(x != x);
    return (rounded & ~is_nan) | ((bits | 0x00400000u) & is_nan);
}

static inline uint32_t rounded_bits(float x) {
    uint32_t bits = same_bits<uint32_t>(x);
    return x != x ? bits | 0x00400000u : bits + 0x7FFFu + ((bits >> 16) & 1u);
}

// How a number is stored. `widen` and `narrow` are a vector at once; `Stored::round` is what storing loses.
template <class T>
struct Stored;

template <>
struct Stored<float> {
    static inline float one(const float* from) { return *from; }
    static inline void put(float* to, float x) { *to = x; }
    static inline Floats widen(const float* from) { return load<Floats>(from); }
    static inline void narrow(float* to, Floats x) { store(to, x); }
    static inline Floats round(Floats x) { return x; }
    static inline float round(float x) { return x; }
};

template <>
struct Stored<BFloat16> {
    static inline float one(const BFloat16* from) { return same_bits<float>((uint32_t)from->bits << 16); }
    static inline void put(BFloat16* to, float x) { to->bits = (uint16_t)(rounded_bits(x) >> 16); }
    static inline Floats widen(const BFloat16* from) {
        return same_bits<Floats>(__builtin_convertvector(load<Halves>(from), Words) << 16);
    }
    static inline void narrow(BFloat16* to, Floats x) {
        store(to, __builtin_convertvector(rounded_bits(x) >> 16, Halves));
    }
    static inline Floats round(Floats x) { return same_bits<Floats>(rounded_bits(x) & 0xFFFF0000u); }
    static inline float round(float x) { return same_bits<float>(rounded_bits(x) & 0xFFFF0000u); }
};

// Two vectors at once, of consecutive elements: `first` and `second` are the two halves of them for float32, and the
// even and the odd ones for bfloat16, where they are read and written with the fewest instructions that way.
template <class T>
struct Pair;

template <>
struct Pair<float> {
    static inline void widen(const float* from, Floats& first, Floats& second) {
        first = load<Floats>(from);
        second = load<Floats>(from + LANES);
    }
    static inline void narrow(float* to, Floats first, Floats second) {
        store(to, first);
        store(to + LANES, second);
    }
    static inline void in_order(float* to, Floats first, Floats second) { narrow(to, first, second); }
};

template <>
struct Pair<BFloat16> {
    static inline void widen(const BFloat16* from, Floats& first, Floats& second) {
        const Words both = load<Words>(from);
        first = same_bits<Floats>(both << 16);
        second = same_bits<Floats>(both & 0xFFFF0000u);
    }
    static inline void narrow(BFloat16* to, Floats first, Floats second) {
        store(to, rounded_bits(first) >> 16 | (rounded_bits(second) & 0xFFFF0000u));
    }
    // As float32, in the order of the elements.
    static inline void in_order(float* to, Floats first, Floats second) {
        Words low, high;
        for (uint32_t lane = 0; lane < LANES; lane++) {
            low[lane] = lane / 2 + lane % 2 * LANES;
            high[lane] = low[lane] + LANES / 2;
        }
        store(to, shuffled(first, second, low));
        store(to + LANES, shuffled(first, second, high));
    }

private:
    static inline Floats shuffled(Floats first, Floats second, Words lanes) {
#if defined(__clang__)
        Floats out;
        for (int lane = 0; lane < LANES; lane++)
            out[lane] = lanes[lane] < LANES ? first[lanes[lane]] : second[lanes[lane] - LANES];
        return out;
#else
        return __builtin_shuffle(first, second, lanes);
#endif
    }
};

// a * b + c, rounded once where the processor can; never left to the compiler, so that every kernel rounds alike.
static inline Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

// Vectors that would reach past `count` elements are loaded with zeros and stored in part.
template <class T>
static inline Floats widen_some(const T* from, long count) {
    if (count >= LANES) return Stored<T>::widen(from);
    T part[LANES] = {};
    std::memcpy(part, from, count * sizeof(T));
    return Stored<T>::widen(part);
}

template <class T>
static inline void narrow_some(T* to, Floats x, long count) {
    if (count >= LANES) return Stored<T>::narrow(to, x);
    T part[LANES];
    Stored<T>::narrow(part, x);
    std::memcpy(to, part, count * sizeof(T));
}

static inline Floats greater(Floats a, Floats b) { return a > b ? a : b; }
static inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }

// Lane i takes the place of lane i ^ WIDTH.
template <int WIDTH>
static inline Floats crossed(Floats x) {
#if defined(__clang__)
    Floats out;
    for (int lane = 0; lane < LANES; lane++) out[lane] = x[lane ^ WIDTH];
    return out;
#else
    Words lanes;
    for (uint32_t lane = 0; lane < LANES; lane++) lanes[lane] = lane ^ WIDTH;
    return __builtin_shuffle(x, lanes);
#endif
}

// Lanes in a fixed order: pairs, then pairs of pairs, whatever the compiler would find faster.
template <int WIDTH = LANES / 2>
static inline float sum(Floats x) {
    if constexpr (WIDTH == 0)
        return x[0];
    else
        return sum<WIDTH / 2>(x + crossed<WIDTH>(x));
}

template <int WIDTH = LANES / 2>
static inline float largest(Floats x) {
    if constexpr (WIDTH == 0)
        return x[0];
    else
        return largest<WIDTH / 2>(greater(crossed<WIDTH>(x), x));
}

// e to the power of r for |r| <= log(2)/2: a polynomial of degree 6 (Cephes' expf), within 2 units in the last place.
static inline Floats exponential_near(Floats r) {
    Floats y = fma(all(1.9875691500e-4f), r, all(1.3981999507e-3f));
    y = fma(y, r, all(8.3334519073e-3f));
    y = fma(y, r, all(4.1665795894e-2f));
    y = fma(y, r, all(1.6666665459e-1f));
    y = fma(y, r, all(5.0000001201e-1f));
    return fma(y * r, r, r) + 1.0f;
}

// e to the power of x, from -87.3 to 88.02, as r + n * log(2) (Cody and Waite).
static inline Floats exponential_within(Floats x) {
    Floats shifted = fma(x, all(1.44269504088896341f), all(12582912.0f));  // the nearest integer in the lowest bits
    Floats power = shifted - 12582912.0f;
    Floats r = fma(power, all(2.12194440e-4f), fma(power, all(-0.693359375f), x));
    return same_bits<Floats>(same_bits<Words>(exponential_near(r)) + (same_bits<Words>(shifted) << 23));
}

// e to the power of x; 0 below -87.3, infinity above 88, NaN for NaN.
static inline Floats exponential(Floats x) {
    Floats result = exponential_within(smaller(greater(x, all(-87.33654f)), all(88.02f)));
    result = x < -87.33654f ? all(0.0f) : result;
    result = x > 88.02f ? all(INFINITE) : result;
    return x != x ? x : result;
}

// The same for x that is 0 or less: the weights of a softmax, whose largest logit has been taken off.
static inline Floats exponential_down(Floats x) {
#if LANES == 16
    // The processor scales by the power, in the lanes where that is not 0: there it would take a hundred times as long.
    const __mmask16 lanes = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.33654f), _CMP_NLT_UQ);  // NaN, too
    const __m512 power = _mm512_roundscale_ps((__m512)(x * 1.44269504088896341f), _MM_FROUND_TO_NEAREST_INT);
    const Floats r = fma((Floats)power, all(2.12194440e-4f), fma((Floats)power, all(-0.693359375f), x));
    return (Floats)_mm512_maskz_scalef_ps(lanes, (__m512)exponential_near(r), power);
#else
    Floats result = exponential_within(greater(x, all(-87.33654f)));
    result = x < -87.33654f ? all(0.0f) : result;
    return x != x ? x : result;
#endif
}

// 2 to the power of scale * x, for x of 0 or less from `least` on, below which it is 0; -125 is the least product. From
// processors that add to a product with one rounding the same bits, however wide their vectors are.
static inline Floats power_of_two_down(Floats x, Floats scale, Floats least) {
    const Floats shifted = fma(x, scale, all(12582912.0f));  // the nearest integer in the lowest bits
    const Floats r = fma(x, scale, all(12582912.0f) - shifted);
    Floats y = fma(all(1.3264727213633178e-3f), r, all(9.671512812493315e-3f));  // Chebyshev's, within 9.2e-8
    y = fma(y, r, all(5.550733744824849e-2f));
    y = fma(y, r, all(2.4022242082677484e-1f));
    y = fma(y, r, all(6.931469775973307e-1f));
    y = fma(y, r, all(1.0f));
    const Words power = same_bits<Words>(shifted) << 23;
#if LANES == 16
    const __mmask16 lanes = _mm512_cmp_ps_mask((__m512)x, (__m512)least, _CMP_GE_OQ);
    return (Floats)_mm512_maskz_add_epi32(lanes, (__m512i)y, (__m512i)power);
#else
    return x >= least ? same_bits<Floats>(same_bits<Words>(y) + power) : all(0.0f);
#endif
}
