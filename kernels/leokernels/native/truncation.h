// A draw from a part of a row's ids: min_p, then top_k, then top_p, each of what the one before left.
#pragma once

#include "choice.h"

struct Peak {
    float value;
    int64_t id;
};

struct Limits {
    int64_t top_k;  // the row's length, or more: no limit
    double top_p;   // 1: no limit
    double min_p;   // 0: no limit

    bool any(long count) const { return top_k < count || top_p < 1 || min_p > 0; }
};

// What a thread needs beside a row. It grows to the longest row that was met, and stays.
struct Scratch {
    std::vector<float> maxima;              // [pieces, WORD]: of every WORDth id of a PIECE
    std::vector<double> sums;               // of each PIECE of what is drawn from
    std::vector<float> values, weights;     // of those that are near the largest; groups of them are whole
    std::vector<float> some, some_weights;  // those of them that are not decided yet
    std::vector<int32_t> ids;

    void hold(long count);
};

int64_t draw_within(const Row& row, Peak peak, float temperature, const Limits& limits, double uniform,
                    Scratch& scratch);

// The sums of each PIECE of a row's weights. Returns the total.
double add_up(const Row& row, const Weights& weights, std::vector<double>& sums);
